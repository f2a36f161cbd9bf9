"""Search spaces: whatever is drawn can be carried out, and its parameters say all there is to know."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn

from network_surgery.ops import (
    OPERATIONS,
    PCNS,
    Anatomy,
    Compact,
    Condition,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Moment,
    PruneWeights,
    Revive,
    Schedule,
    Signals,
    SurgeryError,
    operate,
)
from network_surgery.ops.signals.replacement import REPLACEMENTS
from network_surgery.search_spaces import SPACES, expansion, find_space, removal
from network_surgery.search_spaces.placement import CHOICES, choices, choose_layers, fit_operation

LAYERS = {
    "one layer": {"only": SimpleNamespace(units=1)},
    "three layers": {name: SimpleNamespace(units=units) for name, units in (("a", 8), ("b", 32), ("c", 32))},
    "twenty layers": {f"block.{i}.conv": SimpleNamespace(units=4 * i + 2) for i in range(20)},
}
#: The spaces that choose layers and moments of any network; the thesis's has its own (``test_thesis``).
EVERY_SPACE = pytest.mark.parametrize("space", [name for name in SPACES if not name.startswith("thesis")])


def drawn(
    space: str, layers: dict[str, SimpleNamespace], epochs: int, count: int = 40, **more: Any
) -> list[optuna.trial.FrozenTrial]:
    """Trials sampled at random from a space, each with its schedule as plain data."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=epochs))
    for _ in range(count):
        trial = study.ask()
        trial.set_user_attr("schedule", SPACES[space](trial, layers, epochs, **more).to_data())
        study.tell(trial, 0.0)
    return study.trials


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@EVERY_SPACE
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("epochs", [2, 3, 10, 100])
def test_every_schedule_can_be_carried_out(space: str, layers: str, epochs: int) -> None:
    for trial in drawn(space, LAYERS[layers], epochs):
        schedule = Schedule.from_data(trial.user_attrs["schedule"])
        assert schedule.steps
        schedule.check(LAYERS[layers], epochs, per_epoch=1, stacks=["blocks"])
        moments = [step.when.first if isinstance(step.when, Condition) else step.when for step in schedule.steps]
        first = min(moment.count for moment in moments)
        assert 1 <= first <= max(1, 2 * epochs / 3)


@EVERY_SPACE
@pytest.mark.parametrize("layers", LAYERS)
def test_the_parameters_decode_to_the_same_schedule(space: str, layers: str) -> None:
    for trial in drawn(space, LAYERS[layers], 10):
        params = json.loads(json.dumps(trial.params))
        decoded = SPACES[space](FixedTrial(params), LAYERS[layers], 10)
        assert decoded.to_data() == trial.user_attrs["schedule"]


@EVERY_SPACE
def test_parameters_have_flat_names_and_plain_values(space: str) -> None:
    for trial in drawn(space, LAYERS["three layers"], 10):
        assert all(name.isidentifier() for name in trial.params)
        assert all(isinstance(value, (str, int, float)) for value in trial.params.values())
        assert "first_epoch" in trial.params
        whole = (
            space in ("shrink", "tri_factorize", "stretching", "predicting", "depth") or "amount" in trial.params
        )  # of the whole network
        assert ("layers" in trial.params) != whole
        one_by_one = trial.params.get("order", "together") != "together"
        if space in ("hashing", "predicting", "sharing", "stretching", "depth"):  # once
            assert not {"times", "every", "gain"} & set(trial.params)
            continue
        assert ("times" in trial.params) != one_by_one
        waiting = trial.params.get("when", "moment") != "moment"
        assert ("every" in trial.params) == (one_by_one or waiting or trial.params["times"] > 1)
        assert ("gain" in trial.params) == waiting


@EVERY_SPACE
def test_what_a_space_does_not_choose_is_the_operation_s_default(space: str) -> None:
    for trial in drawn(space, LAYERS["three layers"], 10):
        for step in trial.user_attrs["schedule"]:
            default = OPERATIONS[step["op"]]()
            hyperparameters = {
                key: value for key, value in step.items() if key not in ("when", "layer", "op", "repair")
            }
            for name in ("budget", "allocate"):
                hyperparameters.pop(name, None)
            if step["op"] == "stretch":
                hyperparameters.pop("rank" if "variance" in trial.params else "variance")
            if step["op"] == "eigen_remove" and trial.params["delta"] == "threshold":
                assert hyperparameters.pop("rank") is None
            if "ramp" in trial.params or step["op"] == "compact":  # the fraction grows to the one that was chosen
                hyperparameters.pop("fraction")
            for name, value in hyperparameters.items():
                chosen = (trial.params.get(key) for key in (name, f"weight_{name}", f"singular_{name}"))
                wanted = next((each for each in chosen if each is not None), getattr(default, name))
                assert value == (float(f"{wanted:.3g}") if isinstance(wanted, float) else wanted)


@EVERY_SPACE
def test_numbers_have_three_digits(space: str) -> None:
    for trial in drawn(space, LAYERS["three layers"], 20):
        for step in trial.user_attrs["schedule"]:
            ours = {name for name in step if name in trial.params}
            assert all(step[name] == float(f"{step[name]:.3g}") for name in ours if isinstance(step[name], float))


CONTROLS = {"random_remove", "zero_expand"}
#: Of a space of its own: they save bytes and no FLOPs.
HASHING = {"fastfood", "hash_weights", "predict_weights", "random_edges", "share_weights"}
MODULES = {"stretch", "collapse", "deepen", "drop_block"}
#: Which has a space of its own, too, since it prunes as prune_weights does.
FACTORS = {"tri_factorize"}
REMOVALS = {"eigen_remove", "mean_replace", "min_weight"}


@pytest.mark.parametrize(
    ("space", "operations"),
    [
        ("mixed", set(OPERATIONS) - CONTROLS - HASHING - MODULES - FACTORS),
        ("hashing", {"hash_weights"}),
        ("predicting", {"predict_weights"}),
        ("sharing", {"share_weights", "fastfood"}),
        ("stretching", {"stretch"}),
        ("depth", {"deepen", "drop_block"}),
        ("removal", REMOVALS),
        ("shrink", REMOVALS),
        ("expansion", set(expansion.NAMES)),
        ("eigen_remove", {"eigen_remove"}),
        ("weak_expand", {"weak_expand"}),
        ("pcns", {"pcns"}),
        ("dead_units", {"remove_dead", "revive"}),
        ("pruning", {"prune_weights", "compact"}),
        ("tri_factorize", {"tri_factorize", "compact"}),
    ],
)
def test_a_space_draws_every_operation_that_it_is_for(space: str, operations: set[str]) -> None:
    trials = drawn(space, LAYERS["one layer"], 5, 60)
    found = {step["op"] for trial in trials for step in trial.user_attrs["schedule"]}
    assert found == operations and not found & CONTROLS
    assert not any(trial.params.get("score") == "random" for trial in trials)


@pytest.mark.parametrize(
    ("space", "controls"),
    [
        ("mixed", CONTROLS),
        ("removal", {"random_remove"}),
        ("shrink", {"random_remove"}),
        ("expansion", {"zero_expand"}),
        ("hashing", {"random_edges"}),
    ],
)
def test_controls_are_offered_to_who_asks_for_them(space: str, controls: set[str]) -> None:
    trials = drawn(space, LAYERS["one layer"], 5, 120, controls=True)
    assert controls <= {step["op"] for trial in trials for step in trial.user_attrs["schedule"]}
    if space not in ("expansion", "hashing"):
        offered = [trial.distributions["score"] for trial in trials if "score" in trial.distributions]
        assert offered and all("random" in each.choices for each in offered)  # type: ignore[attr-defined]


def test_growth_has_its_hyperparameters_and_fits_the_network() -> None:
    """No GradMax where there is attention: a norm stands over the stream."""
    steps = [each.user_attrs["schedule"][0] for each in drawn("expansion", LAYERS["one layer"], 5, 80)]
    assert {step.get("noise", 0.0) for step in steps if step["op"] == "weak_expand"} == set(expansion.NOISE)
    assert all(0.3 <= step["scale"] <= 3 for step in steps if step["op"] == "grad_max")
    heads = {name: SimpleNamespace(units=4) for name in ("mlp", "attention", "attention:heads")}
    for space in ("expansion", "mixed"):
        assert "grad_max" not in {each.user_attrs["schedule"][0]["op"] for each in drawn(space, heads, 5, 60)}


@pytest.mark.parametrize(
    ("ramp", "times", "wanted"),
    [("linear", 4, [0.225, 0.45, 0.675, 0.9]), ("cubic", 3, [0.633, 0.867, 0.9]), (None, 1, [0.9])],
)
def test_pruning_grows_to_the_fraction_and_compaction_follows(ramp: str, times: int, wanted: list[float]) -> None:
    params = {
        "amount": "fraction",
        "fraction": 0.9,
        "weight_score": "taylor2_abs",
        "weight_strength": 0.5,
        "scope": "layer",
    }
    params |= {"first_epoch": 2, "times": times} | ({"every": 2, "ramp": ramp} if ramp else {})
    steps = SPACES["pruning"](FixedTrial(params), LAYERS["three layers"], 12).steps
    pruning, rest = steps[: len(wanted)], steps[len(wanted) :]
    assert [step.operation.fraction for step in pruning] == wanted  # type: ignore[attr-defined]
    assert {step.layer for step in pruning} == {"*"}
    chosen = {(s.operation.score, s.operation.strength, s.operation.scope) for s in pruning}  # type: ignore[attr-defined]
    assert chosen == {("taylor2_abs", 0.5, "layer")}
    assert [step.when.count for step in pruning] == [2 + 2 * turn for turn in range(len(wanted))]  # type: ignore[union-attr]
    assert [step.layer for step in rest] == ["a", "b", "c", "b", "a"] and {s.when for s in rest} == {pruning[-1].when}
    early = SPACES["pruning"](FixedTrial(params), LAYERS["one layer"], 5).steps
    assert [s.operation.fraction for s in early if s.layer == "*"][-1] == 0.9  # type: ignore[attr-defined]


def test_pruning_by_quality_is_the_same_each_time() -> None:
    params = {"amount": "quality", "quality": 0.8, "first_epoch": 1, "times": 3, "every": 1}
    steps = SPACES["pruning"](FixedTrial(params), LAYERS["one layer"], 10).steps
    assert [str(step.when) for step in steps] == ["1ep", "2ep", "3ep", "3ep"]
    assert {step.operation for step in steps} == {PruneWeights(quality=0.8), Compact()}


@pytest.mark.parametrize("space", ["removal", "mixed"])
def test_every_repair_that_is_offered_is_drawn_and_can_be_carried_out(space: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), 
                          nn.Linear(8, 3))  # fmt: skip
    inputs, targets, found = torch.randn(40, 4), torch.arange(40) % 3, set()
    for trial in drawn(space, {"0": SimpleNamespace(units=8), "3": SimpleNamespace(units=8)}, 10, 200):
        reduced = trial.params.get("weights") == "reduced"
        removes = trial.params["op"] in removal.NAMES
        assert ("repair" in trial.params) == (removes and not reduced)
        assert ("repair_reduced" in trial.params) == (removes and reduced)
        name = trial.params.get("repair_reduced" if reduced else "repair", "none")
        found.add((reduced, name))
        step = Schedule.from_data(trial.user_attrs["schedule"]).steps[0]
        assert step.repair == (() if name == "none" else tuple(name.split("+")))
        network = copy.deepcopy(model)
        layer = Anatomy(network, inputs[:2])[step.layer]
        operate(layer, step.operation, signals=Signals(network, inputs, targets), repair=step.repair)
    assert found == {(False, name) for name in removal.REPAIRS} | {(True, "none"), (True, "batchnorm")}


def test_a_repair_is_decoded_from_one_word() -> None:
    params = {"op": "min_weight", "keep": 0.5, "repair": "least_squares+batchnorm"}
    params |= {"layers": "all", "first_epoch": 2, "times": 2, "every": 3}
    schedule = SPACES["removal"](FixedTrial(params), LAYERS["three layers"], 10)
    assert len(schedule.steps) == 6 and {step.repair for step in schedule.steps} == {("least_squares", "batchnorm")}


def test_other_spaces_repair_nothing() -> None:
    for space in set(SPACES) - {"removal", "mixed", "shrink", "thesis", "thesis_published"}:
        for trial in drawn(space, LAYERS["three layers"], 10):
            assert not any("repair" in step for step in trial.user_attrs["schedule"])


@EVERY_SPACE
@pytest.mark.parametrize("epochs", [1, 0])
def test_there_is_no_moment_for_an_operation_in_a_single_epoch(space: str, epochs: int) -> None:
    with pytest.raises(SurgeryError, match=f"needs at least 2 epochs, not {epochs}"):
        drawn(space, LAYERS["one layer"], epochs, 1)


@pytest.mark.parametrize("module", [removal, expansion])
def test_an_operation_of_another_space(module: object) -> None:
    params = {"keep": 0.5, "grow": 0.5}
    with pytest.raises(SurgeryError, match=r"there is no \w+ 'pcns'; there are"):
        module.operation(FixedTrial(params), "pcns")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("choice", "names"),
    [("all", ["a", "b", "c"]), ("first_half", ["a", "b"]), ("last_half", ["b", "c"]), ("widest", ["b"])],
)
def test_which_layers_a_choice_means(choice: str, names: list[str]) -> None:
    assert choice in CHOICES and list(choose_layers(LAYERS["three layers"], choice)) == names
    assert list(choose_layers(LAYERS["one layer"], choice)) == ["only"]


BLOCKS = {
    "embedding": SimpleNamespace(units=48),
    **{
        f"blocks.{block}.{name}": SimpleNamespace(units=units)
        for block in range(2)
        for name, units in (("attention.query:heads", 4), ("mlp.gate", 128))
    },
}


def test_a_network_with_attention_offers_each_kind_of_layer_that_it_repeats() -> None:
    kinds = ("blocks.*.attention.query:heads", "blocks.*.mlp.gate")
    assert choices(BLOCKS) == (*CHOICES, *kinds)
    assert choose_layers(BLOCKS, kinds[1]) == ["blocks.0.mlp.gate", "blocks.1.mlp.gate"]
    assert {choice for trial in drawn("mixed", BLOCKS, 6, 80) if (choice := trial.params.get("layers"))} == {
        *choices(BLOCKS)
    }
    for layers in LAYERS.values():  # others choose among what they always have
        assert choices(layers) == CHOICES


def test_a_removal_takes_one_unit_at_least_where_there_are_few() -> None:
    kept = {units: fit_operation(MinWeight(0.9), SimpleNamespace(units=units)).keep for units in (2, 3, 4, 5, 6, 100)}
    assert kept == {2: 0.9, 3: 0.667, 4: 0.75, 5: 0.9, 6: 0.9, 100: 0.9}
    assert fit_operation(MinWeight(0.5), SimpleNamespace(units=4)) == MinWeight(0.5)
    assert fit_operation(PCNS(0.1), SimpleNamespace(units=4)) == PCNS(0.1)
    for trial in drawn("removal", BLOCKS, 6, 60):
        for step in trial.user_attrs["schedule"]:
            assert step["keep"] < 0.88 or not step["layer"].endswith("heads")


@pytest.mark.parametrize(
    ("order", "every", "wanted"),
    [
        ("forward", 2, [(2, "a"), (4, "b"), (6, "c")]),
        ("backward", 2, [(2, "c"), (4, "b"), (6, "a")]),
        ("forward", 3, [(2, "a"), (5, "b"), (5, "c")]),
        ("together", 2, [(2, "a"), (2, "b"), (2, "c")]),
    ],
)
def test_layers_can_take_their_turns(order: str, every: int, wanted: list[tuple[int, str]]) -> None:
    params = {
        "keep": 0.5,
        "delta": "rank",
        "rank": 0.5,
        "weights": "original",
        "strength": "mean",
        "layers": "all",
        "first_epoch": 2,
    }
    params |= {"order": order, "every": every} | ({"times": 1} if order == "together" else {})
    schedule = SPACES["eigen_remove"](FixedTrial(params), LAYERS["three layers"], 7)
    assert [(step.when.count, step.layer) for step in schedule.steps] == wanted
    assert {step.operation.strength for step in schedule.steps} == {"mean"}  # type: ignore[attr-defined]


def test_pcns_at_a_moment_or_where_it_is_redundant() -> None:
    params = {
        "variance_threshold": 0.02,
        "basis": "eigen",
        "layers": "first_half",
        "first_epoch": 3,
        "every": 2,
        "times": 2,
    }
    at = SPACES["pcns"](FixedTrial(params | {"when": "moment"}), LAYERS["three layers"], 9)
    assert [(str(step.when), step.layer) for step in at.steps] == [
        ("3ep", "a"),
        ("3ep", "b"),
        ("5ep", "a"),
        ("5ep", "b"),
    ]
    found = SPACES["pcns"](FixedTrial(params | {"when": "redundancy", "gain": 0.25}), LAYERS["three layers"], 9)
    assert [step.layer for step in found.steps] == ["a", "b"]
    assert {step.when for step in found.steps} == {Condition(0.02, 0.25, Moment(3), Moment(2), 2)}
    assert {step.operation for step in found.steps} == {PCNS(0.02, "eigen")}  # one threshold for both


def test_each_choice_has_the_parameters_that_it_makes_use_of() -> None:
    """Conditional parameters are drawn where they mean something, and nowhere else; each choice is drawn."""
    found = set()
    for space in ("removal", "mixed", "eigen_remove", "pruning", "pcns"):
        for trial in drawn(space, LAYERS["three layers"], 10, 300):
            params, (first, *_) = trial.params, Schedule.from_data(trial.user_attrs["schedule"]).steps
            operation = first.operation
            if isinstance(operation, EigenRemove):
                assert ("rank" in params) == (operation.threshold is None) == ("singular_threshold" not in params)
                found.add(("delta", params["delta"]))
            if isinstance(operation, MeanReplace):
                used = operation.bias_propagation or operation.score in ("mrs", "mrp")
                assert ("replacement" in params) == used and operation.replacement == params.get("replacement", "mean")
                found |= {("replacement", operation.replacement), ("bias_propagation", operation.bias_propagation)}
            if isinstance(operation, PruneWeights):
                assert ("weight_strength" in params) == operation.score.startswith("taylor2")
                found.add(("strength", operation.strength != 1))
            if isinstance(operation, PCNS):
                assert operation.basis == params.get("basis", "pivoted") and ("basis" in params) == (space == "pcns")
                found.add(("basis", operation.basis))
    assert found == {
        ("delta", "rank"), ("delta", "threshold"), ("bias_propagation", True), ("bias_propagation", False),
        *(("replacement", each) for each in REPLACEMENTS), ("strength", True), ("strength", False),
        ("basis", "pivoted"), ("basis", "eigen"),
    }  # fmt: skip


def test_pcns_draws_both_and_mixed_draws_moments_only() -> None:
    assert {trial.params["when"] for trial in drawn("pcns", LAYERS["one layer"], 9)} == {"moment", "redundancy"}
    assert not any("when" in trial.params for trial in drawn("mixed", LAYERS["one layer"], 9))


def test_dead_units_are_looked_for_at_the_operation_s_threshold() -> None:
    params = {"op": "revive", "threshold": 0.05, "kind": "either", "when": "dead_fraction", "layers": "first_half"}
    params |= {"first_epoch": 3, "every": 2, "times": 2, "gain": 0.25}
    found = SPACES["dead_units"](FixedTrial(params), LAYERS["three layers"], 9)
    assert {step.when for step in found.steps} == {Condition(0.05, 0.25, Moment(3), Moment(2), 2, "dead_fraction")}
    assert {step.operation for step in found.steps} == {Revive(0.05, "either")}


@pytest.mark.parametrize("name", [name for name in SPACES if ":" not in str(SPACES[name])])
def test_any_space_may_choose_what_is_frozen_and_a_factor_of_the_learning_rate(name):
    layers, seen = {"fc1": SimpleNamespace(units=8), "fc2": SimpleNamespace(units=4)}, set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        schedule = find_space(name, aftercare=True)(trial, layers, 6)
        plain = find_space(name)(optuna.trial.FixedTrial(trial.params), layers, 6)
        ((freeze, factor),) = {(step.freeze, step.lr_factor) for step in schedule.steps}
        assert (freeze or 0, factor or 1) == (trial.params.get("freeze", 0), trial.params["lr_factor"])
        assert [(s.when, s.operation) for s in schedule.steps] == [(s.when, s.operation) for s in plain.steps]
        assert all("freeze" not in step and "lr_factor" not in step for step in plain.to_data())
        assert Schedule.from_data(schedule.to_data()) == schedule
        seen.add((freeze, factor))
        study.tell(trial, 0.0)
    whole = name in ("pruning", "tri_factorize", "predicting", "stretching")  # which leave no other layer to freeze
    assert len(seen) == 3 if whole else len(seen) == 9


@pytest.mark.parametrize("name", [name for name in SPACES if ":" not in str(SPACES[name])])
def test_any_space_may_choose_what_becomes_of_the_learning_rate(name):
    layers, seen = {"fc1": SimpleNamespace(units=8), "fc2": SimpleNamespace(units=4)}, set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        schedule = find_space(name, after=True)(trial, layers, 6)
        plain = find_space(name)(optuna.trial.FixedTrial(trial.params), layers, 6)
        steps = {(step.after, step.after_length) for step in schedule.steps}
        assert len(steps) == 1 and [(s.when, s.operation) for s in schedule.steps] == [
            (s.when, s.operation) for s in plain.steps
        ]
        ((after, length),) = steps
        assert trial.params["after"] == after
        assert length == trial.params.get("rewarm_length") or after == "rewind"
        again = find_space(name, after=True)(optuna.trial.FixedTrial(trial.params), layers, 6)
        assert again == schedule
        seen.add((after, length))
        assert all("after" not in step for step in plain.to_data())
        study.tell(trial, 0.0)
    assert len(seen) == 7

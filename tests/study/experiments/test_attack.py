"""The experiment on the learning-rate attack, small: one unit is attacked and nothing else, scores are as defined."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, Signals
from network_surgery.ops.operations.dead_units import frozen_units
from network_surgery.ops.signals.unit_scores import unit_scores
from network_surgery.study import models
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Rows
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.attack import EXPERIMENT, figures, measure, page
from network_surgery.study.experiments.attack.attacker import Attack, Attacker
from network_surgery.study.experiments.attack.measure import (
    ALONE,
    ATTACKED,
    EARLY,
    FIELDS,
    HARD,
    LAYERS,
    NETWORKS,
    NONE,
    PARTS,
    Network,
    Options,
    Watch,
)
from network_surgery.study.experiments.attack.numbers import Attacked
from network_surgery.study.experiments.attack.signals import unit_signals
from network_surgery.study.experiments.evci import CPU
from network_surgery.study.task import images as data
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.trainer import Trainer
from tests.study.experiments.made_up import measured_of

MODELS = ("evci_cnn", "evci_cnn_norm", "evci_cnn_tanh")
UNIT = 2
RELU, NORM, TANH, LONG = NETWORKS


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits", 0.2)
    return ImageTask(whole.train.thinned(160), whole.validation.thinned(80), whole.test.thinned(80), whole.classes)


def oracle(model, name, inputs, targets):
    """MRP and MRS by the definition: hooks on what the next layer is given, the whole network run for every unit."""
    layers = [(key, module) for key, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    at = [key for key, _ in layers].index(name)
    (_, maker), (_, reader) = layers[at : at + 2]
    units, model = maker.weight.shape[0], model.eval()
    given = []
    handle = reader.register_forward_pre_hook(
        lambda _, args: (given.append(args[0]), args[0].retain_grad())[:0] or None
    )
    losses = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
    handle.remove()
    (received,) = given
    own = received.shape[1] // units  # positions of a unit on axis 1, where it was flattened
    mrs = torch.zeros(len(inputs), units)
    mean = [float(received[:, u * own : (u + 1) * own].mean()) for u in range(units)]
    for sample in range(len(inputs)):
        (slope,) = torch.autograd.grad(losses[sample], received, retain_graph=True)
        for u in range(units):
            here = slice(u * own, (u + 1) * own)
            mrs[sample, u] = ((mean[u] - received[sample, here]) * slope[sample, here]).sum().abs()
    mrp = []
    for u in range(units):

        def replaced(_, args, u=u):
            changed = args[0].clone()
            changed[:, u * own : (u + 1) * own] = mean[u]
            return changed

        handle = reader.register_forward_pre_hook(replaced)
        with torch.no_grad():
            new = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
        handle.remove()
        mrp.append((new - losses).abs().mean())
    return torch.stack(mrp).detach(), mrs.mean(dim=0).detach()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_mrp_and_mrs_are_those_of_the_definition(name, shape):
    model = models.build(name, shape, 10)
    inputs, targets = torch.randn(12, *shape), torch.randint(10, (12,))
    model(torch.randn(64, *shape))  # BatchNorm has seen something
    anatomy = Anatomy(model, inputs[:2])
    for layer in LAYERS:
        found = unit_signals(model, anatomy[layer], inputs, targets)
        mrp, mrs = oracle(copy.deepcopy(model), layer, inputs, targets)
        torch.testing.assert_close(found["mrp"], mrp, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["mrs"], mrs, rtol=1e-4, atol=1e-6)


def middle_of_the_widest_gap(values):
    """A threshold that is as far as can be from every value."""
    ordered = values.sort().values
    gap = ordered.diff().argmax()
    return (ordered[gap] + ordered[gap + 1]) / 2


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_that_ops_finds_in_any_network(name):
    model = models.build(name, (3, 32, 32), 10)
    inputs, targets = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))  # few: ops thins outputs
    model(torch.randn(64, 3, 32, 32))
    anatomy, signals = Anatomy(model, inputs[:2]), Signals(model, inputs, targets)
    for layer in LAYERS:
        found = unit_signals(model, anatomy[layer], inputs, targets, before=True)
        options = {
            "mrp": {}, "mrs": {}, "mrp_before": {"replacement": "mean_before"}, "in_l1": {}, "in_l2": {}, "out_l1": {},
            "out_l2": {},
        }  # fmt: skip
        for signal, more in options.items():
            score = {"mrp_before": "mrp", "in_l1": "l1_in", "in_l2": "l2_in"}.get(signal, signal.removeprefix("out_"))
            expected = unit_scores(anatomy[layer], signals, score, **more)
            torch.testing.assert_close(found[signal].double(), expected, rtol=1e-3, atol=1e-5)
        largest = found["largest"].double()
        between = middle_of_the_widest_gap(largest)  # where rounding decides about no unit
        frozen = frozen_units(anatomy[layer], signals, float(between / largest.mean()))
        assert torch.equal(frozen, largest <= between) and 0 < frozen.sum() < len(frozen)


def test_flat_outputs_are_zeros_of_relu_and_ends_of_tanh():
    inputs, targets = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    for name in MODELS:
        model = models.build(name, (1, 8, 8), 10)
        model.conv1.weight.data *= 8
        anatomy = Anatomy(model, inputs[:2])
        active = model.act1(model.pool1(model.conv1(inputs))).detach()
        ends = active == 0 if name != "evci_cnn_tanh" else active.abs() > (1 - 0.05) ** 0.5
        found = unit_signals(model, anatomy["conv1"], inputs, targets)["flat"]
        torch.testing.assert_close(found, ends.double().mean(dim=(0, 2, 3)))
        assert 0 < found.mean() < 1


def test_a_dead_unit_is_seen():
    model = models.build("evci_cnn", (1, 8, 8), 10)
    model.conv2.weight.data[3] = 0
    model.conv2.bias.data[3] = -1  # below zero for every image
    inputs, targets = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    found = unit_signals(model, Anatomy(model, inputs[:2])["conv2"], inputs, targets, before=True)
    for name in ("mrp", "mrp_before", "mrs", "gradient", "largest"):
        assert found[name][3] == 0 and (found[name] > 0).sum() > 10
    assert found["flat"][3] == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", LAYERS)
def test_one_unit_learns_faster_and_everything_else_as_ever(digits, name, layer):
    """One step: the unit's weights move 100 times as far, everything else, its bias too, to the very same bits."""
    models_ = []
    for multiplier in (1, 100):
        torch.manual_seed(0)
        model = models.build(name, digits.shape, 10)
        before = copy.deepcopy(model.state_dict())
        trainer = Trainer(
            model, torch.optim.SGD(model.parameters(), 0.01), digits, epochs=1, batch_size=len(digits.train), seed=0,
            device=CPU,
        )  # fmt: skip
        anatomy = Anatomy(model, torch.zeros(2, 1, 8, 8))
        trainer.callbacks = [Attacker(Attack(multiplier, 0), anatomy[layer], UNIT)]
        trainer.fit()
        assert trainer.iteration == 1
        models_.append(model.state_dict())
    calm, attacked = models_
    key = f"{layer}.weight"
    step, far = calm[key] - before[key], attacked[key] - before[key]
    torch.testing.assert_close(far[UNIT], 100 * step[UNIT], rtol=1e-3, atol=1e-5)
    assert step[UNIT].abs().max() > 0
    attacked[key][UNIT] = calm[key][UNIT]
    assert all(torch.equal(attacked[each], calm[each]) for each in calm)


def trained(digits, *callbacks, optimizer=None):
    torch.manual_seed(0)
    model = models.build("evci_cnn", digits.shape, 10)
    optimizer = (optimizer or torch.optim.SGD)(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, digits, epochs=2, batch_size=32, seed=0, device=CPU)
    trainer.callbacks = [make(trainer) for make in callbacks]
    trainer.fit()
    return model.state_dict()


def attacker(attack, layer):
    """A function that attacks the second unit of this layer in a trainer's network."""
    return lambda trainer: Attacker(attack, Anatomy(trainer.model, torch.zeros(2, 1, 8, 8))[layer], 1)


def test_a_multiplier_of_one_is_no_attack_bit_for_bit(digits):
    calm = trained(digits)
    same = trained(digits, attacker(Attack(1, 2, every=2, times=3), "conv2"))
    other = trained(digits, attacker(Attack(10, 2, every=2, times=3), "conv2"))
    assert all(torch.equal(calm[key], same[key]) for key in calm)
    assert not torch.equal(calm["conv2.weight"], other["conv2.weight"])


def test_looking_changes_nothing(digits):
    calm = trained(digits)
    watched = trained(digits, lambda trainer: Watch(trainer, LAYERS, range(10)))
    assert all(torch.equal(calm[key], watched[key]) for key in calm)


def test_attacks_come_at_their_iterations():
    attack = Attack(100, 20, every=10, times=3)
    assert [i for i in range(100) if attack.at(i)] == [20, 30, 40] and attack.end == 50
    assert attack.scaled(0.2) == Attack(100, 4, every=2, times=3) and attack.scaled(1e-3).every == 1
    assert attack.scaled(1).name == attack.name == "×100 from 20"


def test_attacks_on_what_is_not_plain_sgd_are_refused(digits):
    def momentum(parameters, lr):
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    for optimizer in (torch.optim.Adam, momentum):
        with pytest.raises(StudyError, match="plain SGD alone"):
            trained(digits, attacker(Attack(10, 1), "fc1"), optimizer=optimizer)


SEEDS = (0, 1)


@pytest.fixture(scope="module")
def rows(digits):
    """Of the network with ReLU: an epoch of it has 5 iterations, a fiftieth of what the attacks are given for."""
    return Rows(row for seed in SEEDS for row in measure.runs(digits, RELU, NETWORKS[RELU], seed, looks=2))


def test_every_attack_is_there_and_begins_where_the_network_without_is(rows):
    for attack in NETWORKS[RELU].attacks:
        scaled = attack.scaled(1 / 50)
        for layer in LAYERS:
            each = rows.where(kind="unit", attack=attack.name, layer=layer)
            moments = sorted({scaled.start, 50, min(scaled.end, 50)} | ({25} if scaled.start < 25 else set()))
            assert [row["iteration"] for row in each] == moments * len(SEEDS)
            for row in each:
                assert row["before"] == (row["iteration"] == scaled.start) and row["end"] == (row["iteration"] == 50)
                assert row["after"] == (row["iteration"] == min(scaled.end, 50)) and ("mrp_before" in row) == row["end"]
                if row["before"]:  # until the attack the two are one
                    assert all(row[field] == row[f"{field}_alone"] for field in FIELDS)
    sizes = {row["layer"]: len(row["mrp"]) for row in rows.where(kind="layer")}
    assert sizes == {"conv1": 8, "conv2": 16, "fc1": 64}
    units = {(row["seed"], row["layer"], row["unit"]) for row in rows.where(kind="unit")}
    assert len(units) == len(SEEDS) * len(LAYERS)  # every attack is on the same


def test_lists_and_units_are_of_the_same_looks(rows):
    for row in rows.where(kind="unit", end=True):
        about = {"kind": "layer", "part": "end", "seed": row["seed"], "layer": row["layer"]}
        (kept,), (alone,) = (rows.where(attack=attack, **about) for attack in (row["attack"], NONE))
        assert kept["unit"] == row["unit"] and set(ATTACKED) <= kept.keys() and set(ALONE) <= alone.keys()
        assert row["mrp"] == kept["mrp"][row["unit"]] and row["mrp_alone"] == alone["mrp"][row["unit"]]
    assert [row["part"] for row in rows.where(kind="layer", attack=NONE, seed=0, layer="fc1")] == list(PARTS)


def test_a_run_that_was_not_attacked_is_the_one_without(digits):
    """An attack by 1 from the copy of an epoch goes on as the run that nobody touched."""
    calm = measure.runs(digits, TANH, Network("evci_cnn_tanh", attacks=(Attack(1, 1500),)), 0, looks=2)
    units = [row for row in calm if row["kind"] == "unit"]
    assert len(units) == 3 * len(LAYERS)
    assert all(row[field] == row[f"{field}_alone"] for row in units for field in FIELDS)


def test_harder_attacks_move_weights_further(rows):
    soft, _, hard = (np.abs(Attacked(rows).changes(RELU, [attack.name], "in_l1")) for attack in HARD)
    assert (soft <= hard).all() and hard.max() > 0.1


def test_a_run_that_diverges_is_kept_as_such_and_left_out(digits):
    network = Network("evci_cnn", attacks=(Attack(math.inf, 1500), Attack(10, 1500)))
    each = Rows(measure.runs(digits, RELU, network, 0, looks=2))
    wild, mild = (attack.name for attack in network.attacks)
    last = each.where(kind="unit", attack=wild, end=True)
    assert all(math.isnan(row["mrp"]) and math.isfinite(row["mrp_alone"]) for row in last)
    assert not each.where(kind="layer", attack=wild) and len(each.where(kind="layer", attack=mild)) == 3
    units = Attacked(each)
    assert units.effect(RELU, [wild, mild]) == units.effect(RELU, [mild]) and np.isnan(units.effect(RELU, [wild]))
    np.testing.assert_array_equal(units.fallen(RELU), units.fallen(RELU, [mild]))
    assert page.count(units, RELU, [wild]) == "0 of 0 (0)" and units.others(RELU).shape == (1,)


def made_up(factors, seeds=8):
    """Rows in which attacks multiply the attacked unit's MRP by ``factors[network]``, give or take a third."""
    noise, made = np.random.default_rng(1), []
    for name, network in NETWORKS.items():
        for seed in range(seeds):
            for layer in LAYERS:
                about = {"network": name, "seed": seed, "layer": layer}
                for part in PARTS:
                    alone = {signal: noise.uniform(0.1, 1, 8) for signal in ALONE}
                    alone["mrs"] = alone["mrp"] * noise.uniform(0.99, 1.01, 8)
                    lists = {signal: each.tolist() for signal, each in alone.items()}
                    made.append(about | {"kind": "layer", "attack": NONE, "part": part} | lists)
                for attack in network.attacks:
                    here = about | {"attack": attack.name, "unit": 2}
                    factor, others = factors[name] * math.exp(noise.normal(0, 0.3)), alone["mrp"].copy()
                    others[:] = np.delete(others, 2).mean() * noise.uniform(0.9, 1.1, 8)
                    others[2] = factor * alone["mrp"][2]
                    lists = {"mrp": others.tolist(), "mrs": others.tolist(), "in_l1": (np.arange(8) == 2).tolist()}
                    made.append(here | {"kind": "layer", "part": "end"} | lists)
                    for at, mark in enumerate(("before", "after", "end")):
                        same = {field: 0.5 for field in FIELDS} | {"mrp": alone["mrp"][2], "mrp_before": 0.5}
                        row = {f"{field}_alone": value for field, value in same.items()}
                        row |= same | {"in_l1": 2.0, "gradient": 0.04, "loss": 0.5 + noise.normal(0, 1e-3)}
                        row["mrp"] *= factor if at else 1
                        marks = {each: each == mark for each in ("before", "after", "end")}
                        made.append(here | {"kind": "unit", "iteration": 10 * at} | marks | row)
    facts = {"train": 160, "validation": 80, "test": 80, "shape": [1, 8, 8], "classes": 10, "per_epoch": 5}
    return measured_of("attack", Options(label="noise"), facts, made)


def factors(bounded, relu):
    return dict.fromkeys(NETWORKS, bounded) | {RELU: relu}


def verdicts(claims):
    return {verdict.claim.text: verdict.word for verdict in judge(claims)}


@pytest.mark.parametrize(("gain", "word"), [(0.5, "holds"), (2.0, "does not hold"), (1.0, "undecided")])
def test_claims_follow_whether_the_penalty_falls(gain, word):
    found = verdicts(page.fall_claims(Attacked(made_up(factors(gain, 1.0)).rows)))
    for text in (
        "an attack lowers MRP with BatchNorm",
        "×1000 lowers MRP with tanh",
        "more of the attacked units end with a lower MRP than with ReLU",
    ):
        assert found[text].startswith(word), text
    assert {word for text, word in found.items() if "with ReLU in" in text} == {"undecided"}


@pytest.mark.parametrize(("relu", "falls", "rises"), [(0.5, "holds", "does not hold"), (2, "does not hold", "holds")])
def test_claims_on_relu_are_by_layer(relu, falls, rises):
    found = verdicts(page.fall_claims(Attacked(made_up(factors(1.0, relu)).rows)))
    assert found["an attack lowers MRP with ReLU in conv2"] == found["an attack lowers MRP with ReLU in fc1"] == falls
    assert found["an attack raises MRP with ReLU in conv1"] == rises


@pytest.fixture(scope="module")
def killing():
    """The parts, without pictures, of rows in which ReLU kills and the others do not, by our threshold."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_attack", "ends"):
            patch.setattr(figures, name, lambda units: "")
        measured = made_up(factors(0.5, 0.08))
        return page.parts(measured), Attacked(measured.rows), measured


def test_our_threshold_decides_its_own_claim_alone(killing):
    parts, units, _ = killing
    found = verdicts(parts["kill_claims"]) | verdicts(parts["fall_claims"])
    assert found["fewer of the attacked units are killed than with ReLU"].startswith("holds")
    assert found["an attack lowers MRP with BatchNorm"] == found["an attack lowers MRP with ReLU in conv2"] == "holds"
    killed = round(120 * units.fallen(RELU, below=0.1).mean())
    assert f"| 120 of 120 ({killed}) |" in parts["fallen"] and 60 < killed < 120
    assert (
        parts["persistence"].startswith(f"Of {killed} units") and f" {killed} are so at the end" in parts["persistence"]
    )
    (line,) = (line for line in parts["fallen"].splitlines() if line.startswith(f"| {NORM} |"))
    assert line.endswith("of 120 (0) |")


def test_factors_and_counts_are_those_that_were_put_in(killing):
    parts, units, _ = killing
    for name, factor in ((NORM, 0.5), (RELU, 0.08)):
        assert np.exp(units.effect(name).mean()) == pytest.approx(factor, rel=0.1)
        assert np.exp(units.effect(name, [EARLY.name]).mean()) == pytest.approx(factor, rel=0.2)
    found = verdicts(parts["course_claims"]) | verdicts(parts["rank_claims"])
    assert found["the loss does not show an attack (at most 0.05 nats)"] == "holds"
    assert found["MRS ranks units more like MRP than L1 in does"] == "holds"
    lower = int((units.changes(RELU) < 0).sum() + sum((units.changes(name) < 0).sum() for name in (NORM, TANH, LONG)))
    assert f"of {lower} attacked units that end lower, {lower} have the largest" in parts["norms"]
    assert (
        f"of 384 whose output gradient ends below 0.1 of what it is without attack, {384 - killed(units)} keep"
        in (parts["norms"])
    )
    assert parts["excluded"] == (
        "In 0 attacked runs the unit has an MRP of 1e-05 at most when the attack begins; "
        "0 of 384 attacked runs diverged and are left out."
    )
    assert "of 96 layers without attack, and in 384 of 384 that were" in parts["lowest"]


def killed(units):
    return sum(int((units.changes(name) < math.log(0.1)).sum()) for name in NETWORKS)


def test_the_page_follows_its_rows(killing, tmp_path):
    spared = made_up(factors(2.0, 2.0), seeds=4)
    texts = []
    for measured, parts in ((spared, page.parts(spared)), (killing[2], killing[0])):
        file = bench.write(EXPERIMENT.folder / "page.md", parts, measured, tmp_path)
        texts.append(file.read_text(encoding="utf-8"))
        assert "nan" not in texts[-1] and "$" not in texts[-1] and measured.rows.digest in texts[-1]
        assert "160 images of noise" in texts[-1] and "(named 50, 1,500 or 2,000, after" in texts[-1]
    for name in ("attacked", "ends"):
        picture = (tmp_path / f"{name}.png").read_bytes()
        assert f"({name}.png)" in texts[0] and picture.startswith(b"\x89PNG") and len(picture) < 350_000
    for word, text in zip(("does not hold", "holds"), texts, strict=True):
        (line,) = (line for line in text.splitlines() if line.startswith("| an attack lowers MRP with ReLU in conv2"))
        assert line.endswith(f"| **{word}** |")


def test_options_that_cannot_be_measured_are_refused():
    with pytest.raises(StudyError, match="once at least"):
        Options(looks=0)
    facts, tasks = measure.measure(Options(seeds=2))
    assert facts["per_epoch"] == 40 and [name for name, _ in tasks][:2] == [f"{RELU}-0", f"{NORM}-0"]
    assert len(tasks) == 2 * len(NETWORKS)

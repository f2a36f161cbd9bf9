"""The thesis's study: its grid, the published code's operations, and a page that says what the training runs show."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial
from scipy import stats

from network_surgery.ops import (
    OPERATIONS,
    Anatomy,
    EigenRemove,
    MinWeight,
    Moment,
    Schedule,
    Step,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    operate,
)
from network_surgery.search_spaces import find_space
from network_surgery.study import conduct, models
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.compose import compose
from network_surgery.study.experiments.thesis import EXPERIMENT, chapter, figures, measure, page, space
from network_surgery.study.experiments.thesis.operations import PublishedWeakExpand, PublishedZeroExpand
from network_surgery.study.experiments.thesis.space import METHODS, ORDER
from network_surgery.study.models import vgg16
from network_surgery.study.store.folder import Folder
from network_surgery.study.store.words import describe
from network_surgery.study.training.cell import Cell
from tests.ops.contract import test_operations as contract
from tests.ops.networks import build, train
from tests.study.experiments.made_up import measured_of
from tests.study.operated import operated, spiked

SETTINGS = compose("thesis", None, {})
LAYERS = {name: SimpleNamespace(units=64) for name in ORDER}
DONE = ("EigenRemove(keep=0.5)", "conv10"), ("EigenRemove(keep=0.5)", "conv7"), ("EigenRemove(keep=0.5)", "fc1")


def cell(
    op: str, ratio: float, seed: int, accuracy: float, factors: tuple[float, ...] = (0.9, 1.0, 1.4)
) -> dict[str, Any]:
    operations = [
        operated(
            layer=layer,
            operation=operation,
            seconds=0.02,
            epoch_seconds=2.0,
            training_loss_before=1.0,
            training_loss_after=factor,
        )
        for factor, (operation, layer) in zip(factors, DONE, strict=True)
    ]
    params = {"op": op, "ratio": ratio}
    return {
        "arm": "surgery",
        "trial": 0,
        "seed": seed,
        "params": params,
        "test_metric": accuracy,
        "operations": operations,
    }


def results(
    accuracy: Callable[[str, float, int], float],
    factor: Callable[[str, float, int], float] = lambda *_: 1.0,
    seeds: int = 5,
) -> dict[str, Any]:
    cells = [
        cell(op, ratio, seed, accuracy(op, ratio, seed), (0.5, factor(op, ratio, seed), 7.0))
        for op in chapter.NAMES
        for ratio in chapter.RATIOS
        for seed in range(1, seeds + 1)
    ]
    machine = {"torch": "2.15", "python": "3.11"}
    return {"settings": SETTINGS.to_data(), "machine": machine, "comparison": {"cells": cells}}


def verdicts_of(found: dict[str, Any]) -> dict[str, str]:
    """The verdict on each claim, by its first words; of two that begin alike the first one."""
    verdicts: dict[str, str] = {}
    for verdict in judge(page.claims(chapter.Trainings(found))):
        verdicts.setdefault(" ".join(verdict.claim.text.split()[:3]), verdict.word.partition(":")[0])
    return verdicts


def noise(op: str, ratio: float, seed: int) -> float:
    return float(np.random.default_rng([seed, round(100 * ratio), list(chapter.NAMES).index(op)]).normal(0, 0.002))


def test_tables_show_ours_and_the_thesis_s() -> None:
    means = {"eigen_remove": 0.7, "min_weight": 0.6, "weak_expand": 0.8, "zero_expand": 0.5}
    found = results(lambda op, ratio, seed: means[op] + ratio / 10 + 0.01 * (seed - 3), lambda *_: 1.25)
    words, drawings = page.thesis(found)
    row = next(line for line in words.splitlines() if line.startswith("| EigenRemove |"))
    assert row.startswith("| EigenRemove | 72.50 ± 1.58 (74.86) | 73.33 ± 1.58 (76.61) | 75.00 ± 1.58 (78.65) |")
    assert "| Zero Weight Expansion | 1.250 ± 0.000 (0.803) |" in words
    assert "100 training runs with 5 seeds" in words and "(figures/thesis_removal.png)" in words
    assert "**holds**" in words and "**does not hold**" in words
    assert list(drawings) == ["thesis_removal", "thesis_expansion"]
    assert "WeakExpand, accuracy: 0.825, 0.833" in drawings["thesis_expansion"].alt
    assert drawings["thesis_expansion"].image("png").startswith(b"\x89PNG")


def test_the_loss_factor_is_the_median_over_a_training() -> None:
    (training,) = chapter.Trainings(results(lambda *_: 0.5, lambda *_: 1.1, seeds=1))["min_weight", 1 / 2].values()
    assert training == chapter.Training(0.5, 1.1, 0.02, 2.0, (0.5, 1.1, 7.0), 0.01, change=1.0)


def test_the_thesis_prints_medians_and_pools_what_it_recorded() -> None:
    """Means of medians are other numbers; the operation on conv8 counts for ours and is not in theirs."""
    accuracies, factors = (0.5, 0.6, 0.9), ((0.9, 1.0, 1.1), (1.2, 1.3, 5.0), (0.1, 2.0, 3.0))
    cells = [
        cell("eigen_remove", ratio, seed, accuracy, factor)
        for ratio in chapter.RATIOS
        for seed, (accuracy, factor) in enumerate(zip(accuracies, factors, strict=True))
    ]
    for each in cells:
        last = each["operations"][-1] | {"layer": "conv8", "training_loss_after": 99.0}
        each["operations"].append(last)
    data = results(lambda *_: 0.5) | {"comparison": {"cells": cells}}
    found = chapter.Trainings(data)
    for ratio in chapter.RATIOS:
        assert found.as_printed("eigen_remove", ratio, "accuracy") == 0.6
        assert found.as_printed("eigen_remove", ratio, "factor") == 1.2
        assert found.as_printed("min_weight", ratio, "factor") is None
        assert np.mean([t.factor for t in found["eigen_remove", ratio].values()]) != 1.2
    words = page.write(data, {})
    assert "| EigenRemove | 60.00 (74.86) | 60.00 (76.61) |" in words and "| not run (75.44) |" in words
    assert "| EigenRemove | 1.200 (1.173) |" in words and "conv8 is operated on and not recorded" in words
    assert "Variance of these medians over the ratios: EigenRemove 0.0000 (0.003)." in words


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.01, "holds"), (-0.01, "does not hold"), (0.0, "undecided")], ids=["more", "less", "same"]
)
def test_claims_follow_the_evidence(gain: float, verdict: str) -> None:
    def better(op: str, ratio: float, seed: int) -> float:
        return 0.7 + gain * (op in ("eigen_remove", "weak_expand")) + noise(op, ratio, seed)

    found = verdicts_of(results(better, lambda op, ratio, seed: 1 + 20 * (better(op, ratio, seed) - 0.7)))
    assert found["EigenRemove ends at"] == (verdict if gain else "holds in 1 of 5")  # at least as accurate
    assert found["WeakExpand ends more"] == verdict
    assert found["EigenRemove's loss factor"] == verdict
    assert found["WeakExpand and Zero"] == ("does not hold" if gain else "undecided")  # five seeds


def test_one_ratio_where_it_is_worse_is_said() -> None:
    def accuracy(op: str, ratio: float, seed: int) -> float:
        worse = op == "eigen_remove" and ratio == 1 / 4
        return 0.7 + 0.01 * (op == "eigen_remove") - 0.05 * worse + noise(op, ratio, seed)

    assert verdicts_of(results(accuracy))["EigenRemove ends at"] == "depends"


def test_one_of_five_ratios_is_not_worse_by_luck() -> None:
    """Shown alone (p = 0.02), not after Holm over the five."""
    drawn = [-0.01, -0.03, -0.04, -0.06, -0.08]

    def accuracy(op: str, ratio: float, seed: int) -> float:
        return 0.7 + drawn[seed - 1] * (op == "eigen_remove" and ratio == 2 / 3) + noise(op, ratio, seed)

    found = results(accuracy)
    both = chapter.Trainings(found).pairs(("eigen_remove", "min_weight"), "accuracy")
    alone = stats.ttest_1samp([a - b for (ratio, _), (a, b) in both.items() if ratio == 2 / 3], 0.0)
    assert 0.01 < alone.pvalue < 0.05 and verdicts_of(found)["EigenRemove ends at"] == "undecided"


def test_nothing_is_decided_without_a_spread() -> None:
    verdicts = verdicts_of(results(lambda op, ratio, seed: 0.7 + 0.1 * (op == "eigen_remove"), seeds=1))
    assert verdicts["EigenRemove ends at"] == "undecided"
    assert page.as_in_the_thesis([1.0, 2.0], [1.0, 2.0])[1] is None
    assert page.as_in_the_thesis([1.0] * 5, [1.0] * 5) == ("nothing varies", None)


def test_a_seed_counts_once_and_what_repeats_is_dropped() -> None:
    """n is seeds, not seeds × ratios; units that never learn train the same network at every ratio."""
    found = results(lambda op, ratio, seed: 0.7 + noise(op, ratio, seed) + (op == "zero_expand" and ratio > 0.4) * 9)
    trainings = chapter.Trainings(found)
    assert len(trainings.by_seed(("weak_expand", "zero_expand"), "accuracy")) == 5 and trainings.repeated == 0
    for each in found["comparison"]["cells"]:
        op, ratio = each["params"]["op"], each["params"]["ratio"]
        same = 0.0 if op == "zero_expand" and ratio >= 0.5 else ratio
        each["epochs"] = [{"validation_loss": same + each["seed"]}, {"validation_loss": 1.0}]
    trainings = chapter.Trainings(found)
    assert trainings.repeated == 2 * 5  # at 2/3 and 3/4 what was at 1/2
    gaps = trainings.by_seed(("weak_expand", "zero_expand"), "accuracy")
    pairs = trainings.pairs(("weak_expand", "zero_expand"), "accuracy")
    kept = [one - other for (ratio, seed), (one, other) in pairs.items() if seed == 1 and ratio <= 0.5]
    assert gaps[0] == pytest.approx(np.mean(kept)) and len(gaps) == 5
    words = page.write(found, {})
    assert "10 training runs repeat another ratio's" in words and "| 5 | " in words and "| 25 |" not in words


def test_operations_that_change_nothing_cannot_differ() -> None:
    found = results(lambda op, ratio, seed: 0.7 + noise(op, ratio, seed))
    for each in found["comparison"]["cells"]:
        for record in each["operations"]:
            record["loss_after"] = record["loss_before"] * (1.0 if "expand" in each["params"]["op"] else 1.2)
    assert verdicts_of(found)["WeakExpand and Zero"] == "no difference is possible"
    assert "leave the network's outputs as they are" in page.write(found, {})


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_the_thesis_s_procedure(draw: str) -> None:
    random = np.random.default_rng(0)
    one, other = (getattr(random, draw)(size=60).tolist() for _ in range(2))
    name, p = page.as_in_the_thesis(one, other)
    reference = stats.ttest_ind(one, other) if draw == "normal" else stats.mannwhitneyu(one, other)
    assert name == ("Student's t" if draw == "normal" else "Mann-Whitney U") and p == pytest.approx(reference.pvalue)


def test_the_loss_factor_of_doing_nothing() -> None:
    found = results(lambda *_: 0.7, seeds=1)
    epochs = [
        {"first_loss": 2.0, "last_loss": 1.0},
        {"first_loss": 0.8, "last_loss": 0.4},
        {"first_loss": 9.0, "last_loss": 9.0},
    ]
    found["comparison"]["cells"] += [{"arm": "original", "seed": 1, "test_metric": 0.7, "epochs": epochs, "params": {}}]
    assert chapter.without_operation(found) == [0.8]  # before the second epoch, as the operations
    assert "on which nobody operates: 0.800 (n = 1)" in page.write(found, {})


def test_only_pairs_of_one_seed_and_ratio_are_compared() -> None:
    found = results(lambda *_: 0.7, seeds=2)
    cells = found["comparison"]["cells"]
    gone = next(c for c in cells if c["params"] == {"op": "min_weight", "ratio": 1 / 3} and c["seed"] == 2)
    cells.remove(gone)
    cells.append(gone | {"failure": "the loss became nan"})
    both = chapter.Trainings(found).pairs(("eigen_remove", "min_weight"), "accuracy")
    assert len(both) == 9 and (1 / 3, 2) not in both


def test_a_study_that_has_only_begun() -> None:
    found = results(lambda *_: 0.7, seeds=1)
    found["comparison"]["cells"] = found["comparison"]["cells"][:1]
    assert "not run (75.44)" in page.write(found, {})
    assert figures.draw(found) == {}
    found["comparison"]["cells"] = []
    assert "0 training runs" in page.write(found, {})


def test_the_report_writes_it(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "s", SETTINGS, {"conv10": 512})
    for found in results(lambda op, ratio, seed: 0.7 + noise(op, ratio, seed), seeds=2)["comparison"]["cells"]:
        op, ratio = found["params"].values()
        name = list(chapter.NAMES).index(op) * 5 + list(chapter.RATIOS).index(ratio)
        schedule = [{"when": "1ep", "layer": "conv10", "op": op}]
        outcome = found | {
            "spikes": [spiked(1.0)],
            "epochs": [{"epoch": 1.0, "validation_metric": 0.5, "train_seconds": 0.9}],
            "operation_seconds": 0.1, "seconds": 1.0, "parameters": 5, "flops": 7,
            "training_flops": 9, "validation_metric": 0.5, "architecture": {},
        }  # fmt: skip
        for key in ("arm", "trial", "seed", "params"):
            outcome.pop(key)
        folder.ended(Cell("surgery", found["seed"], schedule, trial=name, params=found["params"], test=True), outcome)
    conduct.write_report(folder)
    words = (folder.path / "thesis.md").read_text()
    assert "40 training runs with 2 seeds" in words and "(figures/thesis_expansion.png)" in words
    assert (folder.figures / "thesis_expansion.png").exists()
    assert "thesis_removal" in folder.report.read_text()
    assert "every schedule is compared, of which 20 have ended" in folder.report.read_text()


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, "holds"), (-0.02, "does not hold"), (0.0, "undecided")])
def test_whether_eigen_remove_generalizes_better(gain: float, verdict: str) -> None:
    found = results(lambda *_: 0.7)
    assert verdicts_of(found)["EigenRemove generalizes better"] == "not tried"
    assert "training images less" not in page.write(found, {})
    for each in found["comparison"]["cells"]:
        op, ratio = each["params"]["op"], each["params"]["ratio"]
        each["train_test_gap"] = 0.2 - gain * (op == "eigen_remove") + noise(op, ratio, each["seed"])
    assert verdicts_of(found)["EigenRemove generalizes better"] == verdict
    words = page.write(found, {})
    assert "less that on the test images, points" in words and words.count("20.") > 5


@pytest.mark.parametrize(
    ("epochs", "moments"),
    [(50, [*range(1, 22, 2)]), (22, [*range(1, 22, 2)]), (21, [*range(1, 12)]), (12, [*range(1, 12)])],
)
def test_one_layer_after_another(epochs: int, moments: list[int]) -> None:
    schedule = find_space("thesis")(FixedTrial({"op": "min_weight", "ratio": 0.5}), LAYERS, epochs)
    assert [step.layer for step in schedule.steps] == list(ORDER)
    assert [step.when.count for step in schedule.steps] == moments
    schedule.check(LAYERS, epochs, per_epoch=1)


def test_the_layers_are_those_of_the_model() -> None:
    assert set(ORDER) < {name for name, _ in vgg16((3, 16, 16), 10, width=1 / 32).named_children()}


@pytest.mark.parametrize(
    ("method", "correct", "published"),
    [
        (
            "eigen_remove",
            EigenRemove(0.25, 0.125, "original"),
            EigenRemove(0.25, 0.125, "reduced", "kernels", iterated=True, rounding="down"),
        ),
        ("min_weight", MinWeight(0.25), MinWeight(0.25, "kernels", "down")),
        ("weak_expand", WeakExpand(0.25, "equal"), PublishedWeakExpand(0.25, "equal", rounding="down")),
        ("zero_expand", ZeroExpand(0.25), PublishedZeroExpand(0.25, rounding="down")),
    ],
)
def test_each_method_at_its_ratio(method: str, correct: object, published: object) -> None:
    assert method in METHODS
    for name, operation in (("thesis", correct), ("thesis_published", published)):
        steps = find_space(name)(FixedTrial({"op": method, "ratio": 0.25}), LAYERS, 50).steps
        assert {step.operation for step in steps} == {operation}


def test_says_what_it_needs() -> None:
    trial = FixedTrial({"op": "min_weight", "ratio": 0.5})
    with pytest.raises(SurgeryError, match="for the layers of the model vgg16; this network has no conv10"):
        find_space("thesis")(trial, {"fc1": SimpleNamespace(units=8)}, 50)
    with pytest.raises(SurgeryError, match="needs more epochs than 11"):
        find_space("thesis")(trial, LAYERS, 11)


@pytest.mark.parametrize("grow", [0.5, 1.0, 1.5])
def test_the_published_code_puts_weights_back_into_order_and_biases_not(grow: float) -> None:
    model, inputs = build("mlp_bn", torch.float64, batch=16)
    train(model, inputs, torch.optim.SGD(model.parameters(), lr=0.05))
    norm, last = model[1], model[3]
    order = last.weight.mean(dim=0).argsort(descending=True)
    copied = order.repeat(2)[: round(8 * grow)]
    met = copied[copied.argsort(stable=True).argsort(stable=True)]
    old = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    before = model.eval()(inputs)
    plan = operate(Anatomy(model, inputs)["0"], PublishedWeakExpand(grow))
    shares = 1 / torch.bincount(torch.cat([torch.arange(8), copied]))
    for name, units in (("0.weight", copied), ("0.bias", met), ("1.weight", met), ("1.bias", met)):
        first = old[name] if name == "0.weight" else old[name][order]
        assert torch.equal(model.get_parameter(name), torch.cat([first, old[name][units]])), name
    assert norm.running_mean.abs().max() == 0 and (norm.running_var == 1).all()
    wanted = torch.cat([old["3.weight"], old["3.weight"][:, copied]], 1) * shares[torch.cat([torch.arange(8), copied])]
    torch.testing.assert_close(last.weight, wanted)
    assert plan.error is None and (model.eval()(inputs) - before).abs().max() > 1e-3


def test_published_zero_expansion_has_no_scale_either() -> None:
    model, inputs = build("mlp_bn", torch.float64, batch=16)
    before = model.eval()(inputs)
    operate(Anatomy(model, inputs)["0"], PublishedZeroExpand(grow=0.5))
    assert (model[1].weight[8:] == 0).all() and (model[1].weight[:8] != 0).all()
    assert (model[1].running_var[8:] == 1).all()
    torch.testing.assert_close(model.eval()(inputs), before)


@pytest.mark.parametrize("network", ["mlp", "cnn", "mlp_bn", "residual"])
@pytest.mark.parametrize("kind", [PublishedWeakExpand, PublishedZeroExpand])
def test_they_keep_the_contract(kind: type, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind(0.3).propose(Anatomy(*build("mlp"))["0"]).units_after == 8 + 2  # rounded down
    monkeypatch.setitem(OPERATIONS, "published", kind)
    contract.test_runs_at_the_new_sizes_and_says_so("published", network)
    contract.test_plan_is_sound("published", network)
    contract.test_everything_alive_is_trained("published", network)
    contract.test_proposing_changes_nothing("published", network)
    contract.test_undo_is_exact("published", network, "adam")


@pytest.mark.parametrize("kind", [PublishedWeakExpand, PublishedZeroExpand])
def test_schedules_and_reports_name_them(kind: type) -> None:
    data = Schedule((Step(Moment(1), "fc1", kind(0.25)),)).to_data()
    assert data[0]["op"] == f"network_surgery.study.experiments.thesis.operations:{kind.__name__}"
    assert Schedule.from_data(data).steps[0].operation == kind(0.25)
    assert describe(data) == f"{kind.__name__} grow 0.25 on fc1 at 1ep"


def test_the_experiment_measures_what_its_page_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(space, "METHODS", ("min_weight", "zero_expand"))
    monkeypatch.setattr(space, "RATIOS", (1 / 2,))
    options = measure.Options(data="digits", train_images=40, seeds=2, epochs=12, image_size=16)
    facts, tasks = measure.measure(options)
    assert [name for name, _ in tasks] == [
        f"{name}-{seed}" for seed in (1, 2) for name in ("original", "min_weight-0.50", "zero_expand-0.50")
    ]
    rows = [row for _, task in tasks[:2] for row in task()]
    assert [row["arm"] for row in rows] == ["original", "surgery"]
    assert [each["layer"] for each in rows[1]["operations"]] == list(ORDER)
    measured = measured_of("thesis", options, facts, [*rows, *(row | {"seed": 2} for row in rows)])
    text = bench.write(EXPERIMENT.folder / "page.md", EXPERIMENT.parts(measured), measured, tmp_path).read_text()
    assert "2 training runs with 2 seeds" in text and "40 training images" in text and "$" not in text
    assert "on which nobody operates" in text and "| Minimum Weight Selection |" in text


def test_rows_make_the_page_that_the_study_makes(tmp_path: Path) -> None:
    found = results(lambda op, ratio, seed: 0.7 + noise(op, ratio, seed), seeds=2)
    facts = {"settings": found["settings"]}
    measured = measured_of("thesis", measure.Options(), facts, found["comparison"]["cells"])
    file = bench.write(EXPERIMENT.folder / "page.md", EXPERIMENT.parts(measured), measured, tmp_path)
    ours, theirs = (re.sub(r"torch .*", "", text) for text in (file.read_text(), page.thesis(found)[0]))
    assert theirs.strip().replace("](figures/", "](") in ours
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["thesis_expansion.png", "thesis_removal.png"]


def test_the_published_network_is_vgg16_without_norms_on_convolutions() -> None:
    made = []
    for preset in ("thesis", "thesis-published"):
        torch.manual_seed(1)
        made.append(models.build(compose(preset, None, {}).model, (1, 16, 16), 10))
    whole, published = (dict(model.named_parameters()) for model in made)
    gone = whole.keys() - published.keys()
    assert gone == {f"conv{n}_norm.{name}" for n in range(1, 12) for name in ("weight", "bias")}
    assert all(torch.equal(parameter, whole[name]) for name, parameter in published.items())

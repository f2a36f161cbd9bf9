"""The thesis's tables and claims from a study's results: right numbers, and no verdict without evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from network_surgery.study import conduct
from network_surgery.study.config import Settings
from network_surgery.study.evidence import thesis, thesis_figures
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell
from tests.study.operated import operated, spiked

SETTINGS = Settings(space="thesis", sampler="grid", model="vgg16", epochs=50, arms=("original", "surgery"))
OPERATIONS = ("EigenRemove(keep=0.5)", "conv10"), ("EigenRemove(keep=0.5)", "conv7"), ("EigenRemove(keep=0.5)", "fc1")


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
        for factor, (operation, layer) in zip(factors, OPERATIONS, strict=True)
    ]
    params = {"op": op, "ratio": ratio}
    return {
        "arm": "surgery",
        "trial": 0,
        "seed": seed,
        "params": params,
        "test_accuracy": accuracy,
        "operations": operations,
    }


def results(
    accuracy: Callable[[str, float, int], float],
    factor: Callable[[str, float, int], float] = lambda *_: 1.0,
    seeds: int = 5,
) -> dict[str, Any]:
    cells = [
        cell(op, ratio, seed, accuracy(op, ratio, seed), (0.5, factor(op, ratio, seed), 7.0))
        for op in thesis.NAMES
        for ratio in thesis.RATIOS
        for seed in range(1, seeds + 1)
    ]
    machine = {"torch": "2.15", "python": "3.11"}
    return {"settings": SETTINGS.to_data(), "machine": machine, "comparison": {"cells": cells}}


def said(found: dict[str, Any]) -> dict[str, str]:
    """The verdict on each claim, by its first words; of two that begin alike the first one."""
    verdicts: dict[str, str] = {}
    for claim, verdict, _ in thesis.claims(thesis.gathered(found)):
        verdicts.setdefault(" ".join(claim.split()[:3]), verdict)
    return verdicts


def noise(op: str, ratio: float, seed: int) -> float:
    return float(np.random.default_rng([seed, round(100 * ratio), list(thesis.NAMES).index(op)]).normal(0, 0.002))


def test_tables_show_ours_and_the_thesis_s() -> None:
    means = {"eigen_remove": 0.7, "min_weight": 0.6, "weak_expand": 0.8, "zero_expand": 0.5}
    found = results(lambda op, ratio, seed: means[op] + ratio / 10 + 0.01 * (seed - 3), lambda *_: 1.25)
    page = thesis.page(found, ["figures/thesis_removal.png"])
    row = next(line for line in page.splitlines() if line.startswith("| EigenRemove |"))
    assert row.startswith("| EigenRemove | 72.50 ± 1.58 (74.86) | 73.33 ± 1.58 (76.61) | 75.00 ± 1.58 (78.65) |")
    assert "| Zero Weight Expansion | 1.250 ± 0.000 (0.803) |" in page
    assert "100 trainings with 5 seeds" in page and "![figures/thesis_removal.png]" in page
    assert "**holds**" in page and "**does not hold**" in page


def test_the_loss_factor_is_the_median_over_a_training() -> None:
    (training,) = thesis.gathered(results(lambda *_: 0.5, lambda *_: 1.1, seeds=1))["min_weight", 1 / 2].values()
    assert training == thesis.Training(0.5, 1.1, 0.02, 2.0, (0.5, 1.1, 7.0))


def test_the_thesis_prints_medians_and_pools_what_it_recorded() -> None:
    """Means of medians are other numbers; the operation on conv8 counts for ours and is not in theirs."""
    accuracies, factors = (0.5, 0.6, 0.9), ((0.9, 1.0, 1.1), (1.2, 1.3, 5.0), (0.1, 2.0, 3.0))
    cells = [
        cell("eigen_remove", ratio, seed, accuracy, factor)
        for ratio in thesis.RATIOS
        for seed, (accuracy, factor) in enumerate(zip(accuracies, factors, strict=True))
    ]
    for each in cells:
        last = each["operations"][-1] | {"layer": "conv8", "training_loss_after": 99.0}
        each["operations"].append(last)
    data = results(lambda *_: 0.5) | {"comparison": {"cells": cells}}
    found = thesis.gathered(data)
    for ratio in thesis.RATIOS:
        assert thesis.as_printed(found, "eigen_remove", ratio, "accuracy") == 0.6
        assert thesis.as_printed(found, "eigen_remove", ratio, "factor") == 1.2
        assert thesis.as_printed(found, "min_weight", ratio, "factor") is None
        assert np.mean([t.factor for t in found["eigen_remove", ratio].values()]) != 1.2
    page = thesis.page(data, [])
    assert "| EigenRemove | 60.00 (74.86) | 60.00 (76.61) |" in page and "| not run (75.44) |" in page
    assert "| EigenRemove | 1.200 (1.173) |" in page and "conv8 is operated on and not recorded" in page
    assert "Variance of these medians over the ratios: EigenRemove 0.0000 (0.003)." in page


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.01, "holds"), (-0.01, "does not hold"), (0.0, "undecided")], ids=["more", "less", "same"]
)
def test_claims_follow_the_evidence(gain: float, verdict: str) -> None:
    def better(op: str, ratio: float, seed: int) -> float:
        return 0.7 + gain * (op in ("eigen_remove", "weak_expand")) + noise(op, ratio, seed)

    found = said(results(better, lambda op, ratio, seed: 1 + 20 * (better(op, ratio, seed) - 0.7)))
    assert found["EigenRemove ends at"] == verdict
    assert found["WeakExpand ends more"] == verdict
    assert found["EigenRemove's loss factor"] == verdict
    assert found["WeakExpand and Zero"] == ("does not hold" if gain else "holds")


def test_one_ratio_where_it_is_worse_is_enough() -> None:
    def accuracy(op: str, ratio: float, seed: int) -> float:
        worse = op == "eigen_remove" and ratio == 1 / 4
        return 0.7 + 0.01 * (op == "eigen_remove") - 0.05 * worse + noise(op, ratio, seed)

    assert said(results(accuracy))["EigenRemove ends at"] == "does not hold"


def test_one_of_five_ratios_is_not_worse_by_luck() -> None:
    """Shown alone (p = 0.02), not after Holm over the five."""
    drawn = [-0.01, -0.03, -0.04, -0.06, -0.08]

    def accuracy(op: str, ratio: float, seed: int) -> float:
        return 0.7 + drawn[seed - 1] * (op == "eigen_remove" and ratio == 2 / 3) + noise(op, ratio, seed)

    found = results(accuracy)
    both = thesis.pairs(thesis.gathered(found), ("eigen_remove", "min_weight"), "accuracy")
    alone = stats.ttest_1samp([a - b for (ratio, _), (a, b) in both.items() if ratio == 2 / 3], 0.0)
    assert 0.01 < alone.pvalue < 0.05 and said(found)["EigenRemove ends at"] == "undecided"


def test_nothing_is_decided_without_a_spread() -> None:
    verdicts = said(results(lambda op, ratio, seed: 0.7 + 0.1 * (op == "eigen_remove"), seeds=1))
    assert verdicts["EigenRemove ends at"] == "undecided"
    assert thesis.as_in_the_thesis([1.0, 2.0], [1.0, 2.0])[1] is None
    assert thesis.as_in_the_thesis([1.0] * 5, [1.0] * 5) == ("nothing varies", None)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_the_thesis_s_procedure(draw: str) -> None:
    random = np.random.default_rng(0)
    one, other = (getattr(random, draw)(size=60).tolist() for _ in range(2))
    name, p = thesis.as_in_the_thesis(one, other)
    reference = stats.ttest_ind(one, other) if draw == "normal" else stats.mannwhitneyu(one, other)
    assert name == ("Student's t" if draw == "normal" else "Mann-Whitney U") and p == pytest.approx(reference.pvalue)


def test_the_loss_factor_of_doing_nothing() -> None:
    found = results(lambda *_: 0.7, seeds=1)
    epochs = [
        {"first_loss": 2.0, "last_loss": 1.0},
        {"first_loss": 0.8, "last_loss": 0.4},
        {"first_loss": 9.0, "last_loss": 9.0},
    ]
    found["comparison"]["cells"] += [
        {"arm": "original", "seed": 1, "test_accuracy": 0.7, "epochs": epochs, "params": {}}
    ]
    assert thesis.without_operation(found) == [0.8]  # before the second epoch, as the operations
    assert "on which nobody operates: 0.800 (n = 1)" in thesis.page(found, [])


def test_only_pairs_of_one_seed_and_ratio_are_compared() -> None:
    found = results(lambda *_: 0.7, seeds=2)
    cells = found["comparison"]["cells"]
    gone = next(c for c in cells if c["params"] == {"op": "min_weight", "ratio": 1 / 3} and c["seed"] == 2)
    cells.remove(gone)
    cells.append(gone | {"failure": "the loss became nan"})
    both = thesis.pairs(thesis.gathered(found), ("eigen_remove", "min_weight"), "accuracy")
    assert len(both) == 9 and (1 / 3, 2) not in both


def test_a_study_that_has_only_begun() -> None:
    found = results(lambda *_: 0.7, seeds=1)
    found["comparison"]["cells"] = found["comparison"]["cells"][:1]
    assert "not run (75.44)" in thesis.page(found, [])
    assert thesis_figures.draw(found) == {}
    found["comparison"]["cells"] = []
    assert "0 trainings" in thesis.page(found, [])


def test_figures_have_the_words_for_those_who_cannot_see_them() -> None:
    drawings = thesis_figures.draw(results(lambda op, ratio, seed: 0.7 + noise(op, ratio, seed)))
    assert list(drawings) == ["thesis_removal", "thesis_expansion"]
    assert "EigenRemove, accuracy: 0.699, 0.7" in drawings["thesis_removal"].alt
    assert drawings["thesis_expansion"].image("png").startswith(b"\x89PNG")


def test_the_report_writes_it(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "s", SETTINGS, {"conv10": 512})
    for found in results(lambda op, ratio, seed: 0.7 + noise(op, ratio, seed), seeds=2)["comparison"]["cells"]:
        name = list(thesis.NAMES).index(found["params"]["op"]) * 5 + list(thesis.RATIOS).index(found["params"]["ratio"])
        schedule = [{"when": "1ep", "layer": "conv10", "op": found["params"]["op"]}]
        outcome = found | {
            "spikes": [spiked(1.0)],
            "epochs": [{"epoch": 1.0, "validation_accuracy": 0.5, "train_seconds": 0.9}],
            "operation_seconds": 0.1, "seconds": 1.0, "parameters": 5, "flops": 7,
            "training_flops": 9, "validation_accuracy": 0.5, "architecture": {},
        }  # fmt: skip
        for key in ("arm", "trial", "seed", "params"):
            outcome.pop(key)
        folder.ended(Cell("surgery", found["seed"], schedule, trial=name, params=found["params"], test=True), outcome)
    conduct.write_report(folder)
    assert "20 trainings" not in folder.thesis.read_text() and "40 trainings with 2 seeds" in folder.thesis.read_text()
    assert (folder.figures / "thesis_expansion.png").exists()
    assert "thesis_removal" in folder.report.read_text()
    assert "every schedule is compared, of which 20 have ended" in folder.report.read_text()


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, "holds"), (-0.02, "does not hold"), (0.0, "undecided")])
def test_whether_eigen_remove_generalizes_better(gain: float, verdict: str) -> None:
    found = results(lambda *_: 0.7)
    assert "EigenRemove generalizes better" not in said(found) and "training images less" not in thesis.page(found, [])
    for each in found["comparison"]["cells"]:
        op, ratio = each["params"]["op"], each["params"]["ratio"]
        each["train_test_gap"] = 0.2 - gain * (op == "eigen_remove") + noise(op, ratio, each["seed"])
    assert said(found)["EigenRemove generalizes better"] == verdict
    page = thesis.page(found, [])
    assert "less that on the test images, points" in page and page.count("20.") > 5

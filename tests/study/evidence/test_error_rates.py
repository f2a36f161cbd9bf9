"""One error rate for a study: what is tested, in which order, at which look, and how often something false is claimed.

The longer tables are ``python -m tests.benchmarks.error_rates``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from network_surgery.study.config import Settings
from network_surgery.study.evidence import comparison
from network_surgery.study.evidence.deciding import decide
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.metric import ACCURACY
from network_surgery.study.training.cell import Cell
from tests.study.evidence.simulated import RIVALS, studies
from tests.study.evidence.test_time_to_accuracy import STEP, training

ZERO = {arm: (0.0, 0.0) for arm in RIVALS}
EDGE = {arm: (0.005, 0.0) for arm in RIVALS}


@pytest.mark.parametrize(
    ("truths", "looks"),
    [([ZERO], (5,)), ([ZERO], (3, 5, 10)), ([ZERO] * 2, (5,)), ([ZERO | {"restart": (0.03, 0.0)}], (5,))],
    ids=["one look", "three looks", "two schedules", "the rival is worse, the others alike"],
)
def test_at_most_five_percent_of_studies_claim_a_difference_that_is_not_there(truths: Any, looks: Any) -> None:
    assert studies(150, truths, looks).difference <= 0.09


def test_at_most_five_percent_claim_as_good_what_is_not() -> None:
    found = studies(150, [EDGE], (5,), spread=0.001)
    assert found.alike <= 0.09


def test_what_is_there_is_shown() -> None:
    found = studies(60, [{"restart": (0.02, 0.0), "restart_flops": (0.02, 0.0), "original": (0.0, 0.0)}], (5,), 0.002)
    assert found.decisions["restart"]["better"] > 0.95 and found.decisions["restart_flops"]["better"] > 0.9
    assert studies(60, [{"restart": (0.0, 0.0)}], (10,), 0.002).decisions["restart"]["as good"] > 0.9
    assert studies(60, [{"restart": (0.0, -0.7)}], (10,), 0.002).decisions["restart"]["less compute"] > 0.9


def made(
    p: float | None, within: float | None = 1.0, arm: str = "restart", looks: int = 1, **more: Any
) -> dict[str, Any]:
    """A contrast of these p-values, at the last of some looks."""
    nothing = {
        "n": 3,
        "difference": 0.01,
        "p": None,
        "p_within": None,
        "p_compute": None,
        "compute": None,
        "sooner": None,
    }
    return {
        "arm": arm, "n": 5, "difference": 0.01, "interval": [0.0, 0.02], "deviation": 0.01, "floor": 0.0,
        "time_to_accuracy": [], "equivalence": {"margin": 0.005, "p": within, "shown": False},
        "tests": [nothing] * (looks - 1) + [nothing | {"n": 5, "p": p, "p_within": within}],
    } | more  # fmt: skip


def decisions(*contrasts: dict[str, Any], whole: bool = True) -> list[str]:
    decide([list(contrasts)], ACCURACY, whole)
    return [each["decision"] for each in contrasts]


def test_each_contrast_waits_for_the_one_before() -> None:
    assert decisions(made(0.001), made(0.02, arm="random"), made(0.001, arm="original")) == ["better"] * 3
    assert decisions(made(0.001), made(0.2, arm="random"), made(0.001, arm="original")) == [
        "better", "undecided", "not tested"
    ]  # fmt: skip
    assert decisions(made(None), made(0.001, arm="random")) == ["untested", "not tested"]


def test_as_good_has_an_order_of_its_own() -> None:
    """Half of its level is the rival's and half the original's."""
    contrasts = made(0.5, 0.011), made(0.5, 0.6, "random"), made(0.5, 0.012, "original")
    assert decisions(*contrasts) == ["as good", "not tested", "as good"]
    assert decisions(made(0.5, 0.02)) == ["as good"]  # alone it has the whole level: 2.5 % at the first look
    assert decisions(made(0.5, 0.02), made(0.5, 0.6, "original")) == ["undecided", "not tested"]
    both = made(0.001, 0.011)
    assert decisions(both) == ["better"] and both["finding"] == "surgery is better, by less than 0.5 points"


def test_a_schedule_that_is_through_passes_its_share_on() -> None:
    one, other = [made(0.001), made(0.001, arm="random")], [made(0.02)]
    decide([one, other], ACCURACY)
    assert [each["decision"] for each in (*one, *other)] == ["better"] * 3
    one, other = [made(0.001), made(0.3, arm="random")], [made(0.02)]
    decide([one, other], ACCURACY)
    assert other[0]["decision"] == "undecided" and other[0]["p_adjusted"] == pytest.approx(0.08)


def test_every_look_spends_half_of_what_is_left() -> None:
    assert decisions(made(0.024)) == ["better"] and decisions(made(0.026)) == ["undecided"]
    assert decisions(made(0.012, looks=2)) == ["better"] and decisions(made(0.013, looks=2)) == ["undecided"]
    kept = made(0.5, looks=2)
    kept["tests"][0] = kept["tests"][0] | {"p": 0.02}
    assert decisions(kept) == ["better"] and kept["shown_with"] == 3
    kept["tests"][0]["difference"] = -0.01  # it has turned since
    assert decisions(kept) == ["undecided"]


def test_before_the_end_nothing_is_claimed_but_what_a_look_has_shown() -> None:
    waiting = made(None, None, tests=[])
    assert decisions(waiting, whole=False) == ["unfinished"] and waiting["p_adjusted"] is None
    assert decisions(made(0.02), made(0.2, arm="random"), whole=False) == ["better", "unfinished"]


def study(folder: Path, seeds: int, trained: int, gain: float = 0.02) -> Folder:
    settings = Settings(seeds=seeds, schedules=([STEP],), arms=("surgery", "restart"))
    if (folder / "study.json").exists():
        made = Folder.open(folder).changed(seeds=seeds)
    else:
        made = Folder.make(folder, settings, {"fc1": 8})
    for seed in range(1, trained + 1):
        noise = np.random.default_rng(seed).normal(0, 0.001, 2)
        made.ended(
            Cell("surgery", seed, [STEP], trial=0, test=True), training([0.9], cut=0.5, test=0.9 + gain + noise[0])
        )
        made.ended(Cell("restart", seed, trial=0, test=True), training([0.9], test=0.9 + noise[1]))
    return made


def test_a_study_says_how_far_it_is_and_keeps_what_a_look_has_shown(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", 5, 4)
    _, (verdict,) = comparison.summarize(folder)
    assert verdict["decision"] == "unfinished" and verdict["finding"] == "no verdict before the end"
    assert verdict["sentence"] == "8 of 10 training runs have ended; no verdict before the end."
    folder.looked()
    assert folder.looks() == [5]
    _, (verdict,) = comparison.summarize(study(tmp_path / "s", 5, 5))
    assert verdict["decision"] == "better" and "for these test images (95 %" in verdict["sentence"]
    half = study(tmp_path / "s", 10, 7)  # more seeds, not all of them yet
    _, (verdict,) = comparison.summarize(half)
    assert verdict["decision"] == "better" and "n = 7; shown with the first 5)" in verdict["sentence"]
    whole = study(tmp_path / "s", 10, 10)
    assert whole.looks(whole=True) == [5, 10]
    whole.looked()
    whole.looked()
    assert Folder.open(whole.path).looks() == [5, 10]
    _, (verdict,) = comparison.summarize(whole)
    assert [test["n"] for test in verdict["tests"]] == [5, 10]


def test_both_questions_are_answered_where_there_are_arms_for_both(tmp_path: Path) -> None:
    arms = ("surgery", "restart", "restart_late")
    for asked in (arms, ("surgery", "restart_late", "restart")):
        folder = Folder.make(tmp_path / asked[1], Settings(seeds=5, schedules=([STEP],), arms=asked), {"fc1": 8})
        for seed in range(1, 6):
            noise = np.random.default_rng(seed).normal(0, 0.001, 3)
            end = training([0.5, 0.9, 0.9], cut=1.0, test=0.9 + noise[0])
            folder.ended(Cell("surgery", seed, [STEP], trial=0, test=True), end)
            folder.ended(Cell("restart", seed, trial=0, test=True), training([0.9] * 3, test=0.93 + noise[1]))
            late = training([0.9] * 2, sunk=1.0, test=0.87 + noise[2])
            late["sunk"]["epochs"] = 1.0
            folder.ended(Cell("restart_late", seed, trial=0, test=True), late)
        _, (verdict,) = comparison.summarize(folder)
        zero, given = (
            "Counting all compute from nothing, restarting is better",
            "The large network being there, surgery is",
        )
        assert verdict["sentence"].startswith(zero) and verdict["also"].startswith(
            f"{given} better than restarting when"
        )
        late = verdict["others"][0]
        assert (late["arm"], late["accounting"], late["compute_ratio"]) == ("restart_late", "given", 1.0)


def test_the_margin_is_a_setting_or_the_metrics_own(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", 10, 10, gain=0.0)
    assert folder.metric == ACCURACY and comparison.summarize(folder)[1][0]["decision"] == "as good"
    wide, narrow = folder.changed(margin=0.02), folder.changed(margin=1e-4)
    assert (
        wide.metric.smallest == "2 points" and comparison.summarize(wide)[1][0]["finding"] == "as good within 2 points"
    )
    assert comparison.summarize(narrow)[1][0]["decision"] == "undecided"


def test_the_values_of_samples_widen_what_is_said(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", 5, 0)
    rng = np.random.default_rng(0)
    (folder.path / "networks").mkdir()
    hard = rng.random(400) < 0.2  # samples that surgery answers and restarting does not
    for seed in range(1, 6):
        for arm in ("surgery", "restart"):
            hits = (rng.random(400) < 0.95) & ~(hard & (arm == "restart") & (rng.random(400) < 0.2))
            name = Cell(arm, seed, [STEP] if arm == "surgery" else (), trial=0)
            np.save(folder.path / "networks" / f"{name.name}.npy", np.packbits(hits))
            end = training([0.9], cut=0.5 if arm == "surgery" else None, test=float(hits.mean()))
            folder.ended(name, end | {"test_values": 400})
    _, (verdict,) = comparison.summarize(folder)
    assert verdict["samples"] == 400 and "for these" not in verdict["sentence"]
    assert "for new seeds and new images, of 400 here" in verdict["details"]
    (folder.path / "networks" / "restart-000-seed-3.npy").unlink()
    _, (alone,) = comparison.summarize(Folder.open(folder.path))
    assert alone["samples"] is None and alone["difference"] == pytest.approx(verdict["difference"])
    assert "for new seeds and these test images" in alone["details"]
    assert verdict["interval"][1] - verdict["interval"][0] >= alone["interval"][1] - alone["interval"][0] - 1e-12

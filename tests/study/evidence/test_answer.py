"""The answer of a study: its rules over a grid of cases, its sentence, and the file that it names."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import Anatomy, load
from network_surgery.study.config import Settings
from network_surgery.study.evidence.answer import answer, judge, loses
from network_surgery.study.store.folder import Folder
from network_surgery.study.task import build
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run

STEP = {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}
#: What a contrast may say of surgery: for it, against it, or neither; with the rival's cost as in the ratio.
FOR = [("better", 1.5), ("better", 0.5), ("less compute", 0.5), ("as good", 0.5)]
AGAINST = [("worse", 0.5), ("more compute", 1.5), ("as good", 1.5)]
NEITHER = [
    ("as good", 1.0), ("undecided", 0.5), ("not tested", 0.5), ("unfinished", 0.5), ("untested", 0.5),
    ("untouched", 1.0),
]  # fmt: skip


def contrast(decision: str, ratio: float, arm: str = "restart", **more: Any) -> dict[str, Any]:
    findings = {"undecided": "undecided", "untested": "nothing can be said without a spread between seeds"}
    return {
        "arm": arm, "accounting": "zero", "decision": decision, "compute_ratio": ratio, "difference": 0.012,
        "interval": [0.008, 0.016], "finding": findings.get(decision, decision), "n": 5, "progress": [4, 10],
        "equivalence": {"shown": decision == "as good"},
    } | more  # fmt: skip


@pytest.mark.parametrize(("missed", "lost"), itertools.product((False, True), repeat=2))
@pytest.mark.parametrize("second", [None, *AGAINST, ("better", 1.0), ("not tested", 1.0)])
@pytest.mark.parametrize("first", [*FOR, *AGAINST, *NEITHER])
def test_the_rules(first: Any, second: Any, missed: bool, lost: bool) -> None:
    verdict, rivals = contrast(*first), [contrast(*first)]
    rivals += [contrast(*second, arm="restart_flops")] if second else []
    use, decided = judge(verdict, rivals, missed, lost)
    if first in AGAINST or second in AGAINST:
        assert use == "no" and decided["arm"] == ("restart" if first in AGAINST else "restart_flops")
    elif first in FOR and not missed and not lost:
        assert use == "yes" and decided is verdict
    else:
        assert use == "undecided"


@pytest.mark.parametrize(
    ("interval", "allowed", "lost"),
    [([-0.03, -0.01], 0.005, True), ([-0.03, -0.01], 0.02, False), ([-0.03, 0.01], 0.005, False), (None, 0.0, False)],
)
def test_what_is_lost_must_be_shown(interval: Any, allowed: float, lost: bool) -> None:
    error = Metric("error", "lower", margin=0.005, percent=True)
    assert loses(contrast("worse", 1.0, "original", interval=interval), allowed, ACCURACY) is lost
    turned = interval and [-interval[1], -interval[0]]
    assert loses(contrast("worse", 1.0, "original", interval=turned), allowed, error) is lost
    assert not loses(None, allowed, ACCURACY)


def row(arm: str, parameters: float) -> dict[str, Any]:
    return {"arm": arm, "trial": None if arm == "original" else 0, "parameters": parameters, "flops": 10 * parameters,
            "latency_seconds": {"1": parameters / 1e6}}  # fmt: skip


WHAT = "A (min_weight to ½ of fc1 at 1ep)"
HAS = "20 % of the parameters, 20 % of the FLOPs, 20 % of the latency, accuracy "
LOST = "−0.20 points [−0.40, +0.00] against the original"
ZERO = "counting all compute from nothing"
CASES = {
    "yes": ({}, {}, f"Use {WHAT}: {HAS}{LOST}; it is better than restarting by 1.2 points, {ZERO}."),
    "no": (
        {"decision": "worse"}, {},
        f"Do not use {WHAT}: restarting is better by 1.2 points, {ZERO}; it has {HAS}{LOST}.",
    ),
    "as good and dearer": (
        {"decision": "as good", "compute_ratio": 2.0}, {},
        f"Do not use {WHAT}: restarting is as good within 0.5 points for 50 % of the training FLOPs, {ZERO}; it has "
        f"{HAS}{LOST}.",
    ),
    "as good and cheaper": (
        {"decision": "as good", "compute_ratio": 0.5, "accounting": "given", "arm": "operate_first"}, {},
        f"Use {WHAT}: {HAS}{LOST}; it is as good as operating first within 0.5 points for 50 % of its training FLOPs, "
        "the large network being there.",
    ),
    "as good and as dear": (
        {"decision": "as good", "compute_ratio": 1.0}, {},
        f"Undecided about {WHAT}: it is as good as restarting within 0.5 points for the same training FLOPs, {ZERO}; "
        f"it has {HAS}{LOST}.",
    ),
    "too much is lost": (
        {}, {"difference": -0.02, "interval": [-0.025, -0.015]},
        f"Undecided about {WHAT}: it is better than restarting by 1.2 points, {ZERO}, but it has {HAS}−2.00 points "
        "[−2.50, −1.50] against the original, more than the 0.50 points that may be lost.",
    ),
    "undecided": (
        {"decision": "undecided"}, {},
        f"Undecided about {WHAT}: against restarting accuracy is +1.20 points [+0.80, +1.60], {ZERO}; it has "
        f"{HAS}{LOST}.",
    ),
    "unfinished": (
        {"decision": "unfinished"}, {},
        "No answer yet: 4 of 10 training runs of the comparison have ended.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_its_sentence(case: str, tmp_path: Path) -> None:
    about, lost, sentence = CASES[case]
    folder = Folder.make(tmp_path / "s", Settings(seeds=1, schedules=([STEP],), model="mlp"), {"fc1": 8})
    folder.ended(Cell("surgery", 1, [STEP], trial=0), {"validation_metric": 0.9, "parameters": 200})
    original = contrast("undecided", 1.0, "original", difference=-0.002, interval=[-0.004, 0.0]) | lost
    original["accounting"] = about.get("accounting", "zero")
    verdict = contrast("better", 1.5) | about | {"trial": 0, "others": [original]}
    found = answer(folder, [row("original", 1000), row("surgery", 200)], [verdict])
    assert found is not None and found["sentence"] == sentence
    assert found["use"] == sentence.split()[0].lower().replace("use", "yes").replace("do", "no") or case == "unfinished"
    assert found["size"] == {"parameters": 200, "share": 0.2} and found["latency"]["share"] == pytest.approx(0.2)
    assert found["met"] is None and found["network"] is found["load"] is found["bytes"] is None
    assert answer(folder, [], []) is None


def test_of_several_schedules_the_first_that_can_be_used_is_the_answer(tmp_path: Path) -> None:
    settings = Settings(seeds=1, schedules=([STEP], [STEP | {"op": "pcns"}]))
    folder = Folder.make(tmp_path / "s", settings, {"fc1": 8})
    verdicts, rows = [], [row("original", 1000)]
    for trial, decision in enumerate(("undecided", "better")):
        folder.ended(
            Cell("surgery", 1, settings.schedules[trial], trial=trial), {"validation_metric": 0.9, "parameters": 200}
        )
        verdicts.append(contrast(decision, 1.0) | {"trial": trial, "others": []})
        rows.append(row("surgery", 200) | {"trial": trial})
    found = answer(folder, rows, verdicts)
    assert found is not None and (found["trial"], found["name"], found["use"]) == (1, "B", "yes")
    assert found["lost"] is None
    verdicts[1]["decision"] = "undecided"
    found = answer(folder, rows, verdicts)
    assert found is not None and (found["trial"], found["use"]) == (0, "undecided")


def test_the_network_it_names_is_loaded_and_exported_by_the_lines_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model="mlp", epochs=2, train_images=80, probe=0, seeds=2, schedules=([STEP],))
    task = build(settings)
    folder, ends = Folder.make(tmp_path / "s", settings, {"fc1": 8}), {}
    for seed in (1, 2):
        cell = Cell("surgery", seed, [STEP | {"layer": first_layer(task)}], trial=0, test=True)
        network = folder.path / "networks" / f"{cell.name}.pt"
        outcome = run(cell, task, settings, torch.device("cpu"), network=network)
        folder.ended(cell, outcome)
        ends[seed] = outcome["validation_metric"]
    best = max(ends, key=lambda seed: ends[seed])
    rows = [row("original", 1000), row("surgery", 200)]
    found = answer(folder, rows, [contrast("better", 1.5) | {"trial": 0, "others": []}])
    assert found is not None and found["network"] == f"networks/surgery-000-seed-{best}.pt"
    assert found["sentence"].endswith(f" File: {found['network']}.")
    assert found["bytes"] == (folder.path / found["network"]).stat().st_size
    assert len(found["load"].splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(found["load"], names)
    exported, inputs = torch.export.load(tmp_path / "network.pt2").module(), torch.zeros(2, 1, 8, 8)
    torch.testing.assert_close(exported(inputs), names["network"](inputs))
    alone = load(task.model, folder.path / found["network"]).eval()  # without the study
    torch.testing.assert_close(alone(inputs), names["network"](inputs))


def first_layer(task: Any) -> str:
    example = Batches(task.train.thinned(2), torch.device("cpu")).take(slice(0, 2))[0]
    return str(next(iter(dict(Anatomy(task.model(), example).items()))))


def test_a_perplexity_is_lost_where_it_rises(tmp_path: Path) -> None:
    perplexity = Metric("perplexity", "lower", margin=0.05)
    folder = Folder.make(tmp_path / "s", Settings(seeds=1, schedules=([STEP],)), {"fc1": 8}, metric=perplexity)
    folder.ended(Cell("surgery", 1, [STEP], trial=0), {"validation_metric": 9.0, "parameters": 200})
    original = contrast("worse", 1.0, "original", difference=0.3, interval=[0.2, 0.4])
    verdict = contrast("better", 1.5, difference=-1.25) | {"trial": 0, "others": [original]}
    found = answer(folder, [row("original", 1000), row("surgery", 200)], [verdict])
    assert found is not None and found["use"] == "undecided"
    assert "it is better than restarting by 1.250 in perplexity" in found["sentence"]
    assert "perplexity +0.300 [+0.200, +0.400] against the original, more than the 0.050" in found["sentence"]

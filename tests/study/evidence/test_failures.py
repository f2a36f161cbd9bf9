"""A study in which arms failed in every seed is still reported, by the product's whole path from ledger to page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from network_surgery.study import conduct
from network_surgery.study.evidence import figures
from network_surgery.study.store.folder import Folder
from tests.study.evidence import made
from tests.study.evidence.test_report import Page

ARMS = ("original", "surgery", "restart", "restart_flops", "random")
LOST = {"failure": "the trial's process was lost", "lost": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    layers, place = {"conv1": 16, "fc1": 32}, tmp_path_factory.mktemp("failures") / "whole"
    folder = made.study(place, layers, trials=4, seeds=2, top=1, arms=ARMS, space="removal")
    assert {record.cell.arm for record in folder.records()} == {"search", *ARMS}
    return folder


@pytest.mark.parametrize("seeds", ["every seed", "one seed"])
@pytest.mark.parametrize(
    "failed",
    [("original",), ("surgery",), ("restart",), ("original", "surgery"), ARMS, ("search", *ARMS)],
    ids=" ".join,
)
def test_arms_that_failed_are_reported(
    whole: Folder, failed: tuple[str, ...], seeds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "save", lambda drawings, folder: [])
    folder = Folder.make(tmp_path / "study", whole.settings, layers=dict(whole.layers))
    first = min(record.cell.seed for record in whole.records() if record.cell.arm != "search")
    for record in whole.records():
        lost = record.cell.arm in failed and (seeds == "every seed" or record.cell.seed == first)
        folder.ended(record.cell, LOST if lost else record.result)
    results = conduct.write_report(folder)
    json.dumps(results, allow_nan=False)
    page = Page(folder.report.read_text())
    console = Console(file=io.StringIO(), width=80)
    conduct.show(results, folder, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the trial's process was lost" in " ".join(page.text.split())
    assert "nan" not in said.split() and "Report" in said
    if "surgery" in failed and seeds == "every seed":
        answer = results["answer"]
        assert answer is None or answer["use"] == "undecided"

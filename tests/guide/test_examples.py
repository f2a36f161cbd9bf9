"""The tasks of the guide: short, right, operated on while they train, and resumed as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.task import build
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import check
from network_surgery.study.training.run import run
from tests.guide.blocks import GUIDE
from tests.study.operated import without_times

EXAMPLES = {
    "regression.py:Diabetes": ("0", "2"),
    "segmentation.py:Ink": ("3", "0"),
    "pairs.py:Pairs": ("look.1", "joint"),
}
CPU = torch.device("cpu")


def step(when: str, layer: str, op: str, **sizes: float) -> dict[str, Any]:
    return {"when": when, "layer": layer, "op": op, **sizes}


def test_every_example_is_tried_and_short() -> None:
    files = {path.name: path.read_text().splitlines() for path in (GUIDE / "examples").glob("*.py")}
    assert set(files) == {name.partition(":")[0] for name in EXAMPLES}
    assert max(map(len, files.values())) <= 60


@pytest.mark.parametrize(("name", "layers"), EXAMPLES.items())
def test_an_example_learns_is_operated_on_and_resumes(name: str, layers: tuple[str, str], tmp_path: Path) -> None:
    settings = Settings(task=f"{GUIDE / 'examples' / name}", probe=1, held_out=64, signal_images=64)
    task = build(settings)
    settings = replace(settings, **{**task.recipe, "epochs": 3})
    assert set(layers) <= set(check(settings, task))
    steps = [step("1ep", layers[0], "remove_dead"), step("1ep", layers[1], "pcns", variance_threshold=0.02)]
    steps += [step("2ep", layers[1], "weak_expand", grow=0.5)]
    cell = Cell("surgery", 1, steps, test=True)
    torch.manual_seed(0)
    whole = run(cell, task, settings, CPU)
    losses = [epoch["validation_loss"] for epoch in whole["epochs"]]
    assert losses[-1] < losses[0] and len(whole["operations"]) == 3
    assert task.metric.gain(whole["test_metric"], whole["epochs"][0]["validation_metric"]) > -10 * task.metric.margin

    def interrupt(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, task, settings, CPU, interrupt, saved=tmp_path / "cell.pt")
    assert without_times(run(cell, build(settings), settings, CPU, saved=tmp_path / "cell.pt")) == without_times(whole)

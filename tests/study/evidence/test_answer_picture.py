"""The answer in one picture: an arm a point with its label beside it, and no label on another one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from network_surgery.study.arms import RIVALS
from network_surgery.study.evidence import figures
from network_surgery.study.evidence.figures.answer import clusters, spread
from tests.study.evidence.test_figures import cell, sample

pytestmark = pytest.mark.pictures


def drawn(results: dict[str, Any]) -> tuple[Any, list[Annotation]]:
    drawing = figures.draw(results)["answer"]
    FigureCanvasAgg(drawing.figure).draw()
    notes = [each for each in drawing.figure.axes[0].texts if isinstance(each, Annotation)]
    return drawing, notes


@pytest.mark.parametrize("rivals", [("restart",), RIVALS], ids=["one rival", "every arm"])
@pytest.mark.parametrize("share", [0.2, 1.0, 3.0], ids=["smaller", "as large", "larger"])
def test_labels_name_every_arm_and_lie_apart(rivals: tuple[str, ...], share: float) -> None:
    results = sample()
    cells = [cell("original", seed, 0.93) for seed in range(3)]
    for turn, arm in enumerate(("surgery", *rivals)):
        op = "min_weight" if arm == "surgery" else ""
        cells += [cell(arm, seed, 0.92 + 0.001 * turn + 0.002 * seed, 0, op) for seed in range(3)]
    for each in cells:
        each["parameters"] = 1000 if each["arm"] == "original" else 1000 * share
    results["comparison"]["cells"] = cells
    results["answer"] = {"trial": 0, "budget": {"parameters": share}}
    drawing, notes = drawn(results)
    words = [note.get_text() for note in notes]
    for name in ("original", "surgery A", "restart A"):
        assert any(text.startswith(f"{name}  9") for text in words)
    assert len(words) == 2 + len(("surgery", *rivals))  # and the budget
    boxes = [Text.get_window_extent(note) for note in notes]  # without the line to its point
    outside = drawing.figure.bbox
    for (one, box), (other, another) in itertools.combinations(zip(words, boxes, strict=True), 2):
        assert not box.shrunk(0.98, 0.8).overlaps(another.shrunk(0.98, 0.8)), (one, other)
    assert all(outside.x0 <= box.x0 and box.x1 <= outside.x1 for box in boxes)


def test_a_point_within_the_budget_is_drawn_within_it() -> None:
    results = sample()
    for each in results["comparison"]["cells"]:
        each["parameters"] = 1000 if each["arm"] == "original" else 199
    results["answer"] = {"trial": 0, "budget": {"parameters": 0.2}}
    drawing, _ = drawn(results)
    axes = drawing.figure.axes[0]
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("s", "^")]
    assert points and max(points) < 0.2


def test_sizes_and_heights() -> None:
    assert clusters([100.0, 20.0, 20.1, 50.0]) == [[1, 2], [3], [0]]
    assert spread([1.0, 1.0, 1.0], 2.0, 0.0, 100.0) == [0.0, 2.0, 4.0]
    assert spread([5.0, 50.0], 2.0, 0.0, 100.0) == [5.0, 50.0]

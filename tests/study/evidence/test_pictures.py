"""What arms cost, how losses recover, what becomes of layers: the numbers of the figures, and their words."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from network_surgery.ops import OPERATIONS
from network_surgery.study.evidence import figures
from network_surgery.study.evidence.comparison import summarize
from network_surgery.study.evidence.drawing import log_scale, new_axes
from network_surgery.study.evidence.figures import architecture, marks, operations, reading, recovery
from network_surgery.study.training.records import operations_of, spikes
from tests.study.evidence import made
from tests.study.evidence.test_figures import cell, operation, sample
from tests.study.operated import operated

pytestmark = pytest.mark.pictures


def points(axes: Axes) -> set[tuple[float, float]]:
    """Every point of the scatters of some axes."""
    return {(round(float(x), 6), round(float(y), 6)) for each in axes.collections for x, y in each.get_offsets()}  # type: ignore[misc,union-attr]


def overlapping(texts: Sequence[Text]) -> int:
    """How many pairs of texts cover each other."""
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    return sum(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def luminance(colour: str) -> float:
    """How light a colour is in grey, 0 … 1 (WCAG's relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_fronts_of_costs_hold_the_arms_that_none_beats() -> None:
    results = sample()
    for member in results["comparison"]["cells"]:
        member["seconds"] = {"original": 3.0, "surgery": 2.0, "restart": 1.0}[member["arm"]] + 0.1 * member["seed"]
        member["parameters"] = {"original": 2000, "surgery": 900, "restart": 1000}[member["arm"]]
    drawing = figures.draw(results)["costs"]
    means = {}
    for arm in ("original", "surgery", "restart"):
        members = [c for c in results["comparison"]["cells"] if c["arm"] == arm]
        columns = ("parameters", "training_flops", "seconds", "test_metric")
        means[arm] = [statistics.fmean(c[key] for c in members) for key in columns]
    # original 0.92, surgery 0.92 and restart 0.91: surgery is cheaper than the original, restart the fastest.
    names = {"original": "original", "surgery": "surgery A", "restart": "restart A"}
    for panel, axes in enumerate(drawing.figure.axes):
        assert {(round(m[panel], 6), round(m[3], 6)) for m in means.values()} <= points(axes)
        beaten = {
            arm for arm, one in means.items() for other in means.values()
            if other[panel] <= one[panel] and other[3] >= one[3] and (other[panel], other[3]) != (one[panel], one[3])
        }  # fmt: skip
        front = drawing.alt.split("On the fronts: ")[1].split(";")[panel]
        assert set(front.split(": ")[1].rstrip(".").split(", ")) == {names[arm] for arm in means.keys() - beaten}
    assert "surgery A 92.00% at 900 parameters" in drawing.alt
    assert drawing.title.startswith("Surgery is on the Pareto front of accuracy and parameters at the end (A)")


def test_a_cost_that_older_studies_do_not_know_has_no_panel() -> None:
    results = sample()
    del results["comparison"]["cells"][0]["training_flops"]
    assert len(figures.draw(results)["costs"].figure.axes) == 2


def test_the_architecture_before_and_after() -> None:
    results = sample()
    surgeries = [c for c in results["comparison"]["cells"] if c["arm"] == "surgery"]
    surgeries[0]["operations"].append(operation(2.0, "a", 1.0) | {"units_before": 24, "units_after": 12})
    whole = operation(3.0, "*", 1.0) | {"units_before": 56, "units_after": 56}
    surgeries[1]["operations"].append(whole)  # the whole network is no layer
    assert [architecture.widths(c, results["layers"]) for c in surgeries] == [
        {"a": 12, "b": 24}, {"a": 24, "b": 24}, {"a": 24, "b": 24}
    ]  # fmt: skip
    drawing = figures.draw(results)["architecture"]
    assert "A (min_weight): a 32 → 20, b 32 → 24" in drawing.alt
    assert drawing.title.endswith(f"{100 * (20 + 24) / 64:.3g}% (A)")
    (axes,) = drawing.figure.axes
    assert {(32.0, 0.0), (32.0, 1.0), (20.0, 0.0), (24.0, 1.0)} <= points(axes)
    for member in surgeries:
        member["operations"] = []
    assert "architecture" not in figures.draw(results)


def test_blocks_that_come_are_blocks_and_not_units() -> None:
    results = sample()
    for each in results["comparison"]["cells"]:
        if each["arm"] == "surgery":
            each["operations"] += [
                operated(when="2ep", epoch=2.0, layer="blocks", operation=f"Deepen(grow=1.0, where={where!r})",
                         units_before=before, units_after=before + 1)
                for before, where in ((2, "stack"), (3, "between"))
            ]  # fmt: skip
    drawing = figures.draw(results)["architecture"]
    labels = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert labels == [*results["layers"], "blocks (blocks)"]
    assert "blocks 2 → 4" in drawing.alt and "in the layers that there were" in drawing.title
    assert "in the layers" not in figures.draw(sample())["architecture"].title


@pytest.mark.parametrize(
    ("low", "high"), [(1.9, 2.4), (0.031, 0.034), (1.0, 1.0), (4.2e10, 6.1e10), (1, 3), (0.1, 900)]
)
def test_a_logarithmic_scale_has_numbers_however_narrow_it_is(low: float, high: float) -> None:
    figure, axes = new_axes()
    log_scale(axes.yaxis, [low, high], lambda value: f"{value:g}")
    figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert 2 <= len(labels) <= 12 and len({*labels}) == len(labels)


def test_a_loss_is_drawn_through_its_operations() -> None:
    member = cell("surgery", 0, 0.9, 0, "min_weight")  # two operations at epoch 1: 0.5 → 1.0 each
    member["operations"][1]["loss_before"], member["operations"][1]["loss_after"] = 1.0, 1.5
    losses = [each["validation_loss"] for each in member["epochs"]]
    path = [(1, losses[0]), (1.0, 0.5), (1.0, 1.5), *zip((2, 3, 4), losses[1:], strict=True)]
    assert recovery.loss_path(member) == path
    (jump,) = spikes(operations_of(member))
    assert (jump.factor, jump.epochs_to_recover) == (3.0, 2)


def test_a_recovery_says_how_far_and_how_long() -> None:
    results = sample()
    surgeries = [c for c in results["comparison"]["cells"] if c["arm"] == "surgery"]
    assert figures.draw(results)["recovery"].title == (
        "A: the loss jumps to ×3.00 at an operation and is back after 2 epochs (medians)"
    )  # of 2, 3 and 4
    for record in surgeries[2]["operations"]:
        record["epochs_to_recover"] = None
    assert figures.draw(results)["recovery"].title.endswith("(medians); 1 of 3 jumps were not back by the end")
    surgeries[2]["operations"][0]["epoch"] = 2.5  # as a condition may have it: seeds have moments of their own
    lines = [line for line in figures.draw(results)["recovery"].figure.axes[0].lines if line.get_color() == "#0072B2"]
    assert len(lines) == 3  # no mean of what is not comparable


def test_the_shares_of_recovery_are_those_of_the_operations() -> None:
    results = sample(trials=2)
    records = [o for c in [results["trials"][0], *results["comparison"]["cells"]] for o in c["operations"]]
    for record, epochs in zip(records, (0, 1, 1, 2, 3, 4, 9, None), strict=True):
        record["epochs_to_recover"] = epochs
    drawing = figures.draw(results)["spike"]
    widths = [bar.get_width() for bar in drawing.figure.axes[1].patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(widths, np.array([1, 2, 2, 2, 1]) / 8)
    assert "Not back by the end: min_weight 1 of 8." in drawing.alt


def test_seconds_begin_with_the_look_at_the_network_and_end_with_all_of_them() -> None:
    member = cell("surgery", 0, 0.9, 0, "min_weight")  # 4 epochs of 0.25 s, two operations of 0.01 s after the first
    np.testing.assert_allclose(reading.elapsed_seconds(member), [1.23, 1.5, 1.75, 2.0])


def test_no_two_operations_look_alike_in_colour_or_in_grey() -> None:
    results = sample()
    results["trials"] = [cell("search", 0, 0.9, i, name) for i, name in enumerate([*OPERATIONS, "one more"])]
    looks = [look for name, look in marks.marks_of(results).items() if name != reading.NOTHING]
    assert len(looks) == 1 + len(OPERATIONS)
    shapes = [(str(look["marker"].get_marker()), look["marker"].get_fillstyle()) for look in looks]
    assert len(set(shapes)) == len(looks)  # without any colour
    for one, other in itertools.combinations(looks, 2):  # one colour twice: filled and hollow, of different shapes
        if one["color"] == other["color"]:
            assert one["marker"].get_marker() != other["marker"].get_marker()
            assert one["marker"].get_fillstyle() != other["marker"].get_fillstyle()


def test_the_parts_of_a_bar_are_told_apart_in_grey() -> None:
    greys = [luminance(look["color"]) for _, _, look in operations.RECOVERED.values()]
    assert all(lighter > 1.5 * darker for lighter, darker in itertools.pairwise(greys))


def test_many_moments_are_named_only_where_they_differ() -> None:
    results = sample(epochs=20)
    surgery = next(c for c in results["comparison"]["cells"] if c["arm"] == "surgery")
    surgery["operations"] = [operation(float(epoch), "a", 1.5) for epoch in range(1, 20)]
    surgery["schedule"] = [{"when": f"{epoch}ep", "layer": "a", "op": "min_weight"} for epoch in range(1, 20)]
    assert [text.get_text() for text in figures.draw(results)["accuracy"].figure.axes[0].texts] == ["min_weight ×0.75"]


@pytest.mark.long
def test_a_large_network_and_many_operations_are_readable(tmp_path: Path) -> None:
    layers = {f"stage{i // 15}.block{i % 15}.conv": 32 * 2 ** (i // 15) for i in range(60)}
    folder = made.study(tmp_path / "s", layers, trials=40, top=3, seeds=2, epochs=12)
    results = folder.write(*summarize(folder), importance={"shares": {"metric": {"op": 0.9, "layers": 0.1}}})
    drawings = figures.draw(results)
    assert drawings.keys() == figures.FIGURES.keys() - {"front"}  # there is one objective
    for drawing in drawings.values():
        drawing.image("png")
        assert drawing.figure.get_figheight() < 20 and drawing.figure.get_figwidth() < 20
        for axes in drawing.figure.axes:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                assert not overlapping(labels), drawing.title


@pytest.mark.parametrize("layers", [3, 24, 60, 150])
def test_the_names_of_layers_do_not_cover_each_other(layers: int) -> None:
    results = sample()
    results["layers"] = {"a": 32, "b": 32} | {f"block{number}": 64 for number in range(layers - 2)}
    drawing = figures.draw(results)["architecture"]
    drawing.image("png")
    (axes,) = drawing.figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert set(names) <= results["layers"].keys() and len(names) >= min(layers, 50)
    assert not overlapping(axes.get_yticklabels()) and not overlapping(axes.texts)


@pytest.mark.parametrize("name", ["search", "spike", "timing"])
def test_many_points_are_stored_as_pixels(name: str) -> None:
    def drawn(trials: int) -> bytes:
        results = sample(trials, seeds=0)
        return figures.draw(results)[name].image("svg")

    few, many = drawn(20), drawn(marks.MANY + 2)
    assert b"<image" not in few and b"<image" in many and len(many) < 3 * len(few) + 200_000


def test_a_grid_of_schedules_is_cut_to_what_can_be_read() -> None:
    results: dict[str, Any] = sample()
    surgery = next(c for c in results["comparison"]["cells"] if c["arm"] == "surgery")
    results["comparison"]["cells"] += [surgery | {"trial": trial} for trial in range(1, 20)]
    drawings = figures.draw(results)
    assert "The first 6 of 20 schedules" in drawings["arms"].caption
    assert "The first 4 of 20 schedules" in drawings["architecture"].caption
    assert all(drawing.figure.get_figwidth() < 20 for drawing in drawings.values())

"""Spike and recovery: the loss of one schedule's training runs through their operations."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from network_surgery.study.counts import format_count
from network_surgery.study.evidence.drawing import ARMS, Drawing, Look, add_title, log_scale, new_axes, times
from network_surgery.study.evidence.figures.marks import mark_moments
from network_surgery.study.evidence.figures.reading import (
    Results,
    find_compared,
    moments_of,
    positive,
    rival_arm,
    unit_of,
)
from network_surgery.study.evidence.naming import arm_title, letters
from network_surgery.study.training.records import operations_of, spikes

Path = list[tuple[float, float]]


def recovery(results: Results) -> Drawing | None:
    """The validation loss over epochs with a jump at each operation, for the schedule of the first verdict."""
    cells, trial = find_compared(results)
    arms = {
        arm: [path for c in cells if c["arm"] == arm and c["trial"] in (None, trial) and len(path := loss_path(c)) > 1]
        for arm in ("original", "surgery", rival_arm(results))
    }
    surgeries = [c for c in cells if c["arm"] == "surgery" and c["trial"] == trial]
    jumps = [jump for cell in surgeries for jump in spikes(operations_of(cell)) if positive(jump.factor)]
    if not jumps or not arms["surgery"]:
        return None
    figure, axes = new_axes(height=4.8)
    for arm, paths in arms.items():
        _draw(axes, arm, paths)
    values = [loss for paths in arms.values() for path in paths for _, loss in path]
    log_scale(axes.yaxis, values, lambda value: f"{value:g}")
    axes.set(xlabel="epoch", ylabel="held-out loss (log scale)", xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    mark_moments(axes, moments_of(surgeries[0]), top=True)
    figure.legend(loc="outside lower center", ncols=3)
    factor, back = statistics.median(jump.factor for jump in jumps), [jump.epochs_to_recover for jump in jumps]
    found = sorted(epochs for epochs in back if epochs is not None)
    never = (
        f"; {len(back) - len(found)} of {len(back)} jumps were not back by the end" if len(found) < len(back) else ""
    )
    after = f"is back after {_epochs(statistics.median(found))} (medians)" if found else "is not back by the end"
    beside = _beside_the_original(results, trial)
    jump = f"jumps to {times(factor)} at an operation" if factor >= 1.005 else f"hardly moves ({times(factor)})"
    return add_title(
        figure, f"{letters(results).get(trial or 0, 'Surgery')}: the loss {jump} and {after}{never}",
        f"Thin lines are surgery's seeds: the loss on the held-out {unit_of(results)} right before and right after "
        "the operations of a moment (dashed line), and at the end of every epoch. Thick lines are geometric means over "
        f"the seeds.{beside}",
        f"Line chart of the held-out loss by epoch, {format_count(len(arms['surgery']), 'seed')}. Median factor "
        f"{times(factor)}, epochs until the loss is back: "
        f"{', '.join('never' if b is None else str(b) for b in back[:20])}.",
    )  # fmt: skip


def _beside_the_original(results: Results, trial: int | None) -> str:
    """When the loss was back on the original's own curve after the last moment: that of the same seed and epoch."""
    rows = [row for row in results.get("moments", ()) if row["trial"] == trial and row["recovery"]["original"]]
    if not rows:
        return ""
    row = max(rows, key=lambda row: row["epoch"])
    median, never = (row["recovery"]["original"][part] for part in ("median", "never"))
    if median is None:
        return " After the last of them no seed's loss came back to the original's at the same epoch."
    rest = f"; {never} of {row['n']} did not" if never else ""
    return (
        f" After the last of them it took {_epochs(median)} (median) until the loss was back on the original's own "
        f"curve{rest}."
    )


def loss_path(cell: Mapping[str, Any]) -> Path:
    """(epoch, loss) of a training run: at the end of every epoch, and right before and right after its operations."""
    points = [(each["epoch"], 0, each.get("validation_loss")) for each in cell["epochs"]]
    for jump in spikes(operations_of(cell)):
        points += [(jump.epoch, 1, jump.loss_before), (jump.epoch, 2, jump.loss_after)]
    return [(epoch, loss) for epoch, _, loss in sorted(points, key=lambda p: p[:2]) if positive(loss)]


def _draw(axes: Axes, arm: str, paths: Sequence[Path]) -> None:
    """The geometric mean of the seeds where they have the same moments, and surgery's seeds one by one."""
    look: Look = {key: ARMS[arm][key] for key in ("color", "linestyle")}
    together = len({tuple(epoch for epoch, _ in path) for path in paths}) == 1
    label = f"{arm_title(arm)} (n = {len(paths)})"
    if arm == "surgery":
        for path in paths:
            each = {"linewidth": 0.8, "alpha": 0.55} if together else {"linewidth": 1.2, "alpha": 0.8}
            axes.plot(*zip(*path, strict=True), label=None if together else label, zorder=2, **look | each)
            label = "_"
        label = f"{arm_title(arm)} (n = {len(paths)})"
    if together:
        means = [statistics.geometric_mean(loss for _, loss in point) for point in zip(*paths, strict=True)]
        marked = {"marker": ARMS[arm]["marker"], "markersize": 4.5}
        axes.plot([epoch for epoch, _ in paths[0]], means, label=label, zorder=3, **look | marked)


def _epochs(number: float) -> str:
    return format_count(number, "epoch")

"""The figures of a study, drawn from the content of ``results.json`` alone.

``draw`` returns each figure with a title that says its finding, a caption that says how to read it and a text for
those who cannot see it. A figure for which there is no data yet is left out.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib import style

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.evidence.drawing import STYLE, Drawing
from network_surgery.study.evidence.figures import (
    answer,
    architecture,
    arms,
    costs,
    front,
    importance,
    operations,
    recovery,
    redundancy,
    time_to_accuracy,
    trials,
)
from network_surgery.study.evidence.figures.reading import Results, metric_of
from network_surgery.study.store.folder import write_whole
from network_surgery.study.task.metric import Metric

#: In reading order.
FIGURES: dict[str, Callable[[Results], Drawing | None]] = {
    "answer": answer.answer,
    "arms": arms.arms,
    "costs": costs.costs,
    "accuracy": arms.curves,
    "time_to_accuracy": time_to_accuracy.time_to_accuracy,
    "recovery": recovery.recovery,
    "architecture": architecture.architecture,
    "search": trials.search,
    "front": front.front,
    "timeline": operations.timeline,
    "spike": operations.spike,
    "timing": operations.timing,
    "redundancy": redundancy.redundancy,
    "importance": importance.importance,
}


def draw(results: Results) -> dict[str, Drawing]:
    """All figures for which ``results`` (see ``study.store.folder``) holds data, by name, in reading order.

    Those of ``accuracy`` are called after the metric of the study's task: ``time_to_perplexity``. One that fails is
    left out with a warning: nobody's answer shall hang on a picture.
    """
    drawings: dict[str, Drawing] = {}
    with style.context(["default", STYLE]):
        for name, figure in FIGURES.items():
            try:
                drawing = figure(results)
            except Exception as error:  # a fault of ours
                pass_on_memory(error)
                said = f"{type(error).__name__}: {first_line(error)}"
                warnings.warn(f"the figure {name} could not be drawn ({said})", stacklevel=2)
                continue
            if drawing is not None:
                drawings[_name(name, metric_of(results))] = drawing
    return drawings


def _name(name: str, metric: Metric) -> str:
    if metric.name == "accuracy" or not name.endswith("accuracy"):
        return name
    return f"{name.removesuffix('accuracy') or 'validation_'}{re.sub(r'[^a-z0-9]+', '_', metric.name.lower())}"


def save(drawings: Mapping[str, Drawing], folder: Path) -> list[Path]:
    """Writes ``NAME.png`` (150 dpi) and ``NAME.svg`` for each drawing into a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, drawing in drawings.items():
        for kind in ("png", "svg"):
            paths.append(folder / f"{name}.{kind}")
            write_whole(paths[-1], drawing.image(kind))
    return paths

"""What a study may optimize: each objective's value in a finished trial, read on validation, and its direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from network_surgery.study.config import METRIC, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task.metric import Metric

#: An objective → what an outcome calls it. An epoch's record has only those of ``JUDGED``.
VALUES = {
    "metric": "validation_metric", "accuracy": "validation_metric", "loss": "validation_loss",
    "parameters": "parameters", "flops": "flops", "seconds": "seconds",
}  # fmt: skip


def value(result: Mapping[str, Any], name: str) -> float:
    """The value of one objective in what a trial has reached."""
    return float(result[VALUES[name]])


def sign(name: str, metric: Metric) -> int:
    """1 where more of an objective is better, else −1."""
    return metric.sign if name in METRIC else -1


def label(name: str, metric: Metric) -> str:
    """An objective as people call it: ``validation accuracy``."""
    if name in METRIC or name == "loss":
        return f"validation {title(name, metric)}"
    return {"flops": "FLOPs"}.get(name, name)


def title(name: str, metric: Metric) -> str:
    """An objective in a word: the metric has its own name."""
    return metric.name if name in METRIC else name


def format_objective(number: float, name: str, metric: Metric) -> str:
    """A value of an objective with its name: ``97.22% validation accuracy``."""
    if name in METRIC:
        text = metric.label(number)
    elif name == "loss":
        text = f"{number:.4g}"
    else:
        text = f"{number:.2f}" if name == "seconds" else f"{number:,.0f}"
    return f"{text} {label(name, metric)}"


def check(settings: Settings, metric: Metric) -> None:
    """Raises StudyError where the settings ask for what a task with this metric has not."""
    if "accuracy" in settings.objective and metric.name != "accuracy":
        raise StudyError(
            f"objective is 'accuracy', but the metric of this task is {metric.name!r}; name it as 'metric'"
        )
    if metric.name == "loss" and "loss" in settings.objective and METRIC & set(settings.objective):
        raise StudyError("objective has the same twice: the metric of this task is its loss")
    if wrong := [target for target in settings.targets if metric.percent and not 0 < target <= 1]:
        raise StudyError(
            f"targets has {wrong[0]:g}, but {metric.name} is a fraction; give numbers above 0 and at most 1"
        )

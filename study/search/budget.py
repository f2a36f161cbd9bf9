"""A budget: what a network may cost, and how far its metric may be from the original's.

The setting ``budget`` gives sizes as fractions of the original (up to 1) or as absolute numbers, and the change of the
metric that is allowed, in its own direction: accuracy −0.005, perplexity +0.1. What the original has of parameters,
FLOPs and bytes is known before anything is trained; its latency and its metric are those of a training run of the
search's seed. A *violation* is how far a value lies beyond its limit, relative to the limit: 0 or below is feasible.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from network_surgery.study.config import SIZES, Settings
from network_surgery.study.errors import StudyError, near
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.measures import BATCHES

#: What an outcome calls the values that a budget limits.
VALUES = {"parameters": "parameters", "flops": "flops", "bytes": "bytes", "metric": "validation_metric"}
#: The batch whose latency is limited.
BATCH = str(BATCHES[0])
UNITS = {"parameters": "parameters", "flops": "FLOPs", "latency": "ms a sample", "bytes": "bytes"}
#: A limit is met by what is beyond it by less than rounding.
ROUNDING = 1e-9

Outcome = Mapping[str, Any]


def read(outcome: Outcome, name: str) -> float | None:
    """The value of an outcome that the limit of this name is about; None where it has none. Latency in milliseconds."""
    if name == "latency":
        seconds = outcome.get("latency_seconds", {}).get(BATCH)
        return None if seconds is None else 1000 * seconds
    value = outcome.get(VALUES[name])
    return None if value is None else float(value)


@dataclass(frozen=True)
class Limit:
    """One limit: the ``setting`` as it was given, the ``original``'s value and the ``limit`` (None: not known yet).

    ``name`` is one of ``config.SIZES``, or ``metric``.
    """

    name: str
    setting: float
    original: float | None
    limit: float | None

    def violation(self, outcome: Outcome, metric: Metric) -> float | None:
        """How far an outcome lies beyond the limit, relative to it; None where one of the two is not known."""
        value = read(outcome, self.name)
        if value is None or self.limit is None:
            return None
        over = metric.gain(self.limit, value) if self.name == "metric" else value - self.limit
        return over / max(abs(self.limit), ROUNDING) - ROUNDING


@dataclass(frozen=True)
class Budget:
    """The limits of a study; false where it has none."""

    limits: tuple[Limit, ...]
    metric: Metric

    @classmethod
    def of(cls, settings: Settings, metric: Metric, original: Outcome) -> Budget:
        """The budget of these settings, where the original has these sizes and values, as an outcome names them."""
        limits = []
        for key, setting in (settings.budget or {}).items():
            name = key if key in SIZES else "metric"
            there = read(original, name)
            if name == "metric":
                limit = None if there is None else there + setting
            elif setting > 1:
                limit = setting
            else:
                limit = None if there is None else _whole(name, setting * there)
            limits.append(Limit(name, setting, there, limit))
        return cls(tuple(limits), metric)

    def __bool__(self) -> bool:
        return bool(self.limits)

    def violations(self, outcome: Outcome) -> dict[str, float]:
        """Limit → how far an outcome lies beyond it, relative to it (0 or below: within), of all that are known."""
        found = {each.name: each.violation(outcome, self.metric) for each in self.limits}
        return {name: value for name, value in found.items() if value is not None}

    def feasible(self, outcome: Outcome) -> bool:
        """Whether an outcome is within every limit that is known."""
        return self.distance(outcome) == 0.0

    def distance(self, outcome: Outcome) -> float:
        """The sum of the violations above 0: 0 where it is feasible."""
        return sum(max(value, 0.0) for value in self.violations(outcome).values())

    def to_data(self) -> dict[str, dict[str, float | str | None]]:
        """The limits by name, for ``results.json``: ``setting``, ``original``, ``limit``, and ``words``."""
        return {
            each.name: {
                "setting": each.setting, "original": each.original, "limit": each.limit, "words": self.words(each),
            }
            for each in self.limits
        }  # fmt: skip

    @property
    def sentence(self) -> str:
        """The limits in words: ``at most 12,341 parameters (20 % of the original's 61,706)``."""
        return ", ".join(map(self.words, self.limits))

    def words(self, limit: Limit) -> str:
        """One limit in words."""
        if limit.name == "metric":
            lost = metric_change(limit.setting, self.metric)
            return f"{self.metric.name} {lost} the original's"
        share = f"{100 * limit.setting:.4g} % of the original's"
        if limit.setting > 1:
            share = f"the original has {limit.original:,.4g}" if limit.original is not None else ""
        elif limit.original is not None:
            share += f" {_number(limit.name, limit.original)}"
        if limit.limit is None:
            return f"{limit.name} at most {share}"
        return f"at most {_number(limit.name, limit.limit)} {UNITS[limit.name]}" + f" ({share})" * bool(share)


def metric_change(setting: float, metric: Metric) -> str:
    """An allowed change of the metric in words: ``at most 0.50 points below``, ``no worse than``."""
    if setting == 0:
        return "no worse than"
    return f"at most {metric.amount(setting)} {'below' if setting < 0 else 'above'}"


def check(settings: Settings, metric: Metric, original: Mapping[str, float], least: Mapping[str, float]) -> None:
    """Raises StudyError where no network could meet the budget, or every one does.

    ``original``: the parameters, FLOPs and bytes of the network as it is made; ``least``: those that are left where
    every layer has two units.
    """
    for name, setting in (settings.budget or {}).items():
        if name not in SIZES:
            _check_metric(name, setting, metric)
        elif setting > 1 and name in original and setting > original[name]:
            raise StudyError(
                f"budget has {name}: {_number(name, setting)}, but the original only has "
                f"{_number(name, original[name])}"
            )
    for limit in Budget.of(settings, metric, original).limits:
        if limit.limit is not None and limit.limit < least.get(limit.name, 0.0):
            raise StudyError(
                f"budget allows {_number(limit.name, limit.limit)} {UNITS[limit.name]}, but with two units in every "
                f"layer that can be operated on this network still has {_number(limit.name, least[limit.name])}; give "
                "a larger one, or --budget none"
            )


def _check_metric(name: str, setting: float, metric: Metric) -> None:
    if name not in ("metric", metric.name):
        known = [*SIZES, metric.name]
        raise StudyError(f"budget has {name!r}, but it can limit {', '.join(known)}{near(name, known)}")
    if metric.sign * setting > 0:
        example = -setting
        raise StudyError(
            f"budget has {name}: {setting:+g}, but {'higher' if metric.sign > 0 else 'lower'} is better, so what may "
            f"be lost is written {example:+g}"
        )
    if metric.percent and abs(setting) >= 1:
        point = -0.01 * metric.sign
        raise StudyError(f"budget has {name}: {setting:+g}, but {metric.name} is a fraction: a point is {point:+g}")


def needs_original(settings: Settings) -> bool:
    """Whether the budget compares with what a training run of the original has reached."""
    limited = (settings.budget or {}).items()
    return any(name not in SIZES or (name == "latency" and value <= 1) for name, value in limited)


def original_cell(settings: Settings, seed: int | None = None) -> Cell:
    """The original of a search, with its seed or another of its repeats; its test samples are not read."""
    return Cell("original", settings.seed if seed is None else seed)


def mean(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Of some outcomes the mean of whatever an objective or a limit may read; of latencies the median.

    One is its own mean.
    """
    several = list(outcomes)
    if len(several) == 1:
        return dict(several[0])
    names = ("validation_metric", "validation_loss", "parameters", "flops", "seconds", "bytes")
    found: dict[str, Any] = {}
    for name in names:
        if all(name in each for each in several):
            found[name] = statistics.fmean(each[name] for each in several)
    if all(BATCH in each.get("latency_seconds", {}) for each in several):
        found["latency_seconds"] = {BATCH: statistics.median(each["latency_seconds"][BATCH] for each in several)}
    return found


def _whole(name: str, value: float) -> float:
    """A limit of something that is counted."""
    return value if name == "latency" else float(math.floor(value + ROUNDING))


def _number(name: str, value: float) -> str:
    return f"{value:.4g}" if name == "latency" else f"{value:,.0f}"

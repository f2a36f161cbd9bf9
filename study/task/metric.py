"""A metric: what it is called, which direction is better, what difference matters, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from network_surgery.study.errors import StudyError

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """What a task is judged by.

    ``name``: as people call it, such as ``"perplexity"``. ``better``: which direction is. ``margin``: the smallest
    difference that matters to anybody, in the metric's own units. ``percent``: a fraction (0 … 1) that is written in
    percent, and its differences in points.

    Raises:
        StudyError: there is no name, no direction, or no margin above 0.

    >>> accuracy = Metric("accuracy", "higher", margin=0.005, percent=True)
    >>> accuracy.text(0.97222), accuracy.difference(0.0045), accuracy.gain(0.9, 0.8) > 0
    ('97.22 %', '+0.45 points', True)
    >>> perplexity = Metric("perplexity", "lower", margin=0.05)
    >>> perplexity.text(5.4321), perplexity.difference(-0.25), perplexity.gain(5.0, 6.0)
    ('5.432', '−0.250', 1.0)
    """

    name: str
    better: Direction
    margin: float = 0.01
    percent: bool = False

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise StudyError(f"a metric needs a name, not {self.name!r}")
        if self.better not in ("higher", "lower"):
            raise StudyError(f"the metric {self.name!r} must say whether 'higher' or 'lower' is better")
        if not self.margin > 0:
            raise StudyError(f"the margin of the metric {self.name!r} is {self.margin}, but it must be above 0")

    @property
    def sign(self) -> int:
        """1 where higher is better, else −1."""
        return 1 if self.better == "higher" else -1

    def gain(self, one: float, other: float) -> float:
        """How much better ``one`` is than ``other``; negative where it is worse."""
        return self.sign * (one - other)

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return max(values, key=lambda value: self.sign * value)

    def worst(self, values: Iterable[float]) -> float:
        """The worst of some values."""
        return min(values, key=lambda value: self.sign * value)

    def text(self, value: float) -> str:
        """A value as sentences write it."""
        return self.number(value) + " %" * self.percent

    def label(self, value: float) -> str:
        """A value as figures and tables write it: ``97.22%``."""
        return self.number(value) + "%" * self.percent

    def goal(self, value: float) -> str:
        """A value that somebody has set, as sentences write it: ``95.0 %``."""
        return f"{100 * value:.1f} %" if self.percent else self.text(value)

    def named(self, words: str) -> str:
        """What is written of a value, after the metric's name; accuracies do without."""
        return words if self.name == "accuracy" else f"{self.name} {words}"

    @property
    def title(self) -> str:
        """The name as it begins a sentence."""
        return self.name[:1].upper() + self.name[1:]

    def number(self, value: float) -> str:
        """A value without its unit."""
        if self.percent:
            return f"{100 * value:.2f}"
        return f"{value:.{self._digits}f}" if abs(value) < 1e6 else f"{value:.4g}"

    def spread(self, value: float) -> str:
        """A deviation of values, or half of an interval, without its unit."""
        return self.change(value).removeprefix("+")

    def difference(self, value: float) -> str:
        """A difference of two values as it is written, with its sign; zero is not negative."""
        return self.change(value) + self.unit

    def change(self, value: float) -> str:
        """A difference without its unit."""
        scaled, digits = (100 * value, 2) if self.percent else (value, self._digits)
        words = f"{scaled:+.{digits}f}".replace("-", "−")
        return words if words.strip("+−0.") else f"+{words[1:]}"

    def amount(self, value: float) -> str:
        """The size of a difference, without a sign: ``1.9 points``, or ``0.45 points`` where it is below one."""
        if self.percent:
            return f"{100 * abs(value):.{1 if abs(value) >= 0.00995 else 2}f}{self.unit}"
        return self.spread(abs(value))

    @property
    def smallest(self) -> str:
        """The margin as it is written: ``0.5 points``."""
        return f"{100 * self.margin if self.percent else self.margin:g}{self.unit}"

    @property
    def gap(self) -> str:
        """What a column is called that says how much better a network is on what it was trained on."""
        return "train − test" if self.sign > 0 else "test − train"

    @property
    def unit(self) -> str:
        """What stands after a difference, with a space before it."""
        return " points" * self.percent

    @property
    def _digits(self) -> int:
        """As many decimals as show a tenth of the margin."""
        digits = 1
        while self.margin * 10**digits < 10 and digits < 6:
            digits += 1
        return digits

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_data``. Raises StudyError where it is not whole."""
        try:
            return cls(**data)
        except TypeError as error:
            raise StudyError(f"a kept metric is damaged: {error}") from None


#: The fraction of samples whose class is the most probable one.
ACCURACY = Metric("accuracy", "higher", margin=0.005, percent=True)

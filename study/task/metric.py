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

    def text(self, value: float) -> str:
        """A value as it is written."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"

    def difference(self, value: float) -> str:
        """A difference of two values as it is written, with its sign; zero is not negative."""
        scaled, digits = (100 * value, 2) if self.percent else (value, self._digits)
        words = f"{scaled:+.{digits}f}".replace("-", "−")
        if not words.strip("+−0."):
            words = f"+{words[1:]}"
        return words + " points" * self.percent

    def amount(self, value: float) -> str:
        """The size of a difference, without a sign: ``0.5 points``."""
        return self.difference(abs(value)).removeprefix("+")

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

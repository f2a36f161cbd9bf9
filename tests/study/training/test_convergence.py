"""Converged or not: curves whose end is known, in both directions, alone and pooled over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from network_surgery.study.evidence.converged import convergence, find_unconverged
from network_surgery.study.evidence.wording import other, overall, sentence
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.convergence import LEAST, gain, improving
from tests.study.operated import operated

ERROR = Metric("error", "lower", margin=0.005, percent=True)
LOSS = Metric("loss", "lower", margin=0.05)
BOTH = pytest.mark.parametrize(("metric", "turn"), [(ACCURACY, lambda a: a), (ERROR, lambda a: 1 - a)])
Turn = Callable[[float], float]


def run(curve: Any, cut: float | None = None) -> dict[str, Any]:
    """A training run whose metric is ``curve`` of the epoch, operated on at ``cut``."""
    epochs = [{"epoch": float(epoch), "validation_metric": float(value)} for epoch, value in enumerate(curve, 1)]
    return {"epochs": epochs, "operations": [] if cut is None else [operated(epoch=cut)]}


def rising(epochs: int, pace: float) -> np.ndarray:
    """An accuracy that comes nearer to 0.9 by this fraction in each epoch."""
    return 0.9 - 0.6 * (1 - pace) ** np.arange(1, epochs + 1)


@BOTH
def test_a_curve_that_rises_had_not_converged_and_a_flat_one_had(metric: Metric, turn: Turn) -> None:
    assert improving(run(map(turn, rising(12, 0.1))), metric) is True
    assert improving(run(map(turn, rising(60, 0.2))), metric) is False
    assert improving(run(map(turn, 0.9 - 0.01 * np.arange(12))), metric) is False  # it gets worse
    assert improving(run(turn(0.9) for _ in range(12)), metric) is False
    slope = 0.001  # twelve epochs: a line through three of them, carried on for three more
    assert gain(run(map(turn, 0.5 + slope * np.arange(12))), metric) == pytest.approx(3 * slope)
    assert gain(run(map(turn, 0.5 + slope * np.arange(80))), metric) == pytest.approx(20 * slope)


def test_the_margin_of_the_metric_decides() -> None:
    curve = 2.0 - 0.01 * np.arange(12)
    assert gain(run(curve), LOSS) == pytest.approx(0.03) and improving(run(curve), LOSS) is False
    assert improving(run(curve), Metric("loss", "lower", margin=0.02)) is True


def test_of_too_few_epochs_nothing_is_said() -> None:
    assert gain(run([0.5] * (2 * LEAST - 1)), ACCURACY) is None
    assert improving(run([0.5, 0.6] * LEAST), ACCURACY) is not None
    assert gain(run([0.5] * 12, cut=10.0), ACCURACY) is None  # two epochs of the network that it ends with
    assert convergence([run([0.5])], ACCURACY) == {"n": 0, "improving": 0, "gain": None, "converged": None}


def test_what_comes_before_an_operation_is_of_another_network() -> None:
    curve = [0.5] * 9 + [0.8, 0.8, 0.8]  # widened after the ninth epoch
    assert improving(run(curve[:8] + [0.5] * 4), ACCURACY) is False
    assert gain(run([0.5] * 8 + [0.5, 0.8, 0.8, 0.8], cut=9.0), ACCURACY) == pytest.approx(0.0)
    assert improving(run([0.5] * 30 + [0.2, 0.4, 0.6], cut=30.0), ACCURACY) is True  # it is recovering


@BOTH
def test_noise_alone_does_not_make_an_arm_unconverged(metric: Metric, turn: Turn) -> None:
    """Of single runs many seem to improve; pooled over five seeds hardly any arm does, and one that does is seen."""
    random, late, runs = np.random.default_rng(0), 0, 0
    for _ in range(100):
        arm = [run(map(turn, 0.9 + random.normal(0, 0.01, 12))) for _ in range(5)]
        found = convergence(arm, metric)
        late, runs = late + (found["converged"] is False), runs + found["improving"]
    assert runs > 100 and late <= 6  # of 500 runs, of 100 arms: the interval is one-sided at 2.5 %
    seen = [
        convergence([run(map(turn, rising(12, 0.1) + random.normal(0, 0.01, 12))) for _ in range(5)], metric)
        for _ in range(50)
    ]
    assert sum(found["converged"] is False for found in seen) >= 35


@BOTH
def test_few_seeds_that_rise_are_not_called_converged(metric: Metric, turn: Turn) -> None:
    """Nor is one seed called anything: of flat curves many single ones seem to improve."""
    random = np.random.default_rng(1)

    def arms(curve: Any, seeds: int) -> list[bool | None]:
        noise = [[random.normal(0, 0.01, 12) for _ in range(seeds)] for _ in range(50)]
        return [convergence([run(map(turn, curve + each)) for each in arm], metric)["converged"] for arm in noise]

    for seeds in (2, 3, 5):
        found = arms(rising(12, 0.1), seeds)
        assert found.count(True) <= 5 and found.count(None) + found.count(False) >= 45
    flat = arms(np.full(12, 0.9), 3)
    assert flat.count(False) <= 4 and flat.count(True) > 25
    assert set(arms(rising(12, 0.1), 1)) == set(arms(np.full(12, 0.9), 1)) == {None}
    assert arms(np.linspace(0.9, 0.7, 12), 3).count(True) == 50  # it gets worse


def verdict(surgery: bool | None, rival: bool | None) -> dict[str, Any]:
    sides = {
        name: {"n": 5, "improving": 0 if converged else 4, "gain": 0.0, "converged": converged}
        for name, converged in (("surgery", surgery), ("rival", rival))
    }
    return UNDECIDED | {"convergence": sides}


UNDECIDED: dict[str, Any] = {
    "finding": "undecided", "decision": "undecided", "n": 5, "more_seeds": [10, 20], "difference": 0.001,
    "interval": None, "p_adjusted": None, "samples": 359, "equivalence": {"shown": False}, "time_to_accuracy": [],
}  # fmt: skip


def test_a_difference_without_a_unit_is_one_in_the_metric() -> None:
    nothing, undecided = (
        "Counting all compute from nothing, ",
        UNDECIDED | {"more_seeds": [0, 0], "interval": [-0.1, 0.2]},
    )
    assert sentence(undecided, LOSS) == (
        f"{nothing}surgery against restarting is undecided: +0.001 in loss (95 % interval −0.100 to +0.200, n = 5); "
        "a difference of 0.05 in loss would probably have been shown."
    )
    better = UNDECIDED | {"decision": "worse", "difference": 0.25, "interval": [0.1, 0.4]}
    assert sentence(better, LOSS) == (
        f"{nothing}restarting is better than surgery by 0.250 in loss (95 % interval 0.100 to 0.400, n = 5)."
    )


def test_a_verdict_says_it_before_who_won() -> None:
    plain = (
        "Counting all compute from nothing, surgery against restarting is undecided: +0.10 points (the same in every "
        "seed, n = 5); 10 to 20 more seeds would probably show a difference of 0.5 points."
    )
    assert sentence(verdict(True, True)) == sentence(verdict(None, None)) == plain
    lower = f"c{plain[1:]}"
    late = "estarting had not converged (4 of 5 seeds were still improving): "
    assert sentence(verdict(True, False)) == f"R{late}{lower}"
    assert sentence(verdict(False, True)).startswith("Surgery had not converged (4 of 5 seeds were still improving): c")
    assert sentence(verdict(False, False)).startswith("Surgery and restarting had not converged (4 of 5 and 4 of 5 ")
    assert overall([verdict(True, False)]) == (
        f"r{late}counting all compute from nothing, surgery against restarting is undecided."
    )
    assert overall([verdict(True, False), verdict(True, True)]).startswith(
        "counting all compute from nothing, an arm had not converged in 1 of 2 schedules; surgery against restarting"
    )
    against = verdict(False, False) | {"arm": "random"}
    assert other(against).endswith(": undecided; it had not converged (4 of 5 seeds were still improving)")
    first = verdict(False, False) | {"arm": "operate_first"}
    assert sentence(first).startswith("Surgery and operating first had not converged (4 of 5 and 4 of 5 ")
    assert overall([first]).startswith("surgery and operating first had not converged")
    assert find_unconverged({}) == ""

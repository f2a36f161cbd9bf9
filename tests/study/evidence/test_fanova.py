"""Shares of the variance are Optuna's, to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest

from network_surgery.study.evidence.fanova import Point, shares

Draw = Callable[[optuna.Trial], object]


def drawn(draw: Draw, count: int = 30) -> list[Point]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    for trial in trials:
        draw(trial)
    return [(trial.params, trial.distributions) for trial in trials]


def of_optuna(points: list[Point], values: list[float], n_trees: int, max_depth: int) -> dict[str, float]:
    study = optuna.create_study()
    for (params, distributions), value in zip(points, values, strict=True):
        study.add_trial(
            optuna.trial.create_trial(params=dict(params), distributions=dict(distributions), value=float(value))
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=n_trees, max_depth=max_depth, seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def every_kind(trial: optuna.Trial) -> None:
    trial.suggest_float("float", 0.5, 2.0)
    trial.suggest_float("log", 1e-4, 1.0, log=True)
    trial.suggest_float("step", 0.0, 1.0, step=0.25)
    trial.suggest_int("int", 1, 5)
    trial.suggest_categorical("choice", ["a", "b", None])
    trial.suggest_categorical("flag", [True, False])
    trial.suggest_int("single", 3, 3)


def at_times(trial: optuna.Trial) -> None:
    """One that only some trials have, and one whose range is not the same in all."""
    if trial.suggest_categorical("op", ["a", "b", "c", "d"]) == "a":
        trial.suggest_float("only a", 0.0, 1.0)
    trial.suggest_int("other range", 0, 5 + trial.number % 2)
    trial.suggest_float("all", -1.0, 1.0)


def interval(trial: optuna.Trial) -> None:
    trial.suggest_float("one", 0.0, 1.0)


@pytest.mark.parametrize("draw", [every_kind, at_times, interval])
@pytest.mark.parametrize("forest", [(6, 64), (6, 3)])
def test_shares_are_those_of_optuna(draw: Draw, forest: tuple[int, int]) -> None:
    points = drawn(draw)
    values = [
        math.fsum(len(str(value)) if isinstance(value, (str, type(None))) else value**2 for value in params.values())
        for params, _ in points
    ]
    expected, found = of_optuna(points, values, *forest), shares(points, values, *forest)
    assert list(found) == list(expected) and found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert math.isclose(sum(found.values()), 1.0)


def test_what_is_not_finite_is_left_out() -> None:
    points = drawn(every_kind)
    values = [params["float"] for params, _ in points]
    values[3] = np.inf
    assert shares(points, values, 4, 8) == pytest.approx(of_optuna(points, values, 4, 8), rel=1e-9, abs=1e-12)


def test_where_nothing_varies_nothing_is_said() -> None:
    points = drawn(every_kind)
    assert shares(points, [1.0] * len(points), 4, 8) == {}
    assert shares([(params, {}) for params, _ in points], [*range(len(points))], 4, 8) == {}


def test_parameters_of_one_value_share_alike() -> None:
    points = drawn(lambda trial: (trial.suggest_int("a", 3, 3), trial.suggest_int("b", 1, 1)))
    values = [*map(float, range(len(points)))]
    assert shares(points, values, 4, 8) == of_optuna(points, values, 4, 8) == {"a": 0.5, "b": 0.5}

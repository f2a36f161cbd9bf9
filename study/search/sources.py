"""Where cells come from: Optuna's sampling, or a list that grows while it is worked off.

A source hands out cells one by one and is told how each ended. It knows nothing of where cells run.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from search_spaces import SPACES
from study.config import OBJECTIVES, Settings
from study.errors import StudyError
from study.training.run import Cell

Result = dict[str, Any]


class Source(Protocol):
    """Hands out cells. ``next`` returns None while it waits for results; ``finished`` says that no more will come."""

    total: int

    def next(self) -> Cell | None: ...

    @property
    def finished(self) -> bool: ...

    def tell(self, cell: Cell, result: Result) -> None: ...


class Listed:
    """The cells of a list; ``follow(cell, outcome)`` may add more when one has ended well."""

    def __init__(
        self, cells: Iterable[Cell], total: int, follow: Callable[[Cell, Result], Iterable[Cell]] | None = None
    ) -> None:
        self._waiting = deque(cells)
        self._running = 0
        self._follow = follow
        self.total = total

    def next(self) -> Cell | None:
        if not self._waiting:
            return None
        self._running += 1
        return self._waiting.popleft()

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._running

    def tell(self, cell: Cell, result: Result) -> None:
        self._running -= 1
        if self._follow is not None and "failure" not in result:
            self._waiting.extend(self._follow(cell, result))


class Sampled:
    """Trials that Optuna's TPE samples from a search space, define-by-run, kept in a database beside the results.

    Trials are drawn in generations: all of one generation are drawn before any of them starts and the next one waits
    for their results. What is sampled therefore depends on the seed alone, not on which trial happens to end first.
    """

    def __init__(self, settings: Settings, layers: Mapping[str, int], storage: Path) -> None:
        if settings.space not in SPACES:
            raise StudyError(f"there is no search space {settings.space!r}; there are {', '.join(SPACES)}")
        self._settings = settings
        self._layers = {name: SimpleNamespace(units=units) for name, units in layers.items()}
        self.study = open_study(settings, storage)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            if trial.state == TrialState.RUNNING:  # an interrupted run left it; the same parameters are tried again
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params, user_attrs={"continues": trial.number})
        self._drawn: deque[tuple[optuna.Trial, Cell]] = deque()
        self._running: dict[int, optuna.Trial] = {}
        self.total = settings.trials
        self._ended = len(ended_trials(self.study))

    @property
    def finished(self) -> bool:
        return self._ended >= self.total

    def next(self) -> Cell | None:
        if not self._drawn and not self._running:
            for _ in range(min(self._settings.generation, self.total - self._ended)):
                self._drawn.append(self._draw())
        if not self._drawn:
            return None
        trial, cell = self._drawn.popleft()
        self._running[trial.number] = trial
        return cell

    def tell(self, cell: Cell, result: Result) -> None:
        assert cell.trial is not None
        trial = self._running.pop(cell.trial)
        self._ended += 1
        trial.set_user_attr("ended", True)
        if "failure" in result:
            trial.set_user_attr("failure", result["failure"])
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, [objective(result, name) for name in self._settings.objective])

    def _draw(self) -> tuple[optuna.Trial, Cell]:
        trial = self.study.ask()
        schedule = SPACES[self._settings.space](trial, self._layers, self._settings.epochs)
        return trial, Cell(
            "search", self._settings.seed, schedule.to_data(), trial=trial.number, params=dict(trial.params)
        )


def open_study(settings: Settings, storage: Path) -> optuna.Study:
    """The Optuna study in this database file, made if there is none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=settings.seed, multivariate=True, group=True, constant_liar=True,
            n_startup_trials=max(4, settings.trials // 3),
        )  # fmt: skip
    directions = ["maximize" if OBJECTIVES[name] == "max" else "minimize" for name in settings.objective]
    return optuna.create_study(
        storage=f"sqlite:///{storage}", study_name="search", sampler=sampler, directions=directions, load_if_exists=True
    )


def ended_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that ran to an end, good or bad; not those that an interruption cut off."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("ended")]


def objective(result: Result, name: str) -> float:
    """The value of one objective in a finished trial, read on validation."""
    return float(result["validation_accuracy" if name == "accuracy" else name])

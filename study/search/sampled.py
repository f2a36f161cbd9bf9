"""Schedules that Optuna samples, or every one of a grid, as cells of a study's search.

A search is a source of cells (see ``study.search.sources``); what it knows is in Optuna's database.
"""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from network_surgery.ops import Schedule
from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError, near
from network_surgery.study.search import objectives
from network_surgery.study.search.budget import Budget
from network_surgery.study.search.replay import reports
from network_surgery.study.search.samplers import pruner_of, sampler_of
from network_surgery.study.search.sources import Result
from network_surgery.study.search.space import SamplerFailed, Space
from network_surgery.study.search.stopping import SETTLED, is_settled
from network_surgery.study.search.storage import open_storage
from network_surgery.study.store.ledger import Record
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import operations_of, spikes_of

optuna.logging.set_verbosity(optuna.logging.ERROR)


#: Trials that are drawn to see whether space and sampler work.
TRIED = 3


class Sampled:
    """Trials that Optuna's TPE samples from a search space, define-by-run, kept in a database beside the results.

    Trials are drawn in generations: all of one generation are drawn before any of them starts and the next one waits
    for their results. What is sampled therefore depends on the seed alone, not on which trial happens to end first.

    Where the setting ``sampling`` is ``asynchronous``, one is drawn whenever there is ``room`` for it, and the sampler
    takes those that still run for bad ones (the *constant liar*: Ginsbourger et al. 2010), so that it does not draw
    next to them. Then the seed still fixes the sampler, but what is sampled also depends on the order of results.
    """

    def __init__(
        self,
        settings: Settings,
        layers: Mapping[str, int],
        storage: Path,
        known: Mapping[int, Result] | None = None,
        words: Callable[[Sequence[Any]], str] = str,
        metric: Metric = ACCURACY,
        identity: str = "",
        budget: Callable[[], Budget] | None = None,
        original: Mapping[str, int] | None = None,
        room: Callable[[], int] | None = None,
    ) -> None:
        """``known`` are the results of trials that ended in an earlier run of this study, by number.

        A trial that an interruption cut off, or that was lost, keeps its number and its parameters and is run (or
        resumed) first.
        ``words`` makes of a schedule what people read of it in Optuna's database; ``metric`` is the task's. ``storage``
        is that database's file, unless the settings have another, where ``identity`` is this study's name.
        ``budget`` gives what trials are held against when they end: Optuna learns by how much they exceed it.
        ``original``: the sizes that fractions of the budget are of. ``room``: the number of trials that may be
        drawn and not have ended, asked whenever one could be drawn; by default ``settings.generation``.
        """
        self._room = room or (lambda: settings.generation)
        self._settings, self._metric = settings, metric
        self._budget = budget or (lambda: Budget((), metric))
        self._space = Space(settings, layers, original)
        self._sampler = sampler_of(settings)
        self._words = words
        self._where = storage
        self.study = open_study(settings, storage, metric, identity)
        known = dict(known or {})
        if again := [number for number, result in known.items() if result.get("lost")]:
            self.study = reopen(self.study, again)
            known = {number: result for number, result in known.items() if number not in again}
        self._begun = self._ended = 0
        self._count()
        self._drawn: deque[Cell] = deque()
        self._running: set[int] = set()
        self._trials: dict[int, optuna.Trial] = {}
        self._reached: dict[int, int] = {}  # trial → the last epoch that Optuna has of it
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            # It keeps the parameters that it has; one cut off while it was drawn gets the others now.
            cell = self._cell(optuna.Trial(self.study, trial._trial_id))
            self._reached[trial.number] = trial.last_step or 0
            if trial.number in known:  # it ended, but the driver died before Optuna heard of it
                self._record(trial.number, known[trial.number])
            else:
                self._drawn.append(cell)
        self.total = self.missing

    @staticmethod
    def check(
        settings: Settings,
        layers: Mapping[str, int],
        original: Mapping[str, int] | None = None,
        check_schedule: Callable[[Schedule], None] = lambda schedule: None,
    ) -> None:
        """Draws a few trials that nobody runs, the enqueued ones first. ``check_schedule`` refuses a schedule.

        Raises:
            StudyError, SurgeryError: the search space, the sampler or the pruner is unknown, or fails with these
                settings; what is enqueued has a parameter or a value that the space does not have; each of the
                schedules is refused.
        """
        refusals: list[Exception] = []
        space, sampler = Space(settings, layers, original), copy.deepcopy(sampler_of(settings)(0))
        study = optuna.create_study(
            directions=_directions(settings, ACCURACY), sampler=sampler, pruner=pruner_of(settings)
        )
        for params in settings.enqueue:
            study.enqueue_trial(params)
        for number in range(len(settings.enqueue) + TRIED):
            trial = _ask(study, settings)
            if number < len(settings.enqueue):
                trial = _Enqueued(study, trial._trial_id, settings.enqueue[number], settings.space)
            schedule = space.sample(trial)
            if isinstance(trial, _Enqueued):
                trial.check_names()
            try:
                check_schedule(schedule)
            except (SurgeryError, StudyError) as error:
                refusals.append(error)
            study.tell(trial, [float(number)] * len(settings.objective))
        if len(refusals) == number + 1:  # one may be bad luck, and fails alone
            raise StudyError(f"none of {number + 1} schedules of the space {settings.space!r} fits: {refusals[0]}")

    def guesses(self, count: int) -> list[list[dict[str, Any]]]:
        """Schedules that the space makes at random, of which the study knows nothing."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=self._settings.seed))
        return [self._space.sample(study.ask()).to_data() for _ in range(count)]

    def catch_up(self, ended: Iterable[Record]) -> int:
        """Gives Optuna the trials of the ledger that its storage has not, as if it had drawn them; returns how many.

        A number that neither has is drawn now; one that was lost (``Record.lost``) is run again, as it was drawn.

        Raises:
            StudyError: the two disagree, or the search space does not make these trials any more.
        """
        known = {record.cell.trial: record for record in ended if record.cell.trial is not None}
        trials = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        check_same(known, trials, self._settings.storage or self._where)
        again = {number for number, record in known.items() if record.lost}
        there = {number for number, trial in trials.items() if trial.state != TrialState.WAITING}
        missing = [number for number in range(max(known, default=-1) + 1) if number not in there]
        for number in missing:
            if number == missing[0] or number % self._settings.generation == 0:
                self.study.sampler = self._sampler(number)
            if number in known and number not in trials:
                self.study.enqueue_trial(dict(known[number].cell.params))
            trial = _ask(self.study, self._settings)
            if number in known and number not in again:
                self._tell_again(trial, known[number])
            else:
                self._drawn.append(self._cell(trial))
        self._count()
        self.total = self.missing
        return sum(number in known for number in missing)

    def _tell_again(self, trial: optuna.Trial, record: Record) -> None:
        cell = None
        with contextlib.suppress(StudyError, SurgeryError):
            cell = self._cell(trial)
        if cell is None or cell.trial != record.cell.trial or _plain(cell.params) != _plain(record.cell.params):
            raise StudyError(
                f"Optuna's trials cannot be made again from the ledger: the search space {self._settings.space!r} has "
                f"changed since {record.cell.name}"
            )
        if not record.failed:
            for epoch in reports(record.result):
                self.epoch(cell, epoch)
        self._record(trial.number, record.result)

    @property
    def missing(self) -> int:
        """How many trials are still to end."""
        return max(self._settings.trials - self._ended, 0)

    def _count(self) -> None:
        """Counts the trials that were drawn and those that ended, once: the more there are, the longer it takes."""
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        self._begun = sum(state != TrialState.WAITING for state in states)
        self._ended = sum(state.is_finished() for state in states)

    @property
    def finished(self) -> bool:
        return self.missing == 0

    def next(self) -> Cell | None:
        if not self._drawn and (count := self._due()):
            self.study.sampler = self._sampler(self._begun)  # so a resumed search samples as an uninterrupted one
            self._begun += count
            for _ in range(count):
                self._drawn.append(self._cell(_ask(self.study, self._settings)))
        if not self._drawn:
            return None
        cell = self._drawn.popleft()
        assert cell.trial is not None
        self._running.add(cell.trial)
        return cell

    def _due(self) -> int:
        """How many trials are drawn now, where none is waiting: a generation, or one that there is room for."""
        if self._settings.sampling != "asynchronous":
            return 0 if self._running else min(self._settings.generation, self.missing)
        return int(len(self._running) < min(self._room(), self.missing))

    def epoch(self, cell: Cell, record: Mapping[str, Any]) -> bool:
        """Reports the objective to Optuna, where it is one that every epoch has, and asks whether the trial goes on."""
        assert cell.trial is not None
        name, *more = self._settings.objective
        if more or objectives.VALUES[name] not in record:  # Optuna takes no intermediate values of several
            return True
        trial, epoch, reached = self._trials[cell.trial], int(record["epoch"]), self._reached.get(cell.trial, 0)
        self._reached[cell.trial] = max(reached, epoch)
        with warnings.catch_warnings():  # an epoch that a lost process had reported is reported again
            warnings.simplefilter("ignore")
            trial.report(objectives.value(record, name), epoch)
        stops = self._settings.early_stopping != "none" or self._settings.pruner is not None
        if not stops or epoch >= self._settings.epochs or epoch < reached:  # it has been judged there
            return True
        if is_settled(epoch, operations_of(record["so_far"]), self._settings.recovery):
            trial.set_user_attr(SETTLED, sorted({*trial.user_attrs.get(SETTLED, ()), epoch}))
        return not trial.should_prune()

    def tell(self, cell: Cell, result: Result) -> None:
        assert cell.trial is not None
        self._running.discard(cell.trial)
        self._record(cell.trial, result)

    def _cell(self, trial: optuna.Trial) -> Cell:
        schedule = self._space.sample(trial).to_data()
        self._trials[trial.number] = trial
        trial.set_user_attr("schedule", self._words(schedule))
        return Cell("search", self._settings.seed, schedule, trial=trial.number, params=dict(trial.params))

    def _record(self, number: int, result: Result) -> None:
        """Reports to Optuna how a trial ended, with what ``optuna-dashboard`` shows beside its values."""
        about = {name: result[name] for name in SHOWN if name in result}
        if "validation_metric" in result:
            about[f"validation {self._metric.name}"] = result["validation_metric"]
        if spikes := spikes_of(result):
            about["largest loss spike"] = max(spike.factor for spike in spikes)
        trial = self._trials.pop(number)
        self._ended += 1
        if "failure" not in result:
            budget = self._budget()
            for name, value in budget.violations(result).items():
                trial.set_constraint(name, value)
                about[f"over the budget: {name}"] = max(value, 0.0)
            if budget and not budget.feasible(result):
                about["infeasible"] = True
        for key, value in about.items():
            trial.set_user_attr(key, value)
        if "failure" in result:
            self.study.tell(number, state=TrialState.FAIL)
        elif "stopped" in result:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, [objectives.value(result, name) for name in self._settings.objective])


def check_same(known: Mapping[int, Record], trials: Mapping[int, FrozenTrial], storage: Path | str) -> None:
    """Raises StudyError where Optuna's trials are not those of the ledger, by number."""
    remedy = ""
    if isinstance(storage, Path):
        remedy = f"; surgery doctor {storage.parent} makes it again from the ledger"
    ended = {number: trial for number, trial in trials.items() if trial.state.is_finished()}
    if strays := sorted(ended.keys() - known.keys()):
        others = f" and {len(strays) - 1} more" if strays[1:] else ""
        raise StudyError(f"{storage} has trial {strays[0]}{others}, which the ledger has not{remedy}")
    for number in sorted(known.keys() & ended.keys()):
        params = known[number].cell.params
        if params and _plain(params) != _plain(ended[number].params):
            raise StudyError(f"{storage} has other parameters for trial {number} than the ledger{remedy}")


def _plain(params: Mapping[str, Any]) -> Any:
    """Parameters as they are after a way through JSON."""
    return json.loads(json.dumps(params, sort_keys=True, default=str))


#: How a trial ended and what it has reached, as far as it is shown in Optuna's database.
SHOWN = ("failure", "stopped", "parameters", "flops", "seconds")


#: What begins the name of every other version of a study whose trials were run again.
AGAIN = "again: "

#: Points from which on a grid is taken for a mistake.
MOST_POINTS = 1000


def grid(settings: Settings, layers: Mapping[str, int], original: Mapping[str, int] | None = None) -> list[Cell]:
    """Every combination of a search space's parameters, in their order, as cells of trials 0, 1, ….

    Raises:
        StudyError: the space has a parameter that is not a choice among few, or too many combinations.
        SurgeryError: the space is unknown, or cannot sample for these settings.
    """
    space = Space(settings, layers, original)
    found: list[tuple[list[int], Cell]] = []

    def visit(trial: optuna.Trial) -> float:
        schedule = space.sample(trial)
        at = [int(trial.distributions[name].to_internal_repr(value)) for name, value in trial.params.items()]
        found.append((at, Cell("surgery", settings.seed, schedule.to_data(), params=dict(trial.params))))
        return 0.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    try:
        study.optimize(visit, n_trials=MOST_POINTS + 1)
    except SurgeryError:  # the space's own; it is a ValueError
        raise
    except (ValueError, SamplerFailed) as error:
        reason = first_line(error.__cause__ or error)
        raise StudyError(f"the search space {settings.space!r} is no grid: {reason}") from None
    if len(found) > MOST_POINTS:
        raise StudyError(f"the search space {settings.space!r} has more than {MOST_POINTS} points; search it instead")
    ordered = sorted(found, key=lambda entry: entry[0])
    return [replace(cell, trial=number) for number, (_, cell) in enumerate(ordered)]


def listed_cells(
    settings: Settings, layers: Mapping[str, int], original: Mapping[str, int] | None = None
) -> list[Cell]:
    """The schedules that are all compared, with no search before; empty where Optuna is to search."""
    if settings.schedules:
        return [Cell("surgery", settings.seed, steps, trial=i) for i, steps in enumerate(settings.schedules)]
    return grid(settings, layers, original) if settings.sampler == "grid" else []


def open_study(settings: Settings, database: Path, metric: Metric, identity: str = "") -> optuna.Study:
    """The Optuna study in this database file, made if there is none, named as the study is in MLflow.

    Where the settings have a storage of their own, it may hold others, too: there ``identity`` ends its name.

    Raises:
        StudyError: the storage cannot be opened, or there is no such pruner.
    """
    storage = open_storage(settings.storage, database)
    there = optuna.get_all_study_names(storage)  # of an earlier version it has another name
    name, pruner = f"{database.parent.name}: {settings.short_subject}", pruner_of(settings)
    if settings.storage is not None:
        mark = f" [{identity[:12]}]"
        name, there = name + mark, [each for each in there if each.endswith(mark)]
    study = optuna.create_study(
        storage=storage, study_name=there[0] if there else name, directions=_directions(settings, metric),
        pruner=pruner,
        load_if_exists=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objectives.label(name, metric) for name in settings.objective])
    for name in ("task", "model", "data", "epochs", "space", "seed"):
        study.set_user_attr(name, getattr(settings, name))
    for params in settings.enqueue:
        study.enqueue_trial(params, skip_if_exists=True)
    return study


def reopen(study: optuna.Study, numbers: Collection[int]) -> optuna.Study:
    """The same study with the failed trials of these numbers running again, with their parameters and their curves: a
    run that goes on from a checkpoint does not report the epochs before it again.

    Optuna changes no trial that has ended, so the study is written anew beside the old one, which is then deleted. A
    process that is killed meanwhile leaves both: the older one counts, and the other is removed here.
    """
    failed = {t.number for t in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))} & {*numbers}
    if not failed:
        return study
    storage, name = study._storage, study.study_name
    twin = name.removeprefix(AGAIN) if name.startswith(AGAIN) else AGAIN + name
    with contextlib.suppress(KeyError):
        optuna.delete_study(study_name=twin, storage=storage)
    fresh = optuna.create_study(storage=storage, study_name=twin, directions=study.directions, pruner=study.pruner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        fresh.set_metric_names(study.metric_names or [])
    for key, value in study.user_attrs.items():
        fresh.set_user_attr(key, value)
    for trial in study.get_trials():
        if trial.number in failed:
            trial.state, trial.values, trial.datetime_complete = TrialState.RUNNING, None, None
            trial.user_attrs = {key: value for key, value in trial.user_attrs.items() if key not in SHOWN}
        storage.create_new_trial(fresh._study_id, template_trial=trial)
    optuna.delete_study(study_name=name, storage=storage)
    return fresh


def _directions(settings: Settings, metric: Metric) -> list[StudyDirection]:
    up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    return [up if objectives.sign(name, metric) > 0 else down for name in settings.objective]


def _ask(study: optuna.Study, settings: Settings) -> optuna.Trial:
    """The next trial. Raises StudyError where the sampler fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return study.ask()
    except Exception as error:  # anyone's sampler may fail in any way
        pass_on_memory(error)
        raise SamplerFailed(settings, error) from error


class _Enqueued(optuna.Trial):
    """A trial of given parameters. Raises StudyError where the space cannot choose one of them."""

    def __init__(self, study: optuna.Study, number: int, params: Mapping[str, Any], space: str) -> None:
        super().__init__(study, number)
        self._given, self._space = params, space

    def suggest_float(self, name: str, low: float, high: float, **kind: Any) -> float:
        self._check(name, FloatDistribution(low, high, **kind))
        return super().suggest_float(name, low, high, **kind)

    def suggest_int(self, name: str, low: int, high: int, **kind: Any) -> int:
        self._check(name, IntDistribution(low, high, **kind))
        return super().suggest_int(name, low, high, **kind)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self._check(name, CategoricalDistribution(choices))
        return super().suggest_categorical(name, choices)

    def _check(self, name: str, distribution: BaseDistribution) -> None:
        if name not in self._given:
            return
        value = self._given[name]
        with contextlib.suppress(ValueError):  # a value of another kind has no number among the choices
            if distribution._contains(distribution.to_internal_repr(value)):
                return
        raise StudyError(
            f"enqueue has {name}: {value!r} in {dict(self._given)}, but the search space {self._space!r} chooses it "
            f"from {_range(distribution)}"
        )

    def check_names(self) -> None:
        """Raises StudyError where there is a parameter that the space did not ask for."""
        for name in self._given.keys() - self.params.keys():
            raise StudyError(
                f"enqueue has {name!r} in {dict(self._given)}, but with these values the search space "
                f"{self._space!r} has {', '.join(self.params) or 'no parameter'}{near(name, self.params)}"
            )


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(repr, distribution.choices))
    return f"{distribution.low} to {distribution.high}"  # type: ignore[attr-defined]

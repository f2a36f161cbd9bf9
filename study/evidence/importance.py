"""Which of a search's parameters mattered, for the metric and for the loss spike: functional analysis of variance.

Source: Hutter, Hoos and Leyton-Brown 2014, *An efficient approach for assessing hyperparameter importance*, as Optuna
computes it. A parameter's importance is its share of the variance, over the search space, of what a forest of trees
has learnt from the trials. Parameters that only some trials have (``rank`` where other operations are searched too)
are left out, as Optuna does. Trials are few, and a forest finds something in any of them: so each share has an
interval, by drawing the trials again. Of many trials ``MOST`` are drawn by chance.

It is the only part of a report that takes long, so what it found is kept in ``results.json``, with a key of what it was
computed from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial, TrialState, create_trial

from network_surgery.ops import SurgeryError
from network_surgery.study.config import OLDER, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.space import Space
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.records import is_finished, spikes_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

Results = Mapping[str, Any]
Shares = dict[str, dict[str, float]]
Intervals = dict[str, dict[str, list[float]]]

#: Fewer finished trials say nothing.
LEAST = 20
#: A spike (its logarithm) that varies by less over the trials does not vary: what rounding does to the loss is none.
#: Of the metric that is a fiftieth of its margin.
NOTICEABLE = 1e-4
#: Up to this number of trials the forest is as Optuna has it. From there on fewer and shallower trees say the same to
#: a few hundredths, and a thousand trials take 0.9 seconds instead of 22 (``tests/benchmarks/RESULTS.md``).
FEW = 100
FOREST, SMALLER_FOREST = {"n_trees": 64, "max_depth": 64}, {"n_trees": 16, "max_depth": 8}
#: Of more trials these are drawn: more would only take longer, and the intervals tell what is not known from so few.
MOST = 500
#: How often the trials are drawn again, and the forest that then learns from them. Of depth 8 it takes twice as long,
#: and the intervals differ by a hundredth.
RESAMPLES, RESAMPLED_FOREST = 20, {"n_trees": 8, "max_depth": 6}


def importance(folder: Folder) -> dict[str, Any]:
    """``{"key", "shares", "intervals"}`` of a search (see ``importances``), as stored where it was computed from the
    same.
    """
    trials = [{"params": dict(r.cell.params), **r.result} for r in folder.records("search")]
    results = {"settings": folder.settings.to_data(), "layers": folder.layers, "trials": trials}
    results |= {"metric": folder.metric.to_data(), "original": folder.original}
    key = _key(results)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or an older study's
        stored = json.loads(folder.results.read_text())["importance"]
        if stored["key"] == key:
            return {"key": key, "shares": stored["shares"], "intervals": stored["intervals"]}
    shares, intervals = importances(results)
    return {"key": key, "shares": shares, "intervals": intervals}


def importances(results: Results) -> tuple[Shares, Intervals]:
    """Target (``metric``, ``spike``) → parameter → share of the variance (0 … 1, together 1), from finished trials.

    And the same with an interval for each share: where 90 % of it lie when the trials are drawn again from themselves
    (a bootstrap). ``results`` needs ``settings``, ``layers``, ``trials`` and ``metric`` as in ``results.json``. Empty
    where there was no search, where fewer than ``LEAST`` trials have ended, or where every trial has parameters of its
    own; a target that does not vary (see ``NOTICEABLE``) is left out.
    """
    random = np.random.default_rng(0)
    trials = [trial for trial in results["trials"] if is_finished(trial)]
    if len(trials) > MOST:
        trials = [trials[place] for place in sorted(random.permutation(len(trials))[:MOST])]
    ended = _with_distributions(trials, results)
    if len(ended) < LEAST:
        return {}, {}
    margin = (Metric.from_data(results["metric"]) if "metric" in results else ACCURACY).margin
    targets = {"metric": lambda trial: trial["validation_metric"], "spike": _spike}
    least = {"metric": margin / 50, "spike": NOTICEABLE}
    shares: Shares = {}
    intervals: Intervals = {}
    draws = [random.integers(len(ended), size=len(ended)) for _ in range(RESAMPLES)]
    for target, value in targets.items():
        column = [float(value(trial)) for trial, _ in ended]
        if not np.ptp(column) > least[target]:
            continue
        points = [
            create_trial(params=dict(trial["params"]), distributions=known, value=each)
            for (trial, known), each in zip(ended, column, strict=True)
        ]
        if found := _fanova(points, FOREST if len(ended) <= FEW else SMALLER_FOREST):
            shares[target] = found
            again = [_fanova([points[place] for place in draw], RESAMPLED_FOREST) for draw in draws]
            intervals[target] = {name: _interval(share, name, again) for name, share in found.items()}
    return shares, intervals


def _with_distributions(trials: Sequence[Results], results: Results) -> list[tuple[Results, Any]]:
    """These trials, each with the distributions of its parameters in the study's search space."""
    settings = Settings.from_data({**OLDER, **results["settings"]}, "the settings of these results")
    found = []
    with contextlib.suppress(StudyError, SurgeryError):  # of another version's space
        space = Space(settings, results["layers"], results.get("original"))
        for trial in trials:
            again = FixedTrial(dict(trial["params"]))
            with contextlib.suppress(Exception):  # of another version's parameters
                space.sample(again)
                found.append((trial, again.distributions))
    return found


def _interval(share: float, name: str, again: Sequence[Mapping[str, float]]) -> list[float]:
    """Where 90 % of a parameter's shares lie in the samples that were drawn again; it holds the share itself."""
    low, high = np.quantile([each.get(name, 0.0) for each in again], [0.05, 0.95])
    return [min(float(low), share), max(float(high), share)]


def _spike(trial: Mapping[str, Any]) -> float:
    """The logarithm of the largest loss spike of a trial."""
    return math.log(max((max(1e-12, spike.factor) for spike in spikes_of(trial)), default=1.0))


class _Given(optuna.storages.InMemoryStorage):
    """Holds trials that are there already, without the copies that adding them makes."""

    def __init__(self, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
        super().__init__()
        self._given = list(trials)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self._given if states is None or trial.state in states]


def _fanova(points: Sequence[optuna.trial.FrozenTrial], forest: Mapping[str, int]) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # brings scikit-learn along

    study = optuna.create_study(storage=_Given(points))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(**forest, seed=0))
        except RuntimeError:  # trials drawn again that do not vary
            return {}
    return {name: float(share) for name, share in found.items()}


def _key(results: Results) -> str:
    """Equal for searches whose importances are equal."""
    trials: Sequence[Mapping[str, Any]] = results["trials"]
    about = [
        [results["settings"][name] for name in ("space", "epochs")], results["layers"],
        results["metric"], optuna.__version__, FEW, MOST, FOREST, SMALLER_FOREST, RESAMPLES, RESAMPLED_FOREST,
        [[t["params"], *([t["validation_metric"], _spike(t)] if is_finished(t) else [])] for t in trials],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

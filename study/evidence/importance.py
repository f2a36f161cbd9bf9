"""Which of a search's parameters mattered, for the metric and for the loss spike: functional analysis of variance.

Source: Hutter, Hoos and Leyton-Brown 2014, *An efficient approach for assessing hyperparameter importance*, as Optuna
computes it. A parameter's importance is its share of the variance, over the search space, of what a forest of trees
has learnt from the trials. Parameters that only some trials have (``rank`` where other operations are searched too)
are left out, as Optuna does.

It is the only part of a report that takes long, so what it found is kept in ``results.json``, with a key of what it was
computed from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial, create_trial

from network_surgery.study.search.space import suggest_of
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.records import finished, spikes_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

Results = Mapping[str, Any]
Shares = dict[str, dict[str, float]]

#: Fewer finished trials say nothing.
LEAST = 10
#: A spike (its logarithm) that varies by less over the trials does not vary: what rounding does to the loss is none.
#: Of the metric that is a fiftieth of its margin.
NOTICEABLE = 1e-4
#: Up to this number of trials the forest is as Optuna has it. From there on fewer and shallower trees say the same to
#: a few hundredths, and a thousand trials take 0.9 seconds instead of 22 (``tests/benchmarks/RESULTS.md``).
FEW = 100
FOREST, SMALLER_FOREST = {"n_trees": 64, "max_depth": 64}, {"n_trees": 16, "max_depth": 8}


def importance(folder: Folder) -> dict[str, Any]:
    """``{"key", "shares"}`` of a search (see ``importances``), as stored where it was computed from the same."""
    trials = [{"params": dict(r.cell.params), **r.result} for r in folder.records("search")]
    results = {"settings": folder.settings.to_data(), "layers": folder.layers, "trials": trials}
    results["metric"] = folder.metric.to_data()
    key = _key(results)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or an older study's
        stored = json.loads(folder.results.read_text())["importance"]
        if stored["key"] == key:
            return {"key": key, "shares": stored["shares"]}
    return {"key": key, "shares": importances(results)}


def importances(results: Results) -> Shares:
    """Target (``metric``, ``spike``) → parameter → share of the variance (0 … 1, together 1), from finished trials.

    ``results`` needs ``settings``, ``layers``, ``trials`` and ``metric`` as in ``results.json``. Empty where there was
    no search, where fewer than ``LEAST`` trials have ended, or where every trial has parameters of its own; a target
    that does not vary (see ``NOTICEABLE``) is left out.
    """
    settings, layers = results["settings"], {n: SimpleNamespace(units=u) for n, u in results["layers"].items()}
    after = settings.get("lr_schedule", "constant") != "constant"
    ended, distributions = [], []
    for trial in results["trials"]:
        again = FixedTrial(dict(trial["params"]))
        with contextlib.suppress(Exception):  # of another version's space, or of schedules of one's own
            suggest_of(settings["space"], after)(again, layers, settings["epochs"])
            if finished(trial):
                ended.append(trial)
                distributions.append(again.distributions)
    if len(ended) < LEAST:
        return {}
    margin = (Metric.from_data(results["metric"]) if "metric" in results else ACCURACY).margin
    columns = {"metric": [trial["validation_metric"] for trial in ended], "spike": [_spike(t) for t in ended]}
    least = {"metric": margin / 50, "spike": NOTICEABLE}
    found = {}
    for target, column in columns.items():
        if not np.ptp(column) > least[target]:
            continue
        study = optuna.create_study()
        study.add_trials(
            create_trial(params=dict(trial["params"]), distributions=known, value=value)
            for trial, known, value in zip(ended, distributions, column, strict=True)
        )
        if shares := _fanova(study, FOREST if len(ended) <= FEW else SMALLER_FOREST):
            found[target] = shares
    return found


def _spike(trial: Mapping[str, Any]) -> float:
    """The logarithm of the largest loss spike of a trial."""
    return math.log(max((max(1e-12, spike.factor) for spike in spikes_of(trial)), default=1.0))


def _fanova(study: optuna.Study, forest: Mapping[str, int]) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # brings scikit-learn along

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(**forest, seed=0))


def _key(results: Results) -> str:
    """Equal for searches whose importances are equal."""
    trials: Sequence[Mapping[str, Any]] = results["trials"]
    about = [
        [results["settings"][name] for name in ("space", "epochs")], results["layers"],
        results["metric"], optuna.__version__, FEW, FOREST, SMALLER_FOREST,
        [[t["params"], *([t["validation_metric"], _spike(t)] if finished(t) else [])] for t in trials],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

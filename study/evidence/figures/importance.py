"""Which of a search's parameters mattered, for the accuracy and for the loss spike: functional analysis of variance.

Source: Hutter, Hoos and Leyton-Brown 2014, *An efficient approach for assessing hyperparameter importance*, as Optuna
computes it. A parameter's importance is its share of the variance, over the search space, of what a forest of trees
has learnt from the trials. Parameters that only some trials have (``rank`` where other operations are searched too)
are left out, as Optuna does.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FixedTrial, create_trial

from search_spaces import SPACES
from study.evidence.drawing import BLUE, VERMILLION, Drawing, as_percent, new_axes, titled
from study.evidence.figures.reading import Results, finished, unfinished

#: Fewer finished trials say nothing.
LEAST = 10
#: A target that varies by less over the trials does not vary: what rounding does to the loss is no spike.
NOTICEABLE = 1e-4
TARGETS = {"accuracy": "validation accuracy", "spike": "largest loss spike (logarithm)"}


def importances(results: Results) -> dict[str, dict[str, float]]:
    """Target → parameter → share of the variance (0 … 1, together 1), from a search's finished trials.

    Empty where there was no search, where fewer than ``LEAST`` trials have ended, or where every trial has parameters
    of its own; a target that does not vary (by ``NOTICEABLE``) is left out.
    """
    settings, layers = results["settings"], {n: SimpleNamespace(units=u) for n, u in results["layers"].items()}
    ended, distributions = [], []
    for trial in results["trials"] if settings["space"] in SPACES else ():
        again = FixedTrial(dict(trial["params"]))
        with contextlib.suppress(ValueError):  # of another version's space, or of schedules of one's own
            SPACES[settings["space"]](again, layers, settings["epochs"])
            if finished([trial]):
                ended.append(trial)
                distributions.append(again.distributions)
    if len(ended) < LEAST:
        return {}
    factors = [max([event["factor"] for event in trial["spikes"]], default=1.0) for trial in ended]
    values = {
        "accuracy": [trial["validation_accuracy"] for trial in ended],
        "spike": [math.log(max(factor, 1e-12)) for factor in factors],
    }
    found = {}
    for target, column in values.items():
        if not np.ptp(column) > NOTICEABLE:
            continue
        study = optuna.create_study()
        for trial, known, value in zip(ended, distributions, column, strict=True):
            study.add_trial(create_trial(params=dict(trial["params"]), distributions=known, value=value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        if shares:
            found[target] = shares
    return found


def importance(results: Results) -> Drawing | None:
    """A bar a parameter, for each target; none where nothing can be said."""
    found = importances(results)
    if not found:
        return None
    names = sorted({name for shares in found.values() for name in shares}, key=lambda n: _most(found, n))
    figure, axes = new_axes(height=1.8 + 0.45 * len(names))
    at = np.arange(len(names))
    for offset, (target, shares), colour in zip((0.2, -0.2), found.items(), (BLUE, VERMILLION), strict=False):
        widths = [shares.get(name, 0.0) for name in names]
        axes.barh(at + offset, widths, 0.38, color=colour, label=TARGETS[target])
    axes.set_yticks(at, names)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(as_percent)
    axes.set_xlabel("share of the variance over the search space")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    leaders = {target: max(shares, key=lambda name: shares[name]) for target, shares in found.items()}
    title = ", ".join(f"{TARGETS[target].split(' (')[0]}: {name}" for target, name in leaders.items())
    words = "; ".join(
        f"{target}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        for target, shares in found.items()
    )
    return titled(
        figure, f"What mattered most: {title}",
        f"fANOVA over the {len(finished(results['trials']))} finished trials of the search "
        f"({unfinished(results['trials'])}), one seed each. Parameters that only some trials have are left out. With "
        "few trials the shares are rough.",
        words + ".",
    )  # fmt: skip


def _most(found: Mapping[str, Mapping[str, float]], name: str) -> float:
    return max(shares.get(name, 0.0) for shares in found.values())

"""Pruning of weights: by which score, how much, in how many turns; then units that are cut off go.

Sources: Evci 2018, *Detecting dead weights and units*, table 2.2 (a fraction of all weights that grows from epoch to
epoch); the cubic ramp, steep at first: Zhu and Gupta 2017, *To prune, or not to prune*; ``quality``: Han et al. 2015.
"""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import BaseTrial

from network_surgery.ops import Compact, PruneWeights, Schedule, TriFactorize
from network_surgery.ops.operations.prune_weights import SCOPES
from network_surgery.ops.schedule import Moment, Step
from network_surgery.ops.signals.weight_scores import SCORES
from network_surgery.search_spaces.placement import EPOCHS, Layers, brief, sample, turns

#: A measured change of the loss takes a forward pass for every few weights: too slow to be tried by the way.
TRIED = tuple(score for score in SCORES if not score.startswith("loss_change"))
#: Scores that weigh the second order by λ.
CURVED = ("taylor2", "taylor2_abs")
#: What says how much goes: the fraction of all weights, or how many deviations a weight must be large.
AMOUNTS = ("fraction", "quality")
RAMPS = ("linear", "cubic")


def operation(trial: BaseTrial) -> PruneWeights:
    """Pruning of the whole network: ``amount``, with ``fraction`` (the last one), ``weight_score`` (``taylor2``: with
    ``weight_strength``, its λ) and ``scope``, or ``quality``.
    """
    if trial.suggest_categorical("amount", AMOUNTS) == "quality":
        return PruneWeights(quality=sample(trial, "quality", 0.1, 1.5))
    fraction = sample(trial, "fraction", 0.2, 0.95)
    score, scope = trial.suggest_categorical("weight_score", TRIED), trial.suggest_categorical("scope", SCOPES)
    chosen = PruneWeights(fraction, score=score, scope=scope)
    if score in CURVED:
        chosen = replace(chosen, strength=sample(trial, "weight_strength", 0.1, 10.0, log=True))
    return chosen


def place(trial: BaseTrial, layers: Layers, chosen: PruneWeights | TriFactorize, epochs: int) -> Schedule:
    """Pruning in some turns, then compaction of every layer: ``first_epoch``, ``times``, ``every``, ``ramp``.

    Turns that would fall beyond the end are left out; the last of the others reaches the whole fraction. Compaction
    follows at once, forwards (units that lost their input) and backwards (those that lost their output).
    """
    moments = [Moment(epoch) for epoch in turns(trial, epochs, 4)]
    grows = isinstance(chosen, TriFactorize) or chosen.quality is None
    several = trial.params["times"] > 1 and grows
    ramp = trial.suggest_categorical("ramp", RAMPS) if several else RAMPS[0]
    steps = []
    for turn, moment in enumerate(moments, 1):
        part = turn / len(moments)
        share = part if ramp == "linear" else 1 - (1 - part) ** 3
        now = replace(chosen, fraction=brief(share * chosen.fraction)) if grows else chosen
        steps.append(Step(moment, "*", now))
    names = list(layers)
    return Schedule((*steps, *(Step(moments[-1], name, Compact()) for name in (*names, *names[-2::-1]))))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of pruning and compaction (see ``operation`` and ``place``)."""
    return place(trial, layers, operation(trial), epochs)

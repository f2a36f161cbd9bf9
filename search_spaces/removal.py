"""Removing units: by weight, by rank-reduced weight, with their mean left behind, or at random; how many.

And what is put right afterwards: ``repair``, a chain of ``ops.surgery.repair`` in one word.
"""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import BaseTrial

from network_surgery.ops import EigenRemove, MeanReplace, MinWeight, Operation, RandomRemove, Schedule, SurgeryError
from network_surgery.ops.signals.replacement import REPLACEMENTS
from network_surgery.ops.signals.unit_scores import SCORES
from network_surgery.search_spaces.placement import EPOCHS, Layers, place, sample

NAMES = ("eigen_remove", "mean_replace", "min_weight")
#: What nobody would use, and others are held against.
CONTROLS = ("random_remove",)
#: What EigenRemove's δ is: the fraction of rank that stays, or the least singular value that does.
DELTAS = ("rank", "threshold")
#: Connection sensitivity is for networks that have not been trained.
TRIED = tuple(score for score in SCORES if score != "snip")
#: Those of them that are no control.
USED = tuple(score for score in TRIED if score != "random")
#: Scores that replace a unit themselves, so that the replacement matters even where nothing of it is left behind.
REPLACING = ("mrs", "mrp")
#: What ``repair`` may be: the chain's steps joined by ``+``.
REPAIRS = ("none", "bias", "least_squares", "batchnorm", "least_squares+batchnorm")


def operation(trial: BaseTrial, name: str, controls: bool = False, keep: float | None = None) -> Operation:
    """The named removal with its hyperparameters: ``keep``, unless it is given; for EigenRemove ``delta``, by that
    ``rank`` or ``singular_threshold``, and ``weights``; for MeanReplace ``score`` (``controls``: random scores, too),
    ``bias_propagation`` and, where either makes use of it, ``replacement``.
    """
    keep = sample(trial, "keep", 0.2, 0.9) if keep is None else keep
    if name == "eigen_remove":
        by_rank = trial.suggest_categorical("delta", DELTAS) == "rank"
        rank = sample(trial, "rank", 1 / 16, 1.0, log=True) if by_rank else None
        threshold = None if by_rank else sample(trial, "singular_threshold", 0.03, 3.0, log=True)
        weights = trial.suggest_categorical("weights", ("original", "reduced"))
        return EigenRemove(keep, rank, weights, threshold=threshold)
    if name == "mean_replace":
        score = trial.suggest_categorical("score", TRIED if controls else USED)
        chosen = MeanReplace(keep, score, bias_propagation=trial.suggest_categorical("bias_propagation", (True, False)))
        if chosen.bias_propagation or score in REPLACING:
            chosen = replace(chosen, replacement=trial.suggest_categorical("replacement", REPLACEMENTS))
        return chosen
    if name == "min_weight":
        return MinWeight(keep)
    if name == "random_remove":
        return RandomRemove(keep)
    raise SurgeryError(f"there is no removal {name!r}; there are {', '.join((*NAMES, *CONTROLS))}")


def repair(trial: BaseTrial, chosen: Operation) -> tuple[str, ...]:
    """The chain of repairs that follows a removal: ``repair``, or ``repair_reduced`` with fewer choices.

    Where the units that stay do not stay as they are (EigenRemove with reduced weights), nothing can be refitted: only
    BatchNorm's statistics can be estimated anew. That is a parameter of its own, because the choices of one parameter
    are the same in every trial.
    """
    if isinstance(chosen, EigenRemove) and chosen.weights == "reduced":
        name = trial.suggest_categorical("repair_reduced", ("none", "batchnorm"))
    else:
        name = trial.suggest_categorical("repair", REPAIRS)
    return () if name == "none" else tuple(name.split("+"))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS, *, controls: bool = False) -> Schedule:
    """A schedule of removals: ``op``, its own hyperparameters (see ``operation``), ``repair`` and the placement.

    ``controls``: random units, too.
    """
    chosen = operation(trial, trial.suggest_categorical("op", NAMES + CONTROLS * controls), controls)
    return place(trial, layers, chosen, epochs, repair=repair(trial, chosen))

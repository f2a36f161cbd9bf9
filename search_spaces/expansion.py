"""Adding units: as shares of old ones, by their gradient or with zero weights; how many."""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import GradMax, Operation, Schedule, SurgeryError, WeakExpand, ZeroExpand
from network_surgery.search_spaces.placement import EPOCHS, Layers, place, sample

NAMES = ("weak_expand", "grad_max")
#: What nobody would use, and others are held against.
CONTROLS = ("zero_expand",)
#: The noise on copies.
NOISE = (0.0, 0.01, 0.1)


def names(layers: Layers) -> tuple[str, ...]:
    """The expansions that all of these layers can have.

    A network with attention has a norm over its stream, where GradMax could not hold what it promises.
    """
    return tuple(name for name in NAMES if name != "grad_max" or not any(":" in layer for layer in layers))


def operation(trial: BaseTrial, name: str) -> Operation:
    """The named expansion with its hyperparameters: ``grow``; for WeakExpand ``split`` and ``noise``, for GradMax
    ``scale``.
    """
    grow = sample(trial, "grow", 0.1, 1.0)
    if name == "weak_expand":
        split = trial.suggest_categorical("split", ("equal", "uneven", "signed"))
        return WeakExpand(grow, split, noise=trial.suggest_categorical("noise", NOISE))
    if name == "grad_max":
        return GradMax(grow, sample(trial, "scale", 0.3, 3.0, log=True))
    if name == "zero_expand":
        return ZeroExpand(grow)
    raise SurgeryError(f"there is no expansion {name!r}; there are {', '.join((*NAMES, *CONTROLS))}")


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS, *, controls: bool = False) -> Schedule:
    """A schedule of expansions: ``op``, its own hyperparameters (see ``operation``) and the placement.

    ``controls``: dead units, too.
    """
    name = trial.suggest_categorical("op", names(layers) + CONTROLS * controls)
    return place(trial, layers, operation(trial, name), epochs)

"""A network for a budget: which removal takes it there, in how many turns, and how the layers share what is left.

The budget is met exactly, whatever else is chosen, so that a search compares ways to one size (``ops.allocation``). A
budget that says nothing of parameters or FLOPs leaves it to the search how much of the parameters stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from optuna.trial import BaseTrial

from network_surgery.ops import Allocation, Schedule
from network_surgery.ops.schedule import Moment, Step
from network_surgery.search_spaces import removal
from network_surgery.search_spaces.placement import EPOCHS, Layers, brief, kind, sample, turns

#: How the layers share the budget: ratios that are searched, the same for all, or by what ``ops.allocation`` measures.
ALLOCATE = ("searched", "uniform", "redundancy", "saliency", "sensitivity")
#: Up to this number each layer has a ratio of its own, otherwise each kind of layer that a network repeats.
FEW = 8
MOST_TURNS = 3


def suggest(
    trial: BaseTrial,
    layers: Layers,
    epochs: int = EPOCHS,
    *,
    budget: Mapping[str, float] | None = None,
    controls: bool = False,
) -> Schedule:
    """A schedule of removals that ends at the ``budget``, fractions of the network's ``parameters`` and ``flops``.

    It chooses ``op``, its own hyperparameters (see ``removal.operation``), ``repair``, ``allocate`` (with ``ratio_…``
    of every layer where that is ``searched``), ``first_epoch``, ``times`` and ``every``; without a budget of these two
    also ``parameters``, the fraction of them that stays. Each of several turns takes the same part of what is there.
    """
    names = removal.NAMES + removal.CONTROLS * controls
    chosen = removal.operation(trial, trial.suggest_categorical("op", names), controls, keep=1.0)
    repair = removal.repair(trial, chosen)
    wanted = dict(budget or {}) or {"parameters": sample(trial, "parameters", 0.02, 0.9, log=True)}
    moments = turns(trial, epochs, MOST_TURNS)
    by = trial.suggest_categorical("allocate", ALLOCATE)
    method = ratios(trial, layers, len(moments)) if by == "searched" else by
    steps = []
    for turn, epoch in enumerate(moments, 1):
        now = {name: share if turn == len(moments) else brief(share ** (turn / len(moments)))
               for name, share in wanted.items()}  # fmt: skip
        steps.append(Step(Moment(epoch), "*", chosen, repair, allocation=Allocation(now, method)))
    return Schedule(tuple(steps))


def ratios(trial: BaseTrial, layers: Layers, times: int) -> dict[str, float]:
    """Layer, or kind of layers → the share of it that stays beside those of the others; of each of ``times`` turns."""
    names = list(layers) if len(layers) <= FEW else list(dict.fromkeys(map(kind, layers)))
    found = {name: sample(trial, f"ratio_{re.sub(r'[^0-9a-zA-Z]', '_', name)}", 0.1, 1.0, log=True) for name in names}
    return {name: brief(ratio ** (1 / times)) for name, ratio in found.items()}

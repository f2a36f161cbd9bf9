"""What can be done to a network while it trains, and what it does to it.

>>> import torch
>>> from ops import Anatomy, MinWeight, operate
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> optimizer = torch.optim.Adam(net.parameters())
>>> plan = operate(Anatomy(net, torch.zeros(2, 4))["0"], MinWeight(keep=0.5), optimizer)
>>> plan.units_before, plan.units_after, net[0].weight.shape
(8, 4, torch.Size([4, 4]))
"""

from ops.anatomy import Anatomy, HiddenLayer
from ops.architecture import adopt, describe, load, save
from ops.attention import free_attention
from ops.compact import Compact, compact
from ops.dead_units import RemoveDead, Revive, dead_units, frozen_units
from ops.eigen_remove import EigenRemove
from ops.errors import SurgeryError
from ops.masks import take_over_masks, without_masks
from ops.mean_replace import MeanReplace
from ops.min_weight import MinWeight
from ops.operate import operate
from ops.operation import Operation
from ops.optimizer_keys import register_state
from ops.pcns import PCNS
from ops.plan import Plan
from ops.prediction import Prediction, predicted_loss_change
from ops.prune_weights import PruneWeights
from ops.random_remove import RandomRemove
from ops.schedule import Condition, Moment, Schedule, Step
from ops.signals import Signals
from ops.surgery import apply, trial_surgery
from ops.unit_scores import unit_scores
from ops.verification import measure
from ops.weak_expand import WeakExpand
from ops.weight_scores import weight_scores
from ops.wrappers import inner, rewrap
from ops.zero_expand import ZeroExpand

OPERATIONS: dict[str, type[Operation]] = {
    "compact": Compact,
    "eigen_remove": EigenRemove,
    "mean_replace": MeanReplace,
    "min_weight": MinWeight,
    "pcns": PCNS,
    "prune_weights": PruneWeights,
    "random_remove": RandomRemove,
    "remove_dead": RemoveDead,
    "revive": Revive,
    "weak_expand": WeakExpand,
    "zero_expand": ZeroExpand,
}

__all__ = [
    "OPERATIONS", "PCNS", "Anatomy", "Compact", "Condition", "EigenRemove", "HiddenLayer", "MeanReplace", "MinWeight",
    "Moment", "Operation", "Plan", "Prediction", "PruneWeights", "RandomRemove", "RemoveDead", "Revive", "Schedule",
    "Signals", "Step", "SurgeryError", "WeakExpand", "ZeroExpand", "adopt", "apply", "compact", "dead_units",
    "describe", "free_attention", "frozen_units", "inner", "load", "measure", "operate", "predicted_loss_change",
    "register_state", "rewrap", "save", "take_over_masks", "trial_surgery", "unit_scores", "weight_scores",
    "without_masks",
]  # fmt: skip

"""What can be done to a network while it trains, and what it does to it.

>>> import torch
>>> from network_surgery.ops import Anatomy, MinWeight, operate
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> optimizer = torch.optim.Adam(net.parameters())
>>> plan = operate(Anatomy(net, torch.zeros(2, 4))["0"], MinWeight(keep=0.5), optimizer)
>>> plan.units_before, plan.units_after, net[0].weight.shape
(8, 4, torch.Size([4, 4]))
"""

from network_surgery.ops.allocation import Allocation, Size, allocate, size
from network_surgery.ops.anatomy import Anatomy, HiddenLayer
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.architecture import adopt, describe
from network_surgery.ops.network.attention import free_attention
from network_surgery.ops.network.carried import carry_architecture
from network_surgery.ops.network.files import load, save, saved_bytes
from network_surgery.ops.network.leaving import constructor_arguments, without_surgery
from network_surgery.ops.network.masks import take_over_masks, without_masks
from network_surgery.ops.network.optimizer_keys import register_state
from network_surgery.ops.network.wrappers import inner, rewrap
from network_surgery.ops.operation import Operation
from network_surgery.ops.operations import OPERATIONS
from network_surgery.ops.operations.collapse import Collapse
from network_surgery.ops.operations.compact import Compact, compact
from network_surgery.ops.operations.dead_units import RemoveDead, Revive, dead_units, frozen_units
from network_surgery.ops.operations.deepen import Deepen
from network_surgery.ops.operations.drop_block import DropBlock
from network_surgery.ops.operations.eigen_remove import EigenRemove
from network_surgery.ops.operations.fastfood import Fastfood
from network_surgery.ops.operations.grad_max import GradMax
from network_surgery.ops.operations.hash_weights import HashWeights
from network_surgery.ops.operations.mean_replace import MeanReplace
from network_surgery.ops.operations.min_weight import MinWeight
from network_surgery.ops.operations.pcns import PCNS
from network_surgery.ops.operations.predict_weights import PredictWeights
from network_surgery.ops.operations.prune_weights import PruneWeights
from network_surgery.ops.operations.random_edges import RandomEdges
from network_surgery.ops.operations.random_remove import RandomRemove
from network_surgery.ops.operations.share_weights import ShareWeights
from network_surgery.ops.operations.stretch import Stretch
from network_surgery.ops.operations.tri_factorize import TriFactorize
from network_surgery.ops.operations.weak_expand import WeakExpand
from network_surgery.ops.operations.zero_expand import ZeroExpand
from network_surgery.ops.plan import Plan
from network_surgery.ops.schedule import Condition, Moment, Schedule, Step
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.signals.unit_scores import unit_scores
from network_surgery.ops.signals.weight_scores import weight_scores
from network_surgery.ops.surgery.materialize import materialize
from network_surgery.ops.surgery.operate import operate
from network_surgery.ops.surgery.prediction import Prediction, predicted_loss_change
from network_surgery.ops.surgery.surgery import apply, trial_surgery
from network_surgery.ops.surgery.verification import measure

__all__ = [
    "OPERATIONS",
    "PCNS",
    "Allocation",
    "Anatomy",
    "Collapse",
    "Compact",
    "Condition",
    "Deepen",
    "DropBlock",
    "EigenRemove",
    "Fastfood",
    "GradMax",
    "HashWeights",
    "HiddenLayer",
    "MeanReplace",
    "MinWeight",
    "Moment",
    "Operation",
    "Plan",
    "PredictWeights",
    "Prediction",
    "PruneWeights",
    "RandomEdges",
    "RandomRemove",
    "RemoveDead",
    "Revive",
    "Schedule",
    "ShareWeights",
    "Signals",
    "Size",
    "Step",
    "Stretch",
    "SurgeryError",
    "TriFactorize",
    "WeakExpand",
    "ZeroExpand",
    "adopt",
    "allocate",
    "apply",
    "carry_architecture",
    "compact",
    "constructor_arguments",
    "dead_units",
    "describe",
    "free_attention",
    "frozen_units",
    "inner",
    "load",
    "materialize",
    "measure",
    "operate",
    "predicted_loss_change",
    "register_state",
    "rewrap",
    "save",
    "saved_bytes",
    "size",
    "take_over_masks",
    "trial_surgery",
    "unit_scores",
    "weight_scores",
    "without_masks",
    "without_surgery",
]  # fmt: skip

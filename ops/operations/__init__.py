"""What can be done to a network while it trains: one file a method.

``OPERATIONS``: every operation by the name that schedules, search spaces and the command line call it by.
"""

from network_surgery.ops.operation import Operation
from network_surgery.ops.operations.compact import Compact
from network_surgery.ops.operations.dead_units import RemoveDead, Revive
from network_surgery.ops.operations.eigen_remove import EigenRemove
from network_surgery.ops.operations.mean_replace import MeanReplace
from network_surgery.ops.operations.min_weight import MinWeight
from network_surgery.ops.operations.pcns import PCNS
from network_surgery.ops.operations.prune_weights import PruneWeights
from network_surgery.ops.operations.random_remove import RandomRemove
from network_surgery.ops.operations.weak_expand import WeakExpand
from network_surgery.ops.operations.zero_expand import ZeroExpand

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

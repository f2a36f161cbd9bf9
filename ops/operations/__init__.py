"""What can be done to a network while it trains: one file a method.

``OPERATIONS``: every operation by the name that schedules, search spaces and the command line call it by. One that
lies elsewhere is called by its reference, ``MODULE:CLASS``.
"""

from dataclasses import is_dataclass
from typing import Any

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.operation import Operation
from network_surgery.ops.operations.collapse import Collapse
from network_surgery.ops.operations.compact import Compact
from network_surgery.ops.operations.dead_units import RemoveDead, Revive
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
from network_surgery.ops.references import reference_to, resolve

OPERATIONS: dict[str, type[Operation]] = {
    "collapse": Collapse,
    "compact": Compact,
    "deepen": Deepen,
    "drop_block": DropBlock,
    "eigen_remove": EigenRemove,
    "fastfood": Fastfood,
    "grad_max": GradMax,
    "hash_weights": HashWeights,
    "mean_replace": MeanReplace,
    "min_weight": MinWeight,
    "pcns": PCNS,
    "predict_weights": PredictWeights,
    "prune_weights": PruneWeights,
    "random_edges": RandomEdges,
    "random_remove": RandomRemove,
    "remove_dead": RemoveDead,
    "revive": Revive,
    "share_weights": ShareWeights,
    "stretch": Stretch,
    "tri_factorize": TriFactorize,
    "weak_expand": WeakExpand,
    "zero_expand": ZeroExpand,
}


def operation_class(name: str) -> type[Operation]:
    """The operation that a name of ``OPERATIONS`` or a reference means.

    >>> operation_class("network_surgery.ops.operations.pcns:PCNS") is operation_class("pcns")
    True

    Raises:
        SurgeryError: there is none.
    """
    if name in OPERATIONS:
        return OPERATIONS[name]
    if ":" not in name:
        raise SurgeryError(f"there is no operation {name!r}; there are {', '.join(OPERATIONS)}, or MODULE:CLASS")
    kind: Any = resolve(name, "operation")
    if not (isinstance(kind, type) and issubclass(kind, Operation) and is_dataclass(kind)):
        raise SurgeryError(f"the operation {name} must be a dataclass and a subclass of ops.Operation")
    return kind


def operation_name(kind: type[Operation]) -> str:
    """The name by which ``operation_class`` returns this operation. Raises SurgeryError where none can."""
    return next((name for name, known in OPERATIONS.items() if known is kind), None) or reference_to(kind)

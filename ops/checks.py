"""What must be true of a network and its inputs before anything is tried with them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree

from ops.errors import SurgeryError


def check_real(model: nn.Module, inputs: Any = ()) -> None:
    """Raises SurgeryError unless every parameter, buffer and input has a size and holds values."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    _check(tensor, f"the network's {name}" if module is model else f"{name} of a {_kind(module)}")
    for leaf in _pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            _check(leaf, "the batch")


def _check(tensor: Tensor, what: str) -> None:
    if is_lazy(tensor):
        raise SurgeryError(f"{what} has no size yet: run the network once before")
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        raise SurgeryError(
            f"{what} is a {'meta' if type(tensor) in (Tensor, nn.Parameter) else 'fake'} tensor and holds no values: "
            "surgery needs a network and a batch that can be run"
        )


def _kind(module: nn.Module) -> str:
    return type(module).__name__

"""What must be true of a network and its inputs before anything is tried with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree

from network_surgery.ops.anatomy.running import flat_tensors
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.double import has_double
from network_surgery.ops.network.expressed import tensors_of

if TYPE_CHECKING:
    from network_surgery.ops.anatomy import HiddenLayer


def check_real(model: nn.Module, inputs: Any = ()) -> None:
    """Raises SurgeryError unless every parameter, buffer and input has a size and holds values, where float64 is."""
    tensors = list(tensors_of(model))
    for device in {tensor.device for _, tensor in tensors}:
        if not has_double(device):
            raise SurgeryError(
                f"the network is on {device}, which has no float64, and operations calculate in it: move network, "
                "optimizer state and inputs to the CPU to operate, and back to train"
            )
    for name, tensor in tensors:
        _check(tensor, name)
        if isinstance(tensor, nn.Parameter) and tensor.is_inference():
            raise SurgeryError(
                f"{name} was made in torch.inference_mode and can neither be trained nor changed: make the network "
                "outside of it"
            )
    for leaf in flat_tensors(inputs):
        _check(leaf, "the batch")


def check_current(layer: HiddenLayer) -> None:
    """Raises SurgeryError where the network has changed by other hands since the layer's anatomy was taken."""
    anatomy = layer.anatomy
    if layer.places and all(each is not layer for each in anatomy.values()):
        raise SurgeryError(
            f"layer {layer.name} is of before modules were replaced: take it from the anatomy again, and propose again"
        )
    modules = dict(anatomy.model.named_modules())
    for name in anatomy.holders(layer) if layer.places else list(anatomy.modules):
        if modules.get(name) is not anatomy.modules[name] and not name.partition("parametrizations")[1]:
            done = "replaced" if name in modules else "removed"
            raise SurgeryError(
                f"layer {layer.name}: the module {name} has been {done} since the anatomy was taken; take it anew"
            )
    for place in layer.places:
        module, attribute = anatomy.owner(place.tensor), place.tensor.rpartition(".")[2]
        if not isinstance(getattr(module, attribute, None), Tensor):
            raise SurgeryError(f"layer {layer.name}: {place.tensor} is gone since the anatomy was taken; take it anew")


def usable(tree: Any) -> Any:
    """Inputs or targets that autograd may remember: those made in ``torch.inference_mode`` are copied."""
    if not any(isinstance(x, Tensor) and x.is_inference() for x in _pytree.tree_leaves(tree)):
        return tree
    with torch.inference_mode(False):
        return _pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) and x.is_inference() else x, tree)


def _check(tensor: Tensor, what: str) -> None:
    if is_lazy(tensor):
        raise SurgeryError(f"{what} has no size yet: run the network once before its anatomy is taken")
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        raise SurgeryError(
            f"{what} is a {'meta' if type(tensor) in (Tensor, nn.Parameter) else 'fake'} tensor and holds no values: "
            "surgery needs a network and a batch that can be run on a real device"
        )


def find_scripted(model: nn.Module) -> dict[str, str]:
    """Parameter or buffer of a scripted or traced part → why it cannot be operated on."""
    inside = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    held = {id(t) for m in inside for table in (m._parameters, m._buffers) for t in table.values()}
    reason = "it is in a part that torch.jit has scripted or traced: operate first, script afterwards"
    return {name: reason for name, tensor in tensors_of(model) if id(tensor) in held} if held else {}

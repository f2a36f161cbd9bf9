"""Dropout that becomes weaker as connections go: less is left to overfit with.

Source: Han et al. 2015, *Learning both weights and connections for efficient neural networks*, section 3.2:
``D_r = D_o √(C_ir / C_io)`` with the connections ``C`` of the layer whose units are dropped, before and after pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.expressed import tensors_of

#: Marks a module whose ratio is no longer that of its factory.
SCALED = "_surgery_ratio"


def scale_ratios(model: nn.Module, example: Any, left: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """The new ratio of each dropout module whose units one of these weights made.

    ``left``: by weight, how many of its connections stay, and how many there were. Which weight it is shows in a
    forward pass of the ``example``: it is that of the last module that ran before, all of them if it has several. A
    module that runs several times counts with its first one. Dropout by a function of torch's or inside of attention
    has no module, and stays.
    """
    owners: dict[nn.Module, tuple[int, int]] = {}
    modules, tensors = dict(model.named_modules()), {name: tensor for name, tensor in tensors_of(model)}
    for name in left.keys() & tensors.keys():
        owner, (stay, before) = modules[name.rpartition(".")[0]], left[name]
        others = owners.get(owner, (0, 0))
        owners[owner] = others[0] + stay, others[1] + before
    found: dict[str, float] = {}
    last: list[nn.Module] = []

    def note_layer(module: nn.Module, args: Any, out: Any) -> None:
        last[:] = [module]

    def note_dropout(path: str, module: _DropoutNd, args: Any, out: Any) -> None:
        if last and last[0] in owners:
            stay, before = owners[last[0]]
            found.setdefault(path, module.p * (stay / max(1, before)) ** 0.5)

    weighted = {modules[name.rpartition(".")[0]] for name, tensor in tensors.items() if tensor.dim() > 1}
    with plainly(model):
        hooks = [module.register_forward_hook(note_layer) for module in weighted]
        dropouts = [(path, module) for path, module in modules.items() if isinstance(module, _DropoutNd)]
        hooks += [module.register_forward_hook(partial(note_dropout, path)) for path, module in dropouts]
        try:
            call(model, example)
        finally:
            for hook in hooks:
                hook.remove()
    return {path: ratio for path, ratio in found.items() if ratio != modules[path].p}


def set_ratio(module: nn.Module, ratio: float) -> Callable[[], None]:
    """Gives a dropout module a ratio that its architecture remembers; returns what undoes it.

    Raises:
        SurgeryError: it is no dropout, or the ratio no number from 0 to 1.
    """
    if not isinstance(module, _DropoutNd) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
        raise SurgeryError(f"a {type(module).__name__} cannot have the dropout ratio {ratio!r}")
    before = dict(vars(module))
    module.p = ratio
    setattr(module, SCALED, True)

    def undo() -> None:
        module.p = before["p"]
        if SCALED not in before:
            delattr(module, SCALED)

    return undo


def scaled_ratios(model: nn.Module) -> dict[str, float]:
    """The dropout modules that have been given a ratio, and what it is."""
    modules = model.named_modules()
    return {
        path: float(module.p) for path, module in modules if isinstance(module, _DropoutNd) and SCALED in vars(module)
    }

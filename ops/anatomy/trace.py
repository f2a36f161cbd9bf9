"""One forward pass, watched from below: every aten call also runs on the axes.

``Trace`` is a dispatch mode. It sees each operator of the forward pass with its tensors, asks ``rules`` what the
operator does to axes, and records where units are made, kept and read. What no rule knows freezes its inputs: an
unknown operator costs a layer, never a wrong cut.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops.anatomy.axes import Factor, freeze, is_fixed, product, total, unite
from network_surgery.ops.anatomy.calls import Axes, Twin, constant, tensors_in
from network_surgery.ops.anatomy.facts import Facts
from network_surgery.ops.anatomy.recall import Recall
from network_surgery.ops.anatomy.rules import apply_rule
from network_surgery.ops.anatomy.running import call, flat_tensors
from network_surgery.ops.anatomy.steady import draws
from network_surgery.ops.anatomy.watch import Watch
from network_surgery.ops.network.attention import FreeAttention, can_be_freed
from network_surgery.ops.network.expressed import raw

#: The share of a network's modules that may have run when a pass is worth beginning anew.
EARLY = 1 / 2
#: Why the units of the network's output cannot be operated on.
OUTPUT = "it is the network's output"


class Trace(Facts, TorchDispatchMode):
    """Carries axes through one forward pass of a network.

    Attributes, besides its ``Facts``: ``entered`` the modules that the last run passed, ``draws`` the axes of the
    random numbers that it drew; ``watch`` what the network's own code reads of modes and sizes; ``output`` what the
    network answered. ``recall``: what the run before computed, if that is to be used; ``new``: the last run did
    something else, ``replaced``: modules that do the same in both modes were taken for what they answered before.
    """

    def __init__(self, model: nn.Module, batch: int, remember: bool | Container[str] = False) -> None:
        super().__init__(model, batch, remember)
        self.output: Any = None
        self.entered: list[nn.Module] = []
        self.draws: list[Axes] = []
        self.early = EARLY * sum(1 for _ in model.modules())
        self.recall: Recall | None = None
        self.new = self.replaced = False
        self._given: list[object] = []
        self.watch = Watch(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out, known = (func(*args, **kwargs), False) if self.recall is None else self.recall.call(func, args, kwargs)
        self.new |= not known and not (self._modules and self._modules[-1] in self.watch.settled)
        apply_rule(self, func, args, kwargs, out)
        if draws(func):
            self.draws.append(self.twin(tensors_in((out,))[0]).axes)
        return out

    def run(self, example: Any) -> list[Tensor]:
        """Runs the model once; returns the tensors of its output, whose axes are then frozen."""
        leave: Any = lambda module, args, out: self._leave(module, out)  # noqa: E731
        hooks = [
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
            nn.modules.module.register_module_buffer_registration_hook(self._registered),
            nn.modules.module.register_module_parameter_registration_hook(self._registered),
        ]
        self.entered, self.draws, self._given = [], [], []
        self.new = self.replaced = False
        try:
            for tensor in flat_tensors(example):
                self.mark(tensor, Twin(constant(tensor), live=True))
            with self.watch, self:
                self.output = call(self.model, example)
        finally:
            for hook in hooks:
                hook.remove()
        self.watch.settle()
        output = flat_tensors(self.output)
        for twin in map(self.twin, output):
            twin.met()
            if twin.making is not None:
                twin.making.meet(None)
            if twin.source is not None:
                self.account.use(twin.source, None)
            for axis in twin.axes:
                freeze(axis, OUTPUT)
        return output

    @property
    def missed(self) -> list[str]:
        """The parameters that were not met."""
        return [n for n, t in self._tensors.items() if isinstance(t, nn.Parameter) and n not in self.axes]

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._modules.append(module)
        self.entered.append(module)
        self.watch.hasty &= len(self.entered) <= self.early
        small = self.watch.enter(module, args)
        self._given.append(self.recall.entering(args) if small and self.recall is not None else None)
        if isinstance(module, FreeAttention):
            self._tell_heads(module)
        elif isinstance(module, nn.MultiheadAttention):  # its forward pass computes heads from the width of its input
            remedy = "; ops.free_attention(model) frees it" if can_be_freed(module) else ""
            self._freeze_module(module, f"nn.MultiheadAttention takes its heads from its input{remedy}")
        if isinstance(module, nn.RNNBase) and module.proj_size:
            self._freeze_module(module, "torch knows a projected recurrent layer by its sizes")

    def _registered(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        """What the first forward pass registers follows no edit, as it is not there yet (or of another pass)."""
        if tensor is None or module._buffers.get(name) is not None or module._parameters.get(name) is not None:
            return
        axes = tuple(Factor(n) if is_fixed(a) else a for n, a in zip(tensor.shape, self.twin(tensor).axes, strict=True))
        for axis in axes:
            freeze(axis, f"a forward pass registers {name!r}: run the network once before its anatomy is taken")
        self.mark(tensor, Twin(axes))

    def _leave(self, module: nn.Module, out: Any) -> Tensor | None:
        """A module has run; returns its answer in the run before, if it is known to do the same."""
        self._modules.pop()
        self.watch.leave()
        given = self._given.pop()
        if given is None or self.recall is None:
            return None
        found = self.recall.passed(module, given) if module in self.watch.settled else None
        if found is None:
            self.recall.leaving(module, given, out)
            return None
        self.replaced = True
        return found

    def _freeze_module(self, module: nn.Module, reason: str) -> None:
        for parameter in module.parameters():
            self.freeze_parameter(self._names[id(parameter)], reason)

    def _tell_heads(self, module: FreeAttention) -> None:
        """Heads × width on its packed axes: pieces that happen to be of one size are not taken for equal ones."""
        keys, values = module.widths
        heads = Factor(module.num_heads, kind="heads", cut=True)
        queried, made = (product(heads, Factor(n // module.num_heads, cut=True)) for n in (keys, values))
        packed = total(queried, queried, made)
        for tensor, dim, axis in (
            (raw(module, "in_proj_weight"), 0, packed), (module.in_proj_bias, 0, packed),
            (raw(module.out_proj, "weight"), 1, made),
        ):  # fmt: skip
            if id(tensor) in self._names:
                unite(self.axes_of(self._names[id(tensor)])[dim], axis)
        self.written.setdefault((module, "num_heads", None), []).append(heads)

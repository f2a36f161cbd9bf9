"""What is known of the tensors of a network, and what is learnt of its weights while it runs; rules write it."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from network_surgery.ops.anatomy.axes import Axis, Factor, canonical, freeze, is_fixed, size
from network_surgery.ops.anatomy.calls import COMPUTED, VECTOR, Axes, Call, Twin, Use, constant
from network_surgery.ops.anatomy.computed import reason
from network_surgery.ops.anatomy.sinks import Making, Sinks
from network_surgery.ops.network.attention import FreeAttention
from network_surgery.ops.network.expressed import tensors_of
from network_surgery.ops.network.masks import masks_of


class Facts:
    """The axes of every tensor that ``model`` meets, and how its parameters are used.

    Attributes: ``axes`` the axes of every parameter and buffer that was met; ``uses`` ``(tensor, axis) → Use``s;
    ``calls`` weight → how often each of its elements is used per sample (for FLOPs); ``products`` the axes of every
    product of two activations; ``account`` where a constant can go (``sinks``); ``padding`` weight → the share of
    padding in what a convolution meets; ``chains`` weight → operators between the units' birth and this reader;
    ``written`` numbers that modules keep as attributes and that were found to be the size of an axis, ``given`` those
    of them that say where a tensor is cut; ``steered``: the network hands values that depend on its input to Python,
    ``sized``: or its tensors may be as large as such values say; ``seen``, if it is to ``remember`` (all weights, or
    some by name), weight → copies of what it was multiplied with, the dimension that is summed over last.
    """

    def __init__(self, model: nn.Module, batch: int, remember: bool | Container[str] = False) -> None:
        super().__init__()
        self.model = model
        self.remember = remember
        self.seen: dict[str, list[Tensor]] = {}
        self.batch = max(batch, 1)
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.uses: dict[tuple[str, int], list[Use]] = {}
        self.calls: dict[str, float] = {}
        self.products: list[tuple[Axis, ...]] = []
        self.account = Sinks()
        self.padding: dict[str, float] = {}
        self.chains: dict[str, tuple[str, ...]] = {}
        self.written: dict[tuple[nn.Module, str, int | None], list[Axis]] = {}
        self.given: set[tuple[nn.Module, str, int | None]] = set()
        self.steered = self.sized = False
        self._named: dict[int, list[tuple[str, Tensor]]] = {}
        self._tensors = dict(tensors_of(model))
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}
        self._masks = {id(mask): name for name, mask in masks_of(model).items()}
        for name, tensor in self._tensors.items():
            if tensor.layout == torch.strided:
                self._named.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
        self._alone = {id(here[0][1]) for here in self._named.values() if len(here) == 1 and here[0][1].numel()}
        self._twins: dict[int, tuple[Twin, weakref.ref[Tensor] | None]] = {}
        self._modules: list[nn.Module] = []  # those that are running, the innermost one last

    # -- what is known of a tensor -----------------------------------------------------------------------------------

    def twin(self, tensor: Tensor) -> Twin:
        """What is known of a tensor; of one that was never met, that it is constant."""
        known = self._twins.get(id(tensor))
        if known is not None:
            return known[0]
        return self._parameter(tensor) or Twin(constant(tensor))

    def carries(self, tensor: Tensor) -> bool:
        """Whether what is known of a tensor is kept for whoever meets it next."""
        return id(tensor) in self._twins

    def mark(self, tensor: Tensor, twin: Twin) -> None:
        key = id(tensor)  # unique for as long as the tensor lives; then its twin goes, too
        self._twins[key] = twin, weakref.ref(tensor, partial(self._twins.pop, key))

    def masks(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are a masked parameter and its mask: what comes of their product is that parameter still."""
        if len(tensors) != 2 or id(tensors[1]) not in self._masks:
            return False
        return self.twin(tensors[0]).source == self._masks[id(tensors[1])]

    def constant(self, tensor: Tensor) -> Twin:
        """The twin of a tensor that is used for its values; a buffer is then constant."""
        twin = self.twin(tensor)
        if twin.source is None or isinstance(self._tensors[twin.source], nn.Parameter):
            return twin
        for axis in twin.axes:
            freeze(axis, "its values are used, not one for each unit")
        return Twin(constant(tensor))

    def _parameter(self, tensor: Tensor) -> Twin | None:
        if id(tensor) in self._alone:  # and lives as long as the network does
            twin = self._named_twin(self._names[id(tensor)])
            self._twins[id(tensor)] = twin, None
            return twin
        if tensor.layout != torch.strided or not tensor.numel():
            return None
        known = self._named.get(tensor.untyped_storage().data_ptr())
        if known is None:
            return None
        for name, base in known:
            if base.data_ptr() == tensor.data_ptr() and base.shape == tensor.shape and base.stride() == tensor.stride():
                twin = self._named_twin(name)
                self.mark(tensor, twin)
                return twin
        for name, _ in known:
            self.freeze_parameter(name, "a view of it is kept outside of the module")
        return None

    def _named_twin(self, name: str) -> Twin:
        axes = self.axes_of(name)
        return Twin(axes, name, tuple(range(len(axes))))

    def axes_of(self, name: str) -> tuple[Axis, ...]:
        if name not in self.axes:
            self.axes[name] = tuple(Factor(n) for n in self._tensors[name].shape)
        return self.axes[name]

    def met(self, tensor: Tensor) -> tuple[Axis, ...] | None:
        """The axes of a parameter or buffer; None where no pass has met it."""
        return self.axes.get(self._names.get(id(tensor), ""))

    def axes_if_known(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of a parameter or buffer; none of any other tensor."""
        return self.axes_of(self._names[id(tensor)]) if id(tensor) in self._names else ()

    def shape(self, name: str) -> torch.Size:
        return self._tensors[name].shape

    # -- what is learnt ------------------------------------------------------------------------------------------------

    def use(
        self, twin: Twin, dim: int, role: str, fill: float = 0.0, part: Axis | None = None, across: int | None = None
    ) -> None:
        """Notes how the units on one dimension of a parameter (or a view of one) are met."""
        assert twin.source is not None
        origin = twin.origins[dim]
        if origin is None:
            freeze(twin.axes[dim], f"{twin.source} is used in a shape that mixes its axes")
            return
        use = Use(twin.axes[dim] if part is None else part, role, fill, across)
        known = self.uses.setdefault((twin.source, origin), [])
        if use not in known:
            known.append(use)

    def attach(self, twin: Twin, fill: float = 0.0) -> None:
        """A parameter that acts on each unit by itself has an entry or a slice for each of them."""
        for dim, axis in enumerate(twin.axes if twin.source is not None else ()):
            if size(axis) > 1:
                self.use(twin, dim, VECTOR, fill)

    def make(self, call: Call, weight: Twin, outputs: Sequence[int], whole: bool = True) -> None:
        """Notes that a call is a product with a weight; as ``Sinks.make``."""
        if weight.source is not None:
            call.making = self.account.make(weight, outputs, self.shape(weight.source).numel(), whole)
            call.partners[weight.source] = weight.source

    def sink(self, call: Call, making: Making | None, made: Axes, vector: Twin, sign: float = 1.0) -> None:
        """A vector is added to a product that has these axes."""
        if making is None:
            return
        call.held.append(making)
        if vector.source is None:
            return making.meet(None)
        axes = self.axes_of(making.weight)
        sink = making.sink_in(vector, self.shape(vector.source), made, axes, sign)
        making.meet(sink)
        if sink is not None:
            call.partners[sink.tensor] = making.weight
        if call.making is making:  # both in one operator: what comes of it is no bare product any more
            call.making = None

    def count(self, weight: str, times: float) -> None:
        """Each element of a weight is used this number of times for the whole batch."""
        self.calls[weight] = self.calls.get(weight, 0.0) + times / self.batch

    def pad(self, weight: str, share: float) -> None:
        """This share of what a weight is multiplied with is padding."""
        self.padding[weight] = max(share, self.padding.get(weight, 0.0))

    def passed(self, weight: Twin, given: Tensor, dim: int) -> None:
        """A weight reads this tensor, summing over one of its dimensions."""
        if weight.source is None:
            return
        twin = self.twin(given)
        self.chains[weight.source] = twin.chain if twin.maker is not None else ("?",)
        if self.remember is True or (
            self.remember and weight.source in self.remember
        ):  # a copy: work in place may follow
            self.seen.setdefault(weight.source, []).append(given.detach().movedim(dim, -1).clone())

    def refuse(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Freezes everything on these tensors."""
        for tensor in tensors:
            for axis in self.twin(tensor).axes:
                freeze(axis, reason)

    def freeze_parameter(self, name: str, reason: str) -> None:
        for axis in self.axes_of(name):
            freeze(axis, reason)

    def computed(self) -> str:
        """Why what meets a weight that the module that is running computes cannot be operated on."""
        return (reason(self._modules[-1]) if self._modules else None) or COMPUTED

    def write_number(self, attribute: str, axis: Axis) -> None:
        """The module that is running keeps the size of this axis as an attribute."""
        module = self._modules[-1] if self._modules else None
        if module is not None and getattr(module, attribute, None) == size(axis):
            self.written.setdefault((module, attribute, None), []).append(axis)

    def write_down(self, axes: Sequence[Axis], *, given: bool = False) -> None:
        """Notes which numbers of the module that is running are the size of one of these axes.

        ``given``: the operator is given these sizes as numbers, so that such an attribute is where they come from.
        """
        wanted: dict[int, list[Axis]] = {}
        for axis in map(canonical, axes):
            if not is_fixed(axis):
                wanted.setdefault(size(axis), []).append(axis)
        if not wanted or not self._modules or isinstance(self._modules[-1], FreeAttention):  # which is given its heads
            return
        module = self._modules[-1]
        for name, value in vars(module).items():
            if not isinstance(value, (int, tuple, list)):
                continue
            numbers = [(None, value)] if isinstance(value, int) else list(enumerate(value))
            for position, number in numbers:
                if isinstance(number, int) and not isinstance(number, bool) and number > 1 and number in wanted:
                    self.written.setdefault((module, name, position), []).extend(wanted[number])
                    self.given |= {(module, name, position)} if given else set()

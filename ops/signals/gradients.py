"""Gradients of each sample's loss at what every weight is given and at what it makes: one backward pass for all layers.

The backward pass is watched from below, as the anatomy watches the forward pass: where a weight meets the gradient of
what it made, the operator returns that of what it was given. So each reader's share is known by itself, also where
several read one tensor (residual streams), and no module needs to be of a known kind.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.anatomy.products import FACTORS
from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory
from network_surgery.ops.network.expressed import met
from network_surgery.ops.signals.losses import Loss, batch_of, is_batch_first, sample_losses, suit, total

NO_GRADIENT = (
    "the loss has no gradient: the network (or the loss) works under torch.no_grad, detaches what it calculates, or "
    "runs in a kind of checkpoint that autograd cannot look through"
)


@contextlib.contextmanager
def without_checkpoints() -> Iterator[None]:
    """Parts of a network under ``torch.utils.checkpoint`` run plainly, once, for the time of a ``with`` block.

    Reentrant ones (``use_reentrant=True``) know no ``torch.autograd.grad``, and have no gradient at all where nothing
    that they are given has one. Others run once more in the backward pass, with whatever weights there are then.
    """

    def plain(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)

    def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    module: Any = torch.utils.checkpoint
    others = [name for name in vars(module) if name.startswith("_checkpoint_without_reentrant_generator")]
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (module.CheckpointFunction, "apply", plain), *((module, other, nothing) for other in others)
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


class Gradients:
    """``∂ loss of sample k / ∂ h`` for one batch, in evaluation mode and the network's own precision.

    ``inputs`` is what the model takes, ``targets`` and ``loss`` are as in ``ops.signals.losses``, ``wanted`` the names
    of the weights that are looked at. Values belong to the network as it is. Only what depends on the inputs has
    gradients; where those are whole numbers (tokens), what depends on any parameter.

    Raises:
        SurgeryError: the network does not run on the batch, has no gradient, or the loss cannot be had of it.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, targets: Any, wanted: Container[str], loss: Loss | None = None
    ) -> None:
        self._model, self._inputs, self._targets, self._wanted, self._loss = model, inputs, targets, wanted, loss
        self._samples = batch_of(targets, inputs)
        self._batch_first = False
        self._watch = self._backward(inputs, targets)
        self._order: tuple[_Backward, int] | None = None
        self._forward: _Forward | None = None

    def received(self, place: Place, like: list[Tensor]) -> list[Tensor]:
        """At what a reader is given, in the shapes of ``like``: what it was given, the dimension summed over last.

        Raises SurgeryError where the backward pass was not understood there.
        """
        found = self._watch.given.get(place.tensor, [])[::-1]  # what was met last comes back first
        if [x.numel() for x in found] != [x.numel() for x in like]:
            raise SurgeryError(f"the gradient of what {place.tensor} is given is not known")
        return [x.reshape(y.shape) for x, y in zip(found, like, strict=True)]

    def made(self, place: Place) -> list[Tensor]:
        """At what a maker makes, before any bias, the dimension of its units last. Raises as ``received`` does."""
        found = self._watch.made.get(place.tensor, [])
        if not found or any(x.shape[-1] != place.size for x in found):
            raise SurgeryError(f"the gradient of what {place.tensor} makes is not known")
        return found

    def values(self, place: Place) -> list[Tensor]:
        """What a maker makes, in the shapes and the order of ``made``, up to a constant: a bias may be in it or not.

        Costs a forward pass, once for all makers. Raises SurgeryError where what it makes is not known.
        """
        slopes = self.made(place)
        if self._forward is None:
            with plainly(self._model), parametrize.cached():
                self._forward = _Forward(self._model, self._wanted)
                with self._forward:
                    call(self._model, self._inputs)
        known = self._forward.made.get(place.tensor, [])[::-1]  # what was met last comes back first
        if [x.numel() for x in known] != [x.numel() for x in slopes]:
            raise SurgeryError(f"what {place.tensor} makes is not known")
        return [x.reshape(y.shape) for x, y in zip(known, slopes, strict=True)]

    def by_sample(self, layer: HiddenLayer, place: Place, rows: Tensor) -> Tensor:
        """``[units, positions of a unit, rows, …]`` as ``[units, positions of a unit, samples, rows of a sample, …]``.

        Raises SurgeryError where the rows that the place meets do not come sample by sample.
        """
        each, rest = divmod(rows.shape[2], self._samples)
        if rest or (each > 1 and not self._in_order(place)):
            raise SurgeryError(
                f"layer {layer.name}: what {place.tensor} meets is not ordered by samples, the batch first"
            )
        return rows.unflatten(2, (self._samples, each))

    def _in_order(self, place: Place) -> bool:
        """Whether the first sample's loss has gradients in the first rows only."""
        self._order = self._order or self._of_the_first()
        watch, samples = self._order
        found = [*watch.given.get(place.tensor, []), *watch.made.get(place.tensor, [])]
        rows = (x.flatten(0, -2) for x in found)
        return bool(found) and all(not x[math.ceil(len(x) / samples) :].any() for x in rows)

    def _of_the_first(self) -> tuple[_Backward, int]:
        """The gradients of the first sample's loss alone, in a batch of two samples, and how many these were.

        The whole batch is taken where the network does not run on two: it depends on how rows are laid out, which does
        not depend on how many samples there are, and two take a hundredth of the time.
        """

        def shorter(value: Any) -> Any:
            return value[:2] if isinstance(value, Tensor) and value.shape[:1] == (self._samples,) else value

        with contextlib.suppress(SurgeryError):
            inputs, targets = (_pytree.tree_map(shorter, tree) for tree in (self._inputs, self._targets))
            return self._backward(inputs, targets, first=True), min(2, self._samples)
        return self._backward(self._inputs, self._targets, first=True), self._samples

    def _total(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of all samples' losses."""
        self._batch_first = is_batch_first(outputs, self._samples)
        return total(suit(self._loss, outputs, targets)(outputs, targets), self._samples)

    def _first(self, outputs: Any, targets: Any) -> Tensor:
        """A number that hangs on the first sample alone, and on all of its output, even where its loss is flat."""
        if not self._batch_first:
            return sample_losses(outputs, targets, self._loss)[0]
        random = torch.Generator().manual_seed(0)
        rows = [x[0] for x in _pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.dim() and x.requires_grad]
        return torch.stack([(x * torch.randn(x.shape, generator=random).to(x)).sum() for x in rows]).sum()

    def _backward(self, inputs: Any, targets: Any, first: bool = False) -> _Backward:
        """A backward pass of all samples' losses, or of what hangs on the first one."""
        inputs = _pytree.tree_map(_follow, inputs)
        frozen = [p for p in self._model.parameters() if p.is_floating_point() and not p.requires_grad]
        try:
            with (
                plainly(self._model), torch.enable_grad(), parametrize.cached(),
                without_checkpoints(),
            ):  # fmt: skip
                for parameter in frozen:
                    parameter.requires_grad_(True)
                watch = _Backward(self._model, self._wanted)
                outputs = call(self._model, inputs)
                losses = (self._first if first else self._total)(outputs, targets)
                asked = [x for x in _pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.requires_grad]
                if not losses.requires_grad:
                    raise SurgeryError(NO_GRADIENT)
                if not asked:  # gradients of weights, which nobody looks at, take as long again
                    asked = [p for p in self._model.parameters() if p.requires_grad]
                with watch:
                    watch.looked_up(asked, torch.autograd.grad(losses, asked, allow_unused=True))
        except SurgeryError:
            raise
        except Exception as error:  # whatever the foreign forward pass raises
            pass_on_memory(error)
            raise SurgeryError(f"the network's gradients cannot be taken on this batch: {first_line(error)}") from error
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        return watch


def _follow(value: Any) -> Any:
    """An input of the network whose gradient is asked for, so that there is one after frozen weights, too."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_(True)
    return value


class _Backward(TorchDispatchMode):
    """Watches a backward pass. ``given`` and ``made``: weight → gradients, last call first, its own axis last."""

    def __init__(self, model: nn.Module, wanted: Container[str]) -> None:
        super().__init__()
        self.given: dict[str, list[Tensor]] = {}
        self.made: dict[str, list[Tensor]] = {}
        self._lookups: list[tuple[Tensor, Tensor]] = []
        self._every = {
            tensor.untyped_storage().data_ptr(): (name, tensor.numel())
            for name, tensor in met(model)
            if tensor.layout == torch.strided
        }
        self._names = {place: known for place, known in self._every.items() if known[0] in wanted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution_backward":
            weight = self._name(args[2])
            if weight and out[0] is not None:
                self._note(weight, out[0].movedim(1, -1), args[0].movedim(1, -1))
        elif name in FACTORS and out.dim() > 1:
            left, right = args[FACTORS[name] : FACTORS[name] + 2]
            if weight := self._name(right):
                self._note(weight, out, left)
            elif weight := self._name(left):
                self._note(weight, out.movedim(-2, -1), right.movedim(-2, -1))
        elif name == "embedding_dense_backward":
            self._lookups.append((out, args[0]))
        return out

    def looked_up(self, asked: Sequence[Tensor], slopes: Sequence[Tensor | None]) -> None:
        """Notes the gradients at what tables of embeddings made. Their backward pass knows no weight; what it returns
        shows which: the gradient of a table that is met once, as it is.
        """
        for parameter, slope in zip(asked, slopes, strict=True):
            for out, made in self._lookups:
                known = self._every.get(parameter.untyped_storage().data_ptr())
                if known is not None and slope is not None and slope.data_ptr() == out.data_ptr():
                    self.made.setdefault(known[0], []).append(made.detach().clone())

    def _name(self, tensor: Tensor) -> str | None:
        """The parameter that this is a view of, whole."""
        known = self._names.get(tensor.untyped_storage().data_ptr())
        return known[0] if known is not None and known[1] == tensor.numel() else None

    def _note(self, weight: str, given: Tensor, made: Tensor) -> None:
        self.given.setdefault(weight, []).append(given.detach().clone())
        self.made.setdefault(weight, []).append(made.detach().clone())


class _Forward(_Backward):
    """Watches a forward pass. ``made``: weight → what it makes, first call first, its own axis last."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            if weight := self._name(args[1]):
                self._note(weight, args[0], out.movedim(1, -1))
        elif name in FACTORS and out.dim() > 1:
            left, right = args[FACTORS[name] : FACTORS[name] + 2]
            if weight := self._name(right):
                self._note(weight, left, out)
            elif weight := self._name(left):
                self._note(weight, right, out.movedim(-2, -1))
        elif name == "embedding" and (known := self._every.get(args[0].untyped_storage().data_ptr())) is not None:
            self._note(known[0], args[1], out)
        return out

    def _note(self, weight: str, given: Tensor, made: Tensor) -> None:
        self.made.setdefault(weight, []).append(made.detach().clone())

"""Running a network as it is: its tensors, its outputs and how far two of them differ, without leaving a trace."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from network_surgery.ops.anatomy.snapshot import Snapshot
from network_surgery.ops.errors import without_foreign_errors
from network_surgery.ops.network.expressed import expanded

PLAIN = (int, float, str, NoneType)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def flat_tensors(tree: Any) -> list[Tensor]:
    """Every tensor in nested containers, mappings and objects, in order."""
    found: list[Tensor] = []
    waiting, seen = [tree], set()
    while waiting:
        for leaf in _pytree.tree_leaves(waiting.pop(0)):
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif id(leaf) not in seen and not isinstance(leaf, (type, nn.Module)):
                seen.add(id(leaf))
                waiting.append(_inside(leaf))
    return found


def _inside(leaf: Any) -> list[Any]:
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, (set, frozenset)):
        return list(leaf)
    slots = [name for kind in type(leaf).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(leaf, "__dict__", {}).values(), *(getattr(leaf, n, None) for n in slots if isinstance(n, str))]


def deviation(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest relative difference of two outputs, entry by entry; infinite where they are of different form.

    Each entry is compared with its own size and the median size of its tensor, so that a few huge entries (masked
    logits, say) do not hide the others. Entries that are not finite must be so in both.
    """
    if [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in found]:
        return math.inf
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        finite = torch.isfinite(one) if one.is_floating_point() or one.is_complex() else None
        if finite is None or not finite.any():
            continue
        if not torch.equal(finite, torch.isfinite(other)):
            return math.inf
        sizes = one[finite].abs()
        middle = sizes[sizes > 0].median() if (sizes > 0).any() else sizes.new_tensor(1e-12)
        worst = max(worst, float(((one - other)[finite].abs() / (sizes + middle)).max()))
    return worst


def call(model: nn.Module, example: Any) -> Any:
    """Runs a model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, (tuple, list)) else model(example)


@contextlib.contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Evaluation (or training) mode for a while; every submodule gets its own mode back."""
    with _in_mode(model.modules(), training):
        yield


@contextlib.contextmanager
def _in_mode(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    modules = list(modules)
    changed = [module for module in modules if getattr(module, "training", training) is not training]  # none if frozen
    kept = [(module, name, getattr(module, name), modes[training]) for module, name, modes in own_modes(modules)]
    for module in changed:
        module.training = training
    for module, name, _, value in kept:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module in changed:
            module.training = not training
        for module, name, value, _ in kept:
            setattr(module, name, value)


@contextlib.contextmanager
def norms_evaluating(model: nn.Module) -> Iterator[None]:
    """torch's own batch norms in evaluation mode for a while: they do the same to each unit in either mode, and the
    statistics of a few samples amplify rounding."""
    with _in_mode([module for module in model.modules() if type(module) in BATCH_NORMS], False):
        yield


class _Refusing(TorchFunctionMode):
    """No tensor is computed with."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} is called")


def own_modes(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, tuple[Any, Any]]]:
    """Attributes that a class's own ``train`` sets besides the mode: module, name, values in evaluation and training.

    Numbers, words and None count. ``train`` is called on copies without data; one that computes (merges weights, say)
    or fails there is left alone.
    """
    known: dict[tuple[nn.Module, str], tuple[Any, Any]] = {}
    for module in modules:
        if type(module).train is nn.Module.train or type(module).__module__.startswith("torch."):
            continue
        with without_foreign_errors():
            copies = _without_data(module), _without_data(module)
            with _Refusing():
                copies[0].train(False)
                copies[1].train(True)
            for each, *both in zip(module.modules(), *(copy.modules() for copy in copies), strict=True):
                for name in vars(each).keys() - {"training"}:
                    values = vars(both[0]).get(name), vars(both[1]).get(name)
                    if all(isinstance(value, PLAIN) for value in values) and values[0] != values[1]:
                        known[each, name] = values
    return [(module, name, values) for (module, name), values in known.items()]


def _without_data(module: nn.Module) -> nn.Module:
    """A copy whose tensors hold nothing, and which shares its other attributes."""
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    for held in ("_parameters", "_buffers"):
        tensors = vars(module)[held].items()
        vars(copy)[held] = {name: None if t is None else torch.empty_like(t, device="meta") for name, t in tensors}
    children = vars(module)["_modules"].items()
    vars(copy)["_modules"] = {name: None if child is None else _without_data(child) for name, child in children}
    return copy


@contextlib.contextmanager
def plainly(model: nn.Module, training: bool = False, known: Snapshot | None = None) -> Iterator[None]:
    """Evaluation (or training) mode, whole weights, no gradients, no compiled code, no fused kernels, for a while.

    Random numbers are the same each time, so that two passes can be compared, and go on afterwards as if nothing had
    been; what a forward pass leaves behind in the network (hooks, counters, caches, running statistics; see
    ``Snapshot``) is taken back, unless whoever has a ``known`` snapshot of it does that.
    """
    with expanded(model), _plainly(model, training, known):
        yield


@contextlib.contextmanager
def _plainly(model: nn.Module, training: bool, known: Snapshot | None) -> Iterator[None]:
    modules = list(model.modules())
    recurrent = any(isinstance(module, nn.RNNBase) for module in modules)
    fast = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        if known is None:
            stack.callback(Snapshot(modules).restore)
        stack.enter_context(_in_mode(modules, training))
        for device in ("cpu", "cuda"):  # its cache of cast weights would not notice surgery
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_seeded(modules))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextlib.contextmanager
def _seeded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Random numbers from seed 0, of the CPU and of the devices where the network is; theirs go on afterwards."""
    tensors = (t for m in modules for held in (m._parameters, m._buffers) for t in held.values() if t is not None)
    devices = {tensor.device for tensor in tensors if not tensor.is_cpu and not tensor.is_meta}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.default_generator.manual_seed(0)
        for device in devices:  # ``torch.manual_seed`` would also seed those where the network is not
            stack.enter_context(torch.random.fork_rng([device.index], device_type=device.type))
            kind = torch.get_device_module(device)
            if generators := getattr(kind, "default_generators", None):
                generators[device.index].manual_seed(0)
            else:
                kind.manual_seed(0)
        yield

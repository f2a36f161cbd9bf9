"""Snapshot: whatever a forward pass may change in a network and in what hangs on it, and putting it back.

A forward pass may write to more than its buffers: it registers hooks, counts its calls, fills caches and histories,
draws random numbers. A snapshot walks from the modules through everything that they keep (attributes, tables of hooks
of every kind, nested containers, objects, attributes of their classes) and can make it as it was. Left alone are the
values of parameters, but for embeddings that renormalize; what a hook of the user writes outside of the network; and
what belongs to Python's or torch's own objects (locks, threads, loaders).
"""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from network_surgery.ops.errors import is_of_memory

#: What every module keeps of its own, and which of it are tables (of tensors, of modules, of hooks).
OWN = frozenset(vars(nn.Module()))
TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))

#: Values that cannot change.
ATOMS = frozenset({
    int, float, str, bool, complex, bytes, type(None), type(...), range, slice, type, types.ModuleType,
    types.BuiltinFunctionType, torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format, nn.Parameter,
})  # fmt: skip
CONTAINERS = (list, dict, set, deque)

#: Hooks of all modules.
GLOBAL = [
    value for name, value in vars(nn.modules.module).items() if name.startswith("_global_") and isinstance(value, dict)
]


class Snapshot:
    """The state of some modules, and of everything that can be reached from them, as it is now."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._empty: list[Any] = []
        self._containers: list[tuple[Any, Any]] = []
        self._steps: list[Callable[[], object]] = []
        self._tensors: list[Tensor] = []
        self._flags: list[tuple[Tensor, bool, Any]] = []
        self._classes: dict[type, dict[str, Any]] = {}
        self._known: set[type] = set()
        self._seen: set[int] = set()
        self._waiting: list[Any] = list(modules)
        self._chance = random.getstate()
        self._numpy = sys.modules.get("numpy")
        self._numpy_chance = self._numpy.random.get_state() if self._numpy is not None else None
        for table in GLOBAL:
            self._table(table)
        whole = nn.modules.module._global_is_full_backward_hook
        self._steps.append(lambda: setattr(nn.modules.module, "_global_is_full_backward_hook", whole))
        while self._waiting:
            self._visit(self._waiting.pop())
        kinds: dict[Any, list[Tensor]] = {}
        for tensor in self._tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        self._values = [(group, _join(group)) for group in kinds.values()]

    def restore(self) -> None:
        """Makes everything as it was."""
        for now, before in self._attributes:
            now.clear()
            now.update(before)
        for table in self._empty:
            if table:
                table.clear()
        for container, content in self._containers:
            _refill(container, content)
        for kind, before in self._classes.items():
            _restore_class(kind, before)
        for group, values in self._values:  # batch norm does not count up a tensor's version
            if not _are(group, values):
                for tensor, old in zip(group, values.split([t.numel() for t in group]), strict=True):
                    tensor.data.copy_(old.view(tensor.shape))
        for parameter, wanted, hooks in self._flags:
            if parameter.requires_grad is not wanted:
                parameter.requires_grad_(wanted)
            if parameter._backward_hooks is not hooks:
                parameter._backward_hooks = hooks
        for step in reversed(self._steps):
            step()
        random.setstate(self._chance)
        if self._numpy is not None:
            self._numpy.random.set_state(self._numpy_chance)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in ATOMS or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Tensor):
            if kind is Tensor and value.layout == torch.strided and not value.is_meta:
                self._tensors.append(value)
        elif isinstance(value, (tuple, frozenset)):
            self._waiting += [each for each in value if type(each) not in ATOMS]
        elif isinstance(value, CONTAINERS):
            self._table(value)
            self._waiting.extend(value.values() if isinstance(value, dict) else value)
        elif kind is types.MethodType:
            self._waiting.append(value.__self__)
        elif kind is functools.partial:
            self._waiting += (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, torch.Generator):
            self._steps.append(functools.partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._steps.append(functools.partial(value.setstate, value.getstate()))
        elif kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            self._steps.append(functools.partial(_write, value, value.copy()))
        elif kind.__module__.startswith("numpy.random") and hasattr(value, "bit_generator"):
            self._steps.append(functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif kind.__module__.startswith("numpy.random") and hasattr(value, "get_state"):
            self._steps.append(functools.partial(value.set_state, value.get_state()))
        elif _is_foreign(kind) or kind is types.SimpleNamespace:
            self._object(value)

    def _module(self, module: nn.Module) -> None:
        kept = vars(module)
        self._attributes.append((kept, kept.copy()))
        for table in map(kept.get, TABLES):
            if isinstance(table, (dict, set)):  # those of a scripted module are none
                self._table(table)
        self._waiting += [value for name, value in kept.items() if name not in OWN and type(value) not in ATOMS]
        for parameter in module._parameters.values():
            if parameter is not None:
                self._flags.append((parameter, parameter.requires_grad, parameter._backward_hooks))
        self._tensors.extend(b for b in module._buffers.values() if b is not None and self._is_new(b))
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            self._tensors.append(module.weight)
        for kind in type(module).__mro__:
            if kind not in self._known:
                self._known.add(kind)
                if not _is_foreign(kind):
                    continue
                self._classes[kind] = before = dict(vars(kind))
                self._waiting.extend(v for v in before.values() if isinstance(v, CONTAINERS))

    def _is_new(self, buffer: Tensor) -> bool:
        known = id(buffer) in self._seen or buffer.layout != torch.strided or buffer.is_meta
        self._seen.add(id(buffer))
        return not known

    def _table(self, table: Any) -> None:
        if not table:
            self._empty.append(table)
        elif type(table) is dict:
            self._attributes.append((table, table.copy()))
        else:
            self._containers.append((table, dict(table) if isinstance(table, dict) else list(table)))

    def _object(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._attributes.append((attributes, attributes.copy()))
            self._waiting.extend(attributes.values())
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if not name.startswith("__") and hasattr(value, name):
                    content = getattr(value, name)
                    self._steps.append(functools.partial(object.__setattr__, value, name, content))
                    self._waiting.append(content)


def _is_foreign(thing: Any) -> bool:
    """Whether a class or function is neither Python's nor torch's."""
    module = getattr(thing, "__module__", None) or ""
    root = module.partition(".")[0]
    return root == "__main__" or not (root in ("torch", "numpy") or root in sys.stdlib_module_names)


def _write(array: Any, values: Any) -> None:
    if array.flags.writeable:
        array[...] = values


def _refill(container: Any, content: Any) -> None:
    """Gives a container back what it held; one that is as it was is not touched."""
    if isinstance(container, dict):
        same = len(container) == len(content) and all(
            a == b and x is y for (a, x), (b, y) in zip(container.items(), content.items(), strict=True)
        )
        if not same:
            base = OrderedDict if isinstance(container, OrderedDict) else dict
            base.clear(container)
            for key, value in content.items():
                base.__setitem__(container, key, value)
        return
    if len(container) == len(content) and all(a is b for a, b in zip(container, content, strict=True)):
        return
    kind: Any = next(kind for kind in CONTAINERS if isinstance(container, kind))
    kind.clear(container)
    (kind.update if kind is set else kind.extend)(container, content)


def _restore_class(kind: type, before: dict[str, Any]) -> None:
    now = vars(kind)
    if len(now) == len(before) and all(now.get(name) is value for name, value in before.items()):
        return
    for name in [name for name in now if name not in before and not name.startswith("__")]:
        delattr(kind, name)
    for name, value in before.items():
        if not name.startswith("__") and now.get(name) is not value:
            setattr(kind, name, value)


def _are(tensors: Sequence[Tensor], values: Tensor) -> bool:
    """Whether the tensors have these values; not, as far as can be known, where memory does not suffice to compare."""
    try:
        return torch.equal(_join(tensors), values)
    except Exception as error:
        if is_of_memory(error):
            return False
        raise


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of all their values, one after the other."""
    with torch.no_grad():
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

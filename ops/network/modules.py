"""Modules that surgery has put in the place of others: as plain data, so that a file can say what they are.

A layer that becomes two is an ``nn.Sequential`` at the old module's place, one that is gone is an ``nn.Identity``. They
are of torch's own classes (``KINDS``), so what surgery leaves needs nothing of this package. A module that was put
somewhere carries a mark, and ``find_placed`` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.layout import laid_out

Spec = Mapping[str, Any]
CONVOLUTIONS: tuple[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PLAIN = (nn.Identity, nn.ReLU, nn.Tanh)
#: The classes that can be put somewhere, by name.
KINDS: dict[str, Callable[..., nn.Module]] = {
    each.__name__: each for each in (nn.Linear, nn.Sequential, *CONVOLUTIONS, *NORMS, *PLAIN)
}
#: The attribute that marks them.
MARK = "_surgery_placed"
#: Where a module keeps its hooks, which go over to what takes its place.
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Change:
    """What takes a module's place.

    ``spec``: what it is (``spec_of``). ``values``: its parameters by name, from the modules of a network of the old
    shapes (the one that is trained, or an average of it). ``kept``: parameters of the new module that the old one's
    parameters go on as, with their optimizer state. ``effective``: of the old module, the weight that the new ones
    together stand for, by name, from the network's modules; None where nothing in the old module computes the same.
    ``before``: what the old module is (``spec_of``), if that is to be checked.
    """

    spec: Spec
    values: Callable[[Mapping[str, nn.Module]], Mapping[str, Tensor]] = lambda modules: {}
    kept: Mapping[str, str] = field(default_factory=dict)
    effective: Callable[[Mapping[str, nn.Module]], Mapping[str, Tensor]] | None = None
    before: Spec | None = None

    def made(self, path: str, modules: Mapping[str, nn.Module]) -> nn.Module:
        """The new module, in the precision, mode and place in memory of the one that has been there.

        Raises:
            SurgeryError: that one is not ``before`` any more.
        """
        old = modules[path]
        if self.before is not None and (hasattr(old, "parametrizations") or spec_of(old) != self.before):
            raise SurgeryError(f"{path} has changed since the plan was made: propose again")
        new = build(self.spec, old)
        with torch.no_grad():
            for name, value in self.values(modules).items():
                new.get_parameter(name).copy_(value)
        for name, before in self.kept.items():
            owner, _, attribute = name.rpartition(".")
            new.get_submodule(owner)._parameters[attribute] = old.get_parameter(before)
        for hooks in HOOKS:
            setattr(new, hooks, getattr(old, hooks))
        return new


def build(spec: Spec, like: nn.Module) -> nn.Module:
    """A module from plain data, marked; in the precision, mode and on the device of another.

    Raises:
        SurgeryError: the data is none that ``spec_of`` returns.
    """
    try:
        module = _make(spec)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise SurgeryError(f"a module of the architecture is not known: {spec!r:.80}") from error
    known = list(like.parameters())
    if known:
        module.to(known[0].device, known[0].dtype)
    for each in module.parameters() if known else ():
        before = [old for old in known if (old.dim() > 1) == (each.dim() > 1)] or known  # weights like weights
        each.requires_grad_(any(old.requires_grad for old in before))
        each.data = laid_out(each.data, before[0])
    setattr(module, MARK, True)
    return module.train(like.training)


def _make(spec: Spec) -> nn.Module:
    arguments = {
        name: tuple(x) if isinstance(x, list) else x for name, x in spec.items() if name not in ("kind", "parts")
    }
    if spec["kind"] == "Sequential":
        parts = nn.Sequential(*map(_make, spec["parts"]))
        setattr(parts, MARK, True)  # a part may have become several itself
        return parts
    with torch.random.fork_rng(devices=[]):  # its first values are written over
        return KINDS[spec["kind"]](**arguments)


def spec_of(module: nn.Module) -> dict[str, Any]:
    """What a module is, as plain data. Raises SurgeryError where that is not known."""
    kind = next((name for name, each in KINDS.items() if isinstance(module, each)), None)  # type: ignore[arg-type]
    if kind is None:
        raise SurgeryError(f"a {type(module).__name__} in a module that surgery made cannot be described")
    spec: dict[str, Any] = {"kind": kind}
    if isinstance(module, nn.Sequential):
        spec["parts"] = [spec_of(each) for each in module]
    if isinstance(module, nn.Linear):
        spec |= {"in_features": module.in_features, "out_features": module.out_features}
    if isinstance(module, _ConvNd):
        spec |= {name: getattr(module, name) for name in ("in_channels", "out_channels", "groups", "padding_mode")}
        for name in ("kernel_size", "stride", "padding", "dilation"):
            value = getattr(module, name)
            spec[name] = value if isinstance(value, str) else list(value)
    if isinstance(module, (nn.Linear, _ConvNd)):
        spec["bias"] = module.bias is not None
    if isinstance(module, NORMS):
        spec["num_features"] = module.num_features
    return spec


def find_placed(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Module → what it is, of the outermost ones that surgery has put somewhere."""
    found: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{known}.") for known in found)
        if path and not inside and getattr(module, MARK, False):
            found[path] = spec_of(module)
    return found


def exchange_parameters(
    made: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]
) -> list[tuple[list[Tensor], list[Tensor], dict[int, str]]]:
    """The parameters that go, those that come, and the names of these by id, for ``optimizer_state.replace``.

    ``made``: by name, what takes a module's place. The parameters of what becomes an identity went into the module
    before it (``collapse``), so they go together with those that were there.
    """
    found: list[tuple[list[Tensor], list[Tensor], dict[int, str]]] = []
    for path, new in made.items():
        old: list[Tensor] = list(modules[path].parameters())
        if isinstance(new, nn.Identity) and found:
            found[-1][0].extend(old)
            continue
        names = {id(each): f"{path}.{name}" for name, each in new.named_parameters()}
        found.append((old, list(new.parameters()), names))
    return found


def put_module(model: nn.Module, path: str, new: nn.Module) -> Callable[[], object]:
    """Puts a module at a place; returns what undoes it."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    old = holder._modules[name]
    holder._modules[name] = new
    return partial(holder._modules.__setitem__, name, old)


def whole_name(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The name of a module; of the last part of a layer that became several, that of the layer.

    So a layer keeps its name when it is stretched, as its units are made by the last part.
    """
    parent, _, last = name.rpartition(".")
    owner = modules.get(parent)
    if not parent or not isinstance(owner, nn.Sequential) or not getattr(owner, MARK, False):
        return name
    makers = [
        at for at, each in owner._modules.items() if each is not None and next(each.parameters(), None) is not None
    ]
    return whole_name(parent, modules) if makers and makers[-1] == last else name

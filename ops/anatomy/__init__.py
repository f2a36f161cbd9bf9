"""Anatomy: every hidden layer of any network, found by running it once.

Integer labels travel beside the tensors through one forward pass (``trace``, ``rules``, ``labels``); the classes of
labels are the units, and the layers follow (``layers``). What the trace proposes is then tried: all layers are edited
at once, in place and undone, and the output is compared with what it must be. A layer that fails (a hard-coded size in
a ``view``, say) is pinned with the reason instead of being offered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ops.anatomy.labels import FAN_IN, FAN_OUT
from ops.anatomy.layers import HiddenLayer, Place, Run
from ops.anatomy.trace import Trace, flat_tensors, tensors_of
from ops.errors import SurgeryError

__all__ = ["Anatomy", "HiddenLayer", "Place", "Run", "call", "count", "evaluating"]


class Anatomy(Mapping[str, HiddenLayer]):
    """The hidden layers of ``model``: an ordered mapping ``name → HiddenLayer``.

    ``example_input`` is what the model takes: a tensor, a tuple of arguments or a dict of keyword arguments; a batch of
    two small samples is enough. The model is run in evaluation mode without gradients and left in the mode it was in.
    ``pinned`` says of every other place where units are made why they cannot be operated on.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> Anatomy(net, torch.zeros(2, 4))
    Anatomy(0: 8 units)

    Raises:
        SurgeryError: no such layer (on look-up).
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self.model = model
        self.pinned: dict[str, str] = {}
        with evaluating(model), torch.no_grad():
            trace = Trace(model, _batch(example_input))
            with trace:
                output = call(model, example_input)
            for tensor in flat_tensors(output):
                trace.labels.freeze(trace.ids(tensor), "it is the network's output")
        for name, module in model.named_modules():
            if is_parametrized(module):
                self.pinned[name] = "its weights are parametrized (weight_norm or the like)"
        self.chains, self.sinks, self.calls = trace.chains, trace.sinks, trace.calls
        self._holders = _holders(model)
        self._layers = self._gather(trace)
        self._parameters = dict(model.named_parameters())
        self._sharing: dict[tuple[str, int], list[tuple[HiddenLayer, int]]] = {}
        for layer in self._layers.values():
            for index, place in enumerate(layer.places):
                self._sharing.setdefault((place.tensor, place.axis), []).append((layer, index))
        with evaluating(model), torch.no_grad():
            for exact in (True, False):
                together = [layer for layer in self._layers.values() if layer.exact is exact]
                for layer, reason in _faults(self, together, example_input):
                    self.pinned[layer.name] = reason
                    del self._layers[layer.name]

    def __getitem__(self, name: str) -> HiddenLayer:
        try:
            return self._layers[name]
        except KeyError:
            reason = self.pinned.get(name)
            raise SurgeryError(
                f"layer {name!r} cannot be operated on: {reason}"
                if reason
                else f"there is no layer {name!r}; this network has {', '.join(self._layers) or 'none'}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Anatomy({', '.join(f'{name}: {layer.units} units' for name, layer in self.items())})"

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer of the model by its name, as it is now."""
        return getattr(self.owner(name), name.rpartition(".")[2])

    def cost(self, sizes: Mapping[str, int] = {}) -> tuple[int, int]:
        """Parameters and FLOPs (two per multiply-add) of one sample, with some tensors' sizes replaced."""
        numbers = {name: sizes.get(name, tensor.numel()) for name, tensor in self._parameters.items()}
        return sum(numbers.values()), round(2 * sum(numbers.get(n, 0) * times for n, times in self.calls.items()))

    def owner(self, name: str) -> nn.Module:
        """The module that holds a tensor (the first one, where it is tied)."""
        return self._holders[name][0]

    def holders(self, layer: HiddenLayer) -> list[nn.Module]:
        """Every module that holds a tensor of this layer."""
        return list(dict.fromkeys(module for place in layer.places for module in self._holders[place.tensor]))

    def neighbours(self, layer: HiddenLayer) -> list[HiddenLayer]:
        """This layer and the others that own positions on an axis where it does: they move when it is resized."""
        return list(dict.fromkeys(n for p in layer.places for n, _ in self._sharing[p.tensor, p.axis]))

    def resized(self, layer: HiddenLayer, units: int) -> None:
        """Keeps every layer's places true after ``layer`` has got ``units`` units."""
        before = layer.units
        for index, place in enumerate(layer.places):
            runs, shift = [], 0
            for run in place.runs:
                runs.append(Run(run.start + shift, run.outer, run.inner))
                change = run.length(units) - run.length(before)
                for other, theirs in self._sharing[place.tensor, place.axis]:
                    if other is not layer:
                        other.places[theirs] = other.places[theirs].moved(change, run.start + shift)
                shift += change
            layer.places[index] = replace(place, size=place.size + shift, runs=tuple(runs))
        layer.units = units

    def _gather(self, trace: Trace) -> dict[str, HiddenLayer]:
        """The label classes as layers; what cannot be one goes to ``pinned``."""
        roots = {key: trace.labels.roots(*key) for key in trace.labels.axes}
        positions: dict[int, list[tuple[tuple[str, int], int]]] = {}
        for key, theirs in roots.items():
            for position, root in enumerate(theirs):
                positions.setdefault(root, []).append((key, position))
        layers: dict[str, HiddenLayer] = {}
        taken: set[int] = set()
        for (name, axis), use in trace.uses.items():
            if FAN_IN not in use.roles:
                continue
            title = name.rpartition(".")[0] or name
            units = roots[name, axis]
            if taken & set(units):
                if not taken >= set(units):
                    self.pinned[title] = "its units are joined with only some of another layer's"
                continue
            reason = _obstacle(units, trace)
            places: list[Place] = []
            if reason is None:
                owned: dict[tuple[str, int], dict[int, int]] = {}
                for unit, root in enumerate(units):
                    for key, position in positions[root]:
                        owned.setdefault(key, {})[position] = unit
                for key, unit_at in owned.items():
                    found = trace.uses[key]
                    runs = _runs(unit_at, len(units))
                    if runs is None:
                        reason = f"{key[0]} meets its units in another order or only in part"
                        break
                    if len(found.roles) > 1:
                        reason = f"{key[0]} both makes and reads its units on one axis"
                        break
                    (role,) = found.roles
                    places.append(Place(*key, len(roots[key]), role, runs, found.fill, found.across))
                if reason is None and not any(place.role == FAN_OUT for place in places):
                    reason = "nothing that is known reads its units"
            if reason is not None:
                self.pinned[title] = reason
                continue
            taken |= set(units)
            blurs = [trace.labels.inexact[root] for root in units if root in trace.labels.inexact]
            layers[title] = HiddenLayer(self, title, len(units), places, blurs[0] if blurs else None)
        return layers


def call(model: nn.Module, example: Any) -> Any:
    """Runs a model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, (tuple, list)) else model(example)


def count(model: nn.Module, example_input: Any) -> tuple[int, int]:
    """Parameters, and FLOPs per sample (two per multiply-add of convolutions and products), from one forward pass."""
    with evaluating(model), torch.no_grad(), Trace(model, _batch(example_input)) as trace:
        call(model, example_input)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), round(2 * sum(sizes[name] * n for name, n in trace.calls.items()))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _batch(example: Any) -> int:
    tensors = flat_tensors(example)
    if not tensors:
        raise SurgeryError("the example input holds no tensor; give a batch such as torch.zeros(2, 3, 32, 32)")
    return tensors[0].size(0) if tensors[0].dim() else 1


def _holders(model: nn.Module) -> dict[str, list[nn.Module]]:
    names = {id(tensor): name for name, tensor in tensors_of(model)}
    held: dict[str, list[nn.Module]] = {name: [] for name in names.values()}
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            held[names[id(tensor)]].append(module)
    return held


def _obstacle(units: Sequence[int], trace: Trace) -> str | None:
    frozen = [trace.labels.frozen[root] for root in units if root in trace.labels.frozen]
    if frozen:
        return frozen[0]
    if len(set(units)) < len(units):
        return "its units are tied to one another"
    return None


def _runs(unit_at: Mapping[int, int], units: int) -> tuple[Run, ...] | None:
    """Reads an axis by its owned ``position → unit``; None where the units stand in another order or incompletely."""
    positions = torch.tensor(sorted(unit_at))
    numbers = torch.tensor([unit_at[position] for position in positions.tolist()])
    gaps = (positions.diff() > 1).nonzero().squeeze(1) + 1
    runs = []
    for block, at in zip(numbers.tensor_split(gaps), positions.tensor_split(gaps), strict=True):
        inner = int((block != block[0]).nonzero()[0]) if (block != block[0]).any() else len(block)
        outer, rest = divmod(len(block), units * inner)
        if rest or not torch.equal(block, torch.arange(units).repeat_interleave(inner).repeat(outer)):
            return None
        runs.append(Run(int(at[0]), outer, inner))
    return tuple(runs)


def _faults(anatomy: Anatomy, layers: list[HiddenLayer], example: Any) -> list[tuple[HiddenLayer, str]]:
    """Tries an edit of all the layers at once; where it fails, halves them until the culprits stand alone."""
    if not layers:
        return []
    problem = _problem(anatomy, layers, example)
    if problem is None:
        return []
    if len(layers) == 1:
        return [(layers[0], problem)]
    half = len(layers) // 2
    return _faults(anatomy, layers[:half], example) + _faults(anatomy, layers[half:], example)


def _problem(anatomy: Anatomy, layers: list[HiddenLayer], example: Any) -> str | None:
    """One unit of each layer goes and a quarter are doubled: that must equal the network with that unit unread.

    A quarter, so that a dependence on the layer's size shows far above rounding.
    """
    from ops.surgery import edited, silenced

    gone = {layer: (7 * number + 1) % layer.units if layer.units > 2 else -1 for number, layer in enumerate(layers)}
    with silenced([(layer, [unit]) for layer, unit in gone.items() if unit >= 0]):
        wanted = flat_tensors(call(anatomy.model, example))
    edits = []
    for layer, unit in gone.items():
        kept = [u for u in range(layer.units) if u != unit]
        doubled = kept[: max(2, len(kept) // 4)]
        shares = [0.5] * len(doubled) + [1.0] * (len(kept) - len(doubled)) + [0.5] * len(doubled)
        edits.append((layer, (*kept, *doubled), shares))
    try:
        with edited(edits):
            found = flat_tensors(call(anatomy.model, example))
    except Exception as error:  # whatever the foreign forward pass raises at another size pins the layer
        return f"the network does not run at another size ({str(error).splitlines()[0][:120]})"
    exact = all(layer.exact for layer in layers)
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape:
            return "the output changes its shape with the layer"
        if exact and one.is_floating_point():
            tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 5e-2
            if not (one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1e-6):
                return "the network uses its units by position, so an edit would change what it computes"
    return None

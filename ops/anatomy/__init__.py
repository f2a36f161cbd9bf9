"""Anatomy: every hidden layer of any network, found by running it once.

Integer labels travel beside the tensors through one forward pass (``trace``, ``rules``, ``labels``); the classes of
labels are the units, and the layers follow (``layers``). What the trace proposes is then tried: all layers are edited
at once, in place and undone, and the output is compared with what it must be. A layer that fails (a hard-coded size in
a ``view``, say) is pinned with the reason instead of being offered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ops.anatomy.labels import FAN_IN, FAN_OUT
from ops.anatomy.layers import HiddenLayer, Place, Run
from ops.anatomy.trace import Trace, flat_tensors, tensors_of
from ops.errors import SurgeryError

__all__ = ["Anatomy", "HiddenLayer", "Place", "Run", "call"]


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
        self.chains, self.sinks, self.calls = trace.chains, trace.sinks, trace.calls
        self._tensors = dict(tensors_of(model))
        self._layers = self._gather(trace)
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
        """A parameter or buffer of the model by its name."""
        return self._tensors[name]

    def cost(self, sizes: Mapping[str, int] = {}) -> tuple[int, int]:  # noqa: B006 - never changed
        """Parameters and FLOPs (two per multiply-add) of one sample, with some tensors' sizes replaced."""
        flops = 2 * sum(sizes.get(name, self._tensors[name].numel()) * n for name, n in self.calls.items())
        count = sum(sizes.get(n, t.numel()) for n, t in self._tensors.items() if isinstance(t, nn.Parameter))
        return count, round(flops)

    def owner(self, name: str) -> nn.Module:
        """The module that holds a tensor."""
        return self.model.get_submodule(name.rpartition(".")[0])

    def resized(self, layer: HiddenLayer, units: int) -> None:
        """Keeps every layer's places true after ``layer`` has got ``units`` units."""
        before = layer.units
        for index, place in enumerate(layer.places):
            runs, shift = [], 0
            for run in place.runs:
                runs.append(Run(run.start + shift, run.outer, run.inner))
                change = run.length(units) - run.length(before)
                for other in self._layers.values():
                    if other is not layer:
                        other.places = [
                            p.moved(change, run.start + shift)
                            if (p.tensor, p.axis) == (place.tensor, place.axis)
                            else p
                            for p in other.places
                        ]
                shift += change
            layer.places[index] = Place(place.tensor, place.axis, place.role, tuple(runs), place.fill, place.out_axis)
        layer.units = units

    def _gather(self, trace: Trace) -> dict[str, HiddenLayer]:
        """The label classes as layers; what cannot be one goes to ``pinned``."""
        roots = {key: trace.labels.roots(*key) for key in trace.labels.axes}
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
                number = {root: unit for unit, root in enumerate(units)}
                for key, theirs in roots.items():
                    owned = [number.get(root, -1) for root in theirs]
                    if max(owned) < 0:
                        continue
                    found = trace.uses[key]
                    runs = _runs(owned, len(units))
                    if runs is None:
                        reason = f"{key[0]} meets its units in another order or only in part"
                        break
                    if len(found.roles) > 1:
                        reason = f"{key[0]} both makes and reads its units on one axis"
                        break
                    (role,) = found.roles
                    places.append(Place(*key, role, runs, found.fill, found.out_axis))
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


def _obstacle(units: Sequence[int], trace: Trace) -> str | None:
    frozen = [trace.labels.frozen[root] for root in units if root in trace.labels.frozen]
    if frozen:
        return frozen[0]
    if len(set(units)) < len(units):
        return "its units are tied to one another"
    return None


def _runs(owned: Sequence[int], units: int) -> tuple[Run, ...] | None:
    """Reads an axis whose positions belong to these unit numbers (−1: to others); None where the order is another."""
    runs, at = [], 0
    numbers = torch.tensor(owned)
    while at < len(owned):
        if owned[at] < 0:
            at += 1
            continue
        end = at
        while end < len(owned) and owned[end] >= 0:
            end += 1
        inner = 1
        while at + inner < end and owned[at + inner] == owned[at]:
            inner += 1
        outer, rest = divmod(end - at, units * inner)
        if rest:
            return None
        expected = torch.arange(units).view(1, -1, 1).expand(outer, units, inner).reshape(-1)
        if not torch.equal(numbers[at:end], expected):
            return None
        runs.append(Run(at, outer, inner))
        at = end
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
    """One unit of each layer goes and two are doubled: that must equal the network with that unit unread."""
    from ops.surgery import edited, silenced

    gone = {layer: (7 * number + 1) % layer.units if layer.units > 2 else -1 for number, layer in enumerate(layers)}
    with silenced([(layer, [unit]) for layer, unit in gone.items() if unit >= 0]):
        wanted = flat_tensors(call(anatomy.model, example))
    edits = []
    for layer, unit in gone.items():
        kept = [u for u in range(layer.units) if u != unit]
        doubled = kept[:2]
        shares = [0.5 if u in doubled else 1.0 for u in kept] + [0.5] * len(doubled)
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

"""Signals: what data-driven operations see of a network, collected in one forward pass and shared by every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ops.anatomy import HiddenLayer, Place, call, evaluating
from ops.errors import SurgeryError

#: Rows that an operation works on at most; of more positions a random part is taken.
MOST_SAMPLES = 8192


class Signals:
    """The inputs of every module with parameters, for one batch, in evaluation mode.

    ``inputs`` is what the model takes (a batch of a few times as many samples as the widest layer has units);
    ``targets`` are class numbers ``[batch]`` for operations that look at the loss. The values belong to the network as
    it is now: after an operation, collect anew.
    """

    def __init__(self, model: nn.Module, inputs: Any, targets: Tensor | None = None) -> None:
        self.targets = targets
        self._seen: dict[int, list[Tensor]] = {}  # every call of a module
        hooks = [
            module.register_forward_pre_hook(self._remember)
            for module in model.modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        try:
            with evaluating(model), torch.no_grad():
                self.outputs = call(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def loss(self) -> Tensor:
        """The mean cross entropy of the batch. Raises SurgeryError without targets."""
        if self.targets is None:
            raise SurgeryError("these signals have no targets; give Signals(model, inputs, targets)")
        return nn.functional.cross_entropy(self.outputs, self.targets)

    def received(self, layer: HiddenLayer, place: Place) -> Tensor:
        """What a reader receives from each unit: ``[samples × positions, units]`` in float64, thinned."""
        axis = -1 if isinstance(layer.anatomy.owner(place.tensor), nn.Linear) else 1
        positions = place.positions
        by_unit = [x.movedim(axis, 0)[positions.to(x.device)] for x in self._inputs_of(layer, place)]
        return _thin(torch.cat([each.reshape(layer.units, -1).T for each in by_unit]))

    def fed(self, layer: HiddenLayer, place: Place) -> Tensor:
        """What a dense maker is fed: ``[samples, inputs]`` in float64, thinned like ``received``."""
        return _thin(torch.cat([x.reshape(-1, x.shape[-1]) for x in self._inputs_of(layer, place)]))

    def _remember(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            self._seen.setdefault(id(module), []).append(args[0].detach().clone())  # what follows may work in place

    def _inputs_of(self, layer: HiddenLayer, place: Place) -> list[Tensor]:
        layer.tensor(place)  # complains of an anatomy that is out of date
        module = layer.anatomy.owner(place.tensor)
        if id(module) not in self._seen:
            raise SurgeryError(
                f"layer {layer.name}: nothing was seen of what {place.tensor} is given; signals need the same model, "
                "and weights that modules of their own apply"
            )
        return self._seen[id(module)]


def _thin(rows: Tensor) -> Tensor:
    """At most ``MOST_SAMPLES`` of the rows, the same for every tensor of so many; an even stride would meet one column
    of every image.
    """
    if len(rows) > MOST_SAMPLES:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_SAMPLES]
        rows = rows[chosen.to(rows.device)]
    return rows.to(torch.float64)

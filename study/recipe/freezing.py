"""Layers that do not train for a while: after a step with ``freeze``, all but those that the operation changed.

Source: Han et al. 2015, *Learning both weights and connections*, section 3.3: retraining after pruning convolutions
holds dense layers fixed, and the other way round, against vanishing gradients.

A parameter that is frozen has no gradient when the optimizer steps, so it stays what it is to the bit, and so does its
optimizer state; neither weight decay nor a regularizer reaches it, and the clipped norm is of the others. Running
statistics and averages of the weights go on. Whoever operates says what an operation has changed: that trains, also
where it had been frozen before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Freezing:
    """The parameters of ``model`` that do not train until some iteration."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._frozen: list[nn.Parameter] = []
        self._until = 0
        self._moment: tuple[int, list[nn.Parameter]] = (-1, [])  # an iteration, and what was changed then

    def operated(self, iteration: int, changed: Collection[nn.Parameter], until: int | None) -> None:
        """An operation before the step at this ``iteration`` has changed layers with these parameters.

        ``until``: the iteration up to which all others are frozen; None: nothing more is frozen. Of several operations
        of one moment, what any of them changes trains. Where nothing that trains has changed, nothing is frozen.
        """
        known = self._moment[1] if self._moment[0] == iteration else []
        self._moment = (iteration, [*known, *changed])
        trains = {id(parameter) for parameter in self._moment[1]}
        if until is not None and any(parameter.requires_grad for parameter in self._moment[1]):
            self._frozen, self._until = list(self._model.parameters()), until
        self._frozen = [parameter for parameter in self._frozen if id(parameter) not in trains]

    def withhold(self, iteration: int) -> None:
        """Takes the gradients of what is frozen, before the optimizer steps."""
        for parameter in self._frozen if iteration < self._until else ():
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        """Plain data, for ``restore``."""
        frozen = {id(parameter) for parameter in self._frozen}
        names = [name for name, parameter in self._model.named_parameters() if id(parameter) in frozen]
        return {"until": self._until, "parameters": names}

    def restore(self, state: Mapping[str, Any]) -> None:
        known = dict(self._model.named_parameters())
        self._until, self._frozen = state["until"], [known[name] for name in state["parameters"]]


@contextmanager
def changing(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """A list that at the end of the ``with`` block holds the parameters of every layer that changed in it.

    A layer is a module; it has changed if a parameter or buffer (a mask, say) of its own is new or has other values.
    """
    before = {id(tensor): (tensor, tensor.detach().clone()) for _, tensor in _tensors(model)}
    changed: list[nn.Parameter] = []
    yield changed
    layers = set()
    for name, tensor in _tensors(model):
        known = before.get(id(tensor))
        if known is None or known[1].shape != tensor.shape or not torch.equal(known[1], tensor.detach()):
            layers.add(_layer(name))
    changed += [parameter for name, parameter in model.named_parameters() if _layer(name) in layers]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _layer(name: str) -> str:
    """The module that a tensor is of; of one that torch keeps as a parametrization, that which has the weight."""
    module, within, _ = f".{name}".partition(".parametrizations.")
    return module if within else f".{name}".rpartition(".")[0]

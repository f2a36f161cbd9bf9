"""A network with some tensors in place of its own, one such network or many at once; nothing of it is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from network_surgery.ops.errors import SurgeryError, pass_on_memory
from network_surgery.ops.network.expressed import torch_names


class Altered:
    """``Altered(model)(changed, inputs)``: what the network returns with these tensors, by their plain names."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._names = model, torch_names(model)

    def __call__(self, changed: Mapping[str, Tensor], inputs: Any) -> Any:
        tensors = {self._names[name]: tensor for name, tensor in changed.items()}
        if isinstance(inputs, Mapping):
            return functional_call(self._model, tensors, (), dict(inputs))
        return functional_call(self._model, tensors, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,))


class Together:
    """``Together(function)(numbers)``: the function of each number, stacked, by ``torch.func.vmap``.

    What does not depend on the number is computed once for all. Where the network cannot be run so, it is run for one
    number after the other, from then on.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], able: bool = True) -> None:
        self._function, self._able = function, able

    def __call__(self, numbers: Tensor) -> Tensor:
        if self._able:
            try:
                return vmap(self._function, randomness="same")(numbers)
            except SurgeryError:
                raise
            except Exception as error:  # whatever in the foreign network has no batching rule
                pass_on_memory(error)
                self._able = False
        return torch.stack([self._function(number) for number in numbers])

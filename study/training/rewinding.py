"""Weight rewinding: the units that operations leave get back the weights that they had at an earlier epoch.

Source: Frankle et al. 2019, *Stabilizing the lottery ticket hypothesis*; Renda, Frankle and Carbin 2020, *Comparing
rewinding and fine-tuning in neural network pruning*, section 2. Which units stay is decided by the trained network. The
learning rate goes back by the operations' own ``after: rewind``; the optimizer begins anew.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from network_surgery.ops.network.architecture import describe, passing
from network_surgery.ops.network.expressed import tensors_of
from network_surgery.ops.network.files import fill
from network_surgery.ops.network.optimizer_state import forget
from network_surgery.study.training.trainer import Callback, Trainer


class Rewinding(Callback):
    """Keeps the weights of ``epoch`` in a copy of the network, which follows the operations after ``operated`` epochs
    and then gives them back. Among the callbacks it comes after the one that operates.

    No operation may come earlier; those that do may only choose units (``study.arms.survivors``), as all else that they
    change would be of the trained network.
    """

    def __init__(self, epoch: int, operated: int) -> None:
        self.epoch, self.operated = epoch, operated

    def attach(self, trainer: Trainer) -> None:
        """Begins, with a trainer that has this callback and has not trained yet."""
        self._trainer, self._kept = trainer, copy.deepcopy(trainer.model)
        trainer.followers = (self._kept,)

    def before_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.epoch * trainer.per_epoch:
            with trainer.off_the_clock():
                _copy(trainer.model, self._kept)
        if trainer.iteration == self.operated * trainer.per_epoch:
            with trainer.off_the_clock():
                for network in {trainer.model, trainer.final}:
                    _copy(self._kept, network)
            forget(trainer.optimizer)
            trainer.followers = ()

    def state(self) -> dict[str, Any]:
        if not self._trainer.followers:
            return {"weights": None}
        return {"weights": {**self._kept.state_dict(), **passing(self._kept)}}

    def restore(self, state: dict[str, Any]) -> None:
        if state["weights"] is None:  # they have been given back
            self._trainer.followers = ()
            return
        fill(self._kept, state["weights"], describe(self._kept))


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    values = dict(tensors_of(source))
    for name, tensor in tensors_of(target):
        if name in values:  # else a buffer that the first forward pass has registered, such as positions
            tensor.data.copy_(values[name])

"""How the steps of a run are made of gradients: all that a trainer must know of the recipe besides its optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from network_surgery.ops.errors import first_line
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.curves import Curve
from network_surgery.study.recipe.sparsity import Sparsity


class Average(AveragedModel):
    """torch's average of weights and buffers, to the bit, but no step waits for the device.

    torch's own copies the number of steps from the host to the device each time, which its exponential average ignores.
    """

    def update_parameters(self, model: nn.Module) -> None:
        if int(self.n_averaged) == 0:  # on the host
            return super().update_parameters(model)
        groups: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for mine, new in zip(_tensors(self.module), _tensors(model), strict=True):
            groups.setdefault(mine.dtype, []).append((mine, new))
        for pairs in groups.values():
            average, current = map(list, zip(*pairs, strict=True))
            self.multi_avg_fn(average, current, self.n_averaged)  # type: ignore[misc]
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


@dataclass(frozen=True)
class Optimization:
    """``curve``: of the learning rate. ``accumulate``: batches of a step, whose gradient is the mean over all samples.
    ``clip``: the largest norm that the gradient of all parameters together may have; longer ones are shortened to it.
    ``ema``: the decay, for each step, of an exponential moving average of weights and buffers, which is what is
    evaluated and kept; None: there is none. ``sparsity``: what makes weights zero after each step.
    """

    curve: Curve = field(default_factory=Curve)
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    sparsity: Sparsity = field(default_factory=Sparsity)

    @classmethod
    def of(cls, settings: Settings) -> Optimization:
        """What the settings ask for."""
        curve = Curve(
            settings.lr_schedule, settings.warmup, settings.lr_steps, settings.lr_factor, settings.cycle_momentum
        )
        sparsity = Sparsity(settings.l1, settings.group_lasso)
        return cls(curve, settings.accumulate, settings.clip, settings.ema, sparsity)

    def check(self, optimizer: Optimizer) -> None:
        """Raises StudyError where the optimizer has no momentum to cycle."""
        if self.curve.cycles and not all({"momentum", "betas"} & group.keys() for group in optimizer.param_groups):
            raise StudyError(
                f"lr_schedule one_cycle cycles the momentum, but {type(optimizer).__name__} has none; set "
                "cycle_momentum: false"
            )

    def average(self, model: nn.Module) -> AveragedModel | None:
        """The average of a network's weights and buffers, beginning with these; None where there is to be none.

        Raises:
            StudyError: the network cannot be copied.
        """
        if self.ema is None:
            return None
        try:
            return Average(model, multi_avg_fn=get_ema_multi_avg_fn(self.ema), use_buffers=True)
        except Exception as error:  # copying anyone's modules may fail in any way
            raise StudyError(
                f"ema is {self.ema}, but a {type(model).__name__} cannot be copied: {first_line(error)}"
            ) from error

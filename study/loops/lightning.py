"""Surgery in a Lightning training: ``Trainer(callbacks=[SurgeryCallback(schedule)])``.

The state_dict in Lightning's checkpoints carries the architecture (``ops.carry_architecture``), so ``ckpt_path`` goes
on with a network that has other sizes than the one that was just made. For ``Module.load_from_checkpoint``, where no
callback is, the module calls ``ops.carry_architecture(self)`` at the end of its ``__init__``.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from network_surgery.ops import Schedule, carry_architecture, inner, rewrap
from network_surgery.ops.network.wrappers import is_distributed
from network_surgery.study.errors import StudyError
from network_surgery.study.loops.batches import pair
from network_surgery.study.loops.plain import SAMPLES, Operating, Surgeon, check_schedule, measure

NAMES = ("lightning.pytorch", "pytorch_lightning")


def _library() -> Any:
    """The one of Lightning's two packages that is in use, or else the one that is installed."""
    for name in sorted(NAMES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise StudyError("Lightning is not installed; pip install network-surgery[lightning] installs it")


Callback: Any = _library().Callback


class SurgeryCallback(Operating, Callback):
    """Applies ``schedule`` while Lightning trains, in automatic and manual optimization, with any optimizers.

    ``loss``, ``metric``, ``split``, ``signal_samples``, ``held_out_samples`` and ``carry`` are those of
    ``study.loops.Surgeon``. ``network``: the submodule that the schedule is about, where it is not the module's own
    forward pass. ``train`` and ``held_out``: samples to look at, by default those of the trainer's loaders.
    ``averages``: networks that follow; Lightning's ``WeightAveraging`` follows by itself.

    A step of the schedule ("250it") is an optimizer step, and with manual optimization a batch. Each record goes to
    the loggers as ``surgery/…``; all of them are in ``records`` and ``checks``.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        metric: Callable[[Any, Any], Tensor] | None = None,
        split: Callable[[Any], tuple[Any, Any]] | None = None,
        network: str = "",
        train: Any = None,
        held_out: Any = None,
        averages: nn.Module | Sequence[nn.Module] = (),
        signal_samples: int = SAMPLES,
        held_out_samples: int = SAMPLES,
        carry: bool = True,
    ) -> None:
        check_schedule(schedule)
        self.schedule = schedule
        self._network, self._train, self._held_out, self._averages = network, train, held_out, averages
        self._split = split or pair
        self._options: dict[str, Any] = {
            "loss": loss, "metric": metric, "signal_samples": signal_samples,
            "held_out_samples": held_out_samples, "carry": carry,
        }  # fmt: skip
        self._state: Mapping[str, Any] | None = None
        self._losses: list[Tensor] = []
        self._steps = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        carry_architecture(pl_module)  # before a checkpoint is loaded, and before averages are copied

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        followers = [getattr(each, "_average_model", None) for each in trainer.callbacks]
        averages = [self._averages] if isinstance(self._averages, nn.Module) else [*self._averages]
        averages += [each for each in followers if isinstance(each, nn.Module)]
        if self._network:
            averages = [_inside(each, self._network) for each in averages]
        automatic = pl_module.automatic_optimization
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches if automatic else 1

        def split(batch: Any) -> tuple[Any, Any]:
            """As the network is given it, after the module's hooks of batch transfer."""
            return self._split(trainer.strategy.batch_to_device(batch, dataloader_idx=0))

        if not math.isfinite(batches):
            raise StudyError("the training loader has no length; give the Trainer limit_train_batches=…")
        held_out = self._held_out
        if held_out is None and trainer.val_dataloaders:
            held_out = trainer.val_dataloaders
            held_out = held_out[0] if isinstance(held_out, list) else held_out
        self._surgeon = Surgeon(
            _inside(pl_module, self._network), trainer.optimizers, self.schedule,
            trainer.train_dataloader if self._train is None else self._train, held_out=held_out, averages=averages,
            split=split, steps_per_epoch=math.ceil(batches / accumulated),
            epochs=math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs, **self._options,
        )  # fmt: skip
        if self._state is not None:
            self._surgeon.load_state_dict(self._state)
            self._state = None
        self._losses, self._steps = [], trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert self._surgeon is not None
        before = len(self.records)
        self._surgeon.before_step()
        if len(self.records) > before or (self._surgeon.looked and is_distributed(trainer.strategy.model)):
            trainer.strategy.model = rewrap(trainer.strategy.model)  # of DistributedDataParallel, around the module
        for record in self.records[before:]:
            for logger in trainer.loggers:
                logger.log_metrics(measure(record), step=trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self._surgeon is not None
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if pl_module.automatic_optimization and trainer.global_step == self._steps:
            return  # gradients are being accumulated
        self._surgeon.after_step(torch.stack(self._losses).mean() if self._losses else None)
        self._losses, self._steps = [], trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        if self._surgeon is None:
            return dict(self._state or {})
        return self._surgeon.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _inside(module: nn.Module, network: str) -> nn.Module:
    """The submodule of this name, of a module or of an average of it."""
    try:
        return inner(module).get_submodule(network)
    except AttributeError:
        raise StudyError(f"the module has no submodule {network!r}; network=… names one") from None

"""Surgery in a training run of transformers: ``Trainer(..., callbacks=[SurgeryCallback(schedule)])``.

The weights in a checkpoint carry the architecture (``ops.carry_architecture``), so ``resume_from_checkpoint`` and
``load_best_model_at_end`` find a network of the sizes that they need. How far the schedule is, and the records, are in
``trainer_state.json``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from network_surgery.ops import Schedule, carry_architecture
from network_surgery.ops.network.expressed import Expressed, plain_name
from network_surgery.study.errors import StudyError
from network_surgery.study.loops.plain import SAMPLES, Operating, Surgeon, check_schedule, measure

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    if missing.name != "transformers":
        raise
    raise StudyError("transformers is not installed; pip install network-surgery[transformers] installs it") from None


#: Where ``trainer_state.json`` has the state of the surgery, among those of callbacks.
KEPT = "surgery"


class SurgeryCallback(Operating, TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Applies ``schedule`` while the ``Trainer`` of transformers trains.

    ``loss``, ``metric``, ``split``, ``signal_samples``, ``held_out_samples`` and ``carry`` are those of
    ``study.loops.Surgeon``; without a ``loss`` it is the one that the network returns for its ``labels``.
    ``train`` and ``held_out``: samples to look at, by default those of the trainer's loaders. ``report``: a function
    that receives the numbers of each record, such as ``trainer.log``.

    A step of the schedule ("250it") is an optimizer step. All records are in ``records`` and ``checks``; their numbers
    are in the trainer's ``state.log_history``, too.

    Raises:
        StudyError: the trainer has several processes, whose wrapper of the network no callback can renew.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        metric: Callable[[Any, Any], Tensor] | None = None,
        split: Callable[[Any], tuple[Any, Any]] | None = None,
        train: Any = None,
        held_out: Any = None,
        report: Callable[[dict[str, float]], object] | None = None,
        signal_samples: int = SAMPLES,
        held_out_samples: int = SAMPLES,
        carry: bool = True,
    ) -> None:
        check_schedule(schedule)
        self.schedule, self.report = schedule, report
        self._train, self._held_out = train, held_out
        self._options: dict[str, Any] = {
            "loss": loss or own_loss, "metric": metric, "split": split, "signal_samples": signal_samples,
            "held_out_samples": held_out_samples, "carry": carry,
        }  # fmt: skip
        self._losses: list[Tensor] = []
        self._summed = False
        self._listening: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        if args.world_size > 1 or args.n_gpu > 1:
            raise StudyError(
                "surgery in a Trainer of several processes or GPUs is not supported: no callback can renew the wrapper "
                "of the network; use one device, or a loop of your own with study.loops.Surgeon"
            )
        if model is not None:
            carry_architecture(model)  # before a checkpoint is loaded

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        train_dataloader: Any = None,
        eval_dataloader: Any = None,
        **others: Any,
    ) -> None:
        carry_architecture(model)
        train = train_dataloader if self._train is None else self._train
        held_out = eval_dataloader if self._held_out is None else self._held_out
        try:
            per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        except TypeError:  # an iterable without a length, as transformers has it
            per_epoch = state.max_steps
        self._surgeon = Surgeon(
            model, getattr(optimizer, "optimizer", optimizer), self.schedule, train, held_out=held_out,
            steps_per_epoch=per_epoch, epochs=state.max_steps / per_epoch, **self._options,
        )  # fmt: skip
        kept = state.stateful_callbacks.get(KEPT)
        if kept is not None:
            due = kept["theatre"]["due"]  # whose keys JSON has made text
            due = None if due is None else {int(place): at for place, at in due.items()}
            self._surgeon.load_state_dict({**kept, "theatre": {**kept["theatre"], "due": due}})
        self._listening = model.register_forward_hook(self._listen, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        assert self._surgeon is not None
        before = len(self.records)
        self._losses = []
        self._surgeon.before_step()
        self._losses = []  # of what was looked at
        if len(self.records) > before and args.save_strategy != "no" and (names := _tied_masks(self._surgeon.model)):
            raise StudyError(
                f"transformers saves no masks or hashes on tied weights ({' and '.join(names)}): make the network with "
                "tie_word_embeddings=False, prune other layers, or train with save_strategy='no'"
            )
        for record in self.records[before:]:
            if args.torch_compile:
                torch.compiler.reset()
            state.log_history.append(measure(record) | {"step": state.global_step, "epoch": state.epoch or 0.0})
            if self.report is not None:
                self.report(measure(record))

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        assert self._surgeon is not None
        losses = torch.stack(self._losses) if self._losses else None
        self._losses = []
        if losses is not None:
            losses = losses.sum() if self._summed else losses.mean()
        self._surgeon.after_step(losses)
        self._keep(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._keep(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._listening is not None:
            self._listening.remove()

    def _keep(self, state: Any, control: Any) -> None:
        """Puts into the trainer's state what a checkpoint that may be written now has to have."""
        if self._surgeon is not None and (control.should_save or control.should_evaluate):
            kept = self._surgeon.state_dict()
            state.stateful_callbacks[KEPT] = {name: kept[name] for name in ("iteration", "theatre")}

    def _listen(self, module: nn.Module, inputs: Any, kwargs: Mapping[str, Any], outputs: Any) -> None:
        """Hears the loss of each batch of training."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if module.training and isinstance(loss, Tensor):
            self._summed = kwargs.get("num_items_in_batch") is not None
            self._losses.append(loss.detach().mean())


def own_loss(outputs: Any, targets: Any) -> Tensor:
    """The loss that the network returned. Raises StudyError where it returned none."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if loss is None:
        raise StudyError("the network returns no loss for these inputs; give loss=function of (outputs, targets)")
    return loss


def _tied_masks(model: nn.Module) -> list[str]:
    """The names of two places in a network that hold one mask (or hash); none where there are no such."""
    names: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Expressed):
            if id(module) in names:
                return [plain_name(name.removesuffix(".0") + ".original"), names[id(module)]]
            names[id(module)] = plain_name(name.removesuffix(".0") + ".original")
    return []

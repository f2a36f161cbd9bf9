"""Precision, memory format and compilation: of training steps and evaluation alone, and bit-exact after resuming."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, MinWeight, Schedule, WeakExpand, operate
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.recipe.compute import Compute
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.training import checkpoint
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Callback, Trainer
from tests.study.operated import without_times
from tests.study.training.test_training import CPU, SETTINGS, schedule

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return load("digits", 0.25)


def trainer(
    task: ImageTask, compute: Compute, *callbacks: Callback, epochs: int = 1, seed: int = 0, network: str = "small_cnn"
) -> Trainer:
    torch.manual_seed(seed)
    model = models.build(network, task.shape, len(task.classes))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Trainer(
        model, optimizer, task, epochs=epochs, batch_size=256, seed=0, device=CPU, callbacks=callbacks, compute=compute
    )


class Kinds(nn.Module):
    """What a network is computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(64, 10), set[torch.dtype]()

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.layer(inputs.flatten(1))
        self.seen.add(outputs.dtype)
        return {"scores": outputs}


def test_the_network_is_in_half_precision_and_its_outputs_in_single() -> None:
    model, inputs = Kinds(), torch.randn(4, 1, 8, 8)
    outputs = Compute("bf16").answer(model, inputs, CPU)["scores"]
    assert model.seen == {torch.bfloat16} and outputs.dtype == torch.float32
    outputs.sum().backward()
    assert model.layer.weight.grad is not None and model.layer.weight.grad.dtype == torch.float32
    assert torch.equal(Compute().answer(model, inputs, CPU)["scores"], model(inputs)["scores"])


def test_bf16_trains_and_evaluates_in_it(digits: ImageTask) -> None:
    half, single = trainer(digits, Compute("bf16")), trainer(digits, Compute())
    half.fit(), single.fit()
    assert half.history[0]["train_loss"] != single.history[0]["train_loss"]
    assert abs(half.history[0]["train_loss"] - single.history[0]["train_loss"]) < 0.05
    single.model.load_state_dict(half.model.state_dict())
    mine, theirs = half.evaluate(half.validation), single.evaluate(single.validation)
    assert mine.loss != theirs.loss and abs(mine.loss - theirs.loss) < 0.05
    assert {each.dtype for each in half.model.parameters()} == {torch.float32}


def operated(task: ImageTask, compute: Compute) -> tuple[list[Any], dict[str, Tensor]]:
    """Units and predicted errors of operations on a fresh network, and its weights after them."""
    steps = [
        {"when": "0ep", "layer": "conv2", "op": "pcns", "variance_threshold": 0.01},
        {"when": "0ep", "layer": "fc1", "op": "min_weight", "keep": 0.5, "repair": ["least_squares"]},
    ]
    theatre = Theatre(Schedule.from_data(steps), task.validation.thinned(64), 128)
    made = trainer(task, compute, theatre)
    theatre.before_step(made)
    return [(each.units_after, each.predicted_error) for each in theatre.records], made.model.state_dict()


def test_operations_signals_and_repairs_are_in_float32(digits: ImageTask) -> None:
    """From the same weights, a run in half precision plans and repairs bit for bit what one in float32 does."""
    half, single = (operated(digits, Compute(precision)) for precision in ("bf16", "float32"))  # type: ignore[arg-type]
    assert half[0] == single[0] and len(half[0]) == 2
    torch.testing.assert_close(half[1], single[1], rtol=0, atol=0)


def test_tf32_is_on_in_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    with Compute("tf32").switched():
        assert [switch.allow_tf32 for switch in switches] == [True, True]
    assert [switch.allow_tf32 for switch in switches] == before
    with pytest.raises(ValueError), Compute("tf32").switched():
        raise ValueError
    assert [switch.allow_tf32 for switch in switches] == before
    with Compute().switched():
        assert [switch.allow_tf32 for switch in switches] == before


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_cpu_refuses_what_it_cannot(digits: ImageTask, precision: Any) -> None:
    wanted = f"^precision is '{precision}', which needs a GPU; on a CPU give 'float32' or 'bf16'$"
    with pytest.raises(StudyError, match=wanted):
        run(Cell("search", 0), digits, replace(SETTINGS, precision=precision), CPU)
    with pytest.raises(StudyError, match=wanted):
        Settings(device="cpu", precision=precision)


def test_a_step_that_the_scaler_skips_is_no_divergence(digits: ImageTask, tmp_path: Path) -> None:
    """The first scales are far too large for fp16; resuming goes on with the scale that was reached."""
    made = trainer(digits, Compute("fp16"), epochs=3, network="mlp")
    made.epochs = 2
    made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    weights = made.model.fc1.weight.detach().clone()
    made.fit()
    assert made.scaler.get_scale() < 2.0**24 and not torch.equal(weights, made.model.fc1.weight)
    checkpoint.save(made, tmp_path / "saved.pt")
    other = trainer(digits, Compute("fp16"), epochs=3, seed=1, network="mlp")
    checkpoint.load(other, tmp_path / "saved.pt")
    assert other.scaler.state_dict() == made.scaler.state_dict()
    made.epochs = 3
    made.fit(), other.fit()
    assert made.history[-1]["train_loss"] == other.history[-1]["train_loss"]
    assert other.scaler.state_dict() == made.scaler.state_dict()


def test_a_loss_that_overflows_is_left_out_but_not_if_all_do(digits: ImageTask) -> None:
    class Overflowing(Trainer):
        bad: tuple[int, ...] = (0, 2)

        def _loss(self, inputs: Any, targets: Any) -> Tensor:
            return super()._loss(inputs, targets) * (float("inf") if self.iteration in self.bad else 1.0)

    for bad in ((0, 2), tuple(range(6))):
        torch.manual_seed(0)
        model = models.build("mlp", digits.shape, 10)
        made = Overflowing(
            model, torch.optim.SGD(model.parameters(), 0.05), digits, epochs=1, batch_size=256, seed=0, device=CPU,
            compute=Compute("fp16"),
        )  # fmt: skip
        made.bad = bad
        if len(bad) == 2:
            made.fit()
            assert 0 < made.history[0]["train_loss"] < 3
        else:
            with pytest.raises(Diverged, match="training loss became nan"):
                made.fit()


@pytest.mark.parametrize("after", [1, 2])
def test_surgery_and_resuming_keep_the_memory_format(digits: ImageTask, tmp_path: Path, after: int) -> None:
    formats = []

    class Watch(Callback):
        def before_step(self, trainer: Trainer) -> None:
            weights = [each for each in trainer.model.parameters() if each.dim() == 4]
            formats.append(all(each.is_contiguous(memory_format=torch.channels_last) for each in weights))

    made = trainer(digits, Compute(channels_last=True), Watch(), epochs=after + 1)
    made.epochs = after
    made.fit()
    anatomy = Anatomy(made.model, made.train.take(slice(0, 2))[0])
    for operation in (MinWeight(0.5), WeakExpand(0.5)):
        operate(anatomy["conv1"], operation, made.optimizer)
        weight = made.model.conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        state = made.optimizer.state[weight]["momentum_buffer"]
        assert state.is_contiguous(memory_format=torch.channels_last)
    checkpoint.save(made, tmp_path / "saved.pt")
    other = trainer(digits, Compute(channels_last=True), Watch(), epochs=after + 1, seed=1)
    checkpoint.load(other, tmp_path / "saved.pt")
    made.epochs = after + 1
    made.fit(), other.fit()
    assert made.history == other.history or without_times({"a": made.history}) == without_times({"a": other.history})
    assert all(formats) and formats


@pytest.mark.long
@compiler
def test_compiled_steps_equal_uncompiled_ones_through_surgery(digits: ImageTask) -> None:
    task = digits.changed(train=digits.train.thinned(1024), network="mlp")
    settings = Settings(epochs=2, batch_size=512, held_out=64, probe=0, compile=True)
    cell = Cell("surgery", 0, schedule(("1ep", "fc1", MinWeight(0.5))))
    outcome, plain = (run(cell, task, replace(settings, compile=each), CPU) for each in (True, False))
    for compiled, other in zip(outcome["epochs"], plain["epochs"], strict=True):
        assert compiled["train_loss"] == pytest.approx(other["train_loss"], rel=2e-3)
    seconds = [each["compile_seconds"] for each in outcome["epochs"]]
    assert all(each > 0 for each in seconds)  # at the start, and after the operation
    assert outcome["compile_seconds"] == pytest.approx(sum(seconds)) and "compile_seconds" not in plain
    assert outcome["train_seconds"] < outcome["compile_seconds"]


def test_what_cannot_be_compiled_is_one_sentence(digits: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, **options: Any) -> Any:
        def fail(inputs: Any) -> Any:
            raise RuntimeError("no compiler\nat all")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(StudyError, match=r"^compile is true, but torch cannot compile this network here: no compiler$"):
        trainer(digits, Compute(compile=True)).fit()

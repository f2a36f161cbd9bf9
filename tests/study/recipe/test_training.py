"""Whole runs with a recipe: steps, averages, arms, and a resumption that is bit-exact at every epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops import MinWeight, load
from network_surgery.study import models
from network_surgery.study.arms import rivals
from network_surgery.study.config import Settings
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.recipe.curves import Curve
from network_surgery.study.recipe.optimization import Optimization
from network_surgery.study.recipe.optimizer import make_optimizer
from network_surgery.study.search.tracking.measures import of_epoch
from network_surgery.study.store.words import describe
from network_surgery.study.task import build
from network_surgery.study.task.images import ImageNetScaled, Images, ImageTask
from network_surgery.study.task.task import Classification, Task
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from network_surgery.study.training.trainer import Callback, Trainer
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=4, batch_size=32, held_out=32, signal_images=32, learning_rate=0.02)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(Settings(train_images=200))


def step(when: str, layer: str = "conv2", op: str = "min_weight", **more: Any) -> dict[str, Any]:
    amount = {"keep": 0.5} if op == "min_weight" else {"grow": 0.5}
    return {"when": when, "layer": layer, "op": op, **amount, **more}


#: An operation inside an epoch, with a rewarming over the ends of epochs, and two between epochs.
STEPS = [
    step("3it", after="rewarm", after_length=0.9, repair=["batchnorm"]),
    step("2ep", "fc1", "weak_expand"),
    step("3ep", "conv1", after="rewind", after_length="1ep"),
]
RECIPES: dict[str, dict[str, Any]] = {
    "groups": {"optimizer": "AdamW", "optimizer_arguments": {"amsgrad": True}, "weight_decay": 0.1, "decay": "weights",
               "lr_schedule": "cosine", "warmup": 0.1},
    "all at once": {"optimizer": "sgd", "lr_schedule": "one_cycle", "ema": 0.9, "clip": 0.5, "accumulate": 2,
                    "label_smoothing": 0.1},
    "adam one cycle": {"lr_schedule": "one_cycle", "accumulate": 3, "optimizer_state": "reset"},
    "steps": {"optimizer": "RMSprop", "learning_rate": 1e-3, "lr_schedule": "step", "lr_steps": [0.3, 0.6], "ema": 0.5,
              "batchnorm_statistics": "reset"},
    "linear": {"optimizer": "Adafactor", "lr_schedule": "linear", "clip": 1.0},
    "zeros": {"lr_schedule": "cosine", "l1": 1e-3, "group_lasso": 1e-3, "ema": 0.9, "accumulate": 2, "clip": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_stops_after_any_epoch_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    settings = Settings(**{**SETTINGS.to_data(), "train_images": 200, **RECIPES[name]})
    task, cell = build(settings), Cell("surgery", 0, STEPS, test=True)
    whole = run(cell, task, settings, CPU, network=tmp_path / "whole.pt")
    assert len(whole["operations"]) == 3
    for after in (1, 2, 3):
        seen: list[float] = []

        def die(epoch: dict[str, Any], seen: list[float] = seen, after: int = after) -> None:
            seen.append(epoch["epoch"])
            if len(seen) == after + 1:  # in the epoch after the last checkpoint
                raise KeyboardInterrupt

        saved = tmp_path / f"{after}.pt"
        with pytest.raises(KeyboardInterrupt):
            run(cell, task, settings, CPU, tell=die, saved=saved)
        torch.manual_seed(99)
        outcome = run(cell, task, settings, CPU, seen.append, saved=saved, network=tmp_path / "again.pt")
        assert without_times(outcome) == without_times(whole) and len(seen) == 5
        ours, theirs = (load(task.model, tmp_path / f"{which}.pt").state_dict() for which in ("again", "whole"))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def trainer(task: ImageTask, optimization: Optimization, *callbacks: Callback, **settings: Any) -> Trainer:
    chosen = replace(SETTINGS, **settings)
    torch.manual_seed(0)
    model = models.build("mlp", task.shape, 10)
    return Trainer(
        model, make_optimizer(chosen, model), task, epochs=chosen.epochs, batch_size=chosen.batch_size, seed=0,
        device=CPU, callbacks=callbacks, optimization=optimization,
    )  # fmt: skip


def test_accumulated_batches_make_the_steps_of_larger_ones(digits: ImageTask) -> None:
    """Without BatchNorm, to the last step of an epoch, which has fewer samples."""
    small = trainer(digits, Optimization(accumulate=2), batch_size=16)
    large = trainer(digits, Optimization(), batch_size=32)
    assert small.per_epoch == large.per_epoch == 5
    small.fit(), large.fit()
    torch.testing.assert_close(small.model.state_dict(), large.model.state_dict(), rtol=1e-4, atol=1e-5)
    for mine, other in zip(small.history, large.history, strict=True):
        assert [mine[key] for key in ("first_loss", "last_loss")] == pytest.approx(
            [other[key] for key in ("first_loss", "last_loss")], rel=1e-3
        )
    assert small.iteration == large.iteration == 20
    assert [small.batches_done(n) for n in (0, 1, 4, 5, 6, 20)] == [0, 2, 8, 10, 12, 40]


def test_flops_and_epochs_do_not_depend_on_accumulation(digits: ImageTask) -> None:
    plain, summed = SETTINGS, replace(SETTINGS, accumulate=3)  # 5 batches are a step of 3 and one of 2
    cell = Cell("surgery", 0, [step("2ep")])
    a, b = (run(cell, digits, settings, CPU) for settings in (plain, summed))
    assert (a["steps"], b["steps"]) == (20, 8) and a["batches"] == b["batches"] == 20
    assert a["training_flops"] == b["training_flops"]
    assert b["operations"][0]["iteration"] == 4 and b["operations"][0]["epoch"] == 2
    arms = replace(summed, arms=("surgery", "restart", "restart_flops"))
    assert [c.epochs for c in rivals(cell, b, arms)] == [c.epochs for c in rivals(cell, a, replace(arms, accumulate=1))]


def test_a_long_gradient_is_clipped_to_the_norm(digits: ImageTask) -> None:
    norms = []

    class Look(Callback):
        def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
            norms.append(float(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()))

    trainer(digits, Optimization(clip=0.3), Look(), epochs=1, optimizer="sgd").fit()
    assert max(norms) == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_diverging_run_says_so_with_clipping_too(digits: ImageTask, clip: float | None) -> None:
    broken = Images(digits.train.pixels, digits.train.labels)
    task = digits.changed(train=broken)
    task.training_loss = lambda outputs, targets: outputs.sum() * float("nan")  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=r"the training loss became nan in epoch 1"):
        trainer(task, Optimization(clip=clip, ema=0.9)).fit()


def test_the_average_is_torchs_and_is_what_is_evaluated(digits: ImageTask) -> None:
    averages: list[AveragedModel] = []

    class Beside(Callback):
        def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
            if not averages:
                made = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
                averages.append(made)
            averages[0].update_parameters(trainer.model)

    one = trainer(digits, Optimization(ema=0.8), Beside(), epochs=2)
    one.fit()
    assert one.average is not None
    torch.testing.assert_close(one.average.module.state_dict(), averages[0].module.state_dict(), rtol=0, atol=0)
    plain = trainer(digits, Optimization(), epochs=2)
    plain.fit()
    torch.testing.assert_close(plain.model.state_dict(), one.model.state_dict(), rtol=0, atol=0)  # it only looks on
    assert one.final is one.average.module and plain.final is plain.model
    assert one.evaluate(one.validation) != plain.evaluate(plain.validation)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_equals_torchs_to_the_bit_through_surgery(decay: float) -> None:
    """With whole numbers among the buffers, which are averaged by themselves."""
    from network_surgery.ops import Anatomy, operate

    model = models.build("small_cnn", (1, 8, 8), 10)
    mine = Optimization(ema=decay).average(model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    assert mine is not None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 8, 8, generator=generator)
    for number in range(6):
        if number == 3:
            operate(Anatomy(model, x[:2])["conv2"], MinWeight(0.5), averages=(mine, theirs))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        model.train()(x)
        mine.update_parameters(model), theirs.update_parameters(model)
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert mine.module.norm2.num_batches_tracked.dtype == torch.int64 and len(mine.module.norm2.weight) == 32


def test_no_step_brings_numbers_to_the_device_or_waits_for_some(digits: ImageTask) -> None:
    """Seen by the calls that do so on a GPU: they are of an epoch, and as many with twice the batches."""

    class Counted(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.name() in ("aten::_local_scalar_dense", "aten::lift_fresh", "aten::lift", "aten::detach_"):
                self.calls.append(func.name())
            return func(*args, **kwargs or {})

    seen = []
    scaled = digits.changed(train=ImageNetScaled(digits.train.pixels.repeat(3, 1), digits.train.labels))
    for size in (16, 32):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
        model(torch.zeros(2, 3, 8, 8))
        optimization = Optimization(Curve("one_cycle"), accumulate=2, clip=1.0)
        one = Trainer(
            model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), scaled, epochs=1, batch_size=size, seed=0,
            device=CPU, optimization=optimization,
        )  # fmt: skip
        one.train.take(torch.arange(2))
        with Counted() as counted:
            one._train_epoch()
        seen.append(counted.calls)
    assert seen[0] == seen[1] and len(seen[0]) < 8


def test_the_average_follows_surgery_and_is_the_final_network(digits: ImageTask, tmp_path: Path) -> None:
    """At a decay of almost 1 it stays what it was after the first step; at almost 0 it is the network."""
    outcomes = {}
    for ema in (None, 1e-9, 0.999999):
        settings = replace(SETTINGS, ema=ema, epochs=3)
        cell = Cell("surgery", 0, [step("1ep"), step("2ep", "fc1", "weak_expand")], test=True)
        outcomes[ema] = run(cell, digits, settings, CPU, network=tmp_path / f"{ema}.pt")
        kept = load(digits.model, tmp_path / f"{ema}.pt")
        assert (kept.conv2.out_channels, kept.fc1.out_features) == (32, 144)
        scores = kept.eval()(digits.test.prepare(torch.tensor(digits.test.pixels)))
        right = (scores.argmax(1) == torch.tensor(digits.test.labels)).double().mean()
        assert outcomes[ema]["test_metric"] == pytest.approx(float(right))
    assert outcomes[1e-9]["test_loss"] == pytest.approx(outcomes[None]["test_loss"], rel=1e-3)
    lazy, plain = (outcomes[ema]["epochs"] for ema in (0.999999, None))
    assert [e["train_loss"] for e in lazy] == [e["train_loss"] for e in plain]
    assert lazy[0]["validation_loss"] > 1.2 * plain[0]["validation_loss"]


def test_repaired_and_renewed_statistics_are_those_of_the_average_too(digits: ImageTask) -> None:
    from network_surgery.ops import Anatomy, Signals, operate
    from network_surgery.study.training.theatre import renew_statistics

    model = models.build("small_cnn", digits.shape, 10)
    average = Optimization(ema=0.9).average(model)
    assert average is not None
    x = digits.train.prepare(torch.tensor(digits.train.pixels[:64]))
    layer = Anatomy(model, x[:2])["conv1"]
    operate(layer, MinWeight(0.5), signals=Signals(model, x), repair=("batchnorm",), averages=average)
    assert average.module.norm2.running_mean.any()
    torch.testing.assert_close(average.module.norm2.state_dict(), model.norm2.state_dict())
    average.module.norm1.running_mean.fill_(3.0)
    renew_statistics(layer, average)
    assert not average.module.norm1.running_mean.any() and average.module.norm2.running_mean.any()


def test_labels_are_smoothed_in_training_alone() -> None:
    settings = Settings(train_images=100, label_smoothing=0.2)
    task = build(settings)
    outputs, targets = torch.randn(8, 10), torch.arange(8)
    smoothed = torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.2)
    assert (
        torch.equal(task.training_loss(outputs, targets), smoothed) and task.loss(outputs, targets).mean() != smoothed
    )


class Own(Classification):
    def load(self) -> Any:
        arrays = np.random.default_rng(0).standard_normal((3, 20, 4)).astype(np.float32)
        return tuple((part, np.arange(20) % 3) for part in arrays)

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


class Regression(Own, Task):
    def training_loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        return outputs.square().mean()


def test_labels_of_a_task_with_a_loss_of_its_own_are_not_smoothed() -> None:
    here = Path(__file__)
    assert build(Settings(task=f"{here}:Own", label_smoothing=0.1)).label_smoothing == 0.1  # type: ignore[attr-defined]
    with pytest.raises(StudyError, match=r"label_smoothing is 0.1, but the training loss of Regression is not that of"):
        build(Settings(task=f"{here}:Regression", label_smoothing=0.1))


def test_every_arm_has_the_recipe_over_its_own_budget(digits: ImageTask) -> None:
    settings = replace(
        SETTINGS, lr_schedule="cosine", warmup=0.1,
        arms=("original", "surgery", "restart", "restart_flops", "restart_seconds", "restart_late", "random"),
    )  # fmt: skip
    surgery = Cell("surgery", 0, [step("1ep"), step("2ep", "fc1")], test=True)
    outcome = run(surgery, digits, settings, CPU)
    cells = [Cell("original", 0), *rivals(surgery, outcome, settings)]
    cells = [replace(c, epochs=min(c.epochs, 7) if c.epochs else None) for c in cells]  # the clock's may be many
    assert {cell.arm for cell in cells} == set(settings.arms) - {"surgery"}
    lengths = set()
    for cell in cells:
        epochs = run(cell, digits, settings, CPU)["epochs"]
        table = Curve("cosine", 0.1).table(5 * len(epochs))
        assert [e["learning_rate"] for e in epochs] == [0.02 * rate for rate in table.rates[4::5]], cell.arm
        lengths.add(len(epochs))
    assert len(lengths) > 1 and 3 in lengths  # the late restart has what was left


def test_operations_change_the_learning_rate_of_their_arm_and_of_random_units(digits: ImageTask) -> None:
    settings = replace(SETTINGS, lr_schedule="linear", arms=("surgery", "restart", "random"))
    cell = Cell("surgery", 0, [step("3ep", after="rewind", after_length="2ep")])
    outcome = run(cell, digits, settings, CPU)
    rates = [e["learning_rate"] for e in outcome["epochs"]]
    assert rates[:3] == pytest.approx([0.02 * (1 - k / 20) for k in (4, 9, 14)]) and rates[3] > 0.1 * 0.02
    assert outcome["operations"][0]["after"] == {"after": "rewind", "after_length": "2ep"}
    restart, random = rivals(cell, outcome, settings)
    assert random.schedule[0] | {"op": 0, "when": 0} == cell.schedule[0] | {"op": 0, "when": 0, "seed": 0}
    assert [e["learning_rate"] for e in run(random, digits, settings, CPU)["epochs"]] == rates
    assert run(restart, digits, settings, CPU)["epochs"][3]["learning_rate"] == pytest.approx(0.02 / 20)
    assert ("optimizer/learning_rate", rates[0], 1) in of_epoch({**outcome["epochs"][0], "operations": []})
    assert describe(cell.schedule) == "min_weight keep 0.5, learning rate rewound by 2ep on conv2 at 3ep"
    with pytest.raises(StudyError, match="rewinds the learning rate, but lr_schedule is constant"):
        run(cell, digits, SETTINGS, CPU)


def test_a_recipe_of_defaults_has_the_key_that_it_always_had() -> None:
    about = Settings().recipe()
    assert not {"lr_schedule", "warmup", "ema", "clip", "accumulate", "decay", "optimizer_arguments"} & about.keys()
    cell = Cell("original", 0)
    others = ({}, {"lr_schedule": "cosine"}, {"ema": 0.9}, {"clip": 1.0}, {"l1": 0.1})
    keys = {cell.key(Settings(**each)) for each in others}
    assert len(keys) == 5

"""The surgeon in a loop of one's own: the same as our trainer does, checkpoints, wrappers, what training is made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

from network_surgery.ops import Condition, MinWeight, Moment, Schedule, Step, SurgeryError
from network_surgery.study.errors import StudyError
from network_surgery.study.loops import Surgeon
from tests.ops.junk import JUNK
from tests.study.loops.same import (
    BATCH,
    EPOCHS,
    PER_EPOCH,
    SCHEDULE,
    SHOWN,
    Result,
    adam,
    assert_same,
    data,
    loader,
    network,
    ours,
)

HALF = Schedule((Step(Moment(2, "it"), "0", MinWeight(0.5)),))


def surgeon(model: nn.Module, optimizer: Any, train: Any, schedule: Schedule = SCHEDULE, **options: Any) -> Surgeon:
    return Surgeon(model, optimizer, schedule, train, signal_samples=SHOWN, held_out_samples=SHOWN, **options)


def step(model: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    model.train()
    optimizer.zero_grad()
    loss = cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss


def epochs(model: nn.Module, optimizer: Any, train: Any, operator: Surgeon, count: int) -> nn.Module:
    for _ in range(count):
        for inputs, targets in train:
            model = operator.before_step()
            operator.after_step(step(model, optimizer, inputs, targets))
    return model


def test_a_plain_loop_does_what_our_trainer_does() -> None:
    model, train = network(), loader()
    optimizer = adam(model)
    operator = surgeon(model, optimizer, train, epochs=EPOCHS)
    epochs(model, optimizer, train, operator, EPOCHS)
    assert_same(ours(), Result(model, operator), exact=True)
    assert operator.epoch == EPOCHS and all(each.epoch_seconds for each in operator.records)


@pytest.mark.parametrize("after", range(0, EPOCHS * PER_EPOCH + 1, 4))
def test_a_loop_that_resumes_goes_on_as_if_nothing_had_been(after: int, tmp_path: Path) -> None:
    """With a checkpoint of the loop's own, read with ``weights_only``, at moments before and after each operation."""
    whole = ours()

    def parts(at: int) -> tuple[Any, ...]:
        model = network()
        optimizer = adam(model)
        train = loader(at // PER_EPOCH)
        return model, optimizer, train, surgeon(model, optimizer, train, epochs=EPOCHS)

    def run(model: Any, optimizer: Any, train: Any, operator: Surgeon, start: int, end: int) -> None:
        while start < end:
            for place, (inputs, targets) in enumerate(train):
                if start % PER_EPOCH == place and start < end:
                    operator.before_step()
                    operator.after_step(step(model, optimizer, inputs, targets))
                    start += 1

    model, optimizer, train, operator = parts(0)
    run(model, optimizer, train, operator, 0, after)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "surgeon": operator.state_dict()}
    torch.save(saved, tmp_path / "a.pt")
    kept = torch.load(tmp_path / "a.pt", weights_only=True)
    model, optimizer, train, operator = parts(after)
    operator.load_state_dict(kept["surgeon"])
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    run(model, optimizer, train, operator, after, EPOCHS * PER_EPOCH)
    assert_same(whole, Result(model, operator), exact=True)


def test_schedulers_averages_accumulation_and_several_optimizers_follow() -> None:
    model = network()
    optimizers = [torch.optim.SGD(model[:3].parameters(), 0.1, 0.9), torch.optim.AdamW(model[3:].parameters(), 1e-3)]
    schedulers = [CosineAnnealingLR(each, 10) for each in optimizers]
    average, train = AveragedModel(model), loader()
    operator = surgeon(model, optimizers, train, averages=average, steps_per_epoch=PER_EPOCH // 2)
    for _ in range(EPOCHS + 1):
        for place, (inputs, targets) in enumerate(train):
            if place % 2 == 0:
                operator.before_step()
            loss = cross_entropy(model.train()(inputs), targets) / 2
            loss.backward()
            if place % 2:
                for each, scheduler in zip(optimizers, schedulers, strict=True):
                    each.step()
                    each.zero_grad()
                    scheduler.step()
                average.update_parameters(model)
                operator.after_step(2 * loss)
    assert [each.iteration for each in operator.records[:2]] == [4, 4] and operator.epoch == EPOCHS + 1
    for ours_, theirs in zip(model.parameters(), average.module.parameters(), strict=True):
        assert ours_.shape == theirs.shape
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            assert all(value.shape in (parameter.shape, ()) for value in state.values())
    average.module.eval()(data()[0])


def test_a_scaler_and_autocast_go_on() -> None:
    model, train = network(), loader()
    optimizer = adam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    operator = surgeon(model, optimizer, train, HALF)
    for inputs, targets in train:
        operator.before_step()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model.train()(inputs), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        operator.after_step(loss)
    assert model[0].out_channels == 6 and len(operator.records) == 1


@pytest.fixture
def group(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_distributed_model_goes_on_in_a_new_wrapper() -> None:
    plain, train = network(), loader()
    model = nn.parallel.DistributedDataParallel(plain)
    optimizer = adam(plain)
    operator = surgeon(model, optimizer, train, epochs=EPOCHS)
    last = epochs(model, optimizer, train, operator, EPOCHS)
    assert isinstance(last, nn.parallel.DistributedDataParallel) and last is not model and last.module is plain
    assert_same(ours(), Result(plain, operator))


@pytest.mark.usefixtures("group")
def test_a_distributed_model_sends_the_gradients_of_every_step() -> None:
    """Also of those before the first operation, when an anatomy has been taken, and after a look at a condition."""
    sent: list[int] = []

    def note(state, bucket):  # torch looks at annotations
        sent.append(operator.iteration)
        return allreduce_hook(None, bucket)

    plain, train = network(), loader()
    model = nn.parallel.DistributedDataParallel(plain)
    model.register_comm_hook(None, note)
    condition = Condition.parse("redundancy(0.05) >= 0.99 from 2it every 2it at most 1")  # which is never met
    operator = surgeon(model, adam(plain), train, Schedule((Step(condition, "0", MinWeight(0.5)),)))
    epochs(model, operator.optimizer, train, operator, 1)
    assert operator.checks and not operator.records
    assert sorted({*sent}) == list(range(PER_EPOCH))


def test_a_compiled_model_goes_on() -> None:
    plain, train = network(), loader()
    model = torch.compile(plain, backend="eager")
    optimizer = adam(plain)
    operator = surgeon(model, optimizer, train, epochs=EPOCHS)
    epochs(model, optimizer, train, operator, EPOCHS)
    assert_same(ours(), Result(plain, operator))


class Endless(IterableDataset[Any]):
    def __iter__(self):
        images, targets = data()
        while True:
            yield from zip(images, targets, strict=True)


def test_samples_come_in_any_shape() -> None:
    images, targets = data()
    batches = list(zip(images.split(BATCH), targets.split(BATCH), strict=True))
    dictionary = [{"inputs": x, "labels": y} for x, y in batches]
    expected = None
    for train, options in (
        ((images, targets), {}),
        (batches, {}),
        (torch.utils.data.TensorDataset(images, targets), {}),
        (dictionary, {"split": lambda batch: (batch["inputs"], batch["labels"])}),
    ):
        model = network()
        operator = surgeon(model, adam(model), train, HALF, steps_per_epoch=4, **options)
        operator.iteration = 2
        operator.before_step()
        (record,) = operator.records
        expected = expected or record.loss_after
        assert record.loss_after == pytest.approx(expected) and record.metric_after != record.loss_after
    model = network()
    operator = surgeon(model, adam(model), DataLoader(Endless(), BATCH), HALF, steps_per_epoch=4)
    assert len(operator.train) == 2048


def test_any_loss_and_metric() -> None:
    images, _ = data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16))
    schedule = Schedule((Step(Moment(0), "1", MinWeight(0.5)),))
    for metric in (None, lambda outputs, targets: (outputs - targets).abs().flatten(1).amax(1)):
        replica = copy.deepcopy(model)
        operator = Surgeon(
            replica, adam(replica), schedule, (images, images.flatten(1)), loss=nn.functional.mse_loss, metric=metric,
            steps_per_epoch=5,
        )  # fmt: skip
        operator.before_step()
        (record,) = operator.records
        assert record.loss_before == pytest.approx(float(nn.functional.mse_loss(model(images), images.flatten(1))))
        assert (record.metric_before == record.loss_before) is (metric is None)


def test_what_cannot_be_done_is_one_sentence() -> None:
    model = network()
    optimizer = adam(model)
    with pytest.raises(StudyError, match="steps_per_epoch"):
        Surgeon(model, optimizer, HALF, data())
    with pytest.raises(StudyError, match="not a int"):
        Surgeon(model, optimizer, HALF, 3, steps_per_epoch=2)
    with pytest.raises(StudyError, match="empty"):
        Surgeon(model, optimizer, HALF, [], steps_per_epoch=2)
    with pytest.raises(StudyError, match="split="):
        Surgeon(model, optimizer, HALF, [{"x": 1}], steps_per_epoch=2)
    with pytest.raises(StudyError, match="a schedule is"):
        Surgeon(model, optimizer, [HALF], data(), steps_per_epoch=2)  # type: ignore[arg-type]

    with pytest.raises(StudyError, match="changes the learning rate"):
        surgeon(model, optimizer, loader(), Schedule((Step(Moment(0), "0", MinWeight(0.5), (), "rewarm"),)))
    with pytest.raises(StudyError, match="no state of a surgeon"):
        surgeon(model, optimizer, loader()).load_state_dict({})
    with pytest.raises(SurgeryError, match="names the layer 'nope'"):
        surgeon(model, optimizer, loader(), Schedule((Step(Moment(0), "nope", MinWeight(0.5)),))).before_step()
    with pytest.raises(SurgeryError, match="training ends after 1 epochs"):
        surgeon(model, optimizer, loader(), Schedule((Step(Moment(1), "0", MinWeight(0.5)),)), epochs=1).before_step()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["model", "optimizer", "schedule", "train", "held_out", "loss", "metric", "split", "averages", "steps_per_epoch",
     "epochs", "signal_samples", "held_out_samples", "carry", "step's loss"],
)  # fmt: skip
def test_whatever_it_is_given_it_works_or_says_why_in_one_line(name: str) -> None:
    for what, junk in JUNK.items():
        model = network()
        given = {"model": model, "optimizer": adam(model), "schedule": HALF, "train": data(), "steps_per_epoch": 2}
        loss: Any = junk if name == "step's loss" else torch.zeros(())
        try:
            surgeon = Surgeon(**given | ({} if name == "step's loss" else {name: junk}))
            for _ in range(5):
                surgeon.before_step()
                surgeon.after_step(loss)
        except (SurgeryError, StudyError) as refusal:
            assert "\n" not in str(refusal) and len(str(refusal)) < 500, what

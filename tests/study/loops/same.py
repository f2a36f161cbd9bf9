"""One training run in every loop: the same network, the same batches, the same schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from network_surgery.ops import PCNS, Condition, MinWeight, Moment, Schedule, Step, WeakExpand
from network_surgery.study.task.samples import Samples, Sets
from network_surgery.study.task.task import Classification
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Trainer

EPOCHS, BATCH, SEED, SHOWN = 4, 16, 3, 64
PER_EPOCH = 8
LOOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-6}
SCHEDULE = Schedule(
    (
        Step(Moment(1), "0", MinWeight(0.5)),
        Step(Moment(1), "4", MinWeight(0.75), ("bias", "batchnorm")),
        Step(Condition.parse("redundancy(0.05) >= 0.1 from 2ep every 3it at most 1"), "4", PCNS(0.05)),
        Step(Moment(27, "it"), "0", WeakExpand(1.0)),
    )
)


def data() -> tuple[Tensor, Tensor]:
    """Eight batches of images whose class is the quarter that is brightest."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PER_EPOCH * BATCH, 1, 4, 4, generator=generator)
    targets = images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(1).argmax(1)
    return images, targets


def build() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 4),
    )  # fmt: skip


def network() -> nn.Sequential:
    torch.manual_seed(7)
    return build()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


class Order:
    """The batches of our trainer's epochs, one epoch after the other, as a batch sampler."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return PER_EPOCH

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        seed = SEED * 100_003 + self.epoch
        order = torch.randperm(PER_EPOCH * BATCH, generator=torch.Generator().manual_seed(seed))
        self.epoch += 1
        yield from order.view(-1, BATCH).tolist()


class Loader(DataLoader[Any]):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def loader(epoch: int = 0, collate: Any = None) -> DataLoader[Any]:
    return Loader(TensorDataset(*data()), batch_sampler=Order(epoch), collate_fn=collate)


class Quarters(Classification):
    def load(self) -> Sets:
        samples = Samples(*data())
        return Sets(samples, samples, samples)


class Result:
    """What must be the same: units, weights, records and looks, without their seconds."""

    def __init__(self, model: nn.Module, source: Any) -> None:
        self.model = model
        self.records = [without_times(each.to_data()) for each in source.records]
        self.checks = [without_times(each.to_data()) for each in source.checks]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if "seconds" not in name and name != "interruptibility"}


def ours() -> Result:
    model, task = network(), Quarters()
    theatre = Theatre(SCHEDULE, task.validation.thinned(SHOWN), SHOWN)
    trainer = Trainer(
        model, adam(model), task, epochs=EPOCHS, batch_size=BATCH, seed=SEED, device=torch.device("cpu"),
        callbacks=[theatre],
    )  # fmt: skip
    trainer.fit()
    return Result(model, theatre)


def assert_same(one: Result, other: Result, exact: bool = False) -> None:
    tight: dict[str, float] = {"rtol": 0, "atol": 0} if exact else LOOSE
    assert len(one.records) == len(SCHEDULE.steps) and any(each["operated"] for each in one.checks)
    for name in ("records", "checks"):
        mine, others = getattr(one, name), getattr(other, name)
        assert len(mine) == len(others)
        for left, right in zip(mine, others, strict=True):
            assert left.keys() == right.keys()
            for key, value in left.items():
                if key.endswith("_error") and right[key] is None:
                    continue  # a loss that is one number for a batch has no error over samples
                if isinstance(value, float):
                    torch.testing.assert_close(
                        value, right[key], rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
                    )
                else:
                    assert value == right[key] or isinstance(value, dict), key
    states = [{k: v for k, v in x.model.state_dict().items() if k != "surgery_architecture"} for x in (one, other)]
    torch.testing.assert_close(*states, **tight)

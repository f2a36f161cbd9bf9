"""What costs on a GPU, counted: waits of the host, copies, memory; and what happens where it runs out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery import ops
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.augmentation import Augmentation
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.training import checkpoint
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import pick_device
from network_surgery.study.training.run import run, trainer_of
from network_surgery.study.training.trainer import Trainer
from tests.gpu.compare import GENTLE
from tests.ops.networks import NETWORKS, build
from tests.ops.test_memory import ACTS, same_as
from tests.standin import device as standin


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    task = load("digits", 0.25)
    return task.changed(train=task.train.thinned(160), validation=task.validation.thinned(64))


RECIPES: dict[str, dict[str, Any]] = {
    "adam": {}, "adamw": {"optimizer": "adamw"}, "sgd": {"optimizer": "sgd"}, "average": {"ema": 0.9},
    "clip, one_cycle": {"clip": 1.0, "lr_schedule": "one_cycle"}, "accumulate": {"accumulate": 2},
    "augmented, channels last": {"augment": "crop_flip", "mix": "cutmix", "channels_last": True},
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_epoch_waits_for_the_device_three_times(
    device: torch.device, digits: ImageTask, tmp_path: Path, recipe: str
) -> None:
    """For its mean, first and last loss, however many steps it has; a resumed run too. The order is one copy."""
    settings = Settings(epochs=3, batch_size=32, probe=0, **RECIPES[recipe])
    task = digits.changed(augmentation=Augmentation(settings.augment, mix=settings.mix, classes=10))

    def made() -> Trainer:
        torch.manual_seed(0)
        return trainer_of(models.build("small_cnn", task.shape, 10), task, settings, 0, device)

    fresh, resumed = made(), made()
    fresh._train_epoch()
    fresh.epoch, fresh.history = 1, [dict.fromkeys(checkpoint.EPOCH, 1.0)]
    checkpoint.save(fresh, tmp_path / "saved.pt")
    checkpoint.load(resumed, tmp_path / "saved.pt")
    for trainer in (fresh, resumed):
        standin.reset()
        trainer._train_epoch()
        found = standin.counts()
        assert (found["syncs"], found["to_device"], found["to_host"]) == (3, 1, 0)
    standin.reset()
    fresh.evaluate(fresh.validation)
    assert (standin.counts()["syncs"], standin.counts()["to_device"]) == (3, 0)


EXPRESSED: dict[str, ops.Operation] = {
    "hash": ops.HashWeights(), "edges": ops.RandomEdges(), "codebook": ops.ShareWeights(12, 3),
    "product": ops.ShareWeights(3, 3, "each"), "predicted": ops.PredictWeights(columns=3),
    "measured": ops.PredictWeights(dictionary="covariance"), "fastfood": ops.Fastfood(),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSED)
def test_training_with_expressed_weights_waits_for_nothing(device: torch.device, name: str) -> None:
    """Weights are computed where the numbers are, also after units have gone."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(32, 1, 8, 8).to(device), (torch.arange(32) % 10).to(device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    anatomy = ops.Anatomy(model, x[:2])
    ops.operate(anatomy["*"], EXPRESSED[name], optimizer, ops.Signals(model, x))
    for layer in ("0", "2"):
        ops.operate(anatomy[layer], ops.MinWeight(0.5), optimizer)
    step()
    standin.reset()
    step()
    found = standin.counts()
    assert (found["syncs"], found["to_device"], found["to_host"]) == (0, 0, 0)


#: Operations on two layers with nothing between them, which these networks have not.
TWO = ("collapse",)
#: The most copies to the device that an operation on a convolution makes, and the most waits for the device.
MOST: dict[str, tuple[int, int]] = {
    "compact": (30, 12), "eigen_remove": (30, 15), "grad_max": (400, 120), "mean_replace": (40, 25),
    "min_weight": (30, 12), "pcns": (50, 35), "prune_weights": (20, 60), "random_remove": (30, 10),
    "remove_dead": (45, 40), "revive": (80, 40), "weak_expand": (40, 12), "zero_expand": (50, 10),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name for name, kind in ops.OPERATIONS.items() if name not in TWO and not kind.of_blocks]
)
def test_copies_of_an_operation_do_not_grow_with_its_units(device: torch.device, name: str) -> None:
    """Indices, shares and blocks go over in a few pieces; on a GPU each of them is a wait of its own."""
    found = []
    for width in (1, 3):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(8 * width, 16 * width, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16 * width, 10),
        ).to(device)  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters())
        x, y = torch.randn(32, 1, 8, 8).to(device), (torch.arange(32) % 10).to(device)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        anatomy, operation = ops.Anatomy(model, x[:2]), GENTLE.get(name, ops.OPERATIONS[name])()
        layer = anatomy["*" if operation.whole_network else "2"]
        signals = ops.Signals.over(model, [x], [*anatomy.values()], y)
        standin.reset()
        ops.operate(layer, operation, optimizer, signals)
        found.append((standin.counts()["to_device"], standin.counts()["syncs"]))
    most = MOST.get(name, (70, 60))
    assert all(copies <= most[0] and syncs <= most[1] for copies, syncs in found), found
    if name != "grad_max":  # which works unit by unit
        assert found[1][0] <= found[0][0] + 2 and found[1][1] <= found[0][1] + 4, found


@pytest.mark.parametrize(
    "name", [name for name, kind in ops.OPERATIONS.items() if name not in TWO and not kind.of_blocks]
)
def test_memory_of_an_operation(device: torch.device, name: str) -> None:
    """It holds a few times the network's weights, and afterwards nothing that it did not leave."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    x, y = torch.randn(16, 32).to(device), (torch.arange(16) % 10).to(device)
    anatomy, operation = ops.Anatomy(model, x[:2]), GENTLE.get(name, ops.OPERATIONS[name])()
    layer = anatomy["*" if operation.whole_network else "2"]
    signals = ops.Signals.over(model, [x], [*anatomy.values()], y)
    standin.reset()
    before = standin.counts()["bytes"]
    ops.operate(layer, operation, optimizer, signals)
    assert standin.counts()["peak_bytes"] - before < 16 * weights, (standin.counts()["peak_bytes"] - before) / weights


# -- out of memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTS)
def test_memory_that_runs_out_is_said_to_have_run_out(device: torch.device, name: str) -> None:
    """At any allocation of the device; the network is as before."""
    torch.manual_seed(0)
    model, x = build("cnn", batch=16)
    model, x, y = model.to(device), x.to(device), (torch.arange(16) % 3).to(device)

    def attempt(at: int) -> tuple[BaseException | None, bool, int]:
        network = copy.deepcopy(model)
        anatomy = ops.Anatomy(network, x)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        standin.reset()
        try:
            with standin.failing(at):
                ACTS[name](network, x, y, anatomy)
        except Exception as error:
            same_as(network.state_dict(), before)
            return error, True, 0
        return None, False, standin.counts()["allocations"]

    _, failed, count = attempt(-1)
    assert not failed and count > 10
    outcomes = [attempt(at)[0] for at in range(1, count + 1, max(1, count // 12))]
    assert all(error is None or isinstance(error, torch.OutOfMemoryError) for error in outcomes), outcomes
    assert sum(error is not None for error in outcomes) > len(outcomes) / 2  # some is only of checks that can be left


def test_memory_that_runs_out_in_a_run(device: torch.device, digits: ImageTask) -> None:
    steps = [{"when": "1ep", "layer": "conv2", "op": "mean_replace", "keep": 0.5, "repair": ["least_squares"]}]
    settings = Settings(epochs=2, batch_size=64, signal_images=32, held_out=32, probe=1)

    def attempt(at: int) -> int:
        standin.reset()
        with standin.failing(at):
            run(Cell("surgery", 0, steps, test=True), digits, settings, device)
        return standin.counts()["allocations"]

    count = attempt(-1)
    for at in range(5, count, count // 8):
        with pytest.raises(torch.OutOfMemoryError):
            attempt(at)


# -- other arithmetic --------------------------------------------------------------------------------------------------


class TF32(TorchDispatchMode):
    """Convolutions and products of float32 read their factors with 10 bits after the point, as tensor cores do."""

    FACTORS: ClassVar = {"convolution": (0, 1), "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = self.FACTORS.get(func.overloadpacket.__name__, ())
        rounded = [self._rounded(each) if place in places else each for place, each in enumerate(args)]
        return func(*rounded, **(kwargs or {}))

    def _rounded(self, factor: Tensor) -> Tensor:
        if factor.dtype != torch.float32:
            return factor
        return ((factor.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_tf32_costs_no_layer(name: str) -> None:
    model, x = build(name, torch.float32, 4)
    wanted = ops.Anatomy(model, x)
    with TF32():
        found = ops.Anatomy(model, x)
    assert list(found) == list(wanted) and dict(found.pinned) == dict(wanted.pinned)


def test_a_device_without_float64_is_refused_in_one_sentence(device: torch.device) -> None:
    """Operations calculate in it; what is left of a study goes to the CPU."""
    model, x = build("cnn", torch.float32, 8)
    model, x = model.to(device), x.to(device)
    with standin.without_double():
        with pytest.raises(
            ops.SurgeryError, match="on standin:0, which has no float64, and operations calculate in it"
        ):
            ops.Anatomy(model, x)
        with pytest.raises(StudyError, match="device is 'standin', which has no float64"):
            pick_device("standin")
        assert pick_device("auto") == torch.device("cpu")
    assert list(ops.Anatomy(model, x)) and pick_device("auto").type == "standin"

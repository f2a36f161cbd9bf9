"""Training steps that are replayed: bit-equal to ordinary ones, captured anew after operations, off where they must."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import MeanReplace, MinWeight, PruneWeights, WeakExpand
from network_surgery.study.config import Settings
from network_surgery.study.recipe.augmentation import Augmentation
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.training import graph
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.graph import Graph, refusal
from network_surgery.study.training.run import run
from tests.standin import recorder
from tests.study.training.test_training import CPU, schedule

SETTINGS = Settings(epochs=3, batch_size=64, held_out=64, signal_images=64, model="small_cnn", cuda_graph=True, probe=0)
STEPS = schedule(
    ("1ep", "conv2", MinWeight(0.5)), ("1ep", "fc1", MeanReplace(0.5)), ("2ep", "conv1", WeakExpand(0.5)),
    ("2ep", "*", PruneWeights(0.3)),
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    task = load("digits", 0.25)
    return task.changed(train=task.train.thinned(240), validation=task.validation.thinned(64))


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A list of operators takes the place of a CUDA graph; the number of captures."""
    count = [0]

    def record(*given: Any) -> Any:
        count[0] += 1
        return recorder.record(*given)

    monkeypatch.setitem(graph.RECORDERS, "cpu", record)
    yield count


def outcome(task: ImageTask, settings: Settings, folder: Path, cell: Cell | None = None) -> tuple[Any, Any]:
    kept = folder / "network.pt"
    outcome = run(cell or Cell("surgery", 0, STEPS), task, settings, CPU, saved=folder / "saved.pt", network=kept)
    return outcome, torch.load(kept, weights_only=True)["weights"]


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    for key in ("train_loss", "first_loss", "last_loss", "validation_loss"):
        assert [each[key] for each in one[0]["epochs"]] == [each[key] for each in other[0]["epochs"]], key
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


RECIPES: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd, clip, average": {"optimizer": "sgd", "learning_rate": 0.01, "clip": 1.0, "ema": 0.9},
    "accumulate, one_cycle": {"accumulate": 3, "lr_schedule": "one_cycle"},
    "bf16, channels last, augmented": {"precision": "bf16", "channels_last": True, "augment": "crop_flip"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_replayed_steps_equal_ordinary_ones_through_surgery(
    digits: ImageTask, replayed: list[int], tmp_path: Path, recipe: str
) -> None:
    settings = replace(SETTINGS, **RECIPES[recipe])
    task = digits.changed(augmentation=Augmentation(settings.augment))
    mine = outcome(task, settings, tmp_path / "mine")
    assert replayed == [3]  # at the start and after the operations of two moments
    report = mine[0]["cuda_graph"]
    assert report["reason"] is None and report["capture_seconds"] > 0
    assert report["replayed"] == 3 * 3  # of the batches of an epoch, the last is smaller
    theirs = outcome(task, replace(settings, cuda_graph=False), tmp_path / "theirs")
    assert "cuda_graph" not in theirs[0] and "replayed" not in theirs[0]["epochs"][0]
    same(mine, theirs)


def test_it_goes_on_as_it_would_have_after_resuming(digits: ImageTask, replayed: list[int], tmp_path: Path) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    whole = outcome(digits, SETTINGS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Cell("surgery", 0, STEPS), digits, SETTINGS, CPU, stop, tmp_path / "saved.pt")
    resumed = outcome(digits, SETTINGS, tmp_path)
    same(whole, resumed)
    assert resumed[0]["cuda_graph"]["replayed"] == whole[0]["cuda_graph"]["replayed"]


def test_where_there_are_no_graphs_it_trains_as_ever(digits: ImageTask, tmp_path: Path) -> None:
    cell = Cell("surgery", 0, ())
    one, other = (
        outcome(digits, replace(SETTINGS, epochs=1, cuda_graph=on), tmp_path / str(on), cell) for on in (True, False)
    )
    same(one, other)
    assert one[0]["cuda_graph"] == {
        "replayed": 0, "capture_seconds": 0.0, "reason": "there are no CUDA graphs on cpu",
    }  # fmt: skip


class Net(nn.Module):
    """A small network that does something else besides."""

    def __init__(self, besides: Any) -> None:
        super().__init__()
        self.layer, self.norm, self.calls, self.besides = nn.Linear(4, 3), nn.BatchNorm1d(3), 0, besides

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.besides(self, self.norm(self.layer(x)))


BESIDES: dict[str, tuple[Any, str | None]] = {
    "nothing": (lambda net, h: h, None),
    "dropout": (lambda net, h: nn.functional.dropout(h, 0.5), None),
    "long index": (lambda net, h: h[:, torch.tensor([2, 1, 0])], None),
    "masked fill": (lambda net, h: h.masked_fill(h > 0, 0.5), None),
    "branch on a value": (lambda net, h: h if h.mean() > 0 else -h, "depends on values of tensors"),
    "chosen by a mask": (lambda net, h: h[h > 0].sum() * h, "depends on values of tensors"),
    "assigned by a mask": (lambda net, h: h.index_put((h > 0,), h.new_tensor(0.0)), "depends on values of tensors"),
    "number of its calls": (lambda net, h: h * net.calls, "not the same each time"),
    "chance of Python": (lambda net, h: h * random.random(), "on the host"),
    "chance of NumPy": (lambda net, h: h + (np.random.rand() > 2), "on the host"),
    "error": (lambda net, h: h @ h, "cannot be captured: "),
}


@pytest.mark.parametrize("name", BESIDES)
def test_what_a_graph_cannot_repeat_is_computed_as_ever(replayed: list[int], name: str) -> None:
    """And looking has left nothing: gradients, statistics and random numbers are as before."""
    besides, reason = BESIDES[name]
    net, x, y = Net(besides), torch.randn(8, 4), torch.arange(8) % 3

    def step(inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        loss = nn.functional.cross_entropy(net(inputs), targets)
        (loss * share).backward()
        return loss.detach()

    replays = Graph(net, step, CPU)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    kept = [each.clone() for each in net.state_dict().values()]
    assert (replays._captured(x, y, 1.0) is None) == (reason is not None)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(kept, net.state_dict().values(), strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]
    assert replays.reason is None if reason is None else reason in str(replays.reason)


def test_a_replay_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(function: Any, device: torch.device) -> Any:
        return (lambda: None), function()

    monkeypatch.setitem(graph.RECORDERS, "cpu", wrong)
    net = nn.Linear(4, 3)

    def step(inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        return loss.detach()

    replays = Graph(net, step, CPU)
    loss = replays.backward(torch.randn(8, 4), torch.arange(8) % 3, 1.0)
    assert replays.reason == "a replay does not compute what the step does" and replays.replayed == 0
    assert loss.isfinite() and net.weight.grad is not None


def test_memory_that_runs_out_passes_through(replayed: list[int]) -> None:
    def step(inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Graph(nn.Linear(4, 3), step, CPU).backward(torch.randn(8, 4), torch.arange(8) % 3, 1.0)


def test_exchanged_tensors_are_noticed_where_somebody_may_have_exchanged_them(replayed: list[int]) -> None:
    net, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3

    def step(inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        return loss.detach()

    replays = Graph(net, step, CPU)
    first = replays.backward(x, y, 1.0)
    net.weight.data = torch.zeros(3, 4)
    assert torch.equal(replays.backward(x, y, 1.0), first)  # as on a GPU: it reads where the weights were
    replays.doubt()
    assert not torch.equal(replays.backward(x, y, 1.0), first) and replayed == [2]


def test_a_step_that_is_traced_is_the_same_or_says_why() -> None:
    assert refusal(lambda: torch.ones(2).sum(), CPU) is None
    assert refusal(lambda: torch.ones(2).sum().item(), CPU) == "it depends on values of tensors (_local_scalar_dense)"


def test_a_capture_that_cuda_ends_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card, where the end of the capture fails, too, before it has put anything back."""
    done: list[Any] = []

    class Capture:
        def __init__(self, *_: Any, pool: Any, **__: Any) -> None:
            self.pool = pool

        def __enter__(self) -> None:
            done.append("capture")

        def __exit__(self, *_: Any) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    state = SimpleNamespace(clone_state=lambda: "state", graphsafe_set_state=lambda state: done.append(state))
    parts: dict[str, Any] = {
        "graph": Capture, "CUDAGraph": object, "graph_pool_handle": lambda: (0, 1), "current_device": lambda: 0,
        "current_stream": lambda _: "stream", "set_stream": done.append, "default_generators": [state],
    }  # fmt: skip
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *given, name=name: done.append((name, *given)), raising=False)

    def waits() -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        graph.RECORDERS["cuda"](waits, torch.device("cuda"))
    pool = [(name, 0, (0, 1)) for name in ("_cuda_endAllocateToPool", "_cuda_releasePool")]
    assert done == ["capture", "stream", "state", *pool]

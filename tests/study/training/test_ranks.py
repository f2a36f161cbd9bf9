"""A run of two processes is that of one to rounding, before and after every operation, and the processes agree."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist

from network_surgery.ops import RandomRemove, SurgeryError
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training import checkpoint
from network_surgery.study.training import ranks as module
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.ranks import Ranks
from network_surgery.study.training.run import run
from network_surgery.study.training.trainer import Callback, Trainer

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
CPU = torch.device("cpu")
#: 126 samples are trained on, in batches of 31 (16 and 15 on the two ranks) and a last one of 2.
SETTINGS = Settings(
    model="small_cnn", train_images=165, batch_size=31, epochs=3, optimizer="sgd", learning_rate=0.05, held_out=31,
    signal_images=32, probe=0,
)  # fmt: skip


def connect(rank: int, meeting: str) -> Ranks:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    return Ranks(rank, 2)


def serve(meeting: str, pipe: Connection) -> None:
    """The second rank: does what it is sent, and sends what came of it."""
    import tests  # noqa: F401  # before anything of the project

    ranks = connect(1, meeting)
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                pipe.send(function(ranks, *arguments))
            except Exception as error:
                pipe.send(error)


class Pair:
    """This process and another one, which train together."""

    def __init__(self, ranks: Ranks, pipe: Connection) -> None:
        self._ranks, self._pipe = ranks, pipe

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
        """What a function of this file returns, or raises, on either."""
        self._pipe.send((function, arguments))
        try:
            here: Any = function(self._ranks, *arguments)
        except Exception as error:
            here = error
        assert self._pipe.poll(60), "the other rank does not come to an end"
        return here, self._pipe.recv()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    meeting = str(tmp_path_factory.mktemp("ranks") / "meeting")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=serve, args=(meeting, there), daemon=True)
    other.start()
    try:
        yield Pair(connect(0, meeting), here)
    finally:
        dist.destroy_process_group()
        other.kill()
        other.join()


class Notes(Callback):
    """Keeps the weights and the digest of everything after each operation, and which samples are trained on."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
        tensors = module._tensors((trainer.model, *trainer.averages), trainer.optimizer)
        self.digests.append(module._digest(module._bytes(each) for each in tensors.values()))
        self.weights.append({name: each.detach().clone() for name, each in trainer.model.state_dict().items()})


def train(
    ranks: Ranks, schedule: list[dict[str, Any]], settings: Settings = SETTINGS, saved: Path | None = None,
    stop: int | None = None, every: float = checkpoint.Checkpointer.EVERY, **more: Any,
) -> tuple[dict[str, Any], Notes]:  # fmt: skip
    """The outcome of a run and notes of it; only the first rank keeps ``saved``, every so many seconds within an epoch.
    ``stop``: raises after this number of steps.
    """
    notes, cell = Notes(), Cell("surgery", 0, schedule, test=True, **more)
    saved = saved if ranks.first else None

    class Stop(Callback):
        def before_step(self, trainer: Trainer) -> None:
            if trainer.iteration == stop:
                raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpointer, "EVERY", every)
        outcome = run(cell, ImageTask.of(settings), settings, CPU, saved=saved, also=[notes, Stop()], ranks=ranks)
    return outcome, notes


MIN = {"when": "1ep", "layer": "conv1", "op": "min_weight", "keep": 0.5}
SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "remove": [
        MIN | {"repair": ["bias", "batchnorm"]},
        {"when": "4it", "layer": "fc1", "op": "eigen_remove", "keep": 0.5},
    ],
    "expand": [
        {"when": "2it", "layer": "conv2", "op": "weak_expand", "grow": 0.25},
        {"when": "5it", "layer": "fc1", "op": "zero_expand", "grow": 0.25},
    ],
    "a condition": [
        {"when": "redundancy(0.05) >= 0.1 from 1it every 4it at most 1", "layer": "fc1", "op": "pcns"},
    ],
    "a budget": [
        {"when": "1ep", "layer": "*", "op": "mean_replace", "budget": {"parameters": 0.5}, "allocate": "saliency"},
    ],
    "masks": [{"when": "1ep", "layer": "*", "op": "prune_weights", "fraction": 0.5}],
}  # fmt: skip


def numbers(outcome: dict[str, Any]) -> dict[str, Any]:
    """What of an outcome is the same on any machine."""
    epochs = ("train_loss", "first_loss", "last_loss", "validation_loss", "validation_metric", "learning_rate")
    operations = (
        "loss_before", "loss_after", "metric_before", "metric_after", "training_loss_before", "training_loss_after",
        "units_before", "units_after", "parameters_after", "epochs_to_recover",
    )  # fmt: skip
    return {
        "epochs": [{name: each[name] for name in epochs} for each in outcome["epochs"]],
        "operations": [{name: each[name] for name in operations} for each in outcome["operations"]],
        "gains": [each["gain"] for each in outcome["checks"]],
        **{name: outcome[name] for name in ("test_metric", "test_loss", "train_metric", "training_flops", "steps")},
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_two_ranks_are_one_to_rounding(pair: Pair, name: str) -> None:
    (here, mine), (there, theirs) = pair(train, SCHEDULES[name])
    alone, notes = train(Ranks(), SCHEDULES[name])
    assert alone["operations"]
    assert mine.digests == theirs.digests
    torch.testing.assert_close(numbers(here), numbers(alone), rtol=1e-3, atol=1e-4)
    assert numbers(here) == numbers(there)
    for found, right in zip(mine.weights, notes.weights, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


def test_two_ranks_are_one_by_the_rest_of_the_recipe(pair: Pair) -> None:
    """Adam, batches that are accumulated, a clipped gradient, an average of the weights, training-mode scores."""
    settings = replace(
        SETTINGS, optimizer="adam", learning_rate=1e-3, accumulate=2, clip=0.5, ema=0.9, accuracy_mode="training"
    )
    (here, mine), (_, theirs) = pair(train, [MIN], settings)
    alone, _ = train(Ranks(), [MIN], settings)
    assert mine.digests == theirs.digests
    torch.testing.assert_close(numbers(here), numbers(alone), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("stop", "every"), [(10, 60.0), (8, 0.0)])
def test_a_run_that_resumes_is_the_whole_one_to_the_bit(pair: Pair, tmp_path: Path, stop: int, every: float) -> None:
    """After an epoch or between two steps; the first rank alone has the checkpoint, and dropout and augmentation draw
    what they would have drawn.
    """
    settings, saved = replace(SETTINGS, augment="crop_flip"), tmp_path / "cell.pt"
    (whole, notes), _ = pair(train, SCHEDULES["expand"], settings)
    stopped, _ = pair(train, SCHEDULES["expand"], settings, saved, stop, every)
    assert isinstance(stopped, InterruptedError) and saved.exists()
    (here, mine), (_, theirs) = pair(train, SCHEDULES["expand"], settings, saved)
    assert mine.digests == theirs.digests == notes.digests[-len(mine.digests) :] and len(mine.digests) == 15 - stop
    assert numbers(here) == numbers(whole)


def parts_of(ranks: Ranks) -> list[torch.Tensor]:
    """The numbers of the samples that a rank trains on, batch by batch."""
    found: list[torch.Tensor] = []
    over = Batches.over

    def noted(self: Batches, parts: Iterable[torch.Tensor], seed: int = 0) -> Iterator[Any]:
        parts = list(parts)
        if seed:  # evaluation has none, nor the first epoch
            found.extend(parts)
        return over(self, parts, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "over", noted)
        train(ranks, [], replace(SETTINGS, epochs=2))
    return found


def test_each_rank_reads_its_part_of_every_batch(pair: Pair) -> None:
    here, there = pair(parts_of)
    assert [len(part) for part in here] == [*[16] * 4, 1] and [len(part) for part in there] == [*[15] * 4, 1]
    for mine, theirs, whole in zip(here, there, parts_of(Ranks()), strict=True):
        assert torch.equal(torch.cat([mine, theirs]), whole)


def operate(ranks: Ranks, change: dict[str, Any] | None) -> tuple[dict[str, Any], Notes]:
    """A run whose second rank does something else; ``None``: an operation that fails."""
    step = MIN | {"op": "random_remove", "seed": 1}
    if change is not None:
        return train(ranks, [step if ranks.first else step | change])

    def fail(self: Any, layer: Any, signals: Any = None) -> NoReturn:
        raise SurgeryError("it cannot be done")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RandomRemove, "propose", fail)
        return train(ranks, [step])


def test_values_that_differ_become_those_of_the_first_rank(pair: Pair) -> None:
    """As the rounding of unlike devices may have it: other units go."""
    (here, mine), (there, theirs) = pair(operate, {"seed": 2})
    assert mine.digests == theirs.digests and numbers(here)["epochs"] == numbers(there)["epochs"]


def test_sizes_that_differ_end_the_run_on_all_ranks(pair: Pair) -> None:
    for error in pair(operate, {"keep": 0.75}):
        assert isinstance(error, StudyError)
        assert "RandomRemove" in str(error) and "has other sizes on rank 1 of this run than on rank 0" in str(error)


def test_an_operation_that_fails_does_so_on_all_ranks(pair: Pair) -> None:
    for error in pair(operate, None):
        assert isinstance(error, SurgeryError) and str(error) == "it cannot be done"


def normalized(ranks: Ranks, counts: bool) -> list[torch.Tensor]:
    """Outputs, gradients and statistics of a BatchNorm for this rank's part of 7 samples."""
    torch.manual_seed(0)
    whole, slopes = torch.randn(2, 7, 3, 2, dtype=torch.float64) + 2
    norm = torch.nn.BatchNorm1d(3).double()
    numbers, weight = ranks.shard(torch.arange(7))
    if not counts:
        numbers, weight = (torch.arange(7), 1.0) if ranks.first else (torch.arange(1), 0.0)
    inputs = whole[numbers].requires_grad_()
    with ranks.passes(weight, 0, CPU):
        outputs = norm(inputs)
        (outputs * slopes[numbers] * (weight > 0)).sum().backward()
    ranks.combine(norm)
    found = [outputs.detach(), inputs.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    return [each for each in found if each is not None]


def test_batchnorm_is_that_of_the_whole_batch(pair: Pair) -> None:
    whole = normalized(Ranks(), True)
    here, there = pair(normalized, True)
    torch.testing.assert_close([torch.cat(both) for both in zip(here[:2], there[:2], strict=True)], whole[:2])
    for found in (here, there):
        torch.testing.assert_close(found[2:], whole[2:])
    torch.testing.assert_close(pair(normalized, False)[0], whole)  # the other rank had no sample


def unused(ranks: Ranks) -> list[torch.Tensor | None]:
    """Gradients of parameters that both ranks have used, one of them, none."""
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2)) for _ in range(3)])
    (model[0].sum() + (0 if ranks.first else 3 * model[1].sum())).backward()
    ranks.combine(model)
    return [each.grad for each in model]


def test_a_parameter_that_no_rank_has_used_has_no_gradient(pair: Pair) -> None:
    for found in pair(unused):
        assert found[2] is None
        torch.testing.assert_close(found[:2], [torch.full((2,), 2.0), torch.full((2,), 3.0)])

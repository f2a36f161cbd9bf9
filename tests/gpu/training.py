"""The product's training on the card: the same twice, the same resumed, and as fast as a bare loop?"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from tests.gpu.card import Card, Late, Row, failure, precision
from tests.gpu.clock import network, syncs

#: Operations of a run that is repeated: one that looks at activations, one that draws, one on all weights.
SCHEDULE = (
    {"when": "1ep", "layer": "conv2", "op": "min_weight", "keep": 0.5},
    {"when": "1ep", "layer": "fc1", "op": "pcns", "variance_threshold": 0.01},
    {"when": "2ep", "layer": "conv1", "op": "weak_expand", "grow": 0.5},
    {"when": "2ep", "layer": "*", "op": "prune_weights", "fraction": 0.3},
)


class Stopped(Exception):
    """A run is ended from outside."""


def dataset(images: int, size: int, channels: int = 3, held: int = 512) -> Any:
    from network_surgery.study.task.images import Images, ImageTask

    chance = np.random.default_rng(0)

    def drawn(count: int) -> Images:
        pixels = chance.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
        return Images(pixels, chance.integers(0, 10, count))

    return ImageTask(drawn(images), drawn(held), drawn(held), tuple(map(str, range(10))))


#: Recipes that a run is repeated with, besides the default.
RECIPES: dict[str, dict[str, Any]] = {
    "tf32, crop_flip": {"precision": "tf32", "augment": "crop_flip"},
    "bf16, channels last, cutmix": {"precision": "bf16", "channels_last": True, "mix": "cutmix"},
    "fp16, channels last, crop_flip, average": {
        "precision": "fp16", "channels_last": True, "augment": "crop_flip", "ema": 0.9, "clip": 1.0,
    },
}  # fmt: skip


def determinism(card: Card) -> Iterator[Row]:
    """A run with four operations (small_cnn, 3 epochs): with deterministic bit-equal twice, and resumed after 2?"""
    try:
        from network_surgery.study.config import Settings
        from network_surgery.study.recipe.augmentation import Augmentation
        from network_surgery.study.training.cell import Cell
        from network_surgery.study.training.run import run
    except ImportError as error:
        yield {"note": f"not tried: the trainer cannot be imported ({error})"}
        return
    images = dataset(512 if card.small else 2048, 16)
    cell = Cell("surgery", 1, SCHEDULE)

    def ended(settings: Settings, data: Any, folder: Path, name: str, stop: int = 0) -> list[Any]:
        def tell(record: dict[str, Any]) -> None:
            if record["epoch"] == stop:
                raise Stopped

        saved, kept = folder / f"{name}.pt", folder / f"{name}-network.pt"
        if stop:
            with contextlib.suppress(Stopped):
                run(cell, data, settings, card.device, tell, saved)
        outcome = run(cell, data, settings, card.device, saved=saved, network=kept)
        weights = torch.load(kept, map_location="cpu", weights_only=True)["weights"]
        losses = [(each["train_loss"], each["validation_loss"]) for each in outcome["epochs"]]
        units = [(each["units_before"], each["units_after"]) for each in outcome["operations"]]
        return [losses, units, weights, outcome.get("deterministic")]

    for recipe in ("default, kernels as torch has them", "default", *RECIPES):
        repeatable = "as torch has them" not in recipe
        settings = Settings(epochs=3, model="small_cnn", probe=0, deterministic=repeatable, **RECIPES.get(recipe, {}))
        if not card.cuda and settings.precision in ("tf32", "fp16"):
            yield {"recipe": recipe, "note": "skipped: it needs a card"}
            continue
        augmentation = Augmentation(settings.augment, settings.cutout, settings.mix, len(images.classes))
        again = partial(ended, settings, images.changed(augmentation=augmentation))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            first = again(Path(folder), "first")
            seconds = time.perf_counter() - start
            second, resumed = again(Path(folder), "second"), again(Path(folder), "resumed", stop=3)
        row: Row = {"recipe": recipe, "seconds": round(seconds, 2), "operations": first[1], "cost": first[3]}
        for name, other in (("twice", second), ("resumed", resumed)):
            row[f"same losses, {name}"] = first[0] == other[0]
            shapes = [v.shape for v in first[2].values()] == [v.shape for v in other[2].values()]
            equal = shapes and all(torch.equal(v, other[2][k]) for k, v in first[2].items())
            row[f"same weights, {name}"] = equal
            if first[0] != other[0]:
                row[f"last losses, {name}"] = [first[0][-1], other[0][-1]]
        yield row


class Loop:
    """Bare training steps of VGG16 on images that lie on the device, in a way that its name says (``WAYS``)."""

    def __init__(self, card: Card, pixels: Tensor, labels: Tensor, way: str) -> None:
        self.card, self.pixels, self.labels = card, pixels, labels
        self.bf16, self.last, graph = "bf16" in way, "channels last" in way, "graph" in way
        precision("TF32" in way and "no TF32" not in way, "no TF32" not in way)
        self.model = network(card)[0]
        if self.last:
            self.model.to(memory_format=torch.channels_last)
        self.forward: Callable[..., Any] = torch.compile(self.model) if "compiled" in way else self.model
        self.optimizer = optim.Adam(self.model.parameters(), lr=1e-3, capturable=graph, fused="fused" in way or None)
        self.index = torch.arange(64, device=card.device)
        self.captured: Any = self._capture() if graph else None

    def step(self) -> None:
        x = self.pixels[self.index].float().div_(127.5).sub_(1.0)
        if self.last:
            x = x.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.card.device.type, torch.bfloat16, enabled=self.bf16):
            loss = nn.functional.cross_entropy(self.forward(x), self.labels[self.index])
        loss.backward()
        self.optimizer.step()

    def steps(self, order: Tensor) -> None:
        for index in order.split(64):
            if self.captured is None:
                self.index = index
                self.step()
            else:
                self.index.copy_(index)
                self.captured.replay()

    def _capture(self) -> Any:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph


#: Ways to take the same step. Without a word on it, convolutions are in TF32 and products are not, as torch has it.
WAYS = (
    "bare", "no TF32", "TF32", "TF32, channels last", "bf16", "bf16, channels last", "bf16, channels last, fused",
    "TF32, graph", "TF32, channels last, graph", "bf16, channels last, fused, graph",
    "bf16, channels last, fused, compiled", "bf16, channels last, fused, compiled, graph", "bare, again",
)  # fmt: skip


def speed(card: Card) -> Iterator[Row]:
    """VGG16, 50,000 images on the device, batch 64: seconds of an epoch extrapolated from 100 steps, median of 3."""
    images, steps = (512, 4) if card.small else (50_000, 100)
    chance = np.random.default_rng(0)
    pixels = torch.from_numpy(chance.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)).to(card.device)
    labels = torch.from_numpy(chance.integers(0, 10, images)).to(card.device)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))[: 64 * steps].to(card.device)
    bare: float | None = None
    for way in WAYS:
        row: Row = {"way": way}
        if not card.cuda and ("graph" in way or "compiled" in way):
            yield row | {"note": "skipped: it needs a card"}
            continue
        start = time.perf_counter()
        try:
            with card.within(60 if "compiled" in way else 30):
                loop = Loop(card, pixels, labels, way)
                loop.steps(order[: 64 * 10])
                row["ready_s"] = round(time.perf_counter() - start, 1)
                row |= _epoch(card, partial(loop.steps, order), steps, bare)
        except Late:
            if card.late:
                raise
            row["problem"] = "not ready in its seconds"
        except Exception as error:  # one way must not cost the others
            row["problem"] = failure(error)
        yield row
        if way == "bare":
            bare = row.get("epoch_s")
            yield from _trained(card, images, steps, bare)


def _epoch(card: Card, function: Callable[[], object], steps: int, bare: float | None) -> Row:
    times = sorted(card.seconds(function) for _ in range(3))
    epoch = times[1] / steps * 50_000 / 64
    return {
        "epoch_s": epoch, "/ bare": round(epoch / (bare or epoch), 3),
        "step_ms": [round(1000 * t / steps, 2) for t in times],
    }  # fmt: skip


def _trained(card: Card, images: int, steps: int, bare: float | None) -> Iterator[Row]:
    """The product's trainer over the same steps, its theatre with nothing to do beside it."""
    try:
        from network_surgery.ops import Schedule
        from network_surgery.study.training import checkpoint
        from network_surgery.study.training.theatre import Theatre
        from network_surgery.study.training.trainer import Trainer
    except ImportError as error:
        card.epoch_seconds = bare
        yield {
            "way": "the trainer",
            "note": f"not imported ({error}); an epoch is the bare one",
        }
        return

    class Shortened(Trainer):
        @property
        def per_epoch(self) -> int:
            return steps

    data = dataset(images, 32)

    def made() -> Trainer:
        model = network(card)[0]
        return Shortened(
            model, optim.Adam(model.parameters(), lr=1e-3), data, epochs=1, batch_size=64, seed=0, device=card.device,
            callbacks=[Theatre(Schedule.from_data([]), data.validation, 512)],
        )  # fmt: skip

    trainer, resumed = made(), made()
    for way, each in (("the trainer", trainer), ("the trainer, resumed", resumed)):
        row: Row = {"way": way}
        if each is resumed:
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder) / "checkpoint.pt"
                row["save_s"] = round(card.seconds(partial(checkpoint.save, trainer, saved)), 2)
                checkpoint.load(resumed, saved)
        each._train_epoch()
        row |= _epoch(card, each._train_epoch, steps, bare)
        card.epoch_seconds = card.epoch_seconds or row["epoch_s"]
        if card.cuda:
            row["waits"] = syncs(each._train_epoch)
        yield row

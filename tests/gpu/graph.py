"""The trainer's CUDA graph: is it captured, does it compute what ordinary steps do, and how fast?

The product has not run one on a card before this step has.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from tests.gpu.card import Card, Row, failure, precision
from tests.gpu.clock import MIB, network, syncs
from tests.gpu.compare import excess
from tests.gpu.training import RECIPES, SCHEDULE, Loop, dataset

#: Ways to train VGG16 by the trainer: words for ``Loop``, and how the trainer is to compute.
SPEEDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "TF32, channels last": {"precision": "tf32", "channels_last": True},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
}


def graphs(card: Card) -> Iterator[Row]:
    """The trainer with CUDA graphs against itself without: losses, weights, seconds, waits, memory, and refusals."""
    yield from _runs(card)
    yield from _speed(card)
    yield from _refusals(card)


def _runs(card: Card) -> Iterator[Row]:
    """A run with four operations, as in the step determinism, with graphs and without."""
    from network_surgery.study.config import Settings
    from network_surgery.study.recipe.augmentation import Augmentation
    from network_surgery.study.training.cell import Cell
    from network_surgery.study.training.run import run

    images = dataset(512 if card.small else 2048, 16)
    recipes: dict[str, dict[str, Any]] = {"default": {}, "sgd, accumulate": {"optimizer": "sgd", "accumulate": 3}}
    for recipe, more in (recipes | RECIPES).items():
        settings = Settings(epochs=3, model="small_cnn", probe=0, **more)
        row: Row = {"recipe": recipe}
        if not card.cuda and settings.precision in ("tf32", "fp16"):
            yield row | {"note": "skipped: it needs a card"}
            continue
        task = images.changed(augmentation=Augmentation(settings.augment, settings.cutout, settings.mix, 10))
        found: list[tuple[Any, dict[str, Tensor]]] = []
        try:
            for on in (False, False, True):  # how far two ordinary runs are apart is the measure
                with tempfile.TemporaryDirectory() as folder:
                    kept = Path(folder) / "network.pt"
                    cell, recipe_ = Cell("surgery", 1, SCHEDULE), replace(settings, cuda_graph=on)
                    outcome = run(cell, task, recipe_, card.device, network=kept)
                    found.append((outcome, torch.load(kept, map_location="cpu", weights_only=True)["weights"]))
        except Exception as error:  # one recipe must not cost the others
            yield row | {"problem": failure(error)}
            continue
        plain, again, graphed = ([each["train_loss"] for each in outcome["epochs"]] for outcome, _ in found)
        report = found[2][0]["cuda_graph"]
        row |= {
            "captured": report["reason"] is None if card.cuda else "not here", "report": report,
            "losses": graphed, "losses without": plain,
            "first epoch apart": abs(graphed[0] - plain[0]), "ordinary runs apart": abs(again[0] - plain[0]),
            "seconds of epochs": [[round(e["train_seconds"], 3) for e in o["epochs"]] for o, _ in (found[1], found[2])],
        }  # fmt: skip
        if report["reason"] is None:
            row["close"] = abs(graphed[0] - plain[0]) <= max(0.02 * plain[0], 3 * abs(again[0] - plain[0]))
        yield row


def _trainer(card: Card, images: int, steps: int, compute: dict[str, Any]) -> Any:
    from network_surgery.study.recipe.compute import Compute
    from network_surgery.study.training.trainer import Trainer

    class Shortened(Trainer):
        @property
        def per_epoch(self) -> int:
            return steps

    model = network(card)[0]
    return Shortened(
        model, optim.Adam(model.parameters(), lr=1e-3, fused=card.cuda or None), dataset(images, 32), epochs=1,
        batch_size=64, seed=0, device=card.device, compute=Compute(**compute),
    )  # fmt: skip


def _speed(card: Card) -> Iterator[Row]:
    """VGG16, batch 64: seconds of an epoch of 50,000 images from 100 steps, median of 3; beside a bare graph."""
    images, steps = (512, 4) if card.small else (12_800, 100)
    for name, compute in SPEEDS.items():
        if not card.cuda and compute.get("precision") == "tf32":
            continue
        precision(False, True)
        row: Row = {"way": name}
        weights: dict[bool, list[Tensor]] = {}
        for on in (False, True):
            word = "graph" if on else "ordinary"
            try:
                gc.collect()
                if card.cuda:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(card.device)
                trainer = _trainer(card, images, steps, compute | {"graph": on})
                trainer._train_epoch()
                weights[on] = [each.detach().clone() for each in trainer.model.parameters()]
                times = sorted(card.seconds(trainer._train_epoch) for _ in range(3))
                row[f"{word}, epoch_s"] = round(times[1] / steps * 50_000 / 64, 3)
                row[f"{word}, step_ms"] = [round(1000 * each / steps, 3) for each in times]
                if on:
                    row |= {"replayed": trainer.graph.replayed, "reason": trainer.graph.reason}
                if card.cuda:
                    row[f"{word}, waits"] = syncs(trainer._train_epoch)
                    row[f"{word}, reserved_MiB"] = round(torch.cuda.max_memory_reserved(card.device) / MIB)
                del trainer
            except Exception as error:
                row["problem"] = failure(error)
        if len(weights) == 2:
            row["weights apart after an epoch / allowed in float32"] = max(
                excess(a, b, 1e-3, 1e-3) for a, b in zip(weights[False], weights[True], strict=True)
            )
        if card.cuda and name != "float32":
            row |= _bare(card, images, steps, f"{name}, fused, graph")
        if "graph, epoch_s" in row and "ordinary, epoch_s" in row:
            row["graph / ordinary"] = round(row["graph, epoch_s"] / row["ordinary, epoch_s"], 3)
        yield row
    precision(False, True)


def _bare(card: Card, images: int, steps: int, way: str) -> Row:
    """The whole step, optimizer too, as one graph: the best that there is."""
    try:
        pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, device=card.device)
        loop = Loop(card, pixels, torch.arange(images, device=card.device) % 10, way)
        order = torch.randperm(images, device=card.device)[: 64 * steps]
        loop.steps(order)
        times = sorted(card.seconds(partial(loop.steps, order)) for _ in range(3))
        return {"bare graph, epoch_s": round(times[1] / steps * 50_000 / 64, 3)}
    except Exception as error:
        return {"bare graph": failure(error)}


class _Odd(nn.Module):
    """A network that cannot be captured."""

    def __init__(self, besides: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.besides = nn.Linear(8, 3), besides

    def forward(self, x: Tensor) -> Tensor:
        return self.besides(self.layer(x))


def _refusals(card: Card) -> Iterator[Row]:
    """Steps that no graph can repeat train as ever, and a capture that failed leaves the card as it was."""

    def waits(h: Tensor) -> Tensor:
        if card.cuda:
            torch.cuda.synchronize(card.device)  # nothing but the capture itself notices it
        return h

    odd: dict[str, Callable[[Tensor], Tensor]] = {
        "branch on a value": lambda h: h if bool(h.mean() > 0) else -h,
        "copies from the host": lambda h: h + torch.arange(3.0).to(h.device),
        "dropout": lambda h: nn.functional.dropout(h, 0.5),
        "waits": waits,
    }
    for name, besides in odd.items():
        row: Row = {"network": name}
        try:
            replays = _stepped(card, besides)
            row |= {"reason": replays.reason, "replayed": replays.replayed}
            row["as wanted"] = (replays.reason is None) == (name == "dropout") if card.cuda else "not here"
            del replays
            if card.cuda:
                gc.collect()
                torch.empty(256 * MIB, dtype=torch.uint8, device=card.device)
                before = torch.cuda.memory_reserved(card.device)
                torch.cuda.empty_cache()
                row["memory is given back"] = before - torch.cuda.memory_reserved(card.device) >= 256 * MIB
                row["the next one is captured"] = _stepped(card, lambda h: h).reason is None
        except Exception as error:
            row["problem"] = failure(error)
        yield row


def _stepped(card: Card, besides: Callable[[Tensor], Tensor]) -> Any:
    """The graph of such a network after three steps."""
    from network_surgery.study.training.graph import Graph

    net = _Odd(besides).to(card.device)
    x, y = torch.randn(16, 8, device=card.device), torch.arange(16, device=card.device) % 3

    def step(inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        return loss.detach()

    replays = Graph(net, step, card.device)
    for _ in range(3):
        net.zero_grad(set_to_none=True)
        replays.backward(x, y, 1.0)
    return replays

"""Operations against an epoch of VGG16: seconds, waits for the card, memory, where the time goes, too little memory."""

from __future__ import annotations

import cProfile
import gc
import io
import pstats
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim

from network_surgery.ops import (
    OPERATIONS,
    PCNS,
    Anatomy,
    MinWeight,
    Operation,
    RemoveDead,
    Revive,
    Signals,
    SurgeryError,
    WeakExpand,
    apply,
    weight_scores,
)
from network_surgery.ops.surgery.repair import apply_repairs
from network_surgery.study import models
from tests.gpu.card import Card, Row, failure

#: What is looked at in a profile: those that took more than a hundredth of an epoch on a card.
SLOW = ("prune_weights", "pcns", "remove_dead", "revive", "weak_expand")
#: The layers of VGG16 that are operated on, and the images that signals are taken from.
LAYERS, IMAGES = ("conv11", "fc1"), 512
MIB = 2**20


def network(card: Card, batch: int = 64) -> tuple[nn.Module, optim.Optimizer, Tensor, Tensor]:
    """VGG16 after a few steps on random images, its optimizer, images for signals and their classes."""
    torch.manual_seed(0)
    model = models.vgg16((3, 32, 32), 10, width=1 / 16 if card.small else 1.0)
    model.to(card.device)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    images = 64 if card.small else IMAGES
    x, y = torch.randn(images, 3, 32, 32, device=card.device), torch.arange(images, device=card.device) % 10
    for step in range(10):
        part = slice(step * batch % images, step * batch % images + batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, x, y


class Theatre:
    """Operates on a layer again and again: from signals over a proposal to the applied network, and all undone."""

    def __init__(self, card: Card, layer: str, name: str) -> None:
        self.card, self.name = card, name
        self.model, self.optimizer, self.x, self.y = network(card)
        self.layer = Anatomy(self.model, self.x[:2])[layer]
        self.operation = OPERATIONS[name]()
        self.plan: Any = None

    def once(self) -> float:
        """Seconds."""
        undo: Any = []

        def act() -> None:
            signals = None
            if self.operation.needs_signals:
                signals = Signals.over(self.model, [self.x], [self.layer], self.y)
            self.plan = self.operation.propose(self.layer, signals)
            undo.extend(apply(self.plan, self.optimizer))

        seconds = self.card.seconds(act)
        for step in reversed(undo):
            step()
        return seconds


def operations(card: Card) -> Iterator[Row]:
    """One operation on VGG16, signals of 512 images to the applied network: median of 3, waits, peak memory."""
    model, _, _, _ = network(card)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    yield {"operation": "weights of the network", "peak_MiB": round(weights / MIB, 1)}
    del model
    for name in OPERATIONS:
        for layer in (*LAYERS, "*")[: 3 if OPERATIONS[name].whole_network else 2]:
            row: Row = {"operation": name, "layer": layer}
            try:
                row |= _timed(card, layer, name, weights)
            except (ImportError, SurgeryError) as error:
                row["problem"] = failure(error)
            yield row


def _timed(card: Card, layer: str, name: str, weights: int) -> Row:
    theatre = Theatre(card, layer, name)
    times = [theatre.once() for _ in range(3)]
    row: Row = {"ms": round(1000 * statistics.median(times), 1), "all_ms": [round(1000 * each, 1) for each in times]}
    if card.epoch_seconds:
        row["% of an epoch"] = round(100 * statistics.median(times) / card.epoch_seconds, 2)
    row["units"] = f"{theatre.plan.units_before} → {theatre.plan.units_after}"
    if card.cuda:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(card.device)
        before = torch.cuda.memory_allocated(card.device)
        row["waits"] = syncs(theatre.once)
        peak = torch.cuda.max_memory_allocated(card.device) - before
        row |= {"peak_MiB": round(peak / MIB, 1), "peak / weights": round(peak / weights, 2)}
    return row


def syncs(function: Callable[[], object]) -> int:
    """How often torch waits for the card in a function."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def profiles(card: Card) -> Iterator[Row]:
    """Where the host's time goes in slow operations: cumulative milliseconds of the lines of ``ops`` that lead."""
    for name in SLOW:
        for layer in LAYERS:
            theatre = Theatre(card, layer, name)
            theatre.once()
            profile = cProfile.Profile()
            profile.enable()
            seconds = theatre.once()
            profile.disable()
            table: dict[Any, Any] = pstats.Stats(profile, stream=io.StringIO()).stats  # type: ignore[attr-defined]
            led = sorted(table.items(), key=lambda entry: -entry[1][3])
            ours = [(where, entry) for where, entry in led if "/ops/" in where[0]][:12]
            own = sorted(table.items(), key=lambda entry: -entry[1][2])[:8]
            yield {
                "operation": name, "layer": layer, "ms": round(1000 * seconds, 1),
                "cumulative in ops": [f"{1000 * e[3]:.1f} {_place(w)} ×{e[0]}" for w, e in ours],
                "itself": [f"{1000 * e[2]:.1f} {_place(w)} ×{e[0]}" for w, e in own],
            }  # fmt: skip


def _place(where: tuple[str, int, str]) -> str:
    return f"{'/'.join(where[0].split('/')[-2:])}:{where[1]} {where[2]}"


def out_of_memory(card: Card) -> Iterator[Row]:
    """Too little memory on purpose: what comes out of it, and whether the network is as it was."""
    if not card.cuda:
        yield {"note": "skipped: it needs a card"}
        return
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    model, optimizer, x, y = network(card)
    whole = Anatomy(model, x[:2])

    def changed(name: str, operation: Operation, chain: tuple[str, ...] = ()) -> list[Any]:
        signals = Signals(model, x, y)
        return apply(apply_repairs(operation.propose(whole[name], signals), signals, chain), optimizer)

    acts: dict[str, Callable[[], Any]] = {
        "Anatomy of 2 images": lambda: Anatomy(model, x[:2]),
        "Anatomy of 512 images": lambda: Anatomy(model, x),
        "Signals": lambda: Signals(model, x, y),
        "remove_dead": lambda: changed("fc1", RemoveDead(0.6)),
        "revive": lambda: changed("fc1", Revive(0.6)),
        "pcns": lambda: changed("fc3", PCNS(0.05)),
        "weak_expand": lambda: changed("fc1", WeakExpand(0.5)),
        "least squares": lambda: changed("fc3", MinWeight(0.9), ("least_squares",)),
        "loss change": lambda: weight_scores(model, ["conv1.weight"], "loss_change", x[:32], y[:32]),
    }
    for headroom in (2, 16, 64, 256):
        for act, function in acts.items():
            gc.collect()
            torch.cuda.empty_cache()
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            used = torch.cuda.memory_reserved(device)
            row: Row = {"act": act, "headroom_MiB": headroom}
            result: Any = None
            torch.cuda.set_per_process_memory_fraction(min(1.0, (used + headroom * MIB) / total), device)
            try:
                result = function()
                row["outcome"] = "it ran"
                if isinstance(result, list):
                    for step in reversed(result):
                        step()
                if isinstance(result, Anatomy):
                    lost = [name for name in whole if name not in result]
                    row["layers"] = f"{len(result)} of {len(whole)}"
                    row["lost"] = {name: result.pinned.get(name, "no reason") for name in lost[:2]}
            except torch.cuda.OutOfMemoryError:
                row["outcome"] = "OutOfMemoryError"
            except Exception as error:  # what it is taken for is the result
                row["outcome"] = failure(error)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, device)
            if row["outcome"] != "it ran" or isinstance(result, list):
                now = model.state_dict()
                row["network as before"] = all(
                    now[name].shape == old.shape and torch.equal(now[name], old) for name, old in before.items()
                )
            yield row

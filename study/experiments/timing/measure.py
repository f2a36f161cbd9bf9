"""Every operation on every net: timed, undone, and predicted from the work that it is."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median

import scipy.linalg
import torch
import typer
from torch import Tensor, nn
from torch.optim import Adam

from network_surgery.ops import (
    PCNS,
    Anatomy,
    Compact,
    EigenRemove,
    HiddenLayer,
    MeanReplace,
    MinWeight,
    Operation,
    PruneWeights,
    RandomRemove,
    RemoveDead,
    Revive,
    Signals,
    WeakExpand,
    ZeroExpand,
    apply,
)
from network_surgery.ops.maths.hosvd import eigenvectors
from network_surgery.study import models
from network_surgery.study.experiments.timing import complexity
from network_surgery.study.experiments.timing.complexity import Sizes
from network_surgery.study.training.trainer import clock, steps_per_epoch

IMAGES, BATCH, SIGNAL_IMAGES, PIXELS = 50_000, 64, 512, 8
OPERATIONS: dict[str, Operation] = {
    "eigen_remove, rank 1/8": EigenRemove(keep=0.5, rank=0.125),
    "eigen_remove, rank 1/4": EigenRemove(keep=0.5, rank=0.25),
    "eigen_remove, rank 1/2": EigenRemove(keep=0.5, rank=0.5),
    "eigen_remove, rank 1": EigenRemove(keep=0.5, rank=1.0),
    "mean_replace": MeanReplace(keep=0.5),
    "min_weight": MinWeight(keep=0.5),
    "random_remove": RandomRemove(keep=0.5),
    "pcns": PCNS(),
    "remove_dead": RemoveDead(threshold=0.9),
    "revive": Revive(threshold=0.9),
    "prune_weights": PruneWeights(fraction=0.5),
    "compact": Compact(),
    "weak_expand": WeakExpand(grow=0.5),
    "zero_expand": ZeroExpand(grow=0.5),
}
DENSE, CONV = (64, 128, 256, 512, 1024, 2048, 4096, 8192), (64, 128, 256, 512, 1024)
VGG_LAYERS = ("conv4", "conv7", "conv10", "fc1", "fc2")


@dataclass
class Timing:
    """One operation on one layer. Seconds; ``operation`` and ``signals`` one for each repeat, empty if not measured."""

    net: str  # dense, conv or vgg16
    layer: str  # its size, or its name in VGG16
    name: str
    forward: float
    step: float
    operation: list[float] = field(default_factory=list)
    signals: list[float] = field(default_factory=list)
    units: tuple[int, int] = (0, 0)
    flops: float = 0.0
    predicted: float = 0.0

    @property
    def epoch(self) -> float:
        return self.step * steps_per_epoch(IMAGES, BATCH)

    @property
    def seconds(self) -> float:
        """The median of the whole operation, its signals included; what is predicted where nothing was measured."""
        if not self.operation:
            return self.predicted
        return median(self.operation) + (median(self.signals) if self.signals else 0.0)

    @property
    def index(self) -> float:
        """The interruptibility index."""
        return self.epoch / self.seconds


@dataclass
class Found:
    """All timings of a run, the rates of the machine (per second) and the fixed seconds of each operation."""

    device: str
    threads: int
    repeats: int
    limit: float
    rates: dict[str, float]
    overheads: dict[str, float]
    timings: list[Timing]


def measure(
    dense: tuple[int, ...] = DENSE,
    conv: tuple[int, ...] = CONV,
    vgg_layers: tuple[str, ...] = VGG_LAYERS,
    repeats: int = 5,
    limit: float = 60.0,
    device: torch.device | None = None,
) -> Found:
    """Every operation on every net. One that took longer than ``limit`` seconds is only predicted for larger nets."""
    device = device or torch.device("cpu")
    rates = measure_rates(device, repeats)
    found = Found(_named(device), torch.get_num_threads(), repeats, limit, rates, {}, [])
    tiny = _net("dense", 8, device)
    for name, operation in OPERATIONS.items():
        taken = [_operate(*tiny, operation, device) for _ in range(max(repeats, 9) + 1)][1:]
        found.overheads[name] = median(once.operation + once.signals for once in taken)
    for kind, sizes in (("dense", dense), ("conv", conv)):
        slow: dict[str, float] = {}  # the fraction of units that stayed when it took too long
        for size in sorted(sizes):
            typer.echo(f"{kind} {size}", err=True)
            net = _net(kind, size, device)
            training = _training(net[0], net[1], net[3][:BATCH], repeats, device)
            found.timings += _timings(found, kind, str(size), net, training, slow, device)
    if vgg_layers:
        torch.manual_seed(0)
        model = models.build("vgg16", (3, 32, 32), 10).to(device)
        images = torch.randn(SIGNAL_IMAGES, 3, 32, 32, device=device)
        adam = Adam(model.parameters())
        anatomy = Anatomy(model, images[:2])
        training = _training(model, adam, images[:BATCH], max(repeats, 5), device)
        for name in vgg_layers:
            typer.echo(f"vgg16 {name}", err=True)
            net = (model, adam, anatomy[name], images)
            found.timings += _timings(found, "vgg16", name, net, training, {}, device)
    return found


Net = tuple[nn.Module, Adam, HiddenLayer, Tensor]


def _net(kind: str, size: int, device: torch.device) -> Net:
    """A net of two equal layers, its optimizer, the layer between them and the inputs for signals."""
    torch.manual_seed(0)
    if kind == "dense":
        model = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        inputs = torch.randn(min(max(SIGNAL_IMAGES, 2 * size), 8192), size)
    else:
        model = nn.Sequential(nn.Conv2d(size, size, 3, padding=1), nn.ReLU(), nn.Conv2d(size, size, 3, padding=1))
        inputs = torch.randn(SIGNAL_IMAGES, size, PIXELS, PIXELS)
    model, inputs = model.to(device), inputs.to(device)
    return model, Adam(model.parameters()), Anatomy(model, inputs[:2])["0"], inputs


def _timings(
    found: Found,
    kind: str,
    title: str,
    net: Net,
    training: tuple[float, float],
    slow: dict[str, float],
    device: torch.device,
) -> Iterator[Timing]:
    _, _, layer, inputs = net
    for name, operation in OPERATIONS.items():
        timing = Timing(kind, title, name, *training)
        if name not in slow:
            for number in range(found.repeats + 1):
                once = _operate(*net, operation, device)
                if number == 0 and once.operation + once.signals < found.limit / 10:
                    continue  # it warmed up; one that takes so long needs no warming
                timing.operation.append(once.operation)
                if operation.needs_signals:
                    timing.signals.append(once.signals)
                timing.units = (layer.units, once.units)
                if sum(timing.operation) > found.limit:
                    break
            if timing.seconds > found.limit:
                slow[name] = timing.units[1] / layer.units
        else:
            timing.units = (layer.units, round(slow[name] * layer.units))
        yield _predict(timing, operation, layer, inputs, found)


def _predict(timing: Timing, operation: Operation, layer: HiddenLayer, inputs: Tensor, found: Found) -> Timing:
    samples, passed = 0, 0.0
    if operation.needs_signals:
        pixels = 1 if inputs.dim() == 2 else 8192 // len(inputs) + 1  # more rows than signals keep
        samples = min(8192, len(inputs) * pixels)
        passed = timing.forward * len(inputs) / BATCH * (3 if isinstance(operation, complexity.SLOPED) else 1)
    sizes = replace(Sizes.of(layer, samples), kept=timing.units[1])
    amounts = complexity.work(operation, sizes)
    timing.flops = complexity.flops(amounts)
    timing.predicted = found.overheads[timing.name] + passed + complexity.seconds(amounts, found.rates)
    return timing


@dataclass(frozen=True)
class _Once:
    operation: float
    signals: float
    units: int


def _operate(
    model: nn.Module, adam: Adam, layer: HiddenLayer, inputs: Tensor, operation: Operation, device: torch.device
) -> _Once:
    """What ``operate`` does, timed, and undone."""
    if not adam.state:
        _step(model, adam, inputs[:BATCH])
    with torch.no_grad():
        answer = model(inputs[:2])[:1, 0]
    targets = torch.zeros(len(inputs), *answer.shape[1:], dtype=torch.int64, device=device)
    start = clock(device)
    signals = Signals.over(model, [inputs], [layer], targets) if operation.needs_signals else None
    between = clock(device)
    plan = operation.propose(layer, signals)
    undo = apply(plan, adam)
    stop = clock(device)
    for step in reversed(undo):
        step()
    return _Once(stop - between, between - start if operation.needs_signals else 0.0, plan.units_after)


def _training(model: nn.Module, adam: Adam, batch: Tensor, repeats: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of a forward pass and of a training step, after warming up."""
    with torch.no_grad():
        forward = _median(lambda: model(batch), repeats, device)
    return forward, _median(lambda: _step(model, adam, batch), repeats, device)


def _step(model: nn.Module, adam: Adam, batch: Tensor) -> None:
    adam.zero_grad(set_to_none=True)
    model(batch).square().mean().backward()
    adam.step()


def _median(action: Callable[[], object], repeats: int, device: torch.device) -> float:
    taken = []
    for _ in range(repeats + 2):
        start = clock(device)
        action()
        taken.append(clock(device) - start)
    return median(taken[2:])


def measure_rates(device: torch.device, repeats: int) -> dict[str, float]:
    """What each kind of work reaches here, per second: on matrices of 1024 rows, one number for all sizes."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(1024, 1024, dtype=torch.float64, generator=generator).to(device)
    single, tall, here = square.float(), torch.cat([square, square.T]), square.cpu().numpy()
    symmetric = square @ square.T
    order = torch.randperm(4096, generator=generator).to(device)
    large = torch.zeros(4096, 4096, device=device)
    actions: dict[str, tuple[float, Callable[[], object]]] = {
        "products": (2 * 1024**3, lambda: square @ square),
        "single": (2 * 1024**3, lambda: single @ single),
        "eigen": (4 / 3 * 1024**3, lambda: eigenvectors(symmetric, 128)),
        "values": (4 / 3 * 1024**3, lambda: torch.linalg.eigvalsh(symmetric)),
        "qr": (2 * 2048 * 1024**2 - 2 / 3 * 1024**3, lambda: torch.linalg.qr(tall, mode="r")),
        "pivoting": (4 / 3 * 1024**3, lambda: scipy.linalg.qr(here, mode="r", pivoting=True)),
        "bytes": (2 * 4 * 4096**2, lambda: large.index_select(0, order)),
    }
    return {kind: amount / _median(action, repeats, device) for kind, (amount, action) in actions.items()}


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"

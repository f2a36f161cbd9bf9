"""How long does an operation interrupt training? Every operation, measured and predicted, against epochs.

On nets of two equal layers (dense n–n–n, and c–c–c with 3 × 3 kernels) each operation is done to the layer between
them, with an Adam optimizer that has stepped: what ``operate`` does, proposing and applying, and then undone off the
clock. The *interruptibility index* (Graham 2019, 3.1.4) is an epoch's seconds over an operation's: above 100 the
operation takes less than 1 % of an epoch. An epoch is ``IMAGES`` images in batches of ``BATCH``, measured step by step.
Prediction is ``complexity``'s work over the rates that this machine reached in the same run.

    python -m study.experiments.timing --out study/docs
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import scipy.linalg
import torch
import typer
from matplotlib import style
from torch import Tensor, nn
from torch.optim import Adam

from ops import (
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
from ops.hosvd import eigenvectors
from study import models
from study.evidence.drawing import BLACK, COLOURS, GREY, MARKERS, STYLE, Drawing, log_scale, new_axes
from study.experiments import complexity
from study.experiments.complexity import FORMULAS, Sizes
from study.training.trainer import clock, steps_per_epoch

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
    signals = Signals(model, inputs, targets) if operation.needs_signals else None
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


MORE = ("#882255", "#44AA99", "#332288", "#999933", "#AA4499")
LOOKS = {
    name: {"color": colour, "marker": marker}
    for name, colour, marker in zip(
        OPERATIONS, (*COLOURS, BLACK, GREY, *MORE), (*MARKERS, "*", "h", "p", "d", "H"), strict=True
    )
}


def draw(found: Found) -> Drawing:
    """Seconds by size: points measured (hollow where only predicted), lines predicted, the step and the epoch."""
    with style.context(["default", STYLE]):
        figure, single = new_axes(9.6, 5.6)
        single.remove()
        values = [v for t in found.timings if t.net != "vgg16" for v in (t.step, t.epoch, t.seconds)]
        titles = {"dense": "dense, n – n – n", "conv": f"3 × 3, c – c – c on {PIXELS} × {PIXELS} pixels"}
        titles = {kind: title for kind, title in titles.items() if any(t.net == kind for t in found.timings)}
        panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axes, (kind, title) in zip(panels, titles.items(), strict=True):
            for name, look in LOOKS.items():
                mine = [t for t in found.timings if (t.net, t.name) == (kind, name)]
                at = [int(t.layer) for t in mine]
                axes.plot(at, [t.predicted for t in mine], color=look["color"], linewidth=1, alpha=0.8)
                measured = [t for t in mine if t.operation]
                spread = [t.seconds for t in measured]
                axes.plot([int(t.layer) for t in measured], spread, linestyle="", markersize=6, label=name, **look)
                rest = [t for t in mine if not t.operation]
                hollow = {**look, "markerfacecolor": "none", "linestyle": "", "markersize": 6}
                axes.plot([int(t.layer) for t in rest], [t.predicted for t in rest], **hollow)
            once = [t for t in found.timings if (t.net, t.name) == (kind, "random_remove")]
            at = [int(t.layer) for t in once]
            lines = (
                ("one training step", "-", [t.step for t in once]),
                ("1 % of an epoch", "--", [t.epoch / 100 for t in once]),
                ("an epoch", ":", [t.epoch for t in once]),
            )
            for label, dashes, heights in lines:
                axes.plot(at, heights, color="#444444", linestyle=dashes, linewidth=2.4, alpha=0.55, label=label)
            axes.set_title(title)
            axes.set_xlabel("units of each layer" if kind == "dense" else "channels of each layer")
            log_scale(axes.xaxis, at, lambda value: f"{value:g}")
            axes.set_xticks(at, [str(value) for value in at])
            log_scale(axes.yaxis, values, _time)
        panels[0].set_ylabel("time")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
    caption = (
        "Points: measured (medians; hollow: too long to measure, predicted). Thin lines of the same colour: predicted "
        "from the formulas and the rates of this machine. What lies below the dashed line takes less than 1 % of an "
        "epoch."
    )
    worst = min((t for t in found.timings), key=lambda t: t.index)
    alt = f"The operation that takes the largest part of an epoch is {worst.name} on {worst.net} {worst.layer}."
    return Drawing(figure, "Seconds of an operation, against training", caption, alt)


def report(found: Found, picture: str) -> str:
    """The result in markdown: the bar, the tables by net, and the formulas."""
    sections = []
    for kind, title in (("dense", "Dense nets, n – n – n"), ("conv", "Convolutions, c – c – c")):
        mine = [t for t in found.timings if t.net == kind]
        if mine:
            sections.append(f"## {title}\n\n{_seconds_table(mine)}\n\n{_index_table(mine)}")
    vgg = [t for t in found.timings if t.net == "vgg16"]
    rates, eigen = found.rates, found.rates["products"] / found.rates["eigen"]
    slower = ", ".join(
        f"{words} {rates['products'] / rates[kind]:.0f}"
        for kind, words in (("values", "eigenvalues"), ("qr", "QR"), ("pivoting", "pivoted QR"))
    )
    growth = "\n".join(f"| {name} | {order} | {exact} |" for name, (order, exact) in FORMULAS.items())
    off = [t.predicted / t.seconds for t in found.timings if t.operation]
    sizes = ",".join(dict.fromkeys(t.layer for t in found.timings if t.net == "dense"))
    below = [f"`{t.name}` on {t.net} {t.layer} ({_round(t.index)})" for t in found.timings if t.index < 100]
    near = sum(1 / 3 <= ratio <= 3 for ratio in off) / max(len(off), 1)
    return f"""# How long does an operation interrupt training?

Each operation was done to the layer between two equal ones, with an Adam optimizer that had stepped: proposed, applied
(weights, gradients and both moments follow), then undone off the clock. `pcns` looks at signals: {SIGNAL_IMAGES} inputs
or twice as many as units (8,192 at most); collecting them is in its seconds. An epoch is {IMAGES:,} images in batches
of {BATCH}, that is {steps_per_epoch(IMAGES, BATCH)} measured training steps. The *interruptibility index* is an epoch's
seconds over an operation's: above 100 the operation takes less than 1 % of an epoch.

![Seconds of every operation by size, measured and predicted, against a training step and an epoch]({picture})

{draw(found).caption}

Of {len(found.timings)} pairs of an operation and a layer, {len(below)} have an index below 100\
{": " + ", ".join(below) if below else ""}.

{_vgg_section(vgg) if vgg else ""}

{(chr(10) * 2).join(sections)}

## What is calculated

`n` units made from `i` inputs and read by `o` outputs, `p` positions of a kernel (1: dense), `s` samples of signals,
rank `r = max(1, floor(δ min(n, o)))`, `k` units kept. Every operation also rebuilds both weights, their gradients and
Adam's two moments: 16 (1 + new/old) n (i + o) p bytes, which is all that `random_remove` and `zero_expand` do.

| operation | order | floating-point operations |
|---|---|---|
{growth}

Predicted seconds are the fixed seconds of the operation (on 8 units: {_range(found.overheads.values())}), plus a
forward pass of the signals, plus work over rates measured on matrices of 1024 rows: {rates["products"] / 1e9:.0f}
GFLOP/s for products in double precision ({rates["single"] / 1e9:.0f} in single), {rates["bytes"] / 1e9:.1f} GB/s of
copying rows. A counted operation of the leading eigenvectors ((4/3) n³ in all) takes {eigen:.0f} times as long as one
of a product; {slower} times. {near:.0%} of {len(off)} predictions lie within a factor of 3 of what was measured
(median of predicted / measured: {median(off):.2f}).

The thesis (3.1.4) puts EigenRemove at O(r² m) and WeakExpand at O(n log n). The first leaves out the Gram matrix or
the singular value decomposition that finds the subspace, the second that the weights of every copy are written.

`python -m study.experiments.timing --sizes {sizes} --repeats {found.repeats} --limit {found.limit:g}`,
{found.device}, {found.threads} thread(s) of a shared machine; medians [lowest – highest]; an operation that took over
{found.limit:g} s was not measured on larger nets. torch {torch.__version__}, Python {platform.python_version()}.
"""


def _vgg_section(timings: list[Timing]) -> str:
    worst = min(timings, key=lambda t: t.index)
    over = sum(t.index < 100 for t in timings)
    verdict = "Every operation takes less than 1 %" if not over else f"**{over} of {len(timings)} take 1 % or more**"
    return f"""## VGG16

The thesis's network on 3 × 32 × 32 images: a step takes {_time(worst.step)}, an epoch {_time(worst.epoch)}. {verdict}
of that epoch; the worst is `{worst.name}` on {worst.layer}: {_time(worst.seconds)}, {_share(worst)} (index
{_round(worst.index)}). The thesis's published code took 16 to 27 s in the median for an EigenRemove and 969 s at most,
beside epochs of about 40 s on a GTX 1060: an index of about 2, and 0.04 at worst.

{_table(timings, lambda t: f"{_spread(t)}, {_share(t)}", "")}"""


def _seconds_table(timings: list[Timing]) -> str:
    steps = {t.layer: t for t in timings}
    extra = [
        ("*forward pass*", {layer: _time(t.forward) for layer, t in steps.items()}),
        ("*training step*", {layer: _time(t.step) for layer, t in steps.items()}),
        ("*epoch*", {layer: _time(t.epoch) for layer, t in steps.items()}),
    ]
    return "Seconds, signals included:\n\n" + _table(timings, _spread, "", extra)


def _index_table(timings: list[Timing]) -> str:
    return "Interruptibility index, and (predicted / measured seconds):\n\n" + _table(timings, _index, "")


def _index(timing: Timing) -> str:
    return f"{_round(timing.index)} ({timing.predicted / timing.seconds:.1f})" if timing.operation else ""


def _table(
    timings: list[Timing],
    cell: Callable[[Timing], str],
    empty: str,
    extra: list[tuple[str, dict[str, str]]] | None = None,
) -> str:
    """A row an operation, a column a layer."""
    layers = list(dict.fromkeys(t.layer for t in timings))
    rows: dict[str, dict[str, str]] = {name: cells for name, cells in extra or []}
    for t in timings:
        rows.setdefault(f"`{t.name}`", {})[t.layer] = cell(t)
        if t.signals and cell is not _index:
            rows.setdefault(f"… of it signals of `{t.name}`", {})[t.layer] = _time(median(t.signals))
    lines = [f"| {name} | {' | '.join(cells.get(layer, empty) for layer in layers)} |" for name, cells in rows.items()]
    return "\n".join([f"| | {' | '.join(layers)} |", "|---" * (len(layers) + 1) + "|", *lines])


def _spread(timing: Timing) -> str:
    if not timing.operation:
        return f"not measured: predicted {_time(timing.predicted)}"
    both = [a + b for a, b in zip(timing.operation, timing.signals or [0.0] * len(timing.operation), strict=True)]
    return f"{_time(timing.seconds)} [{_time(min(both))} – {_time(max(both))}]"


def _share(timing: Timing) -> str:
    return f"{100 / timing.index:.2g} % of an epoch"


def _range(values: Iterable[float]) -> str:
    values = list(values)
    return f"{_time(min(values))} to {_time(max(values))}"


def _time(value: float) -> str:
    """Seconds in a unit that fits, with two digits: 32 µs, 1.4 ms, 780 s."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= 0.995 * size or unit == "µs":
            return f"{float(f'{value / size:.2g}'):,g} {unit}"
    return ""


def _round(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def _sizes(text: str, all_of_them: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(",")) if text else all_of_them
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of sizes such as 64,256,1024") from None


def main(
    sizes: Annotated[
        str, typer.Option(help="Units of the dense nets, after commas; those up to 1024 of the others.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="How often each operation is timed, after a warm-up.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    limit: Annotated[float, typer.Option(min=0.001, help="Seconds from which on larger nets are not measured.")] = 60.0,
    quick: Annotated[bool, typer.Option("--quick", help="A few small sizes: to see that it works.")] = False,
    out: Annotated[Path, typer.Option(help="Where timing.md, .png and .json are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: about a quarter of an hour on a CPU core up to 4096 units, longer with 8192."""
    dense = (64, 256) if quick and not sizes else _sizes(sizes, DENSE)
    conv = (64,) if quick and not sizes else tuple(size for size in _sizes(sizes, CONV) if size <= max(CONV))
    vgg_layers = VGG_LAYERS[:1] if quick else VGG_LAYERS
    found = measure(dense, conv, vgg_layers, repeats, limit, torch.device(device))
    out.mkdir(parents=True, exist_ok=True)
    draw(found).save_small(out / "timing.png")
    (out / "timing.md").write_text(report(found, "timing.png"), encoding="utf-8")
    (out / "timing.json").write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

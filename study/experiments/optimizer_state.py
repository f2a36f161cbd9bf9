"""What is it worth that the optimizer's state follows the units? Three ways through the same surgery, side by side.

A network is trained for ``BEFORE`` steps. Then every hidden layer is operated on, once for each arm from the very same
weights and optimizer, and training goes on for ``AFTER`` steps on the same batches:

``carry``
    The state follows the units (``ops.network.optimizer_state``).
``reset``
    A new optimizer with the same settings, as the thesis's published code makes one (Graham 2019, InterruptNet).
``stale``
    The optimizer is left alone, and its state made to fit by position: along each axis the first entries stay where
    they are, whichever units are there now, and zeros are appended where the layer has grown. Step counts stay.

What is compared is the loss of each training batch just before the step on it. The first one is the same in all arms,
for nothing has been stepped yet.

    python -m network_surgery.study.experiments.optimizer_state --seeds 10 --out study/docs
"""

from __future__ import annotations

import copy
import itertools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib import style
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from network_surgery.ops import PCNS, Anatomy, MinWeight, Operation, Signals, WeakExpand, operate
from network_surgery.study import data, models
from network_surgery.study.evidence.drawing import BLUE, STYLE, VERMILLION, Drawing, new_axes
from network_surgery.study.training.trainer import Batches

BEFORE, AFTER, BATCH, SIGNAL_IMAGES = 150, 100, 32, 512
ARMS = {
    "carry": {"color": BLUE, "linestyle": "-"},
    "reset": {"color": VERMILLION, "linestyle": "--"},
    "stale": {"color": "#009E73", "linestyle": ":"},
}
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "Adam, 1e-3": lambda model: Adam(model.parameters(), lr=1e-3),
    "SGD 0.02, momentum 0.9": lambda model: SGD(model.parameters(), lr=0.02, momentum=0.9),
}
OPERATIONS: dict[str, Operation] = {
    "MinWeight, keep ½": MinWeight(keep=0.5),
    "PCNS, variance 0.05": PCNS(variance_threshold=0.05),
    "WeakExpand, grow ½": WeakExpand(grow=0.5),
}
#: What came out when the results were looked into; part of the report.
NOTES = """Carrying gives the state that the network would have had, not the one that trains fastest. Where `stale` wins
(Adam, MinWeight) it takes larger steps: the units that stay are those with large gradients (the root of Adam's second
moment is 1.3 to 1.6 times the layer's in conv1, fc1 and fc2), so by position they get the smaller moments of others.
With twice the learning rate `carry` has the lower loss of the two (0.116 against 0.134 over 100 steps, 6 seeds). Where
`reset` wins (SGD, WeakExpand) it does without momentum for some steps. A part of what that saves (0.002 of 0.008 over
steps 1–10, 12 seeds) is that every copy moves its fan-out by the whole of what the one unit would, so that the function
moves on faster than before; the rest was not looked into."""
#: (optimizer, operation, arm) → losses ``[seeds, steps]``.
Losses = dict[tuple[str, str, str], NDArray[np.float64]]


def measure(seeds: int, before: int = BEFORE, after: int = AFTER) -> Losses:
    """The losses of every arm after surgery; row ``i`` belongs to seed ``i`` in all of them."""
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    dataset = data.load("digits", validation=0.2)
    images = Batches(dataset.train, torch.device("cpu"))
    for seed in range(seeds):
        for optimizer_name, make in OPTIMIZERS.items():
            torch.manual_seed(seed)
            model = models.build("small_cnn", dataset.shape, len(dataset.classes))
            optimizer = make(model)
            train(model, optimizer, batches(images, before, seed))
            for operation_name, operation in OPERATIONS.items():
                for arm in ARMS:
                    operated = through_surgery(arm, model, optimizer, make, operation, images)
                    losses = train(*operated, batches(images, after, seeds + seed))
                    found.setdefault((optimizer_name, operation_name, arm), []).append(losses)
    return {key: np.array(losses) for key, losses in found.items()}


def through_surgery(
    arm: str,
    model: nn.Module,
    optimizer: Optimizer,
    make: Callable[[nn.Module], Optimizer],
    operation: Operation,
    images: Batches,
) -> tuple[nn.Module, Optimizer]:
    """A copy of the model, operated on in every hidden layer, and the optimizer that goes on with it."""
    model, optimizer = copy.deepcopy((model, optimizer))
    inputs, _ = images.take(slice(SIGNAL_IMAGES))
    for layer in Anatomy(model, inputs[:2]).values():
        signals = Signals(model, inputs) if operation.needs_signals else None
        operate(layer, operation, optimizer if arm == "carry" else (), signals)
    if arm == "reset":
        return model, make(model)
    if arm == "stale":
        fit_by_position(optimizer)
    return model, optimizer


def fit_by_position(optimizer: Optimizer) -> None:
    """Cuts every state tensor to its parameter's size, or appends zeros, along each axis."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                common = tuple(slice(min(sizes)) for sizes in zip(value.shape, parameter.shape, strict=True))
                state[key] = torch.zeros_like(parameter)
                state[key][common] = value[common]


def batches(images: Batches, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches, the same for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield images.take(torch.randperm(len(images), generator=generator)[:BATCH])


def train(model: nn.Module, optimizer: Optimizer, steps: Iterator[tuple[Tensor, Tensor]]) -> list[float]:
    """The loss of each batch before the step on it."""
    model.train()
    losses = []
    for inputs, labels in steps:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def draw(found: Losses) -> Drawing:
    """How far the other arms' loss lies above that of ``carry``: a row an optimizer, a column an operation."""
    n, steps = next(iter(found.values())).shape
    at = np.arange(1, steps + 1)
    words = []
    with style.context(["default", STYLE]):
        figure, single = new_axes(8.4, 5.0)
        single.remove()
        axes = figure.subplots(len(OPTIMIZERS), len(OPERATIONS), sharex=True, sharey=True)
        for (optimizer, operation), panel in zip(itertools.product(OPTIMIZERS, OPERATIONS), axes.flat, strict=True):
            carried = smooth(found[optimizer, operation, "carry"])
            scale = carried.mean(axis=0)
            panel.axhline(0, label="carry", **ARMS["carry"])
            for arm in ("reset", "stale"):
                low, middle, high = interval(smooth(found[optimizer, operation, arm]) - carried) / scale
                panel.plot(at, middle, label=arm, **ARMS[arm])
                panel.fill_between(at, low, high, color=ARMS[arm]["color"], alpha=0.18, linewidth=0)
                words.append(f"{optimizer}, {operation}, {arm}: {middle[0]:+.0%} at first, {middle[-1]:+.0%} at last")
            panel.set_title(
                f"carry: loss {scale[0]:.2f} → {scale[-1]:.2f}", fontsize=9, fontweight="normal", loc="right"
            )
            panel.set(xscale="log", xlim=(1, steps))
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0%}" if value else "0"))
        for panel, operation in zip(axes[0], OPERATIONS, strict=True):
            panel.set_title(f"{operation}\n")
        for panel, optimizer in zip(axes[:, 0], OPTIMIZERS, strict=True):
            panel.set_ylabel(f"{optimizer}\nloss, compared with carry")
        for panel in axes[-1]:
            panel.set_xlabel("step after surgery")
        axes[0, 0].legend(loc="upper left")
    caption = (
        f"How far the training loss lies above (+) or below (−) that of `carry`, in the mean over {n} seeds; bands are "
        f"95 % intervals of the paired difference. Each step is averaged with {WINDOW // 2} neighbours on either side."
    )
    return Drawing(figure, "The optimizer's state after surgery", caption, "; ".join(words) + ".")


#: Steps that a point of the figure is averaged over.
WINDOW = 5


def smooth(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean along the steps ``[…, steps]``; near the ends over what there is."""
    reach = WINDOW // 2
    sums = np.cumsum(np.pad(losses, [(0, 0)] * (losses.ndim - 1) + [(1, 0)]), axis=-1)
    at = np.arange(losses.shape[-1])
    low, high = (at - reach).clip(0), (at + reach + 1).clip(max=losses.shape[-1])
    return (sums[..., high] - sums[..., low]) / (high - low)


def report(found: Losses, picture: str) -> str:
    """The result in markdown: what was done, the table, and what it says, for and against."""
    n, steps = next(iter(found.values())).shape
    spans = {f"steps 1–{min(10, steps)}": slice(0, 10), f"steps 1–{steps}": slice(0, steps)}
    rows, verdicts = [], []
    for (optimizer, operation, arm), losses in found.items():
        cells = []
        for span, within in spans.items():
            mean = losses[:, within].mean(axis=1)
            cells.append(f"{mean.mean():.4f} ± {mean.std(ddof=1):.4f}")
            low, middle, high = interval(mean - found[optimizer, operation, "carry"][:, within].mean(axis=1))
            cells.append("" if arm == "carry" else f"{middle:+.4f} [{low:+.4f}, {high:+.4f}]")
            if arm != "carry":
                verdicts.append((low, high, f"{arm} ({optimizer}; {operation}; {span}): {middle:+.4f}"))
        rows.append(f"| {optimizer} | {operation} | {arm} | {' | '.join(cells)} | {n} |")
    header = " | ".join(f"loss, {span} | − carry" for span in spans)
    better = [f"- lower with `carry` than with {words}" for low, _, words in verdicts if low > 0]
    worse = [f"- **higher** with `carry` than with {words}" for _, high, words in verdicts if high < 0]
    return f"""# What is carrying the optimizer's state through surgery worth?

`small_cnn` on scikit-learn's digits, batches of {BATCH}: {BEFORE} steps, then every hidden layer is operated on, then
{steps} steps on the same batches in every arm. `carry`: the state follows the units. `reset`: a new optimizer. `stale`:
the old state by position, cut or padded with zeros, whichever units are there now. The loss is that of each training
batch before the step on it; the first is equal in all arms.

![Training loss after surgery, by optimizer, operation and arm]({picture})

{draw(found).caption}

| optimizer | operation | arm | {header} | n |
|{"---|" * 8}
{chr(10).join(rows)}

Mean ± standard deviation over seeds; differences are paired by seed, with 95 % intervals (Student's t, not corrected
for their number). Of {len(verdicts)} comparisons the loss with `carry` is lower in {len(better)}, higher in
{len(worse)}, and not shown to differ in {len(verdicts) - len(better) - len(worse)}:

{chr(10).join([*better, *worse])}

{NOTES}

`python -m network_surgery.study.experiments.optimizer_state --seeds {n}`, on CPU; torch {torch.__version__}, Python
{platform.python_version()}.
"""


def interval(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[seeds, …] → [3, …]``: the mean between the bounds of its 95 % interval (Student's t)."""
    mean, n = differences.mean(axis=0), len(differences)
    half = stats.t.ppf(0.975, n - 1) * differences.std(axis=0, ddof=1) / np.sqrt(n)
    return np.stack([mean - half, mean, mean + half])


def main(
    seeds: Annotated[int, typer.Option(min=2, help="How many trainings, each with its own seed.")] = 10,
    out: Annotated[Path, typer.Option(help="Where optimizer_state.md and .png are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: three minutes on two CPU cores for ten seeds."""
    found = measure(seeds)
    out.mkdir(parents=True, exist_ok=True)
    draw(found).save_small(out / "optimizer_state.png")
    (out / "optimizer_state.md").write_text(report(found, "optimizer_state.png"), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

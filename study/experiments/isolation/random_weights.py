"""The thesis's setting: one hidden layer of random weights, shrunk and grown step by step (Graham 2019, 4.1.1).

Three dense layers of equal width with tanh behind the second and the third, PyTorch's uniform default weights, inputs
uniform from 0 to 1. There is no bias: that of the output layer is zero, which changes nothing, and is there so that an
operation that moves constants has somewhere to put them. What looks at activations sees other inputs than those on
which the distance is measured.

Ten sizes and twenty methods need 200 surgeries an iteration. What is done instead gives the same numbers
(``tests/study/experiments/test_isolation.py`` holds it against ``operate``): every operation here takes from the layer
the leading units of an order that does not depend on the size, so the order is found once (one eigendecomposition
serves every rank and size of EigenRemove, one pivoted QR every size of PCNS), and the output of one size is that of the
size before plus what the units between send on.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, HiddenLayer
from network_surgery.ops.maths.condensed import Condensed
from network_surgery.ops.operations.min_weight import strongest
from network_surgery.ops.signals.signals import MOST_SAMPLES
from network_surgery.ops.signals.unit_scores import unit_scores, variance
from network_surgery.study.experiments.isolation.curves import (
    GROWTHS,
    MEAN_L2,
    MEAN_VARIANCE,
    MIN_WEIGHT,
    PIVOTED,
    RANDOM_REMOVE,
    RANKS,
    REMOVALS,
    REPLACED,
    Curves,
    Gatherer,
    eigen,
)

WHERE = "random weights"
#: Tracing a network sees the modules of every thread.
TRACING = threading.Lock()
#: The units of a new layer, each with its old unit, and the factor on its fan-out.
Terms = tuple[Sequence[int], Sequence[float]]


def network(width: int, generator: torch.Generator) -> nn.Sequential:
    """Dense ``width`` – ``width`` – ``width`` with tanh, its weights as PyTorch draws them by default."""
    hidden, output = (nn.utils.skip_init(nn.Linear, width, width, bias=bias) for bias in (False, True))
    for linear in (hidden, output):
        nn.init.uniform_(linear.weight, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
    nn.init.zeros_(output.bias)
    return nn.Sequential(hidden, nn.Tanh(), output, nn.Tanh())


def sizes(width: int, step: int) -> tuple[list[int], list[int]]:
    """The sizes to shrink to and to grow to, ascending; at least two units stay."""
    steps = range(1, (width - 2) // step + 1)
    return [width - step * i for i in reversed(steps)], [width + step * i for i in steps]


class Iteration:
    """One fresh network with its inputs, and the squared distance of its output for every method and size."""

    def __init__(self, width: int, step: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = network(width, generator).to(device)
        self.inputs = torch.rand(width, width, generator=generator).to(device)
        shown = torch.rand(min(4 * width, MOST_SAMPLES), width, generator=generator).to(device)
        self.width, self.seed, self.device = width, seed, device
        self.smaller, self.larger = sizes(width, step)
        with TRACING:
            self.layer: HiddenLayer = Anatomy(self.model, self.inputs[:2])["0"]
        (self.reader,) = self.layer.readers
        self.fan_in, self.fan_out, _ = (parameter.detach() for parameter in self.model.parameters())
        self.hidden = (self.inputs @ self.fan_in.T).tanh()
        self.before = (self.hidden @ self.fan_out.T).tanh()
        self.seen = Condensed.of((shown @ self.fan_in.T).tanh())  # what Signals(model, shown) see
        self.norm = squared(self.before)
        self._spare = torch.empty_like(self.before)
        self.by_unit = self.fan_in.double(), self.fan_out.T.double()
        self.spectra = [torch.linalg.eigh(weight @ weight.T) for weight in self.by_unit]

    @torch.no_grad()
    def shrunk(self) -> Iterator[tuple[str, list[float]]]:
        """Every removal with its squared distances, by ``self.smaller``."""
        yield from self._eigen_removed()
        for method in (MIN_WEIGHT, RANDOM_REMOVE):
            chosen = [self._chosen(method, size) for size in self.smaller]
            yield method, self._distances(walk(self.hidden, self.fan_out, map(plainly, chosen)))
        yield from self._mean_replaced()
        yield PIVOTED, self._distances(self._recombined())

    @torch.no_grad()
    def grown(self) -> Iterator[tuple[str, list[float]]]:
        """Every growth with its squared distances, by ``self.larger``."""
        for method, make in GROWTHS.items():
            plans = [make(size / self.width - 1, self.seed).propose(self.layer) for size in self.larger]
            terms = [
                (plan.sources, [1.0] * plan.units_after if plan.shares is None else plan.shares.tolist())
                for plan in plans
            ]
            yield method, self._distances(walk(self.hidden, self.fan_out, terms))

    @torch.no_grad()
    def replaced(self) -> tuple[list[float], list[float]]:
        """Both matrices drawn anew at every size, smaller and larger: what a fresh network is away.

        A network of so many units is made of the first ones of a large draw, scaled as PyTorch's default is.
        """
        most = max([*self.smaller, *self.larger])
        generator = torch.Generator().manual_seed(self.seed + 1_000_003)
        fan_in, fan_out = (2 * torch.rand(most, self.width, generator=generator) - 1 for _ in range(2))
        hidden = (self.inputs @ fan_in.to(self.device).T / math.sqrt(self.width)).tanh()
        every = [*self.smaller, *self.larger]
        drives = walk(hidden, fan_out.to(self.device).T, (plainly(range(size)) for size in every))
        found = self._distances(drive / math.sqrt(size) for drive, size in zip(drives, every, strict=True))
        return found[: len(self.smaller)], found[len(self.smaller) :]

    def spectrum(self) -> list[float]:
        """The share of the fan-out's squared norm that its leading singular vectors hold, at each of ``RANKS``."""
        values = self.spectra[1].eigenvalues
        return [float(values[-leading(rank, self.width) :].sum() / values.sum()) for rank in RANKS]

    def _chosen(self, method: str, size: int) -> Sequence[int]:
        return REMOVALS[method](size / self.width, self.seed).propose(self.layer).sources

    def _eigen_removed(self) -> Iterator[tuple[str, list[float]]]:
        squares = self.spectra[1].eigenvectors.square() * self.spectra[1].eigenvalues.clamp(min=0)
        for rank in RANKS:
            most = leading(rank, self.width)
            scores = squares[:, -most:].sum(dim=1).sqrt() if rank < 1 else self.by_unit[1].norm(dim=1)
            terms = [plainly(strongest(scores, size)) for size in self.smaller]
            yield eigen(rank), self._distances(walk(self.hidden, self.fan_out, terms))
            if rank < 1:
                reduced = []
                for weight, spectrum in zip(self.by_unit, self.spectra, strict=True):
                    vectors = spectrum.eigenvectors[:, -most:]
                    reduced.append((vectors @ (vectors.T @ weight)).to(self.inputs))
                hidden = (self.inputs @ reduced[0].T).tanh()
                yield eigen(rank, "reduced"), self._distances(walk(hidden, reduced[1].T, terms))

    def _mean_replaced(self) -> Iterator[tuple[str, list[float]]]:
        mean = self.seen.origin
        found = {
            MEAN_L2: unit_scores(self.layer, None, "l2"),
            MEAN_VARIANCE: variance(self.layer, {self.reader: self.seen}),
        }
        for method, scores in found.items():
            chosen = [strongest(scores, size) for size in self.smaller]
            drives = walk(self.hidden, self.fan_out, map(plainly, chosen))
            yield (
                method,
                self._distances(drive + self._sent(mean, units) for drive, units in zip(drives, chosen, strict=True)),
            )

    def _sent(self, mean: Tensor, kept: Sequence[int]) -> Tensor:
        """What the units that are gone sent on in the mean."""
        left = mean.clone()
        left[list(kept)] = 0
        return (self.fan_out.double() @ left).to(self.inputs)

    def _recombined(self) -> Iterator[Tensor]:
        """PCNS's least squares: with ``hidden = basis @ triangle``, ``k`` units span the first ``k`` of the basis."""
        triangle, pivots = self.seen.pivoted()
        origin = self.seen.origin
        fan_out = self.fan_out.double()
        centred = (self.hidden.double() - origin)[:, pivots]
        basis = torch.linalg.solve_triangular(triangle, centred, upper=True, left=False)
        sent = triangle @ fan_out[:, pivots].T
        total, done = (fan_out @ origin).expand(len(basis), -1).clone(), 0
        for size in self.smaller:
            total.addmm_(basis[:, done:size], sent[done:size])
            done = size
            yield total.to(self.inputs)

    def _distances(self, drives: Iterator[Tensor]) -> list[float]:
        return [squared(torch.tanh(drive, out=self._spare).sub_(self.before)) for drive in drives]


def leading(rank: float, units: int) -> int:
    """How many singular vectors EigenRemove keeps of a square matrix."""
    return max(1, math.floor(rank * units))


def plainly(units: Sequence[int]) -> Terms:
    """Units that stay as they are."""
    return units, [1.0] * len(units)


def walk(hidden: Tensor, fan_out: Tensor, plans: Iterator[Terms] | Sequence[Terms]) -> Iterator[Tensor]:
    """What the next layer is driven by after each plan, ``[samples, outputs]``, from what differs between two of them.

    ``hidden``: ``[samples, units]``; ``fan_out``: ``[outputs, units]``. Newborn units (source −1) send nothing on.

    >>> hidden, fan_out = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 10.0, 100.0]])
    >>> [drive.item() for drive in walk(hidden, fan_out, [([1], [1.0]), ([1, 2, 1], [0.5, 1.0, 0.5])])]
    [20.0, 320.0]
    """
    drive = torch.zeros(len(hidden), len(fan_out), dtype=hidden.dtype, device=hidden.device)
    before: Counter[tuple[int, float]] = Counter()
    for sources, shares in plans:
        now = Counter(term for term in zip(sources, shares, strict=True) if term[0] >= 0)
        for terms, sign in ((now - before, 1), (before - now, -1)):
            if terms:
                units, factors = zip(*terms.elements(), strict=True)
                at = torch.tensor(units, device=hidden.device)
                drive.addmm_(hidden[:, at], (fan_out[:, at] * torch.tensor(factors).to(fan_out)).T, alpha=sign)
        before = now
        yield drive


def measure(
    width: int, step: int, iterations: int, seed: int, device: torch.device, tell: Callable[[str], None]
) -> tuple[Curves, Curves, list[list[float]]]:
    """The curves of shrinking and of growing, and the spectrum (see ``Iteration.spectrum``) of each iteration.

    On a CPU there are as many iterations at a time as torch has threads (see ``one_thread_each``), eight at most.
    """
    to = sizes(width, step)
    shrink, grow = (Gatherer(Curves(WHERE, change, width, to[i])) for i, change in enumerate(("shrink", "grow")))
    spectra = []
    with one_thread_each(device) as workers, ThreadPoolExecutor(min(workers, iterations, 8)) as pool:
        drawn = pool.map(lambda i: _iteration(width, step, seed + i, device), range(iterations))
        tell(f"random weights: {iterations} iterations")
        for i, (smaller, larger, norm, spectrum) in enumerate(drawn):
            for gatherer, curves in ((shrink, smaller), (grow, larger)):
                for method, distances in curves.items():
                    gatherer.add(method, [(distance, norm, math.nan) for distance in distances])
            spectra.append(spectrum)
            tell(f"random weights: {i + 1} of {iterations} iterations done")
    return shrink.done(), grow.done(), spectra


def _iteration(
    width: int, step: int, seed: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, list[float]], float, list[float]]:
    drawn = Iteration(width, step, seed, device)
    floors = drawn.replaced()
    shrunk, grown = dict(drawn.shrunk()) | {REPLACED: floors[0]}, dict(drawn.grown()) | {REPLACED: floors[1]}
    return shrunk, grown, drawn.norm, drawn.spectrum()


@contextlib.contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """Every operator on one thread for the time of a ``with`` block; gives how many can run beside each other.

    So results do not depend on how many cores there are, and cores that others use cost only their share.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads if device.type == "cpu" else 1
    finally:
        torch.set_num_threads(threads)


def squared(difference: Tensor) -> float:
    """The squared Frobenius norm, summed in double precision."""
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2

"""What the truncated HOSVD costs: ``python -m tests.benchmarks.hosvd [--widths 128,256,512] [--repeats 3]``.

Scoring the units of a ``width × width × 3 × 3`` kernel is compared with tensorly's ``partial_tucker`` (from its own
singular value decompositions, iterated to its tolerance) and with one ``torch.linalg.svd`` of each unfolding, on flat
spectra (random) and on decaying ones. They are taken in turns in one run, so that all see the same machine, and the
medians compared. ``other units`` counts the units, of half of them kept, that differ from those of the full
decompositions. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tensorly import backend_context
from tensorly.decomposition import partial_tucker
from torch import Tensor

from network_surgery.ops.maths.hosvd import truncated_hosvd

RANK = 0.125


def kernel(width: int, decay: float) -> Tensor:
    """A kernel ``[width, width, 9]`` whose unfoldings' singular values fall as ``k ** -decay`` (0: random)."""
    falling = torch.arange(1, width + 1, dtype=torch.float64) ** -decay
    core = torch.randn(width, width, 9, dtype=torch.float64) * falling[:, None, None] * falling[:, None]
    if not decay:
        return core
    left, right = (torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q for _ in range(2))
    sizes = torch.randn(width, 1, dtype=torch.float64).mul(0.3).exp()
    turned = (sizes * left @ core.flatten(1)).view(width, width, 9)
    return (turned.transpose(1, 2) @ right.T).transpose(1, 2).contiguous()


def by_decomposition(tensor: Tensor) -> Tensor:
    """The scores, by a full singular value decomposition of each unfolding."""
    size = int(RANK * len(tensor))
    first = torch.linalg.svd(tensor.flatten(1), full_matrices=False).U[:, :size]
    second = torch.linalg.svd(tensor.transpose(0, 1).flatten(1), full_matrices=False).U[:, :size]
    core = (first.T @ tensor.flatten(1)).view(size, -1, tensor.shape[2])
    return (first @ (core.transpose(1, 2) @ second).flatten(1)).norm(dim=1)


def tucker(tensor: Tensor) -> None:
    size = int(RANK * len(tensor))
    with backend_context("pytorch", local_threadsafe=True):
        partial_tucker(tensor, rank=[size, size], modes=[0, 1], init="svd", svd="truncated_svd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="128,256,512", help="kernel widths, after commas")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"rank 1/8, float64, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    columns = (
        "width",
        "spectrum",
        "ours, ms",
        "partial_tucker / ours",
        "its float32 / ours",
        "svd / ours",
        "other units",
    )
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|")
    for width in map(int, options.widths.split(",")):
        for spectrum, decay in (("flat", 0.0), ("k^-1/4", 0.25), ("k^-1/2", 0.5), ("1/k", 1.0)):
            torch.manual_seed(width)
            tensor = kernel(width, decay)
            single = tensor.to(torch.float32)
            actions: dict[str, Callable[[], object]] = {
                "ours": lambda: truncated_hosvd(tensor, RANK).row_norms(),  # noqa: B023
                "tucker": lambda: tucker(tensor),  # noqa: B023
                "single": lambda: tucker(single),  # noqa: B023
                "svd": lambda: by_decomposition(tensor),  # noqa: B023
            }
            times = race(actions, options.repeats)
            ours, exact = (
                set(scores.argsort(descending=True)[: width // 2].tolist())
                for scores in (truncated_hosvd(tensor, RANK).row_norms(), by_decomposition(tensor))
            )
            ratios = " | ".join(f"{times[key] / times['ours']:.0f}" for key in ("tucker", "single", "svd"))
            print(f"| {width} | {spectrum} | {1e3 * times['ours']:.1f} | {ratios} | {len(ours - exact)} |", flush=True)


def race(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each action, taken in turns; the first round warms up."""
    found: dict[str, list[float]] = {key: [] for key in actions}
    for number in range(repeats + 1):
        for key, action in actions.items():
            start = time.perf_counter()
            action()
            if number:
                found[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in found.items()}


if __name__ == "__main__":
    main()

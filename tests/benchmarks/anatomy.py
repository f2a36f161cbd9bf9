"""What discovery and surgery cost: ``python -m tests.benchmarks.anatomy [--models PATTERN] [--repeats 5]``.

Discovery is compared with one forward pass of the same network on the same batch, and with the building of
Torch-Pruning's dependency graph where that is installed (``pip install torch-pruning``); they are taken in turns, so
that all see the same machine, and the medians compared. Surgery is timed on two dense layers of growing width:
per entry of the tensors that it rebuilds, the time should not grow. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from network_surgery.ops import Anatomy, MinWeight, WeakExpand, operate

#: Networks that take minutes and tens of gigabytes.
GIANTS = {"regnet_y_128gf", "vit_h_14"}


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def discovery(names: list[str], repeats: int, batch: int, size: int) -> None:
    print(f"{batch} images, {torch.get_num_threads()} threads\n")
    print("| network | forward, ms | discovery / forward | Torch-Pruning's graph / forward |\n|---|---|---|---|")
    ours, theirs = [], []
    for name in names:
        forward, anatomy, graph = _medians(name, repeats, batch, 299 if name == "inception_v3" else size)
        ours.append(anatomy / forward)
        if graph is not None:
            theirs.append(graph / forward)
        print(
            f"| {name} | {1e3 * forward:.0f} | {ours[-1]:.1f} | {'fails' if graph is None else f'{theirs[-1]:.1f}'} |",
            flush=True,
        )
        gc.collect()
    print(
        f"\n{len(ours)} networks: discovery takes {statistics.median(ours):.1f} forward passes at the median, "
        f"{max(ours):.1f} at most, more than 5 for {sum(ratio > 5 for ratio in ours)}."
    )
    if theirs:
        print(f"Torch-Pruning, where it works ({len(theirs)}): {statistics.median(theirs):.1f} at the median.")


def _medians(name: str, repeats: int, batch: int, size: int) -> tuple[float, float, float | None]:
    """Seconds of a forward pass, of discovery and of Torch-Pruning's graph (None where it fails or is missing)."""
    torch.manual_seed(0)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    inputs = torch.randn(batch, 3, size, size)

    def forward() -> None:
        with torch.no_grad():
            model(inputs)

    def graph() -> None:
        import torch_pruning

        torch_pruning.DependencyGraph().build_dependency(model, inputs)

    actions: dict[str, Callable[[], object]] = {"forward": forward, "anatomy": lambda: Anatomy(model, inputs)}
    times: dict[str, list[float]] = {"forward": [], "anatomy": [], "graph": []}
    try:
        graph()
        actions["graph"] = graph
    except Exception as error:  # it does not handle every network
        print(f"<!-- Torch-Pruning on {name}: {type(error).__name__} -->")
    for number in range(repeats + 1):
        for key, action in actions.items():
            elapsed = seconds(action)
            if number:  # the first one warms up
                times[key].append(elapsed)
    found = {key: statistics.median(values) for key, values in times.items() if values}
    return found["forward"], found["anatomy"], found.get("graph")


def surgery(repeats: int) -> None:
    print("\n| width | removal, ns an entry | growth, ns an entry |\n|---|---|---|")
    for width in (256, 512, 1024, 2048, 4096):
        figures = []
        for operation in (MinWeight(keep=0.5), WeakExpand(grow=0.5)):
            found = []
            for _ in range(repeats):
                model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
                optimizer = torch.optim.Adam(model.parameters())
                layer = Anatomy(model, torch.randn(2, width))["0"]
                entries = 2 * width * width
                found.append(1e9 * seconds(lambda: operate(layer, operation, optimizer)) / entries)  # noqa: B023
            figures.append(f"{statistics.median(found):.2f}")
        print(f"| {width} | {' | '.join(figures)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="*", help="names of torchvision's classifiers, with * and ?, after commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, default=224)
    options = parser.parse_args()
    names = torchvision.models.list_models(module=torchvision.models)
    patterns = options.models.split(",")
    chosen = [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns) and n not in GIANTS]
    discovery(chosen, options.repeats, options.batch, options.image)
    surgery(options.repeats)


if __name__ == "__main__":
    main()

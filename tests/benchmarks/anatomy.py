"""What discovery and surgery cost: ``python -m tests.benchmarks.anatomy [--models PATTERN] [--repeats 5] [--image 224]``.

Discovery is compared with one forward pass of the same batch (two images) of the same network, and with the building of
Torch-Pruning's dependency graph where that is installed (``pip install torch-pruning``); each figure is a median of
ratios' parts taken in turns, so that all see the same machine. Surgery is timed on two dense layers of growing width:
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

from ops import Anatomy, MinWeight, WeakExpand, operate

#: Networks that take minutes and tens of gigabytes.
GIANTS = {"regnet_y_128gf", "vit_h_14"}


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def discovery(names: list[str], repeats: int, size: int) -> None:
    try:
        import torch_pruning
    except ImportError:
        torch_pruning = None
    print("| network | forward, ms | discovery / forward | Torch-Pruning's graph / forward |\n|---|---|---|---|")
    ratios, theirs = [], []
    for name in names:
        torch.manual_seed(0)
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **extra).eval()
        inputs = torch.randn(2, 3, *[299 if name == "inception_v3" else size] * 2)

        def forward(model: nn.Module = model, inputs: torch.Tensor = inputs) -> None:
            with torch.no_grad():
                model(inputs)

        def graph(model: nn.Module = model, inputs: torch.Tensor = inputs) -> None:
            torch_pruning.DependencyGraph().build_dependency(model, inputs)

        forward()
        Anatomy(model, inputs)
        times: dict[str, list[float]] = {"forward": [], "ours": [], "theirs": []}
        for _ in range(repeats):
            times["forward"].append(seconds(forward))
            times["ours"].append(seconds(lambda: Anatomy(model, inputs)))  # noqa: B023
            if torch_pruning is not None and times["theirs"] is not None:
                try:
                    times["theirs"].append(seconds(graph))
                except Exception as error:  # it does not handle every network
                    times["theirs"] = []
                    print(f"<!-- Torch-Pruning on {name}: {type(error).__name__} -->")
                    break
        middle = {key: statistics.median(values) for key, values in times.items() if values}
        ratios.append(middle["ours"] / middle["forward"])
        other = f"{middle['theirs'] / middle['forward']:.1f}" if "theirs" in middle else "fails"
        if "theirs" in middle:
            theirs.append(middle["theirs"] / middle["forward"])
        print(f"| {name} | {1e3 * middle['forward']:.0f} | {ratios[-1]:.1f} | {other} |", flush=True)
        del model, forward, graph
        gc.collect()
    print(
        f"\n{len(ratios)} networks: discovery is {statistics.median(ratios):.1f} forward passes at the median, ", end=""
    )
    print(f"{max(ratios):.1f} at most; over 5 for {sum(ratio > 5 for ratio in ratios)}.")
    if theirs:
        print(f"Torch-Pruning, where it works ({len(theirs)}): {statistics.median(theirs):.1f} at the median.")


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
    parser.add_argument("--models", default="*", help="names of torchvision's classifiers, with * and ?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image", type=int, default=224)
    options = parser.parse_args()
    names = torchvision.models.list_models(module=torchvision.models)
    discovery(
        [n for n in names if fnmatch.fnmatch(n, options.models) and n not in GIANTS], options.repeats, options.image
    )
    surgery(options.repeats)


if __name__ == "__main__":
    main()

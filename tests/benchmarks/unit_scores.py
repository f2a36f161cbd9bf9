"""What unit scores cost: ``python -m tests.benchmarks.unit_scores [--models evci_cnn,vgg16_quarter] [--samples 128]``.

The mean replacement penalty of every unit of a layer is compared with its definition, one forward pass of the whole
network for each unit, and the first-order saliency of *all* layers with one forward pass. They are taken in turns in
one run, so that all see the same machine, and the medians compared; of large layers the loop is timed on a few units
and multiplied. ``correlation`` is Spearman's, of saliency and penalty over the units. Nothing is asserted about time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from scipy.stats import spearmanr

from network_surgery.ops import Anatomy, Signals, unit_scores
from network_surgery.ops.anatomy import call, evaluating
from network_surgery.ops.signals.losses import sample_losses
from network_surgery.ops.signals.replacement import constants
from network_surgery.ops.signals.unit_scores import _Removed, mean_replacement_penalty
from network_surgery.study import models

#: Units that the loop over units is timed on at most.
LOOPED = 6


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="evci_cnn,vgg16_quarter,torchvision:resnet18", help="after commas")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.samples} images, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print("| network | layer | units | loop / penalty | correlation |\n|---|---|--:|--:|--:|")
    whole = []
    for name in options.models.split(","):
        torch.manual_seed(0)
        shape = (1, 28, 28) if name.startswith("evci") else (3, 32, 32)
        model = models.build(name, shape, 10)
        inputs, targets = torch.randn(options.samples, *shape), torch.arange(options.samples) % 10
        anatomy, signals = Anatomy(model, inputs[:2]), Signals(model, inputs, targets)
        ratios = []
        for layer in anatomy.values():
            left = constants(layer, signals)
            penalty, saliency = (unit_scores(layer, signals, score) for score in ("mrp", "mrs"))
            few = min(LOOPED, layer.units)

            def loop(layer=layer, left=left, few=few, signals=signals, model=model) -> None:
                removed = _Removed(layer, left)
                with evaluating(model), torch.no_grad():
                    for unit in range(few):
                        changed = removed.tensors(torch.tensor(unit))
                        sample_losses(torch.func.functional_call(model, changed, (signals.inputs,)), signals.classes)

            def batched(layer=layer, left=left, signals=signals) -> None:
                mean_replacement_penalty(layer, signals, left)

            pairs = [(seconds(loop) * layer.units / few, seconds(batched)) for _ in range(options.repeats)]
            ratio = statistics.median(one / other for one, other in pairs)
            ratios.append(ratio)
            correlation = spearmanr(penalty, saliency).statistic
            print(f"| {name} | {layer.name} | {layer.units} | {ratio:.1f} | {correlation:.2f} |", flush=True)

        def saliencies(model=model, inputs=inputs, targets=targets, anatomy=anatomy) -> None:
            signals = Signals(model, inputs, targets)
            for layer in anatomy.values():
                unit_scores(layer, signals, "mrs")

        def forward(model=model, inputs=inputs) -> None:
            with evaluating(model), torch.no_grad():
                call(model, inputs)

        both = [(seconds(saliencies), seconds(forward)) for _ in range(options.repeats)]
        whole.append(f"| {name} | {len(anatomy)} | {statistics.median(one / other for one, other in both):.1f} |")
    print("\n| network | layers | saliency of all layers / forward pass |\n|---|--:|--:|\n" + "\n".join(whole))


if __name__ == "__main__":
    main()

"""The trainer's step against the best bare one on a CPU: ``python -m tests.benchmarks.step [--repeats 3]``.

Each way takes the same steps in turns, on one thread; the least CPU time of each counts. A bare step is what a user
writes: forward, backward, Adam. The trainer chooses its memory format by itself (``channels_last: auto``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.training.run import trainer_of
from tests.gpu.training import dataset

BATCH, SIZE = 64, 32
#: The model, and the steps that are timed together.
MODELS = {"mlp": 12, "small_cnn": 4, "vgg16_quarter": 4, "resnet18_quarter": 3}
Epoch = Callable[[], object]


def bare(name: str, steps: int, last: bool, half: bool) -> Epoch:
    data = dataset(BATCH * steps, SIZE).train
    model = models.build(name, (3, SIZE, SIZE), 10).train()
    model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters())
    pixels, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)

    def epoch() -> None:
        for index in torch.randperm(len(pixels)).split(BATCH):
            x = pixels[index].float().div_(127.5).sub_(1.0)
            if last:
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = nn.functional.cross_entropy(model(x), labels[index])
            loss.backward()
            optimizer.step()

    return epoch


def ours(name: str, steps: int, half: bool) -> Epoch:
    precision = "bf16" if half else "float32"
    settings = Settings(model=name, epochs=1, batch_size=BATCH, channels_last="auto", precision=precision)
    network = models.build(name, (3, SIZE, SIZE), 10)
    return trainer_of(network, dataset(BATCH * steps, SIZE), settings, 0, torch.device("cpu"))._train_epoch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.step", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | precision | bare, ms | channels last, ms | trainer, ms | trainer / best bare |")
    print("|---|---|--:|--:|--:|--:|")
    for name, steps in MODELS.items():
        for precision in ("float32", "bf16"):
            half = precision == "bf16"
            ways = (bare(name, steps, False, half), bare(name, steps, True, half), ours(name, steps, half))
            least = [float("inf")] * len(ways)
            for turn in range(options.repeats + 1):
                for place, epoch in enumerate(ways):
                    start = time.process_time()
                    epoch()
                    taken = 1000 * (time.process_time() - start) / steps
                    least[place] = min(least[place], taken) if turn else least[place]
            cells = " | ".join(f"{each:.1f}" for each in least)
            print(f"| {name} | {precision} | {cells} | {least[2] / min(least[:2]):.2f} |", flush=True)


if __name__ == "__main__":
    main()

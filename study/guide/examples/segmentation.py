"""Segmentation: which pixels of a noisy picture are ink, by intersection over union.

surgery study --task segmentation.py:Ink
"""

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from network_surgery.study.task import Metric, Task


class Ink(Task):
    metric = Metric("intersection over union", "higher", margin=0.005, percent=True)
    unit = "pictures"
    recipe = {"epochs": 6, "batch_size": 32}

    def load(self):
        digits = load_digits().images.repeat(2, axis=1).repeat(2, axis=2)[:, None].astype(np.float32) / 16
        noise = np.random.default_rng(0).normal(0, 0.4, digits.shape).astype(np.float32)
        inputs, targets = digits + noise, (digits > 0.5).astype(np.float32)
        return [(inputs[first:last], targets[first:last]) for first, last in ((0, 1000), (1000, 1350), (1350, None))]

    def model(self):
        return nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 24, 2, stride=2), nn.ReLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )  # fmt: skip

    def loss(self, outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)

    def measure(self, outputs, targets):
        """The pixels of a picture in both and in either; the metric is no mean over pictures, but of their sums."""
        ink, wanted = outputs > 0, targets > 0.5
        return {"both": (ink & wanted).sum(dim=(1, 2, 3)), "either": (ink | wanted).sum(dim=(1, 2, 3))}

    def summarize(self, means):
        return {"intersection over union": float(means["both"] / means["either"].clamp(min=1e-9))}

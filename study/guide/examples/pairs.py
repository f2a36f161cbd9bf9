"""Two inputs and a dictionary of outputs: is the left digit larger than the right one, and which digits are they?

surgery study --task pairs.py:Pairs
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from network_surgery.study.task import Metric, Task


class Compare(nn.Module):
    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU())
        self.digit = nn.Linear(48, 10)
        self.joint = nn.Linear(96, 32)
        self.larger = nn.Linear(32, 1)

    def forward(self, left, right):
        left, right = self.look(left), self.look(right)
        joint = torch.relu(self.joint(torch.cat([left, right], dim=1)))
        return {"left": self.digit(left), "right": self.digit(right), "larger": self.larger(joint).squeeze(1)}


class Pairs(Task):
    metric = Metric("larger", "higher", margin=0.005, percent=True)
    unit = "pairs"
    recipe = {"epochs": 8, "batch_size": 64}

    def load(self):
        digits, random = load_digits(), np.random.default_rng(0)
        images, labels = (digits.images / 8 - 1).astype(np.float32), digits.target
        sets = []
        for first, last, count in ((0, 1000, 4000), (1000, 1350, 1000), (1350, 1797, 1000)):
            one, other = random.integers(first, last, (2, count))
            inputs = {"left": images[one], "right": images[other]}
            sets.append((inputs, {"left": labels[one], "right": labels[other]}))
        return sets

    def model(self):
        return Compare()

    def loss(self, outputs, targets):
        larger = (targets["left"] > targets["right"]).float()
        digits = sum(cross_entropy(outputs[side], targets[side]) for side in ("left", "right"))
        return binary_cross_entropy_with_logits(outputs["larger"], larger) + 0.5 * digits

    def measure(self, outputs, targets):
        larger = targets["left"] > targets["right"]
        digits = [outputs[side].argmax(dim=1) == targets[side] for side in ("left", "right")]
        return {"larger": ((outputs["larger"] > 0) == larger).double(), "digits": torch.stack(digits).double().mean(0)}

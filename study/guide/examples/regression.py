"""Regression on a table: the progress of diabetes a year on (Efron et al. 2004), by mean absolute error.

surgery study --task regression.py:Diabetes
"""

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn

from network_surgery.study.task import Metric, Task


class Diabetes(Task):
    metric = Metric("mean absolute error", "lower", margin=1.0)
    unit = "patients"
    recipe = {"epochs": 30, "batch_size": 16, "learning_rate": 3e-3}

    def load(self):
        table = load_diabetes()
        inputs = (table.data / table.data.std(axis=0)).astype(np.float32)
        targets = table.target.astype(np.float32)
        order = np.random.default_rng(0).permutation(len(targets))
        parts = order[:264], order[264:353], order[353:]  # 60, 20 and 20 %
        return [(inputs[part], targets[part]) for part in parts]

    def model(self):
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def loss(self, outputs, targets):
        return nn.functional.smooth_l1_loss(outputs.squeeze(1), targets / 100, reduction="none")

    def measure(self, outputs, targets):
        return {"mean absolute error": torch.abs(100 * outputs.squeeze(1) - targets)}

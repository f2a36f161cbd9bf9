"""A final network as MLflow loads it: the file that ``ops.save`` wrote, and how the network was made before surgery.

Nothing of it is pickled, so nothing in it is executed. Every model that was ever tracked names this module as the one
that loads it, so it stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from network_surgery.ops import load
from network_surgery.ops.anatomy import evaluating
from network_surgery.study import models


class Classifier:
    """A network behind the two methods that ``mlflow.pyfunc`` looks for."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def predict(self, images: NDArray[np.float32], params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """Scores ``[n, classes]`` before softmax for ``images [n, channels, height, width]`` in −1 … 1."""
        with evaluating(self._network), torch.no_grad():
            return self._network(torch.tensor(images)).numpy()

    def get_raw_model(self) -> nn.Module:
        """The network itself, on the CPU."""
        return self._network


def recipe(model: str, shape: models.Shape, classes: int) -> dict[str, Any]:
    """How ``study.models`` makes the network as it was before surgery, as plain data."""
    return {"model": model, "shape": list(shape), "classes": classes}


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> Classifier:
    """What MLflow calls with a model's file and its ``recipe``.

    Raises:
        StudyError: there is no such network any more.
        SurgeryError: the file is not of it.
    """
    channels, height, width = model_config["shape"]
    make = partial(models.build, model_config["model"], (channels, height, width), model_config["classes"])
    return Classifier(load(make, path))

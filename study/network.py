"""A final network as MLflow loads it: the file that ``ops.save`` wrote, and how the network was made before surgery.

Nothing of it is pickled, so nothing in it is executed; a task of one's own must be where its settings name it. Every
model that was ever tracked names this module as the one that loads it, so it stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops import load
from network_surgery.ops.anatomy import evaluating
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import PYTHON


class Network:
    """A network with the two methods that ``mlflow.pyfunc`` looks for."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def predict(self, inputs: Any, params: Mapping[str, Any] | None = None) -> Any:
        """The network's outputs, as arrays, for inputs of the task's form: an array, or a tuple, list or dict of them.

        Of an image classifier: scores ``[n, classes]`` before softmax for ``[n, channels, height, width]`` in −1 … 1.
        """
        asked = _pytree.tree_map_only(np.ndarray, torch.tensor, inputs)
        return _pytree.tree_map_only(Tensor, lambda tensor: tensor.numpy(), self.answer(asked))

    def answer(self, inputs: Any) -> Any:
        """The same for tensors."""
        from network_surgery.study.task.task import call

        with evaluating(self._network), torch.no_grad():
            return call(self._network, inputs)

    def get_raw_model(self) -> nn.Module:
        """The network itself, on the CPU."""
        return self._network


def recipe(model: str, shape: models.Shape, classes: int) -> dict[str, Any]:
    """How ``study.models`` makes the network as it was before surgery, as plain data."""
    return {"model": model, "shape": list(shape), "classes": classes}


def load_network(recipe: Mapping[str, Any], path: str | Path) -> Network:
    """The network in a file, which its recipe makes as it was before surgery: ``model``, ``shape`` and ``classes`` for
    ``study.models``, or the ``settings`` of a study, whose task makes it.

    Raises:
        StudyError: there is no such network or task any more.
        SurgeryError: the file is not of it.
    """
    if "settings" in recipe:
        from network_surgery.study.task import build
        from network_surgery.study.task.check import fresh

        settings = Settings.from_data(recipe["settings"], "the settings of this model")
        try:
            task = build(settings)
        except StudyError as error:
            if not settings.task.startswith(f"{PYTHON}:"):
                raise
            raise StudyError(
                f"the task {settings.task.partition(':')[2]} of this network was given from Python, so it is not known "
                "here; take network_surgery.study.open(STUDY, task=…).network(), or define the task in a module"
            ) from error
        return Network(load(lambda: fresh(task), path))
    channels, height, width = recipe["shape"]
    return Network(load(partial(models.build, recipe["model"], (channels, height, width), recipe["classes"]), path))


def _load_pyfunc(path: str, model_config: Mapping[str, Any]) -> Network:
    """What MLflow calls with a model's file and its ``recipe``. Raises as ``load_network``."""
    return load_network(model_config, path)

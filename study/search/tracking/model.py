"""A final network in the form of MLflow's models: with a signature, and without pickle (``study.network`` loads it)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from network_surgery.study import network as kept
from network_surgery.study.config import Settings
from network_surgery.study.task import Task
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

#: What a run's model is called: ``mlflow.pyfunc.load_model("runs:/RUN/network")``.
NAME = "network"
#: What the network is called with, by how the study scales images.
SCALED = {
    "half": "pixels from 0 … 255 scaled to -1 … 1",
    "imagenet": "pixels from 0 … 255 scaled by the mean and deviation of ImageNet's colours",
}


def write(place: Path, network: Path, settings: Settings, task: Task, logged: LoggedModel) -> None:
    """Makes the folder ``place`` of MLflow's files for a ``network`` that ``ops.save`` wrote."""
    import mlflow.pyfunc
    from mlflow.models import Model

    recipe = recipe_of(settings, task)
    # MLflow asks for an example of the inputs, of which the signature says enough. Not in a block of catch_warnings,
    # which other threads would share.
    warnings.filterwarnings("ignore", ".*An input example was not provided", UserWarning)
    mlflow.pyfunc.save_model(
        place, loader_module=kept.__name__, data_path=str(network), model_config=recipe,
        signature=signature(kept.load_network(recipe, network), task),
        metadata={"classes": list(task.classes), "inputs": _inputs(task, settings)},
        pip_requirements=_requirements(settings.model),  # else MLflow would load the model to see what it imports
        mlflow_model=Model(
            artifact_path=logged.artifact_location, run_id=logged.source_run_id, model_uuid=logged.model_id,
            model_id=logged.model_id,
        ),
    )  # fmt: skip


def recipe_of(settings: Settings, task: Task) -> dict[str, Any]:
    """How the network is made again as it was before surgery: that of our images needs their size alone, any other the
    settings, of which those are kept that decide what is trained.
    """
    if type(task) is ImageTask:
        return kept.recipe(settings.model, task.shape, len(task.classes))
    return {"settings": settings.recipe()}


def signature(network: kept.Network, task: Task) -> ModelSignature | None:
    """Types and sizes of inputs and outputs, by two samples; None where MLflow cannot express them (a tuple), or the
    network cannot be asked.

    Whole numbers are taken for tokens and the like, of which a sample may have any number.
    """
    from mlflow.models import ModelSignature

    with contextlib.suppress(Exception):  # anyone's network; a model without a signature is still one
        inputs = Batches(task.validation.thinned(2), torch.device("cpu")).take(slice(0, 2))[0]
        asked = _schema(inputs)
        if asked is not None:
            return ModelSignature(asked, _schema(network.answer(inputs)))
    return None


def _schema(part: Any) -> Schema | None:
    from mlflow.types import Schema, TensorSpec

    def spec(tensor: Tensor, name: str | None = None) -> TensorSpec:
        array = tensor.detach().numpy()
        sizes = [-1 if array.dtype.kind in "iu" else size for size in array.shape[1:]]
        return TensorSpec(np.dtype(array.dtype), (-1, *sizes), name)

    if isinstance(part, Tensor):
        return Schema([spec(part)])
    if isinstance(part, Mapping) and part and all(isinstance(value, Tensor) for value in part.values()):
        return Schema([spec(value, str(name)) for name, value in part.items()])
    return None


def _inputs(task: Task, settings: Settings) -> str:
    known = type(task) is ImageTask
    return SCALED[settings.scaling] if known else f"{task.unit} as the task gives them to the network"


def _requirements(model: str) -> list[str]:
    """What loading needs besides this project."""
    others = [name for name in ("torchvision", "transformers") if model.startswith(f"{name}:")]
    packages = ["torch", "numpy", *others]
    return [f"{package}=={version(package).partition('+')[0]}" for package in packages]

"""A final network in the form of MLflow's models: with a signature, and without pickle (``study.network`` loads it)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from network_surgery.study.config import Settings
from network_surgery.study.task import Task
from network_surgery.study.task.images import ImageTask

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

#: What a run's model is called: ``mlflow.pyfunc.load_model("runs:/RUN/network")``.
NAME = "network"
#: What the network is called with, by how the study scales images.
SCALED = {
    "half": "pixels from 0 … 255 scaled to -1 … 1",
    "imagenet": "pixels from 0 … 255 scaled by the mean and deviation of ImageNet's colours",
}


def write(place: Path, network: Path, settings: Settings, task: Task, logged: LoggedModel) -> None:
    """Makes the folder ``place`` of MLflow's files for a ``network`` that ``ops.save`` wrote."""
    assert isinstance(task, ImageTask)
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from network_surgery.study.network import recipe

    number = np.dtype(np.float32)
    images, scores = TensorSpec(number, (-1, *task.shape)), TensorSpec(number, (-1, len(task.classes)))
    mlflow.pyfunc.save_model(
        place, loader_module="network_surgery.study.network", data_path=str(network),
        model_config=recipe(settings.model, task.shape, len(task.classes)),
        signature=ModelSignature(Schema([images]), Schema([scores])),
        metadata={"classes": list(task.classes), "inputs": SCALED[settings.scaling]},
        pip_requirements=_requirements(settings.model),  # else MLflow would load the model to see what it imports
        mlflow_model=Model(
            artifact_path=logged.artifact_location, run_id=logged.source_run_id, model_uuid=logged.model_id,
            model_id=logged.model_id,
        ),
    )  # fmt: skip


def _requirements(model: str) -> list[str]:
    """What loading needs besides this project."""
    packages = ["torch", "numpy", *(["torchvision"] if model.startswith("torchvision:") else [])]
    return [f"{package}=={version(package).partition('+')[0]}" for package in packages]

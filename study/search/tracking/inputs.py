"""The images of a study as MLflow's datasets: what a run was trained, chosen and tested on, with a fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from network_surgery.study.task import Task

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

#: A part of the data → what MLflow's page of runs calls it.
CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}


def datasets(name: str, task: Task) -> dict[str, DatasetInput]:
    """``train``, ``validation`` and ``test`` of the data that a study calls ``name``, with sizes, types and source."""
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.entities import Dataset as Described
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    found = {}
    for part, context in CONTEXTS.items():
        images = getattr(task, part)
        about = from_numpy(
            images.inputs, targets=images.targets, source=_source(name, part), name=Path(name).name,
            digest=images.digest(),
        )  # fmt: skip
        found[part] = DatasetInput(Described(**about.to_dict()), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
    return found


def _source(name: str, part: str) -> Any:
    """Where the images come from: a folder, an address, or the function that has them."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.http_dataset_source import HTTPDatasetSource

    kind, _, path = name.partition(":")
    if kind == "folder":
        return str(Path(path) / ("test" if part == "test" else "train"))
    if name == "cifar10":
        from torchvision.datasets import CIFAR10

        return HTTPDatasetSource(CIFAR10.url)
    return CodeDatasetSource({"mlflow.source.type": "LOCAL", "mlflow.source.name": "sklearn.datasets.load_digits"})

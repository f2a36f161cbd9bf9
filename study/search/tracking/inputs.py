"""The samples of a study as MLflow's datasets: what a run was trained, chosen and tested on, with a fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from network_surgery.study.task import Samples, Stream, Task, sources
from network_surgery.study.task.images import ImageStream

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

#: A part of the data → what MLflow's page of runs calls it.
CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}


def datasets(name: str, task: Task) -> dict[str, DatasetInput]:
    """``train``, ``validation`` and ``test`` of the data that a study calls ``name``, with sizes, types and source.

    Of samples that are streamed the number alone is known without reading them.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    parts = {part: _facts(getattr(task, part), _source(name, part), Path(name).name) for part in CONTEXTS}
    return {
        part: DatasetInput(Dataset(**facts), [InputTag(MLFLOW_DATASET_CONTEXT, CONTEXTS[part])])
        for part, facts in parts.items()
    }


def _facts(samples: Samples | Stream, source: Any, name: str) -> dict[str, Any]:
    """What MLflow keeps of a set."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.numpy_dataset import from_numpy

    if isinstance(samples, Samples):
        about = from_numpy(samples.inputs, targets=samples.targets, source=source, name=name, digest=samples.digest())
        return about.to_dict()
    origin = resolve_dataset_source(source) if isinstance(source, str) else source
    profile = {"num_rows": len(samples)} | ({"shape": samples.shape} if isinstance(samples, ImageStream) else {})
    return MetaDataset(origin, name, samples.digest()).to_dict() | {"profile": json.dumps(profile)}


def _source(name: str, part: str) -> Any:
    """Where the images come from: a folder, an address, or the function that has them."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.http_dataset_source import HTTPDatasetSource

    kind, _, path = name.partition(":")
    if kind == "folder":
        inside = Path(path) / ("test" if part == "test" else "train")
        return str(inside if inside.is_dir() or not Path(path).is_dir() else path)
    if name in sources.TORCHVISION:
        return HTTPDatasetSource(sources.address(name))
    return CodeDatasetSource({"mlflow.source.type": "LOCAL", "mlflow.source.name": "sklearn.datasets.load_digits"})

"""The samples of a study as MLflow's datasets: what a run was trained, chosen and tested on, with a fingerprint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from network_surgery.study.config import Settings
from network_surgery.study.task import Samples, Stream, Task, sources
from network_surgery.study.task.images import ImageStream

if TYPE_CHECKING:
    from mlflow.entities import Dataset, DatasetInput

#: A part of the data → what MLflow's page of runs calls it.
CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}
#: The most characters of a dataset's name that MLflow's databases keep.
LONGEST = 250


def datasets(settings: Settings, task: Task) -> dict[str, DatasetInput]:
    """``train``, ``validation`` and ``test`` of a study's task, with sizes and types (of what is in memory) and source.

    MLflow knows a dataset by its name and fingerprint. One that is streamed and has none has its part and its length
    instead (``test-10000``): two studies whose data are called the same and are as long have one dataset there.
    """
    # MLflow knows the source of a folder twice under one name. Other threads would share a block of catch_warnings.
    warnings.filterwarnings("ignore", ".*dataset source can be interpreted in multiple ways", UserWarning)
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    name = Path(settings.task if ":" in settings.task else settings.data).name[-LONGEST:]
    found = {}
    for part, context in CONTEXTS.items():
        samples, source = getattr(task, part), _source(settings, part)
        about = (
            _describe_held(samples, name, source)
            if isinstance(samples, Samples)
            else _describe_stream(samples, name, source, part)
        )
        found[part] = DatasetInput(about, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
    return found


def _describe_held(samples: Samples, name: str, source: Any) -> Dataset:
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.entities import Dataset

    inputs, targets = _arrays(samples.inputs), _arrays(samples.targets)
    about = from_numpy(inputs, targets=targets, source=source, name=name, digest=samples.digest())
    return Dataset(**about.to_dict())


def _describe_stream(samples: Stream, name: str, source: Any, part: str) -> Dataset:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset

    place = resolve_dataset_source(source) if isinstance(source, str) else source
    digest = samples.digest() or f"{part}-{len(samples)}"
    about = MetaDataset(place, name=name, digest=digest).to_dict()  # type: ignore[abstract]
    profile = {"num_rows": len(samples)} | ({"shape": samples.shape} if isinstance(samples, ImageStream) else {})
    return Dataset(**about | {"profile": json.dumps(profile)})


def _arrays(part: Any) -> np.ndarray | dict[str, np.ndarray]:
    """Arrays as MLflow describes them: one, or a flat dict of several by their places."""
    if isinstance(part, np.ndarray):
        return part
    items = part.items() if isinstance(part, Mapping) else enumerate(part)
    found: dict[str, np.ndarray] = {}
    for key, value in items:
        inner = _arrays(value)
        more = inner if isinstance(inner, dict) else {"": inner}
        found |= {".".join(filter(None, (str(key), place))): array for place, array in more.items()}
    return found


def _source(settings: Settings, part: str) -> Any:
    """Where the samples come from: a folder, an address, or the code that has them."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.http_dataset_source import HTTPDatasetSource

    kind, _, path = settings.data.partition(":")
    if ":" in settings.task:
        code = settings.task
    elif kind == "folder":
        inside = Path(path) / ("test" if part == "test" else "train")
        return str(inside if inside.is_dir() or not Path(path).is_dir() else path)
    elif settings.data in sources.TORCHVISION:
        return HTTPDatasetSource(sources.address(settings.data))
    else:
        code = "sklearn.datasets.load_digits" if settings.data == "digits" else settings.data
    return CodeDatasetSource({"mlflow.source.type": "LOCAL", "mlflow.source.name": code})

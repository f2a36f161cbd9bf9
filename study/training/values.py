"""The metric of each test sample of a run, in a small file beside its network: a sample of samples, for statistics."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from network_surgery.ops.errors import pass_on_memory, reason_of
from network_surgery.study.errors import StudyError

if TYPE_CHECKING:
    from network_surgery.study.training.evaluation import Scores


def place(network: Path) -> Path:
    """Where the values lie that belong to the network of this file."""
    return network.with_suffix(".npy")


def keep(scores: Scores, metric: str, network: Path) -> int | None:
    """Writes each sample's value of the metric of this name beside a network, and returns how many there are.

    A bit for each where all are 0 or 1, else half of a float. None where the metric is not a mean over samples, but
    made of several.
    """
    values = scores.each.get(metric)
    if values is None or not math.isclose(float(values.double().mean()), scores.metric, rel_tol=1e-4, abs_tol=1e-6):
        return None
    found = values.double().cpu().numpy()
    with np.errstate(over="ignore"):
        small: NDArray[Any] = found.astype(np.float16)
    if np.isin(found, (0, 1)).all():
        small = np.packbits(found.astype(bool))
    elif not np.isfinite(small).all():
        small = found.astype(np.float32)
    network.parent.mkdir(parents=True, exist_ok=True)
    part = network.with_suffix(".part.npy")
    np.save(part, small)
    os.replace(part, place(network))
    return len(found)


def read(network: Path, count: int) -> NDArray[np.float64] | None:
    """The values ``[count]`` beside this network; None where there are none.

    Raises:
        StudyError: the file is damaged.
    """
    path = place(network)
    if not path.exists():
        return None
    try:
        values = np.load(path, allow_pickle=False)
        whole = (np.unpackbits(values, count=count) if values.dtype == np.uint8 else values).astype(np.float64)
        if whole.shape != (count,) or not np.isfinite(whole).all() or len(values) < count / 8:
            raise ValueError(f"it does not hold {count} numbers")
    except Exception as error:  # a damaged file can fail in any way
        pass_on_memory(error)
        raise StudyError(
            f"{path} is damaged ({reason_of(error)}); surgery doctor {path.parent.parent} sets it aside"
        ) from error
    return whole

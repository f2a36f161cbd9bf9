"""Images by name, held in memory: scikit-learn's digits and data sets of torchvision, which are fetched once.

They lie in the folder that ``NETWORK_SURGERY_DATA`` names, else in the user's cache, as torchvision puts them there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.errors import StudyError


class Known(NamedTuple):
    """A data set of torchvision. ``kind``: its class there; ``title``: as it is called in prose."""

    kind: str
    title: str


#: LeCun 1998, Xiao 2017, Krizhevsky 2009 (twice), Netzer 2011.
TORCHVISION = {
    "mnist": Known("MNIST", "MNIST"),
    "fashion_mnist": Known("FashionMNIST", "Fashion-MNIST"),
    "cifar10": Known("CIFAR10", "CIFAR-10"),
    "cifar100": Known("CIFAR100", "CIFAR-100"),
    "svhn": Known("SVHN", "SVHN"),
}

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def digits() -> Arrays:
    """Pixels ``[n, 1, 8, 8]`` and labels ``[n]``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images[:, None] * (255 / 16)).round().astype(np.uint8), digits.target.astype(np.int64)


def of_torchvision(name: str) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Training and test images of a data set, and its classes: pixels ``[n, channels, height, width]``, labels ``[n]``.

    Where it does not lie there it is fetched, by one process while others wait for it.

    Raises:
        StudyError: it can neither be read nor fetched.
    """
    from torchvision import datasets

    kind, title = TORCHVISION[name]
    root = Path(os.environ.get("NETWORK_SURGERY_DATA", "~/.cache/network-surgery")).expanduser()
    make: Any = getattr(datasets, kind)
    parts = ({"split": "train"}, {"split": "test"}) if kind == "SVHN" else ({"train": True}, {"train": False})
    try:
        with _alone(root, name):
            train, test = (make(root, download=True, **part) for part in parts)
        classes = getattr(train, "classes", None) or [str(digit) for digit in range(10)]
        return _arrays(train), _arrays(test), tuple(classes)
    except Exception as error:  # what lies there may be broken in any way
        pass_on_memory(error)
        raise StudyError(
            f"{title} can neither be found in {root} nor fetched ({first_line(error)}); images that lie elsewhere can "
            "be given as --data folder:PATH"
        ) from None


def address(name: str) -> str:
    """Where a data set of torchvision is fetched from."""
    from torchvision import datasets

    kind: Any = getattr(datasets, TORCHVISION[name].kind)
    if kind.__name__ == "SVHN":
        return kind.split_list["train"][0]
    return kind.url if hasattr(kind, "url") else kind.mirrors[-1]


def _arrays(part: Any) -> Arrays:
    pixels = np.asarray(part.data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    labels = part.labels if hasattr(part, "labels") else part.targets
    return np.asarray(pixels, dtype=np.uint8), np.asarray(labels, dtype=np.int64)


@contextlib.contextmanager
def _alone(root: Path, name: str) -> Iterator[None]:
    """Lets one process at a time into a ``with`` block; all of them where none may write, or files cannot be locked."""
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(root / f".{name}.lock"))
        yield

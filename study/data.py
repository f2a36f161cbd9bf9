"""Real images as arrays: scikit-learn's digits, or a folder of pictures, split into train, validation and test.

Arrays, because Ray shares NumPy arrays between trials without copying; whole, because the images that this product
studies fit in memory many times over (CIFAR-10 is 184 MB).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from study.errors import StudyError

SUFFIXES = (".png", ".jpg", ".jpeg")
#: The test images of the digits are the same for every seed.
SPLIT_SEED = 20


@dataclass(frozen=True)
class Images:
    """``pixels [n, channels, height, width]`` uint8 and ``labels [n]`` int64."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Images:
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """Three disjoint sets and the names of the classes. Trained on, chosen on, read once."""

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


def load(name: str, validation: float) -> Dataset:
    """``digits`` or ``folder:PATH`` with PATH/train/CLASS/*.png|jpg and PATH/test/CLASS/*.

    ``validation`` is the fraction of the training images, by class, that schedules are chosen on.

    Raises:
        StudyError: an unknown name, a missing folder, an empty class, classes or image sizes that do not agree, an
            image that cannot be read.
    """
    if name == "digits":
        everything = _digits()
        train, test = _split(everything, 0.2)
        classes: tuple[str, ...] = tuple(str(digit) for digit in range(10))
    elif name.startswith("folder:"):
        train, test, classes = _folder(Path(name.removeprefix("folder:")).expanduser())
    else:
        raise StudyError(f"there is no data {name!r}; give 'digits' or 'folder:PATH'")
    train, chosen_on = _split(train, validation)
    return Dataset(train, chosen_on, test, classes)


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[:, None] * (255 / 16)).round().astype(np.uint8)
    return Images(pixels, digits.target.astype(np.int64))


def _split(images: Images, fraction: float) -> tuple[Images, Images]:
    """Splits off a fraction of every class (at least one image of each), the same at every call."""
    generator = np.random.default_rng(SPLIT_SEED)
    away = np.zeros(len(images), dtype=bool)
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        if count < 1:
            raise StudyError(f"class {label} has {len(members)} training image; splitting off a part needs at least 2")
        away[generator.permutation(members)[:count]] = True
    return images.take(np.flatnonzero(~away)), images.take(np.flatnonzero(away))


def _folder(root: Path) -> tuple[Images, Images, tuple[str, ...]]:
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise StudyError(f"there is no folder {root / part}; images must lie in {root}/train/CLASS and test/CLASS")
    classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
    if len(classes) < 2:
        raise StudyError(f"{root / 'train'} has {len(classes)} class folders; there must be at least 2")
    strange = {entry.name for entry in (root / "test").iterdir() if entry.is_dir()} - set(classes)
    if strange:
        raise StudyError(f"{root / 'test'} has a class {min(strange)!r} that {root / 'train'} has not")
    train, test = (_read(root / part, classes) for part in ("train", "test"))
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise StudyError(f"{root}: training images are {_size(train)}, test images {_size(test)}; they must agree")
    return train, test, classes


def _read(folder: Path, classes: Sequence[str]) -> Images:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise StudyError(f"the class folder {folder / name} holds no .png or .jpg image")
        paths += found
        labels += [label] * len(found)
    first = _decode(paths[0])
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        pixels = np.stack(list(pool.map(lambda path: _decode(path, first.shape, paths[0]), paths)))
    return Images(pixels, np.array(labels, dtype=np.int64))


def _decode(path: Path, shape: tuple[int, ...] | None = None, like: Path | None = None) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            image = picture.convert("L" if picture.mode in ("1", "L", "I", "I;16") else "RGB")
            pixels = np.asarray(image, dtype=np.uint8)
    except OSError:
        raise StudyError(f"{path} cannot be read as an image") from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if shape is not None and pixels.shape != shape:
        raise StudyError(f"{path} is {pixels.shape} (channels, height, width), but {like} is {shape}; they must agree")
    return pixels


def _size(images: Images) -> str:
    channels, height, width = images.pixels.shape[1:]
    return f"{channels} × {height} × {width}"

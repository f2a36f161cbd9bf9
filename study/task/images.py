"""Real images as arrays: scikit-learn's digits, CIFAR-10, or a folder of pictures, in train, validation and test.

Arrays, because Ray shares NumPy arrays between trials without copying; whole, because the images that this product
studies fit in memory many times over (CIFAR-10 is 184 MB).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task.samples import Samples, Sets, Stream
from network_surgery.study.task.task import Classification

SUFFIXES = (".png", ".jpg", ".jpeg")
#: The test images of the digits are the same for every seed.
SPLIT_SEED = 20
#: With fewer than twice this number of classes, being among the first few says little.
TOP = 5
#: Of ImageNet's colours (red, green, blue; 0 … 1), as torchvision's weights were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(Samples):
    """``pixels [n, channels, height, width]`` uint8 and ``labels [n]`` int64."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return self.inputs

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.targets

    def prepare(self, inputs: Tensor) -> Tensor:
        """In −1 … 1 (mean and deviation 0.5)."""
        return inputs.float().div_(127.5).sub_(1.0)


class ImageNetScaled(Images):
    """Images as the weights of torchvision expect them: with the mean and deviation of ImageNet's colours."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """Each colour with mean 0 and deviation 1 over ImageNet."""
        mean, deviation = (inputs.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (MEAN, DEVIATION))
        return inputs.float().div_(255.0).sub_(mean).div_(deviation)


class ImageTask(Classification):
    """Images with a class each. The sets are disjoint, but that a study may be asked to train on the validation images,
    too (``load``). ``network``: the model's name for ``study.models.build``.
    """

    unit = "images"

    def __init__(
        self,
        train: Images | Stream,
        validation: Images | Stream,
        test: Images | Stream,
        classes: tuple[str, ...],
        network: str = "small_cnn",
    ) -> None:
        super().__init__()
        self.classes, self.network = classes, network
        self._sets = Sets(train, validation, test)

    @classmethod
    def of(cls, settings: Settings) -> ImageTask:
        """The images and the network that these settings ask for. Raises StudyError as ``load``."""
        task = load(settings.data, settings.validation, settings.train_images, settings.train_on_validation)
        task.network = settings.model
        if settings.scaling == "imagenet":
            if task.shape[0] != 3:
                raise StudyError(
                    f"images are scaled as ImageNet's, which has three colours, but those of {settings.data} have "
                    f"{task.shape[0]}; give --normalize half"
                )
            sets = {name: getattr(task, name) for name in ("train", "validation", "test")}
            task = task.changed(**{name: ImageNetScaled(part.inputs, part.targets) for name, part in sets.items()})
        return task

    def changed(self, **parts: Any) -> ImageTask:
        """The same task with some of its parts, by the names that they have when it is made, in place of its own."""
        known = {"train": self.train, "validation": self.validation, "test": self.test}
        return ImageTask(**known | {"classes": self.classes, "network": self.network} | parts)

    def load(self) -> Sets:
        return self._sets

    def model(self) -> nn.Module:
        return models.build(self.network, self.shape, len(self.classes))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    @property
    def at_once(self) -> int | None:  # type: ignore[override]
        """Small images are looked at a thousand at a time."""
        return 1024 if math.prod(self.shape) <= 3 * 64 * 64 else None

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        found = dict(super().measure(outputs, targets))
        if len(self.classes) >= 2 * TOP:
            found["top 5"] = (outputs.topk(TOP, dim=1).indices == targets.unsqueeze(1)).any(dim=1).double()
        return found


def load(name: str, validation: float, train_images: int | None = None, train_on_validation: bool = False) -> ImageTask:
    """``digits``, ``cifar10`` (through torchvision) or ``folder:PATH`` with PATH/train/CLASS/*.png|jpg and
    PATH/test/CLASS/*.

    ``validation`` is the fraction of the training images, by class, that schedules are chosen on; ``train_images``
    how many there are of both at most, as many of each class as it had before. ``train_on_validation``: the images that
    schedules are chosen on are trained on as well, as in published code that keeps none apart.

    Raises:
        StudyError: an unknown name, a missing folder, an empty class, classes, sizes or colours that do not agree, an
            image that cannot be read, a download that fails, fewer images than classes.
    """
    kind, _, path = name.partition(":")
    if name == "digits":
        classes: Sequence[str] = [str(digit) for digit in range(10)]
        train, test = _split(_digits(), 0.2, classes)
    elif name == "cifar10":
        train, test, classes = _cifar10()
    elif kind == "folder" and path:
        try:
            train, test, classes = _folder(Path(os.path.expanduser(path)))
        except OSError as error:
            raise StudyError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    else:
        raise StudyError(f"there is no data {name!r}; give 'digits', 'cifar10' or 'folder:PATH'")
    if train_images is not None and train_images < len(train):
        if train_images < 2 * len(classes):
            raise StudyError(f"train_images is {train_images}, but {len(classes)} classes need 2 images each")
        _, train = _split(train, train_images / len(train), classes)
    rest, chosen_on = _split(train, validation, classes)
    return ImageTask(train if train_on_validation else rest, chosen_on, test, tuple(classes))


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[:, None] * (255 / 16)).round().astype(np.uint8)
    return Images(pixels, digits.target.astype(np.int64))


def _cifar10() -> tuple[Images, Images, Sequence[str]]:
    """Krizhevsky 2009, fetched once into the folder that ``NETWORK_SURGERY_DATA`` names, else the user's cache."""
    from torchvision.datasets import CIFAR10

    root = Path(os.environ.get("NETWORK_SURGERY_DATA", "~/.cache/network-surgery")).expanduser()
    try:
        parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StudyError(
            f"CIFAR-10 can neither be found in {root} nor fetched ({reason}); images that lie elsewhere can be given "
            "as --data folder:PATH"
        ) from None
    train, test = (Images(p.data.transpose(0, 3, 1, 2), np.asarray(p.targets, dtype=np.int64)) for p in parts)
    return train, test, parts[0].classes


def _split(images: Images, fraction: float, classes: Sequence[str]) -> tuple[Images, Images]:
    """Splits off a fraction of every class (at least one image of each), the same at every call."""
    generator = np.random.default_rng(SPLIT_SEED)
    away = np.zeros(len(images), dtype=bool)
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        if count < 1:
            raise StudyError(
                f"class {classes[label]!r} has 1 training image; splitting off some for validation needs 2"
            )
        away[generator.permutation(members)[:count]] = True
    return images.take(np.flatnonzero(~away)), images.take(np.flatnonzero(away))


def _folder(root: Path) -> tuple[Images, Images, Sequence[str]]:
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise StudyError(f"there is no folder {root / part}; images must lie in {root}/train/CLASS and test/CLASS")
    classes, tested = ([entry.name for entry in _listed(root / part) if entry.is_dir()] for part in ("train", "test"))
    for name in sorted(set(classes) ^ set(tested)):
        has, lacks = ("train", "test") if name in classes else ("test", "train")
        raise StudyError(f"{root / has} has a class {name!r} that {root / lacks} has not; both must have the same ones")
    if len(classes) < 2:
        raise StudyError(f"{root / 'train'} has {len(classes)} class folders; there must be at least 2")
    train, test = (_read(root / part, classes) for part in ("train", "test"))
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = " and test images ".join(_size(images.pixels.shape[1:]) for images in (train, test))
        raise StudyError(f"{root}: training images are {sizes}; they must agree")
    return train, test, classes


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what systems hide there (such as ._1.png and .ipynb_checkpoints)."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read(folder: Path, classes: Sequence[str]) -> Images:
    members = [[path for path in _listed(folder / name) if path.suffix.lower() in SUFFIXES] for name in classes]
    for name, found in zip(classes, members, strict=True):
        if not found:
            raise StudyError(f"the class folder {folder / name} holds no .png or .jpg image")
    paths = [path for found in members for path in found]
    first = _decode(paths[0])
    pixels = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def fill(index: int) -> None:
        image = _decode(paths[index])
        if image.shape != first.shape:
            sizes = f"{_size(image.shape)}, but {paths[0]} is {_size(first.shape)}"
            raise StudyError(f"{paths[index]} is {sizes}; all images must agree")
        pixels[index] = image

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for _ in pool.map(fill, range(len(paths))):
            pass
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in members])
    return Images(pixels, labels.astype(np.int64))


def _decode(path: Path) -> NDArray[np.uint8]:
    """The image as ``[channels, height, width]``: one channel where it is grey, else red, green and blue.

    Raises:
        StudyError: it cannot be read, or has more than 8 bits a channel (which Pillow would clip).
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode = picture.mode
            pixels = np.asarray(picture.convert("L" if mode in ("1", "L") else "RGB"), dtype=np.uint8)
    except Exception as error:  # a broken image may fail in any way
        raise StudyError(f"{path} cannot be read as an image ({type(error).__name__})") from None
    if mode.startswith(("I", "F")):
        raise StudyError(f"{path} has more than 8 bits a channel; convert it to 8")
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height} × {width} and {'grey' if channels == 1 else 'coloured'}"

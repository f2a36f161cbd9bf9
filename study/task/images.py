"""Images with a class each, in train, validation and test: held in memory as arrays, or streamed from their files.

Arrays, because Ray shares NumPy arrays between trials without copying. A folder that would take much of the memory is
streamed: a trial is handed the list of its files.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.errors import StudyError, near
from network_surgery.study.recipe.augmentation import Augmentation
from network_surgery.study.task import folder, sources
from network_surgery.study.task.fingerprint import Fingerprint
from network_surgery.study.task.folder import Fit, ImageFiles
from network_surgery.study.task.samples import Samples, Sets
from network_surgery.study.task.stream import Stream
from network_surgery.study.task.task import Classification

#: The test images of the digits are the same for every seed.
SPLIT_SEED = 20
#: With fewer than twice this number of classes, being among the first few says little.
TOP = 5
#: The fraction of a folder's images that is tested on where it has no test images apart.
TESTED = 0.1
#: A folder is streamed by itself if its decoded images need more than this share of the memory. Each trial that trains
#: on held images has a copy of them.
HELD = 0.1
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def prepare(self, inputs: Tensor) -> Tensor:
        return scale(inputs)


class ImageStream(Stream):
    """The images of files, decoded as they are needed; each batch equals that of the same ``Images``."""

    def __init__(self, files: ImageFiles, workers: int = 0) -> None:
        super().__init__(files, workers)
        self.files = files

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.files.labels[self.numbers]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return self.files.shape

    def fitted(self, fit: Fit) -> ImageStream:
        """The same files, made squares by ``fit`` (see ``ImageFiles``), such as a random resized crop."""
        other = type(self)(dataclasses.replace(self.files, fit=fit), self.workers)
        other.index = self.index
        return other

    def digest(self) -> str:
        """A fingerprint of the list of files, see ``ImageFiles.digest``."""
        return self.files.digest(self.numbers)

    def prepare(self, inputs: Tensor) -> Tensor:
        return scale(inputs)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Of its images in the list of files."""
        return np.arange(len(self.files)) if self.index is None else self.index


def scale(pixels: Tensor) -> Tensor:
    """In −1 … 1 (mean and deviation 0.5), of 0 … 255."""
    return pixels.float().div_(127.5).sub_(1.0)


class ImageNetScaled(Images):
    """Images as the weights of torchvision expect them: with the mean and deviation of ImageNet's colours."""

    def prepare(self, inputs: Tensor) -> Tensor:
        return standardize(inputs)


class ImageNetStream(ImageStream):
    """The same of images that are streamed."""

    def prepare(self, inputs: Tensor) -> Tensor:
        return standardize(inputs)


def standardize(pixels: Tensor) -> Tensor:
    """Each colour with mean 0 and deviation 1 over ImageNet, of 0 … 255."""
    mean, deviation = _colours(pixels.device)
    return pixels.float().div_(255.0).sub_(mean).div_(deviation)


@functools.cache
def _colours(device: torch.device) -> Tensor:
    """ImageNet's means and deviations ``[2, 3, 1, 1]``, brought to a device once and not for every batch."""
    return torch.tensor([MEAN, DEVIATION], device=device).view(2, 3, 1, 1)


def _standardize(part: Images | ImageStream) -> Images | ImageStream:
    """A set whose images are scaled so."""
    if isinstance(part, Images):
        return ImageNetScaled(part.inputs, part.targets)
    other = ImageNetStream(part.files, part.workers)
    other.index = part.index
    return other


class ImageTask(Classification):
    """Images with a class each. The sets are disjoint, but that a study may be asked to train on the validation images,
    too (``load``). ``network``: the model's name for ``study.models.build``. ``augmentation``: of training batches.
    """

    unit = "images"

    def __init__(
        self,
        train: Images | ImageStream,
        validation: Images | ImageStream,
        test: Images | ImageStream,
        classes: tuple[str, ...],
        network: str = "small_cnn",
        note: str = "",
        augmentation: Augmentation | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        super().__init__()
        self._fingerprint = fingerprint
        self.classes, self.network, self.note = classes, network, note
        self.augmentation = augmentation or Augmentation()
        self._sets = Sets(train, validation, test)

    @classmethod
    def of(cls, settings: Settings) -> ImageTask:
        """The images and the network that these settings ask for. Raises StudyError as ``load``."""
        task = load(
            settings.data, settings.validation, settings.train_images, settings.train_on_validation,
            image_size=settings.image_size, stream=settings.stream, workers=settings.readers,
        )  # fmt: skip
        task.network = settings.model
        if settings.cutout > min(task.shape[1:]):
            raise StudyError(
                f"cutout is {settings.cutout}, but the images are {task.shape[1]} × {task.shape[2]} pixels"
            )
        task.augmentation = Augmentation(settings.augment, settings.cutout, settings.mix, len(task.classes))
        if settings.scaling == "imagenet":
            if task.shape[0] != 3:
                raise StudyError(
                    f"images are scaled as ImageNet's, which has three colours, but those of {settings.data} have "
                    f"{task.shape[0]}; give --normalize half"
                )
            sets = {name: getattr(task, name) for name in ("train", "validation", "test")}
            parts = {name: _standardize(part) for name, part in sets.items()}
            task = task.changed(**parts, fingerprint=task.fingerprint())
        return task

    def changed(self, **parts: Any) -> ImageTask:
        """The same task with some of its parts, by the names that they have when it is made, in place of its own."""
        known = {"train": self.train, "validation": self.validation, "test": self.test}
        if not known.keys() & parts.keys():
            known["fingerprint"] = self._fingerprint
        known |= {"classes": self.classes, "network": self.network, "note": self.note}
        task = ImageTask(**known | {"augmentation": self.augmentation} | parts)
        task.label_smoothing = self.label_smoothing
        return task

    def load(self) -> Sets:
        return self._sets

    def fingerprint(self) -> Fingerprint | None:
        """Of a folder its files' names and sizes, whether they are streamed or held; else of all pixels and labels."""
        return self._fingerprint or super().fingerprint()

    def resplit(self, seed: int) -> ImageTask:
        """As many images of each class as before are for validation, others for each seed; held or streamed alike."""
        whole = _together(self.train, self.validation)
        generator, away = np.random.default_rng([SPLIT_SEED, seed]), np.zeros(len(whole), dtype=bool)
        for label, count in zip(*np.unique(self.validation.labels, return_counts=True), strict=True):
            away[generator.permutation(np.flatnonzero(whole.labels == label))[:count]] = True
        return self.changed(train=whole.take(np.flatnonzero(~away)), validation=whole.take(np.flatnonzero(away)))

    def model(self) -> nn.Module:
        return models.build(self.network, self.shape, len(self.classes))

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.augmentation(inputs, targets)

    @property
    def augments(self) -> bool:
        return bool(self.augmentation)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return self.train.shape

    @property
    def at_once(self) -> int | None:  # type: ignore[override]
        """Small images are looked at a thousand at a time."""
        return 1024 if math.prod(self.shape) <= 3 * 64 * 64 else None

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        found = dict(super().measure(outputs, targets))
        if len(self.classes) >= 2 * TOP:
            found["top 5"] = (outputs.topk(TOP, dim=1).indices == targets.unsqueeze(1)).any(dim=1).double()
        return found


def load(
    name: str,
    validation: float,
    train_images: int | None = None,
    train_on_validation: bool = False,
    *,
    image_size: int | None = None,
    stream: str = "false",
    workers: int = 0,
) -> ImageTask:
    """``digits``, a data set of torchvision by its name in ``sources.TORCHVISION``, or ``folder:PATH``.

    A folder has PATH/train/CLASS/*.png|jpg and PATH/test/CLASS/*, or PATH/CLASS/* alone, of which a fixed tenth of each
    class is for the test.

    ``validation`` is the fraction of the training images, by class, that schedules are chosen on; ``train_images``
    the maximum number of both, with the same share of each class as before. ``train_on_validation``: the images that
    schedules are chosen on are trained on as well, as in published code that keeps none apart. ``image_size``: every
    image is resized and cropped to a square of this side. ``stream`` (``true``, ``false``, ``auto``): whether the files
    of a folder are read as they are needed, by this number of worker processes (``workers``); ``auto``: if the decoded
    images take more than ``HELD`` of the memory, or the files differ in size. The batches are the same either way.

    Raises:
        StudyError: an unknown name, a missing folder, an empty class, classes or sizes that do not agree, an image that
            cannot be read, a download that fails, fewer images than classes, data that cannot be streamed.
    """
    kind, _, path = name.partition(":")
    is_folder = kind == "folder" and bool(path)
    if stream == "true" and not is_folder:
        raise StudyError(f"stream is 'true', but {name!r} is held in memory; only folder:PATH is streamed")
    train: Images | ImageStream
    test: Images | ImageStream | None
    notes = []
    if is_folder:
        train, test, classes, fingerprint = _folder(Path(os.path.expanduser(path)), image_size, stream, workers)
        if test is None:
            train, test = split(train, TESTED, classes, "the test", 3)
            notes.append(f"there is no test folder, so a fixed {TESTED:.0%} of each class are the test images")
        if isinstance(train, ImageStream):
            notes.append("images are streamed from their files")
    elif name == "digits":
        classes = tuple(str(digit) for digit in range(10))
        arrays = sources.digits()
        fingerprint = _of_arrays(name, *arrays)
        train, test = split(_squares(arrays, image_size), 0.2, classes, "the test", 3)
    elif name in sources.TORCHVISION:
        *parts, classes = sources.of_torchvision(name)
        fingerprint = _of_arrays(name, *(array for part in parts for array in part))
        train, test = (_squares(part, image_size) for part in parts)
    else:
        known = ("digits", *sources.TORCHVISION)
        listed = ", ".join(map(repr, known))
        raise StudyError(f"there is no data {name!r}; give {listed} or 'folder:PATH'{near(name, known)}")
    if train_images is not None and train_images < len(train):
        if train_images < 2 * len(classes):
            raise StudyError(f"train_images is {train_images}, but {len(classes)} classes need 2 images each")
        _, train = split(train, train_images / len(train), classes)
    rest, chosen_on = split(train, validation, classes)
    return ImageTask(
        train if train_on_validation else rest, chosen_on, test, classes, note="; ".join(notes), fingerprint=fingerprint
    )


def split(
    images: Images | ImageStream, fraction: float, classes: Sequence[str], what: str = "validation", needed: int = 2
) -> tuple[Images | ImageStream, Images | ImageStream]:
    """Splits off a fraction of every class (at least one image of each) for ``what``, the same at every call.

    Raises:
        StudyError: a class has fewer than ``needed`` images.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    labels = images.labels
    away = np.zeros(len(images), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < needed:
            raise StudyError(
                f"class {classes[label]!r} has {format_count(len(members), 'training image')}; splitting off "
                f"some for {what} needs {needed}"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        away[generator.permutation(members)[:count]] = True
    return images.take(np.flatnonzero(~away)), images.take(np.flatnonzero(away))


def _together(one: Images | ImageStream, other: Images | ImageStream) -> Images | ImageStream:
    """Two sets of the same images in one."""
    if isinstance(one, Images) and isinstance(other, Images):
        return type(one)(*(np.concatenate(parts) for parts in ((one.pixels, other.pixels), (one.labels, other.labels))))
    assert isinstance(one, ImageStream) and isinstance(other, ImageStream)
    whole = copy.copy(one)
    whole.index = np.concatenate([one.numbers, other.numbers])
    return whole


def _folder(
    root: Path, image_size: int | None, stream: str, workers: int
) -> tuple[Images | ImageStream, Images | ImageStream | None, tuple[str, ...], Fingerprint]:
    """Training and test images (None: there are none apart) of a folder, held or streamed, the classes, and what the
    files are.
    """
    files, train, test, classes, mixed = folder.read(root, image_size)
    digest = files.digest(np.arange(len(files))).encode()
    fingerprint = Fingerprint.of(root.name, int(files.sizes.sum()), [digest])
    large = len(files) * math.prod(files.shape) > HELD * _memory()
    if stream == "true" or (stream == "auto" and (mixed or large)):
        whole = ImageStream(files, workers)
        return whole.take(train), None if test is None else whole.take(test), classes, fingerprint
    return _load_held(files, train), None if test is None else _load_held(files, test), classes, fingerprint


def _of_arrays(name: str, *arrays: NDArray[Any]) -> Fingerprint:
    return Fingerprint.of(name, sum(array.nbytes for array in arrays), (array.tobytes() for array in arrays))


def _load_held(files: ImageFiles, numbers: NDArray[np.int64]) -> Images:
    pixels = np.empty((len(numbers), *files.shape), dtype=np.uint8)

    def fill(place: int) -> None:
        pixels[place] = files.pixels(int(numbers[place]))

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for _ in pool.map(fill, range(len(numbers))):
            pass
    return Images(pixels, files.labels[numbers])


def _squares(arrays: sources.Arrays, size: int | None) -> Images:
    """Images of arrays, resized and cropped to squares if there is a ``size``."""
    from PIL import Image

    pixels, labels = arrays
    if size is not None and pixels.shape[2:] != (size, size):
        if (needed := math.prod(pixels.shape[:2]) * size * size) > _memory():
            raise StudyError(
                f"{len(pixels):,} images of {size:,} × {size:,} take {needed / 2**30:,.0f} GiB, and there are "
                f"{_memory() / 2**30:,.0f} of memory; give a smaller image_size"
            )
        made = np.empty((*pixels.shape[:2], size, size), dtype=np.uint8)
        for place, channels in enumerate(pixels):
            for number, channel in enumerate(channels):
                made[place, number] = np.asarray(folder.centre(Image.fromarray(channel), size))
        pixels = made
    return Images(pixels, labels)


def _memory() -> int:
    """Bytes of memory that this process may use: the machine's, or those of its container."""
    whole = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return whole

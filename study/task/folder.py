"""A folder of image files, one folder for each class: listed, their headers read, and decoded one by one.

Nothing but the list is in memory, so that a trial in another process is handed the list and not the pixels.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as MapDataset

from network_surgery.study.errors import StudyError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".png", ".jpg", ".jpeg")
#: What is read, whatever a file is called: data sets have PNG files that are called .jpg.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
#: Images with more are not decoded: a small file may hold a picture that fills the memory.
MOST_PIXELS = 89_000_000
#: The tag of EXIF that says how a camera was held.
ORIENTATION = 0x0112
#: What makes a square image with sides of this many pixels of a decoded one of any size.
Fit = Callable[["Picture", int], "Picture"]
Shape = tuple[int, int, int]


def centre(picture: Picture, side: int) -> Picture:
    """The largest square in the middle of an image, resized to ``side`` pixels a side (bilinear, smoothed).

    It is what resizing the shorter side and cropping the middle gives.
    """
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class ImageFiles(MapDataset[tuple[Tensor, int]]):
    """Image files as a dataset: ``[channels, height, width]`` uint8 and the number of the class of each.

    ``names``: paths below ``root``, as bytes ``[n]`` (arrays, which Ray shares between processes and no worker copies);
    ``sizes``: bytes of each file ``[n]``; ``labels [n]`` int64; ``shape``: of a decoded image. ``image_size``: the side
    of the square that ``fit`` makes of each image, None: images are taken as they are. ``fit`` may draw from torch's
    random numbers, as a random resized crop does; what a ``Stream`` reads is then the same for the same seed and epoch.
    """

    root: Path
    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    shape: Shape
    image_size: int | None = None
    fit: Fit = centre

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.pixels(number)), int(self.labels[number])

    def path(self, number: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[number]))

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """An image as ``[channels, height, width]``.

        Raises:
            StudyError: the file cannot be read as an image, or is of another size than it was.
        """
        path = self.path(number)

        def decode(picture: Picture) -> NDArray[np.uint8]:
            made = _as_shown(picture).convert("L" if self.shape[0] == 1 else "RGB")
            made = made if self.image_size is None else self.fit(made, self.image_size)
            return np.array(made, dtype=np.uint8)

        pixels = _open(path, decode)
        pixels = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        if pixels.shape != self.shape:
            raise StudyError(f"{path} is {_size(pixels.shape[1:])}, but it was {_size(self.shape[1:])}")
        return pixels

    def digest(self, index: NDArray[np.int64]) -> str:
        """A fingerprint of the files of these numbers, 16 hexadecimal digits.

        It is of their names below the root, their sizes in bytes, their classes and the shape that they are decoded to:
        not of times, nor of where the root is. What is in a file is not read.
        """
        words = hashlib.blake2b(repr(self.shape).encode(), digest_size=8)
        for number in index.tolist():
            words.update(bytes(self.names[number]) + f"\0{self.sizes[number]} {self.labels[number]}\0".encode())
        return words.hexdigest()


class Listing(NamedTuple):
    """The images of a folder: ``train`` and ``test`` are numbers of ``files``; no ``test``: the folder has none apart.

    ``mixed``: they differ in size as they lie on disk.
    """

    files: ImageFiles
    train: NDArray[np.int64]
    test: NDArray[np.int64] | None
    classes: tuple[str, ...]
    mixed: bool


def read(root: Path, image_size: int | None = None) -> Listing:
    """Lists ``root/train/CLASS/*`` and ``root/test/CLASS/*``, or ``root/CLASS/*``, and reads the header of every image.

    Where any image is coloured, all are taken as coloured.

    Raises:
        StudyError: a missing folder, an empty class, classes that do not agree, images that differ in size though there
            is no ``image_size``, a file that is no image, is animated, too large, or has more than 8 bits a channel
            (which Pillow would clip).
    """
    try:
        return _read(root, image_size)
    except OSError as error:
        raise StudyError(f"{error.filename or root} cannot be read: {error.strerror}") from None


def _read(root: Path, image_size: int | None) -> Listing:
    parts = ["train", "test"]
    if not any((root / part).is_dir() for part in parts) and root.is_dir() and _folders(root):
        parts = ["."]
    for part in parts:
        if not (root / part).is_dir():
            raise StudyError(
                f"there is no folder {root / part}; images must lie in {root}/train/CLASS and test/CLASS, or all in "
                f"{root}/CLASS"
            )
    classes = _folders(root / parts[0])
    for name in sorted(set(classes) ^ set(_folders(root / parts[-1]))):
        has, lacks = parts if name in classes else parts[::-1]
        raise StudyError(f"{root / has} has a class {name!r} that {root / lacks} has not; both must have the same ones")
    if len(classes) < 2:
        raise StudyError(f"{root / parts[0]} has {len(classes)} class folders; there must be at least 2")
    names: list[bytes] = []
    labels: list[int] = []
    counts = []
    for part in parts:
        before = len(names)
        for label, name in enumerate(classes):
            folder = root / part / name
            members = [entry for entry in _visible(folder) if Path(entry).suffix.lower() in SUFFIXES]
            if not members:
                raise StudyError(f"the class folder {folder} holds no .png or .jpg image")
            names += [os.fsencode(os.path.normpath(os.path.join(part, name, entry))) for entry in members]
            labels += [label] * len(members)
        counts.append(len(names) - before)
    files = ImageFiles(root, np.array(names), np.empty(0, np.int64), np.array(labels, dtype=np.int64), (0, 0, 0))
    sizes, heights, widths, coloured = _headers(files).T
    channels = 3 if coloured.any() else 1
    odd = np.flatnonzero((heights != heights[0]) | (widths != widths[0]))
    if len(odd) and image_size is None:
        other = int(odd[0])
        raise StudyError(
            f"{files.path(other)} is {_size((heights[other], widths[other]))}, but {files.path(0)} is "
            f"{_size((heights[0], widths[0]))}; all images must agree, or image_size makes squares of them"
        )
    height, width = (image_size, image_size) if image_size else (int(heights[0]), int(widths[0]))
    files = replace(files, sizes=sizes, shape=(channels, height, width), image_size=image_size)
    train, test = np.arange(counts[0]), np.arange(counts[0], len(names)) if len(parts) > 1 else None
    return Listing(files, train, test, tuple(classes), bool(len(odd)))


def _folders(folder: Path) -> list[str]:
    return [name for name in _visible(folder) if (folder / name).is_dir()]


def _visible(folder: Path) -> list[str]:
    """What lies in a folder, by name, without what systems hide there (such as ._1.png and .ipynb_checkpoints)."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _headers(files: ImageFiles) -> NDArray[np.int64]:
    """Of each file its bytes, its height, its width and whether it is coloured: ``[n, 4]``."""
    found = np.empty((len(files), 4), dtype=np.int64)

    def look(numbers: NDArray[np.int64]) -> None:
        for number in numbers.tolist():
            path = files.path(number)
            width, height, mode = _open(path, lambda picture: (*_size_shown(picture), picture.mode))
            found[number] = os.stat(path).st_size, height, width, mode not in ("1", "L")

    with ThreadPoolExecutor() as pool:  # a disk answers several at once, above all one in a network
        for _ in pool.map(look, np.array_split(np.arange(len(files)), max(1, len(files) // 100))):
            pass
    return found


def _as_shown(picture: Picture) -> Picture:
    """An image as a viewer shows it: turned as its camera says (EXIF), and on white where it is transparent."""
    from PIL import Image, ImageOps

    picture.load()  # some PNG files say at their end that they are turned
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def _size_shown(picture: Picture) -> tuple[int, int]:
    """Width and height of an image that is turned as its camera says, by its header."""
    width, height = picture.size
    turned = "exif" in picture.info and picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _check(path: Path, picture: Picture) -> None:
    """Raises StudyError where an image, by its header, is none that can be trained on as a viewer shows it."""
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise StudyError(
            f"{path} has {width * height / 1e6:,.0f} megapixels, more than the {MOST_PIXELS / 1e6:,.0f} that are "
            "decoded; make it smaller"
        )
    raw = [str(getattr(tile, "args", "")) for tile in getattr(picture, "tile", ())]
    if picture.mode.startswith(("I", "F")) or any(";16" in each for each in raw):
        raise StudyError(f"{path} has more than 8 bits a channel; convert it to 8")
    # Some cameras write several pictures into a JPEG file (MPO), of which viewers show the first.
    if picture.format != "MPO" and (frames := getattr(picture, "n_frames", 1)) > 1:
        raise StudyError(f"{path} is animated ({frames} frames); keep one of them as a still image")


def _open(path: Path, look: Callable[[Picture], Any]) -> Any:
    """What ``look`` makes of an image. Only regular files are opened: a pipe would be waited for.

    Raises:
        StudyError: it cannot be read as an image, or is none that can be trained on as a viewer shows it.
    """
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StudyError(f"{path} cannot be read as an image (it is not a file)")
        Image.init()  # so that it knows all of them
        with Image.open(path, formats=FORMATS) as picture:
            _check(path, picture)
            return look(picture)
    except StudyError:
        raise
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
        reason = "it is not there" if gone else error.strerror or type(error).__name__
        raise StudyError(f"{path} cannot be read as an image ({reason})") from None
    except Exception as error:  # a broken image may fail in any way
        raise StudyError(f"{path} cannot be read as an image ({type(error).__name__})") from None


def _size(size: Sequence[int]) -> str:
    height, width = size
    return f"{height} × {width}"

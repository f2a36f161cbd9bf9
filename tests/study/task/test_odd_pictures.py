"""Pictures of every kind: trained on as a viewer shows them, or refused in one sentence."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from network_surgery.study.errors import StudyError
from network_surgery.study.task import folder as pictures
from network_surgery.study.task.images import load
from tests.study.task.pictures import folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path / "images", train=3, test=1)


def odd(root: Path, name: str = "0.png") -> Path:
    """The picture that tests replace."""
    return root / "train" / "cat" / name


def pixels(root: Path, **settings: Any) -> np.ndarray[Any, Any]:
    """The picture that was replaced, as ``[height, width, channels]``."""
    files = pictures.read(root, **settings).files
    number = [files.path(number) for number in range(len(files))].index(odd(root))
    return files.pixels(number).transpose(1, 2, 0)


def refused(root: Path, **settings: Any) -> str:
    with pytest.raises(StudyError) as caught:
        load(f"folder:{root}", 0.25, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def png(path: Path, width: int, height: int, depth: int = 8, colour: int = 2, body: bytes | None = None) -> None:
    """A PNG file by its parts, which Pillow would not write so."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = body if body is not None else (b"\0" + bytes(width * channels * depth // 8)) * height
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) +
                     chunk(b"IEND", b""))  # fmt: skip


DRAW = np.random.default_rng(5).integers(0, 256, (6, 5, 3), dtype=np.uint8)
#: How a picture that is held upright looks in a file of each orientation: the inverse of what a viewer does.
TURNS = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_camera_s_rotation_is_undone(kind: str, orientation: int, root: Path) -> None:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    file = Image.fromarray(np.ascontiguousarray(TURNS[orientation](DRAW)))
    file.save(odd(root), kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    found = pixels(root).astype(int)
    assert found.shape == DRAW.shape
    if kind == "PNG":
        np.testing.assert_array_equal(found, DRAW)
    else:  # which is not exact, on noise
        assert np.abs(found - DRAW).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_is_on_white(mode: str, root: Path) -> None:
    alpha = np.full((6, 5), 255, np.uint8)
    alpha[0], alpha[1] = 0, 51
    whole = Image.fromarray(DRAW)
    if mode == "RGBA":
        Image.fromarray(np.dstack([DRAW, alpha])).save(odd(root))
    elif mode in ("LA", "PA"):
        Image.fromarray(np.dstack([DRAW[:, :, 0], alpha])).save(odd(root))
        whole = Image.fromarray(DRAW[:, :, 0]).convert("RGB")
    else:  # one colour is transparent
        made = Image.fromarray(DRAW).convert(mode)
        colour = made.getpixel((2, 3))
        made.save(odd(root), transparency=colour)
        shown = np.array(made.convert("RGB"))
        same = (np.array(made).reshape(6, 5, -1) == np.array(colour)).all(axis=-1)
        assert same.any()
        shown[same] = 255
        np.testing.assert_array_equal(pixels(root), shown)
        return
    found, solid = pixels(root).astype(int), np.array(whole).astype(int)
    np.testing.assert_array_equal(found[2:], solid[2:])
    np.testing.assert_array_equal(found[0], 255)
    assert np.abs(found[1] - (0.2 * solid[1] + 0.8 * 255)).max() <= 1


@pytest.mark.parametrize("mode", ["P", "1", "L", "CMYK"])
def test_palettes_bits_greys_and_print_colours_are_converted(mode: str, root: Path) -> None:
    made = Image.fromarray(DRAW).convert(mode)
    made.save(odd(root), "JPEG" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(pixels(root), np.array(Image.open(odd(root)).convert("RGB")))


@pytest.mark.parametrize(("colour", "depth"), [(0, 16), (2, 16), (4, 16), (6, 16)])
def test_more_than_eight_bits_are_refused(colour: int, depth: int, root: Path) -> None:
    png(odd(root), 5, 6, depth, colour)
    assert refused(root) == f"{odd(root)} has more than 8 bits a channel; convert it to 8"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_what_is_animated_is_refused(kind: str, root: Path) -> None:
    frames = [Image.fromarray(np.full((6, 5, 3), 40 * n, np.uint8)) for n in range(3)]
    frames[0].save(odd(root), kind, save_all=True, append_images=frames[1:])
    assert refused(root) == f"{odd(root)} is animated (3 frames); keep one of them as a still image"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "JPEG"])
def test_a_still_image_of_another_kind_is_read_whatever_it_is_called(kind: str, root: Path) -> None:
    Image.fromarray(DRAW).save(odd(root), kind)
    np.testing.assert_array_equal(pixels(root), np.array(Image.open(odd(root)).convert("RGB")))


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PDF", "TGA"])
def test_other_formats_are_refused(kind: str, root: Path) -> None:
    Image.fromarray(DRAW).save(odd(root), kind)
    assert refused(root) == f"{odd(root)} cannot be read as an image (UnidentifiedImageError)"


@pytest.mark.parametrize("settings", [{}, {"image_size": 4}, {"image_size": 4, "stream": "true"}])
def test_a_bomb_is_refused_by_its_header(settings: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(odd(root), 11_000, 10_000, body=b"")
    monkeypatch.setattr(Image.Image, "convert", None)  # nothing is decoded
    assert refused(root, **settings) == (
        f"{odd(root)} has 110 megapixels, more than the 89 that are decoded; make it smaller"
    )


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "UnidentifiedImageError"), (b"just text\n", "UnidentifiedImageError"), (bytes(100), "UnidentifiedImageError"),
    (b"\x89PNG\r\n\x1a\n", "UnidentifiedImageError"), (b"GIF89a", "UnidentifiedImageError"),
    (b"\xff\xd8\xff\xe0", "UnidentifiedImageError"), (b"<svg/>", "UnidentifiedImageError"),
])  # fmt: skip
def test_what_is_no_image_is_refused(content: bytes, reason: str, root: Path) -> None:
    odd(root).write_bytes(content)
    assert refused(root) == f"{odd(root)} cannot be read as an image ({reason})"


def test_a_pipe_a_socket_a_folder_and_loops(root: Path) -> None:
    cases = {
        "a pipe": (os.mkfifo, "it is not a file"), "a folder": (os.mkdir, "it is not a file"),
        "a loop": (lambda path: os.symlink(path, path), "Too many levels of symbolic links"),
        "a link to nowhere": (lambda path: os.symlink("nowhere", path), "it is not there"),
    }  # fmt: skip
    for make, reason in cases.values():
        odd(root, "x.png").unlink(missing_ok=True)
        make(odd(root, "x.png"))
        assert refused(root) == f"{odd(root, 'x.png')} cannot be read as an image ({reason})"
        if odd(root, "x.png").is_dir():
            odd(root, "x.png").rmdir()


def test_folders_that_loop(root: Path, tmp_path: Path) -> None:
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    assert refused(tmp_path / "loop").startswith(f"there is no folder {tmp_path}/loop/train; images must lie in")
    os.symlink(root, root / "train" / "cat" / "again")  # a class that holds its own folder, without a suffix
    assert len(pictures.read(root).files) == 8
    assert refused(Path("a\0b")).startswith("there is no folder a\0b/train; images must lie in")


def test_a_cut_jpeg_is_refused_when_it_is_decoded(root: Path) -> None:
    Image.fromarray(np.tile(DRAW, (40, 40, 1))).save(odd(root), "JPEG")
    odd(root).write_bytes(odd(root).read_bytes()[:-2000])
    assert refused(root, image_size=5).startswith(f"{odd(root)} cannot be read as an image (")


def test_thousands_of_classes_are_read(tmp_path: Path) -> None:
    for label in range(1000):
        place = tmp_path / f"{label:04d}"
        place.mkdir()
        for number in range(3 if label < 3 else 1):
            png(place / f"{number}.png", 2, 2)
    assert len(pictures.read(tmp_path).classes) == 1000
    assert refused(tmp_path) == "class '0003' has 1 training image; splitting off some for the test needs 3"

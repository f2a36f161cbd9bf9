"""Data: what is loaded is what lies on disk, split for good; one clear sentence for every folder that will not do."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.transforms.functional import center_crop, resize

from network_surgery.study.errors import StudyError
from network_surgery.study.task import images, sources
from network_surgery.study.task.folder import centre
from network_surgery.study.task.images import Images, ImageStream, ImageTask, load
from tests.study.task.pictures import folder, picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of cats and dogs, four for training and two for testing of each."""
    return folder(tmp_path / "my images")


def refusal(root: Path | str, validation: float = 0.25) -> str:
    with pytest.raises(StudyError) as caught:
        load(f"folder:{root}", validation)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def rows(images: Images) -> list[bytes]:
    return sorted(pixels.tobytes() + bytes([label]) for pixels, label in zip(images.pixels, images.labels, strict=True))


def parts(data: ImageTask) -> list[Images]:
    return [data.train, data.validation, data.test]


# -- the digits ----------------------------------------------------------------------------------------------------


def test_the_digits_are_split_into_disjoint_sets_of_all_of_them() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = load("digits", 0.25)
    assert data.shape == (1, 8, 8) and data.classes == tuple("0123456789")
    everything = Images(np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8), digits.target)
    assert sorted(row for part in parts(data) for row in rows(part)) == rows(everything)
    assert data.train.pixels.dtype == np.uint8 and data.train.labels.dtype == np.int64
    assert data.train.pixels.max() == 255


def test_every_class_has_its_share_in_every_set() -> None:
    data = load("digits", 0.25)
    counts = np.array([np.bincount(part.labels, minlength=10) for part in parts(data)])
    whole = counts.sum(axis=0)
    np.testing.assert_allclose(counts[2], 0.2 * whole, atol=0.5)
    np.testing.assert_allclose(counts[1], 0.25 * (whole - counts[2]), atol=0.5)


def test_the_split_is_the_same_at_every_call_and_the_test_images_whatever_the_fraction() -> None:
    one, again, other = load("digits", 0.25), load("digits", 0.25), load("digits", 0.5)
    for first, second in zip(parts(one), parts(again), strict=True):
        np.testing.assert_array_equal(first.pixels, second.pixels)
        np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(one.test.pixels, other.test.pixels)


@pytest.mark.parametrize("validation", [1e-6, 0.999999])
def test_no_class_is_lost_by_an_extreme_fraction(validation: float) -> None:
    data = load("digits", validation)
    assert all(np.bincount(part.labels, minlength=10).min() >= 1 for part in parts(data))


@pytest.mark.parametrize("name", ["", "emnist", "Digits", "folder", "folder:", "images:/tmp", "digits:"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(StudyError, match=r"there is no data .* give 'digits', 'mnist', .*'svhn' or 'folder:PATH'"):
        load(name, 0.25)


# -- a folder of images --------------------------------------------------------------------------------------------


def test_a_folder_gives_pillow_s_pixels_in_the_order_of_class_names(root: Path) -> None:
    data = load(f"folder:{root}", 0.25)
    assert data.classes == ("cat", "dog") and data.shape == (3, 6, 5)
    assert [len(part) for part in parts(data)] == [6, 2, 4]
    paths = [root / "test" / name / f"{i}.png" for name in ("cat", "dog") for i in range(2)]
    expected = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    np.testing.assert_array_equal(data.test.pixels, expected)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.train.labels.dtype == np.int64


def test_jpg_and_upper_case_suffixes_are_read_beside_png(root: Path) -> None:
    paths = [picture(root / "test" / "dog" / name, seed=i) for i, name in enumerate(("a.JPG", "b.jpeg", "c.PNG"))]
    data = load(f"folder:{root}", 0.25)
    for path, pixels in zip(paths, data.test.pixels[-3:], strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)).transpose(2, 0, 1))


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            for i in range(2):
                picture(tmp_path / part / name / f"{i}.png", mode="L", seed=i)
    data = load(f"folder:{tmp_path}", 0.5)
    assert data.shape == (1, 6, 5)
    np.testing.assert_array_equal(data.test.pixels[0, 0], np.asarray(Image.open(tmp_path / "test/a/0.png")))


def test_what_is_no_image_or_hidden_is_left_out(root: Path) -> None:
    before = load(f"folder:{root}", 0.25)
    (root / "train" / "cat" / "notes.txt").write_text("cats")
    (root / "train" / "cat" / "._0.png").write_bytes(b"left behind by a file manager")
    (root / "train" / "readme.md").write_text("cats and dogs")
    (root / "test" / ".cache").mkdir()
    after = load(f"folder:{root}", 0.25)
    assert [rows(part) for part in parts(after)] == [rows(part) for part in parts(before)]


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    (linked / "train").mkdir(parents=True)
    (linked / "test").symlink_to(root / "test")
    (linked / "train" / "cat").symlink_to(root / "train" / "cat")
    (linked / "train" / "dog").mkdir()
    for path in (root / "train" / "dog").iterdir():
        (linked / "train" / "dog" / path.name).symlink_to(path)
    one, other = load(f"folder:{root}", 0.25), load(f"folder:{linked}", 0.25)
    assert [rows(part) for part in parts(one)] == [rows(part) for part in parts(other)]
    (linked / "train" / "dog" / "z.png").symlink_to(tmp_path / "nowhere.png")
    assert "z.png cannot be read as an image" in refusal(linked)


def test_class_names_may_be_anything_that_a_folder_may_be_called(tmp_path: Path) -> None:
    names = ("n" * 255, "a class, with: signs", "Ångström 猫")
    for part in ("train", "test"):
        for i, name in enumerate(names):
            for j in range(2):
                picture(tmp_path / part / name / f"{j}.png", seed=i)
    assert load(f"folder:{tmp_path}", 0.5).classes == tuple(sorted(names))


def test_a_path_from_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert load("folder:~/my images", 0.25).classes == ("cat", "dog")
    assert "there is no folder ~nobody-of-this-name/x/train" in refusal("~nobody-of-this-name/x")


def test_a_missing_folder(root: Path, tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path / 'none' / 'train'}" in refusal(tmp_path / "none")
    shutil.rmtree(root / "test")
    assert f"there is no folder {root / 'test'}; images must lie in" in refusal(root)
    assert "there is no folder" in refusal("\0")
    assert "File name too long" in refusal("x" * 5000)


def test_too_few_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "only" / "0.png")
    assert "has 1 class folders; there must be at least 2" in refusal(tmp_path)
    (tmp_path / "none" / "train").mkdir(parents=True)
    (tmp_path / "none" / "test").mkdir()
    assert "has 0 class folders; there must be at least 2" in refusal(tmp_path / "none")


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class(root: Path, part: str) -> None:
    for path in (root / part / "dog").iterdir():
        path.rename(path.with_suffix(".bmp"))
    assert refusal(root) == f"the class folder {root / part / 'dog'} holds no .png or .jpg image"


def test_classes_that_do_not_agree(root: Path) -> None:
    picture(root / "test" / "emu" / "0.png")
    assert f"{root / 'test'} has a class 'emu' that {root / 'train'} has not" in refusal(root)
    shutil.rmtree(root / "test" / "emu")
    shutil.rmtree(root / "test" / "dog")
    assert f"{root / 'train'} has a class 'dog' that {root / 'test'} has not" in refusal(root)


def test_a_class_with_one_training_image(root: Path) -> None:
    for i in range(1, 4):
        (root / "train" / "dog" / f"{i}.png").unlink()
    assert refusal(root) == "class 'dog' has 1 training image; splitting off some for validation needs 2"


def test_images_of_different_sizes(root: Path) -> None:
    first, odd = root / "train" / "cat" / "0.png", root / "train" / "dog" / "9.png"
    remedy = "all images must agree, or image_size makes squares of them"
    picture(odd, size=(5, 6))
    assert refusal(root) == f"{odd} is 5 × 6, but {first} is 6 × 5; {remedy}"
    odd.unlink()
    picture(root / "test" / "cat" / "1.png", size=(6, 7))
    assert refusal(root) == f"{root / 'test' / 'cat' / '1.png'} is 6 × 7, but {first} is 6 × 5; {remedy}"


def test_images_of_different_sizes_become_squares(root: Path) -> None:
    paths = [root / "test" / name / f"{i}.png" for name in ("cat", "dog") for i in range(2)]
    for seed, (path, size) in enumerate(zip(paths, ((9, 20), (4, 3), (300, 2), (7, 7)), strict=True)):
        picture(path, seed, size)
    data = load(f"folder:{root}", 0.25, image_size=4)
    assert data.shape == (3, 4, 4) and isinstance(data.test, Images)
    expected = [np.asarray(centre(Image.open(path), 4)).transpose(2, 0, 1) for path in paths]
    np.testing.assert_array_equal(data.test.pixels, np.stack(expected))


@pytest.mark.parametrize("size", [(4, 12), (12, 4), (7, 7), (30, 10)])
@pytest.mark.parametrize("side", [2, 5, 20])
def test_a_square_is_what_torchvision_resizes_and_crops(size: tuple[int, int], side: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    reference = center_crop(resize(image, [side]), [side, side])
    np.testing.assert_allclose(np.asarray(centre(image, side)), np.asarray(reference), atol=1)


def test_grey_images_among_coloured_ones_are_taken_as_coloured(root: Path) -> None:
    odd = picture(root / "test" / "cat" / "0.png", mode="L")
    data = load(f"folder:{root}", 0.25)
    assert data.shape == (3, 6, 5)
    for channel in data.test.pixels[0]:
        np.testing.assert_array_equal(channel, np.asarray(Image.open(odd)))


def test_a_folder_of_classes_alone_gives_a_fixed_tenth_of_each_for_the_test(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        for i in range(20):
            picture(tmp_path / name / f"{i}.png", 100 * label + i)
    data, again = load(f"folder:{tmp_path}", 0.25), load(f"folder:{tmp_path}", 0.5, 20)
    assert [len(part) for part in parts(data)] == [28, 8, 4] and data.test.labels.tolist() == [0, 0, 1, 1]
    assert rows(again.test) == rows(data.test)
    assert len({row for part in parts(data) for row in rows(part)}) == 40
    assert data.note == "there is no test folder, so a fixed 10% of each class are the test images"
    for path in sorted((tmp_path / "dog").iterdir())[2:]:
        path.unlink()
    assert refusal(tmp_path) == "class 'dog' has 2 training images; splitting off some for the test needs 3"


def test_only_files_are_opened(root: Path) -> None:
    """A pipe would be waited for, for ever."""
    odd = root / "train" / "cat" / "x.png"
    os.mkfifo(odd)
    assert refusal(root) == f"{odd} cannot be read as an image (it is not a file)"


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_only_folders_are_streamed(name: str) -> None:
    with pytest.raises(StudyError, match=f"stream is 'true', but '{name}' is held in memory; only folder:PATH is"):
        load(name, 0.25, stream="true")


def test_what_is_streamed_by_itself(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(**settings: Any) -> type:
        return type(load(f"folder:{root}", 0.25, **settings).train)

    assert kind() is kind(stream="auto") is kind(stream="false") is Images and kind(stream="true") is ImageStream
    monkeypatch.setattr(images, "_memory", lambda: 10 * 12 * 3 * 6 * 5 - 1)  # ten times its pixels, but a byte
    assert kind(stream="auto") is ImageStream and kind(stream="false") is Images
    monkeypatch.undo()
    picture(root / "train" / "cat" / "0.png", size=(9, 9))
    assert kind(stream="auto", image_size=5) is ImageStream and kind(stream="false", image_size=5) is Images


@pytest.mark.parametrize("length", [0, 10, 60, 100])
def test_a_broken_image(root: Path, length: int) -> None:
    odd = root / "test" / "dog" / "1.png"
    odd.write_bytes(odd.read_bytes()[:length])
    assert f"{odd} cannot be read as an image" in refusal(root)


def test_a_folder_that_is_called_like_an_image(root: Path) -> None:
    (root / "train" / "cat" / "x.png").mkdir()
    assert "x.png cannot be read as an image" in refusal(root)


def test_sixteen_bits_are_refused_rather_than_clipped(root: Path) -> None:
    odd = root / "train" / "cat" / "0.png"
    Image.fromarray(np.full((6, 5), 300, dtype=np.uint16)).save(odd)
    assert refusal(root) == f"{odd} has more than 8 bits a channel; convert it to 8"


def test_fewer_training_images_of_every_class() -> None:
    whole, few = load("digits", 0.25), load("digits", 0.25, 200)
    assert abs(len(few.train) + len(few.validation) - 200) <= 5 and len(few.test) == len(whole.test)
    for part in (few.train, few.validation):
        assert np.ptp(np.bincount(part.labels)) <= 2
    rows = {image.tobytes() for image in np.concatenate([whole.train.pixels, whole.validation.pixels])}
    assert {image.tobytes() for image in few.train.pixels} < rows
    assert len(load("digits", 0.25, 10**6).train) == len(whole.train)
    with pytest.raises(StudyError, match="train_images is 15, but 10 classes need 2 images each"):
        load("digits", 0.25, 15)


# -- data sets of torchvision --------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
#: Images and labels of each part, written in the format that torchvision reads.
GREY = {part: RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8) for part in ("train", "test")}
COLOURED = {part: RANDOM.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8) for part in ("train", "test")}
LABELS = np.arange(30) % 10


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data sets, and no way to fetch any."""
    here = tmp_path / "here"
    monkeypatch.setenv("NETWORK_SURGERY_DATA", str(here))

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    return here


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(path: Path, array: np.ndarray) -> None:
    """LeCun's format: two zeros, the type (8: bytes), the number of axes, their lengths, the numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("name", "folder_name", "seventh"), [("mnist", "MNIST", "7 - seven"), ("fashion_mnist", "FashionMNIST", "Sneaker")]
)
def test_mnist_and_fashion_mnist(here: Path, name: str, folder_name: str, seventh: str) -> None:
    for part, prefix in (("train", "train"), ("test", "t10k")):
        idx(here / folder_name / "raw" / f"{prefix}-images-idx3-ubyte", GREY[part])
        idx(here / folder_name / "raw" / f"{prefix}-labels-idx1-ubyte", LABELS)
    data = load(name, 0.25)
    assert data.shape == (1, 28, 28) and data.classes[7] == seventh and [len(p) for p in parts(data)] == [20, 10, 30]
    np.testing.assert_array_equal(data.test.pixels[:, 0], GREY["test"])
    assert rows(
        Images(
            np.concatenate([data.train.pixels, data.validation.pixels]),
            np.concatenate([data.train.labels, data.validation.labels]),
        )
    ) == rows(Images(GREY["train"][:, None], LABELS))
    assert load(name, 0.25, image_size=32).shape == (1, 32, 32)
    (here / folder_name / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"")
    assert f"neither be found in {here} nor fetched" in unavailable(name)


@pytest.mark.parametrize(
    ("name", "kind", "key"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_cifar(here: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, key: str) -> None:
    cls = getattr(datasets, kind)
    place = here / cls.base_folder
    place.mkdir(parents=True)

    def written(file: str, content: Any) -> str:
        (place / file).write_bytes(pickle.dumps(content))
        return md5(place / file)

    for part in ("train", "test"):
        batch = {"data": COLOURED[part].reshape(30, -1), key: LABELS.tolist()}
        monkeypatch.setattr(cls, f"{part}_list", [[part, written(part, batch)]])
    names = [f"class {number}" for number in range(10)]
    monkeypatch.setattr(cls, "meta", {**cls.meta, "filename": "meta", "md5": written("meta", {cls.meta["key"]: names})})
    data = load(name, 0.25)
    assert data.shape == (3, 32, 32) and data.classes == tuple(names) and data.test.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(data.test.pixels, COLOURED["test"])


def test_svhn(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.mkdir()
    known = {}
    for part in ("train", "test"):
        savemat(
            here / f"{part}.mat",
            {"X": COLOURED[part].transpose(2, 3, 1, 0), "y": np.where(LABELS, LABELS, 10)[:, None]},
        )
        known[part] = ["http://nowhere", f"{part}.mat", md5(here / f"{part}.mat")]
    monkeypatch.setattr(datasets.SVHN, "split_list", known)
    data = load("svhn", 0.25)
    assert data.classes == tuple("0123456789") and data.test.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(data.test.pixels, COLOURED["test"])


def unavailable(name: str) -> str:
    with pytest.raises(StudyError) as caught:
        load(name, 0.25)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", sources.TORCHVISION)
def test_a_data_set_that_cannot_be_fetched(here: Path, name: str) -> None:
    assert f"{sources.TORCHVISION[name].title} can neither be found in {here} nor fetched" in unavailable(name)
    assert unavailable(name).endswith("images that lie elsewhere can be given as --data folder:PATH")
    assert sources.address(name).startswith("http")


def test_several_processes_fetch_once(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, download_root: str, filename: str, md5: str) -> None:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{filename}\n")
        place = Path(download_root) / filename.removesuffix(".gz")
        place.write_bytes(b"half of it")
        time.sleep(0.05)
        idx(place, LABELS if "labels" in filename else GREY["train"])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    fork = multiprocessing.get_context("fork")
    results: Any = fork.Queue()
    running = [fork.Process(target=lambda: results.put(load("mnist", 0.25).test.digest())) for _ in range(3)]
    for process in running:
        process.start()
    assert len({results.get(timeout=60) for _ in running}) == 1
    for process in running:
        process.join(60)
    fetched = (tmp_path / "log").read_text().split()
    assert len(fetched) == len(set(fetched)) == 4


def test_a_data_set_in_a_folder_that_cannot_be_written_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("train", "t10k"):
        idx(here / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", GREY["train"])
        idx(here / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", LABELS)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    assert len(load("mnist", 0.25).test) == 30


def test_validation_images_are_trained_on_if_that_is_asked_for(root: Path) -> None:
    apart, all_of_them = (load(f"folder:{root}", 0.25, train_on_validation=asked) for asked in (False, True))
    assert rows(all_of_them.validation) == rows(apart.validation) and rows(all_of_them.test) == rows(apart.test)
    assert rows(all_of_them.train) == sorted([*rows(apart.train), *rows(apart.validation)])
    assert len(load("digits", 0.25, train_on_validation=True).train) == 1438


def test_squares_that_fit_no_memory_are_refused() -> None:
    with pytest.raises(
        StudyError, match=r"1,797 images of 100,000 × 100,000 take 16,\d+ GiB.*give a smaller image_size"
    ):
        load("digits", 0.25, image_size=100_000)

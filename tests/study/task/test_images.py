"""Data: what is loaded is what lies on disk, split for good; one clear sentence for every folder that will not do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from network_surgery.study.errors import StudyError
from network_surgery.study.task.images import Images, ImageTask, load


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    """Writes an image of random pixels; ``size`` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, len(mode)) if len(mode) > 1 else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of cats and dogs, four for training and two for testing of each."""
    root = tmp_path / "my images"
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                picture(root / part / name / f"{i}.png", seed=10 * label + i + (part == "test") * 100)
    return root


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


@pytest.mark.parametrize("name", ["", "mnist", "Digits", "folder", "folder:", "images:/tmp", "digits:"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(StudyError, match=r"there is no data .* give 'digits', 'cifar10' or 'folder:PATH'"):
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
    assert f"there is no folder {root / 'train' / 'train'}" in refusal(root / "train")
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


def test_images_of_different_sizes_or_colours(root: Path) -> None:
    first, odd = root / "train" / "cat" / "0.png", root / "train" / "dog" / "9.png"
    picture(odd, size=(5, 6))
    told = f"{odd} is 5 × 6 and coloured, but {first} is 6 × 5 and coloured; all images must agree"
    assert refusal(root) == told
    picture(odd, mode="L")
    told = f"{odd} is 6 × 5 and grey, but {first} is 6 × 5 and coloured; all images must agree"
    assert refusal(root) == told
    odd.unlink()
    for path in (root / "test").glob("*/*"):
        picture(path, mode="L")
    told = f"{root}: training images are 6 × 5 and coloured and test images 6 × 5 and grey; they must agree"
    assert refusal(root) == told


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


class Fetched:
    """What torchvision's CIFAR10 gives, in small; or what it raises without a network."""

    classes = ("plane", "car")
    offline = False

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        assert download and root.name == "here"
        if self.offline:
            raise RuntimeError("Error downloading cifar-10-python.tar.gz:\nno route")
        self.data = np.arange(8 * 2 * 3 * 3, dtype=np.uint8).reshape(8, 2, 3, 3)
        self.targets = [0, 1] * 4


def test_cifar10_comes_through_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETWORK_SURGERY_DATA", str(tmp_path / "here"))
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fetched)
    data = load("cifar10", 0.25)
    assert data.classes == ("plane", "car") and data.shape == (3, 2, 3) and len(data.test) == 8
    np.testing.assert_array_equal(data.test.pixels[1, :, 1, 2], Fetched(tmp_path / "here", False, True).data[1, 1, 2])
    monkeypatch.setattr(Fetched, "offline", True)
    with pytest.raises(StudyError, match=r"neither be found in .*here nor fetched .* --data folder:PATH") as caught:
        load("cifar10", 0.25)
    assert "\n" not in str(caught.value)


def test_validation_images_are_trained_on_if_that_is_asked_for(root: Path) -> None:
    apart, all_of_them = (load(f"folder:{root}", 0.25, train_on_validation=asked) for asked in (False, True))
    assert rows(all_of_them.validation) == rows(apart.validation) and rows(all_of_them.test) == rows(apart.test)
    assert rows(all_of_them.train) == sorted([*rows(apart.train), *rows(apart.validation)])
    assert len(load("digits", 0.25, train_on_validation=True).train) == 1438

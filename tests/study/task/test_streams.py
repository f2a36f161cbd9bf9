"""A folder that is streamed trains as one that is held, bit for bit; what goes wrong on the way is one sentence."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from network_surgery.ops import MinWeight, Moment, Schedule, Step
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.layers import Layers, of_data
from network_surgery.study.search.shipping import ship
from network_surgery.study.task import build
from network_surgery.study.task.images import Images, ImageStream, ImageTask, load
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.study.nodes import one_slot
from tests.study.task.pictures import folder, picture

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SHRINK = Schedule((Step(Moment(1), "hidden", MinWeight(0.5)),)).to_data()
SETTINGS = Settings(
    epochs=3, batch_size=4, held_out=4, signal_images=4, probe=0, image_size=6, validation=0.25, device="cpu"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images for training and four for testing, of two sizes; one is grey."""
    root = folder(tmp_path_factory.mktemp("streamed") / "pets", train=8, test=2)
    picture(root / "train" / "cat" / "3.png", 3, size=(9, 14))
    picture(root / "train" / "dog" / "2.png", 4, mode="L")
    return root


def loaded(root: Path, stream: str = "true", **changes: Any) -> ImageTask:
    return load(f"folder:{root}", 0.25, **{"image_size": 6, "stream": stream} | changes)


class Small(ImageTask):
    """A network with dropout, so that random numbers of training count."""

    def model(self) -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        named = nn.Sequential()
        for name, module in zip(("flat", "hidden", "relu", "drop", "out"), net, strict=True):
            named.add_module(name, module)
        return named


def small(task: ImageTask, train: Any = None) -> Small:
    return Small(train or task.train, task.validation, task.test, task.classes)


def shifted(picture: Picture, side: int) -> Picture:
    """A random square of an image."""
    left, top = (int(torch.randint(0, 1 + max(0, length - 4), ())) for length in picture.size)
    return picture.resize((side, side), box=(left, top, left + 4, top + 4))


def trained(task: ImageTask, path: Path, schedule: list[Any] = SHRINK, **more: Any) -> tuple[dict[str, Any], bytes]:
    """The outcome without its seconds, and the final network."""
    arm = "surgery" if schedule else "original"
    path.mkdir(exist_ok=True)
    file = path / "network.pt"  # its name is in the file
    outcome = run(Cell(arm, 0, schedule, test=True), task, SETTINGS, CPU, network=file, **more)
    kept = ("validation_metric", "validation_loss", "test_loss", "train_metric", "steps", "architecture")
    losses = [(each["train_loss"], each["first_loss"], each["last_loss"]) for each in outcome["epochs"]]
    return {name: outcome[name] for name in kept} | {"losses": losses}, file.read_bytes()


class Stopped(Exception):
    pass


# -- what is in a stream -------------------------------------------------------------------------------------------


def test_a_stream_has_the_same_images_in_the_same_sets(root: Path) -> None:
    held, streamed = loaded(root, "false"), loaded(root)
    for name in ("train", "validation", "test"):
        one, other = getattr(held, name), getattr(streamed, name)
        assert isinstance(one, Images) and isinstance(other, ImageStream)
        assert one.labels.tolist() == other.labels.tolist() and one.shape == other.shape == streamed.shape
        for mine, theirs in zip(
            Batches(one, CPU).take(slice(None)), Batches(other, CPU).take(slice(None)), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
            assert mine.dtype == theirs.dtype
    assert held.at_once == streamed.at_once == 1024 and streamed.note == "images are streamed from their files"
    assert loaded(root, image_size=100).at_once is None


def test_fewer_training_images_and_training_on_validation(root: Path) -> None:
    for changes in ({"train_images": 9}, {"train_on_validation": True}):
        held, streamed = loaded(root, "false", **changes), loaded(root, **changes)
        assert [len(part) for part in (held.train, held.validation)] == [
            len(part) for part in (streamed.train, streamed.validation)
        ]
        assert held.train.labels.tolist() == streamed.train.labels.tolist()


def test_the_fingerprint_is_of_names_bytes_and_classes(root: Path, tmp_path: Path) -> None:
    copy = folder(tmp_path / "elsewhere", train=8, test=2)
    picture(copy / "train" / "cat" / "3.png", 3, size=(9, 14))
    picture(copy / "train" / "dog" / "2.png", 4, mode="L")
    digests = {name: getattr(loaded(root), name).digest() for name in ("train", "validation", "test")}
    assert len(set(digests.values())) == 3
    assert {name: getattr(loaded(copy), name).digest() for name in digests} == digests  # neither place nor time
    assert loaded(root, image_size=7).test.digest() != digests["test"] != loaded(root).test.thinned(2).digest()
    with (copy / "test" / "dog" / "1.png").open("ab") as file:
        file.write(b"0")
    assert loaded(copy).test.digest() != digests["test"] and loaded(copy).train.digest() == digests["train"]


def test_a_trial_is_handed_the_list_of_files(root: Path) -> None:
    task = loaded(root, image_size=1000)
    data = pickle.dumps(ship(task, Settings()))
    assert len(data) < 4000 and b"cat/0.png" in data
    again = pickle.loads(data)
    torch.testing.assert_close(Batches(again.test, CPU).take(slice(0, 2)), Batches(task.test, CPU).take(slice(0, 2)))


# -- training ------------------------------------------------------------------------------------------------------


def test_training_is_the_same_held_or_streamed_by_any_number_of_processes(root: Path, tmp_path: Path) -> None:
    held = trained(small(loaded(root, "false")), tmp_path / "held")
    for workers in (0, 2):
        assert trained(small(loaded(root, workers=workers)), tmp_path / "streamed") == held


@pytest.mark.parametrize("workers", [0, 2])
def test_random_reading_resumes_bit_by_bit(root: Path, tmp_path: Path, workers: int) -> None:
    task = loaded(root, workers=workers)
    task = small(task, task.train.fitted(shifted))
    whole = trained(task, tmp_path / "whole")
    assert whole != trained(small(loaded(root)), tmp_path / "plain")
    for stop in (1, 2):

        def tell(epoch: dict[str, Any], stop: int = stop) -> None:
            if epoch["epoch"] == stop + 1:
                raise Stopped

        saved = tmp_path / f"saved{stop}"
        with pytest.raises(Stopped):
            trained(task, tmp_path / "stopped", saved=saved, tell=tell)
        assert trained(task, tmp_path / "resumed", saved=saved) == whole


def test_every_arm_reads_the_same(root: Path) -> None:
    """An operation draws random numbers of its own, and that changes nothing of what is read."""
    stream = loaded(root).train.fitted(shifted)
    parts = torch.arange(len(stream)).split(5)
    one = [batch[0] for batch in Batches(stream, CPU).over(parts, 7)]
    other = []
    for inputs, _ in Batches(stream, CPU).over(parts, 7):
        torch.rand(3)
        other.append(inputs)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


MEMORY = """
import sys
import tests
import torch
from network_surgery.study.task.images import load
from network_surgery.study.task.samples import Batches

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def batches():
    return Batches(load("folder:" + sys.argv[1], 0.25, stream=sys.argv[2]).train, torch.device("cpu"))

if sys.argv[2] == "true":  # what reading needs once
    batches().take(slice(0, 2))
else:
    import PIL.PngImagePlugin
open("/proc/self/clear_refs", "w").write("5")  # the peak is what is in use now
before = peak()
read = batches()
for _ in read.whole(2):
    pass
print((peak() - before) / (len(read) * 3 * 512 * 512))
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_little_of_a_stream_is_in_memory(tmp_path: Path) -> None:
    """The growth of peak memory in an epoch, as a fraction of the decoded images (189 MB): some 12 to 42 MB of it are
    needed whatever their number. Held images, for comparison, are there twice: shared and on the device.
    """
    from PIL import Image

    for part, count in (("train", 160), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (512, 512), (i, 0, 0)).save(tmp_path / part / name / f"{i}.png")
    growth = {}
    for stream in ("true", "false"):
        command = [sys.executable, "-c", MEMORY, str(tmp_path), stream]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        growth[stream] = float(done.stdout)
    print(growth)
    assert growth["true"] < 0.4 and growth["false"] > 1


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("break_it", ["truncate", "empty", "text", "remove", "pipe", "class"])
def test_a_file_that_stops_being_an_image(tmp_path: Path, break_it: str, workers: int) -> None:
    root = folder(tmp_path / "pets", train=8)
    task = small(loaded(root, workers=workers))
    odd = task.train.files.path(int(task.train.index[3]))
    reason = "OSError"

    def tell(epoch: dict[str, Any]) -> None:
        nonlocal reason
        if break_it == "truncate":
            odd.write_bytes(odd.read_bytes()[:-30])
        elif break_it in ("empty", "text"):
            odd.write_bytes(b"" if break_it == "empty" else b"once upon a time")
            reason = "UnidentifiedImageError"
        elif break_it == "remove":
            odd.unlink()
            reason = "it is not there"
        elif break_it == "pipe":
            import os

            odd.unlink()
            os.mkfifo(odd)
            reason = "it is not a file"
        else:
            odd.parent.rename(odd.parent.with_name("gone"))
            reason = "it is not there"

    with pytest.raises(StudyError) as caught:
        run(Cell("original", 0), task, SETTINGS, CPU, tell)
    where = r".*" if break_it == "class" else str(odd)
    expected = f"{where} cannot be read as an image ({reason})"
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(f"cannot be read as an image ({reason})") if break_it == "class" else message == expected


def test_an_image_that_changes_its_size(tmp_path: Path) -> None:
    task = load(f"folder:{folder(tmp_path / 'pets')}", 0.25, stream="true")
    path = picture(task.test.files.path(int(task.test.index[0])), size=(3, 3))
    with pytest.raises(StudyError) as caught:
        Batches(task.test, CPU).take(slice(None))
    assert str(caught.value) == f"{path} is 3 × 3, but it was 6 × 5"


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_layers_of_a_network_on_a_stream(root: Path) -> None:
    settings = replace(SETTINGS, data=f"folder:{root}", model="mlp", stream="true", workers=2)
    assert isinstance(build(settings).train, ImageStream)
    head, layers, *_ = of_data(settings, 1)
    assert isinstance(layers, Layers) and len(layers.rows) == 2 and "trained for 1 epoch" in str(head)


@pytest.mark.long
def test_a_study_of_a_stream(root: Path, tmp_path: Path) -> None:
    """From the command line to the report, with two reading processes in each trial."""
    from network_surgery.study.cli import main

    def surgery(*words: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["surgery", *words])
            main()

    out = tmp_path / "study"
    words = "--model mlp --epochs 2 --trials 1 --generation 1 --top 1 --seeds 1 --arms original,surgery,restart"
    more = f"--space removal --device cpu --batch-size 4 --image-size 6 --workers 2 --data folder:{root} --out {out}"
    with one_slot(), contextlib.suppress(SystemExit):
        surgery("study", *words.split(), *more.split())
    results = json.loads((out / "results.json").read_text())
    assert {row["arm"] for row in results["comparison"]["summary"]} == {"original", "surgery", "restart"}
    assert np.isfinite([row["metric"] for row in results["comparison"]["summary"]]).all()

"""What a study was trained on is kept with it, and other data are noticed before anything goes on."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from network_surgery.study import api, conduct
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.tracking.names import study_tags
from network_surgery.study.store.folder import Folder
from network_surgery.study.task import Samples, Sets, Stream, build
from network_surgery.study.task.images import load
from tests.study.nodes import node
from tests.study.task.pictures import folder
from tests.study.task.test_task import Line, line


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "poems"
    root.mkdir()
    for number in range(8):
        (root / f"{number}.txt").write_text(f"line {number} of a poem\n" * 20)
    return root


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("network_surgery.study.search.cluster.joined", lambda *_: contextlib.nullcontext([node(CPU=2)]))


def text(corpus: Path, **changes: Any) -> Settings:
    return Settings(task="text", data=f"folder:{corpus}", model="gpt", context=16, batch_size=4, **changes)


def test_a_study_of_text_keeps_it_and_does_not_go_on_with_another(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    with conduct.begin(text(corpus), out) as (made, task):
        known = made.data
    assert known == task.fingerprint().to_data() and known["name"] == "poems"  # type: ignore[union-attr]
    assert known["bytes"] == sum(path.stat().st_size for path in corpus.iterdir()) and len(known["digest"]) == 16
    assert Folder.open(out).changed(seeds=2).data == known and made.write([], [])["data"] == known
    assert study_tags(made)["data"] == f"poems (2,720 bytes, fingerprint {known['digest']})"
    path = corpus / "3.txt"
    path.write_text(path.read_text().replace("3", "4", 1))
    kept = (out / "study.json").read_text()
    for go_on in (partial(api.resume, trials=20), partial(api.compare, seeds=9)):
        with pytest.raises(StudyError) as caught:
            go_on(out, quiet=True)
        assert str(caught.value).startswith(
            f"the data of this study have changed: it began with poems (2,720 bytes, fingerprint {known['digest']}), "
        )
    assert not (out / "cells.jsonl").exists() and (out / "study.json").read_text() == kept


def test_an_older_study_has_none_and_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with conduct.begin(text(corpus), tmp_path / "study") as (made, _):
        content = json.loads((made.path / "study.json").read_text())
    del content["data"], content["checksum"]
    (made.path / "study.json").write_text(json.dumps(content))
    assert Folder.open(made.path).data is None and "data" not in study_tags(made)
    (corpus / "3.txt").write_text("another line\n" * 20)
    monkeypatch.setattr(conduct, "proceed", lambda *_: True)
    assert api.resume(made.path, quiet=True).path == made.path


def test_what_is_thinned_or_rearranged_is_of_the_same_text(corpus: Path) -> None:
    whole = build(text(corpus)).fingerprint()
    assert whole == build(text(corpus, train_images=4)).fingerprint()
    assert whole == build(text(corpus, seed=5)).fingerprint()


def test_images_of_a_folder_have_one_whether_they_are_held_or_streamed(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets")
    one, other = (load(f"folder:{root}", 0.25, stream=stream).fingerprint() for stream in ("true", "false"))
    assert one == other and one is not None and one.name == "pets"
    scaled = Settings(data=f"folder:{root}", normalize="imagenet", model="mlp")
    with contextlib.suppress(StudyError):  # of grey images
        assert build(scaled).fingerprint() == one
    next((root / "train").rglob("*.png")).rename(root / "train" / "renamed.png")
    with contextlib.suppress(StudyError):
        assert load(f"folder:{root}", 0.25).fingerprint() != one


def test_digits_are_the_same_for_every_seed_and_number() -> None:
    one, other = (build(Settings(train_images=n, seed=n)).fingerprint() for n in (100, 200))
    assert one == other and one is not None and one.name == "digits" and one.bytes == 1797 * (64 + 8)


def test_a_task_of_ones_own_has_that_of_its_samples() -> None:
    one, other = Line().fingerprint(), Line().fingerprint()
    assert one == other and one is not None and one.bytes == 40 * 7 * 4

    def changed(self: Line) -> Any:
        train, *rest = Line().load()
        return [(train[0] + 1, train[1]), *rest]

    assert line(load=changed).fingerprint() != one


def test_a_stream_has_one_if_its_dataset_says_what_it_is() -> None:
    class Known(torch.utils.data.TensorDataset):
        def digest(self) -> str:
            return "as ever"

    class Broken(Known):
        def digest(self) -> str:
            raise RuntimeError("no such thing\nsecond line")

    tensors, held = (torch.zeros(8, 6), torch.zeros(8)), Samples(np.zeros((8, 6)), np.zeros(8))

    def of(kind: Any) -> Any:
        return line(load=lambda self: Sets(Stream(kind(*tensors)), held, held)).fingerprint()

    assert of(torch.utils.data.TensorDataset) is None and of(Known) == of(Known) is not None
    with pytest.raises(StudyError, match=r"a dataset of Mine cannot be fingerprinted: no such thing$"):
        of(Broken)

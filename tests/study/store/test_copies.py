"""A study's folder is copied to a storage while it runs, and made anew of the copy."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from network_surgery.study import api
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.store import copies
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on an S3 server of the test's own, on loopback."""
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(f"AWS_{name}", value)
        place = f"endpoint_override=127.0.0.1:{port}&scheme=http&allow_bucket_creation=true"
        system, _ = fs.FileSystem.from_uri(f"s3://bucket?{place}")
        system.create_dir("bucket")
        yield f"s3://bucket/studies/one?{place}"
    server.stop()


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/there/one" if request.param == "file" else request.getfixturevalue("s3")


def study(path: Path, **changes: str) -> Folder:
    return Folder.make(path, Settings(**changes), {"fc1": 8})


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".db"
    }


def test_a_copy_makes_the_same_study(tmp_path: Path, uri: str) -> None:
    here = study(tmp_path / "here")
    with contextlib.closing(sqlite3.connect(here.optuna)) as database:
        database.execute("CREATE TABLE trials (number INTEGER)")
        database.execute("INSERT INTO trials VALUES (7)")
        database.commit()
    for name in ("networks/a.pt", "checkpoints/b.pt"):
        (here.path / name).parent.mkdir()
        (here.path / name).write_bytes(name.encode())
    with copies.Copy(here.path, uri) as copy:
        here.ended(Cell("original", 1), {"failure": "the loss became nan"})
        copy.ended(Cell("original", 1), {})
        (here.path / "checkpoints" / "b.pt").unlink()
        here.ended(Cell("original", 2), {"failure": "the loss became inf"})
    assert copy.reason == ""
    (here.path / "lock").touch()
    copies.restore(uri, tmp_path / "again")
    expected = {name: content for name, content in files(here.path).items() if name != "lock"}
    assert files(tmp_path / "again") == expected
    assert len(Folder.open(tmp_path / "again").records()) == 2
    with contextlib.closing(sqlite3.connect(tmp_path / "again" / "optuna.db")) as database:
        assert database.execute("SELECT number FROM trials").fetchall() == [(7,)]


def test_only_what_has_changed_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, sent = study(tmp_path / "here"), list[str]()
    (here.path / "networks").mkdir()
    (here.path / "networks" / "a.pt").write_bytes(b"1")
    write = copies._write
    monkeypatch.setattr(
        copies, "_write", lambda system, path, content: (sent.append(path), write(system, path, content))
    )
    copy = copies.Copy(here.path, f"file://{tmp_path}/there")
    here.ended(Cell("original", 1), {})
    for expected in ([".study.json", "a.pt", "study.json", "cells.jsonl"], [], ["cells.jsonl"]):
        sent.clear()
        copy.send()
        assert [path.rpartition("/")[2] for path in sent] == expected
        if not expected:
            here.ended(Cell("original", 2), {})


def test_a_storage_that_is_away_for_a_while_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = study(tmp_path / "here")
    write, away = copies._write, True

    def fails(*arguments: object) -> None:
        if away:
            raise OSError("the network is down")
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(copies, "check", lambda uri: None)
    monkeypatch.setattr(copies, "PAUSE", 0.01)
    monkeypatch.setattr(copies, "_write", fails)
    with copies.Copy(here.path, f"file://{tmp_path}/there") as copy:
        copy.ended(Cell("original", 1), {})
        end = time.monotonic() + 20
        while not copy.reason and time.monotonic() < end:
            time.sleep(0.01)
        assert copy.reason == "the network is down"
        away = False
    assert copy.reason == "" and (tmp_path / "there" / "study.json").exists()


def test_a_folder_is_no_uri(tmp_path: Path) -> None:
    sentence = "s3://bucket/x is a URI, but a study works in a folder of this machine; give --out runs/NAME"
    with pytest.raises(StudyError, match=sentence):
        Folder.check(Path("s3://bucket/x"))
    Folder.check(tmp_path / "s3:")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nowhere://x/y", "nowhere://x/y names no storage"),
        ("s3://key:secret@bucket/x", "copy_to is a s3 URI with credentials, which would be written to study.json"),
        ("file:///proc/nothing/x", "nothing can be written to file:///proc/nothing/x"),
    ],
)
def test_where_nothing_can_be_copied_to_is_refused(given: str, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        copies.check(given)


def test_a_study_goes_on_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = f"file://{tmp_path}/there/mine"
    here = study(tmp_path / "here", copy_to=there)
    with copies.Copy(here.path, there):
        pass
    monkeypatch.chdir(tmp_path)
    place = api.at_hand(Path(there))
    assert place == Path("runs/mine") and Folder.open(place).identity == here.identity
    with pytest.raises(StudyError, match=r"runs/mine, where the study at file:///.*/there/mine would go on, is there"):
        api.at_hand(there)
    with pytest.raises(StudyError, match=r"there is no study at file:///.*/nothing"):
        api.at_hand(f"file://{tmp_path}/nothing")


@pytest.mark.long
def test_the_command_line_says_it_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import tests; from network_surgery.study.cli import main; main()"]
    arguments = ["study", "--preset", "smoke", "--out", "s3://bucket/x"]
    found = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "--copy-to s3://bucket/x" in found.stderr and "Traceback" not in found.stderr
    assert not Path("s3:").exists()

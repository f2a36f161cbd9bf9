"""Temporary folders go with their processes, or at the next start."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from network_surgery.study import scratch as module
from network_surgery.study.scratch import LOCK, PREFIX, scratch, sweep

CODE = """
import tests, time
from network_surgery.study.scratch import scratch
with scratch() as place:
    print(place, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_leaves_is_swept_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / f"{PREFIX}of-somebody-else").mkdir()
    with scratch() as mine:
        other = subprocess.Popen([sys.executable, "-c", CODE], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        assert other.stdout is not None
        place = Path(other.stdout.readline().decode().strip())
        assert place.parent == tmp_path and (place / LOCK).exists()
        sweep()
        assert mine.exists() and place.exists()
        other.kill()
        other.wait()
        (place / "ray").mkdir()
        sweep()
        assert mine.exists() and not place.exists()
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}of-somebody-else"]


def test_a_long_temporary_directory_is_too_long_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with scratch() as anywhere, scratch(40) as short:
        assert anywhere.parent == long and len(str(short)) <= 40
    assert not anywhere.exists() and not short.exists()


@pytest.mark.parametrize("failures", [3, 100])
def test_a_folder_that_others_still_write_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """It is removed a moment later or, if they write for long, at the next start."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "SHORT", str(tmp_path))
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "PATIENCE", 60.0 if failures < 100 else 0.0)
    remove, calls = shutil.rmtree, []

    def written_in(path: Path) -> None:
        calls.append(path)
        remove(path)
        if len(calls) <= failures:
            path.mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", written_in)
        with scratch() as path:
            (path / "ray" / "session").mkdir(parents=True)
    assert path.exists() == (failures == 100)
    sweep()
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_others_write_in_as_it_goes_is_removed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "SHORT", str(tmp_path))
    remove = Path.rmdir

    def late(path: Path) -> None:
        (path / "log").touch()
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", late)
        with scratch() as path:
            pass
    assert {each.name for each in path.iterdir()} == {"log", LOCK}
    sweep()
    assert [*tmp_path.iterdir()] == []


def test_who_is_killed_while_it_removes_leaves_what_the_next_start_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "SHORT", str(tmp_path))
    code = f"""
import os, shutil, signal, tests, tempfile
from network_surgery.study.scratch import scratch
tempfile.tempdir = {str(tmp_path)!r}
shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)
with scratch() as path:
    [(path / name).mkdir() for name in "abc"]
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode < 0
    (path,) = tmp_path.iterdir()
    assert {each.name for each in path.iterdir()} == {"a", "b", "c", LOCK}
    sweep()
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_gone_already_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch() as path:
        (path / "link").symlink_to(tmp_path)
        shutil.rmtree(path)
    assert [*tmp_path.iterdir()] == []

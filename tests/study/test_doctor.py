"""Damaged studies: one sentence and exit code 2, nothing lost, and ``surgery doctor`` mends what can be mended."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from rich.console import Console
from torch import nn

from network_surgery.ops import save
from network_surgery.study import api, cli, doctor
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.store import about, ledger
from network_surgery.study.store.folder import Folder, held, network_of
from network_surgery.study.task import build
from network_surgery.study.task.check import fresh
from network_surgery.study.training import values
from network_surgery.study.training.cell import Cell
from tests.study.evidence import made

LAYERS, ARMS = {"fc1": 64, "fc2": 32}, ("original", "surgery")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four trials, a line of whose ledger each test damages; one network and its values lie there."""
    place = tmp_path_factory.mktemp("whole") / "s"
    folder = made.study(
        place, LAYERS, trials=4, top=1, seeds=2, epochs=4, space="removal", arms=("original", "surgery")
    )
    lines = folder.ledger.read_text().splitlines()
    folder.ledger.unlink()
    network = network_of("original-seed-1", place)
    network.parent.mkdir()
    save(nn.Linear(2, 2), network)
    np.save(values.place(network), np.packbits(np.array([1, 0] * 8, bool)))
    for line in lines:
        entry = json.loads(line)
        cell = Cell(**entry["cell"])
        kept = {"network": "networks/original-seed-1.pt", "test_values": 16, "test_metric": 0.5}
        folder.ended(cell, entry["result"] | (kept if cell.name == "original-seed-1" else {}))
    return place


@pytest.fixture
def study(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The sentence that a command is refused with, whatever it is."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["surgery", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        text = capsys.readouterr()
        assert ended.value.code == 2 and "Traceback" not in text.err + text.out
        (sentence,) = [line for line in text.err.splitlines() if line.startswith("surgery: ")]
        return sentence.removeprefix("surgery: ")

    return run


def names(study: Path) -> list[str]:
    return [record.cell.name for record in Folder.open(study).records()]


def mended(study: Path) -> list[str]:
    """What the doctor says, each of which it mends; then nothing is wrong any more."""
    found = []
    for finding in doctor.examine(study):
        assert finding.mend is not None, finding.wrong
        finding.mend()
        found.append(f"{finding.wrong}: {finding.remedy}")
    assert [finding for finding in doctor.examine(study) if finding.mend is not None] == []
    return found


def changed(line: bytes, **parts: Any) -> bytes:
    """A line of the ledger, without its checksum, some of whose parts (``result.seconds``) are others."""
    entry = json.loads(line)
    del entry["crc32"]
    for path, value in parts.items():
        part, _, name = path.partition("__")
        if name:
            entry[part][name] = value
        else:
            entry[part] = value
    return json.dumps(entry).encode()


#: What a line becomes, and what is told of it.
LINES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a number": (lambda line: b"3", "is no training run, but 3"),
    "null": (lambda line: b"null", "is no training run, but null"),
    "an empty mapping": (lambda line: b"{}", "is no training run, but {}"),
    "a list": (lambda line: b"[1]", "is no training run, but [1]"),
    "text": (lambda line: b'"x"', 'is no training run, but "x"'),
    "garbage": (lambda line: b"garbage", "is not JSON"),
    "zeros": (lambda line: bytes(40), "is not JSON"),
    "not text": (lambda line: line[:50] + b"\xff\xfe" + line[50:], "is not text"),
    "deep": (lambda line: b"[" * 100_000, "is not JSON"),
    "a flipped digit": (lambda line: line.replace(b'"seed": 0', b'"seed": 1'), "is not as it was written: its "),
    "without a result": (lambda line: changed(line, result=None), "is a training run without a result"),
    "a cell that is text": (lambda line: changed(line, cell="x"), "is no training run, but {"),
    "an unknown field": (lambda line: changed(line, cell__odd=1), "has a cell with 'odd', which this version does not"),
    "without a seed": (lambda line: line.replace(b'"seed": 0, ', b"").partition(b', "crc32"')[0] + b"}",
                       "has a cell without 'seed'"),
    "a seed that is text": (lambda line: changed(line, cell__seed="x"), "has a cell whose seed is 'x'"),
    "no trial": (lambda line: changed(line, cell__trial=None), "has a cell whose trial is None"),
    "another arm": (lambda line: changed(line, cell__arm="odd"), "has a cell of the arm 'odd', which "),
    "a schedule of numbers": (lambda line: changed(line, cell__schedule=[3]), "has a cell whose schedule is [3]"),
    "NaN": (lambda line: changed(line, result__validation_metric=float("nan")), "has the validation_metric nan"),
    "infinity": (lambda line: changed(line, result__seconds=float("inf")), "has the seconds inf"),
    "a metric of text": (lambda line: changed(line, result__validation_metric="x"), "which is no number"),
    "without a metric": (lambda line: changed(line, result__validation_metric=None), "lacks 'validation_metric'"),
    "operations of numbers": (lambda line: changed(line, result__operations=[3]), "is damaged: "),
    "operations": (lambda line: changed(line, result__operations=[{}]), "a kept OperationRecord lacks 'when'"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_is_told_and_set_aside(name: str, study: Path, refused: Callable[..., str]) -> None:
    damage, sentence = LINES[name]
    path, before = study / "cells.jsonl", names(study)
    first, *rest = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([damage(first), *rest]))
    said = refused("report", study)
    assert said.startswith(f"line 1 of {path} ") and sentence in said, said
    assert said.endswith(f"; surgery doctor {study} sets it aside, and surgery resume runs it again")
    assert refused("doctor", "--dry-run", study) == f"{study} is damaged; surgery doctor {study} mends it"
    (found,) = mended(study)
    assert sentence in found and found.endswith(
        ": what is damaged goes to cells.jsonl.damaged, and surgery resume runs it again"
    )
    assert set(before) - set(names(study)) == {"search-000"}
    assert (study / "cells.jsonl.damaged").read_bytes() == damage(first) + b"\n"


def test_a_line_that_was_cut_off_is_no_damage(study: Path) -> None:
    path, before = study / "cells.jsonl", names(study)
    last = path.read_bytes().rpartition(b"\n")[2]
    for length in (1, 5, 20, len(last) // 2, len(last) - 1):
        path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n" + last[:length])
        assert len(names(study)) == len(before) - 1 and list(doctor.examine(study)) == []
    for end in (b"KeyError: '}}}", b'a quoted \\"}}}', b"a backslash \\"):  # in the midst of a text
        path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b'\n{"cell": {"arm": "' + end)
        assert len(names(study)) == len(before) - 1


ABOUT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda content: [content], "is not of the format 1"),
    "nothing": (lambda content: {}, "is not of the format 1"),
    "another format": (lambda content: content | {"format": 2}, "format is 2, and was 1"),
    **{f"no {name}": (lambda content, name=name: {k: v for k, v in content.items() if k != name}, f"{name} is null")
       for name in ("layers", "machine", "identity")},
    "layers of text": (lambda content: content | {"layers": {"fc1": "x"}}, 'layers is {"fc1": "x"}, and was'),
    "layers a list": (lambda content: content | {"layers": [1]}, "layers is [1], and was"),
    "another model": (lambda c: c | {"settings": c["settings"] | {"model": "mlp"}},
                      'model is "mlp", and was "small_cnn"'),
    "other epochs": (lambda c: c | {"settings": c["settings"] | {"epochs": 9}}, "epochs is 9, and was 4"),
    "two things": (lambda c: c | {"unit": "x", "settings": c["settings"] | {"seed": 9}},
                   "seed is 9, and was 0 (and 1 more)"),
    "no settings": (lambda c: {k: v for k, v in c.items() if k != "settings"}, "it lacks 'settings'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ABOUT)
def test_a_study_that_was_changed_by_hand_is_noticed_and_put_back(
    name: str, study: Path, refused: Callable[..., str]
) -> None:
    damage, sentence = ABOUT[name]
    path, before = study / "study.json", Folder.open(study)
    written = json.dumps(damage(json.loads(path.read_text())))
    path.write_text(written)
    said = refused("report", study)
    assert said.startswith(str(path)) and sentence in said, said
    assert f"surgery doctor {study} puts back what it was" in said
    assert refused("resume", study) == said  # nothing was run
    (found,) = mended(study)
    assert sentence in found and found.endswith("its copy is put back")
    assert Folder.open(study).settings == before.settings and Folder.open(study).layers == before.layers
    assert (study / "study.json.moved").read_text() == written


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "sett', b"\xff\xfe\x00", b"[" * 100_000, None])
def test_a_study_that_cannot_be_read_is_put_back(content: bytes | None, study: Path, refused: Any) -> None:
    (study / "study.json").unlink() if content is None else (study / "study.json").write_bytes(content)
    assert refused("report", study).endswith(f"; surgery doctor {study} puts back what it was")
    assert len(mended(study)) == 1 and names(study)


def test_where_a_study_runs_may_be_changed_by_hand(study: Path) -> None:
    content = json.loads((study / "study.json").read_text())
    content["settings"] |= {"device": "cpu", "workers": 0, "address": "auto"}
    (study / "study.json").write_text(json.dumps(content))
    assert Folder.open(study).settings.address == "auto"
    assert Folder.open(study).changed(seeds=3).settings.address == "auto" and list(doctor.examine(study)) == []


def test_a_damaged_copy_is_written_anew(study: Path) -> None:
    (study / about.COPY).write_text("x")
    assert mended(study) == [f"{study}/.study.json, the copy of study.json, is not whole: it is written anew"]


@pytest.mark.parametrize("name", ["networks", "checkpoints", "figures", "mlflow-artifacts"])
def test_a_file_in_the_place_of_a_folder(name: str, study: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(study / name, ignore_errors=True)
    (study / name).write_text("mine")
    for command in ("report", "resume"):
        assert refused(command, study) == (
            f"{study / name} is a file, but it must be a folder; surgery doctor {study} moves it away"
        )
    (study / "networks").exists() or (study / "networks").mkdir()
    first = next(doctor.examine(study))
    assert first.wrong == f"{study / name} is not a folder" and first.mend is not None
    first.mend()
    assert (study / f"{name}.moved").read_text() == "mine"


@pytest.mark.parametrize("name", ["cells.jsonl", "results.json", "report.html", "optuna.db", "mlflow.db", "lock"])
def test_a_folder_in_the_place_of_a_file(name: str, study: Path, refused: Callable[..., str]) -> None:
    (study / name).unlink(missing_ok=True)
    (study / name).mkdir()
    (study / name / "mine").write_text("mine")
    for command in ("report", "resume"):
        assert refused(command, study) == (
            f"{study / name} is a folder, but it must be a file; surgery doctor {study} moves it away"
        )
    assert mended(study)[0] == f"{study / name} is not a file: it is moved away"
    assert (study / f"{name}.moved" / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["optuna.db", "mlflow.db"])
@pytest.mark.parametrize("content", [b"garbage", b"SQLite format 3\0" + bytes(100), b"SQLite format 3\0"])
def test_a_damaged_database_is_set_aside(name: str, content: bytes, study: Path) -> None:
    (study / name).write_bytes(content)
    (found,) = mended(study)
    assert found.startswith(str(study / name)) and (study / f"{name}.moved").read_bytes() == content


def test_a_database_that_is_not_the_ledgers_is_set_aside(study: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{study}/optuna.db")
    other = optuna.create_study(storage=storage)
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=6)
    storage.remove_session()
    (found,) = mended(study)
    assert "has trial 4 and 1 more, which the ledger has not: it is set aside" in found


def test_a_locked_database_is_told(study: Path, refused: Callable[..., str]) -> None:
    with sqlite3.connect(study / "optuna.db", isolation_level=None) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("BEGIN EXCLUSIVE")
        assert refused("doctor", study) == f"{study}/optuna.db is locked; end the program that holds it"


def test_a_network_that_is_damaged_or_missing(study: Path) -> None:
    path = study / "networks" / "original-seed-1.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (found,) = mended(study)
    assert found.startswith("the network of original-seed-1, networks/original-seed-1.pt, is damaged: its check")
    assert path.with_name(f"{path.name}.moved").read_bytes() == content and not path.exists()
    (finding,) = doctor.examine(study)  # and so it is where somebody has deleted it
    assert finding.wrong.endswith("is missing") and finding.mend is None
    console = Console(file=StringIO())
    for dry_run in (True, False):
        doctor.mend(study, dry_run, console)
    assert console.file.getvalue().split("\n")[-2] == "nothing else is wrong"  # type: ignore[attr-defined]


def test_study_json_is_mended_only_where_nobody_runs_the_study(study: Path, refused: Callable[..., str]) -> None:
    (study / "study.json").write_text("{")
    with held(study):
        assert refused("doctor", study) == f"{study} is being run by another process; wait for it, or stop it"
    assert (study / "study.json").read_text() == "{" and mended(study)


@pytest.mark.parametrize("content", [b"", b"x", np.arange(3), np.packbits(np.array([1, 1] * 8, bool)), [{}]])
def test_damaged_values_are_told_and_set_aside(content: Any, study: Path) -> None:
    path = values.place(study / "networks" / "original-seed-1.pt")
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content, allow_pickle=True)
    record = next(r for r in Folder.open(study).records() if r.cell.name == "original-seed-1")
    with pytest.raises(StudyError, match=f"{path} .*; surgery doctor {study} sets it aside"):
        Folder.open(study).test_values(record)
    assert len(mended(study)) == 1 and Folder.open(study).test_values(record) is None


def test_damaged_checkpoints_are_removed(study: Path) -> None:
    (study / "checkpoints").mkdir()
    (study / "checkpoints" / "a.pt").write_bytes(b"x")
    torch.save({"old": 1}, study / "checkpoints" / "b.pt")
    assert mended(study) == [
        "the checkpoint a.pt is damaged: it is cut off, or no file of torch's: it is removed, which costs time alone"
    ]
    assert [path.name for path in (study / "checkpoints").iterdir()] == ["b.pt"]


def test_a_whole_study_is_whole(study: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["surgery", "doctor", str(study)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and capsys.readouterr().out == f"{study} is whole\n"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(
    number: int, study: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, content: bytes) -> int:
        raise OSError(number, os.strerror(number), str(self))

    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    monkeypatch.setattr(Path, "write_bytes", fail)
    assert refused("resume", study) == f"{study} cannot be written: {os.strerror(number)}"
    monkeypatch.undo()
    assert before == {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}


def test_a_ledger_that_cannot_be_written_keeps_what_it_has(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, before = Folder.open(study), names(study)
    write = ledger.os.fsync
    monkeypatch.setattr(ledger.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(StudyError, match=r"cells\.jsonl cannot be written \(No space left\); what had ended before"):
        folder.ended(Cell("original", 9, test=True), {"failure": "x"})
    monkeypatch.setattr(ledger.os, "fsync", write)
    path = study / "cells.jsonl"
    path.write_bytes(path.read_bytes()[:-30])  # what of the line came to the disk
    assert names(study) == before
    folder.ended(Cell("original", 8, test=True), {"failure": "x"})
    assert sorted(names(study)) == sorted([*before, "original-seed-8"])


def test_what_the_system_refuses_is_one_sentence(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(study / "report.html"))

    monkeypatch.setattr(api.conduct, "write_report", full)
    with pytest.raises(StudyError) as error:
        api.report(study)
    assert str(error.value) == f"{study}/report.html cannot be used: No space left on device"


def test_a_comparison_beside_a_running_study_changes_nothing(study: Path) -> None:
    before = (study / "study.json").read_bytes()
    with Folder.open(study).locked():
        for change in (
            partial(api.compare, seeds=3),
            partial(api.resume, trials=9),
        ):
            with pytest.raises(StudyError, match="is being run by another process"):
                change(study, quiet=True)
    assert (study / "study.json").read_bytes() == before


def test_a_new_study_knows_its_settings(tmp_path: Path) -> None:
    Folder.make(tmp_path / "s", Settings(epochs=3), LAYERS)
    assert about.read_copy(tmp_path / "s") == about.read(tmp_path / "s")


def test_lines_of_another_study_are_set_aside(study: Path, tmp_path: Path) -> None:
    """A ledger that was pasted together, or a study.json of another study: no number of it is mixed in."""
    other = made.study(tmp_path / "other", LAYERS, trials=2, top=1, seeds=1, epochs=3, space="removal", arms=ARMS)
    foreign = other.records("search")[0]
    before = (study / "cells.jsonl").read_bytes()
    ledger.add(study / "cells.jsonl", foreign.cell, foreign.result, other.identity)
    with pytest.raises(
        StudyError, match=r"line \d+ of .*cells.jsonl is of another study than the study.json beside it"
    ):
        Folder.open(study).records()
    for finding in doctor.examine(study):
        assert finding.mend is not None
        finding.mend()
    assert (study / "cells.jsonl").read_bytes().rstrip() == before.rstrip()
    assert other.identity.encode() in (study / "cells.jsonl.damaged").read_bytes()

    for name in (about.NAME, about.COPY):
        shutil.copy(other.path / name, study / name)
    with pytest.raises(StudyError, match=r"line 1 of .* is of another study"):
        Folder.open(study).records()


@pytest.mark.parametrize("wrong", [{"seeds": 10**6}, {"seeds": 2.5}, {"seeds": "many"}, {"top": -1}, {"seeds": 0}])
def test_a_setting_that_is_refused_is_not_kept(study: Path, wrong: dict[str, Any]) -> None:
    before = [(study / name).read_bytes() for name in (about.NAME, about.COPY)]
    with pytest.raises(StudyError, match=r"seeds is|top is"):
        Folder.open(study).changed(**wrong)
    assert [(study / name).read_bytes() for name in (about.NAME, about.COPY)] == before
    assert Folder.open(study).settings.seeds == 2


def test_a_network_of_another_size_is_not_given_out(study: Path) -> None:
    """As where one file was copied over another."""
    result = api.open(study)
    save(fresh(build(Settings())), network_of("original-seed-1", study))
    with pytest.raises(StudyError, match=r"original-seed-1.pt is another network: it has .* parameters, and that of"):
        result.network(arm="original", seed=1)

"""What is wrong in a study's folder, and what of it can be mended without losing anything.

What was trained is in the ledger, and all else follows from it: databases are made again, files that are damaged are
set aside (never deleted, but for checkpoints, which cost time alone), and runs whose line is lost are run again by
``resume``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from network_surgery.ops.errors import reason_of
from network_surgery.ops.network import sealed
from network_surgery.study.errors import StudyError
from network_surgery.study.store import about, ledger
from network_surgery.study.store.folder import Folder, checkpoints_of, held, network_of, write_whole
from network_surgery.study.terminal import say_path
from network_surgery.study.training import checkpoint, values


@dataclass(frozen=True)
class Finding:
    """``wrong``: what is wrong; ``remedy``: what is done about it, by ``mend`` (None: nothing needs to be)."""

    wrong: str
    remedy: str
    mend: Callable[[], None] | None = None


def examine(study: Path) -> Iterator[Finding]:
    """What is wrong with a study, one after the other; each is to be mended before the next is asked for.

    Raises:
        StudyError: there is no study, another process runs it, or what it is cannot be known any more.
    """
    with held(study):
        yield from _about(study)
    folder = Folder.open(study)
    for path, right in folder.misplaced():
        yield Finding(f"{path} is not a {right}", "it is moved away", lambda path=path: _aside(path))  # type: ignore[misc]
    with folder.locked():
        yield from _ledger(folder)
        yield from _databases(folder)
        yield from _networks(folder)
        yield from _checkpoints(folder)


def mend(study: Path, dry_run: bool, console: Console) -> None:
    """Says what is wrong with a study and mends it, or, for a ``dry_run``, says the first thing alone.

    Raises:
        StudyError: something is not mended, for a dry run; or as ``examine``.
    """
    mended, last = 0, f"{study} is whole"
    for finding in examine(study):
        say_path(console, f"{finding.wrong}: {finding.remedy}")
        if finding.mend is None:
            last = "nothing else is wrong"
            continue
        if dry_run:
            raise StudyError(f"{study} is damaged; surgery doctor {study} mends it")
        finding.mend()
        mended += 1
    say_path(console, f"mended; go on with surgery resume {study}" if mended else last)


def _about(study: Path) -> Iterator[Finding]:
    try:
        about.read(study)
    except StudyError as error:
        try:
            kept = about.read_copy(study)
        except StudyError:
            raise error from None
        wrong = str(error).partition("; surgery doctor")[0]
        yield Finding(wrong, "its copy is put back", lambda: _put_back(study, kept))
        return
    try:
        about.read_copy(study)
    except StudyError:
        content = about.read(study)
        if "checksum" in content:  # else it is of an earlier version, which kept none
            yield Finding(
                f"{study / about.COPY}, the copy of study.json, is not whole", "it is written anew",
                lambda: about.write(study, content, write_whole),
            )  # fmt: skip


def _put_back(study: Path, kept: dict[str, object]) -> None:
    if (study / about.NAME).exists():
        _aside(study / about.NAME)
    about.write(study, kept, write_whole)


def _ledger(folder: Folder) -> Iterator[Finding]:
    path = folder.ledger
    lines = list(ledger.lines(path, folder.identity))
    damaged = [line for line in lines if line.wrong]
    if not damaged:
        return
    aside = path.with_name(f"{path.name}.damaged")

    def mend() -> None:
        with aside.open("ab") as file:
            file.write(b"".join(line.content + b"\n" for line in damaged))
        write_whole(path, b"\n".join(line.content for line in lines if not line.wrong))

    first, others = damaged[0], f", and {len(damaged) - 1} more lines" if damaged[1:] else ""
    yield Finding(
        f"line {first.number} of {path} {first.wrong}{others}",
        f"what is damaged goes to {aside.name}, and surgery resume runs it again", mend,
    )  # fmt: skip


def _databases(folder: Folder) -> Iterator[Finding]:
    if folder.mlflow.exists() and (reason := _find_damage(folder.mlflow)):
        yield Finding(
            f"{folder.mlflow} is damaged ({reason})", "it is set aside; the ledger has all that it had",
            lambda: _aside(folder.mlflow),
        )  # fmt: skip
    if folder.settings.storage is not None or not folder.settings.searches:
        return
    known = {record.cell.trial: record for record in folder.records("search") if record.cell.trial is not None}
    if not folder.optuna.exists():
        return  # resume makes it again
    wrong = _find_damage(folder.optuna)
    if not wrong:
        try:
            _compare(folder, known)
        except StudyError as error:
            wrong = str(error).partition("; surgery doctor")[0].removeprefix(f"{folder.optuna} ")
    if wrong:
        yield Finding(
            f"{folder.optuna}: {wrong}", "it is set aside, and surgery resume makes it again from the ledger",
            lambda: _aside(folder.optuna),
        )  # fmt: skip


def _compare(folder: Folder, known: dict[int, ledger.Record]) -> None:
    """Raises StudyError where Optuna's trials are not the ledger's."""
    import optuna

    from network_surgery.study.search.sampled import check_same
    from network_surgery.study.search.storage import open_storage

    storage = open_storage(None, folder.optuna)
    names = optuna.get_all_study_names(storage)
    for name in names[:1]:  # a process that was killed may leave another one, which does not count
        trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        check_same(known, {trial.number: trial for trial in trials}, folder.optuna)


def _find_damage(database: Path) -> str:
    """What SQLite says is wrong with a database; nothing where it is whole. Raises StudyError where it is locked."""
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise StudyError(f"{database} is locked; end the program that holds it") from None
        return str(error)
    return "" if found == "ok" else " ".join(str(found).split())[:80]


def _networks(folder: Folder) -> Iterator[Finding]:
    for record in folder.records():
        if record.finished and "network" in record.result:
            path = folder.path / record.result["network"]
            if wrong := _find_broken_seal(path):
                yield Finding(
                    f"the network of {record.cell.name}, {record.result['network']}, {wrong}",
                    "its results stand" if not path.exists() else "it is set aside, and its results stand",
                    None if not path.exists() else lambda path=path: _aside(path),  # type: ignore[misc]
                )
            try:
                folder.test_values(record)
            except StudyError as error:
                path = values.place(network_of(record.result.get("same_as") or record.cell, folder.path))
                yield Finding(
                    str(error).partition("; surgery doctor")[0], "it is set aside, and comparisons go without it",
                    lambda path=path: _aside(path),  # type: ignore[misc]
                )  # fmt: skip


def _checkpoints(folder: Folder) -> Iterator[Finding]:
    place = checkpoints_of(folder.path)
    for path in sorted(place.glob("*.pt")) if place.is_dir() else ():
        if wrong := _find_broken_seal(path):
            yield Finding(
                f"the checkpoint {path.name} {wrong}", "it is removed, which costs time alone",
                lambda path=path: checkpoint.discard(path),  # type: ignore[misc]
            )  # fmt: skip


def _find_broken_seal(path: Path) -> str:
    """What is wrong with a file of tensors, in words; nothing where it is whole."""
    try:
        with path.open("rb") as file:
            sealed.check(file)
    except FileNotFoundError:
        return "is missing"
    except sealed.Damaged as error:
        return f"is damaged: {error}"
    except OSError as error:
        return f"cannot be read: {reason_of(error)}"
    return ""


def _aside(path: Path) -> None:
    """Gives what lies there another name, and what SQLite keeps beside a database with it."""
    for each in (path, *(path.with_name(path.name + end) for end in ("-journal", "-wal", "-shm"))):
        with suppress(FileNotFoundError):
            places = (each.with_name(f"{each.name}.moved{number or ''}") for number in range(1000))
            each.rename(next(place for place in places if not place.exists()))

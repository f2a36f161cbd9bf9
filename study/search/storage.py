"""Where Optuna keeps the trials of a search: a database in the study's folder, or a storage of the user's.

The password of a database's URL is in no file: it is taken from the environment when the storage is opened.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.config import PASSWORD
from network_surgery.study.errors import StudyError

JOURNAL = "journal:"
#: The databases whose connections do not wait for the disk.
_OWN: set[Path] = set()


def open_storage(uri: str | None, database: Path) -> BaseStorage:
    """The storage at this URI, or the file ``database`` where there is none.

    Raises:
        StudyError: it cannot be reached, or is of no kind that Optuna knows; no password is repeated.
    """
    if uri is None:
        return _own(database)
    if uri in ("sqlite:", "sqlite:/", "sqlite://", "sqlite:///"):  # SQLAlchemy's names of a database in memory
        raise StudyError(f"storage is {uri!r}, which would end with the process; give sqlite:////PATH/optuna.db")
    secret = os.environ.get(PASSWORD)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage: BaseStorage
            if uri.startswith(JOURNAL):
                storage = JournalStorage(JournalFileBackend(uri.removeprefix(JOURNAL)))
            else:
                storage = RDBStorage(_with_password(uri, secret))
            optuna.get_all_study_names(storage)
    except Exception as error:  # whatever Optuna, SQLAlchemy and a database's driver raise
        pass_on_memory(error)
        reason = first_line(error.__cause__ or error)
        reason = reason.replace(secret, "***") if secret else reason
        raise StudyError(
            f"Optuna's storage {uri} cannot be opened ({reason}); give a URL such as sqlite:////PATH/optuna.db or "
            f"postgresql://USER@HOST/DATABASE, its password in {PASSWORD}, or journal:PATH"
        ) from None
    return storage


def _own(database: Path) -> BaseStorage:
    """The file of a study's folder."""
    hurry(database)
    try:
        storage = RDBStorage(address(database))
        optuna.get_all_study_names(storage)
    except StudyError:
        raise
    except Exception as error:  # whatever Optuna, SQLAlchemy and SQLite raise
        pass_on_memory(error)
        reason = first_line(error.__cause__ or error)
        remedy = (
            "end the program that holds it"
            if "locked" in reason
            else f"surgery doctor {database.parent} makes it again from the ledger"
        )
        raise StudyError(f"{database} cannot be opened ({reason}); {remedy}") from None
    return storage


def hurry(database: Path) -> None:
    """From here on this process's connections to a database of a study's folder do not wait for the disk.

    A killed process loses nothing by that. What a machine that loses its power does to the file is made good from the
    ledger, which does wait.
    """
    if not _OWN:
        event.listen(Engine, "connect", _connect)
    _OWN.add(database.resolve())


def _connect(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        files = [file for _, name, file in connection.execute("PRAGMA database_list") if name == "main"]
        if files and Path(files[0]).resolve() in _OWN:
            connection.execute("PRAGMA synchronous = OFF")


def address(database: Path, driver: str = "sqlite") -> str:
    """The URL of a database file, whatever its path is made of.

    >>> address(Path("/a?b/c d.db"))
    'sqlite:////a%3Fb/c d.db'

    Raises:
        StudyError: an old SQLAlchemy cannot name it.
    """
    url = URL.create(driver, database=str(database)).render_as_string(hide_password=False)
    if make_url(url).database != str(database):
        raise StudyError(f"SQLAlchemy before 2.1 cannot name {database}; install a later one, or choose another --out")
    return url


def _with_password(uri: str, secret: str | None) -> str:
    url = make_url(uri)
    if secret is None or url.get_backend_name() == "sqlite":
        return uri
    return url.set(password=secret).render_as_string(hide_password=False)

"""The one place that talks to MLflow: one parent run a study, one child run a cell.

A listener on the driver puts what it hears into a queue; a thread of its own writes it in batches (``tracker``). What
is written is made by functions of plain data: what a run is called and tagged (``names``), the metrics of an epoch and
of an outcome (``measures``), the samples as MLflow's datasets (``inputs``), a final network as its model (``network``),
the machine's load (``machine``), and the views that its page of runs opens with (``views``). Workers know nothing of
MLflow: a final network reaches it as a file in the study's folder.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from network_surgery.study import secrets
from network_surgery.study.errors import StudyError
from network_surgery.study.search.storage import address
from network_surgery.study.store.folder import Folder

__all__ = ["check_server", "default_uri", "page"]

EXPERIMENT = "network-surgery"
#: MLflow's own variables: a request that it repeats by itself would make a run twice, and a study waits for none.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each run, among a study's own
}


def default_uri(folder: Folder) -> str:
    """Where a study is tracked: the URI of its settings, with its password, else a database beside its results."""
    uri = folder.settings.tracking_uri
    # By this name MLflow makes no folders, which it would call by their quoted names.
    return address(folder.mlflow, "sqlite+pysqlite") if uri is None else secrets.whole(uri, folder.path)


def check_server(uri: str | None, folder: Path = Path()) -> None:
    """Raises StudyError where tracking is to go somewhere that does not answer or is no place for it.

    ``folder``: the study's, which may hold the password. Nothing is made where there is no database yet.
    """
    if uri is None:
        return
    if reason := _local(uri) if uri.startswith("sqlite:") else _remote(secrets.whole(uri, folder)):
        raise StudyError(
            f"nothing can be tracked at {uri} ({reason}); give the address of an MLflow server or "
            "sqlite:////PATH/mlflow.db, or leave out --tracking-uri"
        )


def _local(uri: str) -> str:
    """Why a file cannot be the database; empty where it can."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        name = make_url(uri).database
    except (ArgumentError, ValueError) as error:
        return str(error)
    if not name or name == ":memory:":
        return "it would end with the process"
    path = Path(name)
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if path.is_dir():
        return f"{path} is a folder"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} cannot be written"
    if path.exists():
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
                database.execute("SELECT name FROM sqlite_master").fetchall()
        except sqlite3.Error as error:
            return f"{path}: {error}"
    return ""


def _remote(uri: str) -> str:
    """Why nothing can be tracked there; empty where it can. A server is asked as MLflow asks, with its credentials."""
    import mlflow

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if uri.startswith("file:") or not ("://" in uri or uri.startswith("databricks")):  # a folder: MLflow would make it
        place = Path(uri.removeprefix("file:").removeprefix("//"))
        if not place.is_dir():
            return f"there is no folder {place}"
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # whatever MLflow and its stores make of a URI
        away = error.__cause__ or error.__context__
        if isinstance(away, OSError):  # what requests raises; MLflow repeats all that it says
            return type(away).__name__
        return secrets.hide((str(error).splitlines() or [type(error).__name__])[0])
    return ""


def page(folder: Folder) -> str:
    """Where a study's runs are, to append to the address of an MLflow server that shows its database."""
    import mlflow

    from network_surgery.study.search.tracking.views import first

    experiment = mlflow.MlflowClient(default_uri(folder)).get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return "/"
    view = first(folder.metric)
    return f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}"

"""The one place that talks to MLflow: one parent run a study, one child run a cell.

A listener on the driver puts what it hears into a queue; a thread of its own writes it in batches (``tracker``). What
is written is made by functions of plain data: what a run is called and tagged (``names``), the metrics of an epoch and
of an outcome (``measures``), the samples as MLflow's datasets (``inputs``), a final network as its model (``network``),
the machine's load (``machine``), and the views that its page of runs opens with (``views``). Workers know nothing of
MLflow: a final network reaches it as a file in the study's folder.
"""

from __future__ import annotations

from network_surgery.study.errors import StudyError
from network_surgery.study.store.folder import Folder

__all__ = ["check_server", "default_uri", "page"]

EXPERIMENT = "network-surgery"


def default_uri(folder: Folder) -> str:
    """Where a study is tracked: the URI of its settings, else a database beside its results."""
    return folder.settings.tracking_uri or f"sqlite:///{folder.mlflow}"


def check_server(uri: str | None) -> None:
    """Raises StudyError where tracking is to go somewhere that does not answer or is no place for it."""
    if uri is None:
        return
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            answer = requests.get(f"{uri.rstrip('/')}/health", timeout=5)
            reason = "" if answer.ok else f"it answers {answer.status_code}"
        except requests.RequestException as error:
            reason = type(error).__name__
    else:
        import mlflow

        try:
            mlflow.MlflowClient(uri).search_experiments(max_results=1)
            reason = ""
        except Exception as error:  # whatever MLflow and its stores make of a URI
            reason = str(error).splitlines()[0]
    if reason:
        raise StudyError(
            f"nothing can be tracked at {uri} ({reason}); give the address of an MLflow server or "
            "sqlite:////PATH/mlflow.db, or leave out --tracking-uri"
        )


def page(folder: Folder) -> str:
    """Where a study's runs are, to append to the address of an MLflow server that shows its database."""
    import mlflow

    from network_surgery.study.search.tracking.views import first

    experiment = mlflow.MlflowClient(default_uri(folder)).get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return "/"
    view = first(folder.metric)
    return f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}"

"""What a run is called, and the tags that runs are filtered by."""

from __future__ import annotations

import os

from network_surgery import study
from network_surgery.study.arms import arm_name
from network_surgery.study.store.folder import Folder
from network_surgery.study.store.words import short_name
from network_surgery.study.task.fingerprint import Fingerprint
from network_surgery.study.training.cell import Cell

#: Characters that MLflow's databases keep of a run's name.
LONGEST = 250
STUDY, CELL = "network_surgery.study", "network_surgery.cell"


def parent_name(folder: Folder) -> str:
    """The study's folder, network and data, as in ``digits-20260102-101500: small_cnn on digits``."""
    return f"{folder.path.name}: {folder.settings.short_subject}"


def run_name(cell: Cell, schedule: str = "") -> str:
    """The arm, the seed, and what the schedule does that it is about, cut off where MLflow takes no more.

    >>> run_name(Cell("restart_flops", 3, trial=7), "min_weight to ½ of fc1 at 2ep")
    'equal FLOPs, seed 3: min_weight to ½ of fc1 at 2ep (trial 7)'
    """
    name = arm_name(cell.arm) + ("" if cell.arm == "search" else f", seed {cell.seed}")
    name += f": {schedule}" if schedule else ""
    name += "" if cell.trial is None else f" (trial {cell.trial})"
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 2]} …"


def study_tags(folder: Folder) -> dict[str, str]:
    """The parent run's."""
    about = {STUDY: folder.identity, CELL: "study", "folder": str(folder.path)} | _preset(folder)
    return about | ({"data": str(Fingerprint(**folder.data))} if folder.data else {})


def cell_tags(folder: Folder, cell: Cell, parent: str, schedule: str = "") -> dict[str, str]:
    """A child run's: ``arm``, ``trial``, ``operation`` (all that its schedule names, joined by commas), ``preset``, and
    the ``schedule`` that it is about in a few words.
    """
    operations = dict.fromkeys(short_name(step["op"]) for step in cell.schedule)
    about = {"arm": cell.arm, "operation": ", ".join(operations) or "none"}
    about |= {} if cell.trial is None else {"trial": str(cell.trial)}
    about |= {"schedule": schedule or "none"}
    return dict([cell_tag(folder, cell)]) | {"mlflow.parentRunId": parent} | about | _preset(folder)


def cell_tag(folder: Folder, cell: Cell) -> tuple[str, str]:
    """The tag by which a cell's run is found again, and its value."""
    return CELL, f"{folder.identity}/{cell.name}"


def origin_tags() -> dict[str, str]:
    """What MLflow itself notes of a run: the user, the command, and the git commit that is checked out.

    The commit is that of the folder in which the command runs, else that of this package's source; none where neither
    is in a git work tree.
    """
    from mlflow.tracking.context.default_context import DefaultRunContext
    from mlflow.utils.git_utils import get_git_commit
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    commit = get_git_commit(os.getcwd()) or get_git_commit(os.path.dirname(study.__file__))
    return DefaultRunContext().tags() | ({MLFLOW_GIT_COMMIT: commit} if commit else {})


def _preset(folder: Folder) -> dict[str, str]:
    return {"preset": folder.preset} if folder.preset else {}

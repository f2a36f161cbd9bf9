"""A check of every node of a Ray cluster from the command line: the cluster's half of ``surgery doctor``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.errors import StudyError
from network_surgery.study.search import cluster
from network_surgery.study.search.nodes import slots, trial_resources
from network_surgery.study.search.preflight import Report, preflight
from network_surgery.study.store.folder import Folder
from network_surgery.study.task import build
from network_surgery.study.terminal import say


def check_cluster(address: str | None, study: Path | None, answer: Console, narration: Console) -> list[Report]:
    """Says of every node of the cluster at ``address`` whether it can train, and how many runs fit at once.

    ``study``: a study's folder, whose model, data and folder are tried, too, and whose share must fit.

    Raises:
        StudyError: there is no such cluster or study, or a node cannot train.
    """
    folder = None if study is None else Folder.open(study)
    known = Settings() if folder is None else folder.settings
    settings = replace(known, address=address or known.address)
    task = None if folder is None else build(settings)
    with cluster.joined(settings, lambda words: say(narration, words)) as nodes:
        share = trial_resources(settings, nodes)
        say(narration, f"checking {format_count(len(nodes.alive()), 'node')}")
        reports = preflight(nodes, settings, task, None if folder is None else folder.path, share)
        for report in reports:
            say(answer, report.sentence)
        for node in nodes.alive():
            if not node.slots(share):
                say(answer, f"{nodes.title(node.id)}: a training run takes more than it has")
        say(answer, f"{slots(nodes, share, settings.workers_per_trial)} training runs fit at once")
    if broken := [report for report in reports if report.reason is not None]:
        raise StudyError(f"{len(broken)} of {len(reports)} nodes cannot train and would be avoided")
    return reports

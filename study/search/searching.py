"""What is still to run of a study's search: trials, the original beside them, and the race of the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from network_surgery.study.config import Settings
from network_surgery.study.search import comparing
from network_surgery.study.search.nodes import Node, asynchronous, trial_resources
from network_surgery.study.search.once import pays
from network_surgery.study.search.sampled import Sampled, listed_cells
from network_surgery.study.search.sources import Chain, Listed, Repeated, Source, Together
from network_surgery.study.store.folder import Folder, checkpoint_of
from network_surgery.study.store.words import describe
from network_surgery.study.training.cell import Cell


def settle_sampling(settings: Settings, nodes: Iterable[Node]) -> Settings:
    """The settings with the sampling that suits the cluster, where they leave that open.

    Raises:
        StudyError: no node can give what a trial takes.
    """
    share = trial_resources(settings, nodes)
    if settings.sampling != "auto":
        return settings
    busy = asynchronous(nodes, share, settings.workers_per_trial)
    return replace(settings, sampling="asynchronous" if busy else "generations")


def listed_schedules(folder: Folder) -> list[Cell]:
    """The schedules that are all compared, with no search before; empty where Optuna is to search."""
    return listed_cells(folder.settings, folder.layers, folder.original)


def search(
    folder: Folder, per_epoch: int, room: Callable[[], int], tell: Callable[[str], None] = lambda words: None
) -> Source:
    """What is still to run of the search: trials, and the race of the best of them.

    And the original: before the trials where the budget compares with it, beside them where that saves more epochs than
    it costs. ``room``: the number of trials that may be under way, as ``Sampled`` has it. ``tell`` is given a line
    where Optuna's trials were made again from the ledger.
    """
    known = {record.cell.trial: record.result for record in folder.records("search") if record.cell.trial is not None}
    settings = folder.settings
    sampled = Sampled(
        settings, folder.layers, folder.optuna, known, describe, folder.metric, folder.identity,
        lambda: comparing.budget_of(folder), folder.original, room,
    )  # fmt: skip
    if again := sampled.catch_up(folder.records("search")):
        tell(f"Optuna's storage lacked {again} trials of the ledger; it has them again")
    before, original = comparing.first(folder), Cell("original", settings.seed)
    there = bool(before) or any(r.finished and r.cell.name == original.name for r in folder.records("original"))
    begun = checkpoint_of(original, settings, folder.path).exists()
    worth = bool(sampled.missing) and not there and (begun or pays(sampled, settings, per_epoch))
    best = race(folder, comparing.expect(settings) if sampled.missing else None)
    return Chain(Listed(before), Together(Listed([original] if worth else []), sampled), best)


def race(folder: Folder, expected: int | None = None) -> Repeated:
    """What is still to run of the race; ``expected``: how much that is at most, while the search has not ended."""

    def ask() -> tuple[Sequence[Cell], int]:
        now = comparing.race_of(folder)
        return now.missing, now.left

    return Repeated(ask, ask()[1] if expected is None else expected)

"""Which training runs a comparison needs: the schedules that are chosen from a search, and their arms (``study.arms``).

The schedules are chosen on validation. One training run says little of a schedule, so the best few of a search race
first: they are repeated on more seeds, and after each seed the worse half of them is left behind (successive halving:
Jamieson and Talwalkar 2016, with seeds in the place of epochs). The comparison's seeds are neither the search's nor the
race's, so that luck in the search is not counted for surgery. Arms have the same seeds and data order; rivals follow
when the surgery of their seed has ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from network_surgery.study.arms import RIVALS, rivals
from network_surgery.study.config import REPEATS_FROM, Settings
from network_surgery.study.search import front
from network_surgery.study.search.budget import Budget, mean, needs_original, original_cell
from network_surgery.study.search.sources import Listed
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.store.ledger import SEARCHING
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.cell import Cell

#: The arm of a search trial that is repeated on another seed.
RACING = SEARCHING[1]
#: Seeds → the budget, by what the original has reached with these seeds.
Budgets = Callable[[Collection[int]], Budget]


@dataclass(frozen=True)
class Race:
    """How a race stands: the schedules from the best to the worst, the cells that its round still needs, and how many
    there will be at most, with those.
    """

    order: Sequence[Record]
    missing: Sequence[Cell] = ()
    left: int = 0


def find_chosen(folder: Folder) -> list[Record]:
    """The schedules of a study's search that are compared (see ``choose``)."""
    return choose(
        folder.records("search"), folder.settings, folder.metric, folder.records(RACING), lambda s: budget_of(folder, s)
    )


def choose(
    trials: Sequence[Record],
    settings: Settings,
    metric: Metric = ACCURACY,
    repeats: Sequence[Record] = (),
    budgets: Budgets | None = None,
) -> list[Record]:
    """The best schedules of a search that changed the network, at most ``settings.top``.

    Those within the budget; where none is, those nearest to it. With one objective those that came first in the race
    (``repeats`` are its cells), ordered by the mean over their seeds (the smaller network where it is equal), the best
    of every operation first, since two that hardly differ answer one question twice. With several objectives those of
    the front (see ``study.search.front``) that stand for it: the best in the first objective, then what adds most
    hypervolume.
    """
    return list(race(trials, settings, metric, repeats, budgets).order[: settings.top])


def race(
    trials: Sequence[Record],
    settings: Settings,
    metric: Metric = ACCURACY,
    repeats: Sequence[Record] = (),
    budgets: Budgets | None = None,
) -> Race:
    """How the schedules of a search stand, by what has ended so far. Only the feasible ones, where there are any.

    ``settings.finalists`` of them are repeated on one more seed after the other, ``settings.racing`` with the search's
    own; each seed halves them, down to ``settings.top``. With several objectives nothing is repeated.
    """
    field = _Field(settings, metric, budgets or (lambda seeds: Budget((), metric)))
    able = [record for record in trials if record.changed]
    if len(settings.objective) > 1:
        return Race(field.front(able))
    again = {(record.cell.trial, record.cell.seed): record for record in repeats if not record.lost}
    order = field.order([[record] for record in able])
    racing, left_behind = order[: settings.finalists], order[settings.finalists :]
    sizes = _sizes(len(racing), settings)
    for turn, (_, after) in enumerate(sizes):
        seed = repeat_seed(settings, turn)
        cells = [_repeat(entry[0].cell, seed) for entry in racing]
        if missing := [cell for cell in cells if (cell.trial, seed) not in again]:
            left = len(missing) + sum(size for size, _ in sizes[turn + 1 :])
            return Race(field.within([*racing, *left_behind]), missing, left)
        found = [[*entry, again[entry[0].cell.trial, seed]] for entry in racing]
        ordered = field.order([entry for entry in found if entry[-1].finished])
        lost = [entry for entry in racing if not again[entry[0].cell.trial, seed].finished]
        racing, left_behind = ordered[:after], [*ordered[after:], *left_behind, *lost]
    return Race(field.within([*racing, *left_behind]))


def repeat_seed(settings: Settings, turn: int) -> int:
    """The seed of a turn of the race, from 0."""
    return settings.seed + REPEATS_FROM + turn


def race_of(folder: Folder) -> Race:
    """How the race of a study's search stands; where the budget needs them, with the originals of its seeds."""
    settings = folder.settings
    found = race(
        folder.records("search"), settings, folder.metric, folder.records(RACING), lambda s: budget_of(folder, s)
    )
    if not needs_original(settings):
        return found
    seeds = sorted({cell.seed for cell in found.missing} - _originals(folder).keys())
    originals = [original_cell(settings, seed) for seed in seeds]
    return replace(found, missing=[*originals, *found.missing], left=found.left + len(originals))


def first(folder: Folder) -> list[Cell]:
    """The original that is trained before the trials, where the budget compares with it and it is not there yet."""
    if not needs_original(folder.settings) or folder.settings.seed in _originals(folder):
        return []
    return [original_cell(folder.settings)]


def expect(settings: Settings) -> int:
    """The cells of a race at most, before the search has ended."""
    if not settings.searches or len(settings.objective) > 1:
        return 0
    sizes = _sizes(min(settings.finalists, settings.trials), settings)
    return sum(size for size, _ in sizes) + len(sizes) * needs_original(settings)


def budget_of(folder: Folder, seeds: Collection[int] = ()) -> Budget:
    """A study's budget, by what the original has reached in the search with these seeds, by default with its own."""
    originals = _originals(folder) if needs_original(folder.settings) else {}
    there = [originals[seed] for seed in seeds or [folder.settings.seed] if seed in originals]
    known = mean(there) if there else {}
    return Budget.of(folder.settings, folder.metric, {**known, **folder.original})


def _originals(folder: Folder) -> dict[int, dict[str, Any]]:
    """Seed → the outcome of the original, as the search trained it."""
    return {r.cell.seed: r.result for r in folder.records("original") if r.finished and not r.cell.test}


def _repeat(cell: Cell, seed: int) -> Cell:
    return replace(cell, arm=RACING, seed=seed, fork=None, keep=None)


def _sizes(count: int, settings: Settings) -> list[tuple[int, int]]:
    """How many schedules run in each turn of a race, and how many of them stay."""
    sizes = []
    for _ in range(settings.racing - 1):
        if count <= settings.top:
            break
        sizes.append((count, max(settings.top, math.ceil(count / 2))))
        count = sizes[-1][1]
    return sizes


#: A trial and its repeats.
Entry = list[Record]


@dataclass(frozen=True)
class _Field:
    """What schedules are ordered by."""

    settings: Settings
    metric: Metric
    budgets: Budgets

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        """From the best to the worst; the best of each operation first, up to the number that is compared."""
        means = [mean(record.result for record in entry) for entry in entries]
        far = [self.distance(entry) for entry in entries]
        losses = front.losses(means, self.settings.objective, self.metric)[:, 0].tolist()
        places = sorted(range(len(entries)), key=lambda i: (far[i], losses[i], means[i]["parameters"]))
        if any(not each for each in far):
            places = [place for place in places if not far[place]]
        leading: dict[str, int] = {}
        for place in places:
            leading.setdefault(str(entries[place][0].cell.schedule[0]["op"]), place)
        first = list(leading.values())[: self.settings.top]
        return [entries[place] for place in (*first, *(place for place in places if place not in first))]

    def within(self, entries: Sequence[Entry]) -> list[Record]:
        """The trials that are within the budget by their means, in this order; all where none is."""
        return [entry[0] for entry in entries if not self.distance(entry)] or [entry[0] for entry in entries]

    def front(self, able: Sequence[Record]) -> list[Record]:
        """The trials that stand for the front of those within the budget, or the nearest to it."""
        within = [record for record in able if not self.distance([record])]
        if not within:
            return sorted(able, key=lambda record: self.distance([record]))
        losses = front.losses([record.result for record in within], self.settings.objective, self.metric)
        return [within[place] for place in front.leading(losses, self.settings.top)]

    def distance(self, entry: Entry) -> float:
        """How far the mean of a trial and its repeats is beyond the budget; 0 where it is within."""
        found = mean(record.result for record in entry)
        return self.budgets([record.cell.seed for record in entry]).distance(found)


def cells(chosen: Sequence[Cell], settings: Settings, done: Iterable[Record]) -> Listed:
    """The training runs that the comparison of these schedules still needs, in the arms that the settings ask for.

    Rivals follow when the surgery of their seed has ended; those that learn from the original, when it has, too.
    """
    seeds = range(settings.seed + 1, settings.seed + 1 + settings.seeds)
    ended = {record.cell.name: record for record in done if not record.lost}  # those are tried again
    wanted = []
    for seed in seeds:
        if "original" in settings.arms:
            wanted.append(Cell("original", seed, test=True))
        for cell in chosen:
            wanted.append(Cell("surgery", seed, cell.schedule, trial=cell.trial, params=cell.params, test=True))

    known = set(ended)
    outcomes: dict[int, dict[str, tuple[Cell, dict[str, Any]]]] = {}  # by seed and name, of originals and surgeries

    def follow(cell: Cell, outcome: dict[str, Any]) -> list[Cell]:
        if cell.arm not in ("original", "surgery"):
            return []
        same = outcomes.setdefault(cell.seed, {})
        same[cell.name] = (cell, outcome)
        original = next((found for each, found in same.values() if each.arm == "original"), None)
        surgeries = [each for each in same.values() if each[0].arm == "surgery"]
        if cell.arm == "surgery":
            surgeries = [same[cell.name]]
        found = [rival for each in surgeries for rival in rivals(*each, settings, original)]
        found = [rival for rival in found if rival.name not in known]
        known.update(rival.name for rival in found)
        return found

    missing = [cell for cell in wanted if cell.name not in ended]
    for cell in wanted:
        if cell.name in ended and not ended[cell.name].failed:
            missing += follow(cell, ended[cell.name].result)
    each = sum(arm in settings.arms for arm in RIVALS)
    return Listed(missing, follow, lambda cell: each if cell.arm == "surgery" else 0)

"""Does surgery beat starting over? The same seeds for the original, for surgery, and for restarting.

The schedules come from the search, chosen on validation. Each arm trains for the same number of epochs with the same
seeds and data order; the restart takes the very architecture that surgery of the same seed ended with, from fresh
weights. The test images are read once, at the end of each training. Differences are paired by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ops import Condition
from ops.schedule import parse_when
from study.config import OBJECTIVES, Settings
from study.evidence.results import Folder, Record
from study.evidence.significance import LEVEL, holm, paired
from study.search.sources import Listed, objective
from study.training.run import Cell


def choose(trials: Sequence[Record], settings: Settings) -> list[Record]:
    """The best schedules of a search, at most ``settings.top``, that changed the network: the best of every operation
    first, since two that hardly differ answer one question twice.

    With one objective the best values, the smaller network where they are equal; with several the trials that no other
    trial dominates, the first objective deciding among them.
    """
    sign = [1.0 if OBJECTIVES[name] == "max" else -1.0 for name in settings.objective]
    values = {
        record.cell.name: [s * objective(record.result, name) for s, name in zip(sign, settings.objective, strict=True)]
        for record in trials
        if not record.failed
    }
    able = [r for r in trials if not r.failed and any(map(_changed, r.result["operations"]))]
    if len(settings.objective) > 1:
        able = [r for r in able if not any(_dominates(values[o.cell.name], values[r.cell.name]) for o in able)]
    able.sort(key=lambda record: (values[record.cell.name], -record.result["parameters"]), reverse=True)
    leading = {_operation(record): record for record in reversed(able)}
    rest = [record for record in able if record is not leading[_operation(record)]]
    return [record for record in able if record not in rest][: settings.top] + rest[
        : max(0, settings.top - len(leading))
    ]


def cells(chosen: Sequence[Cell], settings: Settings, done: Iterable[Record]) -> Listed:
    """The trainings that the comparison of these schedules still needs, in the arms that the settings ask for.

    The restarts follow when their surgery has ended.

    The comparison's seeds are not the search's, so that luck in the search is not counted for surgery.
    """
    seeds = range(settings.seed + 1, settings.seed + 1 + settings.seeds)
    ended = {record.cell.name: record for record in done if not record.result.get("lost")}  # those are tried again
    wanted = []
    for seed in seeds:
        if "original" in settings.arms:
            wanted.append(Cell("original", seed, test=True))
        for cell in chosen:
            wanted.append(Cell("surgery", seed, cell.schedule, trial=cell.trial, params=cell.params, test=True))

    def follow(cell: Cell, outcome: dict[str, Any]) -> list[Cell]:
        if cell.arm != "surgery" or "restart" not in settings.arms:
            return []
        restart = Cell(
            "restart", cell.seed, architecture=outcome["architecture"], trial=cell.trial, params=cell.params, test=True
        )
        return [] if restart.name in ended else [restart]

    missing = [cell for cell in wanted if cell.name not in ended]
    for cell in wanted:
        if cell.name in ended and not ended[cell.name].failed:
            missing += follow(cell, ended[cell.name].result)
    expected = sum(cell.arm == "surgery" for cell in missing) if "restart" in settings.arms else 0
    return Listed(missing, follow, expected)


def summarize(folder: Folder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The closing table's rows and a verdict for each schedule, from the folder's finished cells.

    A row: ``arm``, ``trial``, ``label``, ``n``, mean and deviation of test accuracy (0 … 1) and seconds, mean
    parameters and FLOPs, median spike factor, median operation seconds / epoch seconds. A verdict: ``trial``, paired
    ``difference`` of accuracy (surgery − restart) with its 95 % ``interval``, ``n``, ``failed`` seeds, ``untouched``
    seeds (its conditions were never met, so surgery is the original and restarting repeats it), ``p`` and
    ``p_adjusted`` (Holm over the schedules), the ratios of training FLOPs (which repeats on any machine) and of seconds
    (operations included), ``finding``, ``sentence``. Surgery and restart are averaged over the seeds that both have.
    """
    groups: dict[tuple[str, int | None], dict[int, Record]] = {}
    failed: dict[int | None, set[int]] = {}
    for record in folder.records("original", "surgery", "restart"):
        if record.failed:
            failed.setdefault(record.cell.trial, set()).add(record.cell.seed)
        else:
            groups.setdefault((record.cell.arm, record.cell.trial), {})[record.cell.seed] = record
    trials = list(dict.fromkeys(trial for arm, trial in groups if trial is not None))
    ranked = [r.cell.trial for r in choose(folder.records("search"), folder.settings)]
    trials.sort(key=lambda trial: ranked.index(trial) if trial in ranked else len(ranked))
    rows = [_row("original", None, list(groups["original", None].values()))] if ("original", None) in groups else []
    verdicts = []
    for trial in trials:
        surgery, restart = groups.get(("surgery", trial), {}), groups.get(("restart", trial), {})
        seeds = sorted(set(surgery) & set(restart))
        for arm, members in (("surgery", surgery), ("restart", restart)):
            records = [members[seed] for seed in seeds] or list(members.values())
            rows += [_row(arm, trial, records)] if records else []
        if seeds:
            pairs = [(surgery[seed].result, restart[seed].result) for seed in seeds]
            verdicts.append(_verdict(trial, surgery[seeds[0]], pairs, len(failed.get(trial, ()))))
    _decide(verdicts)
    return rows, verdicts


#: The hyperparameters that a schedule in a few words tells.
NUMBERS = ("keep", "grow", "rank", "variance_threshold", "threshold", "fraction", "quality")
WORDS = ("split", "basis", "weights", "strength", "score", "scope", "kind")


def describe(schedule: Sequence[Any]) -> str:
    """A schedule in a few words: each operation with its main hyperparameters, on which layers, when."""
    groups: dict[str, list[Any]] = {}
    for step in schedule:
        known = {key: value for key, value in step.items() if value is not None}
        if {"quality", "threshold"} & set(known):  # they say how much is pruned in place of a fraction
            known.pop("fraction", None)
        numbers = [f"{key} {known[key]:.2g}" for key in NUMBERS if known.get(key)]
        words = [known[key] for key in WORDS if isinstance(known.get(key), str)]
        words += ["published code"] * bool(known.get("published"))
        words += ["repaired by " + " + ".join(known["repair"])] if known.get("repair") else []
        groups.setdefault(f"{step['op']} {', '.join(numbers + words)}".rstrip(), []).append(step)
    parts = []
    for operation, steps in groups.items():
        layers = list(dict.fromkeys(step["layer"] for step in steps))
        moments = [parse_when(step["when"]) for step in steps]
        where = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
        at = ", ".join(dict.fromkeys(str(m) for m in moments if not isinstance(m, Condition)))
        when = " or ".join(dict.fromkeys(_roughly(m) for m in moments if isinstance(m, Condition)))
        parts.append(f"{operation} on {where}" + f" at {at}" * bool(at) + f" when {when}" * bool(when))
    return ", then ".join(parts) or "no operation"


def _roughly(condition: Condition) -> str:
    """A condition in words, its numbers to two digits."""
    threshold, gain = (float(f"{number:.2g}") for number in (condition.threshold, condition.gain))
    return str(replace(condition, threshold=threshold, gain=gain))


def _row(arm: str, trial: int | None, records: Sequence[Record]) -> dict[str, Any]:
    results = [record.result for record in records]
    factors = [event["factor"] for result in results for event in result["spikes"]]
    shares = [
        operation["seconds"] / operation["epoch_seconds"]
        for result in results
        for operation in result["operations"]
        if operation["epoch_seconds"]
    ]
    accuracy = [result["test_accuracy"] for result in results]
    seconds = [result["seconds"] for result in results]
    labels = {"original": "original, uninterrupted", "restart": "restart of the final architecture"}
    return {
        "arm": arm,
        "trial": trial,
        "label": labels.get(arm) or describe(records[0].cell.schedule),
        "n": len(results),
        "accuracy": statistics.fmean(accuracy),
        "accuracy_deviation": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
        "parameters": statistics.fmean(result["parameters"] for result in results),
        "flops": statistics.fmean(result["flops"] for result in results),
        "seconds": statistics.fmean(seconds),
        "seconds_deviation": statistics.stdev(seconds) if len(seconds) > 1 else None,
        "spike_factor": statistics.median(factors) if factors else None,
        "operation_to_epoch": statistics.median(shares) if shares else None,
    }


def _verdict(trial: int, example: Record, pairs: Sequence[tuple[Any, Any]], failed: int) -> dict[str, Any]:
    """The numbers of one schedule; ``_decide`` adds what they mean beside the others."""
    seconds, compute = (
        statistics.fmean(one[key] for one, _ in pairs) / statistics.fmean(other[key] for _, other in pairs)
        for key in ("seconds", "training_flops")
    )
    mean, interval, p = paired([one["test_accuracy"] - other["test_accuracy"] for one, other in pairs])
    ours, theirs = (statistics.fmean(pair[i]["test_accuracy"] for pair in pairs) for i in (0, 1))
    untouched = sum(not one["operations"] for one, _ in pairs)
    return {
        "trial": trial, "label": describe(example.cell.schedule), "n": len(pairs), "failed": failed, "surgery": ours,
        "restart": theirs, "difference": mean, "interval": interval, "p": p, "compute_ratio": compute,
        "time_ratio": seconds, "untouched": untouched,
    }  # fmt: skip


def _decide(verdicts: Sequence[dict[str, Any]]) -> None:
    """Adds ``p_adjusted`` (Holm, over all schedules compared), ``finding`` and ``sentence`` to each verdict."""
    adjusted = holm([verdict["p"] for verdict in verdicts])
    for verdict, p in zip(verdicts, adjusted, strict=True):
        verdict["p_adjusted"] = p
        if verdict["untouched"] == verdict["n"]:
            verdict["finding"] = "the schedule never operated, so there is nothing to compare"
        elif p is None:
            verdict["finding"] = "nothing can be said without a spread between seeds"
        elif p < LEVEL:
            verdict["finding"] = "surgery is better" if verdict["difference"] > 0 else "restarting is better"
        else:
            verdict["finding"] = "no difference was found"
        spread = ""
        if verdict["interval"]:
            low, high = (100 * bound for bound in verdict["interval"])
            spread = f", 95 % interval {low:+.2f} … {high:+.2f}, p = {p:.2g} after Holm"
        lost = f"; {verdict['failed']} more failed in one arm" if verdict["failed"] else ""
        if verdict["untouched"]:
            lost += f"; its condition was never met in {verdict['untouched']}"
        verdict["sentence"] = (
            f"Surgery ({verdict['label']}) ends at {verdict['surgery']:.2%} test accuracy, restarting the same "
            f"architecture at {verdict['restart']:.2%} (paired difference {100 * verdict['difference']:+.2f} "
            f"points{spread}, n = {verdict['n']} seeds{lost}), in {verdict['compute_ratio']:.2f} × the compute and "
            f"{verdict['time_ratio']:.2f} × the seconds: {verdict['finding']}."
        )


def _operation(record: Record) -> str:
    return str(record.cell.schedule[0]["op"])


def _changed(operation: Mapping[str, Any]) -> bool:
    """Whether there were other units or (where weights are pruned) parameters afterwards."""
    return any(operation.get(f"{what}_before") != operation.get(f"{what}_after") for what in ("units", "parameters"))


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)

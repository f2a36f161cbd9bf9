"""Does surgery beat starting over? The same seeds for every arm (``study.arms``).

The schedules come from the search, chosen on validation. Arms have the same seeds and data order; a restart takes the
very architecture that surgery of the same seed ended with, from fresh weights. The test images are read once, at the
end of each training run. Differences are paired by seed (``study.evidence.contrast``).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from network_surgery.study.arms import LABELS, RIVALS
from network_surgery.study.evidence import accounting, time_to_accuracy, wording
from network_surgery.study.evidence.contrast import Contrast, contrast
from network_surgery.study.evidence.converged import convergence
from network_surgery.study.evidence.deciding import OTHER, decide
from network_surgery.study.evidence.state import state
from network_surgery.study.search.comparing import find_chosen
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.store.words import describe
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.records import operations_of, spikes_of

Groups = dict[tuple[str, int | None], dict[int, Record]]


def summarize(folder: Folder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The closing table's rows and a verdict for each schedule, from the folder's finished cells.

    A row: ``arm``, ``trial``, ``label``, ``n``, mean and deviation of the test ``metric`` (accuracies: 0 … 1) and
    seconds, mean parameters, FLOPs, training FLOPs, epochs (sunk ones included), other ``metrics`` by name, latency by
    batch, bytes of the file, peak memory and joules (None where they were not taken), median spike factor, median
    operation seconds / epoch seconds, ``convergence`` (see ``study.evidence.converged``), and the time to targets (see
    ``study.evidence.time_to_accuracy.summary``). Surgery and its rival are averaged over the seeds that both have.

    A verdict is the contrast with the question's rival (see ``study.evidence.contrast``, ``study.evidence.deciding``),
    with ``trial``, ``label``, ``failed`` seeds, ``untouched`` seeds (its conditions were never met, so surgery is the
    original and restarting repeats it), ``sentence`` and ``details``; ``others`` are the contrasts with the other arms,
    in the order in which they are tested, those that answer the other question last. ``also`` is the sentence on that
    question (see ``study.evidence.accounting``), where there is an arm that answers it. Before every training run of
    the comparison has ended nothing is claimed but what an earlier look has shown; ``progress`` is the number that have
    ended, and of how many.
    """
    metric, settings = folder.metric, folder.settings
    groups, failed = _groups(folder)
    trials = list(dict.fromkeys(trial for arm, trial in groups if trial is not None))
    ranked = [r.cell.trial for r in find_chosen(folder)]
    trials.sort(key=lambda trial: ranked.index(trial) if trial in ranked else len(ranked))
    originals = list(groups.get(("original", None), {}).values())
    targets = time_to_accuracy.targets(settings.targets, [record.result for record in originals], metric)
    rows = [_row("original", None, originals, targets, metric)] if originals else []
    verdicts: list[Contrast] = []
    chains: list[list[Contrast]] = []
    parts: list[float] = []
    progress = state(folder)["comparison"]
    whole = progress["ended"] >= progress["of"]
    looks = [range(settings.seed + 1, settings.seed + 1 + seeds) for seeds in folder.looks(whole)]
    order = _order(folder)
    for trial in trials:
        surgery, rival = groups.get(("surgery", trial), {}), groups.get((order[0], trial), {})
        seeds = sorted(set(surgery) & set(rival))
        for arm in ("surgery", *RIVALS):
            members = groups.get((arm, trial), {})
            records = [members[seed] for seed in seeds if seed in members] or list(members.values())
            rows += [_row(arm, trial, records, targets, metric)] if records else []
        if seeds:
            contrasts = [
                contrast(
                    arm, surgery, theirs, targets, metric, question=accounting.of(arm, settings),
                    trained=settings.start == "none", looks=looks, values=folder.test_values,
                )
                for arm in order
                if (theirs := groups.get((arm, None if arm == "original" else trial), {})).keys() & surgery.keys()
            ]  # fmt: skip
            here = [each for each in contrasts if each["accounting"] == contrasts[0]["accounting"]]
            there = [each for each in contrasts if each["accounting"] != contrasts[0]["accounting"]]
            verdicts.append(contrasts[0] | {
                "trial": trial, "label": describe(surgery[seeds[0]].cell.schedule),
                "failed": len(failed.get(trial, ())), "others": [*here[1:], *there],
                "untouched": sum(not operations_of(surgery[seed].result) for seed in seeds),
                "progress": [progress["ended"], progress["of"]],
            })  # fmt: skip
            chains.append([verdicts[-1], *here[1:]])
            parts.append(1 - OTHER if there else 1.0)
            if there:
                chains.append(there)
                parts.append(OTHER)
    decide(chains, metric, whole, [part / len(verdicts) for part in parts])
    for verdict in verdicts:
        verdict["sentence"] = wording.sentence(verdict, metric, folder.unit)
        verdict["details"] = wording.details(verdict, metric, folder.unit)
        for each in verdict["others"]:
            each["sentence"] = wording.other(each, metric, folder.unit)
        other = [each for each in verdict["others"] if each["accounting"] != verdict["accounting"]]
        verdict["also"] = wording.sentence(verdict | other[0], metric, folder.unit) if other else None
    return rows, verdicts


def _groups(folder: Folder) -> tuple[Groups, dict[int | None, set[int]]]:
    """The finished records by arm, trial and seed, and the seeds of each trial that failed in some arm."""
    groups: Groups = {}
    failed: dict[int | None, set[int]] = {}
    for record in folder.records("original", "surgery", *RIVALS):
        if not record.compared:
            continue
        if record.failed:
            failed.setdefault(record.cell.trial, set()).add(record.cell.seed)
        else:
            groups.setdefault((record.cell.arm, record.cell.trial), {})[record.cell.seed] = record
    return groups, failed


def _order(folder: Folder) -> list[str]:
    """The arms that surgery is held against, in the order in which they are tested, the two questions' rivals first."""
    arms = [*folder.settings.arms, *(arm for arm in RIVALS if arm not in folder.settings.arms)]
    first = [
        accounting.main(folder.settings, each)
        for each in (accounting.find_accounting(folder.settings), "zero", "given")
    ]
    return [arm for arm in dict.fromkeys([*first, *arms]) if arm not in ("original", "surgery")] + ["original"]


def _row(
    arm: str, trial: int | None, records: Sequence[Record], targets: Sequence[float], metric: Metric
) -> dict[str, Any]:
    results = [record.result for record in records]
    factors = [spike.factor for result in results for spike in spikes_of(result)]
    shares = [
        operation.seconds / operation.epoch_seconds
        for result in results
        for operation in operations_of(result)
        if operation.epoch_seconds
    ]
    values = [result["test_metric"] for result in results]
    others = [name for name in results[0].get("test_metrics", ()) if name != metric.name]
    seconds = [result["seconds"] for result in results]
    return {
        "arm": arm,
        "trial": trial,
        "label": LABELS.get(arm) or describe(records[0].cell.schedule),
        "n": len(results),
        "metric": statistics.fmean(values),
        "metric_deviation": statistics.stdev(values) if len(values) > 1 else None,
        "parameters": statistics.fmean(result["parameters"] for result in results),
        "flops": statistics.fmean(result["flops"] for result in results),
        "training_flops": statistics.fmean(result["training_flops"] for result in results),
        "epochs": statistics.fmean(
            len(result["epochs"]) + result.get("sunk", {}).get("epochs", 0) for result in results
        ),
        "train_test_gap": _mean(result.get("train_test_gap") for result in results),
        "metrics": {name: _mean(each.get("test_metrics", {}).get(name) for each in results) for name in others},
        "latency_seconds": {
            batch: statistics.median(result["latency_seconds"][batch] for result in results)
            for batch in results[0].get("latency_seconds", {})
        },
        "bytes": _mean(result.get("bytes") for result in results),
        "peak_memory": _mean(result.get("peak_memory") for result in results),
        "joules": _mean(result.get("joules") for result in results),
        "seconds": statistics.fmean(seconds),
        "seconds_deviation": statistics.stdev(seconds) if len(seconds) > 1 else None,
        "spike_factor": statistics.median(factors) if factors else None,
        "operation_to_epoch": statistics.median(shares) if shares else None,
        "convergence": convergence(results, metric),
        **time_to_accuracy.summary(results, targets, metric),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """None where one is missing."""
    known = list(values)
    return None if None in known else statistics.fmean(value for value in known if value is not None)

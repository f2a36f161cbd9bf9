"""Does surgery beat starting over? The same seeds for every arm (``study.arms``).

The schedules come from the search, chosen on validation. Arms have the same seeds and data order; a restart takes the
very architecture that surgery of the same seed ended with, from fresh weights. The test images are read once, at the
end of each training. Differences are paired by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from network_surgery.study.arms import LABELS, RIVALS, question
from network_surgery.study.evidence import time_to_accuracy, wording
from network_surgery.study.evidence.contrast import contrast, decide
from network_surgery.study.evidence.converged import convergence
from network_surgery.study.search.comparing import chosen
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.store.words import describe
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.records import operations_of, spikes_of


def summarize(folder: Folder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The closing table's rows and a verdict for each schedule, from the folder's finished cells.

    A row: ``arm``, ``trial``, ``label``, ``n``, mean and deviation of the test ``metric`` (accuracies: 0 … 1) and
    seconds, mean parameters, FLOPs, epochs (sunk ones included), other ``metrics`` by name, latency by batch, peak
    memory and joules (None where they were not taken), median spike factor, median operation seconds / epoch seconds,
    ``convergence`` (see ``study.evidence.converged``), and the time to targets (see
    ``study.evidence.time_to_accuracy.summary``). A verdict is the contrast with restarting (see
    ``study.evidence.contrast``), with ``trial``, ``label``, ``failed`` seeds, ``untouched`` seeds (its conditions were
    never met, so surgery is the original and restarting repeats it), ``finding``, ``sentence`` and ``details``;
    ``others`` are the contrasts with the other arms. Holm's adjustment is over the schedules for the contrasts with
    restarting, which are the question, and over all others together. Surgery and restart are averaged over the seeds
    that both have. Where training starts from given weights, ``operate_first`` is in the place of restart (see
    ``study.arms.question``).
    """
    metric = folder.metric
    groups: dict[tuple[str, int | None], dict[int, Record]] = {}
    failed: dict[int | None, set[int]] = {}
    for record in folder.records("original", "surgery", *RIVALS):
        if not record.compared:
            continue
        if record.failed:
            failed.setdefault(record.cell.trial, set()).add(record.cell.seed)
        else:
            groups.setdefault((record.cell.arm, record.cell.trial), {})[record.cell.seed] = record
    trials = list(dict.fromkeys(trial for arm, trial in groups if trial is not None))
    ranked = [r.cell.trial for r in chosen(folder)]
    trials.sort(key=lambda trial: ranked.index(trial) if trial in ranked else len(ranked))
    originals = list(groups.get(("original", None), {}).values())
    targets = time_to_accuracy.targets(folder.settings.targets, [record.result for record in originals], metric)
    rows = [_row("original", None, originals, targets, metric)] if originals else []
    verdicts, asked = [], question(folder.settings)
    for trial in trials:
        surgery, restart = groups.get(("surgery", trial), {}), groups.get((asked, trial), {})
        seeds = sorted(set(surgery) & set(restart))
        for arm in ("surgery", *RIVALS):
            members = groups.get((arm, trial), {})
            records = [members[seed] for seed in seeds if seed in members] or list(members.values())
            rows += [_row(arm, trial, records, targets, metric)] if records else []
        if seeds:
            others = [
                contrast(arm, surgery, theirs, targets, metric)
                for arm in ("original", *(rival for rival in RIVALS if rival != asked))
                if (theirs := groups.get((arm, None if arm == "original" else trial), {})).keys() & surgery.keys()
            ]
            verdicts.append(contrast(asked, surgery, restart, targets, metric) | {
                "trial": trial, "label": describe(surgery[seeds[0]].cell.schedule),
                "failed": len(failed.get(trial, ())), "others": others,
                "untouched": sum(not operations_of(surgery[seed].result) for seed in seeds),
            })  # fmt: skip
    others = [each for verdict in verdicts for each in verdict["others"]]
    decide(verdicts, metric)
    decide(others, metric)
    for verdict in verdicts:
        sentence, details = wording.sentence(verdict, metric), wording.details(verdict, metric, folder.unit)
        verdict |= {"sentence": sentence, "details": details}
    for each in others:
        each["sentence"] = wording.other(each, metric)
    return rows, verdicts


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
        "epochs": statistics.fmean(
            len(result["epochs"]) + result.get("sunk", {}).get("epochs", 0) for result in results
        ),
        "train_test_gap": _mean(result.get("train_test_gap") for result in results),
        "metrics": {name: _mean(each.get("test_metrics", {}).get(name) for each in results) for name in others},
        "latency_seconds": {
            batch: _mean(result["latency_seconds"][batch] for result in results)
            for batch in results[0].get("latency_seconds", {})
        },
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

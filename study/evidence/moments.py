"""What the operations of each moment did to a schedule's runs, and when those were back on the original's curve.

A moment is all operations before one optimizer step. Its change is of the loss (in nats, of a cross entropy) and of the
metric on the held-out samples, from right before to right after; two intervals say how far it can be trusted: over the
samples (one training run's, paired sample by sample: another set of held-out samples might show another change) and
over the seeds (another training run might).

A loss that falls by itself comes back to where it was even if surgery has cost a lot, so recovery is taken twice: until
the loss is back where it was before the moment, and until it is as low as the *original's of the same seed at the same
epoch*, on all validation samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from network_surgery.ops.anatomy import WHOLE
from network_surgery.study.evidence.significance import compare_paired
from network_surgery.study.store.folder import Folder
from network_surgery.study.store.words import short
from network_surgery.study.training.records import Outcome, Spike, operations_of, spikes_of


def moments(folder: Folder) -> list[dict[str, Any]]:
    """A row for each moment of each schedule that was compared, from the folder's finished surgeries.

    ``trial``, ``epoch``, ``operations`` in words, ``n`` seeds; ``factor``: the geometric mean of the loss after ÷
    before; ``loss`` and ``metric`` (see ``change``); ``recovery``: the epochs until the loss was ``back`` where it was,
    and until it was on the ``original``'s curve, each the ``median`` over the seeds that got there (None where none
    did) and how many ``never`` did; None where there is no original of those seeds, or no epoch after.
    """
    originals = {r.cell.seed: r.result for r in folder.records("original") if r.finished}
    found: dict[tuple[int | None, int], list[tuple[Spike, Outcome, int]]] = {}
    steps: dict[int | None, Sequence[Mapping[str, Any]]] = {}
    for record in folder.records("surgery"):
        if record.finished:
            steps[record.cell.trial] = record.cell.schedule
            for turn, spike in enumerate(spikes_of(record.result)):
                found.setdefault((record.cell.trial, turn), []).append((spike, record.result, record.cell.seed))
    rows = []
    for (trial, _), each in sorted(found.items(), key=lambda item: (item[0][0] or 0, item[0][1])):
        jumps = [spike for spike, _, _ in each]
        samples = jumps[0].held_out
        curves = [(outcome, originals[seed], spike.epoch) for spike, outcome, seed in each if seed in originals]
        rows.append({
            "trial": trial, "epoch": jumps[0].epoch, "n": len(jumps),
            "operations": short(at_moment(steps[trial], each[0][1], jumps[0].epoch)),
            "factor": math.exp(statistics.fmean(math.log(max(jump.factor, 1e-12)) for jump in jumps)),
            "loss": change([jump.loss_change for jump in jumps], [jump.loss_error for jump in jumps], samples),
            "metric": change([jump.metric_change for jump in jumps], [jump.metric_error for jump in jumps], samples),
            "recovery": {
                "back": _summary([jump.epochs_to_recover for jump in jumps]),
                "original": _summary([caught_up(*curve) for curve in curves]) if curves else None,
            },
        })  # fmt: skip
    return rows


def at_moment(schedule: Sequence[Mapping[str, Any]], outcome: Outcome, epoch: float) -> list[Mapping[str, Any]]:
    """The steps of a schedule that came at this moment of a run; one with a budget operated on layers by name."""
    there = {
        (each.when, name) for each in operations_of(outcome) if each.epoch == epoch for name in (each.layer, WHOLE)
    }
    return [step for step in schedule if (str(step["when"]), str(step["layer"])) in there] or list(schedule)


def change(
    changes: Sequence[float | None], errors: Sequence[float | None], samples: int | None
) -> dict[str, Any] | None:
    """The ``mean`` change over seeds, its 95 % intervals over ``samples`` and over ``seeds``; None of nothing known.

    Over the samples: by the mean of the seeds' standard errors, since all seeds saw the same samples, or may have.
    """
    known = [value for value in changes if value is not None]
    if len(known) < len(changes) or not known:
        return None
    mean, seeds, _ = compare_paired(known)
    spreads = [error for error in errors if error is not None]
    inside = None
    if len(spreads) == len(known) and samples:
        half = float(stats.t.ppf(0.975, samples - 1)) * statistics.fmean(spreads)
        inside = [mean - half, mean + half]
    return {"mean": mean, "samples": inside, "seeds": seeds}


def caught_up(surgery: Outcome, original: Outcome, epoch: float) -> int | None:
    """Whole epochs from this moment until surgery's validation loss was as low as the original's at the same epoch.

    1: at the end of the very epoch that the moment opened or interrupted. None where that was not seen.
    """
    theirs = {float(each["epoch"]): each["validation_loss"] for each in original["epochs"]}
    for each in surgery["epochs"]:
        at = float(each["epoch"])
        if at > epoch and at in theirs and each["validation_loss"] <= theirs[at]:
            return math.ceil(at - epoch)
    return None


def _summary(epochs: Sequence[int | None]) -> dict[str, Any]:
    known = [each for each in epochs if each is not None]
    return {"median": statistics.median(known) if known else None, "never": len(epochs) - len(known)}

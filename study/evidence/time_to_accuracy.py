"""Time to accuracy, or to a value of any metric: what each arm has spent when its final network first has one of a few.

It reads stored outcomes only: the metric on validation is known at the end of every epoch, and
``study.training.spent`` says what had been spent by then, operations and sunk epochs included. Two costs are reported:
seconds, and the FLOPs of training, which repeat on any machine.

*Which values* (targets): the setting ``targets``, else 90, 95 and 99 % of the mean value that the original ends with;
where less is better, that value divided by 0.9, 0.95 and 0.99. So they depend neither on surgery nor on what it is held
against, and without an original there are none. *From when on* a value counts: from the last operation that changed the
network's size; for before, the network is not the one that is compared, and an early value would be the original's.
Other arms have their final network from the start. *Censoring*: a run that never gets there is known to need more than
all that it spent.

Where every run of two arms gets there, costs are compared as ratios paired by seed: the geometric mean, with Student's
interval on logarithms (of five seeds or more; below that it says nothing). Only FLOPs are tested, since they repeat on
any machine: by Student's test, or by the sign test where the ratio is the same in every seed. Where some runs do not
get there, by the log-rank test (Mantel 1966), which does not pair and whose normal approximation wants ``ENOUGH``
seeds; the ratio is then of the pairs that both got there, and only described.

What does not count of a run (``sunk``, see ``study.evidence.accounting``) is taken off.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from network_surgery.study.evidence.crossed import of_seeds
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training import spent
from network_surgery.study.training.records import Outcome, operations_of

#: Without the setting ``targets``: the targets as fractions of what the original ends with.
FRACTIONS = (0.9, 0.95, 0.99)
#: What time may mean: the name of a total in an outcome → what of it was spent at the end of an epoch.
COSTS: dict[str, Callable[[Outcome, float], float]] = {
    "seconds": spent.seconds,
    "training_flops": spent.training_flops,
}
#: The cost that is tested.
DECIDES = "training_flops"
#: The fewest seeds for a log-rank test. With 5 in each arm it finds a difference where there is none in 8 of 100 cases
#: at a level of 5, with 8 in 5 (simulated: log-normal times, a fifth to a third of them censored).
ENOUGH = 8
#: The fewest seeds for an interval of a ratio.
FEWEST = 5
#: What does not count of a run: a cost's name → how much.
Sunk = Mapping[str, float]
NOTHING: Sunk = {}


def targets(wanted: Sequence[float], originals: Sequence[Outcome], metric: Metric = ACCURACY) -> list[float]:
    """The values on validation whose time is taken, the easiest first: those ``wanted``, else fractions of what these
    originals end with, else none. Of an end of zero there are no fractions.
    """
    if wanted:
        return sorted(set(wanted), key=lambda target: metric.gain(target, 0.0))
    if not originals:
        return []
    end = statistics.fmean(outcome["validation_metric"] for outcome in originals)
    if end == 0:
        return []
    return [end * fraction if metric.gain(end, 0.0) > 0 else end / fraction for fraction in FRACTIONS]


def arrival(outcome: Outcome, target: float, metric: Metric = ACCURACY) -> int | None:
    """The first epoch (from 1) at whose end the final network is as good on validation; None if there is none."""
    ready = max((each.epoch for each in operations_of(outcome) if each.changed), default=0.0)
    epochs = (
        int(each["epoch"])
        for each in outcome["epochs"]
        if each["epoch"] > ready and metric.gain(each["validation_metric"], target) >= 0
    )
    return next(epochs, None)


@dataclass(frozen=True)
class Times:
    """What the runs of an arm had spent when they got there, and what those that did not spent in all (censored)."""

    reached: Sequence[float]
    censored: Sequence[float]

    @property
    def data(self) -> stats.CensoredData:
        return stats.CensoredData(uncensored=self.reached, right=self.censored)

    def shares(self) -> list[tuple[float, float]]:
        """(Cost, share of runs that are there by then) wherever a run gets there or ends (Kaplan and Meier 1958)."""
        share = stats.ecdf(self.data).cdf
        return [(float(at), float(there)) for at, there in zip(share.quantiles, share.probabilities, strict=True)]

    def median(self) -> float | None:
        """The cost by which half of the runs are there; None if that is not seen."""
        return next((at for at, there in self.shares() if there >= 0.5 - 1e-9), None)


def times(
    outcomes: Sequence[Outcome],
    target: float,
    cost: str = "seconds",
    metric: Metric = ACCURACY,
    sunk: Sequence[Sunk] | None = None,
) -> Times:
    """What each of these runs spends until its final network has this value of the metric, without what is ``sunk``."""
    reached: list[float] = []
    censored: list[float] = []
    for outcome, free in zip(outcomes, sunk or [NOTHING] * len(outcomes), strict=True):
        epoch = arrival(outcome, target, metric)
        at = len(outcome["epochs"]) if epoch is None else epoch
        (censored if epoch is None else reached).append(COSTS[cost](outcome, at) - free.get(cost, 0.0))
    return Times(reached, censored)


def summary(
    outcomes: Sequence[Outcome], wanted: Sequence[float], metric: Metric = ACCURACY
) -> dict[str, dict[str, Any]]:
    """For a table, by target: how many runs ``reached`` it, and the median ``seconds_to`` and ``flops_to`` it."""
    keys = {target: f"{target:.4f}" if metric.percent else f"{target:.6g}" for target in wanted}
    return {
        "reached": {key: sum(arrival(o, target, metric) is not None for o in outcomes) for target, key in keys.items()},
        "seconds_to": {key: times(outcomes, target, "seconds", metric).median() for target, key in keys.items()},
        "flops_to": {key: times(outcomes, target, "training_flops", metric).median() for target, key in keys.items()},
    }


def contrasts(
    pairs: Sequence[tuple[Outcome, Outcome]],
    wanted: Sequence[float],
    metric: Metric = ACCURACY,
    sunk: Sequence[tuple[Sunk, Sunk]] | None = None,
) -> list[dict[str, Any]]:
    """Surgery against a rival, for each target; of every pair that is not counted which is ``sunk``.

    ``target``, how many of the pairs' surgeries and rivals ``reached`` it, and for each of ``COSTS``: ``ratio``
    (surgery / rival, over the ``n`` pairs that both reached it), its 95 % ``interval``, ``p``, ``test`` (``paired t``,
    ``sign`` or ``log-rank``; None where none can be made, and of seconds) and ``sooner``: whether surgery is, as far as
    the numbers go.
    """
    found = []
    for target in wanted:
        both = [tuple(arrival(outcome, target, metric) for outcome in pair) for pair in pairs]
        entry: dict[str, Any] = {
            "target": target,
            "reached": [sum(epoch is not None for epoch in side) for side in zip(*both, strict=True)],
        }
        entry |= {
            cost: _against(pairs, target, cost, metric, sunk or [(NOTHING, NOTHING)] * len(pairs)) for cost in COSTS
        }
        found.append(entry)
    return found


def _against(
    pairs: Sequence[tuple[Outcome, Outcome]],
    target: float,
    cost: str,
    metric: Metric,
    sunk: Sequence[tuple[Sunk, Sunk]],
) -> dict[str, Any]:
    logs = []
    for pair, free in zip(pairs, sunk, strict=True):
        spent = [times([one], target, cost, metric, [gone]).reached for one, gone in zip(pair, free, strict=True)]
        if all(spent) and min(*spent[0], *spent[1]) > 0:
            logs.append(math.log(spent[0][0] / spent[1][0]))
    found: dict[str, Any] = {"n": len(logs), "ratio": None, "p": None, "interval": None, "test": None, "sooner": None}
    if logs:
        mean = of_seeds(logs)
        bounds = mean.interval() if len(logs) >= FEWEST else None
        found |= {"ratio": math.exp(mean.value), "interval": bounds and [math.exp(bound) for bound in bounds]}
        found |= {"sooner": mean.value < 0}
        if cost == DECIDES:
            found |= {"p": mean.p(), "test": None if mean.p() is None else "sign" if mean.equal else "paired t"}
    if len(logs) < len(pairs):
        found |= {"p": None, "test": None, "sooner": None}
        if cost == DECIDES and len(pairs) >= ENOUGH:
            ours, theirs = (
                times([pair[side] for pair in pairs], target, cost, metric, [free[side] for free in sunk])
                for side in (0, 1)
            )
            rank = stats.logrank(ours.data, theirs.data)
            if math.isfinite(rank.pvalue):
                found |= {"p": float(rank.pvalue), "test": "log-rank", "sooner": bool(rank.statistic > 0)}
    return found

"""Whether a training run had converged: whether its validation metric was still improving when it ended.

The rule: a straight line through the validation metric of the last quarter of the epochs (least squares; at least
``LEAST`` epochs, and none before the last operation, for until then the network was another). If the line, carried on
for as many epochs again, would gain more than the metric's margin, the run was still improving.

What it cannot do. One run's line is noisy: over a few epochs the metric of a small validation set moves by more than a
margin, so a statement of an arm is pooled over its seeds (``study.evidence.converged``). It sees a trend and nothing
after it: a run that waits on a plateau for its learning rate to fall counts as converged, and one whose learning rate
has just been brought to nothing as still improving, whatever longer training would have brought. Of a run of fewer than
twice ``LEAST`` epochs, or with fewer than ``LEAST`` after its last operation, nothing is said.
"""

from __future__ import annotations

import math
import statistics

from network_surgery.study.task.metric import Metric
from network_surgery.study.training.records import Outcome, operations_of

#: The fewest epochs that a line is laid through.
LEAST = 3
#: The part of the epochs, at the end, that it is laid through.
PART = 0.25


def gain(outcome: Outcome, metric: Metric) -> float | None:
    """What the metric would gain in as many epochs again as the line is laid through, in its own units (negative: it
    gets worse); None where there are too few epochs.
    """
    epochs = [each for each in outcome.get("epochs", ()) if "validation_metric" in each]
    last = max((each.epoch for each in operations_of(outcome)), default=0.0) if epochs else 0.0
    window = epochs[-max(LEAST, math.ceil(PART * len(epochs))) :]
    known = [each for each in window if each["epoch"] > last]
    if len(epochs) < 2 * LEAST or len(known) < LEAST:
        return None
    line = statistics.linear_regression([e["epoch"] for e in known], [e["validation_metric"] for e in known])
    return metric.gain(line.slope * len(known), 0.0)


def improving(outcome: Outcome, metric: Metric) -> bool | None:
    """Whether that is more than the metric's margin; None where it is not known."""
    found = gain(outcome, metric)
    return None if found is None else found > metric.margin

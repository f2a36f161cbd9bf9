"""The front of a search with several objectives: the trials that no other beats, and how much they dominate.

The hypervolume (Zitzler and Thiele 1999) is the volume between the front and a reference point, here as a fraction of
the box between that point and the ideal one, which has the front's best value of every objective: 1 would be a front of
one trial that is best in everything. The reference point lies a tenth of the front's range beyond the front's worst
value of each objective (Ishibuchi et al. 2018 say why slightly beyond; BoTorch takes the same tenth), so that the
outermost trials of the front count, and one very bad trial does not make all others look alike. A trial beyond the
reference point adds nothing. The original network would be a natural reference, but a front of smaller networks often
lies on one side of it, and then the volume is zero.

Every study has a reference point of its own: to compare two, take one of them, or a common one, for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from network_surgery.study.counts import format_count
from network_surgery.study.search.front import find_front, hypervolume, losses, reference_point, signs
from network_surgery.study.search.objectives import title
from network_surgery.study.task.metric import ACCURACY, Metric


def front(
    trials: Sequence[Mapping[str, Any]], objectives: Sequence[str], metric: Metric = ACCURACY
) -> dict[str, Any] | None:
    """The front of a search's finished trials; None where there is one objective, or no trial.

    ``trials`` are outcomes with ``trial``, their number. The front has ``objectives``, ``trials`` (numbers, the best in
    the first objective first), ``reference`` and ``ideal`` (a value for each objective), ``hypervolume`` (0 … 1), and
    ``history``: trial and hypervolume of all trials up to it.
    """
    if len(objectives) < 2 or not trials:
        return None
    points, turn = losses(trials, objectives, metric), signs(objectives, metric)
    best = sorted(find_front(points), key=lambda index: (*points[index], trials[index]["trial"]))
    reference, ideal = reference_point(points, best), points[best].min(axis=0)
    box = float(np.prod(reference - ideal))
    volumes = [hypervolume(points[: count + 1], reference) / box for count in range(len(points))]
    return {
        "objectives": list(objectives),
        "trials": [trials[index]["trial"] for index in best],
        "reference": (reference * turn).tolist(),
        "ideal": (ideal * turn).tolist(),
        "hypervolume": volumes[-1],
        "history": [[trial["trial"], volume] for trial, volume in zip(trials, volumes, strict=True)],
    }


def sentence(found: Mapping[str, Any], metric: Metric = ACCURACY) -> str:
    """A front in words: of how many finished trials how many are beaten by no other, and in what.

    >>> sentence({"trials": [3], "history": [[0, 0.1], [3, 0.4]], "objectives": ["metric", "parameters"]})
    '1 of 2 schedules is beaten by no other: none is as good in accuracy and parameters and better in one of them.'
    """
    trials, best = len(found["history"]), len(found["trials"])
    names = join_words([title(name, metric) for name in found["objectives"]])
    return (
        f"{best} of {format_count(trials, 'schedule')} {'are' if best > 1 else 'is'} beaten by no other: none is as "
        f"good in {names} and better in one of them."
    )


def join_words(words: Sequence[str]) -> str:
    """Two words or more as people list them."""
    return ", ".join(words[:-1]) + f" and {words[-1]}"

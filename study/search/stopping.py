"""When a trial of the search ends early: asynchronous successive halving that forgives an operation its spike.

Source: Li et al. 2020, *A System for Massively Parallel Hyperparameter Tuning* (ASHA, the variant that stops). Rungs
lie at epochs ``first_rung × reduction^k``; a trial that reaches one goes on if it is among the best one in
``reduction`` of those that did, and nothing waits for anything. Optuna's pruner and Ray's scheduler do so, too; what
differs here is due to trials being operated on, and to the promise that a study repeats.

*Forgiveness.* Trials are judged by their settled epochs alone: at least one operation is done, and the held-out loss is
back where it was before each of them, or ``recovery`` epochs have passed since. Until then a trial is not judged, and
nobody is held against it: it is judged at its first settled epoch from a rung on. Before its first operation it is the
same network, bit for bit, as all others that have not been operated on yet (a search has one seed): what it reaches
says nothing of its schedule, and as it has not paid for its operation, it would drive out those that have. A schedule
that operates late is therefore judged late, and saves less.

*Equal training.* A trial that comes to a rung late has trained for longer than those that came in time. So it is held
against what each of them had at that very epoch or, where they did not come so far, at their last from the rung on.

*Repeatability.* Trials are compared with those of earlier generations, which have all ended. Decisions depend on the
seed alone: not on how many trials run at once, which of them is faster, or what was interrupted and resumed. The price
is that the first generation is never judged. Epochs and their values lie in the study's database; nothing else decides.
Where trials are sampled asynchronously there are no generations: as in the paper, a trial is compared with all others
that have come to the rung by now, whoever they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from network_surgery.study.training.records import OperationRecord

#: The attribute of a trial in Optuna's database that lists its settled epochs.
SETTLED = "settled epochs"


class ForgivingHalving(BasePruner):
    """Says of a trial at the epoch that it reported last whether it is to be stopped, in the study's direction.

    Trials are sampled in generations of ``generation`` (None: asynchronously); ``first_rung`` is an epoch from 1.
    """

    def __init__(self, first_rung: int, reduction: int, generation: int | None) -> None:
        self._first_rung, self._reduction, self._generation = first_rung, reduction, generation

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        now, settled = trial.last_step, trial.user_attrs.get(SETTLED, ())
        if now is None or now not in settled:
            return False
        rivals = self._rivals(study, trial)
        rung = self._first_rung
        while rung <= now:
            first = not any(rung <= epoch < now for epoch in settled)
            if first and not self._promoted(trial, rivals, rung, now, study.direction):
                return True
            rung *= self._reduction
        return False

    def _rivals(self, study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """The trials that one is compared with: those of earlier generations or, without any, all others."""
        trials = study.get_trials(deepcopy=False)
        if self._generation is None:
            return [other for other in trials if other.number != trial.number]
        return [other for other in trials if other.number < trial.number // self._generation * self._generation]

    def _promoted(
        self, trial: FrozenTrial, rivals: Iterable[FrozenTrial], rung: int, now: int, direction: StudyDirection
    ) -> bool:
        """Whether the trial is among the best; of fewer than ``reduction`` trials all are."""
        values = [trial.intermediate_values[now]]
        for other in rivals:
            there = [epoch for epoch in other.user_attrs.get(SETTLED, ()) if rung <= epoch <= now]
            if there:
                values.append(other.intermediate_values[max(there)])
        if len(values) < self._reduction:
            return True
        sign = -1 if direction == StudyDirection.MINIMIZE else 1
        losses = sorted(-sign * value for value in values)
        return -sign * values[0] <= losses[len(values) // self._reduction - 1]


def is_settled(epoch: int, operations: Sequence[OperationRecord], recovery: int) -> bool:
    """Whether a training run that has ``epoch`` epochs and these operations shows what its schedule is worth."""
    return bool(operations) and all(
        each.epochs_to_recover is not None or epoch - math.floor(each.epoch) > recovery for each in operations
    )


def stop(record: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a trial that ends after this epoch (see ``study.training.run.Reporter``): what it has reached,
    and ``stopped``, the number of epochs it was trained for.
    """
    return {**record["so_far"], "parameters": record["parameters"], "stopped": int(record["epoch"])}

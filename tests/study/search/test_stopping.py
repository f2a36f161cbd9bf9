"""Who is stopped early: the rule by itself, against Optuna's own, and in a search that knows no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.stopping import SETTLED, ForgivingHalving, is_settled, stop
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import operations_of
from tests.study.operated import operated

LAYERS = {"conv1": 32, "conv2": 64, "fc1": 96}


def play(pruner: BasePruner, curves: Sequence[Mapping[int, float]], unsettled: Mapping[int, set[int]]) -> list[int]:
    """Trains these curves (epoch → accuracy) one after another; the epoch that each ends with.

    ``unsettled``: the epochs of a trial at which it has not been operated on, or not recovered.
    """
    study = optuna.create_study(direction="maximize", pruner=pruner)
    ends = []
    for number, curve in enumerate(curves):
        trial, epoch = study.ask(), 0
        for epoch, value in curve.items():
            trial.report(value, epoch)
            known = trial.user_attrs.get(SETTLED, [])
            if epoch not in unsettled.get(number, ()):
                trial.set_user_attr(SETTLED, [*known, epoch])
            if trial.should_prune():
                break
        study.tell(trial, state=TrialState.PRUNED)
        ends.append(epoch)
    return ends


def constant(value: float, epochs: int = 7) -> dict[int, float]:
    return dict.fromkeys(range(1, epochs + 1), value)


#: Three ordinary trials of 7 epochs, the best one first.
ORDINARY = [constant(0.9), constant(0.8), constant(0.7)]
#: Operated on after epoch 2, so that its spike falls on the rung at epoch 3, and the best of all from epoch 5 on.
SPIKE = {1: 0.9, 2: 0.9, 3: 0.3, 4: 0.6, 5: 0.95, 6: 0.96, 7: 0.97}


def test_a_spike_on_a_rung_is_forgiven() -> None:
    plain = play(SuccessiveHalvingPruner(3, 3), [*ORDINARY, SPIKE], {})
    assert plain[3] == 3  # stopped for what its own operation did, with the best accuracy to come
    forgiven = play(ForgivingHalving(3, 3, generation=1), [*ORDINARY, SPIKE], {3: {1, 2, 3, 4}})
    assert forgiven[3] == 7


def test_a_bad_trial_is_stopped_at_its_first_settled_epoch() -> None:
    rule = ForgivingHalving(3, 3, generation=1)
    bad = constant(0.2)
    assert play(rule, [*ORDINARY, bad], {})[3] == 3
    assert play(rule, [*ORDINARY, bad], {3: {1, 2, 3, 4}})[3] == 5  # it recovers, or its grace is over, at epoch 5
    assert play(rule, [*ORDINARY, bad], {3: set(range(1, 8))})[3] == 7  # nobody knows what it is worth


def test_who_has_not_settled_is_held_against_nobody() -> None:
    untouched = [constant(0.99)] * 5
    everywhere = set(range(1, 8))
    rule, ordinary = ForgivingHalving(3, 3, generation=1), constant(0.9)
    assert play(rule, [*untouched, ordinary], dict.fromkeys(range(5), everywhere))[5] == 7
    assert play(rule, [*untouched, ordinary], {})[5] == 3
    again = everywhere - {1, 2}  # settled at first, and operated on again before the rung
    assert play(rule, [*untouched, ordinary], dict.fromkeys(range(5), again))[5] == 7


def test_a_late_trial_is_held_against_what_others_had_at_its_own_epoch() -> None:
    """At epoch 5 it is better than all others were at the rung, and worse than all of them are now."""
    rising = [{1: 0.1, 2: 0.2, 3: 0.5, 4: 0.7, 5: 0.9 + 0.01 * i, 6: 0.95, 7: 0.97} for i in range(3)]
    rule = ForgivingHalving(3, 3, generation=1)
    late = dict.fromkeys(range(1, 8), 0.6)
    assert play(rule, [*rising, late], {3: {1, 2, 3, 4}})[3] == 5
    assert play(rule, [*rising, constant(0.93)], {3: {1, 2, 3, 4}})[3] == 7
    # And it is not held against others that were in time: at the rung it had nothing to show.
    late_first = [constant(0.99), *ORDINARY, constant(0.9)]
    assert play(rule, late_first, {0: {1, 2, 3, 4}})[4] == 7
    assert play(rule, late_first, {})[4] == 3


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_where_every_epoch_is_settled_it_is_what_optuna_does(reduction: int) -> None:
    """One rung, one trial at a time; the first ones rise, since Optuna lets only the best of the first go on."""
    random = np.random.default_rng(reduction)
    values = [*np.linspace(0.1, 0.2, reduction - 1), *random.random(60)]
    curves = [constant(float(value), 4) for value in values]
    ours = play(ForgivingHalving(3, reduction, generation=1), curves, {})
    assert ours == play(SuccessiveHalvingPruner(3, reduction), curves, {})
    assert {3, 4} == set(ours)


def test_a_generation_is_judged_by_earlier_ones_alone() -> None:
    curves = [constant(value) for value in (0.5, 0.4, 0.6, 0.9, 0.9, 0.1)]
    assert play(ForgivingHalving(3, 3, generation=3), curves, {}) == [7, 7, 7, 7, 7, 3]
    assert play(ForgivingHalving(3, 3, generation=6), curves, {}) == [7] * 6


def test_every_rung_is_judged_once() -> None:
    """Rungs at 2 and 4: good enough at 2, beaten at 3 where nobody asks, and at 4."""
    leader, falling = constant(0.8), {1: 0.9, 2: 0.9, 3: 0.1, 4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1}
    assert play(ForgivingHalving(2, 2, generation=1), [leader, leader, falling], {}) == [7, 7, 4]


def operation(epoch: float, recovered: int | None) -> dict[str, Any]:
    return operated(epoch=epoch, epochs_to_recover=recovered)


@pytest.mark.parametrize(
    ("epoch", "operations", "holds"),
    [
        (4, [], False),  # not operated on
        (3, [operation(2.0, 0)], True),  # nothing to recover from
        (3, [operation(2.0, None)], False),
        (5, [operation(2.0, None)], False),  # the third epoch after it, still forgiven
        (6, [operation(2.0, None)], True),  # never recovered
        (6, [operation(2.5, None)], True),  # in the midst of an epoch counts as that epoch's
        (6, [operation(2.0, None), operation(4.0, None)], False),  # the second one is young
        (6, [operation(2.0, 1), operation(4.0, 1)], True),
    ],
)
def test_when_a_training_is_settled(epoch: int, operations: list[dict[str, Any]], holds: bool) -> None:
    assert is_settled(epoch, operations_of({"operations": operations}), recovery=3) is holds


def asha(**changes: Any) -> Settings:
    return Settings(
        **({"trials": 16, "generation": 4, "epochs": 8, "early_stopping": "asha", "objective": "metric"} | changes)
    )


def reported(cell: Cell, epoch: int) -> dict[str, Any]:
    """What is reported of an epoch: a trial's number decides how accurate it is, and its schedule when it settles."""
    assert cell.trial is not None
    quality = cell.trial * 37 % 17 / 17
    first = int(str(cell.schedule[0]["when"]).split("ep")[0]) if str(cell.schedule[0]["when"])[0].isdigit() else 1
    done = [operation(float(first), 1)] if epoch > first else []
    accuracy = 1 - (1 - quality) / epoch
    so_far = {"validation_metric": accuracy, "operations": done, "spikes": [], "seconds": float(epoch)}
    return {"epoch": float(epoch), "validation_metric": accuracy, "parameters": 10, "so_far": so_far}


def search(source: Sampled, together: bool, most: int = 10**6) -> dict[int, dict[str, Any]]:
    """Trains what a source hands out, all that may run at once epoch by epoch, or one to its end after the other.

    Ends as if killed after this number of trials. Returns results by trial.
    """
    ended: dict[int, dict[str, Any]] = {}
    while not source.finished and len(ended) < most:
        running = [cell for cell in iter(source.next, None)]
        epochs = range(1, 9)
        steps = itertools.product(epochs, running) if together else ((e, c) for c in reversed(running) for e in epochs)
        for epoch, cell in steps:
            assert cell.trial is not None
            if cell.trial in ended or len(ended) == most:
                continue
            record = reported(cell, epoch)
            if not source.epoch(cell, record):
                ended[cell.trial] = stop(record)
            elif epoch == 8:
                ended[cell.trial] = record["so_far"] | {"parameters": 10}
            else:
                continue
            source.tell(cell, ended[cell.trial])
    return ended


def test_who_is_stopped_does_not_depend_on_who_is_faster(tmp_path: Path) -> None:
    one = search(Sampled(asha(), LAYERS, tmp_path / "a.db"), together=True)
    other = search(Sampled(asha(), LAYERS, tmp_path / "b.db"), together=False)
    assert one == other
    assert 3 <= sum("stopped" in result for result in one.values()) <= 9


@pytest.mark.parametrize("objective", ["metric", "loss"])
def test_of_a_metric_of_which_less_is_better_the_same_are_stopped(
    tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search(Sampled(asha(trials=8), LAYERS, tmp_path / "a.db"), together=True)
    plain = reported

    def mirrored(cell: Cell, epoch: int) -> dict[str, Any]:
        record = plain(cell, epoch)
        worse = {"validation_metric": 1 - record["validation_metric"]}
        worse["validation_loss"] = worse["validation_metric"]
        return record | worse | {"so_far": record["so_far"] | worse}

    monkeypatch.setitem(globals(), "reported", mirrored)
    error = Metric("error", "lower", percent=True)
    source = Sampled(asha(trials=8, objective=(objective,)), LAYERS, tmp_path / "b.db", metric=error)
    ends = [{n: result.get("stopped") for n, result in each.items()} for each in (first, search(source, together=True))]
    assert ends[0] == ends[1] and any(ends[0].values())


def test_a_whole_training_is_not_thrown_away(tmp_path: Path) -> None:
    """The second rung is the last epoch."""
    source = Sampled(asha(first_rung=4, reduction=2), LAYERS, tmp_path / "a.db")
    ends = {result.get("stopped") for result in search(source, together=True).values()}
    assert {None, 4} <= ends and 8 not in ends


@pytest.mark.parametrize("after", [5, 9])
def test_a_resumed_search_knows_its_rungs(tmp_path: Path, after: int) -> None:
    whole = search(Sampled(asha(), LAYERS, tmp_path / "a.db"), together=True)
    first = search(Sampled(asha(), LAYERS, tmp_path / "b.db"), together=False, most=after)
    resumed = Sampled(asha(), LAYERS, tmp_path / "b.db", first)
    assert resumed.total == 16 - after
    assert first | search(resumed, together=True) == whole


def test_optuna_knows_them_as_pruned_with_their_curves(tmp_path: Path) -> None:
    source = Sampled(asha(), LAYERS, tmp_path / "a.db", words=lambda schedule: f"{schedule[0]['op']}, in words")
    ended = search(source, together=True)
    for trial in optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'a.db'}").trials:
        result = ended[trial.number]
        assert trial.state == (TrialState.PRUNED if "stopped" in result else TrialState.COMPLETE)
        assert list(trial.intermediate_values) == list(range(1, result.get("stopped", 8) + 1))
        assert trial.user_attrs["schedule"] == f"{trial.params['op']}, in words"
        assert trial.user_attrs.get("stopped") == result.get("stopped")
        assert trial.value == result["validation_metric"]


def test_an_epoch_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    source = Sampled(asha(), LAYERS, tmp_path / "a.db")
    cell = source.next()
    assert cell is not None
    for epoch in (1, 2, 2, 3):
        assert source.epoch(cell, reported(cell, epoch))
    assert list(source.study.trials[0].intermediate_values) == [1, 2, 3]


@pytest.mark.parametrize("from_epoch", [1, 6])
def test_a_lost_trial_keeps_its_curve_and_others_are_held_against_it(tmp_path: Path, from_epoch: int) -> None:
    """It goes on from its checkpoint after epoch 5, or starts over where that is gone; nothing is judged twice."""
    changes = {"sampling": "asynchronous", "trials": 4, "reduction": 2}
    whole = Sampled(asha(**changes), LAYERS, tmp_path / "a.db")
    first, second = whole.next(), whole.next()
    assert first is not None and second is not None
    for epoch in range(1, 6):
        whole.epoch(first, reported(first, epoch))
    lost = {"failure": "the process was lost", "lost": True}
    whole.tell(first, lost)
    again = Sampled(asha(**changes), LAYERS, tmp_path / "a.db", {0: lost})
    cells = {cell.trial: cell for cell in (again.next(), again.next()) if cell is not None}
    for epoch in range(1, 9):
        again.epoch(cells[1], reported(cells[1], epoch))
    assert all(again.epoch(cells[0], reported(cells[0], epoch)) for epoch in range(from_epoch, 5))
    again.epoch(cells[0], reported(cells[0], 6))
    assert list(again.study.trials[0].intermediate_values) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": ("accuracy", "parameters")}, "it compares trials by one value that every epoch has"),
        ({"sampler": "grid"}, "it stops trials of a search"),
        ({"first_rung": 8}, "its first rung, epoch 8, is not before the last of 8 epochs"),
        ({"generation": 16}, "all 16 trials are in one; lower generation"),
        ({"early_stopping": "median"}, "early_stopping is 'median', but it must be one of none, asha"),
        ({"reduction": 1}, "reduction is 1, but it must be a whole number of at least 2"),
    ],
)
def test_what_could_not_stop_anything_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        asha(**changes)

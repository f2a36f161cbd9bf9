"""Trials that are sampled whenever a slot is free: slots do not wait, and nothing is sampled twice or left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search import searching, tuner
from network_surgery.study.search.nodes import Nodes, asynchronous, slots
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.stopping import ForgivingHalving
from tests.study.nodes import node
from tests.study.search.simulated import LAYERS, search

ASHA = {"early_stopping": "asha", "first_rung": 1}


def settings(**changes: Any) -> Settings:
    return Settings(**({"trials": 10, "epochs": 6, "generation": 1, "sampling": "asynchronous"} | changes))


@pytest.mark.parametrize("stopping", [{}, ASHA], ids=["whole", "asha"])
def test_no_slot_waits(stopping: dict[str, Any]) -> None:
    waiting = search(12, 72, sampling="generations", generation=12, **stopping)
    busy = search(12, 72, sampling="asynchronous", **stopping)
    assert waiting.whole < 0.75 and busy.steady > 0.99 and busy.hours < 0.85 * waiting.hours
    assert sorted(busy.ended) == sorted(waiting.ended) == list(range(72))
    assert any("stopped" in result for result in busy.ended.values()) is bool(stopping)


def test_slots_that_come_later_are_used() -> None:
    alone, grown = (search(4, 60, grows_to=to, sampling="asynchronous") for to in (0, 12))
    assert grown.steady > 0.9 and grown.hours < 0.6 * alone.hours


def test_there_are_never_more_under_way_than_there_is_room_for(tmp_path: Path) -> None:
    room = 3
    source = Sampled(settings(), LAYERS, tmp_path / "a.db", room=lambda: room)
    first = list(iter(source.next, None))
    assert [cell.trial for cell in first] == [0, 1, 2]
    source.tell(first[1], {"failure": "the loss became nan"})
    (fourth,) = iter(source.next, None)
    room = 20
    rest = list(iter(source.next, None))
    assert [fourth.trial, *(cell.trial for cell in rest)] == list(range(3, 10))
    for cell in (first[0], first[2], fourth, *rest):
        source.tell(cell, {"failure": "the loss became nan"})
    assert source.finished and source.next() is None


def test_a_resumed_search_runs_first_what_was_cut_off(tmp_path: Path) -> None:
    source = Sampled(settings(), LAYERS, tmp_path / "a.db", room=lambda: 3)
    cut_off = {cell.trial: cell.params for cell in iter(source.next, None)}
    again = Sampled(settings(), LAYERS, tmp_path / "a.db", room=lambda: 3)
    assert {cell.trial: cell.params for cell in iter(again.next, None)} == cut_off
    states = [trial.state for trial in again.study.trials]
    assert states == [TrialState.RUNNING] * 3


def test_without_generations_a_trial_is_compared_with_all_others() -> None:
    """A later trial, too, counts once it has come to the rung."""
    study = optuna.create_study(direction="maximize", pruner=ForgivingHalving(1, 2, None))
    early, late = study.ask(), study.ask()
    for trial, value in ((late, 0.9), (early, 0.1)):
        trial.report(value, 1)
        trial.set_user_attr("settled epochs", [1])
    assert early.should_prune() and not late.should_prune()


def test_several_nodes_or_many_slots_are_asynchronous() -> None:
    share = {"CPU": 1.0}
    assert not asynchronous([node(CPU=8)], share)
    assert asynchronous([node(CPU=9)], share)
    assert asynchronous([node(CPU=1), node("there", CPU=1)], share)
    assert not asynchronous([node(CPU=8), node("head")], share)  # it trains nothing
    nodes = [node(CPU=16, GPU=2), node("there", CPU=3, GPU=8)]
    assert slots(nodes, {"CPU": 1.0, "GPU": 0.25}) == 8 + 3
    assert slots([node(CPU=4, GPU=1)], {"CPU": 1.0, "GPU": 0.3}) == 3


@pytest.mark.parametrize(
    ("given", "cpus", "becomes"),
    [("auto", 4, "generations"), ("auto", 64, "asynchronous"), ("generations", 64, "generations")],
)
def test_a_study_settles_it_once(given: str, cpus: int, becomes: str) -> None:
    settled = searching.settle_sampling(settings(sampling=given), [node(CPU=cpus)])
    assert settled.sampling == becomes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cpus_per_trial": 6}, "cpus_per_trial is 6, but no node of this Ray cluster has more than 4 CPUs"),
        ({"cpus_per_trial": 3}, "takes 3 CPUs and 0.25 GPUs, but no node of this Ray cluster has all of that together"),
        ({"accelerator": "A10"}, "accelerator is 'A10', but this Ray cluster has only A100; did you mean 'A100'"),
    ],
)
def test_a_share_must_fit_on_a_node(changes: dict[str, Any], sentence: str) -> None:
    """The sum of all nodes helps nobody: such a trial would wait for ever."""
    gpu = node("gpu", **{"CPU": 2, "GPU": 1, "accelerator_type:A100": 1})
    nodes = [node("one", CPU=4), node("two", CPU=4), gpu]
    assert tuner.trial_resources(Settings(accelerator="A100"), nodes) == {
        "CPU": 1, "GPU": 0.25, "accelerator_type:A100": 0.001,
    }  # fmt: skip
    with pytest.raises(StudyError, match=sentence):
        tuner.trial_resources(Settings(**changes), nodes)


def test_no_type_of_gpu_goes_with_a_cpu() -> None:
    with pytest.raises(StudyError, match="accelerator is 'T4', but device is 'cpu'; leave out one of them"):
        Settings(accelerator="T4", device="cpu")


def test_avoided_nodes_are_told_once_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []
    nodes = Nodes(words.append)
    monkeypatch.setattr(nodes, "alive", lambda: [node("one", CPU=2), node("two", CPU=2)])
    assert nodes.selector == {} and nodes.room({"CPU": 1.0}, 4) == 8
    for _ in range(2):
        nodes.avoid("two", "there is no model.py")
    assert words == ["node two (two) is avoided: there is no model.py"]
    assert [each.name for each in nodes] == ["one"] and nodes.room({"CPU": 1.0}, 4) == 6
    assert nodes.selector == {"ray.io/node-id": "!in(two)"}

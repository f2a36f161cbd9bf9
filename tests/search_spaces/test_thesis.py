"""The thesis's grid: its order, its moments, its methods; with and without the published code's faults."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from optuna.trial import FixedTrial

from network_surgery.ops import EigenRemove, MinWeight, SurgeryError, WeakExpand, ZeroExpand
from network_surgery.search_spaces import SPACES
from network_surgery.search_spaces.thesis import METHODS, ORDER
from network_surgery.study.models import vgg16

LAYERS = {name: SimpleNamespace(units=64) for name in ORDER}


@pytest.mark.parametrize(
    ("epochs", "moments"),
    [(50, [*range(1, 22, 2)]), (22, [*range(1, 22, 2)]), (21, [*range(1, 12)]), (12, [*range(1, 12)])],
)
def test_one_layer_after_another(epochs: int, moments: list[int]) -> None:
    schedule = SPACES["thesis"](FixedTrial({"op": "min_weight", "ratio": 0.5}), LAYERS, epochs)
    assert [step.layer for step in schedule.steps] == list(ORDER)
    assert [step.when.count for step in schedule.steps] == moments
    schedule.check(LAYERS, epochs, per_epoch=1)


def test_the_layers_are_those_of_the_model() -> None:
    assert set(ORDER) < {name for name, _ in vgg16((3, 16, 16), 10, width=1 / 32).named_children()}


@pytest.mark.parametrize(
    ("method", "correct", "published"),
    [
        (
            "eigen_remove",
            EigenRemove(0.25, 0.125, "original"),
            EigenRemove(0.25, 0.125, "reduced", "kernels", iterated=True, rounding="down"),
        ),
        ("min_weight", MinWeight(0.25), MinWeight(0.25, "kernels", "down")),
        ("weak_expand", WeakExpand(0.25, "equal"), WeakExpand(0.25, "equal", published=True, rounding="down")),
        ("zero_expand", ZeroExpand(0.25), ZeroExpand(0.25, published=True, rounding="down")),
    ],
)
def test_each_method_at_its_ratio(method: str, correct: object, published: object) -> None:
    assert method in METHODS
    for space, operation in (("thesis", correct), ("thesis_published", published)):
        steps = SPACES[space](FixedTrial({"op": method, "ratio": 0.25}), LAYERS, 50).steps
        assert {step.operation for step in steps} == {operation}


def test_says_what_it_needs() -> None:
    trial = FixedTrial({"op": "min_weight", "ratio": 0.5})
    with pytest.raises(SurgeryError, match="for the layers of the model vgg16; this network has no conv10"):
        SPACES["thesis"](trial, {"fc1": SimpleNamespace(units=8)}, 50)
    with pytest.raises(SurgeryError, match="needs more epochs than 11"):
        SPACES["thesis"](trial, LAYERS, 11)

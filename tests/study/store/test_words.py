"""A schedule in words: what people read of it, and that schedules that read alike are alike."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from network_surgery.ops import OPERATIONS, Condition, Moment, Operation, Schedule, Step, SurgeryError
from network_surgery.study.store.words import describe, names, short

WAITS = "redundancy(0.01) >= 0.3 from 2ep every 1ep at most 2"
#: Values that hyperparameters may have; which of them an operation allows is tried.
VALUES = [
    None, True, False, 0, 1, 2, 0.1, 0.5, 0.123, 0.1234, 0.25, "original", "reduced", "norm", "singular", "dead",
    "frozen", "either", "mrs", "mrp", "mean", "median", "random", "l2", "kernels", "nearest", "down", "equal", "uneven",
    "pivoted", "eigen", "magnitude", "global", "layer", "fresh", "relu", "separable",
    "between", "identity", "loss", "each", "rbf", "most", "absolute", "together",
]  # fmt: skip


def test_a_schedule_in_words() -> None:
    shrink = {"op": "eigen_remove", "keep": 0.5, "rank": 0.125, "weights": "reduced"}
    steps = [{"when": "4ep", "layer": layer, **shrink} for layer in ("conv1", "conv2")]
    steps.append({"when": "8ep", "layer": "fc1", "op": "pcns", "variance_threshold": 0.01, "basis": "pivoted"})
    assert describe(steps) == (
        "eigen_remove keep 0.5, weights reduced on conv1, conv2 at 4ep, then pcns variance_threshold 0.01 on fc1 at 8ep"
    )
    assert describe([{**steps[2], "repair": ["bias"]}]).startswith("pcns variance_threshold 0.01, repaired by bias on")
    assert describe([]) == "no operation"
    assert (
        describe([{"when": "2ep", "layer": "fc1", "op": "cut", "hard": 1}]) == "cut hard 1 on fc1 at 2ep"
    )  # an older one
    assert describe([steps[-1] | {"when": WAITS}]).endswith(f"on fc1 when {WAITS}")
    assert describe([steps[-1], steps[-1] | {"when": WAITS}]).endswith(f"on fc1 at 8ep when {WAITS}")


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_can_be_described(name: str) -> None:
    words = describe(Schedule((Step(Moment(1), "fc1", OPERATIONS[name]()),)).to_data())
    assert words.startswith(f"{name} ") and words.endswith(" on fc1 at 1ep") and "None" not in words


def variants(kind: type[Operation]) -> list[Operation]:
    """An operation with its defaults, and with every allowed value of each hyperparameter."""
    found = [kind()]
    for field in fields(kind):  # type: ignore[arg-type]
        for value in VALUES:
            try:
                found.append(kind(**{field.name: value}))
            except (SurgeryError, TypeError):
                continue
    return [each for place, each in enumerate(found) if each not in found[:place]]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_hyperparameter_is_written(name: str) -> None:
    operations = variants(OPERATIONS[name])
    varied = {f.name for each in operations for f in fields(each) if getattr(each, f.name) != f.default}  # type: ignore[arg-type]
    about = {"needs_signals", "whole_network", "makes_layers", "of_blocks", "alternatives"}
    assert varied == set(get_type_hints(OPERATIONS[name])) - about
    assert len({describe(Schedule((Step(Moment(1), "a", each),)).to_data()) for each in operations}) == len(operations)


def test_schedules_that_read_alike_are_alike() -> None:
    """Random schedules of few layers, moments and operations, so that many differ in one thing."""
    draw = random.Random(0)
    operations = [each for kind in OPERATIONS.values() for each in variants(kind)]
    moments: list[Any] = [Moment(1), Moment(2), Moment(2, "it")]
    moments += [Condition(threshold, 0.3, Moment(2)) for threshold in (0.01, 0.0101)]
    read: dict[str, Schedule] = {}
    for _ in range(4000):
        few = draw.sample(operations, 2)
        steps = [
            Step(
                draw.choice(moments),
                draw.choice("ab"),
                draw.choice(few),
                draw.choice([(), (), ("bias",)]),
                freeze=draw.choice([None, None, Moment(1), 0.5]),
                lr_factor=draw.choice([None, None, 0.1]),
            )
            for _ in range(draw.randint(1, 4))
        ]
        schedule = Schedule(tuple(steps))
        assert read.setdefault(describe(schedule.to_data()), schedule) == schedule
    assert len(read) > 3000


def test_letters_follow_the_ranking() -> None:
    assert names([9, 2, 9, 4]) == {9: "A", 2: "B", 4: "C"}
    assert len(set(names(range(2000)).values())) == 2000


def test_a_schedule_in_a_few_words() -> None:
    steps = [{"when": "4ep", "layer": name, "op": "min_weight", "keep": keep} for name, keep in
             (("a", 0.5), ("b", 0.5), ("c", 0.25))]  # fmt: skip
    assert short(steps) == "min_weight to ½ of a, b, to ¼ of c at 4ep"
    assert short([*steps, {"when": "9ep", "layer": "a", "op": "compact"}]).endswith("at 4ep, then compact of a at 9ep")
    assert short([{"when": WAITS, "layer": "a", "op": "pcns"}]) == (
        "pcns (1 % of the variance) of a when redundancy(0.01) >= 0.3"
    )
    assert short([{"when": "2ep", "layer": "*", "op": "prune_weights", "fraction": 0.9}]) == (
        "prune_weights 90 % of the weights at 2ep"
    )
    assert short([{"when": "2ep", "layer": "a", "op": "of.another.version:Cut"}]) == "Cut of a at 2ep"
    assert short([]) == "no operation"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_short(name: str) -> None:
    layers = [f"blocks.{number}.mlp" for number in range(40)]
    for each in variants(OPERATIONS[name]):
        steps = [Step(Moment(at), layer, each) for layer in layers for at in range(1, 9)]
        words = short(Schedule(tuple(steps)).to_data())
        assert words.startswith(name) and "40 layers" in words and words.endswith("(8 times)") and len(words) < 90

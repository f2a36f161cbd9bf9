"""Memory that runs out: the error passes as it is, wherever it happens, and the network is as it was."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops import Anatomy, MeanReplace, MinWeight, RemoveDead, Signals, operate, weight_scores
from network_surgery.ops.surgery.prediction import predicted_loss_change
from tests.ops.networks import build

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Full(TorchDispatchMode):
    """Memory runs out at the ``at``-th operator that asks for some; ``count`` is the number of those that ran.

    ``comparing``: it ran out where a snapshot was compared with what it is of, which can be done without.
    """

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at, self.count, self.comparing = at, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func._schema.is_mutable and not func.is_view
        if self.count == self.at and not func._schema.is_mutable and not func.is_view:
            self.comparing = any(frame.name == "_are" for frame in traceback.extract_stack())
            raise FULL
        return func(*args, **(kwargs or {}))


def look(model: Any, x: Any, y: Any, anatomy: Anatomy) -> object:
    return Anatomy(model, x)


def gather(model: Any, x: Any, y: Any, anatomy: Anatomy) -> object:
    return Signals(model, x, y)


def act(operation: Any, **options: Any) -> Callable[..., object]:
    return lambda model, x, y, anatomy: operate(anatomy["4"], operation, (), Signals(model, x, y), **options)


def score(model: Any, x: Any, y: Any, anatomy: Anatomy) -> object:
    return weight_scores(model, ["0.weight"], "loss_change", x, y)


def predict(model: Any, x: Any, y: Any, anatomy: Anatomy) -> object:
    return predicted_loss_change(MinWeight(0.5).propose(anatomy["4"], None), x, y)


ACTS: dict[str, Callable[..., object]] = {
    "anatomy": look,
    "signals": gather,
    "gradients": act(RemoveDead(0.6)),
    "penalty": act(MeanReplace(0.5, score="mrp")),
    "statistics": act(MinWeight(0.5), repair=["batchnorm"]),
    "least squares": act(MinWeight(0.5), repair=["least_squares"]),
    "verification": act(MinWeight(0.5), verify=True),
    "measured scores": score,
    "prediction": predict,
}


@pytest.mark.parametrize("name", ACTS)
def test_memory_that_runs_out_is_said_to_have_run_out(name: str) -> None:
    """Or it is done without (a snapshot is put back without comparing), and all comes out as it would have."""
    torch.manual_seed(0)
    model, x = build("cnn", batch=16)
    y = torch.arange(16) % 3

    def attempt(at: int = -1) -> tuple[Full, BaseException | None, Any, dict[str, Tensor], dict[str, Tensor]]:
        network = copy.deepcopy(model)
        anatomy = Anatomy(network, x)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        mode, error, outcome = Full(at), None, None
        try:
            with mode:
                outcome = ACTS[name](network, x, y, anatomy)
        except Exception as problem:
            error = problem
        return mode, error, outcome, before, network.state_dict()

    whole, problem, result, before, after = attempt()
    assert problem is None
    for at in range(1, whole.count + 1, max(1, whole.count // 25)):
        mode, error, outcome, _, then = attempt(at)
        assert error is (None if mode.comparing else FULL), (at, whole.count, error)
        same_as(then, before if error else after)
        if name == "anatomy" and not error:
            assert list(outcome) == list(result)


def same_as(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in wanted.items()}
    assert [key for key, value in wanted.items() if not torch.allclose(value, tensors[key])] == []

"""Runs of an experiment: a fresh one depends on its seed alone, and going on from it is going on."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from network_surgery.study import data, models
from network_surgery.study.bench.training import fork, trained

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", 0.2, 200)


def test_going_on_from_a_trained_network_is_training_that_was_not_interrupted(digits):
    build = partial(models.build, "mlp")
    first, whole, other = (trained(digits, build, SGD, *each) for each in ((1, 0), (2, 0), (2, 1)))
    later = fork(first, digits, 2)
    later.fit()
    assert first.epoch == 1 and later.epoch == whole.epoch == 2
    assert all(map(torch.equal, later.model.parameters(), whole.model.parameters()))
    assert not torch.equal(next(other.model.parameters()), next(whole.model.parameters()))
    assert trained(digits, build, SGD, 0, 0).history == []

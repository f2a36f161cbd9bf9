"""Runs of an experiment: a fresh one depends on its seed alone, and going on from it is going on."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from network_surgery.study.bench.training import fork, train
from network_surgery.study.task import images as data

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def dense(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", 0.2, 200)


def test_going_on_from_a_trained_network_is_training_that_was_not_interrupted(digits):
    first, whole, other = (train(digits, dense, SGD, *each) for each in ((1, 0), (2, 0), (2, 1)))
    later = fork(first, digits, 2)
    later.fit()
    assert first.epoch == 1 and later.epoch == whole.epoch == 2
    assert all(map(torch.equal, later.model.parameters(), whole.model.parameters()))
    assert not torch.equal(next(other.model.parameters()), next(whole.model.parameters()))
    assert train(digits, dense, SGD, 0, 0).history == []

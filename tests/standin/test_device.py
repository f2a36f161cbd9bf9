"""The stand-in itself: it refuses, counts and fails as a GPU would."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from network_surgery.study.training.device import pick_device
from tests.standin import device as standin

CPU = torch.device("cpu")


def test_tensors_of_both_devices_are_refused(device: torch.device) -> None:
    here, there = torch.randn(3, 3), torch.randn(3, 3).to(device)
    for refused in (lambda: here + there, lambda: there @ here, lambda: torch.stack([here, there])):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            refused()
    assert (there * torch.tensor(2.0)).device == device  # a number may stay with the host
    assert there[torch.tensor([0, 2])].shape == (2, 3)  # and so may an index


def test_it_computes_what_the_cpu_does(device: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(), nn.LayerNorm(24), nn.Dropout()
    )
    model, there, x = model, copy.deepcopy(model).to(device), torch.randn(5, 2, 4, 4)
    found: list[list[Tensor]] = []
    for network, inputs in ((model, x), (there, x.to(device))):
        torch.manual_seed(1)
        out = network(inputs)
        out.square().sum().backward()
        found.append([each.detach().cpu() for each in (out, *(p.grad for p in network.parameters()))])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_it_counts_what_costs_on_a_gpu(device: torch.device) -> None:
    gc.collect()
    standin.reset()
    before = standin.counts()["bytes"]
    x = torch.ones(256).to(device)
    assert standin.counts()["to_device"] == 1 and standin.counts()["syncs"] == 0
    x.add(1).mul(2)
    found = standin.counts()
    assert found["kernels"] >= 2 and found["bytes"] - before == 1024 and found["peak_bytes"] - before == 3 * 1024
    for waits in (
        lambda: float(x[0]),
        lambda: x.cpu(),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: bool(x.sum() > 0),
    ):
        standin.reset()
        waits()
        assert standin.counts()["syncs"] == 1
    standin.reset()
    assert standin.counts()["peak_bytes"] == standin.counts()["bytes"]


def test_it_can_be_without_double_and_without_memory(device: torch.device) -> None:
    x = torch.ones(8).to(device)
    with standin.without_double(), pytest.raises(TypeError, match="standin has no float64"):
        x.double()
    with standin.failing(2):
        x.add(1)
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 32 bytes"):
            x.add(1)
        x.add(1)
    assert x.double().dtype == torch.float64


def test_it_is_there_in_its_tests_alone(device: torch.device) -> None:
    """Whatever else runs in this process picks the CPU."""
    assert pick_device("auto").type == "standin"
    standin._present = False
    assert pick_device("auto") == CPU

"""The device that training runs on is whatever torch has, by its type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.compute import Compute
from network_surgery.study.search import tuner
from network_surgery.study.training.device import device_name, pick_device
from tests.study.nodes import node

ROOT = Path(__file__).parents[3] / "study"


@pytest.fixture(params=["mps", "xpu", "cuda"])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(request.param))
    return str(request.param)


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def test_it_is_the_one_that_torch_has(accelerator: str) -> None:
    assert pick_device("auto") == pick_device(accelerator) == torch.device(accelerator)
    assert pick_device("cpu") == torch.device("cpu") and device_name(torch.device("cpu")) == "cpu"
    with pytest.raises(StudyError, match=f"device is 'hpu', but torch sees only {accelerator} here"):
        pick_device("hpu")


def test_without_one_it_is_the_cpu(nothing: None) -> None:
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(StudyError, match="device is 'mps', but torch sees no GPU here; use 'auto' or 'cpu'"):
        pick_device("mps")
    with pytest.raises(StudyError, match="device is 'gpu', which is no device type of torch"):
        pick_device("gpu")


def test_a_gpu_that_torch_cannot_use_is_no_cpu(nothing: None) -> None:
    """Ray has set one aside: training on the CPU without a word would take days."""
    with pytest.raises(StudyError, match=r"^Ray has a GPU here, but torch .* cannot use it: .* or set device: cpu$"):
        pick_device("auto", granted=True)
    assert pick_device("cpu", granted=True) == torch.device("cpu")


def test_a_trial_takes_what_ray_does_not_count_where_it_is_asked_for(accelerator: str) -> None:
    assert tuner.trial_resources(Settings(device=accelerator), [node(CPU=4)]) == {"CPU": 1.0}
    with pytest.raises(StudyError, match=f"but torch sees only {accelerator} here"):
        tuner.trial_resources(Settings(device="hpu"), [node(CPU=4)])


def test_tf32_is_for_cuda_alone() -> None:
    with pytest.raises(StudyError, match="which CUDA alone has, not mps"):
        Compute("tf32").check(torch.device("mps"))


def test_nothing_else_asks_for_cuda_by_name() -> None:
    """But energy and memory, which are read of it alone, and precisions and graphs that it alone has."""
    named = {p.name for p in ROOT.rglob("*.py") if re.search(r'torch\.cuda|== "cuda"', p.read_text(encoding="utf-8"))}
    assert named == {"energy.py", "checkpoint.py", "run.py", "compute.py", "graph.py"}

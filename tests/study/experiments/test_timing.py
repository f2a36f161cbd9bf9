"""The experiment on timing, small: what is measured, what is predicted, and the formulas behind it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from network_surgery.ops import OPERATIONS, Anatomy, EigenRemove, MinWeight
from network_surgery.ops.maths.hosvd import truncated_hosvd
from network_surgery.study.experiments.timing import __main__ as command
from network_surgery.study.experiments.timing import complexity, figure, measure, report
from network_surgery.study.experiments.timing.complexity import Sizes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def timed():
    """Tiny nets; the dense ones with a limit that nothing keeps, so that larger ones are predicted."""
    found = measure.measure(dense=(16, 32), conv=(8,), vgg_layers=("conv4",), repeats=2)
    limited = measure.measure(dense=(8, 16), conv=(), vgg_layers=(), repeats=1, limit=1e-9)
    return found, limited


def test_every_operation_is_timed_on_every_net(timed):
    found, _ = timed
    assert {type(operation) for operation in measure.OPERATIONS.values()} == set(OPERATIONS.values())
    assert {operation.rank for operation in measure.OPERATIONS.values() if isinstance(operation, EigenRemove)} >= {
        0.125,
        1,
    }
    nets = [("dense", "16"), ("dense", "32"), ("conv", "8"), ("vgg16", "conv4")]
    assert [(t.net, t.layer, t.name) for t in found.timings] == [
        (*net, name) for net in nets for name in measure.OPERATIONS
    ]
    for t in found.timings:
        assert len(t.operation) in (2, 3)  # one that takes long needs no warming up
        assert len(t.signals) == len(t.operation) * measure.OPERATIONS[t.name].needs_signals
        assert t.seconds == pytest.approx(np.median(t.operation) + (np.median(t.signals) if t.signals else 0))
        assert t.epoch == 782 * t.step and t.index == pytest.approx(t.epoch / t.seconds) and t.predicted > 0
        assert t.units[0] == (128 if t.net == "vgg16" else int(t.layer)) and (t.units[1] <= t.units[0]) == (
            "expand" not in t.name
        )


def test_the_network_is_as_it_was_after_timing():
    net = measure._net("dense", 16, torch.device("cpu"))
    measure._step(net[0], net[1], net[3][:4])
    before = {key: value.clone() for key, value in net[0].state_dict().items()}
    moments = {id(p): net[1].state[p]["exp_avg"].clone() for p in net[0].parameters()}
    for operation in measure.OPERATIONS.values():
        measure._operate(*net, operation, torch.device("cpu"))
        assert all(torch.equal(value, before[key]) for key, value in net[0].state_dict().items())
        assert all(torch.equal(net[1].state[p]["exp_avg"], moments[id(p)]) for p in net[0].parameters())


def test_what_takes_too_long_is_predicted_for_larger_nets(timed):
    _, limited = timed
    for t in limited.timings:
        assert bool(t.operation) == (t.layer == "8")
        if t.layer == "16":
            assert t.seconds == t.predicted > 0 and t.units[1] > 0
    assert report.report(limited, "x.png").count("not measured: predicted ") == len(measure.OPERATIONS)
    figure.draw(limited)


def test_a_report_of_timing_is_written(timed, tmp_path, monkeypatch):
    found, _ = timed
    monkeypatch.setattr(command, "measure", lambda *args: found)
    command.main(sizes="", repeats=2, device="cpu", limit=60, quick=True, out=tmp_path / "docs")
    text = (tmp_path / "docs" / "timing.md").read_text(encoding="utf-8")
    for heading in ("## VGG16", "## Dense nets", "## Convolutions", "## What is calculated", "timing.png", "969 s"):
        assert heading in text
    assert text.count("| `pcns` |") == 5 and all(f"| {name} |" in text for name in complexity.FORMULAS)
    kept = json.loads((tmp_path / "docs" / "timing.json").read_text(encoding="utf-8"))
    assert len(kept["timings"]) == len(found.timings) and kept["rates"].keys() == found.rates.keys()
    assert (tmp_path / "docs" / "timing.png").read_bytes().startswith(b"\x89PNG")


SIZES = Sizes(units=64, inputs=48, outputs=32, samples=256, kept=32)
of_each_operation = pytest.mark.parametrize("name", measure.OPERATIONS)


@of_each_operation
@pytest.mark.parametrize("field", ["units", "inputs", "outputs", "positions", "samples", "kept"])
def test_work_grows_with_every_size(name, field):
    operation = measure.OPERATIONS[name]
    larger = dataclasses.replace(SIZES, **{field: getattr(SIZES, field) * 2})
    if field == "kept":
        larger = dataclasses.replace(SIZES, kept=48)
    before, after = complexity.work(operation, SIZES), complexity.work(operation, larger)
    assert complexity.flops(after) >= complexity.flops(before) and after["bytes"] >= before["bytes"]
    rates = dict.fromkeys([*complexity.FLOPS, "bytes"], 2.0)
    assert complexity.seconds(after, rates) == pytest.approx((complexity.flops(after) + after["bytes"]) / 2)


@of_each_operation
def test_a_dense_layer_is_a_convolution_of_one_position(name):
    """Read from the layers themselves, and up to the matrix that needs one projection only."""
    operation = measure.OPERATIONS[name]
    dense = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    conv = nn.Sequential(nn.Conv2d(12, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))
    one = Sizes.of(Anatomy(dense, torch.randn(2, 12))["0"], samples=64)
    other = Sizes.of(Anatomy(conv, torch.randn(2, 12, 4, 4))["0"], samples=64)
    assert one == other == Sizes(16, 12, 8, 1, 64)
    assert complexity.work(operation, one) == complexity.work(operation, other)


def test_work_grows_with_the_rank_and_ends_as_minimum_weight():
    for positions in (1, 9):
        sizes = dataclasses.replace(SIZES, positions=positions)
        by_rank = [complexity.flops(complexity.work(EigenRemove(rank=rank), sizes)) for rank in (0.1, 0.25, 0.5, 0.9)]
        assert by_rank == sorted(by_rank) and by_rank[0] < by_rank[-1]
        assert complexity.work(EigenRemove(rank=1.0), sizes) == complexity.work(MinWeight(), sizes)
        reduced = complexity.work(EigenRemove(rank=0.5, weights="reduced"), sizes)
        assert complexity.flops(reduced) > by_rank[2]


@pytest.mark.parametrize("positions", [1, 9])
def test_products_of_the_hosvd_are_those_that_torch_counts(positions):
    """Where the Gram matrix is small it is not halved, and both modes are reduced."""
    tensor = torch.randn(96, 64, positions, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        truncated_hosvd(tensor, 0.25).row_norms()
    counted = counter.get_total_flops()
    said = complexity.work(EigenRemove(rank=0.25), Sizes(96, 10, 64, positions))["products"]
    assert said / 2 < counted < 2.5 * said

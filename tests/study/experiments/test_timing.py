"""The experiment on timing, small: what is measured and predicted, the formulas, and a page that follows its rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from network_surgery.ops import (
    OPERATIONS,
    Anatomy,
    Collapse,
    Deepen,
    DropBlock,
    EigenRemove,
    Fastfood,
    GradMax,
    HashWeights,
    MinWeight,
    PredictWeights,
    RandomEdges,
    ShareWeights,
    Stretch,
    TriFactorize,
)  # fmt: skip
from network_surgery.ops.maths.hosvd import truncated_hosvd
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Rows
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.timing import EXPERIMENT, complexity, measure, page
from network_surgery.study.experiments.timing.complexity import Sizes
from network_surgery.study.experiments.timing.measure import Options
from tests.study.experiments.made_up import measured_of

#: What came after the page was measured.
LATER = {
    Collapse, Deepen, DropBlock, Fastfood, GradMax, HashWeights, PredictWeights, RandomEdges, ShareWeights, Stretch,
    TriFactorize,
}  # fmt: skip
SMALL = Options(seeds=2, dense=(16,), conv=(8,), vgg16=("conv4",))


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SIDE", 64)
        patch.setattr(measure, "TIMES", 1)
        patch.setattr(measure, "SIGNAL_IMAGES", 8)
        patch.setattr(measure, "BATCH", 8)
        _, tasks = measure.measure(SMALL)
        return Rows(row for _, task in tasks for row in task())


@pytest.mark.long
def test_every_operation_is_timed_on_every_net(rows):
    timed = {type(operation) for operation in measure.OPERATIONS.values()}
    assert timed == set(OPERATIONS.values()) - LATER
    nets = [("dense", "16", 16), ("conv", "8", 8), ("vgg16", "conv4", 128)]
    assert [(row["net"], row["layer"], row["seed"], row["name"]) for row in rows] == [
        (*net, seed, name) for *net, _ in nets for seed in range(2) for name in measure.OPERATIONS
    ]
    for row in rows:
        assert row["operation"] > 0 and row["predicted"] > 0
        assert row["epoch"] > 0 and row["forward"] > 0
        before, after = row["units"]
        assert before == dict((net, units) for net, _, units in nets)[row["net"]]
        assert (after <= before) == ("expand" not in row["name"])


def test_the_network_is_as_it_was_after_timing():
    net = measure.build("dense", "16", 0)
    before = {key: value.clone() for key, value in net.model.state_dict().items()}
    moments = {id(p): net.adam.state[p]["exp_avg"].clone() for p in net.model.parameters()}
    for operation in measure.OPERATIONS.values():
        measure.interrupt(net, operation)
        assert all(torch.equal(value, before[key]) for key, value in net.model.state_dict().items())
        assert all(torch.equal(net.adam.state[p]["exp_avg"], moments[id(p)]) for p in net.model.parameters())


def test_options_about_images_are_refused():
    with pytest.raises(StudyError, match="leave out --data"):
        Options(data="cifar10")


def made_up(dense, vgg16):
    """Rows in which every operation has about these indices, and is predicted to take half of the seconds."""
    noise, rows = np.random.default_rng(0), Rows()
    for net, layers, index in (
        ("dense", ("64", "128"), dense),
        ("conv", ("64", "128"), 1e4),
        ("vgg16", ("fc1",), vgg16),
    ):
        for layer in layers:
            for seed in range(4):
                for name in measure.OPERATIONS:
                    seconds = 1e3 / index * np.exp(noise.normal(0, 0.01))
                    rows.append({"net": net, "layer": layer, "seed": seed, "name": name, "epoch": 1e3, "forward": 0.5,
                                 "operation": seconds, "predicted": seconds / 2})  # fmt: skip
    return measured_of("timing", SMALL, {}, rows)


def test_claims_and_page_follow_the_rows(tmp_path):
    measured = made_up(dense=20, vgg16=3000)
    words = [verdict.word.partition(":")[0] for verdict in judge(page.claims(measured.rows))]
    assert words == ["holds", "does not hold", "holds"]  # VGG16, dense, convolutions
    assert judge(page.claims(made_up(20, 3).rows))[0].word.startswith("does not hold")
    np.testing.assert_allclose(page.index(measured.rows, "dense", "64", "pcns"), 20, rtol=0.1)
    text = bench.write(EXPERIMENT.folder / "page.md", page.parts(measured), measured, tmp_path).read_text("utf-8")
    assert "nan" not in text and "| pcns | 20 (0.5) | 20 (0.5) |" in text
    assert "| *forward pass* | 2,000 | 2,000 |" in text and "4 seeds each" in text
    assert "100% of 280 lie within a factor of 3 (median of predicted / measured: 0.50)" in text
    assert "| min_weight | O(n o p + n log n) | 2 n o p |" in text
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")


SIZES = Sizes(units=64, inputs=48, outputs=32, positions=1, samples=256, after=32)
of_each_operation = pytest.mark.parametrize("name", measure.OPERATIONS)


def flops(work):
    return sum(amount for kind, amount in work.items() if kind != "bytes")


@of_each_operation
@pytest.mark.parametrize("field", ["units", "inputs", "outputs", "positions", "samples", "after"])
def test_work_grows_with_every_size(name, field):
    operation = measure.OPERATIONS[name]
    larger = dataclasses.replace(SIZES, **{field: 48 if field == "after" else getattr(SIZES, field) * 2})
    if field == "units":
        larger = dataclasses.replace(larger, after=64)
    before, after = complexity.work(operation, SIZES), complexity.work(operation, larger)
    assert flops(after) >= flops(before) and after["bytes"] >= before["bytes"]
    rates = dict.fromkeys(after, 2.0)
    assert complexity.seconds(after, rates) == pytest.approx((flops(after) + after["bytes"]) / 2)


@of_each_operation
def test_a_dense_layer_is_a_convolution_of_one_position(name):
    """Read from the layers themselves, and up to the matrix that needs one projection only."""
    operation = measure.OPERATIONS[name]
    dense = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    conv = nn.Sequential(nn.Conv2d(12, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))
    one = Sizes.of(Anatomy(dense, torch.randn(2, 12))["0"], 64, 8)
    other = Sizes.of(Anatomy(conv, torch.randn(2, 12, 4, 4))["0"], 64, 8)
    assert one == other == Sizes(16, 12, 8, 1, 64, 8)
    assert complexity.work(operation, one) == complexity.work(operation, other)


def test_work_grows_with_the_rank_and_ends_as_minimum_weight():
    for positions in (1, 9):
        sizes = dataclasses.replace(SIZES, positions=positions)
        by_rank = [flops(complexity.work(EigenRemove(rank=rank), sizes)) for rank in (0.1, 0.25, 0.5, 0.9)]
        assert by_rank == sorted(by_rank) and by_rank[0] < by_rank[-1]
        assert complexity.work(EigenRemove(rank=1.0), sizes) == complexity.work(MinWeight(), sizes)


@pytest.mark.parametrize("positions", [1, 9])
def test_products_of_the_hosvd_are_those_that_torch_counts(positions):
    """Where the Gram matrix is small it is not halved, and both modes are reduced."""
    tensor = torch.randn(96, 64, positions, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        truncated_hosvd(tensor, 0.25).row_norms()
    counted = counter.get_total_flops()
    formula = complexity.work(EigenRemove(rank=0.25), Sizes(96, 10, 64, positions, 0, 48))["products"]
    assert formula / 2 < counted < 2.5 * formula

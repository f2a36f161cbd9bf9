"""Mean replacement (Evci 2018, chapter 3): what a removed unit sent on in the mean stays behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from network_surgery.ops import (
    Anatomy,
    MeanReplace,
    MinWeight,
    RandomRemove,
    Signals,
    SurgeryError,
    operate,
    trial_surgery,
)
from network_surgery.ops.signals.unit_scores import SCORES, unit_scores


def mlp(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4, bias=bias)).double()


def proposed(model, inputs, **hyperparameters):
    return MeanReplace(**hyperparameters).propose(Anatomy(model, inputs[:2])["0"], Signals(model, inputs))


def test_a_constant_unit_leaves_without_a_trace():
    model = mlp()
    for unit in (2, 5, 7):
        model[0].weight.data[unit] = 0
        model[0].bias.data[unit] = unit / 4
    inputs, unseen = torch.randn(64, 8).double(), torch.randn(50, 8).double()
    before = model(unseen)
    plan = operate(Anatomy(model, inputs[:2])["0"], MeanReplace(0.75, "variance"), signals=Signals(model, inputs))
    assert plan.removed == (2, 5, 7) and plan.error < 1e-12
    torch.testing.assert_close(model(unseen), before)


def test_a_constant_channel_leaves_a_trace_only_where_the_padding_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 3, padding=1)).double()
    model[0].weight.data[4], model[0].bias.data[4] = 0, 0.5
    inputs = torch.randn(20, 1, 7, 7).double()
    before = model(inputs)
    layer, signals, operation = Anatomy(model, inputs[:2])["0"], Signals(model, inputs), MeanReplace(5 / 6, "variance")
    plan = operation.propose(layer, signals)
    border = math.tanh(0.5) ** 2 * signals.padded_rows(layer.readers[0], 20 * 49)  # constants there, zeros before
    spread = (signals.received(layer, layer.readers[0])).var(dim=0, correction=0).sum() * 20 * 49
    assert plan.error == pytest.approx(float(border / spread) ** 0.5, rel=1e-9)
    plan = operate(layer, operation, signals=signals)
    assert plan.removed == (4,)
    change = (model(inputs) - before).abs()
    assert change[..., 1:-1, 1:-1].max() < 1e-14 < 1e-3 < change.max()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_beats_plain_removal_of_the_same_units_where_outputs_have_a_mean(activation):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 40), activation(), nn.Linear(40, 10))
    inputs, unseen = torch.rand(400, 20), torch.rand(200, 20)
    anatomy, signals = Anatomy(model, inputs[:2]), Signals(model, inputs)
    before = model(unseen).detach()
    for keep in (0.9, 0.5, 0.1):
        distances = []
        plain, mean = MinWeight(keep).propose(anatomy["0"]), MeanReplace(keep).propose(anatomy["0"], signals)
        assert plain.sources == mean.sources
        for plan in (plain, mean):
            with trial_surgery(plan):
                distances.append((model(unseen) - before).square().sum().item())
        assert distances[1] < 0.8 * distances[0]


def test_the_variance_score_is_the_change_that_one_removal_makes():
    model, inputs = mlp(), torch.randn(300, 8).double()
    layer, signals = Anatomy(model, inputs[:2])["0"], Signals(model, inputs)
    (reader,) = layer.readers
    received = signals.received(layer, reader)
    scores = unit_scores(layer, signals, "variance")
    for unit in range(12):
        changed = received.clone()
        changed[:, unit] = received[:, unit].mean()
        moved = (changed - received) @ model[2].weight.T
        torch.testing.assert_close(moved.square().sum(dim=1).mean().sqrt(), scores[unit])


@pytest.mark.parametrize("score", SCORES)
def test_error_is_what_the_readers_miss(score):
    model, inputs = mlp(), torch.randn(300, 8).double()
    layer, signals = Anatomy(model, inputs[:2])["0"], Signals(model, inputs, torch.arange(300) % 4)
    plan = MeanReplace(0.4, score, seed=3).propose(layer, signals)
    received = signals.received(layer, layer.readers[0])
    spread = received - received.mean(dim=0)
    assert plan.error == pytest.approx(float(spread[:, list(plan.removed)].norm() / spread.norm()))
    assert MeanReplace(1.0, score).propose(layer, signals).error == 0


def test_without_a_bias_all_of_the_output_is_missed():
    model, inputs = mlp(bias=False), torch.rand(300, 8).double()
    plan = proposed(model, inputs, keep=0.5)
    received = Signals(model, inputs).received(plan.layer, plan.layer.readers[0])
    missed = received[:, list(plan.removed)].norm() / (received - received.mean(dim=0)).norm()
    assert not plan.constants and plan.error == pytest.approx(float(missed))
    assert plan.sources == MinWeight(0.5).propose(plan.layer).sources


def test_random_units_are_drawn_by_the_seed():
    model, inputs = mlp(), torch.rand(30, 8).double()
    drawn = {proposed(model, inputs, score="random", seed=seed).sources for seed in range(8)}
    assert len(drawn) > 4 and all(len(sources) == 6 for sources in drawn)
    assert proposed(model, inputs, score="random", seed=1).sources in drawn


@pytest.mark.parametrize(
    ("bad", "says"),
    [({"keep": 0}, "keep is 0"), ({"score": "luck"}, "score is 'luck'"), ({"seed": -1}, "seed is -1")],
)
def test_refuses_hyperparameters(bad, says):
    with pytest.raises(SurgeryError, match=f"MeanReplace: {says}"):
        MeanReplace(**bad)


def test_refuses_to_work_blindly():
    model, inputs = mlp(), torch.rand(30, 8).double()
    layer = Anatomy(model, inputs[:2])["0"]
    with pytest.raises(SurgeryError, match=r"MeanReplace\(.*\) on 0 looks at outputs: give it Signals"):
        MeanReplace().propose(layer)
    inputs[0, 0] = torch.nan
    with pytest.raises(SurgeryError, match="outputs are not finite"):
        MeanReplace().propose(layer, Signals(model, inputs))
    assert RandomRemove().propose(layer).units_after == 6

"""Repairs: what is put right when units go, for every operation that removes some."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    RandomRemove,
    Schedule,
    Signals,
    SurgeryError,
    WeakExpand,
    operate,
    trial_surgery,
)
from network_surgery.ops.signals import signals
from network_surgery.ops.surgery.repair import CHAIN, bias, least_squares, reestimate
from tests.ops.networks import NETWORKS, build, difference, liven, outputs

REMOVALS = [MinWeight(0.5), RandomRemove(0.5), EigenRemove(0.5, 0.25, weights="original"), MeanReplace(0.5, "random")]


def cnn(affine: bool = True) -> nn.Module:
    return liven(nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, affine=affine),
        nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 3),
    ))  # fmt: skip


@pytest.mark.parametrize("operation", REMOVALS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("name", ["mlp", "mlp_bn", "cnn", "residual"])
def test_what_the_readers_miss_shrinks_with_every_repair(name: str, operation) -> None:
    model, inputs = build(name, torch.float64, batch=60)
    layer = next(iter(Anatomy(model, inputs[:2]).values()))
    signals = Signals(model, inputs)
    plan = operation.propose(layer, signals)
    received = {place: signals.received(layer, place) for place in layer.readers}
    before = {place.tensor: rows @ torch.eye(layer.units).double() for place, rows in received.items()}
    missed = {"nothing": sum(float(rows[:, list(plan.removed)].square().sum()) for rows in received.values())}
    for repair in (bias, least_squares):
        put_right = repair(plan, signals)
        missed[repair.__name__] = padded = 0.0
        for place, rows in received.items():
            mixing = put_right.mixing.get(place.tensor, torch.eye(layer.units).double()[:, list(plan.sources)])
            made = rows[:, list(plan.sources)] @ mixing.T + put_right.constants.get(place.tensor, 0)
            missed[repair.__name__] += float((made - before[place.tensor]).square().sum())
            constant = put_right.constants.get(place.tensor, torch.zeros(1))
            padded += signals.padded_rows(place, len(rows)) * float(constant.square().sum())
        spread = sum(float((rows - rows.mean(0)).square().sum()) for rows in received.values())
        assert put_right.error == pytest.approx(
            ((missed[repair.__name__] + padded) / spread) ** 0.5, rel=1e-6, abs=1e-9
        )
        assert 0 < put_right.evidence["held_out_error"] < 10
    assert missed["least_squares"] <= missed["bias"] * (1 + 1e-9) and missed["bias"] <= missed["nothing"] * (1 + 1e-9)


def test_bias_is_mean_replacement_and_least_squares_are_pivoted_pcns() -> None:
    model, inputs = build("mlp", torch.float64, batch=100)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs)
    mean, plain = MeanReplace(0.5).propose(layer, signals), bias(MinWeight(0.5).propose(layer), signals)
    assert mean.sources == plain.sources and mean.error == plain.error and mean.constants and not plain.mixing
    pcns = PCNS(keep=0.5).propose(layer, signals)
    units = MinWeight(0.5).propose(layer)
    object.__setattr__(units, "sources", pcns.sources)
    refitted = least_squares(units, signals)
    assert refitted.error == pcns.error and refitted.error < mean.error
    for tensor, values in refitted.mixing.items():
        torch.testing.assert_close(values, pcns.mixing[tensor])


@pytest.mark.parametrize("chain", [("bias",), ("least_squares",), CHAIN])
def test_operate_repairs(chain: tuple[str, ...]) -> None:
    model, unseen = cnn(), torch.randn(64, 2, 8, 8)
    inputs = torch.randn(300, 2, 8, 8)
    for at in (1, 4, 8):
        model[at].momentum = None  # the plain average: statistics of these inputs
        model[at].reset_running_stats()
    model.train()(inputs)
    plainly, put_right = copy.deepcopy(model), copy.deepcopy(model)
    before = outputs(model, unseen)
    plan = operate(Anatomy(plainly, inputs[:2])["0"], MinWeight(0.6))
    layer = Anatomy(put_right, inputs[:2])["0"]
    repaired = operate(layer, MinWeight(0.6), signals=Signals(put_right, inputs), repair=chain)
    assert plan.sources == repaired.sources and repaired.operation == " + ".join((plan.operation, *chain))
    if "batchnorm" not in chain:
        assert difference(before, outputs(put_right, unseen)) < difference(before, outputs(plainly, unseen))
    else:  # what leaves a norm after the reader is standardized again
        after = nn.functional.batch_norm(
            put_right[:4].eval()(inputs), put_right[4].running_mean, put_right[4].running_var
        )
        assert after.mean(dim=(0, 2, 3)).abs().max() < 1e-5 and (after.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_statistics_after_the_reader_are_those_of_the_batches() -> None:
    """Each is the plain average over batches, the norms before it in training mode; those up to the reader stay."""
    model, batches = cnn(), [torch.randn(2, 2, 8, 8) + shift for shift in (1, 0, 3)]
    model[8].momentum, model[4].training = 0.3, False
    layer = Anatomy(model, batches[0][:2])["3"]
    modes = [module.training for module in model.modules()]
    before = [[buffer.clone() for buffer in model[at].buffers()] for at in (1, 4)]
    signals = Signals.over(model, batches, [layer])
    plan = operate(layer, MinWeight(0.5), signals=signals, repair=["batchnorm"])
    assert all(map(torch.equal, before[0], model[1].buffers()))
    assert torch.equal(model[4].running_mean, before[1][0][list(plan.sources)])  # gathered, not estimated
    assert len(list(signals.shown)) == 2  # which are enough, and all that the norms are shown
    assert modes == [module.training for module in model.modules()]
    given = [model[:8].eval()(batch).detach().movedim(1, 0).flatten(1) for batch in batches[:2]]
    model.train()
    torch.testing.assert_close(model[8].running_mean, torch.stack([x.mean(1) for x in given]).mean(0))
    torch.testing.assert_close(model[8].running_var, torch.stack([x.var(1) for x in given]).mean(0))
    assert model[8].momentum == 0.3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_where_no_norm_lies_after_the_layer_one_batch_is_looked_at() -> None:
    model, shown = cnn(), []
    batches = [torch.randn(2, 2, 8, 8) for _ in range(3)]
    signals = Signals.over(model, batches, [Anatomy(model, batches[0])["7"]])
    model.register_forward_pre_hook(lambda module, args: shown.append(args))
    layers = Anatomy(model, torch.randn(2, 2, 8, 8))
    assert len(list(signals.shown)) == 3
    for name, passes in (("3", 3), ("7", 1)):
        shown.clear()
        reestimate(model, signals, layers[name])
        assert len(shown) == passes


def test_statistics_that_cannot_be_estimated_leave_everything_as_it_was() -> None:
    model = liven(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)))
    layer = Anatomy(model, torch.randn(2, 4))["0"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="statistics cannot be estimated on this batch: Expected more than 1 value"):
        operate(layer, MinWeight(0.5), signals=Signals(model, torch.randn(1, 4)), repair=["batchnorm"])
    assert layer.units == 6 and model[0].out_features == 6
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("operation", [WeakExpand(0.5), EigenRemove(0.5, 0.25, weights="reduced")])
def test_refuses_what_does_not_only_remove(operation) -> None:
    model, inputs = build("mlp")
    layer = Anatomy(model, inputs)["0"]
    with pytest.raises(SurgeryError, match="cannot be repaired: bias and least_squares are for operations that remove"):
        operate(layer, operation, signals=Signals(model, inputs), repair=["bias"])
    assert layer.units == 8
    with pytest.raises(SurgeryError, match=r"looks at outputs: give it Signals\(model, inputs\)"):
        operate(layer, MinWeight(0.5), repair=["bias"])
    with pytest.raises(SurgeryError, match="a repair is a list of bias, least_squares, batchnorm"):
        operate(layer, MinWeight(0.5), repair=["sleep"])


def test_schedules_carry_repairs() -> None:
    step = {"when": "2ep", "layer": "0", "op": "min_weight", "keep": 0.5, "repair": ["least_squares", "batchnorm"]}
    schedule = Schedule.from_data([step])
    assert schedule.to_data() == [step] and schedule.steps[0].repair == ("least_squares", "batchnorm")
    assert str(schedule.steps[0]) == "2ep: MinWeight(keep=0.5) + least_squares + batchnorm on 0"
    for wrong in ("bias", ["bias", "bias"], ["rest"]):
        with pytest.raises(SurgeryError, match="a repair is a list"):
            Schedule.from_data([{**step, "repair": wrong}])


@pytest.mark.parametrize("name", [name for name in NETWORKS if isinstance(build(name)[1], torch.Tensor)])
def test_signals_of_several_batches_are_those_of_one(name: str, monkeypatch) -> None:
    monkeypatch.setattr(signals, "SAMPLES_PER_UNIT", 10**9)  # so that all batches are looked at
    monkeypatch.setattr(signals, "MOST_SAMPLES", 10**9)
    model, inputs = build(name, batch=48)
    layers = list(Anatomy(model, inputs[:2]).values())
    assert layers
    parts, whole = Signals.over(model, inputs.split(16), layers), Signals(model, inputs)
    for layer in layers:
        one, many = whole.together(layer), parts.together(layer)
        assert one.samples == many.samples
        torch.testing.assert_close(one.origin, many.origin, atol=1e-5, rtol=1e-5)
        covariances = [each.deviations.T @ each.deviations / each.samples for each in (one, many)]
        torch.testing.assert_close(*covariances, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sample", [0, 4])
def test_a_sample_that_is_not_finite_is_refused_wherever_it_lies(sample: int) -> None:
    model, inputs = build("mlp", batch=100)
    inputs[sample] = float("nan")  # every fifth sample is held out
    layer = Anatomy(model, inputs[10:12])["0"]
    for operation in (PCNS(0.1), MeanReplace(0.5)):
        with pytest.raises(SurgeryError, match="not finite"):
            operation.propose(layer, Signals(model, inputs))


def test_batches_are_asked_for_until_there_are_enough() -> None:
    model, asked = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), []

    class Endless:
        def __iter__(self):
            while True:
                asked.append(torch.randn(50, 5))
                yield asked[-1]

    layer = Anatomy(model, torch.randn(2, 5))["0"]
    signals = Signals.over(model, Endless(), [layer])
    assert len(asked) == 3 and signals.samples(layer) == 150
    torch.testing.assert_close(signals.received(layer, layer.readers[0]).float(), model[1](model[0](asked[0])))
    seen = signals.condensed(layer)["2.weight"]
    assert seen.fitted.samples == 120 and seen.held_out.samples == 30
    plan = PCNS(0.05).propose(layer, signals)
    with trial_surgery(plan):
        assert layer.units == plan.units_after

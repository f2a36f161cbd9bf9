"""Surgery refuses what it cannot do, before anything has changed, and keeps what others hold on to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MinWeight,
    Plan,
    RandomRemove,
    Signals,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    apply,
    operate,
    resize,
    shapes,
    trial_surgery,
)  # fmt: skip
from tests.ops.networks import NETWORKS, build, difference, outputs, train


def unchanged(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("sources", "says"), [
    ((), "no unit would be left"), ((0, 8), "outside 0 … 7"), ((-2, 1), "outside 0 … 7"),
])  # fmt: skip
def test_refuses_impossible_sources(sources, says):
    model, inputs = build("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=rf"made by hand on 0: .*{says}"):
        apply(Plan(Anatomy(model, inputs)["0"], "made by hand", sources))
    assert unchanged(model, before)


def test_refuses_a_plan_of_yesterday():
    model, inputs = build("mlp")
    anatomy = Anatomy(model, inputs)
    plan = MinWeight(keep=0.5).propose(anatomy["0"])
    apply(plan)
    with pytest.raises(SurgeryError, match="made for 8 units, the layer has 4; propose again"):
        apply(plan)


def test_refuses_values_of_another_shape():
    """Rank-reduced weights are values of the network as it was: a neighbour's surgery outdates them."""
    model, inputs = build("mlp")
    anatomy = Anatomy(model, inputs)
    operation = EigenRemove(keep=0.5, rank=0.5, weights="reduced")
    first, second = operation.propose(anatomy["0"]), operation.propose(anatomy["2"])
    apply(first)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"2.weight was \(6, 8\) when the plan was made and is \(6, 4\) now"):
        apply(second)
    assert unchanged(model, before)


@pytest.mark.parametrize("operation", [MinWeight(keep=0.5), WeakExpand(grow=0.5)])
def test_refuses_an_anatomy_of_yesterday(operation):
    model, inputs = build("mlp")
    old, new = Anatomy(model, inputs), Anatomy(model, inputs)
    operate(new["0"], operation)
    before = copy.deepcopy(model.state_dict())
    for late in (MinWeight(keep=0.5), RandomRemove(keep=0.5), ZeroExpand(), PCNS()):
        with pytest.raises(SurgeryError, match=r"layer 0: .* when the anatomy was taken; take it anew"):
            operate(old["0"], late, signals=Signals(model, inputs))
    assert unchanged(model, before)


def test_refuses_what_is_no_optimizer():
    model, inputs = build("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"must be torch\.optim.Optimizer objects, not str"):
        operate(Anatomy(model, inputs)["0"], MinWeight(), ["adam"])
    assert unchanged(model, before)


def test_several_plans_are_tried_together():
    model, inputs = build("cnn")
    anatomy = Anatomy(model, inputs)
    before = copy.deepcopy(model.state_dict())
    with trial_surgery(*(MinWeight(keep=0.5).propose(layer) for layer in anatomy.values())):
        assert [layer.units for layer in anatomy.values()] == [3, 2, 4]
        outputs(model, inputs)
    assert unchanged(model, before) and [layer.units for layer in anatomy.values()] == [6, 4, 8]


def test_hooks_and_ties_stay():
    model, inputs = build("tied")
    calls = []
    model.first.weight.register_hook(lambda gradient: calls.append(gradient.shape))
    model.first.weight.register_post_accumulate_grad_hook(lambda parameter: calls.append(parameter.shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    operate(Anatomy(model, inputs)["stem"], MinWeight(keep=0.5), optimizer)
    train(model, inputs, optimizer, steps=1)
    assert model.first.weight is model.second.weight
    assert (model.second.in_features, model.second.out_features) == (3, 3)
    assert torch.Size([3, 3]) in calls and calls[-1] == (3, 3)


def test_a_fresh_network_takes_the_architecture():
    for name in NETWORKS:
        model, inputs = build(name)
        for number, layer in enumerate(Anatomy(model, inputs).values()):
            operate(layer, MinWeight(keep=0.5) if number % 2 else WeakExpand(grow=0.5))
        fresh, _ = build(name)
        resize(fresh, shapes(model))
        fresh.load_state_dict(model.state_dict())
        assert difference(outputs(model, inputs), outputs(fresh, inputs)) == 0, name
        assert repr(fresh) == repr(model), name


def test_another_networks_architecture_is_refused():
    model, _ = build("mlp")
    with pytest.raises(SurgeryError, match=r"of another network: 1\.bias, .* is on one side only"):
        resize(model, shapes(build("mlp_bn")[0]))
    with pytest.raises(SurgeryError, match=r"0\.weight has the shape \(8, 5\), the architecture says \(8,\)"):
        resize(model, {**shapes(model), "0.weight": [8]})


def test_a_plan_prints_as_a_table():
    model, inputs = build("layernorm")
    text = str(WeakExpand(grow=0.5).propose(Anatomy(model, inputs)["0"]))
    assert text.splitlines()[0] == "WeakExpand(grow=0.5, split='uneven', seed=0) on 0"
    assert "units                        8            12   +50.0%" in text
    assert "0 removed, 4 copied, 0 newborn" in text and "inexact: LayerNorm over its units" in text


def test_half_precision_and_scalars_in_state():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(torch.bfloat16)
    inputs = torch.randn(2, 4, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, inputs, optimizer)
    operate(Anatomy(model, inputs)["0"], WeakExpand(grow=1.0), optimizer)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    train(model, inputs, optimizer)

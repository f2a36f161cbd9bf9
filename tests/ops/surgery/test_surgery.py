"""Surgery refuses what it cannot do, before anything has changed, and keeps what others hold on to."""

from __future__ import annotations

import copy
import json
from enum import IntEnum

import pytest
import torch
from torch import nn

from network_surgery.ops import (
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
    adopt,
    apply,
    describe,
    load,
    operate,
    save,
    trial_surgery,
)  # fmt: skip
from tests.ops.networks import ADVERSARIAL, NETWORKS, build, difference, outputs, train


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
    with pytest.raises(SurgeryError, match=r"2.weight are \(6, 8\), but \(6, 4\) are needed"):
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
    for name in (*NETWORKS, *ADVERSARIAL):
        model, inputs = build(name)
        for number, layer in enumerate(Anatomy(model, inputs).values()):
            operate(layer, MinWeight(keep=0.5) if number % 2 else WeakExpand(grow=0.5))
        fresh, _ = build(name)
        adopt(fresh, json.loads(json.dumps(describe(model))))
        fresh.load_state_dict(model.state_dict())
        assert difference(outputs(model, inputs), outputs(fresh, inputs)) == 0, name
        assert repr(fresh) == repr(model), name


def test_another_networks_architecture_is_refused():
    model, _ = build("mlp")
    with pytest.raises(SurgeryError, match=r"of another network: 1\.bias, .* is on one side only"):
        adopt(model, describe(build("mlp_bn")[0]))
    with pytest.raises(SurgeryError, match=r"0\.weight has the shape \(8, 5\), the architecture says \(8,\)"):
        wrong = describe(model)
        adopt(model, {**wrong, "shapes": {**wrong["shapes"], "0.weight": [8]}})


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


@pytest.mark.parametrize("name", ["cnn", "separable", "tied", "grouped", "glu"])
def test_an_altered_network_is_saved_without_pickle(name, tmp_path):
    model, inputs = build(name)
    for number, layer in enumerate(Anatomy(model, inputs).values()):
        operate(layer, MinWeight(keep=0.5) if number % 2 else WeakExpand(grow=0.5))
    save(model, tmp_path / "net.pt")
    torch.load(tmp_path / "net.pt", weights_only=True)
    again = load(lambda: build(name)[0], tmp_path / "net.pt")
    assert difference(outputs(model, inputs), outputs(again, inputs)) == 0
    assert repr(again) == repr(model)
    assert len(list(again.parameters())) == len(list(model.parameters()))
    assert Anatomy(again, inputs).keys() == Anatomy(model, inputs).keys()


def test_what_is_not_a_saved_network_is_refused_in_one_sentence(tmp_path):
    save(build("mlp")[0], tmp_path / "net.pt")
    (tmp_path / "broken.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:100])
    torch.save({"weights": 1}, tmp_path / "other.pt")
    for file, message in [
        ("net.pt", "not of the network that the factory makes: the architecture is of another network"),
        ("none.pt", "does not exist"),
        ("broken.pt", "is not a saved network"),
        ("other.pt", "is not a network that ops.save wrote"),
    ]:
        with pytest.raises(SurgeryError, match=message) as raised:
            load(lambda: build("cnn")[0], tmp_path / file)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_of_one_anatomy_compose(name):
    """Plans made before any of them is applied do together what they do one after the other, in any order."""
    model, inputs = build(name, torch.float64)
    anatomy = Anatomy(model, inputs)
    plans = [
        (WeakExpand(grow=0.5) if number % 2 else MinWeight(keep=0.5)).propose(layer)
        for number, layer in enumerate(anatomy.values())
    ]
    before = copy.deepcopy(model.state_dict())
    with trial_surgery(*plans):
        one = outputs(model, inputs)
    with trial_surgery(*reversed(plans)):
        other = outputs(model, inputs)
    assert difference(one, other) < 1e-9
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_plan_whose_values_do_not_fit_any_more_is_refused():
    model, inputs = build("leaky", batch=16)
    anatomy = Anatomy(model, inputs)
    plan = PCNS(0.1, basis="eigen").propose(anatomy["2"], Signals(model, inputs))
    operate(anatomy["0"], MinWeight(keep=0.5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"PCNS.* on 2: its values for 2\.weight are .* since, propose again"):
        apply(plan)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Kind(IntEnum):
    FIRST = 1


class Remembering(nn.Module):
    """Keeps a scale for each unit that no state_dict holds, and a number that is more than a number."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out, self.kind = nn.Linear(5, 8), nn.Linear(8, 3), Kind.FIRST
        self.register_buffer("scale", torch.linspace(0.5, 2, 8), persistent=False)

    def forward(self, x):
        return self.out(self.hidden(x) * self.scale)


def test_saved_networks_keep_their_precision_and_what_no_state_dict_holds(tmp_path):
    model, inputs = Remembering().double(), torch.randn(3, 5, dtype=torch.float64)
    operate(Anatomy(model, inputs)["hidden"], MinWeight(keep=0.5))
    save(model, tmp_path / "net.pt")
    again = load(Remembering, tmp_path / "net.pt")
    assert difference(outputs(model, inputs), outputs(again, inputs)) == 0
    assert again.hidden.weight.dtype == torch.float64 and again.kind is Kind.FIRST
    with pytest.raises(SurgeryError, match="cannot be written"):
        save(model, tmp_path)

"""Every operation that expresses weights by fewer numbers: exact removal, files, averages, optimizers, undo."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import (
    PCNS,
    Anatomy,
    Fastfood,
    HashWeights,
    MinWeight,
    PredictWeights,
    PruneWeights,
    RandomEdges,
    ShareWeights,
    Signals,
    SurgeryError,
    WeakExpand,
    carry_architecture,
    load,
    materialize,
    operate,
    save,
    saved_bytes,
    trial_surgery,
    without_surgery,
)  # fmt: skip
from network_surgery.ops.anatomy import count
from network_surgery.ops.network.predicted import MEASURED, SEEDED
from network_surgery.ops.surgery.verification import measure
from tests.ops.contract.test_operations import assert_same
from tests.ops.networks import NETWORKS, build, difference, outputs, train

#: Each kind in the forms that it has.
KINDS = {
    "hashed": {"": HashWeights(0.25)},
    "cut to random edges": {"": RandomEdges(0.25)},
    "predicted": {each: PredictWeights(0.25, each, 1 if each == "autoencoder" else 2) for each in (*SEEDED, *MEASURED)},
    "shared": {"scalar": ShareWeights(), "vector": ShareWeights(8, block=4), "product": ShareWeights(8, 4, "each")},
    "a fastfood product": {"": Fastfood()},
}
every_kind = pytest.mark.parametrize("operation", [next(iter(KINDS[kind].values())) for kind in KINDS], ids=KINDS)
FORMS = {f"{kind} {form}".strip(): operation for kind in KINDS for form, operation in KINDS[kind].items()}
every_form = pytest.mark.parametrize("operation", FORMS.values(), ids=FORMS)
INPUTS = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(64) % 3
#: Of a network's file, what is neither number nor code.
MOST_BESIDES = 700


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 3)
    )


#: The forms that any network can have.
ANYWHERE = {name: operation for name, operation in FORMS.items() if not name.startswith("predicted")} | {
    "predicted": PredictWeights(0.5), "predicted in columns": PredictWeights(0.5, columns=2),
}  # fmt: skip


@pytest.mark.parametrize("operation", ANYWHERE.values(), ids=ANYWHERE)
@pytest.mark.parametrize("network", NETWORKS)
def test_units_go_exactly(network, operation):
    """The anatomy stays what it was, plans count what there is, and removal beside such weights is verified."""
    model, inputs = build(network, batch=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, inputs, optimizer)
    anatomy = Anatomy(model, inputs)
    layers, pinned = list(anatomy), dict(anatomy.pinned)
    plan = operate(anatomy["*"], operation, optimizer, verify=True)
    assert (plan.parameters_after, plan.flops_after) == count(model, inputs)
    fresh = Anatomy(model, inputs)
    assert list(fresh) == layers and fresh.pinned == pinned
    for layer in layers:
        plan = operate(anatomy[layer], MinWeight(0.5), optimizer, verify=True)
        assert (plan.parameters_after, plan.flops_after) == count(model, inputs)
    assert list(Anatomy(model, inputs)) == layers
    before = outputs(model.eval(), inputs)
    plain = without_surgery(model)
    materialize(model, optimizer)
    for each in (plain, model):
        assert difference(before, outputs(each.eval(), inputs)) < 1e-5
    train(model, inputs, optimizer)


#: What is done to another weight beside it.
BESIDE = {"pruned": PruneWeights(0.5), "hashed": HashWeights(0.5), "predicted": PredictWeights(0.5)}


@pytest.mark.parametrize("other", BESIDE.values(), ids=BESIDE)
@every_form
def test_a_mixed_schedule_is_saved_loaded_and_goes_on(operation, other, tmp_path):
    """Expressed so, units removed, others not so, an average, a state_dict: the same network comes back."""
    model = small()
    average, optimizer = AveragedModel(model), torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    anatomy, others = Anatomy(model, INPUTS), {"averages": average}
    for layer, each in (
        ("4", operation), ("0", MinWeight(0.5)), ("4", MinWeight(0.5)), ("0", other), ("4", WeakExpand(0.5)),
        ("*", ShareWeights(4)),
    ):  # fmt: skip
        empty = saved_bytes(model)
        plan = operate(anatomy[layer], each, optimizer, Signals(model, INPUTS), verify=True, **others)
        assert empty - saved_bytes(model) == pytest.approx(plan.bytes_before - plan.bytes_after, abs=MOST_BESIDES)
        assert plan.bytes_after == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    save(model, tmp_path / "network.pt")
    assert (tmp_path / "network.pt").stat().st_size == saved_bytes(model)
    twin = load(small, tmp_path / "network.pt")
    assert_same(outputs(model.eval(), INPUTS), outputs(twin.eval(), INPUTS))
    assert saved_bytes(twin) == saved_bytes(model)
    twin = carry_architecture(small(2))
    again = torch.optim.Adam(twin.parameters(), lr=0.01)
    twin.load_state_dict(carry_architecture(model).state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, trained in ((model, optimizer), (twin, again)):
        train(network, INPUTS, trained)
    assert_same(outputs(model.eval(), INPUTS), outputs(twin.eval(), INPUTS))
    operate(Anatomy(twin, INPUTS)["4"], MinWeight(0.5), again, verify=True)
    carried = carry_architecture(small(1))
    carried.load_state_dict(carry_architecture(average.module).state_dict())
    assert_same(outputs(average.module.eval(), INPUTS), outputs(carried.eval(), INPUTS))


@every_form
def test_undo_is_exact_and_the_error_is_that_of_the_weights(operation):
    model = small().eval()
    anatomy = Anatomy(model, INPUTS)
    before, old = copy.deepcopy(model.state_dict()), model[4].weight.detach().clone()

    def error():
        return float((model[4].weight - old).detach().norm() / old.norm())

    plan = operation.propose(anatomy["4"], Signals(model, INPUTS))
    with trial_surgery(plan):
        assert error() == pytest.approx(plan.error, rel=1e-4)
        inside = copy.deepcopy(model.state_dict())
        with trial_surgery(MinWeight(0.5).propose(anatomy["0"]), MinWeight(0.5).propose(anatomy["4"])):
            model(INPUTS)
        assert_same(dict(inside), dict(model.state_dict()))
        assert error() == pytest.approx(plan.error, rel=1e-4)
    assert_same(dict(before), dict(model.state_dict()))
    assert type(model[4]) is nn.Linear


OPTIMIZERS = ("SGD", "Adam", "RMSprop", "Adagrad", "Adamax", "Adafactor", "LBFGS", "NAdam", "Rprop")


@pytest.mark.parametrize("name", OPTIMIZERS)
@every_kind
def test_optimizers_go_on(operation, name):
    model = small()
    settings = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.001, **settings)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(INPUTS), TARGETS)
        loss.backward()
        return loss

    optimizer.step(closure)
    state = copy.deepcopy(optimizer.state_dict())
    with trial_surgery(operation.propose(Anatomy(model, INPUTS)["*"]), optimizers=optimizer):
        assert torch.isfinite(closure())
    assert_same(state, optimizer.state_dict())
    operate(Anatomy(model, INPUTS)["*"], operation, optimizer)
    optimizer.step(closure)
    operate(Anatomy(model, INPUTS)["4"], MinWeight(0.5), optimizer)
    optimizer.step(closure)
    materialize(model, optimizer)
    assert torch.isfinite(optimizer.step(closure))


@every_kind
def test_plans_measure_as_they_say_in_attention(operation):
    torch.manual_seed(0)
    model, inputs = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), torch.randn(3, 5, 8)
    anatomy = Anatomy(model, inputs)
    plan = operation.propose(anatomy["*"])
    assert "self_attn.in_proj_weight" in plan.expressed and measure(plan) < 1e-8
    assert set(plan.expressed) == set(anatomy.weights)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a fastfood product"])
def test_networks_of_complex_numbers(kind):
    model = nn.Sequential(nn.Linear(6, 10, dtype=torch.complex64), nn.Tanh(), nn.Linear(10, 3, dtype=torch.complex64))
    operation = next(iter(KINDS[kind].values()))
    operate(Anatomy(model, torch.randn(4, 6, dtype=torch.complex64))["*"], operation, verify=True)
    assert model[0].weight.dtype == torch.complex64


@pytest.mark.parametrize("kind", KINDS)
def test_what_writes_such_weights_is_refused(kind):
    model = small()
    anatomy = Anatomy(model, INPUTS)
    operation = next(iter(KINDS[kind].values()))
    operate(anatomy["4"], operation)
    with pytest.raises(SurgeryError, match=rf"writes 4\.weight anew, which is {kind}.*materialize"):
        operate(anatomy["0"], PCNS(variance_threshold=0.3), signals=Signals(model, INPUTS))
    with pytest.raises(SurgeryError, match="no plain weights"):
        operate(anatomy["4"], operation)


@every_form
def test_numbers_train_and_weights_stay_expressed(operation):
    """They move, but not what they mean; the layer computes with what they say."""
    model = small()
    anatomy = Anatomy(model, INPUTS)
    operate(anatomy["4"], operation, signals=Signals(model, INPUTS))
    stored, (expression,) = model[4].parametrizations.weight.original, model[4].parametrizations.weight
    before = stored.detach().clone()
    weight, inputs = expression(before).clone(), torch.randn(5, 96)
    train(model, INPUTS, torch.optim.Adam(model.parameters(), lr=0.01))
    assert (stored != before).float().mean() > 0.9
    assert torch.equal(expression(before), weight)
    torch.testing.assert_close(model[4](inputs), inputs @ expression(stored).T + model[4].bias)
    if isinstance(operation, (HashWeights, RandomEdges, ShareWeights)):  # whose numbers are means of the weight's
        torch.testing.assert_close(expression.reduced(model[4].weight), stored)

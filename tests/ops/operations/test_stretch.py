"""Stretch and collapse: the maths against slow references, the round trip, files, averages, optimizers, schedules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import (
    Anatomy,
    Collapse,
    HashWeights,
    MinWeight,
    PruneWeights,
    Signals,
    Stretch,
    SurgeryError,
    adopt,
    apply,
    carry_architecture,
    describe,
    load,
    measure,
    operate,
    predicted_loss_change,
    save,
    saved_bytes,
    trial_surgery,
    without_surgery,
)  # fmt: skip
from network_surgery.ops.anatomy import count
from network_surgery.ops.maths.factors import Cut, compose, filters, pair, tucker
from network_surgery.ops.network.files import fill
from tests.ops.contract.test_operations import assert_same
from tests.ops.networks import NETWORKS, Net, build, difference, outputs, train

SEED = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(shape, generator=SEED, dtype=torch.float64)


def test_a_pair_is_the_best_of_its_rank():
    matrix = drawn(9, 6)
    values = torch.linalg.svdvals(matrix)
    for rank in range(1, 7):
        left, right = pair(matrix, Cut(rank=rank / 6))
        assert left.shape == (9, rank) and right.shape == (rank, 6)
        torch.testing.assert_close((left @ right - matrix).norm(), values[rank:].norm())
    torch.testing.assert_close(left.T @ left, right @ right.T)  # the singular values, half on each side


@pytest.mark.parametrize(
    ("cut", "wanted"),
    [
        (Cut(rank=0.5), 2), (Cut(rank=0.01), 1), (Cut(rank=1.0), 4), (Cut(threshold=2.0), 3), (Cut(threshold=9.0), 1),
        (Cut(threshold=0.0), 4), (Cut(variance=0.6), 1), (Cut(variance=0.61), 2), (Cut(variance=1.0), 4),
    ],
)  # fmt: skip
def test_how_many_directions_stay(cut, wanted):
    assert cut.size(torch.tensor([4.0, 2.5, 2.0, 0.5])) == wanted


def test_kernels_are_factorized_as_their_unfoldings():
    kernel = drawn(6, 5, 3, 2)
    outer, inner = tucker(kernel, Cut(rank=0.6))
    assert outer.shape == (6, 3) and inner.shape == (5, 3)
    wanted = torch.linalg.svd(kernel.flatten(1)).U[:, :3]
    torch.testing.assert_close(outer @ outer.T, wanted @ wanted.T)
    errors = []
    for rank in (0.1, 0.3, 0.5, 0.8, 1.0):
        left, right = pair(filters(kernel), Cut(rank=rank))
        horizontal, vertical = left.view(6, 2, -1).permute(0, 2, 1).unsqueeze(2), right.view(-1, 5, 3, 1)
        errors.append(float((compose(horizontal, vertical, (1, 1)) - kernel).norm()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1 > 1e-9 > errors[-1]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_two_convolutions_are_the_composed_one(stride, dilation):
    """Against the convolutions themselves; and its gradient is the chain rule's."""
    first, second, x = drawn(3, 2, 3, 2).requires_grad_(), drawn(4, 3, 2, 3), drawn(2, 2, 14, 15)
    wanted = F.conv2d(F.conv2d(x, first, stride=stride), second, dilation=dilation)
    kernel = compose(second, first, (stride * dilation,) * 2)
    found = F.conv2d(x, kernel, stride=stride)
    torch.testing.assert_close(found[..., : wanted.shape[2], : wanted.shape[3]], wanted)
    slopes = [torch.autograd.grad(y.square().sum(), first)[0] for y in (found, wanted)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("kernels", ["tucker", "separable"])
@pytest.mark.parametrize("network", NETWORKS)
def test_stretched_and_collapsed_again_it_is_the_same_network(network, kernels):
    """At full rank, to rounding; plans say what is counted; names stay; every parameter is trained."""
    model, inputs = build(network, batch=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, inputs, optimizer)
    before, anatomy = outputs(model.eval(), inputs), Anatomy(model, inputs)
    try:
        plan = operate(anatomy["*"], Stretch(threshold=0.0, kernels=kernels), optimizer, verify=True)
    except SurgeryError as error:
        assert "no layer that could be stretched" in str(error)
    names = list(anatomy)
    for name in names:
        try:
            plan = operate(anatomy[name], Stretch(1.0, kernels=kernels), optimizer, verify=True)
        except SurgeryError as error:
            assert "tied" in str(error) or "torch's own class" in str(error) or "groups" in str(error)
            continue
        assert (plan.parameters_after, plan.flops_after) == count(model, inputs) and plan.error < 1e-6
        assert plan.bytes_after == anatomy.bytes() and name in anatomy
        assert len(plan.notes) == 2 or kernels == "separable"
    assert difference(before, outputs(model.eval(), inputs)) < 1e-4
    train(model, inputs, optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    before = outputs(model.eval(), inputs)
    while new := [name for name in anatomy if name not in names]:
        operate(anatomy[new[0]], Collapse(), optimizer, verify=True)
    assert set(anatomy) <= set(names) and difference(before, outputs(model.eval(), inputs)) < 1e-4
    train(model, inputs, optimizer)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 3),
    )  # fmt: skip


INPUTS = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def adam(model):
    """Decay for weights only: two groups."""
    by = [[p for p in model.parameters() if (p.dim() > 1) is weights] for weights in (True, False)]
    return torch.optim.AdamW([{"params": by[0], "weight_decay": 0.1}, {"params": by[1], "weight_decay": 0.0}], lr=0.01)


def test_a_mixed_schedule_is_saved_loaded_and_goes_on(tmp_path):
    """Stretched, units removed of the new layer and of others, hashed, pruned; the twin trains on alike."""
    model = small()
    average, optimizer = AveragedModel(model), adam(model)
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    anatomy, others = Anatomy(model, INPUTS), {"averages": average}
    operate(anatomy["6"], Stretch(0.5), optimizer, **others)
    assert list(anatomy) == ["0", "3", "6.0", "6"] and type(model[6]) is nn.Sequential
    operate(anatomy["3"], Stretch(0.5), optimizer, **others)
    operate(anatomy["6.0"], MinWeight(0.5), optimizer, verify=True, **others)
    operate(anatomy["6"], MinWeight(0.5), optimizer, verify=True, **others)
    operate(anatomy["3.1"], Stretch(0.5, kernels="separable"), optimizer, **others)
    operate(anatomy["0"], HashWeights(0.25), optimizer, **others)
    operate(anatomy["6"], PruneWeights(0.5), optimizer, **others)
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    save(model, tmp_path / "network.pt")
    twin = load(small, tmp_path / "network.pt")
    assert_same(outputs(model.eval(), INPUTS), outputs(twin.eval(), INPUTS))
    assert saved_bytes(twin) == (tmp_path / "network.pt").stat().st_size and describe(twin) == describe(model)
    assert list(Anatomy(twin, INPUTS)) == list(anatomy)
    twin = small(2)
    again = adam(twin)
    adopt(twin, describe(model), again)
    fill(twin, model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, trained in ((model, optimizer), (twin, again)):
        train(network, INPUTS, trained)
    assert_same(dict(model.state_dict()), dict(twin.state_dict()))
    carried = carry_architecture(small(1))
    carried.load_state_dict(carry_architecture(average.module).state_dict())
    assert_same(outputs(average.module.eval(), INPUTS), outputs(carried.eval(), INPUTS))
    plain = without_surgery(model)
    assert difference(outputs(model.eval(), INPUTS), outputs(plain.eval(), INPUTS)) < 1e-6
    with pytest.raises(SurgeryError, match="on one side only"):
        adopt(twin, describe(small()))


def test_an_average_is_factorized_as_itself():
    """With the network's own directions, so that the average goes on being one; at full rank it stays what it was."""
    model = small()
    average, optimizer = AveragedModel(model), adam(model)
    average.update_parameters(model)
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    before = outputs(average.eval(), INPUTS)
    anatomy = Anatomy(model, INPUTS)
    for layer, kernels in (("3", "tucker"), ("0", "separable"), ("6", "tucker")):
        operate(anatomy[layer], Stretch(1.0, kernels=kernels), optimizer, averages=average)
    assert difference(before, outputs(average.eval(), INPUTS)) < 1e-4
    torch.testing.assert_close(average.module[6][1].weight, model[6][1].weight)
    average.update_parameters(model)
    assert [name for name, _ in average.module.named_parameters()] == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("operation", [Stretch(0.5), Stretch(0.5, between="relu"), Collapse()])
def test_undo_is_exact(optimizer, operation):
    model = small().eval()
    operate(Anatomy(model, INPUTS)["6"], Stretch(0.5))
    kinds = {
        "adam": adam, "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9),
        "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.01),
    }  # fmt: skip
    trained = kinds[optimizer](model)

    def closure():
        trained.zero_grad()
        loss = F.cross_entropy(model(INPUTS), torch.arange(16) % 3)
        loss.backward()
        return loss

    trained.step(closure)
    anatomy = Anatomy(model, INPUTS)
    layer = "6.0" if isinstance(operation, Collapse) else "3"
    before = copy.deepcopy((dict(model.state_dict()), trained.state_dict(), list(anatomy), repr(model)))
    parameters = list(model.parameters())
    with trial_surgery(operation.propose(anatomy[layer]), optimizers=trained):
        assert repr(model) != before[3]
        model(INPUTS)
    assert_same(before, (dict(model.state_dict()), trained.state_dict(), list(anatomy), repr(model)))
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    operate(anatomy[layer], operation, trained)
    trained.step(closure)
    trained.step(closure)
    assert torch.isfinite(closure())


def test_hooks_and_frozen_weights_stay():
    model, called = small(), []
    model[6].register_forward_hook(lambda module, args, out: called.append(out.shape))
    model[6].requires_grad_(False)
    bias = model[6].bias
    operate(Anatomy(model, INPUTS)["6"], Stretch(0.5))
    called.clear()
    model(INPUTS)
    assert called == [(16, 40)] and model[6][1].bias is bias
    assert not any(parameter.requires_grad for parameter in model[6].parameters())


@pytest.mark.parametrize("between", ["relu", "tanh", "batch_norm"])
def test_something_nonlinear_between_makes_another_network(between):
    model = small()
    anatomy = Anatomy(model, INPUTS)
    plan = operate(anatomy["3"], Stretch(0.5, between=between), verify=True)
    assert plan.error is None and 0 < plan.evidence["weight_error"] < 1 and plan.measured > 1e-3
    assert len(model[3]) == 5 and {"3.0", "3.2", "3"} <= set(anatomy)
    train(model, INPUTS, adam(model))
    with pytest.raises(SurgeryError, match="stands between the two"):
        operate(anatomy["3.0"], Collapse())


def test_a_plan_that_saves_nothing_says_so():
    anatomy = Anatomy(small(), INPUTS)
    plan = Stretch(1.0).propose(anatomy["6"])
    assert plan.notes == ("it saves no parameters", "it saves no FLOPs") and "it saves no FLOPs" in str(plan)
    assert Stretch(0.25).propose(anatomy["6"]).notes == ()
    with pytest.raises(SurgeryError, match="no layer that could be stretched, and be smaller"):
        Stretch(1.0, kernels="separable").propose(Anatomy(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
                                                          torch.zeros(2, 3))["*"])  # fmt: skip


def test_what_cannot_be_done_is_refused_with_the_reason():
    model = small()
    anatomy = Anatomy(model, INPUTS)
    operate(anatomy["6"], PruneWeights(0.5))
    before = copy.deepcopy(model.state_dict())
    for layer, operation, reason in (
        ("6", Stretch(0.5), "6.weight is masked or hashed"),
        ("6", Collapse(), "masked or hashed.*cannot become one"),
        ("0", Collapse(), "native_batch_norm.*stands between|masked"),
    ):
        with pytest.raises(SurgeryError, match=reason):
            operate(anatomy[layer], operation)
    with pytest.raises(SurgeryError, match="repairs are for units that go"):
        operate(anatomy["3"], Stretch(0.5), signals=Signals(model, INPUTS), repair=["bias"])
    assert_same(dict(before), dict(model.state_dict()))
    reads = Net(lambda m, x: F.linear(x, m.first.weight).relu() @ m.out.weight.T, first=nn.Linear(4, 6, bias=False),
                out=nn.Linear(6, 3, bias=False))  # fmt: skip
    anatomy = Anatomy(reads, torch.randn(3, 4))
    with pytest.raises(SurgeryError, match="does not run with the new modules"):
        operate(anatomy["first"], Stretch(0.5))
    assert type(reads.first) is nn.Linear


def test_a_convolution_that_pads_in_between_is_not_collapsed():
    pads = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 3))
    anatomy = Anatomy(pads, INPUTS)
    with pytest.raises(SurgeryError, match="the second convolution pads"):
        operate(anatomy["0"], Collapse())
    strided = nn.Sequential(nn.Conv2d(2, 4, 2, stride=2, padding=1), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(),
                            nn.Linear(27, 3))  # fmt: skip
    before, anatomy = strided(INPUTS), Anatomy(strided, INPUTS)
    assert measure(Collapse().propose(anatomy["0"])) < 1e-8
    operate(anatomy["0"], Collapse())
    torch.testing.assert_close(strided(INPUTS), before)
    assert strided[0].kernel_size == (4, 4) and type(strided[1]) is nn.Identity and "0" in anatomy


@pytest.mark.parametrize("between", {
    "add": lambda m, x: m.a(x) + m.a(x.flip(1)), "gate": lambda m, x: m.a(x) * x.mean(-1, keepdim=True),
    "masked": lambda m, x: m.a(x).masked_fill(x[..., :1] > 0, 0.0), "scaled": lambda m, x: m.a(x) / x.square().sum(),
    "dropout": lambda m, x: m.drop(m.a(x)),
}.values())  # fmt: skip
def test_what_joins_tensors_stands_between(between):
    """No chain of operators says so; each of these changed the network before."""
    torch.manual_seed(0)
    model = Net(lambda m, x: m.o(m.b(between(m, x)).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 7), o=nn.Linear(7, 3),
                drop=nn.Dropout(0.2))  # fmt: skip
    twice = Net(lambda m, x: m.o(m.b(m.a(x).relu()) + m.b(m.a(x))), a=model.a, b=model.b, o=model.o)
    for network in (model, twice):
        with pytest.raises(SurgeryError, match="stands between the two"):
            operate(Anatomy(network, torch.randn(4, 5, 6))["a"], Collapse())


def test_dense_layers_of_sequences_are_collapsed():
    model, x = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), torch.randn(2, 5, 6)
    anatomy, before = Anatomy(model, x), model(x)
    operate(anatomy["0"], Stretch(1.0))
    operate(anatomy["0.0"], Collapse())
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-4)


def test_what_is_frozen_stays_frozen():
    model = small()
    model[6].weight.requires_grad_(False)
    operate(Anatomy(model, INPUTS)["6"], Stretch(0.5))
    wanted = {"0.weight": False, "1.weight": False, "1.bias": True}
    assert {name: p.requires_grad for name, p in model[6].named_parameters()} == wanted
    twin = small()
    twin[6].weight.requires_grad_(False)
    adopt(twin, describe(model))
    assert {name: p.requires_grad for name, p in twin[6].named_parameters()} == wanted
    model[6][0].requires_grad_(True)
    with pytest.raises(SurgeryError, match="one of the two is frozen"):
        operate(Anatomy(model, INPUTS)["6.0"], Collapse())


def test_optimizers_of_named_parameters_and_the_order_in_memory_follow():
    model = small().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.01)
    anatomy = Anatomy(model, INPUTS)
    with trial_surgery(Stretch(0.5).propose(anatomy["3"]), optimizers=optimizer):
        pass
    for layer, operation in (("3", Stretch(0.5)), ("6", Stretch(0.5)), ("6.0", Collapse())):
        operate(anatomy[layer], operation, optimizer)
        group, named = optimizer.param_groups[0], dict(model.named_parameters())
        assert [named[name] for name in group["param_names"]] == group["params"] and len(named) == len(group["params"])
    assert model[3][1].weight.is_contiguous(memory_format=torch.channels_last)
    twin = small(1)
    again = torch.optim.Adam(twin.named_parameters(), lr=0.01)
    adopt(twin, describe(model), again)
    assert again.param_groups[0]["param_names"] == optimizer.param_groups[0]["param_names"]


def test_the_bias_of_collapsed_layers_is_trained_as_biases_are():
    """The first of the two had none; it comes to the place of the second one's, also where a network adopts this."""
    model = small()
    trained = adam(model)
    anatomy = Anatomy(model, INPUTS)
    with trial_surgery(Stretch(0.5).propose(anatomy["6"]), optimizers=trained):
        pass
    operate(anatomy["6"], Stretch(0.5), trained)
    operate(anatomy["6.0"], Collapse(), trained)
    weights, vectors = (group["params"] for group in trained.param_groups)
    assert {p.dim() > 1 for p in weights} == {True} and {p.dim() > 1 for p in vectors} == {False}
    assert {id(p) for p in (*weights, *vectors)} == {id(p) for p in model.parameters()}
    twin = small(1)
    again = adam(twin)
    adopt(twin, describe(model), again)
    fill(twin, model.state_dict())
    named = [{id(p): name for name, p in network.named_parameters()} for network in (model, twin)]
    for one, other in zip(trained.param_groups, again.param_groups, strict=True):
        assert [named[0][id(p)] for p in one["params"]] == [named[1][id(p)] for p in other["params"]]


def test_a_batch_norm_between_would_take_positions_of_sequences_for_units():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(SurgeryError, match="positions for units"):  # 3 positions, 3 directions: it would run
        operate(Anatomy(model, torch.randn(4, 3, 6))["0"], Stretch(0.5, between="batch_norm"))


def test_plans_and_layers_of_before_are_refused():
    model = small()
    anatomy = Anatomy(model, INPUTS)
    stretch, cut, layer = Stretch(0.5).propose(anatomy["6"]), MinWeight(0.5).propose(anatomy["3"]), anatomy["6"]
    for other in (HashWeights(0.5).propose(anatomy["6"]), cut):
        with pytest.raises(SurgeryError, match="6 has changed since the plan was made"), trial_surgery(other, stretch):
            pass
    apply(stretch)
    with pytest.raises(SurgeryError, match="before modules were replaced"):
        apply(cut)
    with pytest.raises(SurgeryError, match="before modules were replaced"):
        operate(layer, MinWeight(0.5))


def test_the_change_of_the_loss_is_predicted():
    model, targets = small().double(), torch.arange(16) % 3
    inputs = INPUTS.double()
    plan = Stretch(0.9).propose(Anatomy(model, inputs)["6"])
    before = F.cross_entropy(model.eval()(inputs), targets)
    with trial_surgery(plan):
        change = float((F.cross_entropy(model(inputs), targets) - before).detach())
    assert predicted_loss_change(plan, inputs, targets).change == pytest.approx(change, rel=0.2)
    with pytest.raises(SurgeryError, match="no line to follow"):
        predicted_loss_change(Stretch(0.9, between="relu").propose(Anatomy(model, inputs)["6"]), inputs, targets)


@pytest.mark.parametrize("wrong", [
    {"rank": 0}, {"rank": 2}, {"rank": None}, {"rank": 0.5, "variance": 0.5}, {"variance": 1.5}, {"threshold": -1.0},
    {"between": "x"}, {"kernels": "x"},
])  # fmt: skip
def test_settings(wrong):
    with pytest.raises(SurgeryError, match="Stretch"):
        Stretch(**wrong)

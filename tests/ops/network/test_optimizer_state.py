"""The state of optimizers follows the units; everything else of them stays."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Plan,
    Signals,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    apply,
    operate,
    register_state,
    trial_surgery,
)
from network_surgery.ops.network.optimizer_keys import KEYS
from network_surgery.ops.network.optimizer_state import check, exchange, follow, list_optimizers
from tests.ops.networks import build, loss, train

#: Optimizers of torch in the forms that keep different state or take different paths.
FORMS = {
    "SGD": partial(optim.SGD, lr=0.05),
    "SGD momentum": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "SGD nesterov": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "SGD dampening": partial(optim.SGD, lr=0.05, momentum=0.9, dampening=0.5, foreach=False),
    "SGD fused": partial(optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "SGD maximize": partial(optim.SGD, lr=0.01, momentum=0.9, maximize=True),
    "Adam": partial(optim.Adam, lr=0.01),
    "Adam amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True, foreach=True, weight_decay=1e-2),
    "Adam fused": partial(optim.Adam, lr=0.01, amsgrad=True, fused=True),
    "Adam tensor lr": partial(optim.Adam, lr=torch.tensor(0.01), foreach=False),
    "AdamW": partial(optim.AdamW, lr=0.01, amsgrad=True),
    "AdamW fused": partial(optim.AdamW, lr=torch.tensor(0.01), fused=True, maximize=True),
    "NAdam": partial(optim.NAdam, lr=0.01, decoupled_weight_decay=True, weight_decay=1e-2),
    "RAdam": partial(optim.RAdam, lr=0.01, foreach=True),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01),
    "RMSprop centered": partial(optim.RMSprop, lr=0.01, centered=True, momentum=0.9),
    "Adagrad": partial(optim.Adagrad, lr=0.05, initial_accumulator_value=0.1, lr_decay=1e-3),
    "Adagrad fused": partial(optim.Adagrad, lr=0.05, fused=True),
    "Adadelta": partial(optim.Adadelta, lr=1.0),
    "ASGD": partial(optim.ASGD, lr=0.01, t0=0),
    "Rprop": partial(optim.Rprop, lr=0.01),
    "Adafactor": partial(optim.Adafactor, lr=0.05),
    "Adafactor foreach": partial(optim.Adafactor, lr=0.05, foreach=True),
}
#: Exact where epsilons do not blur how state answers to the gradient's scale. ASGD's state is of weights, so they must
#: be given to it; Adafactor's means over copied units are no function of the means before.
EXACT = {
    **{name: form for name, form in FORMS.items() if not name.startswith(("Adam tensor", "Adafactor"))},
    "Adamax": partial(optim.Adamax, eps=0.0),
    "RMSprop": partial(optim.RMSprop, eps=1e-20),
    "RMSprop centered": partial(optim.RMSprop, centered=True, momentum=0.9, eps=1e-20),
    "Adadelta": partial(optim.Adadelta, eps=1e-24),
    "ASGD": partial(optim.ASGD, lr=0.0, t0=0),
    "SGD momentum": partial(optim.SGD, lr=0.05, momentum=0.9),  # L2 decay has a part of its own in the state
    "Adam amsgrad": partial(optim.Adam, amsgrad=True),
}
#: Another way through the same steps leaves the same state.
EXACT |= {
    f"{name} foreach maximize": partial(form, foreach=True, maximize=True)
    for name, form in EXACT.items()
    if not {"foreach", "fused", "maximize"} & form.keywords.keys()
}
#: 0 → 1 copy, 3 → 3 copies, 1 and 7 → 2, signed and uneven, summing to one.
SOURCES = (0, 1, 2, 3, 4, 5, 6, 7, 3, 1, 7, 3)
SHARES = torch.tensor([1, 1.5, 1, 0.25, 1, 1, 1, 0.3, -0.5, -0.5, 0.7, 1.25], dtype=torch.float64)


def widen(model, inputs, optimizers=()):
    apply(Plan(Anatomy(model, inputs)["0"], "by hand", SOURCES, shares=SHARES), optimizers)


def assert_state_fits(optimizer, model, make):
    """Every state tensor has the shape that a fresh optimizer would give it."""
    fresh = copy.deepcopy(model)
    other = make(fresh.parameters())
    for parameter in fresh.parameters():
        parameter.grad = torch.zeros_like(parameter)
    other.step()
    for mine, its in zip(model.parameters(), fresh.parameters(), strict=True):
        found, wanted = ({k: v.shape for k, v in o.state[p].items()} for o, p in ((optimizer, mine), (other, its)))
        assert found == wanted


@pytest.mark.parametrize("form", FORMS)
def test_training_goes_on(form):
    model, inputs = build("cnn_plain", batch=8)
    optimizer = FORMS[form](model.parameters())
    train(model, inputs, optimizer)
    for operation in (MinWeight(keep=0.5), WeakExpand(grow=1.0), ZeroExpand(grow=0.5)):
        for layer in Anatomy(model, inputs).values():
            operate(layer, operation, optimizer)
        before = copy.deepcopy(model.state_dict())
        train(model, inputs, optimizer)
        assert all(torch.isfinite(p).all() and not torch.equal(p, before[n]) for n, p in model.named_parameters())
        assert_state_fits(optimizer, model, FORMS[form])


@pytest.mark.parametrize("kind", ["Adadelta", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"])
@pytest.mark.parametrize("form", ["capturable", "differentiable"])
def test_other_forms_go_on(kind, form, monkeypatch):
    """Capturable steps are meant for accelerators, differentiable ones for tensors that are no leaves."""
    module = importlib.import_module(f"torch.optim.{kind.lower().removesuffix('w')}")
    monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    model, inputs = build("mlp")
    make = partial(getattr(optim, kind), **{form: True})
    optimizer = make(model.parameters())

    def steps():
        for _ in range(2):
            optimizer.zero_grad()
            loss(model.requires_grad_(True), inputs).backward()
            model.requires_grad_(form == "capturable")
            optimizer.step()

    steps()
    operate(Anatomy(model.requires_grad_(True), inputs)["0"], WeakExpand(grow=1.0), optimizer)
    steps()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert_state_fits(optimizer, model.requires_grad_(form == "capturable"), make)


@pytest.mark.parametrize("form", [*EXACT, "Muon"])
def test_the_state_is_that_of_a_network_wide_from_the_start(form):
    """The two see the same weights and batches; what the narrow one has gathered then becomes what the wide one has."""
    if form == "Muon" and not hasattr(optim, "Muon"):
        pytest.skip("Muon came with torch 2.9")
    narrow, inputs = build("mlp", torch.float64, batch=16)
    wide = copy.deepcopy(narrow)
    widen(wide, inputs)
    tensors = [[p for p in m.parameters() if p.dim() == 2 or form != "Muon"] for m in (narrow, wide)]
    make = optim.Muon if form == "Muon" else EXACT[form]
    one, other = (make(parameters) for parameters in tensors)
    for step in range(5):
        if step < 4:
            with torch.no_grad():
                for parameter in narrow.parameters():
                    parameter.normal_()
        batch = torch.randn_like(inputs)
        start = copy.deepcopy(narrow.state_dict())
        wider = copy.deepcopy(narrow)
        widen(wider, inputs)
        wide.load_state_dict(wider.state_dict())
        for model, optimizer in ((narrow, one), (wide, other)):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        narrow.load_state_dict(start)
    widen(narrow, inputs, one)
    for left, right in zip(*tensors, strict=True):
        assert one.state[left].keys() == other.state[right].keys()
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-9, atol=1e-15)
        for key, value in one.state[left].items():
            torch.testing.assert_close(value, other.state[right][key], rtol=1e-9, atol=1e-30, msg=f"{key}")


def test_every_key_of_torch_is_in_the_table():
    """A new torch with a new state tensor is noticed here."""
    exempt = (optim.Optimizer, optim.LBFGS, optim.SparseAdam)
    for kind in (each for each in vars(optim).values() if isinstance(each, type) and each not in exempt):
        parameter = nn.Parameter(torch.randn(3, 2))
        settings = {"lr": 0.1, "momentum": 0.9, "amsgrad": True, "centered": True}
        accepted = inspect.signature(kind).parameters
        optimizer = kind([parameter], **{key: value for key, value in settings.items() if key in accepted})
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        keys = {key for key, value in optimizer.state[parameter].items() if value.dim()}
        assert keys and keys <= KEYS["torch"][kind.__name__].keys(), kind


def test_newborn_units_start_like_fresh_parameters():
    for make, key, value in (
        (partial(optim.Adagrad, initial_accumulator_value=0.5), "sum", 0.5),
        (partial(optim.Rprop, lr=0.25), "step_size", 0.25),
        (optim.Adam, "exp_avg_sq", 0.0),
    ):
        model, inputs = build("mlp")
        optimizer = make(model.parameters())
        train(model, inputs, optimizer)
        before = optimizer.state[model[0].weight][key].clone()
        operate(Anatomy(model, inputs)["0"], ZeroExpand(grow=0.5), optimizer)
        assert torch.equal(optimizer.state[model[0].weight][key][:8], before)
        assert (optimizer.state[model[0].weight][key][8:] == value).all()
        assert (optimizer.state[model[2].weight][key][:, 8:] == value).all()


def test_the_first_updates_of_newborn_units_under_adam():
    """3.2 learning rates at first, 6.6 at most, under a late step count and a constant gradient."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.Adam([parameter], lr=1.0)
    optimizer.state[parameter] = {
        "step": torch.tensor(1e6), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)
    }  # fmt: skip
    places = [0.0]
    for _ in range(100):
        parameter.grad = torch.full_like(parameter, 0.3)
        optimizer.step()
        places.append(parameter.item())
    updates = torch.tensor(places).diff().abs()
    assert updates[0] == pytest.approx(0.1 / 0.001**0.5, rel=1e-4)
    assert (updates.max().item(), updates.argmax().item() + 1) == (pytest.approx(6.57, abs=0.01), 12)


def test_the_next_step_after_duplication():
    """SGD with momentum: copies' fan-in moves by their share of what the unit would, their fan-out by all of it."""
    model, inputs = build("mlp", torch.float64, batch=16)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, inputs, optimizer)
    old, (first, _, second, *_) = copy.deepcopy(model.state_dict()), model
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(twin, inputs, twin_optimizer, steps=1)
    moved = {name: value - old[name] for name, value in twin.state_dict().items()}
    widen(model, inputs, optimizer)
    train(model, inputs, optimizer, steps=1)
    chosen = list(SOURCES)
    torch.testing.assert_close(first.weight, old["0.weight"][chosen] + SHARES[:, None] * moved["0.weight"][chosen])
    torch.testing.assert_close(first.bias, old["0.bias"][chosen] + SHARES * moved["0.bias"][chosen])
    torch.testing.assert_close(second.weight, old["2.weight"][:, chosen] * SHARES + moved["2.weight"][:, chosen])
    torch.testing.assert_close(model[4].weight, twin[4].weight)


def test_equal_copies_are_one_unit_with_other_learning_rates():
    """Two copies with half the fan-out each: a unit whose fan-in learns half, whose fan-out learns twice as fast."""
    narrow, inputs = build("mlp", torch.float64, batch=16)
    first, _, second, _, third = narrow
    groups = [
        {"params": [first.weight, first.bias], "lr": 0.1},
        {"params": [second.weight], "lr": 0.1},
        {"params": [second.bias, third.weight, third.bias], "lr": 0.1},
    ]
    one = optim.SGD(groups, momentum=0.9, nesterov=True)
    train(narrow, inputs, one)
    wide, other = copy.deepcopy((narrow, one))
    operate(Anatomy(wide, inputs)["0"], WeakExpand(grow=1.0, split="equal"), other)
    one.param_groups[0]["lr"], one.param_groups[1]["lr"] = 0.05, 0.2
    train(narrow, inputs, one, steps=10)
    train(wide, inputs, other, steps=10)
    torch.testing.assert_close(wide(inputs), narrow(inputs), rtol=1e-12, atol=1e-12)


def test_a_recombined_fan_out_has_the_gradient_it_had():
    """Copies are recombined from those that stay: the gradients of the columns that stay do not change."""
    model, inputs = build("mlp", torch.float64, batch=16)
    optimizer = optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    widen(model, inputs)
    with torch.no_grad():
        model[2].weight.normal_()
    train(model, inputs, optimizer)
    before = {key: state["momentum_buffer"].clone() for key, state in optimizer.state.items()}
    plan = PCNS(variance_threshold=1e-9).propose(Anatomy(model, inputs)["0"], Signals(model, inputs))
    kept = list(plan.sources)
    assert len(kept) <= 10 and plan.error < 1e-6 and not torch.equal(plan.mixing["2.weight"], torch.eye(12)[:, kept])
    gradient, answer = model[2].weight.grad, model(inputs)
    apply(plan, optimizer)
    torch.testing.assert_close(model(inputs), answer)
    torch.testing.assert_close(optimizer.state[model[2].weight]["momentum_buffer"], before[model[2].weight][:, kept])
    optimizer.zero_grad()
    loss(model, inputs).backward()
    torch.testing.assert_close(model[2].weight.grad, gradient[:, kept])


def test_adafactors_estimate_follows():
    model, inputs = build("cnn")
    optimizer = optim.Adafactor(model.parameters())
    train(model, inputs, optimizer)

    def estimate(parameter):
        state = optimizer.state[parameter]
        return state["row_var"] @ state["col_var"] / state["row_var"].mean(dim=-2, keepdim=True)

    weights = [model[8].weight, model[11].weight, model[4].weight]
    before = [estimate(weight) for weight in weights]
    plan = WeakExpand(grow=0.5).propose(Anatomy(model, inputs)["8"])
    chosen, shares = list(plan.sources), plan.shares.float()
    apply(plan, optimizer)
    expected = (before[0][chosen] * shares[:, None] ** 2, before[1][:, chosen], before[2])
    for weight, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(estimate(weight), wanted)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_forgets_its_curvature_and_goes_on(search):
    model, inputs = build("mlp", torch.float64, batch=64)
    optimizer = optim.LBFGS(model.parameters(), lr=0.1 if search is None else 1.0, line_search_fn=search, max_iter=5)

    def closure():
        optimizer.zero_grad()
        value = (model(inputs) - inputs[:, :3].sin()).square().mean()
        value.backward()
        return value

    optimizer.step(closure)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with trial_surgery(MinWeight(keep=0.5).propose(Anatomy(model, inputs)["2"]), optimizers=optimizer):
        optimizer.step(closure)
    assert_equal(optimizer.state_dict()["state"], before)
    optimizer.step(closure)
    for operation in (MinWeight(keep=0.5), WeakExpand(grow=1.0)):
        evaluations = optimizer.state[model[0].weight]["func_evals"]
        operate(Anatomy(model, inputs)["2"], operation, optimizer)
        assert optimizer.state[model[0].weight] == {"func_evals": evaluations, "n_iter": 0}
        start = closure().item()
        for _ in range(10):
            optimizer.step(closure)
        assert closure().item() < 0.5 * start
        assert len(optimizer.state[model[0].weight]["old_dirs"]) > 3


def test_lbfgs_over_other_parameters_keeps_its_curvature():
    model, inputs = build("mlp")
    train(model, inputs, optim.SGD(model.parameters(), lr=0.1))
    optimizer = optim.LBFGS(model[4].parameters(), max_iter=3)
    optimizer.step(lambda: backward(model, inputs))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer)
    assert_equal(optimizer.state_dict()["state"], before)


def backward(model, inputs):
    value = loss(model, inputs)
    value.backward()
    return value


def test_sparse_adam():
    embedding = nn.Embedding(9, 6, sparse=True)
    model = nn.Sequential(embedding, nn.ReLU(), nn.Linear(6, 3))
    inputs = torch.tensor([[1, 2, 4], [3, 1, 0]])
    sparse, dense = optim.SparseAdam([embedding.weight]), optim.SGD(model[2].parameters(), lr=0.1)

    def step():
        sparse.zero_grad(), dense.zero_grad()
        backward(model, inputs)
        sparse.step(), dense.step()

    step()
    before = sparse.state[embedding.weight]["exp_avg_sq"].clone()
    plan = MinWeight(keep=0.5).propose(Anatomy(model, inputs)["0"])
    apply(plan, (sparse, dense))
    assert torch.equal(sparse.state[embedding.weight]["exp_avg_sq"], before[:, list(plan.sources)])
    step()
    assert sparse.state[embedding.weight]["step"] == 2
    gradient = embedding.weight.grad.to_dense()
    operate(Anatomy(model, inputs)["0"], ZeroExpand(grow=1.0), (sparse, dense))
    assert embedding.weight.grad.is_sparse and torch.equal(embedding.weight.grad.to_dense()[:, :3], gradient)
    sparse.step()


def test_several_optimizers_and_their_groups():
    model, inputs = build("mlp")
    first = optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    second = optim.Adam([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(model[2].parameters())])
    backward(model, inputs)
    first.step(), second.step()
    groups = copy.deepcopy([{**group, "params": None} for o in (first, second) for group in o.param_groups])
    holds = [[id(p) for p in group["params"]] for o in (first, second) for group in o.param_groups]
    operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), (first, second))
    assert first.state[model[0].weight]["momentum_buffer"].shape == (4, 5)
    assert second.state[model[2].weight]["exp_avg_sq"].shape == (6, 4)
    assert holds == [[id(p) for p in group["params"]] for o in (first, second) for group in o.param_groups]
    assert groups == [{**group, "params": None} for o in (first, second) for group in o.param_groups]
    assert [group["lr"] for group in second.param_groups] == [0.01, 0.02]
    assert model[4].weight not in first.state and model[4].weight not in second.state
    first.step(), second.step()


def test_frozen_parameters_get_no_state():
    model, inputs = build("frozen")
    optimizer = optim.Adam(model.parameters())
    train(model, inputs, optimizer)
    for layer in Anatomy(model, inputs).values():
        operate(layer, WeakExpand(grow=0.5), optimizer)
    frozen = {p: p.clone() for p in model.parameters() if not p.requires_grad}
    train(model, inputs, optimizer)
    assert len(frozen) == 4
    for parameter, value in frozen.items():
        assert torch.equal(parameter, value) and parameter not in optimizer.state and parameter.grad is None


def assert_equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["SGD momentum", "Adam", "AdamW fused", "ASGD", "Adafactor"])
@pytest.mark.parametrize("stepped", [True, False])
def test_training_inside_a_trial_leaves_no_trace_on_what_was_operated_on(form, stepped):
    """State made inside is gone, step counters written to in place are back; what surgery did not touch is trained."""
    model, inputs = build("mlp")
    optimizer = FORMS[form](model.parameters())
    if stepped:
        train(model, inputs, optimizer)
    operated = [model[0].weight, model[0].bias, model[2].weight]
    before = [copy.deepcopy((p.data, p.grad, optimizer.state.get(p))) for p in operated]
    outside = model[4].weight.clone()
    with trial_surgery(WeakExpand(grow=0.5).propose(Anatomy(model, inputs)["0"]), optimizers=optimizer):
        train(model, inputs, optimizer)
        assert optimizer.state[model[0].weight] and model[0].weight.shape == (12, 5)
    after = [(p.data, p.grad, optimizer.state.get(p)) for p in operated]
    assert_equal(after, before)
    assert all((p in optimizer.state) == stepped for p in operated)
    assert not torch.equal(model[4].weight, outside)


def test_state_that_was_empty_stays_empty():
    model, inputs = build("mlp")
    optimizer = optim.Adam(model.parameters())
    assert optimizer.state[model[0].weight] == {}  # a look at a defaultdict
    with trial_surgery(MinWeight(keep=0.5).propose(Anatomy(model, inputs)["0"]), optimizers=optimizer):
        train(model, inputs, optimizer)
    assert optimizer.state[model[0].weight] == {}


def test_a_grad_scaler_goes_on():
    """Between scaling and stepping: the scaled gradients follow, and are unscaled after surgery."""
    model, inputs = build("mlp", batch=8)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    twin = copy.deepcopy(model)
    backward(twin, inputs)
    scaler.scale(loss(model, inputs)).backward()
    operate(Anatomy(twin, inputs)["0"], MinWeight(keep=0.5))
    operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer)
    scaler.unscale_(optimizer)
    for found, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2048
    optimizer.zero_grad()
    scaler.scale(loss(model, inputs)).backward()
    model[0].weight.grad.fill_(float("inf"))
    before = model[0].weight.clone()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model[0].weight, before) and scaler.get_scale() == 1024


SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.9},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [1, 3]},
    "ConstantLR": {"total_iters": 3},
    "LinearLR": {"total_iters": 4},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 5},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 8},
    "ReduceLROnPlateau": {"patience": 0},
    "SequentialLR": None,
    "ChainedScheduler": None,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on(name):
    """With surgery in between, the learning rate and the momentum run as without."""

    def course(operated):
        model, inputs = build("mlp")
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        kind = getattr(lr_scheduler, name)
        if SCHEDULERS[name] is not None:
            scheduler = kind(optimizer, **SCHEDULERS[name])
        else:
            parts = [lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.ExponentialLR(optimizer, 0.5)]
            scheduler = kind(optimizer, parts, milestones=[2]) if name == "SequentialLR" else kind(parts)
        seen = []
        for step in range(6):
            train(model, inputs, optimizer, steps=1)
            scheduler.step(*[1.0] * (name == "ReduceLROnPlateau"))
            if operated and step == 2:
                operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer)
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        return seen

    assert course(operated=True) == course(operated=False)
    assert len(set(course(operated=True))) > 1


def test_hooks_fire_once_with_the_new_shape():
    model, inputs = build("mlp")
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weight, seen = model[0].weight, []
    weight.register_hook(lambda gradient: seen.append(("gradient", gradient.shape)))
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(("accumulated", parameter.grad.shape)))
    model[0].register_forward_hook(lambda module, args, output: seen.append(("forward", output.shape[1:])))
    model[0].register_full_backward_hook(lambda module, into, out: seen.append(("backward", out[0].shape[1:])))
    optimizer.register_step_post_hook(lambda *_: seen.append(("step", weight.shape)))
    train(model, inputs, optimizer, steps=1)
    kept = loss(model, inputs)  # a graph that is still alive
    operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer)
    seen.clear()
    train(model, inputs, optimizer, steps=1)
    assert kept.requires_grad
    assert sorted(seen) == [
        ("accumulated", (4, 5)), ("backward", (4,)), ("forward", (4,)), ("gradient", (4, 5)), ("step", (4, 5)),
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["SGD momentum", "AdamW", "RMSprop centered", "ASGD", "Rprop", "Adafactor", "LBFGS"])
def test_a_saved_optimizer_goes_on_in_a_fresh_network(form):
    make = partial(optim.LBFGS, lr=0.1, max_iter=3) if form == "LBFGS" else FORMS[form]

    def go_on(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            if form == "LBFGS":
                optimizer.step(lambda: (optimizer.zero_grad(), backward(model, inputs))[1])
            else:
                train(model, inputs, optimizer, steps=1)

    model, inputs = build("mlp", torch.float64, batch=8)
    optimizer = make(model.parameters())
    go_on(model, optimizer)
    for layer in Anatomy(model, inputs).values():
        operate(layer, WeakExpand(grow=0.5), optimizer)
    go_on(model, optimizer)
    fresh = copy.deepcopy(model)
    loaded = make(fresh.parameters())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go_on(model, optimizer)
    go_on(fresh, loaded)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True))


class Theirs(optim.Optimizer):
    """An optimizer of another library: keeps what it is configured to keep."""

    def __init__(self, parameters, **kept):
        super().__init__(parameters, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {key: make(parameter) for key, make in kept.items()}


class Lookahead(optim.Optimizer):
    """Slow weights, with state of its own or in that of the optimizer that it wraps."""

    def __init__(self, inner, shared):
        super().__init__(inner.param_groups, {})
        self.optimizer, self.state = inner, inner.state if shared else self.state

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step()
        for group in self.param_groups:
            for fast in group["params"]:
                slow = self.state[fast].setdefault("slow_buffer", fast.detach().clone())
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)


register_state(Lookahead, "slow_buffer", "weights")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("given", ["wrapper", "both"])
def test_wrapped_optimizers_are_followed_into(shared, given):
    model, inputs = build("mlp", torch.float64)
    inner = optim.RMSprop(model.parameters(), momentum=0.9, eps=1e-20)
    outer = Lookahead(inner, shared)
    train(model, inputs, outer)
    weight, reader = model[0].weight, model[2].weight
    before = copy.deepcopy([inner.state[weight], outer.state[weight], outer.state[reader]])
    widen(model, inputs, outer if given == "wrapper" else (inner, outer))
    chosen = list(SOURCES)
    for key, scale in (("momentum_buffer", SHARES.sign()), ("square_avg", SHARES**2)):
        torch.testing.assert_close(inner.state[weight][key], before[0][key][chosen] * scale[:, None])
    torch.testing.assert_close(outer.state[weight]["slow_buffer"], before[1]["slow_buffer"][chosen])
    torch.testing.assert_close(outer.state[reader]["slow_buffer"], before[2]["slow_buffer"][:, chosen] * SHARES)
    train(model, inputs, outer)


class Declared(Theirs):
    """All of its keys are declared."""


for key, degree in {
    "constant": 0, "linear": 1, "square": 2, "fourth": 4, "largest": "magnitude", "normalized": "sign",
    "copy": "weights", "matrix": "fixed",
}.items():  # fmt: skip
    register_state(Declared, key, degree)


@pytest.mark.parametrize("form", ["plain", "stacked", "listed", "in a row"])
def test_declared_state_follows(form):
    """In any form: of the parameter's shape, with an axis in front, in a list, or in one row."""
    shaped = {
        "plain": lambda p: p,
        "stacked": lambda p: torch.stack([p, 2 * p]),
        "listed": lambda p: [p, 2 * p],
        "in a row": lambda p: p.flatten(),
    }[form]
    back = {
        "plain": lambda kept, shape: kept,
        "stacked": lambda kept, shape: kept[1] / 2,
        "listed": lambda kept, shape: kept[1] / 2,
        "in a row": lambda kept, shape: kept.view(shape),
    }[form]
    model, inputs = build("mlp", torch.float64)
    keys = ("constant", "linear", "square", "fourth", "largest", "normalized", "copy")
    kept = {key: lambda p: shaped(torch.ones_like(p)) for key in keys}
    others = {"matrix": lambda p: torch.eye(3), "count": lambda p: torch.tensor([3.0])}
    optimizer = type("Derived", (Declared,), {})(model.parameters(), **kept, **others)
    widen(model, inputs, optimizer)
    one = torch.ones(12, dtype=torch.float64)
    wanted = (one, SHARES, SHARES**2, SHARES**4, SHARES.abs(), SHARES.sign(), one)
    for key, scale in zip(keys, wanted, strict=True):
        for layer, of, axis in ((model[0], scale, 0), (model[2], SHARES if key == "copy" else one, 1)):
            found = back(optimizer.state[layer.weight][key], layer.weight.shape)
            torch.testing.assert_close(found, of.unsqueeze(1 - axis).expand(layer.weight.shape), msg=key)
    assert torch.equal(optimizer.state[model[0].weight]["matrix"], torch.eye(3))
    assert optimizer.state[model[0].weight]["count"].item() == 3


class Keeper:
    """An object of another library."""

    def __init__(self, tensor):
        self.tensors = [tensor]


UNKNOWN = {
    "another name": {"precond": lambda p: torch.eye(len(p))},
    "in a list": {"history": lambda p: [torch.zeros_like(p)]},
    "in an object": {"projector": lambda p: Keeper(torch.zeros_like(p))},
    "a well-known name": {"exp_avg": lambda p: torch.zeros_like(p)},
    "one that means two things": {"z": lambda p: torch.zeros_like(p)},
    "whole numbers": {"mask": lambda p: torch.ones_like(p, dtype=torch.bool)},
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_refuses_state_that_is_not_known(kind):
    model, inputs = build("mlp")
    optimizers = (optim.SGD(model.parameters(), lr=0.1), Theirs(model.parameters(), **UNKNOWN[kind]))
    before = copy.deepcopy((model.state_dict(), optimizers[1].state_dict()["param_groups"]))
    states = [dict(optimizers[1].state[p]) for p in model.parameters()]
    (key,) = UNKNOWN[kind]
    says = rf"Theirs keeps {key} .*0.weight of shape \(8, 5\), and it is not known"
    remedy = rf"register_state\(Theirs, '{key}', degree\), .* or make a new one after surgery"
    with pytest.raises(SurgeryError, match=f"{says}.*{remedy}"):
        operate(Anatomy(model, inputs)["0"], MinWeight(), optimizers)
    assert_equal((model.state_dict(), optimizers[1].state_dict()["param_groups"]), before)
    assert all(optimizers[1].state[p][key] is kept[key] for p, kept in zip(model.parameters(), states, strict=True))


@pytest.mark.parametrize(("kept", "says"), [
    ({"square": lambda p: torch.ones(3)}, r"keeps square of shape \(3,\) for 0.weight .*its shape is another"),
    ({"square": lambda p: torch.ones_like(p, dtype=torch.uint8)}, r"keeps square .* in codes \(torch.uint8\)"),
    ({"linear": lambda p: Keeper(torch.zeros_like(p))}, r"keeps linear .* in a Keeper"),
    ({"linear": lambda p: torch.zeros(2, *p.shape)[1]}, r"keeps linear .* as a part of a larger tensor"),
])  # fmt: skip
def test_refuses_state_that_cannot_follow(kept, says):
    model, inputs = build("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=f"Declared {says}.* or make a new one after surgery"):
        operate(Anatomy(model, inputs)["0"], MinWeight(), Declared(model.parameters(), **kept))
    assert_equal(model.state_dict(), before)


def test_classes_do_not_share_their_keys():
    """What one class calls z is nothing to another, and a subclass may mean something else by a key than its base."""
    sub = type("Sub", (optim.SGD,), {})
    other = type("Other", (optim.SGD,), {})
    register_state(sub, "z", "weights")
    register_state(sub, "momentum_buffer", 2)
    for kind, power in ((sub, 2), (other, 1)):
        model, inputs = build("mlp", torch.float64)
        optimizer = kind(model.parameters(), lr=0.1, momentum=0.9)
        train(model, inputs, optimizer)
        before = optimizer.state[model[0].weight]["momentum_buffer"].clone()
        widen(model, inputs, optimizer)
        after = optimizer.state[model[0].weight]["momentum_buffer"]
        torch.testing.assert_close(after, before[list(SOURCES)] * SHARES[:, None] ** power)
        optimizer.state[model[0].weight]["z"] = model[0].weight.detach().clone()
        with pytest.raises(SurgeryError, match="Other keeps z") if kind is other else contextlib.nullcontext():
            operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer)


@pytest.mark.parametrize("values", [(int, "key", 1), (optim.SGD, 3, 1), (optim.SGD, "key", -1), (optim.SGD, "key", "x"),
                                    (optim.SGD, "key", True), ("SGD", "key", 1), (optim.SGD, "key", 0.5)])  # fmt: skip
def test_register_state_refuses(values):
    with pytest.raises(SurgeryError, match="register_state needs"):
        register_state(*values)


def test_attributes_of_parameters_follow():
    """Gradients that other libraries keep on the parameter are linear in the gradient; nothing else is known."""
    model, inputs = build("mlp", torch.float64)
    names = ("main_grad", "grad_sample", "summed_grad")
    for parameter in model.parameters():
        parameter.main_grad, parameter.summed_grad = torch.ones_like(parameter), torch.ones_like(parameter)
        parameter.grad_sample = torch.ones(4, *parameter.shape, dtype=torch.float64)
        parameter.is_norm, parameter.hess = False, 0.0
    weight = model[0].weight
    old = [getattr(weight, name) for name in names]
    chosen = list(SOURCES)
    with trial_surgery(Plan(Anatomy(model, inputs)["0"], "by hand", chosen, shares=SHARES)):
        for name in names:
            wanted = SHARES[:, None].expand(12, 5)
            assert torch.equal(getattr(weight, name), wanted.expand_as(getattr(weight, name)))
            assert getattr(model[2].weight, name).shape[-2:] == (6, 12)
    assert all(getattr(weight, name) is value for name, value in zip(names, old, strict=True))


def test_refuses_attributes_that_are_not_known():
    model, inputs = build("mlp")
    kind = type("Curved", (optim.SGD,), {})
    optimizer = kind(model.parameters(), lr=0.1)
    model[2].weight.hess = torch.ones_like(model[2].weight)
    before = copy.deepcopy(model.state_dict())
    for optimizers in ((), optimizer):
        with pytest.raises(SurgeryError, match=r"2.weight of shape \(6, 8\) carries hess as an attribute, and"):
            operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizers)
    assert_equal(model.state_dict(), before)
    register_state(kind, "hess", 2)
    operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer)
    assert model[2].weight.hess.shape == (6, 4)
    average = optim.swa_utils.AveragedModel(model)
    average.module[0].weight.ema = torch.ones(4, 5)
    with pytest.raises(SurgeryError, match=r"0.weight of shape \(4, 5\) carries ema"):
        operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer, averages=average)
    assert model[0].weight.shape == (4, 5)


def test_lists_in_parameter_groups_follow():
    model, inputs = build("mlp", torch.float64)
    kind = type("Grouped", (optim.SGD,), {})
    optimizer = kind([{"params": [*model[0].parameters()]}, {"params": [*model[2].parameters()]}], lr=0.1)
    for group in optimizer.param_groups:
        group["velocity"] = [torch.ones_like(p) for p in group["params"]]
    with pytest.raises(SurgeryError, match=r"Grouped keeps a tensor of shape .* parameter group, as velocity, which"):
        widen(model, inputs, optimizer)
    register_state(kind, "velocity", 1)
    with trial_surgery(Plan(Anatomy(model, inputs)["0"], "by hand", SOURCES, shares=SHARES), optimizers=optimizer):
        assert torch.equal(optimizer.param_groups[0]["velocity"][0], SHARES[:, None].expand(12, 5))
        assert torch.equal(optimizer.param_groups[0]["velocity"][1], SHARES)
        assert optimizer.param_groups[1]["velocity"][0].shape == (6, 12)
    assert optimizer.param_groups[0]["velocity"][0].shape == (8, 5)


def test_copies_of_weights_take_the_change_of_weights_that_are_rewritten():
    """A lower rank, a constant in a bias: what a copy of the weights was away from them, it is still."""
    for operation in (EigenRemove(keep=0.5, weights="reduced"), MeanReplace(keep=0.5)):
        model, inputs = build("mlp", torch.float64, batch=32)
        kind = type("Copying", (optim.SGD,), {})
        register_state(kind, "z", "weights")
        optimizer = kind(model.parameters(), lr=0.1)
        for parameter in model.parameters():
            optimizer.state[parameter]["z"] = parameter.detach().clone()
        plan = operate(Anatomy(model, inputs)["0"], operation, optimizer, Signals(model, inputs))
        assert plan.replaced or plan.constants
        for parameter in model.parameters():
            torch.testing.assert_close(optimizer.state[parameter]["z"], parameter.detach())


def test_refuses_weights_kept_outside_the_state():
    model, inputs = build("mlp")
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.slow_weights = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]
    with pytest.raises(SurgeryError, match=r"SGD keeps .* its attribute slow_weights, which .* of 0.weight"):
        operate(Anatomy(model, inputs)["0"], MinWeight(), optimizer)
    check((optimizer,), {"another": torch.zeros(7, 7)})
    optimizer.slow_weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    with pytest.raises(SurgeryError, match=r"SGD keeps .* its attribute slow_weights, which .* of 0.weight"):
        operate(Anatomy(model, inputs)["0"], MinWeight(), optimizer)


def test_follow_tells_squares_from_the_rest():
    parameter = nn.Parameter(torch.randn(3))
    optimizer = optim.Adam([parameter], amsgrad=True)
    parameter.grad = torch.ones(3)
    optimizer.step()
    before = copy.deepcopy(optimizer.state[parameter])
    undo = follow(list_optimizers(optimizer), parameter, lambda value, degree: value * 2.0**degree)
    factors = {"step": 1, "exp_avg": 2, "exp_avg_sq": 4, "max_exp_avg_sq": 4}
    for key, value in optimizer.state[parameter].items():
        torch.testing.assert_close(value, before[key] * factors[key])
    for step in undo:
        step()
    assert_equal(optimizer.state[parameter], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exchange_keeps_identity_and_can_be_undone(dtype):
    parameter = nn.Parameter(torch.randn(4, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    data, gradient = parameter.data.clone(), parameter.grad
    undo = exchange(parameter, torch.zeros(2, 3, dtype=dtype))
    assert parameter.shape == (2, 3) and parameter.grad is None and parameter.requires_grad and parameter.is_leaf
    parameter.sum().backward()
    assert parameter.grad.shape == (2, 3)
    undo()
    assert torch.equal(parameter, data) and parameter.grad is gradient


def test_nothing_is_not_an_optimizer():
    assert list_optimizers(()) == ()
    with pytest.raises(SurgeryError, match=r"must be torch\.optim.Optimizer objects, not GradScaler"):
        list_optimizers([torch.amp.GradScaler("cpu")])

"""The contract: what every operation must hold on every network it can be applied to."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from network_surgery.ops import (
    OPERATIONS,
    PCNS,
    Anatomy,
    RemoveDead,
    Revive,
    Signals,
    Step,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    apply,
    operate,
    trial_surgery,
)  # fmt: skip
from network_surgery.ops.anatomy import call
from network_surgery.ops.network.architecture import sizes
from network_surgery.ops.schedule import Moment, Schedule
from tests.ops.networks import NETWORKS, build, difference, loss, outputs, train

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
}
#: So that they change these little networks, and not to nothing.
GENTLE = {
    "pcns": PCNS(variance_threshold=0.05),
    "remove_dead": RemoveDead(threshold=0.6),
    "revive": Revive(threshold=0.6),
}
ASK_FOR_LOGITS = ("grad_max", "remove_dead", "revive")
#: Why an operation may refuse a layer of these networks.
REFUSALS = {
    "collapse": ("cannot become one",),
    "hash_weights": ("no plain weights",), "random_edges": ("no plain weights",),
    "deepen": ("a layer of units",), "drop_block": ("a layer of units",),
    "predict_weights": ("no plain weights",), "share_weights": ("no plain weights",),
    "fastfood": ("no plain weights",),
    "stretch": ("is tied", "masked or hashed", "not a dense layer or a convolution of torch's own", "in 6 groups"),
    "grad_max": (
        "would change what the others send", "both makes and reads its units", "is frozen", "no gradient reaches",
    )
}  # fmt: skip

every_operation = pytest.mark.parametrize("operation", OPERATIONS)
every_network = pytest.mark.parametrize("network", NETWORKS)


@functools.cache
def trained(network: str, optimizer: str):
    """A network that has been trained for a few steps, its optimizer and inputs, and the random numbers to come."""
    model, inputs = build(network, batch=16)
    trainer = OPTIMIZERS[optimizer](model.parameters())
    train(model, inputs, trainer)
    return model, trainer, inputs, torch.get_rng_state()


class Case:
    """A trained network with its optimizer, signals and anatomy."""

    def __init__(self, operation: str, network: str, optimizer: str = "adam") -> None:
        model, trainer, self.inputs, random = trained(network, optimizer)
        self.model, self.optimizer = copy.deepcopy((model, trainer))
        for parameter, old in zip(self.model.parameters(), model.parameters(), strict=True):  # copies lack gradients
            parameter.grad = None if old.grad is None else old.grad.clone()
        torch.set_rng_state(random)
        self.name = operation
        self.operation = GENTLE.get(operation) or OPERATIONS[operation]()
        found = outputs(self.model, self.inputs)
        if operation in ASK_FOR_LOGITS and (len(found) > 1 or found[0].dim() != 2):
            pytest.skip("it looks at the cross entropy, and this network has no logits")
        self.targets = torch.arange(16) % found[0].shape[1]
        self.anatomy = Anatomy(self.model, self.inputs)

    def plan(self, layer: str):
        signals = Signals(self.model, self.inputs, self.targets) if self.operation.needs_signals else None
        return self.operation.propose(self.anatomy[layer], signals)

    def plans(self):
        """One plan after the other, each on the network as it is by then, of the layers that are not refused for one of
        the operation's own reasons.
        """
        for layer in self.anatomy:
            try:
                plan = self.plan(layer)
            except SurgeryError as error:
                assert any(reason in str(error) for reason in REFUSALS.get(self.name, ())), error
                continue
            yield plan

    def snapshot(self):
        return copy.deepcopy(
            (
                dict(self.model.state_dict()),
                {name: parameter.grad for name, parameter in self.model.named_parameters()},
                self.optimizer.state_dict(),
                [sizes(module) for module in self.model.modules()],
                {name: (layer.units, list(map(repr, layer.places))) for name, layer in self.anatomy.items()},
            )
        )


def assert_same(one, other, where=""):
    """Two trees of plain data and tensors are equal bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert one.shape == other.shape and torch.equal(one, other), where
    else:
        assert one == other, where


@every_operation
@every_network
def test_runs_at_the_new_sizes_and_says_so(operation, network):
    case = Case(operation, network)
    case.model.train()
    modes = {module: module.training for module in case.model.modules()}
    shapes = [out.shape for out in outputs(case.model, case.inputs)]
    for plan in case.plans():
        apply(plan, case.optimizer)
        assert plan.layer.units == plan.units_after == len(plan.sources)
    assert [out.shape for out in outputs(case.model, case.inputs)] == shapes
    assert all(out.isfinite().all() for out in outputs(case.model, case.inputs))
    assert all(module.training is modes.get(module, True) for module in case.model.modules())
    for module in case.model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels // module.groups) == module.weight.shape[:2]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.num_features == len(module.running_mean) == len(module.weight)


@every_operation
@every_network
def test_plan_is_sound(operation, network):
    """What the plan says beforehand of sources, parameters and FLOPs is what is counted afterwards."""
    case = Case(operation, network)
    case.model.eval()
    for plan in case.plans():
        assert all(type(unit) is int and -1 <= unit < plan.units_before for unit in plan.sources)
        assert plan.parameters_before == alive(case.model)
        assert plan.flops_before == counted_flops(case.model, case.inputs)
        apply(plan)
        assert plan.parameters_after == alive(case.model)
        assert plan.flops_after == counted_flops(case.model, case.inputs)
        assert str(plan).startswith(f"{case.operation!r} on {plan.layer.name}")


def alive(model):
    """All parameters, but for the zeros of masks."""
    masks = {id(buffer): buffer for name, buffer in model.named_buffers() if name.endswith(".0.mask")}
    hidden = sum(int((mask == 0).sum()) for mask in masks.values())
    return sum(parameter.numel() for parameter in model.parameters()) - hidden


def counted_flops(model, inputs):
    """Without those that compute a weight, which are of a pass and not of a sample."""
    with parametrize.cached(), torch.no_grad():
        call(model, inputs)
        with FlopCounterMode(display=False) as counter:
            call(model, inputs)
    return counter.get_total_flops() // 16  # a sample


@every_operation
@every_network
def test_everything_alive_is_trained(operation, network):
    """The optimizer holds every parameter, and the next step moves all of them but the frozen and the dead."""
    case = Case(operation, network)
    before = {(id(parameter), parameter.requires_grad) for parameter in case.model.parameters()}
    plans = []
    for plan in case.plans():
        apply(plan, case.optimizer)
        plans.append(plan)
    held = {id(parameter) for group in case.optimizer.param_groups for parameter in group["params"]}
    if not any(plan.modules for plan in plans):  # else some are others'
        assert {(id(parameter), parameter.requires_grad) for parameter in case.model.parameters()} == before
    assert held == {id(parameter) for parameter in case.model.parameters()}
    old = copy.deepcopy(dict(case.model.named_parameters()))
    train(case.model, case.inputs, case.optimizer, steps=1)
    for name, parameter in case.model.named_parameters():
        assert torch.equal(parameter, old[name]) != parameter.requires_grad, name
        assert parameter.shape == (parameter.grad.shape if parameter.requires_grad else parameter.shape)
    if isinstance(case.operation, ZeroExpand) and network in ("mlp", "mlp_bn", "cnn", "cnn_plain", "leaky"):
        for plan in plans:
            assert_dead(plan)


def assert_dead(plan):
    """Newborn units without weights on either side: neither side ever gets a gradient."""
    newborn = [unit for unit, source in enumerate(plan.sources) if source < 0]
    layer = plan.layer
    for place in (*layer.makers, *layer.readers):
        tensor = layer.anatomy.tensor(place.tensor)
        positions = place.positions[newborn].flatten()
        assert not tensor.index_select(place.axis, positions).any(), place
        assert not tensor.grad.index_select(place.axis, positions).any(), place
        assert tensor.grad.any()


@every_operation
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", ["mlp", "cnn", "residual", "dense_concat", "separable", "scaled"])
def test_optimizer_state_follows_the_units(operation, network, optimizer):
    """What survives keeps its state; a share of the fan-out scales the fan-in's; newborn units begin at zero."""
    case = Case(operation, network, optimizer)
    for plan in case.plans():
        if plan.modules:
            assert_others_keep_their_state(case, plan)
            continue
        old = {
            (place, key): (value.movedim(place.axis, 0)[place.positions].clone())
            for place in plan.layer.places
            for key, value in case.optimizer.state.get(case.anatomy.tensor(place.tensor), {}).items()
            if value.dim()
        }
        stored = {
            (name, key): (expression, value.clone())
            for name, expression in plan.expressed.items()
            for key, value in case.optimizer.state[case.anatomy.stored(name)].items()
            if value.dim()
        }
        counts = [state["step"].clone() for state in case.optimizer.state.values() if "step" in state]
        apply(plan, case.optimizer)
        assert counts == [state["step"] for state in case.optimizer.state.values() if "step" in state]
        shares = torch.ones(plan.units_after) if plan.shares is None else plan.shares.float()
        for (place, key), value in old.items():
            after = next(p for p in plan.layer.places if (p.tensor, p.axis) == (place.tensor, place.axis))
            if place.tensor in plan.expressed:
                continue
            state = case.optimizer.state[case.anatomy.tensor(place.tensor)][key]
            found = state.movedim(after.axis, 0)[after.positions]
            degree = 0 if place.role == "fan_out" else 2 if key.endswith("_sq") else 1
            if place.tensor in plan.masks:
                value = value * plan.masks[place.tensor].movedim(place.axis, 0)[place.positions]
            wanted = torch.stack([value[unit] if unit >= 0 else torch.zeros_like(value[0]) for unit in plan.sources])
            scale = (shares**degree).view(-1, *(1,) * (wanted.dim() - 1))
            torch.testing.assert_close(found, wanted * scale, msg=f"{place} {key}")
        for (name, key), (expression, value) in stored.items():
            wanted = expression.reduced(value, 2 if key.endswith("_sq") else 1)
            assert torch.equal(case.optimizer.state[case.anatomy.stored(name)][key], wanted)


def assert_others_keep_their_state(case, plan):
    """Where modules are replaced, new parameters have no state yet, and those that stay keep theirs."""
    before = {parameter: copy.deepcopy(state) for parameter, state in case.optimizer.state.items()}
    groups = len(case.optimizer.param_groups)
    apply(plan, case.optimizer)
    now = set(case.model.parameters())
    assert set(case.optimizer.state) == set(before) & now and len(case.optimizer.param_groups) == groups
    for parameter, state in case.optimizer.state.items():
        assert_same(before[parameter], state)


@every_operation
@every_network
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_undo_is_exact(operation, network, optimizer):
    case = Case(operation, network, optimizer)
    for plan in case.plans():
        before = case.snapshot()
        pointers = [parameter.data_ptr() for parameter in case.model.parameters()]
        with pytest.raises(ZeroDivisionError), trial_surgery(plan, optimizers=case.optimizer):
            call(case.model.eval(), case.inputs)
            case.model.train()
            raise ZeroDivisionError
        assert_same(before, case.snapshot())
        assert pointers == [parameter.data_ptr() for parameter in case.model.parameters()]


@every_operation
@pytest.mark.parametrize("network", ["mlp", "cnn", "tied"])
def test_a_graph_from_before_does_not_break_the_next_step(operation, network):
    case = Case(operation, network)
    kept = loss(case.model, case.inputs)  # as a trainer does that logs it later
    for plan in case.plans():
        apply(plan, case.optimizer)
    train(case.model, case.inputs, case.optimizer)
    assert kept.grad_fn is not None and torch.isfinite(loss(case.model, case.inputs))


@every_operation
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_proposing_changes_nothing(operation, network):
    case = Case(operation, network)
    before = case.snapshot()
    for plan in case.plans():
        assert case.plan(plan.layer.name).sources == plan.sources
    assert_same(before, case.snapshot())


@every_operation
def test_is_plain_data_in_a_schedule(operation):
    case = Case(operation, "mlp")
    step = Step(Moment(1), "0", case.operation)
    assert Schedule.from_data(Schedule((step,)).to_data()) == Schedule((step,))
    assert repr(eval(repr(case.operation), dict(vars(__import__("network_surgery.ops").ops)))) == repr(case.operation)


@pytest.mark.parametrize("grow", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("split", ["zero", "equal", "uneven", "signed"])
@every_network
def test_growth_leaves_the_function_unchanged(split, grow, network):
    case = Case("zero_expand", network)
    chosen = ZeroExpand(grow=grow) if split == "zero" else WeakExpand(grow=grow, split=split)
    before = outputs(case.model, case.inputs)
    for name in [name for name, layer in case.anatomy.items() if layer.exact]:
        plan = operate(case.anatomy[name], chosen, case.optimizer)
        assert plan.error == 0 and plan.units_after == plan.units_before + max(1, round(grow * plan.units_before))
    assert difference(before, outputs(case.model, case.inputs)) < 1e-5

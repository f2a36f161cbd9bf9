"""Masks: what they hide stays zero whatever trains, follows the units, and is part of the architecture."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from network_surgery.ops import (
    OPERATIONS,
    PCNS,
    Anatomy,
    MinWeight,
    PruneWeights,
    RandomRemove,
    RemoveDead,
    Revive,
    Signals,
    SurgeryError,
    adopt,
    apply,
    describe,
    load,
    measure,
    operate,
    save,
    take_over_masks,
    trial_surgery,
    unit_scores,
    without_masks,
)  # fmt: skip
from network_surgery.ops.network.expressed import met, take_off, tensors_of
from network_surgery.ops.network.masks import masks_of, pack, parameters_of, put, unpack
from network_surgery.ops.signals.unit_scores import SCORES as UNIT_SCORES
from tests.ops.contract.test_operations import Case, assert_same
from tests.ops.networks import ADVERSARIAL, NETWORKS, build, difference, outputs, train
from tests.ops.properties import examine, lively

#: All that is there to remove or rewrite in these little networks, and not too much of it.
GENTLE = {"pcns": PCNS(0.05), "remove_dead": RemoveDead(0.6), "revive": Revive(0.6)}
OPTIMIZERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam with L2": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.9, centered=True),
}


def masked(name: str, dtype: torch.dtype = torch.float64, batch: int = 2, share: float = 0.4) -> tuple[nn.Module, Any]:
    """A network with random masks on all its weights; what they hide is zero."""
    model, inputs = build(name, dtype, batch)
    for weight in Anatomy(model, inputs).weights:
        tensor = dict(tensors_of(model))[weight]
        mask = torch.rand(tensor.shape) >= share
        tensor.data.mul_(mask)
        put(dict(model.named_modules()), weight, mask)
    return model, inputs


def hidden_values(model: nn.Module) -> torch.Tensor:
    tensors = dict(tensors_of(model))
    return torch.cat([tensors[name].detach()[mask == 0] for name, mask in masks_of(model).items()])


def places(anatomy: Anatomy) -> dict[str, object]:
    return {name: (layer.units, sorted(map(repr, layer.places))) for name, layer in anatomy.items()}


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("name", [*NETWORKS, *ADVERSARIAL])
def test_the_anatomy_sees_through_masks(name: str, share: float) -> None:
    """What it finds does not depend on what is hidden, not even where that is everything."""
    model, inputs = build(name)
    plain = Anatomy(model, inputs)
    covered, _ = masked(name, torch.float32, share=share)
    found = Anatomy(covered, inputs)
    assert places(found) == places(plain) and found.pinned == plain.pinned
    assert found.cost() == (parameters_of(covered), plain.cost()[1])
    assert dict(found.calls) == dict(plain.calls) and found.sinks == plain.sinks and found.chains == plain.chains
    for layer in found.values():
        for place in layer.places:
            assert "parametrizations" not in place.tensor and isinstance(found.owner(place.tensor), nn.Module)
    assert all(name in found.modules for layer in found.values() for name in found.holders(layer))


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "separable", "tied", "unflattened", "scaled", "grouped"])
def test_every_promise_holds_on_masked_networks(name: str) -> None:
    """Units are doubled, reordered, removed and grown back, against their definitions in double precision."""
    model, inputs = masked(name)
    lively(model, inputs)
    found = examine(Anatomy(model, inputs), inputs)
    assert len(found.verdicts) > 4 and not found.broken, list(map(str, found.broken))


def test_a_mask_is_seen_through_for_its_own_parameter_only() -> None:
    class Stranger(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * torch.ones_like(weight)

    model, inputs = build("mlp")
    parametrize.register_parametrization(model[0], "weight", Stranger())
    assert "its weight is parametrized (Stranger)" in Anatomy(model, inputs).pinned["0"]
    with pytest.raises(SurgeryError, match=r"0\.weight cannot be masked: .* parametrized by something else"):
        put(dict(model.named_modules()), "0.weight", torch.ones(8, 5))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_hidden_stays_zero_while_the_rest_learns(optimizer: str) -> None:
    model, inputs = build("cnn", batch=16)
    chosen = OPTIMIZERS[optimizer](model.parameters())
    train(model, inputs, chosen, steps=4)
    parameters, anatomy = {id(p) for p in model.parameters()}, Anatomy(model, inputs)
    weight = model[4].weight
    operate(anatomy["*"], PruneWeights(0.7), chosen)
    assert {id(p) for p in model.parameters()} == parameters and anatomy.tensor("4.weight") is weight
    before = {name: tensor.clone() for name, tensor in tensors_of(model)}
    train(model, inputs, chosen, steps=4)
    assert not hidden_values(model).any()
    masks = masks_of(model)
    assert set(masks) == set(anatomy.weights)
    for name, tensor in tensors_of(model):
        if name in masks:
            changed = tensor.detach() != before[name]
            assert torch.equal(changed, masks[name].bool()), name
            for state in chosen.state[tensor].values():
                assert state.dim() == 0 or not state[masks[name] == 0].any()


def test_masked_training_is_that_of_a_network_whose_gradients_are_masked() -> None:
    """As Evci does it: weights are set to zero, and so is their gradient in every step."""
    model, inputs = build("cnn", torch.float64, batch=16)
    other = copy.deepcopy(model)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, other))
    operate(Anatomy(model, inputs)["*"], PruneWeights(0.6), mine)
    masks = masks_of(model)
    for _ in range(3):
        for name, tensor in other.named_parameters():
            if name in masks:
                tensor.data.mul_(masks[name])
        train(model, inputs, mine, steps=1)
        train(other, inputs, theirs, steps=1)
    for name, tensor in other.named_parameters():
        tensor.data.mul_(masks.get(name, 1))
    assert difference(outputs(other, inputs), outputs(model, inputs)) < 1e-12


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("network", ["mlp_bn", "cnn", "residual", "separable", "tied", "scaled"])
def test_every_operation_on_a_masked_network(operation: str, network: str) -> None:
    """The plan does what it says, counts right, is undone exactly, and masks go on hiding zeros."""
    model, inputs = masked(network, torch.float32, batch=16)
    case = Case.__new__(Case)
    case.model, case.inputs, case.name = model, inputs, operation
    case.operation = GENTLE.get(operation) or OPERATIONS[operation]()
    case.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, inputs, case.optimizer)
    case.targets, case.anatomy = torch.arange(16) % 3, Anatomy(model, inputs)
    for plan in case.plans():
        assert plan.parameters_before == parameters_of(model)
        if plan.layer.exact:
            measure(plan)
        before = case.snapshot()
        with trial_surgery(plan, optimizers=case.optimizer):
            pass
        assert_same(before, case.snapshot())
        apply(plan, case.optimizer)
        assert plan.parameters_after == parameters_of(model)
        assert not hidden_values(model).any()
        for weight, mask in case.anatomy.masks().items():
            assert mask.shape == case.anatomy.tensor(weight).shape
    assert places(Anatomy(model, inputs)) == places(case.anatomy)
    train(model, inputs, case.optimizer)
    assert not hidden_values(model).any() and all(out.isfinite().all() for out in outputs(model, inputs))


def test_what_is_written_anew_is_hidden_no_more() -> None:
    """PCNS refits every weight that reads the layer; those that make its units are still masked."""
    model, inputs = masked("mlp", torch.float32, batch=40)
    anatomy = Anatomy(model, inputs)
    plan = operate(anatomy["0"], PCNS(keep=0.5), signals=Signals(model, inputs), verify=True)
    masks = masks_of(model)
    assert plan.mixing and masks["2.weight"].all() and not masks["0.weight"].all()
    assert masks["0.weight"].shape == (4, 5) and masks["2.weight"].shape == (6, 4)


def test_an_optimizer_that_writes_behind_a_mask_does_no_harm() -> None:
    """Muon's update is no function of the single entry's gradient."""
    model, inputs = masked("mlp", torch.float32)
    with torch.no_grad():
        for name, tensor in tensors_of(model):
            if name in masks_of(model):
                tensor.add_(1 - masks_of(model)[name].float())
    anatomy, before = Anatomy(model, inputs), outputs(model, inputs)
    keep = MinWeight(keep=0.5).propose(anatomy["0"]).sources
    rows = (model[2].weight * 1.0).norm(dim=0)
    assert keep == tuple(rows.argsort(descending=True)[:4].sort().values.tolist())
    assert difference(before, outputs(model, inputs)) == 0
    operate(anatomy["0"], RandomRemove(keep=0.5))
    assert not (anatomy.tensor("0.weight")[anatomy.mask("0.weight") == 0]).any()


def test_averages_follow_and_are_asked_for() -> None:
    model, inputs = build("cnn", batch=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plain = AveragedModel(model)
    buffered = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    anatomy = Anatomy(model, inputs)
    for fraction in (0.5, 0.8):
        operate(anatomy["*"], PruneWeights(fraction), optimizer, averages=[plain, buffered])
        operate(anatomy["8"], RandomRemove(keep=0.8), optimizer, averages=[plain, buffered])
        train(model, inputs, optimizer)
        plain.update_parameters(model)
        buffered.update_parameters(model)
    for average in (plain, buffered):
        assert_same(masks_of(model), masks_of(average.module))
        assert not hidden_values(average.module).any()
    late = AveragedModel(build("cnn")[0])
    fresh = Anatomy(late.module, inputs)
    with pytest.raises(SurgeryError, match="masked in the network or in an average of it, but not in both"):
        operate(fresh["0"], RandomRemove(keep=0.5), averages=masked("cnn", torch.float32)[0])


def test_a_fresh_network_takes_the_masks(tmp_path) -> None:
    for name in (*NETWORKS, "grouped"):
        model, inputs = build(name, batch=16)
        anatomy = Anatomy(model, inputs)
        operate(anatomy["*"], PruneWeights(0.5))
        for layer in anatomy.values():
            operate(layer, RandomRemove(keep=0.5))
        fresh, _ = build(name)
        adopt(fresh, describe(model))
        assert describe(fresh) == describe(model) and fresh.state_dict().keys() == model.state_dict().keys()
        assert_same(masks_of(fresh), masks_of(model))
        assert not hidden_values(fresh).any()
        save(model, tmp_path / "net.pt")
        loaded = load(lambda name=name: build(name)[0], tmp_path / "net.pt")
        assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
        assert difference(outputs(model, inputs), outputs(loaded, inputs)) == 0
        again = describe(build(name)[0])
        assert "masks" not in again
        if describe(model)["shapes"] == again["shapes"]:
            adopt(fresh, again)
            assert describe(fresh) == again


def test_refuses_masks_of_another_network() -> None:
    model, _ = masked("mlp", torch.float32)
    description = describe(model)
    for change, says in (
        ({"2.running_mean": "x"}, r"it masks 2\.running_mean"),
        ({"0.weight": "x"}, r"not one of the shape \(8, 5\)"),
        ({"0.weight": description["masks"]["2.weight"]}, r"not one of the shape \(8, 5\)"),
    ):
        fresh, _ = build("mlp")
        with pytest.raises(SurgeryError, match=says):
            adopt(fresh, {**description, "masks": {**description["masks"], **change}})
        assert "masks" not in describe(fresh)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4), (8, 8), (4, 0)])
def test_a_mask_as_text_comes_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) > 0.5
    assert torch.equal(unpack(pack(mask), torch.Size(shape)), mask.to(torch.uint8))


def test_putting_on_and_taking_off_leave_a_network_as_it_was() -> None:
    model, inputs = build("tied")
    keys, order = list(model.state_dict()), [id(p) for p in model.parameters()]
    modules = dict(model.named_modules())
    undo = put(modules, "first.weight", torch.zeros(6, 6))
    assert not model.second.weight.any() and not model.first.weight.any()
    assert {name for name, _ in met(model)} >= {"first.weight"}
    for step in reversed(undo):
        step()
    assert list(model.state_dict()) == keys and [id(p) for p in model.parameters()] == order
    assert type(model.first) is nn.Linear and model.second.weight is model.first.weight
    put(modules, "first.weight", torch.zeros(6, 6))
    take_off(modules, "first.weight")
    assert model.second.weight is model.first.weight and not masks_of(model)
    assert outputs(model, inputs)[0].isfinite().all()


@pytest.mark.parametrize("score", UNIT_SCORES)
@pytest.mark.parametrize("network", ["mlp_bn", "cnn", "residual", "tied"])
def test_unit_scores_are_those_of_the_network_with_zeros(score: str, network: str) -> None:
    model, inputs = masked(network, batch=8)
    bare, tensors = build(network, torch.float64)[0], dict(tensors_of(model))
    for name, tensor in tensors_of(bare):
        tensor.data.copy_(tensors[name])
    targets = torch.arange(8) % 3
    signals, wanted = Signals(model, inputs, targets), Signals(bare, inputs, targets)
    layers = Anatomy(bare, inputs)
    for name, layer in Anatomy(model, inputs).items():
        torch.testing.assert_close(unit_scores(layer, signals, score), unit_scores(layers[name], wanted, score))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.cells = kind(4, 6, batch_first=True, **settings)
        self.out = nn.Linear(12 if settings.get("bidirectional") else 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.cells(x)[0][:, -1])
        return result


@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
def test_masked_recurrent_layers_can_be_copied_at_any_time(kind: type[nn.RNNBase], settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, inputs = Recurrent(kind, **settings), torch.randn(8, 5, 4)
    plain = model(inputs)
    with trial_surgery(PruneWeights(0.5).propose(Anatomy(model, inputs)["*"])):
        assert not torch.equal(model(inputs), plain)
    assert type(model.cells) is kind and torch.equal(model(inputs), plain)
    anatomy = Anatomy(model, inputs)
    operate(anatomy["*"], PruneWeights(0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()

    step(model, optimizer)
    made = model(inputs)
    copied, average = copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model)
    assert torch.equal(copied(inputs), made) and torch.equal(average(inputs), made)
    step(copied, torch.optim.SGD(copied.parameters(), 0.1))
    assert torch.equal(model(inputs), made) and not torch.equal(copied(inputs), made)
    for name in anatomy:
        operate(anatomy[name], MinWeight(0.7), optimizer, averages=average)
    step(model, optimizer)
    average.update_parameters(model)
    again = copy.deepcopy(model)
    assert torch.equal(again(inputs), model(inputs)) and not hidden_values(again).any()


def test_a_copy_goes_on_without_masks_and_the_network_with_them() -> None:
    for name in ("mlp", "cnn", "tied", "residual"):
        model, inputs = masked(name)
        model.eval()
        names, made = set(masks_of(model)), outputs(model, inputs)
        with pytest.raises(SurgeryError, match=r"script a copy with plain ones, torch\.jit\.script"):
            torch.jit.script(model)
        plain = without_masks(model)
        assert not masks_of(plain) and set(masks_of(model)) == names and type(plain) is type(model)
        assert {n: t.shape for n, t in plain.named_parameters()} == {
            n: t.shape for n, t in tensors_of(model) if isinstance(t, nn.Parameter)
        }
        assert difference(outputs(plain, inputs), made) < 1e-6
        assert difference(outputs(model, inputs), made) == 0
        if isinstance(plain, nn.Sequential):
            assert difference(outputs(torch.jit.script(plain), inputs), made) < 1e-6
            pickle.loads(pickle.dumps(plain))


def test_masks_of_torch_are_taken_over() -> None:
    model, inputs = build("cnn")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[4], "weight", 0.3)
    prune.ln_structured(model[8], "weight", 0.25, n=2, dim=0)
    prune.random_unstructured(model[8], "bias", 0.5)
    wanted, parameters = outputs(model, inputs), [id(parameter) for parameter in model.parameters()]
    pinned = Anatomy(model, inputs).pinned
    assert all("ops.take_over_masks(model)" in pinned[name] for name in ("0", "4", "8"))
    assert take_over_masks(model) is model
    assert sorted(id(parameter) for parameter in model.parameters()) == sorted(parameters)
    assert difference(wanted, outputs(model, inputs)) == 0
    anatomy = Anatomy(model, inputs)
    assert {name: layer.units for name, layer in anatomy.items()} == {"0": 6, "4": 4, "8": 8}
    assert set(anatomy.masks()) == {"0.weight", "4.weight", "8.weight", "8.bias"}
    for layer in anatomy.values():
        apply(MinWeight(keep=0.5).propose(layer, None), optimizer)
    train(model, inputs, optimizer)
    for name, mask in anatomy.masks().items():
        assert not anatomy.tensor(name)[mask == 0].any() and (mask == 0).any()


def test_iterated_pruning_of_torch_is_taken_over() -> None:
    model, inputs = build("mlp")
    for _ in range(2):
        prune.l1_unstructured(model[0], "weight", 0.3)
        prune.global_unstructured([(model[0], "weight"), (model[2], "weight")], prune.L1Unstructured, amount=0.2)
    wanted = outputs(model, inputs)
    assert difference(wanted, outputs(take_over_masks(model), inputs)) == 0
    assert list(Anatomy(model, inputs)) == ["0", "2"]

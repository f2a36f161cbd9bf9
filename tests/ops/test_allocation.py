"""Allocation: the network that results meets its budget, as near as whole units allow, by every method."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from network_surgery.ops import (
    PCNS,
    Allocation,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    PruneWeights,
    RandomRemove,
    RemoveDead,
    Signals,
    Size,
    SurgeryError,
    allocate,
    operate,
    size,
    unit_scores,
)  # fmt: skip
from network_surgery.ops.allocation import METHODS, WITH_SIGNALS, check_budget, share
from network_surgery.ops.anatomy import count
from network_surgery.ops.operation import units_to_keep
from network_surgery.study.models import build as study_model
from network_surgery.study.task.gpt import GPT
from tests.ops.grammar import UNSTEADY, generate
from tests.ops.networks import ADVERSARIAL, NETWORKS, build

#: Networks whose output is logits of a class for each sample.
CLASSIFIERS = ("mlp", "mlp_bn", "cnn", "residual", "dense_concat", "separable", "layernorm", "tied", "grouped")
every_method = pytest.mark.parametrize("method", METHODS)


def anatomy_of(name: str, batch: int = 16) -> tuple[Anatomy, Signals]:
    torch.manual_seed(0)
    if name == "gpt":
        inputs = torch.randint(11, (batch, 6))
        model: nn.Module = GPT(11, 8, width=8, depth=2, heads=2)
    elif name in ("small_cnn", "resnet18_quarter"):
        inputs = torch.randn(batch, 1, 16, 16)
        model = study_model(name, (1, 16, 16), 3)
    else:
        model, inputs = build(name, batch=batch)
    return Anatomy(model, inputs), Signals(model, inputs, torch.arange(batch) % 3, of_logits)


def of_logits(outputs, targets):
    """The cross entropy, of every position where there are several."""
    if isinstance(outputs, torch.Tensor) and outputs.dim() == 2:
        return F.cross_entropy(outputs, targets, reduction="none")
    return sum(((out - 1) ** 2).flatten(1).mean(1) for out in torch.utils._pytree.tree_leaves(outputs))


def cut(anatomy: Anatomy, keep: dict[str, float], operation=RandomRemove) -> Size:
    """Cuts the network and counts what is left of it, by running it."""
    for name, each in keep.items():
        operate(anatomy[name], operation(each))
    return Size(*count(anatomy.model, anatomy.example_input))


def meets(found: Size, before: Size, budget: dict[str, float]) -> bool:
    return all(getattr(found, name) <= value * getattr(before, name) for name, value in budget.items())


def check_widths(anatomy: Anatomy, seed: int) -> None:
    """The size that is predicted of random widths is the one that cutting leads to."""
    chance = Random(seed)
    widths = {name: chance.randint(2, layer.units) for name, layer in anatomy.items()}
    predicted, before = size(anatomy, widths), size(anatomy)
    assert before == Size(*count(anatomy.model, anatomy.example_input))
    assert size(anatomy) == before  # asking changes nothing
    assert cut(anatomy, {name: share(units, anatomy[name].units) for name, units in widths.items()}) == predicted
    assert size(anatomy) == predicted


@pytest.mark.parametrize("name", [*NETWORKS, *(n for n in ADVERSARIAL if ADVERSARIAL[n][2]), "small_cnn", "gpt"])
def test_the_size_at_any_widths_is_that_of_the_network_cut_to_them(name):
    for seed in range(3):
        check_widths(anatomy_of(name, batch=2)[0], seed)


def test_the_size_at_any_widths_is_right_on_random_networks():
    tried = 0
    for seed in range(60):
        specimen = generate(seed)
        anatomy = Anatomy(specimen.model, specimen.example(0))
        if anatomy and not UNSTEADY & set(specimen.constructs.values()):  # what they cost depends on values
            check_widths(anatomy, seed)
            tried += 1
    assert tried > 40


@every_method
@pytest.mark.parametrize("name", [*CLASSIFIERS, "small_cnn", "gpt"])
def test_the_network_meets_its_budget_and_no_layer_could_have_one_unit_more(name, method):
    for budget in ({"parameters": 0.6}, {"flops": 0.5}, {"parameters": 0.8, "flops": 0.6}):
        anatomy, signals = anatomy_of(name)
        before, units = size(anatomy), {layer: anatomy[layer].units for layer in anatomy}
        try:
            keep = allocate(anatomy, MinWeight(), budget, method, signals)
        except SurgeryError as error:
            assert "cannot be met" in str(error)
            continue
        widths = {layer: units_to_keep(anatomy[layer], each) for layer, each in keep.items()}
        assert all(units_to_keep(anatomy[layer], each, "down") == widths[layer] for layer, each in keep.items())
        assert list(keep) == list(anatomy) and all(2 <= widths[layer] <= units[layer] for layer in units)
        assert meets(size(anatomy, widths), before, budget)
        for layer in units:
            if widths[layer] < units[layer]:
                assert not meets(size(anatomy, {**widths, layer: widths[layer] + 1}), before, budget)
        assert size(anatomy) == before
        assert cut(anatomy, keep) == size(anatomy, widths)


def test_a_deep_residual_network_meets_its_budget():
    anatomy, signals = anatomy_of("resnet18_quarter", batch=4)
    before = size(anatomy)
    keep = allocate(anatomy, MinWeight(), {"flops": 0.25}, "saliency", signals)
    found = cut(anatomy, keep, MinWeight)
    assert 0.99 * 0.25 * before.flops < found.flops <= 0.25 * before.flops


@pytest.mark.parametrize(
    "operation", [MinWeight, EigenRemove, RandomRemove, partial(PCNS, 0.01, "pivoted"), MeanReplace]
)
def test_every_removal_ends_at_the_size_that_was_allocated(operation):
    anatomy, _ = anatomy_of("cnn")
    limit = size(anatomy).parameters // 2
    keep = allocate(anatomy, operation(), {"parameters": 0.5}, "magnitude")
    for name, each in keep.items():
        made = operation(keep=each)
        signals = Signals(anatomy.model, anatomy.example_input, torch.arange(16) % 3) if made.needs_signals else None
        operate(anatomy[name], made, (), signals)
    assert 0.9 * limit < count(anatomy.model, anatomy.example_input)[0] <= limit


def test_uniform_is_the_same_share_everywhere():
    anatomy, _ = anatomy_of("small_cnn")
    keep = allocate(anatomy, MinWeight(), {"parameters": 0.25})
    for one, other in itertools.combinations(anatomy.values(), 2):
        assert abs(keep[one.name] - keep[other.name]) <= 1.5 / min(one.units, other.units)


def test_shares_are_how_much_of_each_layer_stays_beside_the_others():
    anatomy, _ = anatomy_of("small_cnn")
    keep = allocate(anatomy, MinWeight(), {"parameters": 0.2}, {"conv1": 1, "conv2": 0.5, "fc*": 0.25})
    for name, share_of_it in (("conv2", 0.5), ("fc1", 0.25)):
        assert abs(keep[name] - share_of_it * keep["conv1"]) <= 1.5 / anatomy[name].units
    alone = allocate(anatomy, MinWeight(), {"parameters": 0.9}, {"fc1": 0.05})  # the others keep all of their units
    assert alone["conv1"] == alone["conv2"] == 1 > alone["fc1"]
    assert allocate(anatomy, MinWeight(), {"parameters": 0.2}, {"fc1": 1}) == allocate(
        anatomy, MinWeight(), {"parameters": 0.2}, "uniform"
    )
    named = Allocation({"parameters": 0.2}, {"conv1": 1, "fc1": 0.25})
    assert str(named) == "to 20 % of the parameters by the shares conv1 1, fc1 0.25"
    assert hash(named) == hash(Allocation({"parameters": 0.2}, {"conv1": 1, "fc1": 0.25}))
    with pytest.raises(SurgeryError, match="the layer 'nowhere'"):
        allocate(anatomy, MinWeight(), {"parameters": 0.2}, {"nowhere": 1})
    for shares, message in (({"fc1": 0}, "the share of fc1"), ({"fc1": "half"}, "the share of fc1"), ({}, "there are")):
        with pytest.raises(SurgeryError, match=message):
            Allocation({"parameters": 0.2}, shares)


def test_a_budget_that_is_met_keeps_every_unit_and_small_ones_take_more():
    anatomy, signals = anatomy_of("small_cnn")
    assert set(allocate(anatomy, MinWeight(), {"parameters": 1.0}).values()) == {1.0}
    for method in METHODS:
        sizes = []
        for fraction in (0.9, 0.6, 0.3):
            keep = allocate(anatomy, MinWeight(), {"parameters": fraction}, method, signals)
            sizes.append([round(each * anatomy[name].units) for name, each in keep.items()])
        total = [sum(each) for each in sizes]
        assert total[0] > total[1] > total[2], method


def test_units_that_do_nothing_go_first():
    """A layer whose units are all needed by nobody gives them up before others: by every method that looks."""
    for method in ("saliency", "snip", "sensitivity", "redundancy"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        inputs = torch.randn(64, 6)
        with torch.no_grad():
            model[0].weight[4:], model[0].bias[4:] = 0, 0
            model[2].weight[:, 4:] = 0
        anatomy, signals = Anatomy(model, inputs), Signals(model, inputs, torch.arange(64) % 3)
        fewer = size(anatomy, {"0": 4})
        keep = allocate(anatomy, MinWeight(), {"parameters": fewer.parameters}, method, signals)
        assert round(16 * keep["0"]) <= 5 and round(16 * keep["2"]) >= 12, method


def test_sensitive_layers_keep_more():
    """By the measured loss: cutting the first layer hurts, cutting the second does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        model[2].weight.mul_(0.01)
        model[4].weight.mul_(0.01)
        model[4].bias.zero_()
        model[2].weight[0].mul_(1000)
        model[4].weight[:, 0].mul_(1000)
    inputs = torch.randn(64, 6)
    targets = model(inputs).argmax(1)
    anatomy = Anatomy(model, inputs)
    keep = allocate(anatomy, MinWeight(), {"parameters": 0.5}, "sensitivity", Signals(model, inputs, targets))
    assert keep["0"] > 2 * keep["2"]


def test_redundancy_is_one_threshold_of_lost_variance():
    """Where the threshold alone decides, the widths are those that PCNS itself would leave at it."""
    anatomy, signals = anatomy_of("small_cnn", batch=64)
    for threshold in (0.3, 0.1, 0.02):
        wanted = {name: len(PCNS(threshold).propose(layer, signals).sources) for name, layer in anatomy.items()}
        keep = allocate(anatomy, PCNS(), {"parameters": size(anatomy, wanted).parameters}, "redundancy", signals)
        assert {name: round(each * anatomy[name].units) for name, each in keep.items()} == wanted


def test_snip_is_the_sum_of_connection_sensitivities():
    anatomy, signals = anatomy_of("mlp")
    model = anatomy.model.eval()
    model.zero_grad()
    F.cross_entropy(model(signals.inputs), signals.targets).backward()
    wanted = (model[2].weight * model[2].weight.grad).abs().sum(dim=1)
    torch.testing.assert_close(unit_scores(anatomy["2"], signals, "snip").float(), wanted)


def test_random_follows_its_seed():
    anatomy, _ = anatomy_of("small_cnn")
    found = [allocate(anatomy, MinWeight(), {"parameters": 0.5}, "random", seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_only_the_layers_that_are_named_are_cut():
    anatomy, _ = anatomy_of("gpt")
    keep = allocate(anatomy, MinWeight(), {"parameters": 0.8}, "magnitude", layers=["blocks.*.mlp.*"])
    assert list(keep) == ["blocks.0.mlp.gate", "blocks.1.mlp.gate"]
    assert allocate(anatomy, MinWeight(), {"parameters": 0.8}, layers=["blocks.1.mlp.gate", "blocks.0.mlp.gate"]).keys()


def test_fractions_are_of_the_size_that_is_given():
    anatomy, _ = anatomy_of("small_cnn")
    original = size(anatomy)
    operate(anatomy["conv2"], MinWeight(0.5))
    keep = allocate(anatomy, MinWeight(), {"parameters": 0.4}, of=original)
    assert 0.38 * original.parameters < cut(anatomy, keep).parameters <= 0.4 * original.parameters
    assert set(allocate(anatomy, MinWeight(), {"parameters": 0.9}, of=original).values()) == {1.0}


def test_masked_weights_count_whole():
    anatomy, _ = anatomy_of("small_cnn")
    before = size(anatomy)
    operate(anatomy["*"], PruneWeights(0.5))
    assert size(anatomy) == before
    keep = allocate(anatomy, MinWeight(), {"parameters": 0.5})
    cut(anatomy, keep)
    assert 0.48 * before.parameters < size(anatomy).parameters <= 0.5 * before.parameters


@every_method
def test_allocation_changes_nothing(method):
    anatomy, signals = anatomy_of("cnn")
    before = copy.deepcopy(anatomy.model.state_dict())
    random = torch.random.get_rng_state()
    first = allocate(anatomy, MinWeight(), {"flops": 0.5}, method, signals)
    assert first == allocate(anatomy, MinWeight(), {"flops": 0.5}, method, signals)
    assert all(torch.equal(before[name], value) for name, value in anatomy.model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"parameters": 1e-6}, "cannot be met: with 2 units in each layer"),
        ({"parameters": 10**9}, "is larger than the network, which has"),
        ({"parameters": 0}, "write a fraction of the network"),
        ({"parameters": -0.5}, "write a fraction of the network"),
        ({"parameters": True}, "write a fraction of the network"),
        ({"parameters": 1.5}, "write a fraction of the network"),
        ({"seconds": 0.5}, "a budget is of parameters or flops"),
        ({}, "a budget is of parameters or flops"),
        (0.5, "a budget is of parameters or flops"),
    ],
)
def test_budgets_that_cannot_be(budget, message):
    anatomy, _ = anatomy_of("small_cnn")
    with pytest.raises(SurgeryError, match=message):
        allocate(anatomy, MinWeight(), budget)


def test_what_cannot_be_allocated_says_why():
    anatomy, _ = anatomy_of("small_cnn")
    half = {"parameters": 0.5}
    with pytest.raises(SurgeryError, match="RemoveDead has no keep"):
        allocate(anatomy, RemoveDead(), half)
    with pytest.raises(SurgeryError, match="not by 'guess'"):
        allocate(anatomy, MinWeight(), half, "guess")
    for method in WITH_SIGNALS:
        with pytest.raises(SurgeryError, match="looks at data"):
            allocate(anatomy, MinWeight(), half, method)
    with pytest.raises(SurgeryError, match="the layer 'nowhere'"):
        allocate(anatomy, MinWeight(), half, layers=["nowhere"])
    with pytest.raises(SurgeryError, match="conv1 and all others whole"):
        allocate(anatomy, MinWeight(), {"parameters": 0.01}, layers=["conv1"])
    for wrong in ({}, nn.Linear(2, 2)):
        with pytest.raises(SurgeryError, match="the layers of an Anatomy"):
            allocate(wrong, MinWeight(), half)
    with pytest.raises(SurgeryError, match="the layers of an Anatomy"):
        allocate(anatomy, MinWeight(), half, "random", seed=0.5)
    for method in (["uniform"], None):
        with pytest.raises(SurgeryError, match="a budget is allocated by"):
            allocate(anatomy, MinWeight(), half, method)
    with pytest.raises(SurgeryError, match="no layer that can be operated on"):
        allocate(Anatomy(nn.Linear(3, 2), torch.zeros(2, 3)), MinWeight(), half)


def test_an_allocation_in_words():
    assert str(Allocation({"parameters": 0.2})) == "to 20 % of the parameters by uniform"
    both = Allocation({"flops": 1000, "parameters": 0.5}, "snip", ("fc1",))
    assert str(both) == "to 50 % of the parameters and 1,000 FLOPs by snip among fc1"
    assert check_budget({"flops": 1, "parameters": 1.0}) == {"parameters": 1.0, "flops": 1}

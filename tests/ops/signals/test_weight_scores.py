"""Weight scores against their definitions: finite differences, whole Hessians, one loss for each weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from network_surgery.ops import Anatomy, PruneWeights, SurgeryError, operate, weight_scores
from network_surgery.ops.anatomy.running import plainly
from network_surgery.ops.network.masks import masks_of
from network_surgery.ops.signals.weight_scores import SCORES, SIGNED, _loss, at_once, loss_changes
from tests.ops.networks import Net, build, liven, train


def dense() -> tuple[nn.Module, Tensor, Tensor]:
    """Everything is twice differentiable and small enough for a whole Hessian."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    return model, torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3


def convolutional() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = liven(nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, groups=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )).double()  # fmt: skip
    return model, torch.randn(9, 1, 8, 8, dtype=torch.float64), torch.arange(9) % 3


def loss_of(model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)


def brute_force(model: nn.Module, name: str, inputs: Tensor, targets: Tensor) -> Tensor:
    """Each weight set to zero alone, in a network of its own."""
    model = copy.deepcopy(model).eval()
    weight = dict(model.named_parameters())[name].data
    found = torch.zeros_like(weight)
    with torch.no_grad():
        plain = loss_of(model, inputs, targets)
        for entry in range(weight.numel()):
            kept = weight.view(-1)[entry].clone()
            weight.view(-1)[entry] = 0
            found.view(-1)[entry] = loss_of(model, inputs, targets) - plain
            weight.view(-1)[entry] = kept
    return found


def test_magnitude_and_its_absence_of_data() -> None:
    model, _, _ = dense()
    found = weight_scores(model, ["0.weight", "3.bias"], "magnitude")
    assert torch.equal(found["0.weight"], model[0].weight.abs()) and torch.equal(found["3.bias"], model[3].bias.abs())


def test_random_scores_are_a_function_of_the_seed() -> None:
    model, _, _ = dense()
    one, same, other = (weight_scores(model, ["0.weight"], "random", seed=s)["0.weight"] for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.min() >= 0 and one.max() < 1 and abs(float(one.mean()) - 0.5) < 0.25
    torch.manual_seed(0)
    fresh = nn.Linear(50, 40)
    chance = weight_scores(fresh, ["weight"], "random", seed=0)["weight"]
    together = torch.stack([chance.flatten(), fresh.weight.detach().flatten()])
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.1  # not the numbers of the initialization


@pytest.mark.parametrize("names", [["0.weight"], ["0.weight", "3.weight"], ["3.weight", "0.bias", "0.weight"]])
def test_expansions_against_autograd_s_whole_hessian(names: list[str]) -> None:
    model, inputs, targets = dense()
    model.eval()
    weights = [dict(model.named_parameters())[name].detach() for name in names]
    sizes = [weight.numel() for weight in weights]

    def flat_loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        changed = {n: part.view(w.shape) for n, part, w in zip(names, parts, weights, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, changed, inputs), targets)

    flat = torch.cat([weight.flatten() for weight in weights])
    slope = torch.autograd.functional.jacobian(flat_loss, flat)
    hessian = torch.autograd.functional.hessian(flat_loss, flat)
    wanted = {
        "taylor1": -flat * slope,
        "hessian": flat * (hessian @ flat),
        "taylor2": -flat * slope + 0.5 * flat * (hessian @ flat),
    }
    assert (hessian - hessian.diag().diag()).abs().max() > 0.01  # the other rows count
    for score, expected in wanted.items():
        for form, values in ((score, expected), (f"{score}_abs", expected.abs())):
            found = weight_scores(model, names, form, inputs, targets, strength=0.5)
            assert list(found) == names
            torch.testing.assert_close(torch.cat([each.flatten() for each in found.values()]), values)


def test_what_the_expansions_sum_to_is_the_loss_along_the_line() -> None:
    """All weights shrink by a small part at once: first and (at λ = ½) second order of the very change of the loss."""
    model, inputs, targets = dense()
    model.eval()
    names, small = ["0.weight", "3.weight"], 1e-3
    first, second = (
        sum(float(each.sum()) for each in weight_scores(model, names, score, inputs, targets).values())
        for score in ("taylor1", "hessian")
    )
    plain = float(loss_of(model, inputs, targets))
    with torch.no_grad():
        for name in names:
            dict(model.named_parameters())[name].mul_(1 - small)
    change = float(loss_of(model, inputs, targets)) - plain
    assert abs(change - small * first) > 1e3 * abs(change - small * first - 0.5 * small**2 * second)


@pytest.mark.parametrize(("make", "names"), [
    (dense, ["0.weight", "3.weight", "0.bias"]), (convolutional, ["0.weight", "4.weight", "7.weight", "1.weight"]),
])  # fmt: skip
@pytest.mark.parametrize("most", [1, 8, 64])
def test_measured_changes_against_one_network_for_each_weight(make: Any, names: list[str], most: int) -> None:
    model, inputs, targets = make()
    found = weight_scores(model, names, "loss_change", inputs, targets)
    with plainly(model):
        loss = _loss(model, inputs, targets)
        for name in names:
            wanted = brute_force(model, name, inputs, targets)
            assert wanted.min() < 0 < wanted.max()
            torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-12)
            weight = dict(model.named_parameters())[name].detach()
            torch.testing.assert_close(loss_changes(loss, name, weight, most), wanted, rtol=1e-9, atol=1e-12)


def test_many_weights_are_tried_in_one_pass_where_that_is_possible() -> None:
    model, inputs, targets = convolutional()
    calls = []
    model[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    weight_scores(model, ["7.weight"], "loss_change", inputs, targets)
    assert len(calls) <= 3  # how large its outputs are, the loss as it is, and all 48 weights
    with plainly(model):
        loss = _loss(model, inputs, targets)
        assert at_once(model, "7.weight", model[7].weight, loss) > at_once(model, "0.weight", model[0].weight, loss) > 8


def test_a_network_that_cannot_be_vectorized_is_measured_all_the_same() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.hidden(x)
        return m.out(h if float(h.mean()) > 100 else h.tanh())  # a value that leaves the tensors

    model = Net(forward, hidden=nn.Linear(4, 5), out=nn.Linear(5, 3)).double()
    inputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    found = weight_scores(model, ["hidden.weight"], "loss_change", inputs, targets)["hidden.weight"]
    torch.testing.assert_close(found, brute_force(model, "hidden.weight", inputs, targets), rtol=1e-9, atol=1e-12)


def test_attention_has_second_derivatives_too() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.mix(x).view(len(x), 3, 2, 6).unbind(2)[0].split(2, -1)
        return m.out(F.scaled_dot_product_attention(q, k, v).flatten(1))

    model = Net(forward, mix=nn.Linear(4, 36), out=nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    found = weight_scores(model, ["mix.weight"], "hessian", inputs, targets)["mix.weight"]
    names = {"mix.weight": model.mix.weight.detach()}

    def slope(at: Tensor) -> Tensor:
        at = at.requires_grad_()
        logits = torch.func.functional_call(model, {"mix.weight": at}, inputs)
        return torch.autograd.grad(F.cross_entropy(logits, targets), at)[0]

    weight, step = names["mix.weight"], 1e-5
    difference = (slope(weight * (1 + step)) - slope(weight * (1 - step))) / (2 * step)
    assert found.abs().max() > 1e-4
    torch.testing.assert_close(found, weight * difference, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("score", SCORES)
def test_the_network_is_left_as_it_was(score: str) -> None:
    model, inputs, targets = convolutional()
    model.train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[7].weight.grad = torch.ones_like(model[7].weight)
    before = copy.deepcopy(model.state_dict())
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    found = weight_scores(model, ["0.weight", "7.weight"], score, inputs, targets)
    assert all(found[name].shape == before[name].shape and not found[name].requires_grad for name in found)
    assert [module.training for module in model.modules()] == modes and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0].weight.requires_grad and model[0].weight.grad is None and model[4].weight.grad is None
    assert torch.equal(model[7].weight.grad, torch.ones_like(model[7].weight))


@pytest.mark.parametrize("score", [*SIGNED, "magnitude"])
def test_a_masked_weight_scores_nothing_and_the_others_what_they_are(score: str) -> None:
    model, inputs, targets = convolutional()
    operate(Anatomy(model, inputs)["*"], PruneWeights(0.5))
    bare = convolutional()[0]
    bare.load_state_dict({
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in model.state_dict().items() if not name.endswith(".mask")
    })  # fmt: skip
    names = ["0.weight", "4.weight", "7.weight"]
    found, wanted = (weight_scores(m, names, score, inputs, targets) for m in (model, bare))
    for name, mask in masks_of(model).items():
        assert not found[name][mask == 0].any() and found[name].any()
        if score in ("taylor1", "loss_change", "magnitude"):  # the curvature's other rows are those of living weights
            torch.testing.assert_close(found[name], wanted[name] * mask)


@pytest.mark.parametrize(("names", "score", "batch", "says"), [
    (["0.weight"], "size", True, "there is no weight score 'size'; there are magnitude, random, taylor1"),
    (["0.weigth"], "magnitude", True, "no parameter '0.weigth' to score"),
    (["0.weight"], "taylor1", False, "the score taylor1 looks at the loss: give it inputs and targets"),
])  # fmt: skip
def test_says_what_is_wrong(names: list[str], score: str, batch: bool, says: str) -> None:
    model, inputs, targets = dense()
    with pytest.raises(SurgeryError, match=says):
        weight_scores(model, names, score, *((inputs, targets) if batch else ()))


def test_inputs_are_what_the_model_takes() -> None:
    for name in ("dict_io", "tuple_in"):
        model, inputs = build(name, torch.float64, batch=6)
        if name == "dict_io":
            plain = model.function
            model.function = lambda m, left, right, plain=plain: plain(m, left, right)["class"]
        anatomy = Anatomy(model, inputs)
        train(model, inputs, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
        found = weight_scores(model, anatomy.weights, "taylor2_abs", inputs, torch.arange(6) % 3)
        assert all(each.any() and (each >= 0).all() for each in found.values() if each.numel() > 12)


@pytest.mark.parametrize("score", SCORES)
def test_parameters_that_are_all_zero_have_scores_too(score: str) -> None:
    """As biases have in many networks before training: setting to zero what is zero changes nothing."""
    model, inputs, targets = dense()
    nn.init.zeros_(model[0].bias)
    found = weight_scores(model, ["0.bias", "0.weight"], score, inputs, targets)
    assert (found["0.bias"] == 0).all() or score == "random"
    assert (found["0.weight"] != 0).any()

"""Losses other than the mean cross entropy: every score and prediction against its definition by autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils import _pytree

from network_surgery.ops import (
    Anatomy,
    MeanReplace,
    MinWeight,
    Plan,
    PruneWeights,
    RemoveDead,
    Signals,
    SurgeryError,
    frozen_units,
    operate,
    predicted_loss_change,
    trial_surgery,
    unit_scores,
    weight_scores,
)
from network_surgery.ops.anatomy.rebuild import to_double
from network_surgery.ops.signals.losses import mean_loss, sample_losses
from network_surgery.ops.signals.replacement import constants
from network_surgery.ops.surgery.prediction import _line, _moved
from network_surgery.ops.surgery.repair import leave
from tests.ops.networks import Net

BATCH = 10
Loss = Callable[[Any, Any], Tensor]


def dense(outputs: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def positions() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 6, 1), nn.Tanh(), nn.Conv2d(6, 3, 1)).double()


def heads(form: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    torch.manual_seed(1)

    def forward(m: Any, x: Tensor) -> Any:
        h = m.first(x).tanh()
        return form(m.one(h), m.two(h))

    return Net(forward, first=nn.Linear(4, 6), one=nn.Linear(6, 3), two=nn.Linear(6, 1)).double()


def both(output: Any, targets: Any) -> Tensor:
    one, two = (output["class"], output["value"]) if isinstance(output, dict) else output
    return F.cross_entropy(one, targets["class"]) + F.mse_loss(two[:, 0], targets["value"])


def both_each(output: Any, targets: Any) -> Tensor:
    losses = F.cross_entropy(output["class"], targets["class"], reduction="none")
    return losses + (output["value"][:, 0] - targets["value"]).square()


def case(name: str) -> tuple[nn.Module, Tensor, Any, Loss | None]:
    """A network, its inputs, targets and the loss."""
    numbers = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, 4, generator=numbers, dtype=torch.float64)
    images = torch.randn(BATCH, 2, 3, 3, generator=numbers, dtype=torch.float64)
    classes = torch.arange(BATCH) % 3
    each = torch.randint(0, 3, (BATCH, 3, 3), generator=numbers)
    ignored = each.masked_fill(torch.rand(each.shape, generator=numbers) < 0.3, 255)
    values = torch.randn(BATCH, 3, generator=numbers)
    several = {"class": classes, "value": values[:, 0]}
    named, paired = heads(lambda a, b: {"class": a, "value": b}), heads(lambda a, b: (a, b))
    found: dict[str, tuple[nn.Module, Tensor, Any, Loss | None]] = {
        "classes": (dense(3), x, classes, None),
        "int32": (dense(3), x, classes.int(), None),
        "probabilities": (dense(3), x, values.softmax(1), None),
        "positions": (positions(), images, each, None),
        "mse": (dense(3), x, values, F.mse_loss),
        "mse_each": (dense(3), x, values, functools.partial(F.mse_loss, reduction="none")),
        "huber": (dense(3), x, values, nn.HuberLoss(delta=0.3)),
        "one_logit": (dense(1), x, (values[:, :1] > 0).float(), F.binary_cross_entropy_with_logits),
        "ignored": (positions(), images, ignored, functools.partial(F.cross_entropy, ignore_index=255)),
        "ignored_by_default": (positions(), images, ignored.where(ignored < 255, -100), None),
        "weighted": (dense(3), x, classes, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5]))),
        "dict": (named, x, several, both),
        "dict_each": (named, x, several, both_each),
        "tuple": (paired, x, several, both),
        "no_targets": (dense(3), x, None, lambda output, _: output.square().mean()),
    }
    return found[name]


CASES = [
    "classes", "int32", "probabilities", "positions", "mse", "mse_each", "huber", "one_logit", "ignored",
    "ignored_by_default", "weighted", "dict", "dict_each", "tuple", "no_targets",
]  # fmt: skip


def whole(output: Any, targets: Any, loss: Loss | None) -> Tensor:
    """The loss of a batch, as its user calculates it."""
    if loss is None:
        return F.cross_entropy(output, targets if targets.is_floating_point() else targets.long())
    try:
        return loss(output, _pytree.tree_map(to_double, targets)).mean()
    except RuntimeError:  # the weights of its classes are of single precision
        return loss(output.float(), targets)


def first(layer: Any) -> Any:
    return next(iter(layer.values()))


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_signals_is_the_user_s(name: str) -> None:
    model, inputs, targets, loss = case(name)
    wanted = whole(model(inputs), targets, loss)
    torch.testing.assert_close(Signals(model, inputs, targets, loss).loss, wanted.detach(), check_dtype=False)
    torch.testing.assert_close(mean_loss(model(inputs), targets, loss), wanted, check_dtype=False)


@pytest.mark.parametrize("name", CASES)
def test_first_order_is_the_gradient_at_the_outputs(name: str) -> None:
    """Every sample's output times the gradient of the whole loss, times the batch: its part of the mean."""
    model, inputs, targets, loss = case(name)
    layer = first(Anatomy(model, inputs))
    maker = model[0] if isinstance(model, nn.Sequential) else model.first
    made: list[Tensor] = []
    hook = maker.register_forward_hook(lambda m, args, out: made.append(out))
    output = model(inputs)
    hook.remove()
    (slope,) = torch.autograd.grad(whole(output, targets, loss), made[0])
    h = made[0].detach()
    slope = slope / (1 - h.tanh().square()) * BATCH  # at what the reader receives
    product = (h.tanh() * slope).flatten(2).sum(2) if h.dim() > 2 else h.tanh() * slope
    signals = Signals(model, inputs, targets, loss)
    found = unit_scores(layer, signals, "taylor")
    torch.testing.assert_close(found, product.abs().mean(0), rtol=1e-5, atol=1e-7)
    before = slope * (1 - h.tanh().square())
    largest = before.abs().transpose(0, 1).flatten(1).amax(1)
    threshold = 0.9
    assert torch.equal(frozen_units(layer, signals, threshold), largest <= threshold * largest.mean())


@pytest.mark.parametrize("name", CASES)
def test_mrp_is_what_removing_each_unit_does_to_the_whole_loss(name: str) -> None:
    """Of one sample at a time: the outputs of the others stay as they are."""
    model, inputs, targets, loss = case(name)
    layer, signals = first(Anatomy(model, inputs)), Signals(model, inputs, targets, loss)
    left = constants(layer, signals)
    before, wanted = model(inputs), []

    def mixed(old: Any, new: Any, sample: int) -> Any:
        if isinstance(old, dict):
            return {key: mixed(old[key], new[key], sample) for key in old}
        if isinstance(old, tuple):
            return tuple(mixed(one, other, sample) for one, other in zip(old, new, strict=True))
        return torch.cat([old[:sample], new[sample : sample + 1], old[sample + 1 :]])

    with torch.no_grad():
        for unit in range(layer.units):
            others = tuple(each for each in range(layer.units) if each != unit)
            with trial_surgery(leave(Plan(layer, "all but one", others), signals, left)):
                after = model(inputs)
            old = whole(before, targets, loss)
            new = torch.stack([whole(mixed(before, after, k), targets, loss) for k in range(BATCH)])
            wanted.append((new - old).abs().mean() * BATCH)
    tolerance = 2e-3 if name == "weighted" else 1e-6  # its loss is of single precision
    found = unit_scores(layer, signals, "mrp")
    torch.testing.assert_close(found, torch.stack(wanted), rtol=tolerance, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(found, unit_scores(layer, signals, "mrs"), rtol=0.5, atol=0.02)


@pytest.mark.parametrize("name", CASES)
def test_weight_scores_are_the_derivatives_of_the_user_s_loss(name: str) -> None:
    model, inputs, targets, loss = case(name)
    weight = next(iter(dict(model.named_parameters())))
    value = dict(model.named_parameters())[weight].detach()

    def by(at: Tensor) -> Tensor:
        return whole(functional_call(model, {weight: at}, (inputs,)), targets, loss)

    slope = torch.autograd.functional.jacobian(by, value)
    turned = torch.autograd.functional.hvp(by, value, value)[1]
    scores = {
        score: weight_scores(model, [weight], score, inputs, targets, loss=loss)[weight]
        for score in ("taylor1", "hessian", "loss_change")
    }
    torch.testing.assert_close(scores["taylor1"], -value * slope, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(scores["hessian"], value * turned, rtol=1e-5, atol=1e-6)
    without = value.clone()
    without.view(-1)[1] = 0
    wanted = float((by(without) - by(value)).detach())
    assert float(scores["loss_change"].flatten()[1]) == pytest.approx(wanted, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_the_prediction_is_the_loss_along_the_line(name: str) -> None:
    model, inputs, targets, loss = case(name)
    layer = first(Anatomy(model, inputs))
    plan = MinWeight(0.6).propose(layer)
    line = _line(plan)

    def at(step: float) -> float:
        with torch.no_grad(), _moved(plan, line, step):
            return float(whole(model(inputs), targets, loss))

    found = predicted_loss_change(plan, inputs, targets, loss)
    step = 1e-2 if name == "weighted" else 1e-3
    rounding = 1e-3 if name == "weighted" else 1e-5
    assert found.slope == pytest.approx((at(step) - at(-step)) / (2 * step), rel=2e-3, abs=rounding)
    if name not in ("huber", "weighted"):  # the output is linear in what reads the layer, and these losses are smooth
        assert found.curvature == pytest.approx((at(step) - 2 * at(0) + at(-step)) / step**2, rel=2e-3, abs=1e-4)


def test_the_prediction_of_cross_entropy_is_what_it_was() -> None:
    """In the form ``E[(p − y) · z']`` and ``E[z'ᵀ (diag p − p pᵀ) z']``."""
    model, inputs, targets, _ = case("classes")
    plan = MinWeight(0.6).propose(Anatomy(model, inputs)["0"])
    line, outputs = _line(plan), []
    for step in (1e-3, -1e-3):
        with torch.no_grad(), _moved(plan, line, step):
            outputs.append(model(inputs))
    speed, odds = (outputs[0] - outputs[1]) / 2e-3, ((outputs[0] + outputs[1]) / 2).softmax(1)
    slope = ((odds - F.one_hot(targets, 3)) * speed).sum(1).mean()
    curvature = ((odds * speed.square()).sum(1) - (odds * speed).sum(1).square()).mean()
    found = predicted_loss_change(plan, inputs, targets)
    assert found.slope == pytest.approx(float(slope), rel=1e-12)
    assert found.curvature == pytest.approx(float(curvature), rel=1e-12)


@pytest.mark.parametrize("size", [3, 4])
def test_what_the_prediction_says_of_positions_happens(size: int) -> None:
    model = positions()
    inputs, targets = torch.randn(12, 2, size, size).double(), torch.randint(0, 3, (12, size, size))
    plan = MinWeight(0.8).propose(Anatomy(model, inputs)["0"])
    before = float(F.cross_entropy(model(inputs), targets).detach())
    with torch.no_grad(), trial_surgery(plan):
        measured = float(F.cross_entropy(model(inputs), targets)) - before
    assert predicted_loss_change(plan, inputs, targets).change == pytest.approx(measured, rel=0.2, abs=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_operations_by_the_loss_take_it_from_the_signals(name: str) -> None:
    for operation in (RemoveDead(0.5), MeanReplace(0.7, score="mrp"), PruneWeights(0.3, score="taylor2_abs")):
        model, inputs, targets, loss = case(name)
        layer = first(Anatomy(model, inputs))
        plan = operate(layer, operation, (), Signals(model, inputs, targets, loss))
        assert plan.units_after >= 2


def test_the_signs_of_a_sum_are_those_of_each_sample() -> None:
    """One loss a sample and their mean are the same loss."""
    model, inputs, targets, _ = case("mse")
    layer = Anatomy(model, inputs)["0"]
    one, each = (
        Signals(model, inputs, targets, functools.partial(F.mse_loss, reduction=form)) for form in ("mean", "none")
    )
    for score in ("mrs", "mrp", "taylor"):
        torch.testing.assert_close(unit_scores(layer, one, score), unit_scores(layer, each, score))


def test_samples_that_are_not_first_need_a_loss_for_each() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.out(m.first(x).tanh()).transpose(0, 1), first=nn.Linear(4, 6), out=nn.Linear(6, 3)
    ).double()
    inputs, targets = torch.randn(8, 5, 4).double(), torch.randn(8, 5, 3)
    layer = Anatomy(model, inputs)["first"]

    def each(output: Tensor, targets: Tensor) -> Tensor:
        return (output.transpose(0, 1) - targets).square()

    found = unit_scores(layer, Signals(model, inputs, targets, each), "mrp")
    torch.testing.assert_close(
        found, unit_scores(layer, Signals(model, inputs, targets, each), "mrs"), rtol=0.5, atol=0.1
    )
    for score in ("mrp", "mrs"):
        signals = Signals(model, inputs, targets, lambda output, targets: each(output, targets).mean())
        with pytest.raises(SurgeryError, match=r"let (the loss|it) return one"):
            unit_scores(layer, signals, score)


def test_sample_losses_of_positions_that_do_not_count() -> None:
    model, inputs, targets, _ = case("ignored_by_default")
    output = model(inputs)
    found = sample_losses(output, targets)
    torch.testing.assert_close(found.mean(), F.cross_entropy(output, targets))
    torch.testing.assert_close(
        found[0] / BATCH, F.cross_entropy(output, targets, reduction="none")[0].sum() / (targets >= 0).sum()
    )


def test_an_output_in_an_object_is_not_taken_for_one_that_stands_still() -> None:
    class Returned:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    torch.manual_seed(0)
    model = Net(lambda m, x: Returned(m.out(m.first(x).tanh())), first=nn.Linear(4, 6), out=nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(8, 4).double(), torch.arange(8) % 3

    def loss(output: Returned, targets: Tensor) -> Tensor:
        return F.cross_entropy(output.logits, targets)

    layer, signals = Anatomy(model, inputs)["first"], Signals(model, inputs, targets, loss)
    assert unit_scores(layer, signals, "mrs").any()
    for attempt in (
        lambda: predicted_loss_change(MinWeight(0.5).propose(layer), inputs, targets, loss),
        lambda: unit_scores(layer, signals, "mrp"),
    ):
        with pytest.raises(SurgeryError, match="returns tensors inside of an object"):
            attempt()


def test_complex_outputs_move_too() -> None:
    model, inputs, _, _ = case("classes")
    plan = MinWeight(0.6).propose(Anatomy(model, inputs)["0"])
    plain = predicted_loss_change(plan, inputs, None, lambda output, _: output.square().sum(1))
    model.register_forward_hook(lambda m, args, output: torch.complex(output[:, :2], output[:, 1:]))

    def loss(output: Tensor, _: Any) -> Tensor:
        return output.real[:, 0].square() + output.imag.square().sum(1)

    found = predicted_loss_change(plan, inputs, None, loss)
    assert found.slope == pytest.approx(plain.slope) and found.curvature == pytest.approx(plain.curvature)


def test_classes_that_come_last_are_named() -> None:
    model, inputs = dense(3), torch.randn(6, 5, 4).double()
    targets = torch.randint(0, 3, (6, 5))
    layer = Anatomy(model, inputs)["0"]
    with pytest.raises(SurgeryError, match="has its classes last"):
        unit_scores(layer, Signals(model, inputs, targets), "mrs")
    signals = Signals(model, inputs, targets, lambda o, t: F.cross_entropy(o.movedim(-1, 1), t))
    torch.testing.assert_close(
        unit_scores(layer, signals, "mrp"), unit_scores(layer, signals, "mrs"), rtol=0.5, atol=0.02
    )


def test_a_weight_of_which_nothing_is_known_is_not_pruned_as_a_whole() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.out((h := m.stem(x).relu()) + m.last(m.first(h).relu())), stem=nn.Linear(4, 6),
        first=nn.Linear(6, 9), last=nn.Linear(9, 6), out=nn.Linear(6, 3),
    ).double()  # fmt: skip
    nn.init.zeros_(model.last.weight)  # a branch that begins at zero
    inputs, targets = torch.randn(20, 4).double(), torch.arange(20) % 3
    anatomy, signals = Anatomy(model, inputs), Signals(model, inputs, targets)
    with pytest.raises(SurgeryError, match=r"the loss says nothing of first\.weight"):
        operate(anatomy["*"], PruneWeights(0.8, score="taylor1_abs"), (), signals)
    assert not anatomy.masks()
    operate(anatomy["*"], PruneWeights(0.8), (), signals)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant, self.first, self.second, self.out = reentrant, nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        def part(h: Tensor) -> Tensor:
            return self.second(self.first(h).tanh()).tanh()

        if self.reentrant is None:
            return self.out(part(x))
        return self.out(torch.utils.checkpoint.checkpoint(part, x, use_reentrant=self.reentrant))


def test_checkpoints_do_not_change_what_the_loss_says() -> None:
    """Reentrant ones would hide their weights from autograd, others run again with whatever weights there are then."""
    found = []
    for reentrant in (None, True, False):
        torch.manual_seed(0)
        model, inputs, targets = Checkpointed(reentrant).double(), torch.randn(9, 4).double(), torch.arange(9) % 3
        anatomy, signals = Anatomy(model, inputs), Signals(model, inputs, targets)
        scores = [unit_scores(anatomy[layer], signals, s) for layer in ("first", "second") for s in ("mrs", "mrp")]
        scores += [frozen_units(anatomy["first"], signals, 0.7).double()]
        for score in ("taylor1", "hessian", "loss_change"):
            scores += weight_scores(model, ["first.weight", "out.weight"], score, inputs, targets).values()
        assert all(each.any() for each in scores)
        found.append(scores)
        model(inputs.requires_grad_()).sum().backward()  # checkpoints are as they were
        assert model.first.weight.grad is not None
    for others in found[1:]:
        torch.testing.assert_close(others, found[0])


@pytest.mark.parametrize(("targets", "outputs", "says"), [
    (torch.zeros(10), 3, r"targets are float32 \[10\], but classes are whole numbers"),
    (torch.randn(10, 3), 3, r"neither class numbers nor probabilities"),
    (torch.arange(10) % 2, 1, r"a single logit .*binary_cross_entropy_with_logits"),
    (torch.arange(10) % 3 + 253, 3, r"the class 255, but the network has 3 logits.*ignore_index=255"),
    (torch.arange(10) % 3 - 1, 3, r"the class -1, but"),
    (torch.arange(9) % 3, 3, r"int64 \[9\], but the network's output, logits float64 \[10, 3\], needs classes of"),
    (torch.zeros(10, 3).long(), 3, r"needs classes of shape \[10\]"),
    (torch.zeros(10).long().to("meta"), 3, r"the targets are on meta, the network's output is on cpu"),
    (torch.full((10,), -100), 3, r"every target is -100"),
    ([0, 1, 2], 3, r"a tensor of class numbers, not list"),
])  # fmt: skip
def test_odd_targets_are_named(targets: Any, outputs: int, says: str) -> None:
    model, inputs = dense(outputs), torch.randn(10, 4).double()
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs, targets)
    for attempt in (
        lambda: unit_scores(layer, signals, "mrs"), lambda: unit_scores(layer, signals, "mrp"),
        lambda: operate(layer, RemoveDead(), (), signals), lambda: signals.loss,
        lambda: operate(layer, PruneWeights(0.3, score="taylor1"), (), signals),
        lambda: operate(layer, PruneWeights(0.3, score="loss_change"), (), signals),
        lambda: predicted_loss_change(MinWeight(0.5).propose(layer), inputs, targets),
    ):  # fmt: skip
        with pytest.raises(SurgeryError, match=says):
            attempt()

"""Unit scores against what they stand for: units removed one by one, and finite differences of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree

from network_surgery.ops import Anatomy, Plan, Signals, SurgeryError, trial_surgery
from network_surgery.ops.anatomy import call, evaluating
from network_surgery.ops.anatomy.rebuild import to_double
from network_surgery.ops.signals.losses import sample_losses
from network_surgery.ops.signals.replacement import REPLACEMENTS, constants
from network_surgery.ops.signals.unit_scores import SCORES, _Removed, first_order, mean_replacement_penalty, unit_scores
from network_surgery.ops.surgery.repair import leave
from tests.ops.networks import Net, build


def shown(network: str):
    """A network of the tests in double precision, with twelve samples and their classes."""
    model, inputs = build(network, batch=12)
    return model.double(), _pytree.tree_map(to_double, inputs), torch.arange(12) % 3


def penalties(model, layer, signals, left):
    """MRP by its definition: every unit is removed for real, one after the other."""
    found = []
    with evaluating(model), torch.no_grad():
        before = sample_losses(call(model, signals.inputs), signals.targets)
        for unit in range(layer.units):
            others = tuple(each for each in range(layer.units) if each != unit)
            with trial_surgery(leave(Plan(layer, "all but one", others), signals, left)):
                after = sample_losses(call(model, signals.inputs), signals.targets)
            found.append((after - before).abs().mean())
    return torch.stack(found)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("network", ["cnn", "residual", "dense_concat", "separable", "tied", "scaled", "tuple_in"])
def test_mrp_is_what_removing_each_unit_does(network, replacement):
    model, inputs, targets = shown(network)
    anatomy, signals = Anatomy(model, inputs), Signals(model, inputs, targets)
    compared = 0
    for layer in anatomy.values():
        try:
            left = constants(layer, signals, replacement)
        except SurgeryError as refused:  # a mean before the activation needs a bias there, and known inputs
            assert replacement == "mean_before" and ("mean before" in str(refused) or "patches" in str(refused)), (
                refused
            )
            continue
        found = mean_replacement_penalty(layer, signals, left)
        torch.testing.assert_close(found, penalties(model, layer, signals, left), rtol=1e-9, atol=1e-12)
        compared += 1
    assert compared or replacement == "mean_before"


def test_mrp_of_a_network_that_cannot_be_run_for_many_units_at_once():
    """A value that goes through Python has no batching rule."""
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.out((h := m.middle(m.hidden(x).relu()).relu()) * (1 + float(h.mean()))),
        hidden=nn.Linear(5, 7), middle=nn.Linear(7, 7), out=nn.Linear(7, 3),
    ).double()  # fmt: skip
    inputs, targets = torch.randn(20, 5).double(), torch.arange(20) % 3
    layer, signals = Anatomy(model, inputs[:2])["hidden"], Signals(model, inputs, targets)
    left = constants(layer, signals)
    torch.testing.assert_close(
        mean_replacement_penalty(layer, signals, left), penalties(model, layer, signals, left), rtol=1e-9, atol=1e-12
    )


def slopes(model, layer, signals, left, step=1e-5):
    """How each sample's loss changes along the line to a network without one unit: ``[samples, units]``."""
    found, removed = [], _Removed(layer, left)
    for unit in range(layer.units):
        changed = removed.tensors(torch.tensor(unit))

        def losses(far, changed=changed):
            here = {name: (old := layer.anatomy.tensor(name)) + far * (new - old) for name, new in changed.items()}
            given = signals.inputs if isinstance(signals.inputs, tuple) else (signals.inputs,)
            return sample_losses(functional_call(model, here, given), signals.targets)

        with evaluating(model), torch.no_grad():
            found.append((losses(step) - losses(-step)) / (2 * step))
    return torch.stack(found, dim=1)


# Not "residual" and "tied": a constant in a bias also counts at padded borders, or misses a module without a bias.
@pytest.mark.parametrize("left_behind", [True, False])
@pytest.mark.parametrize("network", ["mlp_bn", "cnn", "dense_concat", "layernorm", "scaled", "separable", "tuple_in"])
def test_first_order_is_the_slope_of_the_loss(network, left_behind):
    model, inputs, targets = shown(network)
    signals = Signals(model, inputs, targets)
    for layer in Anatomy(model, inputs).values():
        left = constants(layer, signals) if left_behind else {}
        found, wanted = first_order(layer, signals, left), slopes(model, layer, signals, left)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)
        score = unit_scores(layer, signals, "mrs" if left_behind else "taylor")
        torch.testing.assert_close(score, wanted.abs().mean(dim=0), rtol=1e-5, atol=1e-9)


def tokens(batch_first: bool) -> nn.Module:
    """A dense layer on five tokens of each sample, kept apart until the mean over them."""
    torch.manual_seed(0)
    dim = 1 if batch_first else 0
    return Net(
        lambda m, x: m.out(m.second(m.first(x if batch_first else x.transpose(0, 1)).tanh()).tanh().mean(dim)),
        first=nn.Linear(4, 6), second=nn.Linear(6, 5), out=nn.Linear(5, 3),
    ).double()  # fmt: skip


def test_tokens_count_for_their_sample():
    model, inputs, targets = tokens(True), torch.randn(12, 5, 4).double(), torch.arange(12) % 3
    layer, signals = Anatomy(model, inputs[:2])["first"], Signals(model, inputs, targets)
    left = constants(layer, signals)
    torch.testing.assert_close(
        first_order(layer, signals, left), slopes(model, layer, signals, left), rtol=1e-5, atol=1e-9
    )


def test_tokens_that_are_not_ordered_by_samples_are_refused_and_not_mixed_up():
    model, inputs = tokens(False), torch.randn(12, 5, 4).double()
    layer, signals = Anatomy(model, inputs[:2])["first"], Signals(model, inputs, torch.arange(12) % 3)
    with pytest.raises(SurgeryError, match=r"layer first: what second.weight meets is not ordered by samples"):
        unit_scores(layer, signals, "mrs")


@pytest.mark.parametrize("ordered", [True, False])
def test_a_network_that_wants_its_whole_batch_is_looked_at_with_all_of_it(ordered):
    """Which rows are a sample's is otherwise seen on two samples."""
    inner, inputs, targets = tokens(ordered), torch.randn(12, 5, 4).double(), torch.arange(12) % 3
    model = Net(lambda m, x: m.inner(x.view(12, 5, 4)), inner=inner)
    layer, signals = Anatomy(model, inputs)["inner.first"], Signals(model, inputs, targets)
    if ordered:
        again = Anatomy(inner, inputs[:2])["first"]
        wanted = unit_scores(again, Signals(inner, inputs, targets), "mrs")
        torch.testing.assert_close(unit_scores(layer, signals, "mrs"), wanted)
    else:
        with pytest.raises(SurgeryError, match="not ordered by samples"):
            unit_scores(layer, signals, "mrs")


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_mrs_through_time(kind):
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.out(m.after(m.recurrent(m.before(x))[0][:, -1]).relu()),
        before=nn.Linear(4, 5), recurrent=kind(5, 6, batch_first=True), after=nn.Linear(6, 7), out=nn.Linear(7, 3),
    ).double()  # fmt: skip
    inputs, targets = torch.randn(9, 4, 4).double(), torch.arange(9) % 3
    anatomy, signals = Anatomy(model, inputs[:2]), Signals(model, inputs, targets)
    layer = anatomy["after"]
    left = constants(layer, signals)
    torch.testing.assert_close(
        first_order(layer, signals, left), slopes(model, layer, signals, left), rtol=1e-5, atol=1e-9
    )


def hooked(model, layer, inputs, targets):
    """Evci's equation 3.3 from the outputs of the makers' modules: first orders ``[samples, units, positions]``."""
    made = {place: [] for place in layer.makers}
    hooks = [
        layer.anatomy.owner(place.tensor).register_forward_hook(lambda m, args, out, of=of: of.append(out))
        for place, of in made.items()
    ]
    with evaluating(model):
        losses = sample_losses(call(model, inputs), targets)
    for hook in hooks:
        hook.remove()
    total = []
    for place, outs in made.items():
        slopes = torch.autograd.grad(losses.sum(), outs, retain_graph=True)
        channel = 1 if outs[0].dim() in (2, 4) else -1
        flat = [(x := out.detach().movedim(channel, 1)).reshape(*x.shape[:2], -1) for out in outs]
        mean = torch.cat([out.movedim(1, 2).flatten(0, 1) for out in flat]).mean(dim=0).view(1, -1, 1)
        for out, slope in zip(flat, slopes, strict=True):
            moved = (mean - out) * slope.movedim(channel, 1).reshape(out.shape)
            total.append(moved[:, place.positions].flatten(2))  # a unit may be several rows, such as those of a gate
    return total


@pytest.mark.parametrize(
    "network",
    [
        "mlp",
        "mlp_bn",
        "cnn",
        "glu",
        "grouped",
        "group_norm",
        "residual",
        "dense_concat",
        "layernorm",
        "scaled",
        "separable",
        "tuple_in",
    ],
)
def test_mrs_before_is_equation_3_3_at_what_makers_make(network):
    """Also with several makers (a residual stream), a norm after them, kernels, groups and modules without a bias."""
    model, inputs, targets = shown(network)
    signals = Signals(model, inputs, targets)
    for layer in Anatomy(model, inputs).values():
        total = hooked(model, layer, inputs, targets)
        summed = sum(each.sum(dim=2) for each in total).abs().mean(dim=0)
        apart = sum(each.abs().sum(dim=2) for each in total).mean(dim=0)
        torch.testing.assert_close(unit_scores(layer, signals, "mrs_before"), summed, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(unit_scores(layer, signals, "mrs_before_positions"), apart, rtol=1e-9, atol=1e-12)


def test_mrs_before_is_the_slope_towards_the_mean_before_the_activation():
    """Without pooling, in a chain: of the loss as the unit's output is moved, a little, towards its mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5), nn.Sigmoid(), nn.Linear(5, 3)).double()
    inputs, targets = torch.randn(40, 6).double(), torch.arange(40) % 3
    signals = Signals(model, inputs, targets)
    for name, layer in Anatomy(model, inputs[:2]).items():
        first, last = model[: int(name) + 1], model[int(name) + 1 :]
        made, step = first(inputs).detach(), 1e-5
        for unit, score in enumerate(unit_scores(layer, signals, "mrs_before")):
            towards = torch.zeros_like(made)
            towards[:, unit] = made[:, unit].mean() - made[:, unit]
            up, down = (sample_losses(last(made + far * towards), targets) for far in (step, -step))
            torch.testing.assert_close(score, ((up - down) / (2 * step)).abs().mean(), rtol=1e-6, atol=1e-10)


def test_mrs_before_knows_shared_weights_tokens_and_time():
    torch.manual_seed(0)
    inner = nn.Linear(4, 6)
    model = Net(
        lambda m, x: m.out(m.second((m.inner(x) * m.inner(x.flip(1)).tanh()).tanh()).tanh().mean(1)),
        inner=inner, second=nn.Linear(6, 5), out=nn.Linear(5, 3),
    ).double()  # fmt: skip
    inputs, targets = torch.randn(12, 5, 4).double(), torch.arange(12) % 3
    signals = Signals(model, inputs, targets)
    for layer in Anatomy(model, inputs[:2]).values():
        wanted = sum(each.sum(dim=2) for each in hooked(model, layer, inputs, targets)).abs().mean(dim=0)
        torch.testing.assert_close(unit_scores(layer, signals, "mrs_before"), wanted, rtol=1e-9, atol=1e-12)


def test_evcis_form_ranks_nearly_as_ours_but_not_the_same():
    """The thesis's small network, trained for a moment: rank correlations of a layer's units."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip
    inputs = torch.randn(256, 1, 14, 14)
    targets = (inputs[:, 0, :7].sum(dim=(1, 2)) > 0).long() * 2 + (inputs[:, 0, :, :7].sum(dim=(1, 2)) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    signals = Signals(model, inputs, targets)
    for layer in Anatomy(model, inputs[:2]).values():
        ours, evci, apart = (
            unit_scores(layer, signals, score).argsort().argsort().double()
            for score in ("mrs", "mrs_before", "mrs_before_positions")
        )
        for other in (evci, apart):
            rho = float(torch.corrcoef(torch.stack([ours, other]))[0, 1])
            assert 0.5 < rho <= 1, (layer.name, rho)


def test_nothing_is_left_of_a_look():
    """Frozen parameters stay frozen; gradients, modes and weights are as before."""
    model, inputs, targets = shown("frozen")
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    model.train()
    signals = Signals(model, inputs, targets)
    for layer in Anatomy(model, inputs).values():
        for score in ("mrs", "mrs_before", "mrp"):
            assert unit_scores(layer, signals, score).max() > 0
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is before[name][0] and parameter.grad is None
        assert torch.equal(parameter, before[name][1])
    assert model.training and any(not grad for grad, _ in before.values())


def test_norms_are_of_the_weights_on_either_side():
    model, inputs, _ = shown("mlp")
    layer = Anatomy(model, inputs)["0"]
    for number in (1, 2):
        torch.testing.assert_close(unit_scores(layer, None, f"l{number}_in"), model[0].weight.norm(p=number, dim=1))
        torch.testing.assert_close(unit_scores(layer, None, f"l{number}"), model[2].weight.norm(p=number, dim=0))


@pytest.mark.parametrize(
    ("score", "needs"),
    [("mrs", "targets"), ("mrs_before", "targets"), ("mrp", "targets"), ("luck", "there is no unit")],
)
def test_refuses_what_it_cannot_score(score, needs):
    model, inputs, _ = shown("mlp")
    with pytest.raises(SurgeryError, match=needs):
        unit_scores(Anatomy(model, inputs)["0"], Signals(model, inputs), score)
    if score in SCORES:
        with pytest.raises(SurgeryError, match=f"the unit score '{score}' looks at outputs"):
            unit_scores(Anatomy(model, inputs)["0"], None, score)


def saturated() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[0].weight.data[0] *= 40
    model[0].bias.data[0] = 30
    return model, torch.randn(101, 3).double()


def test_replacements_are_what_they_are_called():
    model, inputs = saturated()
    layer, signals = Anatomy(model, inputs[:2])["0"], Signals(model, inputs)
    made = model[0](inputs).detach()
    wanted = {
        "mean": made.tanh().mean(dim=0),
        "mean_before": made.mean(dim=0).tanh(),
        "median": made.median(dim=0).values.tanh(),  # the same on both sides of what never falls
    }
    for replacement, constant in wanted.items():
        torch.testing.assert_close(constants(layer, signals, replacement)["2.weight"], constant)
    extreme = constants(layer, signals, "extreme")["2.weight"]
    ends = torch.stack([made.tanh().min(dim=0).values, made.tanh().max(dim=0).values])
    nearer = (made.tanh() - ends.unsqueeze(1)).square().mean(dim=1).argmin(dim=0)
    torch.testing.assert_close(extreme, ends.gather(0, nearer.unsqueeze(0)).squeeze(0))
    assert extreme[0] > 0.9999


def test_a_mean_before_the_activation_goes_through_norms_and_pooling():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 3)
    ).double()
    model(torch.randn(64, 2, 8, 8).double() + 1)  # running statistics
    model.eval()
    inputs = torch.randn(30, 2, 8, 8).double()
    layer = Anatomy(model, inputs[:2])["0"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = constants(layer, Signals(model, inputs), "mean_before")["5.weight"]
    wanted = model[1](model[0](inputs)).mean(dim=(0, 2, 3)).tanh()
    torch.testing.assert_close(found, wanted.detach())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

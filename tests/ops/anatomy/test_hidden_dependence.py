"""What one trace cannot see, the rehearsal or a second look must: each of these was once offered as exact."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, MinWeight, Plan, SurgeryError, WeakExpand, apply, measure, operate
from network_surgery.ops.anatomy import evaluating
from tests.ops.networks import Net, outputs, train


def between(function, **parts):
    """``function(m, h)`` between two dense layers."""
    return Net(lambda m, x: function(m, m.hidden(x).relu()), hidden=nn.Linear(5, 8), out=nn.Linear(8, 3), **parts)


@torch.library.custom_op("network_surgery_tests::clone", mutates_args=())
def impostor(x: Tensor) -> Tensor:
    """An operator that is only named like one of torch's."""
    return x / (1 + x.amax(1, keepdim=True))


INEXACT = {
    "masked_logits": lambda m, h: m.out(h / h.shape[1]).masked_fill(torch.tensor([True, False, False]), -1e9),
    "infinite_logits": lambda m, h: m.out(h / h.shape[1]).masked_fill(torch.tensor([True, False, False]), -torch.inf),
    "self_product": lambda m, h: (h @ h.mT).softmax(-1) @ m.out(h),
    "numpy": lambda m, h: m.out(h) * float(h.detach().numpy().max()),
    "lists": lambda m, h: m.out(h) * max(map(max, h.tolist())),
    "complex": lambda m, h: torch.view_as_complex(torch.stack([m.out(h), m.out(h)], -1)) + (h @ h.T).sum(),
    "squeezed_in_place": lambda m, h: (
        (m.out(h[:, None])[:, 0], h.unsqueeze_(1).squeeze_(1))[0] * h.amax(1, keepdim=True)
    ),
    "impostor": lambda m, h: m.out(impostor(h)),
    "another_path": lambda m, h: m.out(h.flip(1) if h.sum() < m.out.bias.sum() else h),
}


@pytest.mark.parametrize("name", INEXACT)
def test_is_not_offered_as_exact(name):
    torch.manual_seed(0)
    anatomy = Anatomy(between(INEXACT[name]), torch.randn(4, 5))
    assert not any(layer.exact for layer in anatomy.values()), anatomy
    assert "hidden" in anatomy or "hidden" in anatomy.pinned


class TrainingOnly(nn.Module):
    """Looks at the largest unit in training mode."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.hidden(x)
        return self.out(h - h.amax(1, keepdim=True) if self.training else h)


def test_branches_that_only_training_takes_count():
    assert Anatomy(TrainingOnly(), torch.randn(4, 5))["hidden"].reason == "amax over its units"


class OwnMode(TrainingOnly):
    """Its ``train`` keeps the mode under another name, too."""

    def train(self, mode=True):
        self.noisy = "yes" if mode else None
        return super().train(mode)

    def forward(self, x):
        h = self.hidden(x)
        return self.out(h - h.amax(1, keepdim=True) if self.noisy else h)


class Merging(TrainingOnly):
    """Adds a product to its weights for evaluation, and takes it away for training."""

    def __init__(self):
        super().__init__()
        self.low, self.merged = nn.Parameter(torch.randn(8, 1)), False

    def train(self, mode=True):
        if self.merged == mode:
            self.hidden.weight.data += (1 - 2 * mode) * self.low
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return self.out(self.hidden(x) if self.merged else self.hidden(x) + x.sum(1, keepdim=True) * self.low.T)


@pytest.mark.parametrize("mode", [True, False])
def test_a_mode_under_another_name_is_a_mode(mode):
    net = OwnMode().train(mode)
    assert Anatomy(net, torch.randn(4, 5))["hidden"].reason == "amax over its units"
    assert net.training is mode and net.noisy == ("yes" if mode else None)
    with evaluating(net):
        assert net.noisy is None
    with evaluating(net, training=True):
        assert net.noisy == "yes"


@pytest.mark.parametrize("mode", [True, False])
def test_a_mode_that_changes_weights_is_left_as_it_is(mode):
    torch.manual_seed(0)
    net, inputs = Merging().train(mode), torch.randn(4, 5)
    weights, before = net.hidden.weight.clone(), net(inputs)
    anatomy = Anatomy(net, inputs)
    assert torch.equal(net.hidden.weight, weights) and net.merged is not mode
    operate(anatomy["hidden"], WeakExpand(grow=0.5))
    assert torch.allclose(net(inputs), before, atol=1e-5)


def test_attention_over_equal_tokens_hides_the_heads():
    def forward(m, ids):
        h = m.table(ids)
        q, k, v = (p(h).reshape(*h.shape[:2], 2, -1).transpose(1, 2) for p in (m.q, m.k, m.v))
        return m.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(6, 8) for name in "qkv"}
    net = Net(forward, table=nn.Embedding(9, 6), out=nn.Linear(8, 3), **parts)
    assert not any("heads" in name for name in Anatomy(net, torch.zeros(1, 5, dtype=torch.int64)))


class Cached(nn.Module):
    """Counts its calls, keeps a history and caches what it has computed from its weights."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.calls, self.cache, self.history = 0, None, []
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.history.append(self.calls)
        self.cache = self.out.bias.exp() if self.cache is None else self.cache
        self.mean += x.mean()
        return self.out(self.hidden(x).relu()) + self.cache * random.random()


def test_discovery_leaves_nothing_behind():
    net, inputs = Cached(), torch.randn(4, 5)
    random.seed(3)
    state, numbers = random.getstate(), torch.random.get_rng_state()
    Anatomy(net, inputs)
    assert (net.calls, net.cache, net.history, float(net.mean)) == (0, None, [], 0.0)
    assert random.getstate() == state and torch.equal(torch.random.get_rng_state(), numbers)


def test_a_number_that_only_happens_to_be_equal_is_left_alone():
    net = between(lambda m, h: m.out(h.view(-1, h.shape[1])) * (m.steps if m.training else 1))
    net.steps = 8
    operate(Anatomy(net, torch.randn(4, 5))["hidden"], MinWeight(keep=0.5))
    assert net.steps == 8 and net.hidden.out_features == 4


def test_under_autocast_the_network_is_what_it_was():
    net, inputs = between(lambda m, h: m.out(h)), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        before = outputs(net, inputs)[0]
        anatomy = Anatomy(net, inputs)
        assert torch.equal(outputs(net, inputs)[0], before)
        operate(anatomy["hidden"], MinWeight(keep=0.5))
        net(inputs).sum().backward()
    assert net.hidden.weight.grad.shape == (4, 5)


def test_under_inference_mode_the_network_can_still_be_trained():
    net, inputs = between(lambda m, h: m.out(h)), torch.randn(4, 5)
    with torch.inference_mode():
        operate(Anatomy(net, inputs)["hidden"], MinWeight(keep=0.5))
    train(net, inputs, torch.optim.SGD(net.parameters(), 0.1))


def test_a_bad_plan_changes_nothing():
    net, inputs = between(lambda m, h: m.out(h)), torch.randn(4, 5)
    layer = Anatomy(net, inputs)["hidden"]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for fields in (
        {"shares": torch.ones(3)},
        {"mixing": {"out.weight": torch.ones(3, 3)}},
        {"constants": {"out.weight": torch.ones(2)}},
        {"replaced": {"nose.weight": torch.ones(2)}},
        {"newborn": {"out.bias": torch.ones(2)}},
    ):
        with pytest.raises(SurgeryError, match="bad on hidden: "):
            apply(Plan(layer, "bad", (0, 1), **fields))
    assert layer.units == 8 and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_misuse_is_answered_in_one_sentence():
    net, inputs = between(lambda m, h: m.out(h)), torch.randn(4, 5)
    layer = Anatomy(net, inputs)["hidden"]
    plan = MinWeight().propose(layer)
    for action, message in [
        (lambda: Anatomy("net", inputs), "not of a str"),
        (lambda: Anatomy(net, torch.randn(4, 6)), "does not run on the example input"),
        (lambda: Anatomy(nn.Sequential(nn.LazyLinear(3)), inputs), "has no size yet"),
        (lambda: operate(None, MinWeight()), "operate takes a layer"),
        (lambda: operate(layer, MinWeight), "operate takes a layer"),
        (lambda: operate(layer, MinWeight(), (), 3), "signals must be Signals"),
        (lambda: operate(layer, MinWeight(), averages=[3]), "averages must be networks"),
        (lambda: measure(plan, torch.randn(4, 6)), "does not run on this batch"),
    ]:
        with pytest.raises(SurgeryError, match=message) as raised:
            action()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_that_a_deep_network_amplifies_is_not_taken_for_a_dependence(dtype):
    """``sin(3 h)`` again and again moves what is last in each number to the front; a real dependence is still seen."""
    depth = 13 if dtype == torch.float32 else 30

    def forward(m, x):
        for number, layer in enumerate(m.layers):
            x = (3 * layer(x)).sin()
            if number == depth - 2 and m.careless:
                x = x * sum(map(sum, x.tolist()))
        return x

    torch.manual_seed(0)
    net = Net(forward, layers=nn.ModuleList(nn.Linear(12, 12) for _ in range(depth))).to(dtype)
    for layer in net.layers:
        nn.init.orthogonal_(layer.weight)
    example = torch.randn(4, 12, dtype=dtype)
    edges = {True: [f"layers.{depth - 2}"], False: []}
    for net.careless, pinned in edges.items():
        anatomy = Anatomy(net, example)
        assert len(anatomy) == depth - 1 - len(pinned)
        assert set(anatomy.pinned) == {*pinned, f"layers.{depth - 1}"}


class Fussy(nn.Module):
    """Does not run at less than six units, which a norm couples."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.hidden(x)
        if h.shape[1] < 6:
            raise ValueError("too few units")
        return self.out(h - h.mean(1, keepdim=True))


def _masked(m, x):
    large = x[:, 0] > 1
    return m.plain(x).index_put((large,), m.fussy(x[large])) if len(x[large]) else m.plain(x)


ROUTES = {
    "masks": _masked,
    "numbers": lambda m, x: m.plain(x) + m.fussy(x) if float(x[2:].norm()) > 0 else m.plain(x),
    "lists": lambda m, x: m.plain(x) + m.fussy(x) if sum(x[2:].norm()[None].tolist()) > 0 else m.plain(x),
}


@pytest.mark.parametrize("name", ROUTES)
def test_what_only_later_samples_reach_is_tried_as_well(name):
    """Where values decide what runs, whether it runs at another size is not tried on the first two samples."""
    torch.manual_seed(0)
    net = Net(ROUTES[name], fussy=Fussy(), plain=nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    anatomy = Anatomy(net, torch.rand(6, 5) + torch.tensor([0, 0, 0, 0, 1, 1])[:, None])
    assert "too few units" in anatomy.pinned["fussy.hidden"] and anatomy["plain.0"].exact


@pytest.mark.parametrize("layout", ["samples first", "all at once", "tokens first"])
def test_two_samples_do_not_cost_a_layer(layout):
    """Nor where the network takes so many samples only, or where what is as long is none."""
    torch.manual_seed(0)
    functions = {
        "samples first": lambda m, x: m.out(m.norm(m.hidden(x))),
        "all at once": lambda m, x: m.out(m.norm(m.hidden(x).view(4, 1, -1)).flatten(1)),
        "tokens first": lambda m, x: m.out(m.mix @ m.norm(m.hidden(x)).flatten(1)),
    }
    shapes = {"tokens first": (4, 1, 5)}
    net = Net(
        functions[layout], hidden=nn.Linear(5, 8), norm=nn.LayerNorm(8), out=nn.Linear(8, 3),
        mix=nn.Parameter(torch.randn(4, 4)),
    )  # fmt: skip
    anatomy = Anatomy(net, torch.randn(shapes.get(layout, (4, 5))))
    assert "hidden" in anatomy and not anatomy["hidden"].exact

"""Calls in which a module reads the mode are made once more by themselves, not the whole network.

The reference is the same network followed as a whole in training mode, which it is if its outermost module reads the
mode: both must find the same layers.
"""

from __future__ import annotations

from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from network_surgery.ops import Anatomy, RandomRemove, operate
from network_surgery.ops.anatomy.trace import Trace
from tests.ops.grammar import generate, sandwich
from tests.ops.networks import Net, outputs


class Whole(nn.Module):
    """Reads the mode, and so has the network inside followed as a whole."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _ = self.training
        return self.network(*args, **kwargs)


def layers_of(anatomy: Anatomy) -> dict[Any, Any]:
    """By what makes its units: how many there are, how exact it is, and where."""
    found = {}
    for layer in anatomy.values():
        places = sorted(
            (place.tensor.removeprefix("network."), place.axis, place.role, place.fill) for place in layer.places
        )
        found[tuple(places)] = layer.units, layer.reason
    return found


def two(call: Any, **parts: nn.Module) -> Net:
    """Two layers of equal width, which the module ``two`` is given at once."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x).relu(), m.b(x).relu()
        return m.out(m.two(a, b)) + m.last(b)

    made = {name: nn.Linear(5, 8) for name in "ab"} | {name: nn.Linear(8, 3) for name in ("out", "last")}
    return Net(forward, two=Net(call, **parts), **made)


def _kept(m: Any, a: Tensor, b: Tensor) -> Tensor:
    """What training keeps of ``b`` is added to the next call's answer, as the second call of one pass does."""
    if m.training:
        m.kept.append(b)
    return a


def _with_list() -> Net:
    net = two(_kept)
    forward = net.function

    def followed(m: Any, x: Tensor) -> Tensor:
        m.two.kept = m.two.kept if hasattr(m.two, "kept") else []
        out = forward(m, x)
        return out + sum((m.out(each) for each in m.two.kept), out.new_zeros(()))

    net.function, net.two.kept = followed, []
    return net


def _in_a_dict(m: Any, x: Tensor) -> Tensor:
    """A call that answers nothing, but writes to what it is given."""
    a, b = m.a(x).relu(), m.b(x).relu()
    state = {"a": a, "b": b, "hidden": a}
    m.two(state)
    return m.out(state["hidden"]) + m.last(b)


def _in_an_object(m: Any, x: Tensor) -> Tensor:
    state = SimpleNamespace(a=m.a(x).relu(), b=m.b(x).relu())
    m.two(state)
    return m.out(state.hidden) + m.last(state.b)


def _set(m: Any, state: Any) -> None:
    state["hidden"] = state["b"] if m.training else state["a"]


def _set_attribute(m: Any, state: Any) -> None:
    state.hidden = state.b if m.training else state.a


def _scaled(m: Any, a: Tensor, b: Tensor) -> Tensor:
    a.mul_(3.0)
    return a if m.training else a.add_(0)


#: What a module does with two hidden tensors, and whether training makes one layer of the two.
CALLS: dict[str, tuple[Any, bool]] = {
    "the same": (lambda m, a, b: (a, a)[m.training], False),
    "the other one": (lambda m, a, b: b if m.training else a, True),
    "the other one, later": (lambda m, a, b: (a.tanh(), b.tanh())[m.training], True),
    "both, swapped": (lambda m, a, b: ((a, b), (b, a))[m.training][0] * 1.0, True),
    "a sum": (lambda m, a, b: a + b if m.training else a * 1.0, True),
    "dropout": (lambda m, a, b: F.dropout(a, 0.5, m.training), False),
    "in place": (_scaled, False),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_shows_what_the_whole_network_would(name: str) -> None:
    call, one = CALLS[name]
    torch.manual_seed(0)
    net, inputs = two(call), torch.randn(4, 5)
    found = Anatomy(net, inputs)
    assert layers_of(found) == layers_of(Anatomy(Whole(net), inputs))
    assert len(found) == (1 if one else 2)


def test_what_a_call_keeps_for_later_is_noticed() -> None:
    torch.manual_seed(0)
    net, inputs = _with_list(), torch.randn(4, 5)
    found = Anatomy(net, inputs)
    assert layers_of(found) == layers_of(Anatomy(Whole(net), inputs)) and len(found) == 1
    assert net.two.kept == []


@pytest.mark.parametrize(("forward", "call"), [(_in_a_dict, _set), (_in_an_object, _set_attribute)])
def test_what_a_call_writes_to_its_arguments_is_noticed(forward: Any, call: Any) -> None:
    torch.manual_seed(0)
    net, inputs = two(None), torch.randn(4, 5)
    net.function, net.two.function = forward, call
    found = Anatomy(net, inputs)
    assert layers_of(found) == layers_of(Anatomy(Whole(net), inputs)) and len(found) == 1


class Doubling(nn.Module):
    """Doubles one of its units, in training mode only."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(x.size(1)) == self.unit, x * 2, x) if self.training else x


@pytest.mark.parametrize("unit", range(16))
def test_what_a_part_does_to_one_unit_only_is_noticed_whichever_it_is(unit: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), Doubling(unit), nn.Linear(16, 3))
    assert len(Anatomy(net, torch.randn(4, 5))) == 0


@pytest.mark.parametrize("unit", range(16))
def test_a_unit_that_is_silent_on_the_example_is_tried_too(unit: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), Doubling(unit), nn.Linear(16, 3))
    assert len(Anatomy(net, torch.randn(1, 5))) == 0


class Training(nn.Module):
    """Does something in training mode only."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) if self.training else x


#: What treats units alike, and what does not: by their neighbours, their place, all of them or their number.
ALIKE = {
    "doubled": lambda x: x * 2,
    "noisy": lambda x: x + torch.rand_like(x),
    "dropped": lambda x: F.dropout(x, 0.3),
    "rows": lambda x: x * torch.arange(len(x))[:, None],
    "the samples turned": lambda x: x.roll(1, 0),
}
OTHERWISE = {
    "the one before": lambda x: x + x.roll(1, 1),
    "the one after, none after the last": lambda x: x + F.pad(x, (0, 1))[:, 1:],
    "both beside": lambda x: F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "the one half of all away": lambda x: x + x.roll(x.size(1) // 2, 1),
    "pairs": lambda x: torch.stack([x[:, 1::2], x[:, : x.size(1) // 2 * 2 : 2]], 2).flatten(1),
    "the other way round": lambda x: x.flip(1),
    "all": lambda x: x - x.mean(1, keepdim=True),
    "all before": lambda x: x.cumsum(1),
    "the smallest": lambda x: x - x.amin(1, keepdim=True),
    "the middle": lambda x: x - x.median(1, keepdim=True).values,
    "the largest": lambda x: x / x.abs().amax(1, keepdim=True),
    "every other one": lambda x: x * (1 + torch.arange(x.size(1)) % 2),
    "the first half": lambda x: x * (1 + (torch.arange(x.size(1)) < x.size(1) // 2)),
    "their number": lambda x: x / x.size(1),
    "an even number": lambda x: x * (1 + x.size(1) % 2),
    "a place in a table": lambda x: x + torch.linspace(0, 1, x.size(1)),
}


@pytest.mark.parametrize("units", [2, 3, 8, 9])
@pytest.mark.parametrize("act", [*ALIKE, *OTHERWISE])
def test_a_part_is_alike_for_all_units_or_followed_in_training_mode(act: str, units: int) -> None:
    torch.manual_seed(0)
    part = Training((ALIKE | OTHERWISE)[act])
    trace = Trace(nn.Sequential(nn.Linear(5, units), part, nn.Linear(units, 3)).eval(), 4)
    trace.run(torch.randn(4, 5))
    assert (part in trace.watch.settled) is (act in ALIKE)
    assert trace.watch.asks_mode is (act in OTHERWISE)


class Answer(nn.Module):
    """Writes to its own answer, in one mode only."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.hidden, self.out, self.mode = nn.Linear(5, 8), nn.Linear(8, 3), mode

    def forward(self, x: Tensor) -> Tensor:
        out = self.out(self.hidden(x).relu())
        return out.sigmoid_() if self.training is self.mode else out


@pytest.mark.parametrize("mode", [True, False])
def test_a_pass_does_not_write_to_what_another_one_answered(mode: bool) -> None:
    torch.manual_seed(0)
    net, inputs = Answer(mode), torch.randn(4, 5)
    assert Anatomy(net, inputs)["hidden"].exact


@pytest.mark.parametrize("reads", [False, True])
def test_batch_norm_over_units_is_inexact(reads: bool) -> None:
    """Of a norm over tokens the statistics are averages over the units of each, in training mode."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.norm(m.hidden(x)).relu()
        return m.out(h * 2 if reads and m.training else h)

    torch.manual_seed(0)
    net = Net(forward, hidden=nn.Linear(5, 8), norm=nn.BatchNorm1d(4), out=nn.Linear(8, 3))
    layer = Anatomy(net, torch.randn(2, 4, 5))["hidden"]
    assert layer.reason == "BatchNorm averages over its units in training mode"
    operate(layer, RandomRemove(0.5))
    assert outputs(net.train(), torch.randn(2, 4, 5))[0].shape == (2, 4, 3)


def _reads(function: Any, rate: float, m: nn.Module, *args: Any, **kwargs: Any) -> Any:
    out = function(m, *args, **kwargs)
    return F.dropout(out, rate, m.training) if isinstance(out, Tensor) and out.is_floating_point() else out


def _networks() -> Any:
    for seed in range(24):
        yield generate(seed)
    for kind, name in (("flat", "mode_position"), ("sequence", "transformer_block"), ("image", "squeeze_excite")):
        yield sandwich(kind, name)


def test_random_networks_that_read_the_mode_in_their_parts() -> None:
    """Each part reads the mode; at random it drops entries, which makes other operators in training mode."""
    asked = 0
    for number, specimen in enumerate(_networks()):
        chance = Random(number)
        for module in list(specimen.model.modules())[1:]:
            if isinstance(module, Net):
                module.function = partial(_reads, module.function, chance.choice((0.0, 0.0, 0.0, 0.5)))
                asked += 1
        example = specimen.example(0)
        assert layers_of(Anatomy(specimen.model, example)) == layers_of(Anatomy(Whole(specimen.model), example)), number
    assert asked > 20

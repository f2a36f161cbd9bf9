"""What is recalled of a pass is what another pass would compute, whatever is written to in between, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops import Anatomy
from network_surgery.ops.anatomy import passes, stage
from network_surgery.ops.anatomy.recall import Lost, Recall, Recalling
from network_surgery.ops.anatomy.running import flat_tensors
from tests.ops.anatomy.test_training_mode import Whole, layers_of
from tests.ops.grammar import generate, sandwich
from tests.ops.networks import Net

#: A step whose memory no operator makes, so that it is not known again.
OUTSIDE = "numpy's memory"
#: Operators on tensors of 4 × 6 or 6 × 4, some of which change their shape in place.
STEPS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "add": lambda x, y, n: x + y if x.shape == y.shape else x + y.t(),
    "times": lambda x, y, n: x * n,
    "times a tensor": lambda x, y, n: x * torch.tensor(n),
    "relu": lambda x, y, n: x.relu(),
    "view": lambda x, y, n: x.t(),
    "a copy": lambda x, y, n: x.clone(),
    "a piece": lambda x, y, n: torch.cat([x[:2], y[: x.size(0) - 2, :1].expand(-1, x.size(1))]),
    "new": lambda x, y, n: torch.full_like(x, n),
    "zeros": lambda x, y, n: torch.zeros(x.shape),
    "relu_": lambda x, y, n: x.relu_(),
    "add_": lambda x, y, n: x.add_(y if x.shape == y.shape else y.t()),
    "mul_": lambda x, y, n: x.mul_(n),
    "write a row": lambda x, y, n: (x[1].fill_(n), x)[1],
    "write a column": lambda x, y, n: (x.t()[2].copy_(torch.tensor([n] * x.size(0))), x)[1],
    "t_": lambda x, y, n: x.t_(),
    "unsqueeze_": lambda x, y, n: x.unsqueeze_(0).squeeze_(0),
    "pool": lambda x, y, n: F.adaptive_avg_pool2d(x[None, None], (1, 1))[0, 0].expand(x.shape).clone(),
    OUTSIDE: lambda x, y, n: x + torch.from_numpy(numpy.full(x.shape, n, numpy.float32)),
    "by value": lambda x, y, n: x + 1 if float(x.sum()) > n else x * 2,
}
Step = tuple[str, int, int, float]


def random_step(chance: Random) -> Step:
    return chance.choice(list(STEPS)), chance.randrange(99), chance.randrange(99), chance.choice([0.5, -1.0, 2.0])


def run(program: list[Step], inputs: Tensor) -> list[Tensor]:
    """What all the tensors of a program hold at its end."""
    known = [inputs.clone()]
    for name, one, other, number in program:
        known.append(STEPS[name](known[one % len(known)], known[other % len(known)], number))
    return [x * 0.25 + 1 for x in known]


class Counting(TorchDispatchMode):
    """Counts the operators that are really run, but for those that show a tensor otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and torch.Tag.inplace_view not in func.tags
        return func(*args, **(kwargs or {}))


def changed(program: list[Step], chance: Random) -> list[Step]:
    """A program with a few of its steps exchanged, left out or put in."""
    found = list(program)
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(found))
        found[at : at + chance.randrange(2)] = [random_step(chance)] if chance.random() < 0.8 else []
    return found


@pytest.mark.parametrize("part", range(4))
def test_random_programs_are_recalled_as_they_would_be_computed(part: int) -> None:
    right = lost = saved = total = 0
    for seed in range(part, 1200, 4):
        chance = Random(seed)
        program = [random_step(chance) for _ in range(chance.randint(3, 9))]
        other, inputs = changed(program, chance), torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        grad = chance.random() < 0.5
        with torch.no_grad(), Counting() as whole:
            wanted = run(other, inputs)
        recall = Recall(nn.Identity(), inputs)
        with torch.no_grad(), Recalling(recall):
            run(program, inputs)
        assert recall.usable
        recall.again()
        try:
            with torch.set_grad_enabled(grad), Counting() as fewer, Recalling(recall):
                found = run(other, inputs)
        except Lost:
            lost += 1
            continue
        assert all(torch.equal(*each) for each in zip(found, wanted, strict=True)), (seed, program, other)
        right, saved, total = right + 1, saved + whole.count - fewer.count, total + whole.count
    assert right > 150 and saved > total / 3 and lost


def test_the_same_program_is_not_computed_again() -> None:
    for seed in range(100):
        chance = Random(seed)
        steps, inputs = [random_step(chance) for _ in range(9)], torch.randn(4, 6)
        program = [step for step in steps if step[0] != OUTSIDE]
        recall = Recall(nn.Identity(), inputs)
        with torch.no_grad(), Recalling(recall):
            first = run(program, inputs)
        recall.again()
        with torch.no_grad(), Counting() as counted, Recalling(recall):
            second = run(program, inputs)
        assert recall.is_same(second, first)
        assert counted.count == 0


def test_memory_from_elsewhere_is_not_known_by_its_address() -> None:
    x, memory = torch.ones(500), numpy.zeros(500, numpy.float32)
    recall = Recall(nn.Identity(), x)
    for number in (1.0, 2.0):
        memory[:] = number
        with torch.no_grad(), Recalling(recall):
            found = (x * 2 + torch.from_numpy(memory)).relu_()
        assert float(found[0]) == 2 + number
        recall.again()


@torch.library.custom_op("network_surgery_tests::count", mutates_args=())
def count(x: Tensor) -> Tensor:
    """A user's operator, which does otherwise the next time."""
    CALLS.append(1)
    return x + len(CALLS)


CALLS: list[int] = []


def test_what_may_do_otherwise_is_done_again() -> None:
    x = torch.ones(500)
    for function in (lambda: count(x), lambda: torch.rand(500), lambda: torch.randn_like(x)):
        recall, found = Recall(nn.Identity(), x), []
        for _ in range(2):
            with torch.no_grad(), Recalling(recall):
                found.append((function() + x).clone())
            recall.again()
        assert not torch.equal(*found)


@pytest.mark.parametrize("name", ["weight", "buffer", "tensor", "input"])
def test_what_is_written_to_what_was_given_is_taken_back_so_that_nothing_is_known(name: str) -> None:
    net, inputs = nn.Linear(3, 3), torch.ones(3)
    net.register_buffer("buffer", torch.ones(3))
    net.tensor = torch.ones(3)
    recall = Recall(net, inputs)
    with torch.no_grad(), Recalling(recall):
        _ = net.buffer + net.tensor + inputs.view(3, 1).squeeze(1).add(1).relu_()
        assert recall.usable
        (inputs if name == "input" else getattr(net, name))[1:].add_(1)
    assert not recall.usable


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nested.to_padded_tensor(torch.nested.nested_tensor([x, x]) * 2, 0.0),
        lambda x: torch.empty(0).set_(x) + 1,
        lambda x: torch.empty(2).resize_(500).fill_(2) + x,
        lambda x: (x.to_sparse() * 2).to_dense(),
        lambda x: torch.add(x, 1, out=torch.zeros(500)) + 1,
    ],
    ids=["nested", "exchanged memory", "resized memory", "sparse", "written to an argument"],
)
def test_odd_tensors(function: Any) -> None:
    x = torch.ones(500)
    recall = Recall(nn.Identity(), x)
    with torch.no_grad(), Recalling(recall):
        first = function(x)
    recall.again()
    try:
        with torch.no_grad(), Recalling(recall):
            assert torch.equal(function(x), first)
    except Lost:
        pass


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, usable in ((4096, True), (4095, False)):
        monkeypatch.setattr("network_surgery.ops.anatomy.recall.MOST_KEPT", most)
        recall = Recall(nn.Identity(), ())
        with Recalling(recall):
            _ = torch.ones(512).view(2, 256).mul(2).relu_()
        assert recall.usable is usable


# -- whole networks ----------------------------------------------------------------------------------------------------


def _doubled(m: Any, x: Tensor) -> Tensor:
    h = m.hidden(x).relu_()
    return (m.out(h) * 2 if m.training else m.out(h)) + m.last(h)


def _aside(m: Any, x: Tensor) -> Any:
    h = m.hidden(x).relu_()
    return (m.out(h), m.last(h.tanh())) if m.training else m.out(h)


def _overwritten(m: Any, x: Tensor) -> Tensor:
    """Training reads what evaluation has written over."""
    h = m.hidden(x)
    early = h.tanh() if m.training else 0
    return m.out(h.relu_() + early) + m.last(h)


def _by_number(m: Any, x: Tensor) -> Tensor:
    h = m.hidden(x)
    return m.out(h[:, :8] if m.training else h) + m.last(h)


def _by_position(m: Any, x: Tensor) -> Tensor:
    h = m.hidden(x)
    return m.out(h) + (m.last(h.cumsum(1)) if m.training else m.last(h))


def _answering(m: Any, x: Tensor) -> Any:
    """Evaluation writes to what training answers."""
    h = m.hidden(x)
    out = m.out(h) + m.last(h)
    return (out, m.out(h)) if m.training else out.sigmoid_()


def _catching(m: Any, x: Tensor) -> Tensor:
    """Whatever is raised is caught, also what discovery raises to end a pass."""
    early = m.hidden(x)
    try:
        h = early.relu_() if not m.training else early.tanh() + m.hidden(x).relu_()
    except:  # noqa: E722
        return m.out(torch.ones(4, 8))
    return m.out(h) + m.last(h)


def _failing(m: Any, x: Tensor) -> Tensor:
    h = m.hidden(x)
    if m.training:
        raise ValueError("give targets")
    return m.out(h) + m.last(h)


READING = (_doubled, _aside, _overwritten, _by_number, _by_position, _answering, _catching, _failing)


def _networks() -> Any:
    for function in READING:
        yield Net(function, hidden=nn.Linear(5, 8), out=nn.Linear(8, 3), last=nn.Linear(8, 3)), torch.randn(4, 5)
    for seed in range(12):
        specimen = generate(seed)
        yield Whole(specimen.model), specimen.example(0)
    for kind, name in (("flat", "mode_position"), ("sequence", "transformer_block"), ("image", "squeeze_excite")):
        specimen = sandwich(kind, name)
        yield Whole(specimen.model), specimen.example(0)


@pytest.mark.parametrize("function", READING)
def test_passes_answer_what_the_network_does(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("network_surgery.ops.anatomy.trace.EARLY", 1)
    net, example = Net(function, hidden=nn.Linear(5, 8), out=nn.Linear(8, 3), last=nn.Linear(8, 3)), torch.randn(4, 5)
    with torch.no_grad():
        trace, output, _ = passes.follow(net, 4, (example,))
        assert trace.recall is not None and trace.recall.usable
        assert torch.equal(output[0], net.eval()(example))
        learnt = passes.follow_training(trace, example, output)
        assert (learnt is None) is (function is _failing)
        if learnt is not None:
            assert all(map(torch.equal, learnt, flat_tensors(net.train()(example))))


def test_discovery_finds_what_it_finds_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("network_surgery.ops.anatomy.trace.EARLY", 1)
    both = []
    for number, (net, example) in enumerate(_networks()):
        found = []
        for recalling in (True, False):
            with monkeypatch.context() as patch:
                if not recalling:
                    for module in (passes, stage):
                        patch.setattr(module, "Recall", _Useless)
                layers = Anatomy(net, example)
                found.append((layers_of(layers), layers.pinned, layers.chains, layers.calls))
        assert found[0] == found[1], number
        both += found[:1]
    assert [len(layers) for layers, *_ in both[: len(READING)]] == [1, 1, 1, 0, 0, 1, 1, 1]


class _Useless(Recall):
    """Keeps nothing."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.usable = False

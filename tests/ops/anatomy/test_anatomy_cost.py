"""What discovery runs and what it leaves alone: passes are counted, since seconds depend on the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops import Anatomy, MinWeight, operate
from network_surgery.ops.anatomy import rebuild
from network_surgery.ops.network.expressed import tensors_of
from tests.ops.networks import Net, build
from tests.ops.properties import examine, lively


class Counted(nn.Module):
    """Counts how often the network inside is called, where discovery does not take it back."""

    def __init__(self, network: nn.Module, calls: list[Tensor]) -> None:
        super().__init__()
        self.network = network
        self.count = calls.append

    def forward(self, x: Tensor) -> Tensor:
        self.count(x)
        return self.network(x)


class Halves(nn.Module):
    """A gate between two halves, whose width the module knows as a number (``width``) or reads off its input."""

    def __init__(self, width: int, known: bool) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(5, 2 * width), nn.Linear(width, 3)
        self.width = width if known else None

    def forward(self, x: Tensor) -> Tensor:
        both = self.make(x)
        one, other = both.chunk(2, 1) if self.width is None else both.view(-1, 2, self.width).unbind(1)
        return self.read(one * other.tanh())


@pytest.mark.parametrize(
    ("network", "passes"),
    [
        (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), 2),  # the trace, and a rehearsal
        (Halves(6, known=False), 3),  # cut into pieces, so that a smaller one is tried as well
        (Halves(6, known=True), 4),  # the smaller one fails, and then its number is set in both rehearsals
    ],
    ids=["plain", "in pieces", "with a number"],
)
def test_discovery_runs_the_network_no_more_than_it_must(network: nn.Module, passes: int) -> None:
    calls: list[Tensor] = []
    anatomy = Anatomy(Counted(network, calls), torch.randn(2, 5))
    assert len(anatomy) == 1
    assert len(calls) == passes


class Gate(nn.Module):
    """Cut into pieces, with a part that reads the mode and has a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(5, 12), nn.Linear(6, 3)
        self.drop = Net(lambda m, x: F.dropout(m.act(x), 0.0, m.training), act=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.make(x).chunk(2, 1)
        return self.read(self.drop(one) * other.tanh())


def test_two_samples_stand_for_all_where_a_part_was_tried_by_itself() -> None:
    calls: list[Tensor] = []
    assert len(Anatomy(Counted(Gate(), calls), torch.randn(4, 5))) == 1
    assert [len(x) for x in calls] == [4, 2, 4]  # the trace, a smaller size, another order


class Deep(nn.Module):
    """Many norms one after the other, whose statistics of two samples amplify rounding; training adds a second head."""

    def __init__(self) -> None:
        super().__init__()
        norms = [each for _ in range(80) for each in (nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())]
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), *norms)
        self.head, self.second = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).mean((2, 3))
        return self.head(h) + self.second(h) if self.training else self.head(h)


def test_statistics_of_few_samples_are_not_what_training_is_tried_with() -> None:
    torch.manual_seed(0)
    calls: list[Tensor] = []
    anatomy = Anatomy(Counted(Deep(), calls), torch.randn(2, 3, 4, 4))
    assert len(anatomy) == 81
    assert len(calls) == 4  # in either mode the network is followed and edits are tried, and rounding leaves no doubt


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


class Heads(nn.Module):
    """Reads the mode at its beginning, at its end, or not at all; training may add a head of two convolutions."""

    def __init__(self, begin: bool, end: bool, second: bool) -> None:
        super().__init__()
        layers = [each for _ in range(8) for each in (nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))]
        self.body = nn.Sequential(nn.Conv2d(3, 6, 1), *layers)
        self.head = nn.Conv2d(6, 3, 1)
        self.second = nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 1)) if second else None
        self.begin, self.end = begin, end

    def forward(self, x: Tensor) -> Any:
        _ = self.begin and self.training
        h = self.body(x)
        if (self.end or self.second is not None) and self.training:
            return self.head(h) if self.second is None else (self.head(h), self.second(h))
        return self.head(h)


@pytest.mark.parametrize(
    ("begin", "end", "second", "more"),
    [
        (True, False, False, 0),  # of the pass in training mode, all is known
        (True, False, True, 2 + 2),  # but for the second head, followed and rehearsed
        (False, False, True, 10 + 2 + 2),  # too late to begin anew: all is computed once more
        (False, True, False, 10 + 0),
    ],
)
def test_training_mode_computes_only_what_is_otherwise(begin: bool, end: bool, second: bool, more: int) -> None:
    torch.manual_seed(0)
    counts = []
    for reads in (False, True):
        net = Heads(begin and reads, end and reads, second and reads)
        with Convolutions() as counted:
            anatomy = Anatomy(net, torch.randn(2, 3, 4, 4))
        assert len(anatomy) == 9 + (second and reads)
        counts.append(counted.count)
    assert counts[0] == 2 * 10
    assert counts[1] - counts[0] == more


class Ghost(nn.Module):
    """As in GhostNet: cheap features beside dear ones, and a number in the code that takes all of them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.dear = nn.Conv2d(inputs, outputs // 2, 1)
        self.cheap = nn.Conv2d(outputs // 2, outputs // 2, 3, padding=1, groups=outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        dear = self.dear(x).relu()
        return torch.cat([dear, self.cheap(dear)], dim=1)[:, : self.outputs]


def test_a_number_that_cuts_nothing_off_follows_the_concatenation() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model = nn.Sequential(Ghost(3, 12), Ghost(12, 8), nn.Flatten(), nn.Linear(8 * 25, 4))
    model = lively(model.double(), inputs)
    anatomy = Anatomy(model, inputs)
    assert {name: layer.units for name, layer in anatomy.items()} == {"0.dear": 6, "1.dear": 4}
    examination = examine(anatomy, inputs)
    assert not examination.broken and not examination.faint
    operate(anatomy["0.dear"], MinWeight(keep=0.5))
    assert model[0].outputs == 2 * len(model[0].dear.weight) == 6
    assert model(inputs).shape == (2, 4)


class Restless(nn.Module):
    """Writes into buffers of several kinds whenever it runs, of its own and of a norm that is always in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("past", torch.randn(4, 3).t())
        self.register_buffer("met", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("coarse", torch.ones(3, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.past.mul_(2)
        self.met.fill_(True)
        self.coarse.add_(torch.rand(3).half())
        norm = self.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
        return self.out(x)


def test_buffers_that_the_network_writes_to_are_taken_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), Restless())
    before = {name: (id(buffer), buffer.clone()) for name, buffer in model.named_buffers()}
    chance = torch.get_rng_state()
    Anatomy(model, torch.randn(4, 5, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), chance)
    for name, buffer in model.named_buffers():
        assert id(buffer) == before[name][0] and torch.equal(buffer, before[name][1]), name


def test_parameters_that_share_memory_are_not_taken_for_two() -> None:
    """Two parameters of one storage are tied, which an edit of each by itself would end."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = nn.Parameter(model[0].weight.data)
    assert not set(Anatomy(model, torch.randn(2, 6)))


@pytest.mark.parametrize("name", ["cnn", "mlp_bn", "tied"])
def test_tensors_are_those_of_torch(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)) if name == "tied" else build(name)[0]
    if name == "tied":
        model[1].weight = model[0].weight
        model.register_buffer("own", torch.zeros(2))
        model[1].register_buffer("same", model.own)
        model.register_buffer("none", None)
    wanted = [*model.named_parameters(), *model.named_buffers()]
    found = list(tensors_of(model))
    assert [n for n, _ in found] == [n for n, _ in wanted]
    assert all(one is other for (_, one), (_, other) in zip(found, wanted, strict=True))


@pytest.mark.parametrize("huge", [1, 1 << 30], ids=["in blocks", "in rows"])
def test_a_factor_along_an_axis_multiplies_however_a_tensor_lies(huge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "HUGE", huge)
    torch.manual_seed(0)
    for shape in ((6, 5), (6, 5, 1, 1), (6, 5, 3, 3)):
        for axis in range(len(shape)):
            factor = torch.rand(shape[axis], dtype=torch.float64)
            factor[::2] = 1
            for tensor in (torch.randn(shape), torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))):
                wanted = tensor * factor.float().view([-1 if a == axis else 1 for a in range(len(shape))])
                assert torch.equal(rebuild._times(tensor, axis, factor), wanted) and torch.equal(tensor, wanted)

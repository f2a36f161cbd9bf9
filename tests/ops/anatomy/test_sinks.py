"""Where constants go: against the same network whose units are replaced by a forward hook, whatever reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_surgery.ops import (
    PCNS,
    Anatomy,
    Compact,
    MeanReplace,
    Plan,
    RandomRemove,
    Signals,
    SurgeryError,
    measure,
    operate,
)
from tests.ops.networks import Net, difference, outputs

UNITS, EXACT = 6, 1e-10


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def image(reader: Callable[[Net, Tensor, Tensor], object], **parts: nn.Module | nn.Parameter) -> tuple[Net, Tensor]:
    """A convolution of six units, their activation ``act``, and what reads them: ``reader(net, units, input)``."""
    net = Net(lambda m, x: reader(m, m.act(m.a(x)), x), a=nn.Conv2d(3, UNITS, 1), act=nn.ReLU(), **parts)
    return net, torch.randn(12, 3, 4, 4, dtype=torch.float64)


def rows(reader: Callable[[Net, Tensor, Tensor], object], **parts: nn.Module | nn.Parameter) -> tuple[Net, Tensor]:
    """The same of a dense layer on inputs ``[12, 4, 3]``; units are on the last dimension."""
    net = Net(lambda m, x: reader(m, m.act(m.a(x)), x), a=nn.Linear(3, UNITS), act=nn.ReLU(), **parts)
    return net, torch.randn(12, 4, 3, dtype=torch.float64)


def bare(n: int = 5, kernel: int = 1, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(UNITS, n, kernel, bias=False, **settings)  # type: ignore[arg-type]


def added(*shape: int) -> tuple[Net, Tensor]:
    """Something of this shape is added to a product ``[12, 5, 4, 4]``."""
    return image(lambda m, h, x: m.o((m.p(h) + m.v).tanh()), p=bare(), v=parameter(*shape), o=nn.Conv2d(5, 2, 1))


def experts(*shape: int, n: int = 5) -> tuple[Net, Tensor]:
    """Four experts, one for each of four tokens, in one weight ``[expert, in, out]``."""

    def read(m: Net, h: Tensor, x: Tensor) -> Tensor:
        return m.o((torch.bmm(h.transpose(0, 1), m.w) + m.v).tanh()).transpose(0, 1)

    return rows(read, w=parameter(4, UNITS, n), v=parameter(*shape), o=nn.Linear(n, 2))


def transposed(kernel: int, stride: int, **settings: int) -> tuple[Net, Tensor]:
    p = nn.ConvTranspose2d(UNITS, 4, kernel, stride, **settings)
    return image(lambda m, h, x: m.o(m.p(h).tanh()), p=p, o=nn.Conv2d(4, 2, 1))


def convolution(kernel: int, **settings: object) -> tuple[Net, Tensor]:
    p = nn.Conv2d(UNITS, 4, kernel, **settings)  # type: ignore[arg-type]
    return image(lambda m, h, x: m.o(m.p(h).tanh()), p=p, o=nn.Conv2d(4, 2, 1))


def after(expression: Callable[[Net, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> tuple[Net, Tensor]:
    """``expression(net, product [12, 4, 5])`` of a dense reader without a bias, then another layer."""
    w = nn.Linear(UNITS, 5, bias=False)
    return rows(lambda m, h, x: m.o(expression(m, m.w(h)).tanh()), w=w, o=nn.Linear(5, 2), **parts)


def _norms(shared: bool) -> tuple[Net, Tensor]:
    def read(m: Net, h: Tensor, x: Tensor) -> list[Tensor]:
        levels = h, F.avg_pool2d(h, 2)
        return [m.o(getattr(m, f"n{0 if shared else i}")(m.p(level)).relu()) for i, level in enumerate(levels)]

    return image(read, p=bare(), n0=nn.BatchNorm2d(5), n1=nn.BatchNorm2d(5), o=nn.Conv2d(5, 2, 1))


def _tied() -> tuple[Net, Tensor]:
    net, inputs = image(
        lambda m, h, x: m.o(m.p(h).tanh() + m.q(x).tanh()),
        p=nn.Conv2d(UNITS, 5, 1), q=nn.Conv2d(3, 5, 1), o=nn.Conv2d(5, 2, 1),
    )  # fmt: skip
    net.q.bias = net.p.bias
    return net, inputs


#: Kind → the network, and whether the constants of ``a`` can go somewhere exactly.
KINDS: dict[str, tuple[Callable[[], tuple[Net, Tensor]], bool]] = {
    "bias": (lambda: convolution(1), True),
    "kernel": (lambda: convolution(3), True),
    "strided": (lambda: convolution(2, stride=2), True),
    "dilated": (lambda: convolution(2, dilation=2), True),
    "reflected": (lambda: convolution(3, padding=1, padding_mode="reflect"), True),
    "transposed, kernel 1": (lambda: transposed(1, 1), True),
    "transposed": (lambda: transposed(2, 2), False),
    "transposed, overlapping": (lambda: transposed(3, 2, padding=1), False),
    "transposed, kernel 3": (lambda: transposed(3, 1, padding=1), False),
    "batch norm": (
        lambda: image(lambda m, h, x: m.o(m.n(m.p(h)).relu()), p=bare(), n=nn.BatchNorm2d(5), o=nn.Conv2d(5, 2, 1)),
        True,
    ),
    "one norm for two levels": (lambda: _norms(True), True),
    "a norm for each level": (lambda: _norms(False), False),
    "one norm after two convolutions": (
        lambda: image(
            lambda m, h, x: m.o(m.n(m.p(h)).relu() + m.n(m.q(x)).relu()),
            p=bare(), q=nn.Conv2d(3, 5, 1, bias=False), n=nn.BatchNorm2d(5), o=nn.Conv2d(5, 2, 1),
        ), False,
    ),
    "past the norm": (
        lambda: image(
            lambda m, h, x: m.o((y := m.p(h)) + m.q(m.n(y).relu())),
            p=bare(), q=nn.Conv2d(5, 5, 1), n=nn.BatchNorm2d(5), o=nn.Conv2d(5, 2, 1),
        ), False,
    ),
    "tied bias": (_tied, False),
    "map": (lambda: added(4, 4), False),
    "row": (lambda: added(4), False),
    "scalar": (lambda: added(1), False),
    "number": (lambda: added(), False),
    "entries": (lambda: added(5, 1, 1), True),
    "entries at each position": (lambda: added(5, 4, 4), True),
    "table": (lambda: added(1, 5, 4, 4), True),
    "entries for each sample": (lambda: added(12, 5, 1, 1), True),
    "experts, a bias each": (lambda: experts(4, 1, 5), True),
    "experts, one bias": (lambda: experts(5), False),
    "experts, a number each": (lambda: experts(4, 1, 1), False),
    "experts, a bias for each sample": (lambda: experts(4, 12, 5), True),
    "experts, as wide as many": (lambda: experts(4, n=4), False),
    "two biases": (lambda: after(lambda m, y: y + m.v + m.w2, v=parameter(5), w2=parameter(5)), True),
    "added twice": (lambda: after(lambda m, y: y + m.v + m.v, v=parameter(5)), False),
    "added to two products": (lambda: after(lambda m, y: (y + m.v).relu() * m.v.tanh(), v=parameter(5)), False),
    "taken away": (lambda: after(lambda m, y: y - m.v, v=parameter(5)), True),
    "taken from": (lambda: after(lambda m, y: m.v - y, v=parameter(5)), False),
    "half of it": (lambda: after(lambda m, y: torch.add(y, m.v, alpha=0.5), v=parameter(5)), False),
    "in place": (lambda: after(lambda m, y: y.add_(m.v), v=parameter(5)), True),
    "scaled first": (lambda: after(lambda m, y: y * 2 + m.v, v=parameter(5)), False),
    "detached": (lambda: after(lambda m, y: y + m.v.detach(), v=parameter(5)), True),
    "scaled bias": (lambda: after(lambda m, y: y + m.v * 2, v=parameter(5)), False),
    "part of a longer vector": (lambda: after(lambda m, y: y + m.v[:5], v=parameter(7)), False),
    "turned": (lambda: after(lambda m, y: y + m.v.t(), v=parameter(5, 4)), False),
    "reversed": (lambda: after(lambda m, y: y + m.v.flip(0), v=parameter(5)), False),
    "in another shape": (
        lambda: after(lambda m, y: (y.transpose(1, 2) + m.v.view(5, 1)).transpose(1, 2), v=parameter(5)), True,
    ),
    "merged with positions": (lambda: after(lambda m, y: (y.flatten(1) + m.v).view(y.shape), v=parameter(20)), False),
    "a sum of two products": (
        lambda: rows(
            lambda m, h, x: m.o((m.w(h) + m.q(x) + m.v).tanh()),
            w=nn.Linear(UNITS, 5, bias=False), q=nn.Linear(3, 5, bias=False), v=parameter(5), o=nn.Linear(5, 2),
        ), False,
    ),
    "two products, one weight": (
        lambda: rows(
            lambda m, h, x: m.o((F.linear(h, m.w) + m.v).tanh() + F.linear(h.roll(1, 1), m.w).tanh()),
            w=parameter(5, UNITS), v=parameter(5), o=nn.Linear(5, 2),
        ), False,
    ),
    "used alike twice": (
        lambda: rows(
            lambda m, h, x: m.o(m.w(h).tanh() + m.w(h.roll(1, 1)).relu()), w=nn.Linear(UNITS, 5), o=nn.Linear(5, 2)
        ), True,
    ),
    "the bias is put out": (
        lambda: rows(lambda m, h, x: [m.o(m.w(h).tanh()), m.w.bias], w=nn.Linear(UNITS, 5), o=nn.Linear(5, 2)), False
    ),
    "the product is put out": (
        lambda: rows(
            lambda m, h, x: [(y := m.w(h)), m.o((y + m.v).tanh())],
            w=nn.Linear(UNITS, 5, bias=False), v=parameter(5), o=nn.Linear(5, 2),
        ), False,
    ),
    "weight on the left": (
        lambda: rows(
            lambda m, h, x: m.o((m.w @ h.transpose(1, 2) + m.v).tanh().transpose(1, 2)),
            w=parameter(5, UNITS), v=parameter(5, 1), o=nn.Linear(5, 2),
        ), True,
    ),
    "fused": (
        lambda: rows(
            lambda m, h, x: m.o(torch.addmm(m.v, h.flatten(0, 1), m.w).tanh()).view(12, 4, 2),
            w=parameter(UNITS, 5), v=parameter(5), o=nn.Linear(5, 2),
        ), True,
    ),
    "a row fused": (
        lambda: rows(
            lambda m, h, x: m.o(torch.addmm(m.v, h.flatten(0, 1), m.w).tanh()).view(12, 4, 2),
            w=parameter(UNITS, 5), v=parameter(48, 1), o=nn.Linear(5, 2),
        ), False,
    ),
}  # fmt: skip


def made(kind: str, seed: int = 0) -> tuple[Net, Tensor]:
    torch.manual_seed(seed)
    net, inputs = KINDS[kind][0]()
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net, inputs


def silence(net: Net) -> None:
    """Nothing feeds three units, and what they emit is 1, 2 and 3."""
    with torch.no_grad():
        net.a.weight[:3] = 0
        net.a.bias[:3] = torch.tensor([1.0, 2.0, 3.0])


def hooked(net: Net, plan: Plan) -> Callable[[], None]:
    """Lets the activation hand on what the plan says that its reader receives; returns what ends it."""
    (reader,) = {place.tensor for place in plan.layer.readers}
    kept = list(plan.sources)
    mixing = plan.mixing.get(reader, torch.eye(UNITS, dtype=torch.float64)[:, kept])
    constant = plan.constants.get(reader, torch.zeros(UNITS, dtype=torch.float64))

    def replace(module: nn.Module, args: object, out: Tensor) -> Tensor:
        dim = 1 if isinstance(net.a, nn.Conv2d) else out.dim() - 1
        units = out.movedim(dim, -1)
        return (units[..., kept] @ mixing.T + constant).movedim(-1, dim)

    return net.act.register_forward_hook(replace).remove


OPERATIONS = {
    "compact": (Compact(), ()),
    "median": (MeanReplace(0.5, replacement="median"), ()),
    "pcns": (PCNS(keep=0.5), ()),
    "random, bias": (RandomRemove(0.5), ("bias",)),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_surgery_does_what_a_hook_does(kind: str, name: str) -> None:
    (net, inputs), (operation, repair) = made(kind), OPERATIONS[name]
    silence(net)
    anatomy = Anatomy(net, inputs)
    layer, before = anatomy["a"], outputs(net, inputs)
    (reader,) = {place.tensor for place in layer.readers}
    assert (reader in anatomy.sinks) is KINDS[kind][1]
    plan = operate(layer, operation, (), Signals(net, inputs), repair=repair, verify=True)
    after = outputs(net, inputs)
    twin, _ = made(kind)
    silence(twin)
    end = hooked(twin, plan)
    assert difference(outputs(twin, inputs), after) < EXACT
    end()
    moved = difference(before, after)
    assert moved < EXACT or plan.error > 1e-6
    if name == "compact":
        assert plan.error == 0 and moved < EXACT and (reader in anatomy.sinks) is (plan.units_after == 3)


@pytest.mark.parametrize("kind", ["added twice", "transposed", "map"])
def test_a_constant_that_cannot_be_placed_is_refused(kind: str) -> None:
    net, inputs = made(kind)
    layer = Anatomy(net, inputs)["a"]
    (reader,) = {place.tensor for place in layer.readers}
    plan = Plan(layer, "Mine()", (0, 1, 2), constants={reader: torch.ones(UNITS, dtype=torch.float64)})
    with pytest.raises(SurgeryError, match=f"no vector after {reader} can hold a constant"):
        operate(layer, Given(plan))


class Given(RandomRemove):
    """Proposes what it was made with."""

    def __init__(self, plan: Plan) -> None:
        object.__setattr__(self, "plan", plan)

    def propose(self, layer: object, signals: object = None) -> Plan:
        return self.plan


@pytest.mark.parametrize("padding", [1, (2, 0), "same"])
@pytest.mark.parametrize("operation", [Compact(), MeanReplace(0.5)], ids=["compact", "mean_replace"])
def test_what_padding_costs_is_part_of_the_error(operation: Compact | MeanReplace, padding: object) -> None:
    torch.manual_seed(0)
    net, inputs = convolution(3, padding=padding)
    net = net.double()
    silence(net)
    before, anatomy = outputs(net, inputs), Anatomy(net, inputs)
    plan = operate(
        anatomy["a"], operation, (), Signals(net, inputs), verify=True
    )  # exact with constants in the padding
    error = difference(before, outputs(net, inputs))
    assert plan.units_after == 3 and plan.error > 0.01 and error > 0.01


def test_verification_does_not_believe_the_plan() -> None:
    """A sink that is not one shows, as what is measured against is not made with it."""
    net, inputs = made("tied bias")
    silence(net)
    anatomy = Anatomy(net, inputs)
    net_, _ = made("bias")
    right = Anatomy(net_, inputs).sinks["p.weight"]
    anatomy.sinks["p.weight"] = right
    plan = MeanReplace(0.5).propose(anatomy["a"], Signals(net, inputs))
    with pytest.raises(SurgeryError, match="should be exact, but the output would differ"):
        measure(plan)


@pytest.mark.parametrize("exact", [True, False], ids=["convolution", "transposed"])
def test_a_group_of_a_convolution_reads_its_own_part(exact: bool) -> None:
    """A unit stands once in each group; it is constant if it is the same constant in all of them."""
    for constants, gone in (([2.0, 2.0], exact), ([2.0, 3.0], False)):
        torch.manual_seed(0)
        net, inputs = convolution(1, groups=2) if exact else transposed(2, 2, groups=2)
        net = net.double()
        with torch.no_grad():
            net.a.weight[[0, 3]], net.a.bias[[0, 3]] = 0, torch.tensor(constants, dtype=torch.float64)
        before, anatomy = outputs(net, inputs), Anatomy(net, inputs)
        plan = operate(anatomy["a"], Compact(), (), Signals(net, inputs), verify=True)
        assert plan.removed == ((0,) if gone else ()) and difference(before, outputs(net, inputs)) < EXACT
        for operation in (MeanReplace(0.5), PCNS(keep=0.7)):
            assert measure(operation.propose(anatomy["a"], Signals(net, inputs))) < EXACT

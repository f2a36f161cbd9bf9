"""Constructs of dense layers, for flat tensors and sequences."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ops.constructs.base import Construct, Shape, need, parameter, width
from tests.ops.constructs.channels import activation, on_channels
from tests.ops.constructs.picking import picked
from tests.ops.networks import Net


def linear(chance: Random, shape: Shape) -> nn.Module:
    return nn.Linear(shape[-1], width(chance), bias=chance.random() < 0.7)


def functional_linear(chance: Random, shape: Shape) -> nn.Module:
    units = width(chance)
    return Net(lambda m, h: F.linear(h, m.weight, m.bias), weight=parameter(units, shape[-1]), bias=parameter(units))


def raw_matmul(chance: Random, shape: Shape) -> nn.Module:
    units = width(chance)
    return Net(lambda m, h: h @ m.weight + m.bias, weight=parameter(shape[-1], units), bias=parameter(units))


def raw_einsum(chance: Random, shape: Shape) -> nn.Module:
    pattern = chance.choice(("...i,oi->...o", "...i,io->...o"))
    units = width(chance)
    size = (units, shape[-1]) if "oi" in pattern else (shape[-1], units)
    return Net(lambda m, h: torch.einsum(pattern, h, m.weight), weight=parameter(*size))


def raw_addmm(chance: Random, shape: Shape) -> nn.Module:
    units = width(chance)
    return Net(lambda m, h: torch.addmm(m.bias, h, m.weight), weight=parameter(shape[-1], units), bias=parameter(units))


def scaled_addmm(chance: Random, shape: Shape) -> nn.Module:
    """A product and what is added to it, each with a factor."""
    units = width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        if len(shape) == 2:
            return torch.addmm(m.bias, h, m.weight, beta=0.5, alpha=2)
        return torch.baddbmm(m.bias.view(1, 1, -1), h, m.weight.expand(len(h), -1, -1), beta=0.5, alpha=2)

    return Net(forward, weight=parameter(shape[-1], units), bias=parameter(units))


def masked_weight(chance: Random, shape: Shape) -> nn.Module:
    units = width(chance)
    return Net(
        lambda m, h: F.linear(h, m.weight * m.mask),
        weight=parameter(units, shape[-1]),
        mask=nn.Parameter((torch.rand(units, shape[-1]) > 0.3).float(), requires_grad=False),
    )


def standardized_weight(chance: Random, shape: Shape) -> nn.Module:
    return Net(
        lambda m, h: F.linear(h, m.weight - m.weight.mean(1, keepdim=True)), weight=parameter(width(chance), shape[-1])
    )


def scaled_weight(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: F.linear(h, m.weight * 0.5), weight=parameter(width(chance), shape[-1]))


def weight_norm(chance: Random, shape: Shape) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(shape[-1], width(chance)))


def sliced_weight(chance: Random, shape: Shape) -> nn.Module:
    """Two products with the two halves of one weight."""
    units = width(chance)
    return Net(
        lambda m, h: F.linear(h, m.weight[:units]).tanh() + F.linear(h, m.weight[units:]),
        weight=parameter(2 * units, shape[-1]),
    )


def twice(chance: Random, shape: Shape) -> nn.Module:
    """One square module, used twice."""
    return Net(lambda m, h: m.inner(m.inner(h).tanh()), inner=nn.Linear(shape[-1], shape[-1]))


def autoencoder(chance: Random, shape: Shape) -> nn.Module:
    return Net(
        lambda m, h: F.linear(m.encoder(h).relu(), m.encoder.weight.t()), encoder=nn.Linear(shape[-1], width(chance))
    )


def tied_pair(chance: Random, shape: Shape) -> nn.Module:
    """Two modules with one weight, both between the same units."""
    first, second = nn.Linear(shape[-1], shape[-1]), nn.Linear(shape[-1], shape[-1], bias=False)
    second.weight = first.weight
    return Net(lambda m, h: m.second(m.first(h).relu()), first=first, second=second)


def two_layers(chance: Random, shape: Shape) -> nn.Module:
    units = width(chance)
    return nn.Sequential(nn.Linear(shape[-1], units), activation(chance, shape), nn.Linear(units, width(chance)))


def gated_unit(chance: Random, shape: Shape) -> nn.Module:
    units = width(chance)
    return Net(
        lambda m, h: m.down(F.silu(m.gate(h)) * m.up(h)), gate=nn.Linear(shape[-1], units, bias=False),
        up=nn.Linear(shape[-1], units, bias=False), down=nn.Linear(units, shape[-1]),
    )  # fmt: skip


def fused_gated_unit(chance: Random, shape: Shape) -> nn.Module:
    """Gate and value of one product."""
    units = width(chance)
    split = chance.choice(
        (lambda x: x.chunk(2, -1), lambda x: x.split(units, -1), lambda x: x.split(x.size(-1) // 2, -1))
    )

    def forward(m: Any, h: Tensor) -> Tensor:
        gate, up = split(m.both(h))
        return m.down(F.gelu(gate) * up)

    return Net(forward, both=nn.Linear(shape[-1], 2 * units), down=nn.Linear(units, shape[-1]))


def low_rank(chance: Random, shape: Shape) -> nn.Module:
    return Net(
        lambda m, h: m.base(h) + m.up(m.down(h)) * 0.5, base=nn.Linear(shape[-1], 6),
        down=nn.Linear(shape[-1], 3, bias=False), up=nn.Linear(3, 6, bias=False),
    )  # fmt: skip


def bilinear(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: m.inner(h, h), inner=nn.Bilinear(shape[-1], shape[-1], width(chance)))


def highway(chance: Random, shape: Shape) -> nn.Module:
    def forward(m: Any, h: Tensor) -> Tensor:
        gate = m.gate(h).sigmoid()
        return gate * m.change(h).tanh() + (1 - gate) * h

    return Net(forward, gate=nn.Linear(shape[-1], shape[-1]), change=nn.Linear(shape[-1], shape[-1]))


def experts(chance: Random, shape: Shape) -> nn.Module:
    number, units = chance.choice((2, 3)), width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        weights = m.router(h).softmax(-1)
        return sum(weights[..., i : i + 1] * expert(h) for i, expert in enumerate(m.experts))

    heads = [nn.Sequential(nn.Linear(shape[-1], units), nn.ReLU(), nn.Linear(units, 6)) for _ in range(number)]
    return Net(forward, router=nn.Linear(shape[-1], number), experts=nn.ModuleList(heads))


def expert_weights(chance: Random, shape: Shape) -> nn.Module:
    """All experts in one three-dimensional weight."""
    number, units = 3, width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        inner = torch.einsum("...i,eiu->...eu", h, m.up).relu()
        return torch.einsum("...eu,euo->...o", inner, m.down)

    return Net(forward, up=parameter(number, shape[-1], units), down=parameter(number, units, 6))


def routed(chance: Random, shape: Shape) -> nn.Module:
    """Each sample through the expert of its largest logit."""

    def forward(m: Any, h: Tensor) -> Tensor:
        best = m.router(h).argmax(-1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(m.experts):
            chosen = best == number
            if chosen.any():
                out[chosen] = expert(h[chosen])
        return out

    pair = [nn.Linear(shape[-1], shape[-1]) for _ in range(2)]
    return Net(forward, router=nn.Linear(shape[-1], 2), experts=nn.ModuleList(pair))


def data_branch(chance: Random, shape: Shape) -> nn.Module:
    return Net(
        lambda m, h: m.left(h) if float(h.mean()) > 0.123 else m.right(h),
        left=nn.Linear(shape[-1], 6), right=nn.Linear(shape[-1], 6),
    )  # fmt: skip


def data_loop(chance: Random, shape: Shape) -> nn.Module:
    def forward(m: Any, h: Tensor) -> Tensor:
        for _ in range(1 + int(h.abs().mean() > 0.5)):
            h = m.inner(h).tanh()
        return h

    return Net(forward, inner=nn.Linear(shape[-1], shape[-1]))


def hand_written_recurrence(chance: Random, shape: Shape) -> nn.Module:
    units = width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        state = m.start.expand(*h.shape[:-1], -1)
        for _ in range(3):
            state = torch.tanh(m.read(h) + m.again(state))
        return m.out(state)

    return Net(
        forward, start=parameter(units), read=nn.Linear(shape[-1], units), again=nn.Linear(units, units),
        out=nn.Linear(units, 6),
    )  # fmt: skip


def hyper_network(chance: Random, shape: Shape) -> nn.Module:
    """Each sample's weight is computed."""
    rows = 3

    def forward(m: Any, h: Tensor) -> Tensor:
        weight = m.hyper(h).unflatten(-1, (rows, -1))
        return (weight @ h.unsqueeze(-1)).squeeze(-1)

    return Net(forward, hyper=nn.Linear(shape[-1], rows * shape[-1]))


def flat_batch_norm(chance: Random, shape: Shape) -> nn.Module:
    return nn.BatchNorm1d(shape[1], affine=chance.random() < 0.8)


def group_norm(chance: Random, shape: Shape) -> nn.Module:
    groups = chance.choice([g for g in range(1, shape[1] + 1) if shape[1] % g == 0])
    need(len(shape) > 2 or shape[1] > groups)
    return nn.GroupNorm(groups, shape[1])


def channel_prelu(chance: Random, shape: Shape) -> nn.Module:
    return nn.PReLU(shape[1])


DENSE: dict[str, Construct] = {
    "linear": linear,
    "functional_linear": functional_linear,
    "raw_matmul": raw_matmul,
    "raw_einsum": raw_einsum,
    "scaled_addmm": scaled_addmm,
    "masked_weight": masked_weight,
    "standardized_weight": standardized_weight,
    "scaled_weight": scaled_weight,
    "weight_norm": weight_norm,
    "sliced_weight": sliced_weight,
    "twice": twice,
    "autoencoder": autoencoder,
    "tied_pair": tied_pair,
    "two_layers": two_layers,
    "gated_unit": gated_unit,
    "fused_gated_unit": fused_gated_unit,
    "low_rank": low_rank,
    "bilinear": bilinear,
    "highway": highway,
    "experts": experts,
    "expert_weights": expert_weights,
    "hand_written_recurrence": hand_written_recurrence,
}

FLAT: dict[str, Construct] = {
    **on_channels(1),
    **DENSE,
    **picked(0),
    "raw_addmm": raw_addmm,
    "routed": routed,
    "data_branch": data_branch,
    "data_loop": data_loop,
    "hyper_network": hyper_network,
    "batch_norm": flat_batch_norm,
    "group_norm": group_norm,
    "channel_prelu": channel_prelu,
}

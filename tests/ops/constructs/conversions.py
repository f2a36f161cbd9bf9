"""Constructs that turn one kind of tensor into another."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from tests.ops.constructs.base import Construct, Shape, parameter, plain, width
from tests.ops.networks import Net


def to_image(chance: Random, shape: Shape) -> nn.Module:
    channels = chance.choice((2, 3, 4))
    form = (channels, 2, 2)
    layer = nn.Linear(shape[1], 4 * channels)
    if chance.random() < 0.5:
        return nn.Sequential(layer, nn.Unflatten(1, form))
    return Net(lambda m, h: m.inner(h).view(-1, *form), inner=layer)


def to_signal(chance: Random, shape: Shape) -> nn.Module:
    channels = chance.choice((2, 3, 4))
    return Net(lambda m, h: m.inner(h).view(len(h), channels, -1), inner=nn.Linear(shape[1], 4 * channels))


def to_tokens(chance: Random, shape: Shape) -> nn.Module:
    length = 3
    return Net(lambda m, h: m.inner(h).unflatten(1, (length, -1)), inner=nn.Linear(shape[1], length * width(chance)))


def repeated(chance: Random, shape: Shape) -> nn.Module:
    """One vector at every place of a sequence, then distinguished by a position."""
    return Net(lambda m, h: h.unsqueeze(1).expand(-1, 3, -1) + m.position, position=parameter(3, shape[1]))


def class_token(chance: Random, shape: Shape) -> nn.Module:
    """Patches in a row after a learnt token, and learnt positions."""
    length = math.prod(shape[2:])

    def forward(m: Any, h: Tensor) -> Tensor:
        patches = h.flatten(2).transpose(1, 2)
        return torch.cat([m.token.expand(len(h), -1, -1), patches], 1) + m.position

    return Net(forward, token=parameter(1, 1, shape[1]), position=parameter(1, length + 1, shape[1]))


def attention_pool(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: (m.score(h).softmax(1) * h).sum(1), score=nn.Linear(shape[2], 1))


def last_state(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: m.inner(h)[1][-1], inner=nn.GRU(shape[2], chance.choice((3, 4, 6)), batch_first=True))


def own_last_step(chance: Random, shape: Shape) -> nn.Module:
    """The last step of each sequence, which has a length of its own."""
    lengths = torch.tensor([1 + chance.randrange(shape[1]) for _ in range(shape[0])])
    forms = (
        lambda h, at: h[torch.arange(len(h)), at],
        lambda h, at: h.gather(1, at.view(-1, 1, 1).expand(-1, 1, h.size(-1))).squeeze(1),
        lambda h, at: h.take_along_dim(at.view(-1, 1, 1), 1).squeeze(1),
        lambda h, at: h.transpose(0, 1)[at, torch.arange(len(h))],
        lambda h, at: h[torch.arange(h.size(1)).expand(len(h), -1) == at.unsqueeze(1)],
    )
    form = chance.choice(forms)
    return Net(lambda m, h: form(h, lengths - 1))


CONVERSIONS: dict[tuple[str, str], dict[str, Construct]] = {
    ("flat", "image"): {"to_image": to_image},
    ("flat", "signal"): {"to_signal": to_signal},
    ("flat", "sequence"): {"to_tokens": to_tokens, "repeated": repeated},
    ("image", "flat"): {
        "flatten": lambda chance, shape: nn.Flatten(),
        "view": plain(lambda h: h.contiguous().view(len(h), -1)),
        "last_flatten": plain(lambda h: h.permute(0, 2, 3, 1).flatten(1)),
        "swapped_flatten": plain(lambda h: h.transpose(2, 3).reshape(h.size(0), -1)),
        "mean": plain(lambda h: h.mean((2, 3))),
        "peak": plain(lambda h: h.amax((2, 3))),
        "adaptive": lambda chance, shape: nn.Sequential(nn.AdaptiveAvgPool2d(chance.choice((1, 2))), nn.Flatten()),
        "fixed_view": lambda chance, shape: Net(lambda m, h: h.reshape(-1, math.prod(shape[1:]))),
    },
    ("image", "sequence"): {
        "patches": plain(lambda h: h.flatten(2).transpose(1, 2)),
        "last_patches": plain(lambda h: h.permute(0, 2, 3, 1).reshape(h.shape[0], -1, h.shape[1])),
        "class_token": class_token,
    },
    ("image", "signal"): {
        "rows": plain(lambda h: h.flatten(2)),
        "row_mean": plain(lambda h: h.mean(3)),
        "row_channels": plain(lambda h: h.flatten(1, 2)),
    },
    ("signal", "flat"): {
        "signal_flatten": lambda chance, shape: nn.Flatten(),
        "signal_mean": plain(lambda h: h.mean(2)),
        "signal_peak": plain(lambda h: h.max(2).values),
        "signal_last": plain(lambda h: h[:, :, -1]),
    },
    ("signal", "sequence"): {"to_steps": plain(lambda h: h.transpose(1, 2)), "to_steps_": plain(lambda h: h.mT)},
    ("sequence", "flat"): {
        "step_mean": plain(lambda h: h.mean(1)),
        "step_sum": plain(lambda h: torch.einsum("btc->bc", h)),
        "first_step": plain(lambda h: h[:, 0]),
        "last_step": plain(lambda h: h[:, -1, :]),
        "step_flatten": plain(lambda h: h.flatten(1)),
        "step_peak": plain(lambda h: h.max(1).values),
        "attention_pool": attention_pool,
        "last_state": last_state,
        "own_last_step": own_last_step,
    },
    ("sequence", "signal"): {"to_channels": plain(lambda h: h.transpose(1, 2).contiguous())},
    ("sequence", "image"): {"to_plane": plain(lambda h: h.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, 2))},
}

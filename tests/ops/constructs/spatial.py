"""Constructs on images and signals."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ops.constructs.base import Construct, Shape, convolution, need, parameter, width
from tests.ops.constructs.channels import activation, on_channels
from tests.ops.constructs.dense import channel_prelu, group_norm
from tests.ops.networks import Net


def conv(chance: Random, shape: Shape) -> nn.Conv1d | nn.Conv2d:
    dims, size = len(shape) - 2, chance.choice((1, 2, 3))
    dilation, stride = chance.choice((1, 1, 2)), chance.choice((1, 1, 2))
    need(min(shape[2:]) > dilation * (size - 1))
    padding: Any = chance.choice((0, size // 2, "same" if stride == 1 else 0))
    return convolution(dims)(shape[1], width(chance), size, stride, padding, dilation, bias=chance.random() < 0.6)


def conv_norm(chance: Random, shape: Shape) -> nn.Module:
    layer = conv(chance, shape)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 3](layer.out_channels)
    return nn.Sequential(layer, norm, activation(chance, shape))


def functional_conv(chance: Random, shape: Shape) -> nn.Module:
    function = (F.conv1d, F.conv2d)[len(shape) - 3]
    return Net(
        lambda m, h: function(h, m.weight, padding=1),
        weight=parameter(width(chance), shape[1], *(3,) * (len(shape) - 2)),
    )


def depthwise(chance: Random, shape: Shape) -> nn.Module:
    return convolution(len(shape) - 2)(shape[1], shape[1], 3, padding=1, groups=shape[1], bias=chance.random() < 0.5)


def depth_multiplier(chance: Random, shape: Shape) -> nn.Module:
    return convolution(len(shape) - 2)(shape[1], 2 * shape[1], 3, padding=1, groups=shape[1])


def separable(chance: Random, shape: Shape) -> nn.Module:
    size = len(shape) - 2
    return nn.Sequential(depthwise(chance, shape), nn.ReLU(), convolution(size)(shape[1], width(chance), 1))


def inverted(chance: Random, shape: Shape) -> nn.Module:
    """Wide depthwise between two narrow layers, with a residual sum."""
    layer, units = convolution(len(shape) - 2), width(chance)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 3]
    inner = nn.Sequential(
        layer(shape[1], units, 1, bias=False), norm(units), nn.ReLU6(),
        layer(units, units, 3, padding=1, groups=units, bias=False), norm(units), nn.ReLU6(),
        layer(units, shape[1], 1, bias=False), norm(shape[1]),
    )  # fmt: skip
    return Net(lambda m, h: h + m.inner(h), inner=inner)


def grouped(chance: Random, shape: Shape) -> nn.Module:
    groups = chance.choice([g for g in (2, 3, 4) if shape[1] % g == 0] or [0])
    need(groups > 0)
    units = groups * chance.choice((1, 2, 3))
    return convolution(len(shape) - 2)(shape[1], units, 3, padding=1, groups=groups, bias=chance.random() < 0.5)


def grouped_bottleneck(chance: Random, shape: Shape) -> nn.Module:
    layer, groups = convolution(len(shape) - 2), chance.choice((2, 3))
    units = groups * chance.choice((2, 3))
    return nn.Sequential(
        layer(shape[1], units, 1), nn.ReLU(), layer(units, units, 3, padding=1, groups=groups), nn.ReLU(),
        layer(units, width(chance), 1),
    )  # fmt: skip


def transposed(chance: Random, shape: Shape) -> nn.Module:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d)[len(shape) - 3]
    need(max(shape[2:]) <= 8)
    return layer(shape[1], width(chance), 2, stride=2, bias=chance.random() < 0.6)


def grouped_transposed(chance: Random, shape: Shape) -> nn.Module:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d)[len(shape) - 3]
    need(shape[1] % 2 == 0)
    groups = chance.choice((2, shape[1]))
    return layer(shape[1], 2 * groups if groups == 2 else groups, 3, padding=1, groups=groups)


def batch_norm(chance: Random, shape: Shape) -> nn.Module:
    tracks = chance.random() < 0.9
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 3]
    return norm(shape[1], affine=chance.random() < 0.8, track_running_stats=tracks)


def instance_norm(chance: Random, shape: Shape) -> nn.Module:
    need(min(shape[2:]) > 1)
    norm = (nn.InstanceNorm1d, nn.InstanceNorm2d)[len(shape) - 3]
    return norm(shape[1], affine=chance.random() < 0.5, track_running_stats=chance.random() < 0.3)


def layer_norm_all(chance: Random, shape: Shape) -> nn.Module:
    return nn.LayerNorm(list(shape[1:]))


def layer_norm_space(chance: Random, shape: Shape) -> nn.Module:
    need(math.prod(shape[2:]) > 1)
    return nn.LayerNorm(list(shape[2:]))


def local_response(chance: Random, shape: Shape) -> nn.Module:
    return nn.LocalResponseNorm(3)


def squeeze_excite(chance: Random, shape: Shape) -> nn.Module:
    layer, units = convolution(len(shape) - 2), chance.choice((2, 3, 4))
    space = tuple(range(2, len(shape)))
    return Net(
        lambda m, h: h * m.up(m.down(h.mean(space, keepdim=True)).relu()).sigmoid(),
        down=layer(shape[1], units, 1), up=layer(units, shape[1], 1),
    )  # fmt: skip


def dense_gate(chance: Random, shape: Shape) -> nn.Module:
    """Squeeze and excitation through dense layers."""
    units = chance.choice((2, 3, 4))

    def forward(m: Any, h: Tensor) -> Tensor:
        gate = m.up(m.down(h.flatten(2).mean(2)).relu()).sigmoid()
        return (
            h * gate.view(*gate.shape, *(1,) * (h.dim() - 2)) if chosen else h * gate[(..., *(None,) * (h.dim() - 2))]
        )

    chosen = chance.random() < 0.5
    return Net(forward, down=nn.Linear(shape[1], units), up=nn.Linear(units, shape[1]))


def modulation(chance: Random, shape: Shape) -> nn.Module:
    """Scale and shift of each channel, both from one dense layer on the pooled channels."""

    def forward(m: Any, h: Tensor) -> Tensor:
        pooled = h.flatten(2).mean(2)
        scale, shift = m.both(pooled).chunk(2, 1)
        one = (..., *(None,) * (h.dim() - 2))
        return h * (1 + scale[one]) + shift[one]

    return Net(forward, both=nn.Linear(shape[1], 2 * shape[1]))


def spatial_gate(chance: Random, shape: Shape) -> nn.Module:
    layer = convolution(len(shape) - 2)
    return Net(
        lambda m, h: h * m.gate(torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], 1)).sigmoid(),
        gate=layer(2, 1, 3, padding=1),
    )  # fmt: skip


def one_channel_gate(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: h * m.gate(h).sigmoid(), gate=convolution(len(shape) - 2)(shape[1], 1, 1))


def channel_gate(chance: Random, shape: Shape) -> nn.Module:
    """Efficient channel attention: a small convolution along the channels."""

    def forward(m: Any, h: Tensor) -> Tensor:
        pooled = h.flatten(2).mean(2).unsqueeze(1)
        gate = m.conv(pooled).sigmoid().transpose(1, 2)
        return h * gate.view(*gate.shape[:2], *(1,) * (h.dim() - 2))

    return Net(forward, conv=nn.Conv1d(1, 1, 3, padding=1, bias=False))


def pool(chance: Random, shape: Shape) -> nn.Module:
    need(min(shape[2:]) >= 2)
    one = len(shape) == 3
    options: list[Callable[[], nn.Module]] = [
        lambda: (nn.MaxPool1d if one else nn.MaxPool2d)(2),
        lambda: (nn.AvgPool1d if one else nn.AvgPool2d)(2, ceil_mode=True),
        lambda: (nn.AdaptiveAvgPool1d if one else nn.AdaptiveAvgPool2d)(2),
        lambda: (nn.AdaptiveMaxPool1d if one else nn.AdaptiveMaxPool2d)(2),
        lambda: (nn.LPPool1d if one else nn.LPPool2d)(2, 2),
    ]
    return chance.choice(options)()


def resize(chance: Random, shape: Shape) -> nn.Module:
    need(max(shape[2:]) <= 8)
    modes = ("nearest", "linear") if len(shape) == 3 else ("nearest", "bilinear", "bicubic", "nearest-exact")
    return nn.Upsample(scale_factor=2, mode=chance.choice(modes))


def pad(chance: Random, shape: Shape) -> nn.Module:
    mode = chance.choice(("constant", "replicate", "circular", "reflect"))
    need(min(shape[2:]) > 1)
    return Net(lambda m, h: F.pad(h, (1, 1) * (h.dim() - 2), mode=mode))


def crop(chance: Random, shape: Shape) -> nn.Module:
    need(min(shape[2:]) > 2)
    return Net(lambda m, h: h[..., 1:])


def subsampled(chance: Random, shape: Shape) -> nn.Module:
    need(min(shape[2:]) > 1)
    return Net(lambda m, h: h[..., ::2])


def space_flip(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: h.flip(-1) + h.roll(1, -1))


def space_shift(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: h + m.position, position=parameter(1, 1, *shape[2:]))


def unet(chance: Random, shape: Shape) -> nn.Module:
    """Down, up and a concatenation across."""
    need(min(shape[2:]) >= 2 and all(size % 2 == 0 for size in shape[2:]))
    layer, units = convolution(len(shape) - 2), width(chance)
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d)[len(shape) - 3]
    return Net(
        lambda m, h: m.join(torch.cat([h, m.up(m.down(h).relu())], 1)),
        down=layer(shape[1], units, 2, 2), up=up(units, 4, 2, 2), join=layer(shape[1] + 4, width(chance), 1),
    )  # fmt: skip


def pyramid(chance: Random, shape: Shape) -> nn.Module:
    """Two scales summed after a resize."""
    need(min(shape[2:]) >= 2)
    layer = convolution(len(shape) - 2)
    return Net(
        lambda m, h: m.fine(h) + F.interpolate(m.coarse(h), size=h.shape[2:]), fine=layer(shape[1], 6, 1),
        coarse=layer(shape[1], 6, 2, 2),
    )  # fmt: skip


def padded_shortcut(chance: Random, shape: Shape) -> nn.Module:
    """Residual sum whose shortcut is strided and padded with zero channels."""
    extra = 2
    layer = convolution(len(shape) - 2)

    def forward(m: Any, h: Tensor) -> Tensor:
        small = h[(slice(None), slice(None), *(slice(None, None, 2),) * (h.dim() - 2))]
        return F.pad(small, (*(0, 0) * (h.dim() - 2), 1, 1)) + m.inner(h)

    return Net(forward, inner=layer(shape[1], shape[1] + extra, 3, 2, 1))


def projected_residual(chance: Random, shape: Shape) -> nn.Module:
    layer = convolution(len(shape) - 2)
    units = width(chance)
    return Net(
        lambda m, h: (m.second(m.first(h).relu()) + m.shortcut(h)).relu(), first=layer(shape[1], units, 3, padding=1),
        second=layer(units, 6, 1), shortcut=layer(shape[1], 6, 1),
    )  # fmt: skip


def inception(chance: Random, shape: Shape) -> nn.Module:
    layer = convolution(len(shape) - 2)
    branches = [nn.Sequential(layer(shape[1], width(chance), size, padding=size // 2), nn.ReLU()) for size in (1, 3, 5)]
    return Net(lambda m, h: torch.cat([branch(h) for branch in m.branches], 1), branches=nn.ModuleList(branches))


def split_branches(chance: Random, shape: Shape) -> nn.Module:
    """Half of the channels through a layer, then shuffled with the rest: ShuffleNet."""
    need(shape[1] % 2 == 0)
    layer, half = convolution(len(shape) - 2), shape[1] // 2

    def forward(m: Any, h: Tensor) -> Tensor:
        left, right = h.chunk(2, 1)
        h = torch.cat([left, m.inner(right)], 1)
        return h.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    return Net(forward, inner=nn.Sequential(layer(half, half, 1), nn.ReLU(), layer(half, half, 1)))


def cross_stage(chance: Random, shape: Shape) -> nn.Module:
    """CSP: one product split in two; one part goes deeper; all are concatenated."""
    layer = convolution(len(shape) - 2)

    def forward(m: Any, h: Tensor) -> Tensor:
        parts = list(m.wide(h).split((3, 3), 1))
        parts.append(m.deep(parts[-1]).relu())
        return m.join(torch.cat(parts, 1))

    return Net(forward, wide=layer(shape[1], 6, 1), deep=layer(3, 3, 3, padding=1), join=layer(9, width(chance), 1))


SPATIAL: dict[str, Construct] = {
    **on_channels(1),
    "conv": conv,
    "conv_norm": conv_norm,
    "functional_conv": functional_conv,
    "depthwise": depthwise,
    "depth_multiplier": depth_multiplier,
    "separable": separable,
    "inverted": inverted,
    "grouped": grouped,
    "grouped_bottleneck": grouped_bottleneck,
    "transposed": transposed,
    "grouped_transposed": grouped_transposed,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm_all": layer_norm_all,
    "layer_norm_space": layer_norm_space,
    "local_response": local_response,
    "channel_prelu": channel_prelu,
    "squeeze_excite": squeeze_excite,
    "dense_gate": dense_gate,
    "modulation": modulation,
    "spatial_gate": spatial_gate,
    "one_channel_gate": one_channel_gate,
    "channel_gate": channel_gate,
    "pool": pool,
    "resize": resize,
    "pad": pad,
    "crop": crop,
    "subsampled": subsampled,
    "space_flip": space_flip,
    "space_shift": space_shift,
    "unet": unet,
    "pyramid": pyramid,
    "padded_shortcut": padded_shortcut,
    "projected_residual": projected_residual,
    "inception": inception,
    "split_branches": split_branches,
    "cross_stage": cross_stage,
}


def pixel_shuffle(chance: Random, shape: Shape) -> nn.Module:
    need(shape[1] % 4 == 0 and max(shape[2:]) <= 8)
    return nn.PixelShuffle(2)


def pixel_unshuffle(chance: Random, shape: Shape) -> nn.Module:
    need(all(size % 2 == 0 for size in shape[2:]))
    return nn.PixelUnshuffle(2)


def channels_last_dense(chance: Random, shape: Shape) -> nn.Module:
    """ConvNeXt: depthwise, then norm and two dense layers on the last axis, a layer scale and a residual sum."""
    units = width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        inner = m.norm(m.depth(h).permute(0, 2, 3, 1))
        return h + (m.down(F.gelu(m.up(inner))) * m.gamma).permute(0, 3, 1, 2)

    return Net(
        forward, depth=nn.Conv2d(shape[1], shape[1], 3, padding=1, groups=shape[1]), norm=nn.LayerNorm(shape[1]),
        up=nn.Linear(shape[1], units), down=nn.Linear(units, shape[1]), gamma=parameter(shape[1]),
    )  # fmt: skip


def non_local(chance: Random, shape: Shape) -> nn.Module:
    """Attention over space through 1 × 1 convolutions."""
    units = width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        query, key, value = (layer(h).flatten(2) for layer in (m.query, m.key, m.value))
        mixed = value @ (query.transpose(1, 2) @ key).softmax(-1).transpose(1, 2)
        return h + m.out(mixed.unflatten(2, tuple(h.shape[2:])))

    return Net(
        forward, query=nn.Conv2d(shape[1], units, 1), key=nn.Conv2d(shape[1], units, 1),
        value=nn.Conv2d(shape[1], 6, 1), out=nn.Conv2d(6, shape[1], 1),
    )  # fmt: skip


def unfolded(chance: Random, shape: Shape) -> nn.Module:
    """A convolution as windows times a matrix."""
    need(min(shape[2:]) >= 3)
    units = width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        columns = F.unfold(h, 3, padding=1)
        return (m.weight @ columns).unflatten(2, tuple(h.shape[2:]))

    return Net(forward, weight=parameter(units, 9 * shape[1]))


def folded(chance: Random, shape: Shape) -> nn.Module:
    """A transposed convolution as a matrix times columns."""
    units, size, stride = width(chance), *chance.choice(((3, 1), (2, 2)))

    def forward(m: Any, h: Tensor) -> Tensor:
        rows, columns = ((n - 1) * stride + size for n in h.shape[2:])
        return F.fold(m.weight @ h.flatten(2), (rows, columns), size, stride=stride)

    return Net(forward, weight=parameter(units * size * size, shape[1]))


def through_depth(chance: Random, shape: Shape) -> nn.Module:
    """A 3-d convolution on one frame."""
    return Net(
        lambda m, h: m.inner(h.unsqueeze(2)).squeeze(2),
        inner=nn.Conv3d(shape[1], width(chance), (1, 3, 3), padding=(0, 1, 1)),
    )


def coordinates(chance: Random, shape: Shape) -> nn.Module:
    def forward(m: Any, h: Tensor) -> Tensor:
        grid = torch.linspace(-1, 1, h.shape[-1], dtype=h.dtype, device=h.device).expand(h.shape[0], 1, *h.shape[2:])
        return torch.cat([grid, h], 1)

    return Net(forward)


def memory_format(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: h.to(memory_format=torch.channels_last).tanh())


IMAGE: dict[str, Construct] = {
    **SPATIAL,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channels_last_dense": channels_last_dense,
    "non_local": non_local,
    "unfolded": unfolded,
    "folded": folded,
    "through_depth": through_depth,
    "coordinates": coordinates,
    "memory_format": memory_format,
}


def recurrent_signal(chance: Random, shape: Shape) -> nn.Module:
    """A recurrent layer along the signal."""
    return Net(
        lambda m, h: m.inner(h.transpose(1, 2))[0].transpose(1, 2),
        inner=nn.GRU(shape[1], chance.choice((3, 4)), batch_first=True),
    )  # fmt: skip


SIGNAL: dict[str, Construct] = {**SPATIAL, "recurrent_signal": recurrent_signal}

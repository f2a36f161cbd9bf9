"""Constructs that any kind of tensor can take: element-wise, or along the axis of its channels."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ops.constructs.base import Construct, Shape, need, parameter, plain
from tests.ops.networks import Net

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ReLU6, nn.LogSigmoid, nn.Tanhshrink, nn.RReLU, nn.PReLU,
    lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True), lambda: nn.LeakyReLU(0.2), lambda: nn.ELU(0.5, True),
    lambda: nn.GELU("tanh"), lambda: nn.Softshrink(0.1), lambda: nn.Hardshrink(0.1), lambda: nn.Threshold(0.1, -0.2),
)  # fmt: skip

FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sin, torch.cos, torch.abs, torch.square, torch.erf, torch.atan, torch.relu, torch.sigmoid, torch.expm1,
    torch.sinc, torch.asinh,
    lambda h: h.clamp(-1, 1), lambda h: torch.exp(-h * h), lambda h: h * torch.sigmoid(h), lambda h: 1 - h,
    lambda h: torch.where(h > 0, h, 0.1 * h), lambda h: torch.maximum(h, 0.5 * h), lambda h: h / (1 + h * h),
    lambda h: torch.lerp(h, h.tanh(), 0.3), lambda h: torch.addcmul(h, h, h.sigmoid()), lambda h: -h + 0.5,
    lambda h: h.masked_fill(h < 0, 0.0), lambda h: h.nan_to_num(), lambda h: h.sign() * h.abs().sqrt(),
    lambda h: torch.hypot(h, torch.ones_like(h)), lambda h: h * (h > 0), lambda h: torch.stack([h, h.tanh()]).sum(0),
    lambda h: F.threshold(h, 0.0, 0.1), lambda h: h + torch.zeros_like(h), lambda h: torch.full_like(h, 2.0) * h,
    lambda h: h.detach().clone(), lambda h: h.contiguous(), lambda h: torch.stack([h, h.sin()], -1).amax(-1),
)  # fmt: skip


def activation(chance: Random, shape: Shape) -> nn.Module:
    if chance.random() < 0.5:
        return chance.choice(ACTIVATIONS)()
    function = chance.choice(FUNCTIONS)
    return Net(lambda m, h: function(h))


def in_place(chance: Random, shape: Shape) -> nn.Module:
    def forward(m: Any, h: Tensor) -> Tensor:
        h = h.clone()
        h += 0.3
        h.mul_(0.7).tanh_()
        return torch.relu_(h) if chosen else h.clamp_(min=-0.5)

    chosen = chance.random() < 0.5
    return Net(forward)


def in_place_sum(chance: Random, shape: Shape) -> nn.Module:
    def forward(m: Any, h: Tensor) -> Tensor:
        out = h.sin()
        out += h
        out *= h.sigmoid()
        return out

    return Net(forward)


class Doubled(torch.autograd.Function):
    """An element-wise function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x.tanh()


class Summed(torch.autograd.Function):
    """A function over the channels with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(1).tanh()


def dropout(chance: Random, shape: Shape) -> nn.Module:
    options = [nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.Identity()]
    return chance.choice([*options, nn.Dropout2d(0.2)] if len(shape) == 4 else options)


def on_channels(axis: int) -> dict[str, Construct]:
    """Constructs that treat the channels in some way, for tensors whose channels lie on this axis."""

    def spread(shape: Shape) -> Shape:
        """The shape by which a per-channel parameter broadcasts."""
        return (shape[1], *(1,) * (len(shape) - 2)) if axis == 1 else (shape[-1],)

    def scale(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h * m.gamma, gamma=parameter(*spread(shape)))

    def vector_scale(chance: Random, shape: Shape) -> nn.Module:
        view = (-1, *(1,) * (len(shape) - 2)) if axis == 1 else (-1,)
        return Net(lambda m, h: m.gamma.view(view) * h, gamma=parameter(shape[axis]))

    def shift(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: m.beta + h, beta=parameter(*spread(shape)))

    def affine(chance: Random, shape: Shape) -> nn.Module:
        return Net(
            lambda m, h: torch.addcmul(m.beta, m.gamma, h),
            gamma=parameter(*spread(shape)), beta=parameter(*spread(shape)),
        )  # fmt: skip

    def full_shift(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h + m.position, position=parameter(1, *shape[1:]))

    def learnt_swish(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h * torch.sigmoid(m.beta * h), beta=parameter(*spread(shape)))

    def scalar(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h * m.gain + m.offset, gain=parameter(1), offset=nn.Parameter(torch.tensor(0.3)))

    def mask_buffer(chance: Random, shape: Shape) -> nn.Module:
        net = Net(lambda m, h: h * m.mask)
        net.register_buffer("mask", (torch.rand(spread(shape)) > 0.3) + 0.25)
        return net

    def mask_constant(chance: Random, shape: Shape) -> nn.Module:
        mask = torch.rand(spread(shape)) + 0.25
        return Net(lambda m, h: h * mask.to(h))

    def arange_mask(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h * torch.arange(1.0, h.shape[axis] + 1).to(h).view(spread(tuple(h.shape))))

    def permuted(chance: Random, shape: Shape) -> nn.Module:
        net = Net(lambda m, h: h.index_select(axis, m.order))
        net.register_buffer("order", torch.tensor(chance.sample(range(shape[axis]), shape[axis])))
        return net

    def fancy_index(chance: Random, shape: Shape) -> nn.Module:
        order = chance.sample(range(shape[axis]), shape[axis])
        return Net(lambda m, h: h.movedim(axis, 0)[order].movedim(0, axis))

    def split_sizes(chance: Random, shape: Shape) -> nn.Module:
        first = max(1, shape[axis] // 3)
        need(shape[axis] > first)
        sizes = [first, shape[axis] - first]

        def forward(m: Any, h: Tensor) -> Tensor:
            a, b = h.split(sizes, axis)
            return torch.cat([b.tanh(), a], axis)

        return Net(forward)

    def own_sizes(chance: Random, shape: Shape) -> nn.Module:
        """Parts whose sizes the module keeps; the first one divides the whole."""
        first = next((n for n in (2, 3, 1) if shape[axis] % n == 0 and shape[axis] > 3 * n), 0)
        need(first > 0)
        rest = shape[axis] - first
        second = chance.choice([n for n in range(1, rest) if first != n != rest - n])
        forms = (
            lambda m, h: h.split([m.one, m.two, m.three], axis),
            lambda m, h: h.split(m.sizes, axis),
            lambda m, h: (
                h.narrow(axis, 0, m.one),
                h.narrow(axis, m.one, m.two),
                h.narrow(axis, m.one + m.two, h.size(axis) - m.one - m.two),
            ),
            lambda m, h: h.tensor_split((m.one, m.one + m.two), axis),
        )
        split = chance.choice(forms)

        def forward(m: Any, h: Tensor) -> Tensor:
            one, two, three = split(m, h)
            return torch.cat([two.tanh(), three, one.sin()], axis)

        net = Net(forward)
        net.one, net.two, net.three = first, second, shape[axis] - first - second
        net.sizes = (net.one, net.two, net.three)
        return net

    def equal_sizes(chance: Random, shape: Shape) -> nn.Module:
        """Equal parts of one size that the module keeps, and what is left over."""
        size = shape[axis] // chance.choice((2, 3))
        need(size > 1)
        forms = (
            lambda m, h: h.split((m.size, m.size, *[h.size(axis) - 2 * m.size] * (h.size(axis) > 2 * m.size)), axis),
            lambda m, h: (
                h.narrow(axis, 0, m.size),
                h.narrow(axis, m.size, m.size),
                h.narrow(axis, 2 * m.size, h.size(axis) - 2 * m.size),
            ),
        )
        split = chance.choice(forms)

        def forward(m: Any, h: Tensor) -> Tensor:
            parts = split(m, h)
            return torch.cat([parts[1].tanh(), *parts], axis)

        net = Net(forward)
        net.size = size
        return net

    def uneven_chunks(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: torch.cat(h.chunk(3, axis)[::-1], axis))

    def assigned(chance: Random, shape: Shape) -> nn.Module:
        """Slices of a new tensor, assigned one after the other."""
        new = chance.choice((
            lambda h, n: h.new_zeros([*h.shape[:-1], n] if axis == -1 else [h.size(0), n, *h.shape[2:]]),
            lambda h, n: torch.zeros([*h.shape[:-1], n] if axis == -1 else [len(h), n, *h.shape[2:]], dtype=h.dtype),
        ))  # fmt: skip

        def forward(m: Any, h: Tensor) -> Tensor:
            channels = h.size(axis)
            out = new(h, 2 * channels)
            out.narrow(axis, 0, channels)[...] = h.tanh()
            out.narrow(axis, channels, channels).copy_(h.sin()).mul_(0.5)
            return out

        return Net(forward)

    def assigned_from(chance: Random, shape: Shape) -> nn.Module:
        """As ``assigned``, into a copy of the tensor itself, from a given channel on."""
        need(shape[axis] > 3)

        def forward(m: Any, h: Tensor) -> Tensor:
            out = h.clone()
            out.narrow(axis, m.kept, h.size(axis) - m.kept).relu_()
            return out

        net = Net(forward)
        net.kept = shape[axis] // 3
        return net

    def chunk_gate(chance: Random, shape: Shape) -> nn.Module:
        need(shape[axis] % 2 == 0)

        def forward(m: Any, h: Tensor) -> Tensor:
            a, b = h.chunk(2, axis)
            return a * b.sigmoid()

        return Net(forward)

    def glu(chance: Random, shape: Shape) -> nn.Module:
        need(shape[axis] % 2 == 0)
        return nn.GLU(axis) if chance.random() < 0.5 else Net(lambda m, h: F.glu(h, axis))

    def chunk_swap(chance: Random, shape: Shape) -> nn.Module:
        need(shape[axis] % 2 == 0)
        return Net(lambda m, h: torch.cat(h.chunk(2, axis)[::-1], axis))

    def halves_sum(chance: Random, shape: Shape) -> nn.Module:
        need(shape[axis] % 2 == 0)
        return Net(lambda m, h: sum(h.chunk(2, axis)))

    def first_half(chance: Random, shape: Shape) -> nn.Module:
        need(shape[axis] > 1)
        number = shape[axis] // 2
        return Net(lambda m, h: h.narrow(axis, 0, number))

    def last_dropped(chance: Random, shape: Shape) -> nn.Module:
        need(shape[axis] > 1)
        return Net(lambda m, h: h.narrow(axis, 0, h.shape[axis] - 1))

    def every_other(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h.movedim(axis, 0)[::2].movedim(0, axis))

    def one_changed(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            h = h.clone()
            h.select(axis, 0).mul_(2)
            return h

        return Net(forward)

    def grouped_view(chance: Random, shape: Shape) -> nn.Module:
        groups = chance.choice((2, 3, 4))
        need(shape[axis] % groups == 0)
        rest = chance.choice((-1, shape[axis] // groups))
        return Net(lambda m, h: h.movedim(axis, -1).unflatten(-1, (groups, rest)).sum(-2).movedim(-1, axis))

    def max_out(chance: Random, shape: Shape) -> nn.Module:
        need(shape[axis] % 2 == 0)
        return Net(lambda m, h: h.movedim(axis, -1).unflatten(-1, (-1, 2)).amax(-1).movedim(-1, axis))

    def shuffle(chance: Random, shape: Shape) -> nn.Module:
        groups = chance.choice((2, 3))
        need(shape[axis] % groups == 0)

        def forward(m: Any, h: Tensor) -> Tensor:
            x = h.movedim(axis, -1)
            return x.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2).movedim(-1, axis)

        return Net(forward)

    def padded(chance: Random, shape: Shape) -> nn.Module:
        before, after = chance.randint(0, 2), chance.randint(1, 3)
        amounts = (0, 0) * (len(shape) - 2) + (before, after) if axis == 1 else (before, after)
        return Net(lambda m, h: F.pad(h, amounts))

    def width_scale(chance: Random, shape: Shape) -> nn.Module:
        power = chance.choice((-1.0, -0.5, 1.0))
        return Net(lambda m, h: h * h.shape[axis] ** power)

    def width_branch(chance: Random, shape: Shape) -> nn.Module:
        size = shape[axis]
        return Net(lambda m, h: h.tanh() if h.shape[axis] == size else h.sin())

    def root_mean_square(chance: Random, shape: Shape) -> nn.Module:
        return Net(
            lambda m, h: h * torch.rsqrt(h.square().mean(axis, keepdim=True) + 1e-6) * m.gamma,
            gamma=parameter(*spread(shape)),
        )  # fmt: skip

    def last_axis(norm: Callable[[int], nn.Module]) -> Construct:
        """A norm over the last axis, around which the channels are moved there."""

        def make(chance: Random, shape: Shape) -> nn.Module:
            inner = norm(shape[axis])
            return inner if axis != 1 or len(shape) == 2 else Net(_channels_last, inner=inner)

        return make

    def weighted_norm(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            deviation = h.var(axis, correction=0, keepdim=True).add(0.1).sqrt()
            return m.gamma * (h - h.mean(axis, keepdim=True)) / deviation + m.beta

        return Net(forward, gamma=parameter(*spread(shape)), beta=parameter(*spread(shape)))

    def with_constant(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: torch.cat([h, torch.ones_like(h.narrow(axis, 0, 1))], axis))

    def python_value(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h * float(h.select(axis, 0).mean()))

    def value_branch(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: h.tanh() if float(h.sum()) > 0.123 else h.sin())

    def outer_product(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            x = h.movedim(axis, -1)
            return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2).movedim(-1, axis)

        need(shape[axis] <= 4)
        return Net(forward)

    def cosine(chance: Random, shape: Shape) -> nn.Module:
        return Net(lambda m, h: F.cosine_similarity(h, torch.ones_like(h), axis).unsqueeze(axis) * h)

    def conv_over_channels(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            x = h.movedim(axis, -1)
            return h * m.conv(x.reshape(-1, 1, x.shape[-1])).sigmoid().reshape(x.shape).movedim(-1, axis)

        return Net(forward, conv=nn.Conv1d(1, 1, 3, padding=1, bias=False))

    return {
        "activation": activation,
        "in_place": in_place,
        "in_place_sum": in_place_sum,
        "custom_elementwise": plain(Doubled.apply),
        "custom_over_channels": plain(Summed.apply),
        "dropout": dropout,
        "scale": scale,
        "vector_scale": vector_scale,
        "shift": shift,
        "affine": affine,
        "full_shift": full_shift,
        "learnt_swish": learnt_swish,
        "scalar": scalar,
        "mask_buffer": mask_buffer,
        "mask_constant": mask_constant,
        "arange_mask": arange_mask,
        "permuted": permuted,
        "fancy_index": fancy_index,
        "flip": plain(lambda h: h.flip(axis)),
        "add_flip": plain(lambda h: h + h.flip(axis)),
        "roll": plain(lambda h: h.roll(1, axis)),
        "split_sizes": split_sizes,
        "own_sizes": own_sizes,
        "equal_sizes": equal_sizes,
        "uneven_chunks": uneven_chunks,
        "assigned": assigned,
        "assigned_from": assigned_from,
        "chunk_gate": chunk_gate,
        "glu": glu,
        "chunk_swap": chunk_swap,
        "halves_sum": halves_sum,
        "first_half": first_half,
        "last_dropped": last_dropped,
        "every_other": every_other,
        "one_changed": one_changed,
        "grouped_view": grouped_view,
        "max_out": max_out,
        "shuffle": shuffle,
        "padded": padded,
        "width_scale": width_scale,
        "width_branch": width_branch,
        "layer_norm": last_axis(nn.LayerNorm),
        "layer_norm_plain": last_axis(lambda size: nn.LayerNorm(size, elementwise_affine=False)),
        "rms_norm": last_axis(nn.RMSNorm),
        "root_mean_square": root_mean_square,
        "weighted_norm": weighted_norm,
        "normalize": plain(lambda h: F.normalize(h, dim=axis)),
        "mean_subtract": plain(lambda h: h - h.mean(axis, keepdim=True)),
        "mean_gate": plain(lambda h: h * h.mean(axis, keepdim=True).sigmoid()),
        "max_gate": plain(lambda h: h * h.amax(axis, keepdim=True).sigmoid()),
        "softmax": plain(lambda h: h.softmax(axis)),
        "softmax_gate": plain(lambda h: h * h.softmax(axis)),
        "log_sum": plain(lambda h: h - h.logsumexp(axis, keepdim=True)),
        "cumsum": plain(lambda h: h.cumsum(axis)),
        "sort": plain(lambda h: h.sort(axis).values),
        "top": plain(lambda h: h.topk(min(3, h.shape[axis]), axis).values),
        "argmax_gate": plain(lambda h: h * (1 + h.argmax(axis, keepdim=True))),
        "fourier": plain(lambda h: torch.fft.fft(h, dim=axis).real),
        "cat_self": plain(lambda h: torch.cat([h, h], axis)),
        "crelu": plain(lambda h: torch.cat([h.relu(), (-h).relu()], axis)),
        "cat_thrice": plain(lambda h: torch.cat([h, h.tanh(), h], axis)),
        "repeat": plain(lambda h: h.movedim(axis, -1).repeat(*(1,) * (h.dim() - 1), 2).movedim(-1, axis)),
        "repeat_interleave": plain(lambda h: h.repeat_interleave(2, axis)),
        "stack_interleave": plain(lambda h: torch.stack([h, h.sin()], axis + 1 if axis > 0 else -1).flatten(
            *((axis, axis + 1) if axis > 0 else (-2, -1)))),
        "unbind_stack": plain(lambda h: torch.stack(h.unbind(axis), axis)),
        "flatten_back": plain(lambda h: h.flatten().view(h.shape)),
        "through_rows": plain(lambda h: h.movedim(axis, -1).reshape(-1, h.shape[axis]).tanh().reshape(
            h.movedim(axis, -1).shape).movedim(-1, axis)),
        "to_and_fro": plain(lambda h: h.movedim(axis, 0).contiguous().movedim(0, axis)),
        "with_constant": with_constant,
        "python_value": python_value,
        "value_branch": value_branch,
        "outer_product": outer_product,
        "cosine": cosine,
        "conv_over_channels": conv_over_channels,
    }  # fmt: skip


def _channels_last(m: Any, h: Tensor) -> Tensor:
    return m.inner(h.movedim(1, -1)).movedim(-1, 1)

"""Constructs whose code does what operators do not show: it reads sizes, modes and what earlier passes left."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from tests.ops.constructs.base import Construct, Shape, parameter
from tests.ops.networks import Net


class Along(nn.Module):
    """A dense layer along one axis."""

    def __init__(self, axis: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.axis, self.dense = axis, nn.Linear(inputs, outputs)

    def forward(self, h: Tensor) -> Tensor:
        return self.dense(h.movedim(self.axis, -1)).movedim(-1, self.axis)


class Hooked(nn.Module):
    """Registers a hook in its first pass, and relies on what the hook keeps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.ready = inner, False
        self.kept: list[Tensor] = []

    def forward(self, h: Tensor) -> Tensor:
        if not self.ready:
            self.inner.register_forward_hook(lambda module, args, out: self.kept.append(out))
            self.ready = True
        self.kept.clear()
        self.inner(h)
        return sum(self.kept).tanh()  # type: ignore[union-attr]


class OwnMode(Net):
    """Keeps the mode under a name of its own."""

    noisy = True

    def train(self, mode: bool = True) -> OwnMode:
        self.noisy = mode
        return super().train(mode)


def in_training(m: Any) -> bool:
    return bool(m.training)


def on_hidden(axis: int) -> dict[str, Construct]:
    """What can follow a tensor with its channels on this axis."""

    def along(inputs: int, outputs: int) -> nn.Module:
        return Along(axis, inputs, outputs)

    def with_scale(function: Callable[..., Tensor], kind: type[Net] = Net) -> Construct:
        """``function(m, h)`` with a dense layer and a scale for each of its units."""

        def construct(chance: Random, shape: Shape) -> nn.Module:
            sizes = [1] * len(shape)
            sizes[axis] = 6
            return kind(function, a=along(shape[axis], 6), scale=parameter(*sizes))

        return construct

    def halves(h: Tensor) -> Tensor:
        return torch.cat([0 * h.narrow(axis, 0, 3), 2 * h.narrow(axis, 3, 3)], axis)

    def size_slice(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            x, y = m.a(h).movedim(axis, 0), m.b(h).movedim(axis, 0)
            n = y.size(0)
            return torch.cat([x[:n].relu(), x[n:].tanh(), y], 0).movedim(0, axis)

        return Net(forward, a=along(shape[axis], 7), b=along(shape[axis], 3))

    def size_ratio(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            x, y = m.a(h).relu(), m.b(h).tanh()
            return torch.cat([x * (y.size(axis) / x.size(axis)), y], axis)

        return Net(forward, a=along(shape[axis], 6), b=along(shape[axis], 6))

    def size_view(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            x = m.a(h).relu()
            return m.b(x).reshape(x.size()).relu()

        return Net(forward, a=along(shape[axis], 6), b=along(6, 6))

    def size_reduction(chance: Random, shape: Shape) -> nn.Module:
        """Spatial-reduction attention: what one layer makes is viewed in the size of another."""

        def forward(m: Any, h: Tensor) -> Tensor:
            x = m.a(h).movedim(axis, -1)
            rows, channels = x.shape[0], x.shape[-1]
            y = m.b(x.reshape(rows, -1, channels)).transpose(1, 2).reshape(rows, channels, -1).mean(-1)
            return m.a(h) * m.c(y).sigmoid().view(rows, *[1] * (h.dim() - 2), -1).movedim(-1, axis)

        return Net(forward, a=along(shape[axis], 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6))

    def shape_shortcut(chance: Random, shape: Shape) -> nn.Module:
        stem, inner = chance.choice(((8, 6), (5, 8), (6, 4)))

        def forward(m: Any, h: Tensor) -> Tensor:
            x = m.stem(h).relu()
            y = m.b(m.a(x).relu())
            if x.shape != y.shape:
                x = m.short(x)
            return (x + y).relu()

        return Net(
            forward, stem=along(shape[axis], stem), a=along(stem, 3), b=along(3, inner), short=along(stem, inner)
        )

    def module_shortcut(chance: Random, shape: Shape) -> nn.Module:
        """As ``shape_shortcut``, but it is the modules that are asked for their sizes."""
        stem, inner = chance.choice(((8, 6), (5, 8), (6, 4)))

        def forward(m: Any, h: Tensor) -> Tensor:
            x = m.stem(h).relu()
            y = m.b(m.a(x).relu())
            return ((m.short(x) if m.a.dense.in_features != m.b.dense.out_features else x) + y).relu()

        return Net(
            forward, stem=along(shape[axis], stem), a=along(stem, 3), b=along(3, inner), short=along(stem, inner)
        )

    def size_threshold(chance: Random, shape: Shape) -> nn.Module:
        bound = chance.choice((2, 4, 9))
        return Net(lambda m, h: (h.tanh() if (y := m.a(h)).size(axis) > bound else h.sin()) + m.b(y), a=along(
            shape[axis], 6), b=along(6, shape[axis]))  # fmt: skip

    def size_parity(chance: Random, shape: Shape) -> nn.Module:
        def forward(m: Any, h: Tensor) -> Tensor:
            x = m.a(h)
            return x.tanh() if x.shape[axis] % 3 == 0 else x.sin()

        return Net(forward, a=along(shape[axis], 6))

    return {
        "size_slice": size_slice,
        "size_ratio": size_ratio,
        "size_view": size_view,
        "size_reduction": size_reduction,
        "shape_shortcut": shape_shortcut,
        "module_shortcut": module_shortcut,
        "size_threshold": size_threshold,
        "size_parity": size_parity,
        "mode_helper": with_scale(lambda m, h: m.a(h) * m.scale if in_training(m) else m.a(h)),
        "mode_position": with_scale(lambda m, h: halves(m.a(h)) if in_training(m) else m.a(h)),
        "mode_own_name": with_scale(lambda m, h: halves(m.a(h)) if m.noisy else m.a(h), OwnMode),
        "grad_mode": with_scale(lambda m, h: m.a(h) * m.scale if torch.is_grad_enabled() else m.a(h)),
        "hooked": lambda chance, shape: Hooked(along(shape[axis], 6)),
    }

"""Networks with blocks that follow each other, in containers of several kinds; and some whose blocks cannot change."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.resnet import BasicBlock

from network_surgery.study.task.gpt import GPT
from tests.ops.networks import Net, liven


class Residual(nn.Module):
    """``x + last(first(x))``."""

    def __init__(self, width: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.last(self.first(self.norm(x)).relu()))


class Cached(Residual):
    """Writes into the slot of a cache that its number names, as attention with a cache of keys and values does."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config.width)
        self.config, self.layer_idx = config, layer_idx

    def forward(self, x: Tensor, cache: list[Tensor | None]) -> tuple[Tensor]:  # type: ignore[override]
        assert cache[self.layer_idx] is None
        cache[self.layer_idx] = x
        return (super().forward(x),)


class Configured(nn.Module):
    """Counts its layers as models of ``transformers`` do."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.config = SimpleNamespace(width=6, num_hidden_layers=layers, num_attention_heads=layers)
        self.layers = nn.ModuleList(Cached(self.config, at) for at in range(layers))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        cache: list[Tensor | None] = [None] * self.config.num_hidden_layers
        for layer in self.layers[: self.config.num_hidden_layers]:
            (x,) = layer(x, cache)
        assert all(each is not None for each in cache)
        return self.out(x)


def looped() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        for block in m.blocks:
            x = block(x)
        return m.out(x)

    return Net(forward, blocks=nn.ModuleList(Residual() for _ in range(3)), out=nn.Linear(6, 3))


def conv_stage() -> nn.Module:
    """A stage as of ResNets, whose first block changes the shape."""
    shorter = nn.Sequential(nn.Conv2d(2, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
    stage = nn.Sequential(BasicBlock(2, 6, 2, shorter), BasicBlock(6, 6), BasicBlock(6, 6))
    return Net(lambda m, x: m.out(m.stage(x).mean((2, 3))), stage=stage, out=nn.Linear(6, 3))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.1, norm_first=True, batch_first=True)
    return Net(lambda m, x: m.out(m.encoder(x)), encoder=nn.TransformerEncoder(layer, 2), out=nn.Linear(8, 3))


def root() -> nn.Module:
    """The network itself is the container."""
    return nn.Sequential(nn.Linear(5, 6), Residual(), Residual(), nn.Linear(6, 3))


def single() -> nn.Module:
    return Net(lambda m, x: m.out(m.blocks(x)), blocks=nn.Sequential(Residual()), out=nn.Linear(6, 3))


def vit() -> nn.Module:
    return VisionTransformer(8, 4, 2, 2, 8, 12, num_classes=3)


FLAT, IMAGE, SEQUENCE = (2, 6), (2, 2, 8, 8), (2, 5, 8)

#: Name → (factory, shape of the example, stacks with their blocks).
STACKED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "looped": (looped, FLAT, {"blocks": 3}),
    "configured": (Configured, FLAT, {"layers": 3}),
    "conv_stage": (conv_stage, IMAGE, {"stage": 2}),
    "encoder": (encoder, SEQUENCE, {"encoder.layers": 2}),
    "root": (root, (2, 5), {"1": 2}),
    "single": (single, FLAT, {"blocks": 1}),
    "vit": (vit, (2, 3, 8, 8), {"encoder.layers": 2}),
    "gpt": (lambda: GPT(11, 8, width=8, heads=2), (2, 8), {"blocks": 2}),
}  # fmt: skip


def build(name: str, batch: int = 8) -> tuple[nn.Module, Tensor]:
    """A network by name with fresh seeded weights, lively running statistics and an example input."""
    factory, shape, _ = STACKED[name]
    torch.manual_seed(7)
    model = liven(factory())
    if name == "vit":
        nn.init.normal_(model.heads.head.weight)
    inputs = torch.randn(batch, *shape[1:])
    return model, torch.randint(11, (batch, *shape[1:])) if name == "gpt" else inputs


def small_resnet() -> nn.Module:
    return resnet18(num_classes=3)


def _blocks(forward: Callable[[Any, Tensor], Tensor], number: int = 3, **more: nn.Module) -> nn.Module:
    return Net(forward, blocks=nn.ModuleList(Residual() for _ in range(number)), out=nn.Linear(6, 3), **more)


def indexed() -> nn.Module:
    """Takes its blocks by number."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for at in range(3):
            x = m.blocks[at](x)
        return m.out(x)

    return _blocks(forward)


def paired() -> nn.Module:
    """Each block has a norm in another list."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for at, block in enumerate(m.blocks):
            x = block(m.norms[at](x) if at else x)
        return m.out(x)

    return _blocks(forward, norms=nn.ModuleList(nn.LayerNorm(6) for _ in range(3)))


def experts() -> nn.Module:
    return _blocks(lambda m, x: m.out(sum(block(x) for block in m.blocks)))


def shared() -> nn.Module:
    block = Residual()
    return Net(lambda m, x: m.out(m.blocks(x)), blocks=nn.Sequential(block, block), out=nn.Linear(6, 3))


def twice() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        for block in (*m.blocks, *m.blocks):
            x = block(x)
        return m.out(x)

    return _blocks(forward)


def named() -> nn.Module:
    blocks = nn.Sequential()
    for name in ("lower", "upper"):
        blocks.add_module(name, Residual())
    return Net(lambda m, x: m.out(m.blocks(x)), blocks=blocks, out=nn.Linear(6, 3))


def tapped() -> nn.Module:
    """Returns what each block makes."""

    def forward(m: Any, x: Tensor) -> list[Tensor]:
        made = []
        for block in m.blocks:
            x = block(x)
            made.append(x)
        return [m.out(x), *made]

    return _blocks(forward)


#: Name → (factory, why its blocks cannot be more or fewer).
PINNED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "indexed": (indexed, "takes no block more: of 4 blocks it runs 3"),
    "paired": (paired, "do not follow each other"),
    "experts": (experts, "do not follow each other"),
    "shared": (shared, "holds one module several times"),
    "twice": (twice, "is called 2 times in a pass"),
    "named": (named, "not numbered, but called lower, upper"),
    "tapped": (tapped, "output has another shape"),
}

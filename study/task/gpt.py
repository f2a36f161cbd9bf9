"""A small GPT whose heads and MLP widths are layers that surgery can change.

Sources: the blocks are those of Touvron et al. 2023, *LLaMA*, section 2.2: RMSNorm before each part (Zhang and Sennrich
2019), rotary positions (Su et al. 2021), SwiGLU (Shazeer 2020); or GELU in its place, as in Radford et al. 2019.

Queries, keys, values and the output each have a projection of their own, and the number of heads is read off the
weights' sizes, so a head is a unit that can go. What a head is wide (rotary positions pair its entries) stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

#: The base of the rotary angles (Su et al. 2021, section 3.2.2).
BASE = 10_000.0


class Attention(nn.Module):
    """Causal attention of ``heads`` heads, ``[n, T, width]`` to the same, with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_size = width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (self._split(each(x)) for each in (self.query, self.key, self.value))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """``[n, T, heads · head_size]`` to ``[n, heads, T, head_size]``."""
        return x.unflatten(2, (-1, self.head_size)).transpose(1, 2)


class SwiGLU(nn.Module):
    """Two dense layers, the first of them gated by a third: ``down(silu(gate(x)) · up(x))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


class GELU(nn.Module):
    """Two dense layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width), mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Scores of the next symbol, ``[n, T, vocabulary]``, for symbols ``[n, T]`` (int64, T up to ``context``)."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, vocabulary: int, context: int, width: int = 48, depth: int = 2, heads: int = 4, gated: bool = True
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            # A gated MLP has three matrices: two thirds of the width cost what two matrices of the whole do.
            Block(width, heads, SwiGLU(width, 8 * width // 3) if gated else GELU(width, 4 * width))
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        cos, sin = angles(context, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:  # as in GPT-2: what adds to the stream is smaller, the more of it there are
                last = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if last else 0.02)

    def forward(self, symbols: Tensor) -> Tensor:
        x, length = self.embedding(symbols), symbols.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return self.head(self.norm(x))


def angles(context: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, ``[context, size / 2]`` each."""
    turns = BASE ** -(torch.arange(0, size, 2) / size)
    phase = torch.arange(context).unsqueeze(1) * turns
    return phase.cos(), phase.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of entries of ``[n, heads, T, size]`` by the angle of its position."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


#: The networks by name. ``gpt`` has 80,112 parameters at 256 symbols; ``gpt_10m`` is of the size of nanoGPT's for
#: characters (6 blocks of width 384).
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "gpt": GPT,
    "gpt_gelu": partial(GPT, gated=False),
    "gpt_10m": partial(GPT, width=384, depth=6, heads=6),
}

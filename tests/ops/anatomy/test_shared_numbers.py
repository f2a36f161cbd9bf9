"""A number that a module keeps can be as long as heads and as a stream that cannot change; whose it is, is tried."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, MinWeight, operate
from tests.ops.properties import examine, lively, outputs

WIDTH, HEADS = 24, 3


class Product(nn.Module):
    """A dense layer as GPT-2 has it, which writes down how many outputs it has."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.nf = units
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, units) / inputs**0.5),
            nn.Parameter(torch.randn(units)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Tied(nn.Module):
    """Attention between an embedding and an output that share one matrix: the stream's width is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.joint, self.out, self.width = Product(WIDTH, 3 * WIDTH), Product(WIDTH, WIDTH), WIDTH // HEADS

    def forward(self, words: Tensor) -> Tensor:
        stream = self.embedding(words)
        parts = (part.unflatten(2, (-1, self.width)).transpose(1, 2) for part in self.joint(stream).chunk(3, dim=2))
        seen = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return (stream + self.out(seen)) @ self.embedding.weight.T


def test_heads_as_wide_as_a_stream_that_stays() -> None:
    torch.manual_seed(0)
    words = torch.randint(11, (2, 7))
    model = lively(Tied().double(), words)
    anatomy = Anatomy(model, words)
    (heads,) = (layer for name, layer in anatomy.items() if name.endswith(":heads"))
    assert heads.units == HEADS and heads.exact
    assert not examine(anatomy, words).broken
    operate(heads, MinWeight(2 / 3))
    assert (model.joint.nf, model.out.nf) == (3 * 2 * 8, WIDTH)
    assert outputs(model, words)[0].shape == (2, 7, 11)

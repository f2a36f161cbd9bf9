"""Constructs on sequences: attention in many hands, recurrent layers, token mixing."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from network_surgery.ops import free_attention
from tests.ops.constructs.base import Construct, Shape, need, parameter, width
from tests.ops.constructs.channels import on_channels
from tests.ops.constructs.dense import DENSE
from tests.ops.constructs.picking import learned_queries, learned_state, packed, picked
from tests.ops.networks import Net


def _heads(chance: Random) -> tuple[int, int]:
    """Heads and the width of each."""
    return chance.choice((1, 2, 2, 3)), chance.choice((2, 3, 4))


def fused_attention(chance: Random, shape: Shape) -> nn.Module:
    """One product for query, key and value, as in ViT."""
    (heads, size), channels = _heads(chance), shape[2]
    scaled = chance.random() < 0.5

    def forward(m: Any, h: Tensor) -> Tensor:
        batch, length, _ = h.shape
        query, key, value = m.qkv(h).reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        if scaled:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = (query * size**-0.5 @ key.transpose(-2, -1)).softmax(-1) @ value
        return m.out(out.transpose(1, 2).reshape(batch, length, -1))

    return Net(forward, qkv=nn.Linear(channels, 3 * heads * size), out=nn.Linear(heads * size, channels))


def fixed_attention(chance: Random, shape: Shape) -> nn.Module:
    """As many hands write it: every size is spelled out."""
    (heads, size), channels = _heads(chance), shape[2]

    def forward(m: Any, h: Tensor) -> Tensor:
        batch, length, _ = h.shape
        query, key, value = m.qkv(h).split(heads * size, dim=2)
        query = query.view(batch, length, heads, size).transpose(1, 2)
        key = key.view(batch, length, heads, size).transpose(1, 2)
        value = value.view(batch, length, heads, size).transpose(1, 2)
        weights = F.softmax(query @ key.transpose(-2, -1) * size**-0.5, dim=-1)
        return m.out((weights @ value).transpose(1, 2).contiguous().view(batch, length, heads * size))

    return Net(forward, qkv=nn.Linear(channels, 3 * heads * size, bias=False), out=nn.Linear(heads * size, channels))


def separate_attention(chance: Random, shape: Shape) -> nn.Module:
    """Three products, heads by view, fused kernel; sometimes causal."""
    (heads, size), channels = _heads(chance), shape[2]
    causal = chance.random() < 0.5
    scale = chance.choice((None, size**-0.5))

    def forward(m: Any, h: Tensor) -> Tensor:
        query, key, value = (layer(h).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (m.query, m.key, m.value))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
        return m.out(out.transpose(1, 2).flatten(2))

    inner = heads * size
    return Net(
        forward, query=nn.Linear(channels, inner), key=nn.Linear(channels, inner), value=nn.Linear(channels, inner),
        out=nn.Linear(inner, channels),
    )  # fmt: skip


def batched_attention(chance: Random, shape: Shape) -> nn.Module:
    """Heads folded into the batch, ``torch.bmm``."""
    (heads, size), channels = _heads(chance), shape[2]

    def forward(m: Any, h: Tensor) -> Tensor:
        batch, length, _ = h.shape

        def folded(x: Tensor) -> Tensor:
            return x.view(batch, length, heads, -1).transpose(1, 2).reshape(batch * heads, length, -1)

        query, key, value = folded(m.query(h)), folded(m.key(h)), folded(m.value(h))
        weights = torch.bmm(query, key.transpose(1, 2)).mul(size**-0.5).softmax(-1)
        out = torch.bmm(weights, value).view(batch, heads, length, -1).transpose(1, 2)
        return m.out(out.reshape(batch, length, -1))

    inner = heads * size
    return Net(
        forward, query=nn.Linear(channels, inner), key=nn.Linear(channels, inner, bias=False),
        value=nn.Linear(channels, inner), out=nn.Linear(inner, channels),
    )  # fmt: skip


def einsum_attention(chance: Random, shape: Shape) -> nn.Module:
    """Raw weights with an axis for the heads."""
    (heads, size), channels = _heads(chance), shape[2]

    def forward(m: Any, h: Tensor) -> Tensor:
        query = torch.einsum("btc,chd->bthd", h, m.query)
        key = torch.einsum("btc,chd->bthd", h, m.key)
        value = torch.einsum("btc,chd->bthd", h, m.value)
        weights = (torch.einsum("bqhd,bkhd->bhqk", query, key) * 0.5).softmax(-1)
        return torch.einsum("bhqk,bkhd,hdc->bqc", weights, value, m.out)

    form = (channels, heads, size)
    return Net(
        forward, query=parameter(*form), key=parameter(*form), value=parameter(*form),
        out=parameter(heads, size, channels),
    )  # fmt: skip


def grouped_query_attention(chance: Random, shape: Shape) -> nn.Module:
    """Several query heads share a key and value head."""
    groups, share, size, channels = chance.choice((1, 2)), 2, chance.choice((2, 3)), shape[2]
    heads = groups * share

    def forward(m: Any, h: Tensor) -> Tensor:
        query = m.query(h).unflatten(-1, (heads, size)).transpose(1, 2)
        key = m.key(h).unflatten(-1, (groups, size)).transpose(1, 2).repeat_interleave(share, dim=1)
        value = m.value(h).unflatten(-1, (groups, size)).transpose(1, 2)
        value = value[:, :, None].expand(-1, -1, share, -1, -1).flatten(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, scale=0.6)
        return m.out(out.transpose(1, 2).flatten(2))

    return Net(
        forward, query=nn.Linear(channels, heads * size), key=nn.Linear(channels, groups * size),
        value=nn.Linear(channels, groups * size), out=nn.Linear(heads * size, channels, bias=False),
    )  # fmt: skip


def single_head(chance: Random, shape: Shape) -> nn.Module:
    size, channels = chance.choice((3, 4, 6)), shape[2]

    def forward(m: Any, h: Tensor) -> Tensor:
        weights = (m.query(h) @ m.key(h).transpose(1, 2) / 2).softmax(-1)
        return h + m.out(weights @ m.value(h))

    return Net(
        forward, query=nn.Linear(channels, size), key=nn.Linear(channels, size), value=nn.Linear(channels, 5),
        out=nn.Linear(5, channels),
    )  # fmt: skip


def cross_attention(chance: Random, shape: Shape) -> nn.Module:
    """Learnt queries read the sequence."""
    size, channels, number = chance.choice((3, 4)), shape[2], 2

    def forward(m: Any, h: Tensor) -> Tensor:
        weights = (m.queries @ m.key(h).transpose(1, 2)).softmax(-1)
        return weights @ m.value(h)

    return Net(forward, queries=parameter(number, size), key=nn.Linear(channels, size), value=nn.Linear(channels, 6))


def biased_attention(chance: Random, shape: Shape) -> nn.Module:
    """A learnt bias for each head and pair of positions, and a mask."""
    (heads, size), (_, length, channels) = _heads(chance), shape

    def forward(m: Any, h: Tensor) -> Tensor:
        query, key, value = m.qkv(h).view(*h.shape[:2], 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.mT + m.bias
        hidden = torch.ones(length, length, dtype=torch.bool, device=h.device).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return m.out((weights @ value).transpose(1, 2).flatten(2))

    return Net(
        forward, qkv=nn.Linear(channels, 3 * heads * size), bias=parameter(heads, length, length),
        out=nn.Linear(heads * size, channels),
    )  # fmt: skip


def rotary_attention(chance: Random, shape: Shape) -> nn.Module:
    """Pairs of query and key entries are turned by their position."""
    heads, size, channels = chance.choice((1, 2)), chance.choice((2, 4)), shape[2]

    def turned(x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[-2]), 0.5 ** torch.arange(size // 2)).to(x)
        cosine, sine = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
        left, right = x.chunk(2, -1)
        return x * cosine + torch.cat([-right, left], -1) * sine

    def forward(m: Any, h: Tensor) -> Tensor:
        query, key, value = (layer(h).unflatten(-1, (heads, size)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        weights = (turned(query) @ turned(key).mT * 0.5).softmax(-1)
        return m.out((weights @ value).transpose(1, 2).flatten(2))

    inner = heads * size
    return Net(
        forward, q=nn.Linear(channels, inner), k=nn.Linear(channels, inner), v=nn.Linear(channels, inner),
        out=nn.Linear(inner, channels),
    )  # fmt: skip


def normed_attention(chance: Random, shape: Shape) -> nn.Module:
    """A norm over each head's query and key."""
    (heads, size), channels = _heads(chance), shape[2]

    def forward(m: Any, h: Tensor) -> Tensor:
        query, key, value = m.qkv(h).unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(m.query_norm(query), m.key_norm(key), value)
        return m.out(out.transpose(1, 2).flatten(2))

    return Net(
        forward, qkv=nn.Linear(channels, 3 * heads * size), query_norm=nn.LayerNorm(size), key_norm=nn.RMSNorm(size),
        out=nn.Linear(heads * size, channels),
    )  # fmt: skip


def linear_attention(chance: Random, shape: Shape) -> nn.Module:
    size, channels = chance.choice((3, 4)), shape[2]

    def forward(m: Any, h: Tensor) -> Tensor:
        query, key = F.elu(m.query(h)) + 1, F.elu(m.key(h)) + 1
        memory = torch.einsum("btk,btv->bkv", key, m.value(h))
        norm = torch.einsum("btk,bk->bt", query, key.sum(1)).unsqueeze(-1)
        return m.out(torch.einsum("btk,bkv->btv", query, memory) / norm)

    return Net(
        forward, query=nn.Linear(channels, size), key=nn.Linear(channels, size), value=nn.Linear(channels, 5),
        out=nn.Linear(5, channels),
    )  # fmt: skip


def multihead(chance: Random, shape: Shape) -> nn.Module:
    """``nn.MultiheadAttention`` on itself, freed or as it is."""
    heads = chance.choice([h for h in (1, 2, 3) if shape[2] % h == 0])
    first, weights = chance.random() < 0.6, chance.random() < 0.5
    inner = nn.MultiheadAttention(shape[2], heads, batch_first=first, bias=chance.random() < 0.7)

    def forward(m: Any, h: Tensor) -> Tensor:
        x = h if first else h.transpose(0, 1)
        out = m.inner(x, x, x, need_weights=weights)[0]
        return out if first else out.transpose(0, 1)

    return Net(forward, inner=free_attention(inner) if first else inner)


def encoder_layer(chance: Random, shape: Shape) -> nn.Module:
    need(shape[2] > 1)
    heads = chance.choice([h for h in (1, 2, 3) if shape[2] % h == 0])
    layer = nn.TransformerEncoderLayer(
        shape[2], heads, dim_feedforward=width(chance), batch_first=True, norm_first=chance.random() < 0.5,
        activation=chance.choice(("relu", "gelu")),
    )  # fmt: skip
    return free_attention(layer)


def decoder_layer(chance: Random, shape: Shape) -> nn.Module:
    need(shape[2] > 1)
    heads = chance.choice([h for h in (1, 2) if shape[2] % h == 0])
    inner = nn.TransformerDecoderLayer(shape[2], heads, dim_feedforward=width(chance), batch_first=True)
    return Net(lambda m, h: m.inner(h, h.flip(1)), inner=free_attention(inner))


def feed_forward(chance: Random, shape: Shape) -> nn.Module:
    """Norm, two dense layers and a residual sum."""
    units, norm = width(chance), chance.choice((nn.LayerNorm, nn.RMSNorm))
    return Net(
        lambda m, h: h + m.down(F.gelu(m.up(m.norm(h)))), norm=norm(shape[2]), up=nn.Linear(shape[2], units),
        down=nn.Linear(units, shape[2]),
    )  # fmt: skip


def transformer_block(chance: Random, shape: Shape) -> nn.Module:
    attention = chance.choice((fused_attention, fixed_attention, separate_attention, batched_attention))
    return Net(
        lambda m, h: m.feed(h + m.attention(m.norm(h))), norm=nn.LayerNorm(shape[2]),
        attention=attention(chance, shape), feed=feed_forward(chance, shape),
    )  # fmt: skip


def token_mixing(chance: Random, shape: Shape) -> nn.Module:
    """A dense layer along the sequence: MLP-Mixer."""
    length, units = shape[1], width(chance)
    return Net(
        lambda m, h: h + m.down(m.up(h.transpose(1, 2)).relu()).transpose(1, 2), up=nn.Linear(length, units),
        down=nn.Linear(units, length),
    )  # fmt: skip


def step_conv(chance: Random, shape: Shape) -> nn.Module:
    return Net(
        lambda m, h: m.inner(h.transpose(1, 2)).transpose(1, 2), inner=nn.Conv1d(shape[2], width(chance), 3, padding=1)
    )


def positions(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: h + m.position[: h.shape[1]], position=parameter(shape[1] + 1, shape[2]))


def embedded_positions(chance: Random, shape: Shape) -> nn.Module:
    return Net(
        lambda m, h: h + m.position(torch.arange(h.shape[1], device=h.device)),
        position=nn.Embedding(shape[1], shape[2]),
    )  # fmt: skip


def learnt_token(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: torch.cat([m.token.expand(len(h), 1, -1), h], 1), token=parameter(1, 1, shape[2]))


def recurrent(chance: Random, shape: Shape) -> nn.Module:
    kind = chance.choice((nn.LSTM, nn.GRU, nn.RNN))
    both, layers = chance.random() < 0.3, chance.choice((1, 1, 2))
    return Net(
        lambda m, h: m.inner(h)[0],
        inner=kind(shape[2], chance.choice((3, 4)), layers, batch_first=True, bidirectional=both),
    )


def projected_recurrent(chance: Random, shape: Shape) -> nn.Module:
    return Net(lambda m, h: m.inner(h)[0], inner=nn.LSTM(shape[2], 4, batch_first=True, proj_size=3))


def recurrent_cell(chance: Random, shape: Shape) -> nn.Module:
    """A cell in a loop over the steps."""
    units, kind = chance.choice((3, 4)), chance.choice((nn.RNNCell, nn.GRUCell, nn.LSTMCell))

    def forward(m: Any, h: Tensor) -> Tensor:
        state: Any = None
        steps = []
        for step in h.unbind(1):
            state = m.cell(step, state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(steps, 1)

    return Net(forward, cell=kind(shape[2], units))


def hand_written_gates(chance: Random, shape: Shape) -> nn.Module:
    """An LSTM by hand: four gates of one product."""
    units = chance.choice((3, 4))

    def forward(m: Any, h: Tensor) -> Tensor:
        state = memory = torch.zeros(len(h), units, dtype=h.dtype, device=h.device) if fixed else m.start(h[:, 0])
        steps = []
        for t in range(h.shape[1]):
            gates = m.read(h[:, t]) + m.again(state)
            come, forget, change, out = gates.chunk(4, 1)
            memory = forget.sigmoid() * memory + come.sigmoid() * change.tanh()
            state = out.sigmoid() * memory.tanh()
            steps.append(state)
        return torch.stack(steps, 1)

    fixed = chance.random() < 0.5
    parts = {"read": nn.Linear(shape[2], 4 * units), "again": nn.Linear(units, 4 * units, bias=False)}
    return Net(forward, **parts, **({} if fixed else {"start": nn.Linear(shape[2], units)}))


def state_space(chance: Random, shape: Shape) -> nn.Module:
    """A diagonal linear recurrence."""
    units = chance.choice((3, 4, 6))

    def forward(m: Any, h: Tensor) -> Tensor:
        x, decay = m.read(h), m.decay.sigmoid()
        state, steps = torch.zeros_like(x[:, 0]), []
        for t in range(h.shape[1]):
            state = decay * state + x[:, t]
            steps.append(state)
        return m.out(torch.stack(steps, 1))

    return Net(forward, read=nn.Linear(shape[2], units), decay=parameter(units), out=nn.Linear(units, shape[2]))


SEQUENCE: dict[str, Construct] = {
    **on_channels(-1),
    **DENSE,
    **picked(1),
    "packed": packed,
    "learned_state": learned_state,
    "learned_queries": learned_queries,
    "fused_attention": fused_attention,
    "fixed_attention": fixed_attention,
    "separate_attention": separate_attention,
    "batched_attention": batched_attention,
    "einsum_attention": einsum_attention,
    "grouped_query_attention": grouped_query_attention,
    "single_head": single_head,
    "cross_attention": cross_attention,
    "biased_attention": biased_attention,
    "rotary_attention": rotary_attention,
    "normed_attention": normed_attention,
    "linear_attention": linear_attention,
    "multihead": multihead,
    "encoder_layer": encoder_layer,
    "decoder_layer": decoder_layer,
    "feed_forward": feed_forward,
    "transformer_block": transformer_block,
    "token_mixing": token_mixing,
    "step_conv": step_conv,
    "positions": positions,
    "embedded_positions": embedded_positions,
    "learnt_token": learnt_token,
    "recurrent": recurrent,
    "projected_recurrent": projected_recurrent,
    "recurrent_cell": recurrent_cell,
    "hand_written_gates": hand_written_gates,
    "state_space": state_space,
}

"""Constructs that pick, sum or put rows by their positions: graph networks, routed experts, packed sequences."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from tests.ops.constructs.base import Construct, Shape, parameter, width
from tests.ops.networks import Net


def picked(dim: int) -> dict[str, Construct]:
    """Constructs that work along this dimension of a tensor, whose last one holds the channels."""

    def edges(shape: Shape) -> tuple[Tensor, Tensor]:
        return torch.randint(shape[dim], (7,)), torch.randint(shape[dim], (7,))

    def graph(sum_up: Any) -> Construct:
        """A layer of a graph network: ``sum_up(h, messages, targets)`` gathers the messages along the edges."""

        def make(chance: Random, shape: Shape) -> nn.Module:
            sources, targets = edges(shape)

            def forward(m: Any, h: Tensor) -> Tensor:
                h = m.inner(h)
                at = (slice(None),) * dim + (sources,)
                messages = h[at] if chosen else h.index_select(dim, sources)
                return sum_up(h, messages.tanh(), targets) + h

            chosen = chance.random() < 0.5
            return Net(forward, inner=nn.Linear(shape[-1], width(chance)))

        return make

    def spread(targets: Tensor, like: Tensor) -> Tensor:
        return targets.view(*(1,) * dim, -1, *(1,) * (like.dim() - dim - 1)).expand_as(like)

    def put(h: Tensor, messages: Tensor, targets: Tensor) -> Tensor:
        at = (slice(None),) * dim + (targets,)
        return torch.zeros_like(h).index_put(
            tuple(torch.arange(h.size(0)).view(-1, 1) if s == slice(None) else s for s in at), messages, accumulate=True
        )

    def sparse_product(chance: Random, shape: Shape) -> nn.Module:
        """Neighbours summed by a sparse matrix; it is a buffer."""
        nodes = shape[dim]
        matrix = (torch.rand(nodes, nodes) > 0.5) + torch.eye(nodes)

        def forward(m: Any, h: Tensor) -> Tensor:
            rows = m.inner(h).movedim(dim, 0)
            return (m.matrix @ rows.flatten(1)).view(rows.shape).movedim(0, dim)

        net = Net(forward, inner=nn.Linear(shape[-1], width(chance)))
        net.register_buffer("matrix", matrix.to_sparse().coalesce() if chance.random() < 0.5 else matrix)
        return net

    def gathered(chance: Random, shape: Shape) -> nn.Module:
        """Rows in another order, by ``gather``."""
        order = torch.tensor([chance.randrange(shape[dim]) for _ in range(shape[dim])])
        forms = (lambda h: h.gather(dim, spread(order, h)), lambda h: h.take_along_dim(spread(order, h), dim))
        form = chance.choice(forms)
        return Net(lambda m, h: h + form(h).tanh())

    def table_rows(chance: Random, shape: Shape) -> nn.Module:
        """A row of a table, picked by number, is added to each row."""
        numbers = torch.tensor([chance.randrange(9) for _ in range(shape[dim])])

        def forward(m: Any, h: Tensor) -> Tensor:
            rows = m.table[numbers] if chosen else m.table.index_select(0, numbers)
            return h + (rows if dim == h.dim() - 2 else rows.unsqueeze(1)).tanh()

        chosen = chance.random() < 0.5
        return Net(forward, table=parameter(9, shape[-1]))

    def picked_weights(chance: Random, shape: Shape) -> nn.Module:
        """Each row times the matrix of its expert, which is picked by number."""
        units = width(chance)

        def forward(m: Any, h: Tensor) -> Tensor:
            rows = h.reshape(-1, h.size(-1))
            best = m.router(rows).argmax(-1)
            inner = torch.bmm(m.up[best], rows.unsqueeze(-1)).tanh()
            return torch.bmm(m.down[best], inner).squeeze(-1).view_as(h) + h

        return Net(
            forward, router=nn.Linear(shape[-1], 3), up=parameter(3, units, shape[-1]),
            down=parameter(3, shape[-1], units),
        )  # fmt: skip

    def put_rows(chance: Random, shape: Shape) -> nn.Module:
        """Some rows in place of others: by a mask, by a slice, by their number."""
        mask = torch.rand(shape[dim]) > 0.4

        def masked(h: Tensor, rows: Tensor) -> Tensor:
            return h.masked_scatter(mask.view(*(1,) * dim, -1, *(1,) * (h.dim() - dim - 1)).expand_as(h), rows)

        forms = (
            masked,
            lambda h, rows: torch.slice_scatter(h, rows.narrow(dim, 0, 1), dim, 0, 1),
            lambda h, rows: torch.select_scatter(h, rows.select(dim, 0), dim, 0),
            lambda h, rows: torch.where(mask.view(*(1,) * dim, -1, *(1,) * (h.dim() - dim - 1)), h, rows),
            lambda h, rows: h.index_fill(dim, torch.tensor([0]), 0.5) + rows,
        )
        form = chance.choice(forms)
        return Net(lambda m, h: form(h, m.inner(h).tanh()), inner=nn.Linear(shape[-1], shape[-1]))

    def sorted_rows(chance: Random, shape: Shape) -> nn.Module:
        forms = (
            lambda h: h.sort(dim).values,
            lambda h: h.topk(h.size(dim), dim).values,
            lambda h: h.gather(dim, h.argsort(dim)),
            lambda h: h.median(dim, keepdim=True).values + h,
            lambda h: h.cummax(dim).values,
        )
        form = chance.choice(forms)
        return Net(lambda m, h: form(h))

    def stored(chance: Random, shape: Shape) -> nn.Module:
        """Rows written into a new tensor, one by one."""

        def forward(m: Any, h: Tensor) -> Tensor:
            out = torch.empty_like(h)
            for number in range(h.size(dim)):
                out.select(dim, number).copy_(h.select(dim, number).tanh())
            return out

        return Net(forward)

    def routed_rows(chance: Random, shape: Shape) -> nn.Module:
        """Each row through the expert of its largest logit, weighted by it."""
        units, into = width(chance), chance.random() < 0.5

        def forward(m: Any, h: Tensor) -> Tensor:
            rows = h.reshape(-1, h.size(-1))
            best = m.router(rows).softmax(-1).max(-1)
            out = torch.zeros_like(rows)
            for number, expert in enumerate(m.experts):
                if into:
                    chosen = best.indices == number
                    out[chosen] = out[chosen] + best.values[chosen].unsqueeze(1) * expert(rows[chosen])
                else:
                    (at,) = torch.where(best.indices == number)
                    out.index_add_(0, at, best.values[at, None] * expert(rows[at]))
            return out.view_as(h) + h

        experts = [nn.Sequential(nn.Linear(shape[-1], units), nn.Tanh(), nn.Linear(units, shape[-1])) for _ in range(2)]
        return Net(forward, router=nn.Linear(shape[-1], 2), experts=nn.ModuleList(experts))

    return {
        "graph_index_add": graph(lambda h, x, at: torch.zeros_like(h).index_add_(dim, at, x)),
        "graph_index_reduce": graph(lambda h, x, at: h.index_reduce(dim, at, x, "amax", include_self=False)),
        "graph_scatter_add": graph(lambda h, x, at: torch.zeros_like(h).scatter_add(dim, spread(at, x), x)),
        "graph_scatter_mean": graph(lambda h, x, at: h.scatter_reduce(dim, spread(at, x), x, "mean")),
        "graph_scatter_max": graph(
            lambda h, x, at: h.new_full(h.shape, -1.0).scatter_reduce(dim, spread(at, x), x, "amax")
        ),
        "graph_put": graph(put),
        "sparse_product": sparse_product,
        "gathered": gathered,
        "table_rows": table_rows,
        "picked_weights": picked_weights,
        "put_rows": put_rows,
        "sorted_rows": sorted_rows,
        "stored": stored,
        "routed_rows": routed_rows,
    }


def packed(chance: Random, shape: Shape) -> nn.Module:
    """A recurrent layer on sequences of several lengths."""
    both, layers, units = chance.random() < 0.5, chance.choice((1, 1, 2)), width(chance)
    kind = chance.choice((nn.LSTM, nn.GRU, nn.RNN))
    lengths = torch.tensor([shape[1] - 1, *[shape[1]] * (shape[0] - 1)])

    def forward(m: Any, h: Tensor) -> Tensor:
        steps = rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(m.inner(steps)[0], batch_first=True)[0]

    return Net(forward, inner=kind(shape[2], units, layers, batch_first=True, bidirectional=both))


def learned_state(chance: Random, shape: Shape) -> nn.Module:
    """A recurrent layer whose first state is a parameter."""
    both, layers, units = chance.random() < 0.5, chance.choice((1, 1, 2)), width(chance)
    kind = chance.choice((nn.LSTM, nn.GRU))
    repeats = chance.random() < 0.5

    def forward(m: Any, h: Tensor) -> Tensor:
        first = m.first.repeat(1, len(h), 1) if repeats else m.first.expand(-1, len(h), -1).contiguous()
        return m.inner(h, (first, first.tanh()) if kind is nn.LSTM else first)[0]

    return Net(
        forward, inner=kind(shape[2], units, layers, batch_first=True, bidirectional=both),
        first=parameter(layers * (1 + both), 1, units),
    )  # fmt: skip


def learned_queries(chance: Random, shape: Shape) -> nn.Module:
    """Learned rows that attend to the sequence."""
    units = width(chance)

    def forward(m: Any, h: Tensor) -> Tensor:
        rows = m.rows.expand(len(h), -1, -1)
        return rows + F.scaled_dot_product_attention(m.query(rows), m.key(h), m.value(h))

    return Net(
        forward, rows=parameter(1, 3, units), query=nn.Linear(units, 4), key=nn.Linear(shape[2], 4),
        value=nn.Linear(shape[2], units),
    )  # fmt: skip

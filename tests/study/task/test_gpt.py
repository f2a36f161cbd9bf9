"""The small GPT: causal, with rotary positions, and cut at its heads and MLP widths without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, MeanReplace, Signals, WeakExpand, ZeroExpand, operate
from network_surgery.study.task.gpt import GPT, NETWORKS, Attention, angles, rotate


def small(gated: bool = True) -> tuple[GPT, torch.Tensor]:
    return GPT(30, 16, width=24, depth=2, heads=3, gated=gated).double(), torch.randint(30, (2, 16))


@pytest.mark.parametrize("gated", [True, False])
def test_no_position_sees_what_follows(gated: bool) -> None:
    model, symbols = small(gated)
    other = symbols.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 30
    before, after = model(symbols), model(other)
    torch.testing.assert_close(after[:, :9], before[:, :9])
    assert not torch.allclose(after[:, 9:], before[:, 9:])
    torch.testing.assert_close(model(symbols[:, :5]), before[:, :5])


def test_attention_against_the_formula() -> None:
    attention, x = Attention(12, 3).double(), torch.randn(2, 7, 12).double()
    cos, sin = (each.double() for each in angles(7, 4))
    query, key, value = (each(x).view(2, 7, 3, 4) for each in (attention.query, attention.key, attention.value))
    wanted = torch.zeros(2, 7, 3, 4).double()
    for head in range(3):
        q, k = (rotate(each[:, None, :, head], cos, sin)[:, 0] for each in (query, key))
        scores = (q @ k.transpose(1, 2) / 2).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        wanted[:, :, head] = scores.softmax(dim=-1) @ value[:, :, head]
    torch.testing.assert_close(attention(x, cos, sin), attention.output(wanted.flatten(2)))


def test_rotary_scores_hang_on_distances_alone() -> None:
    cos, sin = angles(40, 8)
    query, key = torch.randn(8), torch.randn(8)

    def score(one: int, other: int) -> torch.Tensor:
        turned = [rotate(x[None], cos[at], sin[at])[0] for x, at in ((query, one), (key, other))]
        return turned[0] @ turned[1]

    torch.testing.assert_close(score(5, 2), score(33, 30))
    assert not torch.isclose(score(5, 2), score(5, 3))


@pytest.mark.parametrize(("gated", "mlp"), [(True, "gate"), (False, "up")])
def test_heads_and_mlp_widths_are_exact_layers(gated: bool, mlp: str) -> None:
    model, symbols = small(gated)
    anatomy = Anatomy(model, symbols)
    layers = {name: (layer.units, layer.exact) for name, layer in anatomy.items()}
    width = 64 if gated else 96
    assert layers == {
        "embedding": (24, False),  # its RMSNorms take a mean over it
        "blocks.0.attention.query:heads": (3, True), f"blocks.0.mlp.{mlp}": (width, True),
        "blocks.1.attention.query:heads": (3, True), f"blocks.1.mlp.{mlp}": (width, True),
    }  # fmt: skip
    assert anatomy.pinned["head"] == "it is the network's output"


@pytest.mark.parametrize("layer", ["blocks.0.attention.query:heads", "blocks.1.mlp.gate"])
def test_growing_changes_nothing_and_cutting_a_silent_unit_neither(layer: str) -> None:
    model, symbols = small()
    wanted = model(symbols)
    anatomy = Anatomy(model, symbols)
    for operation in (WeakExpand(0.5), ZeroExpand(0.5)):
        operate(anatomy[layer], operation)
        torch.testing.assert_close(model(symbols), wanted)
    units = anatomy[layer].units
    signals = Signals(model, symbols, symbols.roll(-1, 1), lambda out, y: nn.functional.cross_entropy(out.mT, y))
    operate(anatomy[layer], MeanReplace(keep=(units - 1) / units), signals=signals)  # one that nobody hears yet
    assert anatomy[layer].units == units - 1
    torch.testing.assert_close(model(symbols), wanted)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "gpt_10m"])
def test_networks_by_name(name: str) -> None:
    model = NETWORKS[name](256, 64)
    assert model(torch.randint(256, (3, 64))).shape == (3, 64, 256)
    assert 50_000 < sum(parameter.numel() for parameter in model.parameters()) < 120_000

"""Networks whose buffers come with the first forward pass: what ``save`` wrote, ``load`` takes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, MinWeight, PruneWeights, SurgeryError, adopt, describe, load, operate, save


class Late(nn.Module):
    """Multiplies by a buffer that its first forward pass makes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "none":
            self.register_buffer("factor", None, persistent=False)
        elif kind == "empty":
            self.register_buffer("factor", torch.empty(0))
        elif kind == "attribute":
            self.factor: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("none", "empty"):
            if self.factor is None or not self.factor.numel():
                self.factor = torch.rand(x.shape[-2:])
        elif self.kind == "attribute" and "factor" not in self._buffers:
            del self.factor
            self.register_buffer("factor", torch.rand(x.size(-1)), persistent=False)
        elif not hasattr(self, "factor"):
            values = torch.rand(x.size(-1))
            if self.kind == "whole numbers":
                values = (9 * values).long() + 1
            self.register_buffer("factor", values, persistent=self.kind == "persistent")
        return x * self.factor


KINDS = ("persistent", "passing", "whole numbers", "none", "empty", "attribute")


def network(kind: str, run: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(11, 6), Late(kind), nn.Linear(6, 8), Late(kind), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(4),
        nn.Linear(5, 3),
    )  # fmt: skip
    if run:
        model.eval()(tokens())
        model.train()
    return model


def tokens() -> Tensor:
    return torch.arange(12).view(3, 4) % 11


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fresh", [False, True], ids=["plain factory", "factory that runs"])
@pytest.mark.parametrize("when", ["never", "before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_load_takes_what_save_wrote(kind: str, when: str, fresh: bool, masked: bool, tmp_path: Path) -> None:
    model = network(kind, run=when == "before")
    anatomy = Anatomy(model, tokens())
    for name in list(anatomy):
        operate(anatomy[name], MinWeight(0.6))
    if when == "before":  # its buffer belongs to the units, and goes with them
        assert "2" in anatomy and model[3].factor.shape[-1] == model[2].out_features == 5
    if masked:
        operate(anatomy["*"], PruneWeights(0.3))
    if when == "after":
        model.eval()(tokens())
    save(model, tmp_path / "net.pt")
    if when == "never" and fresh and kind == "attribute":
        return  # nothing tells what its buffer was before
    loaded = load(lambda: network(kind, fresh), tmp_path / "net.pt")
    if when != "never":
        assert torch.equal(loaded.eval()(tokens()), model.eval()(tokens()))
        assert list(loaded.state_dict()) == list(model.state_dict())
    assert describe(loaded.eval()) == describe(model)
    loaded(tokens())
    if when == "before":
        assert Anatomy(loaded, tokens()).keys() == anatomy.keys()
    again = copy.deepcopy(loaded)
    adopt(again, describe(loaded))
    assert describe(again) == describe(loaded)


def test_a_network_that_takes_an_architecture_makes_its_late_buffers_itself() -> None:
    model = network("passing", run=True)
    operate(Anatomy(model, tokens())["2"], MinWeight(0.5))
    other = network("passing")
    adopt(other, describe(model))
    assert not other[3]._buffers
    other.eval()(tokens())
    assert len(other[3].factor) == 4 and (other[3].factor > 0).any()


def test_what_is_missing_is_still_refused() -> None:
    with pytest.raises(SurgeryError, match=r"of another network: .* is on one side only"):
        adopt(nn.Sequential(nn.Linear(6, 8)), describe(network("persistent", run=True)))
    described = describe(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
    with pytest.raises(SurgeryError, match=r"of another network: 1\.bias, .* is on one side only"):
        adopt(nn.Sequential(nn.Linear(6, 8)), described)

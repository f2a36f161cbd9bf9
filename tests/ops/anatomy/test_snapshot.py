"""What an internal pass leaves: nothing, whatever the forward pass does to the network and to what hangs on it."""

from __future__ import annotations

import collections
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, MinWeight, Signals, SurgeryError, measure
from network_surgery.ops.anatomy import count
from tests.ops.constructs.hidden import Hooked


class Box:
    """Something of the user's that a module keeps."""

    def __init__(self) -> None:
        self.calls, self.deep = 0, {"a": [1, {"b": [2]}]}


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Restless(nn.Module):
    """Changes everything that it can reach, most of it in its first pass."""

    history: list[int] = []  # noqa: RUF012  # of the class, on purpose
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.box, self.slotted, self.first = Box(), Slotted(), True
        self.nested: Any = {"k": [[], {"d": collections.deque(maxlen=3)}]}
        self.ordered, self.counter = collections.OrderedDict(a=1, b=2), collections.Counter("ab")
        self.generator, self.chance = torch.Generator().manual_seed(3), random.Random(1)
        self.numbers, self.array = numpy.random.default_rng(2), numpy.zeros(3)
        self.unlisted, self.memory = [nn.BatchNorm1d(3)], torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            self.first = False
            self.hidden.register_forward_hook(lambda m, a, out: 2 * out)
            self.hidden.register_forward_hook(lambda m, a, k, out: out, with_kwargs=True, always_call=True)
            self.out.register_forward_pre_hook(lambda m, a, k: (a, k), with_kwargs=True)
            self.out.register_full_backward_hook(lambda m, a, out: None)
            self.register_state_dict_post_hook(lambda *a: None)
            self.register_state_dict_pre_hook(lambda *a: None)
            self.register_load_state_dict_post_hook(lambda *a: None)
            self.register_load_state_dict_pre_hook(lambda *a: None)
            nn.modules.module.register_module_forward_hook(lambda m, a, out: None)
            self.register_buffer("late", torch.ones(2))
            self.register_buffer("unsaved", torch.ones(2), persistent=False)
            self.extra, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
        Restless.history.append(1)
        type(self).calls += 1
        self.box.calls += 1
        self.box.deep["a"][1]["b"].append(3)  # type: ignore[index]
        self.slotted.calls += 1
        self.nested["k"][0].append(x)
        self.nested["k"][1]["d"].append(1)
        self.ordered.move_to_end("a")
        self.counter["a"] += 1
        self.memory += 1
        self.array += 1
        self.unlisted[0].running_mean += 1
        self.hidden.weight.requires_grad_(False)
        noise = torch.rand(1, generator=self.generator) + self.chance.random() + self.numbers.random()
        return self.out(self.norm(self.hidden(x)).relu()) * noise


def everything(model: Restless) -> str:
    """All that ``Restless`` may change, as text."""
    whole = nn.modules.module
    kept = [
        {k: list(v) if isinstance(v, (dict, set)) else repr(v) for k, v in vars(module).items()}
        for module in (*model.modules(), *model.unlisted)
    ]
    tables = [len(v) for k, v in vars(whole).items() if k.startswith("_global_") and isinstance(v, dict)]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    chance = model.generator.get_state().sum(), model.chance.getstate(), model.numbers.bit_generator.state
    mine = Restless.history, Restless.calls, vars(model.box), model.slotted.calls, model.unlisted[0].running_mean
    return repr((kept, tables, flags, chance, mine))


@pytest.mark.parametrize("action", ["anatomy", "signals", "count", "measure"])
def test_nothing_is_left(action: str) -> None:
    model, x = Restless(), torch.randn(4, 5)
    anatomy = Anatomy(model, x) if action == "measure" else None
    before = everything(model)
    if action == "anatomy":
        assert list(Anatomy(model, x)) == ["hidden"]
    elif action == "signals":
        Signals(model, x)
    elif action == "count":
        count(model, x)
    elif anatomy is not None:
        measure(MinWeight(0.5).propose(anatomy["hidden"]), x)
    assert everything(model) == before


def test_hooks_of_the_first_pass_work_and_go() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), Hooked(nn.Linear(8, 6)), nn.Linear(6, 2)), torch.randn(4, 5)
    assert list(Anatomy(model, x)) == ["0", "1.inner"]
    assert not model[1].inner._forward_hooks
    once = model(x)
    assert len(model[1].inner._forward_hooks) == 1
    Anatomy(model, x)
    assert len(model[1].inner._forward_hooks) == 1 and torch.equal(model(x), once)


def test_what_is_registered_late_names_the_remedy() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.hidden(x)
            if not hasattr(self, "shift"):
                self.register_buffer("shift", torch.ones(h.shape[1]))
            return self.out(h + self.shift)

    model, x = Late(), torch.randn(4, 5)
    with pytest.raises(SurgeryError, match="run the network once before"):
        Anatomy(model, x)["hidden"]
    model(x)
    assert Anatomy(model, x)["hidden"].exact

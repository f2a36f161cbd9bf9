"""Weights that lie channels last in memory do so after surgery, with all that goes with them; plain ones stay plain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import (
    PCNS,
    Anatomy,
    Compact,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Plan,
    PruneWeights,
    RandomRemove,
    RemoveDead,
    Revive,
    Signals,
    WeakExpand,
    ZeroExpand,
    apply,
    operate,
    trial_surgery,
)
from network_surgery.ops.network.layout import LAST, channels_last, laid_out
from network_surgery.ops.network.masks import masks_of

OPERATIONS = [
    RandomRemove(), MinWeight(keep=0.5), WeakExpand(grow=0.5), ZeroExpand(grow=0.5), PCNS(0.1),
    EigenRemove(weights="reduced"), MeanReplace(), RemoveDead(0.9), Revive(0.9), PruneWeights(0.3), Compact(0.2),
]  # fmt: skip
OPTIMIZERS = {
    "Adam": lambda p: optim.Adam(p, amsgrad=True), "SGD": lambda p: optim.SGD(p, lr=0.01, momentum=0.9),
    "Adafactor": optim.Adafactor, "ASGD": lambda p: optim.ASGD(p, t0=0), "Rprop": optim.Rprop,
}  # fmt: skip


def network(axes, kernel, channels=(3, 8, 6), grouped=False):
    convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 4 else (nn.Conv3d, nn.BatchNorm3d)
    first, second, third = channels
    depthwise = [convolution(second, second, 3, padding=1, groups=second)] if grouped else []
    return nn.Sequential(
        convolution(first, second, kernel, padding=kernel // 2), norm(second), nn.ReLU(), *depthwise,
        convolution(second, third, kernel, padding=kernel // 2), nn.ReLU(), nn.Flatten(1),
        nn.Linear(third * 4 ** (axes - 2), 3),
    )  # fmt: skip


def trained(axes, kernel, last, make=OPTIMIZERS["Adam"], **settings):
    torch.manual_seed(0)
    model = network(axes, kernel, **settings)
    if last:
        model = model.to(memory_format=LAST[axes])
    inputs, targets = torch.randn(16, model[0].in_channels, *[4] * (axes - 2)), torch.arange(16) % 3
    optimizer = make(model.parameters())
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    return model, optimizer, AveragedModel(model), Signals(model, inputs, targets)


def lying(model, optimizer, average):
    """All tensors of 4 and 5 axes, by name: of the network, its optimizer's state, and its average."""
    tensors = {f"{where}{name}": p for where, m in (("", model), ("a ", average)) for name, p in m.named_parameters()}
    tensors |= {f"{name} gradient": p.grad for name, p in model.named_parameters()}
    tensors |= {
        f"{name} {key}": kept for name, p in model.named_parameters() for key, kept in optimizer.state[p].items()
    }
    tensors |= {f"{name} mask": mask for name, mask in masks_of(model).items()}
    return {name: each for name, each in tensors.items() if each is not None and each.dim() in LAST}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("axes", "kernel"), [(4, 1), (4, 3), (5, 1), (5, 3)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: type(operation).__name__)
def test_tensors_lie_as_they_lay(operation, axes, kernel, last):
    model, optimizer, average, signals = trained(axes, kernel, last)
    wanted = LAST[axes] if last else torch.contiguous_format
    layer = Anatomy(model, signals.inputs[:2])["0"]
    operate(layer, operation, optimizer, signals, averages=average)
    actual = lying(model, optimizer, average)
    assert len(actual) >= 12
    assert not [name for name, each in actual.items() if not each.is_contiguous(memory_format=wanted)]
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("last", [True, False])
def test_state_and_undo(name, last):
    model, optimizer, average, signals = trained(4, 3, last, OPTIMIZERS[name], grouped=True)
    before = {key: each.stride() for key, each in lying(model, optimizer, average).items()}
    state = copy.deepcopy(optimizer.state_dict()["state"])
    layer = Anatomy(model, signals.inputs[:2])["0"]
    for operation in (MinWeight(keep=0.5), WeakExpand(grow=0.5)):
        plan = operation.propose(layer, signals)
        with trial_surgery(plan, optimizers=optimizer, averages=average):
            orders = {key: channels_last(each) for key, each in lying(model, optimizer, average).items()}
            model(signals.inputs).sum().backward()
        now = lying(model, optimizer, average)
        assert {key: each.stride() for key, each in now.items()} == before
        for key, each in now.items():
            assert None in (orders[key], channels_last(each)) or orders[key] is channels_last(each), key
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("channels", [(1, 8, 6), (3, 8, 1), (1, 2, 1)])
def test_sizes_of_one(last, channels):
    """A layer of one unit does not tell how its reader lies; the rest of the network does."""
    model, optimizer, average, signals = trained(4, 3, last, channels=channels)
    layer = Anatomy(model, signals.inputs[:2])["0"]
    apply(Plan(layer, "by hand", (0,)), optimizer, average)
    operate(layer, WeakExpand(grow=3.0), optimizer, averages=average)
    wanted = torch.channels_last if last else torch.contiguous_format
    assert model[3].weight.shape == (channels[2], 4, 3, 3)
    actual = lying(model, optimizer, average)
    ambiguous = all(channels_last(p) is None for p in model.parameters() if p.dim() == 4)
    assert ambiguous or not [name for name, each in actual.items() if not each.is_contiguous(memory_format=wanted)]


def test_laid_out():
    for shape in ((4, 3, 2, 2), (4, 1, 2, 2), (4, 3, 1, 1), (1, 3, 2, 2), (4, 3, 2, 2, 2), (4, 3, 1, 1, 1)):
        for last in (True, False):
            order = LAST[len(shape)] if last else torch.contiguous_format
            old = torch.empty(shape, memory_format=order)
            new = torch.arange(2.0 * old.numel()).view(2 * shape[0], *shape[1:])
            actual = laid_out(new, old)
            assert torch.equal(actual, new) and actual.is_contiguous(memory_format=order)
            assert channels_last(old) in ((last, None) if 1 in shape[1:] else (last,))
    assert laid_out(torch.ones(3), torch.ones(4)).shape == (3,)
    askew = torch.ones(2, 3, 4, 5).transpose(2, 3)
    assert laid_out(askew, askew) is askew

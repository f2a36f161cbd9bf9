"""Collapse through what stands between two modules: the one module that least squares find, or a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from network_surgery.ops import (
    Anatomy,
    Collapse,
    Moment,
    Plan,
    Schedule,
    Signals,
    Step,
    Stretch,
    SurgeryError,
    load,
    operate,
    save,
)

FITTED = Collapse(fitted=True)


def dense(norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 20), norm(20), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(20, 5), nn.ReLU(inplace=True),
        nn.Linear(5, 3),
    )  # fmt: skip


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 3, padding=1, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def trained(model: nn.Module, inputs: Tensor) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(4):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return optimizer


def reference(rows: Tensor, wanted: Tensor) -> tuple[Any, float]:
    """NumPy's least squares with a constant, and the norm of what it misses over that of the deviations."""
    a, b = (x.detach().double().numpy() for x in (torch.cat([rows, torch.ones(len(rows), 1)], dim=1), wanted))
    solution = np.linalg.lstsq(a, b, rcond=None)[0]
    return solution, np.linalg.norm(a @ solution - b) / np.linalg.norm(b - b.mean(axis=0))


def collapse(model: nn.Module, inputs: Any, layer: str = "0", optimizers: Any = ()) -> Plan:
    return operate(Anatomy(model, inputs)[layer], FITTED, optimizers, Signals(model, inputs))


@pytest.mark.parametrize(("shape", "norm"), [((400,), nn.BatchNorm1d), ((60, 5), nn.LayerNorm)])
def test_dense_layers_become_the_one_that_least_squares_find(
    shape: tuple[int, ...], norm: type[nn.Module], tmp_path: Path
) -> None:
    inputs, model = torch.randn(*shape, 6), dense(norm)
    optimizer, wanted = trained(model, inputs), inputs
    for module in model[:5]:
        wanted = module(wanted)
    solution, missed = reference(inputs.reshape(-1, 6), wanted.reshape(-1, 5))
    plan = collapse(model, inputs, optimizers=optimizer)
    weight, bias = model[0].weight, model[0].bias  # type: ignore[union-attr]
    np.testing.assert_allclose(torch.cat([weight, bias[:, None]], dim=1).detach().numpy().T, solution, atol=1e-5)
    assert plan.error == pytest.approx(missed, rel=1e-6) and 0.1 < missed < plan.evidence["held_out_error"] < 1
    assert [type(m) for m in model[1:6]] == [nn.Identity] * 4 + [nn.ReLU]
    assert (plan.parameters_after, plan.flops_after) == (35 + 18, 2 * (30 + 15) * len(inputs[0].view(-1, 6)))
    before = [p.clone() for p in model.parameters()]
    model.train()(inputs).square().mean().backward()
    optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    save(model, tmp_path / "net.pt")
    again = load(lambda: dense(norm), tmp_path / "net.pt")
    assert torch.equal(again.eval()(inputs), model.eval()(inputs))


def test_convolutions_become_the_one_that_least_squares_find() -> None:
    model, inputs = convolutional(), torch.randn(60, 2, 8, 8)
    optimizer = trained(model, inputs)
    wanted = model[3](model[2](model[1](model[0](inputs))))
    rows = F.unfold(inputs, 5, padding=2, stride=2).transpose(1, 2).flatten(0, 1)
    solution, missed = reference(rows, wanted.flatten(2).transpose(1, 2).flatten(0, 1))
    plan = collapse(model, inputs, optimizers=optimizer)
    one = model[0]
    assert isinstance(one, nn.Conv2d) and (one.kernel_size, one.stride, one.padding) == ((5, 5), (2, 2), (2, 2))
    np.testing.assert_allclose(one.weight.detach().flatten(1).numpy().T, solution[:-1], atol=1e-5)
    np.testing.assert_allclose(one.bias.detach().numpy(), solution[-1], atol=1e-5)  # type: ignore[union-attr]
    assert plan.error == pytest.approx(missed, rel=1e-6) and plan.evidence["samples"] == 60 * 16


def test_convolutions_over_one_axis() -> None:
    model = nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv1d(6, 4, 5, padding=2), nn.ReLU(),
                          nn.Flatten(), nn.Linear(40, 2))  # fmt: skip
    plan = collapse(model, torch.randn(30, 3, 10))
    assert model[0].kernel_size == (7,) and 0 < plan.error < 0.7  # type: ignore[operator]


def test_where_nothing_stands_between_the_fit_is_exact() -> None:
    model, inputs = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), torch.randn(80, 6)
    before = model(inputs)
    operate(Anatomy(model, inputs)["0"], Stretch(1.0))
    plan = collapse(model, inputs, "0.0")
    torch.testing.assert_close(model(inputs), before, atol=1e-5, rtol=1e-4)
    assert plan.error is not None and plan.error < 1e-6


class Net(nn.Module):
    """Two layers with something between, and a third."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 9), nn.Linear(9, 4), nn.Linear(4, 2)
        self.act, self.side, self.prelu, self.drop = nn.ReLU(), nn.Linear(6, 4), nn.PReLU(), nn.Dropout(0.5)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.o(m.act(m.b(m.a(x).relu()))), "something stands between the two that is no module of its own"),
        (lambda m, x: m.o(m.b(m.act(m.a(x)) * 2).relu()), "something stands between the two that is no module"),
        (lambda m, x: m.o(m.b(F.dropout(m.act(m.a(x)), 0.3, m.training)).relu()), "something stands between"),
        (lambda m, x: m.o(m.act(m.b(m.act(m.a(x))))), r"act \(ReLU\), which stands between, also works elsewhere"),
        (lambda m, x: m.o(m.b(m.act(m.a(x)) + m.act(m.a(x.flip(1)))).relu()), "no module of its own|works elsewhere"),
    ],
)
def test_what_no_module_does_is_refused(forward: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    model, inputs = Net(forward), torch.randn(60, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=reason):
        collapse(model, inputs, "a")
    assert type(model.act) is nn.ReLU and not model.a._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_runs_beside_the_two_stays() -> None:
    model = Net(lambda m, x: m.o((m.side(x) + m.b(m.drop(m.prelu(m.a(x))))).relu()))
    collapse(model, torch.randn(60, 6), "a")
    kinds = [type(module) for module in (model.a, model.prelu, model.drop, model.b, model.side)]
    assert kinds == [nn.Linear, nn.Identity, nn.Identity, nn.Identity, nn.Linear]


def test_what_cannot_be_fitted_is_one_sentence() -> None:
    model, inputs = dense().eval(), torch.randn(40, 6)
    layer = Anatomy(model, inputs)["0"]
    with pytest.raises(SurgeryError, match=r"Collapse\(fitted=True\) on 0 looks at outputs: give it Signals"):
        FITTED.propose(layer)
    with pytest.raises(SurgeryError, match="7 numbers for each output are fitted to 5 positions of the signals"):
        FITTED.propose(layer, Signals(model, inputs[:5]))
    with pytest.raises(SurgeryError, match="another network"):
        FITTED.propose(layer, Signals(copy.deepcopy(model), inputs))
    with pytest.raises(SurgeryError, match="fitted is 'yes', but it must be one of"):
        Collapse(fitted="yes")  # type: ignore[arg-type]
    pooled = nn.Sequential(nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    images = torch.randn(90, 2, 8, 8)
    with pytest.raises(SurgeryError, match="reads other positions than the two, as with pooling between"):
        collapse(pooled, images)


def test_schedules_have_it() -> None:
    schedule = Schedule((Step(Moment(1), "0", FITTED), Step(Moment(2), "0", Collapse())))
    data = schedule.to_data()
    assert data[0]["fitted"] is True and "fitted" not in data[1] and Schedule.from_data(data) == schedule

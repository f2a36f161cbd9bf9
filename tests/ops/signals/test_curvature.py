"""The curvature against autograd's whole Jacobians and Hessians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from network_surgery.ops import SurgeryError, weight_scores
from network_surgery.ops.signals import curvature
from network_surgery.ops.signals.brain_surgeon import BrainSurgeon
from network_surgery.ops.signals.curvature import curvature_rows, diagonal, root_times
from tests.ops.networks import Net


def dense(classes: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, classes)).double()
    return model, torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % classes


def squared(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square().flatten(1).mean(dim=1)


def whole(model: nn.Module, names: list[str], inputs: Tensor, targets: Tensor, loss: Any) -> Tensor:
    """``mean Jᵀ ∇²L J`` over all entries of some parameters."""
    model.eval()
    weights = {name: model.get_parameter(name).detach() for name in names}
    total = sum(weight.numel() for weight in weights.values())
    found = torch.zeros(total, total, dtype=torch.float64)
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        jacobians = torch.func.jacrev(lambda at, x=x: torch.func.functional_call(model, at, x)[0].flatten())(weights)
        jacobian = torch.cat([each.flatten(1) for each in jacobians.values()], dim=1)
        output = model(x).detach()
        hessian = torch.func.hessian(lambda z, y=y: loss(z, y).mean())(output).reshape(output.numel(), -1)
        found += jacobian.T @ hessian @ jacobian / len(inputs)
    return found


def products(rows: list[dict[str, Tensor]]) -> Tensor:
    flat = torch.cat([torch.cat([each.flatten(1) for each in part.values()], dim=1) for part in rows])
    return flat.T @ flat


@pytest.mark.parametrize("most", [1, 1 << 22])
@pytest.mark.parametrize("loss", [F.cross_entropy, None, squared])
def test_rows_against_whole_jacobians(loss: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "MOST", most)
    model, inputs, targets = dense()
    if loss is squared:
        targets = torch.randn(12, 3, dtype=torch.float64)
    names = ["0.weight", "3.weight", "3.bias"]
    wanted = whole(model, names, inputs, targets, loss or F.cross_entropy)
    rows = list(curvature_rows(model.train(), names, inputs, targets, loss))
    torch.testing.assert_close(products(rows), wanted)
    diagonals = torch.cat([each.flatten() for each in diagonal(iter(rows)).values()])
    torch.testing.assert_close(diagonals, wanted.diag())
    assert model.training


def test_a_linear_layer_under_the_squared_error_has_its_very_hessian() -> None:
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(4, 3).double(), torch.randn(20, 4).double(), torch.randn(20, 3).double()

    def loss_of(flat: Tensor) -> Tensor:
        return squared(F.linear(inputs, flat.view(3, 4), model.bias), targets).mean()

    wanted = torch.func.hessian(loss_of)(model.weight.detach().flatten())
    torch.testing.assert_close(products(list(curvature_rows(model, ["weight"], inputs, targets, squared))), wanted)


@pytest.mark.parametrize("loss", [None, squared])
def test_of_large_outputs_draws_come_near_in_the_mean(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets = dense(40)
    if loss is squared:
        targets = torch.randn(12, 40, dtype=torch.float64)
    wanted = whole(model, ["0.weight"], inputs, targets, loss or F.cross_entropy).diag().view(5, 4)
    few = diagonal(curvature_rows(model, ["0.weight"], inputs, targets, loss))["0.weight"]
    other = diagonal(curvature_rows(model, ["0.weight"], inputs, targets, loss, seed=1))["0.weight"]
    assert not torch.equal(few, other)
    monkeypatch.setattr(curvature, "DRAWS", 400)
    many = diagonal(curvature_rows(model, ["0.weight"], inputs, targets, loss))["0.weight"]
    torch.testing.assert_close(many, wanted, rtol=0.15, atol=0)


def test_the_root_by_lanczos_against_eigenvalues() -> None:
    torch.manual_seed(1)
    rows, vectors = torch.randn(4, 3, 9, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    matrices = rows.mT @ rows  # of rank 3, so the steps end before the last
    vectors[3], matrices[2] = 0, torch.eye(9, dtype=torch.float64) * 2
    values, turns = torch.linalg.eigh(matrices)
    wanted = torch.einsum("vij,vj,vkj,vk->vi", turns, values.clamp(min=0).sqrt(), turns, vectors)
    found = root_times(lambda each: torch.einsum("vij,vj->vi", matrices, each), vectors)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_network_that_cannot_be_vectorized_has_its_curvature_all_the_same() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.hidden(x)
        return m.out(h if float(h.detach().mean()) > 100 else h.tanh())  # a value that leaves the tensors

    model = Net(forward, hidden=nn.Linear(4, 5), out=nn.Linear(5, 3)).double()
    inputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    plain = nn.Sequential(model.hidden, nn.Tanh(), model.out)
    found = diagonal(curvature_rows(model, ["hidden.weight"], inputs, targets))["hidden.weight"]
    torch.testing.assert_close(found, diagonal(curvature_rows(plain, ["0.weight"], inputs, targets))["0.weight"])


def test_convolutions_are_parted_by_units_and_put_together_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 3)).double()
    inputs, targets = torch.randn(8, 2, 4, 4).double(), torch.arange(8) % 3
    names = ["0.weight", "0.bias", "3.weight"]
    surgeon = BrainSurgeon(model, names, inputs, targets, block=7)
    for name in names:
        weight = model.get_parameter(name)
        assert torch.equal(surgeon._whole(name, surgeon._parted(weight)), weight)
        assert surgeon.scores[name].shape == weight.shape and (surgeon.scores[name] > 0).any()
    assert surgeon._parted(model[0].weight).shape == (9, 6) and surgeon._parted(model[0].bias).shape == (1, 3)
    half = {"0.weight": torch.arange(54).view(3, 2, 3, 3) % 2 == 0}
    found, change = surgeon.compensate(half)
    assert not found["0.weight"][half["0.weight"]].any() and change > 0


@pytest.mark.parametrize("score", ["obd", "obs"])
def test_says_what_is_wrong(score: str) -> None:
    model, inputs, targets = dense()
    with pytest.raises(SurgeryError, match="looks at the loss: give it inputs and targets"):
        weight_scores(model, ["0.weight"], score)
    turned = Net(lambda m, x: m.out(x).T, out=nn.Linear(4, 3)).double()
    with pytest.raises(SurgeryError, match="does not have its 12 samples first"):
        weight_scores(turned, ["out.weight"], score, inputs, targets, loss=lambda z, y: z.square().mean())
    flat = BrainSurgeon(model, ["0.weight"], inputs, targets, damping=0.5)
    flat._damping = -2.0
    with pytest.raises(SurgeryError, match="has no inverse with a damping of -2"):
        flat.compensate({"0.weight": torch.ones(5, 4, dtype=torch.bool)})

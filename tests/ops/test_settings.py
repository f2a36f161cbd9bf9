"""Settings in which a network runs: with scripted or traced parts, and inside of torch.inference_mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import (
    OPERATIONS,
    PCNS,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Operation,
    PruneWeights,
    Signals,
    SurgeryError,
    operate,
    predicted_loss_change,
    unit_scores,
    weight_scores,
)
from network_surgery.ops.signals.unit_scores import SCORES


class Fixed(nn.Module):
    """Code that has written down how wide its input is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), 7).relu()


def scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


def traced(module: nn.Module, *shape: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module.eval(), torch.randn(shape))


#: Network → the layers that are offered, and those that are pinned since they are in a scripted part.
PARTS: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    "activation": (lambda: nn.Sequential(nn.Linear(8, 7), scripted(nn.ReLU()), nn.Linear(7, 3)), {"0"}, set()),
    "traced": (lambda: nn.Sequential(nn.Linear(8, 7), traced(nn.GELU(), 6, 7), nn.Linear(7, 3)), {"0"}, set()),
    "reader": (
        lambda: nn.Sequential(nn.Linear(8, 7), nn.ReLU(), scripted(nn.Linear(7, 5)), nn.Linear(5, 6), nn.Linear(6, 3)),
        {"3"}, {"0", "2"},
    ),
    "norm": (
        lambda: nn.Sequential(nn.Linear(8, 7), scripted(nn.BatchNorm1d(7)), nn.Linear(7, 5), nn.Linear(5, 3)),
        {"2"}, {"0"},
    ),
    "block": (
        lambda: nn.Sequential(traced(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 7)), 6, 8), nn.ReLU(), nn.Linear(7, 5),
                              nn.Linear(5, 3)),
        {"2"}, {"0.0", "0.1"},
    ),
    "whole": (lambda: scripted(nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))), set(), {"0"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_what_is_scripted_is_followed_and_its_own_units_are_pinned(name: str) -> None:
    torch.manual_seed(0)
    make, offered, inside = PARTS[name]
    model, inputs = make(), torch.randn(6, 8)
    anatomy = Anatomy(model, inputs)
    assert set(anatomy) == offered
    for layer in inside:
        assert "scripted or traced: operate first" in anatomy.pinned[layer]
    signals = Signals(model, inputs, torch.arange(6) % 3)
    for layer in anatomy.values():
        assert unit_scores(layer, signals, "mrs").any()
        operate(layer, MeanReplace(0.6), signals=signals, verify=True)
    assert model(inputs).shape == (6, 3)


def test_a_scripted_part_that_knows_a_size_pins_what_it_is_given() -> None:
    anatomy = Anatomy(nn.Sequential(nn.Linear(8, 7), scripted(Fixed()), nn.Linear(7, 3)), torch.randn(6, 8))
    assert not anatomy and "at another size" in anatomy.pinned["0"]


def test_a_scripted_weight_is_not_masked() -> None:
    model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), scripted(nn.Linear(7, 3)))
    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(SurgeryError, match=r"2\.weight cannot be masked: it is in a scripted part"):
        operate(Anatomy(model, torch.randn(6, 8))["*"], PruneWeights(0.5))
    assert all(map(torch.equal, before, model.state_dict().values()))


OTHERS: dict[str, Operation] = {
    "reduced": EigenRemove(0.5, 0.5, weights="reduced"),
    "eigen": PCNS(keep=0.5, basis="eigen"),
    "measured": MeanReplace(0.5, score="mrp"),
    "taylor": PruneWeights(0.5, score="taylor2"),
}


@pytest.mark.parametrize("repair", [(), ("bias",), ("least_squares",), ("batchnorm",)], ids=str)
@pytest.mark.parametrize("name", [*(name for name, kind in OPERATIONS.items() if not kind.of_blocks), *OTHERS])
def test_operations_in_inference_mode_leave_a_network_that_trains(name: str, repair: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    operation = OTHERS.get(name) or OPERATIONS[name]()
    model = nn.Sequential(
        nn.Linear(8, 7), nn.BatchNorm1d(7), nn.LeakyReLU(), nn.Linear(7, 6), nn.BatchNorm1d(6), nn.LeakyReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(6, 8)).square().sum().backward()
        optimizer.step()

    step()
    with torch.inference_mode():
        inputs, targets = torch.randn(30, 8), torch.arange(30) % 3
        anatomy = Anatomy(model, inputs)
        for layer in [anatomy["*"]] if isinstance(operation, PruneWeights) else anatomy.values():
            try:
                operate(layer, operation, optimizer, Signals(model, inputs, targets), repair=repair, verify=True)
            except SurgeryError as refused:
                collapsed = name == "collapse" and "cannot become one" in str(refused)
                assert collapsed or (repair and ("cannot be repaired" in str(refused) or "repairs are" in str(refused)))
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    for _ in range(2):
        step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_what_is_seen_in_inference_mode_is_what_is_seen_outside() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(9, 8)

    def look(inputs: Tensor, targets: Tensor) -> list[Tensor]:
        layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs, targets)
        found = [unit_scores(layer, signals, score) for score in SCORES]
        for score in ("taylor1", "hessian", "loss_change"):
            found.append(weight_scores(model, ["0.weight"], score, inputs, targets)["0.weight"])
        prediction = predicted_loss_change(MinWeight(0.5).propose(layer), inputs, targets)
        return [*found, torch.tensor([prediction.slope, prediction.curvature])]

    wanted = look(inputs, torch.arange(9) % 3)
    with torch.inference_mode():
        found = look(inputs.clone(), torch.arange(9) % 3)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_network_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    with pytest.raises(SurgeryError, match=r"0\.weight was made in torch\.inference_mode"):
        Anatomy(model, torch.randn(6, 8))

"""Pruning by a tri-factorization: which weights go, that factors are shared, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import (
    Anatomy,
    HashWeights,
    SurgeryError,
    TriFactorize,
    describe,
    load,
    operate,
    save,
    saved_bytes,
)  # fmt: skip
from network_surgery.ops.network.masks import masks_of, parameters_of
from tests.ops.networks import build, outputs, train

RANK = 0.25


def factorized(seed: int = 0) -> tuple[nn.Sequential, Tensor]:
    """Two convolutions and two dense layers whose weights a model of rank 1/4 with shared factors explains wholly."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 4, 16), nn.ReLU(), nn.Linear(16, 3),
    ).double()  # fmt: skip
    factors = [torch.randn(units, units // 4, generator=generator).double() for units in (8, 12, 16)]
    places, sizes = ("0", "2", "5", "7"), (2, *(f.shape[1] for f in factors), 3)
    for number, name in enumerate(places):
        weight = model.get_parameter(f"{name}.weight")
        left = factors[number] if number < 3 else torch.eye(3).double()
        right = factors[number - 1] if number else torch.eye(2).double()
        inner = torch.randn(sizes[number + 1], sizes[number], weight[0].numel() // len(right), generator=generator)
        made = torch.einsum("or,rsk,is->oik", left, inner.double(), right)
        weight.data.copy_(made.reshape(weight.shape))
    return model, torch.randn(3, 2, 6, 6, generator=generator).double()


def spoil(model: nn.Module, names: tuple[str, ...], value: float | None) -> dict[str, tuple[int, ...]]:
    """Writes a value to one large entry of each weight, or lets it grow by three deviations; returns where they are."""
    where = dict[str, tuple[int, ...]]()
    for number, name in enumerate(names):
        weight = model.get_parameter(name).data
        place = int(weight.abs().flatten().argsort(descending=True)[weight.numel() // 4 + number])
        where[name] = tuple(int(each) for each in torch.unravel_index(torch.tensor(place), weight.shape))
        old = weight[where[name]]
        weight[where[name]] = old + 3 * old.sign() * weight.std() if value is None else value
    return where


NAMES = ("0.weight", "2.weight", "5.weight")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_the_other_weights_do_not_explain_goes_first_or_last(seed: int) -> None:
    model, inputs = factorized(seed)
    where = spoil(model, NAMES, None)
    anatomy = Anatomy(model, inputs)
    least = TriFactorize(0.02, RANK, measure="absolute", scope="layer").propose(anatomy["*"])
    most = TriFactorize(0.98, RANK, "most", "absolute", scope="layer").propose(anatomy["*"])
    for name, outlier in where.items():
        assert not least.masks[name][outlier] and most.masks[name][outlier], name


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_far_below_what_the_model_has_in_their_place_go_first(seed: int) -> None:
    model, inputs = factorized(seed)
    where = spoil(model, ("2.weight", "5.weight"), 1e-3)
    plan = TriFactorize(0.02, RANK).propose(Anatomy(model, inputs)["*"])
    for name, place in where.items():
        assert not plan.masks[name][place], name


@pytest.mark.parametrize("convolutions", ["apart", "together"])
def test_factors_are_shared_by_the_weights_on_both_sides_also_through_a_flattened_map(convolutions: str) -> None:
    model, inputs = factorized()
    chosen = TriFactorize(0.5, RANK, convolutions=convolutions)
    with pytest.raises(SurgeryError, match=r"on \*: factors of this rank explain every weight, .* take a lower rank"):
        chosen.propose(Anatomy(model, inputs)["*"])
    model.get_parameter("5.weight").data.copy_(factorized(9)[0].get_parameter("5.weight"))  # of the same rank, alone
    for layer, shared in (("2", convolutions == "together"), ("5", True), ("0", False)):
        if shared:
            assert chosen.propose(Anatomy(model, inputs)[layer]).evidence["left_over"] > 0.01
        else:
            with pytest.raises(SurgeryError, match="explain every weight"):
                chosen.propose(Anatomy(model, inputs)[layer])


@pytest.mark.parametrize("convolutions", ["apart", "together"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_fraction_is_of_the_weights_that_are_ranked_together_and_masks_only_grow(
    scope: str, convolutions: str
) -> None:
    model, inputs = build("cnn", batch=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    anatomy, before = Anatomy(model, inputs), dict[str, Tensor]()
    for fraction in (0.3, 0.6, 0.5, 0.9):
        train(model, inputs, optimizer)
        plan = operate(anatomy["*"], TriFactorize(fraction, scope=scope, convolutions=convolutions), optimizer)
        masks = {name: mask.clone() for name, mask in anatomy.masks().items()}
        kinds = [[n for n in anatomy.weights if (anatomy.tensor(n).dim() > 2) is kernel] for kernel in (True, False)]
        together = [[name] for name in anatomy.weights] if scope == "layer" else kinds
        for names in [anatomy.weights] if (scope, convolutions) == ("global", "together") else together:
            gone, total = (sum(int(count) for count in counts) for counts in zip(
                *(((masks[name] == 0).sum(), masks[name].numel()) for name in names), strict=True
            ))  # fmt: skip
            assert fraction == 0.5 or gone == round(fraction * total), names
        assert all((masks[name] <= mask).all() for name, mask in before.items())
        assert plan.evidence["sparsity"] == pytest.approx(
            1 - sum(float(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        )
        assert plan.parameters_after == parameters_of(model) == plan.parameters_before - plan.evidence["pruned"]
        assert plan.flops_after == plan.flops_before and 0 <= plan.evidence["left_over"] < 1
        before = masks


def test_the_error_is_the_relative_size_of_what_goes() -> None:
    model, inputs = build("cnn")
    anatomy = Anatomy(model, inputs)
    weights = {name: anatomy.live(name).double() for name in anatomy.weights}
    plan = TriFactorize(0.4).propose(anatomy["*"])
    gone = sum(float(weights[name][~mask].square().sum()) for name, mask in plan.masks.items())
    assert plan.error == pytest.approx((gone / sum(float(w.square().sum()) for w in weights.values())) ** 0.5)


def test_on_a_layer_the_weights_that_make_and_read_it_go_and_no_others() -> None:
    model, inputs = factorized()
    spoil(model, NAMES, None)
    anatomy = Anatomy(model, inputs)
    assert set(TriFactorize(0.5, RANK).propose(anatomy["2"]).masks) == {"2.weight", "5.weight"}
    assert set(TriFactorize(0.5, RANK).propose(anatomy["*"]).masks) == {f"{n}.weight" for n in (0, 2, 5, 7)}


def test_files_have_the_masks_and_take_the_bytes_that_the_plan_says(tmp_path: Path) -> None:
    model, inputs = build("cnn")
    plan = operate(Anatomy(model, inputs)["*"], TriFactorize(0.7))
    assert plan.bytes_after == sum(each.numel() * each.element_size() for each in model.state_dict().values())
    assert plan.bytes_after > plan.bytes_before  # masks are stored beside the weights
    save(model, tmp_path / "pruned.pt")
    assert saved_bytes(model) == (tmp_path / "pruned.pt").stat().st_size
    again = load(lambda: build("cnn")[0], tmp_path / "pruned.pt")
    assert describe(again) == describe(model)
    assert all(
        torch.equal(one, two) for one, two in zip(masks_of(model).values(), masks_of(again).values(), strict=True)
    )
    assert all(torch.equal(one, two) for one, two in zip(outputs(model, inputs), outputs(again, inputs), strict=True))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.turn, self.leave = nn.Linear(4, 10), nn.Linear(10, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(3):
            x = x + torch.tanh(self.turn(x))
        return self.leave(x)


def test_a_weight_that_makes_and_reads_one_layer_is_pruned_too() -> None:
    torch.manual_seed(0)
    model, inputs = Recurrent(), torch.randn(5, 4)
    plan = operate(Anatomy(model, inputs)["*"], TriFactorize(0.5))
    assert set(plan.masks) == {"enter.weight", "turn.weight", "leave.weight"}
    assert all(out.isfinite().all() for out in outputs(model, inputs))


def test_hashed_weights_stay() -> None:
    model, inputs = build("cnn")
    anatomy = Anatomy(model, inputs)
    first = next(iter(anatomy))
    operate(anatomy[first], HashWeights(0.5))
    assert f"{first}.weight" not in operate(anatomy["*"], TriFactorize(0.5)).masks


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rank": 1}, "rank is 1, but it must be lower: at full rank every weight is explained"),
        ({"rank": 0}, "rank is 0, but it must lie above 0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"explained": "worst"}, r"explained is 'worst', but it must be one of \('least', 'most'\)"),
        ({"measure": "squared"}, "measure is 'squared'"),
        ({"convolutions": "alone"}, "convolutions is 'alone'"),
        ({"scope": "all"}, "scope is 'all'"),
        ({"rounds": -1}, "rounds is -1"),
    ],
)
def test_wrong_hyperparameters_are_refused_in_a_sentence(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(SurgeryError, match=f"TriFactorize: {said}"):
        TriFactorize(**wrong)  # type: ignore[arg-type]


def test_weights_that_cannot_be_factorized_are_refused() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
    with pytest.raises(SurgeryError, match=r"on \*: there are no weights that could be factorized"):
        TriFactorize().propose(Anatomy(model, inputs)["*"])
    model, inputs = factorized()
    anatomy = Anatomy(model, inputs)
    model.get_parameter("2.weight").data[0, 0, 0, 0] = float("nan")
    with pytest.raises(SurgeryError, match=r"on \*: 2.weight holds values that are not finite"):
        TriFactorize().propose(anatomy["*"])

"""Pruning of weights: which ones go, in what scope, how many; against torch's own pruning."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

from network_surgery.ops import (
    Anatomy,
    MinWeight,
    Plan,
    PruneWeights,
    Signals,
    Step,
    SurgeryError,
    apply,
    describe,
    free_attention,
    load,
    measure,
    operate,
    predicted_loss_change,
    save,
    trial_surgery,
    weight_scores,
)  # fmt: skip
from network_surgery.ops.network.masks import masks_of, parameters_of
from network_surgery.ops.operations import prune_weights
from network_surgery.ops.schedule import Condition, Moment, Schedule
from network_surgery.ops.signals.weight_scores import SCORES
from network_surgery.study import models
from tests.ops.networks import Net, build, mlp_bn, outputs, train


def evci() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(5)
    model = models.build("evci_cnn", (1, 12, 12), 10)
    return model, torch.randn(20, 1, 12, 12), torch.arange(20) % 10


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_magnitude_prunes_what_torch_prunes(fraction: float) -> None:
    model, inputs, _ = evci()
    theirs = copy.deepcopy(model)
    layers = ("conv1", "conv2", "fc1", "fc2")
    prune.global_unstructured(
        [(getattr(theirs, name), "weight") for name in layers], prune.L1Unstructured, amount=fraction
    )
    operate(Anatomy(model, inputs)["*"], PruneWeights(fraction))
    for name in layers:
        assert torch.equal(masks_of(model)[f"{name}.weight"].float(), getattr(theirs, name).weight_mask), name
        assert torch.equal(getattr(model, name).weight, getattr(theirs, name).weight)
    assert torch.equal(outputs(model, inputs)[0], outputs(theirs, inputs)[0])


def test_a_layer_s_scope_takes_the_fraction_from_every_tensor_as_torch_does() -> None:
    model, inputs, _ = evci()
    theirs = copy.deepcopy(model)
    operate(Anatomy(model, inputs)["*"], PruneWeights(0.3, scope="layer"))
    for name in ("conv1", "conv2", "fc1", "fc2"):
        prune.l1_unstructured(getattr(theirs, name), "weight", amount=0.3)
        assert torch.equal(masks_of(model)[f"{name}.weight"].float(), getattr(theirs, name).weight_mask), name


@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_fractions_count_all_weights_and_masks_only_grow(score: str) -> None:
    model, inputs, targets = evci()
    anatomy, optimizer = Anatomy(model, inputs), torch.optim.Adam(model.parameters(), lr=0.01)
    total = sum(anatomy.tensor(name).numel() for name in anatomy.weights)
    before, most = dict[str, Tensor](), 0.0
    for turn, fraction in enumerate((0.2, 0.5, 0.5, 0.4, 0.8, 0.9)):
        plan = operate(anatomy["*"], PruneWeights(fraction, score=score, seed=turn), optimizer)
        masks = {name: mask.clone() for name, mask in anatomy.masks().items()}
        most = max(fraction, most)
        zeros = sum(int((mask == 0).sum()) for mask in masks.values())
        assert zeros == round(most * total) and plan.evidence["sparsity"] == pytest.approx(zeros / total)
        assert plan.evidence["pruned"] == zeros - sum(int((mask == 0).sum()) for mask in before.values())
        assert plan.parameters_after == parameters_of(model) == plan.parameters_before - plan.evidence["pruned"]
        assert plan.flops_after == plan.flops_before and plan.units_after == plan.units_before
        assert all((masks[name] <= mask).all() for name, mask in before.items())
        before = masks
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("score", SCORES)
def test_the_lowest_scores_go(score: str) -> None:
    model, inputs, targets = evci()
    anatomy = Anatomy(model, inputs)
    signals = Signals(model, inputs, targets)
    layer = anatomy["conv2"]
    chosen = PruneWeights(0.3, score=score, strength=0.5, seed=4)
    assert chosen.needs_signals is (score not in ("magnitude", "random"))
    (scores,) = weight_scores(model, ["conv2.weight"], score, inputs, targets, strength=0.5, seed=4).values()
    plan = chosen.propose(layer, signals)
    ((name, mask),) = plan.masks.items()
    assert name == "conv2.weight" and int((~mask).sum()) == round(0.3 * mask.numel())
    assert scores[~mask].max() <= scores[mask].min()
    assert plan.evidence["threshold"] == pytest.approx(float(scores[~mask].max()))
    assert (plan.evidence["threshold"] < 0) is (score in ("taylor1", "loss_change", "taylor2", "hessian"))


def test_a_threshold_and_a_quality_are_of_the_weights_themselves() -> None:
    model, inputs, _ = evci()
    anatomy = Anatomy(model, inputs)
    before = {name: anatomy.tensor(name).detach().clone() for name in anatomy.weights}
    plan = PruneWeights(threshold=0.1).propose(anatomy["*"])
    for name, mask in plan.masks.items():
        assert torch.equal(mask, before[name].abs() >= 0.1)
    for _ in range(2):  # the second time of what the first one left
        deviation = {n: before[n][before[n] != 0].std(correction=0) for n in before}
        operate(anatomy["*"], PruneWeights(quality=0.7))
        for name, weight in before.items():
            assert torch.equal(anatomy.mask(name).bool(), weight.abs() >= 0.7 * deviation[name]), name
        before = {name: anatomy.tensor(name).detach().clone() for name in anatomy.weights}
    nothing = operate(anatomy["*"], PruneWeights(threshold=1e-9))
    assert not nothing.masks and nothing.evidence["pruned"] == 0 and "threshold" not in nothing.evidence


def test_a_layer_s_weights_are_those_that_make_its_units() -> None:
    model, inputs, _ = evci()
    operate(Anatomy(model, inputs)["fc1"], PruneWeights(0.5))
    assert list(masks_of(model)) == ["fc1.weight"]
    residual, inputs = build("residual")
    operate(Anatomy(residual, inputs)["stem"], PruneWeights(0.5))
    assert set(masks_of(residual)) == {"stem.weight", "second.weight"}  # a residual sum has two makers


def test_a_plan_prints_and_does_what_it_says() -> None:
    model, inputs = build("cnn", torch.float64, batch=12)
    anatomy = Anatomy(model, inputs)
    plan = PruneWeights(0.5).propose(anatomy["*"])
    assert "sparsity 0.5" in str(plan) and "on *" in str(plan) and f"{plan.parameters_after:,}" in str(plan)
    assert measure(plan) < 1e-12 and not masks_of(model)
    targets = torch.arange(12) % 3
    with torch.no_grad():
        before = nn.functional.cross_entropy(outputs(model, inputs)[0], targets)
        small = PruneWeights(0.02).propose(anatomy["*"])
        predicted = predicted_loss_change(small, inputs, targets).change
        apply(small)
        found = nn.functional.cross_entropy(outputs(model, inputs)[0], targets) - before
    assert predicted == pytest.approx(float(found), rel=0.05)


def test_batchnorm_is_estimated_anew_behind_the_first_weight_that_was_pruned() -> None:
    torch.manual_seed(1)
    model, inputs = mlp_bn(), torch.randn(64, 5)
    train(model, inputs, torch.optim.SGD(model.parameters(), lr=0.1))
    operate(Anatomy(model, inputs)["0"], PruneWeights(0.6), signals=Signals(model, inputs), repair=["batchnorm"])
    torch.testing.assert_close(model[1].running_mean, model[0](inputs).mean(dim=0))


@pytest.mark.parametrize(("settings", "says"), [
    ({"fraction": 0.0}, "fraction is 0.0, but it must lie above 0"),
    ({"fraction": 1.5}, "at most 1"),
    ({"score": "mrp"}, "score is 'mrp', but it must be one of"),
    ({"scope": "net"}, "scope is 'net', but it must be one of"),
    ({"threshold": "low"}, "threshold is 'low', but it must be a number"),
    ({"quality": -1.0}, "a quality is above 0"),
    ({"quality": 1.0, "score": "taylor1"}, "of the score magnitude"),
    ({"quality": 1.0, "threshold": 0.1}, "without a threshold"),
    ({"fraction": 0.3, "threshold": 0.1}, "fraction is 0.3 and threshold is 0.1; give one of them"),
    ({"fraction": 0.3, "quality": 1.0}, "fraction is 0.3 and quality is 1.0; give one of them"),
    ({"survivors": "none"}, "survivors is 'none', but it must be one of"),
    ({"dropout": 0.5}, "dropout is 0.5, but it must be one of"),
    ({"block": 0}, "at least one weight"),
    ({"damping": 0.0}, "damping is 0.0, but it must lie above 0"),
])  # fmt: skip
def test_refuses_bad_settings(settings: dict[str, object], says: str) -> None:
    with pytest.raises(SurgeryError, match=says):
        PruneWeights(**settings)  # type: ignore[arg-type]


def test_says_what_is_missing() -> None:
    model, inputs, targets = evci()
    anatomy = Anatomy(model, inputs)
    for signals in (None, Signals(model, inputs)):
        with pytest.raises(SurgeryError, match=r"on \* looks at the loss: give it Signals\(model, inputs, targets\)"):
            operate(anatomy["*"], PruneWeights(score="taylor1"), signals=signals)
    with pytest.raises(SurgeryError, match=r"MinWeight\(keep=0.5\) works on one layer at a time, not on the whole"):
        operate(anatomy["*"], MinWeight())
    with pytest.raises(SurgeryError, match="cannot be repaired"):
        operate(anatomy["*"], PruneWeights(), signals=Signals(model, inputs, targets), repair=["bias"])
    layer = anatomy["fc1"]
    for masks, says in (
        ({"fc1.bias": torch.ones(64)}, r"fc1\.bias is no weight of the network"),
        ({"fc1.weight": torch.ones(3, 3)}, r"its values for fc1.weight are \(3, 3\)"),
    ):
        with pytest.raises(SurgeryError, match=says):
            apply(Plan(layer, "by hand", tuple(range(layer.units)), masks=masks))


def test_the_whole_network_in_a_schedule() -> None:
    schedule = Schedule((Step(Moment(1), "*", PruneWeights(0.5)),))
    schedule.check(["fc1"], epochs=3, per_epoch=5)
    assert Schedule.from_data(schedule.to_data()) == schedule
    waiting = Condition(0.01, 0.3, Moment(1))
    for step in (Step(Moment(1), "*", MinWeight()), Step(waiting, "*", PruneWeights())):
        with pytest.raises(SurgeryError, match=r"can be done on a layer, not on the whole network, '\*'"):
            Schedule((step,)).check(["fc1"], epochs=3, per_epoch=5)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_masked_recurrent_layers_compute_and_learn(kind: type[nn.RNNBase]) -> None:
    """torch's recurrent modules keep a list of their weights beside: the masks are not passed by."""
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.out(m.recurrent(x)[0][:, -1]), recurrent=kind(5, 6, batch_first=True), out=nn.Linear(6, 3)
    )
    plain, inputs = copy.deepcopy(model), torch.randn(9, 4, 5)
    anatomy, optimizer = Anatomy(model, inputs[:2]), torch.optim.Adam(model.parameters(), lr=0.1)
    names = [name for name, _ in plain.named_parameters()]
    operate(anatomy["*"], PruneWeights(0.5), optimizer)
    before = anatomy.live("recurrent.weight_hh_l0")
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.arange(9) % 3).backward()
        optimizer.step()
        for name, parameter in zip(names, plain.parameters(), strict=True):
            parameter.data.copy_(anatomy.live(name))
        torch.testing.assert_close(model(inputs), plain(inputs))
    after = anatomy.live("recurrent.weight_hh_l0")
    assert not after[before == 0].any() and (after != before)[before != 0].all() and (before == 0).any()
    assert list(Anatomy(model, inputs[:2])) == ["recurrent"]


def test_masked_attention_is_operated_on() -> None:
    torch.manual_seed(0)
    model = free_attention(
        torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=10
        )
    )
    images = torch.randn(4, 3, 32, 32)
    before = list(Anatomy(model, images[:2]))
    operate(Anatomy(model, images[:2])["*"], PruneWeights(0.5))
    anatomy = Anatomy(model, images[:2])
    assert list(anatomy) == before and any("heads" in name for name in before)
    for name in before:
        operate(anatomy[name], MinWeight(0.5), verify=True)
    assert model(images).shape == (4, 10)


@pytest.mark.parametrize("seed", range(40))
def test_the_lowest_go_and_of_equal_ones_the_first(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shapes, dtypes = ((3, 4), (7,), (2, 2, 5)), (torch.float32, torch.float64, torch.bfloat16)
    scores = {str(shape): torch.randint(-3, 4, shape, generator=random).to(dtypes[seed % 3]) / 3 for shape in shapes}
    lives = {name: torch.rand(score.shape, generator=random) > 0.3 * (seed % 4) for name, score in scores.items()}
    fraction = (0.0, 1.0, 0.5, 0.013, 0.99)[seed % 5]
    flat = torch.cat([score.double().where(lives[name], -torch.inf).flatten() for name, score in scores.items()])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[flat.argsort(stable=True)[: round(fraction * len(flat))]] = False
    wanted = dict(zip(scores, kept.split([score.numel() for score in scores.values()]), strict=True))
    for name, mask in prune_weights.highest(scores, lives, fraction).items():
        assert torch.equal(mask, lives[name] & wanted[name].view(mask.shape))


def least_squares() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear layer that has been solved for: its loss is a quadratic, and the weights are at its minimum."""
    torch.manual_seed(7)
    inputs = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    targets = torch.randn(50, 3, dtype=torch.float64)
    model = nn.Linear(6, 3, bias=False).double().requires_grad_(False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    return model, inputs, targets


def squared(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets).square().mean(dim=1)


@pytest.mark.parametrize("fraction", [1 / 18, 0.5, 0.9])
def test_of_least_squares_obs_predicts_the_very_change_and_obd_that_of_one_weight(fraction: float) -> None:
    model, inputs, targets = least_squares()
    anatomy, signals = Anatomy(model, inputs), Signals(model, inputs, targets, squared)
    before = float(squared(model(inputs), targets).mean())
    changes = {}
    for score in ("obd", "obs", "magnitude"):
        trial = copy.deepcopy(model)
        plan = PruneWeights(fraction, score=score, damping=1e-12).propose(anatomy["*"], signals)
        with torch.no_grad():
            values = plan.replaced.get("weight", model.weight)
            trial.weight.copy_(values * plan.masks["weight"])
            changes[score] = float(squared(trial(inputs), targets).mean()) - before
        if score == "obs" or (score == "obd" and plan.evidence["pruned"] == 1):
            assert plan.evidence["loss_change"] == pytest.approx(changes[score], rel=1e-6)
        assert bool(plan.replaced) is (score == "obs")
    assert changes["obs"] < changes["obd"] and changes["obs"] < changes["magnitude"]
    mask = PruneWeights(fraction, score="obs", damping=1e-12).propose(anatomy["*"], signals).masks["weight"]
    wanted = 0.0
    for row, y in zip(mask, targets.T, strict=True):
        known = inputs[:, row]
        wanted += float((known @ torch.linalg.lstsq(known, y[:, None]).solution - y[:, None]).square().mean()) / 3
    assert changes["obs"] == pytest.approx(wanted - before)  # nothing fits better with these weights


def test_obs_moves_the_survivors_of_the_network_and_of_its_average_and_masks_stay() -> None:
    model, inputs, targets = evci()
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module.fc1.weight.add_(0.25)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    anatomy = Anatomy(model, inputs)
    for fraction in (0.3, 0.6):
        before, averaged = anatomy.live("fc1.weight").clone(), average.module.fc1.weight.detach().clone()
        signals = Signals(model, inputs, targets)
        plan = PruneWeights(fraction, score="obs").propose(anatomy["*"], signals)
        assert measure(plan) < 1e-12
        apply(plan, optimizer, average)
        after, mask = anatomy.live("fc1.weight"), anatomy.mask("fc1.weight").bool()
        assert plan.parameters_after == parameters_of(model)
        moved = (after - before)[mask]
        assert moved.any() and not after[~mask].any() and not average.module.fc1.weight[~mask].any()
        torch.testing.assert_close((average.module.fc1.weight - averaged)[mask], moved, rtol=1e-4, atol=1e-6)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        assert not anatomy.live("fc1.weight")[~mask].any()


def test_obs_of_a_trial_is_undone_to_the_bit() -> None:
    model, inputs, targets = evci()
    anatomy = Anatomy(model, inputs)
    operate(anatomy["*"], PruneWeights(0.3))
    before = copy.deepcopy(model.state_dict())
    with trial_surgery(PruneWeights(0.6, score="obs").propose(anatomy["*"], Signals(model, inputs, targets))):
        assert not torch.equal(anatomy.live("fc1.weight"), before["fc1.parametrizations.weight.original"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def dropping() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Dropout(0.1), nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.4),
        nn.Linear(8, 3),
    )  # fmt: skip


def test_dropout_becomes_weaker_by_the_root_of_the_connections_that_are_left(tmp_path: Path) -> None:
    model, inputs = dropping(), torch.randn(5, 6)
    average = torch.optim.swa_utils.AveragedModel(model)
    anatomy = Anatomy(model, inputs)
    before = describe(model)
    plan = PruneWeights(0.5, dropout=True).propose(anatomy["*"])
    with trial_surgery(plan, averages=average):
        assert model[3].p < 0.5
    assert (model[0].p, model[3].p, model[6].p) == (0.1, 0.5, 0.4) and describe(model) == before
    for fraction in (0.5, 0.8):
        operate(anatomy["*"], PruneWeights(fraction, dropout=True), averages=average)
    for place, (weight, ratio) in {3: ("1.weight", 0.5), 6: ("4.weight", 0.4)}.items():
        left = float(anatomy.mask(weight).float().mean())
        assert model[place].p == average.module[place].p == pytest.approx(ratio * left**0.5)
    assert model[0].p == 0.1  # no weight made what it drops
    save(model, tmp_path / "net.pt")
    again = load(dropping, tmp_path / "net.pt")
    assert [again[place].p for place in (0, 3, 6)] == [model[place].p for place in (0, 3, 6)]
    assert describe(again) == describe(model)


def test_a_layer_s_pruning_leaves_the_dropout_of_others() -> None:
    model = dropping()
    operate(Anatomy(model, torch.randn(5, 6))["4"], PruneWeights(0.75, dropout=True))
    assert (model[3].p, model[6].p) == (0.5, 0.2)


def test_survivors_can_begin_anew() -> None:
    model, inputs, _ = evci()
    kept, fresh, again = (copy.deepcopy(model) for _ in range(3))
    operate(Anatomy(kept, inputs)["*"], PruneWeights(0.6))
    for each in (fresh, again):
        operate(Anatomy(each, inputs)["*"], PruneWeights(0.6, survivors="fresh"))
    for name, mask in masks_of(kept).items():
        assert torch.equal(mask, masks_of(fresh)[name])
    values = fresh.fc1.weight[masks_of(fresh)["fc1.weight"].bool()].detach()
    inputs_left = float(masks_of(fresh)["fc1.weight"].sum(dim=1).float().mean())
    assert (
        float(values.std()) == pytest.approx(inputs_left**-0.5, rel=0.1)
        and not torch.isin(values, model.fc1.weight).any()
    )
    assert torch.equal(fresh.fc1.weight, again.fc1.weight) and torch.equal(fresh.fc1.bias, model.fc1.bias)


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.dropout, self.last = nn.LSTM(5, 6, batch_first=True), nn.Dropout(0.4), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.dropout(self.lstm(x)[0])[:, -1])


def test_dropout_after_a_module_of_several_weights_follows_all_of_them():
    torch.manual_seed(0)
    model = _Recurrent()
    plan = PruneWeights(0.6, dropout=True).propose(Anatomy(model, torch.randn(4, 7, 5))["*"])
    masks = [plan.masks["lstm.weight_ih_l0"], plan.masks["lstm.weight_hh_l0"]]
    stay, before = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    assert plan.ratios == {"dropout": pytest.approx(0.4 * (stay / before) ** 0.5)}

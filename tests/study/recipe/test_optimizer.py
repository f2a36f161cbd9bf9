"""Optimizers by name and by factory, their parameter groups, and what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from network_surgery.ops import Anatomy, MinWeight, SurgeryError, WeakExpand, operate
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.optimizer import by_name, make_optimizer
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.examine import check

SHAPE = (1, 8, 8)
#: Those that cannot train a network with biases, by a step with one evaluation of the loss.
NOT = ("LBFGS", "SparseAdam", "Muon")


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(Settings(train_images=200))


def network() -> nn.Module:
    torch.manual_seed(0)
    return models.build("small_cnn", SHAPE, 10)


def make(model: nn.Module | None = None, **settings: Any) -> torch.optim.Optimizer:
    return make_optimizer(Settings(**settings), network() if model is None else model)


def test_the_short_names_are_what_they_always_were() -> None:
    sgd, adam, adamw = make(optimizer="sgd"), make(optimizer="adam"), make(optimizer="adamw", weight_decay=0.1)
    assert type(sgd) is SGD and sgd.defaults["momentum"] == 0.9
    assert type(adam) is Adam and adam.defaults["weight_decay"] == 0 and len(adam.param_groups) == 1
    assert type(adamw) is AdamW and adamw.param_groups[0]["weight_decay"] == 0.1
    assert make(optimizer="SGD").defaults["momentum"] == 0  # torch's own default


@pytest.mark.parametrize("name", [name for name in by_name() if name not in NOT])
def test_torchs_optimizers_are_known_by_name(name: str, digits: ImageTask) -> None:
    settings = Settings(optimizer=name, decay="weights")
    assert type(make_optimizer(settings, network())).__name__ == name
    assert list(check(settings, digits)) == ["conv1", "conv2", "fc1"]  # it makes a step, and its state can follow


def test_arguments_come_from_yaml() -> None:
    adam = make(optimizer="AdamW", optimizer_arguments={"betas": [0.9, 0.95], "eps": "1e-6", "amsgrad": True})
    assert adam.defaults["betas"] == (0.9, 0.95) and adam.defaults["eps"] == 1e-6 and adam.defaults["amsgrad"]
    assert make(optimizer="sgd", optimizer_arguments={"nesterov": True}).defaults["nesterov"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "lion"}, "there is no optimizer 'lion'; give adam, adamw, sgd, one of torch.optim"),
        ({"optimizer": "LBFGS"}, "needs a closure"),
        ({"optimizer": "SparseAdam"}, "is for sparse gradients alone"),
        pytest.param(
            {"optimizer": "Muon"}, "'Muon' cannot be made: Muon only supports 2D parameters",
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon"),
        ),
        ({"optimizer_arguments": {"nesterov": True}}, "has 'nesterov', but Adam has only betas, eps"),
        ({"optimizer_arguments": {"lr": 0.1}}, "has 'lr', which is a setting of its own: learning_rate"),
        ({"optimizer_arguments": {"betas": [0.9, 2]}}, "'adam' cannot be made: Invalid beta parameter"),
        ({"optimizer_arguments": {"eps": "small"}}, "'adam' cannot be made"),
        (
            {"optimizer_arguments": {"betas": 3}},
            "optimizer_arguments is {'betas': 3}, and with it optimizer 'adam' cannot be made: ",
        ),
        ({"optimizer": "SGD", "optimizer_arguments": {"nesterov": True}}, "Nesterov momentum requires a momentum"),
        ({"learning_rate": 1e30}, "outputs are not finite; lower learning_rate, which is 1e+30"),
        ({"optimizer": "Rprop", "weight_decay": 0.1}, "weight_decay is 0.1, but Rprop has none"),
        ({"optimizer": "nowhere.at.all:make"}, "nowhere"),
        ({"optimizer": "torch:zeros"}, "cannot be made"),
        ({"optimizer": "builtins:dict"}, "builtins"),
        ({"lr_schedule": "one_cycle", "optimizer": "Adagrad"}, "but Adagrad has none; set cycle_momentum: false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    settings: dict[str, Any], words: str, digits: ImageTask
) -> None:
    with pytest.raises((StudyError, SurgeryError)) as caught:
        check(Settings(**settings), digits)
    assert words in str(caught.value) and "\n" not in str(caught.value)


FACTORY = """
import torch

def make(groups, learning_rate, heat=0.5):
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=heat)

class Odd(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["odd"] = torch.zeros(3, *parameter.shape, 2)

def nothing(groups, learning_rate):
    return 3
"""


def test_a_factory_of_anyones_gets_groups_and_learning_rate(tmp_path: Path, digits: ImageTask) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    place = tmp_path / "mine.py"
    about: dict[str, Any] = {"weight_decay": 0.1, "decay": "weights", "learning_rate": 0.3}
    made = make(optimizer=f"{place}:make", optimizer_arguments={"heat": 0.8}, **about)
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in made.param_groups] == [(0.3, 0.8, 0.1), (0.3, 0.8, 0)]
    with pytest.raises(StudyError, match="nothing' made a int, not a torch"):
        make(optimizer=f"{place}:nothing", **about)
    with pytest.raises(SurgeryError, match=r"Odd keeps odd .* not known how that follows"):
        check(Settings(optimizer=f"{place}:Odd", **about), digits)


@pytest.mark.parametrize("name", ["sgd", "AdamW", "Adafactor"])
def test_groups_stay_right_through_surgery(name: str) -> None:
    """Vectors do not decay, matrices do, before and after units have come and gone; all live parameters are trained."""
    model = network()
    optimizer = make(model, optimizer=name, decay="weights", weight_decay=0.5, learning_rate=0.01)
    weights, vectors = optimizer.param_groups
    assert {p.dim() > 1 for p in weights["params"]} == {True} and {p.dim() for p in vectors["params"]} == {1}
    x, y = torch.randn(16, *SHAPE), torch.randint(10, (16,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    anatomy = Anatomy(model, x[:2])
    for layer, operation in (("conv1", MinWeight(0.5)), ("conv2", WeakExpand(0.5)), ("fc1", MinWeight(0.25))):
        operate(anatomy[layer], operation, optimizer)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0]
    assert all(p.dim() > 1 for p in weights["params"]) and all(p.dim() == 1 for p in vectors["params"])
    step()
    for parameter in model.parameters():  # only decay is left of a step without gradients
        parameter.grad = torch.zeros_like(parameter)
        optimizer.state[parameter] = {k: v * (k == "step") for k, v in optimizer.state[parameter].items()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for key, parameter in model.named_parameters():
        shrunk = bool((parameter.detach().abs() < before[key].abs()).any())
        assert shrunk == (parameter.dim() > 1), key

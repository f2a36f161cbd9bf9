"""Layers that are frozen after an operation: to the bit, with their optimizer state, for as long as the step says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import (
    Anatomy,
    Deepen,
    HashWeights,
    MeanReplace,
    MinWeight,
    Moment,
    Operation,
    PruneWeights,
    Schedule,
    Signals,
    Step,
    TriFactorize,
    operate,
)  # fmt: skip
from network_surgery.study.arms import rivals
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.loops.plain import check_schedule
from network_surgery.study.recipe.freezing import Freezing, changing
from network_surgery.study.store.words import describe
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from network_surgery.study.training.trainer import Callback, Trainer
from tests.ops.networks import build
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=4, batch_size=32, held_out=32, signal_images=32, learning_rate=0.02)
#: Units of a convolution go, and for ten steps only it and the one that reads it train; then ten without a freeze.
CUT = [{"when": "1ep", "layer": "conv1", "op": "min_weight", "keep": 0.5, "freeze": "10it"}]


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(Settings(train_images=200))  # five steps an epoch


class Watch(Callback):
    """Remembers after each step the parameters and their optimizer state, and the learning rate that it was made at."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.rates: list[float] = []

    def after_step(self, trainer: Trainer, loss: Tensor) -> None:
        state = trainer.optimizer.state
        found = {n: {"value": p.detach(), **state.get(p, {})} for n, p in trainer.model.named_parameters()}
        self.seen.append(copy.deepcopy(found))
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])


def equal(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd, all at once": {"optimizer": "sgd", "weight_decay": 0.01, "l1": 1e-3, "clip": 1.0, "ema": 0.9, "accumulate": 1,
                         "lr_schedule": "cosine"},
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_frozen_layers_stay_to_the_bit_with_their_state_and_move_afterwards(recipe: str, digits: ImageTask) -> None:
    watch = Watch()
    run(Cell("surgery", 0, CUT), digits, replace(SETTINGS, **RECIPES[recipe]), CPU, also=[watch])
    assert len(watch.seen) == 20
    for name in watch.seen[-1]:
        moved = [not equal(one[name], two[name]) for one, two in zip(watch.seen, watch.seen[1:], strict=False)]
        trains = name.startswith(("conv1", "conv2", "norm1"))
        assert all(moved[:4]) and all(moved[14:]), name
        assert moved[4:14] == [trains] * 10, name
    assert {name.partition(".")[0] for name in watch.seen[-1]} > {"conv1", "conv2", "fc1"}


def test_a_run_that_stops_while_layers_are_frozen_resumes_bit_for_bit(digits: ImageTask, tmp_path: Path) -> None:
    settings, cell = replace(SETTINGS, lr_schedule="linear", ema=0.9), Cell("surgery", 0, CUT)
    cell = replace(cell, schedule=[cell.schedule[0] | {"freeze": "8it", "lr_factor": 0.3}])
    whole = run(cell, digits, settings, CPU, network=tmp_path / "whole.pt")
    for after in (1, 2, 3):  # before, within and after the freeze
        seen: list[float] = []

        def die(epoch: dict[str, Any], seen: list[float] = seen, after: int = after) -> None:
            seen.append(epoch["epoch"])
            if len(seen) == after + 1:  # in the epoch after the last checkpoint
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(cell, digits, settings, CPU, tell=die, saved=tmp_path / f"{after}.pt")
        again = run(cell, digits, settings, CPU, saved=tmp_path / f"{after}.pt", network=tmp_path / "again.pt")
        assert without_times(again) == without_times(whole)
        assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_the_learning_rate_is_the_recipes_times_the_last_factor(digits: ImageTask) -> None:
    steps = [CUT[0] | {"freeze": None, "lr_factor": 0.1}, CUT[0] | {"when": "12it", "freeze": None, "lr_factor": 0.5}]
    rates = {}
    for schedule in ("constant", "linear"):
        for cell in (Cell("surgery", 0, steps), Cell("surgery", 0, [step | {"lr_factor": None} for step in steps])):
            watch = Watch()
            run(cell, digits, replace(SETTINGS, lr_schedule=schedule), CPU, also=[watch])
            rates[schedule, cell.schedule[0]["lr_factor"]] = watch.rates
        wanted = [rate * (1 if n < 5 else 0.1 if n < 12 else 0.5) for n, rate in enumerate(rates[schedule, None])]
        assert rates[schedule, 0.1] == pytest.approx(wanted)
    assert len(set(rates["linear", None])) == 20 and set(rates["constant", None]) == {0.02}


def test_every_arm_handles_it(digits: ImageTask) -> None:
    """Random units are followed by the same; cutting at the end has its own rate; restarts are not operated on."""
    arms = ("surgery", "restart", "random", "operate_first", "prune_end", "prune_end_rewind")
    settings = replace(SETTINGS, epochs=2, lr_schedule="linear", arms=arms)
    care = {"freeze": "3it", "lr_factor": 0.1}
    surgery = Cell("surgery", 0, [CUT[0] | care])
    outcome = run(surgery, digits, settings, CPU)
    assert outcome["operations"][0]["after"] == care
    cells = {cell.arm: cell for cell in rivals(surgery, outcome, settings)}
    assert set(cells) == {*arms} - {"surgery"}
    for arm, cell in cells.items():
        found = [{name: step.get(name) for name in care} for step in cell.schedule]
        wanted = care if arm == "random" else {"freeze": "3it", "lr_factor": None}
        assert found == ([] if arm == "restart" else [wanted]), arm
        if arm == "restart":
            continue
        watch = Watch()
        start = run(cell, digits, settings, CPU, also=[watch])["operations"][0]["iteration"]
        frozen = [n for n in watch.seen[-1] if equal(watch.seen[start][n], watch.seen[start + 2][n])]
        assert frozen and not any(name.startswith(("conv1", "conv2")) for name in frozen), arm
        assert not any(equal(watch.seen[start][name], watch.seen[start + 3][name]) for name in frozen), arm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))


def test_what_the_operations_of_a_moment_change_trains_and_what_later_ones_change_trains_again() -> None:
    model = network()
    layers = [list(layer.parameters()) for layer in model]

    def trained(freezing: Freezing, iteration: int) -> list[int]:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        freezing.withhold(iteration)
        kept = [[parameter.grad is not None for parameter in layer] for layer in layers]
        assert all(all(layer) or not any(layer) for layer in kept)
        return [number for number, layer in enumerate(kept) if all(layer)]

    freezing = Freezing(model)
    freezing.operated(3, layers[0], None)
    freezing.operated(3, layers[1], 9)
    assert trained(freezing, 3) == [0, 1] and trained(freezing, 8) == [0, 1] and trained(freezing, 9) == [0, 1, 2, 3]
    freezing.operated(3, layers[2], None)  # of the same moment
    assert trained(freezing, 4) == [0, 1, 2]
    again = Freezing(model)
    again.restore(freezing.state())
    assert trained(again, 8) == [0, 1, 2] and trained(again, 9) == [0, 1, 2, 3]
    freezing.operated(5, layers[3], None)  # a later one that freezes nothing
    assert trained(freezing, 5) == [0, 1, 2, 3]
    freezing.operated(6, layers[3], 8)  # and one that does: the others, anew
    assert trained(freezing, 7) == [3] and trained(freezing, 8) == [0, 1, 2, 3]
    freezing.operated(7, [], 12)  # nothing was changed
    assert trained(freezing, 8) == [0, 1, 2, 3]
    model[0].requires_grad_(False)
    freezing.operated(9, layers[0], 12)  # nothing that trains was changed
    assert trained(freezing, 10) == [0, 1, 2, 3]


CHANGES: dict[str, tuple[Operation, str, set[str]]] = {
    "units": (MinWeight(0.5), "0", {"0", "1", "4"}),
    "constants in the next bias": (MeanReplace(0.5), "0", {"0", "1", "4", "5"}),
    "a mask": (PruneWeights(0.3), "4", {"4"}),
    "masks on both sides": (TriFactorize(0.3), "4", {"4", "8"}),
    "hashed": (HashWeights(0.5), "4", {"4"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_layers_that_an_operation_changes(what: str) -> None:
    operation, layer, wanted = CHANGES[what]
    model, inputs = build("cnn", batch=16)
    anatomy, signals = Anatomy(model, inputs), Signals(model, inputs, torch.arange(16) % 3)
    for turn in range(2 if isinstance(operation, PruneWeights) else 1):  # the second time there is a mask already
        with changing(model) as changed:
            operate(anatomy[layer], replace(operation, fraction=0.6) if turn else operation, signals=signals)
        ids = {id(each) for each in changed}
        found = {n.partition(".")[0] for n, each in model.named_parameters() if id(each) in ids}
        assert found == wanted
        rest = [n for n, each in model.named_parameters() if id(each) not in ids]
        assert not any(name.partition(".")[0] in wanted for name in rest)


def test_nothing_changes_without_an_operation_and_new_blocks_are_what_has_changed() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(torch.relu(self.one(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 3))
    anatomy = Anatomy(model, torch.randn(3, 4))
    with changing(model) as changed:
        pass
    assert not changed
    old = {id(parameter) for parameter in model.parameters()}
    with changing(model) as changed:
        operate(anatomy["1"], Deepen(where="between", init="identity"))
    assert len(changed) == 8 and not {id(parameter) for parameter in changed} & old


def test_schedules_say_it_and_it_is_part_of_the_key() -> None:
    care = CUT[0] | {"lr_factor": 0.1}
    (step,) = Schedule.from_data([care]).steps
    assert str(step).endswith("on conv1, other layers frozen for 10it, learning rate times 0.1")
    assert (
        describe([care]) == "min_weight keep 0.5, learning rate times 0.1, other layers frozen for 10it on conv1 at 1ep"
    )
    plain = {name: value for name, value in CUT[0].items() if name != "freeze"}
    several = [plain, CUT[0], care, care | {"lr_factor": 0.2}, care | {"freeze": 0.5}]
    assert len({Cell("surgery", 0, [each]).key(SETTINGS) for each in several}) == len(several)
    assert len({describe([each]) for each in several}) == len(several)


@pytest.mark.parametrize(("name", "value"), [("freeze", Moment(1)), ("lr_factor", 0.1), ("after", "rewarm")])
def test_in_a_loop_of_somebody_else_s_it_is_refused(name: str, value: Any) -> None:
    step = Step(Moment(1), "fc1", MinWeight(0.5), **{name: value})
    with pytest.raises(StudyError, match=f"the loop's own: leave out '{name}'"):
        check_schedule(Schedule((step,)))

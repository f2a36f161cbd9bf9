"""Whole training runs as functions of plain data: determinism, resumption, measuring, restarting."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import (
    Anatomy,
    MinWeight,
    Moment,
    Schedule,
    Step,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    describe,
    operate,
)
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.recipe.optimizer import make_optimizer
from network_surgery.study.task.images import Images, ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training import checkpoint
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.evaluation import answers, evaluate
from network_surgery.study.training.records import operations_of, spikes
from network_surgery.study.training.restart import fan_power, renew
from network_surgery.study.training.run import run
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Callback, Trainer, steps_per_epoch
from tests.study.operated import operated, without_times

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=3, batch_size=64, held_out=64, signal_images=64)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def schedule(*steps: tuple[str, str, Any]) -> list[dict[str, Any]]:
    return Schedule(tuple(Step(Moment.parse(when), layer, op) for when, layer, op in steps)).to_data()


#: What an outcome has besides what its last epoch has told; of one that has grown ``stacks``, too.
ENDED = {"parameters", "flops", "training_flops", "architecture"}
SHRINK = schedule(("1ep", "conv2", MinWeight(0.5)), ("2ep", "fc1", WeakExpand(0.5)))


class Stop(Callback):
    """Ends training as a killed process would, after this number of epochs."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_epoch(self, trainer: Trainer, record: dict[str, float]) -> None:
        if trainer.epoch == self.after:
            raise KeyboardInterrupt


def test_the_same_cell_gives_the_same_outcome(digits: ImageTask) -> None:
    cell = Cell("surgery", 3, SHRINK, test=True)
    first, second = run(cell, digits, SETTINGS, CPU), run(cell, digits, SETTINGS, CPU)
    assert without_times(first) == without_times(second)
    other = run(Cell("surgery", 4, SHRINK, test=True), digits, SETTINGS, CPU)
    assert without_times(other) != without_times(first)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    digits: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, optimizer: str
) -> None:
    settings = Settings(epochs=3, batch_size=64, held_out=64, signal_images=64, optimizer=optimizer)
    cell = Cell("surgery", 0, SHRINK, test=True)
    whole = run(cell, digits, settings, CPU)

    reports: list[float] = []

    def die(epoch: dict[str, Any]) -> None:
        reports.append(epoch["epoch"])
        if len(reports) == after + 1:  # in the epoch after the last checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, digits, settings, CPU, tell=die, saved=tmp_path / "cell.pt")
    resumed: list[float] = []
    torch.manual_seed(99)
    outcome = run(cell, digits, settings, CPU, lambda e: resumed.append(e["epoch"]), saved=tmp_path / "cell.pt")
    assert without_times(outcome) == without_times(whole)
    assert resumed == [float(epoch) for epoch in range(after + 1, 4)]


def test_every_epoch_tells_what_has_been_reached(digits: ImageTask) -> None:
    """All that a shorter training ends with, so that nothing is missing where one is stopped."""
    reports: list[dict[str, Any]] = []
    cell = Cell("search", 3, SHRINK, trial=0)
    whole = run(cell, digits, SETTINGS, CPU, tell=lambda record: reports.append(copy.deepcopy(record)))
    shorter = run(replace(cell, schedule=SHRINK[:1]), digits, replace(SETTINGS, epochs=2), CPU)
    for outcome, record in ((shorter, reports[1]), (whole, reports[2])):
        reached = without_times(record["so_far"])
        assert {"validation_metric", "spikes", "epochs", "operations", "checks", "steps"} <= reached.keys()
        assert reached == {key: value for key, value in without_times(outcome).items() if key in reached}
        assert set(outcome) - set(record["so_far"]) == {*ENDED, *(["stacks"] if outcome is whole else [])}
        assert record["parameters"] == outcome["parameters"]


def test_a_checkpoint_describes_its_own_architecture(digits: ImageTask, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        torch.manual_seed(0)
        model = models.build("small_cnn", digits.shape, 10)
        theatre = Theatre(Schedule.from_data(SHRINK), digits.validation, len(digits.train))
        return Trainer(model, make_optimizer(SETTINGS, model), digits, epochs=3, batch_size=64, seed=0, device=CPU,
                       callbacks=[theatre])  # fmt: skip

    trained = trainer()
    trained.fit()
    checkpoint.save(trained, tmp_path / "a.pt")
    assert "conv2.weight" in torch.load(tmp_path / "a.pt", weights_only=True)["architecture"]["shapes"]
    fresh = trainer()
    checkpoint.load(fresh, tmp_path / "a.pt")
    assert describe(fresh.model) == describe(trained.model) != describe(trainer().model)
    assert fresh.model.conv2.out_channels == 32
    torch.testing.assert_close(fresh.model.state_dict(), trained.model.state_dict(), rtol=0, atol=0)
    moments = [s["exp_avg"] for s in fresh.optimizer.state.values()]
    assert [m.shape for m in moments] == [p.shape for p in fresh.model.parameters()]


def test_a_broken_checkpoint_is_refused_in_one_sentence(digits: ImageTask, tmp_path: Path) -> None:
    model = models.build("mlp", digits.shape, 10)
    trainer = Trainer(model, make_optimizer(SETTINGS, model), digits, epochs=1, batch_size=64, seed=0, device=CPU)
    checkpoint.save(trainer, tmp_path / "a.pt")
    other = models.build("small_cnn", digits.shape, 10)
    elsewhere = Trainer(other, make_optimizer(SETTINGS, other), digits, epochs=1, batch_size=64, seed=0, device=CPU)
    with pytest.raises(StudyError, match="is not a checkpoint of this network"):
        checkpoint.load(elsewhere, tmp_path / "a.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:500])
    with pytest.raises(StudyError, match=r"cut\.pt is not a checkpoint"):
        checkpoint.load(trainer, tmp_path / "cut.pt")


def test_the_theatre_measures_what_it_does(digits: ImageTask) -> None:
    outcome = run(Cell("surgery", 0, SHRINK, test=True), digits, SETTINGS, CPU)
    json.dumps(outcome)  # plain data
    removal, growth = outcome["operations"]
    assert (removal["layer"], removal["units_before"], removal["units_after"]) == ("conv2", 64, 32)
    assert removal["epoch"] == 1 and growth["epoch"] == 2
    assert removal["spike_factor"] == pytest.approx(removal["loss_after"] / removal["loss_before"])
    assert removal["spike_factor"] > 1.01
    assert removal["metric_after"] != removal["metric_before"]
    assert growth["metric_after"] == pytest.approx(growth["metric_before"], abs=1 / 64)  # one image held out
    assert growth["spike_factor"] == pytest.approx(1, abs=1e-4)
    assert growth["parameters_before"] == removal["parameters_after"]
    assert growth["parameters_after"] == outcome["parameters"]
    assert growth["loss_factor"] == pytest.approx(growth["training_loss_after"] / growth["training_loss_before"])
    for record in (removal, growth):
        assert record["interruptibility"] == pytest.approx(record["epoch_seconds"] / record["seconds"])
    assert removal["epochs_to_recover"] in (None, 1, 2)
    assert outcome["operation_seconds"] >= removal["seconds"] + growth["seconds"]


def test_steps_can_fall_inside_an_epoch(digits: ImageTask) -> None:
    per_epoch = steps_per_epoch(len(digits.train), 64)
    cell = Cell("surgery", 0, schedule((f"{per_epoch + 3}it", "fc1", MinWeight(0.25))))
    (record,) = run(cell, digits, SETTINGS, CPU)["operations"]
    assert record["iteration"] == per_epoch + 3
    assert record["epoch"] == pytest.approx(1 + 3 / per_epoch)


def test_operations_of_one_moment_count_as_one_spike() -> None:
    records = [
        operated(iteration=5, loss_before=0.5, loss_after=1.0, seconds=0.1, epochs_to_recover=2),
        operated(iteration=5, loss_before=1.0, loss_after=2.0, seconds=0.2, epochs_to_recover=1),
        operated(iteration=9, loss_before=0.4, loss_after=0.4, epoch=2.0),
    ]
    first, second = spikes(operations_of({"operations": records}))
    assert first.factor == 4 and first.seconds == pytest.approx(0.3)
    assert (first.loss_before, first.loss_after, first.epochs_to_recover) == (0.5, 2.0, 2)
    assert second.factor == 1 and second.epochs_to_recover is None


def test_an_empty_schedule_trains_like_a_plain_loop(digits: ImageTask) -> None:
    """Against a loop written here by hand, without any of ours but the data order."""
    outcome = run(Cell("original", 1), digits, SETTINGS, CPU)
    torch.manual_seed(1)
    model = models.build("small_cnn", digits.shape, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=SETTINGS.learning_rate)
    x = torch.tensor(digits.train.pixels).float() / 127.5 - 1
    y = torch.tensor(digits.train.labels)
    for epoch in range(3):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(100_003 + epoch))
        losses = []
        for index in order.split(64):
            model.train()
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        record = outcome["epochs"][epoch]
        reports = [record["first_loss"], record["last_loss"], record["train_loss"]]
        assert reports == pytest.approx([losses[0], losses[-1], sum(losses) / len(losses)], rel=1e-4)
    model.eval()
    scores = model(torch.tensor(digits.validation.pixels).float() / 127.5 - 1)
    truth = torch.tensor(digits.validation.labels)
    assert outcome["validation_metric"] == pytest.approx((scores.argmax(1) == truth).double().mean().item())
    assert outcome["validation_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(scores, truth).item(), rel=1e-4
    )


def test_a_restart_has_the_sizes_of_surgery_and_fresh_weights(digits: ImageTask) -> None:
    surgery = run(Cell("surgery", 0, SHRINK), digits, SETTINGS, CPU)
    restart = run(Cell("restart", 0, architecture=surgery["architecture"]), digits, SETTINGS, CPU)
    assert restart["architecture"] == surgery["architecture"]
    assert (restart["parameters"], restart["flops"]) == (surgery["parameters"], surgery["flops"])
    torch.manual_seed(0)
    model = models.build("small_cnn", digits.shape, 10)
    renew(model, surgery["architecture"], 0)
    weight = model.conv2.weight
    assert weight.shape == (32, 32, 3, 3)
    bound = (1 / (32 * 9)) ** 0.5  # torch's default for this fan-in
    assert weight.abs().max() <= bound and weight.std() > 0.4 * bound


def test_a_restart_is_initialized_as_its_factory_does() -> None:
    """At half the width, the deviations are those of the factory's rule, not of torch's default."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    assert fan_power([p for p in model.parameters() if p.dim() > 1]) == 1
    assert fan_power([p for p in models.build("mlp", (1, 8, 8), 10).parameters() if p.dim() > 1]) == 0
    assert fan_power([torch.randn(40, 30) * 0.01, torch.randn(300, 40) * 0.01, torch.randn(5, 300) * 0.01]) is None
    before = model.layer1[0].conv1.weight.std().item()
    operate(Anatomy(model, torch.randn(2, 3, 32, 32))["layer1.0.conv1"], MinWeight(0.5))
    halved = describe(model)
    fresh = torchvision.models.resnet18(weights=None)
    renew(fresh, halved, 1)
    assert describe(fresh) == halved
    assert fresh.layer1[0].conv1.weight.std().item() == pytest.approx(
        before * 2**0.5, rel=0.05
    )  # its fan-out is halved
    assert float(fresh.layer1[0].bn1.running_var.min()) == 1 and not fresh.layer1[0].bn1.bias.any()


def test_a_diverging_training_says_when(digits: ImageTask) -> None:
    settings = Settings(epochs=2, optimizer="sgd", learning_rate=1e6)
    with pytest.raises(Diverged, match=r"became (nan|inf) in epoch \d"):
        run(Cell("original", 0), digits.changed(network="mlp"), settings, CPU)


def test_an_unknown_layer_is_named(digits: ImageTask) -> None:
    with pytest.raises(SurgeryError, match="names the layer 'fc9'; this network has conv1, conv2, fc1"):
        run(Cell("surgery", 0, schedule(("1ep", "fc9", MinWeight()))), digits, SETTINGS, CPU)


def test_a_schedule_beyond_the_last_epoch_is_refused(digits: ImageTask) -> None:
    with pytest.raises(SurgeryError, match="3ep, but training ends after 3 epochs"):
        run(Cell("surgery", 0, schedule(("3ep", "fc1", MinWeight()))), digits, SETTINGS, CPU)


def test_a_cell_is_known_by_what_it_computes() -> None:
    cell = Cell("search", 0, SHRINK, trial=4)
    again = Cell("search", 0, copy.deepcopy(SHRINK), trial=7)
    assert cell.key(SETTINGS) == again.key(SETTINGS)
    assert cell.key(SETTINGS) != Cell("search", 1, SHRINK).key(SETTINGS)
    assert cell.key(SETTINGS) != cell.key(Settings(epochs=4))
    assert cell.key(SETTINGS) == cell.key(Settings.from_data(SETTINGS.to_data() | {"trials": 99}, "here"))


def test_a_last_batch_of_one_image_is_left_out(digits: ImageTask) -> None:
    few = ImageTask(
        Images(digits.train.pixels[:65], digits.train.labels[:65]), digits.validation, digits.test, digits.classes
    )
    assert steps_per_epoch(65, 64) == 1 and steps_per_epoch(66, 64) == 2
    run(Cell("original", 0), few, Settings(epochs=1, batch_size=64, model="small_cnn"), CPU)
    with pytest.raises(StudyError, match="at least 2 are needed"):
        steps_per_epoch(1, 64)


def test_evaluation_leaves_the_mode_and_the_statistics_alone(digits: ImageTask) -> None:
    model = models.build("small_cnn", digits.shape, 10).train()
    model.norm1.eval()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, CLASSIFICATION, Batches(digits.validation, CPU), batch_size=100)
    assert model.training and not model.norm1.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_zero_expansion_and_the_function_of_vgg16() -> None:
    model = models.build("vgg16", (3, 32, 32), 10).double().eval()
    anatomy = Anatomy(model, torch.zeros(2, 3, 32, 32, dtype=torch.float64))
    assert list(anatomy) == [*(f"conv{i}" for i in range(1, 12)), "fc1", "fc2", "fc3"]
    assert anatomy.cost()[1] == pytest.approx(2 * 135e6, rel=0.01)  # 135 million multiply-adds an image
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = model(x)
    operate(anatomy["conv11"], ZeroExpand(0.25))
    operate(anatomy["fc1"], WeakExpand(0.25))
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("state", ["carry", "reset"])
def test_the_optimizer_forgets_if_it_is_told_to(digits: ImageTask, state: str) -> None:
    settings = replace(SETTINGS, optimizer_state=state, epochs=2)
    seen: list[int] = []

    class Look(Callback):
        def before_step(self, trainer: Trainer) -> None:
            seen.append(len(trainer.optimizer.state))

    model = models.build(settings.model, digits.shape, len(digits.classes))
    theatre = Theatre(
        Schedule.from_data(schedule(("1ep", "conv2", MinWeight(0.5)))), digits.validation.thinned(64),
        64, settings.optimizer_state == "carry",
    )  # fmt: skip
    trainer = Trainer(
        model, make_optimizer(settings, model), digits, epochs=2, batch_size=64, seed=0, device=CPU,
        callbacks=[theatre, Look()],
    )  # fmt: skip
    trainer.fit()
    parameters = len(list(model.parameters()))
    assert seen[0] == 0 and seen[1] == parameters
    assert seen[trainer.per_epoch] == (parameters if state == "carry" else 0)
    cells = [
        run(Cell("surgery", 0, SHRINK), digits, replace(settings, epochs=3, optimizer_state=s), CPU)
        for s in ("carry", state)
    ]
    same = [epoch["train_loss"] for epoch in cells[0]["epochs"]] == [
        epoch["train_loss"] for epoch in cells[1]["epochs"]
    ]
    assert same == (state == "carry")
    keys = {Cell("surgery", 0, SHRINK).key(replace(settings, optimizer_state=s)) for s in ("carry", state)}
    assert len(keys) == 1 + (state == "reset")


def test_batchnorm_statistics_begin_anew_if_the_settings_say_so(digits: ImageTask) -> None:
    """Those of the layer that was operated on, and no others; weights and scales stay."""
    settings = replace(SETTINGS, epochs=2)
    found = {}
    for state in ("carry", "reset"):
        model = models.build(settings.model, digits.shape, len(digits.classes))
        theatre = Theatre(
            Schedule.from_data(schedule(("1ep", "conv2", MinWeight(0.5)))), digits.validation.thinned(64),
            64, True, state == "reset",
        )  # fmt: skip

        class Look(Callback):
            def before_step(self, trainer: Trainer, state: str = state) -> None:
                if trainer.iteration == trainer.per_epoch:
                    found[state] = [
                        (n.running_mean.clone(), n.running_var.clone(), n.weight.detach().clone())
                        for n in (trainer.model.norm1, trainer.model.norm2)  # type: ignore[union-attr]
                    ]

        torch.manual_seed(0)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        Trainer(
            model, make_optimizer(settings, model), digits, epochs=2, batch_size=64, seed=0, device=CPU,
            callbacks=[theatre, Look()],
        ).fit()  # fmt: skip
    (first, _), (other, renewed) = found["carry"], found["reset"]
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not renewed[0].any() and torch.equal(renewed[1], torch.ones(32)) and found["carry"][1][0].any()
    assert torch.equal(renewed[2], found["carry"][1][2])
    keys = {Cell("surgery", 0, SHRINK).key(replace(settings, batchnorm_statistics=s)) for s in ("carry", "reset")}
    assert len(keys) == 2


def test_metric_in_training_mode_is_by_batches_of_their_own_statistics(digits: ImageTask) -> None:
    model = models.build("small_cnn", digits.shape, 10).eval()
    images = Batches(digits.train, CPU)
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    found = torch.cat([scores for scores, _ in answers(model, images, mode="training")])
    accuracy = evaluate(model, CLASSIFICATION, images, mode="training")[1]
    assert not model.training and torch.equal(random, torch.random.get_rng_state())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    twin = copy.deepcopy(model).train()
    inputs, targets = images.take(slice(None))
    wanted = torch.cat([twin(inputs[:1000]), twin(inputs[1000:])]).detach()
    assert 1000 < len(images) < 2000
    torch.testing.assert_close(found, wanted)
    assert accuracy == float((wanted.argmax(dim=1) == targets).double().mean())
    assert not torch.allclose(found, torch.cat([scores for scores, _ in answers(model, images)]))
    rest = Batches(Images(digits.train.pixels[:1001], digits.train.labels[:1001]), CPU)
    assert [len(scores) for scores, _ in answers(model, rest, mode="training")] == [1001]


def test_every_fault_of_the_published_code_changes_a_training_and_is_off_by_default(digits: ImageTask) -> None:
    plain = run(Cell("surgery", 0, SHRINK, test=True), digits, SETTINGS, CPU)
    for fault in ({"batchnorm_statistics": "reset"}, {"accuracy_mode": "training"}):
        other = run(Cell("surgery", 0, SHRINK, test=True), digits, replace(SETTINGS, **fault), CPU)
        assert [e["validation_loss"] for e in other["epochs"]] != [e["validation_loss"] for e in plain["epochs"]]
        same_training = [e["train_loss"] for e in other["epochs"]] == [e["train_loss"] for e in plain["epochs"]]
        assert same_training  # BatchNorm's running statistics and the mode of a look do not touch training itself

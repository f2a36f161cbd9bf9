"""What a finished network is measured by."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from network_surgery.ops import load as load_network
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.measures import speed
from network_surgery.study.training.run import run

CPU = torch.device("cpu")


def test_the_test_images_agree_with_scikit_learn() -> None:
    torch.manual_seed(0)
    data = load("digits", 0.25)
    model, images = models.build("mlp", data.shape, 10), Batches(data.test, CPU)
    found = evaluate(model, data, images)
    inputs, targets = images.take(slice(None))
    with torch.no_grad():
        odds = model.eval()(inputs).softmax(dim=1).double().numpy()
    labels = targets.numpy()
    odds /= odds.sum(axis=1, keepdims=True)
    assert abs(found.loss - log_loss(labels, odds)) < 1e-5
    assert found.metric == found.metrics["accuracy"] == top_k_accuracy_score(labels, odds, k=1)
    assert found.metrics["top 5"] == top_k_accuracy_score(labels, odds, k=5)


def test_few_classes_have_no_first_five() -> None:
    data = load("digits", 0.25)
    few = data.changed(classes=data.classes[:9])
    scores, classes = torch.randn(4, 9), torch.arange(4)
    assert set(few.measure(scores, classes)) == {"accuracy"} != set(data.measure(scores, classes))


def test_speed_is_taken_of_one_image_and_of_many() -> None:
    shapes = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model.register_forward_pre_hook(lambda module, args: shapes.append(len(args[0])))
    found = speed(model, Batches(load("digits", 0.25).validation, CPU), CPU)
    assert set(shapes) == {1, 256} and model.training
    assert found["latency_seconds"]["1"] > 0 and found["latency_seconds"]["256"] > 0


def test_only_what_is_compared_is_measured() -> None:
    settings = Settings(model="mlp", epochs=1, batch_size=64, held_out=64, probe=0)
    for test in (True, False):
        outcome = run(Cell("original", 0, test=test), ImageTask.of(settings), settings, CPU)
        assert all((key in outcome) == test for key in ("test_metric", "latency_seconds", "train_test_gap"))


def test_the_gap_is_of_the_final_network_on_all_images_that_it_was_trained_on(tmp_path: Path) -> None:
    settings = Settings(model="mlp", epochs=3, batch_size=64, held_out=64, probe=0)
    data = ImageTask.of(settings)
    outcome = run(Cell("original", 0, test=True), data, settings, CPU, network=tmp_path / "net.pt")
    network = load_network(lambda: models.build("mlp", data.shape, 10), tmp_path / "net.pt")
    wanted = [evaluate(network, CLASSIFICATION, Batches(images, CPU))[1] for images in (data.train, data.test)]
    assert outcome["train_metric"] == wanted[0] and outcome["train_test_gap"] == wanted[0] - wanted[1]


def test_scores_have_each_samples_own_values() -> None:
    """Their means are the scores, sample by sample what a network answers, in whatever batches."""
    torch.manual_seed(0)
    data = load("digits", 0.25)
    model, images = models.build("mlp", data.shape, 10), Batches(data.validation.thinned(60), CPU)
    scores = evaluate(model, data, images, batch_size=7)
    inputs, targets = images.take(slice(None))
    with torch.no_grad():
        outputs = model.eval()(inputs)
    wanted = torch.nn.functional.cross_entropy(outputs, targets.long(), reduction="none")
    torch.testing.assert_close(scores.each["loss"], wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores.each["accuracy"] > 0.5, outputs.argmax(dim=1) == targets)
    assert abs(float(scores.each["loss"].double().mean()) - scores.loss) < 1e-6

"""A network that is trained to answer as its teacher does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import softmax

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.distillation import Teacher, comparable, distance
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.task import CLASSIFICATION, Task
from network_surgery.study.task.text import TextTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
SETTINGS = Settings(model="mlp", epochs=2, batch_size=64, held_out=64, probe=0)


def test_it_is_the_divergence_of_softened_probabilities_times_the_temperature_squared() -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(5, 7, 3), torch.randn(5, 7, 3)
    assert distance(wanted, wanted, 1, 4.0) == pytest.approx(0.0, abs=1e-6)
    p, q = softmax(wanted / 4, dim=1), softmax(found / 4, dim=1)
    assert distance(found, wanted, 1, 4.0) == pytest.approx(float(16 * (p * (p / q).log()).sum(dim=1).mean()), rel=1e-4)
    assert distance(found, wanted, None, 4.0) == pytest.approx(float((found - wanted).square().mean()))


def test_what_is_compared_depends_on_the_outputs() -> None:
    scores = torch.zeros(2, 5, 3)
    assert comparable(CLASSIFICATION, scores)[1] == 1
    assert comparable(TextTask.__new__(TextTask), {"logits": scores})[1] == -1
    assert comparable(Task(), scores)[1] is None
    for outputs, kind in (((scores, scores), "a tuple"), (scores.long(), "a tensor of whole numbers")):
        with pytest.raises(StudyError, match=f"but that of Task returns {kind}; leave distill out of arms"):
            comparable(Task(), outputs)


def test_with_all_the_weight_on_the_teacher_the_network_becomes_like_it(tmp_path: Path) -> None:
    digits = ImageTask.of(SETTINGS)
    teacher, cell = Cell("original", 3, epochs=20), Cell("distill", 4, teacher="original-seed-3", epochs=20)
    kept = tmp_path / "original-seed-3.pt"
    taught = run(teacher, digits, SETTINGS, CPU, network=kept)
    alike = []
    for weight in (0.01, 1.0):
        settings = replace(SETTINGS, distill_weight=weight)
        outcome = run(cell, digits, settings, CPU, teacher=kept, network=tmp_path / f"{weight}.pt")
        forward = outcome["training_flops"] / taught["training_flops"]
        assert forward == pytest.approx(4 / 3)  # three forward passes' worth for itself, one of the teacher
        alike.append(disagreement(digits, kept, tmp_path / f"{weight}.pt"))
    assert alike[1] < alike[0]
    keys = {cell.key(replace(SETTINGS, distill_temperature=t)) for t in (1.0, 4.0)}
    others = {Cell("original", 3).key(replace(SETTINGS, distill_temperature=t)) for t in (1.0, 4.0)}
    assert len(keys) == 2 and len(others) == 1  # only what is taught depends on it


def disagreement(task: ImageTask, *networks: Path) -> float:
    from network_surgery.ops import load
    from network_surgery.study.task.check import fresh
    from network_surgery.study.task.samples import Batches

    inputs = Batches(task.test, CPU).take(slice(None))[0]
    one, other = (load(lambda: fresh(task), path).eval()(inputs).detach() for path in networks)
    return float(distance(one, other, 1, 4.0))


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    digits, cell = ImageTask.of(SETTINGS), Cell("distill", 4, teacher="original-seed-4")
    with pytest.raises(StudyError, match="distill learns from the network of original-seed-4, but its file"):
        run(cell, digits, SETTINGS, CPU, teacher=tmp_path / "original-seed-4.pt")


def test_a_teacher_does_not_learn() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    teacher, inputs = Teacher(network, CLASSIFICATION), torch.randn(8, 4)
    before: dict[str, Any] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    outputs = torch.randn(8, 3, requires_grad=True)
    teacher.join(outputs.square().mean(), inputs, outputs).backward()
    assert outputs.grad is not None and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

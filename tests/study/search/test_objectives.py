"""What a study optimizes follows the metric of its task."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.study import StudyDirection

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search import objectives
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.task.metric import ACCURACY, Metric

PERPLEXITY = Metric("perplexity", "lower", margin=0.05)
LAYERS = {"fc1": 64, "fc2": 64}
NAMES = ("metric", "loss", "parameters")


@pytest.mark.parametrize(("metric", "direction"), [(ACCURACY, "MAXIMIZE"), (PERPLEXITY, "MINIMIZE")])
def test_optuna_knows_direction_and_name(metric: Metric, direction: str, tmp_path: Path) -> None:
    source = Sampled(Settings(objective=NAMES, trials=2), LAYERS, tmp_path / "a.db", metric=metric)
    assert source.study.directions == [StudyDirection[direction], StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    assert source.study.metric_names == [f"validation {metric.name}", "validation loss", "parameters"]
    cell = source.next()
    assert cell is not None
    result = {"validation_metric": 0.25, "validation_loss": 0.5, "parameters": 10}
    source.tell(cell, result)
    trial = source.study.trials[0]
    assert trial.values == [0.25, 0.5, 10.0] and trial.user_attrs[f"validation {metric.name}"] == 0.25


def test_accuracy_names_the_metric_of_a_task_whose_metric_it_is() -> None:
    objectives.check(Settings(objective=("accuracy", "loss"), targets=(0.9,)), ACCURACY)
    with pytest.raises(StudyError, match="objective is 'accuracy', but the metric of this task is 'perplexity'"):
        objectives.check(Settings(objective=("accuracy",)), PERPLEXITY)
    with pytest.raises(StudyError, match="the metric of this task is its loss"):
        objectives.check(Settings(objective=("metric", "loss")), Metric("loss", "lower"))
    with pytest.raises(StudyError, match="none of them twice"):
        Settings(objective=("accuracy", "metric"))


def test_targets_of_a_percentage_are_fractions() -> None:
    objectives.check(Settings(targets=(20.0, 12.5)), PERPLEXITY)
    with pytest.raises(StudyError, match="targets has 95, but accuracy is a fraction"):
        objectives.check(Settings(targets=(0.9, 95)), ACCURACY)


def test_a_value_is_written_with_its_name() -> None:
    assert objectives.format_objective(0.9, "accuracy", ACCURACY) == "90.00% validation accuracy"
    assert objectives.format_objective(12.3456, "metric", PERPLEXITY) == "12.346 validation perplexity"
    assert objectives.format_objective(0.12345, "loss", PERPLEXITY) == "0.1235 validation loss"
    assert objectives.format_objective(1200, "flops", PERPLEXITY) == "1,200 FLOPs"

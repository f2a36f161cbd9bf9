"""The experiment on redundancy, small: what is counted, looks without a trace, and norms that are estimated first."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from network_surgery.study import models
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Rows
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.redundancy import EXPERIMENT, measure, page
from network_surgery.study.experiments.redundancy.measure import SHARES, Options
from network_surgery.study.task.images import load
from network_surgery.study.training.trainer import Shown, Trainer
from tests.study.experiments.made_up import measured_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load("digits", 0.2, 200)


@pytest.fixture(scope="module")
def rows(digits):
    return measure.looks(digits, "squeezenet1_1", 0, 1)


def trainer_of(model, data):
    return Trainer(model, SGD(model.parameters(), 0.1), data, epochs=1, batch_size=32, seed=0, device=CPU)


def test_images_are_made_to_suit(digits):
    suited = measure.suit(digits, 32)
    assert suited.train.pixels.shape[1:] == (3, 32, 32) and suited.train.pixels.dtype == np.uint8
    assert suited.classes == digits.classes and len(suited.test) == len(digits.test)
    grey = suited.train.pixels
    assert (grey[:, 0] == grey[:, 2]).all() and (measure.suit(suited, 16).train.pixels == grey).all()


def test_every_layer_needs_more_components_for_more_of_the_variance(rows):
    untrained, trained, shrunk = rows
    assert [row["moment"] for row in rows] == ["untrained", "trained", "after PCNS"]
    for row in (untrained, trained):
        needed, units = np.array(row["needed"]), np.array(row["units"])
        assert needed.shape == (len(units), len(SHARES)) and (np.diff(needed, axis=1) >= 0).all()
        assert (needed >= 0).all() and (needed <= units[:, None]).all() and 0 < row["left"] <= row["parameters"]
    assert 0 <= shrunk["accuracy"] <= 1 and untrained["needed"] != trained["needed"]


def test_copies_of_units_are_redundant_and_looking_changes_nothing(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    with torch.no_grad():  # four units, each there three times
        model[1].weight.copy_(model[1].weight[:4].repeat(3, 1))
        model[1].bias.copy_(model[1].bias[:4].repeat(3))
    before = copy.deepcopy(model.state_dict())
    row, _ = measure.look(model, trainer_of(model, digits))
    assert row["units"] == [12] and row["samples"][0] >= 120 and row["needed"][0][-1] <= 4
    kept = min(max(row["needed"][0][1], 1) + 1, 12)  # at 0.99: what PCNS at 1e-2 keeps
    assert row["left"] == 64 * kept + kept + 10 * kept + 10
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_initial_and_estimated_statistics_of_norms_are_told_apart(digits):
    """At 0 and 1 an untrained network looks redundant; with the statistics of the images it does not."""
    data = measure.suit(digits, 32)
    torch.manual_seed(0)
    model = models.build("torchvision:resnet18", data.shape, 10)
    trainer = trainer_of(model, data)
    estimated = measure.estimate_statistics(model, Shown(trainer.train, 64))
    initial, after = (measure.look(network, trainer)[0] for network in (model, estimated))
    shares = [np.array(row["needed"])[:, 1] / row["units"] for row in (initial, after)]
    assert np.median(shares[0]) < 0.6 * np.median(shares[1])
    assert (model.bn1.running_mean == 0).all() and (model.bn1.running_var == 1).all() and not estimated.training
    outputs = torch.cat([model.conv1(inputs).detach() for inputs in Shown(trainer.train, 64)])
    torch.testing.assert_close(estimated.bn1.running_mean, outputs.mean(dim=(0, 2, 3)), atol=0.02, rtol=0)
    torch.testing.assert_close(estimated.bn1.running_var, outputs.var(dim=(0, 2, 3)), rtol=0.1, atol=0)


def made_up(**changes):
    """Networks of two layers of 10 units, which need about this much more of them at 0.99 after training."""
    rows = Rows()
    for name, change in changes.items():
        for seed in range(4):
            first = {
                "parameters": 100,
                "left": 50,
                "units": [10, 10],
                "samples": [100, 20],
                "accuracy": 0.1 + seed / 100,
            }
            moved = 4 + round(10 * change) + seed % 2
            for moment, needed in (("untrained", 4), ("trained", moved)):
                row = {"network": name, "seed": seed, "moment": moment} | first
                rows.append(row | {"needed": [[1, needed, 6, 8], [1, needed, 6, 9]]})
    facts = {"train": 10, "validation": 10, "test": 10}
    return measured_of("redundancy", Options(), facts, rows)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"resnet18": -0.3, "alexnet": -0.3}, "holds"),
        ({"resnet18": 0.3, "alexnet": 0.3}, "does not hold: the opposite in 2 of 2"),
        ({"resnet18": 0.3, "alexnet": -0.3}, "depends: holds in 1, the opposite in 1 of 2"),
    ],
)
def test_verdict_and_page_follow_the_rows(changes, word, tmp_path):
    measured = made_up(**changes)
    assert [verdict.word for verdict in judge(page.claims(measured.rows))] == [word]
    file = bench.write(EXPERIMENT.folder / "page.md", page.parts(measured), measured, tmp_path)
    text = file.read_text(encoding="utf-8")
    assert f"- **{word.partition(':')[0]}**: training brings redundancy" in text and "nan" not in text
    assert "| resnet18 | trained | 11.5 ± 1.3 | 100 | 50.0 | 2 |" in text and "| 0 | 0 | 1 |" in text
    assert (tmp_path / "components.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_network_is_refused():
    with pytest.raises(StudyError, match="no network lenet; give one or several of alexnet"):
        Options(networks="alexnet,lenet")

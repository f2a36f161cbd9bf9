"""The experiment on redundancy, small: what is counted, and that looking leaves the network as it was."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from typer.testing import CliRunner

from network_surgery.ops import Anatomy
from network_surgery.study.data import load
from network_surgery.study.experiments.redundancy import __main__ as command
from network_surgery.study.experiments.redundancy import measure as measured
from network_surgery.study.experiments.redundancy import report as written
from network_surgery.study.experiments.redundancy.measure import SHARES, Seen
from network_surgery.study.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    return load("digits", 0.2, 200)


@pytest.fixture(scope="module")
def found(digits):
    return measured.measure(digits, ["squeezenet1_1"], seeds=2, epochs=1, workers=1)


def test_images_are_made_to_suit(digits):
    suited = measured.suited(digits, 32)
    assert suited.train.pixels.shape[1:] == (3, 32, 32) and suited.train.pixels.dtype == np.uint8
    assert suited.classes == digits.classes and len(suited.test) == len(digits.test)
    grey = suited.train.pixels
    assert (grey[:, 0] == grey[:, 2]).all() and (measured.suited(suited, 16).train.pixels == grey).all()


def test_every_layer_needs_more_components_for_more_of_the_variance(found):
    for each in found["squeezenet1_1"]:
        for seen in (each.before, each.after):
            assert seen.needed.shape == (len(seen.layers), len(SHARES))
            assert (np.diff(seen.needed, axis=1) >= 0).all()
            assert (seen.needed >= 0).all() and (seen.needed <= seen.units[:, None]).all()
            assert 0 < seen.left <= each.parameters
        assert 0 <= each.shrunk <= 1 and (each.before.needed != each.after.needed).any()


def test_copies_of_units_are_found_redundant_and_looking_changes_nothing(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    with torch.no_grad():  # four units, each there three times
        model[1].weight.copy_(model[1].weight[:4].repeat(3, 1))
        model[1].bias.copy_(model[1].bias[:4].repeat(3))
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(
        model, SGD(model.parameters(), 0.1), digits, epochs=1, batch_size=32, seed=0, device=torch.device("cpu")
    )
    seen, _ = measured.look(Anatomy(model, trainer.train.take(slice(0, 2))[0]), trainer)
    assert seen.units.tolist() == [12] and seen.samples[0] >= 120
    assert seen.needed[0, -1] <= 4
    kept = min(max(int(seen.needed[0, 1]), 1) + 1, 12)  # at 0.99: what PCNS at 1e-2 keeps
    assert seen.left == 64 * kept + kept + 10 * kept + 10
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def made_up(change: float, left: int) -> list[measured.Measured]:
    """A network of two layers of 10 units, whose median share at 0.99 moves by about ``change``."""
    several = []
    for seed in range(3):
        needed = np.array([[1, 4, 6, 8], [1, 4, 6, 8]])
        moved = needed.copy()
        moved[:, 1] += round(10 * change) + np.array([0, seed % 2])
        base = Seen(("a", "b"), np.array([10, 10]), needed, np.array([100, 20]), 50)
        after = dataclasses.replace(base, needed=moved, left=left)
        several.append(measured.Measured("resnet18", seed, 100, base, after, 0.1, 0.5, 0.4))
    return several


def test_verdicts_follow_the_numbers():
    down = {name: made_up(-0.3, 20) for name in ("resnet18", "alexnet")}
    assert written.verdicts(down)[0].startswith("- **holds**")
    up = {"resnet18": made_up(0.3, 90), "alexnet": made_up(0.3, 80)}
    assert written.verdicts(up)[0].startswith("- **does not hold; the reverse in 2 of 2**")
    mixed = {"resnet18": made_up(0.3, 90), "alexnet": made_up(-0.3, 20)}
    assert written.verdicts(mixed)[0].startswith("- **holds in 1 of 2, the reverse in 1**")
    text = written.benefit(mixed)
    assert text.startswith("**alexnet**") and text.index("alexnet 80.0%") < text.index("resnet18 10.0%")
    assert "-10.0" in text and "Not counted" not in text
    dull = {"resnet18": made_up(0.3, 90), "alexnet": [dataclasses.replace(m, trained=0.12) for m in mixed["alexnet"]]}
    text = written.benefit(dull)
    assert text.startswith("**resnet18**") and text.index("Not counted") < text.index("alexnet 80.0%")


def test_a_report_and_a_figure_are_written(found, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *given: found)
    out = tmp_path / "docs"
    command.main("digits", "", 200, "squeezenet1_1", 1, 2, 1, out)
    text = (out / "redundancy.md").read_text(encoding="utf-8")
    assert "| squeezenet1_1 |" in text and "(redundancy.png)" in text and "nan" not in text
    assert (out / "redundancy.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_network_is_refused():
    app = command.typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, ["--networks", "alexnet,lenet"])
    assert result.exit_code == 2 and "lenet" in result.output

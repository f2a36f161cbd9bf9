"""The experiment on PCNS, small: its arms start alike, its formulas are right, its page says what was found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from network_surgery.ops import PCNS, Signals, apply
from network_surgery.ops.maths.condensed import Condensed, relative_error
from network_surgery.study.experiments.pcns import __main__ as command
from network_surgery.study.experiments.pcns import figures, orders, prediction, samples, shrinking
from network_surgery.study.experiments.pcns import parallel as parallel
from network_surgery.study.experiments.pcns import report as written
from network_surgery.study.experiments.pcns.parallel import Results
from network_surgery.study.experiments.pcns.shrinking import OTHERS, PIVOTED, UNINTERRUPTED
from network_surgery.study.experiments.pcns.trained import SETTINGS, Trained

pytestmark = pytest.mark.slow

SMALL = tuple(dataclasses.replace(setting, before=2, after=2) for setting in SETTINGS[::2])


@pytest.fixture(scope="module")
def results() -> Results:
    patch = pytest.MonkeyPatch()
    patch.setattr(shrinking, "THRESHOLDS", (1e-1, 1e-2))
    patch.setattr(figures, "THRESHOLDS", (1e-1, 1e-2))
    patch.setattr(written, "THRESHOLDS", (1e-1, 1e-2))
    patch.setattr(orders, "THRESHOLDS", (1e-2,))
    patch.setattr(written, "ORDERED_AT", (1e-2,))
    patch.setattr(prediction, "KEEPS", (0.9, 0.5))
    patch.setattr(parallel, "IMAGES", 800)
    patch.setattr(samples, "SHOWN_AT_ONCE", (64, 720))
    dataset = parallel.load("digits")
    parts = [parallel.of_seed(seed, dataset, SMALL) for seed in (0, 1)]
    yield Results(
        "digits", "the digits", len(dataset.train), len(dataset.test), shrinking.gathered([part[0] for part in parts]),
        [part[1] for part in parts], [part[2] for part in parts], [part[3] for part in parts],
        [part[4] for part in parts],
    )  # fmt: skip
    patch.undo()


def test_every_arm_starts_from_the_same_network_and_keeps_as_many_units(results: Results) -> None:
    for setting in SMALL:
        start = results.found[setting.name, 0.0, UNINTERRUPTED]["before"]
        for threshold in (1e-1, 1e-2):
            pivoted = results.found[setting.name, threshold, PIVOTED]
            for arm in OTHERS:
                record = results.found[setting.name, threshold, arm]
                np.testing.assert_array_equal(record["before"], start)
                for name in (name for name in pivoted if name.startswith("units ")):
                    np.testing.assert_array_equal(record[name], pivoted[name])
                np.testing.assert_array_equal(record["parameters"], pivoted["parameters"])
        left = results.found[setting.name, 0.0, UNINTERRUPTED]
        np.testing.assert_array_equal(left["before"], left["after 0"])


def test_a_smaller_threshold_keeps_more_and_misses_less(results: Results) -> None:
    for setting in SMALL:
        loose, tight = (results.found[setting.name, threshold, PIVOTED] for threshold in (1e-1, 1e-2))
        for layer in written.layers_of(results.found, setting.name):
            assert (loose[f"units {layer}"] <= tight[f"units {layer}"]).all()
            assert (loose[f"error {layer}"] >= tight[f"error {layer}"]).all()
        assert (loose["parameters"] < tight["parameters"]).all()


def test_at_once_is_last_to_first_on_the_same_images() -> None:
    """What lies before a layer does not change its outputs: one forward pass for all layers is enough."""
    dataset = parallel.load("digits")
    trained = Trained(SMALL[0], 0, dataset)
    inputs = trained.train.take(slice(0, 600))[0]
    answers = []
    for once in (True, False):
        model, optimizer = trained.copy()
        anatomy = trained.anatomy(model)
        signals = Signals(model, inputs)
        if once:
            for plan in [PCNS(0.05).propose(layer, signals) for layer in anatomy.values()]:
                apply(plan, optimizer)
        else:
            for name in list(anatomy)[::-1]:
                apply(PCNS(0.05).propose(anatomy[name], Signals(model, inputs)), optimizer)
        answers.append(model(trained.test.take(slice(None))[0]).detach())
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)


def test_the_expected_error_is_that_of_normal_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    units, kept, rows = 30, 8, 60
    mixed = torch.randn(4, units, generator=generator, dtype=torch.float64)

    def drawn(count: int) -> Condensed:
        common = torch.randn(count, 4, generator=generator, dtype=torch.float64) @ mixed
        return Condensed.of(common + torch.randn(count, units, generator=generator, dtype=torch.float64))

    unseen, sources, ratios = drawn(4000), tuple(range(kept)), []
    for _ in range(40):
        seen = drawn(rows)
        fitted = seen.combination(sources)
        ratios.append([fitted.missed(each) / each.samples for each in (unseen, seen)])
    new, old = np.array(ratios).mean(axis=0)
    assert (new / old) ** 0.5 == pytest.approx(samples.expected(rows, kept), rel=0.03)
    assert relative_error(0.0, 1.0) == 0


def test_more_samples_bring_the_errors_together(results: Results) -> None:
    for part in results.sampled:
        for values in part.values():
            few, many = min(values), max(values)
            assert values[few][1] < values[few][2]
            assert values[few][2] / values[few][1] > values[many][2] / values[many][1]


def test_the_drafts_form_needs_images_for_its_inputs(results: Results) -> None:
    for part in results.emitted:
        assert {key[:2] for key in part} >= {(SMALL[0].name, "eigen"), (SMALL[0].name, "pivoted")}
        for (_, basis, _), accuracy in part.items():
            assert 0 <= accuracy <= 1 and (basis == "eigen" or accuracy > 0.5)
    assert "| dense, LeakyReLU | eigen |" in written.emissions(results.emitted)


def test_small_changes_of_the_loss_are_predicted(results: Results) -> None:
    points = [point for part in results.points for point in part if point.method == "PCNS, pivoted"]
    assert len(points) == 2 * 2 * sum(2 + (setting.name[0] == "C") for setting in SMALL)
    for point in points:
        if abs(point.tried) < 0.05:
            assert point.predicted == pytest.approx(point.tried, abs=0.02)


def test_the_page_and_the_figures_say_it(results: Results, tmp_path) -> None:
    drawings = figures.draw(results)
    text = written.report(results, drawings)
    assert set(drawings) == {"pcns", "pcns_prediction", "pcns_samples"}
    assert all(f"![{drawing.title}]({name}.png)" in text for name, drawing in drawings.items())
    assert "nan" not in text and "**Redundancy" in text and "| dropped variance |" in text
    for setting in SMALL:
        assert f"### {setting.name}" in text
    for drawing in drawings.values():
        drawing.save_small(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 5000


def test_the_command_writes(results: Results, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(command, "measure", lambda data, seeds, workers, about: results)
    import typer

    app = typer.Typer()
    app.command()(command.main)
    ended = CliRunner().invoke(app, ["--out", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "pcns.md", "pcns.png", "pcns_prediction.png", "pcns_samples.png",
    }  # fmt: skip

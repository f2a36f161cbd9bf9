"""The isolation study, small: its shortcut is the operations, and its curves behave as distances do."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch

from network_surgery.ops import Anatomy, Signals, operate
from network_surgery.study import data
from network_surgery.study.cli import main
from network_surgery.study.config import compose
from network_surgery.study.experiments.isolation import random_weights, trained
from network_surgery.study.experiments.isolation.curves import (
    GROWTHS,
    MIN_WEIGHT,
    RANKS,
    REMOVALS,
    REPLACED,
    WEIGHTS,
    Curves,
    eigen,
)
from network_surgery.study.experiments.isolation.random_weights import Iteration, one_thread_each, squared
from network_surgery.study.experiments.isolation.statements import CONTRARY, HOLDS, UNDECIDED, judge

CPU = torch.device("cpu")
WIDTH, STEP = 32, 6


@pytest.fixture(scope="module")
def iteration():
    return Iteration(WIDTH, STEP, seed=3, device=CPU)


@pytest.fixture(scope="module")
def random():
    return random_weights.measure(WIDTH, STEP, 3, seed=0, device=CPU, tell=lambda words: None)


def operated(seed, method, make, size, grow):
    """The squared distance that ``operate`` makes on the network itself."""
    generator = torch.Generator().manual_seed(seed)
    model = random_weights.network(WIDTH, generator)
    inputs, shown = torch.rand(WIDTH, WIDTH, generator=generator), torch.rand(4 * WIDTH, WIDTH, generator=generator)
    operation = make(size / WIDTH - grow, seed)
    with torch.no_grad():
        before = model(inputs)
        signals = Signals(model, shown) if operation.needs_signals else None
        plan = operate(Anatomy(model, inputs[:2])["0"], operation, signals=signals)
        assert plan.units_after == size, method
        return squared(model(inputs) - before)


def test_the_shortcut_gives_what_the_operations_give(iteration):
    assert iteration.smaller == [2, 8, 14, 20, 26] and iteration.larger == [38, 44, 50, 56, 62]
    for curves, methods, sizes, grow in (
        (dict(iteration.shrunk()), REMOVALS, iteration.smaller, 0),
        (dict(iteration.grown()), GROWTHS, iteration.larger, 1),
    ):
        assert curves.keys() == methods.keys()
        for method, make in methods.items():
            wanted = [operated(3, method, make, size, grow) for size in sizes]
            np.testing.assert_allclose(curves[method], wanted, rtol=2e-4, atol=1e-8, err_msg=method)


def test_random_replacement_is_a_fresh_network_of_that_size(iteration):
    """Its distance is that of two independent outputs: the sum of their squared norms, about."""
    smaller, larger = iteration.replaced()
    assert len(smaller) == len(larger) == 5
    assert np.mean([*smaller, *larger]) / iteration.norm == pytest.approx(2, abs=0.8)


def test_curves_of_random_weights(random):
    shrink, grow, spectra = random
    assert (shrink.n, grow.n, len(spectra)) == (3, 3, 3)
    np.testing.assert_array_equal(shrink.distance[eigen(1.0)], shrink.distance[MIN_WEIGHT])
    for method in (MIN_WEIGHT, "MeanReplace, l2", "PCNS"):
        assert (np.diff(shrink.relative[method].mean(axis=0)) < 0).all(), method  # falls as more units stay
    for method in GROWTHS:
        assert grow.relative[method].max() < 1e-11
    assert grow.relative[REPLACED].min() > 0.5
    for rows in spectra:
        assert rows[0] == pytest.approx(1) and rows == sorted(rows, reverse=True)


def test_results_do_not_depend_on_the_cores(random):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_thread_each(CPU) as workers:
            assert workers == 3 and torch.get_num_threads() == 1
        again, _, _ = random_weights.measure(WIDTH, STEP, 3, 0, CPU, lambda words: None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for method, distances in random[0].distance.items():
        np.testing.assert_array_equal(distances, again.distance[method])


def test_trained_layers_are_left_as_they_were(monkeypatch):
    monkeypatch.setattr(trained, "KEEPS", (0.25, 0.75))
    monkeypatch.setattr(trained, "GROWS", (0.5,))
    settings = compose("digits", None, {"epochs": 1, "model": "mlp"})
    dataset = data.load("digits", settings.validation)
    network = trained.Trained(settings, dataset, 0, CPU)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    layer = network.anatomy["fc1"]
    assert network.sizes(layer, "shrink", (0.01, 0.011, 0.5, 1.0)) == {2: 0.011, 64: 0.5}
    distance, norm, accuracy = network.tried(layer, REMOVALS[MIN_WEIGHT](0.25, 0))
    fresh, _, guessed = network.tried(layer, REMOVALS[MIN_WEIGHT](0.25, 0), fresh=0)
    assert 0 < distance < norm and distance < fresh and guessed < accuracy < network.accuracy + 0.05
    for name, value in network.model.state_dict().items():
        assert torch.equal(value, before[name])
    curves, spectra, accuracies = trained.measure(settings, dataset, 2, CPU, lambda words: None)
    assert [(each.where, each.change, each.sizes) for each in curves] == [
        ("fc1", "shrink", [32, 96]), ("fc1", "grow", [192]), ("fc2", "shrink", [16, 48]), ("fc2", "grow", [96]),
    ]  # fmt: skip
    assert len(accuracies) == 2 and all(len(rows) == 2 for rows in spectra.values())
    for each in curves:
        assert not each.missing and each.n == 2
        if each.change == "grow":
            assert max(each.relative[method].max() for method in GROWTHS) < 1e-10
        else:
            np.testing.assert_array_equal(each.distance[eigen(1.0)], each.distance[MIN_WEIGHT])


def ranked(**averages):
    """Curves in which each rank has the given relative distance, with a little noise, and MinWeight that of rank 1."""
    noise = np.random.default_rng(0).normal(0, 0.01, (8, 3))
    curves = Curves("here", "shrink", 8, [1, 4, 7])
    for weights in WEIGHTS:
        for i, rank in enumerate(RANKS):
            curves.relative[eigen(rank, weights)] = averages[RANKS[rank]] + noise * (1 + i / 10)
    curves.relative[MIN_WEIGHT], curves.relative[REPLACED] = curves.relative[eigen(1.0)], 2 + noise**2
    curves.distance = curves.relative
    return curves


@pytest.mark.parametrize(
    ("averages", "finding"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.45, 0.5), HOLDS),
        ((0.1, 0.2, 0.15, 0.4, 0.45, 0.5), CONTRARY),
        ((0.1, 0.2, 0.2, 0.4, 0.45, 0.5), UNDECIDED),
    ],
)
def test_a_statement_is_judged_by_all_of_its_comparisons(averages, finding):
    verdicts = judge([ranked(**dict(zip(RANKS.values(), averages, strict=True)))])
    found = {verdict.statement: verdict for verdict in verdicts if verdict.weights != "reduced"}
    assert found["At full rank EigenRemove is MinWeight"].finding == HOLDS
    assert found["Every reduction of rank adds error"].finding == finding
    assert found["EigenRemove below full rank has a higher error than MinWeight"].finding == HOLDS
    assert found["For drastic cuts a low rank (δ < 0.5) is the better choice"].finding == CONTRARY
    for test in found["Every reduction of rank adds error"].tests.values():
        low, high = test.interval
        assert test.alone is not None and test.p >= test.alone and low < test.mean < high


def test_the_lowest_rank_is_judged_as_the_text_and_as_the_code_have_it():
    (flatter,) = [
        each for each in judge([ranked(**dict(zip(RANKS.values(), (0.1, 0.2, 0.3, 0.4, 0.45, 0.5), strict=True)))])
        if each.statement == "The curve of a low rank is flatter" and each.weights == "original"
    ]  # fmt: skip
    assert set(flatter.tests) == {"rise of 1 − rise of 1/5", "rise of 1 − rise of 1/8"}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["surgery", "isolate", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_the_command_writes_what_it_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trained, "KEEPS", (0.25, 0.5))
    monkeypatch.setattr(sys, "path", [*sys.path])
    sizes = ("--width", "24", "--step", "5", "--iterations", "2", "--trainings", "2", "--epochs", "1")
    out = tmp_path / "there"
    assert run(monkeypatch, *sizes, "--model", "mlp", "--out", str(out)) == 0
    shown = capsys.readouterr().out
    written = {path.name for path in out.iterdir()}
    assert written == {
        "isolation.md", "isolation.json", "isolation_shrink.png", "isolation_grow.png", "isolation_trained.png",
    }  # fmt: skip
    text = (out / "isolation.md").read_text(encoding="utf-8")
    assert all(name in shown for name in written) and "EigenRemove 1/8" in shown
    assert "EigenRemove 1/5" in shown  # the text's fifth rank, beside the code's
    assert all(name in text for name in written - {"isolation.md"}) and text.count("WeakExpand, signed |") == 3
    found = json.loads((out / "isolation.json").read_text(encoding="utf-8"))
    assert [curves["where"] for curves in found["curves"]] == ["random weights"] * 2 + ["fc1"] * 2 + ["fc2"] * 2
    assert all(test["p"] is None or math.isfinite(test["p"]) for each in found["statements"] for test in each["tests"])
    assert all((out / name).stat().st_size < 200_000 for name in written)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--width", "3"), "width is 3, but it must be from 4 to 16384"),
        (("--width", "10", "--step", "9"), "step is 9, but it must be from 1 to 8"),
        (("--step", "0"), "step is 0, but it must be from 1"),
        (("--iterations", "1"), "iterations is 1, but it must be at least 2"),
        (("--trainings", "0"), "trainings is 0, but it must be at least 2"),
        (("--epochs", "0"), "epochs is 0"),
        (("--device", "tpu"), "device is 'tpu'"),
        (("--seed", "-1"), "seed is -1"),
        (("--data", "nowhere"), "there is no data 'nowhere'"),
        (("--model", "nothing"), "there is no model 'nothing'"),
        (("--out", "file"), "file is a file; choose another --out"),
        (("--out", "file/below"), "file/below cannot be written"),
    ],
)
def test_bad_input_is_answered_by_one_sentence(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "file").touch()
    assert run(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("surgery: ") and err.count("\n") == 1 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not out.strip()

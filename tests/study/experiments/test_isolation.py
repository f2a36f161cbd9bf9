"""The isolation study, small: plans are the operations' own, layers are left as they were, claims say what rows say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from network_surgery.ops import Anatomy, Signals, operate
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Measured, Rows
from network_surgery.study.cli import main
from network_surgery.study.experiments.isolation import curves, measure, page, random_weights
from network_surgery.study.experiments.isolation.curves import MIN_WEIGHT, PIVOTED, RANKS, REPLACED, eigen
from network_surgery.study.experiments.isolation.measure import Options
from network_surgery.study.experiments.isolation.network import Network
from network_surgery.study.task import images as data
from tests.study.experiments.made_up import measured_of

CPU = torch.device("cpu")
WIDTH, STEP = 32, 6


@pytest.fixture(scope="module")
def random():
    return Rows(row for seed in (3, 4, 5) for row in random_weights.measure(WIDTH, STEP, CPU, seed))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", 0.25)


def operated(seed, operation, grow):
    """The squared distance that ``operate`` makes on the network itself."""
    generator = torch.Generator().manual_seed(seed)
    model = random_weights.build(WIDTH, generator)
    inputs, shown = torch.rand(WIDTH, WIDTH, generator=generator), torch.rand(4 * WIDTH, WIDTH, generator=generator)
    with torch.no_grad():
        before = model(inputs)
        signals = Signals(model, shown) if operation.needs_signals else None
        operate(Anatomy(model, inputs[:2])["0"], operation, signals=signals)
        return float((model(inputs) - before).double().square().sum())


@pytest.mark.parametrize(("kind", "sizes"), [("shrink", [2, 8, 14, 20, 26]), ("grow", [38, 44, 50, 56, 62])])
def test_the_plans_are_those_of_the_operations(random, kind, sizes):
    for size in sizes:
        made = curves.removals(size / WIDTH, 3) if kind == "shrink" else curves.growths(size / WIDTH - 1, 3)
        assert set(random.distinct("method", kind=kind)) == {*made, REPLACED}
        assert sorted(random.distinct("size", kind=kind)) == sizes
        for method, operation in made.items():
            (row,) = random.where(kind=kind, method=method, size=size, seed=3)
            wanted = operated(3, operation, kind == "grow")
            assert row["distance"] == pytest.approx(wanted, rel=2e-4, abs=1e-8), method


def test_random_replacement_is_a_fresh_network_of_that_size(random):
    """Its distance is that of two independent outputs: the sum of their squared norms, about."""
    for kind in ("shrink", "grow"):
        relative = random.grid("relative", "size", kind=kind, method=REPLACED)
        assert relative.shape == (3, 5) and relative.min() > 0.5 and relative.mean() == pytest.approx(2, abs=0.8)


def test_curves_of_random_weights(random):
    (shrunk,), (grown,) = curves.layers(random, "shrink"), curves.layers(random, "grow")
    assert (shrunk.where, shrunk.units, shrunk.sizes) == ("random weights", WIDTH, [2, 8, 14, 20, 26])
    np.testing.assert_array_equal(shrunk.relative[eigen(1.0)], shrunk.relative[MIN_WEIGHT])
    for method in (MIN_WEIGHT, curves.MEAN_L2, PIVOTED):
        assert (np.diff(shrunk.relative[method].mean(axis=0)) < 0).all(), method  # falls as more units stay
    assert max(values.max() for method, values in grown.relative.items() if method != REPLACED) < 1e-11
    assert not shrunk.accuracy and [shrunk.nearest(fraction) for fraction in (0, 0.4, 1)] == [0, 2, 4]
    assert shrunk.error(PIVOTED, 0) == pytest.approx(shrunk.relative[PIVOTED][:, 0])
    shares = [random.grid("share", kind="spectrum", rank=rank) for rank in RANKS.values()]
    assert shares[0] == pytest.approx(1) and (np.diff(shares, axis=0) < 0).all()


def test_trained_layers_are_left_as_they_were(digits, monkeypatch):
    kept = []
    monkeypatch.setattr(measure, "KEEPS", (0.25, 0.75))
    monkeypatch.setattr(measure, "GROWS", (0.5,))
    monkeypatch.setattr(measure, "Network", lambda *given: kept.append(Network(*given)) or kept[-1])
    rows = Rows(measure.measure_trained(Options(epochs=1, model="mlp").settings, digits, CPU, 0))
    (network,) = kept
    assert torch.equal(network.outputs(), network.before)
    (trained,) = rows.where(kind="trained")
    sizes = {(row["where"], row["kind"]): [] for row in rows if "size" in row}
    for where, kind in sizes:
        sizes[where, kind] = sorted(rows.distinct("size", where=where, kind=kind))
    assert sizes == {
        ("fc1", "shrink"): [32, 96], ("fc1", "grow"): [192], ("fc2", "shrink"): [16, 48], ("fc2", "grow"): [96],
    }  # fmt: skip
    for layer in curves.layers(rows, "shrink"):
        np.testing.assert_array_equal(layer.relative[eigen(1.0)], layer.relative[MIN_WEIGHT])
        assert 0 < layer.error(MIN_WEIGHT) < 1 and layer.error(MIN_WEIGHT) < layer.error(REPLACED)
        assert layer.accuracy[REPLACED].max() < layer.accuracy[MIN_WEIGHT].max() < trained["accuracy"] + 0.05
    for layer in curves.layers(rows, "grow"):
        assert max(values.max() for method, values in layer.relative.items() if method != REPLACED) < 1e-10


def test_fractions_of_one_size_count_once_and_the_present_size_not_at_all(random):
    network = random_weights.RandomNetwork(WIDTH, 2 * WIDTH, 0, CPU)
    rows = Rows(network.rows(network.anatomy["0"], (0.5, 0.51, 0.999), (0.99, 1.0), 0))
    assert rows.distinct("size", kind="shrink") == [16] and rows.distinct("size", kind="grow") == [64]
    assert len(rows.where(kind="shrink", method=MIN_WEIGHT)) == 1


RISING = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5)


def made_up(averages=RISING, seeds=8, gain=1.0):
    """Rows of random weights and of one trained layer, in which each rank has the given relative distance, with a
    little noise, MinWeight that of rank 1, and the other methods less by ``gain`` times the order of the claims."""
    noise = np.random.default_rng(0).normal(0, 0.01, (seeds, 3))
    full = averages[0]
    level = {
        eigen(rank, weights): (average + 0.05 * gain * less, 1 + at / 10 + 0.05 * less)
        for less, weights in enumerate(("original", "reduced"))
        for at, (rank, average) in enumerate(zip(RANKS, averages, strict=True))
    }
    level |= {
        eigen(1.0): (full, 1),
        MIN_WEIGHT: (full, 1),
        REPLACED: (2, 0.5),
        curves.RANDOM_REMOVE: (full + gain, 1.1),
    }
    level |= {name: (full - at * gain, 1 - at / 10)
              for at, name in enumerate((curves.MEAN_L2, curves.MEAN_VARIANCE, PIVOTED), 1)}  # fmt: skip
    rows = []
    for where in ("random weights", "fc1"):
        for seed in range(seeds):
            about = {"where": where, "seed": seed, "units": 8}
            rows += [about | {"kind": "spectrum", "rank": rank, "share": 0.5} for rank in RANKS.values()]
            for at, size in enumerate((1, 4, 7)):
                for method, (middle, scale) in level.items():
                    relative = middle + scale * noise[seed, at]
                    found = {"method": method, "size": size, "distance": relative, "relative": relative}
                    rows.append(about | {"kind": "shrink"} | found | ({"accuracy": 0.9} if where == "fc1" else {}))
            for method in ("WeakExpand, equal", REPLACED):
                relative = 2.0 if method == REPLACED else 1e-12
                rows.append(about | {"kind": "grow", "method": method, "size": 9, "relative": relative})
    rows += [{"kind": "trained", "seed": seed, "accuracy": 0.9 + 0.001 * seed} for seed in range(seeds)]
    facts = {"train": 100, "validation": 50, "test": 10, "signal_images": 512, "device": "CPU"}
    return measured_of("isolation", Options(width=8, step=3), facts, rows)


def verdicts(measured):
    shrunk, grown = (curves.layers(measured.rows, kind) for kind in ("shrink", "grow"))
    random, trained = (
        page.claims("random weights", shrunk[:1], grown[:1]),
        page.claims("trained layers", shrunk[1:], grown[1:]),
    )
    return {each.claim.text: each for family in (random, trained) for each in judge(family)}


@pytest.mark.parametrize(
    ("averages", "word"),
    [
        (RISING, "holds"),
        ((0.1, 0.2, 0.15, 0.4, 0.45, 0.5), "depends: holds in 4, the opposite in 1 of 5"),
        ((0.1, 0.2, 0.2, 0.4, 0.45, 0.5), "holds in 4 of 5"),
        (RISING[::-1], "does not hold: the opposite in 5 of 5"),
    ],
)
def test_a_statement_is_judged_by_all_of_its_comparisons(averages, word):
    found = verdicts(made_up(averages))
    for about in ("random weights", "trained layers"):
        words = {text.partition(": ")[2]: each.word for text, each in found.items() if text.startswith(about)}
        assert words["every reduction of rank adds error (original weights)"] == word
        assert words["at full rank EigenRemove is MinWeight, digit for digit"] == "holds"
        assert words["WeakExpand and ZeroExpand move the output by rounding alone"] == "holds"
        rising = averages[0] < averages[-1]
        above = words["EigenRemove below full rank has a higher error than MinWeight (original weights)"]
        drastic = words["for drastic cuts a low rank (δ < 0.5) is the better choice (original weights)"]
        assert (above == "holds", drastic == "holds") == (rising, not rising)


@pytest.mark.parametrize(("gain", "word"), [(1.0, "holds"), (-1.0, "does not hold"), (0.0, "undecided")])
def test_what_the_thesis_does_not_ask_holds_where_rows_say_so(gain, word):
    found = verdicts(made_up(gain=gain))
    for text in (
        "EigenRemove has less error with original weights (Algorithm 2) than with reduced ones (Listing 6.1)",
        "MinWeight has less error than random removal",
        "leaving the mean in the bias has less error than MinWeight of the same units",
        "units chosen by variance have less error than by l2, the mean left",
        "PCNS has less error than mean replacement by variance",
    ):
        assert found[f"trained layers: {text}"].word.partition(":")[0] == word, text


def test_the_lowest_rank_is_judged_as_the_text_and_as_the_code_have_it():
    flatter = verdicts(made_up())["random weights: the curve of a low rank is flatter (original weights)"]
    assert list(flatter.results) == ["random weights: rise of 1 − of 1/5", "random weights: rise of 1 − of 1/8"]


def test_what_changes_or_differs_by_more_than_rounding_is_not_exact():
    measured = made_up()
    for row in measured.rows:
        if row.get("where") == "fc1" and row["seed"] == 0 and row.get("method") in (MIN_WEIGHT, "WeakExpand, equal"):
            row["relative"] += 1e-6
    words = {text: each.word for text, each in verdicts(measured).items()}
    for text in (
        "at full rank EigenRemove is MinWeight, digit for digit",
        "WeakExpand and ZeroExpand move the output by rounding alone",
    ):
        assert words[f"random weights: {text}"] == "holds" and words[f"trained layers: {text}"] == "does not hold"


def test_a_method_that_a_layer_refused_is_left_out_and_named():
    measured = made_up()
    measured.rows.append({"kind": "missing", "where": "fc1", "method": PIVOTED, "seed": 3, "why": "it cannot be"})
    parts = page.parts(Measured(measured.about, Rows(measured.rows)))
    assert parts["refused"] == f"fc1, {PIVOTED}: it cannot be"
    last = "PCNS has less error than mean replacement by variance"
    (line,) = (line for line in parts["overview"].splitlines() if last in line)
    assert line == f"| {last} | holds |  |" and parts["shrunk"].count("| PCNS |") == 1


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["surgery", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_the_command_writes_a_page_beside_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "KEEPS", (0.25, 0.5))
    monkeypatch.setattr(sys, "path", [*sys.path])
    sizes = ("--width", "24", "--step", "5", "--iterations", "2", "--trainings", "2", "--epochs", "1", "--seed", "7")
    out = tmp_path / "there"
    assert (
        run(monkeypatch, "isolate", *sizes, "--model", "mlp", "--device", "cpu", "--workers", "1", "--out", str(out))
        == 0
    )
    assert capsys.readouterr().out.split() == [str(out / "README.md")]
    assert {path.name for path in out.iterdir()} == {"README.md", "rows.jsonl.gz", "shrinking.png"}
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "| statement | random weights | fc1 | fc2 |" in text and "$" not in text and "nan" not in text
    assert "Refused by a layer: none" in text
    assert all(text.count(f"| {name} |") == 3 for name in ("EigenRemove 1/8", "EigenRemove 1/5, reduced", "PCNS"))
    assert "Dense 24 – 24 – 24" in text and "`mlp` on 1,079 images of digits, 1 epochs, 2 runs" in text
    rows = Measured.load(out).rows
    assert rows.distinct("where", kind="shrink") == ["random weights", "fc1", "fc2"]
    assert rows.distinct("seed", kind="shrink") == [7, 8]
    assert "--seed 7 --width 24" in text and "on CPU (" in text


@pytest.mark.parametrize("command", [("isolate",), ("experiment", "isolation")])
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
def test_bad_input_is_answered_by_one_sentence(command, arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "file").touch()
    assert run(monkeypatch, *command, *arguments) == 2
    out, err = capsys.readouterr()
    *started, sentence = err.splitlines()
    assert says in sentence and sentence.startswith("surgery: ") and len(started) == 1 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not out.strip()


def test_the_folder_of_a_network_is_not_kept():
    options = Options(model="/home/somebody/nets.py:build", data="folder:/home/somebody/images")
    assert options.public() | {"label": "folder"} == options.public()
    assert (options.public()["model"], options.public()["data"]) == ("nets.py:build", "folder:PATH")
    assert Options(model="torchvision:resnet18").public()["model"] == "torchvision:resnet18"

"""A metric of which less is better: everything that is said of a study is the mirror image, and has its name."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from network_surgery.study import conduct
from network_surgery.study.evidence import comparison, figures
from network_surgery.study.evidence.front import front
from network_surgery.study.evidence.time_to_accuracy import FRACTIONS, arrival, targets
from network_surgery.study.search import comparing
from network_surgery.study.store.folder import Folder
from network_surgery.study.store.words import short
from network_surgery.study.task.metric import ACCURACY, Metric
from tests.study.evidence import made
from tests.study.evidence.test_report import Page
from tests.study.evidence.test_time_to_accuracy import CLAIMS, study, training

LAYERS = {"a": 32, "b": 64}
#: Accuracy as another metric of which less is better: the metric, and what becomes of a value.
MIRRORS: dict[str, tuple[Metric, Callable[[float], float]]] = {
    "1 − value": (Metric("error", "lower", margin=0.005, percent=True), lambda value: 1 - value),
    "−value": (Metric("regret", "lower", margin=0.005, percent=True), lambda value: -value),
}
PERPLEXITY = Metric("perplexity", "lower", margin=0.05)
OBJECTIVES = ("metric", "parameters")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study of accuracy with a search of two objectives and all arms."""
    return made.study(
        tmp_path_factory.mktemp("made") / "s", LAYERS, trials=12, top=2, seeds=3, epochs=8, objective=OBJECTIVES,
        targets=(0.5, 0.8), space="weak_expand",
    )  # fmt: skip


def mirror_of(words: str, metric: Metric) -> str:
    """What accuracies a sentence names, as values of a mirrored metric; amounts and ratios stay as they are."""
    turn = next(turn for known, turn in MIRRORS.values() if known == metric)

    def other(found: re.Match[str]) -> str:
        return metric.named(metric.goal(turn(float(found[1]) / 100)))

    def negative(words: str) -> str:
        return words if float(words.replace("−", "-")) == 0 else words.translate(str.maketrans("+−", "−+"))

    words = re.sub(r"(?<=reaches )(\d+\.\d) %", other, words)
    words = re.sub(r"(?<=: )([+−][\d.]+)(?= points)", lambda found: negative(found[1]), words)
    signed = r"([+−][\d.]+) to ([+−][\d.]+)"
    return re.sub(signed, lambda found: f"{negative(found[2])} to {negative(found[1])}", words)


def flat(contrast: dict[str, Any]) -> list[Any]:
    """What must be the same whichever way the metric points."""
    keys = ("n", "p", "p_adjusted", "p_permutation", "more_seeds", "compute_ratio", "time_ratio", "finding", "decision")
    times = [
        [entry["reached"], *(entry["training_flops"][key] for key in ("ratio", "p", "test", "sooner", "interval"))]
        for entry in contrast["time_to_accuracy"]
    ]
    return [[contrast.get(key) for key in keys], times, contrast["convergence"], contrast["equivalence"]]


def same(one: Any, other: Any) -> bool:
    """Equal, numbers to what adding and subtracting leaves of them."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("name", MIRRORS)
def test_a_mirrored_study_has_mirrored_choices_fronts_and_contrasts(
    name: str, searched: Folder, tmp_path: Path
) -> None:
    metric, turn = MIRRORS[name]
    other = made.mirrored(searched, tmp_path / "m", metric, turn, targets=tuple(map(turn, searched.settings.targets)))
    assert Folder.open(other.path).metric == metric
    for objective in (("metric",), OBJECTIVES, ("parameters", "metric")):
        chosen = [
            [record.cell.trial for record in comparing.choose(each.records("search"), each.settings, each.metric)]
            for each in (searched, other)
        ]
        fronts = [
            front([{"trial": r.cell.trial, **r.result} for r in each.records("search") if r.finished],
                  objective, each.metric) for each in (searched, other)
        ]  # fmt: skip
        assert chosen[0] == chosen[1]
        assert (fronts[0] is None) == (fronts[1] is None) == (len(objective) == 1)
        if fronts[0] and fronts[1]:
            assert fronts[0]["trials"] == fronts[1]["trials"]
            assert math.isclose(fronts[0]["hypervolume"], fronts[1]["hypervolume"], rel_tol=1e-6)
    (rows, verdicts), (mirrored, against) = comparison.summarize(searched), comparison.summarize(other)
    for row, turned in zip(rows, mirrored, strict=True):
        assert math.isclose(turn(row["metric"]), turned["metric"]) and row["label"] == turned["label"]
        assert [*row["reached"].values()] == [*turned["reached"].values()]
        assert same(row["convergence"], turned["convergence"])
    assert verdicts
    for one, mirror in zip(verdicts, against, strict=True):
        assert one["trial"] == mirror["trial"] and mirror["sentence"] == mirror_of(one["sentence"], metric)
        for each, turned in zip([one, *one["others"]], [mirror, *mirror["others"]], strict=True):
            assert same(flat(each), flat(turned))
            assert math.isclose(each["difference"], -turned["difference"], abs_tol=1e-9)


@pytest.mark.parametrize("case", CLAIMS)
@pytest.mark.parametrize("name", MIRRORS)
def test_every_claim_has_its_mirror_image(name: str, case: str, tmp_path: Path) -> None:
    metric, turn = MIRRORS[name]
    surgery, restart, _ = CLAIMS[case]
    one = study(tmp_path / "s", surgery, restart)
    wanted = tuple(map(turn, targets((), [r.result for r in one.records("original")])))
    other = made.mirrored(one, tmp_path / "m", metric, turn, targets=wanted if name == "1 − value" else ())
    ((_, (verdict,)), (_, (mirror,))) = comparison.summarize(one), comparison.summarize(other)
    assert verdict["finding"] == mirror["finding"]
    assert mirror["sentence"] == mirror_of(verdict["sentence"], metric)


def test_targets_are_the_easiest_first_in_either_direction() -> None:
    ends = [training([30.0, 20.0]), training([30.0, 10.0])]
    assert targets((), ends, PERPLEXITY) == pytest.approx([15 / fraction for fraction in FRACTIONS])
    assert targets((12.0, 20.0, 12.0), ends, PERPLEXITY) == [20.0, 12.0]
    assert targets((12.0, 20.0), ends, ACCURACY) == [12.0, 20.0]
    likelihood = Metric("log likelihood", "higher")
    assert targets((), [training([-4.0, -2.0])], likelihood) == pytest.approx([-2 / fraction for fraction in FRACTIONS])
    assert targets((), [training([1.0, 0.0])], PERPLEXITY) == []
    assert [arrival(ends[0], target, PERPLEXITY) for target in (30.0, 25.0, 20.0, 15.0)] == [1, 2, 2, None]


def test_every_figure_and_sentence_of_a_perplexity_has_its_name_and_direction(
    searched: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = made.mirrored(
        searched, tmp_path / "m", PERPLEXITY, lambda value: math.exp(5 * (1 - value)), targets=(), model="gpt", data="x"
    )
    results = conduct.write_report(other)
    results = conduct.write_report(other)  # again, as reports of older results are
    assert results["metric"] == PERPLEXITY.to_data()
    drawings = figures.draw(results)
    accuracies = figures.draw(conduct.write_report(searched))
    names = {"accuracy": "validation_perplexity", "time_to_accuracy": "time_to_perplexity"}
    assert [*drawings] == [names.get(name, name) for name in accuracies]
    assert accuracies.keys() >= figures.FIGURES.keys() - {"redundancy", "importance"}
    page = Page(other.report.read_text())
    console = Console(file=io.StringIO(), width=200)
    conduct.show(results, other, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for name, drawing in drawings.items():
        drawing.image("png")
        words = " ".join([drawing.title, drawing.caption, drawing.alt])
        labels = " ".join(axes.get_ylabel() + axes.get_xlabel() for axes in drawing.figure.axes)
        assert "accura" not in (words + labels).lower() and "%  " not in words and "nan" not in words, name
        if name in ("validation_perplexity", "arms", "costs", "search", "front"):
            assert "perplexity" in words and "perplexity (lower is better)" in labels, name
    assert "perplexity" in drawings["time_to_perplexity"].title
    best = min((t for t in results["trials"] if "failure" not in t), key=lambda t: t["validation_metric"])
    assert f"Best: perplexity {best['validation_metric']:.4g} at" in drawings["search"].alt
    assert f"{best['validation_metric']:.4g}" in drawings["timeline"].alt
    assert "Test perplexity (lower is better)" in page.text
    assert "accura" not in page.text.lower().replace("accuracy_mode", "")  # a setting
    assert f"The best trial of the search: {short(best['schedule'])}" in " ".join(page.text.split())
    assert "accura" not in said.lower() and "perplexity" in said and "points" not in said
    for verdict in results["comparison"]["verdicts"]:
        assert verdict["sentence"] in page.text and verdict["details"] in page.text
        assert f"perplexity {verdict['surgery']:.4g} on the test images, restarting" in verdict["details"]

"""The report: one file, complete, safe against what others wrote, readable while the study still runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from network_surgery.study.evidence import figures, report
from network_surgery.study.store.words import short
from tests.study.evidence.test_figures import DRAWN, sample, verdict

EMPTY = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Reads a page: its text, its elements with their attributes, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements, self._open = "", [], []  # type: ignore[var-annotated]
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(results: dict[str, Any], folder: Path, drawn: bool = True) -> tuple[Page, str]:
    report.write(results, folder / "report.html", figures.draw(results) if drawn else {})
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), text


def test_it_holds_verdicts_arms_trials_figures_settings(tmp_path: Path) -> None:
    results = sample()
    found, text = page(results, tmp_path)
    words = " ".join(found.text.split())
    for each in results["comparison"]["verdicts"]:
        assert each["sentence"] in words
    for trial in results["trials"]:
        assert f"{short(trial['schedule'])} (trial {trial['trial']}) " in words
        assert "failure" in trial or f"{trial['validation_metric']:.2%} {trial['parameters']:,} ×3.00 2.00" in words
    assert len(re.findall(r"<small>\(trial \d\)</small></td>", text)) == len(results["trials"])
    assert "failed: the loss became nan" in words
    assert "90.00 ± 1.00%" in words and "×1.00" in words
    assert 'model: "mlp"' in found.text and "--config settings.yaml" in words
    assert [image["alt"] for image in found.all("img")] == [d.alt for d in figures.draw(results).values()]
    assert all("scope" in attributes for attributes in found.all("th"))
    assert found.all("html") == [{"lang": "en"}]


def test_a_trial_that_was_stopped_says_so(tmp_path: Path) -> None:
    results = sample(trials=5)
    results["trials"][1] |= {"stopped": 2, "validation_metric": 0.999}
    words = " ".join(page(results, tmp_path)[0].text.split())
    assert (
        "Of the search's 5 trials so far 1 failed, 1 stopped early. The most accurate trial of the search: pcns"
        in words
    )
    assert words.count("stopped early, after epoch 2") == 1 and "stopped early, after epoch 2 99.90%" in words


def test_it_asks_the_network_for_nothing(tmp_path: Path) -> None:
    found, text = page(sample(), tmp_path)
    names = ("src", "href", "srcset", "data", "action")
    addresses = [attributes[name] for _, attributes in found.elements for name in names if name in attributes]
    assert addresses and all(str(address).startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import", text) and not found.all("script")
    assert len(text) < 3_000_000


def test_what_others_wrote_stays_text(tmp_path: Path) -> None:
    results, attack = sample(), "<script>alert('x')</script><img src=\"http://evil\">"
    results["trials"][-1]["failure"] = attack
    results["comparison"]["cells"].append({"arm": "surgery", "name": attack, "seed": 7, "trial": 0, "failure": attack,
                                           "schedule": []})  # fmt: skip
    results["comparison"]["verdicts"][0]["sentence"] = results["comparison"]["verdicts"][0]["finding"] = attack
    results["settings"]["data"] = results["machine"]["python"] = attack
    results["trials"][0]["schedule"][0]["op"] = attack
    results["layers"] = {attack: 3}
    found, _ = page(results, tmp_path)
    assert not found.all("script") and len(found.all("img")) == len(DRAWN)
    assert found.text.count(attack) >= 5


def test_passwords_in_addresses_are_left_out(tmp_path: Path) -> None:
    results = sample()
    results["settings"]["tracking_uri"] = "postgresql://me:secret@host/db"
    _, text = page(results, tmp_path)
    assert "secret" not in text and "host/db" in text


@pytest.mark.parametrize("trials", [0, 1, 3], ids=["nothing yet", "every trial failed", "some trials"])
def test_a_running_study_has_a_report(trials: int, tmp_path: Path) -> None:
    found, _ = page(sample(trials, seeds=0), tmp_path)
    assert "There is no verdict yet" in found.text


def test_the_page_says_how_far_the_study_is(tmp_path: Path) -> None:
    results = sample()
    for now, hint in (("running", "surgery report"), ("interrupted", "surgery resume"), ("finished", "")):
        results["state"] = {"now": now, "search": {"ended": 4, "of": 16}, "comparison": {"ended": 2, "of": 1060}}
        found, _ = page(results, tmp_path, drawn=False)
        words = " ".join(found.text.split())
        progress = "4 of 16 trials of the search and 2 of 1,060 training runs of the comparison"
        assert f"{now.capitalize()}. {progress}" in words
        assert (f"{hint} {tmp_path.name}" in words) == bool(hint)


def test_what_was_found_is_said_first(tmp_path: Path) -> None:
    results = sample()
    findings = ["surgery is better", "undecided", "surgery is better"]
    results["comparison"]["verdicts"] = [verdict(0) | {"finding": finding} for finding in findings]
    found, _ = page(results, tmp_path, drawn=False)
    first = "Counting all compute from nothing, of 3 schedules, surgery is better for 2; undecided for 1."
    assert found.text.index(first) < found.text.index("The arms compared")


def test_a_thousand_trials_are_folded_away_best_first(tmp_path: Path) -> None:
    results = sample()
    one = results["trials"][0]
    results["trials"] = [
        one | {"trial": i, "validation_metric": 0.5 + (7 * i % 1000) / 2500, "operations": [], "spikes": []}
        for i in range(1000)
    ] + [results["trials"][-1] | {"trial": 1000}]
    _, text = page(results, tmp_path, drawn=False)
    opened, folded = text.split("<summary>The trials of the search</summary>")[1].split("<details>")[:2]
    rows = re.compile(r"<small>\(trial (\d+)\)</small></td>")
    ranked = sorted(range(1000), key=lambda i: -(7 * i % 1000))
    assert [*map(int, rows.findall(opened))] == ranked[:20]
    assert [*map(int, rows.findall(folded))] == [*ranked, 1000]  # the failed one is last
    assert "All 1001 trials" in folded


def test_headings_regions_and_tables_can_be_found_without_seeing(tmp_path: Path) -> None:
    found, _ = page(sample(), tmp_path)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(found.all("main")) == len(found.all("header")) == 1
    assert len(found.all("caption")) == len(found.all("table"))
    for each in [attributes for _, attributes in found.elements if attributes.get("class") == "wide"]:
        assert each["tabindex"] == "0" and each["aria-label"]  # what scrolls is reached by the keyboard


ANSWER = {
    "question": "With 20 % of the parameters, should one operate?", "accounting": "zero", "budget": {"parameters": 0.2},
    "met": True, "trial": 0, "name": "A", "schedule": "min_weight to 75 % of a, b at 1ep", "use": "yes",
    "finding": "surgery is better", "against": "restart",
    "sentence": "Use A (min_weight): it is better than restarting. File: networks/surgery-000-seed-1.pt.",
    "size": {"parameters": 900.0, "share": 0.18}, "flops": {"value": 5000.0, "share": 0.5},
    "latency": {"seconds": 0.0002, "share": 0.6}, "bytes": 60_000,
    "lost": {"difference": -0.002, "interval": [-0.004, 0.0], "finding": "undecided"},
    "network": "networks/surgery-000-seed-1.pt", "load": "import torch\nnetwork = None",
}  # fmt: skip


def test_the_answer_comes_first_with_its_picture(tmp_path: Path) -> None:
    results = sample() | {"answer": ANSWER}
    found, text = page(results, tmp_path)
    words = " ".join(found.text.split())
    order = [ANSWER["question"], "Use it", "it is better than restarting.", "18% of the original", "0.2 ms", "−0.20 p",
             "The arms compared", "The schedules", "Details"]  # fmt: skip
    places = [words.index(str(part)) for part in order]
    assert places == sorted(places)
    assert text.index(figures.draw(results)["answer"].alt[:40]) < text.index("The arms compared")
    assert "is better than restarting. File:" not in words and "networks/surgery-000-seed-1.pt60 kB" in words
    assert re.search(r"A\s+min_weight to ¾ of a, b at 1ep \(trial 0\)", words)


def test_what_a_study_has_not_is_not_there(tmp_path: Path) -> None:
    results = sample()
    words = page(results, tmp_path, drawn=False)[0].text
    assert not any(part in words for part in ("Not there", "went on from", "What the operations did", "The front of"))
    results["comparison"]["left_out"] = [{"trial": 0, "arm": "random", "reason": "surgery adds units", "seeds": [1]}]
    results["comparison"]["cells"][3] |= {"forked": {"from": "original-seed-1", "epoch": 3}}
    results["comparison"]["cells"][4] |= {"same_as": "restart-000-1"}
    change = {"mean": 0.05, "samples": [0.01, 0.09], "seeds": None}
    results["moments"] = [{
        "trial": 0, "epoch": 1.0, "n": 3, "operations": "min_weight keep 0.75 on a, b at 1ep", "factor": 1.5,
        "loss": change, "metric": None,
        "recovery": {"back": {"median": 2.0, "never": 1}, "original": {"median": None, "never": 3}},
    }]  # fmt: skip
    words = " ".join(page(results, tmp_path, drawn=False)[0].text.split())
    assert "Not there: random A, since surgery adds units." in words
    assert (
        "1 of 9 training runs went on from the original's checkpoint at their first operation, which saved 3 epochs"
        in words
    )
    assert "1 would have repeated another one exactly" in words
    assert "×1.50 +0.050 [+0.010, +0.090] – 2, 1 of 3 never never" in words


def test_trials_beyond_a_budget_say_so(tmp_path: Path) -> None:
    results = sample()
    results["trials"][0] |= {"state": "infeasible", "violations": {"parameters": 0.5, "flops": -0.1}}
    results["budget"] = {"words": "parameters at most 800", "feasible": 2, "of": 3, "sentence": None}
    words = " ".join(page(results, tmp_path, drawn=False)[0].text.split())
    assert "over the budget in parameters by 50%" in words and "flops by" not in words
    assert "2 of 3 are within the budget (parameters at most 800)" in words

"""The report: one file, complete, safe against what others wrote, readable while the study still runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from study.evidence import figures, report
from study.evidence.comparison import describe
from tests.study.evidence.test_figures import DRAWN, sample

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


def page(results: dict[str, Any], folder: Path) -> tuple[Page, str]:
    report.write(results, folder / "report.html", figures.draw(results))
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), text


def test_it_holds_verdicts_arms_trials_figures_settings(tmp_path: Path) -> None:
    results = sample()
    found, text = page(results, tmp_path)
    words = " ".join(found.text.split())
    for verdict in results["comparison"]["verdicts"]:
        assert verdict["sentence"] in words
    assert words.index(results["comparison"]["verdicts"][0]["sentence"]) < 300 + words.index("Does surgery beat")
    for trial in results["trials"]:
        assert f"{trial['trial']} {describe(trial['schedule'])} " in words
        assert "failure" in trial or f"{trial['validation_accuracy']:.2%} {trial['parameters']:,} ×3.00 2.00" in words
    assert len(re.findall(r'<th scope="row" class="number">\d', text)) == len(results["trials"])
    assert "failed: the loss became nan" in words
    assert "90.00 ± 1.00%" in words and "×1.00" in words
    assert 'model: "mlp"' in found.text and "--config settings.yaml" in words
    assert [image["alt"] for image in found.all("img")] == [d.alt for d in figures.draw(results).values()]
    assert all("scope" in attributes for attributes in found.all("th"))
    assert found.all("html") == [{"lang": "en"}]


def test_a_trial_that_was_stopped_says_so(tmp_path: Path) -> None:
    results = sample(trials=5)
    results["trials"][1] |= {"stopped": 2, "validation_accuracy": 0.999}
    words = " ".join(page(results, tmp_path)[0].text.split())
    assert "5 of 5 trials have ended, of which 1 failed, 1 stopped early. The most accurate is trial 3" in words
    assert words.count("(stopped early, after epoch 2)") == 1 and "(stopped early, after epoch 2) 99.90%" in words


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
    assert f"{trials} of {trials} trials have ended" in found.text

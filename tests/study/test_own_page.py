"""A function of the settings adds a page and figures to a study's report; where it fails, the rest is written."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from network_surgery.ops import SurgeryError
from network_surgery.study import conduct
from network_surgery.study.config import Settings
from network_surgery.study.errors import PageError
from network_surgery.study.evidence.drawing import Drawing, add_title, new_axes
from network_surgery.study.store.folder import Folder


def by_seed(results: dict[str, Any]) -> tuple[str, dict[str, Drawing]]:
    figure, _ = new_axes()
    drawing = add_title(figure, "What I wanted to see", "By seed.", "Nothing.")
    return f"# {len(results['comparison']['cells'])} training runs\n", {"mine": drawing}


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pages")
    module.by_seed, module.broken = by_seed, lambda results: results["nothing"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pages", module)


def study(path: Path, page: str | None) -> Folder:
    return Folder.make(path, Settings(page=page), {"fc1": 8})


def test_it_is_written_beside_the_report_and_its_figures_are_in_it(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", "pages:by_seed")
    results = conduct.write_report(folder)
    assert (folder.path / "by_seed.md").read_text() == "# 0 training runs\n"
    assert "What I wanted to see" in folder.report.read_text() and (folder.figures / "mine.svg").exists()
    console = Console(file=io.StringIO(), width=200)
    conduct.show(results, folder, console)
    assert f"By seed  {folder.path / 'by_seed.md'}\n" in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_the_setting_there_is_none(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", None)
    conduct.write_report(folder)
    assert folder.page is None and not list(folder.path.glob("*.md"))


def test_one_that_fails_is_named_and_the_rest_is_written(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", "pages:broken")
    with pytest.raises(PageError, match="the page pages:broken could not be made of 0 training runs: 'nothing'"):
        conduct.write_report(folder)
    assert folder.results.exists() and folder.report.exists()


def test_one_that_returns_something_else_is_named(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", "json:dumps")
    words = "the report is written, but the page json:dumps could not be made .*: it returned a str, but it must return"
    with pytest.raises(PageError, match=words):
        conduct.write_report(folder)


def test_one_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with (
        pytest.raises(SurgeryError, match="the page 'pages:gone' cannot be loaded: module 'pages' has no attribute"),
        conduct.begin(Settings(page="pages:gone"), tmp_path / "s"),
    ):
        pass
    assert not (tmp_path / "s").exists()

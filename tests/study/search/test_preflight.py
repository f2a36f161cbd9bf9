"""What a visit of a node finds out, in this process; tests/cluster has a second node."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from network_surgery.study.config import Settings
from network_surgery.study.search import preflight
from network_surgery.study.search.nodes import Nodes
from network_surgery.study.search.preflight import Report, examine, versions
from network_surgery.study.search.travel import MARKER, Marker, shares
from network_surgery.study.task.images import ImageTask
from tests.study.nodes import node
from tests.study.task.pictures import folder

SETTINGS = Settings(model="mlp", train_images=100)


def visit(expected: dict[str, str]) -> tuple[str | None, list[str]]:
    """A visit that compares versions alone."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get", lambda reference: reference)
        return preflight._visitor()(expected, [None], None)


@pytest.mark.parametrize("name", list(versions()))
def test_another_version_is_named(name: str) -> None:
    assert visit(versions()) == (None, [])
    found = versions()[name]
    reason, _ = visit(versions() | {name: "0.1"})
    assert reason == f"it has {name} {found}, and the driver 0.1"


def test_a_node_without_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    function = preflight._visitor()
    monkeypatch.setitem(sys.modules, "network_surgery.study.search.preflight", None)
    monkeypatch.delattr("network_surgery.study.search.preflight", raising=False)
    reason, _ = function({}, [None], None)
    assert reason is not None and reason.startswith("the package is not installed there, or is another version")


def test_builds_for_other_devices_are_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "version", lambda package: "2.14.1+cu130")
    assert versions()["torch"] == "2.14.1"


def test_the_code_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installations of one version may still differ."""
    from network_surgery import search_spaces

    before = versions()["network-surgery"]
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(search_spaces, "__file__", str(tmp_path / "__init__.py"))
    changed = versions()["network-surgery"]
    (tmp_path / "__init__.py").write_text("#")
    assert len({before, changed, versions()["network-surgery"]}) == 3


def test_what_can_be_trained_here_is_ready() -> None:
    assert examine(ImageTask.of(SETTINGS), SETTINGS, None) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "nothing.py:network"}, "nothing.py:network' cannot be loaded"),
        ({"optimizer": "nothing.py:make"}, "nothing.py:make' cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_the_reason(changes: dict[str, Any], reason: str) -> None:
    settings = replace(SETTINGS, **changes)
    task = ImageTask.of(SETTINGS)
    task.network = settings.model
    assert reason in str(examine(task, settings, None))


def test_a_model_that_fails_is_named_with_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def network(shape, classes):\n    return {}['mask']\n")
    monkeypatch.chdir(tmp_path)
    task = ImageTask.of(SETTINGS)
    task.network = "mine.py:network"
    reason = str(examine(task, SETTINGS, None))
    assert "mask" in reason and "KeyError at mine.py, line 2, in network" in reason


def test_images_that_are_not_there_are_the_reason(tmp_path: Path) -> None:
    settings = replace(SETTINGS, data=f"folder:{folder(tmp_path / 'images')}", stream="true", train_images=None)
    task = ImageTask.of(settings)
    assert examine(task, settings, None) is None
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert "images" in str(examine(task, settings, None))


def test_a_marker_shows_who_shares_the_folder(tmp_path: Path) -> None:
    with Marker(tmp_path / "study", Nodes()) as marker:
        assert marker.name.startswith(MARKER) and shares(tmp_path / "study", marker.name)
        assert not shares(tmp_path, marker.name)
        assert preflight.about_folder((str(tmp_path / "study"), marker.name)) == []
        (note,) = preflight.about_folder((str(tmp_path), marker.name))
        assert note == f"it does not share {tmp_path}, so its files travel through Ray"
    assert list((tmp_path / "study").iterdir()) == []


def test_a_report_is_a_line() -> None:
    assert (
        Report(node(), "node one (ab)", None, ("its GPUs are busy",)).sentence
        == "node one (ab): ready (its GPUs are busy)"
    )
    assert Report(node(), "node one (ab)", "there is no model.py").sentence == "node one (ab): there is no model.py"

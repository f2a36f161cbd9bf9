"""Settings composed of a preset, a configuration file and flags; presets and files are YAML over the same names."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from network_surgery.study.config import STARTS, Settings
from network_surgery.study.errors import StudyError, near


def presets() -> list[str]:
    """The names of the presets that come with the package: those of ``presets`` and of experiments."""
    return sorted(_presets())


def _presets() -> dict[str, Traversable]:
    root = importlib.resources.files("network_surgery.study")
    folders = [root / "presets", *(root / "experiments").iterdir()]
    files = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return {entry.name[:-5]: entry for entry in files if entry.name.endswith(".yaml")}


#: What a study asks. Whoever gives one of these asks something else than a preset's budget.
QUESTION = ("budget", "space", "schedules", "objective")
#: Task → the preset that it has where none is named. A task of one's own starts from the settings' defaults.
PRESETS = {"images": "digits", "text": "text"}


def compose(
    preset: str | None, config: Path | None, flags: Mapping[str, Any], source: str = "the command line"
) -> Settings:
    """A preset, overlaid by a YAML file, overlaid by flags that are not None. Relative paths are made absolute.

    Without a preset: that of the task (``PRESETS``). A preset's ``budget`` is left out where the file or a flag gives a
    ``QUESTION`` of its own. The ``recipe`` of a task of one's own lies under all of them.
    ``source``: where the flags come from, for errors.

    Raises:
        StudyError: no such preset, file or task, or a setting that is unknown or out of range.
    """
    known = _presets()
    if preset is not None and (not isinstance(preset, str) or preset not in known):
        raise StudyError(f"there is no preset {preset!r}; there are {', '.join(sorted(known))}{near(preset, known)}")
    given = {name: value for name, value in flags.items() if value is not None}
    written, where = {}, ""
    if config is not None:
        try:
            text = config.read_bytes()
        except OSError as error:
            raise StudyError(f"the configuration file {config} cannot be read: {error.strerror}") from None
        written, where = _mapping(text, str(config)), str(config)
    task = {"task": Settings.task, **written, **given}["task"]
    name = preset or PRESETS.get(task if isinstance(task, str) else "")
    data = _mapping(known[name].read_bytes(), f"preset {name}") if name else {}
    task = {"task": Settings.task, **data, **written, **given}["task"]
    if any(name in written or name in given for name in QUESTION):
        data.pop("budget", None)
    data = _recipe(task) | data | written
    Settings.from_data(data, where or f"preset {name}")  # so that what is wrong here is not said of the command line
    return _absolute(Settings.from_data(data | given, source))


def _recipe(task: Any) -> dict[str, Any]:
    """The settings that a task of one's own has unless others are given. Raises StudyError where they are not right."""
    if not isinstance(task, str) or ":" not in task:
        return {}
    from network_surgery.study.references import theirs  # brings torch along, and --help must not

    where, recipe = f"the recipe of task {task!r}", getattr(theirs(task, "task"), "recipe", {})
    if not isinstance(recipe, Mapping) or "task" in recipe:
        raise StudyError(f'{where} must be a mapping of settings other than task, such as {{"epochs": 30}}')
    Settings.from_data(recipe, where)
    return dict(recipe)


def _mapping(text: bytes, where: str) -> dict[str, Any]:
    from network_surgery.study.yaml_text import parse  # it takes a while, and --help must not

    data = parse(text, where)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise StudyError(f"{where} must hold lines of the form 'name: value'")
    return data


def _absolute(settings: Settings) -> Settings:
    """Settings whose paths hold anywhere: a study may resume from another folder, and Ray's workers have their own."""
    kind, _, images = settings.data.partition(":")
    references: dict[str, Any] = {name: _full_reference(getattr(settings, name)) for name in REFERENCES}
    return replace(
        settings,
        data=f"folder:{_full(images)}" if kind == "folder" and images else settings.data,
        **references,
        start=settings.start if settings.start in STARTS else _full(settings.start),
        tracking_uri=_full_uri(settings.tracking_uri),
        storage=_full_uri(settings.storage),
    )


#: Settings that may name a file.
REFERENCES = ("task", "model", "optimizer", "space", "sampler", "pruner", "page")


def _full_reference(name: str | None) -> str | None:
    """The same with the whole path, where it is ``FILE.py:NAME`` or ``transformers:FOLDER``."""
    place, _, rest = (name or "").rpartition(":")
    if place == "transformers" and os.path.isdir(os.path.expanduser(rest)):
        return f"{place}:{_full(rest)}"
    return f"{_full(place)}:{rest}" if place.endswith(".py") else name


def _full_uri(uri: str | None) -> str | None:
    for kind in ("sqlite:///", "journal:"):
        if uri is not None and uri.startswith(kind) and uri != kind:
            return f"{kind}{_full(uri.removeprefix(kind))}"
    return uri


def _full(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))

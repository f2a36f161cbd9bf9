"""The settings of a study, with their only defaults; presets and configuration files are YAML over the same names."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from study.errors import StudyError

#: What a study may optimize on validation, and in which direction.
OBJECTIVES = {"accuracy": "max", "parameters": "min", "flops": "min", "seconds": "min"}


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a study computes, and where it runs.

    Data and network: ``data`` (``digits`` or ``folder:PATH``), ``model`` (``small_cnn``, ``mlp``, ``vgg16``,
    ``torchvision:NAME`` or ``MODULE:FACTORY``), ``validation`` (fraction of the training images).
    Recipe: ``epochs``, ``batch_size``, ``optimizer`` (``adam``, ``adamw`` or ``sgd`` with momentum 0.9),
    ``learning_rate``, ``weight_decay``.
    Search: ``trials``, ``generation`` (how many are sampled together, and so can run at once), ``space``, ``objective``, ``seed``. Comparison: ``top`` schedules, ``seeds`` of every arm.
    Measuring: ``held_out`` validation images for the loss around an operation, ``signal_images`` training images for
    operations that look at activations.
    Machine: ``device`` (``auto``, ``cpu``, ``cuda``), ``cpus_per_trial``, ``gpus_per_trial`` (a fraction shares a GPU),
    ``address`` of a running Ray cluster. Tracking: ``tracking_uri`` (default: a database beside the results).
    """

    data: str = "digits"
    model: str = "small_cnn"
    validation: float = 0.25
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    trials: int = 16
    generation: int = 4
    space: str = "mixed"
    schedules: tuple[Any, ...] = ()
    objective: tuple[str, ...] = ("accuracy",)
    seed: int = 0
    top: int = 2
    seeds: int = 5
    held_out: int = 512
    signal_images: int = 512
    device: str = "auto"
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.25
    address: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        whole = ("epochs", "batch_size", "trials", "generation", "top", "seeds", "held_out", "signal_images")
        for name in whole:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(0 < self.validation < 1, "validation", self.validation, "between 0 and 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(self.cpus_per_trial > 0, "cpus_per_trial", self.cpus_per_trial, "above 0")
        _require(self.gpus_per_trial >= 0, "gpus_per_trial", self.gpus_per_trial, "0 or more")
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        _one_of("optimizer", self.optimizer, ("adam", "adamw", "sgd"))
        _require(bool(self.objective), "objective", self.objective, f"some of {', '.join(OBJECTIVES)}")
        for name in self.objective:
            _one_of("objective", name, tuple(OBJECTIVES))

    def to_data(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "objective": list(self.objective), "schedules": list(self.schedules)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str) -> Settings:
        """Settings from plain data; ``where`` is named in errors.

        Raises:
            StudyError: an unknown name, or a value of the wrong kind or out of range.
        """
        hints = get_type_hints(cls)
        unknown = sorted(set(data) - set(hints))
        if unknown:
            raise StudyError(f"{where}: there is no setting {unknown[0]!r}; there are {', '.join(hints)}")
        return cls(**{name: _cast(name, value, hints[name], where) for name, value in data.items()})


def presets() -> list[str]:
    """The names of the presets that come with the package."""
    folder = importlib.resources.files("study") / "presets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def compose(preset: str, config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """A preset, overlaid by a YAML file, overlaid by flags that are not None.

    Raises:
        StudyError: no such preset or file, or a setting that is unknown or out of range.
    """
    if preset not in presets():
        raise StudyError(f"there is no preset {preset!r}; there are {', '.join(presets())}")
    text = (importlib.resources.files("study") / "presets" / f"{preset}.yaml").read_text()
    data = _mapping(text, f"preset {preset}")
    where = f"preset {preset}"
    if config is not None:
        if not config.is_file():
            raise StudyError(f"there is no configuration file {config}")
        data |= _mapping(config.read_text(), str(config))
        where = str(config)
    given = {name: value for name, value in flags.items() if value is not None}
    Settings.from_data(data, where)
    return Settings.from_data(data | given, "the command line")


def _mapping(text: str, where: str) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise StudyError(f"{where} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise StudyError(f"{where} must hold lines of the form 'name: value'")
    return data


def _cast(name: str, value: Any, hint: Any, where: str) -> Any:
    try:
        if hint is int and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
        if hint is float and not isinstance(value, bool):
            return float(value)
        if hint == tuple[Any, ...] and isinstance(value, list):
            return tuple(value)
        if hint == tuple[str, ...]:
            parts = value.split(",") if isinstance(value, str) else list(value)
            return tuple(str(part).strip() for part in parts)
        if hint is str and isinstance(value, (str, int, float)):
            return str(value)
        if hint == str | None and (value is None or isinstance(value, str)):
            return value
    except (TypeError, ValueError):
        pass
    kind = {int: "a whole number", float: "a number", tuple[Any, ...]: "a list"}.get(hint, "text")
    raise StudyError(f"{where}: {name} is {value!r}, but it must be {kind}")


def _require(holds: bool, name: str, value: Any, right: str) -> None:
    if not holds:
        raise StudyError(f"{name} is {value!r}, but it must be {right}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise StudyError(f"{name} is {value!r}, but it must be one of {', '.join(allowed)}")

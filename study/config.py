"""The settings of a study, with their only defaults; presets and configuration files are YAML over the same names."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from network_surgery.study.errors import StudyError

#: What a study may optimize on validation, and in which direction.
OBJECTIVES = {"accuracy": "max", "parameters": "min", "flops": "min", "seconds": "min"}
DEVICES = ("auto", "cpu", "cuda")
OPTIMIZERS = ("adam", "adamw", "sgd")
SAMPLERS = ("tpe", "grid")
STATES = ("carry", "reset")
MODES = ("evaluation", "training")
STOPPING = ("none", "asha")
ARMS = ("original", "surgery", "restart", "restart_flops", "restart_seconds", "restart_late", "random")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a study computes, and where it runs.

    Data and network: ``data`` (``digits``, ``cifar10`` or ``folder:PATH``), ``train_images`` (at most so many of them,
    validation included; None: all), ``validation`` (fraction of the training images), ``model`` (``small_cnn``,
    ``mlp``, ``vgg16`` and its variants, ``torchvision:NAME`` or ``MODULE:FACTORY``).
    Recipe: ``epochs``, ``batch_size``, ``optimizer`` (``adam``, ``adamw`` or ``sgd`` with momentum 0.9),
    ``learning_rate``, ``weight_decay``, ``optimizer_state`` (``carry``: it follows the units through an operation;
    ``reset``: the optimizer forgets, as if made anew).
    Faults of published code, to repeat its numbers: ``batchnorm_statistics`` (``carry``, or ``reset``: those of the
    layer that was operated on begin anew), ``accuracy_mode`` (``evaluation``, or ``training``: losses and accuracies
    are taken with BatchNorm and dropout as in training, in batches of 1,000), ``train_on_validation`` (the images that
    schedules are chosen on are trained on, too).
    Search: ``trials``, ``generation`` (how many are sampled together, and so can run at once), ``space``,
    ``objective``, ``seed``. With ``sampler: grid`` in place of ``tpe``, or with ``schedules`` of one's own, nothing is
    searched: every point of the space, or every schedule, is compared. ``early_stopping`` (``asha``: the search ends
    unpromising trials early, see ``study.search.stopping``; ``none``), at rungs from epoch ``first_rung`` on, each
    ``reduction`` times the last one, where one in ``reduction`` trials goes on; ``recovery`` (for how many epochs after
    an operation a trial that has not recovered from it is not judged).
    Comparison: ``top`` schedules of a search, ``seeds`` of every arm, ``arms`` (see
    ``study.arms``), ``targets`` (validation accuracies, 0 … 1, whose time is told; none: fractions of what the original
    ends with, see ``study.evidence.time_to_accuracy``).
    Measuring: ``held_out`` validation images for the loss around an operation, ``signal_images`` training images for
    operations that look at activations, ``probe`` (look at redundancy and dead units after every N-th epoch; 0: never),
    ``dead_threshold`` (a unit is dead, or frozen, below this fraction of its layer's mean; None: that
    of ``ops.operations.dead_units``).
    Machine: ``device`` (``auto``, ``cpu``, ``cuda``), ``cpus_per_trial``, ``gpus_per_trial`` (a fraction shares a GPU;
    energy is taken of whole ones), ``address`` of a running Ray cluster. Tracking: ``tracking_uri`` (default: a
    database beside the results).
    """

    data: str = "digits"
    model: str = "small_cnn"
    train_images: int | None = None
    validation: float = 0.25
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    optimizer_state: str = "carry"
    batchnorm_statistics: str = "carry"
    accuracy_mode: str = "evaluation"
    train_on_validation: bool = False
    trials: int = 16
    generation: int = 4
    space: str = "mixed"
    sampler: str = "tpe"
    schedules: tuple[Any, ...] = ()
    objective: tuple[str, ...] = ("accuracy",)
    early_stopping: str = "none"
    first_rung: int = 2
    reduction: int = 3
    recovery: int = 3
    seed: int = 0
    top: int = 3
    seeds: int = 5
    arms: tuple[str, ...] = ("original", "surgery", "restart", "restart_flops", "random")
    targets: tuple[float, ...] = ()
    held_out: int = 512
    signal_images: int = 512
    probe: int = 3
    dead_threshold: float | None = None
    device: str = "auto"
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.25
    address: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "trials", "generation", "top", "seeds", "held_out", "signal_images"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("probe", self.probe >= 0, "0 or more")
        dead = self.dead_threshold
        self._require("dead_threshold", dead is None or 0 < dead <= 1, "above 0 and at most 1")
        self._require("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295")
        self._require("validation", 0 < self.validation < 1, "between 0 and 1")
        self._require("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "0 or a number above")
        self._require("cpus_per_trial", 0 < self.cpus_per_trial < math.inf, "a number above 0")
        gpus = self.gpus_per_trial
        self._require(
            "gpus_per_trial", 0 <= gpus <= 1 or (gpus.is_integer() and gpus > 1), "from 0 to 1, or a whole number"
        )
        self._require("device", self.device in DEVICES, f"one of {', '.join(DEVICES)}")
        self._require("train_images", self.train_images is None or self.train_images >= 1, "at least 1")
        self._require("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self._require("optimizer_state", self.optimizer_state in STATES, f"one of {', '.join(STATES)}")
        self._require("batchnorm_statistics", self.batchnorm_statistics in STATES, f"one of {', '.join(STATES)}")
        self._require("accuracy_mode", self.accuracy_mode in MODES, f"one of {', '.join(MODES)}")
        self._require("sampler", self.sampler in SAMPLERS, f"one of {', '.join(SAMPLERS)}")
        known = set(self.arms) <= set(ARMS) and len(set(self.arms)) == len(self.arms)
        whole = "surgery" in self.arms and ("restart" in self.arms or set(self.arms) <= {"original", "surgery"})
        right = (
            f"surgery and any of {', '.join(arm for arm in ARMS if arm != 'surgery')}, none twice; more than original "
        )
        self._require("arms", known and whole, right + "and surgery only together with restart")
        self._require("targets", all(0 < target <= 1 for target in self.targets), "accuracies above 0 and at most 1")
        chosen = set(self.objective)
        different = chosen and chosen <= set(OBJECTIVES) and len(chosen) == len(self.objective)
        self._require("objective", bool(different), f"one or several of {', '.join(OBJECTIVES)}, none of them twice")
        self._require("early_stopping", self.early_stopping in STOPPING, f"one of {', '.join(STOPPING)}")
        self._require("first_rung", self.first_rung >= 1, "at least 1")
        self._require("reduction", self.reduction >= 2, "at least 2")
        self._require("recovery", self.recovery >= 0, "0 or more")
        if self.early_stopping != "none":
            self._check_stopping()

    def _check_stopping(self) -> None:
        """Early stopping that could not stop anything is refused, not ignored."""
        if self.objective != ("accuracy",):
            right = "it compares trials by accuracy alone, so it needs objective: accuracy"
        elif self.sampler == "grid" or self.schedules:
            right = "it stops trials of a search, and without one every schedule is compared whole"
        elif self.first_rung >= self.epochs:
            right = f"its first rung, epoch {self.first_rung}, is not before the last of {self.epochs} epochs"
        elif self.generation >= self.trials:
            right = f"it compares with earlier generations, and all {self.trials} trials are in one; lower generation"
        else:
            return
        raise StudyError(f"early_stopping is {self.early_stopping!r}, but {right}")

    def _require(self, name: str, holds: bool, right: str) -> None:
        if not holds:
            raise StudyError(f"{name} is {_shown(getattr(self, name))}, but it must be {right}")

    def to_data(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str) -> Settings:
        """Settings from plain data; ``where`` is named in errors.

        Raises:
            StudyError: an unknown name, or a value of the wrong kind or out of range.
        """
        hints = get_type_hints(cls)
        unknown = [name for name in data if name not in hints]
        if unknown:
            raise StudyError(f"{where}: there is no setting {unknown[0]!r}; there are {', '.join(hints)}")
        try:
            return cls(**{name: _cast(name, value, hints[name]) for name, value in data.items()})
        except StudyError as error:
            raise StudyError(f"{where}: {error}") from None


def presets() -> list[str]:
    """The names of the presets that come with the package."""
    folder = importlib.resources.files("network_surgery.study") / "presets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def compose(preset: str, config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """A preset, overlaid by a YAML file, overlaid by flags that are not None. Relative paths are made absolute.

    Raises:
        StudyError: no such preset or file, or a setting that is unknown or out of range.
    """
    if preset not in presets():
        raise StudyError(f"there is no preset {preset!r}; there are {', '.join(presets())}")
    text = (importlib.resources.files("network_surgery.study") / "presets" / f"{preset}.yaml").read_bytes()
    where = f"preset {preset}"
    data = _mapping(text, where)
    if config is not None:
        try:
            text = config.read_bytes()
        except OSError as error:
            raise StudyError(f"the configuration file {config} cannot be read: {error.strerror}") from None
        where = str(config)
        data |= _mapping(text, where)
    Settings.from_data(data, where)  # so that what is wrong here is not said of the command line
    given = {name: value for name, value in flags.items() if value is not None}
    return _absolute(Settings.from_data(data | given, "the command line"))


def _mapping(text: bytes, where: str) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise StudyError(f"{where} is not valid YAML{line}: {reason}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise StudyError(f"{where} must hold lines of the form 'name: value'")
    return data


#: What a setting of each type is called.
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    str | None: "text",
    float | None: "a number",
    int | None: "a whole number",
    float | None: "a number",
    tuple[str, ...]: "a list of names",
    tuple[float, ...]: "a list of numbers",
    tuple[
        Any, ...
    ]: "a list of schedules, each a list of steps such as {when: 2ep, layer: fc1, op: min_weight, keep: 0.5}",
}


def _cast(name: str, value: Any, hint: Any) -> Any:
    """The value as the type of its setting. Numbers may come as text: YAML reads 1e-3 as such."""
    try:
        if hint in (int, int | None) and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
        if hint in (float, float | None) and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (str, str | None) and isinstance(value, hint):
        return value
    if hint in (int | None, float | None) and value is None:
        return None
    if hint == tuple[str, ...] and isinstance(value, (str, list)):
        names = value.split(",") if isinstance(value, str) else value
        return tuple(str(part).strip() for part in names)
    if hint == tuple[float, ...] and isinstance(value, (str, list)):
        return tuple(_cast(name, part, float) for part in (value.split(",") if isinstance(value, str) else value))
    if hint == tuple[Any, ...] and _are_schedules(value):
        return tuple(value)
    raise StudyError(f"{name} is {_shown(value)}, but it must be {KINDS[hint]}")


def _are_schedules(value: Any) -> bool:
    """Whether this is a list of non-empty lists of mappings; what is in them is checked by ``ops.Schedule``."""

    def whole(entry: Any, kind: type) -> bool:
        return isinstance(entry, list) and all(isinstance(part, kind) for part in entry)

    return whole(value, list) and all(steps and whole(steps, dict) for steps in value)


def _shown(value: Any) -> str:
    """A value as it is told in an error, in one short line."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:80]} …"


def _absolute(settings: Settings) -> Settings:
    """Settings whose paths hold anywhere: a study may resume from another folder, and Ray's workers have their own."""
    kind, _, images = settings.data.partition(":")
    network, _, factory = settings.model.rpartition(":")
    return dataclasses.replace(
        settings,
        data=f"folder:{_full(images)}" if kind == "folder" and images else settings.data,
        model=f"{_full(network)}:{factory}" if network.endswith(".py") else settings.model,
        tracking_uri=_full_uri(settings.tracking_uri),
    )


def _full_uri(uri: str | None) -> str | None:
    if uri is None or not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{_full(uri.removeprefix('sqlite:///'))}"


def _full(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))

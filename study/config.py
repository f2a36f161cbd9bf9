"""The settings of a study, each declared once; presets and configuration files are YAML over the same names."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from pydantic import Field

from network_surgery.study.declare import COMMAS, About, Declared, Number, Text, Truth, Whole, such_that
from network_surgery.study.errors import StudyError, near

Objective = Literal["accuracy", "parameters", "flops", "seconds"]
#: What a study may optimize on validation, and in which direction.
OBJECTIVES: dict[str, str] = {"accuracy": "max", "parameters": "min", "flops": "min", "seconds": "min"}
Arm = Literal["original", "surgery", "restart", "restart_flops", "restart_seconds", "restart_late", "random"]
ARMS: tuple[Arm, ...] = get_args(Arm)
OTHERS = ", ".join(arm for arm in ARMS if arm != "surgery")


def _different(names: tuple[str, ...]) -> bool:
    return 0 < len(names) == len(set(names))


def _comparable(arms: tuple[Arm, ...]) -> bool:
    return "surgery" in arms and ("restart" in arms or set(arms) <= {"original", "surgery"}) and _different(arms)


Count = Annotated[Whole, Field(ge=1), "a whole number of at least 1"]
AtLeast2 = Annotated[Whole, Field(ge=2), "a whole number of at least 2"]
CountOr0 = Annotated[Whole, Field(ge=0), "a whole number, 0 or more"]
Seed = Annotated[Whole, Field(ge=0, lt=2**32), f"a whole number from 0 to {2**32 - 1}"]
Positive = Annotated[Number, Field(gt=0), "a number above 0"]
PositiveOr0 = Annotated[Number, Field(ge=0), "0 or a number above"]
Fraction = Annotated[Number, Field(gt=0, lt=1), "a number between 0 and 1"]
Share = Annotated[Number, Field(gt=0, le=1), "a number above 0 and at most 1"]
Gpus = Annotated[
    Number, Field(ge=0), such_that(lambda gpus: gpus <= 1 or gpus.is_integer()), "from 0 to 1, or a whole number"
]
Targets = Annotated[tuple[Share, ...], COMMAS, "a list of numbers, accuracies above 0 and at most 1"]
Objectives = Annotated[
    tuple[Objective, ...], COMMAS, such_that(_different),
    f"a list of names, one or several of {', '.join(OBJECTIVES)}, none of them twice",
]  # fmt: skip
Arms = Annotated[
    tuple[Arm, ...], COMMAS, such_that(_comparable),
    f"a list of surgery and any of {OTHERS}, none twice; more than original and surgery only together with restart",
]  # fmt: skip
Schedules = Annotated[  # the steps themselves are checked by ops.Schedule
    tuple[Annotated[list[dict[Any, Any]], Field(min_length=1)], ...],
    "a list of schedules, each a list of steps such as {when: 2ep, layer: fc1, op: min_weight, keep: 0.5}",
]
Parameters = Annotated[
    tuple[Annotated[dict[str, Any], Field(min_length=1)], ...],
    "a list of parameters with their values, such as {op: min_weight, keep: 0.5}",
]
Reference = Annotated[Text, Field(pattern=r"^[\w.]+:\w+$"), "text of the form MODULE:FUNCTION"]
State = Literal["carry", "reset"]
#: The environment variable that holds the password of ``storage``.
PASSWORD = "NETWORK_SURGERY_STORAGE_PASSWORD"


@dataclass(frozen=True)
class Settings(Declared):
    """Everything that decides what a study computes, and where it runs: see ``study.declare`` for what a field says.

    Raises:
        StudyError: a value that is not right.
    """

    # What is trained, and on what.
    task: Annotated[Text, About("images, or FILE.py:CLASS or MODULE:CLASS of one's own", later=True)] = "images"
    data: Annotated[
        Text, About("digits, cifar10, or folder:PATH with PATH/train/CLASS/*.png and PATH/test/CLASS/*")
    ] = "digits"
    model: Annotated[Text, About("small_cnn, mlp, vgg16, torchvision:NAME or MODULE:FACTORY")] = "small_cnn"
    train_images: Annotated[
        Count | None, About("Maximum number of training images, validation included; by default all")
    ] = None
    validation: Annotated[Fraction, About("Fraction of the training images for validation", option=False)] = 0.25
    # How it is trained.
    epochs: Annotated[Count, About("Epochs of every training run")] = 10
    batch_size: Annotated[Count, About("Images in a batch")] = 32
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], About("the optimizer; sgd has momentum 0.9")] = "adam"
    learning_rate: Annotated[Positive, About("The optimizer's learning rate")] = 1e-3
    weight_decay: Annotated[PositiveOr0, About("The optimizer's weight decay", option=False)] = 0.0
    optimizer_state: Annotated[
        State, About("what an operation does with the optimizer's state; reset as if the optimizer were made anew")
    ] = "carry"
    # Faults of published code, to repeat its numbers.
    batchnorm_statistics: Annotated[
        State, About("what an operation does with those of the layer that it is done on", option=False)
    ] = "carry"
    accuracy_mode: Annotated[
        Literal["evaluation", "training"],
        About("the mode for losses and accuracies; training takes batches of 1,000", option=False),
    ] = "evaluation"
    train_on_validation: Annotated[Truth, About("Validation images are also trained on", option=False)] = False
    # What is searched.
    trials: Annotated[Count, About("Number of schedules that are searched", decides=False)] = 16
    generation: Annotated[
        Count, About("Number of trials that are sampled together and can run at once", decides=False)
    ] = 4
    space: Annotated[
        Text,
        About(
            "mixed, removal, expansion, eigen_remove, weak_expand, pcns, dead_units, pruning, or MODULE:FUNCTION or "
            "FILE.py:FUNCTION",
            decides=False,
        ),
    ] = "mixed"
    sampler: Annotated[
        Text,
        About(
            "tpe, grid (every point of a space of choices), one of Optuna's such as 'GPSampler(n_startup_trials=8)', "
            "or MODULE:FACTORY",
            decides=False,
        ),
    ] = "tpe"
    pruner: Annotated[
        Text | None,
        About("One of Optuna's, such as 'MedianPruner(n_warmup_steps=3)', or MODULE:FACTORY", decides=False),
    ] = None
    storage: Annotated[
        Text | None,
        About(
            "Where Optuna keeps its trials: sqlite:///PATH, postgresql://…, mysql://… or journal:PATH; by default "
            "optuna.db in the folder",
            decides=False,
        ),
    ] = None
    enqueue: Annotated[
        Parameters,
        About(
            "Parameters of the search space that are tried first, a line for each trial", option=False, decides=False
        ),
    ] = ()
    schedules: Annotated[
        Schedules, About("These schedules are all compared, and nothing is searched", option=False, decides=False)
    ] = ()
    objective: Annotated[
        Objectives, About("accuracy, or several: accuracy,parameters,flops,seconds", decides=False)
    ] = ("accuracy",)
    early_stopping: Annotated[
        Literal["none", "asha"],
        About("asha ends unpromising trials early, and forgives what an operation does", decides=False),
    ] = "none"
    first_rung: Annotated[Count, About("First epoch at which trials are judged", option=False, decides=False)] = 2
    reduction: Annotated[
        AtLeast2,
        About("One trial in N goes on from a rung to the next, at N times the epochs", option=False, decides=False),
    ] = 3
    recovery: Annotated[
        CountOr0,
        About("Epochs that a trial has to recover from an operation before it is judged", option=False, decides=False),
    ] = 3
    seed: Annotated[Seed, About("Seed of the search; the comparison takes the following ones", decides=False)] = 0
    # What is compared.
    top: Annotated[Count, About("Number of schedules that are compared with restarting", decides=False)] = 3
    seeds: Annotated[Count, About("Number of seeds of every arm of the comparison", decides=False)] = 5
    arms: Annotated[Arms, About(f"surgery and what it is held against: {OTHERS}", decides=False)] = (
        "original", "surgery", "restart", "restart_flops", "random",
    )  # fmt: skip
    targets: Annotated[
        Targets,
        About(
            "Validation accuracies (0 … 1) whose time is reported; by default fractions of the original's",
            option=False, decides=False,
        ),
    ] = ()  # fmt: skip
    page: Annotated[
        Reference | None,
        About("A function MODULE:FUNCTION that adds a page and figures to the report", option=False, decides=False),
    ] = None
    # What is measured on the way.
    held_out: Annotated[Count, About("Validation images for the loss around an operation", option=False)] = 512
    signal_images: Annotated[Count, About("Training images for operations that read activations", option=False)] = 512
    probe: Annotated[CountOr0, About("Epochs from one look at redundancy to the next (0: none)", option=False)] = 3
    dead_threshold: Annotated[
        Share | None,
        About("A unit below this fraction of its layer's mean is dead; by default as ops.dead_units", option=False),
    ] = None
    # Where it runs, and where it is tracked.
    device: Annotated[Literal["auto", "cpu", "cuda"], About("where training runs", decides=False)] = "auto"
    cpus_per_trial: Annotated[Positive, About("CPU cores of a training run", decides=False)] = 1.0
    gpus_per_trial: Annotated[
        Gpus, About("GPUs of a training run; a fraction shares one, and energy is taken of whole ones", decides=False)
    ] = 0.25
    address: Annotated[Text | None, About("A running Ray cluster: auto, or HOST:PORT", decides=False)] = None
    tracking_uri: Annotated[
        Text | None, About("An MLflow server; by default a database in the folder", decides=False)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping != "none":
            self._check_stopping("early_stopping", self.early_stopping)
        if self.pruner is not None:
            self._check_stopping("pruner", self.pruner)
        if self.enqueue and not self.searches:
            raise StudyError("enqueue names trials of a search, and without one every schedule is compared")
        check_password(self.storage)

    @property
    def subject(self) -> str:
        """What is trained, in a few words."""
        return self.task.removeprefix("python:") if ":" in self.task else f"{self.model} on {self.data}"

    @property
    def searches(self) -> bool:
        """Whether Optuna searches for schedules; otherwise they are listed, or a grid, and all of them are compared."""
        return self.sampler != "grid" and not self.schedules

    def _check_stopping(self, name: str, value: str) -> None:
        """Early stopping that could not stop anything is refused, not ignored."""
        if self.objective != ("accuracy",):
            right = "it compares trials by accuracy alone, so it needs objective: accuracy"
        elif not self.searches:
            right = "it stops trials of a search, and without one every schedule is compared whole"
        elif name == "pruner" and self.early_stopping != "none":
            right = f"early_stopping is {self.early_stopping!r}, too; give one of them"
        elif name == "pruner":
            return
        elif self.first_rung >= self.epochs:
            right = f"its first rung, epoch {self.first_rung}, is not before the last of {self.epochs} epochs"
        elif self.generation >= self.trials:
            right = f"it compares with earlier generations, and all {self.trials} trials are in one; lower generation"
        else:
            return
        raise StudyError(f"{name} is {value!r}, but {right}")


def check_password(storage: str | None) -> None:
    """Raises StudyError where the URL of a storage has a password in it; the sentence does not repeat it."""
    try:
        parts = urlsplit(storage or "")
        secret = parts.password or set(parse_qs(parts.query)) & {"password", "passwd", "pass"}
    except ValueError:  # no URL at all, which the one who opens it says
        return
    if secret:
        raise StudyError(
            f"storage is a {parts.scheme} URL with a password, which would be written to study.json; leave it out of "
            f"the URL and put it into the environment variable {PASSWORD}"
        )


def presets() -> list[str]:
    """The names of the presets that come with the package: those of ``presets`` and of experiments."""
    return sorted(_presets())


def _presets() -> dict[str, Traversable]:
    root = importlib.resources.files("network_surgery.study")
    folders = [root / "presets", *(root / "experiments").iterdir()]
    files = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return {entry.name[:-5]: entry for entry in files if entry.name.endswith(".yaml")}


def compose(preset: str, config: Path | None, flags: Mapping[str, Any], where: str = "the command line") -> Settings:
    """A preset, overlaid by a YAML file, overlaid by flags that are not None. Relative paths are made absolute.

    ``where`` the flags come from, for errors.

    Raises:
        StudyError: no such preset or file, or a setting that is unknown or out of range.
    """
    known = _presets()
    if preset not in known:
        raise StudyError(f"there is no preset {preset!r}; there are {', '.join(sorted(known))}{near(preset, known)}")
    source = f"preset {preset}"
    data = _mapping(known[preset].read_bytes(), source)
    if config is not None:
        try:
            text = config.read_bytes()
        except OSError as error:
            raise StudyError(f"the configuration file {config} cannot be read: {error.strerror}") from None
        source = str(config)
        data |= _mapping(text, source)
    Settings.from_data(data, source)  # so that what is wrong here is not said of the command line
    given = {name: value for name, value in flags.items() if value is not None}
    return _absolute(Settings.from_data(data | given, where))


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


def _absolute(settings: Settings) -> Settings:
    """Settings whose paths hold anywhere: a study may resume from another folder, and Ray's workers have their own."""
    kind, _, images = settings.data.partition(":")
    return replace(
        settings,
        data=f"folder:{_full(images)}" if kind == "folder" and images else settings.data,
        tracking_uri=_full_uri(settings.tracking_uri),
        storage=_full_uri(settings.storage),
        **{name: _full_reference(getattr(settings, name)) for name in ("model", "task", "space", "sampler", "pruner")},
    )


def _full_reference(name: str | None) -> str | None:
    file, _, inside = (name or "").rpartition(":")
    return f"{_full(file)}:{inside}" if file.endswith(".py") else name


def _full_uri(uri: str | None) -> str | None:
    for kind in ("sqlite:///", "journal:"):
        if uri is not None and uri.startswith(kind) and uri != kind:
            return f"{kind}{_full(uri.removeprefix(kind))}"
    return uri


def _full(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))

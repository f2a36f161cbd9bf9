"""An experiment: its question, what it measures with which options, and the page that is made of the rows."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from network_surgery.study.bench import page
from network_surgery.study.bench.rows import FILE, Measured, Task, measure
from network_surgery.study.errors import StudyError
from network_surgery.study.task.images import ImageTask

#: Every experiment, by its name: the module whose ``EXPERIMENT`` it is.
EXPERIMENTS = {
    "attack": "network_surgery.study.experiments.attack",
    "families": "network_surgery.study.experiments.families",
    "heuristics": "network_surgery.study.experiments.heuristics",
    "isolation": "network_surgery.study.experiments.isolation",
    "optimizer_state": "network_surgery.study.experiments.optimizer_state",
    "pcns": "network_surgery.study.experiments.pcns",
    "pcns_claims": "network_surgery.study.experiments.pcns_claims",
    "redundancy": "network_surgery.study.experiments.redundancy",
    "repairs": "network_surgery.study.experiments.repairs",
    "thesis": "network_surgery.study.experiments.thesis",
    "timing": "network_surgery.study.experiments.timing",
    "units": "network_surgery.study.experiments.units",
    "weights": "network_surgery.study.experiments.weights",
    "widening": "network_surgery.study.experiments.widening",
}


@dataclass(frozen=True)
class Options:
    """What decides the result of an experiment on images; a subclass adds what else does.

    ``data``: see ``study.data.load``. ``label``: what the page calls the images. ``train_images``: the maximum number
    of training images. ``seeds``: the number of runs of each kind.

    Raises:
        StudyError: fewer than two seeds, which no test can compare.
    """

    data: str = "digits"
    label: str = ""
    train_images: int | None = None
    seeds: int = 5

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise StudyError(f"seeds is {self.seeds}; a difference between runs can be tested from 2 seeds on")

    def public(self) -> dict[str, Any]:
        """What may be kept and printed: all of it, but the path of a folder."""
        source = "folder:PATH" if self.data.startswith("folder:") else self.data
        return asdict(replace(self, data=source, label=self.label or source.partition(":")[0]))


def without_folder(model: str) -> str:
    """The name of a network, of one in a file without the file's folder.

    >>> without_folder("/home/me/nets.py:build"), without_folder("small_cnn")
    ('nets.py:build', 'small_cnn')
    """
    place, colon, factory = model.rpartition(":")
    return f"{Path(place).name}{colon}{factory}"


@dataclass(frozen=True)
class Experiment:
    """``measure(options)`` returns the facts that the page says besides of the rows, and the tasks that measure.

    ``parts(measured)`` returns what ``page.md`` in ``folder`` names (see ``study.bench.page``), of what is kept alone.
    """

    name: str
    folder: Path
    question: str
    options: Options
    measure: Callable[[Any], tuple[Mapping[str, Any], Sequence[Task]]]
    parts: Callable[[Measured], Mapping[str, page.Part]]


def load(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        StudyError: there is none.
    """
    if name not in EXPERIMENTS:
        raise StudyError(f"there is no experiment {name!r}; give one of {', '.join(EXPERIMENTS)}")
    return import_module(EXPERIMENTS[name]).EXPERIMENT  # type: ignore[no-any-return]


def run(
    name: str, flags: Mapping[str, Any], workers: int, out: Path | None, kept: Path | None,
    report: Callable[[str], None] = lambda ended: None,
) -> Path:  # fmt: skip
    """Measures, unless rows are kept, and writes the page: its file is returned.

    ``flags``: options that are not None overlay the experiment's own. ``kept``: rows that the page is made of; else
    those in ``out``, if any lie there. ``out``: the page's folder, by default that of the rows, or one under ``runs``.
    ``report`` receives a few words whenever a task has ended.

    Raises:
        StudyError: an unknown experiment or option, kept rows of another experiment or other options, a folder that
            cannot be written.
    """
    experiment = load(name)
    given = {option: value for option, value in flags.items() if value is not None}
    known = [field.name for field in fields(experiment.options)]
    for option in given:
        if option not in known:
            raise StudyError(f"the experiment {name} has no option {option}; it has {', '.join(known)}")
    options: Options = replace(experiment.options, **given)
    folder = out or (kept if kept and kept.is_dir() else kept.parent if kept else Path("runs") / name)
    _check_folder(folder)
    kept = kept or (folder if (folder / FILE).exists() else None)
    if kept is None:
        measured = measure_anew(experiment, options, workers, folder, report)
    else:
        measured = Measured.load(kept)
        _check(measured, experiment, {option: options.public()[option] for option in given}, kept)
    return page.write(experiment.folder / page.TEMPLATE, experiment.parts(measured), measured, folder)


def image_facts(images: ImageTask) -> dict[str, Any]:
    """What a page says of its images: how many are trained on, chosen on and tested on, their shape and classes.

    ``digests``: of each of the three sets, so that rows of other images are known to be others.
    """
    parts = {name: getattr(images, name) for name in ("train", "validation", "test")}
    sizes = {name: len(part) for name, part in parts.items()}
    digests = {name: part.digest() for name, part in parts.items()}
    return sizes | {"shape": list(images.shape), "classes": len(images.classes), "digests": digests}


def measure_anew(
    experiment: Experiment, options: Options, workers: int, folder: Path, report: Callable[[str], None]
) -> Measured:
    """The rows of an experiment with these options, kept in ``folder``."""
    facts, tasks = experiment.measure(options)
    kept, own = options.public(), experiment.options.public()
    changed = {option: value for option, value in kept.items() if value != own[option] and type(value) in (str, int)}
    flags = [word for option, value in changed.items() for word in (f"--{option.replace('_', '-')}", str(value))]
    about = {
        "experiment": experiment.name, "options": kept, "facts": facts,
        "command": shlex.join(["surgery", "experiment", experiment.name, *flags]),
        "machine": {
            "processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
    return measure(about, tasks, workers, folder, report)


def _check_folder(folder: Path) -> None:
    """Before minutes of measuring, not after them."""
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file; choose another --out")
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise StudyError(f"{folder} cannot be written: {existing} is no folder that lets you; choose another --out")


def _check(measured: Measured, experiment: Experiment, asked: Mapping[str, Any], kept: Path) -> None:
    if measured.about["experiment"] != experiment.name:
        raise StudyError(f"the rows in {kept} are of the experiment {measured.about['experiment']}")
    for option, value in asked.items():
        known = measured.about["options"].get(option)
        if known != value:
            raise StudyError(
                f"the rows in {kept} were measured with {option} {known}, not {value}; give another --out, or leave "
                f"the option out to write their page again"
            )

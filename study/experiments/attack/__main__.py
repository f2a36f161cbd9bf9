"""``python -m network_surgery.study.experiments.attack``: measures, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from network_surgery.study import data
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.attack import figures
from network_surgery.study.experiments.attack.arms import Setting
from network_surgery.study.experiments.attack.parallel import measure
from network_surgery.study.experiments.attack.report import report
from network_surgery.study.experiments.attack.results import Results
from network_surgery.study.training.trainer import steps_per_epoch

#: Training images that are read, and the part of them on which everything is measured: 1,000.
IMAGES, VALIDATION = 9_000, 1 / 9


def main(
    images: Annotated[str, typer.Option("--data", help="cifar10, digits or folder:PATH.")] = "cifar10",
    name: Annotated[str | None, typer.Option(help="What the report calls these images.")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="How many trainings, each with its own seed.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="How many processes, a core each.")] = 2,
    kept: Annotated[
        Path | None, typer.Option(help="A folder for what is found; what is there already is not measured again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where attack.md and its figures are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: about half an hour of CPU time for five seeds, as counted by steps and looks."""
    try:
        dataset = data.load(images, VALIDATION, IMAGES)
        setting = Setting()
        found = measure(dataset, seeds, workers, kept, setting)
    except StudyError as error:
        raise typer.BadParameter(str(error)) from None
    source = "folder:PATH" if images.startswith("folder:") else images
    results = Results(
        found, setting, name or {"cifar10": "CIFAR-10"}.get(images, images), source, len(dataset.train),
        len(dataset.validation), steps_per_epoch(len(dataset.train), setting.batch_size),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    drawings = figures.draw(results)
    for title, drawing in drawings.items():
        drawing.save_small(out / f"{title}.png")
    (out / "attack.md").write_text(report(results, drawings), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

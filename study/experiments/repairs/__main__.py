"""``python -m network_surgery.study.experiments.repairs``: measures, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from network_surgery.study import data
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.repairs import figure
from network_surgery.study.experiments.repairs.arms import thinned
from network_surgery.study.experiments.repairs.parallel import measure
from network_surgery.study.experiments.repairs.report import Asked, report

#: Training images, validation included, that are read; the halved network is trained on a part of them.
IMAGES, VALIDATION = 4_000, 0.2
FEW = (1_200, 400, 2_000)


def main(
    images: Annotated[
        str, typer.Option("--data", help="cifar10, digits or folder:PATH; of 16 × 16 pixels at least.")
    ] = "cifar10",
    name: Annotated[str | None, typer.Option(help="What the report calls these images.")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="How many trainings, each with its own seed.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="How many processes, a core each.")] = 2,
    out: Annotated[Path, typer.Option(help="Where repairs.md and .png are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: half an hour of CPU time for five seeds, by two processes a quarter of an hour."""
    try:
        many = data.load(images, VALIDATION, IMAGES)
    except StudyError as error:
        raise typer.BadParameter(str(error)) from None
    few = thinned(many, *FEW)
    found, right = measure(few, many, seeds, workers)
    source = "folder:PATH" if images.startswith("folder:") else images
    asked = Asked(name or {"cifar10": "CIFAR-10"}.get(images, images), source, few, many)
    out.mkdir(parents=True, exist_ok=True)
    drawing = figure.draw(found)
    drawing.save_small(out / "repairs.png")
    (out / "repairs.md").write_text(report(found, right, asked, drawing, "repairs.png"), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

"""``python -m network_surgery.study.experiments.weights``: measures, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from network_surgery.study.errors import StudyError
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import Asked
from network_surgery.study.experiments.weights import figures
from network_surgery.study.experiments.weights.looks import Looking
from network_surgery.study.experiments.weights.parallel import LOOKING, Size, measure
from network_surgery.study.experiments.weights.report import report


def main(
    images: Annotated[str, typer.Option("--data", help="digits, cifar10 or folder:PATH.")] = "digits",
    name: Annotated[str | None, typer.Option(help="What the page calls these images.")] = None,
    most: Annotated[int | None, typer.Option("--images", min=100, help="Training images, at most.")] = None,
    iterations: Annotated[int, typer.Option(min=100, help="Of the trainings that are looked at.")] = LOOKING.iterations,
    seeds: Annotated[int, typer.Option(min=2, help="How many trainings of each kind, each with its own seed.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="How many processes, a core each.")] = 2,
    kept: Annotated[
        Path | None,
        typer.Option(
            help="A folder for what was measured of these very images; what lies there is not measured again."
        ),
    ] = None,
    page: Annotated[str, typer.Option(help="The name of the page and, in front, of its figures.")] = "weights",
    out: Annotated[Path, typer.Option(help="Where page and figures are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: with five seeds on 28 × 28 images about twenty minutes of CPU time."""
    try:
        data = evci.images(images, most)
    except StudyError as error:
        raise typer.BadParameter(str(error)) from None
    rows = measure(data, seeds, workers, kept, Size(Looking(iterations)))
    called = name or images.partition(":")[0]
    source = "folder:PATH" if images.startswith("folder:") else images
    few = f" --images {most}" if most else ""
    asked = f"--data {source} --name {called!r}{few} --seeds {seeds} --iterations {iterations}"
    command = f"python -m network_surgery.study.experiments.weights {asked}"
    out.mkdir(parents=True, exist_ok=True)
    drawings = figures.draw(rows)
    files = {key: f"{page}{key.removeprefix('weights')}.png" for key in drawings}
    for key, drawing in drawings.items():
        drawing.save_small(out / files[key])
    text = report(rows, Asked(called, data, command), drawings, files)
    (out / f"{page}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

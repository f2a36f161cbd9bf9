"""``python -m network_surgery.study.experiments.redundancy``: measures, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from network_surgery.study.data import load
from network_surgery.study.experiments.redundancy import figure
from network_surgery.study.experiments.redundancy.measure import ARCHITECTURES, measure
from network_surgery.study.experiments.redundancy.report import report


def main(
    data: Annotated[str, typer.Option(help="Images: digits, cifar10 or folder:PATH.")] = "digits",
    about: Annotated[str, typer.Option(help="What these images are, in words, for the report.")] = "",
    images: Annotated[int, typer.Option(min=20, help="How many are trained and chosen on, at most; a fifth.")] = 3000,
    networks: Annotated[str, typer.Option(help="Networks of torchvision, by comma.")] = ",".join(ARCHITECTURES),
    epochs: Annotated[int, typer.Option(min=1, help="How long each is trained.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings, each with its own seed.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="How many processes, a core each.")] = 2,
    out: Annotated[Path, typer.Option(help="Where redundancy.md and .png are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: about twelve minutes on two CPU cores."""
    names = networks.split(",")
    if unknown := [name for name in names if name not in ARCHITECTURES]:
        raise typer.BadParameter(f"{', '.join(unknown)}: give one or several of {', '.join(ARCHITECTURES)}")
    pictures = load(data, 0.2, images)
    found = measure(pictures, names, seeds, epochs, workers)
    out.mkdir(parents=True, exist_ok=True)
    drawing = figure.draw(found)
    drawing.save_small(out / "redundancy.png")
    about = about or ("scikit-learn’s digits" if data == "digits" else data)
    source = "folder:PATH" if data.startswith("folder:") else data
    text = report(found, pictures, source, about, epochs, drawing, "redundancy.png")
    (out / "redundancy.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

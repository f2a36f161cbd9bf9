"""``python -m network_surgery.study.experiments.claims``: measures, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from network_surgery.study.data import load
from network_surgery.study.experiments.claims import figure
from network_surgery.study.experiments.claims.arms import CNN, DENSE
from network_surgery.study.experiments.claims.parallel import measure
from network_surgery.study.experiments.claims.report import report


def main(
    data: Annotated[str, typer.Option(help="Images for the dense network: digits, cifar10 or folder:PATH.")] = "digits",
    about: Annotated[str, typer.Option(help="What these images are, in words, for the report.")] = "",
    images: Annotated[int, typer.Option(min=20, help="How many of them are trained and chosen on, at most.")] = 6000,
    seeds: Annotated[int, typer.Option(min=2, help="How many trainings of each arm, each with its own seed.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="How many processes, a core each.")] = 2,
    out: Annotated[Path, typer.Option(help="Where pcns_claims.md and .png are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: about five minutes on two CPU cores for eight seeds."""
    races = [(DENSE, load(data, 0.2, images)), (CNN, load("digits", 0.2))]
    found = measure(races, seeds, workers)
    out.mkdir(parents=True, exist_ok=True)
    drawing = figure.draw(found)
    drawing.save_small(out / "pcns_claims.png")
    about = about or ("scikit-learn’s digits" if data == "digits" else data)
    source = "folder:PATH" if data.startswith("folder:") else data
    text = report(found, races, source, about, drawing, "pcns_claims.png")
    (out / "pcns_claims.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

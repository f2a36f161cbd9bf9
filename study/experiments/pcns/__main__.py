"""``python -m network_surgery.study.experiments.pcns``: measures, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from network_surgery.study.experiments.pcns import figures
from network_surgery.study.experiments.pcns.parallel import measure
from network_surgery.study.experiments.pcns.report import report


def main(
    data: Annotated[str, typer.Option(help="digits, cifar10 or folder:PATH; the draft asks for MNIST.")] = "digits",
    about: Annotated[str, typer.Option(help="What the data are, in words, for the page.")] = "",
    seeds: Annotated[int, typer.Option(min=2, help="How many trainings, each with its own seed.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="How many processes, a core each.")] = 2,
    out: Annotated[Path, typer.Option(help="Where pcns.md and its figures are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes."""
    results = measure(data, seeds, workers, about)
    out.mkdir(parents=True, exist_ok=True)
    drawings = figures.draw(results)
    for name, drawing in drawings.items():
        drawing.save_small(out / f"{name}.png")
    (out / "pcns.md").write_text(report(results, drawings), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

"""``python -m network_surgery.study.experiments.widening``: measures, draws and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from network_surgery.study.experiments.widening import figure
from network_surgery.study.experiments.widening.parallel import measure
from network_surgery.study.experiments.widening.report import report


def main(
    seeds: Annotated[int, typer.Option(min=2, help="How many trainings, each with its own seed.")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="How many processes, a core each.")] = 2,
    out: Annotated[Path, typer.Option(help="Where widening.md and .png are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: about two minutes on two CPU cores for twenty seeds."""
    found, moments = measure(seeds, workers)
    out.mkdir(parents=True, exist_ok=True)
    drawing = figure.draw(found)
    drawing.save_small(out / "widening.png")
    (out / "widening.md").write_text(report(found, moments, drawing, "widening.png"), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

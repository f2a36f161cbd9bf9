"""``python -m network_surgery.study.experiments.timing``: measures, draws and writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from network_surgery.study.experiments.timing.figure import draw
from network_surgery.study.experiments.timing.measure import CONV, DENSE, VGG_LAYERS, measure
from network_surgery.study.experiments.timing.report import report


def _sizes(text: str, all_of_them: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(",")) if text else all_of_them
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of sizes such as 64,256,1024") from None


def main(
    sizes: Annotated[
        str, typer.Option(help="Units of the dense nets, after commas; those up to 1024 of the others.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="How often each operation is timed, after a warm-up.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    limit: Annotated[float, typer.Option(min=0.001, help="Seconds from which on larger nets are not measured.")] = 60.0,
    quick: Annotated[bool, typer.Option("--quick", help="A few small sizes: to see that it works.")] = False,
    out: Annotated[Path, typer.Option(help="Where timing.md, .png and .json are written.")] = Path("study/docs"),
) -> None:
    """Measures, draws and writes: about a quarter of an hour on a CPU core up to 4096 units, longer with 8192."""
    dense = (64, 256) if quick and not sizes else _sizes(sizes, DENSE)
    conv = (64,) if quick and not sizes else tuple(size for size in _sizes(sizes, CONV) if size <= max(CONV))
    vgg_layers = VGG_LAYERS[:1] if quick else VGG_LAYERS
    found = measure(dense, conv, vgg_layers, repeats, limit, torch.device(device))
    out.mkdir(parents=True, exist_ok=True)
    draw(found).save_small(out / "timing.png")
    (out / "timing.md").write_text(report(found, "timing.png"), encoding="utf-8")
    (out / "timing.json").write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

"""What the CPU cannot show, on a real card within minutes: ``python -m tests.gpu --minutes 10 --out DIR``.

Each step holds the card against the CPU or against the clock (``STEPS``, by worth). Rows go to ``DIR/gpu.json`` and
``DIR/gpu.md`` as they come, so a run that is killed keeps what it has seen. A step that fails leaves its error and the
next one starts. Needs torch, torchvision, numpy and scipy; pydantic for the trainer, tensorly for EigenRemove.
The step ``baseline`` also needs PyYAML and real images: ``--data folder:PATH``.
``--device cpu`` compares the CPU with itself, ``--device standin`` with the stand-in of ``tests.standin``, to try this
program.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # takes seconds; a step that ends in the midst of it would leave it half imported

from tests.gpu import baseline, clock, compare, graph, training
from tests.gpu.card import Card, Late, Row
from tests.standin import device as standin

Step = Callable[[Card], Iterator[Row]]


def versions(card: Card) -> Iterator[Row]:
    """The machine, and what is installed."""
    yield {"what": "python", "is": platform.python_version()}
    yield {"what": "torch", "is": torch.__version__}
    for name in ("torchvision", "numpy", "scipy", "pydantic", "tensorly", "sklearn"):
        try:
            yield {"what": name, "is": __import__(name).__version__}
        except ImportError:
            yield {"what": name, "is": "absent"}
    yield {"what": "commit", "is": card.commit or _answer("git", "rev-parse", "HEAD")}
    if card.cuda:
        yield {"what": "card", "is": torch.cuda.get_device_name(card.device)}
        yield {"what": "cuDNN", "is": torch.backends.cudnn.version()}
        query = ("name", "driver_version", "memory.used", "utilization.gpu", "clocks.sm")
        yield {"what": ", ".join(query), "is": _answer("nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv")}


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "not known"
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "not known"


#: By worth, with the seconds that a step may take.
STEPS: dict[str, tuple[Step, int]] = {
    "versions": (versions, 20),
    "generators": (compare.generators, 20),
    "anatomies": (compare.anatomies, 90),
    "operations": (compare.operations, 120),
    "determinism": (training.determinism, 90),
    "graph": (graph.graphs, 150),
    "trainer": (training.speed, 160),
    "clock": (clock.operations, 100),
    "optimizers": (compare.optimizers, 90),
    "parts": (compare.parts, 60),
    "profiles": (clock.profiles, 60),
    "out_of_memory": (clock.out_of_memory, 45),
    "single": (compare.operations_single, 120),
    "baseline": (baseline.baseline, 560),
    "strong": (baseline.strong, 300),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated, in this order")
    parser.add_argument("--commit", default="", help="where git is not there to ask")
    parser.add_argument("--small", action="store_true", help="networks of a sixteenth of the width, fewer repeats")
    parser.add_argument("--data", default="", help="folder:PATH of images for the step baseline")
    options = parser.parse_args()
    names = options.steps.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        sys.exit(f"there is no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no card here; --device cpu tries this program on the CPU")
    if options.device == "standin":
        with standin.present() as device:
            return check(options, names, device)
    check(options, names, torch.device(options.device))


def check(options: argparse.Namespace, names: list[str], device: torch.device) -> None:
    """Runs these steps on a device."""
    torch.set_num_threads(2 if options.device == "cuda" else 1)
    options.out.mkdir(parents=True, exist_ok=True)
    card = Card(device, options.out, options.commit, options.small, options.data)
    end = time.monotonic() + 60 * options.minutes
    for name in names:
        left = end - time.monotonic()
        print(f"{name}: {left:.0f} s left", flush=True)
        if left < 5:
            card.steps[name] = {"problem": "not started: no time left", "rows": []}
        else:
            perform(card, name, min(left - 3, STEPS[name][1]))
        keep(card)
    print("\n".join(line for name, step in card.steps.items() for line in summary(name, step)))


def perform(card: Card, name: str, seconds: float) -> None:
    """Runs a step for at most these seconds; rows are kept as they come."""
    function = STEPS[name][0]
    result: dict[str, Any] = {"about": (function.__doc__ or "").splitlines()[0], "rows": []}
    card.steps[name] = result
    start, kept = time.monotonic(), time.monotonic()
    try:
        with card.within(seconds):
            for row in function(card):
                result["rows"].append(row)
                result["seconds"] = round(time.monotonic() - start, 2)
                if time.monotonic() - kept > 1:
                    keep(card)
                    kept = time.monotonic()
    except Late:
        result["problem"] = f"stopped after its {seconds:.0f} s"
    except Exception as error:  # the next step is worth as much
        result["problem"] = f"{type(error).__name__}: {str(error)[:300]}"
        result["traceback"] = traceback.format_exc().splitlines()[-12:]
    result["seconds"] = round(time.monotonic() - start, 2)
    card.reset()


def wrong(rows: list[Row]) -> list[Row]:
    """Rows that say no to something, or failed."""
    return [row for row in rows if any(value is False for value in row.values()) or "problem" in row]


def summary(name: str, step: dict[str, Any]) -> Iterator[str]:
    """A step in a few lines: how many rows, and the first that are wrong."""
    bad = wrong(step["rows"])
    yield f"{name}: {len(step['rows'])} rows, {len(bad)} wrong, {step.get('seconds', 0)} s. {step.get('problem', '')}"
    yield from (f"    {json.dumps(row, ensure_ascii=False, default=str)[:400]}" for row in bad[:4])


def keep(card: Card) -> None:
    """Writes both files anew."""
    part = card.out / "gpu.json.part"
    part.write_text(json.dumps(card.steps, indent=1, ensure_ascii=False, default=str) + "\n")
    part.replace(card.out / "gpu.json")
    (card.out / "gpu.md").write_text("\n".join(_section(name, step) for name, step in card.steps.items()))


def _section(name: str, step: dict[str, Any]) -> str:
    count = f"{len(step['rows'])} rows, {len(wrong(step['rows']))} wrong, {step.get('seconds', 0)} s."
    lines = [f"## {name}", "", f"{step.get('about', '')} {count}", ""]
    if "problem" in step:
        lines += [f"**{step['problem']}**", "", *(f"    {line}" for line in step.get("traceback", ())), ""]
    rows = step["rows"]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if columns:
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join([*lines, ""])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**NO**"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return "<br>".join(map(_cell, value))
    if isinstance(value, dict):
        return "<br>".join(f"{key}: {_cell(each)}" for key, each in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()

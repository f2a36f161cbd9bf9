"""Every layer of every model of torchvision, and of others that are installed, against every promise of an edit.

    python -m tests.zoo                                 everything; hours on two cores
    python -m tests.zoo --models 'resnet*' --jobs 1     some, by pattern
    python -m tests.zoo --no-clock                      without timing discovery at the published sizes
    python -m tests.zoo --clock-only --skip-giants      timing anew, the sweep's results kept; a quarter of an hour

Each model runs in a process of its own. Results are kept in a JSON file beside the table, which is written anew after
each model, so that a sweep can go on where it stopped (``--again`` forgets); models whose result lacks a promise are
swept anew.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from tests.zoo.models import GIANTS, Animal, zoo
from tests.zoo.report import table
from tests.zoo.sweep import PROMISES, clocked, swept


def main() -> None:
    arguments = _parsed()
    animals = {a.name: a for a in zoo() if any(fnmatch.fnmatch(a.name, p) for p in arguments.models.split(","))}
    if arguments.one:
        torch.set_num_threads(1)
        print(json.dumps((clocked if arguments.one == "clock" else swept)(next(iter(animals.values())))))
        return
    store, machine = arguments.out.with_suffix(".json"), _machine()
    results: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() else {}

    def keep(animal: Animal, part: str, found: dict[str, Any]) -> None:
        results.setdefault(animal.name, {"family": animal.family, "size": animal.size})[part] = found
        results[animal.name].setdefault("machines", {})[part] = machine
        results[animal.name]["tolerance"] = animal.tolerance
        store.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        arguments.out.write_text(table({a.name: results[a.name] for a in zoo() if a.name in results}))
        print(f"{animal.name:42}{part:6} {_short(found)}", flush=True)

    wanted = [a for a in animals.values() if arguments.again or not _is_swept(results.get(a.name, {}))]
    wanted = [] if arguments.clock_only else wanted
    for animal in [a for a in wanted if a.name in GIANTS and arguments.skip_giants]:
        keep(animal, "sweep", {"problem": f"skipped: {GIANTS[animal.name]}"})
        wanted.remove(animal)
    wanted.sort(key=lambda a: -results.get(a.name, {}).get("sweep", {}).get("seconds", {}).get("sweep", 0.0))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {pool.submit(_child, animal, "sweep", arguments.limit): animal for animal in wanted}
        for done in as_completed(running):
            keep(running[done], "sweep", done.result())
    anew = arguments.again or arguments.clock_only
    for animal in [a for a in animals.values() if a.native and arguments.clock]:
        giant = animal.name in GIANTS and arguments.skip_giants
        if not giant and (anew or "clock" not in results.get(animal.name, {})):
            keep(animal, "clock", _child(animal, "clock", arguments.limit))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="*", help="comma-separated patterns of names")
    parser.add_argument("--out", type=Path, default=Path("tests/zoo/RESULTS.md"))
    parser.add_argument("--jobs", type=int, default=2, help="models at a time in the sweep; the clock runs alone")
    parser.add_argument("--limit", type=int, default=3600, help="seconds for one model")
    parser.add_argument("--again", action="store_true", help="also models that have a result")
    parser.add_argument("--skip-giants", action="store_true", help=f"leave out {' and '.join(GIANTS)}")
    parser.add_argument("--no-clock", dest="clock", action="store_false", help="no timing at published sizes")
    parser.add_argument("--clock-only", action="store_true", help="timing alone, also of models that have been timed")
    parser.add_argument("--one", choices=("sweep", "clock"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _is_swept(result: dict[str, Any]) -> bool:
    """Whether there is a result, and one with every promise of today."""
    found = result.get("sweep", {"promises": ()})
    return "problem" in found or set(PROMISES) <= set(found["promises"])


def _child(animal: Animal, part: str, limit: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.zoo", "--models", animal.name, "--one", part]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"problem": f"not finished in {limit} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {"problem": f"fails: {last[:200]}"}
    return json.loads(done.stdout.splitlines()[-1])


def _machine() -> str:
    import torchvision

    versions = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
    for name in ("timm", "transformers"):
        try:
            versions.append(f"{name} {__import__(name).__version__}")
        except ImportError:
            versions.append(f"{name} not installed: its models are left out")
    return f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, {', '.join(versions)}"


def _short(found: dict[str, Any]) -> str:
    if "problem" in found:
        return found["problem"]
    if "forward" in found:
        return f"forward {found['forward']:.2f} s, discovery {found['discovery']:.1f} s"
    return (
        f"{found['exact']} exact, {found['inexact']} inexact, {found['pinned']} pinned, "
        f"{len(found['failures'])} failures, {found['seconds']['sweep']:.0f} s, {found['gigabytes']:.1f} GB"
    )


if __name__ == "__main__":
    main()

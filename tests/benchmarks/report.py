"""What a report costs: ``python -m tests.benchmarks.report [--trials 1000] [--layers 3] [--space mixed]``.

A study of these trials and three compared schedules is made up (``tests/study/evidence/made.py``) and its report
written twice: the first time everything is computed, the second time the importances of the parameters are there. Times
are processor seconds, and multiples of parsing the ledger in the same process; nothing is asserted about them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from network_surgery.study.conduct import write_report
from network_surgery.study.store.folder import Folder
from tests.study.evidence import made


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--space", default="mixed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        layers = {f"layer{number}": 32 * 2 ** (4 * number // options.layers) for number in range(options.layers)}
        path = Path(scratch) / "study"
        folder = made.study(path, layers, trials=options.trials, space=options.space, epochs=12)
        megabytes = (path / "cells.jsonl").stat().st_size / 2**20
        print(f"{options.trials} trials and {len(folder.records()) - options.trials} cells of the comparison, ", end="")
        print(f"{options.layers} layers, a ledger of {megabytes:.1f} MiB\n")
        print("| report | s | / parsing the ledger |\n|---|--:|--:|")
        for name in ("first", "second"):
            parsing = seconds(lambda: Folder.open(path).records())
            spent = seconds(lambda: write_report(Folder.open(path)))
            print(f"| {name} | {spent:.1f} | {spent / parsing:.0f} |", flush=True)


if __name__ == "__main__":
    main()

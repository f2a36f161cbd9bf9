"""What the driver of a search spends on its trials: ``python -m tests.benchmarks.driver [--trials 100,1000,10000]``.

A study's own parts (Optuna and its database, ledger, cells that are known, MLflow with ``--track``) without Ray and
without training: eight trials are under way at any time, and what becomes of them is made up
(``tests/study/evidence/made.py``). Processor seconds a trial: of all, and of the last hundred.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from network_surgery.study.config import Settings
from network_surgery.study.search.once import Once
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.tracking.tracker import Tracker
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from tests.study.evidence import made

LAYERS = {"conv1": 32, "conv2": 64, "fc1": 96}
UNDER_WAY = 8


def search(settings: Settings, place: Path, track: bool) -> str:
    """A row of the table for a search with these settings, in this new folder."""
    folder = Folder.make(place, settings, layers=LAYERS)
    with contextlib.ExitStack() as stack:
        listeners = [folder]
        if track:
            listeners.append(stack.enter_context(Tracker(folder, ImageTask.of(settings), load=False)))
        began, before = time.process_time(), []
        sampled = Sampled(settings, LAYERS, place / "optuna.db", room=lambda: UNDER_WAY)
        source, running = Once(sampled, settings, made.PER_EPOCH, place), deque[Cell]()
        while not source.finished:
            while len(running) < UNDER_WAY and (cell := source.next()) is not None:
                running.append(cell)
                for each in listeners:
                    each.started(cell)
            cell = running.popleft()
            result = made.outcome(cell, folder)
            for record in result["epochs"]:
                source.epoch(cell, record)
            for each in listeners:
                each.ended(cell, result)
            source.tell(cell, result)
            before.append(time.process_time() - began)
    spent = time.process_time() - began
    last = (before[-1] - before[-101]) / 100 if len(before) > 100 else before[-1] / len(before)
    files = " | ".join(f"{(place / name).stat().st_size / 2**20:.1f}" for name in ("cells.jsonl", "optuna.db"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    words = f"{1000 * spent / settings.trials:.0f} | {1000 * last:.0f} | {memory:.2f} | {files}"
    return f"| {settings.trials:,} | {settings.sampler} | {'yes' if track else 'no'} | {words} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", default="100,1000,10000")
    parser.add_argument("--sampler", default=Settings().sampler)
    parser.add_argument("--space", default=Settings().space)
    parser.add_argument("--track", action="store_true", help="with MLflow's database, too")
    parser.add_argument("--alone", action="store_true", help="print the row of one number of trials only")
    options = parser.parse_args()
    if options.alone:
        settings = Settings(
            sampler=options.sampler, space=options.space, trials=int(options.trials), sampling="asynchronous"
        )
        with tempfile.TemporaryDirectory() as place:
            print(search(settings, Path(place) / "study", options.track), flush=True)
        return
    print("| trials | sampler | MLflow | ms a trial | of the last 100 | GB | ledger, MB | optuna.db, MB |")
    print("|--:|---|---|--:|--:|--:|--:|--:|", flush=True)
    for count in options.trials.split(","):  # each in a process of its own, for its memory
        again = [sys.executable, "-m", "tests.benchmarks.driver", *sys.argv[1:], "--alone", "--trials", count]
        subprocess.run(again, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()

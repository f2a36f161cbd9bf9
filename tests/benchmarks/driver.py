"""What the driver of a search spends on its trials: ``python -m tests.benchmarks.driver [--trials 200,1000,10000]``.

A study's own parts (Optuna and its database, ledger, cells that are known, MLflow with ``--track``) without Ray and
without training: eight trials are under way at any time, and what becomes of them is made up
(``tests/study/evidence/made.py``). All but the last hundred are drawn at random, since a sampler that learns takes the
longer the more trials there are. Processor seconds a trial: of those at random, and of the last hundred.
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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from network_surgery.study.config import Settings
from network_surgery.study.search.once import Once
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.tracking.tracker import Tracker
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from tests.study.evidence import made

LAYERS = {"conv1": 32, "conv2": 64, "fc1": 96}
UNDER_WAY, LAST = 8, 100


def search(settings: Settings, folder: Folder, listeners: Sequence[Any]) -> float:
    """Processor seconds a trial of a search with these settings, which goes on in this folder."""
    there = len(folder.records())
    sampled = Sampled(settings, LAYERS, folder.path / "optuna.db", room=lambda: UNDER_WAY)
    source, running = Once(sampled, settings, made.PER_EPOCH, folder.path), deque[Cell]()
    began = time.process_time()
    while not source.finished:
        while len(running) < UNDER_WAY and (cell := source.next()) is not None:
            running.append(cell)
            for each in listeners:
                each.started(cell)
        ended = [*source.copies()]  # of cells that compute what another one has computed
        if not ended:
            cell = running.popleft()
            ended = [(cell, made.outcome(cell, folder))]
            for record in ended[0][1]["epochs"]:
                source.epoch(cell, record)
        for cell, result in ended:
            for each in listeners:
                each.ended(cell, result)
            source.tell(cell, result)
    return (time.process_time() - began) / (settings.trials - there)


def row(settings: Settings, place: Path, track: bool) -> str:
    """A row of the table, of a study in this new folder."""
    folder = Folder.make(place, settings, layers=LAYERS)
    with contextlib.ExitStack() as stack:
        listeners: list[Any] = [folder]
        if track:
            listeners.append(stack.enter_context(Tracker(folder, ImageTask.of(settings), load=False)))
        first = replace(settings, sampler="RandomSampler", trials=settings.trials - LAST)
        spent = [search(each, folder, listeners) for each in (first, settings)]
    files = " | ".join(f"{(place / name).stat().st_size / 2**20:.1f}" for name in ("cells.jsonl", "optuna.db"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    words = " | ".join(f"{1000 * each:.0f}" for each in spent)
    return f"| {settings.trials:,} | {'yes' if track else 'no'} | {words} | {memory:.2f} | {files} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", default="200,1000,10000")
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
            print(row(settings, Path(place) / "study", options.track), flush=True)
        return
    print(f"| trials | MLflow | at random, ms | {options.sampler}, ms | GB | ledger, MB | optuna.db, MB |")
    print("|--:|---|--:|--:|--:|--:|--:|", flush=True)
    for count in options.trials.split(","):  # each in a process of its own, for its memory
        again = [sys.executable, "-m", "tests.benchmarks.driver", *sys.argv[1:], "--alone", "--trials", count]
        subprocess.run(again, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()

"""The report of a study that is finished, interrupted, or run by another process at this moment."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from network_surgery.study.conduct import show, write_report
from network_surgery.study.evidence.state import epochs, state
from network_surgery.study.store.folder import Folder
from tests.study.evidence import made

LAYERS = {"a": 16, "b": 24}
HOLD = """
import sys
from pathlib import Path
from network_surgery.study.store.folder import Folder
with Folder.open(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def run_elsewhere(folder: Folder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the study's lock, as one that runs it does."""
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def cut(folder: Folder, records: int) -> None:
    """Leaves the first lines of the ledger, and half of the next one, as a killed process does."""
    ledger = folder.path / "cells.jsonl"
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join([*lines[:records], lines[records][:50]]))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A finished study: 6 trials, 2 schedules, 2 seeds."""
    arms = ("original", "surgery", "restart", "restart_flops", "random")
    return made.study(tmp_path / "s", LAYERS, trials=6, top=2, seeds=2, epochs=4, space="removal", arms=arms)


def page(folder: Folder) -> str:
    write_report(folder)
    return " ".join(folder.report.read_text().split())


def test_a_finished_study_has_nothing_left_to_do(folder: Folder) -> None:
    cells = len(folder.records()) - 6
    assert cells == 2 + 2 * 2 * 4  # the original, and surgery with three rivals for each schedule, of each seed
    expected = {
        "now": "finished", "search": {"ended": 6, "of": 6}, "racing": {"ended": 0, "of": 0},
        "comparison": {"ended": cells, "of": cells},
    }  # fmt: skip
    assert state(folder) == expected
    expected |= epochs(folder)
    assert write_report(folder)["state"] == expected == json.loads(folder.results.read_text())["state"]
    assert "Finished.</strong> 6 of 6 trials of the search and 18 of 18 training runs of the comparison" in page(folder)


def test_the_terminal_says_so_too(folder: Folder) -> None:
    def shown() -> str:
        console = Console(record=True, width=200, file=io.StringIO())
        show(write_report(folder), folder, console)
        return console.export_text()

    assert "Interrupted" not in shown()
    cut(folder, 8)
    words = "Interrupted: 6 of 6 trials of the search and 2 of 18 training runs of the comparison have ended."
    assert words in shown()


@pytest.mark.parametrize(
    ("records", "search", "comparison"),
    [(0, (0, 6), (0, 18)), (4, (4, 6), (0, 18)), (6, (6, 6), (0, 18)), (8, (6, 6), (2, 18)), (23, (6, 6), (17, 18))],
    ids=["nothing", "in the search", "between", "in the comparison", "one missing"],
)
def test_an_interrupted_study_says_what_is_missing(
    folder: Folder, records: int, search: tuple[int, int], comparison: tuple[int, int]
) -> None:
    cut(folder, records)
    found = state(folder)
    assert found["now"] == "interrupted"
    assert tuple(found["search"].values()) == search and tuple(found["comparison"].values()) == comparison
    text = page(folder)
    assert "Interrupted.</strong>" in text and "Go on with surgery resume s" in text
    assert f"{search[0]} of {search[1]} trials of the search" in text


def test_a_running_study_is_reported_and_left_alone(folder: Folder) -> None:
    cut(folder, 5)
    ledger = (folder.path / "cells.jsonl").read_bytes()
    with run_elsewhere(folder) as process:
        assert state(folder)["now"] == "running"
        assert "Running.</strong> 5 of 6 trials of the search" in page(folder)
        assert process.poll() is None and folder.running
    assert (folder.path / "cells.jsonl").read_bytes() == ledger
    assert state(folder)["now"] == "interrupted"  # it was killed
    assert not [path for path in folder.path.rglob("*") if path.suffix == ".part"]


def test_a_study_that_ends_is_not_running(folder: Folder) -> None:
    """The process that has run it holds the lock still when it writes the last report."""
    with folder.locked():
        assert not folder.running and state(folder)["now"] == "finished"


def test_those_that_ask_at_once_do_not_take_each_other_for_a_run(folder: Folder) -> None:
    with folder.locked():
        pass  # so that there is a lock to ask for
    with ThreadPoolExecutor(8) as threads:
        assert not any(threads.map(lambda _: Folder.open(folder.path).running, range(40)))


def test_a_lost_training_is_missing_and_a_failed_one_is_not(folder: Folder) -> None:
    surgery = folder.records("surgery")[0]
    folder.ended(surgery.cell, {"failure": "the node was lost", "lost": True})
    assert state(folder)["comparison"] == {"ended": 17, "of": 17 + 1 + 3}  # its rivals are made from what it ends with
    folder.ended(surgery.cell, {"failure": "the loss became nan"})
    assert state(folder)["now"] == "finished"


def test_a_search_that_changed_no_network_has_nothing_to_compare(tmp_path: Path) -> None:
    folder = made.study(tmp_path / "s", LAYERS, trials=3, top=1, seeds=1, epochs=4, space="dead_units")
    cut(folder, 3)
    none = {"ended": 0, "of": 0}
    assert state(folder) == {"now": "finished", "search": {"ended": 3, "of": 3}, "racing": none, "comparison": none}
    assert "3 of 3 trials of the search have ended." in page(folder)


def test_given_schedules_need_no_search(tmp_path: Path) -> None:
    steps = [{"when": "1ep", "layer": "a", "op": "min_weight", "keep": 0.5}]
    folder = Folder.make(tmp_path / "s", made.Settings(schedules=(steps,), seeds=2, epochs=4), LAYERS)
    assert state(folder) == {
        "now": "interrupted",
        "search": {"ended": 0, "of": 0},
        "racing": {"ended": 0, "of": 0},
        "comparison": {"ended": 0, "of": 14},
    }
    assert "Nothing is searched" in page(folder)


def test_a_grid_that_this_version_does_not_know_is_what_was_compared(folder: Folder) -> None:
    older = folder.changed(sampler="grid", space="of another version")
    found = state(older)
    assert found["now"] == "finished" and found["comparison"] == {"ended": 18, "of": 18}


def test_epochs_that_were_not_trained_twice_are_counted(folder: Folder) -> None:
    """A forked run shares the first of them, one that is the same as another all."""
    trained = sum(len(record.result.get("epochs", ())) for record in folder.records())
    assert epochs(folder) == {"trained_epochs": trained, "shared_epochs": 0}
    surgery, restart = folder.records("surgery")[0], folder.records("restart")[0]
    folder.ended(surgery.cell, surgery.result | {"forked": {"from": "original-seed-1", "epoch": 2}})
    folder.ended(restart.cell, restart.result | {"same_as": "restart-001-seed-1"})
    shared = 2 + len(restart.result["epochs"])
    assert epochs(folder) == {"trained_epochs": trained - shared, "shared_epochs": shared}
    assert f" {shared} of {trained} epochs were not trained twice." in page(folder)

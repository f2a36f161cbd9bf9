"""A training run that hangs or crashes ends with its stack in a file; one that is slow does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from network_surgery.study.training.failure import describe_lost
from network_surgery.study.training.watch import LEAST, Limits, Pace

CODE = """
import ctypes, sys, time
import tests
from network_surgery.study.training.watch import Limits, Watch
from pathlib import Path

def mine():
    {body}

with Watch(Path("stacks/it.txt"), Limits({limits})) as watch:
    mine()
"""
#: Runs each ``mine.py`` in its folder in a process of its own, which has imported what it needs; writes how each ended.
FORKING = """
import os, sys
sys.path.insert(0, sys.argv[1])
import tests
from network_surgery.study.training.watch import Watch

for folder in sys.argv[2:]:
    if not (child := os.fork()):
        os.chdir(folder)
        exec(compile(open("mine.py").read(), "mine.py", "exec"))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
#: Limits, what is done within them, and why it is said to have ended; None: it ended by itself.
CASES: list[tuple[str, str, str | None]] = [
    ("20, first=0.2", "time.sleep(60)", "it hung: no epoch ended within 0 s (mine.py, line 8, in mine)"),
    ("1, least=0.2", "watch.after_epoch(None, {}); time.sleep(60)", "it hung: no epoch ended within 0 s"),
    ("0", "ctypes.string_at(0)", "its process crashed: Segmentation fault (mine.py, line 8, in mine)"),
    ("0, first=0.1", "time.sleep(0.4)", None),
    ("20, first=0.2, least=5", "watch.after_epoch(None, {}); time.sleep(0.5)", None),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    """For each case its folder and how its process ended."""
    folders = []
    for limits, body, _ in CASES:
        folders.append(tmp_path_factory.mktemp("case"))
        (folders[-1] / "mine.py").write_text(CODE.format(limits=limits, body=body))
    command = [sys.executable, "-c", FORKING, str(Path(__file__).parents[3]), *map(str, folders)]
    codes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return list(zip(folders, map(int, codes), strict=True))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_stack_says_where(case: int, ended: list[tuple[Path, int]]) -> None:
    (folder, code), (_, _, reason) = ended[case], CASES[case]
    stack = folder / "stacks" / "it.txt"
    assert (code == 0) == (reason is None) == (not stack.exists())
    if reason is not None:
        found = describe_lost("", stack.read_text())
        assert found["failure"].startswith(reason) and found["lost"] and "mine.py" in found["error"]["where"]


def test_limits_follow_the_median_of_a_study() -> None:
    pace = Pace(20.0)
    assert pace.limits == Limits(20.0, None, None, LEAST)
    for seconds in (100.0, 200.0, 3000.0):
        pace._firsts.append(seconds)
    assert pace.limits.first == 4000.0 and pace.limits.later is None
    pace.started("it")
    pace.epoch("it")
    pace.epoch("it")
    assert pace.limits.later == LEAST  # they took no time
    pace.ended("it")
    assert pace._since == {}

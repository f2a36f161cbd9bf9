"""A training run that hangs or crashes ends with its stack in a file; one that is slow does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from network_surgery.study.training.failure import lost
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


@pytest.mark.parametrize(
    ("limits", "body", "reason"),
    [
        ("20, first=0.2", "time.sleep(60)", "it hung: no epoch ended within 0 s (mine.py, line 8, in mine)"),
        ("1, least=0.2", "watch.after_epoch(None, {}); time.sleep(60)", "it hung: no epoch ended within 0 s"),
        ("0", "ctypes.string_at(0)", "its process crashed: Segmentation fault (mine.py, line 8, in mine)"),
        ("0, first=0.1", "time.sleep(0.4)", None),
        ("20, first=0.2, least=5", "watch.after_epoch(None, {}); time.sleep(0.5)", None),
    ],
)  # fmt: skip
def test_a_stack_says_where(limits: str, body: str, reason: str | None, tmp_path: Path) -> None:
    code = CODE.format(limits=limits, body=body)
    (tmp_path / "mine.py").write_text(code)
    root = Path(__file__).parents[3]
    run = f"import sys; sys.path.insert(0, {str(root)!r}); exec(compile(open('mine.py').read(), 'mine.py', 'exec'))"
    ended = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True)
    stack = tmp_path / "stacks" / "it.txt"
    assert (ended.returncode == 0) == (reason is None) == (not stack.exists()), ended.stderr
    if reason is not None:
        found = lost("", stack.read_text())
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

"""The tests on a device that stands in for a GPU, in a process of their own (see ``tests/standin/conftest.py``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standin import device as standin

ROOT = Path(__file__).parents[1]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_everything_on_the_stand_in() -> None:
    if reason := standin.missing():
        pytest.skip(reason)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/standin",
    ]
    environment = {**os.environ, standin.ALONE: "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout

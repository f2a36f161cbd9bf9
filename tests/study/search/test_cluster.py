"""Nothing of a Ray that is left goes on: not what it starts as it ends, either."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from network_surgery.study.search import cluster

# Like Ray's daemon that is told to end while it starts another process.
DAEMON = """
import subprocess, sys
sys.stdin.readline()
late = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "/ray/"], stdout=subprocess.DEVNULL)
print(late.pid, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process adopts another")
def test_what_rays_daemon_starts_while_it_ends_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(cluster, "GRACE", 0.2)
    monkeypatch.setattr(cluster, "_before", [{*psutil.Process().children(recursive=True)}])
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, "/ray/"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    late = []

    def shutdown() -> None:
        text, _ = daemon.communicate("end\n")
        late.append(int(text))
        assert psutil.pid_exists(late[0])

    monkeypatch.setattr(ray, "shutdown", shutdown)
    cluster.leave()
    assert late and not psutil.pid_exists(late[0])
    assert other.poll() is None, "a process of somebody else goes on"
    other.kill()
    other.wait()

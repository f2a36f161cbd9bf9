"""The cluster's file on two machines that are reached over SSH: ``ray up``, ``ray submit``, ``ray down``.

The machines are namespaces of this one, each with its own network, processes, home and temporary folder, and an SSH
server. What differs from the file's block for machines of one's own: the package is installed already and there is no
Docker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from network_surgery.study.config import Settings
from network_surgery.study.search.tracking import EXPERIMENT
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.run import run
from tests.cluster.test_cluster_yaml import block_of
from tests.study.search.test_workers import OPTIONS, SHRINK

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
TRACKING = "http://127.0.0.1:5000"
#: Runs a command in namespaces of its own, which end with it.
APART = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
#: What makes a machine of its namespaces: users have their home in ``$1``, programs their temporary files in ``/mnt``.
MACHINE = """
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/profile" /etc/profile
mount -t tmpfs none /mnt
mount -t tmpfs none /run
mkdir /run/sshd
ip link set lo up
"""
WORKER_SCRIPT = f"""
{MACHINE}
mount -t tmpfs none "$1/home/network-surgery"
mount -t tmpfs none "$1/studies"
until ip address add {WORKER}/24 dev worker; do sleep 0.1; done 2>/dev/null
ip link set worker up
ip route add default dev worker
exec "$SSHD" -D -e -f "$1/sshd_config"
"""
HEAD_SCRIPT = f"""
{MACHINE}
{" ".join(APART)} bash -ec '{WORKER_SCRIPT}' "$0" "$1" &
until inside=$(pgrep --parent $!); do sleep 0.1; done
until ip link add head type veth peer name worker netns "$inside"; do sleep 0.1; done 2>/dev/null
ip address add {HEAD}/24 dev head
ip link set head up
ip route add default dev head
"$SSHD" -D -e -f "$1/sshd_config" &
until ssh -o BatchMode=yes {HEAD} true && ssh -o BatchMode=yes {WORKER} true; do sleep 0.1; done 2>/dev/null
touch "$1/ready"
wait
"""
SSHD_CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {home}/.ssh/id_ed25519.pub
StrictModes no
UsePAM no
"""
PROFILE = """
export PATH={path} RAY_TMPDIR=/mnt TMPDIR=/mnt OMP_NUM_THREADS=1
export RAY_memory_monitor_refresh_ms=0 RAY_USAGE_STATS_ENABLED=0
"""


@dataclass(frozen=True)
class Machines:
    """Two machines, and what is done on the first."""

    folder: Path
    #: A process of the head, whose namespaces are the head's.
    head: int

    def run(self, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """What a command writes on the head, and its exit code."""
        return subprocess.run(self.on_head(*command), text=True, capture_output=True, timeout=timeout, check=False)

    def on_head(self, *command: str) -> list[str]:
        there = ["nsenter", f"--target={self.head}", "--net", "--pid", "--mount"]
        environment = (f"HOME={self.folder}/home", "RAY_UP_enable_autoscaler_v2=0")
        return [*there, "env", *environment, "bash", "--login", "-c", 'cd "$0" && exec "$@"', str(ROOT), *command]

    def ray(self, verb: str, *words: str) -> str:
        """What ``ray VERB cluster.yaml …`` writes, which must succeed."""
        done = self.run("ray", verb, str(self.folder / "cluster.yaml"), *words)
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        assert done.returncode == 0, text
        return text


def missing() -> str | None:
    """Why such machines cannot be made here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "machines are made by root, on Linux"
    for program in ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "rsync", "pgrep", "/usr/sbin/sshd"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    done = subprocess.run(
        [*APART, "ip", "link", "add", "a0", "type", "veth"], capture_output=True, text=True, check=False
    )
    return f"no network namespace can be made here: {done.stderr.strip()}" if done.returncode else None


def prepare(folder: Path) -> None:
    """Keys, users, and the cluster's file with its block for machines of one's own."""
    home, keys = folder / "home", folder / "home/.ssh"
    for each in (keys, home / "network-surgery", folder / "studies"):
        each.mkdir(parents=True)
    for key in (folder / "host_key", keys / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (keys / "config").write_text("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
    (home / ".bashrc").touch()
    users = Path("/etc/passwd").read_text()
    (folder / "passwd").write_text(re.sub(r"(?m)^(root:.*):[^:]*:([^:]*)$", rf"\1:{home}:/bin/bash", users))
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    (folder / "profile").write_text(PROFILE.format(path=path))
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder, home=home))
    (folder / "cluster.yaml").write_text(yaml.safe_dump(on_premise(folder)))


def on_premise(folder: Path) -> dict[str, Any]:
    """The file as its last block says, for these machines."""
    text = (ROOT / "cluster.yaml").read_text()
    for there, here in {"/home/ray": f"{folder}/home", "/studies": f"{folder}/studies", "sudo ": ""}.items():
        text = text.replace(there, here)
    block = block_of("local", text)
    for there, here in {"HEAD": HEAD, "[WORKER, WORKER]": f"[{WORKER}]", "USER": "root"}.items():
        block = block.replace(there, here)
    config = yaml.safe_load(text) | yaml.safe_load(block)
    config["auth"]["ssh_private_key"] = f"{folder}/home/.ssh/id_ed25519"
    for name in ("docker", "available_node_types", "head_node_type"):
        del config[name]
    config["file_mounts"] = {there: str(ROOT) for there in config["file_mounts"]}
    config["setup_commands"] = [f"test -f {there}/pyproject.toml" for there in config["file_mounts"]]
    return config


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    folder, controls = tmp_path_factory.mktemp("machines"), {*Path("/tmp").glob("ray_ssh_*/*")}
    prepare(folder)
    command = [*APART, "bash", "-ec", HEAD_SCRIPT, "head", str(folder)]
    with (folder / "log").open("wb") as log:
        environment = os.environ | {"SSHD": "/usr/sbin/sshd", "HOME": str(folder / "home")}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        end = time.monotonic() + 60
        while not (folder / "ready").exists():
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        (inside,) = psutil.Process(process.pid).children()
        yield Machines(folder, inside.pid)
    finally:
        process.send_signal(signal.SIGKILL)  # --kill-child: and all that runs on both
        process.wait(timeout=30)
        for path in {*Path("/tmp").glob("ray_ssh_*/*")} - controls:  # what Ray shares connections by
            path.unlink() if path.is_socket() else shutil.rmtree(path)
            with contextlib.suppress(OSError):  # others are in use
                path.parent.rmdir()


class Terminal:
    """A command on the head with a terminal, in which Ctrl-C can be typed."""

    def __init__(self, command: list[str]) -> None:
        self.ours, theirs = pty.openpty()
        take = lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)  # noqa: E731
        files = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen(command, start_new_session=True, preexec_fn=take, **files)
        os.close(theirs)
        self.written: list[bytes] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the terminal of a command that has ended
            while written := os.read(self.ours, 4096):
                self.written.append(written)

    def type(self, words: bytes) -> None:
        os.write(self.ours, words)

    def wait(self) -> str:
        """What was written, when the command has ended."""
        try:
            self.process.wait(timeout=120)
            self.reader.join(timeout=10)
        finally:
            self.process.kill()
            os.close(self.ours)
        return b"".join(self.written).decode()


def programs(machines: Machines, words: str) -> dict[int, str]:
    """The processes of both machines whose command has these words, with the network that they are in."""
    found = {}
    for each in psutil.Process(machines.head).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            if words in " ".join(each.cmdline()):
                found[each.pid] = os.readlink(f"/proc/{each.pid}/ns/net")
    return found


@pytest.fixture(scope="module")
def started(machines: Machines) -> Iterator[Machines]:
    """With Ray on both, and MLflow's server on the head; afterwards no Ray is left."""
    machines.ray("up", "--yes", "--no-config-cache")
    health = f"import urllib.request; urllib.request.urlopen('{TRACKING}/health')"
    end = time.monotonic() + 300
    while len(programs(machines, "/raylet/raylet")) < 2 or machines.run("python", "-c", health).returncode:
        assert time.monotonic() < end, machines.run("ray", "status").stdout
        time.sleep(1)
    yield machines
    machines.ray("down", "--yes")
    assert not programs(machines, "/raylet/raylet")


def submit(machines: Machines, *words: str) -> str:
    return machines.ray("submit", "study/__main__.py", *words)


def test_both_machines_are_ready(started: Machines) -> None:
    text = submit(started, "doctor", "--address", "auto")
    assert text.count(": ready") == 2 and "checking 2 nodes" in text


def test_a_study_is_stopped_in_the_terminal_and_goes_on(started: Machines) -> None:
    """It trains on both machines; nothing is lost or run twice, and all of it is in MLflow."""
    out = started.folder / "studies/digits"
    study = ("study", "--preset", "smoke", "--address", "auto", "--out", str(out))
    command = ("ray", "submit", str(started.folder / "cluster.yaml"), "study/__main__.py", *study)
    stopped = Terminal(started.on_head(*command, "--tracking-uri", TRACKING))
    networks = set[str]()
    while stopped.process.poll() is None and not (len(networks) == 2 and (out / "cells.jsonl").exists()):
        networks |= set(programs(started, "ray::ImplicitFunc").values())
        time.sleep(0.05)
    stopped.type(b"\x03")
    text = stopped.wait()
    assert "Go on with: surgery resume" in text and "Traceback" not in text, text
    assert len(networks) == 2, text
    assert not programs(started, "__main__.py study")
    before = (out / "cells.jsonl").read_text()

    text = submit(started, "resume", str(out))
    assert (out / "report.html").exists() and "Report " in text and "View run" not in text, text
    assert (out / "cells.jsonl").read_text().startswith(before)
    cells = [record.cell.name for record in Folder.open(out).records()]
    assert len(cells) == len(set(cells)) and cells
    show = f"import mlflow; print(len(mlflow.search_runs(experiment_names=['{EXPERIMENT}'], output_format='list')))"
    asked = started.run("env", f"MLFLOW_TRACKING_URI={TRACKING}", "python", "-W", "ignore", "-c", show)
    assert int(asked.stdout) >= len(cells), asked


def test_one_training_run_on_two_machines_is_one_to_rounding(started: Machines) -> None:
    """Two workers of two cores each, for which no machine has room alone."""
    workers = {"workers_per_trial": 2, "cpus_per_trial": psutil.cpu_count() or 1}
    given = OPTIONS | {"data": "digits", "model": "mlp", "schedules": [SHRINK], "seeds": 1, "arms": "original,surgery"}
    (started.folder / "mine.yaml").write_text(yaml.safe_dump(given | workers))
    out = started.folder / "studies/together"
    words = ("study", "--config", str(started.folder / "mine.yaml"), "--address", "auto", "--out", str(out))
    text = submit(started, *words)
    found = {record.cell.arm: record for record in Folder.open(out).records()}
    assert found.keys() == {"original", "surgery"}, text
    settings = Settings(**OPTIONS, model="mlp")
    for arm, record in found.items():
        one = run(record.cell, ImageTask.of(settings), settings, torch.device("cpu"))
        for key in ("test_loss", "validation_loss", "test_metric", "parameters", "training_flops"):
            assert record.result[key] == pytest.approx(one[key], rel=1e-3), (arm, key)

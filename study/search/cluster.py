"""Starts or joins Ray, and leaves none of its processes behind."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import psutil

from network_surgery.study import interruption
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.scratch import scratch, sweep
from network_surgery.study.search.nodes import Nodes

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output is silent at verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000000",  # nothing of Tune's is restored, so nothing needs to be saved
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
#: Seconds that processes have to end by themselves, and between two looks at them.
GRACE, PAUSE = 2.0, 0.1
#: What Linux calls a process to which orphans come, in <linux/prctl.h>.
_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37
#: The most characters of Ray's folder: it adds up to 66 to the names of its sockets, of which Linux allows 107.
LONGEST_PLACE = 40
#: For each open ``joined``: the processes that this one had before it started or joined Ray; None: Ray was there.
_before: list[set[psutil.Process] | None] = []


@contextlib.contextmanager
def joined(settings: Settings, narrate: Callable[[str], None] = lambda words: None) -> Iterator[Nodes]:
    """Ray for the time of a ``with`` block: the cluster at ``settings.address`` or, as Ray does, at ``RAY_ADDRESS`` or
    started on this machine by ``ray start``; else one of our own, which is stopped at the end. Yields its nodes.

    ``narrate`` is given a line about it, and one about each node that is avoided.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    import ray

    # What goes wrong in a trial, or on the way to MLflow, is reported in a sentence, not by a traceback.
    for name in ("ray.tune", "ray.air", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _check_address(settings.address)
    ours = not ray.is_initialized()
    if ours:
        narrate(f"joining Ray at {settings.address}" if settings.address else "starting Ray")
        sweep()
    with scratch(LONGEST_PLACE) if ours and _alone(settings.address) else contextlib.nullcontext() as place:
        _before.append({*psutil.Process().children(recursive=True)} if ours else None)
        try:
            if ours:
                _init(settings.address, place)
            yield Nodes(narrate)
        finally:
            leave()
            _before.pop()
            if ours:
                sweep()  # what workers had that were killed


def _alone(address: str | None) -> bool:
    """Whether Ray will be started by us, not joined, and nobody else says where its files go."""
    current = os.path.join(tempfile.gettempdir(), "ray", "ray_current_cluster")  # what ``ray start`` writes
    return address is None and not {"RAY_ADDRESS", "RAY_TMPDIR"} & os.environ.keys() and not os.path.exists(current)


def _init(address: str | None, place: Path | None) -> None:
    """Starts or joins Ray, which writes its files to ``place``; signals stay with those who handle them."""
    import ray
    from ray._private import worker

    # It prints what befalls its processes to standard output, which is for the answer, whatever ``log_to_driver`` says.
    worker.print_to_stdstream = lambda *_, **__: None
    more: dict[str, Any] = {} if place is None or len(str(place)) > LONGEST_PLACE else {"_temp_dir": str(place)}
    if place is not None:
        _have_token()
    try:
        with _without_stack(), _apart():
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"there is no Ray cluster at {address!r}: {reason}") from None


def _have_token() -> None:
    """A Ray that we start has a token, which it keeps in the home folder. Where nothing can be written there, as in
    some containers, this process and its children have one for themselves.
    """
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    try:
        token = Path.home() / ".ray" / "auth_token"
        if not token.exists():
            token.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=token.parent).close()
    except (OSError, RuntimeError):  # the latter where there is no home
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def _without_stack() -> Iterator[None]:
    """Gives signals back that Ray takes in a ``with`` block: its handler of SIGTERM prints a stack and aborts."""
    handling = interruption.current()
    if handling is None:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        handling.again()
        if hasattr(signal, "alarm"):
            signal.alarm(0)  # by which that handler aborts
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """What Ray starts in a ``with`` block has a process group of its own. A closed terminal, ``timeout`` and a batch
    system end all processes of a group at once; so they end us, and we end Ray.
    """
    from ray._private import services

    plain: Any = services.ConsolePopen
    if hasattr(os, "setpgid"):
        vars(services)["ConsolePopen"] = functools.partial(plain, process_group=0)
    try:
        yield
    finally:
        vars(services)["ConsolePopen"] = plain


def leave() -> None:
    """Leaves or ends the Ray that ``joined`` joined or started, if it did: none of its processes is left."""
    before = _before[-1] if _before else None
    if before is None:
        return
    import ray

    with _adopting():
        try:
            ray.shutdown()
        finally:
            seen: set[psutil.Process] = set()
            end = time.monotonic() + GRACE
            while late := _started(before):
                seen.update(late)
                if (more := time.monotonic() - end) > GRACE:
                    break
                for each in late if more > 0 else ():
                    with contextlib.suppress(psutil.Error):
                        each.kill()
                psutil.wait_procs(late, timeout=PAUSE)
            psutil.wait_procs(seen, timeout=0)  # those that ended between two looks


def _started(before: Collection[psutil.Process]) -> list[psutil.Process]:
    """Ray's processes that this one has started since then, or adopted."""
    return [each for each in psutil.Process().children(recursive=True) if each not in before and _is_rays(each)]


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Makes processes that lose their parent in a ``with`` block children of this one, where the system can (Linux):
    what Ray's daemon starts while it ends would be lost from sight, and would write where its files were.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if os.name == "posix" else None
    if prctl is None:
        yield
        return
    was = ctypes.c_int()
    prctl(_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_CHILD_SUBREAPER, was.value, 0, 0, 0)


def _is_rays(process: psutil.Process) -> bool:
    try:
        words = " ".join(process.cmdline())
        while not words and process.status() != psutil.STATUS_ZOMBIE and time.time() - process.create_time() < PAUSE:
            words = " ".join(process.cmdline())  # it is just becoming another program
    except psutil.Error:  # it has ended
        return False
    return "ray::" in words or f"{os.sep}ray{os.sep}" in words


def _check_address(address: str | None) -> None:
    """Raises StudyError where nothing answers at HOST:PORT (Ray itself would try for minutes), or where this process is
    in another cluster already.
    """
    import ray

    host, _, port = (address or "").rpartition(":")
    if not host or address is None or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise StudyError(
            f"there is no Ray cluster at {address} ({error}); give HOST:PORT of its head, or auto"
        ) from None
    if not ray.is_initialized():
        return
    here = ray.get_runtime_context().gcs_address
    hosts = {socket.gethostbyname(each) for each in (host, here.rpartition(":")[0])}
    local = any(each.startswith("127.") for each in hosts)
    if port != here.rpartition(":")[2] or (len(hosts) > 1 and not local):
        raise StudyError(
            f"this process is in the Ray cluster at {here}, not at {address}; call ray.shutdown() first, or leave the "
            "address out"
        )

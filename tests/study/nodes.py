"""Nodes of a cluster that is not there, and a cluster that costs little."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from network_surgery.study.config import Settings
from network_surgery.study.search.cluster import joined
from network_surgery.study.search.nodes import Node, Nodes


def node(name: str = "here", **resources: float) -> Node:
    """A node with these resources, by Ray's names."""
    return Node(name, name, resources)


@contextlib.contextmanager
def one_slot() -> Iterator[Nodes]:
    """A Ray of this process with one CPU: to start a worker costs more than to train a small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1}')
        with joined(Settings(device="cpu")) as nodes:
            yield nodes

"""Nodes of a cluster that is not there."""

from __future__ import annotations

from network_surgery.study.search.nodes import Node


def node(name: str = "here", **resources: float) -> Node:
    """A node with these resources, by Ray's names."""
    return Node(name, name, resources)

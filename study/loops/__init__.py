"""Surgery in training loops that are not ours: a plain loop, Lightning, transformers."""

from network_surgery.study.loops.plain import Surgeon

__all__ = ["Surgeon"]

"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from network_surgery import ops, search_spaces, study


def _modules() -> Iterator[str]:
    """Every module with an example in it."""
    for package in (ops, search_spaces, study):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            spec = importlib.util.find_spec(module.name)
            if spec is not None and spec.origin and ">>> " in Path(spec.origin).read_text(encoding="utf-8"):
                yield module.name


@pytest.mark.parametrize("name", [ops.__name__, *_modules()])
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed

"""The stand-in device, for the tests of this folder, which ``tests/test_standin.py`` runs in a process of their own.

torch counts devices at the first backward pass of a process: one that is registered later has no thread for its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.standin import device as standin

collect_ignore_glob = [] if os.environ.get(standin.ALONE) else ["test_*.py"]


@pytest.fixture
def device() -> Iterator[torch.device]:
    """A device that counts from 0."""
    if reason := standin.missing():
        pytest.skip(reason)
    with standin.present() as device:
        standin.reset()
        yield device

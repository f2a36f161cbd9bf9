"""The stand-in device, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.standin import device as standin


@pytest.fixture
def device() -> Iterator[torch.device]:
    """A device that counts from 0."""
    if reason := standin.missing():
        pytest.skip(reason)
    with standin.present() as device:
        standin.reset()
        yield device

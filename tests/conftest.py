"""Every test starts from the same random state, on one thread: these networks are too small for two."""

import pytest
import torch

import tests  # noqa: F401  # before anything of the project

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)

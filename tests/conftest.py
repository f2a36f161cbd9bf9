"""Every test starts from the same random state, on one thread: these networks are too small for two."""

import sys
from collections.abc import Iterator

import pytest
import torch

import tests  # noqa: F401  # before anything of the project
from tests import tiers

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests that take long, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason=tiers.REASON))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def stopped() -> Iterator[None]:
    """Ray, which starts by itself when it is asked for anything, is stopped by those who started it."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and hasattr(ray, "is_initialized") and ray.is_initialized():
        ray.shutdown()
        pytest.fail("Ray was left running")

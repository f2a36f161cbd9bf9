"""Two tiers: ``pytest``, and with it ``.ci/run``, runs what is quick, ``pytest --long`` everything."""

from typing import Any

import pytest

#: Why long tests are skipped.
REASON = "takes long: pytest --long runs it"


def long(*values: Any) -> Any:
    """The values of a parametrized test, whose run takes long."""
    return pytest.param(*values, marks=pytest.mark.long)

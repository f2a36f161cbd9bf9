"""Two tiers: ``pytest`` runs what is quick, ``pytest --long`` everything, as ``.ci/run`` does."""

from typing import Any

import pytest

#: Why long tests are skipped.
REASON = "takes long: pytest --long runs it"


def long(*values: Any) -> Any:
    """The values of a parametrized test, whose run takes long."""
    return pytest.param(*values, marks=pytest.mark.long)

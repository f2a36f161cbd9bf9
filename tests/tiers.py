"""Two tiers: ``pytest`` runs what is quick, ``pytest --long`` everything.

Long is what takes more than about ten seconds and has a quick relative: another member of the same family of tests, or
a shorter way through the same code.
"""

from typing import Any

import pytest

#: Why long tests are skipped.
REASON = "takes long: pytest --long runs it"


def long(*values: Any) -> Any:
    """The values of a parametrized test, whose run takes long."""
    return pytest.param(*values, marks=pytest.mark.long)

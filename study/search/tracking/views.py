"""The views of its page of runs that MLflow offers under "Views": the comparison, and the search.

By itself MLflow shows one folded line and the columns of no study. A view is a tag of the experiment, as MLflow's own
"Save as new view" writes it; a version that does not know the form shows its usual page.
"""

from __future__ import annotations

import json
from typing import Any

_TAG, _RUN_NAME = "mlflow.sharedViewState.", "attributes.`Run Name`"
#: The one that ``surgery ui`` opens.
FIRST = "comparison"


def view_tags() -> dict[str, str]:
    """The experiment's tags: each view's search, order and columns."""
    shared = ("size/parameters", "size/flops", "seconds/total", "operation loss/spike_factor", "tags.operation")
    comparison, search = ("accuracy/test", *shared, "tags.arm"), ("accuracy/validation", *shared)
    return {
        f"{_TAG}comparison": _view("Comparison of arms", "tags.arm != 'search'", "accuracy/test", comparison),
        f"{_TAG}search": _view("Search trials", "tags.arm = 'search'", "accuracy/validation", search),
    }


def _view(name: str, wanted: str, order: str, columns: tuple[str, ...]) -> str:
    """A view: which runs, the metric by which they are ordered (best first), and the columns."""
    state: dict[str, Any] = {
        "searchFilter": wanted,
        "orderByKey": f"metrics.`{order}`",
        "orderByAsc": False,
        "selectedColumns": [_column(column) for column in columns],
        "columnOrder": [_RUN_NAME, *(_column(column) for column in columns)],
        "columnWidths": {_RUN_NAME: 360},
    }
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _column(name: str) -> str:
    kind, _, rest = name.partition(".")
    return f"tags.`{rest}`" if kind == "tags" else f"metrics.`{name}`"

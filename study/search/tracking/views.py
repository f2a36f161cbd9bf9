"""The views of its page of runs that MLflow offers under "Views": the comparison, and the search.

By itself MLflow shows one folded line and the columns of no study. A view is a tag of the experiment, as MLflow's own
"Save as new view" writes it; a version that does not know the form shows its usual page.
"""

from __future__ import annotations

import json
import re
from typing import Any

from network_surgery.study.search.tracking.measures import group
from network_surgery.study.store.ledger import SEARCHING
from network_surgery.study.task.metric import ACCURACY, Metric

_TAG, _RUN_NAME = "mlflow.sharedViewState.", "attributes.`Run Name`"


def first(metric: Metric = ACCURACY) -> str:
    """The view that ``surgery ui`` opens. An experiment may hold studies of several metrics, with views each."""
    return f"means{_of(metric)}"


def view_tags(metric: Metric = ACCURACY) -> dict[str, str]:
    """The experiment's tags: each view's search, order and columns."""
    name, of = group(metric.name), "" if metric.name == "accuracy" else f": {metric.name}"
    test, validation = f"{name}/test", f"{name}/validation"
    shared = ("size/parameters", "size/flops", "seconds/total", "operation loss/spike_factor", "tags.operation")
    comparison, search = (test, *shared, "tags.arm"), (validation, *shared)
    up, compared = metric.better == "lower", " and ".join(f"tags.arm != '{arm}'" for arm in SEARCHING)
    means = _view(f"Means by arm{of}", compared, test, up, (test, *shared), ("arm", "schedule"))
    return {
        f"{_TAG}{first(metric)}": means,
        f"{_TAG}comparison{_of(metric)}": _view(f"Comparison of arms{of}", compared, test, up, comparison),
        f"{_TAG}search{_of(metric)}": _view(f"Search trials{of}", "tags.arm = 'search'", validation, up, search),
    }


def _of(metric: Metric) -> str:
    return "" if metric.name == "accuracy" else "-" + re.sub(r"\W+", "-", metric.name)


def _view(name: str, wanted: str, order: str, up: bool, columns: tuple[str, ...], grouped: tuple[str, ...] = ()) -> str:
    """A view: which runs, the metric by which they are ordered (best first), and the columns.

    ``grouped``: the tags whose values make a row each, with means over its runs; a click shows these.
    """
    state: dict[str, Any] = {
        "searchFilter": wanted,
        "orderByKey": f"metrics.`{order}`",
        "orderByAsc": up,
        "selectedColumns": [_column(column) for column in columns],
        "columnOrder": [_RUN_NAME, *(_column(column) for column in columns)],
        "columnWidths": {_RUN_NAME: 360},
    }
    if grouped:
        keys = [{"mode": "tag", "groupByData": tag} for tag in grouped]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": keys}
        state["groupsExpanded"] = {}
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _column(name: str) -> str:
    kind, _, rest = name.partition(".")
    return f"tags.`{rest}`" if kind == "tags" else f"metrics.`{name}`"

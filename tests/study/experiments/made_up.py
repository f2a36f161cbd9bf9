"""Rows that nobody measured, for what a page makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from network_surgery.study.bench.experiment import Options
from network_surgery.study.bench.rows import Measured, Row, Rows


def measured_of(experiment: str, options: Options, facts: Mapping[str, Any], rows: Iterable[Row]) -> Measured:
    """These rows, as if they had been measured."""
    machine = dict.fromkeys(("processor", "cores", "torch", "python"), "none")
    about = {
        "experiment": experiment, "options": options.public(), "facts": facts, "command": "made up", "machine": machine,
    }  # fmt: skip
    return Measured(json.loads(json.dumps(about)), Rows(rows))

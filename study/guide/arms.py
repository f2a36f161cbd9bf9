"""A markdown table of each schedule of a study and its rivals, as the guide's pages show them.

python -m network_surgery.study.guide.arms STUDY

As a page of one's own (``page: network_surgery.study.guide.arms:tables``) it is written beside the report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from network_surgery.study.bench.tables import table
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.naming import arm_title, in_short, letters
from network_surgery.study.evidence.wording import with_interval
from network_surgery.study.task import Metric


def tables(results: Mapping[str, Any]) -> tuple[str, dict[str, Drawing]]:
    """The tables of a study whose ``results.json`` holds this, best arm first, and no drawings.

    Size and FLOPs are those of the original's; training FLOPs are multiples of surgery's; the difference is surgery's
    minus the arm's, with a 95 % interval where there is one, and what the study's tests decide of it.
    """
    metric, names, words = Metric(**results["metric"]), letters(results), in_short(results)
    parts = []
    for verdict in results["comparison"]["verdicts"]:
        trial = verdict["trial"]
        rows = [row for row in results["comparison"]["summary"] if row["trial"] in (None, trial)]
        original, surgery = (next(row for row in rows if row["arm"] == arm) for arm in ("original", "surgery"))
        contrasts = {each["arm"]: each for each in (verdict, *verdict["others"])}
        lines = []
        for row in sorted(rows, key=lambda row: -metric.sign * row["metric"]):
            deviation = "" if row["metric_deviation"] is None else f" ± {metric.spread(row['metric_deviation'])}"
            shares = [f"{100 * row[name] / original[name]:.3g} %" for name in ("parameters", "flops")]
            spent = f"{row['training_flops'] / surgery['training_flops']:.2f}"
            against = contrasts.get(row["arm"])
            shown = ["", ""] if against is None else [with_interval(against, metric), against["decision"]]
            lines.append([arm_title(row["arm"]), metric.number(row["metric"]) + deviation, *shares, spent, *shown])
        title = f"{names[trial]}: {words.get(trial, verdict['label'])} (n = {verdict['n']})"
        columns = ["arm", metric.title, "size", "FLOPs", "training FLOPs", "surgery − arm", "surgery is"]
        sentences = [each for each in (verdict["sentence"], verdict.get("also")) if each]
        parts.append("\n\n".join([f"**{title}**", table(columns, lines), *sentences]))
    return "\n\n".join(parts) + "\n", {}


if __name__ == "__main__":
    print(tables(json.loads((Path(sys.argv[1]) / "results.json").read_text()))[0], end="")

"""The tables of arms say what is in a study's results."""

from __future__ import annotations

from pathlib import Path

from network_surgery.study import conduct
from network_surgery.study.guide.arms import tables
from tests.study.evidence.made import study


def test_every_arm_of_every_schedule_is_in_its_table_the_best_first(tmp_path: Path) -> None:
    results = conduct.write_report(study(tmp_path / "s", {"conv1": 6, "conv2": 16, "fc1": 120}))
    text, drawings = tables(results)
    summary, verdicts = results["comparison"]["summary"], results["comparison"]["verdicts"]
    parts = text.split("\n\n**")
    assert len(parts) == len(verdicts) > 1 and not drawings
    for verdict, part in zip(verdicts, parts, strict=True):
        rows = [row for row in summary if row["trial"] in (None, verdict["trial"])]
        lines = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
        assert len(lines) == len(rows) and verdict["sentence"] in part and f"(n = {verdict['n']})" in part
        assert [line[1].split()[0] for line in lines] == sorted(
            (f"{100 * row['metric']:.2f}" for row in rows), key=float, reverse=True
        )
        decided = {line[0].removeprefix("| ")[:8]: line[-1].removesuffix(" |") for line in lines}
        assert decided["surgery"] == "" and verdict["decision"] in decided.values()


def test_one_seed_has_no_intervals(tmp_path: Path) -> None:
    text, _ = tables(conduct.write_report(study(tmp_path / "s", {"conv1": 6, "fc1": 120}, seeds=1)))
    assert "±" not in text and "[" not in text and "(n = 1)" in text

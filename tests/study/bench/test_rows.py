"""Rows are kept as they are, asked for by their fields, and measured once."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from network_surgery.study.bench.rows import FILE, Measured, Rows, measure
from network_surgery.study.bench.tables import cross, table
from network_surgery.study.errors import StudyError

ABOUT = {"experiment": "none", "options": {"sizes": (1, 2)}, "facts": {}, "command": "", "machine": {}}
ROWS = [{"seed": seed, "iteration": at, "kind": "a", "x": 10.0 * seed + at} for at in (5, 1) for seed in (1, 0)]


def silent(words):
    pass


def some(seed):
    return [{"seed": seed, "x": seed / 3, "y": math.nan}]


def never():
    raise AssertionError("measured again")


def test_a_grid_is_sorted_by_seed_and_moment():
    rows = Rows(ROWS)
    np.testing.assert_array_equal(rows.grid("x", kind="a"), [[1, 5], [11, 15]])
    np.testing.assert_array_equal(Rows([{"seed": 0, "size": n, "x": n} for n in (9, 7)]).grid("x", "size"), [[7, 9]])
    assert rows.distinct("seed") == [1, 0] and rows.moments() == [1, 5] and rows.where(kind="b") == []
    pairs = [(group["seed"], group["iteration"]) for group in rows.groups("seed", "iteration", kind="a")]
    assert pairs == [(1, 5), (0, 5), (1, 1), (0, 1)] and rows.groups("kind") == [{"kind": "a"}]
    with pytest.raises(StudyError, match="0 seeds"):
        rows.grid("x", kind="b")
    with pytest.raises(StudyError, match="not equally often"):
        Rows(ROWS[1:]).grid("x")
    with pytest.raises(StudyError, match="have no y"):
        rows.grid("y")


def test_the_digest_is_of_the_rows_alone():
    digest = Rows(ROWS).digest
    assert digest == Rows([dict(reversed(row.items())) for row in ROWS]).digest
    assert digest != Rows(ROWS[::-1]).digest != Rows([*ROWS[1:], ROWS[0] | {"x": 0.5}]).digest


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_measured_is_kept_and_not_measured_again(tmp_path, workers):
    tasks = [(str(seed), partial(some, seed)) for seed in range(3)]
    measured = measure(ABOUT, tasks, workers, tmp_path, silent)
    assert [row["x"] for row in measured.rows] == [0, 0.3333333, 0.6666667]  # seven digits
    again = Measured.load(tmp_path)
    assert again.rows.digest == measured.rows.digest and again.about == measured.about
    assert math.isnan(again.rows[0]["y"]) and [path.name for path in tmp_path.iterdir()] == [FILE]
    before = (tmp_path / FILE).read_bytes()
    again.save(tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == before


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(ABOUT, [("0", partial(some, 0)), ("1", interrupted)], 1, tmp_path, silent)
    with (tmp_path / "rows.part").open("a") as file:
        file.write('["1", [{"se')  # cut
    with pytest.raises(StudyError, match="other options"):
        measure(ABOUT | {"options": {}}, [], 1, tmp_path, silent)
    measured = measure(ABOUT, [("0", never), ("1", partial(some, 1))], 1, tmp_path, silent)
    assert [row["seed"] for row in measured.rows] == [0, 1]


def test_files_that_hold_no_rows_are_refused(tmp_path):
    with pytest.raises(StudyError, match="cannot be read"):
        Measured.load(tmp_path)
    (tmp_path / "text").write_text("{}")
    with pytest.raises(StudyError, match="gzip"):
        Measured.load(tmp_path / "text")


def test_a_table_has_the_columns_that_it_promises():
    text = cross("score", ["a", "b|c"], {"x": 1, "y": 2}, lambda row, column: f"{row}{column}" if column == 1 else None)
    assert text.splitlines() == ["| score | x | y |", "|---|--:|--:|", "| a | a1 |  |", r"| b\|c | b\|c1 |  |"]
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b", "c"], [[1, 2]])

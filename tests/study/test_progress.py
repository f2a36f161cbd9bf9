"""What a person sees while a study runs, where the output is no terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console

from network_surgery.study.progress import Display
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.cell import Cell


def test_the_best_is_the_least_where_less_is_better() -> None:
    text, perplexity = io.StringIO(), Metric("perplexity", "lower")
    with Display(Console(file=text, width=200), "search", SimpleNamespace(total=2), perplexity) as display:
        for number, value in enumerate((20.0, 12.5, 15.0)):
            cell = Cell("search", 0, trial=number)
            display.started(cell)
            display.ended(cell, {"validation_metric": value, "parameters": 10, "seconds": 1.0})
    *_, last = filter(None, text.getvalue().splitlines())
    assert "best perplexity 12.500 on validation (search-001)" in last
    assert "search-000: validation perplexity 20.000, 10 parameters" in text.getvalue()


def test_a_stage_is_told_line_by_line() -> None:
    text = io.StringIO()
    whole = {"validation_metric": 0.9, "parameters": 1200, "seconds": 1.5}
    results = [whole, {"failure": "the loss became nan"}, whole | {"stopped": 2, "validation_metric": 0.95}]
    with Display(Console(file=text, width=200), "search", SimpleNamespace(total=3)) as display:
        for number, result in enumerate(results):
            cell = Cell("search", 0, trial=number)
            display.started(cell)
            display.ended(cell, result)
    first, failed, stopped, last = filter(None, text.getvalue().splitlines())
    assert "1/3 search-000: validation 90.00%, 1,200 parameters, 1.5 s" in first
    assert "search-001 failed: the loss became nan" in failed
    assert "3/3 search-002: stopped early after epoch 2, validation 95.00%" in stopped
    assert last.startswith(
        "search: 3 of 3 training runs, 1 failed, 1 stopped early, best 90.00% on validation (search-000)"
    )


def test_what_is_beyond_the_budget_is_never_the_best() -> None:
    text = io.StringIO()
    with Display(
        Console(file=text, width=200), "search", SimpleNamespace(total=2),
        feasible=lambda cell, result: result["parameters"] < 100,
    ) as display:  # fmt: skip
        for number, parameters in enumerate((1200, 10)):
            result = {"validation_metric": 0.9 - number / 10, "parameters": parameters, "seconds": 1.5}
            display.ended(Cell("search", 0, trial=number), result)
    first, second, last = filter(None, text.getvalue().splitlines())
    assert first.endswith(", beyond the budget") and not second.endswith("budget")
    assert "best 80.00% on validation (search-001)" in last

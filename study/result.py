"""What a study has found, for a notebook or a script: tables as data frames, sentences, figures, networks."""

from __future__ import annotations

import functools
import html
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from rich.console import Console
from torch import nn

from network_surgery.ops import Schedule, load
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study import closing, conduct
from network_surgery.study.errors import StudyError, near
from network_surgery.study.evidence import feasible, figures, wording
from network_surgery.study.evidence.feasible import judge
from network_surgery.study.evidence.report import answer_line
from network_surgery.study.evidence.state import in_words
from network_surgery.study.search import comparing, front
from network_surgery.study.search.budget import mean
from network_surgery.study.store.folder import Folder, Record, network_of
from network_surgery.study.store.words import describe
from network_surgery.study.task import Task, build
from network_surgery.study.task.check import fresh
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.records import spikes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Fields of an outcome that are tables, or are in the tables of epochs and operations.
NESTED = ("epochs", "operations", "checks", "spikes", "architecture", "latency_seconds", "sunk", "network")


@dataclass(frozen=True)
class Best:
    """The best schedule of a study on validation, with what it reached there in the search or, without one, the mean
    over the comparison's seeds.
    """

    trial: int
    schedule: Schedule
    params: dict[str, Any]
    validation_metric: float
    parameters: float


class Result:
    """What the study in a folder has stored; it reads the folder, and what changes there later is not in it."""

    def __init__(self, folder: Folder, task: Task | None = None) -> None:
        self._folder, self._task = folder, task

    @property
    def path(self) -> Path:
        """The study's folder."""
        return self._folder.path

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``: plain data."""
        if not self._folder.results.exists():
            return conduct.write_report(self._folder)
        content: dict[str, Any] = json.loads(self._folder.results.read_text())
        return content

    @functools.cached_property
    def best(self) -> Best | None:
        """The best schedule on validation, by the first objective; None where none has changed the network."""
        settings, groups = self._folder.settings, dict[int, list[Record]]()
        searched = comparing.find_chosen(self._folder)[:1]
        for record in searched or self._folder.records("surgery"):
            if record.changed:
                groups.setdefault(int(record.cell.trial or 0), []).append(record)
        if not groups:
            return None
        means = {
            trial: front.losses([r.result for r in group], settings.objective, self._folder.metric)[:, 0].mean()
            for trial, group in groups.items()
        }
        trial = min(means, key=lambda each: float(means[each]))
        cell, results = groups[trial][0].cell, [record.result for record in groups[trial]]
        metric, size = (statistics.fmean(r[key] for r in results) for key in ("validation_metric", "parameters"))
        return Best(trial, Schedule.from_data(cell.schedule), dict(cell.params), metric, size)

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """The trials of the search, one a row, by number: ``state``, what each reached, ``params_…``, ``schedule``.

        ``state`` is ``finished``, ``infeasible`` (beyond the budget: ``violations.…`` say how far, 0 or below is
        within), ``stopped`` or ``failed``. ``seeds``: on how many seeds it has ended, and ``mean.…`` over them where
        there are several.
        """
        budget, again, rows = comparing.budget_of(self._folder), feasible.repeats(self._folder), []
        for r in self._folder.records("search"):
            row = {"trial": r.cell.trial, **_to_row(r), **pd.json_normalize(judge(r, budget)).iloc[0].to_dict()}
            ended = [r, *again.get(r.cell.trial, ())]
            row["seeds"] = sum(each.finished for each in ended)
            if len(ended) > 1 and row["seeds"]:
                means = mean(each.result for each in ended if each.finished)
                row |= {f"mean.{name}": value for name, value in means.items() if name != "latency_seconds"}
            rows.append(row | {f"params_{name}": value for name, value in r.cell.params.items()})
        return pd.DataFrame(rows, columns=None if rows else ["trial", "state", "schedule"]).set_index("trial")

    @functools.cached_property
    def comparison(self) -> pd.DataFrame:
        """The runs of the comparison, one a row: ``arm``, ``trial``, ``seed``, ``state``, what each reached."""
        rows = [{"arm": r.cell.arm, "trial": r.cell.trial, "seed": r.cell.seed, **_to_row(r)} for r in self._compared()]
        return _whole_numbers(pd.DataFrame(rows, columns=None if rows else ["arm", "trial", "seed", "state"]))

    @functools.cached_property
    def summary(self) -> pd.DataFrame:
        """The closing table: an arm of a schedule a row, means and deviations over the seeds."""
        return _whole_numbers(pd.DataFrame(self.results["comparison"]["summary"]))

    @functools.cached_property
    def epochs(self) -> pd.DataFrame:
        """The epochs of all runs, one a row: ``run``, ``arm``, ``trial``, ``seed``, ``epoch``, losses, metrics, …"""
        return self._table("epochs")

    @functools.cached_property
    def operations(self) -> pd.DataFrame:
        """The operations of all runs, one a row: ``run``, ``arm``, ``trial``, ``seed``, ``operation``, ``layer``, …"""
        return self._table("operations")

    @functools.cached_property
    def importance(self) -> pd.DataFrame:
        """Which parameters of the search mattered: ``target``, ``parameter``, ``share`` of the variance, and from
        ``low`` to ``high`` where 90 % of it lie (see ``study.evidence.importance``). Empty where nothing can be said.
        """
        found = self.results["importance"]
        rows = [
            (target, name, share, *found["intervals"][target][name])
            for target, shares in found["shares"].items() for name, share in shares.items()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["target", "parameter", "share", "low", "high"])

    @property
    def verdicts(self) -> list[str]:
        """A sentence on each schedule that was compared with starting over."""
        return [verdict["sentence"] for verdict in self.results["comparison"]["verdicts"]]

    @property
    def verdict(self) -> str:
        """The finding of the whole study in a sentence; empty where nothing was compared."""
        verdicts = self.results["comparison"]["verdicts"]
        return wording.overall(verdicts) if verdicts else ""

    @property
    def answer(self) -> dict[str, Any] | None:
        """Use it or not, and what it is: see ``study.evidence.answer``; None before there is a verdict."""
        found: dict[str, Any] | None = self.results.get("answer")
        return found

    @functools.cached_property
    def figures(self) -> dict[str, Figure]:
        """The report's figures by name, as matplotlib's."""
        return {name: drawing.figure for name, drawing in figures.draw(self.results).items()}

    def figure(self, name: str) -> Figure:
        """A figure of the report. Raises StudyError where this study has none of this name."""
        if not isinstance(name, str) or name not in self.figures:
            raise StudyError(
                f"this study has no figure {name!r:.60}; it has {', '.join(self.figures)}{near(name, self.figures)}"
            )
        return self.figures[name]

    def network(self, trial: int | None = None, seed: int | None = None, arm: str = "surgery") -> nn.Module:
        """The final network of a run of the comparison, on the CPU.

        By default that of the best schedule that was compared, with the first seed. ``arm``: see ``study.arms``.

        Raises:
            StudyError: there was no such run, it failed, its task was given from Python and is not here (``open``
                takes it), or its file holds a network of another size.
        """
        known = {record.cell.name: record.result for record in self._compared()}
        runs = [r.cell for r in self._compared() if not r.failed and r.cell.arm == arm]
        if trial is None and arm != "original" and self.best is not None:
            trial = self.best.trial if any(cell.trial == self.best.trial for cell in runs) else None
        fitting = [cell for cell in runs if trial in (None, cell.trial) and seed in (None, cell.seed)]
        if not fitting:
            names = ", ".join(cell.name for cell in runs) or "none"
            raise StudyError(f"no run of {arm} with trial {trial} and seed {seed} has ended; there is {names}")
        place, wanted = network_of(fitting[0], self.path), known[fitting[0].name]["parameters"]
        network = load(lambda: fresh(self._known_task), place)
        if (count := parameters_of(network)) != wanted:
            raise StudyError(f"{place} is another network: it has {count:,} parameters, and that of the run {wanted:,}")
        return network

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the network can be called with: two training samples, as the arguments that ``torch.export`` takes."""
        inputs = Batches(self._known_task.train.thinned(2), torch.device("cpu")).take(slice(None))[0]
        if isinstance(inputs, Mapping):
            return (), dict(inputs)
        return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}

    @functools.cached_property
    def _known_task(self) -> Task:
        return self._task or build(self._folder.settings)

    def show(self, console: Console | None = None) -> None:
        """Prints the answer, the closing table, a verdict for each schedule, and where to look."""
        closing.show(self.results, self._folder, console or Console())

    def show_answer(self, console: Console | None = None) -> None:
        """Prints the answer alone."""
        closing.say(console or Console(), answer_line(self.results))

    def document(self) -> dict[str, Any]:
        """The answer, a verdict for each schedule, the state and the paths, as plain data."""
        return closing.document(self.results, self._folder)

    def _repr_html_(self) -> str:
        """What a notebook shows: how far the study is, its answer, the verdicts, and the closing table."""
        state = in_words(self.results["state"], str(self.path))
        parts = [f"<p><b>{html.escape(self._folder.settings.subject)}</b>: {html.escape(state['words'])}</p>"]
        if self.verdict:
            parts.append(f"<p><b>{html.escape(answer_line(self.results))}</b></p>")
        parts += [f"<p>{html.escape(sentence)}</p>" for sentence in self.verdicts]
        shown = ("arm", "trial", "n", "accuracy", "metric", "parameters", "seconds")
        if len(self.summary):
            parts.append(self.summary[[name for name in shown if name in self.summary]].to_html(index=False))
        return "\n".join([*parts, f"<p>Report: {html.escape(str(self._folder.report))}</p>"])

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r}): {in_words(self.results['state'], str(self.path))['words']} {self.verdict}"

    def _compared(self) -> list[Record]:
        return [record for record in self._folder.records() if record.compared]

    def _table(self, field: str) -> pd.DataFrame:
        rows = [
            {"run": r.cell.name, "arm": r.cell.arm, "trial": r.cell.trial, "seed": r.cell.seed, **entry}
            for r in self._folder.records()
            for entry in r.result.get(field, ())
        ]
        table = pd.json_normalize(rows) if rows else pd.DataFrame(columns=["run", "arm", "trial", "seed"])
        return _whole_numbers(table)


def _to_row(record: Record) -> dict[str, Any]:
    """What a run was and has reached, in a row; metrics besides the primary one by name."""
    result = record.result
    state = "failed" if record.failed else "finished" if record.finished else "stopped"
    row = {"state": state, **{name: value for name, value in result.items() if name not in NESTED}}
    row |= {"epochs": len(result["epochs"])} if "epochs" in result else {}
    row |= {"loss_spike": max(spike.factor for spike in spikes)} if (spikes := spikes_of(result)) else {}
    row["schedule"] = describe(record.cell.schedule) if record.cell.schedule else None
    flat: dict[str, Any] = pd.json_normalize(row).iloc[0].to_dict()
    return flat


def _whole_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """The number of a trial is whole, also in a column where an arm has none."""
    return table.astype({"trial": "Int64"}) if "trial" in table else table

"""The terminal: the first line at once, plain text where nobody watches, tables that fit, one document for programs."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from network_surgery.study import conduct
from network_surgery.study.cli import main
from network_surgery.study.closing import document, show
from network_surgery.study.errors import StudyError
from network_surgery.study.evidence.front import front
from network_surgery.study.evidence.naming import arm_title
from network_surgery.study.layers import Layers
from network_surgery.study.progress import Display
from network_surgery.study.store.folder import Folder
from network_surgery.study.terminal import Lasting, prepare
from network_surgery.study.training.cell import Cell
from tests.study.evidence import made
from tests.study.nodes import node

ROOT = Path(__file__).parents[2]
WIDTHS = (60, 80, 120)


def surgery(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own whose output goes to pipes."""
    code = f"import sys; import tests; sys.argv = ['surgery', *{list(arguments)!r}]; " \
        "from network_surgery.study.cli import main; main()"  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, dict[str, Any]]:
    folder = made.study(tmp_path_factory.mktemp("made") / "s", {"conv1": 32, "conv2": 64, "fc1": 96}, trials=6, seeds=3)
    return folder, conduct.write_report(folder)


def printed(width: int, *shown: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    for each in shown:
        each(console) if callable(each) else console.print(each)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_closing_lines_fit(study: tuple[Folder, dict[str, Any]], width: int) -> None:
    folder, results = study
    lines = printed(width, lambda console: show(results, folder, console))
    paths = ("Report", "Results", "MLflow", "Network", "  import", "  network", "  torch")
    assert all(len(line) <= width for line in lines if not line.startswith(paths))
    text = "\n".join(lines)
    assert "…" not in text and "surgery A" in text and "original" in text and " n " in text
    first = next(verdict for verdict in results["comparison"]["verdicts"])
    assert " ".join(first["sentence"].split()) in " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_bar_count_and_clock_keep_their_place(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    long = "surgery A, seed 3: eigen_remove to ½ of conv2, fc1 at 4ep"
    display = Display(console, "comparison", SimpleNamespace(total=140), name=lambda cell: long)
    for number in range(37):
        display.started(Cell("surgery", number, trial=1))
        display.ended(Cell("surgery", number, trial=1), {"validation_metric": 0.97, "parameters": 1, "seconds": 1.0})
    bar, note = printed(width, display._progress.get_renderable())
    assert (
        bar.startswith("comparison ━") and " 37/140 " in bar and "0:00, about " in bar and bar.rstrip().endswith("left")
    )
    assert note.startswith("best 97.00% on validation (surgery A") and len(note) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_headings_of_layers_are_whole_words(width: int) -> None:
    columns = ["units", "parameters", "FLOPs", "dead", "90%", "99%", "99.9%"]
    names = ["fc1", "blocks.0.attention.query:heads", "module.layer4.1.residual.convolution.weight_with_a_name"]
    rows = {name: ["1,024", "123,456,789", "22.9%", "0", "12", "93", "205"] for name in names}
    lines = printed(width, Layers(columns, rows, ["a note"]))
    head = next(line for line in lines if "units" in line)
    assert head.split()[-7:] == columns and all(len(line) <= width for line in lines)
    assert all(any(name in line for line in lines) for name in names if len(name) < width)


def test_one_document_for_programs(study: tuple[Folder, dict[str, Any]]) -> None:
    folder, results = study
    found = json.loads(json.dumps(document(results, folder)))
    assert found["answer"]["use"] in ("yes", "no", "undecided") and found["sentence"] == found["answer"]["sentence"]
    assert [verdict["name"] for verdict in found["verdicts"]] == ["A", "B", "C"][: len(found["verdicts"])]
    assert Path(found["paths"]["report"]).is_file() and found["state"]["now"] == "finished"


def test_the_report_command_answers_people_and_programs(
    study: tuple[Folder, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = study
    ended = surgery("report", str(folder.path), NO_COLOR="1")
    assert ended.returncode == 0 and ended.stderr == f"surgery report: {folder.path}\n"
    assert "\x1b" not in ended.stdout + ended.stderr and "\r" not in ended.stdout
    assert ended.stdout.startswith(results["answer"]["sentence"])
    monkeypatch.setattr("network_surgery.study.evidence.figures.draw", lambda results: {})  # they take seconds
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    monkeypatch.setattr(sys, "path", [*sys.path])
    answers = {}
    for option in ("--json", "--quiet"):
        monkeypatch.setattr(sys, "argv", ["surgery", "report", str(folder.path), option])
        with pytest.raises(SystemExit, match="0"):
            main()
        answers[option] = capsys.readouterr()
    assert json.loads(answers["--json"].out)["answer"] == results["answer"]
    assert answers["--quiet"] == (results["answer"]["sentence"] + "\n", "")


@pytest.mark.long
def test_a_reader_that_leaves_ends_nothing(study: tuple[Folder, dict[str, Any]]) -> None:
    folder, _ = study
    code = f"import tests, sys; sys.argv = ['surgery', 'report', {str(folder.path)!r}]; " \
        "from network_surgery.study.cli import main; main()"  # fmt: skip
    command = f'"{sys.executable}" -c "{code}" 2>&1 | head -1; echo "${{PIPESTATUS[0]}}"'
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [f"surgery report: {folder.path}", "0"] and ended.stderr == ""


def test_what_is_written_after_a_reader_left_goes_nowhere() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = Lasting(os.fdopen(writing, "w"))
    for _ in range(2):
        stream.write("lost\n")
        stream.flush()


def test_the_first_line_needs_nothing_heavy() -> None:
    heavy = ("torch", "ray", "mlflow", "optuna", "matplotlib", "scipy", "sklearn", "numpy")
    for arguments in (["study"], ["report", "none"], ["resume", "none"], ["layers"], ["experiment"], ["ui", "none"]):
        code = (
            "import sys, tests\n"
            "from network_surgery.study import terminal\n"
            "from network_surgery.study.cli import main\n"
            "def begin(self, command, about=''):\n"
            f"    print(command, [name for name in {heavy!r} if name in sys.modules])\n"
            "    sys.stdout.flush()\n"
            "    import os; os._exit(0)\n"
            "terminal.Terminal.begin = begin\n"
            f"sys.argv = ['surgery', *{arguments!r}]\n"
            "main()\n"
        )
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert ended.stdout.strip() == f"{arguments[0]} []", ended.stderr


def test_version_and_completion() -> None:
    assert surgery("--version").stdout.startswith("network-surgery")
    script = surgery("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert script.returncode == 0 and "COMP_WORDS" in script.stdout and "complete" in script.stdout
    words = {"COMP_WORDS": "surgery study --lr-schedule ", "COMP_CWORD": "3", "_SURGERY_COMPLETE": "complete_bash"}
    assert surgery(**words).stdout.split() == ["constant", "step", "cosine", "linear", "one_cycle"]


def test_warnings_of_libraries_are_left_out_and_those_of_people_are_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "warnoptions", [])
    prepare()
    package = os.path.join("lib", "site-packages", "ray", "x.py")
    warnings.showwarning("theirs", UserWarning, package, 3)
    warnings.showwarning("mine\nat length", UserWarning, "/home/me/mine.py", 7)
    assert capsys.readouterr().err == "surgery: warning: mine (mine.py, line 7)\n"


def test_a_dry_run_counts_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import contextlib

    from network_surgery.study.compose import compose
    from network_surgery.study.estimate import estimate
    from network_surgery.study.search import cluster

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "joined", lambda *_: contextlib.nullcontext([node(CPU=4.0)]))
    settings = compose("smoke", None, {"trials": 5, "racing": 1, "cpus_per_trial": 2.0, "seeds": 3})
    found = estimate(settings, tmp_path / "out", Console(file=io.StringIO()))
    assert [*tmp_path.iterdir()] == []
    arms = len(found.arms) - 1  # the original has no schedule
    assert (found.search, found.comparison, found.slots) == (5, 3 * (1 + arms), 2)
    assert found.epochs == (found.search + found.comparison) * settings.epochs and found.epoch_seconds > 0
    assert json.loads(json.dumps(found.to_data()))["hours"] == found.hours > 0
    text = "\n".join(printed(80, found.show))
    for part in ("trials", "arms", "runs", "epochs", "at once", "measured", "estimate", "Nothing was written"):
        assert f"\n{part}" in f"\n{text}"
    assert "2 training runs" in text and re.search(r"\nestimate +\d+:\d\d minutes, ", text)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(StudyError, match="not empty"):
        estimate(settings, tmp_path / "out", Console(file=io.StringIO()))


def test_a_front_is_told_in_letters(study: tuple[Folder, dict[str, Any]]) -> None:
    folder, results = study
    ended = [trial for trial in results["trials"] if "failure" not in trial]
    found = front(ended, ("metric", "parameters"), folder.metric)
    text = "\n".join(printed(80, lambda console: show(results | {"front": found}, folder, console)))
    assert "beaten by no other" in text and "dominate" not in text
    assert all(f"(trial {number})" in text for number in found["trials"])


def test_an_arm_that_is_left_out_is_named_with_its_reason(study: tuple[Folder, dict[str, Any]]) -> None:
    folder, results = study
    trial = results["comparison"]["verdicts"][0]["trial"]
    missing = {"trial": trial, "arm": "gradmax", "reason": "the schedule makes nothing larger", "seeds": [1]}
    given = results | {"comparison": results["comparison"] | {"left_out": [missing]}}
    text = "\n".join(printed(120, lambda console: show(given, folder, console)))
    assert f"Not there: {arm_title('gradmax', 'A')}, since the schedule makes nothing larger" in text

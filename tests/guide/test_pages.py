"""README, guide and CONTRIBUTING: code runs in the order of the page, commands exist, links lead somewhere."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from network_surgery.ops import OPERATIONS
from network_surgery.study import guide
from network_surgery.study.cli import app, main
from tests.guide.blocks import GUIDE, PAGES, ROOT, Block, blocks
from tests.study.nodes import node, one_slot

#: Pages whose code needs a finished study, and is run with one.
FOLLOWED = ("python.md", "own-network.md", "report.md", "mlflow.md")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
#: What a command of a page is run with here, after its own options: the smallest sizes that there are.
SMALL = {
    "layers": "--epochs 1",
    "study": "--epochs 2 --trials 1 --generation 1 --top 1 --seeds 1 --arms original,surgery,restart --space removal "
    "--device cpu",
    "compare": "--top 1 --seeds 1",
    "isolate": "--width 8 --step 4 --iterations 2 --trainings 2 --epochs 1 --model mlp --device cpu --workers 1",
}


def surgery(command: str, small: bool = True) -> None:
    """Runs a command line in this process, at the smallest sizes if it is to be."""
    words = shlex.split(command)
    assert words[0] == "surgery"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words + shlex.split(SMALL.get(words[1], "")) * small)
        try:
            main()
        except SystemExit as end:
            assert not end.code, f"{command} ended with {end.code}"


def only_checked(patch: pytest.MonkeyPatch) -> None:
    """From here on ``surgery study`` checks and writes everything that it does before the first training run."""
    patch.setattr("network_surgery.study.search.cluster.joined", lambda *_: contextlib.nullcontext([node(CPU=2)]))
    patch.setattr("network_surgery.study.conduct.proceed", lambda *_: sys.exit(0))


class Walk:
    """Follows a page in the current folder: writes its files, runs its code in one namespace, and its commands."""

    def __init__(self, page: Path, command: Callable[[str], None], study: Path | None = None, **names: object) -> None:
        self._page, self._command, self._study = page, command, study
        self._names: dict[str, object] = {"__name__": "page", **names}

    def __call__(self) -> None:
        for block in blocks(self._page):
            if block.file is not None:
                Path(block.file).write_text(block.text, encoding="utf-8")
            elif block.why is None and block.language == "python":
                exec(compile(self._filled(block.text), f"{self._page}:{block.line}", "exec"), self._names)
            elif block.why is None and block.language == "bash":
                for line in block.commands:
                    if line.startswith("surgery "):
                        self._command(self._filled(line))

    def _filled(self, text: str) -> str:
        return text if self._study is None else text.replace("STUDY", str(self._study))


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the page about an own network was followed from its first line to its last, really run."""
    place = tmp_path_factory.mktemp("walked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PYTHONPATH", str(ROOT))  # Ray's workers start in this folder, too
        with one_slot():  # one for all commands of the page
            Walk(GUIDE / "own-network.md", surgery)()
        yield place


@pytest.mark.long
def test_an_own_network_goes_from_images_to_a_report(walked: Path) -> None:
    study = walked / "runs" / "mine"
    assert (study / "report.html").exists() and len(list((study / "networks").glob("*.pt"))) == 3  # one for each arm


@pytest.mark.long
@pytest.mark.timeout(600)
def test_studies_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with one_slot():
        walk = Walk(GUIDE / "python.md", surgery)
        walk()
    assert (tmp_path / "arms.png").exists() and len(walk._names["result"].trials) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["report", "mlflow"])
def test_pages_about_a_finished_study(name: str, walked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walked)
    study = walked / "runs" / "mine"
    walk = Walk(GUIDE / f"{name}.md", surgery, study, images=np.zeros((2, 1, 8, 8), dtype=np.float32))
    walk()
    if name == "mlflow":
        assert walk._names["scores"].shape == (2, 10)  # type: ignore[attr-defined]
    listed = re.findall(r"^\| `([\w.-]+/?)`", (GUIDE / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"report.html", "results.json", "figures/"} <= {name for name in listed if (study / name).exists()}


@pytest.mark.parametrize("page", [each for each in PAGES if each.name not in FOLLOWED], ids=lambda page: page.stem)
def test_code_runs_and_commands_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page but those that need a study; of a study what comes before its first training run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    only_checked(monkeypatch)
    counted = iter(range(99))

    def command(line: str) -> None:
        name = line.split()[1]
        if name == "ui":
            return  # it serves until it is stopped; tests/browser looks at it
        out = f" --out out{next(counted)}" if name in ("study", "isolate") else ""
        surgery(line + out, small=name == "isolate")

    Walk(page, command)()


@every_page
def test_every_option_of_a_command_exists(page: Path) -> None:
    """Also of the commands that are not run."""
    known = get_command(app).commands  # type: ignore[attr-defined]
    lines = [line for block in blocks(page) for line in block.commands]
    quoted = re.findall(r"`((?:surgery|python -m network_surgery.study) [^`]+)`", page.read_text(encoding="utf-8"))
    for line in [*lines, *quoted]:
        match = re.search(r"(?:^|\s)(?:surgery|study/__main__\.py) (\w+)(.*)", line)
        if match is None:
            continue
        options = {option for parameter in known[match[1]].params for option in parameter.opts} | {"--help"}
        given = {word.partition("=")[0] for word in match[2].split() if word.startswith("--")}
        assert given <= options, f"{page.name}: {line}"


@every_page
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    """Of shell blocks only ``surgery`` is run, and installation is what .ci/run does."""
    for block in blocks(page):
        assert block.language in ("python", "bash", "yaml", ""), f"{page.name}:{block.line}"
        assert block.why is None or len(block.why) > 10
        for line in block.commands if block.why is None else ():
            known = line.startswith(("surgery ", "pip install", f"python -m {guide.__name__}"))
            assert known, f"{page.name}:{block.line}: {line} is not run, and nothing says why"


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        where = (page.parent / path).resolve() if path else page
        assert where.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", where.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: {target}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 121 + len(OPERATIONS)  # each has a row
    assert all(f"study/guide/{page.name}" in text for page in GUIDE.glob("*.md"))


def test_the_readme_lists_every_operation_with_its_facts() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^(\| `\w+` \| `\w+\(.*?\)` \| [^|]* \|)", text, re.MULTILINE)
    assert rows == [facts(name) for name in OPERATIONS]


def facts(name: str) -> str:
    """The generated part of a row of the README's table."""
    kind = OPERATIONS[name]
    shown = ", ".join(f"{field}={value!r}" for field, value in [*kind().hyperparameters().items()][:1])
    data = {True: "yes", False: "no"}.get(kind.needs_signals, "some")  # type: ignore[call-overload]
    return f"| `{name}` | `{kind.__name__}({shown})` | {data} |"


def test_the_api_page_is_current() -> None:
    from network_surgery.study.guide.__main__ import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), f"run: python -m {guide.__name__}"


def test_public_names_are_documented() -> None:
    from network_surgery.study.guide.__main__ import PUBLIC, page

    text = page()
    for names in PUBLIC.values():
        assert all(re.search(rf"^### `{name}\b", text, re.MULTILINE) for name in names)
    assert "``" not in re.sub(r"```python.*?```", "", text, flags=re.DOTALL)


def test_a_block_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks can fail."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nraise ZeroDivisionError\n```\n<!-- not run: for a reason -->\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError):
        Walk(page, surgery)()
    assert [block.why for block in blocks(page)] == [None, "for a reason"]
    assert Block("bash", "surgery study  # all\n# nothing\n", 1, None).commands == ["surgery study"]
    with pytest.raises(AssertionError, match="ended with 2"):
        surgery("surgery study --preset nope", small=False)

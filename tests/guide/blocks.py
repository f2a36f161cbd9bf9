"""The fenced blocks of a Markdown page, and which of them are not to be run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "study" / "guide"
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "study" / "experiments" / "README.md",
    *sorted(path for path in GUIDE.glob("*.md") if path.name != "api.md"),
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block: ``why`` it is not run (None: it is), and the ``file`` that its first line names."""

    language: str
    text: str
    line: int
    why: str | None

    @property
    def file(self) -> str | None:
        named = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return named[1] if named else None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block without their comments."""
        lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in self.text.splitlines())
        return [line for line in lines if line] if self.language == "bash" else []


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    lines = page.read_text(encoding="utf-8").split("\n")
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, f"{page}: a fence is not closed"
    return [
        Block(lines[start][3:], "\n".join(lines[start + 1 : end]) + "\n", start + 2, _why(lines[start - 1]))
        for start, end in zip(fences[::2], fences[1::2], strict=True)
    ]


def _why(line: str) -> str | None:
    marked = re.fullmatch(r"<!-- not run: (.+) -->", line.strip())
    return marked[1] if marked else None

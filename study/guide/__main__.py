"""Writes ``api.md`` from signatures and docstrings: ``python -m network_surgery.study.guide``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from network_surgery import ops, search_spaces
from network_surgery.study.declare import About, Declared

PAGE = Path(__file__).resolve().with_name("api.md")
#: Module → its public names. For packages with ``__all__`` that is the list.
PUBLIC: dict[str, list[str]] = {
    ops.__name__: ops.__all__,
    search_spaces.__name__: ["SPACES", "find_space"],
    **{
        f"{__package__.removesuffix('.guide')}.{module}": names
        for module, names in {
            "api": ["run", "resume", "compare", "report", "open"],
            "result": ["Result"],
            "task": ["Task", "Classification", "Metric", "Samples", "Sets", "Stream", "build"],
            "task.images": ["ImageTask", "Images", "load"],
            "task.text": ["TextTask"],
            "config": ["Settings"],
            "compose": ["compose", "presets"],
            "models": ["build"],
            "loops.plain": ["Surgeon"],
            "training.trainer": ["Trainer", "Callback"],
            "store.folder": ["Folder"],
            "errors": ["StudyError", "Diverged"],
        }.items()
    },
}
HEAD = f"""# API

The public names with signature and docstring. Made by `python -m {__package__}`; a test keeps it current.
Settings of a study are options of `surgery study` too (`train_images` is `--train-images`), or lines of a YAML file.
"""


class Text:
    """An annotation that prints as it is written in the source."""

    def __init__(self, annotation: Any) -> None:
        self._text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self) -> str:
        return self._text


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for name, names in PUBLIC.items():
        module = importlib.import_module(name)
        parts.append(f"## `{name}`\n")
        parts += (entry(module, each) for each in sorted(names, key=str.casefold))
    return "\n".join(parts)


def entry(module: ModuleType, name: str) -> str:
    """A public name: signature, docstring, and the public methods of a class."""
    value = getattr(module, name)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        listed = ", ".join(f"`{key}`" for key in value)
        return f"### `{name}`\n\n{markdown(module.__doc__ or '')}\n\nEntries: {listed}.\n"
    declared = value if inspect.isclass(value) and issubclass(value, Declared) else None
    parts = [f"### `{name}{'' if declared else signature(value)}`\n", markdown(inspect.getdoc(value) or ""), ""]
    if declared:
        parts += [*settings(declared), ""]
    if inspect.isclass(value):
        parts += [f"- {line}" for line in methods(value)]
        parts += [""] * (parts[-1] != "")
    return "\n".join(parts)


def signature(value: Any) -> str:
    """Parameters, defaults and result; empty for a class without its own ``__init__``."""
    kind = inspect.isclass(value)
    if kind and value.__init__ in (object.__init__, Exception.__init__, ValueError.__init__):
        return ""
    full = inspect.signature(value)
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=Text(p.annotation)) for p in full.parameters.values()
    ]
    parameters = [
        p.replace(default=Text(p.default.__name__)) if inspect.isfunction(p.default) else p for p in parameters
    ]
    plain = kind or full.return_annotation is full.empty
    result = full.empty if plain else Text(full.return_annotation)
    return str(full.replace(parameters=parameters, return_annotation=result))


def settings(kind: type[Declared]) -> Iterator[str]:
    """A table with a line for each setting: name, default, what it is."""
    hints = get_type_hints(kind, include_extras=True)
    yield "| setting | default | |\n|---|---|---|"
    for each in fields(kind):  # type: ignore[arg-type]
        (about,) = (note for note in get_args(hints[each.name]) if isinstance(note, About))
        default = "" if each.default is None else f"`{each.default!r}`"
        yield f"| `{each.name}` | {default} | {about.help.replace('|', chr(92) + '|')} |"


def methods(kind: type) -> Iterator[str]:
    """A line for each documented public method and property that the class defines itself: first paragraph only."""
    for name, member in vars(kind).items():
        plain = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        function = plain.fget if isinstance(plain, property) else plain
        text = inspect.getdoc(function) if inspect.isfunction(function) else None
        if name.startswith("_") or not text or name in ("propose",):
            continue
        arguments = "" if isinstance(plain, property) else signature(getattr(kind, name))
        first = " ".join(text.split("\n\n")[0].split()).replace("``", "`")
        yield f"`{name}{re.sub(r'^[(]self(, )?', '(', arguments)}`: {first}"


def markdown(text: str) -> str:
    """A docstring as Markdown: examples fenced, sections such as ``Raises:`` as lists, plain code ticks."""
    lines: list[str] = []
    fenced = section = False
    for line in inspect.cleandoc(text).split("\n"):
        if line.startswith(">>>") and not fenced:
            lines, fenced = [*lines, "```python"], True
        elif fenced and not line.strip():
            lines, fenced = [*lines, "```"], False
        if re.fullmatch(r"(Raises|Attributes|Returns):", line):
            section = True
            line = f"*{line}*\n"
        elif section and re.match(r"    \S", line):
            line = f"- {line.strip()}"
        elif section and line.startswith("     "):
            line = f"  {line.strip()}"
        elif not line.startswith(" ") and line:
            section = False
        lines.append(line if fenced else line.replace("``", "`"))
    return "\n".join([*lines, "```"] if fenced else lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)

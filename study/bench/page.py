"""An experiment's page: its template ``page.md``, filled with pictures, tables, claims and sentences made of the rows.

In a template ``$name`` stands for the part of this name, ``$holds`` for the verdicts of all claims. Notes and a footer
with command, machine, versions and digest come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from network_surgery.study.bench import claims
from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.rows import FILE, Measured
from network_surgery.study.evidence.drawing import Drawing

PAGE, NOTES, TEMPLATE = "README.md", "notes.md", "page.md"
#: A sentence or a table in markdown, a drawing, or claims that are one family of tests.
Part = str | Drawing | Sequence[Claim]


def write(template: Path, parts: Mapping[str, Part], measured: Measured, folder: Path) -> Path:
    """Writes page, pictures (named as the part is) and rows; the page's file is returned.

    Raises:
        KeyError: the template has a name that is no part.
        ValueError: a part has no place in the template.
    """
    page = Template(template.read_text(encoding="utf-8"))
    families = [part for part in parts.values() if not isinstance(part, (str, Drawing))]
    words = {name: _to_text(name, part, folder) for name, part in parts.items()}
    words["holds"] = "\n".join(map(claims.to_summary, families))
    if unused := words.keys() - set(page.get_identifiers()):
        raise ValueError(f"{template} has no place for {', '.join(sorted(unused))}")
    text = [page.substitute(words).strip(), *notes(folder, measured.rows.digest), footer(measured)]
    folder.mkdir(parents=True, exist_ok=True)
    measured.save(folder / FILE)
    (folder / PAGE).write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return folder / PAGE


def images(measured: Measured) -> str:
    """The images of each kind and the number of seeds, in words."""
    facts, seeds = measured.facts, measured.rows.distinct("seed")
    return (
        f"{facts['train']:,} images of {measured.about['options']['label']}, {facts['validation']:,} others for "
        f"validation, {facts['test']:,} for the test; {len(seeds)} seeds"
    )


def notes(folder: Path, digest: str) -> list[str]:
    """What a person wrote about these very rows. The first line of ``notes.md`` is ``rows: DIGEST``."""
    if not (folder / NOTES).exists():
        return []
    first, _, text = (folder / NOTES).read_text(encoding="utf-8").partition("\n")
    about = first.removeprefix("rows:").strip()
    if about != digest:
        return [f"The notes in [{NOTES}]({NOTES}) are about other rows (digest {about}) and are left out."]
    return ["## Notes", "A person wrote these about the rows of this page.", text.strip()]


def footer(measured: Measured) -> str:
    """How claims are decided, how the rows came about, and how the page is made of them again."""
    machine, name = measured.about["machine"], measured.about["experiment"]
    device = measured.facts.get("device", "CPU")
    return (
        "A claim *holds* where every difference is shown to go its way (*in k of n* where only k are), *does not hold* "
        "where none is and one is shown to go the other way, *depends* where some go one way and some the other, and "
        "is *undecided* where nothing is shown.\n\n"
        f"`{measured.about['command']}`, on {device} ({machine['processor']}, {machine['cores']} cores, one "
        f"thread a run); torch {machine['torch']}, Python {machine['python']}. Rows: [{FILE}]({FILE}), digest "
        f"{measured.rows.digest}; `surgery experiment {name} --rows .` makes this page of them again."
    )


def _to_text(name: str, part: Part, folder: Path) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Drawing):
        folder.mkdir(parents=True, exist_ok=True)
        part.save_small(folder / f"{name}.png")
        return f"![{part.title}]({name}.png)"
    return claims.to_table(part)

"""The order of the house: modules import what is below them, and nobody in a circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from network_surgery import ops, search_spaces, study

PACKAGES = {package.__name__: Path(package.__file__ or "").parent for package in (ops, search_spaces, study)}
GROUND = "counts errors terminal declare config compose references models resnet scratch secrets interruption yaml_text"
#: The parts of ``study`` from the ground up; each imports those of its own floor and of lower ones. What is not named
#: stands above them all.
FLOORS = (
    {*GROUND.split()},
    {"task", "network", "recipe"},
    {"training"},
    {"store", "arms"},
    {"search", "progress"},
    {"evidence"},
)
TOP = len(FLOORS)


def modules() -> dict[str, Path]:
    """Every module of the packages by its full name."""
    found = {}
    for name, root in PACKAGES.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join((name, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str, source: str) -> set[str]:
    """The modules of these packages that a module imports, wherever in it that stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{name} imports relatively"
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (named & MODULES.keys()) | ({node.module} if named - MODULES.keys() else set())
    return (found & MODULES.keys()) - {name}


@cache
def graph() -> dict[str, set[str]]:
    """What each module imports."""
    return {name: imports(name, path.read_text("utf-8")) for name, path in MODULES.items()}


def part(name: str) -> str:
    """``study.search.tracking.names`` → ``search``; the package itself is called by no name."""
    inside = name.removeprefix(f"{study.__name__}.")
    return "" if inside == name else inside.split(".")[0]


def floor(name: str) -> int:
    return next((at for at, parts in enumerate(FLOORS) if part(name) in parts), TOP)


def climbs(name: str, others: set[str]) -> list[str]:
    """What a module imports from above it."""
    mine = [other for other in others if other.startswith(f"{study.__name__}.")]
    if name == study.__name__:  # it hands on what ``study.api`` has
        return []
    if not name.startswith(f"{study.__name__}."):
        return mine + [o for o in others if name.startswith(ops.__name__) and o.startswith(search_spaces.__name__)]
    return [other for other in mine if floor(other) > floor(name)]


def circle(imported: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_nobody_imports_what_is_above() -> None:
    assert {name: found for name, others in graph().items() if (found := climbs(name, others))} == {}


def test_nobody_imports_in_a_circle() -> None:
    inside = {name: {o for o in others if part(o)} for name, others in graph().items() if part(name)}
    assert circle(inside) == []


def test_experiments_are_at_the_top() -> None:
    """What a study needs of them it finds by name; the command line alone calls them."""
    inside = f"{study.__name__}.experiments"
    outside = {name: others for name, others in graph().items() if not name.startswith(inside)}
    assert {name for name, others in outside.items() if any(o.startswith(inside) for o in others)} <= {
        f"{study.__name__}.cli"
    }


def test_every_floor_is_there() -> None:
    assert {part(name) for name in MODULES} >= set().union(*FLOORS)


def test_what_climbs_and_what_turns_in_a_circle_is_noticed() -> None:
    low, high = f"{study.__name__}.search.tuner", f"{study.__name__}.evidence.comparison"
    inside = f"def late():\n    from {high} import cells\n"
    assert imports(low, inside) == {high} and climbs(low, {high}) and not climbs(high, {low})
    assert climbs(f"{ops.__name__}.plan", {low}) and set(circle({low: {high}, high: {low}})) == {low, high}

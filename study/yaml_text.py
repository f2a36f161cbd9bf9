"""YAML that people write: plain values, or one sentence about what is wrong."""

from __future__ import annotations

import re
from typing import Any

import yaml

from network_surgery.study.errors import StudyError

#: Collections within each other, and values with those that aliases repeat: more is no configuration.
DEEPEST, MOST = 50, 100_000


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 and people do; PyYAML wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+|\d*\.\d+|\d+\.\d*)[eE][-+]?\d+$"), [*"-+.0123456789"]
)


def parse(text: bytes | str, where: str) -> Any:
    """The value of a YAML document of plain types; ``where`` is named in errors.

    Raises:
        StudyError: it is no YAML, a name is in a mapping twice, or it is nested without end.
    """
    try:
        _check_depth(text, where)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, where, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise StudyError(f"{where} is not valid YAML{_line(mark)}: {reason}") from None
    except StudyError:
        raise
    except AttributeError:  # which PyYAML makes of text that is marked as a date
        raise StudyError(f"{where} is not valid YAML: a !!timestamp is no date") from None
    except Exception as error:  # dates and numbers that are none, in the words of Python's types
        raise StudyError(f"{where} is not valid YAML: {str(error) or type(error).__name__:.120}") from None


def _check_depth(text: bytes | str, where: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise StudyError(f"{where} is nested more than {DEEPEST} deep{_line(event.start_mark)}")


def _count(node: yaml.Node, where: str, known: dict[int, int | None]) -> int:
    """The values in a node, those of aliases as often as they are named. Raises StudyError where they are too many."""
    if id(node) in known:
        if (count := known[id(node)]) is None:
            raise StudyError(f"{where} has a value that contains itself{_line(node.start_mark)}")
        return count
    known[id(node)], count = None, 1
    if isinstance(node, yaml.MappingNode):
        names: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in names and key.value != "<<":
                    raise StudyError(f"{where} has {key.value!r} twice{_line(key.start_mark)}")
                names.add((key.tag, key.value))
            count += _count(key, where, known) + _count(value, where, known)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count(each, where, known) for each in node.value)
    if count > MOST:
        raise StudyError(f"{where} has more than {MOST:,} values{_line(node.start_mark)}")
    known[id(node)] = count
    return count


def _line(mark: Any) -> str:
    return "" if mark is None else f" at line {mark.line + 1}"

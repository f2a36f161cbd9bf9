"""``study.json``: what a study is, with a checksum, and a copy of it that says what has been changed by hand.

Where a study runs may be changed by hand (``FREE``); what it computes may not, or old results and new ones would be
mixed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from network_surgery.study.errors import StudyError

FORMAT = 1
NAME, COPY = "study.json", ".study.json"
#: Settings that may be changed by hand: where a study runs, and those that grow when it goes on.
FREE = (
    "stream", "workers", "device", "cpus_per_trial", "gpus_per_trial", "workers_per_trial", "accelerator", "address",
    "tracking_uri", "copy_to", "hang_factor", "trials", "top", "seeds",
)  # fmt: skip


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(count) is int and count > 0 for count in value.values())


def _words(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(word, str) for word in value.values())


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _fingerprint(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and {*value} == {"name", "bytes", "digest"})


def _text(value: Any) -> bool:
    return isinstance(value, str)


#: Part → what it must be, in words, whether it is that, and whether studies of every version have it.
PARTS: dict[str, tuple[str, Callable[[Any], bool], bool]] = {
    "settings": ("a mapping", lambda value: isinstance(value, dict), True),
    "layers": ("a number of units for each layer", _counts, True),
    "identity": ("text", lambda value: _text(value) and bool(value), True),
    "machine": ("versions by name", _words, True),
    "preset": ("text or null", lambda value: value is None or _text(value), False),
    "metric": ("a mapping", lambda value: isinstance(value, dict), False),
    "unit": ("text", _text, False),
    "data": ("a fingerprint", _fingerprint, False),
    "original": ("numbers by name", _counts, False),
    "looks": ("whole numbers", _numbers, False),
}


def write(folder: Path, content: Mapping[str, Any], put: Callable[[Path, str], None]) -> None:
    """Writes what a study is, and a copy; ``put`` writes a file that is whole or not there."""
    whole = {name: value for name, value in content.items() if name != "checksum"}
    text = json.dumps(whole | {"checksum": checksum(whole)}, indent=1) + "\n"
    for name in (COPY, NAME):
        put(folder / name, text)


def read(folder: Path) -> dict[str, Any]:
    """What the study in this folder is.

    Raises:
        StudyError: there is none, it is damaged or of another version, or it was changed by hand.
    """
    try:
        return _read(folder / NAME)
    except StudyError as error:
        try:
            kept = _read(folder / COPY)
        except StudyError:
            raise error from None
        remedy = f"surgery doctor {folder} puts back what it was"
        if changes := differences(kept, _loose(folder / NAME)):
            others = f" (and {len(changes) - 1} more)" if changes[1:] else ""
            raise StudyError(
                f"{folder / NAME} was changed by hand: {changes[0]}{others}; {remedy}, and another --out begins "
                "another study"
            ) from None
        raise StudyError(f"{error}; {remedy}") from None


def read_copy(folder: Path) -> dict[str, Any]:
    """The copy. Raises StudyError where there is none, or it is damaged."""
    return _read(folder / COPY)


def checksum(content: Mapping[str, Any]) -> str:
    """Of all that may not be changed by hand."""
    guarded = {name: value for name, value in content.items() if name != "checksum"}
    guarded["settings"] = {name: value for name, value in content["settings"].items() if name not in FREE}
    return hashlib.blake2b(json.dumps(guarded, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> list[str]:
    """What is another thing in ``other`` than in ``one``, in words; none where ``other`` is no study at all."""
    if other is None or not isinstance(other.get("settings"), dict):
        return []
    found = []
    for was, now in ((one["settings"], other["settings"]), (one, other)):
        for name in dict.fromkeys((*was, *now)):
            if name in ("settings", "checksum", *FREE) or was.get(name) == now.get(name):
                continue
            found.append(f"{name} is {json.dumps(now.get(name)):.60}, and was {json.dumps(was.get(name)):.60}")
    return found


def _loose(path: Path) -> dict[str, Any] | None:
    """What a file holds, whatever it is; None where it is no mapping."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else None
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(f"there is no study in {path.parent} (it has no {NAME})") from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StudyError(f"{path} is not of the format {FORMAT} that this version reads")
    for name, (right, check, always) in PARTS.items():
        if name not in content and always:
            raise StudyError(f"{path} is damaged: it lacks {name!r}")
        if name in content and not check(content[name]):
            raise StudyError(f"{path} is damaged: its {name} must be {right}, not {json.dumps(content[name]):.60}")
    if content.get("checksum", (known := checksum(content))) != known:
        raise StudyError(f"{path} was changed by hand, and nothing says what it was")
    return content

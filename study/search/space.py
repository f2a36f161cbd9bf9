"""A search space as a study calls it: one of ours, or anyone's function ``(trial, layers, epochs) -> schedule``.

A function that takes them also gets, by name, ``budget`` (the fractions of the original's ``parameters`` and ``flops``
that a network may have, as far as the budget limits them) and ``controls`` (whether it is to offer operations that are
there to compare with, too).
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import BaseTrial

from network_surgery.ops import Schedule, SurgeryError
from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.search_spaces import Suggest, find_space
from network_surgery.search_spaces.recovery import choosing_after, choosing_aftercare
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import theirs
from network_surgery.study.training.failure import is_own

#: Frames in here are none of a space's.
OPTUNA = str(Path(optuna.__file__).parent)


class SamplerFailed(StudyError):
    """A sampler of Optuna's, or anyone's, that raises this error."""

    def __init__(self, settings: Settings, error: BaseException) -> None:
        several = len(settings.objective)
        search = f" with {several} objectives ({', '.join(settings.objective)})" if several > 1 else ""
        super().__init__(f"the sampler {settings.sampler!r} fails{search}: {first_line(error)[:300]}")


def suggest_of(name: str, after: bool = False, aftercare: bool = False, **about: Any) -> Suggest:
    """The function of a search space, by its name or by ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.

    ``after``: it also chooses what an operation does to the learning rate; ``aftercare``: and for how long other layers
    are frozen, and by what that rate is multiplied (see ``search_spaces.recovery``). ``about``: what the function gets
    besides, as far as it takes it.

    Raises:
        StudyError, SurgeryError: there is none.
    """
    suggest = theirs(name, "search space") if ":" in name else find_space(name)
    if not callable(suggest):
        raise StudyError(f"the search space {name!r} is a {type(suggest).__name__}, but it must be a function")
    taken = {key: value for key, value in about.items() if key in _parameters(suggest)}

    def schedule(*given: Any) -> Any:
        """What it returns; steps that are plain data become a schedule."""
        made = suggest(*given, **taken)
        return made if isinstance(made, Schedule) or not _is_data(made) else Schedule.from_data(made)

    chosen = choosing_after(schedule) if after else schedule
    return choosing_aftercare(chosen) if aftercare else chosen


def _parameters(function: Any) -> Collection[str]:
    """The names that a function can be given, beside the first three."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # one that is not of Python
        return ()
    named = [name for name, each in known.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return {name for name in named if known[name].kind == inspect.Parameter.KEYWORD_ONLY or name in named[3:]}


def shares(settings: Settings, original: Mapping[str, int]) -> dict[str, float]:
    """What a space can make a network's size of: the fractions of the original's parameters and FLOPs in the budget."""
    found = {name: value for name, value in (settings.budget or {}).items() if name in ("parameters", "flops")}
    return {name: value if value <= 1 else value / original[name] for name, value in found.items()}


def _is_data(made: Any) -> bool:
    return isinstance(made, (list, tuple)) and all(isinstance(step, Mapping) for step in made)


class Space:
    """The search space of these settings. Raises StudyError or SurgeryError where there is none."""

    def __init__(
        self, settings: Settings, layers: Mapping[str, int], original: Mapping[str, int] | None = None
    ) -> None:
        """``original``: the sizes that absolute numbers of the budget are fractions of."""
        self._settings = settings
        self._suggest = suggest_of(
            settings.space, settings.lr_schedule != "constant", settings.aftercare,
            budget=shares(settings, original or {}), controls=settings.controls,
        )  # fmt: skip
        self._layers = {name: SimpleNamespace(units=units) for name, units in layers.items()}

    def sample(self, trial: BaseTrial) -> Schedule:
        """The schedule that the space makes of what a trial chooses; it may also return its steps as plain data.

        Raises:
            SurgeryError: it returns something else, or a step that cannot be.
            StudyError: it fails; the sentence says in which file and line.
        """
        name = self._settings.space
        try:
            made = self._suggest(trial, self._layers, self._settings.epochs)
        except (SurgeryError, StudyError):
            raise
        except Exception as error:  # anyone's function may fail in any way
            pass_on_memory(error)
            if any(frame.filename.startswith(f"{OPTUNA}/samplers") for frame in _frames(error)):
                raise SamplerFailed(self._settings, error) from error
            raise StudyError(
                f"the search space {name!r} failed{_place(error)}: {type(error).__name__}: {first_line(error)[:200]}"
            ) from error
        if not isinstance(made, Schedule):
            raise SurgeryError(f"{name} returned a {type(made).__name__}, but it must return an ops.Schedule")
        check_importable(made.to_data())
        return made


def check_importable(steps: Iterable[Mapping[str, Any]]) -> None:
    """Raises StudyError where an operation's class is defined in ``__main__``, which other processes have not."""
    for step in steps:
        if str(step.get("op")).startswith("__main__:"):
            raise StudyError(
                f"the operation {str(step['op']).partition(':')[2]} is defined in this script or notebook, where the "
                "processes that train cannot find it; define it in a module and import it"
            )


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__)[1:]  # the first is the call in here


def _place(error: BaseException) -> str:
    """The last line of the user's own that an error came through."""
    frames = [frame for frame in _frames(error) if is_own(frame.filename)]
    return f" at {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""

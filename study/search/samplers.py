"""Optuna's samplers and pruners, by what the settings call them.

``GPSampler``, ``"NSGAIISampler(population_size=20)"`` and ``"PatientPruner(MedianPruner(), patience=2)"`` are classes
of ``optuna.samplers`` and ``optuna.pruners`` with their arguments. ``MODULE:FACTORY`` and ``FILE.py:FACTORY`` name
anyone's: an instance, or a function or class that makes one.

A search repeats if its sampler takes a ``seed``: it is made anew for every generation of trials, with a seed that
follows from the study's. What takes none is made once, and draws its own random numbers.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError, near
from network_surgery.study.references import theirs
from network_surgery.study.search.stopping import ForgivingHalving

#: Samplers that end a loop of Optuna's own, of which a study has none.
GRIDS = ("BruteForceSampler", "GridSampler")
#: Samplers that learn from how far a trial was beyond a budget (Optuna's constraints).
CONSTRAINED = ("GPSampler", "NSGAIIISampler", "NSGAIISampler", "TPESampler")
#: It numbers its points in the database, by a seed that stays.
SEQUENCES = ("QMCSampler",)


def sampler_of(settings: Settings) -> Callable[[int], BaseSampler]:
    """What makes the sampler of the next trials, given the number that has been drawn.

    Raises:
        StudyError: no such sampler, or it cannot be made.
    """
    name = settings.sampler
    if name == "tpe":
        return lambda drawn: _tpe(settings, _seed(settings, drawn))
    if _of_optuna(name):
        make = _parse(name, "sampler")
        make(0)
        fixed = name.removeprefix("optuna:").startswith(SEQUENCES)
        return lambda drawn: make(_seed(settings, 0 if fixed else drawn))
    made = theirs(name, "sampler")
    if not isinstance(made, BaseSampler) and _takes_seed(made):
        _anyones(made, name, "sampler", BaseSampler, seed=_seed(settings, 0))
        return lambda drawn: _anyones(made, name, "sampler", BaseSampler, seed=_seed(settings, drawn))
    once = _anyones(made, name, "sampler", BaseSampler)
    return lambda drawn: once


def knows_constraints(name: str) -> bool:
    """Whether a sampler learns from the constraints of trials; of anyone's it is assumed."""
    return name == "tpe" or not _of_optuna(name) or name.removeprefix("optuna:").startswith(CONSTRAINED)


def pruner_of(settings: Settings) -> BasePruner:
    """What ends trials early.

    Raises:
        StudyError: no such pruner, or it cannot be made.
    """
    name = settings.pruner
    if settings.early_stopping == "asha":
        generation = None if settings.sampling == "asynchronous" else settings.generation
        return ForgivingHalving(settings.first_rung, settings.reduction, generation)
    if name is None:
        return NopPruner()
    if _of_optuna(name):
        return _parse(name, "pruner")(0)  # type: ignore[no-any-return]
    return _anyones(theirs(name, "pruner"), name, "pruner", BasePruner)  # type: ignore[no-any-return]


def _seed(settings: Settings, drawn: int) -> int:
    return (settings.seed * 100_003 + drawn) % 2**32


def _tpe(settings: Settings, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=max(4, settings.trials // 3)
        )


def _of_optuna(name: str) -> bool:
    """Whether this is a class's name, with or without arguments, and no reference to anyone's."""
    return re.fullmatch(r"(optuna:)?\w+\s*(\(.*\))?", name, re.DOTALL) is not None


def _parse(text: str, what: str) -> Callable[[int], Any]:
    """What makes the sampler or pruner that a text such as ``"TPESampler(n_startup_trials=5)"`` describes, by a seed.

    Raises:
        StudyError: it is no such text, or there is no such class.
    """
    try:
        root = ast.parse(text.strip().removeprefix("optuna:"), mode="eval").body
    except SyntaxError:
        raise StudyError(f"{what} is {text!r}, but it must be NAME or NAME(argument=value, …)") from None
    return lambda seed: _value(root if isinstance(root, ast.Call) else ast.Call(root, [], []), what, text, seed)


def _value(node: ast.expr, what: str, text: str, seed: int) -> Any:
    """An argument: plain data, or an instance of one of Optuna's classes."""
    if not isinstance(node, ast.Call):
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise StudyError(
                f"{what} {text!r}: {ast.unparse(node)} is no plain value; give a function that makes the {what} as "
                "MODULE:FACTORY"
            ) from None
    kind = _class(ast.unparse(node.func), what)
    arguments = [_value(each, what, text, seed) for each in node.args]
    options = {str(each.arg): _value(each.value, what, text, seed) for each in node.keywords}
    if "seed" in options:
        raise StudyError(f"{what} {text!r} has a seed; leave it out, since it follows from the study's setting seed")
    if _takes_seed(kind):
        options["seed"] = seed
    return _anyones(lambda: kind(*arguments, **options), text, what, object)


def _class(name: str, what: str) -> Any:
    module = optuna.samplers if what == "sampler" else optuna.pruners
    ending = what.capitalize()
    known = [each for each in dir(module) if each.endswith(ending) and not each.startswith("Base")]
    if name in GRIDS:
        raise StudyError(f"sampler is {name!r}, but a study compares all points of a space with sampler: grid")
    if name not in known:
        ours = "tpe, grid, " if what == "sampler" else ""
        listed = [each for each in known if each not in GRIDS]
        closest = near(name, listed) or near(f"{name}{ending}", listed)
        raise StudyError(
            f"there is no {what} {name!r}; there are {ours}{', '.join(listed)}, or MODULE:FACTORY{closest}"
        )
    return getattr(module, name)


def _takes_seed(made: Any) -> bool:
    try:
        return "seed" in inspect.signature(made).parameters
    except (TypeError, ValueError):  # nothing that can be called
        return False


def _anyones(made: Any, name: str, what: str, kind: type, **options: Any) -> Any:
    """An instance of ``kind``, or what a function or class makes. Raises StudyError where that is nothing of the kind.

    Optuna's warnings that something is experimental are not passed on.
    """
    if not isinstance(made, kind) or kind is object:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                made = made(**options)
        except StudyError:
            raise
        except Exception as error:  # anyone's code may fail in any way
            pass_on_memory(error)
            raise StudyError(f"the {what} {name!r} cannot be made: {first_line(error)}") from error
    if not isinstance(made, kind):
        raise StudyError(f"the {what} {name!r} is a {type(made).__name__}, but it must be an optuna {kind.__name__}")
    return made

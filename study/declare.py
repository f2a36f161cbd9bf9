"""A setting written once: its default, check, help, command-line option, and whether it decides a result.

A class of settings is a frozen dataclass over ``Declared``. The type of a field is its check, made by pydantic; of what
it is annotated with, a text says in words what is right, and ``About`` the rest.

>>> @dataclass(frozen=True)
... class Cake(Declared):
...     eggs: Annotated[Whole, Field(ge=1, le=9), "from 1 to 9", About("Number of eggs")] = 3
...     guests: Annotated[Whole, About("Who come to eat it", decides=False)] = 8
>>> Cake(eggs="4").recipe()
{'eggs': 4}
>>> Cake.from_data({"eggs": 0}, "cake.yaml")
Traceback (most recent call last):
network_surgery.study.errors.StudyError: cake.yaml: eggs is 0, but it must be from 1 to 9
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from network_surgery.study.errors import StudyError, near


@dataclass(frozen=True)
class About:
    """What a field says of its setting besides the type.

    ``option``: whether the command line has it, or configuration files alone. ``decides``: whether the result of a
    training run depends on it. It is thought to unless declared otherwise: then at worst a run is repeated in vain,
    where the other way round a new one would go on from the checkpoint of an old one. ``later``: added when studies
    were there already, which did what its default says, so that they know their checkpoints again.
    """

    help: str
    option: bool = True
    decides: bool = True
    later: bool = False


def such_that(condition: Callable[[Any], bool]) -> AfterValidator:
    """Narrows a type to the values that fulfil a condition."""

    def check(value: Any) -> Any:
        if not condition(value):
            raise ValueError
        return value

    return AfterValidator(check)


def _refuse_truth(value: Any) -> Any:
    if isinstance(value, bool):  # which Python counts among the numbers
        raise ValueError
    return value


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _truth(value: Any) -> Any:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


#: Numbers, also as text: YAML reads 1e-3 as such.
Whole = Annotated[int, BeforeValidator(_refuse_truth), "a whole number"]
Number = Annotated[float, BeforeValidator(_refuse_truth), Field(allow_inf_nan=False), "a number"]
#: YAML reads true and false as such, the command line as text.
Truth = Annotated[bool, Field(strict=True), BeforeValidator(_truth), "true or false"]
Text = Annotated[str, "text"]
#: Lets a list also be text with commas, as on the command line.
COMMAS = BeforeValidator(_split)


class Declared:
    """Settings, each checked and cast to its type when they are made.

    Raises:
        StudyError: a value that is not of its type or out of range.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, adapter in _adapters(cls).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, adapter.validate_python(value))
            except ValidationError as error:
                right = f"{declaration(cls, name).right}{_alike(error)}"
                raise StudyError(f"{name} is {_shorten(value)}, but it must be {right}") from None

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON and YAML."""
        data = {name: getattr(self, name) for name in names(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    def recipe(self) -> dict[str, Any]:
        """Of ``to_data`` what decides the result of a training run; what came later only if it is not default."""
        defaults = {field.name: field.default for field in fields(type(self))}  # type: ignore[arg-type]
        decisive = {}
        for name, value in self.to_data().items():
            about = declaration(type(self), name).about
            if about.decides and not (about.later and getattr(self, name) == defaults[name]):
                decisive[name] = value
        return decisive

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str) -> Self:
        """The inverse of ``to_data``; ``where`` is named in errors.

        Raises:
            StudyError: an unknown name, or a value that is not right.
        """
        unknown = [name for name in data if name not in names(cls)]
        if unknown:
            closest = near(str(unknown[0]), names(cls))
            raise StudyError(f"{where}: there is no setting {unknown[0]!r}; there are {', '.join(names(cls))}{closest}")
        try:
            return cls(**data)
        except StudyError as error:
            raise StudyError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Declaration:
    """``kind``: the type without None and annotations; ``right``: what a value must be, in words."""

    kind: Any
    right: str
    about: About

    @property
    def help(self) -> str:
        """A sentence for the command line, after the values if there are only a few."""
        values = ("true", "false") if self.kind is bool else get_args(self.kind)
        chosen = f"{', '.join(values)}: " if self.kind is bool or get_origin(self.kind) is Literal else ""
        return f"{chosen}{self.about.help}."


def declaration(cls: Any, name: str) -> Declaration:
    """What the field of this name declares."""
    kind, notes = _hints(cls)[name], []
    while get_origin(kind) in (Annotated, Union, UnionType):
        if get_origin(kind) is Annotated:
            notes += kind.__metadata__[::-1]
        kind = next(part for part in get_args(kind) if part is not type(None))
    words = [note for note in notes if isinstance(note, str)]
    about = [note for note in notes if isinstance(note, About)]
    right = words[0] if words else f"one of {', '.join(map(str, get_args(kind)))}"
    return Declaration(kind, right, about[0] if about else About(name))


def names(cls: Any) -> list[str]:
    """The names of the settings, in the order in which they are declared."""
    return [field.name for field in fields(cls)]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@functools.cache
def _adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(_hints(cls)[name]) for name in names(cls)}


def _alike(error: ValidationError) -> str:
    """The end of a sentence about a list, where something in it is written almost like what may be there."""
    for each in error.errors(include_url=False):
        if each["type"] == "literal_error" and each["loc"] and isinstance(each["input"], str):
            return near(each["input"], re.findall(r"'([^']*)'", each["ctx"]["expected"]))
    return ""


def _shorten(value: Any) -> str:
    """A value as an error shows it, in one short line."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:80]} …"

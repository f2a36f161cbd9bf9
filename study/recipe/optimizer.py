"""The optimizer of a run: one of torch's by name, or anyone's factory; and which parameters it decays.

Weight decay of norms and biases: off by ``decay: weights``, as in Goyal et al. 2017, *Accurate, large minibatch SGD*,
5.3, and in most recipes since.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from network_surgery.ops.errors import first_line
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError, near
from network_surgery.study.references import theirs

#: The short names: the class, and the arguments that it has unless others are given.
SHORT: dict[str, tuple[type[Optimizer], Mapping[str, Any]]] = {
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
    "sgd": (SGD, {"momentum": 0.9}),
}
#: Arguments that are settings of their own.
SETTINGS = {"params": "decay", "lr": "learning_rate", "weight_decay": "weight_decay"}
#: Those of torch's that do not train what is trained here.
REFUSED = {"SparseAdam": "is for sparse gradients alone, which networks here do not have"}


def by_name() -> dict[str, type[Optimizer]]:
    """torch's optimizers by name."""
    classes = ((name, getattr(torch.optim, name)) for name in dir(torch.optim))
    return {name: c for name, c in classes if inspect.isclass(c) and issubclass(c, Optimizer) and c is not Optimizer}


def make_optimizer(settings: Settings, model: nn.Module) -> Optimizer:
    """The optimizer that the settings ask for, of all parameters of a network.

    ``optimizer``: ``adam``, ``adamw`` or ``sgd``, a class of ``torch.optim`` by its name, or ``MODULE:FACTORY`` or
    ``FILE.py:FACTORY``, which is called with the parameter groups (``[{"params": …, "weight_decay": …}, …]``), the
    learning rate, and ``optimizer_arguments`` by name.

    Raises:
        StudyError: there is none, it cannot be made so, or it needs what a training step here does not give.
    """
    name, arguments = settings.optimizer, _plain(settings.optimizer_arguments or {})
    for taken in SETTINGS.keys() & arguments.keys():
        raise StudyError(f"optimizer_arguments has {taken!r}, which is a setting of its own: {SETTINGS[taken]}")
    if ":" in name:
        optimizer = _foreign(settings, groups(settings, model), arguments)
    else:
        optimizer = _torch(name, settings, model, arguments)
    step = inspect.signature(optimizer.step).parameters.get("closure")
    if step is not None and step.default is inspect.Parameter.empty:
        raise StudyError(
            f"optimizer is {name!r}, which evaluates the loss several times in a step (it needs a closure); a training "
            "step here evaluates it once"
        )
    return optimizer


def groups(settings: Settings, model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups with their weight decay: of all parameters or, with ``decay: weights``, of those with two or
    more axes; biases, norms' scales and other vectors are then in a group that does not decay.
    """
    parameters, decay = list(model.parameters()), settings.weight_decay
    if settings.decay == "all":
        return [{"params": parameters, "weight_decay": decay}]
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    parts = [{"params": weights, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]


def _torch(name: str, settings: Settings, model: nn.Module, arguments: dict[str, Any]) -> Optimizer:
    classes = by_name()
    if name not in SHORT and name not in classes:
        raise StudyError(
            f"there is no optimizer {name!r}; give {', '.join(SHORT)}, one of torch.optim ({', '.join(classes)}), or "
            f"MODULE:FACTORY or FILE.py:FACTORY{near(name, (*classes, *SHORT))}"
        )
    if name in REFUSED:
        raise StudyError(f"optimizer is {name!r}, which {REFUSED[name]}")
    kind, usual = SHORT.get(name) or (classes[name], {})
    known = inspect.signature(kind).parameters
    for unknown in arguments.keys() - known.keys():
        can = ", ".join(argument for argument in known if argument not in SETTINGS)
        raise StudyError(f"optimizer_arguments has {unknown!r}, but {kind.__name__} has only {can}")
    decaying = "weight_decay" in known
    if settings.weight_decay and not decaying:
        raise StudyError(f"weight_decay is {settings.weight_decay}, but {kind.__name__} has none; set it to 0")
    parts = groups(settings, model)
    if not decaying:
        parts = [{"params": part["params"]} for part in parts]
    if settings.decay == "all":  # one group, as torch makes it
        arguments = arguments | ({"weight_decay": settings.weight_decay} if decaying else {})
        parts = parts[0]["params"]
    # torch's own classes check their arguments, and raise errors of several kinds.
    arguments = {**usual, **arguments}
    return _make(settings, lambda: kind(parts, lr=settings.learning_rate, **arguments))  # type: ignore[call-arg]


def _foreign(settings: Settings, parts: list[dict[str, Any]], arguments: dict[str, Any]) -> Optimizer:
    factory = theirs(settings.optimizer, "optimizer")
    made = _make(settings, lambda: factory(parts, settings.learning_rate, **arguments))
    if not isinstance(made, Optimizer):
        raise StudyError(f"optimizer {settings.optimizer!r} made a {type(made).__name__}, not a torch.optim.Optimizer")
    return made


def _make(settings: Settings, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except StudyError:
        raise
    except Exception as error:  # anyone's factory may fail in any way
        raise StudyError(f"{in_words(settings)} cannot be made: {first_line(error)}") from error


def in_words(settings: Settings) -> str:
    """The optimizer as errors name it: with the arguments that it was given, if there are any."""
    arguments = settings.optimizer_arguments
    given = f"optimizer_arguments is {arguments}, and with it " if arguments else ""
    return f"{given}optimizer {settings.optimizer!r}"


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as torch wants them: YAML has lists where torch has tuples, and reads 1e-8 as text."""

    def value(given: Any) -> Any:
        if isinstance(given, list):
            return tuple(value(each) for each in given)
        try:
            return float(given) if isinstance(given, str) else given
        except ValueError:
            return given

    return {str(name): value(given) for name, given in arguments.items()}

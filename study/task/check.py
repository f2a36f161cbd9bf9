"""A task tried on a few of its samples, so that what is wrong with it is said before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from network_surgery.ops import free_attention
from network_surgery.ops.anatomy import evaluating
from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.errors import StudyError
from network_surgery.study.task.metric import Metric
from network_surgery.study.task.samples import Batches, size_of
from network_surgery.study.task.task import Task, call, summarize

#: Samples that it is tried on.
FEW = 4


def fresh(task: Task) -> nn.Module:
    """A fresh network of a task, whose attention of torch's kind is freed for surgery (it computes the same).

    Raises:
        StudyError: the task makes none.
    """
    _check_methods(task, "model")
    try:
        model = task.model()
    except StudyError:
        raise
    except (Exception, SystemExit) as error:  # anyone's code may fail in any way, or end the program
        pass_on_memory(error)
        raise StudyError(f"{_name(task)}.model failed: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise StudyError(f"{_name(task)}.model made a {type(model).__name__}, not a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise StudyError(f"{_name(task)}.model made lazy modules, which have no sizes yet; give them their sizes")
    return free_attention(model)


def _check_methods(task: Task, *methods: str) -> None:
    """Raises StudyError where a task lacks one of these methods. Parts of tasks, which studies use, lack some."""
    for method in methods:
        if getattr(type(task), method) is getattr(Task, method):
            raise StudyError(f"{_name(task)} has no method {method!r}, which every task needs: see study/guide/task.md")


def try_task(task: Task) -> nn.Module:
    """A fresh network of a task, after it has answered a few samples, in training and in evaluation.

    Random numbers and the network's buffers are left as they were.

    Raises:
        StudyError: the task's sets, network, loss or metric are not what they must be; the sentence says which.
    """
    name = _name(task)
    _check_methods(task, "model", "loss", *(["load"] if "sets" not in vars(task) else []))
    _check_words(task)
    try:
        parts = (task.train, task.validation, task.test)
    except StudyError:
        raise
    except (Exception, SystemExit) as error:
        pass_on_memory(error)
        raise StudyError(f"{name}.load failed: {first_line(error)}") from error
    model = fresh(task)
    with torch.random.fork_rng(devices=[]):
        if {id(parameter) for parameter in model.parameters()} & {id(each) for each in fresh(task).parameters()}:
            raise StudyError(
                f"{name}.model returns the same parameters again; it must make a fresh network at each call"
            )
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        for training in (True, False):
            for part in parts[:1] if training else parts:
                inputs, targets = _take(task, part)
                if training and task.augments:
                    inputs, targets = _augment(task, inputs, targets)
                with evaluating(model), torch.set_grad_enabled(training):
                    outputs = _answer(task, model.train(training), inputs)
                    _check_loss(task, outputs, targets, training)
                if not training:
                    _check_metric(task, outputs, targets)
    for key, buffer in model.named_buffers():  # training moves running statistics
        if key in before and before[key].shape == buffer.shape:
            buffer.data.copy_(before[key])
    return model


def _check_words(task: Task) -> None:
    """Raises StudyError where what a task says of itself is not of the right kind."""
    for word, right, is_right in (
        ("metric", 'give Metric("accuracy", "higher"), say', lambda metric: isinstance(metric, Metric)),
        ("unit", 'give what a sample is called, such as "rows"', lambda unit: isinstance(unit, str)),
        ("classes", "give the names of the classes", lambda classes: isinstance(classes, (tuple, list))),
        ("at_once", "give a number of samples, or None", lambda most: most is None or most >= 1),
    ):
        try:
            value = getattr(task, word)
            good = is_right(value)
        except Exception as error:  # it may be a property of anyone's
            raise StudyError(f"{_name(task)}.{word} fails: {first_line(error)}") from error
        if not good:
            raise StudyError(f"{_name(task)}.{word} is {value!r:.60}; {right}")


def _take(task: Task, part: Any) -> tuple[Any, Any]:
    try:
        inputs, targets = Batches(part.thinned(FEW), torch.device("cpu")).take(slice(None))
        sizes = size_of(inputs), size_of(targets)
    except StudyError:
        raise
    except Exception as error:
        pass_on_memory(error)
        raise StudyError(f"the samples of {_name(task)} cannot be taken: {first_line(error)}") from error
    if sizes[0] != sizes[1]:
        raise StudyError(f"a batch of {_name(task)} has {sizes[0]} inputs, but {sizes[1]} targets")
    return inputs, targets


def _augment(task: Task, inputs: Any, targets: Any) -> tuple[Any, Any]:
    try:
        inputs, targets = task.augment(inputs, targets)
    except Exception as error:
        pass_on_memory(error)
        raise StudyError(f"{_name(task)}.augment fails on a training batch: {first_line(error)}") from error
    return inputs, targets


def _answer(task: Task, model: nn.Module, inputs: Any) -> Any:
    try:
        return call(model, inputs)
    except Exception as error:
        pass_on_memory(error)
        raise StudyError(f"the network of {_name(task)} fails on its training inputs: {first_line(error)}") from error


def _check_loss(task: Task, outputs: Any, targets: Any, training: bool) -> None:
    what, count = f"{_name(task)}.{'training_loss' if training else 'loss'}", size_of(targets)
    try:
        loss = (task.training_loss if training else task.loss)(outputs, targets)
    except Exception as error:
        pass_on_memory(error)
        raise StudyError(f"{what} fails on the network's outputs: {first_line(error)}") from error
    if not isinstance(loss, Tensor) or (loss.dim() and loss.shape != (count,)):
        kind = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise StudyError(f"{what} must return one number, or one for each of the {count} samples, not {kind}")
    _check_kind(loss, what)
    if not math.isfinite(float(loss.detach().mean())):
        raise StudyError(f"{what} of an untrained network is {float(loss.detach().mean())}; it must be finite")
    if training and not loss.requires_grad:
        raise StudyError(f"{what} does not depend on the network's weights, so nothing can be learned by it")


def _check_metric(task: Task, outputs: Any, targets: Any) -> None:
    name, count = _name(task), size_of(targets)
    try:
        values = task.measure(outputs, targets)
    except Exception as error:
        pass_on_memory(error)
        raise StudyError(f"{name}.measure fails on the network's outputs: {first_line(error)}") from error
    if not isinstance(values, Mapping):
        raise StudyError(f"{name}.measure must return a dict of numbers by name, not a {type(values).__name__}")
    for key, value in values.items():
        if not isinstance(value, Tensor) or not value.dim() or len(value) != count:
            kind = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise StudyError(f"{name}.measure must give a number for each of the {count} samples; {key!r} is {kind}")
        _check_kind(value, f"{name}.measure, {key!r},")
        if not bool(value.isfinite().all()):
            raise StudyError(f"{name}.measure gives numbers for {key!r} that are not finite, of an untrained network")
    means = {key: value.double().mean(dim=0) for key, value in values.items()}
    summarize(task, {"loss": task.loss(outputs, targets).mean().double(), **means})


def _check_kind(tensor: Tensor, what: str) -> None:
    """Raises StudyError where these are no real numbers on the CPU, where a task is tried."""
    if tensor.is_complex() or (not tensor.is_floating_point() and "loss" in what):
        raise StudyError(f"{what} must be real numbers, not {str(tensor.dtype).removeprefix('torch.')}")
    if not tensor.is_cpu:
        raise StudyError(
            f"{what} is on {tensor.device}, though outputs and targets are on the CPU; leave it where they are"
        )


def _name(task: Task) -> str:
    return type(task).__name__

"""Forward and backward pass of a training step as one CUDA graph: the host launches it with one call.

A step of a small network launches hundreds of kernels, and the host needs longer for that than the GPU for their work.
A graph is captured once and replays the same kernels on the same memory; nothing of Python runs. Optimizer, clipping
and averages stay outside of it, so every optimizer works as ever, while the GPU is still busy with the graph.

A step can be captured if it does the same with every batch of the same shape. So before each capture the step is run
twice and compared, operator by operator (``refusal``), and afterwards a replay is compared with an ordinary step on a
batch that was not captured. Where the two differ, training goes on without a graph, and ``Graph.reason`` says why. An
operation changes shapes, so the step is captured again after it.

Source: Nguyen, Carilli, Eryilmaz et al. 2021, *Accelerating PyTorch with CUDA Graphs*; torch's notes on CUDA semantics.
Tested on a CPU, where a list of operators takes the place of the graph; seen on a card by ``python -m tests.gpu --steps
graph`` (tests/gpu/RESULTS.md).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.recipe.augmentation import apart
from network_surgery.study.training.device import clock

#: Forward and backward pass of a batch (inputs, targets, its share in the step): leaves gradients, returns the loss.
Step = Callable[[Any, Any, float], Tensor]
#: Records what a function computes: (what replays it, what the function returned).
Recorder = Callable[[Callable[[], Tensor], torch.device], tuple[Callable[[], None], Tensor]]
#: How far gradients of a replay may be from those of the step, as a fraction of their norm: rounding, nothing else.
ROUNDING = 0.05
#: Of operators that a graph has not: they give numbers to the host, or tensors of a size that depends on values.
DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
PLAIN = (bool, int, float, complex, str, torch.dtype, type(None))


class Graph:
    """Replays ``step`` for the batches of a run that have the shape of the first one; others are computed as ever.

    ``reason``: why steps are not replayed, None while they are. ``replayed`` counts the batches of an epoch,
    ``seconds`` are those of its captures, checks included. ``forget`` is to be called when the network has changed.
    """

    def __init__(self, model: nn.Module, step: Step, device: torch.device, traced: bool = True) -> None:
        self._model, self._step, self._device, self._traced = model, step, device, traced
        self._record = RECORDERS.get(device.type)
        self.reason: str | None = None
        if self._record is None:
            self.reason = f"there are no CUDA graphs on {device.type}"
        self.replayed, self.seconds = 0, 0.0
        self._form: Any = None  # of the first batch
        self._tape: _Tape | None = None
        self._doubtful = False

    def forget(self) -> None:
        """The next batch is captured anew; the memory of the old graph is free again."""
        self._tape = None
        if self._record is not None:
            self.reason = None

    def begin(self, replayed: int = 0, seconds: float = 0.0) -> None:
        """An epoch begins, or goes on that was interrupted: counts from there."""
        self.replayed, self.seconds, self._doubtful = replayed, seconds, True

    def doubt(self) -> None:
        """Somebody may have exchanged tensors of the network: looks before the next replay."""
        self._doubtful = True

    def backward(self, inputs: Any, targets: Any, share: float) -> Tensor:
        """The loss of a batch, whose gradient is added to the parameters' gradients."""
        if self.reason is not None:
            return self._step(inputs, targets, share)
        form = _form_of((inputs, targets)), share
        self._form = self._form or form
        if form != self._form:  # the last batch of an epoch
            return self._step(inputs, targets, share)
        if self._tape is not None and self._doubtful and self._tape.places != _places(self._model):
            self._tape = None
        self._doubtful = False
        if self._tape is None:
            start = clock(self._device)
            self._tape = self._captured(inputs, targets, share)
            self.seconds += clock(self._device) - start
        if self._tape is None:
            return self._step(inputs, targets, share)
        self.replayed += 1
        return self._tape.play(inputs, targets)

    def _captured(self, inputs: Any, targets: Any, share: float) -> _Tape | None:
        """Captures the step, or sets ``reason``; gradients, buffers and random numbers are as before."""
        parameters = list(self._model.parameters())
        gradients = [parameter.grad for parameter in parameters]
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        tape: _Tape | None = None
        host = _host_state()
        try:
            with _aside(self._device):
                self.reason = refusal(self._attempts(inputs, targets, share), self._device, self._traced)
            if self.reason is None:
                tape = _Tape(self, inputs, targets, share)
                if not self._same(tape, inputs, targets, share):
                    self.reason = "a replay does not compute what the step does"
        except Exception as error:  # whatever a network does that cannot be captured
            pass_on_memory(error)
            self.reason = f"the step cannot be captured: {first_line(error)}"
        finally:
            random.setstate(host[0])
            np.random.set_state(("MT19937", np.frombuffer(host[1], np.uint32), *host[2]))
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        return tape if self.reason is None else None

    def _attempts(self, inputs: Any, targets: Any, share: float) -> Callable[[], object]:
        def attempt() -> None:
            self._model.zero_grad(set_to_none=True)
            with apart(0, self._device):
                self._step(inputs, targets, share)

        return attempt

    def _same(self, tape: _Tape, inputs: Any, targets: Any, share: float) -> bool:
        """Whether a replay gives loss and gradients of the step, for inputs whose targets are those of others."""
        inputs = _pytree.tree_map_only(Tensor, lambda each: each.roll(1, 0) if each.dim() else each, inputs)
        found = []
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        for way in (lambda: self._step(inputs, targets, share), lambda: tape.play(inputs, targets)):
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            self._model.zero_grad(set_to_none=True)
            with apart(0, self._device):
                loss = way()
            found.append([loss, *(p.grad for p in self._model.parameters() if p.grad is not None)])
        if [each.shape for each in found[0]] != [each.shape for each in found[1]]:
            return False
        apart_, whole = (
            torch.stack([each.float().norm() for each in part]).norm()
            for part in ([a - b for a, b in zip(*found, strict=True)], found[0])
        )
        return bool(apart_ <= ROUNDING * whole) or not bool(whole.isfinite())


class _Tape:
    """A captured step: its batch lies where the graph reads it, its gradients where the graph writes them."""

    def __init__(self, graph: Graph, inputs: Any, targets: Any, share: float) -> None:
        model, step, device, record = graph._model, graph._step, graph._device, graph._record
        assert record is not None
        self._batch: tuple[Any, Any] = _pytree.tree_map_only(Tensor, torch.clone, (inputs, targets))
        model.zero_grad(set_to_none=True)
        with apart(0, device):
            self._replay, self._loss = record(lambda: step(*self._batch, share), device)
        self._gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        self._more = share != 1  # the gradients of other batches are added, and these must not be written over
        self.places = _places(model)

    def play(self, inputs: Any, targets: Any) -> Tensor:
        """The loss; gradients are added to those that are there."""
        leaves = _pytree.tree_leaves((inputs, targets))
        for mine, given in zip(_pytree.tree_leaves(self._batch), leaves, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        self._replay()
        there = [(p.grad, new) for p, new in self._gradients if p.grad is not None and p.grad is not new]
        if there:
            torch._foreach_add_(*map(list, zip(*there, strict=True)))
        for parameter, new in self._gradients:
            if parameter.grad is None:
                parameter.grad = new.clone() if self._more else new
        return self._loss.clone()


class _Trace(TorchDispatchMode):
    """Writes down every operator with the shapes of its tensors and its other arguments.

    ``problem``: what a graph could not repeat, if there was such an operator.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.steps: list[Any] = []
        self.problem: str | None = None
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        leaves = _pytree.tree_leaves((args, kwargs, outcome))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        name, tags = func.overloadpacket.__name__, func.tags
        elsewhere = {tensor.device.type for tensor in tensors} - {self._device.type}
        masks = any(
            getattr(leaf, "dtype", None) in (torch.bool, torch.uint8) for leaf in _pytree.tree_leaves(args[1:2])
        )
        if masks if name.startswith("index") else DEPENDENT & set(tags):
            self.problem = self.problem or f"it depends on values of tensors ({name})"
        elif elsewhere and "copy" in name:
            self.problem = self.problem or f"it copies from or to the host ({name})"
        elif elsewhere and torch.Tag.nondeterministic_seeded in tags:
            self.problem = self.problem or "it draws random numbers on the host"
        self.steps.append((str(func), [self._noted(leaf) for leaf in leaves]))
        return outcome

    def _noted(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return repr(leaf) if isinstance(leaf, PLAIN) else type(leaf)
        number = leaf.dim() == 0 and leaf.device.type == "cpu" != self._device.type  # a graph keeps its value
        return tuple(leaf.shape), leaf.dtype, leaf.device.type, leaf.item() if number else None


def refusal(attempt: Callable[[], object], device: torch.device, traced: bool = True) -> str | None:
    """Why a step cannot be captured, from running it twice; None if nothing is in the way.

    ``traced``: operators are looked at one by one, which those of compiled code cannot be.
    """
    attempt()  # what is only made once, such as handles of libraries, and scales of losses
    before, traces = _host_state(), []
    with _no_waits(device):
        for _ in range(2):
            with _Trace(device) if traced else contextlib.nullcontext() as trace:
                attempt()
            traces.append(trace)
    if _host_state() != before:
        return "it draws random numbers on the host"
    first, second = traces
    if first is None or second is None:
        return None
    return first.problem or (None if first.steps == second.steps else "it is not the same each time")


def _host_state() -> tuple[Any, bytes, tuple[Any, ...]]:
    """The state of Python's and NumPy's random numbers."""
    _, keys, *rest = np.random.get_state()
    return random.getstate(), np.asarray(keys).tobytes(), tuple(rest)


def _form_of(batch: Any) -> Any:
    leaves, spec = _pytree.tree_flatten(batch)
    return spec, [(leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _places(model: nn.Module) -> Any:
    """Where the tensors of a network are, and what else a graph keeps as it was."""
    tensors = [(each.data_ptr(), each.shape, each.requires_grad) for each in (*model.parameters(), *model.buffers())]
    return tensors, [module.training for module in model.modules()]


@contextlib.contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On another stream, as what is run before a capture must be."""
    if device.type != "cuda":
        yield
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream(device).wait_stream(side)


@contextlib.contextmanager
def _no_waits(device: torch.device) -> Iterator[None]:
    """Waiting for the device is an error in this block: a capture would fail there."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _record(function: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """As a CUDA graph. Other threads, such as those that read samples, may use the device meanwhile.

    Raises what ``function`` raised, if it did. torch (2.8 to 2.14) leaves a capture that CUDA ended only by half: its
    stream stays the current one, memory goes on coming from the graph's pool and random numbers fail. All are put back.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    stream, random_ = torch.cuda.current_stream(index), torch.cuda.default_generators[index]
    state, pool, graph = random_.clone_state(), torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    cause: Exception | None = None
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                outcome = function()
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        torch.cuda.set_stream(stream)
        random_.graphsafe_set_state(state)
        with contextlib.suppress(RuntimeError):  # then the capture was left as it should be
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
        raise cause or error  # noqa: B904  # the second is that of a capture which the first has ended
    return graph.replay, outcome


#: By device type.
RECORDERS: dict[str, Recorder] = {"cuda": _record}

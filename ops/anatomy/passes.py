"""The passes in which a network is followed: as it is, on another input, and in training mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops.anatomy.recall import Lost, Recall
from network_surgery.ops.anatomy.running import norms_evaluating, plainly
from network_surgery.ops.anatomy.steady import Steady
from network_surgery.ops.anatomy.trace import Trace
from network_surgery.ops.anatomy.watch import Asked
from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory, without_foreign_errors


def follow(model: nn.Module, batch: int, examples: Iterable[Any]) -> tuple[Trace, list[Tensor], Any]:
    """A pass on the first of some examples that the network takes: its trace, its answer and that example."""
    problem: Exception | None = None
    for example in examples:
        try:
            return *_follow(model, batch, example), example
        except Exception as error:  # whatever the foreign forward pass raises
            pass_on_memory(error)
            problem = error
    assert problem is not None
    raise SurgeryError(f"the network does not run on the example input: {first_line(problem)[:200]}") from problem


def _follow(model: nn.Module, batch: int, example: Any, keeping: bool = False) -> tuple[Trace, list[Tensor]]:
    """Traces one pass. Where the network turns out early to read the mode, so that another pass will follow, it begins
    anew, ``keeping`` what it computes."""
    trace = Trace(model, batch)
    trace.watch.hasty = not keeping
    trace.recall = Recall(model, example) if keeping else None
    try:
        with plainly(model):
            output = trace.run(example)
    except (Asked, Exception):  # or what the network makes of it
        if not trace.watch.asked:
            raise
    trace.watch.hasty = False
    return _follow(model, batch, example, keeping=True) if trace.watch.asked else (trace, output)


def follow_otherwise(trace: Trace, example: Any) -> None:
    """Follows the network on the negative of the example, if it takes it."""
    opposite = _pytree.tree_map(lambda x: -x if isinstance(x, Tensor) and x.is_floating_point() else x, example)
    recall, trace.recall = trace.recall, None
    with without_foreign_errors(), plainly(trace.model):
        trace.run(opposite)
    trace.recall = recall


def follow_training(trace: Trace, example: Any, evaluated: list[Tensor]) -> list[Tensor] | None:
    """Follows the network in training mode, too; weights that are still not met may cost every layer.

    Returns its answer, None where it does not run in it or does there what it did when it ``evaluated``.
    """
    for trace.watch.pretending in (True, False):
        try:
            output, problem = _recall_training(trace, example, evaluated)
        except Lost:
            trace.recall = None
            output, problem = _run_training(trace, example)
        if not problem:
            break
    if trace.missed and (trace.steered or problem):
        reason = (
            f"the example input does not meet {trace.missed[0]}, and in training mode it fails ({problem[:80]})"
            if problem
            else f"the network chooses by its data whether {trace.missed[0]} is used; give an example that meets it"
        )
        for name in trace.axes:
            trace.freeze_parameter(name, reason)
    return output


def _recall_training(trace: Trace, example: Any, evaluated: list[Tensor]) -> tuple[list[Tensor] | None, str]:
    """As ``_run_training``, where nothing is computed that is known. Raises Lost where that is not enough."""
    if trace.recall is None or not trace.recall.usable:
        raise Lost
    trace.recall.again()
    output, problem = _run_training(trace, example)
    if trace.recall.lost:
        raise Lost
    if output is not None and not trace.new and trace.recall.is_same(output, evaluated):
        return None, ""
    if output is not None and (trace.replaced or not trace.recall.holds(output)):
        raise Lost
    return output, problem


def _run_training(trace: Trace, example: Any) -> tuple[list[Tensor] | None, str]:
    """What the network answers in training mode, None where it does not run in it, and why not."""
    try:
        with plainly(trace.model, training=True), norms_evaluating(trace.model), Steady():
            return trace.run(example), ""
    except Exception as error:  # whatever the foreign forward pass raises
        pass_on_memory(error)
        return None, first_line(error)

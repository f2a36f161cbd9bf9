"""One model of the zoo examined: every layer, every promise; and how long discovery takes."""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops import Anatomy
from tests.ops.properties import examine, lively, outputs
from tests.zoo.models import Animal

PROMISES = ("duplicate", "permute", "remove", "regrow", "meet", "double", "run", "train", "in training")


def swept(animal: Animal) -> dict[str, Any]:
    """Every layer of the small model, in double precision, with lively weights."""
    torch.manual_seed(0)
    start = time.perf_counter()
    model, inputs = animal.small()
    inputs = _pytree.tree_map_only(torch.Tensor, lambda t: t.to(animal.dtype) if t.is_floating_point() else t, inputs)
    model = lively(model.to(animal.dtype), inputs)
    if not all(out.isfinite().all() for out in outputs(model, inputs)):
        return {"problem": "its answer is not finite"}
    built = time.perf_counter()
    anatomy = Anatomy(model, inputs)
    found = time.perf_counter()
    with _remembering():
        examination = examine(anatomy, inputs, careful=False, tolerance=animal.tolerance)
    tried = Counter(verdict.promise.rstrip(" 0123456789") for verdict in examination.verdicts)
    broken = Counter(verdict.promise.rstrip(" 0123456789") for verdict in examination.broken)
    reasons = Counter(_general(reason, anatomy) for reason in anatomy.pinned.values())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "exact": sum(layer.exact for layer in anatomy.values()),
        "inexact": sum(not layer.exact for layer in anatomy.values()),
        "pinned": len(anatomy.pinned),
        "promises": {promise: (tried[promise] - broken[promise], tried[promise]) for promise in PROMISES},
        "faint": examination.faint,
        "worst": examination.worst,
        "failures": [str(verdict) for verdict in examination.broken],
        "reasons": dict(reasons.most_common()),
        "inexact_reasons": dict(Counter(e.reason for e in anatomy.values() if not e.exact)),
        "seconds": {"build": built - start, "discovery": found - built, "sweep": time.perf_counter() - found},
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


@contextlib.contextmanager
def _remembering() -> Iterator[None]:
    """Convolutions and dense layers that are given again what they were given at first, and have the weights that they
    had, answer at once what they answered: up to the layer that is edited, every pass is the first one."""
    originals = {nn.Conv2d: "_conv_forward", nn.Linear: "forward"}
    first: dict[nn.Module, list[tuple[list[Tensor], Tensor]]] = {}

    def remembering(original: Any) -> Any:
        def answer(module: nn.Module, *given: Tensor) -> Tensor:
            if torch.is_grad_enabled() or type(given[0]) is not Tensor:
                return original(module, *given)
            known = first.setdefault(module, [])
            met = [*given[:1], *(p for p in module._parameters.values() if p is not None)]
            for before, out in known:
                if all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(met, before, strict=True)):
                    return out.clone()
            out = original(module, *given)
            if not known or sum(each.numel() for each in known[0][0]) * len(known) < 1 << 20:
                known.append(([each.detach().clone() for each in met], out.clone()))
            return out

        return answer

    kept = {kind: getattr(kind, name) for kind, name in originals.items()}
    try:
        for kind, name in originals.items():
            setattr(kind, name, remembering(kept[kind]))
        yield
    finally:
        for kind, name in originals.items():
            setattr(kind, name, kept[kind])


def clocked(animal: Animal) -> dict[str, Any]:
    """CPU seconds of a forward pass and of discovery, medians of five, in single precision at the published size.

    They are taken in turns, so that both see the same machine.
    """
    torch.manual_seed(0)
    assert animal.native is not None
    model, inputs = animal.native()
    model.eval()
    outputs(model, inputs)
    forward, discovery = [], []
    while not discovery or (len(discovery) < 5 and discovery[0] < 10):
        forward.append(_seconds(lambda: outputs(model, inputs)))
        discovery.append(_seconds(lambda: Anatomy(model, inputs)))
    return {
        "forward": statistics.median(forward),
        "discovery": statistics.median(discovery),
        "runs": len(discovery),
    }


def _seconds(action: Any) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _general(reason: str, anatomy: Anatomy) -> str:
    """A pin's reason without the names of this model's tensors, so that equal ones are counted together."""
    names = [name for name, _ in (*anatomy.model.named_parameters(), *anatomy.model.named_buffers())]
    modules = [name for name, _ in anatomy.model.named_modules() if "." in name]
    for name in sorted((*names, *modules), key=len, reverse=True):
        reason = reason.replace(name, "…")
    return reason

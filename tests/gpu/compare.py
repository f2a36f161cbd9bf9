"""The card against the CPU: layers that are offered, what operations choose and leave, and what must be left alone."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from network_surgery import ops
from network_surgery.ops.anatomy import call
from network_surgery.ops.signals.unit_scores import SCORES as UNIT_SCORES
from network_surgery.ops.signals.weight_scores import SCORES as WEIGHT_SCORES
from network_surgery.study import models
from tests.gpu.card import Card, Row, failure, moved, precision
from tests.ops.networks import NETWORKS, build, outputs, train

#: (rtol, atol), the latter as a fraction of a tensor's largest value.
CLOSE = {torch.float64: (1e-7, 1e-9), torch.float32: (1e-4, 1e-5)}
#: Operations in forms that find something to do on untrained networks.
GENTLE: dict[str, Callable[[], ops.Operation]] = {
    "pcns": lambda: ops.PCNS(variance_threshold=0.05), "remove_dead": lambda: ops.RemoveDead(threshold=0.6),
    "revive": lambda: ops.Revive(threshold=0.6),
}  # fmt: skip
#: What a case gives: choices that must be equal, and tensors that must be close.
Result = tuple[list[Any], list[Tensor]]
Run = Callable[[torch.device], Result]


def versus(card: Card, run: Run, dtype: torch.dtype = torch.float64, slack: float = 1.0) -> Row:
    """Runs a case on the CPU and on the card: whether they agree, and if not, what differs most.

    ``slack``: a multiple of ``CLOSE``, where one side counts in coarser numbers.
    """
    results: list[Result | str] = []
    seconds = []
    for device in (torch.device("cpu"), card.device):
        start = time.perf_counter()
        torch.manual_seed(0)
        try:
            results.append(run(device))
        except Exception as error:  # what the foreign device raises is the result
            results.append(failure(error))
        card.sync()
        seconds.append(time.perf_counter() - start)
    row: Row = {"same": False, "cpu_s": round(seconds[0], 3), "card_s": round(seconds[1], 3)}
    one, other = results
    if isinstance(one, str) or isinstance(other, str):
        first = one if isinstance(one, str) else "no error"
        second = other if isinstance(other, str) else "no error"
        return row | {"same": first == second, "cpu": first, "card": second if second != first else "the same error"}
    different = [(a, b) for a, b in zip(one[0], other[0], strict=True) if a != b]
    if different:
        return row | {"choices": [str(each)[:240] for each in different[:2]]}
    if [x.shape for x in one[1]] != [x.shape for x in other[1]]:
        return row | {"shapes": "differ"}
    apart = max((excess(a, b, *CLOSE[dtype]) for a, b in zip(one[1], other[1], strict=True)), default=0.0)
    return row | {"same": apart <= slack, "difference / allowed": apart / slack}


def excess(one: Tensor, other: Tensor, relative: float, absolute: float) -> float:
    """The largest difference as a multiple of what is allowed; infinite where one of them is not finite."""
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
    return float(((one - other).abs() / (relative * one.abs() + absolute * one.abs().max().clamp(min=1e-3))).max())


def prepared(name: str, dtype: torch.dtype, device: torch.device, batch: int = 16) -> tuple[nn.Module, Any]:
    """A network of the tests without dropout, which draws other numbers on other devices."""
    model, inputs = build(name, dtype, batch)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(device), moved(inputs, device)


def held(model: nn.Module, optimizer: optim.Optimizer | None, device: torch.device) -> list[Tensor]:
    """All tensors of a network and of an optimizer's state. Raises AssertionError where one is not on the device.

    Plain numbers, such as an optimizer's count of steps, may stay with the host.
    """
    tensors = dict(model.state_dict())
    if optimizer is not None:
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{number} {key}": value for key, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.device.type != device.type and not (tensor.dim() == 0 and tensor.device.type == "cpu"):
            raise AssertionError(f"{name} is on {tensor.device}")
    return [tensor.to(torch.float64) for tensor in tensors.values() if not tensor.is_complex()]


def planned(layer: Any, operation: ops.Operation, optimizer: Any, signals: ops.Signals | None, **more: Any) -> Any:
    """The units that an operation chose, or why it refuses."""
    try:
        return list(ops.operate(layer, operation, optimizer, signals, **more).sources)
    except ops.SurgeryError as error:
        if error.__cause__ is not None and "device" in str(error.__cause__):
            raise
        return str(error)[:120]


def _signals(model: nn.Module, inputs: Any) -> ops.Signals:
    scores = outputs(model, inputs)[0]
    count = scores.shape[1] if scores.dim() == 2 else 2
    return ops.Signals(model, inputs, torch.arange(len(scores), device=scores.device) % count)


# -- steps -------------------------------------------------------------------------------------------------------------


def anatomies(card: Card) -> Iterator[Row]:
    """Layers that an anatomy offers on the CPU, on the card, and there with TF32 in products and convolutions."""
    networks = [("small_cnn", 32), ("vgg16", 32)]
    named = ("resnet18", "mobilenet_v2", "vgg16_bn", "efficientnet_b0", "convnext_tiny", "swin_t", "densenet121")
    networks += [(f"torchvision:{name}", 64) for name in named[: 2 if card.small else None]]
    for name, size in networks:
        torch.manual_seed(0)
        model, x = models.build(name, (3, size, size), 10).eval(), torch.randn(2, 3, size, size)
        there = copy.deepcopy(model).to(card.device)
        row: Row = {"network": name}
        try:
            found: dict[str, ops.Anatomy] = {}
            for way, network, tf32 in (("cpu", model, False), ("card", there, False), ("tf32", there, True)):
                precision(tf32, tf32)
                start = time.perf_counter()
                found[way] = ops.Anatomy(network, x.to(next(network.parameters()).device))
                card.sync()
                row |= {way: len(found[way]), f"{way}_s": round(time.perf_counter() - start, 2)}
            for way in ("card", "tf32"):
                row[f"same_{way}"] = list(found[way]) == list(found["cpu"])
                lost = [layer for layer in found["cpu"] if layer not in found[way]][:3]
                more = [layer for layer in found[way] if layer not in found["cpu"]][:3]
                row[f"lost_{way}"] = {layer: found[way].pinned.get(layer, "no reason") for layer in lost}
                row[f"more_{way}"] = {layer: found["cpu"].pinned.get(layer, "no reason") for layer in more}
            if name.endswith("mobilenet_v2"):
                row["25 layers"] = len(found["card"]) == 25
        except Exception as error:  # one network must not cost the others
            row["problem"] = failure(error)
        yield row


def operated(name: str, operation: str, dtype: torch.dtype, device: torch.device) -> Result:
    """Every layer of a network in training, operated on; it trains on."""
    model, inputs = prepared(name, dtype, device)
    optimizer = optim.Adam(model.parameters(), lr=0.01, eps=1e-3)  # Adam magnifies gradients that are rounding
    train(model, inputs, optimizer, steps=2)
    method = GENTLE.get(operation, ops.OPERATIONS[operation])()
    anatomy = ops.Anatomy(model, inputs)
    choices: list[Any] = [list(anatomy)]
    for layer in anatomy.values():
        choices.append(planned(layer, method, optimizer, _signals(model, inputs) if method.needs_signals else None))
    after = outputs(model, inputs)
    train(model, inputs, optimizer, steps=1)
    return choices, [*after, *held(model, optimizer, device)]


def _operations(card: Card, dtype: torch.dtype) -> Iterator[Row]:
    precision(False, False)
    for name in list(NETWORKS)[: 3 if card.small else None]:
        for operation in ops.OPERATIONS:
            row = versus(card, partial(operated, name, operation, dtype), dtype)
            yield {"network": name, "operation": operation} | row


def operations(card: Card) -> Iterator[Row]:
    """Every operation on every network of the tests in float64: same units, same tensors."""
    yield from _operations(card, torch.float64)


def operations_single(card: Card) -> Iterator[Row]:
    """The same in float32, without TF32."""
    yield from _operations(card, torch.float32)


def forms(card: Card) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Optimizers by name: as made on the CPU, and on the card."""
    from tests.ops.network.test_optimizer_state import FORMS

    found: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
    for (
        name,
        form,
    ) in FORMS.items():  # on a device other than the CPU, torch's take all parameters at once; one does not
        alike = card.cuda or card.device.type == "cpu" or {"foreach", "fused"} & form.keywords.keys()
        alike = alike or name == "Adafactor"
        found[name] = (form if alike else partial(form, foreach=True), form)
    if card.cuda:
        kinds = {"Adam": optim.Adam, "AdamW": optim.AdamW, "NAdam": optim.NAdam, "RAdam": optim.RAdam}
        for name, kind in (kinds | {"RMSprop": optim.RMSprop, "Adamax": optim.Adamax}).items():
            plain = partial(kind, lr=0.01)
            found[f"{name} capturable"] = (plain, partial(plain, capturable=True))
        for kind in (optim.Adam, optim.AdamW):
            plain = partial(kind, lr=0.01)
            found[f"{kind.__name__} fused capturable"] = (plain, partial(plain, fused=True, capturable=True))
    first = [name for name in found if "fused" in name or "capturable" in name]
    return {name: found[name] for name in [*first, *(name for name in found if name not in first)]}


def _optimized(make: Any, operation: ops.Operation, device: torch.device) -> Result:
    model, inputs = prepared("cnn_plain", torch.float64, device)
    optimizer = (make[0] if device.type == "cpu" else make[1])(model.parameters())
    train(model, inputs, optimizer, steps=2)
    anatomy, choices = ops.Anatomy(model, inputs), []
    for name in ["*"] if isinstance(operation, ops.PruneWeights) else list(anatomy):
        choices.append(planned(anatomy[name], operation, optimizer, _signals(model, inputs)))
    train(model, inputs, optimizer, steps=2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, inputs, optimizer, steps=2)
    return choices, held(model, optimizer, device)


def optimizers(card: Card) -> Iterator[Row]:
    """Optimizers through surgery, then on, then their state loaded, then on; capturable against plain on the CPU."""
    precision(False, False)
    methods = (ops.WeakExpand(grow=0.5), ops.MinWeight(keep=0.5), ops.PCNS(0.05), ops.PruneWeights(0.5))
    for name, make in list(forms(card).items())[: 4 if card.small else None]:
        slack = 100.0 if "fused" in name or "capturable" in name else 1.0  # steps are counted in float32 there
        rows = {type(each).__name__: versus(card, partial(_optimized, make, each), slack=slack) for each in methods}
        bad = {operation: row for operation, row in rows.items() if not row["same"]}
        worst = max((row.get("difference / allowed", 0.0) for row in rows.values()), default=0.0)
        yield {"optimizer": name, "same": not bad, "difference / allowed": worst, "wrong": bad}


def parts(card: Card) -> Iterator[Row]:
    """Scores, repairs, predictions, undo, averages, files, attention and recurrent layers in float64."""
    precision(False, False)
    for part, run in _parts().items():
        for name in ("cnn",) if part in ("attention", "lstm") else ("mlp_bn", "cnn"):

            def case(device: torch.device, run: Any = run, name: str = name) -> Result:
                model, inputs = prepared(name, torch.float64, device, batch=32)
                return run(model, inputs, torch.arange(32, device=device) % 3, device)

            yield {"part": part, "network": name} | versus(card, case)


def _each(operation: ops.Operation, **more: Any) -> Callable[..., Result]:
    """An operation on every layer, one after the other."""

    def run(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
        anatomy = ops.Anatomy(model, x)
        names = ["*"] if operation.whole_network else list(anatomy)
        return [planned(anatomy[n], operation, (), ops.Signals(model, x, y), **more) for n in names], held(
            model, None, device
        )

    return run


def _parts() -> dict[str, Callable[..., Result]]:
    found: dict[str, Callable[..., Result]] = {}
    for score in UNIT_SCORES:
        found[f"unit score {score}"] = lambda m, x, y, d, score=score: (
            [], [ops.unit_scores(layer, ops.Signals(m, x, y), score) for layer in ops.Anatomy(m, x).values()]
        )  # fmt: skip
    for score in WEIGHT_SCORES:
        found[f"weight score {score}"] = lambda m, x, y, d, score=score: (
            [], list(ops.weight_scores(m, ops.Anatomy(m, x).weights, score, x, y).values())
        )  # fmt: skip
        found[f"prune {score}"] = _each(ops.PruneWeights(0.5, score=score))
    for replacement in ("mean", "mean_before", "median", "extreme"):
        found[f"replacement {replacement}"] = _each(ops.MeanReplace(0.5, replacement=replacement))
    for chain in (["bias"], ["least_squares"], ["batchnorm"], ["least_squares", "batchnorm"]):
        found[f"repair {' + '.join(chain)}"] = _each(ops.MinWeight(0.5), repair=chain)
    for kind in ("dead", "frozen", "either"):
        found[f"remove {kind}"] = _each(ops.RemoveDead(0.6, kind=kind))
    found["pcns eigen"] = _each(ops.PCNS(0.05, basis="eigen"))
    found["verify"] = _each(ops.WeakExpand(0.5), verify=True)
    found |= {
        "prediction": _predicted, "trial surgery": _tried, "averages": _averaged, "save and load": _saved,
        "compact": _compacted, "attention": _attention, "lstm": _lstm,
    }  # fmt: skip
    return found


def _predicted(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
    plans = [ops.MinWeight(0.5).propose(layer, None) for layer in ops.Anatomy(model, x).values()]
    return [], [torch.tensor(ops.predicted_loss_change(plan, x, y).change, dtype=torch.float64) for plan in plans]


def _tried(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, x, optimizer)
    before = [tensor.clone() for tensor in held(model, optimizer, device)]
    plans = [ops.MinWeight(0.5).propose(layer, None) for layer in ops.Anatomy(model, x).values()]
    with ops.trial_surgery(*plans, optimizers=optimizer):
        tried = outputs(model, x)
    undone = all(torch.equal(a, b) for a, b in zip(before, held(model, optimizer, device), strict=True))
    return [f"undone exactly: {undone}"], [*tried, *held(model, optimizer, device)]


def _averaged(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
    optimizer, average = optim.SGD(model.parameters(), 0.1), optim.swa_utils.AveragedModel(model)
    train(model, x, optimizer)
    average.update_parameters(model)
    anatomy = ops.Anatomy(model, x)
    for operation in (ops.MinWeight(0.5), ops.WeakExpand(0.5)):
        for layer in anatomy.values():
            ops.operate(layer, operation, optimizer, averages=average)
    train(model, x, optimizer)
    average.update_parameters(model)
    return [], held(average, optimizer, device)


def _saved(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
    fresh = copy.deepcopy(model)
    anatomy = ops.Anatomy(model, x)
    ops.operate(anatomy["*"], ops.PruneWeights(0.5), (), ops.Signals(model, x, y))
    for layer in anatomy.values():
        ops.operate(layer, ops.MinWeight(0.5))
    with tempfile.TemporaryDirectory() as folder:
        ops.save(model, Path(folder) / "network.pt")
        loaded = ops.load(lambda: fresh, Path(folder) / "network.pt", device)
    same = all(torch.equal(a, b) for a, b in zip(outputs(model, x), outputs(loaded, x), strict=True))
    return [f"loaded as saved: {same}"], held(loaded, None, device)


def _compacted(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
    anatomy = ops.Anatomy(model, x)
    ops.operate(anatomy["*"], ops.PruneWeights(0.9), (), ops.Signals(model, x, y))
    plans = ops.compact(anatomy, (), ops.Signals(model, x, y))
    return [str(len(plans))], held(model, None, device)


def _changed(model: nn.Module, x: Tensor, device: torch.device) -> Result:
    anatomy, optimizer = ops.Anatomy(model, x), optim.Adam(model.parameters(), lr=0.01, eps=1e-3)
    train(model, x, optimizer)
    plans = [
        planned(layer, op, optimizer, None)
        for layer in anatomy.values()
        for op in (ops.WeakExpand(), ops.MinWeight(0.5))
    ]
    train(model, x, optimizer)
    return [list(anatomy), plans], [*outputs(model, x), *held(model, optimizer, device)]


def _attention(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
    torch.manual_seed(0)
    layer = ops.free_attention(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)).double()
    return _changed(layer.to(device), torch.randn(8, 5, 16, dtype=torch.float64).to(device), device)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


def _lstm(model: nn.Module, x: Any, y: Tensor, device: torch.device) -> Result:
    torch.manual_seed(0)
    return _changed(Recurrent().double().to(device), torch.randn(8, 5, 6, dtype=torch.float64).to(device), device)


def generators(card: Card) -> Iterator[Row]:
    """Whether the random numbers of the CPU and of the card are as before after everything that only looks or edits."""
    model, x = prepared("cnn", torch.float32, card.device)
    y = torch.arange(len(x), device=card.device) % 3
    anatomy = ops.Anatomy(model, x)
    layer = anatomy["0"]

    def shown() -> ops.Signals:
        return ops.Signals(model, x, y)

    acts: dict[str, Callable[[], object]] = {
        "Anatomy": lambda: ops.Anatomy(model, x),
        "Signals": shown,
        "gradients": lambda: shown().gradients(layer),
        "unit score mrp": lambda: ops.unit_scores(layer, shown(), "mrp"),
        "verify": lambda: ops.operate(layer, ops.WeakExpand(0.5), verify=True),
        "repair": lambda: ops.operate(layer, ops.MinWeight(0.9), (), shown(), repair=["least_squares"]),
        "call in evaluation": lambda: call(model.eval(), x),
    }
    for name, kind in ops.OPERATIONS.items():
        acts[name] = lambda name=name, kind=kind: ops.operate(layer, GENTLE.get(name, kind)(), (), shown())
    for name, act in acts.items():
        torch.manual_seed(1234)
        torch.randn(3, device=card.device)
        host, there = torch.get_rng_state(), torch.cuda.get_rng_state(card.device) if card.cuda else None
        row: Row = {"act": name}
        try:
            act()
        except ops.SurgeryError as error:
            row["refused"] = str(error)[:120]
        row["host as before"] = torch.equal(host, torch.get_rng_state())
        if there is not None:
            row["card as before"] = torch.equal(there, torch.cuda.get_rng_state(card.device))
        yield row

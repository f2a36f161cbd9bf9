"""Misuse of every public function: it works, or it ends in one sentence and leaves everything as it was."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Moment,
    Plan,
    PruneWeights,
    RandomRemove,
    RemoveDead,
    Revive,
    Signals,
    Step,
    SurgeryError,
    WeakExpand,
    adopt,
    apply,
    compact,
    dead_units,
    describe,
    free_attention,
    frozen_units,
    inner,
    load,
    measure,
    operate,
    predicted_loss_change,
    rewrap,
    save,
    trial_surgery,
    unit_scores,
    weight_scores,
    without_masks,
)
from network_surgery.ops.anatomy import count

NAN = float("nan")


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


class Case:
    """A network in training, with its optimizer, anatomy and signals."""

    def __init__(self, path: Path = Path()) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(8, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(),
            nn.Linear(5, 3),
        )  # fmt: skip
        self.other, self.wrong, self.file = small(), torch.randn(4, 5), path / "net.pt"
        self.x, self.t = torch.randn(12, 8), torch.arange(12) % 3
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        F.cross_entropy(self.model(self.x), self.t).backward()
        self.optimizer.step()
        self.model[3].eval()
        self.hook = self.model[0].register_forward_hook(lambda *args: None)
        self.anatomy = Anatomy(self.model, self.x)
        self.layer, self.signals = self.anatomy["0"], Signals(self.model, self.x, self.t)
        self.plan = MinWeight(0.5).propose(self.layer)
        self.now()

    def now(self) -> Case:
        """What is so now is to stay so."""
        self.before = self.state()
        return self

    def see(self, inputs: Any = None, targets: Any = None, loss: Any = None) -> Signals:
        return Signals(self.model, self.x if inputs is None else inputs, self.t if targets is None else targets, loss)

    def set(self, number: int, value: float) -> Case:
        """All entries of the weight of one of its modules."""
        self.model[number].weight.data.fill_(value)
        return self.now()

    def saved(self) -> Path:
        save(self.model, self.file)
        return self.file

    def state(self) -> list[Any]:
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        modules = list(self.model.modules())
        return [
            [(name, t.clone(), t.requires_grad, None if t.grad is None else t.grad.clone()) for name, t in tensors],
            [(module.training, type(module), sorted(vars(module))) for module in modules],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules],
            torch.get_rng_state(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            copy.deepcopy(self.optimizer.state_dict()), {name: layer.units for name, layer in self.anatomy.items()},
        ]  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Foreign:
    """Averages as torch_ema keeps them."""

    def __init__(self) -> None:
        self.shadow_params = [torch.zeros(3)]


def faked(c: Case) -> Any:
    with FakeTensorMode():
        model, inputs = small(), torch.randn(2, 8)
    return Anatomy(model, inputs)


def in_precision(c: Case, dtype: torch.dtype) -> None:
    model, inputs = c.other.to(dtype), c.x.to(dtype)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs, c.t)
    for score in ("mrs", "mrp", "taylor", "variance"):
        assert unit_scores(layer, signals, score).any()
    weight_scores(model, ["0.weight"], "taylor2", inputs, c.t)
    predicted_loss_change(MinWeight(0.5).propose(layer), inputs, c.t)
    operate(layer, RemoveDead(0.5), (), signals)
    assert torch.isfinite(model(inputs)).all()


def replaced(c: Case) -> Case:
    c.model[3] = nn.Linear(7, 5)
    return c.now()


def without(c: Case, number: int) -> Case:
    del c.model[number]
    return c.now()


def weightless(c: Case) -> Case:
    del c.model[0].weight
    return c.now()


def resized(c: Case) -> Case:
    c.model[3].weight = nn.Parameter(torch.zeros(5, 9))
    return c.now()


def written(c: Case, content: Any) -> Path:
    torch.save(content, c.file)
    return c.file


def twice(c: Case, plan: Plan) -> Any:
    apply(plan, c.optimizer)
    c.now()
    return apply(plan, c.optimizer)


def after_the_fact(c: Case) -> Any:
    """Signals that were taken before the layer changed."""
    operate(c.layer, MinWeight(0.5), c.optimizer)
    return operate(c.now().layer, PCNS(0.1), c.optimizer, c.signals)


def frozen(c: Case) -> None:
    c.model.requires_grad_(False)
    layer, signals = Anatomy(c.model, c.x)["0"], c.see()
    weight_scores(c.model, ["0.weight"], "taylor1", c.x, c.t)
    operate(layer, RemoveDead(0.5), c.optimizer, signals)
    assert not any(parameter.requires_grad for parameter in c.model.parameters())


def quantized(c: Case) -> None:
    model = torch.ao.quantization.quantize_dynamic(c.other, {nn.Linear}, dtype=torch.qint8)
    assert not Anatomy(model, c.x)


Act = Callable[[Case], Any]

#: What is done → None where it works, else what the sentence says.
MISUSES: dict[str, dict[str, tuple[Act, str | None]]] = {
    "anatomy": {
        "a number": (lambda c: Anatomy(3, c.x), "a torch.nn.Module, not of a int"),
        "a class": (lambda c: Anatomy(nn.Linear, c.x), "a torch.nn.Module, not of a type"),
        "no input": (lambda c: Anatomy(c.model, None), "holds no tensor"),
        "numpy": (lambda c: Anatomy(c.model, c.x.numpy()), "holds no tensor"),
        "another shape": (lambda c: Anatomy(c.model, c.wrong), "does not run on the example input"),
        "whole numbers": (lambda c: Anatomy(c.model, torch.ones(4, 8).long()), "does not run on the example input"),
        "no dimension": (lambda c: Anatomy(c.model, torch.tensor(1.0)), "does not run on the example input"),
        "double for single": (lambda c: Anatomy(c.other, c.x.double()), "must have the same dtype"),
        "empty batch": (lambda c: Anatomy(c.model, c.x[:0]), None),
        "one sample": (lambda c: Anatomy(c.model, c.x[:1]), None),
        "not a number": (lambda c: Anatomy(c.model, c.x * NAN), None),
        "sparse": (lambda c: Anatomy(c.other, torch.eye(8).to_sparse()), None),
        "meta network": (lambda c: Anatomy(c.other.to("meta"), c.x), "0.weight is a meta tensor and holds no values"),
        "meta input": (lambda c: Anatomy(c.model, c.x.to("meta")), "the batch is a meta tensor"),
        "fake": (faked, "is a fake tensor and holds no values"),
        "lazy": (lambda c: Anatomy(nn.Sequential(nn.LazyLinear(5)), c.x), "0.weight has no size yet"),
        "no units": (lambda c: Anatomy(nn.Sequential(nn.Linear(8, 0), nn.Linear(0, 3)), c.x), None),
        "nothing": (lambda c: Anatomy(nn.Sequential(), c.x), None),
        "quantized": (quantized, None),
        "DataParallel": (lambda c: operate(Anatomy(nn.DataParallel(c.model), c.x)["0"], MinWeight(0.5)), None),
        "compiled": (lambda c: Anatomy(torch.compile(c.model, backend="eager"), c.x), None),
        "no such layer": (lambda c: c.anatomy["nope"], "there is no layer 'nope'; this network has 0, 3"),
        "a number for a name": (lambda c: c.anatomy[0], "a layer is called by its name, not 0"),
        "count": (lambda c: count(3, c.x), "a network is a torch.nn.Module"),
        "count of another shape": (lambda c: count(c.model, c.wrong), "does not run on the example input"),
    },
    "signals": {
        "a name": (lambda c: Signals("m", c.x), "a network is a torch.nn.Module, not 'm'"),
        "another shape": (lambda c: Signals(c.model, c.wrong), "the network does not run on this batch"),
        "no batch": (lambda c: Signals(c.model, None), "the network does not run on this batch"),
        "meta": (lambda c: Signals(c.model, c.x.to("meta")), "the batch is a meta tensor"),
        "of a copy": (lambda c: operate(c.layer, PCNS(), (), Signals(copy.deepcopy(c.model), c.x)), "another network"),
        "of a copy, for mrp": (
            lambda c: unit_scores(c.layer, Signals(copy.deepcopy(c.model), c.x, c.t), "mrp"), "another network"
        ),
        "of a copy, for weights": (
            lambda c: PruneWeights(score="taylor1").propose(c.layer, Signals(copy.deepcopy(c.model), c.x, c.t)),
            "another network",
        ),
        "of a wrapper": (lambda c: operate(c.layer, PCNS(), (), Signals(nn.DataParallel(c.model), c.x)), None),
        "stale": (after_the_fact, "reads 4 positions, but was given 7"),
        "no batches": (lambda c: Signals.over(c.model, [], [c.layer]), "at least one batch"),
        "a number of batches": (lambda c: Signals.over(c.model, 3, [c.layer]), "a list of batches and a list"),
        "one layer": (lambda c: Signals.over(c.model, [c.x], c.layer), "a list of batches and a list of layers"),
        "names": (lambda c: Signals.over(c.model, [c.x], ["0"]), "layers of an anatomy, not of '0'"),
        "of another, over": (lambda c: Signals.over(c.other, [c.x], [c.layer]), "another network"),
        "empty": (lambda c: operate(c.layer, PCNS(), (), c.see(c.x[:0], c.t[:0])), "is it empty"),
        "empty, median": (
            lambda c: operate(c.layer, MeanReplace(replacement="median"), (), c.see(c.x[:0], c.t[:0])), "is it empty"
        ),
        "one sample, PCNS": (lambda c: operate(c.layer, PCNS(), (), c.see(c.x[:1], c.t[:1])), "a single sample"),
        "not finite": (lambda c: operate(c.layer, PCNS(), (), c.see(c.x * NAN)), "its outputs are not finite"),
        "a tensor for signals": (lambda c: operate(c.layer, PCNS(), (), c.x), "signals must be Signals"),
        "none": (lambda c: operate(c.layer, PCNS()), "give it Signals"),
    },
    "losses": {
        "a name": (lambda c: unit_scores(c.layer, c.see(loss="mse"), "mrs"), "must be a function of"),
        "nothing returned": (lambda c: unit_scores(c.layer, c.see(loss=lambda o, t: None), "mrs"), "returns NoneType"),
        "a float": (lambda c: unit_scores(c.layer, c.see(loss=lambda o, t: 1.0), "mrs"), "the loss returns float"),
        "whole numbers": (
            lambda c: predicted_loss_change(c.plan, c.x, c.t, lambda o, t: o.argmax(1).sum()), "the loss returns int64"
        ),
        "a constant": (lambda c: unit_scores(c.layer, c.see(loss=lambda o, t: torch.ones(())), "mrs"), "no gradient"),
        "detached": (
            lambda c: weight_scores(c.model, ["0.weight"], "hessian", c.x, c.t, loss=lambda o, t: o.detach().sum()),
            "no gradient",
        ),
        "too many": (
            lambda c: unit_scores(c.layer, c.see(loss=lambda o, t: o.flatten()), "mrp"),
            r"float32 \[36\]: it must return one number, .* or one for each of its 12 samples",
        ),
        "one argument": (
            lambda c: weight_scores(c.model, ["0.weight"], "taylor1", c.x, c.t, loss=lambda o: o.sum()),
            "takes 1 positional argument",
        ),
        "a class": (lambda c: unit_scores(c.layer, c.see(loss=nn.CrossEntropyLoss), "mrs"), "cannot be had"),
        "not finite": (lambda c: unit_scores(c.layer, c.see(loss=lambda o, t: o.sum() * NAN), "mrs"), "is not finite"),
        "steps": (
            lambda c: predicted_loss_change(c.plan, c.x, c.t, lambda o, t: (o.argmax(1) != t).float().mean()), None
        ),
        "text for targets": (lambda c: unit_scores(c.layer, c.see(targets="abc"), "mrs"), "class numbers, not str"),
        "bool for targets": (lambda c: unit_scores(c.layer, c.see(targets=c.t > 0), "mrs"), None),
        "no targets": (lambda c: unit_scores(c.layer, Signals(c.model, c.x), "mrs"), "needs targets"),
        "empty": (lambda c: weight_scores(c.model, ["0.weight"], "taylor1", c.x[:0], c.t[:0]), "the batch is empty"),
        "nothing to predict by": (lambda c: predicted_loss_change(c.plan, c.x), "class numbers, not NoneType"),
        "no plan to predict": (lambda c: predicted_loss_change(c.layer, c.x, c.t), "what an operation proposes"),
        "prediction elsewhere": (lambda c: predicted_loss_change(c.plan, c.wrong, c.t), "does not run on this batch"),
        "prediction of nothing": (lambda c: predicted_loss_change(c.plan, c.x * NAN, c.t), "not finite"),
    },
    "scores": {
        "no layer": (lambda c: unit_scores("0", c.signals, "mrs"), "a layer of an anatomy, not of a str"),
        "whole network": (lambda c: unit_scores(c.anatomy["*"], c.signals, "l2"), "one layer at a time"),
        "no such score": (lambda c: unit_scores(c.layer, c.signals, "mr"), "no unit score 'mr'"),
        "no such replacement": (
            lambda c: unit_scores(c.layer, c.signals, "mrp", replacement="mode"), "no replacement 'mode'"
        ),
        "a seed of letters": (lambda c: unit_scores(c.layer, None, "random", seed="a"), "seed is 'a'"),
        "a tensor": (lambda c: unit_scores(c.layer, c.x, "mrs"), "signals must be Signals"),
        "weights not finite": (lambda c: unit_scores(c.set(0, NAN).layer, None, "l2_in"), "not finite"),
        "gradients not finite": (lambda c: frozen_units(c.layer, c.see(c.x * NAN)), "not finite"),
        "dead, whole network": (lambda c: dead_units(c.anatomy["*"], c.signals), "one layer at a time"),
        "dead, no signals": (lambda c: dead_units(c.layer, None), "give it Signals"),
        "dead, odd threshold": (lambda c: dead_units(c.layer, c.signals, "a"), "the threshold is 'a'"),
        "frozen, no signals": (lambda c: frozen_units(c.layer, None), "give Signals"),
        "weights of no network": (lambda c: weight_scores(3, ["0.weight"], "magnitude"), "a network is"),
        "a buffer": (lambda c: weight_scores(c.model, ["1.running_mean"], "magnitude"), "no parameter"),
        "no such weight score": (lambda c: weight_scores(c.model, ["0.weight"], 3), "no weight score 3"),
        "weights elsewhere": (lambda c: weight_scores(c.model, ["0.weight"], "taylor1", c.wrong, c.t), "cannot be had"),
        "weights not a number": (
            lambda c: weight_scores(c.model, ["0.weight"], "taylor1", c.x * NAN, c.t), "not finite"
        ),
        "half": (lambda c: in_precision(c, torch.float16), None),
        "bfloat16": (lambda c: in_precision(c, torch.bfloat16), None),
        "frozen": (frozen, None),
    },
    "no signal": {
        "one sample": (lambda c: operate(c.layer, RemoveDead(), (), c.see(c.x[:1], c.t[:1])), "any saliency"),
        "copies of a sample": (
            lambda c: operate(c.layer, RemoveDead(), (), c.see(c.x[:1].repeat(9, 1), c.t[:1].repeat(9))),
            "no unit has any saliency",
        ),
        "zero branch": (lambda c: operate(c.set(3, 0).layer, RemoveDead(), (), c.see()), "no unit has any saliency"),
        "zero branch, revived": (lambda c: operate(c.set(3, 0).layer, Revive(), (), c.see()), "any saliency"),
        "zero branch, frozen": (
            lambda c: operate(c.set(3, 0).layer, RemoveDead(kind="frozen"), (), c.see()), "no unit has any gradient"
        ),
        "zero branch, either": (lambda c: operate(c.set(3, 0).layer, Revive(kind="either"), (), c.see()), "saliency"),
        "zero branch, mean": (
            lambda c: operate(c.set(3, 0).layer, MeanReplace(score="mrp"), (), c.see()), "every score is 0"
        ),
        "zero branch, weights": (
            lambda c: operate(c.set(3, 0).layer, PruneWeights(score="taylor1_abs"), (), c.see()), "every score is 0"
        ),
        "one sample, variance": (
            lambda c: operate(c.layer, MeanReplace(score="variance"), (), c.see(c.x[:1])), "every score is 0"
        ),
    },
    "operate": {
        "a name": (lambda c: operate("0", MinWeight()), "a layer of an anatomy and an operation"),
        "a class": (lambda c: operate(c.layer, MinWeight), "a layer of an anatomy and an operation"),
        "an anatomy": (lambda c: operate(c.anatomy, MinWeight()), "a layer of an anatomy and an operation"),
        "whole network": (lambda c: operate(c.anatomy["*"], MinWeight()), "one layer at a time"),
        "no optimizer": (lambda c: operate(c.layer, MinWeight(), object()), "Optimizer objects, not object"),
        "None for one": (lambda c: operate(c.layer, MinWeight(), None), "Optimizer objects, not NoneType"),
        "parameters": (lambda c: operate(c.layer, MinWeight(), c.model.parameters()), "objects, not Parameter"),
        "a scaler": (lambda c: operate(c.layer, MinWeight(), torch.amp.GradScaler("cpu")), "objects, not GradScaler"),
        "torch_ema": (lambda c: operate(c.layer, MinWeight(), averages=Foreign()), "AveragedModel; a Foreign cannot"),
        "a state": (lambda c: operate(c.layer, MinWeight(), averages=c.model.state_dict()), "a OrderedDict cannot"),
        "optimizer for average": (lambda c: operate(c.layer, MinWeight(), averages=c.optimizer), "a Adam cannot"),
        "another network": (lambda c: operate(c.layer, MinWeight(), averages=c.other), "must have its shapes"),
        "itself": (lambda c: operate(c.layer, MinWeight(), averages=c.model), "must be a copy of the network"),
        "repair as text": (lambda c: operate(c.layer, MinWeight(), (), c.signals, repair="bias"), "a repair is a list"),
        "repair as a number": (lambda c: operate(c.layer, MinWeight(), (), c.signals, repair=3), "a repair is a list"),
        "repair in a list": (
            lambda c: operate(c.layer, MinWeight(), (), c.signals, repair=[["bias"]]), "a repair is a list"
        ),
        "norms of nothing": (
            lambda c: operate(c.layer, MinWeight(), c.optimizer, c.see(c.x * NAN), repair=["batchnorm"]), "not finite"
        ),
        "norms of one sample": (
            lambda c: operate(c.layer, MinWeight(), c.optimizer, c.see(c.x[:1]), repair=["batchnorm"]),
            "BatchNorm's statistics cannot be estimated",
        ),
        "norms of an empty batch": (
            lambda c: operate(c.layer, MinWeight(), c.optimizer, c.see(c.x[:0], c.t[:0]), repair=["batchnorm"]),
            "BatchNorm's statistics cannot be estimated",
        ),
        "fit to nothing": (
            lambda c: operate(c.layer, MinWeight(), (), c.see(c.x * NAN), repair=["least_squares"]), "not finite"
        ),
        "verified by text": (lambda c: operate(c.layer, MinWeight(), verify="yes"), "does not run on this batch"),
        "verified elsewhere": (lambda c: operate(c.layer, MinWeight(), verify=c.wrong), "does not run on this batch"),
        "verified on meta": (lambda c: operate(c.layer, MinWeight(), verify=c.x.to("meta")), "is a meta tensor"),
        "verified by nothing": (lambda c: operate(c.layer, MinWeight(), verify=c.x * NAN), "no finite number"),
        "norms not finite": (lambda c: operate(c.set(3, NAN).layer, MinWeight()), "a score is not a number"),
        "rank not finite": (lambda c: operate(c.set(3, NAN).layer, EigenRemove()), "not finite"),
        "pruning not finite": (lambda c: operate(c.set(0, NAN).anatomy["*"], PruneWeights()), "not finite"),
        "a replaced module": (lambda c: operate(replaced(c).layer, MinWeight(), c.optimizer), "3 has been replaced"),
        "a replaced module, pruned": (lambda c: operate(replaced(c).anatomy["*"], PruneWeights()), "has been replaced"),
        "a deleted module": (lambda c: operate(without(c, 6).anatomy["3"], MinWeight()), "6 has been removed"),
        "a deleted weight": (lambda c: operate(weightless(c).layer, MinWeight()), "0.weight is gone"),
        "scores of a deleted weight": (lambda c: unit_scores(weightless(c).layer, None, "l2_in"), "0.weight is gone"),
        "another size": (lambda c: operate(resized(c).layer, MinWeight()), "take it anew"),
    },
    "plans": {
        "a layer": (lambda c: apply(c.layer), "a plan is what an operation proposes"),
        "a list": (lambda c: apply([c.plan]), "a plan is what an operation proposes"),
        "a trial of a number": (lambda c: trial_surgery(3).__enter__(), "a plan is what an operation proposes"),
        "twice": (lambda c: twice(c, c.plan), "the plan was made for 7 units"),
        "grown twice": (lambda c: twice(c, WeakExpand().propose(c.layer)), "the plan was made for 7 units"),
        "revived twice": (lambda c: twice(c, Revive(0.9).propose(c.layer, c.signals)), None),
        "no such unit": (lambda c: apply(Plan(c.layer, "x", (0, 99))), "sources name units outside"),
        "units of letters": (lambda c: apply(Plan(c.layer, "x", ("a", "b"))), "whole numbers"),
        "no units": (lambda c: apply(Plan(c.layer, "x", ())), "no unit would be left"),
        "None for units": (lambda c: Plan(c.layer, "x", None), "sources name an old unit"),
        "no layer": (lambda c: Plan("0", "x", (0, 1)), "a layer of an anatomy"),
        "other shares": (lambda c: apply(Plan(c.layer, "x", (0, 1), shares=torch.ones(3))), "a tensor of 2 numbers"),
        "other values": (
            lambda c: apply(Plan(c.layer, "x", (0, 1), replaced={"0.weight": torch.ones(3)})), r"\(7, 8\) are needed"
        ),
        "a list of values": (lambda c: apply(Plan(c.layer, "x", (0, 1), replaced={"0.weight": [1]})), "be a tensor"),
        "measured": (lambda c: measure(3), "a plan is what an operation proposes"),
        "measured elsewhere": (lambda c: measure(c.plan, c.wrong), "does not run on this batch"),
        "keep as text": (lambda c: MinWeight("a"), "keep is 'a'"),
        "keep as a tensor": (lambda c: MinWeight(torch.tensor(0.5)), "keep is tensor"),
        "keep not a number": (lambda c: RandomRemove(NAN), "keep is nan"),
        "compact": (lambda c: compact(3), "by its Anatomy"),
    },
    "files": {
        "a number": (lambda c: save(3, c.file), "a network is a torch.nn.Module"),
        "no path": (lambda c: save(c.model, 3), "3 cannot be written"),
        "nothing": (lambda c: save(c.model, None), "^None cannot be written: a network is saved to a path or an open"),
        "lazy": (lambda c: save(nn.LazyLinear(3), c.file), "has no size yet"),
        "meta": (lambda c: save(c.other.to("meta"), c.file), "is a meta tensor"),
        "buffer in memory": (lambda c: save(c.model, io.BytesIO()), None),
        "no file": (lambda c: load(small, c.file), "does not exist"),
        "a network for its factory": (lambda c: load(c.other, c.saved()), "must be a function that makes the network"),
        "nothing made": (lambda c: load(lambda: None, c.saved()), "must return the network"),
        "a factory that fails": (lambda c: load(lambda: 1 / 0, c.saved()), "cannot make the network: division by zero"),
        "another network": (lambda c: load(lambda: c.other, c.saved()), "the architecture is of another network"),
        "a lazy factory": (lambda c: load(lambda: nn.LazyLinear(3), c.saved()), "not of the network that the factory"),
        "no such device": (lambda c: load(lambda: c.model, c.saved(), "nope"), "cannot be moved to 'nope'"),
        "a state": (lambda c: load(small, written(c, c.model.state_dict())), "not a network that ops.save wrote"),
        "no architecture": (lambda c: adopt(c.model, {}), "what ops.describe returns"),
        "odd architecture": (lambda c: adopt(c.model, {"shapes": 3, "numbers": {}}), "what ops.describe returns"),
        "describe": (lambda c: describe(3), "a network is a torch.nn.Module"),
        "inner": (lambda c: inner(None), "a network is a torch.nn.Module"),
        "rewrap": (lambda c: rewrap("x"), "a network is a torch.nn.Module"),
        "free": (lambda c: free_attention(3), "attention is freed in a torch.nn.Module"),
        "masks": (lambda c: without_masks(3), "masks are those of a torch.nn.Module"),
    },
}  # fmt: skip

ALL = [(f"{group}: {name}", *entry) for group, entries in MISUSES.items() for name, entry in entries.items()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("act", "says"), [entry[1:] for entry in ALL], ids=[entry[0] for entry in ALL])
def test_it_works_or_says_why_and_changes_nothing(act: Act, says: str | None, tmp_path: Path) -> None:
    case = Case(tmp_path)
    if says is None:
        act(case)
        return
    with pytest.raises(SurgeryError, match=says) as refusal:
        act(case)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
    for before, after in zip(case.before, case.state(), strict=True):
        assert same(before, after)


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len(ALL) > 120 and sum(says is None for _, _, says in ALL) > 10


def test_an_optimizer_of_a_copy_is_refused() -> None:
    """Nothing of it could follow; of several some may train other networks, as in a GAN."""
    model = small()
    other = torch.optim.Adam(copy.deepcopy(model).parameters())
    layer, before = Anatomy(model, torch.randn(4, 8))["0"], copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match="Adam trains no parameter of this network: give its own optimizer"):
        operate(layer, MinWeight(0.5), other)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    operate(layer, MinWeight(0.5), (torch.optim.SGD(model.parameters(), 0.1), other))
    assert layer.units == 4


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Step(Moment(1), "0", MinWeight), "the operation of a step cannot be <class .*: give an object of an"),
        (lambda: Step(Moment(1), "0", "min_weight"), "the operation of a step cannot be 'min_weight': give an object"),
        (lambda: Step("1ep", "0", MinWeight()), r"the when of a step cannot be '1ep': give ops\.Moment\(3\)"),
        (lambda: Step(Moment(1), "0", MinWeight(), allocation={"flops": 0.2}), "the allocation of a step cannot be {"),
        (lambda: Moment(-1), "-1ep is not a moment of training"),
        (lambda: Moment(1, "epoch"), "1epoch is not a moment of training"),
        (lambda: MinWeight(torch.tensor(0.5)), r"tensor\(0.5000\), but it must be a number \(of Python\) above 0"),
        (lambda: RandomRemove(0.5, seed=2**70), "seed is 11.*it must be a whole number from 0 on below 2\\^63"),
    ],
)
def test_parts_of_schedules_of_another_kind(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(SurgeryError, match=sentence):
        make()


def test_files_that_hold_objects_and_arguments_in_another_order(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "whole.pt")
    with pytest.raises(SurgeryError, match=r"whole.pt is not a saved network: it holds objects, not only") as found:
        load(small, tmp_path / "whole.pt")
    assert "\x1b" not in str(found.value)
    with pytest.raises(SurgeryError, match=r"load\(factory, path\): the factory must be .*, not a PosixPath"):
        load(tmp_path / "whole.pt", small)  # type: ignore[arg-type]

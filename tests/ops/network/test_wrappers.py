"""Wrapped networks are operated on inside, and their wrappers know it afterwards."""

from __future__ import annotations

import copy
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import Anatomy, MinWeight, SurgeryError, WeakExpand, operate, trial_surgery
from network_surgery.ops.network.wrappers import inner, rewrap
from tests.ops.networks import build, loss, train
from tests.tiers import long


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Chain(nn.Sequential):
    """As ``nn.Sequential``, but not in torch's own code, of which torch 2.8 compiles nothing in place."""

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def chain(name, **how):
    model, inputs = build(name, **how)
    return Chain(*model), inputs


def compiled(model, how, **settings):
    """``torch.compile(model)`` or ``model.compile()``."""
    if how == "wrapped":
        return torch.compile(model, **settings)
    model.compile(**settings)
    return model


def anatomy_of(model, inputs):
    """Taken without compiling anything, even where the model was compiled in place."""
    with torch.compiler.set_stance("force_eager"):
        return Anatomy(inner(model), inputs)


def same(one, other, **tolerance):
    for found, wanted in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)


def test_inner_reaches_through_all_wrappers():
    model, inputs = build("mlp")
    for wrapped in (
        model,
        DataParallel(model),
        torch.compile(model),
        torch.compile(DataParallel(torch.compile(model))),
    ):
        assert inner(wrapped) is model
        assert rewrap(wrapped) is wrapped
        assert list(anatomy_of(wrapped, inputs)) == ["0", "2"]
    averaged = AveragedModel(torch.compile(model))
    assert inner(averaged) is averaged.module._orig_mod is not model and rewrap(averaged) is averaged


@pytest.mark.parametrize(
    ("backend", "how", "fullgraph"),
    [
        ("eager", "wrapped", True),
        ("eager", "wrapped", False),
        ("eager", "in place", True),
        ("eager", "in place", False),
        ("aot_eager", "wrapped", False),
        ("aot_eager", "in place", True),
        long("inductor", "wrapped", False),
    ],
)
def test_a_compiled_model_is_compiled_for_its_new_sizes(backend, how, fullgraph):
    """As often as it is operated on, and it trains as the same model that was never compiled."""
    model, inputs = chain("mlp_bn", batch=8)
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend(backend)
    model = compiled(model, how, backend=counter, fullgraph=fullgraph)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9) for each in (model, eager)]
    train(model, inputs, optimizers[0]), train(eager, inputs, optimizers[1])
    times = {"eager": 12, "aot_eager": 3, "inductor": 1}[backend]
    for number in range(times):
        before = counter.frame_count
        for each, optimizer in zip((model, eager), optimizers, strict=True):
            operate(anatomy_of(each, inputs)["0"], WeakExpand(grow=0.1), optimizer)
        model = rewrap(model)
        assert counter.frame_count == before, number
        train(model, inputs, optimizers[0]), train(eager, inputs, optimizers[1])
        assert counter.frame_count == before + 1, number
        same(inner(model), eager, rtol=1e-4, atol=1e-5)


def test_without_rewrapping_a_model_is_compiled_a_few_times_only():
    """What ``rewrap`` is for: guards alone do it, up to a limit."""
    model, inputs = build("mlp", batch=8)
    counter = CompileCounterWithBackend("eager")
    model = torch.compile(model, backend=counter)
    counts = []
    with torch._dynamo.config.patch(recompile_limit=3):
        for _ in range(5):
            model(inputs)
            counts.append(counter.frame_count)
            operate(anatomy_of(model, inputs)["0"], WeakExpand(grow=0.1))
        assert counts == [1, 2, 3, 3, 3]
        rewrap(model)(inputs)
    assert counter.frame_count == 4


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_trial_leaves_compiled_code_valid(how):
    model, inputs = chain("mlp", batch=8)
    counter = CompileCounterWithBackend("eager")
    model = compiled(model, how, backend=counter)
    before = model(inputs)
    with trial_surgery(MinWeight(keep=0.5).propose(anatomy_of(model, inputs)["0"])):
        model(inputs)
        assert counter.frame_count == 2
    assert torch.equal(model(inputs), before) and counter.frame_count == 2


@pytest.mark.parametrize("part", ["", "0"])
def test_an_anatomy_under_forced_eager_compiles_nothing(part):
    """Of a model, or of one of its modules, that was compiled in place."""
    part_of_it, inputs = chain("cnn")
    model = Chain(part_of_it)
    plain = Anatomy(model, inputs)
    counter = CompileCounterWithBackend("eager")
    model.get_submodule(part).compile(backend=counter)
    model(inputs)
    compiled_before = counter.frame_count
    anatomy = anatomy_of(model, inputs)
    operate(anatomy["0.8"], MinWeight(keep=0.5))
    assert compiled_before == counter.frame_count == 1
    assert list(anatomy) == list(plain) and anatomy.pinned == plain.pinned
    assert rewrap(model) is model
    model(inputs)
    assert counter.frame_count == 2


def test_sharded_networks_are_refused():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(SurgeryError, match="operate before it is sharded"):
        inner(DataParallel(FullyShardedDataParallel()))


#: How DistributedDataParallel is made: what it is around and its settings.
DDP_FORMS = {
    "plain": (False, {}),
    "settings": (False, {
        "bucket_cap_mb": 1, "find_unused_parameters": True, "gradient_as_bucket_view": True, "broadcast_buffers": False,
    }),
    "static graph": (False, {"static_graph": True}),
    "around a compiled model": (True, {}),
}  # fmt: skip


def train_on(model, batch, optimizer, set_to_none=True):
    for _ in range(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss(model, batch).backward()
        optimizer.step()


def operate_on(model, inputs, optimizer):
    """The first layer grows by copies, the second one shrinks; the last one is not touched."""
    anatomy = anatomy_of(model, inputs)
    operate(anatomy["0"], WeakExpand(grow=0.5), optimizer)
    operate(anatomy["2"], MinWeight(keep=0.5), optimizer)


def process(rank, folder):
    """One of two: trains on its half of the batch, operates, rewraps, trains; writes what became of the weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, (compile_it, settings) in DDP_FORMS.items():
        model, inputs = build("mlp", torch.float64, batch=8)
        model.register_buffer("seen", torch.zeros(3))
        half = inputs[rank * 4 : rank * 4 + 4]
        network = torch.compile(model, backend="eager") if compile_it else model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            old = DistributedDataParallel(network, **settings)
        if name == "settings":
            old.register_comm_hook(None, allreduce_hook)
            old.eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        train_on(old, half, optimizer, set_to_none=False)
        operate_on(old, inputs, optimizer)
        new = rewrap(old)
        train_on(new, half, optimizer, set_to_none=False)
        assert new is not old and new.module is network and inner(new) is model and new.training == old.training
        for key in ("find_unused_parameters", "gradient_as_bucket_view", "broadcast_buffers", "static_graph",
                    "bucket_bytes_cap", "process_group", "_comm_hooks"):  # fmt: skip
            assert getattr(new, key) == getattr(old, key), key
        outer = torch.compile(new, backend="eager")
        operate(anatomy_of(outer, inputs)["2"], WeakExpand(grow=1.0), optimizer)
        again = rewrap(outer)
        assert type(again) is type(outer) and again._orig_mod is not new and again._orig_mod.module is network
        train_on(again, half, optimizer)
        found[name] = [(p.detach(), p.grad.clone()) for p in model.parameters()]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_on_as_one(tmp_path):
    """Weights and gradients are equal on both ranks, and those of one process with the whole batch."""
    running = torch.multiprocessing.spawn(process, args=(str(tmp_path),), nprocs=2, join=False)
    try:
        end = time.monotonic() + 120
        while not running.join(timeout=1):
            assert time.monotonic() < end, "the two processes do not come to an end"
    finally:
        for each in running.processes:
            each.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model, inputs = build("mlp", torch.float64, batch=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train_on(model, inputs, optimizer)
    operate_on(model, inputs, optimizer)
    train_on(model, inputs, optimizer)
    operate(anatomy_of(model, inputs)["2"], WeakExpand(grow=1.0), optimizer)
    train_on(model, inputs, optimizer)
    for name in DDP_FORMS:
        for one, other, parameter in zip(first[name], second[name], model.parameters(), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
            torch.testing.assert_close(one[0], parameter.detach(), msg=name)
            torch.testing.assert_close(one[1], parameter.grad, msg=name)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_hooks_that_cannot_be_taken_back_are_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(build("mlp")[0])
        model.mixed_precision = object()
        with pytest.raises(SurgeryError, match=r"use torch\.autocast"):
            rewrap(model)
    finally:
        dist.destroy_process_group()

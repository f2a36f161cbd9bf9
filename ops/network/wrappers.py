"""Wrappers around a network: ``inner`` reaches through them for surgery, ``rewrap`` makes them right after it.

    anatomy = Anatomy(inner(model), example)
    operate(anatomy["fc1"], MinWeight(keep=0.5), optimizer)
    model = rewrap(model)

What surgery leaves to be done, by wrapper:

``torch.compile(model)`` and ``model.compile()``
    Compiled code is guarded by the shapes of the parameters, so the next call compiles anew, and after
    ``trial_surgery`` the old code serves again, with no help. But torch compiles a function only 8 times
    (``torch._dynamo.config.recompile_limit``): then it runs it uncompiled with no more than a warning, or fails where
    ``fullgraph=True``. Code for sizes that are gone counts too; ``rewrap`` forgets it.
``DistributedDataParallel``
    Gradients are sent in buckets that were cut when it was made, from hooks on how gradients were accumulated then.
    Both belong to the old sizes: a wrapper that is kept leaves the gradients of one step unsent and then fails, with a
    word about unused parameters. ``rewrap`` makes a new one. Taking an anatomy, and whatever else tries an edit and
    takes it back, leaves the old one without its hooks, too: gradients stay unsent without a word until ``rewrap``.
``DataParallel``, ``AveragedModel``
    The first copies its network to the devices at every call, the second holds nothing but an average: nothing.

The optimizers hold parameters, not wrappers, and stay as they are.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops.errors import SurgeryError

#: Settings that DistributedDataParallel keeps under the names of its arguments (later versions of torch have more).
DDP_SETTINGS = (
    "device_ids", "output_device", "dim", "find_unused_parameters", "gradient_as_bucket_view", "static_graph",
    "skip_all_reduce_unused_params", "batched_grad_copy", "lazy_bucket_allocation",
)  # fmt: skip


def inner(model: nn.Module) -> nn.Module:
    """The network inside torch.compile's module, DistributedDataParallel, DataParallel and AveragedModel (whose network
    is the average), in any nesting.

    Raises:
        SurgeryError: it is no network, or it is fully sharded, so that no process has a whole unit.
    """
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"a network is a torch.nn.Module, not {model!r:.60}")
    wrapped = _unwrap(model)
    return model if wrapped is None else inner(wrapped)


def rewrap(model: nn.Module) -> nn.Module:
    """The model to go on with after surgery: the same network in wrappers that know its new sizes.

    Compiled models stay themselves; all compiled code of this process is forgotten (``torch.compiler.reset``, which
    cannot be had for one model), to be compiled at the next call. For DistributedDataParallel a new one is returned
    with the same settings and communication hooks; every process must call this, after the *same* plans (proposed from
    the same weights and the same batch), while no backward pass is under way. It compares shapes between the processes
    and sends rank 0's weights to all. Hooks on the wrapper itself, rather than on the network, are to be set anew.

    Raises:
        SurgeryError: a DistributedDataParallel of mixed precision or delayed reduction, whose hooks on the network
            cannot be taken back.
    """
    inner(model)  # complains of what is no network
    if any(_is_compiled(module) for module in model.modules()):
        torch.compiler.reset()
    return _renew(model)


def is_distributed(model: nn.Module) -> bool:
    """Whether there is a DistributedDataParallel around the network."""
    return any(isinstance(module, DistributedDataParallel) for module in model.modules())


def invalidate_guards(modules: Iterable[nn.Module]) -> None:
    """Makes compiled code compare the shapes of these modules' parameters at its next call.

    Before torch 2.12 the guards take it that a parameter is as it was while nobody has written to the dictionary of its
    module. So each one is taken out and put back.
    """
    for module in modules:
        for name, parameter in list(module._parameters.items()):
            module._parameters[name] = None
            module._parameters[name] = parameter


def _renew(model: nn.Module) -> nn.Module:
    wrapped = _unwrap(model)
    if wrapped is None:
        return model
    renewed = _renew(wrapped)
    if isinstance(model, DistributedDataParallel):
        return _ddp(model, renewed)
    if renewed is wrapped:
        return model
    if isinstance(model, (DataParallel, AveragedModel)):
        model.module = renewed
        return model
    compiler: Any = model.dynamo_ctx  # with the settings that the model was compiled with
    return compiler(renewed)


def _unwrap(model: nn.Module) -> nn.Module | None:
    """What this wrapper wraps, None where it is none."""
    if {"FullyShardedDataParallel", "FSDPModule"} & {kind.__name__ for kind in type(model).__mro__}:
        raise SurgeryError(
            f"{type(model).__name__} has cut the units of its network into shards: operate before it is sharded, or "
            "use DistributedDataParallel"
        )
    if isinstance(model, (DistributedDataParallel, DataParallel, AveragedModel)):
        return model.module
    return model._modules["_orig_mod"] if "_orig_mod" in model._modules else None  # noqa: SIM401 (of scripted modules)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def _ddp(model: DistributedDataParallel, module: nn.Module) -> DistributedDataParallel:
    """A new DistributedDataParallel around a module, with the settings of this one."""
    if model.mixed_precision is not None or model._delay_all_reduce_params:
        raise SurgeryError(
            "DistributedDataParallel with mixed_precision or delayed reduction leaves hooks on its network that cannot "
            "be taken back: operate before it is made, or use torch.autocast"
        )
    accepted = inspect.signature(DistributedDataParallel).parameters
    settings = {name: getattr(model, name) for name in DDP_SETTINGS if name in accepted}
    if not model.bucket_bytes_cap_default:
        settings["bucket_cap_mb"] = model.bucket_bytes_cap / 2**20
    if getattr(model, "bucket_bytes_cap_list", None):
        settings["bucket_cap_mb_list"] = [size / 2**20 for size in model.bucket_bytes_cap_list]
    if hasattr(model, "device_mesh"):
        settings["device_mesh"] = model.device_mesh
    else:
        settings["process_group"] = model.process_group
    if not model.broadcast_buffers:
        settings["broadcast_buffers"] = False
    with warnings.catch_warnings():  # its successor would send rank 0's buffers once
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        renewed = DistributedDataParallel(module, **settings)
    for hook, state in model._comm_hooks:
        renewed.register_comm_hook(state, hook)
    renewed.training = model.training
    return renewed

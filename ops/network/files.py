"""Files of altered networks, without pickle: the architecture as plain data and the weights, with a checksum."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from network_surgery.ops.errors import SurgeryError, explained, first_line, pass_on_memory, reason_of
from network_surgery.ops.network import sealed
from network_surgery.ops.network.architecture import CARRIED, Description, adopt, describe, passing
from network_surgery.ops.network.checks import check_real
from network_surgery.ops.network.expressed import expressions_of, tensors_of
from network_surgery.ops.network.optimizer_state import exchange
from network_surgery.ops.network.wrappers import inner

FORMAT = 1
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a network with its architecture and weights to a file with a checksum that holds no code (see ``load``).

    Its size does not depend on its name. ``torch.load`` reads it, too.

    Raises:
        SurgeryError: it cannot be written.
    """
    model = inner(model)
    check_real(model)
    if not isinstance(path, (str, Path)) and not callable(getattr(path, "write", None)):
        raise SurgeryError(f"{path!r:.60} cannot be written: a network is saved to a path or an open file")
    content = {"format": FORMAT, "architecture": describe(model), "weights": {**model.state_dict(), **passing(model)}}
    try:
        if isinstance(path, (str, Path)):
            with open(path, "wb") as file:
                sealed.write(content, file)
        else:
            sealed.write(content, path)
    except Exception as error:  # no path, no room, what a module adds to its state_dict, …
        raise SurgeryError(f"{path} cannot be written: {first_line(error)}") from error


def saved_bytes(model: nn.Module) -> int:
    """How many bytes the file has that ``save`` writes of a network; it is written to memory to see.

    Beside the tensors (a plan's ``bytes_after``) there are their names and the architecture: a few hundred bytes each.
    """
    file = io.BytesIO()
    save(model, file)  # type: ignore[arg-type]
    return file.getbuffer().nbytes


def tensor_bytes(model: nn.Module) -> int:
    """How many bytes the tensors take that ``save`` writes."""
    beside = [tensor for each in expressions_of(model).values() for tensor in each.held()]
    return sum(each.numel() * each.element_size() for each in (*beside, *(tensor for _, tensor in tensors_of(model))))


def load(factory: Callable[[], Model], path: str | Path, device: torch.device | str = "cpu") -> Model:
    """A network that ``save`` wrote: what ``factory`` makes, at the sizes and with the weights of the file.

    ``factory`` makes the network as it was before any surgery; nothing in the file is executed.

    Raises:
        SurgeryError: the file is not one that ``save`` wrote, not as it was written, or of another network than the
            factory's.
    """
    if not callable(factory) or isinstance(factory, nn.Module):
        kind = type(factory).__name__
        raise SurgeryError(f"load(factory, path): the factory must be a function that makes the network, not a {kind}")
    content = read(path)
    with explained("the factory cannot make the network"):
        model = factory()
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"the factory must return the network as it was before any surgery, not {model!r:.60}")
    with explained(f"the network cannot be moved to {device!r}"):
        model = model.to(device)
    try:
        adopt(model, content["architecture"])
        fill(model, content["weights"], content["architecture"])
    except Exception as error:  # what another program has written can fail in any way
        pass_on_memory(error)
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
        raise SurgeryError(f"{path} is not of the network that the factory makes: {reason:.300}") from error
    return model


def read(path: str | Path) -> dict[str, Any]:
    """What ``save`` wrote: ``architecture`` and ``weights``, on the host.

    Raises:
        SurgeryError: the file is not one that ``save`` wrote, or not as it was written.
    """
    try:
        content = sealed.read(path)
    except FileNotFoundError:
        raise SurgeryError(f"{path} does not exist") from None
    except sealed.Damaged as error:
        raise SurgeryError(f"{path} is not a saved network: {error}") from error
    except (OSError, TypeError, AttributeError, ValueError) as error:  # a folder, no path, …
        raise SurgeryError(f"{path} cannot be read: {reason_of(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SurgeryError(f"{path} is not a network that ops.save wrote in the format {FORMAT}")
    weights = content.get("weights")
    whole = isinstance(weights, dict) and all(isinstance(tensor, Tensor) for tensor in weights.values())
    if not whole or not isinstance(content.get("architecture"), dict):
        raise SurgeryError(f"{path} is not a network that ops.save wrote: it lacks its architecture or its weights")
    return content


def fill(model: nn.Module, weights: Mapping[str, Tensor], description: Description | None = None) -> None:
    """Gives a network of the right shapes these weights and buffers, in their precision.

    ``description``: of the network that they are of; buffers that only that one has are registered.

    Raises:
        RuntimeError: a tensor is missing, is unknown or has another shape.
    """
    here, modules = dict(tensors_of(model)), dict(model.named_modules())
    for name, kept in (description or {}).get("buffers", {}).items():
        if name not in here and name in weights:
            path, _, attribute = name.rpartition(".")
            modules[path].__dict__.pop(attribute, None)  # such as None, until the first forward pass
            device = next((tensor.device for tensor in here.values()), weights[name].device)
            modules[path].register_buffer(attribute, weights[name].to(device, copy=True), persistent=bool(kept))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in weights and weights[name].dtype != tensor.dtype:
            exchange(tensor, tensor.data.to(weights[name].dtype))
    buffers = passing(model)
    model.load_state_dict({name: w for name, w in weights.items() if name not in buffers and name != CARRIED})
    for name, buffer in buffers.items():
        if name in weights:
            buffer.data.copy_(weights[name])

"""What training starts from: the weights of a file, of torchvision, or of the factory, laid over a fresh network.

A file holds no code: torch's are read with ``weights_only=True``, the others are safetensors. What ``ops.save`` wrote
has its architecture, so that a network that surgery left goes on. The tensors that a fresh network keeps are those of
an output of another size; anything else that does not fit is an error.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from network_surgery.ops import SurgeryError, adopt
from network_surgery.ops.errors import first_line
from network_surgery.ops.network import sealed
from network_surgery.ops.network.architecture import Description
from network_surgery.ops.network.expressed import tensors_of
from network_surgery.ops.network.files import fill
from network_surgery.ops.network.wrappers import inner
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task.check import fresh
from network_surgery.study.task.task import Task

#: Where a file of torch keeps the weights, if it holds more than them.
KEYS = ("state_dict", "model_state_dict", "model", "weights")
#: What wrappers put before the names of a network's tensors.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: Tensors that an error or a note names at most.
FEW = 4
#: What the files begin with that torch writes since 1.6.
ZIP = b"PK\x03\x04"
INDEX = "model.safetensors.index.json"
#: Layers of a weight matrix.
DENSE = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Start:
    """Weights to start from. ``source``: where they are from, in words. ``architecture``: of a network that
    ``ops.save`` wrote. Of a ``factory`` the network brings its weights along.
    """

    source: str
    weights: Mapping[str, Tensor]
    architecture: Description | None = None
    factory: bool = False

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint: equal for equal tensors of equal names, 16 hexadecimal digits."""
        words = hashlib.blake2b(json.dumps(self.architecture, sort_keys=True).encode(), digest_size=8)
        for name, tensor in sorted(self.weights.items()):
            words.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            if tensor.numel():
                words.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return words.hexdigest()

    def lay(self, model: nn.Module) -> str:
        """Gives a fresh network these weights; returns a sentence about what they are and which tensors stay fresh.

        Raises:
            StudyError: they are of another network.
        """
        if self.factory:
            return f"training starts from {self.source}"
        try:
            if self.architecture is not None:
                adopt(model, self.architecture)
                fill(inner(model), self.weights, self.architecture)
                return f"training starts from {self.source}, at the sizes that it has there"
        except (SurgeryError, RuntimeError) as error:
            raise StudyError(f"{self.source} is of another network: {first_line(error)}") from error
        return self._lay(inner(model))

    def _lay(self, model: nn.Module) -> str:
        here = model.state_dict(keep_vars=True)
        given = _by_name(self.weights, here)
        tied: dict[int, list[str]] = {}
        for name, tensor in here.items():
            tied.setdefault(id(tensor), []).append(name)
        found = {
            name: next((given[other] for other in tied[id(tensor)] if other in given), None)
            for name, tensor in here.items()
        }
        odd = {name: value for name, value in found.items() if value is not None and value.shape != here[name].shape}
        heads = _heads(model, odd)
        missing = [n for n, value in found.items() if value is None and not n.endswith("num_batches_tracked")]
        wrong = [n for n in odd if n not in heads]
        for name, value in found.items():
            if value is not None and _kind(value) != _kind(here[name]):  # quantized codes, say
                kind = f"{_kind(value)} numbers ({str(value.dtype).removeprefix('torch.')})"
                raise StudyError(
                    f"{self.source}: {name} holds {kind}, and {_kind(here[name])} ones in the network; save those"
                )
        if missing or wrong:
            sizes = [f"{n} is {_size(odd[n])} there and {_size(here[n])} in the network" for n in wrong]
            reasons = [_short(sizes, "; ")] * bool(sizes) + [f"it lacks {_short(missing)}"] * bool(missing)
            raise StudyError(f"{self.source} is of another network: {'; '.join(reasons)}")
        with torch.no_grad():
            for name, tensor in here.items():
                value = found[name]
                if value is not None and name not in odd:
                    tensor.copy_(value)
        if getattr(model, "transform_input", None) is False and self.source.startswith("torchvision"):
            model.transform_input = True  # type: ignore[assignment]  # these weights were trained on other means and deviations
        unused = [name for name in given if name not in here]
        note = f"training starts from {self.source}"
        note += f"; fresh, as of another size: {_short([f'{n} {_size(here[n])}' for n in odd])}" if odd else ""
        return note + (f"; not in the network: {_short(unused)}" if unused else "")


def load(settings: Settings, task: Task) -> Start | None:
    """What these settings start from; None for a fresh network.

    Raises:
        StudyError: it cannot be read or fetched, is no set of weights, is not finite, or is not what the study
            (``start_digest``) began with.
    """
    if settings.start == "factory":
        values = brought(task)
        if not values:
            raise StudyError("start is 'factory', but the network's factory brings no weights: each seed gives others")
        start: Start | None = Start(f"the weights of its factory ({len(values)} tensors)", values, factory=True)
    else:
        start = of_model(settings)
    if start is not None and settings.start_digest not in (None, start.digest):
        raise StudyError(
            f"{start.source} has the fingerprint {start.digest}, but this study began with {settings.start_digest}: "
            "the weights have changed"
        )
    return start


def of_model(settings: Settings) -> Start | None:
    """What these settings start from where that does not depend on the task: a file, or torchvision.

    Raises:
        StudyError: as ``load``.
    """
    if settings.start in ("none", "factory"):
        return None
    if settings.start == "torchvision":
        return _torchvision(settings.model)
    return _read(Path(settings.start), _stamp(Path(settings.start)))


def settle(settings: Settings, task: Task) -> Settings:
    """The settings that a new study keeps: with the fingerprint of what it starts from. A factory that brings weights
    is a start, too.

    Raises:
        StudyError: as ``load``.
    """
    if settings.start == "none" and brought(task):
        settings = replace(settings, start="factory")
    start = load(settings, task)
    if start is None:
        return settings
    usual = type(settings)().arms
    arms = (*usual, "operate_first", "operate_first_flops") if settings.arms == usual else settings.arms
    return replace(settings, start_digest=start.digest, arms=arms)


def note(settings: Settings, task: Task) -> str:
    """A sentence about what training starts from; none for a fresh network."""
    start = load(settings, task)
    if start is None:
        return ""
    with torch.random.fork_rng(devices=[]):
        return start.lay(fresh(task)) + "."


def brought(task: Task) -> dict[str, Tensor]:
    """The parameters that a task's network has whatever the seed is, and that are not constant: weights that its
    factory brings along. Buffers with them, if there are any. Leaves the random state as it was.
    """
    if not _anyones(task):
        return {}
    with torch.random.fork_rng(devices=[]):
        made = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            made.append(fresh(task))
    return same(*made)


def numbers(task: Task) -> dict[str, Tensor]:
    """The tensors of one number that a task's network has before its factory loads weights, if by ``load_state_dict``.

    Nothing else says what such a number was: a scale begins at 1, a gate at 0. Leaves the random state as it was.
    """
    load = nn.Module.load_state_dict
    nn.Module.load_state_dict = lambda *_, **__: _IncompatibleKeys([], [])  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng(devices=[]):
            model = fresh(task)
    except StudyError:  # a factory that needs what it loads
        return {}
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
    return {name: tensor.detach() for name, tensor in tensors_of(model) if tensor.numel() == 1}


def same(model: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """The trained tensors that two networks have in common: equal and not constant.

    None without a parameter that learns, or a frozen weight of a linear or convolutional layer (a backbone's). What
    else is frozen may be a constant of the network, such as positions.
    """
    others = dict(tensors_of(other))
    equal = {
        name: tensor.detach().clone()
        for name, tensor in tensors_of(model)
        if name in others and tensor.shape == others[name].shape and tensor.numel() > 1
        and not bool((tensor == tensor.flatten()[0]).all()) and torch.equal(tensor, others[name])
    }  # fmt: skip
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    learns |= {f"{path}.weight".lstrip(".") for path, module in model.named_modules() if isinstance(module, DENSE)}
    return equal if learns & set(equal) else {}


def _anyones(task: Task) -> bool:
    """Whether the network is of a factory of anyone's: ours and torchvision's draw every weight."""
    network = getattr(task, "network", "")
    return not (network in models.MODELS or str(network).startswith("torchvision:"))


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What says that files are as they were: name, size and time of each."""
    try:
        files = sorted(path.glob("*.safetensors*")) if path.is_dir() else [path]
        return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError:
        return ()


@functools.lru_cache(maxsize=1)
def _read(path: Path, stamp: object) -> Start:
    """A file or folder, read once in a process for as long as its ``stamp`` is the same."""
    try:
        if path.is_dir():
            return _check_finite(Start(str(path), _folder(path)))
        if not path.exists():
            raise StudyError(
                f"start is {str(path)!r}, but there is no such file or folder; give one, or torchvision, or none"
            )
        if path.suffix == ".safetensors":
            return _check_finite(Start(str(path), _safetensors(path)))
        return _check_finite(_torch(path))
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror or first_line(error)}") from None


def _torch(path: Path) -> Start:
    try:
        with path.open("rb") as file:
            if file.read(len(ZIP)) == ZIP:  # torch does not look at checksums, and older files have none
                sealed.check(file)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        if "weights_only" in str(error) and "GLOBAL" in str(error).upper():
            raise StudyError(
                f"{path} holds objects, not only tensors, and is not opened, since that could run code; "
                "save model.state_dict() instead"
            ) from None
        reason = "" if isinstance(error, pickle.UnpicklingError) else f": {first_line(error):.120}"
        raise StudyError(f"{path} is damaged, or no file that torch.save wrote{reason}") from None
    if isinstance(content, dict) and isinstance(content.get("architecture"), dict) and "weights" in content:
        return Start(str(path), content["weights"], content["architecture"])
    for key in KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise StudyError(
            f"{path} holds no state_dict, but a {type(content).__name__}; save model.state_dict(), or a dict that has "
            f"it under one of {', '.join(KEYS)}"
        )
    return Start(str(path), {str(name): value for name, value in content.items() if isinstance(value, Tensor)})


def _folder(path: Path) -> dict[str, Tensor]:
    """``model.safetensors``, or its shards by their index, as transformers writes them."""
    if (path / "model.safetensors").is_file():
        return _safetensors(path / "model.safetensors")
    if not (path / INDEX).is_file():
        raise StudyError(f"the folder {path} has neither model.safetensors nor {INDEX}")
    try:
        shards = sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))
        inside = [path / Path(shard).name for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StudyError(f"{path / INDEX} is damaged: it has no weight_map from tensors to files") from None
    for shard in inside:
        if not shard.is_file():
            raise StudyError(f"{path / INDEX} names {shard.name}, which is missing")
    return {name: tensor for shard in inside for name, tensor in _safetensors(shard).items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise StudyError(f"{path} needs the package safetensors: pip install safetensors") from None
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # its own kind of error, for whatever is wrong
        raise StudyError(f"{path} is damaged, or no file of safetensors: {first_line(error)}") from None


@functools.lru_cache(maxsize=1)
def _torchvision(model: str) -> Start:
    kind, _, name = model.partition(":")
    if kind != "torchvision":
        raise StudyError(
            f"start is torchvision, but the model is {model!r}; give --model torchvision:NAME, or a file to start from"
        )
    import torchvision
    from filelock import FileLock

    weights = torchvision.models.get_model_weights(name).DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "network-surgery.lock"):
            return Start(f"torchvision's {weights}", weights.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # no network, no room, a file cut off
        raise StudyError(
            f"the weights {weights} of torchvision are neither in {folder} nor could they be fetched from "
            f"{weights.url} ({first_line(error)})"
        ) from None


def _check_finite(start: Start) -> Start:
    """Raises StudyError where a tensor is not finite, or holds its values in another way than networks do."""
    for name, tensor in start.weights.items():
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
            raise StudyError(f"{start.source}: {name} is a {kind} tensor; save dense values, such as tensor.to_dense()")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StudyError(f"{start.source}: {name} is not finite everywhere, so nothing can start from it")
    return start


def _by_name(weights: Mapping[str, Tensor], here: Iterable[str]) -> dict[str, Tensor]:
    """The weights by the network's names: without what a wrapper put before all of them, if more fit then."""
    best, names = dict(weights), set(here)
    tried = best
    while prefix := next((p for p in PREFIXES if tried and all(name.startswith(p) for name in tried)), None):
        tried = {name.removeprefix(prefix): tensor for name, tensor in tried.items()}
        if len(names & set(tried)) > len(names & set(best)):
            best = tried
    return best


def _heads(model: nn.Module, odd: Mapping[str, Tensor]) -> set[str]:
    """Which of the tensors of another size are of an output: rows alone differ, and nothing that reads them does."""
    modules, found = dict(model.named_modules()), set()
    here = model.state_dict()
    for name, value in odd.items():
        path = name.rpartition(".")[0]
        weight = f"{path}.weight".lstrip(".")
        dense = isinstance(modules.get(path), DENSE) and weight in odd
        if dense and value.shape[1:] == here[name].shape[1:] and value.dim() == here[name].dim():
            found.add(name)
    return found if len(found) == len(odd) else set()


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _short(words: list[str], mark: str = ", ") -> str:
    return mark.join(words[:FEW]) + (f" and {len(words) - FEW} more" if len(words) > FEW else "")

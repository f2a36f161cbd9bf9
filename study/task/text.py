"""Text as bytes, and networks that predict the next one: a language model on files that are there already.

The bytes of all files of a set stand one after another and are cut into windows of ``context`` bytes; the targets of a
window are its bytes shifted by one. Files are split into train, validation and test whole, so that no set holds a part
of a file of another.
"""

from __future__ import annotations

import math
import os
import platform
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import make, theirs
from network_surgery.study.task.fingerprint import Fingerprint
from network_surgery.study.task.gpt import NETWORKS
from network_surgery.study.task.metric import Metric
from network_surgery.study.task.samples import Samples, Sets
from network_surgery.study.task.task import Task

#: A symbol is a byte.
VOCABULARY = 256
#: The files of each set are the same at every call.
SPLIT_SEED = 20
#: The fraction of the files that is tested on, where no folder says which.
TEST = 0.2
#: Folders of Python's standard library that are no part of it, or are tests, data and programs of their own.
LEFT_OUT = {
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
#: Positions (windows times bytes) that are evaluated together.
AT_ONCE = 16_384

BITS_PER_BYTE = Metric("bits per byte", "lower", margin=0.01)


class Windows(Samples):
    """``inputs`` and ``targets [n, context]`` uint8, the targets shifted by one."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """As int64, which an embedding takes."""
        return inputs.long()


@dataclass(frozen=True)
class Corpus:
    """The bytes of each set, and what they are called."""

    name: str
    train: bytes
    validation: bytes
    test: bytes


class TextTask(Task):
    """The next byte of a text: outputs ``[n, T, vocabulary]`` (or an object that has them as ``logits``).

    ``network``: its name for ``build``. ``windows``: the maximum number of training windows, validation included; they
    are spread evenly over the text, and the test windows are fewer by the same factor.

    Raises:
        StudyError: a set of the corpus is shorter than two windows.
    """

    metric = BITS_PER_BYTE
    unit = "windows"

    def __init__(self, corpus: Corpus, context: int = 128, network: str = "gpt", windows: int | None = None) -> None:
        self.context, self.network = context, network
        texts = [getattr(corpus, name) for name in ("train", "validation", "test")]
        self._fingerprint = Fingerprint.of(corpus.name, sum(map(len, texts)), texts)
        self.note = f"{self._fingerprint} in windows of {context} bytes"
        parts = {name: cut(getattr(corpus, name), context) for name in ("train", "validation", "test")}
        short = [name for name, part in parts.items() if len(part) < 2]
        if short:
            raise StudyError(
                f"the {short[0]} text of {corpus.name} has {len(getattr(corpus, short[0])):,} bytes, but two windows "
                f"of {context} bytes and the byte after them need {2 * context + 1:,}"
            )
        if windows is not None:
            kept = min(1.0, windows / (len(parts["train"]) + len(parts["validation"])))
            parts = {name: part.thinned(max(2, round(kept * len(part)))) for name, part in parts.items()}
        self._sets = Sets(**parts)

    @classmethod
    def of(cls, settings: Settings) -> TextTask:
        """The text and the network that these settings ask for. Raises StudyError as ``load``."""
        corpus = load(settings.data, settings.validation)
        if settings.train_on_validation:
            corpus = Corpus(corpus.name, corpus.train + corpus.validation, corpus.validation, corpus.test)
        return cls(corpus, settings.context, settings.model, settings.train_images)

    @property
    def at_once(self) -> int | None:  # type: ignore[override]
        """Networks of ours look at many windows at a time."""
        return max(1, AT_ONCE // self.context) if self.network in NETWORKS else None

    def load(self) -> Sets:
        return self._sets

    def fingerprint(self) -> Fingerprint:
        """Of the whole corpus, however many windows of it there are."""
        return self._fingerprint

    def resplit(self, seed: int) -> TextTask:
        raise StudyError(
            "split is 'seed', but text is split by whole files, the same for every seed; set split to 'fixed'"
        )

    def model(self) -> nn.Module:
        return build(self.network, VOCABULARY, self.context)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean cross entropy of the bytes of each window, in nats, ``[n]``."""
        losses = cross_entropy(scores(outputs).movedim(-1, 1), targets.long(), reduction="none")
        return losses.mean(dim=1)

    def measure(self, outputs: Any, targets: Tensor) -> Mapping[str, Tensor]:
        hits = scores(outputs).argmax(dim=-1) == targets
        return {
            "bits per byte": self.loss(outputs, targets).double() / math.log(2),
            "next-byte accuracy": hits.double().mean(dim=1),
        }


def scores(outputs: Any) -> Tensor:
    """The scores of a network's outputs: a tensor, or the ``logits`` of what transformers returns."""
    return outputs if isinstance(outputs, Tensor) else outputs["logits"]


def cut(text: bytes, context: int) -> Windows:
    """The whole windows of a text, one after another, as views of its bytes."""
    symbols = np.frombuffer(text, dtype=np.uint8)
    count = max(0, (len(symbols) - 1) // context)
    inputs, targets = (symbols[at : at + count * context].reshape(count, context) for at in (0, 1))
    return Windows(inputs, targets)


# -- the text ------------------------------------------------------------------------------------------------------


def load(name: str, validation: float) -> Corpus:
    """``stdlib``: the sources of Python's standard library on this machine; or ``folder:PATH``.

    A folder's text files (UTF-8) are split by file, or taken as they are split already, where ``PATH/train`` and
    ``PATH/test`` (and ``PATH/validation``, or not) are there. ``validation``: the fraction of the training files that
    schedules are chosen on.

    Raises:
        StudyError: an unknown name, a missing folder, a folder without text, or too few files to split.
    """
    kind, _, path = name.partition(":")
    try:
        if name == "stdlib":
            root = Path(sysconfig.get_paths()["stdlib"])
            files = [path for path in _files(root, LEFT_OUT) if path.suffix == ".py"]
            return _corpus(f"the standard library of Python {platform.python_version()}", root, files, validation)
        if kind == "folder" and path:
            return _folder(Path(os.path.expanduser(path)), validation)
    except OSError as error:
        raise StudyError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    raise StudyError(f"there is no text {name!r}; give 'stdlib' or 'folder:PATH'")


def _folder(root: Path, validation: float) -> Corpus:
    if not root.is_dir():
        raise StudyError(f"there is no folder {root}; text files must lie in it, or in {root}/train and {root}/test")
    parts = [part for part in ("train", "validation", "test") if (root / part).is_dir()]
    if not parts:
        return _corpus(root.name, root, _files(root), validation)
    for needed in ("train", "test"):
        if needed not in parts:
            raise StudyError(f"there is a folder {root / parts[0]}, but no folder {root / needed}; there must be both")
    files = {part: _files(root / part) for part in parts}
    for part, found in files.items():
        if not found:
            raise StudyError(f"the folder {root / part} holds no text file")
    if "validation" not in files:
        files["train"], files["validation"] = _split(files["train"], validation, root / "train")
    return _read(root.name, root, files)


def _corpus(name: str, root: Path, files: Sequence[Path], validation: float) -> Corpus:
    """A corpus of files that nobody has split yet."""
    if not files:
        raise StudyError(f"the folder {root} holds no text file")
    rest, test = _split(files, TEST, root)
    train, chosen_on = _split(rest, validation, root)
    return _read(name, root, {"train": train, "validation": chosen_on, "test": test})


def _split(files: Sequence[Path], fraction: float, root: Path) -> tuple[list[Path], list[Path]]:
    """Splits off a fraction of the files (at least one), the same at every call; both parts stay in order."""
    if len(files) < 2:
        raise StudyError(
            f"{root} has {len(files)} text file; it takes one at least for each of training, validation and test, or "
            "folders train, validation and test"
        )
    count = min(max(1, round(fraction * len(files))), len(files) - 1)
    away = set(np.random.default_rng(SPLIT_SEED).permutation(len(files))[:count].tolist())
    return (
        [path for number, path in enumerate(files) if number not in away],
        [path for number, path in enumerate(files) if number in away],
    )


def _files(root: Path, without: Sequence[str] | set[str] = ()) -> list[Path]:
    """The files below a folder by name, without what systems hide there."""
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _read(name: str, root: Path, files: Mapping[str, Sequence[Path]]) -> Corpus:
    """The bytes of the files of each set, one after another."""
    return Corpus(name, **{part: b"".join(_text(path, root) for path in paths) for part, paths in files.items()})


def _text(path: Path, root: Path) -> bytes:
    content = path.read_bytes()
    if b"\0" in content:
        raise StudyError(f"{path} is no text (it holds a byte of zero); keep text files alone in {root}")
    return content


# -- the network ---------------------------------------------------------------------------------------------------


def build(name: str, vocabulary: int, context: int) -> nn.Module:
    """A fresh network for windows of ``context`` symbols.

    ``name``: one of ``gpt.NETWORKS``; ``transformers:NAME_OR_FOLDER``, a causal language model of that configuration
    without its weights; or ``MODULE:FACTORY``, where MODULE is an importable module or a .py file and FACTORY takes
    ``(vocabulary, context)``, or nothing, and returns an ``nn.Module``. Nothing is downloaded.

    Raises:
        StudyError: no such network, a package that is missing, or a factory that fails or returns something else.
    """
    if name in NETWORKS:
        return NETWORKS[name](vocabulary, context)
    if name.startswith("transformers:"):
        return _transformers(name.removeprefix("transformers:"), vocabulary, context)
    if ":" not in name:
        raise StudyError(
            f"there is no model {name!r} of text; give one of {', '.join(NETWORKS)}, 'transformers:NAME_OR_FOLDER' or "
            "'MODULE:FACTORY'"
        )
    factory = theirs(name, "model")
    try:
        model = make(factory, vocabulary=vocabulary, context=context)
    except (Exception, SystemExit) as error:  # anyone's factory may fail in any way, or end the program
        pass_on_memory(error)
        raise StudyError(f"model {name!r} failed for windows of {context} bytes: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise StudyError(f"model {name!r} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def _transformers(name: str, vocabulary: int, context: int) -> nn.Module:
    """A causal language model of transformers, made anew of its configuration."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise StudyError(f"model 'transformers:{name}' needs transformers: pip install transformers") from None
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except Exception as error:
        raise StudyError(
            f"there is no configuration of {name!r} on this machine, and nothing is downloaded; give a folder with a "
            f"config.json, or a model that transformers has in its cache ({first_line(error)[:80]})"
        ) from error
    symbols = getattr(config, "vocab_size", None)
    if symbols is not None and symbols < vocabulary:
        raise StudyError(f"{name!r} has a vocabulary of {symbols}, but bytes need {vocabulary}; raise its vocab_size")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < context:
        raise StudyError(f"{name!r} has {positions} positions, but windows have {context} bytes; lower context")
    config.use_cache = False  # there is nothing to go on from, and surgery would have to follow it
    try:
        return AutoModelForCausalLM.from_config(config)
    except Exception as error:
        pass_on_memory(error)
        raise StudyError(f"{name!r} is no causal language model: {first_line(error)[:120]}") from error

"""Leaving this package: what the final network computes without it, by every way out, for every family of networks."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from network_surgery.ops import (
    Anatomy,
    MinWeight,
    PruneWeights,
    SurgeryError,
    WeakExpand,
    carry_architecture,
    constructor_arguments,
    free_attention,
    load,
    operate,
    save,
    without_surgery,
)

torch.manual_seed(0)
IMAGES, TOKENS, ROWS = torch.randn(4, 1, 8, 8), torch.randint(10, (4, 5)), torch.randn(4, 5, 8)


def cnn(first: int = 12, second: int = 8, groups: int = 4, wide: int = 24) -> nn.Module:
    """Batch norm, and a grouped convolution."""
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1, groups=groups), nn.ReLU(), nn.Flatten(),
        nn.Linear(second * 16, wide), nn.ReLU(), nn.Linear(wide, 4),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, wide: int, inside: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(wide, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        self.second = nn.Conv2d(inside, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.second(self.norm(self.first(x)).relu())).relu()


class ResNet(nn.Module):
    def __init__(self, stem: int = 8, inside: tuple[int, int] = (8, 12)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(stem, each) for each in inside))
        self.out = nn.Linear(stem, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.stem(x)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, embedded: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(10, embedded), nn.LSTM(embedded, hidden, 2, batch_first=True)
        self.out = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(x))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self, inside: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 4, each, dropout=0.0, batch_first=True) for each in inside)
        )
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).mean(1))


def operated(model: nn.Module, inputs: Tensor, masks: bool = False, heads: bool = True) -> nn.Module:
    """The network after an operation on every layer."""
    anatomy = Anatomy(model, inputs[:2])
    for place, name in enumerate(anatomy):
        if heads or "attn" not in name:
            operate(anatomy[name], WeakExpand(0.5) if place == 1 and not masks else MinWeight(0.5))
    if masks:
        operate(anatomy["*"], PruneWeights(0.5))
    return model.eval()


FAMILIES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "cnn": lambda: (operated(cnn(), IMAGES), IMAGES),
    "resnet": lambda: (operated(ResNet(), IMAGES), IMAGES),
    "lstm": lambda: (operated(Recurrent(), TOKENS), TOKENS),
    "transformer": lambda: (operated(Transformer(), ROWS), ROWS),
    "freed, heads kept": lambda: (operated(free_attention(Transformer()), ROWS, heads=False), ROWS),
    "freed, heads cut": lambda: (operated(free_attention(Transformer()), ROWS), ROWS),
    "masked cnn": lambda: (operated(cnn(), IMAGES, masks=True), IMAGES),
    "masked lstm": lambda: (operated(Recurrent(), TOKENS, masks=True), TOKENS),
    "carrying": lambda: (operated(carry_architecture(cnn()), IMAGES), IMAGES),
}
every = pytest.mark.parametrize("family", FAMILIES)
#: What no plain module can be.
STAY = ("freed, heads cut",)
#: A process in which this package cannot be imported; one for all tests. Modules of this file can, by the name they are
#: pickled under. Each line that it reads names a kind and a file; it answers with "right" or a traceback, as JSON.
ELSEWHERE = """
import json, os, sys, torch, traceback
sys.modules["network_surgery"] = None
sys.path.insert(0, ".")

def check(kind, path):
    os.chdir(os.path.dirname(path))
    inputs, expected = torch.load("data.pt", weights_only=True)
    if kind == "export":
        model = torch.export.load(path).module()
    elif kind == "jit":
        model = torch.jit.load(path)
    else:
        model = torch.load(path, weights_only=False)
    torch.testing.assert_close(model(inputs), expected)
    assert not any(name.startswith("network_surgery.") for name in sys.modules)

for line in sys.stdin:
    answer = "right"
    try:
        check(*json.loads(line))
    except BaseException:
        answer = traceback.format_exc()
    print(json.dumps(answer), flush=True)
"""

Elsewhere = Callable[[str, Path, Tensor, Tensor], None]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Loads a file in a process without this package, and compares what the network computes there."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-W", "ignore", "-c", ELSEWHERE]
    with subprocess.Popen(words, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        sent, answers = process.stdin, process.stdout
        assert sent is not None and answers is not None

        def check(kind: str, path: Path, inputs: Tensor, expected: Tensor) -> None:
            torch.save((inputs, expected.detach()), path.parent / "data.pt")
            sent.write(json.dumps([kind, str(path)]) + "\n")
            sent.flush()
            answer = json.loads(answers.readline())
            assert answer == "right", answer

        yield check


@every
def test_exported_it_runs_where_this_package_is_not(family: str, elsewhere: Elsewhere, tmp_path: Path) -> None:
    model, inputs = FAMILIES[family]()
    torch.export.save(torch.export.export(model, (inputs,)), tmp_path / "net.pt2")
    elsewhere("export", tmp_path / "net.pt2", inputs, model(inputs))


def test_an_export_may_take_batches_of_any_size(tmp_path: Path) -> None:
    for family in ("cnn", "freed, heads cut", "masked lstm"):
        model, inputs = FAMILIES[family]()
        exported = torch.export.export(model, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        more = torch.cat([inputs, inputs[:3]])
        assert_close(exported.module()(more), model(more))


@every
def test_traced_it_runs_where_this_package_is_not(family: str, elsewhere: Elsewhere, tmp_path: Path) -> None:
    model, inputs = FAMILIES[family]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, inputs, check_trace=False).save(tmp_path / "net.jit")
    elsewhere("jit", tmp_path / "net.jit", inputs, model(inputs))


@pytest.mark.filterwarnings("ignore")
@every
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx(family: str, dynamo: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    caplog.set_level(logging.ERROR)
    model, inputs = FAMILIES[family]()
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, (inputs,), path, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert_close(torch.from_numpy(found), model(inputs).detach(), rtol=1e-4, atol=1e-5)


@every
def test_the_copy_needs_nothing_of_ours(family: str) -> None:
    model, inputs = FAMILIES[family]()
    expected, before = model(inputs), [*model.state_dict()]
    if family in STAY:
        with pytest.raises(SurgeryError, match="self_attn has 2 heads with 4 keys and 6 values on inputs of width 8"):
            without_surgery(model)
        return
    copied = without_surgery(model)
    assert_close(copied(inputs), expected)
    data = pickle.dumps(copied)
    assert b"network_surgery" not in data
    assert_close(pickle.loads(data)(inputs), expected)
    assert [*model.state_dict()] == before
    assert not any("parametrizations" in name or "surgery" in name for name in copied.state_dict())
    assert all(kind.__module__.startswith(("torch.", __name__)) for kind in map(type, copied.modules()))


def test_elsewhere_notices_this_package_and_wrong_values(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """The check can fail."""
    layer = free_attention(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)).eval()
    torch.save(layer, tmp_path / "net.pt")
    with pytest.raises(AssertionError, match="network_surgery"):
        elsewhere("pickle", tmp_path / "net.pt", ROWS, layer(ROWS))
    torch.save(without_surgery(layer), tmp_path / "net.pt")
    with pytest.raises(AssertionError, match="not close"):
        elsewhere("pickle", tmp_path / "net.pt", ROWS, layer(ROWS) + 1)


def test_a_pickled_copy_loads_where_this_package_is_not(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Masks and all, of classes of torch alone."""
    model, inputs = FAMILIES["masked cnn"]()
    torch.save(without_surgery(model), tmp_path / "net.pt")
    elsewhere("pickle", tmp_path / "net.pt", inputs, model(inputs))
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    layer = operated(free_attention(layer), ROWS, heads=False)
    torch.save(without_surgery(layer), tmp_path / "layer.pt")
    elsewhere("pickle", tmp_path / "layer.pt", ROWS, layer(ROWS))


def test_the_copy_trains_as_the_network_does() -> None:
    model, inputs = FAMILIES["freed, heads kept"]()
    copied = without_surgery(model)
    for each in (model, copied):
        each.train()(inputs).square().mean().backward()
    for name, parameter in copied.named_parameters():
        assert_close(parameter.grad, model.get_parameter(name).grad)


def test_a_factory_takes_the_sizes() -> None:
    """Those of ``constructor_arguments``, read by hand, as its user would."""
    model, inputs = FAMILIES["masked cnn"]()
    found = constructor_arguments(model, cnn())
    first, second, last = found["0"]["out_channels"], found["3"]["out_channels"], found["6"]["out_features"]
    assert found["1"] == {"num_features": first} and found["8"] == {"in_features": last}
    again = cnn(first, second, found["3"].get("groups", 4), last).eval()
    again.load_state_dict(without_surgery(model).state_dict())
    assert_close(again(inputs), model(inputs))

    model, inputs = FAMILIES["resnet"]()
    found = constructor_arguments(model)
    inside = tuple(found[f"blocks.{place}.first"]["out_channels"] for place in (0, 1))
    again = ResNet(found["stem"]["out_channels"], inside).eval()
    again.load_state_dict(model.state_dict())
    assert_close(again(inputs), model(inputs))

    model, inputs = FAMILIES["lstm"]()
    found = constructor_arguments(model)
    again = Recurrent(found["embed"]["embedding_dim"], found["lstm"]["hidden_size"]).eval()
    again.load_state_dict(model.state_dict())
    assert_close(again(inputs), model(inputs))


@every
def test_arguments_make_every_module_anew(family: str) -> None:
    """Each of torch's modules, made by its class from these arguments and what it had, takes the weights."""
    model, _ = FAMILIES[family]()
    model = model if family in STAY else without_surgery(model)
    for name, arguments in constructor_arguments(model).items():
        module: Any = model.get_submodule(name)
        kept: dict[str, Any] = {}
        if isinstance(module, nn.Conv2d):
            kept = {"kernel_size": module.kernel_size, "bias": module.bias is not None}
        if isinstance(module, nn.LSTM):
            kept = {"num_layers": module.num_layers}
        type(module)(**kept, **arguments).load_state_dict(module.state_dict())
        for argument, value in arguments.items():
            assert getattr(module, argument) == value


def test_nothing_has_changed_where_nothing_was_done() -> None:
    assert constructor_arguments(cnn(), cnn()) == {} and constructor_arguments(nn.ReLU()) == {}


@every
def test_a_saved_file_is_plain_torch(family: str, tmp_path: Path) -> None:
    """``ops.save`` writes a dict with ``weights``, a state_dict, that torch alone reads."""
    model, inputs = FAMILIES[family]()
    save(model, tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    assert_close(content["weights"], dict(model.state_dict()))
    if family == "carrying":
        assert_close(load(cnn, tmp_path / "net.pt").eval()(inputs), model(inputs))

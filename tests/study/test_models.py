"""Networks by name: what they return, and one clear sentence for every name and network that will not do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy
from network_surgery.study import models, references
from network_surgery.study.errors import StudyError

SHAPE = (3, 32, 32)

FACTORIES = '''
import torch
from torch import nn

def good(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 7), nn.ReLU(), nn.Linear(7, classes))

def raises(shape, classes):
    raise RuntimeError("no such\\nluck")

def silent(shape, classes):
    raise KeyError

def nothing(shape, classes):
    pass

def few(shape, classes):
    return good(shape, classes - 1)

class Named(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.scores = good(shape, classes)

    def forward(self, inputs):
        return {"scores": self.scores(inputs)}

class Auxiliary(Named):
    """Returns something else while it trains, as torchvision's googlenet does."""

    def forward(self, inputs):
        scores = self.scores(inputs)
        return (scores, scores) if self.training else scores

class Attentive(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.attention = nn.MultiheadAttention(shape[0] * shape[2], 4, batch_first=True)
        self.scores = nn.Linear(shape[0] * shape[2], classes)

    def forward(self, inputs):
        rows = inputs.transpose(1, 2).flatten(2)
        return self.scores(self.attention(rows, rows, rows)[0].mean(1))

number = 3
'''


@pytest.fixture(params=["file", "module"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Somebody's factories, as what comes before the colon: a .py file or an importable module."""
    path = tmp_path / "made_for_this_test.py"
    path.write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(path.stem, None)
    return str(path) if request.param == "file" else path.stem


def refusal(name: str, shape: tuple[int, int, int] = SHAPE) -> str:
    with pytest.raises(StudyError) as caught:
        models.build(name, shape, 10)
    message = str(caught.value)
    assert message and "\n" not in message and (repr(name) in message or "torchvision" in message)
    return message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small_cnn", (1, 8, 8)),
        ("small_cnn", (3, 5, 9)),
        ("mlp", (1, 8, 8)),
        ("mlp", (3, 5, 9)),
        ("vgg16", SHAPE),
        ("vgg16", (1, 16, 40)),
        ("lenet_300_100", (3, 5, 9)),
        ("lenet_5", (3, 16, 41)),
        ("torchvision:resnet18", SHAPE),
        ("torchvision:squeezenet1_1", SHAPE),
    ],
)
def test_a_network_returns_scores_and_can_be_trained(name: str, shape: tuple[int, int, int]) -> None:
    model = models.build(name, shape, 7)
    scores = model(torch.randn(2, *shape))
    assert scores.shape == (2, 7)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_size_that_the_docstring_claims() -> None:
    assert sum(p.numel() for p in models.build("small_cnn", (1, 8, 8), 10).parameters()) == 75_370


def test_the_thesis_s_network_has_its_layers() -> None:
    model = models.vgg16(SHAPE, 10)
    widths = [m.out_channels for m in model.children() if isinstance(m, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512]
    assert [m.out_features for m in model.children() if isinstance(m, nn.Linear)] == [2048, 2048, 1000, 10]


@pytest.mark.parametrize("name", ["small_cnn", "torchvision:resnet18"])
def test_a_network_depends_on_the_random_state_alone_and_trying_it_leaves_no_trace(name: str) -> None:
    states = []
    for build in (lambda: models.build(name, SHAPE, 10), lambda: models.build(name, SHAPE, 10)):
        torch.manual_seed(3)
        states.append((build().state_dict(), torch.get_rng_state()))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    means = [tensor for key, tensor in states[0][0].items() if key.endswith("running_mean")]
    counts = [tensor for key, tensor in states[0][0].items() if key.endswith("num_batches_tracked")]
    assert means and not any(tensor.any() for tensor in (*means, *counts))


def test_trying_draws_nothing_from_the_random_state() -> None:
    shape = (3, 64, 64)
    torch.manual_seed(3)
    models.build("torchvision:alexnet", shape, 10)  # it has dropout
    state = torch.get_rng_state()
    torch.manual_seed(3)
    models._torchvision("alexnet")(shape, 10)
    assert torch.equal(state, torch.get_rng_state())


def test_somebody_s_factory(theirs: str) -> None:
    model = models.build(f"{theirs}:good", SHAPE, 10)
    assert model.training and model(torch.zeros(4, *SHAPE)).shape == (4, 10)


def test_somebody_s_attention_is_freed(theirs: str) -> None:
    torch.manual_seed(0)
    model = models.build(f"{theirs}:Attentive", SHAPE, 10)
    torch.manual_seed(0)
    plain = references.theirs(f"{theirs}:Attentive", "model")(SHAPE, 10)
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(model(images), plain(images))
    assert Anatomy(model, images)["attention:heads"].units == 4


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("absent", "cannot be loaded: there is no 'absent' in made_for_this_test"),
        ("raises", "failed on images of 3 × 32 × 32: no such"),
        ("silent", "failed on images of 3 × 32 × 32: KeyError"),
        ("nothing", "made a NoneType, not a torch.nn.Module"),
        ("number", "failed on images of 3 × 32 × 32: 'int' object is not callable"),
        ("few", "must return scores of shape (2, 10) for 2 images, not (2, 9)"),
        ("Named", "must return scores of shape (2, 10) for 2 images, not dict"),
        ("Auxiliary", "must return scores of shape (2, 10) for 2 images, not tuple"),
        ("", "cannot be loaded: write it as MODULE:NAME or FILE.py:NAME"),
    ],
)
def test_somebody_s_factory_that_will_not_do(theirs: str, factory: str, reason: str) -> None:
    assert refusal(f"{theirs}:{factory}").removesuffix(".py") == f"model {f'{theirs}:{factory}'!r} {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def (", "invalid syntax"),
        ("import nothing_of_this_name", "No module named"),
        ("exit(3)", "sys.exit(3) was called"),
        ("1 / 0", "division"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert f"cannot be loaded: {reason}" in refusal(f"{path}:make")


def test_a_factory_may_take_nothing_and_import_what_lies_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "widths_beside.py").write_text("HIDDEN = 7\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom widths_beside import HIDDEN\n\n"
        "class Net(nn.Sequential):\n    def __init__(self, hidden=HIDDEN):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(192, hidden), nn.ReLU(), nn.Linear(hidden, 10))\n\n"
        "def wants_more(shape, classes, width):\n    return Net(width)\n\n"
        "def leaves(shape, classes):\n    raise SystemExit\n"
    )
    assert models.build(f"{tmp_path}/net.py:Net", (3, 8, 8), 10)[1].out_features == 7  # type: ignore[index]
    said = refusal(f"{tmp_path}/net.py:wants_more", (3, 8, 8))
    assert said.endswith("it is called with (shape, classes) or with nothing, but takes (shape, classes, width)")
    assert refusal(f"{tmp_path}/net.py:leaves", (3, 8, 8)).endswith("sys.exit() was called")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("net.py", "; of a file name the function, too: 'net.py:FACTORY'"),
        ("small_cn", "; did you mean 'small_cnn'?"),
        ("", f"there is no model ''; give one of {', '.join(models.MODELS)}, 'torchvision:NAME' or 'MODULE:FACTORY'"),
        ("resnet", "there is no model 'resnet'"),
        ("Small_CNN", "there is no model"),
        ("no_such_module:make", "cannot be loaded: No module named 'no_such_module'"),
        ("/no/such/file.py:make", "cannot be loaded: [Errno 2] No such file"),
        (":", "cannot be loaded"),
        ("a:b:c", "cannot be loaded"),
        ("../net:make", "cannot be loaded"),
        ("os:no\nsuch", "cannot be loaded"),
        ("\0:x", "cannot be loaded"),
        ("torchvision:", "torchvision has no classification model ''"),
        ("torchvision:resnet", "torchvision has no classification model 'resnet'"),
        ("torchvision:fcn_resnet50", "torchvision has no classification model 'fcn_resnet50'"),
    ],
)
def test_a_name_that_names_nothing(name: str, reason: str) -> None:
    assert reason in refusal(name)


@pytest.mark.parametrize("name", ["vgg16", "lenet_5", "torchvision:alexnet"])
def test_images_that_are_too_small(name: str, recwarn: pytest.WarningsRecorder) -> None:
    assert "failed on images of 1 × 8 × 8: " in refusal(name, (1, 8, 8))
    assert not recwarn


def test_a_network_for_images_of_another_size() -> None:
    assert "failed on images of 3 × 32 × 32: Wrong image height" in refusal("torchvision:vit_b_32")


@pytest.mark.parametrize("name", ["evci_cnn", "evci_cnn_norm", "evci_cnn_tanh"])
def test_evcis_network_has_the_parameters_that_he_counts_and_takes_digits_too(name: str) -> None:
    model = models.build(name, (1, 28, 28), 10)
    norms = sum(
        p.numel() for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for p in m.parameters()
    )
    assert sum(parameter.numel() for parameter in model.parameters()) - norms == 20_522
    for shape in ((1, 8, 8), (3, 32, 32)):
        anatomy = Anatomy(models.build(name, shape, 10), torch.zeros(2, *shape))
        assert {layer: found.units for layer, found in anatomy.items()} == {"conv1": 8, "conv2": 16, "fc1": 64}


@pytest.mark.parametrize(
    ("name", "weights", "biases"),
    [
        ("lenet_300_100", (235_200, 30_000, 1_000), 410),
        ("lenet_5", (500, 25_000, 400_000, 5_000), 580),
    ],
)
def test_the_networks_of_han_have_the_weights_that_they_count(name: str, weights: tuple[int, ...], biases: int) -> None:
    model = models.build(name, (1, 28, 28), 10)
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert tuple(sizes[::2]) == weights and sum(sizes[1::2]) == biases
    assert round((sum(weights) + biases) / 1000) == {"lenet_300_100": 267, "lenet_5": 431}[name]
    layers = Anatomy(model, torch.zeros(2, 1, 28, 28))
    assert {layer: found.units for layer, found in layers.items()} == {
        "lenet_300_100": {"fc1": 300, "fc2": 100},
        "lenet_5": {"conv1": 20, "conv2": 50, "fc1": 500},
    }[name]

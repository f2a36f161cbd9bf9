"""Networks by name: some of ours, every classifier of torchvision, or anyone's factory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from network_surgery.ops import free_attention
from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.errors import StudyError, near
from network_surgery.study.references import make, theirs

Shape = tuple[int, int, int]


def small_cnn(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions and a dense layer, with BatchNorm: 75,370 parameters on 8 × 8 digits."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 32, 3, padding=1),
            norm1=nn.BatchNorm2d(32),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            norm2=nn.BatchNorm2d(64),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(3),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * 9, 96),
            relu3=nn.ReLU(),
            fc2=nn.Linear(96, classes),
        )
    )


def mlp(shape: Shape, classes: int) -> nn.Module:
    """Two dense hidden layers of 128 and 64 units with LeakyReLU, no norm."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(pixels, 128),
            leaky1=nn.LeakyReLU(),
            fc2=nn.Linear(128, 64),
            leaky2=nn.LeakyReLU(),
            fc3=nn.Linear(64, classes),
        )
    )


def vgg16(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """The thesis's network (Graham 2019, 4.1.2, and its published code): 11 convolutions, 4 dense layers.

    3 × 3 convolutions of 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512 channels with BatchNorm and ReLU, pooling
    after the 1st, 3rd, 5th and 8th; dense 2048, 2048, 1000 with ReLU, then BatchNorm. Images of 32 × 32; 16 × 16 at
    least. ``width`` multiplies the units of every layer.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, rows, columns = shape
    positions = (rows // 16) * (columns // 16)
    if not positions:
        raise StudyError("it needs images of at least 16 × 16")
    for number, published in enumerate((64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512), 1):
        channels = round(width * published)
        layers[f"conv{number}"] = nn.Conv2d(before, channels, 3, padding=1)
        layers[f"conv{number}_norm"] = nn.BatchNorm2d(channels)
        layers[f"conv{number}_relu"] = nn.ReLU(inplace=True)
        if number in (1, 3, 5, 8):
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        before = channels
    layers["flatten"] = nn.Flatten()
    before *= positions
    for number, published in enumerate((2048, 2048, 1000), 1):
        units = round(width * published)
        layers[f"fc{number}"] = nn.Linear(before, units)
        layers[f"fc{number}_relu"] = nn.ReLU(inplace=True)
        layers[f"fc{number}_norm"] = nn.BatchNorm1d(units)
        before = units
    layers["fc4"] = nn.Linear(before, classes)
    return nn.Sequential(layers)


def evci_cnn(shape: Shape, classes: int, activation: type[nn.Module] = nn.ReLU, norms: bool = False) -> nn.Module:
    """The network of Evci 2018, appendix C: 8 and 16 channels, 64 dense units; 20,522 parameters on 28 × 28 × 1.

    Each convolution (5 × 5; on images below 16 pixels, which that would leave nothing of, 3 × 3 and padded) is followed
    by pooling over 2 × 2. ``norms``: BatchNorm after every activation. (The appendix prints 32 dense units; the
    parameters that the text counts are those of 64.)
    """
    small = min(shape[1:]) < 16
    kernel, padding = (3, 1) if small else (5, 0)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, rows, columns = shape
    for number, channels in enumerate((8, 16), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, channels, kernel, padding=padding)
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers[f"act{number}"] = activation()
        if norms:
            layers[f"norm{number}"] = nn.BatchNorm2d(channels)
        rows, columns = ((n - kernel + 1 + 2 * padding) // 2 for n in (rows, columns))
        before = channels
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(before * rows * columns, 64)
    layers["act3"] = activation()
    if norms:
        layers["norm3"] = nn.BatchNorm1d(64)
    layers["fc2"] = nn.Linear(64, classes)
    return nn.Sequential(layers)


def lenet_300_100(shape: Shape, classes: int) -> nn.Module:
    """LeNet-300-100 as Han et al. 2015 prune it: 300 and 100 dense units with ReLU (LeCun et al. 1998).

    On 28 × 28 × 1 and 10 classes it has 266,200 weights, their 267 K with the 410 biases: 235,200, 30,000 and 1,000.
    """
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(pixels, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
    )


def lenet_5(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 in the form that comes with Caffe, which Han et al. 2015 prune: 20 and 50 channels, 500 dense units.

    Each convolution (5 × 5) is followed by pooling over 2 × 2 and by nothing else, the dense layer by ReLU. On
    28 × 28 × 1 and 10 classes it has 430,500 weights, their 431 K with the 580 biases: 500, 25,000, 400,000 and 5,000.
    16 × 16 at least.
    """
    if min(shape[1:]) < 16:
        raise StudyError("it needs images of at least 16 × 16")
    rows, columns = (((n - 4) // 2 - 4) // 2 for n in shape[1:])
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * rows * columns, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )


def resnet18(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-18 with the stem of CIFAR (``study.resnet``): 11,173,962 parameters on 32 × 32 × 3 and 10 classes."""
    from network_surgery.study.resnet import SmallImageResNet

    return SmallImageResNet(shape[0], classes, width)


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "small_cnn": small_cnn,
    "mlp": mlp,
    "evci_cnn": evci_cnn,
    "evci_cnn_norm": partial(evci_cnn, norms=True),
    "evci_cnn_tanh": partial(evci_cnn, activation=nn.Tanh),
    "lenet_300_100": lenet_300_100,
    "lenet_5": lenet_5,
    "resnet18": resnet18,
    "resnet18_quarter": partial(resnet18, width=1 / 4),
    "vgg16": vgg16,
    "vgg16_quarter": partial(vgg16, width=1 / 4),
}


def build(name: str, shape: Shape, classes: int) -> nn.Module:
    """A fresh network for images of ``shape`` (channels, height, width).

    ``name``: one of ``MODELS``; ``torchvision:NAME`` (made with ``num_classes``); or ``MODULE:FACTORY``, where MODULE
    is an importable module or a .py file and FACTORY takes ``(shape, classes)``, or nothing, and returns an
    ``nn.Module``. Attention of torch's kind is freed for surgery, which leaves what the network computes as it is.

    Raises:
        StudyError: no such network, or a factory that fails or returns something else.
    """
    if name in MODELS:
        factory = MODELS[name]
    elif name.startswith("torchvision:"):
        factory = _torchvision(name.removeprefix("torchvision:"))
    elif ":" in name:
        factory = theirs(name, "model")
    else:
        hint = f"; of a file name the function, too: '{name}:FACTORY'" if name.endswith(".py") else near(name, MODELS)
        raise StudyError(
            f"there is no model {name!r}; give one of {', '.join(MODELS)}, 'torchvision:NAME' or 'MODULE:FACTORY'{hint}"
        )
    try:
        model = make(factory, shape=shape, classes=classes)
        made = _scores(free_attention(model), shape) if isinstance(model, nn.Module) else None
    except (Exception, SystemExit) as error:  # anyone's factory may fail in any way, or end the program
        pass_on_memory(error)
        size = " × ".join(map(str, shape))
        raise StudyError(f"model {name!r} failed on images of {size}: {first_line(error)}") from error
    if made is None:
        raise StudyError(f"model {name!r} made a {type(model).__name__}, not a torch.nn.Module")
    wrong = [found for found in made if found != (2, classes)]
    if wrong:
        raise StudyError(f"model {name!r} must return scores of shape (2, {classes}) for 2 images, not {wrong[0]}")
    return model


def _scores(model: nn.Module, shape: Shape) -> list[tuple[int, ...] | str]:
    """The shape (or else the type) of what the model returns for two images, in evaluation and in training.

    Leaves the model and the random state as they were.
    """
    from network_surgery.ops.anatomy import evaluating

    found: list[tuple[int, ...] | str] = []
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for training in (False, True):
            output = model.train(training)(torch.zeros(2, *shape))
            found.append(tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__)
        for name, buffer in model.named_buffers():  # training moves running statistics
            buffer.copy_(before[name])
    return found


def _torchvision(name: str) -> Callable[[Shape, int], nn.Module]:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise StudyError(f"torchvision has no classification model {name!r}; give one such as 'resnet18'")
    return lambda shape, classes: torchvision.models.get_model(name, weights=None, num_classes=classes)

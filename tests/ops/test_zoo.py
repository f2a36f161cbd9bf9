"""Published designs, every layer: small models of torchvision, and others with fewer and narrower blocks.

``python -m tests.zoo`` sweeps all models, as they are published.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, free_attention
from tests.ops.properties import examine, lively, unaccounted
from tests.tiers import long

tv = pytest.importorskip("torchvision.models")
parts = pytest.importorskip("torchvision.models.googlenet")


def _vgg() -> nn.Module:
    """With two dense layers of usual size instead of two that hold most of the parameters."""
    convolutions = tv.vgg.make_layers([8, "M", 12, "M", 12], batch_norm=True)
    return nn.Sequential(convolutions, nn.Flatten(), nn.Linear(12 * 64, 16), nn.ReLU(), nn.Linear(16, 5))


def _convnext() -> nn.Module:
    block = tv.convnext.CNBlockConfig
    return tv.convnext.ConvNeXt([block(12, 16, 1), block(16, 20, 2), block(20, None, 1)], num_classes=5)


def _efficientnet() -> nn.Module:
    wide, fused = tv.efficientnet.MBConvConfig, tv.efficientnet.FusedMBConvConfig
    blocks = [fused(2, 3, 1, 8, 8, 2), wide(4, 3, 2, 8, 12, 2, 1.0, 1.0), wide(4, 5, 1, 12, 16, 1, 1.0, 1.0)]
    return tv.efficientnet.EfficientNet(blocks, 0.2, last_channel=32, num_classes=5)


def _vit() -> nn.Module:
    return free_attention(tv.VisionTransformer(32, 8, 2, 3, 24, 40, num_classes=5))


def _swin(version: int) -> nn.Module:
    blocks = {} if version == 1 else {"block": tv.swin_transformer.SwinTransformerBlockV2}
    blocks |= {} if version == 1 else {"downsample_layer": tv.swin_transformer.PatchMergingV2}
    return tv.SwinTransformer([2, 2], 12, [2, 2], [2, 3], [4, 4], num_classes=5, **blocks)


def _maxvit() -> nn.Module:
    return tv.MaxVit((32, 32), 12, 2, [12, 16], [1, 1], 4, 0.1, num_classes=5)


def _regnet() -> nn.Module:
    """As many blocks as in the 400 MF model, with squeezes as well."""
    widths = tv.regnet.BlockParams.from_init_params(depth=16, w_0=16, w_a=2.5, w_m=1.6, group_width=4, se_ratio=0.25)
    return tv.RegNet(widths, num_classes=5, stem_width=12)


def _googlenet() -> nn.Module:
    """All blocks, with an eighth of the channels."""
    plain = parts.BasicConv2d

    def convolution(inputs: int, units: int, **kwargs: Any) -> nn.Module:
        return plain(inputs if inputs == 3 else inputs // 8, units // 8, **kwargs)

    def inception(*channels: int) -> nn.Module:
        return parts.Inception(*(each // 8 for each in channels))

    def auxiliary(channels: int, classes: int, **kwargs: Any) -> nn.Module:
        return parts.InceptionAux(channels // 8, classes, **kwargs)

    model = tv.GoogLeNet(5, init_weights=False, aux_logits=True, blocks=[convolution, inception, auxiliary])
    model.fc = nn.Linear(1024 // 8, 5)
    return model


DESIGNS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    # name: how to build it, the size of its images, layers that it must offer at least
    "resnet18": (partial(tv.resnet18, num_classes=5), 32, 12),
    "resnext": (partial(tv.ResNet, tv.resnet.Bottleneck, [1, 1, 1, 1], 5, groups=4, width_per_group=4), 32, 17),
    "vgg": (_vgg, 32, 4),
    "squeezenet1_1": (partial(tv.squeezenet1_1, num_classes=5), 48, 25),
    "densenet": (partial(tv.DenseNet, 6, (2, 3, 2), 12, num_classes=5), 32, 17),
    "mobilenet_v2": (partial(tv.mobilenet_v2, width_mult=0.1, num_classes=5), 32, 24),
    "mobilenet_v3_small": (partial(tv.mobilenet_v3_small, width_mult=0.4, num_classes=5), 32, 27),
    "mnasnet": (partial(tv.MNASNet, 0.2, 5), 32, 25),
    "shufflenet_v2": (partial(tv.ShuffleNetV2, [4, 8, 4], [24, 32, 48, 64, 128], 5), 32, 20),
    "efficientnet": (_efficientnet, 32, 11),
    "regnet_y": (_regnet, 32, 69),
    "convnext": (_convnext, 32, 7),
    "vit": (_vit, 32, 7),
    "swin": (partial(_swin, 1), 32, 4),
    "swin_v2": (partial(_swin, 2), 32, 8),
    "maxvit": (_maxvit, 32, 11),
}

LONG = ("mobilenet_v2", "mnasnet", "shufflenet_v2", "regnet_y")


@pytest.mark.parametrize("name", [long(name) if name in LONG else name for name in DESIGNS])
def test_every_layer(name: str) -> None:
    factory, size, floor = DESIGNS[name]
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, size, size, dtype=torch.float64)
    model = lively(factory().double(), inputs)
    anatomy = Anatomy(model, inputs)
    examination = examine(anatomy, inputs, careful=False)
    assert not examination.broken
    assert not list(unaccounted(anatomy, examination.resized))
    assert len(examination.faint) <= 1 + 0.02 * len(anatomy)
    assert len(anatomy) >= floor


@pytest.mark.long
def test_parts_that_only_train() -> None:
    """Auxiliary classifiers read the network in training mode alone; what they read must not go without them."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model = lively(_googlenet().double(), inputs)
    examination = examine(Anatomy(model, inputs), inputs, careful=False)
    assert not examination.broken

"""VGG16 as the published code of Graham 2019 has it: it makes BatchNorm for the convolutions, and passes it by."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from network_surgery.study.models import Shape, vgg16


def published(shape: Shape, classes: int) -> nn.Module:
    """``vgg16`` without BatchNorm on the convolutions."""
    layers = vgg16(shape, classes).named_children()
    used = ((name, layer) for name, layer in layers if not isinstance(layer, nn.BatchNorm2d))
    return nn.Sequential(OrderedDict(used))

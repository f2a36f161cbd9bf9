"""ResNet-18 for small images, of torchvision's own class.

He et al. 2016, *Deep residual learning*. The stem is that of CIFAR, 4.2 there: a 3 × 3 convolution and no pooling,
where torchvision's is for images of 224 × 224.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


class SmallImageResNet(ResNet):
    """Four stages of two blocks with 64, 128, 256, 512 channels, all multiplied by ``width``."""

    def __init__(self, channels: int, classes: int, width: float = 1.0) -> None:
        self.width = width
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=classes)
        first = self._scaled(64)
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as all others in ResNet
        self.bn1 = nn.BatchNorm2d(first)
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        self.fc = nn.Linear(self.inplanes, classes)

    def _make_layer(self, block: Any, planes: int, *others: Any, **named: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self._scaled(64)
        return super()._make_layer(block, self._scaled(planes), *others, **named)

    def _scaled(self, channels: int) -> int:
        return max(1, round(self.width * channels))

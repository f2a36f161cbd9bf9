"""Augmentation of image batches on the device where they are, by random numbers of their own.

Every image has a draw of its own; ``mixup`` and ``cutmix`` alone draw once for a batch, as published.

Sources: He et al. 2016, *Deep residual learning*, 4.2 (padding by 4, a random crop, flips). DeVries & Taylor 2017,
*Cutout*. Müller & Hutter 2021, *TrivialAugment*. Cubuk et al. 2020, *RandAugment*. Zhang et al. 2018, *mixup*. Yun et
al. 2019, *CutMix*. The last four are torchvision's (``torchvision.transforms.v2``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from network_surgery.study.errors import StudyError

Kind = Literal["none", "flip", "crop_flip", "trivial", "randaugment"]
Mix = Literal["none", "mixup", "cutmix"]
#: Pixels that an image is padded with on each side before it is cropped to its size again.
PADDING = 4


@dataclass(frozen=True)
class Augmentation:
    """Changes batches of images ``[n, channels, height, width]`` in −1 … 1 and their class numbers ``[n]``.

    ``kind``: ``flip`` mirrors half of the images; ``crop_flip`` also shifts each by up to 4 pixels; ``trivial`` and
    ``randaugment`` do that and then change each image by torchvision's policy (image by image: about a fifth of a
    millisecond each). ``cutout``: the side in pixels of a grey square in each image, cut off at the border; 0: none.
    ``mix``: ``mixup`` and ``cutmix`` join each image with another one of the batch, and labels become probabilities
    ``[n, classes]``. New pixels are grey (0), what comes from a policy is black.

    Raises:
        StudyError: ``mix`` without at least 2 ``classes``.
    """

    kind: Kind = "none"
    cutout: int = 0
    mix: Mix = "none"
    classes: int = 0

    def __post_init__(self) -> None:
        if self.mix != "none" and self.classes < 2:
            raise StudyError(f"mix is {self.mix!r}, but there are {self.classes} classes; at least 2 are needed")

    def __bool__(self) -> bool:
        return self.kind != "none" or self.cutout > 0 or self.mix != "none"

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "flip":
            mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        elif self.kind != "none":
            images = crop_flip(images)
        if self._policy is not None:
            pixels = images.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
            pixels = torch.stack([self._policy(image) for image in pixels])
            images = pixels.to(images.dtype).div_(127.5).sub_(1.0)
        if self.cutout:
            images = cut_out(images, self.cutout)
        return (images, labels) if self._mixing is None else self._mixing(images, labels)

    @functools.cached_property
    def _policy(self) -> Callable[[Tensor], Tensor] | None:
        from torchvision.transforms import v2

        policies = {"trivial": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}
        return policies[self.kind]() if self.kind in policies else None

    @functools.cached_property
    def _mixing(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        from torchvision.transforms import v2

        mixings = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
        return mixings[self.mix](alpha=1.0, num_classes=self.classes) if self.mix in mixings else None


def crop_flip(images: Tensor, padding: int = PADDING) -> Tensor:
    """Each image mirrored or not, and shifted by up to ``padding`` pixels each way; what comes in is 0.

    A channels-last batch stays so.
    """
    count, _, height, width = images.shape
    device = images.device
    down, right = torch.randint(2 * padding + 1, (2, count, 1), device=device)
    mirrored = torch.rand(count, 1, device=device) < 0.5
    across = torch.arange(width, device=device)
    rows = down + torch.arange(height, device=device)
    columns = right + torch.where(mirrored, across.flip(0), across)
    every = torch.arange(count, device=device)[:, None, None]
    padded = pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    cropped = padded[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return cropped if last else cropped.contiguous()


def cut_out(images: Tensor, side: int) -> Tensor:
    """A square of this side is 0 in each image; its centre is anywhere, so it may reach over the border."""
    count, _, height, width = images.shape

    def inside(length: int) -> Tensor:
        start = torch.randint(length, (count, 1), device=images.device) - side // 2
        place = torch.arange(length, device=images.device)
        return (place >= start) & (place < start + side)

    return images.masked_fill((inside(height)[:, :, None] & inside(width)[:, None, :])[:, None], 0.0)


@contextlib.contextmanager
def apart(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of this block follow ``seed``; those outside go on as if it had not been."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng(devices=[device], device_type=device.type):
        torch.default_generator.manual_seed(seed)
        with torch.accelerator.device_index(device.index):  # manual_seed is of the current one
            torch.get_device_module(device).manual_seed(seed)
        yield

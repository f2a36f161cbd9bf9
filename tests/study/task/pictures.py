"""Small image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    """Writes an image of random pixels; ``size`` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, len(mode)) if len(mode) > 1 else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder(root: Path, train: int = 4, test: int = 2, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    """Images of cats and dogs, this number of each for training and for testing."""
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                picture(root / part / name / f"{i}.png", 10 * label + i + (part == "test") * 100, size, mode)
    return root

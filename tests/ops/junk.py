"""What people give by mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

#: What no argument expects, or some do.
JUNK: dict[str, Any] = {
    "None": None, "text": "x", "a number": 3, "below zero": -1.5, "not a number": float("nan"), "a list": [1, "x"],
    "a dict": {"x": object()}, "a tensor": torch.randn(2, 3), "an object": object(), "a class": nn.Linear,
    "a network": nn.Linear(3, 3), "a function": lambda *given: None, "infinite": float("inf"), "huge": 2**70,
    "lines": "a\nb", "bytes": b"x", "nothing": [], "true": True,
}  # fmt: skip

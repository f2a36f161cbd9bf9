"""The losses of an epoch in progress; they stay on the device, and travel with a checkpoint between two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Losses:
    """``first``: the loss of the first step, ``last``: that of the last one.

    ``skips``: a batch whose loss is not finite counts for nothing, and reads as the mean so far.
    """

    def __init__(self, device: torch.device, skips: bool) -> None:
        self.first = self.last = self._total = torch.zeros((), device=device)
        self._counted = torch.zeros((), dtype=torch.int64, device=device)
        self._skips, self._begun = skips, False

    def add(self, losses: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """The loss of a step, of those of its batches and their shares in it."""
        if self._skips:
            self._counted = self._counted + sum(each.isfinite() for each in losses)
            self._total = sum((each.nan_to_num(0.0, 0.0, 0.0) for each in losses), self._total)
            losses = [torch.where(each.isfinite(), each, self._total / self._counted) for each in losses]
        else:
            self._total = sum(losses, self._total)
        self.last = losses[0]
        if len(losses) > 1:  # by numbers of the host, which a device need not wait for
            self.last = torch.stack([each * share for each, share in zip(losses, shares, strict=True)]).sum()
        if not self._begun:
            self.first, self._begun = self.last, True
        return self.last

    def mean(self, batches: int) -> float:
        """The mean over ``batches``, the number of batches of the epoch."""
        return float(self._total / self._counted) if self._skips else float(self._total) / batches

    def state(self) -> dict[str, Any]:
        """Plain data, for ``restore``."""
        return {"first": self.first, "total": self._total, "counted": self._counted}

    def restore(self, state: Mapping[str, Any]) -> None:
        device = self._total.device
        self.first, self._total, self._counted = (state[name].to(device) for name in ("first", "total", "counted"))
        self._begun = True

"""A deep network, cut in every layer: accuracy right after, before any further training.

Nothing but the weights is at stake here, so there is no optimizer. Layers are cut first to last, with signals anew for
each; an operation and its repairs see the same few hundred training images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from network_surgery.ops import Anatomy, Operation, Signals, operate
from network_surgery.study.config import Settings
from network_surgery.study.data import Dataset
from network_surgery.study.experiments.repairs.arms import BUILT_IN, CHAINS, CPU, REMOVALS, Arm, Setting, prefix
from network_surgery.study.training.trainer import Batches, Shown, evaluate

#: (fraction kept, removal, chain) → accuracy on validation ``[seeds]``; ``WHOLE`` is the network before the cut.
Right = dict[tuple[float, str, str], NDArray[np.float64]]
WHOLE = (1.0, "before", "")
ARMS: tuple[Arm, ...] = tuple(
    (removal, chain)
    for removal in ("min weight", "random", "PCNS")
    for chain in ("none", "batchnorm", "least squares + batchnorm")
    if not BUILT_IN.get(removal, set()) & set(CHAINS[chain])
)


@dataclass(frozen=True)
class Deep:
    """The network and its training, the fractions of units that stay, and how many images operations are shown."""

    settings: Settings
    keeps: Sequence[float] = (3 / 4, 1 / 2)
    images: int = 512


DEEP = Deep(Settings(model="vgg16_quarter", epochs=6, batch_size=32, device="cpu"))


def measure(data: Dataset, seed: int, deep: Deep = DEEP) -> Right:
    """Every arm for one seed."""
    trained = prefix(data, seed, Setting(deep.settings, deep.settings.epochs, 1.0))
    shown = Shown(Batches(data.train.thinned(deep.images), CPU), deep.images // 2)
    found = {WHOLE: np.array([trained.history[-1]["validation_accuracy"]])}
    for keep in deep.keeps:
        for removal, chain in ARMS:
            model = copy.deepcopy(trained.model)
            cut(model, REMOVALS[removal](keep, seed), CHAINS[chain], shown)
            found[keep, removal, chain] = np.array([evaluate(model, trained.validation)[1]])
    return found


def cut(model: nn.Module, operation: Operation, chain: Sequence[str], shown: Iterable[Tensor]) -> None:
    """The operation with its repairs on every layer, first to last."""
    for layer in Anatomy(model, next(iter(shown))[:2]).values():
        signals = Signals.over(model, shown, [layer]) if operation.needs_signals or chain else None
        operate(layer, operation, (), signals, repair=chain)

"""PredictWeights: most of a weight is predicted from a small part of it by a fixed dictionary; the part is trained.

Source: Denil et al. 2013, *Predicting parameters in deep learning*: W = U V, U fixed, V learned. There networks are
trained so from the start, and U is made of random columns, random projections, a kernel over pixel positions, the
covariance of a layer's inputs, or an autoencoder. Here it can strike at any epoch. The maths is in
``ops.maths.dictionaries`` and ``ops.network.predicted``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from network_surgery.ops.anatomy import WHOLE, Anatomy, HiddenLayer, Place, axes
from network_surgery.ops.anatomy.running import flat_tensors
from network_surgery.ops.anatomy.trace import OUTPUT
from network_surgery.ops.errors import SurgeryError, Unsuitable
from network_surgery.ops.maths.dictionaries import principal, ridge
from network_surgery.ops.network.predicted import MEASURED, SEEDED, Predicted
from network_surgery.ops.operation import Operation, choice, fraction, whole
from network_surgery.ops.operations.hash_weights import expressing, plain_weights
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals

#: What is stored first: the least squares of the weights that there are, or fresh random numbers.
VALUES = ("fitted", "fresh")


@dataclass(frozen=True)
class PredictWeights(Operation):
    """Lets each row of a weight be ``U v``: ``U`` is a fixed dictionary, and ``v`` is stored and trained.

    ``rank``: the stored numbers of a row for each of its entries, above 0 and at most 1. ``dictionary``:

    - ``identity``: random entries are stored, all others are zero.
    - ``orthogonal``, ``gaussian``: random projections (the second is HashedNets' rival of low rank).
    - ``rbf``: all entries are predicted from random ones by kernel ridge regression over positions in the kernel of a
      convolution, or pixels of the image or map that a dense layer reads; ``width`` in pixels.
    - ``covariance``: the same with the covariance of the layer's inputs as the kernel, for layers without geometry.
    - ``autoencoder``: what a linear autoencoder learns of these inputs, which are their principal components.

    ``ridge``: λ, in units of the kernel's mean diagonal. ``columns``: the rows are divided among this number of
    dictionaries, each with an index set of its own. ``values``: what is stored is ``fitted`` to the weights (the least
    squares), or ``fresh`` normal numbers such that the weights have their deviation, for training from epoch 0.

    Of the whole network (``*``) all weights are predicted for which the dictionary can be made, but those that make its
    output (that classify), as in the source. Bytes go down, FLOPs do not: the weights are computed in each forward pass
    (``notes``). A dictionary that is measured is stored beside the numbers, in single precision; ``bytes_after`` has
    it. The plan's ``error`` is that of the weights, as in ``HashWeights``. Optimizer state in the first degree becomes
    exactly that of the stored numbers, in the second as if the gradients of entries were uncorrelated; with ``fresh``
    it begins anew.

    ``propose`` raises SurgeryError where there are no plain weights, a dictionary needs what the layer does not have
    (positions, inputs that are known as patches), and without signals if it is measured.
    """

    rank: float = 0.25
    dictionary: str = "orthogonal"
    columns: int = 1
    width: float = 1.0
    ridge: float = 0.01
    values: str = "fitted"
    seed: int = 0
    whole_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "rank", self.rank)
        choice(self, "dictionary", self.dictionary, (*SEEDED, *MEASURED))
        choice(self, "values", self.values, VALUES)
        whole(self, "columns", self.columns)
        whole(self, "seed", self.seed)
        fraction(self, "width", self.width, most=1e6)
        fraction(self, "ridge", self.ridge, most=1e6)
        if not self.columns or (self.columns > 1 and self.dictionary == "autoencoder"):
            raise SurgeryError(
                f"PredictWeights: columns is {self.columns}, but there is at least one, and no more of an autoencoder, "
                "since all would be the same"
            )

    @property
    def needs_signals(self) -> bool:  # type: ignore[override]
        return self.dictionary in MEASURED

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        anatomy, names = layer.anatomy, plain_weights(self, layer)
        made, reason = dict[str, dict[str, Any]](), ""
        if self.needs_signals and signals is not None:
            signals.check_network(layer)
            if layer.name == WHOLE:  # signals over batches are of what reads a layer only
                signals = Signals(anatomy.model, signals.inputs)
        for name in names:
            try:
                if layer.name != WHOLE or not _classifies(anatomy, name):
                    made[name] = self._settings(anatomy, name, signals)
            except SurgeryError as error:
                if layer.name != WHOLE:
                    raise type(error)(f"{self!r} on {layer.name}: {error}") from error
                reason = f": {error}"
        if not made:
            kind = SurgeryError if self.needs_signals else Unsuitable
            raise kind(f"{self!r} on {layer.name}: there are no weights that could be predicted{reason}")

        def make_predicted(name: str, weight: Tensor, seed: int) -> Predicted:
            return self._predicted(weight, seed, **made[name])

        return expressing(self, layer, made, self.seed, make_predicted, self.values == "fresh")

    def _settings(self, anatomy: Anatomy, name: str, signals: Signals | None) -> dict[str, Any]:
        """What the dictionary of a weight needs: its ``layout``, or the ``covariance`` of its inputs."""
        if self.dictionary == "rbf":
            return {"layout": layout_of(anatomy, name)}
        if self.dictionary not in MEASURED:
            return {}
        if signals is None:
            raise SurgeryError(f"the dictionary {self.dictionary} looks at inputs: give it Signals(model, inputs)")
        maker = _makes(anatomy, name)
        if maker is None:
            raise Unsuitable(f"{name} makes no layer")
        module = anatomy.owner(name)
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            raise Unsuitable(f"what {name} is multiplied with is known of dense layers and convolutions only")
        fed = signals.fed(*maker)
        if fed.shape[1] != anatomy.live(name)[0].numel() or not fed.isfinite().all():
            raise SurgeryError(f"what {name} is given is not finite, or not one vector for each of its rows")
        covariance = torch.cov(fed.T, correction=0).view(fed.shape[1], -1)
        if not covariance.any():
            raise SurgeryError(f"what {name} is given never varies in these inputs, so it predicts nothing")
        return {"covariance": covariance}

    def _predicted(
        self, weight: Tensor, seed: int, layout: tuple[int, ...] = (), covariance: Tensor | None = None
    ) -> Predicted:
        numbers = max(1, round(self.rank * weight[0].numel()))
        measured = None if covariance is None else torch.stack(
            [self._measured(covariance, numbers, seed * self.columns + column) for column in range(self.columns)]
        )  # fmt: skip
        return Predicted(
            weight.shape, numbers, seed, self.dictionary, self.columns, layout, self.width, self.ridge, None, measured
        )

    def _measured(self, covariance: Tensor, numbers: int, seed: int) -> Tensor:
        if self.dictionary == "autoencoder":
            return principal(covariance, numbers)
        order = torch.randperm(len(covariance), generator=torch.Generator().manual_seed(seed)).to(covariance.device)
        still = covariance.diagonal()[order] <= 0  # inputs that never vary predict nothing, so they come last
        return ridge(covariance, order[still.to(torch.uint8).argsort(stable=True)][:numbers], self.ridge)


def layout_of(anatomy: Anatomy, name: str) -> tuple[int, ...]:
    """What a row of a weight reads, as ``(channels, *sides)``: a convolution's kernel, or the image or map before it.

    Raises:
        SurgeryError: it has no positions that are known.
    """
    shape, module = tuple(anatomy.live(name).shape), anatomy.owner(name)
    if isinstance(module, _ConvNd) and not module.transposed and math.prod(shape[2:]) > 1:
        return shape[1:]
    if isinstance(module, nn.Linear):
        for layer in anatomy.values():
            for place in layer.readers:
                positions = place.positions
                side = math.isqrt(positions.shape[1])
                spread = side > 1 and side**2 == positions.shape[1] and place.tensor == name
                if spread and torch.equal(positions.flatten(), torch.arange(shape[1])):
                    return layer.units, side, side
        given = flat_tensors(anatomy.example_input)
        sizes = tuple(given[0].shape[1:]) if len(given) == 1 else ()
        side = math.isqrt(shape[1])
        made = {unit for other in anatomy.calls for unit in axes.factors(anatomy.expressions[other][0])}
        if math.prod(sizes) == shape[1] and not made & {*axes.factors(anatomy.expressions[name][1])}:
            if len(sizes) > 2:
                return sizes
            if len(sizes) == 2:
                return 1, *sizes
            if side > 1 and side**2 == shape[1]:
                return 1, side, side
    raise Unsuitable(
        f"what {name} reads has no positions that are known, as kernels and images have: take another dictionary than "
        "rbf, such as covariance"
    )


def _classifies(anatomy: Anatomy, name: str) -> bool:
    """Whether a weight makes the network's output."""
    return any(unit.frozen == OUTPUT for unit in axes.factors(anatomy.expressions[name][0]))


def _makes(anatomy: Anatomy, name: str) -> tuple[HiddenLayer, Place] | None:
    """A layer that a weight makes, and where; None where it makes none that is known."""
    found = ((layer, place) for layer in anatomy.values() for place in layer.makers if place.tensor == name)
    return next(found, None)

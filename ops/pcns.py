"""PCNS, Principal Component Network Shrinking: as many units as the outputs of a layer have principal components.

Source: Rolet 2022, *PCNS: Principal Component Network Shrinking* (draft), sections 2 and 3. The outputs of a layer's
units over a batch are centred across units (one mean per sample); the number M of eigenvectors that leaves less than
``variance_threshold`` of the variance is the redundancy measure, known before anything is changed; the layer shrinks to
M + 1 units. What these units are is the ``basis``:

``pivoted``
    Real units that span the outputs, chosen by column-pivoted QR. The next layer receives each old output as a linear
    combination of them plus a constant (least squares), folded into its weight and bias. Works after any activation.
``eigen``
    The draft's form: new incoming weights are solved so that the layer emits the eigenvectors and the mean. It needs
    the inverse of the activation, so a dense layer with LeakyReLU or nothing behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import scipy.linalg
import torch
from torch import Tensor

from ops.anatomy import HiddenLayer, Place
from ops.errors import SurgeryError
from ops.hosvd import gram
from ops.operation import Operation, choice, fraction, kept
from ops.plan import Plan
from ops.signals import Signals


def components_needed(outputs: Tensor, variance_threshold: float) -> int:
    """M: the fewest principal components that leave at most ``variance_threshold`` of the variance unexplained.

    ``outputs``: ``[samples, units]``, float64; centred here across units.
    """
    left = unexplained(outputs)
    return int((left > variance_threshold).sum()) + 1 if len(left) else 0


def unexplained(outputs: Tensor) -> Tensor:
    """The share of the variance that the first 1, 2, … principal components leave; empty where nothing varies."""
    centred = outputs - outputs.mean(dim=1, keepdim=True)
    smaller = centred if len(centred) < centred.shape[1] else centred.T  # both Gram matrices have the same spectrum
    spectrum = torch.linalg.eigvalsh(gram(smaller)).flip(0).clamp(min=0)
    return 1 - spectrum.cumsum(0) / spectrum.sum() if spectrum.sum() > 0 else spectrum[:0]


def spanning_units(outputs: Tensor, count: int) -> tuple[int, ...]:
    """The ``count`` units that span the outputs ``[samples, units]`` best, by column-pivoted QR, in their old order."""
    return Condensed.of(outputs).spanning_units(count)


@dataclass(frozen=True)
class Condensed:
    """Outputs of many samples in as many rows as there are units, ``[rows, units]``.

    ``deviations`` from ``origin`` (``[units]``): the triangle of the outputs' QR decomposition, an orthonormal basis
    away from the outputs' own deviations. So lengths, angles and least squares between units are those of the outputs,
    and each of them is calculated once for thousands of samples.
    """

    deviations: Tensor
    origin: Tensor

    @classmethod
    def of(cls, outputs: Tensor, about_mean: bool = True) -> Condensed:
        """From outputs ``[samples, units]``: about their mean, or about zero."""
        origin = outputs.mean(dim=0) if about_mean else torch.zeros_like(outputs[0])
        deviations = outputs - origin
        wide = len(deviations) <= deviations.shape[1]
        return cls(deviations if wide else torch.linalg.qr(deviations, mode="r").R, origin)

    def with_origin(self, samples: int) -> Tensor:
        """Rows with the scalar products of the outputs themselves: the deviations and one more row for the origin."""
        return torch.cat([self.deviations, samples**0.5 * self.origin.unsqueeze(0)])

    def pivoted(self) -> tuple[Tensor, list[int]]:
        """The triangle and the pivots of a column-pivoted QR: the first ``k`` pivots span best, for every ``k``."""
        triangle, pivots = scipy.linalg.qr(self.deviations.cpu().numpy(), mode="r", pivoting=True)
        return torch.as_tensor(triangle, dtype=self.origin.dtype, device=self.origin.device), pivots.tolist()

    def spanning_units(self, count: int) -> tuple[int, ...]:
        """The ``count`` units that span the others best, in their old order."""
        return tuple(sorted(self.pivoted()[1][:count]))

    def combination(self, sources: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """See ``combination``, the constant being zero where the origin is."""
        chosen, units = list(sources), self.deviations.shape[1]
        others = sorted(set(range(units)) - set(chosen))
        triangle = torch.linalg.qr(self.deviations[:, chosen + others], mode="r").R
        count = len(chosen)
        mixing = triangle.new_zeros(units, count)
        mixing[chosen] = torch.eye(count, dtype=mixing.dtype, device=mixing.device)
        mixing[others] = smallest_solution(triangle[:count, :count], triangle[:count, count:]).T
        constant = self.origin - mixing @ self.origin[chosen]
        constant[chosen] = 0
        return mixing, constant


def smallest_solution(triangle: Tensor, wanted: Tensor) -> Tensor:
    """Least squares of ``triangle @ x ≈ wanted``, the smallest ``x``, to singular values of 1e-8 of the largest.

    Kept outputs can be collinear (dead units): that takes a singular value decomposition. Where the triangle's
    condition number is surely below 1e8 no singular value is left out, and its inverse gives the same answer.
    """
    if len(triangle) == triangle.shape[1]:
        one = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
        inverse = torch.linalg.solve_triangular(triangle, one, upper=True)
        if float(triangle.norm() * inverse.norm()) < 1e8:
            return inverse @ wanted
    return torch.linalg.pinv(triangle, rtol=1e-8) @ wanted


@dataclass(frozen=True)
class PCNS(Operation):
    """Shrinks a layer to the number of principal components of its outputs.

    ``variance_threshold``: the fraction of the outputs' variance that may be lost, above 0 and at most 1. ``basis``:
    ``pivoted`` or ``eigen`` (see the module). ``keep``: where it is given, the fraction of units that stays, whatever
    the threshold, so that other removals can be compared with it. The plan's ``error`` is the relative least-squares
    error of the outputs on the signals' batch.
    """

    variance_threshold: float = 0.01
    basis: str = "pivoted"
    keep: float | None = None
    needs_signals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "variance_threshold", self.variance_threshold)
        choice(self, "basis", self.basis, ("pivoted", "eigen"))
        if self.keep is not None:
            fraction(self, "keep", self.keep)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        if signals is None:
            raise SurgeryError(f"{self!r} on {layer.name} looks at outputs: give it Signals(model, inputs)")
        outputs = {place: signals.received(layer, place) for place in layer.readers}
        together = torch.cat(list(outputs.values()))
        if not torch.isfinite(together).all():
            raise SurgeryError(f"{self!r} on {layer.name}: the layer's outputs are not finite")
        condensed = Condensed.of(together)
        count = self._count(layer, condensed, len(together))
        if count >= layer.units:
            return Plan(layer, repr(self), tuple(range(layer.units)), error=0.0)
        if self.basis == "eigen":
            return self._emit_eigenvectors(layer, signals, count)
        return self._keep_spanning_units(layer, outputs, condensed, count)

    def _count(self, layer: HiddenLayer, condensed: Condensed, samples: int) -> int:
        if self.keep is not None:
            return kept(layer, self.keep)
        return max(components_needed(condensed.with_origin(samples), self.variance_threshold), 1) + 1

    def _keep_spanning_units(
        self, layer: HiddenLayer, outputs: dict[Place, Tensor], condensed: Condensed, count: int
    ) -> Plan:
        sources = condensed.spanning_units(count)
        mixing, constants, missed, deviations = {}, {}, [], []
        for place, received in outputs.items():
            about_mean = condensed if len(outputs) == 1 else Condensed.of(received)
            intercept = place.tensor in layer.anatomy.sinks
            seen = about_mean if intercept else Condensed.of(received, about_mean=False)
            mixing[place.tensor], constant = seen.combination(sources)
            if intercept:
                constants[place.tensor] = constant
            missed.append(seen.deviations - seen.deviations[:, list(sources)] @ mixing[place.tensor].T)
            deviations.append(about_mean.deviations)
        error = relative_error(missed, deviations)
        return Plan(layer, repr(self), sources, mixing=mixing, constants=constants, error=error)

    def _emit_eigenvectors(self, layer: HiddenLayer, signals: Signals, count: int) -> Plan:
        slope = self._slope(layer)
        (maker,), (reader,) = layer.makers, layer.readers
        outputs, fed = signals.received(layer, reader), signals.fed(layer, maker)
        mean = outputs.mean(dim=1, keepdim=True)
        left, values, right = torch.linalg.svd((outputs - mean).T, full_matrices=False)
        # Emitted at the size of the old outputs: an eigenvector of unit length would be a tiny signal on every sample.
        size = outputs.square().sum().div(layer.units).sqrt().clamp(min=1e-12)
        vectors = right[: count - 1].T * size
        weights = left[:, : count - 1] * values[: count - 1] / size
        sign = torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)  # mostly positive: where LeakyReLU's inverse is tame
        wanted = torch.cat([vectors * sign, mean], dim=1)
        mixing = torch.cat([weights * sign, weights.new_ones(layer.units, 1)], dim=1)
        bias = [place for place in layer.vectors if place.tensor in _bias_of(layer, maker)]
        design = torch.cat([fed, torch.ones_like(mean)], dim=1) if bias else fed
        before = torch.where(wanted < 0, wanted / slope, wanted)
        solved = torch.linalg.lstsq(design, before, driver="gelsd" if not fed.is_cuda else None).solution
        emitted = design @ solved
        emitted = torch.where(emitted < 0, emitted * slope, emitted)
        error = relative_error([emitted @ mixing.T - outputs], [outputs - outputs.mean(dim=0)])
        newborn = {maker.tensor: solved[: fed.shape[1]].T}
        newborn.update({place.tensor: solved[-1] for place in bias})
        return Plan(layer, repr(self), (-1,) * count, newborn=newborn, mixing={reader.tensor: mixing}, error=error)

    def _slope(self, layer: HiddenLayer) -> float:
        """The slope of the LeakyReLU behind this dense layer, 1 for nothing; refuses everything else."""
        leaky = re.fullmatch(r"leaky_relu\((.*)\)", " ".join(layer.between))
        dense = [layer.anatomy.tensor(p.tensor).dim() for p in (*layer.makers, *layer.readers)] == [2, 2]
        plain = len(layer.vectors) <= 1 and all(place.positions.shape[1] == 1 for place in layer.readers)
        if not (dense and plain and (leaky or not layer.between)):
            raise SurgeryError(
                f"{self!r} on {layer.name}: the eigen basis needs a dense layer with LeakyReLU or nothing between it "
                f"and one dense reader (here: {', '.join(layer.between) or 'nothing'}); use basis='pivoted'"
            )
        return float(leaky.group(1)) if leaky else 1.0


def combination(received: Tensor, sources: tuple[int, ...], intercept: bool = True) -> tuple[Tensor, Tensor]:
    """Least squares of all units from those kept: ``received ≈ received[:, sources] @ mixing.T + constant``.

    ``received``: ``[samples, units]``. Returns ``mixing [units, kept]`` (exact ones in the kept units' rows) and
    ``constant [units]`` (zero without ``intercept``).
    """
    return Condensed.of(received, about_mean=intercept).combination(sources)


def relative_error(missed: list[Tensor], deviations: list[Tensor]) -> float:
    """The norm of what is missed over that of the outputs' deviation from their mean; 0 where nothing is missed."""
    lost = sum(float(each.square().sum()) for each in missed)
    spread = sum(float(each.square().sum()) for each in deviations)
    return (lost / spread) ** 0.5 if lost > 0 and spread > 0 else 0.0


def _bias_of(layer: HiddenLayer, maker: Place) -> tuple[str, ...]:
    sink = layer.anatomy.sinks.get(maker.tensor)
    return (sink[0],) if sink is not None and sink[1] > 0 else ()

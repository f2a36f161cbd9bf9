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
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ops.anatomy import HiddenLayer, Place
from ops.condensed import components_needed, relative_error
from ops.errors import SurgeryError
from ops.operation import Operation, choice, fraction, kept
from ops.plan import Plan
from ops.repair import least_squares
from ops.signals import Signals


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
        together = signals.together(layer)
        spectrum = together.spectrum()
        components = components_needed(spectrum, self.variance_threshold)
        count = max(components, 1) + 1 if self.keep is None else kept(layer, self.keep)
        evidence = {
            "components": components,
            "dropped_variance": float(spectrum[max(count - 1, 0) :].sum()),
            "samples_per_unit": together.samples / layer.units,
            "spectrum": tuple(spectrum.tolist()),
        }
        if count >= layer.units:
            return Plan(layer, repr(self), tuple(range(layer.units)), error=0.0, evidence=evidence)
        if self.basis == "eigen":
            return replace(self._emit_eigenvectors(layer, signals, count), evidence=evidence)
        return least_squares(Plan(layer, repr(self), together.spanning_units(count), evidence=evidence), signals)

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
        missed = (emitted @ mixing.T - outputs).square().sum()
        error = relative_error(float(missed), float((outputs - outputs.mean(dim=0)).square().sum()))
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


def _bias_of(layer: HiddenLayer, maker: Place) -> tuple[str, ...]:
    sink = layer.anatomy.sinks.get(maker.tensor)
    return (sink[0],) if sink is not None and sink[1] > 0 else ()

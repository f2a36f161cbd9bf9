"""PCNS, Principal Component Network Shrinking: as many units as the outputs of a layer have principal components.

Source: Rolet 2022, *PCNS: Principal Component Network Shrinking* (draft), sections 2 and 3. The outputs of a layer's
units over a batch are centred across units (one mean per sample); the number M of eigenvectors that leaves less than
``variance_threshold`` of the variance is the redundancy measure, known before anything is changed; the layer shrinks to
M + 1 units. What these units are is the ``basis``:

``pivoted``
    Real units that span the outputs, chosen by column-pivoted QR. The next layer receives each old output as a linear
    combination of them plus a constant (least squares), folded into its weight and bias. Works after any activation.
``eigen``
    The draft's form: new incoming weights are solved by least squares so that the layer emits the eigenvectors and the
    mean, and the next layer takes the projection. It needs the inverse of the activation (``ops.signals.emission``
    lists what it can do), and for an eigenvector ReLU takes two units. Where σ⁻¹ of the eigenvectors is not linear in
    what the layer is fed it fails, most of all where it is steep; the plan's ``emission_error`` says so before. It
    solves as many weights for each unit as the layer has inputs, from the first batch of the signals alone: show it
    several times as many samples (784 inputs, tanh: 25 % right after from 512 images of MNIST, 81 % from 3,600).

Accuracy on the 359 test images of scikit-learn's digits, right after the cut of both hidden layers of a trained
64–128–64–10 network, the last one first, at the same M (%, mean ± deviation of 5 seeds; torch 2.15, one CPU thread):

====================  ======  ====================  ====================  ====================  ====================
activation            before  eigen, 1e-2           pivoted, 1e-2         eigen, 1e-3           pivoted, 1e-3
====================  ======  ====================  ====================  ====================  ====================
identity              95.1    94.5 ± 0.6            95.0 ± 0.5            95.0 ± 0.7            95.3 ± 0.5
LeakyReLU, 0.3        96.1    84.5 ± 3.7            95.8 ± 0.4            84.8 ± 3.7            96.2 ± 0.3
LeakyReLU, 0.01       96.3    10.6 ± 0.8            95.3 ± 0.8            10.1 ± 0.3            96.2 ± 0.4
tanh                  96.2    94.3 ± 1.0            95.9 ± 0.6            94.5 ± 0.6            96.1 ± 0.6
hardtanh              96.5    93.6 ± 1.5            95.8 ± 0.4            94.0 ± 1.0            96.5 ± 0.4
sigmoid               94.0    93.1 ± 0.4            93.8 ± 0.8            92.5 ± 1.1            94.1 ± 0.6
ReLU                  96.4    94.1 ± 0.7            95.4 ± 1.0            96.2 ± 0.5 (nothing)  96.3 ± 0.7
====================  ======  ====================  ====================  ====================  ====================

At 1e-2 the eigenvectors of ReLU take about twice as many units (23 and 60 against 12 and 31), and as many pivoted ones
give 96.0 ± 0.3; at 1e-3 they would take as many as there are, and all but one of the ten layers stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.condensed import components_needed, units_needed
from network_surgery.ops.operation import Operation, choice, fraction, units_to_keep
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.emission import Emission
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.repair import least_squares


@dataclass(frozen=True)
class PCNS(Operation):
    """Shrinks a layer to the number of principal components of its outputs.

    ``variance_threshold``: the fraction of the outputs' variance that may be lost, above 0 and at most 1. ``basis``:
    ``pivoted`` or ``eigen`` (see the module). ``keep``: where it is given, the fraction of units that stays, whatever
    the threshold, so that other removals can be compared with it. The plan's ``error`` is the relative least-squares
    error of the outputs on the signals' batch. Its evidence: ``components`` M, ``dropped_variance`` (the draft's
    assumption b), ``held_out_error`` (a), ``emission_error`` (c, ``eigen`` only), ``condition`` of the least squares,
    ``samples_per_unit`` and the ``spectrum``.

    ``propose`` raises SurgeryError without signals, where outputs are not finite, and where ``eigen`` cannot be done.
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
        if together.samples < 2:
            raise SurgeryError(f"{self!r} on {layer.name}: a single sample shows no variance; give a batch of many")
        spectrum = together.spectrum()
        components = components_needed(spectrum, self.variance_threshold)
        emission = Emission(layer, repr(self)) if self.basis == "eigen" else None
        count = units_needed(spectrum, self.variance_threshold)
        if self.keep is not None:
            count = units_to_keep(layer, self.keep)
        elif emission is not None:
            count = emission.units(max(components, 1))
        vectors = count - 1 if emission is None else emission.vectors(count)
        evidence = {
            "components": components,
            "dropped_variance": float(spectrum[vectors:].sum()),
            "samples_per_unit": together.samples / layer.units,
            "spectrum": tuple(spectrum.tolist()),
        }
        if count >= layer.units:
            return Plan(layer, repr(self), tuple(range(layer.units)), error=0.0, evidence=evidence)
        if emission is not None:
            plan = emission.plan(signals, count)
            return replace(plan, evidence={**evidence, **plan.evidence})
        return least_squares(Plan(layer, repr(self), together.spanning_units(count), evidence=evidence), signals)

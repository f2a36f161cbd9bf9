"""In which order layers are shrunk (the draft's section 5.2.5): which outputs each of them is fitted to.

``last to first``
    A forward pass for each layer, but what lies before a layer has not been changed yet: the outputs are the old ones.
``at once``
    One forward pass for all layers, plans made from it for all, applied from the first to the last.
``first to last``
    A forward pass for each layer: each is fitted to what the layers before it make now.
"""

from __future__ import annotations

from network_surgery.ops import PCNS, Signals, SurgeryError, apply
from network_surgery.study.data import Dataset
from network_surgery.study.experiments.pcns.trained import SETTINGS, Setting, Trained, cut

ORDERS = ("last to first", "at once", "first to last")
THRESHOLDS = (1e-1, 1e-2, 1e-3)
#: (setting, basis, threshold, order) → accuracy right after, units kept, change of the loss; None if refused.
Ordered = dict[tuple[str, str, float, str], tuple[float, float, float] | None]


def measure(seed: int, dataset: Dataset, settings: tuple[Setting, ...] = SETTINGS) -> Ordered:
    """Every order for one seed, nothing trained afterwards."""
    found: Ordered = {}
    for setting in settings:
        trained = Trained(setting, seed, dataset)
        for basis in ("pivoted", "eigen"):
            for threshold in THRESHOLDS:
                for order in ORDERS:
                    try:
                        outcome = shrunk(trained, PCNS(threshold, basis), order)
                    except SurgeryError:
                        outcome = None
                    found[setting.name, basis, threshold, order] = outcome
    return found


def shrunk(trained: Trained, operation: PCNS, order: str) -> tuple[float, float, float]:
    """Accuracy on the test images right after, units kept in all, and the change of the test loss.

    Raises:
        SurgeryError: the operation or the order cannot be had.
    """
    model, optimizer = trained.copy()
    anatomy = trained.anatomy(model)
    names = list(anatomy)
    if order == "at once":
        signals = Signals.over(model, trained.shown(), anatomy.values())
        for plan in [operation.propose(anatomy[name], signals) for name in names]:
            apply(plan, optimizer)
    else:
        for name in names if order == "first to last" else reversed(names):
            cut(trained, model, optimizer, name, operation, ())
    kept = sum(layer.units for layer in trained.anatomy(model).values())
    return trained.accuracy(model), float(kept), trained.loss(model) - trained.loss(trained.model)

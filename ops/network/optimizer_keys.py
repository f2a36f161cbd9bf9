"""What optimizers keep for a parameter: by class and key, how it answers to the scale of the gradient.

``KEYS`` is the one table. A class goes by the package that it comes from and its name; subclasses inherit the keys of
their bases. The meaning of an entry was read from the definition of the update and confirmed by experiment (the same
course with scaled gradients, and with scaled weights; ``tests/ops/network/test_optimizer_keys.py``). What is not in the
table is not guessed from its name, for libraries use one name for several things (``z`` are weights in schedule-free
methods and a sum of gradients and weights in FTRL): surgery refuses it until ``register_state`` declares it. Left out
on purpose: weights that are calculated from sums of gradients (dual averaging: MADGRAD, DAdaptSGD, FTRL), matrices on
the axes of a weight (Shampoo, SOAP), averages of normalized updates, quantized state, curvature (AdaHessian, Sophia).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor
from torch.optim import Optimizer

from network_surgery.ops.errors import SurgeryError

Name = Literal["magnitude", "sign", "weights", "fixed"]
#: What becomes of an entry when the gradient is multiplied by ``s`` from now on and, in hindsight, always was: a whole
#: number ``n``: it is multiplied by ``s ** n``; ``"magnitude"``: by ``|s|``; ``"sign"``: by the sign of ``s``;
#: ``"weights"``: it is a copy or an average of weights and becomes what they become; ``"fixed"``: it belongs to no unit
#: and stays as it is, whatever its shape.
Degree = int | Name

_SGD: Mapping[str, Degree] = {"momentum_buffer": 1}
_MOMENTUM: Mapping[str, Degree] = {"momentum": 1}
_LION: Mapping[str, Degree] = {"exp_avg": 1}
_ADAM: Mapping[str, Degree] = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_ADABELIEF: Mapping[str, Degree] = {"exp_avg": 1, "exp_avg_var": 2, "max_exp_avg_var": 2}
_NORMALIZED: Mapping[str, Degree] = {"exp_avg": "sign", "exp_avg_sq": 2, "max_exp_avg_sq": 2}  # sums g / √exp_avg_sq
_DIFFGRAD: Mapping[str, Degree] = {**_ADAM, "previous_grad": 1}
_ADAPTED: Mapping[str, Degree] = {**_ADAM, "s": 1}
_PRODIGY: Mapping[str, Degree] = {**_ADAPTED, "p0": "weights"}
_PID: Mapping[str, Degree] = {"grad_buffer": 1, "i_buffer": 1, "d_buffer": 1}
_RANGER: Mapping[str, Degree] = {**_ADAM, "slow_buffer": "weights"}
_FACTORED: Mapping[str, Degree] = {"exp_avg_sq": 2, "exp_avg_sq_row": 2, "exp_avg_sq_col": 2}
_FREE: Mapping[str, Degree] = {"z": "weights", "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_FREE_REFERENCE: Mapping[str, Degree] = {**_FREE, "x": "weights", "y": "weights"}
_ONE_MOMENT: Mapping[str, Degree] = {"state1": 1}
_ONE_SQUARE: Mapping[str, Degree] = {"state1": 2}
_TWO_MOMENTS: Mapping[str, Degree] = {"state1": 1, "state2": 2}

#: Package → class → key → degree.
KEYS: Mapping[str, Mapping[str, Mapping[str, Degree]]] = {
    "torch": {
        "Adadelta": {"square_avg": 2, "acc_delta": 0},  # averages (g √acc_delta / √square_avg)², up to eps
        "Adafactor": {"variance": 2, "row_var": 2, "col_var": 2},
        "Adagrad": {"sum": 2},
        "Adam": _ADAM,
        "AdamW": _ADAM,
        "Adamax": {"exp_avg": 1, "exp_inf": "magnitude"},  # the largest |g|, decayed, up to eps
        "ASGD": {"ax": "weights"},
        "Muon": _SGD,
        "NAdam": _ADAM,
        "RAdam": _ADAM,
        "RMSprop": {"square_avg": 2, "grad_avg": 1, "momentum_buffer": "sign"},  # sums g / √square_avg, up to eps
        "Rprop": {"prev": 1, "step_size": 0},  # step sizes look at signs of g × prev only
        "SGD": _SGD,
        "SparseAdam": _ADAM,
        # Attributes of the parameter itself: the gradient in full precision (Megatron), of each sample, and their sum
        "Parameter": {"main_grad": 1, "grad_sample": 1, "summed_grad": 1},
    },
    "adabelief_pytorch": {"AdaBelief": _ADABELIEF},
    "adan_pytorch": {"Adan": {"prev_grad": 1, "m": 1, "v": 1, "n": 2}},
    "apex": {"FusedAdagrad": {"sum": 2}, "FusedAdam": _ADAM, "FusedLAMB": _ADAM, "FusedSGD": _SGD},
    "bitsandbytes": {  # of 32 bits; what they keep in 8 bits are codes, which are refused
        **dict.fromkeys(("Adagrad", "Adagrad32bit", "RMSprop", "RMSprop32bit"), _ONE_SQUARE),
        **dict.fromkeys(("LARS", "Lion", "Lion32bit", "PagedLion", "PagedLion32bit", "SGD", "SGD32bit"), _ONE_MOMENT),
        **dict.fromkeys(("Adam", "Adam32bit", "LAMB", "LAMB32bit", "PagedAdam", "PagedAdam32bit"), _TWO_MOMENTS),
        **dict.fromkeys(("AdamW", "AdamW32bit", "PagedAdamW", "PagedAdamW32bit"), _TWO_MOMENTS),
    },
    "dadaptation": {
        "DAdaptAdam": _ADAPTED,
        "DAdaptAdan": {**_ADAPTED, "exp_avg_diff": 1, "pre_grad": 1},
        "DAdaptLion": {"exp_avg": 1, "s": "sign"},
    },
    "deepspeed": {"DeepSpeedCPUAdam": _ADAM, "DeepSpeedCPULion": _LION, "FusedAdam": _ADAM, "FusedLion": _LION},
    "lion_pytorch": {"Lion": _LION},
    "muon": {
        "Muon": _SGD,
        "MuonWithAuxAdam": {**_SGD, **_ADAM},
        "SingleDeviceMuon": _SGD,
        "SingleDeviceMuonWithAuxAdam": {**_SGD, **_ADAM},
    },
    "prodigyopt": {"Prodigy": _PRODIGY},
    "pytorch_optimizer": {
        **dict.fromkeys(("AdaBound", "AdamC", "AdamP", "AdamS", "AvaGrad", "Grams", "Lamb", "PAdam"), _ADAM),
        **dict.fromkeys(("QHAdam", "RAdam", "SWATS", "StableAdamW"), _ADAM),
        **dict.fromkeys(("AdaBelief", "AdaNorm"), _ADABELIEF),
        **dict.fromkeys(("Lion", "Tiger"), _LION),
        **dict.fromkeys(("QHM", "SGDSaI", "SGDW", "SignSGD"), _SGD),
        "ADOPT": _NORMALIZED,
        "AdEMAMix": {**_ADAM, "exp_avg_slow": 1},
        "AdaMax": {"exp_avg": 1, "exp_inf": "magnitude"},
        "AdaPNM": {**_ADAM, "neg_exp_avg": 1},
        "Adan": {**_ADAM, "exp_avg_diff": 1, "previous_grad": 1},
        "AggMo": _SGD,
        "DAdaptAdam": _ADAPTED,
        "DAdaptLion": {"exp_avg": 1, "s": "sign"},
        "DiffGrad": _DIFFGRAD,
        "FAdam": {"momentum": "sign", "fim": 2},
        "GrokFastAdamW": {**_ADAM, "grok_exp_avg": 1},
        "LaProp": {**_NORMALIZED, "exp_mean_avg_beta2": 1},
        "Lookahead": {"slow_params": "weights"},
        "PID": _PID,
        "PNM": {"pos_momentum": 1, "neg_momentum": 1},
        "Prodigy": _PRODIGY,
        "Ranger": _RANGER,
        "SAM": {"old_p": "weights"},
        "SGDP": _MOMENTUM,
        "ScheduleFreeAdamW": _FREE,
        "ScheduleFreeRAdam": _FREE,
        "ScheduleFreeSGD": _FREE,
    },
    "pytorch_ranger": {"Ranger": _RANGER, "RangerQH": _RANGER},
    "schedulefree": {
        **dict.fromkeys(("AdamWScheduleFree", "AdamWScheduleFreeClosure", "AdamWScheduleFreePaper"), _FREE),
        **dict.fromkeys(("RAdamScheduleFree", "RAdamScheduleFreeClosure"), _FREE),
        **dict.fromkeys(("SGDScheduleFree", "SGDScheduleFreeClosure"), _FREE),
        **dict.fromkeys(("AdamWScheduleFreeReference", "SGDScheduleFreeReference"), _FREE_REFERENCE),
    },
    "timm": {
        **dict.fromkeys(("AdamP", "AdamWLegacy", "Lamb", "NAdamLegacy", "NAdamW", "RAdamLegacy"), _ADAM),
        **dict.fromkeys(("Adopt", "LaProp"), _NORMALIZED),
        **dict.fromkeys(("Lars", "SGDW"), _SGD),
        "AdaBelief": _ADABELIEF,
        "Adan": {**_ADAM, "exp_avg_diff": 1, "neg_pre_grad": 1},
        "Lion": _LION,
        "Lookahead": {"lookahead_slow_buff": "weights"},
        "SGDP": _MOMENTUM,
    },
    "torch_optimizer": {
        **dict.fromkeys(("AdaBound", "AdamP", "Lamb", "QHAdam", "RAdam", "SWATS"), _ADAM),
        **dict.fromkeys(("LARS", "QHM", "SGDW"), _SGD),
        "Adafactor": _FACTORED,
        "AggMo": _SGD,
        "DiffGrad": _DIFFGRAD,
        "Lookahead": {"slow_param": "weights"},
        "PID": _PID,
    },
    "transformers": {"Adafactor": _FACTORED},
}  # fmt: skip

_declared: dict[type, dict[str, Degree]] = {}


def register_state(optimizer_class: type, key: str, degree: Degree) -> None:
    """Declares what an optimizer of another library keeps for a parameter, so that it can follow the units.

    ``optimizer_class``: the class, whose subclasses inherit it; ``torch.nn.Parameter`` for an attribute that parameters
    carry under any optimizer. ``key``: the name of the entry in ``optimizer.state[parameter]``, of a list beside
    ``params`` in a parameter group, or of an attribute of the parameter. Its tensors have the parameter's shape, or
    one more axis in front, or the parameter's entries in one row. ``degree``: what happens to it where the gradient is
    multiplied by ``s``:

    =============== ==================================================================================
    0, 1, 2, …      it is multiplied by ``s ** degree``: 1 for an average of gradients, 2 of their squares
    ``"magnitude"`` it is multiplied by ``|s|``: the largest gradient so far
    ``"sign"``      it is multiplied by the sign of ``s``: an average of gradients over their own size
    ``"weights"``   it is a copy or an average of the weights, and becomes what they become
    ``"fixed"``     it belongs to no unit and stays as it is, whatever its shape
    =============== ==================================================================================

    Not for state that weights are calculated from at every step (dual averaging): whatever follows, they would jump.

    Raises:
        SurgeryError: not a class of optimizers or tensors, not a name, or no such degree.

    >>> class Signed(Optimizer):
    ...     '''Keeps an average of gradients in ``state[parameter]["average"]``.'''
    >>> register_state(Signed, "average", 1)
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, (Optimizer, Tensor))):
        raise SurgeryError(f"register_state needs a class of optimizers or torch.nn.Parameter, not {optimizer_class!r}")
    if not isinstance(key, str):
        raise SurgeryError(f"register_state needs the name of a state entry, not {key!r}")
    whole = isinstance(degree, int) and not isinstance(degree, bool) and degree >= 0
    if not whole and degree not in get_args(Name):
        names = ", ".join(map(repr, get_args(Name)))
        raise SurgeryError(f"register_state needs a degree of 0, 1, 2, …, {names}, not {degree!r}")
    _declared.setdefault(optimizer_class, {})[key] = degree


def degree_of(kind: type, key: str) -> Degree | None:
    """The degree of what this class keeps under this key, None where that is not known."""
    for each in kind.__mro__:
        package = KEYS.get(each.__module__.partition(".")[0], {})
        for known in (_declared.get(each, {}), package.get(each.__name__, {})):
            if key in known:
                return known[key]
    return None

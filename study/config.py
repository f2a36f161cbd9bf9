"""The settings of a study, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from pydantic import BeforeValidator, Field

from network_surgery.study.declare import COMMAS, About, Declared, Number, Text, Truth, Whole, such_that
from network_surgery.study.errors import StudyError
from network_surgery.study.secrets import take_password

#: What a study may optimize on validation; ``accuracy`` is the metric of a task whose metric it is.
Objective = Literal["metric", "accuracy", "loss", "parameters", "flops", "seconds"]
METRIC = frozenset(("metric", "accuracy"))
#: What a budget may limit besides the task's metric.
SIZES = ("parameters", "flops", "latency", "bytes")
#: Seeds of the search's repeats (``racing``) begin so far from its own: those of the comparison follow that one.
REPEATS_FROM = 1000
#: More epochs or trials are a slip of the finger.
MOST = 1_000_000
#: What a study did that says nothing of a setting, since it is older than that.
OLDER: dict[str, Any] = {"controls": True, "racing": 1, "sampling": "generations"}
Arm = Literal[
    "original", "surgery", "restart_flops", "restart", "restart_seconds", "restart_fair", "original_flops",
    "restart_late_flops", "restart_late", "operate_first_flops", "operate_first", "uniform", "prune_end",
    "prune_end_rewind_lr", "prune_end_rewind", "random", "distill", "snip", "random_init", "gradmax", "net2net",
    "stacking",
]  # fmt: skip
ARMS: tuple[Arm, ...] = get_args(Arm)
_BOTH: tuple[Arm, ...] = (
    "prune_end", "prune_end_rewind_lr", "prune_end_rewind", "random", "distill", "gradmax", "net2net",
    "stacking",
)  # fmt: skip
#: Arms that have a name together: few and cheap ones, all, and those of a question's two accountings
#: (``study.arms.cost``).
GROUPS: dict[str, tuple[Arm, ...]] = {
    "default": ("original", "surgery", "restart_flops", "restart", "uniform", "prune_end", "random"),
    "all": ARMS,
    "given": ("original", "surgery", "restart_late_flops", "restart_late", *_BOTH),
    "zero": (
        "original", "surgery", "restart_flops", "restart", "restart_seconds", "restart_fair", "original_flops",
        "operate_first_flops", "operate_first", "uniform", "snip", "random_init", *_BOTH,
    ),
}  # fmt: skip
#: What training may start from besides files and folders.
STARTS = ("none", "factory", "torchvision")
OTHERS = ", ".join(arm for arm in ARMS if arm != "surgery")


def _different(names: tuple[str, ...]) -> bool:
    return 0 < len(names) == len(set(names))


def _objectives(names: tuple[str, ...]) -> bool:
    return _different(names) and len(METRIC & set(names)) < 2


def _limits(value: Any) -> Any:
    """A budget as the command line has it, ``parameters=0.2,flops=0.5``; ``none`` is no budget."""
    if not isinstance(value, str):
        return value
    return dict(part.strip().split("=") for part in value.split(",")) if value.strip() != "none" else None


def _comparable(arms: tuple[Arm, ...]) -> bool:
    rivals = {arm for arm in arms if arm.removesuffix("_flops") in ("restart", "restart_late", "operate_first")}
    return "surgery" in arms and bool(rivals or {*arms} <= {"original", "surgery"}) and _different(arms)


def _expand_groups(names: Any) -> Any:
    """A list of arms with groups' names in it, as a list of arms, in the order of all."""
    if not isinstance(names, (list, tuple)) or not {str(name) for name in names} & GROUPS.keys():
        return names
    found = [arm for name in names for arm in GROUPS.get(str(name), (name,))]
    return [arm for arm in ARMS if arm in found] + [name for name in found if name not in ARMS]


Count = Annotated[Whole, Field(ge=1), "a whole number of at least 1"]
AtLeast2 = Annotated[Whole, Field(ge=2), "a whole number of at least 2"]
CountOr0 = Annotated[Whole, Field(ge=0), "a whole number, 0 or more"]
Seed = Annotated[Whole, Field(ge=0, lt=2**32), f"a whole number from 0 to {2**32 - 1}"]
Positive = Annotated[Number, Field(gt=0), "a number above 0"]
PositiveOr0 = Annotated[Number, Field(ge=0), "0 or a number above"]
Fraction = Annotated[Number, Field(gt=0, lt=1), "a number between 0 and 1"]
FractionOr0 = Annotated[Number, Field(ge=0, lt=1), "0 or a number between 0 and 1"]
Steps = Annotated[
    tuple[Fraction, ...], COMMAS, such_that(lambda steps: sorted(set(steps)) == list(steps) != []),
    "a list of rising numbers between 0 and 1",
]  # fmt: skip
Share = Annotated[Number, Field(gt=0, le=1), "a number above 0 and at most 1"]
Gpus = Annotated[
    Number, Field(ge=0), such_that(lambda gpus: gpus <= 1), "from 0 to 1, since a training run uses one GPU at most"
]
Targets = Annotated[tuple[Number, ...], COMMAS, "a list of numbers, values of the task's metric"]
Objectives = Annotated[
    tuple[Objective, ...], COMMAS, such_that(_objectives),
    f"a list of names, one or several of {', '.join(get_args(Objective))}, none of them twice",
]  # fmt: skip
Budget = Annotated[
    Annotated[dict[str, Number], Field(min_length=1)] | None, BeforeValidator(_limits),
    "a mapping such as {parameters: 0.2, flops: 0.5}, on the command line parameters=0.2,flops=0.5; or none",
]  # fmt: skip
Arms = Annotated[
    tuple[Arm, ...], BeforeValidator(_expand_groups), COMMAS, such_that(_comparable),
    f"{', '.join(GROUPS)}, or a list of surgery and any of {OTHERS}, none twice; more than original and surgery only "
    "together with restart, restart_late or operate_first, or one of these at equal FLOPs",
]  # fmt: skip
Schedules = Annotated[  # the steps themselves are checked by ops.Schedule
    tuple[Annotated[list[dict[Any, Any]], Field(min_length=1)], ...],
    "a list of schedules, each a list of steps such as {when: 2ep, layer: fc1, op: min_weight, keep: 0.5}",
]
Parameters = Annotated[
    tuple[Annotated[dict[str, Any], Field(min_length=1)], ...],
    "a list of parameters with their values, such as {op: min_weight, keep: 0.5}",
]
Reference = Annotated[
    Text, Field(pattern=r"^([\w.]+|.+\.py):\w+$"), "text of the form MODULE:FUNCTION or FILE.py:FUNCTION"
]
Device = Annotated[Text, Field(pattern=r"^[a-z]+$"), "a device type of torch such as cpu, cuda or mps, or auto"]
State = Literal["carry", "reset"]
#: The environment variable that holds the password of ``storage``.
PASSWORD = "NETWORK_SURGERY_STORAGE_PASSWORD"
Layout = Annotated[
    Annotated[bool, Field(strict=True)] | Literal["auto"],
    BeforeValidator(lambda value: value == "true" if value in ("true", "false") else value),
    "true, false or auto",
]
#: YAML reads true and false as such, the command line as text.
Stream = Annotated[
    Literal["auto", "true", "false"],
    BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value),
]
Augment = Literal["none", "flip", "crop_flip", "trivial", "randaugment"]


@dataclass(frozen=True)
class Settings(Declared):
    """Everything that decides what a study computes, and where it runs: see ``study.declare`` for what a field says.

    Raises:
        StudyError: a value that is not right.
    """

    # What is trained, and on what.
    task: Annotated[Text, About("images, text, or FILE.py:CLASS or MODULE:CLASS of one's own", later=True)] = "images"
    data: Annotated[
        Text,
        About(
            "digits, mnist, fashion_mnist, cifar10, cifar100, svhn, or folder:PATH with PATH/train/CLASS/*.png and "
            "PATH/test/CLASS/*, or PATH/CLASS/* alone; of text: stdlib, or folder:PATH with text files"
        ),
    ] = "digits"
    image_size: Annotated[
        Count | None,
        About(
            "Side in pixels of the square that every image is resized and cropped to; by default as they are",
            later=True,
        ),
    ] = None
    stream: Annotated[
        Stream,
        About("read a folder's images as they are needed; auto: if they are many or differ in size", decides=False),
    ] = "auto"
    workers: Annotated[
        CountOr0 | None,
        About("Processes of a trial that read streamed images; by default one less than its CPU cores", decides=False),
    ] = None
    model: Annotated[
        Text,
        About(
            "small_cnn, mlp, lenet_300_100, lenet_5, resnet18, vgg16, torchvision:NAME or MODULE:FACTORY; "
            "of text: gpt, gpt_gelu, transformers:NAME_OR_FOLDER or MODULE:FACTORY"
        ),
    ] = "small_cnn"
    start: Annotated[
        Text,
        About(
            "what training starts from: none, torchvision (its weights of the model), a file of torch or safetensors, "
            "or a folder with model.safetensors",
            later=True,
        ),
    ] = "none"
    start_digest: Annotated[
        Text | None, About("Fingerprint of what it starts from; a study writes it", option=False, later=True)
    ] = None
    normalize: Annotated[
        Literal["half", "imagenet"] | None,
        About(
            "mean and deviation that images are scaled by: 0.5, or ImageNet's; by default ImageNet's for the weights "
            "of torchvision, else 0.5",
            later=True,
        ),
    ] = None
    train_images: Annotated[
        Count | None,
        About("Maximum number of training images (of text: windows), validation included; by default all"),
    ] = None
    context: Annotated[Count, About("Bytes in a window of text", later=True)] = 128
    validation: Annotated[Fraction, About("Fraction of the training images for validation", option=False)] = 0.25
    split: Annotated[
        Literal["fixed", "seed"],
        About("the validation images; seed: drawn anew by the seed of each run, for few data", later=True),
    ] = "fixed"
    # How it is trained.
    epochs: Annotated[Count, About("Epochs of every training run")] = 10
    batch_size: Annotated[Count, About("Images in a batch")] = 32
    optimizer: Annotated[
        Text, About("adam, adamw, sgd (momentum 0.9), a class of torch.optim, FILE.py:FACTORY or MODULE:FACTORY")
    ] = "adam"
    optimizer_arguments: Annotated[
        dict[str, Any] | None, "a mapping such as {betas: [0.9, 0.95]}",
        About("The optimizer's other arguments, by name", option=False, later=True),
    ] = None  # fmt: skip
    learning_rate: Annotated[Positive, About("The optimizer's learning rate, the largest of its schedule")] = 1e-3
    lr_schedule: Annotated[
        Literal["constant", "step", "cosine", "linear", "one_cycle"],
        About("the learning rate over a whole run", later=True),
    ] = "constant"
    warmup: Annotated[
        FractionOr0,
        About("Fraction of a run in which the learning rate rises; one_cycle has 0.3 by default", later=True),
    ] = 0.0
    lr_steps: Annotated[
        Steps, About("Fractions of a run after which lr_schedule step changes the rate", option=False, later=True)
    ] = (0.5, 0.75)
    lr_factor: Annotated[Fraction, About("What it is multiplied by there", option=False, later=True)] = 0.1
    cycle_momentum: Annotated[
        Truth, About("Whether one_cycle moves the momentum against the learning rate", option=False, later=True)
    ] = True
    weight_decay: Annotated[PositiveOr0, About("The optimizer's weight decay", option=False)] = 0.0
    decay: Annotated[
        Literal["all", "weights"],
        About("the parameters that decay; weights: all but biases, norms and other vectors", option=False, later=True),
    ] = "all"
    l1: Annotated[
        PositiveOr0, About("Strength of L1, which makes weights exactly zero while the network trains", later=True)
    ] = 0.0
    group_lasso: Annotated[
        PositiveOr0,
        About("Strength of the group lasso, which makes all weights of a unit zero together", later=True),
    ] = 0.0
    clip: Annotated[
        Positive | None, About("The largest norm of a step's gradient; longer ones are shortened", later=True)
    ] = None
    accumulate: Annotated[Count, About("Batches of each step of the optimizer", later=True)] = 1
    label_smoothing: Annotated[
        FractionOr0, About("Label smoothing in the training loss of tasks with classes", later=True)
    ] = 0.0
    ema: Annotated[
        Fraction | None,
        About("Decay of a moving average of the weights, which is evaluated and kept in their place", later=True),
    ] = None
    augment: Annotated[
        Augment, About("what is done to every training image; the last two after crop_flip", later=True)
    ] = "none"
    cutout: Annotated[
        CountOr0, About("Side in pixels of a grey square in every training image (0: none)", option=False, later=True)
    ] = 0
    mix: Annotated[
        Literal["none", "mixup", "cutmix"],
        About("how training images are joined in pairs", option=False, later=True),
    ] = "none"
    precision: Annotated[
        Literal["float32", "tf32", "bf16", "fp16"],
        About("of products and convolutions; tf32 and fp16 need a GPU", later=True),
    ] = "float32"
    channels_last: Annotated[
        Layout,
        About(
            "Images lie in memory with their channels last; auto: if a quick measurement finds it faster", later=True
        ),
    ] = False
    compile: Annotated[
        Truth, About("Training steps run through torch.compile; its seconds are booked apart", later=True)
    ] = False
    cuda_graph: Annotated[
        Truth, About("Training steps are replayed as a CUDA graph, where the device and the network allow", later=True)
    ] = False
    deterministic: Annotated[
        Truth, About("On a GPU, only kernels that repeat to the bit; its cost is in the results", later=True)
    ] = False
    optimizer_state: Annotated[
        State, About("what an operation does with the optimizer's state; reset as if the optimizer were made anew")
    ] = "carry"
    # Faults of published code, to repeat its numbers. They decide what is trained, so they are part of a result's key.
    batchnorm_statistics: Annotated[
        State, About("what an operation does with those of the layer that it is done on", option=False)
    ] = "carry"
    accuracy_mode: Annotated[
        Literal["evaluation", "training"],
        About("the mode for losses and accuracies; training takes batches of 1,000", option=False),
    ] = "evaluation"
    train_on_validation: Annotated[Truth, About("Validation images are also trained on", option=False)] = False
    # What is searched.
    trials: Annotated[Count, About("Number of schedules that are searched", decides=False)] = 16
    generation: Annotated[
        Count, About("Number of trials that are sampled together and can run at once", decides=False)
    ] = 4
    sampling: Annotated[
        Literal["auto", "generations", "asynchronous"],
        About(
            "when trials are sampled: generations of them together, so that a study repeats; asynchronous: one "
            "whenever a slot is free, so that no slot waits; auto: asynchronous on several nodes or above 8 slots",
            decides=False,
        ),
    ] = "auto"
    budget: Annotated[
        Budget,
        About(
            "What the network may cost: parameters, flops, latency, bytes, each a fraction of the original (up to 1) "
            "or a number (latency: milliseconds); and how far the metric may fall: parameters=0.2,accuracy=-0.005",
            decides=False,
        ),
    ] = None
    space: Annotated[
        Text,
        About(
            "mixed (without a budget the default), shrink (with one), removal, expansion, eigen_remove, weak_expand, "
            "pcns, dead_units, pruning, tri_factorize, hashing, predicting, sharing, stretching, depth, or "
            "MODULE:FUNCTION or FILE.py:FUNCTION",
            decides=False,
        ),
    ] = None  # type: ignore[assignment]  # settled when the settings are made
    controls: Annotated[
        Truth,
        About("Spaces also offer the controls random_remove and zero_expand, which no one would use", decides=False),
    ] = False
    aftercare: Annotated[
        Truth,
        About(
            "Searches also choose for how long other layers are frozen after an operation, and by what the learning "
            "rate is multiplied",
            decides=False,
        ),
    ] = False
    sampler: Annotated[
        Text,
        About(
            "tpe, grid (every point of a space of choices), one of Optuna's such as 'GPSampler(n_startup_trials=8)', "
            "or MODULE:FACTORY",
            decides=False,
        ),
    ] = "tpe"
    pruner: Annotated[
        Text | None,
        About("One of Optuna's, such as 'MedianPruner(n_warmup_steps=3)', or MODULE:FACTORY", decides=False),
    ] = None
    storage: Annotated[
        Text | None,
        About(
            "Where Optuna keeps its trials: sqlite:///PATH, postgresql://…, mysql://… or journal:PATH; by default "
            "optuna.db in the folder",
            decides=False,
        ),
    ] = None
    enqueue: Annotated[
        Parameters,
        About(
            "Parameters of the search space that are tried first, a line for each trial", option=False, decides=False
        ),
    ] = ()
    schedules: Annotated[
        Schedules, About("These schedules are all compared, and nothing is searched", option=False, decides=False)
    ] = ()
    objective: Annotated[
        Objectives,
        About(
            "loss (on validation: the default), metric (the task's own), or several: metric,parameters,flops,seconds; "
            "parameters by default where the budget limits the metric alone",
            decides=False,
        ),
    ] = None  # type: ignore[assignment]  # settled when the settings are made
    early_stopping: Annotated[
        Literal["none", "asha"],
        About("asha ends unpromising trials early, and forgives what an operation does", decides=False),
    ] = "none"
    first_rung: Annotated[Count, About("First epoch at which trials are judged", option=False, decides=False)] = 2
    reduction: Annotated[
        AtLeast2,
        About("One trial in N goes on from a rung to the next, at N times the epochs", option=False, decides=False),
    ] = 3
    recovery: Annotated[
        CountOr0,
        About("Epochs that a trial has to recover from an operation before it is judged", option=False, decides=False),
    ] = 3
    racing: Annotated[
        Count,
        About(
            "Seeds on which the best schedules of the search are tried before some are compared (1: its own)",
            decides=False,
        ),
    ] = 3
    finalists: Annotated[
        AtLeast2, About("Number of schedules that are tried on more seeds", option=False, decides=False)
    ] = 6
    seed: Annotated[Seed, About("Seed of the search; the comparison takes the following ones", decides=False)] = 0
    # What is compared.
    top: Annotated[Count, About("Number of schedules that are compared with restarting", decides=False)] = 3
    seeds: Annotated[Count, About("Number of seeds of every arm of the comparison", decides=False)] = 5
    arms: Annotated[
        Arms,
        About(f"{', '.join(GROUPS)}, or surgery and what it is held against: {OTHERS}", decides=False),
    ] = GROUPS["default"]
    margin: Annotated[
        Positive | None,
        About(
            "The smallest difference of the metric that matters (accuracies: 0.005 is half a point); by default the "
            "metric's own",
            decides=False,
        ),
    ] = None
    distill_temperature: Annotated[
        Positive, About("What scores are divided by before softmax in the arm distill", option=False, decides=False)
    ] = 4.0
    distill_weight: Annotated[
        Share, About("The teacher's share in the training loss of the arm distill", option=False, decides=False)
    ] = 0.9
    targets: Annotated[
        Targets,
        About(
            "Values of the validation metric (accuracies: 0 … 1) whose time is reported; by default fractions of the "
            "original's",
            option=False, decides=False,
        ),
    ] = ()  # fmt: skip
    page: Annotated[
        Reference | None,
        About(
            "A function MODULE:FUNCTION or FILE.py:FUNCTION that adds a page and figures to the report",
            option=False, decides=False,
        ),
    ] = None  # fmt: skip
    # What is measured on the way.
    held_out: Annotated[
        Count, About("Maximum number of validation samples for the loss around an operation", option=False)
    ] = 512
    signal_images: Annotated[
        Count, About("Maximum number of training samples for operations that read activations", option=False)
    ] = 512
    probe: Annotated[
        CountOr0,
        About("Epochs from one look at redundancy to the next (0, or more than there are: none)", option=False),
    ] = 3
    dead_threshold: Annotated[
        Share | None,
        About("A unit below this fraction of its layer's mean is dead; by default as ops.dead_units", option=False),
    ] = None
    # Where it runs, and where it is tracked.
    device: Annotated[
        Device,
        About("auto (a GPU if Ray has one), cpu, or a device type of torch: cuda, mps, xpu, …", decides=False),
    ] = "auto"
    cpus_per_trial: Annotated[Positive, About("CPU cores of a training run", decides=False)] = 1.0
    gpus_per_trial: Annotated[
        Gpus, About("GPUs of a training run; a fraction shares one, and energy is taken of whole ones", decides=False)
    ] = 0.25
    workers_per_trial: Annotated[
        Count,
        About(
            "Processes that train a network together, each on a part of every batch, with CPU cores and a whole GPU of "
            "its own, on one node or several",
            decides=False,
        ),
    ] = 1
    accelerator: Annotated[
        Text | None,
        About(
            "The type of GPU that training runs take, as Ray calls it: A100, H100, T4, …; by default any", decides=False
        ),
    ] = None
    hang_factor: Annotated[
        PositiveOr0,
        About(
            "Times the median epoch after which a training run that reports no epoch is ended (0: never)",
            option=False, decides=False,
        ),
    ] = 20.0  # fmt: skip
    address: Annotated[Text | None, About("A running Ray cluster: auto, or HOST:PORT", decides=False)] = None
    copy_to: Annotated[
        Text | None,
        About(
            "A URI where the study's folder is copied to while it runs: s3://BUCKET/PATH, gs://, abfs://, hdfs:// or "
            "file:///PATH",
            decides=False,
        ),
    ] = None
    tracking_uri: Annotated[
        Text | None, About("An MLflow server; by default a database in the folder", decides=False)
    ] = None

    def __post_init__(self) -> None:
        self._settle()
        super().__post_init__()
        self._check_budget()
        for name in ("epochs", "trials"):
            if getattr(self, name) > MOST:
                raise StudyError(f"{name} is {getattr(self, name):,}, but it must be at most {MOST:,}")
        if self.seeds >= REPEATS_FROM:
            raise StudyError(f"seeds is {self.seeds:,}, but it must be below {REPEATS_FROM:,}")
        if self.early_stopping != "none":
            self._check_stopping("early_stopping", self.early_stopping)
        if self.pruner is not None:
            self._check_stopping("pruner", self.pruner)
        if self.enqueue and not self.searches:
            raise StudyError("enqueue names trials of a search, and without one every schedule is compared")
        check_password(self.storage)
        if self.tracking_uri is not None:
            object.__setattr__(self, "tracking_uri", take_password("tracking_uri", self.tracking_uri))
        if self.split == "seed" and self.train_on_validation:
            raise StudyError("split is 'seed', but train_on_validation is true, so there is no split; give one of them")
        if self.lr_schedule == "step" and self.lr_steps[0] < self.warmup:
            raise StudyError(f"lr_steps begin at {self.lr_steps[0]}, but the warmup lasts until {self.warmup}")
        self._check_workers()
        if self.device == "cpu" and self.accelerator is not None:
            raise StudyError(f"accelerator is {self.accelerator!r}, but device is 'cpu'; leave out one of them")
        if self.device == "cpu" and self.precision in ("tf32", "fp16"):
            raise StudyError(f"precision is {self.precision!r}, which needs a GPU; on a CPU give 'float32' or 'bf16'")

    def _settle(self) -> None:
        """Gives the settings whose default depends on the budget their value."""
        try:
            limited = set(_limits(self.budget) or ())
        except (TypeError, ValueError):  # refused as soon as it is checked
            limited = set()
        if self.space is None:
            object.__setattr__(self, "space", "shrink" if limited else "mixed")
        if self.objective is None:
            object.__setattr__(self, "objective", ("loss",) if not limited or limited & {*SIZES} else ("parameters",))

    def _check_workers(self) -> None:
        """Raises StudyError where several processes cannot train a network together."""
        if self.workers_per_trial > self.batch_size:
            raise StudyError(
                f"workers_per_trial is {self.workers_per_trial}, but a batch has {self.batch_size} samples to divide; "
                "lower workers_per_trial or raise batch_size"
            )
        for name in ("compile", "cuda_graph"):
            if self.workers_per_trial > 1 and getattr(self, name):
                raise StudyError(
                    f"workers_per_trial is {self.workers_per_trial}, but {name} is true, which is for one worker; "
                    "leave out one of them"
                )

    def _check_budget(self) -> None:
        """Raises StudyError where the budget makes no sense for any task; see also ``search.budget``."""
        budget = self.budget or {}
        others = [name for name in budget if name not in SIZES]
        if len(others) > 1:
            raise StudyError(
                f"budget limits {' and '.join(map(repr, others))}, but besides {', '.join(SIZES)} it can only limit "
                "the task's metric"
            )
        for name in budget.keys() & {*SIZES}:
            value = budget[name]
            if value <= 0 or (value > 1 and not value.is_integer() and name != "latency"):
                whole = "number of milliseconds" if name == "latency" else "whole number"
                raise StudyError(
                    f"budget has {name}: {value:g}, but it must be a fraction of the original, above 0 and at most 1, "
                    f"or a {whole} above 1"
                )
        if budget.keys() == {*others} != set() and {*self.objective} <= METRIC | {"loss"}:
            raise StudyError(
                f"budget only limits {others[0]}, and the objective is {', '.join(self.objective)}, so nothing says "
                f"what should become smaller; limit {', '.join(SIZES[:-1])} or {SIZES[-1]}, too, or leave out objective"
            )

    @property
    def subject(self) -> str:
        """What is trained, in a few words."""
        return self.task.removeprefix("python:") if ":" in self.task else f"{self.model} on {self.data}"

    @property
    def searches(self) -> bool:
        """Whether Optuna searches for schedules; otherwise they are listed, or a grid, and all of them are compared."""
        return self.sampler != "grid" and not self.schedules

    @property
    def short_subject(self) -> str:
        """The same without folders."""
        return Path(self.subject).name if ":" in self.task else f"{self.model} on {Path(self.data).name}"

    @property
    def scaling(self) -> str:
        """How images are scaled: ``half`` or ``imagenet``."""
        return self.normalize or ("imagenet" if self.start == "torchvision" else "half")

    @property
    def readers(self) -> int:
        """Processes of a trial that read what is streamed: its CPU cores but the one that trains."""
        return max(0, int(self.cpus_per_trial) - 1) if self.workers is None else self.workers

    def _check_stopping(self, name: str, value: str) -> None:
        """Early stopping that could not stop anything is refused, not ignored."""
        if self.objective not in (("metric",), ("accuracy",), ("loss",)):
            right = "it compares trials by one value that every epoch has, so it needs objective: metric (or loss)"
        elif not self.searches:
            right = "it stops trials of a search, and without one every schedule is compared whole"
        elif name == "pruner" and self.early_stopping != "none":
            right = f"early_stopping is {self.early_stopping!r}, too; give one of them"
        elif name == "pruner":
            return
        elif self.first_rung >= self.epochs:
            right = f"its first rung, epoch {self.first_rung}, is not before the last of {self.epochs} epochs"
        elif self.sampling != "asynchronous" and self.generation >= self.trials:
            right = f"it compares with earlier generations, and all {self.trials} trials are in one; lower generation"
        else:
            return
        raise StudyError(f"{name} is {value!r}, but {right}")


def check_password(storage: str | None) -> None:
    """Raises StudyError where the URL of a storage has a password in it; the sentence does not repeat it."""
    try:
        parts = urlsplit(storage or "")
        secret = parts.password or set(parse_qs(parts.query)) & {"password", "passwd", "pass"}
    except ValueError:  # no URL at all, which the one who opens it says
        return
    if secret:
        raise StudyError(
            f"storage is a {parts.scheme} URL with a password, which would be written to study.json; leave it out of "
            f"the URL and put it into the environment variable {PASSWORD}"
        )

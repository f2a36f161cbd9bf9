"""A task: what a study needs to know of a training run, and nothing else.

One's own is a subclass of ``Task`` with ``load``, ``model`` and ``loss``, named on the command line as
``--task my.py:MyTask``; see ``study/guide/task.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.ops.signals.losses import IGNORED, cross_entropy
from network_surgery.study.errors import StudyError
from network_surgery.study.task.fingerprint import Fingerprint
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.task.samples import Samples, Sets, Stream


class Task:
    """What is trained. ``load``, ``model`` and ``loss`` must be there; the rest has a default.

    ``metric`` is the primary one, which studies compare; by default the loss of validation. ``recipe``:
    settings that a study of this task has unless the configuration says otherwise, such as ``{"epochs": 30}``.
    ``unit``: what a sample is called, in the plural.
    """

    metric: Metric = Metric("loss", "lower")
    recipe: ClassVar[Mapping[str, Any]] = {}
    unit: str = "samples"
    #: Samples that are evaluated together; None: as many as in a batch of training.
    at_once: int | None = None
    #: Names of the classes that targets are numbers of, where they are.
    classes: tuple[str, ...] = ()
    #: What a study prints of the samples besides their numbers.
    note: str = ""

    def load(self) -> Sets | tuple[Any, Any, Any]:
        """The training, validation and test samples.

        Each a ``Samples`` or a pair ``(inputs, targets)`` of arrays in memory, or a ``Stream`` or a dataset of torch's
        kind that is read as it is needed. It must give the same samples at every call.
        """
        raise NotImplementedError

    def model(self) -> nn.Module:
        """A fresh network. Its initial weights are drawn from torch's random numbers."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch: its mean over the samples (one number), or one for each sample."""
        raise NotImplementedError

    def training_loss(self, outputs: Any, targets: Any) -> Tensor:
        """What training minimizes, where that is not ``loss``: with smoothed labels or a penalty, say."""
        return self.loss(outputs, targets)

    def measure(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Name → a number for each sample (``[batch]``) or more (``[batch, …]``), whose mean over a set is reported.

        What is not a mean over samples is made of such means in ``summarize``.
        """
        return {}

    def summarize(self, means: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Metrics by name, of the means over a whole set: of the loss (``loss``) and of what ``measure`` returns.

        By default those that are single numbers, as they are.
        """
        return {name: float(mean) for name, mean in means.items() if not mean.dim() and name != "loss"}

    def augment(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """A training batch as the network sees it, on the device; what is random is drawn from torch's numbers.

        They are seeded by the run's seed, the epoch and the step, and the network's own are left as they were.
        """
        return inputs, targets

    @property
    def augments(self) -> bool:
        """Whether ``augment`` changes anything."""
        return type(self).augment is not Task.augment

    def resplit(self, seed: int) -> Task:
        """The same task with validation samples that are drawn anew from the training samples, for ``split: seed``.

        The test samples stay, since nothing may be chosen on them.

        Raises:
            StudyError: the task cannot be split so.
        """
        raise StudyError(
            f"split is 'seed', but {type(self).__name__} has a fixed validation set; give it a method resplit(seed), "
            "or leave out split"
        )

    @functools.cached_property
    def sets(self) -> Sets:
        """What ``load`` gives. Raises StudyError where that is nothing of the right kind, or an empty set."""
        given, must = self.load(), f"{type(self).__name__}.load must give three sets (train, validation, test)"
        if isinstance(given, (Mapping, str)) or not isinstance(given, (Sets, Iterable)):
            raise StudyError(f"{must}, not a {type(given).__name__}")
        parts = (given.train, given.validation, given.test) if isinstance(given, Sets) else tuple(given)
        if len(parts) != 3:
            raise StudyError(f"{must}, not {len(parts)}")
        return Sets(*(_set(part, f"{type(self).__name__}.load") for part in parts))

    def fingerprint(self) -> Fingerprint | None:
        """What all samples are: their values in memory, or what a streamed dataset's ``digest`` says.

        None where that is not known, as of a stream whose dataset has no ``digest``.
        """
        parts = [self.train, self.validation, self.test]
        try:
            digests = [part.digest() for part in parts]
        except Exception as error:  # anyone's dataset may fail in any way
            pass_on_memory(error)
            raise StudyError(
                f"a dataset of {type(self).__name__} cannot be fingerprinted: {first_line(error)}"
            ) from error
        if None in digests:
            return None
        size = sum(part.nbytes for part in parts if isinstance(part, Samples))
        return Fingerprint.of(type(self).__name__, size, [str(digest).encode() for digest in digests])

    train = property(lambda self: self.sets.train)
    validation = property(lambda self: self.sets.validation)
    test = property(lambda self: self.sets.test)


def _set(given: Any, where: str) -> Samples | Stream:
    """A set of what ``load`` gave for it. Raises StudyError where it is nothing of the right kind, or too small."""
    if not isinstance(given, (Samples, Stream)):
        if isinstance(given, (tuple, list)) and len(given) == 2:
            given = Samples(*given)
        elif hasattr(given, "__getitem__") and hasattr(given, "__len__"):
            given = Stream(given)
        else:
            raise StudyError(
                f"{where} gave a {type(given).__name__} for a set; give Samples, a Stream, a pair (inputs, targets) of "
                "arrays, or a dataset of torch's kind, with a length"
            )
    if len(given) < 2:
        raise StudyError(f"{where} gave a set of {len(given)} sample(s); at least 2 are needed")
    return given


class Classification(Task):
    """Samples with class numbers (or probabilities of classes): cross entropy and accuracy.

    ``outputs [n, classes, …]`` are scores before softmax, ``targets [n, …]``. ``label_smoothing`` (0 … 1) is of
    training alone.
    """

    metric = ACCURACY

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy of each sample, ``[n]``, in nats."""
        return cross_entropy(outputs, targets)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        classes = targets if targets.dim() < outputs.dim() else targets.argmax(dim=1)
        hits = (outputs.argmax(dim=1) == classes) & (classes != IGNORED)
        counted = (classes != IGNORED).flatten(1).sum(dim=1).clamp(min=1) if classes.dim() > 1 else 1
        return {"accuracy": hits.reshape(len(hits), -1).sum(dim=1).double() / counted}


#: For what has sets and a network of its own already.
CLASSIFICATION = Classification()


def call(model: nn.Module, inputs: Any) -> Any:
    """What a network returns for ``inputs``: a tensor, a tuple or list of arguments, or a dict of named ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def summarize(task: Task, means: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
    """A task's metrics by name, and the primary one, of means over a set.

    Raises:
        StudyError: the task does not give the metric that it names as its own, or gives no number for it.
    """
    try:
        metrics = {name: float(value) for name, value in task.summarize(means).items()}
    except Exception as error:  # anyone's code may fail in any way
        pass_on_memory(error)
        raise StudyError(
            f"{type(task).__name__}.summarize must give a number for each metric, but it fails: {first_line(error)}"
        ) from error
    known = metrics if task.metric.name != "loss" else {"loss": float(means["loss"]), **metrics}
    if task.metric.name not in known:
        raise StudyError(
            f"{type(task).__name__}.metric is {task.metric.name!r}, but measure and summarize give "
            f"{', '.join(metrics) or 'nothing'}; one of them must give it"
        )
    return metrics, known[task.metric.name]

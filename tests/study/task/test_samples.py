"""Sets: held and streamed ones give the same batches, are cut alike, and say in one sentence what will not do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from network_surgery.study.errors import StudyError
from network_surgery.study.task.samples import Batches, Samples, Stream, evenly, first, join, size_of

CPU = torch.device("cpu")
Draw = Callable[[], float]


class Pairs(Dataset[Any]):
    """Numbers and their squares; ``at`` is the number of a sample that fails, and how."""

    def __init__(self, count: int = 10, at: int | None = None, error: BaseException | None = None) -> None:
        self.count, self.at, self.error = count, at, error

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number == self.at and self.error is not None:
            raise self.error
        return torch.tensor([float(number)]), number**2

    def digest(self) -> str:
        return f"{self.count} numbers"


class Drawn(Pairs):
    """What is read is drawn anew each time, from one of the three kinds of random numbers."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.tensor([number + self.draw()]), number


DRAWS = [lambda: float(torch.rand(())), np.random.rand, random.random]


def batches(stream: Stream, seed: int = 0, size: int = 4) -> list[list[float]]:
    parts = torch.arange(len(stream)).split(size)
    return [inputs.flatten().tolist() for inputs, _ in Batches(stream, CPU).over(parts, seed)]


def seed_all() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


# -- samples in memory ---------------------------------------------------------------------------------------------


def test_inputs_may_be_any_tree_of_arrays() -> None:
    samples = Samples({"a": torch.arange(6), "b": (np.ones((6, 2)), [np.arange(6.0)])}, [np.arange(6), torch.zeros(6)])
    assert len(samples) == 6
    inputs, targets = Batches(samples, CPU).take(torch.tensor([4, 1]))
    assert inputs["a"].tolist() == [4, 1] and inputs["b"][0].shape == (2, 2) and inputs["b"][1][0].tolist() == [4, 1]
    assert targets[0].tolist() == [4, 1] and size_of(inputs) == size_of(targets) == 2
    assert samples.thinned(3).inputs["a"].tolist() == evenly(6, 3).tolist() == [0, 2, 5]
    assert first(inputs, 1)["b"][1][0].tolist() == [4] and join([inputs, inputs])["a"].tolist() == [4, 1, 4, 1]


def test_a_fingerprint_is_of_every_array() -> None:
    one = Samples((np.arange(4), np.zeros(4)), np.arange(4))
    assert one.digest() == Samples((np.arange(4), np.zeros(4)), np.arange(4)).digest()
    for other in (
        Samples((np.arange(4), np.ones(4)), np.arange(4)),
        Samples((np.arange(4), np.zeros(4)), np.arange(4)[::-1]),
        one.take(np.array([1, 0, 2, 3])),
    ):
        assert other.digest() != one.digest()


@pytest.mark.parametrize(
    ("inputs", "targets", "sentence"),
    [
        (np.zeros(3), np.zeros(4), "all of the same number; these have 3, 4"),
        (np.zeros(()), np.zeros(1), "one entry for each sample"),
        ((), (), "these have none"),
        (np.array(["a"]), np.zeros(1), "must be numbers, not ndarray of <U1"),
        (object(), np.zeros(1), "must be numbers, not object"),
    ],
)
def test_what_are_no_samples(inputs: Any, targets: Any, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        Samples(inputs, targets)


# -- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_what_the_same_samples_in_memory_give(workers: int) -> None:
    held = Batches(Samples(np.arange(10.0, dtype=np.float32)[:, None], np.arange(10) ** 2), CPU)
    read = Batches(Stream(Pairs(), workers), CPU)
    order = torch.tensor([7, 1, 1, 9, 0, 3, 2])
    for one, other in ((held.over(order.split(3)), read.over(order.split(3))), (held.whole(4), read.whole(4))):
        assert join(list(one))[0].tolist() == join(list(other))[0].tolist()
    for index in (order, slice(None), slice(2, 5)):
        for one, other in zip(held.take(index), read.take(index), strict=True):
            torch.testing.assert_close(one, other)


def test_a_stream_is_cut_as_samples_are() -> None:
    stream = Stream(Pairs(), workers=2)
    cut = stream.take(np.array([9, 3, 4])).take(np.array([2, 0]))
    assert (len(cut), cut.workers, batches(cut)) == (2, 2, [[4.0, 9.0]])
    assert batches(stream.thinned(3)) == [[0.0, 4.0, 9.0]] and len(stream) == 10
    assert Batches(cut, CPU).take(torch.tensor([1]))[1].tolist() == [81]


def test_the_fingerprint_of_a_stream_is_the_dataset_s_and_of_which_samples_it_has() -> None:
    stream = Stream(Pairs())
    assert stream.digest() == "10 numbers"
    cut = stream.take(np.array([1, 2]))
    assert cut.digest() == stream.take(np.array([1, 2])).digest() not in (None, stream.digest())
    assert cut.digest() != stream.take(np.array([2, 1])).digest() != Stream(Pairs(9)).take(np.array([2, 1])).digest()
    assert Stream(TensorDataset(torch.zeros(3))).digest() is None


@pytest.mark.parametrize("draw", DRAWS, ids=["torch", "numpy", "python"])
def test_random_reading_follows_the_seed_whatever_the_number_of_workers(draw: Draw) -> None:
    alone, two, three = (Stream(Drawn(draw), workers) for workers in (0, 2, 3))
    assert batches(alone, 1) == batches(two, 1) == batches(three, 1) != batches(alone, 2)
    numbers = sorted(x % 1 for part in batches(alone, 1) for x in part)
    assert len({round(x, 5) for x in numbers}) == 10
    assert batches(two, 1)[1] == batches(two.take(np.arange(4, 8)), 1)[0]  # of the batch's own samples alone
    seed_all()
    expected = [each() for each in DRAWS]
    seed_all()
    batches(alone)
    batches(two)
    Batches(alone, CPU).take(slice(0, 3))
    assert [each() for each in DRAWS] == expected  # training draws as if nothing had been read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (Pairs(at=6, error=ValueError("the sixth\nis odd")), "sample 6 of Pairs cannot be read: ValueError: the sixth"),
        (Pairs(at=6, error=StudyError("six is no number")), "six is no number"),
        (Pairs(at=6, error=KeyError(6)), "sample 6 of Pairs cannot be read: KeyError: 6"),
        (Pairs(at=6, error=IndexError()), "sample 6 of Pairs cannot be read: IndexError"),
        (Pairs(at=6, error=StopIteration()), "sample 6 of Pairs cannot be read: StopIteration"),
    ],
)
def test_what_a_dataset_raises_is_one_sentence(dataset: Pairs, sentence: str, workers: int) -> None:
    with pytest.raises(StudyError) as caught:
        batches(Stream(dataset, workers))
    assert str(caught.value) == sentence
    with pytest.raises(StudyError) as caught:
        Batches(Stream(dataset, workers), CPU).take(slice(None))
    assert str(caught.value) == sentence


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_that_runs_out_stays_what_it_is(workers: int) -> None:
    with pytest.raises(MemoryError):
        batches(Stream(Pairs(at=6, error=MemoryError()), workers))


def test_samples_that_make_no_batch() -> None:
    class Growing(Pairs):
        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            return torch.zeros(number), number

    with pytest.raises(StudyError, match="a batch of 4 samples of Growing cannot be read: RuntimeError: stack expects"):
        batches(Stream(Growing()))
    for collate, kind in ((lambda samples: None, "NoneType"), (lambda samples: default_collate(samples)[0], "Tensor")):
        with pytest.raises(StudyError, match=f"must give pairs of inputs and targets; .* streamed samples is a {kind}"):
            batches(Stream(Pairs(), collate=collate))


def test_a_process_that_is_lost() -> None:
    class Killer(Pairs):
        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            import os
            import signal

            if number == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(number)

    with pytest.raises(StudyError, match=r"a process that reads samples was lost .* fewer workers or a smaller batch_"):
        batches(Stream(Killer(), workers=2))


def test_a_dataset_may_read_a_batch_at_once() -> None:
    class AtOnce(Pairs):
        def __getitems__(self, numbers: list[int]) -> list[Any]:
            if 9 in numbers:
                raise OSError("the disk is gone")
            return [(torch.tensor([-1.0 * number]), 0) for number in numbers]

    assert batches(Stream(AtOnce(8))) == [[-0.0, -1.0, -2.0, -3.0], [-4.0, -5.0, -6.0, -7.0]]
    with pytest.raises(StudyError, match="2 samples of AtOnce cannot be read: OSError: the disk is gone"):
        batches(Stream(AtOnce()))


def test_a_dataset_without_a_length() -> None:
    class Endless(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(9))

    with pytest.raises(StudyError, match=r"a Stream needs a dataset with a length .*, which a Endless has not"):
        Stream(Endless())

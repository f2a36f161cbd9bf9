"""Files of compressed networks that were changed by hand, with a valid checksum: one sentence, or a network."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops import Anatomy, MinWeight, SurgeryError, describe, load, operate, save
from network_surgery.ops.network import sealed
from network_surgery.ops.operations.fastfood import Fastfood
from network_surgery.ops.operations.hash_weights import HashWeights
from network_surgery.ops.operations.predict_weights import PredictWeights
from network_surgery.ops.operations.random_edges import RandomEdges
from network_surgery.ops.operations.share_weights import ShareWeights

OPERATIONS: dict[str, Any] = {
    "hash": HashWeights(0.25),
    "edges": RandomEdges(0.25),
    "predicted": PredictWeights(0.25),
    "rbf": PredictWeights(0.25, dictionary="rbf"),
    "codebook": ShareWeights(clusters=5),
    "fastfood": Fastfood(),
}
NAME = "1.weight"
#: Values that a field may have in a file; some are right for some fields.
VALUES: tuple[Any, ...] = (
    None, True, "x", "", 0, -1, 1, 3, 2**40, 2**70, -(2**70), 0.5, math.nan, math.inf, 1j, [], [0], [-1], [1.5], ["x"],
    [2**40, 2**40], [1] * 1000, [[1]], {}, {"0": 1}, {"9": [0]}, {"x": [0]}, {"0": []}, {"0": [10**6]}, {"0": [-1]},
    {"0": [0.5]}, {1: [0]}, torch.zeros(3), torch.tensor(2),
)  # fmt: skip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


@functools.cache
def altered(kind: str) -> nn.Sequential:
    """A network whose first weight is compressed, and then loses units and so has names."""
    model = network()
    anatomy = Anatomy(model, torch.zeros(2, 1, 3, 4))
    operate(anatomy["1"], OPERATIONS[kind])
    operate(anatomy["1"], MinWeight(0.75))
    return model


def doctored(content: Any, path: Path) -> Any:
    with path.open("wb") as file:
        sealed.write(content, file)
    return load(network, path)


def content(kind: str, path: Path) -> Any:
    save(altered(kind), path)
    return sealed.read(path)


def refused(kind: str, path: Path, parts: Any) -> bool:
    """Whether a network with this description is refused, in one sentence; else it is loaded as described."""
    try:
        model = doctored(parts, path)
    except SurgeryError as error:
        assert "\n" not in str(error) and str(error).startswith(f"{path} is not ") and len(str(error)) < 500
        return True
    assert describe(model)["expressed"].keys() == parts["architecture"]["expressed"].keys()
    assert isinstance(model[1].weight, Tensor) and model[1].weight.shape[1] > 0
    return False


def fields(kind: str) -> Iterator[str]:
    yield from describe(altered(kind))["expressed"][NAME]


@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_field_of_another_value_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    """Every field with every value: most are refused; what is not makes a network with a weight."""
    path = tmp_path / "net.pt"
    whole, count = content(kind, path), 0
    assert not refused(kind, path, whole)
    for field, value in itertools.product(fields(kind), VALUES):
        parts = copy.deepcopy(whole)
        parts["architecture"]["expressed"][NAME][field] = value
        count += refused(kind, path, parts)
    assert count > 0.7 * len(VALUES) * len([*fields(kind)])


@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_description_that_lacks_a_field_or_is_none_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    whole = content(kind, path)
    for field in fields(kind):
        parts = copy.deepcopy(whole)
        del parts["architecture"]["expressed"][NAME][field]
        assert refused(kind, path, parts) or field == "names", field
    for data in (None, [], 3, "x", {}, {"kind": []}, {"kind": "x"}, {"kind": kind}):
        parts = copy.deepcopy(whole)
        parts["architecture"]["expressed"][NAME] = data
        assert refused(kind, path, parts), data
    parts = copy.deepcopy(whole)
    parts["architecture"]["expressed"][NAME]["more"] = 1
    assert refused(kind, path, parts)


IMPOSSIBLE = [
    ("codebook", {"block": 0}, "the block 0, which is not a whole number from 1"),
    ("codebook", {"clusters": -1}, "the clusters -1, which is not a whole number from 1"),
    ("codebook", {"clusters": 4}, "what is stored of 1.weight has the shape"),
    ("hash", {"numbers": 0}, "the numbers 0, which is not a whole number from 1"),
    ("hash", {"sign": 1}, "the sign 1, which is not true or false"),
    ("hash", {"shape": [2**20, 2**20]}, "with a product of at most"),
    ("hash", {"names": {"0": [8]}}, "not a list of positions from 0 to 7"),
    ("edges", {"last": 2**32 - 1}, "96 edges are left, not 24"),
    ("predicted", {"dictionary": "x"}, "which is not one of"),
    ("rbf", {"width": 0.0}, "a finite number above 0"),
    ("rbf", {"layout": [5]}, "its layout has not the 12 entries of a row"),
    ("predicted", {"columns": 10**9}, "more columns than its 8 rows"),
    ("fastfood", {"shape": [8, 13]}, "what is stored of 1.weight has the shape"),
]


@pytest.mark.parametrize(("kind", "change", "sentence"), IMPOSSIBLE)
def test_the_sentence_names_parameter_field_and_what_would_be_right(
    kind: str, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    parts = content(kind, tmp_path / "net.pt")
    parts["architecture"]["expressed"][NAME] |= change
    with pytest.raises(SurgeryError) as error:
        doctored(parts, tmp_path / "net.pt")
    assert sentence in str(error.value) and NAME in str(error.value)


def test_codes_out_of_range_are_refused(tmp_path: Path) -> None:
    """Of five clusters a code has three bits, which may hold 5, 6 and 7 as well."""
    parts = content("codebook", tmp_path / "net.pt")
    name = next(name for name in parts["weights"] if name.endswith("_extra_state"))
    for codes in (torch.full_like(parts["weights"][name], 255), parts["weights"][name][:1], torch.zeros(3)):
        parts["weights"][name] = codes
        with pytest.raises(SurgeryError, match="codes of a weight must be"):
            doctored(parts, tmp_path / "net.pt")


@pytest.mark.parametrize("part", ["shapes", "numbers", "masks", "buffers", "modules", "dropout"])
def test_other_parts_of_an_architecture_end_in_one_sentence_too(part: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    whole = content("hash", path)
    for name, value in itertools.product(("1", "1.weight", "3.weight", "x", 3), (*VALUES, {"kind": "x"})):
        parts = copy.deepcopy(whole)
        parts["architecture"].setdefault(part, {})[name] = value
        refused("hash", path, parts)

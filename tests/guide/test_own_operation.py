"""The example of the page about own operations keeps the contract, as the page promises."""

from __future__ import annotations

import pytest

from network_surgery import ops
from network_surgery.ops import OPERATIONS, Operation
from tests.guide.blocks import GUIDE, blocks
from tests.ops.contract import test_operations as contract

PROMISES = [
    contract.test_runs_at_the_new_sizes_and_says_so,
    contract.test_plan_is_sound,
    contract.test_everything_alive_is_trained,
    contract.test_proposing_changes_nothing,
]


@pytest.fixture(autouse=True)
def balanced(monkeypatch: pytest.MonkeyPatch) -> type[Operation]:
    """The class of the page's file, entered into the dictionary by the page's one line."""
    (block,) = [block for block in blocks(GUIDE / "own-operation.md") if block.file == "balanced.py"]
    names: dict[str, type[Operation]] = {}
    exec(compile(block.text, "balanced.py", "exec", dont_inherit=True), names)
    monkeypatch.setitem(OPERATIONS, "balanced", names["Balanced"])
    monkeypatch.setattr(ops, "Balanced", names["Balanced"], raising=False)
    return names["Balanced"]


@pytest.mark.parametrize("network", ["mlp", "cnn", "residual"])
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_it_keeps_the_contract(promise, network: str) -> None:
    promise("balanced", network)


def test_its_surgery_is_undone_and_its_schedule_is_data() -> None:
    contract.test_undo_is_exact("balanced", "cnn", "adam")
    contract.test_optimizer_state_follows_the_units("balanced", "cnn", "adam")
    contract.test_is_plain_data_in_a_schedule("balanced")

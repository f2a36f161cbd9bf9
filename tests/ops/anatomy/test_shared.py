"""What two passes share: the second computes the same as without help, or is spoilt and says so."""

import pytest
import torch

from network_surgery.ops.anatomy.shared import Shared, Spoilt


def _in_place(x):
    one, other = torch.zeros_like(x), torch.zeros_like(x)  # equal calls, memory of their own
    one.add_(x.exp())
    return one.relu_() + other.sub_(1.0)


@pytest.mark.parametrize("more", [lambda x: x, lambda x: (x * 2).relu_(), lambda x: x.clone().add_(1)])
def test_the_second_pass_computes_the_same(more):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    shared = Shared()
    with shared.first():
        _in_place(x)
    with shared.second():
        found = more(_in_place(x)), more(_in_place(x))
    wanted = more(_in_place(x))
    assert torch.equal(found[0], wanted) and torch.equal(found[1], wanted)


def test_a_state_that_is_gone_spoils_it():
    x, shared = torch.randn(3, 4), Shared()
    with shared.first():
        x.exp().relu_().add_(1)
    with pytest.raises(Spoilt), shared.second():
        x.exp() * 3  # the first pass has written to this memory since


def test_memory_of_others_is_not_shared():
    x, weight, shared = torch.randn(3, 4), torch.zeros(4), Shared()
    with shared.first():
        weight.add_(1)
        x + weight
    with pytest.raises(Spoilt), shared.second():
        pass

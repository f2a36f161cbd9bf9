"""The truncated HOSVD against singular value decompositions of the unfoldings, and against tensorly's Tucker."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from network_surgery.ops.maths import hosvd
from network_surgery.ops.maths.hosvd import gram, iterated_tucker, leading, truncated_hosvd

SHAPES = [(12, 8, 1), (8, 12, 1), (9, 9, 1), (10, 6, 9), (6, 10, 4), (40, 4, 3), (4, 40, 3), (5, 1, 9), (1, 5, 1)]
RANKS = [0.01, 0.25, 0.5, 0.9, 1.0]


@functools.lru_cache(4)
def decomposed(content, shape):
    return np.linalg.svd(np.frombuffer(content).reshape(shape), full_matrices=False)[0]


def projected(matrix, size):
    left = decomposed(matrix.tobytes(), matrix.shape)[:, :size]
    return left @ left.T


def brute_force(tensor, rank):
    """Both channel modes projected on the leading left singular vectors of their unfoldings."""
    units, channels = tensor.shape[:2]
    if rank == 1:
        return tensor
    size = max(1, int(rank * min(units, channels)))
    first = projected(tensor.reshape(units, -1), size)
    second = projected(tensor.transpose(1, 0, 2).reshape(channels, -1), size)
    return np.einsum("uv,cd,vdp->ucp", first, second, tensor, optimize=True)


def decaying(shape, power=0.5):
    """Unfoldings whose singular values fall as those of trained weights do, units of different size."""
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in shape[:2])
    falling = [torch.arange(1, n + 1, dtype=torch.float64) ** -power for n in shape[:2]]
    core = torch.randn(shape, dtype=torch.float64) * falling[0][:, None, None] * falling[1][:, None]
    sizes = torch.randn(shape[0], 1, dtype=torch.float64).mul(0.3).exp()
    return torch.einsum("cd,udp->ucp", right, torch.einsum("uv,vdp->udp", sizes * left, core))


KINDS = {"flat": lambda shape: torch.randn(shape, dtype=torch.float64), "decaying": decaying}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", RANKS)
def test_against_numpy(kind, shape, rank):
    tensor = KINDS[kind](shape)
    found, wanted = truncated_hosvd(tensor, rank), brute_force(tensor.numpy(), rank)
    np.testing.assert_allclose(found.tensor().numpy(), wanted, atol=1e-10)
    np.testing.assert_allclose(found.row_norms().numpy(), np.linalg.norm(wanted, axis=(1, 2)), atol=1e-10)
    error = np.linalg.norm(wanted - tensor.numpy()) / np.linalg.norm(tensor.numpy())
    assert found.error == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(160, 140, 9), (140, 300, 1), (300, 140, 1), (320, 48, 4), (48, 300, 4)])
def test_chooses_the_units_that_full_decompositions_choose(kind, shape):
    """Large enough for blocks of the Gram matrix and for part of its eigenvectors."""
    for seed in range(3):
        torch.manual_seed(seed)
        tensor = KINDS[kind](shape)
        for rank in (0.125, 0.5, 0.75):
            found = truncated_hosvd(tensor, rank).row_norms().numpy().argsort()
            wanted = np.linalg.norm(brute_force(tensor.numpy(), rank), axis=(1, 2)).argsort()
            for keep in (0.25, 0.5, 0.75):
                count = int(keep * shape[0])
                assert set(found[-count:]) == set(wanted[-count:]), (seed, rank, keep)


def test_of_a_matrix_is_its_truncated_svd():
    matrix = torch.randn(9, 7, dtype=torch.float64)
    left, values, right = np.linalg.svd(matrix.numpy())
    wanted = left[:, :3] * values[:3] @ right[:3]
    for tensor, expected in ((matrix, wanted), (matrix.T, wanted.T)):
        found = truncated_hosvd(tensor[:, :, None], 3 / 7)
        np.testing.assert_allclose(found.tensor()[:, :, 0].numpy(), expected, atol=1e-10)
        assert found.error == pytest.approx(np.linalg.norm(values[3:]) / np.linalg.norm(values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_zeroes_the_singular_values_below_it(kind, shape):
    """In each mode those of its own unfolding; the largest stays, and at 0 all do."""
    tensor = KINDS[kind](shape)
    unfoldings = [tensor.flatten(1).numpy(), tensor.transpose(0, 1).flatten(1).numpy()]
    values = np.sort(np.concatenate([np.linalg.svd(each, compute_uv=False) for each in unfoldings]))
    values = values[np.diff(values, prepend=-1) > 1e-9]  # those of a matrix are the same on both sides
    for threshold in (0.0, *((values[1:] + values[:-1]) / 2)[::3], values[-1] * 2):
        first, second = (
            projected(each, max(1, int((np.linalg.svd(each, compute_uv=False) >= threshold).sum())))
            for each in unfoldings
        )
        wanted = np.einsum("uv,cd,vdp->ucp", first, second, tensor.numpy(), optimize=True)
        found = truncated_hosvd(tensor, None, threshold)
        np.testing.assert_allclose(found.tensor().numpy(), wanted, atol=1e-9)
        assert threshold > 0 or found.error == 0
    errors = [truncated_hosvd(tensor, None, 1.001 * value).error for value in values]
    assert errors == sorted(errors)


@pytest.mark.parametrize("kind", KINDS)
def test_error_falls_with_the_rank(kind):
    tensor = KINDS[kind]((12, 10, 9))
    errors = [truncated_hosvd(tensor, k / 10).error for k in range(1, 11)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.1 and errors[-1] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0.125, 0.25, 0.5, 0.75])
def test_error_lies_between_tuckers_and_the_bound(kind, rank):
    """No lower than an iterated Tucker's; at most √2 times the best possible, which each single mode bounds below."""
    from tensorly import backend_context
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    tensor = KINDS[kind]((24, 16, 9))
    size = int(rank * 16)
    found = truncated_hosvd(tensor, rank).error
    with backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = partial_tucker(tensor, rank=[size, size], modes=[0, 1], init="svd", svd="truncated_svd")
        iterated = float((multi_mode_dot(core, factors, modes=[0, 1]) - tensor).norm() / tensor.norm())
    assert iterated - 1e-9 <= found <= 2**0.5 * iterated + 1e-9
    unfoldings = (tensor.flatten(1), tensor.transpose(0, 1).flatten(1))
    tails = [float(torch.linalg.svdvals(each)[size:].square().sum()) for each in unfoldings]
    whole = float(tensor.square().sum())
    assert max(tails) <= found**2 * whole * (1 + 1e-9) <= sum(tails) * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_iterated_is_no_worse_than_once_and_the_same_for_a_matrix(shape):
    tensor = decaying(shape)
    for rank in (0.25, 0.5, 1.0):
        once, again = truncated_hosvd(tensor, rank), iterated_tucker(tensor, rank)
        assert again.error <= once.error + 1e-9 and once.error <= 2**0.5 * again.error + 1e-6
        error = float((again.tensor() - tensor).norm() / tensor.norm())
        assert again.error == pytest.approx(error, abs=1e-6) and again.core.shape == once.core.shape
        torch.testing.assert_close(again.row_norms(), again.tensor().flatten(1).norm(dim=1))
        if shape[2] == 1:
            torch.testing.assert_close(again.tensor(), once.tensor())


@pytest.fixture
def iterating(monkeypatch):
    """Every subspace is found by iteration."""
    monkeypatch.setattr(hosvd, "EXACT_UP_TO", 0)
    monkeypatch.setattr(hosvd, "FEW", 1)


@pytest.fixture(params=["exact", "iterating"])
def either_way(request):
    return request.param == "exact" or request.getfixturevalue("iterating")


def test_the_same_input_gives_the_same_result(either_way):
    """Whatever the global generator does, and without touching it; the signs of what comes in do not matter."""
    tensor = decaying((60, 50, 4))
    state = torch.random.get_rng_state()
    first = truncated_hosvd(tensor, 0.125)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    np.random.seed(99)
    again = truncated_hosvd(tensor.clone(), 0.125)
    assert torch.equal(first.core, again.core) and torch.equal(first.tensor(), again.tensor())
    negative = truncated_hosvd(-tensor, 0.125)
    torch.testing.assert_close(negative.tensor(), -first.tensor())
    torch.testing.assert_close(negative.row_norms(), first.row_norms())
    for factor in first.factors:
        assert (factor.gather(0, factor.abs().argmax(dim=0, keepdim=True)) > 0).all()
        torch.testing.assert_close(factor.T @ factor, torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0.25, 0.75, 1.0])
def test_dtype_device_and_shape_stay(dtype, rank):
    tensor = torch.randn(10, 8, 3, dtype=dtype)
    before = tensor.clone()
    found = truncated_hosvd(tensor, rank)
    for result in (found.tensor(), found.row_norms(), found.core):
        assert result.dtype == dtype and result.device == tensor.device
    assert found.tensor().shape == tensor.shape and torch.equal(tensor, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    tensor = decaying((40, 30, 9))
    here, there = truncated_hosvd(tensor, 0.25), truncated_hosvd(tensor.cuda(), 0.25)
    assert there.core.is_cuda and there.error == pytest.approx(here.error)
    torch.testing.assert_close(there.row_norms().cpu(), here.row_norms())


@pytest.mark.parametrize("shape", SHAPES)
def test_degenerate(shape, either_way):
    nothing = truncated_hosvd(torch.zeros(shape, dtype=torch.float64), 0.25)
    assert nothing.error == 0 and not nothing.tensor().any() and not nothing.row_norms().any()
    one = torch.einsum("u,c,p->ucp", *(torch.randn(n, dtype=torch.float64) for n in shape))
    found = truncated_hosvd(one, 0.5)  # of rank one: whole at any rank
    torch.testing.assert_close(found.tensor(), one)
    assert found.error < 1e-6
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(truncated_hosvd(one * scale, 0.5).tensor() / scale, one)


@pytest.mark.parametrize("rows", [1, 5, 128, 129, 300, 1100])
def test_gram(rows):
    matrix = torch.randn(rows, 40, dtype=torch.float64)
    found = gram(matrix)
    torch.testing.assert_close(found, matrix @ matrix.T)
    torch.testing.assert_close(found, found.T)  # no BLAS promises a symmetric product to the last bit


@pytest.mark.parametrize("columns", [3, 20, 60])
def test_leading_of_less_than_full_rank(columns):
    """Orthonormal also where singular values vanish, whichever side is decomposed."""
    matrix = torch.randn(30, 2, dtype=torch.float64) @ torch.randn(2, columns, dtype=torch.float64)
    found = leading(matrix, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found @ (found.T @ matrix), matrix)


def test_iteration_finds_what_decays(request):
    tensor = decaying((200, 180, 4), power=1.0)
    exact = truncated_hosvd(tensor, 0.125)
    request.getfixturevalue("iterating")
    found = truncated_hosvd(tensor, 0.125)
    torch.testing.assert_close(found.row_norms(), exact.row_norms(), rtol=1e-6, atol=0)
    assert found.error == pytest.approx(exact.error, rel=1e-9)


def test_iteration_on_a_flat_spectrum_is_close(request):
    """Not the exact subspace, so some units differ; but what it keeps of the tensor is nearly as much."""
    tensor = torch.randn(256, 256, 1, dtype=torch.float64)
    exact = truncated_hosvd(tensor, 0.125)
    request.getfixturevalue("iterating")
    found = truncated_hosvd(tensor, 0.125)
    assert exact.error < found.error < 1.01 * exact.error
    chosen = [set(each.row_norms().argsort()[-128:].tolist()) for each in (exact, found)]
    assert len(chosen[0] & chosen[1]) > 110


def test_many_of_the_eigenvectors_are_never_iterated(monkeypatch):
    tensor = torch.randn(40, 40, 1, dtype=torch.float64)
    exact = truncated_hosvd(tensor, 0.5)
    monkeypatch.setattr(hosvd, "EXACT_UP_TO", 0)
    assert torch.equal(truncated_hosvd(tensor, 0.5).core, exact.core)

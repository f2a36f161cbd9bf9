"""EigenRemove and MinWeight (Graham 2019, Algorithm 2) against plain numpy."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from network_surgery.ops import (
    Anatomy,
    EigenRemove,
    MinWeight,
    Moment,
    RemoveDead,
    Schedule,
    Step,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    operate,
)
from network_surgery.ops.operations.min_weight import kernel_scores, strongest
from tests.ops.maths.test_hosvd import brute_force
from tests.ops.networks import NETWORKS, build, cnn


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("weights", ["original", "reduced"])
def test_at_full_rank_it_is_min_weight(network, weights):
    model, inputs = build(network)
    for layer in Anatomy(model, inputs).values():
        for keep in (0.25, 0.5, 0.8):
            plan = EigenRemove(keep=keep, rank=1, weights=weights).propose(layer)
            assert plan.sources == MinWeight(keep=keep).propose(layer).sources and not plan.replaced


def test_min_weight_keeps_the_largest_outgoing_norms():
    model, inputs = build("cnn")
    anatomy = Anatomy(model, inputs)
    norms = model[4].weight.detach().square().sum((0, 2, 3))
    assert MinWeight(keep=0.5).propose(anatomy["0"]).sources == tuple(sorted(norms.argsort()[-3:].tolist()))
    norms = model[8].weight.detach().view(8, 4, 4).square().sum((0, 2))  # a channel is four columns after flatten
    assert MinWeight(keep=0.5).propose(anatomy["4"]).sources == tuple(sorted(norms.argsort()[-2:].tolist()))


def test_original_weights_stay():
    model, inputs = build("mlp")
    fan_in, fan_out = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    plan = operate(Anatomy(model, inputs)["0"], EigenRemove(keep=0.5, rank=0.4))
    kept = list(plan.sources)
    assert torch.equal(model[0].weight, fan_in[kept]) and torch.equal(model[2].weight, fan_out[:, kept])


def test_reduced_weights_are_the_truncated_svds():
    model, inputs = build("mlp", torch.float64)
    fan_in, fan_out = model[0].weight.detach()[:, :, None], model[2].weight.detach()[:, :, None]
    wanted_in, wanted_out = brute_force(fan_in.numpy(), 0.4)[:, :, 0], brute_force(fan_out.numpy(), 0.4)[:, :, 0]
    plan = operate(Anatomy(model, inputs)["0"], EigenRemove(keep=0.5, rank=0.4, weights="reduced"))
    kept = list(plan.sources)
    assert kept == sorted(np.linalg.norm(wanted_out, axis=0).argsort()[-4:].tolist())
    np.testing.assert_allclose(model[0].weight.detach().numpy(), wanted_in[kept], atol=1e-10)
    np.testing.assert_allclose(model[2].weight.detach().numpy(), wanted_out[:, kept], atol=1e-10)


def test_reduced_convolution_through_flatten():
    """The reader's four columns of a channel are its positions; the maker's kernel stays whole."""
    torch.manual_seed(1)
    model = cnn().double()
    maker, reader = model[4].weight.detach().numpy(), model[8].weight.detach().numpy()
    wanted_in = brute_force(maker.reshape(4, 6, 9), 0.5).reshape(maker.shape)
    wanted_out = brute_force(reader.reshape(8, 4, 4).transpose(1, 0, 2), 0.5)
    operation = EigenRemove(keep=0.5, rank=0.5, weights="reduced")
    plan = operate(Anatomy(model, torch.randn(2, 2, 8, 8).double())["4"], operation)
    kept = list(plan.sources)
    np.testing.assert_allclose(model[4].weight.detach().numpy(), wanted_in[kept], atol=1e-10)
    wanted = wanted_out[kept].transpose(1, 0, 2).reshape(8, 8)
    np.testing.assert_allclose(model[8].weight.detach().numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("weights", "tensor"), [("original", "2.weight"), ("reduced", "0.weight")])
def test_refuses_what_is_not_finite(value, weights, tensor):
    model, inputs = build("mlp")
    layer = Anatomy(model, inputs)["0"]
    model.get_parameter(tensor).data[1, 1] = value
    said = rf"^EigenRemove\(.*weights='{weights}'.*\) on 0: {tensor} holds values that are not finite$"
    with pytest.raises(SurgeryError, match=said):
        EigenRemove(keep=0.5, rank=0.5, weights=weights).propose(layer)


def test_scores_of_several_readers_add_up():
    """Each reader is reduced by itself; a unit's score is the norm of all that it sends on."""
    model, inputs = build("residual", torch.float64)
    for layer in Anatomy(model, inputs).values():
        outgoing = [layer.outgoing(place).numpy() for place in layer.readers]
        scores = np.sqrt(sum(np.square(brute_force(each, 0.5)).sum(axis=(1, 2)) for each in outgoing))
        found = EigenRemove(keep=0.5, rank=0.5).propose(layer).sources
        assert found == tuple(sorted(scores.argsort()[-len(found) :]))


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_strength_by_the_mean_of_reduced_weights(network):
    model, inputs = build(network, torch.float64)
    layer = Anatomy(model, inputs)["0"]
    (reader,) = layer.readers
    reduced = brute_force(layer.outgoing(reader).numpy(), 0.5)
    best = reduced.reshape(layer.units, -1).mean(axis=1).argsort()[::-1][: layer.units // 2]
    plan = EigenRemove(keep=0.5, rank=0.5, strength="mean").propose(layer)
    assert plan.sources == tuple(sorted(best.tolist()))
    assert plan.sources != EigenRemove(keep=0.5, rank=0.5).propose(layer).sources


def test_a_threshold_is_that_of_3_1_1():
    """σ_k := 0 for all σ_k < δ, of a dense layer's matrices; what counts is the weights' own scale."""
    model, inputs = build("mlp", torch.float64)
    matrices = [model[0].weight.detach().numpy().copy(), model[2].weight.detach().numpy().T.copy()]
    delta = float(np.sort(np.linalg.svd(matrices[1], compute_uv=False))[-3:].min()) - 1e-9
    wanted = []
    for matrix in matrices:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        wanted.append(left * np.where(values < delta, 0, values) @ right)
    assert np.linalg.matrix_rank(wanted[1]) == 3
    kept = sorted(np.linalg.norm(wanted[1], axis=1).argsort()[-4:].tolist())
    plan = operate(Anatomy(model, inputs)["0"], EigenRemove(keep=0.5, threshold=delta, weights="reduced"))
    assert list(plan.sources) == kept
    np.testing.assert_allclose(model[0].weight.detach().numpy(), wanted[0][kept], atol=1e-10)
    np.testing.assert_allclose(model[2].weight.detach().numpy(), wanted[1][kept].T, atol=1e-10)


@pytest.mark.parametrize("network", ["mlp", "cnn", "residual"])
def test_at_a_threshold_of_zero_it_is_min_weight_and_a_rank_has_its_threshold(network):
    model, inputs = build(network, torch.float64)
    for layer in Anatomy(model, inputs).values():
        plan = EigenRemove(keep=0.5, threshold=0, weights="reduced").propose(layer)
        assert plan.sources == MinWeight(keep=0.5).propose(layer).sources
        for name, tensor in plan.replaced.items():
            torch.testing.assert_close(tensor, layer.anatomy.tensor(name).detach(), rtol=0, atol=1e-12)


def test_one_of_rank_and_threshold_holds():
    assert EigenRemove(threshold=0.2).rank is None and EigenRemove(0.5, None, threshold=0.2) == EigenRemove(
        threshold=0.2
    )
    assert EigenRemove().rank == 0.125 and EigenRemove().threshold is None
    for bad, says in (
        ({"rank": 0.5, "threshold": 0.1}, "only one of them can hold"),
        ({"rank": None}, "both None"),
        ({"threshold": -1}, "threshold is -1, but it must be a number from 0 on"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": True}, "threshold is True"),
    ):
        with pytest.raises(SurgeryError, match=says):
            EigenRemove(**bad)
    step = Step(Moment(1), "0", EigenRemove(threshold=0.2))
    assert Schedule.from_data(Schedule((step,)).to_data()).steps == (step,)


def test_kernels_are_the_published_code_s_score():
    """‖ (‖K‖² of each output) ‖² for a convolution, the norm for a dense reader; EigenRemove at rank 1 agrees."""
    model, inputs = build("cnn", torch.float64)
    anatomy = Anatomy(model, inputs)
    squares = torch.norm(model[4].weight.detach(), dim=(2, 3)) ** 2
    wanted = (torch.norm(squares, dim=0) ** 2).topk(3).indices.sort().values.tolist()
    assert list(MinWeight(0.5, "kernels").propose(anatomy["0"]).sources) == wanted
    for layer in anatomy.values():
        for keep in (0.3, 0.6):
            plain = MinWeight(keep, "kernels").propose(layer).sources
            assert EigenRemove(keep, 1, strength="kernels").propose(layer).sources == plain
    for name in ("4", "8"):
        assert MinWeight(0.4, "kernels").propose(anatomy[name]).sources == MinWeight(0.4).propose(anatomy[name]).sources
    with torch.no_grad():  # one large kernel against many of middling size
        model[4].weight.zero_()
        model[4].weight[0, 0, 0, 0], model[4].weight[:, 1, 0, 0] = 1.5, 1.0
        model[4].weight[:, 2:, 0, 0] = 0.1
    assert model[4].weight.shape[0] > 2
    layer = Anatomy(model, inputs)["0"]
    assert strongest(kernel_scores(layer, {place: layer.outgoing(place) for place in layer.readers}), 1) == (0,)
    assert strongest(layer.outgoing_rows().norm(dim=1), 1) == (1,)


def test_iterated_reduction_is_tensorlys(network="cnn"):
    from tensorly import backend_context
    from tensorly.decomposition import partial_tucker
    from tensorly.tenalg import multi_mode_dot

    model, inputs = build(network, torch.float64)
    layer = Anatomy(model, inputs)["0"]
    (reader,) = layer.readers
    by_unit = layer.outgoing(reader)
    size = int(0.5 * min(by_unit.shape[:2]))
    with backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = partial_tucker(by_unit, rank=[size, size], modes=[0, 1], init="svd")
        wanted = multi_mode_dot(core, factors, modes=[0, 1])
    plan = EigenRemove(0.5, 0.5, "reduced", iterated=True).propose(layer)
    found = plan.replaced[reader.tensor].movedim(1, 0).flatten(2)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("ratio", [1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4])
def test_sizes_rounded_down_are_int(ratio):
    model, inputs = build("mlp")
    for layer in Anatomy(model, inputs).values():
        units = layer.units
        for operation in (MinWeight(ratio, rounding="down"), EigenRemove(ratio, rounding="down")):
            assert operation.propose(layer).units_after == max(2, int(units * ratio))
        for operation in (WeakExpand(ratio, rounding="down"), ZeroExpand(ratio, rounding="down")):
            assert operation.propose(layer).units_after == max(units + 1, int(units + units * ratio))
    for kind in (MinWeight, EigenRemove, WeakExpand, ZeroExpand):
        with pytest.raises(SurgeryError, match="rounding is 'up'"):
            kind(rounding="up")


def test_rare_options_are_shown_where_they_are_used():
    assert repr(MinWeight()) == "MinWeight(keep=0.5)"
    assert repr(MinWeight(0.5, "kernels")) == "MinWeight(keep=0.5, strength='kernels')"
    assert repr(EigenRemove()) == "EigenRemove(keep=0.5, rank=0.125, weights='original', strength='norm')"
    words = "EigenRemove(keep=0.5, rank=None, weights='original', strength='norm', threshold=0.5, rounding='down')"
    assert repr(EigenRemove(threshold=0.5, rounding="down")) == words
    for operation in (MinWeight(0.5, "kernels"), EigenRemove(threshold=0.5), RemoveDead(by="mrp"), ZeroExpand()):
        assert eval(repr(operation)) == operation


def test_without_tensorly_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(SurgeryError, match="pip install tensorly"):
        EigenRemove(keep=0.5)

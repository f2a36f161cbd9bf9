"""Signals: one forward pass sees what every reader is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, Signals, SurgeryError
from network_surgery.ops.signals.signals import MOST_SAMPLES
from tests.ops.networks import NETWORKS, Net, build, outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_every_reader_of_every_layer_is_seen(name):
    model, inputs = build(name, batch=5)
    anatomy, signals = Anatomy(model, inputs), Signals(model, inputs)
    for layer in anatomy.values():
        for place in layer.readers:
            received = signals.received(layer, place)
            assert received.shape[1] == layer.units and received.shape[0] % 5 == 0
            assert received.dtype == torch.float64 and received.isfinite().all()


def test_values_are_those_of_a_plain_forward_pass():
    model, inputs = build("cnn", batch=3)
    anatomy, signals = Anatomy(model, inputs), Signals(model, inputs)
    model.eval()
    flat = model[:8](inputs)  # [3, 4 channels × 2 × 2]
    wanted = flat.view(3, 4, 4).transpose(1, 2).reshape(12, 4).sort(0).values
    received = signals.received(anatomy["4"], anatomy["4"].readers[0])
    torch.testing.assert_close(received.sort(0).values.float(), wanted)
    torch.testing.assert_close(signals.fed(anatomy["8"], anatomy["8"].makers[0]).float(), flat)
    assert torch.equal(signals.outputs, outputs(model, inputs)[0])


def test_one_pass_in_evaluation_mode():
    model, inputs = build("mlp_bn")
    model.train()
    calls, mean = [], model[1].running_mean.clone()
    model.register_forward_hook(lambda *_: calls.append(model.training))
    Signals(model, inputs)
    assert calls == [False] and model.training and torch.equal(mean, model[1].running_mean)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_later_work_in_place_does_not_reach_what_was_seen():
    net = Net(lambda m, x: (h := m.a(x), m.b(h), h.mul_(0))[1], a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    inputs = torch.randn(3, 4)
    layer = Anatomy(net, inputs)["a"]
    received = Signals(net, inputs).received(layer, layer.readers[0])
    torch.testing.assert_close(received.float(), net.a(inputs))


def test_a_module_that_is_called_twice_is_seen_twice():
    net = Net(
        lambda m, x: m.out(m.hidden(x).relu()) + m.out(m.hidden(-x).relu()),
        hidden=nn.Linear(4, 6), out=nn.Linear(6, 2),
    )  # fmt: skip
    inputs = torch.randn(3, 4)
    layer = Anatomy(net, inputs)["hidden"]
    wanted = net.hidden(torch.cat([inputs, -inputs])).relu()
    torch.testing.assert_close(Signals(net, inputs).received(layer, layer.readers[0]).float(), wanted)


def test_many_positions_are_thinned_evenly():
    model, _ = build("cnn_plain")
    inputs = torch.randn(2 * MOST_SAMPLES // 9 + 1, 2, 8, 8)
    layer = Anatomy(model, inputs[:2])["0"]
    received = Signals(model, inputs).received(layer, layer.readers[0])
    assert MOST_SAMPLES // 2 <= len(received) <= MOST_SAMPLES


def test_loss_needs_targets():
    model, inputs = build("mlp", batch=4)
    targets = torch.tensor([0, 1, 2, 0])
    wanted = nn.functional.cross_entropy(model(inputs), targets)
    torch.testing.assert_close(Signals(model, inputs, targets).loss, wanted)
    with pytest.raises(SurgeryError, match=r"give Signals\(model, inputs, targets\)"):
        _ = Signals(model, inputs).loss


def test_weights_that_no_module_applies_are_seen():
    net = Net(
        lambda m, x: nn.functional.linear(m.hidden(x).relu(), m.out.weight),
        hidden=nn.Linear(4, 6), out=nn.Linear(6, 2),
    )  # fmt: skip
    inputs = torch.randn(3, 4)
    layer = Anatomy(net, inputs)["hidden"]
    received = Signals(net, inputs).received(layer, layer.readers[0])
    torch.testing.assert_close(received.float(), net.hidden(inputs).relu())


def test_each_group_of_a_convolution_reads_its_own_part():
    model, inputs = build("grouped", batch=3)
    layer = Anatomy(model, inputs)["0"]
    received = Signals(model, inputs).received(layer, layer.readers[0])
    wanted = model[0](inputs).view(3, 2, 4, 6, 6).permute(1, 0, 3, 4, 2).reshape(-1, 4)
    torch.testing.assert_close(received.float(), wanted)


def test_says_what_it_has_not_seen():
    model, inputs = build("mlp")
    layer = Anatomy(model, inputs)["0"]
    with pytest.raises(SurgeryError, match=r"layer 0: the signals are those of another network \(a Linear\)"):
        Signals(model[0], inputs).received(layer, layer.readers[0])


def test_says_what_it_cannot_see_as_patches():
    model, inputs = nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.Conv2d(6, 2, 1)), torch.randn(3, 2, 5, 5)
    layer = Anatomy(model, inputs)["0"]
    with pytest.raises(SurgeryError, match=r"layer 0: what 0\.weight is fed is not known as patches"):
        Signals(model, inputs).fed(layer, layer.makers[0])


@pytest.mark.parametrize("name", ["mlp", "cnn_plain"])
def test_what_is_held_out_is_every_fifth_sample(name):
    model, inputs = build(name, batch=13)
    layer = next(iter(Anatomy(model, inputs).values()))
    signals = Signals(model, inputs)
    apart = torch.arange(13) % 5 == 4
    for held_out, part in ((True, inputs[apart]), (False, inputs[~apart])):
        wanted = Signals(model, part)
        for seen in (Signals.received, Signals.fed):
            place = (layer.readers if seen is Signals.received else layer.makers)[0]
            found, expected = (seen(signals, layer, place, held_out), seen(wanted, layer, place))
            torch.testing.assert_close(found.float(), expected.float())  # which the network calculates in


def test_the_same_batch_is_seen_again():
    """The first of several, by the network as it has become."""
    model, inputs = build("mlp", batch=16)
    layer = Anatomy(model, inputs)["0"]
    signals = Signals.over(model, iter([inputs, -inputs]), [layer])
    model[0].weight.data *= 2
    again = signals.again(layer).received(layer, layer.readers[0])
    torch.testing.assert_close(again, Signals(model, inputs).received(layer, layer.readers[0]))
    assert not torch.equal(again, signals.received(layer, layer.readers[0]))

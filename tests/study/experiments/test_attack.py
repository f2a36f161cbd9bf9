"""The experiment on the learning-rate attack, small: one unit is attacked and nothing else, scores are as defined."""

from __future__ import annotations

import copy
import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, Signals
from network_surgery.ops.operations.dead_units import frozen_units
from network_surgery.ops.signals.unit_scores import unit_scores
from network_surgery.study import data, models
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.attack import __main__ as command
from network_surgery.study.experiments.attack import parallel
from network_surgery.study.experiments.attack.arms import ATTACKS, CPU, NONE, Network, Setting, Watcher, train
from network_surgery.study.experiments.attack.attacker import Attack, Attacker
from network_surgery.study.experiments.attack.claims import claims
from network_surgery.study.experiments.attack.findings import against, effects, kills, majority
from network_surgery.study.experiments.attack.parallel import of_seed
from network_surgery.study.experiments.attack.results import Results
from network_surgery.study.experiments.attack.watch import MEASURES, seen
from network_surgery.study.training.trainer import Callback, Trainer

pytestmark = pytest.mark.slow

MODELS = ("evci_cnn", "evci_cnn_norm", "evci_cnn_tanh")
UNIT = 2
LAYERS = ("conv1", "conv2", "fc1")


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits", 0.2)
    return dataclasses.replace(
        whole, train=whole.train.thinned(160), validation=whole.validation.thinned(80), test=whole.test.thinned(80)
    )


def oracle(model, name, inputs, targets):
    """MRP and MRS by the definition: hooks on what the next layer is given, the whole network run for every unit."""
    layers = [(key, module) for key, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    at = [key for key, _ in layers].index(name)
    (_, maker), (_, reader) = layers[at : at + 2]
    units, model = maker.weight.shape[0], model.eval()
    given = []
    handle = reader.register_forward_pre_hook(
        lambda _, args: (given.append(args[0]), args[0].retain_grad())[:0] or None
    )
    losses = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
    handle.remove()
    (received,) = given
    own = received.shape[1] // units  # positions of a unit on axis 1, where it was flattened
    mrs = torch.zeros(len(inputs), units)
    mean = [float(received[:, u * own : (u + 1) * own].mean()) for u in range(units)]
    for sample in range(len(inputs)):
        (slope,) = torch.autograd.grad(losses[sample], received, retain_graph=True)
        for u in range(units):
            here = slice(u * own, (u + 1) * own)
            mrs[sample, u] = ((mean[u] - received[sample, here]) * slope[sample, here]).sum().abs()
    mrp = []
    for u in range(units):

        def replaced(_, args, u=u):
            changed = args[0].clone()
            changed[:, u * own : (u + 1) * own] = mean[u]
            return changed

        handle = reader.register_forward_pre_hook(replaced)
        with torch.no_grad():
            new = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
        handle.remove()
        mrp.append((new - losses).abs().mean())
    return torch.stack(mrp).detach(), mrs.mean(dim=0).detach()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_mrp_and_mrs_are_those_of_the_definition(name, shape):
    model = models.build(name, shape, 10)
    inputs, targets = torch.randn(12, *shape), torch.randint(10, (12,))
    model(torch.randn(64, *shape))  # BatchNorm has seen something
    anatomy = Anatomy(model, inputs[:2])
    for layer in LAYERS:
        found = seen(model, anatomy[layer], inputs, targets)
        mrp, mrs = oracle(copy.deepcopy(model), layer, inputs, targets)
        torch.testing.assert_close(found["mrp"], mrp, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["mrs"], mrs, rtol=1e-4, atol=1e-6)


def middle_of_the_widest_gap(values):
    """A threshold that is as far as can be from every value."""
    ordered = values.sort().values
    gap = ordered.diff().argmax()
    return (ordered[gap] + ordered[gap + 1]) / 2


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_that_ops_finds_in_any_network(name):
    model = models.build(name, (3, 32, 32), 10)
    inputs, targets = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))  # few: ops thins outputs
    model(torch.randn(64, 3, 32, 32))
    anatomy, signals = Anatomy(model, inputs[:2]), Signals(model, inputs, targets)
    for layer in LAYERS:
        found = seen(model, anatomy[layer], inputs, targets, before=True)
        theirs = {
            "mrp": {}, "mrs": {}, "mrp_before": {"replacement": "mean_before"}, "in_l1": {}, "in_l2": {}, "out_l1": {},
            "out_l2": {},
        }  # fmt: skip
        for mine, more in theirs.items():
            score = {"mrp_before": "mrp", "in_l1": "l1_in", "in_l2": "l2_in"}.get(mine, mine.removeprefix("out_"))
            expected = unit_scores(anatomy[layer], signals, score, **more)
            torch.testing.assert_close(found[mine].double(), expected, rtol=1e-3, atol=1e-5)
        largest = found["largest"].double()
        between = middle_of_the_widest_gap(largest)  # where rounding decides about no unit
        frozen = frozen_units(anatomy[layer], signals, float(between / largest.mean()))
        assert torch.equal(frozen, largest <= between) and 0 < frozen.sum() < len(frozen)


def test_flat_outputs_are_zeros_of_relu_and_ends_of_tanh():
    inputs, targets = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    for name in MODELS:
        model = models.build(name, (1, 8, 8), 10)
        model.conv1.weight.data *= 8
        anatomy = Anatomy(model, inputs[:2])
        active = model.act1(model.pool1(model.conv1(inputs))).detach()
        ends = active == 0 if name != "evci_cnn_tanh" else active.abs() > (1 - 0.05) ** 0.5
        found = seen(model, anatomy["conv1"], inputs, targets)["flat"]
        torch.testing.assert_close(found, ends.double().mean(dim=(0, 2, 3)))
        assert 0 < found.mean() < 1


def test_a_dead_unit_is_seen():
    model = models.build("evci_cnn", (1, 8, 8), 10)
    model.conv2.weight.data[3] = 0
    model.conv2.bias.data[3] = -1  # below zero for every image
    inputs, targets = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    found = seen(model, Anatomy(model, inputs[:2])["conv2"], inputs, targets, before=True)
    for name in ("mrp", "mrp_before", "mrs", "gradient", "largest"):
        assert found[name][3] == 0 and (found[name] > 0).sum() > 10
    assert found["flat"][3] == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", LAYERS)
def test_one_unit_learns_faster_and_everything_else_as_ever(digits, name, layer):
    """One step: the unit's weights move 100 times as far, everything else, its bias too, to the very same bits."""
    models_ = []
    for multiplier in (1, 100):
        torch.manual_seed(0)
        model = models.build(name, digits.shape, 10)
        before = copy.deepcopy(model.state_dict())
        trainer = Trainer(
            model, torch.optim.SGD(model.parameters(), 0.01), digits, epochs=1, batch_size=len(digits.train), seed=0,
            device=CPU,
        )  # fmt: skip
        anatomy = Anatomy(model, torch.zeros(2, 1, 8, 8))
        trainer.callbacks = [Attacker(Attack(multiplier, 0), anatomy[layer], UNIT)]
        trainer.fit()
        assert trainer.iteration == 1
        models_.append(model.state_dict())
    calm, attacked = models_
    key = f"{layer}.weight"
    step, far = calm[key] - before[key], attacked[key] - before[key]
    torch.testing.assert_close(far[UNIT], 100 * step[UNIT], rtol=1e-3, atol=1e-5)
    assert step[UNIT].abs().max() > 0
    attacked[key][UNIT] = calm[key][UNIT]
    assert all(torch.equal(attacked[each], calm[each]) for each in calm)


def trained(digits, *callbacks, optimizer=None):
    torch.manual_seed(0)
    model = models.build("evci_cnn", digits.shape, 10)
    optimizer = (optimizer or torch.optim.SGD)(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, digits, epochs=2, batch_size=32, seed=0, device=CPU)
    anatomy = Anatomy(model, torch.zeros(2, 1, 8, 8))
    trainer.callbacks = [make(anatomy) for make in callbacks]
    trainer.fit()
    return model.state_dict()


def test_a_multiplier_of_one_is_no_attack_bit_for_bit(digits):
    calm = trained(digits)
    same = trained(digits, lambda anatomy: Attacker(Attack(1, 2, every=2, times=3), anatomy["conv2"], 1))
    other = trained(digits, lambda anatomy: Attacker(Attack(10, 2, every=2, times=3), anatomy["conv2"], 1))
    assert all(torch.equal(calm[key], same[key]) for key in calm)
    assert not torch.equal(calm["conv2.weight"], other["conv2.weight"])


def test_looking_changes_nothing(digits):
    calm = trained(digits)
    seen_ = trained(digits, lambda anatomy: Watcher(anatomy, LAYERS, range(10)))
    assert all(torch.equal(calm[key], seen_[key]) for key in calm)


def test_attacks_come_when_they_are_told_to():
    attack = Attack(100, 20, every=10, times=3)
    assert [i for i in range(100) if attack.at(i)] == [20, 30, 40] and attack.end == 50
    assert attack.scaled(0.2) == Attack(100, 4, every=2, times=3) and attack.scaled(1e-3).every == 1
    assert attack.scaled(1).name == attack.name == "×100 from 20" and "every 5" in Attack(1, 2, 5).name


@pytest.mark.parametrize("wrong", [{"start": -1}, {"every": 0}, {"times": 0}])
def test_attacks_that_cannot_be_are_refused(wrong):
    with pytest.raises(StudyError, match="start counts from 0"):
        Attack(**({"multiplier": 10, "start": 0} | wrong))


def test_attacks_on_what_is_not_plain_sgd_are_refused(digits):
    def momentum(parameters, lr):
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    for optimizer in (torch.optim.Adam, momentum):
        with pytest.raises(StudyError, match="plain SGD alone"):
            trained(digits, lambda anatomy: Attacker(Attack(10, 1), anatomy["fc1"], 0), optimizer=optimizer)
    with pytest.raises(StudyError, match="units 0 to 63"):
        trained(digits, lambda anatomy: Attacker(Attack(10, 1), anatomy["fc1"], 64))


SMALL = Setting(networks=(Network("ReLU", "evci_cnn"), Network("tanh", "evci_cnn_tanh")), looks=2)


@pytest.fixture(scope="module")
def found(digits):
    parts = [of_seed(digits, network, seed, SMALL) for seed in range(2) for network in SMALL.networks]
    return {key: record for part in parts for key, record in part.items()}


def results_of(found, setting=SMALL):
    return Results(found, setting, "handwriting", "digits", 160, 80, 5)


def test_every_attack_is_there_and_begins_where_the_network_without_is(found):
    assert len(found) == 2 * 2 * 3 * (1 + len(ATTACKS))
    results = results_of(found)
    for network in SMALL.networks:
        for attack in network.attacks:
            for pair in results.pairs(network, attack):
                scaled = SMALL.scaled(attack, 5)
                assert pair.attacked["iteration"][0] == scaled.start and pair.attacked["iteration"][-1] == 50
                assert pair.attacked["iteration"][pair.end] == min(scaled.end, 50)
                np.testing.assert_array_equal(pair.attacked["iteration"], pair.alone["iteration"])
                for measure in ("mrp", "mrs", "loss", "in_l1", "flat"):
                    assert pair.change(measure)[0] == 0  # until the attack the two are one
                assert set(pair.attacked) == {*MEASURES, "iteration", "loss", "accuracy", "unit"}
    units = {key[2]: record["mrp"].shape[1] for key, record in found.items()}
    assert units == {"conv1": 8, "conv2": 16, "fc1": 64}


def test_a_run_that_was_not_attacked_is_the_one_without(digits, found):
    """An attack by 1 from the snapshot of an epoch goes on as the training that nobody touched."""
    network = SMALL.networks[1]
    calm = of_seed(digits, dataclasses.replace(network, attacks=(Attack(1, 1500),)), 0, SMALL)
    for layer in LAYERS:
        record = calm["tanh", 0, layer, "×1 from 1,500"]
        rows = np.searchsorted(calm["tanh", 0, layer, NONE]["iteration"], record["iteration"])
        for measure in ("mrp", "mrs", "gradient", "in_l1", "loss", "accuracy"):
            np.testing.assert_array_equal(record[measure], calm["tanh", 0, layer, NONE][measure][rows])


def test_harder_attacks_move_weights_further(found):
    results = results_of(found)
    for network in SMALL.networks:
        for pairs in zip(*(results.pairs(network, attack) for attack in ATTACKS[:3]), strict=True):
            far = [np.abs(pair.change("in_l2")[-1]) for pair in pairs]
            assert far[0] <= far[2]
    assert {pair.unit for pair in results.pairs(network, ATTACKS[0])} == {
        pair.unit for pair in results.pairs(network, ATTACKS[1])
    }


def test_what_is_kept_is_read_again_and_nothing_else(digits, tmp_path, monkeypatch):
    """In threads instead of processes, which take seconds to start."""
    monkeypatch.setattr(parallel, "processes", ThreadPoolExecutor)
    networks = tuple(dataclasses.replace(network, attacks=ATTACKS[:1]) for network in SMALL.networks)
    setting = dataclasses.replace(SMALL, networks=networks)
    found = parallel.measure(digits, 2, 1, tmp_path / "kept", setting)
    assert [key[:2] for key in list(found)[::6]] == [("ReLU", 0), ("ReLU", 1), ("tanh", 0), ("tanh", 1)]
    monkeypatch.setattr(parallel, "of_seed", None)  # nothing is left to measure
    again = parallel.measure(digits, 2, 1, tmp_path / "kept", setting)
    assert list(again) == list(found)
    for key, record in found.items():
        assert list(again[key]) == list(record)
        for name, values in record.items():
            np.testing.assert_array_equal(again[key][name], values)
    other = dataclasses.replace(setting, learning_rate=0.1)
    with pytest.raises(StudyError, match="other data or another setting"):
        parallel.measure(digits, 2, 1, tmp_path / "kept", other)


def test_a_training_that_diverges_is_told_and_left_out(digits):
    class Explode(Callback):
        def before_step(self, trainer):
            if trainer.iteration == 7:
                with torch.no_grad():
                    trainer.model.fc2.weight.fill_(math.inf)

    model = models.build("evci_cnn", digits.shape, 10)
    sgd = torch.optim.SGD(model.parameters(), 0.01)
    trainer = Trainer(model, sgd, digits, epochs=3, batch_size=32, seed=0, device=CPU)
    watcher = Watcher(Anatomy(model, torch.zeros(2, 1, 8, 8)), ["conv1"], (0, 5, 15))
    train(trainer, watcher, Explode())
    record = watcher.record("conv1", (0, 5, 15))
    assert np.isfinite(record["mrp"][:2]).all() and np.isnan(record["mrp"][2]).all() and np.isnan(record["loss"][2])


def made_up(gains, seeds=6):
    """Records in which attacks multiply the attacked unit's MRP by ``gains[activation]``, but for a little noise."""
    generator, found = np.random.default_rng(0), {}
    for activation in gains:
        for seed in range(seeds):
            for layer, units in zip(LAYERS, (8, 16, 64), strict=True):
                base = {"iteration": np.array([0.0, 30.0, 40.0, 50.0]), "loss": np.ones(4), "accuracy": np.ones(4) / 2}
                base |= {name: generator.uniform(0.1, 1, (4, units)) for name in MEASURES}
                base["mrs"] = base["mrp"] * generator.uniform(0.99, 1.01, (4, units))
                found[activation, seed, layer, NONE] = base
                for attack in ATTACKS:
                    record = {name: values.copy() for name, values in base.items()}
                    record["mrp"][1:, 0] *= gains[activation] * generator.uniform(0.9, 1.1, 3)
                    record["loss"] = record["loss"] + generator.normal(0, 1e-3, 4)
                    found[activation, seed, layer, attack.name] = record | {"unit": np.array(0.0)}
    networks = tuple(network for network in Setting().networks if network.activation in gains)
    return Results(found, Setting(networks), "noise", "noise", 160, 80, 5)


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.05, "**does not hold** (the opposite is shown in 5 of 5)"), (1.0, "**undecided**"), (5.0, "**holds**")],
)
def test_claims_say_what_the_numbers_say(gain, words):
    results = made_up({"ReLU": gain, "tanh": 0.5})
    told = claims(results)
    assert told[0].startswith(f"- {words}: Most units with ReLU gain")
    assert told[1].startswith("- **holds**: Attacked units with tanh lose")
    (bounded,) = (line for line in told if "bounded output" in line)
    assert bounded.startswith({5.0: "- **holds**", 1.0: "- **holds**", 0.05: "- **does not hold**"}[gain])
    (loss,) = (line for line in told if "The loss does not tell" in line)
    assert loss.startswith("- **holds**") and "accuracy +0.0 to +0.0" in loss
    (killed,) = {kills(results)["tanh"]}
    assert killed[:2] == (0, 18) and (killed[2] < 0.001) == (gain == 0.05) and kills(results)["ReLU"][2] is None
    (dead,) = (line for line in told if "stays dead" in line)
    assert f"ReLU {90 * (gain == 0.05)} of {90 * (gain == 0.05)}" in dead


def test_factors_are_those_that_were_put_in():
    results = made_up({"ReLU": 3.0, "tanh": 0.5})
    for network, gain in zip(results.setting.networks, (3.0, 0.5), strict=True):
        for attack in ATTACKS:
            test = effects(results, "mrp")[network.activation, attack.name]
            low, high = np.exp(test.interval)
            assert low < gain * 1.02 and high > gain * 0.96 and high / low < 1.3 and test.n == 6
            shown = majority(results)[network.activation, attack.name]
            assert shown.sign == (1 if gain > 1 else -1) and shown.n == 18 and abs(shown.mean) == 1
    difference = against(results)["tanh", "ReLU", ATTACKS[0].name]
    assert np.exp(difference.mean) == pytest.approx(0.5 / 3, rel=0.1)


def test_a_page_and_figures_are_written(found, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "Setting", lambda: SMALL)
    monkeypatch.setattr(command, "measure", lambda *how: asked.append(how) or found)
    command.main("digits", "handwriting", 2, 1, None, tmp_path / "docs")
    ((dataset, seeds, workers, kept, setting),) = asked
    assert (seeds, workers, kept, setting) == (2, 1, None, SMALL) and len(dataset.train) > len(dataset.validation)
    text = (tmp_path / "docs" / "attack.md").read_text(encoding="utf-8")
    assert "images of handwriting" in text and "--data digits --seeds 2" in text and "they come sooner" in text
    assert "nan" not in text.replace("nan_", "")
    for name in ("attack", "attack_units", "attack_scores"):
        assert f"({name}.png)" in text
        assert (tmp_path / "docs" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_data_that_are_not_there_are_told_in_one_sentence(tmp_path):
    from typer import BadParameter

    with pytest.raises(BadParameter, match="there is no folder"):
        command.main(f"folder:{tmp_path}", None, 2, 1, None, tmp_path)


def test_an_attack_after_the_end_is_refused(digits):
    network = dataclasses.replace(SMALL.networks[0], epochs=2)
    with pytest.raises(StudyError, match="begins after the last of 10 steps"):
        of_seed(digits, network, 0, SMALL)

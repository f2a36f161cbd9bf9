"""Depth: stacks are found or pinned; copies, identities and removals; optimizers, files, averages, hooks, undo."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import (
    Anatomy,
    Deepen,
    DropBlock,
    MinWeight,
    PruneWeights,
    Signals,
    Stretch,
    SurgeryError,
    adopt,
    apply,
    carry_architecture,
    describe,
    load,
    measure,
    operate,
    predicted_loss_change,
    save,
    trial_surgery,
)  # fmt: skip
from network_surgery.ops.anatomy import call, count
from network_surgery.ops.network.blocks import MARK, copies_of
from network_surgery.ops.network.files import fill
from tests.ops.contract.test_operations import OPTIMIZERS, assert_same
from tests.ops.networks import difference, example, outputs, train
from tests.ops.stacks import PINNED, STACKED, Configured, build, looped, small_resnet

every_stack = pytest.mark.parametrize("network", STACKED)
WAYS = [
    Deepen(grow, where, init) for grow in (0.5, 1.0) for where in ("stack", "between") for init in ("copy", "identity")
]
EVERY = [*WAYS, DropBlock(0.5), DropBlock(0.5, "random")]
every_way = pytest.mark.parametrize("operation", EVERY, ids=repr)


class Case:
    """A trained network with its optimizer, its anatomy and its one stack."""

    def __init__(self, network, optimizer="adam"):
        self.model, self.inputs = build(network)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        train(self.model, self.inputs, self.optimizer)
        self.anatomy = Anatomy(self.model, self.inputs)
        (self.name,) = STACKED[network][2]
        self.stack = self.anatomy[self.name]

    @property
    def container(self):
        return self.model.get_submodule(self.stack.runs[0].path)

    def plan(self, operation):
        return operation.propose(self.anatomy[self.name], Signals(self.model, self.inputs))

    def operate(self, operation, **more):
        signals = Signals(self.model, self.inputs)
        return operate(self.anatomy[self.name], operation, self.optimizer, signals, **more)

    def snapshot(self):
        places = {id(each): at for at, each in enumerate(self.model.parameters())}
        return copy.deepcopy(
            (
                dict(self.model.state_dict()), list(dict(self.model.named_modules())), self.optimizer.state_dict(),
                [places[id(each)] for group in self.optimizer.param_groups for each in group["params"]],
                [getattr(each, "layer_idx", None) for each in self.model.modules()], describe(self.model),
            )
        )  # fmt: skip


@every_stack
def test_stacks_are_found(network):
    model, inputs = build(network)
    before = outputs(model, inputs)
    anatomy = Anatomy(model, inputs)
    assert {name: stack.units for name, stack in anatomy.stacks.items()} == STACKED[network][2]
    assert not anatomy.stacks.pinned and not set(anatomy) & set(anatomy.stacks)
    assert difference(before, outputs(model, inputs)) == 0 and not describe(model).get("modules")


@pytest.mark.parametrize("network", PINNED)
def test_others_are_pinned_with_the_reason(network):
    factory, reason = PINNED[network]
    anatomy = Anatomy(factory(), torch.randn(2, 6))
    assert not anatomy.stacks and reason in anatomy.stacks.pinned["blocks"]
    with pytest.raises(SurgeryError, match=reason):
        anatomy["blocks"]
    with pytest.raises(SurgeryError, match=f"no blocks of equal shapes.*{reason}"):
        Deepen().propose(anatomy["*"])


def test_stages_of_a_resnet():
    """Of each stage what follows the block that changes the shape; all of them at once, in both modes."""
    torch.manual_seed(0)
    model, inputs = small_resnet(), torch.randn(4, 3, 32, 32)
    anatomy = Anatomy(model, inputs)
    assert {name: stack.units for name, stack in anatomy.stacks.items()} == {
        "layer1": 2, "layer2": 1, "layer3": 1, "layer4": 1
    }  # fmt: skip
    trained = model.train()(inputs)
    before = outputs(model, inputs)
    plan = operate(anatomy["*"], Deepen(init="identity"), verify=True)
    assert (plan.units_before, plan.units_after, plan.layer.units) == (5, 10, 10) and plan.layer.name == "*"
    assert [len(model.get_submodule(f"layer{n}")) for n in range(1, 5)] == [4, 3, 3, 3]
    assert (
        not model.layer1[2].bn2.weight.any() and not model.layer1[2].bn2.bias.any() and model.layer1[2].bn1.bias.shape
    )
    assert difference(before, outputs(model, inputs)) < 1e-6
    torch.testing.assert_close(model.train()(inputs), trained)


@every_way
@every_stack
def test_a_plan_says_what_is_counted(network, operation):
    case = Case(network)
    case.model.train()
    plan = case.plan(operation)
    assert plan.units_before == STACKED[network][2][case.name] == case.stack.units
    assert (plan.parameters_before, plan.flops_before) == count(case.model, case.inputs)
    before = outputs(case.model, case.inputs)
    kept = [unit for unit in plan.sources if unit >= 0]
    blocks = [*case.stack.runs[0].blocks]
    apply(plan, case.optimizer)
    assert (plan.parameters_after, plan.flops_after) == count(case.model, case.inputs)
    assert plan.bytes_after == case.anatomy.bytes() and plan.layer.units == plan.units_after == len(plan.sources)
    assert case.anatomy[case.name].units == plan.units_after and str(plan).startswith(f"{operation!r} on {case.name}")
    found = case.anatomy[case.name].runs[0].blocks
    for unit in set(kept):  # blocks that stay are the objects that they were
        assert found[plan.sources.index(unit)] is blocks[unit]
    assert all(module.training for module in case.model.modules())
    if plan.error == 0 and isinstance(operation, Deepen):
        assert difference(before, outputs(case.model, case.inputs)) < 1e-6
    elif isinstance(operation, Deepen):
        assert difference(before, outputs(case.model, case.inputs)) > 1e-6
        assert plan.error is None and set(plan.sources) == set(range(plan.units_before))
    elif plan.units_after < plan.units_before:
        assert plan.error > 0 and plan.removed and plan.evidence["importance"] > 0


@every_way
@every_stack
def test_training_goes_on(network, operation):
    """The optimizer holds every parameter once, and two steps move all (of identities the last part moves first)."""
    case = Case(network)
    case.operate(operation)
    held = [id(each) for group in case.optimizer.param_groups for each in group["params"]]
    assert sorted(held) == sorted(id(each) for each in case.model.parameters())
    old = copy.deepcopy(dict(case.model.named_parameters()))
    train(case.model, case.inputs, case.optimizer, steps=2)
    for name, parameter in case.model.named_parameters():
        assert not torch.equal(parameter, old[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@every_way
def test_undo_is_exact(operation, optimizer):
    for network in ("configured", "conv_stage", "root"):
        case = Case(network, optimizer)
        plan, before = case.plan(operation), case.snapshot()
        with pytest.raises(ZeroDivisionError), trial_surgery(plan, optimizers=case.optimizer):
            assert plan.layer.units == plan.units_after
            train(case.model, case.inputs, case.optimizer, steps=0)
            raise ZeroDivisionError
        assert_same(before, case.snapshot())
        assert not any(hasattr(each, MARK) for each in case.model.modules())


@pytest.mark.parametrize("where", ["stack", "between"])
@pytest.mark.parametrize("init", ["copy", "identity"])
def test_the_state_of_copies_is_copied_or_begins_anew(where, init):
    for state in ("copy", "fresh"):
        case = Case("looped")
        before = {name: case.optimizer.state[each] for name, each in case.model.named_parameters()}
        plan = case.operate(Deepen(1.0, where, init, state))
        sources = plan.modules["blocks"].sources
        assert sources == ((0, 1, 2, 0, 1, 2) if where == "stack" else (0, 0, 1, 1, 2, 2))
        for place, source in enumerate(sources):
            for name, parameter in case.model.blocks[place].named_parameters():
                silent = init == "identity" and name.startswith("last")
                found = case.optimizer.state.get(parameter)
                if place not in plan.modules["blocks"].copies:
                    assert_same(found, before[f"blocks.{source}.{name}"])
                elif state == "fresh" or silent:
                    assert found is None and parameter.any() != silent
                else:
                    old = before[f"blocks.{source}.{name}"]
                    assert_same(dict(found), dict(old))
                    assert found["exp_avg"].data_ptr() != old["exp_avg"].data_ptr()


def test_groups_and_names_of_optimizers():
    """A copy comes into the group of what it copies; the order is that of the network; names are those of now."""
    model, inputs = build("looped")
    weights = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    vectors = [(n, p) for n, p in model.named_parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": vectors, "weight_decay": 0.0}, {"params": weights}], lr=0.01)
    train(model, inputs, optimizer)
    anatomy = Anatomy(model, inputs)
    operate(anatomy["blocks"], Deepen(where="between"), optimizer)
    operate(anatomy["blocks"], DropBlock(0.5, "random"), optimizer, Signals(model, inputs))
    names = {id(each): name for name, each in model.named_parameters()}
    for group, dims in zip(optimizer.param_groups, ({0, 1}, {2}), strict=True):
        assert {each.dim() for each in group["params"]} <= dims
        assert group["param_names"] == [names[id(each)] for each in group["params"]]
        assert group["param_names"] == [n for n, p in model.named_parameters() if p.dim() in dims]
    assert len(optimizer.state) == len(names)


def test_lbfgs_forgets_its_curvature():
    model, inputs = build("looped")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        value = call(model, inputs).square().mean()
        value.backward()
        return value

    optimizer.step(closure)
    before = dict(optimizer.state)
    plan = Deepen().propose(Anatomy(model, inputs)["blocks"])
    with trial_surgery(plan, optimizers=optimizer):
        assert not optimizer.state
        optimizer.step(closure)
    assert dict(optimizer.state).keys() == before.keys()


@every_way
@every_stack
def test_files(network, operation, tmp_path):
    case = Case(network)
    case.operate(operation)
    save(case.model, tmp_path / "network.pt")
    loaded = load(lambda: STACKED[network][0](), tmp_path / "network.pt")
    assert difference(outputs(case.model, case.inputs), outputs(loaded, case.inputs)) == 0
    assert describe(loaded) == describe(case.model)
    one, other = carry_architecture(case.model), carry_architecture(STACKED[network][0]())
    other.load_state_dict(one.state_dict())
    assert difference(outputs(one, case.inputs), outputs(other, case.inputs)) == 0


def test_many_operations_and_a_checkpoint():
    """Blocks and units, a stretched and a masked layer, in turn: all of it is in a file, and training goes on alike."""
    case = Case("gpt")
    anatomy, model, optimizer = case.anatomy, case.model, case.optimizer
    operate(anatomy["blocks.1.mlp.gate"], MinWeight(0.5), optimizer)
    operate(anatomy["blocks"], Deepen(init="identity"), optimizer, verify=True)
    operate(anatomy["blocks.2.mlp.gate"], Stretch(0.5), optimizer)
    operate(anatomy["blocks.3.mlp.gate"], PruneWeights(0.5), optimizer)
    operate(anatomy["blocks"], DropBlock(0.75, "random", 2), optimizer, Signals(model, case.inputs))
    assert set(describe(model)) > {"masks", "modules"} and len(describe(model)["modules"]) > 1
    operate(anatomy["blocks"], Deepen(0.5, "between"), optimizer)
    train(model, case.inputs, optimizer)
    fresh = STACKED["gpt"][0]()
    other = torch.optim.Adam(fresh.parameters(), lr=0.01)
    adopt(fresh, describe(model), other)
    fill(fresh, dict(model.state_dict()) | {n: b for n, b in model.named_buffers()})
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, known in ((model, optimizer), (fresh, other)):
        torch.manual_seed(0)
        train(each, case.inputs, known)
    assert_same(dict(model.state_dict()), dict(fresh.state_dict()))
    with pytest.raises(SurgeryError, match="arranged already"):
        adopt(model, {**describe(STACKED["gpt"][0]()), "modules": {}})


def test_an_architecture_of_another_network_changes_nothing():
    model, inputs = build("looped")
    operate(Anatomy(model, inputs)["blocks"], Deepen())
    described = describe(model)
    for path, sources in (("blocks", [0, 7]), ("out", [0, 0]), ("blocks.9", [0])):
        other = looped()
        before = dict(other.named_modules())
        wrong = {**described, "modules": {path: {**described["modules"]["blocks"], "sources": sources}}}
        with pytest.raises(SurgeryError):
            adopt(other, wrong)
        assert dict(other.named_modules()) == before and not describe(other).get("modules")


def test_averages_follow_with_their_own_values():
    case = Case("conv_stage")
    average = AveragedModel(case.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    train(case.model, case.inputs, case.optimizer)
    average.update_parameters(case.model)
    stage = copy.deepcopy(average.module.stage)
    case.operate(Deepen(init="identity"), averages=average)
    for place, source in enumerate((0, 1, 2, 1, 2)):
        for name, parameter in average.module.stage[place].named_parameters():
            silent = place > 2 and name.startswith("bn2")
            assert not parameter.any() if silent else torch.equal(parameter, stage[source].get_parameter(name))
    train(case.model, case.inputs, case.optimizer)
    average.update_parameters(case.model)
    assert describe(average) == describe(case.model)
    stranger = AveragedModel(STACKED["conv_stage"][0]())
    with pytest.raises(SurgeryError, match="must have its shapes"):
        case.operate(Deepen(), averages=stranger)
    assert len(case.model.stage) == 5


def test_hooks_stay_and_copies_have_them():
    case, seen = Case("looped"), []
    case.model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(module))
    case.model.blocks.register_forward_hook(print)
    case.operate(Deepen(where="between"))
    seen.clear()
    case.model(case.inputs)
    assert [id(each) for each in seen] == [id(case.model.blocks[2]), id(case.model.blocks[3])]
    assert print in case.model.blocks._forward_hooks.values()


def test_numbers_of_layers_follow(tmp_path):
    """``config.num_hidden_layers`` (not the heads, of which there are as many) and ``layer_idx``; the settings stay
    shared. Undone, they are as before.
    """
    case = Case("configured")
    config = case.model.config
    with trial_surgery(case.plan(Deepen())):
        assert config.num_hidden_layers == 6 and [each.layer_idx for each in case.model.layers] == [*range(6)]
    assert config.num_hidden_layers == 3 and [each.layer_idx for each in case.model.layers] == [0, 1, 2]
    case.operate(Deepen(0.5, "between"))
    assert vars(config) == {"width": 6, "num_hidden_layers": 5, "num_attention_heads": 3}
    assert [each.layer_idx for each in case.model.layers] == [*range(5)]
    assert all(each.config is config for each in case.model.layers)
    case.operate(DropBlock(0.6))
    assert config.num_hidden_layers == 3 and [each.layer_idx for each in case.model.layers] == [0, 1, 2]
    case.operate(Deepen(0.3))
    save(case.model, tmp_path / "network.pt")
    loaded = load(Configured, tmp_path / "network.pt")
    assert loaded.config.num_hidden_layers == 4 and [each.layer_idx for each in loaded.layers] == [*range(4)]
    case = Case("encoder")
    case.operate(Deepen())
    assert case.model.encoder.num_layers == 4 == len(case.model.encoder.layers)


def test_what_is_tied_stays_tied():
    model, inputs = build("looped")
    for block in model.blocks:
        block.norm.weight = model.blocks[0].norm.weight
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, inputs, optimizer)
    operate(Anatomy(model, inputs)["blocks"], Deepen(init="identity"), optimizer)
    assert len({id(block.norm.weight) for block in model.blocks}) == 1
    assert len({id(block.last.weight) for block in model.blocks}) == 6
    held = [id(each) for each in optimizer.param_groups[0]["params"]]
    assert sorted(held) == sorted({id(each) for each in model.parameters()})


def test_identity_is_refused_where_a_norm_follows_the_sum():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model, inputs = nn.TransformerEncoder(layer, 2), torch.randn(4, 5, 8)
    anatomy = Anatomy(model, inputs)
    with pytest.raises(SurgeryError, match="a norm or an activation follows the sum; take init 'copy'"):
        Deepen(init="identity").propose(anatomy["layers"])
    assert operate(anatomy["layers"], Deepen()).units_after == 4


def test_identity_of_zeros_is_found_out_by_noise():
    """Where a network begins with zeros and is shown zeros, every block returns what it is given."""
    model = looped()
    for block in model.blocks:
        nn.init.zeros_(block.last.weight), nn.init.zeros_(block.last.bias)
    plan = Deepen(init="identity").propose(Anatomy(model, torch.zeros(2, 6))["blocks"])
    assert plan.modules["blocks"].zeroed[3] == ("last.weight", "last.bias") and measure(plan) == 0


def test_what_a_plan_promises_is_measured():
    case = Case("gpt")
    plan = case.plan(Deepen(init="identity"))
    assert measure(plan) < 1e-12 and plan.measured == measure(plan)
    loss = lambda output, targets: nn.functional.cross_entropy(output.movedim(-1, 1), targets)  # noqa: E731
    assert predicted_loss_change(plan, case.inputs, case.inputs, loss).change == 0
    with pytest.raises(SurgeryError, match="makes units anew"):
        predicted_loss_change(case.plan(Deepen()), case.inputs, case.inputs, loss)
    assert measure(case.plan(DropBlock(0.5))) > 1e-3


def test_the_block_that_changes_least_goes():
    """The one that adds nearly nothing; of random ones, each by some seed."""
    case = Case("looped")
    for parameter in case.model.blocks[1].last.parameters():
        parameter.data.mul_(1e-3)
    plan = case.plan(DropBlock(0.7))
    assert plan.removed == (1,) and plan.error < 1e-2 and set(plan.evidence) == {"importance"}
    assert len({case.plan(DropBlock(0.7, "random", seed)).removed for seed in range(9)}) == 3


def test_the_block_that_the_loss_misses_least_goes():
    """Against a slow reference: the loss without each block, from a copy of the network."""
    case = Case("looped")
    targets = torch.randint(3, (8,))
    signals = Signals(case.model, case.inputs, targets)
    losses = []
    for block in range(3):
        model = copy.deepcopy(case.model)
        del model.blocks[block]
        losses.append(float(Signals(model, case.inputs, targets).loss))
    plan = DropBlock(0.7, "loss").propose(case.stack, signals)
    assert plan.removed == (losses.index(min(losses)),)
    assert plan.evidence["loss_change"] == pytest.approx(min(losses) - float(signals.loss), abs=1e-6)
    with pytest.raises(SurgeryError, match="needs targets"):
        DropBlock(0.7, "loss").propose(case.stack, Signals(case.model, case.inputs))


def test_cosine_against_a_slow_reference():
    case = Case("gpt")
    model, inputs = case.model.eval(), case.inputs
    with torch.no_grad():
        x, length, influence = model.embedding(inputs), inputs.shape[1], []
        for block in model.blocks:
            y = block(x, model.cos[:length], model.sin[:length])
            cosines = [
                float(a @ b / a.norm() / b.norm()) for a, b in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)
            ]
            influence.append(1 - sum(cosines) / len(cosines))
            x = y
    plan = case.plan(DropBlock(0.5))
    assert plan.removed == (min(range(2), key=influence.__getitem__),)
    assert plan.evidence["importance"] == pytest.approx(min(influence), rel=1e-4)


def test_no_run_loses_all_its_blocks():
    model, inputs = small_resnet(), torch.randn(4, 3, 32, 32)
    plan = operate(Anatomy(model, inputs)["*"], DropBlock(0.1), (), Signals(model, inputs))
    assert plan.units_after == 4 and [len(model.get_submodule(f"layer{n}")) for n in range(1, 5)] == [1, 2, 2, 2]


def test_copies_are_known():
    case = Case("root")
    case.operate(Deepen(where="between"))
    assert copies_of(case.model) == ["2", "4"] and describe(case.model)["modules"][""]["sources"] == [0, 1, 1, 2, 2, 3]


def test_channels_last_and_double_precision():
    case = Case("conv_stage")
    model = case.model.to(memory_format=torch.channels_last).double()
    inputs = case.inputs.double()
    plan = operate(Anatomy(model, inputs)["stage"], Deepen(init="identity"), verify=True)
    assert plan.measured == 0
    for block in model.stage[1:]:
        assert block.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert block.conv1.weight.dtype == torch.float64


@pytest.mark.parametrize("operation", EVERY, ids=str)
def test_in_inference_mode_a_network_is_left_that_trains(operation):
    case = Case("looped")
    with torch.inference_mode():
        signals = Signals(case.model, torch.randn(4, 6))
        stack = Anatomy(case.model, torch.randn(4, 6))["blocks"]
        operate(stack, operation, case.optimizer, signals, verify=True)
    assert not any(each.is_inference() for each in case.model.parameters())
    train(case.model, case.inputs, case.optimizer)
    assert all(each.isfinite().all() for each in case.model.parameters())


def test_wrong_uses_are_one_sentence():
    case = Case("looped")
    with pytest.raises(SurgeryError, match="layer of units, not a stack of blocks; the network has blocks"):
        Deepen().propose(case.anatomy["blocks.0.first"])
    with pytest.raises(SurgeryError, match="works on units, and blocks is a stack of blocks"):
        operate(case.stack, MinWeight(0.5))
    with pytest.raises(SurgeryError, match="needs signals"):
        DropBlock().propose(case.stack)
    plan = case.plan(Deepen())
    case.operate(Deepen())
    with pytest.raises(SurgeryError, match="propose again"):
        apply(plan)
    for wrong in ({"grow": 0}, {"grow": True}, {"where": "top"}, {"init": "zero"}, {"state": "none"}):
        with pytest.raises(SurgeryError, match=next(iter(wrong))):
            Deepen(**wrong)
    for wrong in ({"keep": 0.0}, {"score": "taylor"}, {"seed": -1}):
        with pytest.raises(SurgeryError, match=next(iter(wrong))):
            DropBlock(**wrong)


def test_a_block_that_cannot_be_copied_is_pinned():
    model = looped()
    model.blocks[2].lock = (each for each in ())
    anatomy = Anatomy(model, torch.randn(2, 6))
    assert "a block cannot be copied" in anatomy.stacks.pinned["blocks"]


def test_random_numbers_go_on_as_if_nothing_had_been():
    case = Case("looped")
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    for operation in itertools.islice(EVERY, None, None, 3):
        case.operate(operation)
    assert torch.equal(torch.rand(4), wanted) and example((2, 3)).shape == (2, 3)

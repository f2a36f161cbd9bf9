"""The anatomy of any network: what it offers must be right, and what it cannot get right it must not offer."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from network_surgery.ops import Anatomy, MinWeight, Plan, SurgeryError, WeakExpand, apply, operate
from network_surgery.ops.surgery.verification import measure
from tests.ops.networks import (
    ADVERSARIAL,
    NETWORKS,
    Net,
    build,
    cnn,
    cnn_plain,
    difference,
    edited,
    liven,
    mlp_bn,
    outputs,
    silenced,
)
from tests.tiers import long

EXACT = 1e-9  # in double precision


def some_of(units: int, count: int) -> list[int]:
    return sorted(torch.randperm(units)[:count].tolist())


def removal_error(anatomy, layer, inputs):
    """A random half of the units goes; against the network in which nobody reads them."""
    gone = some_of(layer.units, layer.units // 2)
    kept = tuple(unit for unit in range(layer.units) if unit not in gone)
    with silenced([(layer, gone)]):
        wanted = outputs(anatomy.model, inputs)
    with edited([(layer, kept, [1.0] * len(kept))]):
        return difference(wanted, outputs(anatomy.model, inputs))


def duplication_error(anatomy, layer, inputs):
    """A shuffled third of the units is doubled at uneven shares; against the network itself."""
    doubled = some_of(layer.units, max(1, layer.units // 3))[::-1]
    shares = [0.3 if unit in doubled else 1.0 for unit in range(layer.units)] + [0.7] * len(doubled)
    wanted = outputs(anatomy.model, inputs)
    with edited([(layer, (*range(layer.units), *doubled), shares)]):
        return difference(wanted, outputs(anatomy.model, inputs))


def described(anatomy):
    return {name: (layer.units, sorted(map(repr, layer.places))) for name, layer in anatomy.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_finds_every_hidden_layer(name):
    model, inputs = build(name)
    anatomy = Anatomy(model, inputs)
    assert {layer: anatomy[layer].units for layer in anatomy} == NETWORKS[name][2]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_edit_is_what_it_claims(name):
    model, inputs = build(name, torch.float64)
    anatomy = Anatomy(model, inputs)
    for layer in anatomy.values():
        if layer.exact:
            assert removal_error(anatomy, layer, inputs) < EXACT, layer
            assert duplication_error(anatomy, layer, inputs) < EXACT, layer
        else:
            assert layer.reason


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_is_never_wrong(name):
    """Pinned with a reason, or right: on this input and on ten times it, which no dry run has seen."""
    model, inputs = build(name, torch.float64)
    anatomy = Anatomy(model, inputs)
    assert all(anatomy.pinned.values()) and (len(anatomy) or anatomy.pinned)
    for layer in anatomy.values():
        for batch in (inputs, 10 * inputs):
            if layer.exact:
                assert removal_error(anatomy, layer, batch) < EXACT, layer
                assert duplication_error(anatomy, layer, batch) < EXACT, layer


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_offers_what_it_can_and_says_why_not_the_rest(name):
    model, inputs = build(name)
    anatomy = Anatomy(model, inputs)
    assert {layer: anatomy[layer].units for layer in anatomy} == ADVERSARIAL[name][2]
    if anatomy:
        return
    weighted = (n for n, m in model.named_modules() if n != "out" and isinstance(m, (nn.Linear, nn.Conv2d)))
    hidden = next(weighted, "weight")
    with pytest.raises(SurgeryError, match=f"'{hidden}' cannot be operated on: .{{10}}"):
        anatomy[hidden]


def test_permute_then_flatten_is_read_right():
    model, inputs = build("permute_flatten")
    (reader,) = Anatomy(model, inputs)["hidden"].readers
    assert torch.equal(reader.positions, torch.arange(36 * 8).view(36, 8).T)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_is_not_misled_by_an_example_that_shows_nothing(name):
    """On an input of zeros, without biases and with an output of zeros, every edit would seem to be right."""
    model, inputs = build(name)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
    nn.init.zeros_(list(model.parameters())[-2])
    anatomy = Anatomy(model, torch.zeros_like(inputs))
    assert {layer: anatomy[layer].units for layer in anatomy} == ADVERSARIAL[name][2]


@pytest.mark.parametrize("factory", [mlp_bn, cnn, cnn_plain])
def test_removal_against_hooks(factory):
    """Brute force, without the anatomy: a hook zeroes what the next weighted module is given of a unit."""
    torch.manual_seed(3)
    model = liven(factory()).double().eval()
    inputs = torch.randn(4, 5, dtype=torch.float64) if factory is mlp_bn else torch.randn(4, 2, 8, 8).double()
    anatomy = Anatomy(model, inputs)
    weighted = [(n, m) for n, m in model.named_children() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for (name, maker), (_, reader) in itertools.pairwise(weighted):
        units = len(maker.weight)
        gone = some_of(units, units // 2)

        def silence(module, args, gone=gone, units=units):
            x = args[0].clone()
            spread = x.view(len(x), units, -1)  # flatten is channel first
            spread[:, gone] = 0
            return (x,)

        hook = reader.register_forward_pre_hook(silence)
        wanted = outputs(model, inputs)
        hook.remove()
        kept = tuple(unit for unit in range(units) if unit not in gone)
        with edited([(anatomy[name], kept, [1.0] * len(kept))]):
            assert difference(wanted, outputs(model, inputs)) < EXACT


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "layernorm"])
def test_places_stay_true_through_a_sequence(name):
    """After each operation the other layers' places are those of a fresh anatomy, and still right in numbers."""
    model, inputs = build(name, torch.float64)
    anatomy = Anatomy(model, inputs)
    for round_number in range(2):
        for layer in list(anatomy.values()):
            order = [*range(layer.units), layer.units - 1, 0][round_number:]
            shares = [0.5 if order.count(unit) == 2 else 1.0 for unit in order]
            with silenced([(layer, [0])] if round_number and order.count(0) == 0 else []):
                wanted = outputs(model, inputs)
            apply(Plan(layer, "edit", tuple(order), shares=torch.tensor(shares, dtype=torch.float64)))
            assert difference(wanted, outputs(model, inputs)) < EXACT, layer
            assert described(anatomy) == described(Anatomy(model, inputs)), layer
            for other in anatomy.values():
                assert removal_error(anatomy, other, inputs) < EXACT, other


def test_undo_restores_the_places_of_every_layer():
    model, inputs = build("dense_concat")
    anatomy = Anatomy(model, inputs)
    before = described(anatomy)
    with edited([(layer, (0, 0, 1), [0.5, 0.5, 1.0]) for layer in anatomy.values()]):
        assert described(anatomy) != before
        assert described(anatomy) == described(Anatomy(model, inputs))
    assert described(anatomy) == before


def test_follows_buffers_that_torch_replaces():
    model, inputs = build("mlp_bn")
    anatomy = Anatomy(model, inputs)
    model.double()  # replaces running statistics by new tensors
    layer = anatomy["0"]
    assert removal_error(anatomy, layer, inputs.double()) < EXACT


@pytest.mark.parametrize("name", ["mlp_bn", "cnn"])
def test_leaves_the_model_as_it_was(name):
    model, inputs = build(name)
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    Anatomy(model, inputs)
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_unknown_layers_are_named_in_one_sentence():
    model, inputs = build("mlp")
    anatomy = Anatomy(model, inputs)
    with pytest.raises(SurgeryError, match="there is no layer 'nose'; this network has 0, 2"):
        anatomy["nose"]
    with pytest.raises(SurgeryError, match="'4' cannot be operated on: it is the network's output"):
        anatomy["4"]
    model, inputs = build("residual")
    with pytest.raises(SurgeryError, match="'second' makes the units of layer 'stem', together with others"):
        Anatomy(model, inputs)["second"]
    with pytest.raises(SurgeryError, match="holds no tensor"):
        Anatomy(model, ())


def test_between_names_the_operators():
    model, inputs = build("cnn")
    anatomy = Anatomy(model, inputs)
    assert anatomy["8"].between[-1] == "relu" and "batch_norm" in anatomy["8"].between[0]
    model, inputs = build("leaky")
    assert Anatomy(model, inputs)["0"].between == ("leaky_relu(0.3)",)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", *map(long, ["densenet121", "mobilenet_v2"])])
def test_of_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    if name == "vgg11_bn":  # as published its first dense layer alone takes seconds to initialize
        features = models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=True)
        classifier = (nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5))
        model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *classifier)
    else:
        model = getattr(models, name)(weights=None, num_classes=5)
    liven(model).double().eval()
    inputs = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    anatomy = Anatomy(model, inputs)
    assert len(anatomy) == {"vgg11_bn": 9, "resnet18": 12, "densenet121": 120, "mobilenet_v2": 25}[name]
    for layer in [list(anatomy.values())[i] for i in some_of(len(anatomy), 25)]:
        assert removal_error(anatomy, layer, inputs) < EXACT, layer
        assert duplication_error(anatomy, layer, inputs) < EXACT, layer


IN_EITHER_FORM = (
    nn.CELU, nn.ELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6, nn.RReLU,
    nn.SELU, nn.SiLU, partial(nn.Threshold, 0.1, -0.2),
)  # fmt: skip
ELEMENT_WISE = (
    nn.GELU, nn.Hardshrink, nn.LogSigmoid, nn.PReLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
    nn.Tanhshrink, *IN_EITHER_FORM, *(partial(form, inplace=True) for form in IN_EITHER_FORM),
)  # fmt: skip


@pytest.mark.parametrize("activation", ELEMENT_WISE)
def test_units_pass_every_element_wise_activation(activation):
    """Whether or not the installed torch tags its operator as element-wise."""
    model, inputs = nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 3)).double(), torch.randn(4, 5).double()
    anatomy = Anatomy(model, inputs)
    assert list(anatomy) == ["0"] and removal_error(anatomy, anatomy["0"], inputs) < EXACT


IN_PLACE = ("abs_", "copysign_", "gelu_", "heaviside_", "xlogy_", "true_divide_", "exp_", "sinc_", "clamp_", "square_")


@pytest.mark.parametrize("name", IN_PLACE)
def test_units_pass_element_wise_methods_in_place(name):
    class Middle(nn.Module):
        def forward(self, x):
            x = x.clone()
            if name == "gelu_":
                return torch.ops.aten.gelu_(x)
            return getattr(x, name)(*MORE.get(name, ()))

    model, inputs = nn.Sequential(nn.Linear(5, 8), Middle(), nn.Linear(8, 3)).double(), torch.randn(4, 5).double()
    model.requires_grad_(name != "heaviside_")  # which has no derivative
    anatomy = Anatomy(model, inputs)
    assert list(anatomy) == ["0"] and removal_error(anatomy, anatomy["0"], inputs) < EXACT


MORE = {"copysign_": (1.0,), "heaviside_": (torch.tensor(0.5).double(),), "xlogy_": (2.0,), "true_divide_": (3.0,),
        "clamp_": (-1, 1)}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_units_pass_the_conjugate_of_complex_values():
    model = nn.Sequential(nn.Linear(5, 8), Resolved(), nn.Linear(8, 3)).to(torch.complex128)
    anatomy = Anatomy(model, torch.randn(4, 5, dtype=torch.complex128))
    assert list(anatomy) == ["0"]


class Resolved(nn.Module):
    """The conjugate, calculated and not only noted."""

    def forward(self, x):
        return x.conj_physical()


class Unit(nn.Module):
    """A convolution as many libraries wrap it: all of a network's are of this one class."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Partial(nn.Module):
    """A cross-stage partial stage: half of its channels, a number in the code, go past the blocks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.kept = {"half": half}  # where it is not found and kept true
        self.expand, self.join = Unit(inputs, outputs), Unit(outputs, outputs)
        self.blocks = nn.Sequential(Unit(half, 6), Unit(6, 7), Unit(7, half))

    def forward(self, x):
        past, through = self.expand(x).split(self.kept["half"], dim=1)
        return self.join(torch.cat([past, self.blocks(through)], dim=1))


def test_one_number_in_the_code_pins_what_it_is_about_and_no_other_layer_of_its_kind():
    torch.manual_seed(0)
    model = nn.Sequential(Unit(3, 8), Partial(8, 12), Partial(12, 16), nn.Flatten(), nn.Linear(16 * 16, 3))
    anatomy = Anatomy(model, torch.randn(2, 3, 4, 4))
    assert set(anatomy.pinned) == {"1.expand.conv", "2.expand.conv", "4"}
    assert "too many values to unpack" in anatomy.pinned["1.expand.conv"]
    assert list(anatomy) == [
        "0.conv", *(f"{stage}.{name}.conv" for stage in (1, 2) for name in ("blocks.0", "blocks.1", "blocks.2", "join"))
    ]  # fmt: skip


class Parts(nn.Module):
    """One product in parts of their own, as a state space model has them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.all = nn.Linear(5, sum(sizes))
        self.readers = nn.ModuleList(nn.Linear(size, 3) for size in sizes)

    def forward(self, x):
        return sum(read(part.tanh()) for read, part in zip(self.readers, self.all(x).split(self.sizes, 1), strict=True))


@pytest.mark.parametrize(("sizes", "units"), [
    ((2, 4, 6), [2, 4, 6]), ((3, 4, 6), [3, 4, 6]), ((4, 2, 6), [4, 2, 6]), ((2, 4), [2, 4]), ((6, 2), [6, 2]),
    ((5, 5), [5]), ((4, 4, 4), [4]), ((3, 3, 6), [3, 6]), ((2, 6, 2), [2, 6]),
])  # fmt: skip
def test_unequal_parts_are_layers_of_their_own_and_equal_ones_are_one(sizes, units):
    model, inputs = Parts(*sizes).double(), torch.randn(4, 5, dtype=torch.float64)
    anatomy = Anatomy(model, inputs)
    assert [layer.units for layer in anatomy.values()] == units
    for layer in anatomy.values():
        assert removal_error(anatomy, layer, inputs) < EXACT
        assert duplication_error(anatomy, layer, inputs) < EXACT


NOISES = {
    "added": lambda m, h: h + 0.5 * torch.randn_like(h),
    "of_a_shape": lambda m, h: h + torch.randn(h.shape),
    "of_a_size_of_its_own": lambda m, h: h + torch.randn(len(h), m.latent),
    "drawn_in_place": lambda m, h: h + h.new_empty(h.shape).normal_(0, 0.3),
    "reparametrized": lambda m, h: torch.distributions.Normal(h, m.spread(h).exp()).rsample(),
    "by_hand": lambda m, h: h + torch.randn_like(h) * (0.5 * m.spread(h)).exp(),
    "kept_or_not": lambda m, h: h * (torch.rand_like(h) < 0.6),
    "drawn_by_itself": lambda m, h: torch.bernoulli(h.sigmoid()),
    "dropped": lambda m, h: F.dropout(h, 0.4, training=True),
    "of_each_sample": lambda m, h: h + torch.randn(len(h), 1),
}


class Noisy(nn.Module):
    def __init__(self, noise) -> None:
        super().__init__()
        self.noise, self.latent = noise, 6
        self.hidden, self.spread, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.noise(self, self.hidden(x)).tanh())


class NoisyAlone(Noisy):
    """All of its weights are met, so that it is not followed in training mode."""

    def __init__(self, noise) -> None:
        super().__init__(noise)
        del self.spread


@pytest.mark.parametrize("name", NOISES)
def test_noise_follows_its_unit(name):
    """Also in numbers: what verification computes is the network whose units keep their noise."""
    torch.manual_seed(0)
    anatomy = Anatomy(Noisy(NOISES[name]), torch.randn(4, 5))
    layer = anatomy["hidden"]
    assert layer.exact and layer.units == 6
    assert measure(MinWeight(keep=0.5).propose(layer, None)) < EXACT
    assert measure(WeakExpand(grow=0.5).propose(layer, None)) < EXACT


@pytest.mark.parametrize("noise", [
    lambda m, h: h + torch.randn_like(h).flip(1), lambda m, h: h + torch.randn_like(h).cumsum(1),
    lambda m, h: h + torch.randn(6),
])  # fmt: skip
def test_noise_that_is_met_by_position_pins(noise):
    for kind in (Noisy, NoisyAlone):
        torch.manual_seed(0)
        assert "hidden" in Anatomy(kind(noise), torch.randn(4, 5)).pinned


class Merged(nn.Linear):
    """A low-rank change is added to the weight before it is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x):
        return F.linear(x, self.weight + self.up @ self.down * 0.5, self.bias)


REMEDIES = {
    "weight_norm": (nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm, "remove_parametrizations"),
    "orthogonal": (nn.utils.parametrizations.orthogonal, "remove_parametrizations"),
    "weight_norm of old": (nn.utils.weight_norm, "remove_weight_norm"),
    "spectral_norm of old": (nn.utils.spectral_norm, "remove_spectral_norm"),
    "pruned": (lambda module: prune.l1_unstructured(module, "weight", 0.5), "take_over_masks"),
    "low rank": (lambda module: Merged(module.in_features, module.out_features), "merge a LoRA"),
    "quantized": (
        lambda module: torch.ao.nn.qat.Linear(
            module.in_features, module.out_features, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        ),
        "then prepare it for quantization",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REMEDIES)
def test_a_weight_that_is_computed_pins_with_the_remedy(name):
    """The layer that it makes, and the one that it reads."""
    change, remedy = REMEDIES[name]
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), change(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3))
    anatomy = Anatomy(model, torch.randn(4, 5))
    assert not anatomy
    assert remedy in anatomy.pinned["0"] and remedy in anatomy.pinned["2"], anatomy.pinned


class Attends(nn.Module):
    """Query, key and value of one product, with every number in the module; as many heads as there are of the three."""

    def __init__(self, heads: int = 3, width: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width, heads * width
        self.qkv, self.proj = nn.Linear(8, 3 * heads * width), nn.Linear(heads * width, 8)

    def forward(self, x):
        parts = self.qkv(x).reshape(len(x), x.shape[1], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2)
        return self.proj(out.reshape(len(x), x.shape[1], self.attn_dim))


def test_numbers_of_heads_are_kept_true_whatever_else_is_as_long():
    model = nn.Sequential(nn.Linear(5, 8), Attends(), nn.Linear(8, 3)).double()
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    anatomy = Anatomy(model, inputs)
    assert {name: layer.units for name, layer in anatomy.items()} == {
        "0": 8, "1.qkv:heads": 3, "1.qkv": 4, "1.proj": 8
    }  # fmt: skip
    assert removal_error(anatomy, anatomy["1.qkv:heads"], inputs) < EXACT


def test_grouped_products_pin_with_the_remedy():
    try:
        torch._grouped_mm(torch.ones(2, 8), torch.ones(1, 8, 8), offs=torch.tensor([2], dtype=torch.int32))
    except (AttributeError, NotImplementedError, RuntimeError):
        pytest.skip("this torch has no grouped product on a CPU")

    def forward(m, x):
        rows = m.stem(x).relu()
        best = m.router(rows).argmax(-1)
        order = best.argsort(stable=True)
        ends = torch.stack([(best <= number).sum() for number in range(3)]).to(torch.int32)
        return m.out(torch._grouped_mm(rows[order], m.up, offs=ends).relu())

    model = Net(
        forward, stem=nn.Linear(5, 8), router=nn.Linear(8, 3), up=nn.Parameter(torch.randn(3, 8, 12)),
        out=nn.Linear(12, 3),
    )  # fmt: skip
    pinned = Anatomy(model, torch.randn(6, 5)).pinned
    assert "multiplied one by one" in pinned["stem"] and "multiplied one by one" in pinned["up"]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_tables_of_bags(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(9, 6, mode=mode), nn.ReLU(), nn.Linear(6, 3)).double()
    tokens = torch.randint(9, (4, 7))
    anatomy = Anatomy(model, tokens)
    assert anatomy["0"].exact and removal_error(anatomy, anatomy["0"], tokens) < EXACT
    apply(MinWeight(keep=0.5).propose(anatomy["0"], None))
    assert model[0].embedding_dim == 3


def test_a_network_that_random_vectors_make_chaotic_is_looked_at_calmly() -> None:
    """Small scales keep 80 layers tame; with scales around one, rounding alone decides what comes out."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh()) for _ in range(80)]
    model = nn.Sequential(*blocks, nn.Linear(32, 3)).double().eval()
    with torch.no_grad():
        for block in blocks:
            block[0].weight.normal_()
            block[1].weight.fill_(0.2)
    inputs = torch.randn(4, 32, dtype=torch.float64)
    anatomy = Anatomy(model, inputs)
    assert len(anatomy) == 80 and all(layer.exact for layer in anatomy.values())
    before = model(inputs)
    operate(anatomy["40.0"], WeakExpand(0.5))
    torch.testing.assert_close(model(inputs), before)

"""A freed attention is torch's own attention in all it does, and its heads are units like any other."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from network_surgery.ops import (
    OPERATIONS,
    Anatomy,
    GradMax,
    MinWeight,
    Plan,
    Signals,
    SurgeryError,
    WeakExpand,
    apply,
    operate,
    rewrap,
)
from network_surgery.ops.network.attention import FreeAttention, free_attention
from network_surgery.ops.network.files import load, save
from tests.ops.networks import Net, loss
from tests.ops.properties import difference, examine, lively, outputs

E, H, N, L, S = 12, 3, 2, 4, 5
Attention = nn.MultiheadAttention


@pytest.fixture(autouse=True)
def quietly():
    """torch warns where its encoder will not make nested tensors, and that it does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested.?tensor", category=UserWarning)
        yield


# -- the same function -------------------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias=False": {"bias": False},
    "kdim, vdim": {"kdim": 7, "vdim": 9},
    "kdim without bias": {"kdim": 7, "bias": False},
    "add_bias_kv": {"add_bias_kv": True},
    "add_zero_attn": {"add_zero_attn": True},
    "everything": {"kdim": 7, "vdim": 9, "add_bias_kv": True, "add_zero_attn": True},
}
LAYOUTS = [("batch first", True), ("tokens first", True), ("one sample", True), ("batch first", False)]  # training?
MASKS = ["none", "boolean", "float", "boolean of heads", "float of heads", "padding", "float padding", "both", "causal"]


def masks(kind: str, batch: int, targets: int, sources: int) -> dict[str, Any]:
    """Arguments of a forward pass; no row is masked altogether."""
    chance = torch.Generator().manual_seed(1)
    shape = (batch * H, targets, sources) if "heads" in kind else (targets, sources)
    hidden = torch.rand(shape, generator=chance) < 0.4
    hidden[..., 0] = False
    padding = torch.arange(sources).repeat(batch, 1) > torch.arange(sources - 2, sources - 2 + batch).unsqueeze(1)
    found: dict[str, Any] = {}
    if kind.startswith(("boolean", "both")):
        found["attn_mask"] = hidden
    if kind.startswith("float") and "padding" not in kind:
        found["attn_mask"] = torch.randn(shape, generator=chance, dtype=torch.float64)
    if kind in ("padding", "both"):
        found["key_padding_mask"] = padding
    if kind == "float padding":
        found["key_padding_mask"] = torch.randn(padding.shape, generator=chance, dtype=torch.float64)
    if kind == "causal":
        found |= {"attn_mask": torch.ones(targets, sources).triu(1).bool(), "is_causal": True}
    return found


def lively_attention(**form: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = Attention(E, H, dropout=0.3, dtype=torch.float64, **form)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.4)
    return module


def run(module: nn.Module, tensors: list[Tensor], places: tuple[int, int, int], **arguments: Any) -> list[Any]:
    """Output, weights, and the gradients of a loss in both by everything, always with the same random numbers."""
    inputs = [tensor.clone().requires_grad_() for tensor in tensors]
    module.zero_grad()
    torch.manual_seed(3)
    out, weights = module(*(inputs[place] for place in places), **arguments)
    total = (out**2).sum() + (0 if weights is None else (weights**3).sum())
    total.backward()
    return [out, weights, *(x.grad for x in inputs), *(p.grad for p in module.parameters()), torch.get_rng_state()]


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_torch_computes(form):
    """Every mask, layout and kind of weights; in training with the same dropout; outputs, weights and gradients."""
    settings = FORMS[form]
    widths = [E, settings.get("kdim", E), settings.get("vdim", E)]
    seen = 0
    for layout, training in (
        ("batch first", True),
        ("tokens first", True),
        ("one sample", True),
        ("batch first", False),
    ):
        torchs = lively_attention(**settings, batch_first=layout == "batch first").train(training)
        ours = free_attention(copy.deepcopy(torchs))
        batch = 1 if layout == "one sample" else N
        shapes = [(L, batch, widths[0]), (S, batch, widths[1]), (S, batch, widths[2])]
        if layout != "tokens first":
            shapes = [(b, t, w) if layout == "batch first" else (t, w) for t, b, w in shapes]
        tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        for places in ((0, 1, 2), (0, 1, 1), (0, 0, 0)) if widths == [E] * 3 else ((0, 1, 2),):
            for kind, asked in itertools.product(MASKS, ("averaged", "of heads", "no")):
                arguments = masks(kind, batch, L, L if places == (0, 0, 0) else S)
                if layout == "one sample" and "key_padding_mask" in arguments:
                    arguments["key_padding_mask"] = arguments["key_padding_mask"][0]
                arguments |= {"need_weights": asked != "no", "average_attn_weights": asked != "of heads"}
                wanted, found = (run(module, tensors, places, **arguments) for module in (torchs, ours))
                torch.testing.assert_close(
                    found, wanted, rtol=1e-9, atol=1e-11, msg=f"{layout} {places} {kind} {asked}"
                )
                seen += 1
    assert seen == (4 * len(MASKS) * 3) * (1 if "kdim" in settings else 3)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_fast_path_computes_the_same(norm_first):
    """It is taken before, never afterwards."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    fused = torch._transformer_encoder_layer_fwd
    with torch.no_grad(), mock.patch.object(torch, "_transformer_encoder_layer_fwd", side_effect=fused) as taken:
        wanted = encoder(x), encoder(x, src_key_padding_mask=padding)
        assert taken.call_count == 4
        free_attention(encoder)
        found = encoder(x), encoder(x, src_key_padding_mask=padding)
        assert taken.call_count == 4
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1][~padding], wanted[1][~padding])


def test_inputs_that_do_not_fit_are_refused_in_one_sentence():
    module = free_attention(lively_attention(batch_first=True))
    x = torch.randn(N, L, E, dtype=torch.float64)
    for arguments, says in (
        ({"attn_mask": torch.zeros(1, L)}, r"attn_mask is \(1, 4\), but \(4, 4\) is needed"),
        ({"attn_mask": torch.zeros(N, L, L)}, r"\(6, 4, 4\) is needed: 2 samples, 3 heads"),
        ({"key_padding_mask": torch.zeros(1, L)}, r"key_padding_mask is \(1, 4\), but \(2, 4\) is needed"),
        ({"attn_mask": torch.zeros(L, L, dtype=torch.int)}, "booleans or floating-point"),
        ({"is_causal": True}, "a hint about attn_mask"),
    ):
        with pytest.raises(ValueError, match=says):
            module(x, x, x, **arguments)
    with pytest.raises(ValueError, match="must all be of 3 dimensions"):
        module(x, x[0], x[0])
    nested = torch.nested.nested_tensor([x[0], x[1, :2]])
    with pytest.raises(SurgeryError, match="takes no nested tensors"):
        module(nested, nested, nested)


def test_lower_precision_comes_out_as_torchs():
    torch.manual_seed(0)
    torchs = Attention(E, H, batch_first=True)
    ours, x = free_attention(copy.deepcopy(torchs)), torch.randn(N, L, E)
    arguments = {"attn_mask": torch.ones(L, L).triu(1).bool()}
    for need_weights in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wanted, found = (each(x, x, x, need_weights=need_weights, **arguments) for each in (torchs, ours))
        torch.testing.assert_close(found, wanted)
    wanted, found = (each.bfloat16()(*[x.bfloat16()] * 3, **arguments) for each in (torchs, ours))
    torch.testing.assert_close(found, wanted)


# -- the same module ---------------------------------------------------------------------------------------------------


class Named(nn.MultiheadAttention):
    """A subclass with a forward pass of torch's."""

    def heads(self) -> int:
        return self.num_heads


class Doubled(nn.MultiheadAttention):
    """A subclass with a forward pass of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().forward(*args, **kwargs)[0], None


def test_a_module_stays_itself():
    calls: list[Any] = []
    module = lively_attention()
    module.register_forward_hook(lambda *_: calls.append(1))
    keys, parameters = list(module.state_dict()), list(module.parameters())
    assert free_attention(module) is module and free_attention(module) is module
    assert isinstance(module, nn.MultiheadAttention) and type(module) is FreeAttention
    assert list(module.state_dict()) == keys
    assert all(one is other for one, other in zip(parameters, module.parameters(), strict=True))
    x = torch.randn(L, N, E, dtype=torch.float64)
    module(x, x, x)
    assert calls
    before = module.in_proj_weight.clone()
    module._reset_parameters()
    assert not torch.equal(before, module.in_proj_weight)


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, Named])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles(kind, copied):
    torch.manual_seed(0)
    module = free_attention(kind(E, H, batch_first=True)).eval()
    x = torch.randn(N, L, E)
    model = Net(_attend, inner=module, out=nn.Linear(E, 2))
    operate(Anatomy(model, x)["inner:heads"], MinWeight(keep=0.5))
    other = copied(module)
    assert type(other) is type(module) and isinstance(other, kind) and (kind is not Named or other.heads() == 2)
    torch.testing.assert_close(other(x, x, x), module(x, x, x))


def test_other_forward_passes_are_left_alone():
    patched = Attention(E, H)
    patched.forward = partial(Attention.forward, patched)
    normed = nn.utils.parametrizations.weight_norm(Attention(E, H), "in_proj_weight")
    for module in (Doubled(E, H), patched, normed, nn.Linear(3, 3)):
        assert type(free_attention(module)) is type(module) and not isinstance(module, FreeAttention)
    x = torch.randn(N, L, E)
    assert "ops.free_attention" not in str(Anatomy(Doubled(E, H), (x, x, x)).pinned)


def test_the_remedy_is_in_the_reason():
    x = torch.randn(L, N, E)
    layer = nn.TransformerEncoderLayer(E, H, 20)
    with pytest.raises(SurgeryError, match=r"takes its heads from its input; ops\.free_attention\(model\) frees it"):
        Anatomy(layer, x)["self_attn"]
    assert Anatomy(free_attention(layer), x)["self_attn:heads"].exact


# -- heads and width as units ------------------------------------------------------------------------------------------


def _attend(m: Any, x: Tensor) -> Tensor:
    return m.out(m.inner(x, x, x)[0])


def _across(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.out(m.inner(x, y, y, need_weights=False)[0])


def _three(m: Any, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return m.out(m.inner(x, y, z)[0])


def _weighed(m: Any, x: Tensor) -> Tensor:
    out, weights = m.inner(x, x, x)
    return m.out(out) * weights.amax(-1, keepdim=True)


def _shown(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    out, weights = m.inner(x, x, x)
    return m.out(out), weights


def _vit() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.VisionTransformer(16, 8, 2, 3, 12, 20, num_classes=4)


def _encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 10, batch_first=True, **options), 2)


def _around(function: Any, width: int = E, heads: int = H, **options: Any) -> Any:
    return lambda: Net(function, inner=Attention(width, heads, **options), out=nn.Linear(width, 3))


X, Y, Z = (N, L, E), (N, S, 7), (N, S, 9)
#: name → how to build it, the shapes of its inputs, attentions in it
NETWORKS: dict[str, tuple[Any, list[tuple[int, ...]], list[str]]] = {
    "plain": (_around(_attend, batch_first=True), [X], ["inner"]),
    "tokens first": (_around(_attend, heads=2), [X], ["inner"]),
    "as many heads as wide": (_around(_attend, 16, 4), [(4, 4, 16)], ["inner"]),
    "one sample": (_around(_attend), [(L, E)], ["inner"]),
    "across": (_around(_across, batch_first=True), [X, (N, S, E)], ["inner"]),
    "kdim, vdim": (_around(_three, kdim=7, vdim=9, batch_first=True), [X, Y, Z], ["inner"]),
    "kdim without bias": (_around(_three, kdim=7, vdim=9, bias=False, batch_first=True), [X, Y, Z], ["inner"]),
    "bias=False": (_around(_attend, bias=False), [X], ["inner"]),
    "bias_kv": (_around(_attend, add_bias_kv=True, add_zero_attn=True), [X], ["inner"]),
    "encoder": (_encoder, [X], ["layers.0.self_attn", "layers.1.self_attn"]),
    "encoder, norm first": (partial(_encoder, norm_first=True), [X], ["layers.0.self_attn", "layers.1.self_attn"]),
    "decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(E, H, 10), 1),
        [(L, N, E), (S, N, E)],
        ["layers.0.self_attn", "layers.0.multihead_attn"],
    ),
    "transformer": (
        lambda: nn.Transformer(E, H, 1, 1, 10, batch_first=True),
        [(N, S, E), X],
        ["encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.multihead_attn"],
    ),
    "vit": (_vit, [(N, 3, 16, 16)], [f"encoder.layers.encoder_layer_{n}.self_attention" for n in range(2)]),
}


def freed(name: str) -> tuple[nn.Module, tuple[Tensor, ...], list[str]]:
    """A network in double precision with lively weights, its inputs and the names of its attentions."""
    torch.manual_seed(0)
    factory, shapes, attentions = NETWORKS[name]
    inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return lively(free_attention(factory().double()), inputs), inputs, attentions


@pytest.mark.parametrize("name", NETWORKS)
def test_every_edit_keeps_its_promises(name):
    model, inputs, attentions = freed(name)
    anatomy = Anatomy(model, inputs)
    for attention in attentions:
        module = model.get_submodule(attention)
        heads, width = anatomy[f"{attention}:heads"], anatomy[attention]
        assert (heads.units, heads.exact) == (module.num_heads, True)
        assert (width.units, width.exact) == (module.head_dim, True)
    examination = examine(anatomy, inputs, careful=False)
    assert not examination.broken and not examination.faint


@pytest.mark.parametrize("name", ["plain", "kdim, vdim", "transformer"])
def test_numbers_follow_and_the_next_anatomy_is_as_good(name):
    """Also where values have become twice, or as often, as wide as queries and keys together."""
    model, inputs, attentions = freed(name)
    before = outputs(model, inputs)
    for grow in (1.0, 1.0, 0.5):
        anatomy = Anatomy(model, inputs)
        for attention in attentions:
            for layer in (anatomy[attention], anatomy[f"{attention}:heads"]):
                operate(layer, WeakExpand(grow=grow if layer is anatomy[attention] else 1 / 3))
            module = model.get_submodule(attention)
            assert module.num_heads == anatomy[f"{attention}:heads"].units
            assert module.embed_dim == E and module.head_dim == E // H and module.scaling == (E // H) ** -0.5
            assert module.out_proj.in_features == module.num_heads * anatomy[attention].units
            assert (module.kdim, module.vdim) == ((7, 9) if "kdim" in name else (E, E))
    assert difference(before, outputs(model, inputs)) < 1e-9


def test_no_other_number_follows():
    """Of all that an attention keeps, however equal the sizes are by chance."""
    for name in ("as many heads as wide", "vit"):
        model, inputs, attentions = freed(name)
        written = [number for number in Anatomy(model, inputs).written if number.module in attentions]
        assert [(n.module, n.attribute, n.sure) for n in written] == [(a, "num_heads", True) for a in attentions]


def test_the_widths_of_its_inputs_follow():
    torch.manual_seed(0)
    model = Net(
        lambda m, x, y: m.out(m.inner(m.one(x), m.other(y), m.other(y))[0]), one=nn.Linear(5, E),
        other=nn.Linear(5, 7), inner=Attention(E, H, kdim=7, vdim=7), out=nn.Linear(E, 2),
    )  # fmt: skip
    inputs = torch.randn(L, N, 5), torch.randn(S, N, 5)
    anatomy = Anatomy(free_attention(model), inputs)
    assert all(anatomy[name].exact for name in ("one", "other", "inner", "inner:heads", "inner.out_proj"))
    for name, units in (("one", 4), ("other", 3), ("inner.out_proj", 9)):
        operate(anatomy[name], MinWeight(keep=units / anatomy[name].units))
    assert (model.inner.embed_dim, model.inner.kdim, model.inner.vdim) == (4, 3, 3)
    assert (model.inner.num_heads, model.out.in_features) == (H, 9)
    model(*inputs)


def test_weights_that_somebody_reads_count_the_heads():
    """Their mean over the heads makes an edit of heads inexact; where nobody reads it, it does not."""
    x = torch.randn(N, L, E)
    for function, exact in ((_attend, True), (_weighed, False), (_shown, False)):
        model = free_attention(Net(function, inner=Attention(E, H, batch_first=True), out=nn.Linear(E, 2)))
        anatomy = Anatomy(model, x)
        assert anatomy["inner:heads"].exact is exact and anatomy["inner"].exact


def test_masks_that_know_the_heads_pin_them():
    x = torch.randn(N, L, E)
    model = free_attention(Net(
        lambda m, x, mask: m.out(m.inner(x, x, x, attn_mask=mask, need_weights=False)[0]),
        inner=Attention(E, H, batch_first=True), out=nn.Linear(E, 2),
    ))  # fmt: skip
    anatomy = Anatomy(model, (x, torch.randn(N * H, L, L)))
    assert "inner:heads" not in anatomy and anatomy["inner"].exact


@pytest.mark.parametrize("norm_first", [False, True])
def test_evaluation_after_surgery_is_right(norm_first):
    """Without gradients, where torch would take its fused layer and nested tensors: as with gradients and as set."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 12, batch_first=True, norm_first=norm_first, dtype=torch.float64)
    x = torch.randn(2, 4, 16, dtype=torch.float64)
    model = lively(free_attention(nn.TransformerEncoder(layer, 2)), x)
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    anatomy = Anatomy(model, x)
    with torch.no_grad():
        for heads in (anatomy[f"layers.{n}.self_attn:heads"] for n in range(2)):
            tensor = heads.tensor(heads.readers[0])
            tensor[:, heads.readers[0].positions[[0, 3]].flatten()] = 0
            wanted = [model(x), model(x, src_key_padding_mask=padding)]
            apply(Plan(heads, "by hand", (1, 2)))  # an even number, as the fused layer wants it
            torch.testing.assert_close([model(x), model(x, src_key_padding_mask=padding)], wanted)
        found = model(x)
    torch.testing.assert_close(found, model.requires_grad_()(x))
    assert [each.self_attn.num_heads for each in model.layers] == [2, 2]


# -- what goes along ---------------------------------------------------------------------------------------------------

WIDER = (0, 1, 2, 1, 0), torch.tensor([0.25, 1.5, 1.0, -0.5, 0.75], dtype=torch.float64)


@pytest.mark.parametrize("name", ["plain", "across", "kdim, vdim", "bias_kv"])
def test_the_optimizer_s_state_is_that_of_a_network_wide_from_the_start(name):
    """Momentum and second moments of packed weights, of their biases and of ``bias_k``; then training goes on."""
    narrow, inputs, (attention, *_) = freed(name)
    model = copy.deepcopy(narrow)

    def widen(network: nn.Module, optimizers: Any = ()) -> None:
        for part in (":heads", ""):
            layer = Anatomy(network, inputs)[attention + part]
            more = layer.units - len(set(WIDER[0]))
            shares = torch.cat([WIDER[1], torch.ones(more, dtype=torch.float64)])
            sources = (*WIDER[0], *range(3, layer.units))
            apply(Plan(layer, "by hand", sources, shares=shares), optimizers)

    wide = copy.deepcopy(narrow)
    widen(wide)
    one, other = (torch.optim.Adam(network.parameters(), lr=0.0) for network in (model, wide))
    for network, optimizer in ((model, one), (wide, other)):
        optimizer.zero_grad()
        loss(network, inputs).backward()
        optimizer.step()
    widen(model, one)
    for (key, left), right in zip(model.named_parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-7, atol=1e-10, msg=key)
        for entry, value in one.state[left].items():
            torch.testing.assert_close(value, other.state[right][entry], rtol=1e-7, atol=1e-12, msg=f"{key} {entry}")
    one.param_groups[0]["lr"] = 0.01
    loss(model.train(), inputs).backward()
    one.step()


def _after(m: Any, x: Tensor) -> Tensor:
    x = m.one(x)
    return m.two(m.out(m.inner(x, x, x)[0]).relu())


def averaged() -> tuple[nn.Module, AveragedModel, Tensor]:
    """A network whose attention is free, an average that was made before, and an input."""
    torch.manual_seed(0)
    x = torch.randn(N, L, 5, dtype=torch.float64)
    modules = {"one": nn.Linear(5, E), "inner": Attention(E, H, batch_first=True)}
    model = lively(Net(_after, **modules, out=nn.Linear(E, 8), two=nn.Linear(8, 2)).double(), x)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    free_attention(model)
    for _ in range(3):
        average.update_parameters(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return model, average, x


@pytest.mark.parametrize("name", ["one", "inner", "inner:heads"])
def test_an_average_that_is_not_freed_is_refused(name):
    """In one sentence, before anything has changed; layers that torch's own attention follows can be operated on."""
    model, average, x = averaged()
    optimizer = torch.optim.Adam(model.parameters())
    anatomy = Anatomy(model, x)
    layer, numbers = anatomy[name], {key: vars(model.inner)[key] for key in ("num_heads", "embed_dim")}
    before = [outputs(each, x) for each in (model, average)], copy.deepcopy((model.state_dict(), average.state_dict()))
    for operation in (MinWeight(keep=0.5), WeakExpand(grow=1.0)):
        with pytest.raises(SurgeryError, match=r"free the average as well, ops\.free_attention\(average\)$") as raised:
            operate(layer, operation, optimizer, averages=average)
        assert "\n" not in str(raised.value)
    after = [outputs(each, x) for each in (model, average)], (model.state_dict(), average.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert {key: vars(model.inner)[key] for key in numbers} == numbers
    for other in ("inner.out_proj", "out"):
        operate(anatomy[other], WeakExpand(grow=0.5), optimizer, averages=average)
    assert difference(before[0][1], outputs(average, x)) < 1e-9


@pytest.mark.parametrize("name", ["one", "inner", "inner:heads", "inner.out_proj"])
def test_an_average_that_is_freed_follows(name):
    """Growth leaves what it computes; removal makes of it what silencing the same units does."""
    model, average, x = averaged()
    before = outputs(average, x)
    assert difference(before, outputs(free_attention(average), x)) < 1e-9
    layer = Anatomy(model, x)[name]
    operate(layer, WeakExpand(grow=0.7), averages=average)
    assert difference(before, outputs(average, x)) < 1e-9
    kept = tuple(range(1, layer.units, 2))
    silenced = copy.deepcopy(average)
    for place in layer.readers:
        weight = silenced.module.get_parameter(place.tensor)
        gone = [unit for unit in range(layer.units) if unit not in kept]
        with torch.no_grad():
            weight.movedim(place.axis, 0)[place.positions[gone].flatten()] = 0
    apply(Plan(layer, "by hand", kept), averages=average)
    assert difference(outputs(silenced, x), outputs(average, x)) < 1e-9
    assert average.module.inner.num_heads == model.inner.num_heads


@pytest.mark.parametrize("name", ["plain", "kdim, vdim", "transformer", "vit"])
def test_saved_networks(name, tmp_path):
    model, inputs, attentions = freed(name)
    factory = NETWORKS[name][0]
    save(model, tmp_path / "whole.pt")
    load(lambda: factory().double(), tmp_path / "whole.pt")  # nothing has been altered
    anatomy = Anatomy(model, inputs)
    for attention in attentions:
        operate(anatomy[f"{attention}:heads"], MinWeight(keep=0.6))
        operate(anatomy[attention], WeakExpand(grow=0.5))
    save(model, tmp_path / "net.pt")
    again = load(lambda: free_attention(factory()), tmp_path / "net.pt").eval()
    assert difference(outputs(model, inputs), outputs(again, inputs)) == 0
    assert Anatomy(again, inputs).keys() == anatomy.keys()
    with pytest.raises(SurgeryError, match=r"has other heads there.*ops\.free_attention") as raised:
        load(factory, tmp_path / "net.pt")
    assert "\n" not in str(raised.value)


def test_compiled_networks():
    model, inputs, _ = freed("encoder")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    with torch.compiler.set_stance("force_eager"):
        anatomy = Anatomy(model, inputs)
    operate(anatomy["layers.0.self_attn:heads"], MinWeight(keep=0.5))
    compiled = rewrap(compiled)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    torch.compiler.reset()


@pytest.mark.parametrize("part", ["", ":heads"])
def test_grad_max_adds_heads_and_their_width(part):
    """What new heads and wider ones add is nothing at first, and they learn."""
    model, inputs, attentions = freed("encoder")
    layer = Anatomy(model, inputs)[attentions[0] + part]
    units, loss = layer.units, torch.nn.functional.mse_loss
    (before,) = outputs(model, inputs)
    plan = operate(layer, GradMax(0.5), (), Signals(model, inputs, torch.zeros_like(before), loss), verify=True)
    torch.testing.assert_close(before, outputs(model, inputs)[0])
    assert layer.units == plan.units_after > units and plan.evidence["gradient"] > 0


#: They want targets, blocks, or two modules with nothing between them.
LEFT_OUT = {"grad_max", "remove_dead", "revive", "collapse", "deepen", "drop_block"}


@pytest.mark.parametrize("operation", sorted({*OPERATIONS} - LEFT_OUT))
def test_every_operation(operation):
    """Each plan does what it says, measured."""
    model, inputs, attentions = freed("encoder")
    anatomy = Anatomy(model, inputs)
    known = {"pcns": {"variance_threshold": 0.05}, "prune_weights": {}, "compact": {}}
    known |= {"hash_weights": {}, "random_edges": {}, "predict_weights": {}}
    known |= {"share_weights": {}, "fastfood": {}, "stretch": {}, "tri_factorize": {}}
    settings = known.get(operation, {"grow" if "expand" in operation else "keep": 0.5})
    for part in ("", ":heads"):
        layer = anatomy[attentions[0] + part]
        before, expressed = layer.units, {place.tensor for place in layer.makers} - set(anatomy.weights)
        if operation == "stretch" or expressed:  # of a packed weight, or hashed in the first turn
            with pytest.raises(SurgeryError, match=r"torch's own class|no plain weights"):
                operate(layer, OPERATIONS[operation](**settings))
            continue
        plan = operate(layer, OPERATIONS[operation](**settings), signals=Signals(model, inputs), verify=True)
        assert layer.units == plan.units_after != before or operation in known
    model(*inputs)

"""Small networks that the tests operate on, each with an example input, and how to ask whether an edit was right."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from network_surgery.ops.anatomy import HiddenLayer, call, rebuild
from network_surgery.ops.anatomy.rebuild import Edit
from network_surgery.ops.anatomy.running import flat_tensors


class Net(nn.Module):
    """A network of named modules and one function: ``Net(lambda m, x: m.out(m.hidden(x).relu()), hidden=…, out=…)``."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def mlp_bn() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)
    )


def cnn() -> nn.Module:
    """Batch norms everywhere, and a flatten that spreads each channel over four columns."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def cnn_plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.stem(x)).relu()
        x = (x + m.norm2(m.second(m.norm1(m.first(x)).relu()))).relu()
        x = (m.shortcut(x) + m.fourth(m.third(x).relu())).relu()
        return m.out(x.mean((2, 3)))

    return Net(
        forward, stem=nn.Conv2d(2, 6, 3, padding=1, bias=False), norm=nn.BatchNorm2d(6),
        first=nn.Conv2d(6, 5, 3, padding=1, bias=False), norm1=nn.BatchNorm2d(5),
        second=nn.Conv2d(5, 6, 3, padding=1, bias=False), norm2=nn.BatchNorm2d(6),
        third=nn.Conv2d(6, 7, 3, stride=2, padding=1), fourth=nn.Conv2d(7, 8, 3, padding=1),
        shortcut=nn.Conv2d(6, 8, 1, stride=2), out=nn.Linear(8, 3),
    )  # fmt: skip


def dense_concat() -> nn.Module:
    """DenseNet: each layer reads the concatenation of all before it, through a norm of its own."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.stem(x)
        b = m.first(m.norm1(a).relu())
        c = m.second(m.norm2(torch.cat([a, b], 1)).relu())
        d = m.third(m.norm3(torch.cat([a, b, c], 1)).relu())
        return m.out(m.norm4(torch.cat([d, c, b, d], 1)).relu().flatten(1))

    def conv(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    return Net(
        forward, stem=conv(2, 4), norm1=nn.BatchNorm2d(4), first=conv(4, 3), norm2=nn.BatchNorm2d(7),
        second=conv(7, 3), norm3=nn.BatchNorm2d(10), third=conv(10, 4), norm4=nn.BatchNorm2d(14),
        out=nn.Linear(14 * 64, 3),
    )  # fmt: skip


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5),
        nn.Conv2d(5, 5, 3, groups=5), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


def leaky() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.LeakyReLU(0.3), nn.Linear(12, 10), nn.LeakyReLU(0.3), nn.Linear(10, 3))


def layernorm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def tied() -> nn.Module:
    """One weight in two modules, both of them between the same two layers."""
    net = Net(
        lambda m, x: m.out(m.second(m.first(m.stem(x).relu()).relu()).relu()),
        stem=nn.Linear(5, 6), first=nn.Linear(6, 6), second=nn.Linear(6, 6, bias=False), out=nn.Linear(6, 3),
    )  # fmt: skip
    net.second.weight = net.first.weight
    return net


def unflattened() -> nn.Module:
    """A generator; its dense layer makes each channel by four rows."""
    return nn.Sequential(
        nn.Linear(5, 24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2)), nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 3),
    )  # fmt: skip


def scaled() -> nn.Module:
    """Per-unit parameters used element-wise; the bias is one of them."""
    return Net(
        lambda m, x: m.out(F.prelu(m.first(x) * m.scale.view(-1, 1, 1) + m.shift, m.slope).flatten(1)),
        first=nn.Conv2d(2, 6, 3, bias=False), scale=nn.Parameter(torch.rand(6) + 0.5),
        shift=nn.Parameter(torch.randn(1, 6, 1, 1)), slope=nn.Parameter(torch.rand(6)), out=nn.Linear(216, 3),
    )  # fmt: skip


def frozen() -> nn.Module:
    net = mlp_bn()
    for parameter in (*net[0].parameters(), *net[3].parameters()):
        parameter.requires_grad_(False)
    return net


def dict_io() -> nn.Module:
    return Net(
        lambda m, left, right: {"class": m.out(m.left(left).relu() + m.right(right)), "aside": m.aside(m.left(left))},
        left=nn.Linear(5, 6), right=nn.Linear(4, 6), out=nn.Linear(6, 3), aside=nn.Linear(6, 2),
    )  # fmt: skip


def tuple_in() -> nn.Module:
    return Net(
        lambda m, x, y: m.out(torch.cat([m.first(x).relu(), m.second(y).tanh()], 1)),
        first=nn.Linear(5, 6), second=nn.Linear(4, 5), out=nn.Linear(11, 3),
    )  # fmt: skip


def _dense_between(function: Callable[[Any, Tensor], Tensor], units: int = 8, read: int = 8) -> nn.Module:
    """Linear(5, units) → ReLU → something unusual → Linear(read, 3)."""
    return Net(lambda m, x: m.out(function(m, m.hidden(x).relu())), hidden=nn.Linear(5, units), out=nn.Linear(read, 3))


def _conv_between(function: Callable[[Any, Tensor], Tensor], read: int) -> nn.Module:
    return Net(
        lambda m, x: m.out(function(m, m.hidden(x).relu()).flatten(1)),
        hidden=nn.Conv2d(2, 8, 3), out=nn.Linear(read, 3),
    )  # fmt: skip


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1) ** 3


def _shuffle(m: Any, h: Tensor) -> Tensor:
    return h.view(len(h), 2, 4, *h.shape[2:]).transpose(1, 2).flatten(1, 2)


def masked() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.linear(x, m.weight * m.mask).relu()),
        weight=nn.Parameter(torch.randn(8, 5)), mask=nn.Parameter(torch.rand(8, 5).round(), requires_grad=False),
        out=nn.Linear(8, 3),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 3))


def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 3))


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)), nn.Linear(8, 3))


def autoencoder() -> nn.Module:
    """One weight makes the units and reads them on the same axis."""
    return Net(lambda m, x: F.linear(m.hidden(x).relu(), m.hidden.weight.t()), hidden=nn.Linear(5, 8))


FLAT, IMAGE = (2, 5), (2, 2, 8, 8)

#: Networks whose layers can be operated on: name → (factory, example shape or shapes, the layers that must be found).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, int]]] = {
    "mlp": (mlp, FLAT, {"0": 8, "2": 6}),
    "mlp_bn": (mlp_bn, FLAT, {"0": 8, "3": 6}),
    "cnn": (cnn, IMAGE, {"0": 6, "4": 4, "8": 8}),
    "cnn_plain": (cnn_plain, IMAGE, {"0": 6, "5": 8}),
    "residual": (residual, IMAGE, {"stem": 6, "first": 5, "third": 7, "shortcut": 8}),
    "dense_concat": (dense_concat, IMAGE, {"stem": 4, "first": 3, "second": 3, "third": 4}),
    "separable": (separable, IMAGE, {"0": 6, "5": 5}),
    "leaky": (leaky, FLAT, {"0": 12, "2": 10}),
    "layernorm": (layernorm, FLAT, {"0": 8, "3": 6}),
    "tied": (tied, FLAT, {"stem": 6}),
    "unflattened": (unflattened, FLAT, {"0": 6, "4": 4}),
    "scaled": (scaled, IMAGE, {"first": 6}),
    "frozen": (frozen, FLAT, {"0": 8, "3": 6}),
    "dict_io": (dict_io, {"left": (2, 5), "right": (2, 4)}, {"left": 6}),
    "tuple_in": (tuple_in, ((2, 5), (2, 4)), {"first": 6, "second": 5}),
}

#: Networks that use units by position, by number or in unusual ways, and what can be offered of them.
ADVERSARIAL: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, int]]] = {
    "permute_flatten": (lambda: _conv_between(lambda m, h: h.permute(0, 2, 3, 1), 288), IMAGE, {"hidden": 8}),
    "flip": (lambda: _dense_between(lambda m, h: h.flip(1)), FLAT, {}),
    "flip_sum": (lambda: _dense_between(lambda m, h: h + h.flip(1)), FLAT, {}),
    "mean_gate": (lambda: _conv_between(lambda m, h: h * h.mean(1, keepdim=True).sigmoid(), 288), IMAGE, {"hidden": 8}),
    "slice": (lambda: _dense_between(lambda m, h: h[:, :3], read=3), FLAT, {}),
    "slice_last": (lambda: _dense_between(lambda m, h: h * h[:, -1:]), FLAT, {"hidden": 7}),
    "glu": (lambda: _dense_between(lambda m, h: F.glu(h, 1), read=4), FLAT, {"hidden": 4}),
    "chunk": (lambda: _dense_between(lambda m, h: h.chunk(2, 1)[0] * h.chunk(2, 1)[1], read=4), FLAT, {"hidden": 4}),
    "hard_view": (lambda: _dense_between(lambda m, h: h.view(2, 4, 2).sum(2), read=4), FLAT, {}),
    "hard_split": (lambda: _dense_between(lambda m, h: h.split(8, 1)[0]), FLAT, {}),
    "swapped_halves": (lambda: _dense_between(lambda m, h: torch.cat(h.chunk(2, 1)[::-1], 1)), FLAT, {"hidden": 4}),
    "width_scale": (lambda: _dense_between(lambda m, h: h / h.shape[1]), FLAT, {}),
    "outer_product": (lambda: _dense_between(lambda m, h: (h[:, :, None] * h[:, None]).sum(1)), FLAT, {"hidden": 8}),
    "softmax": (lambda: _dense_between(lambda m, h: h.softmax(1)), FLAT, {"hidden": 8}),
    "cumulative": (lambda: _dense_between(lambda m, h: h.cumsum(1)), FLAT, {}),
    "sorted": (lambda: _dense_between(lambda m, h: h.sort(1).values), FLAT, {}),
    "custom_function": (lambda: _dense_between(lambda m, h: _Cube.apply(h)), FLAT, {}),
    "constant_mask": (lambda: _dense_between(lambda m, h: h * torch.arange(8.0).to(h)), FLAT, {}),
    "python_value": (lambda: _dense_between(lambda m, h: h * float(h[0, 3])), FLAT, {}),
    "masked": (masked, FLAT, {}),
    "channel_shuffle": (lambda: _conv_between(_shuffle, 288), IMAGE, {}),
    "grouped": (grouped, IMAGE, {"0:groups": 2, "0": 4, "1": 3}),
    "group_norm": (group_norm, IMAGE, {"0:groups": 2, "0": 4}),
    "weight_norm": (weight_norm, FLAT, {}),
    "autoencoder": (autoencoder, FLAT, {}),
}  # fmt: skip


def build(name: str, dtype: torch.dtype = torch.float32, batch: int = 2) -> tuple[nn.Module, Any]:
    """A network by name with fresh seeded weights, lively running statistics and an example input."""
    torch.manual_seed(7)
    factory, shape = (NETWORKS.get(name) or ADVERSARIAL[name])[:2]
    return liven(factory()).to(dtype), example(shape, dtype, batch)


def example(shape: Any, dtype: torch.dtype = torch.float32, batch: int = 2) -> Any:
    if isinstance(shape, dict):
        return {key: example(value, dtype, batch) for key, value in shape.items()}
    if isinstance(shape[0], tuple):
        return tuple(example(each, dtype, batch) for each in shape)
    return torch.randn(batch, *shape[1:], dtype=dtype)


def liven(model: nn.Module) -> nn.Module:
    """Norms with scales, shifts and running statistics that are not 0 and 1, as after some training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
    return model


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What the network answers in evaluation mode; its mode is as before."""
    modes = {module: module.training for module in model.modules()}
    found = flat_tensors(call(model.eval(), inputs))
    for module, mode in modes.items():
        module.training = mode
    return found


def loss(model: nn.Module, inputs: Any) -> Tensor:
    """A loss to train on: every output, pulled somewhere."""
    return sum(((out - 1) ** 2).mean() for out in flat_tensors(call(model, inputs)))


def train(model: nn.Module, inputs: Any, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, inputs).backward()
        optimizer.step()


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    assert [t.shape for t in one] == [t.shape for t in other]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in zip(one, other, strict=True))


@contextlib.contextmanager
def edited(edits: Sequence[tuple[HiddenLayer, Sequence[int], Sequence[float]]]) -> Iterator[None]:
    """Several layers at once with these sources and shares, for the time of a ``with`` block."""
    anatomy = edits[0][0].anatomy
    changes = [Edit(e, torch.tensor(s), torch.tensor(w, dtype=torch.float64)) for e, s, w in edits]
    with torch.no_grad(), rebuild.edited(anatomy, changes):
        yield


@contextlib.contextmanager
def silenced(layers: Sequence[tuple[HiddenLayer, Sequence[int]]]) -> Iterator[None]:
    """These units' fan-out is zero for the time of a ``with`` block: what their removal must be equal to."""
    undo: list[Callable[[], object]] = []
    try:
        for layer, units in layers:
            for place in layer.readers:
                tensor = layer.anatomy.tensor(place.tensor)
                columns = place.positions[list(units)].flatten()
                weights = tensor.data.index_select(place.axis, columns)
                undo.append(partial(tensor.data.index_copy_, place.axis, columns, weights))
                tensor.data.index_fill_(place.axis, columns, 0.0)
        yield
    finally:
        for step in reversed(undo):
            step()

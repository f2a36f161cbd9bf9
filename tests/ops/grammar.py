"""Random networks from a grammar of layers, each from one integer, and what an anatomy of them must be.

    python -m tests.ops.grammar 17           one network: its modules, its layers, what broke
    python -m tests.ops.grammar 0-499        a table of constructs over many
    python -m tests.ops.grammar image:glu    one construct between two plain layers
    python -m tests.ops.grammar constructs   a table of all constructs, each between two plain layers

A network is an entry, a chain of blocks and an exit. A block is a construct (``constructs/``), a plain
weighted layer, a change of kind, or a sum, product or concatenation of chains. ``check`` is the rule: discovery never
raises and leaves the network as it was; every weighted layer is offered or pinned with a reason; what is offered keeps
every promise of ``properties``, on inputs that discovery has not seen. Networks of odd numbers are discovered on zeros.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops import Anatomy
from tests.ops.constructs.base import Construct, Shape, Unfit, maker, need
from tests.ops.constructs.conversions import CONVERSIONS
from tests.ops.constructs.dense import FLAT
from tests.ops.constructs.hidden import on_hidden
from tests.ops.constructs.sequences import SEQUENCE
from tests.ops.constructs.spatial import IMAGE, SIGNAL
from tests.ops.networks import Net
from tests.ops.properties import Examination, examine, fingerprint, lively, outputs, unaccounted

CONSTRUCTS: dict[str, dict[str, Construct]] = {"flat": FLAT, "image": IMAGE, "signal": SIGNAL, "sequence": SEQUENCE}
#: Constructs that the networks of the seeds do not have, so that a seed's network stays what it was: see ``sandwich``.
HIDDEN = {kind: on_hidden(-1 if kind == "sequence" else 1) for kind in CONSTRUCTS}
SHAPES: dict[str, Shape] = {"flat": (2, 5), "image": (2, 2, 6, 6), "signal": (2, 3, 8), "sequence": (2, 4, 5)}
AXES: dict[str, int] = {"flat": 1, "image": 1, "signal": 1, "sequence": -1}
#: What these compute depends on values, so that a run on one input does not show the network: examined on that input.
UNSTEADY = {"data_branch", "data_loop", "routed", "routed_rows", "value_branch"}
#: Constructs that cost the layers around them: drawn less often, so that most networks have something to operate on.
AWKWARD = UNSTEADY | {
    "custom_over_channels", "mask_constant", "arange_mask", "permuted", "fancy_index", "flip", "add_flip", "roll",
    "split_sizes", "chunk_gate", "glu", "chunk_swap", "halves_sum", "first_half", "last_dropped", "every_other",
    "one_changed", "grouped_view", "max_out", "shuffle", "padded", "width_scale", "width_branch", "softmax",
    "softmax_gate", "log_sum", "cumsum", "sort", "top", "argmax_gate", "fourier", "stack_interleave", "python_value",
    "outer_product", "cosine", "conv_over_channels", "autoencoder", "weight_norm", "masked_weight", "hyper_network",
    "standardized_weight", "local_response", "channel_gate", "pixel_shuffle", "pixel_unshuffle", "unfolded",
    "layer_norm_all", "normalize", "full_shift", "split_branches", "uneven_chunks",
}  # fmt: skip
POOLS = {
    kind: ([n for n in table if n not in AWKWARD], [n for n in table if n in AWKWARD])
    for kind, table in CONSTRUCTS.items()
}
#: Constructs that see how many units there are, so that norms elsewhere do not make up for a doubling.
COUNTING = {"width_scale", "width_branch", "softmax", "softmax_gate", "log_sum", "cosine", "normalize", "value_branch"}
WORDS = 7  #: vocabulary of token inputs
LARGEST = 2000  #: numbers in a hidden tensor


@dataclass
class Part:
    """A piece of a network while it grows: its module, what it hands on, and its constructs by module path."""

    module: nn.Module
    kind: str
    shape: Shape
    constructs: dict[str, str] = field(default_factory=dict)


@dataclass
class Specimen:
    """A network of the grammar: ``example(seed)`` gives inputs, ``constructs`` says by path what it is made of.

    A ``blind`` one is discovered on inputs of zeros, which hide much of what a trial could show.
    """

    title: str
    model: nn.Module
    example: Callable[[int], Any]
    constructs: dict[str, str]
    blind: bool = False

    @property
    def steady(self) -> bool:
        return not UNSTEADY & set(self.constructs.values())


# -- chains ------------------------------------------------------------------------------------------------------------


def measured(module: nn.Module, shape: Shape) -> Shape:
    """The shape that the module makes of this one. Raises Unfit where it is too large or not a plain tensor."""
    with torch.no_grad():
        out = module.eval()(torch.randn(shape))
    need(isinstance(out, Tensor) and out.numel() <= LARGEST and min(out.shape) > 0 and out.shape[0] == shape[0])
    return tuple(out.shape)


def block(chance: Random, kind: str, shape: Shape, depth: int) -> Part:
    """One random block that can follow a tensor of this kind and shape."""
    while True:
        try:
            dice = chance.random()
            if dice < 0.3:
                module = maker(chance, shape, kind)
                return Part(module, kind, measured(module, shape), {"": "maker"})
            if dice < 0.42 and depth > 0:
                return chance.choice(COMPOSITES)(chance, kind, shape, depth - 1)
            if dice < 0.5:
                target = chance.choice([there for here, there in CONVERSIONS if here == kind])
                return converted(chance, kind, shape, target)
            plain, awkward = POOLS[kind]
            name = chance.choice(awkward if chance.random() < 0.2 else plain)
            module = CONSTRUCTS[kind][name](chance, shape)
            return Part(module, kind, measured(module, shape), {"": name})
        except Unfit:
            continue


def converted(chance: Random, kind: str, shape: Shape, target: str) -> Part:
    name = chance.choice(list(CONVERSIONS[kind, target]))
    module = CONVERSIONS[kind, target][name](chance, shape)
    return Part(module, target, measured(module, shape), {"": name})


def chain(chance: Random, kind: str, shape: Shape, length: int, depth: int) -> Part:
    """Blocks one after another."""
    modules: list[nn.Module] = []
    constructs: dict[str, str] = {}
    for number in range(length):
        part = block(chance, kind, shape, depth)
        modules.append(part.module)
        constructs.update(under(str(number), part.constructs))
        kind, shape = part.kind, part.shape
    return Part(nn.Sequential(*modules), kind, shape, constructs)


def under(path: str, constructs: dict[str, str]) -> dict[str, str]:
    return {f"{path}.{inner}".rstrip("."): name for inner, name in constructs.items()}


def branch(chance: Random, kind: str, shape: Shape, depth: int, units: int | None = None) -> Part:
    """A chain that keeps its kind and the extent of its tensor; with ``units``, that many channels at its end."""
    axis = AXES[kind]
    for _ in range(20):
        part = chain(chance, kind, shape, chance.randint(1, 2), depth)
        if part.kind == kind and _extent(part.shape, axis) == _extent(shape, axis):
            if units is None:
                return part
            last = maker(chance, part.shape, kind, units)
            module = nn.Sequential(*part.module.children(), last)
            end = {str(len(module) - 1): "maker"}
            return Part(module, kind, measured(last, part.shape), {**part.constructs, **end})
    module = nn.Sequential(maker(chance, shape, kind, units))
    return Part(module, kind, measured(module, shape), {"0": "maker"})


def _extent(shape: Shape, axis: int) -> Shape:
    return tuple(size for at, size in enumerate(shape) if at != axis % len(shape))


def _combined(name: str, function: Callable[..., Tensor], kind: str, shape: Shape, **parts: Part) -> Part:
    net = Net(function, **{key: part.module for key, part in parts.items()})
    constructs = {"": name}
    for key, part in parts.items():
        constructs.update(under(key, part.constructs))
    return Part(net, kind, measured(net, shape), constructs)


def residual(chance: Random, kind: str, shape: Shape, depth: int) -> Part:
    inner = branch(chance, kind, shape, depth, shape[AXES[kind]])

    def summed(m: Any, h: Tensor) -> Tensor:
        out = m.inner(h)
        out += h
        return out

    forms = (
        lambda m, h: h + m.inner(h),
        lambda m, h: (m.inner(h) + h).relu(),
        summed,
        lambda m, h: h - 0.5 * m.inner(h),
    )
    return _combined("residual", chance.choice(forms), kind, shape, inner=inner)


def gated(chance: Random, kind: str, shape: Shape, depth: int) -> Part:
    inner = branch(chance, kind, shape, depth, shape[AXES[kind]])
    return _combined("gated", lambda m, h: h * m.inner(h).sigmoid(), kind, shape, inner=inner)


def joined(chance: Random, kind: str, shape: Shape, depth: int) -> Part:
    """A concatenation of what came in and what was made of it."""
    axis = AXES[kind]
    inner = branch(chance, kind, shape, depth)
    forms = (lambda m, h: torch.cat([h, m.inner(h)], axis), lambda m, h: torch.cat([m.inner(h), h, m.inner(h)], axis))
    return _combined("joined", chance.choice(forms), kind, shape, inner=inner)


def branches(chance: Random, kind: str, shape: Shape, depth: int) -> Part:
    axis, units = AXES[kind], chance.choice((3, 4, 6))
    left, right = branch(chance, kind, shape, depth, units), branch(chance, kind, shape, depth, units)
    forms = (
        lambda m, h: m.left(h) + m.right(h), lambda m, h: m.left(h) * m.right(h).sigmoid(),
        lambda m, h: torch.cat([m.left(h), m.right(h)], axis), lambda m, h: torch.maximum(m.left(h), m.right(h)),
        lambda m, h: torch.stack([m.left(h), m.right(h)], 1).amax(1),
        lambda m, h: torch.where(h.mean(axis, keepdim=True) > 0.123, m.left(h), m.right(h)),
        lambda m, h: torch.stack([m.left(h), m.right(h)], 0).mean(0),
    )  # fmt: skip
    return _combined("branches", chance.choice(forms), kind, shape, left=left, right=right)


def dense_block(chance: Random, kind: str, shape: Shape, depth: int) -> Part:
    axis = AXES[kind]
    channels = shape[axis]
    grown = tuple(size + 3 if at == axis % len(shape) else size for at, size in enumerate(shape))
    first = Part(maker(chance, shape, kind, 3), kind, shape, {"": "maker"})
    second = Part(maker(chance, grown, kind, 4), kind, grown, {"": "maker"})

    def forward(m: Any, h: Tensor) -> Tensor:
        a = torch.cat([h, m.first(h).relu()], axis)
        return torch.cat([a, m.second(a).tanh()], axis)

    need(channels > 0)
    return _combined("dense_block", forward, kind, shape, first=first, second=second)


def repeated(chance: Random, kind: str, shape: Shape, depth: int) -> Part:
    """The same modules twice."""
    inner = branch(chance, kind, shape, depth, shape[AXES[kind]])
    return _combined("repeated", lambda m, h: m.inner(m.inner(h).tanh()), kind, shape, inner=inner)


COMPOSITES: tuple[Callable[[Random, str, Shape, int], Part], ...] = (
    residual, residual, gated, joined, branches, dense_block, repeated
)  # fmt: skip


# -- whole networks ----------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Entry, body, exit; the entry takes the arguments, and the exit may read what the entry holds."""

    def __init__(self, entry: nn.Module, body: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.entry, self.body, self.out = entry, body, out

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.out(self.body(self.entry(*args, **kwargs)))


def inputs_of(shapes: Any, seed: int) -> Any:
    """Random inputs: of a shape normal numbers, of an integer that many words in each of two texts."""
    generator = torch.Generator().manual_seed(seed)

    def one(shape: Any) -> Tensor:
        if isinstance(shape, int):
            return torch.randint(WORDS, (2, shape), generator=generator)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    if isinstance(shapes, dict):
        return {key: one(shape) for key, shape in shapes.items()}
    return tuple(one(shape) for shape in shapes) if isinstance(shapes, list) else one(shapes)


def generate(seed: int) -> Specimen:
    """The network of this seed, in double precision, with lively weights."""
    chance = Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while True:
            model, shapes, constructs = _drawn(chance)
            try:
                specimen = _specimen(str(seed), model, shapes, constructs, seed)
                specimen.blind = seed % 2 == 1 and specimen.steady
            except RuntimeError:  # a block met a stride or a precision that its own trial did not have
                continue
            if all(out.isfinite().all() for number in (0, 1) for out in outputs(model, specimen.example(number))):
                return specimen


def _drawn(chance: Random) -> tuple[nn.Module, Any, dict[str, str]]:
    entry, shapes, kind, shape, name = _entry(chance)
    body = chain(chance, kind, shape, chance.randint(2, 5), depth=2)
    if body.kind != "flat":
        last = converted(chance, body.kind, body.shape, "flat")
        body = Part(
            nn.Sequential(*body.module.children(), last.module), "flat", last.shape,
            {**body.constructs, **under(str(len(list(body.module.children()))), last.constructs)},
        )  # fmt: skip
    out, title = _exit(chance, body.shape, entry)
    return Network(entry, body.module, out), shapes, {"entry": name, **under("body", body.constructs), "out": title}


def sandwich(kind: str, name: str, seed: int = 0) -> Specimen:
    """One construct between two plain layers. Raises Unfit if it fits nowhere."""
    here, _, there = kind.partition("-")
    construct = CONVERSIONS[here, there][name] if there else (CONSTRUCTS[here] | HIDDEN[here])[name]
    chance = Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for units in (8, 6, 12, 4, 3):
            try:
                before = nn.Sequential(maker(chance, SHAPES[here], here, units, zeros=True), nn.Tanh())
                shape = measured(before, SHAPES[here])
                inner = construct(chance, shape)
                shape = measured(inner, shape)
                break
            except Unfit:
                continue
        else:
            raise Unfit
        after = nn.Sequential(maker(chance, shape, there or here, 6, zeros=True), nn.Tanh())
        shape = measured(after, shape)
        flatten = nn.Identity() if len(shape) == 2 else nn.Flatten()
        head = nn.Linear(measured(flatten, shape)[1], 3)
        model = nn.Sequential(before, inner, after, flatten, head)
    return _specimen(f"{kind}:{name}", model, SHAPES[here], {"0": "maker", "1": name, "2": "maker"}, seed)


def _specimen(title: str, model: nn.Module, shapes: Any, constructs: dict[str, str], seed: int) -> Specimen:
    def example(number: int) -> Any:
        return inputs_of(shapes, 1000 * seed + number)

    return Specimen(title, lively(model.double(), example(0), seed), example, constructs)


def _entry(chance: Random) -> tuple[nn.Module, Any, str, Shape, str]:
    """A module for the arguments; their shapes; the kind and shape of what it hands on; its name."""
    name = chance.choice(("flat", "image", "image", "signal", "sequence", "sequence", "tokens", "named", "pair"))
    if name in SHAPES:
        return nn.Identity(), SHAPES[name], name, SHAPES[name], name
    if name == "tokens":
        size, padding = chance.choice((4, 6)), chance.choice((None, 0))
        table = nn.Embedding(WORDS, size, padding_idx=padding)
        return Net(lambda m, ids: m.table(ids), table=table), 4, "sequence", (2, 4, size), name
    kind = chance.choice(("flat", "image"))
    shape, units = SHAPES[kind], chance.choice((3, 4))
    left, right = maker(chance, shape, kind, units), maker(chance, shape, kind, units)
    summed = chance.random() < 0.5

    def forward(m: Any, one: Tensor, other: Tensor) -> Tensor:
        one, other = m.left(one), m.right(other)
        return one + other if summed else torch.cat([one, other], 1)

    entry = Net(forward, left=left, right=right)
    made = (2, units if summed else 2 * units, *shape[2:])
    return entry, ({"one": shape, "other": shape} if name == "named" else [shape, shape]), kind, made, name


def _exit(chance: Random, shape: Shape, entry: nn.Module) -> tuple[nn.Module, str]:
    """The end of a network for a flat tensor, and its name."""
    table = getattr(entry, "table", None)
    name = chance.choice(("linear", "linear", "linear", "two_heads", "exposed", "deep", "bare", "tied"))
    if name == "two_heads":
        parts = {"one": nn.Linear(shape[1], 3), "other": nn.Linear(shape[1], 2)}
        return Net(lambda m, h: {"one": m.one(h), "rest": (m.other(h),)}, **parts), name
    if name == "exposed":
        return Net(lambda m, h: (m.one(h), h), one=nn.Linear(shape[1], 3)), name
    if name == "deep":
        return nn.Sequential(nn.Linear(shape[1], 8), nn.ReLU(), nn.Linear(8, 3)), name
    if name == "bare":
        return nn.Tanh(), name
    if name == "tied" and table is not None:
        project = nn.Linear(shape[1], table.embedding_dim)
        logits = nn.Linear(table.embedding_dim, WORDS, bias=False)
        logits.weight = table.weight
        return nn.Sequential(project, nn.Tanh(), logits), name
    return nn.Linear(shape[1], 3), "linear"


# -- the rule ----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a check found: ``problems`` must be empty; the rest says how much was looked at."""

    problems: list[str]
    anatomy: Anatomy | None = None
    examination: Examination | None = None


def check(specimen: Specimen) -> Outcome:
    """The rule of this module, on one network."""
    model, example = specimen.model, specimen.example(0)
    plain = outputs(model, example)
    if not all(out.isfinite().all() for out in plain):
        return Outcome(["the network of the grammar does not answer in numbers"])
    model.train()
    next(iter(model.children())).eval()
    before = fingerprint(model)
    shown = _pytree.tree_map_only(Tensor, torch.zeros_like, example) if specimen.blind else example
    try:
        anatomy = Anatomy(model, shown)
    except Exception as error:  # discovery must take every network
        return Outcome([f"discovery raises {type(error).__name__}: {str(error).splitlines()[0][:200]}"])
    problems = [f"discovery changed {key}" for key, value in fingerprint(model).items() if before.get(key) != value]
    model.eval()
    problems += [f"{name} is pinned without a reason" for name, reason in anatomy.pinned.items() if not reason.strip()]
    problems += [f"{name} is inexact without a reason" for name, e in anatomy.items() if not e.exact and not e.reason]
    fresh = specimen.example(1) if specimen.steady else example
    doubles = not COUNTING & set(specimen.constructs.values())
    examination = examine(anatomy, fresh, doubles=doubles)
    problems += [str(verdict) for verdict in examination.broken]
    problems += [f"{name} is neither offered nor pinned" for name in unaccounted(anatomy, examination.resized)]
    return Outcome(problems, anatomy, examination)


def owners(specimen: Specimen, names: Iterable[str]) -> Counter[str]:
    """How many of these layers each construct makes, by the longest path that leads to them."""
    found: Counter[str] = Counter()
    for name in names:
        path = name.partition(":")[0]
        while path and path not in specimen.constructs:
            path = path.rpartition(".")[0]
        found[specimen.constructs.get(path, "?")] += 1
    return found


# -- by hand -----------------------------------------------------------------------------------------------------------


def describe(specimen: Specimen) -> None:
    """Prints a network, the source of its constructs, its anatomy and its problems."""
    print(specimen.model)
    everything = {name: make for table in (*CONSTRUCTS.values(), *CONVERSIONS.values()) for name, make in table.items()}
    for path, name in specimen.constructs.items():
        print(f"\n# {path or 'the chain'}: {name}")
        if name in everything:
            print(inspect.getsource(everything[name]).rstrip())
    example = specimen.example(0)
    print("\ninputs:", _pytree.tree_map(lambda t: tuple(t.shape), example))
    outcome = check(specimen)
    if outcome.anatomy is not None:
        for name, layer in outcome.anatomy.items():
            print(f"offered  {name}: {layer.units} units, {'exact' if layer.exact else layer.reason}")
        for name, reason in outcome.anatomy.pinned.items():
            print(f"pinned   {name}: {reason}")
    if outcome.examination is not None:
        print(f"faint    {', '.join(outcome.examination.faint) or 'none'}")
    for problem in outcome.problems:
        print("PROBLEM ", problem)
    if not outcome.problems:
        print(f"every promise kept, worst error {outcome.examination.worst:.1e}")  # type: ignore[union-attr]


def survey(seeds: range) -> None:
    """Prints a table of constructs: in how many networks, layers offered, pinned, and in how many broken ones."""
    seen, offered, pinned, broken = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    layers = faint = 0
    failing: dict[int, list[str]] = {}
    start = time.perf_counter()
    for seed in seeds:
        specimen = generate(seed)
        outcome = check(specimen)
        names = set(specimen.constructs.values())
        seen.update(names)
        if outcome.problems:
            failing[seed] = outcome.problems
            broken.update(names)
        if outcome.anatomy is not None:
            offered.update(owners(specimen, outcome.anatomy))
            pinned.update(owners(specimen, outcome.anatomy.pinned))
            layers += len(outcome.anatomy)
        if outcome.examination is not None:
            faint += len(outcome.examination.faint)
    print(f"{'construct':26}{'networks':>9}{'offered':>9}{'pinned':>8}{'broken':>8}")
    for name in sorted(seen):
        print(f"{name:26}{seen[name]:9}{offered[name]:9}{pinned[name]:8}{broken[name]:8}")
    for seed, problems in failing.items():
        print(f"seed {seed}: {problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))
    print(
        f"{len(seeds)} networks in {time.perf_counter() - start:.0f} s: {layers} layers offered ({faint} faint), "
        f"{sum(pinned.values())} pinned; {len(failing)} networks with problems"
    )


def sandwiches() -> Iterator[tuple[str, str]]:
    """Kind and name of every construct."""
    for kind, table in CONSTRUCTS.items():
        yield from ((kind, name) for name in (*table, *HIDDEN[kind]))
    for (here, there), table in CONVERSIONS.items():
        yield from ((f"{here}-{there}", name) for name in table)


def offers(kind: str, name: str, seeds: Iterable[int] = range(3)) -> tuple[int, int, list[str]]:
    """Over some sandwiches of a construct: layers offered, layers pinned, problems."""
    offered = pinned = 0
    problems: list[str] = []
    for seed in seeds:
        outcome = check(sandwich(kind, name, seed))
        problems += [f"seed {seed}: {problem}" for problem in outcome.problems]
        if outcome.anatomy is not None:
            offered += len(outcome.anatomy)
            pinned += len(outcome.anatomy.pinned)
    return offered, pinned, problems


def catalogue() -> None:
    """Prints how many layers are offered around and in each construct."""
    for kind, name in sandwiches():
        offered, pinned, problems = offers(kind, name)
        print(f"{f'{kind}:{name}':36}{offered:4} offered{pinned:4} pinned  {problems[0] if problems else ''}")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    for argument in arguments or ["0"]:
        if ":" in argument:
            kind, name = argument.split(":")
            describe(sandwich(kind, name))
        elif argument == "constructs":
            catalogue()
        elif "-" in argument:
            first, last = argument.split("-")
            survey(range(int(first), int(last) + 1))
        else:
            describe(generate(int(argument)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Where edits are tried: the network runs with them, and what it answers is compared with what it answered."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops.anatomy.rebuild import Edit, Rebuilt, edited, in_double, to_double, undoing
from network_surgery.ops.anatomy.recall import Lost, Recall, Recalling
from network_surgery.ops.anatomy.running import call, deviation, flat_tensors, norms_evaluating, plainly
from network_surgery.ops.anatomy.snapshot import Snapshot
from network_surgery.ops.anatomy.steady import Precisions, Redrawn, Steady
from network_surgery.ops.errors import first_line, pass_on_memory, without_foreign_errors
from network_surgery.ops.maths.double import numeric
from network_surgery.ops.network.expressed import tensors_of
from network_surgery.ops.network.optimizer_state import exchange

if TYPE_CHECKING:
    from network_surgery.ops.anatomy import Anatomy


@dataclass(frozen=True)
class Problem:
    """What went wrong: the network did not run (in which module), or it ran and its output ``moved``."""

    reason: str
    module: str | None = None
    moved: bool = False


#: The largest relative difference that rounding explains, by the precision of the output; what needs no second look.
TOLERANCE = {
    torch.float64: 1e-7, torch.complex128: 1e-7, torch.float32: 1e-3, torch.complex64: 1e-3,
    torch.bfloat16: 0.1, torch.float16: 0.02,
}  # fmt: skip
CLEAR = TOLERANCE | {torch.float32: 1e-4, torch.complex64: 1e-4, torch.bfloat16: 1e-3, torch.float16: 1e-3}

#: Larger networks (bytes of parameters in double precision) are not copied to double precision.
MOST_DOUBLED = 1 << 32
#: No larger difference is taken for rounding, however much a network amplifies it.
MOST_ROUNDING = 0.03


@dataclass(eq=False)
class Stage:
    """Where edits are tried: the network, what it is shown and answers unchanged, and the modules that were entered
    last time (kept true if ``watching``). In ``training`` mode, noise is the same for networks of all sizes.
    ``rebuilds``: what edits have made of tensors before. ``learning``: where they are tried in training mode, too."""

    anatomy: Anatomy
    example: Any
    output: list[Tensor]
    watching: bool
    entered: list[nn.Module] = field(default_factory=list)
    training: bool = False
    rebuilds: Rebuilt | None = None
    learning: Stage | None = None
    renewed: bool = False

    def problem(self, edits: list[Edit], *, equal: bool) -> Problem | None:
        """What goes wrong with these edits: the network no longer runs, or (``equal``) computes something else."""
        if not edits:
            return None
        learning = self.learning if self.learning is not None and self.learning.numbered else None
        stages = [self] if learning is None else [self, learning]
        found, failure = self._try(stages, edits)
        for stage, output in zip(stages, found, strict=False):
            problem = stage._compare(edits, output, equal)
            if problem is not None:
                break
        else:
            problem, stage = failure, stages[-1] if len(found) else self
        if problem is not None and stage is learning and learning.renew():
            return learning.problem(edits, equal=equal) if learning.numbered else None
        return problem

    def _try(self, stages: Sequence[Stage], edits: list[Edit]) -> tuple[list[list[Tensor]], Problem | None]:
        """What the network answers with these edits at each stage, and why it is that one of them has no answer."""
        found: list[list[Tensor]] = []
        shared = len(stages) > 1 and stages[1].example is self.example and not self.anatomy.draws
        try:
            redrawn = Redrawn(self.anatomy.draws, {edit.layer.factor: edit.sources for edit in edits})
            with self._restored() as known, edited(self.anatomy, edits, self.rebuilds):
                recall = Recall(self.anatomy.model, self.example) if shared else None
                for stage in stages:
                    with stage._watched():
                        found.append(stage.answer(redrawn, known if stage is stages[-1] else None, recall))
        except Exception as error:  # whatever the foreign forward pass raises at another size pins the layer
            pass_on_memory(error)
            names = {module: name for name, module in self.anatomy.modules.items()}
            running = [module for module in _running(error) if module in names]
            where = [names[module] for module in running if any(True for _ in module.children())]
            mode = stages[len(found)].mode
            reason = f"the network does not run at another size{mode} ({first_line(error)[:120]})"
            return found, Problem(reason, where[-1] if where else None)
        return found, None

    def _compare(self, edits: list[Edit], found: list[Tensor], equal: bool) -> Problem | None:
        """What is wrong with the network's answer."""
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in self.output]:
            return Problem(f"the output changes its shape with the layer{self.mode}")
        if equal and not self._only_rounding(edits, deviation(self.output, found)):
            return Problem(
                f"the network uses its units by position or number, so an edit would change its output{self.mode}",
                moved=True,
            )
        return None

    @property
    def mode(self) -> str:
        return " in training mode" if self.training else ""

    @contextlib.contextmanager
    def _restored(self) -> Iterator[Snapshot]:
        """The network as it has been whenever a trial began, and as it is again afterwards."""
        try:
            yield self._state
        finally:
            self._state.restore()

    @functools.cached_property
    def _state(self) -> Snapshot:
        return Snapshot(self.anatomy.model.modules())

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        if not self.watching:
            yield
            return
        self.entered = []
        enter: Callable[[nn.Module, Any], None] = lambda module, args: self.entered.append(module)  # noqa: E731
        hook = nn.modules.module.register_module_forward_pre_hook(enter)
        try:
            yield
        finally:
            hook.remove()

    def keeps(self, edits: list[Edit]) -> bool:
        """Whether the network with these edits computes what it does when nobody reads the units that they take away.

        Raises whatever the network does where it does not run.
        """
        with _silenced(self.anatomy, edits):
            wanted = self.answer()
        with edited(self.anatomy, edits), self._watched():
            difference = deviation(wanted, self.answer())
        if difference <= max((CLEAR.get(tensor.dtype, 0.0) for tensor in wanted), default=0.0):
            return True
        if not self._is_double and self._doubled is not None:
            with in_double(self.anatomy):
                return self._doubled.keeps(edits)
        return difference <= MOST_ROUNDING and difference <= 10 * self.rounding

    @property
    def _clear(self) -> float:
        """What needs no second look."""
        return max((CLEAR.get(tensor.dtype, 0.0) for tensor in self.output), default=0.0)

    @property
    def _is_double(self) -> bool:
        return all(tensor.dtype in (torch.float64, torch.complex128) for tensor in self.output)

    def _only_rounding(self, edits: list[Edit], difference: float) -> bool:
        """Whether rounding explains a relative difference. If in doubt, that in double precision decides; where there
        is none, what rounding does in this network is tried."""
        kinds = [tensor.dtype for tensor in self.output]
        if difference <= self._clear:
            return True
        if not self._is_double:
            exactly = self._in_double(edits)
            if exactly is not None:
                return exactly
            if difference <= max((TOLERANCE.get(kind, 0.0) for kind in kinds), default=0.0):
                return True
        return difference <= MOST_ROUNDING and difference <= 10 * self.rounding

    def _in_double(self, edits: list[Edit]) -> bool | None:
        """Whether the edits change nothing but rounding in double precision; None where not all is computed in it."""
        if self._doubled is None:
            return None
        try:
            with in_double(self.anatomy):
                return self._doubled.problem(edits, equal=True) is None
        except Exception as error:  # whatever the foreign forward pass raises
            pass_on_memory(error)
            return None

    @functools.cached_property
    def _doubled(self) -> Stage | None:
        """The stage in double precision."""
        tensors = [tensor for _, tensor in tensors_of(self.anatomy.model) if tensor.is_floating_point()]
        if 8 * sum(tensor.numel() for tensor in tensors) > MOST_DOUBLED:
            return None
        stage = Stage(self.anatomy, _pytree.tree_map(to_double, self.example), [], False, training=self.training)
        try:
            with in_double(self.anatomy), Precisions() as precisions:
                stage.output = stage.answer()
        except Exception as error:  # whatever the foreign forward pass raises
            pass_on_memory(error)
            return None
        return None if precisions.coarse or not stage.output else stage

    @property
    def numbered(self) -> bool:
        """Whether the output holds a number to compare."""
        numbers = (t for t in self.output if t.is_floating_point() or t.is_complex())
        return any(bool(torch.isfinite(tensor).any()) for tensor in numbers)

    def renew(self) -> bool:
        """Whether the network as it is answers something else than it is held to, as it did so without gradients; what
        it is held to is then its answer with them, or nothing where it does not run."""
        if self.renewed:
            return False
        self.renewed, before, self.output = True, self.output, []
        with without_foreign_errors():  # such as a detector's, which asks for targets
            self.output = self.answer()
        return deviation(before, self.output) > self._clear

    @functools.cached_property
    def rounding(self) -> float:
        """How far the output moves with the last digit of every parameter: much in a deep network that amplifies."""
        random = torch.Generator().manual_seed(0)
        with undoing() as undo:
            for _, tensor in self.anatomy.model.named_parameters():
                if numeric(tensor):
                    sign = torch.randint(2, tensor.shape, generator=random, dtype=torch.int8).mul_(2).sub_(1).to(tensor)
                    data = tensor.data * (1 + torch.finfo(tensor.dtype).eps * sign)
                    undo.append(exchange(tensor, data, tensor.grad))
            return deviation(self.output, self.answer())

    def answer(
        self, redrawn: Redrawn | None = None, known: Snapshot | None = None, recall: Recall | None = None
    ) -> list[Tensor]:
        """What the network answers; ``redrawn`` gives each unit its noise where some of them have changed. ``known``:
        the snapshot by which it is restored later; ``recall``: what another stage has computed of it already.

        In training mode gradients are recorded, as the code may ask for that, too.
        """
        model = self.anatomy.model
        if not self.training:
            noise = redrawn if self.anatomy.draws and redrawn is not None else contextlib.nullcontext()
            with plainly(model, known=known), noise, _recalling(recall):
                return flat_tensors(call(model, self.example))
        if recall is not None and recall.usable:
            recall.again()
            try:
                return self._learn(recall)
            except (Lost, Exception) as error:  # or what the network makes of it
                if not isinstance(error, Lost) and not recall.lost:
                    raise
        return self._learn(None, known)

    def _learn(self, recall: Recall | None, known: Snapshot | None = None) -> list[Tensor]:
        model = self.anatomy.model
        with (
            plainly(model, training=True, known=known), norms_evaluating(model), torch.enable_grad(), Steady(),
            _recalling(recall),
        ):  # fmt: skip
            found = [tensor.detach() for tensor in flat_tensors(call(model, self.example))]
        if recall is not None and not recall.holds(found):
            raise Lost
        return found


def _recalling(recall: Recall | None) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if recall is None else Recalling(recall)


def _running(error: Exception) -> list[nn.Module]:
    """The modules whose forward passes an error comes out of, outermost first."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [frame.f_locals["self"] for frame in frames if frame.f_code is nn.Module._call_impl.__code__]


@contextlib.contextmanager
def _silenced(anatomy: Anatomy, edits: Sequence[Edit]) -> Iterator[None]:
    """The network in which nobody reads the units that the edits take away, for the time of a ``with`` block."""
    with undoing() as undo:
        for edit in edits:
            for place in edit.layer.readers:
                tensor = anatomy.tensor(place.tensor)
                gone = place.positions[len(edit.sources) :].flatten().to(tensor.device)
                undo.append(exchange(tensor, tensor.data.index_fill(place.axis, gone, 0), tensor.grad))
        yield

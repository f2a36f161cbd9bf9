"""The curvature of the loss over a network's weights, as Gauss and Newton have it: the mean of ``Jᵀ S Sᵀ J``.

``J`` is the derivative of a sample's output by the weights and ``S Sᵀ`` the Hessian of its loss by its output: the
Hessian of the loss with the network linear in its weights. Why this one, of the usual estimates:

* It is the Hessian itself where the network is linear in these weights (a dense layer under the squared error), so what
  is predicted from it can be checked; LeCun et al. 1990, *Optimal brain damage*, take it, too. Of the cross entropy it
  is the Fisher matrix (Martens 2014).
* It has no negative curvature, so its inverse is one (Hassibi and Stork 1993). The Hessian itself has.
* The empirical Fisher matrix (squares of the gradients of the samples' own losses) costs less and says less: it falls
  with the residuals, so that a sample that the network has learned counts for nothing (Kunstner et al. 2019).

It is had in rows: ``Sᵀ J / √samples``, whose products are the curvature. Where the output of a sample is of at most
``COLUMNS`` numbers there is a row for each, and nothing is estimated. Of larger outputs there are ``DRAWS`` rows, of
``S`` times random signs: right in the mean over draws. The root is taken by ``STEPS`` steps of Lanczos then, for which
products with the Hessian of the loss suffice. Where a loss is concave along an output, its curvature counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree

from network_surgery.ops.anatomy.running import plainly
from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.network.altered import Altered, Together
from network_surgery.ops.network.checks import check_real, usable
from network_surgery.ops.network.expressed import tensors_of
from network_surgery.ops.signals.gradients import NO_GRADIENT, without_checkpoints
from network_surgery.ops.signals.losses import Loss, batch_of, check_batch_first, suit, total

#: Numbers in the output of a sample up to which each has a row; rows of a sample otherwise, and steps to their roots.
COLUMNS, DRAWS, STEPS = 32, 4, 12
#: Samples that are looked at, and numbers in all of their outputs, at most.
SAMPLES, OUTPUTS = 512, 1 << 22
#: Numbers in the rows that are made at once.
MOST = 1 << 22

#: Rows of the curvature by parameter, ``[rows, *the parameter's shape]``.
Rows = dict[str, Tensor]


def curvature_rows(
    model: nn.Module, names: Sequence[str], inputs: Any, targets: Any, loss: Loss | None = None, seed: int = 0
) -> Iterator[Rows]:
    """Rows of the curvature of a batch's loss over some parameters, by their plain names, a part of them after the
    other, in evaluation mode and the network's precision.

    The sum over all rows of ``row_i row_j`` is the second derivative by the entries ``i`` and ``j``. Of the batch at
    most ``SAMPLES`` are looked at, spread evenly. The output must have the samples first. ``seed``: of the draws.

    Raises:
        SurgeryError: the network does not run on single samples, or has no gradient; its loss cannot be had.
    """
    check_real(model, inputs)
    inputs, targets = usable((inputs, targets))
    with (
        plainly(model), without_checkpoints(), sdpa_kernel(SDPBackend.MATH),
        explained("the curvature cannot be had of this network and batch"),
    ):  # fmt: skip
        network, known = Altered(model), dict(tensors_of(model))
        weights = {name: known[name].detach() for name in names}
        samples = batch_of(targets, inputs)
        outputs = network({}, inputs)
        check_batch_first(outputs, samples)
        roots, chosen = _roots(outputs, targets, loss, samples, seed)

        def rows(place: Tensor) -> Tensor:
            sample = chosen.index_select(0, place.reshape(1))

            def take(value: Any) -> Any:
                whole = isinstance(value, Tensor) and value.shape[:1] == (samples,)
                return value.index_select(0, sample) if whole else value

            def answer(at: Mapping[str, Tensor]) -> Tensor:
                return _flat(network(at, _pytree.tree_map(take, inputs)))[0]

            answered, pull = torch.func.vjp(answer, weights)  # type: ignore[misc]  # three with has_aux
            (root,) = roots.index_select(0, place.reshape(1)).to(answered.dtype)
            pulled = [pull(column)[0] for column in root]
            return torch.stack([torch.cat([each[name].flatten() for name in names]) for each in pulled])

        sizes = [weights[name].numel() for name in names]
        most = max(1, MOST // max(1, sum(sizes) * roots.shape[1]))
        together = Together(rows, able=most > 1)
        for part in torch.arange(len(chosen), device=chosen.device).split(most):
            found = together(part).flatten(0, 1).split(sizes, dim=1)
            yield {n: each.unflatten(1, weights[n].shape) for n, each in zip(names, found, strict=True)}


def diagonal(rows: Iterator[Rows]) -> Rows:
    """The second derivative by each entry, in the parameter's shape."""
    found: Rows = {}
    for part in rows:
        for name, each in part.items():
            squares = each.square().sum(dim=0)
            found[name] = found[name] + squares if name in found else squares
    return found


def _flat(outputs: Any) -> Tensor:
    """The numbers of each sample's output that losses have slopes by, ``[samples, numbers]``."""
    leaves = [x for x in _pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.dim() and x.is_floating_point()]
    if not leaves:
        raise SurgeryError(NO_GRADIENT)
    return torch.cat([x.flatten(1) if x.dim() > 1 else x.unsqueeze(1) for x in leaves], dim=1)


def _roots(outputs: Any, targets: Any, loss: Loss | None, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """``Sᵀ / √samples``, ``[chosen samples, rows, numbers of an output]``, and which samples these are."""
    with torch.enable_grad():
        doubled = _pytree.tree_map(_follow, outputs)
        leaves = [x for x in _pytree.tree_leaves(doubled) if isinstance(x, Tensor) and x.requires_grad]
        value = total(suit(loss, doubled, targets)(doubled, targets), samples)
        slopes = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        slope = _flat(list(slopes))
        size = slope.shape[1]
        count = min(samples, SAMPLES, max(1, OUTPUTS // size))
        chosen = torch.arange(count, device=slope.device) * samples // count

        def multiply(vectors: Tensor) -> Tensor:
            """The Hessian of each chosen sample's loss by its output, times its vector; both ``[chosen, numbers]``."""
            if not slope.requires_grad:  # a loss that is linear in the output
                return torch.zeros_like(vectors)
            along = torch.zeros_like(slope).index_copy(0, chosen, vectors)
            found = torch.autograd.grad(slope, leaves, along, retain_graph=True, materialize_grads=True)
            return _flat(list(found)).detach().index_select(0, chosen)

        if size <= COLUMNS:
            columns = torch.eye(size, dtype=slope.dtype, device=slope.device)
            hessian = torch.stack([multiply(column.expand(count, size)) for column in columns], dim=1)
            values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
            found = vectors.mT * values.clamp(min=0).sqrt().unsqueeze(2)
        else:
            random = torch.Generator().manual_seed(seed)
            signs = (torch.randint(2, (DRAWS, count, size), generator=random) * 2 - 1).to(slope)
            found = torch.stack([root_times(multiply, each) for each in signs], dim=1) / DRAWS**0.5
    return found / count**0.5, chosen


def _follow(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_()
    return value


def root_times(multiply: Callable[[Tensor], Tensor], vectors: Tensor, steps: int = STEPS) -> Tensor:
    """The root of a matrix without negative eigenvalues, for each of some vectors one, times it, by Lanczos.

    ``multiply``: the matrices times vectors, both ``[vectors, numbers]``, as is what is returned.
    """
    length = vectors.norm(dim=1, keepdim=True)
    basis, along, across = [vectors / length.clamp(min=torch.finfo(vectors.dtype).tiny)], [], []
    for _ in range(min(steps, vectors.shape[1])):
        turned = multiply(basis[-1])
        along.append((turned * basis[-1]).sum(dim=1))
        for each in basis * 2:  # twice, as rounding takes the first time's orthogonality away
            turned = turned - (turned * each).sum(dim=1, keepdim=True) * each
        size = turned.norm(dim=1, keepdim=True)
        goes_on = size > 1e-10 * torch.stack(along).abs().amax(dim=0).unsqueeze(1)
        across.append(size.where(goes_on, 0).squeeze(1))
        basis.append((turned / size).where(goes_on, 0))
    band = torch.diag_embed(torch.stack(along, dim=1))
    if len(across) > 1:
        beside = torch.stack(across[:-1], dim=1)
        band = band + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    values, turns = torch.linalg.eigh(band)
    first = (turns * values.clamp(min=0).sqrt().unsqueeze(1) * turns[:, :1]).sum(dim=2)
    return length * torch.einsum("vk,kvn->vn", first, torch.stack(basis[:-1]))

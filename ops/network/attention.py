"""Attention whose heads can be operated on: ``nn.MultiheadAttention`` that reads its sizes from its tensors.

torch's module takes heads and scaling from the width of its input and insists that every width is ``embed_dim``, so
nothing inside it can change. ``free_attention`` gives such modules another forward pass that computes the same:

* The number of heads is ``num_heads``, which surgery keeps true. The width of the values, of all heads together, is
  that of ``out_proj``'s input; what is left of the rows of ``in_proj_weight`` is queries and keys, in equal parts. Keys
  and values may so have different widths.
* Scores are multiplied by ``scaling``, a number of the module's own: 1/√(width of a head) as the module was made. It
  does not follow the width of queries and keys, for if that were edited (today no weight reads it, so it is pinned),
  shared copies of their units would leave the scores as they are.

Modules stay who they are, with their hooks, parameters and the keys of their state_dict: only their class changes, as
with torch's parametrizations. A module whose forward pass is not torch's own is left alone.

What is lost is speed in evaluation without gradients: torch's fused encoder layer knows one width only and is declined,
by the flag ``_qkv_same_embed_dim``, with which torch itself keeps modules from it. Nested tensors exist there only, so
``nn.TransformerEncoder`` does not make any; at padded positions, where it would return zeros then, it returns what it
returns in training. TorchScript and ``torch.fx`` know torch's class only; ``torch.compile`` and ``torch.export`` take
this one as well.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from network_surgery.ops.errors import SurgeryError

Model = TypeVar("Model", bound=nn.Module)


def free_attention(model: Model) -> Model:
    """Lets surgery reach the heads, and the width inside them, of every ``nn.MultiheadAttention`` in a network.

    Works in place, returns the network, and may be called again. What the network computes stays the same, in
    training with the same random numbers. Do so before averages of the network are made, or free them as well.

    >>> from network_surgery.ops import Anatomy, free_attention
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 12)
    >>> sorted(Anatomy(free_attention(layer), torch.zeros(5, 2, 8)))
    ['linear1', 'self_attn', 'self_attn:heads']
    """
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"attention is freed in a torch.nn.Module, not in {model!r:.60}")
    for module in model.modules():
        if can_be_freed(module):
            module.__class__ = _free(type(module))
            attention = cast(FreeAttention, module)
            attention.scaling = attention.head_dim**-0.5
            attention._qkv_same_embed_dim = False
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, FreeAttention) for m in module.modules()):
            module.use_nested_tensor = False
    return model


def can_be_freed(module: nn.Module) -> bool:
    """Whether it is an attention whose forward pass is torch's own."""
    theirs = getattr(type(module), "forward", None) is nn.MultiheadAttention.forward and "forward" not in vars(module)
    return theirs and not is_parametrized(module)


class FreeAttention(nn.MultiheadAttention):
    """What ``free_attention`` makes of ``nn.MultiheadAttention``.

    Attributes: those of torch; ``embed_dim``, ``kdim`` and ``vdim`` are the widths of the three inputs, ``head_dim`` is
    the width of a head as it was made, and ``scaling`` the factor on the scores.
    """

    scaling: float

    @property
    def inputs(self) -> tuple[int, int, int]:
        """How wide query, key and value are."""
        packed = self.in_proj_weight
        weights = (packed,) * 3 if packed is not None else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        query, key, value = (weight.shape[1] for weight in weights)
        return query, key, value

    @property
    def widths(self) -> tuple[int, int]:
        """How wide keys (and so queries) and values are, all heads together."""
        values: int = self.out_proj.weight.shape[1]
        if self.in_proj_weight is None:
            return self.q_proj_weight.shape[0], values
        return (self.in_proj_weight.shape[0] - values) // 2, values

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: the output, and the weights ``[batch, (heads,) targets, sources]``.

        Raises:
            ValueError: inputs or masks of shapes that do not fit; ``is_causal`` without the mask that it hints at.
            SurgeryError: an input is a nested tensor.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise SurgeryError(
                "a freed attention takes no nested tensors: call ops.free_attention on the whole network, which keeps "
                "nn.TransformerEncoder from making them"
            )
        if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
            shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
            raise ValueError(f"query, key and value must all be of 3 dimensions, or of 2 without a batch, not {shapes}")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which must be given as well")
        batched = query.dim() == 3
        tokens = int(self.batch_first or not batched)  # the dimension on which they lie, the batch on the other one
        q, k, v = self._projected(query, key, value)
        if not batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch, targets, sources = q.size(1 - tokens), q.size(tokens), k.size(tokens)
        if self.bias_k is not None and self.bias_v is not None:
            times = (batch, 1, 1) if tokens else (1, batch, 1)
            k = torch.cat([k, self.bias_k.repeat(times)], tokens)
            v = torch.cat([v, self.bias_v.repeat(times)], tokens)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).permute(1 - tokens, 2, tokens, 3) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        hinted = is_causal and key_padding_mask is None and not need_weights
        mask = None if hinted else self._mask(attn_mask, key_padding_mask, query.dtype, (batch, targets, sources))
        if mask is not None and k.size(2) > sources:  # everyone may look at what has been added
            mask = F.pad(mask, (0, k.size(2) - sources))
        weights = None
        if need_weights:
            scores = (q * self.scaling) @ k.mT
            weights = (scores if mask is None else scores + mask.to(scores.dtype)).softmax(-1)
            weights = F.dropout(weights, self.dropout, self.training)
            out = weights @ v
        else:
            chance = self.dropout * self.training
            out = F.scaled_dot_product_attention(q, k, v, mask, chance, hinted, scale=self.scaling)
        out = (out.transpose(1, 2) if tokens else out.permute(2, 0, 1, 3)).flatten(2)
        out = F.linear(out if batched else out.squeeze(0), self.out_proj.weight, self.out_proj.bias)
        if weights is not None:
            weights = weights if batched else weights.squeeze(0)
            weights = weights.mean(-3) if average_attn_weights else weights
        return out, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, in the shapes of the inputs but for the last dimension: the widths of all heads."""
        keys, values = self.widths
        sizes = [keys, keys, values]
        if self.in_proj_weight is not None and query is key and key is value:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).split(sizes, -1)
            return q, k, v
        weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(sizes)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype, shape: tuple[int, int, int]
    ) -> Tensor | None:
        """What is added to the scores: ``[batch or 1, heads or 1, targets or 1, sources]``."""
        batch, targets, sources = shape
        found = None
        if attn_mask is not None:
            flat = attn_mask.dim() == 2
            wanted = (targets, sources) if flat else (batch * self.num_heads, targets, sources)
            if attn_mask.shape != wanted:
                raise ValueError(
                    f"attn_mask is {tuple(attn_mask.shape)}, but {wanted} is needed: {batch} samples, "
                    f"{self.num_heads} heads"
                )
            found = _as_addend(attn_mask, dtype)
            found = found[None, None] if flat else found.unflatten(0, (batch, self.num_heads))
        if padding is not None:
            if padding.shape != (batch, sources):
                raise ValueError(f"key_padding_mask is {tuple(padding.shape)}, but {(batch, sources)} is needed")
            columns = _as_addend(padding, dtype)[:, None, None]
            found = columns if found is None else found + columns
        return found

    def _reset_parameters(self) -> None:
        """As torch's, which asks a flag that is down here what weights there are."""
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = False


def _as_addend(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: −∞ where a boolean one is True."""
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask must be of booleans or floating-point numbers, not {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


#: The class that modules of a class get; that of a subclass keeps all of its own but the forward pass.
FREED: dict[type[nn.Module], type[FreeAttention]] = {nn.MultiheadAttention: FreeAttention}


def _free(kind: type[nn.Module]) -> type[FreeAttention]:
    if kind not in FREED:
        FREED[kind] = type(f"Free{kind.__name__}", (FreeAttention, kind), {"__reduce_ex__": _reduce})
    return FREED[kind]


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    """How a copy or a pickle is made of a module whose class no file defines."""
    return _blank, (type(module).__bases__[1],), module.__getstate__()


def _blank(kind: type[nn.Module]) -> nn.Module:
    made = _free(kind)
    return made.__new__(made)

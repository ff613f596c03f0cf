"""How the tokens of a batch lie in memory, and what each of them attends to.

On a CPU a batch stays padded: texts of similar length stand together, and few different shapes are quicker than the
padding costs. On a GPU in 16 bits the tokens are packed, once for all layers, so that neither a layer nor the attention
computes padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ragadapt.encoder.attention import (
    ALL,
    CAUSAL,
    Reach,
    batched,
    batched_attention,
    effective,
    query_blocks,
    variable_length_attention,
)

_SIXTEEN_BITS = (torch.bfloat16, torch.float16)


class _Turn(torch.autograd.Function):
    """Rotary positions (Su et al. 2021): pairs (x_i, x_{i + d/2}) of the last axis turned by an angle of their own.

    x (B, T, H, d) comes back as (B, H, T, d), the order in which attention multiplies it; (tokens, H, d) as it was. cos
    and sin (T, 1, d) or (tokens, 1, d), the first half of the sines negated. The gradient is turned back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        if x.dim() == 4:
            return _turned(x.transpose(1, 2), cos.transpose(0, 1), sin.transpose(0, 1), 1.0)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        cos, sin = ctx.saved_tensors
        (out,) = gradients
        return _turned(out.transpose(1, 2) if out.dim() == 4 else out, cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """x cos + sign (its halves exchanged) sin, contiguous. Whole rows at a time: halves of them are slow to read."""
    made = torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)
    half = x.shape[-1] // 2
    exchanged = torch.empty_like(made)
    exchanged[..., :half] = made[..., half:]
    exchanged[..., half:] = made[..., :half]
    return made.mul_(cos).addcmul_(exchanged, sin, value=sign)


class Rotary:
    """Angles of rotary positions, one table for each precision and device, in float32 until it is rounded."""

    def __init__(self, theta: float, width: int) -> None:
        self.theta = theta
        self.width = width
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def table(self, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """(cos, sin), (at least length, d) each, as `_Turn` takes them."""
        known = self._tables.get((dtype, device))
        if known is None or len(known[0]) < length:
            powers = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
            size = -(-length // 64) * 64
            angles = torch.outer(torch.arange(size, dtype=torch.float32), 1.0 / self.theta**powers)
            cos, sin = torch.cat((angles, angles), 1).cos(), torch.cat((-angles, angles), 1).sin()
            known = cos.to(device, dtype), sin.to(device, dtype)
            self._tables[dtype, device] = known
        return known


class Layout:
    """The batch that runs through a transformer. Made anew for every forward."""

    def __init__(self, mask: Tensor | None, hidden: Tensor, head_width: int, bounded: bool = True) -> None:
        """mask (B, T), 0 = padding, at either end; None = nothing is. hidden (B, T, h): for its shape and place.
        bounded: some token will not attend to all others, or heads share keys."""
        self.bounded = bounded
        self.batch, self.length = hidden.shape[:2]
        self.device = hidden.device
        self._kept = None if mask is None else mask.bool()  # (B, T)
        self._masks: dict[tuple[Reach, torch.dtype], Tensor | None] = {}
        self._causal_is_enough = True  # with padding at the right, no token has any before it
        self.places: Tensor | None = None  # of the tokens in the flattened batch, where they are packed
        if _packs(hidden, head_width, bounded):
            kept = torch.ones(hidden.shape[:2], device=hidden.device) if self._kept is None else self._kept
            self.places = kept.flatten().nonzero().squeeze(1)
            self.ends = F.pad(kept.sum(1).cumsum(0), (1, 0)).to(torch.int32)  # (B + 1,)
        elif self._kept is not None and not torch.compiler.is_compiling():
            if bool(self._kept.all()):
                self._kept = None
            else:
                self._causal_is_enough = bool((self._kept[:, :-1] >= self._kept[:, 1:]).all())
        elif self._kept is not None:
            self._causal_is_enough = False

    def pack(self, hidden: Tensor) -> Tensor:
        """(B, T, h) → (tokens, h) where tokens are packed, else unchanged."""
        return hidden if self.places is None else hidden.flatten(0, 1).index_select(0, self.places)

    def unpack(self, hidden: Tensor) -> Tensor:
        """The way back to (B, T, h); padding becomes zero."""
        if self.places is None:
            return hidden
        whole = hidden.new_zeros(self.batch * self.length, hidden.shape[-1]).index_copy(0, self.places, hidden)
        return whole.view(self.batch, self.length, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach = ALL, rotary: Rotary | None = None) -> Tensor:
        """(..., H, d), and the same or fewer heads of keys and values → (..., H d), in the layout of the batch."""
        if rotary is not None:
            cos, sin = (self._at_tokens(side)[..., None, :] for side in rotary.table(self.length, q.dtype, q.device))
            q, k = (_Turn.apply(side, cos, sin) for side in (q, k))  # type: ignore[no-untyped-call]
        scaling = q.shape[-1] ** -0.5
        reach = effective(reach, self.length)
        if self.places is not None:
            attend = variable_length_attention(self.bounded)
            assert attend is not None and (self.bounded or reach == ALL)
            options = {"window_size": reach, "enable_gqa": q.shape[1] != k.shape[1]} if self.bounded else {}
            made = attend(
                q, k, v.contiguous(), self.ends, self.ends, self.length, self.length, scale=scaling, **options
            )
            return made.flatten(-2)
        if rotary is None:
            q, k = (side.transpose(1, 2) for side in (q, k))  # (B, H, T, d)
        v = v.transpose(1, 2)
        if batched(q, k, self.length):
            return batched_attention(q, k, v, self.mask(reach, q.dtype), scaling, reach).flatten(-2)
        return self._fused(q, k, v, reach, scaling).transpose(1, 2).flatten(-2)

    def _at_tokens(self, table: Tensor) -> Tensor:
        return table[: self.length] if self.places is None else table.index_select(0, self.places % self.length)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach, scaling: float) -> Tensor:
        """PyTorch's kernel; (B, H, T, d)."""
        if q.shape[1] != k.shape[1]:
            k, v = (side.repeat_interleave(q.shape[1] // side.shape[1], dim=1) for side in (k, v))
        if reach == CAUSAL and (self._kept is None or self._causal_is_enough):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        mask = self.mask(reach, q.dtype)
        # Kernels of GPUs get masks that are whole: slices of one were not proved there.
        blocks = query_blocks(self.length, reach) if q.device.type == "cpu" else [(0, self.length, 0, self.length)]
        parts = [
            F.scaled_dot_product_attention(
                q[:, :, start:end],
                k[:, :, first:last],
                v[:, :, first:last],
                attn_mask=None if mask is None else mask[:, :, start if len(mask[0, 0]) > 1 else 0 : end, first:last],
                scale=scaling,
            )
            for start, end, first, last in blocks
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def mask(self, reach: Reach, dtype: torch.dtype) -> Tensor | None:
        """Additive, (B or 1, 1, 1 or T, T); None where every token attends to all."""
        if (reach, dtype) not in self._masks:
            self._masks[reach, dtype] = self._made(reach, dtype)
        return self._masks[reach, dtype]

    def _made(self, reach: Reach, dtype: torch.dtype) -> Tensor | None:
        seen = None if self._kept is None else self._kept[:, None]  # (B, 1, T)
        left, right = reach
        if left >= 0 or right >= 0:
            at = torch.arange(self.length, device=self.device)
            distance = at[None] - at[:, None]  # of a key behind the query, (T, T)
            near = (distance <= right) if right >= 0 else (distance >= -left)
            if left >= 0 and right >= 0:
                near = near & (distance >= -left)
            needed = seen is not None and not (reach == CAUSAL and self._causal_is_enough)
            seen = near[None] & seen if seen is not None and needed else near[None]
        if seen is None:
            return None
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _packs(hidden: Tensor, head_width: int, bounded: bool) -> bool:
    if not hidden.is_cuda or torch.compiler.is_compiling() or head_width % 8 or head_width > 256:
        return False
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
    return kind in _SIXTEEN_BITS and variable_length_attention(bounded) is not None

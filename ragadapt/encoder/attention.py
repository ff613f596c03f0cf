"""Attention in 16 bits: batched products on CPUs, no padding on GPUs.

On a CPU, PyTorch's fused kernel computes in float32 and its backward is slow for the short sequences and narrow
heads of retrieval models. Plain batched products in bfloat16 are faster there, the more so backwards. On a GPU a
mask shuts out the flash kernel, so the tokens of a padded batch are packed and the variable-length one is used.
What either costs in accuracy is part of the agreement with float32 that is measured at load.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragadapt.errors import reason_of

NAME = "ragadapt"
log = logging.getLogger(__name__)

_LONGEST = 512  # beyond it the (T, T) weights outgrow the caches, and the fused kernel wins


class _Attention(torch.autograd.Function):
    """softmax(s Q K' + mask) V for (N, T, d) inputs, N = batch x heads; mask (N, 1, T) or (N, T, T)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        start = q.new_zeros(1, 1, 1) if mask is None else mask
        scores = torch.baddbmm(start, q, k.transpose(1, 2), beta=float(mask is not None), alpha=scaling)  # (N, T, T)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scaling = scaling
        return torch.bmm(weights, v)  # (N, T, d)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (out,) = gradients
        q, k, v, weights = ctx.saved_tensors
        for_v = torch.bmm(weights.transpose(1, 2), out)
        for_weights = torch.bmm(out, v.transpose(1, 2))
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
        for_q = torch.bmm(for_scores, k).mul_(ctx.scaling)
        for_k = torch.bmm(for_scores.transpose(1, 2), q).mul_(ctx.scaling)
        return for_q, for_k, for_v, None, None


def two_sided_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None
) -> Tensor:
    """(B, H, T, d) each, additive mask (B, 1, 1 or T, T) → (B, T, H, d), contiguous.

    Batched products for short sequences in bfloat16 on a CPU, packed tokens for padded ones in 16 bits on a GPU,
    PyTorch's fused kernel for the rest.
    """
    length, width = query.shape[2:]
    scaling = width**-0.5 if scaling is None else scaling
    if query.is_cuda and mask is not None and _can_pack(query, mask):
        return packed_attention(query, key, value, mask, scaling)
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or length > _LONGEST:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return out.transpose(1, 2).contiguous()
    return batched_attention(query, key, value, mask, scaling)


def batched_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """The batched products, in any precision; shapes as in `two_sided_attention`."""
    batch, heads, length, width = query.shape
    folded = batch * heads
    if mask is not None:
        mask = mask.expand(batch, heads, *mask.shape[2:]).reshape(folded, mask.shape[2], length).to(query.dtype)
    flat = (tensor.reshape(folded, length, width) for tensor in (query, key, value))
    made: Tensor = _Attention.apply(*flat, mask, scaling)  # type: ignore[no-untyped-call]
    return made.view(batch, heads, length, width).transpose(1, 2).contiguous()


def packed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The same over the tokens that are not padding, back to back; padding gets zeros. mask (B, 1, 1, T)."""
    batch, heads, length, width = query.shape
    places, ends = _packing(mask)
    q, k, v = (
        side.transpose(1, 2).reshape(batch * length, heads, width).index_select(0, places)
        for side in (query, key, value)
    )
    attend = variable_length_attention()
    assert attend is not None
    out = attend(q, k, v, ends, ends, length, length, scale=scaling)  # (tokens, H, d)
    whole = out.new_zeros(batch * length, heads, width).index_copy(0, places, out)
    return whole.view(batch, length, heads, width)


def _packing(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(positions of the tokens in the flattened batch, where each text ends, from 0), once for all layers."""
    known: tuple[Tensor, Tensor] | None = getattr(mask, "ragadapt_packing", None)
    if known is None:
        kept = mask[:, 0, 0] == 0  # (B, T)
        ends = nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)).to(torch.int32)  # (B + 1,)
        known = kept.flatten().nonzero().squeeze(1), ends
        mask.ragadapt_packing = known  # type: ignore[attr-defined]
    return known


def _can_pack(query: Tensor, mask: Tensor) -> bool:
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and mask.is_floating_point()
        and mask.shape[1:3] == (1, 1)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and not torch.compiler.is_compiling()
        and variable_length_attention() is not None
    )


@cache
def variable_length_attention() -> Callable[..., Tensor] | None:
    """PyTorch's attention over packed texts; None where this build or this GPU has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn

        one = torch.zeros(1, 1, 8, dtype=torch.float16, device="cuda", requires_grad=True)
        ends = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
        with torch.enable_grad():
            tried: Any = varlen_attn(one, one, one, ends, ends, 1, 1, scale=1.0)
            tried.sum().backward()
    except (ImportError, RuntimeError, TypeError, AssertionError) as error:
        # Without the module, the GPU, the kernel for it, this signature, or CUDA in the build at all.
        log.info("no attention over packed texts: %s", reason_of(error))
        return None
    attend: Any = varlen_attn  # gives a pair only when asked for more than the output
    return attend  # type: ignore[no-any-return]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The same for transformers models; what is not plain two-sided attention goes to its own function."""
    plain = (
        key.shape == query.shape == value.shape
        and not getattr(module, "is_causal", False)
        and not options.get("is_causal")
        and options.get("position_bias") is None
        and dropout == 0
    )
    if plain:
        return two_sided_attention(query, key, value, attention_mask, scaling), None
    from transformers.modeling_utils import AttentionInterface

    functions: Any = AttentionInterface
    passed: tuple[Tensor, Tensor | None] = functions()["sdpa"](
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    return passed


def mask_of(**settings: Any) -> Tensor | None:
    """Additive mask: (B, 1, 1, T) for two-sided attention, None without padding, (B, 1, T, T) otherwise."""
    from transformers.masking_utils import bidirectional_mask_function, eager_mask

    padding = settings.get("attention_mask")
    two_sided = settings.get("mask_function") is bidirectional_mask_function and not settings.get("use_vmap")
    if not two_sided or padding is None or padding.dim() != 2 or padding.shape[1] != settings.get("kv_length"):
        general: Tensor | None = eager_mask(**settings)
        return general
    kept = padding.bool()
    if not torch.compiler.is_compiling() and bool(kept.all()):
        return None
    dtype: torch.dtype = settings.get("dtype", torch.float32)
    mask = torch.zeros(kept.shape, dtype=dtype, device=kept.device).masked_fill_(~kept, torch.finfo(dtype).min)
    return mask[:, None, None, :]


def use(model: nn.Module) -> bool:
    """Let a transformers model use this attention; False where its architecture does not let one choose.

    On a GPU, causal models keep PyTorch's own, whose flash kernel knows their mask without having it written out.
    """
    config: Any = model.config
    if next(model.parameters()).is_cuda and any(getattr(module, "is_causal", False) for module in model.modules()):
        return False
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask_of)
    config._attn_implementation = NAME
    return True


def reads_backwards_only(model: nn.Module) -> bool:
    """Whether every token sees earlier ones alone, so that what stands behind a text changes none of its vectors."""
    if not getattr(getattr(model, "config", None), "is_causal", True):
        return False
    ways = {module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)}
    return ways == {True}


def needed_mask(mask: Tensor, causal: bool) -> Tensor | None:
    """The mask that a model needs of a batch padded on the right; causal: as `reads_backwards_only` says.

    On a GPU a causal model gets none: the flash kernel knows its order, and any mask that is written out shuts it out.
    """
    return None if causal and mask.is_cuda else mask


def leave(model: nn.Module) -> None:
    """Undo `use`."""
    config: Any = model.config
    if getattr(config, "_attn_implementation", None) == NAME:
        config._attn_implementation = "sdpa"

"""Attention in 16 bits: batched products on CPUs, no padding on GPUs.

On a CPU, PyTorch's fused kernel computes in float32 and its backward is slow for the short sequences and narrow
heads of retrieval models. Plain batched products in bfloat16 are faster there, the more so backwards; only a CPU with
AMX, which the kernel uses, is quicker with it where no gradient is needed. On a GPU a mask shuts out the flash kernel,
so the tokens of a padded batch are packed and the variable-length one is used.
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
_BLOCK = 128  # queries that are multiplied at once where their reach is bounded
_PIECE = 3_200_000  # bytes of scores at once where none are kept: larger ones leave the caches, and malloc maps anew


Block = tuple[int, int, int, int]
Reach = tuple[int, int]
"""How many positions before and behind its own a token attends to; -1 = all that there are."""

ALL: Reach = (-1, -1)
CAUSAL: Reach = (-1, 0)


def effective(reach: Reach, length: int) -> Reach:
    """The same reach among so many positions, with -1 wherever it ends nowhere."""
    left, right = (-1 if bound >= length - 1 else bound for bound in reach)
    return left, right


class _Attention(torch.autograd.Function):
    """softmax(s Q K' + mask) V, by batched products.

    q (N, G, T, d), k and v (N, T, d): N = batch x heads of the keys, each read by G heads of queries. mask
    (B or 1, 1 or T, T), additive, or None; it holds what the reach shuts out, too. Blocks of queries are multiplied
    with the keys in their reach alone.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, blocks: list[Block]
    ) -> Tensor:
        many, group, _, width = q.shape
        out = torch.empty_like(q)
        kept = []
        for start, end, first, last in blocks:
            rows = q[:, :, start:end].reshape(many, group * (end - start), width)
            keys = k[:, first:last].transpose(1, 2)
            scores = torch.baddbmm(q.new_zeros(1, 1, 1), rows, keys, beta=0.0, alpha=scaling)  # (N, G t, s)
            if mask is not None:
                part = mask[:, :, first:last] if mask.shape[1] == 1 else mask[:, start:end, first:last]
                scores.view(len(mask), -1, group, end - start, last - first).add_(part[:, None, None])
            weights = torch.softmax(scores, dim=-1)
            kept.append(weights)
            out[:, :, start:end] = torch.bmm(weights, v[:, first:last]).view(many, group, end - start, width)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scaling, ctx.blocks = scaling, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (out,) = gradients
        q, k, v, *kept = ctx.saved_tensors
        many, group, _, width = q.shape
        whole = len(kept) == 1
        for_q = torch.empty_like(q)
        for_k, for_v = (None, None) if whole else (torch.zeros_like(k), torch.zeros_like(v))
        for (start, end, first, last), weights in zip(ctx.blocks, kept, strict=True):
            rows, given = (side[:, :, start:end].reshape(many, group * (end - start), width) for side in (q, out))
            values = torch.bmm(weights.transpose(1, 2), given)
            for_weights = torch.bmm(given, v[:, first:last].transpose(1, 2))
            for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
            queries = torch.bmm(for_scores, k[:, first:last]).mul_(ctx.scaling)
            keys = torch.bmm(for_scores.transpose(1, 2), rows).mul_(ctx.scaling)
            for_q[:, :, start:end] = queries.view(many, group, end - start, width)
            if for_k is None or for_v is None:
                for_k, for_v = keys, values
            else:
                for_k[:, first:last] += keys
                for_v[:, first:last] += values
        return for_q, for_k, for_v, None, None, None


def _without_gradient(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, blocks: list[Block], batch: int
) -> Tensor:
    """What `_Attention` computes, a few texts at a time, as (B, T, H, d)."""
    many, group, length, width = q.shape
    heads = many // batch  # of the keys
    out = q.new_empty(batch, length, heads * group, width)
    largest = max((end - start) * (last - first) for start, end, first, last in blocks)
    step = max(1, _PIECE // (heads * group * largest * q.element_size()))
    nothing = q.new_zeros(1, 1, 1)
    for one in range(0, batch, step):
        texts = min(batch, one + step) - one
        here = slice(one * heads, (one + texts) * heads)
        masks = mask if mask is None or len(mask) == 1 else mask[one : one + texts]
        for start, end, first, last in blocks:
            rows = q[here, :, start:end].reshape(texts * heads, group * (end - start), width)
            scores = torch.baddbmm(nothing, rows, k[here, first:last].transpose(1, 2), beta=0.0, alpha=scaling)
            if masks is not None:
                part = masks[:, :, first:last] if masks.shape[1] == 1 else masks[:, start:end, first:last]
                scores.view(texts, heads, group, end - start, last - first).add_(part[:, None, None])
            torch.softmax(scores, dim=-1, out=scores)
            made = torch.bmm(scores, v[here, first:last]).view(texts, heads * group, end - start, width)
            out[one : one + texts, start:end] = made.transpose(1, 2)
    return out


def query_blocks(length: int, reach: Reach, size: int = _BLOCK) -> list[Block]:
    """(first query, end of queries, first key, end of keys) of blocks of queries; one block where nothing is saved."""
    left, right = effective(reach, length)
    if length < 2 * size or (left < 0 and right < 0):
        return [(0, length, 0, length)]
    blocks = []
    for start in range(0, length, size):
        end = min(length, start + size)
        first, last = 0 if left < 0 else max(0, start - left), length if right < 0 else min(length, end + right)
        blocks.append((start, end, first, last))
    return blocks


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
    if not batched(query, key, length) or (mask is not None and mask.shape[1] != 1):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return out.transpose(1, 2).contiguous()
    return batched_attention(query, key, value, mask, scaling)


def batched(query: Tensor, key: Tensor, length: int) -> bool:
    """Whether the batched products are quicker than the fused kernel. query and key: (B, H, T, d); the kernel needs the
    keys that heads share once for each."""
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or length > _LONGEST:
        return False
    return torch.is_grad_enabled() or query.shape[1] != key.shape[1] or not has_amx()


def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 by tiles (Intel's AMX), as far as PyTorch can say."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported())


def batched_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, reach: Reach = ALL
) -> Tensor:
    """The batched products, in any precision; shapes as in `two_sided_attention`. key and value may have fewer heads,
    each for as many neighbouring heads of the query. The mask holds what the reach shuts out, too."""
    batch, heads, length, width = query.shape
    folded = batch * key.shape[1]
    q = query.reshape(folded, heads // key.shape[1], length, width)
    k, v = (tensor.reshape(folded, length, width) for tensor in (key, value))
    bias = None if mask is None else mask[:, 0].to(query.dtype)
    blocks = query_blocks(length, reach)
    if not torch.is_grad_enabled():
        return _without_gradient(q, k, v, bias, scaling, blocks, batch)
    made: Tensor = _Attention.apply(q, k, v, bias, scaling, blocks)  # type: ignore[no-untyped-call]
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
def variable_length_attention(bounded: bool = False) -> Callable[..., Tensor] | None:
    """PyTorch's attention over packed texts; None where this build or this GPU has none. bounded: one that also takes
    `window_size` and keys of fewer heads than queries (`enable_gqa`)."""
    options: dict[str, Any] = {"window_size": (1, 0), "enable_gqa": True} if bounded else {}
    try:
        from torch.nn.attention.varlen import varlen_attn

        one = torch.zeros(1, 2 if bounded else 1, 8, dtype=torch.float16, device="cuda", requires_grad=True)
        ends = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
        with torch.enable_grad():
            tried: Any = varlen_attn(one, one[:, :1], one[:, :1], ends, ends, 1, 1, scale=1.0, **options)
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
    if next(model.parameters()).is_cuda and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return False  # masks of windows stay the library's, for its own choice of a kernel
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

"""The CPU's bfloat16 attention against PyTorch's own kernel."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_tiny_model
from torch import nn
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from ragadapt.config import EncoderConfig
from ragadapt.encoder import Encoder
from ragadapt.encoder import attention as ours


def inputs(length: int = 7) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(3, 2, length, 4, requires_grad=True) for _ in range(3))


def padding() -> torch.Tensor:
    kept = torch.ones(3, 7, dtype=torch.int64)
    kept[0, 4:] = 0
    return kept


@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_equal_the_fused_kernel(masked: bool) -> None:
    results = []
    for own in (True, False):
        q, k, v = inputs()
        if own:
            settings = {"attention_mask": padding() if masked else None, "kv_length": 7, "batch_size": 3}
            mask = ours.mask_of(**settings, q_length=7, mask_function=bidirectional_mask_function, dtype=torch.float32)
            out, _ = ours.attention(nn.Module(), q, k, v, mask if masked else None)
        else:
            kept = padding()[:, None, None, :].bool() if masked else None
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept).transpose(1, 2)
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        results.append((out, q.grad, k.grad, v.grad))
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None and theirs is not None
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_with_amx_the_fused_kernel_encodes_and_the_batched_products_train(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, kernel = [], nn.functional.scaled_dot_product_attention

    def counted(*given: torch.Tensor, **settings: object) -> torch.Tensor:
        fused.append(given)
        return kernel(*given, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    q, k, v = (side.detach().bfloat16().requires_grad_() for side in inputs())
    settings = {"attention_mask": padding(), "kv_length": 7, "batch_size": 3, "q_length": 7}
    mask = ours.mask_of(**settings, mask_function=bidirectional_mask_function, dtype=torch.bfloat16) if masked else None
    made = {}
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        ours.two_sided_attention(q, k, v, mask).float().sum().backward()
        assert fused == []
        with torch.no_grad():
            made[amx] = ours.two_sided_attention(q, k, v, mask)
            assert len(fused) == amx
            fused.clear()
    assert made[True].is_contiguous() and torch.allclose(made[True].float(), made[False].float(), atol=0.02)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with torch.no_grad():
        assert ours.batched(q, k[:, :1], 7) and not ours.batched(q, k, 7)  # keys that heads share


def test_mask_is_left_out_without_padding_and_small_with_it() -> None:
    settings = {"batch_size": 3, "q_length": 7, "kv_length": 7, "dtype": torch.bfloat16}
    two_sided = {**settings, "mask_function": bidirectional_mask_function}
    assert ours.mask_of(**two_sided, attention_mask=torch.ones(3, 7)) is None
    small = ours.mask_of(**two_sided, attention_mask=padding())
    assert small is not None and small.shape == (3, 1, 1, 7) and small.dtype == torch.bfloat16
    assert torch.equal(small[:, 0, 0] == 0, padding().bool())
    causal = ours.mask_of(**settings, mask_function=causal_mask_function, attention_mask=padding().bool())
    assert causal is not None and causal.shape == (3, 1, 7, 7)
    assert causal[1, 0, 2, 3] < -1e30 and causal[1, 0, 3, 2] == 0


def test_packed_attention_equals_the_masked_one_wherever_there_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def by_text(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, *rest: object, scale: float):  # type: ignore[no-untyped-def]
        calls.append(len(q))
        parts = []
        for start, end in pairwise(ends.tolist()):
            one = (side[start:end].transpose(0, 1) for side in (q, k, v))
            parts.append(nn.functional.scaled_dot_product_attention(*one, scale=scale).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(ours, "variable_length_attention", lambda: by_text)
    settings = {"attention_mask": padding(), "kv_length": 7, "batch_size": 3, "q_length": 7}
    mask = ours.mask_of(**settings, mask_function=bidirectional_mask_function, dtype=torch.float32)
    assert mask is not None
    results = []
    kept = padding().bool()
    for packed in (True, False):
        q, k, v = inputs()
        if packed:
            out = ours.packed_attention(q, k, v, mask, 0.5)
            assert out.is_contiguous() and not out[~kept].any()
        else:
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5).transpose(1, 2)
        out[kept].square().sum().backward()
        results.append((out[kept], q.grad, k.grad, v.grad))
    assert calls == [int(kept.sum())]
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None and theirs is not None
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_without_a_gpu_nothing_is_packed() -> None:
    if not torch.cuda.is_available():
        assert ours.variable_length_attention() is None


def test_what_is_not_plain_goes_to_the_fused_kernel() -> None:
    class Causal(nn.Module):
        is_causal = True

    q, k, v = inputs()
    out, _ = ours.attention(Causal(), q, k, v, None)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "modernbert", "qwen3"])
def test_bfloat16_vectors_stay_close_to_float32_for_every_architecture(tmp_path: Path, kind: str) -> None:
    extra: dict[str, object] = {}
    if kind == "modernbert":
        extra = {"local_attention": 16, "cls_token_id": 2, "sep_token_id": 3}
    if kind == "qwen3":
        extra = {"num_key_value_heads": 1, "head_dim": 16}
    folder = write_tiny_model(tmp_path, kind=kind, **extra)
    texts = sentences(20)
    vectors = [
        Encoder.load(
            EncoderConfig.model_validate({"model": str(folder), "device": "cpu", "precision": precision})
        ).encode_passages(texts)
        for precision in ("float32", "bfloat16")
    ]
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.99


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_a_causal_model_needs_no_mask_behind_its_texts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"num_key_value_heads": 1, "head_dim": 16} if kind == "qwen3" else {}
    made = write_tiny_model(tmp_path, kind, pooling="lasttoken", **changes)
    encoder = Encoder.load(EncoderConfig(model=str(made), device="cpu", precision="float32"))
    tower = encoder.query_tower
    assert tower is not None and tower.causal is (kind == "qwen3")
    expected = encoder.encode_passages(sentences(40))
    monkeypatch.setattr("ragadapt.encoder.tower.needed_mask", lambda mask, causal: None)  # as on a GPU
    assert np.allclose(encoder.encode_passages(sentences(40)), expected, atol=1e-6) is (kind == "qwen3")
    tower.model.config.is_causal = False  # as of models that were made to see both ways
    assert not ours.reads_backwards_only(tower.model)

"""Long runs on a CPU in bfloat16 go through packed weights, and give the vectors of the plain forward."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_tiny_model

from ragadapt.adapters import attach
from ragadapt.config import AdapterConfig, EncoderConfig
from ragadapt.encoder import Encoder, attention, encoder, packed
from ragadapt.encoder.packed import PackedBert

TEXTS = sentences(40)


def load(folder: Path, precision: str = "bfloat16") -> Encoder:
    values = {"model": str(folder), "device": "cpu", "precision": precision}
    return Encoder.load(EncoderConfig.model_validate(values))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the batches that went through packed weights."""
    seen: list[tuple[int, ...]] = []
    whole = PackedBert.__call__

    def watched(self: PackedBert, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return whole(self, ids, mask)

    monkeypatch.setattr(PackedBert, "__call__", watched)
    return seen


def long_from(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_LONG_TOKENS", tokens)


@pytest.mark.parametrize(("kind", "settings"), [("bert", {"hidden_act": "silu"}), ("roberta", {})])
def test_a_long_run_gives_the_vectors_of_short_ones(
    kind: str, settings: dict[str, Any], tmp_path: Path, runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path, kind, **settings)
    model = load(folder)
    short, queries = model.encode_passages(TEXTS), model.encode_queries(TEXTS[:3])
    assert runs == []
    long_from(100, monkeypatch)
    long = model.encode_passages(TEXTS)
    assert sum(rows for rows, _ in runs) >= len(TEXTS)
    assert np.sum(long * short, axis=1).min() > 0.999
    exact = load(folder, "float32").encode_passages(TEXTS)
    assert np.sum(long * exact, axis=1).min() > 0.99
    before = len(runs)
    assert np.array_equal(model.encode_queries(TEXTS[:3]), queries)
    assert len(runs) == before


def test_weights_that_change_between_two_runs_are_read_anew(
    tiny: Path, runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny)
    long_from(100, monkeypatch)
    before = model.encode_passages(TEXTS)
    with torch.no_grad():
        for layer in model.passage_tower.model.encoder.layer:  # type: ignore[union-attr]
            layer.output.dense.weight.data.mul_(-1)
    after = model.encode_passages(TEXTS)
    long_from(10**9, monkeypatch)
    assert np.sum(before * after, axis=1).max() < 0.99
    assert np.sum(after * model.encode_passages(TEXTS), axis=1).min() > 0.999


def test_only_what_runs_here_in_bfloat16_and_as_it_is_made_is_packed(tmp_path: Path, tiny: Path) -> None:
    bert = load(tiny).passage_tower
    assert bert is not None and packed.packed(bert.model) is not None
    watched = bert.model.get_submodule("encoder.layer.0").register_forward_pre_hook(lambda *_: None)
    assert packed.packed(bert.model) is None
    watched.remove()
    adapted = attach(load(tiny), AdapterConfig(rank=2)).passage_tower
    assert adapted is not None and packed.packed(adapted.model) is None
    exact = load(tiny, "float32").passage_tower
    assert exact is not None and packed.packed(exact.model) is None
    modern = write_tiny_model(tmp_path, "modernbert", local_attention=16, cls_token_id=2, sep_token_id=3)
    other = load(modern).passage_tower
    assert other is not None and packed.packed(other.model) is None


def test_a_folded_adapter_is_packed(tiny: Path, runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = attach(load(tiny), AdapterConfig(rank=2, reweight="none"))
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.copy_(torch.randn_like(parameter) / 4)
    short = adapted.encode_passages(TEXTS)
    long_from(100, monkeypatch)
    assert np.array_equal(adapted.encode_passages(TEXTS), short) and runs == []
    merged = adapted.merged()
    long = merged.encode_passages(TEXTS)
    assert runs != []
    long_from(10**9, monkeypatch)
    assert np.sum(long * merged.encode_passages(TEXTS), axis=1).min() > 0.999


def test_weights_whose_packing_gives_other_vectors_are_left_as_they_are(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tiny)
    short = model.encode_passages(TEXTS)
    monkeypatch.setattr(PackedBert, "__call__", lambda self, ids, mask: torch.randn(*ids.shape, 32))
    long_from(100, monkeypatch)
    with caplog.at_level(logging.WARNING, "ragadapt"):
        assert np.array_equal(model.encode_passages(TEXTS), short)
        assert np.array_equal(model.encode_passages(TEXTS), short)
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "packed weights give other vectors"
    ]  # it was tried once


def test_a_build_without_the_operators_runs_as_before(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny)
    short = model.encode_passages(TEXTS)

    def lacking(*_: Any) -> None:
        raise NotImplementedError("Could not run 'mkldnn::_reorder_linear_weight'")

    monkeypatch.setattr(packed._Product, "__init__", lacking)
    long_from(100, monkeypatch)
    assert np.array_equal(model.encode_passages(TEXTS), short)


def test_what_is_kept_of_frozen_layers_is_read_by_the_plain_forward(
    tmp_path: Path, tiny: Path, runs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny)
    long_from(100, monkeypatch)
    assert model.use_prefix_cache(tmp_path / "cache", top_layers=1)
    first = model.encode_passages(TEXTS)
    assert np.array_equal(model.encode_passages(TEXTS), first)
    assert runs == []
    model.release_prefix_cache()


@pytest.mark.parametrize("reach", [attention.ALL, attention.CAUSAL, (20, 20)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_pieces_is_that_of_the_whole_batch(
    reach: attention.Reach, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    batch, heads, shared, length = 5, 4, 2, 300
    q = torch.randn(batch, heads, length, 8)
    k, v = (torch.randn(batch, shared, length, 8) for _ in range(2))
    near = torch.ones(length, length, dtype=torch.bool)
    if reach[0] >= 0:
        near &= torch.ones_like(near).triu(-reach[0])
    if reach[1] >= 0:
        near &= torch.ones_like(near).tril(reach[1])
    kept = torch.ones(batch, 1, 1, length, dtype=torch.bool)
    if masked:
        kept[1, ..., 200:] = kept[3, ..., 50:] = False
    mask = torch.zeros(kept.shape[0] if masked else 1, 1, length, length).masked_fill(
        ~(near & kept if masked else near), -1e30
    )
    whole = attention.batched_attention(q.requires_grad_(), k, v, mask, 0.3, reach).detach()
    for piece in (1, attention._PIECE):
        monkeypatch.setattr(attention, "_PIECE", piece)
        with torch.no_grad():
            made = attention.batched_attention(q, k, v, mask, 0.3, reach)
        assert made.is_contiguous() and torch.allclose(made, whole, atol=1e-6)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_freed_activations_are_used_again() -> None:
    code = """
import resource, sys, torch
from ragadapt.encoder.batches import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        blocks = [torch.zeros(size * 10**6, dtype=torch.uint8) for size in (12, 12, 12)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without = faults()
keep_freed_memory()
faults()
print(without, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    without, with_it = (int(part) for part in done.stdout.split())
    assert without > 10 * with_it

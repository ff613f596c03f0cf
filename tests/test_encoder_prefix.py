"""The frozen prefix and its cache: the same bits, on disk, bounded, shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_tiny_model

from ragadapt.adapters import attach
from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.encoder.prefix import PrefixCache, split
from ragadapt.training import Example, train

KINDS = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "mpnet": {},
    "distilbert": {},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 3, "cls_token_id": 2, "sep_token_id": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
}


def load(folder: Path, precision: str = "float32") -> Encoder:
    return Encoder.load(EncoderConfig.model_validate({"model": str(folder), "device": "cpu", "precision": precision}))


@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_in_turn_are_the_whole_to_the_bit(tmp_path: Path, kind: str) -> None:
    encoder = load(write_tiny_model(tmp_path / "m", kind=kind, layers=4, **KINDS[kind]))
    assert encoder.passage_tower is not None
    tower = encoder.passage_tower
    ids, mask = tower.to_tensors(tower.tokenize(sentences(6))[0])
    parts = split(tower.model, 1)
    assert parts is not None
    lower, upper = parts
    with torch.no_grad():
        whole = tower.model(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = lower(input_ids=ids, attention_mask=mask).last_hidden_state
        assert not torch.equal(hidden, whole)
        assert torch.equal(upper(inputs_embeds=hidden, attention_mask=mask).last_hidden_state, whole)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_vectors_equal_uncached_ones_to_the_bit(tmp_path: Path, precision: str) -> None:
    folder = write_tiny_model(tmp_path / "m", layers=4)
    plain, cached = load(folder, precision), load(folder, precision)
    assert cached.use_prefix_cache(tmp_path / "cache")
    texts = sentences(30)
    expected = plain.encode_passages(texts)
    assert np.array_equal(cached.encode_passages(texts), expected)  # computed and kept
    assert np.array_equal(cached.encode_passages(texts), expected)  # read back


def test_second_process_and_second_run_find_what_the_first_kept(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", layers=4)
    first = load(folder)
    first.use_prefix_cache(tmp_path / "cache")
    expected = first.encode_passages(sentences(10))
    second = load(folder)
    second.use_prefix_cache(tmp_path / "cache")  # the first still holds the lock: this one reads only
    assert second.passage_tower is not None and second.passage_tower.prefix is not None
    cache = second.passage_tower.prefix.cache
    assert cache is not None and len(cache) == 10 and cache.full
    assert np.array_equal(second.encode_passages(sentences(10)), expected)
    second.encode_passages(sentences(5, seed=9))
    assert len(cache) == 10


def test_other_weights_use_another_cache(tmp_path: Path) -> None:
    for seed in (0, 1):
        encoder = load(write_tiny_model(tmp_path / f"m{seed}", layers=4, seed=seed))
        encoder.use_prefix_cache(tmp_path / "cache")
        encoder.encode_passages(sentences(3))
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2


def test_cache_stays_within_its_size_and_vectors_stay_right(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", layers=4)
    encoder, plain = load(folder), load(folder)
    limit = 32 * 4 * 40  # width x bytes x tokens: a handful of texts
    assert encoder.use_prefix_cache(tmp_path / "cache", max_bytes=limit)
    texts = sentences(40)
    for _ in range(2):
        assert np.allclose(encoder.encode_passages(texts), plain.encode_passages(texts), atol=1e-6)
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.bin")) <= limit


@pytest.mark.parametrize("which", ["_values", "_index"])
def test_a_full_disk_ends_the_growth_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    cache = PrefixCache(tmp_path, "k", 2, torch.float32, 10_000)
    first, second = ([np.array([seed, 2, 3], np.int32)] for seed in (1, 2))
    cache.add(first, torch.ones(1, 3, 2))

    class Full:
        def seek(self, place: int) -> None: ...

        def write(self, data: memoryview) -> int:
            if len(data) > 1:
                return 1
            raise OSError(28, "No space left on device")

    real = getattr(cache, which)
    monkeypatch.setattr(cache, which, Full())
    cache.add(second, torch.ones(1, 3, 2))
    assert cache.full and len(cache) == 1 and cache.find(second[0]) is None
    assert torch.equal(cache.gather([cache.find(first[0])], 3)[0], torch.ones(3, 2))
    monkeypatch.setattr(cache, which, real)
    cache.close()


def test_a_system_that_takes_little_at_a_time_gets_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PrefixCache(tmp_path, "k", 2, torch.float32, 10_000)
    row, values, real = [np.array([1, 2, 3], np.int32)], torch.randn(1, 3, 2), cache._values
    assert real is not None
    monkeypatch.setattr(
        cache, "_values", SimpleNamespace(seek=real.seek, write=lambda data: real.write(data[:5]), close=real.close)
    )
    cache.add(row, values)
    assert torch.equal(cache.gather([cache.find(row[0])], 3), values)
    cache.close()


def test_caches_of_other_cuts_are_deleted_unless_in_use(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", layers=4)
    others = [load(folder), load(folder)]
    for top, encoder in enumerate(others, start=1):
        encoder.use_prefix_cache(tmp_path / "cache", top_layers=top)
        encoder.encode_passages(sentences(3))
    others[0].release_prefix_cache()
    mine = load(folder)
    mine.use_prefix_cache(tmp_path / "cache", top_layers=3)
    mine.encode_passages(sentences(3))
    mine.forget_other_prefixes(tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2  # its own, and the one that is open
    for encoder in (others[1], mine):
        encoder.release_prefix_cache()


def test_a_cache_takes_half_of_the_free_disk_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.encoder.prefix.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    cache = PrefixCache(tmp_path, "k", 2, torch.float32, 10_000)
    assert cache.max_bytes == 50
    cache.close()


def test_a_torn_index_loses_only_the_torn_record(tmp_path: Path) -> None:
    def rows(seed: int) -> list[np.ndarray]:
        return [np.array([seed, 2, 3], np.int32)]

    cache = PrefixCache(tmp_path, "k", 2, torch.bfloat16, 10_000)
    values = [torch.randn(1, 3, 2).to(torch.bfloat16) for _ in range(2)]
    cache.add(rows(1), values[0])
    cache.add(rows(2), values[1])
    cache.close()
    cache.index_path.write_bytes(cache.index_path.read_bytes()[:-5])
    again = PrefixCache(tmp_path, "k", 2, torch.bfloat16, 10_000)
    assert len(again) == 1 and again.find(rows(2)[0]) is None
    assert torch.equal(again.gather([again.find(rows(1)[0])], 4)[:, :3], values[0])
    again.add(rows(2), values[1])
    assert torch.equal(again.gather([again.find(rows(2)[0]), None], 3)[0], values[1][0])
    again.close()


def test_values_lost_from_the_end_are_computed_again(tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, "k", 2, torch.float32, 10_000)
    row = [np.array([1, 2, 3], np.int32)]
    cache.add(row, torch.ones(1, 3, 2))
    cache.close()
    cache.values_path.write_bytes(cache.values_path.read_bytes()[:-1])
    again = PrefixCache(tmp_path, "k", 2, torch.float32, 10_000)
    assert len(again) == 0
    again.close()


def test_a_cut_that_leaves_nothing_below_is_refused(tmp_path: Path) -> None:
    encoder = load(write_tiny_model(tmp_path / "m", layers=2))
    assert not encoder.use_prefix_cache(tmp_path / "cache", top_layers=2)
    assert not encoder.use_prefix_cache(tmp_path / "cache", top_layers=5)
    assert encoder.use_prefix_cache(tmp_path / "cache", top_layers=1)


def remembering(encoder: Encoder) -> None:
    """The last layer adds what the embeddings of the last batch were: no cut below it can be exact."""
    assert encoder.query_tower is not None
    model: Any = encoder.query_tower.model
    kinds: tuple[Any, Any] = (type(model.embeddings), type(model.encoder.layer[3]))

    class Embeddings(kinds[0]):  # type: ignore[misc]
        def forward(self, *inputs: Any, **options: Any) -> Any:
            self.last[:] = [super().forward(*inputs, **options)]
            return self.last[0]

    class Layer(kinds[1]):  # type: ignore[misc]
        def forward(self, *inputs: Any, **options: Any) -> Any:
            given = super().forward(*inputs, **options)
            added = self.last[0].detach()
            return (given[0] + added, *given[1:]) if isinstance(given, tuple) else given + added

    for module, kind in ((model.embeddings, Embeddings), (model.encoder.layer[3], Layer)):
        module.__class__ = kind
    model.embeddings.last = model.encoder.layer[3].last = []  # a copy of the model copies it once, for both


def sharing(encoder: Encoder) -> None:
    """The top layer is the lowest one too: what trains the one changes the other."""
    assert encoder.query_tower is not None
    model: Any = encoder.query_tower.model
    model.encoder.layer[0] = model.encoder.layer[3]


def tied(encoder: Encoder) -> None:
    """The same of one weight."""
    assert encoder.query_tower is not None
    layers: Any = encoder.query_tower.model.encoder.layer
    layers[3].output.dense.weight = layers[0].output.dense.weight


def dropping(encoder: Encoder) -> None:
    """A dropout below the cut is on."""
    assert encoder.query_tower is not None
    layers: Any = encoder.query_tower.model.encoder.layer
    layers[0].output.dropout.train()


@pytest.mark.parametrize("spoil", [remembering, sharing, tied, dropping])
def test_a_cut_that_is_not_exact_is_refused_at_every_door(
    tmp_path: Path, spoil: Callable[[Encoder], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path / "m", layers=4)
    encoder = load(folder)
    spoil(encoder)
    assert not encoder.use_prefix_cache(tmp_path / "cache", top_layers=1)
    made: list[int] = []
    monkeypatch.setattr("ragadapt.training.loop.PrefixCache", lambda *_: made.append(1))
    examples = [Example(text, answer) for text, answer in zip(sentences(8), sentences(8, seed=1), strict=True)]
    for method in ("lora", "full") if spoil is not sharing else ():  # no adapter goes into layers that are one
        rank = {"rank": 2} if method == "lora" else {}
        adapter = AdapterConfig.model_validate({"method": method, "layers": 1, **rank})
        train(encoder, examples, None, adapter, TrainingConfig.model_validate({"batch_size": 4, "epochs": 1}))
    assert made == []


def test_the_check_of_a_cut_leaves_an_adapters_dropout_on(tmp_path: Path) -> None:
    adapted = attach(
        load(write_tiny_model(tmp_path / "m", layers=4)), AdapterConfig.model_validate({"layers": 1, "dropout": 0.5})
    )
    adapted.set_tensors({name: torch.ones_like(value) for name, value in adapted.trainable().items()})
    drops = [
        module for module in adapted.tower.model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0.2
    ]
    for module in drops:
        module.train()
    assert drops and adapted.tower.can_be_cut(1, adapted.trainable().values())
    assert all(module.training for module in drops)
    assert not adapted.tower.can_be_cut(1, adapted.tower.model.get_submodule("encoder.layer.0").parameters())

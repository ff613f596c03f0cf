"""Real test collections in BEIR layout, and the untuned baselines that every result stands beside."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a machine for the part gpu of speed.py lacks what these need
    from ragadapt.encoder import Encoder
    from ragadapt.evaluation import Evaluation

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]

QUALITY = ("scifact", "cranfield", "stackfaq", "cosqa", "handbook")


def check_data(parser: argparse.ArgumentParser, data: Path, collections: Sequence[str]) -> None:
    """Ends the program where the folder, or a collection in it, is not there."""
    if not data.is_dir():
        parser.error(f"there is no folder at {data}: give one with collections in BEIR layout")
    if missing := [name for name in collections if not (data / name).is_dir()]:
        parser.error(f"{data} holds no collection {', '.join(missing)}")


@dataclass(frozen=True)
class Collection:
    """One collection. corpus: the jsonl to fit on; queries and qrels: as read."""

    name: str
    folder: Path
    ids: list[str]
    texts: list[str]  # title and text, as one string
    queries: dict[str, str]
    qrels: dict[str, Qrels]  # by split

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.jsonl"

    def asked(self, split: str) -> dict[str, str]:
        """The queries that a split judges."""
        return {id: self.queries[id] for id in self.qrels[split]}


def device() -> str:
    """What models run on here, in words."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"


def load(data: Path, name: str) -> Collection:
    """Read one collection."""
    folder = data / name
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    texts = [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
    queries = {}
    for line in (folder / "queries.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        queries[row["_id"]] = row["text"]
    qrels: dict[str, Qrels] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        table: Qrels = {}
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            query, document, grade = line.split("\t")
            if int(grade) > 0:
                table.setdefault(query, {})[document] = int(grade)
        qrels[path.stem] = table
    return Collection(name, folder, [row["_id"] for row in rows], texts, queries, qrels)


def baselines(collection: Collection, encoder: Encoder, split: str = "test", k: int = 1000) -> dict[str, Evaluation]:
    """Untuned dense (one vector per document), plain BM25 (English stems), and their RRF, on whole documents."""
    from ragadapt.evaluation import evaluate

    asked = collection.asked(split)
    ids, texts = list(asked), list(asked.values())
    dense = encoder.encode_queries(texts) @ encoder.encode_passages(collection.texts).T
    lexical = plain_bm25(collection.texts, texts)
    fused = 1 / (60 + ranks(dense)) + 1 / (60 + ranks(lexical))
    qrels = collection.qrels[split]
    return {
        name: evaluate(run_of(scores, ids, collection.ids, k), qrels)
        for name, scores in (("dense", dense), ("BM25", lexical), ("RRF", fused))
    }


def plain_bm25(texts: list[str], queries: list[str]) -> np.ndarray:
    """Scores (Q, N): bm25s with English stems and stopwords, k1 1.2, b 0.75, words as they stand."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    stopwords = set(bm25s.stopwords.STOPWORDS_EN)

    def tokens(text: str) -> list[str]:
        words = re.findall(r"\w+", text.lower())
        return [stemmer.stemWord(word) for word in words if word not in stopwords and len(word) > 1]

    engine = bm25s.BM25(k1=1.2, b=0.75)
    engine.index([tokens(text) for text in texts], show_progress=False)
    scores = np.zeros((len(queries), len(texts)), dtype=np.float32)
    for row, query in enumerate(queries):
        known = [token for token in tokens(query) if token in engine.vocab_dict]
        if known:
            scores[row] = engine.get_scores(known)
    return scores


def ranks(scores: np.ndarray) -> np.ndarray:
    """1-based rank of every document per query."""
    return np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1


def run_of(scores: np.ndarray, queries: list[str], documents: list[str], k: int) -> Run:
    """The best k documents per query."""
    run: Run = {}
    for id, row in zip(queries, scores, strict=True):
        top = np.argsort(-row, kind="stable")[:k]
        run[id] = {documents[at]: float(row[at]) for at in top}
    return run


def write_labels(collection: Collection, split: str, ids: list[str], folder: Path) -> tuple[Path, Path]:
    """Some judged queries of a split as queries.jsonl and qrels.tsv: what a user would hand to --queries."""
    folder.mkdir(parents=True, exist_ok=True)
    queries, qrels = folder / "queries.jsonl", folder / "qrels.tsv"
    with queries.open("w", encoding="utf-8") as file:
        for id in ids:
            file.write(json.dumps({"_id": id, "text": collection.queries[id]}) + "\n")
    with qrels.open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for id in ids:
            for document, grade in collection.qrels[split][id].items():
                file.write(f"{id}\t{document}\t{grade}\n")
    return queries, qrels

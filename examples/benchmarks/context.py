"""What a language model is given: evidence within a budget of tokens, documents among five hits, order by page, time.

    python examples/benchmarks/context.py --data DATA --folder FOLDER [--parts budget,documents,pages,speed]
        [--collections scifact,cosqa]

Each collection is fitted once, without training (`--method none`), into FOLDER, and found there again. `budget` gives
the same number of tokens, counted by the base model's tokeniser, to plain search (passages in their order, as many as
fit) and to expanded search, and looks which evidence the given text holds: handbook's quotes (in all that is given of
their source, at least half of their word trigrams), and of covidqa's articles the passages that hold the answer. How
many hits suit a budget was chosen on covidqa's articles, after a look at handbook.
`documents` counts the judged documents among five hits: each passage by itself, copies folded (the default),
near-duplicates folded, one hit a document, expanded. `pages` orders passages by their own score and that of their
document's best passages, with the share chosen on the other collection. `speed` alternates between the sides; medians
over handbook's questions of the processor's time.

Results go to FOLDER/context.json as they come, tables to stdout; rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from beir import check_data, device, load

from ragadapt import Chunk, FitConfig, Hit, Retriever, fit
from ragadapt.evaluation import paired_bootstrap
from ragadapt.queries.labels import MIN_QUOTE_SHARE, quote_share, same_source
from ragadapt.search.context import REACHES, Expand

PARTS = ("budget", "documents", "pages", "speed")
BUDGETS = (512, 1024, 2048)
COLLECTIONS = (
    "scifact", "cranfield", "stackfaq", "cosqa", "drcd", "cisi", "cacm", "covidqa-chunks", "clapnq-dev", "handbook",
)  # fmt: skip
SEED = 13
DEEP = 60  # passages of plain search that are tried for the budget

Given = Callable[[Sequence[str], int], list[list[Hit]]]


class Bench:
    """Fitted folders and results."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.file = folder / "context.json"
        self.rows: list[dict[str, Any]] = json.loads(self.file.read_text("utf-8"))["rows"] if self.file.exists() else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def row(self, **key: Any) -> dict[str, Any]:
        """What was measured of it."""
        found = self.find(**key)
        assert found is not None, key
        return found

    def add(self, **row: Any) -> None:
        """Keep one result, on disk at once."""
        self.rows.append(row)
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}, {device()}",
            "base": "all-MiniLM-L6-v2",
            "seed": SEED,
        }
        self.file.write_text(json.dumps({"about": about, "rows": self.rows}, indent=1, default=float), encoding="utf-8")

    def retriever(self, name: str) -> Retriever:
        """Of a collection; "handbook-pages" are the files, "covidqa-articles" the passages of whole articles."""
        path = self.folder / name
        if not (path / "ragadapt.json").is_file():
            values = {"encoder": {"model": "offline"}, "adapter": {"method": "none"}, "seed": SEED}
            sources: list[Any] = [self.data / name / "corpus.jsonl"]
            if name == "handbook-pages":
                sources = [self.data / "handbook" / "docs"]
            if name == "covidqa-articles":
                sources = article_passages(self.data)
            fit(sources, path, FitConfig.build(values), chunked=name == "covidqa-articles")
        return Retriever.open(path)


def article_passages(data: Path) -> list[Chunk]:
    """covidqa's passages side by side in their articles, as their ids tell."""
    chunks = []
    ends: dict[str, int] = {}
    for line in (data / "covidqa-chunks" / "corpus.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        article = row["_id"].rsplit("-", 1)[0]
        start = ends.get(article, 0)
        ends[article] = start + len(row["text"])
        chunks.append(Chunk(row["_id"], article, row["text"], (), start, ends[article], source=article))
    return chunks


# Evidence within a budget


class Quotes:
    """handbook's questions, each with its quotes."""

    name = "handbook-pages"

    def __init__(self, data: Path) -> None:
        lines = (data / "handbook" / "questions.jsonl").open(encoding="utf-8")
        rows = [json.loads(line) for line in lines]
        self.questions = [row["text"] for row in rows]
        self.evidence = [[(one["source"], one["quote"]) for one in row["evidence"]] for row in rows]

    def found(self, at: int, given: Sequence[Hit]) -> float:
        """Share of a question's quotes that the given text holds."""
        held = 0
        for source, quote in self.evidence[at]:
            own = [hit for hit in given if same_source(source, hit.chunk.source, hit.chunk.document_id)]
            own.sort(key=lambda hit: hit.chunk.start if hit.context is None else hit.context.start)
            held += quote_share("\n".join(hit.text for hit in own), quote) >= MIN_QUOTE_SHARE
        return held / len(self.evidence[at])


class Passages:
    """covidqa's questions, each with the passages that hold its answer."""

    name = "covidqa-articles"

    def __init__(self, data: Path) -> None:
        collection = load(data, "covidqa-chunks")
        asked = collection.asked("test")
        self.questions = list(asked.values())
        self.evidence = [set(collection.qrels["test"][id]) for id in asked]

    def found(self, at: int, given: Sequence[Hit]) -> float:
        """Share of them that was given."""
        ids = {id for hit in given for id in (hit.context.passages if hit.context else (hit.chunk.id,))}
        return len(self.evidence[at] & ids) / len(self.evidence[at])


def ways(retriever: Retriever, count: Callable[[str], int]) -> dict[str, Given]:
    """Name → (questions, tokens) → what is given. count: a text → its tokens."""

    def fitting(hits: Sequence[Hit], left: int) -> list[Hit]:
        given = []
        for hit in hits:
            if count(hit.text) <= left:
                given.append(hit)
                left -= count(hit.text)
        return given

    def plain(questions: Sequence[str], tokens: int) -> list[list[Hit]]:
        return [fitting(hits, tokens) for hits in retriever.search_many(questions, DEEP, fold="none")]

    def expanded(to: Any, k: int | None = None, **settings: Any) -> Given:
        return lambda questions, tokens: retriever.search_many(
            questions, k, expand=Expand(to, tokens, count), **settings
        )

    return {
        "plain": plain,
        **{to: expanded(to) for to in REACHES},
        "neighbours, k = 5": expanded("neighbours", 5),
        "neighbours, near folded": expanded("neighbours", fold="near"),
        "neighbours, 3 a document": expanded("neighbours", max_per_document=3),
    }


def budget(bench: Bench) -> None:
    for questions in (Passages(bench.data), Quotes(bench.data)):
        with bench.retriever(questions.name) as retriever:
            count = functools.cache(lambda text, encoder=retriever.encoder: encoder.count_tokens([text])[0])
            for side, give in ways(retriever, count).items():
                for tokens in BUDGETS:
                    key = {"part": "budget", "collection": questions.name, "tokens": tokens, "side": side}
                    if bench.find(**key) is None:
                        given = give(questions.questions, tokens)
                        found = [questions.found(at, hits) for at, hits in enumerate(given)]
                        used = float(np.mean([sum(count(hit.text) for hit in hits) for hits in given]))
                        hits = float(np.mean([len(one) for one in given]))
                        bench.add(**key, recall=float(np.mean(found)), used=used, hits=hits, each=found)
    print("\n| collection | given | " + " | ".join(f"{tokens} tokens" for tokens in BUDGETS) + " |")
    print("|---" * (2 + len(BUDGETS)) + "|")
    rows = [row for row in bench.rows if row["part"] == "budget"]
    for collection, side in dict.fromkeys((row["collection"], row["side"]) for row in rows):
        cells = []
        for tokens in BUDGETS:
            key = {"part": "budget", "collection": collection, "tokens": tokens}
            row, first = bench.row(**key, side=side), bench.row(**key, side="plain")
            cells.append(
                f"{row['recall']:.3f}" + ("" if side == "plain" else f" {against(row['each'], first['each'])}")
            )
        print(f"| {collection} | {side} | {' | '.join(cells)} |")


def against(each: Sequence[float], first: Sequence[float]) -> str:
    """The paired difference of the means with its interval."""
    found = paired_bootstrap(each, first, seed=SEED)
    return f"{found.delta:+.3f} ({found.low:+.3f} … {found.high:+.3f})"


# Documents among five hits


def documents(bench: Bench, collections: Sequence[str]) -> None:
    sides: dict[str, dict[str, Any]] = {
        "each passage": {"fold": "none"}, "copies folded": {}, "near folded": {"fold": "near"},
        "one a document": {"max_per_document": 1}, "neighbours, 2,048 tokens": {"expand": "neighbours"},
    }  # fmt: skip
    for name in collections:
        if all(bench.find(part="documents", collection=name, side=side) for side in sides):
            continue
        collection = load(bench.data, name)
        asked, qrels = collection.asked("test"), collection.qrels["test"]
        with bench.retriever(name) as retriever:
            first: list[float] = []
            for side, settings in sides.items():
                found = retriever.search_many(list(asked.values()), 5, **settings)
                each = []
                for id, hits in zip(asked, found, strict=True):
                    shown = {hit.chunk.document_id for hit in hits}
                    each.append(len(shown & qrels[id].keys()) / len(qrels[id]))
                first = first or each
                difference = paired_bootstrap(each, first, seed=SEED)
                listed = [{c.document_id for hit in hits for c in (hit.chunk, *hit.copies)} for hits in found]
                with_copies = [
                    len(ids & qrels[id].keys()) / len(qrels[id]) for id, ids in zip(asked, listed, strict=True)
                ]
                bench.add(
                    part="documents", collection=name, side=side, recall=float(np.mean(each)),
                    with_copies=float(np.mean(with_copies)), difference=difference.delta, low=difference.low,
                    high=difference.high,
                )  # fmt: skip
    print("\n| documents among five hits | " + " | ".join(sides) + " |")
    print("|---" * (1 + len(sides)) + "|")
    for name in collections:
        rows = [bench.row(part="documents", collection=name, side=side) for side in sides]
        print(f"| {name} | " + " | ".join(f"{row['recall']:.3f} ({row['with_copies']:.3f})" for row in rows) + " |")


# Passages ordered by their page

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
SCORES: dict[str, Callable[[Any], float]] = {
    "best": lambda scores: float(scores[0]),
    "sum of three": lambda scores: float(scores[:3].sum()) / 3,
}


def pages(bench: Bench) -> None:
    """Evidence recall@5 of passages ordered by own + share * the document's, over all passages."""
    for questions in (Passages(bench.data), Quotes(bench.data)):
        if bench.find(part="pages", collection=questions.name):
            continue
        with bench.retriever(questions.name) as retriever:
            everything = list(retriever.chunks)
            document_of = {chunk.id: chunk.document_id for chunk in everything}
            chunks = {chunk.id: chunk for chunk in everything}
            found: dict[tuple[str, float], list[float]] = {}
            ranked = retriever.rank(questions.questions, 200)
            for at, ranking in enumerate(ranked):
                by_document: dict[str, list[float]] = {}
                for id, score in zip(ranking.ids, ranking.scores, strict=True):
                    by_document.setdefault(document_of[id], []).append(float(score))
                for kind, whole in SCORES.items():
                    page = {document: whole(np.sort(scores)[::-1]) for document, scores in by_document.items()}
                    bonus = np.array([page[document_of[id]] for id in ranking.ids])
                    for share in SHARES:
                        order = np.argsort(-(ranking.scores + share * bonus), kind="stable")[:5]
                        given = [Hit(chunks[ranking.ids[place]], 0.0) for place in order]
                        found.setdefault((kind, share), []).append(questions.found(at, given))
            for (kind, share), each in found.items():
                bench.add(part="pages", collection=questions.name, kind=kind, share=share, recall=float(np.mean(each)),
                          each=each)  # fmt: skip
    rows = [row for row in bench.rows if row["part"] == "pages"]
    names = list(dict.fromkeys(row["collection"] for row in rows))
    print("\n| evidence recall@5 | own score | " + " | ".join(f"{k}, {s}" for k in SCORES for s in SHARES[1:]) + " |")
    print("|---" * (2 + len(SCORES) * len(SHARES[1:])) + "|")
    for name in names:
        own = bench.row(part="pages", collection=name, kind="best", share=0.0)
        cells = [bench.row(part="pages", collection=name, kind=k, share=s) for k in SCORES for s in SHARES[1:]]
        print(f"| {name} | {own['recall']:.3f} | " + " | ".join(f"{row['recall']:.3f}" for row in cells) + " |")
    for name in names:
        others = [row for row in rows if row["collection"] != name]
        best = max(others, key=lambda row: (row["recall"], -row["share"]))
        chosen = bench.row(part="pages", collection=name, kind=best["kind"], share=best["share"])
        own = bench.row(part="pages", collection=name, kind="best", share=0.0)
        print(f"{name}: chosen elsewhere {best['kind']}, {best['share']}: {against(chosen['each'], own['each'])}")


# Time


def speed(bench: Bench) -> None:
    if bench.find(part="speed") is None:
        questions = Quotes(bench.data).questions
        with bench.retriever("handbook-pages") as retriever:
            sides: dict[str, dict[str, Any]] = {
                "five hits, each passage": {"k": 5, "fold": "none"},
                "five hits": {"k": 5},
                "five hits, neighbours": {"k": 5, "expand": "neighbours"},
                "five hits, section": {"k": 5, "expand": "section"},
                "neighbours, 2,048 tokens": {"expand": "neighbours"},
            }
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for question in questions:
                for side, settings in sides.items():
                    retriever.snapshot().query_vectors.forget()
                    started = time.process_time()
                    retriever.search(question, **settings)
                    seconds[side].append(time.process_time() - started)
        first = median(seconds["five hits, each passage"])
        for side, taken in seconds.items():
            bench.add(part="speed", side=side, milliseconds=1000 * median(taken), times=median(taken) / first)
    print("\n| search | ms | times |\n|---|---|---|")
    for row in bench.rows:
        if row["part"] == "speed":
            print(f"| {row['side']} | {row['milliseconds']:.2f} | {row['times']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--collections", default=",".join(COLLECTIONS))
    arguments = parser.parse_args()
    parts, collections = arguments.parts.split(","), arguments.collections.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    check_data(parser, arguments.data, [*collections, "handbook", "covidqa-chunks"])
    arguments.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.data, arguments.folder)
    if "budget" in parts:
        budget(bench)
    if "documents" in parts:
        documents(bench, collections)
    if "pages" in parts:
        pages(bench)
    if "speed" in parts:
        speed(bench)


if __name__ == "__main__":
    main()

"""The defaults of the untrained search, chosen by leaving collections out: what each is worth where nobody chose it.

    python examples/benchmarks/defaults.py --data DATA [--folder FOLDER] [--collections scifact,cranfield,…]

Every collection is encoded once into FOLDER (kept, and gone on with; default: a temporary folder); the rest takes
minutes. For each default, the choice for a collection is the option with the best mean nDCG@10 over the others. The
second table applies all of these choices together: no figure in it comes from a default that its collection had a say
in. Baselines are over the same passages. The third is of labels: so many of the test's questions learn the weight, from
where it starts and by a rule of so many standard errors, and the others of the test judge it against where it started:
mean gain / of the worst collection / of the least twentieth of the draws. Results go to FOLDER/defaults.json, tables to
stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from beir import Collection, check_data, load, ranks

from ragadapt import Encoder, EncoderConfig
from ragadapt.config import ChunkConfig, QueryConfig
from ragadapt.corpus import chunk_documents, internal_links, read_documents
from ragadapt.lexical import LexicalIndex
from ragadapt.lexical.ranking import moments
from ragadapt.lexical.stopwords import QUESTION_WORDS, STOPWORDS
from ragadapt.pipeline.fusion import BALANCE_ASKED, BALANCE_CUT, FEWEST_ASKED, shape_sample, shaping
from ragadapt.pipeline.stages import lexical_parts
from ragadapt.queries import structural_queries
from ragadapt.search.fusion import (
    RRF_K,
    WEIGHTS,
    Background,
    Floats,
    Fusion,
    ScoreShapes,
    move_towards,
    normal_surprisal,
    one_standard_error,
    standardise,
)

COLLECTIONS = (
    "scifact", "cranfield", "stackfaq", "cosqa", "handbook", "cisi", "cacm", "covidqa-chunks", "clapnq-dev",
)  # fmt: skip
DEPTH = 200  # candidates of either side, as shipped
_LISTS = {"short": STOPWORDS, "question words": STOPWORDS | QUESTION_WORDS}
_HEADINGS = (1, 2, 3)
_TOP = 40  # passages that are enough for ten documents
_Z_SHIFT = 0.2  # z-scores want the larger share for the dense side


@dataclass(frozen=True)
class Setting:
    """One way to search without training. weight: by what (fixed, or the shape of the scores of queries cut from the
    documents or asked by people) and how much (the share of the dense side, or r at the balance)."""

    stop_words: str = "question words"
    heading_weight: int = 2
    form: str = "surprisal"
    weight: tuple[str, float] = ("cut", BALANCE_CUT)
    feedback: float = Fusion().feedback


BEFORE = Setting(stop_words="short", weight=("fixed", 0.5))
SHIPPED = Setting()
ASKED = Setting(weight=("asked", BALANCE_ASKED))
OPTIONS: dict[str, list[Setting]] = {
    "stop words": [replace(SHIPPED, stop_words=name) for name in _LISTS],
    "heading weight": [replace(SHIPPED, heading_weight=weight) for weight in _HEADINGS],
    "form": [replace(SHIPPED, form=form) for form in ("surprisal", "zscore", "both")],
    "fixed weight": [replace(SHIPPED, weight=("fixed", round(0.05 * at, 2))) for at in range(5, 14)],
    "balance": [replace(SHIPPED, weight=("cut", round(0.05 * at, 2))) for at in range(29, 46)],
    "balance, questions known": [replace(SHIPPED, weight=("asked", round(0.05 * at, 2))) for at in range(26, 43)],
    "feedback": [replace(SHIPPED, feedback=strength) for strength in (0.0, 0.1, 0.2, 0.3, 0.5)],
}
_FIELDS = {"stop words": "stop_words", "heading weight": "heading_weight", "form": "form", "feedback": "feedback"}


LABELS = (10, 20, 36, 50, 100, 150)
TOLERANCES = (0.5, 1.0, 1.5, 2.0, 2.5)
FEWEST_JUDGES = 26  # questions that are left
CHOICES = ("chosen", "chosen by mean and least twentieth")


class Cached:
    """One collection's vectors, lexical scores and judgements, read back from its folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.arrays = np.load(folder / f"{name}.npz", allow_pickle=False)
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        self.owner: np.ndarray = self.arrays["owner"]
        self.passages: Floats = self.arrays["passages"]
        self.queries: Floats = self.arrays["queries"]
        self.own: list[list[int]] = about["own"]
        self.gains = np.zeros((len(self.queries), about["documents"]), np.float32)
        for row, judged in enumerate(about["judged"]):
            for document, grade in judged.items():
                self.gains[row, int(document)] = grade

    @cached_property
    def background(self) -> Background:
        return Background.of(self.passages)

    def dense(self, vectors: Floats) -> Floats:
        """(Q, N) z-scores over all passages."""
        means, deviations = self.background.of_scores(vectors)
        return standardise(vectors @ self.passages.T, means[:, None], deviations[:, None])

    def lexical(self, key: str) -> Floats:
        """(Q, N) z-scores over all passages."""
        rows = self.arrays[key]
        means, deviations = moments(rows)
        return standardise(rows, means[:, None], deviations[:, None])

    @cached_property
    def shapes(self) -> dict[str, ScoreShapes]:
        """The shape of the scores of queries cut from the documents, and of the test's questions."""
        found = {}
        words, headings = SHIPPED.stop_words, SHIPPED.heading_weight
        for source, vectors, key, own in (
            ("cut", self.arrays["cut"], "cut lexical", self.own),
            ("asked", self.queries, lexical_key(words, headings), None),
        ):
            sample = shape_sample(len(self.passages), own or ())
            columns = None if own is None else [np.searchsorted(sample, one).tolist() for one in own]
            sides = (self.dense(vectors)[:, sample], self.lexical(key)[:, sample])
            found[source] = ScoreShapes.of(*sides, columns)
        return found

    def weight(self, setting: Setting) -> float:
        source, value = setting.weight
        if source == "fixed":
            return value
        # What is cut from the documents tells besides whether the dense side knows them at all.
        return replace(self.shapes[source], found=self.shapes["cut"].found).weight(value)

    def quality(self, setting: Setting) -> float:
        """Mean nDCG@10 over the test's questions; a document stands where its best passage does."""
        weight, lexical = self.weight(setting), self.lexical(lexical_key(setting.stop_words, setting.heading_weight))
        best = _best(lexical, DEPTH)
        vectors = self.queries
        for last in (False, True) if setting.feedback else (True,):
            dense = self.dense(vectors)
            chosen = np.concatenate([_best(dense, DEPTH), best], axis=1)
            sides = [np.take_along_axis(side, chosen, axis=1) for side in (dense, lexical)]
            scores = mixed(setting.form, weight, *sides)
            if not last:
                order = np.take_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :4], axis=1)
                nearest = [self.passages[list(dict.fromkeys(row))[: Fusion().feedback_depth]] for row in order.tolist()]
                vectors = move_towards(self.queries, nearest, setting.feedback)
        return float(self.ndcg(chosen, scores).mean())

    def by_weight(self) -> tuple[tuple[float, ...], np.ndarray]:
        """Weights, and (weights, Q) nDCG@10 under each of them, without feedback."""
        weights = tuple(sorted({*WEIGHTS, self.weight(SHIPPED), self.weight(ASKED)}))
        dense, lexical = self.dense(self.queries), self.lexical(lexical_key(SHIPPED.stop_words, SHIPPED.heading_weight))
        chosen = np.concatenate([_best(dense, DEPTH), _best(lexical, DEPTH)], axis=1)
        sides = [np.take_along_axis(side, chosen, axis=1) for side in (dense, lexical)]
        rows = [self.ndcg(chosen, mixed(SHIPPED.form, weight, *sides)) for weight in weights]
        return weights, np.array(rows, dtype=np.float64)

    def ndcg(self, chosen: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(Q,) nDCG@10 of documents ranked by their best passage. chosen: (Q, C) passages; one may stand twice."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
        owners = self.owner[np.take_along_axis(chosen, order, axis=1)]  # (Q, T)
        first = ~np.tril(owners[:, :, None] == owners[:, None, :], -1).any(axis=2)
        place = np.cumsum(first, axis=1) - 1
        discount = np.where(first & (place < 10), 1 / np.log2(place + 2), 0)
        ideal = np.sort(self.gains, axis=1)[:, ::-1][:, :10] / np.log2(np.arange(2, 12))[: self.gains.shape[1]]
        gained = (np.take_along_axis(self.gains, owners, axis=1) * discount).sum(axis=1)
        quality: np.ndarray = gained / np.maximum(ideal.sum(axis=1), 1e-9)
        return quality

    def baselines(self) -> dict[str, float]:
        """Dense, plain BM25 and their RRF, over all passages."""
        dense, words = self.queries @ self.passages.T, self.arrays[lexical_key("short", 1)]
        fused = 1 / (RRF_K + ranks(dense)) + 1 / (RRF_K + ranks(words))
        everywhere = np.tile(np.arange(len(self.passages)), (len(dense), 1))
        sides = (("dense", dense), ("BM25", words), ("RRF", fused))
        return {name: float(self.ndcg(everywhere, scores).mean()) for name, scores in sides}


def mixed(form: str, weight: float, dense: Floats, lexical: Floats) -> np.ndarray:
    """(Q, C) fused scores; the form "both" is the sum of the other two, each standardised."""
    if form == "both":
        parts = [mixed(one, weight, dense, lexical) for one in ("surprisal", "zscore")]
        both: np.ndarray = sum(
            (part - part.mean(axis=1, keepdims=True)) / part.std(axis=1, keepdims=True) for part in parts
        )
        return both
    if form == "zscore":
        weight = min(weight + _Z_SHIFT, 1.0)
    else:
        dense = normal_surprisal(dense)
    fused: np.ndarray = weight * dense + (1 - weight) * lexical
    return fused


def lexical_key(stop_words: str, heading_weight: int) -> str:
    return f"lexical, {stop_words}, {heading_weight}"


def _best(scores: Floats, depth: int) -> np.ndarray:
    if depth >= scores.shape[1]:
        return np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    return np.argpartition(-scores, depth, axis=1)[:, :depth]


def cache(collection: Collection, folder: Path, encoder: Encoder) -> None:
    """Cut, encode and index one collection as `fit` does, unless that was done before."""
    if (folder / f"{collection.name}.json").is_file():
        return
    started = time.perf_counter()
    documents = read_documents([collection.corpus]).documents
    chunks = chunk_documents(documents, ChunkConfig(), encoder.count_tokens, encoder.passage_room)
    found = structural_queries(documents, chunks, internal_links(documents, chunks), QueryConfig(), seed=13)
    cut, place = shaping(found), {chunk.id: at for at, chunk in enumerate(chunks)}
    asked = collection.asked("test")
    headings, texts = lexical_parts(chunks)
    arrays: dict[str, Any] = {}
    for name, words in _LISTS.items():
        for weight in _HEADINGS:
            index = LexicalIndex.build(list(place), texts, headings=headings, heading_weight=weight, stopwords=words)
            arrays[lexical_key(name, weight)] = index.scores(list(asked.values()))
            if (name, weight) == (SHIPPED.stop_words, SHIPPED.heading_weight):
                arrays["cut lexical"] = index.scores([query.text for query in cut])
    arrays["passages"] = encoder.encode_passages([chunk.passage for chunk in chunks])
    arrays["queries"] = encoder.encode_queries(list(asked.values()))
    arrays["cut"] = encoder.encode_queries([query.text for query in cut])
    number = {id: at for at, id in enumerate(collection.ids)}
    np.savez(folder / f"{collection.name}.npz", owner=[number[chunk.document_id] for chunk in chunks], **arrays)
    judged = [
        {number[id]: grade for id, grade in collection.qrels["test"][query].items() if id in number} for query in asked
    ]
    own = [[place[id] for id in query.positives[:1]] for query in cut]
    about = {"documents": len(number), "judged": judged, "own": own, "kind": cut[0].kind if cut else None}
    (folder / f"{collection.name}.json").write_text(json.dumps(about), encoding="utf-8")
    print(f"{collection.name}: {len(chunks)} passages in {time.perf_counter() - started:.0f} s", flush=True)


def left_out(table: np.ndarray) -> list[int]:
    """Per column of (options, collections) the option that is best on average over the other columns."""
    return [int(np.delete(table, at, axis=1).mean(axis=1).argmax()) for at in range(table.shape[1])]


def words_of(name: str, setting: Setting) -> str:
    """An option in words."""
    value = getattr(setting, _FIELDS[name]) if name in _FIELDS else setting.weight[1]
    return f"{value:g}" if isinstance(value, float) else str(value)


def choose(name: str, options: Sequence[Setting], table: np.ndarray) -> dict[str, Any]:
    """One default: every option's mean, what each fold chose, and what that is worth."""
    chosen = left_out(table)
    columns = np.arange(table.shape[1])
    return {
        "options": {words_of(name, option): float(mean) for option, mean in zip(options, table.mean(axis=1))},
        "chosen": [words_of(name, options[at]) for at in chosen],
        "values": table[chosen, columns].tolist(),
        "mean": float(table[chosen, columns].mean()),
        "oracle": float(table.max(axis=0).mean()),
    }


def together(picked: Mapping[str, Setting], source: str) -> Setting:
    """The choices of one fold as one setting. source: which balance counts."""
    fields = {field: getattr(picked[name], field) for name, field in _FIELDS.items()}
    return Setting(**fields, weight=picked[source].weight)


def study(collections: Sequence[Cached]) -> dict[str, Any]:
    """All defaults and all collections; see the module's docstring."""
    tables = {
        name: np.array([[one.quality(option) for one in collections] for option in options])
        for name, options in OPTIONS.items()
    }
    folds = {name: left_out(table) for name, table in tables.items()}
    weights = np.concatenate([tables[name] for name in ("fixed weight", "balance", "balance, questions known")])
    rows = []
    for at, one in enumerate(collections):
        picked = {name: OPTIONS[name][chosen[at]] for name, chosen in folds.items()}
        baselines = one.baselines()
        row = {
            "collection": one.name,
            **baselines,
            "best of three": max(baselines.values()),
            "before": one.quality(BEFORE),
            "left out": one.quality(together(picked, "balance")),
            "left out, questions known": one.quality(together(picked, "balance, questions known")),
            "shipped": one.quality(SHIPPED),
            "shipped, questions known": one.quality(ASKED),
            "weight": one.weight(SHIPPED),
            "weight, questions known": one.weight(ASKED),
            "oracle weight": float(weights[:, at].max()),
            "shapes": {source: asdict(shapes) for source, shapes in one.shapes.items()},
        }
        rows.append(row)
    defaults = {name: choose(name, options, tables[name]) for name, options in OPTIONS.items()}
    return {"defaults": defaults, "collections": rows}


def labelled(collections: Sequence[Cached], draws: int = 40) -> list[dict[str, Any]]:
    """By number of labels what each tolerance gains over not learning, by collection: mean and least twentieth of the
    draws. Collections with too few questions to judge are left out of a row."""
    tables = [(one, *one.by_weight()) for one in collections]
    rows = []
    for size in LABELS:
        start = ASKED if size >= FEWEST_ASKED else SHIPPED
        gains: dict[str, np.ndarray] = {}
        for one, weights, table in tables:
            rng, count = np.random.default_rng(13), table.shape[1]
            if count < size + FEWEST_JUDGES:
                continue
            neutral = one.weight(start)
            found = np.zeros((len(TOLERANCES), draws))
            for draw in range(draws):
                drawn = rng.permutation(count)
                learn, judge = table[:, drawn[:size]], table[:, drawn[size:]]
                before = judge[weights.index(neutral)]
                for at, tolerance in enumerate(TOLERANCES):
                    _, weight, _ = one_standard_error(learn, weights, neutral, tolerance)
                    found[at, draw] = (judge[weights.index(weight)] - before).mean()
            gains[one.name] = found
        means = np.array([found.mean(axis=1) for found in gains.values()]).T  # (tolerances, collections)
        least = np.array([np.quantile(found, 0.05, axis=1) for found in gains.values()]).T
        rows.append(
            {
                "labels": size,
                "collections": list(gains),
                "mean": dict(zip(TOLERANCES, means.mean(axis=1).tolist(), strict=True)),
                "worst collection": dict(zip(TOLERANCES, means.min(axis=1).tolist(), strict=True)),
                "least twentieth": dict(zip(TOLERANCES, least.mean(axis=1).tolist(), strict=True)),
                "chosen": [TOLERANCES[at] for at in left_out(means)],
                "chosen by mean and least twentieth": [TOLERANCES[at] for at in left_out(means + least)],
            }
        )
    return rows


def shown_labels(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of labels, in Markdown: mean gain, of the worst collection, of the least twentieth of draws."""
    lines = ["| labels | " + " | ".join(f"{at:g} errors" for at in TOLERANCES) + " | chosen with one left out |"]
    lines.append("|" + "---|" * (len(TOLERANCES) + 2))
    for row in rows:
        cells = [
            " / ".join(f"{row[key][at]:+.4f}" for key in ("mean", "worst collection", "least twentieth"))
            for at in TOLERANCES
        ]
        both = [", ".join(f"{v:g} x{row[key].count(v)}" for v in dict.fromkeys(row[key])) for key in CHOICES]
        lines.append(f"| {row['labels']} | " + " | ".join(cells) + f" | {'; '.join(both)} |")
    return "\n".join(lines)


def shown(result: Mapping[str, Any]) -> str:
    """The two tables, in Markdown."""
    lines = ["| default | options (mean nDCG@10) | chosen with one collection left out | mean left out | oracle |"]
    lines.append("|" + "---|" * 5)
    for name, found in result["defaults"].items():
        options = " · ".join(f"{option} {mean:.4f}" for option, mean in found["options"].items())
        votes = {option: found["chosen"].count(option) for option in dict.fromkeys(found["chosen"])}
        chosen = ", ".join(f"{option} ×{count}" for option, count in votes.items())
        lines.append(f"| {name} | {options} | {chosen} | {found['mean']:.4f} | {found['oracle']:.4f} |")
    columns = (
        "dense", "BM25", "RRF", "before", "left out", "left out, questions known", "shipped",
        "shipped, questions known", "oracle weight",
    )  # fmt: skip
    lines += ["", "| collection | " + " | ".join(columns) + " | over the best of three |", "|" + "---|" * 11]
    rows = list(result["collections"])
    means = {column: float(np.mean([row[column] for row in rows])) for column in (*columns, "best of three")}
    for row in [*rows, {"collection": "mean", **means}]:
        cells = " | ".join(f"{row[column]:.4f}" for column in columns)
        lines.append(f"| {row['collection']} | {cells} | {row['left out'] - row['best of three']:+.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="where vectors and results go")
    parser.add_argument("--collections", default=",".join(COLLECTIONS))
    arguments = parser.parse_args()
    names = arguments.collections.split(",")
    check_data(parser, arguments.data, names)
    if len(names) < 2:
        parser.error("one collection cannot be left out of itself: name at least two")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ragadapt-defaults-"))
    folder.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(EncoderConfig(model="offline"))
    for name in names:
        cache(load(arguments.data, name), folder, encoder)
    about = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
        "base": "all-MiniLM-L6-v2",
        "seed": 13,
    }
    collections = [Cached(folder, name) for name in names]
    result = {"about": about, **study(collections), "labels": labelled(collections)}
    (folder / "defaults.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(shown(result))
    print("\n" + shown_labels(result["labels"]))
    print(f"written: {folder / 'defaults.json'}")


if __name__ == "__main__":
    main()

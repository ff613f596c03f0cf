"""How sure a search is: the fixed map from what a search finds to the probability that a hit answers, and its figures.

    python examples/benchmarks/confidence.py --data DATA [--folder FOLDER] [--collections scifact,cranfield,…]
        [--also drcd] [--write docs/confidence.json]
    python examples/benchmarks/confidence.py --data DATA --small

Every collection is encoded once into FOLDER (the files of defaults.py, which it may share) and searched for up to 200
of its own test questions and up to 200 of every other collection's; both are kept there. A hit answers where a person
said so; to a question of another collection nothing answers. The map of a collection is fitted to the other ones, its
signals chosen there too (by leaving each of them out in turn); so no figure comes from a map that its collection had a
say in. The map that ships is fitted to all but those of --also, which are only judged.

Figures of every collection, by that map:

- AUC of "answered here or not": its own questions against those of all others, by the first hit's confidence, beside
  the first hit's fused score, its cosine and its BM25 score; and the least AUC against a single other collection
- ECE: expected calibration error over the first five hits (ten bins of equally many), of its own questions, and of as
  many questions of others beside them
- the same after 50 and 100 of its questions (others than those that judge) adjusted the map as a fit does, mean of ten
  draws
- not there: its own questions once their answers are taken out of the corpus, against the same ones with them: AUC

`--small`: small corpora about one thing, made of a judged passage and those nearest to it, with the question that it
answers and one of another collection; P(answered here) of the fixed map, by how many passages about different things
count beside a corpus's own (`FEW`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from beir import Collection, check_data, load
from defaults import COLLECTIONS, SHIPPED, Cached, cache
from scipy.optimize import minimize
from scipy.stats import rankdata

from ragadapt import Encoder, EncoderConfig
from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents, read_documents
from ragadapt.index import exact_index
from ragadapt.lexical import LexicalIndex
from ragadapt.lexical.languages import languages_of
from ragadapt.lexical.stopwords import stopwords_for
from ragadapt.pipeline.confidence import HITS, JudgedHits, calibration_error, fit_platt, log_loss
from ragadapt.pipeline.stages import lexical_parts
from ragadapt.search.confidence import FIXED, LOOKED_AT, Signals, Weights, probability
from ragadapt.search.fusion import Background, Floats, Fusion
from ragadapt.search.searcher import Dense, Searcher

MOST = 200  # questions of a collection
KINDS = ("hybrid", "dense", "lexical")
OPTIONS = {
    "hybrid": [
        (here, hit)
        for here in (("nearness",), ("coverage",), ("nearness", "coverage"))
        for hit in (("gap",), ("margin", "gap"))
    ],
    "dense": [(("nearness",), hit) for hit in (("gap",), ("margin", "gap"))],
    "lexical": [(("coverage",), hit) for hit in (("gap",), ("margin", "gap"))],
}
"""By kind of search: which signals count, of the question and of the hit."""
LABELS = (50, 100)  # questions that adjust a map
DRAWS = 10
REMOVED = "answers removed"
_RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class Found:
    """What one collection's search found of (Q) questions. source: the collection that asks, or REMOVED.

    signals: kind of search → (Q, 3) nearness, coverage, margin. gaps, answers: kind → (Q, HITS), NaN where there are
    fewer hits. raw: name → (Q,) what else could tell: the first hit's fused score, cosine and BM25 score.
    """

    name: str
    source: np.ndarray
    signals: Mapping[str, np.ndarray]
    gaps: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
    raw: Mapping[str, np.ndarray]

    @property
    def own(self) -> np.ndarray:
        """(Q,) its own questions."""
        own: np.ndarray = self.source == self.name
        return own

    @property
    def others(self) -> np.ndarray:
        """(Q,) other collections'."""
        others: np.ndarray = ~self.own & (self.source != REMOVED)
        return others

    def save(self, file: Path) -> None:
        arrays = {"source": self.source, **{f"raw {name}": values for name, values in self.raw.items()}}
        for part in ("signals", "gaps", "answers"):
            arrays |= {f"{part} {kind}": values for kind, values in getattr(self, part).items()}
        np.savez(file, **arrays)

    @classmethod
    def load(cls, file: Path) -> Found:
        with np.load(file, allow_pickle=False) as arrays:
            parts = {
                part: {name.partition(" ")[2]: arrays[name] for name in arrays.files if name.startswith(f"{part} ")}
                for part in ("signals", "gaps", "answers", "raw")
            }
            return cls(file.name.partition(".")[0], arrays["source"], **parts)


class _Without:
    """A dense side without some passages. Each search goes so much deeper that none of the others is missed."""

    scale = 1.0

    def __init__(self, plain: Dense, gone: set[str]) -> None:
        self.plain, self.gone = plain, gone

    def search(self, vectors: Floats, k: int, filter: Any = None) -> list[Any]:
        found = []
        for ids, scores in self.plain.search(vectors, k + len(self.gone), filter):
            kept = [at for at, id in enumerate(ids) if id not in self.gone][:k]
            found.append(([ids[at] for at in kept], scores[kept]))
        return found

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        return self.plain.scores(vector, ids)

    def vectors(self, ids: Sequence[str]) -> Floats:
        return self.plain.vectors(ids)


def thinned(asked: Mapping[str, str]) -> list[int]:
    """Which of a collection's questions are asked."""
    return [int(at) for at in np.linspace(0, len(asked) - 1, min(len(asked), MOST)).round()]


def searched(
    collection: Collection, kept: Cached, asking: Mapping[str, tuple[list[str], Floats]], encoder: Encoder
) -> Found:
    """Search one collection for everybody's questions. asking: collection → its texts and vectors."""
    documents = read_documents([collection.corpus]).documents
    chunks = chunk_documents(documents, ChunkConfig(), encoder.count_tokens, encoder.passage_room)
    if len(chunks) != len(kept.passages):
        raise SystemExit(f"{collection.name}: its vectors are of another cut. Empty the folder and run again.")
    headings, texts = lexical_parts(chunks)
    ids = [chunk.id for chunk in chunks]
    stopwords = stopwords_for(languages_of([chunk.passage for chunk in chunks]))
    lexical = LexicalIndex.build(ids, texts, headings=headings, stopwords=stopwords)
    searcher = Searcher(exact_index(ids, kept.passages), lexical, kept.background, Fusion(weight=kept.weight(SHIPPED)))
    gains = kept.gains[thinned(collection.asked("test"))][:, kept.owner] > 0  # (Q, N)
    rows = _Rows()
    for name, (asked, vectors) in asking.items():
        answering = gains if name == collection.name else np.zeros((len(asked), len(ids)), dtype=np.bool_)
        rows.add(searcher, name, asked, vectors, answering)
    for query, vector, answers in zip(*asking[collection.name], gains, strict=True):
        without = _Without(searcher.plain, {ids[at] for at in np.flatnonzero(answers)})
        rows.add(
            searcher, REMOVED, [query], vector[None], np.zeros_like(answers)[None], dense=without, allowed=~answers
        )
    return rows.found(collection.name)


class _Rows:
    """Searches as rows of a `Found`."""

    def __init__(self) -> None:
        self.source: list[str] = []
        self.values: dict[tuple[str, str], list[Any]] = {}

    def add(
        self,
        searcher: Searcher,
        source: str,
        asked: list[str],
        vectors: Floats,
        answering: np.ndarray,
        *,
        dense: Dense | None = None,
        allowed: np.ndarray | None = None,
    ) -> None:
        self.source += [source] * len(asked)
        means, deviations = searcher.background.of_scores(vectors)
        lexical = zip(
            *searcher.lexical.search_with_moments(asked, LOOKED_AT, allowed),
            searcher.lexical.masses(asked),
            strict=True,
        )
        for row, (found, near, words) in enumerate(
            zip(
                searcher.candidates(asked, vectors, dense=dense, allowed=allowed),
                (dense or searcher.plain).search(vectors, LOOKED_AT),
                lexical,
                strict=True,
            )
        ):
            scores = found.fused(searcher.fusion)
            order = np.argsort(-scores, kind="stable")
            self._add("hybrid", Signals.of_hybrid(found, order, scores), found.positions[order], answering[row])
            ids, cosines = near
            nearness = searcher.background.nearness(float(cosines[0]))
            signals = Signals.of_dense(cosines, means[row], deviations[row], nearness)
            self._add("dense", signals, searcher.positions(ids), answering[row])
            (ids, bm25), *rest = words
            signals = Signals.of_lexical(bm25, *rest) if ids else Signals(0.0, 0.0, 0.0, np.zeros(0, np.float32))
            self._add("lexical", signals, searcher.positions(ids), answering[row])
            raw = (scores[order[0]], cosines[0], bm25[0] if ids else 0.0)
            for name, value in zip(("fused", "cosine", "BM25"), raw, strict=True):
                self.values.setdefault(("raw", name), []).append(float(value))

    def _add(self, kind: str, signals: Signals, positions: Any, answering: np.ndarray) -> None:
        scores = np.asarray(signals.scores[:HITS], np.float64)
        gaps, answers = np.full(HITS, np.nan), np.full(HITS, np.nan)
        if len(scores):
            gaps[: len(scores)], answers[: len(scores)] = scores[0] - scores, answering[positions[:HITS]]
        row = {"signals": (signals.nearness, signals.coverage, signals.margin), "gaps": gaps, "answers": answers}
        for part, value in row.items():
            self.values.setdefault((part, kind), []).append(value)

    def found(self, name: str) -> Found:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for (part, kind), values in self.values.items():
            parts.setdefault(part, {})[kind] = np.array(values)
        return Found(name, np.array(self.source), **parts)


# Fitting


def logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray, signs: Sequence[int]) -> np.ndarray:
    """(1 + F,) constant and weights under which y is likeliest, a little drawn to 0 on standardised signals. signs: 1 =
    a weight is not below 0, -1 = not above."""
    mean, deviation = np.average(x, axis=0, weights=weights), x.std(axis=0) + 1e-9
    z, weights = (x - mean) / deviation, weights / weights.sum()

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        made = z @ at[1:] + at[0]
        off = weights * (probability(made) - y)
        value = weights @ (np.logaddexp(0, made) - y * made) + _RIDGE * (at[1:] @ at[1:])
        return float(value), np.concatenate([[off.sum()], z.T @ off + 2 * _RIDGE * at[1:]])

    bounds = [(None, None), *((0, None) if sign > 0 else (None, 0) for sign in signs)]
    found = minimize(loss, np.zeros(1 + x.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x
    slopes = found[1:] / deviation
    return np.concatenate([[found[0] - slopes @ mean], slopes])


_COLUMNS = {"nearness": 0, "coverage": 1, "margin": 2}


def fitted(kind: str, option: tuple[tuple[str, ...], tuple[str, ...]], collections: Sequence[Found]) -> Weights:
    """The weights of one kind of search by some collections, each counting alike, as do its own questions and those of
    others."""
    here, hit = option
    columns = [_COLUMNS[name] for name in here]
    parts = [(one, *side) for one in collections for side in ((one.own, 1.0), (one.others, 0.0))]
    x = np.concatenate([one.signals[kind][rows][:, columns] for one, rows, _ in parts])
    y = np.concatenate([np.full(rows.sum(), is_here) for _, rows, is_here in parts])
    weights = np.concatenate([np.full(rows.sum(), 1 / rows.sum()) for _, rows, _ in parts])
    first = dict(zip(("here", *here), logistic(x, y, weights, [1] * len(here)).tolist(), strict=True))

    blocks = []
    for one in collections:
        gaps = one.gaps[kind][one.own]
        there = ~np.isnan(gaps)
        margins = np.broadcast_to(one.signals[kind][one.own][:, 2:], gaps.shape)
        chosen = [{"gap": gaps, "margin": margins}[name][there] for name in hit]
        blocks.append(
            (np.stack(chosen, axis=1), one.answers[kind][one.own][there], np.full(there.sum(), 1 / there.sum()))
        )
    x, y, weights = (np.concatenate([block[at] for block in blocks]) for at in range(3))
    signs = [-1 if name == "gap" else 1 for name in hit]
    second = dict(zip(("hit", *hit), logistic(x, y, weights, signs).tolist(), strict=True))
    return Weights(**{"nearness": 0.0, "coverage": 0.0, "margin": 0.0, **first, **second})


def judged(kind: str, weights: Weights, one: Found, rows: np.ndarray) -> JudgedHits:
    """Some of a collection's questions under a map."""
    nearness, coverage, margin = one.signals[kind][rows].T
    here = probability(weights.here + weights.nearness * nearness + weights.coverage * coverage)
    hits = weights.hit + weights.margin * margin[:, None] + weights.gap * one.gaps[kind][rows]
    return JudgedHits(here, hits, one.answers[kind][rows])


def loss_of(kind: str, weights: Weights, one: Found) -> float:
    """Mean log loss of its own questions and of others', half each."""
    parts = [judged(kind, weights, one, rows) for rows in (one.own, one.others)]
    return float(np.mean([np.mean(log_loss(part.sure(), part.answers)) for part in parts]))


def choose(kind: str, collections: Sequence[Found]) -> tuple[int, list[float]]:
    """Which option foretells collections best that it was not fitted to, and each option's mean log loss."""
    losses = []
    for option in OPTIONS[kind]:
        rest = [[other for other in collections if other is not one] for one in collections]
        each = [loss_of(kind, fitted(kind, option, others), one) for one, others in zip(collections, rest, strict=True)]
        losses.append(float(np.mean(each)))
    return int(np.argmin(losses)), losses


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The chance that one of the first is above one of the second; ties count half."""
    both = rankdata(np.concatenate([right, wrong]))
    return float((both[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def first_of(hits: JudgedHits) -> np.ndarray:
    """(Q,) the confidence of the first hit, 0 where nothing was found."""
    return np.nan_to_num(hits.sure()[:, 0])


def error_of(hits: Sequence[JudgedHits], slope: float = 1.0, shift: float = 0.0) -> float:
    sure = np.concatenate([part.sure(slope, shift) for part in hits])
    return calibration_error(sure, np.concatenate([part.answers for part in hits]))


def figures(one: Found, maps: Mapping[str, Weights]) -> dict[str, Any]:
    """One collection's row, by maps that were not fitted to it."""
    hybrid = maps["hybrid"]
    own, others, removed = (
        judged("hybrid", hybrid, one, rows) for rows in (one.own, one.others, one.source == REMOVED)
    )
    asking = [name for name in dict.fromkeys(one.source.tolist()) if name not in (one.name, REMOVED)]
    each = {name: auc(first_of(own), first_of(judged("hybrid", hybrid, one, one.source == name))) for name in asking}
    row: dict[str, Any] = {"questions": int(one.own.sum()), "others": int(one.others.sum())}
    row["AUC"] = {"confidence": auc(first_of(own), first_of(others))}
    row["AUC"] |= {name: auc(values[one.own], values[one.others]) for name, values in one.raw.items()}
    for kind in ("dense", "lexical"):
        sides = [first_of(judged(kind, maps[kind], one, rows)) for rows in (one.own, one.others)]
        row["AUC"][f"confidence, {kind}"] = auc(*sides)
    row["least AUC"] = min(each.values())
    row["least AUC against"] = min(each, key=lambda name: each[name])
    row["answers removed"] = {
        "confidence": auc(first_of(own), first_of(removed)),
        "fused": auc(one.raw["fused"][one.own], one.raw["fused"][one.source == REMOVED]),
    }
    row["first hit"] = {
        "answers": float(np.nanmean(own.answers[:, 0])),
        "confidence": float(first_of(own).mean()),
        "confidence, others": float(first_of(others).mean()),
    }
    rng = np.random.default_rng(13)

    def beside(count: int) -> JudgedHits:
        return others.part(rng.permutation(len(others.here))[:count])

    row["ECE"] = {"own": error_of([own]), "own and others": error_of([own, beside(len(own.here))])}
    for size in LABELS:
        if size > len(own.here) / 2:
            continue
        made = []
        for _ in range(DRAWS):
            drawn = rng.permutation(len(own.here))
            learnt, rest = fit_platt(own.part(drawn[:size]))[:2], own.part(drawn[size:])
            before = [error_of([rest]), error_of([rest, beside(len(rest.here))])]
            after = [error_of([rest], *learnt), error_of([rest, beside(len(rest.here))], *learnt)]
            losses = [np.mean(log_loss(rest.sure(*way), rest.answers)) for way in ((1.0, 0.0), learnt)]
            made.append([*before, *after, *losses])
        names = ("own before", "both before", "own", "own and others", "log loss before", "log loss")
        row[f"ECE, {size} labels"] = dict(zip(names, np.mean(made, axis=0).tolist(), strict=True))
    return row


def maps_without(one: Found, collections: Sequence[Found]) -> tuple[dict[str, Any], dict[str, Weights]]:
    """By kind of search: which signals, and the weights, that the other collections choose."""
    others = [other for other in collections if other.name != one.name]
    options = {kind: OPTIONS[kind][choose(kind, others)[0]] for kind in KINDS}
    return options, {kind: fitted(kind, option, others) for kind, option in options.items()}


def study(collections: Sequence[Found], also: Sequence[Found] = ()) -> dict[str, Any]:
    """Every collection by maps of the others, and the maps of all but those that are only judged."""
    rows = {}
    for one in (*collections, *also):
        options, maps = maps_without(one, collections)
        rows[one.name] = {**figures(one, maps), "options": options}
    chosen = {kind: choose(kind, collections) for kind in KINDS}
    return {
        "collections": rows,
        "options": {
            kind: {str(option): loss for option, loss in zip(OPTIONS[kind], losses, strict=True)}
            for kind, (_, losses) in chosen.items()
        },
        "maps": {kind: asdict(fitted(kind, OPTIONS[kind][at], collections)) for kind, (at, _) in chosen.items()},
    }


def shown(result: Mapping[str, Any]) -> str:
    """The table, in Markdown."""
    head = (
        "collection", "AUC", "fused score", "cosine", "BM25", "least AUC", "dense alone", "words alone", "ECE own",
        "with others", *(f"ECE own, {size} labels" for size in LABELS), "answers removed", "fused score",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    table = []
    for name, row in result["collections"].items():
        found, gone = row["AUC"], row["answers removed"]
        cells = [
            found["confidence"], found["fused"], found["cosine"], found["BM25"], row["least AUC"],
            found["confidence, dense"], found["confidence, lexical"], row["ECE"]["own"], row["ECE"]["own and others"],
            *(row.get(f"ECE, {size} labels", {}).get("own", np.nan) for size in LABELS),
            gone["confidence"], gone["fused"],
        ]  # fmt: skip
        table.append(cells)
        lines.append(f"| {name} | " + " | ".join("–" if np.isnan(cell) else f"{cell:.3f}" for cell in cells) + " |")
    known = [[cell for cell in column if not np.isnan(cell)] for column in zip(*table, strict=True)]
    lines.append("| mean | " + " | ".join(f"{np.mean(cells):.3f}" if cells else "–" for cells in known) + " |")
    for kind, weights in result["maps"].items():
        lines.append(f"{kind}: " + ", ".join(f"{name} {value:.3f}" for name, value in weights.items()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="where vectors and searches are kept")
    parser.add_argument("--collections", default=",".join(COLLECTIONS))
    parser.add_argument("--also", default="", help="collections that are judged and have no say in any map")
    parser.add_argument("--write", type=Path, help="write the figures here, too")
    parser.add_argument("--small", action="store_true", help="small corpora about one thing, and nothing else")
    arguments = parser.parse_args()
    names = arguments.collections.split(",")
    also = [name for name in arguments.also.split(",") if name]
    check_data(parser, arguments.data, [*names, *also])
    if len(names) < 3:
        parser.error("the signals are chosen by collections that are left out: name at least three")
    if arguments.small:
        print(shown_small(small(arguments.data, [*names, *also])))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ragadapt-confidence-"))
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "about": {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
            "base": "all-MiniLM-L6-v2",
            "seed": 13,
        },
        **study(*gathered(arguments.data, names, also, folder)),
    }
    text = json.dumps(result, indent=1)
    (folder / "confidence.json").write_text(text, encoding="utf-8")
    if arguments.write is not None:
        arguments.write.write_text(text + "\n", encoding="utf-8")
    print(shown(result))
    print(f"written: {folder / 'confidence.json'}")


SMALL = (5, 10, 20, 50, 200)  # passages
BESIDE = (0, 5, 10, 20, 50, 100, 300)  # passages about different things that count beside them


@dataclass(frozen=True)
class Small:
    """What a search of a small corpus found: its best cosine and coverage, and the mean cosine of its passages."""

    collection: str
    passages: int
    answered: bool
    cosine: float
    floor: float
    coverage: float


def small(data: Path, names: Sequence[str], most: int = 40) -> tuple[float, list[Small]]:
    """(what the encoder gives texts about different things, the searches) of up to `most` questions a collection."""
    encoder, chance = Encoder.load(EncoderConfig(model="offline")), np.random.default_rng(13)
    collections = {name: load(data, name) for name in names}
    asked: dict[str, list[tuple[str, str, np.ndarray]]] = {}  # question, the passage that answers it, its vector
    for name, one in collections.items():
        known = set(one.ids)
        pairs = [
            (one.queries[query], answer)
            for query, grades in one.qrels["test"].items()
            for answer in [max(grades, key=grades.__getitem__)]
            if grades[answer] > 0 and answer in known
        ]
        pairs = [pairs[at] for at in chance.permutation(len(pairs))[:most]]
        rows = encoder.encode_queries([text for text, _ in pairs])
        asked[name] = [(*pair, row) for pair, row in zip(pairs, rows, strict=True)]
    found = []
    for name, one in collections.items():
        answers = {answer for _, answer, _ in asked[name]}
        rest = [at for at, id in enumerate(one.ids) if id not in answers]
        kept = [at for at, id in enumerate(one.ids) if id in answers]
        kept += [rest[at] for at in chance.permutation(len(rest))[:1200]]
        ids, texts = [one.ids[at] for at in kept], [one.texts[at] for at in kept]
        vectors = encoder.encode_passages(texts)
        others = [other for other in names if other != name]
        for size in SMALL:
            for number, (text, answer, row) in enumerate(asked[name]):
                near = np.argsort(-(vectors @ vectors[ids.index(answer)]))[:size]
                inside = np.ascontiguousarray(vectors[near])
                lexical = LexicalIndex.build([ids[at] for at in near], [texts[at] for at in near])
                background = Background.of(inside)
                searcher = Searcher(exact_index(lexical.ids(), inside), lexical, background, Fusion())
                theirs = asked[others[number % len(others)]]
                foreign, _, far = theirs[number % len(theirs)]
                floor = (size * float(background.mean @ background.mean) - 1) / (size - 1)
                for here, query, vector in ((True, text, row), (False, foreign, far)):
                    [candidates] = searcher.candidates([query], vector[None])
                    assert candidates.coverage is not None
                    cosine = float((inside @ vector).max())
                    found.append(Small(name, size, here, cosine, floor, candidates.coverage))
    return encoder.unrelated, found


def shown_small(measured: tuple[float, list[Small]]) -> str:
    """Per size: log loss of P(answered here) for all and for the worst collection, and its mean for either kind."""
    unrelated, found = measured
    weights = FIXED.hybrid

    def sure(one: Small, beside: int) -> float:
        floor = (one.passages * one.floor + beside * unrelated) / (one.passages + beside)
        nearness = (one.cosine - floor) / (1 - floor)
        return float(probability(weights.here + weights.nearness * nearness + weights.coverage * one.coverage))

    lines = ["| passages | beside | log loss | of the worst collection | answered | not |", "|---|---|---|---|---|---|"]
    for size in SMALL:
        rows = [one for one in found if one.passages == size]
        for beside in BESIDE:
            p = np.array([sure(one, beside) for one in rows])
            y = np.array([one.answered for one in rows])
            loss = -np.log(np.clip(np.where(y, p, 1 - p), 1e-6, 1))
            worst = max(loss[[one.collection == name for one in rows]].mean() for name in {r.collection for r in rows})
            lines.append(
                f"| {size} | {beside} | {loss.mean():.3f} | {worst:.3f} | {p[y].mean():.3f} | {p[~y].mean():.3f} |"
            )
    return "\n".join(lines)


def gathered(data: Path, names: Sequence[str], also: Sequence[str], folder: Path) -> tuple[list[Found], list[Found]]:
    """What was found in either kind of collection: encode and search whatever was not yet."""
    by = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
    files = {name: folder / f"{name}.found-by-{by}.npz" for name in (*names, *also)}
    if not all(file.is_file() for file in files.values()):
        encoder = Encoder.load(EncoderConfig(model="offline"))
        collections = {name: load(data, name) for name in files}
        for collection in collections.values():
            cache(collection, folder, encoder)
        kept = {name: Cached(folder, name) for name in files}
        asking = {}
        for name, collection in collections.items():
            asked = collection.asked("test")
            rows = thinned(asked)
            asking[name] = [list(asked.values())[at] for at in rows], kept[name].queries[rows]
        for name, file in files.items():
            if not file.is_file():
                started = time.perf_counter()
                theirs = {other: asked for other, asked in asking.items() if other in names or other == name}
                searched(collections[name], kept[name], theirs, encoder).save(file)
                print(f"{name}: searched in {time.perf_counter() - started:.0f} s", flush=True)
    return [Found.load(files[name]) for name in names], [Found.load(files[name]) for name in also]


if __name__ == "__main__":
    main()

"""What feedback is worth, and what it costs: PEFA beside its peers on collections with human judgements.

    python examples/benchmarks/pefa.py --data DATA [--parts quality,curve,few,folder,poison,latency,bulk,overhead]

The train split of a collection is the feedback, its test split judges; nothing is chosen by looking at the test split.
Every comparison is made in one run. Results go to FOLDER/pefa.json as they come, tables to stdout. NUDGE needs
`pip install nudge-ft`; without it its rows say "not measured". Kills and concurrency are tests:
RAGADAPT_KILLS=100 RAGADAPT_OPERATIONS=10000 pytest tests/test_pefa_crash.py tests/test_refresh.py -m slow
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from beir import Collection, check_data, load, run_of
from charts import write_chart

from ragadapt import Encoder, EncoderConfig, FitConfig, Retriever, fit
from ragadapt.config import AdapterConfig, PefaConfig, TrainingConfig
from ragadapt.evaluation import Evaluation, evaluate, paired_bootstrap
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.index import VectorIndex, exact_index, open_index
from ragadapt.lexical import LexicalIndex
from ragadapt.pefa import Feedback, Pefa
from ragadapt.pefa.tuning import LAMBDAS, Tuned, tune
from ragadapt.report import Curve, Report, write_report
from ragadapt.report.charts import Series, line_chart
from ragadapt.search.fusion import Background, Fusion, learn_weight
from ragadapt.search.searcher import Searcher
from ragadapt.values import Evidence, Query

COLLECTIONS = ("scifact", "stackfaq")


@dataclass(frozen=True)
class Vectors:
    """Passages P (n, d), queries by id."""

    passages: np.ndarray
    queries: dict[str, np.ndarray]


class Bench:
    """Where results go; vectors and trained encoders are made once."""

    def __init__(self, data: Path, folder: Path, seed: int, collections: Sequence[str]) -> None:
        self.data = data
        self.folder = folder
        self.seed = seed
        self.collections = collections
        self.rows: list[dict[str, Any]] = []
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = Encoder.load(EncoderConfig(model="offline"))
        return self._encoder

    def vectors(self, collection: Collection, encoder: Encoder | None = None, name: str = "base") -> Vectors:
        path = self.folder / f"{collection.name}-{name}.npz"
        if not path.exists():
            model = encoder or self.encoder
            ids = list(collection.queries)
            np.savez(
                path,
                passages=model.encode_passages(collection.texts),
                queries=model.encode_queries([collection.queries[id] for id in ids]),
            )
        with np.load(path) as arrays:
            return Vectors(arrays["passages"], dict(zip(collection.queries, arrays["queries"], strict=True)))

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
            "base": "all-MiniLM-L6-v2",
            "seed": self.seed,
        }
        text = json.dumps({"about": about, "rows": self.rows}, indent=2, default=float)
        (self.folder / "pefa.json").write_text(text, encoding="utf-8")
        print(json.dumps(row, default=float), flush=True)


class Task:
    """One collection with its feedback: dense and hybrid search, judged on the test split."""

    def __init__(self, collection: Collection, vectors: Vectors, lexical: LexicalIndex | None = None) -> None:
        self.collection = collection
        self.vectors = vectors
        self.index = exact_index(collection.ids, vectors.passages)
        self.lexical = lexical or LexicalIndex.build(collection.ids, collection.texts)
        self.searcher = Searcher(self.index, self.lexical, Background.of(vectors.passages), Fusion())
        self.asked = collection.asked("test")
        self.test = np.stack([vectors.queries[id] for id in self.asked])
        self._by_text = {collection.queries[id]: vector for id, vector in vectors.queries.items()}

    def feedback(self, ids: Sequence[str] | None = None) -> list[Feedback]:
        """One feedback for each judgement of the train split, or of some of its queries."""
        qrels = self.collection.qrels["train"]
        chosen = list(qrels) if ids is None else ids
        return [Feedback(self.collection.queries[id], document) for id in chosen for document in qrels[id]]

    def pefa(self, feedback: Sequence[Feedback], config: PefaConfig = PefaConfig()) -> Pefa:
        pefa = Pefa(self.index, self.embed, fingerprint="base", config=config)
        pefa.add_many(feedback)
        return pefa

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._by_text[text] for text in texts])

    def dense(self, pefa: Pefa | None = None, **options: Any) -> Evaluation:
        found = pefa.search(self.test, 100, **options) if pefa else self.index.search(self.test, 100)
        run = {
            id: dict(zip(ids, scores.tolist(), strict=True))
            for id, (ids, scores) in zip(self.asked, found, strict=True)
        }
        return evaluate(run, self.collection.qrels["test"])

    def hybrid(self, pefa: Pefa | None = None, weight: float | None = None, **options: Any) -> Evaluation:
        fusion = Fusion() if weight is None else Fusion(weight=weight)
        dense = pefa.dense(**options) if pefa else None
        ranked = self.searcher.rank(list(self.asked.values()), self.test, 100, fusion=fusion, dense=dense)
        run = {
            id: dict(zip(one.ids, one.scores.tolist(), strict=True)) for id, one in zip(self.asked, ranked, strict=True)
        }
        return evaluate(run, self.collection.qrels["test"])

    def scored(self, queries: np.ndarray, passages: np.ndarray) -> Evaluation:
        """Dense search by other vectors."""
        run = run_of(queries @ passages.T, list(self.asked), self.collection.ids, 100)
        return evaluate(run, self.collection.qrels["test"])


def quality(bench: Bench) -> None:
    """One table: plain, XS, XL, NUDGE, a linear adapter, LoRA, LoRA with PEFA; test nDCG@10, dense and hybrid."""
    for name in bench.collections:
        collection = load(bench.data, name)
        task = Task(collection, bench.vectors(collection))
        plain, plain_hybrid = task.dense(), task.hybrid()

        row = partial(_row, bench, name, plain, plain_hybrid)
        row("plain", plain, plain_hybrid)
        started = time.perf_counter()
        pefa = task.pefa(task.feedback())
        seconds = time.perf_counter() - started
        for lam in LAMBDAS:
            row(f"PEFA-XS λ={lam}", task.dense(pefa, lam=lam), task.hybrid(pefa, lam=lam), seconds=seconds)
        for methods in (("xs",), ("xl",), ("xs", "xl")):
            pefa.tune_to({"method": methods[0], "lam": 0.5, "k": 16, "fusion_weight": None})  # what tuning starts from
            started = time.perf_counter()
            tuned = tune(pefa, task.searcher, methods=methods, seed=bench.seed)
            tuning = time.perf_counter() - started
            pefa.tune_to(tuned.values)
            row(
                f"PEFA tuned ({' or '.join(methods).upper()})",
                task.dense(pefa),
                task.hybrid(pefa, tuned.values.get("fusion_weight")),
                settings=tuned.values,
                cross_validated=[tuned.gain.low, tuned.gain.delta, tuned.gain.high] if tuned.gain else None,
                seconds=tuning,
            )
            if methods == ("xs", "xl"):
                _chart(bench, name, tuned)
        nudge(task, row)
        linear(task, row, bench.seed)
        lora(bench, collection, row)


def _row(
    bench: Bench,
    collection: str,
    plain: Evaluation,
    plain_hybrid: Evaluation,
    method: str,
    dense: Evaluation,
    hybrid: Evaluation | None,
    **more: Any,
) -> None:
    """One method's row: dense search, and hybrid search where its vectors allow it, each against the plain one."""
    bench.add(
        part="quality",
        collection=collection,
        method=method,
        dense=dense.mean["nDCG@10"],
        over_plain=_gain(dense, plain, bench.seed),
        hybrid=hybrid.mean["nDCG@10"] if hybrid else None,
        hybrid_over_plain=_gain(hybrid, plain_hybrid, bench.seed) if hybrid else None,
        **more,
    )


def _gain(one: Evaluation, other: Evaluation, seed: int) -> list[float]:
    """low, mean, high of the paired difference."""
    ids = list(other.per_query["nDCG@10"])
    found = paired_bootstrap(
        [one.per_query["nDCG@10"][id] for id in ids], [other.per_query["nDCG@10"][id] for id in ids], seed=seed
    )
    return [found.low, found.delta, found.high]


def _chart(bench: Bench, name: str, tuned: Tuned) -> None:
    curve = Curve.through(
        tuned.curve, title=f"λ on {name}, cross-validated", x_label="λ", chosen=tuned.values.get("lam", 0.5)
    )
    write_report(bench.folder / f"report-{name}", Report(title=f"PEFA on {name}", curves=(curve,)))


def nudge(task: Task, row: Callable[..., None]) -> None:
    """NUDGE moves passage vectors towards their queries; a fifth of the feedback is its validation set."""
    try:
        from nudge import NUDGEM, NUDGEN
    except ImportError:
        for variant in ("NUDGE-M", "NUDGE-N"):
            print(f"{variant}: not measured (pip install nudge-ft)")
        return
    qrels = task.collection.qrels["train"]
    position = {id: at for at, id in enumerate(task.collection.ids)}
    ids = list(qrels)
    np.random.default_rng(0).shuffle(ids)
    cut = len(ids) // 5
    sets = [
        {
            "q_embs": np.stack([task.vectors.queries[id] for id in part]),
            "q_ans_indx": [[position[document] for document in qrels[id]] for id in part],
        }
        for part in (ids[cut:], ids[:cut])
    ]
    for variant, method in (("NUDGE-M", NUDGEM), ("NUDGE-N", NUDGEN)):
        started = time.perf_counter()
        moved = method().finetune_embeddings(task.vectors.passages.copy(), *sets)
        row(variant, task.scored(task.test, np.asarray(moved)), None, seconds=time.perf_counter() - started)


def linear(task: Task, row: Callable[..., None], seed: int) -> None:
    """A matrix on the query side, trained as LlamaIndex's EmbeddingAdapterFinetuneEngine does by default:
    identity at the start, in-batch negatives, scale 20, Adam with learning rate .01, batches of 10, 4 epochs."""
    import torch

    torch.manual_seed(seed)
    pairs = [(one.query, one.chunk_id) for one in task.feedback()]
    position = {id: at for at, id in enumerate(task.collection.ids)}
    queries = torch.from_numpy(task.embed([query for query, _ in pairs]))
    passages = torch.from_numpy(task.vectors.passages[[position[id] for _, id in pairs]])
    layer = torch.nn.Linear(queries.shape[1], queries.shape[1], bias=False)
    layer.weight.data.copy_(torch.eye(queries.shape[1]))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    started = time.perf_counter()
    for _ in range(4):
        for batch in torch.randperm(len(pairs)).split(10):
            moved = torch.nn.functional.normalize(layer(queries[batch]), dim=1)
            scores = 20 * moved @ passages[batch].T
            loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(batch)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        test = torch.nn.functional.normalize(layer(torch.from_numpy(task.test)), dim=1).numpy()
    seconds = time.perf_counter() - started
    row("linear query adapter", task.scored(test, task.vectors.passages), None, seconds=seconds)


def lora(bench: Bench, collection: Collection, row: Callable[..., None]) -> None:
    """LoRA with the same labels, and PEFA on top of it."""
    from ragadapt.training import Example, train

    base = Task(collection, bench.vectors(collection))
    texts = dict(zip(collection.ids, collection.texts, strict=True))
    examples = [Example(one.query, texts[one.chunk_id]) for one in base.feedback()]
    name, seconds = f"lora-{bench.seed}", 0.0
    if not (bench.folder / f"{collection.name}-{name}.npz").exists():
        started = time.perf_counter()
        trained = train(bench.encoder, examples, None, AdapterConfig(), TrainingConfig(), seed=bench.seed)
        seconds = time.perf_counter() - started
        bench.vectors(collection, trained.encoder.merged(), name)
    task = Task(collection, bench.vectors(collection, name=name))
    row("LoRA", task.dense(), task.hybrid(), seconds=seconds)
    pefa = task.pefa(task.feedback())
    row("LoRA + PEFA-XS λ=0.3", task.dense(pefa, lam=0.3), task.hybrid(pefa, lam=0.3))
    tuned = tune(pefa, task.searcher, seed=bench.seed)
    pefa.tune_to(tuned.values)
    weight = tuned.values.get("fusion_weight")
    row("LoRA + PEFA tuned", task.dense(pefa), task.hybrid(pefa, weight), settings=tuned.values)


def curve(bench: Bench, shares: Sequence[float] = (0.01, 0.05, 0.1, 0.25, 1.0), draws: int = 5) -> None:
    """Quality over how much feedback there is, tuned on that feedback alone; a chart for each collection."""
    for name in bench.collections:
        collection = load(bench.data, name)
        task = Task(collection, bench.vectors(collection))
        ids = sorted(collection.qrels["train"])
        points: list[tuple[float, float]] = []
        for share in shares:
            values: dict[str, list[float]] = {"XS λ=0.5": [], "tuned": [], "tuned hybrid": []}
            for draw in range(draws if share < 1 else 1):
                rng = np.random.default_rng([bench.seed, draw])
                chosen = [ids[at] for at in rng.permutation(len(ids))[: max(1, round(share * len(ids)))]]
                with task.pefa(task.feedback(chosen)) as pefa:
                    values["XS λ=0.5"].append(task.dense(pefa, lam=0.5).mean["nDCG@10"])
                    tuned = tune(pefa, task.searcher, seed=bench.seed)
                    pefa.tune_to(tuned.values)
                    values["tuned"].append(task.dense(pefa).mean["nDCG@10"])
                    weight = tuned.values.get("fusion_weight")
                    values["tuned hybrid"].append(task.hybrid(pefa, weight).mean["nDCG@10"])
            points.append((100 * share, float(np.mean(values["tuned hybrid"]))))
            bench.add(
                part="curve",
                collection=name,
                share=share,
                queries=round(share * len(ids)),
                plain=task.dense().mean["nDCG@10"],
                plain_hybrid=task.hybrid().mean["nDCG@10"],
                **{f"{key}, mean": float(np.mean(found)) for key, found in values.items()},
                **{f"{key}, draws": found for key, found in values.items()},
            )
        made = Curve.through(points, title=f"Feedback on {name}", x_label="% of the feedback",
                             levels={"without": task.hybrid().mean["nDCG@10"]})  # fmt: skip
        write_report(bench.folder / f"curve-{name}", Report(title=f"Few labels on {name}", curves=(made,)))


def few(bench: Bench, sizes: Sequence[int] = (20, 50, 100), draws: int = 5) -> None:
    """What an hour of labelling gives: the fusion weight, LoRA, PEFA and all of them, from so many labelled questions.

    Nothing here is gated: the table says what each would do. LoRA trains on all the labels, three epochs; its search
    keeps the weight, and its PEFA the settings, that were learnt before training, for after it the same questions
    flatter the dense side.
    """
    from ragadapt.training import Example, train

    for name in bench.collections:
        collection = load(bench.data, name)
        base = Task(collection, bench.vectors(collection))
        texts = dict(zip(collection.ids, collection.texts, strict=True))
        ids = sorted(collection.qrels["train"])
        plain = base.hybrid()
        for size in sizes:
            found: dict[str, list[Evaluation]] = {key: [] for key in ("fusion", "PEFA", "LoRA", "all")}
            for draw in range(draws):
                rng = np.random.default_rng([bench.seed, size, draw])
                chosen = [ids[at] for at in rng.permutation(len(ids))[:size]]
                feedback = base.feedback(chosen)
                weight = learnt_weight(base, chosen)
                found["fusion"].append(base.hybrid(weight=weight))
                with base.pefa(feedback) as pefa:
                    tuned = tune(pefa, base.searcher, seed=bench.seed)
                    pefa.tune_to(tuned.values)
                    found["PEFA"].append(base.hybrid(pefa, tuned.values.get("fusion_weight")))
                examples = [Example(one.query, texts[one.chunk_id]) for one in feedback]
                trained = train(bench.encoder, examples, None, AdapterConfig(), TrainingConfig(), seed=draw)
                encoder, label = trained.encoder.merged(), f"few-{size}-{draw}"
                adapted = Task(collection, bench.vectors(collection, encoder, label), base.lexical)
                (bench.folder / f"{name}-{label}.npz").unlink()
                found["LoRA"].append(adapted.hybrid(weight=weight))
                with adapted.pefa(feedback) as pefa:
                    pefa.tune_to(tuned.values)
                    found["all"].append(adapted.hybrid(pefa, tuned.values.get("fusion_weight")))
            for key, evaluations in found.items():
                values = [evaluation.mean["nDCG@10"] for evaluation in evaluations]
                pooled = [one for evaluation in evaluations for one in evaluation.per_query["nDCG@10"].values()]
                against = list(plain.per_query["nDCG@10"].values()) * len(evaluations)
                clusters = list(plain.per_query["nDCG@10"]) * len(evaluations)
                gain = paired_bootstrap(pooled, against, seed=bench.seed, clusters=clusters)
                bench.add(
                    part="few",
                    collection=name,
                    labels=size,
                    method=key,
                    plain=plain.mean["nDCG@10"],
                    mean=float(np.mean(values)),
                    draws=values,
                    over_plain=[gain.low, gain.delta, gain.high],
                )
        rows = [row for row in bench.rows if row["part"] == "few" and row["collection"] == name]
        draw_few(rows, bench.folder / f"few-{name}.svg")


def draw_few(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """nDCG@10 over the number of labels, a line for each method with the interval of its mean."""
    series = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        lows, highs = ([row["plain"] + row["over_plain"][end] for row in own] for end in (0, 2))
        series.append(Series(method, [row["labels"] for row in own], [row["mean"] for row in own], lows, highs))
    title = f"Few labels on {rows[0]['collection']}"
    levels = {"untuned": rows[0]["plain"]}
    write_chart(path, line_chart(series, title=title, x_label="labelled questions", y_label="nDCG@10", levels=levels))


def learnt_weight(task: Task, ids: Sequence[str]) -> float:
    """The dense side's share, learnt from these labelled questions as `fit` does."""
    collection = task.collection
    number_of = {id: at for at, id in enumerate(collection.ids)}
    judges = [
        JudgedQuery(
            Query(id, collection.queries[id], "label", Evidence.LABELLED),
            {number_of[document]: grade for document, grade in collection.qrels["train"][id].items()},
        )
        for id in ids
    ]
    texts = [item.query.text for item in judges]
    vectors = np.stack([task.vectors.queries[id] for id in ids])
    found = task.searcher.candidates(texts, vectors)
    return learn_weight(found, [item.ndcg for item in judges], start=Fusion()).chosen


def folder(bench: Bench) -> None:
    """As a user does it: fit without training, refresh with feedback that names documents, tune, measure."""
    from ragadapt.feedback import read_feedback, tune_feedback

    for name in bench.collections:
        collection = load(bench.data, name)
        target = bench.folder / f"retriever-{name}"
        config = FitConfig.build({"encoder": {"model": "offline"}, "adapter": {"method": "none"}, "seed": bench.seed})
        fit([collection.corpus], target, config)
        lines = bench.folder / f"clicks-{name}.jsonl"
        with lines.open("w", encoding="utf-8") as file:
            for id, documents in collection.qrels["train"].items():
                for document in documents:
                    line = {"query": collection.queries[id], "document_id": document}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        with Retriever.open(target) as retriever:
            qrels, asked = collection.qrels["test"], collection.asked("test")
            before = {mode: evaluate(retriever.run(asked, mode=mode), qrels) for mode in ("hybrid", "dense")}
            started = time.perf_counter()
            taken = read_feedback(retriever, lines)
            reading = time.perf_counter() - started
            started = time.perf_counter()
            tuned = tune_feedback(retriever, seed=bench.seed)
            tuning = time.perf_counter() - started
            after = {mode: evaluate(retriever.run(asked, mode=mode), qrels) for mode in ("hybrid", "dense")}
        bench.add(
            part="folder",
            collection=name,
            added=taken.added,
            unusable=len(taken.problems),
            settings=tuned.values,
            **{f"before {mode}": found.mean["nDCG@10"] for mode, found in before.items()},
            **{f"after {mode}": found.mean["nDCG@10"] for mode, found in after.items()},
            gain=_gain(after["hybrid"], before["hybrid"], bench.seed),
            read_seconds=reading,
            tune_seconds=tuning,
        )


def poison(bench: Bench, users: int = 1000, attackers: int = 10) -> None:
    """1 % of the users push one passage for every question asked; honest users gave the train split."""
    for name in bench.collections:
        collection = load(bench.data, name)
        task = Task(collection, bench.vectors(collection))
        rng = np.random.default_rng(bench.seed)
        honest = [
            Feedback(one.query, one.chunk_id, user=f"user {rng.integers(users - attackers)}") for one in task.feedback()
        ]
        questions = list(dict.fromkeys(one.query for one in honest))
        judged = Counter(document for found in collection.qrels["test"].values() for document in found)
        spam = min(collection.ids, key=lambda id: judged[id])  # as good as never the answer
        attack = [
            Feedback(question, spam, user=f"attacker {number}") for number in range(attackers) for question in questions
        ]
        for method in ("xs", "xl"):
            for cap, said in ((1e9, "no cap"), (1.0, "cap 1"), (0.2, "cap 0.2")):
                config = PefaConfig(method=method, lam=0.3, k=16, user_cap=cap)
                with task.pefa(honest, config) as pefa:
                    before = task.dense(pefa)
                    pefa.add_many(attack)
                    after = task.dense(pefa)
                    top = pefa.search(task.test, 10)
                bench.add(
                    part="poison",
                    collection=name,
                    method=method,
                    cap=said,
                    before=before.mean["nDCG@10"],
                    after=after.mean["nDCG@10"],
                    spam_first=float(np.mean([ids[0] == spam for ids, _ in top])),
                    spam_in_ten=float(np.mean([spam in ids for ids, _ in top])),
                )


# Time


def _million(count: int, dim: int, seed: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, 100_000):
        part = rng.standard_normal((min(100_000, count - start), dim), dtype=np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return [f"p{at:07d}" for at in range(count)], vectors


def _filled(kind: str, place: Path, ids: list[str], vectors: np.ndarray) -> VectorIndex:
    index = open_index(kind, place, dim=vectors.shape[1], fingerprint="random")
    for start in range(0, len(ids), 50_000):
        index.upsert(ids[start : start + 50_000], vectors[start : start + 50_000])
    return index


def latency(bench: Bench, count: int, dim: int = 384, tries: int = 500) -> None:
    """From the call of add() to its return, the ledger's fsync included: the next search counts it."""
    ids, vectors = _million(count, dim, bench.seed)
    rng = np.random.default_rng(bench.seed)
    for kind in ("faiss", "qdrant-edge"):
        place = bench.folder / f"latency-{kind}"
        shutil.rmtree(place, ignore_errors=True)
        with _filled(kind, place, ids, vectors) as index, Pefa(
            index, _never, ledger=bench.folder / f"latency-{kind}.sqlite"
        ) as pefa:  # fmt: skip
            seconds = []
            for at in range(tries):
                target = int(rng.integers(count))
                query = _near(vectors[target], rng)
                started = time.perf_counter()
                pefa.add(f"question {at}", ids[target], vector=query)
                seconds.append(time.perf_counter() - started)
            ((found, _),) = pefa.search(query[None], 1, lam=0.1)
            assert found == [ids[target]]
        shutil.rmtree(place, ignore_errors=True)
        bench.add(
            part="latency",
            index=kind,
            vectors=count,
            dim=dim,
            p50_ms=1000 * float(np.percentile(seconds, 50)),
            p99_ms=1000 * float(np.percentile(seconds, 99)),
            most_ms=1000 * max(seconds),
        )


def overhead(bench: Bench, count: int, fed: int = 10_000, dim: int = 384, tries: int = 30) -> None:
    """One query at a time, k = 10: plain, XS and XL by turns over the same index, with feedback on `fed` passages."""
    ids, vectors = _million(count, dim, bench.seed)
    rng = np.random.default_rng(bench.seed)
    for kind in ("faiss", "exact"):
        place = bench.folder / f"overhead-{kind}"
        shutil.rmtree(place, ignore_errors=True)
        with _filled(kind, place, ids, vectors) as index, Pefa(index, _never) as pefa:
            targets = rng.permutation(count)[:fed]
            given = [Feedback(f"question {at}", ids[target]) for at, target in enumerate(targets.tolist())]
            pefa.add_many(given, [_near(vectors[target], rng) for target in targets.tolist()])
            ways: dict[str, Callable[[np.ndarray], Any]] = {
                "plain": lambda query, index=index: index.search(query, 10),
                "XS": lambda query, pefa=pefa: pefa.search(query, 10, lam=0.3, method="xs"),
                "XL": lambda query, pefa=pefa: pefa.search(query, 10, lam=0.3, method="xl"),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(tries + 3):
                query = _near(vectors[int(rng.integers(count))], rng)[None]
                for name, way in ways.items():
                    started = time.perf_counter()
                    way(query)
                    if turn >= 3:
                        seconds[name].append(time.perf_counter() - started)
        shutil.rmtree(place, ignore_errors=True)
        medians = {name: float(np.median(found)) for name, found in seconds.items()}
        ratios = {name: float(np.median(np.array(seconds[name]) / np.array(seconds["plain"]))) for name in ("XS", "XL")}
        bench.add(part="overhead", index=kind, vectors=count, fed=fed, plain_ms=1000 * medians["plain"],
                  xs_over_plain=ratios["XS"], xl_over_plain=ratios["XL"])  # fmt: skip


def bulk(bench: Bench, pairs: int = 200_000, passages: int = 100_000, dim: int = 384) -> None:
    """Replay of a ledger, vectors stored in it or in memory; and taking feedback in."""
    ids, vectors = _million(passages, dim, bench.seed)
    rng = np.random.default_rng(bench.seed)
    given = [Feedback(f"question {at}", ids[int(rng.integers(passages))]) for at in range(pairs)]
    asked = _million(pairs, dim, bench.seed + 1)[1]
    path = bench.folder / "bulk.sqlite"
    path.unlink(missing_ok=True)
    with exact_index(ids, vectors) as index, Pefa(index, _never, ledger=path) as pefa:
        started = time.perf_counter()
        for start in range(0, pairs, 10_000):
            pefa.add_many(given[start : start + 10_000], asked[start : start + 10_000])
        taking = time.perf_counter() - started
        started = time.perf_counter()
        pefa.rebuild()
        from_disk = time.perf_counter() - started
        known = {one.query: vector for one, vector in zip(given, asked, strict=True)}
        changes = pefa.ledger.since(0)
        pefa.ledger.vectors = lambda fingerprint, queries: {text: known[text] for text in queries}  # type: ignore[method-assign]
        pefa.ledger.since = lambda seq: changes if seq == 0 else []  # type: ignore[method-assign]
        started = time.perf_counter()
        pefa.rebuild()
        in_memory = time.perf_counter() - started
    bench.add(
        part="bulk",
        pairs=pairs,
        passages=passages,
        taken_per_second=pairs / taking,
        replayed_from_disk_per_second=pairs / from_disk,
        replayed_in_memory_per_second=pairs / in_memory,
    )


def _near(vector: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = vector + 0.05 * rng.standard_normal(len(vector), dtype=np.float32)
    return moved / np.linalg.norm(moved)


def _never(texts: Sequence[str]) -> np.ndarray:
    raise AssertionError("every query comes with its vector")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The quality rows as a Markdown table."""
    found = [row for row in rows if row["part"] == "quality"]
    lines = ["| collection | method | dense | over plain, 95 % | hybrid |", "|" + "---|" * 5]
    for row in found:
        low, delta, high = row["over_plain"]
        hybrid = f"{row['hybrid']:.3f}" if row["hybrid"] is not None else ""
        lines.append(
            f"| {row['collection']} | {row['method']} | {row['dense']:.3f} | {delta:+.3f} [{low:+.3f}, {high:+.3f}] "
            f"| {hybrid} |"
        )
    return "\n".join(lines) if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="where results go")
    parser.add_argument("--parts", default="quality,curve,few,folder,poison,latency,bulk,overhead")
    parser.add_argument("--draws", type=int, default=5, help="random draws of labels in curve and few")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--collections", default=",".join(COLLECTIONS))
    parser.add_argument("--vectors", type=int, default=1_000_000, help="size of the index in latency and overhead")
    arguments = parser.parse_args()
    collections = arguments.collections.split(",")
    check_data(parser, arguments.data, collections)
    place = arguments.folder or Path(tempfile.mkdtemp(prefix="ragadapt-pefa-"))
    place.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.data, place, arguments.seed, collections)
    parts: dict[str, Callable[[], None]] = {
        "quality": lambda: quality(bench),
        "curve": lambda: curve(bench, draws=arguments.draws),
        "few": lambda: few(bench, draws=arguments.draws),
        "folder": lambda: folder(bench),
        "poison": lambda: poison(bench),
        "latency": lambda: latency(bench, arguments.vectors),
        "bulk": lambda: bulk(bench),
        "overhead": lambda: overhead(bench, arguments.vectors),
    }
    chosen = arguments.parts.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    for part in chosen:
        parts[part]()
    print(table(bench.rows))
    print(f"written: {place / 'pefa.json'}")


if __name__ == "__main__":
    main()

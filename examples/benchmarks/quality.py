"""What a fit is worth: shipped retrievers against untuned baselines on collections with human judgements.

    python examples/benchmarks/quality.py --data DATA [--seeds 13] [--choices "layers 3;layers 6"] [--labels 20,36]
        [--parts zero,handbook,labels,few,generated,beside,signals,choices] [--generator-url URL]

Without a look at any test label; runs are scored with ir-measures. `zero`, `handbook`, `labels`, `few` and `generated`
fit through the public API, `beside` too, but with a plan of its own and a gate that lets everything through; `signals`
and `choices` train directly. `both-sides` is `labels` with --adapt both, `few-query-side` and `generated-query-side`
are `few` and `generated` with --adapt query. `few` gives so many judged queries, drawn anew by each seed; what the
same would do ungated is in pefa.py (part few). `generated` asks a language model at --generator-url. Results go to
FOLDER/quality.json as they come (default: a temporary folder), tables to stdout; a fit whose result is there is not run
again. `few` and `generated` take the base vectors over from one fit without training, so their seconds lack those.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from beir import QUALITY, Collection, baselines, check_data, device, load, write_labels

from ragadapt import Encoder, EncoderConfig, FitConfig, FitResult, Labels, Retriever, fit
from ragadapt.evaluation import Evaluation, evaluate, gate, paired_bootstrap
from ragadapt.lexical import LexicalIndex
from ragadapt.pipeline.adapt import make_examples
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.stages import encode_query_texts, searcher_of
from ragadapt.training import Example, train
from ragadapt.values import Chunk, Evidence, Query, no_progress

LABELS = {"scifact": "train", "stackfaq": "train", "cosqa": "dev"}  # collections with judged queries beside the test's

BASE: dict[str, Any] = {"encoder": {"model": "offline"}, "index": {"kind": "exact"}}


class Bench:
    """Where results and fitted folders go, and the encoder that the baselines share."""

    def __init__(self, data: Path, folder: Path, seeds: Sequence[int], collections: Sequence[str]) -> None:
        self.data = data
        self.folder = folder
        self.seeds = seeds
        self.collections = collections
        self.encoder = Encoder.load(EncoderConfig(model="offline"))
        file = folder / "quality.json"
        self.rows: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["rows"] if file.exists() else []
        self._baselines: dict[str, dict[str, Evaluation]] = {}

    def baselines(self, collection: Collection) -> dict[str, Evaluation]:
        if collection.name not in self._baselines:
            self._baselines[collection.name] = baselines(collection, self.encoder)
        return self._baselines[collection.name]

    def fit(
        self,
        sources: list[Path],
        name: str,
        seed: int,
        labels: Sequence[Labels] = (),
        *,
        over: str = "",
        **changes: Any,
    ) -> Any:
        """A fit into a folder of its own; seconds beside the result. over: an earlier fit of the same sources, whose
        base vectors are taken over."""
        values = {**BASE, "seed": seed}
        for stage, change in changes.items():
            values[stage] = {**values.get(stage, {}), **change}
        if over and not (self.folder / name).exists():
            shutil.copytree(self.folder / over, self.folder / name)
        started = time.perf_counter()
        result = fit(sources, self.folder / name, FitConfig.build(values), labels=labels)
        return result, time.perf_counter() - started

    def missing(self, **row: Any) -> list[int]:
        """The seeds for which no earlier run left a result that says this."""
        known = [other["seed"] for other in self.rows if all(other.get(key) == value for key, value in row.items())]
        return [seed for seed in self.seeds if seed not in known]

    def add(self, **row: Any) -> None:
        """Keep one result, on disk at once."""
        self.rows.append(row)
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
            "device": device(),
            "base": "all-MiniLM-L6-v2",
            "seeds": list(self.seeds),
        }
        text = json.dumps({"about": about, "rows": self.rows}, indent=2, default=float)
        (self.folder / "quality.json").write_text(text, encoding="utf-8")
        print(json.dumps(row, default=float), flush=True)


def score(retriever: Retriever, collection: Collection, mode: str) -> Evaluation:
    """The test split through the public run() method."""
    return evaluate(retriever.run(collection.asked("test"), 100, mode=mode), collection.qrels["test"])


def zero(bench: Bench) -> None:
    """No labels: the shipped default search against the best of dense, BM25 and RRF, whichever that is."""
    for name in bench.collections:
        collection = load(bench.data, name)
        untuned = bench.baselines(collection)
        for seed in bench.missing(part="zero", collection=name):
            result, seconds = bench.fit([collection.corpus], f"zero-{name}-{seed}", seed)
            with Retriever.open(result.path) as retriever:
                shipped = {mode: score(retriever, collection, mode) for mode in ("hybrid", "dense", "lexical")}
                fusion, chunks = retriever.fusion.as_dict(), len(retriever)
            best = max(evaluation.mean["nDCG@10"] for evaluation in untuned.values())
            bench.add(
                part="zero",
                collection=name,
                seed=seed,
                **{f"untuned {key}": evaluation.mean["nDCG@10"] for key, evaluation in untuned.items()},
                **{f"shipped {mode}": evaluation.mean["nDCG@10"] for mode, evaluation in shipped.items()},
                recall_100=shipped["hybrid"].mean["R@100"],
                over_best=shipped["hybrid"].mean["nDCG@10"] - best,
                over_rrf=shipped["hybrid"].mean["nDCG@10"] - untuned["RRF"].mean["nDCG@10"],
                verdict=result.verdict,
                fusion=fusion,
                chunks=chunks,
                seconds=seconds,
            )


def handbook(bench: Bench) -> None:
    """A folder of Markdown pages, own chunking, 200 questions with quotes: evidence recall of what ships."""
    from ragadapt.search.fusion import Fusion

    source, questions = bench.data / "handbook" / "docs", bench.data / "handbook" / "questions.jsonl"
    for seed in bench.missing(part="handbook"):
        result, seconds = bench.fit([source], f"folder-handbook-{seed}", seed)
        with Retriever.open(result.path) as retriever:
            shipped = retriever.evaluate(questions)
            learnt = retriever.fusion
            retriever.searcher.fusion = Fusion(method="rrf")
            untuned = retriever.evaluate(questions, modes=("hybrid",))["hybrid"]
        bench.add(
            part="handbook",
            seed=seed,
            shipped=shipped["hybrid"],
            dense=shipped["dense"],
            lexical=shipped["lexical"],
            untuned_hybrid=untuned,
            verdict=result.verdict,
            fusion=learnt.as_dict(),
            seconds=seconds,
        )


def labelled(bench: Bench, part: str, **changes: Any) -> Callable[[], None]:
    """Fits with judged queries that are not the test's; nothing of the test split is read before scoring.

    What ships beside the untuned baselines, and so what the gate's decision was worth.
    """

    def run() -> None:
        for name in [name for name in bench.collections if name in LABELS]:
            collection = load(bench.data, name)
            untuned, plain = bench.baselines(collection), unlabelled(bench, collection)
            split, folder = LABELS[name], bench.folder / f"labels-{name}"
            files = write_labels(collection, split, list(collection.qrels[split]), folder)
            for seed in bench.missing(part=part, collection=name):
                result, seconds = bench.fit(
                    [collection.corpus], f"{part}-{name}-{seed}", seed, [Labels(*files)], **changes
                )
                with Retriever.open(result.path) as retriever:
                    shipped = {mode: score(retriever, collection, mode) for mode in ("hybrid", "dense")}
                    fusion = retriever.fusion.as_dict()
                over = {
                    other: paired_bootstrap(values_of(shipped[mode]), values_of(untuned[other]), seed=seed)
                    for mode, other in (("hybrid", "RRF"), ("dense", "dense"))
                }
                seen = {"dense": result.decision.dense, "search": result.decision.search}
                bench.add(
                    part=part,
                    collection=name,
                    seed=seed,
                    **by_answers(collection, split, shipped, plain, seed),
                    **{f"untuned {key}": evaluation.mean["nDCG@10"] for key, evaluation in untuned.items()},
                    **{f"shipped {mode}": evaluation.mean["nDCG@10"] for mode, evaluation in shipped.items()},
                    **{f"over {other}": [one.low, one.delta, one.high] for other, one in over.items()},
                    **{f"gate saw {key}": [one.low, one.delta, one.high] for key, one in seen.items() if one},
                    verdict=result.verdict,
                    reasons=result.decision.reasons,
                    strength=result.decision.strength,
                    fusion=fusion,
                    seconds=seconds,
                )

    return run


def by_answers(
    collection: Collection,
    split: str,
    shipped: dict[str, Evaluation],
    plain: dict[str, Evaluation],
    seed: int,
) -> dict[str, Any]:
    """What was gained over a fit without labels by test questions whose answers a question of the split had, too
    (known), and by the others (new): [low, gain, high, questions]."""
    had = {id for grades in collection.qrels[split].values() for id, grade in grades.items() if grade > 0}
    parts: dict[str, list[str]] = {"new": [], "known": []}
    for id, grades in collection.qrels["test"].items():
        known = any(document in had for document, grade in grades.items() if grade > 0)
        parts["known" if known else "new"].append(id)
    found = {}
    for mode, evaluation in shipped.items():
        for kind, ids in parts.items():
            if ids:
                ours, theirs = ([one.per_query["nDCG@10"][id] for id in ids] for one in (evaluation, plain[mode]))
                gain = paired_bootstrap(ours, theirs, seed=seed)
                found[f"{mode}, {kind} answers"] = [gain.low, gain.delta, gain.high, len(ids)]
    return found


def few(bench: Bench, sizes: Sequence[int], part: str = "few", **changes: Any) -> None:
    """What ships after so many labelled questions, a draw for each seed, against what ships without any."""
    for name in [name for name in bench.collections if name in LABELS]:
        collection = load(bench.data, name)
        untuned = unlabelled(bench, collection)
        ids = sorted(collection.qrels[LABELS[name]])
        for size, seed in itertools.product(sizes, bench.seeds):
            if seed not in bench.missing(part=part, collection=name, labels=size):
                continue
            drawn = random.Random(f"{seed} {size}").sample(ids, min(size, len(ids)))
            files = write_labels(collection, LABELS[name], drawn, bench.folder / f"few-labels-{name}-{size}-{seed}")
            into, base = f"{part}-{name}-{size}-{seed}", f"untrained-{name}"
            made = bench.fit([collection.corpus], into, seed, [Labels(*files)], over=base, **changes)
            bench.add(part=part, collection=name, labels=size, **against(untuned, collection, seed, *made))


def generated(bench: Bench, url: str, part: str = "generated", **changes: Any) -> None:
    """What ships after a language model was asked, against what ships without."""
    asked: dict[str, Any] = {"generator_url": url, "generator_model": "any"}
    for name in bench.collections:
        collection = load(bench.data, name)
        untuned = unlabelled(bench, collection)
        for seed in bench.missing(part=part, collection=name):
            into, base = f"{part}-{name}-{seed}", f"untrained-{name}"
            made = bench.fit([collection.corpus], into, seed, over=base, query=asked, **changes)
            bench.add(part=part, collection=name, **against(untuned, collection, seed, *made))
    if "handbook" not in bench.collections:
        return
    source, questions = bench.data / "handbook" / "docs", bench.data / "handbook" / "questions.jsonl"
    plain, _ = bench.fit([source], "untrained-folder", bench.seeds[0], adapter={"method": "none"})
    for seed in bench.missing(part=part, collection="handbook, as a folder"):
        result, seconds = bench.fit([source], f"{part}-folder-{seed}", seed, query=asked, **changes)
        figures = {}
        for key, path in (("untuned", plain.path), ("shipped", result.path)):
            with Retriever.open(path) as retriever:
                figures[key] = retriever.evaluate(questions)
        bench.add(
            part=part,
            collection="handbook, as a folder",
            seed=seed,
            **{f"{key} {mode}": found[mode] for key, found in figures.items() for mode in ("hybrid", "dense")},
            verdict=result.verdict,
            reasons=result.decision.reasons,
            strength=result.decision.strength,
            seconds=seconds,
        )


def unlabelled(bench: Bench, collection: Collection) -> dict[str, Evaluation]:
    """By kind of search: what the base model finds, with the mix that it gets without questions."""
    result, _ = bench.fit(
        [collection.corpus], f"untrained-{collection.name}", bench.seeds[0], adapter={"method": "none"}
    )
    with Retriever.open(result.path) as retriever:
        return {mode: score(retriever, collection, mode) for mode in ("hybrid", "dense")}


def against(
    untuned: dict[str, Evaluation], collection: Collection, seed: int, result: FitResult, seconds: float
) -> dict[str, Any]:
    """A row: what the gate saw, and what ships against the untuned model. The differences of every query stand in it,
    for intervals over several draws."""
    with Retriever.open(result.path) as retriever:
        shipped = {mode: score(retriever, collection, mode) for mode in untuned}
        fusion = retriever.fusion.as_dict()
    seen = {"dense": result.decision.dense, "search": result.decision.search}
    row: dict[str, Any] = {"seed": seed, "verdict": result.verdict, "reasons": result.decision.reasons}
    for mode, base in untuned.items():
        gain = paired_bootstrap(values_of(shipped[mode]), values_of(base), seed=seed)
        row[f"untuned {mode}"] = base.mean["nDCG@10"]
        row[f"shipped {mode}"] = shipped[mode].mean["nDCG@10"]
        row[f"over {mode}"] = [gain.low, gain.delta, gain.high]
        own = base.per_query["nDCG@10"]
        row[f"gains {mode}"] = [round(value - own[id], 4) for id, value in shipped[mode].per_query["nDCG@10"].items()]
    row |= {f"gate saw {key}": [one.low, one.delta, one.high, one.n] for key, one in seen.items() if one}
    return row | {"strength": result.decision.strength, "fusion": fusion, "seconds": seconds}


def beside(bench: Bench) -> None:
    """What the queries that people wrote in the documents add to labels: none of them, as many as train besides, all.

    The model that was trained is scored whatever the gate says of it; what the gate saw stands beside the truth.
    """
    plan, decide = gate.plan, gate.decide

    def open_gate(**seen: Any) -> gate.Decision:
        return replace(decide(**seen), verdict=gate.Verdict.WIN, strength=seen["strength"])

    def planned(most: float, train: Sequence[Query], heldout: Sequence[Query]) -> gate.Plan:
        made = plan([query for query in train if query.evidence is not Evidence.HUMAN], heldout)
        found = [query for query in train if query.evidence is Evidence.HUMAN]
        drawn = random.Random(0).sample(found, min(len(found), int(most * len(made.train)))) if most else []
        print(f"{len(made.train)} queries train, and {len(drawn)} of {len(found)} from the documents beside them")
        return replace(made, train=(*made.train, *drawn))

    for name, most in (("none", 0), ("as-many", 1), ("all", 1e9)):
        with patch.object(gate, "plan", partial(planned, most)), patch.object(gate, "decide", open_gate):
            labelled(bench, f"beside-{name}")()


def signals(bench: Bench, most: int = 300) -> None:
    """What each training signal that needs no labels gives, when it is trained on without asking the gate.

    For every kind of query that the documents offer, dense search on the test split after training on at most `most`
    such queries; beside it what the gate would have had to judge by.
    """
    from ragadapt.corpus import chunk_documents, internal_links, read_documents
    from ragadapt.queries import clean_queries, masked_passage, structural_queries

    for name in bench.collections:
        collection = load(bench.data, name)
        for seed in bench.seeds:
            config = FitConfig.build({**BASE, "seed": seed})
            documents = read_documents([collection.corpus]).documents
            limit = bench.encoder.passage_room
            chunks = chunk_documents(documents, config.chunk, bench.encoder.count_tokens, limit)
            by_id = {chunk.id: chunk for chunk in chunks}
            queries = structural_queries(documents, chunks, internal_links(documents, chunks), config.query, seed=seed)
            cleaned = clean_queries(queries, chunks, config.query, seed=seed)
            kinds = sorted({query.kind for query in cleaned})
            passages, owners = [chunk.passage for chunk in chunks], [chunk.document_id for chunk in chunks]
            base = dense(collection, bench.encoder, passages, owners)
            for kind in kinds:
                own = [query for query in cleaned if query.kind == kind]
                if len(own) < 50:
                    continue
                chosen = random.Random(seed).sample(own, min(most, len(own)))
                examples = [Example(query.text, masked_passage(query, by_id[query.positives[0]])) for query in chosen]
                trained = train(bench.encoder, examples, None, config.adapter, config.training, seed=seed)
                found = dense(collection, trained.encoder.merged(), passages, owners)
                ids = list(base.per_query["nDCG@10"])
                change = paired_bootstrap(
                    [found.per_query["nDCG@10"][id] for id in ids],
                    [base.per_query["nDCG@10"][id] for id in ids],
                    seed=seed,
                )
                bench.add(
                    part="signals",
                    collection=name,
                    seed=seed,
                    kind=kind,
                    evidence=own[0].evidence.value,
                    queries=len(chosen),
                    base=base.mean["nDCG@10"],
                    trained=found.mean["nDCG@10"],
                    change=[change.low, change.delta, change.high],
                )


CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    **{f"layers {count}": {"adapter": {"layers": count}} for count in (1, 2, 3, 4, 5, 6)},
    "layers 3, rate 1e-3": {"adapter": {"layers": 3}, "training": {"learning_rate": 1e-3}},
    "layers 3, rate 2e-3": {"adapter": {"layers": 3}, "training": {"learning_rate": 2e-3}},
    "layers 6, rate 1e-3": {"adapter": {"layers": 6}, "training": {"learning_rate": 1e-3}},
    "layers 3, six epochs": {"adapter": {"layers": 3}, "training": {"epochs": 6}},
    "reweight none": {"adapter": {"reweight": "none"}},
    "reweight vector": {"adapter": {"reweight": "vector"}},
    "reweight vector, gamma 4": {"adapter": {"reweight": "vector", "gamma": 4.0}},
    "reweight tokens": {"adapter": {"reweight": "tokens"}},
    "reweight dims": {"adapter": {"reweight": "dims"}},
    "loss infonce": {"training": {"loss": "infonce"}},
    "loss both": {"training": {"loss": "both"}},
    "compiled": {"training": {"compile": True}},
}


def choices(bench: Bench, chosen: Sequence[str], labels: int = 300, documents: int = 2500) -> None:
    """What each chosen setting of the training gives, others at their defaults: the reasons behind the defaults.

    Trained on `labels` judged queries drawn by the seed, never on the test split; dense search over the relevant
    documents of all splits and others, `documents` in all. Choices with equal settings are run once.
    """
    for name in [name for name in bench.collections if name in LABELS]:
        collection = sample(load(bench.data, name), documents, seed=0)
        chunks = tuple(Chunk(id, id, text) for id, text in zip(collection.ids, collection.texts, strict=True))
        corpus = Corpus((), chunks, tuple(range(len(chunks))))
        vectors = bench.encoder.encode_passages(collection.texts)
        lexical = LexicalIndex.build(collection.ids, collection.texts)
        searcher = searcher_of(EncodedCorpus(corpus, vectors), lexical)
        base = dense(collection, bench.encoder, collection.texts, collection.ids)
        split = LABELS[name]
        for seed in bench.seeds:
            asked = [id for id, found in collection.qrels[split].items() if set(found) & set(collection.ids)]
            drawn = random.Random(seed).sample(sorted(asked), min(labels, len(asked)))
            queries = [
                Query(id, collection.queries[id], "label", Evidence.LABELLED, tuple(collection.qrels[split][id]))
                for id in drawn
            ]
            encoded = encode_query_texts(bench.encoder, queries, no_progress)
            done: dict[str, Evaluation] = {}
            known: dict[str, tuple[Evaluation, float]] = {}
            for choice in ["default", *chosen]:
                changes = CHOICES[choice]
                config = FitConfig.build({**BASE, "seed": seed, **changes})
                key = json.dumps([config.adapter.model_dump(), config.training.model_dump()])
                if key not in known:
                    examples, _ = make_examples(queries, searcher, encoded, corpus, config)
                    trained = train(bench.encoder, examples, None, config.adapter, config.training, seed=seed)
                    found = dense(collection, trained.encoder.merged(), collection.texts, collection.ids)
                    known[key] = found, trained.examples_per_second
                done[choice], speed = known[key]
                over_base, over_default = (
                    paired_bootstrap(values_of(done[choice]), values_of(other), seed=seed)
                    for other in (base, done["default"])
                )
                bench.add(
                    part="choices",
                    collection=name,
                    seed=seed,
                    choice=choice,
                    labels=len(drawn),
                    ndcg=done[choice].mean["nDCG@10"],
                    base=base.mean["nDCG@10"],
                    over_base=[over_base.low, over_base.delta, over_base.high],
                    over_default=[over_default.low, over_default.delta, over_default.high],
                    examples_per_second=speed,
                )


def sample(collection: Collection, count: int, seed: int) -> Collection:
    """The collection with `count` documents: the relevant ones of every split, and others at random."""
    relevant = {id for split in collection.qrels.values() for found in split.values() for id in found}
    rest = [at for at, id in enumerate(collection.ids) if id not in relevant]
    random.Random(seed).shuffle(rest)
    judged = [at for at, id in enumerate(collection.ids) if id in relevant]
    chosen = sorted([*judged, *rest[: max(0, count - len(judged))]])
    return replace(collection, ids=[collection.ids[at] for at in chosen], texts=[collection.texts[at] for at in chosen])


def values_of(evaluation: Evaluation) -> list[float]:
    """nDCG@10 per query, always in the same order."""
    return [evaluation.per_query["nDCG@10"][id] for id in sorted(evaluation.per_query["nDCG@10"])]


def dense(collection: Collection, encoder: Encoder, passages: list[str], owners: list[str]) -> Evaluation:
    """Dense search over passages; a document scores as its best one."""
    asked = collection.asked("test")
    scores = encoder.encode_queries(list(asked.values())) @ encoder.encode_passages(passages).T
    run: dict[str, dict[str, float]] = {}
    for id, row in zip(asked, scores, strict=True):
        best: dict[str, float] = {}
        for at in np.argsort(-row, kind="stable")[:400].tolist():
            best.setdefault(owners[at], float(row[at]))
        run[id] = best
    return evaluate(run, collection.qrels["test"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The zero-label rows, seeds averaged, and those of part few, draws pooled, as Markdown tables."""
    return "\n\n".join(made for made in (zero_table(rows), few_table(rows)) if made)


def few_table(rows: Sequence[dict[str, Any]]) -> str:
    """By collection and number of labels: what ships against the untuned model, with intervals over draws."""
    lines = ["| part | collection | labels | draws | WIN | dense | over untuned | default search | over untuned |"]
    lines.append("|" + "---|" * 9)
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"].startswith("few"):
            groups.setdefault((row["part"], row["collection"], row["labels"]), []).append(row)
    for (part, name, labels), own in groups.items():
        cells = [part, name, str(labels), str(len(own)), str(sum(row["verdict"] == "WIN" for row in own))]
        for mode in ("dense", "hybrid"):
            gains = np.array([row[f"gains {mode}"] for row in own])
            clusters = [str(at) for _ in own for at in range(gains.shape[1])]
            gain = paired_bootstrap(gains.ravel(), np.zeros(gains.size), clusters=clusters, seed=0)
            cells.append(f"{float(np.mean([row[f'shipped {mode}'] for row in own])):.3f}")
            cells.append(f"{gain.delta:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if groups else ""


def zero_table(rows: Sequence[dict[str, Any]]) -> str:
    """The zero-label rows as a Markdown table, seeds averaged."""
    columns = ("untuned dense", "untuned BM25", "untuned RRF", "shipped hybrid", "over_best", "over_rrf")
    lines = ["| collection | dense | BM25 | RRF | shipped | over the best of the three | over RRF |", "|" + "---|" * 7]
    names = list(dict.fromkeys(row["collection"] for row in rows if row["part"] == "zero"))
    means = {}
    for name in names:
        found = [row for row in rows if row["part"] == "zero" and row["collection"] == name]
        means[name] = [float(np.mean([row[column] for row in found])) for column in columns]
    if names:
        means["mean"] = [float(np.mean(values)) for values in zip(*means.values(), strict=True)]
    for name, values in means.items():
        cells = [f"{value:.3f}" for value in values[:4]] + [f"{value:+.3f}" for value in values[4:]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if names else ""


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="where results and fitted retrievers go")
    parser.add_argument("--parts", default="zero,handbook,labels,both-sides")
    parser.add_argument("--seeds", default="13", type=numbers)
    parser.add_argument("--labels", default="20,36,50,100", type=numbers, help="how many part few gives")
    parser.add_argument("--generator-url", help="what part generated asks; OpenAI-compatible")
    parser.add_argument("--collections", default=",".join(QUALITY))
    every = [choice for choice in CHOICES if choice != "default"]
    parser.add_argument("--choices", default=";".join(every), help="what part choices compares, parted by ;")
    arguments = parser.parse_args()
    collections = arguments.collections.split(",")
    check_data(parser, arguments.data, collections)
    settings = arguments.choices.split(";")
    if unknown := set(settings) - set(every):
        parser.error(f"unknown choices {'; '.join(sorted(unknown))}; there are {'; '.join(every)}")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ragadapt-quality-"))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.data, folder, arguments.seeds, collections)
    chosen = arguments.parts.split(",")
    if any(part.startswith("generated") for part in chosen) and not arguments.generator_url:
        parser.error("part generated asks a language model: name one with --generator-url")
    sizes = arguments.labels
    query_side: dict[str, Any] = {"adapter": {"adapt": "query"}}
    parts: dict[str, Callable[[], None]] = {
        "zero": lambda: zero(bench),
        "handbook": lambda: handbook(bench),
        "labels": labelled(bench, "labels"),
        "few": lambda: few(bench, sizes),
        "generated": lambda: generated(bench, arguments.generator_url),
        "signals": lambda: signals(bench),
        "choices": lambda: choices(bench, settings),
        "beside": lambda: beside(bench),
        "both-sides": labelled(bench, "both-sides", adapter={"adapt": "both"}),
        "few-query-side": lambda: few(bench, sizes, "few-query-side", **query_side),
        "generated-query-side": lambda: generated(bench, arguments.generator_url, "generated-query-side", **query_side),
    }
    if unknown := set(chosen) - set(parts):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    for part in chosen:
        parts[part]()
    print(table(bench.rows))
    print(f"written: {folder / 'quality.json'}")


if __name__ == "__main__":
    main()

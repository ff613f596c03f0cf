"""The second stage: the same scores as sentence-transformers, how much faster, and what it is worth on real questions.

    python examples/benchmarks/rerank.py --data DATA [--folder FOLDER] [--parts scores,speed,search,corpus,maxsim]
        [--model NAME] [--collections scifact] [--seeds 13] [--depth 20]
    python examples/benchmarks/rerank.py --data DATA --folder FOLDER --parts train --collections scifact,stackfaq
        --seeds 13,14,15 [--methods iaa-l,iaa-s,lora,full] [--rates 5e-5,2e-4,1e-3] [--steps 200] [--jobs 4]
        [--device cuda] [--model NAME] [--batch 16] [--negatives 7] [--questions N]

With a network, any re-ranker: --model ettin-17m. Without --model, one of MiniLM's weights and a head of its own is
used: with a random head for `scores`, `speed` and `search`; for `corpus` it is first trained here, on half of the
collection's train labels and the passages that the first stage puts beside their answers. The other half goes to `fit`,
which learns the weight from it and judges; nothing of the test split is looked at before the end.

`train` compares methods of training: from --model, or from MiniLM's weights under a fresh head, each at as many steps,
at the rate at which half as many gave the best dev score with the first seed. A fifth of the train questions is held
out; it chooses the rate, the step whose weights are kept, and the share of the score. Every training is a
cell of its own, --jobs of them at a time.

`scores` and `speed` measure multi-vector (ColBERT) models beside the cross-encoders: MiniLM's token vectors as they
are, and one of ModernBERT's shape with a projection at random. `maxsim` says what those of MiniLM, which nobody trained
for it, add to a first stage fitted without labels, on the train questions: each under a share learnt from the others.

`speed` and `search` alternate between the sides and count medians; `speed` by the processor's time, so that others at
work on the machine count less: set OMP_NUM_THREADS=1, or waiting threads count. Results go to FOLDER/rerank.json as
they come, and to stdout; rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import string
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from beir import Collection, check_data, load, write_labels
from rerank_cells import Task, read_found, train_cell
from synthetic import mixed_lengths, shaped_model

from ragadapt import FitConfig, Labels, Retriever, fit
from ragadapt.config import EncoderConfig
from ragadapt.encoder.presets import resolve
from ragadapt.evaluation import evaluate, paired_bootstrap
from ragadapt.evaluation.significance import paired_bootstrap_over_runs
from ragadapt.pipeline.cells import Cells
from ragadapt.rerank import Reranker
from ragadapt.rerank.adapted import write_fresh
from ragadapt.rerank.memory import forget
from ragadapt.search.fusion import learn_rerank_weight
from ragadapt.search.reranking import Rerank

PARTS = ("scores", "speed", "search", "corpus")
ON_REQUEST = ("maxsim", "train")
PAIRS = 64  # of a timed run
REPEATS = 3
SEARCHES = 40
LENGTH = 256  # tokens of a pair
ETTIN_17M = {"hidden_size": 256, "num_hidden_layers": 7, "num_attention_heads": 4, "intermediate_size": 384}


class Bench:
    """Where results go, and what the parts share."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.data: Path = arguments.data
        self.folder = folder
        self.model: str | None = arguments.model
        self.depth: int = arguments.depth
        self.steps: int | None = arguments.steps
        self.methods: list[str] = arguments.methods
        self.rates: list[float] = arguments.rates
        self.batch: int = arguments.batch
        self.negatives: int = arguments.negatives
        self.questions: int | None = arguments.questions
        self.jobs: int = arguments.jobs
        self.every: int = arguments.every
        self.device: str = arguments.device
        self.collections: list[str] = arguments.collections
        self.seeds: list[int] = arguments.seeds
        self.file = folder / "rerank.json"
        self.rows: list[dict[str, Any]] = (
            json.loads(self.file.read_text(encoding="utf-8"))["rows"] if self.file.is_file() else []
        )

    @property
    def trainings(self) -> dict[str, Any]:
        """What all trainings of a run have alike; rows of others are not its own."""
        return {
            "base": self.model or "MiniLM", "depth": self.depth, "batch": self.batch, "negatives": self.negatives,
            "most": self.questions,
        }  # fmt: skip

    def known(self, **key: Any) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, **row: Any) -> None:
        """Keep one result, on disk at once."""
        if hasattr(os, "getloadavg"):
            row["load"] = os.getloadavg()[0]  # above the number of cores, others were at work too
        self.rows.append(row)
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
        text = json.dumps({"about": about, "rows": self.rows}, indent=2, default=float)
        self.file.write_text(text + "\n", encoding="utf-8")
        print(json.dumps(row, default=float), flush=True)

    def reranker(self) -> str:
        """The model that is measured: the one that was named, or MiniLM's shape and weights with a random head."""
        return self.model or str(fresh_cross_encoder(self.folder / "minilm-fresh"))


def fresh_cross_encoder(folder: Path, seed: int = 0) -> Path:
    """The weights of all-MiniLM-L6-v2 under a new head, in float32, as a cross-encoder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    if not folder.is_dir():
        source = resolve(EncoderConfig(model="offline")).location
        logging.set_verbosity_error()
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.model_max_length = LENGTH
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def token_vectors(folder: Path) -> Path:
    """The token vectors of all-MiniLM-L6-v2 as they are, as a multi-vector model: no projection, no training."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    if not (folder / "modules.json").is_file():
        source = resolve(EncoderConfig(model="offline")).location
        transformer = Transformer(source, max_seq_length=LENGTH, document_length=LENGTH)
        norm = Normalize(module_input_name="token_embeddings")
        model = MultiVectorEncoder(modules=[transformer, MultiVectorMask(), norm], device="cpu")
        model.save_pretrained(str(folder), create_model_card=False)
    return folder


def projected(folder: Path, base: Path) -> Path:
    """A ModernBERT under a random projection to 128 numbers, with query expansion and a list of what does not count."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    if not (folder / "modules.json").is_file():
        torch.manual_seed(0)
        expansion: Any = {"strategy": "fixed", "length": 32}
        transformer = Transformer(str(base), max_seq_length=LENGTH, document_length=LENGTH, query_expansion=expansion)
        names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        width = transformer.get_embedding_dimension()
        projection = Dense(width, 128, bias=False, activation_function=torch.nn.Identity(), **names)
        mask, norm = MultiVectorMask(list(string.punctuation)), Normalize(module_input_name="token_embeddings")
        model = MultiVectorEncoder(modules=[transformer, projection, mask, norm], device="cpu")
        model.save_pretrained(str(folder), create_model_card=False)
    return folder


def pairs_of(collection: Collection, count: int) -> list[tuple[str, str]]:
    """Questions with passages of mixed lengths."""
    rng = random.Random(13)
    texts, asked = mixed_lengths(collection.texts, count), list(collection.queries.values())
    return [(rng.choice(asked), text) for text in texts]


def scores(bench: Bench) -> None:
    """The largest difference from CrossEncoder.predict in float32: of the measured model and of a ModernBERT one."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = pairs_of(load(bench.data, bench.collections[0]), PAIRS)
    modern, base = bench.folder / "modernbert", bench.folder / "shape"
    if not (modern.is_dir() and base.is_dir()):
        base = shaped_model(base, "ModernBERT-base", max_length=LENGTH, **ETTIN_17M)
        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        made.save_pretrained(modern)
        AutoTokenizer.from_pretrained(base, model_max_length=LENGTH).save_pretrained(modern)
    for name, model, some in (("measured", bench.reranker(), pairs), ("modernbert", str(modern), pairs[:24])):
        if bench.known(part="scores", model=name):
            continue
        theirs = CrossEncoder(model, device="cpu", model_kwargs={"dtype": torch.float32})
        reranker = Reranker.load(model, device="cpu", precision="float32", max_length=theirs.max_seq_length)
        forget()
        ours = np.concatenate(reranker.logits_of([(query, [passage]) for query, passage in some]))
        expected = theirs.predict(some, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        bench.add(
            part="scores", model=name, path=reranker.path, pairs=len(some), difference=np.abs(ours - expected).max(),
            spread=expected.std(),
        )  # fmt: skip
    late_scores(bench, pairs[:24], base)


def late_scores(bench: Bench, pairs: Sequence[tuple[str, str]], modern: Path) -> None:
    """The largest difference from MultiVectorEncoder.similarity in float32."""
    from sentence_transformers import MultiVectorEncoder

    models = {"MiniLM, MaxSim": token_vectors(bench.folder / "minilm-tokens")}
    models["modernbert, MaxSim"] = projected(bench.folder / "modernbert-tokens", modern)
    for name, model in models.items():
        if bench.known(part="scores", model=name):
            continue
        theirs = MultiVectorEncoder(str(model), device="cpu", model_kwargs={"dtype": torch.float32})
        reranker = Reranker.load(model, device="cpu", precision="float32")
        forget()
        ours = np.concatenate(reranker.logits_of([(query, [passage]) for query, passage in pairs]))
        queries, passages = ([pair[side] for pair in pairs] for side in (0, 1))
        expected = np.asarray(
            theirs.similarity_pairwise(theirs.encode_query(queries), theirs.encode_document(passages))
        )
        bench.add(
            part="scores", model=name, path=reranker.path, pairs=len(pairs), difference=np.abs(ours - expected).max(),
            spread=expected.std(),
        )  # fmt: skip


def late_speed(bench: Bench) -> None:
    """The same of MaxSim over MiniLM's token vectors, beside MultiVectorEncoder; a question with 20 passages each, and
    again with other questions, when the passages are remembered."""
    if bench.known(part="speed, MaxSim"):
        return
    from sentence_transformers import MultiVectorEncoder

    folder = str(token_vectors(bench.folder / "minilm-tokens"))
    collection = load(bench.data, bench.collections[0])
    texts, asked = mixed_lengths(collection.texts, PAIRS), list(collection.queries.values())
    lists = [(query, texts[at : at + bench.depth]) for at, query in zip(range(0, PAIRS, bench.depth), asked)]
    again = [(query, own) for query, (_, own) in zip(asked[len(lists) :], lists)]
    pairs = sum(len(own) for _, own in lists)
    theirs = MultiVectorEncoder(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    ours = {name: Reranker.load(folder, device="cpu", precision=name) for name in ("float32", "auto")}
    seconds: dict[str, list[float]] = {}
    found: dict[str, Any] = {}

    def timed(name: str, made: Callable[[], Any]) -> None:
        started = time.process_time()
        found[name] = np.concatenate(made())
        seconds.setdefault(name, []).append(time.process_time() - started)

    def by_library() -> list[Any]:
        return [
            np.asarray(theirs.similarity(theirs.encode_query([query]), theirs.encode_document(own)))[0]
            for query, own in lists
        ]

    for _ in range(REPEATS):
        timed("library", by_library)
        for name, reranker in ours.items():
            forget()
            timed(name, lambda reranker=reranker: reranker.logits_of(lists))  # type: ignore[misc]
            timed(f"{name}, remembered", lambda reranker=reranker: reranker.logits_of(again))  # type: ignore[misc]
    for name, reranker in ours.items():
        mine, known = seconds[name], seconds[f"{name}, remembered"]
        bench.add(
            part="speed, MaxSim", precision=reranker.precision.dtype, asked=name,
            pairs_per_second=pairs / median(mine), library_pairs_per_second=pairs / median(seconds["library"]),
            faster=median(theirs / own for theirs, own in zip(seconds["library"], mine, strict=True)),
            remembered_pairs_per_second=pairs / median(known),
            correlation=np.corrcoef(found[name], found["library"])[0, 1],
            difference=np.abs(found[name] - found["library"]).max(), spread=found["library"].std(),
        )  # fmt: skip


def maxsim(bench: Bench) -> None:
    """What MaxSim over the untrained base's token vectors adds to the first stage, on train questions."""
    reranker = Reranker.load(token_vectors(bench.folder / "minilm-tokens"), device=bench.device)
    for name in bench.collections:
        if bench.known(part="maxsim", collection=name, depth=bench.depth, every=bench.every):
            continue
        found = first_stage(bench, load(bench.data, name), taught=False, every=bench.every)
        asked = list(read_found(found, "train").values())
        logits = reranker.logits_of([(one.text, one.passages[: bench.depth]) for one in asked])
        read = [one.read(scores) for one, scores in zip(asked, logits, strict=True)]
        judges = [lambda order, one=one: one.ndcg(order.tolist()) for one in asked]
        folds = np.random.default_rng(bench.seeds[0]).permutation(len(asked)) % 3
        shares = np.zeros(len(asked))
        for fold in range(3):
            others = np.flatnonzero(folds != fold).tolist()
            shares[folds == fold] = learn_rerank_weight(
                [read[at] for at in others], [judges[at] for at in others]
            ).chosen

        def quality(shares: Sequence[float], read: Any = read, judges: Any = judges) -> list[float]:
            return [judge(one.ranked(share)) for one, judge, share in zip(read, judges, shares, strict=True)]

        first, fused, alone = (quality(own) for own in ([0.0] * len(asked), shares.tolist(), [1.0] * len(asked)))
        curve = learn_rerank_weight(read, judges)
        gain = paired_bootstrap(fused, first, seed=bench.seeds[0])
        bench.add(
            part="maxsim", collection=name, depth=bench.depth, every=bench.every, questions=len(asked),
            first=np.mean(first), alone=np.mean(alone), fused=np.mean(fused),
            gain=gain.delta, low=gain.low, high=gain.high, share=curve.chosen, best_share=curve.best,
            best=max(curve.quality), precision=reranker.precision.dtype,
        )  # fmt: skip


def speed(bench: Bench) -> None:
    """Pairs a second of the processor's time, beside CrossEncoder.predict as it comes, in float32 and as chosen."""
    late_speed(bench)
    if bench.known(part="speed"):
        return
    from sentence_transformers import CrossEncoder

    pairs = pairs_of(load(bench.data, bench.collections[0]), PAIRS)
    lists = [(query, [passage]) for query, passage in pairs]
    theirs = CrossEncoder(bench.reranker(), device="cpu", model_kwargs={"dtype": torch.float32})
    ours = {name: Reranker.load(bench.reranker(), device="cpu", precision=name) for name in ("float32", "auto")}
    seconds: dict[str, list[float]] = {"predict": [], **{name: [] for name in ours}}
    found: dict[str, Any] = {}
    for _ in range(REPEATS):
        started = time.process_time()
        found["predict"] = theirs.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        seconds["predict"].append(time.process_time() - started)
        for name, reranker in ours.items():
            forget()
            started = time.process_time()
            found[name] = np.concatenate(reranker.logits_of(lists))
            seconds[name].append(time.process_time() - started)
    base = median(seconds["predict"])
    for name, reranker in ours.items():
        bench.add(
            part="speed", precision=reranker.precision.dtype, asked=name,
            pairs_per_second=PAIRS / median(seconds[name]), predict_pairs_per_second=PAIRS / base,
            faster=median(theirs / mine for theirs, mine in zip(seconds["predict"], seconds[name], strict=True)),
            correlation=np.corrcoef(found[name], found["predict"])[0, 1],
            difference=np.abs(found[name] - found["predict"]).max(), spread=found["predict"].std(),
        )  # fmt: skip


def fitted(bench: Bench, collection: Collection, seed: int, name: str, **changes: Any) -> Path:
    """A retriever of the untrained base; labels and re-ranker come with the changes."""
    values: dict[str, Any] = {
        "seed": seed,
        "encoder": {"model": "offline", "device": changes.get("device", "auto")},
        "index": {"kind": "exact"},
        "adapter": {"method": "none"},
        "rerank": changes.get("rerank", {}),
    }
    labels = changes.get("labels", ())
    return fit([collection.corpus], bench.folder / name, FitConfig.build(values), labels=labels).path


def search(bench: Bench) -> None:
    """Milliseconds of one search, alone and with the second stage, nothing remembered."""
    if bench.known(part="search"):
        return
    collection = load(bench.data, bench.collections[0])
    path = fitted(bench, collection, bench.seeds[0], f"plain-{collection.name}-{bench.seeds[0]}")
    asked = list(collection.asked("test").values())[:SEARCHES]
    stages = {"first": False, "both": Rerank(model=bench.reranker(), depth=bench.depth)}
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    with Retriever.open(path) as retriever:
        for query in ("warm up", *asked):
            for name, stage in stages.items():
                forget()
                retriever.snapshot().query_vectors._recent.clear()
                started = time.perf_counter()
                retriever.search(query, k=5, rerank=stage)
                seconds[name].append(time.perf_counter() - started)
    for name, taken in seconds.items():
        p50, p95 = np.percentile(np.array(taken[1:]) * 1000, [50, 95])
        bench.add(part="search", stage=name, depth=bench.depth, searches=len(asked), p50_ms=p50, p95_ms=p95)


def train_cross_encoder(
    folder: Path, retriever: Retriever, collection: Collection, ids: Sequence[str], seed: int, steps: int | None
) -> Path:
    """List-wise softmax over an answer and seven passages that the first stage ranks high; all weights, one epoch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if (folder / "model.safetensors").is_file():
        return folder
    start = fresh_cross_encoder(folder.with_name(f"{folder.name}-start"), seed)
    model = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(start)
    text_of = dict(zip(collection.ids, collection.texts, strict=True))
    found = retriever.search_many([collection.queries[id] for id in ids], 20)
    lists = []
    for id, hits in zip(ids, found, strict=True):
        right = collection.qrels["train"][id]
        wrong = [hit.chunk.passage for hit in hits if hit.chunk.document_id not in right][:7]
        lists += [(collection.queries[id], [text_of[answer], *wrong]) for answer in right if len(wrong) == 7]
    random.Random(seed).shuffle(lists)
    size, rate = 4, 1e-4
    count = min(steps or len(lists), len(lists) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=count, pct_start=0.1)
    model.train()
    torch.manual_seed(seed)
    losses: list[float] = []
    for step in range(count):
        batch = lists[size * step : size * (step + 1)]
        flat = [(query, passage) for query, passages in batch for passage in passages]
        given = tokenizer(
            [query for query, _ in flat], [passage for _, passage in flat],
            padding=True, truncation=True, max_length=LENGTH, return_tensors="pt",
        )  # fmt: skip
        logits = model(**given).logits.view(len(batch), 8)  # the answer first
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.long))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        if step % 10 == 9:
            print(f"step {step + 1} of {count}: loss {np.mean(losses[-10:]):.3f}", flush=True)
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


def corpus(bench: Bench) -> None:
    """nDCG@10 of the test questions: the first stage, the re-ranker alone over its best, what `fit` made of both."""
    for name in bench.collections:
        collection = load(bench.data, name)
        for seed in bench.seeds:
            if bench.known(part="corpus", collection=name, seed=seed):
                continue
            ids = sorted(collection.qrels["train"])
            random.Random(seed).shuffle(ids)
            half = len(ids) // 2
            labels = [Labels(*write_labels(collection, "train", ids[half:], bench.folder / f"labels-{name}-{seed}"))]
            model = bench.model
            if model is None:
                with Retriever.open(fitted(bench, collection, seed, f"plain-{name}-{seed}")) as retriever:
                    target = bench.folder / f"trained-{name}-{seed}"
                    model = str(train_cross_encoder(target, retriever, collection, ids[:half], seed, bench.steps))
            stage = {"model": model, "depth": bench.depth, "max_length": LENGTH}
            path = fitted(bench, collection, seed, f"reranked-{name}-{seed}", labels=labels, rerank=stage)
            qrels, asked = collection.qrels["test"], collection.asked("test")
            with Retriever.open(path) as retriever:
                section = retriever.manifest.sections["rerank"]
                runs = {
                    "first": retriever.run(asked, 100),
                    "alone": retriever.run(asked, 100, rerank=Rerank(model, depth=bench.depth, weight=1.0)),
                    "half": retriever.run(asked, 100, rerank=Rerank(model, depth=bench.depth, weight=0.5)),
                    "shipped": retriever.run(asked, 100, rerank=True),
                }
            found = {stage: evaluate(run, qrels) for stage, run in runs.items()}
            quality = {stage: list(evaluation.per_query["nDCG@10"].values()) for stage, evaluation in found.items()}
            gain = paired_bootstrap(quality["shipped"], quality["first"], seed=seed)
            bench.add(
                part="corpus", collection=name, seed=seed, model=bench.model or "trained here from MiniLM",
                trained_on=0 if bench.model else half, depth=bench.depth, weight=section["weight"],
                reason=section["reason"], gain=gain.delta, low=gain.low, high=gain.high,
                **{stage: evaluation.mean["nDCG@10"] for stage, evaluation in found.items()},
            )  # fmt: skip


def first_stage(bench: Bench, collection: Collection, *, taught: bool = True, every: int = 1) -> Path:
    """A file with what an untrained retriever finds for all questions. taught: its mix is learnt from the train labels.
    every: 3 = every third question alone."""
    names = ("found", "first") if taught else (f"untaught-{every}", "untaught")
    file = bench.folder / f"{names[0]}-{collection.name}.json"
    if file.is_file():
        return file
    labels = []
    if taught:
        ids = sorted(collection.qrels["train"])
        labels = [Labels(*write_labels(collection, "train", ids, bench.folder / collection.name))]
    path = fitted(
        bench, collection, bench.seeds[0], f"{names[1]}-{collection.name}", labels=labels, device=bench.device
    )
    text_of = dict(zip(collection.ids, collection.texts, strict=True))
    made: dict[str, dict[str, Any]] = {}
    with Retriever.open(path, device=bench.device) as retriever:
        for split in ("train", "test"):
            asked = collection.asked(split)
            asked = {id: asked[id] for id in sorted(asked)[::every]}
            made[split] = {}
            for id, hits in zip(asked, retriever.search_many(list(asked.values()), 100), strict=True):
                answers = collection.qrels[split][id]
                best: dict[str, str] = {}  # of each answer the passage that is found first
                for hit in hits:
                    best.setdefault(hit.chunk.document_id, hit.chunk.passage)
                made[split][id] = {
                    "text": asked[id],
                    "documents": [hit.chunk.document_id for hit in hits],
                    "passages": [hit.chunk.passage for hit in hits[: max(50, bench.depth)]],
                    "scores": [hit.score for hit in hits],
                    "answers": answers,
                    "answer_passages": [best.get(answer, text_of[answer]) for answer in answers if answer in text_of],
                }
    file.write_text(json.dumps(made), encoding="utf-8")
    return file


def train(bench: Bench) -> None:
    """Methods of training beside each other: what the second stage adds to the first, and what it costs."""
    steps = bench.steps or 200
    found = {name: first_stage(bench, load(bench.data, name)) for name in bench.collections}

    def base(seed: int) -> str:
        if bench.model is not None:
            return bench.model
        folder = bench.folder / f"fresh-{seed}"
        if not (folder / "modules.json").is_file():
            write_fresh(folder, EncoderConfig(model="offline"), seed=seed, max_length=LENGTH)
        return str(folder)

    def task(collection: str, method: str, rate: float, seed: int, final: bool) -> Task:
        return Task(
            found[collection], base(seed), bench.model is None, method, rate, steps if final else max(1, steps // 2),
            seed, bench.depth, bench.batch, bench.negatives, bench.questions, LENGTH, bench.device, final,
        )  # fmt: skip

    def measure(part: str, tasks: list[tuple[str, Task]]) -> None:
        """Those that are not known yet, each kept as it comes."""
        open_tasks = [
            (name, one)
            for name, one in tasks
            if not bench.known(
                part=part, collection=name, method=one.method, rate=one.rate, seed=one.seed, steps=one.steps,
                **bench.trainings,
            )
        ]  # fmt: skip
        with Cells(bench.jobs, reuse=True) as cells, ThreadPoolExecutor(max(1, bench.jobs)) as pool:
            waiting = {pool.submit(cells.run, train_cell, one): name for name, one in open_tasks}
            for done in as_completed(waiting):
                bench.add(part=part, collection=waiting[done], base=bench.model or "MiniLM", **done.result())

    cells = [(name, method) for name in bench.collections for method in bench.methods]
    measure(
        "train-rate",
        [(name, task(name, method, rate, bench.seeds[0], False)) for name, method in cells for rate in bench.rates],
    )
    chosen: dict[tuple[str, str], float] = {}
    for name, method in cells:
        rows = [
            row for row in bench.rows
            if row["part"] == "train-rate" and (row["collection"], row["method"]) == (name, method)
            and row["rate"] in bench.rates and bench.trainings.items() <= row.items()
        ]  # fmt: skip
        chosen[name, method] = max(rows, key=lambda row: row["dev"])["rate"]
    measure(
        "train",
        [
            (name, task(name, method, chosen[name, method], seed, True))
            for seed in bench.seeds
            for name, method in cells
        ],
    )
    print_training(bench)


def print_training(bench: Bench) -> None:
    """Means over the seeds; the interval draws seeds and questions."""
    print("collection  method   share    rate   s/step  first   alone   fused   gain of the fused [95 %]")
    rows = [row for row in bench.rows if row["part"] == "train" and bench.trainings.items() <= row.items()]
    for name in bench.collections:
        for method in bench.methods:
            own = [row for row in rows if (row["collection"], row["method"]) == (name, method)]
            if not own:
                continue
            fused = np.array([row["per_query"]["fused"] for row in own])
            gain = paired_bootstrap_over_runs(fused, own[0]["per_query"]["first"], seed=bench.seeds[0])
            mean = {key: float(np.mean([row[key] for row in own])) for key in ("first", "alone", "fused")}
            pace = float(np.mean([row["step_seconds"] / row["steps"] for row in own]))
            print(
                f"{name:<11} {method:<8} {own[0]['share']:7.2%} {own[0]['rate']:7.0e} {pace:7.3f} {mean['first']:7.4f} "
                f"{mean['alone']:7.4f} {mean['fused']:7.4f} {gain.delta:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="where results and models go (default: a temporary folder)")
    parser.add_argument("--parts", default=",".join(PARTS), type=lambda text: text.split(","))
    parser.add_argument("--model", help="a re-ranker: a preset, a hub name or a folder")
    parser.add_argument("--collections", default="scifact", type=lambda text: text.split(","))
    parser.add_argument("--seeds", default="13", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument(
        "--steps",
        type=int,
        help="of the training: for corpus 4 questions each (default: one epoch), for train --batch (200)",
    )
    parser.add_argument("--methods", default="iaa-l,iaa-s,lora,full", type=lambda text: text.split(","))
    parser.add_argument(
        "--rates", default="5e-5,2e-4,1e-3", type=lambda text: [float(rate) for rate in text.split(",")]
    )
    parser.add_argument("--batch", type=int, default=16, help="for train: questions of a step")
    parser.add_argument("--negatives", type=int, default=7, help="for train: passages beside an answer")
    parser.add_argument("--questions", type=int, help="for train: of either split at most (default: all)")
    parser.add_argument("--jobs", type=int, default=0, help="trainings at a time, each in its process; 0 = in this one")
    parser.add_argument("--every", type=int, default=1, help="for maxsim: 3 = every third train question alone")
    parser.add_argument("--device", default="auto", help="of `train`, `maxsim` and the first stage of both")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {*PARTS, *ON_REQUEST}:
        parser.error(f"unknown parts {sorted(unknown)}: they are {', '.join((*PARTS, *ON_REQUEST))}")
    check_data(parser, arguments.data, arguments.collections)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments, folder)
        for part in arguments.parts:
            measures = {"scores": scores, "speed": speed, "search": search, "corpus": corpus}
            {**measures, "maxsim": maxsim, "train": train}[part](bench)


if __name__ == "__main__":
    main()

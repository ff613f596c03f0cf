"""How fast it is: encoding, training, mining and whole fits beside sentence-transformers, with quality beside speed.

    python examples/benchmarks/speed.py --data DATA [--folder FOLDER] [--parts encode,train,…]

Both sides run in one go, their repeats interleaved; medians count. What is judged by its memory runs in a process of
its own. The part architectures compares models of the presets' shapes with random weights, by the processor's time: set
OMP_NUM_THREADS=1, or waiting threads count, too. Results go to FOLDER/speed.json as they come; parts that are run later
into the same FOLDER join those that are there. Tables go to stdout, --table prints them again without measuring.
Without CUDA the rows of the parts gpu, gpu-shapes and gpu-fit say "not measured". The peers of train, architectures and
mining need `pip install '.[benchmarks]'`. --smoke runs every part at a size of seconds: its figures mean nothing.

The part gpu needs torch, transformers, sentence-transformers, peft and accelerate, and nothing else: without --data it
reads this repository's pages, without the package of MiniLM it makes random weights of its shape, without datasets the
peer trains in a plain loop over its own loss. It ends in six minutes: what does not fit is left out, and said so.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bare  # the first: what follows imports ragadapt
import numpy as np
from beir import Collection, check_data, load, plain_bm25, run_of, write_labels
from charts import write_chart
from speed_tables import BF16, DEFAULT, GPU_TRAINERS, ONNX, OPENVINO, estimate, table
from synthetic import PRESET_SHAPES, SHAPES, mixed_lengths, shaped_model, tiny_model, write_corpus

HERE = Path(__file__).resolve().parent
PARTS = ("encode", "train", "architectures", "cache", "mining", "growth", "cli", "gpu", "gpu-shapes", "gpu-fit")

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured. documents: of the collection that judges quality; None = all."""

    repeats: int = 5
    texts: int = 512
    documents: int | None = None
    examples: int = 128  # training examples of a timed run
    train_repeats: int = 3
    train_epochs: int = 1  # of a timed run; the first one also fills the cache of frozen layers
    epochs: float = 1  # of the training whose quality is compared
    shape_texts: int = 24  # of a timed encoding by a model of a preset's shape
    shape_examples: int = 16  # of a timed training of one, in batches of 8
    shape_words: int = 100  # at most, of one passage
    shape_repeats: int = 5
    chunks: int = 100_000  # of the mining
    queries: int = 20_000
    mining_repeats: int = 3
    growth: tuple[int, ...] = (1_000, 10_000, 100_000)
    gpu_texts: int = 10_000  # at most, of the collection's passages
    gpu_words: int = 190  # of a passage that is made of this repository's pages
    gpu_layers: int = 6  # of random weights in MiniLM's shape
    gpu_vocabulary: int = 30_522  # of them
    gpu_examples: int = 1024  # of training, where they are made of this repository's pages
    gpu_repeats: int = 5
    gpu_batches: tuple[int, ...] = (32, 128)  # of training
    gpu_seconds: int = 300  # of the part gpu; then whatever has not begun is left out
    labels: int = 400  # judged queries of the fits with training
    cli_repeats: int = 7


SMOKE = Sizes(
    repeats=2, texts=24, documents=60, examples=32, train_repeats=1, shape_texts=4, shape_examples=2,
    shape_repeats=1, chunks=1500, queries=200, mining_repeats=1,
    growth=(100, 300), labels=60, cli_repeats=2, gpu_texts=16, gpu_words=24, gpu_layers=1, gpu_vocabulary=500,
    gpu_examples=8,
    gpu_repeats=2, gpu_batches=(8,),
)  # fmt: skip


class Bench:
    """Where results go, and what the parts share."""

    def __init__(self, data: Path | None, folder: Path, sizes: Sizes, model: str, seed: int, device: str) -> None:
        self.data = data
        self.folder = folder
        self.sizes = sizes
        self.model = model
        self.seed = seed
        self.device = device
        self.file = folder / "speed.json"
        self.rows: list[Row] = []
        if self.file.exists():
            self.rows = json.loads(self.file.read_text(encoding="utf-8"))["rows"]

    def forget(self, part: str) -> None:
        """A part that is measured again replaces what was there."""
        self.rows = [row for row in self.rows if row["part"] != part]

    def add(self, part: str, what: str, **values: Any) -> None:
        """Keep one result, on disk at once."""
        row = {"part": part, "what": what, **values}
        if hasattr(os, "getloadavg"):
            row["load"] = os.getloadavg()[0]  # above the number of cores, others were at work too
        self.rows.append(row)
        about = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),  # None = one a core
            "base": self.model,
            "seed": self.seed,
        }
        text = json.dumps({"about": about, "rows": self.rows}, indent=2, default=float)
        self.file.write_text(text, encoding="utf-8")
        print(json.dumps(row, default=float)[:400], flush=True)

    def worker(self, name: str, /, **options: Any) -> Row:
        """A measurement in a process of its own."""
        command = [sys.executable, str(HERE / "speed_workers.py"), name, json.dumps(options, default=str)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(f"{name} {options} exited with {done.returncode}:\n{done.stderr[-3000:]}")
        found: Row = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def attempt(self, part: str, label: str, name: str, /, **options: Any) -> Row | None:
        """A measurement that may fail, for lack of memory say, without costing the others; None then."""
        try:
            return self.worker(name, **options)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            self.add(part, "failed", side=label, reason=str(error)[-500:])
            return None

    def collection(self) -> Collection:
        if self.data is None:
            raise ValueError("--data is needed")
        return load(self.data, "scifact")

    def judged(self) -> Collection:
        """The collection for quality; with fewer documents the relevant ones come first, so that queries can be met."""
        whole = self.collection()
        if self.sizes.documents is None:
            return whole
        relevant = {id for grades in whole.qrels["test"].values() for id in grades}
        order = sorted(range(len(whole.ids)), key=lambda at: whole.ids[at] not in relevant)[: self.sizes.documents]
        return replace(whole, ids=[whole.ids[at] for at in order], texts=[whole.texts[at] for at in order])


def processor() -> str:
    """The name of the processor, and what of it speeds up bfloat16."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in lines.items()}
    known = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in values.get("flags", "").split()]
    return f"{values.get('model name', 'unknown')} ({', '.join(known)})"


# What there is to reach


def matrix_peak(device: str, dtype: str = "bfloat16", size: int | None = None) -> float:
    """Operations a second of a square matrix product, the best of ten: what there is to reach."""
    import torch

    on_gpu = device.startswith("cuda")
    size = size or (8192 if on_gpu else 1024)
    multiply: Callable[[Any, Any], Any] = torch._int_mm if dtype == "int8" else torch.matmul
    scale = 40.0 if dtype == "int8" else 1.0
    left, right = (torch.randn(size, size, device=device).mul_(scale).to(getattr(torch, dtype)) for _ in range(2))
    took = []
    for _ in range(10):
        started = time.perf_counter()
        multiply(left, right)
        if on_gpu:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return 2 * size**3 / min(took)


def forward_operations(model: str, lengths: Sequence[int]) -> float | None:
    """Operations of a forward pass over texts of so many tokens, without padding: two for each weight of a layer and
    token, and four times the width for each pair of tokens. None for layers that are not BERT's."""
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") not in ("bert", "roberta", "xlm-roberta"):
        return None
    width, inner = config["hidden_size"], config["intermediate_size"]
    weights = 4 * width**2 + 2 * width * inner
    counts = np.asarray(lengths, dtype=np.float64)
    return float(config["num_hidden_layers"] * np.sum(2 * weights * counts + 4 * width * counts**2))


def training_operations(model: str, triples: Path, examples: int | None) -> float | None:
    """Of one example, query, passage and negative: a forward pass and the way back to the activations, which is as much
    again; frozen weights need no gradient. None as of `forward_operations`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = triples.read_text(encoding="utf-8").splitlines()[:examples]
    texts = [text for line in lines for text in json.loads(line).values()]
    settings = json.loads((Path(model) / "sentence_bert_config.json").read_text(encoding="utf-8"))
    longest = settings.get("max_seq_length") or 512
    lengths = [len(row) for row in tokenizer(texts, truncation=True, max_length=longest)["input_ids"]]
    forward = forward_operations(model, lengths)
    return None if forward is None else 2 * forward / len(lines)


def _share(operations: float | None, seconds: float, peak: float) -> float | None:
    return None if operations is None else operations / seconds / peak


# Encoding

Encode = Callable[[Sequence[str]], np.ndarray]


@contextmanager
def encoders(model: str, device: str) -> Iterator[dict[str, Encode]]:
    """Every contender, loaded."""
    import torch
    from sentence_transformers import SentenceTransformer

    from ragadapt import Encoder, EncoderConfig
    from ragadapt.encoder.presets import resolve

    location = resolve(EncoderConfig(model=model)).location
    plain = SentenceTransformer(location, device=device, model_kwargs={"dtype": torch.float32})
    half = SentenceTransformer(location, device=device, model_kwargs={"dtype": torch.bfloat16})

    def peer(one: Any, autocast: bool = False) -> Encode:
        def encode(texts: Sequence[str]) -> np.ndarray:
            with torch.autocast(device.split(":")[0], torch.bfloat16) if autocast else nullcontext():
                found = one.encode(
                    list(texts), convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False
                )
            return np.asarray(found, dtype=np.float32)

        return encode

    def ours(precision: str) -> Encode:
        values = {"model": model, "device": device, "precision": precision}
        return Encoder.load(EncoderConfig.model_validate(values)).encode_passages

    others = {name: peer(one) for name, one in _other_backends(location).items()}
    yield {
        "sentence-transformers float32 (default)": peer(plain),
        "sentence-transformers bf16 autocast": peer(plain, autocast=True),
        "sentence-transformers bf16 weights": peer(half),
        **others,
        "ragadapt float32": ours("float32"),
        "ragadapt auto": ours("auto"),
    }


def _other_backends(location: str) -> dict[str, Any]:
    """sentence-transformers with its ONNX and OpenVINO backends, as far as they are installed (pip install
    'sentence-transformers[onnx,openvino]'), in float32, bfloat16 and 8 bits, as each offers it."""
    from sentence_transformers import SentenceTransformer

    found: dict[str, Any] = {}
    if importlib.util.find_spec("optimum") is None:
        return found
    import torch

    threads = torch.get_num_threads()  # OpenVINO takes all cores otherwise
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        f"{ONNX} float32": ("onnx", {"provider": "CPUExecutionProvider"}),
        f"{OPENVINO} float32": (
            "openvino",
            {"ov_config": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}},
        ),
        f"{OPENVINO} bf16": (
            "openvino",
            {"ov_config": {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads}},
        ),
    }
    for name, (backend, settings) in ways.items():
        try:
            found[name] = SentenceTransformer(
                location, backend=backend, device="cpu", model_kwargs={**settings, "export": True}
            )
        except Exception as error:  # not installed, or not with this version of the others
            print(f"{name}: not measured ({error})", file=sys.stderr)
    if f"{ONNX} float32" in found:
        try:
            found[f"{ONNX} int8"] = _quantised(found[f"{ONNX} float32"])
        except Exception as error:
            print(f"{ONNX} int8: not measured ({error})", file=sys.stderr)
    return found


def _quantised(model: Any) -> Any:
    """The model of the ONNX backend with weights in 8 bits, activations rounded as they come."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    with tempfile.TemporaryDirectory(prefix="ragadapt-speed-") as folder:
        model.save_pretrained(folder)
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", folder)
        name = next(path.name for path in Path(folder).rglob("*qint8*.onnx"))
        settings = {"provider": "CPUExecutionProvider", "file_name": f"onnx/{name}"}
        return SentenceTransformer(folder, backend="onnx", device="cpu", model_kwargs=settings)


def encode(bench: Bench) -> None:
    """Passages per second on passages as they are and on texts of mixed length, and the share that they reach of what
    the processor multiplies in bfloat16 at best; nDCG@10 of those in the table."""
    import torch

    from ragadapt.config import EncoderConfig
    from ragadapt.encoder import Encoder
    from ragadapt.encoder.presets import resolve

    sizes, collection, judged = bench.sizes, bench.collection(), bench.judged()
    peaks = {kind: matrix_peak("cpu", kind) for kind in ("float32", "bfloat16", "int8")}
    bench.add("encode", "peak", per_second=peaks, threads=torch.get_num_threads())
    config = EncoderConfig(model=bench.model, device="cpu", precision="float32")
    location, reader = resolve(config).location, Encoder.load(config)
    rng = np.random.default_rng(bench.seed)
    unique = list(dict.fromkeys(collection.texts))
    passages = [unique[at] for at in rng.permutation(len(unique))[: sizes.texts]]
    sets = {"passages": passages, "mixed lengths": mixed_lengths(unique, sizes.texts, seed=bench.seed)}
    with encoders(bench.model, "cpu") as contenders:
        for encode_one in contenders.values():
            encode_one(passages[:16])
        for name, texts in sets.items():
            seconds: dict[str, list[float]] = {side: [] for side in contenders}
            vectors: dict[str, np.ndarray] = {}
            for _ in range(sizes.repeats):
                for side, encode_one in contenders.items():
                    started = time.perf_counter()
                    vectors[side] = encode_one(texts)
                    seconds[side].append(time.perf_counter() - started)
            reference = vectors["sentence-transformers float32 (default)"]
            lengths = [min(n + reader.special_tokens, reader.max_length) for n in reader.count_tokens(texts)]
            operations = forward_operations(location, lengths)
            for side in contenders:
                bench.add(
                    "encode", "speed", side=side, texts=name, count=len(texts), tokens=sum(lengths),
                    per_second=len(texts) / median(seconds[side]), seconds=seconds[side],
                    share_of_peak=_share(operations, median(seconds[side]), peaks["bfloat16"]),
                    least_cosine=float(np.min(np.sum(vectors[side] * reference, axis=1))),
                    threads=torch.get_num_threads(),
                )  # fmt: skip
        from ragadapt.evaluation import evaluate

        asked, qrels = judged.asked("test"), judged.qrels["test"]
        judged_sides = (DEFAULT, BF16, f"{OPENVINO} bf16", "ragadapt auto")
        for side in (side for side in judged_sides if side in contenders):
            encode_one = contenders[side]
            scores = encode_one(list(asked.values())) @ encode_one(judged.texts).T  # (Q, d) x (D, d) -> (Q, D)
            found = evaluate(run_of(scores, list(asked), judged.ids, 100), qrels).mean["nDCG@10"]
            bench.add("encode", "quality", side=side, ndcg=found, documents=len(judged.ids))


# Training


def write_triples(bench: Bench) -> Path:
    """Query, answer and the best wrong document by BM25, for every judgement of the train split, shuffled."""
    path = bench.folder / "triples.jsonl"
    if path.exists():
        return path
    collection = bench.collection()
    asked = collection.asked("train")
    place = {id: at for at, id in enumerate(collection.ids)}
    scores = plain_bm25(collection.texts, list(asked.values()))
    rows = []
    for row, id in zip(scores, asked, strict=True):
        right = {place[document] for document in collection.qrels["train"][id]}
        wrong = next(at for at in np.argsort(-row, kind="stable") if int(at) not in right)
        for at in sorted(right):
            texts = {"positive": collection.texts[at], "negative": collection.texts[int(wrong)]}
            rows.append({"query": asked[id], **texts})
    order = np.random.default_rng(bench.seed).permutation(len(rows))
    path.write_text("".join(json.dumps(rows[at]) + "\n" for at in order), encoding="utf-8")
    return path


TRAINERS: dict[str, tuple[str, dict[str, str]]] = {
    "sentence-transformers float32 (default)": ("train-peer", {"precision": "float32"}),
    "sentence-transformers bf16": ("train-peer", {"precision": "bfloat16"}),
    "ragadapt": ("train-ours", {"precision": "auto"}),
}


def train(bench: Bench) -> None:
    """Examples per second and peak memory with the same LoraConfig, loss, batch and data; then nDCG@10 of both."""
    from ragadapt.evaluation import paired_bootstrap

    shared = {
        "triples": write_triples(bench),
        "model": bench.model,
        "device": "cpu",
        "seed": bench.seed,
    }
    from ragadapt.config import EncoderConfig
    from ragadapt.encoder.presets import resolve

    location, peak = resolve(EncoderConfig(model=bench.model)).location, matrix_peak("cpu")
    operations = training_operations(location, shared["triples"], bench.sizes.examples)
    for layers in ("all", "upper"):
        runs: dict[str, list[Row]] = {side: [] for side in TRAINERS}
        for _ in range(bench.sizes.train_repeats):
            for side, (name, options) in TRAINERS.items():
                timed = {"layers": layers, "epochs": bench.sizes.train_epochs, "examples": bench.sizes.examples}
                runs[side].append(bench.worker(name, **shared, **timed, **options))
        if len({found["trainable"] for rows in runs.values() for found in rows}) != 1:
            raise RuntimeError(f"the two sides train different numbers of weights: {runs}")
        for side, rows in runs.items():
            rate = median(found["examples_per_second"] for found in rows)
            bench.add(
                "train", "speed", side=side, layers=layers, examples=bench.sizes.examples,
                epochs=bench.sizes.train_epochs, per_second=rate,
                share_of_peak=_share(operations, 1 / rate, peak) if layers == "all" else None,
                each=[found["examples_per_second"] for found in rows],
                peak_bytes=median(found["peak_bytes"] for found in rows),
                precision=rows[-1]["precision"], trainable=rows[-1]["trainable"],
            )  # fmt: skip
    whole = {"layers": "all", "epochs": bench.sizes.epochs, "quality": True}
    if bench.sizes.documents is not None:
        whole["examples"] = bench.sizes.examples
    judged = {"data": bench.data, "collection": "scifact", "documents": bench.sizes.documents}
    quality = {
        side: bench.worker(name, **shared, **whole, **judged, **options) for side, (name, options) in TRAINERS.items()
    }
    reference = quality["sentence-transformers float32 (default)"]["ndcg"]
    for side, found in quality.items():
        mine = [found["ndcg"][query] for query in reference]
        interval = paired_bootstrap(mine, list(reference.values()), seed=bench.seed)
        bench.add(
            "train", "quality", side=side, ndcg=float(np.mean(mine)), epochs=bench.sizes.epochs,
            over_default=[interval.low, interval.delta, interval.high], seconds=found["seconds"],
            peak_bytes=found["peak_bytes"],
        )  # fmt: skip


def cache(bench: Bench) -> None:
    """Second epoch, and a second run with other settings, against the first epoch, which fills the cache.

    Once with half of the layers trained, once with a third: the fewer, the more the cache saves. By default all are
    trained, and nothing is kept.
    """
    options = {
        "triples": write_triples(bench), "model": bench.model, "device": "cpu", "examples": bench.sizes.examples,
    }  # fmt: skip
    for layers in (3, 2):
        rows = [bench.worker("cache", **options, layers=layers) for _ in range(bench.sizes.train_repeats)]
        middle = {key: median(row[key] for row in rows) for key in rows[0]}
        bench.add(
            "cache", "speed", side="ragadapt", layers=layers, examples=bench.sizes.examples, each=rows, **middle,
            second_epoch=middle["first_epoch_seconds"] / middle["second_epoch_seconds"],
            second_run=middle["first_epoch_seconds"] / middle["second_run_seconds"],
        )  # fmt: skip


# Architectures


def architectures(bench: Bench) -> None:
    """Seconds of encoding and of LoRA training by models of the presets' shapes, beside peers on the same model."""
    sizes = bench.sizes
    for name, (shape, changes) in PRESET_SHAPES.items():
        model = shaped_model(bench.folder / re.sub(r"\W+", "-", name.lower()), shape, **changes)
        found = bench.attempt(
            "architectures", name, "architecture", model=model, triples=write_triples(bench), seed=bench.seed,
            texts=sizes.shape_texts, examples=sizes.shape_examples, words=sizes.shape_words,
            repeats=sizes.shape_repeats,
        )  # fmt: skip
        for row in found["rows"] if found is not None else []:
            bench.add("architectures", "speed", shape=name, **row)


# Mining

MINERS = {
    "sentence-transformers mine_hard_negatives": "peer",
    "sentence-transformers mine_hard_negatives, faiss": "peer-faiss",
    "ragadapt, dense": "dense",
    "ragadapt, hybrid": "hybrid",
}


def mining(bench: Bench) -> None:
    """Hard negatives for many queries from vectors at hand: time, peak memory, and agreement with the peer."""
    sizes = bench.sizes
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="mining-") as name:
        folder = Path(name)
        _mining_input(bench, folder)
        runs: dict[str, list[Row]] = {side: [] for side in MINERS}
        shared = {"input": folder, "model": str(tiny_model(bench.folder / "tiny"))}
        bench.worker("mine", **shared, side="hybrid")  # writes the lexical index, which is not what is measured
        for _ in range(sizes.mining_repeats):
            for side, key in MINERS.items():
                found = bench.attempt("mining", side, "mine", **shared, side=key)
                if found is not None:
                    runs[side].append(found)
        runs = {side: rows for side, rows in runs.items() if rows}
        mined = {side: np.load(folder / f"mined-{MINERS[side]}.npz") for side in runs}
        reference = mined.get("sentence-transformers mine_hard_negatives", {})
        for side, rows in runs.items():
            pairs = [(set(reference[key].tolist()), set(mined[side][key].tolist())) for key in reference]
            shared_share = [len(theirs & ours) / len(theirs) for theirs, ours in pairs if theirs]
            bench.add(
                "mining", "speed", side=side, chunks=sizes.chunks, queries=sizes.queries,
                seconds=median(found["seconds"] for found in rows), each=[found["seconds"] for found in rows],
                peak_bytes=median(found["peak_bytes"] for found in rows), input_bytes=rows[-1]["input_bytes"],
                mined=rows[-1]["mined"], same_as_peer=float(np.mean(shared_share)) if shared_share else None,
            )  # fmt: skip


def _mining_input(bench: Bench, folder: Path) -> None:
    """Real sentences mixed into passages; vectors around 1,000 topics, queries near their passage."""
    sizes, rng = bench.sizes, np.random.default_rng(bench.seed)
    corpus = folder / "corpus.jsonl"
    write_corpus(bench.collection().texts, sizes.chunks, corpus, seed=bench.seed)
    rows = [json.loads(line) for line in corpus.open(encoding="utf-8")]
    texts = [f"{row['title']} {row['text']}" for row in rows]
    assert len(set(texts)) == len(texts)
    positives = rng.choice(sizes.chunks, size=min(sizes.queries, sizes.chunks), replace=False)
    topics = rng.standard_normal((1000, 384), dtype=np.float32)
    passages = topics[rng.integers(1000, size=sizes.chunks)]
    passages = _unit(passages + rng.standard_normal(passages.shape, dtype=np.float32))
    queries = _unit(passages[positives] + 0.04 * rng.standard_normal((len(positives), 384), dtype=np.float32))
    np.savez(folder / "vectors.npz", passages=passages, queries=queries, positives=positives)
    asked = [f"{number} {' '.join(texts[at].split()[:12])}" for number, at in enumerate(positives)]
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    (folder / "queries.json").write_text(json.dumps(asked), encoding="utf-8")


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Growth


def growth(bench: Bench) -> None:
    """Time and peak memory of whole fits at several sizes, without and with training; exponents and two charts."""
    model = str(tiny_model(bench.folder / "tiny"))
    index = "faiss" if importlib.util.find_spec("faiss") else "exact"
    texts = bench.collection().texts
    for size in bench.sizes.growth:
        for method in ("none", "lora"):
            with tempfile.TemporaryDirectory(dir=bench.folder, prefix="growth-") as name:
                corpus = Path(name) / "corpus.jsonl"
                write_corpus(texts, size, corpus, labels=bench.sizes.labels, seed=bench.seed)
                options = {"corpus": corpus, "target": Path(name) / "retriever", "model": model, "index": index}
                found = bench.attempt("growth", f"{method} {size}", "fit", **options, method=method)
            if found is not None:
                bench.add("growth", "fit", size=size, method=method, index=index, **found)
    fits = [row for row in bench.rows if row["part"] == "growth" and row["what"] == "fit"]
    for method in ("none", "lora"):
        mine = sorted((row for row in fits if row["method"] == method), key=lambda row: row["chunks"])
        if len(mine) < 2:
            continue
        for measure in ("seconds", "peak_bytes"):
            overall, last = exponents([row["chunks"] for row in mine], [row[measure] for row in mine])
            bench.add("growth", "exponent", method=method, measure=measure, overall=overall, last=last)
    for path in draw_growth(fits, bench.folder):
        print(f"chart: {path}")


def exponents(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The power of the size with which the values grow: fitted through all points, and between the last two.

    What does not grow (loading a model) pulls the first one down; the second hardly feels it.
    """
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(values, dtype=float))
    overall = float(np.polyfit(x, y, 1)[0])
    return overall, float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def draw_growth(fits: Sequence[Row], folder: Path) -> list[Path]:
    """growth-time.svg and growth-memory.svg."""
    from ragadapt.report.charts import Series, line_chart

    labels = {"none": "--method none", "lora": "with training"}
    written = []
    for name, measure, unit, y_label in (
        ("time", "seconds", 60.0, "minutes"),
        ("memory", "peak_bytes", 1e9, "GB at most"),
    ):
        series = []
        for method, label in labels.items():
            rows = sorted((row for row in fits if row["method"] == method), key=lambda row: row["chunks"])
            series.append(Series(label, [row["chunks"] for row in rows], [row[measure] / unit for row in rows]))
        chart = line_chart(series, title=f"Growth of a fit: {name}", x_label="passages", y_label=y_label)
        written.append(write_chart(folder / f"growth-{name}.svg", chart))
    return written


# The command line


def cli(bench: Bench) -> None:
    """Wall-clock seconds of `ragadapt --help`, `import ragadapt` and a search on a warm cache."""
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="cli-") as name:
        retriever = Path(name) / "retriever"
        program = [sys.executable, "-m", "ragadapt_cli"]
        pages = HERE.parent / "pages"
        _wall([*program, "fit", str(pages), "-o", str(retriever), "--model", bench.model, "--method", "none", "-q"])
        commands = {
            "ragadapt --help": [*program, "--help"],
            "import ragadapt": [sys.executable, "-c", "import ragadapt"],
            "ragadapt search": [*program, "search", str(retriever), "how do I get my money back?"],
            "python alone": [sys.executable, "-c", "pass"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for command in commands.values():
            _wall(command)
        for _ in range(bench.sizes.cli_repeats):
            for name, command in commands.items():
                seconds[name].append(_wall(command))
        for name, found in seconds.items():
            bench.add("cli", "speed", side=name, seconds=median(found), each=found)


def _wall(command: Sequence[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


# The GPU


GPU_ENCODE_BATCHES = (32, 128, 512)  # of the peer: the fastest counts


@dataclass(frozen=True)
class Material:
    """What a model encodes and trains on. shape: of the model, as rows name it. peak: operations a second of a large
    matrix product in bfloat16. until: when nothing more begins, by `time.perf_counter`."""

    texts: list[str]
    triples: Path
    shape: str
    model: str
    peak: float
    until: float = float("inf")


def gpu(bench: Bench) -> None:
    """On CUDA: encoding, training and mining of the base model beside the peer.

    Everything of the parts gpu… runs in this process, warm; memory is what torch allocated on the GPU.
    """
    until = time.perf_counter() + bench.sizes.gpu_seconds
    if _names_device(bench, "gpu"):
        texts = _gpu_texts(bench)
        shape, model = _gpu_model(bench, texts)
        material = Material(texts, _gpu_triples(bench, texts), shape, model, matrix_peak(bench.device), until)
        bench.add("gpu", "peak", device=bench.device, bfloat16_per_second=material.peak)
        _gpu_encode(bench, "gpu", material)
        _gpu_train(bench, "gpu", material, bench.sizes.gpu_batches)
        _gpu_mining(bench, until)


def gpu_shapes(bench: Bench) -> None:
    """The same for random weights in the shapes of other models."""
    if _names_device(bench, "gpu-shapes"):
        texts, peak = _gpu_texts(bench), matrix_peak(bench.device)
        for shape in SHAPES:
            model = str(shaped_model(bench.folder / re.sub(r"\W+", "-", shape.lower()), shape))
            material = Material(texts, _gpu_triples(bench, texts), shape, model, peak)
            _gpu_encode(bench, "gpu-shapes", material)
            _gpu_train(bench, "gpu-shapes", material, bench.sizes.gpu_batches[:1])


def gpu_fit(bench: Bench) -> None:
    """A whole fit with labels by stage, and the cache of frozen layers."""
    if _names_device(bench, "gpu-fit"):
        _gpu_fit(bench)
        _gpu_cache(bench)


def _gpu_texts(bench: Bench) -> list[str]:
    """The collection's passages; without a collection, pieces of this repository's pages."""
    sizes = bench.sizes
    if bench.data is None:
        return bare.own_texts(sizes.gpu_texts, words=sizes.gpu_words, seed=bench.seed)
    return list(dict.fromkeys(bench.collection().texts))[: sizes.gpu_texts]


def _gpu_model(bench: Bench, texts: list[str]) -> tuple[str, str]:
    """(what rows call it, folder): the base model; where its package is missing, random weights of MiniLM's shape."""
    from ragadapt.config import EncoderConfig
    from ragadapt.encoder.presets import resolve
    from ragadapt.errors import MissingExtra

    try:
        return bench.model, resolve(EncoderConfig(model=bench.model)).location
    except MissingExtra:
        shape = {"num_hidden_layers": bench.sizes.gpu_layers, "vocab_size": bench.sizes.gpu_vocabulary}
        name = "-".join(str(size) for size in ("minilm", *shape.values()))
        folder = bare.minilm_shaped(bench.folder / name, texts, **shape)
        return "MiniLM's shape, random weights", str(folder)


def _gpu_triples(bench: Bench, texts: list[str]) -> Path:
    """The collection's judgements with negatives by BM25; where either is missing, words of passages."""
    if bench.data is not None and importlib.util.find_spec("bm25s"):
        return write_triples(bench)
    return bare.own_triples(texts[: bench.sizes.gpu_examples], bench.folder / "own-triples.jsonl")


def _names_device(bench: Bench, part: str) -> bool:
    """Writes down what the part runs on; False, and that too, where there is no such device."""
    import torch

    if bench.device.startswith("cuda") and not torch.cuda.is_available():
        bench.add(part, "device", measured=None, reason="no CUDA device")
        return False
    name = torch.cuda.get_device_name(0) if bench.device.startswith("cuda") else bench.device
    packages = ("torch", "transformers", "sentence-transformers", "peft")
    bench.add(part, "device", name=name, versions={package: version(package) for package in packages})
    return True


def _gpu_encode(bench: Bench, part: str, material: Material) -> None:
    """Passages per second, the share of the peak that they reach, and where our time goes."""
    import torch
    from sentence_transformers import SentenceTransformer

    from ragadapt.config import EncoderConfig
    from ragadapt.encoder import Encoder
    from ragadapt.profiling import profiled

    on_gpu = bench.device.startswith("cuda")
    texts, shape = material.texts, material.shape

    def peer(dtype: Any) -> Callable[..., np.ndarray]:
        one = SentenceTransformer(material.model, device=bench.device, model_kwargs={"dtype": dtype})
        settings: dict[str, Any] = {
            "convert_to_numpy": True, "normalize_embeddings": True, "show_progress_bar": False
        }  # fmt: skip
        return lambda some, size: np.asarray(one.encode(list(some), batch_size=size, **settings), dtype=np.float32)

    def seconds_of(run: Callable[[], Any]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    half = peer(torch.bfloat16)
    half(texts[:64], 32)
    tried = {}
    for size in GPU_ENCODE_BATCHES:
        half(texts[:size], size)
        tried[size] = seconds_of(lambda size=size: half(texts[:2048], size))
    best = min(tried, key=lambda size: tried[size])
    encoder = Encoder.load(EncoderConfig.model_validate({"model": material.model, "device": bench.device}))
    contenders: dict[str, Encode] = {BF16: lambda some: half(some, best), "ragadapt auto": encoder.encode_passages}
    if part == "gpu":
        whole = peer(torch.float32)
        contenders = {DEFAULT: lambda some: whole(some, 32), **contenders}
    seconds: dict[str, list[float]] = {side: [] for side in contenders}
    vectors, memory = {}, {}
    for encode_one in contenders.values():
        encode_one(texts[:1024])
    for repeat in range(bench.sizes.gpu_repeats):
        if repeat and time.perf_counter() > material.until:
            break
        for side, encode_one in contenders.items():
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated() if on_gpu else 0
            started = time.perf_counter()
            vectors[side] = encode_one(texts)
            seconds[side].append(time.perf_counter() - started)
            memory[side] = int(torch.cuda.max_memory_allocated() - held) if on_gpu else None
    with profiled() as profile:
        encoder.encode_passages(texts)
    work = {done.kind: [done.seconds, done.beside_seconds] for done in profile.of_stage("")}
    lengths = [min(count + encoder.special_tokens, encoder.max_length) for count in encoder.count_tokens(texts)]
    operations = forward_operations(material.model, lengths)
    for side in contenders:
        middle = median(seconds[side])
        bench.add(
            f"{part}-encode", "speed", side=side, shape=shape, device=bench.device, count=len(texts),
            tokens=sum(lengths), per_second=len(texts) / middle, seconds=seconds[side],
            peak_beyond_weights=memory[side], share_of_peak=_share(operations, middle, material.peak),
            least_cosine=float(np.min(np.sum(vectors[side] * vectors[BF16], axis=1))),
            batch={BF16: best, DEFAULT: 32}.get(side), tried=tried if side == BF16 else None,
            work=work if side == "ragadapt auto" else None, precision=encoder.precision.words,
        )  # fmt: skip


def _gpu_train(bench: Bench, part: str, material: Material, batches: Sequence[int]) -> None:
    """Examples per second of an epoch with the same LoraConfig, loss, batch, schedule and data, all layers trained."""
    shared = {
        "triples": material.triples, "model": material.model, "device": bench.device, "seed": bench.seed,
        "layers": "all", "epochs": bench.sizes.train_epochs, "repeats": bench.sizes.gpu_repeats,
    }  # fmt: skip
    if bench.sizes.documents is not None:
        shared["examples"] = bench.sizes.examples
    operations = training_operations(material.model, material.triples, shared.get("examples"))
    for batch in batches:
        for side, (name, options) in GPU_TRAINERS.items():
            if side == DEFAULT and (part != "gpu" or batch != bench.sizes.gpu_batches[0]):
                continue
            about = {"side": side, "shape": material.shape, "device": bench.device, "batch": batch}
            if time.perf_counter() > material.until:
                bench.add(f"{part}-train", "left out", reason="the time was over", **about)
                continue
            found = _in_this_process(bench, name, **shared, batch=batch, **options)
            if found is not None:
                found["per_second"] = found.pop("examples_per_second")
                found["share_of_peak"] = _share(operations, 1 / found["per_second"], material.peak)
                bench.add(f"{part}-train", "speed", **about, **found)


def _gpu_mining(bench: Bench, until: float) -> None:
    """The best passages of many queries, which is what mining and every look at the dev part wait for: exact on the
    CPU, by FAISS on the CPU, by FAISS on the GPU where it can."""
    sizes = bench.sizes
    rng = np.random.default_rng(bench.seed)
    passages = _unit(rng.standard_normal((sizes.chunks, 384), dtype=np.float32))
    queries = _unit(passages[: sizes.queries] + rng.standard_normal((sizes.queries, 384), dtype=np.float32) / 40)
    kinds = {"exact": {}, "faiss": {"device": "cpu"}, "faiss on the GPU": {"device": "auto"}}
    for name, settings in kinds.items():
        about = {"side": name, "chunks": sizes.chunks, "queries": sizes.queries}
        reason = _no_mining(name) or ("the time was over" if time.perf_counter() > until else "")
        if reason:
            bench.add("gpu", "mining", measured=None, reason=reason, **about)
            continue
        from ragadapt.index import open_index

        with open_index(name.split()[0], None, dim=384, **settings) as index:
            index.upsert([str(at) for at in range(sizes.chunks)], passages)
            index.search(queries[:64], 100)
            started = time.perf_counter()
            best = []
            for start in range(0, len(queries), 1024):
                best += [ids[0] for ids, _ in index.search(queries[start : start + 1024], 100)]
            seconds = time.perf_counter() - started
            right = float(np.mean([id == str(at) for at, id in enumerate(best)]))
            bench.add("gpu", "mining", seconds=seconds, found=right, **about)


def _no_mining(name: str) -> str:
    """Why this kind of search cannot be measured here; "" where it can."""
    try:
        importlib.import_module("ragadapt.index")
    except ImportError as error:
        return str(error)
    if not name.startswith("faiss"):
        return ""
    if importlib.util.find_spec("faiss") is None:
        return "no faiss"
    import faiss

    gpus = getattr(faiss, "get_num_gpus", lambda: 0)()
    return "" if gpus or name == "faiss" else "no faiss-gpu, or no GPU"


def _in_this_process(bench: Bench, name: str, **options: Any) -> Row | None:
    """A worker without a process of its own: on a GPU its memory is counted apart, and starting takes longer than
    what is measured. None where it fails."""
    import torch
    from speed_workers import WORKERS

    gc.collect()
    if bench.device.startswith("cuda"):
        torch.cuda.empty_cache()
    try:
        return WORKERS[name](json.loads(json.dumps(options, default=str)))
    except Exception as error:
        traceback.print_exc()
        bench.add("gpu", "failed", side=name, reason=str(error)[-500:])
        return None


def _gpu_cache(bench: Bench) -> None:
    """The cache of frozen layers: half of the layers trained."""
    options = {"triples": write_triples(bench), "model": bench.model, "device": bench.device, "layers": 3}
    if bench.sizes.documents is not None:
        options["examples"] = bench.sizes.examples
    rows = [_in_this_process(bench, "cache", **options) for _ in range(min(3, bench.sizes.gpu_repeats))]
    for row in rows:
        if row is not None:
            bench.add("gpu-fit", "cache", layers=3, device=bench.device, **row)


def _gpu_fit(bench: Bench) -> None:
    """A whole fit on the collection with its train labels: seconds by stage, and nDCG@10 on its test split."""
    from ragadapt import FitConfig, Labels, Retriever, fit
    from ragadapt.evaluation import evaluate

    collection = bench.collection()
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="gpu-fit-") as name:
        files = write_labels(collection, "train", list(collection.qrels["train"]), Path(name))
        values = {
            "encoder": {"model": bench.model, "device": bench.device}, "index": {"kind": "exact"}, "seed": bench.seed
        }  # fmt: skip
        started = time.perf_counter()
        result = fit([collection.corpus], Path(name) / "fitted", FitConfig.build(values), labels=[Labels(*files)])
        seconds = time.perf_counter() - started
        with Retriever.open(result.path) as retriever:
            ndcg = {
                mode: evaluate(retriever.run(collection.asked("test"), 100, mode=mode), collection.qrels["test"])
                for mode in ("hybrid", "dense")
            }
        bench.add(
            "gpu-fit", "fit", device=bench.device, seconds=seconds, verdict=result.verdict,
            stages={timing.stage: timing.seconds for timing in result.report.timings},
            chunks=result.report.corpus.chunks if result.report.corpus else None,
            ndcg={mode: found.mean["nDCG@10"] for mode, found in ndcg.items()},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections in BEIR layout; scifact is used")
    parser.add_argument("--folder", type=Path, help="where results go; parts join those that are there")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument(
        "--table", action="store_true", help="print the tables of FOLDER/speed.json and measure nothing"
    )
    parser.add_argument("--smoke", action="store_true", help="every part at a size of seconds")
    parser.add_argument("--model", default="offline")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--device", default="cuda", help="of the parts gpu…")
    parser.add_argument("--price", type=float, default=0.04, help="of a core-hour, in the estimate")
    for name, kind in Sizes.__annotations__.items():
        help = f"{kind}; default {getattr(Sizes(), name)}"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=f"size_{name}", help=help)
    arguments = parser.parse_args()
    place = arguments.folder or Path(tempfile.mkdtemp(prefix="ragadapt-speed-"))
    place.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.data, place, sizes_of(arguments), arguments.model, arguments.seed, arguments.device)
    failed = []
    if not arguments.table:
        alone = arguments.parts == "gpu"
        if bare.STANDS_IN and not alone:
            parser.error("only the part gpu does without ragadapt's own requirements: pip install '.[benchmarks]'")
        if arguments.data is None and not alone:
            parser.error("--data is needed to measure")
        if arguments.data is not None:
            check_data(parser, arguments.data, ["scifact"])
        if importlib.util.find_spec("datasets") is None and not alone:
            parser.error("sentence-transformers trains and mines with datasets: pip install '.[benchmarks]'")
        functions = (encode, train, architectures, cache, mining, growth, cli, gpu, gpu_shapes, gpu_fit)
        parts: dict[str, Callable[[Bench], None]] = dict(zip(PARTS, functions, strict=True))
        chosen = arguments.parts.split(",")
        if unknown := set(chosen) - set(parts):
            parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        for part in chosen:
            for name in (part, f"{part}-encode", f"{part}-train"):
                bench.forget(name)
            try:
                parts[part](bench)
            except Exception:  # a part that fails must not cost the others' hours
                traceback.print_exc()
                failed.append(part)
    print("\n" + table(bench.rows) + "\n")
    print(estimate(bench.rows, os.cpu_count() or 1, arguments.price) + "\n")
    print(f"written: {bench.file}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The defaults or the smoke sizes, with what the options change."""
    base = SMOKE if arguments.smoke else Sizes()
    changes: dict[str, Any] = {}
    for name in Sizes.__annotations__:
        text = getattr(arguments, f"size_{name}")
        if text is not None:
            numbers = [float(part) if name == "epochs" else int(part) for part in text.split(",")]
            changes[name] = tuple(numbers) if name in ("growth", "gpu_batches") else numbers[0]
    return replace(base, **changes)


if __name__ == "__main__":
    main()

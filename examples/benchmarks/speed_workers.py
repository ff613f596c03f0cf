"""What speed.py measures in a process of its own, so that the peak memory is that of one thing.

    python examples/benchmarks/speed_workers.py NAME OPTIONS-AS-JSON

The last line of stdout is the result as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("TQDM_DISABLE", "1")

RANK, BATCH, RATE, TEMPERATURE = 16, 32, 5e-4, 0.05


def peak_bytes() -> int:
    """The most memory that this process held so far. A child's ru_maxrss would begin with its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(prepare: Callable[[], Callable[[], Any]], count: float, options: dict[str, Any]) -> dict[str, Any]:
    """Runs what it prepares, options["repeats"] times, once without that: rate of the middle run, and of each."""
    each = []
    for _ in range(options.get("repeats", 1)):
        run = prepare()
        if options["device"].startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if options["device"].startswith("cuda"):
            torch.cuda.synchronize()
        each.append(time.perf_counter() - started)
    seconds = median(each)
    return {"examples_per_second": count / seconds, "seconds": seconds, "each": [count / took for took in each]}


def memory(device: str) -> dict[str, int]:
    """Peak memory of the process, and of the GPU where one was used."""
    found = {"peak_bytes": peak_bytes()}
    if device.startswith("cuda"):
        import torch

        found["gpu_peak_bytes"] = int(torch.cuda.max_memory_allocated())
    return found


# Training


def _triples(options: dict[str, Any]) -> list[dict[str, str]]:
    lines = Path(options["triples"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return rows[: options["examples"]] if options.get("examples") else rows


def _layers(model: Any, which: str) -> int | None:
    """AdapterConfig.layers: None = all, which is what ragadapt trains by default."""
    return None if which == "all" else -(-int(model.config.num_hidden_layers) // 2)


def train_ours(options: dict[str, Any]) -> dict[str, Any]:
    """ragadapt's loop: examples per second over the whole call, tokens and frozen layers included."""
    from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
    from ragadapt.encoder import Encoder
    from ragadapt.training import Example, train

    values = {"model": options["model"], "device": options["device"], "precision": options.get("precision", "auto")}
    encoder = Encoder.load(EncoderConfig.model_validate(values))
    examples = [Example(row["query"], row["positive"], (row["negative"],)) for row in _triples(options)]
    adapter = AdapterConfig(rank=RANK, layers=_layers(encoder.query_tower.model, options["layers"]), reweight="none")
    training = TrainingConfig(
        epochs=options["epochs"], batch_size=options.get("batch", BATCH), learning_rate=RATE,
        temperature=TEMPERATURE, prefix_cache=options["layers"] == "upper",
    )  # fmt: skip
    some = examples[: training.batch_size]
    train(encoder, some, None, adapter, training.model_copy(update={"epochs": 1}))  # kernels are chosen
    results = []

    def run() -> None:
        results[:] = [train(encoder, examples, None, adapter, training, seed=options["seed"])]

    speed = timed(lambda: run, len(examples) * options["epochs"], options)
    result = results[0]
    measured = {
        **speed,
        "precision": encoder.precision.dtype,
        "trainable": sum(parameter.numel() for parameter in result.encoder.trainable().values()),
        "loss": result.history[-1].loss,
        **memory(encoder.precision.device),
    }
    if options.get("quality"):
        merged = result.encoder.merged()
        measured["ndcg"] = _quality(options, merged.encode_queries, merged.encode_passages)
    return measured


def _trainer(
    model: Any, rows: list[dict[str, str]], epochs: float, batch: int, folder: str, options: dict[str, Any]
) -> Callable[[], Any]:
    """SentenceTransformerTrainer over these rows, ready to train; without datasets, which it needs, a plain loop."""
    if not has_datasets():
        return _plain_loop(model, rows, epochs, batch, options)
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    data = Dataset.from_dict({name: [row[name] for row in rows] for name in ("query", "positive", "negative")})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=batch, learning_rate=RATE,
        lr_scheduler_type="linear", warmup_steps=0.1, weight_decay=0.0, max_grad_norm=1.0,
        bf16=options["precision"] == "bfloat16", use_cpu=options["device"] == "cpu", save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, seed=options["seed"],
    )  # fmt: skip
    kind = CachedMultipleNegativesRankingLoss if options.get("cached") else MultipleNegativesRankingLoss
    loss = kind(model, scale=1 / TEMPERATURE)
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    return trainer.train  # type: ignore[no-any-return]


def has_datasets() -> bool:
    return importlib.util.find_spec("datasets") is not None


def _plain_loop(
    model: Any, rows: list[dict[str, str]], epochs: float, batch: int, options: dict[str, Any]
) -> Callable[[], Any]:
    """sentence-transformers' model and loss, as its trainer runs them, without what the trainer does beside it: AdamW,
    a linear schedule after a warm-up, clipped gradients, autocast. A little quicker than the trainer, if anything."""
    import torch
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
    from transformers import get_linear_schedule_with_warmup

    device = torch.device(options["device"])
    kind = CachedMultipleNegativesRankingLoss if options.get("cached") else MultipleNegativesRankingLoss
    loss = kind(model, scale=1 / TEMPERATURE)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = max(1, round(epochs * -(-len(rows) // batch)))
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    order = torch.Generator().manual_seed(options["seed"])
    prepare = getattr(model, "preprocess", None) or model.tokenize

    def run() -> None:
        model.train()
        batches: list[list[int]] = []
        for _ in range(steps):
            if not batches:
                mixed = torch.randperm(len(rows), generator=order).tolist()
                batches = [mixed[at : at + batch] for at in range(0, len(mixed), batch)]
            some = [rows[at] for at in batches.pop(0)]
            features = [
                {key: value.to(device) for key, value in prepare([row[name] for row in some]).items()
                 if isinstance(value, torch.Tensor)}
                for name in ("query", "positive", "negative")
            ]  # fmt: skip
            with torch.autocast(device.type, torch.bfloat16, enabled=options["precision"] == "bfloat16"):
                value = loss(features, torch.zeros(len(some), device=device))
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    return run


def train_peer(options: dict[str, Any]) -> dict[str, Any]:
    """SentenceTransformerTrainer with the same LoraConfig, loss, batch, learning rate, schedule and data.

    cached: its CachedMultipleNegativesRankingLoss, whose memory is bounded as ours is, at its own mini-batch of 32.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    from ragadapt.adapters.method import Scope
    from ragadapt.adapters.peft import LowRankOptions, lora_config, target_names
    from ragadapt.config import EncoderConfig
    from ragadapt.encoder.precision import choose_precision
    from ragadapt.encoder.presets import resolve

    location = resolve(EncoderConfig(model=options["model"])).location
    dtype = getattr(torch, options.get("weights", "float32"))
    model = SentenceTransformer(location, device=options["device"], model_kwargs={"dtype": dtype})
    inner = model[0].model
    targets = target_names(inner, Scope.of(inner, _layers(inner, options["layers"])), ())
    model.add_adapter(lora_config(LowRankOptions(rank=RANK), targets))
    rows = _triples(options)
    batch = options.get("batch", BATCH)
    folder = tempfile.TemporaryDirectory()

    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def start_again() -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name])

    def prepared(some: list[dict[str, str]], epochs: float) -> Callable[[], Any]:
        start_again()
        return _trainer(model, some, epochs, batch, folder.name, options)

    prepared(rows[:batch], 1)()  # kernels are chosen
    measured = {
        **timed(lambda: prepared(rows, options["epochs"]), len(rows) * options["epochs"], options),
        "precision": options["precision"],
        "loop": "its trainer" if has_datasets() else "a plain loop over its loss",
        "trainable": sum(parameter.numel() for parameter in start.values()),
        **memory(options["device"]),
    }
    if options.get("quality"):
        for module in inner.modules():
            if hasattr(module, "lora_A") and hasattr(module, "merge"):
                module.merge()
        model.eval()
        # In the precision that ragadapt takes on this machine, so that only the training differs.
        model.to(choose_precision("auto", options["device"]).torch_dtype)
        settings: dict[str, Any] = {"convert_to_numpy": True, "normalize_embeddings": True, "show_progress_bar": False}
        measured["ndcg"] = _quality(
            options, lambda texts: model.encode(texts, **settings), lambda texts: model.encode(texts, **settings)
        )
    return measured


Encode = Callable[[Sequence[str]], np.ndarray]


def _quality(options: dict[str, Any], queries: Encode, passages: Encode) -> dict[str, float]:
    """nDCG@10 per test query of dense search."""
    from beir import load, run_of

    from ragadapt.evaluation import evaluate

    collection = load(Path(options["data"]), options["collection"])
    asked, qrels = collection.asked("test"), collection.qrels["test"]
    ids, texts = collection.ids, collection.texts
    if options.get("documents"):
        ids, texts = ids[: options["documents"]], texts[: options["documents"]]
    scores = queries(list(asked.values())) @ passages(texts).T  # (Q, d) x (D, d) -> (Q, D)
    return dict(evaluate(run_of(scores, list(asked), ids, 100), qrels, ["nDCG@10"]).per_query["nDCG@10"])


def architecture(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every contender on one model, in turn: encoding as texts are and of mixed lengths, and one epoch of
    LoRA on all layers with the same configuration, loss, batch and data."""
    import torch
    from sentence_transformers import SentenceTransformer
    from synthetic import mixed_lengths

    from ragadapt.adapters.method import Scope
    from ragadapt.adapters.peft import LowRankOptions, lora_config, target_names
    from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
    from ragadapt.encoder import Encoder
    from ragadapt.training import Example, train

    batch, model = 8, str(options["model"])
    rows = [
        {name: " ".join(text.split()[: options["words"]]) for name, text in row.items()}
        for row in _triples({**options, "examples": max(options["examples"], options["texts"])})
    ]
    passages = list(dict.fromkeys(row["positive"] for row in rows))[: options["texts"]]
    mixed = mixed_lengths(passages, 2 * len(passages), seed=options["seed"])
    rows = rows[: options["examples"]]
    adapter = AdapterConfig(rank=RANK, reweight="none")
    folder = tempfile.TemporaryDirectory()
    sides: dict[tuple[str, str, str], Callable[[], Any]] = {}

    def add_ours(precision: str) -> None:
        values = {"model": model, "device": "cpu", "precision": precision}
        encoder = Encoder.load(EncoderConfig.model_validate(values))
        assert encoder.precision.dtype == precision
        examples = [Example(row["query"], row["positive"], (row["negative"],)) for row in rows]
        training = TrainingConfig(
            epochs=1, batch_size=batch, learning_rate=RATE, temperature=TEMPERATURE, prefix_cache=False
        )
        sides["encode, passages", precision, "ragadapt"] = lambda: encoder.encode_passages(passages)
        sides["encode, mixed lengths", precision, "ragadapt"] = lambda: encoder.encode_passages(mixed)
        sides["LoRA training", precision, "ragadapt"] = lambda: train(encoder, examples, None, adapter, training)

    def add_peer(precision: str, weights: str, name: str) -> None:
        loaded = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, weights)})
        plain = {"normalize_embeddings": True, "show_progress_bar": False}
        if weights == precision:  # autocast converts the weights for every batch: no peer of encoding
            sides["encode, passages", precision, name] = lambda: loaded.encode(passages, **plain)
            sides["encode, mixed lengths", precision, name] = lambda: loaded.encode(mixed, **plain)
        trained = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, weights)})
        inner: Any = trained[0].model
        targets = target_names(inner, Scope.of(inner, None), ())
        trained.add_adapter(lora_config(LowRankOptions(rank=RANK), targets))
        settings = {"precision": "float32" if weights == precision else precision, "device": "cpu", **options}
        sides["LoRA training", precision, name] = lambda: _trainer(trained, rows, 1, batch, folder.name, settings)()

    for precision in ("float32", "bfloat16"):
        add_ours(precision)
    add_peer("float32", "float32", "sentence-transformers float32")
    add_peer("bfloat16", "float32", "sentence-transformers bf16 autocast")
    add_peer("bfloat16", "bfloat16", "sentence-transformers bf16 weights")
    wall: dict[tuple[str, str, str], list[float]] = {side: [] for side in sides}
    spent: dict[tuple[str, str, str], list[float]] = {side: [] for side in sides}
    for repeat in range(options["repeats"] + 1):
        for side, run in sorted(sides.items()):
            started, before = time.perf_counter(), time.process_time()
            run()
            if repeat:  # the first one chooses kernels
                wall[side].append(time.perf_counter() - started)
                spent[side].append(time.process_time() - before)
            print(side, round(time.process_time() - before, 2), file=sys.stderr, flush=True)
    return {
        "rows": [
            {
                "task": task, "precision": precision, "side": name, "seconds": wall[task, precision, name],
                "cpu_seconds": spent[task, precision, name], "threads": torch.get_num_threads(),
            }
            for task, precision, name in sorted(sides)
        ]
    }  # fmt: skip


def cache(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the first epoch, of the second, and of the first epoch of a run with other settings.

    The other settings change what is learnt and not what it costs, so that the cache alone makes the difference.
    """
    from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
    from ragadapt.encoder import Encoder
    from ragadapt.training import Example, train

    values = {"model": options["model"], "device": options["device"]}
    encoder = Encoder.load(EncoderConfig.model_validate(values))
    examples = [Example(row["query"], row["positive"], (row["negative"],)) for row in _triples(options)]
    layers = options["layers"]
    adapter = AdapterConfig(rank=RANK, layers=layers, reweight="none")
    training = TrainingConfig(epochs=2, batch_size=BATCH, learning_rate=RATE, temperature=TEMPERATURE)
    one = training.model_copy(update={"epochs": 1})
    train(encoder, examples[:BATCH], None, adapter, one.model_copy(update={"prefix_cache": False}))

    started = time.perf_counter()
    plain = train(encoder, examples, None, adapter, one.model_copy(update={"prefix_cache": False}))
    without = time.perf_counter() - started
    with tempfile.TemporaryDirectory(prefix="ragadapt-speed-") as folder:
        assert encoder.use_prefix_cache(folder, top_layers=layers)
        result = train(encoder, examples, None, adapter, training)
        per_epoch = len(result.history) // 2
        first = result.history[per_epoch - 1].seconds
        second = result.history[-1].seconds - first
        started = time.perf_counter()
        train(
            encoder, examples, None, AdapterConfig(rank=RANK, layers=layers, reweight="vector"),
            one.model_copy(update={"learning_rate": RATE / 2, "temperature": 2 * TEMPERATURE}), seed=1,
        )  # fmt: skip
        again = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "without_cache_seconds": without,
        "first_epoch_seconds": first,
        "second_epoch_seconds": second,
        "second_run_seconds": again,
        "cache_bytes": size,
        "loss": result.history[per_epoch - 1].loss,
        "loss_without_cache": plain.history[-1].loss,
        **memory(encoder.precision.device),
    }


# Mining


def mine(options: dict[str, Any]) -> dict[str, Any]:
    """Negatives for every query from vectors at hand. Seconds without reading the input; peak memory with it."""
    folder = Path(options["input"])
    with np.load(folder / "vectors.npz") as arrays:
        passages, queries, positives = arrays["passages"], arrays["queries"], arrays["positives"]
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    asked = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    before = peak_bytes()
    side = {"dense": _mine_dense, "hybrid": _mine_hybrid, "peer": _mine_peer, "peer-faiss": _mine_peer}[options["side"]]
    seconds, negatives = side(options, texts, asked, passages, queries, positives)
    np.savez(folder / f"mined-{options['side']}.npz", *negatives)
    return {
        "seconds": seconds,
        "queries_per_second": len(asked) / seconds,
        "mined": int(sum(len(row) for row in negatives)),
        "input_bytes": before,
        "peak_bytes": peak_bytes(),
    }


NEGATIVES, MARGIN, DEPTH = 2, 0.95, 100
Rows = list[np.ndarray]


def _mine_dense(
    options: dict[str, Any], texts: list[str], asked: list[str], passages: np.ndarray, queries: np.ndarray,
    positives: np.ndarray,
) -> tuple[float, Rows]:  # fmt: skip
    """ragadapt's rules over the dense index alone: what mine_hard_negatives looks at."""
    from ragadapt.config import MiningConfig
    from ragadapt.index import exact_index
    from ragadapt.search.fusion import Candidates, Fusion
    from ragadapt.training.negatives import mine_negatives
    from ragadapt.values import Evidence, Query

    config = MiningConfig(negatives=NEGATIVES, margin=MARGIN, depth=DEPTH)
    started = time.perf_counter()
    ids = [str(at) for at in range(len(texts))]
    index = exact_index(ids, passages)
    found = []
    for start in range(0, len(queries), 1024):
        block = queries[start : start + 1024]
        for number, (names, scores) in enumerate(index.search(block, DEPTH), start=start):
            own = positives[number]
            best = {int(name): float(score) for name, score in zip(names, scores, strict=True)}
            best.setdefault(int(own), float(passages[own] @ queries[number]))
            places = np.array(sorted(best), dtype=np.int64)
            dense = np.array([best[place] for place in places.tolist()], dtype=np.float32)
            found.append(Candidates(places, dense, np.zeros_like(dense)))
    wanted = [Query(str(at), text, "label", Evidence.LABELLED, (str(positives[at]),)) for at, text in enumerate(asked)]
    mined = mine_negatives(
        wanted, found, positions={id: at for at, id in enumerate(ids)}, text_keys=texts, groups=range(len(texts)),
        fusion=Fusion(method="zscore", weight=1.0), config=config,
    )  # fmt: skip
    return time.perf_counter() - started, [np.array(row, dtype=np.int64) for row in mined.negatives]


def _mine_hybrid(
    options: dict[str, Any], texts: list[str], asked: list[str], passages: np.ndarray, queries: np.ndarray,
    positives: np.ndarray,
) -> tuple[float, Rows]:  # fmt: skip
    """What `fit` does: dense and lexical candidates of every query, fused. The lexical index is built before."""
    from ragadapt.config import MiningConfig
    from ragadapt.index import exact_index
    from ragadapt.lexical import LexicalIndex
    from ragadapt.search.fusion import Background, Fusion
    from ragadapt.search.searcher import Searcher
    from ragadapt.training.negatives import mine_negatives
    from ragadapt.values import Evidence, Query

    folder = Path(options["input"]) / "lexical"
    ids = [str(at) for at in range(len(texts))]
    if not (folder / "lexical.json").exists():
        LexicalIndex.build(ids, texts).save(folder)
    lexical = LexicalIndex.open(folder)
    config = MiningConfig(negatives=NEGATIVES, margin=MARGIN, depth=DEPTH)
    fusion = Fusion(feedback=0.0)
    started = time.perf_counter()
    searcher = Searcher(exact_index(ids, passages), lexical, Background.of(passages), fusion)
    include = [[int(at)] for at in positives]
    found = searcher.candidates(asked, queries, fusion=fusion, depth=DEPTH, include=include)
    wanted = [Query(str(at), text, "label", Evidence.LABELLED, (str(positives[at]),)) for at, text in enumerate(asked)]
    mined = mine_negatives(
        wanted, found, positions={id: at for at, id in enumerate(ids)}, text_keys=texts, groups=range(len(texts)),
        fusion=fusion, config=config,
    )  # fmt: skip
    return time.perf_counter() - started, [np.array(row, dtype=np.int64) for row in mined.negatives]


def _mine_peer(
    options: dict[str, Any], texts: list[str], asked: list[str], passages: np.ndarray, queries: np.ndarray,
    positives: np.ndarray,
) -> tuple[float, Rows]:  # fmt: skip
    """sentence_transformers.util.mine_hard_negatives over the same vectors, its batch sizes left as they are."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    model: Any = SentenceTransformer(options["model"], device="cpu")
    model.encode_document = lambda given, **_: passages[: len(given)]
    model.encode_query = lambda given, **_: queries[: len(given)]
    model.get_embedding_dimension = lambda: passages.shape[1]
    data = Dataset.from_dict({"query": asked, "positive": [texts[at] for at in positives]})
    started = time.perf_counter()
    mined = mine_hard_negatives(
        data, model, corpus=texts, relative_margin=1 - MARGIN, num_negatives=NEGATIVES, range_max=DEPTH,
        output_format="triplet", use_faiss=options["side"] == "peer-faiss", verbose=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    at = {text: place for place, text in enumerate(texts)}
    number = {text: place for place, text in enumerate(asked)}
    rows: list[list[int]] = [[] for _ in asked]
    for query, negative in zip(mined["query"], mined["negative"], strict=True):
        rows[number[query]].append(at[negative])
    return seconds, [np.array(row, dtype=np.int64) for row in rows]


# A whole fit


def fit_once(options: dict[str, Any]) -> dict[str, Any]:
    """One fit, with what it took by stage and the sizes of what it wrote."""
    from ragadapt import FitConfig, Labels, fit

    source, target = Path(options["corpus"]), Path(options["target"])
    values: dict[str, Any] = {
        "encoder": {"model": options["model"]},
        "index": {"kind": options["index"]},
        "adapter": {"method": options["method"], "reweight": "none"},
        "training": {"epochs": 1},
        "gate": {"bootstrap_samples": 500},
    }
    labels = []
    if options["method"] != "none":
        labels = [Labels(source.with_name("queries.jsonl"), source.with_name("qrels.tsv"))]
    started = time.perf_counter()
    result = fit([source], target, FitConfig.build(values), labels=labels)
    seconds = time.perf_counter() - started
    report = result.report
    sizes = {
        part: sum(path.stat().st_size for path in (target / part).rglob("*") if path.is_file())
        if (target / part).is_dir()
        else (target / part).stat().st_size
        for part in ("index", "lexical", "chunks.sqlite")
    }
    return {
        "seconds": seconds,
        "peak_bytes": peak_bytes(),
        "chunks": report.corpus.chunks if report.corpus else None,
        "verdict": result.verdict,
        "trained": bool(report.learning),
        "stages": {timing.stage: timing.seconds for timing in report.timings},
        "sizes": sizes,
    }


WORKERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "train-ours": train_ours,
    "train-peer": train_peer,
    "architecture": architecture,
    "cache": cache,
    "mine": mine,
    "fit": fit_once,
}


if __name__ == "__main__":
    found = WORKERS[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(found, default=float), flush=True)

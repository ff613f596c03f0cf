"""The fitted model, and its re-ranker, for other programs: a sentence-transformers folder, or ONNX files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragadapt.checks import checked_path
from ragadapt.errors import InvalidInput, MissingExtra, StoreError
from ragadapt.files import remove, rename, sync_tree
from ragadapt.pipeline.seen import seen_by
from ragadapt.queries.seen import write_seen
from ragadapt.store.workspace import open_store
from ragadapt.text import searchable
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder
    from torch import nn

    from ragadapt.encoder import Encoder
    from ragadapt.rerank import Reranker

log = logging.getLogger(__name__)

ExportFormat = Literal["sentence-transformers", "onnx"]
FORMATS: tuple[ExportFormat, ...] = ("sentence-transformers", "onnx")

_SAME = 0.9999  # least cosine with the retriever's own float32 vectors
_PASSAGES = 256  # of the retriever, on which the cost of int8 is measured
_QUERIES = 64
_OPSET = 17
_SAME_SCORE = 1e-3  # most difference of a re-ranker's logits, against their spread


@dataclass(frozen=True, slots=True)
class Cost:
    """What int8 changes, against the retriever's float32 vectors, on passages of its own.

    mean_cosine and least_cosine: of a vector with its float32 twin, queries included. rank_agreement: share of the
    pairs of passages that a query orders as float32 does, near ties left out. bytes and float_bytes: of the ONNX files
    now and before.
    """

    mean_cosine: float
    least_cosine: float
    rank_agreement: float
    passages: int
    queries: int
    bytes: int
    float_bytes: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. cosine: least similarity of an exported probe vector with the retriever's own, before any
    quantisation. int8: what that cost, where it was asked for. needs_ragadapt: a module of it is of ragadapt, which has
    to be installed where sentence-transformers opens the folder, with trust_remote_code=True. two_models: queries have
    one of their own, so they must be encoded as queries."""

    folder: Path
    format: ExportFormat
    files: tuple[str, ...]
    cosine: float
    int8: Cost | None = None
    needs_ragadapt: bool = False
    two_models: bool = False


def export(
    retriever: str | Path,
    target: str | Path,
    format: ExportFormat = "sentence-transformers",
    *,
    int8: bool = False,
    progress: Progress = no_progress,
) -> Exported:
    """Write a retriever's model to `target`, adapter merged, in float32, and prove that it gives the same vectors.

    sentence-transformers: `SentenceTransformer(target)` opens it. onnx: model.onnx, or query.onnx and passage.onnx
    where only the query side was adapted; input_ids and attention_mask in, sentence_embedding (n, dim) of unit length
    out; ragadapt_onnx.json says prompts and maximal length. int8: weights in 8 bits, activations rounded as they come
    (ONNX Runtime's dynamic quantisation), for format onnx; its cost is measured. Raises InvalidInput if target holds
    something, NotARetriever, MissingExtra, StoreError.
    """
    from ragadapt.encoder import Encoder
    from ragadapt.encoder.loading import own_modules

    if format not in FORMATS:
        raise InvalidInput(f"format = {format!r}: it is one of {', '.join(FORMATS)}.")
    if int8 and format != "onnx":
        raise InvalidInput("int8 is for format 'onnx'; other formats are written in float32.")
    if format == "onnx":
        _need_onnx()
    target = _free(target)
    opened = open_store(retriever)
    opened.check("model", *(["chunks.sqlite"] if int8 else []))
    model = opened.path / "model"
    encoder = Encoder.open(model, device="cpu", precision="float32")
    cost = None
    with _beside(target, progress) as folder:
        if format == "onnx":
            cosine = write_onnx(encoder, model, folder)
            if int8:
                cost = _quantise(encoder, folder, opened.path)
        else:
            cosine = encoder.save(folder, portable=True).reload_cosine
            _tell_seen(opened.path, folder)
        for name in ("README.md", "LICENSE"):
            if (model / name).is_file() and not (folder / name).exists():
                shutil.copyfile(model / name, folder / name)
    needs = format == "sentence-transformers" and bool(own_modules(target))
    two = encoder.query_tower is not encoder.passage_tower
    return Exported(target, format, _files(target), cosine, cost, needs, two)


@dataclass(frozen=True, slots=True)
class ExportedReranker:
    """What was written. difference: the most by which an exported probe score differs from the re-ranker's own.
    opens_with: the class of sentence-transformers for such models. needs_ragadapt: as of `Exported`."""

    folder: Path
    format: ExportFormat
    files: tuple[str, ...]
    difference: float
    opens_with: str
    needs_ragadapt: bool = False


def export_reranker(
    retriever: str | Path,
    target: str | Path,
    format: ExportFormat = "sentence-transformers",
    *,
    progress: Progress = no_progress,
) -> ExportedReranker:
    """Write a retriever's re-ranker to `target` in float32, and prove that it gives the same scores.

    retriever: also a re-ranker's own folder, hub name or preset. sentence-transformers: `CrossEncoder(target)` opens
    it, `MultiVectorEncoder(target)` a multi-vector model, which has no other format; with an adapter that could not be
    folded, where ragadapt is installed and with trust_remote_code=True. onnx: model.onnx; input_ids, attention_mask
    and, where the model tells the two texts apart, token_type_ids in, logits (n, 1) out; ragadapt_onnx.json says the
    activation and the maximal length. Raises InvalidInput if target holds something, NotARetriever where there is no
    re-ranker, MissingExtra, StoreError.
    """
    from ragadapt.encoder.loading import own_modules
    from ragadapt.rerank import Reranker
    from ragadapt.rerank.reranker import PROBE_PAIRS

    if format not in FORMATS:
        raise InvalidInput(f"format = {format!r}: it is one of {', '.join(FORMATS)}.")
    if format == "onnx":
        _need_onnx()
    target = _free(target)
    reranker = Reranker.load(retriever, device="cpu", precision="float32")
    if format == "onnx" and reranker.spec.multi_vector is not None:
        raise InvalidInput(
            f"Re-ranker {reranker.spec.model!r} is a multi-vector model; ONNX export knows cross-encoders alone. "
            "Use --format sentence-transformers."
        )
    model = reranker.library_model()
    scores = reranker.by_library(model, PROBE_PAIRS)
    with _beside(target, progress) as folder:
        if format == "onnx":
            difference = _write_pair_onnx(model, reranker, folder, scores)
        else:
            import sentence_transformers

            reranker.save(folder, portable=True)
            _tell_seen(retriever, folder)
            own = bool(own_modules(folder))
            opens = getattr(sentence_transformers, reranker.LIBRARY)
            again = opens(str(folder), device="cpu", trust_remote_code=own)
            difference = float(np.abs(reranker.by_library(again, PROBE_PAIRS) - scores).max())
    needs = format == "sentence-transformers" and bool(own_modules(target))
    return ExportedReranker(target, format, _files(target), difference, reranker.LIBRARY, needs)


def _tell_seen(source: str | Path, folder: Path) -> None:
    """What goes on to another fit says there which questions it has learnt from."""
    if marks := seen_by(str(source)):
        write_seen(folder, marks)


def _free(target: str | Path) -> Path:
    """The target, in which nothing stands. Raises InvalidInput."""
    target = checked_path(target, "The target").resolve()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InvalidInput(f"{target} exists already. Name a folder that does not, or an empty one.")
    return target


@contextmanager
def _beside(target: Path, progress: Progress) -> Iterator[Path]:
    """A folder beside the target that takes its place when the block is done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    remove(beside)
    beside.mkdir()
    try:
        progress("export", 0, 1)
        yield beside
        sync_tree(beside)
        if target.exists():
            target.rmdir()
        rename(beside, target)
        progress("export", 1, 1)
    finally:
        remove(beside)


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _write_pair_onnx(model: CrossEncoder, reranker: Reranker, folder: Path, scores: Any) -> float:
    """model.onnx with its tokenizer; the most by which its logits differ from `scores`. Raises as `export_reranker`."""
    from ragadapt.rerank.reranker import PROBE_PAIRS

    chain: list[Any] = list(model.children())
    tokenizer = getattr(chain[0], "tokenizer", None)
    if not callable(tokenizer) or chain[0].modality_config.keys() != {"text"}:
        raise InvalidInput(
            f"Re-ranker {reranker.spec.model!r} is no plain transformer; ONNX export knows only those. "
            "Use --format sentence-transformers."
        )
    tokenizer.save_pretrained(str(folder))
    example = tokenizer(["a few words"] * 2, ["some more", "than that, some more words"], padding=True)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if "token_type_ids" in example else [])]
    _trace(chain, tokenizer, folder / "model.onnx", names, "scores", "logits", pairs=True)
    settings = {
        "format": 1,
        "fingerprint": reranker.fingerprint,
        "max_length": reranker.spec.max_length,
        "file": "model.onnx",
        "inputs": names,
        "output": "logits",
        "activation": reranker.spec.activation,
        "base": reranker.spec.base,
    }
    (folder / "ragadapt_onnx.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    found = _run_pair_onnx(folder / "model.onnx", tokenizer, PROBE_PAIRS, names, reranker.spec.max_length)
    difference = float(np.abs(found - scores).max())
    if not difference <= _SAME_SCORE * max(1.0, float(scores.std())):
        raise StoreError(
            f"The ONNX file gives other scores than the re-ranker (by {difference:.2g}). Nothing was written; use "
            "--format sentence-transformers, and please report this."
        )
    return difference


def _run_pair_onnx(
    file: Path, tokenizer: Any, pairs: Sequence[tuple[str, str]], names: Sequence[str], max_length: int
) -> Any:
    """(n,) logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    queries, passages = ([searchable(pair[side]) for pair in pairs] for side in (0, 1))
    batch = tokenizer(queries, passages, padding=True, truncation=True, max_length=max_length, return_tensors="np")
    return session.run(None, {name: batch[name].astype(np.int64) for name in names})[0].reshape(len(pairs))


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401  (torch writes the file through it)
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingExtra("Export to ONNX", "onnx") from error


def write_onnx(encoder: Encoder, model: Path, folder: Path) -> float:
    """Write the model that `encoder.save(model)` wrote as ONNX, with its tokenizer; returns the agreement.

    encoder: the same on the CPU, in float32. folder: exists. See `export` for what is written. Raises InvalidInput
    where the model is no plain transformer, StoreError where the vectors differ.
    """
    from ragadapt.config import EncoderConfig
    from ragadapt.encoder.loading import open_model, sides
    from ragadapt.encoder.precision import PROBE_PASSAGES, PROBE_QUERIES
    from ragadapt.encoder.presets import Source

    tower = encoder.query_tower
    if tower is None or encoder.passage_tower is None:
        raise InvalidInput(
            f"Model {encoder.spec.model!r} is no plain transformer; ONNX export knows only those. "
            "Use --format sentence-transformers."
        )
    spec = encoder.spec
    if (spec.query_prompt or spec.passage_prompt) and not tower.prompt_pooled:
        raise InvalidInput(
            f"Model {spec.model!r} leaves its prompt out of the pooling, which an ONNX file cannot tell from the text. "
            "Use --format sentence-transformers."
        )
    opened = open_model(
        Source(str(model), None, None, True), EncoderConfig.model_validate({"model": str(model)}), "cpu"
    )
    query_chain, passage_chain = sides(opened)
    same = query_chain == passage_chain
    chains = {"model.onnx": passage_chain} if same else {"query.onnx": query_chain, "passage.onnx": passage_chain}
    first: Any = passage_chain[0]
    tokenizer = first.tokenizer
    tokenizer.save_pretrained(str(folder))
    for name, chain in chains.items():
        _trace(chain, tokenizer, folder / name)
    query_file, passage_file = ("model.onnx", "model.onnx") if same else ("query.onnx", "passage.onnx")
    settings = {
        "format": 1,
        "fingerprint": spec.fingerprint,
        "dim": encoder.dim,
        "max_length": encoder.max_length,
        "query": {"file": query_file, "prompt": spec.query_prompt},
        "passage": {"file": passage_file, "prompt": spec.passage_prompt},
        "inputs": ["input_ids", "attention_mask"],
        "output": "sentence_embedding",
        "base": spec.base,
    }
    (folder / "ragadapt_onnx.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    least = 1.0
    for file, prompt, texts, vectors in (
        (query_file, spec.query_prompt, PROBE_QUERIES, encoder.encode_queries(PROBE_QUERIES)),
        (passage_file, spec.passage_prompt, PROBE_PASSAGES, encoder.encode_passages(PROBE_PASSAGES)),
    ):
        found = _run_onnx(folder / file, tokenizer, [prompt + text for text in texts], encoder.max_length)
        least = min(least, float(np.min(np.sum(found * vectors, axis=1))))
    if not least >= _SAME:
        raise StoreError(
            f"The ONNX file gives other vectors than the model (cosine {least:.5f}, at least {_SAME} is needed). "
            "Nothing was written; use --format sentence-transformers, and please report this."
        )
    return least


def _quantise(encoder: Encoder, folder: Path, retriever: Path) -> Cost:
    """Replace the float32 ONNX files by int8 ones, note that in ragadapt_onnx.json, and measure what it changed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoTokenizer

    from ragadapt.encoder.precision import agreement

    files = sorted(folder.glob("*.onnx"))
    before = sum(file.stat().st_size for file in files)
    for file in files:
        small = file.with_name(f"int8-{file.name}")
        with _quiet_root_log():
            quantize_dynamic(file, small, weight_type=QuantType.QInt8)
        small.replace(file)
    after = sum(file.stat().st_size for file in files)
    about = folder / "ragadapt_onnx.json"
    settings = json.loads(about.read_text(encoding="utf-8"))
    queries, passages = _probe(retriever)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    found = []
    for side, texts in (("query", queries), ("passage", passages)):
        prompted = [settings[side]["prompt"] + text for text in texts]
        rows = [
            _run_onnx(folder / settings[side]["file"], tokenizer, prompted[start : start + 16], encoder.max_length)
            for start in range(0, len(prompted), 16)
        ]
        found.append(np.concatenate(rows))
    exact = (encoder.encode_queries(queries), encoder.encode_passages(passages))
    least, ranks = agreement(exact, (found[0], found[1]))
    cosines = np.concatenate([np.sum(mine * theirs, axis=1) for mine, theirs in zip(exact, found, strict=True)])
    cost = Cost(float(cosines.mean()), least, ranks, len(passages), len(queries), after, before)
    about.write_text(json.dumps({**settings, "int8": asdict(cost)}, indent=2) + "\n", encoding="utf-8")
    log.info("int8: mean cosine %.5f, rank agreement %.4f", cost.mean_cosine, cost.rank_agreement)
    return cost


def _probe(retriever: Path) -> tuple[list[str], list[str]]:
    """Queries that the report kept (ours where there are none), and passages, evenly spread over the retriever."""
    from ragadapt.encoder.precision import PROBE_QUERIES
    from ragadapt.pipeline.stages import read_queries
    from ragadapt.store.chunks import ChunkStore

    with ChunkStore.open(retriever / "chunks.sqlite") as store:
        count = len(store)
        step = max(1, -(-count // _PASSAGES))
        passages = [chunk.passage for number, chunk in enumerate(store) if number % step == 0]
    kept = retriever / "report" / "queries.jsonl"
    texts = [query.text for query in read_queries(kept)] if kept.is_file() else []
    texts = texts[:: max(1, -(-len(texts) // _QUERIES))]
    return texts or list(PROBE_QUERIES), passages


@contextmanager
def _quiet_root_log() -> Iterator[None]:
    """Without the advice that the quantiser gives to the root logger about graph optimisation before it."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _trace(
    chain: Sequence[nn.Module],
    tokenizer: Any,
    file: Path,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    made: str = "sentence_embedding",
    output: str = "sentence_embedding",
    pairs: bool = False,
) -> None:
    """made: what the modules leave their result under; output: its name in the file. pairs: they read two texts."""
    import warnings

    import torch

    class Chain(torch.nn.Module):
        """(B, T) each → (B, d) unit vectors, or (B, 1) scores."""

        def __init__(self) -> None:
            super().__init__()
            self.chain = torch.nn.ModuleList(chain)

        def forward(self, *given: Any) -> Any:
            features: dict[str, Any] = dict(zip(inputs, given, strict=True))
            for module in self.chain:
                features = module(features)
            return features[made]

    inner: Any = chain[0].get_submodule("model")
    if hasattr(inner, "set_attn_implementation"):
        inner.set_attn_implementation("eager")  # the fused kernels cannot be traced
    texts = [["a few words", "some more words than that"], *([["one", "or the other"]] if pairs else [])]
    example = tokenizer(*texts, padding=True, return_tensors="pt")
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # notes on traced constants; the result is compared below
        torch.onnx.export(
            Chain().eval(),
            tuple(example[name] for name in inputs),
            str(file),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={**dict.fromkeys(inputs, axes), output: {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def _run_onnx(file: Path, tokenizer: Any, texts: Sequence[str], max_length: int) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    batch = tokenizer(
        [searchable(text) for text in texts], padding=True, truncation=True, max_length=max_length, return_tensors="np"
    )
    inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    return session.run(None, inputs)[0]

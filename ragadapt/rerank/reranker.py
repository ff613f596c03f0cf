"""(query, passage) → score: the one Reranker."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from ragadapt.checks import checked_choice, checked_number, checked_path, checked_queries, checked_text, checked_texts
from ragadapt.encoder import attention, loading
from ragadapt.encoder.batches import Ids, lacks_memory, refuse_without_memory, token_batches
from ragadapt.encoder.precision import (
    PRECISIONS,
    PROBE_PASSAGES,
    PROBE_QUERIES,
    Precision,
    choose_device,
    choose_precision,
)
from ragadapt.encoder.presets import Source
from ragadapt.errors import (
    FingerprintMismatch,
    FormatTooNew,
    InvalidInput,
    ModelNotFound,
    NotARetriever,
    StoreCorrupt,
    StoreError,
    reason_of,
)
from ragadapt.profiling import work
from ragadapt.rerank.pairs import PairTower
from ragadapt.rerank.presets import source_of
from ragadapt.store.workspace import MANIFEST, RERANKER
from ragadapt.threads import follow_forks
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from sentence_transformers import CrossEncoder

log = logging.getLogger(__name__)

Scores = npt.NDArray[np.float32]

SPEC_FILE = "ragadapt_reranker.json"
_SPEC_VERSION = 1
_DEPTH = {"cpu": 20}  # passages that are read of a query
_DEPTH_ELSEWHERE = 50
_BUDGET = {"cpu": 4096, "cuda": 131_072, "mps": 16_384}  # tokens per batch
_WINDOW = 4096  # pairs tokenised and sorted together
_TRAINED_HEADS = ("ForSequenceClassification", "ForCausalLM")
_SAME = 1e-4  # most by which two ways to compute the same may differ in float32, against the spread of the scores
_MIN_CORRELATION, _MIN_RANK_AGREEMENT = 0.999, 0.98  # of bfloat16 with float32, on the probe
_TIE = 0.05  # of the spread: pairs of passages closer than this may swap
_REMEMBERED = 200_000  # scores; some 30 MB

PROBE_PAIRS = tuple((query, passage) for query in PROBE_QUERIES for passage in PROBE_PASSAGES[:8])
_LONG = (PROBE_QUERIES[0], " ".join(PROBE_PASSAGES))
_ALL = (*PROBE_PAIRS, _LONG)


@dataclass(frozen=True, slots=True)
class RerankerSpec:
    """Everything that decides the scores, except rounding.

    model: as the user named it. base: identity of the weights (hub name and commit, or sha256). licence: what the
    model's card says. activation: what turns the model's number into the score that it was trained to give. adapter:
    one that lies beside the weights, as it could not be folded into them, and its strength.
    """

    model: str
    base: str
    revision: str | None
    licence: str | None
    max_length: int
    activation: str
    adapter: Mapping[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """sha256, hex. Equal fingerprints mean equal scores."""
        parts: dict[str, Any] = {"base": self.base, "max_length": self.max_length, "activation": self.activation}
        if self.adapter is not None:
            parts["adapter"] = self.adapter
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Reranker:
    """A cross-encoder: one number for a query and a passage that it reads together, larger is better.

    Made by `Reranker.load` (a preset, a hub name, a folder) or `Reranker.open` (a folder that `save` wrote). Several
    threads may share one; they take turns. Scores are remembered in the process, by model, query and passage.
    """

    def __init__(
        self,
        spec: RerankerSpec,
        source: Source,
        model: CrossEncoder,
        precision: Precision,
        activation: Callable[[torch.Tensor], torch.Tensor],
        restore: Callable[[], CrossEncoder],
    ) -> None:
        """model: in float32, on the precision's device; its weights are shared and brought to the precision. restore:
        makes the whole model anew in float32, on the CPU; saving starts from it."""
        self.spec = spec
        self.source = source
        self.precision = replace(precision, dtype="float32")
        self._tower: PairTower | None = None
        self._generic: CrossEncoder | None = None  # reads the pairs where there is no tower
        self._activation = activation
        self._restore = restore
        self._lock = threading.RLock()
        self._forked = False
        self._tokens_per_second = 0.0
        self._how: tuple[Any, ...] = ()
        follow_forks(self, encoder=True)
        self._settle(model, precision)

    # ------------------------------------------------------------------ making one

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        max_length: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """The cross-encoder of a preset, a hub name, a folder (of sentence-transformers, `save` or `fit`).

        max_length: tokens of a pair that are read; None = the model's own. trust_remote_code: run code that comes with
        the model. Raises ModelNotFound, and InvalidInput for a model that gives no single score for a pair.
        """
        checked_choice("precision", precision, PRECISIONS)
        if max_length is not None:
            max_length = int(checked_number("max_length", max_length, 8))
        checked_path(model, "The re-ranker")
        name = str(model)
        folder = Path(name).expanduser()
        if (folder / MANIFEST).is_file():
            folder = folder / RERANKER
            if not (folder / SPEC_FILE).is_file():
                raise NotARetriever(f"The retriever in {name} has no re-ranker. Fit it with one: --rerank MODEL.")
        if (folder / SPEC_FILE).is_file():
            if max_length is not None or revision is not None:
                raise InvalidInput(f"{name} was saved with its own maximal length and revision: leave both out.")
            return cls.open(folder, device=device, precision=precision)
        source = source_of(name, revision)
        made = cls._build(name, source, device, precision, max_length, trust_remote_code)
        made._how = (cls.load, name, device, precision, max_length, revision, trust_remote_code)
        return made

    @classmethod
    def open(cls, folder: str | Path, *, device: str = "auto", precision: str = "auto") -> Self:
        """A re-ranker saved with `save`. Raises NotARetriever, StoreCorrupt, FormatTooNew, ModelNotFound, and
        FingerprintMismatch where the model that it refers to is not there as it was."""
        checked_choice("precision", precision, PRECISIONS)
        folder = checked_path(folder, "The re-ranker's folder").expanduser()
        spec = read_spec(folder)
        if spec is None:
            raise NotARetriever(f"{folder} holds no re-ranker saved by ragadapt (no {SPEC_FILE}). Use Reranker.load.")
        copied = (folder / "config.json").is_file() or (folder / "modules.json").is_file()
        if copied:
            source = Source(str(folder), None, None, True)
        else:
            name, _, commit = spec.base.rpartition("@")
            source = Source(name, commit, None, False)
        made = cls._build(spec.model, source, device, precision, spec.max_length, False, spec)
        made._how = (cls.open, folder.resolve(), device, precision)
        return made

    @classmethod
    def _build(
        cls,
        name: str,
        source: Source,
        device: str,
        precision: str,
        max_length: int | None,
        trust: bool,
        saved: RerankerSpec | None = None,
    ) -> Self:
        device = choose_device(checked_text("device", device))
        wanted = choose_precision(precision, device)
        model = _open_model(name, source, device, trust)

        def restore() -> CrossEncoder:
            fresh = _open_model(name, source, "cpu", trust)
            fresh.max_seq_length = length
            return fresh

        length = _length(model, max_length, name)
        model.max_seq_length = length
        activation: Any = model.activation_fn
        if saved is None:
            base, revision = loading.identity(model, source)
            kind = type(activation)
            spec = RerankerSpec(
                name, base, revision, loading.licence(source), length, f"{kind.__module__}.{kind.__qualname__}"
            )
        else:
            spec = saved
            if source.is_folder:
                found = spec.base if "@" in spec.base else loading.identity(model, source)[0]
            else:
                found = loading.identity(model, source)[0]
            if found != spec.base:
                raise FingerprintMismatch(
                    f"The re-ranker {spec.model!r} is {found[:60]} here, but {spec.base[:60]} is what was saved: its "
                    "scores would not be those that were judged. Fit again, or fetch that revision."
                )
        return cls(spec, source, model, wanted, activation, restore)

    def _settle(self, model: CrossEncoder, wanted: Precision) -> None:
        """Take the quickest way that gives the library's scores, then the wanted precision if it agrees."""
        reference = by_library(model, _ALL)
        for own in (True, False):
            tower = PairTower.of(model, self.spec.max_length, own=own)
            if tower is None:
                break
            self._tower = tower.eval().requires_grad_(False)
            difference = float(np.abs(self._run(_ALL) - reference).max())
            if difference <= _SAME * max(1.0, float(reference.std())):
                break
            log.warning("%s differs from sentence-transformers' scores by %.2g: not used", tower.path, difference)
            self._tower = None
        if self._tower is None:
            self._generic = model
            reason = "this model runs in sentence-transformers"
            self.precision = replace(wanted, dtype="float32", reason=reason)
        elif wanted.dtype == "float32":
            self.precision = wanted
        else:
            self._lower(self._tower, wanted, reference)
        log.info("%s: runs in %s, %s", self.spec.model, self.path, self.precision.words)
        self._measure()

    def _lower(self, tower: PairTower, wanted: Precision, reference: Scores) -> None:
        """Run in the wanted precision if it orders the probe's passages as float32 does."""
        tower.model.to(wanted.torch_dtype)
        if tower.head is not None:
            tower.head.float()  # it may share the model that it was part of
        if tower.device.type == "cuda" or (wanted.dtype == "bfloat16" and tower.device.type == "cpu"):
            attention.use(tower.model)
        correlation, ranks = _agreement(reference, self._run(_ALL))
        measured = replace(wanted, min_cosine=correlation, rank_agreement=ranks)
        if correlation < _MIN_CORRELATION or ranks < _MIN_RANK_AGREEMENT:
            log.warning(
                "%s changes the order (correlation %.4f, rank agreement %.3f): float32 is used",
                wanted.dtype, correlation, ranks,
            )  # fmt: skip
            fresh = PairTower.of(
                self._restore().to(tower.device), self.spec.max_length, own=tower.path.startswith("ragadapt")
            )
            assert fresh is not None
            self._tower = fresh.eval().requires_grad_(False)
            measured = replace(wanted, dtype="float32", reason=f"{wanted.dtype} changes the order")
        self.precision = measured

    def _measure(self) -> None:
        """How many tokens a second are read, of passages as long as most; the first run warms up."""
        pairs = (_LONG,) * 4
        tokens = sum(self._lengths(pairs))
        for _ in range(2):
            start = time.perf_counter()
            self._run(pairs)
            self._tokens_per_second = tokens / (time.perf_counter() - start)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._how

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self) -> None:
        """In a forked process: the lock may be held by a thread that is not there."""
        self._lock = threading.RLock()
        self._forked = True

    # ------------------------------------------------------------------ what it is

    @property
    def fingerprint(self) -> str:
        """Equal for re-rankers that give the same scores."""
        return self.spec.fingerprint

    @property
    def path(self) -> str:
        """Which code runs the model."""
        return self._tower.path if self._tower is not None else "sentence-transformers"

    @property
    def depth(self) -> int:
        """Passages that are read of a query where nobody says how many: 20 on a CPU, 50 elsewhere."""
        return _DEPTH.get(self.precision.device.split(":")[0], _DEPTH_ELSEWHERE)

    def affordable(self, query: str, passages: Sequence[str], milliseconds: float) -> int:
        """How many of the passages, from the first on, can be read in this time, as measured when the model was loaded;
        those that are remembered cost nothing."""
        milliseconds = checked_number("milliseconds", milliseconds, 0)
        pairs = [(query, passage) for passage in checked_texts(passages, "passages")]
        if not pairs:
            return 0
        known = self._recall(pairs)
        lengths = np.array([0 if known[at] is not None else n for at, n in enumerate(self._lengths(pairs))])
        most = self._tokens_per_second * milliseconds / 1000
        return int(np.searchsorted(np.cumsum(lengths), most, side="right"))

    # ------------------------------------------------------------------ scoring

    def scores(self, query: str, passages: Sequence[str]) -> Scores:
        """(n,) the score of each passage, as `CrossEncoder.predict` gives it by default. Raises InvalidInput."""
        with torch.no_grad():
            made: Scores = self._activation(torch.from_numpy(self.logits(query, passages))).float().numpy()
        return made

    def logits(self, query: str, passages: Sequence[str]) -> Scores:
        """(n,) the model's numbers before its activation: where a sigmoid is near 0 or 1 they still differ."""
        return self.logits_of([(query, passages)])[0]

    def logits_of(
        self, lists: Sequence[tuple[str, Sequence[str]]], *, progress: Progress = no_progress
    ) -> list[Scores]:
        """`logits` of many queries with passages of their own, in one batch; what comes twice is read once."""
        queries = checked_queries([query for query, _ in lists])
        texts = [checked_texts(passages, "passages") for _, passages in lists]
        every = [(query, text) for query, passages in zip(queries, texts, strict=True) for text in passages]
        pairs = list(dict.fromkeys(every))
        known = self._recall(pairs)
        new = [at for at, score in enumerate(known) if score is None]
        if new:
            fresh = self._run([pairs[at] for at in new], progress)
            _memory.add(self._keys([pairs[at] for at in new]), fresh.tolist())
            for at, score in zip(new, fresh.tolist(), strict=True):
                known[at] = score
        score_of = dict(zip(pairs, known, strict=True))
        return [
            np.array([score_of[query, text] for text in passages], dtype=np.float32)
            for query, passages in zip(queries, texts, strict=True)
        ]

    def _recall(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        return _memory.get(self._keys(pairs))

    def _keys(self, pairs: Sequence[tuple[str, str]]) -> list[bytes]:
        """What a score depends on. Two precisions give two scores."""
        start = hashlib.blake2b(f"{self.fingerprint} {self.precision.dtype} ".encode(), digest_size=16)
        keys = []
        for query, passage in pairs:
            digest, first = start.copy(), query.encode("utf-8", "surrogatepass")
            digest.update(len(first).to_bytes(8, "little") + first + passage.encode("utf-8", "surrogatepass"))
            keys.append(digest.digest())
        return keys

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        if self._tower is None:  # about: four characters a token
            return [min(self.spec.max_length, 3 + (len(query) + len(passage)) // 4) for query, passage in pairs]
        with self._lock:
            return [len(row) for row in self._tower.tokenize(pairs)[0]]

    def _run(self, pairs: Sequence[tuple[str, str]], progress: Progress = no_progress) -> Scores:
        """(n,) scores by the model."""
        if self._forked and self.precision.device.split(":")[0] != "cpu":
            raise InvalidInput(
                f"This re-ranker was opened on {self.precision.device} before the process was forked, and a forked "
                "process cannot use it there. Open it after the fork, or with device='cpu'."
            )
        scores = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), _WINDOW):
            window = pairs[start : start + _WINDOW]
            with self._lock, work("rerank", len(window)):
                if self._tower is None:
                    assert self._generic is not None
                    scores[start : start + len(window)] = by_library(self._generic, window)
                else:
                    scores[start : start + len(window)] = read_pairs(self._tower, window)
            progress("rerank", start + len(window), len(pairs))
        return scores

    # ------------------------------------------------------------------ saving

    def library_model(self) -> CrossEncoder:
        """The whole model anew, in float32, on the CPU."""
        return self._restore()

    def save(self, folder: str | Path, *, portable: bool = True) -> bool:
        """Write a CrossEncoder folder that gives the same scores without ragadapt, and prove it.

        portable: False writes of a model on the hub its name and commit alone. Returns whether the weights were
        written. Raises StoreError where the saved model gives other scores.
        """
        folder = checked_path(folder, "The folder")
        folder.mkdir(parents=True, exist_ok=True)
        copied = portable or self.source.is_folder or "@" not in self.spec.base
        if copied:
            model = self._restore()
            with loading.quiet():
                model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
            before = by_library(model, PROBE_PAIRS)
            del model
            again = _open_model(self.spec.model, Source(str(folder), None, None, True), "cpu", False)
            difference = float(np.abs(by_library(again, PROBE_PAIRS) - before).max())
            if difference > _SAME * max(1.0, float(before.std())) or again.max_seq_length != self.spec.max_length:
                raise StoreError(
                    f"The re-ranker saved in {folder} differs from the one in memory (by {difference:.2g}). It must "
                    "not be used; please report this."
                )
        values = {"format": _SPEC_VERSION, **asdict(self.spec), "fingerprint": self.fingerprint}
        (folder / SPEC_FILE).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return copied


def read_spec(folder: Path) -> RerankerSpec | None:
    """The spec saved in a folder; None where ragadapt saved no re-ranker. Raises FormatTooNew, StoreCorrupt."""
    path = folder / SPEC_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version, fingerprint = values.pop("format"), values.pop("fingerprint")
        if version > _SPEC_VERSION:
            raise FormatTooNew(
                f"{path} has format {version}, this ragadapt reads up to {_SPEC_VERSION}. "
                "Upgrade with: pip install -U ragadapt"
            )
        spec = RerankerSpec(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(f"{path} cannot be read: {error}. Restore the folder or fit again.") from error
    if spec.fingerprint != fingerprint:
        raise StoreCorrupt(f"{path} was changed after it was written (its fingerprint differs). Fit again.")
    return spec


class _Memory:
    """Scores of pairs that were read in this process, the least used forgotten first."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._scores: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()
        follow_forks(self, encoder=True)

    def get(self, keys: Sequence[bytes]) -> list[float | None]:
        with self._lock:
            for key in keys:
                if key in self._scores:
                    self._scores.move_to_end(key)
            return [self._scores.get(key) for key in keys]

    def add(self, keys: Sequence[bytes], scores: Sequence[float]) -> None:
        with self._lock:
            self._scores.update(zip(keys, scores, strict=True))
            while len(self._scores) > self._most:
                self._scores.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._scores.clear()

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self) -> None:
        self._lock = threading.Lock()


_memory = _Memory()


def forget_scores() -> None:
    """Let go of all remembered scores."""
    _memory.clear()


def _again(make: Callable[..., Reranker], *values: Any) -> Reranker:
    if make.__name__ == "open":
        folder, device, precision = values
        return make(folder, device=device, precision=precision)
    name, device, precision, max_length, revision, trust = values
    return make(
        name, device=device, precision=precision, max_length=max_length, revision=revision, trust_remote_code=trust
    )


def _open_model(name: str, source: Source, device: str, trust: bool) -> CrossEncoder:
    """In float32, in eval mode. Raises ModelNotFound, InvalidInput."""
    from sentence_transformers import CrossEncoder

    from ragadapt.encoder.modules import fold_adapters

    if source.is_folder and (reason := loading.leads_outside(Path(source.location), trust)):
        raise ModelNotFound(
            f"The re-ranker in {source.location} was not loaded: {reason}. Give a folder that is whole."
        )
    options: dict[str, Any] = {
        "device": device,
        "revision": source.revision,
        "trust_remote_code": trust,
        "model_kwargs": {"dtype": torch.float32},
    }
    try:
        with loading.quiet() if source.is_folder else nullcontext():  # a download may show how far it is
            model: CrossEncoder
            if source.is_folder and (names := loading.own_modules(Path(source.location))):
                model = loading.open_with_own_modules(CrossEncoder, source.location, names, options)
            else:
                model = CrossEncoder(source.location, **options)
    except Exception as error:  # the libraries have many of their own, more still for a damaged folder
        refuse_without_memory(error, f"Re-ranker {name!r}", device)
        raise ModelNotFound(
            f"Re-ranker {name!r} cannot be loaded: {reason_of(error)}. Check the name and the network, or give the "
            "folder of a sentence-transformers CrossEncoder."
        ) from error
    if model.num_labels != 1 or not _has_trained_head(model):
        raise InvalidInput(
            f"{name!r} gives no score for a pair of texts that it was trained to give ({model.num_labels} numbers a "
            "pair). Name a cross-encoder, also called a re-ranker, with one score."
        )
    fold_adapters(model)
    return model.eval()


def _has_trained_head(model: CrossEncoder) -> bool:
    """False for an encoder of single texts, on which sentence-transformers puts a head of random weights."""
    if len(list(model.children())) != 1:
        return True  # modules of its own beside the transformer, saved with it
    heads = getattr(model.config, "architectures", None) or ()
    return not heads or any(head.endswith(_TRAINED_HEADS) for head in heads)


def _length(model: CrossEncoder, wanted: int | None, name: str) -> int:
    """Tokens of a pair, special tokens included. Raises InvalidInput for more than the model has positions for."""
    declared = model.max_seq_length
    limit = loading.positions(model)
    own = int(declared) if declared and declared < 1_000_000 else 512
    if limit is not None:
        own = min(own, limit)
        if wanted is not None and wanted > limit:
            raise InvalidInput(f"max_length = {wanted}: {name} has positions for at most {limit} tokens.")
    return wanted or own


def by_library(model: CrossEncoder, pairs: Sequence[tuple[str, str]]) -> Scores:
    """(n,) logits by sentence-transformers itself, of the texts as encoders read them."""
    from ragadapt.text import searchable

    read = [(searchable(query), searchable(passage)) for query, passage in pairs]
    scores = model.predict(read, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    return np.asarray(scores, dtype=np.float32).reshape(len(pairs))


def _agreement(reference: Scores, other: Scores) -> tuple[float, float]:
    """(correlation, share of the pairs of passages that a probe query orders alike, near ties left out)."""
    spread = float(reference.std())
    if spread < 1e-6:
        return 1.0, 1.0
    correlation = float(np.corrcoef(reference, other)[0, 1])
    shape = (len(PROBE_QUERIES), -1)
    mine, theirs = (side[: len(PROBE_PAIRS)].reshape(shape) for side in (reference, other))
    gaps, others = (side[:, :, None] - side[:, None, :] for side in (mine, theirs))
    clear = gaps > _TIE * spread
    return correlation, float((others[clear] > 0).mean()) if clear.any() else 1.0


def read_pairs(tower: PairTower, pairs: Sequence[tuple[str, str]]) -> Scores:
    """(n,) scores, in batches of alike lengths."""
    scores = np.empty(len(pairs), dtype=np.float32)
    rows, types = tower.tokenize(pairs)
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    for batch in token_batches(lengths, _BUDGET.get(tower.device.type, 8192)):
        scores[batch] = _batch(tower, [rows[at] for at in batch], types and [types[at] for at in batch])
    return scores


@torch.no_grad()
def _batch(tower: PairTower, rows: list[Ids], types: list[Ids] | None) -> Scores:
    """One batch; where memory is short, the same batch in halves."""
    try:
        made: Scores = tower(rows, types).cpu().numpy()
        return made
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not lacks_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(rows) // 2
    log.warning("memory is short: going on with half the batch (%d pairs)", half)
    return np.concatenate(
        [_batch(tower, rows[:half], types and types[:half]), _batch(tower, rows[half:], types and types[half:])]
    )


def checked_reranker(value: Any, maker: str) -> Reranker:
    """The value, if it is a Reranker. maker: the call that makes one. Raises InvalidInput."""
    if not isinstance(value, Reranker):
        raise InvalidInput(
            f"reranker is {type(value).__name__}: give a ragadapt.rerank.Reranker, or use {maker}(model)."
        )
    return value

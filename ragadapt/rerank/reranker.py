"""(query, passage) → score: the one Reranker, and what its kinds have in common."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from ragadapt.checks import checked_choice, checked_number, checked_path, checked_queries, checked_text, checked_texts
from ragadapt.encoder import loading
from ragadapt.encoder.batches import refuse_without_memory
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
    InvalidInput,
    ModelNotFound,
    NotARetriever,
    StoreError,
    reason_of,
)
from ragadapt.profiling import work
from ragadapt.rerank.memory import SCORES
from ragadapt.rerank.presets import is_multi_vector, source_of
from ragadapt.rerank.spec import SPEC_FILE, RerankerSpec, read_spec, write_spec
from ragadapt.rerank.tower import ReadingTower
from ragadapt.store.workspace import MANIFEST, RERANKER
from ragadapt.threads import follow_forks
from ragadapt.values import Progress, no_progress

log = logging.getLogger(__name__)

Scores = npt.NDArray[np.float32]

_DEPTH = {"cpu": 20}  # passages that are read of a query
_DEPTH_ELSEWHERE = 50
_SAME = 1e-4  # most by which two ways to compute the same may differ in float32, against the spread of the scores
_MIN_CORRELATION, _MIN_RANK_AGREEMENT = 0.999, 0.98  # of bfloat16 with float32, on the probe
_TIE = 0.05  # of the spread: pairs of passages closer than this may swap

PROBE_PAIRS = tuple((query, passage) for query in PROBE_QUERIES for passage in PROBE_PASSAGES[:8])
_LONG = tuple((PROBE_QUERIES[0], " ".join((*PROBE_PASSAGES[at:], *PROBE_PASSAGES[:at]))) for at in range(4))
_ALL = (*PROBE_PAIRS, _LONG[0])


class Reranker(ABC):
    """One number for a query and a passage, larger is better.

    Made by `Reranker.load` (a preset, a hub name, a folder) or `Reranker.open` (a folder that `save` wrote); the model
    says which kind it is. A cross-encoder reads the two texts together, a multi-vector model each by itself, and
    compares their tokens. Several threads may share one; they take turns. Scores are remembered in the process, by
    model, query and passage.
    """

    LIBRARY: ClassVar[str]  # the class of sentence-transformers that opens the model's folder
    WINDOW: ClassVar[int]  # pairs that are tokenised and sorted together

    def __init__(
        self, spec: RerankerSpec, source: Source, model: Any, precision: Precision, restore: Callable[[], Any]
    ) -> None:
        """model: of the library, in float32, on the precision's device; its weights are shared and brought to the
        precision. restore: makes the whole model anew in float32, on the CPU; saving starts from it."""
        self.spec = spec
        self.source = source
        self.precision = replace(precision, dtype="float32")
        self._tower: ReadingTower | None = None
        self._generic: Any = None  # reads where there is no tower
        self._restore = restore
        self._lock = threading.RLock()
        self._forked = False
        self._tokens_per_second = 0.0
        self._how: tuple[Any, ...] = ()
        follow_forks(self, encoder=True)
        self._settle(model, precision)

    # ------------------------------------------------------------------ making one

    @staticmethod
    def load(
        model: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        max_length: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Reranker:
        """The re-ranker of a preset, a hub name, a folder (of sentence-transformers, `save` or `fit`).

        max_length: tokens that are read of a pair, of a passage by a multi-vector model; None = the model's own.
        trust_remote_code: run code that comes with the model. Raises ModelNotFound, and InvalidInput for a model that
        gives no single score for a pair.
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
            return Reranker.open(folder, device=device, precision=precision)
        source = source_of(name, revision)
        kind = _kind(is_multi_vector(source))
        made = kind._build(name, source, device, precision, max_length, trust_remote_code)
        made._how = (Reranker.load, name, device, precision, max_length, revision, trust_remote_code)
        return made

    @staticmethod
    def open(folder: str | Path, *, device: str = "auto", precision: str = "auto") -> Reranker:
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
        kind = _kind(spec.multi_vector is not None)
        made = kind._build(spec.model, source, device, precision, spec.max_length, False, spec)
        made._how = (Reranker.open, folder.resolve(), device, precision)
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
        model = cls._open_model(name, source, device, trust)
        length = cls._cut(model, max_length, name)

        def restore() -> Any:
            fresh = cls._open_model(name, source, "cpu", trust)
            cls._cut(fresh, length, name)
            return fresh

        if saved is None:
            base, revision = loading.identity(model, source)
            spec = RerankerSpec(
                name, base, revision, loading.licence(source), length, cls._activation_of(model),
                multi_vector=cls._reading_of(model),
            )  # fmt: skip
        else:
            spec = saved
            if source.is_folder:
                found = spec.base if "@" in spec.base else loading.identity(model, source)[0]
            else:
                found = loading.identity(model, source)[0]
            if found != spec.base or cls._reading_of(model) != spec.multi_vector:
                other = f"{found[:60]} here, but {spec.base[:60]} is what was saved"
                if found == spec.base:
                    other = "set up otherwise here than what was saved"
                raise FingerprintMismatch(
                    f"The re-ranker {spec.model!r} is {other}: its scores would not be those that were judged. Fit "
                    "again, or fetch that revision."
                )
        return cls(spec, source, model, wanted, restore)

    @classmethod
    def _open_model(cls, name: str, source: Source, device: str, trust: bool) -> Any:
        """The library's model in float32, in eval mode. Raises ModelNotFound, InvalidInput."""
        from ragadapt.encoder.modules import fold_adapters

        if source.is_folder and (reason := cls._leads_outside(Path(source.location), trust)):
            raise ModelNotFound(
                f"The re-ranker in {source.location} was not loaded: {reason}. Give a folder that is whole."
            )
        try:
            with loading.quiet() if source.is_folder else nullcontext():  # a download may show how far it is
                model = cls._of_library(source, device, trust)
        except InvalidInput:
            raise
        except Exception as error:  # the libraries have many of their own, more still for a damaged folder
            refuse_without_memory(error, f"Re-ranker {name!r}", device)
            raise ModelNotFound(
                f"Re-ranker {name!r} cannot be loaded: {reason_of(error)}. Check the name and the network, or give the "
                f"folder of a sentence-transformers {cls.LIBRARY}."
            ) from error
        cls._check(model, name)
        fold_adapters(model)
        return model.eval()

    def _settle(self, model: Any, wanted: Precision) -> None:
        """Take the quickest way that gives the library's scores, then the wanted precision if it agrees."""
        reference = self.by_library(model, _ALL)
        for own in (True, False):
            tower = self._tower_of(model, own=own)
            if tower is None:
                break
            self._tower = tower.eval().requires_grad_(False)
            difference = float(np.abs(self._run(_ALL, remember=False) - reference).max())
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

    def _lower(self, tower: ReadingTower, wanted: Precision, reference: Scores) -> None:
        """Run in the wanted precision if it orders the probe's passages as float32 does."""
        tower.lower(wanted.torch_dtype)
        correlation, ranks = _agreement(reference, self._run(_ALL, remember=False))
        measured = replace(wanted, min_cosine=correlation, rank_agreement=ranks)
        if correlation < _MIN_CORRELATION or ranks < _MIN_RANK_AGREEMENT:
            log.warning(
                "%s changes the order (correlation %.4f, rank agreement %.3f): float32 is used",
                wanted.dtype, correlation, ranks,
            )  # fmt: skip
            fresh = self._tower_of(self._restore().to(tower.device), own=tower.own)
            assert fresh is not None
            self._tower = fresh.eval().requires_grad_(False)
            measured = replace(wanted, dtype="float32", reason=f"{wanted.dtype} changes the order")
        self.precision = measured

    def _measure(self) -> None:
        """How many tokens a second are read, of passages as long as most; the first run warms up."""
        tokens = sum(self._lengths(_LONG))
        for _ in range(2):
            start = time.perf_counter()
            self._run(_LONG, remember=False)
            self._tokens_per_second = tokens / (time.perf_counter() - start)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._how

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self) -> None:
        """In a forked process: the lock may be held by a thread that is not there."""
        self._lock = threading.RLock()
        self._forked = True

    # ------------------------------------------------------------------ what a kind says

    @classmethod
    @abstractmethod
    def _of_library(cls, source: Source, device: str, trust: bool) -> Any:
        """The model, as the library opens it."""

    @classmethod
    def _leads_outside(cls, folder: Path, trust: bool) -> str:
        """Why a folder must not be opened; "" where it may."""
        return loading.leads_outside(folder, trust)

    @classmethod
    @abstractmethod
    def _check(cls, model: Any, name: str) -> None:
        """Raise InvalidInput for a model that gives no score for a pair of texts."""

    @classmethod
    @abstractmethod
    def _cut(cls, model: Any, wanted: int | None, name: str) -> int:
        """Let the model read so many tokens; None = as many as it does. Returns how many. Raises InvalidInput for more
        than it has positions for."""

    @classmethod
    @abstractmethod
    def _activation_of(cls, model: Any) -> str:
        """What turns the model's number into a score, by name."""

    @classmethod
    def _reading_of(cls, model: Any) -> Mapping[str, Any] | None:
        """What else than the weights decides the scores, for the spec."""
        return None

    @classmethod
    @abstractmethod
    def by_library(cls, model: Any, pairs: Sequence[tuple[str, str]]) -> Scores:
        """(n,) logits by sentence-transformers itself, of the texts as encoders read them."""

    @abstractmethod
    def _tower_of(self, model: Any, *, own: bool) -> ReadingTower | None:
        """The model taken apart, over the same weights; None for one of another build."""

    @classmethod
    @abstractmethod
    def parts(cls, model: Any) -> tuple[nn.Module, nn.Module | None]:
        """The plain transformer of the library's model, and what stands on it, with its weights; None where it cannot
        be told from the transformer."""

    @abstractmethod
    def read_with(self, tower: Any, pairs: Sequence[tuple[str, str]]) -> Scores:
        """(n,) logits by a tower of this kind; nothing is remembered."""

    @abstractmethod
    def _read(self, pairs: Sequence[tuple[str, str]], remember: bool) -> Scores:
        """(n,) logits by the model. remember: what is made on the way may be kept, and taken from what was kept."""

    @abstractmethod
    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens that have to be read for each pair, were its score not remembered."""

    @abstractmethod
    def _activate(self, logits: Scores) -> Scores:
        """Logits as the scores that the model was trained to give."""

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
        """(n,) the score of each passage, as `CrossEncoder.predict` gives it by default, or
        `MultiVectorEncoder.similarity`. Raises InvalidInput."""
        return self._activate(self.logits(query, passages))

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
            SCORES.add(self._keys([pairs[at] for at in new]), fresh.tolist())
            for at, score in zip(new, fresh.tolist(), strict=True):
                known[at] = score
        score_of = dict(zip(pairs, known, strict=True))
        return [
            np.array([score_of[query, text] for text in passages], dtype=np.float32)
            for query, passages in zip(queries, texts, strict=True)
        ]

    def _recall(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        return SCORES.get(self._keys(pairs))

    def _keys(self, pairs: Sequence[tuple[str, str]]) -> list[bytes]:
        """What a score depends on. Two precisions give two scores."""
        start = hashlib.blake2b(f"{self.fingerprint} {self.precision.dtype} ".encode(), digest_size=16)
        keys = []
        for query, passage in pairs:
            digest, first = start.copy(), query.encode("utf-8", "surrogatepass")
            digest.update(len(first).to_bytes(8, "little") + first + passage.encode("utf-8", "surrogatepass"))
            keys.append(digest.digest())
        return keys

    def _run(self, pairs: Sequence[tuple[str, str]], progress: Progress = no_progress, remember: bool = True) -> Scores:
        """(n,) scores by the model."""
        if self._forked and self.precision.device.split(":")[0] != "cpu":
            raise InvalidInput(
                f"This re-ranker was opened on {self.precision.device} before the process was forked, and a forked "
                "process cannot use it there. Open it after the fork, or with device='cpu'."
            )
        scores = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), self.WINDOW):
            window = pairs[start : start + self.WINDOW]
            with self._lock, work("rerank", len(window)):
                scores[start : start + len(window)] = self._read(window, remember)
            progress("rerank", start + len(window), len(pairs))
        return scores

    # ------------------------------------------------------------------ saving

    def library_model(self) -> Any:
        """The whole model anew, in float32, on the CPU."""
        return self._restore()

    def save(self, folder: str | Path, *, portable: bool = True) -> bool:
        """Write a folder of sentence-transformers that gives the same scores without ragadapt, and prove it.

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
            before = self.by_library(model, PROBE_PAIRS)
            del model
            again = self._open_model(self.spec.model, Source(str(folder), None, None, True), "cpu", False)
            difference = float(np.abs(self.by_library(again, PROBE_PAIRS) - before).max())
            differs = difference > _SAME * max(1.0, float(before.std()))
            if differs or self._cut(again, None, str(folder)) != self.spec.max_length:
                raise StoreError(
                    f"The re-ranker saved in {folder} differs from the one in memory (by {difference:.2g}). It must "
                    "not be used; please report this."
                )
        write_spec(folder, self.spec)
        return copied


def _kind(multi_vector: bool) -> type[Reranker]:
    if multi_vector:
        from ragadapt.rerank.late_interaction import LateInteraction

        return LateInteraction
    from ragadapt.rerank.cross_encoder import CrossEncoderReranker

    return CrossEncoderReranker


def _again(make: Callable[..., Reranker], *values: Any) -> Reranker:
    if make.__name__ == "open":
        folder, device, precision = values
        return make(folder, device=device, precision=precision)
    name, device, precision, max_length, revision, trust = values
    return make(
        name, device=device, precision=precision, max_length=max_length, revision=revision, trust_remote_code=trust
    )


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


def checked_reranker(value: Any, maker: str) -> Reranker:
    """The value, if it is a Reranker. maker: the call that makes one. Raises InvalidInput."""
    if not isinstance(value, Reranker):
        raise InvalidInput(
            f"reranker is {type(value).__name__}: give a ragadapt.rerank.Reranker, or use {maker}(model)."
        )
    return value

"""Text → unit vectors: the one Encoder."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ragadapt.checks import checked_choice, checked_path, checked_text, checked_texts
from ragadapt.config import EncoderConfig
from ragadapt.encoder import attention, direct, loading
from ragadapt.encoder.architectures import NotCovered, Transformer, runs_on
from ragadapt.encoder.batches import Ids, keep_freed_memory, lacks_memory, token_batches
from ragadapt.encoder.counting import TokenCounter
from ragadapt.encoder.packed import PackedBert
from ragadapt.encoder.precision import (
    PRECISIONS,
    PROBE_PASSAGES,
    PROBE_QUERIES,
    Precision,
    agreement,
    choose_device,
    choose_precision,
)
from ragadapt.encoder.prefix import Prefix, PrefixCache, layer_list
from ragadapt.encoder.presets import Source, known_prompts, resolve
from ragadapt.encoder.spec import EncoderSpec, opens_directly, read_spec, write_spec
from ragadapt.encoder.tower import Tower
from ragadapt.errors import InvalidInput, NotARetriever, StoreCorrupt, StoreError
from ragadapt.files import map_npy
from ragadapt.out_of_core import Mapped
from ragadapt.profiling import work
from ragadapt.text import searchable
from ragadapt.threads import SharedLock, follow_forks, one_thread
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]
K = TypeVar("K")
T = TypeVar("T")

_FIRST_WINDOW = 512  # texts tokenised before the first batch runs: the model should not wait long
_WINDOW = 8192  # texts tokenised and sorted together afterwards; bounds the memory that tokens take
_LONG_TOKENS = 8192  # of the first window, from which a run is worth packing weights for
_SHORT_TOKENS = 64  # in all, of a call that runs on one thread: a question or two
_BUDGET = {"cpu": 2048, "cuda": 131_072, "mps": 16_384}  # tokens per batch
_RELOAD_COSINE = 0.9999
_SAME_COSINE = 1 - 1e-5  # of two ways to compute the same in float32
_AWKWARD = (
    "",
    " ".join(PROBE_PASSAGES) * 12,
    "\tA\u0301 ½ ﬁ\n漢字かな 😀 [SEP] <s>x</s>  naïve ÅNGSTRÖM \u200b",
    *PROBE_QUERIES,
)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """What saving a model proved. reload_cosine: least similarity of a reloaded probe vector with its twin."""

    folder: Path
    fingerprint: str
    portable: bool
    reload_cosine: float


class Encoder:
    """A bi-encoder: queries and passages in, float32 unit vectors out.

    Made by `Encoder.load` (a base model) or `Encoder.open` (a saved folder). The two sides share one tower
    unless only the query side was adapted. Several threads may share one. They encode side by side where the model was
    opened with torch alone, as a saved one mostly is; in other libraries' code they take turns.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        config: EncoderConfig,
        query: Tower | None,
        passage: Tower | None,
        precision: Precision,
        restore: Callable[[], SentenceTransformer],
        generic: SentenceTransformer | None = None,
    ) -> None:
        """restore: makes the whole model anew in float32, on the CPU; saving and merging start from it.
        generic: runs the texts where the model has no towers."""
        self._spec = spec
        self.config = config
        self.query_tower = query
        self.passage_tower = passage
        self.precision = precision
        self._lock = SharedLock()  # shared by all that encode; a fork has it alone
        self._turns = threading.RLock()
        self._last = threading.local()
        self._counter: TokenCounter | None = None
        self._forked = False
        self._made_by: tuple[Any, ...] | None = None  # how to make it again: a function and what it takes
        follow_forks(self, encoder=True)
        self._restore = restore
        self._generic = generic
        self._finish: Callable[[Path, bool], bool] = _add_nothing

    # ------------------------------------------------------------------ making one

    @classmethod
    def load(cls, config: EncoderConfig | None = None) -> Self:
        """The base model that the configuration names.

        Raises ModelNotFound, MissingExtra, InvalidConfiguration.
        """
        config = EncoderConfig.model_validate({}) if config is None else config
        if not isinstance(config, EncoderConfig):
            raise InvalidInput(f"config is {type(config).__name__}; an EncoderConfig is needed.")
        source = resolve(config)
        encoder = cls._build(source, config, spec=None)
        encoder._made_by = (cls.load, config)
        return encoder

    @classmethod
    def open(cls, folder: str | Path, *, device: str = "auto", precision: str = "auto") -> Self:
        """An encoder saved with `save`. Raises NotARetriever, StoreCorrupt, FormatTooNew, ModelNotFound."""
        folder = checked_path(folder, "The model's folder")
        checked_choice("precision", precision, PRECISIONS)
        checked_text("device", device)
        spec = read_spec(folder)
        if spec is None:
            raise NotARetriever(
                f"{folder} holds no encoder saved by ragadapt (no ragadapt_encoder.json). For a "
                "sentence-transformers folder use Encoder.load(EncoderConfig(model=…))."
            )
        if reason := loading.saved_leads_outside(folder, spec):
            raise StoreCorrupt(f"The model in {folder} was not loaded: {reason}. Restore the folder or fit again.")
        config = EncoderConfig.model_validate(
            {
                "model": str(folder),
                "max_length": spec.max_length,
                "query_prompt": spec.query_prompt,
                "passage_prompt": spec.passage_prompt,
                "device": device,
                "precision": precision,
            }
        )
        source = Source(str(folder), None, None, True)
        encoder = cls._open_directly(source, config, spec) or cls._build(source, config, spec)
        adapter = folder / "adapter"
        if adapter.is_dir():
            encoder._finish = lambda target, portable: _copy_adapter(adapter, target)
        encoder._made_by = (_open, cls, folder.resolve(), device, precision)
        return encoder

    def __reduce__(self) -> tuple[Any, ...]:
        if self._made_by is None:
            raise InvalidInput(
                "An encoder that was adapted in memory cannot be pickled or copied. Save it with encoder.save(folder) "
                "and pass the folder on; Encoder.open reads it there."
            )
        make, *values = self._made_by
        return make, tuple(values)

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self) -> None:
        """In a forked process: the lock may be held by a thread that is not there."""
        self._lock, self._turns = SharedLock(), threading.RLock()
        self._forked = True

    @classmethod
    def _open_directly(cls, source: Source, config: EncoderConfig, spec: EncoderSpec) -> Self | None:
        """With torch alone, if saving proved that it gives the same; None where it did not."""
        folder = Path(source.location)
        towers = direct.open_towers(folder, spec.max_length) if opens_directly(folder) else None
        if towers is None:
            return None
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)

        def restore() -> SentenceTransformer:
            fresh = loading.open_model(source, config, "cpu")
            return _prepared(fresh, spec.max_length, spec.query_prompt, spec.passage_prompt)

        try:
            for tower in towers:
                assert isinstance(tower.model, Transformer)
                runs_on(tower.model, torch.device(device))
        except NotCovered as reason:
            log.info("%s is not opened with torch alone: %s", folder, reason)
            return None
        query, passage = (tower.to(device) for tower in towers)
        log.info("%s: runs in %s", config.model, query.path)
        encoder = cls(spec, config, query, passage, replace(precision, dtype="float32"), restore)
        encoder._settle(precision, encoder._probe())
        return encoder

    @classmethod
    def _build(cls, source: Source, config: EncoderConfig, spec: EncoderSpec | None) -> Self:
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
        model = loading.open_model(source, config, device)
        length = loading.max_length(model, config, source)
        query_prompt, passage_prompt = _prompts(model, config, source)

        def restore() -> SentenceTransformer:
            fresh = loading.open_model(source, config, "cpu")
            return _prepared(fresh, length, query_prompt, passage_prompt)

        _prepared(model, length, query_prompt, passage_prompt)
        query_chain, passage_chain = loading.sides(model)
        query = loading.build_tower(query_chain, length, own=True)
        passage = query if passage_chain == query_chain else loading.build_tower(passage_chain, length, own=True)
        if spec is None:
            base, revision = loading.identity(model, source)
            spec = EncoderSpec(
                model=config.model,
                base=base,
                revision=revision,
                licence=loading.licence(source),
                dim=_width(model),
                max_length=length,
                query_prompt=query_prompt,
                passage_prompt=passage_prompt,
                head=loading.head_settings(passage_chain),
            )
        encoder = cls(spec, config, query, passage, replace(precision, dtype="float32"), restore)
        reference = encoder._reference(model)
        log.info("%s: runs in %s", config.model, encoder._path())
        encoder._settle(precision, reference)
        return encoder

    def _path(self) -> str:
        """Which code runs the model."""
        towers = (self.query_tower, self.passage_tower)
        paths = {tower.path for tower in towers if tower is not None}
        return " and ".join(sorted(paths)) or "sentence-transformers"

    def _reference(self, model: SentenceTransformer) -> tuple[Vectors, Vectors]:
        """Probe vectors as sentence-transformers itself makes them; the towers must agree or are given up."""
        queries = self._by_library(model, PROBE_QUERIES, "query")
        passages = self._by_library(model, self._probe_passages, "document")
        if self.query_tower is not None and self.passage_tower is not None:
            cosine, _ = agreement((queries, passages), self._probe())
            if cosine < _SAME_COSINE and self._leave_own_forward(model, cosine):
                cosine, _ = agreement((queries, passages), self._probe())
            if cosine >= _RELOAD_COSINE:
                return queries, passages
            log.warning("fast path differs from sentence-transformers (cosine %.5f): not used", cosine)
        self.query_tower = self.passage_tower = None
        self._generic = model
        return queries, passages

    def _leave_own_forward(self, model: SentenceTransformer, cosine: float) -> bool:
        """Towers that run in transformers' forward in the place of our own; False where none does."""
        towers = (self.query_tower, self.passage_tower)
        if not any(tower is not None and isinstance(tower.model, Transformer) for tower in towers):
            return False
        query_chain, passage_chain = loading.sides(model)
        query = loading.build_tower(query_chain, self.max_length)
        passage = query if passage_chain == query_chain else loading.build_tower(passage_chain, self.max_length)
        for tower in (query, passage):
            if tower is not None:
                tower.path = f"transformers' forward, as ragadapt's own differs from it (cosine {cosine:.6f})"
        self.query_tower, self.passage_tower = query, passage
        return True

    def _settle(self, wanted: Precision, reference: tuple[Vectors, Vectors]) -> None:
        """Run in the wanted precision if it agrees with float32 on the probe, else stay in float32."""
        if wanted.dtype == "float32" or self._generic is not None:
            reason = wanted.reason if self._generic is None else "this model runs in sentence-transformers"
            self.precision = replace(wanted, dtype="float32", reason=reason)
            return
        towers = {id(tower): tower for tower in (self.query_tower, self.passage_tower) if tower is not None}
        for tower in towers.values():
            tower.model.to(wanted.torch_dtype)
            if tower.device.type == "cuda" or (wanted.dtype == "bfloat16" and tower.device.type == "cpu"):
                attention.use(tower.model)
        cosine, ranks = agreement(reference, self._probe())
        measured = replace(wanted, min_cosine=cosine, rank_agreement=ranks)
        log.info(
            "%s on %s (%s): least cosine with float32 %.5f",
            wanted.dtype,
            wanted.device,
            wanted.reason,
            cosine,
        )
        if not measured.holds:
            log.warning(
                "%s changes the ranking (least cosine %.4f, rank agreement %.3f): float32 is used",
                wanted.dtype, cosine, ranks,
            )  # fmt: skip
            weights = self._restore()
            for side, fresh in zip((self.query_tower, self.passage_tower), loading.sides(weights), strict=True):
                assert side is not None
                attention.leave(side.model)
                side.model.to(torch.float32)
                kept = fresh[0].get_submodule("model").state_dict()  # may hold more than a tower that was opened alone
                side.model.load_state_dict({name: kept[name] for name in side.model.state_dict()})
            measured = replace(wanted, dtype="float32", reason=f"{wanted.dtype} changes the ranking")
        self.precision = measured

    # ------------------------------------------------------------------ what it is

    @property
    def truncated(self) -> int:
        """How many texts of this thread's last call were cut."""
        return int(getattr(self._last, "truncated", 0))

    @truncated.setter
    def truncated(self, count: int) -> None:
        self._last.truncated = count

    @property
    def spec(self) -> EncoderSpec:
        """What it is made of."""
        return self._spec

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._spec.dim

    @property
    def max_length(self) -> int:
        """Tokens per text, special tokens and prompt included; the rest is cut off."""
        return self._spec.max_length

    @cached_property
    def unrelated(self) -> float:
        """The mean inner product of passages about different things, those of the probe."""
        rows = self.encode_passages(list(PROBE_PASSAGES)).astype(np.float64)
        count, total = len(rows), rows.sum(axis=0)
        return float((total @ total - count) / (count * (count - 1)))

    @property
    def fingerprint(self) -> str:
        """Equal for encoders whose vectors can be compared; see EncoderSpec."""
        return self.spec.fingerprint

    @property
    def special_tokens(self) -> int:
        """Tokens that every text gets besides its own (start, end)."""
        return int(self._tokenizer.num_special_tokens_to_add(False))  # its name differs between tokenizers

    @property
    def passage_room(self) -> int:
        """Tokens of a passage that are read: the max length less special tokens and the passage prompt."""
        prompt = self._spec.passage_prompt
        return self.max_length - self.special_tokens - (self.count_tokens([prompt])[0] if prompt else 0)

    def unread_ends(self, texts: Sequence[str], what: str = "texts") -> str:
        """What of these texts, which are passages, is not read, in a sentence with numbers; "" where all is."""
        room = self.passage_room
        counts = np.array(self.count_tokens(texts), dtype=np.int64)
        longer = int(np.sum(counts > room))
        if not longer:
            return ""
        lost = float(np.sum(np.maximum(counts - room, 0)) / np.sum(counts))
        return (
            f"{longer:,} of {len(texts):,} {what} are longer than the {room:,} tokens that the encoder reads of one "
            f"(the longest has {int(counts.max()):,}): {lost:.0%} of the text is in no vector."
        )

    @property
    def _tokenizer(self) -> Any:
        if self.passage_tower is not None:
            return self.passage_tower.tokenizer
        assert self._generic is not None
        return self._generic.tokenizer

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut, without special tokens and without a prompt."""
        texts = texts if isinstance(texts, Mapped) else checked_texts(texts)
        counts: list[int] = []
        with self._lock.shared(), self._turns:
            for start in range(0, len(texts), _WINDOW):
                piece = texts[start : start + _WINDOW]
                with work("tokenise", len(piece)):
                    counts += self._count(piece)
        return counts

    def _count(self, texts: Iterable[str]) -> list[int]:
        if self._counter is None or self._counter.tokenizer is not self._tokenizer:
            self._counter = TokenCounter(self._tokenizer)
        return self._counter([searchable(text) for text in texts])

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The texts of token ids that this encoder's tokenizer made. Raises InvalidInput for those of another one.

        Ids of another vocabulary stand for other words, so the text must give the same ids again.
        """
        texts = []
        with self._lock.shared(), self._turns:
            tokenizer = self._tokenizer
            special = set(getattr(tokenizer, "all_special_ids", ()))
            size = len(tokenizer) if callable(tokenizer) else tokenizer.get_vocab_size()
            for number, row in enumerate(tokens):
                own = [id for id in row if id not in special]
                text = str(tokenizer.decode(own)) if all(0 <= id < size for id in own) else ""
                if not own or self._ids(text) != own:
                    raise InvalidInput(
                        f"tokens[{number}] does not come from this model's tokenizer: its ids stand for other words. "
                        "Send the text itself (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)."
                    )
                texts.append(text)
        return texts

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        if not callable(tokenizer):
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    # ------------------------------------------------------------------ encoding

    def encode_queries(self, texts: Sequence[str], *, progress: Progress = no_progress) -> Vectors:
        """(n, dim) float32 unit vectors, in the order of the texts; (0, dim) for none."""
        return self._encode(texts, "query", progress)

    def encode_passages(self, texts: Sequence[str], *, progress: Progress = no_progress) -> Vectors:
        """(n, dim) float32 unit vectors, in the order of the texts; (0, dim) for none."""
        return self._encode(texts, "document", progress)

    def _encode(self, texts: Sequence[str], task: str, progress: Progress) -> Vectors:
        texts = checked_texts(texts)
        if not texts:
            self.truncated = 0
            return np.zeros((0, self.dim), dtype=np.float32)
        positions: dict[str, int] = {}
        inverse = np.fromiter((positions.setdefault(text, len(positions)) for text in texts), np.int64, len(texts))
        unique = list(positions)
        if self._forked and self.precision.device.split(":")[0] != "cpu":
            raise InvalidInput(
                f"This encoder was opened on {self.precision.device} before the process was forked, and a forked "
                "process cannot use it there. Open it after the fork, start processes with 'spawn', or open it with "
                "device='cpu'."
            )
        stage = "encode queries" if task == "query" else "encode passages"
        tower = self.query_tower if task == "query" else self.passage_tower
        beside = tower is not None and tower.stateless and tower.prefix is None
        with self._lock.shared(), nullcontext() if beside else self._turns:
            self.truncated = 0
            if tower is None:
                assert self._generic is not None
                vectors = self._by_library(self._generic, unique, task)
                progress(stage, len(unique), len(unique))
            else:
                prompt = self._spec.query_prompt if task == "query" else self._spec.passage_prompt
                vectors = self._run(tower, unique, prompt, stage, progress)
        return vectors if len(unique) == len(texts) else vectors[inverse]

    def _run(self, tower: Tower, texts: list[str], prompt: str, stage: str, progress: Progress) -> Vectors:
        """Windows of texts: while one runs through the model, a thread tokenises the next."""
        budget = self.config.token_budget or _BUDGET.get(tower.device.type, 8192)
        front = tower.prompt_length(prompt) if prompt and not tower.prompt_pooled else 0
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        bounds = [0, min(_FIRST_WINDOW, len(texts))]
        while bounds[-1] < len(texts):
            bounds.append(min(bounds[-1] + _WINDOW, len(texts)))
        windows = list(pairwise(bounds))

        def tokenise(window: tuple[int, int]) -> tuple[list[Ids], int]:
            piece = texts[window[0] : window[1]]
            with work("tokenise", len(piece)):
                return tower.tokenize([prompt + text for text in piece] if prompt else piece)

        done = 0
        packed = None
        for (start, _), (rows, cut) in zip(windows, _ahead(tokenise, windows), strict=True):
            self.truncated += cut
            lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
            if start == 0 and int(lengths.sum()) >= _LONG_TOKENS:
                keep_freed_memory()
                packed = tower.packed()
            short = len(windows) == 1 and int(lengths.sum()) <= _SHORT_TOKENS
            with one_thread() if short else nullcontext():
                for batch in token_batches(lengths, budget):
                    with work("forward", len(batch)):
                        vectors[start + batch] = _embed(tower, [rows[i] for i in batch], front, packed)
                    done += len(batch)
                    progress(stage, done, len(texts))
        return vectors

    def _by_library(self, model: SentenceTransformer, texts: Sequence[str], task: str) -> Vectors:
        prompt = self._spec.query_prompt if task == "query" else self._spec.passage_prompt
        method = model.encode_query if task == "query" else model.encode_document
        with one_thread() if len(texts) == 1 else nullcontext():
            vectors = method(
                [searchable(text) for text in texts],
                prompt=prompt,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        return np.asarray(vectors, dtype=np.float32)

    def _probe(self) -> tuple[Vectors, Vectors]:
        return self.encode_queries(PROBE_QUERIES), self.encode_passages(self._probe_passages)

    @property
    def _probe_passages(self) -> tuple[str, ...]:
        """On a GPU with long texts among them: which kernel runs there depends on the length, and it costs little."""
        if self.precision.device.split(":")[0] == "cpu":
            return PROBE_PASSAGES
        whole = " ".join(PROBE_PASSAGES)
        return (*PROBE_PASSAGES, whole, f"{whole} {whole}", " ".join([whole] * 12))

    def encode_to(
        self,
        texts: Sequence[str],
        path: str | Path,
        *,
        side: str = "passage",
        shard_size: int = 8192,
        progress: Progress = no_progress,
    ) -> npt.NDArray[np.float32]:
        """Vectors written shard by shard into an .npy file, returned memory-mapped (read-only).

        Killed and called again with the same texts and encoder, it goes on after the last whole shard; with
        others it starts anew. Memory stays bounded by a shard; equal texts are encoded once. A file beside it,
        `<name>.progress`, tells how far it came, and is gone at the end. Raises InvalidInput, and OSError
        where the disk has no room for all of them.
        """
        texts = texts if isinstance(texts, Mapped) else checked_texts(texts)
        path = Path(path)
        if side not in ("query", "passage"):
            raise InvalidInput(f"side = {side!r}: it is 'query' or 'passage'.")
        if shard_size < 1:
            raise InvalidInput(f"shard_size = {shard_size}: it must be at least 1.")
        note = path.with_name(path.name + ".progress")
        partial = path.with_name(path.name + ".partial")
        digest, hashes = _digest(texts)
        identity = {
            "fingerprint": self.fingerprint,
            "side": side,
            "texts": digest,
            "count": len(texts),
        }
        done = _resume_point(note, partial, identity, (len(texts), self.dim))
        if len(texts) == 0:
            np.save(path, np.zeros((0, self.dim), dtype=np.float32))
            return np.zeros((0, self.dim), dtype=np.float32)
        target = map_npy(partial, (len(texts), self.dim), existing=done > 0)
        encode = self.encode_queries if side == "query" else self.encode_passages
        # A text of an earlier shard is not encoded again, its row is copied.
        _, first, place = np.unique(np.array(hashes, "S16"), return_index=True, return_inverse=True)
        source = first[place]
        del first, place, hashes
        cut = 0
        while done < len(texts):
            end = min(done + shard_size, len(texts))
            known = source[done:end] < done
            new = np.flatnonzero(~known)
            own = list(texts[done:end])
            shard = [own[at] for at in new]
            target[done + new] = encode(shard, progress=_within(progress, done, len(texts)))
            target[done + np.flatnonzero(known)] = target[source[done:end][known]]
            cut += self.truncated
            target.flush()
            done = end
            _write_atomically(note, json.dumps({**identity, "done": done}))
            progress(f"encode {side}s" if side == "passage" else "encode queries", done, len(texts))
        self.truncated = cut
        del target
        partial.replace(path)
        note.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ the frozen prefix

    def use_prefix_cache(
        self, folder: str | Path, *, top_layers: int | None = None, max_bytes: int = 4_000_000_000
    ) -> bool:
        """Keep what the layers below the top ones give, in a file under folder; False where this model can't.

        top_layers: None = the upper half. Encoders made from this one
        (adapted, merged) go on with the same cache. Vectors do not change: a text that runs in the same padded
        shape gets the same bits.
        """
        towers = {id(tower): tower for tower in (self.query_tower, self.passage_tower) if tower is not None}
        cuts: list[tuple[Tower, int]] = []
        for tower in towers.values():
            found = layer_list(tower.model)
            count = top_layers or (-(-len(found[1]) // 2) if found else 0)
            tower.prefix = None
            if not tower.can_be_cut(count, self._in_training()):
                log.info("no prefix cache: %s cannot be cut below layer %d", type(tower.model).__name__, count)
                return False
            cuts.append((tower, count))
        caches: dict[str, PrefixCache] = {}
        for tower, count in cuts:
            adapter = self._spec.adapter
            below_is_base = adapter is None or adapter.layers <= count
            weights = self._spec.base if below_is_base else f"{self.fingerprint} {tower is self.query_tower}"
            key = f"{weights} cut {count} torch {torch.__version__} {tower.device.type}"
            if key not in caches:
                width = int(tower.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
                caches[key] = PrefixCache(folder, key, width, tower.dtype, max_bytes)
            tower.prefix = Prefix(tower.model, count, caches[key])
        return bool(towers)

    def release_prefix_cache(self) -> None:
        """Stop using the cache and close its file; the folder stays."""
        for tower in (self.query_tower, self.passage_tower):
            if tower is not None and tower.prefix is not None:
                if tower.prefix.cache is not None:
                    tower.prefix.cache.close()
                tower.prefix = None

    def forget_other_prefixes(self, folder: str | Path) -> None:
        """Delete what caches under this folder hold for other models or cuts, unless another process writes it."""
        towers = (self.query_tower, self.passage_tower)
        caches = [tower.prefix.cache for tower in towers if tower is not None and tower.prefix is not None]
        used = {cache.values_path.stem for cache in caches if cache is not None}
        for path in Path(folder).glob("prefix-*.bin"):
            if path.stem not in used:
                PrefixCache.delete(path)

    def _in_training(self) -> Iterable[torch.nn.Parameter]:
        """The parameters that may change while this encoder lives."""
        return ()

    # ------------------------------------------------------------------ saving

    def save(self, folder: str | Path, *, portable: bool = True) -> SavedModel:
        """Write a sentence-transformers model that gives the same vectors without ragadapt, and prove it.

        portable: True copies the base weights; False lets an adapter on a hub model refer to its base by
        name and revision (everything else is written whole either way). The saved folder is opened again and
        must reproduce the probe vectors. Raises StoreError where it does not.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model = self._restore()
        with loading.quiet():
            model.save(str(folder), create_model_card=False, safe_serialization=True)
        by_reference = self._finish(folder, portable)
        spec = self.spec
        write_spec(folder, spec)
        before = (
            self._by_library(model, PROBE_QUERIES, "query"),
            self._by_library(model, self._probe_passages, "document"),
        )
        del model
        source = Source(str(folder), None, None, True)
        again = loading.open_model(source, EncoderConfig.model_validate({"model": str(folder)}), "cpu")
        after = (
            self._by_library(again, PROBE_QUERIES, "query"),
            self._by_library(again, self._probe_passages, "document"),
        )
        cosine, _ = agreement(before, after)
        mine, _ = agreement(before, self._probe())
        if cosine < _RELOAD_COSINE or mine < 0.99:
            raise StoreError(
                f"The model saved in {folder} differs from the one in memory (cosine {min(cosine, mine):.5f}, at "
                f"least {_RELOAD_COSINE} is needed). It must not be used; please report this."
            )
        if self._same_directly(folder, spec, again, after):
            write_spec(folder, spec, direct=True)
        return SavedModel(folder, spec.fingerprint, not by_reference, cosine)

    def _same_directly(
        self, folder: Path, spec: EncoderSpec, model: SentenceTransformer, vectors: tuple[Vectors, Vectors]
    ) -> bool:
        """Whether torch alone opens the folder to the same tokens and vectors as the library."""
        towers = direct.open_towers(folder, spec.max_length)
        if towers is None:
            return False
        for tower, chain in zip(towers, loading.sides(model), strict=True):
            theirs = loading.build_tower(chain, spec.max_length)
            if theirs is None:
                return False
            pairs = zip(tower.tokenize(_AWKWARD)[0], theirs.tokenize(_AWKWARD)[0], strict=True)
            if not all(np.array_equal(mine, other) for mine, other in pairs):
                return False
        precision = Precision("float32", "cpu", "for comparison")
        opened = Encoder(spec, self.config, *towers, precision, self._restore)
        mine = opened.encode_queries(PROBE_QUERIES), opened.encode_passages(self._probe_passages)
        cosine, _ = agreement(vectors, mine)
        return cosine >= _SAME_COSINE


def _ahead(do: Callable[[K], T], items: Sequence[K]) -> Iterator[T]:
    """do(item) of every item, each in a thread while the one before it is used; of a single one at once, right here."""
    if len(items) == 1:
        yield do(items[0])
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: Future[T] = pool.submit(do, items[0])
        for item in items[1:]:
            found, ahead = ahead.result(), pool.submit(do, item)
            yield found
        yield ahead.result()


def _open(kind: type[Encoder], folder: Path, device: str, precision: str) -> Encoder:
    return kind.open(folder, device=device, precision=precision)


def _embed(tower: Tower, rows: list[Ids], prompt_length: int, packed: PackedBert | None) -> Vectors:
    """One batch; where memory is short, the same batch in halves."""
    try:
        return tower.embed(rows, prompt_length, packed)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not lacks_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("memory is short: going on with half the batch (%d texts)", len(rows) // 2)
    middle = len(rows) // 2
    return np.concatenate([_embed(tower, part, prompt_length, packed) for part in (rows[:middle], rows[middle:])])


def _prompts(model: SentenceTransformer, config: EncoderConfig, source: Source) -> tuple[str, str]:
    """As configured, else as saved with the model, else what its family is known to need."""
    saved = {name: text for name, text in (model.prompts or {}).items() if text}
    query, passage = saved.get("query", ""), saved.get("document") or saved.get("passage") or ""
    if not saved:
        query, passage = known_prompts(source.location)
    if config.query_prompt is not None:
        query = config.query_prompt
    if config.passage_prompt is not None:
        passage = config.passage_prompt
    return query, passage


def _add_nothing(folder: Path, portable: bool) -> bool:
    """What saving a base model adds to the folder; returns whether the base is only referred to."""
    return False


def _copy_adapter(adapter: Path, target: Path) -> bool:
    if (target / "adapter") != adapter:
        shutil.copytree(adapter, target / "adapter", dirs_exist_ok=True)
    return False


def _prepared(
    model: SentenceTransformer, max_length: int, query_prompt: str, passage_prompt: str
) -> SentenceTransformer:
    """The model so that it would save what we return: unit length, our prompts, our max length."""
    loading.unit_length(model)
    with suppress(AttributeError):  # models of static vectors read texts of any length
        model.max_seq_length = max_length
    model.prompts = {"query": query_prompt, "document": passage_prompt}
    model.default_prompt_name = "document" if passage_prompt else None
    return model


def _width(model: SentenceTransformer) -> int:
    if hasattr(model, "get_embedding_dimension"):
        return int(model.get_embedding_dimension() or 0)
    return int(model.get_sentence_embedding_dimension() or 0)  # its name before 6.0


def _digest(texts: Iterable[str]) -> tuple[str, list[bytes]]:
    """The hash of all texts, and of each."""
    digest, each = hashlib.sha256(), []
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
        each.append(hashlib.blake2b(data, digest_size=16).digest())
    return digest.hexdigest(), each


def _within(progress: Progress, before: int, total: int) -> Progress:
    """Reports from inside a shard; its end is reported once it is safe on disk."""

    def report(stage: str, done: int, size: int) -> None:
        if done < size:
            progress(stage, before + done, total)

    return report


def _resume_point(note: Path, partial: Path, identity: dict[str, Any], shape: tuple[int, int]) -> int:
    """Rows already written by an earlier call with the same identity; 0 = start anew."""
    try:
        state = json.loads(note.read_text(encoding="utf-8"))
        existing = np.load(partial, mmap_mode="r")
    except (OSError, ValueError):
        return 0
    done = state.pop("done", 0)
    return int(done) if state == identity and existing.shape == shape else 0


def _write_atomically(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)

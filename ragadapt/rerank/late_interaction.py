"""Late interaction (Khattab and Zaharia, 2020): one vector for each token of a query and of a passage, compared here.

Nothing of it is in the index: the vectors of the passages that a first stage found are computed when they are asked
for, and remembered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ragadapt.encoder import loading
from ragadapt.encoder.batches import Ids, pad
from ragadapt.encoder.presets import Source
from ragadapt.errors import InvalidInput
from ragadapt.rerank.memory import VECTORS, Vectors
from ragadapt.rerank.reranker import Reranker, Scores
from ragadapt.rerank.tower import ReadingTower, in_batches, own_forward, readable
from ragadapt.text import searchable

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from sentence_transformers import MultiVectorEncoder

Task = Literal["query", "document"]
SIDES: tuple[Task, Task] = ("query", "document")

_TOKENISED = 256  # texts at once, padded to the longest
_READ_AS_OURS = ("pylate.models.Dense.Dense",)  # by sentence-transformers, which does not import pylate for it


class LateInteraction(Reranker):
    """A sentence-transformers MultiVectorEncoder: a query's tokens each look for the nearest token of the passage.

    A passage is read by itself, so its vectors serve every query; they are remembered beside the scores.
    """

    LIBRARY: ClassVar[str] = "MultiVectorEncoder"
    WINDOW: ClassVar[int] = 512  # its vectors are held at once: some 50 MB

    _tower: TokenTower | None

    @classmethod
    def _of_library(cls, source: Source, device: str, trust: bool) -> MultiVectorEncoder:
        try:
            from sentence_transformers import MultiVectorEncoder
        except ImportError as error:
            raise InvalidInput(
                f"{source.location} is a multi-vector (ColBERT) model, which sentence-transformers opens from version "
                "6 on. Upgrade with: pip install -U sentence-transformers"
            ) from error
        options: dict[str, Any] = {
            "device": device,
            "revision": source.revision,
            "trust_remote_code": trust,
            "model_kwargs": {"dtype": torch.float32},
        }
        if source.is_folder and (names := loading.own_modules(Path(source.location))):
            return loading.open_with_own_modules(MultiVectorEncoder, source.location, names, options)
        return MultiVectorEncoder(source.location, **options)

    @classmethod
    def _leads_outside(cls, folder: Path, trust: bool) -> str:
        return loading.leads_outside(folder, trust, also=_READ_AS_OURS)

    @classmethod
    def _check(cls, model: MultiVectorEncoder, name: str) -> None:
        if getattr(model[0], "transformer_task", None) == "retrieval":
            raise InvalidInput(f"{name!r} is made for pictures of pages, not for text. Name a multi-vector text model.")

    @classmethod
    def _cut(cls, model: MultiVectorEncoder, wanted: int | None, name: str) -> int:
        """Tokens of a passage, its prompt and special tokens included; queries keep the length of their own."""
        first: Any = model[0]
        length = readable(model, getattr(first, "document_length", None) or model.max_seq_length, wanted, name)
        if hasattr(first, "document_length"):
            first.document_length = length
        elif wanted is not None and wanted != length:
            raise InvalidInput(f"max_length = {wanted}: the length of the passages that {name} reads cannot be set.")
        return length

    @classmethod
    def _activation_of(cls, model: MultiVectorEncoder) -> str:
        return str(model.similarity_fn_name)

    @classmethod
    def _reading_of(cls, model: MultiVectorEncoder) -> Mapping[str, Any]:
        first: Any = model[0]
        reading = {
            "prompts": _prompts(model),
            "query_length": getattr(first, "query_length", None),
            "query_expansion": getattr(first, "query_expansion", None),
            "modules": loading.head_settings(list(model.children())),
        }
        found: dict[str, Any] = json.loads(json.dumps(reading))  # as it is read again
        return found

    @classmethod
    def by_library(cls, model: MultiVectorEncoder, pairs: Sequence[tuple[str, str]]) -> Scores:
        sides: list[list[Any]] = []
        for task, texts in zip(("query", "document"), zip(*pairs, strict=True), strict=True):
            own = list(dict.fromkeys(texts))
            made = dict(zip(own, _encode(model, own, task), strict=True))
            sides.append([torch.from_numpy(made[text]) for text in texts])
        return np.asarray(model.similarity_pairwise(*sides), dtype=np.float32)

    def _tower_of(self, model: MultiVectorEncoder, *, own: bool) -> TokenTower | None:
        return TokenTower.of(model, self.spec.max_length, own=own)

    @classmethod
    def parts(cls, model: MultiVectorEncoder) -> tuple[nn.Module, nn.Module | None]:
        first, *rest = model.children()
        return first.get_submodule("model"), nn.ModuleList(rest)

    def read_with(self, tower: TokenTower, pairs: Sequence[tuple[str, str]]) -> Scores:
        return self._scores_of(pairs, tower.vectors)

    # ------------------------------------------------------------------ reading

    def vectors(self, texts: Sequence[str], task: Task, *, remember: bool = True) -> list[Vectors]:
        """For every text (T, d), one vector for each token that counts. task: "query" or "document". remember: take
        those that are remembered, and remember the others."""
        unique = list(dict.fromkeys(texts))
        keys = [self._vector_key(text, task) for text in unique]
        found = VECTORS.get(keys) if remember else [None] * len(unique)
        new = [at for at, vectors in enumerate(found) if vectors is None]
        with self._lock:
            fresh = self._embed([unique[at] for at in new], task)
        if remember:
            VECTORS.add([keys[at] for at in new], fresh)
        made = dict(zip((unique[at] for at in new), fresh, strict=True))
        made.update({text: vectors for text, vectors in zip(unique, found, strict=True) if vectors is not None})
        return [made[text] for text in texts]

    def _embed(self, texts: Sequence[str], task: Task) -> list[Vectors]:
        # Half precision rounds less than bfloat16 has already, and twice as many fit into the memory.
        kept = np.float32 if self.precision.dtype == "float32" else np.float16
        if self._tower is None:
            made = _encode(self._generic, texts, task)
        else:
            made = self._tower.vectors(texts, task)
        return [vectors.astype(kept) for vectors in made]

    def _vector_key(self, text: str, task: Task) -> bytes:
        start = f"{self.fingerprint} {self.precision.dtype} {task} ".encode()
        return hashlib.blake2b(start + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def _read(self, pairs: Sequence[tuple[str, str]], remember: bool) -> Scores:
        return self._scores_of(pairs, lambda texts, task: self.vectors(texts, task, remember=remember))

    def _scores_of(self, pairs: Sequence[tuple[str, str]], encode: Callable[[list[str], Task], list[Any]]) -> Scores:
        """(n,) MaxSim. encode: texts of one side → their vectors; asked once for each text."""
        rows: dict[str, list[int]] = {}
        for at, (query, _) in enumerate(pairs):
            rows.setdefault(query, []).append(at)
        asked = encode(list(rows), "query")
        passages = list(dict.fromkeys(passage for _, passage in pairs))
        found = dict(zip(passages, encode(passages, "document"), strict=True))
        scores = np.empty(len(pairs), dtype=np.float32)
        mean = self.spec.activation == "meanmaxsim"
        for query, own in zip(asked, rows.values(), strict=True):
            scores[own] = max_sim(query, [found[pairs[at][1]] for at in own], mean=mean)
        return scores

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Nothing for a passage whose vectors are remembered; the first of the others bears its query, if it is new."""
        with self._lock:
            lengths = self._token_counts([passage for _, passage in pairs], "document")
            queries = self._token_counts([query for query, _ in pairs], "query")
        seen: set[str] = set()
        for at, (query, _) in enumerate(pairs):
            if lengths[at] and query not in seen:
                seen.add(query)
                lengths[at] += queries[at]
        return lengths

    def _token_counts(self, texts: Sequence[str], task: Task) -> list[int]:
        """Tokens of every text; 0 where its vectors are remembered."""
        unique = list(dict.fromkeys(texts))
        found = VECTORS.get([self._vector_key(text, task) for text in unique])
        new = [text for text, vectors in zip(unique, found, strict=True) if vectors is None]
        if self._tower is None:  # about: four characters a token
            counts = [min(self.spec.max_length, 3 + len(text) // 4) for text in new]
        else:
            counts = [len(row) for row in self._tower.rows(new, task)]
        count_of = dict(zip(new, counts, strict=True))
        return [count_of.get(text, 0) for text in texts]

    def _activate(self, logits: Scores) -> Scores:
        return logits


def max_sim(query: Vectors, passages: Sequence[Vectors], *, mean: bool = False) -> Scores:
    """(n,) for every passage the sum over the query's tokens of the largest inner product with a token of the passage;
    mean: divided by the number of those tokens.

    A passage of no tokens has the score of one whose tokens all point away from the query's. There the library gives
    −1e9, which would make the others look alike once they are standardised.
    """
    q = query.astype(np.float32)  # (Tq, d)
    lengths = np.array([len(vectors) for vectors in passages])
    nearest = np.full((len(passages), len(q)), -1.0, dtype=np.float32)  # (n, Tq)
    filled = np.flatnonzero(lengths)
    if len(filled):
        p = np.concatenate([passages[at] for at in filled.tolist()]).astype(np.float32)  # (T, d)
        starts = np.cumsum(lengths[filled]) - lengths[filled]
        nearest[filled] = np.maximum.reduceat(p @ q.T, starts, axis=0)
    total = nearest.sum(axis=1, dtype=np.float64)
    made: Scores = (total / max(len(q), 1) if mean else total).astype(np.float32)
    return made


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The tokens of one text. attended: those that the transformer's attention sees. expansion: those that expand a
    query."""

    ids: Ids
    attended: npt.NDArray[np.bool_]
    expansion: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


class TokenTower(ReadingTower):
    """Texts → a vector for each token that counts. head: projection, mask and norm, as the library's modules."""

    def __init__(
        self,
        model: nn.Module,
        first: Any,
        rest: Sequence[nn.Module],
        prompts: Mapping[str, str],
        length: int,
        path: str,
    ) -> None:
        super().__init__(model, nn.ModuleList(rest), first.tokenizer, length, path)
        self.prompts = dict(prompts)
        expansion = getattr(first, "query_expansion", None)
        # Tokens that no other attends to are skipped as padding by ragadapt's forward, and count here.
        unattended = expansion is not None and not expansion["attend"] and model is not first.model
        self._first = [first]  # in lists: their weights are the model's
        self._asks: list[nn.Module] = [first.model] if unattended else []

    @classmethod
    def of(cls, model: MultiVectorEncoder, max_length: int, *, own: bool = True) -> TokenTower | None:
        """The parts of a model, with its weights; None for one of another build (several routes, messages, padding on
        the left). own: in ragadapt's own forward where it covers the architecture."""
        first, *rest = model.children()
        inner, tokenizer = getattr(first, "model", None), getattr(first, "tokenizer", None)
        modality = getattr(first, "modality_config", None) or {}
        if not isinstance(inner, nn.Module) or not callable(tokenizer) or "message" in modality:
            return None
        plain = modality.get("text", {}).get("method_output_name") == "last_hidden_state"
        if not plain or getattr(tokenizer, "padding_side", "right") != "right":
            return None
        made, path = own_forward(first, inner) if own else (inner, "transformers' forward")
        return cls(made, first, rest, _prompts(model), max_length, path)

    def lower(self, dtype: torch.dtype) -> None:
        super().lower(dtype)
        for module in self._asks:  # shares the weights; its buffers stay: rotary angles would lose too much
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)

    def trainable_twin(self) -> TokenTower:
        if not self._asks:
            return super().trainable_twin()
        assert isinstance(self.head, nn.ModuleList)
        path = "transformers' forward, which computes what nothing attends to"  # one module, to which adapters attach
        whole = TokenTower(self._asks[0], self._first[0], [*self.head], self.prompts, self.max_length, path)
        return whole.trainable_twin()

    def kept(self) -> list[Any]:
        return [*super().kept(), *self._first]

    def rows(self, texts: Sequence[str], task: Task) -> list[TokenRow]:
        """The token ids of every text, its prompt and the expansion of a query included, as the library makes them."""
        made: list[TokenRow] = []
        for start in range(0, len(texts), _TOKENISED):
            some = [searchable(text) for text in texts[start : start + _TOKENISED]]
            features = self._first[0].preprocess(some, prompt=self.prompts[task] or None, task=task)
            ids = features["input_ids"].numpy().astype(np.int32)
            attended = features["attention_mask"].numpy().astype(bool)
            expansion = features.get("query_expansion_positions")
            more = np.zeros_like(attended) if expansion is None else expansion.numpy().astype(bool)
            there = attended | more
            made += [TokenRow(ids[at][row], attended[at][row], more[at][row]) for at, row in enumerate(there)]
        return made

    def forward(self, rows: Sequence[TokenRow], task: Task) -> tuple[Tensor, Tensor]:
        """((B, T, d) float32 vectors, (B, T) which of them count) of one batch."""
        filled, there = pad([row.ids for row in rows], self.pad_id, max(self.max_length, *map(len, rows)))
        masks = np.zeros((2, *there.shape), dtype=np.int64)
        for at, row in enumerate(rows):
            masks[:, at, : len(row)] = row.attended, row.expansion
        ids, attended, expansion = (torch.from_numpy(part).to(self.device) for part in (filled, *masks))
        model = self._asks[0] if task == "query" and self._asks else self.model
        with self._precision():
            hidden = model(input_ids=ids, attention_mask=attended).last_hidden_state
        features: dict[str, Any] = {
            "token_embeddings": hidden.float(),
            "input_ids": ids,
            "attention_mask": attended,
            "query_expansion_positions": expansion,
        }
        assert isinstance(self.head, nn.ModuleList)
        for module in self.head:
            told = {"task": task} if "task" in getattr(module, "forward_kwargs", ()) else {}
            features = module(features, **told)
        return features["token_embeddings"].float(), features["attention_mask"].bool()

    def vectors(self, texts: Sequence[str], task: Task) -> list[npt.NDArray[np.float32]]:
        """For every text (T, d), in batches of alike lengths."""
        rows = self.rows(texts, task)

        def run(batch: list[int]) -> list[npt.NDArray[np.float32]]:
            vectors, mask = self([rows[at] for at in batch], task)
            kept = mask.cpu().numpy()
            return [own[mine] for own, mine in zip(vectors.cpu().numpy(), kept, strict=True)]

        return in_batches(run, [len(row) for row in rows], self.device) if rows else []


def _prompts(model: MultiVectorEncoder) -> dict[str, str]:
    """Task → what stands before its texts, as the library chooses it."""
    known: Mapping[str, str | None] = model.prompts
    default = model.default_prompt_name
    names = {"query": ("query",), "document": ("document", "passage", "corpus")}
    chosen = {task: next((name for name in some if name in known), default) for task, some in names.items()}
    return {task: (known.get(name) or "") if name is not None else "" for task, name in chosen.items()}


def _encode(model: MultiVectorEncoder, texts: Sequence[str], task: str) -> list[npt.NDArray[np.float32]]:
    """The vectors by sentence-transformers itself."""
    encode = model.encode_query if task == "query" else model.encode_document
    read = [searchable(text) for text in texts]
    made: Any = encode(read, convert_to_numpy=True, show_progress_bar=False) if read else []
    return [np.asarray(vectors, dtype=np.float32) for vectors in made]

"""A cross-encoder: query and passage are read together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ragadapt.encoder import loading
from ragadapt.encoder.precision import Precision
from ragadapt.encoder.presets import Source
from ragadapt.errors import InvalidInput
from ragadapt.rerank.pairs import PairTower, parts_of, read_pairs
from ragadapt.rerank.reranker import Reranker, Scores
from ragadapt.rerank.spec import RerankerSpec
from ragadapt.rerank.tower import readable
from ragadapt.text import searchable

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from sentence_transformers import CrossEncoder

_TRAINED_HEADS = ("ForSequenceClassification", "ForCausalLM")


class CrossEncoderReranker(Reranker):
    """A sentence-transformers CrossEncoder with one score for a pair."""

    LIBRARY: ClassVar[str] = "CrossEncoder"
    WINDOW: ClassVar[int] = 4096

    _tower: PairTower | None

    def __init__(
        self,
        spec: RerankerSpec,
        source: Source,
        model: CrossEncoder,
        precision: Precision,
        restore: Callable[[], CrossEncoder],
    ) -> None:
        self._activation: Any = model.activation_fn
        super().__init__(spec, source, model, precision, restore)

    @classmethod
    def _of_library(cls, source: Source, device: str, trust: bool) -> CrossEncoder:
        from sentence_transformers import CrossEncoder

        options: dict[str, Any] = {
            "device": device,
            "revision": source.revision,
            "trust_remote_code": trust,
            "model_kwargs": {"dtype": torch.float32},
        }
        if source.is_folder and (names := loading.own_modules(Path(source.location))):
            model: CrossEncoder = loading.open_with_own_modules(CrossEncoder, source.location, names, options)
        else:
            model = CrossEncoder(source.location, **options)
        return model

    @classmethod
    def _check(cls, model: CrossEncoder, name: str) -> None:
        if model.num_labels != 1 or not _has_trained_head(model):
            raise InvalidInput(
                f"{name!r} gives no score for a pair of texts that it was trained to give ({model.num_labels} numbers "
                "a pair). Name a cross-encoder with one score, or a multi-vector (ColBERT) model."
            )

    @classmethod
    def _cut(cls, model: CrossEncoder, wanted: int | None, name: str) -> int:
        """Tokens of a pair, special tokens included."""
        length = readable(model, model.max_seq_length, wanted, name)
        model.max_seq_length = length
        return length

    @classmethod
    def _activation_of(cls, model: CrossEncoder) -> str:
        kind = type(model.activation_fn)
        return f"{kind.__module__}.{kind.__qualname__}"

    @classmethod
    def by_library(cls, model: CrossEncoder, pairs: Sequence[tuple[str, str]]) -> Scores:
        read = [(searchable(query), searchable(passage)) for query, passage in pairs]
        scores = model.predict(read, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32).reshape(len(pairs))

    def _tower_of(self, model: CrossEncoder, *, own: bool) -> PairTower | None:
        return PairTower.of(model, self.spec.max_length, own=own)

    @classmethod
    def parts(cls, model: CrossEncoder) -> tuple[torch.nn.Module, torch.nn.Module | None]:
        return parts_of(model)

    def read_with(self, tower: PairTower, pairs: Sequence[tuple[str, str]]) -> Scores:
        return read_pairs(tower, pairs)

    def _read(self, pairs: Sequence[tuple[str, str]], remember: bool) -> Scores:
        return self.by_library(self._generic, pairs) if self._tower is None else read_pairs(self._tower, pairs)

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        if self._tower is None:  # about: four characters a token
            return [min(self.spec.max_length, 3 + (len(query) + len(passage)) // 4) for query, passage in pairs]
        with self._lock:
            return [len(row) for row in self._tower.tokenize(pairs)[0]]

    def _activate(self, logits: Scores) -> Scores:
        with torch.no_grad():
            made: Scores = self._activation(torch.from_numpy(logits)).float().numpy()
        return made


def _has_trained_head(model: CrossEncoder) -> bool:
    """False for an encoder of single texts, on which sentence-transformers puts a head of random weights."""
    if len(list(model.children())) != 1:
        return True  # modules of its own beside the transformer, saved with it
    heads = getattr(model.config, "architectures", None) or ()
    return not heads or any(head.endswith(_TRAINED_HEADS) for head in heads)

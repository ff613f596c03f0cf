"""A cross-encoder taken apart: token ids of pairs → one number a pair, the transformer in any precision.

sentence-transformers builds one either as a transformer with the library's own head (`...ForSequenceClassification`) or
as modules after a plain transformer (pooling, layers, a last one of width 1). Both run here over the same weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ragadapt.encoder.architectures import Transformer
from ragadapt.encoder.batches import Ids, pad
from ragadapt.encoder.tokens import backend_of, tells_texts_apart
from ragadapt.rerank.tower import ReadingTower, in_batches, own_forward
from ragadapt.text import searchable

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

Pairs = Sequence[tuple[str, str]]
"""(query, passage), in the order in which the model reads them."""


class _PooledHead(nn.Module):
    """BERT's: a layer and tanh over the first token, then the classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pooler, self.classifier = model.bert.pooler, model.classifier

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        made: Tensor = self.classifier(self.pooler(hidden))
        return made


class _FirstTokenHead(nn.Module):
    """Of the RoBERTa line: the classifier finds the first token itself."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.classifier = model.classifier

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        made: Tensor = self.classifier(hidden)
        return made


class _ModernHead(nn.Module):
    """ModernBERT's: the first token or the mean, a layer with activation and norm, then the classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head, self.classifier = model.head, model.classifier
        self.mean = model.config.classifier_pooling == "mean"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.mean:
            kept = mask.unsqueeze(-1)  # (B, T, 1)
            pooled = (hidden * kept).sum(dim=1) / kept.sum(dim=1)
        else:
            pooled = hidden[:, 0]
        made: Tensor = self.classifier(self.head(pooled))
        return made


class _ModulesHead(nn.Module):
    """sentence-transformers modules after a plain transformer; the last one gives the score."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.chain = nn.ModuleList(modules)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        features: dict[str, Any] = {"token_embeddings": hidden, "attention_mask": mask}
        for module in self.chain:
            features = module(features)
        made: Tensor = features["scores"]
        return made


_HEADS: dict[str, tuple[str, Callable[[Any], nn.Module]]] = {
    "BertForSequenceClassification": ("bert", _PooledHead),
    "RobertaForSequenceClassification": ("roberta", _FirstTokenHead),
    "XLMRobertaForSequenceClassification": ("roberta", _FirstTokenHead),
    "CamembertForSequenceClassification": ("roberta", _FirstTokenHead),
    "ModernBertForSequenceClassification": ("model", _ModernHead),
}
"""Class of the library → its plain transformer's name, and what stands on that."""


def parts_of(model: CrossEncoder) -> tuple[nn.Module, nn.Module | None]:
    """The plain transformer of a model, and what stands on it, with its weights; None = the transformer, of a class of
    the library that is not known here, gives the score itself."""
    first, *rest = model.children()
    inner = first.get_submodule("model")
    if rest:
        return inner, _ModulesHead(rest)
    if type(inner).__name__ in _HEADS:
        name, made = _HEADS[type(inner).__name__]
        return inner.get_submodule(name), made(inner)
    return inner, None


class PairTower(ReadingTower):
    """Token ids of pairs → scores. head: None = the model gives the score itself."""

    def __init__(self, model: nn.Module, head: nn.Module | None, tokenizer: Any, max_length: int, path: str) -> None:
        super().__init__(model, head, tokenizer, max_length, path)
        if isinstance(model, Transformer):
            self.typed = getattr(model.config, "type_vocab_size", 0) > 1
        else:
            self.typed = "token_type_ids" in inspect.signature(model.forward).parameters

    @classmethod
    def of(cls, model: CrossEncoder, max_length: int, *, own: bool = True) -> PairTower | None:
        """The parts of a model, with its weights; None for one of another build (a language model's answer, several
        kinds of input, prompts). own: in ragadapt's own forward where it covers the architecture."""
        first = next(iter(model.children()))
        inner, tokenizer = getattr(first, "model", None), getattr(first, "tokenizer", None)
        prompted = getattr(model, "default_prompt_name", None) is not None
        if not isinstance(inner, nn.Module) or not callable(tokenizer) or prompted:
            return None
        modality = getattr(first, "modality_config", None) or {}
        output = modality.get("text", {}).get("method_output_name")
        if "message" in modality or getattr(tokenizer, "padding_side", "right") != "right":
            return None
        modular = len(list(model.children())) > 1
        if modular and output not in (None, "last_hidden_state"):
            return None
        plain, head = parts_of(model)
        path = "transformers' forward"
        if head is None:
            return cls(inner, None, tokenizer, max_length, path)
        if own:
            plain, path = own_forward(first, plain)
        elif not modular:
            return cls(inner, None, tokenizer, max_length, path)
        return cls(plain, head, tokenizer, max_length, path)

    def tokenize(self, pairs: Pairs) -> tuple[list[Ids], list[Ids] | None]:
        """(token ids of each pair, cut at max_length where its longer text ends; which text each is of, or None)."""
        read = [(searchable(query), searchable(passage)) for query, passage in pairs]
        typed = "token_type_ids" in getattr(self.tokenizer, "model_input_names", ())
        backend = backend_of(self.tokenizer, self.max_length) if read else None
        if backend is not None and (tells_texts_apart(backend) or not typed):
            made = backend.encode_batch_fast(read)
            rows = [np.asarray(one.ids, dtype=np.int32) for one in made]
            return rows, [np.asarray(one.type_ids, dtype=np.int32) for one in made] if typed else None
        encoded = self.tokenizer(
            [query for query, _ in read],
            [passage for _, passage in read],
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
        )
        rows = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
        types = encoded.get("token_type_ids")
        return rows, None if types is None else [np.asarray(row, dtype=np.int32) for row in types]

    def forward(self, rows: list[Ids], types: list[Ids] | None) -> Tensor:
        """(B,) float32 scores of one batch of pairs."""
        ids, mask = (torch.from_numpy(array).to(self.device) for array in pad(rows, self.pad_id, self.max_length))
        given: dict[str, Tensor] = {}
        if types is not None and self.typed:
            given["token_type_ids"] = torch.from_numpy(pad(types, 0, self.max_length)[0]).to(self.device)
        with self._precision():
            made = self.model(input_ids=ids, attention_mask=mask, **given)
        scores = made.logits if self.head is None else self.head(made.last_hidden_state.float(), mask)
        return scores.float().reshape(len(rows))  # type: ignore[no-any-return]


def read_pairs(tower: PairTower, pairs: Pairs) -> npt.NDArray[np.float32]:
    """(n,) scores, in batches of alike lengths."""
    rows, types = tower.tokenize(pairs)

    def run(batch: list[int]) -> list[float]:
        made: list[float] = tower([rows[at] for at in batch], types and [types[at] for at in batch]).tolist()
        return made

    return np.array(in_batches(run, [len(row) for row in rows], tower.device), dtype=np.float32)

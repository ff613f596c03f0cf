"""A cross-encoder taken apart: token ids of pairs → one number a pair, the transformer in any precision.

sentence-transformers builds one either as a transformer with the library's own head (`...ForSequenceClassification`) or
as modules after a plain transformer (pooling, layers, a last one of width 1). Both run here over the same weights.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ragadapt.encoder.architectures import NotCovered, Transformer, of_library, runs_on
from ragadapt.encoder.batches import Ids, pad
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


class PairTower(nn.Module):
    """Token ids of pairs → scores. head: always float32; None = the model gives the score itself."""

    def __init__(self, model: nn.Module, head: nn.Module | None, tokenizer: Any, max_length: int, path: str) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.autocast: torch.dtype | None = None  # set: float32 weights among those of this precision
        self.path = path  # which code runs the model, in words
        pad_id = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if pad_id is None else int(pad_id)
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
        if head is None:
            return cls(inner, None, tokenizer, max_length, "transformers' forward")
        path = "transformers' forward"
        if own:
            kept = getattr(first, "without_adapter", None)  # of a module whose adapter is no change of its weights
            try:
                with kept() if kept is not None else nullcontext() as adapter:
                    plain = runs_on(of_library(plain), next(plain.parameters()).device)
                    if adapter is not None:
                        adapter.attach(plain)
                path = "ragadapt's own forward"
            except NotCovered as reason:
                path += f", as ragadapt's own does not cover {reason}"
        elif not modular:
            return cls(inner, None, tokenizer, max_length, path)
        return cls(plain, head, tokenizer, max_length, path)

    def trainable_twin(self) -> PairTower:
        """A tower of its own modules that shares the transformer's weights with this one, and has the head's for
        itself: adding an adapter to the twin, and training its head, leaves this one as it was."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.buffers())}
        shared[id(self.tokenizer)] = self.tokenizer
        twin = copy.deepcopy(self, shared)
        assert twin.head is not None
        for name, part in list(twin.head.named_parameters()):
            owner, _, child = name.rpartition(".")
            setattr(twin.head.get_submodule(owner), child, nn.Parameter(part.detach().clone()))
        return twin

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tokenize(self, pairs: Pairs) -> tuple[list[Ids], list[Ids] | None]:
        """(token ids of each pair, cut at max_length where its longer text ends; which text each is of, or None)."""
        encoded = self.tokenizer(
            [searchable(query) for query, _ in pairs],
            [searchable(passage) for _, passage in pairs],
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

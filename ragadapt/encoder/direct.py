"""A saved model opened with torch alone.

Importing sentence-transformers and transformers takes several times longer than answering a query. Models of the
architectures that run here, with a common head, are therefore opened from the same files and under the same module
names. `Encoder.save` compares both ways on the probe and notes in the spec whether this one may be used; whatever is
not recognised goes the long way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from ragadapt.encoder.architectures import Bert as Bert
from ragadapt.encoder.architectures import NotCovered, Transformer, covered, from_weights
from ragadapt.encoder.pooling import TokenWeights
from ragadapt.encoder.tower import Tower
from ragadapt.errors import reason_of

log = logging.getLogger(__name__)

_HEADS = ("mean", "cls", "max", "lasttoken")


def open_towers(folder: Path, max_length: int) -> tuple[Tower, Tower] | None:
    """(query tower, passage tower) in float32 on the CPU, the same twice for a shared model; None where the
    folder holds something that is not recognised."""
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        if _kind(listed[0]["type"]) == "Router":
            routes = json.loads((folder / "router_config.json").read_text(encoding="utf-8"))
            chains = [
                [(routes["types"][name], folder / name) for name in routes["structure"][side]]
                for side in ("query", "document")
            ]
            query, passage = (_tower(chain, max_length) for chain in chains)
            return query, passage
        tower = _tower([(entry["type"], folder / entry["path"]) for entry in listed], max_length)
        return tower, tower
    except Exception as reason:  # also damage, which the long way then reports: files, safetensors, tokenizers, torch
        log.info("%s is not opened with torch alone: %s", folder, reason_of(reason))
        return None


def _kind(type_name: str) -> str:
    if not type_name.startswith(("sentence_transformers.", "ragadapt.")):
        raise NotCovered(type_name)
    return type_name.rsplit(".", 1)[1]


def _tower(chain: Sequence[tuple[str, Path]], max_length: int) -> Tower:
    (first, folder), *rest = chain
    if _kind(first) != "Transformer":
        raise NotCovered(first)
    settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    text = settings.get("modality_config", {}).get("text", {})
    if (
        settings.get("do_lower_case")
        or settings.get("transformer_task", "feature-extraction") != "feature-extraction"
        or text.get("method_output_name", "last_hidden_state") != "last_hidden_state"
    ):
        raise NotCovered("an unusual transformer module")
    model = _load_transformer(folder)
    head = [_head(_kind(name), path, model) for name, path in rest]
    tower = Tower(model, head, DirectTokenizer(folder, max_length), max_length).eval()
    tower.path = "ragadapt's own forward, opened with torch alone"
    tower.stateless = not any(isinstance(module, TokenWeights) for module in head)
    return tower


# ---------------------------------------------------------------------- the tokenizer


class DirectTokenizer:
    """The part of a transformers tokenizer that a Tower uses. Several threads may use it at once."""

    def __init__(self, folder: Path, max_length: int) -> None:
        """max_length: of the texts that are read; other lengths, and whole texts, have a tokenizer of their own, which
        is read when it is first needed."""
        self._file = str(folder / "tokenizer.json")
        self._cut: dict[int | None, Tokenizer] = {}  # length → the one that cuts there; it is not changed any more
        self._tokenizer = self.cutting(max_length)
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        pad = named.get("pad_token")
        pad = pad["content"] if isinstance(pad, dict) else pad
        found = self._tokenizer.token_to_id(pad) if pad else None
        self.pad_token_id = 0 if found is None else found
        added = self._tokenizer.get_added_tokens_decoder()
        self.all_special_ids = [number for number, token in added.items() if token.special]

    def __call__(
        self,
        texts: str | list[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        **_: Any,
    ) -> _Encoded:
        tokenizer = self.cutting(max_length if truncation else None)
        if isinstance(texts, str):
            one = tokenizer.encode(texts, add_special_tokens=add_special_tokens)
            return _Encoded(one.ids, [one])
        many = tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return _Encoded([one.ids for one in many], many)

    def cutting(self, length: int | None) -> Tokenizer:
        """The tokenizer that cuts texts to this length; None = not at all. `tokenizers` does not let one be changed
        while another thread uses it."""
        known = self._cut.get(length)
        if known is None:
            known = Tokenizer.from_file(self._file)
            known.no_padding()
            if length is None:
                known.no_truncation()
            else:
                known.enable_truncation(length)
            known = self._cut.setdefault(length, known)
        return known

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return int(self._tokenizer.num_special_tokens_to_add(pair))


class _Encoded(dict[str, Any]):
    def __init__(self, ids: Any, encodings: list[Any]) -> None:
        super().__init__(input_ids=ids)
        self.encodings = encodings


# ---------------------------------------------------------------------- the transformer


def _load_transformer(folder: Path) -> Transformer:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    covered(values)  # before gigabytes are read
    weights = load_file(folder / "model.safetensors")
    model = from_weights(values, {name: weight.float() for name, weight in weights.items()})
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------------- the head


class _Pool(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        hidden, mask = features["token_embeddings"], features["attention_mask"].unsqueeze(-1)  # (B, T, h), (B, T, 1)
        if self.mode == "cls":
            pooled = hidden[:, 0]
        elif self.mode == "max":
            pooled = hidden.masked_fill(mask == 0, float("-inf")).max(dim=1).values
        elif self.mode == "lasttoken":
            last = mask[..., 0].flip(1).argmax(dim=1)  # counted from the end; padding stands at either
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), hidden.shape[1] - 1 - last]
        else:
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        features["sentence_embedding"] = pooled
        return features


class _Project(nn.Module):
    def __init__(self, weights: dict[str, Tensor], squash: bool) -> None:
        super().__init__()
        bias = weights.get("linear.bias")
        self.weight = nn.Parameter(weights["linear.weight"].float(), requires_grad=False)
        self.bias = nn.Parameter(bias.float(), requires_grad=False) if bias is not None else None
        self.squash = squash

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        out = F.linear(features["sentence_embedding"], self.weight, self.bias)
        features["sentence_embedding"] = out.tanh() if self.squash else out
        return features


class _Unit(nn.Module):
    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features["sentence_embedding"] = F.normalize(features["sentence_embedding"], dim=-1)
        return features


def _head(kind: str, folder: Path, model: nn.Module) -> nn.Module:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder.is_dir() else {}
    if kind == "Normalize":
        return _Unit()
    if kind == "Pooling" and values.get("pooling_mode") in _HEADS and values.get("include_prompt", True):
        return _Pool(values["pooling_mode"])
    if kind == "TokenWeightedPooling":
        weights = load_file(folder / "model.safetensors")
        made = TokenWeights(values["tied_layer"], values["rank"], values["embedding_dimension"])
        made.load_state_dict({name: weights[name] for name in made.state_dict()})
        made.sharpness = values["gamma"] / values["temperature"]
        made.bind(model)
        return made.requires_grad_(False)
    activation = str(values.get("activation_function", "")).rsplit(".", 1)[-1]
    if kind == "Dense" and activation in ("Identity", "Tanh") and not values.get("use_residual"):
        between = {values.get(name, "sentence_embedding") for name in ("module_input_name", "module_output_name")}
        if between == {"sentence_embedding"}:
            return _Project(load_file(folder / "model.safetensors"), activation == "Tanh")
    raise NotCovered(f"head module {kind} {values}")

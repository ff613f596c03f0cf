"""A saved model opened with torch alone.

Importing sentence-transformers and transformers takes several times longer than answering a query. Models of
the BERT and RoBERTa lines with a common head are therefore opened here, from the same files and under the same
module names. `Encoder.save` compares both ways on the probe and notes in the spec whether this one may be
used; whatever is not recognised goes the long way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from ragadapt.encoder.attention import two_sided_attention
from ragadapt.encoder.pooling import TokenWeights
from ragadapt.encoder.tower import Tower

log = logging.getLogger(__name__)

_FAMILIES = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}  # 1: positions start behind the pad id
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
_HEADS = ("mean", "cls", "max")


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
        log.debug("%s is not opened directly: %s", folder, reason)
        return None


class _Unknown(Exception):
    """Something that only the libraries can open."""


def _kind(type_name: str) -> str:
    if not type_name.startswith(("sentence_transformers.", "ragadapt.")):
        raise _Unknown(type_name)
    return type_name.rsplit(".", 1)[1]


def _tower(chain: Sequence[tuple[str, Path]], max_length: int) -> Tower:
    (first, folder), *rest = chain
    if _kind(first) != "Transformer":
        raise _Unknown(first)
    settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    text = settings.get("modality_config", {}).get("text", {})
    if (
        settings.get("do_lower_case")
        or settings.get("transformer_task", "feature-extraction") != "feature-extraction"
        or text.get("method_output_name", "last_hidden_state") != "last_hidden_state"
    ):
        raise _Unknown("an unusual transformer module")
    model = _load_bert(folder)
    head = [_head(_kind(name), path, model) for name, path in rest]
    return Tower(model, head, DirectTokenizer(folder), max_length).eval()


# ---------------------------------------------------------------------- the tokenizer


class DirectTokenizer:
    """The part of a transformers tokenizer that a Tower uses."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
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
        if truncation and max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        else:
            self._tokenizer.no_truncation()
        if isinstance(texts, str):
            one = self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)
            return _Encoded(one.ids, [one])
        many = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return _Encoded([one.ids for one in many], many)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return int(self._tokenizer.num_special_tokens_to_add(pair))


class _Encoded(dict[str, Any]):
    def __init__(self, ids: Any, encodings: list[Any]) -> None:
        super().__init__(input_ids=ids)
        self.encodings = encodings


# ---------------------------------------------------------------------- the transformer


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing: weights are assigned, and drawing random ones first costs seconds."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing, likewise."""


class _Self(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (_Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = hidden.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (part(hidden).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        return two_sided_attention(q, k, v, mask).reshape(batch, length, width)


class _AddNorm(nn.Module):
    def __init__(self, inner: int, width: int, epsilon: float) -> None:
        super().__init__()
        self.dense = _Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dense(hidden) + residual)
        return out


class _Layer(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = nn.Module()
        self.attention.self = _Self(width, config.num_attention_heads)
        self.attention.output = _AddNorm(width, width, config.layer_norm_eps)
        self.intermediate = nn.Module()
        self.intermediate.dense = _Linear(width, inner)
        self.output = _AddNorm(inner, width, config.layer_norm_eps)
        self.activation: Callable[[Tensor], Tensor] = _ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        parts: Any = self.attention
        hidden = parts.output(parts.self(hidden, mask), hidden)
        between: Any = self.intermediate
        out: Tensor = self.output(self.activation(between.dense(hidden)), hidden)
        return out


class _Embeddings(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.word_embeddings = _Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = _Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.first_position = config.pad_token_id + 1 if _FAMILIES[config.model_type] else 0

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        words = self.word_embeddings(input_ids)  # (B, T, h)
        positions = self.first_position + torch.arange(words.shape[1], device=words.device)
        # The library's order of addition: sums in bfloat16 depend on it.
        total = words + self.token_type_embeddings.weight[0] + self.position_embeddings(positions)
        out: Tensor = self.LayerNorm(total)
        return out


class _Encoder(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, mask)
        return hidden


class Bert(nn.Module):
    """BERT and RoBERTa for inference and adapters, under the library's module names. Right padding only."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> SimpleNamespace:
        hidden = self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds)
        mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            mask = torch.zeros(attention_mask.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill_(attention_mask == 0, torch.finfo(hidden.dtype).min)[:, None, None, :]
        return SimpleNamespace(last_hidden_state=self.encoder(hidden, mask))


def _load_bert(folder: Path) -> Bert:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (
        values.get("model_type") not in _FAMILIES
        or values.get("hidden_act") not in _ACTIVATIONS
        or values.get("position_embedding_type", "absolute") != "absolute"
        or values.get("is_decoder")
        or values.get("add_cross_attention")
        or values.get("auto_map")
    ):
        raise _Unknown(f"architecture {values.get('model_type')}")
    weights = load_file(folder / "model.safetensors")
    model = Bert(SimpleNamespace(**values))
    needed = model.state_dict()
    if not needed.keys() <= weights.keys():
        raise _Unknown(f"weights lack {sorted(needed.keys() - weights.keys())[:3]}")
    model.load_state_dict({name: weights[name].float() for name in needed}, assign=True)
    return model.requires_grad_(False)


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
    raise _Unknown(f"head module {kind} {values}")

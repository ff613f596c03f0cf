"""The transformers that run here, under the library's module names and with its weights.

An architecture is a class that says what its layers are, and a function that reads a configuration and refuses what the
class does not do. `of_library` takes a model that transformers has loaded and shares its weights; `from_weights` needs
torch alone. Both give the vectors of transformers' own forward, and gradients like it, up to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragadapt.encoder.attention import ALL, CAUSAL, Reach, variable_length_attention
from ragadapt.encoder.layout import Layout, Rotary

Activation = Callable[[Tensor], Tensor]
Config = SimpleNamespace

_ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (gradient of the activation, its input) → of its input
    "gelu": torch.ops.aten.gelu_backward,
    "relu": lambda gradient, x: gradient * (x > 0),
    "silu": torch.ops.aten.silu_backward,
}


class NotCovered(Exception):
    """What a model has that only the libraries run, in words."""


# ---------------------------------------------------------------------- parts


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing: weights are assigned, and drawing random ones first costs seconds."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing, likewise."""


class _Normalise(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) * w in few passes; the mean in float32, the rest in the precision of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norms.square_().div_(x.shape[-1]).add_(epsilon)).to(x.dtype)  # (..., 1)
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (out,) = gradients
        x, scale, weight = ctx.saved_tensors
        unit = x * scale
        for_unit = out * weight
        along = (for_unit * unit).mean(dim=-1, keepdim=True, dtype=torch.float32).to(x.dtype)
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (out.float() * unit.float()).flatten(0, -2).sum(0).to(weight.dtype)
        return for_unit.addcmul_(unit, along, value=-1.0).mul_(scale), for_weight, None


class _RMSNorm(nn.Module):
    """Zhang and Sennrich (2019)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Normalise.apply(x, self.weight.to(x.dtype), self.epsilon)  # type: ignore[no-untyped-call]
        return made


class _Gate(torch.autograd.Function):
    """activation(value) * gate, keeping no more than its inputs. Slices of one tensor get slices of one gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(value, gate)
        ctx.name = name
        return _ACTIVATIONS[name](value).mul_(gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (out,) = gradients
        value, gate = ctx.saved_tensors
        for_gate = _ACTIVATIONS[ctx.name](value).mul_(out)
        return _SLOPES[ctx.name](out * gate, value), for_gate, None


def _gated(value: Tensor, gate: Tensor, name: str) -> Tensor:
    made: Tensor = _Gate.apply(value, gate, name)  # type: ignore[no-untyped-call]
    return made


class Transformer(nn.Module, ABC):
    """Token ids, or what stands for their embeddings, and a mask (B, T) → last_hidden_state (B, T, h)."""

    config: Any
    head_width: int
    bounded = False  # some token does not attend to all others, or heads share keys
    packs = True  # leaves padding out by itself, so it is told where there is some even if it reads backwards only

    @abstractmethod
    def embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids, or what stands for their embeddings → (B, T, h): what the first layer reads. token_type_ids
        (B, T): which text of a pair a token is of, for the architectures that tell it; None = all of the first."""

    @abstractmethod
    def stack(self) -> Iterable[nn.Module]:
        """The layers, lowest first."""

    def finish(self, hidden: Tensor) -> Tensor:
        """What follows the last layer."""
        return hidden

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SimpleNamespace:
        hidden = self.embed(input_ids, inputs_embeds, token_type_ids)  # (B, T, h)
        layout = Layout(attention_mask, hidden, self.head_width, self.bounded)
        hidden = layout.pack(hidden)
        for layer in self.stack():
            hidden = layer(hidden, layout)
        return SimpleNamespace(last_hidden_state=layout.unpack(self.finish(hidden)))


# ---------------------------------------------------------------------- BERT, RoBERTa


class _Self(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (_Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        parts = (self.query, self.key, self.value)
        return layout.attend(*(part(hidden).unflatten(-1, (self.heads, -1)) for part in parts))


class _AddNorm(nn.Module):
    def __init__(self, inner: int, config: Config) -> None:
        super().__init__()
        self.dense = _Linear(inner, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)  # training leaves it off, as the rest of a frozen model

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + residual)
        return out


class _BertLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = nn.Module()
        self.attention.self = _Self(width, config.num_attention_heads)
        self.attention.output = _AddNorm(width, config)
        self.intermediate = nn.Module()
        self.intermediate.dense = _Linear(width, inner)
        self.output = _AddNorm(inner, config)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        parts: Any = self.attention
        hidden = parts.output(parts.self(hidden, layout), hidden)
        between: Any = self.intermediate
        out: Tensor = self.output(self.activation(between.dense(hidden)), hidden)
        return out


BERT_PARTS: frozenset[type] = frozenset(
    {nn.Module, nn.ModuleList, nn.LayerNorm, nn.Dropout, _Linear, _Self, _AddNorm, _BertLayer}
)
"""What the layers of BERT are made of, as long as nothing was put in or around them."""


class _BertEmbeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word_embeddings = _Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = _Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pad_id = config.pad_token_id if config.model_type != "bert" else None

    def forward(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        words = self.word_embeddings(input_ids)  # (B, T, h)
        positions = torch.arange(words.shape[1], device=words.device)
        if self.pad_id is not None:  # the RoBERTa line counts from behind the pad id, and a pad in the text not at all
            real = input_ids.ne(self.pad_id).long()
            positions = real.cumsum(1) * real + self.pad_id
        # The library's order of addition: sums in bfloat16 depend on it.
        types = self.token_type_embeddings
        kinds = types.weight[0] if token_type_ids is None else types(token_type_ids)
        total = words + kinds + self.position_embeddings(positions)
        out: Tensor = self.LayerNorm(total)
        return out


class Bert(Transformer):
    """BERT and the RoBERTa line."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.head_width = config.hidden_size // config.num_attention_heads
        self.embeddings = _BertEmbeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList([_BertLayer(config) for _ in range(config.num_hidden_layers)])

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise NotCovered(f"position_embedding_type {values['position_embedding_type']!r}")
        for key in ("is_decoder", "add_cross_attention"):
            if values.get(key):
                raise NotCovered(key)
        _known_activation(values.get("hidden_act"))

    def embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        made: Tensor = self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds, **given)
        return made

    def stack(self) -> Iterable[nn.Module]:
        layers: Any = self.encoder.layer
        return layers  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- ModernBERT


class _ModernBertLayer(nn.Module):
    """Norm, attention, norm, gated unit; every few layers attend to all tokens, those between to their neighbours."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        width, inner, epsilon = config.hidden_size, config.intermediate_size, config.norm_eps
        self.heads = config.num_attention_heads
        self.attention_type: str = config.layer_types[index]
        half = config.local_attention // 2
        self.reach: Reach = (half, half) if self.attention_type == "sliding_attention" else ALL
        self.rotary = Rotary(_theta(vars(config), self.attention_type), width // self.heads)
        self.attn_norm = nn.LayerNorm(width, eps=epsilon, bias=config.norm_bias) if index else nn.Identity()
        self.attn = nn.Module()
        self.attn.Wqkv = _Linear(width, 3 * width, bias=config.attention_bias)
        self.attn.Wo = _Linear(width, width, bias=config.attention_bias)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon, bias=config.norm_bias)
        self.mlp = nn.Module()
        self.mlp.Wi = _Linear(width, 2 * inner, bias=config.mlp_bias)
        self.mlp.Wo = _Linear(inner, width, bias=config.mlp_bias)
        self.activation = config.hidden_activation

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        attn: Any = self.attn
        mlp: Any = self.mlp
        q, k, v = attn.Wqkv(self.attn_norm(hidden)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        hidden = hidden + attn.Wo(layout.attend(q, k, v, self.reach, self.rotary))
        value, gate = mlp.Wi(self.mlp_norm(hidden)).chunk(2, dim=-1)
        out: Tensor = hidden + mlp.Wo(_gated(value, gate, self.activation))
        return out


class _ModernBertEmbeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tok_embeddings = _Embedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        out: Tensor = self.norm(self.tok_embeddings(input_ids))
        return out


class ModernBert(Transformer):
    """ModernBERT (Warner et al. 2024)."""

    bounded = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.head_width = config.hidden_size // config.num_attention_heads
        self.embeddings = _ModernBertEmbeddings(config)
        self.layers = nn.ModuleList([_ModernBertLayer(config, index) for index in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        _known_activation(values.get("hidden_activation"))
        _no_dropout(values, "attention_dropout", "embedding_dropout", "mlp_dropout")
        for kind in _known_layer_types(values, "full_attention", "sliding_attention"):
            _theta(values, kind)

    def embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        made: Tensor = self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds)
        return made

    def stack(self) -> Iterable[nn.Module]:
        return self.layers

    def finish(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.final_norm(hidden)
        return out


# ---------------------------------------------------------------------- Qwen3


class _Causal(nn.Module):
    is_causal = True  # as the library marks it


class _Qwen3Layer(nn.Module):
    """The same order with RMS norms, heads of queries that share keys, and no token attending to a later one."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        width, inner, each = config.hidden_size, config.intermediate_size, config.head_dim
        heads, shared, epsilon = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self.head_width = each
        self.rotary = Rotary(_theta(vars(config), None), each)
        self.input_layernorm = _RMSNorm(width, epsilon)
        self.self_attn = _Causal()
        self.self_attn.q_proj = _Linear(width, heads * each, bias=config.attention_bias)
        self.self_attn.k_proj = _Linear(width, shared * each, bias=config.attention_bias)
        self.self_attn.v_proj = _Linear(width, shared * each, bias=config.attention_bias)
        self.self_attn.o_proj = _Linear(heads * each, width, bias=config.attention_bias)
        self.self_attn.q_norm = _RMSNorm(each, epsilon)
        self.self_attn.k_norm = _RMSNorm(each, epsilon)
        self.post_attention_layernorm = _RMSNorm(width, epsilon)
        self.mlp = nn.Module()
        self.mlp.gate_proj = _Linear(width, inner, bias=False)
        self.mlp.up_proj = _Linear(width, inner, bias=False)
        self.mlp.down_proj = _Linear(inner, width, bias=False)
        self.activation = config.hidden_act

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        attn: Any = self.self_attn
        mlp: Any = self.mlp
        x = self.input_layernorm(hidden)
        q, k, v = (part(x).unflatten(-1, (-1, self.head_width)) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        made = layout.attend(attn.q_norm(q), attn.k_norm(k), v, CAUSAL, self.rotary)
        hidden = hidden + attn.o_proj(made)
        x = self.post_attention_layernorm(hidden)
        out: Tensor = hidden + mlp.down_proj(_gated(mlp.gate_proj(x), mlp.up_proj(x), self.activation))
        return out


class Qwen3(Transformer):
    """Qwen3 (Qwen team 2025) without its head. Padding at either end gives the same vectors."""

    bounded = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.head_width = config.head_dim
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([_Qwen3Layer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        _known_activation(values.get("hidden_act"))
        _no_dropout(values, "attention_dropout")
        _known_layer_types(values, "full_attention")
        if values.get("use_sliding_window") or values.get("is_causal", True) is not True:
            raise NotCovered("a sliding window or two-sided attention")
        _theta(values, None)

    def embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        made: Tensor = inputs_embeds if inputs_embeds is not None else self.embed_tokens(input_ids)
        return made

    def stack(self) -> Iterable[nn.Module]:
        return self.layers

    def finish(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(hidden)
        return out


# ---------------------------------------------------------------------- what is covered


Architecture = type[Bert] | type[ModernBert] | type[Qwen3]

ARCHITECTURES: dict[str, tuple[Architecture, str]] = {
    "bert": (Bert, "BertModel"),
    "roberta": (Bert, "RobertaModel"),
    "xlm-roberta": (Bert, "XLMRobertaModel"),
    "camembert": (Bert, "CamembertModel"),
    "modernbert": (ModernBert, "ModernBertModel"),
    "qwen3": (Qwen3, "Qwen3Model"),
}
"""By model type: the class here, and the library's."""

_UNUSED = ("pooler.", "embeddings.position_ids", "embeddings.token_type_ids")  # weights that vectors don't depend on


def covered(values: Mapping[str, Any]) -> Architecture:
    """The class for this configuration (a config.json). Raises NotCovered."""
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise NotCovered(f"architecture {kind!r}")
    for key in ("auto_map", "quantization_config"):
        if values.get(key):
            raise NotCovered(f"{key} in the configuration")
    made = ARCHITECTURES[str(kind)][0]
    try:
        made.check(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise NotCovered(f"its configuration ({error!r})") from error
    return made


def runs_on(model: Transformer, device: torch.device) -> Transformer:
    """The model, if it may run there. Raises NotCovered for windows, causality and shared keys on a GPU whose PyTorch
    cannot attend to packed texts so: the long way there is the library's, which is tried out."""
    if model.bounded and device.type == "cuda" and variable_length_attention(bounded=True) is None:
        raise NotCovered("windows, causality and shared keys on this GPU with this build of PyTorch")
    return model


def from_weights(values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Transformer:
    """The transformer of a config.json and its weights, which it shares. Raises NotCovered."""
    made = covered(values)
    try:
        with torch.device("meta"):
            model = made(SimpleNamespace(**values))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise NotCovered(f"its configuration ({error!r})") from error
    needed = model.state_dict().keys()
    if missing := sorted(needed - weights.keys()):
        raise NotCovered(f"weights that lack {missing[:3]}")
    others = sorted(name for name in weights.keys() - needed if not name.startswith(_UNUSED))
    if others:
        raise NotCovered(f"further weights: {others[:3]}")
    model.load_state_dict({name: weights[name] for name in needed}, assign=True)
    return model


def of_library(model: nn.Module) -> Transformer:
    """The same for a model that transformers has loaded, without its own forward. Raises NotCovered."""
    config: Any = model.config
    values: dict[str, Any] = config.to_dict()
    covered(values)
    kind = type(model)
    name = ARCHITECTURES[values["model_type"]][1]
    if kind.__name__ != name or not kind.__module__.startswith("transformers."):
        raise NotCovered(f"the class {kind.__module__}.{kind.__name__}, not transformers' {name}")
    chosen = getattr(config, "_attn_implementation", None)
    if chosen not in ("sdpa", None):
        raise NotCovered(f"attention implementation {chosen!r}")
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        raise NotCovered("hooks")
    made = from_weights(values, dict(model.named_parameters()))
    return made.train(model.training)


def _known_activation(name: Any) -> None:
    if name not in _ACTIVATIONS:
        raise NotCovered(f"activation {name!r}")


def _no_dropout(values: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if values.get(key):
            raise NotCovered(f"{key} = {values[key]}")


def _known_layer_types(values: Mapping[str, Any], *known: str) -> set[str]:
    types = values["layer_types"]
    if len(types) != values["num_hidden_layers"] or not set(types) <= set(known):
        raise NotCovered(f"layer types {sorted(set(types))}")
    return set(types)


def _theta(values: Mapping[str, Any], layer_type: str | None) -> float:
    """The base of the rotary angles, where they are the plain ones."""
    found = values["rope_parameters"]
    found = found[layer_type] if layer_type is not None else found
    unknown = {key: value for key, value in found.items() if key not in ("rope_theta", "rope_type")}
    unknown.pop("partial_rotary_factor", None) if unknown.get("partial_rotary_factor") == 1 else None
    if found.get("rope_type", "default") != "default" or unknown or values.get("rope_scaling"):
        raise NotCovered(f"rotary positions {dict(found)}")
    return float(found["rope_theta"])

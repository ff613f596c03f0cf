"""Modules put into a frozen transformer: where they can sit, and what the methods that put them there have in common.

They act through hooks on modules that transformers' forward and ragadapt's own call under the same names, so one method
runs in both, on padded and on packed tokens, and under the frozen prefix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ragadapt.adapters.method import BeforeHook, Method, Options, Scope, Weights, check_strength, config_of, norm
from ragadapt.errors import InvalidConfiguration

Activation = Callable[[Tensor], Tensor]
Given = Tensor | tuple[Tensor, *tuple[object, ...]]
"""What a module has given: a tensor, or one and things beside it, such as attention weights."""

AfterHook = Callable[[nn.Module, tuple[Tensor, ...], Given], Given | None]
"""Called with a module, what it has read and given; what it gives, if not None, takes the latter's place."""


@dataclass(frozen=True, slots=True)
class Sublayer:
    """Self-attention or feed-forward network of a layer, by the names of modules inside the layer.

    stream: is given what the sub-layer starts from (and what is added to its result). reads: is given what the
    sub-layer computes with; the same, or its norm where the norm comes first. writes: the last linear layer. after:
    gives the stream behind the sub-layer where a norm ends it; where none does, `writes`, to whose result the stream is
    added next. query: gives the queries of the attention, first of all where keys and values lie beside them.
    """

    stream: str
    reads: str
    writes: str
    after: str
    query: str = ""


_BERT = (
    Sublayer(
        "attention.self.query",
        "attention.self.query",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "attention.self.query",
    ),
    Sublayer("intermediate.dense", "intermediate.dense", "output.dense", "output.LayerNorm"),
)
_MPNET = (
    Sublayer("attention.attn.q", "attention.attn.q", "attention.attn.o", "attention.LayerNorm", "attention.attn.q"),
    _BERT[1],
)
_DISTILBERT = (
    Sublayer("attention.q_lin", "attention.q_lin", "attention.out_lin", "sa_layer_norm", "attention.q_lin"),
    Sublayer("ffn.lin1", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
)
_MODERNBERT = (
    Sublayer("attn_norm", "attn.Wqkv", "attn.Wo", "attn.Wo", "attn.Wqkv"),
    Sublayer("mlp_norm", "mlp.Wi", "mlp.Wo", "mlp.Wo"),
)
_QWEN3 = (
    Sublayer("input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "self_attn.o_proj", "self_attn.q_norm"),
    Sublayer("post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.down_proj"),
)

# By model type, and not by names alone: others have the same names and norms in other places.
_BUILDS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "mpnet": _MPNET,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
    "qwen3": _QWEN3,
}


def sublayers(model: nn.Module) -> tuple[Sublayer, Sublayer]:
    """(self-attention, feed-forward network) of every layer. Raises InvalidConfiguration for models of other types."""
    config = config_of(model)
    if config.model_type not in _BUILDS:
        raise InvalidConfiguration(
            f"Models of type {config.model_type!r} have layers in which ragadapt does not know attention and "
            "feed-forward network, so no modules can be put beside them. Choose method 'lora' or 'full', or a base "
            f"model of another type: {', '.join(_BUILDS)}."
        )
    return _BUILDS[config.model_type]


class Inserted(nn.Module, ABC):
    """One module that is put in. It changes a result out, given x, which hooks bring from where the part looks."""

    strength: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    @abstractmethod
    def changed(self, x: Tensor, out: Tensor) -> Tensor:
        """out with the part's own added; not in place."""

    @abstractmethod
    def closing(self) -> Sequence[Tensor]:
        """What is zero at the start, and makes the part give nothing while it is."""

    # Hooks. Methods, so that a copy of a model has hooks that lead to the copy's parts.

    def remember(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """x is what this module is given."""
        self.seen[:] = [inputs[0]]

    def on_seen(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Given) -> Given:
        """Change the result by what was remembered."""
        return self._on(self.seen.pop(), output)

    def on_input(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Given) -> Given:
        """Change the result by what the module itself was given."""
        return self._on(inputs[0], output)

    def on_result(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Given) -> Given:
        """Change the result by itself."""
        return self._on(output[0] if isinstance(output, tuple) else output, output)

    def _on(self, x: Tensor, output: Given) -> Given:
        if self.strength == 0:
            return output
        if isinstance(output, tuple):
            return (self.changed(x, output[0]), *output[1:])
        return self.changed(x, output)


class Bottleneck(Inserted):
    """out + s (W_up activation(W_down x + b) + b'), with W_up and both biases zero at the start."""

    def __init__(
        self,
        width: int,
        inner: int,
        generator: torch.Generator,
        *,
        bias: bool = False,
        activation: Activation = nn.functional.gelu,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.activation, self.factor = activation, factor
        self.down = drawn(inner, width, generator)
        self.up = nn.Parameter(torch.zeros(width, inner))
        self.down_bias = nn.Parameter(torch.zeros(inner)) if bias else None
        self.up_bias = nn.Parameter(torch.zeros(width)) if bias else None

    def changed(self, x: Tensor, out: Tensor) -> Tensor:
        factor = self.factor * self.strength
        bias = None if self.down_bias is None else self.down_bias.to(x.dtype)
        low = self.activation(nn.functional.linear(x, self.down.to(x.dtype), bias))  # (…, h) -> (…, r)
        if self.up_bias is not None:
            out = out + (self.up_bias * factor).to(out.dtype)
        up = (self.up * factor).to(out.dtype)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), up.T).view_as(out)

    def closing(self) -> Sequence[Tensor]:
        return [self.up] if self.up_bias is None else [self.up, self.up_bias]


def drawn(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
    """(rows, columns) uniform in ± 1/sqrt(columns), as torch starts a linear layer."""
    start = torch.empty(rows, columns)
    nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
    return nn.Parameter(start)


class Inserting(Method):
    """A method that puts parts in. A subclass puts them in `place`, in order of name."""

    FOLDS: ClassVar[bool] = False
    SOURCE: ClassVar[str]  # who described it, where

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        self.model, self.options, self.scope = model, options, scope
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: one start on every device and precision
        self.parts: dict[str, Inserted] = {}
        self._handles: list[RemovableHandle] = []
        self.place()

    @abstractmethod
    def place(self) -> None:
        """Raises InvalidConfiguration where this model has no room for them."""

    @property
    def width(self) -> int:
        return config_of(self.model).hidden_size

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers in scope, lowest first."""
        return tuple(f"{self.scope.stack}.{index}" for index in self.scope.indices)

    def put(self, host: str, name: str, part: Inserted) -> Inserted:
        """Make the part a child of a module, so that it moves and is copied with it."""
        device = next(self.model.parameters()).device
        self.model.get_submodule(host).add_module(name, part.to(device).eval().requires_grad_(True))
        self.parts[f"{host}.{name}"] = part
        return part

    def before(self, host: str, hook: BeforeHook) -> None:
        """Call a hook with what a module is about to read."""
        self._handles.append(self.model.get_submodule(host).register_forward_pre_hook(hook))

    def after(self, host: str, hook: AfterHook) -> None:
        """Call a hook with what a module has given."""
        self._handles.append(self.model.get_submodule(host).register_forward_hook(hook))

    def parameters(self) -> dict[str, nn.Parameter]:
        found = ((f"{n}.{p}", parameter) for n, part in self.parts.items() for p, parameter in part.named_parameters())
        return dict(sorted(found))

    @property
    def lowest_layer(self) -> int:
        return self.scope.indices[0]

    def set_strength(self, strength: float) -> None:
        """Every part's result counts by this share."""
        check_strength(strength)
        for part in self.parts.values():
            part.strength = strength

    def fold(self) -> None:
        return None

    @property
    def changed(self) -> None:
        return None

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name in self.parts:
            host, _, child = name.rpartition(".")
            delattr(self.model.get_submodule(host), child)

    def change(self) -> float:
        """Of what begins at zero."""
        return norm([tensor.detach() for part in self.parts.values() for tensor in part.closing()])

"""The one sentence-transformers module of our own, and folding of adapters into plain layers."""

from __future__ import annotations

from typing import Any, Self

import torch
from sentence_transformers.models import Pooling
from torch import Tensor, nn

from ragadapt.encoder.pooling import weighted_mean


class TokenWeightedPooling(Pooling):  # type: ignore[misc]
    """Mean pooling with weights from a LoRA pair: e = sum_i w_i h_i.

    w = softmax_i(gamma * ||s B A x_i||^2 / temperature), where x_i is what the layer `tied_layer` receives
    for token i; gamma = 0 or B = 0 gives plain mean pooling. ||B A x||^2 = (A x)' (B'B) (A x), so a token costs
    O(r^2) once A x is known. A is (r, h) and holds the factor s; B is (h, r).
    """

    config_keys = ["embedding_dimension", "tied_layer", "rank", "gamma", "temperature"]  # noqa: RUF012

    def __init__(
        self, embedding_dimension: int, tied_layer: str, rank: int, gamma: float, temperature: float = 1.0
    ) -> None:
        super().__init__(embedding_dimension, "mean")
        self.tied_layer = tied_layer
        self.rank = rank
        self.gamma = gamma
        self.temperature = temperature
        self.lora_a = nn.Parameter(torch.zeros(rank, embedding_dimension))
        self.lora_b = nn.Parameter(torch.zeros(embedding_dimension, rank))
        self._seen: list[Tensor] = []

    def on_model_ready(self, model: Any) -> None:
        """Called by sentence-transformers once all modules are loaded; on a routed model, for each route."""
        chain = next(
            (part for part in model.modules() if isinstance(part, nn.Sequential) and self in part.children()), model
        )
        self.bind(next(iter(chain.children())).get_submodule("model"))

    def bind(self, transformer: nn.Module) -> None:
        """Watch what the tied layer receives."""

        def remember(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._seen[:] = [inputs[0]]

        transformer.get_submodule(self.tied_layer).register_forward_pre_hook(remember)

    def pair(self) -> tuple[Tensor, Tensor]:
        """(A with the factor s, B)."""
        return self.lora_a, self.lora_b

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if not self._seen:
            raise RuntimeError(f"nothing was seen at layer {self.tied_layer!r}: call bind(transformer) first")
        features["sentence_embedding"] = weighted_mean(
            features["token_embeddings"],
            features["attention_mask"],
            self._seen.pop(),
            self.pair(),
            self.gamma / self.temperature,
        )
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        known = ("token", "cache_folder", "revision", "local_files_only")
        hub = {key: value for key, value in kwargs.items() if key in known}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        model: Self = cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config), **hub)
        return model


def fold_adapters(model: nn.Module) -> int:
    """Add every PEFT layer's contribution to the weights beneath it and leave plain layers. Returns how many.

    The weights are replaced, not changed in place, so a model that shares them keeps its own.
    """
    if not any(hasattr(module, "base_layer") for module in model.modules()):
        return 0
    from peft.tuners.tuners_utils import BaseTunerLayer

    # What keeps its adapter does so because it cannot be folded.
    keeping = [module for module in model.modules() if getattr(module, "keeps_adapter", False)]
    kept = {id(part) for module in keeping for part in module.modules()}
    found: list[tuple[str, Any]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and id(module) not in kept
    ]
    for name, layer in found:
        base = layer.get_base_layer()
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    for module in model.modules():
        if "_hf_peft_config_loaded" in module.__dict__:
            module.__dict__["_hf_peft_config_loaded"] = False
            module.__dict__.pop("peft_config", None)
    return len(found)

"""What was learnt, as plain tensors, and how it becomes part of a model again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from ragadapt.adapters.lora import ADAPTER, inject, peft_config
from ragadapt.adapters.reweight import insert_fixed
from ragadapt.config import AdapterConfig
from ragadapt.encoder.loading import sides, tensors_sha256
from ragadapt.encoder.modules import fold_adapters
from ragadapt.encoder.spec import AdapterSpec, EncoderSpec


@dataclass(frozen=True)
class AdapterState:
    """A trained adapter at rest.

    targets: names of the adapted linear layers (LoRA). tied: the one whose pair re-weights the vector; None
    without re-weighting. tensors: float32, on the CPU; low-rank pairs by PEFT's names, or whole weights by
    their own (full tuning). scale: 1 = as trained, 0 = the base.
    """

    config: AdapterConfig
    layers: int
    targets: tuple[str, ...]
    tied: str | None
    tensors: Mapping[str, Tensor]
    scale: float = 1.0

    @property
    def alpha(self) -> float:
        return self.config.alpha if self.config.alpha is not None else 2.0 * self.config.rank

    @property
    def spec(self) -> AdapterSpec:
        lora = self.config.method == "lora"
        return AdapterSpec(
            method=self.config.method,
            adapt=self.config.adapt,
            rank=self.config.rank if lora else 0,
            alpha=self.alpha if lora else 0.0,
            layers=self.layers,
            reweight=self.config.reweight if self.tied else "none",
            gamma=self.config.gamma if self.tied else 0.0,
            scale=self.scale,
            sha256=tensors_sha256(dict(self.tensors)),
        )

    def changed(self) -> set[str]:
        """Names of the transformer's weights that differ from the base."""
        if self.config.method == "lora":
            return {f"{name}.weight" for name in self.targets}
        return set(self.tensors)

    @torch.no_grad()
    def apply(self, model: nn.Module, head: list[nn.Module]) -> None:
        """Fold what was learnt into a float32 transformer and put the re-weighting into its head, in place."""
        if self.config.method == "full":
            for name, tensor in self.tensors.items():
                weight = model.get_parameter(name)
                weight.copy_(torch.lerp(weight, tensor.to(weight), self.scale))
            return
        if self.tied is not None:
            pair = (self.tensors[f"{self.tied}.lora_A.weight"], self.tensors[f"{self.tied}.lora_B.weight"])
            scaling = self.alpha / self.config.rank * self.scale
            insert_fixed(head, self.config.reweight, pair, scaling, self.config.gamma, self.scale, self.tied)
        layers = inject(model, peft_config(self.targets, self.config), seed=0)
        set_peft_model_state_dict(model, dict(self.tensors), adapter_name=ADAPTER)
        for layer in layers.values():
            pair_layer: Any = layer
            pair_layer.set_scale(ADAPTER, self.scale)
        fold_adapters(model)

    def build(self, restore: Callable[[], SentenceTransformer]) -> SentenceTransformer:
        """The adapted model as sentence-transformers modules, in float32 on the CPU."""
        base = restore()
        chain, _ = sides(base)
        transformer: Any = chain[0]
        head = list(chain[1:])
        if self.config.adapt == "query":
            from sentence_transformers.models import Router

            documents = [transformer, *head]
            transformer, head = copy.deepcopy(transformer), copy.deepcopy(head)
            self.apply(transformer.model, head)
            modules: list[Any] = [Router.for_query_document([transformer, *head], documents)]
        else:
            self.apply(transformer.model, head)
            modules = [transformer, *head]
        prompts: dict[str, Any] = dict(base.prompts)
        made = SentenceTransformer(
            modules=modules,
            device="cpu",
            prompts=prompts,
            default_prompt_name=base.default_prompt_name,
        )
        made.similarity_fn_name = base.similarity_fn_name
        return made.eval()

    def write_adapter(self, folder: Path, spec: EncoderSpec) -> None:
        """The low-rank pairs in PEFT's own format. spec: of the base, for its name and revision."""
        folder.mkdir(parents=True, exist_ok=True)
        settings: Any = peft_config(self.targets, self.config)
        settings.lora_alpha = self.alpha * self.scale
        settings.inference_mode = True
        hub_name, _, commit = spec.base.partition("@")
        settings.base_model_name_or_path = hub_name if commit else PurePath(spec.model).name
        settings.revision = commit or None
        settings.save_pretrained(str(folder))
        config_path = folder / "adapter_config.json"
        values = json.loads(config_path.read_text(encoding="utf-8"))
        config_path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(
            {f"base_model.model.{name}": tensor.contiguous() for name, tensor in self.tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )


def low_rank_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all low-rank pairs of a model, by PEFT's names, float32 on the CPU."""
    found = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    return {name: tensor.detach().float().cpu().clone() for name, tensor in found.items()}

"""What was learnt, as plain tensors: into a model, and to and from a folder of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Transformer
from torch import Tensor, nn

from ragadapt.adapters.method import METHODS, Method, Weights, attach_method, method_named, norm, options_of
from ragadapt.adapters.reweight import insert_fixed
from ragadapt.config import AdapterConfig
from ragadapt.encoder.loading import sides, tensors_sha256
from ragadapt.encoder.prefix import layer_list
from ragadapt.encoder.spec import AdapterSpec
from ragadapt.errors import FormatTooNew, StoreCorrupt, reason_of

FORMAT = 2  # 1 had PEFT's two files alone
FOLDER = "adapter"
FILE = "adapter.json"
WEIGHTS = "adapter.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


def plain(model: nn.Module) -> nn.Module:
    """The transformer by itself of one that transformers has put a head on; any other as it is."""
    inner = getattr(model, "base_model", model)
    return inner if isinstance(inner, nn.Module) and layer_list(model) is None else model


@dataclass(frozen=True)
class AdapterState:
    """A trained adapter at rest.

    layers: how many top layers it changes; one more than there are where it changes the embeddings. tied: the layer
    whose pair re-weights the vector; None without re-weighting. tensors: float32, on the CPU, by the method's names.
    scale: 1 = as trained, 0 = the base. change: norm of what was learnt. base, model: identity and name of the model
    that it belongs to. seed: with which it was made.
    """

    config: AdapterConfig
    layers: int
    tied: str | None
    tensors: Mapping[str, Tensor]
    scale: float
    change: float
    base: str
    model: str
    seed: int = 0

    @property
    def spec(self) -> AdapterSpec:
        """What of it decides the vectors."""
        options = options_of(self.config).deciding()
        if method_named(self.config.method).SEEDED:
            options["seed"] = self.seed
        return AdapterSpec(
            method=self.config.method,
            adapt=self.config.adapt,
            layers=self.layers,
            reweight=self.config.reweight if self.tied else "none",
            gamma=self.config.gamma if self.tied else 0.0,
            scale=self.scale,
            sha256=tensors_sha256(dict(self.tensors)),
            options=options,
        )

    # Into a model

    def attach(self, model: nn.Module, weights: Weights | None = None) -> Method:
        """The adapter on a transformer, in place, at its strength. weights: its own in float32, if it has them not."""
        own = {} if method_named(self.config.method).STARTS_SAVED else dict(model.named_parameters())
        method, _ = attach_method(model, self.config, seed=self.seed, weights=weights or (lambda: own))
        method.load(self.tensors)
        method.set_strength(self.scale)
        return method

    def apply(self, transformer: nn.Module, head: list[nn.Module]) -> None:
        """Put what was learnt into a sentence-transformers Transformer, in place: folded into its weights where that
        can be, else on top of them; and the re-weighting into the modules behind it."""
        model = plain(transformer.get_submodule("model"))
        method = self.attach(model)
        if self.tied is not None:
            pair = method.pairs()[self.tied]
            insert_fixed(head, self.config.reweight, pair, self.tied, self.config.gamma, self.scale)
        folded = method.fold()
        if folded is None:
            transformer.__class__ = AdaptedTransformer
            assert isinstance(transformer, AdaptedTransformer)
            transformer.adapter = (self, method)
            return
        method.detach()
        for name, tensor in folded.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Parameter(tensor, requires_grad=False))

    def build(self, restore: Callable[[], SentenceTransformer]) -> SentenceTransformer:
        """The adapted model as sentence-transformers modules, in float32 on the CPU."""
        base = restore()
        chain, _ = sides(base)
        transformer = chain[0]
        head = list(chain[1:])
        if self.config.adapt == "query":
            from sentence_transformers.models import Router

            documents = [transformer, *head]
            transformer, head = copy.deepcopy(transformer), copy.deepcopy(head)
            self.apply(transformer, head)
            modules: list[nn.Module] = [Router.for_query_document([transformer, *head], documents)]
        else:
            self.apply(transformer, head)
            modules = [transformer, *head]
        prompts = {name: prompt or "" for name, prompt in base.prompts.items()}
        made = SentenceTransformer(
            modules=modules,
            device="cpu",
            prompts=prompts,
            default_prompt_name=base.default_prompt_name,
        )
        made.similarity_fn_name = base.similarity_fn_name
        return made.eval()

    # To and from a folder

    def write(self, folder: Path) -> None:
        """Write adapter.json and the tensors: all that the adapter is, so that it can be moved, listed and put on its
        base again. What PEFT knows is written as PEFT does, so that it opens the folder too."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "format": FORMAT,
            "method": self.config.method,
            "options": options_of(self.config).as_dict(),
            "adapt": self.config.adapt,
            "layers": self.config.layers,
            "changed_layers": self.layers,
            "reweight": self.config.reweight if self.tied else "none",
            "gamma": self.config.gamma if self.tied else 0.0,
            "tied": self.tied,
            "scale": self.scale,
            "seed": self.seed,
            "change": self.change,
            "base": self.base,
            "model": self.model,
            "sha256": self.spec.sha256,
        }
        (folder / FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        settings = method_named(self.config.method).peft_config(options_of(self.config), self.tensors, self.scale)
        if settings is None:
            save_file(tensors, folder / WEIGHTS)
            return
        settings.inference_mode = True
        hub_name, _, commit = self.base.partition("@")
        settings.base_model_name_or_path = hub_name if commit else PurePath(self.model).name
        settings.revision = commit or None
        settings.save_pretrained(str(folder))
        config_path = folder / "adapter_config.json"
        values = json.loads(config_path.read_text(encoding="utf-8"))
        for name in {"target_modules", "feedforward_modules"} & set(values):
            values[name] = sorted(values[name])  # a set there, whose order changes from run to run
        config_path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(
            {f"{_PEFT_PREFIX}{name}": tensor for name, tensor in tensors.items()},
            folder / PEFT_WEIGHTS,
            metadata={"format": "pt"},
        )

    @classmethod
    def read(cls, folder: Path) -> AdapterState:
        """What `write` wrote. Raises StoreCorrupt where it is damaged, FormatTooNew."""
        path = folder / FILE
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["format"] > FORMAT:
                raise FormatTooNew(
                    f"{path} has format {about['format']}, this ragadapt reads up to {FORMAT}. "
                    "Upgrade with: pip install -U ragadapt"
                )
            if about["method"] not in METHODS:
                raise FormatTooNew(
                    f"{path}: this ragadapt does not know the method {about['method']!r}. "
                    "Upgrade with: pip install -U ragadapt"
                )
            tied = {"reweight": about["reweight"], "gamma": about["gamma"]} if about["tied"] else {"reweight": "none"}
            shared = {"adapt": about["adapt"], "layers": about["layers"]}
            config = AdapterConfig.model_validate({**shared, **about["options"], **tied})
            config = config.model_copy(update={"method": about["method"]})
            state = cls(
                config=config,
                layers=int(about["changed_layers"]),
                tied=about["tied"],
                tensors=_read_tensors(folder),
                scale=float(about["scale"]),
                change=float(about["change"]),
                base=str(about["base"]),
                model=str(about["model"]),
                seed=int(about.get("seed", 0)),
            )
        except FormatTooNew:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RecursionError) as error:
            raise StoreCorrupt(f"The adapter in {folder} cannot be read: {reason_of(error)}. Fit again.") from error
        if state.spec.sha256 != about["sha256"]:
            raise StoreCorrupt(f"The adapter in {folder} was changed after it was written. Restore it, or fit again.")
        return state


class AdaptedTransformer(Transformer):  # type: ignore[misc]
    """sentence-transformers' Transformer that keeps an adapter which cannot be folded into its weights.

    Saved, it is the base as it was, and the adapter in a folder of its own.
    """

    keeps_adapter = True
    adapter: tuple[AdapterState, Method]

    @contextmanager
    def without_adapter(self) -> Iterator[AdapterState]:
        """The transformer as its base was."""
        state, method = self.adapter
        method.detach()
        try:
            yield state
        finally:
            self.adapter = (state, state.attach(plain(self.model)))

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:
        with self.without_adapter() as state:
            super().save(output_path, *args, **kwargs)
            state.write(Path(output_path) / FOLDER)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: object) -> Self:
        made: Self = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        state = AdapterState.read(Path(model_name_or_path) / subfolder / FOLDER)
        made.adapter = (state, state.attach(plain(made.model)))
        return made


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        return dict(load_file(folder / WEIGHTS))
    found = load_file(folder / PEFT_WEIGHTS)
    return {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in found.items()}


def saved_change(model: Path) -> float | None:
    """The norm of what the adapter of a saved model learnt, from its tensors; None for a model without one.

    Raises StoreCorrupt.
    """
    folder = model / FOLDER if (model / FOLDER).is_dir() else model
    if (folder / FILE).is_file():
        return AdapterState.read(folder).change
    if not (folder / PEFT_WEIGHTS).is_file():
        return None
    try:
        return norm([tensor for name, tensor in load_file(folder / PEFT_WEIGHTS).items() if "lora_B" in name])
    except (OSError, SafetensorError) as error:
        raise StoreCorrupt(f"The adapter in {folder} cannot be read: {reason_of(error)}. Fit again.") from error

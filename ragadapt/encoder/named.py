"""An encoder by whatever a user has at hand: a retriever's folder, a model's folder, a preset or a hub name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ragadapt.checks import checked_path, shown
from ragadapt.config import EncoderConfig
from ragadapt.encoder.encoder import Encoder
from ragadapt.encoder.spec import EncoderSpec, read_spec
from ragadapt.errors import InvalidInput, NotARetriever, RagadaptError, StoreCorrupt
from ragadapt.files import REMEDY, FileRecord, Hashes, read_json

MANIFEST = "ragadapt.json"  # of a saved retriever


def open_encoder(
    model: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    max_length: int | None = None,
) -> Encoder:
    """The encoder of a retriever's folder, of a model folder, or a base model by preset or hub name.

    Prompts and max_length: None = what the model was saved with or is known to need. A model that ragadapt saved
    takes no others: they would give vectors that fit no index built with it. Raises NotARetriever, ModelNotFound,
    InvalidInput, MissingExtra, StoreCorrupt.
    """
    if not isinstance(model, str | Path) or not str(model) or "\0" in str(model):
        raise InvalidInput(
            f"model is {shown(model)}: give a retriever's folder, a model's folder, a preset or a hub name."
        )
    folder = checked_path(model, "model").expanduser()

    def saved(model: Path) -> Encoder | None:
        spec = read_spec(model) if model.is_dir() else None
        if spec is None:
            return None
        _check(spec, model, query_prompt, passage_prompt, max_length)
        return Encoder.open(model, device=device, precision=precision)

    retriever = (folder / MANIFEST).is_file()
    found = _checked(folder, saved) if retriever else saved(folder)
    if found is not None:
        return found
    if retriever:
        folder = folder / "model"
    if folder.is_dir() and not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        raise NotARetriever(
            f"{folder} holds neither a retriever (no {MANIFEST}) nor a model (no modules.json, no config.json). "
            "Give the folder that `ragadapt fit -o` wrote."
        )
    values = {
        "model": str(folder) if folder.is_dir() else str(model),
        "device": device,
        "precision": precision,
        "query_prompt": query_prompt,
        "passage_prompt": passage_prompt,
        "max_length": max_length,
    }
    return Encoder.load(EncoderConfig.model_validate(values))


def _checked(retriever: Path, opened: Callable[[Path], Encoder | None]) -> Encoder | None:
    """The model of a retriever, whose files are compared with their hashes while it is opened."""
    while True:
        manifest = read_json(retriever / MANIFEST)
        try:
            files = {
                name: FileRecord.from_json(record)
                for name, record in (manifest or {})["files"].items()
                if name.startswith("model/")
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(f"{retriever / MANIFEST} cannot be read ({error!r}). {REMEDY}") from error
        try:
            with closing(Hashes(retriever, files)) as hashes:
                try:
                    encoder = opened(retriever / "model")
                finally:
                    hashes.wait()  # damage is what is reported, whatever it led to
                return encoder
        except RagadaptError:
            if read_json(retriever / MANIFEST) == manifest:  # else the folder was replaced meanwhile
                raise


def _check(spec: EncoderSpec, folder: Path, query: str | None, passage: str | None, max_length: int | None) -> None:
    asked = {"query_prompt": query, "passage_prompt": passage, "max_length": max_length}
    for name, value in asked.items():
        saved = getattr(spec, name)
        if value is not None and value != saved:
            raise InvalidInput(
                f"{name} is {value!r}, but the model in {folder} was fitted with {saved!r}: its vectors and those of "
                f"its index would not be comparable. Leave {name} out, or fit again with it."
            )

"""Flags, environment and file → FitConfig: a flag beats the environment, that beats the file, that beats the default.

Every setting can be given in four ways: `epochs` of the table `[training]` in the file of --config,
RAGADAPT_TRAINING__EPOCHS, --set training.epochs=…, and, for the settings that people use, a flag of its own, which
reads RAGADAPT_<FLAG> too.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from click.core import ParameterSource

from ragadapt.config import FitConfig, Settings, load_config
from ragadapt.errors import InvalidConfiguration

PREFIX = "RAGADAPT_"


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag for one setting. key: "stage.setting", or the name of a setting outside the stages."""

    name: str
    key: str
    help: str

    @property
    def parameter(self) -> str:
        return "setting_" + self.key.replace(".", "__")

    @property
    def envvar(self) -> str:
        return PREFIX + self.name.lstrip("-").replace("-", "_").upper()


READING = (
    Flag("--include", "read.include", "Read only these files (.gitignore syntax); may be repeated."),
    Flag("--exclude", "read.exclude", "Leave these files out (.gitignore syntax); may be repeated."),
)
MODEL = (
    Flag("--model", "encoder.model", "Base model: small, base, multilingual, large, offline, a hub name, or a folder."),
    Flag("--device", "encoder.device", "cpu, cuda, cuda:1, mps; auto takes the fastest there is."),
    Flag("--precision", "encoder.precision", "Numbers the encoder computes in; auto takes bfloat16 where it is safe."),
)
GENERATOR = (
    Flag("--generator", "query.generator", "A local language model that writes training questions: hub name, .gguf."),
    Flag("--generator-url", "query.generator_url", "An OpenAI-compatible endpoint that writes training questions."),
    Flag("--generator-model", "query.generator_model", "The model's name at that endpoint."),
)
TRAINING = (
    Flag(
        "--method",
        "adapter.method",
        "What is trained (see `ragadapt methods`); none learns only how to mix dense and lexical search.",
    ),
    Flag(
        "--adapt",
        "adapter.adapt",
        "query leaves the passages' vectors as the base made them; auto does so after hundreds of labels.",
    ),
    Flag(
        "--rank",
        "adapter.rank",
        "Rank of the low-rank matrices, or width of what is put in; left open, the method's own.",
    ),
    Flag("--reweight", "adapter.reweight", "How the LoRA matrices re-weight the text vector."),
    Flag("--gamma", "adapter.gamma", "Strength of the re-weighting; 0 switches it off."),
    Flag("--epochs", "training.epochs", "Passes over the training queries."),
    Flag("--lr", "training.learning_rate", "Learning rate."),
)
LIBRARY = (
    Flag("--library", "library.folder", "Adapters of other corpora, as `ragadapt library` keeps them."),
    Flag("--start", "library.start", "Begin training from the library: nearest, blend, or an adapter's name."),
)
INDEXING = (
    Flag("--index", "index.kind", "Where the vectors live."),
    Flag("--index-url", "index.url", "A Qdrant server, as http://localhost:6333; else --index qdrant is a folder."),
)
RERANKING = (
    Flag("--rerank", "rerank.model", "A re-ranker to judge and keep: ettin-17m, colbert-small, a hub name, a folder."),
    Flag("--stage", "stage", "What is trained: the encoder that retrieves, the re-ranker, or both."),
    Flag("--rerank-method", "rerank.method", "By which the re-ranker is trained (see `ragadapt methods`)."),
)
SEED = Flag("--seed", "seed", "Everything random follows from it.")

FIT_FLAGS = (*MODEL, *READING, *GENERATOR, *TRAINING, *LIBRARY, *INDEXING, *RERANKING, SEED)
DOCTOR_FLAGS = (*MODEL, *READING, *GENERATOR, SEED)
PRIME_FLAGS = (
    *MODEL,
    *READING,
    *GENERATOR,
    *(flag for flag in TRAINING if flag.name in ("--method", "--rank", "--epochs", "--lr")),
    SEED,
)
COMPARE_FLAGS = (
    *MODEL,
    *READING,
    *GENERATOR,
    *(flag for flag in TRAINING if flag.name in ("--adapt", "--epochs")),
    SEED,
)

SWEEP_FLAGS = (*(flag for flag in MODEL if flag.name != "--model"), *READING, SEED)


def settings_options(flags: Sequence[Flag]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flags, --config and --set; the function gets the finished `config`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, config_file: Path | None, assignments: tuple[str, ...], **values: Any) -> Any:
            context = click.get_current_context()
            given: dict[ParameterSource, dict[str, Any]] = {}
            for flag in flags:
                value = values.pop(flag.parameter)
                source = context.get_parameter_source(flag.parameter)
                if source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
                    given.setdefault(source, {})[flag.key] = value
            config = build_config(
                config_file,
                environment=given.get(ParameterSource.ENVIRONMENT, {}),
                flags=given.get(ParameterSource.COMMANDLINE, {}),
                assignments=assignments,
            )
            return function(*args, config=config, **values)

        call.__doc__, call.__name__ = function.__doc__, function.__name__
        call.__click_params__ = list(getattr(function, "__click_params__", []))  # type: ignore[attr-defined]
        made: Callable[..., Any] = call
        made = click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any setting of docs/configuration.md, for example training.patience=5; may be repeated.",
        )(made)
        made = click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            envvar="RAGADAPT_CONFIG",
            show_envvar=True,
            help="A TOML file of settings. The flags above are read from the environment too: RAGADAPT_MODEL, …",
        )(made)
        for flag in reversed(flags):
            made = _option(flag)(made)
        return made

    return decorate


def build_config(
    file: Path | None,
    *,
    environment: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    variables: Mapping[str, str] = os.environ,
) -> FitConfig:
    """The settings of all layers. environment, flags: setting → value; assignments: "key=value".

    Raises InvalidConfiguration for the file, click.UsageError for the rest, so that each is told where it stands.
    """
    values: dict[str, Any] = {}
    config = FitConfig()
    if file is not None:
        config = load_config(file)
        values = config.model_dump(exclude_unset=True)
    for where, layer in (
        ("the environment", {**dict(_from_environment(variables)), **(environment or {})}),
        ("the command line", {**dict(_from_assignments(assignments)), **(flags or {})}),
    ):
        if layer:
            for key, value in layer.items():
                _put(values, key, value)
            try:
                config = FitConfig.build(values)
            except InvalidConfiguration as error:
                raise click.UsageError(f"From {where}: {error}") from error
    return config


def settings() -> dict[str, Any]:
    """Every setting's key → its field, in the order of the file."""
    found: dict[str, Any] = {}
    for name, field in FitConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            for inner, setting in field.annotation.model_fields.items():
                found[f"{name}.{inner}"] = setting
        else:
            found[name] = field
    return found


def _option(flag: Flag) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    field = settings()[flag.key]
    kinds = alternatives(field)
    default = field.default if field.default not in (None, ()) else None
    attributes: dict[str, Any] = {}
    if tuple in kinds:
        attributes["multiple"] = True
    elif choices := [kind for kind in kinds if isinstance(kind, str)]:
        attributes["type"] = click.Choice(choices)
    else:
        attributes["type"] = next((kind for kind in (int, float) if kind in kinds), str)
    text = flag.help if default is None else f"{flag.help}  [default: {default}]"
    return click.option(flag.name, flag.parameter, envvar=flag.envvar, help=text, **attributes)


def alternatives(field: Any) -> list[Any]:
    """What a setting takes, in order: classes (tuple for any tuple), strings that stand for themselves, NoneType."""
    named = (field.json_schema_extra or {}).get("enum")  # where a table has the names
    return list(named) if named else _types(field.annotation)


def _types(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin in (UnionType, Union):
        return [kind for part in get_args(annotation) for kind in _types(part)]
    if origin is Literal:
        return list(get_args(annotation))
    return [origin or annotation]


def _from_environment(variables: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """RAGADAPT_TRAINING__EPOCHS=2 → ("training.epochs", 2)."""
    for name, text in sorted(variables.items()):
        stage, joint, setting = name.upper().removeprefix(PREFIX).partition("__")
        if name.upper().startswith(PREFIX) and joint:
            key = f"{stage.lower()}.{setting.lower()}"
            yield _known(key, f"The environment variable {name}"), _value(key, text)


def _from_assignments(assignments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        key = key.strip()
        if not sign:
            raise click.BadParameter(
                f"{assignment!r} is not KEY=VALUE, for example training.epochs=2.", param_hint="--set"
            )
        yield _known(key, f"--set {key}"), _value(key, text.strip())


def _known(key: str, what: str) -> str:
    known = settings()
    if key not in known:
        from difflib import get_close_matches

        close = get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise click.UsageError(f"{what}: there is no setting {key!r}.{hint} docs/configuration.md lists them all.")
    return key


def _value(key: str, text: str) -> Any:
    """The text as the setting's type wants it; what it cannot be, the configuration refuses with its reason."""
    kinds = alternatives(settings()[key])
    if type(None) in kinds and text.lower() == "none":
        return None
    if tuple in kinds and not text.startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if str in kinds or any(isinstance(kind, str) for kind in kinds):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    stage, joint, setting = key.rpartition(".")
    if joint:
        values.setdefault(stage, {})[setting] = value
    else:
        values[setting] = value

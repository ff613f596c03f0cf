"""The library of adapters at work: from a retriever into it, and from it into a fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragadapt.checks import checked_path
from ragadapt.config import EncoderConfig, FitConfig
from ragadapt.corpus.sources import listed_sources, read_sources
from ragadapt.errors import InvalidConfiguration, InvalidInput, StoreError
from ragadapt.lexical.languages import languages_of
from ragadapt.out_of_core import keep_all
from ragadapt.pipeline.seen import seen_by_retriever
from ragadapt.queries.seen import write_seen
from ragadapt.report import read_report
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import MANIFEST, OpenedStore, open_store
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:
    from ragadapt.adapters import AdapterState
    from ragadapt.adapters.library import CorpusStatistics, Library, LibraryEntry
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

_ENCODER = ("model", "revision", "max_length", "query_prompt", "passage_prompt", "trust_remote_code")


@dataclass(frozen=True, eq=False)
class Start:
    """The adapter that a training begins with. words: which it is, and how near, for people. seen: marks of the
    questions that it learnt from."""

    state: AdapterState
    words: str
    seen: frozenset[str] = frozenset()


def check_library(config: FitConfig) -> None:
    """Raises InvalidConfiguration where a start is named that cannot be, before anything is read, and InvalidInput."""
    settings = config.library
    if settings.start is None:
        if not settings.train:
            raise InvalidConfiguration(
                "library.train = false, but nothing is to begin with. Give --start and --library."
            )
        return
    if settings.folder is None:
        raise InvalidConfiguration(f"--start {settings.start} takes an adapter of a library. Name it: --library FOLDER")
    if not config.trains_retriever:
        raise InvalidConfiguration(f"--start {settings.start} begins a training, and nothing is to be trained.")
    from ragadapt.adapters.library import RESERVED, Library

    library = Library.open(settings.folder)
    if settings.start not in RESERVED:
        library.entry(settings.start)
    elif not library.names():
        raise InvalidInput(f"{settings.folder} holds no adapter yet. Add one: ragadapt library add FOLDER RETRIEVER")


def refuse_start(config: FitConfig, what: str) -> None:
    """Raises InvalidConfiguration where a training is to begin from the library that begins at the base. what: it."""
    if config.library.start is not None:
        raise InvalidConfiguration(
            f"library.start = {config.library.start!r}, but {what} begins at the base. Leave the setting out: it is "
            "for `fit`."
        )


def starting_adapter(config: FitConfig, base: Encoder, statistics: CorpusStatistics) -> Start:
    """The adapter that `config.library` asks for, for a corpus that looks so to this base.

    Raises InvalidConfiguration where none of the library's can be begun with, StoreCorrupt.
    """
    from ragadapt.adapters.blending import check_start
    from ragadapt.adapters.library import RESERVED, Library, shares

    settings = config.library
    assert settings.folder is not None and settings.start is not None
    library = Library.open(settings.folder)
    if settings.start not in RESERVED:
        entry = library.entry(settings.start)
        state = entry.adapter()
        if state.base != base.spec.base:
            raise InvalidConfiguration(
                f"{entry.name} belongs to the base model {entry.model!r}, not to {config.encoder.model!r}. "
                f"Fit with --model {entry.model}."
            )
        check_start(config.adapter, state)
        near = ""
        if entry.statistics.fingerprint == statistics.fingerprint:
            near = f" (distance {statistics.distance(entry.statistics):.2f})"
        return Start(state, f"{entry.name}{near}", entry.seen)
    if settings.start == "nearest":
        found, reason = usable(library, config, base, statistics, alone=True)
        if not found:
            raise InvalidConfiguration(f"{library.folder} has no adapter that this fit could begin with: {reason}")
        entry, state, distance = found[0]
        return Start(state, f"{entry.name}, the nearest of the library (distance {distance:.2f})", entry.seen)
    found, reason = usable(library, config, base, statistics, alone=False)
    if not found:
        raise InvalidConfiguration(f"{library.folder} has no adapters that this fit could begin with: {reason}")
    chosen = found[: settings.nearest]
    weights = weights_of(config, statistics, [entry for entry, _, _ in chosen])
    state = blended(base, [state for _, state, _ in chosen], weights, rank=config.adapter.rank)
    mix = shares([entry for entry, _, _ in chosen], weights)
    seen = frozenset[str]().union(*(entry.seen for entry, _, _ in chosen))
    return Start(state, f"a blend of {len(chosen)} of the library ({mix})", seen)


def usable(
    library: Library, config: FitConfig, base: Encoder, statistics: CorpusStatistics, *, alone: bool
) -> tuple[list[tuple[LibraryEntry, AdapterState, float]], str]:
    """Adapters of this base that fit the settings, the nearest first, and why the first of the others does not.

    alone: to go on from one, which then must have the settings; else to be added to the nearest of the others.
    """
    from ragadapt.adapters.blending import check_blends, check_start

    reason = f"none was learnt on the base model {config.encoder.model!r} as it is read here."
    found: list[tuple[LibraryEntry, AdapterState, float]] = []
    for entry, distance in library.nearest(statistics):
        try:
            state = entry.adapter()
            if state.base != base.spec.base:
                continue
            if alone:
                check_start(config.adapter, state)
            else:
                check_blends([*(each for _, each, _ in found[:1]), state])
                if config.adapter.adapt not in ("auto", state.config.adapt):
                    raise InvalidConfiguration(f"it is for --adapt {state.config.adapt}.")
        except InvalidConfiguration as error:
            reason = f"{entry.name}: {error}"
            log.info("not taken from the library: %s", reason)
            continue
        found.append((entry, state, distance))
    return found, reason


def weights_of(config: FitConfig, statistics: CorpusStatistics, entries: Sequence[LibraryEntry]) -> list[float]:
    """Of the entries in a blend for this corpus; they sum to 1."""
    from ragadapt.adapters.blending import least_squares_weights, softmax_weights

    settings = config.library
    if settings.weights == "least-squares":
        return least_squares_weights(statistics.mean, [entry.statistics.mean for entry in entries])
    return softmax_weights([statistics.distance(entry.statistics) for entry in entries], settings.temperature)


def blended(
    base: Encoder, states: Sequence[AdapterState], weights: Sequence[float], *, rank: int | None = None
) -> AdapterState:
    """The adapters of this base as one. Raises InvalidConfiguration where they do not add up."""
    from ragadapt.adapters.blending import blend

    if base.query_tower is None:
        raise InvalidConfiguration(f"Model {base.spec.model!r} runs inside sentence-transformers and takes no adapter.")
    return blend(states, weights, base.query_tower.clone().model, rank=rank)


@dataclass(frozen=True, eq=False)
class Offer:
    """What a library has for a corpus. near: every adapter of the base with its distance, the nearest first. chosen,
    weights: what a blend would be made of. refused: why there is none; "" where there is one."""

    base: Encoder
    statistics: CorpusStatistics
    near: list[tuple[LibraryEntry, float]]
    chosen: list[LibraryEntry]
    weights: list[float]
    state: AdapterState | None
    refused: str = ""


def offer(
    library: Library,
    sources: Sequence[str | Path],
    config: FitConfig = FitConfig(),
    *,
    names: Sequence[str] = (),
    model: str | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Offer:
    """Look at documents, or a retriever's passages, and say which adapters are near and what their blend is.

    names: of the adapters to blend, instead of the nearest `config.library.nearest`. model: of which base, where the
    library has several. Raises InvalidInput, ModelNotFound, StoreCorrupt.
    """
    named = [library.entry(name) for name in names]
    base = load_base(_base_of(library, model), device)
    statistics = statistics_of_source(sources, config, base, progress)
    near = library.nearest(statistics)
    chosen, states, reason = list[Any](), list[Any](), ""
    if named:
        chosen = named
        states = [entry.adapter() for entry in chosen]
    else:
        if near:  # one side or both, as the nearest
            adapter = config.adapter.model_copy(update={"adapt": near[0][0].adapt})
            config = config.model_copy(update={"adapter": adapter})
        found, reason = usable(library, config, base, statistics, alone=False)
        chosen = [entry for entry, _, _ in found[: config.library.nearest]]
        states = [state for _, state, _ in found[: config.library.nearest]]
    if not chosen:
        return Offer(base, statistics, near, [], [], None, reason)
    for entry in chosen:
        if entry.statistics.fingerprint != statistics.fingerprint:
            raise InvalidConfiguration(
                f"{entry.name} belongs to the base model {entry.model!r}. Blend those of one base."
            )
    weights = weights_of(config, statistics, chosen)
    return Offer(base, statistics, near, chosen, weights, blended(base, states, weights))


def write_offer(found: Offer, folder: str | Path) -> Path:
    """The base with the blend in it, as a sentence-transformers folder that `fit --model` takes.

    One that is there already is replaced; raises StoreError for a folder of something else.
    """
    from ragadapt.training import untrained

    assert found.state is not None
    refuse_foreign(folder)
    untrained(found.base, found.state).encoder.merged().save(folder)
    write_seen(Path(folder), frozenset[str]().union(*(entry.seen for entry in found.chosen)))
    return Path(folder)


def refuse_foreign(folder: str | Path) -> None:
    """Raises StoreError where no model, or a retriever's, can be put in place of what is there."""
    from ragadapt.encoder.spec import SPEC_FILE

    folder = checked_path(folder, "The folder")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / SPEC_FILE).is_file())):
        raise StoreError(f"{folder} holds something else. Name a new or an empty folder for the model.")


def _base_of(library: Library, model: str | None) -> Mapping[str, Any]:
    """Encoder settings of the one base that the library's adapters have, or of those on `model`."""
    entries = [entry for entry in library.entries() if model in (None, entry.model)]
    if not entries:
        what = "no adapter yet" if model is None else f"no adapter of the base model {model!r}"
        raise InvalidInput(f"{library.folder} holds {what}. Add one: ragadapt library add {library.folder} RETRIEVER")
    bases = {entry.statistics.fingerprint: entry for entry in entries}
    if len(bases) > 1:
        names = ", ".join(sorted({entry.model for entry in bases.values()}))
        raise InvalidInput(f"{library.folder} holds adapters of several base models ({names}). Name one: --model")
    return entries[0].encoder


# Into the library


def add_retriever(
    library: Library | str | Path,
    retriever: str | Path,
    name: str | None = None,
    *,
    replace: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
) -> LibraryEntry:
    """Put the adapter of a fitted retriever into a library, with the statistics of its passages by the base.

    library: a folder is made where there is none. name: None = the folder's. Raises InvalidInput where its model was
    not adapted or the name is taken, ModelNotFound, StoreCorrupt.
    """
    from ragadapt.adapters import AdapterState
    from ragadapt.adapters.library import Library, checked_name
    from ragadapt.adapters.state import FOLDER

    opened = open_store(retriever)
    name = checked_name(opened.path.name if name is None else name)
    folder = opened.path / "model" / FOLDER
    if not folder.is_dir():
        verdict = opened.manifest.sections.get("verdict") or "no verdict"
        raise InvalidInput(
            f"The model of {retriever} is its base as it was ({verdict}): there is no adapter to keep. A library takes "
            "what a gate let through."
        )
    state = AdapterState.read(folder)
    if not isinstance(library, Library):
        library = Library.open(library, create=True)
    if not replace:
        library.refuse_taken(name)
    settings = encoder_settings(opened)
    base = load_base(settings, device)
    if base.spec.base != state.base:
        raise InvalidInput(
            f"{settings['model']!r} is now {base.spec.base:.60}, and {retriever} was fitted on {state.base:.60}. Give "
            "the base model as it was then."
        )
    with ChunkStore.open(opened.path / "chunks.sqlite") as store:
        statistics = statistics_of_chunks(store, base, progress)
    return library.add(
        name, state, statistics, encoder=settings, figures=figures_of(opened), source=opened.path.name,
        seen=seen_by_retriever(opened.path), replace=replace,
    )  # fmt: skip


def load_base(settings: Mapping[str, Any], device: str) -> Encoder:
    """The base model that these settings name."""
    from ragadapt.encoder import Encoder

    return Encoder.load(EncoderConfig.model_validate({**settings, "device": device}))


def encoder_settings(opened: OpenedStore) -> dict[str, Any]:
    """Those of the base of a retriever that decide its vectors."""
    configured = opened.manifest.configuration.get("encoder", {})
    return {key: configured[key] for key in _ENCODER if configured.get(key) is not None}


def statistics_of_chunks(store: ChunkStore, base: Encoder, progress: Progress = no_progress) -> CorpusStatistics:
    """Of the passages of a retriever, by an encoder."""
    from ragadapt.adapters.library import sampled

    ids = store.ids()
    chosen = [ids[at] for at in sampled(len(ids)).tolist()]
    return statistics_of_passages([chunk.passage for chunk in store.get(chosen)], len(ids), base, progress)


def statistics_of_passages(
    passages: Sequence[str], count: int, base: Encoder, progress: Progress = no_progress
) -> CorpusStatistics:
    """passages: an even sample of so many."""
    from ragadapt.adapters.library import CorpusStatistics

    vectors = base.encode_passages(list(passages), progress=progress)
    return CorpusStatistics.of(vectors, base.fingerprint, passages=count, languages=languages_of(passages))


def statistics_of_source(
    sources: Sequence[str | Path], config: FitConfig, base: Encoder, progress: Progress = no_progress
) -> CorpusStatistics:
    """Of a retriever's passages, or of documents that are read and cut as a fit would."""
    from ragadapt.adapters.library import sampled
    from ragadapt.corpus import cut_documents

    if len(sources) == 1 and (Path(sources[0]) / MANIFEST).is_file():
        with ChunkStore.open(open_store(sources[0]).path / "chunks.sqlite") as store:
            return statistics_of_chunks(store, base, progress)
    documents, _, _ = read_sources(listed_sources(list(sources)), config.read, False, progress)
    keep = keep_all(documents)
    cut = cut_documents(documents, config.chunk, base.count_tokens, base.passage_room, progress=progress)
    chunks = [keep(chunk) for chunk in cut]
    if not chunks:
        raise InvalidInput("The documents hold no text to look at. Check what was read with: ragadapt doctor")
    passages = [chunks[at].passage for at in sampled(len(chunks)).tolist()]
    return statistics_of_passages(passages, len(chunks), base, progress)


def figures_of(opened: OpenedStore) -> dict[str, Any]:
    """What the report of a fit says of its adapter: verdict, evidence, and the deciding metric by system."""
    try:
        report = read_report(opened.path / "report")
    except InvalidInput:
        return {}
    found: dict[str, Any] = {}
    if report.verdict is not None:
        found["verdict"] = report.verdict.outcome
    if report.evidence is not None:
        found |= {"evidence": report.evidence.tier, "queries": report.evidence.queries}
    systems = {system.name: system for system in report.systems}
    for name in ("base-dense", "fitted-dense", "base-hybrid", "shipped"):
        if name in systems and report.metric in systems[name].metrics:
            found.setdefault(report.metric, {})[name] = round(systems[name].metrics[report.metric].value, 4)
    return found


__all__ = [
    "Offer",
    "Start",
    "add_retriever",
    "blended",
    "check_library",
    "load_base",
    "offer",
    "refuse_foreign",
    "refuse_start",
    "starting_adapter",
    "statistics_of_source",
    "usable",
    "weights_of",
    "write_offer",
]

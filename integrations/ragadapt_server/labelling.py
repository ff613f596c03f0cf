"""What people are asked to judge: which question next, which passages with it, and the file that keeps their answers.

Questions come, in this order, from what was asked (logs and files of questions), from a language model, and from
passages that nobody labelled, for which a person types one; those that no question found come first.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ragadapt.config import FitConfig, QueryConfig
from ragadapt.errors import InvalidConfiguration, InvalidInput, InvalidLabels, RagadaptError
from ragadapt.evaluation.gate import labels_to_judge
from ragadapt.files import file_state
from ragadapt.queries import EvidenceQuote, JudgedQuestion, QuestionFile, load_questions, text_key
from ragadapt.queries.generate import check_generator, choose_chunks, generate
from ragadapt.retriever import Retriever
from ragadapt.snapshot import Snapshot
from ragadapt.store.workspace import answers_file
from ragadapt.values import Chunk, Hit

log = logging.getLogger(__name__)

MOST_CHARACTERS = 4000
"""Of a question."""

SIDE_DEPTH = 10
"""Passages that each side brings to be judged."""

_SEED = 13
_SEARCHED = 300  # questions whose hits say which passages are found
_FOUND_DEPTH = 10
_LOOKED_AT = 5000  # passages among which those that were never found are looked for
_PASSAGES = 300  # that are offered in one run of the server
_FIRST_ROUND = 12  # questions that the language model writes ahead; as many again when few are left
_FEW = 6

Origin = Literal["asked", "generator", "typed"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What to judge next: a question with how often it was asked, or a passage that wants one. found: whether a
    question that was asked finds that passage."""

    question: str | None = None
    origin: Origin = "asked"
    times: int = 1
    passage: Chunk | None = None
    found: bool = False


class Labelling:
    """The labelling of one retriever. Safe for use from several threads; everything in it may wait for a disk."""

    def __init__(
        self,
        retriever: Retriever,
        path: str | Path,
        sources: Sequence[str | Path] = (),
        generator: Mapping[str, Any] | None = None,
        log_of_queries: str | Path | None = None,
    ) -> None:
        """path: the file that is filled. sources: files of questions, which must be there, unlike the log. generator:
        the settings of a QueryConfig, None = none writes. Raises InvalidLabels, InvalidConfiguration."""
        self.retriever = retriever
        self.file = QuestionFile(path)
        self._sources = [Path(source) for source in sources]
        for source in self._sources:
            load_questions(source)
        if log_of_queries is not None:
            self._sources.append(Path(log_of_queries))
        self._lock = threading.Lock()
        self._asked: tuple[Any, dict[str, tuple[str, int]]] = (None, {})
        self._offered: Counter[str] = Counter()  # what was shown, so that two windows get different things
        self._passages: tuple[str, list[tuple[str, bool]]] = ("", [])  # build, ids with whether they are found
        self._writer = None if generator is None else _Writer(retriever, QueryConfig.model_validate(generator))

    def next(self, passage: bool = False) -> Suggestion | None:
        """What nobody has judged yet and was shown least often; None where nothing is left. passage: one to
        ask about, whatever else there is."""
        said = self.file.questions()
        done = {text_key(text) for text, one in said.items() if one.done}
        asked = self._questions(said)
        if not passage:
            for found in (asked, self._written(done, asked)):
                new = {key: one for key, one in found.items() if key not in done}
                if new:
                    with self._lock:
                        key = min(new, key=lambda key: self._offered[key])
                        self._offered[key] += 1
                    return new[key]
        return self._passage(said, [one.question for one in asked.values() if one.question])

    def _questions(self, said: Mapping[str, JudgedQuestion]) -> dict[str, Suggestion]:
        """What was asked, most often first; a question that stands in the file without an answer counts too."""
        seen = [file_state(source) for source in self._sources]
        with self._lock:
            if self._asked[0] != seen:
                self._asked = seen, _asked(self._sources)
            asked = dict(self._asked[1])
        for text in said:
            asked.setdefault(text_key(text), (text, 1))
        order = sorted(asked.items(), key=lambda item: -item[1][1])
        return {key: Suggestion(text, "asked", times) for key, (text, times) in order}

    def _written(self, done: set[str], asked: Mapping[str, Suggestion]) -> dict[str, Suggestion]:
        if self._writer is None:
            return {}
        found = {text_key(text): Suggestion(text, "generator") for text in self._writer.questions()}
        left = {key: one for key, one in found.items() if key not in asked}
        if sum(key not in done for key in left) <= _FEW:
            self._writer.write_more()
        return left

    def _passage(self, said: Mapping[str, JudgedQuestion], asked: Sequence[str]) -> Suggestion | None:
        now = self.retriever.snapshot()
        labelled = {(quote.source, quote.quote) for one in said.values() for quote in one.relevant}
        with self._lock:
            if self._passages[0] != now.manifest.build_id:
                self._passages = now.manifest.build_id, _to_ask_about(self.retriever, now, asked)
            order = sorted(self._passages[1], key=lambda one: self._offered[one[0]])
        chunks = now.chunks.find([id for id, _ in order])
        for id, found in order:
            chunk = chunks.get(id)
            if chunk is not None and (chunk.document_id, chunk.text) not in labelled:
                with self._lock:
                    self._offered[id] += 1
                return Suggestion(passage=chunk, found=found, origin="typed")
        return None

    def judge(self, question: str, chunk_id: str, relevant: bool | None, origin: Origin) -> JudgedQuestion:
        """Say whether the passage answers; every copy of it counts with it. None takes it back. Raises InvalidInput
        for a passage that is not there, and as `QuestionFile.judge`."""
        now = self.retriever.snapshot()
        chunk = now.chunks.find([chunk_id]).get(chunk_id)
        if chunk is None:
            raise InvalidInput(f"There is no passage {chunk_id!r} any more. Load the question again.")
        return self.file.judge(question, quotes_of(now, chunk), relevant, origin)

    def progress(self) -> dict[str, Any]:
        """How far the labelling is, and what it takes for a trained model to be judged, by the gate's own numbers."""
        counts = self.file.counts()
        try:
            config = FitConfig.build(dict(self.retriever.manifest.configuration))
        except InvalidConfiguration:  # of another version: a fit with today's defaults is what comes next
            config = FitConfig()
        return {
            "file": self.file.path.name,
            "labelled": counts.labelled,
            "unanswered": counts.unanswered,
            "skipped": counts.skipped,
            "needed": labels_to_judge(config.split, config.gate),
            "generator": None if self._writer is None else self._writer.state,
        }


def quotes_of(now: Snapshot, chunk: Chunk) -> list[EvidenceQuote]:
    """How a passage and its copies are named in a file of questions: by document, for rows of one file share their
    source, and by their words."""
    copies = now.chunks.by_content([chunk.content_hash]).get(chunk.content_hash, [])
    documents = dict.fromkeys([chunk.document_id, *(document for _, document in copies)])
    return [EvidenceQuote(document, chunk.text) for document in documents]


def pool(*sides: Sequence[Hit]) -> list[Chunk]:
    """The passages of all sides in turn, each content once: what one side alone ranks high is judged as well, so that
    the labels do not favour the mix that ships."""
    found: dict[str, Chunk] = {}
    for row in zip_longest(*sides):
        for hit in row:
            if hit is not None:
                found.setdefault(hit.chunk.content_hash, hit.chunk)
    return list(found.values())


class _Writer:
    """A language model that writes questions, in rounds and in a thread of its own. Answers that were paid for are
    kept where a fit keeps them."""

    def __init__(self, retriever: Retriever, config: QueryConfig) -> None:
        check_generator(config)
        self.state: Literal["ready", "writing", "failed", "done"] = "ready"
        self._retriever = retriever
        self._config = config
        self._texts: list[str] = []
        self._wanted = 0
        self._lock = threading.Lock()

    def questions(self) -> list[str]:
        """What it wrote so far."""
        with self._lock:
            return list(self._texts)

    def write_more(self) -> None:
        """Begin the next round, unless one is under way."""
        with self._lock:
            if self.state != "ready":
                return
            self.state = "writing"
            self._wanted = min(self._wanted + _FIRST_ROUND, self._config.generator_queries)
        threading.Thread(target=self._write, name="label-generator", daemon=True).start()

    def _write(self) -> None:
        # One of each passage: several questions about the same one are alike, and people's time is dear.
        settings = self._config.model_copy(update={"generator_queries": self._wanted, "per_chunk": 1})
        state: Literal["ready", "failed", "done"] = "failed"
        texts: list[str] = []
        try:
            chunks = _sample(self._retriever.snapshot())
            cache = answers_file(self._retriever.path)
            texts = [query.text for query in generate(chunks, settings, seed=_SEED, cache_path=cache).queries]
            state = "done" if self._wanted >= min(self._config.generator_queries, len(chunks)) else "ready"
        except RagadaptError as error:
            log.error("no questions could be written: %s", error)
        except Exception:
            log.exception("no questions could be written")
        with self._lock:
            self._texts = texts or self._texts
            self.state = state


def _asked(sources: Sequence[Path]) -> dict[str, tuple[str, int]]:
    """Key → (the question, how often it was asked), over all files that hold any."""
    found: dict[str, tuple[str, int]] = {}
    for source in sources:
        try:
            texts, _ = load_questions(source)
        except InvalidLabels as error:  # a log that nobody has written to yet
            log.info("%s", error)
            continue
        for text in (text for text in texts if len(text) <= MOST_CHARACTERS):
            key = text_key(text)
            first, times = found.get(key, (text, 0))
            found[key] = first, times + 1
    return found


def _to_ask_about(retriever: Retriever, now: Snapshot, asked: Sequence[str]) -> list[tuple[str, bool]]:
    """Ids of passages, with whether any of the questions finds them: those that none finds first, and one of each
    document before a second of any."""
    found: set[str] = set()
    for start in range(0, min(len(asked), _SEARCHED), 16):
        for ranked in retriever.rank(asked[start : start + 16], _FOUND_DEPTH, lam=1):
            found |= set(ranked.ids)
    chosen = [(chunk.id, chunk.id in found) for chunk in choose_chunks(_sample(now), _LOOKED_AT, seed=_SEED)]
    return sorted(chosen, key=lambda one: one[1])[:_PASSAGES]


def _sample(now: Snapshot) -> list[Chunk]:
    """All passages, or of many an even part, the same every time."""
    ids = now.chunks.ids()
    if len(ids) > _LOOKED_AT:
        chosen = np.random.default_rng(_SEED).choice(len(ids), _LOOKED_AT, replace=False)
        ids = [ids[at] for at in sorted(chosen.tolist())]
    return now.chunks.get(ids)


def named_files(given: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """FILE or NAME=FILE → (retriever, file); a file without a name is the first retriever's. Raises InvalidInput."""
    seen: set[str] = set()
    for one in given:
        name, mark, file = one.partition("=")
        if not mark or name not in names:
            name, file = names[0], one
        if name in seen:
            raise InvalidInput(f"Two files of labels are for {name!r}. Say for which retriever: NAME=FILE.")
        seen.add(name)
        yield name, file

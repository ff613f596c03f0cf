"""Queries written by a language model: chunks in, cleaned Query values out, and what it will cost beforehand.

choose chunks → prompts → answers (cached as they come) → cleaning → queries

The model is local (`generator`: a Hugging Face model or a .gguf file) or behind an OpenAI-compatible address
(`generator_url`). Answers are kept as they came, by model and prompt: a killed run goes on where it stopped, a second
one is free, and after a change of documents or settings only the prompts that are new are asked.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ragadapt.config import QueryConfig
from ragadapt.errors import GeneratorFailed, InvalidConfiguration
from ragadapt.queries.filters import lexical_overlap
from ragadapt.queries.generators.answers import REASONS, clean, normalised
from ragadapt.queries.generators.cache import Answer, AnswerLog, read_answers
from ragadapt.queries.generators.endpoint import Endpoint, endpoint_id, endpoint_url, token_limit_id
from ragadapt.queries.generators.prompts import (
    MAX_ASKED,
    Prompt,
    QueryExample,
    chat_text,
    examples_from_queries,
    make_prompt,
)
from ragadapt.queries.text import is_cjk, length
from ragadapt.values import Chunk, Evidence, Progress, Query, no_progress

log = logging.getLogger(__name__)

MIN_WORDS = 12  # a shorter text holds nothing to ask several questions about
EXAMPLES_SHOWN = 4  # passages with the user's own queries in each prompt; more cost tokens and gain little


@dataclass(frozen=True, slots=True)
class RequestEstimate:
    """What generation will take, before it starts. Cached answers are counted in `cached` and nowhere else.

    Tokens are estimated from characters (four to a token, one in Chinese and Japanese), output as a usual answer's.
    seconds: from the pace of cached answers; None without any. cost: in the currency of the configured prices,
    0 for a local model, None for an endpoint without prices.
    """

    prompts: int
    input_tokens: int
    output_tokens: int
    seconds: float | None
    cost: float | None
    cached: int = 0

    @property
    def words(self) -> str:
        """For a person."""
        if not self.prompts:
            return f"no requests: all {self.cached:,} are answered already" if self.cached else "no requests"
        known = f"; {self.cached:,} more are answered already" if self.cached else ""
        cost = "" if not self.cost else f", about {self.cost:.2f} at the configured prices"
        return (
            f"{self.prompts:,} requests, about {self.input_tokens:,} tokens in and {self.output_tokens:,} out"
            f"{cost}{known}"
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """What a generator gave. rejected: reason → how many (the reasons are the keys of REASONS).

    prompts: chunks asked about; reused: how many of them came from the cache; failed: requests given up.
    overlap: mean share of a query's content words that its passage holds: near 1, queries are too easy to tell
    retrievers apart.
    """

    queries: list[Query]
    rejected: Mapping[str, int] = field(default_factory=dict)
    prompts: int = 0
    reused: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    overlap: float = 0.0


class Generator(Protocol):
    """Answers prompts in lists, as they are finished. failed: how many prompts were given up so far."""

    failed: int

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[list[Answer]]: ...


def generate_queries(
    chunks: Sequence[Chunk],
    config: QueryConfig,
    *,
    seed: int,
    cache_path: Path,
    progress: Progress = no_progress,
    examples: Sequence[Query] = (),
) -> list[Query]:
    """The queries of `generate`; see there. How many were refused and why is logged."""
    return generate(chunks, config, seed=seed, cache_path=cache_path, progress=progress, examples=examples).queries


def generate(
    chunks: Sequence[Chunk],
    config: QueryConfig,
    *,
    seed: int,
    cache_path: Path,
    progress: Progress = no_progress,
    examples: Sequence[Query] = (),
) -> Generation:
    """Queries about the chunks, at most config.generator_queries, in the configured model's words.

    Kinds are "lm-question", "lm-keywords", "lm-problem", "lm-claim", evidence PARAPHRASE, the chunk as positive.
    examples: the user's own queries whose positives are among the chunks; they set tone and length. Pass those for
    training only: what is held out must not be shown to the model.
    The same seed, model and chunks give the same queries from a local model; an endpoint promises nothing, but what
    it answered once stays in cache_path (JSON lines, appended as answers come).
    Raises GeneratorFailed if the model cannot be used or gives up, ModelNotFound if it cannot be loaded,
    InvalidConfiguration if none is named. After an interruption, the same call goes on. What will be asked is logged
    first, as a warning where it goes to an endpoint: that may cost money.
    """
    prompts = _prompts(chunks, config, seed, examples)
    known = read_answers(cache_path)
    _announce(_estimate(prompts, known, config), config)
    missing = [prompt for prompt in prompts if prompt.key not in known]
    reused, failed, started = len(prompts) - len(missing), 0, time.monotonic()
    done = reused
    progress("generate", done, len(prompts))
    if missing:
        generator = _open(config)
        with AnswerLog(cache_path) as answer_log:
            for batch in generator.answers(missing):
                answer_log.append(batch)
                known.update({answer.key: answer for answer in batch})
                done += len(batch)
                progress("generate", done, len(prompts))
        failed = generator.failed
    result = _collect(prompts, known, config, reused, failed, time.monotonic() - started)
    _report(result)
    return result


def estimate(
    chunks: Sequence[Chunk],
    config: QueryConfig,
    *,
    seed: int = 13,
    cache_path: Path | None = None,
    examples: Sequence[Query] = (),
) -> RequestEstimate:
    """What `generate` with the same arguments will take. Loads no model and asks no server."""
    prompts = _prompts(chunks, config, seed, examples)
    return _estimate(prompts, read_answers(cache_path) if cache_path is not None else {}, config)


def _estimate(prompts: Sequence[Prompt], known: Mapping[str, Answer], config: QueryConfig) -> RequestEstimate:
    answered = [known[prompt.key] for prompt in prompts if prompt.key in known]
    missing = [prompt for prompt in prompts if prompt.key not in known]
    input_tokens = sum(estimate_tokens(chat_text(prompt)) for prompt in missing)
    output_tokens = sum(24 * len(prompt.kinds) for prompt in missing)
    cost: float | None = None
    if config.generator_url is None:
        cost = 0.0
    elif config.generator_input_price is not None and config.generator_output_price is not None:
        cost = (input_tokens * config.generator_input_price + output_tokens * config.generator_output_price) / 1e6
    pace = sum(answer.seconds for answer in answered) / len(answered) if answered else None
    return RequestEstimate(
        prompts=len(missing),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        seconds=None if pace is None else pace * len(missing),
        cost=cost,
        cached=len(answered),
    )


def estimate_tokens(text: str) -> int:
    """A language model's tokens in a text, roughly: four characters each, one where words have no spaces."""
    wide = sum(ord(character) >= 0x3000 for character in text)
    return math.ceil(wide + (len(text) - wide) / 4)


def choose_chunks(chunks: Sequence[Chunk], count: int, *, seed: int) -> list[Chunk]:
    """At most count chunks to ask about: each document gives one before any gives a second, in a seeded order.

    Chunks of fewer than MIN_WORDS words, of symbols more than letters, and repeats of equal content are passed over.
    The order of the input does not matter, and a document more or less changes few of the choices: the answers about
    the others, which may have been paid for, stay of use.
    """
    by_document: defaultdict[str, list[Chunk]] = defaultdict(list)
    seen: set[str] = set()
    for chunk in sorted(chunks, key=lambda chunk: (chunk.document_id, chunk.start, chunk.id)):
        if chunk.content_hash not in seen and _can_be_asked_about(chunk):
            seen.add(chunk.content_hash)
            by_document[chunk.document_id].append(chunk)
    documents = sorted(by_document, key=lambda document: _drawn(seed, document))
    for found in by_document.values():
        found.sort(key=lambda chunk: _drawn(seed, chunk.content_hash))
    chosen: list[Chunk] = []
    depth = 0
    while len(chosen) < count and documents:
        documents = [document for document in documents if len(by_document[document]) > depth]
        chosen.extend(by_document[document][depth] for document in documents)
        depth += 1
    return chosen[:count]


def _prompts(chunks: Sequence[Chunk], config: QueryConfig, seed: int, examples: Sequence[Query]) -> list[Prompt]:
    name = _generator_id(config)
    asked = min(config.per_chunk, MAX_ASKED, config.generator_queries)
    chosen = choose_chunks(chunks, math.ceil(config.generator_queries / asked), seed=seed)
    by_id = {chunk.id: chunk for chunk in chunks} if examples else {}
    # One more than shown: the passage asked about must not see its own queries.
    shown: list[QueryExample] = examples_from_queries(examples, by_id, count=EXAMPLES_SHOWN + 1, seed=seed)
    return [
        make_prompt(
            chunk,
            asked=asked,
            seed=seed,
            generator_id=name,
            examples=[example for example in shown if example.passage != chunk.passage][:EXAMPLES_SHOWN],
        )
        for chunk in chosen
    ]


def _drawn(seed: int, name: str) -> bytes:
    """A place in a seeded order that what else stands there does not change."""
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()


def _can_be_asked_about(chunk: Chunk) -> bool:
    letters = sum(character.isalpha() for character in chunk.text)
    visible = sum(not character.isspace() for character in chunk.text)
    least = MIN_WORDS * 2 / 3 if is_cjk(chunk.text) else MIN_WORDS  # denser: no articles, no prepositions
    return length(chunk.text) >= least and letters >= 0.5 * visible


def check_generator(config: QueryConfig) -> None:
    """Say before any work that no queries can be written as configured. Raises InvalidConfiguration."""
    if config.generator and config.generator_url:
        raise InvalidConfiguration(
            f"generator = {config.generator!r} and generator_url = {config.generator_url!r}: one model writes the "
            "queries. Remove one of them; the model's name at an endpoint is generator_model."
        )
    if config.generator_url:
        endpoint_url(config.generator_url)


def _generator_id(config: QueryConfig) -> str:
    """What tells generators apart in the cache; found without loading anything. Raises InvalidConfiguration."""
    check_generator(config)
    if config.generator_url:
        return endpoint_id(config)
    if not config.generator:
        raise InvalidConfiguration(
            "No language model is named. Set generator (a local model) or generator_url (an OpenAI-compatible "
            "endpoint)."
        )
    return f"local:{_weights(config.generator)}:t{config.generator_temperature}{token_limit_id(config)}"


def _weights(name: str) -> str:
    """A local model by folder name and weight bytes, so that moving it keeps the cache and retraining does not."""
    path = Path(name).expanduser()
    if path.is_file():
        return f"{path.name}:{path.stat().st_size}"
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as opened:
                opened.seek(-min(file.stat().st_size, 1 << 20), 2)
                digest.update(opened.read())
        return f"{path.resolve().name}:{sum(file.stat().st_size for file in files)}:{digest.hexdigest()[:12]}"
    return name


def _open(config: QueryConfig) -> Generator:
    if config.generator_url:
        return Endpoint(config)
    from ragadapt.queries.generators.local import LocalModel

    return LocalModel(config)


def _collect(
    prompts: Sequence[Prompt],
    known: Mapping[str, Answer],
    config: QueryConfig,
    reused: int,
    failed: int,
    seconds: float,
) -> Generation:
    queries: list[Query] = []
    rejected: Counter[str] = Counter()
    seen: set[str] = set()
    overlaps = []
    answers = [(prompt, known[prompt.key]) for prompt in prompts if prompt.key in known]
    if prompts and not answers:
        raise GeneratorFailed(f"None of {len(prompts)} passages was answered; see the log for the reasons.")
    for prompt, answer in answers:
        kept, refused = clean(answer, prompt, max_overlap=config.max_overlap)
        rejected.update(refused)
        for kind, text in kept:
            same = normalised(text)
            if same in seen:
                rejected["duplicate"] += 1
                continue
            seen.add(same)
            digest = hashlib.sha256(f"{prompt.chunk.id}\0{text}".encode()).hexdigest()
            queries.append(Query(f"lm-{digest[:16]}", text, f"lm-{kind}", Evidence.PARAPHRASE, (prompt.chunk.id,)))
            overlaps.append(lexical_overlap(text, prompt.chunk.passage))
    queries, overlaps = queries[: config.generator_queries], overlaps[: config.generator_queries]
    return Generation(
        queries=queries,
        rejected=dict(rejected.most_common()),
        prompts=len(prompts),
        reused=reused,
        failed=failed,
        input_tokens=sum(answer.input_tokens for _, answer in answers),
        output_tokens=sum(answer.output_tokens for _, answer in answers),
        seconds=seconds,
        overlap=sum(overlaps) / len(overlaps) if overlaps else 0.0,
    )


def _announce(expected: RequestEstimate, config: QueryConfig) -> None:
    paid = config.generator_url is not None and expected.prompts
    where = config.generator if config.generator_url is None else endpoint_url(config.generator_url)
    log.log(logging.WARNING if paid else logging.INFO, "questions by %s: %s", where, expected.words)


def _report(result: Generation) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.rejected.items()) or "none"
    log.info(
        "generated %d queries about %d passages (%d answers from the cache, %d failed); refused: %s; "
        "mean word overlap with the passage %.2f",
        len(result.queries),
        result.prompts,
        result.reused,
        result.failed,
        reasons,
        result.overlap,
    )
    if result.prompts and not result.queries:
        most = next(iter(result.rejected), "empty")
        log.warning("no query was fit for use; mostly because: %s", REASONS.get(most, most))

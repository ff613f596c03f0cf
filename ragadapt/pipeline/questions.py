"""evaluate_questions(): a saved retriever on judged questions, one by one, beside its own sides and beside another.

labels → what each question expects → rankings of each side → figures with intervals → why each was missed → report
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragadapt import report as reports
from ragadapt.checks import checked_k, checked_lam, checked_queries
from ragadapt.config import EncoderConfig
from ragadapt.errors import InvalidInput, InvalidLabels, RagadaptError
from ragadapt.evaluation import Evaluation, evaluate
from ragadapt.evaluation.questions import (
    DEPTH,
    MISSED,
    TOKENS,
    Asked,
    FoundBySide,
    Missed,
    Question,
    Wanted,
    quote_measures,
    why_missed,
)
from ragadapt.index import exact_index
from ragadapt.pipeline.report import LABELS, machine_of
from ragadapt.pipeline.stages import rows_kept_for
from ragadapt.queries import LabelledSet, document_finder, load_labels
from ragadapt.report.build import comparison_of, library_versions, with_holm
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import Background, Floats, Fusion
from ragadapt.search.reranking import Rerank, checked_rerank
from ragadapt.search.searcher import Mode, Searcher
from ragadapt.snapshot import Snapshot
from ragadapt.text import grouped
from ragadapt.values import Chunk, Progress, no_progress

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

Found = Sequence[Sequence[Chunk | str]]
Finder = Callable[[list[str]], Found]
"""Questions → for each what another search finds, best first: passages, or names of documents."""

RankChunks = Callable[[Sequence[int], int], list[list[str]]]
"""(numbers of questions, how many) → for each the ids of the best passages."""

_SHOWN = 20  # things that a question expects, of which the report says where they stand
_OTHER = "other"
_SAMPLES = 10_000  # of the bootstrap: a p-value that is multiplied by the number of rows needs small ones


@dataclass(frozen=True)
class _System:
    """What one way to search finds, by question. values: metric → query id → value."""

    name: str
    label: str
    rankings: Sequence[Sequence[Chunk]]
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def evaluate_questions(
    retriever: Retriever,
    queries: str | Path,
    qrels: str | Path | None = None,
    *,
    k: int = 10,
    against: Retriever | Finder | None = None,
    name: str = "the other retriever",
    base: bool = False,
    lam: float | None = None,
    tenant: str | None = None,
    rerank: bool | Rerank = False,
    seed: int = 13,
    progress: Progress = no_progress,
) -> reports.Report:
    """A report on every question: what it expects, where each side has it, and why it is not among the first k.

    queries, qrels: as for `Retriever.evaluate`, whose figures the report repeats, with paired intervals between dense,
    lexical and plain hybrid search, and what ships. against: another retriever to compare with, question by question,
    by measures that do not depend on how passages are cut; name: what the report calls it. base: also encode all
    passages with the untuned model, where its vectors are not at hand. lam, tenant, rerank: as for `search`.

    Write it with `ragadapt.report.write_report`. Raises InvalidLabels, InvalidInput.
    """
    k, lam = checked_k(k), checked_lam(lam)
    second = checked_rerank(rerank, 1, "hybrid")
    now = retriever.snapshot()
    chunks = list(now.chunks)
    labels = load_labels(queries, qrels, chunks=chunks)
    asked = Asked.of(labels, chunks)
    if against is not None and not asked.whole and not labels.evidence:
        _check_passages(against, asked, qrels)
    texts = checked_queries(question.text for question in asked.questions)
    systems = _own_systems(retriever, now, asked, texts, base, lam, tenant, second, progress)
    subject = systems[-1].name
    if against is not None:
        systems.insert(0, _other_system(against, name, asked, texts, lam, tenant))
    same = against is None
    systems = [_measured(system, asked, same) for system in systems]
    metric = "nDCG@10" if same or asked.whole or not labels.evidence else "RR@10"
    return _report(retriever, now, asked, systems, subject, metric, k, labels, seed)


# What each side finds


def _own_systems(
    retriever: Retriever,
    now: Snapshot,
    asked: Asked,
    texts: Sequence[str],
    base: bool,
    lam: float | None,
    tenant: str | None,
    second: Rerank | None,
    progress: Progress,
) -> list[_System]:
    """Dense, lexical and plain hybrid search, by the untuned model where it can be had, and what ships, last."""
    vectors = now.vectors_of(texts, tenant)
    trained = now.encoder.spec.adapter is not None and now.encoder.spec.adapter.scale != 0

    def by(mode: Mode, stage: Rerank | None = None) -> RankChunks:
        def rank(numbers: Sequence[int], deep: int) -> list[list[str]]:
            with now.lock.shared():
                now.whole()
                found = retriever._rank(
                    now,
                    [texts[at] for at in numbers],
                    vectors[list(numbers)],
                    deep,
                    mode,
                    lam,
                    tenant,
                    rerank=stage,
                )
            return [ranked.ids for ranked in found]

        return rank

    def plain(searcher: Searcher, rows: Floats, mode: Mode) -> RankChunks:
        rank = ranker(searcher, texts, rows, mode, Fusion(method="rrf"))

        def held(numbers: Sequence[int], deep: int) -> list[list[str]]:
            with now.lock.shared():
                return rank(numbers, deep)

        return held

    sides: dict[str, RankChunks] = {}
    untuned = _untuned(retriever, now, base, progress) if trained else None
    if untuned is not None:
        encoder, searcher = untuned
        rows = encoder.encode_queries(texts, progress=progress)
        sides["base-dense"] = plain(searcher, rows, "dense")
    elif not trained:
        searcher, rows = now.searcher, vectors
        sides["base-dense"] = by("dense")
    sides["bm25"] = by("lexical")
    if "base-dense" in sides:
        sides["base-hybrid"] = plain(searcher, rows, "hybrid")
    if trained:
        sides["fitted-dense"] = by("dense")
    sides["shipped"] = by("hybrid")
    if second is not None:
        sides["reranked"] = by("hybrid", second)
    made = []
    for done, (name, rank) in enumerate(sides.items(), start=1):
        ids = down_to_documents(rank, asked, len(texts)) if asked.whole else rank(range(len(texts)), DEPTH)
        made.append(_System(name, LABELS[name], [[asked.chunk_of[id] for id in found] for found in ids]))
        progress("search", done, len(sides))
    return made


def _check_passages(against: Retriever | Finder, asked: Asked, qrels: str | Path | None) -> None:
    """Raises InvalidLabels where the labels name passages by ids that mean nothing to the other retriever."""
    judged = {unit for grades in asked.judged.values() for unit in grades}
    there = against.chunks.find(list(judged)) if isinstance(against, Retriever) else {}
    if any(id not in there or there[id].text != asked.chunk_of[id].text for id in judged):
        raise InvalidLabels(
            f"{qrels} names passages by their ids, and the other retriever has other passages. Compare by judgements "
            "that name documents, or by quotes."
        )


def ranker(searcher: Searcher, texts: Sequence[str], vectors: Floats, mode: Mode, fusion: Fusion) -> RankChunks:
    """Search for some of the questions by a searcher. vectors: (Q, d) of the texts."""

    def rank(numbers: Sequence[int], deep: int) -> list[list[str]]:
        asked = list(numbers)
        found = searcher.rank([texts[at] for at in asked], vectors[asked], deep, mode, fusion=fusion)
        return [ranked.ids for ranked in found]

    return rank


def down_to_documents(rank: RankChunks, asked: Asked, count: int) -> list[list[str]]:
    """Passages of every question, so many that DEPTH documents are among them, as `Retriever.run` looks for them."""
    everything, documents = len(asked.chunks), len(asked.of_document)
    deep = max(1, min(everything, 4 * DEPTH))
    found: list[list[str]] = [[] for _ in range(count)]
    short = list(range(count))
    while short:
        for at, ids in zip(short, rank(short, deep), strict=True):
            found[at] = ids
        if deep >= everything:
            break
        short = [
            at
            for at in short
            if len(found[at]) >= deep
            and len({asked.chunk_of[id].document_id for id in found[at]}) < min(DEPTH, documents)
        ]
        deep = min(everything, 2 * deep)
    return found


def _untuned(retriever: Retriever, now: Snapshot, encode: bool, progress: Progress) -> tuple[Encoder, Searcher] | None:
    """The base model and a search over its vectors; None where they are not at hand and are not to be made."""
    from ragadapt.encoder import Encoder

    spec, fitted = now.encoder.spec, now.searcher
    assert spec.adapter is not None
    device, precision, _ = retriever._how
    try:
        encoder = Encoder.load(
            EncoderConfig.model_validate(
                {
                    "model": spec.model,
                    "revision": spec.revision,
                    "max_length": spec.max_length,
                    "query_prompt": spec.query_prompt,
                    "passage_prompt": spec.passage_prompt,
                    "device": device,
                    "precision": precision,
                }
            )
        )
    except RagadaptError as error:
        if encode:
            raise
        log.info("the base model cannot be loaded: %s", error)
        return None
    if encoder.fingerprint != spec.with_adapter(None).fingerprint:
        if encode:
            raise InvalidInput(f"{spec.model} was changed since the fit, so it cannot be compared with.")
        return None
    if spec.adapter.adapt == "query":  # the passages are the base's
        return encoder, fitted
    ids = fitted.lexical.ids()
    contents = now.chunks.hashes(ids)
    made, left = rows_kept_for(retriever.path, encoder, [contents[id] for id in ids])
    if left and not encode:
        return None
    if left:
        found = now.chunks.find([ids[at] for at in left])
        made[left] = encoder.encode_passages([found[ids[at]].passage for at in left], progress=progress)
    index = exact_index(ids, made)
    return encoder, Searcher(index, fitted.lexical, Background.of(made), Fusion(), depth=fitted.depth)


def _other_system(
    against: Retriever | Finder, name: str, asked: Asked, texts: list[str], lam: float | None, tenant: str | None
) -> _System:
    """Another retriever. Its documents have the names that they have here, where they can be told."""
    found: Found
    if isinstance(against, Retriever):
        deep = min(len(against), 4 * DEPTH if asked.whole else DEPTH)
        found = [[hit.chunk for hit in hits] for hits in against.search_many(texts, deep, lam=lam, tenant=tenant)]
    else:
        found = against(texts)
        if len(found) != len(texts):
            raise InvalidInput(
                f"{name!r} answered {len(found)} of {len(texts)} questions; it must give a list for each."
            )
    here = document_finder(asked.chunks)
    quoted = any(question.quotes for question in asked.questions) and not asked.whole

    def passage(one: Chunk | str) -> Chunk:
        if isinstance(one, str):
            if quoted:
                raise InvalidInput(
                    f"{name!r} gives {one!r}, a name, but quotes are looked for in the passages themselves. Let it "
                    "give passages: `as_passages` of langchain_ragadapt.evaluation or llama_index_ragadapt.evaluation."
                )
            one = Chunk(one, one, "", source=one)
        document = here(one.document_id) or (here(one.source) if one.source else None) or one.document_id
        return Chunk(one.id, document, one.text, one.heading_path, one.start, one.end, one.metadata, one.source)

    return _System(_OTHER, name, [[passage(one) for one in ranking] for ranking in found])


# Figures


def _measured(system: _System, asked: Asked, same: bool) -> _System:
    """With its figures."""
    return replace(system, values=values_of(system.rankings, asked, same))


def values_of(
    rankings: Sequence[Sequence[Chunk]], asked: Asked, same: bool, tokens: int = TOKENS
) -> dict[str, dict[str, float]]:
    """Metric → query id → value of what a search found, by question.

    same: what it is compared with searches the same passages, so that their ids can be judged; else documents and
    quotes are.
    """
    values: dict[str, dict[str, float]] = {}
    if same or asked.whole or not any(question.quotes for question in asked.questions):
        run = {}
        for question, ranking in zip(asked.questions, rankings, strict=True):
            if asked.whole:
                units = list(dict.fromkeys(chunk.document_id for chunk in ranking))[:DEPTH]
            elif same:
                units = [chunk.id for chunk in ranking]
            else:  # passages of the same id may be cut otherwise there
                units = [chunk.id for chunk in ranking if asked.chunk_of.get(chunk.id, chunk).text == chunk.text]
            run[question.id] = {unit: 1 / rank for rank, unit in enumerate(units, start=1)}
        values = {metric: dict(each) for metric, each in evaluate(run, asked.judged).per_query.items()}
    for question, ranking in zip(asked.questions, rankings, strict=True):
        if question.quotes:
            for metric, value in quote_measures(ranking[:DEPTH], question.quotes, tokens).items():
                if metric != "RR@10" or not (same or asked.whole):  # else it is that of the judged ids
                    values.setdefault(metric, {})[question.id] = value
    return values


def _report(
    retriever: Retriever,
    now: Snapshot,
    asked: Asked,
    systems: Sequence[_System],
    subject: str,
    metric: str,
    k: int,
    labels: LabelledSet,
    seed: int,
) -> reports.Report:
    by_name = {system.name: system for system in systems}
    ours = by_name[subject]
    evaluations = {
        system.name: Evaluation(
            system.values, {name: float(np.mean(list(each.values()))) for name, each in system.values.items()}
        )
        for system in systems
    }
    others = {name: evaluations[name] for name in by_name if name != subject}
    deltas = with_holm(
        reports.differences(subject, evaluations[subject], others, seed=seed, metrics=(metric,), samples=_SAMPLES),
        _SAMPLES,
    )
    judged = [
        _one_question(at, question, asked, by_name, ours, metric, k) for at, question in enumerate(asked.questions)
    ]
    reference = by_name.get(_OTHER) or by_name.get("base-hybrid") or by_name["bm25"]
    pairs = {question.id: at for at, question in enumerate(asked.questions) if question.id in ours.values[metric]}
    compared = [
        _side_by_side(asked.questions[at], at, judged[at], reference, ours, metric, asked) for at in pairs.values()
    ]
    reasons = Counter(each.missed for each in judged if each.missed)
    unit = "documents" if asked.whole else "quotes" if any(q.quotes for q in asked.questions) else "passages"
    facts = reports.QuestionsJudged(
        subject=subject,
        k=k,
        depth=DEPTH,
        unit=unit,
        sentence=_sentence(judged, k, unit, deltas, by_name.get(_OTHER)),
        systems=tuple(by_name),
        reasons={reason: reasons[reason] for reason in Missed if reasons[reason]},
        questions=tuple(judged),
        unread=labels.unread,
    )
    warnings = [f"Left out of the labels: {line}" for line in grouped(labels.unmatched)]
    if learnt := retriever.learnt_from(question.text for question in asked.questions):
        warnings.append(
            f"{learnt:,} of the {len(asked.questions):,} questions have trained this retriever: its figures on them "
            "are too good. Measure on others."
        )
    if now.encoder.spec.adapter is not None and "base-dense" not in by_name:
        warnings.append(
            "The untuned model is not among the rows, as its vectors of these passages are not at hand. --base "
            "(base=True) makes them."
        )
    return reports.Report(
        title="Questions, one by one",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=now.encoder.spec.model,
        evidence=reports.EvidenceUsed(tier="labelled", queries=len(asked.questions)),
        metric=metric,
        systems=tuple(
            reports.measured(
                system.name, system.label, evaluations[system.name], seed=seed, shipped=system.name == subject
            )
            for system in systems
        ),
        deltas=deltas,
        comparison=comparison_of(reference.label, ours.label, metric, compared),
        judged=facts,
        corpus=reports.CorpusFacts(documents=len(asked.of_document), chunks=len(asked.chunks)),
        warnings=tuple(warnings),
        configuration={"retriever": str(retriever.path), "fingerprint": now.encoder.fingerprint},
        seeds={"seed": seed},
        versions=library_versions(),
        machine=machine_of(now.encoder.precision),
    )


def _one_question(
    at: int, question: Question, asked: Asked, systems: Mapping[str, _System], ours: _System, metric: str, k: int
) -> reports.QuestionJudged:
    dense = systems.get("fitted-dense") or systems["base-dense"]
    found = FoundBySide(
        ours.rankings[at],
        dense.rankings[at][:DEPTH],
        systems["bm25"].rankings[at][:DEPTH],
        systems["shipped"].rankings[at] if ours.name == "reranked" else None,
    )
    if asked.whole:  # a document's rank counts documents
        found = FoundBySide(ours.rankings[at], dense.rankings[at], systems["bm25"].rankings[at], found.first_stage)
    expected = []
    for wanted in question.wanted[:_SHOWN]:
        ranks = {name: wanted.rank(system.rankings[at]) for name, system in systems.items()}
        seen = {name: rank for name, rank in ranks.items() if rank is not None and rank <= DEPTH}
        missed, why = "", ""
        if seen.get(ours.name, k + 1) > k:
            reason, why = why_missed(wanted, found, asked, k)
            missed = reason.value
        expected.append(
            reports.ExpectedAnswer(
                text=_clipped(wanted.text), source=wanted.source, passage=_held(wanted, asked), ranks=seen,
                missed=missed, why=why,
            )
        )  # fmt: skip
    answered = [each for each in expected if not each.missed]
    main = None if answered or not expected else min(expected, key=lambda each: each.ranks.get(ours.name, DEPTH + 1))
    places = {side: {chunk.id: rank for rank, chunk in enumerate(ranking, start=1)} for side, ranking in
              (("dense", found.dense[:DEPTH]), ("lexical", found.lexical[:DEPTH]))}  # fmt: skip
    return reports.QuestionJudged(
        id=question.id,
        query=question.text,
        values={name: s.values[metric][question.id] for name, s in systems.items() if question.id in s.values[metric]},
        expected=tuple(expected),
        found=tuple(
            reports.FoundPassage(
                passage=_passage(chunk, 300),
                right=any(wanted.held_by(chunk) for wanted in question.wanted),
                ranks={side: ranks[chunk.id] for side, ranks in places.items() if chunk.id in ranks},
            )
            for chunk in ours.rankings[at][:k]
        ),
        missed=main.missed if main else "",
        why=main.why if main else "",
        partly=main is None and len(answered) < len(expected),
    )


def _held(wanted: Wanted, asked: Asked) -> reports.Passage | None:
    """The passage that answers best, in full as far as a page shows it."""
    if wanted.whole:
        first = asked.of_document.get(wanted.document or "", [])
        return _passage(first[0]) if first else None
    return _passage(asked.chunk_of[wanted.holders[0]]) if wanted.holders else None


def _passage(chunk: Chunk, most: int = 600) -> reports.Passage:
    return reports.Passage(
        id=chunk.id, text=_clipped(chunk.text, most), heading=" > ".join(chunk.heading_path), source=chunk.source
    )


def _clipped(text: str, most: int = 600) -> str:
    return text if len(text) <= most else text[:most].rstrip() + " …"


def _side_by_side(
    question: Question,
    at: int,
    judged: reports.QuestionJudged,
    before: _System,
    after: _System,
    metric: str,
    asked: Asked,
) -> reports.QueryComparison:
    sides = []
    for system in (before, after):
        ranking = system.rankings[at]
        ranks = [rank for wanted in question.wanted if (rank := wanted.rank(ranking)) is not None and rank <= DEPTH]
        sides.append(
            reports.QueryResult(
                rank=min(ranks, default=None),
                first=_passage(ranking[0]) if ranking else None,
                value=system.values[metric][question.id],
            )
        )
    return reports.QueryComparison(
        id=question.id,
        query=question.text,
        before=sides[0],
        after=sides[1],
        expected=next((each.passage for each in judged.expected if each.passage is not None), None),
    )


def _sentence(
    judged: Sequence[reports.QuestionJudged],
    k: int,
    unit: str,
    deltas: Sequence[reports.Delta],
    other: _System | None,
) -> str:
    missed = Counter(each.missed for each in judged if each.missed)
    partly = sum(each.partly for each in judged)
    what = {"quotes": "the text that answers them", "documents": "a document that answers them"}.get(
        unit, "a passage that answers them"
    )
    total, misses = len(judged), sum(missed.values())
    text = f"{total - misses} of {total} questions have {what} among the first {k} results"
    if partly:
        text += f", {partly} of them only part of it"
    text += "."
    if misses:
        reason, count = missed.most_common(1)[0]
        others = f"Of the {misses} others most often ({count})"
        if count == misses:
            others = f"All {misses} others" if misses > 1 else "The other one"
        text += f" {others}: {MISSED[Missed(reason)]}."
    if other is not None:
        delta = next(each for each in deltas if each.against == _OTHER)
        found = delta.interval
        p = 1.0 if delta.p is None else delta.p
        side = "better than" if found.better and p <= 0.05 else "worse than" if found.worse and p <= 0.05 else ""
        verdict = f"is {side}" if side else "cannot be told from"
        text = (
            f"What ships {verdict} {other.label}: {delta.metric} {found.delta:+.3f} ({found.confidence:.0%} interval "
            f"{found.low:+.3f} to {found.high:+.3f}). {text}"
        ).replace("-0.", "−0.")
    return text


__all__ = ["TOKENS", "Finder", "down_to_documents", "evaluate_questions", "ranker", "values_of"]

"""What a fit found out, as a report: systems side by side on held-out queries, wins and losses, curves, facts."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt import report as reports
from ragadapt.corpus import notes_of
from ragadapt.evaluation import Evaluation, evaluate, gate
from ragadapt.evaluation.forecast import Forecast
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.evaluation.metrics import Run
from ragadapt.pipeline.arena import Arena, dense_scores
from ragadapt.pipeline.corpus import Corpus
from ragadapt.pipeline.crossfit import Rankings, fused
from ragadapt.pipeline.fusion import DEPTH, LearntFusion, System, ranking
from ragadapt.pipeline.rerank import LearntReranking
from ragadapt.profiling import Profile
from ragadapt.report import build
from ragadapt.report.build import library_versions
from ragadapt.report.words import judges
from ragadapt.search.confidence import FIXED, Confidence
from ragadapt.search.fusion import Floats, Fusion, Positions
from ragadapt.text import printable
from ragadapt.values import Chunk, Document, Evidence

if TYPE_CHECKING:
    from ragadapt.encoder import Precision

LABELS = {
    "base-dense": "base model, dense",
    "bm25": "BM25",
    "base-hybrid": "base hybrid (RRF)",
    "base-fused": "base, learnt fusion",
    "fitted-dense": "fitted model, dense",
    "shipped": "fitted retriever (default search)",
    "reranked": "default search, re-ranked",
}
_FLATTERING = "cut from the passages themselves, so BM25 looks better here than with users' own questions"


@dataclass(frozen=True)
class Facts:
    """All that the stages of a fit know and a report shows."""

    documents: Sequence[Document]
    skipped: Sequence[Any]
    corpus: Corpus
    evidence: Evidence | None
    judged: int
    plan: gate.Plan
    decision: gate.Decision
    fusion: LearntFusion
    made: Mapping[str, int]
    kept: Mapping[str, int]
    sizes: Mapping[str, int]  # queries by part
    documents_by_part: Mapping[str, int]
    leaked: int
    negatives: tuple[int, int] | None  # that answer held-out queries, and all; None where nothing was trained
    warnings: Sequence[str]
    history: Sequence[Mapping[str, Any]]
    strengths: Mapping[float, float]
    strength: float | None
    checks: Sequence[Mapping[str, Any]]
    timings: Mapping[str, float]
    configuration: Mapping[str, Any]
    seed: int
    base_model: str
    licences: Mapping[str, str]
    precision: Precision | None = None  # of the encoder that ships
    profile: Profile | None = None
    outlook: Mapping[str, Forecast] = field(default_factory=dict)
    second: LearntReranking | None = None
    sure: Confidence = FIXED


@dataclass(frozen=True, eq=False)
class AfterTraining:
    """What the trained model finds for the judging queries. runs: by name; answers, others: its dense scores of the
    answers and of each query's best other passage."""

    runs: Mapping[str, Run]
    answers: Floats
    others: Floats

    @classmethod
    def by(cls, arena: Arena) -> AfterTraining:
        """Of held-out queries, searched by the model that ships."""
        return cls(runs(arena, {"fitted-dense": "dense", "shipped": "hybrid"}), *dense_scores(arena))

    @classmethod
    def out_of_fold(cls, arena: Arena, found: Rankings, fusions: Sequence[Fusion]) -> AfterTraining:
        """Of queries that all train, each searched by a model and under a mix that did not see it."""
        hybrid = fused(found.candidates[fusions[0].feedback], fusions)
        return cls(
            {"fitted-dense": run_of(arena, found.dense), "shipped": run_of(arena, hybrid)}, found.answers, found.others
        )


def runs_of_base(arena: Arena, fusions: Sequence[Fusion] | None) -> dict[str, Run]:
    """What the untuned baselines and the base's tuned search find. fusions: one for each query, where the mix was
    learnt from these very queries; None = the arena's."""
    made = runs(arena, {"base-dense": "dense", "bm25": "lexical", "base-hybrid": "rrf"})
    if fusions is None:
        return made | runs(arena, {"base-fused": "hybrid"})
    return made | {"base-fused": run_of(arena, fused(arena.candidates(fusions[0]), fusions))}


def runs(arena: Arena, systems: Mapping[str, System], *, k: int = DEPTH) -> dict[str, Run]:
    """Name → run over unit ids (documents where documents were judged)."""
    return {name: run_of(arena, ranking(arena, system, k=k)) for name, system in systems.items()}


def run_of(arena: Arena, rankings: Sequence[Positions]) -> Run:
    """Ranked positions of every judged query as a run over unit ids. A score is minus the rank."""
    run: dict[str, dict[str, float]] = {}
    for item, positions in zip(arena.judged, rankings, strict=True):
        names = [unit_name(item, unit, arena) for unit in item.units(positions)]
        run[item.query.id] = {id: -float(rank) for rank, id in enumerate(names, start=1)}
    return run


def judgements(arena: Arena) -> dict[str, dict[str, int]]:
    """Query id → unit id → grade."""
    return {
        item.query.id: {unit_name(item, unit, arena): int(grade) for unit, grade in item.relevant.items()}
        for item in arena.judged
    }


def unit_name(item: JudgedQuery, unit: int, arena: Arena) -> str:
    """A document's or a chunk's id."""
    if item.unit_names is not None:
        return item.unit_names[unit]
    return arena.searcher.ids_of([unit])[0]


def build_report(
    facts: Facts, base: Arena | None, before: Mapping[str, Run] | None, after: AfterTraining | None
) -> reports.Report:
    """The report. base: the judging queries, None where nothing is judged; before: the baselines' runs of them; after:
    what an adapted model that ships finds."""
    measured: dict[str, Any] = {}
    if base is not None and before is not None and base.judged:
        measured = _measure(facts, base, before, after)
    decision = facts.decision
    warnings = list(facts.warnings)
    if facts.evidence is Evidence.CROP:
        warnings.append(
            f"The held-out queries were {_FLATTERING}. Give labelled questions (--queries) for real figures."
        )
    elif facts.evidence is None:
        warnings.append("No held-out queries: nothing was measured. Give labelled questions (--queries).")
    return reports.Report(
        title="Fitted retriever",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=facts.base_model,
        verdict=reports.VerdictFacts(
            outcome=decision.verdict.value,
            reasons=decision.reasons,
            steps=_steps(facts),
            shipped=_shipped_words(decision, facts.fusion.fusion, facts.second),
            untrained="" if facts.plan.train else facts.plan.reason,
        ),
        evidence=None
        if facts.evidence is None
        else reports.EvidenceUsed(
            tier=facts.evidence.value,
            queries=facts.judged,
            crossed=bool(facts.plan.crossed),
            note=_FLATTERING if facts.evidence is Evidence.CROP else "",
        ),
        fusion=_fusion_curve(facts.fusion),
        interpolation=_strength_curve(facts),
        curves=(
            *(_outlook_curve(name, seen) for name, seen in facts.outlook.items()),
            *_rerank_curves(facts.second),
        ),
        learning=tuple(
            reports.LearningPoint(step=point["step"], loss=point.get("loss"), dev=point.get("dev"))
            for point in facts.history
        ),
        checks=tuple(reports.AdapterCheck(**check) for check in facts.checks),
        corpus=corpus_facts(facts.documents, facts.corpus, facts.skipped),
        queries=tuple(
            reports.QueryYield(kind=kind, evidence=_evidence_of(kind), made=count, kept=facts.kept.get(kind, 0))
            for kind, count in sorted({**dict.fromkeys(facts.kept, 0), **facts.made}.items())
        ),
        split=reports.SplitSizes(
            train=facts.sizes["train"],
            dev=facts.sizes["dev"],
            heldout=facts.sizes["heldout"],
            leaked=facts.leaked,
            heldout_negatives=None if facts.negatives is None else facts.negatives[0],
            negatives=None if facts.negatives is None else facts.negatives[1],
            documents=dict(facts.documents_by_part),
        ),
        timings=_timings(facts),
        warnings=tuple(warnings),
        configuration=dict(facts.configuration),
        seeds={"seed": facts.seed},
        versions=library_versions(),
        machine=machine_of(facts.precision),
        licences=tuple(reports.Licence(what=what, licence=text) for what, text in facts.licences.items()),
        **measured,
    )


def machine_of(precision: Precision | None) -> dict[str, str]:
    """Where the figures come from. precision: how the encoder computed; None = not known."""
    machine = {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()}
    if precision is not None:
        machine |= {
            "device": precision.device,
            "precision": precision.dtype,
            "precision chosen because": precision.reason,
            "least cosine with float32": f"{precision.min_cosine:.5f}",
            "rank agreement with float32": f"{precision.rank_agreement:.3f}",
        }
    return machine


def _timings(facts: Facts) -> tuple[reports.Timing, ...]:
    made = []
    for stage, seconds in facts.timings.items():
        works = facts.profile.of_stage(stage, seconds) if facts.profile else ()
        made.append(
            reports.Timing(
                stage=stage,
                seconds=round(seconds, 3),
                work=tuple(reports.WorkDone(**asdict(done)) for done in works),
            )
        )
    return tuple(made)


def _measure(facts: Facts, base: Arena, before: Mapping[str, Run], after: AfterTraining | None) -> dict[str, Any]:
    corpus, found = facts.corpus, dict(before)
    if after is not None:
        found |= after.runs
    else:
        found["shipped"] = found.pop("base-fused")
    qrels = judgements(base)
    evaluations: dict[str, Evaluation] = {name: evaluate(run, qrels) for name, run in found.items()}
    seed = facts.seed
    systems = [
        build.measured(name, LABELS[name], evaluation, seed=seed, shipped=name == "shipped")
        for name, evaluation in evaluations.items()
    ]
    baselines = {name: evaluations[name] for name in build.BASELINES}
    deltas = list(build.differences("shipped", evaluations["shipped"], baselines, seed=seed))
    if "fitted-dense" in evaluations:
        dense = {"base-dense": evaluations["base-dense"]}
        deltas += build.differences("fitted-dense", evaluations["fitted-dense"], dense, seed=seed)
    texts = {item.query.id: item.query.text for item in base.judged}
    kinds = {item.query.id: item.query.kind for item in base.judged}
    by_unit = _first_chunks(corpus)
    untuned, shipped = ((LABELS[name], found[name], evaluations[name]) for name in ("base-hybrid", "shipped"))

    def passage(id: str) -> reports.Passage | None:
        chunk = by_unit.get(id)
        return None if chunk is None else _shown(chunk)

    return {
        "systems": tuple(systems),
        "deltas": tuple(deltas),
        "distributions": _distributions(base, after),
        "comparison": build.compare(texts, qrels, untuned, shipped, passage, kinds=kinds),
        "failures": reports.Failures(
            worst=build.worst_queries(texts, qrels, untuned, shipped, passage, kinds=kinds),
            never_retrieved=build.never_retrieved(found["shipped"], sorted(_units(base, corpus)), passage),
        ),
    }


def _distributions(base: Arena, adapted: AfterTraining | None) -> reports.ScoreDistributions:
    """Dense scores of answers and of the best other passages, by the base and by the adapted model; the same bins."""
    before, after = dense_scores(base), None if adapted is None else (adapted.answers, adapted.others)
    edges = build.histogram(*(np.concatenate(side) for side in zip(before, after or before, strict=True))).edges
    return reports.ScoreDistributions(
        before=build.histogram(*before, edges=edges),
        after=None if after is None else build.histogram(*after, edges=edges),
    )


def _units(arena: Arena, corpus: Corpus) -> set[str]:
    if any(item.unit_names is not None for item in arena.judged):
        return set(corpus.document_of.values())
    return set(corpus.ids)


def _first_chunks(corpus: Corpus) -> dict[str, Chunk]:
    """Chunk id → chunk, and document id → its first chunk."""
    found: dict[str, Chunk] = {}
    for chunk in corpus.chunks:
        found.setdefault(chunk.document_id, chunk)
        found[chunk.id] = chunk
    return found


def _shown(chunk: Chunk) -> reports.Passage:
    text = chunk.text if len(chunk.text) <= 600 else chunk.text[:600] + " …"
    return reports.Passage(id=chunk.id, text=text, heading=" > ".join(chunk.heading_path), source=chunk.source)


def _steps(facts: Facts) -> tuple[reports.Step, ...]:
    decision = facts.decision
    steps = [
        reports.Step(
            name="Is there evidence to judge a trained model?", passed=facts.plan.goes_on, detail=facts.plan.reason
        )
    ]
    if facts.strength is not None:
        tried = ", ".join(f"{strength:g}: {score:.3f}" for strength, score in sorted(facts.strengths.items()))
        whose = (
            " of queries; passages keep the base's vectors"
            if facts.configuration["adapter"]["adapt"] == "query"
            else ""
        )
        detail = f"strength {facts.strength:g} of the adapter{whose}" + (
            f" (dev nDCG@10 by strength: {tried})" if tried else ""
        )
        steps.append(reports.Step(name="How far from the base?", detail=detail))
        steps.append(
            reports.Step(
                name="Better on queries that it did not see?",
                passed=None if decision.verdict is gate.Verdict.LIKELY_GAIN else decision.adapted,
                detail="; ".join(decision.reasons),
            )
        )
    if facts.outlook:
        steps.append(reports.Step(name="What would change the verdict?", detail=_outlook_words(facts)))
    steps.append(
        reports.Step(name="Fusion", detail=f"dense share {facts.fusion.fusion.weight:g}: {facts.fusion.reason}")
    )
    if facts.second is not None:
        second = facts.second
        passed = None if second.interval is None else second.ships
        detail = f"{second.model}, share {second.weight:g}, {second.depth} passages a query: {second.reason}"
        if second.training:
            steps.append(reports.Step(name="Training of the re-ranker", detail=second.training))
        steps.append(reports.Step(name="Re-ranker", passed=passed, detail=detail))
    steps.append(reports.Step(name="How sure is a hit?", detail=facts.sure.reason))
    return tuple(steps)


def _rerank_curves(second: LearntReranking | None) -> tuple[reports.Curve, ...]:
    if second is None or second.curve is None:
        return ()
    curve = reports.Curve.through(
        zip(second.curve.weights, second.curve.quality, strict=True),
        title="Share of the re-ranker",
        x_label="share of the re-ranker (0 = the first stage alone)",
        chosen=second.weight,
        note=second.reason,
    )
    return (curve,)


def _shipped_words(decision: gate.Decision, fusion: Fusion, second: LearntReranking | None = None) -> str:
    model = "the base model"
    if decision.adapted:
        model = (
            "the adapted model" if decision.strength == 1 else f"the adapted model at strength {decision.strength:g}"
        )
    words = f"{model} with learnt hybrid search (dense share {fusion.weight:g})"
    return words if second is None or not second.ships else f"{words}, and {second.model} as the re-ranker"


def _fusion_curve(learnt: LearntFusion) -> reports.Curve | None:
    if learnt.curve is None or not learnt.curve.queries:
        return None
    points = tuple(
        reports.CurvePoint(x=weight, y=value)
        for weight, value in zip(learnt.curve.weights, learnt.curve.quality, strict=True)
    )
    return reports.Curve(
        points=points,
        title="Fusion weight",
        x_label="share of the dense side",
        chosen=learnt.fusion.weight,
        note=learnt.reason,
    )


def _strength_curve(facts: Facts) -> reports.Curve | None:
    if not facts.strengths:
        return None
    return reports.Curve(
        points=tuple(reports.CurvePoint(x=x, y=y) for x, y in sorted(facts.strengths.items())),
        title="From base to adapted",
        x_label="strength of the adapter (0 = base)",
        chosen=facts.decision.strength,
    )


def _outlook_words(facts: Facts) -> str:
    """How many queries would prove a gain, of the kind of search that needs fewer."""
    asked = "labelled questions" if facts.plan.evidence is Evidence.LABELLED else "questions by the language model"
    judges = f"{len(facts.plan.judge)} {asked} that judge"
    seen = [(one.needed, name) for name, one in facts.outlook.items() if one.needed is not None]
    curve = all(len(one.measured) > 1 for one in facts.outlook.values())
    so_far = "it did so far" if curve else "such gains mostly do"
    if not seen:
        return f"Not more of the same: the {judges} show no gain that grows. Another base model may bring more."
    (middle, low, high), name = min(seen)
    most = f"{high:,}" if high is not None else "more than can be said"
    return (
        f"About {middle:,} {asked} in all would prove the gain of {name} that the {judges} show "
        f"(80 % of the forecasts lie between {low:,} and {most}), if it grows as {so_far}."
    )


def _outlook_curve(name: str, seen: Forecast) -> reports.Curve:
    """The gain over the number of queries that train: measured, then forecast."""
    points = [reports.CurvePoint(x=size, y=one.delta, low=one.low, high=one.high) for size, one in seen.measured]
    points += [reports.CurvePoint(x=size, y=middle, low=low, high=high) for size, middle, low, high in seen.ahead]
    largest = seen.measured[-1][0]
    return reports.Curve(
        points=tuple(points),
        title=f"Gain of {name} by the number of queries",
        x_label="queries that train",
        y_label="gain in nDCG@10",
        levels={"no gain": 0.0},
        note=f"Measured up to {largest} with 95 % intervals; beyond, a power law with 80 % of its forecasts.",
    )


def corpus_facts(documents: Sequence[Document], corpus: Corpus, skipped: Sequence[Any]) -> reports.CorpusFacts:
    """What was read, and what of it was not."""
    notes = notes_of(documents)
    return reports.CorpusFacts(
        documents=len(documents),
        chunks=len(corpus.chunks),
        characters=sum(len(document.text) for document in documents),
        near_duplicates=len(corpus.chunks) - len(set(corpus.groups)),
        skipped=tuple(reports.SkippedSource(source=item.source, reason=item.reason) for item in skipped[:200]),
        skipped_total=len(skipped),
        notes=tuple(reports.SkippedSource(source=note.source, reason=note.reason) for note in notes[:200]),
        notes_total=len(notes),
    )


def _evidence_of(kind: str) -> str:
    from ragadapt.queries.kinds import evidence_of

    return evidence_of(kind).value


_MARKUP = re.compile(r"[\\`<>\[\]|]")


def as_markdown(text: str) -> str:
    """Text on one line of Markdown that is nothing but text: no link, no HTML, no cell of a table."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", printable(text))


def model_card(report: reports.Report) -> str:
    """The folder's README: data, method, figures, licences."""
    lines = ["# Retriever fitted by ragadapt", ""]
    if report.verdict is not None:
        lines += [f"**{report.verdict.outcome}**: ships {as_markdown(report.verdict.shipped)}.", ""]
        lines += [f"- {as_markdown(reason)}" for reason in report.verdict.reasons] + [""]
    if report.corpus is not None:
        lines += [f"Data: {report.corpus.documents} documents, {report.corpus.chunks} passages.", ""]
    lines += [f"Base model: {as_markdown(report.base_model)}.", ""]
    if "precision" in report.machine:
        machine = report.machine
        agrees = (
            f": least cosine with float32 {machine['least cosine with float32']}, rank agreement "
            f"{machine['rank agreement with float32']}"
        )
        computed = f"Computed in {machine['precision']} on {machine['device']}"
        lines += [computed + (agrees if machine["precision"] != "float32" else "") + ".", ""]
    if report.systems:
        metric = report.metric
        lines += [f"| system | {metric} |", "| --- | --- |"]
        for system in report.systems:
            value = system.metrics[metric]
            interval = "" if value.low is None or value.high is None else f" [{value.low:.3f}, {value.high:.3f}]"
            lines.append(f"| {as_markdown(system.label)} | {value.value:.3f}{interval} |")
        lines.append("")
    if report.evidence is not None:
        lines += [f"Measured on {judges(report.evidence)} ({report.evidence.tier}).", ""]
    lines += [
        "Licences: " + "; ".join(as_markdown(f"{item.what}: {item.licence}") for item in report.licences) + ".",
        "",
    ]
    lines += [f"- {as_markdown(warning)}" for warning in report.warnings]
    return "\n".join(lines).rstrip() + "\n"


__all__ = ["Facts", "build_report", "judgements", "model_card", "runs"]

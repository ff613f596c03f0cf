"""How sure a search is: probabilities that fall with the rank, mean the same in every kind of search, and can be wrong
only as far as is said."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_retriever import fit_pages, write_pages
from tiny_models import write_tiny_model

from ragadapt.config import FitConfig, GateConfig
from ragadapt.errors import InvalidInput, StoreCorrupt
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.index import exact_index
from ragadapt.lexical import LexicalIndex
from ragadapt.pipeline.confidence import (
    HITS,
    JudgedHits,
    calibration_error,
    fit_platt,
    learn_confidence,
    learn_reread,
    log_loss,
)
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.rerank import LearntReranking
from ragadapt.retriever import Retriever
from ragadapt.search.confidence import FIXED, VERSION, Confidence, Reread, Signals, logits, probability
from ragadapt.search.fusion import Background, Candidates, Fusion, ReadCandidates
from ragadapt.search.searcher import Plain, Searcher
from ragadapt.store.workspace import MANIFEST, Manifest
from ragadapt.values import Chunk, Evidence, Query

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))

import confidence as benchmark  # noqa: E402

# What it is made of


def candidates(count: int, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    dense, lexical = rng.normal(1, 2, count), rng.exponential(3, count)
    return Candidates(
        np.arange(count),
        dense.astype(np.float32),
        lexical.astype(np.float32),
        nearness=float(rng.uniform(0.1, 0.8)),
        coverage=float(rng.uniform(0.1, 0.8)),
    )


@given(st.integers(1, 60), st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_no_hit_is_surer_than_the_one_before_it(count: int, seed: int, weight: float) -> None:
    found = candidates(count, seed)
    scores = found.fused(Fusion(weight=weight))
    order = np.argsort(-scores, kind="stable")
    sure = FIXED.of_hybrid(found, order, scores)
    assert sure.shape == (count,) and (sure >= 0).all() and (sure <= 1).all()
    assert (np.diff(sure) <= 0).all()


def test_the_probability_is_the_formula() -> None:
    found = candidates(30)
    scores = found.fused(Fusion())
    order = np.argsort(-scores, kind="stable")
    weights = FIXED.hybrid
    here = weights.here + weights.nearness * found.nearness + weights.coverage * found.coverage  # type: ignore[operator]
    margin = scores[order[0]] - scores[order[9]]
    hits = [weights.hit + weights.margin * margin + weights.gap * (scores[order[0]] - scores[at]) for at in order]
    for slope, shift in ((1.0, 0.0), (0.5, 1.0)):
        sure = replace(FIXED, slope=slope, shift=shift).of_hybrid(found, order, scores)
        expected = [1 / (1 + np.exp(-here)) / (1 + np.exp(-(slope * hit + shift))) for hit in hits]
        assert sure == pytest.approx(expected, rel=1e-5)


def test_a_hit_is_sure_alone_where_its_passage_is_near_and_apart() -> None:
    near, far = (Signals(nearness, 0.5, 30.0, np.array([40.0, 8.0], np.float32)) for nearness in (0.8, 0.0))
    (here, hits), (nowhere, _) = logits(FIXED.hybrid, near), logits(FIXED.hybrid, far)
    assert probability(here) > 0.9 > 0.1 > probability(nowhere)
    assert probability(hits[0]) > 0.7 > 0.1 > probability(hits[1])


def test_nothing_found_is_no_error() -> None:
    nothing = np.zeros(0, np.float32)
    assert FIXED.of_dense(nothing, 0.0, 1.0, 0.0).shape == (0,)
    assert FIXED.of_lexical(nothing, 0.0, 1.0, 1.0).shape == (0,)
    empty = Candidates(np.zeros(0, np.int64), nothing, nothing, 0.0, 0.0)
    assert FIXED.of_hybrid(empty, np.zeros(0, np.int64), nothing).shape == (0,)


def test_the_fixed_map_is_what_the_benchmark_fitted() -> None:
    measured = json.loads((ROOT / "docs" / "confidence.json").read_text(encoding="utf-8"))
    for kind, weights in measured["maps"].items():
        assert asdict(getattr(FIXED, kind)) == pytest.approx(weights, abs=6e-4), kind
    assert all(row["AUC"]["confidence"] >= 0.9 for row in measured["collections"].values())
    assert len(measured["collections"]) >= 9


def made_up(name: str, seed: int, apart: float) -> Any:
    """What a search found of its own questions, nearer by `apart`, of others', and of its own without their answers."""
    rng = np.random.default_rng(seed)
    source = np.array([name] * 30 + ["elsewhere"] * 20 + ["far away"] * 20 + [benchmark.REMOVED] * 10)
    own = (source == name).astype(float)
    near = rng.normal(0.3 + apart * own, 0.05)
    signals = np.stack([near, near, rng.uniform(5, 30, len(source))], axis=1)
    gaps = np.sort(rng.uniform(0, 20, (len(source), HITS)), axis=1)
    gaps[:, 0] = 0
    answers = (rng.random(gaps.shape) < 0.7 * np.exp(-gaps / 5)) * own[:, None]
    kinds = dict.fromkeys(benchmark.KINDS)
    raw = dict.fromkeys(("fused", "cosine", "BM25"), near)
    return benchmark.Found(
        name, source, dict.fromkeys(kinds, signals), dict.fromkeys(kinds, gaps), dict.fromkeys(kinds, answers), raw
    )


def test_a_collection_has_no_say_in_the_map_that_judges_it(tmp_path: Path) -> None:
    first, *others = (made_up(name, seed, 0.4) for seed, name in enumerate("abcd"))
    options, maps = benchmark.maps_without(first, [first, *others])
    other = made_up("a", 99, -0.4)  # everything the other way round
    assert benchmark.maps_without(other, [other, *others]) == (options, maps)
    assert (
        benchmark.maps_without(others[0], [first, *others])[1] != benchmark.maps_without(others[0], [other, *others])[1]
    )
    assert maps["hybrid"].nearness > 0 > maps["hybrid"].gap
    assert (
        benchmark.figures(first, maps)["AUC"]["confidence"]
        > 0.9
        > 0.1
        > benchmark.figures(other, maps)["AUC"]["confidence"]
    )
    first.save(tmp_path / "a.found-by-all.npz")
    again = benchmark.Found.load(tmp_path / "a.found-by-all.npz")
    assert benchmark.figures(again, maps) == benchmark.figures(first, maps)
    table = benchmark.shown(benchmark.study([first, *others]))
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 6


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    right, wrong = np.array([0.9, 0.5, 0.5]), np.array([0.5, 0.1])
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    assert benchmark.auc(right, wrong) == pytest.approx(np.mean(pairs))


def test_a_map_is_read_back_as_it_was_written() -> None:
    adjusted = replace(FIXED, slope=0.8, shift=-0.3, evidence="labelled", queries=40, reason="so")
    assert Confidence.of_section(json.loads(json.dumps(adjusted.section()))) == adjusted
    assert Confidence.of_section(None) is FIXED
    assert Confidence.of_section({"version": VERSION + 1, "other": 1}) is FIXED


WORDS = [
    "red",
    "green",
    "blue",
    "fox",
    "dog",
    "cat",
    "runs",
    "sleeps",
    "eats",
    "fast",
    "slow",
    "apple",
    "river",
    "stone",
]


@pytest.fixture(scope="module")
def searcher() -> Searcher:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(60)]
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"c{number}" for number in range(60)]
    return Searcher(
        exact_index(ids, vectors),
        LexicalIndex.build(ids, texts),
        Background.of(vectors),
        Fusion(feedback=0.0),
        depth=20,
    )


def test_nearness_and_coverage_are_what_they_say(searcher: Searcher) -> None:
    """1 for a vector that equals the query, 0 for the cosine of passages at random; the share of the words' idf."""
    query, vector = "red fox unheard", searcher.index.vectors(["c7"])
    (found,) = searcher.candidates([query], vector)
    assert found.nearness == pytest.approx(1, abs=1e-5)
    vectors = searcher.index.vectors([f"c{at}" for at in range(60)])
    pairs = (vectors @ vectors.T)[~np.eye(60, dtype=bool)]  # of two passages that differ
    assert searcher.background.nearness(float(pairs.mean())) == pytest.approx(0, abs=1e-5)
    assert searcher.background.nearness(0.5 * float(pairs.mean()), 0.5) == pytest.approx(0, abs=1e-5)
    assert searcher.background.nearness(0.0, 0.0) == 0
    few = Background(np.array([0.5, 0.0]), np.eye(2), 50)  # its pairs have .235, with 50 unrelated ones half of it
    assert few.nearness((50 * 0.25 - 1) / 49 / 2, unrelated=0.0) == pytest.approx(0, abs=1e-6)
    assert few.nearness(0.4, unrelated=0.0) > few.nearness(0.4)
    rows = searcher.lexical.scores(["red", "fox"])
    mass = sum(np.log1p((60 - n + 0.5) / (n + 0.5)) for n in [*(rows > 0).sum(axis=1), 0])
    assert searcher.lexical.masses([query, ""]) == pytest.approx([mass, 0], rel=1e-5)
    assert found.coverage == pytest.approx(searcher.lexical.scores([query]).max() / mass, abs=1e-6)
    allowed = np.arange(60) % 2 == 1
    (without,) = searcher.candidates([query], vector, allowed=allowed, filter=None, dense=Odd(searcher.index))
    assert without.nearness == pytest.approx(1, abs=1e-5)
    assert without.coverage == pytest.approx(searcher.lexical.scores([query])[0][allowed].max() / mass, abs=1e-6)


def test_vector_feedback_makes_no_search_surer(searcher: Searcher) -> None:
    """It moves the query to what was found, whatever that is."""
    vector = searcher.background.mean[None].astype(np.float32)
    moved = searcher.with_fusion(Fusion(feedback=0.5))
    (first,), (second,) = (one.candidates(["red fox"], vector) for one in (searcher, moved))
    assert second.dense.max() > first.dense.max()
    assert (second.nearness, second.coverage) == (first.nearness, first.coverage)


def test_words_that_no_passage_holds_make_a_search_less_sure(searcher: Searcher) -> None:
    vector = searcher.index.vectors(["c7"])
    for mode in ("hybrid", "lexical"):
        known, unheard = searcher.rank(["red fox", "red fox zyx qwv klm"], np.repeat(vector, 2, axis=0), 3, mode)  # type: ignore[arg-type]
        assert known.ids == unheard.ids
        assert known.confidence is not None and unheard.confidence is not None
        assert (known.confidence > unheard.confidence).all()


def test_a_vector_far_from_all_makes_a_search_less_sure(searcher: Searcher) -> None:
    near, far = searcher.index.vectors(["c7"]), -searcher.background.mean[None].astype(np.float32)
    far /= np.linalg.norm(far)
    (first,), (second,) = (searcher.rank(["red"], vector, 3, "dense") for vector in (near, far))
    assert first.confidence is not None and second.confidence is not None
    assert first.confidence[0] > second.confidence[0]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_how_deep_a_search_looks_changes_no_confidence(searcher: Searcher, mode: Any) -> None:
    vector = searcher.index.vectors(["c3"])
    (few,), (many,) = (searcher.rank(["blue dog"], vector, k, mode) for k in (2, 15))
    assert few.confidence is not None and many.confidence is not None
    assert few.confidence.tolist() == many.confidence[:2].tolist()
    assert (np.diff(many.confidence) <= 0).all()


class Odd(Plain):
    """Only every second passage."""

    def search(self, vectors: Any, k: int, filter: Any = None) -> Any:
        found = [(ids, scores) for ids, scores in super().search(vectors, 60, filter)]
        kept = [[at for at, id in enumerate(ids) if int(id[1:]) % 2][:k] for ids, _ in found]
        return [([ids[at] for at in own], scores[own]) for own, (ids, scores) in zip(kept, found, strict=True)]


# Learning it


def questions(count: int, *, right: float, seed: int = 3) -> tuple[list[Candidates], list[JudgedQuery], list[Chunk]]:
    """Questions whose first hit answers with this probability, whatever the signals are."""
    rng = np.random.default_rng(seed)
    found, judged = [], []
    for number in range(count):
        one = candidates(40, seed=1000 + number)
        order = np.argsort(-one.fused(Fusion()), kind="stable")
        answer = int(order[0]) if rng.random() < right else int(order[-1])
        query = Query(f"q{number}", f"question {number} about {rng.integers(1e9)}", "label", Evidence.LABELLED, ("c0",))
        found.append(one)
        judged.append(JudgedQuery(query, {answer: 1}))
    return found, judged, [Chunk(f"c{at}", f"d{at}", "text") for at in range(40)]


def learnt(count: int, right: float, evidence: Evidence | None = Evidence.LABELLED) -> Confidence:
    found, judged, chunks = questions(count, right=right)
    return learn_confidence(
        found, [Fusion()] * count, judged, chunks, None, evidence=evidence, config=GateConfig(), seed=13
    )


def test_questions_adjust_the_map_towards_how_often_their_hits_answer() -> None:
    for right in (0.1, 0.95):
        made = learnt(200, right)
        assert made.evidence == "labelled" and made.queries == 200
        assert "each by a map fitted without it" in made.reason
        found, judged, _ = questions(200, right=right, seed=4)
        errors = [
            calibration_error(hits.sure(one.slope, one.shift), hits.answers)
            for one, hits in ((one, JudgedHits.of(found, [Fusion()] * 200, judged)) for one in (FIXED, made))
        ]
        assert errors[1] < errors[0]
        assert errors[1] < 0.1


def test_without_evidence_the_fixed_map_stays_and_says_why() -> None:
    for made in (learnt(0, 0.5), learnt(30, 0.5, None)):
        assert (made.slope, made.shift, made.evidence) == (1.0, 0.0, None)
        assert "no questions with known answers" in made.reason


def test_questions_that_the_fixed_map_foretells_change_nothing() -> None:
    """Answers drawn by the map's own probabilities."""
    rng = np.random.default_rng(0)
    found = [candidates(40, seed=number) for number in range(150)]
    judged = []
    for number, one in enumerate(found):
        scores = one.fused(Fusion())
        order = np.argsort(-scores, kind="stable")
        sure = FIXED.of_hybrid(one, order, scores)[:HITS]
        answers = {int(at): 1 for at, p in zip(order, sure, strict=False) if rng.random() < p} or {int(order[-1]): 1}
        query = Query(f"q{number}", f"question {rng.integers(1e9)}", "label", Evidence.LABELLED, ("c0",))
        judged.append(JudgedQuery(query, answers))
    chunks = [Chunk(f"c{at}", f"d{at}", "text") for at in range(40)]
    made = learn_confidence(
        found, [Fusion()] * 150, judged, chunks, None, evidence=Evidence.LABELLED, config=GateConfig(), seed=13
    )
    assert (made.slope, made.shift, made.queries) == (1.0, 0.0, 0)
    assert "beyond doubt" in made.reason


def test_a_slope_and_a_shift_are_found_again() -> None:
    rng = np.random.default_rng(5)
    here, hits = rng.uniform(0.3, 1, 4000), rng.normal(0, 2, (4000, 5))
    sure = here[:, None] * probability(0.6 * hits - 1)
    answers = (rng.random(hits.shape) < sure).astype(float)
    hits[:, 4] = answers[:, 4] = np.nan
    slope, shift, beside = fit_platt(JudgedHits(here, hits, answers))
    assert beside == 0
    assert slope == pytest.approx(0.6, abs=0.04)
    assert shift == pytest.approx(-1, abs=0.07)
    backwards = JudgedHits(np.ones(4000), hits, (hits < 0).astype(float))
    assert fit_platt(backwards)[0] == 0  # never the other way round


def test_what_a_reranker_says_counts_where_it_tells() -> None:
    rng = np.random.default_rng(2)
    said, hits = rng.normal(0, 1, 3000), rng.normal(0, 1, (3000, 5))
    answers = (rng.random(hits.shape) < probability(hits + 0.8 * said[:, None] - 0.5)).astype(float)
    assert fit_platt(JudgedHits(np.ones(3000), hits, answers), said) == pytest.approx((1, -0.5, 0.8), abs=0.06)
    reread = Reread(1.0, -0.5, 0.8, mean=3.0, deviation=2.0)
    before = np.array([0.9, 0.5, 0.1], np.float32)
    sure = reread.of(before, np.array([1.0, 5.0], np.float32))
    assert sure == pytest.approx(probability(np.log(before / (1 - before)) - 0.5 + 0.8), rel=1e-4)
    assert reread.of(before, np.zeros(0, np.float32)).tolist() == before.tolist()


def test_a_fit_learns_how_sure_the_reranked_hits_are() -> None:
    """A re-ranker that puts the answer first and says more of those that it finds."""
    rng = np.random.default_rng(7)
    found, judged, chunks = questions(120, right=0.0)
    read = {}
    for one, item in zip(found, judged, strict=True):
        order = np.argsort(-one.fused(Fusion()), kind="stable")
        right = rng.random() < 0.7
        said = np.zeros(10, np.float32)
        said[4] = 6.0 if right else 1.0
        if right:
            object.__setattr__(item, "relevant", {int(order[4]): 1})
        read[item.query.id] = ReadCandidates(order, one.fused(Fusion())[order], said)
    second = LearntReranking("m", "f", 1.0, 10, "better", read=read)
    given = (found, [Fusion()] * 120, judged, chunks, None)
    settings: Any = {"evidence": Evidence.LABELLED, "config": GateConfig(), "seed": 13}
    made = learn_reread(FIXED, second, *given, **settings)
    assert made.reread is not None and made.reread.weight > 0.5
    assert "With the re-ranker: log loss" in made.reason
    places = np.array([0.6, 0.3], np.float32)
    found_it, did_not = (made.reread.of(places, np.array([said]))[0] for said in (6.0, 1.0))
    assert found_it > 2 * did_not
    assert Confidence.of_section(json.loads(json.dumps(made.section()))) == made
    nothing = LearntReranking("m", "f", 1.0, 10, "better")
    assert learn_reread(FIXED, nothing, *given, **settings) is FIXED


def test_a_few_answers_that_are_all_right_make_nothing_certain() -> None:
    few = JudgedHits(np.ones(3), np.full((3, 1), 1.0), np.ones((3, 1)))
    assert 0.7 < few.sure(*fit_platt(few)[:2]).max() < 0.95
    nothing = JudgedHits(np.ones(3), np.full((3, 1), np.nan), np.full((3, 1), np.nan))
    assert fit_platt(nothing) == (1.0, 0.0, 0.0)


def test_the_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    sure, answers = np.array([[0.2, 0.2, 0.9, 0.9, 0.5]]), np.array([[0.0, 1.0, 1.0, 1.0, np.nan]])
    assert calibration_error(sure, answers, bins=2) == pytest.approx((0.3 + 0.1) / 2)
    assert log_loss(sure, answers) == pytest.approx([-(np.log(0.8) + np.log(0.2) + 2 * np.log(0.9)) / 4])


# In a retriever


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("confidence"))


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Iterator[Retriever]:
    with Retriever.open(folder) as opened:
        yield opened


def some_query(retriever: Retriever) -> str:
    return " ".join(next(iter(retriever.chunks)).text.split()[:4])


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@pytest.mark.parametrize("filter", [None, {"lang": "en"}])
def test_hits_below_the_least_confidence_are_left_out(retriever: Retriever, mode: Any, filter: Any) -> None:
    query = some_query(retriever)
    hits = retriever.search(query, 8, mode=mode, filter=filter)
    sure = [hit.confidence for hit in hits]
    assert len(hits) == 8 and all(one is not None and 0 <= one <= 1 for one in sure)
    assert sure == sorted(sure, reverse=True)  # type: ignore[type-var]
    assert sure[0] > sure[-1]  # type: ignore[operator]
    least = sure[3]
    kept = retriever.search(query, 8, mode=mode, filter=filter, min_confidence=least)
    assert kept == [hit for hit in hits if hit.confidence >= least]  # type: ignore[operator]
    assert 0 < len(kept) < 8
    assert retriever.search(query, 8, mode=mode, filter=filter, min_confidence=1.0) == []
    assert retriever.search(query, 8, mode=mode, filter=filter, min_confidence=0) == hits


@pytest.mark.parametrize("least", [-0.1, 1.1, float("nan"), "0.5", True])
def test_a_least_confidence_is_a_probability(retriever: Retriever, least: Any) -> None:
    with pytest.raises(InvalidInput, match="min_confidence"):
        retriever.search("red", min_confidence=least)


def test_feedback_makes_a_search_surer_of_what_answered(tmp_path: Path, folder: Path) -> None:
    with Retriever.open(shutil.copytree(folder, tmp_path / "copy")) as retriever:
        query = some_query(retriever)
        before = retriever.search(query, 8, mode="dense", lam=0.5)
        retriever.add_feedback(query, before[-1].chunk.id, tenant="one")
        after = retriever.search(query, 8, mode="dense", lam=0.5, tenant="one")
        assert after[0].chunk.id == before[-1].chunk.id
        assert after[0].confidence > before[0].confidence  # type: ignore[operator]
        least = after[0].confidence
        assert [
            hit.chunk.id
            for hit in retriever.search(query, 8, mode="dense", lam=0.5, tenant="one", min_confidence=least)
        ] == [after[0].chunk.id]
        assert retriever.search(query, 8, mode="dense", lam=0.5) == before  # another tenant's is not seen
        with_feedback = retriever.search(query, 8, tenant="one")
        sure = [hit.confidence for hit in with_feedback]
        assert sure == sorted(sure, reverse=True)  # type: ignore[type-var]


def test_labelled_questions_of_a_fit_say_how_sure_its_hits_are(tmp_path: Path) -> None:
    """By what they ask, which every passage's own words are: the first hit answers nearly always."""
    docs, lines = write_pages(tmp_path / "docs"), []
    for page in sorted(docs.glob("*.md")):
        for part, text in enumerate(page.read_text(encoding="utf-8").split("\n\n")[2::2]):
            quote = {"source": page.name, "quote": text}
            lines.append({"_id": f"{page.stem}-{part}", "text": " ".join(text.split()[1:9]), "evidence": [quote]})
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = FitConfig.build(
        {
            "encoder": {"model": str(write_tiny_model(tmp_path / "base")), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"method": "none"},
            "index": {"kind": "exact"},
        }
    )
    result = fit([docs], tmp_path / "retriever", config, labels=[Labels(tmp_path / "labels.jsonl")])
    with Retriever.open(result.path) as retriever:
        sure = retriever.searcher.confidence
        assert f"on {len(lines)} questions (labelled), each by a map fitted without it" in sure.reason
        assert (sure.evidence, sure.queries) == ("labelled", len(lines)) and sure.shift > 0
        assert Confidence.of_section(retriever.manifest.sections["confidence"]) == sure
    assert result.report.verdict is not None
    assert sure.reason in [step.detail for step in result.report.verdict.steps]


def rewrite(folder: Path, **sections: Any) -> None:
    """Sections of the manifest in the place of its own; None = taken out."""
    file = folder / MANIFEST
    manifest = Manifest.from_json(file.read_text(encoding="utf-8"), file)
    made = {name: value for name, value in {**manifest.sections, **sections}.items() if value is not None}
    file.write_text(replace(manifest, sections=made).to_json(), encoding="utf-8")


def test_a_fit_keeps_the_map_and_an_older_retriever_has_the_fixed_one(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    with Retriever.open(copy) as retriever:
        section = retriever.manifest.sections["confidence"]
        assert section["version"] == VERSION and "no questions with known answers" in section["reason"]
        query = some_query(retriever)
        hits, fingerprint = retriever.search(query, 5), retriever.fingerprint
    rewrite(copy, confidence=None)
    with Retriever.open(copy) as retriever:
        assert retriever.searcher.confidence is FIXED
        assert retriever.search(query, 5) == hits
        assert retriever.fingerprint == fingerprint
    rewrite(copy, confidence={**section, "slope": 1.0, "shift": -50.0})
    with Retriever.open(copy) as retriever:
        again = retriever.search(query, 5)
        assert [hit.chunk.id for hit in again] == [hit.chunk.id for hit in hits]
        assert all(hit.confidence < 1e-10 for hit in again)  # type: ignore[operator]
    rewrite(copy, confidence={"version": 1})
    with pytest.raises(StoreCorrupt, match="confidence"):
        Retriever.open(copy)

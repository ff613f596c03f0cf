"""Cross-fitting: all queries judge, none of them a model that saw it, and what ships is trained on all."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import sentences, write_tiny_model

import ragadapt.training as training
from ragadapt.config import FitConfig, GateConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidInput
from ragadapt.evaluation import gate
from ragadapt.evaluation.forecast import forecast
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.evaluation.significance import Interval
from ragadapt.pipeline import crossfit
from ragadapt.pipeline import fit as module
from ragadapt.pipeline.adapt import gentlest
from ragadapt.pipeline.arena import Arena, build_arena
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.crossfit import CrossFitted, CrossJudged, Rankings
from ragadapt.pipeline.fit import FitResult, fit
from ragadapt.pipeline.fusion import LearntFusion, learn_by_folds, quality
from ragadapt.pipeline.queries import Labels, with_folds
from ragadapt.pipeline.stages import save_lexical
from ragadapt.queries import deal_folds
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import Candidates, Fusion
from ragadapt.values import Chunk, Evidence, Query

PAGES = 24
ASKED = 4 * PAGES


def label(number: int, text: str = "", answers: Sequence[str] = ("d0 c0",)) -> Query:
    return Query(f"q{number}", text or f"question {number}", "label", Evidence.LABELLED, tuple(answers))


def written(number: int, chunk: str, kind: str = "lm-question") -> Query:
    return Query(f"{kind} {number}", f"written {number}", kind, Evidence.PARAPHRASE, (chunk,))


def chunks_of(documents: int, each: int) -> list[Chunk]:
    return [
        Chunk(f"d{document} c{at}", f"d{document}", f"text {document} {at}", (f"page {document}", f"part {at}"))
        for document in range(documents)
        for at in range(each)
    ]


# Folds


def test_folds_are_evenly_full_and_hang_on_the_seed() -> None:
    queries = [label(number) for number in range(37)]
    folds = deal_folds(queries, chunks_of(5, 2), None, 3, seed=1)
    assert set(folds) == {query.id for query in queries}
    assert max(Counter(folds.values()).values()) - min(Counter(folds.values()).values()) <= 1
    assert folds == deal_folds(queries, chunks_of(5, 2), None, 3, seed=1)
    assert folds != deal_folds(queries, chunks_of(5, 2), None, 3, seed=2)


def test_questions_of_one_text_are_in_one_fold() -> None:
    queries = [label(number, f"Where is it, {number // 4}?") for number in range(40)]
    folds = deal_folds(queries, chunks_of(5, 2), None, 3, seed=1)
    assert all(len({folds[f"q{number + turn}"] for turn in range(4)}) == 1 for number in range(0, 40, 4))


def test_what_was_written_about_a_document_or_its_copies_is_in_one_fold() -> None:
    chunks = chunks_of(30, 2)
    queries = [written(number, chunk.id) for number, chunk in enumerate(chunks)]
    groups = list(range(len(chunks)))
    groups[2] = groups[8] = 999  # passages of documents 1 and 4 say the same
    folds = deal_folds(queries, chunks, groups, 2, seed=1)
    at = {query.positives[0].split()[0]: folds[query.id] for query in queries}
    assert all(folds[query.id] == at[query.positives[0].split()[0]] for query in queries)
    assert at["d1"] == at["d4"]
    assert Counter(folds.values())[0] == 30


def test_of_few_documents_the_sections_are_dealt() -> None:
    chunks = chunks_of(2, 20)
    queries = [written(number, chunk.id) for number, chunk in enumerate(chunks)]
    assert set(deal_folds(queries, chunks, None, 2, seed=1).values()) == {0, 1}


def test_no_fold_trains_on_its_own_queries_their_texts_or_questions_about_their_answers() -> None:
    chunks = tuple(chunks_of(30, 2))
    corpus = Corpus((), chunks, tuple(range(len(chunks))))
    labels = [label(number, answers=[f"d{number} c0"]) for number in range(24)]
    about = [written(number, f"d{number} c0") for number in range(24)] + [written(99, "d29 c1")]
    same = Query("same", labels[3].text, "lm-question", Evidence.PARAPHRASE, ("d28 c1",))
    plan = with_folds(gate.plan([*labels, *about, same], []), corpus, FitConfig())
    assert plan.crossed == 3 and len(plan.parts()) == 3
    for train, judge in plan.parts():
        judged = {query.id for query in judge}
        assert judged and judged.isdisjoint(query.id for query in train)
        answered = {id for query in judge for id in query.positives}
        assert all(query.evidence is Evidence.LABELLED or query.positives[0] not in answered for query in train)
        assert (same in train) == (labels[3] not in judge)
        assert about[-1] in train
    assert sum(len(judge) for _, judge in plan.parts()) == 24


# The plan


def test_few_labels_all_judge_and_all_train() -> None:
    labels = [label(number) for number in range(36)]
    made = gate.plan(labels[:26], labels[29:], dev=labels[26:29])
    assert made.crossed == GateConfig().folds
    assert len(made.judge) == len(made.train) == 36
    assert "36 labelled queries judge" in made.reason


def test_many_labels_are_judged_by_those_that_were_held_out() -> None:
    labels = [label(number) for number in range(400)]
    made = gate.plan(labels[:300], labels[300:])
    assert not made.crossed
    assert (len(made.judge), len(made.train)) == (100, 300)


def test_labels_for_measuring_never_train_and_those_for_training_never_judge() -> None:
    labels = [label(number) for number in range(60)]
    measured = gate.plan(labels[:40], labels[40:], only_judge={query.id for query in labels[40:]})
    assert not measured.crossed
    assert {query.id for query in measured.train} == {query.id for query in labels[:40]}
    learnt = gate.plan(labels[:40], labels[40:], only_train={query.id for query in labels[:20]})
    assert learnt.crossed
    assert {query.id for query in learnt.judge} == {query.id for query in labels[20:]}
    assert len(learnt.train) == 60


def test_a_language_models_questions_train_and_judge_but_those_that_did_not_come_back_only_judge() -> None:
    asked = [written(number, f"d{number} c0") for number in range(150)]
    made = gate.plan(asked[:100], asked[120:], dev=asked[100:120], only_judge={asked[140].id})
    assert made.evidence is Evidence.PARAPHRASE and made.crossed == 2
    assert len(made.judge) == 150 and len(made.train) == 149


def test_where_the_dense_side_stands_out_a_language_models_questions_do_not_train() -> None:
    asked = [written(number, f"d{number} c0") for number in range(150)]
    assert gate.plan(asked, [], dense_share=0.5).train
    refused = gate.plan(asked, [], dense_share=0.56)
    assert not refused.train and "gate.most_dense" in refused.reason
    labels = [label(number) for number in range(30)]
    assert gate.plan([*asked, *labels], [], dense_share=0.9).evidence is Evidence.LABELLED


def test_too_few_questions_of_a_language_model_say_how_many_more() -> None:
    made = gate.plan([written(number, f"d{number} c0") for number in range(70)], [])
    assert not made.train
    assert "30 more questions by the language model" in made.reason
    assert "--generator)" not in made.reason


# Searching out of fold


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    from ragadapt.config import EncoderConfig

    return Encoder.load(EncoderConfig(model=str(write_tiny_model(tmp_path_factory.mktemp("model")))))


@pytest.fixture(scope="module")
def arena(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    texts = sentences(80, words=14, seed=5)
    chunks = tuple(Chunk(f"c{at}", f"d{at}", text) for at, text in enumerate(texts))
    folder = tmp_path_factory.mktemp("lexical") / "lexical"
    save_lexical(chunks, folder)
    encoded = EncodedCorpus(
        Corpus((), chunks, tuple(range(len(chunks)))), encoder.encode_passages([chunk.passage for chunk in chunks])
    )
    rng = random.Random(1)
    queries = [
        Query(
            f"q{at}",
            " ".join(rng.sample(texts[at].split(), min(4, len(texts[at].split())))),
            "label",
            Evidence.LABELLED,
            (f"c{at}",),
        )
        for at in range(0, 80, 4)
    ]
    return build_arena(queries, encoder, encoded, folder, {})


def test_a_pool_of_all_passages_changes_nothing(arena: Arena, encoder: Encoder) -> None:
    everything = np.arange(len(arena.passages))
    for other in (arena.within(everything, everything), arena.within(everything, everything, encoder)):
        for system in ("dense", "hybrid"):
            np.testing.assert_allclose(quality(other, system), quality(arena, system), atol=1e-6)


def test_in_a_pool_only_its_passages_are_found_and_what_is_best_stays(arena: Arena) -> None:
    arena = arena.part({item.query.id for item in arena.judged[:3]})
    ordinary = np.arange(0, 80, 3)
    pool = arena.pool(12, ordinary)
    assert len(pool) < len(arena.passages)
    assert all(item.answers <= set(pool.tolist()) for item in arena.judged)
    part = arena.within(pool, ordinary)
    for before, after in zip(Rankings.by(arena).dense, Rankings.by(part).dense, strict=True):
        assert set(after.tolist()) <= set(pool.tolist())
        assert before[:10].tolist() == after[:10].tolist()
    for candidates in part.candidates():
        assert set(candidates.positions.tolist()) <= set(pool.tolist())


def test_what_was_found_survives_the_disk(arena: Arena, tmp_path: Path) -> None:
    found = Rankings.by(arena)
    kept = CrossFitted(arena.judged, np.arange(len(arena.judged)) % 3, found, {0.5: found}, {0.5: 0.25})
    kept.save(tmp_path / "folds.npz")
    read = CrossFitted.load(tmp_path / "folds.npz", arena.judged)
    assert read.drift == {0.5: 0.25} and read.folds.tolist() == kept.folds.tolist()
    for mine, theirs in ((kept.base, read.base), (kept.adapted[0.5], read.adapted[0.5])):
        assert [one.tolist() for one in mine.dense] == [one.tolist() for one in theirs.dense]
        for feedback in crossfit.FEEDBACKS:
            for one, other in zip(mine.candidates[feedback], theirs.candidates[feedback], strict=True):
                fusion = Fusion(feedback=feedback)
                assert one.ranked(fusion)[0].tolist() == other.ranked(fusion)[0].tolist()


def test_the_gentlest_strength_that_cannot_be_told_from_the_best_is_chosen() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, 100)
    assert gentlest({0.5: np.full(100, 0.6) + noise, 1.0: np.full(100, 0.601)}) == 0.5
    assert gentlest({0.5: np.full(100, 0.6), 1.0: np.full(100, 0.7)}) == 1.0
    assert gentlest({1.0: np.array([0.5])}) == 1.0


def test_a_mix_is_never_judged_by_the_queries_that_it_was_learnt_from() -> None:
    """Ten queries whose answer stands out by words in one fold, ten by meaning in the other."""
    best, worst = np.float32(5), np.float32(0)
    positions = np.array([0, 1])

    def found(dense_is_right: bool) -> Candidates:
        right, wrong = np.array([best, worst]), np.array([worst, best])
        return Candidates(positions, *((right, wrong) if dense_is_right else (wrong, right)))

    queries = [JudgedQuery(label(number), {0: 1}) for number in range(20)]
    folds = np.repeat([0, 1], 10)
    candidates = [found(dense_is_right=fold == 0) for fold in folds]
    start = LearntFusion(Fusion(), None, 0, None, "")
    learnt, fusions = learn_by_folds(candidates, queries, folds, start, FitConfig().fusion, evidence=Evidence.LABELLED)
    assert all(fusion.weight < 0.3 for fusion in fusions[:10])  # the other fold trusts words
    assert all(fusion.weight == 0.5 for fusion in fusions[10:])
    assert fusions[0] != fusions[-1] and learnt.queries == 20
    stays, same = learn_by_folds(candidates, queries, folds, start, FitConfig().fusion, evidence=Evidence.PARAPHRASE)
    assert stays is start and set(same) == {start.fusion}


def test_of_strengths_with_a_likely_gain_the_one_that_promises_most_ships(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Rankings.by(arena)
    strengths = (0.25, 0.5, 1.0)
    every = dict.fromkeys(strengths, found)
    kept = CrossFitted(arena.judged, np.arange(len(arena.judged)) % 3, found, every, dict.fromkeys(strengths, 0.1))
    expects = {0.25: 0.001, 0.5: 0.004, 1.0: None}

    def decide(*, strength: float, labelled: bool, **_: Any) -> gate.Decision:
        assert labelled
        gain = expects[strength]
        if gain is None:
            return gate.Decision(gate.Verdict.NO_GAIN, 0.0, ())
        return gate.Decision(gate.Verdict.LIKELY_GAIN, strength, (), expected=gain)

    monkeypatch.setattr(gate, "decide", decide)
    start = LearntFusion(Fusion(), None, 0, None, "")
    judged = crossfit.judge_folds(kept, start, FitConfig(), Evidence.LABELLED)
    assert (judged.strength, judged.decision.verdict) == (0.5, gate.Verdict.LIKELY_GAIN)


def test_folds_that_go_too_far_for_new_answers_ship_at_less(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    found, strengths = Rankings.by(arena), (0.25, 0.5, 1.0)
    every = dict.fromkeys(strengths, found)
    kept = CrossFitted(arena.judged, np.arange(len(arena.judged)) % 3, found, every, dict.fromkeys(strengths, 0.1))
    gain, loss = Interval(0.1, 0.05, 0.15, None, 40, 40), Interval(-0.1, -0.15, -0.05, None, 20, 20)
    asked: list[float] = []

    def decide(*, strength: float, **_: Any) -> gate.Decision:
        asked.append(strength)
        if strength > ships:
            return gate.Decision(gate.Verdict.REGRESSION_AVOIDED, 0.0, ("lost",), gain, gain, new=(loss, loss))
        return gate.Decision(gate.Verdict.WIN, strength, ("won",), gain, gain)

    monkeypatch.setattr(gate, "decide", decide)
    monkeypatch.setattr(crossfit, "gentlest", max)
    start = LearntFusion(Fusion(), None, 0, None, "")
    ships = 0.5
    judged = crossfit.judge_folds(kept, start, FitConfig(), Evidence.LABELLED)
    assert (judged.strength, judged.decision.strength, judged.decision.verdict) == (0.5, 0.5, gate.Verdict.WIN)
    assert asked == [1.0, 0.5]
    ships = 0.0
    judged = crossfit.judge_folds(kept, start, FitConfig(), Evidence.LABELLED)
    assert not judged.decision.adapted and "(strength 0.5, 0.25)" in judged.decision.reasons[-1]


# A fit


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    lines = iter(sentences(PAGES * 4, words=12, seed=3))
    for number in range(PAGES):
        text = f"# Page {number}\n\n" + ". ".join(next(lines) for _ in range(4)) + ".\n"
        (folder / f"page{number:02}.md").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def labels(docs: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Questions that share some words with the page that answers them."""
    folder = tmp_path_factory.mktemp("labels")
    rng = random.Random(0)
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number in range(ASKED):
            page = f"page{number % PAGES:02}.md"
            words = (docs / page).read_text().split("\n\n")[1].split()
            queries.write(json.dumps({"_id": f"q{number}", "text": " ".join(rng.sample(words, 5))}) + "\n")
            qrels.write(f"q{number}\t{page}\t1\n")
    return Labels(folder / "queries.jsonl", folder / "qrels.tsv")


def settings(model: Path, **changes: dict[str, object]) -> FitConfig:
    values: dict[str, dict[str, object]] = {
        "encoder": {"model": str(model), "precision": "float32"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "training": {"epochs": 6, "batch_size": 16, "learning_rate": 4e-3},
        "adapter": {"rank": 4},
        "gate": {"max_drift": 2.0},
    }
    for stage, change in changes.items():
        values[stage] = {**values.get(stage, {}), **change}
    return FitConfig.build(values)


class Watched:
    """The trainings of a fit, as they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries: list[set[str]] = []
        self.resumed: list[int] = []
        self.fail_at: int | None = None
        real = training.train

        def train(encoder: Encoder, examples: Any, *rest: Any, **more: Any) -> Any:
            if self.fail_at is not None and len(self.queries) == self.fail_at:
                raise KeyboardInterrupt
            self.queries.append({example.query for example in examples})
            result = real(encoder, examples, *rest, **more)
            self.resumed.append(result.resumed_from)
            return result

        monkeypatch.setattr(training, "train", train)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def check(result: FitResult, watched: Watched, asked: int) -> None:
    """Every question judged, no fold saw its own, and what ships was trained on all."""
    folds, last = watched.queries[:3], watched.queries[-1]
    everyone = set().union(*folds)
    assert len(everyone) == asked
    unseen = [everyone - fold for fold in folds]
    assert sum(len(fold) for fold in unseen) == asked and not unseen[0] & unseen[1] | unseen[1] & unseen[2]
    report = result.report
    assert report.evidence is not None and report.evidence.queries == asked
    assert report.split is not None and report.split.leaked == 0
    if result.decision.adapted:
        assert last == everyone and len(watched.queries) == 4
    else:
        assert len(watched.queries) == 6  # half of each fold's queries, for the learning curve


def test_every_label_judges_and_what_ships_was_trained_on_all(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, watched: Watched
) -> None:
    result = fit([docs], tmp_path / "r", settings(model), labels=[labels])
    check(result, watched, ASKED)
    assert result.verdict == "WIN", result.decision.reasons
    assert f"on {ASKED} queries, each searched by a model that had not seen it" in result.decision.reasons[0]
    systems = {system.name for system in result.report.systems}
    assert {"fitted-dense", "shipped", "base-dense"} <= systems
    assert result.report.distributions is not None and result.report.distributions.after is not None
    assert result.report.checks and all(one.passed for one in result.report.checks)
    assert not result.report.curves
    with Retriever.open(result.path) as retriever:
        assert retriever.search("anything", 3)


def test_where_nothing_is_gained_the_report_says_how_many_questions_would_show_it(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, watched: Watched
) -> None:
    config = settings(model, training={"learning_rate": 1e-7})
    result = fit([docs], tmp_path / "r", config, labels=[labels])
    check(result, watched, ASKED)
    assert not result.decision.adapted
    verdict = result.report.verdict
    assert verdict is not None
    assert "What would change the verdict?" in [step.name for step in verdict.steps]
    assert len(result.report.curves) == 2


def test_held_out_labels_say_how_many_in_all_would_show_a_gain(
    docs: Path, model: Path, labels: Labels, tmp_path: Path
) -> None:
    config = settings(
        model, training={"learning_rate": 1e-7}, gate={"cross_fit_below": 0}, split={"heldout": 0.4, "dev": 0.2}
    )
    result = fit([docs], tmp_path / "r", config, labels=[labels])
    assert not result.decision.adapted and result.report.verdict is not None
    step = next(step for step in result.report.verdict.steps if step.name == "What would change the verdict?")
    assert "labelled questions that judge show" in step.detail
    gains = [curve for curve in result.report.curves if curve.title.startswith("Gain of")]
    assert len(gains) == 2
    at = [point.x for point in gains[0].points]
    assert at == [round(times * at[0]) for times in (1, 1.5, 2, 3, 4)]
    assert ASKED / 3 < at[0] < ASKED * 0.6


def test_questions_that_all_say_the_same_train_nothing(docs: Path, model: Path, tmp_path: Path) -> None:
    with (tmp_path / "queries.jsonl").open("w") as queries, (tmp_path / "qrels.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number in range(20):
            queries.write(json.dumps({"_id": f"q{number}", "text": "Where is the invoice?"}) + "\n")
            qrels.write(f"q{number}\tpage{number:02}.md\t1\n")
    labels = Labels(tmp_path / "queries.jsonl", tmp_path / "qrels.tsv")
    result = fit([docs], tmp_path / "r", settings(model), labels=[labels])
    assert not result.decision.adapted
    assert "too many of them say the same" in result.decision.reasons[0]


def test_a_killed_cross_fitting_goes_on_from_its_last_fold(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, watched: Watched
) -> None:
    whole = fit([docs], tmp_path / "whole", settings(model), labels=[labels])
    watched.queries.clear()
    watched.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        fit([docs], tmp_path / "r", settings(model), labels=[labels])
    assert len(watched.queries) == 2
    watched.queries.clear()
    watched.fail_at = None
    again = fit([docs], tmp_path / "r", settings(model), labels=[labels])
    assert len(watched.queries) == 2  # the third fold, and the model that ships
    assert again.decision == whole.decision
    with Retriever.open(whole.path) as one, Retriever.open(again.path) as other:
        assert one.encoder.fingerprint == other.encoder.fingerprint


@pytest.fixture
def asked_config(model: Path, monkeypatch: pytest.MonkeyPatch) -> FitConfig:
    """Of a fit for which a language model writes three questions for each passage."""
    from ragadapt.pipeline import queries as asking

    def asked(chunks: Sequence[Chunk], *_: Any, **__: Any) -> list[Query]:
        rng = random.Random(1)
        made = []
        for at, chunk in enumerate(chunks):
            for turn, kind in enumerate(("question", "search", "claim")):
                text = " ".join(rng.sample(chunk.text.split(), 5))
                made.append(Query(f"m{at} {turn}", text, f"lm-{kind}", Evidence.PARAPHRASE, (chunk.id,)))
        return made

    monkeypatch.setattr(asking, "generate_queries", asked)
    monkeypatch.setitem(gate.MINIMUM, Evidence.PARAPHRASE, 80)
    generator = {
        "generator_url": "http://localhost:1/v1", "generator_model": "m", "round_trip_k": 50, "max_overlap": 1.0,
    }  # fmt: skip
    return settings(model, query=generator, training={"epochs": 1}, gate={"most_dense": 1.0})


def test_a_language_models_questions_ship_with_the_mix_by_which_they_were_judged(
    docs: Path, asked_config: FitConfig, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = gate.decide
    monkeypatch.setattr(
        gate, "decide", lambda **given: replace(decide(**given), verdict=gate.Verdict.WIN, strength=given["strength"])
    )
    judged: list[CrossJudged] = []
    real = module.judge_folds
    monkeypatch.setattr(module, "judge_folds", lambda *given: judged.append(real(*given)) or judged[-1])
    result = fit([docs], tmp_path / "r", asked_config)
    first, second, last = watched.queries
    assert len(first | second) == len(last) >= 80 and not (last - first) & (last - second)
    assert {query.evidence for query in (item.query for item in judged[0].found.judged)} == {Evidence.PARAPHRASE}
    with Retriever.open(result.path) as retriever:
        assert retriever.fusion == judged[0].fusions[0] == judged[0].base_fusions[0]


@pytest.fixture
def dense_alone_gains(monkeypatch: pytest.MonkeyPatch) -> dict[float, float]:
    """The gate refuses the whole strength and lets half of it through; the drift that it saw at either."""
    decide, seen = gate.decide, dict[float, float]()

    def decided(*, strength: float, drift: float, **given: Any) -> gate.Decision:
        seen[strength] = drift
        made = decide(strength=strength, drift=drift, **given)
        assert made.dense is not None
        dense = replace(made.dense, delta=0.1, low=0.05, high=0.15, p_value=0.001)
        if strength == 1:
            return replace(made, verdict=gate.Verdict.NO_GAIN, strength=0.0, dense=dense)
        return replace(made, verdict=gate.Verdict.WIN, strength=strength, dense=dense)

    monkeypatch.setattr(gate, "decide", decided)
    return seen


def test_where_dense_search_alone_gains_half_the_strength_is_judged_by_what_the_folds_learnt(
    docs: Path, asked_config: FitConfig, tmp_path: Path, watched: Watched, dense_alone_gains: dict[float, float]
) -> None:
    result = fit([docs], tmp_path / "r", asked_config)
    assert len(watched.queries) == 3  # two folds, and what ships
    assert (result.verdict, result.decision.strength) == ("WIN", gate.GENTLE)
    assert 0 < dense_alone_gains[gate.GENTLE] < dense_alone_gains[1.0]


@pytest.mark.usefixtures("dense_alone_gains")
def test_a_kill_while_the_folds_adapters_are_kept_loses_none(
    docs: Path, asked_config: FitConfig, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "shutil", SimpleNamespace(copytree=killed))
        with pytest.raises(KeyboardInterrupt):
            fit([docs], tmp_path / "r", asked_config)
    result = fit([docs], tmp_path / "r", asked_config)
    assert len(watched.queries) == 3  # the folds are not trained again
    assert (result.verdict, result.decision.strength) == ("WIN", gate.GENTLE)


def test_with_the_query_side_alone_the_passages_stay(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, watched: Watched
) -> None:
    config = settings(model, adapter={"rank": 4, "adapt": "query"})
    check(fit([docs], tmp_path / "r", config, labels=[labels]), watched, ASKED)


def test_a_model_trained_on_all_that_moved_too_far_does_not_ship(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "drift", lambda *_, **__: 3.0)
    result = fit([docs], tmp_path / "r", settings(model), labels=[labels])
    assert not result.decision.adapted
    assert "moved by 3.00" in result.decision.reasons[-1]


# The forecast


def test_a_gain_that_grows_as_a_power_law_is_forecast() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, 400)
    noise -= noise.mean()
    made = forecast([50, 100], [0.02 + noise, 0.02 * 2**0.5 + noise], seed=1)
    size, middle, low, high = made.ahead[-1]
    assert size == 400
    assert middle == pytest.approx(0.02 * 8**0.5, rel=0.15)
    assert low < middle < high
    assert made.needed is not None and made.needed[0] < 400  # it is proved already


def test_how_many_would_prove_it_grows_as_the_gain_falls() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, 100)
    noise -= noise.mean()
    needed = [forecast([50, 100], [gain / 2**0.5 + noise, gain + noise], seed=1).needed for gain in (0.05, 0.03)]
    assert needed[0] is not None and needed[1] is not None
    assert 100 < needed[0][0] < needed[1][0]
    assert needed[0][1] < needed[0][0]
    assert forecast([50, 100], [noise - 0.1, noise - 0.1], seed=1).needed is None


def test_what_only_trains_counts_among_those_that_are_needed() -> None:
    gains = np.random.default_rng(0).normal(0.02, 0.2, 100)
    alone, shared = (forecast([200], [gains], seed=1, total=total).needed for total in (None, 300))
    assert alone is not None and shared is not None
    assert shared[0] == pytest.approx(3 * alone[0], abs=3)


def test_a_forecast_from_one_size_is_wide_and_faulty_shapes_are_refused() -> None:
    gains = np.random.default_rng(0).normal(0.05, 0.1, 200)
    one = forecast([100], [gains], seed=1)
    two = forecast([50, 100], [gains / 1.4, gains], seed=1)
    assert one.ahead[-1][3] - one.ahead[-1][2] > two.ahead[-1][3] - two.ahead[-1][2]
    for sizes, rows in (([], []), ([1, 2, 3], [[0.1]] * 3), ([2, 1], [[0.1], [0.1]]), ([1, 2], [[0.1]])):
        with pytest.raises(InvalidInput):
            forecast(sizes, rows, seed=1)
    with pytest.raises(InvalidInput, match="equal length"):
        forecast([4, 8], [[0.1], [0.1, 0.2]], seed=1)

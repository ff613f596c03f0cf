"""The arena: what a query was cut from cannot be found by its own words, and everything else stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import sentences, write_tiny_model

from ragadapt.config import EncoderConfig, FitConfig, FusionConfig
from ragadapt.encoder import Encoder
from ragadapt.evaluation import gate
from ragadapt.lexical import LexicalIndex
from ragadapt.pipeline.arena import build_arena, one_rank
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.fit import FitSteps
from ragadapt.pipeline.fusion import LearntFusion, Neutral, learn_fusion, quality, ranking, tolerance_of
from ragadapt.pipeline.queries import DividedQueries
from ragadapt.profiling import Clock
from ragadapt.search.fusion import Floats, Fusion
from ragadapt.values import Chunk, Evidence, Query

TEXTS = [". ".join(sentences(3, seed=seed)) + "." for seed in range(30)]
CHUNKS = tuple(
    Chunk(f"d{n // 2}#{n % 2}", f"d{n // 2}", text, (f"Page {n // 2}",), 0, len(text)) for n, text in enumerate(TEXTS)
)
CORPUS = Corpus((), CHUNKS, tuple(range(30)))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    model = write_tiny_model(tmp_path_factory.mktemp("model"))
    return Encoder.load(EncoderConfig(model=str(model), precision="float32"))


@pytest.fixture(scope="module")
def vectors(encoder: Encoder) -> Floats:
    return encoder.encode_passages(CORPUS.passages)


@pytest.fixture(scope="module")
def lexical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lexical")
    LexicalIndex.build(CORPUS.ids, CORPUS.passages).save(folder)
    return folder


def first_sentence(at: int, kind: str = "sentence", evidence: Evidence = Evidence.CROP) -> Query:
    end = CHUNKS[at].text.index(".")
    return Query(f"q{at}", CHUNKS[at].text[:end], kind, evidence, (CHUNKS[at].id,), span=(0, end))


def test_a_cut_query_is_not_found_by_its_own_words(encoder: Encoder, vectors: Floats, lexical: Path) -> None:
    queries = [first_sentence(at) for at in range(0, 20, 2)]
    arena = build_arena(queries, encoder, EncodedCorpus(CORPUS, vectors), lexical, {})
    for query, item in zip(queries, arena.judged, strict=True):
        (position,) = item.relevant
        assert arena.searcher.ids_of([position])[0] == query.positives[0]
        assert query.text not in arena.passages[position]
        own = arena.searcher.lexical.scores_of(query.text, [position])[0]
        whole = LexicalIndex.open(lexical)
        assert own < whole.scores_of(query.text, whole.positions(query.positives))[0]
        np.testing.assert_allclose(
            arena.searcher.index.vectors(list(query.positives))[0],
            encoder.encode_passages([arena.passages[position]])[0],
            atol=1e-5,
        )


def test_other_passages_keep_their_vectors_and_texts(encoder: Encoder, vectors: Floats, lexical: Path) -> None:
    arena = build_arena([first_sentence(4)], encoder, EncodedCorpus(CORPUS, vectors), lexical, {})
    for at in (0, 5, 29):
        np.testing.assert_array_equal(arena.searcher.index.vectors([CHUNKS[at].id])[0], vectors[at])
        position = int(arena.searcher.positions([CHUNKS[at].id])[0])
        assert arena.passages[position] == CHUNKS[at].passage


def test_labelled_queries_see_the_corpus_as_it_is_and_are_judged_by_document(
    encoder: Encoder, vectors: Floats, lexical: Path
) -> None:
    query = Query("q", CHUNKS[6].text, "label", Evidence.LABELLED, (CHUNKS[6].id, CHUNKS[7].id))
    arena = build_arena([query], encoder, EncodedCorpus(CORPUS, vectors), lexical, {"q": {"d3": 1}})
    assert tuple(arena.passages) == tuple(CORPUS.passages)
    assert quality(arena, "dense").tolist() == [1.0]
    assert quality(arena, "lexical").tolist() == [1.0]
    assert arena.judged[0].unit_names is not None
    assert arena.judged[0].unit_names[arena.judged[0].units(ranking(arena, "hybrid")[0])[0]] == "d3"


def test_two_queries_cut_from_one_passage_leave_one(encoder: Encoder, vectors: Floats, lexical: Path) -> None:
    twin = replace(first_sentence(4), id="twin")
    arena = build_arena([first_sentence(4), twin], encoder, EncodedCorpus(CORPUS, vectors), lexical, {})
    assert [item.query.id for item in arena.judged] == ["q4"]


def test_the_best_rank_with_enough_queries_is_chosen() -> None:
    crops = [first_sentence(at) for at in range(30)]
    human = [first_sentence(at, "question", Evidence.HUMAN) for at in range(5)]
    enough = dict.fromkeys(Evidence, 10)
    assert one_rank(crops + human, enough, 1000)[0] is Evidence.CROP
    rank, chosen = one_rank(crops + human, enough | {Evidence.HUMAN: 5}, 2)
    assert rank is Evidence.HUMAN
    assert len(chosen) == 2
    assert one_rank(human, enough, 1000) == (None, [])


def test_every_search_of_an_arena_says_how_far_it_is(encoder: Encoder, vectors: Floats, lexical: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    queries = [first_sentence(at) for at in range(30)]
    arena = build_arena(
        queries, encoder, EncodedCorpus(CORPUS, vectors), lexical, {}, progress=lambda *told: seen.append(told)
    ).part({query.id for query in queries[:20]})
    assert {stage for stage, _, _ in seen} == {"encode passages", "encode queries"}
    for search in (
        lambda: quality(arena.with_fusion(Fusion()), "hybrid"),
        lambda: learn_fusion(arena, FusionConfig(), evidence=Evidence.CROP),
    ):
        seen.clear()
        search()
        assert seen[-1] == ("search", 20, 20)


def test_crops_never_lower_the_dense_share(encoder: Encoder, vectors: Floats, lexical: Path) -> None:
    arena = build_arena([first_sentence(at) for at in range(30)], encoder, EncodedCorpus(CORPUS, vectors), lexical, {})
    assert quality(arena, "lexical").mean() > 0  # further copies of the words are in other passages
    learnt = learn_fusion(arena, FusionConfig(), evidence=Evidence.CROP)
    assert learnt.fusion.weight >= 0.5
    assert learnt.queries == 30


def labelled(count: int) -> list[Query]:
    return [Query(f"l{at}", CHUNKS[at].text, "label", Evidence.LABELLED, (CHUNKS[at].id,)) for at in range(count)]


def test_labels_move_the_weight_from_where_lower_evidence_took_it(
    encoder: Encoder, vectors: Floats, lexical: Path
) -> None:
    """Every label is found first under any weight, so none is a reason to move."""
    arena = build_arena(labelled(12), encoder, EncodedCorpus(CORPUS, vectors), lexical, {})
    before = LearntFusion(Fusion(weight=0.83), Evidence.HUMAN, 40, None, "learnt from 40 queries (human)", 0.4)
    neutral = Neutral(0.4, "the shape")
    learnt = learn_fusion(arena, FusionConfig(), evidence=Evidence.LABELLED, neutral=neutral, before=before)
    assert (learnt.fusion.weight, learnt.neutral) == (0.83, 0.4)
    assert learnt.reason.endswith("the start was 0.83, learnt from 40 queries (human)")
    alone = learn_fusion(arena, FusionConfig(), evidence=Evidence.LABELLED, neutral=neutral)
    assert alone.fusion.weight == 0.4


def test_a_fit_learns_from_labels_after_what_it_would_have_learnt_without(monkeypatch: pytest.MonkeyPatch) -> None:
    human = [first_sentence(at, "question", Evidence.HUMAN) for at in range(10)] * 4
    calls: list[tuple[Evidence | None, int, LearntFusion | None]] = []

    def learn(arena: list[Query], config: FusionConfig, *, evidence: Evidence | None, **how: Any) -> LearntFusion:
        calls.append((evidence, len(arena), how["before"]))
        return LearntFusion(Fusion(weight=0.7), evidence, len(arena), None, "")

    monkeypatch.setattr("ragadapt.pipeline.fit.learn_fusion", learn)
    steps = FitSteps.__new__(FitSteps)
    steps.config, steps.clock = FitConfig(), Clock()
    monkeypatch.setattr(FitSteps, "arena", lambda _, queries, *rest: queries)

    def learnt(train: list[Query]) -> LearntFusion:
        queries = DividedQueries(tuple(train), (), (), {}, {}, {}, {}, ())
        return steps.fusion(gate.Plan((), (), None, ""), queries, None, None, Neutral())  # type: ignore[arg-type]

    found = learnt([*human, *labelled(12)])
    assert [call[:2] for call in calls] == [(Evidence.HUMAN, 40), (Evidence.LABELLED, 12)]
    assert calls[0][2] is None and calls[1][2] is not None and found.evidence is Evidence.LABELLED
    calls.clear()
    assert learnt([*human, *labelled(3)]).evidence is Evidence.HUMAN  # too few labels
    assert len(calls) == 1


def test_fewer_labels_have_to_say_more() -> None:
    assert tolerance_of(Evidence.LABELLED, 100) < tolerance_of(Evidence.LABELLED, 99) < tolerance_of(Evidence.CROP, 99)


def test_a_weight_that_the_user_set_is_not_learnt(encoder: Encoder) -> None:
    learnt = learn_fusion(None, FusionConfig(weight=0.2), evidence=Evidence.LABELLED)
    assert learnt.fusion.weight == 0.2
    assert "configuration" in learnt.reason


def test_the_arena_reads_a_masked_passage_as_the_build_reads_passages(encoder: Encoder, tmp_path: Path) -> None:
    """BM25 of the arena = BM25 of a build over the chunks with the masked one in place: headings apart, no targets."""
    from ragadapt.pipeline.stages import save_lexical
    from ragadapt.queries import masked_chunk

    text = "Ask the desk first. Fees are in [the list](https://example.org/zebra/fees.html) and\nPage one\nis older."
    linked = Chunk("x#0", "x", text, ("Page one", "Fees"), 0, len(text))
    chunks = (linked, *CHUNKS)
    corpus = Corpus((), chunks, tuple(range(31)))
    save_lexical(chunks, tmp_path / "whole")
    query = Query("q", "Ask the desk first", "sentence", Evidence.CROP, ("x#0",), span=(0, 18))
    masked = masked_chunk(query, linked)
    assert (masked.heading_path, "desk" in masked.text, "zebra" in masked.text) == (linked.heading_path, False, True)
    save_lexical([*CHUNKS, masked], tmp_path / "masked")

    vectors = encoder.encode_passages(corpus.passages)
    arena = build_arena([query], encoder, EncodedCorpus(corpus, vectors), tmp_path / "whole", {})
    wanted = LexicalIndex.open(tmp_path / "masked")
    assert arena.searcher.lexical.ids() == wanted.ids()
    everything = list(range(len(wanted)))
    for asked in ("zebra fees html", "page one", "fees", "older list", TEXTS[3]):
        np.testing.assert_allclose(
            arena.searcher.lexical.scores_of(asked, everything), wanted.scores_of(asked, everything), rtol=1e-6
        )
    assert not np.any(arena.searcher.lexical.scores_of("zebra", everything))

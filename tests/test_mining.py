"""Hard negatives: never a known positive, never too close to one; and what the teacher says of the candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import sentences, write_tiny_cross_encoder, write_tiny_model

from ragadapt.config import EncoderConfig, FitConfig, MiningConfig
from ragadapt.errors import InvalidConfiguration, ModelNotFound
from ragadapt.evaluation import gate
from ragadapt.lexical import LexicalIndex
from ragadapt.pipeline.adapt import check_teacher, make_examples
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.queries import held_out_negatives
from ragadapt.pipeline.stages import searcher_of
from ragadapt.search.fusion import Candidates, Floats, Fusion
from ragadapt.training import Example
from ragadapt.training.negatives import mine_negatives
from ragadapt.training.teacher import cross_encoder_scores
from ragadapt.values import Chunk, Evidence, Query

IDS = [f"c{number}" for number in range(12)]
POSITIONS = {id: at for at, id in enumerate(IDS)}


def mined(scores: list[float], positives: tuple[str, ...], keys: list[str], groups: list[int], **settings: object):  # type: ignore[no-untyped-def]
    query = Query("q", "text", "label", Evidence.LABELLED, positives)
    found = Candidates(np.arange(12), np.zeros(12, np.float32), np.array(scores, np.float32))
    return mine_negatives(
        [query],
        [found],
        positions=POSITIONS,
        text_keys=keys,
        groups=groups,
        fusion=Fusion(weight=0.0),
        config=MiningConfig(**settings),  # type: ignore[arg-type]
    )


@given(
    st.lists(st.floats(0.1, 9), min_size=12, max_size=12),
    st.sets(st.integers(0, 11), min_size=1, max_size=3),
    st.lists(st.integers(0, 5), min_size=12, max_size=12),
    st.lists(st.integers(0, 6), min_size=12, max_size=12),
)
@settings(max_examples=80, deadline=None)
def test_a_negative_is_never_a_positive_nor_its_twin_nor_its_near_duplicate(
    scores: list[float], positives: set[int], keys: list[int], groups: list[int]
) -> None:
    texts = [f"text {key}" for key in keys]
    result = mined(scores, tuple(IDS[at] for at in positives), texts, groups)
    for at in (*result.negatives[0], *result.candidates[0]):
        assert at not in positives
        assert texts[at] not in {texts[known] for known in positives}
        assert groups[at] not in {groups[known] for known in positives}


def test_a_passage_as_close_as_the_positive_is_a_suspect_not_a_negative() -> None:
    scores = [5.0, 4.9, 4.0, *[0.1 * at for at in range(9)]]
    result = mined(scores, ("c0",), IDS, list(range(12)), negatives=2, margin=0.95)
    assert result.suspects == 1
    assert result.negatives == ((2, 11),)


def test_the_margin_holds_where_the_positive_ranks_below_the_depth() -> None:
    scores = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 1.0, 0.5, *[0.1] * 4]
    result = mined(scores, ("c6",), IDS, list(range(12)), depth=3, negatives=2, candidates=5)
    assert result.negatives == ((),)  # any of the first ones may be an answer that nobody marked
    assert result.suspects == 4
    assert result.candidates == ((0, 1, 2, 3),)
    np.testing.assert_allclose(result.teacher[0], [2.0, 18.0, 16.0, 14.0, 12.0])
    deeper = mined(scores, ("c6",), IDS, list(range(12)), depth=8, negatives=2)
    assert deeper.negatives == ((7, 8),)


def test_no_negative_scores_above_a_positive_whose_score_is_negative() -> None:
    scores = [-1.0, -1.02, -1.2, *[-5.0] * 9]
    result = mined(scores, ("c0",), IDS, list(range(12)), negatives=2, margin=0.95)
    assert result.negatives == ((2, 3),)
    assert result.suspects == 1


def test_a_positive_that_was_not_scored_leaves_no_negatives() -> None:
    query = Query("q", "text", "label", Evidence.LABELLED, ("c11",))
    found = Candidates(np.arange(11), np.zeros(11, np.float32), np.linspace(9, 1, 11, dtype=np.float32))
    result = mine_negatives(
        [query],
        [found],
        positions=POSITIONS,
        text_keys=IDS,
        groups=list(range(12)),
        fusion=Fusion(weight=0.0),
        config=MiningConfig(negatives=2),
    )
    assert result.negatives == ((),)


def test_the_teacher_scores_the_positive_first() -> None:
    scores = [1.0, 5.0, *[0.0] * 10]
    result = mined(scores, ("c0",), IDS, list(range(12)), candidates=3)
    assert (result.positives[0], result.candidates[0][0]) == ((0,), 1)
    np.testing.assert_allclose(result.teacher[0][:2], [2.0, 10.0])


def test_other_chunks_of_a_relevant_document_are_no_negatives() -> None:
    scores = [1.0, 5.0, 4.0, 0.9, *[0.0] * 8]
    query = Query("q", "text", "label", Evidence.LABELLED, ("c1",))
    found = Candidates(np.arange(12), np.zeros(12, np.float32), np.array(scores, np.float32))
    result = mine_negatives(
        [query],
        [found],
        positions=POSITIONS,
        text_keys=IDS,
        groups=list(range(12)),
        fusion=Fusion(weight=0.0),
        config=MiningConfig(negatives=2),
        relevant=[(1, 2)],
    )
    assert result.negatives == ((0, 3),)
    assert 2 not in result.candidates[0]


def test_several_positives_come_best_first() -> None:
    result = mined([1.0, 5.0, 2.0, *[0.0] * 9], ("c0", "c1", "c2"), IDS, list(range(12)))
    assert result.positives == ((1, 2, 0),)
    np.testing.assert_allclose(result.teacher[0][:3], [10.0, 4.0, 2.0])


# Examples with a teacher


def corpus_of(chunks: list[Chunk]) -> Corpus:
    return Corpus((), tuple(chunks), tuple(range(len(chunks))))


CORPUS = corpus_of([Chunk(f"c{n}", f"d{n}", text) for n, text in enumerate(sentences(40, seed=4))])
LABELS = [
    Query(f"q{n}", " ".join(CORPUS.chunks[n].text.split()[:3]), "label", Evidence.LABELLED, (f"c{n}",))
    for n in range(20)
]


def unit_rows(count: int, seed: int) -> Floats:
    rows = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


PASSAGE_VECTORS = unit_rows(40, 1)
QUERY_VECTORS = dict(zip((query.id for query in LABELS), unit_rows(20, 2), strict=True))


def examples(loss: str, **mining: object) -> list[Example]:
    lexical = LexicalIndex.build(CORPUS.ids, [chunk.text for chunk in CORPUS.chunks])
    config = FitConfig.build({"training": {"loss": loss}, "mining": {"candidates": 8, **mining}})
    return make_examples(
        LABELS, searcher_of(EncodedCorpus(CORPUS, PASSAGE_VECTORS), lexical), QUERY_VECTORS, CORPUS, config
    )[0]


def test_margin_mse_has_its_teacher_on_the_scale_of_the_base_models_cosines() -> None:
    plain, scaled = examples("both"), examples("margin_mse")
    at = {chunk.passage: n for n, chunk in enumerate(CORPUS.chunks)}
    taught, cosines = [], []
    for query, one in zip(LABELS, scaled, strict=True):
        rows = PASSAGE_VECTORS[[at[passage] for passage in one.candidates]] @ QUERY_VECTORS[query.id]
        cosines.append(rows - rows.mean())
        taught.append(np.array(one.teacher_scores) - np.mean(one.teacher_scores))
    assert np.std(np.concatenate(taught)) == pytest.approx(np.std(np.concatenate(cosines)), rel=1e-4)
    factors = np.concatenate(
        [np.divide(s.teacher_scores, p.teacher_scores) for p, s in zip(plain, scaled, strict=True)]
    )
    np.testing.assert_allclose(factors, factors[0], rtol=1e-5)  # one factor for all: every order stays
    assert 0 < factors[0] < 0.5


def test_a_named_cross_encoder_teaches(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = write_tiny_cross_encoder(tmp_path / "teacher")
    plain, taught = examples("both"), examples("both", teacher=str(folder))
    tokenizer: object = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for one, other in zip(taught, plain, strict=True):
        assert (one.candidates, one.negatives) == (other.candidates, other.negatives)
        with torch.no_grad():
            pairs = tokenizer([one.query] * 8, list(one.candidates), padding=True, truncation=True, return_tensors="pt")  # type: ignore[operator]
            logits = model(**pairs).logits[:, 0]
        np.testing.assert_allclose(one.teacher_scores, logits.numpy(), atol=1e-4)
    assert any(
        np.argmax(one.teacher_scores) != np.argmax(other.teacher_scores)
        for one, other in zip(taught, plain, strict=True)
    )
    assert examples("infonce", teacher=str(folder)) == examples("infonce")  # nothing is scored that no loss reads
    for one, other in zip(examples("margin_mse", teacher=str(folder)), taught, strict=True):
        assert np.argsort(one.teacher_scores).tolist() == np.argsort(other.teacher_scores).tolist()


def test_the_teacher_scores_a_pair_once_and_says_how_far_it_is(tmp_path: Path) -> None:
    folder = write_tiny_cross_encoder(tmp_path / "teacher")
    told: list[tuple[str, int, int]] = []
    lists = [("red tree", ["a cat", "a dog"]), ("blue", []), ("red tree", ["a dog", "a cat", "the river"])]
    config = EncoderConfig(device="cpu")
    scores = cross_encoder_scores(str(folder), lists, config, progress=lambda *now: told.append(now))
    assert told == [("teacher", 3, 3)]
    assert [len(own) for own in scores] == [2, 0, 3]
    assert scores[0] == scores[2][1::-1]
    assert len(set(scores[2])) == 3


def test_a_teacher_that_cannot_teach_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="'both', 'distill' or 'margin_mse'"):
        check_teacher(FitConfig.build({"mining": {"teacher": "some/reranker"}}))
    check_teacher(FitConfig.build({"mining": {"teacher": "some/reranker"}, "training": {"loss": "distill"}}))
    with pytest.raises(ModelNotFound, match=r"no/such/folder.*Or leave it out"):
        cross_encoder_scores("no/such/folder", [("a", ["b"])], EncoderConfig(device="cpu"))
    write_tiny_model(tmp_path)
    with pytest.raises(InvalidConfiguration, match="Name a cross-encoder"):
        cross_encoder_scores(str(tmp_path / "raw"), [("a", ["b"])], EncoderConfig(device="cpu"))


def test_negatives_that_answer_held_out_queries_are_counted_by_what_the_loss_reads() -> None:
    made = [
        Example(
            "one", "p", negatives=("A cat.", "a dog"), candidates=("p", "a dog", "a bird"), teacher_scores=(1, 0, 0)
        ),
        Example("one", "q", negatives=("A cat.", "a dog")),  # the same query with its other answer
        Example("two", "p", negatives=("a dog",)),
    ]
    corpus = corpus_of([Chunk("held", "d", "a  CAT."), Chunk("bird", "e", "a bird"), Chunk("dog", "f", "a dog")])
    judges = tuple(Query(id, id, "label", Evidence.LABELLED, (id,)) for id in ("held", "bird"))
    plan = gate.Plan((), judges, Evidence.LABELLED, "")
    assert held_out_negatives(made, plan, corpus, "infonce") == (1, 3)
    assert held_out_negatives(made, plan, corpus, "distill") == (1, 2)
    assert held_out_negatives(made, plan, corpus, "both") == (2, 4)

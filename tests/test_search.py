"""The searcher: candidates have exact scores of both sides, and fused search is the explicit formula."""

from __future__ import annotations

import numpy as np
import pytest

from ragadapt.errors import InvalidInput
from ragadapt.index import exact_index
from ragadapt.lexical import LexicalIndex
from ragadapt.search.fusion import Background, Fusion, move_towards, normal_surprisal, standardise
from ragadapt.search.searcher import Searcher

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
    "cloud",
    "night",
]


def corpus(count: int = 60, dim: int = 8, seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(count)]
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return [f"c{number}" for number in range(count)], texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def searcher() -> Searcher:
    ids, texts, vectors = corpus()
    return Searcher(
        exact_index(ids, vectors), LexicalIndex.build(ids, texts), Background.of(vectors), Fusion(feedback=0.0), depth=5
    )


QUERIES = ["red fox runs", "night cloud", "nothing known here zzz"]


def query_vectors() -> np.ndarray:
    return corpus(3, seed=9)[2]


def brute_force(searcher: Searcher, fusion: Fusion) -> tuple[np.ndarray, np.ndarray]:
    """z-scores (Q, N) of both sides over the whole corpus."""
    _, _, vectors = corpus()
    dense = query_vectors() @ vectors.T
    lexical = searcher.lexical.scores(QUERIES)
    z_dense = standardise(dense, dense.mean(1, keepdims=True), dense.std(1, keepdims=True))
    z_lexical = standardise(lexical, lexical.mean(1, keepdims=True), lexical.std(1, keepdims=True))
    return z_dense, z_lexical


def test_candidates_hold_exact_scores_of_both_sides_whoever_found_them(searcher: Searcher) -> None:
    z_dense, z_lexical = brute_force(searcher, searcher.fusion)
    for row, found in enumerate(searcher.candidates(QUERIES, query_vectors())):
        np.testing.assert_allclose(found.dense, z_dense[row][found.positions], atol=2e-4)
        np.testing.assert_allclose(found.lexical, z_lexical[row][found.positions], atol=2e-4)
        best_dense = set(np.argsort(-z_dense[row])[:5].tolist())
        assert best_dense <= set(found.positions.tolist())


def test_hybrid_search_with_all_candidates_is_the_formula_over_the_whole_corpus(searcher: Searcher) -> None:
    fusion = Fusion(weight=0.3, feedback=0.0)
    z_dense, z_lexical = brute_force(searcher, fusion)
    fused = 0.6 * normal_surprisal(z_dense) + 1.4 * z_lexical
    wide = Searcher(searcher.index, searcher.lexical, searcher.background, fusion, depth=60)
    for row, ranked in enumerate(wide.rank(QUERIES, query_vectors(), 10)):
        expected = np.argsort(-fused[row], kind="stable")[:10]
        assert ranked.ids == [f"c{at}" for at in expected]
        np.testing.assert_allclose(ranked.scores, fused[row][expected], atol=2e-3)


def test_feedback_searches_again_with_the_moved_query(searcher: Searcher) -> None:
    fusion = Fusion(feedback=0.5, feedback_depth=2)
    wide = Searcher(searcher.index, searcher.lexical, searcher.background, fusion, depth=60)
    _, _, vectors = corpus()
    first = wide.candidates(QUERIES, query_vectors(), fusion=Fusion(feedback=0.0))
    best = [vectors[found.ranked(fusion, 2)[0]] for found in first]
    moved = move_towards(query_vectors(), best, 0.5)
    for row, found in enumerate(wide.candidates(QUERIES, query_vectors())):
        scores = moved[row] @ vectors.T
        expected = standardise(scores, scores.mean(), scores.std())
        np.testing.assert_allclose(found.dense, expected[found.positions], atol=2e-4)


def test_included_positions_are_scored_in_any_case(searcher: Searcher) -> None:
    _, _, vectors = corpus()
    last = int(np.argmin(query_vectors()[0] @ vectors.T))
    (found,) = searcher.candidates(QUERIES[:1], query_vectors()[:1], include=[[last]])
    assert last in found.positions


def test_lexical_search_leaves_out_what_shares_no_word(searcher: Searcher) -> None:
    assert searcher.rank(QUERIES[2:], query_vectors()[2:], 5, "lexical")[0].ids == []


def test_a_mask_keeps_forbidden_passages_out_of_the_lexical_side(searcher: Searcher) -> None:
    allowed = np.zeros(60, bool)
    allowed[:10] = True
    ranked = searcher.rank(QUERIES[:1], query_vectors()[:1], 60, "lexical", allowed=allowed)[0]
    assert set(ranked.ids) <= {f"c{number}" for number in range(10)}


def test_indexes_of_different_sizes_are_refused() -> None:
    ids, texts, vectors = corpus()
    with pytest.raises(InvalidInput, match="60 passages, the lexical one 59"):
        Searcher(exact_index(ids, vectors), LexicalIndex.build(ids[1:], texts[1:]), Background.of(vectors), Fusion())


def test_k_below_one_is_refused(searcher: Searcher) -> None:
    with pytest.raises(InvalidInput, match="k = 0"):
        searcher.rank(QUERIES, query_vectors(), 0)

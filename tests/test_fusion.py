"""Fusion: the statistics it rests on, its limits, and how a weight is learnt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ragadapt.errors import InvalidInput
from ragadapt.search.fusion import (
    NEUTRAL_WEIGHT,
    RRF_K,
    Background,
    Candidates,
    Fusion,
    learn_weight,
    move_towards,
    normal_surprisal,
    standardise,
)


def candidates(dense: list[float], lexical: list[float]) -> Candidates:
    return Candidates(np.arange(len(dense)), np.array(dense, np.float32), np.array(lexical, np.float32))


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 12))
@settings(max_examples=25, deadline=None)
def test_background_gives_the_moments_of_all_scores_without_a_scan(seed: int, count: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    queries = rng.normal(size=(3, dim)).astype(np.float32)
    means, deviations = Background.of(vectors, block=7).of_scores(queries)
    scores = queries @ vectors.T
    np.testing.assert_allclose(means, scores.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(deviations, scores.std(axis=1), atol=1e-3)


def test_normal_surprisal_is_minus_log_of_the_upper_tail_even_far_out() -> None:
    z = np.array([-3.0, 0.0, 2.0, 8.0, 30.0])
    np.testing.assert_allclose(normal_surprisal(z), -norm.logsf(z), rtol=1e-5)


def test_a_dense_outlier_outweighs_a_lexical_one_of_equal_z() -> None:
    found = candidates([5.0, 0.0], [0.0, 5.0])
    positions, _ = found.ranked(Fusion())
    assert positions.tolist() == [0, 1]
    positions, _ = found.ranked(Fusion(method="zscore"))
    assert positions.tolist() == [0, 1]  # a tie under z-scores: the order of positions


def test_without_a_dense_outlier_the_lexical_side_decides() -> None:
    positions, _ = candidates([1.0, 0.5], [0.0, 5.0]).ranked(Fusion())
    assert positions.tolist() == [1, 0]


@pytest.mark.parametrize(("weight", "first"), [(1.0, 0), (0.0, 1)])
def test_the_ends_of_the_weight_are_one_side_alone(weight: float, first: int) -> None:
    positions, scores = candidates([3.0, 1.0], [1.0, 3.0]).ranked(Fusion(weight=weight))
    assert positions[0] == first
    assert scores[0] > scores[1]


def test_rrf_adds_reciprocal_ranks() -> None:
    _, scores = candidates([3.0, 1.0, 2.0], [1.0, 3.0, 2.0]).ranked(Fusion(method="rrf"))
    expected = sorted(
        [1 / (RRF_K + 1) + 1 / (RRF_K + 3), 1 / (RRF_K + 3) + 1 / (RRF_K + 1), 2 / (RRF_K + 2)], reverse=True
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_side_without_spread_says_nothing() -> None:
    assert standardise(np.array([2.0, 2.0]), 2.0, 0.0).tolist() == [0.0, 0.0]


def test_feedback_moves_the_query_towards_its_best_passages_and_keeps_unit_length() -> None:
    query = np.array([[1.0, 0.0]], np.float32)
    moved = move_towards(query, [np.array([[0.0, 1.0]], np.float32)], 0.5)
    np.testing.assert_allclose(moved, [[2 / np.sqrt(5), 1 / np.sqrt(5)]], rtol=1e-6)
    np.testing.assert_allclose(move_towards(query, [np.zeros((0, 2), np.float32)], 0.5), query)


def test_a_weight_outside_0_and_1_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"1\.5 is outside"):
        Fusion(weight=1.5)


def test_fusion_survives_the_manifest() -> None:
    fusion = Fusion(weight=0.35, feedback=0.0)
    assert Fusion.from_dict(fusion.as_dict()) == fusion


def first_is(position: int):  # type: ignore[no-untyped-def]
    return lambda ranked: float(ranked[0] == position)


def many(count: int, dense_right: float, seed: int = 0) -> tuple[list[Candidates], list[object]]:
    """Queries whose answer is position 0; the dense side finds it with probability dense_right, else the lexical."""
    rng = np.random.default_rng(seed)
    lists, judges = [], []
    for _ in range(count):
        right, wrong = [4.0, 0.0], [0.0, 4.0]
        dense_wins = rng.random() < dense_right
        lists.append(candidates(right if dense_wins else wrong, wrong if dense_wins else right))
        judges.append(first_is(0))
    return lists, judges


def test_the_weight_moves_to_the_side_that_answers() -> None:
    lists, judges = many(300, dense_right=0.95)
    assert learn_weight(lists, judges).chosen >= NEUTRAL_WEIGHT
    lists, judges = many(300, dense_right=0.05)
    curve = learn_weight(lists, judges)
    assert curve.chosen < NEUTRAL_WEIGHT
    assert curve.quality[curve.weights.index(curve.chosen)] > 0.9


def test_without_queries_the_prior_stays() -> None:
    assert learn_weight([], []).chosen == NEUTRAL_WEIGHT


def test_one_query_is_no_reason_to_leave_the_prior() -> None:
    lists, judges = many(1, dense_right=0.0)
    assert learn_weight(lists, judges).chosen == NEUTRAL_WEIGHT


def test_biased_evidence_may_raise_the_dense_share_but_never_lower_it() -> None:
    lists, judges = many(300, dense_right=0.02)
    assert learn_weight(lists, judges, at_least=NEUTRAL_WEIGHT).chosen >= NEUTRAL_WEIGHT


def test_lists_and_judges_must_match() -> None:
    with pytest.raises(InvalidInput, match="1 candidate lists but 0 judges"):
        learn_weight([candidates([1.0], [1.0])], [])

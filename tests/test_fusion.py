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
    ScoreShapes,
    _one_standard_error,
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


def test_with_few_queries_the_neutral_weight_stays_exactly() -> None:
    lists, judges = many(2, dense_right=0.5)
    curve = learn_weight(lists, judges, neutral=0.37)
    assert (curve.chosen, 0.37 in curve.weights) == (0.37, True)
    assert learn_weight([], [], neutral=0.37).chosen == 0.37


def test_the_weight_moves_no_further_from_the_neutral_one_than_the_evidence_says() -> None:
    """Quality is right below .45 and wrong above, so the nearest right weight is taken from either start."""
    lists, judges = [candidates([4.0, 0.0], [0.0, 10.0])] * 60, [first_is(1)] * 60
    right = [weight for weight, value in zip(*_curve(lists, judges)) if value == 1]
    assert 0.3 < max(right) < 0.8
    assert learn_weight(lists, judges, neutral=0.9).chosen == max(right)
    assert learn_weight(lists, judges, neutral=0.12).chosen == 0.12


def test_a_bump_on_the_other_side_of_the_neutral_weight_is_not_taken_for_a_reason_to_go_there() -> None:
    """At .4 most lose and some gain: within an error of the best, as the neutral .6 is not, and nearer to it."""
    best = np.full(20, 0.9)
    table = np.stack([best + np.where(np.arange(20) < 15, -0.1, 0.2), best - 0.04, best - 0.01, best])
    table[2, 0] -= 0.1
    found, chosen, quality = _one_standard_error(table, (0.4, 0.6, 0.8, 0.95), 0.6, 1.0, None)
    assert quality[1] < quality[0] < quality[3]
    assert (found, chosen) == (0.95, 0.95)
    assert _one_standard_error(table[::-1], (0.25, 0.4, 0.6, 0.8), 0.6, 1.0, None)[1] == 0.25


def _curve(lists: list[Candidates], judges: list[object]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    curve = learn_weight(lists, judges)  # type: ignore[arg-type]
    return curve.weights, curve.quality


def test_shapes_are_means_of_the_best_fiftieth_without_the_own_passage() -> None:
    rng = np.random.default_rng(0)
    dense, lexical = rng.normal(size=(3, 201)).astype(np.float32), rng.exponential(size=(3, 201)).astype(np.float32)
    dense[:, 5] = lexical[:, 5] = 9.0  # what the queries were cut from
    shapes = ScoreShapes.of(dense, lexical, [[5]] * 3)
    rest = np.delete(np.arange(201), 5)
    best = [sorted(-norm.logsf(row[rest]))[-4:] for row in dense]
    assert shapes.dense == pytest.approx(np.mean(best), rel=1e-5)
    assert shapes.lexical == pytest.approx(np.mean([sorted(row[rest])[-4:] for row in lexical]), rel=1e-5)
    assert (shapes.queries, shapes.found) == (3, 1.0)
    whole = ScoreShapes.of(dense, lexical)  # of questions that people asked nothing is left out
    assert whole.dense > shapes.dense
    assert whole.found is None
    dense[0, 5], dense[1, 5] = -9.0, -9.0  # last of 201, twice
    assert ScoreShapes.of(dense, lexical, [[5]] * 3).found == pytest.approx((1 + 2 / 201) / 3)


def test_part_of_a_corpus_has_the_shape_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    dense, lexical = rng.normal(size=(50, 20_000)), rng.exponential(size=(50, 20_000)) - 1
    whole, part = (ScoreShapes.of(dense[:, :count], lexical[:, :count]).weight(1.85) for count in (20_000, 100))
    assert part == pytest.approx(whole, abs=0.04)


def test_the_side_that_stands_out_further_gets_the_larger_share() -> None:
    assert ScoreShapes(8.0, 4.0, 10).weight(2.0) == 0.5
    assert ScoreShapes(12.0, 4.0, 10).weight(2.0) == round(27 / 35, 2)
    assert ScoreShapes(4.0, 4.0, 10).weight(2.0) == round(1 / 9, 2)


@pytest.mark.parametrize(("found", "share"), [(None, 0.5), (1.0, 0.5), (0.5, 0.5), (0.4, 0.25), (0.3, 0), (0, 0)])
def test_a_dense_side_that_does_not_find_what_it_was_asked_from_gets_no_say(found: float | None, share: float) -> None:
    assert ScoreShapes(8.0, 4.0, 10, found).weight(2.0) == share


def test_what_says_nothing_leaves_the_plain_sum() -> None:
    one_passage, none = np.zeros((2, 1), np.float32), np.zeros((0, 4), np.float32)
    silent = [ScoreShapes.of(none, none), ScoreShapes.of(none, none, []), ScoreShapes.of(one_passage, one_passage)]
    silent += [ScoreShapes.of(one_passage, one_passage, own) for own in ([[0], [0]], [[], []])]
    assert [shapes.weight(2.0) for shapes in silent] == [NEUTRAL_WEIGHT] * 5
    zeros, one = np.zeros((4, 100), np.float32), np.zeros((4, 100), np.float32)
    one[:, 7] = 9.0
    assert ScoreShapes.of(zeros, zeros, [[3]] * 4).weight(2.0) == NEUTRAL_WEIGHT
    assert ScoreShapes.of(one, zeros).weight(2.0) == NEUTRAL_WEIGHT  # no word of the questions is known
    assert 0 <= ScoreShapes.of(zeros, one).weight(2.0) < 0.1  # all vectors are alike


def test_lists_and_judges_must_match() -> None:
    with pytest.raises(InvalidInput, match="1 candidate lists but 0 judges"):
        learn_weight([candidates([1.0], [1.0])], [])

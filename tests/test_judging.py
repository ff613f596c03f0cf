"""Judged queries: units, and nDCG as the library computes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragadapt.evaluation import evaluate
from ragadapt.evaluation.judging import judge_by_chunk, judge_by_document
from ragadapt.values import Evidence, Query


def query(*positives: str) -> Query:
    return Query("q", "text", "label", Evidence.LABELLED, positives)


@given(st.permutations(range(20)), st.dictionaries(st.integers(0, 19), st.integers(1, 3), min_size=1, max_size=15))
@settings(max_examples=60, deadline=None)
def test_ndcg_agrees_with_the_evaluation_library(order: list[int], grades: dict[int, int]) -> None:
    documents = [f"d{number:02}" for number in range(20)]
    (judged,) = judge_by_document([query()], {"q": {documents[at]: grade for at, grade in grades.items()}}, documents)
    run = {"q": {documents[at]: float(-rank) for rank, at in enumerate(order)}}
    expected = evaluate(run, {"q": {documents[at]: grade for at, grade in grades.items()}}).mean["nDCG@10"]
    assert judged.ndcg(np.array(order)) == pytest.approx(expected, abs=1e-6)


def test_the_best_chunk_stands_for_its_document() -> None:
    (judged,) = judge_by_document([query()], {"q": {"b": 1}}, ["a", "a", "b", "b"])
    assert judged.units(np.array([0, 1, 3, 2])) == [0, 1]
    assert judged.rank_of_first(np.array([0, 1, 3, 2])) == 2


def test_a_query_without_a_known_positive_is_left_out() -> None:
    assert judge_by_chunk([query("gone")], {"c1": 0}) == []
    assert judge_by_chunk([query("c1", "gone")], {"c1": 0})[0].relevant == {0: 1}

"""Hard negatives: never a known positive, never too close to one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ragadapt.config import MiningConfig
from ragadapt.fusion import Candidates, Fusion
from ragadapt.mining import mine_negatives
from ragadapt.values import Evidence, Query

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

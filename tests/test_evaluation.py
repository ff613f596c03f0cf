"""Metrics against trec_eval's own code and hand counts; intervals against known ones; run files."""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import NormalDist

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.evaluation import (
    METRICS,
    Interval,
    escape_id,
    evaluate,
    interval,
    paired_bootstrap,
    ranked,
    read_run,
    write_run,
)
from ragadapt.evaluation.runs import unescape_id

IDS = st.sampled_from([f"d{i}" for i in range(12)] + ["Ä", "é", "漢", "z z", "😀"])
SCORES = st.dictionaries(IDS, st.sampled_from([0.0, 0.1, 0.1 + 1e-12, 0.5, 1.0, -2.0]), max_size=15)
RUNS = st.dictionaries(st.sampled_from(["q1", "q2", "q3", "q9"]), SCORES, max_size=4)
QRELS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.dictionaries(IDS, st.integers(0, 3), min_size=1, max_size=8),
    min_size=1,
)


# metrics


def test_values_are_those_counted_by_hand() -> None:
    result = evaluate({"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"b": 1, "c": 2, "x": 1}})
    dcg = 1 / math.log2(3) + 2 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert result.mean["nDCG@10"] == pytest.approx(dcg / ideal)
    assert result.mean["R@10"] == pytest.approx(2 / 3)
    assert result.mean["RR@10"] == pytest.approx(1 / 2)
    assert result.mean["AP@100"] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_reciprocal_rank_and_recall_stop_at_their_cutoff() -> None:
    run = {"q": {f"d{i:02}": -float(i) for i in range(20)}}
    result = evaluate(run, {"q": {"d10": 1}}, ("RR@10", "R@10", "R@11", "RR"))
    assert result.mean == pytest.approx({"RR@10": 0, "R@10": 0, "R@11": 1, "RR": 1 / 11})


def test_a_query_missing_from_the_run_counts_zero_and_an_unjudged_one_nothing() -> None:
    run = {"q1": {"a": 1.0}, "unjudged": {"a": 1.0}}
    result = evaluate(run, {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 0}})
    for metric in METRICS:
        assert list(result.per_query[metric].items()) == [("q1", 1.0), ("q2", 0.0), ("q3", 0.0)]
        assert result.mean[metric] == pytest.approx(1 / 3)
    assert result.n == 3


def test_no_judgements_give_no_values() -> None:
    result = evaluate({"q": {"a": 1.0}}, {})
    assert (result.n, result.mean["nDCG@10"], result.per_query["nDCG@10"]) == (0, 0.0, {})


@given(RUNS, QRELS)
@settings(max_examples=80, deadline=None)
def test_every_query_scores_as_in_trec_eval_ties_included(run, qrels) -> None:
    names = {"nDCG@10": "ndcg_cut_10", "R@10": "recall_10", "AP@100": "map_cut_100", "RR": "recip_rank"}
    ours = evaluate(run, qrels, tuple(names))
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(names.values())).evaluate(run)
    for name, theirs_name in names.items():
        for query in qrels:
            expected = theirs.get(query, {}).get(theirs_name, 0.0)
            assert ours.per_query[name][query] == pytest.approx(expected, abs=1e-6)


@given(SCORES)
def test_ties_go_to_the_later_id_however_the_run_was_filled(scores) -> None:
    expected = sorted(scores, key=lambda d: d, reverse=True)
    expected.sort(key=lambda d: -float(np.float32(scores[d])))
    assert ranked(scores) == expected
    assert ranked(dict(reversed(scores.items()))) == expected


def test_the_reciprocal_rank_breaks_ties_as_the_other_metrics_do() -> None:
    result = evaluate({"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1}}, ("RR@10", "nDCG@10"))
    assert result.mean == {"RR@10": 1.0, "nDCG@10": 1.0}


def test_graded_and_judged_only_measures_read_the_whole_ranking() -> None:
    run = {"q": {f"d{i:03}": -float(i) for i in range(200)}}
    qrels = {"q": {"d150": 2, "d000": 1}}
    assert evaluate(run, qrels, ("RR(rel=2)", "P(rel=2,judged_only=True)@5")).mean == pytest.approx(
        {"RR(rel=2)": 1 / 151, "P(rel=2,judged_only=True)@5": 1 / 5}
    )


def test_a_measure_that_no_provider_computes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="No installed provider"):
        evaluate({}, {"q": {"a": 1}}, ("RR(judged_only=True)@5",))


@pytest.mark.parametrize("name", ["nDCG@@10", "nothing@10", "nDCG@ten", "__import__('os')"])
def test_an_unknown_metric_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="Unknown metric"):
        evaluate({}, {"q": {"a": 1}}, (name,))


def test_scores_and_grades_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'b' has the score nan"):
        evaluate({"q": {"a": 1.0, "b": math.nan}}, {"q": {"a": 1}})
    with pytest.raises(InvalidLabels, match="grades are whole numbers"):
        evaluate({"q": {"a": 1.0}}, {"q": {"a": 0.5}})  # type: ignore[dict-item]


def test_three_thousand_queries_of_a_hundred_hits_take_little_time() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3000, 100))
    run = {f"q{i}": {f"d{j}": float(scores[i, j]) for j in range(100)} for i in range(3000)}
    started = time.perf_counter()
    result = evaluate(run, {q: {"d7": 1} for q in run})
    assert time.perf_counter() - started < 10  # 0.6 s alone; a process per call would take minutes
    assert result.mean["R@100"] == 1.0


# intervals


def test_equal_systems_have_no_difference_and_even_odds() -> None:
    values = np.random.default_rng(1).random(150)
    result = paired_bootstrap(values, values, seed=3)
    assert (result.delta, result.low, result.high, result.p_better, result.n) == (0, 0, 0, 0.5, 150)
    assert not result.better
    assert not result.worse


def test_a_constant_gain_is_certain() -> None:
    values = np.random.default_rng(1).random(150)
    result = paired_bootstrap(values + 0.25, values, seed=3)
    assert (result.delta, result.low, result.high) == pytest.approx((0.25, 0.25, 0.25))
    assert result.p_better == 1.0
    assert result.better


def test_swapping_the_systems_turns_the_interval_round() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(120), rng.random(120)
    forth, back = paired_bootstrap(a, b, seed=5), paired_bootstrap(b, a, seed=5)
    assert (back.delta, back.low, back.high) == pytest.approx((-forth.delta, -forth.high, -forth.low))


def test_the_interval_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(4).normal(0.3, 1.0, size=2000)
    result = interval(values, seed=7, samples=4000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert result.delta == pytest.approx(values.mean())
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.08)
    assert result.p_better is None


def test_intervals_of_95_percent_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(8)
    samples = [rng.choice([0.0, 0.5, 1.0], p=[0.5, 0.2, 0.3], size=100) for _ in range(300)]
    found = [interval(values, seed=i, samples=400) for i, values in enumerate(samples)]
    assert 0.90 <= np.mean([each.low <= 0.4 <= each.high for each in found]) <= 0.99


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(40), rng.random(40)
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1).low != paired_bootstrap(a, b, seed=2).low


def test_the_vectorised_bootstrap_equals_the_plain_loop() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.random(60), rng.random(60)
    result = paired_bootstrap(a, b, seed=11, samples=500)
    drawn = np.random.default_rng(11).integers(0, 60, size=(500, 60))
    means = [sum(a[i] - b[i] for i in row) / 60 for row in drawn]
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert result.p_better == np.mean(np.array(means) > 0)


def test_a_few_queries_that_all_gain_may_be_chance() -> None:
    def found(gains: int, of: int = 36) -> Interval:
        return paired_bootstrap([0.5] * gains + [0.1] * (of - gains), [0.1] * of, seed=1)

    four, six = found(4), found(6)
    assert four.low > 0 and four.p_value == pytest.approx(2 / 2**4) and not four.better
    assert six.low > 0 and six.p_value == pytest.approx(2 / 2**6) and six.better
    turned = paired_bootstrap([0.1] * 36, [0.5] * 4 + [0.1] * 32, seed=1)
    assert turned.high < 0 and not turned.worse
    assert found(0).p_value == 1 and not found(0).better and not found(0).worse


def test_chance_is_told_as_by_the_t_test_where_many_queries_differ() -> None:
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.2):
        values = rng.normal(shift, 1, 200)
        deviates = values.mean() / (values.std(ddof=1) / np.sqrt(200))
        expected = 2 * (1 - NormalDist().cdf(abs(deviates)))
        found = paired_bootstrap(values, np.zeros(200), seed=1, samples=20_000).p_value
        assert found == pytest.approx(expected, abs=0.01)
    gains = np.repeat([0.4, 0.3, -0.2, 0.5, 0.1, -0.1, 0.3, 0.2, -0.3, 0.2], 20)
    alone = paired_bootstrap(gains, np.zeros(200), seed=1)
    together = paired_bootstrap(gains, np.zeros(200), seed=1, clusters=[number // 20 for number in range(200)])
    assert alone.p_value is not None and together.p_value is not None
    assert alone.p_value < 0.001 < 0.05 < together.p_value


def test_queries_of_one_document_drawn_together_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    per_document = rng.normal(0.05, 0.2, size=40)
    values = np.repeat(per_document, 10)
    labels = [f"doc{i}" for i in range(40) for _ in range(10)]
    alone, together = interval(values, seed=1), interval(values, seed=1, clusters=labels)
    assert together.delta == alone.delta
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.15)
    assert (alone.n, alone.clusters, alone.few) == (400, 400, False)
    assert (together.n, together.clusters, together.few) == (400, 40, True)


def test_clusters_of_one_query_each_change_nothing() -> None:
    values = np.random.default_rng(3).random(50)
    assert interval(values, seed=1, clusters=range(50)) == interval(values, seed=1)


def test_fewer_than_a_hundred_queries_are_flagged() -> None:
    assert interval(np.ones(99), seed=0).few
    assert not interval(np.ones(100), seed=0).few


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "at least one"),
        ([1.0], [1.0, 0.0], "a has 1 values and b has 2"),
        ([1.0, math.nan], [1.0, 0.0], r"a\[1\] = nan"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(a, b, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        paired_bootstrap(a, b, seed=0)


def test_cluster_labels_must_match_the_queries() -> None:
    with pytest.raises(InvalidInput, match="2 cluster labels for 3 values"):
        interval([1.0, 2.0, 3.0], seed=0, clusters=["a", "b"])


# run files


@given(st.dictionaries(st.text(min_size=1), st.dictionaries(st.text(min_size=1), st.floats(-1e6, 1e6), min_size=1)))
@settings(max_examples=40, deadline=None)
def test_a_written_run_reads_back_the_same(tmp_path_factory, run) -> None:
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    ids = [*run, *(document for hits in run.values() for document in hits)]
    if any(sign in id for id in ids for sign in "\0\u2420\u2423") or any(
        "\ud800" <= letter <= "\udfff" for id in ids for letter in id
    ):
        return
    write_run(path, run, "tag")
    assert read_run(path) == run


@given(st.text(min_size=1).filter(lambda id: not set(id) & set("\0\u2420\u2423")))
def test_an_escaped_id_holds_no_white_space_and_comes_back(id: str) -> None:
    assert escape_id(id).split() == [escape_id(id)]
    assert unescape_id(escape_id(id)) == id


def test_the_file_has_six_columns_best_first_with_ranks_from_one(tmp_path: Path) -> None:
    write_run(tmp_path / "r.trec", {"q1": {"a": 0.5, "b": 2.0, "c": 0.5}, "q2": {}}, "mine")
    assert (tmp_path / "r.trec").read_text() == "q1 Q0 b 1 2.0 mine\nq1 Q0 c 2 0.5 mine\nq1 Q0 a 3 0.5 mine\n"


def test_ids_with_white_space_stay_one_column_and_others_are_verbatim(tmp_path: Path) -> None:
    run = {"q 1": {"My notes/intro v2.md": 1.0, "https://x.org/a%20b": 0.5, "全角\u3000名.md": 0.25}}
    write_run(tmp_path / "r.trec", run)
    lines = (tmp_path / "r.trec").read_text(encoding="utf-8").splitlines()
    assert [line.split()[2] for line in lines] == [
        "My␠notes/intro␠v2.md",
        "https://x.org/a%20b",
        "全角␣3000;名.md",
    ]
    assert {len(line.split()) for line in lines} == {6}
    assert read_run(tmp_path / "r.trec") == run


@given(run=RUNS, qrels=QRELS)
@settings(max_examples=30, deadline=None)
def test_an_outside_tool_scores_the_file_as_we_score_the_run(tmp_path_factory, run, qrels) -> None:
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    write_run(path, run)
    escaped = {q: {escape_id(d): grade for d, grade in grades.items()} for q, grades in qrels.items()}
    outside = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10, ir_measures.R @ 10], escaped, ir_measures.read_trec_run(str(path))
    )
    ours = evaluate(run, qrels, ("nDCG@10", "R@10"))
    assert {str(metric): value for metric, value in outside.items()} == pytest.approx(ours.mean, abs=1e-6)


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    path = tmp_path / "r.trec"
    write_run(path, {"q": {"a": 1.0}})
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="finite number"):
        write_run(path, {"q": {"b": 1.0}, "q2": {"c": math.inf}})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["r.trec"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", "line 2: 5 columns"),
        ("q Q0 my doc 1 0.5 tag", "line 2: 7 columns"),
        ("q Q0 d 1 high tag", "line 2: the score 'high'"),
        ("q Q0 d 1 nan tag", "line 2: the score 'nan'"),
        ("q Q0 first 1 0.5 tag", "line 2: query 'q' lists 'first' twice"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "r.trec"
    path.write_text(f"q Q0 first 1 1.0 tag\n{line}\n")
    with pytest.raises(InvalidInput, match=message):
        read_run(path)


def test_tabs_blank_lines_windows_endings_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.trec"
    path.write_bytes(b"\xef\xbb\xbfq\tQ0\td1\t1\t2.5\tx\r\n\r\nq Q0  d2 2 1e-3 x")
    assert read_run(path) == {"q": {"d1": 2.5, "d2": 0.001}}


@pytest.mark.parametrize("id", ["", "a␠b", "a␣b", "a\0b"])
def test_an_id_that_no_run_file_can_hold_is_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(InvalidInput, match="TREC run"):
        write_run(tmp_path / "r.trec", {"q": {id: 1.0}})

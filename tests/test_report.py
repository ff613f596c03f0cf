"""The report: what is written reads back, the page is safe and whole, charts and words say what the figures say."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ragadapt.config import FitConfig
from ragadapt.errors import InvalidInput
from ragadapt.evaluation import Interval, evaluate, interval, paired_bootstrap
from ragadapt.evaluation.gate import Verdict
from ragadapt.report import (
    AdapterCheck,
    ChoicesSwept,
    CorpusFacts,
    Curve,
    Delta,
    EvidenceUsed,
    ExpectedAnswer,
    Failures,
    FoundPassage,
    LearningPoint,
    Licence,
    Measure,
    MeasuredSystem,
    Passage,
    QueryYield,
    QuestionJudged,
    QuestionsJudged,
    Report,
    ScoreDistributions,
    SkippedSource,
    SplitSizes,
    Step,
    SweptChoice,
    Timing,
    VerdictFacts,
    compare,
    differences,
    headline,
    histogram,
    measured,
    never_retrieved,
    read_report,
    table,
    words,
    worst_queries,
    write_report,
)
from ragadapt.report import charts as chart
from ragadapt.report.elements import table as element_table
from ragadapt.report.markup import tag
from ragadapt.report.page import page

QRELS = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}, "q4": {"d": 1}}
BEFORE = {"q1": {"x": 2.0, "a": 1.0}, "q2": {"b": 1.0}, "q3": {"x": 1.0}, "q4": {"d": 1.0}}
AFTER = {"q1": {"a": 2.0, "x": 1.0}, "q2": {"y": 2.0, "b": 1.0}, "q3": {"x": 1.0}, "q4": {"d": 1.0}}
TEXTS = {"q1": "first", "q2": "second", "q3": "third", "q4": "fourth"}


def passage(id: str) -> Passage:
    return Passage(id=id, text=f"text of {id}", heading=f"heading {id}", source=f"{id}.md")


@functools.cache
def full(words: str = "plain") -> Report:
    """A report with every part, `words` in every place where a text of the corpus may stand."""

    def text(_: str) -> Passage:
        return Passage(id=words + _, text=words, heading=words, source=words)

    base, new = evaluate(BEFORE, QRELS), evaluate(AFTER, QRELS)
    sides = ((words, BEFORE, base), (words, AFTER, new))
    texts = dict.fromkeys(QRELS, words)
    curve = Curve.through([(0.0, interval([0.1, 0.2], seed=1)), (1.0, interval([0.3, 0.4], seed=1))], chosen=1.0)
    scores = histogram([0.7, 0.9], [0.1, 0.3], edges=5)
    return Report(
        title=words,
        created="2026-01-02T03:04:05+00:00",
        base_model=words,
        verdict=VerdictFacts(outcome="WIN", reasons=(words,), steps=(Step(name=words, passed=None, detail=words),)),
        evidence=EvidenceUsed(tier="human", queries=4, documents=4, note=words),
        systems=(
            measured("base-dense", words, base, seed=1),
            measured("shipped", words, new, seed=1, shipped=True, note=words),
        ),
        deltas=differences("shipped", new, {"base-dense": base}, seed=1),
        comparison=compare(texts, QRELS, *sides, text, kinds=dict.fromkeys(QRELS, words)),
        failures=Failures(
            worst=worst_queries(texts, QRELS, *sides, text),
            never_retrieved=never_retrieved(AFTER, ["a", "z"], text),
        ),
        learning=(LearningPoint(step=0, loss=2.0, dev=0.1), LearningPoint(step=10, loss=1.0)),
        interpolation=curve,
        fusion=curve,
        curves=(curve.model_copy(update={"title": words, "x_label": words, "note": words, "levels": {words: 0.2}}),),
        distributions=ScoreDistributions(before=scores, after=scores),
        checks=(AdapterCheck(name=words, passed=True, detail=words),),
        corpus=CorpusFacts(
            documents=3,
            chunks=9,
            tokens=99,
            skipped=(SkippedSource(source=words, reason=words),),
            notes=(SkippedSource(source=words, reason=words),),
        ),
        queries=(QueryYield(kind=words, evidence=words, made=3, kept=1, dropped={words: 2}, example=words),),
        split=SplitSizes(train=2, dev=1, heldout=4, leaked=0, documents={"train": 2}),
        timings=(Timing(stage=words, seconds=2.0, items=4, unit=words, peak_memory_bytes=10**9),),
        warnings=(words,),
        configuration={words: {"deep": [words, 1]}, "seed": 13},
        seeds={"run": 13},
        versions={words: words},
        machine={words: words},
        licences=(Licence(what=words, licence=words, source=words),),
        swept=ChoicesSwept(
            best="a",
            cheapest="b",
            sentence=words,
            alike=words,
            choices=tuple(
                SweptChoice(
                    name=name,
                    label=words,
                    model=words,
                    chunk_tokens=128,
                    settings=words,
                    value=0.5,
                    low=-0.1,
                    told=name == "b",
                    passages=3,
                    tokens=99,
                    encoded=3,
                    seconds=1.0,
                    parameters=10,
                    vector_bytes=1000,
                    search_ms=1.0,
                )
                for name in ("a", "b")
            ),
            left_out=(SkippedSource(source=words, reason=words),),
        ),
        judged=QuestionsJudged(
            subject="shipped",
            k=10,
            depth=100,
            unit="quotes",
            sentence=words,
            systems=("base-dense", "shipped"),
            reasons={"low": 1},
            questions=(
                QuestionJudged(
                    id=words,
                    query=words,
                    values={"shipped": 0.5},
                    expected=(
                        ExpectedAnswer(text=words, source=words, passage=text("e"), missed="low", why=words),
                        ExpectedAnswer(text=words, ranks={"shipped": 2}),
                    ),
                    found=(FoundPassage(passage=text("f"), right=True, ranks={"dense": 1}),),
                    missed="low",
                    why=words,
                ),
                QuestionJudged(id="2", query=words, partly=True),
            ),
        ),
    )


# writing and reading


def test_a_written_report_reads_back_the_same(tmp_path: Path) -> None:
    report = full()
    json_path, html_path = write_report(tmp_path / "report", report)
    assert read_report(tmp_path / "report") == read_report(json_path) == report
    assert html_path.read_text(encoding="utf-8") == page(report)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json"]


def test_missing_parts_are_absent_from_file_and_page(tmp_path: Path) -> None:
    write_report(tmp_path, Report())
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "schema_version": 1,
        "title": "Retriever report",
        "metric": "nDCG@10",
    }
    soup = BeautifulSoup((tmp_path / "report.html").read_text(), "html.parser")
    assert not soup.find_all(["section", "svg", "table", "nav"])
    assert soup.select_one(".headline").text == "Nothing was measured: there were no questions to judge by."


@pytest.mark.parametrize("left_out", [name for name in Report.model_fields if name != "schema_version"])
def test_the_page_and_the_table_do_without_any_one_part(left_out: str) -> None:
    values = {name: getattr(full(), name) for name in Report.model_fields if name != left_out}
    report = Report(**values)
    assert page(report).endswith("</html>\n")
    assert table(report)


def test_values_that_no_file_can_hold_are_made_writable(tmp_path: Path) -> None:
    report = Report(
        title="a\x00b\ud800c",
        learning=(LearningPoint(step=1, loss=math.nan, dev=math.inf),),
        configuration={"path": Path("x"), "bad": "\udcff", "loss": math.nan, "kinds": ("a",)},
    )
    write_report(tmp_path, report)
    again = read_report(tmp_path)
    assert again.title == "ab?c"
    assert again.learning == (LearningPoint(step=1),)
    assert again.configuration == {"path": "x", "bad": "?", "loss": None, "kinds": ["a"]}


def test_a_figure_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Measure(value=math.nan)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        Report(surprise=1)  # type: ignore[call-arg]


def test_a_difference_must_come_from_a_paired_comparison() -> None:
    with pytest.raises(ValidationError, match="paired_bootstrap"):
        Delta(system="a", against="b", metric="m", interval=interval([1.0], seed=0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no report at"),
        ("{", "is not JSON"),
        ('{"schema_version": 99}', "schema version 99"),
        ("[]", "schema version None"),
        ('{"schema_version": 1, "systems": 3}', "does not hold a report"),
    ],
)
def test_what_is_no_report_is_refused_with_a_reason(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        read_report(tmp_path)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_gates_verdicts_are_the_reports(verdict: Verdict) -> None:
    report = Report(verdict=VerdictFacts(outcome=verdict))
    assert report.verdict is not None
    assert report.verdict.outcome == verdict.value
    assert verdict.value in table(report)
    assert verdict.value in page(report)


# the page


NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg></title></textarea><iframe src=//evil.example>",
    "' onmouseover='alert(1)",
    "{{7*7}} {0} %s &lt;b&gt; <!-- ",
    "\u202e\u2066 right to left \x1b[31m",
    "javascript:alert(1)",
)


@pytest.mark.parametrize("text", NASTY)
def test_no_text_of_the_corpus_becomes_markup(text: str) -> None:
    harmless, attacked = (BeautifulSoup(page(full(words)), "html.parser") for words in ("plain", text))
    assert [element.name for element in attacked.find_all(True)] == [
        element.name for element in harmless.find_all(True)
    ]
    for element in attacked.find_all(True):
        assert not [name for name in element.attrs if name.startswith("on") or name in {"style", "src", "srcset"}]
    shown = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)
    assert attacked.h1.text == shown
    assert attacked.select_one(".query-text").text == shown


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_an_element_gives_any_text_and_attribute_back(text: str) -> None:
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "", text)
    element = BeautifulSoup(tag("p", clean, title=clean, data_x=clean), "html.parser").p
    assert element.text == clean
    assert (element["title"], element["data-x"]) == (clean, clean)
    assert not element.find_all(True)


def test_the_page_needs_nothing_from_outside_and_runs_only_its_own_script() -> None:
    soup = BeautifulSoup(page(full()), "html.parser")
    targets = [
        element[name] for name in ("href", "src", "action", "data", "poster") for element in soup.select(f"[{name}]")
    ]
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert not soup.find_all(["link", "img", "iframe", "object", "form", "base"])
    assert "url(" not in soup.style.text
    assert "@import" not in soup.style.text
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    for element, directive in ((soup.script, "script-src"), (soup.style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(element.string.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_every_anchor_leads_to_a_section_and_every_chart_speaks() -> None:
    soup = BeautifulSoup(page(full()), "html.parser")
    for anchor in soup.select("a[href^='#']"):
        assert soup.find(id=anchor["href"][1:]) is not None
    ids = [element["id"] for element in soup.select("[id]")]
    assert len(ids) == len(set(ids))
    assert len(soup.find_all("svg")) == 11
    for drawing in soup.find_all("svg"):
        assert drawing["role"] == "img"
        assert drawing["aria-label"].strip(" .")
        assert drawing.title.text
    for header in soup.select("thead th"):
        assert header["scope"] == "col"


def test_wins_and_losses_stand_on_the_page_with_their_texts() -> None:
    base, new = evaluate(BEFORE, QRELS), evaluate(AFTER, QRELS)
    comparison = compare(TEXTS, QRELS, ("old", BEFORE, base), ("new", AFTER, new), passage)
    soup = BeautifulSoup(page(Report(comparison=comparison)), "html.parser")
    first, last = soup.select("details.query")
    assert first.select_one(".chip").text == "▲ +0.369"
    assert (first.select_one(".query-text").text, first.select_one(".ranks").text) == ("first", "rank 2 → 1")
    assert [part.text for part in first.select(".passage .text")] == ["text of a", "text of x"]
    assert last.select_one(".chip").text == "▼ −0.369"
    assert last.select_one(".ranks").text == "rank 1 → 2"


# parts made from runs


def test_a_comparison_ranks_changes_and_shows_what_came_first() -> None:
    base, new = evaluate(BEFORE, QRELS), evaluate(AFTER, QRELS)
    comparison = compare(TEXTS, QRELS, ("old", BEFORE, base), ("new", AFTER, new), passage, kinds={"q1": "label"})
    gain = 1 - 1 / math.log2(3)
    assert comparison.changes == pytest.approx((gain, 0, 0, -gain))
    assert (comparison.wins, comparison.losses) == (1, 1)
    won, lost = comparison.queries
    assert (won.query, won.kind, won.before.rank, won.after.rank) == ("first", "label", 2, 1)
    assert (won.expected, won.before.first, won.after.first) == (passage("a"), passage("x"), passage("a"))
    assert won.change == pytest.approx(gain)
    assert (lost.query, lost.before.rank, lost.after.rank) == ("second", 1, 2)


@given(st.integers(1, 12), st.integers(0, 10), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_the_limit_keeps_both_gains_and_losses(limit: int, gains: int, losses: int) -> None:
    names = [f"w{i}" for i in range(gains)] + [f"l{i}" for i in range(losses)] + ["same"]
    qrels = {name: {"right": 1} for name in names}
    good, bad = {"right": 2.0, "wrong": 1.0}, {"right": 1.0, "wrong": 2.0}
    before = {name: bad if name[0] == "w" else good for name in names}
    after = {name: bad if name[0] == "l" else good for name in names}
    sides = [("x", run, evaluate(run, qrels)) for run in (before, after)]
    comparison = compare({}, qrels, sides[0], sides[1], passage, limit=limit)
    shown = [query.change > 0 for query in comparison.queries]
    assert len(shown) == min(limit, gains + losses)
    assert shown == sorted(shown, reverse=True)
    assert shown.count(False) >= min(limit // 2, losses)
    assert (comparison.wins, comparison.losses, len(comparison.changes)) == (gains, losses, gains + losses + 1)


def test_the_worst_queries_come_worst_first_and_good_ones_not_at_all() -> None:
    new = evaluate(AFTER, QRELS)
    worst = worst_queries(TEXTS, QRELS, ("old", BEFORE, new), ("new", AFTER, new), passage)
    assert [(query.id, query.after.rank, query.expected) for query in worst] == [("q3", None, passage("c"))]


def test_never_retrieved_counts_what_no_first_k_holds() -> None:
    found = never_retrieved({"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, ["a", "b", "c", "d"], passage, k=2, limit=1)
    assert (found.count, found.of, found.k, found.queries, found.examples) == (2, 4, 2, 1, (passage("c"),))


@example([0.0, 5e-324], [])
@example([0.7, np.nextafter(0.7, 1)], [0.7])
@given(
    st.lists(st.floats(-1, 1), max_size=30),
    st.lists(st.floats(-1, 1) | st.just(math.nan), max_size=30),
)
def test_a_histogram_counts_every_finite_score_once(positives: list[float], negatives: list[float]) -> None:
    found = histogram(positives, negatives, edges=7)
    assert sum(found.positives) == len(positives)
    assert sum(found.negatives) == sum(not math.isnan(value) for value in negatives)
    assert len(found.edges) == len(found.positives) + 1 == len(found.negatives) + 1
    fixed = histogram(positives, negatives, edges=(-0.5, 0.0, 0.5))
    assert sum(fixed.positives) == len(positives)


def test_systems_and_differences_carry_the_bootstraps_own_figures() -> None:
    base, new = evaluate(BEFORE, QRELS), evaluate(AFTER, QRELS)
    values = list(new.per_query["R@10"].values())
    assert measured("x", "X", new, seed=3).metrics["R@10"] == Measure.of(interval(values, seed=3))
    (delta,) = differences("x", new, {"y": base}, seed=3, metrics=("nDCG@10",))
    expected = paired_bootstrap(
        list(new.per_query["nDCG@10"].values()), list(base.per_query["nDCG@10"].values()), seed=3
    )
    assert delta == Delta(system="x", against="y", metric="nDCG@10", interval=expected)


def test_without_queries_there_are_no_figures_and_no_failure() -> None:
    nothing = evaluate({}, {})
    assert measured("x", "X", nothing, seed=1).metrics == {}
    assert differences("x", nothing, {"y": nothing}, seed=1) == ()
    comparison = compare({}, {}, ("a", {}, nothing), ("b", {}, nothing), passage)
    assert comparison.changes == ()
    report = Report(systems=(measured("x", "X", nothing, seed=1),), comparison=comparison)
    assert "<section" not in page(report)
    assert table(report)


# words and table


def small(outcome: str, low: float = 0.01) -> Report:
    base = {"nDCG@10": Measure(value=0.6, low=0.5, high=0.7), "R@10": Measure(value=0.79)}
    new = {"nDCG@10": Measure(value=0.65, low=0.6, high=0.7), "R@10": Measure(value=0.87)}
    gain = Interval(0.05, low, 0.09, 0.99, 212, 212)
    return Report(
        verdict=VerdictFacts.model_validate({"outcome": outcome}),
        evidence=EvidenceUsed(tier="human", queries=212),
        systems=(
            MeasuredSystem(name="base-dense", label="base dense", metrics=base),
            MeasuredSystem(name="bm25", label="BM25", metrics={"R@10": Measure(value=0.5)}),
            MeasuredSystem(name="shipped", label="fitted", shipped=True, metrics=new),
        ),
        deltas=(Delta(system="shipped", against="base-dense", metric="nDCG@10", interval=gain),),
    )


def test_the_table_says_how_questions_judged_that_all_train() -> None:
    crossed = EvidenceUsed(tier="labelled", queries=36, crossed=True)
    report = small("WIN").model_copy(update={"evidence": crossed})
    assert "Judged by 36 questions, each by a model that had not seen it: labelled" in table(report)


def test_the_table_is_aligned_and_marks_what_ships() -> None:
    assert table(small("WIN")) == (
        "                           nDCG@10   R@10       against base dense\n"
        "  base dense  0.600 [0.500, 0.700]  0.790\n"
        "  BM25                           -  0.500\n"
        "* fitted      0.650 [0.600, 0.700]  0.870  +0.050 [+0.010, +0.090]\n"
        "* ships\n"
        "\n"
        "Judged by 212 held-out questions: human (questions and link texts that people wrote in the documents)\n"
        "WIN: Search got better on your documents: its first ten results now hold 87% of the right passages, "
        "where the untuned model's held 79%."
    )


def test_the_headline_of_a_kept_base_claims_a_gain_only_where_the_interval_does() -> None:
    gain = "its first ten results now hold 87% of the right passages, where the untuned model's held 79%."
    assert headline(small("NO GAIN")) == (
        "Tuning the model brought no gain that can be shown on your documents, so it stays as it was. "
        f"What ships (fitted) is still better than the untuned model alone: {gain}"
    )
    assert headline(small("REGRESSION AVOIDED", low=-0.01)) == (
        "Tuning made search worse on questions it had not seen, so the tuned model was thrown away. What ships: fitted."
    )


def test_a_likely_gain_is_called_likely() -> None:
    likely = small("LIKELY GAIN", low=-0.01)
    assert headline(likely).startswith(
        "Search most likely got better on your documents, which so few questions cannot prove: its first ten results"
    )
    badge = BeautifulSoup(page(likely), "html.parser").select_one(".verdict.win .badge")
    assert badge is not None and badge.text.endswith("LIKELY GAIN")


def test_a_long_label_of_a_chart_stands_whole_in_two_lines() -> None:
    row = chart.ChartRow("fitted retriever (default search)", 0.5)
    for drawn in (
        chart.interval_chart([row], title="t", axis="a"),
        chart.bar_chart([(row.label, 1.0, "1 s")], title="t"),
    ):
        spans = BeautifulSoup(str(drawn), "html.parser").select("tspan")
        assert [span.text for span in spans] == ["fitted retriever", "(default search)"]
        assert float(spans[1]["y"]) - float(spans[0]["y"]) == 13


def test_the_numbers_beside_an_axis_have_room() -> None:
    series = chart.Series("s", (0, 1, 2), (0.1, 0.10002, 0.10004))
    drawn = BeautifulSoup(str(chart.line_chart([series], title="t", x_label="x", y_label="y")), "html.parser")
    ticks = [text for text in drawn.select("text.tick") if text["text-anchor"] == "end"]
    assert len(ticks[0].text) >= 7
    assert all(float(text["x"]) - 6.9 * len(text.text) >= 0 for text in ticks)


def test_columns_and_tables_that_hold_nothing_are_left_out() -> None:
    timings = tuple(Timing(stage=f"stage {number}", seconds=number) for number in range(3))
    soup = BeautifulSoup(page(Report(timings=timings)), "html.parser")
    assert [cell.text for cell in soup.select("#time thead th")] == ["stage", "time"]
    assert "–" not in [cell.text for cell in soup.select("td")]
    some = (*timings, Timing(stage="encode", seconds=2.0, items=10, unit="passages"))
    soup = BeautifulSoup(page(Report(timings=some)), "html.parser")
    assert [cell.text for cell in soup.select("#time thead th")] == ["stage", "time", "worked on", "rate"]
    assert element_table(["a", "b"], [["x", "–"], ["y", "–"]], caption="c") == ""


def test_no_headline_speaks_of_tuning_where_nothing_was_tuned() -> None:
    why = "No evidence good enough to judge a trained model. 14 more labelled questions would be enough."
    made = small("NO GAIN")
    assert made.verdict is not None
    untrained = made.model_copy(update={"verdict": made.verdict.model_copy(update={"untrained": why})})
    for text in (headline(untrained), table(untrained), page(untrained)):
        assert "Tuning" not in text.partition("<nav")[0]
        assert "No model was trained. No evidence good enough" in text
        assert "14 more labelled questions would be enough" in text
    assert "Tuning the model brought no gain" in headline(made)


def test_few_questions_leaks_and_failed_proofs_are_said_aloud() -> None:
    report = Report(
        evidence=EvidenceUsed(tier="labelled", queries=62),
        split=SplitSizes(train=1, dev=1, heldout=62, leaked=3),
        checks=(AdapterCheck(name="Merged = unmerged", passed=False),),
    )
    said = words.cautions(report)
    assert [
        re.match(r"Only 62 questions|3 training items share|Not proved: Merged", text) is not None for text in said
    ] == [True] * 3
    shown = [each.text for each in BeautifulSoup(page(report), "html.parser").select(".caution")]
    assert shown == [f"Note. {text}" for text in said]


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (words.duration, 0.44, "0.4 s"), (words.duration, 59.7, "1 min"), (words.duration, 200, "3 min 20 s"),
        (words.duration, 7500, "2 h 5 min"), (words.size, 999, "999 B"), (words.size, 2_300_000_000, "2.3 GB"),
        (words.percent, 0.5, "50%"), (words.percent, 0.997, "99.7%"), (words.percent, 1.0, "100%"),
        (words.percent, 0.9999, "> 99.9%"), (words.percent, 0.0001, "< 0.1%"), (words.percent, 0.0, "0%"),
        (words.signed, -0.0125, "−0.013"), (words.count, 1234567, "1\u202f234\u202f567"),
    ],
)  # fmt: skip
def test_numbers_are_put_as_people_read_them(function: Any, value: float, text: str) -> None:
    assert function(value) == text


# charts


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 8))
def test_ticks_are_round_evenly_spaced_and_cover_the_range(low: float, span: float, about: int) -> None:
    ticks = chart.nice_ticks(low, low + span, about)
    steps = np.diff(ticks)
    assert 2 <= len(ticks) <= 2 * about + 2
    if span > 1e-9 * max(abs(low), 1):
        slack = 1e-6 * max(span, abs(low) * 1e-6)
        assert ticks[0] <= low + slack
        assert ticks[-1] >= low + span - slack
        assert np.allclose(steps, steps[0], rtol=1e-3)


def test_a_larger_value_stands_further_right_in_an_interval_chart() -> None:
    rows = [
        chart.ChartRow("a", 0.2, 0.1, 0.3),
        chart.ChartRow("b", 0.4, 0.3, 0.5),
        chart.ChartRow("c", -0.1, -0.2, 0.0),
    ]
    soup = BeautifulSoup(chart.interval_chart(rows, title="t", axis="x", zero=True, signed=True), "html.parser")
    a, b, c = (float(dot["cx"]) for dot in soup.select("circle.dot"))
    assert c < a < b
    assert b - a == pytest.approx((a - c) * 2 / 3, abs=0.2)
    zero = float(soup.select_one("line.axis")["x1"])
    assert zero == pytest.approx((a + 2 * c) / 3, abs=0.2)
    for dot, bar in zip(soup.select("circle.dot"), soup.select("line.whisker")):
        assert float(bar["x1"]) < float(dot["cx"]) < float(bar["x2"])
    assert soup.find("g").title.text == "a: +0.200, interval +0.100 to +0.300"


def test_a_curve_draws_its_band_its_choice_and_its_levels() -> None:
    series = chart.Series("s", [1, 0], [0.5, 0.3], [0.4, 0.2], [0.6, 0.4])
    soup = BeautifulSoup(
        chart.line_chart([series], title="t", x_label="λ", y_label="y", chosen=1, levels={"base": 0.25}), "html.parser"
    )
    (left, low), (right, high) = ((float(p["cx"]), float(p["cy"])) for p in soup.select("circle.point"))
    assert left < right
    assert low > high  # SVG counts downwards
    assert float(soup.select_one("line.chosen")["x1"]) == right
    assert soup.select_one("circle.ships")["cx"] == soup.select("circle.point")[1]["cx"]
    assert soup.select_one("path.band")["d"].count("L") == 3
    assert "base" in soup.text
    assert "ships: 1" in soup.text


@pytest.mark.parametrize("ys", [[0.5], [0.5, 0.5], [0.0, 0.0], list(np.linspace(0, 1, 500))])
def test_curves_of_any_length_and_shape_are_drawn_inside_their_frame(ys: list[float]) -> None:
    series = chart.Series("s", list(range(len(ys))), ys)
    soup = BeautifulSoup(chart.line_chart([series], title="t", x_label="x", y_label="y"), "html.parser")
    width, height = (float(n) for n in soup.svg["viewbox"].split()[2:])
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", soup.select_one("path.line")["d"])]
    assert all(0 <= x <= width for x in numbers[::2])
    assert all(0 <= y <= height for y in numbers[1::2])
    assert len(numbers) == 2 * len(ys)


def test_charts_of_nothing_are_nothing() -> None:
    assert chart.interval_chart([], title="t", axis="x") == ""
    assert chart.line_chart([], title="t", x_label="x", y_label="y") == ""
    assert chart.bar_chart([], title="t") == ""
    assert chart.change_chart([], title="t", y_label="y") == ""


def test_a_histogram_of_nothing_and_changes_of_nought_are_still_drawn() -> None:
    assert "<svg" in chart.histogram_chart(histogram([], []), title="t", x_label="x")
    drawn = chart.change_chart([0.0, 0.0], title="t", y_label="y")
    assert "0 better, 0 worse, 2 unchanged" in drawn


def test_the_change_chart_draws_gains_up_and_losses_down() -> None:
    soup = BeautifulSoup(chart.change_chart([0.5, -0.25, 0.0], title="t", y_label="y"), "html.parser")
    zero = float(soup.select_one("line.axis")["y1"])

    def tip(kind: str) -> float:
        return float(re.match(r"M[\d.]+ [\d.]+V([\d.]+)", soup.select_one(f"path.{kind}")["d"]).group(1))

    assert zero - tip("good") == pytest.approx(2 * (tip("bad") - zero), abs=0.3)


def test_a_configuration_is_shown_setting_by_setting() -> None:
    soup = BeautifulSoup(page(Report(configuration=FitConfig().model_dump())), "html.parser")
    rows = {row.th.text: row.td.text for row in soup.select("tbody tr")}
    assert rows["training.batch_size"] == str(FitConfig().training.batch_size)
    assert rows["encoder.model"] == FitConfig().encoder.model

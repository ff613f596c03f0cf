"""Every question by itself: what it expects, where each side has it, and why it was missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_ragadapt.evaluation import as_passages, as_search
from llama_index.core.base.base_retriever import BaseRetriever as NodeRetriever
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from llama_index_ragadapt.evaluation import as_passages as as_node_passages
from ragadapt_cli.main import run
from small_retriever import fit_pages
from tiny_models import sentences

from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.evaluation.questions import (
    MISSED,
    Asked,
    FoundBySide,
    Missed,
    Wanted,
    quote_measures,
    recall_within,
    why_missed,
)
from ragadapt.pipeline.questions import _sentence, evaluate_questions
from ragadapt.queries import EvidenceQuote, load_labels
from ragadapt.report import QuestionJudged, Report, question_lines, read_report, table, write_report
from ragadapt.report.page import page
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import Fusion
from ragadapt.values import Chunk

LINES = sentences(60, words=12, seed=3)


def chunk(document: str, number: int, text: str, start: int = 0) -> Chunk:
    return Chunk(f"{document}#{number}", document, text, ("Head",), start, start + len(text), {}, document)


# Why something was missed


OTHERS = [chunk(f"o{n}.md", 0, LINES[n]) for n in range(20)]
ANSWER = chunk("a.md", 0, LINES[30])
QUOTE = EvidenceQuote("a.md", LINES[30])
WANTED = Wanted(QUOTE.quote, "a.md", ("a.md#0",), "a.md", False, QUOTE)


def explained(found: FoundBySide, wanted: Wanted = WANTED, *more: Chunk, k: int = 5) -> tuple[Missed, str]:
    return why_missed(wanted, found, Asked((), (*OTHERS, ANSWER, *more), False), k)


def test_a_quote_that_two_passages_hold_together_was_cut_apart() -> None:
    words = " ".join(LINES[40:43])
    half = len(words) // 2
    halves = chunk("b.md", 0, words[:half]), chunk("b.md", 1, words[half:], half)
    wanted = Wanted(words[half - 30 : half + 30], "b.md", (), "b.md")
    reason, why = explained(FoundBySide([], [], []), wanted, *halves)
    assert reason is Missed.CUT_APART
    assert "b.md#0 to b.md#1 hold it together" in why


def test_what_passages_share_is_joined_once() -> None:
    words = LINES[40] + " " + LINES[41]
    parts = [chunk("b.md", 0, words[:50]), chunk("b.md", 1, words[30:], 30)]  # an overlap of 20 characters
    reason, _ = explained(FoundBySide([], [], []), Wanted(words[20:80], "b.md", (), "b.md"), *parts)
    assert reason is Missed.CUT_APART


def test_a_quote_that_no_text_holds_is_told_from_a_document_that_is_not_there() -> None:
    reason, why = explained(FoundBySide([], [], []), Wanted("nothing of the kind stands here", "a.md", (), "a.md"))
    assert (reason, "a.md has 0% of its word triples" in why) == (Missed.NOT_IN_TEXT, True)
    reason, why = explained(FoundBySide([], [], []), Wanted("x y z", "gone.md"))
    assert (reason, "'gone.md'" in why) == (Missed.NO_DOCUMENT, True)


def test_a_near_duplicate_in_its_place_is_named() -> None:
    copy = chunk("copy.md", 0, LINES[30])
    found = [OTHERS[0], copy, *OTHERS[1:8], ANSWER]
    reason, why = explained(FoundBySide(found, found, found), WANTED, copy)
    assert reason is Missed.COPY
    assert "copy.md#0, at rank 2, says nearly the same" in why


def test_copies_of_one_text_that_fill_the_places_above_are_counted() -> None:
    copies = [chunk(f"c{n}.md", 0, LINES[31]) for n in range(6)]
    found = [*copies, ANSWER]
    reason, why = explained(FoundBySide(found, [], found), WANTED, *copies)
    assert reason is Missed.CROWDED
    assert "6 passages stand above it, 1 if copies counted once" in why


def test_the_right_document_by_other_passages_is_told() -> None:
    other = chunk("a.md", 1, LINES[35])
    found = [OTHERS[0], other, *OTHERS[1:10], ANSWER]
    reason, why = explained(FoundBySide(found, found, OTHERS), WANTED, other)
    assert reason is Missed.SAME_DOCUMENT
    assert "Another passage of it is among the first 5, the first at rank 2" in why
    assert "dense rank 12, lexical below 100, mixed rank 12" in why


def test_a_side_that_was_outvoted_and_sides_that_were_not_are_told_apart() -> None:
    early, late = [ANSWER, *OTHERS], [*OTHERS, ANSWER]
    assert explained(FoundBySide(late, OTHERS, early)) == (
        Missed.OUTVOTED,
        "Dense below 100, lexical rank 1, mixed rank 21.",
    )
    assert explained(FoundBySide(OTHERS, OTHERS, OTHERS))[0] is Missed.OUT_OF_REACH
    assert explained(FoundBySide(late, late, late)) == (Missed.LOW, "Dense rank 21, lexical rank 21, mixed rank 21.")
    reason, why = explained(FoundBySide(late, late, late, first_stage=early))
    assert (reason, "Rank 1 before the re-ranker read it, rank 21 after" in why) == (Missed.RERANKED, True)


def test_every_reason_has_its_words() -> None:
    assert set(MISSED) == set(Missed)


# What a ranking is worth by its quotes


def test_quotes_are_measured_by_the_rank_of_the_first_passage_that_holds_each() -> None:
    other = EvidenceQuote("o1.md", LINES[1])
    found = quote_measures([OTHERS[0], ANSWER, *OTHERS[2:8], OTHERS[1]], [QUOTE, other])  # ranks 2 and 9
    assert found == {
        "RR@10": 0.5,
        "evidence recall@5": 0.5,
        "evidence recall@10": 1.0,
        "evidence recall, 1,024 tokens": 1.0,
    }
    assert quote_measures([*OTHERS[2:], ANSWER], [QUOTE])["RR@10"] == 0


def test_within_a_budget_the_last_passage_counts_as_far_as_it_fits() -> None:
    long = chunk("l.md", 0, " ".join(LINES[44:56]))
    first, last = EvidenceQuote("l.md", LINES[44]), EvidenceQuote("l.md", LINES[55])
    assert recall_within([long], [first, last], 10_000) == 1
    assert recall_within([long], [first, last], len(long.text) // 8) == 0.5  # four characters a token: half of it
    assert recall_within([OTHERS[0], long], [first], len(OTHERS[0].text) // 4) == 0


# A retriever


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Any:
    with Retriever.open(folder) as retriever:
        yield retriever


@pytest.fixture(scope="module")
def quotes(opened: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions by words of a passage; one whose quote stands nowhere."""
    lines = []
    for at, each in enumerate(list(opened.chunks)[::2]):
        words = each.text.split()
        text = " ".join(
            words[3:7] if at % 3 else reversed(LINES[at].split())
        )  # every third one asks for something else
        lines.append({"_id": f"q{at}", "text": text, "evidence": [{"source": each.source, "quote": each.text}]})
    lines.append({"_id": "gone", "text": "old", "evidence": [{"source": "page01.md", "quote": "it is not said here"}]})
    path = tmp_path_factory.mktemp("labels") / "quotes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def report(opened: Retriever, quotes: Path) -> Report:
    return evaluate_questions(opened, quotes, k=3)


def judged(report: Report) -> dict[str, QuestionJudged]:
    assert report.judged is not None
    return {question.id: question for question in report.judged.questions}


def test_the_figures_are_those_of_evaluate(opened: Retriever, quotes: Path, report: Report) -> None:
    expected = opened.evaluate(quotes)
    for name, mode in (("shipped", "hybrid"), ("base-dense", "dense"), ("bm25", "lexical")):
        system = report.system(name)
        assert system is not None
        for metric in ("nDCG@10", "R@100", "RR@10", "AP@100", "evidence recall@5", "evidence recall@10"):
            assert system.metrics[metric].value == pytest.approx(expected[mode][metric]), (name, metric)


def test_documents_that_were_judged_have_the_figures_of_evaluate_too(opened: Retriever, tmp_path: Path) -> None:
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "qrels.tsv"
    found = {each.document_id: " ".join(each.text.split()[2:6]) for each in opened.chunks}
    queries.write_text("".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in found.items()))
    qrels.write_text("".join(f"{id}\t{id}\t1\n" for id in found))
    report = evaluate_questions(opened, queries, qrels, k=1)
    expected = opened.evaluate(queries, qrels)
    for name, mode in (("shipped", "hybrid"), ("base-dense", "dense"), ("bm25", "lexical")):
        system = report.system(name)
        assert system is not None
        assert {metric: each.value for metric, each in system.metrics.items()} == pytest.approx(expected[mode])
    assert report.judged is not None
    assert report.judged.unit == "documents"
    run = opened.run(found, 100)
    for id, question in judged(report).items():
        (answer,) = question.expected
        assert answer.ranks["shipped"] == list(run[id]).index(id) + 1
        assert bool(question.missed) is (answer.ranks["shipped"] > 1)


def test_ranks_and_results_are_those_of_each_side(opened: Retriever, report: Report) -> None:
    modes = {"shipped": "hybrid", "base-dense": "dense", "bm25": "lexical"}
    for question in judged(report).values():
        lists: dict[str, list[str]] = {
            name: opened.rank([question.query], 100, mode=mode)[0].ids
            for name, mode in modes.items()  # type: ignore[arg-type]
        }
        vector = opened.encoder.encode_queries([question.query])
        (plain,) = opened.searcher.rank([question.query], vector, 100, fusion=Fusion(method="rrf"))
        lists["base-hybrid"] = plain.ids
        assert [one.passage.id for one in question.found] == lists["shipped"][:3]
        for one in question.found:
            assert one.ranks.get("dense") == lists["base-dense"].index(one.passage.id) + 1
            lexical = lists["bm25"]
            assert one.ranks.get("lexical") == (
                lexical.index(one.passage.id) + 1 if one.passage.id in lexical else None
            )
        for answer in question.expected:
            if answer.passage is None:
                continue
            assert answer.ranks == {
                name: ids.index(answer.passage.id) + 1 for name, ids in lists.items() if answer.passage.id in ids
            }
            assert (answer.missed == "") is (answer.ranks.get("shipped", 99) <= 3)


def test_a_question_that_nothing_answers_is_listed_with_its_reason(report: Report) -> None:
    gone = judged(report)["gone"]
    assert gone.missed == Missed.NOT_IN_TEXT
    assert "page01.md has" in gone.why
    assert gone.values == {}
    assert report.judged is not None
    assert report.judged.reasons["not-in-text"] == 1
    assert sum(report.judged.reasons.values()) == sum(bool(q.missed) for q in judged(report).values()) > 3


def test_what_ships_is_compared_with_every_row_and_corrected(report: Report) -> None:
    assert [(delta.system, delta.against) for delta in report.deltas] == [
        ("shipped", "base-dense"),
        ("shipped", "bm25"),
        ("shipped", "base-hybrid"),
    ]
    shipped, base = report.system("shipped"), report.system("base-dense")
    assert shipped is not None and base is not None
    assert report.deltas[0].interval.delta == pytest.approx(
        shipped.metrics["nDCG@10"].value - base.metrics["nDCG@10"].value
    )
    assert all(delta.p is not None and delta.p >= (delta.interval.p_value or 0) for delta in report.deltas)


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([], "3 of 3 questions have the text that answers them among the first 10 results, 1 of them only part of it."),
        (["low"], "results, 1 of them only part of it. The other one: ranked too low by both sides."),
        (["low", "low"], "All 2 others: ranked too low by both sides."),
        (["low", "copy", "low"], "Of the 3 others most often (2): ranked too low by both sides."),
    ],
)  # fmt: skip
def test_the_sentence_counts_what_was_missed(reasons: list[str], said: str) -> None:
    found = [QuestionJudged(id="1", query="q"), QuestionJudged(id="2", query="q", partly=True)]
    found += [QuestionJudged(id="3", query="q"), *(QuestionJudged(id=r, query="q", missed=r) for r in reasons)]
    assert _sentence(found, 10, "quotes", (), None).endswith(said)


def test_the_report_is_written_read_and_shown(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    soup = BeautifulSoup((tmp_path / "report.html").read_text(encoding="utf-8"), "html.parser")
    section = soup.find(id="each")
    assert section is not None
    shown = section.select(".query")
    assert len(shown) == len(judged(report))
    assert MISSED[Missed.NOT_IN_TEXT].capitalize() in section.text
    marks = [element["data-mark"] for element in shown]
    assert marks == sorted(marks, key=lambda mark: mark == "found")  # missed ones first
    lines = question_lines(report.judged)  # type: ignore[arg-type]
    assert sum(line.startswith(("✓ ", "✗ ")) for line in lines) == len(judged(report))
    assert "Missed: 1 × no passage holds the quote" in table(report)


def test_a_page_escapes_questions_and_passages(report: Report) -> None:
    assert report.judged is not None
    evil = "<script>alert(1)</script>"
    first = report.judged.questions[0]
    bad = first.model_copy(
        update={
            "query": evil,
            "why": evil,
            "missed": "low",
            "id": evil,
            "expected": tuple(each.model_copy(update={"text": evil, "source": evil}) for each in first.expected),
            "found": tuple(
                one.model_copy(update={"passage": one.passage.model_copy(update={"text": evil, "source": evil})})
                for one in first.found
            ),
        }
    )
    hostile = report.model_copy(update={"judged": report.judged.model_copy(update={"questions": (bad,)})})
    assert evil not in page(hostile)
    assert page(hostile).count("&lt;script&gt;alert(1)") >= 4


# Against another one


def test_against_itself_nothing_differs(opened: Retriever, folder: Path, quotes: Path) -> None:
    with Retriever.open(folder) as other:
        report = evaluate_questions(opened, quotes, against=other, name="the same")
    delta = next(delta for delta in report.deltas if delta.against == "other")
    assert (delta.metric, delta.interval.delta, delta.interval.low, delta.interval.high) == ("RR@10", 0, 0, 0)
    assert report.comparison is not None
    assert (report.comparison.before, report.comparison.wins, report.comparison.losses) == ("the same", 0, 0)
    assert report.judged is not None
    assert "cannot be told from the same" in report.judged.sentence
    for question in report.judged.questions:
        for answer in question.expected:
            assert answer.ranks.get("other") == answer.ranks.get("shipped")


class Pages(BaseRetriever):
    """Finds the same passages in their order, as any LangChain retriever might."""

    found: list[Document]

    def _get_relevant_documents(self, query: str, **kwargs: object) -> list[Document]:
        return self.found


class Nodes(NodeRetriever):
    def __init__(self, found: list[Document]) -> None:
        self.found = found
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        nodes = []
        for document in self.found:
            node = TextNode(id_=str(document.id), text=document.page_content, metadata=dict(document.metadata))
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=str(document.metadata["source"]))
            nodes.append(NodeWithScore(node=node, score=1.0))
        return nodes


def test_any_retriever_of_a_framework_is_compared_by_what_its_passages_say(opened: Retriever, quotes: Path) -> None:
    labels = load_labels(quotes, chunks=list(opened.chunks))
    answer = opened.chunks.find(labels.queries[0].positives[:1])[labels.queries[0].positives[0]]
    fixed = [
        Document(id="x", page_content="nothing", metadata={"source": "elsewhere.md"}),
        Document(id="doc-7", page_content=f"Before. {answer.text} After.", metadata={"source": f"./{answer.source}"}),
    ]
    for finder in (as_passages(Pages(found=fixed)), as_node_passages(Nodes(fixed))):
        report = evaluate_questions(opened, quotes, against=finder, name="mine")
        first = judged(report)["q0"]
        assert first.expected[0].ranks["other"] == 2
        assert first.values["other"] == 0.5
        assert sum(question.values["other"] for question in judged(report).values()) == 0.5
        system = report.system("other")
        assert system is not None
        assert system.label == "mine"
        assert system.metrics["RR@10"].value == pytest.approx(0.5 / len(judged(report)))
    with pytest.raises(InvalidInput, match="quotes are looked for in the passages themselves"):
        evaluate_questions(opened, quotes, against=as_search(Pages(found=fixed)))
    with pytest.raises(InvalidInput, match="answered 0 of"):
        evaluate_questions(opened, quotes, against=lambda _: [])


def test_ids_of_passages_cannot_be_compared_with_another_cut(opened: Retriever, tmp_path: Path) -> None:
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "qrels.tsv"
    queries.write_text('{"_id": "1", "text": "old stone"}\n')
    qrels.write_text("1\tpage01.md#1\t1\n")
    assert evaluate_questions(opened, queries, qrels).judged.unit == "passages"  # type: ignore[union-attr]
    with pytest.raises(InvalidLabels, match="the other retriever has other passages"):
        evaluate_questions(opened, queries, qrels, against=lambda texts: [["page01.md#1"] for _ in texts])


# The command


def test_the_command_lists_questions_and_writes_the_page(
    folder: Path, quotes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["eval", str(folder), "--evidence", str(quotes), "-k", "3"]
    assert run([*call, "--per-question", "-o", str(tmp_path / "page"), "-q"]) == 0
    out = capsys.readouterr().out
    assert "✗ old" in out
    assert "fitted retriever (default search) less each of the others, nDCG@10:" in out
    assert out.rstrip().endswith(str(tmp_path / "page" / "report.html"))
    assert run([*call, "--against", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["judged"]["questions"][0]["id"] == "q0"
    assert run([*call, "--mode", "dense"]) == 2
    assert "--mode chooses rows of the short table" in capsys.readouterr().err


def test_the_page_takes_no_place_of_a_retriever(folder: Path, quotes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(folder), "--evidence", str(quotes), "-o", str(folder)]) == 2
    assert "holds a retriever" in capsys.readouterr().err
    assert not (folder / "report.json").exists()


def test_lines_that_cannot_be_read_are_said_and_end_with_an_error(
    folder: Path, quotes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(quotes.read_text(encoding="utf-8") + "no json\n", encoding="utf-8")
    assert run(["eval", str(folder), "--evidence", str(broken), "--per-question", "-q"]) == 1
    assert "Left out of the labels" in capsys.readouterr().out

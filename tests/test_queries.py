"""Queries from structure: what is found, what is left out, and what a passage hides."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragadapt.config import QueryConfig
from ragadapt.corpus import Link
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.queries import (
    KINDS,
    VERBATIM,
    clean_queries,
    evidence_of,
    lexical_overlap,
    masked_passage,
    round_trip_filter,
    structural_queries,
)
from ragadapt.queries.code import definitions, is_code, summary_text
from ragadapt.queries.filters import (
    bound_overlap,
    cap_per_chunk,
    drop_boilerplate,
    drop_near_duplicates,
    is_boilerplate,
    sample_evenly,
)
from ragadapt.queries.text import blocks, identifier_words, is_question, plain, plain_heading, sentences, text_key
from ragadapt.values import Chunk, Document, Evidence, Query

FILLER = "Reports must reach the finance desk within thirty days so that they can be paid with the next salary run."
OTHER = "Vehicles are booked through the fleet portal and picked up at the north gate with a valid badge."


def document(id: str, title: str = "", text: str = "", source: str = "") -> Document:
    return Document(id, text, title, source=source)


def chunk(id: str, text: str, path: tuple[str, ...] = (), source: str = "") -> Chunk:
    return Chunk(id, id.split("#")[0], text, path, 0, len(text), source=source)


def made(
    chunks: list[Chunk],
    documents: list[Document] | None = None,
    links: list[Link] | None = None,
    *kinds: str,
    **settings: object,
) -> list[Query]:
    if documents is None:
        documents = [document(id) for id in dict.fromkeys(c.document_id for c in chunks)]
    config = QueryConfig.model_validate({"kinds": kinds, "per_chunk": 50, **settings})
    return structural_queries(documents, chunks, links or [], config, seed=1)


def texts(queries: list[Query]) -> set[str]:
    return {query.text for query in queries}


# Titles and headings


def test_a_title_is_answered_by_every_chunk_of_its_documents() -> None:
    documents = [document("a", "Expense reports"), document("b", "Company cars"), document("c", "Company cars")]
    chunks = [chunk("a#0", FILLER), chunk("b#0", OTHER), chunk("b#1", FILLER), chunk("c#0", OTHER)]
    queries = {query.text: query for query in made(chunks, documents, None, "title")}
    assert queries["Expense reports"].positives == ("a#0",)
    assert queries["Company cars"].positives == ("b#0", "c#0", "b#1")  # one of each document first
    assert all(query.evidence is Evidence.CROP for query in queries.values())


def test_a_single_title_tells_nothing_apart_and_is_left_out() -> None:
    assert made([chunk("a#0", FILLER)], [document("a", "Expense reports")], None, "title") == []


def test_a_title_that_asks_is_a_human_question() -> None:
    documents = [document("a", "How do I hand in a receipt? [closed]"), document("b", "Company cars")]
    queries = made([chunk("a#0", FILLER), chunk("b#0", OTHER)], documents)
    question = next(query for query in queries if query.kind == "question")
    assert (question.text, question.evidence) == ("How do I hand in a receipt?", Evidence.HUMAN)


def test_the_site_name_at_the_end_of_most_titles_goes() -> None:
    names = ["Travel", "Cars", "Salaries", "Holidays", "Laptops", "Badges"]
    documents = [document(name, f"{name} rules | Acme Handbook") for name in names]
    chunks = [chunk(name, f"{FILLER} {name}") for name in names]
    assert texts(made(chunks, documents, None, "title")) == {f"{name} rules" for name in names}


def test_a_generic_heading_is_said_with_its_parent_and_an_empty_one_not_at_all() -> None:
    chunks = [
        chunk("a#0", FILLER, ("Rental cars", "Requirements")),
        chunk("a#1", OTHER, ("Train tickets", "Requirements")),
        chunk("a#2", f"{FILLER} {OTHER}", ("Train tickets", "Overview")),
    ]
    found = texts(made(chunks, None, None, "heading"))
    assert {"Rental cars Requirements", "Train tickets Requirements"} <= found
    assert not any("Overview" in text for text in found)


def test_a_heading_is_cleaned_of_numbers_emoji_and_anchors() -> None:
    assert plain_heading("### 4.2 🤝 Working *together*{#collab}") == "Working together"
    assert plain_heading('<i class="fas" id="x"></i> Contacting `sales`:') == "Contacting sales"
    assert plain_heading("5 reasons to stay") == "5 reasons to stay"


def test_a_heading_stands_for_the_whole_section_below_it() -> None:
    chunks = [
        chunk("a#0", FILLER, ("Rental cars", "Damage reports")),
        chunk("a#1", OTHER, ("Rental cars",)),
        chunk("a#2", OTHER + FILLER, ("Rental cars", "Fuel cards")),
    ]
    section = next(query for query in made(chunks, None, None, "heading") if query.text == "Rental cars")
    assert section.positives == ("a#1", "a#0", "a#2")


def test_a_heading_that_is_a_signature_becomes_an_identifier() -> None:
    (query,) = made(
        [chunk("a#0", FILLER, ("json.load_string(text, *, strict=True)",))], None, None, "identifier", "heading"
    )
    assert (query.text, query.kind) == ("json load string", "identifier")
    assert masked_passage(query, chunk("a#0", FILLER, ("json.load_string(text, *, strict=True)",))) == FILLER


# Links


def linked(text: str, heading: str = "Damage reports", body: str = FILLER) -> list[Query]:
    chunks = [
        chunk("a#0", OTHER, ("Start",)),
        chunk("b#0", OTHER, ("Rental cars", "Booking")),
        chunk("b#1", body, ("Rental cars", heading)),
    ]
    return made(chunks, None, [Link(text, "a#0", "b#1")], "link", "question")


def test_a_link_text_is_a_human_query_for_its_section() -> None:
    (query,) = linked("what to do after a crash")
    assert (query.kind, query.evidence, query.positives) == ("link", Evidence.HUMAN, ("b#1",))


@pytest.mark.parametrize(
    "text",
    [
        "here",
        "this page",
        "click here",
        "read more",
        "https://acme.com/cars",
        "cars/damage.md",
        "won't be paid",
        "see below",
    ],
)
def test_a_link_text_that_names_nothing_is_dropped(text: str) -> None:
    assert linked(text) == []


def test_a_link_that_repeats_the_heading_is_no_human_evidence() -> None:
    assert linked("the damage report") == []  # all its words are the heading's
    (query,) = linked("OKRs", "OKR")
    assert query.evidence is Evidence.CROP


def test_a_link_to_the_head_of_a_long_page_is_dropped() -> None:
    chunks = [chunk("a#0", OTHER), *(chunk(f"b#{i}", f"{FILLER} {i}") for i in range(9))]
    assert made(chunks, None, [Link("what to do after a crash", "a#0", "b#0")], "link") == []
    short = [*chunks[:3]]
    (query,) = made(short, None, [Link("what to do after a crash", "a#0", "b#0")], "link")
    assert query.positives == ("b#0", "b#1")


def test_a_link_text_for_too_many_places_is_generic() -> None:
    chunks = [chunk("a#0", OTHER), *(chunk(f"d{i}#0", f"{FILLER} number {i}") for i in range(7))]
    links = [Link("operating guidance", "a#0", f"d{i}#0") for i in range(7)]
    assert made(chunks, None, links, "link") == []


# Questions in the text


def questions(text: str, path: tuple[str, ...] = ()) -> list[Query]:
    return made([chunk("a#0", text, path)], None, None, "question")


@pytest.mark.parametrize(
    "text",
    [
        f"**Who pays for broken windows?**\n\n{FILLER}",
        f"- **Who pays for broken windows?** {FILLER}",
        f"Q: Who pays for broken windows?\nA: {FILLER}",
        f"## Who pays for broken windows?\n\n{FILLER}",
        f"Who pays for broken windows? {FILLER}",
        f"<summary>Who pays for broken windows?</summary>\n\n{FILLER}",
    ],
)
def test_a_question_with_its_answer_is_found_and_cut_exactly(text: str) -> None:
    (query,) = questions(text)
    assert (query.text, query.evidence) == ("Who pays for broken windows?", Evidence.HUMAN)
    assert query.span is not None
    assert plain_heading(text[slice(*query.span)]) == query.text
    assert "broken windows" not in masked_passage(query, chunk("a#0", text))


def test_a_question_heading_is_answered_by_its_section() -> None:
    (query,) = questions(FILLER, ("Cars", "Who pays for broken windows?"))
    assert query.text == "Who pays for broken windows?"
    assert masked_passage(query, chunk("a#0", FILLER, ("Cars", query.text))) == f"Cars\n{FILLER}"


@pytest.mark.parametrize(
    "text",
    [
        "- Is the customer happy with us?\n- Who signs the contract there?\n- When does the budget end?",
        "```python\n# Who pays for broken windows?\nprint(1)\n```\n" + FILLER,
        f"Lines beginning with '? or (?) are left out of the list. {FILLER}",
        f"Matches everything? {FILLER}",
        "Need help? Ask in the channel for questions about cars and windows, and wait for an answer there.",
        "**Who pays for broken windows?**\n\n**Who pays for flat tyres?**",
    ],
)
def test_a_question_that_nobody_answers_is_left_out(text: str) -> None:
    assert questions(text) == []


def test_an_answer_in_the_next_chunk_makes_that_chunk_the_positive() -> None:
    chunks = [chunk("a#0", f"{OTHER}\n\n**Who pays for broken windows?**"), chunk("a#1", FILLER)]
    (query,) = made(chunks, None, None, "question")
    assert (query.positives, query.span) == (("a#1",), None)


def test_a_question_that_leans_on_its_section_takes_the_heading_along() -> None:
    (query,) = questions(FILLER, ("Fuel cards", "Where can it be found?"))
    assert query.text == "Fuel cards: Where can it be found?"


@pytest.mark.parametrize("text", ["誰負責修理窗戶？", "如何申请报销", "窓の修理は誰がしますか。"])
def test_questions_without_spaces_are_recognised(text: str) -> None:
    assert is_question(text)


# Sentences, crops, keywords


def test_a_defining_sentence_comes_before_the_first_one_and_leaning_ones_are_skipped() -> None:
    text = (
        "It was introduced last year by the finance team. Many people ask for it in the spring months. "
        "A fuel card is a payment card that pays for petrol at any station. " + FILLER
    )
    (query,) = made([chunk("a#0", text)], None, None, "sentence")
    assert query.text == "A fuel card is a payment card that pays for petrol at any station."
    assert query.span is not None
    assert text[slice(*query.span)] == query.text


def test_sentences_are_found_without_spaces() -> None:
    text = "信用卡是一種支付工具，可以在全國各地的商店使用。員工每月必須提交報告，並附上所有收據！他說：「沒問題。」"
    spans = sentences(text)
    assert [text[a:b] for a, b in spans][:2] == [
        "信用卡是一種支付工具，可以在全國各地的商店使用。",
        "員工每月必須提交報告，並附上所有收據！",
    ]
    (query,) = made([chunk("a#0", text)], None, None, "sentence")
    assert query.text == "信用卡是一種支付工具，可以在全國各地的商店使用。"


def test_sentences_do_not_end_at_abbreviations_or_inside_links() -> None:
    text = "Ask e.g. Dr. Smith about [rules. They are new](x.md) first. Version 3.5 is out."
    assert [text[a:b] for a, b in sentences(text)] == [
        "Ask e.g. Dr. Smith about [rules. They are new](x.md) first.",
        "Version 3.5 is out.",
    ]


@given(st.text(alphabet="ab A.?!。？\n\"') [](", max_size=80))
def test_sentences_cover_the_text_in_order(text: str) -> None:
    spans = sentences(text)
    assert all(a < b for a, b in spans)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())


@given(st.text(alphabet="ab#*-|`> \n=1.", max_size=120))
def test_blocks_lie_in_order_and_leave_out_blanks_and_rules_only(text: str) -> None:
    found = blocks(text)
    assert all(0 <= block.start < block.end <= len(text) for block in found)
    assert all(left.end <= right.start for left, right in pairwise(found))
    covered = "".join(text[block.start : block.end] for block in found)
    assert covered.count("a") == text.count("a")
    assert covered.count("b") == text.count("b")


def test_a_crop_is_another_stretch_than_the_sentence() -> None:
    text = f"{FILLER} {OTHER} Nobody may lend a badge to a person from outside the company for any reason."
    queries = {query.kind: query for query in made([chunk("a#0", text)], None, None, "sentence", "crop")}
    first, crop = queries["sentence"].span, queries["crop"].span
    assert first is not None and crop is not None
    assert crop[0] >= first[1] or crop[1] <= first[0]


def test_keywords_are_the_words_that_tell_a_passage_apart() -> None:
    common = "The company asks every member of the staff to read the handbook before the meeting starts today. "
    chunks = [chunk(f"d{i}", f"{common} {FILLER}") for i in range(30)]
    chunks.append(chunk("odd", f"{common} Quokka enclosures need quokka pellets and eucalyptus shade every morning."))
    (query,) = [query for query in made(chunks, None, None, "keywords") if query.positives == ("odd",)]
    assert "quokka" in query.text.split()
    assert 2 <= len(query.text.split()) <= 6
    assert "handbook" not in query.text


def test_keywords_of_a_text_in_two_scripts_are_its_spaced_words() -> None:
    text = f"{FILLER} The sign 如何报销如何报销 hangs at the gate and 什么 means what. {OTHER}"
    (query,) = made([chunk("a#0", text)], None, None, "keywords")
    assert query.text.isascii()


def test_a_sentence_that_opens_many_documents_is_boilerplate() -> None:
    notice = "Permission is granted to copy the sheet for use inside the company."
    chunks = [chunk(f"d{i}#0", f"{notice} {FILLER} Number {i}.") for i in range(3)]
    assert notice not in texts(made(chunks, None, None, "sentence"))
    assert notice in texts(made(chunks[:2], None, None, "sentence"))


# Source code

PYTHON = '''
def write_boolean(self, n):
    """
    Writes a Boolean to the stream.

    :param n: the value
    """
    t = TYPE_BOOL_TRUE
    if n is False:
        t = TYPE_BOOL_FALSE
    self.stream.write(t)
'''.strip()

JAVA = """
/**
 * Closes the connection and
 * returns it to the pool. Never throws.
 * @param force whether to wait
 */
public void closeConnection(boolean force) {
    pool.release(this, force);
}
""".strip()


def test_a_docstring_is_a_human_query_and_its_function_hides_it() -> None:
    queries = {query.kind: query for query in made([chunk("0", PYTHON)])}
    doc, name = queries["docstring"], queries["identifier"]
    assert (doc.text, doc.evidence) == ("Writes a Boolean to the stream", Evidence.HUMAN)
    assert (name.text, name.evidence) == ("write boolean", Evidence.CROP)
    assert "Writes a Boolean" not in masked_passage(doc, chunk("0", PYTHON))
    assert "write_boolean" not in masked_passage(name, chunk("0", PYTHON))
    assert "stream.write(t)" in masked_passage(name, chunk("0", PYTHON))
    assert "sentence" not in queries
    assert "crop" not in queries


def test_a_comment_above_a_function_is_its_documentation() -> None:
    (definition,) = definitions(JAVA)
    assert definition.name == "closeConnection"
    assert definition.summary_span is not None
    assert summary_text(JAVA[slice(*definition.summary_span)]) == "Closes the connection and returns it to the pool"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("func (s *Server) ListenAndServe(addr string) error {\n}", "ListenAndServe"),
        ("pub async fn read_frame(&mut self) -> Result<Frame> {\n}", "read_frame"),
        ("const makeCounter = (start) => {\n  return start\n}", "makeCounter"),
        ("class HTTPServer(Base):\n    pass", "HTTPServer"),
    ],
)
def test_definitions_are_found_in_several_languages(code: str, name: str) -> None:
    assert [definition.name for definition in definitions(code)] == [name]


def test_prose_is_not_code_and_code_is() -> None:
    assert is_code(PYTHON)
    assert is_code("x = 1", "tools/build.py")
    assert not is_code("We define class (social) differences here; the function (if any) is unclear.")
    assert not is_code(PYTHON, "docs/guide.md")


def test_identifiers_are_split_into_words() -> None:
    assert identifier_words("readHTTPHeader_v2") == ["read", "http", "header", "v2"]


# Masking


def test_a_kind_that_is_not_cut_sees_the_whole_passage() -> None:
    home = chunk("a#0", FILLER, ("Expense reports",))
    query = Query("q", "Expense reports", "link", Evidence.HUMAN, ("a#0",))
    assert masked_passage(query, home) == home.passage


def test_a_title_is_hidden_from_the_path_and_from_the_heading_line() -> None:
    home = chunk("a#0", f"# Expense reports\n\n{FILLER}", ("Expense reports", "Rules"))
    query = Query("q", "Expense reports", "title", Evidence.CROP, ("a#0",))
    assert masked_passage(query, home) == f"Rules\n{FILLER}"


def test_copies_of_a_sentence_are_hidden_too() -> None:
    home = chunk("a#0", f"{FILLER} {OTHER} {FILLER.upper()}")
    query = Query("q", FILLER, "sentence", Evidence.CROP, ("a#0",), (0, len(FILLER)))
    assert masked_passage(query, home).strip(" .") == OTHER.strip(".")


words_ = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]), min_size=4, max_size=9)


@given(words_, words_, words_)
def test_a_masked_passage_never_says_the_query(before: list[str], said: list[str], after: list[str]) -> None:
    query_text = " ".join(said)
    text = " ".join([*before, *said, *after])
    start = len(" ".join(before)) + 1
    query = Query("q", query_text, "crop", Evidence.CROP, ("a#0",), (start, start + len(query_text)))
    assert query_text not in " ".join(masked_passage(query, chunk("a#0", text)).split())


def test_every_kind_has_its_evidence_and_verbatim_kinds_are_kinds() -> None:
    assert set(KINDS) >= VERBATIM
    assert evidence_of("lm-something new") is Evidence.PARAPHRASE
    with pytest.raises(KeyError):
        evidence_of("rumour")


# The whole


def handbook() -> tuple[list[Document], list[Chunk]]:
    names = ["Rental cars", "Train tickets", "Fuel cards", "Hotel rooms", "Parking permits"]
    documents = [document(f"d{i}", name) for i, name in enumerate(names)]
    chunks = [
        chunk(
            f"d{i}#{j}",
            f"Every {name.lower()} request {j} goes to desk {i * 7 + j}. {FILLER} {OTHER}",
            (name, f"Part {j} rules"),
        )
        for i, name in enumerate(names)
        for j in range(3)
    ]
    return documents, chunks


def test_the_same_input_and_seed_give_the_same_queries() -> None:
    documents, chunks = handbook()
    config = QueryConfig()
    first = structural_queries(documents, chunks, [], config, seed=5)
    assert first == structural_queries(documents, chunks, [], config, seed=5)
    assert len({query.id for query in first}) == len(first)
    assert all(query.positives for query in first)


def test_spans_stand_in_the_first_positive() -> None:
    documents, chunks = handbook()
    by_id = {c.id: c for c in chunks}
    for query in structural_queries(documents, chunks, [], QueryConfig(), seed=5):
        if query.span is not None:
            assert text_key(query.text) == text_key(plain(by_id[query.positives[0]].text[slice(*query.span)]))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="rumour"):
        structural_queries([], [], [], QueryConfig(kinds=("rumour",)), seed=1)


def test_nothing_in_nothing_out() -> None:
    assert structural_queries([], [], [], QueryConfig(), seed=1) == []


# Filters


def query(id: str, text: str, positive: str = "a#0", kind: str = "sentence") -> Query:
    return Query(id, text, kind, evidence_of(kind), (positive,))


@pytest.mark.parametrize(
    "text", ["2024-05-12", "12 May 2023", "Table of contents", "3.2.1", "next", "目錄", "a@b.com", "x"]
)
def test_boilerplate_is_recognised(text: str) -> None:
    assert is_boilerplate(text, "heading")


@pytest.mark.parametrize("text", ["OKRs", "梵文", "C++", "Expense reports 2024"])
def test_short_names_are_no_boilerplate(text: str) -> None:
    assert not is_boilerplate(text, "title")


def test_near_duplicates_keep_the_best_evidence_and_all_answers() -> None:
    crop = query("1", "Expense reports", "a#0", "heading")
    human = query("2", "the expense report", "b#0", "link")
    (kept,) = drop_near_duplicates([crop, human])
    assert (kept.id, kept.positives) == ("2", ("b#0", "a#0"))


def test_a_question_is_no_duplicate_of_another_question_or_of_a_heading() -> None:
    several = [
        query("1", "Why join GitLab?", kind="question"),
        query("2", "How to join GitLab", kind="question"),
        query("3", "Joining GitLab", kind="heading"),
    ]
    assert drop_near_duplicates(several) == several


def test_languages_that_differ_by_signs_are_not_the_same_text() -> None:
    assert len({text_key("C++ style guide"), text_key("C# style guide"), text_key("C style guide")}) == 3


def test_overlap_is_bounded_for_queries_that_were_not_cut_out() -> None:
    chunks = {"a#0": chunk("a#0", FILLER)}
    copied = query("1", "reports finance desk salary", kind="link")
    own_words = query("2", "when is my money refunded", kind="link")
    cut = query("3", "Reports must reach the finance desk", kind="sentence")
    assert bound_overlap([copied, own_words, cut], chunks, 0.8) == [own_words, cut]
    assert lexical_overlap("Report salaries", FILLER) == 1.0
    assert lexical_overlap("Report hamsters", FILLER) == 0.5
    assert lexical_overlap("the of", FILLER) == 0.0


def test_the_cap_keeps_the_best_evidence_and_mixes_kinds() -> None:
    group = [query(str(i), f"text {i}", kind=kind) for i, kind in enumerate(["crop", "crop", "sentence", "question"])]
    kept = cap_per_chunk(group, 3, seed=3)
    assert sorted(q.kind for q in kept) == ["crop", "question", "sentence"]


def test_an_even_sample_serves_rare_kinds_and_all_documents() -> None:
    chunks = {f"d{i}#0": chunk(f"d{i}#0", FILLER) for i in range(10)}
    many = [query(f"c{i}-{j}", f"crop {i} {j}", f"d{i}#0", "crop") for i in range(10) for j in range(20)]
    few = [query(f"q{i}", f"question {i}", f"d{i}#0", "question") for i in range(3)]
    sample = sample_evenly([*many, *few], 13, chunks, seed=1)
    assert len(sample) == 13
    assert sum(q.kind == "question" for q in sample) == 3
    assert len({q.positives for q in sample if q.kind == "crop"}) == 10
    assert sample_evenly(list(reversed([*many, *few])), 13, chunks, seed=1) == sample


def test_clean_queries_respects_the_limit() -> None:
    documents, chunks = handbook()
    queries = structural_queries(documents, chunks, [], QueryConfig(max_queries=7), seed=5)
    assert len(queries) == 7
    assert set(clean_queries(queries, chunks, QueryConfig(max_queries=7), seed=5)) == set(queries)


def test_round_trip_keeps_what_comes_back_in_time() -> None:
    asked = [query("1", "a b", "a#0"), query("2", "c d", "b#0")]
    rankings = [["x", "a#0"], ["x", "y", "b#0"]]
    assert round_trip_filter(asked, rankings, 2) == ([asked[0]], [asked[1]])
    assert round_trip_filter(asked, rankings, 0) == (asked, [])
    with pytest.raises(InvalidInput, match="2 queries but 1 rankings"):
        round_trip_filter(asked, rankings[:1], 2)


def test_a_boilerplate_filter_leaves_different_sentences_alone() -> None:
    chunks = {f"d{i}#0": chunk(f"d{i}#0", FILLER) for i in range(4)}
    own = [
        query(str(i), f"The {word} desk opens at nine", f"d{i}#0")
        for i, word in enumerate(["north", "south", "east", "west"])
    ]
    assert drop_boilerplate(own, chunks) == own


# Real text


def corpus(data: Path, name: str, limit: int) -> tuple[list[Document], list[Chunk]]:
    documents, chunks = [], []
    with (data / name / "corpus.jsonl").open(encoding="utf-8") as file:
        for _, line in zip(range(limit), file):
            row = json.loads(line)
            documents.append(Document(row["_id"], row["text"], row["title"]))
            path = (row["title"],) if row["title"] else ()
            chunks.append(Chunk(row["_id"], row["_id"], row["text"], path, 0, len(row["text"])))
    return documents, chunks


def test_real_functions_yield_docstrings_for_nine_in_ten(data: Path) -> None:
    documents, chunks = corpus(data, "cosqa", 400)
    queries = structural_queries(documents, chunks, [], QueryConfig(), seed=13)
    documented = {q.positives[0] for q in queries if q.kind == "docstring"}
    assert len(documented) >= 360
    assert not [q for q in queries if q.kind in ("sentence", "crop", "heading")]


def test_real_questions_of_a_forum_are_human_evidence(data: Path) -> None:
    documents, chunks = corpus(data, "stackfaq", 300)
    queries = structural_queries(documents, chunks, [], QueryConfig(), seed=13)
    asked = [q for q in queries if q.kind == "question"]
    assert len(asked) >= 35
    assert all(q.evidence is Evidence.HUMAN for q in asked)


def test_real_chinese_paragraphs_yield_every_cut_kind_masked(data: Path) -> None:
    documents, chunks = corpus(data, "drcd", 100)
    by_id = {c.id: c for c in chunks}
    queries = structural_queries(documents, chunks, [], QueryConfig(), seed=13)
    assert {q.kind for q in queries} >= {"title", "sentence", "keywords", "crop"}
    for q in queries:
        if q.kind in ("sentence", "crop"):
            assert q.text not in masked_passage(q, by_id[q.positives[0]])

"""Answers of language models, as they really come, into clean queries."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragadapt.queries.generators.answers import REASONS, Candidate, clean, judge, read_answer
from ragadapt.queries.generators.cache import Answer
from ragadapt.queries.generators.prompts import (
    ENGLISH_EXAMPLES,
    KINDS,
    chat_text,
    is_question,
    looks_like,
    make_prompt,
    plain_text,
)
from ragadapt.values import Chunk

PASSAGE = (
    "A rejected expense report goes back to the person who filed it. They have ten working days to attach the missing "
    "receipt; afterwards finance closes the report and the amount is not paid out. The author of a report can be "
    "replaced by the department head."
)
CHUNK = Chunk("doc#1", "doc", PASSAGE, ("Finance", "Expenses"))
PROMPT = make_prompt(CHUNK, asked=4, seed=7, generator_id="test")


def texts(answer: str, **options: str) -> list[tuple[str | None, str]]:
    return [(candidate.kind, candidate.text) for candidate in read_answer(answer, Counter(), **options)]


def verdict(
    text: str, kind: str | None = None, chunk: Chunk = CHUNK, max_overlap: float = 0.8
) -> tuple[str, str] | str:
    prompt = make_prompt(chunk, asked=4, seed=7, generator_id="test")
    return judge(Candidate(kind, text), prompt, max_overlap=max_overlap)


A, B, C = "How do I get my money back?", "Who can take over for me?", "When is it too late?"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"Question: {A}\nKeywords: lost bill refund", [("question", A), ("keywords", "lost bill refund")]),
        (f"1. {A}\n2. {B}\n3) {C}", [(None, A), (None, B), (None, C)]),
        (f"- {A}\n* {B}\n• {C}", [(None, A), (None, B), (None, C)]),
        (f"Q1: {A}\nQ2: {B}", [(None, A), (None, B)]),
        (f"(1) {A}\n(2) {B}", [(None, A), (None, B)]),
        (f"**Question:** {A}\n**Problem:** My bill is gone.", [("question", A), ("problem", "My bill is gone.")]),
        (f"1. **Question**: *{A}*", [("question", A)]),
        (f"### Question 1: {A}", [("question", A)]),
        (f'"{A}"\n“{B}”\n«{C}»', [(None, A), (None, B), (None, C)]),
        (f"Question: '{A}'", [("question", A)]),
        (f"Sure, here are 3 questions:\n\n1. {A}\n2. {B}", [(None, A), (None, B)]),
        (f"Here are the queries you asked for:\n{A}\nLet me know if you need more!", [(None, A)]),
        (f"Certainly! Below are some questions: {A}", [(None, A)]),
        (f"Here is the list: 1. {A} 2. {B} 3. {C}", [(None, A), (None, B), (None, C)]),
        (f"{A} {B}", [(None, A), (None, B)]),
        (f"Question: {A} {B} {C}", [("question", A), ("question", B), ("question", C)]),
        (f"1. {A} 2. {B}", [(None, A), (None, B)]),
        (f"Q: {A}\nA: File it again within ten days.", [("question", A)]),
        (f"Question: {A} You file it again.", [("question", A)]),
        (f'["{A}", "{B}"]', [(None, A), (None, B)]),
        (f'```json\n{{"questions": ["{A}", "{B}"]}}\n```', [("question", A), ("question", B)]),
        (
            f'Here is the JSON:\n{{"question": "{A}", "keywords": "lost bill"}}',
            [("question", A), ("keywords", "lost bill")],
        ),
        (
            f'[{{"type": "keywords", "query": "lost bill"}}, {{"type": "question", "query": "{A}"}}]',
            [("keywords", "lost bill"), ("question", A)],
        ),
        (f'{{"query": "{A}"}}\n{{"query": "{B}"}}', [("question", A), ("question", B)]),
        (f"<think>The user wants queries. Question: what?</think>\nQuestion: {A}", [("question", A)]),
        (f"Frage: {A}\n问题：怎么退款？", [("question", A), ("question", "怎么退款？")]),
        ("Problem: My bill is gone. What now?", [("problem", "My bill is gone. What now?")]),
        ('Question: What does "closed" mean?', [("question", 'What does "closed" mean?')]),
        ("1.5 million euros refund", [(None, "1.5 million euros refund")]),
        ("怎么退款？找谁批准？", [(None, "怎么退款？"), (None, "找谁批准？")]),
    ],
)
def test_queries_are_read_out_of_any_wrapping(answer: str, expected: list[tuple[str | None, str]]) -> None:
    assert texts(answer) == expected


def test_the_label_that_ended_the_prompt_names_the_first_line() -> None:
    answer = f" {A}\nKeywords: lost bill"
    assert texts(answer, first_kind="problem") == [("problem", A), ("keywords", "lost bill")]


def test_talk_and_answers_are_counted() -> None:
    rejected: Counter[str] = Counter()
    read_answer(f"Sure! Here you go:\nQ: {A}\nA: In ten days.\nI hope this helps!", rejected)
    assert rejected == {"preamble": 2, "answer": 1}


@pytest.mark.parametrize("answer", ["", "   \n\n", "```\n```", "<think>endless"])
def test_nothing_is_counted_as_empty(answer: str) -> None:
    rejected: Counter[str] = Counter()
    assert read_answer(answer, rejected) == []
    assert rejected == {"empty": 1}


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("According to the passage, who closes it?", "question", "meta"),
        ("What happens to unpaid money according to this text?", "question", "meta"),
        ("Based on the document, when is money lost?", "question", "meta"),
        ("What is the deadline mentioned in the text?", "question", "meta"),
        ("What does the passage say about receipts?", "question", "meta"),
        ("What time limit is described above?", "question", "meta"),
        ("What is this article about, money or time?", "question", "meta"),
        ("Was passiert laut dem Text mit dem Geld?", "question", "meta"),
        ("Selon le texte, qui paie la facture?", "question", "meta"),
        ("I'm sorry, I cannot write questions about this.", None, "refusal"),
        ("As an AI language model, I have no access.", None, "refusal"),
        ("<your question here>", "question", "echo"),
        ("[Question about the topic]", "question", "echo"),
        ("How often do I have to oil my bike?", "question", "echo"),
        ("one short statement that the passage confirms, in other words than the passage's", "claim", "echo"),
        ("Write in the language of the passage.", "claim", "echo"),
        ("My money has not come.", "question", "not_question"),
        ("They have ten working days to attach the missing receipt", "claim", "copy"),
        ("rejected expense report missing receipt", "keywords", "copy"),
        ("What is the main purpose of this?", "question", "vague"),
        ("What does it do and why?", "question", "vague"),
        ("money money money money money money", "claim", "degenerate"),
        ("pay back my bill pay back my bill pay back my bill", "problem", "degenerate"),
        ("I'm not sure how to do this.", "problem", "vague"),
        ("How do I use this feature?", "question", "vague"),
        ("Wie bekomme ich mein Geld zurück?", "question", "language"),
        ("Comment est-ce que je peux avoir les sous?", "question", "language"),
        ("Refund when?", "question", "too_short"),
        ("money", "keywords", "too_short"),
        ("lost bill " + "and one more thing " * 9, "problem", "degenerate"),
        ("one two three four five six seven eight nine ten", "keywords", "too_long"),
        ("怎么退款？", "question", "language"),
        ("!!!", None, "empty"),
    ],
)
def test_what_is_unfit_is_refused_with_its_reason(text: str, kind: str | None, reason: str) -> None:
    assert verdict(text, kind) == reason
    assert reason in REASONS


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("How long can I wait before my money is gone?", "question", "question"),
        ("how long can I wait before my money is gone", "question", "question"),
        ("lost bill, refund deadline", "keywords", "keywords"),
        ("is my refund gone for good?", "keywords", "question"),
        ("I lost the bill for my train ticket.", "problem", "problem"),
        ("Late proof means no refund.", "claim", "claim"),
        ("How is the author swapped when somebody leaves?", "question", "question"),  # the passage speaks of authors
        ("Which document do I hand in to be paid?", "question", "question"),
        ("I lost the bill for my train ticket.", None, "problem"),
        ("refund without bill", None, "keywords"),
    ],
)
def test_what_a_user_would_type_stays(text: str, kind: str | None, expected: str) -> None:
    judged = verdict(text, kind)
    assert isinstance(judged, tuple), judged
    assert judged[0] == expected


def test_commas_of_a_keyword_query_go() -> None:
    assert verdict("lost bill, refund, deadline.", "keywords") == ("keywords", "lost bill refund deadline")


def test_max_overlap_decides_about_shared_words() -> None:
    text = "Who closes a rejected report?"
    assert verdict(text, "question", max_overlap=0.5) == "copy"
    assert verdict(text, "question", max_overlap=1.0) == ("question", text)


def test_a_quotation_is_refused_at_any_overlap() -> None:
    assert verdict("goes back to the person who filed it", "claim", max_overlap=1.0) == "copy"


def test_a_german_passage_refuses_an_english_question() -> None:
    german = Chunk(
        "g",
        "g",
        "Eine abgelehnte Abrechnung geht zurück an die Person, die sie eingereicht hat. Sie hat zehn "
        "Werktage Zeit, um den fehlenden Beleg nachzureichen; danach wird das Geld nicht mehr ausgezahlt.",
    )
    assert verdict("How do I get the money of my bill?", "question", german) == "language"
    assert verdict("Wie bekomme ich mein Geld zurück?", "question", german) == (
        "question",
        "Wie bekomme ich mein Geld zurück?",
    )


def test_a_chinese_passage_takes_chinese_queries() -> None:
    chinese = Chunk(
        "c",
        "c",
        "被退回的报销单会返回给提交人，提交人须在十个工作日内补交缺失的收据，逾期财务部将关闭该报销单，款项不予支付。",
    )
    assert verdict("发票丢了还能拿到钱吗？", "question", chinese) == ("question", "发票丢了还能拿到钱吗？")
    assert verdict("根据本文，谁负责审批？", "question", chinese) == "meta"
    assert verdict("提交人须在十个工作日内补交缺失的收据", "claim", chinese) == "copy"


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("Learn more on the view of being a [public company](/handbook/company/being-a-public-company/).", True),
        ("mailer.send(message, *, retries=3)", True),
        ("Die Kette sollte alle 200 km geschmiert werden, und zwar mit wenig Öl für die Ritzel.", False),
        ("Les reçus des dépenses sont à joindre dans les dix jours.", False),
        ("被退回的报销单会返回给提交人", False),
    ],
)
def test_examples_are_english_unless_the_passage_is_clearly_not(text: str, english: bool) -> None:
    prompt = make_prompt(Chunk("c", "c", text), asked=3, seed=1, generator_id="g")
    assert (prompt.examples == ENGLISH_EXAMPLES) is english


def test_repeats_within_a_passage_are_dropped() -> None:
    answer = Answer("k", "doc#1", f"1. {A}\n2. how do i get my money back\n3. {B}")
    kept, rejected = clean(answer, PROMPT, max_overlap=0.8)
    assert kept == [("question", A), ("question", B)]
    assert rejected == {"duplicate": 1}


def test_a_line_cut_by_the_token_limit_is_dropped_and_a_whole_one_stays() -> None:
    cut = Answer("k", "doc#1", f"Question: {A}\nProblem: I lost the bill for my tr", cut_off=True)
    assert clean(cut, PROMPT, max_overlap=0.8) == ([("question", A)], {"unfinished": 1})
    whole = Answer("k", "doc#1", f"Question: {B}\nQuestion: {A}", cut_off=True)
    assert clean(whole, PROMPT, max_overlap=0.8) == ([("question", B), ("question", A)], {})


@given(st.text(max_size=300))
def test_any_answer_is_accounted_for(answer: str) -> None:
    kept, rejected = clean(Answer("k", "doc#1", answer), PROMPT, max_overlap=0.8)
    assert kept or sum(rejected.values()) > 0
    assert set(rejected) <= set(REASONS)
    for kind, text in kept:
        assert kind in KINDS
        assert text == text.strip()
        assert "\n" not in text


@given(
    st.lists(
        st.sampled_from([A, B, C, "Is the deadline ten days?", "Why was it refused by them?"]), min_size=1, unique=True
    )
)
def test_a_numbered_list_gives_back_its_questions(questions: list[str]) -> None:
    listed = "Sure, here you go:\n" + "\n".join(f"{i}. {question}" for i, question in enumerate(questions, start=1))
    assert [text for _, text in texts(listed)] == questions


def test_a_question_is_asked_first_and_the_other_kinds_take_turns() -> None:
    prompts = [make_prompt(Chunk(f"{i}", "d", f"text {i}"), asked=2, seed=1, generator_id="g") for i in range(200)]
    assert {prompt.kinds[0] for prompt in prompts} == {"question"}
    second = Counter(prompt.kinds[1] for prompt in prompts)
    assert set(second) == set(KINDS) - {"question"}
    assert min(second.values()) > 40
    eight = make_prompt(CHUNK, asked=20, seed=1, generator_id="g").kinds
    assert Counter(eight) == dict.fromkeys(KINDS, 2)


def test_the_chat_prompt_ends_with_the_passage_and_names_the_kinds_in_order() -> None:
    message = chat_text(PROMPT)
    assert message.endswith(f"<passage>\n{CHUNK.passage}\n</passage>")
    order = ", ".join(kind.capitalize() for kind in PROMPT.kinds)
    assert f"Now write 4 lines for the following passage, in this order: {order}." in message


def test_the_fixed_part_of_the_prompt_is_equal_for_equal_kinds() -> None:
    other = Chunk("doc#2", "doc", PASSAGE + " And more.", ("Finance",))
    one = make_prompt(CHUNK, asked=4, seed=7, generator_id="g")
    two = make_prompt(other, asked=4, seed=8, generator_id="g")
    head = chat_text(one).split("Now write")[0]
    assert len(head) > 2000
    assert chat_text(two).startswith(head)  # what a server's prompt cache need not read again


def test_the_plain_prompt_shows_lines_in_the_order_asked_and_ends_with_the_first_label() -> None:
    prompt = plain_text(PROMPT)
    assert prompt.endswith(f"\n{PROMPT.kinds[0].capitalize()}:")
    block = prompt.split("\n\n")[1].splitlines()
    assert [line.split(":")[0].lower() for line in block[1:]] == list(PROMPT.kinds)


def test_examples_follow_the_language_of_the_passage() -> None:
    chinese = make_prompt(
        Chunk("c", "c", "被退回的报销单会返回给提交人，须在十个工作日内补交收据。"), asked=3, seed=1, generator_id="g"
    )
    assert "图书馆" in chinese.examples[-1].passage
    assert all("图书馆" not in example.passage for example in PROMPT.examples)


@pytest.mark.parametrize(
    ("changed", "same"),
    [({"seed": 8}, False), ({"generator_id": "other"}, False), ({"asked": 3}, False), ({}, True)],
)
def test_the_key_changes_with_what_decides_the_answer(changed: dict[str, object], same: bool) -> None:
    options = {"asked": 4, "seed": 7, "generator_id": "test", **changed}
    prompt = make_prompt(Chunk("another id", "elsewhere", PASSAGE, CHUNK.heading_path), **options)  # type: ignore[arg-type]
    assert (prompt.key == PROMPT.key) is same


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("How do I file it", "question"),
        ("is it paid", "question"),
        ("怎么退款", "question"),
        ("expense refund", "keywords"),
        ("My bill is gone.", "problem"),
        ("Bills are paid late.", "claim"),
    ],
)
def test_an_unlabelled_query_is_sorted_by_its_looks(text: str, kind: str) -> None:
    assert looks_like(text) == kind


def test_a_question_needs_no_mark() -> None:
    assert is_question("does it pay")
    assert not is_question("It pays.")

"""A file of labelled questions that is written one judgement at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.queries import EvidenceQuote, QuestionCounts, QuestionFile, load_labels, load_questions
from ragadapt.values import Chunk

REFUND = EvidenceQuote("billing.md", "Refunds are paid within thirty days.")
LATE = EvidenceQuote("billing.md", "Late invoices cost five per cent.")
CHUNKS = [Chunk("b1", "billing.md", REFUND.quote), Chunk("b2", "billing.md", LATE.quote)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_written_is_what_fit_reads(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    file = QuestionFile(path)
    assert not path.exists()
    file.judge("who pays me back?", [REFUND], True, "asked")
    file.judge("who pays me back?", [LATE], False)
    file.judge("where is the moon?", [LATE], False, "asked")
    file.skip("hm?", True, "asked")
    found = load_labels(path, chunks=CHUNKS)
    assert [(query.text, query.positives) for query in found.queries] == [("who pays me back?", ("b1",))]
    assert found.unmatched == []
    assert load_questions(path)[0] == ["who pays me back?", "where is the moon?"]  # nobody asks what was put aside
    assert file.counts() == QuestionCounts(labelled=1, unanswered=1, skipped=1)
    assert {row["from"] for row in lines(path)} == {"asked"}


def test_a_judgement_can_be_changed_and_taken_back_to_the_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    file = QuestionFile(path)
    file.judge("one", [REFUND], True, "typed")
    before = path.read_bytes()
    assert file.judge("one", [LATE], True).relevant == (REFUND, LATE)
    said = file.judge("one", [LATE], False)
    assert (said.says([REFUND]), said.says([LATE]), said.says([EvidenceQuote("a.md", "b")])) == (True, False, None)
    file.judge("one", [LATE], None)
    file.judge("two", [LATE], True, "typed")
    file.judge("two", [LATE], None)
    file.skip("three", True, "typed")
    file.skip("three", False)
    assert path.read_bytes() == before
    file.skip("one")
    assert file.judge("one", [LATE], False).skipped is False  # who judges has not put it aside


def test_a_copy_of_a_passage_counts_with_it(tmp_path: Path) -> None:
    copy = EvidenceQuote("copy.md", REFUND.quote)
    file = QuestionFile(tmp_path / "questions.jsonl")
    assert file.judge("one", [REFUND, copy], True).relevant == (REFUND, copy)
    assert file.judge("one", [copy, REFUND], None).relevant == ()


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    evidence = {"source": REFUND.source, "quote": REFUND.quote, "page": 3}
    own: list[dict[str, Any]] = [
        {"query": "mine", "evidence": evidence, "team": "é"},
        {"id": 7, "question": "open"},
        {"text": "mine"},
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in own), encoding="utf-16")
    file = QuestionFile(path)
    assert file.counts().labelled == 1
    file.judge("open", [LATE], True, "asked")
    written = lines(path)
    assert written[0] == {**own[0], "_id": "1"}
    assert written[1] == {**own[1], "evidence": [{"source": LATE.source, "quote": LATE.quote}]}
    assert written[2] == {"text": "mine", "_id": "5"}  # as `fit` would have called it
    file.judge("open", [LATE], None)
    assert [row.get("question") for row in lines(path)] == [None, "open", None]  # not ours to take away


def test_other_writers_are_read_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    one, other = QuestionFile(path), QuestionFile(path)
    one.judge("first", [REFUND], True, "typed")
    other.judge("second", [LATE], True, "typed")
    assert set(one.questions()) == {"first", "second"}
    with path.open("a", encoding="utf-8") as by_hand:
        by_hand.write('{"_id": "x", "text": "third"}\n')
    one.judge("first", [LATE], True)
    assert [row["text"] for row in lines(path)] == ["first", "second", "third"]


def test_many_windows_and_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    work = (
        "import sys; from ragadapt.queries import EvidenceQuote, QuestionFile\n"
        "file = QuestionFile(sys.argv[1])\n"
        "quotes = [EvidenceQuote('p.md', f'words {sys.argv[2]}')]\n"
        "for at in range(12): file.judge(f'shared {at}', quotes, True, 'typed')"
    )
    others = [subprocess.Popen([sys.executable, "-c", work, str(path), str(number)]) for number in range(2)]
    file = QuestionFile(path)
    threads = [
        threading.Thread(
            target=lambda at=at: file.judge(f"shared {at}", [EvidenceQuote("p.md", "words 9")], True, "typed")
        )
        for at in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    said = file.questions()
    assert set(said) == {f"shared {at}" for at in range(12)}
    wanted = {"words 0", "words 1", "words 9"}
    assert all({quote.quote for quote in one.relevant} == wanted for one in said.values())


def test_a_line_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    for line, why in (("{broken", "line 2: it is not JSON"), ('{"_id": "1"}', 'line 2: it has no "text"')):
        path.write_text(f'{{"text": "fine"}}\n{line}\n', encoding="utf-8")
        with pytest.raises(InvalidLabels, match=why):
            QuestionFile(path)
    with pytest.raises(InvalidLabels, match="no folder"):
        QuestionFile(tmp_path / "none" / "questions.jsonl")
    with pytest.raises(InvalidInput, match="no words"):
        QuestionFile(tmp_path / "new.jsonl").judge("one", [EvidenceQuote("a.md", "—")], True)
    assert not (tmp_path / "new.jsonl").exists()

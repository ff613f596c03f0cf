"""What of a passage is shown, and which of its words are marked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragadapt_cli.commands.search import _lines, _show
from ragadapt_cli.snippets import marks, snippet
from ragadapt_cli.terminal import Terminal

from ragadapt.values import Chunk, Hit


def marked(text: str, query: str) -> list[str]:
    return [text[start:end] for start, end in marks(text, query)]


def test_words_of_the_same_stem_are_marked_and_function_words_are_not() -> None:
    text = "To reset the Password, open it. Resetting passwords is how it is done."
    assert marked(text, "how do I reset a password?") == ["reset", "Password", "Resetting", "passwords"]


def test_compounds_are_marked_whole() -> None:
    assert marked("call getUserName() or user_id.", "user") == ["getUserName", "user_id"]


def test_pairs_of_characters_are_marked_where_words_are_not_spaced() -> None:
    assert marked("請重設密碼後再登入", "重設密碼") == ["重設密碼"]
    assert marked("使用Python的密碼", "python 密碼") == ["Python", "密碼"]


def test_short_text_stays_whole_on_one_line() -> None:
    assert snippet("red\n\n green  blue", "green", 40) == ("red green blue", [(4, 9)])


def test_window_holds_the_place_where_the_querys_words_are() -> None:
    text = "filler word " * 50 + "the reset password link " + "more filler " * 50
    shown, spans = snippet(text, "password reset", 80)
    assert [shown[start:end] for start, end in spans] == ["reset", "password"]
    assert shown.startswith("… ")
    assert shown.endswith(" …")


def test_window_begins_at_the_start_where_no_word_is_found() -> None:
    shown, spans = snippet("abc def " * 50, "xyz", 40)
    assert shown.startswith("abc def")
    assert spans == []


TEXT = st.text(st.sampled_from("ab cd.\n密碼重 ñ'-_9"), max_size=300)


@given(TEXT, TEXT, st.integers(10, 120))
def test_marks_are_inside_ascending_and_apart(text: str, query: str, width: int) -> None:
    shown, spans = snippet(text, query, width)
    assert len(shown) <= width + 4
    at = -1
    for start, end in spans:
        assert at < start < end <= len(shown)
        at = end
    plain = " ".join(text.split())
    assert shown.removeprefix("… ").removesuffix(" …") in plain


@given(TEXT, st.integers(5, 60))
def test_lines_hold_the_whole_text_and_keep_to_the_width(text: str, width: int) -> None:
    text = " ".join(text.split())
    spans = _lines(text, width)
    assert all(end - start <= width for start, end in spans)
    assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("width", [10, 20])
def test_lines_break_at_spaces(width: int) -> None:
    text = "several words that are not long"
    for start, end in _lines(text, width):
        assert end == len(text) or text[end] == " "
        assert start == 0 or text[start - 1] == " "


def test_a_hit_says_the_page_slide_sheet_or_cell_in_which_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    at = [{"pages": 9, "page": 3}, {"slide": 2}, {"sheet": "Phones", "row": 7}, {"cell": 12}, {"year": 2024}]
    hits = [Hit(Chunk(f"a#{n}", "a", "words", ("T",), 0, 5, of, "a.x"), 1.0) for n, of in enumerate(at)]
    _show(Terminal(), "words", hits)
    places = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[::2]]
    assert places == [
        "a.x > T, page 3",
        "a.x > T, slide 2",
        "a.x > T, sheet Phones, row 7",
        "a.x > T, cell 12",
        "a.x > T",
    ]

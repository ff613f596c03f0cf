"""What notebooks show: tables that hold nothing but text, and a bar for each stage."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from bs4 import BeautifulSoup
from test_report import NASTY, full

from ragadapt import notebook
from ragadapt.notebook import html_table, html_text, progress_bars
from ragadapt.values import Chunk, Hit, Hits


def hits(text: str) -> Hits:
    chunk = Chunk("a.md#0", "a.md", text, (text, "Refunds"), source=text)
    return Hits([Hit(chunk, 0.75), Hit(Chunk("b.md#0", "b.md", "plain"), 0.5)])


def test_results_are_a_list_that_shows_as_a_table() -> None:
    found = hits("Money back\nwithin 30 days.")
    assert found == list(found) and pickle.loads(pickle.dumps(found)) == found
    rows = [
        [cell.text for cell in row.find_all("td")]
        for row in BeautifulSoup(found._repr_html_(), "html.parser").select("tbody tr")
    ]
    text = "Money back within 30 days."
    assert rows == [["1", "0.750", f"{text} › {text} › Refunds", text], ["2", "0.500", "b.md", "plain"]]
    assert "Nothing was found" in Hits()._repr_html_()


def test_confidence_and_copies_have_columns_where_there_are_some() -> None:
    first, second = hits("text")
    found = Hits([replace(first, confidence=0.875, copies=(second.chunk,)), second])
    rows = [
        [cell.text for cell in row.find_all(["th", "td"])]
        for row in BeautifulSoup(found._repr_html_(), "html.parser").select("tr")
    ]
    assert rows == [
        ["", "score", "confidence", "where", "copies", "text"],
        ["1", "0.750", "0.88", "text › text › Refunds", "1", "text"],
        ["2", "0.500", "–", "b.md", "0", "plain"],
    ]


@pytest.mark.parametrize("evil", [*NASTY, "half \ud800 pair", "bell \x07 and \x1b[2J"])
def test_whatever_stands_in_documents_is_text(evil: str) -> None:
    report = full(evil)
    assert report.comparison is not None and report.judged is not None
    for shown in (
        hits(evil)._repr_html_(),
        report._repr_html_(),
        report.comparison._repr_html_(),
        report.judged._repr_html_(),
        report.model_copy(update={"swept": None})._repr_html_(),
        report.model_copy(update={"swept": None, "judged": None})._repr_html_(),
    ):
        soup = BeautifulSoup(shown, "html.parser")
        known = {"div", "p", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert {tag.name for tag in soup.find_all()} <= known
        assert all(set(tag.attrs) <= {"style"} for tag in soup.find_all())
        shown.encode("utf-8")
        assert "\x1b" not in shown and "\x07" not in shown


def test_cells_are_cut_and_numbers_set_right() -> None:
    soup = BeautifulSoup(html_table(["a", "b"], [["−0.5", "x" * 500]]), "html.parser")
    first, second = soup.select("tbody td")
    assert first["style"] == "text-align: right"
    assert (second["style"], second.text) == ("text-align: left", "x" * 400 + " …")
    assert html_text("a\n b\t<i>") == "a b &lt;i&gt;"


def test_the_report_in_a_notebook_has_the_figures_of_the_page() -> None:
    report = full().model_copy(update={"swept": None})
    shown = BeautifulSoup(report._repr_html_(), "html.parser").text
    for system in report.systems:
        assert f"{system.metrics['nDCG@10'].value:.3f}" in shown
    assert report.comparison is not None
    told = report.comparison._repr_html_()
    assert f"{report.comparison.wins} better, {report.comparison.losses} worse" in told


class Bar:
    made: ClassVar[list[Bar]] = []

    def __init__(self, total: int | None, desc: str, initial: int, leave: bool) -> None:
        self.total, self.desc, self.n, self.closed = total, desc, initial, False
        Bar.made.append(self)

    def update(self, more: int) -> None:
        self.n += more

    def close(self) -> None:
        self.closed = True


def test_each_stage_has_a_bar_that_closes_when_it_is_done() -> None:
    Bar.made.clear()
    progress = notebook._Bars(Bar)
    for stage, done, total in (
        ("encode", 5, 10),
        ("search", 1, 0),
        ("encode", 10, 10),
        ("search", 2, 0),
        ("encode", 1, 2),
    ):
        progress(stage, done, total)
    seen: list[tuple[Any, ...]] = [(bar.desc, bar.n, bar.total, bar.closed) for bar in Bar.made]
    assert seen == [("Encode", 10, 10, True), ("Search", 2, None, False), ("Encode", 1, 2, False)]


def test_the_bars_are_those_of_tqdm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    progress = progress_bars()
    progress("encode passages", 1, 2)
    progress("encode passages", 2, 2)
    err = capsys.readouterr().err
    assert "Encode passages" in err and "2/2" in err

"""The page of the server, in a real browser."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_chromium import CONTRAST, IN_CHROMIUM, chromium, faultless, until
from playwright.sync_api import Browser, Page
from ragadapt_server.before import Before
from ragadapt_server.tokens import add_token
from running_server import running
from small_retriever import fit_pages
from trained_retriever import fit_trained

from ragadapt.pefa import Feedback
from ragadapt.retriever import Retriever

pytestmark = IN_CHROMIUM

HOSTILE = '<img src=x onerror="document.title=1"> <script>document.title = 2</script> <b>zebra</b> & &lt;i&gt;'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "docs").mkdir()
    (folder / "docs" / "hostile.md").write_text(
        f"# A `<script>document.title = 3</script>` page\n\n```\n{HOSTILE}\n```\n"
    )
    return fit_pages(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "retriever"))


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with running(("pages", folder)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with faultless(browser, address) as page:
        page.goto(address)
        page.wait_for_selector("#strip li")
        yield page


def ids(page: Page, side: str = "left") -> list[str]:
    return [str(card.get_attribute("data-id")) for card in page.locator(f"#{side} article").all()]


def kept(folder: Path) -> list[Feedback]:
    with Retriever.open(folder) as retriever:
        return list(retriever.feedback().ledger.find())


def ask(page: Page, query: str) -> None:
    page.fill("#query", query)
    page.keyboard.press("Enter")
    until(page, "query => location.hash.includes(new URLSearchParams({q: query}).toString())", query)
    until(page, "() => document.querySelector('#told').textContent.includes('passages in')")


def test_search_shows_the_retrievers_hits_with_marked_words(page: Page, folder: Path) -> None:
    ask(page, "old red stone")
    with Retriever.open(folder) as retriever:
        hits = retriever.search("old red stone", 10)
        assert ids(page) == [hit.chunk.id for hit in hits]
    first = page.locator("#left article").first
    assert " > ".join(hits[0].chunk.heading_path) in first.locator("h3").inner_text().replace("›", ">")
    assert hits[0].confidence is not None
    shown = first.locator(".score").inner_text()
    assert re.fullmatch(rf"\d+ % · {hits[0].score:.2f}", shown)
    assert abs(int(shown.split()[0]) - 100 * hits[0].confidence) < 1
    doubted = "Perhaps nothing here answers" in page.inner_text("#told")
    assert doubted == (hits[0].confidence < 0.1)
    assert first.locator(".source").inner_text() == hits[0].chunk.source
    marks = {mark.inner_text().lower() for mark in page.locator(".text mark").all()}
    assert marks and all(mark.startswith(("old", "red", "ston")) for mark in marks)
    assert first.locator("meter").count() == 2
    page.select_option("#k", "5")
    until(page, "() => document.querySelectorAll('#left article').length === 5")


def test_comparison_shows_the_other_search_beside_it(page: Page, folder: Path) -> None:
    ask(page, "old red stone")
    page.select_option("#other", "lexical")
    page.wait_for_selector("#right article")
    with Retriever.open(folder) as retriever:
        expected = [hit.chunk.id for hit in retriever.search("old red stone", 10, mode="lexical")]
    assert ids(page, "right") == expected
    place = expected.index(ids(page)[1]) + 1 if ids(page)[1] in expected else 0
    said = page.locator("#left article").nth(1).inner_text()
    assert ("new here" if not place else "same place" if place == 2 else f"(there {place}.)") in said
    page.select_option("#other", "")
    page.wait_for_selector("#right", state="hidden")


def test_base_stands_beside_the_fitted_search_with_what_moved(browser: Browser, tmp_path: Path) -> None:
    folder = fit_trained(tmp_path)
    with running(("fitted", folder)) as address, faultless(browser, address) as page:
        page.goto(address)
        page.wait_for_selector("#strip li")
        page.select_option("#other", "base")
        ask(page, "cheap flight to the city")
        page.wait_for_selector("#right article")
        with Retriever.open(folder) as retriever:
            expected = [
                hit.chunk.id for hit in Before(retriever, "auto", "auto").search("cheap flight to the city", 10).hits
            ]
        left, right = ids(page), ids(page, "right")
        assert right == expected != left
        for side, other, words in ((left, right, "(there {}.)"), (right, left, "now {}.")):
            at = next(at for at, id in enumerate(side) if id in other and other.index(id) != at)
            card = page.locator("#left article" if side is left else "#right article").nth(at)
            assert words.format(other.index(side[at]) + 1) in card.inner_text()
        lost = [at for at, id in enumerate(right) if id not in left]
        for at in lost:
            assert "not there any more" in page.locator("#right article").nth(at).inner_text()
        assert f"{len(lost)} of the other side are not among them" in page.locator("#told").inner_text()
        assert "The base model in the same mix" in page.locator("#note").inner_text()
        page.select_option("#other", "lexical")
        until(page, "() => document.querySelector('#note').textContent === ''")


def test_where_nothing_was_trained_the_page_says_so(page: Page) -> None:
    assert page.locator("#other [value=base]").is_disabled()
    assert "Nothing was trained here" in page.locator("#note").inner_text()


def test_a_thumb_changes_the_next_search_and_undo_restores_it(page: Page, folder: Path) -> None:
    ask(page, "old red stone")
    before = ids(page)
    last = before[-1]
    card = page.locator(f'#left article[data-id="{last}"]')
    card.get_by_role("button", name="This passage answers the question").click()
    until(page, "() => document.querySelector('#strip').textContent.includes('feedback 1')")
    after = ids(page)
    assert after != before and after.index(last) < before.index(last)
    (one,) = kept(folder)
    assert (one.query, one.chunk_id, one.weight) == ("old red stone", last, 1.0)
    card.get_by_role("button", name="This passage does not answer").click()
    until(page, "() => document.querySelector('#told').textContent.includes('passages in')")
    end = time.monotonic() + 20
    while [one for one in kept(folder) if one.weight > 0]:
        assert time.monotonic() < end
    assert [one.weight for one in kept(folder)] in ([], [-1.0])  # between the two calls there is none
    until(page, "() => document.querySelector('#strip').textContent.includes('feedback 1')")
    assert [one.weight for one in kept(folder)] == [-1.0]
    if card.count():
        card.get_by_role("button", name="Take back").click()
    else:  # it is not among the best any more
        page.evaluate("id => undo('old red stone', id)", last)
    until(page, "() => document.querySelector('#strip').textContent.includes('feedback 0')")
    assert ids(page) == before


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("old red stone")
    page.keyboard.press("Enter")
    page.wait_for_selector("#left article")
    before = ids(page)
    page.keyboard.press("Tab")  # away from the question, where keys are letters
    for _ in before:
        page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.id") == before[-1]
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.dataset.id") == before[-2]
    page.keyboard.press("Enter")
    assert page.locator("article.open").count() == 1
    page.keyboard.press("+")
    until(page, "() => document.querySelector('#strip').textContent.includes('feedback 1')")
    assert page.evaluate("document.activeElement.dataset.id") == before[-2]  # the focus went along
    assert ids(page).index(before[-2]) < len(before) - 2
    page.keyboard.press("z")
    until(page, "() => document.querySelector('#strip').textContent.includes('feedback 0')")
    assert ids(page) == before
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("the river")  # it was selected: what is typed takes its place
    page.keyboard.press("Enter")
    until(page, "() => location.hash === '#q=the+river'")


def test_hostile_documents_and_questions_stay_text(page: Page) -> None:
    title = page.title()
    for query in ("zebra script onerror", '"><img src=x onerror="document.title=4">', "(.*[", "\\"):
        ask(page, query)
    ask(page, "zebra script onerror document title")
    page.select_option("#k", "50")
    until(page, "() => document.querySelectorAll('#left article').length > 10")
    cards = page.locator('#left article[data-id^="hostile.md"]')
    said = " ".join(cards.locator(".text").all_inner_texts())
    for piece in ("<img src=x", "<script>", "document.title = 2", "</script>", "<b>zebra</b>", "&lt;i&gt;"):
        assert piece in said
    assert page.locator("article img, article script, article b, article i").count() == 0
    assert page.title() == title


def test_the_page_fits_a_phone_in_light_and_dark(browser: Browser, address: str) -> None:
    colours = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 740})  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(f"{address}/#q=old+red+stone")  # a question can be linked to
        page.wait_for_selector("#left article")
        page.select_option("#other", "dense")
        page.wait_for_selector("#right article")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        low = page.evaluate(CONTRAST)
        assert low == [], (scheme, low)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert colours[0] != colours[1]


def test_a_token_is_asked_for_and_forgotten_with_the_tab(browser: Browser, folder: Path, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens")
    with running(("pages", folder), token_file=str(tmp_path / "tokens")) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#ask[open]")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask[open]")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#strip li")
        ask(page, "old red stone")
        assert len(ids(page)) == 10
        stored: Any = page.evaluate("[localStorage.length, document.cookie]")
        assert stored == [0, ""]
        page.close()

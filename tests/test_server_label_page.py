"""The page to label questions, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_chromium import CONTRAST, IN_CHROMIUM, chromium, faultless, until
from playwright.sync_api import Browser, Page
from ragadapt_server.tokens import add_token
from running_server import running
from small_retriever import fit_pages

pytestmark = IN_CHROMIUM

HOSTILE = '<img src=x onerror="document.title=1"> <script>document.title = 2</script> <b>zebra</b> & &lt;i&gt;'
ASKED = ["old red stone", '"><img src=x onerror="document.title=4"> river', "cheap flight"]


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
def file(tmp_path: Path) -> Path:
    return tmp_path / "questions.jsonl"


@pytest.fixture
def address(made: Path, file: Path, tmp_path: Path) -> Iterator[str]:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"text": text}) + "\n" for text in ASKED))
    with running(("pages", made), labels=(("pages", str(file)),), questions=(str(log),)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with faultless(browser, address) as page:
        page.goto(f"{address}/label")
        page.wait_for_selector("article")
        yield page


def lines(file: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["text"]: row for row in rows}


def focused(page: Page) -> str | None:
    found: str | None = page.evaluate("document.activeElement.dataset.id ?? null")
    return found


def shows(page: Page, question: str) -> None:
    until(page, "text => document.querySelector('#question').textContent === text", question)
    until(page, "async () => { await state.busy; return true; }")


def pressed(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
    until(page, "async () => { await state.busy; return true; }")


def test_one_key_labels_and_undo_takes_it_back_over_questions(page: Page, file: Path) -> None:
    ids = [str(one.get_attribute("data-id")) for one in page.locator("article").all()]
    assert page.locator("#count").inner_text() == "0/16"
    assert focused(page) == ids[0]
    pressed(page, "y", "n")
    assert focused(page) == ids[2]
    row = lines(file)["old red stone"]
    assert (len(row["evidence"]), len(row["irrelevant"]), row["from"]) == (1, 1, "asked")
    assert page.locator("article.yes").count() == page.locator("article.no").count() == 1
    assert "1 of 16 labelled questions: 15 more" in page.locator("#goal").inner_text()
    pressed(page, "Enter")
    shows(page, ASKED[1])
    pressed(page, "s")
    shows(page, ASKED[2])
    assert lines(file)[ASKED[1]]["skipped"] is True
    pressed(page, "u")
    shows(page, ASKED[1])
    assert ASKED[1] not in lines(file)
    pressed(page, "u")
    shows(page, "old red stone")
    assert focused(page) == ids[1] and "irrelevant" not in lines(file)["old red stone"]
    pressed(page, "u")
    assert lines(file) == {}
    pressed(page, "u")
    assert "nothing to undo" in page.locator("#told").inner_text()


def test_keys_in_quick_succession_judge_one_passage_each(page: Page, file: Path) -> None:
    count = page.locator("article").count()
    pressed(page, *"yn" * (count // 2), *"y" * (count % 2))
    row = lines(file)["old red stone"]
    assert len(row["evidence"]) + len(row["irrelevant"]) >= count  # copies count besides
    assert page.locator("article.yes, article.no").count() == count
    assert "All of these are judged" in page.locator("#told").inner_text()


def test_two_windows_lose_nothing_and_a_reload_goes_on(page: Page, browser: Browser, address: str, file: Path) -> None:
    other = browser.new_page()
    other.goto(f"{address}/label")
    other.wait_for_selector("article")
    shows(other, ASKED[1])  # not the one that the first window has
    pressed(page, "y")
    pressed(other, "y")
    pressed(page, "y")
    assert [len(lines(file)[text]["evidence"]) for text in ASKED[:2]] == [2, 1]
    page.reload()
    page.wait_for_selector("article")
    shows(page, ASKED[0])
    assert page.locator("article.yes").count() == 2
    pressed(page, "Enter")
    shows(page, ASKED[2])
    other.close()


def test_a_passage_gets_a_question_by_keyboard_alone(page: Page, file: Path) -> None:
    pressed(page, "p")
    assert page.evaluate("document.activeElement.id") == "typed"
    shown = page.locator("article .text").inner_text()
    assert page.locator("#yes").is_disabled()
    page.keyboard.type("who keeps the bakery?")
    pressed(page, "Enter")
    shows(page, "who keeps the bakery?")
    (quote,) = lines(file)["who keeps the bakery?"]["evidence"]
    assert " ".join(quote["quote"].split()) == " ".join(shown.split())
    assert page.locator("article").first.get_attribute("class") == "yes"
    assert focused(page) == page.locator("article").nth(1).get_attribute("data-id")
    pressed(page, "/")
    page.keyboard.type("the small river")
    pressed(page, "Enter")
    shows(page, "the small river")
    assert "the small river" not in lines(file)  # asked, and nothing was said yet
    pressed(page, "j", "j", "k", "y")
    second = page.locator("article").nth(1)
    assert second.get_attribute("class") == "yes"
    assert lines(file)["the small river"]["from"] == "typed"


def test_hostile_questions_and_documents_stay_text(page: Page) -> None:
    title = page.title()
    pressed(page, "Enter")
    shows(page, ASKED[1])
    pressed(page, "/")
    page.keyboard.type("zebra script onerror document title")
    pressed(page, "Enter")
    said = " ".join(page.locator('article[data-id^="hostile.md"] .text').all_inner_texts())
    for piece in ("<img src=x", "<script>", "</script>", "<b>zebra</b>", "&lt;i&gt;"):
        assert piece in said
    assert page.locator("main img, main script, article b, article i").count() == 0
    assert page.title() == title


def test_the_page_fits_a_phone_in_light_and_dark(browser: Browser, address: str) -> None:
    colours = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 740})  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(f"{address}/label#q=old+red+stone&from=asked")
        page.wait_for_selector("article")
        page.locator("#yes").click()
        until(page, "() => document.querySelectorAll('article.yes').length === 1")
        page.locator("#no").click()
        until(page, "() => document.querySelectorAll('article.no').length === 1")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        # The passage that is next can be read: neither the question above nor the bar below hides its beginning.
        top, above, below = page.evaluate(
            "[document.activeElement.getBoundingClientRect().top,"
            " document.querySelector('.asked').getBoundingClientRect().bottom,"
            " document.querySelector('.bar').getBoundingClientRect().top]"
        )
        assert above - 1 <= top < below - 80
        low = page.evaluate(CONTRAST)
        assert low == [], (scheme, low)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for _ in range(2):
            page.locator("#undo").click()
        until(page, "() => document.querySelectorAll('article.yes, article.no').length === 0")
        context.close()
    assert colours[0] != colours[1]


def test_where_nobody_labels_the_page_says_how(browser: Browser, made: Path, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens")
    with running(("pages", made), token_file=str(tmp_path / "tokens")) as address:
        page = browser.new_page()
        page.goto(f"{address}/label")
        page.wait_for_selector("#ask[open]")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        until(page, "() => document.querySelector('#told').textContent.includes('ragadapt label')")
        page.close()

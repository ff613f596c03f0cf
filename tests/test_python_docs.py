"""The demo's corpus is the same for everyone with the same Python, and its questions are fair and answerable."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "python_docs"
STOPWORDS = """
a an the of to in on at for from by with without and or not no is are was be been it its this that these
those my i me you your we he she do does did how what which where when why who can could should would
will as if than then there their them into out over up down so just all any each every some nor only own
same one two more most other such like get make use want need have has had am after before between while
about once again here
"""


def run_builder(python: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [python, str(EXAMPLE / "build_corpus.py"), str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, encoding="utf-8", timeout=120
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "docs"
    result = run_builder(sys.executable, folder, RAGADAPT_CANARY="canary-value-7391")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder


def questions() -> list[dict[str, object]]:
    lines = (EXAMPLE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def evidence() -> list[tuple[str, str, str]]:
    """(question, source, quote), one per quote."""
    return [(q["text"], e["source"], e["quote"]) for q in questions() for e in q["evidence"]]  # type: ignore[attr-defined,misc]


def normalise(text: str) -> str:
    return " ".join(text.split())


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:]))


def unanswered(folder: Path) -> list[tuple[str, str]]:
    """Quotes that stand in no document of the name they give: neither literally nor by half of their trigrams."""

    @cache
    def document(source: str) -> tuple[str, set[tuple[str, ...]]]:
        text = (folder / source).read_text(encoding="utf-8")
        return normalise(text), trigrams(text)

    missing = []
    for _, source, quote in evidence():
        text, grams = document(source)
        wanted = trigrams(quote)
        if normalise(quote) not in text and len(wanted & grams) < max(1, len(wanted) / 2):
            missing.append((source, quote))
    return missing


def content_words(text: str) -> set[str]:
    words = (
        word for word in re.findall(r"[a-z0-9_]+", text.lower()) if word not in STOPWORDS.split() and len(word) > 1
    )
    return {re.sub(r"(?<=...)(ing|ies|es|ed|s)$", "", word) for word in words}


def test_the_corpus_covers_the_modules_that_people_use(corpus: Path) -> None:
    names = {file.stem for file in corpus.iterdir()}
    assert 200 <= len(names) <= 270
    assert {"json", "os.path", "collections.abc", "asyncio", "logging.handlers", "builtins", "urllib.parse"} <= names
    unwanted = {"this", "antigravity", "tkinter", "idlelib", "test", "asyncio.tasks", "posixpath", "__future__"}
    assert not names & unwanted
    assert not any(part.startswith("_") for name in names for part in name.split("."))


def test_a_page_has_the_module_its_members_and_their_signatures(corpus: Path) -> None:
    text = (corpus / "bisect.md").read_text(encoding="utf-8")
    assert text.startswith("# bisect\n\nBisection algorithms.\n\n## bisect.bisect\n\n```python\nbisect.bisect(a, x")
    decimal = (corpus / "decimal.md").read_text(encoding="utf-8")
    assert "\n## decimal.Decimal\n" in decimal
    assert "\n### decimal.Decimal.quantize\n" in decimal
    assert "### ipaddress.IPv4Network.subnets\n" in (corpus / "ipaddress.md").read_text(encoding="utf-8")


def test_every_heading_is_a_name_and_stands_once(corpus: Path) -> None:
    for file in corpus.iterdir():
        outside = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
        headings = re.findall(r"^#+ .*", outside, re.M)
        assert headings[0] == f"# {file.stem}"
        assert len(set(headings)) == len(headings), file.name
        for heading in headings[1:]:
            assert re.fullmatch(rf"##+ {re.escape(file.stem)}\.\w+(\.\w+)*", heading), heading


def test_nothing_of_the_machine_is_written(corpus: Path) -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in corpus.iterdir())
    assert "canary-value-7391" not in text
    assert not re.search(r"0x[0-9a-f]{8,}|environ\(\{", text)
    for place in (sys.prefix, sys.base_prefix, str(Path.home())):
        if place not in ("/", "/usr"):
            assert place not in text


def test_the_same_python_writes_the_same_files(corpus: Path, tmp_path: Path) -> None:
    assert run_builder(sys.executable, tmp_path / "again", PYTHONHASHSEED="7").returncode == 0
    first = {file.name: file.read_bytes() for file in corpus.iterdir()}
    second = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert first == second


def test_there_are_many_questions_over_many_modules() -> None:
    ids = [question["_id"] for question in questions()]
    texts = [question["text"] for question in questions()]
    assert len(ids) == len(set(ids)) == len(set(texts)) >= 80
    assert len({source for _, source, _ in evidence()}) >= 60
    assert all(question["evidence"] for question in questions())


def test_every_question_is_answered_by_a_document(corpus: Path) -> None:
    assert unanswered(corpus) == []


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_question_is_answered_in_every_python(version: str, tmp_path: Path) -> None:
    python = shutil.which(f"python{version}")
    if python is None or run_builder(python, tmp_path).returncode != 0:
        pytest.skip(f"no python{version} here")
    assert unanswered(tmp_path) == []


def test_a_quote_that_nobody_wrote_is_noticed(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quote = "Sorts any list of numbers by asking a friendly oracle twice."
    monkeypatch.setattr(sys.modules[__name__], "evidence", lambda: [("?", "bisect.md", quote)])
    assert unanswered(corpus) == [("bisect.md", quote)]


def test_questions_do_not_copy_the_words_of_their_evidence() -> None:
    shares = []
    for question in questions():
        quotes = " ".join(e["quote"] for e in question["evidence"])  # type: ignore[attr-defined]
        asked = content_words(str(question["text"]))
        share = len(asked & content_words(quotes)) / len(asked)
        assert share <= 0.5, question["text"]
        shares.append(share)
    mean = sum(shares) / len(shares)
    print(f"mean share of a question's content words that stand in its evidence: {mean:.3f}")
    assert mean < 0.1


def test_the_readme_says_how_many_questions_there_are() -> None:
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert f"{len(questions())} questions" in readme
    shown = re.search(r'"evidence": \[(\{.*?\})\]', readme)
    assert shown is not None
    example = ast.literal_eval(shown[1])
    assert (example["source"], example["quote"]) in {(source, quote) for _, source, quote in evidence()}

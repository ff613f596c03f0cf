"""Nothing that a document, a name or a file holds reaches the terminal as a control character."""

from __future__ import annotations

import ast
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragadapt_cli.main import COMMANDS, run
from ragadapt_cli.terminal import Terminal
from tiny_models import sentences, write_tiny_model

from ragadapt.config import FitConfig
from ragadapt.evaluation import read_run, write_run
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.report import model_card
from ragadapt.report import Measure, MeasuredSystem, Report, VerdictFacts, table
from ragadapt.report.page import page
from ragadapt.retriever import Retriever
from ragadapt.text import encodable, is_encodable, printable, printable_json

ROOT = Path(__file__).resolve().parents[1]

# Title change, screen clear, a forged line, CSI in one character, DEL, right-to-left override, isolate, line separator.
EVIL = "\x1b]0;owned\x07\x1b[2J\r\n  1  9.999  forged\x9b31m\x7f\x85\u202egnp.exe\u2066\u2028[bold]x[/bold]"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
OWN_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


# The functions


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 漢字, עברית, 😀, no\u00a0break", "plain, naïve, 漢字, עברית, 😀, no\u00a0break"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x7f\x85\x9b", r"\x7f\x85\x9b"),
        ("\u202e\u2066\u2069\u2028\u2029", r"\u202e\u2066\u2069\u2028\u2029"),
        ("caf\udce9", r"caf\udce9"),
        ("\u200e\u200f\u200d", "\u200e\u200f\u200d"),
    ],
)
def test_control_characters_stand_as_escapes_and_all_else_as_it_is(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@given(st.text(st.characters(categories=None)))
def test_json_means_the_same_without_control_characters(text: str) -> None:
    shown = printable_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(shown) == {text: [text]}
    assert not OBEYED.search(shown) and "\n" not in shown
    assert not OBEYED.search(printable(text)) and "\n" not in printable(text)


@given(st.text(st.characters(categories=None)))
def test_encodable_text_is_left_alone_and_other_text_can_be_written(text: str) -> None:
    clean = encodable(text)
    assert is_encodable(clean)
    clean.encode("utf-8")
    if is_encodable(text):
        assert clean == text


# One place prints


def test_no_command_prints_by_itself() -> None:
    found = []
    for path in sorted((ROOT / "cli" / "ragadapt_cli").rglob("*.py")):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"):
                    found.append(f"{path.name}:{node.lineno} {called}")
    assert found == []


# Every command, on a corpus that is hostile wherever it can be


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    docs = folder / "docs"
    docs.mkdir()
    name = EVIL.replace("/", "").replace("\x00", "")
    lines = iter(sentences(60, words=12, seed=5))
    for number in range(6):
        front = f"---\ntitle: {json.dumps(f'Title {number} {EVIL}')}\nkey: {json.dumps(EVIL)}\n---\n"
        body = "".join(f"## Part {EVIL[:4]}{part}\x9b\u202e\n\n{next(lines)} {EVIL}\n\n" for part in range(2))
        (docs / f"page{number}{name}.md").write_text(f"{front}\n{body}", encoding="utf-8")
    rows = [{"_id": f"row{n}{EVIL}", "text": f"{next(lines)} {EVIL}", EVIL: EVIL} for n in range(6)]
    (docs / f"rows{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (docs / f"broken{name}.pdf").write_bytes(b"%PDF-1.4 nothing")
    (docs / f"empty{name}.md").write_text("")
    questions = [
        {"_id": f"q{EVIL}", "text": f"{next(lines)} {EVIL}", "evidence": [{"source": EVIL, "quote": f"gone {EVIL}"}]},
        {"_id": "q2", "text": f"asked {EVIL}", "evidence": [{"source": f"row1{EVIL}", "quote": rows[1]["text"]}]},
    ]
    text = "".join(json.dumps(row) + "\n" for row in questions) + f"not json {EVIL}\n"
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def retriever(corpus: Path) -> Path:
    model = write_tiny_model(corpus / "base")
    config = FitConfig.build(
        {
            "encoder": {"model": str(model), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"method": "none"},
        }
    )
    path = fit([corpus / "docs"], corpus / "retriever", config).path
    with Retriever.open(path) as opened:
        (hit,) = opened.search("row", k=1)
        opened.add_feedback(f"asked {EVIL}".replace("\x00", ""), hit.chunk.id, user=EVIL, tenant=EVIL, key=f"k{EVIL}")
    feedback = [
        {"query": f"a {EVIL}", "chunk_id": f"none {EVIL}"},
        {"query": f"b {EVIL}", EVIL: 1},
        {"query": "c", "chunk_id": hit.chunk.id, "weight": EVIL},
        {"query": f"d {EVIL}", "chunk_id": hit.chunk.id},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in feedback) + f"nonsense {EVIL}\n"
    (corpus / "feedback.jsonl").write_text(lines, encoding="utf-8")
    return path


CALLS = {
    "fit": [
        ["fit", "{docs}", "-o", "{tmp}/new", "--config", "{toml}", "-vv"],
        ["fit", "{docs}", "-o", "{tmp}/newer", "--config", "{toml}", "--queries", "{questions}", "--json", "-v"],
        ["fit", "{docs}", "-o", "{tmp}/newest", "--config", "{toml}", "--queries", "{questions}", "--dry-run"],
        ["fit", "{docs}", "-o", "{tmp}/no", "--set", "encoder.model={evil}"],
        ["fit", "{docs}", "-o", "{tmp}/no", "--set", "{evil}"],
    ],
    "search": [
        ["search", "{retriever}", "row {evil}", "-k", "20"],
        ["search", "{retriever}", "row {evil}", "-k", "20", "--json"],
        ["search", "{retriever}", "row {evil}", "-k", "20", "--expand", "document", "--fold", "near"],
        ["search", "{retriever}", "--queries", "{questions}"],
        ["search", "{retriever}", "--queries", "{questions}", "--json"],
        ["search", "{retriever}", "--queries", "{questions}", "--run", "{tmp}/run{name}.trec"],
        ["search", "{retriever}", "row", "--filter", "{evil}"],
        ["search", "{retriever}", "row", "--filter", '{{"a": {{"${evil_json}": 1}}}}'],
        ["search", "{tmp}/{name}", "row"],
        ["search", "{tmp}/{name}", "row", "--json"],
        ["search", "{retriever}", "row", "--device", "{evil}", "-v"],
    ],
    "eval": [
        ["eval", "{retriever}", "--evidence", "{questions}"],
        ["eval", "{retriever}", "--evidence", "{questions}", "--json"],
        ["eval", "{retriever}", "--evidence", "{tmp}/{name}"],
        ["eval", "{retriever}", "--evidence", "{questions}", "--per-question", "-o", "{tmp}/judged{name}"],
        ["eval", "{retriever}", "--evidence", "{questions}", "--against", "{copy}", "--json"],
    ],
    "refresh": [
        ["refresh", "{copy}", "--feedback", "{feedback}"],
        ["refresh", "{copy}", "--feedback", "{feedback}", "--json"],
        ["refresh", "{copy}", "--docs", "{docs}"],
        ["refresh", "{copy}", "--docs", "{docs}", "--json"],
        ["refresh", "{copy}", "--tune", "-v"],
    ],
    "feedback": [
        ["feedback", "list", "{retriever}"],
        ["feedback", "list", "{retriever}", "--json"],
        ["feedback", "export", "{retriever}"],
        ["feedback", "export", "{retriever}", "--as", "feedback"],
        ["feedback", "undo", "{copy}", "--user", "{evil}"],
    ],
    "index": [
        ["index", "{retriever}"],
        ["index", "{retriever}", "--json"],
        ["index", "{retriever}", "--kind", "{evil}"],
    ],
    "export": [["export", "{retriever}", "{tmp}/export{name}"], ["export", "{tmp}/{name}", "{tmp}/export"]],
    "encode": [
        ["encode", "{rows}", "-o", "{tmp}/vectors{name}", "--retriever", "{retriever}"],
        ["encode", "{questions}", "-o", "{tmp}/vectors", "--retriever", "{retriever}"],
    ],
    "report": [["report", "{retriever}"], ["report", "{retriever}", "--json"], ["report", "{tmp}/{name}"]],
    "doctor": [
        ["doctor", "{docs}", "--config", "{toml}", "--queries", "{questions}"],
        ["doctor", "{docs}", "--config", "{toml}", "--json"],
        ["doctor", "{retriever}"],
        ["doctor", "{retriever}", "--json"],
        ["doctor", "{tmp}/{name}"],
    ],
    "compare": [
        ["compare", "{docs}", "-o", "{tmp}/{name}", "--methods", "{evil}", "--queries", "{questions}"],
        ["compare", "{docs}", "-o", "{tmp}/compared", "--methods", "lora,full", "--budget-params", "{evil}"],
        ["compare", "{docs}", "-o", "{tmp}/compared", "{evil}"],
    ],
    "sweep": [
        [
            "sweep",
            "{docs}",
            "-o",
            "{tmp}/swept{name}",
            "--queries",
            "{questions}",
            "--models",
            "{model},{evil}",
            "--chunk-tokens",
            "16,40",
            "--tokens",
            "60",
        ],
        ["sweep", "{docs}", "-o", "{tmp}/other", "--queries", "{questions}", "--chunk-tokens", "{evil}"],
    ],
    "label": [
        ["label", "{tmp}/{name}", "--no-browser"],
        ["label", "{retriever}", "--no-browser", "--queries", "{tmp}/{name}"],
    ],
    "serve": [["serve", "{tmp}/{name}"], ["serve", "{retriever}", "--url-template", "{{{evil}}}"]],
    "mcp": [["mcp", "{tmp}/{name}"]],
    "token": [["token", "{tmp}/tokens{name}", "--json"], ["token", "{tmp}/tokens", "--tenant", "{evil}"]],
    "library": [
        ["library", "list", "{tmp}/{name}"],
        ["library", "add", "{tmp}/library", "{retriever}", "--name", "{evil}"],
        ["library", "show", "{tmp}/library", "{evil}"],
    ],
    "prime": [
        ["prime", "{docs}", "-o", "{tmp}/{name}", "--config", "{toml}"],
        ["prime", "{docs}", "-o", "{tmp}/primed", "--set", "adapter.method=full", "--licence", "{evil}=x"],
        ["prime", "{docs}", "-o", "{tmp}/primed", "--licence", "{evil}"],
    ],
    "methods": [["methods"], ["methods", "--json"], ["methods", "{evil}"]],
    "completion": [["completion", "bash"], ["completion", "{evil}"]],
}


def test_the_calls_below_are_of_every_command() -> None:
    assert set(CALLS) == set(COMMANDS)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    logging.captureWarnings(False)


@pytest.mark.parametrize(("command", "colours"), [*((command, "") for command in CALLS), ("search", "1")])
def test_no_command_prints_a_control_character(
    command: str,
    colours: str,
    corpus: Path,
    retriever: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", colours)
    shutil.copytree(retriever, tmp_path / "copy")
    model = json.dumps(str(next((corpus / "base").rglob("modules.json")).parent))
    (tmp_path / "fit.toml").write_text(
        f'[encoder]\nmodel = {model}\n[chunk]\nmax_tokens = 40\nmin_tokens = 4\n[adapter]\nmethod = "none"\n'
    )
    places = {
        "docs": corpus / "docs",
        "rows": next((corpus / "docs").glob("rows*.jsonl")),
        "questions": corpus / "questions.jsonl",
        "model": json.loads(model),
        "feedback": corpus / "feedback.jsonl",
        "retriever": retriever,
        "copy": tmp_path / "copy",
        "toml": tmp_path / "fit.toml",
        "tmp": tmp_path,
        "evil": EVIL,
        "name": EVIL.replace("/", ""),
        "evil_json": json.dumps(EVIL)[1:-1],
    }
    for call in CALLS[command]:
        run([part.format(**places) for part in call])
        captured = capsys.readouterr()
        assert captured.out or captured.err, call
        assert "This is a fault in ragadapt" not in captured.err, (call, captured.err[-3000:])
        for stream in (captured.out, captured.err):
            plain = OWN_COLOURS.sub("", stream) if colours else stream
            found = OBEYED.search(plain)
            assert found is None, (call, plain[max(0, found.start() - 80) : found.start() + 40] if found else "")
            assert not re.search(r"^ {2}1 {2}9\.999", plain, re.MULTILINE), (call, "a forged line")


def test_a_log_line_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.set()
    try:
        logging.getLogger("ragadapt.test").warning("%s was skipped", "a\nWarning: all is well\x1b[2J")
    finally:
        terminal.close()
    assert capsys.readouterr().err == "Warning: a\n  Warning: all is well\\x1b[2J was skipped\n"


# Runs and reports


@given(st.text(st.characters(categories=None, exclude_characters="\0␠␣"), min_size=1))
def test_a_run_holds_any_id_and_is_read_back(tmp_path_factory: pytest.TempPathFactory, id: str) -> None:
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    write_run(path, {id: {id: 1.0, "other": 0.5}})
    text = path.read_text(encoding="utf-8")
    assert [len(line.split(" ")) for line in text.splitlines()] == [6, 6]
    assert not OBEYED.search(text)
    assert read_run(path) == {id: {id: 1.0, "other": 0.5}}


def hostile_report() -> Report:
    return Report(
        title=f"<script>alert(1)</script>{EVIL}",
        created="2026-01-01T00:00:00+00:00",
        base_model="evil](javascript:x) <img src=x onerror=y>|\n# heading",
        verdict=VerdictFacts(outcome="NO GAIN", reasons=(f"<b>{EVIL}",), shipped="<i>x", sentence=f"<u>{EVIL}"),
        systems=(MeasuredSystem(name="a", label=f"<a>{EVIL}", metrics={"nDCG@10": Measure(value=0.5)}, shipped=True),),
        warnings=(f"[click](http://evil) <script> {EVIL}",),
    )


def test_the_table_has_no_control_characters() -> None:
    shown = table(hostile_report())
    assert not OBEYED.search(shown)
    assert not re.search(r"^ {2}1 {2}9\.999", shown, re.MULTILINE)


def test_the_model_card_takes_nothing_from_names_but_text() -> None:
    card = model_card(hostile_report())
    assert not OBEYED.search(card)
    assert not re.search(r"(?<!\\)<(?!\\)|(?<!\\)\[|^# heading", card, re.MULTILINE)
    assert "\\<img src=x" in card and "evil\\](javascript:x)" in card


def test_the_page_escapes_what_names_hold() -> None:
    html = page(hostile_report())
    for marked in ("<script>alert", "<img src=x", "<i>x", "<u>\x1b", "<a>\x1b"):
        assert marked not in html

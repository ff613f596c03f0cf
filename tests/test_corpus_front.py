"""Front matter is a mapping with nothing else in its block; everything else that begins with a rule is text."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragadapt.corpus import read_documents
from ragadapt.corpus.content import json_value
from ragadapt.corpus.front import front_matter
from ragadapt.corpus.markdown import read_markdown
from ragadapt.corpus.structure import markdown_sections
from ragadapt.queries.text import blocks
from ragadapt.store.chunks import ChunkStore
from ragadapt.values import Document


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nProse.\n\nNote: wear gloves.\n\n---\n\nTail\n",
        "---\n\nNote: wear gloves.\n\n---\n\nTail\n",
        "---\n# Setup\n\nNote: wear gloves.\n---\nTail\n",
        "---\nNote: wear gloves.\nAnd a hat.\n---\nTail\n",
        "---\nProse alone.\n---\nTail\n",
        "---\n- one\n- two\n---\nTail\n",
        "---\nHere is what you must always do: wear gloves.\n---\nTail\n",
        "---\n*Note*: wear gloves: always.\n---\nTail\n",
        "---\nSee http://example.org/a: it is: fine\n---\nTail\n",
        "---\ntitle: x\n\nAnd prose: with colons: here.\nMore of it.\n---\nTail\n",
        "+++\nprose\n+++\nTail\n",
        "+++\na = 1\nprose\n+++\nTail\n",
        "---\n# Heading alone\n---\nTail\n",
        "---\ntitle: never closed\n",
    ],
)
def test_text_under_a_rule_stays_text_for_reader_sections_and_queries(text: str) -> None:
    content = read_markdown(text)
    assert (content.text, content.metadata) == (text, {})
    assert front_matter(text) is None
    first = blocks(text)[0]  # the rule itself belongs to no block
    assert first.start < text.index("Tail") if "Tail" in text else first.start < len(text)


def test_headings_between_rules_are_headings() -> None:
    text = "---\n\nProse.\n\n# Setup\n\nNote: wear gloves.\n\n---\n\nTail\n"
    assert [section.heading for section in markdown_sections(text)] == ["", "Setup"]


@pytest.mark.parametrize(
    ("block", "title", "metadata"),
    [
        ("title: T\nsummary: |\n  Two lines\n  of text.\n", "T", {"summary": "Two lines\nof text.\n"}),
        ("title: T\nsummary: >\n  Two lines\n  of text.\n", "T", {"summary": "Two lines of text.\n"}),
        ("title: A: b\nsummary: |\n  Two lines\n  of: text.\n", "A: b", {"summary": "Two lines\nof: text."}),
        ("title: A: b\ntags:\n- one\n- two\n", "A: b", {"tags": "- one\n- two"}),
        ("title: A: b\nfacts:\n  - x: 1\n    y: 2\n", "A: b", {"facts": "- x: 1\n  y: 2"}),
        ("a:\n  b:\n    c: [1, {d: 2}]\n", "", {"a": {"b": {"c": [1, {"d": 2}]}}}),
        ("title: no\n", "no", {}),
        ("title: 007\n", "007", {}),
        ("title: [a, b]\n", "", {"title": ["a", "b"]}),
        ("# Feel free to add content\n\nlayout: home\n", "", {"layout": "home"}),
        ("date: 2024-05-06 07:08:09\n", "", {"date": "2024-05-06T07:08:09"}),
        ("Note: wear gloves.\n", "", {"Note": "wear gloves."}),
        ("a: 1\na: 2\n", "", {"a": "1\n2"}),
        ("tags: [\n  a, b\n]\n", "", {"tags": ["a", "b"]}),
    ],
)
def test_a_mapping_is_front_matter_with_all_its_values(block: str, title: str, metadata: object) -> None:
    content = read_markdown(f"---\n{block}---\nText.\n")
    assert (content.text, content.title, content.metadata) == ("Text.\n", title, metadata)


HOSTILE = {
    "alias": "a: &a [*a]",
    "aliases of scalars": "a: &x one\nb: *x",
    "merge": "a: &x {b: 1}\nc:\n  <<: *x",
    "int": '!!int ""',
    "float": 'k: !!float ""',
    "bool": "k: !!bool x",
    "timestamp": "k: !!timestamp x",
    "binary": "k: !!binary x",
    "object": "k: !!python/object/apply:os.system [ls]",
    "own tag": "k: !secret x",
    "hexadecimal": "a: 0x" + "F" * 5000,
    "sexagesimal": "a: 1" + ":1" * 4000,
    "surrogate title": 'title: "\\uD800"',
    "surrogate key": '"\\uD800": x',
    "surrogate pair": 'k: "\\uD83D\\uDE00"',
    "flow": "a: " + "[" * 5000,
    "flow of maps": "a: " + "{b: " * 3000,
    "deep lists": "- " * 3000 + "x",
    "deep map": "\n".join(" " * n + "a:" for n in range(400)),
    "null key": "~: x",
    "list key": "? [a, b]\n: c",
    "date key": "2024-01-01: x",
    "infinity": "a: .inf\nb: .nan",
    "set": "a: !!set {x, y}",
    "controls": "a: \ufffeb\x7f",
    "quote": "a: 'never closed",
    "omap": "a: !!omap [x: 1]",
    "pairs": "a: !!pairs [x: 1]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_neither_stops_the_reading_nor_loses_text(name: str, tmp_path: Path) -> None:
    text = f"---\n{HOSTILE[name]}\n---\nText that stays.\n"
    (tmp_path / "a.md").write_text(text, "utf-8")
    (document,) = read_documents([tmp_path]).documents
    assert document.text in (text, "Text that stays.\n")
    json.dumps(dict(document.metadata), allow_nan=False).encode()
    with ChunkStore.create(tmp_path / "c.sqlite") as store:
        store.add([document], [])


def test_toml_keys_of_thousands_of_parts_stay_text(tmp_path: Path) -> None:
    for key in (".".join("a" * 3000), ".".join("a" * 300)):
        text = f"+++\n{key} = 1\n+++\nText.\n"
        assert read_markdown(text).text == text
    content = read_markdown('+++\ntitle = "T"\n[a.b]\nc = 2024-01-02\n+++\nText.\n')
    assert (content.title, content.metadata, content.text) == ("T", {"a": {"b": {"c": "2024-01-02"}}}, "Text.\n")


def test_alias_bombs_take_no_time() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    start = time.process_time()
    content = read_markdown(f"---\n{bomb}---\nText.\n")
    assert time.process_time() - start < 2
    assert content.text == "Text.\n" and content.metadata["a1"] == "&a1 [*a0, *a0]"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "---\n", "+++\n", "...\n", "\n", "title: a\n", "a: b: c\n", "  more\n", "- item\n", "Prose here.\n",
                "# head\n", "k: |\n", "k: [1,\n", "]\n", "a = 1\n", "&a\n", "*a\n", "! x\n", "? y\n", ": z\n", "'q\n",
            ]
        )
        | st.text(max_size=12),
        max_size=12,
    ).map("".join)
)  # fmt: skip
@example("? y\n  more\n---\n")
@example("? words\n---\n")
@example("{words, k: 1}\n---\n")
def test_every_word_is_in_the_text_or_in_the_front_matter(body: str) -> None:
    import re

    text = "---\n" + body
    content = read_markdown(text)
    assert text.endswith(content.text)
    said = json.dumps([content.title, content.metadata], ensure_ascii=False) + content.text
    block = "\n".join(line for line in text[: len(text) - len(content.text)].split("\n") if not line.startswith("#"))
    for word in re.findall(r"[a-z]{4,}+(?![^\n]*?:(?:\s|$))", block):  # keys without a value are not kept
        assert word in said


def book(*cells: object, **meta: object) -> str:
    return json.dumps({"cells": list(cells), "metadata": meta, "nbformat": 4})


def test_notebooks_with_strange_cells_are_read_for_what_they_hold(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "heading", "level": 10**7, "source": "Deep"},
        {"cell_type": "heading", "level": float("inf"), "source": "Endless"},
        {"cell_type": "heading", "level": 1e19, "source": "Large"},
        {"cell_type": "heading", "level": -3, "source": "Negative"},
        {"cell_type": "heading", "level": None, "source": "None"},
        "a string", None, 7, ["x"],
        {"cell_type": "markdown", "source": {"a": 1}},
        {"cell_type": "markdown", "source": ["kept ", 3, None, "words"]},
        {"cell_type": "code", "source": "x = 1"},
        {"cell_type": ["code"], "source": "plain"},
    ]  # fmt: skip
    files = {
        "a.ipynb": book(*cells, title="\ud800 title", kernelspec=None, language_info="python"),
        "meta.ipynb": json.dumps({"cells": [{"source": "text"}], "metadata": [1]}),
        "no.ipynb": json.dumps({"cells": 5}),
        "sheet.ipynb": json.dumps({"worksheets": [7]}),
        "list.ipynb": "[1]",
        "deep.ipynb": "[" * 100_000,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    result = read_documents([tmp_path])
    first, second = result.documents
    assert first.text == (
        "###### Deep\n\n# Endless\n\n# Large\n\n# Negative\n\n# None\n\nkept words\n\n```python\nx = 1\n```\n\nplain"
    )
    assert first.title == "\ufffd title"
    assert second.text == "text"
    assert {s.source for s in result.skipped} == {"no.ipynb", "sheet.ipynb", "list.ipynb", "deep.ipynb"}
    assert all("not a notebook" in s.reason for s in result.skipped)


def nested(levels: int) -> object:
    value: object = "x"
    for _ in range(levels):
        value = [value]
    return value


def test_json_values_can_always_be_written() -> None:
    value = json_value(
        {
            "\ud800": 1,
            ("t",): 2,
            None: 3,
            "deep": nested(900),
            "deeper": nested(5000),
            "big": 1 << 20_000,
            1 << 20_000: 1,
        }
    )
    written = json.dumps(value, allow_nan=False)
    written.encode()
    assert json.loads(written) == value
    assert value["\ufffd"] == 1 and value["None"] == 3
    assert json_value({"n": 10**300, "list": [1, [2.5, None, True]]}) == {"n": 10**300, "list": [1, [2.5, None, True]]}
    assert Document("d", "x", "", value).metadata is value

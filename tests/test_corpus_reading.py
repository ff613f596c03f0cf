"""Reading: every format, every reason to skip, ids, ignore rules."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ragadapt.config import ChunkConfig, ReadConfig
from ragadapt.corpus import ReadResult, Skipped, chunk_documents, read_documents
from ragadapt.corpus.decode import Unreadable
from ragadapt.corpus.files import read_content
from ragadapt.corpus.formats import Format
from ragadapt.corpus.sources import by_reason
from ragadapt.errors import EmptyCorpus, InvalidConfiguration, InvalidInput


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def ids(result: ReadResult) -> list[str]:
    return [document.id for document in result.documents]


def reasons(result: ReadResult) -> dict[str, str]:
    return {skipped.source: skipped.reason for skipped in result.skipped}


# Formats


def test_markdown_keeps_its_text_and_gives_front_matter_to_title_and_metadata(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "---\ntitle: 'A: page'\ntags: [x, y]\ndate: 2024-05-06\n---\n\n# Head\n\nText *here*.\n"})
    (document,) = read_documents([tmp_path]).documents
    assert document.text == "\n# Head\n\nText *here*.\n"
    assert document.title == "A: page"
    assert document.metadata == {"tags": ["x", "y"], "date": "2024-05-06"}


def test_malformed_front_matter_still_gives_its_title(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "---\ntitle: One: two: three\nbad: [\n---\nText.\n"})
    (document,) = read_documents([tmp_path]).documents
    assert (document.title, document.text) == ("One: two: three", "Text.\n")


def test_a_rule_at_the_top_of_markdown_is_not_front_matter(tmp_path: Path) -> None:
    text = "---\n\nFirst part.\n\n---\n\nSecond part.\n"
    write(tmp_path, {"a.md": text})
    assert read_documents([tmp_path]).documents[0].text == text


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("how-to_write.md", "No heading here.", "how to write"),
        ("a.md", "# The *first* `heading` {#top}\n\nText.", "The first heading"),
        ("a.md", "Title here\n==========\n\nText.", "Title here"),
        ("a.md", "## Second level only\n\nText.", "a"),
        ("team/_index.md", "Text.", "team"),
        ("a.rst", "=====\nHello\n=====\n\nText.", "Hello"),
        ("notes 2024.txt", "Text.", "notes 2024"),
        ("src/app.py", "x = 1\n", "src/app.py"),
        ("page.html", "<title>The  page</title><p>Text.</p>", "The page"),
    ],
)
def test_titles(tmp_path: Path, name: str, text: str, title: str) -> None:
    write(tmp_path, {name: text})
    assert read_documents([tmp_path]).documents[0].title == title


def test_html_keeps_headings_lists_code_and_tables_and_drops_navigation(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>T</title><style>p{}</style></head><body>
    <nav><a href="/">Home</a></nav><script>alert(1)</script>
    <main><h1>Top</h1><p>One <b>two</b>,<br>three <a href="b.html#x">link</a> and <a href="https://e.org">out</a>.</p>
    <h2 id="deep-part">Deep &amp; part <a href="#deep-part">¶</a></h2>
    <ul><li>first</li><li>second<ul><li>inner</li></ul></li></ul><ol><li><p>num</p></li></ol>
    <pre class="language-python"><code>def f():
    return "&lt;"</code></pre>
    <table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2|3</td></tr></table>
    <blockquote><p>Quoted</p></blockquote></main><footer>imprint</footer></body></html>"""
    write(tmp_path, {"p.html": page})
    assert read_documents([tmp_path]).documents[0].text == (
        "# Top\n\nOne two,\nthree [link](b.html#x) and out.\n\n## Deep & part {#deep-part}\n\n"
        "- first\n- second\n  - inner\n\n1. num\n\n"
        '```python\ndef f():\n    return "<"\n```\n\n'
        "| A | B |\n| --- | --- |\n| 1 | 2\\|3 |\n\n> Quoted\n"
    )


def test_html_says_its_own_encoding(tmp_path: Path) -> None:
    write(tmp_path, {"p.html": '<meta charset="big5"><p>漢字測試</p>'.encode("big5")})
    assert "漢字測試" in read_documents([tmp_path]).documents[0].text


def test_html_nested_without_end_is_read_or_skipped_not_fatal(tmp_path: Path) -> None:
    write(tmp_path, {"deep.html": "<div>" * 50_000 + "x" + "</div>" * 50_000, "ok.txt": "fine"})
    assert "ok.txt" in ids(read_documents([tmp_path]))


def test_notebook_cells_become_markdown_and_fenced_code(tmp_path: Path) -> None:
    book = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Look\n", "Some text."]},
            {"cell_type": "code", "source": "print(1)", "outputs": [{"text": "NOT THIS"}]},
            {"cell_type": "code", "source": ""},
        ],
        "metadata": {"kernelspec": {"language": "julia"}},
        "nbformat": 4,
    }
    write(tmp_path, {"n.ipynb": json.dumps(book), "bad.ipynb": "{}"})
    result = read_documents([tmp_path])
    assert result.documents[0].text == "# Look\nSome text.\n\n```julia\nprint(1)\n```"
    assert result.documents[0].title == "Look"
    assert [note.reason for note in result.notes] == ["what 1 code cells printed or drew"]
    assert "not a notebook" in reasons(result)["bad.ipynb"]


def test_passages_of_a_notebook_know_their_cell(tmp_path: Path) -> None:
    cells: list[object] = [
        {"cell_type": "raw", "source": "---\ntitle: Fees of old\nyear: 1999\n---\n"},
        {"cell_type": "markdown", "source": ["(fees)=\n", "# First { #first .wide }\n", "\n", "alpha words {.x}"]},
        {"cell_type": "code", "source": [], "outputs": []},
        {
            "cell_type": "code",
            "source": "beta = {}  # { #kept .x }\r\n\r\nbeta2 = 1",
            "outputs": [{"text": "no\n" * 50}],
        },
        {"cell_type": "markdown", "source": "{: .only #lonely }"},
        {"cell_type": "markdown", "source": "  \n"},
        {"cell_type": "raw", "source": ["\n", "gamma [link](x){ target=_blank } and `x`{.py}\n", "{: #under }"]},
        "no cell",
        {"cell_type": "markdown", "source": "```\ndelta { #fenced }\n```"},
        {"cell_type": "markdown", "source": "epsilon \ud800 after [here]( y ){#last .far}"},
        {"cell_type": "code", "source": "zeta = ```"},
    ]
    write(tmp_path, {"n.ipynb": json.dumps({"cells": cells, "metadata": {}, "nbformat": 4})})
    (document,) = read_documents([tmp_path]).documents
    assert (document.title, document.metadata) == ("Fees of old", {"year": 1999})
    ends = [start for start, _ in document.places[1:]] + [len(document.text)]
    found = {
        values["cell"]: document.text[start:end].strip("\n")
        for (start, values), end in zip(document.places, ends, strict=True)
    }
    assert found == {
        2: "# First\n\nalpha words {.x}",
        4: "```python\nbeta = {}  # { #kept .x }\n\nbeta2 = 1\n```",
        7: "gamma [link](x) and `x`",
        9: "```\ndelta { #fenced }\n```",
        10: "epsilon \ufffd after [here]( y )",
        11: "````python\nzeta = ```\n````",
    }
    at = {anchor: document.text[place:].split("\n", 1)[0] for anchor, place in document.anchors.items()}
    assert at["fees"] == "# First" and at["lonely"] == "gamma [link](x) and `x`"
    assert set(at) == {"fees", "first", "lonely", "under", "last"}

    def words(texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    passages = chunk_documents([document], ChunkConfig(min_tokens=1), words, 8)
    assert len({chunk.metadata["cell"] for chunk in passages}) > 3
    assert all(chunk.text.split("\n")[0] in found[chunk.metadata["cell"]] for chunk in passages)


def test_cells_of_notebooks_of_format_3_are_numbered_through_their_worksheets(tmp_path: Path) -> None:
    sheets = [{"cells": [{"cell_type": "code", "input": f"x = {n}"}] * 2} for n in range(2)]
    write(tmp_path, {"n.ipynb": json.dumps({"worksheets": sheets, "metadata": {"title": "word " * 200}})})
    (document,) = read_documents([tmp_path]).documents
    assert [values["cell"] for _, values in document.places] == [1, 2, 3, 4]
    assert all(document.text[start:].startswith("```python\nx = ") for start, _ in document.places)


def pdf_bytes(pages: list[str], title: str = "", password: str = "") -> bytes:
    """A PDF of text lines in Helvetica, written with pypdf's own objects."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for text in pages:
        page = writer.add_blank_page(width=595, height=842)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): writer._add_object(font)})}
        )
        stream = DecodedStreamObject()
        lines = " ".join(f"({line}) Tj T*" for line in text.split("\n"))
        stream.set_data(f"BT /F1 12 Tf 14 TL 72 770 Td {lines} ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_pdf_gives_text_title_and_page_count_without_running_heads(tmp_path: Path) -> None:
    pages = [f"Acme report\nBody of page {n} speaks.\n{n}" for n in range(1, 6)]
    pages[0] = "Acme report\nThis is an exam-\nple of text with well-\nknown and well-known words.\n1"
    write(tmp_path, {"r.pdf": pdf_bytes(pages, title="Yearly report")})
    (document,) = read_documents([tmp_path]).documents
    assert document.title == "Yearly report"
    assert document.metadata == {"pages": 5}
    assert "Acme report" not in document.text
    assert "an example\nof text" in document.text
    assert "well-known\nand well-known" in document.text
    assert "Body of page 3 speaks." in document.text


def test_locked_damaged_and_textless_pdfs_are_skipped_with_the_reason(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "locked.pdf": pdf_bytes(["secret"], password="x"),
        "damaged.pdf": b"%PDF-1.4 nothing more",
        "scan.pdf": pdf_bytes([""]),
        "ok.txt": "fine",
    }
    found = reasons(read_documents([write(tmp_path, files)]))
    assert found["locked.pdf"] == "password-protected"
    assert "damaged PDF" in found["damaged.pdf"]
    assert "OCR" in found["scan.pdf"]


def test_word_files_keep_headings_lists_and_tables(tmp_path: Path) -> None:
    import docx

    file = docx.Document()
    file.core_properties.title = "The plan"
    file.add_heading("Start", level=1)
    file.add_paragraph("First words.")
    file.add_paragraph("one", style="List Bullet")
    file.add_paragraph("two", style="List Bullet")
    table = file.add_table(rows=2, cols=2)
    for place, text in enumerate("abcd"):
        table.cell(place // 2, place % 2).text = text
    file.add_heading("End", level=2)
    file.save(str(tmp_path / "p.docx"))
    write(tmp_path, {"old.docx": b"\xd0\xcf\x11\xe0" + b"\0" * 100, "bad.docx": b"PK not a zip"})
    result = read_documents([tmp_path])
    assert result.documents[0].text == (
        "# Start\n\nFirst words.\n\n- one\n- two\n\n| a | b |\n| --- | --- |\n| c | d |\n\n## End"
    )
    assert result.documents[0].title == "The plan"
    assert "password-protected" in reasons(result)["old.docx"]
    assert "damaged Word file" in reasons(result)["bad.docx"]


@pytest.mark.parametrize(("module", "name"), [("pypdf", "pdf"), ("openpyxl", "xlsx")])
def test_a_missing_extra_names_the_pip_command(monkeypatch: pytest.MonkeyPatch, module: str, name: Format) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unreadable, match=rf"pip install 'ragadapt\[{name}\]'"):
        read_content(b"%PDF", name, "a." + name, None, 1000)


# Rows


def test_jsonl_rows_use_their_own_ids_and_bad_rows_are_listed_by_line(tmp_path: Path) -> None:
    lines = [
        '{"_id": "a", "title": "T", "text": "one", "metadata": {"url": "u"}, "year": 3}',
        "{not json",
        '{"_id": "a", "text": "again"}',
        "[1]",
        '{"_id": "b", "text": ""}',
        "",
        '{"_id": 7, "text": ["p", "q"]}',
        '{"_id": "e", "body_text": "x"}',
        '{"_id": "t", "title": "Only a title", "text": ""}',
        '{"_id": "s", "text": "lone \\ud800 half"}',
    ]
    result = read_documents([write(tmp_path, {"c.jsonl": "\n".join(lines)})])
    assert [(d.id, d.title, d.text) for d in result.documents] == [
        ("a", "T", "one"),
        ("7", "", "p\nq"),
        ("t", "", "Only a title"),
        ("s", "", "lone \ufffd half"),
    ]
    assert result.documents[0].metadata == {"url": "u", "year": 3}
    assert result.documents[0].source == "c.jsonl"
    found = reasons(result)
    assert list(found) == [f"c.jsonl:{n}" for n in (2, 3, 4, 5, 8)]
    assert "malformed JSON" in found["c.jsonl:2"]
    assert found["c.jsonl:3"] == "id 'a' is used already at line 1"
    assert "list" in found["c.jsonl:4"]
    assert found["c.jsonl:5"] == "empty"
    assert "body_text" in found["c.jsonl:8"]


def test_chosen_columns_are_used(tmp_path: Path) -> None:
    write(tmp_path, {"c.csv": 'Nr;Frage;Antwort\n1;"Wie; so?";Darum\n2;x\n3;Wo;"zwei\nZeilen"\n'})
    config = ReadConfig(id_field="Nr", title_field="Frage", text_field="Antwort")
    result = read_documents([tmp_path], config)
    assert [(d.id, d.title, d.text) for d in result.documents] == [
        ("1", "Wie; so?", "Darum"),
        ("3", "Wo", "zwei\nZeilen"),
    ]
    assert reasons(result) == {"c.csv:3": "2 cells where the header has 3"}


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "\ufeffSEP=;\n"])
def test_the_line_by_which_excel_names_the_separator_is_no_header(tmp_path: Path, first: str) -> None:
    write(tmp_path, {"c.csv": first + "id;text;a, b, c, d\n1;one, two;x\n2;three\n"})
    result = read_documents([tmp_path])
    assert [(d.id, d.text, d.metadata) for d in result.documents] == [("1", "one, two", {"a, b, c, d": "x"})]
    assert reasons(result) == {"c.csv:4": "2 cells where the header has 3"}


@pytest.mark.parametrize(("name", "mark"), [("c.csv", ","), ("c.tsv", "\t")])
def test_columns_of_the_same_name_all_keep_their_cells(tmp_path: Path, name: str, mark: str) -> None:
    rows = ["text", "tag", "tag", "tag_2", "text", "", ""], ["one", "a", "b", "c", "7", "d", "e"]
    write(tmp_path, {name: "".join(mark.join(row) + "\n" for row in rows)})
    (document,) = read_documents([tmp_path]).documents
    assert document.text == "one"
    assert document.metadata == {"tag": "a", "tag_3": "b", "tag_2": "c", "text_2": 7, "": "d", "_2": "e"}


def test_a_csv_without_text_column_names_its_columns(tmp_path: Path) -> None:
    write(tmp_path, {"q.tsv": "query-id\tcorpus-id\tscore\n1\t2\t1\n", "ok.txt": "fine"})
    assert "query-id, corpus-id, score" in reasons(read_documents([tmp_path]))["q.tsv"]


def test_rows_without_ids_are_known_by_content_wherever_they_stand(tmp_path: Path) -> None:
    write(tmp_path, {"c.csv": "text\nalpha\nbeta\n"})
    before = {d.text: d.id for d in read_documents([tmp_path]).documents}
    write(tmp_path, {"c.csv": "text\nnew first\nbeta\nalpha\n"})
    after = {d.text: d.id for d in read_documents([tmp_path]).documents}
    assert after["alpha"] == before["alpha"] and after["beta"] == before["beta"]


def test_ids_that_two_row_files_share_are_prefixed_by_file(tmp_path: Path) -> None:
    rows = '{"_id": "1", "text": "%s"}\n'
    write(tmp_path, {"a.jsonl": rows % "x", "b.jsonl": rows % "y", "c.jsonl": '{"_id": "2", "text": "z"}\n'})
    assert ids(read_documents([tmp_path])) == ["a.jsonl#1", "b.jsonl#1", "2"]


def test_the_queries_beside_a_beir_corpus_are_not_documents(tmp_path: Path) -> None:
    write(tmp_path, {"corpus.jsonl": '{"_id": "1", "text": "x"}', "queries.jsonl": '{"_id": "q", "text": "y"}'})
    result = read_documents([tmp_path])
    assert ids(result) == ["1"]
    assert "queries" in reasons(result)["queries.jsonl"]


def test_the_size_limit_is_on_a_row_not_on_a_row_file(tmp_path: Path) -> None:
    small, large = {"_id": "s", "text": "x" * 50}, {"_id": "l", "text": "x" * 500}
    write(tmp_path, {"c.jsonl": "\n".join([json.dumps(small), json.dumps(large), ""])})
    result = read_documents([tmp_path], ReadConfig(max_file_bytes=200))
    assert ids(result) == ["s"]
    assert "over-size" in reasons(result)["c.jsonl:2"]


def test_beir_collections_are_read_whole(data: Path) -> None:
    result = read_documents([data / "scifact" / "corpus.jsonl"])
    assert len(result.documents) == 5183
    first = json.loads((data / "scifact" / "corpus.jsonl").read_text("utf-8").split("\n", 1)[0])
    assert (result.documents[0].id, result.documents[0].title, result.documents[0].text) == tuple(first.values())[:3]


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "big5", "shift_jis"])
def test_text_is_decoded_whatever_its_encoding(tmp_path: Path, encoding: str) -> None:
    text = {
        "cp1252": "Ein Käfer läuft über die Straße und fährt später müde nach Hause zurück. " * 5,
        "big5": "在歐洲，梵語的學術研究，由德國學者陸特和漢斯雷頓開創。" * 5,
        "shift_jis": "これは日本語で書かれた文章です。文字の符号化方式を調べます。" * 5,
    }.get(encoding, "Zoë paid 5 € — 漢字")
    write(tmp_path, {"a.txt": text.encode(encoding)})
    assert read_documents([tmp_path]).documents[0].text == text


def test_a_named_encoding_is_used_and_must_fit(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "naïve".encode("cp1252"), "b.txt": "plain"})
    assert read_documents([tmp_path], ReadConfig(encoding="cp1252")).documents[0].text == "naïve"
    assert reasons(read_documents([tmp_path], ReadConfig(encoding="ascii")))["a.txt"].startswith("wrongly encoded")
    with pytest.raises(InvalidConfiguration, match="no-such"):
        read_documents([tmp_path], ReadConfig(encoding="no-such"))


def test_damaged_utf8_is_skipped_with_the_place(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "Größe über alles, schön. ".encode() * 20 + b"\xff\xfe!", "b.txt": "fine"})
    assert "UTF-8 with 2 bad bytes, the first at byte 580" in reasons(read_documents([tmp_path]))["a.txt"]


def test_newlines_become_one_kind(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"one\r\ntwo\rthree\n"})
    assert read_documents([tmp_path]).documents[0].text == "one\ntwo\nthree\n"


# Which files


def test_every_unusable_file_is_listed_with_its_reason(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "empty.md": "",
        "blank.txt": " \n\t\n",
        "binary.txt": bytes(range(256)) * 4,
        "picture.png": b"\x89PNG",
        "large.txt": "x" * 2000,
        "ok.md": "fine",
    }
    result = read_documents([write(tmp_path, files)], ReadConfig(max_file_bytes=1000))
    assert ids(result) == ["ok.md"]
    found = reasons(result)
    assert found["empty.md"] == found["blank.txt"] == "empty"
    assert found["binary.txt"] == "over-size: 1,024 bytes, the limit max_file_bytes is 1,000"
    assert ".png" in found["picture.png"]
    assert "over-size: 2,000 bytes" in found["large.txt"]


def test_binary_content_under_a_text_name_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": bytes(range(256)) * 4, "b.txt": "ok"})
    assert reasons(read_documents([tmp_path])) == {"a.txt": "binary, not text"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_without_permission_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "x", "b.txt": "ok"})
    (tmp_path / "a.txt").chmod(0)
    assert "cannot be read" in reasons(read_documents([tmp_path]))["a.txt"]


def test_hidden_and_ignored_files_at_every_level_are_left_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "*.log.md\n/build/\n!keep.log.md\n",
            "a.md": "x",
            "b.log.md": "x",
            "keep.log.md": "x",
            "build/c.md": "x",
            "sub/build/d.md": "x",
            "sub/.gitignore": "private*\n!b.log.md\n",
            "sub/private.md": "x",
            "sub/b.log.md": "x",
            "private.md": "x",
            ".hidden.md": "x",
            ".cfg/e.md": "x",
            "node_modules/f.md": "x",
        },
    )
    expected = ["a.md", "keep.log.md", "private.md", "sub/b.log.md", "sub/build/d.md"]
    assert sorted(ids(read_documents([tmp_path]))) == expected
    everything = sorted(ids(read_documents([tmp_path], ReadConfig(gitignore=False, hidden=True))))
    assert everything == sorted([*expected, "b.log.md", "build/c.md", "sub/private.md", ".hidden.md", ".cfg/e.md"])


def test_ignore_files_above_the_folder_count_inside_a_repository_unless_they_ignore_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    write(tmp_path, {".gitignore": "_build/\n/out/\n", "docs/_build/a.md": "x", "docs/b.md": "x", "out/docs/c.md": "x"})
    assert ids(read_documents([tmp_path / "docs"])) == ["b.md"]
    assert ids(read_documents([tmp_path / "out" / "docs"])) == ["c.md"]


def test_include_and_exclude_take_gitignore_syntax(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "x", "b.txt": "x", "drafts/c.md": "x", "d.conf": "x = 1"})
    assert ids(read_documents([tmp_path], ReadConfig(include=("*.md",), exclude=("drafts/",)))) == ["a.md"]
    assert ids(read_documents([tmp_path], ReadConfig(include=("*.conf",)))) == ["d.conf"]
    with pytest.raises(InvalidConfiguration, match="exclude"):
        read_documents([tmp_path], ReadConfig(exclude=("!",)))


def test_links_are_followed_once_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path / "docs", {"b.md": "x", "sub/c.md": "y"})
    write(tmp_path / "elsewhere", {"d.md": "z"})
    try:
        (tmp_path / "docs" / "a.md").symlink_to("b.md")
        (tmp_path / "docs" / "sub" / "up").symlink_to("..")
        (tmp_path / "docs" / "loop").symlink_to("loop")
        (tmp_path / "docs" / "out").symlink_to(tmp_path / "elsewhere")
    except OSError:
        pytest.skip("this system makes no links")
    result = read_documents([tmp_path / "docs"], ReadConfig(follow_links=True))
    assert ids(result) == ["b.md", "sub/c.md", "out/d.md"]
    found = reasons(result)
    assert "b.md" in found["a.md"] and "the folder itself" in found["sub/up"] and "nowhere" in found["loop"]


def test_a_file_named_directly_is_read_whatever_the_rules_say(tmp_path: Path) -> None:
    write(tmp_path, {".gitignore": "*", ".notes": "hidden text", "a.conf": "x = 1"})
    assert ids(read_documents([tmp_path / ".notes", tmp_path / "a.conf"])) == [".notes", "a.conf"]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_retriever_in_the_folder_is_left_out_with_what_stands_beside_it(tmp_path: Path, hidden: bool) -> None:
    names = ("r/ragadapt.json", "r/report/report.html", "r/model/vocab.txt", ".r.rollback/ragadapt.json")
    build = (
        ".r.build/build.json",
        ".r.build/stages/train/notes.txt",
        ".r.vectors/vectors.json",
        ".r.vectors/vectors.npy",
    )
    kept = {"a.md": "x", "deep/build.json": "{}", "deep/b.md": "y"}
    write(tmp_path, {**dict.fromkeys((*names, *build, "deep/.q.build/build.json"), "{}"), **kept, ".r.lock": ""})
    write(tmp_path, {".r.answers.jsonl": '{"key": "k", "chunk": "c", "text": "Question: who?"}\n'})
    (tmp_path / "deep" / ".q.build" / "stages").mkdir()
    result = read_documents([tmp_path], ReadConfig(hidden=hidden))
    assert ids(result) == ["a.md", "deep/b.md"]
    found = reasons(result)
    assert "retriever" in found["r/"]
    assert {name for name in found if name.startswith((".r.", "deep/."))} == (
        {".r.answers.jsonl", ".r.build/", ".r.lock", ".r.rollback/", ".r.vectors/", "deep/.q.build/"}
        if hidden
        else set()
    )
    with pytest.raises(EmptyCorpus, match="r: a retriever of ragadapt"):
        read_documents([tmp_path / "r"])


def test_labels_are_no_documents_even_where_they_are_named(tmp_path: Path) -> None:
    questions = '{"_id": "1", "text": "who?"}\n'
    write(tmp_path, {"a.md": "x", "q/ask.jsonl": questions, "q/other.jsonl": questions, "q/judged.tsv": "1\ta.md\t1\n"})
    labels = [tmp_path / "q" / "ask.jsonl", str(tmp_path / "q" / ".." / "q" / "judged.tsv")]
    for paths in ([tmp_path], [tmp_path, tmp_path / "q" / "ask.jsonl"]):
        result = read_documents(paths, labels=labels)
        assert ids(result) == ["a.md", "1"]
        assert {name.rpartition("/")[2] for name in reasons(result)} == {"ask.jsonl", "judged.tsv"}
        assert set(reasons(result).values()) == {"labelled questions, not a document"}


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "x"})
    result = read_documents([tmp_path, tmp_path / "a.md"])
    assert ids(result) == ["a.md"]
    assert reasons(result) == {"a.md": "the same file as a.md"}


def test_a_file_named_beside_its_folder_is_read_as_it_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "x", "in/settings.json": '{"retries": 7}', "in/de.po": 'msgid "seven retries"'})
    skipped = reasons(read_documents([tmp_path]))
    assert set(skipped) == {"in/settings.json", "in/de.po"}
    assert all("name the file itself beside its folder" in reason for reason in skipped.values())
    result = read_documents([tmp_path, tmp_path / "in" / "settings.json", tmp_path / "in" / "de.po"])
    assert {d.id: d.text for d in result.documents} == {
        "a.md": "x",
        "in/settings.json": "retries: 7",
        "in/de.po": 'msgid "seven retries"',
    }
    assert set(reasons(result).values()) == {"the same file as in/settings.json", "the same file as in/de.po"}


def test_old_office_files_are_skipped_with_the_format_to_save_them_in(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "x", "b.doc": b"\xd0\xcf\x11\xe0", "c.odt": b"PK", "d.XLS": b"\xd0\xcf\x11\xe0"})
    found = {name: reason.rpartition("; ")[2] for name, reason in reasons(read_documents([tmp_path])).items()}
    assert found == {"b.doc": "save it as .docx", "c.odt": "save it as .docx", "d.XLS": "save it as .xlsx"}


def test_a_group_of_reasons_counts_files_and_takes_the_includes_of_one_kind_together() -> None:
    notes = [
        Skipped("w.pdf", "running head or foot of 4 pages left out: 'Acme'"),
        Skipped("w.pdf", "running head or foot of 4 pages left out: 'Page N'"),
        Skipped("a.rst", "include of ../../one.py: not found among the documents"),
        Skipped("a.rst", "include of ../../two.py: not found among the documents"),
        Skipped("b.rst", "include of ../three.py: not found among the documents"),
    ]
    assert by_reason(notes) == [
        "a.rst and 1 more: include of ../../one.py: not found among the documents",
        "w.pdf: running head or foot of 4 pages left out: 'Acme'",
    ]


# Ids


def test_ids_are_paths_below_the_folder_and_stable_when_the_folder_moves(tmp_path: Path) -> None:
    write(tmp_path / "x", {"b/c.md": "1", "a.md": "2"})
    before = ids(read_documents([tmp_path / "x"]))
    (tmp_path / "x").rename(tmp_path / "y")
    assert before == ids(read_documents([tmp_path / "y"])) == ["a.md", "b/c.md"]


def test_folders_with_the_same_names_inside_are_told_apart_and_others_stay(tmp_path: Path) -> None:
    write(tmp_path, {"one/docs/a.md": "1", "two/docs/a.md": "2", "two/docs/b.md": "3", "third/z.md": "4"})
    result = read_documents([tmp_path / "one" / "docs", tmp_path / "two" / "docs", tmp_path / "third"])
    assert ids(result) == ["one/docs/a.md", "two/docs/a.md", "two/docs/b.md", "z.md"]
    assert [d.source for d in result.documents] == ["a.md", "a.md", "b.md", "z.md"]


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, {"one/a.md": "1", "two/a.md": "2"})
    assert ids(read_documents([tmp_path / "one" / "a.md", tmp_path / "two" / "a.md"])) == ["one/a.md", "two/a.md"]


# Nothing to read


def test_nothing_readable_says_why(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "", "b.png": b"x", ".hidden.md": "x"})
    with pytest.raises(EmptyCorpus) as caught:
        read_documents([tmp_path])
    assert "a.md: empty" in str(caught.value)
    assert "b.png: no document format" in str(caught.value)
    assert "1 hidden" in str(caught.value)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        read_documents([tmp_path / "nowhere"])


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "x", "b.md": "y"})
    seen: list[tuple[str, int, int]] = []
    read_documents([tmp_path], progress=lambda *step: seen.append(step))
    assert seen == [("reading", 1, 2), ("reading", 2, 2)]

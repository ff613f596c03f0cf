"""What documentation tools write into pages: included files are followed inside the sources, attribute lists go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ragadapt.config import ChunkConfig, ReadConfig
from ragadapt.corpus import chunk_documents, internal_links, read_documents
from ragadapt.corpus.grids import with_plain_tables
from ragadapt.corpus.includes import without_attributes
from ragadapt.corpus.markdown import read_markdown
from ragadapt.values import Document


def read(folder: Path, files: dict[str, str], root: str = "") -> dict[str, Document]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return {document.id: document for document in read_documents([folder / root]).documents}


CODE = "import os\n\ndef one():\n    return 1\n\n\ndef two():\n    return 2\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("{* ../src/x.py *}", f"```py\n{CODE}```"),
        ("{* ../src/x.py hl[1:3] *}", f"```py\n{CODE}```"),
        ("{* ../src/x.py ln[3:4] hl[4] *}", "```py\ndef one():\n    return 1\n```"),
        ('--8<-- "src/x.py"', f"```py\n{CODE}```"),
        ("--8<-- 'src/x.py:3:4'", "```py\ndef one():\n    return 1\n```"),
        ("```python\n{!../src/x.py!}\n```", f"```python\n{CODE}```"),
        ('```python\n--8<-- "src/x.py"\n```', f"```python\n{CODE}```"),
        ('{% include "../src/x.py" %}', f"```py\n{CODE}```"),
        ("{{#include ../src/x.py:3:4}}", "```py\ndef one():\n    return 1\n```"),
        ("```{literalinclude} ../src/x.py\n:language: python\n:lines: 3-4, 7-\n```",
         "```python\ndef one():\n    return 1\ndef two():\n    return 2\n```"),
        ("```{literalinclude} /src/x.py\n:pyobject: two\n```", "```py\ndef two():\n    return 2\n```"),
        ("```{include} part.md\n```", "Part *text*."),
        (":::{include} part.md\n:::", "Part *text*."),
        ('--8<-- "docs/part.md"', "Part *text*."),
        ('--8<-- "part.md"', "Part *text*."),
        ("--8<--\npart.md\n--8<--", "Part *text*."),
        ('  --8<-- "part.md"', "  Part *text*."),
        ('--8<-- "marked.md:a"', "Inside a."),
        ('{% include-markdown "marked.md" start="[end:a]" %}', "Last."),
    ],
)  # fmt: skip
def test_an_include_inside_the_sources_is_followed(tmp_path: Path, line: str, shown: str) -> None:
    marked = "First.\n<!-- --8<-- [start:a] -->\nInside a.\n<!-- --8<-- [end:a] -->\nLast.\n"
    files = {"docs/part.md": "---\ntitle: No\n---\nPart *text*.\n", "docs/marked.md": marked, "src/x.py": CODE}
    document = read(tmp_path, {**files, "docs/a.md": f"Before.\n\n{line}\n\nAfter.\n"})["docs/a.md"]
    assert document.text == f"Before.\n\n{shown}\n\nAfter.\n"
    assert document.notes == ()


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (".. include:: part.txt", "Part text."),
        (".. include:: /docs/part.txt\n   :start-line: 0", "Part text."),
        (".. include:: part.txt\n   :literal:", ".. code-block:: txt\n\n    Part text.\n"),
        (".. literalinclude:: ../src/x.py\n   :language: python\n   :lines: 3-4",
         ".. code-block:: python\n\n    def one():\n        return 1\n"),
        ("  .. include:: part.txt", "  Part text."),
    ],
)  # fmt: skip
def test_an_include_of_sphinx_is_followed(tmp_path: Path, lines: str, shown: str) -> None:
    files = {"docs/part.txt": "Part text.\n", "src/x.py": CODE}
    document = read(tmp_path, {**files, "docs/a.rst": f"Title\n=====\n\n{lines}\n\nAfter.\n"})["docs/a.rst"]
    assert document.text == f"Title\n=====\n\n{shown}\n\nAfter.\n"


def test_what_lies_outside_or_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("SECRET")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "link.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(tmp_path / "docs" / "pipe.txt")
    targets = {
        "../secret.txt": "outside the documents",
        "link.txt": "outside the documents",
        "/etc/passwd": "not found among the documents",
        "../../../../../../../../../etc/passwd": "outside the documents",
        "https://example.org/x.md": "outside the documents",
        "missing.md": "not found among the documents",
        ".env": "a hidden file",
        "pipe.txt": "not found among the documents",
        "a" * 300 + ".md": "not found among the documents",
        "picture.bin": "binary, not text",
        "a.md": "the files include each other in a circle",
    }
    (tmp_path / "docs" / "picture.bin").write_bytes(bytes(range(256)))
    text = "Top.\n\n" + "\n\n".join(f'--8<-- "{target}"' for target in targets) + "\n\nEnd.\n"
    document = read(tmp_path, {"docs/.env": "SECRET=1", "docs/a.md": text}, "docs")["a.md"]
    assert "SECRET" not in document.text and "8<" not in document.text
    assert document.text.startswith("Top.") and document.text.endswith("End.\n")
    assert set(document.notes) == {f"include of {target}: {reason}" for target, reason in targets.items()}


def test_a_file_named_alone_includes_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("B.\n")
    (tmp_path / "a.md").write_text('A.\n\n--8<-- "b.md"\n')
    (document,) = read_documents([tmp_path / "a.md"]).documents
    assert document.text.strip() == "A."
    assert document.notes == ("include of b.md: outside the documents",)


def test_a_page_that_only_includes_what_is_not_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "changes.rst").write_text(".. include:: ../Changes.rst\n")
    (tmp_path / "a.md").write_text("Text.\n")
    (skipped,) = read_documents([tmp_path]).skipped
    assert skipped.reason == "empty; include of ../Changes.rst: not found among the documents"


def test_circles_and_towers_of_includes_end(tmp_path: Path) -> None:
    files = {
        "a.md": 'A.\n\n--8<-- "b.md"\n',
        "b.md": 'B.\n\n--8<-- "a.md"\n',
        **{f"t{n}.md": f'T{n}.\n\n--8<-- "t{n + 1}.md"\n--8<-- "t{n + 1}.md"\n' for n in range(40)},
    }
    documents = read(tmp_path, files)
    assert documents["a.md"].text.split() == ["A.", "B."]
    assert "circle" in documents["a.md"].notes[0]
    assert documents["t0.md"].text.split() == [f"T{n}." for n in range(9)]
    assert documents["t0.md"].notes == ("include of t9.md: too many includes",)


def test_includes_do_not_outgrow_the_limit_of_a_file(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"p{n}.txt").write_text(f"{n}" * 400 + "\n")
    (tmp_path / "a.md").write_text("".join(f'--8<-- "p{n}.txt"\n' for n in range(5)) + "End.\n")
    documents = read_documents([tmp_path], ReadConfig(max_file_bytes=1000)).documents
    (page,) = (document for document in documents if document.id == "a.md")
    assert len(page.text) < 1000 and page.text.endswith("End.\n")
    assert page.notes == tuple(f"include of p{n}.txt: over-size" for n in (2, 3, 4))


def test_examples_of_includes_in_code_and_prose_stay(tmp_path: Path) -> None:
    text = (
        'Write `--8<-- "file"` or {* this *} so:\n\n```\n--8<-- "filename.ext"\n{!> nowhere.py!}\n```\n\n'
        "```{note} x.md\nA note.\n```\n\n::: tip Title\nInside.\n:::\n\n:::note\nMore.\n:::\n"
    )
    document = read(tmp_path, {"a.md": text})["a.md"]
    assert (document.text, document.notes) == (text, ())


@pytest.mark.parametrize(
    "text",
    [
        "Use it:\n\n.. code-block:: rst\n   :linenos:\n\n   .. include:: b.rst\n      :lines: 1\n\n{after}\n",
        "For example::\n\n   .. literalinclude:: b.rst\n\n   * x::\n\n   .. include:: b.rst\n\n{after}\n",
        ".. option:: a\n\n   * Say this::\n\n        .. include:: b.rst\n\n     {after}\n",
    ],
)
def test_what_a_literal_block_of_rst_says_of_includes_stays(tmp_path: Path, text: str) -> None:
    for after, shown in (("After.", "After."), (".. include:: b.rst", "B.")):
        document = read(tmp_path, {"d/a.rst": text.format(after=after), "d/b.rst": "B.\n"}, "d")["a.rst"]
        assert document.text == text.format(after=shown)
        assert document.notes == ()


def test_what_mkdocstrings_makes_is_named_and_its_options_go(tmp_path: Path) -> None:
    text = "# API\n\n::: package.module.Class\n    options:\n      show_source: true\n\n::: module\n\nAfter.\n"
    document = read(tmp_path, {"a.md": text})["a.md"]
    assert document.text == "# API\n\npackage.module.Class\n\nmodule\n\nAfter.\n"
    assert [note for note in document.notes if "package.module.Class" in note and "left out" in note]


def test_rows_follow_no_include(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("B.\n")
    (tmp_path / "rows.jsonl").write_text('{"_id": "1", "text": "x\\n--8<-- \\"b.md\\"\\n"}\n')
    texts = {document.id: document.text for document in read_documents([tmp_path]).documents}
    assert texts["1"] == 'x\n--8<-- "b.md"\n'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# Title { #top .big }\n", "# Title\n"),
        ("# Title {#top} #\n", "# Title #\n"),
        ('## T {: #a title="x y" }\n', "## T\n"),
        ("Title { #t }\n=====\n", "Title\n=====\n"),
        ("# Title {-}\n", "# Title\n"),
        ("A [link](x.md){ .button target=_blank } here.\n", "A [link](x.md) here.\n"),
        ("![alt](x.png){ width=300 align=left }\n", "![alt](x.png)\n"),
        ("[text]{.mark} and *em*{ .x } and `code`{.py}.\n", "[text] and *em* and `code`.\n"),
        ("A paragraph.\n{: .note #here }\n\nNext.\n", "A paragraph.\n\nNext.\n"),
        ("A paragraph.\n{ .annotate }\n", "A paragraph.\n"),
        ("[](){ #here }\nText.\n", "\nText.\n"),
        ("(label)=\n# Title\n", "# Title\n"),
    ],
)
def test_attribute_lists_go(text: str, shown: str) -> None:
    assert read_markdown(text).text == shown


@pytest.mark.parametrize(
    "text",
    [
        "# The set {x, y} and {a=1}\n",
        "$f(x){a}$ and \\frac{1}{2} and x_{i}\n",
        "Use `[a](b){ .c }` so, or `{ #x }`.\n",
        "```\n# Title { #top }\n{: .note }\n```\n",
        '~~~ {.python title="x.py"}\ncode {#x}\n~~~\n',
        "A template {{ value }} and {% tag %} and {user}.\n",
        "f(x) { return 1; }\n",
        "{ .nothing above }\n",
        "\n{ .class }\n",
        "| a { #x } | b |\n",
        "([label])=\n",
        "body(x){color: red}\n",
    ],
)
def test_braces_that_mean_something_stay(text: str) -> None:
    assert read_markdown(text).text == text
    assert without_attributes(text)[1] == {}


FILLER = "Some words that stand here so that the passage is long enough to be one. " * 6


def test_anchors_in_attribute_lists_still_take_links(tmp_path: Path) -> None:
    files = {
        "a.md": f"# A\n\n{FILLER}\n\n## Install {'{'} #set-up .x {'}'}\n\n{FILLER}\n\n## Use\n\n{FILLER}\n\n"
        f"Para.\n{{: #deep }}\n\n{FILLER}\n\n(myst)=\n## Last\n\n{FILLER}\n",
        "b.md": f"---\ntitle: {'word ' * 100}\n---\n# B\n\n{FILLER}"
        "[one](a.md#set-up) [two](a.md#deep) [three](a.md#myst)\n",
        "c.md": f"# C\n\n{FILLER}[four](b.md#x) [five](d.md#far)\n",
        "d.md": f"---\ntitle: {'word ' * 100}\n---\nText.\n\n{FILLER}\n\n## Far {{ #far }}\n\n{FILLER}\n",
    }
    documents = list(read(tmp_path, files).values())
    chunks = chunk_documents(documents, ChunkConfig(min_tokens=0), lambda ts: [len(t.split()) for t in ts], 90)
    assert not [chunk for chunk in chunks if "{" in chunk.passage or "myst" in chunk.passage.replace("#myst", "")]
    by_id = {chunk.id: chunk for chunk in chunks}
    found = {link.text: by_id[link.to_chunk_id] for link in internal_links(documents, chunks)}
    assert found["one"].heading_path[-1] == "Install"
    assert found["two"].heading_path[-1] == "Use"
    assert found["three"].heading_path[-1] == "Last"
    assert found["five"].heading_path[-1] == "Far"
    for document in documents:
        assert all(0 <= place <= len(document.text) for place in document.anchors.values())


# Tables that are drawn with rules

GRID = """\
+----------------+----------+
| **Broker**     | Remote   |
+================+==========+
| *RabbitMQ*     | Yes, and |
|                | well     |
+----------------+----------+
| *Redis*        | No       |
+----------------+----------+
"""
SIMPLE = """\
=========  =======
Broker     Remote
=========  =======
RabbitMQ   Yes, and
           well
Redis      No
=========  =======
"""


@pytest.mark.parametrize(("drawn", "mark"), [(GRID, "*"), (SIMPLE, "")])
@pytest.mark.parametrize("indent", ["", "    "])
def test_drawn_tables_are_read_as_rows(drawn: str, mark: str, indent: str) -> None:
    rows = [
        "| Broker | Remote |",
        "| --- | --- |",
        f"| {mark}RabbitMQ{mark} | Yes, and well |",
        f"| {mark}Redis{mark} | No |",
    ]
    text = "Before.\n\n" + "".join(indent + line for line in drawn.splitlines(keepends=True)) + "\nAfter.\n"
    found = with_plain_tables(text).replace("**Broker**", "Broker")
    assert found == "Before.\n\n" + "".join(f"{indent}{row}\n" for row in rows) + "\nAfter.\n"


def test_a_drawn_table_stays_with_its_head_in_one_passage(tmp_path: Path) -> None:
    rows = "".join(f"| broker number {n} | {'yes':26} |\n+{'-' * 17}+{'-' * 28}+\n" for n in range(7))
    head = f"+{'-' * 17}+{'-' * 28}+\n| Broker          | {'Remote control':26} |\n+{'=' * 17}+{'=' * 28}+\n"
    (tmp_path / "a.rst").write_text(f"Brokers\n=======\n\n{head}{rows}")
    (document,) = read_documents([tmp_path]).documents
    tokens = lambda texts: [sum(c.isalnum() or not c.isspace() for c in text) for text in texts]  # noqa: E731
    (passage,) = chunk_documents([document], ChunkConfig(), tokens, 300)
    assert "| Broker | Remote control |" in passage.text and "| broker number 6 | yes |" in passage.text


@pytest.mark.parametrize(
    "text",
    [
        f"Code::\n\n    {GRID.replace(chr(10), chr(10) + '    ')}",
        f".. code-block:: rst\n\n   {SIMPLE.replace(chr(10), chr(10) + '   ')}",
        GRID.replace("+----------------+----------+\n| *Redis*", "+---------------------------+\n| *Redis*"),
        GRID.replace("| *Redis*        | No       |", "| *Redis*  is wider than its column | No |"),
        SIMPLE.replace("Redis      No", "Redis and what is over both"),
        "=====  =====\nno end\n",
        "+-----+\n| no end |\n",
        "Title\n=====\n\n+ one\n+ two\n\n= = =\n",
    ],
)
def test_what_is_no_even_table_stays(text: str) -> None:
    assert with_plain_tables(text) == text

"""What damaged and hostile files do to a reading: a file is read or skipped by name, whatever is in it.

Small whole files of every format are damaged at random (bytes flipped, cut, repeated, filled with what breaks parsers;
archives inside, member by member). Every file must be accounted for, its text must be storable, cut with exact offsets
and turned into queries, and none may take long.
"""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ragadapt.config import ChunkConfig, QueryConfig, ReadConfig
from ragadapt.corpus import chunk_documents, near_duplicate_groups, normalise, read_documents
from ragadapt.corpus.links import internal_links
from ragadapt.errors import EmptyCorpus
from ragadapt.queries import structural_queries
from ragadapt.values import Document
from tests.test_corpus_reading import pdf_bytes

MARKDOWN = """---
title: Pumps
tags: [water, supply]
summary: |
  Two lines
  of summary.
---

# Pumps {#pumps}

How much does a pump cost? It costs *30* euros, see [prices](b.md#prices).

- one
- two
    - inner `code`

> quoted text

| a | b |
| - | - |
| 1 | 2 |

```python
def run(x):
    return x
```

Setext
------

Last words &amp; more.
"""
RST = """=====
Pumps
=====

.. _label:

Cost
----

A pump costs ``30`` euros, see :ref:`label`.

* one
* two

+---+---+
| a | b |
+---+---+

.. note:: careful

Example::

    run(1)
"""
HTML = """<!DOCTYPE html><html><head><title>Pumps</title></head><body><nav>menu</nav><main><h1 id="p">Pumps</h1>
<p>How much? <b>30</b> euros<br>each, see <a href="b.html#x">prices</a>.</p><ul><li>one<ul><li>two</li></ul></li></ul>
<table><caption>Fees</caption><tr><th rowspan="2">A</th><th colspan="2">B</th></tr><tr><td>1</td><td>2</td></tr></table>
<pre>a<br>b</pre><form>Name <input></form><math alttext="x^2"><mi>x</mi></math></main></body></html>"""
NOTEBOOK = json.dumps(
    {
        "cells": [
            {"cell_type": "markdown", "source": ["# Pumps\n", "They cost 30 euros."]},
            {"cell_type": "code", "source": "print(1)", "outputs": [{"text": "1"}]},
            {"cell_type": "heading", "level": 2, "source": "More"},
        ],
        "metadata": {"kernelspec": {"language": "python"}, "title": "Pumps"},
        "nbformat": 4,
    }
)
JSONL = "".join(json.dumps({"_id": f"r{n}", "title": f"Row {n}", "text": f"Pump {n} costs {n} euros.", "year": 2020 + n,
                            "tags": ["a", {"b": n}]}) + "\n" for n in range(6))  # fmt: skip
CSV = "id,title,text,year\n" + "".join(f'r{n},Row {n},"Pump {n}, costs ""{n}"" euros.",{2020 + n}\n' for n in range(6))
PYTHON = '"""Pumps."""\n\nimport os\n\n\nclass Pump:\n    """A pump."""\n\n    def run(self, x):\n        # how fast?\n        return x\n'
SCRIPT = "// pumps\nexport function run(x) {\n  /** How fast? */\n  return `${x}`;\n}\n"
EML = (
    "From: a@example.org\nTo: b@example.org\nSubject: =?utf-8?q?Pumps?=\nDate: Tue, 5 Mar 2024 10:00:00 +0000\n"
    'MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary="xx"\n\n--xx\nContent-Type: text/plain; '
    "charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nA pump costs 30 =E2=82=AC.\n--xx\nContent-Type: "
    "text/html\n\n<p>A pump costs 30 euros.</p>\n--xx--\n"
)

NASTY = [
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"&#0;", b"&#xD800;", b"\x1b[2J", b"\xc2\x9b", b"\r", b"\n" * 200,
    b"[" * 400, b"{" * 400, b"(" * 400, b"<" * 400, b"<p>" * 300, b"> " * 200, b"- " * 200, b"`" * 300, b"*" * 300,
    b"_" * 300, b"#" * 300, b"|" * 300, b":" * 300, b"1e999", b"-1", b"99999999999999999999", b"NaN", b"Infinity", b"null",
    b"true", b'""', b"{}", b"[]", b"&a [*a]", b"!!int ''", b"!!python/object:os.system", b"<!ENTITY a SYSTEM 'file:///etc/passwd'>",
    b"\xef\xbb\xbf", "\u202e\u2066\u00ad\u2060".encode(), "\ufb01\uff26".encode(), b"%PDF-1.7", b"PK\x03\x04", b"endobj", b"---\n", b"\xf0\x9f\x98\x80",
]  # fmt: skip

Damage = Callable[[random.Random, bytes], bytes]


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return rng.choice((data[:a], data[b:], data[:a] + data[b:]))


def _repeat(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:b] + data[a:b] * rng.choice((1, 2, 50)) + data[b:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(NASTY) + data[at:]
    return data


def _replace(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice(NASTY) + data[at + rng.randrange(40) :]


DAMAGES: tuple[Damage, ...] = (_flip, _cut, _repeat, _insert, _replace)


def _inside(rng: random.Random, data: bytes, damage: Damage) -> bytes:
    """An archive with one member damaged, so that the damage is met behind the checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        names = [name for name in old.namelist() if old.read(name)]
        chosen = rng.choice(names)
        for name in names:
            new.writestr(name, damage(rng, old.read(name)) if name == chosen else old.read(name))
    return out.getvalue()


def _docx() -> bytes:
    docx = pytest.importorskip("docx")
    file = docx.Document()
    file.add_heading("Pumps", 1)
    file.add_paragraph("A pump costs 30 euros.")
    file.add_paragraph("one", style="List Bullet")
    table = file.add_table(2, 3)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "merged"
    table.cell(1, 2).text = "last"
    out = io.BytesIO()
    file.save(out)
    return out.getvalue()


def whole_files() -> dict[str, bytes]:
    """A small whole file of each format, by suffix."""
    return {
        ".md": MARKDOWN.encode(),
        ".rst": RST.encode(),
        ".html": HTML.encode(),
        ".txt": b"Pumps\n\nA pump costs 30 euros.\n\nHow much is it? It is cheap.\n",
        ".ipynb": NOTEBOOK.encode(),
        ".jsonl": JSONL.encode(),
        ".csv": CSV.encode(),
        ".py": PYTHON.encode(),
        ".js": SCRIPT.encode(),
        ".pdf": pdf_bytes([f"Pump {n}\nIt costs {n * 7} euros today.\nPage {n}" for n in range(1, 6)], title="Pumps"),
        ".docx": _docx(),
    }


def mutants(per_format: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of damaged files."""
    for suffix, data in whole_files().items():
        rng = random.Random(f"{seed}{suffix}")
        archive = zipfile.is_zipfile(io.BytesIO(data))
        for number in range(per_format):
            damage = DAMAGES[number % len(DAMAGES)]
            if archive and number % 3:
                changed = _inside(rng, data, damage)
            else:
                changed = damage(rng, data)
                if rng.random() < 0.3 and changed:
                    changed = rng.choice(DAMAGES)(rng, changed)
            yield f"{number:04d}{suffix}", changed


def words_of(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def check(document: Document) -> None:
    """What every later stage takes for granted of a document."""
    for text in (document.id, document.text, document.title, document.source):
        text.encode("utf-8")
    json.dumps(document.metadata, allow_nan=False).encode("utf-8")
    json.dumps(document.metadata, ensure_ascii=False).encode("utf-8")


def read_and_use(folder: Path) -> tuple[int, int]:
    """Read the folder and do to it what fit does before the model. (documents, skipped) of it."""
    names = {path.name for path in folder.iterdir()}
    try:
        result = read_documents([folder], ReadConfig())
    except EmptyCorpus:
        return 0, len(names)
    used = {document.source for document in result.documents}
    reasons = {skipped.source.split(":")[0]: skipped.reason for skipped in result.skipped}
    assert names - used - set(reasons) == set(), "neither read nor named"
    assert all(reason.strip() for reason in reasons.values())
    for document in result.documents:
        check(document)
    chunks = chunk_documents(result.documents, ChunkConfig(), words_of, 60)
    texts = {document.id: document.text for document in result.documents}
    for chunk in chunks:
        assert texts[chunk.document_id][chunk.start : chunk.end] == chunk.text
        json.dumps(dict(chunk.metadata), allow_nan=False)
    near_duplicate_groups([chunk.passage for chunk in chunks])
    [normalise(chunk.passage) for chunk in chunks]
    links = internal_links(result.documents, chunks)
    structural_queries(result.documents, chunks, links, QueryConfig(), seed=13)
    return len(used), len(names - used)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_files_are_read_or_skipped_by_name_and_never_end_the_reading(tmp_path: Path, seed: int) -> None:
    total = 0
    batch: dict[str, list[tuple[str, bytes]]] = {}
    for name, content in mutants(75, seed):
        batch.setdefault(Path(name).suffix, []).append((name, content))
    for suffix, files in batch.items():
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        for name, content in files:
            (folder / name).write_bytes(content)
        begun = time.monotonic()
        read, skipped = read_and_use(folder)
        took = time.monotonic() - begun
        assert read + skipped == len(files)
        assert took < 1.0 * len(files), f"{suffix}: {took:.1f} s for {len(files)} small files"
        total += len(files)
    assert total >= 75 * 11

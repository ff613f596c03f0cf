"""Files that break readers: each is skipped and named, within time and memory, and the others are read."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from growing import faster_than_its_size
from test_corpus_office import docx_of, p, r, tbl, tc
from test_corpus_reading import ids, pdf_bytes, reasons, write

import ragadapt
from ragadapt.config import ChunkConfig, QueryConfig, ReadConfig
from ragadapt.corpus import apart, chunk_documents, internal_links, near_duplicate_groups, read_documents
from ragadapt.corpus.decode import Unreadable
from ragadapt.corpus.files import read_content
from ragadapt.corpus.formats import Format
from ragadapt.corpus.sources import describe_sources
from ragadapt.errors import EmptyCorpus, InvalidInput
from ragadapt.queries import structural_queries
from ragadapt.store.chunks import document_hash

posix = pytest.mark.skipif(os.name == "nt", reason="names and pipes of POSIX")


# Rows


@pytest.mark.parametrize("depth", [600, 800, 950, 5_000, 100_000])
def test_deep_json_costs_its_row_at_most(tmp_path: Path, depth: int) -> None:
    deep = '{"_id": "d", "text": "x", "extra": ' + "[" * depth + "]" * depth + "}"
    write(tmp_path, {"c.jsonl": '{"_id": "a", "text": "one"}\n' + deep + '\n{"_id": "b", "text": "two"}\n'})
    result = read_documents([tmp_path])
    assert [i for i in ids(result) if i != "d"] == ["a", "b"]
    assert len(result.documents) + len(result.skipped) == 3


def test_keys_that_utf8_cannot_write_are_cleaned(tmp_path: Path) -> None:
    row = '{"_id": "\\ud800", "text": "\\ud83d\\ude00", "\\ud800": 1, "\\ud83d\\ude00": "\\udfff"}'
    write(tmp_path, {"c.jsonl": row})
    (document,) = read_documents([tmp_path]).documents
    assert (document.id, document.text, document.metadata) == ("\ufffd", "😀", {"\ufffd": 1, "😀": "\ufffd"})


@pytest.mark.parametrize(
    ("name", "lines"),
    [("c.csv", ["id,text", "1,one", "2,two"]), ("c.jsonl", ['{"id": 1, "text": "one"}', '{"id": 2, "text": "two"}'])],
)
@pytest.mark.parametrize("odd", [b"\xd8", b"a"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_an_odd_last_byte_costs_the_last_row_at_most(
    tmp_path: Path, name: str, lines: list[str], encoding: str, odd: bytes
) -> None:
    for text, expected in (("\n".join(lines), ["1"]), ("\n".join(lines) + "\n", ["1", "2"])):
        write(tmp_path, {name: text.encode(encoding) + odd})
        result = read_documents([tmp_path])
        assert ids(result) == expected
        assert list(reasons(result).values()) == ["wrongly encoded"]


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
def test_a_long_line_is_passed_over_without_being_held(tmp_path: Path, name: str) -> None:
    first, last = ("text\nfirst\n", "last\n") if name == "c.csv" else ('{"text": "first"}\n', '{"text": "last"}\n')
    with (tmp_path / name).open("w") as file:
        file.write(first)
        file.write('"' if name == "c.csv" else '{"text": "')
        for _ in range(300):
            file.write("x" * 1_000_000)
        file.write('"\n' if name == "c.csv" else '"}\n')
        file.write(last)
    code = (
        "import resource, sys; from ragadapt.corpus import read_documents; from ragadapt.config import ReadConfig\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "r = read_documents([sys.argv[1]], ReadConfig(max_file_bytes=1_000_000))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, [d.text for d in r.documents], "
        "[(s.source, s.reason) for s in r.skipped])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    kilobytes, rest = done.stdout.split(" ", 1)
    assert "['first', 'last']" in rest and f"{name}:" in rest and "over-size" in rest
    assert int(kilobytes) < 60_000


def test_a_row_that_never_closes_its_quotes_is_bounded(tmp_path: Path) -> None:
    write(tmp_path, {"c.csv": "text,x\nfirst,1\n" + '"a\n",' * 100_000 + "\nlast,2\n"})
    result = read_documents([tmp_path], ReadConfig(max_file_bytes=10_000))
    assert result.documents[0].text == "first"
    assert any("over-size" in reason for reason in reasons(result).values())


def test_bad_rows_are_listed_up_to_a_number(tmp_path: Path) -> None:
    write(tmp_path, {"c.jsonl": '{"text": "ok"}\n' + "x\n" * 5_000})
    result = read_documents([tmp_path])
    assert len(result.skipped) == 1001
    assert result.skipped[-1].source == "c.jsonl" and result.skipped[-1].reason.startswith("4,000 more rows")


def test_columns_of_numbers_are_numbers_and_codes_stay_text(tmp_path: Path) -> None:
    rows = [
        ["text", "year", "fee", "zip", "version", "mixed", "big", "huge", "gap"],
        ["a", "2024", "1.50", "01067", "1.10", "7", "1746714878034235396", "18446744073709551616", "5"],
        ["b", "-3", "20.25", "10115", "1.9", "x", "1", "2", ""],
    ]
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    write(tmp_path, {"c.csv": buffer.getvalue()})
    one, two = (document.metadata for document in read_documents([tmp_path]).documents)
    assert json.dumps(one) == json.dumps(
        {"year": 2024, "fee": 1.5, "zip": "01067", "version": "1.10", "mixed": "7", "big": 1746714878034235396}
        | {"huge": "18446744073709551616", "gap": 5}
    )
    assert json.dumps(two) == json.dumps(
        {"year": -3, "fee": 20.25, "zip": "10115", "version": "1.9", "mixed": "x", "big": 1} | {"huge": "2"}
    )


def test_numbers_with_and_without_a_fraction_are_numbers_unless_they_are_padded(tmp_path: Path) -> None:
    write(tmp_path, {"c.csv": "text,fee,version\na,19.99,1.10\nb,20,2\nc,7.5,1.9\n"})
    found = [document.metadata for document in read_documents([tmp_path]).documents]
    assert [row["fee"] for row in found] == [19.99, 20.0, 7.5]
    assert [row["version"] for row in found] == ["1.10", "2", "1.9"]


def test_spaces_after_the_delimiters_belong_to_no_cell(tmp_path: Path) -> None:
    spaced = 'id, text, year\n1, Hello there, 2024\n2, "Quoted, with a comma", 2025\n'
    write(tmp_path, {"c.csv": spaced, "d.csv": "id,text\n3, kept\n"})
    result = read_documents([tmp_path])
    assert [(d.text, dict(d.metadata)) for d in result.documents] == [
        ("Hello there", {"year": 2024}),
        ("Quoted, with a comma", {"year": 2025}),
        (" kept", {}),
    ]
    assert not result.skipped


# Names


@posix
def test_names_that_are_not_utf8_are_read_and_told_apart(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path / "docs")
    Path(os.fsdecode(top + b"/d\xe9p\\x")).mkdir(parents=True)
    names = [b"caf\xe9.md", b"\xff.md", b"caf\\xe9.md", "café.md".encode(), b"d\xe9p\\x/a.md"]
    try:
        for name in names:
            Path(os.fsdecode(top + b"/" + name)).write_text(f"text {name!r}")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    result = read_documents([tmp_path / "docs"])
    assert not result.skipped
    assert {d.id: d.text for d in result.documents} == {
        r"caf\\xe9.md": "text b'caf\\xe9.md'",
        r"\xff.md": "text b'\\xff.md'",
        r"caf\xe9.md": "text b'caf\\\\xe9.md'",
        "café.md": f"text {'café.md'.encode()!r}",
        r"d\xe9p\\x/a.md": "text b'd\\xe9p\\\\x/a.md'",
    }
    for document in result.documents:
        json.dumps([document.id, document.source, document.title]).encode()
        f"{document.id}{document.source}{document.title}".encode()


@posix
def test_a_folder_or_file_named_directly_may_have_any_name(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    root.mkdir()
    (root / "a.md").write_text("x")
    strange = Path(os.fsdecode(os.fsencode(root) + b"/new\nline\xe9.md"))
    strange.write_text("y")
    assert ids(read_documents([root])) == ["a.md", "new\nline\\xe9.md"]
    assert ids(read_documents([strange])) == ["new\nline\\xe9.md"]
    json.dumps(describe_sources([root], False, [strange])).encode()
    str(describe_sources([root], False, [strange])).encode()
    (root / "a.md").write_text("")
    strange.write_text("")
    with pytest.raises(EmptyCorpus) as caught:
        read_documents([root])
    str(caught.value).encode()


@posix
def test_names_that_differ_in_composition_alone_are_both_read(tmp_path: Path) -> None:
    write(tmp_path, {"cafe\u0301.md": "apart", "caf\u00e9.md": "one"})
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes them for one")
    assert {d.id: d.text for d in read_documents([tmp_path]).documents} == {
        "caf\u00e9.md": "one",
        "cafe\u0301.md": "apart",
    }


@pytest.mark.parametrize("path", ["\0", "a\0b", "\ud800", "x" * 5000])
def test_what_no_path_can_be_is_refused_in_words(path: str) -> None:
    with pytest.raises(InvalidInput, match="no file or folder"):
        read_documents([path])


# Links, pipes, devices


@posix
def test_links_out_of_the_documents_are_followed_only_when_asked(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"docs/a.md": "a", "docs/sub/b.md": "b", "other/secret.md": "s", "other/deep/c.md": "c", "docs2/z.md": "z"},
    )
    docs = tmp_path / "docs"
    (docs / "passwd.txt").symlink_to("/etc/passwd")
    (docs / "out").symlink_to(tmp_path / "other")
    (docs / "sub" / "file.md").symlink_to("../../other/secret.md")
    (docs / "near").symlink_to(tmp_path / "docs2")
    (docs / "inside.md").symlink_to("sub/b.md")
    (tmp_path / "named").symlink_to(docs)
    result = read_documents([docs])
    assert ids(result) == ["a.md", "sub/b.md"]
    led_out = {name for name, reason in reasons(result).items() if "follow_links" in reason}
    assert led_out == {"passwd.txt", "out", "sub/file.md", "near"}
    assert ids(read_documents([tmp_path / "named"])) == ["a.md", "sub/b.md"]
    assert "near" not in {
        n for n, why in reasons(read_documents([docs, tmp_path / "docs2"])).items() if "follow" in why
    }
    followed = ids(read_documents([docs], ReadConfig(follow_links=True)))
    assert {"out/secret.md", "out/deep/c.md", "passwd.txt", "near/z.md"} <= set(followed)


@posix
def test_pipes_and_devices_are_neither_waited_for_nor_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "x", "sub/b.md": "y"})
    for name in (".gitignore", "pipe.md", "sub/.gitignore", "rows.jsonl"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    result = read_documents([tmp_path], ReadConfig(follow_links=True))
    assert ids(result) == ["a.md", "sub/b.md"]
    assert all("not a regular file" in reason for reason in reasons(result).values())
    assert set(reasons(result)) == {".gitignore", "pipe.md", "rows.jsonl", "sub/.gitignore", "zero.txt"}


def test_rules_without_measure_are_not_applied_and_named(tmp_path: Path) -> None:
    stars = "*a" * 30 + "b"
    write(tmp_path, {".gitignore": f"drafts/\n{stars}\n", "drafts/x.md": "x", "a" * 200 + ".md": "y"})
    result = read_documents([tmp_path])
    assert len(result.documents) == 1
    assert "stars" in reasons(result)[".gitignore"]
    write(tmp_path, {".gitignore": "x\n" * 6_000 + "# more\n"})
    assert reasons(read_documents([tmp_path]))[".gitignore"].startswith("1,000 of its rules")
    write(tmp_path, {".gitignore": "a.md\n" * 100_000})
    assert "over-size" in reasons(read_documents([tmp_path]))[".gitignore"]


# Time and memory


def test_what_takes_too_long_ends_and_the_next_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = apart._BOOT.replace(
        "from ragadapt.corpus.apart import serve",
        "import time, ragadapt.corpus.apart as apart\n"
        "from ragadapt.corpus.apart import serve\nread = apart.read_content\n"
        "def slow(data, **request):\n"
        "    if b'sleep' in data: time.sleep(600)\n"
        "    if b'crash' in data: import os; os.abort()\n"
        "    if b'memory' in data: bytearray(10**10)\n"
        "    if b'strange' in data: raise LookupError('odd')\n"
        "    return read(data, **request)\n"
        "apart.read_content = slow",
    )
    monkeypatch.setattr(apart, "_BOOT", boot)
    apart._close()
    bad = ("sleep", "crash", "memory", "strange")
    write(tmp_path, {**{f"{n}.md": n for n in bad}, **{f"ok{n}.md": "fine" for n in range(3)}, "z.md": "fine"})
    try:
        started = time.monotonic()
        result = read_documents([tmp_path], ReadConfig(seconds_per_file=2))
        assert time.monotonic() - started < 20
    finally:
        apart._close()
    assert ids(result) == ["ok0.md", "ok1.md", "ok2.md", "z.md"]
    found = reasons(result)
    assert "longer than 2 s" in found["sleep.md"] and "seconds_per_file" in found["sleep.md"]
    assert "broke down" in found["crash.md"]
    assert "LookupError: odd" in found["strange.md"]
    if sys.platform == "linux":
        assert "memory_per_file_bytes" in found["memory.md"]


def test_where_no_process_can_be_started_files_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.md": "# One"})
    apart._close()
    for executable in ("", str(tmp_path / "none"), "/bin/true" if os.name != "nt" else ""):
        monkeypatch.setattr(sys, "executable", executable)
        assert [d.title for d in read_documents([tmp_path]).documents] == ["One"]


@pytest.mark.parametrize("first", ["", "."])
def test_modules_that_lie_among_the_documents_are_not_run(tmp_path: Path, first: str) -> None:
    ran = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    names = ("json", "yaml", "lxml", "pypdf", "ragadapt", "markdown_it")
    write(tmp_path / "docs", {**{f"{name}.py": ran for name in names}, "a.md": "# One", "b.pdf": pdf_bytes(["x"])})
    root = str(Path(ragadapt.__file__).parents[1])
    # as in a console that was started among the documents, once its own imports are done
    code = (
        f"import sys; sys.path.remove(''); sys.path.insert(0, {root!r}); from ragadapt.corpus import read_documents\n"
        f"import ragadapt.corpus.read; sys.path.insert(0, {first!r}); print(len(read_documents(['.']).documents))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "docs", capture_output=True, text=True)
    assert done.stdout.strip() == "8", done.stderr
    assert not (tmp_path / "ran").exists()


@posix
def test_a_reader_that_died_while_it_waited_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "# One"})
    read_documents([tmp_path])
    for process in apart._idle:
        os.kill(process._popen.pid, signal.SIGKILL)
    assert ids(read_documents([tmp_path])) == ["a.md"]


@posix
def test_a_fork_uses_a_reader_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "# One"})
    read_documents([tmp_path])
    assert apart._idle
    code = (
        "import os, sys; from ragadapt.corpus import read_documents, apart\n"
        "read_documents([sys.argv[1]]); pid = os.fork()\n"
        "titles = [read_documents([sys.argv[1]]).documents[0].title for _ in range(20)]\n"
        "if pid: sys.exit(os.waitpid(pid, 0)[1] or titles != ['One'] * 20)\n"
        "os._exit(titles != ['One'] * 20)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60).returncode == 0


def zipped(parts: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def with_part(package: bytes, name: str, data: bytes, *, claimed: int | None = None) -> bytes:
    """The package with another part, whose size in the directory is `claimed`."""
    buffer = io.BytesIO(package)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
        if claimed is not None:
            archive.getinfo(name).file_size = claimed
    return buffer.getvalue()


def test_pictures_are_not_unpacked_and_text_no_further_than_its_budget() -> None:
    import tracemalloc

    image = with_part(docx_of(p(r("Words."))), "word/media/image1.png", b"\0" * 200_000_000)
    tracemalloc.start()
    try:
        assert read_content(image, "docx", "a.docx", None, 10**7).text == "Words."
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    long = docx_of(p(r("x" * 30_000_000)))
    with pytest.raises(Unreadable, match="over-size"):
        read_content(long, "docx", "a.docx", None, 10**6)


def pdf_with_kids(count: int) -> bytes:
    """A PDF whose page tree names one page `count` times."""
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%s]>>" % (count, b"3 0 R " * count),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length 44>>stream\nBT /F1 12 Tf 72 700 Td (Only once here.) Tj ET \nendstream",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(out)
    return (
        out
        + b"xref\n0 6\n0000000000 65535 f \n"
        + table
        + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start
    )


@pytest.mark.parametrize("where", ["attribute", "text"])
def test_entities_are_not_unpacked(where: str) -> None:
    bombs = "".join(f"<!ENTITY e{k} '{f'&e{k - 1};' * 10 if k else 'words'}'>" for k in range(10))
    body = p(r("&e9;")) if where == "text" else '<w:p w:a="&e9;"/>'
    package = docx_of(body)
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["word/document.xml"] = f"<!DOCTYPE w [{bombs}]>".encode() + parts["word/document.xml"]
    with pytest.raises(Unreadable, match="entities"):
        read_content(zipped(parts), "docx", "a.docx", None, 10**7)


def test_a_page_named_again_and_again_is_read_once() -> None:
    content = read_content(pdf_with_kids(500), "pdf", "a.pdf", None, 10**7)
    assert content.text.strip() == "Only once here."
    assert content.metadata == {"pages": 500}
    assert "499 pages" in content.notes[0]


def xlsx_of(rows: list[list[object]]) -> bytes:
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("S")
    for row in rows:
        sheet.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def wide_and_tall(n: int) -> str:
    return tbl([tc(p(r("h"))) for _ in range(n)], *([tc(p(r("x")))] for _ in range(n)), columns=n)


def cyclic_styles(n: int) -> bytes:
    styles = "".join(
        f'<w:style w:styleId="s{k}"><w:name w:val="n"/><w:basedOn w:val="s{k + 1}"/></w:style>' for k in range(n)
    )
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    return docx_of(p(r("x"), style="s0"), styles=f'<w:styles xmlns:w="{space}">{styles}</w:styles>')


GROWING: dict[str, tuple[Format, Callable[[int], bytes], int]] = {
    "docx paragraphs": ("docx", lambda n: docx_of(p(r("a b")) * n), 500),
    "docx runs": ("docx", lambda n: docx_of(p(r("a ") * n)), 500),
    "docx wide and tall table": ("docx", lambda n: docx_of(wide_and_tall(n)), 200),
    "docx grid columns": ("docx", lambda n: docx_of(tbl(*([tc(p(r("x")))] for _ in range(n)), columns=n)), 200),
    "docx spans": ("docx", lambda n: docx_of(tbl([tc(properties=f'<w:gridSpan w:val="{10**9}"/>')] * n)), 200),
    "docx styles": ("docx", cyclic_styles, 500),
    "docx attributes": ("docx", lambda n: docx_of("<w:p " + "".join(f" w:a{k}='1'" for k in range(n)) + "/>"), 500),
    "docx list items": ("docx", lambda n: docx_of(p(r("- x")) * n), 500),
    "pdf pages": ("pdf", lambda n: pdf_bytes([f"Head\nText {k}\nMore\n{k}" for k in range(n)]), 25),
    "pdf one page": ("pdf", pdf_with_kids, 1000),
    "pdf lines": ("pdf", lambda n: pdf_bytes(["\n".join(f"Line {k} exam-" for k in range(n))] * 5), 50),
    "pdf long line": ("pdf", lambda n: pdf_bytes(["- " * n] * 5), 500),
    "pdf garbage": ("pdf", lambda n: b"%PDF-1.4\n" + b"1 0 obj\n" * n + b"startxref\n5\n%%EOF", 500),
    "xlsx rows": ("xlsx", lambda n: xlsx_of([["a", "b", k] for k in range(n)]), 200),
    "xlsx wide head": ("xlsx", lambda n: xlsx_of([["h"] * n, *([["a", "b"]] * n)]), 150),
    "xlsx far cells": ("xlsx", lambda n: xlsx_of([[None] * 500 + ["x"]] * n), 20),
    "json deep": ("json", lambda n: b"[" * n + b'"one two three four five"' + b"]" * n, 5000),
    "json wide": ("json", lambda n: json.dumps({f"k{k}": "one two three four" for k in range(n)}).encode(), 2000),
    "json rows": ("json", lambda n: json.dumps([{"text": "x"}] * n).encode(), 2000),
    "json numbers": ("json", lambda n: b"[" + b"9" * n + b', "one two three four"]', 1000),
}  # fmt: skip


def seconds_for(data: bytes, format: Format) -> float:
    started = time.process_time()
    with suppress(Unreadable):
        read_content(data, format, "a." + format, None, 50_000_000)
    return time.process_time() - started


@pytest.mark.parametrize("kind", GROWING)
def test_time_grows_with_size_and_no_faster(kind: str) -> None:
    format, make, size = GROWING[kind]
    while size < 16 * GROWING[kind][2] and seconds_for(make(size), format) < 0.01:
        size *= 2
    assert not faster_than_its_size(lambda n: seconds_for(make(n), format), size)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
@pytest.mark.parametrize("piece", ['{"text": "x", "a": [1]}\n', "x\n", '"', '"a\n",', "\n", ",", '{"a":', "\x0b"])
def test_rows_take_time_in_proportion(tmp_path: Path, name: str, piece: str) -> None:
    def seconds(n: int) -> float:
        (tmp_path / name).write_text(("text,b\nx,y\n" if name == "c.csv" else '{"text": "x"}\n') + piece * n)
        started = time.process_time()
        read_documents([tmp_path])
        return time.process_time() - started

    assert not faster_than_its_size(seconds, 2_500)


# Mutations


def seeds(folder: Path) -> dict[str, bytes]:
    """One sound file of every format, by suffix."""
    import pptx

    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "Title", "Words of the slide"
    slide.notes_slide.notes_text_frame.text = "Notes of it"
    show.save(str(folder / "seed.pptx"))
    book = {"cells": [{"cell_type": "markdown", "source": ["# A\n", "b"]}, {"cell_type": "code", "source": "x = 1"}]}
    markdown = "---\ntitle: A\ntags: [x, {y: 1}]\n---\n# One\n\n> - a\n>   1. b\n\n"
    markdown += "| a | b |\n| - | - |\n| 1 | 2 |\n\n```py\nx\n```\n"
    return {
        "pptx": (folder / "seed.pptx").read_bytes(),
        "docx": docx_of(p(r("Words"), style="Heading1") + tbl([tc(p(r("a"))), tc(tbl([tc(p(r("b")))]))]) + p(r("end"))),
        "xlsx": xlsx_of([["a", "b"], [1, "text"], [None, 2.5]]),
        "pdf": pdf_bytes([f"Head\nText {k} exam-\nple\n{k}" for k in range(5)]),
        "json": json.dumps({"title": "A", "steps": [{"do": "Open the lid of it first."}] * 3}).encode(),
        "jsonl": b'{"id": 1, "text": "one", "tags": ["a", {"b": 2}]}\n{"id": 2, "text": "two"}\n',
        "csv": b'id,text,year\n1,"one, two",2020\n2,"line\nbreak",2021\n',
        "ipynb": json.dumps({**book, "metadata": {"kernelspec": {"language": "python"}}}).encode(),
        "html": b"<title>T</title><h1>A</h1><p>b <a href='c.html'>c</a></p><table><tr><td>d</table><pre>e<br>f</pre>",
        "md": markdown.encode(),
        "rst": b"A\n=\n\ntext\n\n.. note:: b\n\n::\n\n  c\n\n+---+\n| d |\n+---+\n",
        "txt": "naïve text, 漢字.\n\nmore\n".encode(),
        "py": b'"""Doc."""\n\ndef f(x):\n    return x\n',
        "epub": zipped(
            {
                "mimetype": b"application/epub+zip",
                "META-INF/container.xml": b"<container><rootfile full-path='b.opf'/></container>",
                "b.opf": b"<package><metadata><title>T</title></metadata><manifest>"
                b"<item id='a' href='a.xhtml' media-type='application/xhtml+xml'/></manifest>"
                b"<spine><itemref idref='a'/></spine></package>",
                "a.xhtml": b"<html><body><h1>A</h1><p>How much is it? It is cheap.</p></body></html>",
            }
        ),
        "eml": b"From: a@example.org\nSubject: =?utf-8?q?Pumps?=\nDate: Tue, 5 Mar 2024 10:00:00 +0000\n"
        b'MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary="xx"\n\n'
        b"--xx\nContent-Type: text/plain; charset=utf-8\n"
        b"Content-Transfer-Encoding: quoted-printable\n\nA pump costs 30 =E2=82=AC.\n--xx\nContent-Type: text/html\n\n"
        b"<p>A pump costs 30 euros.</p>\n--xx--\n",
    }


_STRANGE = (
    *(b"\x00", b"\xff\xfe", b"<", b"{", b"[" * 300, b"9" * 400, b"\\ud800", b"-1", b"&", b'"', b"\xed\xa0\x80"),
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The file with one to eight places changed, parts taken out, doubled or swapped; in zips also inside the parts."""
    if data[:2] == b"PK" and draw.random() < 0.7:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        parts_that_say = r"document\.xml|slide1\.xml|sheet1\.xml|rels$|workbook|styles|opf$|xhtml$|container"
        chosen = draw.choice([name for name in parts if re.search(parts_that_say, name)])
        parts[chosen] = mutated(parts[chosen], draw)
        return zipped(parts)
    content = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(content) + 1)
        to = min(len(content), at + draw.choice((1, 4, 40, 400)))
        piece = bytes(content[at:to])
        noise = bytes(draw.randrange(256) for _ in piece)
        content[at:to] = draw.choice((b"", piece * 3, noise, draw.choice(_STRANGE)))
    return bytes(content)


@pytest.mark.slow
def test_mutated_files_are_read_or_named_and_nothing_else(tmp_path: Path) -> None:
    """1,050 files, 70 of each format: every one is a document or is named, and what is read can be stored, cut with
    exact offsets, compared and asked about."""
    draw = random.Random(13)
    made = {}
    for suffix, seed in seeds(tmp_path).items():
        for n in range(70):
            made[f"{suffix}{n}.{suffix}"] = mutated(seed, draw)
    write(tmp_path / "docs", dict(made))
    started = time.monotonic()
    result = read_documents([tmp_path / "docs"], ReadConfig())
    assert time.monotonic() - started < 900
    named = {s.source.rsplit(":", 1)[0] if re.search(r":\d+$", s.source) else s.source for s in result.skipped}
    assert named | {d.source for d in result.documents} == set(made)
    assert not [s for s in result.skipped if "longer than" in s.reason or "broke down" in s.reason]
    for document in result.documents:
        told = [document.id, document.text, document.title, document.metadata]
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
        document_hash(document)
        assert all(0 <= start < len(document.text) for start, _ in document.places)
    chunks = chunk_documents(result.documents, ChunkConfig(), lambda texts: [len(t.split()) for t in texts], 60)
    texts = {document.id: document.text for document in result.documents}
    assert all(texts[chunk.document_id][chunk.start : chunk.end] == chunk.text for chunk in chunks)
    near_duplicate_groups([chunk.passage for chunk in chunks])
    links = internal_links(result.documents, chunks)
    structural_queries(result.documents, chunks, links, QueryConfig(), seed=13)
    print(f"{len(made)} files: {len(result.documents)} documents, {len(result.skipped)} skipped")

"""A visible word is in a passage: what an independent tool sees in a file of each format, once and in order.

RAGADAPT_ORACLE=folder runs it over the files of a folder as well, and lists those that fall short.
"""

from __future__ import annotations

import difflib
import email
import email.message
import email.policy
import html
import io
import json
import os
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from test_corpus_html import book, chapter
from test_corpus_reading import pdf_bytes

from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents, read_documents
from ragadapt.corpus.formats import structure_of
from ragadapt.errors import EmptyCorpus
from ragadapt.values import Chunk, Document

RECALL = 0.999
ORDER = 0.98  # of pairs of neighbours: marks between words, and what notes say was left out, part some


def words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text.replace("\u00ad", "")).casefold()
    return re.findall(r"[^\W_]+", folded)


# What we say


def passages(document: Document, size: int = 60) -> list[Chunk]:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    return chunk_documents([document], ChunkConfig(), count, size)


def said(document: Document, size: int = 60) -> list[str]:
    """The words of a document's passages. Text that two passages share counts once. What they repeat by design counts
    where it first stands: headings, and their beginnings where the whole of them stands in a text. A title that the
    file's text does not say does not count."""
    found: list[str] = []
    path: tuple[str, ...] = ()
    end = 0
    chunks = passages(document, size)
    lines = {tuple(words(_unmarked(line))) for chunk in chunks for line in chunk.text.splitlines()}
    whole = {tuple(words(_unmarked(line))) for line in document.text.splitlines()}
    body = " ".join(word for chunk in chunks for word in words(_unmarked(chunk.text)))
    in_code = structure_of(document) in ("python", "code")  # there the path repeats names that stand in the code
    for chunk in chunks:
        same = 0
        while same < min(len(path), len(chunk.heading_path)) and path[same] == chunk.heading_path[same]:
            same += 1
        for heading in chunk.heading_path[same:]:
            new = tuple(words(heading))
            unsaid = heading == document.title and new not in whole
            unsaid |= len(new) > 4 and " ".join(new) in body  # a part of a title that no passage has room for
            if not in_code and not unsaid and not any(line[: len(new)] == new for line in lines):
                found += [] if any(len(line) > 3 and new[: len(line)] == line for line in lines) else new
        path = chunk.heading_path
        found += words(_unmarked(document.text[max(end, chunk.start) : chunk.end]))
        end = max(end, chunk.end)
    return found


TARGET = r"\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?:\s\"[^\"]*\")?\)"


def _unmarked(text: str) -> str:
    """Markdown without what it does not show: targets, anchors, languages of code, tags; and the numbers of items.

    Code shows all that it holds.
    """
    out: list[str] = []
    fence = ""
    for line in text.split("\n"):
        bare = re.sub(r"^(?:[ >]|- |\d+\. )*", "", line)
        if fence:
            fence = "" if bare.startswith(fence) and not bare.strip("`~ ") else fence
            out.append(line if fence else "")
        elif opening := re.match(r"(`{3,}|~{3,})[\w+#-]*$", bare):
            fence = opening[1]
            out.append("")
        else:
            line = re.sub(r"^((?:[ >]|- )*)(?:\d+\. )+", r"\1", line)
            line = re.sub(r"^</?(?:div|p)>|</(?:div|p)>$", "", line)
            for _ in range(2):  # pictures stand in links
                line = re.sub(rf"!?\[([^\[\]]*)\]{TARGET}", r"\1", line)
            line = re.sub(rf"\]{TARGET}", "]", line)
            line = re.sub(r"^((?:[ >]|- |\d+\. )*#{1,6} .*)\{#[^\s{}]+\}$", r"\1", line)
            parts = re.split(r"(`+[^`]+`+)", line)
            out.append("".join(part.strip("`") if n % 2 else html.unescape(part) for n, part in enumerate(parts)))
    return "\n".join(out)


@dataclass(frozen=True)
class Verdict:
    missing: list[str]
    invented: list[str]

    def __bool__(self) -> bool:
        return not self.missing and not self.invented


def compare(seen: list[str], document: Document, size: int = 60) -> Verdict:
    """Word by word, in order."""
    ours = said(document, size)
    missing, invented = [], []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, seen, ours, autojunk=False).get_opcodes():
        if kind != "equal":
            missing += seen[a:b]
            invented += ours[c:d]
    return Verdict(missing, invented)


# What others see


def of_html(data: bytes) -> list[str]:
    """What Inscriptis shows, block after block in the page's order, with the words that stand for pictures."""
    from inscriptis.css_profiles import CSS_PROFILES
    from inscriptis.html_engine import Inscriptis
    from inscriptis.model.config import ParserConfig
    from lxml import html as pages

    tree = pages.fromstring(
        data.decode("utf-8", "replace").encode(), parser=pages.HTMLParser(encoding="utf-8", huge_tree=True)
    )
    for each in tree.iter():
        if each.tag in ("table", "caption", "tr", "td", "th", "ul", "ol", "li"):
            each.tag = "div"  # it would draw cells side by side, and marks before items
        if each.tag == "img":
            each.tag, each.text = "span", each.get("alt")
        for part in ("text", "tail"):  # it takes escapes for signs twice
            if isinstance(each.tag, str) and getattr(each, part):
                setattr(each, part, getattr(each, part).replace("&", "&amp;"))
    with_limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        return words(Inscriptis(tree, ParserConfig(css=CSS_PROFILES["strict"])).get_text())
    finally:
        sys.setrecursionlimit(with_limit)


ATTRIBUTES = r"\{:?[ \t]*(?:(?:[#.][^\s{}#]+|[\w:.-]+=(?:\"[^\"]*\"|'[^']*'|[^\s{}\"'=]+)|-)[ \t]*)+\}"


def of_markdown(data: bytes) -> list[str]:
    """As CommonMark shows it with tables, attribute lists and front matter."""
    import yaml

    text = data.decode().replace("\r\n", "\n")
    if front := re.match(r"---\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", text, re.S):
        with suppress(yaml.YAMLError):
            if isinstance(yaml.safe_load(front[1]), dict):
                text = text[front.end() :]
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(text)
    for before, token in pairwise(tokens):
        pieces = token.children or []
        for n, piece in enumerate(pieces):
            if piece.type == "text":
                alone = n == 0 or pieces[n - 1].type == "softbreak"
                ends = n + 1 == len(pieces) or pieces[n + 1].type == "softbreak"
                if (
                    n
                    and not alone
                    and pieces[n - 1].type in ("link_close", "image", "code_inline", "strong_close", "em_close")
                ):
                    piece.content = re.sub(rf"\A ?{ATTRIBUTES}", "", piece.content)
                if ends and (before.type == "heading_open" or alone):
                    piece.content = re.sub(rf"(?:\A|(?<=\S)|\s){ATTRIBUTES}\Z", "", piece.content)
    return of_html(parser.renderer.render(tokens, parser.options, {}).encode())


def of_rst(data: bytes) -> list[str]:
    from docutils import nodes
    from docutils.core import publish_parts
    from docutils.parsers.rst import Directive, directives, roles

    class Options(dict[str, Callable[[str], str]]):
        def __getitem__(self, name: str) -> Callable[[str], str]:
            return lambda value: value or ""

    class OfSphinx(Directive):
        """A directive that docutils does not know: what stands in it. Lists of contents show what stands elsewhere."""

        has_content, optional_arguments, final_argument_whitespace, option_spec = True, 1, True, Options()

        def run(self) -> list[nodes.Node]:
            if self.name in ("contents", "toctree", "sidebar"):
                return []
            if "code" in self.name:
                return [nodes.literal_block("", "\n".join(self.content))]
            box = nodes.container()
            self.state.nested_parse(self.content, self.content_offset, box, match_titles=True)
            return [box]

    def role(name: str, raw: str, text: str, *rest: object) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        return [nodes.inline(raw, re.sub(r"\s*<[^<>]*>$", "", text).lstrip("~!."))], []

    known, known_roles = directives.directive, roles.role
    keep = ("note", "warning", "admonition", "topic", "image", "figure", "table", "code")
    directives.directive = lambda n, *rest: known(n, *rest) if n in keep else (OfSphinx, [])
    roles.role = lambda *given: (role, [])
    try:
        settings = {"report_level": 5, "file_insertion_enabled": False, "raw_enabled": False, "doctitle_xform": False}
        body = publish_parts(data.decode(), writer="html5", settings_overrides=settings)["html_body"]
    finally:
        directives.directive, roles.role = known, known_roles
    page = BeautifulSoup(body, "lxml")
    for each in page.select(".system-message, aside.system-message, .problematic"):
        each.decompose()
    return of_html(str(page).encode())


def of_pdf(data: bytes) -> list[str]:
    import pypdfium2

    with pypdfium2.PdfDocument(data) as file:
        return words("\n".join(page.get_textpage().get_text_range() for page in file))


def of_office(data: bytes, parts: str, tag: str, paragraph: str) -> list[str]:
    """The text nodes of an office file's XML, paragraph by paragraph, in the order of its parts."""
    found: list[str] = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(parts, name)]
        for name in sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
            for each in ElementTree.fromstring(archive.read(name)).iter():
                if each.tag.endswith(paragraph):
                    found += words("".join(t.text or "" for t in each.iter() if t.tag.endswith(tag)))
    return found


def of_docx(data: bytes) -> list[str]:
    return of_office(data, r"word/document\.xml", "}t", "}p")


def of_pptx(data: bytes) -> list[str]:
    return of_office(data, r"ppt/slides/slide\d+\.xml", "}t", "}p")


def of_xlsx(data: bytes) -> list[str]:
    from openpyxl import load_workbook

    book = load_workbook(io.BytesIO(data), data_only=True)
    found = []
    for sheet in book:
        found += words(sheet.title)
        for row in sheet.iter_rows(values_only=True):
            found += words(" ".join(str(value) for value in row if value is not None))
    return found


def of_notebook(data: bytes) -> list[str]:
    found = []
    for cell in json.loads(data)["cells"]:
        source = "".join(cell["source"])
        found += of_markdown(source.encode()) if cell["cell_type"] == "markdown" else words(source)
    return found


def of_epub(data: bytes) -> list[str]:
    found = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        opf = next(name for name in archive.namelist() if name.endswith(".opf"))
        package = BeautifulSoup(archive.read(opf), "xml")
        for reference in package.find_all("itemref"):
            item = package.find("item", id=reference["idref"])
            if item is not None and "nav" not in (item.get("properties") or "").split():
                found += of_html(archive.read(os.path.normpath(Path(opf).parent / str(item["href"]))))
    return found


def of_eml(data: bytes) -> list[str]:
    message = email.message_from_bytes(data, policy=email.policy.default)
    body = message.get_body(("plain", "html"))
    assert body is not None
    text = body.get_content()
    return of_html(text.encode()) if body.get_content_type() == "text/html" else words(text)


def of_json(data: bytes) -> list[str]:
    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [s for key, item in value.items() for s in [key, *strings(item)]]
        return [s for item in value for s in strings(item)] if isinstance(value, list) else [str(value)]

    return words(" ".join(strings(json.loads(data))))


def of_text(data: bytes) -> list[str]:
    return words(data.decode())


ORACLES: dict[str, Callable[[bytes], list[str]]] = {
    ".html": of_html,
    ".md": of_markdown,
    ".rst": of_rst,
    ".pdf": of_pdf,
    ".docx": of_docx,
    ".pptx": of_pptx,
    ".xlsx": of_xlsx,
    ".ipynb": of_notebook,
    ".epub": of_epub,
    ".eml": of_eml,
    ".json": of_json,
    ".txt": of_text,
    ".py": of_text,
}


# Small files of each format

SENTENCE = "The quick fee number {n} is due on day {n} and costs {n} euros unless the same same fee is waived. "
LONG = "".join(SENTENCE.format(n=n) for n in range(9))


def html_pages() -> list[bytes]:
    deep = "".join(f"<font><p>Entry {n}" for n in range(260))
    rows = (
        "<table><caption>Fees in force</caption><tr><th>Region<th>Plan<th>Fee<tr><td rowspan=2>EU<td>Basic<td>10"
        "<tr><td>Pro<td>20<tr><td colspan=2>Other<td>30</table>"
    )
    form = (
        f"<form><h1>Pay</h1><p>{LONG}</p><fieldset><legend>Who </legend><label>Name <input></label></fieldset></form>"
    )
    many = "".join(
        f"<h2>Part {n}</h2><p>{SENTENCE.format(n=n)}</p><ul><li>One {n}<ul><li>Two {n}</li></ul></li></ul>"
        for n in range(12)
    )
    odd = (
        "<pre>a<br>b<div>c</div></pre><dl><dt>Term <dd>Meaning </dl><details><summary>More </summary>Body </details>"
        "<figure><figcaption>Cap</figcaption></figure><h2>Vec&lt;T&gt; &amp; co</h2><p>&lt;div&gt; is a tag"
    )
    layout = f"<table><tr><td><h2>Left</h2>{LONG}<tr><td><h3>Right</h3>Side</table>"
    return [page.encode() for page in (deep, rows, form, many, odd, layout, f"<h1>{LONG}</h1><p>After.")]


def markdown_files() -> list[bytes]:
    rules = "---\n\nProse.\n\nNote: wear gloves.\n\n---\n\nTail\n"
    front = "---\ntitle: T\ntags: [a]\n---\n\n# Head\n\nBody words.\n"
    setext = f"{LONG}\n---\n\nAfter it.\n"
    atx = f"# {LONG}\n\nAfter it.\n\n## Two `code` *em*\n\n" + "".join(
        f"- item {n}\n  - inner {n}\n" for n in range(40)
    )
    table = "# T\n\n| a | b |\n| --- | --- |\n" + "".join(f"| left {n} | right {n} |\n" for n in range(60))
    quote = "> quoted words\n>\n> > deeper\n\n```python\nx = 1\n```\n\n1. one\n2. two\n\n<div>inside html</div>\n"
    return [text.encode() for text in (rules, front, setext, atx, table, quote, LONG * 10)]


def rst_files() -> list[bytes]:
    title = f"{LONG.strip()}\n{'=' * len(LONG)}\n\nAfter it.\n"
    parts = "Top\n===\n\n" + "".join(
        f"Part {n}\n{'-' * 8}\n\n{SENTENCE.format(n=n)}\n\n* one {n}\n* two {n}\n\n" for n in range(12)
    )
    table = "=====  =====\nleft   right\n=====  =====\none    two\n=====  =====\n"
    blocks = f"Top\n===\n\nText::\n\n    literal words\n\n{table}"
    rule, line = f"+{'-' * 30}+{'-' * 30}+\n", "| {:28} | {:28} |\n"
    grid = rule + line.format("Name of it", "Meaning") + rule.replace("-", "=")
    for n in range(12):
        grid += line.format(f"first {n}", f"sense {n}") + line.format("", f"goes on {n}") + rule
    merged = f"{rule}{line.format('a cell', 'another')}{rule[:31]}-{rule[32:]}| {'over both of them':59} |\n{rule}"
    tables = f"Top\n===\n\nText\n\n{grid}\nBetween\n\n{merged}\nEnd\n"
    return [text.encode() for text in (title, parts, blocks, tables)]


def pdf_files() -> list[bytes]:
    questions = [f"Question {n}\nHow much is item {n}?\nIt costs {3 * n + 4} euros." for n in range(1, 6)]
    invoices = [f"Invoice {n}\nTotal {7 * n}" for n in range(1, 7)]
    return [pdf_bytes(questions), pdf_bytes(invoices), pdf_bytes(["Only page\nwith two lines"])]


def docx_files() -> list[bytes]:
    import docx
    from docx.oxml import parse_xml

    names = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    file = docx.Document()
    file.add_heading("Handbook", 1)
    for n in range(12):
        file.add_heading(f"Part {n}", 2)
        file.add_paragraph(SENTENCE.format(n=n))
        file.add_paragraph(f"item {n}", style="List Bullet")
    table = file.add_table(2, 3)
    table.cell(0, 0).merge(table.cell(0, 2)).text = "Merged over three"
    for place, text in enumerate(("one", "two", "three")):
        table.cell(1, place).text = text
    table.cell(1, 2).add_table(1, 1).cell(0, 0).text = "nested"
    last = file.add_paragraph("Before ")
    last._p.append(parse_xml(f"<w:ins {names}><w:r><w:t>inserted </w:t></w:r></w:ins>"))
    last._p.append(parse_xml(f"<w:sdt {names}><w:sdtContent><w:r><w:t>controlled</w:t></w:r></w:sdtContent></w:sdt>"))
    buffer = io.BytesIO()
    file.save(buffer)
    return [buffer.getvalue()]


def pptx_files() -> list[bytes]:
    from pptx import Presentation

    file = Presentation()
    for n in range(1, 13):
        slide = file.slides.add_slide(file.slide_layouts[1])
        slide.shapes.title.text = f"Slide on fee {n}"
        slide.placeholders[1].text = f"First line {n}\nSecond line {n}"
    buffer = io.BytesIO()
    file.save(buffer)
    return [buffer.getvalue()]


def xlsx_files() -> list[bytes]:
    from openpyxl import Workbook

    file = Workbook()
    sheet = file.active
    sheet.title = "Fees"
    sheet.append(["Region", "Plan", "Fee"])
    for n in range(18):  # the reader repeats the head of a longer sheet
        sheet.append([f"Region {n}", "Basic" if n % 2 else "Pro", n * 10])
    buffer = io.BytesIO()
    file.save(buffer)
    return [buffer.getvalue()]


def notebooks() -> list[bytes]:
    cells = [{"cell_type": "markdown", "metadata": {}, "source": ["# Look\n", "Some text."]}]
    for n in range(12):
        cells.append({"cell_type": "markdown", "metadata": {}, "source": [f"## Part {n}\n\n{SENTENCE.format(n=n)}"]})
        cells.append({"cell_type": "code", "metadata": {}, "outputs": [], "source": [f"x{n} = {n}\n", f"print(x{n})"]})
    return [json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()]


def books() -> list[bytes]:
    chapters = {
        f"c{n}.xhtml": chapter(f"<h1>Chapter {n}</h1><p>{LONG}</p><table><tr><td>a {n}</td></tr></table>")
        for n in range(4)
    }
    nav = chapter("<nav><ol><li><a href='c0.xhtml'>Chapter 0</a></li></ol></nav>")
    return [book({"nav.xhtml": nav, **chapters}, nav="nav.xhtml")]


def mails() -> list[bytes]:
    plain, rich = email.message.EmailMessage(), email.message.EmailMessage()
    for message in (plain, rich):
        message["From"], message["Subject"] = "ann@example.org", "Fees"
    plain.set_content(f"Hello,\n\n{LONG}\n\n-- \nAnn\n")
    plain.add_alternative(f"<p>{LONG}", subtype="html")
    rich.set_content(f"<h1>News</h1><p>{LONG}<form><p>Reply</form>", subtype="html")
    return [bytes(plain), bytes(rich)]


FILES: dict[str, Callable[[], list[bytes]]] = {
    ".html": html_pages,
    ".md": markdown_files,
    ".rst": rst_files,
    ".pdf": pdf_files,
    ".docx": docx_files,
    ".pptx": pptx_files,
    ".xlsx": xlsx_files,
    ".ipynb": notebooks,
    ".epub": books,
    ".eml": mails,
    ".json": lambda: [json.dumps({"first": LONG, "more": ["and", "so on"]}).encode()],
    ".txt": lambda: [LONG.encode(), "\n\n".join(SENTENCE.format(n=n) for n in range(60)).encode()],
    ".py": lambda: [("def f():\n    '''" + LONG + "'''\n\n\n" + "class A:\n    x = 1\n" * 40).encode()],
}


@pytest.mark.parametrize("size", [30, 60, 250])
@pytest.mark.parametrize("suffix", FILES)
def test_every_visible_word_is_in_a_passage_once_and_in_order(suffix: str, size: int, tmp_path: Path) -> None:
    for place, data in enumerate(FILES[suffix]()):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / f"file{suffix}").write_bytes(data)
        documents = read_documents([folder]).documents
        whole = documents[0] if len(documents) == 1 else Document("all", "\n\n".join(d.text for d in documents))
        assert compare(ORACLES[suffix](data), whole, size) == Verdict([], []), (suffix, place)


def test_the_comparison_sees_what_is_missing_repeated_invented_or_moved() -> None:
    seen = words("# Head one two three two four five six")
    for text, verdict in (
        ("# Head\n\none two three two four five six", Verdict([], [])),
        ("# Head\n\none two two four five six", Verdict(["three"], [])),
        ("# Head\n\none two three two four four five six", Verdict([], ["four"])),
        ("# Head\n\none two three two four five six seven", Verdict([], ["seven"])),
        ("# Head\n\none two three two five six four", Verdict(["four"], ["four"])),
    ):
        found = compare(seen, Document("a.md", text, "Head", {}, "a.md"))
        assert (sorted(found.missing), sorted(found.invented)) == (verdict.missing, verdict.invented), text


# A folder of real files


def _less_what_was_told(data: bytes, suffix: str, documents: Sequence[Document]) -> bytes:
    """A file without the parts that the notes on it name."""
    notes = [note for document in documents for note in document.notes]
    if suffix == ".html":
        return _page_less(data, notes or _notes_of_page(data))
    return _less_includes(data, notes) if suffix == ".md" else data


def _notes_of_page(data: bytes) -> Sequence[str]:
    from ragadapt.corpus.html import read_html

    return read_html(data).notes


def _page_less(data: bytes, notes: Sequence[str]) -> bytes:
    page = BeautifulSoup(data, "lxml")
    kinds = {
        "navigation": "nav, [role=navigation]",
        "page header and footer": "footer, [role=banner], [role=contentinfo]",
        "form controls": "button, select, textarea",
        "search form": "search, [role=search]",
        "hidden text": "[hidden], [style*='display:none'], [style*='display: none'], dialog:not([open])",
        "text for browsers without scripts or frames": "noscript",
    }
    for each in page.select(
        ", ".join([*(kinds[note] for note in notes if note in kinds), "script", "[aria-hidden=true]"])
    ):
        each.decompose()
    if "text outside the page's main part" in notes:
        page = page.select_one("main, [role=main], article") or page
    return str(page).encode()


def _less_includes(data: bytes, notes: Sequence[str]) -> bytes:
    """Markdown without the includes and references to source code that the notes name."""
    lines: list[str] = []
    gone = [note[len("include of ") :].split(": ")[0] for note in notes if note.startswith("include of ")]
    options = -1  # the indent of the reference whose options follow
    for line in data.decode("utf-8", "replace").splitlines():
        indent = len(line) - len(line.lstrip())
        if options >= 0 and line.strip() and indent > options:
            continue
        options = options if not line.strip() else -1
        if re.match(r"\s*:::\s+[\w.]+$", line) and any(line.split()[1] in note for note in notes):
            options, line = indent, line.replace(":::", "")
        elif re.match(r"\s*(?:\{[*!%{]|-{1,2}8<)", line) and any(target in line for target in gone):
            continue
        lines.append(line)
    return "\n".join(lines).encode()


def _kept(document: Document) -> str:
    """A text less the words that stand neither in its passages nor in the headings that these name."""
    text = document.text
    found: list[str] = []
    end = 0
    for chunk in passages(document):
        said_above = set(words(" ".join((*chunk.heading_path, document.title))))
        between = text[end : max(end, chunk.start)]
        found.append(re.sub(r"[^\W_]+", lambda m: m[0] if said_above.issuperset(words(m[0])) else "", between))  # noqa: B023
        found.append(text[max(end, chunk.start) : max(end, chunk.end)])
        end = max(end, chunk.end)
    return "".join(found)


def _shown(document: Document, suffix: str) -> list[str]:
    """The words that a reader of the passages sees: by the tool of their file's format where they are written in it."""
    kept = _kept(document)
    if suffix in (".md", ".ipynb"):
        return of_markdown(kept.encode())
    if suffix in (".rst", ".txt", ".py"):
        return ORACLES[suffix](kept.encode())
    return words(_unmarked(kept))


@pytest.mark.parametrize("suffix", [".md", ".rst", ".html", ".txt"])
def test_words_that_no_passage_holds_are_missing(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "First words stand here.\n\n```\nx = code\n```\n\nOther [words](lost) follow.\n"
    document = Document(f"a{suffix}", text, "T", {}, f"a{suffix}")
    parts = (0, 25), (text.index("Other"), len(text))
    whole = [Chunk(f"a#{n}", document.id, text[a:b], ("T",), a, b, {}, "") for n, (a, b) in enumerate(parts)]
    for chunks, said in ((whole, "first words stand here other words follow"), (whole[:1], "first words stand here")):
        monkeypatch.setitem(globals(), "passages", lambda document, chunks=chunks: chunks)
        found = " ".join(_shown(document, suffix))
        assert "code" not in found and found.replace("words lost", "words") == said


@pytest.mark.skipif("RAGADAPT_ORACLE" not in os.environ, reason="RAGADAPT_ORACLE names a folder of files")
def test_files_of_a_folder_keep_their_words(tmp_path: Path) -> None:
    short = []
    files = [path for path in sorted(Path(os.environ["RAGADAPT_ORACLE"]).rglob("*")) if path.suffix in ORACLES]
    for path in files:
        data = path.read_bytes()
        why = ""
        try:
            documents = read_documents([path]).documents
        except EmptyCorpus as error:
            documents, why = [], str(error)
        try:
            seen = ORACLES[path.suffix](_less_what_was_told(data, path.suffix, documents))
        except Exception as error:
            print(f"{path}: the other tool fails: {error}"[:200])
            continue
        if not documents:
            if seen:
                short.append(f"{path}: {why}"[:300])
            continue
        ours = [word for document in documents for word in _shown(document, path.suffix)]
        titles = words(" ".join(document.title for document in documents))
        source = seen
        if path.suffix == ".html":  # which of these are kept depends on their use
            page = BeautifulSoup(data, "lxml")
            source = source + words(" ".join(e.get_text(" ") for e in page.select("[aria-hidden=true], button")))
        missing, invented = Counter(seen) - Counter(ours) - Counter(titles), Counter(ours) - Counter(source + titles)
        pairs = Counter(pairwise(seen))
        order = 1 - (pairs - Counter(pairwise(ours))).total() / max(1, pairs.total())
        lost, new = missing.total() / max(1, len(seen)), invented.total() / max(1, len(ours))
        if lost > 1 - RECALL or new > 1 - RECALL or order < ORDER:
            short.append(
                f"{path}: {len(seen)} words, {lost:.2%} lost {list(missing)[:8]}, {new:.2%} invented "
                f"{list(invented)[:8]}, order {order:.3f}"
            )
    print(f"{len(files)} files, {len(short)} fall short")
    assert not short, "\n".join(short)

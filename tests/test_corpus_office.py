"""PDF, Word, PowerPoint, Excel and JSON: every visible word, where it stands, and what is left out on purpose."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ragadapt.config import ChunkConfig, ReadConfig
from ragadapt.corpus import chunk_documents, read_documents
from ragadapt.corpus.decode import Unreadable
from ragadapt.corpus.files import read_content
from ragadapt.store.chunks import document_hash
from ragadapt.values import Document

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
MC = "http://schemas.openxmlformats.org/markup-compatibility/2006"
WPS = "http://schemas.microsoft.com/office/word/2010/wordprocessingShape"
M = "http://schemas.openxmlformats.org/officeDocument/2006/math"


def pdf_of(pages: Iterable[Iterable[tuple[float, float, float, str]]], rotate: int = 0) -> bytes:
    """A PDF of lines (x, y, size, text) in Helvetica."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica", "/Encoding": "/WinAnsiEncoding"}
    font = writer._add_object(DictionaryObject({NameObject(k): NameObject(v) for k, v in names.items()}))
    for lines in pages:
        page = writer.add_blank_page(width=595, height=842)
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        drawn = (f"BT /F1 {size} Tf 1 0 0 1 {x} {y} Tm ({text}) Tj ET" for x, y, size, text in lines)
        stream.set_data("\n".join(drawn).encode("cp1252"))
        page[NameObject("/Contents")] = writer._add_object(stream)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def block(*texts: str, top: float = 700, left: float = 72, size: float = 12) -> list[tuple[float, float, float, str]]:
    return [(left, top - 14 * place, size, text) for place, text in enumerate(texts)]


def pdf_text(data: bytes) -> str:
    return read_content(data, "pdf", "a.pdf", None, 10**7).text


# PDF: running heads and feet


@pytest.mark.parametrize(
    "lines",
    [
        ("Question {n}", "How much is item {n}?", "It costs {m} euros."),
        ("Question {n}", "How much is item {n}?", "It costs {n} euros."),
        ("Invoice {n}", "Total {m}"),
        ("Invoice {n}", "Total 10"),
        ("Step {n}: open the lid", "Wait.", "Then go to step {m}"),
        ("Room", "{n}"),
        ("{n}",),
        ("ACME – page {n}",),
        ("Only these words",),
        ("The same sentence closes every page.", "Text of its own {m}", "Call us before you dig."),
        ("This is page {n} of our story", "It goes on {m}"),
    ],
)
@pytest.mark.parametrize("count", [4, 5, 12])
def test_lines_of_content_stay_on_every_page(lines: tuple[str, ...], count: int) -> None:
    pages = [[line.format(n=n, m=3 * n + 4) for line in lines] for n in range(1, count + 1)]
    text = pdf_text(pdf_of(block(*page) for page in pages))
    assert text == "\n\n".join("\n".join(page) for page in pages)


@pytest.mark.parametrize(
    ("head", "foot"),
    [
        ("ACME Handbook", "{n}"),
        ("ACME Handbook – page {n}", "Confidential."),
        ("ACME Handbook  |  {n}", "Page {n} of 12"),
        ("Seite {n}", "- {n} -"),
        ("Chapter by chapter   {n}", "{n}/12"),
    ],
)
def test_heads_and_feet_apart_from_the_text_go_and_are_reported(head: str, foot: str) -> None:
    pages = [
        [(72, 800, 9, head.format(n=n)), *block(f"Text {n * 7} begins.", "It goes on."), (290, 40, 9, foot.format(n=n))]
        for n in range(1, 13)
    ]
    content = read_content(pdf_of(pages), "pdf", "a.pdf", None, 10**7)
    assert content.text == "\n\n".join(f"Text {n * 7} begins.\nIt goes on." for n in range(1, 13))
    assert len(content.notes) == 2
    for line in (head, foot):
        assert any(" ".join(line.format(n="N").split()) in note and "12 pages" in note for note in content.notes)


def test_a_head_stays_on_a_page_that_has_nothing_else() -> None:
    pages = [[(72, 800, 9, "ACME Handbook"), *(block(f"Text {n}.") if n > 1 else [])] for n in range(1, 7)]
    text = pdf_text(pdf_of(pages))
    assert text == "ACME Handbook\n\n" + "\n\n".join(f"Text {n}." for n in range(2, 7))


def test_left_and_right_pages_may_have_heads_of_their_own() -> None:
    heads = ("{n}  ACME Handbook", "On pumps  {n}")
    pages = [[(72, 800, 9, heads[n % 2].format(n=n)), *block(f"Text {n * 5}.")] for n in range(1, 13)]
    assert pdf_text(pdf_of(pages)) == "\n\n".join(f"Text {n * 5}." for n in range(1, 13))


def test_headings_that_count_with_the_pages_stay_though_they_stand_apart() -> None:
    pages = [[(72, 780, 20, f"Question {n}"), *block(f"How much is {n * 3}?", "Tell us.")] for n in range(1, 8)]
    assert pdf_text(pdf_of(pages)).count("Question") == 7


def test_soft_hyphens_at_line_ends_rejoin() -> None:
    text = pdf_text(pdf_of([block("An example of it.", "A fore\xad", "cast of rain.")]))
    assert text.split("\n")[1] == "A forecast"


def test_pages_that_are_pictures_are_told() -> None:
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of([block("Words."), [], []]))))
    image = DecodedStreamObject()
    image[NameObject("/Subtype")] = NameObject("/Image")
    shown = DictionaryObject({NameObject("/I"): writer._add_object(image)})
    writer.pages[1][NameObject("/Resources")] = DictionaryObject({NameObject("/XObject"): shown})
    buffer = io.BytesIO()
    writer.write(buffer)
    content = read_content(buffer.getvalue(), "pdf", "a.pdf", None, 10**7)
    assert content.notes == ("1 pages are pictures without text: scanned ones need OCR first",)


def test_charts_and_comments_of_sheets_are_told() -> None:
    import openpyxl
    from openpyxl.chart import BarChart, Reference
    from openpyxl.comments import Comment

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["a", 1])
    sheet["A1"].comment = Comment("look", "me")
    chart = BarChart()
    chart.add_data(Reference(sheet, min_col=2, min_row=1))
    sheet.add_chart(chart)
    buffer = io.BytesIO()
    book.save(buffer)
    notes = " ".join(read_content(buffer.getvalue(), "xlsx", "a.xlsx", None, 10**7).notes)
    assert "charts are left out (1)" in notes and "comments of sheets are left out (1)" in notes


def test_values_of_form_fields_and_typed_text_are_read() -> None:
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject, TextStringObject

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of([block("Name and city:")]))))

    def annotation(subtype: str, **values: Any) -> Any:
        entries = {"/Subtype": NameObject(subtype), **{f"/{key}": value for key, value in values.items()}}
        return writer._add_object(DictionaryObject({NameObject(key): value for key, value in entries.items()}))

    writer.pages[0][NameObject("/Annots")] = ArrayObject(
        [
            annotation("/Widget", V=TextStringObject("Ada Lovelace")),
            annotation("/Widget", Parent=DictionaryObject({NameObject("/V"): TextStringObject("London")})),
            annotation("/Widget", V=NameObject("/Yes")),
            annotation("/Widget", V=TextStringObject("unseen"), F=NumberObject(2)),
            annotation("/FreeText", Contents=TextStringObject("Urgent")),
        ]
    )
    buffer = io.BytesIO()
    writer.write(buffer)
    assert pdf_text(buffer.getvalue()) == "Name and city:\nAda Lovelace\nLondon\nUrgent"


# Places


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def chunks_of(document: Document, tokens: int = 20) -> list[Any]:
    return chunk_documents([document], ChunkConfig(min_tokens=2), lambda ts: [len(words_of(t)) for t in ts], tokens)


def test_passages_of_a_pdf_know_their_page(tmp_path: Path) -> None:
    pages = [block(*(f"Line {k} speaks of subject p{n} at some exam-" for k in range(6)), "ple") for n in range(1, 6)]
    (tmp_path / "a.pdf").write_bytes(pdf_of([*pages[:2], [], *pages[2:]]))
    (document,) = read_documents([tmp_path]).documents
    found = chunks_of(document)
    assert len(found) > 6
    for chunk in found:
        number = int(re.search(r"p(\d)", chunk.text)[1])  # type: ignore[index]
        assert chunk.metadata == {"pages": 6, "page": number if number < 3 else number + 1}


def test_documents_without_places_keep_the_hash_that_they_had() -> None:
    plain = Document("a", "text", "title", {"k": 1}, "a.md")
    assert document_hash(plain) == "61ca14cbb58600e041c47f2d6d9b742a340e9f04fb035b629a01c6baa2a7ae54"
    one, two = (
        document_hash(Document("a", "text", "title", {"k": 1}, "a.md", places=((0, {"page": n}),))) for n in (1, 2)
    )
    assert len({document_hash(plain), one, two}) == 3


# Word


def docx_of(body: str, **parts: str) -> bytes:
    """A Word file of raw XML. parts: name of a part in word/ → XML; its kind is its name."""
    import docx

    buffer = io.BytesIO()
    docx.Document().save(buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.namelist():
            data = old.read(item)
            if item == "word/document.xml":
                spaces = f'xmlns:w="{W}" xmlns:mc="{MC}" xmlns:wps="{WPS}" xmlns:m="{M}" xmlns:v="urn:v"'
                data = f"<w:document {spaces}><w:body>{body}</w:body></w:document>".encode()
            elif item == "word/_rels/document.xml.rels":
                kinds = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
                rels = "".join(
                    f'<Relationship Id="x{n}" Type="{kinds}/{n.rstrip("0123456789")}" Target="{n}.xml"/>' for n in parts
                )
                if "styles" in parts:
                    data = re.sub(rb"<Relationship [^>]*styles\.xml[^>]*>", b"", data)
                data = data.replace(b"</Relationships>", rels.encode() + b"</Relationships>")
            if item != "word/styles.xml" or "styles" not in parts:
                new.writestr(item, data)
        for name, xml in parts.items():
            new.writestr(f"word/{name}.xml", xml)
    return out.getvalue()


def p(*inner: str, style: str = "", properties: str = "") -> str:
    named = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f"<w:p><w:pPr>{named}{properties}</w:pPr>{''.join(inner)}</w:p>"


def r(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def tc(*blocks: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{''.join(blocks) or '<w:p/>'}</w:tc>"


def tbl(*rows: Iterable[str], columns: int = 3) -> str:
    grid = "<w:tblGrid>" + "<w:gridCol/>" * columns + "</w:tblGrid>"
    return "<w:tbl>" + grid + "".join(f"<w:tr>{''.join(row)}</w:tr>" for row in rows) + "</w:tbl>"


def docx_text(body: str, **parts: str) -> str:
    return read_content(docx_of(body, **parts), "docx", "a.docx", None, 10**7).text


def sdt(inner: str) -> str:
    return f"<w:sdt><w:sdtPr><w:alias w:val='no'/></w:sdtPr><w:sdtContent>{inner}</w:sdtContent></w:sdt>"


def test_content_controls_give_their_text_in_blocks_lines_rows_and_cells() -> None:
    body = (
        sdt(p(r("Block"), sdt(r(" inside")), r(" end")))
        + sdt(sdt(p(r("Twice"))))
        + tbl([tc(sdt(p(r("cell"))))], columns=1)
        + "<w:tbl>" + sdt("<w:tr>" + sdt(tc(p(r("wrapped")))) + tc(p(r("plain"))) + "</w:tr>") + "</w:tbl>"
    )  # fmt: skip
    assert docx_text(body) == ("Block inside end\n\nTwice\n\n| cell |\n| --- |\n\n| wrapped | plain |\n| --- | --- |")


def test_tracked_changes_are_read_as_accepted_and_reported() -> None:
    body = (
        p(r("We "), f"<w:ins>{r('do ')}</w:ins>", "<w:del><w:r><w:delText>do not </w:delText></w:r></w:del>", r("pay."))
        + f"<w:ins>{p(r('Added.'))}</w:ins>"
        + p(f"<w:moveFrom>{r('Moved. ')}</w:moveFrom>", r("Here."), f"<w:moveTo>{r(' Moved.')}</w:moveTo>")
        + "<w:tbl><w:tr><w:trPr><w:del/></w:trPr>" + tc(p(r("gone"))) + "</w:tr><w:tr>" + tc(p(r("a"))) + tc(p(r("b")))
        + "</w:tr></w:tbl>"
        + p(r("secret", "<w:vanish/>"), r("shown", '<w:vanish w:val="0"/>'))
    )  # fmt: skip
    content = read_content(docx_of(body), "docx", "a.docx", None, 10**7)
    assert content.text == "We do pay.\n\nAdded.\n\nHere. Moved.\n\n| a | b |\n| --- | --- |\n\nshown"
    assert any("deleted" in note for note in content.notes)
    assert any("hidden" in note for note in content.notes)


def test_merged_cells_appear_once_under_their_columns() -> None:
    span, down, on = '<w:gridSpan w:val="3"/>', '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    body = tbl(
        [tc(p(r("Whole")), properties=span)],
        [tc(p(r("EU")), properties=down), tc(p(r("Basic"))), tc(p(r("10")))],
        [tc(properties=on), tc(p(r("Pro"))), tc(p(r("20")))],
    )
    assert docx_text(body) == "| Whole |  |  |\n| --- | --- | --- |\n| EU | Basic | 10 |\n|  | Pro | 20 |"


@pytest.mark.parametrize("span", [10**6, 10**9, -5])
def test_a_cell_that_claims_to_span_any_number_of_columns_spans_those_there_are(span: int) -> None:
    body = tbl([tc(p(r("a")), properties=f'<w:gridSpan w:val="{span}"/>'), tc(p(r("b")))], columns=2)
    assert docx_text(body) == "| a | b |\n| --- | --- |"


def test_tables_in_tables_keep_their_words_in_order() -> None:
    inner = tbl([tc(p(r("x"))), tc(p(r("y")))], [tc(p(r("z"))), tc(tbl([tc(p(r("deep")))], columns=1))], columns=2)
    body = tbl([tc(p(r("before")), inner, p(r("after"))), tc(p(r("beside")))], columns=2)
    assert words_of(docx_text(body)) == ["before", "x", "y", "z", "deep", "after", "beside"]
    framed = docx_text(tbl([tc(p(r("before")), inner, p(r("after")))], columns=1))
    assert framed == "before\n\n| x | y |\n| --- | --- |\n| z | deep |\n\nafter"


def test_text_boxes_footnotes_formulas_and_breaks_are_read_once() -> None:
    box = f"<w:txbxContent>{p(r('In the box.'))}</w:txbxContent>"
    choice = f"<mc:Choice Requires='wps'><w:drawing><wps:txbx>{box}</wps:txbx></w:drawing></mc:Choice>"
    fallback = f"<mc:Fallback><w:pict><v:textbox>{box}</v:textbox></w:pict></mc:Fallback>"
    boxed = f"<w:r><mc:AlternateContent>{choice}{fallback}</mc:AlternateContent></w:r>"
    note = '<w:r><w:footnoteReference w:id="2"/></w:r>'
    math = "<m:oMath><m:f><m:num><m:r><m:t>a</m:t></m:r></m:num><m:den><m:r><m:t>b</m:t></m:r></m:den></m:f></m:oMath>"
    pieces = "<w:r><w:t>co</w:t><w:noBreakHyphen/><w:t>op</w:t><w:tab/><w:t>so</w:t><w:softHyphen/><w:t>ft</w:t></w:r>"
    link = f"<w:hyperlink>{r('link')}</w:hyperlink>"
    field = (
        "<w:r><w:fldChar/><w:instrText>PAGEREF x</w:instrText></w:r><w:fldSimple w:instr='DATE'>"
        + r("7 May")
        + "</w:fldSimple>"
    )
    body = p(r("Start"), note, boxed, r(" end.")) + p(pieces) + p(link, r(" "), field) + p(r("So "), math)
    footnotes = (
        f'<w:footnotes xmlns:w="{W}"><w:footnote w:type="separator" w:id="0">{p(r("no"))}</w:footnote>'
        f'<w:footnote w:id="2">{p(r("The note."))}</w:footnote></w:footnotes>'
    )
    assert docx_text(body, footnotes=footnotes) == (
        "Start[^2] end.\n\n[^2]: The note.\n\nIn the box.\n\nco-op soft\n\nlink 7 May\n\nSo (a)/(b)"
    )


def test_headings_are_known_by_style_in_any_language_and_by_outline() -> None:
    styles = (
        f'<w:styles xmlns:w="{W}"><w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>'
        '<w:style w:styleId="Eigene"><w:name w:val="Mein Stil"/><w:basedOn w:val="berschrift2"/></w:style>'
        '<w:style w:styleId="Kreis"><w:name w:val="x"/><w:basedOn w:val="Kreis"/></w:style>'
        '<w:style w:styleId="Punkte"><w:name w:val="p"/>'
        '<w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr></w:style>'
        "</w:styles>"
    )
    outline = '<w:outlineLvl w:val="0"/>'
    body = (
        p(r("Eins"), style="berschrift2")
        + p(r("Zwei"), style="Eigene")
        + p(r("Drei"), properties=outline)
        + p(r("Text"), style="berschrift2", properties='<w:outlineLvl w:val="9"/>')
        + p(r("rund"), style="Kreis")
        + p(r("Punkt"), style="Punkte")
    )
    assert docx_text(body, styles=styles) == "## Eins\n\n## Zwei\n\n# Drei\n\nText\n\nrund\n\n- Punkt"


def test_what_word_files_leave_out_is_reported_and_reaches_the_result(tmp_path: Path) -> None:
    header = f'<w:hdr xmlns:w="{W}">{p(r("ACME internal"))}</w:hdr>'
    body = p(r("Words."), '<w:r><w:commentReference w:id="1"/></w:r>')
    (tmp_path / "a.docx").write_bytes(docx_of(body, header1=header))
    result = read_documents([tmp_path])
    assert result.documents[0].text == "Words."
    assert {note.source for note in result.notes} == {"a.docx"}
    told = " ".join(note.reason for note in result.notes)
    assert "ACME internal" in told and "1 comments" in told


def test_the_report_lists_what_was_left_out() -> None:
    from types import SimpleNamespace

    from ragadapt.pipeline.report import corpus_facts

    documents = [Document("a", "x", source="a.pdf", notes=("heads", "feet")), Document("b", "y")]
    corpus = SimpleNamespace(chunks=(), groups=())
    part = corpus_facts(documents, corpus, [])  # type: ignore[arg-type]
    assert [(note.source, note.reason) for note in part.notes] == [("a.pdf", "heads"), ("a.pdf", "feet")]
    assert part.notes_total == 2


# PowerPoint and Excel


def test_slides_give_titles_tables_groups_and_notes_with_their_number(tmp_path: Path) -> None:
    import pptx
    from pptx.util import Inches

    show = pptx.Presentation()
    for number in (1, 2):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.placeholders[1].text_frame.text = f"First point of slide{number}"
        paragraph = slide.placeholders[1].text_frame.add_paragraph()
        paragraph.text, paragraph.level = "below it", 1
        slide.shapes.title.text = f"Title {number}"
    cells = slide.shapes.add_table(2, 2, Inches(1), Inches(1), Inches(4), Inches(1)).table
    for place, text in enumerate(("Plan", "Fee", "Pro", "20")):
        cells.cell(place // 2, place % 2).text = text
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, 10, 10).text_frame.text = "Grouped words"
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    show.save(str(tmp_path / "s.pptx"))
    (document,) = read_documents([tmp_path]).documents
    assert document.text == (
        "# Title 1\n\nFirst point of slide1\n- below it\n\n# Title 2\n\nFirst point of slide2\n- below it\n\n"
        "| Plan | Fee |\n| --- | --- |\n| Pro | 20 |\n\nGrouped words\n\nNotes: Say it slowly."
    )
    assert document.title == "Title 1"
    assert [(c.metadata["slide"], "slide2" in c.text) for c in chunks_of(document, 24)][:2] == [(1, False), (2, True)]


def test_sheets_become_tables_with_dates_shares_and_their_place(tmp_path: Path) -> None:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Prices"
    for row in (
        ["Valid from May"],
        ["Item", "Since", "Share", "Price"],
        ["Pump", datetime.date(2024, 5, 6), 0.25, 1200.0],
        [None, None, None, None],
        ["Seal", datetime.datetime(2024, 5, 7, 8, 30), 0.5, 1.75],
    ):
        sheet.append(row)
    sheet["C3"].number_format = "0%"
    hidden = book.create_sheet("Old")
    hidden["B2"], hidden.sheet_state = "kept", "hidden"
    long = book.create_sheet("Long")
    long.append(["Code", "Meaning"])
    for n in range(50):
        long.append([f"E{n}", f"meaning {n}"])
    book.save(tmp_path / "b.xlsx")
    result = read_documents([tmp_path])
    (document,) = result.documents
    assert document.text.startswith(
        "# Prices\n\nValid from May\n\n| Item | Since | Share | Price |\n| --- | --- | --- | --- |\n"
        "| Pump | 2024-05-06 | 25% | 1200 |\n\n"
        "| Seal | 2024-05-07 08:30:00 | 0.5 | 1.75 |\n| --- | --- | --- | --- |\n\n"
        "# Old\n\nkept\n\n# Long\n\n| Code | Meaning |\n| --- | --- |\n| E0 | meaning 0 |\n"
    )
    assert re.findall(r"E\d+ ", document.text) == [f"E{n} " for n in range(50)]
    assert document.text.count("| Code | Meaning |") == 3
    assert "'Old' is hidden" in result.notes[0].reason
    found = chunks_of(document, 60)
    long_ones = [c for c in found if c.metadata["sheet"] == "Long"]
    assert len(long_ones) >= 3 and long_ones[0].metadata["row"] == 1
    for chunk in long_ones[1:]:
        assert chunk.metadata["row"] == int(re.search(r"E(\d+)", chunk.text)[1]) + 2, chunk.text
    for chunk in found:
        assert ("| E" in chunk.text) == (chunk.metadata["sheet"] == "Long")


def test_formulas_without_saved_values_are_told(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["=1+1", "=2+2"])
    book.save(tmp_path / "f.xlsx")
    book.active.append(["Sum"])
    book.save(tmp_path / "g.xlsx")
    result = read_documents([tmp_path])
    assert [d.text for d in result.documents] == ["# Sheet\n\nSum"]
    assert "2 formulas" in result.notes[0].reason
    assert "formulas" in result.skipped[0].reason


# JSON


def test_lists_of_texts_are_rows_and_prose_is_lines(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "one"}, {"id": 2, "text": "two", "year": 2024}, {"id": 3}]
    guide = {"title": "Guide", "steps": [{"do": "Open the lid of the pump first."}, "Then wait for ten minutes."]}
    files: dict[str, Any] = {
        "rows.json": rows,
        "inside.json": {"version": 1, "data": [{"id": "x", "content": "three"}]},
        "guide.json": guide,
        "package.json": {
            "name": "x",
            "version": "1.0.0",
            "scripts": {"build": "tsc -p ."},
            "description": "A tool to do it",
        },
    }
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "bad.json").write_text("{not json")
    result = read_documents([tmp_path])
    assert [(d.id, d.text) for d in result.documents] == [
        ("guide.json", "title: Guide\nsteps:\n  - do: Open the lid of the pump first.\n  - Then wait for ten minutes."),
        ("x", "three"),
        ("1", "one"),
        ("2", "two"),
    ]
    assert result.documents[0].title == "Guide"
    found = {s.source: s.reason for s in result.skipped}
    assert found["rows.json:3"].startswith("no field text")
    assert "settings" in found["package.json"] and "malformed" in found["bad.json"]
    asked = read_documents([tmp_path], ReadConfig(include=("package.json", "bad.json")))
    assert [d.text for d in asked.documents] == [
        "{not json",
        "name: x\nversion: 1.0.0\nscripts:\n  build: tsc -p .\ndescription: A tool to do it",
    ]


def test_an_object_with_a_text_is_a_document_as_its_line_of_jsonl_would_be(tmp_path: Path) -> None:
    text = "Open the lid of the pump first."
    steps = {"body": text, "steps": [{"do": f"Then wait for {n} minutes until it is dry."} for n in range(5)]}
    files: dict[str, Any] = {
        "a.json": {"title": "Pump", "text": text, "url": "https://example.org", "tags": ["x"], "metadata": {"year": 2}},
        "b.json": {"id": "b7", "Body": f"{text}\nThen wait."},
        "few.json": {"text": "button", "id": "ok", "help": "Says that all is well and goes on."},
        "own.json": {"question": "What comes first, and what next?", "note": "lid"},
        "steps.json": steps,
        "strange.json": {"text": text, "id": {"no": "id"}},
    }
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    read = {document.source: document for document in read_documents([tmp_path]).documents}
    metadata = {"url": "https://example.org", "tags": ["x"], "year": 2}
    assert read["a.json"] == Document("a.json", text, "Pump", metadata, "a.json")
    assert read["b.json"] == Document("b7", f"{text}\nThen wait.", "", {}, "b.json")
    assert read["few.json"].text == "text: button\nid: ok\nhelp: Says that all is well and goes on."
    assert read["steps.json"].text.count("until it is dry") == 5
    assert "no: id" in read["strange.json"].text and text in read["strange.json"].text
    named = read_documents([tmp_path / "own.json"], ReadConfig(text_field="note")).documents
    assert [(d.id, d.text, d.title) for d in named] == [("own.json", "lid", "What comes first, and what next?")]


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx"])
@pytest.mark.parametrize("data", [b"PK\x03\x04", b"", b"\xd0\xcf\x11\xe0" + b"\0" * 600, b"<xml/>"])
def test_what_is_no_office_file_is_named_and_skipped(name: str, data: bytes) -> None:
    with pytest.raises(Unreadable, match=r"damaged|password"):
        read_content(data, name[2:], name, None, 10**6)  # type: ignore[arg-type]

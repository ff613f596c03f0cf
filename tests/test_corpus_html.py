# ruff: noqa: E501 — pages are easier to read in one line
"""HTML as a browser shows it, EPUB books and e-mails: every visible word once, in order, in linear time."""

from __future__ import annotations

import email.message
import io
import re
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from growing import faster_than_its_size
from test_corpus_reading import write

from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents, read_documents
from ragadapt.corpus.decode import Unreadable
from ragadapt.corpus.eml import read_eml
from ragadapt.corpus.epub import read_epub
from ragadapt.corpus.html import html_content, read_html


def text_of(page: str) -> str:
    return html_content(page).text.strip()


# HTML


@pytest.mark.parametrize("depth", [260, 1_000, 3_000, 50_000])
@pytest.mark.parametrize(
    "element",
    ["<font><p>Entry {n}", "<div>Entry {n} ", "<ul><li>Entry {n}", "<table><tr><td>Entry {n}", "<b>Entry {n} "],
)
def test_text_at_any_depth_is_read_in_order(depth: int, element: str) -> None:
    text = text_of("<h1>Top</h1>" + "".join(element.format(n=n) for n in range(depth)) + "</p> End")
    assert [int(n) for n in re.findall(r"Entry (\d+)", text)] == list(range(depth))
    assert text.startswith("# Top") and text.rstrip("* |-\n").endswith("End")


@pytest.mark.parametrize(
    ("page", "text"),
    [
        # forms
        ("<form><h1>Pay</h1><p>Until May.</p><label>Name <input></label><button>Go</button></form>", "# Pay\n\nUntil May.\n\nName"),
        ("<p>Name<input>Age<select><option>1</select>years</p>", "Name Age years"),
        ("<fieldset><legend>Address</legend>Street</fieldset>", "Address\n\nStreet"),
        ("<h3><button>How do I reset?</button></h3>So.", "### How do I reset?\n\nSo."),
        ("<h3>Function f <button>Copy path</button></h3>So.", "### Function f\n\nSo."),
        # preformatted text
        ("<pre>a<br>b</pre>", "```\na\nb\n```"),
        ("<pre><div>a</div><div>b</div></pre>", "```\na\nb\n```"),
        ("<pre><ol><li>a</li><li>b</li></ol></pre>", "```\na\nb\n```"),
        ("<pre>x <span>y</span> <code>z</code></pre>", "```\nx y z\n```"),
        ("<pre><span style='display:block'>a</span><span style='display: block'>b</span></pre>", "```\na\nb\n```"),
        ("<pre><table><tr><td>1</td><td>f()</td></tr><tr><td>2</td><td>g()</td></tr></table></pre>", "| 1 | f() |\n| --- | --- |\n| 2 | g() |"),
        ("<xmp>a &lt; b</xmp>", "```\na &lt; b\n```"),
        ("<pre>run()<button>Copy</button></pre>", "```\nrun()\n```"),
        # words in unusual places
        ("<figure><img alt='A map'><figcaption>Where</figcaption></figure>", "A map\n\nWhere"),
        ("<details><summary>More</summary>Body</details>", "More\n\nBody"),
        ("<ul>loose<li>a</li>between</ul>", "- loose\n- a\n- between"),
        ("<dl><dt><p>A</p><p>B</p></dt><dd>C</dd></dl>", "A\n\nB\n\nC"),
        ("<h2>A<br>B<div>C</div><div>D</div></h2>", "## A B C D"),
        ("<div>a</div>b<p>c</p>d", "a\n\nb\n\nc\n\nd"),
        ("<span style='display:block'>a</span><span style='display:block'>b</span>", "a\n\nb"),
        ("<p>a</p></body><p>b</p></html><p>c</p>", "a\n\nb\n\nc"),
        ("<blockquote>Q<footer>Einstein</footer></blockquote>", "> Q\n>\n> Einstein"),
        ("<svg><title>no</title><text>Hello <tspan x=1>big</tspan><tspan x=2>World</tspan></text></svg>", "Hello big World"),
        ("<p><ruby>漢<rp>(</rp><rt>かん</rt>字<rt>じ</rt></ruby>", "漢字 (かんじ)"),
        ("<iframe srcdoc='<p>Framed &amp;amp; seen</p>'></iframe>", "Framed & seen"),
        ("<frameset><frame><noframes>Words</noframes></frameset>", "Words"),
        ("<dialog open>Shown</dialog><dialog>Not</dialog>", "Shown"),
        ("<div><template shadowrootmode=open><p>Shown</p></template></div><template>Not</template>", "Shown"),
        ("<div role=tabpanel hidden>Windows</div><div role=tabpanel>Linux</div>", "Windows\n\nLinux"),
        ("<main aria-hidden=true><p>Behind a dialog</p></main><span aria-hidden=true>×</span>", "Behind a dialog"),
        ("<p>foo<script>x</script>bar<!-- no --><![CDATA[no]]></p>", "foobar"),
        ("<p>caf&eacute; &amp; &#8364;5&nbsp;now</p>", "café & €5 now"),
        ("<title>T</title><svg><title>No</title></svg><p>x", "x"),
        ("<ol start=5><li>five</ol>", "5. five"),
        ("<pre><code>one</code><code>two</code></pre>", "```\none\ntwo\n```"),
        ("<ol><li>a<li value=9>b<li>c</ol>", "1. a\n9. b\n10. c"),
        ("<ol reversed><li>b<li>a</ol>", "2. b\n1. a"),
        ("<body><select><option>One<option>Two</select>", "One\n\nTwo"),
        # formulas
        ("<p>Let <math alttext='x^2'><mi>x</mi><mn>2</mn></math> be.", "Let x^2 be."),
        ("<p><math><semantics><mi>q</mi><annotation encoding='application/x-tex'>\\frac q r</annotation></semantics></math>", "\\frac q r"),
        ("<p><math><mi>a</mi><mo>+</mo><mi>b</mi></math>", "a + b"),
        # what is not shown
        ("<p style='display: none'>no</p><p style='visibility:hidden'>no</p><p hidden>no</p>yes", "yes"),
        ("<nav><a href=x>Home</a></nav><p>yes", "yes"),
        # what would be left out, but is the page
        ("<nav><a href=x>Only</a> words</nav>", "[Only](x) words"),
        ("<nav><a>Home</a><main><p>Text</p></main>", "Home\n\nText"),
        ("<body style='visibility:hidden'><p>Until the script has run</p>", "Until the script has run"),
        # text is no Markdown
        ("<p>&lt;script&gt; opens one.</p><p>And so on.</p>", "\\<script> opens one.\n\nAnd so on."),
        ("<p># one</p><p>---</p><p>a<br>--</p>", "\\# one\n\n\\---\n\na\n\\--"),
    ],
)  # fmt: skip
def test_html_is_what_a_browser_shows(page: str, text: str) -> None:
    assert text_of(page) == (text if not page.startswith("<nav><a>Home</a><main>") else "Text")


def passages(name: str, text: str, title: str = "") -> list[str]:
    from ragadapt.values import Document

    count = lambda texts: [len(text.split()) for text in texts]  # noqa: E731
    return [c.passage for c in chunk_documents([Document(name, text, title, {}, name)], ChunkConfig(), count, 40)]


def test_angle_brackets_in_headings_and_text_survive_chunking() -> None:
    page = (
        "<h1>Vec&lt;T&gt; and &lt;div&gt;</h1>"
        + "<p>&lt;script&gt; one two three</p>" * 40
        + "<h2>Next</h2><p>tail</p>"
    )
    content = html_content(page)
    assert content.title == "Vec<T> and <div>"
    found = passages("a.html", content.text)
    assert "Vec<T> and <div>" in found[0]
    assert sum(passage.count("<script> one two three") for passage in found) == 40
    assert any("Next" in passage and "tail" in passage for passage in found)


TABLE = "<table><caption>Fees <b>2024</b></caption><tr><th>Region<th>Plan<th>Fee{rows}</table>"


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ("<tr><td rowspan=2>EU<td>Basic<td>10<tr><td>Pro<td>20", ["| EU | Basic | 10 |", "|  | Pro | 20 |"]),
        ("<tr><td rowspan=0>EU<td>Basic<td>10<tr><td>Pro<td>20", ["| EU | Basic | 10 |", "|  | Pro | 20 |"]),
        ("<tr><td>EU<td rowspan=2>Any<td>10<tr><td>US<td>20", ["| EU | Any | 10 |", "| US |  | 20 |"]),
        ("<tr><td colspan=2>All<td>30<tr><td>US<td>Pro<td>40", ["| All |  | 30 |", "| US | Pro | 40 |"]),
        ("<tr><td colspan=2 rowspan=2>All<td>30<tr><td>40", ["| All |  | 30 |", "|  |  | 40 |"]),
        ("<tr><td rowspan=1000000000>EU<td>Basic<td>10<tr><td>Pro<td>20", ["| EU | Basic | 10 |", "|  | Pro | 20 |"]),
        ("<tr><td>EU<td>Basic<td colspan=1000000000>10<tr><td>a<td>b<td>c", ["| EU | Basic | 10 |", "| a | b | c |"]),
        ("</th></tr><form><tr><td>EU<td>Basic<td>10</form>", ["| EU | Basic | 10 |"]),
        ("<tr><td>EU<td><p>a</p><p>b</p><td>x<br>y", ["| EU | a b | x y |"]),
    ],
)
def test_table_cells_stand_under_their_heads(rows: str, lines: list[str]) -> None:
    assert text_of(TABLE.format(rows=rows)) == "\n".join(
        ["Fees 2024", "", "| Region | Plan | Fee |", "| --- | --- | --- |", *lines]
    )


def test_text_in_a_table_that_is_in_no_cell_is_kept_and_the_foot_comes_last() -> None:
    assert text_of("<table>foster<tr>x<td>c</table>") == "foster x\n\n| c |\n| --- |"
    assert text_of("<table><tfoot><tr><td>sum</tfoot><tbody><tr><td>row</table>") == "| row |\n| --- |\n| sum |"
    assert (
        text_of("<table><tr><td>a<table><tr><td>b</table><td><h3>c</h3>d</table>")
        == "a\n\n| b |\n| --- |\n\n### c\n\nd"
    )


def test_what_is_left_out_of_a_page_is_told_once_a_kind() -> None:
    page = (
        "<body><nav>a</nav><nav>b</nav><footer>c</footer><script>d</script><p hidden>e</p><noscript>f</noscript>"
        "<main><p>The text of the page.</p><button>Go</button></main><div>h</div>"
    )
    content = html_content(page)
    assert content.text == "The text of the page.\n"
    assert content.notes == (
        "navigation",
        "page header and footer",
        "form controls",
        "hidden text",
        "text for browsers without scripts or frames",
        "text outside the page's main part",
    )
    assert html_content("<nav></nav><footer> </footer><p>x").notes == ()
    assert html_content("<nav>a</nav><footer>b</footer>").notes == ()  # they are the page


def test_xhtml_is_read_by_its_own_rules() -> None:
    page = (
        '<?xml version="1.0" encoding="windows-1251"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml">'
        "<head><title/></head><body><a id='x'/><p>Да&nbsp;text <![CDATA[a < b]]></p><script src='x'/><p>after</p></body></html>"
    )
    assert read_html(page.encode("cp1251")).text == "Да text a < b\n\nafter\n"


def test_names_of_encodings_mean_what_they_mean_to_browsers() -> None:
    assert read_html("<meta charset=iso-8859-1><p>“café” – €".encode("cp1252")).text == "“café” – €\n"
    assert read_html("<meta charset=gb2312><p>镕".encode("gb18030")).text == "镕\n"


HOSTILE: Mapping[str, Callable[[int], str]] = {
    "quotes": lambda n: "<blockquote><p>a word or two</p>" * n,
    "text in quotes": lambda n: "<blockquote>" * 120 + "<p>some words</p>" * n,
    "lists": lambda n: "<ul><li>w" * n,
    "text in lists": lambda n: "<ol><li>" * 120 + "<p>some words</p>" * n,
    "tables": lambda n: "<table><tr><td>w" * n,
    "blocks": lambda n: "<div>w " * n,
    "inline": lambda n: "<span>w " * n,
    "unclosed links": lambda n: "<a href=x>w " * n,
    "links": lambda n: "<a href=x>w</a> " * n,
    "attributes": lambda n: "<p " + "".join(f"a{i}=1 " for i in range(n)) + ">w</p>",
    "long attributes": lambda n: (
        f"<p style='{'display :' * n}' class='{'language-' * n}'>w</p><pre class='{'lang-' * n}'>x"
    ),
    "lines": lambda n: "<pre>" + "<div>a<br>" * n,
    "anchors": lambda n: "<h1>" + " {#" * n + "[#]( " * n,
    "row spans": lambda n: "<table><tr>" + "<td rowspan=65534>x" * n + "<tr><td>y" * n,
    "column spans": lambda n: "<table>" + "".join(f"<tr><td colspan={i}>x<td>y" for i in range(n)),
    "huge spans": lambda n: "<table>" + "<tr><td colspan=1000000000 rowspan=1000000000>x<td>y" * n,
    "controls": lambda n: "<select><option>x" * n,
    "hidden": lambda n: "<div aria-hidden=true>w " * n,
    "formulas": lambda n: "<math><mi>x" * n,
    "less than": lambda n: "<" * n,
    "tags without end": lambda n: "<i>" * 3000 + "<a b='" * n,
    "comments": lambda n: "<!-- > " * n,
    "sections of data": lambda n: "<![CDATA[" * n,
    "deep and crossed": lambda n: "<i>" * 3000 + "<b></u>" * n + "w",
    "empty": lambda n: "<p> </p>\n" * n,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_time_to_read_and_chunk_html_grows_with_its_size(kind: str) -> None:
    def seconds(n: int) -> float:
        page, start = HOSTILE[kind](n), time.process_time()
        text = html_content(page).text
        assert len(text) < 20 * len(page) + 1000
        if text:
            passages("a.html", text)
        return time.process_time() - start

    assert not faster_than_its_size(seconds, 250, enough=0.5)


# Books


def book(chapters: Mapping[str, str], *, spine: str = "", extra: Mapping[str, str] = {}, nav: str = "") -> bytes:
    is_nav = ' properties="nav"'
    items = "".join(
        f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"{is_nav if name == nav else ""}/>'
        for n, name in enumerate(chapters)
    )
    order = spine or "".join(f'<itemref idref="i{n}"/>' for n in range(len(chapters)))
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/" version="3.0"><metadata>'
        "<dc:title>The Book</dc:title><dc:creator>Ann Author</dc:creator><dc:language>en</dc:language></metadata>"
        f"<manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("OEBPS/book.opf", package)
        for name, text in {**{f"OEBPS/{name}": text for name, text in chapters.items()}, **extra}.items():
            archive.writestr(name.replace("%20", " "), text)
    return buffer.getvalue()


def chapter(body: str) -> str:
    return f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{body}</body></html>'


def test_a_book_is_read_in_its_own_order_with_author_and_language(tmp_path: Path) -> None:
    chapters = {"b%20two.xhtml": chapter("<h1>Two</h1><p>Second.</p>"), "a.xhtml": chapter("<h1>One</h1><p>First.</p>")}
    order = '<itemref idref="i1"/><itemref idref="i0"/><itemref idref="i1"/><itemref idref="gone"/>'
    write(tmp_path, {"book.epub": book(chapters, spine=order)})
    (document,) = read_documents([tmp_path]).documents
    assert document.text == "# One\n\nFirst.\n\n# Two\n\nSecond.\n"
    assert (document.title, document.metadata) == ("The Book", {"author": "Ann Author", "language": "en"})


def test_the_table_of_contents_goes_and_is_told_unless_it_is_all() -> None:
    nav = chapter("<nav><ol><li><a href='a.xhtml'>One</a></li></ol></nav>")
    content = read_epub(book({"nav.xhtml": nav, "a.xhtml": chapter("<p>First.</p>")}, nav="nav.xhtml"), 10**6)
    assert (content.text, content.notes) == ("First.\n", ("table of contents",))
    assert read_epub(book({"nav.xhtml": nav}, nav="nav.xhtml"), 10**6).text == "1. [One](a.xhtml)\n"


ENCRYPTION = (
    '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:e="http://www.w3.org/2001/04/xmlenc#">'
    '<e:EncryptedData><e:EncryptionMethod Algorithm="{method}"/><e:CipherData><e:CipherReference URI="OEBPS/a.xhtml"/>'
    "</e:CipherData></e:EncryptedData></encryption>"
)


def test_a_book_that_is_protected_or_damaged_or_a_bomb_says_so() -> None:
    chapters = {"a.xhtml": chapter("<p>First.</p>")}
    protected = ENCRYPTION.format(method="http://www.w3.org/2001/04/xmlenc#aes128-cbc")
    fonts = ENCRYPTION.format(method="http://www.idpf.org/2008/embedding")
    assert read_epub(book(chapters, extra={"META-INF/encryption.xml": fonts}), 10**6).text == "First.\n"
    bomb = book({"a.xhtml": chapter("<p>" + "word " * 2_000_000)})
    assert len(bomb) < 50_000
    broken = bytearray(book(chapters))
    broken[broken.index(b"OEBPS/a.xhtml") + 20] ^= 0xFF
    for data, reason in (
        (book(chapters, extra={"META-INF/encryption.xml": protected}), "DRM"),
        (bomb, "over-size"),
        (bytes(broken), "damaged EPUB"),
        (b"PK\x03\x04 not a zip", "damaged EPUB"),
        (book(chapters)[:400], "damaged EPUB"),
    ):
        with pytest.raises(Unreadable, match=reason):
            read_epub(data, 100_000)


def test_entities_in_a_book_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SECRET")
    evil = (
        f'<!DOCTYPE html [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}"><!ENTITY a "LOL LOL LOL LOL">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 50}">' for a, b in ("ab", "bc", "cd", "de", "ef"))
        + "]><html xmlns='http://www.w3.org/1999/xhtml'><body><p>Seen &x; &f;</p></body></html>"
    )
    text = read_epub(book({"a.xhtml": evil}), 10**6).text
    assert "Seen" in text and "SECRET" not in text and len(text) < 1000


# E-mails


def mail(**headers: str) -> email.message.EmailMessage:
    message = email.message.EmailMessage()
    for name, value in {"subject": "Grüße", "sender": "", "date": "Mon, 05 Feb 2024 10:00:00 +0100", **headers}.items():
        if value:
            message[name] = value
    message["From"], message["To"] = "Ann <ann@example.org>", "Bob <bob@example.org>"
    return message


def test_a_mail_gives_its_plain_text_once_and_names_what_is_attached(tmp_path: Path) -> None:
    message = mail()
    message.set_content("Hello Bob,\nthe fee is 10 €.\n-- \nAnn\n")
    message.add_alternative("<p>Hello Bob, the fee is <b>10 €</b>.</p>", subtype="html")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="Preise für Mai.pdf")
    write(tmp_path, {"m.eml": bytes(message)})
    (document,) = read_documents([tmp_path]).documents
    assert document.text == "Hello Bob,\nthe fee is 10 €.\n\\--\nAnn\n"
    assert document.title == "Grüße"
    assert document.metadata == {
        "from": "Ann <ann@example.org>", "to": "Bob <bob@example.org>", "date": "2024-02-05T09:00:00+00:00"
    }  # fmt: skip
    assert read_eml(bytes(message)).notes == ("attachment Preise für Mai.pdf",)


def test_the_html_form_is_read_where_the_plain_one_is_missing_or_only_points_to_it() -> None:
    page = "<h1>News</h1><p>" + "Words of the letter. " * 20 + "</p><table><tr><td rowspan=2>a<td>b<tr><td>c</table>"
    alone = mail()
    alone.set_content(page, subtype="html")
    pointing = mail()
    pointing.set_content("Please view this mail as HTML.\n")
    pointing.add_alternative(page, subtype="html")
    for message in (alone, pointing):
        assert read_eml(bytes(message)).text.startswith("# News\n\nWords of the letter.")
        assert "|  | c |" in read_eml(bytes(message)).text


def test_forwarded_mails_and_nested_parts_are_read_in_order() -> None:
    inner = mail(subject="Inner")
    inner.set_content("The inner words.")
    outer = mail(subject="Outer")
    outer.set_content("See below.")
    outer.add_attachment(inner)
    text = read_eml(bytes(outer)).text
    assert re.search(
        r"See below\.\n\n\*\*Inner\*\*\n\nAnn <ann@example.org>, 2024-02-05T09:00:00\+00:00\n\nThe inner words\.", text
    )


@pytest.mark.parametrize("transfer", ["8bit", "quoted-printable", "base64"])
@pytest.mark.parametrize(("charset", "real"), [("utf-8", "utf-8"), ("us-ascii", "utf-8"), ("utf-8", "cp1252"), ("x-none", "utf-8"), ("iso-8859-1", "cp1252")])  # fmt: skip
def test_transfer_encodings_and_charsets_that_lie(transfer: str, charset: str, real: str) -> None:
    import base64
    import quopri

    words = "“Die Gebühr beträgt zehn €.” Schöne Grüße aus München, wir freuen uns über jede Rückmeldung."
    raw = words.encode(real)
    body = {"8bit": raw, "quoted-printable": quopri.encodestring(raw), "base64": base64.encodebytes(raw)}[transfer]
    head = f"Subject: x\nContent-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: {transfer}\n\n"
    assert read_eml(head.encode() + body).text.strip() == words


def test_flowed_lines_are_joined_and_broken_headers_do_no_harm() -> None:
    head = b"Subject: =?x-none?Q?a?= =?utf-8?B?///?=\nDate: never\nContent-Type: text/plain; format=flowed\n\n"
    content = read_eml(head + b"One long \nline of text.\nNext.\n> quoted \n> twice\n")
    assert content.text == "One long line of text.\nNext.\n> quoted twice\n"
    assert "date" not in content.metadata
    assert read_eml(b"To: " + b"a@b.c, " * 20_000 + b"\n\nx").text == "x\n"
    for data, reason in (
        (b"\n\nno headers", "no headers"),
        (b"Content-Type: application/pkcs7-mime\n\nMIIB", "encrypted"),
        (b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(3_000)), "nested"),
    ):
        with pytest.raises(Unreadable, match=reason):
            read_eml(data)

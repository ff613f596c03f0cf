"""HTML into Markdown that keeps what chunking needs: headings, lists, code, tables, and links inside the site."""

from __future__ import annotations

import re

import lxml.html
from lxml import etree

from ragadapt.corpus.decode import Unreadable, decode, encoding_of, tidy

_DROPPED = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "svg",
        "math",
        "iframe",
        "object",
        "embed",
        "canvas",
        "audio",
        "video",
        "map",
        "form",
        "input",
        "button",
        "select",
        "textarea",
        "nav",
        "footer",
        "head",
        "dialog",
    ]
)
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "header",
        "hgroup",
        "html",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    ]
)
_ROLES = frozenset(("navigation", "banner", "contentinfo", "search"))


def html_to_markdown(data: bytes, encoding: str | None = None) -> tuple[str, str]:
    """(text, title) of a page. Navigation, scripts and forms are left out. Raises Unreadable."""
    source = decode(data, encoding or _declared(data))
    source = re.sub(r"\A\s*<\?xml[^>]*\?>", "", source)  # lxml refuses text that declares an encoding
    if not source.strip():
        return "", ""
    try:
        page = lxml.html.document_fromstring(source)
        title = " ".join((page.findtext(".//title") or "").split())
        writer = _Writer()
        writer.block(_main_part(page))
    except (etree.LxmlError, ValueError) as error:
        raise Unreadable(f"not HTML: {error}"[:200]) from error
    except RecursionError as error:
        raise Unreadable("HTML nested too deeply") from error
    text = tidy(writer.text())
    heading = re.search(r"^# (.+?)(?: \{#[^}]*\})?$", text, re.M)
    return text, title or (heading[1] if heading else "")


def _declared(data: bytes) -> str | None:
    """The encoding that a meta element names, where bytes and Python agree with it."""
    try:
        if encoding_of(data) in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            return None
    except Unreadable:
        pass
    match = re.search(rb"<meta[^>]+charset=[\"']?\s*([\w-]+)", data[:4096], re.I)
    name = match[1].decode("ascii") if match else ""
    try:
        data.decode(name)
    except (LookupError, UnicodeDecodeError, ValueError):
        return None
    return name


def _main_part(page: lxml.html.HtmlElement) -> lxml.html.HtmlElement:
    """The page's main or only article element where it marks one with at least a third of the text, else its body."""
    body = page.find(".//body")
    body = page if body is None else body
    total = len(body.text_content())
    for path in (".//main", ".//*[@role='main']", ".//article"):
        found = body.findall(path)
        if len(found) == 1 and len(found[0].text_content()) >= total / 3:
            return found[0]
    return body


class _Writer:
    def __init__(self) -> None:
        self.blocks: list[str] = []

    def text(self) -> str:
        return "\n\n".join(self.blocks) + "\n" if self.blocks else ""

    def add(self, text: str, prefix: str = "") -> None:
        text = re.sub(r"[ \t\r\f\v\u00a0]+", " ", text)
        text = "\n".join(line.strip() for line in text.split("\n")).strip()
        if text:
            self.blocks.append(prefix + text.replace("\n", "\n" + " " * len(prefix)) if prefix else text)

    def block(self, element: lxml.html.HtmlElement) -> None:
        """Write an element's content: runs of inline content become paragraphs between its blocks."""
        run = [_flat(element.text)]
        for child in element:
            if not isinstance(child.tag, str) or _left_out(child):
                pass
            elif child.tag in _BLOCKS or re.fullmatch(r"h[1-6]|hr", child.tag) or _holds_block(child):
                self.add("".join(run))
                run = []
                self._one(child)
            else:
                run.append(_inline(child))
            run.append(_flat(child.tail))
        self.add("".join(run))

    def _one(self, element: lxml.html.HtmlElement) -> None:
        tag = element.tag
        if re.fullmatch(r"h[1-6]", tag):
            words = " ".join(_inline_children(element).split())
            words = re.sub(r"\s*(?:\[[¶#§🔗]\]\([^)]*\)|[¶])\s*$", "", words)
            anchor = element.get("id") or next((a.get("id") or a.get("name") or "" for a in element.iter("a")), "")
            if words:
                self.blocks.append("#" * int(tag[1]) + f" {words}" + (f" {{#{anchor}}}" if _is_anchor(anchor) else ""))
        elif tag == "pre":
            code = element.text_content().strip("\n").replace("\r", "")
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", code)), default=0))
            if code.strip():
                self.blocks.append(f"{fence}{_language(element)}\n{code}\n{fence}")
        elif tag in ("ul", "ol"):
            lines = _list_lines(element)
            if lines:
                self.blocks.append("\n".join(lines))
        elif tag == "table" and not _is_layout(element):
            table = _table(element)
            if table:
                self.blocks.append(table)
        elif tag == "blockquote":
            inner = _Writer()
            inner.block(element)
            if inner.blocks:
                self.blocks.append("\n".join(("> " + line).rstrip() for line in inner.text().rstrip("\n").split("\n")))
        elif tag == "dt":
            self.add(f"**{_inline_children(element).strip()}**" if element.text_content().strip() else "")
        elif tag != "hr":
            self.block(element)


def _flat(text: str | None) -> str:
    return re.sub(r"\s+", " ", text) if text else ""


def _left_out(element: lxml.html.HtmlElement) -> bool:
    return (
        element.tag in _DROPPED
        or element.get("role") in _ROLES
        or element.get("hidden") is not None
        or element.get("aria-hidden") == "true"
    )


def _holds_block(element: lxml.html.HtmlElement) -> bool:
    return any(isinstance(e.tag, str) and (e.tag in _BLOCKS or re.fullmatch(r"h[1-6]", e.tag)) for e in element.iter())


def _inline_children(element: lxml.html.HtmlElement) -> str:
    parts = [_flat(element.text)]
    for child in element:
        if isinstance(child.tag, str) and not _left_out(child):
            parts.append(_inline(child))
        parts.append(_flat(child.tail))
    return "".join(parts)


def _inline(element: lxml.html.HtmlElement) -> str:
    tag = element.tag
    if tag == "br":
        return "\n"
    if tag == "img":
        return _flat(element.get("alt"))
    text = _inline_children(element)
    if tag in ("code", "kbd", "samp", "tt") and text.strip() and "`" not in text:
        return f"`{text.strip()}`"
    if tag == "a" and text.strip():
        target = (element.get("href") or "").strip()
        if target and not re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I) and not re.search(r"[\s()]", target):
            return f"[{text.strip()}]({target})"  # links that leave the site say nothing about the corpus
    return text


def _list_lines(element: lxml.html.HtmlElement) -> list[str]:
    lines: list[str] = []
    number = 0
    for item in element:
        if not isinstance(item.tag, str) or _left_out(item):
            continue
        inner = _Writer()
        inner.block(item) if item.tag == "li" else inner._one(item)
        if not inner.blocks:
            continue
        number += 1
        mark = f"{number}. " if element.tag == "ol" else "- "
        # a nested list follows its item directly; other further blocks keep the blank line that Markdown needs
        text = inner.blocks[0]
        for block in inner.blocks[1:]:
            text += ("\n" if re.match(r"(?:- |\d+\. )", block) else "\n\n") + block
        pad = " " * len(mark)
        body = text.split("\n")
        lines.append(mark + body[0])
        lines.extend((pad + line) if line else "" for line in body[1:])
    return lines


def _is_layout(table: lxml.html.HtmlElement) -> bool:
    return table.find(".//table") is not None or any(
        cell.find(".//pre") is not None or cell.find(".//h2") is not None for cell in table.iter("td")
    )


def _table(table: lxml.html.HtmlElement) -> str:
    rows = []
    for row in table.iter("tr"):
        cells = [c for c in row if c.tag in ("td", "th")]
        rows.append([" ".join(_cell(c).split()).replace("|", "\\|") for c in cells])
    rows = [row for row in rows if any(row)]
    if not rows:
        return ""
    width = max(len(row) for row in rows)
    lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * width)
    return "\n".join(lines)


def _cell(cell: lxml.html.HtmlElement) -> str:
    if not any(isinstance(e.tag, str) and e.tag in _BLOCKS for e in cell.iterdescendants()):
        return _inline_children(cell)
    inner = _Writer()
    inner.block(cell)
    return " ".join(inner.blocks)


def _language(pre: lxml.html.HtmlElement) -> str:
    for element in pre.iter():
        match = re.search(r"(?:language|lang|highlight)-(?:source-)?([\w+#-]+)", element.get("class") or "")
        if match and isinstance(element.tag, str):
            return match[1]
    return ""


def _is_anchor(anchor: str) -> bool:
    return re.fullmatch(r"[^\s{}]+", anchor) is not None

"""Reading text the way a query maker needs it: words, blocks, sentences, plain prose, in any script."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from ragadapt.corpus.front import front_matter
from ragadapt.text import UNSEEN, searchable

# Han, kana, CJK compatibility: scripts written without spaces, one token per character.
CJK = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}]+(?:['’][^\W{CJK}]+)?(?:(?:\+\+|#)(?!\w))?")  # C++ and C# are two things
_CJK = re.compile(rf"[{CJK}]")
_LETTER = re.compile(r"[^\W\d_]")


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def phrases(text: str) -> list[str]:
    """What stands between the bars."""
    return [phrase for part in text.split("|") if (phrase := " ".join(part.split()))]


def any_of(text: str) -> str:
    """A regular expression for any of the alternatives that stand between the bars, over several lines."""
    return f"(?:{'|'.join(phrases(text))})"


STOP_WORDS = word_set("""
    a about above after again against all also am an and any are aren't as at be because been before
    being below between both but by can can't cannot could did do does doing don't down during each
    either else etc even ever every few for from further get gets getting go goes going got had has have
    having he her here hers herself him himself his how however i i'm i've if in into is isn't it it's
    its itself just let let's like made make makes may me might more most much must my myself no nor not
    now of off on once one only onto or other others our ours ourselves out over own per please rather
    really same see she should since so some such than that that's the their theirs them themselves then
    there therefore these they they're this those though through thus to too two under until up upon us
    use used uses using very via was we we're were what what's when where whether which while who whom
    whose why will with within without would yes yet you you're your yours yourself aber als am an auch
    auf aus bei bis das dass dem den der des doch durch ein eine einem einen einer eines er es für
    hat ich ihr im in ist kann mit nach nicht noch nur oder sich sie sind so über um und uns von vor
    was wenn werden wie wir wird zu zum zur au aux avec ce ces cette dans de des du elle en est et il
    ils je la le les leur mais ne nous ou où pas que qui sa se ses sont sur un une vous al
    como con de del el en es esta este la las lo los más no o para pero por que se si su sus un
    una y ya
""")


def words(text: str) -> list[str]:
    """Lower-case words in order; in scripts without spaces every character is one."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", searchable(text)).replace("’", "'").casefold())


_PART = rf"(?:[^\W{CJK}]|[\u0300-\u036f])+"
_PARTS = rf"{_PART}(?:(?:\u00ad(?:[^\S\n]*\n[^\S\n]*)?|[\u200b{UNSEEN}]){_PART})*"
_WRITTEN = re.compile(  # a word as it may stand in a text: with soft hyphens, unseen marks and accents of their own
    rf"[{CJK}]|{_PARTS}(?:['’]{_PARTS})?(?:(?:\+\+|\#)(?!\w))?"
)


def token_spans(text: str) -> list[tuple[str, int, int]]:
    """(word as `words` has it, start, end) of every word, in order."""
    if text.isascii():
        return [(match.group().casefold(), *match.span()) for match in _TOKEN.finditer(text)]
    return [(word, *match.span()) for match in _WRITTEN.finditer(text) for word in words(match.group())]


def is_cjk(text: str) -> bool:
    """Whether at least three in ten of the text's letters are Chinese or Japanese."""
    if not _CJK.search(text):
        return False
    return len(_CJK.findall(text)) >= 0.3 * sum(character.isalpha() for character in text)


def length(text: str) -> float:
    """Length in words; two Chinese or Japanese characters count as one."""
    tokens = _TOKEN.findall(text)
    return len(tokens) - len(_CJK.findall(text)) / 2


def letter_share(text: str) -> float:
    """Share of letters among the characters that are not blank."""
    return len(_LETTER.findall(text)) / max(1, len(text) - text.count(" "))


@cache
def _stemmer():  # type: ignore[no-untyped-def]
    import Stemmer

    return Stemmer.Stemmer("english")


def content_terms(text: str) -> list[str]:
    """Stems of the words that are not function words; in scripts without spaces, character pairs."""
    tokens = words(text)
    terms: list[str] = _stemmer().stemWords(
        [token for token in tokens if token not in STOP_WORDS and not _CJK.match(token)]
    )
    for run in re.findall(rf"[{CJK}]+", unicodedata.normalize("NFKC", text)):
        terms += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
    return terms


def text_key(text: str) -> str:
    """Equal for texts that say the same in nearly the same words: sorted distinct stems.

    A text of function words alone is its own key.
    """
    return " ".join(sorted(set(content_terms(text)))) or " ".join(words(text))


def identifier_words(name: str) -> list[str]:
    """readHTTPHeader → read, http, header; snake_case, kebab-case and dots are cut as well."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [part.casefold() for part in re.split(r"[\W_]+", spaced) if part]


_CLEANERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, replacement, flags in (
        (r"<!--.*?(?:-->|$)", " ", re.S),
        (r"\{\{(?:(?!\{\{|\}\}).)*+\}\}", " ", re.S),  # template shortcodes
        (r"\{[#:.][^{}\n]*\}", " ", 0),  # {#anchor} {: .class}
        (r"!\[[^\[\]]*\](?:\([^()]*\)|\[[^\[\]]*\])", " ", 0),  # images
        (
            r"\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\((?:[^()\s]|\([^()]*\))*(?:\s+[\"'][^)]{0,400})?\)",
            r"\1",
            0,
        ),  # [text](url)
        (r"\[\^[^\[\]]*\]:?", " ", 0),  # footnotes
        (r"\[([^\[\]]+)\]\[[^\[\]]*\]", r"\1", 0),
        (r"<https?://[^<>\s]*>", " ", 0),
        (r"</?[A-Za-z][^<>]*>", " ", 0),
        (r":[a-z][\w:+-]{0,60}:`~?!?([^`<]*?)\s*(?:<[^>`]*>)?`", r"\1", 0),  # reST roles
        (r"`([^`<]+?)\s*<[^>`]+>`__?", r"\1", 0),  # reST links
        (r"`+", "", 0),
        (r"(?m)^[^\S\n]*(?:>[^\S\n]*)+", "", 0),
        (r"(?m)^[^\S\n]*(?:[-*+•]|\d{1,3}[.)])\s+(?:\[[ xX]\]\s+)?", "", 0),
        (r"(?m)^[^\S\n]*#{1,6}\s+|(?<!\s)\s+#+\s*$", "", 0),
        (r"(\*\*|__|\*|(?<!\w)_)(?=\S)(.{1,300}?)(?<=\S)\1", r"\2", 0),
        (r"(\*\*|__)", "", 0),
        (r"(?<![\w:]):[a-z][a-z0-9_+-]{0,60}:(?![\w:])", " ", 0),  # :emoji:
        (r"\\([\\`*_{}\[\]()#+.!|<>~-])", r"\1", 0),
    )
)


_MARKUP = re.compile(r"[][*_`<{&\\#>|]|:\w|^[^\S\n]*(?:[-+•]|\d{1,3}[.)])\s|\s[.,;:!?]", re.MULTILINE)


@lru_cache(maxsize=16384)
def plain(raw: str) -> str:
    """One line of prose from Markdown, reST or HTML-flavoured text: markup, images and link targets gone."""
    # No pattern asks how wide a gap is, and some would look at a wide one from each of its blanks.
    raw = re.sub(r"\s{2,}", lambda gap: "\n" if "\n" in gap[0] else " ", raw)
    if not _MARKUP.search(raw):
        return " ".join(raw.split())
    for pattern, replacement in _CLEANERS:
        raw = pattern.sub(replacement, raw)
    text = " ".join(html.unescape(raw).split())
    return re.sub(r"\s+([,.;:!?])(?=\s|$)", r"\1", text)  # older corpora put a blank before every full stop


def plain_heading(raw: str) -> str:
    """A heading as a reader says it: no markup, numbering, emoji, anchors or trailing colon."""
    text = plain(raw)
    text = re.sub(r"^(?:(?:chapter|section|part|step|appendix)\s+)?(?:\d+\.)+\d*\s+|^\d+[.):]\s*", "", text, flags=re.I)
    text = re.sub(r"^[IVX]{1,5}\.\s+|^[A-Z][.)]\s+(?=\w{2})", "", text)
    text = "".join(
        " " if unicodedata.category(c) in {"So", "Cf", "Sk", "Cn", "Co"} or c == "\ufe0f" else c for c in text
    )
    return " ".join(text.replace("¶", " ").split()).strip(" \t:：-–—|*_~")


def is_heading_line(line: str) -> bool:
    return re.match(r"\s{0,3}#{1,6}\s+\S", line) is not None


Kind = Literal["heading", "paragraph", "item", "table", "code", "other"]


@dataclass(frozen=True, slots=True)
class TextBlock:
    """text[start:end], one paragraph, list item, heading, table, code block or piece of markup."""

    kind: Kind
    start: int
    end: int


_FENCE = re.compile(r"\s{0,6}(```+|~~~+)")
_ITEM = re.compile(r"(\s*)(?:[-*+•]|\d{1,3}[.)])\s+\S")
_RULE = re.compile(r"\s*([=\-~^\"'#*+_])\1{2,}\s*$")
_MARKUP_LINE = re.compile(
    r"\s*(?:</?[A-Za-z][^>]*>\s*)+$|\s*<!--|\s*\{\{.*\}\}\s*$|\s*\.\.\s+\S|\s*:[\w -]+:(?:\s|$)|\s*!!!\s"
)


@lru_cache(maxsize=2048)
def blocks(text: str) -> tuple[TextBlock, ...]:
    """The text's blocks in order; exact offsets; blank lines and front matter belong to none."""
    found: list[TextBlock] = []
    kind: Kind | None = None
    start = end = 0
    fence = ""

    def close() -> None:
        nonlocal kind
        if kind is not None:
            found.append(TextBlock(kind, start, end))
        kind = None

    position = 0
    if front := front_matter(text):
        position = front.end
    while position < len(text):
        newline = text.find("\n", position)
        line_end = len(text) if newline < 0 else newline
        line, here = text[position:line_end], position
        position = line_end + 1
        if fence:
            end = line_end
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
                close()
            continue
        opening = _FENCE.match(line)
        if opening:
            close()
            kind, start, end, fence = "code", here, line_end, opening.group(1)
            continue
        new: Kind
        if not line.strip():
            close()
            continue
        if is_heading_line(line):
            new = "heading"
        elif _RULE.match(line):
            # An underline makes a heading of the single line above it; otherwise it is a rule.
            if kind == "paragraph" and "\n" not in text[start:end]:
                kind = "heading"
                end = line_end
            close()
            continue
        elif line.lstrip().startswith("|") or line.count(" | ") >= 2 or "\t" in line.strip():
            new = "table"
        elif _ITEM.match(line):
            new = "item"
        elif _MARKUP_LINE.match(line):
            new = "other"
        elif (
            re.match(r"(?: {4}|\t)", line)
            and kind not in ("paragraph", "item")
            and not (found and found[-1].kind == "item")
        ):
            new = "code"
        else:
            new = "paragraph"
        continues = (new == kind and new in ("paragraph", "table", "code")) or (kind == "item" and new == "paragraph")
        if continues:
            end = line_end
            continue
        close()
        kind, start, end = new, here, line_end
        if new in ("heading", "other"):
            close()
    close()
    return tuple(found)


_ABBREVIATIONS = word_set("""
    e.g i.e etc vs cf al fig figs eq eqs no nos vol dr mr mrs ms prof st jr sr inc ltd co corp dept
    approx est ca resp sec ch pp p ed eds z.b bzw usw u.a d.h jan feb mar apr jun jul aug sep sept oct
    nov dec u.s u.k
""")
_END = re.compile(
    r"[。！？!?；…]+[」』”’）\)\"]*|\.(?=\s|$|[\"'”’)\]*_]+(?:\s|$))[\"'”’)\]*_]*|[!?]+[\"'”’)\]*_]*(?=\s|$)"
)


def sentences(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Spans of the sentences of text[start:end], trimmed of blanks. The last need not be complete."""
    end = len(text) if end is None else end
    lower_case_text = not any(c.isupper() for c in text[start : min(end, start + 400)])
    spans: list[tuple[int, int]] = []
    begin = start
    for mark in _END.finditer(text, start, end):
        if text[mark.start()] in "!?" and mark.end() < end and not text[mark.end()].isspace():
            continue  # a query string, or !important
        if text[mark.start()] == ".":
            spaced = mark.start() > start and text[mark.start() - 1].isspace()
            before = re.search(r"[\w.]*$", text[max(begin, mark.start() - 12) : mark.start()])
            token = before.group().casefold() if before else ""
            following = text[mark.end() : mark.end() + 40].lstrip().lstrip("\"'“‘([*_`")
            if not spaced:
                if token in _ABBREVIATIONS or (len(token) == 1 and token.isalpha()):
                    continue
                if following[:1].islower() and not lower_case_text:
                    continue
            elif following[:1].isdigit() and text[mark.start() + 1 : mark.start() + 2].isdigit():
                continue
        inside = text.count("[", begin, mark.end()) > text.count("]", begin, mark.end())
        if inside and mark.end() - begin < 400:
            continue  # a stop inside a link's text
        spans.append((begin, mark.end()))
        begin = mark.end()
    spans.append((begin, end))
    return [trimmed for span in spans if (trimmed := _trim(text, *span))[0] < trimmed[1]]


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


_QUESTION_MARK = re.compile(r"(?<![?？])[?？]+[\"'”’」』）)\]*_\s]*$")
# Headings and links that beg rather than ask: "Need help?", "Considering joining?"
_BEGGING = re.compile(
    any_of(r"""
        not sure | needs? | have (?:a |any |more |other )? | got | want | interested | looking | still | any | more
        | other | questions? | problems? | issues? | ready | (?!during|according|regarding|being|having|going)[a-z]+ing
    """)
    + r"\b",
    re.IGNORECASE,
)
_ASKING = re.compile(
    any_of(r"""
        how (?:to|do|does|did|can|could|should|is|are|will|much|many|often|long)
        | what(?:'s|’s| is| are| does| do| if| happens| should)
        | why (?:is|are|do|does|did|should|can|not|we) | when (?:to|should|do|does|is|are|can)
        | where (?:to|do|does|can|is|are|should) | who (?:can|is|are|should|does|do|to)
        | which | can i | can we | can you | should i | do i | do we | do you | does | is there | are there
    """)
    + r"\b",
    re.IGNORECASE,
)
_ASKING_CJK = re.compile(
    any_of(r"""
        (?:です|ます|だろう|でしょう|ません)か[。．]?$ | ^(?:如何|怎[么麼樣样]|什[么麼]是|為什麼|为什么|何謂|どうやって)
    """)
)


def is_question(text: str) -> bool:
    """Whether the text asks: a question mark at its end, or the opening words of a question.

    Japanese ～か。 and Chinese 如何 / 怎么 / 什么是 count without a mark.
    """
    text = text.strip()
    if _QUESTION_MARK.search(text):
        return not _BEGGING.match(text) or len(text.split()) > 8
    if is_cjk(text):
        return bool(_ASKING_CJK.search(text))
    return bool(_ASKING.match(text)) and len(text.split()) >= 3

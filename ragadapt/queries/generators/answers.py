"""A model's answer into clean queries: split, unwrapped, and refused with a counted reason.

What models really write is kept in tests/test_generate_cleaning.py; a new bad habit goes there first.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragadapt.queries.filters import lexical_overlap
from ragadapt.queries.generators import words
from ragadapt.queries.generators.cache import Answer
from ragadapt.queries.generators.prompts import INSTRUCTIONS, KINDS, Prompt, is_question, looks_like
from ragadapt.queries.text import content_terms, is_cjk, length
from ragadapt.queries.text import words as words_of

REASONS: Mapping[str, str] = {
    "empty": "nothing was left after unwrapping",
    "preamble": "talk around the queries: 'Sure, here are …'",
    "answer": "an answer or explanation beside a query",
    "refusal": "the model declined",
    "echo": "the prompt or one of its examples came back",
    "meta": "speaks of the passage, the text or its author",
    "not_question": "asked for a question, got something else",
    "copy": "repeats the passage's words (max_overlap) or a stretch of it",
    "vague": "does not say what it is about",
    "degenerate": "goes round in circles",
    "language": "another language than the passage's",
    "too_short": "too few words for its kind",
    "too_long": "too many words for its kind",
    "unfinished": "cut off by the token limit",
    "duplicate": "the same query was there already",
}
_MIN_WORDS = {"question": 3, "keywords": 2, "problem": 4, "claim": 4}
_MAX_WORDS = {"question": 32, "keywords": 9, "problem": 40, "claim": 32}
_COPIED_WORDS = 7  # a longer stretch of the passage is a quotation, whatever the share of the whole
_MAX_CHARACTERS = 400
_MOST_READ = 500  # candidates of one answer
_MOST_KEPT = 50  # of one answer; a prompt asks for a few
_DEEPEST_JSON = 20

_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*$", re.MULTILINE)
_NUMBERED = re.compile(r"(?:^|(?<=[?？.!;])\s+)\(?\d{1,2}[.)]\s+(?=\D)")  # inside a line: after a sentence's end
_BULLET = re.compile(
    r"^\s*(?:[-*•‣◦–—▪·>]+\s+|\(?\d{1,2}[.):、]\s*(?!\d)|\(?[a-h][.)]\s+|#{1,6}\s+|[QF]\d{1,2}\s*[.:)]\s*)+",
    re.IGNORECASE,
)
_LABEL_NAMES = {
    "question": "question|q|query|user question|user query|frage|pregunta|domanda|вопрос|问题|問題|質問",
    "keywords": "keywords?|keyword (?:search|query)|search(?: query| terms?)?|suchbegriffe?"
    "|stichwörter|mots[- ]clés|palabras clave|关键词|關鍵詞|キーワード",
    "problem": "problem|how[- ]to|user problem|task|need|issue|problème|problema|проблема",
    "claim": "claim|statement|fact|behauptung|aussage|affirmation|afirmación|утверждение|陈述|陳述|声明",
    "answer": "answer|a|antwort|réponse|respuesta|explanation|reason|note|passage|text|document|答案|回答|答",
}
_LABEL = re.compile(
    r"^\s*[*_`\"'\[(]*\s*(?:"
    + "|".join(f"(?P<{kind}>{names})" for kind, names in _LABEL_NAMES.items())
    + r")\s*(?:#?\d{1,2}|\(\d{1,2}\))?\s*[*_`\"'\])]*\s*[:：]\s*[*_]*\s*",
    re.IGNORECASE,
)
_WRAPPING = " \t\u00a0\"'“”‘’„«»`*_<>[]{}|~"
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok|great|yes|alright|understood|natürlich|gerne|klar|bien sûr"
    r"|claro|por supuesto|好的|当然|當然)(?:\s*[,.!:，。！：]|\s*$|\s+(?:thing|here))"
    r"|(?:here(?:'s| is| are)|below (?:is|are)|these are|the following (?:are|is)|hier (?:sind|ist)|voici"
    r"|aquí (?:están|tienes)|以下是|下面是)\b.*"
    r"|(?:let me know|i hope|feel free|i(?:'ve| have) (?:written|generated|created|provided)|note that|please note)\b.*"
    r"|(?:generated |possible |example |search |user )*(?:queries|questions|output|result|answers?|lines)"
    r"(?: for .*)?\s*:?\s*$)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(?:i'?m sorry|sorry,|i (?:cannot|can't|am unable|'?m unable)|as an ai|unfortunately, (?:i|the passage)"
    r"|no (?:relevant )?(?:questions?|quer(?:y|ies)) (?:can|could)"
    r"|i (?:do not|don't) have (?:enough|access)|n/?a$|none$)",
    re.IGNORECASE,
)
_NOUN = "passage|text|excerpt|document|paragraph|article|section|context|snippet|page|author|writer|abstract|chapter"
_META = re.compile(
    rf"\b(?:according to|based on|as (?:stated|described|mentioned|explained|given|noted|shown) (?:in|by)"
    rf"|(?:mentioned|described|discussed|provided|given|stated|listed|outlined"
    rf"|presented|covered|explained|contained|found) (?:in|by|on))"
    rf" (?:the|this|that|these|your) (?:\w+ )?(?P<noun1>{_NOUN})s?\b"
    rf"|\b(?:in|from|of|by|does|is|about|on) (?:this|the (?:above|given|provided|following|preceding)) (?:{_NOUN})s?\b"
    rf"|\bthe (?P<noun2>passage|excerpt|snippet|author|writer|text)(?:'s)?\b"
    rf"|\b(?:mentioned|described|listed|shown|given|stated|explained) (?:above|below|here)\b"
    r"|\b(?:laut|gemäß|in|aus) (?:dem|diesem|der|dieser) (?:text|abschnitt|passage|dokument|artikel)\b"
    r"|\b(?:selon|d'après|dans) (?:le|ce|cet|la|cette|l') ?(?:texte|passage|document|article|extrait)\b"
    r"|\b(?:según|en) (?:el|este) (?:texto|pasaje|documento|artículo|fragmento)\b"
    r"|согласно (?:тексту|отрывку|статье)|в (?:этом )?(?:тексте|отрывке)\b"
    r"|根据(?:本|该|上)?(?:文|段落|文章|文本)|文中|本文|上文|该段|这段|這段|本段|この文章|本文によ",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"[<\[{(](?:your |the |a |insert )?(?:question|query|keywords?|claim|statement|problem|text|passage|answer)"
    r"[^>\]})]*[>\]})]|\byour (?:question|query) here\b|^\W*\.\.\.\W*$|</?passage>|<\|",
    re.IGNORECASE,
)
_FIRST_OF_SENTENCE = re.compile(r"(?<=[?？؟])(?:[\"'”’)*]*)\s*(?=\S)")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A query as read from an answer, before it is judged. kind: None where the answer had no label."""

    kind: str | None
    text: str


def read_answer(answer: str, rejected: MutableMapping[str, int], *, first_kind: str | None = None) -> list[Candidate]:
    """The queries in a model's answer, whatever wrapping it chose: labelled lines, lists, JSON, several in a line.

    first_kind: the label that the prompt ended with, for a model which goes on with the text.
    Talk around the queries and answers to them are counted in `rejected`.
    """
    text = _FENCE.sub("", _THINKING.sub("", answer)).strip()
    found: list[Candidate] = []
    items = list(_from_json(text)) or list(_from_lines(text, first_kind))
    for kind, item in items:
        for part_kind, part in _split(kind, item, rejected):
            found.append(Candidate(part_kind, part))
    if not found and not rejected.get("empty") and not items:
        _count(rejected, "empty")
    return found


def judge(
    candidate: Candidate, prompt: Prompt, *, max_overlap: float, siblings: Sequence[str] = ()
) -> tuple[str, str] | str:
    """(kind, text) of a query that may stay, or the reason (a key of REASONS) why not.

    siblings: queries of the same passage that were kept already.
    """
    text = candidate.text
    kind = candidate.kind or looks_like(text)
    if kind in ("keywords", "claim") and is_question(text) and text.rstrip().endswith(("?", "？")):
        kind = "question"
    if kind == "keywords":
        text = " ".join(re.sub(r"[,;|/、，]+\s*", " ", text).rstrip(".。").split())
    count = length(text)
    if not count:
        return "empty"
    if _REFUSAL.match(text):
        return "refusal"
    if _PLACEHOLDER.search(text) or _is_echo(text, prompt):
        return "echo"
    passage = prompt.chunk.passage
    if _is_meta(text, passage):
        return "meta"
    if words.is_degenerate(text):
        return "degenerate"
    if count < _MIN_WORDS[kind] - is_cjk(text):  # denser: no articles, no prepositions
        return "too_short"
    if count > _MAX_WORDS[kind] or len(text) > _MAX_CHARACTERS:
        return "too_long"
    if kind == "question" and not is_question(text):
        return "not_question"
    if _is_foreign(text, passage):
        return "language"
    if words.is_vague(text):
        return "vague"
    if words.copied_run(text, passage) > _COPIED_WORDS or lexical_overlap(text, passage) > max_overlap:
        return "copy"
    if any(_alike(text, sibling) for sibling in siblings):
        return "duplicate"
    return kind, text


def clean(answer: Answer, prompt: Prompt, *, max_overlap: float) -> tuple[list[tuple[str, str]], Counter[str]]:
    """The (kind, text) pairs of an answer that may stay, and how many were refused for which reason."""
    rejected: Counter[str] = Counter()
    candidates = read_answer(answer.text, rejected, first_kind=answer.first_kind)
    if answer.cut_off and candidates and not candidates[-1].text.rstrip().endswith((".", "?", "!", "。", "？", "！")):
        candidates.pop()
        rejected["unfinished"] += 1
    kept: list[tuple[str, str]] = []
    for candidate in candidates[:_MOST_READ]:
        if len(kept) == _MOST_KEPT:
            break
        verdict = judge(candidate, prompt, max_overlap=max_overlap, siblings=[text for _, text in kept])
        if isinstance(verdict, str):
            rejected[verdict] += 1
        else:
            kept.append(verdict)
    return kept, rejected


def normalised(text: str) -> str:
    """Equal for queries that differ in case, spaces and punctuation alone."""
    return " ".join(words_of(text))


def _from_lines(text: str, first_kind: str | None) -> Iterator[tuple[str | None, str]]:
    for number, line in enumerate(text.splitlines()):
        objects = list(_from_json(line.strip().rstrip(","))) if line.strip()[:1] in ("{", '"', "[") else []
        if objects:
            yield from objects
            continue
        kind, rest = _unlabel(line)
        if number == 0 and kind is None and first_kind is not None:
            kind = first_kind
        if rest.strip():
            yield kind, rest


def _from_json(text: str) -> Iterator[tuple[str | None, str]]:
    """The strings of a JSON answer, also of one with talk around it; nothing if there is none."""
    for candidate in (text, _between(text, "[", "]"), _between(text, "{", "}")):
        if not candidate or candidate[0] not in '[{"':
            continue
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        yield from _strings(value, None)
        return


def _strings(value: Any, kind: str | None, depth: int = 0) -> Iterator[tuple[str | None, str]]:
    if depth > _DEEPEST_JSON:
        return
    if isinstance(value, str):
        yield (kind, value) if kind is not None else _unlabel(value)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, kind, depth + 1)
    elif isinstance(value, dict):
        stated = next(
            (str(value[key]) for key in ("kind", "type", "label", "category") if isinstance(value.get(key), str)), ""
        )
        own = _kind_of(stated) or kind
        for key, item in value.items():
            if key in ("kind", "type", "label", "category", "id"):
                continue
            named = own if own is not None and key.lower() in ("query", "text", "question") else _kind_of(key) or own
            yield from _strings(item, named, depth + 1)


def _kind_of(name: str) -> str | None:
    match = _LABEL.match(f"{name.rstrip('s') if name.lower() != 'keywords' else name}:")
    return match.lastgroup if match else None


def _unlabel(line: str) -> tuple[str | None, str]:
    """(kind, rest) of a line; bullets and numbers taken off; kind "answer" for what is no query at all."""
    line = _BULLET.sub("", line, count=1)
    match = _LABEL.match(line)
    if match is None:
        return None, line
    return match.lastgroup, line[match.end() :]


def _split(kind: str | None, item: str, rejected: MutableMapping[str, int]) -> Iterator[tuple[str | None, str]]:
    """The queries in one line, unwrapped."""
    if kind == "answer":
        _count(rejected, "answer")
        return
    item = " ".join(item.split())
    opening = _PREAMBLE.match(item)
    if opening and (kind is None or item.endswith(":")):
        head, colon, rest = item.partition(":")
        if not colon or not rest.strip() or "?" in head:
            _count(rejected, "preamble")
            return
        _count(rejected, "preamble")
        item = rest
    pieces = [piece for piece in _NUMBERED.split(item.strip()) if piece.strip()]
    for piece in pieces:
        inner_kind, piece = (kind, piece) if kind is not None else _unlabel(piece)
        if inner_kind == "answer":
            _count(rejected, "answer")
            continue
        asked_before = False
        for sentence in _sentences(inner_kind, piece):
            text = _unwrap(sentence)
            if asked_before and not is_question(text):
                _count(rejected, "answer")
                continue
            asked_before = asked_before or text.endswith(("?", "？", "؟"))
            if text:
                yield inner_kind, text
            else:
                _count(rejected, "empty")


def _sentences(kind: str | None, text: str) -> list[str]:
    """Several questions of one line apart; a problem told in two sentences stays whole."""
    parts = [part for part in _FIRST_OF_SENTENCE.split(text) if part.strip(_WRAPPING)]
    if len(parts) < 2 or (kind == "problem" and text.count("?") < 2):
        return [text]
    return parts


def _unwrap(text: str) -> str:
    """Quotes, Markdown and stray punctuation off; a quote or bracket that belongs inside stays."""
    if len(text) > 10 * _MAX_CHARACTERS:
        return text  # refused for its length, whatever is taken off
    text = re.sub(r"(\*\*|__)(.+?)\1", r"\2", text)
    text = re.sub(r"\[([^\]]+)\]\((?:[^)\s]+)\)", r"\1", text).strip()
    text = re.sub(r"\s*\((?:question|keywords?|claim|statement|problem|how-to)\)\s*$", "", text, flags=re.IGNORECASE)
    for opening, closing in (
        ('"', '"'),
        ("“", "”"),
        ("„", "“"),
        ("«", "»"),
        ("'", "'"),
        ("‘", "’"),
        ("`", "`"),
        ("*", "*"),
        ("_", "_"),
        ("「", "」"),
    ):
        inner = text[1:-1]
        if (
            len(text) > 2
            and text[0] == opening
            and text[-1] == closing
            and opening not in inner
            and closing not in inner
        ):
            text = inner.strip()
    if text.count('"') % 2 and text[0] + text[-1] != '""':
        text = text.strip('"').strip()
    return text.strip(" \t\u00a0*_|~").rstrip(",;")


def _is_echo(text: str, prompt: Prompt) -> bool:
    if any(_alike(text, known) for example in prompt.examples for _, known in example.queries):
        return True
    same = normalised(text)
    if any(same == normalised(rule) for rule in KINDS.values()):
        return True
    return length(text) >= 6 and same in normalised(INSTRUCTIONS)


def _is_meta(text: str, passage: str) -> bool:
    """Speaks of the passage. "The author" is fine where the passage itself speaks of authors."""
    for match in _META.finditer(text):
        noun = match.group("noun2")
        if noun is None or not re.search(rf"\b{noun}s?\b", passage, re.IGNORECASE):
            return True
    return False


def _is_foreign(text: str, passage: str) -> bool:
    wanted = words.script(passage)
    if wanted and not words.has_script(text, wanted):
        return True
    if wanted != "LATIN" or length(passage) < 12 or length(text) < 4:
        return False
    spoken, written = words.is_clearly_english(text), words.is_clearly_english(passage)
    return spoken is not None and written is not None and spoken is not written


def _alike(text: str, other: str) -> bool:
    """Equal up to form, or more than four fifths of their content words in common."""
    if normalised(text) == normalised(other):
        return True
    mine, theirs = set(content_terms(text)), set(content_terms(other))
    return min(len(mine), len(theirs)) >= 3 and len(mine & theirs) / len(mine | theirs) > 0.8


def _between(text: str, opening: str, closing: str) -> str:
    start, end = text.find(opening), text.rfind(closing)
    return text[start : end + 1] if 0 <= start < end else ""


def _count(counts: MutableMapping[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1

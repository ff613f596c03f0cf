"""What a generator is asked: one prompt per chunk, several kinds of query, examples before the passage.

The fixed part stands first and the passage last, so that servers which cache prompt prefixes charge it once.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragadapt.queries.generators.words import is_english, script
from ragadapt.queries.text import is_question as text_asks
from ragadapt.values import Chunk, Query

PROMPT_VERSION = 1  # goes into every cache key: raise it when wording changes, and old answers are not reused

KINDS: Mapping[str, str] = {
    "question": "a question in everyday words, ending with a question mark",
    "keywords": "two to six words as typed into a search box, not a sentence",
    "problem": "one sentence in the first person: what the user wants or what goes wrong, without naming the fix",
    "claim": "one short statement that the passage confirms, in other words than the passage's",
}
LABELS: Mapping[str, str] = {kind: kind.capitalize() for kind in KINDS}
MAX_ASKED = 8  # more queries about one passage of 250 tokens only repeat each other
MAX_PASSAGE_CHARACTERS = 6000
CHAT_TEMPERATURE = 0.7  # lower, and queries about different passages grow alike
PLAIN_TEMPERATURE = 0.4  # shown examples only: at .7 a 270M model's queries led back to their passage half as often


@dataclass(frozen=True, slots=True)
class QueryExample:
    """A passage with queries of the wanted sort: pairs of (kind, text)."""

    passage: str
    queries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request about one chunk. seed: of the sampling. key: equal for equal work, for the cache."""

    chunk: Chunk
    kinds: tuple[str, ...]
    examples: tuple[QueryExample, ...]
    users: bool  # the examples are the user's own
    seed: int
    key: str


ENGLISH_EXAMPLES = (
    QueryExample(
        "Bicycle care > Chains\nA chain should be wiped down and lubricated roughly every 200 km, sooner after riding "
        "in rain. Apply one drop per link, wait five minutes, then remove the excess: surplus oil attracts grit and "
        "accelerates wear of the sprockets. A chain elongated by more than 0.75 % must be replaced.",
        (
            ("question", "How often do I have to oil my bike?"),
            ("keywords", "bike lube after wet ride"),
            ("problem", "My gears get dirty really fast since I started putting on lots of oil."),
            ("claim", "Too much grease makes bike parts wear out faster."),
            ("question", "When is it time to buy a new one because it has stretched?"),
            ("keywords", "stretched bike chain limit"),
            ("problem", "I want to know if my old bike chain is worn out."),
            ("claim", "One drop for every link is enough oil."),
        ),
    ),
    QueryExample(
        "Library services > Interlibrary loans\nItems not held locally may be requested from partner institutions. "
        "Requests are free for registered members; delivery normally takes 5–8 working days. Loans are for 28 days "
        "and cannot be renewed. Damaged items are charged at replacement cost.",
        (
            ("question", "Can you get me a book from another town, and what would it cost?"),
            ("keywords", "order book other library waiting time"),
            ("problem", "I'd like to keep the book that was sent over from elsewhere for a bit longer."),
            ("claim", "Borrowers pay for anything they break."),
            ("question", "How long until something I ordered from a different branch arrives?"),
            ("keywords", "extend borrowed book partner"),
            ("problem", "The title I'm after isn't on your shelves."),
            ("claim", "You have four weeks before a book from elsewhere is due back."),
        ),
    ),
    QueryExample(
        "mailer.send(message, *, retries=3, timeout=10.0)\nDeliver one message. Raises DeliveryError once all attempts "
        "are used up. A negative timeout disables the limit. Attachments above 20 MB are uploaded and linked instead.",
        (
            ("question", "How do I stop it from giving up on slow servers?"),
            ("keywords", "python email big file limit"),
            ("problem", "My script crashes when the mail server is down for a moment."),
            ("claim", "Very large files are sent as a download link."),
            ("question", "How many times does it try before an exception is thrown?"),
            ("keywords", "catch failed email python"),
            ("problem", "I need to send somebody a 50 MB video."),
            ("claim", "Sending is attempted more than once by default."),
        ),
    ),
)
OTHER_EXAMPLES = (
    QueryExample(
        "图书馆服务 > 馆际互借\n本馆未收藏的图书可向合作馆申请借阅。注册读者免费，"
        "通常需要5至8个工作日送达，借期28天，不可续借。",
        (
            ("question", "想看的书这里没有怎么办？"),
            ("keywords", "外馆借书 多久到"),
            ("problem", "我从别的馆借来的书还没看完，想多留几天。"),
            ("claim", "从别处调书不用花钱。"),
            ("question", "从其他地方调一本书要等多长时间？"),
            ("keywords", "调书 收费吗"),
            ("problem", "我急着要一本你们没有的书。"),
            ("claim", "调来的书四周内必须归还。"),
        ),
    ),
    QueryExample(
        "Fahrradpflege > Kette\nDie Kette sollte etwa alle 200 km gereinigt und geschmiert werden. Überschüssiges Öl "
        "zieht Schmutz an und beschleunigt den Verschleiß der Ritzel. Ab 0,75 % Längung ist sie zu ersetzen.",
        (
            ("question", "Wie oft muss ich mein Rad ölen?"),
            ("keywords", "Fahrrad Öl wie viel"),
            ("problem", "Meine Gänge sind ständig verdreckt, seit ich mehr Öl benutze."),
            ("claim", "Zu viel Fett lässt Teile am Rad schneller kaputtgehen."),
            ("question", "Woran merke ich, dass ich eine neue brauche?"),
            ("keywords", "ausgeleierte Fahrradkette"),
            ("problem", "Ich will wissen, ob meine alte Kette noch gut ist."),
            ("claim", "Alle paar hundert Kilometer ist eine Reinigung fällig."),
        ),
    ),
)

INSTRUCTIONS = """\
You write search queries that test a search engine. You are shown a passage. Write what people would type or ask when \
exactly this passage is what they need, but they have not seen it and do not know its wording.

Rules:
- Use a user's own everyday words instead of the passage's phrases; keep only names and terms that a user would know.
- Each query is answered by the passage, is about a different point of it, and makes sense on its own.
- Never mention the passage, the text, the document or its author.
- Write in the language of the passage.
- Write only the lines asked for, each with its label: no introduction, no numbers, no quotation marks, no comments."""


def make_prompt(
    chunk: Chunk,
    *,
    asked: int,
    seed: int,
    generator_id: str,
    examples: Sequence[QueryExample] = (),
    kinds: Sequence[str] = tuple(KINDS),
) -> Prompt:
    """The prompt for one chunk: the first kind always, the others in turns from chunk to chunk.

    A question comes first because small models stay with the passage then (about half more of their queries lead
    back to it than after a first-person problem); what follows leans on the first line.
    """
    first, *others = kinds
    shift = int(chunk.content_hash[:8], 16) % max(1, len(others))
    turns = [first, *others[shift:], *others[:shift]]
    wanted = tuple(turns[i % len(turns)] for i in range(min(asked, MAX_ASKED)))
    shown = tuple(examples) or _built_in_examples(chunk.passage)
    identity = [PROMPT_VERSION, generator_id, seed, chunk.content_hash, wanted, [(e.passage, e.queries) for e in shown]]
    digest = hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode("utf-8"))
    return Prompt(
        chunk=chunk,
        kinds=wanted,
        examples=shown,
        users=bool(examples),
        seed=int.from_bytes(digest.digest()[:6], "big"),
        key=digest.hexdigest(),
    )


def examples_from_queries(
    queries: Sequence[Query], chunks: Mapping[str, Chunk], *, count: int, seed: int
) -> list[QueryExample]:
    """Few-shot examples from the user's own queries: those of one passage together, at most `count` passages."""
    by_passage: dict[str, list[tuple[str, str]]] = {}
    for query in queries:
        passage = next((chunks[chunk_id].passage for chunk_id in query.positives if chunk_id in chunks), None)
        if passage is not None and query.text.strip():
            text = " ".join(query.text.split())
            by_passage.setdefault(passage, []).append((looks_like(text), text))
    passages = sorted(by_passage)
    random.Random(seed).shuffle(passages)
    return [QueryExample(_clip(passage, 1200), tuple(by_passage[passage][:4])) for passage in passages[:count]]


_AUXILIARY = re.compile(
    r"(?:how|what|when|where|who|whom|whose|which|why|is|are|am|was|were|do|does|did|can|could|should|would|will|may|must|has"
    r"|have|wer|wo|welche[rsnm]?|kann|muss|darf|gibt|quel(?:le)?s?|quand|où|combien|est-ce|peut-on|cuál(?:es)?|cuándo|dónde"
    r"|quién|cuánto|как|что|почему|когда|где|кто|какой|какие)\b",
    re.IGNORECASE,
)


def is_question(text: str) -> bool:
    """True for a text that asks, with or without the mark at its end; "Is it …" is enough, for users type so."""
    return text_asks(text) or text.rstrip().endswith(("؟", "\u037e")) or bool(_AUXILIARY.match(text))


def looks_like(text: str) -> str:
    """The kind that a query without label seems to be."""
    if is_question(text):
        return "question"
    if not text.rstrip().endswith((".", "!", "。")) and len(text.split()) <= 6:
        return "keywords"
    if re.match(r"(i|i'm|i'd|i've|my|we|our|ich|mein|wir|je|j'|mon|yo|mi)\b", text, re.IGNORECASE) or "我" in text:
        return "problem"
    return "claim"


def chat_text(prompt: Prompt, passage: str | None = None) -> str:
    """The user's message for a model that follows instructions (one message: some templates know no system role)."""
    labels = dict.fromkeys(prompt.kinds)
    parts = [
        INSTRUCTIONS,
        "Labels:\n" + "\n".join(f"{LABELS[kind]}: {rule}" for kind, rule in KINDS.items() if kind in labels),
        "Examples, asked by real users of these documents. Follow their tone and length:"
        if prompt.users
        else "Examples:",
    ]
    for example in prompt.examples:
        lines = [(kind, text) for kind, text in example.queries if prompt.users or kind in labels]
        parts.append(f"<passage>\n{example.passage}\n</passage>\n" + _lines(lines[: max(4, len(prompt.kinds))]))
    order = ", ".join(LABELS[kind] for kind in prompt.kinds)
    parts.append(f"Now write {len(prompt.kinds)} lines for the following passage, in this order: {order}.")
    parts.append(f"<passage>\n{_passage(prompt) if passage is None else passage}\n</passage>")
    return "\n\n".join(parts)


def plain_text(prompt: Prompt, passage: str | None = None) -> str:
    """The beginning of a text that a model without instruction tuning goes on with; it ends with the first label."""
    parts = ["Passages from documents, each followed by what people typed who needed it, in their own words."]
    for example in prompt.examples:
        parts.append(f"Passage: {_one_line(example.passage)}\n" + _lines(_in_order(example, prompt)))
    parts.append(f"Passage: {_one_line(_passage(prompt) if passage is None else passage)}\n{LABELS[prompt.kinds[0]]}:")
    return "\n\n".join(parts)


def _built_in_examples(passage: str) -> tuple[QueryExample, ...]:
    if is_english(passage):
        return ENGLISH_EXAMPLES
    chinese, german = OTHER_EXAMPLES  # the nearest stands last, next to the passage
    if script(passage) == "LATIN":
        return (chinese, ENGLISH_EXAMPLES[1], german)
    return (ENGLISH_EXAMPLES[1], german, chinese)


def _in_order(example: QueryExample, prompt: Prompt) -> list[tuple[str, str]]:
    """The example's queries in the order of the kinds asked; a user's example keeps its own."""
    if prompt.users:
        return list(example.queries)
    left = list(example.queries)
    chosen = []
    for kind in prompt.kinds:
        match = next((query for query in left if query[0] == kind), None)
        if match is not None:
            left.remove(match)
            chosen.append(match)
    return chosen


def _lines(queries: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{LABELS[kind]}: {text}" for kind, text in queries)


def _passage(prompt: Prompt) -> str:
    return _clip(prompt.chunk.passage, MAX_PASSAGE_CHARACTERS)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clip(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    return text[:characters].rsplit(" ", 1)[0] if " " in text[characters // 2 : characters] else text[:characters]

"""The section of the page that shows every question: what it expects, what was found, and why it was missed."""

from __future__ import annotations

from markupsafe import Markup

from ragadapt.evaluation.questions import MISSED, Missed
from ragadapt.report.elements import label_of_system, more, table, tiles
from ragadapt.report.markup import Child, tag
from ragadapt.report.values import ExpectedAnswer, FoundPassage, QuestionJudged, QuestionsJudged, Report
from ragadapt.report.words import count, percent, score

LISTED = 300
"""Questions shown at most on the page, missed ones first; report.json has all of them."""
_SNIPPET = 200  # characters of a result
_SHORT = {
    "base-dense": "dense", "bm25": "BM25", "base-hybrid": "RRF", "fitted-dense": "fitted, dense", "shipped": "ships",
    "reranked": "re-ranked", "other": "the other",
}  # fmt: skip


def questions_section(report: Report) -> Markup | None:
    """None where the report has no questions one by one."""
    found = report.judged
    if found is None:
        return None
    total = len(found.questions)
    missed = [question for question in found.questions if question.missed]
    partly = [question for question in found.questions if question.partly]
    rest = [question for question in found.questions if not question.missed and not question.partly]
    shown = [*missed, *partly, *rest][:LISTED]
    return tag(
        "div",
        tag(
            "p",
            f"Found: among the first {found.k} results of the {label_of_system(report, found.subject)}. Ranks are told "
            f"down to {found.depth}.",
        ),
        tiles(
            [
                (
                    "found",
                    tag("span", count(total - len(missed)), cls="good"),
                    percent(1 - len(missed) / max(total, 1)),
                ),
                ("only part of it", count(len(partly)), None) if partly else ("questions", count(total), None),
                ("missed", tag("span", count(len(missed)), cls="bad"), percent(len(missed) / max(total, 1))),
            ]
        ),
        table(
            ["why missed", "questions", "share"],
            [
                [meaning(reason), count(number), percent(number / max(total, 1))]
                for reason, number in found.reasons.items()
            ],
            caption="Every missed question counts once, by what it expects that came nearest.",
            numeric=(1, 2),
            sort_values=[[meaning(reason), number, number / max(total, 1)] for reason, number in found.reasons.items()],
        )
        if found.reasons
        else None,
        _controls(found) if len(shown) > 1 else None,
        tag("div", [_question(each, found, report) for each in shown], cls="queries", id="every-question"),
        tag("button", "Show all", type="button", cls="more", data_more="every-question", hidden=True),
        more(len(shown), total, "questions"),
    )


def meaning(reason: str) -> str:
    """A reason in words."""
    return MISSED[Missed(reason)] if reason in set(Missed) else reason


def _controls(found: QuestionsJudged) -> Markup:
    marks: list[tuple[str, str]] = [("", "all"), ("found", "found")]
    if any(question.partly for question in found.questions):
        marks.append(("partly", "only part of it"))
    marks += [(reason, f"missed: {meaning(reason)}") for reason in found.reasons]
    return tag(
        "div",
        tag("label", "Find ", tag("input", type="search", data_find="every-question", placeholder="words")),
        tag(
            "label",
            "Show ",
            tag("select", [tag("option", text, value=mark) for mark, text in marks], data_show="every-question"),
        ),
        tag(
            "label",
            "Sort ",
            tag(
                "select",
                tag("option", "worst first", value="up"),
                tag("option", "best first", value="down"),
                data_sort="every-question",
            ),
        ),
        tag("output", data_count="every-question", aria_live="polite"),
        cls="controls",
        hidden=True,
    )


def _question(each: QuestionJudged, found: QuestionsJudged, report: Report) -> Markup:
    look, sign, word = ("good", "✓", "found")
    if each.missed:
        look, sign, word = ("bad", "✗", "missed")
    elif each.partly:
        look, sign, word = ("even", "◐", "partly")
    value = each.values.get(found.subject)
    return tag(
        "details",
        tag(
            "summary",
            tag("span", tag("span", sign, aria_hidden="true"), f" {word}", cls=f"chip {look}"),
            tag("span", each.query, cls="query-text", dir="auto"),
            tag("span", _rank(each, found), cls="ranks"),
        ),
        tag(
            "div",
            tag("p", tag("strong", f"{_upper(meaning(each.missed))}. "), each.why) if each.missed else None,
            _expected(each.expected, found),
            _found(each.found),
            tag(
                "p",
                f"query {each.id}",
                "".join(f" · {label_of_system(report, name)} {score(each.values[name])}" for name in found.systems
                        if name in each.values),
                cls="small",
            ),
            cls="inside",
        ),
        cls="query",
        data_change=f"{-1.0 if value is None else value:.6f}",
        data_mark=each.missed or ("partly" if each.partly else "found"),
    )  # fmt: skip


def _rank(each: QuestionJudged, found: QuestionsJudged) -> str:
    ranks = [answer.ranks[found.subject] for answer in each.expected if found.subject in answer.ranks]
    return f"rank {min(ranks)}" if ranks else "not found"


def _expected(expected: tuple[ExpectedAnswer, ...], found: QuestionsJudged) -> Child:
    def cell(answer: ExpectedAnswer, name: str) -> str:
        return str(answer.ranks[name]) if name in answer.ranks else f"> {found.depth}"

    several = len(expected) > 1  # the reason of a single one stands above
    return table(
        ["expected", *(_SHORT.get(name, name) for name in found.systems), "why missed"],
        [
            [
                [tag("span", _cut(answer.text), dir="auto"), tag("small", _place(answer), cls="note wraps")],
                *(cell(answer, name) for name in found.systems),
                [meaning(answer.missed), tag("small", answer.why, cls="note wraps")]
                if answer.missed and several
                else "–",
            ]
            for answer in expected
        ],
        caption="What it expects, and its rank in every row.",
        numeric=range(1, 1 + len(found.systems)),
    )


def _found(results: tuple[FoundPassage, ...]) -> Child:
    if not results:
        return tag("p", "Nothing was found.", cls="small")
    return table(
        ["rank", "found", "dense", "lexical"],
        [
            [
                [str(rank), tag("span", " ✓", cls="good", title="answers") if one.right else None],
                [
                    tag("small", _where(one), cls="note wraps", dir="auto"),
                    tag("span", _cut(one.passage.text), dir="auto"),
                ],
                *(str(one.ranks[side]) if side in one.ranks else "·" for side in ("dense", "lexical")),
            ]
            for rank, one in enumerate(results, start=1)
        ],
        caption="What was found, and where each side has it (· = deeper than was looked).",
        numeric=(2, 3),
    )


def _place(answer: ExpectedAnswer) -> str:
    passage = answer.passage
    if passage is None:
        return answer.source
    return " › ".join(part for part in (answer.source or passage.source, passage.heading) if part)


def _where(one: FoundPassage) -> str:
    return " › ".join(part for part in (one.passage.source, one.passage.heading) if part) or one.passage.id


def _cut(text: str) -> str:
    return text if len(text) <= _SNIPPET else text[:_SNIPPET].rstrip() + " …"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]

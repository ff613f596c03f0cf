"""Figures in words: the headline, the names of things, numbers as a reader wants them."""

from __future__ import annotations

from ragadapt.evaluation.significance import FEW_QUERIES
from ragadapt.report.values import EvidenceUsed, MeasuredSystem, Report

METRICS = {
    "nDCG@10": "how well the first ten results are ordered; 1 is perfect",
    "nDCG@10, dense": "the same by vectors alone, without the words",
    "R@5": "share of the right passages within the first 5",
    "R@10": "share of the right passages within the first 10",
    "R@100": "share of the right passages within the first 100",
    "RR@10": "1 / rank of the first right passage, 0 beyond 10",
    "AP@100": "average precision over the first 100",
    "evidence recall@5": "share of the quotes that the first 5 passages hold",
    "evidence recall@10": "share of the quotes that the first 10 passages hold",
    "evidence recall, 1,024 tokens": "share of the quotes in the first 1,024 tokens of text",
}

EVIDENCE = {
    "labelled": "questions that your people asked and judged",
    "human": "questions and link texts that people wrote in the documents",
    "paraphrase": "questions that a language model wrote about the passages",
    "crop": "pieces cut from the passages themselves, the weakest evidence",
}

KINDS = {
    "label": "your labelled questions",
    "question": "questions found in the text",
    "link": "link texts",
    "docstring": "docstrings",
    "title": "titles",
    "heading": "headings",
    "sentence": "sentences",
    "keywords": "keywords",
    "identifier": "names in code, as words",
    "crop": "sentence crops",
    "lm-question": "questions by a language model",
    "lm-search": "searches by a language model",
    "lm-claim": "claims by a language model",
    "lm-keywords": "keywords by a language model",
}


def headline(report: Report) -> str:
    """One sentence that says, without jargon, what the reader got."""
    if report.methods is not None:
        return report.methods.sentence
    if report.swept is not None:
        return report.swept.sentence
    if report.judged is not None:
        return report.judged.sentence
    verdict, shipped, base = report.verdict, report.shipped, report.system("base-dense")
    if verdict is None:
        if report.systems:
            return "This report measures what is there. It decides nothing."
        return "Nothing was measured: there were no questions to judge by."
    if verdict.sentence:
        return verdict.sentence
    name = verdict.shipped or (shipped.label if shipped else "the untuned model")
    gain = _gain(report.metric, base, shipped)
    if verdict.untrained:
        found = f"No model was trained. {verdict.untrained.rstrip('.')}"
    elif verdict.outcome == "WIN":
        return f"Search got better on your documents{gain}."
    elif verdict.outcome == "LIKELY GAIN":
        return f"Search most likely got better on your documents, which so few questions cannot prove{gain}."
    elif verdict.outcome == "REGRESSION AVOIDED":
        found = "Tuning made search worse on questions it had not seen, so the tuned model was thrown away"
    else:
        found = "Tuning the model brought no gain that can be shown on your documents, so it stays as it was"
    delta = report.delta(shipped.name, "base-dense") if shipped else None
    if gain and delta is not None and delta.better:
        return f"{found}. What ships ({name}) is still better than the untuned model alone{gain}."
    return f"{found}. What ships: {name}."


def judges(evidence: EvidenceUsed) -> str:
    """How many questions judged, and how."""
    many = f"{count(evidence.queries)} {{}}question{'s' * (evidence.queries != 1)}"
    if evidence.crossed:
        return many.format("") + ", each by a model that had not seen it"
    return many.format("held-out ")


def _gain(metric: str, base: MeasuredSystem | None, shipped: MeasuredSystem | None) -> str:
    if base is None or shipped is None:
        return ""
    before, after = base.metrics.get("R@10"), shipped.metrics.get("R@10")
    if before and after and after.value - before.value >= 0.005:
        return (
            f": its first ten results now hold {percent(after.value)} of the right passages, "
            f"where the untuned model's held {percent(before.value)}"
        )
    before, after = base.metrics.get(metric), shipped.metrics.get(metric)
    if before and after and after.value > before.value:
        return (
            f": right passages stand higher in the results, {metric} rose "
            f"from {score(before.value)} to {score(after.value)}"
        )
    return ""


def score(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """Three decimals with a sign; a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def percent(value: float) -> str:
    """A share as a percentage, with a decimal only where it is needed to tell it from 0 or 100."""
    if 0.9995 <= value < 1:
        return "> 99.9%"
    if 0 < value < 0.0005:
        return "< 0.1%"
    return f"{value:.1%}" if 0 < value < 0.01 or 0.99 < value < 1 else f"{value:.0%}"


def count(value: int) -> str:
    """Thousands set apart by a thin space that does not break."""
    return f"{value:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """A time as 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def size(number_of_bytes: int) -> str:
    """Bytes as kB, MB or GB."""
    value = float(number_of_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def cautions(report: Report) -> tuple[str, ...]:
    """The report's own warnings, then those that its figures call for."""
    found = list(report.warnings)
    if report.evidence is not None and report.evidence.queries < FEW_QUERIES:
        judges = "1 question judges" if report.evidence.queries == 1 else f"{report.evidence.queries} questions judge"
        found.append(
            f"Only {judges} this; below {FEW_QUERIES} the intervals are wide "
            "and the verdict is a hint. More labelled questions make it firm."
        )
    if report.split is not None and report.split.leaked:
        found.append(
            f"{report.split.leaked} training items share text with what the held-out questions look for; "
            "their figures may be too good."
        )
    failed = [check.name for check in report.checks if not check.passed]
    if failed:
        found.append(f"Not proved: {', '.join(failed)}.")
    return tuple(found)

"""The report of a fit or an evaluation: report.json for programs, report.html for people, a table for terminals."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from ragadapt.errors import InvalidInput
from ragadapt.evaluation.files import write_atomically
from ragadapt.report.build import (
    compare,
    differences,
    histogram,
    measured,
    never_retrieved,
    worst_queries,
)
from ragadapt.report.table import question_lines, table
from ragadapt.report.values import (
    SCHEMA_VERSION,
    AdapterCheck,
    ChoicesSwept,
    Comparison,
    CorpusFacts,
    Curve,
    CurvePoint,
    Delta,
    EvidenceUsed,
    ExpectedAnswer,
    Failures,
    FoundPassage,
    Histogram,
    LearningPoint,
    Licence,
    Measure,
    MeasuredSystem,
    MethodMeasured,
    MethodRun,
    MethodsCompared,
    NeverRetrieved,
    Passage,
    QueryComparison,
    QueryResult,
    QueryYield,
    QuestionJudged,
    QuestionsJudged,
    Report,
    ScoreDistributions,
    SkippedSource,
    SplitSizes,
    Step,
    SweptChoice,
    Timing,
    VerdictFacts,
    WorkDone,
)
from ragadapt.report.words import headline
from ragadapt.text import encodable, printable_json

__all__ = [
    "SCHEMA_VERSION",
    "AdapterCheck",
    "ChoicesSwept",
    "Comparison",
    "CorpusFacts",
    "Curve",
    "CurvePoint",
    "Delta",
    "EvidenceUsed",
    "ExpectedAnswer",
    "Failures",
    "FoundPassage",
    "Histogram",
    "LearningPoint",
    "Licence",
    "Measure",
    "MeasuredSystem",
    "MethodMeasured",
    "MethodRun",
    "MethodsCompared",
    "NeverRetrieved",
    "Passage",
    "QueryComparison",
    "QueryResult",
    "QueryYield",
    "QuestionJudged",
    "QuestionsJudged",
    "Report",
    "ScoreDistributions",
    "SkippedSource",
    "SplitSizes",
    "Step",
    "SweptChoice",
    "Timing",
    "VerdictFacts",
    "WorkDone",
    "compare",
    "differences",
    "headline",
    "histogram",
    "measured",
    "never_retrieved",
    "question_lines",
    "read_report",
    "table",
    "worst_queries",
    "write_report",
]


def write_report(folder: str | Path, report: Report) -> tuple[Path, Path]:
    """Write report.json and report.html into the folder, each atomically; returns both paths.

    Parts that are missing are left out of the JSON. The page needs no other file and no network.
    """
    from ragadapt.report.page import page

    folder = Path(folder)
    data = {
        key: value for key, value in report.model_dump(mode="json", exclude_none=True).items() if value or value == 0
    }
    json_path, html_path = folder / "report.json", folder / "report.html"
    write_atomically(json_path, [printable_json(json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)), "\n"])
    write_atomically(html_path, [encodable(page(report))])
    return json_path, html_path


def read_report(path: str | Path) -> Report:
    """The report in a report.json, or in the folder that holds one.

    Raises InvalidInput if there is none, if it is damaged, or if a newer ragadapt wrote it.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"There is no report at {path}. `ragadapt fit` and `ragadapt eval` write one.") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}. Write it again with: ragadapt eval") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InvalidInput(
            f"{path} has the schema version {version!r}; this ragadapt reads up to {SCHEMA_VERSION}. "
            "Upgrade with: pip install -U ragadapt"
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(f"{path} does not hold a report: {error.errors()[0]['msg']}.") from error

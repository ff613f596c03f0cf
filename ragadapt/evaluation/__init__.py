"""Is it better, and how sure are we: metrics, paired intervals, TREC run files, the report."""

from ragadapt.evaluation.metrics import METRICS, Evaluation, evaluate, ranked
from ragadapt.evaluation.runs import escape_id, read_run, write_run
from ragadapt.evaluation.significance import FEW_QUERIES, Interval, interval, paired_bootstrap

__all__ = [
    "FEW_QUERIES",
    "METRICS",
    "Evaluation",
    "Interval",
    "escape_id",
    "evaluate",
    "interval",
    "paired_bootstrap",
    "ranked",
    "read_run",
    "write_run",
]

"""Chunk → Query: from the documents' structure, a language model, or the user's labels; filters and the split."""

from ragadapt.queries.filters import clean_queries, lexical_overlap, replace_positives, round_trip_filter
from ragadapt.queries.generate import RequestEstimate, check_generator, estimate, generate_queries
from ragadapt.queries.judgements import JudgedQuestion, QuestionCounts, QuestionFile
from ragadapt.queries.kinds import KINDS, STRUCTURAL, VERBATIM, evidence_of, evidence_rank, masked_chunk, masked_passage
from ragadapt.queries.labels import (
    MIN_QUOTE_SHARE,
    EvidenceQuote,
    LabelledSet,
    document_finder,
    evidence_hits,
    evidence_recall,
    has_evidence,
    load_labels,
    load_questions,
    narrow_to_best_chunk,
    quote_share,
    same_source,
)
from ragadapt.queries.split import (
    FEWEST_DEV,
    LeakReport,
    Split,
    assign_queries,
    count_leaks,
    deal_folds,
    split_documents,
    split_labelled,
)
from ragadapt.queries.structure import structural_queries
from ragadapt.queries.text import text_key

__all__ = [
    "FEWEST_DEV",
    "KINDS",
    "MIN_QUOTE_SHARE",
    "STRUCTURAL",
    "VERBATIM",
    "EvidenceQuote",
    "JudgedQuestion",
    "LabelledSet",
    "LeakReport",
    "QuestionCounts",
    "QuestionFile",
    "RequestEstimate",
    "Split",
    "assign_queries",
    "check_generator",
    "clean_queries",
    "count_leaks",
    "deal_folds",
    "document_finder",
    "estimate",
    "evidence_hits",
    "evidence_of",
    "evidence_rank",
    "evidence_recall",
    "generate_queries",
    "has_evidence",
    "lexical_overlap",
    "load_labels",
    "load_questions",
    "masked_chunk",
    "masked_passage",
    "narrow_to_best_chunk",
    "quote_share",
    "replace_positives",
    "round_trip_filter",
    "same_source",
    "split_documents",
    "split_labelled",
    "structural_queries",
    "text_key",
]

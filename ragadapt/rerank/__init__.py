"""The second stage: a cross-encoder reads query and passage together, or a multi-vector model compares their tokens."""

from ragadapt.rerank.presets import PRESETS
from ragadapt.rerank.reranker import Reranker, checked_reranker
from ragadapt.rerank.spec import RerankerSpec

__all__ = ["PRESETS", "Reranker", "RerankerSpec", "checked_reranker"]

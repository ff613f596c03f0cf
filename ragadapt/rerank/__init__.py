"""The second stage: a cross-encoder reads query and passage together."""

from ragadapt.rerank.presets import PRESETS
from ragadapt.rerank.reranker import Reranker, RerankerSpec, checked_reranker

__all__ = ["PRESETS", "Reranker", "RerankerSpec", "checked_reranker"]

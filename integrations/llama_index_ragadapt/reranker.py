"""RagAdaptRerank: a re-ranker for the nodes of any retriever, as a LlamaIndex postprocessor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field

from ragadapt.errors import InvalidInput
from ragadapt.search.reranking import rerank_given


class RagAdaptRerank(BaseNodePostprocessor):
    """The nodes that answer a question best, by a model that reads each with the question; best first.

        rerank = RagAdaptRerank.from_pretrained("minilm", top_n=5)
        engine = RetrieverQueryEngine.from_args(retriever, node_postprocessors=[rerank])

    Nodes come with new scores: the model's own, or with a weight below 1 the mix. A `LoRARetriever` re-ranks by itself,
    with the weight that was learnt for its corpus: `LoRARetriever(rerank=True)`. The async twin works in a thread.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    reranker: Any = Field(exclude=True, repr=False)
    """The loaded model, a ragadapt.rerank.Reranker."""
    top_n: int | None = Field(default=5, ge=1)
    """How many nodes are kept; None = all."""
    weight: float = Field(default=1.0, ge=0, le=1)
    """The re-ranker's share of the score; the rest is the nodes' scores, or their order where one has none."""
    score_threshold: float | None = None
    """Leave out what scores less."""

    def __init__(self, **fields: Any) -> None:
        """Raises InvalidInput for a re-ranker that is none, and pydantic's error for other fields that don't fit."""
        from ragadapt.rerank import checked_reranker  # brings torch

        checked_reranker(fields.get("reranker"), "RagAdaptRerank.from_pretrained")
        super().__init__(**fields)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str = "auto", precision: str = "auto", **fields: Any
    ) -> RagAdaptRerank:
        """model: a preset (ettin-17m, colbert-small …), a hub name, a model's folder or a fitted retriever's.

        Raises ModelNotFound, InvalidInput, NotARetriever.
        """
        from ragadapt.rerank import Reranker

        return cls(reranker=Reranker.load(model, device=device, precision=precision), **fields)

    @classmethod
    def class_name(cls) -> str:
        return "RagAdaptRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidInput("RagAdaptRerank reads each node with the question: give query_str or query_bundle.")
        given = [one.score for one in nodes if one.score is not None]
        texts = [one.node.get_content(metadata_mode=MetadataMode.NONE) for one in nodes]
        scores = given if len(given) == len(nodes) else None
        found = rerank_given(
            query_bundle.query_str,
            texts,
            self.reranker,
            scores=scores,
            weight=self.weight,
            threshold=self.score_threshold,
            most=self.top_n,
        )
        return [NodeWithScore(node=nodes[at].node, score=score) for at, score in found]

"""Any LlamaIndex retriever as what `compare_systems` (ragadapt.report.comparison) and `evaluate_questions`
(ragadapt.pipeline.questions) measure."""

from __future__ import annotations

from collections.abc import Callable

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore

from llama_index_ragadapt.retriever import LoRARetriever
from ragadapt.report.comparison import Search
from ragadapt.values import Chunk


def document_of(node: NodeWithScore) -> str:
    """What judgements usually name: the node's document, else the node."""
    return node.node.ref_doc_id or node.node_id


def as_search(retriever: BaseRetriever, id_of: Callable[[NodeWithScore], str] = document_of) -> Search:
    """Questions → ids of the found nodes, best first. Let the retriever return many: it is cut off nowhere else."""

    return lambda queries: [[id_of(node) for node in nodes] for nodes in _retrieved(retriever, queries)]


def as_passages(
    retriever: BaseRetriever, id_of: Callable[[NodeWithScore], str] = document_of
) -> Callable[[list[str]], list[list[Chunk]]]:
    """Questions → the found passages, best first, for `evaluate_questions(…, against=…)`, which looks for quotes in
    them. id_of: what judgements call a node's document."""

    def passage(node: NodeWithScore) -> Chunk:
        text, name = node.node.get_content(MetadataMode.NONE), id_of(node)
        return Chunk(node.node.node_id, name, text, metadata=node.node.metadata, source=name)

    return lambda queries: [[passage(node) for node in nodes] for nodes in _retrieved(retriever, queries)]


def _retrieved(retriever: BaseRetriever, queries: list[str]) -> list[list[NodeWithScore]]:
    if isinstance(retriever, LoRARetriever):
        return retriever.retrieve_many(queries)
    return [retriever.retrieve(query) for query in queries]

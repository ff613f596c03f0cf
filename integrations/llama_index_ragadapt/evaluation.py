"""Any LlamaIndex retriever as what `ragadapt.report.comparison.compare_systems` measures."""

from __future__ import annotations

from collections.abc import Callable

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore

from llama_index_ragadapt.retriever import LoRARetriever
from ragadapt.report.comparison import Search


def document_of(node: NodeWithScore) -> str:
    """What judgements usually name: the node's document, else the node."""
    return node.node.ref_doc_id or node.node_id


def as_search(retriever: BaseRetriever, id_of: Callable[[NodeWithScore], str] = document_of) -> Search:
    """Questions → ids of the found nodes, best first. Let the retriever return many: it is cut off nowhere else."""

    def search(queries: list[str]) -> list[list[str]]:
        if isinstance(retriever, LoRARetriever):
            found = retriever.retrieve_many(queries)
        else:
            found = [retriever.retrieve(query) for query in queries]
        return [[id_of(node) for node in nodes] for nodes in found]

    return search

"""Passages of ours as LlamaIndex nodes, and nodes as what a passage is stored as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from ragadapt.collection import DOCUMENT_KEYS
from ragadapt.values import Chunk, Hit

NODE_ID = "_node_id"
"""The node's id among the metadata, so that filters can name it."""

DOCUMENT_ID = "_ref_doc_id"
"""Its document's, "None" where it has none: the metadata may have fields of LlamaIndex's names for it."""


def as_node(chunk: Chunk) -> BaseNode:
    """The node that was stored; for other passages (a fitted retriever's, another program's) a new TextNode.

    A new node has the passage's id, a copy of its metadata, with `source` and `heading` where the metadata lack them,
    and its document as the source node.
    """
    if isinstance(chunk.metadata.get("_node_content"), str):
        return metadata_dict_to_node(dict(chunk.metadata), text=chunk.text)
    heading = " > ".join(part for part in chunk.heading_path if part)
    origin = {name: value for name, value in {"source": chunk.source, "heading": heading}.items() if value}
    node = TextNode(id_=chunk.id, text=chunk.text, metadata={**origin, **chunk.metadata})
    if chunk.end > chunk.start:
        node.start_char_idx, node.end_char_idx = chunk.start, chunk.end
    if chunk.document_id != chunk.id:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=chunk.document_id)
    return node


def as_related(hits: Sequence[Hit], beside: Sequence[tuple[Chunk | None, Chunk | None]]) -> list[NodeWithScore]:
    """Hits of a fitted retriever as nodes that know the passages beside them, and their document as their parent.

    A hit with a context has its text; the passages that it is made of are the node's children.
    """
    scored = []
    for hit, (previous, following) in zip(hits, beside, strict=True):
        node = as_node(hit.chunk)
        for name, chunk in ((NodeRelationship.PREVIOUS, previous), (NodeRelationship.NEXT, following)):
            if chunk is not None:
                node.relationships[name] = RelatedNodeInfo(node_id=chunk.id)
        if NodeRelationship.SOURCE in node.relationships:
            node.relationships[NodeRelationship.PARENT] = node.relationships[NodeRelationship.SOURCE]
        if hit.context is not None and isinstance(node, TextNode):
            node.set_content(hit.text)
            node.start_char_idx, node.end_char_idx = hit.context.start, hit.context.end
            node.relationships[NodeRelationship.CHILD] = [RelatedNodeInfo(node_id=id) for id in hit.context.passages]
        scored.append(NodeWithScore(node=node, score=hit.score))
    return scored


def as_passage(node: BaseNode) -> tuple[str, str, dict[str, Any]]:
    """(id, text, metadata with the whole node as JSON) of a node."""
    metadata = node_to_metadata_dict(node, remove_text=True, flat_metadata=False)
    document = metadata.get("ref_doc_id") or "None"
    kept = {}
    if not node.metadata.keys().isdisjoint(DOCUMENT_KEYS):  # the user's own go first
        own = json.loads(metadata["_node_content"])["metadata"]
        kept = {name: own[name] for name in DOCUMENT_KEYS if name in own}
    ours = {NODE_ID: node.node_id, DOCUMENT_ID: document}
    return node.node_id, node.get_content(metadata_mode=MetadataMode.NONE), {**metadata, **kept, **ours}

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


def as_scored(hits: Sequence[Hit]) -> list[NodeWithScore]:
    """Hits as nodes with their scores."""
    return [NodeWithScore(node=as_node(hit.chunk), score=hit.score) for hit in hits]


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

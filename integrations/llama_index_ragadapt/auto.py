"""What LlamaIndex's VectorIndexAutoRetriever tells a language model of the metadata of a retriever."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.vector_stores.types import MetadataInfo, VectorStoreInfo

from ragadapt.index.fields import Field

_TYPES = {"text": "str", "number": "float", "date": "str", "boolean": "bool", "mixed": "str"}


def vector_store_info(fields: Sequence[Field], content: str) -> VectorStoreInfo:
    """fields: of the retriever (`Retriever.fields()`). content: what its documents are about, in words."""
    infos = []
    for field in fields:
        kind = _TYPES[field.kind]
        if field.kind == "number" and all(isinstance(value, int) for value in field.examples):
            kind = "int"
        infos.append(
            MetadataInfo(
                name=field.name, type=f"list of {kind}" if field.several else kind, description=field.description
            )
        )
    return VectorStoreInfo(content_info=content, metadata_info=infos)

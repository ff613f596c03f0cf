"""An auto-retriever: a language model makes a filter of what a question says of dates, numbers and names.

python examples/llama_index/auto_retriever.py ./retriever

A stand-in answers for the language model; any LLM of LlamaIndex goes in its place.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.retrievers import VectorIndexAutoRetriever
from llama_index_ragadapt import RagAdaptVectorStore
from llama_index_ragadapt.auto import vector_store_info

from ragadapt import Retriever

QUESTION = "In the pages for developers, how many calls may I make in a minute?"


class StandIn(CustomLLM):
    """Answers as a language model does that was told of the field "audience"."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        assert '"audience"' in prompt
        filters = [{"key": "audience", "value": "developer", "operator": "=="}]
        return CompletionResponse(text=json.dumps({"query": "calls in a minute", "filters": filters, "top_k": 3}))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        yield self.complete(prompt, formatted, **kwargs)


def main(folder: str) -> None:
    with Retriever.open(folder) as opened:
        info = vector_store_info(opened.fields(), "help pages of a service that keeps files in step")
    for field in info.metadata_info:
        print(f"{field.name}:", field.type, field.description)
    store = RagAdaptVectorStore.from_pretrained(folder)
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model)
    retriever = VectorIndexAutoRetriever(index, info, llm=StandIn(), similarity_top_k=3)
    print("found:", *dict.fromkeys(node.node.ref_doc_id for node in retriever.retrieve(QUESTION)))
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])

"""An index and a query engine over the fitted retriever, with a stand-in for the language model.

python examples/llama_index/query_engine.py ./retriever
"""

from __future__ import annotations

import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index_ragadapt import LoRARetriever, RagAdaptVectorStore

QUESTION = "how do I get my money back?"


def main(folder: str) -> None:
    llm = MockLLM(max_tokens=16)  # any language model goes here

    store = RagAdaptVectorStore.from_pretrained(folder)
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model)
    response = index.as_query_engine(llm=llm, similarity_top_k=3).query(QUESTION)
    print("index:", *(node.node.ref_doc_id for node in response.source_nodes))

    users = MetadataFilters(filters=[MetadataFilter(key="audience", value="user")])
    retriever = LoRARetriever.from_pretrained(folder, similarity_top_k=3, filters=users)
    response = RetrieverQueryEngine.from_args(retriever, llm=llm).query(QUESTION)
    print("retriever:", *(node.node.ref_doc_id for node in response.source_nodes))
    print("best:", response.source_nodes[0].text.splitlines()[0])
    store.close()
    retriever.close()


if __name__ == "__main__":
    main(sys.argv[1])

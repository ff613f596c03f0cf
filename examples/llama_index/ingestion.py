"""A pipeline that embeds with the fitted model and keeps a store in step: new, changed and deleted documents.

python examples/llama_index/ingestion.py ./retriever
"""

from __future__ import annotations

import sys
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index_ragadapt import LoRAEmbedding, RagAdaptVectorStore

PAGES = Path(__file__).resolve().parents[1] / "pages"


def main(folder: str) -> None:
    embed_model = LoRAEmbedding.from_pretrained(folder)
    store = RagAdaptVectorStore(kind="faiss", embed_model=embed_model, feedback=True)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0), embed_model],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    documents = {page.name: page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md"))}

    def run() -> None:
        nodes = pipeline.run(documents=[Document(text=text, id_=name) for name, text in documents.items()])
        print(f"embedded {len({node.ref_doc_id for node in nodes})} documents, the store holds", end=" ")
        print(len({node.ref_doc_id for node in store.get_nodes()}))

    run()  # all of them
    run()  # nothing changed
    documents["api.md"] = documents["api.md"].replace("Sixty", "Ninety")
    del documents["sharing.md"]
    run()  # one changed, one is gone

    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    retriever = index.as_retriever(similarity_top_k=1)
    best = retriever.retrieve("how many requests are allowed?")[0]
    print("found:", best.node.ref_doc_id, "Ninety" in best.text)
    store.add_feedback("traffic jam", best.node_id)  # learnt by the store, so the plain index knows it too
    print("after feedback:", retriever.retrieve("traffic jam")[0].node.ref_doc_id)
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])

"""The fitted model in other programs: a sentence-transformers folder, ragadapt is not needed to serve it.

python examples/langchain/plain_model.py ./retriever
"""

from __future__ import annotations

import sys
from pathlib import Path

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from sentence_transformers import SentenceTransformer

PAGES = Path(__file__).resolve().parents[1] / "pages"


class PlainEmbeddings(Embeddings):
    """What `HuggingFaceEmbeddings(model_name="./retriever/model")` of langchain-huggingface comes to."""

    def __init__(self, folder: Path) -> None:
        self.model = SentenceTransformer(str(folder))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.model.encode_document(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self.model.encode_query(text).tolist()
        return vector


def main(folder: str) -> None:
    store = InMemoryVectorStore(PlainEmbeddings(Path(folder) / "model"))
    store.add_texts([page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md"))])
    best = store.similarity_search("how do I get my money back?", k=1)[0]
    print("found:", best.page_content.splitlines()[3])
    print("ragadapt loaded:", "ragadapt" in sys.modules)


if __name__ == "__main__":
    main(sys.argv[1])

"""Feedback over embeddings that ragadapt did not train: any LangChain `Embeddings` will do.

python examples/langchain/any_embeddings.py
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_ragadapt import RagAdaptVectorStore

PAGES = Path(__file__).resolve().parents[1] / "pages"


class WordHashes(Embeddings):
    """Stands for an embedding service: each word has a direction of its own, a text is their sum."""

    model = "word-hashes-256"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        total = np.zeros(256)
        for word in re.findall(r"\w+", text.lower()):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            total += np.random.default_rng(seed).normal(size=256)
        vector: list[float] = total.tolist()
        return vector


def main() -> None:
    store = RagAdaptVectorStore(WordHashes(), kind="faiss", feedback=True)
    for page in sorted(PAGES.glob("*.md")):
        sections = [section.strip() for section in page.read_text(encoding="utf-8").split("## ")[1:]]
        store.add_texts(sections, [{"source": page.name} for _ in sections], ids=[s.splitlines()[0] for s in sections])
    asked = "I want my cash again"
    print("before:", store.similarity_search(asked, k=1)[0].id)
    store.add_feedback(asked, "Refunds", user="anna")
    print("after:", store.similarity_search(asked, k=1)[0].id)
    print("a similar question:", store.similarity_search("I want my cash", k=1)[0].id)
    print("feedback off:", store.similarity_search(asked, k=1, lam=1.0)[0].id)
    print("taken back:", store.withdraw_feedback(user="anna"), store.similarity_search(asked, k=1)[0].id)


if __name__ == "__main__":
    main()

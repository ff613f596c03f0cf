"""A Qdrant collection that langchain-qdrant filled: used as it is, improved, and migrated while it is being read.

    python examples/langchain/existing_collection.py

The collection lives in memory here; with a server, give its URL instead of `client`. Nothing is embedded again before
the last step.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path

from langchain_core.documents import Document
from langchain_ragadapt import LoRAEmbeddings, RagAdaptVectorStore
from qdrant_client import QdrantClient, models

from ragadapt import FitConfig, Labels, fit
from ragadapt.index.foreign import ForeignQdrantIndex, migrate

PAGES = Path(__file__).resolve().parents[1] / "pages"


def fill_as_langchain_qdrant_does(client: QdrantClient, embeddings: LoRAEmbeddings) -> None:
    """What `QdrantVectorStore.add_documents` leaves behind: page_content and metadata, vectors compared by cosine."""
    sections = [
        (page.name, section.strip())
        for page in sorted(PAGES.glob("*.md"))
        for section in page.read_text(encoding="utf-8").split("## ")[1:]
    ]
    client.create_collection(
        "handbook", vectors_config=models.VectorParams(size=embeddings.dim, distance=models.Distance.COSINE)
    )
    vectors = embeddings.embed_documents([text for _, text in sections])
    client.upsert(
        "handbook",
        [
            models.PointStruct(
                id=str(uuid.uuid4()), vector=vector, payload={"page_content": text, "metadata": {"source": source}}
            )
            for (source, text), vector in zip(sections, vectors, strict=True)
        ],
    )
    alias = models.CreateAlias(collection_name="handbook", alias_name="live")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])


def questions(folder: Path) -> Labels:
    """Questions of your users with the passage that answers each; the more, the better."""
    asked = {
        "can I get a refund?": ("billing.md", "A payment is returned in full within 30 days of purchase."),
        "my password is gone": ("account.md", 'choose Security and press "Send reset link"'),
        "how many calls per minute?": ("api.md", "Sixty requests a minute are allowed"),
        "two of us edited the same file": ("sync.md", "both versions are kept"),
        "who can restore a deleted file?": ("sharing.md", "Owners of a folder can bring them back"),
    }
    path = folder / "questions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for text, (source, quote) in asked.items():
            file.write(json.dumps({"text": text, "evidence": [{"source": source, "quote": quote}]}) + "\n")
    return Labels(path)


def main() -> None:
    client, base = QdrantClient(":memory:"), LoRAEmbeddings(model="offline")
    fill_as_langchain_qdrant_does(client, base)
    payloads = sorted(str(point.payload) for point in client.scroll("handbook", limit=100)[0])

    # 1. As it is, with feedback on top: the collection itself is not changed.
    store = RagAdaptVectorStore.from_existing_collection(base, client=client, collection="live", feedback=True)
    question = "the reset mail does not come"
    found = store.similarity_search(question, k=3)
    print("before feedback:", found[0].metadata["source"])
    store.add_feedback(question, str(found[0].id))
    print("after feedback:", [round(score, 2) for _, score in store.similarity_search_with_score(question, k=1)])

    # 2. An adapted query side over the same vectors. The gate decides; without a gain the base model stays.
    texts = [
        Document(id=str(point.id), page_content=point.payload["page_content"], metadata=point.payload["metadata"])
        for point in client.scroll("live", limit=100)[0]
        if point.payload
    ]
    with tempfile.TemporaryDirectory() as name:
        config = FitConfig.build({"encoder": {"model": "offline"}, "adapter": {"adapt": "query"}})
        result = fit(texts, Path(name) / "retriever", config, labels=[questions(Path(name))], chunked=True)
        adapted = LoRAEmbeddings.from_pretrained(result.path)
        print("fitted:", result.verdict)
        improved = RagAdaptVectorStore.from_existing_collection(adapted, client=client, collection="live")
        print("query side:", improved.similarity_search(question, k=1)[0].metadata["source"])

        # 3. Migrated to vectors of the fitted model: ids and payloads stay, readers of the alias notice nothing.
        old = ForeignQdrantIndex.existing(client=client, collection="handbook")
        migrate(old, "handbook-2", adapted.encoder.encode_passages, alias="live", fingerprint=adapted.fingerprint)
        moved = RagAdaptVectorStore.from_existing_collection(adapted, client=client, collection="live")
        print("migrated:", moved.similarity_search(question, k=1)[0].metadata["source"])
    after = sorted(str(point.payload) for point in client.scroll("live", limit=100)[0])
    print("payloads kept:", after == payloads)


if __name__ == "__main__":
    main()

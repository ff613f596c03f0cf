"""What you have today beside what you would get: any LlamaIndex retriever, measured on your own questions.

python examples/llama_index/compare.py ./retriever [report folder]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index_ragadapt import LoRAEmbedding, LoRARetriever
from llama_index_ragadapt.evaluation import as_search

from ragadapt.report import table, write_report
from ragadapt.report.comparison import compare_systems

PAGES = Path(__file__).resolve().parents[1] / "pages"
QUESTIONS = json.loads(PAGES.with_name("pages-questions.json").read_text(encoding="utf-8"))  # question → page


def main(folder: str, target: str | None = None) -> None:
    ours = LoRARetriever.from_pretrained(folder, similarity_top_k=20)
    texts = {page.name: page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md"))}
    index = VectorStoreIndex.from_documents(  # the index of your application goes here
        [Document(text=text, id_=name) for name, text in texts.items()], embed_model=LoRAEmbedding("offline")
    )
    report = compare_systems(
        {question: question for question in QUESTIONS},
        {question: {page: 1} for question, page in QUESTIONS.items()},
        {"today": as_search(index.as_retriever(similarity_top_k=5)), "ragadapt": as_search(ours)},
        texts=texts,
    )
    print(table(report))
    if target is not None:
        print("written:", *write_report(target, report))
    ours.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

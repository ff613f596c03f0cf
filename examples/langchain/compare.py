"""What you have today beside what you would get: any LangChain retriever, measured on your own questions.

python examples/langchain/compare.py ./retriever [report folder]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ragadapt import LoRAEmbeddings, LoRARetriever
from langchain_ragadapt.evaluation import as_search

from ragadapt.report import table, write_report
from ragadapt.report.comparison import compare_systems

PAGES = Path(__file__).resolve().parents[1] / "pages"
QUESTIONS = json.loads(PAGES.with_name("pages-questions.json").read_text(encoding="utf-8"))  # question → page


def main(folder: str, target: str | None = None) -> None:
    ours = LoRARetriever.from_pretrained(folder, k=20)
    today = InMemoryVectorStore(LoRAEmbeddings(model="offline"))  # the retriever of your application goes here
    texts = {page.name: page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md"))}
    today.add_texts(list(texts.values()), [{"source": name} for name in texts])
    report = compare_systems(
        {question: question for question in QUESTIONS},
        {question: {page: 1} for question, page in QUESTIONS.items()},
        {"today": as_search(today.as_retriever(search_kwargs={"k": 5})), "ragadapt": as_search(ours)},
        texts=texts,
    )
    print(table(report))
    if target is not None:
        print("written:", *write_report(target, report))
    ours.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

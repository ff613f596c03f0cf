"""The fitted retriever in a LangChain chain, with a stand-in for the chat model, and its events as a stream.

python examples/langchain/chain.py ./retriever
"""

from __future__ import annotations

import asyncio
import sys

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_ragadapt import LoRARetriever

QUESTION = "how do I get my money back?"


def as_text(documents: list[Document]) -> str:
    return "\n\n".join(f"[{document.metadata['source']}] {document.page_content}" for document in documents)


def build(retriever: LoRARetriever) -> Runnable[str, str]:
    prompt = ChatPromptTemplate.from_template("Answer from this:\n{context}\n\nQuestion: {question}")
    model = FakeListChatModel(responses=["Within 30 days, in full."])  # any chat model goes here
    return {"context": retriever | as_text, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()


async def stream(chain: Runnable[str, str]) -> None:
    async for event in chain.astream_events(QUESTION, version="v2"):
        if event["event"] == "on_retriever_end":
            print("found:", *(document.metadata["source"] for document in event["data"]["output"]))
        if event["event"] == "on_parser_stream":
            print(event["data"]["chunk"], end="")
    print()


def main(folder: str) -> None:
    retriever = LoRARetriever.from_pretrained(folder, k=3)
    chain = build(retriever)
    print("answer:", chain.invoke(QUESTION))
    asyncio.run(stream(chain))
    for document in retriever.invoke(QUESTION, k=1, filter={"audience": "user"}):
        print("best for users:", document.id, document.page_content.splitlines()[0])
    retriever.close()


if __name__ == "__main__":
    main(sys.argv[1])

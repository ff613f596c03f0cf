"""Self-querying: a language model makes a filter of what a question says of dates, numbers and names.

python examples/langchain/self_query.py ./retriever

A stand-in answers for the language model. With a real one, and `pip install lark`, LangChain's own
`load_query_constructor_runnable(llm, contents, attribute_info(fields))` takes the place of `constructor` below.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, StructuredQuery
from langchain_ragadapt import RagAdaptVectorStore
from langchain_ragadapt.self_query import RagAdaptTranslator, attribute_info

from ragadapt import Retriever

QUESTION = "In the pages for developers, how many calls may I make in a minute?"
ANSWER = json.dumps({"query": "calls in a minute", "field": "audience", "is": "developer"})  # of a language model


def to_structured(message: Any) -> StructuredQuery:
    asked = json.loads(message.content)
    test = Comparison(comparator=Comparator.EQ, attribute=asked["field"], value=asked["is"])
    return StructuredQuery(query=asked["query"], filter=test, limit=None)


def constructor(told: list[dict[str, str]]) -> Runnable[Any, StructuredQuery]:
    prompt = ChatPromptTemplate.from_template("Fields: {fields}\n\nQuestion: {query}\n\nQuery and filter as JSON:")
    model = FakeListChatModel(responses=[ANSWER])  # any chat model goes here
    return prompt.partial(fields=json.dumps(told)) | model | RunnableLambda(to_structured)


def main(folder: str) -> None:
    with Retriever.open(folder) as opened:
        fields = opened.fields()
    for told in attribute_info(fields):
        print(f"{told['name']}:", told["type"], told["description"])
    store = RagAdaptVectorStore.from_pretrained(folder)
    retriever = SelfQueryRetriever(
        query_constructor=constructor(attribute_info(fields)),
        vectorstore=store,
        structured_query_translator=RagAdaptTranslator(fields),
    )
    print("found:", *dict.fromkeys(document.metadata["source"] for document in retriever.invoke(QUESTION)))
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])

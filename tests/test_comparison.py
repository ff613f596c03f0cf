"""Retrievers side by side: the figures are those of the metrics, whoever the retriever is by."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_ragadapt.evaluation import as_search
from llama_index.core.base.base_retriever import BaseRetriever as NodeRetriever
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from llama_index_ragadapt.evaluation import as_search as as_node_search

from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.report.comparison import compare_systems

QUERIES = {"q1": "one", "q2": "two", "q3": "not judged", "q4": "judged as nothing"}
QRELS = {"q1": {"a": 1}, "q2": {"b": 1}, "q4": {"a": 0}}
ANSWERS = {"one": ["a", "b"], "two": ["c", "a", "c", "b"]}


class Documents(BaseRetriever):
    def _get_relevant_documents(self, query: str, **kwargs: object) -> list[Document]:
        return [Document(page_content=id, metadata={"source": id}) for id in ANSWERS[query]]


class Nodes(NodeRetriever):
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        nodes = []
        for place, id in enumerate(ANSWERS[query_bundle.query_str]):
            node = TextNode(id_=f"{id}-{place}", text=id)
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=id)
            nodes.append(NodeWithScore(node=node, score=None))
        return nodes


@pytest.mark.parametrize("search", [as_search(Documents()), as_node_search(Nodes())])
def test_any_retriever_is_measured_by_the_rank_of_each_document(search: object) -> None:
    perfect = lambda queries: [["a"] if query == "one" else ["b"] for query in queries]  # noqa: E731
    report = compare_systems(QUERIES, QRELS, {"today": search, "ours": perfect}, texts={"b": "text of b"})  # type: ignore[dict-item]
    today, ours = report.systems
    # q1 finds its document first; q2 third, for c counts once.
    assert today.metrics["RR@10"].value == pytest.approx((1 + 1 / 3) / 2)
    assert ours.metrics["RR@10"].value == 1
    delta = report.delta("ours", "today")
    assert delta is not None
    assert delta.delta == pytest.approx((1 - 1 / 2) / 2)  # nDCG of rank 3 is 1 / log2(4)
    assert report.evidence is not None
    assert report.evidence.queries == 2
    assert report.comparison is not None
    (changed,) = [query for query in report.comparison.queries if query.id == "q2"]
    assert (changed.before.rank, changed.after.rank) == (3, 1)
    assert changed.expected is not None
    assert changed.expected.text == "text of b"


def test_what_cannot_be_compared_is_named() -> None:
    nothing = lambda queries: [[] for _ in queries]  # noqa: E731
    with pytest.raises(InvalidLabels, match="None of the 4 questions has a judgement above 0"):
        compare_systems(QUERIES, {"q1": {"a": 0}}, {"x": nothing, "y": nothing})
    with pytest.raises(InvalidInput, match="name at least two"):
        compare_systems(QUERIES, QRELS, {"x": nothing})
    with pytest.raises(InvalidInput, match="'y' answered 0 of 2 questions"):
        compare_systems(QUERIES, QRELS, {"x": nothing, "y": lambda queries: []})

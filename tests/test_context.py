"""What a language model is given: hits with what stands around them, within a budget, exact and whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_retriever import fit_pages

from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents
from ragadapt.errors import InvalidInput
from ragadapt.retriever import Retriever
from ragadapt.search.context import Expand, Surroundings, checked_expand, expand_hits, hits_for
from ragadapt.text import rough_tokens
from ragadapt.values import Chunk, Document, Hit

SECTIONS = 4


def words(texts: Sequence[str]) -> list[int]:
    return [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def count(text: str) -> int:
    return words([text])[0]


def page(name: str) -> Document:
    """A title, sections, and in each two subsections of two paragraphs that fill a passage each."""
    text = f"# {name}\n\n"
    for section in range(SECTIONS):
        text += f"## Section {section}\n\n"
        for part in range(2):
            text += f"### Part {section}{part}\n\n"
            text += "".join(f"{' '.join(f'{name}{section}{part}{p}w{n}' for n in range(12))}.\n\n" for p in range(2))
    return Document(f"{name}.md", text, name, source=f"{name}.md")


class Shelf:
    """Documents cut into passages of at most 20 words, and what is read of them."""

    def __init__(self, *documents: Document) -> None:
        self.texts = {document.id: document.text for document in documents}
        config = ChunkConfig(max_tokens=None, min_tokens=0, overlap_tokens=0)
        self.chunks = chunk_documents(documents, config, words, 20)
        self.read: list[str] = []

    def neighbours(self, id: str, count: int, *, back: bool = False) -> list[Chunk]:
        self.read.append(id)
        at = next(n for n, chunk in enumerate(self.chunks) if chunk.id == id)
        side = self.chunks[:at][::-1] if back else self.chunks[at + 1 :]
        return [one for one in side if one.document_id == self.chunks[at].document_id][:count]

    def expand(
        self, hits: Sequence[int], expand: Expand, visible: Callable[[Sequence[str]], list[bool]] | None = None
    ) -> list[Hit]:
        found = [Hit(self.chunks[at], 1 / (1 + rank)) for rank, at in enumerate(hits)]
        return expand_hits(found, expand, Surroundings(self.neighbours, visible))

    def exact(self, hit: Hit) -> bool:
        context = hit.context
        return context is not None and self.texts[hit.chunk.document_id][context.start : context.end] == context.text


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return Shelf(page("a"), page("b"))


def held(shelf: Shelf, hit: Hit) -> list[int]:
    """The numbers of the passages that a hit's context is made of."""
    assert hit.context is not None
    at = {chunk.id: n for n, chunk in enumerate(shelf.chunks)}
    return [at[id] for id in hit.context.passages]


def test_neighbours_come_from_both_sides_as_far_as_the_budget_goes(shelf: Shelf) -> None:
    [hit] = shelf.expand([5], Expand("neighbours", 66, count))
    assert held(shelf, hit) == [4, 5, 6, 7]
    assert shelf.exact(hit)
    assert hit.text.startswith("## Section 1\n\n### Part 10\n\na100w0 ")


def test_the_largest_section_that_fits_is_given_whole(shelf: Shelf) -> None:
    [small] = shelf.expand([5], Expand("section", 45, count))
    [large] = shelf.expand([5], Expand("section", 90, count))
    assert held(shelf, small) == [4, 5]
    assert held(shelf, large) == [4, 5, 6, 7]
    assert large.text.startswith("## Section 1\n\n### Part 10")
    assert large.text.endswith("a111w11.")


def test_a_section_that_does_not_fit_is_given_as_far_as_it_goes_and_no_further() -> None:
    long = "# T\n\n## One\n\n" + "".join(f"{f'w{n} ' * 14}.\n\n" for n in range(6)) + "## Two\n\nOther words here.\n"
    shelf = Shelf(Document("t.md", long, "T"))
    assert len(shelf.chunks) == 7
    [hit] = shelf.expand([4], Expand("section", 50, count))
    assert held(shelf, hit) == [3, 4, 5]
    [hit] = shelf.expand([5], Expand("section", 70, count))
    assert held(shelf, hit)[-1] == 5


def test_a_document_that_fits_is_given_whole_with_its_title(shelf: Shelf) -> None:
    [hit] = shelf.expand([20], Expand("document", 1000, count))
    assert hit.text == shelf.texts["b.md"].rstrip()
    [less] = shelf.expand([20], Expand("document", 90, count))
    assert held(shelf, less) == [20, 21, 22, 23]


def test_hits_that_touch_become_one_in_the_place_of_the_best(shelf: Shelf) -> None:
    first, second = shelf.expand([9, 20, 8], Expand("neighbours", 60, count))
    assert held(shelf, first) == [8, 9]
    assert first.chunk.id == shelf.chunks[9].id
    assert first.context is not None and first.context.found == (shelf.chunks[9].id, shelf.chunks[8].id)
    assert held(shelf, second) == [20]
    assert shelf.exact(first) and shelf.exact(second)


def test_a_lower_hit_that_grows_into_a_better_one_joins_it(shelf: Shelf) -> None:
    hits = shelf.expand([0, 3], Expand("section", 200, count))
    assert [held(shelf, hit) for hit in hits] == [[0, 1, 2, 3]]
    assert hits[0].chunk.id == shelf.chunks[0].id


def test_what_a_filter_hides_is_never_given_nor_what_lies_behind_it(shelf: Shelf) -> None:
    hidden = {shelf.chunks[6].id, shelf.chunks[2].id}

    def visible(ids: Sequence[str]) -> list[bool]:
        return [id not in hidden for id in ids]

    for to in ("neighbours", "section", "document"):
        [hit] = shelf.expand([4], Expand(to, 2000, count), visible)  # type: ignore[arg-type]
        assert set(held(shelf, hit)) <= {3, 4, 5}
        assert all(chunk.text not in hit.text for chunk in shelf.chunks if chunk.id in hidden)


def test_code_and_tables_are_given_whole_or_not_at_all() -> None:
    code = "\n\n".join(f"line_{n} = {n}" for n in range(12))
    text = f"# T\n\n{'Words before. ' * 6}\n\n```python\n{code}\n```\n\n{'Words after. ' * 6}\n"
    shelf = Shelf(Document("t.md", text, "T"))
    blocks = [n for n, chunk in enumerate(shelf.chunks) if chunk.continues]
    assert len(blocks) >= 2
    [inside] = shelf.expand([blocks[0]], Expand("neighbours", 58, count))
    assert inside.text.count("```") == 2
    assert "line_0 " in inside.text and "line_11 " in inside.text
    [before] = shelf.expand([0], Expand("neighbours", 45, count))
    assert held(shelf, before) == [0]  # the block does not fit
    [cut] = shelf.expand([blocks[0]], Expand("neighbours", 40, count))  # nor does it here, and the hit is in it
    assert len(held(shelf, cut)) == 2


def test_what_is_left_of_a_budget_goes_to_further_hits(shelf: Shelf) -> None:
    hits = [Hit(shelf.chunks[at], 1.0) for at in (9, 20, 10, 25)]
    alone = expand_hits(hits, Expand("section", 90, count), Surroundings(shelf.neighbours), first=1)
    assert [held(shelf, hit) for hit in alone] == [[8, 9, 10, 11], [20]]
    assert alone[0].context is not None and alone[0].context.found == (shelf.chunks[9].id, shelf.chunks[10].id)
    both = expand_hits(hits[:2], Expand("section", 90, count), Surroundings(shelf.neighbours))
    assert [held(shelf, hit) for hit in both] == [[8, 9], [20, 21]]


def test_the_first_hit_is_given_however_large_it_is(shelf: Shelf) -> None:
    [hit] = shelf.expand([3, 4], Expand("section", 1, count))
    assert held(shelf, hit) == [3]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 31), unique=True, min_size=1, max_size=8),
    st.sampled_from(["neighbours", "section", "document"]),
    st.integers(20, 400),
    st.sets(st.integers(0, 31), max_size=4),
)
@example([0, 1, 6, 2], "document", 86, {4})
def test_contexts_are_exact_disjoint_and_within_the_budget(
    hits: list[int], to: Any, tokens: int, walls: set[int]
) -> None:
    shelf = SHELF
    hits = [hit for hit in hits if hit not in walls]
    ids = {shelf.chunks[wall].id for wall in walls}
    made = shelf.expand(hits, Expand(to, tokens, count), lambda asked: [id not in ids for id in asked])
    given = [at for hit in made for at in held(shelf, hit)]
    assert len(given) == len(set(given))
    assert not walls & set(given)
    assert all(shelf.exact(hit) for hit in made)
    alone = sum(count(hit.text) for hit in shelf.expand(hits[:1], Expand(to, 1, count), lambda ids: [False] * len(ids)))
    assert sum(count(hit.text) for hit in made) <= max(tokens, alone)
    best = [min(hits.index(at) for at in held(shelf, hit) if at in hits) for hit in made]
    assert best == sorted(best)
    assert not hits or best[0] == 0


SHELF = Shelf(page("a"), page("b"))


def test_passages_that_came_cut_are_parted_by_blank_lines() -> None:
    chunks = [Chunk(f"d{n}", "d", f"text number {n}", end=13) for n in range(3)]

    def read(id: str, count: int, *, back: bool = False) -> list[Chunk]:
        at = int(id[1:])
        return chunks[:at][::-1][:count] if back else chunks[at + 1 :][:count]

    [hit] = expand_hits([Hit(chunks[1], 1.0)], Expand("document", 100), Surroundings(read))
    assert hit.text == "text number 0\n\ntext number 1\n\ntext number 2"


def test_passages_that_overlap_say_what_they_share_once() -> None:
    text = "one two three four five six seven"
    chunks = [Chunk("d0", "d", text[:18], start=0, end=18), Chunk("d1", "d", text[8:], start=8, end=len(text))]

    def read(id: str, count: int, *, back: bool = False) -> list[Chunk]:
        return [chunks[0]] * (id == "d1") if back else [chunks[1]] * (id == "d0")

    [hit] = expand_hits([Hit(chunks[1], 1.0)], Expand("neighbours", 100), Surroundings(read))
    assert hit.text == text
    assert hit.context is not None and (hit.context.start, hit.context.end) == (0, len(text))


@pytest.mark.parametrize("value", ["paragraph", 0, -5, True, 2.5, [1]])
def test_what_is_no_expansion_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="expand") as told:
        checked_expand(value)
    assert "result" not in str(told.value)


def test_a_number_is_a_budget_and_a_word_says_how_far() -> None:
    assert checked_expand(None) is None
    assert checked_expand(500) == Expand("neighbours", 500)
    assert checked_expand("document") == Expand("document")


@pytest.mark.parametrize(("tokens", "of_each", "hits"), [(2048, 150, 12), (512, 150, 3), (10, 150, 1), (9**9, 1, 100)])
def test_hits_leave_a_tenth_of_the_budget_to_what_stands_around_them(tokens: int, of_each: int, hits: int) -> None:
    assert hits_for(Expand(tokens=tokens), of_each) == hits


# In a fitted retriever


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    with Retriever.open(fit_pages(tmp_path_factory.mktemp("fitted"))) as retriever:
        yield retriever


@pytest.fixture(scope="module")
def texts(opened: Retriever) -> dict[str, str]:
    """The pages as they were read: without front matter."""
    return {
        path.name: path.read_text(encoding="utf-8").split("---\n", 2)[2]
        for path in (opened.path.parent / "docs").glob("*.md")
    }


def test_a_search_gives_whole_pages_exactly(opened: Retriever, texts: dict[str, str]) -> None:
    query = next(iter(opened.chunks)).text
    plain = opened.search(query, 3)
    wide = opened.search(query, 3, expand="document")
    assert wide[0].chunk == plain[0].chunk
    assert wide[0].score == plain[0].score
    assert wide[0].text.strip() == texts[wide[0].chunk.source].strip()
    for hit in opened.search(query, 6, expand=Expand("neighbours", 150)):
        assert hit.context is not None
        assert hit.chunk.text in hit.text
    assert all(hit.context is None and hit.text == hit.chunk.text for hit in plain)


def test_expansion_keeps_to_the_filter(opened: Retriever) -> None:
    chunk = opened.chunks.of_document("page03.md#0" if "page03.md#0" in opened.chunks.document_ids() else "page03.md")[
        0
    ]
    [hit] = opened.search(chunk.text, 1, filter={"id": chunk.id}, expand="document")
    assert hit.text.endswith(chunk.text)
    assert hit.context is not None and hit.context.passages == (chunk.id,)
    [whole] = opened.search(chunk.text, 1, filter={"document_id": chunk.document_id}, expand="document")
    assert whole.context is not None and len(whole.context.passages) > 1


def test_many_queries_are_expanded_as_one_is(opened: Retriever) -> None:
    queries = [chunk.text for chunk in list(opened.chunks)[:4]]
    many = opened.search_many(queries, 4, expand=300)
    assert [[hit.context for hit in hits] for hits in many] == [
        [hit.context for hit in opened.search(query, 4, expand=300)] for query in queries
    ]


def test_a_budget_chooses_how_many_hits_there_are(opened: Retriever) -> None:
    mean = opened.snapshot().passage_tokens()
    assert mean == sum(rough_tokens(chunk.text) for chunk in opened.chunks) / len(opened)
    budget = Expand("neighbours", round(mean * 4.4))
    assert (opened.wanted(None), opened.wanted(None, budget)) == (5, 4)
    assert opened.wanted(None, budget.tokens) == 4
    found = [hit.chunk.id for hit in opened.search("stone river cat", expand=budget)]
    four = [hit.chunk.id for hit in opened.search("stone river cat", 4, expand=budget)]
    assert found[: len(four)] == four
    assert opened.wanted(7, budget) == 7

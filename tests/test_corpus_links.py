"""Internal links: slugs, relative and published paths, which site is this corpus."""

from __future__ import annotations

import pytest

from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents, internal_links, read_documents
from ragadapt.corpus.links import slug
from ragadapt.values import Chunk, Document

FILLER = "Some words that fill this section up. "


def sections(document: Document) -> list[Chunk]:
    return chunk_documents([document], ChunkConfig(min_tokens=0), lambda ts: [len(t.split()) for t in ts], 12)


def links_of(files: dict[str, str]) -> list[tuple[str, str, str]]:
    """(text, document it stands in, target as "document" or "document > heading")."""
    documents = [Document(name, text, "", {}, name) for name, text in files.items()]
    chunks = [chunk for document in documents for chunk in sections(document)]
    by_id = {chunk.id: chunk for chunk in chunks}
    found = []
    for link in internal_links(documents, chunks):
        target = by_id[link.to_chunk_id]
        place = " > ".join([target.document_id, *target.heading_path[-1:]])
        found.append((link.text, by_id[link.from_chunk_id].document_id, place))
    return found


GUIDE = (
    f"# Guide\n\n{FILLER}\n\n## Set up\n\n{FILLER}\n\n## Set up\n\n{FILLER} second\n\n"
    f"## Named {{#own-name}}\n\n{FILLER}\n"
)


@pytest.mark.parametrize(
    ("markup", "text", "target"),
    [
        ("[the guide](guide.md)", "the guide", "guide.md > Guide"),
        ("[set *it* up](guide.md#set-up)", "set it up", "guide.md > Set up"),
        ("[`named`](./guide.md#own-name 'title')", "named", "guide.md > Named"),
        ("[angled](<guide.md#named>)", "angled", "guide.md > Named"),
        ("[without suffix](guide#own-name)", "without suffix", "guide.md > Named"),
        ("[![img](x.png) picture](guide.md)", "img picture", "guide.md > Guide"),
        ('<a class="b" href="guide.md#own-name">by <b>HTML</b></a>', "by HTML", "guide.md > Named"),
        ("[by reference][ref]\n\n[ref]: guide.md#own-name", "by reference", "guide.md > Named"),
        ("[Ref]\n\n[ref]: guide.md#own-name", "Ref", "guide.md > Named"),
        ("[team](sub/)", "team", "sub/README.md > Team"),
        ("[team](sub/#team)", "team", "sub/README.md > Team"),
    ],
)
def test_links_resolve_to_the_section_they_name(markup: str, text: str, target: str) -> None:
    files = {"a.md": f"{FILLER}{markup}\n", "guide.md": GUIDE, "sub/README.md": f"# Team\n\n{FILLER}{FILLER}\n"}
    assert links_of(files) == [(text, "a.md", target)]


@pytest.mark.parametrize(
    "markup",
    [
        "[no such page](missing.md)",
        "[no such section](guide.md#missing)",
        "[outside](https://example.org/guide)",
        "[mail](mailto:a@example.org)",
        "`[in code](guide.md)`",
        "```\n[in a block](guide.md)\n```",
        "![image](guide.md)",
        "[](guide.md)",
        "[above the root](../../guide.md)",
        "[broken](http://[::1)",
    ],
)
def test_what_is_no_link_into_the_corpus_gives_none(markup: str) -> None:
    assert links_of({"a.md": f"{FILLER}\n\n{markup}\n", "guide.md": GUIDE}) == []


def test_the_second_heading_of_one_name_has_its_number() -> None:
    (found,) = links_of({"a.md": f"{FILLER}[x](guide.md#set-up-1)", "guide.md": GUIDE})
    documents = [Document("guide.md", GUIDE, "", {}, "guide.md")]
    assert found[2] == "guide.md > Set up"
    page = Document("a.md", f"{FILLER}[x](guide.md#set-up-1)", "", {}, "a.md")
    chunks = [c for d in (documents[0], page) for c in sections(d)]
    (link,) = internal_links([*documents, page], chunks)
    assert "second" in next(c for c in chunks if c.id == link.to_chunk_id).text


def test_links_within_a_page_need_another_chunk() -> None:
    text = GUIDE + "\n## Last\n\nSee [there](#own-name) and [here](#last).\n"
    assert links_of({"guide.md": text}) == [("there", "guide.md", "guide.md > Named")]


PAGES = {
    "values/_index.md": f"# Values\n\n{FILLER}{FILLER}\n",
    "people/hiring.md": f"# Hiring\n\n{FILLER}{FILLER}\n",
    "sales/_index.md": f"# Sales\n\n{FILLER}{FILLER}\n",
}


def test_paths_from_the_root_of_the_site_find_their_pages_by_vote() -> None:
    text = (
        f"{FILLER}[v](/handbook/values/) [h](/handbook/people/hiring#hiring) [s](/handbook/sales) "
        "[jobs](/job-families/sales)\n"
    )
    assert [target for _, _, target in links_of({"a.md": text, **PAGES})] == [
        "values/_index.md > Values",
        "people/hiring.md > Hiring",
        "sales/_index.md > Sales",
    ]


def test_full_addresses_count_only_for_the_site_that_the_corpus_came_from() -> None:
    ours = "https://docs.example.org/en"
    text = f"{FILLER}[v]({ours}/values/) [h]({ours}/people/hiring.html) [s]({ours}/sales) [x](https://other.org/values)"
    assert [target for _, _, target in links_of({"a.md": text, **PAGES})] == [
        "values/_index.md > Values",
        "people/hiring.md > Hiring",
        "sales/_index.md > Sales",
    ]


def test_files_below_a_content_folder_are_found_from_the_root() -> None:
    files = {f"content/docs/{name}": text for name, text in PAGES.items()}
    text = f"{FILLER}[v](/values/) [s](/sales/) [up](../people/hiring.md)"
    assert [t for _, _, t in links_of({"content/docs/values/a.md": text, **files})] == [
        "content/docs/values/_index.md > Values",
        "content/docs/sales/_index.md > Sales",
        "content/docs/people/hiring.md > Hiring",
    ]


def test_rst_links_by_document_label_and_path() -> None:
    files = {
        "a.rst": f"{FILLER}:doc:`the other <sub/b>`, :ref:`my label <far>`, `plain <sub/b.html>`_ and :class:`x <y>`\n",
        "sub/b.rst": f"Bee\n===\n\n{FILLER}{FILLER}\n\n.. _far:\n\nFar away\n--------\n\n{FILLER}{FILLER}\n",
    }
    assert [(text, target) for text, _, target in links_of(files)] == [
        ("the other", "sub/b.rst > Bee"),
        ("my label", "sub/b.rst > Far away"),
        ("plain", "sub/b.rst > Bee"),
    ]


def test_pages_of_one_name_are_not_guessed() -> None:
    files = {"a.md": f"{FILLER}[x](b)", "b.md": f"# B\n\n{FILLER}", "b.rst": f"B\n===\n\n{FILLER}"}
    assert links_of(files) == []


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What's new in 3.11?", "whats-new-in-311"),
        ("A - B & C_d", "a---b--c_d"),
        ("🤝 Collaboration", "-collaboration"),
        ("漢字 測試", "漢字-測試"),
    ],
)
def test_slugs_are_github_s(heading: str, anchor: str) -> None:
    assert slug(heading) == anchor


def test_html_pages_link_to_each_other(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "a.html").write_text(f"<h1>A</h1><p>{FILLER}<a href='b.html#p'>see part</a></p>", "utf-8")
    (folder / "b.html").write_text(f"<h1>B</h1><p>{FILLER * 2}</p><h2 id='p'>Part</h2><p>{FILLER}</p>", "utf-8")
    documents = read_documents([folder]).documents
    chunks = [c for d in documents for c in sections(d)]
    (link,) = internal_links(documents, chunks)
    target = next(c for c in chunks if c.id == link.to_chunk_id)
    assert (link.text, target.document_id, target.heading_path[-1]) == ("see part", "b.html", "Part")


def test_the_handbook_s_own_fragments_all_resolve(data: object) -> None:
    from pathlib import Path

    documents = read_documents([Path(str(data)) / "handbook" / "docs"]).documents
    chunks = chunk_documents(documents, ChunkConfig(), lambda ts: [len(t) // 4 for t in ts], 254)
    found = internal_links(documents, chunks)
    assert 650 < len(found) < 800
    assert len({link.to_chunk_id for link in found}) > 250
    assert all(link.from_chunk_id != link.to_chunk_id for link in found)

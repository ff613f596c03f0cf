"""Texts in an index: feedback that goes with them, changes that are whole, and what other programs do to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from ragadapt.collection import Collection, open_collection
from ragadapt.errors import IndexFault, InvalidInput
from ragadapt.index.foreign import ForeignQdrantIndex
from ragadapt.search.fusion import UNLEARNT_WEIGHT

WORDS = ("fox", "bridge", "bread", "river", "oven", "red")
KINDS = ("exact", "faiss", "qdrant-edge", "qdrant")


def embed(texts: Sequence[str]) -> np.ndarray:
    """How often each word occurs, and a little of everything."""
    return np.array([[text.split().count(word) + 0.1 for word in WORDS] for text in texts], np.float32)


def opened(kind: str, folder: Path | None = None, **settings: Any) -> Collection:
    where: dict[str, Any] = {"url": ":memory:"} if kind == "qdrant" and folder is None else {"folder": folder}
    settings = {"feedback": True, "fingerprint": "e", **settings}
    return open_collection(kind, dim=len(WORDS), embed=embed, **where, **settings)


def add(store: Collection, **texts: str) -> None:
    store.add(list(texts), list(texts.values()), embed(list(texts.values())), [{} for _ in texts])


def found(store: Collection, query: str, mode: Any = "hybrid", **more: Any) -> list[str]:
    return [hit.chunk.id for hit in store.search([query], embed([query]), 10, mode=mode, **more)[0]]


# Feedback


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_sleeps_while_its_id_has_another_text(kind: str) -> None:
    store = opened(kind)
    add(store, a="red fox", b="bridge", c="bread oven")
    before = found(store, "river", "dense")
    store.add_feedback("river", "c", weight=1.0)
    assert found(store, "river", "dense")[0] == "c"
    add(store, c="fox fox")
    assert store.pefa.status().inactive == 1
    add(store, a="red fox", b="bridge")  # others may change
    assert store.pefa.status().active == 0
    add(store, c="bread oven")
    assert store.pefa.status().active == 1 and found(store, "river", "dense")[0] == "c"
    store.delete(["c"])
    assert store.pefa.status().inactive == 1
    add(store, c="something else")
    assert store.pefa.status().inactive == 1
    store.delete(["c"])
    add(store, c="bread oven")
    assert store.pefa.status().active == 1
    store.withdraw_feedback(query="river")
    assert found(store, "river", "dense") == before
    store.close()


def test_feedback_names_a_passage_that_is_there_and_fields_that_are_known() -> None:
    store = opened("exact")
    add(store, a="red fox")
    for wrong in ({"id": "b"}, {"id": "a", "tenant": 0}, {"id": "a", "tenant": ""}, {"id": "a", "colour": "red"}):
        with pytest.raises(InvalidInput):
            store.add_feedback("fox", **wrong)
    for nobody in (0, False, [], ""):
        with pytest.raises(InvalidInput, match="tenant"):
            store.search(["fox"], embed(["fox"]), 3, tenant=nobody)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="tenant"):
            store.withdraw_feedback(tenant=nobody)  # type: ignore[arg-type]
    assert store.pefa.status().feedback == 0


# All or nothing


def state(store: Collection) -> Any:
    ids = sorted(store.ids())
    texts = {id: (chunk.text, dict(chunk.metadata)) for id, chunk in store.get(ids).items()}
    return ids, texts, store.vectors(ids).tolist(), found(store, "red bridge"), found(store, "red", "lexical")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["add", "delete"])
@pytest.mark.parametrize("where", ["index", "feedback"])
def test_a_change_that_fails_leaves_everything_as_it_was(
    kind: str, change: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(kind)
    add(store, a="red fox", b="bridge", c="bread oven")
    store.add_feedback("river", "b")
    before = state(store), store.pefa.status()
    if where == "feedback":
        resolve = store.pefa._passages.resolve
        monkeypatch.setattr(store.pefa._passages, "resolve", lambda _: (_ for _ in ()).throw(OSError("disk is full")))
    else:
        own = getattr(store.index, "upsert" if change == "add" else "delete")
        failing = [True]

        def half(ids: Any, *rest: Any) -> None:
            if not failing:
                own(ids, *rest)
                return
            failing.clear()
            own(ids[:2], *(part[:2] for part in rest))
            raise OSError("disk is full")

        monkeypatch.setattr(store.index, "upsert" if change == "add" else "delete", half)
    with pytest.raises(OSError, match="disk is full"):
        if change == "add":
            add(store, b="oven", new="river", c="other")
        else:
            store.delete(["b", "a", "c"])
    if where == "feedback":
        monkeypatch.setattr(store.pefa._passages, "resolve", resolve)
    assert (state(store), store.pefa.status()) == before
    store.close()


# Folders that other processes save

OTHER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_collection import add, opened
store = opened(sys.argv[2], Path(sys.argv[3]), feedback=False)
add(store, new="river river", a="oven")
store.delete(["b"])
store.save()
"""


def other_program(kind: str, folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", OTHER, str(Path(__file__).parent), kind, str(folder)], check=True, timeout=120
    )


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_a_folder_that_another_process_saved_is_followed(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with closing(opened(kind, folder)) as store:
        add(store, a="red fox", b="bridge", c="bread oven")
        store.save()
    with closing(opened(kind, folder)) as store:
        store.add_feedback("bread", "a")
        other_program(kind, folder)
        assert sorted(store.ids()) == ["a", "c", "new"]
        assert found(store, "river")[0] == "new" and found(store, "river", "lexical") == ["new"]
        assert store.get(["a"])["a"].text == "oven" and store.pefa.status().inactive == 1
        add(store, d="fox")
        store.save()
    with closing(opened(kind, folder)) as store:
        assert sorted(store.ids()) == ["a", "c", "d", "new"]


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_unsaved_changes_and_those_of_another_process_are_never_mixed(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with closing(opened(kind, folder)) as store:
        add(store, a="red fox", b="bridge", c="bread oven")
        store.save()
    with closing(opened(kind, folder, feedback=False)) as store:
        add(store, mine="fox")
        other_program(kind, folder)
        before = state(store)
        for attempt in (lambda: add(store, x="y"), lambda: store.delete(["a"]), store.save):
            with pytest.raises(IndexFault, match="Another process saved"):
                attempt()
        assert state(store) == before and "mine" in before[0]
        store.save(tmp_path / "elsewhere")
    with closing(opened(kind, folder, feedback=False)) as store:
        assert sorted(store.ids()) == ["a", "c", "new"]
    with closing(opened(kind, tmp_path / "elsewhere", feedback=False)) as store:
        assert sorted(store.ids()) == ["a", "b", "c", "mine"]


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_an_index_whose_files_another_process_removed_reads_on(kind: str, tmp_path: Path) -> None:
    """Metadata are read at first use, which may be after the file went."""
    folder = tmp_path / "store"
    with closing(opened(kind, folder, feedback=False)) as store:
        add(store, a="red fox", b="bridge", c="bread oven")
        store.save()
    with closing(opened(kind, folder, feedback=False)) as store:
        other_program(kind, folder)
        assert store.index.payloads(["b"])[0]["_text"] == "bridge"


# Collections that other programs write to


def point(number: int, text: str) -> models.PointStruct:
    payload = {"page_content": text, "metadata": {"n": number}}
    return models.PointStruct(id=number, vector=embed([text])[0].tolist(), payload=payload)


@pytest.fixture(params=["foreign", "own"])
def live(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """(the collection, another program that adds texts under numbers, one that deletes)."""
    if request.param == "own":
        store = opened("qdrant")
        other = Collection(store.index)
        names = [str(number) for number in range(6)]
        texts = [f"{word} {number}" for number, word in enumerate(WORDS)]
        other.add(names, texts, embed(texts), [{"n": number} for number in range(6)])
        return (
            store,
            lambda number, text: other.add([str(number)], [text], embed([text]), [{"n": number}]),
            lambda number: other.delete([str(number)]),
        )
    client = QdrantClient(":memory:", force_disable_check_same_thread=True)
    client.create_collection("c", vectors_config=models.VectorParams(size=6, distance=models.Distance.COSINE))
    client.upsert("c", [point(number, f"{word} {number}") for number, word in enumerate(WORDS)])
    index = ForeignQdrantIndex.existing(client=client, collection="c")
    return (
        Collection(index, feedback=True, embed=embed, fingerprint="e"),
        lambda number, text: client.upsert("c", [point(number, text)]),
        lambda number: client.delete("c", models.PointIdsList(points=[number])),
    )


@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
def test_word_search_follows_what_another_program_does(live: tuple[Any, Any, Any], mode: str) -> None:
    store, put, remove = live
    store.add_feedback("oven", "4")
    assert found(store, "fox", mode)[0] == "0"
    put(10, "fox fox oven")
    assert set(found(store, "fox", mode)[:2]) == {"0", "10"}
    assert found(store, "fox", mode, filter={"n": {"$gte": 10}}) == ["10"]
    remove(10)
    assert "10" not in found(store, "fox", mode)
    remove(0)
    put(11, "fox river fox")  # as many as before
    store._look_again = 0.0
    assert found(store, "fox", mode)[0] == "11" and "0" not in found(store, "fox", mode)
    put(11, "bread bread")  # another text under the id
    store._look_again = 0.0
    assert "11" in found(store, "bread", mode)[:2]
    if mode == "lexical":
        assert found(store, "fox", mode) == []
    assert store.pefa.status().active == 1
    put(4, "red")
    store._look_again = 0.0
    found(store, "bread", mode)
    assert store.pefa.status().inactive == 1
    for number in (1, 2, 3, 4, 5, 11):
        remove(number)
    assert found(store, "fox", mode) == []


def test_a_search_in_the_middle_of_changes_finds_what_is_there(
    live: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time the words are built, somebody deletes one passage and adds another."""
    store, put, remove = live
    built, turn = Collection._built, [0]

    def meddled(self: Collection) -> Any:
        searcher = built(self)
        if turn[0] < 5:
            remove(turn[0])
            put(20 + turn[0], "fox oven")
            turn[0] += 1
        return searcher

    monkeypatch.setattr(Collection, "_built", meddled)
    for _ in range(4):
        ids = found(store, "fox bridge red oven")
        assert ids and set(ids) <= set(store.ids())


# Words


def lexical_hits(store: Collection, query: str) -> list[str]:
    return [hit.chunk.id for hit in store.search([query], None, 10, mode="lexical")[0] if hit.score > 0]


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_only_ask_are_left_out_by_the_language_of_the_texts(kind: str) -> None:
    store = opened(kind)
    english = "The red fox runs over the bridge because the baker leaves fresh bread beside the river, and who could"
    add(store, a=f"{english} blame it.", b=f"{english.replace('who could', 'nobody would')} say a word.")
    assert lexical_hits(store, "who could") == []
    assert set(lexical_hits(store, "which fox")) == {"a", "b"}

    german = (
        "Der Fuchs läuft über die Brücke, weil der Bäcker frisches Brot neben dem Fluss liegen lässt. Aus den Äpfeln "
        "im Garten wird Must gepresst, und die Kinder trinken ihn mit großer Freude nach der Schule. "
    )
    store.delete(["a", "b"])
    add(store, **{name: f"{german} Seite {name}" for name in "cdefgh"})
    assert len(lexical_hits(store, "must")) == 6  # the juice, not a question word
    assert lexical_hits(store, "der die und") == []


def test_a_store_mixes_by_the_weight_that_every_fold_chose() -> None:
    store = opened("exact")
    add(store, a="red fox", b="bridge river", c="bread oven", d="fox bread")
    [unset] = store.search(["red bread"], embed(["red bread"]), 4, mode="hybrid")
    [given] = store.search(["red bread"], embed(["red bread"]), 4, mode="hybrid", weight=UNLEARNT_WEIGHT)
    assert [(hit.chunk.id, hit.score) for hit in unset] == [(hit.chunk.id, hit.score) for hit in given]
    [plain] = store.search(["red bread"], embed(["red bread"]), 4, mode="hybrid", weight=0.5)
    assert [hit.score for hit in plain] != [hit.score for hit in unset]

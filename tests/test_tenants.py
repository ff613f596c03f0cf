"""An adapter for every tenant: its questions go through it, those of others do not, and it is swapped while serving."""

from __future__ import annotations

import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ragadapt_cli.main import run
from small_retriever import fit_pages
from tiny_models import sentences

from ragadapt.adapters import AdapterState, attach
from ragadapt.adapters.library import CorpusStatistics, Library
from ragadapt.adapters.tenants import TenantAdapters
from ragadapt.config import AdapterConfig, EncoderConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidConfiguration, StoreCorrupt
from ragadapt.retriever import Retriever

TEXTS = sentences(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("organisation"))


@pytest.fixture(scope="module")
def base(folder: Path) -> Encoder:
    """As it was loaded for the fit."""
    return Encoder.load(EncoderConfig(model=str(folder.parent / "base" / "model"), precision="float32"))


def learnt(base: Encoder, seed: int, method: str = "lora", **settings: object) -> AdapterState:
    encoder = attach(base, AdapterConfig.model_validate({"method": method, "adapt": "query", **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return encoder.state()


def put(library: Library, name: str, state: AdapterState, **settings: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 32)).astype(np.float32)
    library.add(name, state, CorpusStatistics.of(vectors, "print"), **settings)  # type: ignore[arg-type]


def alone(base: Encoder, state: AdapterState) -> np.ndarray:
    """What the adapter gives by itself."""
    encoder = attach(base, state.config, seed=state.seed)
    encoder.begin_at(state)
    encoder.scale(state.scale)
    return encoder.encode_queries(TEXTS)


@pytest.fixture
def library(base: Encoder, tmp_path: Path) -> Library:
    made = Library.open(tmp_path / "library", create=True)
    put(made, "red", learnt(base, 1, rank=2))
    put(made, "green", replace(learnt(base, 2, rank=2), scale=0.5))
    put(made, "blue", learnt(base, 3, "houlsby"))
    return made


def test_each_tenant_gets_the_vectors_of_its_own_adapter_in_any_order(base: Encoder, library: Library) -> None:
    tenants = TenantAdapters(base, library)
    expected = {name: alone(base, library.entry(name).adapter()) for name in library.names()}
    plain = base.encode_queries(TEXTS)
    for name in ("red", "green", "red", "blue", "green", "blue", "red"):
        found = tenants.encode_queries(name, TEXTS)
        assert np.allclose(found, expected[name], atol=1e-6), name
        assert not np.allclose(found, plain, atol=1e-2)
    assert np.array_equal(tenants.encode_queries("nobody", TEXTS), plain)
    assert "red" in tenants and "nobody" not in tenants and "../red" not in tenants
    assert len(tenants._towers) == 2  # of one shape, one


def test_an_adapter_that_is_replaced_added_or_removed_counts_from_the_next_question(
    base: Encoder, library: Library
) -> None:
    tenants = TenantAdapters(base, library)
    tenants.encode_queries("red", TEXTS)
    other = learnt(base, 9, rank=2)
    put(library, "red", other, replace=True)
    put(library, "new", other)
    for name in ("red", "new"):
        assert np.allclose(tenants.encode_queries(name, TEXTS), alone(base, other), atol=1e-6)
    library.remove("red")
    assert np.array_equal(tenants.encode_queries("red", TEXTS), base.encode_queries(TEXTS))


def test_only_so_many_adapters_are_held_and_all_are_served(base: Encoder, library: Library) -> None:
    tenants = TenantAdapters(base, library, held=1)
    for name in ("red", "green", "red"):
        assert np.allclose(
            tenants.encode_queries(name, TEXTS), alone(base, library.entry(name).adapter()), atol=1e-6
        )  # fmt: skip
        assert list(tenants._states) == [name]


def test_threads_that_ask_for_different_tenants_do_not_mix_them(base: Encoder, library: Library) -> None:
    tenants = TenantAdapters(base, library)
    expected = {name: alone(base, library.entry(name).adapter()) for name in ("red", "green")}
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(15):
            if not np.allclose(tenants.encode_queries(name, TEXTS), expected[name], atol=1e-6):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("red", "green", "red", "green")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_adapters_of_other_bases_sides_and_damaged_ones_are_told(base: Encoder, library: Library) -> None:
    tenants = TenantAdapters(base, library)
    put(library, "foreign", replace(learnt(base, 1, rank=2), base="another"))
    put(library, "both", learnt(base, 1, rank=2, adapt="both"))
    for name, words in (("foreign", "belongs to the base model"), ("both", "--adapt query")):
        with pytest.raises(InvalidConfiguration, match=words):
            tenants.encode_queries(name, TEXTS)
    (library.folder / "blue" / "adapter.json").write_text("{}")
    with pytest.raises(StoreCorrupt, match="differs from its hash"):
        tenants.encode_queries("blue", TEXTS)


def test_a_base_that_was_adapted_itself_takes_no_tenants(base: Encoder, library: Library) -> None:
    adapted = attach(base, AdapterConfig(rank=2)).merged()
    with pytest.raises(InvalidConfiguration, match="--method none"):
        TenantAdapters(adapted, library)


# In a retriever


def test_search_of_a_tenant_is_that_of_its_vectors(folder: Path, base: Encoder, library: Library) -> None:
    with Retriever.open(folder, precision="float32", tenant_adapters=library.folder) as opened:
        expected = opened.search_many(TEXTS, vectors=alone(base, library.entry("red").adapter()), mode="dense")
        found = opened.search_many(TEXTS, mode="dense", tenant="red")
        plain = opened.search_many(TEXTS, mode="dense")
        nobody = opened.search_many(TEXTS, mode="dense", tenant="nobody")
        ids = [[[hit.chunk.id for hit in hits] for hits in of] for of in (expected, found, plain, nobody)]
        assert ids[0] == ids[1] != ids[2] == ids[3]
        asked = {str(at): text for at, text in enumerate(TEXTS)}
        best = opened.run(asked, 3, mode="dense", level="chunk", tenant="red")
        assert [next(iter(of)) for of in best.values()] == [of[0] for of in ids[0]]
        again = pickle.loads(pickle.dumps(opened))
        assert [hit.chunk.id for hit in again.search(TEXTS[0], mode="dense", tenant="red")] == ids[0][0]
        again.close()


def test_the_frameworks_search_for_a_tenant_by_its_adapter(folder: Path, library: Library) -> None:
    from langchain_ragadapt import LoRARetriever as OfLangChain
    from llama_index_ragadapt import LoRARetriever as OfLlamaIndex

    with Retriever.open(folder, tenant_adapters=library.folder) as opened:
        own = [hit.chunk.id for hit in opened.search(TEXTS[0], 8, mode="dense", tenant="red")]
        assert own != [hit.chunk.id for hit in opened.search(TEXTS[0], 8, mode="dense")]
    where: Any = {"search_type": "dense", "tenant_adapters": library.folder, "tenant": "red"}
    documents = OfLangChain.from_pretrained(folder, k=8, **where).invoke(TEXTS[0])
    nodes = OfLlamaIndex.from_pretrained(folder, 8, **where).retrieve(TEXTS[0])
    assert [one.id for one in documents] == [one.node_id for one in nodes] == own


def test_commands_take_the_library(folder: Path, library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    def best(*more: str) -> list[str]:
        assert run(["search", str(folder), TEXTS[0], "--mode", "dense", "-k", "8", "--json", *more]) == 0
        hits = json.loads(capsys.readouterr().out)["hits"]
        return [hit["id"] for hit in hits]

    own = best("--tenant-adapters", str(library.folder), "--tenant", "red")
    assert own != best("--tenant", "red") == best("--tenant-adapters", str(library.folder))


def test_server_searches_for_a_tenant_by_its_adapter(folder: Path, library: Library) -> None:
    import httpx
    from running_server import running

    def best(address: str, **more: str) -> list[str]:
        body = {"query": TEXTS[0], "mode": "dense", "k": 8, **more}
        return [hit["id"] for hit in httpx.post(f"{address}/search", json=body).json()["hits"]]

    with running(("docs", folder), tenant_adapters=str(library.folder)) as address:
        plain, own = best(address), best(address, tenant="red")
    assert own != plain
    with Retriever.open(folder, tenant_adapters=library.folder) as opened:
        assert own == [hit.chunk.id for hit in opened.search(TEXTS[0], 8, mode="dense", tenant="red")]

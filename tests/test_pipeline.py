"""fit(), end to end, on a toy corpus with a toy model: what is written, what is refused, what survives a kill."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from forks import start
from tiny_models import sentences, write_tiny_model

from ragadapt.config import AdapterConfig, FitConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import (
    EmptyCorpus,
    GeneratorFailed,
    InvalidConfiguration,
    InvalidInput,
    InvalidLabels,
    NotARetriever,
    TrainingFailed,
)
from ragadapt.evaluation import gate
from ragadapt.evaluation.significance import Interval
from ragadapt.pipeline import fit as pipeline_fit
from ragadapt.pipeline.adapt import dev_judges, side_of
from ragadapt.pipeline.arena import Arena
from ragadapt.pipeline.fit import FitResult, fit
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.reindex import reindex
from ragadapt.report.words import headline
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import Background
from ragadapt.store.workspace import open_store
from ragadapt.values import Chunk, Document, Evidence, Query

DOCUMENTS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages with two sections each, every one of them of its own."""
    folder = tmp_path_factory.mktemp("docs")
    lines = iter(sentences(DOCUMENTS * 8, words=12, seed=3))
    for number in range(DOCUMENTS):
        text = f"# Page {number}\n\n"
        for section in range(2):
            text += f"## Part {number} {section}\n\n" + ". ".join(next(lines) for _ in range(4)) + ".\n\n"
        (folder / f"page{number:02}.md").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def labels(docs: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Questions that share some words with the page that answers them."""
    folder = tmp_path_factory.mktemp("labels")
    rng = random.Random(0)
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number in range(DOCUMENTS):
            words = (docs / f"page{number:02}.md").read_text().split("\n\n")[2].split()
            for turn in range(4):
                id = f"q{number}_{turn}"
                queries.write(json.dumps({"_id": id, "text": " ".join(rng.sample(words, 5))}) + "\n")
                qrels.write(f"{id}\tpage{number:02}.md\t1\n")
    return Labels(folder / "queries.jsonl", folder / "qrels.tsv")


def settings(model: Path, **changes: dict[str, object]) -> FitConfig:
    values: dict[str, dict[str, object]] = {
        "encoder": {"model": str(model), "precision": "float32"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "training": {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "evaluations": 2},
        "adapter": {"rank": 4},
        "gate": {"max_drift": 2.0, "cross_fit_below": 0},
        "split": {"heldout": 0.3, "dev": 0.2},
    }
    for stage, change in changes.items():
        values[stage] = {**values.get(stage, {}), **change}
    return FitConfig.build(values)


@pytest.fixture(scope="module")
def fitted(docs: Path, model: Path, labels: Labels, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return fit([docs], tmp_path_factory.mktemp("out") / "retriever", settings(model), labels=[labels])


def test_the_folder_holds_what_the_manifest_says(fitted: FitResult) -> None:
    opened = open_store(fitted.path, verify="full")
    assert opened.manifest.sections["documents"] == DOCUMENTS
    assert {"model/modules.json", "chunks.sqlite", "background.npz", "report/report.html"} <= set(opened.manifest.files)
    assert not [name for name in opened.manifest.files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]


@pytest.mark.parametrize(("adapter", "sets_of_vectors"), [({"method": "none"}, 1), ({"adapt": "query"}, 1), ({}, 2)])
def test_the_background_is_computed_once_for_each_set_of_vectors(
    adapter: dict[str, object],
    sets_of_vectors: int,
    docs: Path,
    model: Path,
    labels: Labels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[Background] = []

    def counted(vectors: Any, compute: Any = Background.of) -> Background:
        computed.append(compute(vectors))
        return computed[-1]

    monkeypatch.setattr(Background, "of", counted)
    config = settings(model, adapter=adapter, training={"epochs": 1, "evaluations": 1})
    path = fit([docs], tmp_path / "r", config, labels=[labels]).path
    assert len(computed) == sets_of_vectors
    with np.load(path / "background.npz") as stored:
        assert any(np.array_equal(stored["covariance"], one.covariance) for one in computed)


def test_the_report_compares_what_ships_with_every_baseline(fitted: FitResult) -> None:
    names = {system.name for system in fitted.report.systems}
    assert {"base-dense", "bm25", "base-hybrid", "shipped"} <= names
    assert fitted.report.split is not None
    assert fitted.report.split.heldout > 0
    assert fitted.verdict in ("WIN", "LIKELY GAIN", "NO GAIN", "REGRESSION AVOIDED")
    assert fitted.report.checks[0].passed  # the trained adapter is not zero


def test_the_report_shows_how_far_answers_stand_from_other_passages(fitted: FitResult, labels: Labels) -> None:
    found = fitted.report.distributions
    assert found is not None
    assert (found.after is not None) is fitted.decision.adapted
    shown = found.after or found.before
    assert fitted.report.evidence is not None
    assert sum(shown.positives) == sum(shown.negatives) == fitted.report.evidence.queries
    answer_of = {line.split("\t")[0]: line.split("\t")[1] for line in labels.qrels.read_text().splitlines()}  # type: ignore[union-attr]
    texts = [json.loads(line) for line in labels.queries.read_text().splitlines()]
    judged = {json.loads(line)["text"] for line in (fitted.path / "report" / "queries.jsonl").read_text().splitlines()}
    right, wrong = [], []
    with Retriever.open(fitted.path, precision="float32") as retriever:
        pages = np.array([chunk.document_id for chunk in retriever.chunks])
        vectors = retriever.searcher.index.vectors([chunk.id for chunk in retriever.chunks])
        for query in (query for query in texts if query["text"] in judged):
            scores = vectors @ retriever.encoder.encode_queries([query["text"]])[0]
            own = pages == answer_of[query["_id"]]
            right.append(scores[own].max())
            wrong.append(scores[~own].max())
    for counts, scores in ((shown.positives, right), (shown.negatives, wrong)):
        expected = np.histogram(scores, shown.edges)[0]
        assert np.abs(np.array(counts) - expected).sum() <= 4  # two scores next to an edge may round across it


def test_the_precision_and_its_agreement_are_recorded(fitted: FitResult) -> None:
    recorded = open_store(fitted.path).manifest.sections["precision"]
    assert recorded["dtype"] == "float32" and recorded["min_cosine"] == recorded["rank_agreement"] == 1
    machine = json.loads((fitted.path / "report" / "report.json").read_text())["machine"]
    assert machine["precision"] == "float32" and machine["least cosine with float32"] == "1.00000"
    assert "Computed in float32 on" in (fitted.path / "report" / "README.md").read_text()


def test_a_fit_tells_how_far_its_long_stages_are(docs: Path, model: Path, labels: Labels, tmp_path: Path) -> None:
    ends: dict[str, tuple[int, int]] = {}
    config = settings(model, training={"epochs": 1, "evaluations": 1}, split={"dev": 0.4})
    fit([docs], tmp_path / "r", config, labels=[labels], progress=lambda stage, *far: ends.update({stage: far}))
    for stage in ("near-duplicates", "search", "mine negatives", "choosing the strength"):
        assert ends[stage][0] == ends[stage][1] > 0
    assert ends["choosing the strength"] == (5, 5)


def test_the_trained_model_never_ships_on_a_loss(fitted: FitResult) -> None:
    decision = fitted.decision
    assert decision.search is not None
    assert decision.dense is not None
    if decision.adapted:
        assert decision.search.better or (decision.dense.better and decision.search.delta >= 0)
    else:
        assert decision.strength == 0


def test_search_finds_the_page_that_holds_the_words(fitted: FitResult, docs: Path) -> None:
    words = (docs / "page07.md").read_text().split("\n\n")[2].split(".")[0]
    with Retriever.open(fitted.path) as retriever:
        hit = retriever.search(words, k=3, mode="lexical")[0]
        assert hit.chunk.document_id == "page07.md"
        assert hit.score == max(other.score for other in retriever.search(words, k=3, mode="lexical"))
        hybrid = retriever.search(words, k=3)
        assert set(hybrid[0].parts) == {"dense", "lexical"}


def test_search_many_equals_search_one_by_one(fitted: FitResult) -> None:
    queries = ["red fox bridge", "open close file", "invoice due time"]
    with Retriever.open(fitted.path) as retriever:
        together = retriever.search_many(queries, k=4)
        for query, hits in zip(queries, together, strict=True):
            alone = retriever.search(query, k=4)
            assert [hit.chunk.id for hit in alone] == [hit.chunk.id for hit in hits]
            np.testing.assert_allclose([h.score for h in alone], [h.score for h in hits], atol=1e-3)


def test_the_folder_works_after_it_was_moved(fitted: FitResult, tmp_path: Path) -> None:
    moved = shutil.copytree(fitted.path, tmp_path / "elsewhere")
    with Retriever.open(fitted.path) as here, Retriever.open(moved) as there:
        assert [hit.chunk.id for hit in there.search("water tree")] == [
            hit.chunk.id for hit in here.search("water tree")
        ]


def test_the_model_opens_in_sentence_transformers_and_gives_the_same_vectors(fitted: FitResult) -> None:
    from sentence_transformers import SentenceTransformer

    texts = sentences(10, seed=5)
    with Retriever.open(fitted.path, precision="float32") as retriever:
        ours = retriever.encoder.encode_passages(texts)
    theirs = SentenceTransformer(str(fitted.path / "model"), device="cpu").encode_document(texts)
    assert np.min(np.sum(ours * theirs, axis=1)) > 0.9999


def test_a_run_for_outside_tools_ranks_documents(fitted: FitResult) -> None:
    with Retriever.open(fitted.path) as retriever:
        run = retriever.run({"a": "red water", "b": "price of bread"}, k=5)
    assert set(run) == {"a", "b"}
    assert all(id.startswith("page") and "#" not in id for scores in run.values() for id in scores)
    assert all(len(scores) == 5 for scores in run.values())


def test_a_run_looks_deeper_until_it_has_k_documents_and_only_where_they_are_short(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = sentences(50, words=4, seed=12)
    pieces = [Chunk(f"long#{at}", "long", f"zebra zebra {words[at]}") for at in range(40)]
    pieces += [Chunk(f"d{at}#0", f"d{at}", f"zebra {words[at]} {' '.join(words)}") for at in range(40, 45)]
    pieces += [Chunk(f"e{at}#0", f"e{at}", f"yak {words[at]}") for at in range(45, 48)]
    result = fit(pieces, tmp_path / "r", settings(model, adapter={"method": "none"}), chunked=True)
    with Retriever.open(result.path) as retriever:
        asked = []
        rank = retriever.searcher.rank

        def watch(texts: Sequence[str], vectors: np.ndarray, k: int, *rest: Any, **more: Any) -> Any:
            asked.append((list(texts), k))
            return rank(texts, vectors, k, *rest, **more)

        monkeypatch.setattr(retriever.searcher, "rank", watch)
        run = retriever.run({"few": "yak", "many": "zebra"}, k=4, mode="lexical")
        assert set(run["few"]) == {"e45", "e46", "e47"}
        assert len(run["many"]) == 4
        assert next(iter(run["many"])) == "long"
        assert asked == [(["yak", "zebra"], 16), (["zebra"], 32), (["zebra"], 48)]
        for mode in ("dense", "hybrid"):
            run = retriever.run({"a": "zebra", "b": "yak"}, k=9, mode=mode)
            assert (len(run["a"]), len(run["b"])) == (9, 9)
        asked.clear()
        assert len(retriever.run({"a": "zebra"}, k=1)["a"]) == 1
        assert asked == [(["zebra"], 4)]


def test_quotes_that_no_passage_holds_count_as_not_found(fitted: FitResult, tmp_path: Path) -> None:
    with Retriever.open(fitted.path) as retriever:
        best = retriever.search("red water", 1, mode="lexical")[0].chunk
    held, lost = {"source": best.source, "quote": best.text}, {"source": best.source, "quote": "nobody ever said so"}

    def measure(*evidence: list[dict[str, str]], qrels: Path | None = None) -> dict[str, float]:
        rows = [{"_id": str(at), "text": "red water", "evidence": quotes} for at, quotes in enumerate(evidence)]
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        with Retriever.open(fitted.path) as retriever:
            return retriever.evaluate(tmp_path / "q.jsonl", qrels, modes=("lexical",))["lexical"]

    names = ("evidence recall@5", "evidence recall@10", "evidence questions", "quotes not found")
    assert [measure([held])[name] for name in names] == [1, 1, 1, 0]
    assert [measure([held], [lost])[name] for name in names] == [0.5, 0.5, 2, 1]
    assert [measure([held, lost], [lost], [held])[name] for name in names] == [0.5, 0.5, 3, 2]
    judged = tmp_path / "qrels.tsv"  # judged by document beside the quotes
    judged.write_text(f"1\t{best.document_id}\t1\n", encoding="utf-8")
    assert [measure([held], [lost], qrels=judged)[name] for name in names] == [0.5, 0.5, 2, 1]


def test_a_metadata_filter_holds_on_both_sides(fitted: FitResult, tmp_path: Path, model: Path) -> None:
    rows = [{"_id": f"d{n}", "text": text, "year": 2000 + n % 4} for n, text in enumerate(sentences(40, seed=8))]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = fit([tmp_path / "rows.jsonl"], tmp_path / "r", settings(model, adapter={"method": "none"}))
    with Retriever.open(result.path) as retriever:
        for mode in ("dense", "lexical", "hybrid"):
            hits = retriever.search("red water tree river", k=40, mode=mode, filter={"year": {"$gte": 2002}})
            assert hits
            assert {hit.chunk.metadata["year"] for hit in hits} <= {2002, 2003}


def test_the_same_seed_gives_the_same_retriever(
    fitted: FitResult, docs: Path, model: Path, labels: Labels, tmp_path: Path
) -> None:
    again = fit([docs], tmp_path / "again", settings(model), labels=[labels])
    assert again.decision == fitted.decision
    first, second = open_store(fitted.path).manifest, open_store(again.path).manifest
    assert first.fingerprint == second.fingerprint
    assert first.sections["fusion"] == second.sections["fusion"]


def test_the_frozen_layers_read_every_text_once_for_a_whole_fit(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.encoder.prefix import Prefix
    from ragadapt.profiling import Clock

    computed: Counter[str] = Counter()  # texts by stage
    stage = ""
    below, call = Prefix.below, Clock.__call__

    def counting(self: Prefix, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        computed[stage] += len(ids)
        return below(self, ids, mask)

    @contextmanager
    def following(self: Clock, name: str) -> Iterator[None]:
        nonlocal stage
        stage = name
        with call(self, name):
            yield
        stage = ""

    monkeypatch.setattr(Prefix, "below", counting)
    monkeypatch.setattr(Clock, "__call__", following)
    results = {}
    for cached in (True, False):
        training = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "evaluations": 2, "prefix_cache": cached}
        target = tmp_path / f"cached {cached}"
        computed.clear()
        config = settings(model, training=training, adapter={"rank": 4, "layers": 1})
        results[cached] = fit([docs], target, config, labels=[labels])
        assert results[cached].report.learning
        assert (computed["base-vectors"] >= 2 * DOCUMENTS) is cached
        if cached:
            # Trained: queries, dev queries, passages without the query's own words, the probes; not the corpus again.
            assert computed["train"] < computed["base-vectors"] + 4 * DOCUMENTS
            assert computed["adapted-vectors"] <= 8  # the probe that proves the cut to be exact
    assert results[True].decision == results[False].decision
    with Retriever.open(results[True].path) as one, Retriever.open(results[False].path) as other:
        ids = one.searcher.index.ids()
        np.testing.assert_allclose(one.searcher.index.vectors(ids), other.searcher.index.vectors(ids), atol=1e-4)


def test_a_second_fit_reads_the_frozen_layers_that_the_first_one_kept(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.encoder.prefix import PrefixCache

    added: list[int] = []
    add = PrefixCache.add

    def counting(self: PrefixCache, rows: list[np.ndarray], hidden: torch.Tensor) -> None:
        before = len(self)
        add(self, rows, hidden)
        added.append(len(self) - before)

    monkeypatch.setattr(PrefixCache, "add", counting)
    grown, results = {}, {}
    for name, rate, shared in (("first", 3e-3, True), ("second", 1e-3, True), ("cold", 1e-3, False)):
        training = {"learning_rate": rate, "epochs": 1, "evaluations": 1}
        training |= {"prefix_cache_folder": str(tmp_path / "kept")} if shared else {}
        added.clear()
        config = settings(model, adapter={"rank": 4, "layers": 1}, training=training)
        results[name] = fit([docs], tmp_path / name, config, labels=[labels])
        grown[name] = sum(added)
    assert grown["first"] == grown["cold"] > 2 * DOCUMENTS
    assert grown["second"] == 0
    assert results["second"].decision == results["cold"].decision
    assert [path.name[:7] for path in (tmp_path / "kept").glob("*.bin")] == ["prefix-"]
    with Retriever.open(results["second"].path) as warm, Retriever.open(results["cold"].path) as cold:
        ids = warm.searcher.index.ids()
        np.testing.assert_allclose(warm.searcher.index.vectors(ids), cold.searcher.index.vectors(ids), atol=1e-5)


def test_query_side_adaptation_leaves_passage_vectors_as_the_base_made_them(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.encoder import Encoder

    config = settings(model, adapter={"adapt": "query", "rank": 4})
    read: list[int] = []
    encode = Encoder.encode_passages
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_passages", lambda *a, **k: read.append(len(a[1])) or encode(*a, **k))
        result = fit([docs], tmp_path / "r", config, labels=[labels])
    assert 0 in read  # the training's
    assert read.count(max(read)) == 1  # all of the corpus; not again at each look at the dev part
    texts = sentences(5, seed=1)
    with Retriever.open(result.path, precision="float32") as retriever:
        ours = retriever.encoder.encode_passages(texts)
    np.testing.assert_allclose(ours, Encoder.load(config.encoder).encode_passages(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("evidence", "crossed", "labelled", "method", "side"),
    [
        (Evidence.LABELLED, 0, 200, "lora", "query"),
        (Evidence.LABELLED, 0, 200, "iaa-l", "query"),
        (Evidence.LABELLED, 0, 200, "vera", "both"),
        (Evidence.LABELLED, 0, 199, "lora", "both"),
        (Evidence.LABELLED, 3, 200, "lora", "both"),
        (Evidence.PARAPHRASE, 0, 200, "lora", "both"),
        (None, 0, 0, "lora", "both"),
    ],
)
def test_after_many_labels_queries_alone_are_trained(
    evidence: Evidence | None, crossed: int, labelled: int, method: str, side: str
) -> None:
    train = [Query(f"q{at}", "some words", "label", Evidence.LABELLED, ("a",)) for at in range(labelled)]
    other = [Query(f"o{at}", "some words", "lm-question", Evidence.PARAPHRASE, ("a",)) for at in range(100)]
    plan = gate.Plan((*train, *other), (), evidence, "", crossed)
    assert side_of(plan, AdapterConfig.model_validate({"method": method})) == side


def test_where_passages_stay_the_strength_is_chosen_by_both_searches(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    worth = {"dense": [0.1, 0.5, 0.4, 0.3, 0.2], "hybrid": [0.1, 0.2, 0.3, 0.4, 0.6]}  # by strength, from the base's on
    real = pipeline_fit.quality

    def scored(arena: Arena, system: Literal["dense", "hybrid"]) -> np.ndarray:
        if len(asked) == 2 * len(worth["dense"]):
            return real(arena, system)
        asked.append(system)
        return np.full(len(arena.judged), worth[system][(len(asked) - 1) // 2])

    monkeypatch.setattr(pipeline_fit, "quality", scored)
    monkeypatch.setattr(gate, "decide", lambda strength, **_: gate.Decision(gate.Verdict.WIN, strength, ("won",)))
    config = settings(model, adapter={"adapt": "query", "rank": 4}, training={"epochs": 1, "evaluations": 1})
    result = fit([docs], tmp_path / "r", config, labels=[labels])
    assert asked == ["dense", "hybrid"] * 5
    assert result.decision.strength == 1  # .4; by dense search alone it would have been a quarter
    curve = result.report.interpolation
    assert curve is not None
    assert [round(point.y, 3) for point in curve.points] == [0.1, 0.35, 0.35, 0.35, 0.4]


@pytest.mark.parametrize(
    ("given", "many", "side"), [("auto", 20, "query"), ("auto", 999, "both"), ("both", 20, "both")]
)
def test_the_side_that_was_trained_stands_in_the_retriever(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, many: int,
    side: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("ragadapt.pipeline.adapt.MANY_LABELS", many)
    win = gate.Decision(gate.Verdict.WIN, 1.0, ("said so",))
    monkeypatch.setattr(gate, "decide", lambda **_: win)
    config = settings(model, adapter={"adapt": given, "rank": 4}, training={"epochs": 1, "evaluations": 1})
    result = fit([docs], tmp_path / "r", config, labels=[labels])
    path, verdict = result.path, result.report.verdict
    assert verdict is not None
    said = [step.detail for step in verdict.steps if step.name == "How far from the base?"]
    assert ["passages keep the base's vectors" in detail for detail in said] == [side == "query"]
    assert json.loads((path / "ragadapt.json").read_text())["configuration"]["adapter"]["adapt"] == side
    with Retriever.open(path) as retriever:
        encoder = retriever.encoder
        assert (encoder.query_tower is encoder.passage_tower) == (side == "both")


@pytest.mark.parametrize("adapt", ["both", "query"])
def test_a_model_that_goes_too_far_for_new_answers_ships_with_less_of_what_it_learnt(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapt: str
) -> None:
    gain, loss = Interval(0.1, 0.05, 0.15, None, 40, 40), Interval(-0.1, -0.15, -0.05, None, 20, 20)
    asked: list[float] = []

    def decide(*, strength: float, **_: object) -> gate.Decision:
        asked.append(strength)
        if strength > ships:
            return gate.Decision(gate.Verdict.REGRESSION_AVOIDED, 0.0, ("lost",), gain, gain, new=(loss, loss))
        return gate.Decision(gate.Verdict.WIN, strength, ("won",), gain, gain)

    monkeypatch.setattr(gate, "decide", decide)
    monkeypatch.setattr("ragadapt.pipeline.fit.choose_strength", lambda *_: (1.0, {}))
    config = settings(model, adapter={"adapt": adapt, "rank": 4, "reweight": "none"}, index={"kind": "exact"})
    weights = {}
    for ships in (1.0, 0.5, 0.0):
        asked.clear()
        result = fit([docs], tmp_path / f"at-{ships:g}", config, labels=[labels])
        with Retriever.open(result.path, precision="float32") as retriever:
            tower, [hit] = retriever.encoder.query_tower, retriever.search("some words", 1)
            assert tower is not None
            weights[ships] = torch.cat([one.detach().flatten() for one in tower.model.parameters()])
            [stored] = retriever.searcher.index.vectors([hit.chunk.id])
            [now] = retriever.encoder.encode_passages([hit.chunk.passage])
            assert float(stored @ now) > 0.9999  # the index is that of the model
        assert result.decision.strength == ships
    assert asked == [1.0, 0.75, 0.5, 0.25]
    middle = (weights[1.0] + weights[0.0]) / 2
    assert torch.allclose(weights[0.5], middle, atol=1e-5) and not torch.allclose(middle, weights[1.0], atol=1e-4)


@pytest.mark.parametrize("kind", ["exact", "qdrant-edge"])
def test_the_index_can_be_rebuilt_as_another_kind(fitted: FitResult, tmp_path: Path, kind: str) -> None:
    if kind == "qdrant-edge":
        pytest.importorskip("qdrant_edge")
    copy = shutil.copytree(fitted.path, tmp_path / "r")
    with Retriever.open(copy) as retriever:
        before = [hit.chunk.id for hit in retriever.search("bridge over the river", k=5)]
    from ragadapt.config import IndexConfig

    reindex(copy, IndexConfig(kind=kind))
    with Retriever.open(copy) as retriever:
        assert [hit.chunk.id for hit in retriever.search("bridge over the river", k=5)] == before
        assert retriever.searcher.index.kind == kind


@pytest.mark.parametrize(("structure", "built"), [("auto", "disk"), ("flat", "flat"), ("hnsw", "hnsw")])
def test_a_large_faiss_index_gets_the_structure_for_its_size_or_the_one_asked_for(
    docs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structure: str, built: str
) -> None:
    monkeypatch.setattr("ragadapt.index.faiss.FLAT_LIMIT", DOCUMENTS)
    index = {"kind": "faiss", "structure": structure}
    result = fit([docs], tmp_path / "r", settings(model, adapter={"method": "none"}, index=index))
    assert json.loads((result.path / "index" / "index.json").read_text())["structure"] == built
    with Retriever.open(result.path) as retriever:
        stored = retriever.searcher.index
        ids = stored.ids()
        assert [found[0][0] for found in stored.search(stored.vectors(ids), 1)] == ids


def test_a_structure_is_refused_for_another_kind_of_index(docs: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="faiss"):
        fit([docs], tmp_path / "r", settings(model, index={"kind": "exact", "structure": "hnsw"}))


@pytest.mark.parametrize(("name", "layers", "said"), [("a file", 1, "Name a folder"), ("kept", None, "adapter.layers")])
def test_a_folder_in_which_nothing_could_be_kept_is_refused(
    docs: Path, model: Path, tmp_path: Path, name: str, layers: int | None, said: str
) -> None:
    (tmp_path / "a file").write_text("")
    config = settings(model, training={"prefix_cache_folder": str(tmp_path / name)}, adapter={"layers": layers})
    with pytest.raises(InvalidConfiguration, match=said):
        fit([docs], tmp_path / "r", config)
    assert not (tmp_path / "r").exists()


def test_more_layers_than_there_are_is_said_before_the_corpus_is_encoded(
    docs: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfiguration, match="this model has 2 layers"):
        fit([docs], tmp_path / "r", settings(model, adapter={"layers": 9}))
    assert not list(tmp_path.rglob("vectors.npy"))


def test_a_fit_that_was_stopped_while_it_judged_less_goes_on_there(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain, loss = Interval(0.1, 0.05, 0.15, None, 40, 40), Interval(-0.1, -0.15, -0.05, None, 20, 20)
    stops = [True]

    def decide(*, strength: float, **_: object) -> gate.Decision:
        if strength == 0.5 and stops.pop():
            raise KeyboardInterrupt
        if strength > 0.5:
            return gate.Decision(gate.Verdict.WIN, strength, ("won",), gain, gain, new=(gain, loss))
        return gate.Decision(gate.Verdict.WIN, strength, ("won",), gain, gain, new=(gain, gain))

    monkeypatch.setattr(gate, "decide", decide)
    monkeypatch.setattr("ragadapt.pipeline.fit.choose_strength", lambda *_: (1.0, {}))
    with pytest.raises(KeyboardInterrupt):
        fit([docs], tmp_path / "r", settings(model), labels=[labels])
    assert not (tmp_path / "r").exists()
    stops.append(False)
    result = fit([docs], tmp_path / "r", settings(model), labels=[labels])
    assert result.decision.strength == 0.5 and {"base-vectors", "queries", "train"} <= set(result.reused)
    with Retriever.open(result.path, precision="float32") as retriever:
        [hit] = retriever.search("some words", 1)
        [stored], [now] = (
            retriever.searcher.index.vectors([hit.chunk.id]),
            retriever.encoder.encode_passages([hit.chunk.passage]),
        )
    assert float(stored @ now) > 0.9999


def test_an_interrupted_fit_goes_on_where_it_stopped(
    docs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.pipeline.fit as pipeline

    config = settings(model, adapter={"method": "none"})
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "build_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fit([docs], tmp_path / "r", config)
    assert not (tmp_path / "r").exists()
    result = fit([docs], tmp_path / "r", config)
    assert {"chunks", "base-vectors", "lexical", "queries"} <= set(result.reused)


def test_after_memory_ran_out_the_advised_setting_goes_on_from_the_checkpoint(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.training as training
    from ragadapt.training.loop import backward

    calls: list[int] = []

    def short(*arguments: Any, **sizes: Any) -> float:
        calls.append(1)
        if len(calls) > 12:
            raise MemoryError
        return backward(*arguments, **sizes)

    with monkeypatch.context() as patch:
        patch.setattr("ragadapt.training.loop.backward", short)
        with pytest.raises(TrainingFailed, match="micro_batch_tokens"):
            fit([docs], tmp_path / "r", settings(model, training={"evaluations": 6}), labels=[labels])
    results: list[Any] = []
    real = training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: results.append(real(*a, **k)) or results[-1])
    changed = settings(
        model,
        training={"evaluations": 6, "micro_batch_tokens": 256, "prefix_cache": False},
        gate={"min_queries": 7, "max_drift": 1.5},
        fusion={"weight": 0.4},
        query={"generator_timeout_seconds": 7},
    )
    result = fit([docs], tmp_path / "r", changed, labels=[labels])
    assert results[0].resumed_from > 0
    assert {"chunks", "base-vectors", "lexical", "queries"} <= set(result.reused)


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({"training": {"micro_batch_tokens": 100, "prefix_cache_bytes": 0, "compile": False}}, set()),
        ({"gate": {"confidence": 0.9, "bootstrap_samples": 100, "min_queries": 3, "max_drift": 1.0}}, set()),
        ({"gate": {"interpolation": (0.5,)}}, {"train"}),
        ({"training": {"temperature": 0.1}}, {"train"}),
        ({"query": {"generator_retries": 1, "generator_batch": 2, "generator_concurrency": 9}}, set()),
        ({"query": {"per_chunk": 1}}, {"queries", "train"}),
        ({"index": {"upload_workers": 9}, "encoder": {"device": "cpu", "token_budget": 64}}, set()),
    ],
)
def test_only_what_changes_a_result_makes_a_finished_stage_start_anew(
    docs: Path,
    model: Path,
    labels: Labels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, dict[str, object]],
    redone: set[str],
) -> None:
    import ragadapt.pipeline.fit as pipeline

    class Stopped(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stopped

    entered: list[str] = []
    real = pipeline.FitSteps.stage

    @contextmanager
    def watch(self: Any, name: str, *rest: Any, **key: Any) -> Iterator[Any]:
        with real(self, name, *rest, **key) as stage:
            if not stage.finished:
                entered.append(name)
            yield stage

    monkeypatch.setattr(pipeline, "commit_build", stop)
    monkeypatch.setattr(pipeline.FitSteps, "stage", watch)
    quick = {"epochs": 1, "evaluations": 1}
    with pytest.raises(Stopped):
        fit([docs], tmp_path / "r", settings(model, training=quick), labels=[labels])
    entered.clear()
    changes = {**changes, "training": {**quick, **changes.get("training", {})}}
    with pytest.raises(Stopped):
        fit([docs], tmp_path / "r", settings(model, **changes), labels=[labels])
    assert {"chunks", "base-vectors", "lexical", "queries", "train"} & set(entered) == redone


def test_a_changed_document_is_not_served_from_an_old_stage(docs: Path, model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(docs, tmp_path / "docs")
    config = settings(model, adapter={"method": "none"})
    fit([copy], tmp_path / "r", config)
    (copy / "page00.md").write_text("# Page 0\n\nzebra zebra zebra zebra zebra zebra zebra.\n")
    result = fit([copy], tmp_path / "r", config)
    assert result.reused == ()
    with Retriever.open(result.path) as retriever:
        assert retriever.search("zebra", mode="lexical")[0].chunk.document_id == "page00.md"


def test_a_fit_that_trains_nothing_says_why_and_what_would_change_it(docs: Path, model: Path, tmp_path: Path) -> None:
    result = fit([docs], tmp_path / "r", settings(model))
    for text in (headline(result.report), (result.path / "report" / "README.md").read_text()):
        assert "labelled questions (--queries) would be enough to judge a trained model" in text
        assert "brought no gain" not in text


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every passage that a stage of vectors encodes from now on."""
    seen: list[str] = []
    encode = Encoder.encode_to

    def watch(self: Encoder, texts: Any, *rest: Any, **options: Any) -> Any:
        seen.extend(texts)
        return encode(self, texts, *rest, **options)

    monkeypatch.setattr(Encoder, "encode_to", watch)
    return seen


def stored_vectors(path: Path) -> tuple[list[str], Any]:
    with Retriever.open(path, precision="float32") as opened:
        ids = opened.chunks.ids()
        return ids, opened.searcher.index.vectors(ids)


@pytest.mark.parametrize("kind", ["exact", "faiss", "qdrant-edge"])
def test_a_second_fit_encodes_only_what_is_new_and_gives_what_a_fresh_one_gives(
    docs: Path, model: Path, tmp_path: Path, encoded: list[str], kind: str
) -> None:
    if kind != "exact":
        pytest.importorskip({"faiss": "faiss", "qdrant-edge": "qdrant_edge"}[kind])
    copy = shutil.copytree(docs, tmp_path / "docs")
    fit([copy], tmp_path / "r", settings(model, adapter={"method": "none"}, index={"kind": kind}))
    assert encoded
    encoded.clear()
    other = settings(
        model, adapter={"method": "none"}, index={"kind": kind}, query={"per_chunk": 1}, fusion={"depth": 9}
    )
    fit([copy], tmp_path / "r", other)
    assert encoded == []
    page = copy / "page03.md"
    page.write_text(page.read_text() + "\n## Coda\n\nzebra fire stone.\n")
    fit([copy], tmp_path / "r", other)
    assert [text for text in encoded if "zebra" not in text] == [] and len(encoded) == 1
    fit([copy], tmp_path / "fresh", other)
    (ids, vectors), (expected_ids, expected) = (stored_vectors(tmp_path / name) for name in ("r", "fresh"))
    assert ids == expected_ids
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert (tmp_path / ".r.vectors").exists() is (kind == "qdrant-edge")  # which changes in place: no hash


def test_where_an_adapted_model_shipped_the_bases_vectors_are_kept_beside(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    win = gate.Decision(gate.Verdict.WIN, 1.0, ("said so",))
    quick = {"epochs": 1, "evaluations": 1}
    with monkeypatch.context() as patch:
        patch.setattr(gate, "decide", lambda **_: win)
        fit([docs], tmp_path / "r", settings(model, training=quick), labels=[labels])
    first = list(encoded)
    encoded.clear()
    fit([docs], tmp_path / "r", settings(model, adapter={"method": "none"}))
    assert encoded == [] and len(first) == 2 * len(set(first))  # by the base and by the adapted model
    assert not (tmp_path / ".r.vectors").exists()
    assert (tmp_path / ".r.rollback").exists()


@pytest.mark.parametrize("how", ["damaged", "version", "precision"])
def test_vectors_that_may_differ_are_not_taken_over(
    docs: Path, model: Path, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    config = settings(model, adapter={"method": "none"}, index={"kind": "exact"})
    path = fit([docs], tmp_path / "r", config).path
    count = len(encoded)
    encoded.clear()
    if how == "damaged":
        [file] = (path / "index").glob("*.npy")
        data = bytearray(file.read_bytes())
        data[-40] ^= 64
        file.write_bytes(data)
    elif how == "version":
        monkeypatch.setattr("ragadapt.pipeline.stages.__version__", "99.0")
    else:
        config = settings(model, adapter={"method": "none"}, encoder={"precision": "bfloat16"})
    fit([docs], tmp_path / "r", config)
    assert len(encoded) == count


def test_labels_for_evaluation_train_nothing(docs: Path, model: Path, labels: Labels, tmp_path: Path) -> None:
    evaluation = Labels(labels.queries, labels.qrels, "eval")
    result = fit([docs], tmp_path / "r", settings(model), labels=[evaluation])
    assert result.report.split is not None
    assert result.report.evidence is not None
    assert result.report.evidence.tier == "labelled"
    assert result.report.evidence.queries == DOCUMENTS * 4
    assert not result.report.learning


def test_without_evidence_the_base_stays_and_the_reason_is_said(docs: Path, model: Path, tmp_path: Path) -> None:
    result = fit([docs], tmp_path / "r", settings(model))
    assert not result.decision.adapted
    assert result.verdict == "NO GAIN"
    assert "--queries" in result.decision.reasons[0]


def test_a_language_models_queries_all_train_and_all_judge(
    docs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.pipeline.queries as queries_module

    def written(chunks: Sequence[Chunk], config: object, **settings: object) -> list[Query]:
        """What a language model would have cost: three queries of two kinds for every chunk."""
        assert settings["examples"] == []
        rng, made = random.Random(0), []
        for chunk in chunks:
            words = chunk.text.replace(".", "").split()
            for number in range(3):
                for kind in ("lm-question", "lm-claim"):
                    text = " ".join(rng.sample(words, 5)) + f" {number}"
                    made.append(Query(f"{kind} {chunk.id} {number}", text, kind, Evidence.PARAPHRASE, (chunk.id,)))
        return made

    monkeypatch.setattr(queries_module, "generate_queries", written)
    query = {"generator_url": "http://localhost:9", "per_chunk": 30, "max_overlap": 1.0, "round_trip_k": 0}
    result = fit([docs], tmp_path / "r", settings(model, query=query, training={"epochs": 1}))
    assert result.report.evidence is not None
    assert result.report.evidence.tier == "paraphrase"
    judged = result.report.verdict
    assert judged is not None
    kept = {kind.kind: kind.kept for kind in result.report.queries}
    assert result.report.evidence.queries == kept["lm-question"] + kept["lm-claim"]
    assert "each a model that did not see its document" in judged.steps[0].detail


def test_a_language_models_answers_outlive_settings_documents_and_the_fit(
    docs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.queries import generate
    from ragadapt.queries.generators.cache import Answer

    asked: list[str] = []
    stops_after = 10

    class Generator:
        """Answers one by one; after some, it times out."""

        failed = 0

        def answers(self, prompts: Sequence[Any]) -> Iterator[list[Answer]]:
            for prompt in prompts:
                if len(asked) == stops_after:
                    raise GeneratorFailed("timed out")
                asked.append(prompt.chunk.id)
                yield [Answer(prompt.key, prompt.chunk.id, f"Question: What of {prompt.chunk.content_hash[:8]}?")]

    def run(**query: object) -> FitResult:
        query = {"generator_url": "http://localhost:9/v1", "generator_model": "m", "round_trip_k": 0, **query}
        return fit([copy], tmp_path / "r", settings(model, query=query, adapter={"method": "none"}))

    monkeypatch.setattr(generate, "_open", lambda config: Generator())
    copy = shutil.copytree(docs, tmp_path / "docs")
    kept = tmp_path / ".r.answers.jsonl"
    with pytest.raises(GeneratorFailed):
        run()
    assert len(kept.read_text().splitlines()) == 10
    kept.write_bytes(kept.read_bytes()[:-20])  # the machine went down, too
    stops_after = 10_000
    run(generator_timeout_seconds=300, generator_retries=1, generator_concurrency=1)
    whole = len(set(asked))
    assert len(asked) == whole + 1  # the torn answer alone was asked for twice
    (copy / "page00.md").write_text("# Page 0\n\n" + ". ".join(sentences(4, words=12, seed=99)) + ".\n")
    run()
    assert {id.split("#")[0] for id in asked[whole + 1 :]} == {"page00.md"}
    before = len(asked)
    run(generator_queries=900)
    assert len(asked) == before
    kept.unlink()
    run()
    assert len(asked) > before


def test_answers_are_kept_only_where_a_generator_is_used(fitted: FitResult) -> None:
    assert not [path for path in fitted.path.parent.iterdir() if "answers" in path.name]


def test_licences_of_generator_and_teacher_come_from_their_cards(
    fitted: FitResult, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.pipeline.fit import _licences

    (tmp_path / "carded").mkdir()
    (tmp_path / "carded" / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file, revision: str(tmp_path / "carded" / file) if name == "owner/cached" else None,
    )
    with Retriever.open(fitted.path) as retriever:

        def found(**query: str) -> dict[str, str]:
            mining = {"teacher": str(tmp_path / "carded")}
            return _licences(retriever.encoder, settings(model, query=query, mining=mining))

        assert found(generator=str(tmp_path / "carded"))["generator"] == "mit"
        assert found(generator="owner/cached")["generator"] == found()["teacher"] == "mit"
        assert found(generator="owner/elsewhere")["generator"] == "unknown: see owner/elsewhere"
        assert found(generator="owner/cached/m.gguf")["generator"] == "unknown: see owner/cached/m.gguf"
        endpoint = found(generator_url="http://localhost:9", generator_model="owner/cached")
        assert endpoint["generator"] == "unknown: see owner/cached"
        assert "generator" not in found()


def test_dev_queries_of_the_next_rank_steer_where_labels_only_judge(
    docs: Path, model: Path, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.pipeline.queries as queries_module

    def written(chunks: Sequence[Chunk], config: object, **settings: object) -> list[Query]:
        rng, made = random.Random(0), []
        for chunk in chunks:
            words = chunk.text.replace(".", "").split()
            for number in range(3):
                text = " ".join(rng.sample(words, 5)) + f" {number}"
                made.append(Query(f"{chunk.id} {number}", text, "lm-question", Evidence.PARAPHRASE, (chunk.id,)))
        return made

    monkeypatch.setattr(queries_module, "generate_queries", written)
    query = {"generator_url": "http://localhost:9", "max_overlap": 1.0, "round_trip_k": 0}
    evaluation = Labels(labels.queries, labels.qrels, "eval")
    config = settings(model, query=query, training={"epochs": 1, "evaluations": 2}, split={"heldout": 0.1, "dev": 0.4})
    # Every page answers a held-out label, and such a page gives no training query: let it, here.
    monkeypatch.setattr(queries_module, "_without_held_out_passages", lambda train, heldout, corpus: list(train))
    report = fit([docs], tmp_path / "r", config, labels=[evaluation]).report
    assert report.evidence is not None
    assert report.evidence.tier == "labelled"
    assert any(point.dev is not None for point in report.learning)
    assert report.interpolation is not None
    assert report.split is not None
    assert report.split.negatives is not None and report.split.heldout_negatives is not None
    # So every negative answers a held-out question.
    assert 0 < report.split.heldout_negatives == report.split.negatives
    assert "held-out answers as negatives" in (tmp_path / "r" / "report" / "report.html").read_text(encoding="utf-8")


def test_a_teacher_that_no_loss_follows_is_refused_at_the_door(docs: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"training\.loss"):
        fit([docs], tmp_path / "r", settings(model, mining={"teacher": "some/reranker"}))
    assert not (tmp_path / "r").exists()


def test_what_steers_is_most_like_what_judges_and_never_a_crop() -> None:
    def some(count: int, kind: str, rank: Evidence) -> list[Query]:
        return [Query(f"{kind} {n}", f"{kind} {n}", kind, rank, ("c",)) for n in range(count)]

    label, link = some(9, "label", Evidence.LABELLED), some(20, "link", Evidence.HUMAN)
    asked, written = some(8, "question", Evidence.HUMAN), some(900, "lm-question", Evidence.PARAPHRASE)
    crops = some(50, "title", Evidence.CROP)
    by_labels = gate.Plan((), tuple(label), Evidence.LABELLED, "")
    by_questions = gate.Plan((), tuple(asked), Evidence.HUMAN, "")
    everything = [*label, *link, *asked, *written, *crops]
    assert next(dev_judges(everything, by_labels)) == label
    assert next(dev_judges(everything, by_questions)) == asked
    assert next(dev_judges([*label[:7], *asked, *written, *crops], by_labels)) == asked
    assert next(dev_judges([*label[:7], *asked[:7], *written, *crops], by_labels)) == written[::3]
    assert next(dev_judges([*asked[:7], *link], by_questions)) == [*asked[:7], *link]
    assert list(dev_judges(crops, by_labels)) == []


def test_passages_that_were_cut_elsewhere_are_taken_as_they_are(model: Path, tmp_path: Path) -> None:
    @dataclass
    class Cut:  # as LangChain's Document looks
        page_content: str
        metadata: dict[str, object]
        id: str

    cut = [Cut(text, {"source": f"file{n // 4}.txt"}, f"piece {n}") for n, text in enumerate(sentences(40, seed=2))]
    result = fit(cut, tmp_path / "r", settings(model, adapter={"method": "none"}), chunked=True)
    with Retriever.open(result.path) as retriever:
        assert [chunk.text for chunk in retriever.chunks] == [item.page_content for item in cut]
        assert retriever.search(cut[7].page_content, mode="lexical")[0].chunk.source == "file1.txt"


def test_passages_longer_than_the_encoder_reads_are_said_to_be_cut_off(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [*sentences(38, seed=2), "river " * 400, "bridge " * 100]
    cut = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    result = fit(cut, tmp_path / "r", settings(model, adapter={"method": "none"}), chunked=True)
    said = next(warning for warning in result.report.warnings if "in no vector" in warning)
    assert "2 of 40 passages are longer than the 46 tokens" in said
    assert "the longest has 400" in said
    assert said in [record.getMessage() for record in caplog.records]


def test_two_label_files_with_the_same_ids_do_not_mix(docs: Path, model: Path, labels: Labels, tmp_path: Path) -> None:
    config = settings(model, adapter={"method": "none"})
    twice = [Labels(labels.queries, labels.qrels, "eval"), Labels(labels.queries, labels.qrels, "eval")]
    result = fit([docs], tmp_path / "r", config, labels=twice)
    assert result.report.evidence is not None
    assert result.report.evidence.queries == 2 * DOCUMENTS * 4


def test_labels_that_are_not_there_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidLabels, match=r"no\.jsonl"):
        Labels(tmp_path / "no.jsonl")


def test_an_index_that_cannot_be_saved_is_refused_at_the_door(docs: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="keeps nothing"):
        fit([docs], tmp_path / "r", settings(model, index={"kind": "qdrant", "url": ":memory:"}))


def test_an_empty_folder_is_an_error_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyCorpus):
        fit([tmp_path / "empty"], tmp_path / "r", settings(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_folder_that_is_no_retriever_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(NotARetriever):
        Retriever.open(tmp_path)


def test_a_list_given_as_one_query_is_refused(fitted: FitResult) -> None:
    with Retriever.open(fitted.path) as retriever:
        with pytest.raises(InvalidInput, match="search_many"):
            retriever.search(["a", "b"])  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="query 1 is '  '"):
            retriever.search_many(["a", "  "])
        assert retriever.search_many([]) == []


_FIT = """
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {tests!r})
from test_pipeline import settings
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.fit import fit
fit([{docs!r}], {target!r}, settings(Path({model!r})), labels=[Labels(Path({queries!r}), Path({qrels!r}))])
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_old_folder_is_whole_and_the_run_resumes(
    fitted: FitResult, docs: Path, model: Path, labels: Labels, tmp_path: Path
) -> None:
    target = shutil.copytree(fitted.path, tmp_path / "r")
    code = _FIT.format(
        tests=str(Path(__file__).parent),
        docs=str(docs),
        target=str(target),
        model=str(model),
        queries=str(labels.queries),
        qrels=str(labels.qrels),
    )
    started = time.monotonic()
    assert start(code).wait() == 0
    whole = time.monotonic() - started
    rng = random.Random(1)
    for _ in range(3):
        process = start(code)
        try:
            process.wait(rng.uniform(0.2, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            process.wait()
        open_store(target, verify="full")
        with Retriever.open(target) as retriever:
            assert len(retriever.search("red fox", k=3)) == 3
    assert start(code).wait() == 0
    assert open_store(target, verify="full").manifest.fingerprint == open_store(fitted.path).manifest.fingerprint
    assert not list(tmp_path.glob(".r.build"))


@pytest.mark.slow
def test_processes_launched_together_fit_one_retriever(
    fitted: FitResult, docs: Path, model: Path, labels: Labels, tmp_path: Path
) -> None:
    target = tmp_path / "r"
    options = ["--queries", labels.queries, "--qrels", labels.qrels, "-o", target, "--config", tmp_path / "fit.toml"]
    config = fitted.report.configuration
    (tmp_path / "fit.toml").write_text(
        "\n".join(
            f"[{stage}]\n"
            + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None)
            for stage, values in config.items()
            if isinstance(values, dict)
        )
    )
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "ragadapt_cli", "fit", str(docs), *map(str, options)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Retriever:") == 1  # the first process alone reports
    with Retriever.open(target) as together, Retriever.open(fitted.path) as alone:
        assert together.manifest.sections["verdict"] == fitted.verdict
        query = ["red fox", "blue lamp"]
        assert np.allclose(together.encoder.encode_queries(query), alone.encoder.encode_queries(query), atol=1e-3)


def test_a_folder_with_an_embedded_engine_takes_the_room_of_its_data(docs: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge")
    path = fit([docs], tmp_path / "r", settings(model, adapter={"method": "none"}, index={"kind": "qdrant-edge"})).path
    files = [file.stat() for file in (path / "index").rglob("*") if file.is_file()]
    promised = sum(file.st_size for file in files)
    if not hasattr(os, "SEEK_DATA") or promised < 50_000_000:
        pytest.skip("no holes in files here, or the engine lays out nothing ahead")
    assert sum(file.st_blocks * 512 for file in files) < 10_000_000

"""PEFA against the obvious way: brute force over all passages, from the list of feedback that counts."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragadapt.config import PefaConfig
from ragadapt.errors import FormatTooNew, InvalidInput, StoreCorrupt, StoreError
from ragadapt.index import VectorIndex, open_index
from ragadapt.pefa import Feedback, Ledger, Pefa, engine

DIM = 12
KINDS = ("exact", "faiss", "qdrant", "qdrant-edge")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embed(texts: Sequence[str]) -> np.ndarray:
    """A vector for every text, the same every time."""
    return unit(np.stack([np.random.default_rng(hash_of(text)).normal(size=DIM) for text in texts]))


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())


def passages(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    return [f"p{at:03d}" for at in range(count)], unit(np.random.default_rng(seed).normal(size=(count, DIM)))


def make_index(kind: str, folder: Path | None, count: int, seed: int = 0) -> VectorIndex:
    ids, vectors = passages(count, seed)
    where: dict[str, Any] = {"url": ":memory:"} if kind == "qdrant" else {"folder": folder}
    index = open_index(kind, dim=DIM, fingerprint="encoder", **where)
    index.upsert(ids, vectors, [{"even": at % 2 == 0, "number": at} for at in range(count)])
    return index


# The obvious way


def brute_weights(events: Sequence[Feedback], cap: float) -> list[float]:
    totals: dict[tuple[str, str], float] = {}
    for one in events:
        if one.user:
            totals[one.user, one.chunk_id] = totals.get((one.user, one.chunk_id), 0.0) + abs(one.weight)
    return [one.weight * min(1.0, cap / totals[one.user, one.chunk_id]) if one.user else one.weight for one in events]


def brute_xs(
    queries: np.ndarray, ids: list[str], vectors: np.ndarray, events: Sequence[Feedback], lam: float, config: PefaConfig
) -> np.ndarray:
    """(Q, N): λ·p + (1 − λ)·Π(S) for passages with feedback, p for the others."""
    weights = brute_weights(events, config.user_cap)
    rows = vectors.astype(np.float64).copy()
    for at, id in enumerate(ids):
        own = [(one, weight) for one, weight in zip(events, weights, strict=True) if one.chunk_id == id]
        if not own:
            continue
        asked = embed([one.query for one, _ in own]).astype(np.float64)
        p = vectors[at].astype(np.float64)
        liked = sum((max(w, 0) * q for (_, w), q in zip(own, asked, strict=True)), np.zeros(DIM))
        disliked = sum((max(-w, 0) * q for (_, w), q in zip(own, asked, strict=True)), np.zeros(DIM))
        liking, disliking = sum(max(w, 0) for _, w in own), sum(max(-w, 0) for _, w in own)
        mixed = p
        if np.linalg.norm(liked) > 1e-12:
            goal = lam * p + (1 - lam) * liked / np.linalg.norm(liked)
            mixed = p + min(1.0, liking) * (goal - p)
        rows[at] = mixed - (1 - lam) * config.negative * disliked / max(1.0, disliking)
    return queries @ rows.T


def brute_xl(
    queries: np.ndarray, ids: list[str], vectors: np.ndarray, events: Sequence[Feedback], lam: float, config: PefaConfig
) -> np.ndarray:
    """(Q, N): λ·⟨q, p⟩ + (1 − λ)·(1/k)·Σ ⟨q, q_i⟩·Y_i over the k nearest distinct past queries."""
    scores = lam * (queries @ vectors.T).astype(np.float64)
    texts = list(dict.fromkeys(one.query for one in events))
    if not texts:
        return scores
    past = embed(texts)
    y = np.zeros((len(texts), len(ids)))
    for one, weight in zip(events, brute_weights(events, config.user_cap), strict=True):
        y[texts.index(one.query), ids.index(one.chunk_id)] += weight
    similar = queries @ past.T
    for row, to in zip(similar, scores, strict=True):
        for at in np.argsort(-row, kind="stable")[: config.k]:
            to += (1 - lam) / config.k * row[at] * y[at]
    return scores


def assert_agrees(
    found: list[tuple[list[str], np.ndarray]], expected: np.ndarray, ids: list[str], allowed: np.ndarray | None = None
) -> None:
    """Scores within 1e-5 of brute force, and the same passages in the same order up to ties within 1e-5."""
    for (got, scores), row in zip(found, expected, strict=True):
        of = dict(zip(ids, row.tolist(), strict=True))
        pool = row if allowed is None else row[allowed]
        assert len(set(got)) == len(got) == min(100, len(pool))
        np.testing.assert_allclose(scores, [of[id] for id in got], atol=1e-5)
        np.testing.assert_allclose(scores, np.sort(pool)[::-1][: len(got)], atol=1e-5)


FEEDBACK = st.builds(
    lambda query, passage, weight, user: Feedback(f"query {query}", f"p{passage:03d}", weight, user),
    st.integers(0, 14),
    st.integers(0, 39),
    st.sampled_from([1.0, 1.0, 1.0, 0.25, 2.0, -1.0, -0.5]),
    st.sampled_from(["", "", "ann", "bob"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(FEEDBACK, max_size=40),
    st.sets(st.integers(0, 39)),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.integers(1, 20),
    st.integers(40, 160),
    st.integers(0, 99),
)
def test_search_is_the_explicit_mixture(
    feedback: list[Feedback], withdrawn: set[int], lam: float, k: int, count: int, seed: int
) -> None:
    ids, vectors = passages(count, seed)
    config = PefaConfig(k=k)
    queries = embed(["query 3", "query 7x", "elsewhere"])
    with make_index("exact", None, count, seed) as index, Pefa(index, embed, config=config) as pefa:
        keys = [pefa.add_many([one])[0] for one in feedback]
        gone = {at for at in withdrawn if at < len(keys)}
        pefa.withdraw_keys([keys[at] for at in gone])
        left = [one for at, one in enumerate(feedback) if at not in gone]
        for method, brute in (("xs", brute_xs), ("xl", brute_xl)):
            expected = brute(queries, ids, vectors, left, lam, config)
            if lam == 1 or not left:  # feedback off, or none: the plain retriever
                expected = queries @ vectors.T
            assert_agrees(pefa.search(queries, 100, lam=lam, method=method), expected, ids)
            even = np.arange(count) % 2 == 0
            found = pefa.search(queries, 100, {"even": True}, lam=lam, method=method)
            assert_agrees(found, expected, ids, even)


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_gives_the_explicit_mixture(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    count = 300
    ids, vectors = passages(count)
    config = PefaConfig(k=8)
    queries = embed([f"query {at}" for at in range(12)])
    feedback = [
        Feedback(f"query {rng.integers(40)}", ids[rng.integers(count)], float(rng.choice([1.0, 1.0, 2.0, -1.0])))
        for _ in range(150)
    ]
    with make_index(kind, tmp_path / "index", count) as index, Pefa(index, embed, config=config) as pefa:
        keys = pefa.add_many(feedback)
        pefa.withdraw_keys(keys[::3])
        left = [one for at, one in enumerate(feedback) if at % 3]
        for lam in (0.0, 0.3, 0.8):
            for method, brute in (("xs", brute_xs), ("xl", brute_xl)):
                expected = brute(queries, ids, vectors, left, lam, config)
                assert_agrees(pefa.search(queries, 100, lam=lam, method=method), expected, ids)
        np.testing.assert_array_equal(index.vectors(ids), vectors)  # the index itself is only read


def test_a_missing_score_may_count_as_zero_like_in_the_paper() -> None:
    ids, vectors = passages(700)
    config = PefaConfig(method="xl", k=2, missing="zero")
    (query,) = embed(["asked"])
    far = int(np.argmin(vectors @ query))
    with make_index("exact", None, 700) as index, Pefa(index, embed, config=config) as pefa:
        pefa.add("asked", ids[far])
        ((found, scores),) = pefa.search(query[None], 500, lam=0.5)
        exact = replace_missing(pefa, "exact", query)
    assert dict(zip(found, scores.tolist(), strict=True))[ids[far]] == pytest.approx(0.5 / 2, abs=1e-5)
    assert exact[ids[far]] == pytest.approx(0.5 / 2 + 0.5 * float(vectors[far] @ query), abs=1e-5)
    assert len(found) == 500


def replace_missing(pefa: Pefa, missing: str, query: np.ndarray) -> dict[str, float]:
    pefa.tune_to({"missing": missing})
    ((found, scores),) = pefa.search(query[None], 700, lam=0.5)
    return dict(zip(found, scores.tolist(), strict=True))


# Feedback and its withdrawal


@pytest.fixture
def pefa(tmp_path: Path) -> Iterator[Pefa]:
    with make_index("exact", None, 60) as index, Pefa(index, embed, ledger=tmp_path / "feedback.sqlite") as opened:
        yield opened


def ranking(pefa: Pefa, text: str, **options: Any) -> tuple[list[str], np.ndarray]:
    ((ids, scores),) = pefa.search(embed([text]), 60, **options)
    return ids, scores


@settings(max_examples=25, deadline=None)
@given(st.lists(FEEDBACK, min_size=1, max_size=12), st.lists(FEEDBACK, min_size=1, max_size=6))
def test_taking_feedback_back_restores_every_bit(kept: list[Feedback], added: list[Feedback]) -> None:
    with make_index("exact", None, 60) as index, Pefa(index, embed) as pefa:
        pefa.add_many(kept)
        for method in ("xs", "xl"):
            before = ranking(pefa, "query 3", method=method)
            keys = pefa.add_many([replace(one, key="") for one in added])
            assert pefa.withdraw_keys(keys) == len(keys)
            after = ranking(pefa, "query 3", method=method)
            assert after[0] == before[0]
            assert after[1].tobytes() == before[1].tobytes()


def test_feedback_moves_its_passage_up_and_negative_feedback_down(pefa: Pefa) -> None:
    ids, _ = ranking(pefa, "asked")
    pefa.add("asked", ids[30])
    assert ranking(pefa, "asked", lam=0.1)[0][0] == ids[30]
    pefa.add("asked", ids[0], weight=-1)
    assert ids[0] not in ranking(pefa, "asked", lam=0.1)[0][:10]
    assert ranking(pefa, "asked", lam=1)[0] == ids


def test_the_same_key_counts_once(pefa: Pefa) -> None:
    pefa.add("asked", "p001", key="click 7")
    before = ranking(pefa, "asked")
    assert pefa.add("asked", "p001", key="click 7") == "click 7"
    assert pefa.status().feedback == 1
    assert ranking(pefa, "asked")[1].tobytes() == before[1].tobytes()
    assert pefa.withdraw("click 7") == 1
    assert pefa.withdraw("click 7") == 0
    pefa.add("asked", "p001", key="click 7")  # the same submission once more, late: it stays withdrawn
    assert pefa.status().feedback == 0


def test_feedback_is_taken_back_by_what_it_said(pefa: Pefa) -> None:
    pefa.add("a", "p001", user="ann")
    pefa.add("a", "p002", user="bob")
    pefa.add("b", "p001", user="bob")
    assert pefa.withdraw(query="a", id="p002") == 1
    assert pefa.withdraw(user="bob") == 1
    assert [one.user for one in pefa.ledger.find()] == ["ann"]
    with pytest.raises(InvalidInput, match="which feedback"):
        pefa.withdraw()


def test_a_tenant_s_feedback_is_seen_by_that_tenant_alone(pefa: Pefa) -> None:
    plain = ranking(pefa, "asked")[0]
    pefa.add("asked", plain[10])
    shared = ranking(pefa, "asked")
    pefa.add("asked", plain[20], tenant="acme")
    pefa.add("asked again", plain[10], tenant="acme")
    for method in ("xs", "xl"):
        theirs = ranking(pefa, "asked", tenant="acme", method=method, lam=0.1)
        others = ranking(pefa, "asked", tenant="other", method=method, lam=0.1)
        assert plain[20] in theirs[0][:2]
        assert plain[20] not in others[0][:2]
        assert others[0] == ranking(pefa, "asked", method=method, lam=0.1)[0]
    assert ranking(pefa, "asked")[1].tobytes() == shared[1].tobytes()


def test_one_user_cannot_outweigh_the_cap() -> None:
    config = PefaConfig(user_cap=1.0, method="xl", k=4)
    with make_index("exact", None, 60) as index, Pefa(index, embed, config=config) as pefa:
        for at in range(50):
            pefa.add(f"asked {at}", "p009", user="mallory")
        loud = dict(zip(*ranking(pefa, "asked 3"), strict=True))["p009"]
        pefa.withdraw(user="mallory")
        plain = dict(zip(*ranking(pefa, "asked 3"), strict=True))["p009"]
        pefa.add("asked 3", "p009", user="ann")
        once = dict(zip(*ranking(pefa, "asked 3"), strict=True))["p009"]
    assert loud - 0.5 * plain < once - 0.5 * plain


NOBODY = [0, False, [], "", 1, b"acme", (), 0.0]


@pytest.mark.parametrize("nobody", NOBODY, ids=repr)
def test_a_tenant_is_named_or_none_and_never_silently_all(pefa: Pefa, nobody: Any) -> None:
    pefa.add("asked", "p001", tenant="acme", key="kept")
    for attempt in (
        lambda: pefa.add("asked", "p001", tenant=nobody),
        lambda: pefa.search(embed(["asked"]), 3, tenant=nobody),
        lambda: pefa.dense(tenant=nobody),
        lambda: pefa.withdraw(tenant=nobody),
        lambda: list(pefa.ledger.find(tenant=nobody)),
        lambda: engine.bake(pefa, make_index("exact", None, 1), 0.5, nobody),
    ):
        with pytest.raises(InvalidInput, match="tenant"):
            attempt()
    if nobody != "":  # a value of the ledger has "" for all
        with pytest.raises(InvalidInput, match="tenant"):
            pefa.add_many([Feedback("asked", "p001", tenant=nobody)])
    for wrong in ({"key": 0}, {"query": 0}, {"id": False}, {"user": 0}):
        with pytest.raises(InvalidInput):
            pefa.withdraw(**wrong)
    assert [one.key for one in pefa.ledger.find()] == ["kept"]


def kept_sums(pefa: Pefa) -> None:
    """What has been added up feedback by feedback is what a replay adds up at once, to the bit."""
    with Pefa(pefa.index, embed, config=pefa.config) as fresh:
        fresh.add_many(list(pefa.ledger.find()))
        assert pefa.state.overlays.keys() == fresh.state.overlays.keys()
        for tenant, overlay in pefa.state.overlays.items():
            peer = fresh.state.overlays[tenant]
            rows = [peer.index[id] for id in overlay.ids]
            np.testing.assert_array_equal(overlay.delta, peer.delta[rows])
        for row in range(len(pefa.state.queries)):
            for tenant in (None, "acme"):
                mine = dict(pefa.state.labels(row, tenant or ""))
                text = list(pefa.state.queries)[row]
                other = (
                    dict(fresh.state.labels(fresh.state.queries[text], tenant or ""))
                    if text in fresh.state.queries
                    else {}
                )
                assert mine.keys() == other.keys()
                np.testing.assert_allclose([mine[id] for id in other], list(other.values()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("half_life", [None, 30.0])
def test_many_feedbacks_on_one_passage_are_added_up_exactly(
    half_life: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the number from which sums are kept: named and nameless users, tenants, both signs, withdrawals."""
    monkeypatch.setattr("ragadapt.pefa.state._KEPT", 5)
    random = np.random.default_rng(3)
    config = PefaConfig(half_life_days=half_life)
    with Pefa(make_index("exact", None, 5), embed, config=config) as pefa:
        keys: list[str] = []
        for step in range(300):
            if keys and random.random() < 0.3:
                pefa.withdraw(keys.pop(random.integers(len(keys))))
            else:
                keys += pefa.add_many([
                    Feedback(
                        f"query {random.integers(20)}", f"p00{random.integers(2)}",
                        weight=float(random.choice([1.0, 0.001, 250.0, -1.0, -0.3])),
                        user=str(random.choice(["", "", "ann", "bob"])), tenant=str(random.choice(["", "", "acme"])),
                        at=1_700_000_000.0 + 86_400 * float(random.integers(700)),
                    )
                    for _ in range(random.choice([1, 1, 1, 8]))
                ])  # fmt: skip
            if step % 60 == 59:
                kept_sums(pefa)
        for key in keys:
            pefa.withdraw(key)
        assert not len(pefa.state.overlays[""]) and not pefa.state._totals and not pefa.state._users


def test_feedback_takes_no_longer_where_a_passage_has_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in entries looked at, not in seconds."""
    from ragadapt.pefa import state as module

    looked: list[int] = []
    faded = module.faded
    monkeypatch.setattr(module, "faded", lambda entries, *more: looked.append(len(entries)) or faded(entries, *more))
    with Pefa(make_index("exact", None, 3), embed) as pefa:
        for user in ("", "ann", "u"):
            pefa.add_many([
                Feedback(f"query {at % 50}", "p000", user=user and (user if user == "ann" else f"{user}{at}"))
                for at in range(2000)
            ])  # fmt: skip
        pefa.add("query 1", "p000", user="ann", key="first")  # from here on ann's own sums are kept too
        looked.clear()
        for user in ("", "ann", "u7", "new"):
            key = pefa.add("query 1", "p000", user=user)
            pefa.withdraw(key)
        assert sum(looked) <= 8 * (2 * module._KEPT + 2)
        kept_sums(pefa)


def test_many_feedbacks_at_once_are_added_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in sums made, not in seconds: adding them up one by one took most of the time of a load."""
    from ragadapt.pefa import state as module

    made: list[int] = []
    row_sums = module.row_sums
    monkeypatch.setattr(
        module, "row_sums", lambda entries, *more: made.append(len(entries)) or row_sums(entries, *more)
    )
    with Pefa(make_index("exact", None, 3), embed) as pefa:
        for start in range(0, 1500, 500):
            made.clear()
            pefa.add_many([
                Feedback(f"query {at % 50}", "p000", user=("", "ann", f"u{at}")[at % 3])
                for at in range(start, start + 500)
            ])  # fmt: skip
            assert len(made) <= 8
        kept_sums(pefa)


def test_feedback_fades_by_half_in_a_half_life(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PefaConfig(half_life_days=10)
    day = 86_400.0
    monkeypatch.setattr("time.time", lambda: 1000 * day)
    with make_index("exact", None, 60) as index, Pefa(index, embed, config=config) as pefa:
        plain = dict(zip(*ranking(pefa, "asked", lam=1), strict=True))["p005"]
        pefa.add("asked", "p005")
        fresh = dict(zip(*ranking(pefa, "asked"), strict=True))["p005"]
        monkeypatch.setattr("time.time", lambda: 1010 * day)
        older = dict(zip(*ranking(pefa, "asked"), strict=True))["p005"]
    assert older - plain == pytest.approx((fresh - plain) / 2, rel=0.02)


def test_bad_feedback_is_refused_and_nothing_of_the_lot_kept(pefa: Pefa) -> None:
    good = Feedback("asked", "p001")
    for bad, said in (
        (Feedback("", "p001"), "query is empty"),
        (Feedback("asked", "nowhere"), "no passage 'nowhere'"),
        (Feedback("asked", "p001", math.nan), "finite"),
        (Feedback("asked", "p001", 0.0), "not 0"),
        (Feedback("asked", "p001", 1e9), "between"),
        (Feedback("as\0ked", "p001"), "NUL"),
        (Feedback("asked", 7), "string"),  # type: ignore[arg-type]
        (Feedback("asked", "p001", at=math.inf), "at = inf"),
    ):
        with pytest.raises(InvalidInput, match=said):
            pefa.add_many([good, bad])
    with pytest.raises(InvalidInput, match="λ"):
        pefa.search(embed(["x"]), 3, lam=1.5)
    assert pefa.status().feedback == 0


# The ledger


def test_everything_comes_back_from_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with make_index("exact", None, 60) as index:
        with Pefa(index, embed, ledger=path) as pefa:
            pefa.add_many([Feedback(f"q{at % 7}", f"p{at:03d}") for at in range(30)])
            pefa.withdraw(query="q3")
            pefa.tune_to({"lam": 0.2, "fusion_weight": 0.8})
            before = ranking(pefa, "q1")

        def never(texts: Sequence[str]) -> np.ndarray:
            raise AssertionError(f"{texts} are in the ledger")

        with Pefa(index, never, ledger=path) as again:
            assert again.config.lam == 0.2 and again.config.fusion_weight == 0.8
            assert ranking(again, "q1")[1].tobytes() == before[1].tobytes()


def test_another_encoder_embeds_the_queries_anew(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with make_index("exact", None, 60) as index, Pefa(index, embed, ledger=path) as pefa:
        pefa.add("asked", "p001")
    asked: list[str] = []

    def other(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return -embed(texts)

    with make_index("exact", None, 60, seed=1) as index, Pefa(index, other, fingerprint="new", ledger=path) as pefa:
        assert asked == ["asked"]
        ((ids, _),) = pefa.search(-embed(["asked"]), 1, lam=0.1)
        assert ids == ["p001"]


def test_feedback_on_a_removed_passage_sleeps_and_revives(pefa: Pefa) -> None:
    ids, vectors = passages(60)
    before = pefa.add("asked", "p040") and ranking(pefa, "asked")
    pefa.index.delete(["p040"])
    pefa.passages_changed(["p040"])
    assert pefa.status().inactive == 1
    assert "p040" not in ranking(pefa, "asked")[0]
    pefa.index.upsert(["p040"], vectors[[ids.index("p040")]])
    pefa.passages_changed(["p040"])
    assert ranking(pefa, "asked")[0] == before[0]
    assert pefa.status().inactive == 0


def test_what_another_connection_writes_is_seen_at_the_next_search(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with (
        make_index("exact", None, 60) as index,
        Pefa(index, embed, ledger=path) as one,
        Pefa(index, embed, ledger=path) as other,
    ):
        key = other.add("asked", "p050")
        assert ranking(one, "asked", lam=0.1)[0][0] == "p050"
        one.withdraw(key)
        assert ranking(other, "asked")[0] == ranking(one, "asked", lam=1)[0]
        other.tune_to({"lam": 1.0})
        assert one.status().feedback == 0 and one.config.lam == 1.0


def test_a_newer_or_broken_ledger_is_refused_untouched(tmp_path: Path) -> None:
    import sqlite3

    newer, broken = tmp_path / "newer.sqlite", tmp_path / "broken.sqlite"
    with Ledger.open(newer) as ledger:
        ledger.add([Feedback("asked", "p001")])
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatTooNew, match="99"):
        Ledger.open(newer)
    broken.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreCorrupt):
        Ledger.open(broken)
    assert broken.read_bytes() == b"no database" * 1000


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with Ledger.open(path) as ledger:
        ledger.add([Feedback("asked", "p001", key="first")])
        (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        many = [Feedback(f"a long question, number {at} " * 20, "p001") for at in range(500)]
        with pytest.raises(StoreError, match="full"):
            ledger.add(many)
        assert [one.key for one in ledger.find()] == ["first"]
        ledger._connection.execute("PRAGMA max_page_count = 1000000")
        assert len(ledger.add(many)) == 500
        assert ledger.problems() == []


def test_a_ledger_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    import os

    path = tmp_path / "feedback.sqlite"
    with Ledger.open(path) as ledger:
        ledger.add([Feedback("asked", "p001")])
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        with Ledger.open(path) as ledger:
            assert len(ledger) == 1
            with pytest.raises(StoreError, match="cannot be written"):
                ledger.add([Feedback("asked", "p002")])
    finally:
        tmp_path.chmod(0o700)


def test_a_sound_pefa_has_no_problems_and_a_wrong_encoder_is_found(pefa: Pefa, tmp_path: Path) -> None:
    pefa.add_many([Feedback(f"q{at}", f"p{at:03d}", tenant="t" if at % 2 else "") for at in range(20)])
    assert pefa.problems() == []
    with Pefa(pefa.index, lambda texts: embed([text[::-1] for text in texts]), ledger=pefa.ledger.path) as wrong:
        assert "another encoder" in wrong.problems()[0]


# Inside the engine


@pytest.mark.parametrize("kind", ["qdrant", "qdrant-edge"])
def test_the_engine_s_own_formula_gives_the_same_search(kind: str, tmp_path: Path) -> None:
    ids, _ = passages(300)
    rng = np.random.default_rng(3)
    queries = embed([f"query {at}" for at in range(8)])
    with make_index(kind, tmp_path / "index", 300) as index, Pefa(index, embed) as pefa:
        keys = pefa.add_many(
            [Feedback(f"query {at % 20}", ids[rng.integers(300)], float(rng.choice([1, 1, -1]))) for at in range(60)]
        )
        for _ in range(2):
            assert engine.push(pefa) == len(pefa.state.overlays[""])
            for lam in (0.0, 0.4, 1.0):
                for filter in (None, {"even": True}):
                    own = pefa.search(queries, 100, filter, lam=lam)
                    inside = engine.search(index, queries, 100, lam, filter)
                    for (one, scores), (other, peers) in zip(own, inside, strict=True):
                        np.testing.assert_allclose(scores, peers, atol=1e-5)
                        assert len(set(one) ^ set(other)) <= 2  # ties within 1e-5 at the cut
            pefa.withdraw_keys(keys[::2])


def test_a_baked_index_needs_no_pefa_at_a_fixed_lambda(tmp_path: Path) -> None:
    ids, _ = passages(60)
    queries = embed(["query 1", "elsewhere"])
    with make_index("exact", None, 60) as index, Pefa(index, embed) as pefa, open_index("exact", dim=DIM) as target:
        pefa.add_many([Feedback(f"query {at % 4}", ids[at]) for at in range(30)])
        engine.bake(pefa, target, 0.3)
        for (one, scores), (other, peers) in zip(
            target.search(queries, 60, {"even": True}), pefa.search(queries, 60, {"even": True}, lam=0.3), strict=True
        ):
            assert one == other
            np.testing.assert_allclose(scores, peers, atol=1e-6)
        with pytest.raises(InvalidInput, match="kind 'qdrant'"):
            engine.push(pefa)

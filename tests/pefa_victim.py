"""A program that gives feedback until it is killed, and says so after each that was acknowledged.

    python pefa_victim.py LEDGER NAME COUNT [THREADS]

For each feedback that was accepted it prints the key, for each that was taken back "-" and the key. Reads in between
must find what it wrote itself.
"""

from __future__ import annotations

import random
import sys
import threading
import zlib
from collections.abc import Sequence

import numpy as np

from ragadapt.index import exact_index
from ragadapt.pefa import Pefa

DIM, PASSAGES = 16, 200


def embed(texts: Sequence[str]) -> np.ndarray:
    rows = np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIM) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def index():  # type: ignore[no-untyped-def]
    ids = [f"p{at}" for at in range(PASSAGES)]
    return exact_index(ids, embed(ids), fingerprint="victim")


def work(pefa: Pefa, name: str, count: int, say: threading.Lock) -> None:
    rng = random.Random(name)
    own: list[str] = []
    for turn in range(count):
        choice = rng.random()
        if choice < 0.5 or not own:
            passage = f"p{rng.randrange(PASSAGES)}"
            key = pefa.add(f"question {rng.randrange(50)}", passage, weight=rng.choice([1.0, 0.5, -1.0]),
                           user=name, key=f"{name}-{turn}")  # fmt: skip
            own.append(key)
            tell(say, key)
        elif choice < 0.6:
            key = own.pop(rng.randrange(len(own)))
            assert pefa.withdraw(key) == 1
            tell(say, "-" + key)
        else:
            ((ids, scores),) = pefa.search(embed([f"question {rng.randrange(50)}"]), 10, lam=0.3)
            assert len(ids) == 10 and np.isfinite(scores).all()


def tell(lock: threading.Lock, text: str) -> None:
    with lock:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def main() -> None:
    path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    threads = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    lock = threading.Lock()
    with Pefa(index(), embed, ledger=path) as pefa:
        if threads == 1:
            work(pefa, name, count, lock)
            return
        failures: list[BaseException] = []

        def guarded(number: int) -> None:
            try:
                work(pefa, f"{name}.{number}", count, lock)
            except BaseException as error:
                failures.append(error)

        running = [threading.Thread(target=guarded, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        if failures:
            raise failures[0]


if __name__ == "__main__":
    main()

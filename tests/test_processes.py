"""Forked processes, pickles and copies of what is open; and how little work one question is."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_retriever import fit_pages

from ragadapt.adapters import attach
from ragadapt.collection import Collection
from ragadapt.config import AdapterConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidInput
from ragadapt.index import open_index
from ragadapt.retriever import Retriever
from ragadapt.threads import one_thread

COPIES = [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("processes"), kind="faiss")


FORK = """
import os, sys, threading, faulthandler
from ragadapt.retriever import Retriever
from ragadapt.threads import one_thread
import torch
torch.set_num_threads(2)
retriever = Retriever.open(sys.argv[1])
many = [f"old stone {number}" for number in range(64)]
retriever.add_feedback("first", "page01.md#0")
def answers():
    return retriever.search("old stone", 30, lam=1), retriever.search_many(many, 3, lam=1)
before = answers()
torch.ones(700, 700) @ torch.ones(700, 700)  # the pool of threads exists
def layer():  # in float32, whatever the encoder computes in: MKL has a number of threads of its own
    return torch.nn.functional.linear(torch.ones(64, 384), torch.ones(1536, 384)).sum().item()
once = layer()
stop = threading.Event()
def search():  # holds the locks at any moment
    number = 0
    while not stop.is_set():
        retriever.search(f"red {number}", 3); number += 1
thread = threading.Thread(target=search)
thread.start()
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(40, exit=True)
        try:
            same = answers() == before and layer() == once
            key = retriever.add_feedback(f"mine {number}", retriever.chunks.ids()[number])
            there = key in {one.key for one in retriever.feedback().ledger.find()}
            os._exit(0 if same and there else 3 + same + 2 * there)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(9)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set(); thread.join()
assert {one.query for one in retriever.feedback().ledger.find()} >= {f"mine {number}" for number in range(4)}
print(codes)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_processes_search_and_keep_feedback_while_the_parent_goes_on(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[0, 0, 0, 0]", done.stderr


GPU = """
import os, sys
from dataclasses import replace
from ragadapt.encoder import Encoder
encoder = Encoder.open(sys.argv[1])
encoder.precision = replace(encoder.precision, device="cuda:0")
if os.fork() == 0:
    try:
        encoder.encode_queries(["old stone"])
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_model_on_a_gpu_says_that_a_fork_cannot_use_it(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GPU, str(folder / "model")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("InvalidInput This encoder was opened on cuda:0 before the process was forked")


@pytest.mark.parametrize("copied", COPIES)
def test_a_pickled_or_copied_retriever_opens_its_folder_again(folder: Path, copied: Callable[[Any], Any]) -> None:
    with Retriever.open(folder) as retriever, copied(retriever) as other:
        assert other is not retriever
        assert other.encoder is not retriever.encoder
        assert other.search("old stone", 9) == retriever.search("old stone", 9)


@pytest.mark.parametrize("copied", COPIES)
def test_encoders_open_again_what_they_were_opened_from(folder: Path, copied: Callable[[Any], Any]) -> None:
    encoder = Encoder.open(folder / "model", device="cpu", precision="float32")
    other = copied(encoder)
    assert other.config == encoder.config
    np.testing.assert_array_equal(other.encode_queries(["old stone"]), encoder.encode_queries(["old stone"]))
    base = Encoder.load(encoder.config.model_copy(update={"model": str(folder / "model")}))
    assert copied(base).fingerprint == base.fingerprint


@pytest.mark.parametrize("copied", COPIES)
def test_what_lives_in_memory_alone_says_how_to_pass_it_on(folder: Path, copied: Callable[[Any], Any]) -> None:
    adapted = attach(Encoder.open(folder / "model"), AdapterConfig.model_validate({"reweight": "none"}))
    with pytest.raises(InvalidInput, match=r"Save it with encoder\.save"):
        copied(adapted)
    with pytest.raises(InvalidInput, match="open its folder"):
        copied(Collection(open_index("exact", dim=4)))


@pytest.mark.parametrize("copied", COPIES)
def test_the_frameworks_objects_are_pickled_and_copied_by_folder(folder: Path, copied: Callable[[Any], Any]) -> None:
    from langchain_ragadapt import LoRAEmbeddings, LoRARetriever, RagAdaptVectorStore
    from llama_index_ragadapt import LoRAEmbedding
    from llama_index_ragadapt import LoRARetriever as LlamaRetriever
    from llama_index_ragadapt import RagAdaptVectorStore as LlamaStore

    retriever = LoRARetriever.from_pretrained(folder, k=3, filter={"lang": "en"})
    assert copied(retriever).invoke("old stone") == retriever.invoke("old stone")
    assert copied(retriever).k == 3
    embeddings = LoRAEmbeddings.from_pretrained(folder)
    assert copied(embeddings).embed_query("old stone") == embeddings.embed_query("old stone")
    llama = LlamaRetriever.from_pretrained(folder, 3)
    assert [one.node.node_id for one in copied(llama).retrieve("old stone")] == [
        one.node.node_id for one in llama.retrieve("old stone")
    ]
    embedding = LoRAEmbedding.from_pretrained(folder)
    assert copied(embedding).get_query_embedding("old stone") == embedding.get_query_embedding("old stone")
    fitted = RagAdaptVectorStore.from_pretrained(folder)
    assert copied(fitted).similarity_search("old stone") == fitted.similarity_search("old stone")
    for memory in (RagAdaptVectorStore.from_texts(["old stone"], embeddings), LlamaStore(dim=32)):
        with pytest.raises(InvalidInput, match="open its folder"):
            copied(memory)


# One question


BURN = """
import os, sys, time
from ragadapt.retriever import Retriever
import torch
torch.set_num_threads(int(sys.argv[2]))
retriever = Retriever.open(sys.argv[1])
for number in range(5):
    retriever.search(f"old stone {number}")
time.sleep(0.3)
begin = time.process_time()
for number in range(20):
    retriever.search(f"red bridge {number}")
    time.sleep(0.02)
print((time.process_time() - begin) / 20, torch.get_num_threads())
"""


def test_one_question_takes_no_more_work_with_many_threads_than_with_one(folder: Path) -> None:
    def seconds(threads: int) -> float:
        command = [sys.executable, "-c", BURN, str(folder), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120).stdout
        each, left = out.split()
        assert int(left) == threads  # the process keeps its setting
        return float(each)

    assert min(seconds(4) for _ in range(2)) < 2 * seconds(1) + 0.002


def test_one_thread_is_the_callers_own_and_ends_with_the_block() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside, go_on = threading.Event(), threading.Event()
    seen: dict[str, int] = {}

    def limited() -> None:
        torch.set_num_threads(2)
        with one_thread():
            seen["within"] = torch.get_num_threads()
            inside.set()
            go_on.wait(10)
        seen["after"] = torch.get_num_threads()

    thread = threading.Thread(target=limited)
    thread.start()
    inside.wait(10)
    seen["beside"] = torch.get_num_threads()
    go_on.set()
    thread.join()
    torch.set_num_threads(before)
    assert seen == {"within": 1, "beside": 2, "after": 2}

"""int8 ONNX: smaller files, and a cost that is measured on the retriever's own passages and told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ragadapt_cli.main import run
from small_retriever import fit_pages

from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidInput
from ragadapt.export import export
from ragadapt.store.chunks import ChunkStore

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("int8"))


def test_int8_is_smaller_and_its_cost_is_what_it_says(retriever: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain = export(retriever, tmp_path / "float", "onnx")
    made = export(retriever, tmp_path / "int8", "onnx", int8=True)
    assert plain.int8 is None and made.int8 is not None
    cost = made.int8
    assert cost.float_bytes == (plain.folder / "model.onnx").stat().st_size
    assert cost.bytes == (made.folder / "model.onnx").stat().st_size < cost.float_bytes
    assert not list(made.folder.glob("int8-*"))

    with ChunkStore.open(retriever / "chunks.sqlite") as store:
        passages = [chunk.passage for chunk in store]
    assert cost.passages == len(passages)
    encoder = Encoder.open(retriever / "model", device="cpu", precision="float32")
    exact = encoder.encode_passages(passages)
    tokenizer = AutoTokenizer.from_pretrained(str(made.folder))
    session = onnxruntime.InferenceSession(str(made.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    found = []
    for passage in passages:
        batch = tokenizer([passage], truncation=True, max_length=encoder.max_length, return_tensors="np")
        inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        found.append(session.run(None, inputs)[0][0])
    cosines = np.sum(np.stack(found) * exact, axis=1)
    assert cosines.max() < 0.999999  # it is another model, and that shows
    # Activations are rounded by batch, so one text alone comes out a little different.
    assert 1 - cosines.mean() == pytest.approx(1 - cost.mean_cosine, rel=0.3)
    assert cost.least_cosine <= cost.mean_cosine < 1
    assert 0.5 < cost.rank_agreement <= 1
    told = json.loads((made.folder / "ragadapt_onnx.json").read_text(encoding="utf-8"))
    assert told["int8"]["mean_cosine"] == cost.mean_cosine and told["fingerprint"] == encoder.fingerprint


def test_the_command_prints_the_cost(retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(retriever), str(tmp_path / "a"), "--format", "onnx", "--int8"]) == 0
    printed = capsys.readouterr().out
    assert "mean cosine with float32" in printed and "ranked alike" in printed
    assert run(["export", str(retriever), str(tmp_path / "b"), "--format", "onnx", "--int8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["int8"]
    assert f"{told['mean_cosine']:.4f}" in printed and f"{told['rank_agreement']:.1%}" in printed


def test_int8_is_for_onnx_alone(retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput, match="for format 'onnx'"):
        export(retriever, tmp_path / "x", int8=True)
    assert run(["export", str(retriever), str(tmp_path / "x"), "--int8"]) == 2
    assert not (tmp_path / "x").exists()

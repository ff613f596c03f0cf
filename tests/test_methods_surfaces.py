"""What cannot be folded into weights goes through everything that a retriever goes through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ragadapt_cli.main import run
from sentence_transformers import SentenceTransformer
from tiny_models import sentences, write_tiny_model

from ragadapt import FitConfig, Labels, Retriever, fit
from ragadapt.doctor.examine import examine
from ragadapt.evaluation import gate
from ragadapt.export import export
from ragadapt.pipeline.refresh import refresh_documents

LINES = sentences(120, words=12, seed=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages, labelled questions and a toy model."""
    folder = tmp_path_factory.mktemp("surfaces")
    (folder / "docs").mkdir()
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for page in range(24):
            text = LINES[5 * page : 5 * page + 5]
            (folder / "docs" / f"page{page:02}.md").write_text(f"# Page {page}\n\n" + ". ".join(text[:4]) + ".\n")
            for turn in range(4):
                question = f"{' '.join(text[turn].split()[:6])} {turn}"
                queries.write(json.dumps({"_id": f"q{page}-{turn}", "text": question}) + "\n")
                qrels.write(f"q{page}-{turn}\tpage{page:02}.md\t1\n")
    write_tiny_model(folder / "base")
    return folder


@pytest.mark.parametrize("method", ["iaa-s", "trf-linear"])
def test_a_fit_ships_searches_exports_and_refreshes(
    corpus: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    langchain = pytest.importorskip("langchain_ragadapt")
    values = {
        "encoder": {"model": str(corpus / "base" / "model"), "precision": "float32", "device": "cpu"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "training": {"epochs": 2, "batch_size": 8, "evaluations": 1, "learning_rate": 5e-3},
        "gate": {"cross_fit_below": 0},
        "adapter": {"method": method, "layers": 1},
        "index": {"kind": "exact"},
    }
    win = gate.Decision(gate.Verdict.WIN, 1.0, ("said so",))
    folder = tmp_path / "retriever"
    labels = [Labels(corpus / "queries.jsonl", corpus / "qrels.tsv")]
    with monkeypatch.context() as patch:
        patch.setattr(gate, "decide", lambda **_: win)
        result = fit([corpus / "docs"], folder, FitConfig.build(values), labels=labels)
    assert result.decision.adapted
    assert [check for check in result.report.checks if not check.passed] == []
    with Retriever.open(folder, device="cpu", precision="float32") as retriever:
        assert retriever.encoder.spec.adapter is not None and retriever.encoder.spec.adapter.method == method
        expected = retriever.encoder.encode_queries(LINES[:5])
        first = [hit.chunk.id for hit in retriever.search(LINES[7], 3, mode="dense")]
    assert examine(folder, device="cpu", precision="float32").sound

    assert run(["export", str(folder), str(tmp_path / "model")]) == 0
    assert "trust_remote_code=True" in capsys.readouterr().out
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    assert np.allclose(library.encode_query(LINES[:5]), expected, atol=1e-5)
    for place in (folder, tmp_path / "model"):
        embeddings = langchain.LoRAEmbeddings(model=str(place), device="cpu", precision="float32")
        assert np.allclose(embeddings.embed_query(LINES[0]), expected[0], atol=1e-5)
    found = langchain.LoRARetriever.from_pretrained(folder, device="cpu", precision="float32").invoke(LINES[7])
    assert found and all(document.page_content for document in found)

    (tmp_path / "more").mkdir()
    for page in (corpus / "docs").iterdir():
        (tmp_path / "more" / page.name).write_text(page.read_text())
    (tmp_path / "more" / "new.md").write_text("# New\n\nzebra fire stone.\n")
    refresh_documents(folder, [tmp_path / "more"])
    with Retriever.open(folder, device="cpu", precision="float32") as retriever:
        assert np.allclose(retriever.encoder.encode_queries(LINES[:5]), expected, atol=1e-5)
        others = [hit.chunk for hit in retriever.search(LINES[7], 4, mode="dense") if hit.chunk.document_id != "new.md"]
        assert [chunk.id for chunk in others[:3]] == first
        assert retriever.search("zebra fire stone", 1)[0].chunk.document_id == "new.md"

    pytest.importorskip("onnxruntime")
    assert export(folder, tmp_path / "onnx", "onnx").cosine > 0.9999

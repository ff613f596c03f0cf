"""The commands on a real retriever, fitted with a toy model: what one writes, the next one reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ragadapt_cli.main import run
from tiny_models import sentences, write_tiny_model
from trained_retriever import fit_trained


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    words = sentences(80, seed=5)
    for number in range(10):
        lines = words[number * 8 : number * 8 + 8]
        text = f"# Page {lines[0]}\n\n" + "\n\n".join(f"## {line}\n\n{line} {lines[-1]}." for line in lines[1:])
        (folder / f"page{number}.md").write_text(text, encoding="utf-8")
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    return folder


@pytest.fixture(scope="module")
def settings(model: Path) -> list[str]:
    return ["--model", str(model), "--device", "cpu", "--method", "none"]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory, documents: Path, settings: list[str]) -> Path:
    path = tmp_path_factory.mktemp("out") / "retriever"
    assert run(["fit", str(documents), "-o", str(path), *settings, "-q"]) == 0
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, object]:
    assert run([*arguments, "--json"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["command"] == arguments[0]
    return found


def test_dry_run_says_what_would_happen_and_writes_nothing(
    documents: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", str(documents), "-o", str(tmp_path / "out"), *settings, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "10 read, 1 skipped" in out
    assert "photo.png" in out
    assert "Nothing was written." in out
    assert list(tmp_path.iterdir()) == []
    found = said(capsys, "fit", str(documents), "-o", str(tmp_path / "out"), *settings, "--dry-run")
    assert (found["documents"], found["dry_run"], found["replaces"]) == (10, True, False)


def test_dry_run_knows_what_the_questions_are_for(
    documents: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"_id": f"{number}", "text": f"what is on page {number}"} for number in range(20)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    judged = "".join(f"{number}\tpage{number % 10}.md\t1\n" for number in range(20))
    (tmp_path / "j.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    labels = ["--queries", str(tmp_path / "q.jsonl"), "--qrels", str(tmp_path / "j.tsv")]
    for use, judging in (("eval", 20), ("train", 0)):
        arguments = [str(documents), "-o", str(tmp_path / "out"), *settings, *labels, "--labels-for", use, "--dry-run"]
        found = said(capsys, "fit", *arguments)
        assert (found["labelled"], found["judging"]) == (20, judging)
        assert ("20 held-out queries" in str(found["plan"])) is (use == "eval")


def test_lexical_search_finds_the_passage_whose_words_are_asked(
    retriever: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heading = (documents / "page4.md").read_text(encoding="utf-8").split("## ")[3].splitlines()[0]
    found = said(capsys, "search", str(retriever), heading, "--mode", "lexical", "-k", "2")
    hits = found["hits"]
    assert isinstance(hits, list)
    assert hits[0]["source"] == "page4.md"
    assert heading in hits[0]["text"]


def test_run_file_ranks_documents_and_holds_every_query(
    retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ragadapt.evaluation import read_run

    (tmp_path / "q.jsonl").write_text('{"_id": "a", "text": "old bridge"}\n{"_id": "b", "text": "bread oven"}\n')
    run_file = tmp_path / "run.trec"
    arguments = ["--queries", str(tmp_path / "q.jsonl"), "--run", str(run_file), "-k", "4"]
    found = said(capsys, "search", str(retriever), *arguments)
    written = read_run(run_file)
    assert {id: len(documents) for id, documents in written.items()} == {"a": 4, "b": 4}
    assert found["lines"] == 8
    assert all(name.startswith("page") and name.endswith(".md") for name in written["a"])


def test_report_shows_the_table_and_the_page(retriever: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(retriever)]) == 0
    out = capsys.readouterr().out
    assert "NO GAIN" in out
    page = Path(out.split("Report:")[1].strip())
    assert page == retriever / "report" / "report.html"
    assert page.read_text(encoding="utf-8").startswith("<!")


def test_doctor_finds_the_fresh_retriever_sound_and_a_broken_one_not(
    retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    found = said(capsys, "doctor", str(retriever))
    assert found["retriever"]["sound"] is True  # type: ignore[index]
    shutil.copytree(retriever, tmp_path / "broken")
    (tmp_path / "broken" / "chunks.sqlite").write_bytes(b"not a database")
    found = said(capsys, "doctor", str(tmp_path / "broken"), code=1)
    assert found["retriever"]["sound"] is False  # type: ignore[index]


def test_doctor_of_documents_ends_with_a_recommendation(
    documents: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = settings[:4]
    assert run(["doctor", str(documents), *flags]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    found = said(capsys, "doctor", str(documents), *flags)["documents"]
    assert isinstance(found, dict)
    assert found["outlook"] == "no judge"
    assert last == f"No judge: {found['recommendation']}"


def test_index_says_what_it_is(retriever: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "index", str(retriever))
    assert (found["kind"], found["url"]) == ("faiss", None)


def test_exported_model_gives_the_retrievers_vectors_in_other_programs(
    retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    from ragadapt.encoder import Encoder

    texts = ["the old bridge", "bake bread in a small oven on a cold day"]
    expected = Encoder.open(retriever / "model", device="cpu", precision="float32").encode_passages(texts)
    found = said(capsys, "export", str(retriever), str(tmp_path / "st"))
    assert Path(str(found["output"])) == tmp_path / "st"
    plain = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(texts)
    assert np.allclose(plain, expected, atol=1e-5)


def test_onnx_export_gives_the_retrievers_vectors(
    retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from transformers import AutoTokenizer

    from ragadapt.encoder import Encoder

    said(capsys, "export", str(retriever), str(tmp_path / "onnx"), "--format", "onnx")
    settings = json.loads((tmp_path / "onnx" / "ragadapt_onnx.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "onnx"))
    encoder = Encoder.open(retriever / "model", device="cpu", precision="float32")
    assert settings["fingerprint"] == encoder.fingerprint
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / settings["passage"]["file"]))
    for texts in (["bridge"], ["the old bridge", "bake bread in a small oven on a cold day", "x"]):
        batch = tokenizer(texts, padding=True, return_tensors="np")
        inputs = {name: batch[name].astype(np.int64) for name in settings["inputs"]}
        [vectors] = session.run([settings["output"]], inputs)
        assert np.allclose(vectors, encoder.encode_passages(texts), atol=1e-5)


@pytest.mark.parametrize("adapt", ["query", "both"])
def test_export_says_where_queries_have_a_model_of_their_own(
    adapt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fit_trained(tmp_path, adapt=adapt)
    capsys.readouterr()
    assert said(capsys, "export", str(path), str(tmp_path / "json"))["two_models"] == (adapt == "query")
    for name, kind, words in (("st", "sentence-transformers", "encode_query"), ("onnx", "onnx", "query.onnx")):
        if kind == "onnx":
            pytest.importorskip("onnx")
        assert run(["export", str(path), str(tmp_path / name), "--format", kind]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert ("Only queries were trained" in out and words in out) == (adapt == "query")


def test_export_never_overwrites(retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    assert run(["export", str(retriever), str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "x"


def test_eval_agrees_with_an_outside_tool_on_the_run_that_search_writes(
    retriever: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ir_measures

    rows, judged = [], []
    for number in range(10):
        heading = (documents / f"page{number}.md").read_text(encoding="utf-8").split("## ")[2].splitlines()[0]
        rows.append(json.dumps({"_id": f"q{number}", "text": " ".join(heading.split()[:3])}))
        judged.append(f"q{number} 0 page{number}.md 1")
    (tmp_path / "q.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "j.txt").write_text("\n".join(judged), encoding="utf-8")
    queries = ["--queries", str(tmp_path / "q.jsonl")]
    for mode in ("hybrid", "lexical"):
        found = said(capsys, "eval", str(retriever), *queries, "--qrels", str(tmp_path / "j.txt"), "--mode", mode)
        run_file = tmp_path / f"{mode}.trec"
        said(capsys, "search", str(retriever), *queries, "--run", str(run_file), "--mode", mode)
        outside = ir_measures.calc_aggregate(
            [ir_measures.parse_measure("nDCG@10")],
            ir_measures.read_trec_qrels(str(tmp_path / "j.txt")),
            ir_measures.read_trec_run(str(run_file)),
        )
        [expected] = outside.values()
        assert found["systems"][mode]["nDCG@10"] == pytest.approx(expected, abs=1e-4)  # type: ignore[index]
        assert 0 < expected < 1


@pytest.mark.parametrize("kind", ["exact", "qdrant"])
def test_index_moves_the_vectors_and_search_stays_the_same(
    kind: str, retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    if kind == "qdrant":
        pytest.importorskip("qdrant_client")
    moved = tmp_path / "moved"
    shutil.copytree(retriever, moved)
    before = said(capsys, "search", str(moved), "old bridge fire", "--mode", "dense")["hits"]
    assert said(capsys, "index", str(moved), "--kind", kind)["kind"] == kind
    after = said(capsys, "search", str(moved), "old bridge fire", "--mode", "dense")["hits"]
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert [hit["id"] for hit in after] == [hit["id"] for hit in before]
    assert [hit["score"] for hit in after] == pytest.approx([hit["score"] for hit in before], abs=1e-5)
    found = said(capsys, "index", str(moved))
    assert (found["kind"], found["collection"]) == (kind, "ragadapt")
    assert said(capsys, "doctor", str(moved))["retriever"]["sound"] is True  # type: ignore[index]
    assert said(capsys, "index", str(moved), "--rebuild")["kind"] == kind

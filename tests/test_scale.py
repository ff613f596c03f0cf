"""The measurements past one machine's memory keep their results by part; what the limit is, is counted right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import scale  # noqa: E402
import scale_encode  # noqa: E402
import scale_encode_sides  # noqa: E402
from scale_encode_sides import DEFAULT, SIDES, TRAINING  # noqa: E402


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


def test_the_operations_of_a_training_step_are_those_that_torch_counts() -> None:
    from peft import get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    from ragadapt.adapters.method import Scope
    from ragadapt.adapters.peft import LowRankOptions, lora_config, target_names

    shape = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = BertConfig(**shape, vocab_size=50, attn_implementation="eager")
    inner = BertModel(config, add_pooling_layer=False)
    model = get_peft_model(inner, lora_config(LowRankOptions(rank=4), target_names(inner, Scope.of(inner, None), ())))
    for layer in (module for module in model.modules() if hasattr(module, "lora_B")):
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(5, 7, dtype=torch.long)).last_hidden_state.sum().backward()
    assert scale_encode.training_operations(shape, [7] * 5, 4) == counter.get_total_flops()


class Measured:
    """A side that has been asked already."""

    def __init__(self, name: str, found: dict[str, list[dict[str, Any]]], vectors: Any = None) -> None:
        self.name, self.found, self.reason = name, found, None if found else "ModuleNotFoundError: none"
        self.about, self._vectors = {"note": "as it is"}, np.array(vectors)

    runs = scale_encode.Side.runs

    def vectors(self, task: str) -> np.ndarray:
        return self._vectors


def test_shares_are_of_the_best_product_and_medians_count() -> None:
    took = [{"wall": wall, "processor": 2 * wall} for wall in (1.0, 2.0, 9.0)]
    peak = [
        {"bf16: one, 2 x 2 x 2": [50, 25], "bf16: other, 2 x 2 x 2": [wall, 20], "int8: one": [80, 40]}
        for wall in (90, 100, 110)
    ]
    half = Measured("ragadapt", {"250 tokens": took}, [[3.0, 0.0], [1.0, 1.0]])
    whole = Measured(DEFAULT, {"250 tokens": took[:1]}, [[1.0, 0.0], [1.0, 0.0]])
    sides = [
        Measured("peak", {"peak": peak}),
        half,
        whole,
        Measured("OpenVINO bf16", {}),
        Measured(TRAINING, {TRAINING: took}),
    ]
    work = {"lengths": {"250 tokens": [7] * 6, TRAINING: [7] * 8}, "operations": {"250 tokens": 100.0, TRAINING: 20.0}}
    rows = scale_encode._rows(sides, work, 2, {"ragadapt": 0.65})  # type: ignore[arg-type]
    assert all(list(row) == list(rows[0]) for row in rows)
    best, _, ours, plain, absent, step = rows
    assert (best["side"], best["note"], best["share of the bf16 peak"]) == ("bf16", "other, 2 x 2 x 2", "100.0%")
    assert (ours["passages or pairs/s"], ours["per processor-second"]) == ("3.0", "1.5")
    assert (ours["share of the bf16 peak"], ours["by processor time"]) == ("50.0%", "100.0%")
    assert (ours["least cosine with float32"], ours["nDCG@10"]) == ("0.7071", "0.6500")
    assert (plain["passages or pairs/s"], plain["least cosine with float32"]) == ("6.0", "1.0000")
    assert (absent["passages or pairs/s"], absent["note"]) == ("", "not measured: ModuleNotFoundError: none")
    assert (step["passages or pairs/s"], step["share of the bf16 peak"]) == ("2.0", "10.0%")  # 4 pairs


def test_a_side_that_cannot_run_says_why_and_is_not_asked_again(tmp_path: Path) -> None:
    side = scale_encode.Side("no such side", {"threads": 1, "place": str(tmp_path)})
    try:
        assert side.reason == "KeyError: 'no such side'"
        assert side.ask("250 tokens") == {}
    finally:
        side.close()
    error = ImportError("cannot import name 'one' from 'other' (/somewhere/other.py)")
    assert scale_encode_sides._reason(error) == "ImportError: cannot import name 'one' from 'other'"


@pytest.mark.slow
def test_a_side_of_encoding_is_measured_or_says_why_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: SIDES[name] for name in ("ragadapt", DEFAULT)}
    monkeypatch.setattr(scale_encode, "SIDES", some)
    rows = scale_encode.encode(scale.Bench(data, tmp_path, 13, True, threads=(1,), quality=True))
    found = {(row["task"], row["side"]): row for row in rows}
    assert {side for task, side in found if task == "mixed lengths"} == set(some)
    assert all(float(found["peak", kind]["Gop/s"]) > 0 for kind in ("bf16", "float32", "int8"))
    assert float(found[TRAINING, TRAINING]["passages or pairs/s"]) > 0
    for row in rows:
        measured = row["passages or pairs/s"] != "" or row["task"] == "peak"
        assert measured != row["note"].startswith("not measured: "), row
    for task in ("250 tokens", "mixed lengths"):
        assert float(found[task, "ragadapt"]["least cosine with float32"]) > 0.99
        assert found[task, DEFAULT]["least cosine with float32"] == "1.0000"

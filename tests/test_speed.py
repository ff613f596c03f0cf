"""The measurements of speed judge, fit and draw what they are given; nothing is measured here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import speed  # noqa: E402
import speed_tables as tables  # noqa: E402
import speed_workers  # noqa: E402
import synthetic  # noqa: E402

TEXTS = [
    f"The bridge number {at} was closed for repairs. Bread is baked at {at} degrees today. Nobody voted."
    for at in range(40)
]


def encode_rows(ours: float, theirs: float, ndcg: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for side, rate, quality in (("ragadapt auto", ours, ndcg), (tables.DEFAULT, theirs, 0.65)):
        rows.append({"part": "encode", "what": "speed", "side": side, "texts": "passages", "per_second": rate})
        rows.append({"part": "encode", "what": "quality", "side": side, "ndcg": quality})
    return rows


@pytest.mark.parametrize(
    ("ours", "ndcg", "met"), [(31.0, 0.649, True), (29.0, 0.649, False), (31.0, 0.640, False), (31.0, 0.66, False)]
)
def test_encoding_needs_speed_and_quality(ours: float, ndcg: float, met: bool) -> None:
    line = tables.lines(encode_rows(ours, 10.0, ndcg))[0]
    assert line.met is met
    assert f"{ours / 10:.2f}×" in line.measured


def test_what_was_not_measured_says_so() -> None:
    assert {(line.measured, line.met) for line in tables.lines([])} == {("not measured", None)}
    assert "not measured" in tables.estimate([], 2, 0.04)


def test_mining_must_be_faster_in_half_the_memory() -> None:
    def rows(seconds: float, peak: float) -> list[dict[str, Any]]:
        shared = {"part": "mining", "what": "speed", "chunks": 10, "queries": 5, "same_as_peer": 1.0}
        return [
            {**shared, "side": "sentence-transformers mine_hard_negatives", "seconds": 10.0, "peak_bytes": 8e9},
            {**shared, "side": "ragadapt, dense", "seconds": seconds, "peak_bytes": peak},
        ]

    def met(seconds: float, peak: float) -> bool | None:
        return next(line.met for line in tables.lines(rows(seconds, peak)) if line.what.endswith("ragadapt, dense"))

    assert met(9.0, 3e9) is True
    assert met(11.0, 3e9) is False
    assert met(9.0, 5e9) is False


def test_exponents_are_those_of_a_power() -> None:
    sizes = [1e3, 1e4, 1e5]
    assert speed.exponents(sizes, [3 * n**1.3 for n in sizes]) == (pytest.approx(1.3), pytest.approx(1.3))
    overall, last = speed.exponents(sizes, [20 + n / 100 for n in sizes])  # a constant hides the growth at first
    assert overall < last < 1


def test_core_hours_follow_the_measured_rate() -> None:
    row = {"part": "encode", "what": "speed", "side": "ragadapt auto", "texts": "passages", "per_second": 100.0}
    # 10 million at 50 a second and core: 55.6 core-hours.
    assert "| 56 core-hours (2 at 0.04 each) | 5,556 core-hours (222 at 0.04 each) |" in tables.estimate([row], 2, 0.04)


def test_growth_is_drawn_as_a_file_of_its_own(tmp_path: Path) -> None:
    fits = [
        {"method": method, "chunks": n, "seconds": n / 50, "peak_bytes": 1e9 + n * 1e4}
        for method in ("none", "lora")
        for n in (1000, 10_000, 100_000)
    ]
    for path in speed.draw_growth(fits, tmp_path):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall(".//{*}circle")) == 6


def test_synthetic_corpus_is_distinct_and_labelled(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        synthetic.write_corpus(TEXTS, 60, tmp_path / name / "corpus.jsonl", labels=10, seed=1)
    one, two = ((tmp_path / name / "corpus.jsonl").read_text(encoding="utf-8") for name in ("one", "two"))
    assert one == two
    rows = {row["_id"]: row for row in map(json.loads, one.splitlines())}
    assert len({row["text"] for row in rows.values()}) == 60
    judged = [line.split("\t") for line in (tmp_path / "one" / "qrels.tsv").read_text().splitlines()[1:]]
    asked = {row["_id"]: row["text"] for row in map(json.loads, (tmp_path / "one" / "queries.jsonl").open())}
    assert len(judged) == len(asked) == 10
    for query, document, _ in judged:
        words = set(f"{rows[document]['title']} {rows[document]['text']}".split())
        assert set(asked[query].split()) <= words


def test_mixed_lengths_spread_from_short_to_long() -> None:
    long = [" ".join([text] * 20) for text in TEXTS]
    made = synthetic.mixed_lengths(long, 100)
    lengths = np.array([len(text.split()) for text in made])
    assert len(set(made)) == 100 and lengths.min() < 8 and lengths.max() > 120


def test_peak_memory_of_a_child_is_its_own() -> None:
    held = np.ones(60_000_000)  # 480 MB here
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import speed_workers as w; print(w.peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(child.stdout) < 300_000_000 < held.nbytes <= speed_workers.peak_bytes()


def test_results_of_a_part_replace_those_of_its_last_run(tmp_path: Path) -> None:
    def bench() -> speed.Bench:
        return speed.Bench(tmp_path, tmp_path, speed.SMOKE, "offline", 13, "cpu")

    first = bench()
    first.add("cli", "speed", side="x", seconds=1.0)
    first.add("mining", "speed", side="y", seconds=2.0)
    second = bench()
    second.forget("cli")
    second.add("cli", "speed", side="x", seconds=3.0)
    assert [(row["part"], row["seconds"]) for row in bench().rows] == [("mining", 2.0), ("cli", 3.0)]

"""Bulk encoding: every engine gives the encoder's own vectors, and a run goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ragadapt_cli.main import run
from tiny_models import sentences, write_tiny_model

from ragadapt.encoder import Encoder, bulk, open_encoder
from ragadapt.encoder.bulk import Job, encode_files, plan, read_shard, read_vectors
from ragadapt.errors import InvalidInput, StoreCorrupt

TEXTS = sentences(25, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("bulk")))


@pytest.fixture(scope="module")
def encoder(model: str) -> Encoder:
    return open_encoder(model, device="cpu", precision="float32")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Ten lines of jsonl (with a blank one between), eight rows of parquet, seven lines of text."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    lines = [json.dumps({"_id": f"a{at}", "text": text}) for at, text in enumerate(TEXTS[:10])]
    (folder / "a.jsonl").write_text("\n\n".join(lines[:5]) + "\n" + "\n".join(lines[5:]), encoding="utf-8")
    table = pyarrow.table({"id": [100 + at for at in range(8)], "text": TEXTS[10:18], "more": [0.5] * 8})
    parquet.write_table(table, folder / "b.parquet", row_group_size=3)
    (folder / "deep" / "c.txt").write_text("\n".join(TEXTS[18:]) + "\n", encoding="utf-8")
    return folder


IDS = [*(f"a{at}" for at in range(10)), *(str(100 + at) for at in range(8)), *(f"c.txt:{at}" for at in range(1, 8))]


def job(model: str, **changes: str) -> Job:
    return Job(model, **{"device": "cpu", "precision": "float32", **changes})  # type: ignore[arg-type]


def collected(folder: Path) -> tuple[list[str], np.ndarray]:
    parts = list(read_vectors(folder))
    return [id for ids, _ in parts for id in ids], np.concatenate([vectors for _, vectors in parts])


@pytest.mark.parametrize("shard_rows", [3, 1000])
def test_shards_hold_the_encoders_own_vectors_in_order(
    shard_rows: int, model: str, encoder: Encoder, inputs: Path, tmp_path: Path
) -> None:
    done = encode_files([inputs], tmp_path / "out", job(model), shard_rows=shard_rows)
    ids, vectors = collected(tmp_path / "out")
    assert ids == IDS
    assert np.allclose(vectors, encoder.encode_passages(TEXTS), atol=1e-6)
    assert (done.rows, done.dim, done.reused) == (25, 32, 0)
    assert done.shards == (4 + 3 + 3 if shard_rows == 3 else 3)


def test_a_killed_run_encodes_only_what_is_missing(
    model: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, calls = tmp_path / "out", bulk.encode_shard, []

    def dying(*arguments: object, **options: object) -> dict[str, object]:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bulk, "encode_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        encode_files([inputs], out, job(model), shard_rows=3)
    with pytest.raises(StoreCorrupt, match="no finished encoding"):
        list(read_vectors(out))
    monkeypatch.setattr(bulk, "encode_shard", real)
    encoded: list[str] = []
    encode = Encoder.encode_passages
    monkeypatch.setattr(
        Encoder, "encode_passages", lambda self, texts, **rest: encoded.extend(texts) or encode(self, texts, **rest)
    )
    done = encode_files([inputs], out, job(model), shard_rows=3)
    assert done.reused == 4
    assert [text for text in encoded if text in TEXTS] == TEXTS[10:]  # beside them the probe of the precision
    assert collected(out)[0] == IDS


def test_changed_rows_and_damaged_shards_are_encoded_again(
    model: str, encoder: Encoder, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_files([inputs], out, job(model), shard_rows=5)
    text = (inputs / "deep" / "c.txt").read_text(encoding="utf-8").splitlines()
    (inputs / "deep" / "c.txt").write_text("\n".join([*text[:6], "the bridge"]), encoding="utf-8")
    first = next(out.glob("a-*-00000.npy"))
    first.write_bytes(first.read_bytes()[:-40])
    done = encode_files([inputs], out, job(model), shard_rows=5)
    assert (done.shards, done.reused) == (6, 4)
    assert np.allclose(collected(out)[1], encoder.encode_passages([*TEXTS[:24], "the bridge"]), atol=1e-6)


def test_another_encoder_or_side_is_refused(model: str, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_files([inputs], out, job(model))
    with pytest.raises(InvalidInput, match="another side"):
        encode_files([inputs], out, job(model, side="query"))
    other = write_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(InvalidInput, match="another encoder"):
        encode_files([inputs], out, job(str(other)))
    assert collected(out)[0] == IDS


def test_fields_are_chosen_and_titles_go_in_front(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"key": 7, "title": "Bread", "body": "bake", "text": "no"}\n', encoding="utf-8")
    (shard,) = plan([file], 10)
    chosen = Job("m", id_field="key", text_field="body", title_field="title")
    assert read_shard(shard, chosen) == (["7"], ["Bread\nbake"])
    assert read_shard(shard, Job("m")) == (["rows.jsonl:1"], ["no"])


def test_only_a_newline_ends_a_row_and_a_byte_order_mark_is_no_text(model: str, tmp_path: Path) -> None:
    folder, mark = tmp_path / "in", "\ufeff"
    folder.mkdir()
    rows = [{"_id": id, "text": text} for id, text in (("a\u2028b", "red"), ("c\x85d", "water\u2029tree"))]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "a.jsonl").write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / "b.txt").write_text(f"{mark}one\u2028line\n{mark}two\n", encoding="utf-8")
    (folder / "c.txt").write_text(f"{mark}\nred\n", encoding="utf-8")
    encode_files([folder], tmp_path / "out", job(model), shard_rows=1)
    assert collected(tmp_path / "out")[0] == ["a\u2028b", "c\x85d", "b.txt:1", "b.txt:2", "c.txt:1"]
    for shard_rows in (1, 10):
        shards = plan([folder], shard_rows)
        read = [text for shard in shards for text in read_shard(shard, Job("m"))[1]]
        assert read == ["red", "water\u2029tree", "one\u2028line", f"{mark}two", "red"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": 5}\n', "row 2 has no text"),
        ("x.jsonl", '{"text": "a"}\n{"te\n', "row 2"),
        ("x.jsonl", "[1]\n", "row 1 is list"),
        ("x.parquet", "no parquet", "not a parquet file"),
        ("x.csv", "a,b", "of a kind"),
    ],
)
def test_bad_inputs_say_where(name: str, content: str, message: str, model: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match=message):
        encode_files([tmp_path / name], tmp_path / "out", job(model))


def test_files_of_one_name_in_two_folders_stay_apart(model: str, tmp_path: Path) -> None:
    for name, text in (("one", TEXTS[0]), ("two", TEXTS[1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(text, encoding="utf-8")
    encode_files([tmp_path / "one", tmp_path / "two"], tmp_path / "out", job(model))
    assert len({vector.tobytes() for vector in collected(tmp_path / "out")[1]}) == 2


def test_the_command_encodes_and_speaks_json(
    model: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["encode", str(inputs), "-o", str(tmp_path / "out"), "--model", model, "--json", "--shard-rows", "10"]
    assert run(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["shards"], said["reused"], said["dim"]) == (25, 3, 0, 32)
    assert run(call) == 0
    assert json.loads(capsys.readouterr().out)["reused"] == 3
    assert run([*call, "--retriever", "x"]) == 2


@pytest.mark.slow
def test_ray_gives_the_same_vectors_and_resumes(
    model: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    encode_files([inputs], tmp_path / "local", job(model), shard_rows=4)
    one = encode_files([inputs / "a.jsonl"], tmp_path / "ray", job(model), shard_rows=4)
    assert (one.rows, one.shards) == (10, 3)
    done = encode_files([inputs], tmp_path / "ray", job(model), engine="ray", workers=2, shard_rows=4)
    assert (done.rows, done.shards, done.reused) == (25, 7, 3)
    (ids, vectors), (other_ids, other_vectors) = collected(tmp_path / "ray"), collected(tmp_path / "local")
    assert ids == other_ids == IDS
    assert np.allclose(vectors, other_vectors, atol=1e-6)

"""A saved model is loaded from its own folder, and from nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import write_tiny_model

from ragadapt.config import EncoderConfig
from ragadapt.encoder import Encoder, open_encoder
from ragadapt.errors import ModelNotFound, RagadaptError, StoreCorrupt

TEXTS = ["open the file", "red river"]


def base_of(folder: Path, seed: int = 0) -> Path:
    made = write_tiny_model(folder.with_name(f"made-{folder.name}"), seed=seed)
    shutil.copytree(made, folder)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved encoder, with another model's folder beside it as ../elsewhere."""
    config = EncoderConfig(model=str(base_of(tmp_path / "base")), device="cpu", precision="float32")
    Encoder.load(config).save(tmp_path / "model")
    base_of(tmp_path / "elsewhere", seed=5)
    return tmp_path / "model"


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(edit(values) or values), encoding="utf-8")


def first_path(value: Any) -> Callable[[Any], None]:
    def edit(listed: Any) -> None:
        listed[0]["path"] = value

    return edit


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    "path",
    ["../elsewhere", "x/../../elsewhere", "ABSOLUTE", "..\\elsewhere", "C:\\a", "//host/share", "a\0b", 3, None, ["a"]],
)
def test_a_module_outside_the_folder_is_not_loaded(saved: Path, path: Any, direct: bool) -> None:
    path = str(saved.parent / "elsewhere") if path == "ABSOLUTE" else path
    change(saved / "modules.json", first_path(path))
    if not direct:
        change(saved / "ragadapt_encoder.json", lambda values: values | {"direct": False})
    for opens in (lambda: Encoder.open(saved, device="cpu"), lambda: open_encoder(saved, device="cpu")):
        with pytest.raises(StoreCorrupt, match=r"was not loaded: modules\.json names"):
            opens()
    with pytest.raises(ModelNotFound, match="lies outside the folder"):
        Encoder.load(EncoderConfig(model=str(saved), device="cpu"))


@pytest.mark.parametrize(
    "name",
    ["os.system", "subprocess.Popen", "modeling_x.Own", "ragadapt.export.export_retriever", "sentence_transformer", 7],
)
def test_a_class_that_is_no_module_of_a_model_is_not_imported(saved: Path, name: Any) -> None:
    (saved / "modeling_x.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    change(saved / "modules.json", lambda listed: listed[1].update(type=name))
    with pytest.raises(StoreCorrupt, match="names the class"):
        Encoder.open(saved, device="cpu")
    with pytest.raises(ModelNotFound, match="names the class"):
        Encoder.load(EncoderConfig(model=str(saved), device="cpu"))


@pytest.mark.parametrize(
    "listing", ["{}", "[3]", '"a"', "[[]]", "[{}]", "not json", "[" * 5000, "[]", '[{"type": "x"}]']
)
def test_a_listing_of_another_shape_is_our_error(saved: Path, listing: str) -> None:
    (saved / "modules.json").write_text(listing, encoding="utf-8")
    with pytest.raises(RagadaptError):
        Encoder.open(saved, device="cpu")


def test_a_route_outside_the_folder_is_not_loaded(saved: Path) -> None:
    kind = "sentence_transformers.models.Transformer"
    routes = {"types": {"../elsewhere": kind}, "structure": {"query": ["../elsewhere"]}, "parameters": {}}
    (saved / "router_config.json").write_text(json.dumps(routes), encoding="utf-8")
    with pytest.raises(StoreCorrupt, match=r"router_config\.json names '\.\./elsewhere'"):
        Encoder.open(saved, device="cpu")


def test_shards_and_settings_that_name_files_outside_are_refused(saved: Path) -> None:
    for name, values in (
        ("model.safetensors.index.json", {"weight_map": {"a.b": "../elsewhere/model.safetensors"}}),
        ("sentence_bert_config.json", {"model_args": {"subfolder": "../elsewhere"}}),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
    ):
        kept = (saved / name).read_text(encoding="utf-8") if (saved / name).exists() else None
        (saved / name).write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(StoreCorrupt, match="lies outside the folder"):
            Encoder.open(saved, device="cpu")
        if kept is None:
            (saved / name).unlink()
        else:
            (saved / name).write_text(kept, encoding="utf-8")
    Encoder.open(saved, device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "1_Pooling", "config.json"])
def test_a_link_out_of_the_folder_is_not_followed(saved: Path, name: str) -> None:
    file = saved / name
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    file.symlink_to(saved.parent / "elsewhere" / name)
    with pytest.raises(StoreCorrupt, match=f"{name} is a link that leads out of the folder"):
        Encoder.open(saved, device="cpu")


def test_links_within_the_folder_and_to_the_folder_are_fine(saved: Path, tmp_path: Path) -> None:
    vectors = Encoder.open(saved, device="cpu", precision="float32").encode_queries(TEXTS)
    (saved / "data").mkdir()
    (saved / "model.safetensors").rename(saved / "data" / "weights")
    (saved / "model.safetensors").symlink_to(Path("data") / "weights")
    (tmp_path / "link").symlink_to(saved, target_is_directory=True)
    again = Encoder.open(tmp_path / "link", device="cpu", precision="float32")
    np.testing.assert_array_equal(again.encode_queries(TEXTS), vectors)


def test_an_adapter_that_refers_to_another_base_is_refused(saved: Path) -> None:
    named = {"base_model_name_or_path": str(saved.parent / "elsewhere"), "peft_type": "LORA"}
    (saved / "adapter_config.json").write_text(json.dumps(named), encoding="utf-8")
    with pytest.raises(StoreCorrupt, match=r"adapter_config\.json names the base model"):
        Encoder.open(saved, device="cpu")


def test_a_folder_of_the_hubs_cache_opens_as_a_base(tmp_path: Path) -> None:
    """There every file is a link to a blob outside the folder."""
    base, snapshot = base_of(tmp_path / "blobs"), tmp_path / "snapshot"
    for file in [path for path in base.rglob("*") if path.is_file()]:
        link = snapshot / file.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    assert Encoder.load(EncoderConfig(model=str(snapshot), device="cpu")).dim == 32


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_an_index_reads_its_own_files_alone(tmp_path: Path, kind: str) -> None:
    from ragadapt.errors import IndexCorrupt
    from ragadapt.index import open_index

    for name in ("index", "elsewhere"):
        index = open_index(kind, tmp_path / name, dim=2)
        index.upsert(["a"], [[1.0, 0.0]])
        index.save()
        index.close()
    for pattern in ("vectors-", "ids-", "payloads-"):
        (tmp_path / "index" / pattern).mkdir(exist_ok=True)
    change(tmp_path / "index" / "index.json", lambda values: values | {"generation": "/../../elsewhere/x"})
    with pytest.raises(IndexCorrupt, match="is no number"):
        open_index(folder=tmp_path / "index")

"""Damage to every file of a saved folder: the answers of the undamaged one, or an error that says what is wrong."""

from __future__ import annotations

import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_retriever import fit_pages
from tiny_models import sentences

from ragadapt.collection import open_collection
from ragadapt.errors import RagadaptError
from ragadapt.retriever import Retriever
from ragadapt.store.workspace import open_store

QUESTIONS = ["old stone by the river", "how do I reset my password", "red bridge"]


def flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 8))):
        changed[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    return bytes(changed)


def zero(data: bytes, chance: random.Random) -> bytes:
    size = min(len(data), chance.choice((16, 512, 4000)))
    start = chance.randrange(len(data) - size + 1)
    return data[:start] + bytes(size) + data[start + size :]


def swap(data: bytes, chance: random.Random) -> bytes:
    """Two halves of a part change places: as many bytes, all of them known."""
    size = min(len(data) // 2, chance.choice((4, 64, 1024)))
    start = chance.randrange(len(data) - 2 * size + 1)
    one, other = data[start : start + size], data[start + size : start + 2 * size]
    return data[:start] + other + one + data[start + 2 * size :]


def reword(data: bytes, chance: random.Random) -> bytes:
    """Another digit or word of the same length."""
    for old, new in chance.sample([(b"stone", b"store"), (b"river", b"rover"), (b"1", b"9"), (b"0", b"3")], 4):
        if old in data:
            return data.replace(old, new, 1 if len(old) == 1 else -1)
    return flip(data, chance)


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def grow(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.choice((1, 100)))


SAME_SIZE = (flip, zero, swap, reword)
OTHER_SIZE = (truncate, grow)


def cases(folder: Path, each: int) -> Iterator[tuple[str, str, bytes | None]]:
    """(file, kind of damage, its bytes then; None = it is gone)."""
    chance = random.Random(13)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = file.relative_to(folder).as_posix(), file.read_bytes()
        for number in range(each):
            kinds = SAME_SIZE if number else (*SAME_SIZE, *OTHER_SIZE)
            for damage in kinds if data else (grow,):
                changed = damage(data, chance)
                if changed != data:
                    yield name, damage.__name__, changed
        yield name, "remove", None


def try_all(
    folder: Path, each: int, ask: Callable[[Path], Any], repair: Callable[[Path, Path], None] = shutil.copyfile
) -> tuple[int, list[str]]:
    """(cases, what went wrong): every case damages the folder, asks, and puts the file back."""
    expected = ask(folder)
    count, problems = 0, []
    whole = folder.with_name(f"{folder.name}.whole")
    shutil.copytree(folder, whole)
    for name, kind, changed in cases(whole, each):
        file = folder / name
        file.unlink()
        if changed is not None:
            file.write_bytes(changed)
        count += 1
        try:
            if ask(folder) != expected:
                problems.append(f"{kind} of {name}: another answer")
        except RagadaptError as error:
            if len(str(error)) < 20:
                problems.append(f"{kind} of {name}: {error!r} says too little")
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            problems.append(f"{kind} of {name}: {type(error).__name__} {error} at {where.filename}:{where.lineno}")
        file.unlink(missing_ok=True)
        repair(whole / name, file)
    return count, problems


def search(folder: Path) -> Any:
    with Retriever.open(folder, device="cpu", precision="float32") as retriever:
        return [
            [(hit.chunk, round(hit.score, 4)) for hit in hits]
            for mode in ("hybrid", "dense", "lexical")
            for hits in retriever.search_many(QUESTIONS, 8, mode=mode, filter={"lang": "en"})  # type: ignore[arg-type]
        ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_no_damage_to_a_saved_folder_crashes_or_passes_unseen(tmp_path: Path, kind: str) -> None:
    folder = fit_pages(tmp_path, kind=kind)
    count, problems = try_all(folder, 2, search)
    assert count >= 150
    assert problems == []


def test_text_and_weights_changed_at_equal_size_are_named(tmp_path: Path) -> None:
    folder = fit_pages(tmp_path, kind="faiss")
    for name in ("chunks.sqlite", "model/model.safetensors", "index/vectors-1.faiss", "lexical/data.csc.index.npy"):
        file = folder / name
        data = file.read_bytes()
        middle = data.index(b"stone") if name == "chunks.sqlite" else len(data) // 2
        file.unlink()
        file.write_bytes(data[:middle] + bytes(8) + data[middle + 8 :])
        with pytest.raises(RagadaptError, match=f"{Path(name).name} has xxh3"):
            search(folder)
        file.write_bytes(data)
    assert search(folder)


def test_a_file_replaced_by_a_folder_or_a_pipe_is_damage(tmp_path: Path) -> None:
    import os

    folder = fit_pages(tmp_path)
    for name in open_store(folder).manifest.files:
        file, aside = folder / name, tmp_path / "aside"
        for make in (Path.mkdir, os.mkfifo):
            file.rename(aside)
            make(file)
            with pytest.raises(RagadaptError, match=f"{file.name} "):
                search(folder)
            file.rmdir() if file.is_dir() else file.unlink()
            aside.rename(file)


# Stores, feedback and commands


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_no_damage_to_a_store_crashes_or_passes_unseen(tmp_path: Path, kind: str) -> None:
    texts = sentences(40, seed=3)
    vectors = np.random.default_rng(3).standard_normal((40, 8)).astype(np.float32)
    folder = tmp_path / "store"
    with closing(open_collection(kind, folder, dim=8, fingerprint="an encoder")) as made:
        made.add([f"text {at}" for at in range(40)], texts, vectors, [{"number": at} for at in range(40)])
        made.save()

    def ask(folder: Path) -> Any:
        with closing(open_collection(folder=folder, dim=8, fingerprint="an encoder")) as store:
            found = store.search(None, vectors[:3], 5) + store.search(texts[:3], vectors[:3], 5, mode="hybrid")
            kept = store.vectors(store.ids({"number": {"$gte": 30}}))
            return [[(hit.chunk, round(hit.score, 4)) for hit in hits] for hits in found], kept.tolist()

    count, problems = try_all(folder, 6, ask)
    assert count >= 75
    assert problems == []


@pytest.mark.slow
def test_a_damaged_ledger_says_what_is_lost_and_what_to_do(tmp_path: Path) -> None:
    folder = fit_pages(tmp_path)
    with Retriever.open(folder) as retriever:
        ids = retriever.chunks.ids()
        for number in range(30):
            retriever.add_feedback(f"question {number}", ids[number % len(ids)], user=f"user {number % 4}")
    ledger = folder / "feedback.sqlite"
    data, chance, errors = ledger.read_bytes(), random.Random(5), []
    for number in range(60):
        damage = (*SAME_SIZE, *OTHER_SIZE)[number % 6]
        for beside in folder.glob("feedback.sqlite*"):
            beside.unlink()
        ledger.write_bytes(damage(data, chance))
        try:
            search(folder)  # SQLite keeps no checksums: what is still a ledger is one
        except RagadaptError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert [error for error in errors if "feedback.sqlite" not in error] == []
    assert any("move it away: search then goes on without the feedback" in error for error in errors)
    for beside in folder.glob("feedback.sqlite*"):
        beside.unlink()
    assert search(folder)  # as the message says


@pytest.mark.slow
def test_commands_on_damaged_folders_end_with_an_error_and_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ragadapt_cli.main import run

    folder = fit_pages(tmp_path, kind="faiss")
    whole = shutil.copytree(folder, tmp_path / "whole")
    with Retriever.open(folder) as retriever:
        retriever.add_feedback("old stone", retriever.chunks.ids()[0])
    commands = {
        "doctor": ["doctor", str(folder)],
        "report": ["report", str(folder)],
        "list": ["feedback", "list", str(folder)],
        "index": ["index", str(folder), "--rebuild"],
        "export": ["export", str(folder), str(tmp_path / "exported")],
        "refresh": ["refresh", str(folder), str(tmp_path / "docs")],
    }
    (tmp_path / "docs" / "page00.md").write_text("# New\n\nA new page about an old stone.\n", encoding="utf-8")
    cut = [case for case in cases(whole, 1) if case[1] in ("flip", "reword", "truncate", "remove")]
    counted = 0
    for number, (name, kind, changed) in enumerate(cut):
        for command in ("doctor", ("report", "list", "export", "index", "refresh")[number % 5]):
            file = folder / name
            file.unlink(missing_ok=True)
            if changed is not None:
                file.write_bytes(changed)
            code = run(commands[command])
            said = capsys.readouterr()
            assert "Unexpected error" not in said.err, f"{command} after {kind} of {name}: {said.err}"
            counted += 1
            if command == "doctor":
                assert code != 0, f"doctor found nothing after {kind} of {name}: {said.out}"
            for made in (folder, tmp_path / "exported", tmp_path / ".retriever.build"):
                shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(whole, folder)
    assert counted >= 100

"""Imports point one way, the core knows no framework, and asking for help loads nothing heavy."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ragadapt

ROOT = Path(__file__).resolve().parents[1]

PARTS = (
    "version", "text", "secrets", "errors", "checks", "notebook", "values", "config", "files", "out_of_core", "threads",
    "profiling",
    "corpus", "queries", "lexical", "index", "store", "search", "encoder", "adapters", "rerank", "training",
    "evaluation", "report", "pefa", "snapshot", "retriever", "collection", "feedback", "pipeline", "export", "doctor",
)  # fmt: skip
"""The modules and packages of ragadapt. Each may import those before it, never those behind it."""

OUTSIDE = ("langchain", "llama_index", "click", "rich", "ragadapt_cli", "ragadapt_server", "fastapi", "mcp", "uvicorn")
"""What the core knows nothing of; packages whose name begins so are meant too (langchain_core)."""

PUBLIC = {
    "Chunk", "Document", "Encoder", "EncoderConfig", "FitConfig", "FitResult", "Hit", "Labels", "Query",
    "RagadaptError", "Retriever", "__version__", "fit", "load_config", "reindex",
}  # fmt: skip

HEAVY = ("torch", "transformers", "sentence_transformers", "numpy", "scipy", "pydantic", "bm25s", "faiss")


def imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import in a module's source, those inside functions and TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            if base == "ragadapt":  # from ragadapt import values: the part is the imported name
                yield from ((node.lineno, f"ragadapt.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, base


def upward(source: str, module: str) -> list[str]:
    """The imports of a module of ragadapt that point to a part behind its own, or to the package's front."""
    own = module.split(".")[1]
    found = []
    for line, name in imported(source, module):
        if name.split(".")[0] != "ragadapt":
            continue
        part = [*name.split("."), "ragadapt"][1]
        if part not in PARTS:
            found.append(f"{module}:{line} imports {name}: name the part that it comes from")
        elif PARTS.index(part) > PARTS.index(own):
            found.append(f"{module}:{line} imports {name}, which comes after {own}")
    return found


def sources(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        yield ".".join(parts), path


# Direction


def test_every_part_has_its_place_in_the_order() -> None:
    folder = ROOT / "ragadapt"
    here = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert here - {"__init__"} == set(PARTS)
    assert len(PARTS) == len(set(PARTS))


def test_imports_point_one_way() -> None:
    found = [
        problem
        for module, path in sources(ROOT / "ragadapt")
        if module != "ragadapt.__init__"
        for problem in upward(path.read_text(encoding="utf-8"), module)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from ragadapt.pipeline.fit import fit",
        "def f():\n    from ragadapt.pipeline.fit import fit",
        "import ragadapt.pipeline.fit",
        "from ragadapt import pipeline",
        "from .. import pipeline",
        "from ..pipeline import fit",
        "from ragadapt import fit",
        "import ragadapt",
    ],
)
def test_an_upward_import_is_found_however_it_is_written(source: str) -> None:
    assert len(upward(source, "ragadapt.corpus.read")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from ragadapt.values import Chunk",
        "from ragadapt import values",
        "from ragadapt.corpus.walk import walk",
        "from .walk import walk",
        "import json",
    ],
)
def test_a_downward_import_is_let_through(source: str) -> None:
    assert upward(source, "ragadapt.corpus.read") == []


def test_core_imports_no_framework_and_no_command_line() -> None:
    found = [
        f"{module}:{line} imports {name}"
        for module, path in sources(ROOT / "ragadapt")
        for line, name in imported(path.read_text(encoding="utf-8"), module)
        if name.split(".")[0].startswith(OUTSIDE)
    ]
    assert found == []


# Names


def test_one_name_stands_for_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for module, path in sources(ROOT / "ragadapt"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}
    assert len(homes) > 150  # the check sees the classes


def test_every_module_calls_its_log_log() -> None:
    found = [
        (module, node.targets[0].id)
        for package in (ROOT / "ragadapt", ROOT / "cli" / "ragadapt_cli", *sorted((ROOT / "integrations").glob("*_*")))
        for module, path in sources(package)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and ast.unparse(node.value) == "logging.getLogger(__name__)"
    ]
    assert len(found) > 30
    assert [place for place in found if place[1] != "log"] == []


# Types


def untyped(source: str) -> list[int]:
    """Lines that name typing.Any, or a cast, which says no more of a value than Any does."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("typing", "typing_extensions"):
            found += [node.lineno for alias in node.names if alias.name in ("Any", "cast", "*")]
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id.startswith("typing")
        ):
            found += [node.lineno] * (node.attr in ("Any", "cast"))
        elif isinstance(node, ast.Name):
            found += [node.lineno] * (node.id == "Any")
    return sorted(found)


def test_adapters_and_training_name_the_types_of_all_that_passes_through_them() -> None:
    found = {
        module: untyped(path.read_text(encoding="utf-8"))
        for module, path in sources(ROOT / "ragadapt")
        if module.startswith(("ragadapt.adapters.", "ragadapt.training."))
    }
    assert len(found) > 20
    assert {module: lines for module, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from typing import Any",
        "from typing import Any as Whatever",
        "from typing_extensions import Any",
        "from typing import cast",
        "import typing\nx: typing.Any",
        "def f(x: list[Any]) -> None: ...",
    ],
)
def test_a_type_that_says_nothing_is_found_however_it_is_written(source: str) -> None:
    assert len(untyped(source)) == 1


# The public names


def test_public_names_are_these() -> None:
    assert set(ragadapt.__all__) == PUBLIC
    assert len(ragadapt.__all__) == len(PUBLIC)


def test_every_public_name_is_the_object_of_its_home() -> None:
    for name, home in ragadapt._HOMES.items():
        assert getattr(ragadapt, name) is getattr(importlib.import_module(home), name), name
    assert {*ragadapt._HOMES, "__version__"} == PUBLIC


def test_type_checkers_see_the_names_that_load_lazily() -> None:
    tree = ast.parse((ROOT / "ragadapt" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == ragadapt._HOMES


def test_dir_lists_the_public_names() -> None:
    assert set(dir(ragadapt)) >= PUBLIC


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        ragadapt.fitt  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        exec("from ragadapt import fitt")


# Weight


def loaded(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after the code."""
    check = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_import_loads_nothing_heavy_and_takes_less_than_two_tenths_of_a_second() -> None:
    code = (
        "import os; before = os.times(); import ragadapt; after = os.times()\n"
        "print(after.user - before.user + after.system - before.system)"  # computing time: others on the machine aside
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2
    assert loaded("import ragadapt") == set()


def test_values_and_errors_load_nothing_heavy() -> None:
    assert loaded("from ragadapt import Chunk, Document, Hit, Query, RagadaptError") == set()


def test_fit_and_retriever_are_imported_without_torch() -> None:
    names = loaded("from ragadapt import FitConfig, Labels, Retriever, fit, load_config, reindex")
    assert "pydantic" in names  # the check sees what is loaded
    assert not names & {"torch", "transformers", "sentence_transformers", "faiss"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"], ["search", "--help"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    code = (
        "import sys; from ragadapt_cli.main import run\n"
        f"code = run({arguments!r}); sys.exit(code or 10 * any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "ragadapt" in done.stdout


# The integrations


def test_integrations_are_imported_by_nothing_in_the_core_and_not_by_each_other() -> None:
    names = {
        "langchain_ragadapt": "langchain",
        "llama_index_ragadapt": "llama_index",
        "llama_index": "llama_index",
        "ragadapt_server": "ragadapt_server",
    }
    found = [
        f"{module}:{line} imports {name}"
        for package, own in names.items()
        for module, path in sources(ROOT / "integrations" / package)
        for line, name in imported(path.read_text(encoding="utf-8"), module)
        if name.split(".")[0].startswith(("langchain", "llama_index", "ragadapt_cli", "ragadapt_server"))
        and not name.split(".")[0].startswith(own)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("name", "public"),
    [
        (
            "langchain_ragadapt",
            {"LoRAEmbeddings", "LoRARetriever", "RagAdaptReranker", "RagAdaptVectorStore", "SQLiteRecordManager"},
        ),
        (
            "llama_index_ragadapt",
            {"LoRAEmbedding", "LoRAFinetuneEngine", "LoRARetriever", "RagAdaptRerank", "RagAdaptVectorStore"},
        ),
        ("ragadapt_server", {"ServerSettings", "make_app", "make_mcp"}),
    ],
)
def test_public_names_of_the_integrations_load_lazily_and_are_typed(name: str, public: set[str]) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) == public == set(module._HOMES)
    assert set(dir(module)) >= public
    for each, home in module._HOMES.items():
        assert getattr(module, each) is getattr(importlib.import_module(home), each)
    tree = ast.parse((ROOT / "integrations" / name / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == module._HOMES
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        module.Nothing  # noqa: B018


@pytest.mark.parametrize(
    ("framework", "code"),
    [
        ("langchain_core.retrievers", "from langchain_ragadapt import *"),
        ("llama_index.core", "from llama_index_ragadapt import *"),
        (
            "llama_index.core",
            "import llama_index.embeddings.ragadapt, llama_index.retrievers.ragadapt",
        ),
    ],
)
def test_integrations_are_imported_without_torch_in_less_than_a_second_beside_the_framework(
    framework: str, code: str
) -> None:
    measure = (
        f"import {framework}, os; before = os.times()\n{code}\nafter = os.times()\n"
        "print(after.user - before.user + after.system - before.system)"
    )
    done = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0
    assert not loaded(code) & {"torch", "transformers", "sentence_transformers", "faiss"}


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("langchain_core", "langchain_ragadapt", "langchain"),
        ("llama_index.core", "llama_index_ragadapt", "llama-index"),
    ],
)
def test_a_missing_framework_is_an_error_that_names_the_extra(package: str, name: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from {name} import LoRARetriever"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"pip install 'ragadapt[{extra}]'" in done.stderr.splitlines()[-1]

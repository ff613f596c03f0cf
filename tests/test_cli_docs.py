"""The references are what the program says of itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import click
import pytest
from ragadapt_cli.main import COMMANDS, program
from ragadapt_cli.settings import DOCTOR_FLAGS, FIT_FLAGS, settings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "configuration.md"])
def test_reference_is_fresh(name: str, generate: ModuleType) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert text == generate.PAGES[name](), f"docs/{name} is stale. Write it with: python docs/generate.py"


def test_check_finds_a_stale_page(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    with (tmp_path / "cli.md").open("a") as file:
        file.write("more")
    assert generate.main(["--check"]) == 1


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    context = click.Context(program)
    for name in COMMANDS:
        assert f"\n## ragadapt {name}\n" in text
        section = text.split(f"\n## ragadapt {name}\n")[1].split("\n## ")[0]
        command = program.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
                for option in [*parameter.opts, *parameter.secondary_opts]:
                    assert option in section
            else:
                assert parameter.make_metavar(click.Context(command)) in section


def test_no_reference_offers_an_index_in_memory_which_every_fit_refuses(generate: ModuleType) -> None:
    assert all(":memory:" not in page() for page in generate.PAGES.values())


def test_every_setting_is_documented_with_a_reason(generate: ModuleType) -> None:
    reasons = generate.comments()
    assert [key for key in settings() if not reasons.get(key)] == []
    assert set(reasons) <= set(settings())


def test_every_flag_is_for_a_setting_that_exists() -> None:
    for flag in (*FIT_FLAGS, *DOCTOR_FLAGS):
        assert flag.key in settings()
    names = [flag.name for flag in FIT_FLAGS]
    assert len(names) == len(set(names))


def test_comments_are_those_of_their_own_setting(generate: ModuleType) -> None:
    reasons = generate.comments()
    assert reasons["adapter.alpha"] == "scales what they add; None = the method's own, 2 * rank for lora"
    assert reasons["chunk.min_tokens"] == "smaller pieces join a neighbour under the same heading"

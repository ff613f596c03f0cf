"""The Dockerfile and the compose file name what is there; that they build is for a machine with Docker."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import yaml
from ragadapt_cli.main import program
from ragadapt_cli.settings import build_config
from ragadapt_cli.terminal import Terminal

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "docker"


def parsed(words: list[str]) -> click.Context:
    """A command line as `ragadapt` reads it; nothing runs. Raises click.UsageError."""
    command = program.get_command(click.Context(program), words[0])
    assert command is not None, words
    return command.make_context(words[0], words[1:], obj=Terminal())


def instructions() -> list[tuple[str, str]]:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_copies_what_a_build_needs_and_installs_extras_that_exist() -> None:
    copied = {
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).parts[0] for package in packages} <= copied
    assert {project["project"]["readme"], "pyproject.toml", "constraints.txt"} <= copied
    extras = re.search(r"'\.\[([\w,-]+)\]'", (FOLDER / "Dockerfile").read_text(encoding="utf-8"))
    assert extras is not None and set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])


def test_the_builder_is_sent_what_the_image_copies_and_no_more() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    copied = {
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    }
    assert {line.removeprefix("!") for line in lines[1:-1]} == copied


def test_the_image_serves_as_a_user_without_rights_and_tells_its_health(tmp_path: Path) -> None:
    last = dict(instructions())
    assert last["USER"] not in ("root", "0")
    words = json.loads(last["CMD"])
    (tmp_path / "tokens").write_text("")
    context = parsed([word.replace("/data", str(tmp_path)) for word in words])
    assert (context.params["host"], context.params["port"]) == ("0.0.0.0", 8080)
    assert f":{context.params['port']}/readyz" in last["HEALTHCHECK"] and last["EXPOSE"] == "8080"


def test_the_compose_file_builds_this_image_and_its_commands_are_read(tmp_path: Path) -> None:
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    service = yaml.safe_load(text)["services"]["ragadapt"]
    context = (FOLDER / service["build"]["context"]).resolve()
    assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    commands = re.findall(r"run --rm ragadapt ([^#\n]+)", text)
    (tmp_path / "docs").mkdir()
    assert {line.split()[0] for line in commands} == {"token", "fit"}
    for line in commands:
        found = parsed(shlex.split(line.replace("/data", str(tmp_path))))
        if assignments := found.params.get("assignments"):
            assert build_config(None, assignments=assignments).index.url == "http://qdrant:6333"


def test_the_server_of_the_tests_is_that_of_the_compose_file_and_listens_on_this_machine_alone() -> None:
    alone = yaml.safe_load((FOLDER / "qdrant.yaml").read_text(encoding="utf-8"))["services"]["qdrant"]
    whole = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]["qdrant"]
    assert alone["image"] == whole["image"]
    assert alone["ports"] == ["127.0.0.1:6333:6333"]

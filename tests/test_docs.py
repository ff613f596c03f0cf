"""README and docs are true: their snippets run, their commands parse, their names, figures and links exist."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from ragadapt_cli.main import COMMANDS, program
from ragadapt_cli.settings import COMPARE_FLAGS, DOCTOR_FLAGS, FIT_FLAGS, build_config
from ragadapt_cli.terminal import Terminal

import ragadapt
from ragadapt.adapters.peft import LowRankOptions
from ragadapt.config import EncoderConfig, FitConfig, load_config
from ragadapt.corpus import chunk_documents, read_documents
from ragadapt.encoder.presets import PRESETS
from ragadapt.evaluation import gate
from ragadapt.pipeline.fusion import BALANCE_ASKED, BALANCE_CUT, ENOUGH, MOST_SHAPED, PASSAGES
from ragadapt.queries import KINDS, load_labels
from ragadapt.search.fusion import BEST, KNOWN, LOST, Fusion
from ragadapt.values import Evidence

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = (
    "README.md", "docs/getting-started.md", "docs/how-it-works.md", "docs/langchain.md", "docs/llama-index.md",
    "docs/python.md", "docs/refresh.md", "docs/reranking.md", "docs/feedback.md", "docs/serving.md", "docs/speed.md",
    "docs/comparing.md", "docs/applications.md", "docs/context.md", "docs/evaluating.md", "docs/priming.md",
    "docs/skills/ragadapt/SKILL.md",
)  # fmt: skip
"""Pages that people write; docs/cli.md and docs/configuration.md are generated and tested elsewhere."""

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)

# The folder beside which the snippets run: the help pages of a service that keeps files in step.
HELP = {
    "account.md": """---
audience: user
---
# Your account

## Reset your password

Open Settings, choose Security and press "Send reset link". The link works for 20 minutes. If no message arrives, look
into the spam folder, then ask an administrator of your team.

## Close your account

Closing removes your files after 14 days. Until then, signing in again brings everything back.
""",
    "billing.md": """---
audience: user
---
# Billing

## Refunds

A payment is returned in full within 30 days of purchase. The money reaches your card five days later.

## Change your plan

Upgrades begin at once and are charged for the rest of the month. Downgrades begin with the next month.
""",
    "api.md": """---
audience: developer
---
# API

## Rate limits

Sixty requests a minute are allowed for every key. Beyond that the server answers with status 429 and a Retry-After
header.

## Webhooks

A webhook is a POST request to your address whenever a file changes. Failed deliveries are repeated for one day.
""",
    "sync.md": """---
audience: user
---
# Sync

## How do I stop a folder from syncing?

Right-click the folder and choose "Online only". It stays in the cloud and frees the space on your disk.
""",
    "install.md": """---
audience: operator
---
# Install

## Behind a proxy

Set HTTPS_PROXY before you start the client. See also [limits of the interface](api.md#rate-limits).
""",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. line: where its first line stands, from 1."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1] in languages or not languages:
            found.append(Block(page, text[: match.start()].count("\n") + 2, match[1], match[2]))
    return found


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(page: str) -> dict[str, str]:
    """Heading of level two → the section's text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", re.sub(r"^#(?= )", "##", text, count=1), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def lay_out(folder: Path) -> Path:
    """What the snippets expect to find: ./docs, and the files that the pages show."""
    (folder / "docs").mkdir(parents=True)
    for name, text in HELP.items():
        (folder / "docs" / name).write_text(text, encoding="utf-8")
    shown = {
        "questions.jsonl": next(b for b in blocks("docs/getting-started.md", "jsonl") if '"evidence"' in b.text),
        "queries.jsonl": next(b for b in blocks("README.md", "jsonl") if '"_id"' in b.text),
        "qrels.tsv": blocks("README.md", "tsv")[0],
        "fit.toml": blocks("docs/getting-started.md", "toml")[0],
        "passages.jsonl": blocks("docs/speed.md", "jsonl")[0],
        "clicks.jsonl": blocks("docs/feedback.md", "jsonl")[0],
        "pairs.jsonl": next(b for b in blocks("docs/getting-started.md", "jsonl") if '"evidence"' in b.text),
    }
    for name, block in shown.items():
        (folder / name).write_text(block.text, encoding="utf-8")
    (folder / "searches.txt").write_text("how do I get my money back\ncancel a seat\n", encoding="utf-8")
    return folder


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files, and an empty ./retriever."""
    folder = lay_out(tmp_path / "work")
    (folder / "retriever").mkdir()
    monkeypatch.chdir(folder)
    return folder


# Snippets in Python


def execute(found: list[Block]) -> None:
    """Run blocks one after the other in one namespace, as a reader would."""
    namespace: dict[str, Any] = {"__name__": "snippet"}
    for block in found:
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / block.page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_compile(page: str) -> None:
    for block in blocks(page, "python"):
        compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")


@pytest.mark.slow
def test_snippets_that_open_a_retriever_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(lay_out(tmp_path / "work"))
    ragadapt.fit(["./docs"], "./retriever", FitConfig(encoder=EncoderConfig(model="offline")))
    execute(blocks("README.md", "python"))
    assert "billing.md" in capsys.readouterr().out.splitlines()[0]
    execute(blocks("docs/getting-started.md", "python"))
    execute(blocks("docs/langchain.md", "python"))
    out = capsys.readouterr().out.splitlines()
    assert {"Within 30 days.", "refunds"} <= set(out)
    assert "{'num_added': 1, 'num_updated': 0, 'num_skipped': 0, 'num_deleted': 0}" in out
    execute(blocks("docs/evaluating.md", "python"))
    execute(blocks("docs/speed.md", "python"))
    execute(blocks("docs/llama-index.md", "python"))
    assert "billing.md" in capsys.readouterr().out
    elsewhere = [page for page in PAGES if page not in WRITTEN and blocks(page, "python")]
    assert elsewhere == [], "run the snippets of these pages too"


@pytest.mark.slow
def test_snippets_of_the_python_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(lay_out(tmp_path / "work"))
    execute(blocks("docs/python.md", "python"))
    out = capsys.readouterr().out
    assert out.startswith("NO GAIN ")
    assert "done: index" in out
    assert "nothing-here" in out
    assert (tmp_path / "work" / "run.trec").read_text(encoding="utf-8").startswith("q1 Q0 billing.md 1 ")


# Commands


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every command line of a page: in blocks, and in the text where it has arguments."""
    for block in blocks(page, "sh"):
        for number, line in enumerate(block.text.replace("\\\n", " ").splitlines(), block.line):
            if words := shlex.split(line, comments=True):
                yield f"{page}:{number}", words
    for match in re.finditer(r"`(ragadapt [^`]+)`", prose(page)):
        words = shlex.split(match[1])
        if len(words) > 2:
            yield f"{page}: {match[0]}", words


def parse(words: list[str]) -> None:
    """Let click and the settings judge a command line; nothing runs. Raises click.UsageError."""
    name, *arguments = words[1:]
    if name.startswith("-"):
        assert name in {option for parameter in program.params for option in parameter.opts}
        return
    command = program.get_command(click.Context(program), name)
    assert command is not None, f"there is no command {name}"
    context = command.make_context(name, arguments, obj=Terminal())
    if "assignments" in context.params:
        flags = {
            flag.key: context.params[flag.parameter]
            for flag in {"fit": FIT_FLAGS, "compare": COMPARE_FLAGS}.get(name, DOCTOR_FLAGS)
            if context.get_parameter_source(flag.parameter) is ParameterSource.COMMANDLINE
        }
        build_config(context.params["config_file"], flags=flags, assignments=context.params["assignments"])


@pytest.mark.parametrize("page", WRITTEN)
def test_commands_parse(page: str, beside: Path) -> None:
    for where, words in commands(page):
        if words[0] != "ragadapt":
            continue
        try:
            parse(words)
        except click.ClickException as error:
            pytest.fail(f"{where}: {shlex.join(words)}: {error.format_message()}")


def test_wrong_commands_do_not_parse(beside: Path) -> None:
    for line in (
        "fit ./docs",
        "fit ./docs -o out --modell small",
        "fit ./nothing -o out",
        "fit ./docs -o out --set a.b=1",
        "fit ./docs -o out --index lucene",
        "search ./retriever x --mode both",
    ):
        with pytest.raises(click.ClickException):
            parse(["ragadapt", *shlex.split(line)])


def test_readme_shows_every_command() -> None:
    shown = {words[1] for _, words in commands("README.md") if words[0] == "ragadapt"}
    assert shown >= set(COMMANDS)


def test_make_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for page in WRITTEN:
        for where, words in commands(page):
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), where
            for names in re.findall(r"\.\[([\w,-]+)\]", " ".join(words)):
                assert set(names.split(",")) <= set(extras), where
        for target in re.findall(r"`make (\w+)`", prose(page)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"
    table = sections("docs/getting-started.md")["Install"]
    told = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)}
    told |= set(re.findall(r"`(\w+)`", re.search(r"^\| `documents` \|.*$", table, re.MULTILINE)[0]))  # type: ignore[index]
    assert told == set(extras) - {"dev"}


@pytest.mark.parametrize("page", WRITTEN)
def test_options_in_the_text_exist(page: str, beside: Path) -> None:
    context = click.Context(program)
    known = {"--version", "--help"}
    for name in COMMANDS:
        command = program.get_command(context, name)
        assert command is not None
        for parameter in command.params:  # get_params would make the help option anew, for this context
            known |= {*parameter.opts, *parameter.secondary_opts}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        script = re.match(r"python (\S+\.py)", code)
        spoken = (ROOT / script[1]).read_text(encoding="utf-8") if script else known
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code):
            assert option in spoken, f"{page}: `{code}`"
        if match := re.fullmatch(r"--set (\S+)|--(\S+) (\S+)", code):
            assignment = match[1]
            if assignment is not None:
                build_config(None, assignments=[assignment])
            elif flag := next((flag for flag in FIT_FLAGS if flag.name == f"--{match[2]}"), None):
                build_config(None, assignments=[f"{flag.key}={match[3]}"])


# Files that the pages show


@pytest.mark.parametrize("page", PAGES)
def test_toml_blocks_are_configurations(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        file = tmp_path / "shown.toml"
        file.write_text(block.text, encoding="utf-8")
        assert load_config(file) != FitConfig(), block.name


def test_label_formats_that_the_pages_show_are_read(beside: Path) -> None:
    documents = read_documents(beside / "docs").documents
    chunks = chunk_documents(documents, FitConfig().chunk, lambda texts: [len(text.split()) for text in texts], 256)
    for block in (*blocks("README.md", "jsonl"), *blocks("docs/getting-started.md", "jsonl")):
        file = beside / "shown.jsonl"
        file.write_text(block.text, encoding="utf-8")
        qrels = None if '"evidence"' in block.text else beside / "qrels.tsv"
        found = load_labels(file, qrels, chunks=chunks, documents=documents)
        assert found.unmatched == [], block.name
        assert len(found.queries) == len(block.text.splitlines()), block.name
        answer = {chunk.id: chunk for chunk in chunks}[found.queries[0].positives[0]]
        assert answer.source == "billing.md", block.name


# Names and figures


def test_every_public_name_has_its_section() -> None:
    told = sections("docs/python.md")
    assert set(ragadapt.__all__) - {"__version__"} == set(told) - {"Python"}
    assert "`ragadapt.__version__`" in told["Python"]


def words_of(section: str) -> set[str]:
    """Words that stand as code in a section."""
    code = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", section, flags=re.DOTALL))
    return {word for piece in code for word in re.findall(r"\w+", piece)}


def members(name: str) -> set[str]:
    """Parameters of a function, fields of a value, public methods of a class with their parameters."""
    thing = getattr(ragadapt, name)
    if inspect.isfunction(thing):
        return set(inspect.signature(thing).parameters)
    if issubclass(thing, Exception):
        return set()
    found = {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
    found |= set(getattr(thing, "model_fields", {}))
    if name == "Retriever":
        for method, value in vars(thing).items():
            if not method.startswith("_"):
                found.add(method)
                function = inspect.unwrap(getattr(value, "__func__", value))
                if inspect.isfunction(function):
                    found |= set(inspect.signature(function).parameters) - {"self", "cls"}
    return found


@pytest.mark.parametrize("name", sorted(set(ragadapt.__all__) - {"__version__"}))
def test_parameters_and_fields_are_named_in_their_section(name: str) -> None:
    assert members(name) - words_of(sections("docs/python.md")[name]) == set()


def test_presets_are_those_of_the_code() -> None:
    table = sections("docs/getting-started.md")["Choose a base model"]
    rows = dict(re.findall(r"^\| `(\w+)`(?: \(default\))? \| (\S+) \|", table, re.MULTILINE))
    assert rows == {name: preset.model for name, preset in PRESETS.items()} | {"offline": "all-MiniLM-L6-v2"}
    assert f"| `{EncoderConfig().model}` (default) |" in table


def test_kinds_of_queries_are_those_of_the_code() -> None:
    text = sections("docs/how-it-works.md")["Queries, and how far each is trusted"]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", text, re.MULTILINE)
    told = {kind: Evidence(rank) for rank, kinds in rows for kind in re.findall(r"`([\w-]+)`", kinds)}
    assert told == dict(KINDS)
    assert [rank for rank, _ in rows] == [rank.value for rank in Evidence]


def figures() -> list[str]:
    """Stretches of how-it-works.md with the figures that the code has."""
    config, fusion, enough = FitConfig(), Fusion(), ENOUGH
    rest = {enough[rank] for rank in Evidence if rank is not Evidence.LABELLED}
    assert len(rest) == 1
    assert (config.adapter.rank, config.adapter.alpha) == (None, None)  # the method's own
    strengths = ", ".join(f"{value:g}" for value in sorted(config.gate.interpolation))
    return [
        f"{enough[Evidence.LABELLED]} labelled, or {rest.pop()} of another rank",
        f"| fewer than {config.gate.cross_fit_below} labelled questions: all of them, by cross-fitting "
        f"| {gate.MINIMUM[Evidence.LABELLED]} |",
        f"| more labelled questions: those that were held out | {gate.MINIMUM[Evidence.LABELLED]} |",
        f"| the most frequent kind of human query, held out | {gate.MINIMUM[Evidence.HUMAN]} |",
        f"| a language model's questions: all of them, by cross-fitting | {gate.MINIMUM[Evidence.PARAPHRASE]} |",
        f"within the first {config.query.round_trip_k} of the untuned hybrid",
        f"its best {config.fusion.depth} passages",
        f"w = r³ / (r³ + {BALANCE_CUT:g}³)",
        f"their r counts (with {BALANCE_ASKED:g})",
        f"Up to {MOST_SHAPED} queries of one kind",
        f"an even sample of {PASSAGES:,} passages",
        f"the best {100 * BEST:.0f} % of every query",
        f"from {KNOWN:g}".replace("0.", ".") + f" of it on w stays as it is, at {LOST:g}".replace("0.", "."),
        f"q' = Π(q + {fusion.feedback:g}·mean)",
        f"above {100 * config.mining.margin:.0f} % of the answer's score",
        f"with temperature {config.training.temperature:g}",
        f"r = {LowRankOptions().rank} and s = {LowRankOptions().scale / LowRankOptions().rank:g}",
        f"strengths {strengths} and 1",
        f"({config.gate.bootstrap_samples:,} resamples",
        f"gives {100 * config.gate.confidence:.0f} % intervals",
        f"by no more than {config.gate.max_drift:g}",
        f"| `{config.adapter.reweight}` (default) |",
    ]


def test_figures_of_the_method_are_those_of_the_code() -> None:
    text = " ".join((ROOT / "docs/how-it-works.md").read_text(encoding="utf-8").split())
    assert [figure for figure in figures() if figure not in text] == []
    assert (FitConfig().split.heldout, FitConfig().split.dev) == (0.2, 0.1)  # "A fifth", "a tenth of the rest"
    assert FitConfig().query.per_chunk == 3  # "At most three"


def test_readme_keeps_the_place_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- results:start -->") == text.count("<!-- results:end -->") == 1
    assert text.index("## Results") < text.index("<!-- results:start -->") < text.index("<!-- results:end -->")


# Links


def slugs(path: Path) -> set[str]:
    """The anchors that a page's headings give, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = 1
        unique = slug
        while unique in found:
            unique, number = f"{slug}-{number}", number + 1
        found.add(unique)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            assert target.startswith("https://"), f"{page}: {target}"
            continue
        name, _, anchor = target.partition("#")
        path = (here.parent / name).resolve() if name else here
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in slugs(path), f"{page}: {target}"


def test_readme_leads_to_every_page_of_the_docs() -> None:
    linked = {target.partition("#")[0] for page in WRITTEN for target in re.findall(r"\]\(([^)\s]+)\)", prose(page))}
    names = {Path(target).name for target in linked}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= names


def test_contributing_says_where_to_begin_each_change() -> None:
    rows = re.findall(r"^\| (.+?) \| `(\S+?)` \| `(\w+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(rows) >= 10
    for change, file, name in rows:
        assert (ROOT / file).is_file(), f"{change}: there is no {file}"
        source = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined = {node.name for node in source.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert name in defined, f"{change}: {file} does not define {name}"

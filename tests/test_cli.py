"""The command line's conventions, with the core behind it replaced where it would cost minutes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from ragadapt_cli.main import COMMANDS, program, run
from ragadapt_cli.terminal import ProgressLines, Stages, Terminal, clock, times

from ragadapt.config import FitConfig
from ragadapt.errors import GeneratorFailed, MissingExtra, NotARetriever
from ragadapt.report import Measure, MeasuredSystem, Report, VerdictFacts
from ragadapt.search.context import Expand
from ragadapt.search.reranking import Rerank
from ragadapt.values import Chunk, Context, Hit
from ragadapt.version import __version__

TUNED = {"lam": None, "tenant": None, "rerank": False}  # feedback as it was tuned, for all; no second stage
PLAIN = {"expand": None, "fold": "same", "max_per_document": None}  # passages as they are
ANY = {"min_confidence": None}  # however sure


class Result:
    """What fit gives back."""

    def __init__(self, path: Path, verdict: str = "WIN", reused: tuple[str, ...] = ()) -> None:
        metrics = {"nDCG@10": Measure(value=0.5)}
        systems = (MeasuredSystem(name="base-dense", label="base, dense", metrics=metrics),)
        self.path, self.verdict, self.reused = path, verdict, reused
        self.report = Report(systems=systems, verdict=VerdictFacts(outcome=verdict))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# Title\n\nSome text.\n", encoding="utf-8")
    return folder


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What fit was called with; it does nothing."""
    calls: list[dict[str, Any]] = []

    def fit(sources: Sequence[Path], target: Path, config: FitConfig, **rest: Any) -> Result:
        calls.append({"sources": sources, "target": target, "config": config, **rest})
        return Result(Path(target), reused=("chunks",))

    monkeypatch.setattr("ragadapt.pipeline.fit.fit", fit)
    return calls


def chunk(id: str, text: str, source: str = "guide/install.md", headings: tuple[str, ...] = ("Install",)) -> Chunk:
    return Chunk(id, source, text, headings, 0, len(text), {"lang": "en"}, source)


HITS = [
    Hit(
        chunk("guide/install.md#0", "Reset the password in the settings.\nThen log in."),
        0.75,
        {"dense": 0.5},
        confidence=0.8,
    ),
    Hit(chunk("faq.md#3", "Passwords expire.", "faq.md", ("FAQ", "Login")), 0.5, {"lexical": float("nan")}),
]


class Opened:
    """A retriever that always finds the same."""

    fingerprint = "f" * 64

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.hits = HITS

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append("closed")

    def search_many(self, queries: Sequence[str], k: int | None, **rest: Any) -> list[list[Hit]]:
        self.asked.append((list(queries), k, rest))
        return [self.hits[:k] for _ in queries]

    def run(self, queries: Mapping[str, str], k: int, **rest: Any) -> dict[str, dict[str, float]]:
        self.asked.append((dict(queries), k, rest))
        return {id: {"faq.md": 0.5, "guide/install.md": 0.75} for id in queries}

    def evaluate(
        self, queries: Path, qrels: Path | None, *, modes: Sequence[str], **rest: Any
    ) -> dict[str, dict[str, float]]:
        assert rest == TUNED
        self.asked.append((queries, qrels, tuple(modes)))
        return {mode: {"nDCG@10": 0.25, "queries": 4} for mode in modes}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    found = Opened()
    monkeypatch.setattr("ragadapt.retriever.Retriever.open", lambda *_, **__: found)
    return found


# The program -----------------------------------------------------------------------------------------------


def test_help_imports_neither_torch_nor_pydantic_nor_rich() -> None:
    code = (
        "import sys; from ragadapt_cli.main import run; run(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pydantic', 'rich', 'numpy', 'ragadapt.config')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    taken = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "ragadapt_cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        # Computing time, not the clock: other programs on the machine don't count.
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(taken) < 0.3


def test_listed_help_is_the_first_line_of_each_commands_own() -> None:
    context = click.Context(program)
    for name, text in COMMANDS.items():
        command = program.get_command(context, name)
        assert command is not None
        assert command.help is not None
        assert command.help.splitlines()[0] == text


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"ragadapt {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, flag]) == 0
    assert f"ragadapt {name}" in capsys.readouterr().out


def test_misspelt_command_is_a_usage_error_that_names_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serach", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Did you mean 'search'?" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_RAGADAPT_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completing_a_command_imports_no_command() -> None:
    code = (
        "import sys; from ragadapt_cli.main import main\ntry: main()\nfinally: print('ragadapt.config' in sys.modules)"
    )
    environment = {**os.environ, "_RAGADAPT_COMPLETE": "bash_complete", "COMP_WORDS": "ragadapt fi", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["plain,fit", "False"]


# Errors ----------------------------------------------------------------------------------------------------


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Iterator[None]:
    def fit(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("ragadapt.pipeline.fit.fit", fit)
        yield


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GeneratorFailed("The endpoint gave up."), 1),
        (MissingExtra("The offline base model", "offline"), 4),
        (FileNotFoundError(2, "No such file", "x.txt"), 1),
        (ZeroDivisionError("oh"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_code_says_what_kind_of_error(
    error: BaseException,
    code: int,
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with failing(monkeypatch, error):
        assert run(["fit", str(documents), "-o", "out"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err


def test_expected_error_is_one_line_and_has_a_traceback_only_when_verbose(
    documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(monkeypatch, GeneratorFailed("The endpoint gave up.")):
        run(["fit", str(documents), "-o", "out"])
        assert capsys.readouterr().err == "Error: The endpoint gave up.\n"
        run(["fit", str(documents), "-o", "out", "-v"])
        assert "Traceback" in capsys.readouterr().err


def test_unexpected_error_always_has_a_traceback(
    documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(monkeypatch, ZeroDivisionError("oh")):
        run(["fit", str(documents), "-o", "out"])
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "Unexpected error: ZeroDivisionError: oh" in err


def test_interrupted_fit_says_that_it_resumes(
    documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(monkeypatch, KeyboardInterrupt()):
        assert run(["fit", str(documents), "-o", "out"]) == 130
    assert "Run the same command again to resume." in capsys.readouterr().err


def test_errors_are_json_under_json(
    documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(monkeypatch, NotARetriever("There is none.")):
        assert run(["fit", str(documents), "-o", "out", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "schema_version": 1,
        "error": {"type": "NotARetriever", "message": "There is none.", "exit_code": 1},
    }


def test_usage_errors_are_json_under_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "--json"]) == 2
    found = json.loads(capsys.readouterr().err)
    assert found["error"]["exit_code"] == 2
    assert "RETRIEVER" in found["error"]["message"]


def test_a_query_that_looks_like_an_option_can_stand_behind_two_dashes(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", "r", "--", "--json"]) == 0
    assert opened.asked[0][0] == ["--json"]
    assert not capsys.readouterr().out.startswith("{")


# fit -------------------------------------------------------------------------------------------------------


def test_fit_passes_flags_on_as_settings(fits: list[dict[str, Any]], documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = "--model offline --method none --adapt query --rank 4 --epochs 2 --lr 1e-3 --reweight tokens --gamma 0.5"
    more = "--index exact --seed 3 --include *.md --include *.rst --precision float32 --device cpu --portable"
    assert run(["fit", str(documents), "-o", str(out), *flags.split(), *more.split()]) == 0
    [call] = fits
    config = call["config"]
    assert call["sources"] == [documents]
    assert call["target"] == out
    assert call["portable"] is True
    assert call["labels"] == []
    assert (config.encoder.model, config.encoder.precision, config.encoder.device) == ("offline", "float32", "cpu")
    assert (config.adapter.method, config.adapter.adapt, config.adapter.rank) == ("none", "query", 4)
    assert (config.adapter.reweight, config.adapter.gamma) == ("tokens", 0.5)
    assert (config.training.epochs, config.training.learning_rate) == (2, 1e-3)
    assert (config.index.kind, config.seed, config.read.include) == ("exact", 3, ("*.md", "*.rst"))


def test_fit_prints_table_and_places_on_stdout_and_the_rest_on_stderr(
    fits: list[dict[str, Any]], documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", str(documents), "-o", "out"]) == 0
    out, err = capsys.readouterr()
    assert "base, dense" in out
    assert "Retriever: out" in out
    assert str(Path("out") / "report" / "report.html") in out
    assert "Taken over from the interrupted run: chunks." in err
    for quiet in (["fit", str(documents), "-o", "out", "-q"], ["-q", "fit", str(documents), "-o", "out"]):
        assert run(quiet) == 0
        assert capsys.readouterr().err == ""


def test_fit_prints_one_document_under_json(
    fits: list[dict[str, Any]], documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", str(documents), "-o", "out", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["schema_version"], found["command"], found["verdict"]) == (1, "fit", "WIN")
    assert found["report"]["systems"][0]["metrics"]["nDCG@10"]["value"] == 0.5


@pytest.mark.parametrize(("verdict", "code"), [("WIN", 0), ("LIKELY GAIN", 3), ("NO GAIN", 3)])
def test_fail_on_no_gain_exits_with_three_unless_the_verdict_is_win(
    verdict: str, code: int, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.pipeline.fit.fit", lambda *_, **__: Result(Path("out"), verdict))
    assert run(["fit", str(documents), "-o", "out", "--fail-on-no-gain"]) == code
    assert run(["fit", str(documents), "-o", "out"]) == 0


def write(path: Path, text: str = "x") -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_fit_pairs_labels_in_order(fits: list[dict[str, Any]], documents: Path, tmp_path: Path) -> None:
    q, train, test = (write(tmp_path / name) for name in ("queries.jsonl", "train.tsv", "test.tsv"))
    labels = ["--queries", q, "--qrels", train, "--labels-for", "train", "--qrels", test, "--labels-for", "eval"]
    assert run(["fit", str(documents), "-o", "out", *labels]) == 0
    found = [(label.queries, label.qrels, label.use) for label in fits[0]["labels"]]
    assert found == [(Path(q), Path(train), "train"), (Path(q), Path(test), "eval")]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--qrels", "{f}"],
        ["--labels-for", "train"],
        ["--queries", "{f}", "--queries", "{f}", "--qrels", "{f}"],
        ["--queries", "{f}", "--labels-for", "train", "--labels-for", "eval"],
    ],
)
def test_labels_that_do_not_pair_are_a_usage_error(
    wrong: list[str], fits: list[dict[str, Any]], documents: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "f")
    assert run(["fit", str(documents), "-o", "out", *(part.format(f=file) for part in wrong)]) == 2
    assert fits == []


# Where a setting comes from --------------------------------------------------------------------------------


@pytest.fixture
def epochs(fits: list[dict[str, Any]], documents: Path) -> Callable[..., float]:
    def found(*arguments: str) -> float:
        fits.clear()
        assert run(["fit", str(documents), "-o", "out", *arguments]) == 0
        value: float = fits[0]["config"].training.epochs
        return value

    return found


def test_flag_beats_environment_beats_file_beats_default(
    epochs: Callable[..., float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert epochs() == FitConfig().training.epochs
    file = write(tmp_path / "fit.toml", "[training]\nepochs = 11\n")
    assert epochs("--config", file) == 11
    monkeypatch.setenv("RAGADAPT_CONFIG", file)
    assert epochs() == 11
    monkeypatch.setenv("RAGADAPT_TRAINING__EPOCHS", "12")
    assert epochs() == 12
    monkeypatch.setenv("RAGADAPT_EPOCHS", "13")
    assert epochs() == 13
    assert epochs("--set", "training.epochs=14") == 14
    assert epochs("--epochs", "15") == 15


def test_the_file_keeps_what_the_flags_do_not_say(fits: list[dict[str, Any]], documents: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "fit.toml", 'seed = 5\n[encoder]\nmodel = "base"\nmax_length = 64\n')
    assert run(["fit", str(documents), "-o", "out", "--config", file, "--model", "offline"]) == 0
    config = fits[0]["config"]
    assert (config.seed, config.encoder.model, config.encoder.max_length) == (5, "offline", 64)


@pytest.mark.parametrize(
    ("assignment", "stage", "name", "value"),
    [
        ("read.include=*.md, *.rst", "read", "include", ("*.md", "*.rst")),
        ('read.include=["*.md"]', "read", "include", ("*.md",)),
        ("gate.interpolation=0.5,0.1", "gate", "interpolation", (0.5, 0.1)),
        ("encoder.revision=12", "encoder", "revision", "12"),
        ("encoder.query_prompt=a = b", "encoder", "query_prompt", "a = b"),
        ("training.compile=true", "training", "compile", True),
        ("training.max_steps=none", "training", "max_steps", None),
        ("adapter.reweight=none", "adapter", "reweight", "none"),
    ],
)
def test_set_reads_values_as_the_settings_type_wants_them(
    assignment: str, stage: str, name: str, value: Any, fits: list[dict[str, Any]], documents: Path
) -> None:
    assert run(["fit", str(documents), "-o", "out", "--set", assignment]) == 0
    assert getattr(getattr(fits[0]["config"], stage), name) == value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "training.epoch=2"], "Did you mean training.epochs?"),
        (["--set", "training.epochs"], "KEY=VALUE"),
        (["--set", "training.epochs=many"], "From the command line"),
        (["--epochs", "-1"], "training.epochs = -1"),
        (["--set", "adapter.gamma=nan"], "adapter.gamma = nan: Input should be a finite number"),
        (["--set", "gate.max_drift=inf"], "gate.max_drift = inf: Input should be a finite number"),
        (["--set", "gate.fold_strengths=abc"], "unable to parse string as a number. See"),
        (["--reweight", "some"], "vector"),
    ],
)
def test_wrong_settings_are_usage_errors_that_say_what_is_wrong(
    arguments: list[str],
    said: str,
    fits: list[dict[str, Any]],
    documents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["fit", str(documents), "-o", "out", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert fits == []


def test_unknown_setting_in_the_environment_is_an_error(
    fits: list[dict[str, Any]],
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAGADAPT_TRAINING__EPOCH", "2")
    assert run(["fit", str(documents), "-o", "out"]) == 2
    assert "RAGADAPT_TRAINING__EPOCH" in capsys.readouterr().err


def test_wrong_file_is_an_error_that_names_the_setting(
    fits: list[dict[str, Any]], documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "fit.toml", "[training]\nepoch = 1\n")
    assert run(["fit", str(documents), "-o", "out", "--config", file]) == 1
    assert "training.epoch" in capsys.readouterr().err


# search ----------------------------------------------------------------------------------------------------


def test_search_prints_rank_score_place_and_snippet_without_colours_in_a_pipe(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", "r", "reset password"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "  1  0.750   80%  guide/install.md",
        "     Reset the password in the settings. Then log in.",
        "  2  0.500  faq.md > Login",
        "     Passwords expire.",
    ]
    assert err == ""
    assert opened.asked == [
        (["reset password"], None, {"mode": "hybrid", "filter": None, **TUNED, **ANY, **PLAIN}),
        "closed",
    ]


def test_search_marks_the_querys_words_where_colours_are_wanted(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["search", "r", "how do I reset a password", "-k", "2"]) == 0
    out = capsys.readouterr().out
    marked = [part.partition("\x1b[0m")[0] for part in out.split("\x1b[33m\x1b[1m")[1:]]
    assert marked == ["Reset", "password", "Passwords"]
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["search", "r", "reset password"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_search_prints_every_field_under_json_and_null_for_what_was_not_computed(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", "r", "password", "--json", "-k", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema_version"], found["command"], found["query"]) == (1, "search", "password")
    first, second = found["hits"]
    assert first == {
        "rank": 1,
        "score": 0.75,
        "confidence": 0.8,
        "id": "guide/install.md#0",
        "document_id": "guide/install.md",
        "source": "guide/install.md",
        "heading_path": ["Install"],
        "text": "Reset the password in the settings.\nThen log in.",
        "start": 0,
        "end": 48,
        "metadata": {"lang": "en"},
        "parts": {"dense": 0.5},
        "copies": [],
        "context": None,
    }
    assert second["parts"] == {"lexical": None}


def test_search_passes_mode_and_filter_on(opened: Opened) -> None:
    condition = {"year": {"$gte": 2024}}
    arguments = ["--mode", "dense", "--filter", json.dumps(condition), "-k", "3", "--lam", "0.25", "--tenant", "acme"]
    assert run(["search", "r", "x y", *arguments]) == 0
    expected = {"mode": "dense", "filter": condition, "lam": 0.25, "tenant": "acme", "rerank": False}
    assert opened.asked[0] == (["x y"], 3, {**expected, **ANY, **PLAIN})
    assert run(["search", "r", "x y", "--min-confidence", "0.4"]) == 0
    assert opened.asked[2][2]["min_confidence"] == 0.4
    assert run(["search", "r", "x y", "--min-confidence", "1.4"]) == 2


def test_search_passes_on_what_is_given_of_each_result(opened: Opened) -> None:
    assert run(["search", "r", "x y", "--expand", "document", "--fold", "near", "--max-per-document", "2"]) == 0
    assert run(["search", "r", "x y", "--tokens", "500"]) == 0
    assert run(["search", "r", "x y", "--expand", "section", "--tokens", "500"]) == 0
    assert [{name: asked[2][name] for name in PLAIN} for asked in opened.asked[::2]] == [
        {"expand": "document", "fold": "near", "max_per_document": 2},
        {**PLAIN, "expand": Expand("neighbours", 500)},
        {**PLAIN, "expand": Expand("section", 500)},
    ]
    assert run(["search", "r", "x y", "--tokens", "0"]) == 2
    assert run(["search", "r", "x y", "--expand", "paragraph"]) == 2


def test_search_shows_a_context_whole_and_names_the_copies(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    [first, second] = opened.hits
    context = Context(
        "# Install\n\nReset the password.\n  Then log in.", 0, 44, (first.chunk.id,), (first.chunk.id,), 12
    )
    opened.hits = [replace(first, context=context, copies=(second.chunk,) * 5)]
    assert run(["search", "r", "password", "--expand", "section"]) == 0
    _, copies, *text = capsys.readouterr().out.splitlines()
    assert copies == f"     = 5 more of the same text: {second.chunk.source or second.chunk.document_id}, …"
    assert text == ["     # Install", "     ", "     Reset the password.", "       Then log in."]


def test_search_passes_the_second_stage_on(opened: Opened) -> None:
    by_hand = ["--rerank-model", "minilm", "--rerank-depth", "30", "--rerank-ms", "150", "--rerank-weight", "0.4"]
    assert run(["search", "r", "x y", *by_hand]) == 0
    assert opened.asked[0][2]["rerank"] == Rerank("minilm", 30, 150.0, 0.4)
    assert run(["search", "r", "x y", "--rerank-depth", "0"]) == 2
    assert run(["search", "r", "x y", "--rerank-weight", "2"]) == 2


def test_search_writes_a_run_that_reads_back(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ragadapt.evaluation import read_run

    queries = write(tmp_path / "q.jsonl", '{"_id": "q1", "text": "one"}\n\n{"_id": "q2", "text": "two"}\n')
    file = tmp_path / "run.trec"
    assert run(["search", "r", "--queries", queries, "--run", str(file), "-k", "7", "--level", "chunk"]) == 0
    assert opened.asked[0] == ({"q1": "one", "q2": "two"}, 7, {"mode": "hybrid", "level": "chunk", **TUNED})
    assert read_run(file)["q2"] == {"faq.md": 0.5, "guide/install.md": 0.75}
    assert capsys.readouterr().out == ""


def test_search_takes_a_hundred_results_for_a_run_where_k_is_not_given(opened: Opened, tmp_path: Path) -> None:
    queries = write(tmp_path / "q.txt", "one query\nanother\n")
    assert run(["search", "r", "--queries", queries, "--run", str(tmp_path / "run")]) == 0
    assert opened.asked[0][:2] == ({"1": "one query", "2": "another"}, 100)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_search_takes_only_a_newline_for_the_end_of_a_query(
    sign: str, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'{{"_id": "q1", "text": "one{sign}two"}}\n{{"_id": "q2", "text": "three"}}\n'
    queries = write(tmp_path / "q.jsonl", "\ufeff" + text)
    assert run(["search", "r", "--queries", queries, "--run", str(tmp_path / "run")]) == 0
    monkeypatch.setattr("sys.stdin", StringIO(text))
    assert run(["search", "r", "--queries", "-", "--run", str(tmp_path / "run")]) == 0
    asked = [called[0] for called in opened.asked if isinstance(called, tuple)]
    assert asked == 2 * [{"q1": f"one{sign}two", "q2": "three"}]


def test_search_reads_queries_from_stdin(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("first question\nsecond question\n"))
    assert run(["search", "r", "--queries", "-", "-k", "1"]) == 0
    assert capsys.readouterr().out.count("# ") == 2
    assert opened.asked[0][0] == ["first question", "second question"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "QUERY"),
        (["q", "--queries", "{f}"], "QUERY"),
        (["q", "--run", "x"], "--queries"),
        (["  "], "empty"),
        (["q", "-k", "0"], "x>=1"),
        (["q", "--min-confidence", "nan"], "finite"),
        (["q", "--lam", "nan"], "finite"),
        (["q", "--rerank-ms", "inf"], "finite"),
        (["q", "--filter", "lang=en"], "not JSON"),
        (["q", "--filter", "[1]"], "object"),
        (["--queries", "{e}"], "no query"),
        (["--queries", "{x}"], "line 1: it is not JSON"),
    ],
)
def test_wrong_searches_are_usage_errors(
    arguments: list[str], said: str, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "f": write(tmp_path / "f.jsonl", '{"text": "a"}\n'),
        "x": write(tmp_path / "x.jsonl", "nonsense\n"),
        "e": write(tmp_path / "e.jsonl", "\n"),
    }
    assert run(["search", "r", *(part.format(**files) for part in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert opened.asked == []


BAD_LINES = (
    b"nonsense\n",
    b'{"txt": "no text"}\n',
    b'["a list"]\n',
    b'{"text": 3}\n',
    b'{"_id": "1", "text": "stands twice"}\n',
    b'{"_id": ["x"], "text": "b"}\n',
    b'{"text": "caf\xe9"}\n',
    b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n",
)


def test_lines_that_are_no_query_are_listed_and_the_others_searched(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = b'{"_id": 1, "text": "first"}\n', b'{"_id": null, "text": "half \\ud800"}\n'
    path = tmp_path / "queries.jsonl"
    path.write_bytes(good[0] + b"".join(BAD_LINES) + good[1])
    assert run(["search", "r", "--queries", str(path), "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert [one["query"] for one in shown["results"]] == ["first", "half \ufffd"]
    assert [one["query_id"] for one in shown["results"]] == ["1", "11"]
    assert [one["where"].rpartition(" ")[2] for one in shown["left_out"]] == [str(n) for n in range(2, 11)]
    assert run(["search", "r", "--queries", str(path), "--run", str(tmp_path / "run.trec"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["queries"] == 2
    assert run(["search", "r", "--queries", str(path)]) == 1
    assert "queries.jsonl, line 2: it is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_queries_file_may_have_a_mark_or_be_utf_16(
    encoding: str, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "naïve"}\n{"text": "漢字"}\n', encoding=encoding)
    assert run(["search", "r", "--queries", str(path), "--json"]) == 0
    assert [one["query"] for one in json.loads(capsys.readouterr().out)["results"]] == ["naïve", "漢字"]


def test_search_says_what_to_do_where_there_is_no_retriever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", str(tmp_path / "none"), "query"]) == 1
    assert "ragadapt fit" in capsys.readouterr().err


# eval, report ----------------------------------------------------------------------------------------------


def test_eval_prints_a_row_for_each_mode(opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q, j = write(tmp_path / "q"), write(tmp_path / "j")
    assert run(["eval", "r", "--queries", q, "--qrels", j]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["nDCG@10", "queries"],
        ["hybrid", "0.250", "4"],
        ["dense", "0.250", "4"],
        ["lexical", "0.250", "4"],
    ]
    assert opened.asked[0] == (Path(q), Path(j), ("hybrid", "dense", "lexical"))


def test_eval_takes_quotes_in_place_of_judgements(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "e")
    assert run(["eval", "r", "--evidence", file, "--mode", "dense", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["systems"] == {"dense": {"nDCG@10": 0.25, "queries": 4}}
    assert opened.asked[0] == (Path(file), None, ("dense",))
    assert run(["eval", "r"]) == 2
    assert run(["eval", "r", "--evidence", file, "--queries", file]) == 2
    assert run(["eval", "r", "--evidence", file, "--qrels", file]) == 2


# Progress and the log --------------------------------------------------------------------------------------


def test_where_stderr_is_no_terminal_each_stage_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().progress() as progress:
        for done in range(1, 1001):
            progress("encode passages", done, 1000)
        for _ in range(30):
            progress("encode queries", 5, 5)
        progress("writing", 3, 0)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line.split() for line in err.splitlines()]
    assert [line[:-2] for line in lines] == [
        ["Encode", "passages", "1,000"],
        ["Encode", "queries", "5"],
        ["Writing", "3"],
    ]
    assert all(line[-1] == "s" and float(line[-2]) >= 0 for line in lines)


@pytest.mark.parametrize("values", [{"quiet": True}, {"json": True}])
def test_nobody_is_told_of_progress_under_quiet_and_json(
    values: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    with Terminal(**values).progress() as progress:
        progress("encode", 2, 2)
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_takes_minutes_says_once_a_minute_how_far_it_is() -> None:
    now, said = [0.0], []
    lines = ProgressLines(said.append, lambda: now[0])
    for done in range(1, 301):
        now[0] += 1
        lines("training", done, 300)
    assert [line.split() for line in said] == [
        *(["Training", f"{at}/300", f"{at}.0", "s"] for at in (60, 120, 180, 240)),
        ["Training", "300", "300.0", "s"],
    ]


@pytest.fixture
def bars() -> Iterator[tuple[Stages, Callable[[float], None], Callable[[], dict[str, str]]]]:
    """Stages on a clock that is set by hand, and what each visible line says of time."""
    from rich.console import Console
    from rich.progress import Progress

    now = [0.0]

    def wait_until(seconds: float) -> None:
        now[0] = seconds

    with Progress(console=Console(file=StringIO()), get_time=lambda: now[0], auto_refresh=False) as made:
        stages = Stages(made)
        yield stages, wait_until, lambda: {task.description: times(task) for task in made.tasks if task.visible}


Bars = tuple[Stages, Callable[[float], None], Callable[[], dict[str, str]]]


def test_a_finished_stage_stays_if_it_was_long_and_goes_if_it_was_short(bars: Bars) -> None:
    stages, wait_until, lines = bars
    stages("short", 0, 10)
    wait_until(1)
    stages("short", 10, 10)
    stages("long", 0, 100)
    wait_until(61)
    stages("long", 100, 100)
    assert lines() == {"Working": "0:00", "Long": "1:00"}
    stages.close()
    assert lines() == {"Long": "1:00"}


def test_remaining_time_comes_from_the_pace_so_far_and_counts_down(bars: Bars) -> None:
    stages, wait_until, lines = bars
    stages("long", 0, 100)
    wait_until(30)
    stages("long", 25, 100)
    assert lines() == {"Long": "1:30 left"}
    wait_until(40)
    assert lines() == {"Long": "1:20 left"}


def test_what_an_earlier_run_did_says_nothing_about_the_pace(bars: Bars) -> None:
    stages, wait_until, lines = bars
    stages("encode", 80, 100)
    wait_until(10)
    stages("encode", 90, 100)
    assert lines() == {"Encode": "0:10 left"}


def test_between_stages_a_line_says_that_work_goes_on(bars: Bars) -> None:
    stages, wait_until, lines = bars
    wait_until(7)
    assert lines() == {"Working": "0:07"}
    stages("read", 1, 2)
    assert list(lines()) == ["Read"]
    stages("read", 2, 2)
    wait_until(8)
    assert lines() == {"Working": "0:01"}


def test_a_stage_may_run_twice(bars: Bars) -> None:
    stages, wait_until, _ = bars
    for start in (0.0, 10.0):
        stages("encode", 0, 5)
        wait_until(start + 10)
        stages("encode", 5, 5)
    assert [task.completed for task in stages.bars.tasks if task.description == "Encode"] == [5, 5]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (750, "12:30"), (3723, "1:02:03")])
def test_clock_reads_like_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("options", "shown"),
    [([], ["Warning: w"]), (["-q"], []), (["-v"], ["i", "Warning: w"]), (["-vv"], ["d", "i", "Warning: w"])],
)
def test_verbosity_decides_what_of_the_log_is_shown(
    options: list[str],
    shown: list[str],
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fit(*_: Any, **__: Any) -> Result:
        log = logging.getLogger("ragadapt.somewhere")
        log.debug("d")
        log.info("i")
        log.warning("w")
        logging.getLogger("other.library").warning("not ours")
        return Result(Path("out"))

    monkeypatch.setattr("ragadapt.pipeline.fit.fit", fit)
    run(["fit", str(documents), "-o", "out", *options])
    lines = capsys.readouterr().err.splitlines()
    ours = [line for line in lines if line in ("d", "i", "Warning: w")]
    assert ours == shown
    assert ("Warning: not ours" in lines) == bool({"-v", "-vv"} & set(options))

"""Write docs/cli.md from the click commands and docs/configuration.md from ragadapt/config.py.

python docs/generate.py            # write both
python docs/generate.py --check    # exit with 1 if either is stale
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from ragadapt_cli.main import COMMANDS, program
from ragadapt_cli.settings import FIT_FLAGS, alternatives, settings

from ragadapt import config

FOLDER = Path(__file__).resolve().parent

CLI_INTRODUCTION = """# Command line

Written by `python docs/generate.py` from the commands themselves; don't edit.

- **stdout is data.** Progress, notes and the log go to stderr. Progress is drawn in a terminal;
  elsewhere each stage has a line (name, count, seconds). Neither is shown under `-q` or `--json`.
- **`--json`** prints one document with `schema_version`. An error is then one JSON document on stderr:
  `{"schema_version": 1, "error": {"type", "message", "exit_code"}}`.
- **Exit codes**: 0 done; 1 an error, lines of a file of questions, judgements or feedback that could not be read (the
  others counted; `fit` and `doctor` only warn of them), or a check of `doctor` failed; 2 wrong usage; 3 no gain under
  `--fail-on-no-gain`; 4 an optional package is missing; 130 interrupted.
- **Control characters** in texts, titles, names and ids are escaped in all that is printed (`\\x1b`, `\\n`, `\\u202e`):
  no document moves the cursor or forges a line. JSON holds the same values, with `\\u009b` and the like.
- **Where a setting comes from**: a flag goes before the environment, that before the file of `--config`, that before
  the default. See [configuration](configuration.md).
- **Interrupted or killed**, `fit` and `index` go on from the last finished stage when the same command is run again.
- Colours follow [`NO_COLOR`](https://no-color.org) and `FORCE_COLOR`.
- Shell completion: `ragadapt completion bash`, `zsh` or `fish` prints the script.
"""

SETTINGS_INTRODUCTION = """# Settings

Written by `python docs/generate.py` from `ragadapt/config.py`; don't edit.

Every setting can be given in four ways. The first that is there counts:

1. a flag, for those that have one: `--epochs 2`; or for any of them `--set training.epochs=2`
2. the environment: `RAGADAPT_EPOCHS=2` where there is a flag, `RAGADAPT_TRAINING__EPOCHS=2` for any setting
3. the file of `--config`: `epochs = 2` under `[training]`
4. the default

An unknown setting is an error wherever it stands. Lists are written as in TOML (`["*.md", "*.rst"]`), outside the file
also with commas. `none` undoes a setting of the file; in the file itself, leave the setting out.
The whole configuration of a fit is stored in the retriever's `ragadapt.json`.

```toml
# fit.toml, for: ragadapt fit ./docs -o ./retriever --config fit.toml
seed = 7

[encoder]
model = "base"

[training]
epochs = 2
```
"""


def cli_page() -> str:
    """docs/cli.md."""
    parts = [CLI_INTRODUCTION]
    group = click.Context(program, info_name="ragadapt")
    parts.append("| command | |\n|---|---|")
    parts[-1] += (
        "".join(f"\n| [`{name}`](#ragadapt-{name}) | {_cell(text)} |" for name, text in COMMANDS.items()) + "\n"
    )
    for name in COMMANDS:
        command = program.get_command(group, name)
        assert command is not None
        context = click.Context(command, info_name=f"ragadapt {name}", **command.context_settings)
        parts.append(f"## ragadapt {name}\n")
        parts.append(f"    {_usage(command, context)}\n")
        parts.append(_help(command))
        rows = list(_options(command, context))
        parts.append("| option | |\n|---|---|\n" + "\n".join(f"| {option} | {text} |" for option, text in rows) + "\n")
    return "\n".join(parts)


def _usage(command: click.Command, context: click.Context) -> str:
    return " ".join(["ragadapt", str(command.name), *command.collect_usage_pieces(context)])


def _help(command: click.Command) -> str:
    """The command's help: paragraphs reflowed, examples (after \\b) as code."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = paragraph.splitlines()
        if lines and lines[0].strip() == "\b":
            width = min(len(line) - len(line.lstrip()) for line in lines[1:])
            paragraphs.append("\n".join(f"    {line[width:]}" for line in lines[1:]))
        else:
            paragraphs.append(" ".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option):
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            yield f"`{_cell(record[0])}`", _cell(record[1])


def configuration_page() -> str:
    """docs/configuration.md."""
    flags = {flag.key: flag.name for flag in FIT_FLAGS}
    fields = settings()
    reasons = comments()
    parts = [SETTINGS_INTRODUCTION]
    plain = [key for key in fields if "." not in key]
    stages = dict.fromkeys(key.partition(".")[0] for key in fields if "." in key)
    groups = [("", plain), *((stage, [key for key in fields if key.startswith(f"{stage}.")]) for stage in stages)]
    for stage, keys in groups:
        if stage:
            parts.append(f"## {stage}\n")
            parts.append(inspect.cleandoc(config.FitConfig.model_fields[stage].annotation.__doc__ or "") + "\n")
        else:
            parts.append("## Outside the tables\n")
        rows = ["| setting | flag | type | default | |", "|---|---|---|---|---|"]
        for key in keys:
            field = fields[key]
            name = key.rpartition(".")[2]
            flag = f"`{flags[key]}`" if key in flags else ""
            meaning = reasons.get(key, "")
            rows.append(
                f"| `{name}` | {flag} | {_cell(_type(field))} | `{_default(field.default)}` | {_cell(meaning)} |"
            )
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def comments() -> dict[str, str]:
    """Setting → the comment that stands behind it in ragadapt/config.py."""
    source = Path(inspect.getfile(config)).read_text(encoding="utf-8")
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    stage_of = {
        field.annotation.__name__: name
        for name, field in config.FitConfig.model_fields.items()
        if inspect.isclass(field.annotation)
    }
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        prefix = "" if node.name == "FitConfig" else f"{stage_of.get(node.name, '')}."
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id.islower():
                lines = [
                    by_line[line]
                    for line in range(item.lineno, (item.end_lineno or item.lineno) + 1)
                    if line in by_line
                ]
                if lines:
                    found[prefix + item.target.id] = " ".join(lines)
    return found


_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", tuple: "list"}


def _type(field: Any) -> str:
    """What a setting takes, in words, with its bounds."""
    kinds = alternatives(field)
    words = [kind if isinstance(kind, str) else _NAMES[kind] for kind in kinds if kind is not type(None)]
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    text = " ".join([", ".join(words), ", ".join(bounds)]).strip()
    return f"{text}, or none" if type(None) in kinds else text


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(repr(part) for part in value) + "]"
    return str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"cli.md": cli_page, "configuration.md": configuration_page}


def main(arguments: list[str]) -> int:
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if arguments == ["--check"]:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
    if stale:
        print(f"Stale: {', '.join(stale)}. Write them with: python docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

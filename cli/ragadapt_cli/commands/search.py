"""ragadapt search: hits for people, for programs, or as a TREC run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt.checks import shown
from ragadapt.errors import InvalidInput
from ragadapt.files import parse_object, read_lines
from ragadapt.text import encodable, grouped
from ragadapt.values import hits_as_json
from ragadapt_cli.options import (
    NumberRange,
    command,
    context_options,
    device_options,
    feedback_options,
    rerank_options,
    retriever_argument,
    tenant_adapters_option,
)
from ragadapt_cli.terminal import ERROR, LinePart, Terminal

if TYPE_CHECKING:
    from ragadapt.search.reranking import Rerank
    from ragadapt.values import Hit

_NAMED = 3  # copies that are named below a result
_PIPE_WIDTH = 240  # characters of a snippet where there is no terminal to ask


@command("search")
@retriever_argument
@click.argument("query", required=False)
@click.option(
    "-k", type=click.IntRange(min=1), help="How many results.  [default: 5; as many as suit --tokens; 100 for --run]"
)
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "dense", "lexical"]),
    default="hybrid",
    show_default=True,
    help="hybrid mixes both sides as was learnt for this corpus.",
)
@click.option("--filter", "conditions", metavar="JSON", help='On metadata: \'{"lang": "en", "year": {"$gte": 2024}}\'.')
@click.option(
    "--queries",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help='Many queries: lines of {"_id", "text"}, or a .txt of one query a line; - reads stdin.',
)
@click.option("--run", "run_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a TREC run file here.")
@click.option(
    "--level",
    type=click.Choice(["document", "chunk"]),
    default="document",
    show_default=True,
    help="What the run file ranks; a document stands where its best chunk stands.",
)
@click.option(
    "--min-confidence",
    type=NumberRange(0, 1),
    help="Leave out hits that answer the query with less than this probability.",
)
@context_options
@rerank_options
@feedback_options
@tenant_adapters_option
@device_options
def search_command(
    terminal: Terminal,
    retriever: Path,
    query: str | None,
    k: int | None,
    mode: Any,
    conditions: str | None,
    queries: Path | None,
    run_file: Path | None,
    level: str,
    min_confidence: float | None,
    shape: Mapping[str, Any],
    rerank: bool | Rerank,
    lam: float | None,
    tenant: str | None,
    tenant_adapters: Path | None,
    device: str,
    precision: str,
) -> int:
    """Search a retriever: one query, or a file of queries into a TREC run.

    \b
        ragadapt search ./retriever "how do I reset my password"
        ragadapt search ./retriever "how do I reset my password" --expand section --tokens 1000
        ragadapt search ./retriever --queries queries.jsonl --run run.trec -k 100

    Lines of --queries that hold no query are said, the others are searched for, and the exit code is 1 then.
    """
    if (query is None) == (queries is None):
        raise click.UsageError("Give one QUERY, or a file of them with --queries.")
    if run_file is not None and queries is None:
        raise click.UsageError("--run writes the results of many queries: it needs --queries.")
    if run_file is not None and conditions is not None:
        raise click.UsageError("--filter does not go with --run: judgements are about the whole corpus.")
    if run_file is not None and (shape["expand"] is not None or shape["max_per_document"] is not None):
        raise click.UsageError("A run file ranks passages: --expand, --tokens and --max-per-document go without --run.")
    if query is not None and not query.strip():
        raise click.UsageError("The query is empty.")
    if run_file is not None and min_confidence is not None:
        raise click.UsageError("--min-confidence does not go with --run: its measures look at whole rankings.")
    condition = _read_filter(conditions)
    problems: list[tuple[str, str]] = []
    query = None if query is None else encodable(query)
    asked = {"1": query} if query is not None else _read_queries(queries, problems)
    code = ERROR if problems else 0
    for line in grouped(problems):
        terminal.note(f"Left out: {line}")

    from ragadapt.retriever import Retriever

    with (
        terminal.progress(),
        Retriever.open(retriever, device=device, precision=precision, tenant_adapters=tenant_adapters) as opened,
    ):
        if rerank is True and (why := opened.rerank_refused):
            terminal.note(f"Not re-ranked: {why}")
        if run_file is not None:
            from ragadapt.evaluation import write_run

            run = opened.run(asked, k or 100, mode=mode, level=level, lam=lam, tenant=tenant, rerank=rerank)
            write_run(run_file, run)
            lines = sum(len(found) for found in run.values())
            if terminal.json:
                values = {"run": run_file, "queries": len(run), "lines": lines, "mode": mode}
                terminal.write_json("search", {**values, "left_out": _listed(problems)})
            else:
                terminal.note(f"{lines} lines for {len(run)} queries in {run_file}")
            return code
        found = opened.search_many(
            list(asked.values()), k, mode=mode, filter=condition, lam=lam, tenant=tenant, rerank=rerank,
            min_confidence=min_confidence, **shape,
        )  # fmt: skip
        if terminal.json:
            results = [
                {"query_id": id, "query": text, "hits": hits_as_json(hits)}
                for (id, text), hits in zip(asked.items(), found, strict=True)
            ]
            shared = {"retriever": retriever, "fingerprint": opened.fingerprint, "mode": mode}
            if query is not None:
                terminal.write_json("search", {**shared, "query": query, "hits": results[0]["hits"]})
            else:
                terminal.write_json("search", {**shared, "results": results, "left_out": _listed(problems)})
            return code
    for text, hits in zip(asked.values(), found, strict=True):
        if len(asked) > 1:
            terminal.write(f"# {text}")
        if not hits:
            terminal.note("Nothing was found." if min_confidence is None else "Nothing is as sure as that.")
        _show(terminal, text, hits)
    return code


def _show(terminal: Terminal, query: str, hits: Sequence[Hit]) -> None:
    """Rank, score, confidence and place on a line; below it the passage's words."""
    from ragadapt_cli.snippets import snippet

    in_terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if in_terminal else _PIPE_WIDTH
    width = max(40, columns - 6)
    for rank, hit in enumerate(hits, start=1):
        place = " > ".join(_places(hit.chunk.source or hit.chunk.document_id, hit.chunk.heading_path))
        metadata = hit.chunk.metadata
        parts = ("page", "slide", "sheet", "row", "cell")
        place += "".join(f", {part} {metadata[part]}" for part in parts if part in metadata)
        score = f"{hit.score:.3f}" + ("" if hit.confidence is None else f"  {hit.confidence:4.0%}")
        terminal.write(f"{rank:>3}  ", (score, {"fg": "green"}), "  ", (place, {"bold": True}))
        if hit.copies:
            others = ", ".join(dict.fromkeys(copy.source or copy.document_id for copy in hit.copies[:_NAMED]))
            more = ", …" if len(hit.copies) > _NAMED else ""
            terminal.write(f"     = {len(hit.copies)} more of the same text: {others}{more}")
        if hit.context is not None:  # whole, as it is what a language model would be given
            for line in hit.text.splitlines():
                terminal.write("     ", line)
            continue
        text, spans = snippet(hit.chunk.text, query, width * (3 if in_terminal else 1))
        for start, end in _lines(text, width) if in_terminal or terminal.colours else [(0, len(text))]:
            terminal.write("     ", *_marked(text, spans, start, end))


def _places(source: str, headings: Iterable[str]) -> list[str]:
    """Source and headings; a title that only repeats the file's name is not said twice."""
    parts = [source]
    for heading in headings:
        if heading and heading.casefold() != Path(parts[-1]).stem.casefold() and heading != parts[-1]:
            parts.append(heading)
    return parts


def _lines(text: str, width: int) -> list[tuple[int, int]]:
    """Spans of the lines that the text fills, broken at spaces where there are any."""
    lines = []
    start = 0
    while len(text) - start > width:
        cut = text.rfind(" ", start + 1, start + width + 1)
        end = cut if cut > start else start + width
        lines.append((start, end))
        start = end + (1 if cut > start else 0)
    lines.append((start, len(text)))
    return lines


def _marked(text: str, spans: Sequence[tuple[int, int]], start: int, end: int) -> list[LinePart]:
    """text[start:end] with its marks in bold yellow."""
    pieces: list[LinePart] = []
    at = start
    for first, last in spans:
        first, last = max(first, start), min(last, end)
        if first < last:
            pieces += [text[at:first], (text[first:last], {"bold": True, "fg": "yellow"})]
            at = last
    return [*pieces, text[at:end]]


def _read_filter(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        values = json.loads(encodable(text))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{text[:200]!r} is not JSON: {error}.", param_hint="--filter") from error
    if not isinstance(values, dict):
        raise click.BadParameter(f'{text!r}: it is an object, for example {{"lang": "en"}}.', param_hint="--filter")
    return values


def _listed(problems: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"where": where, "reason": why} for where, why in problems]


def _read_queries(path: Path | None, problems: list[tuple[str, str]]) -> dict[str, str]:
    """id → text. Lines of JSON objects, or in a .txt file the queries themselves, numbered by their lines.

    problems: takes (where, why) of what is no query. A file without any is wrong usage.
    """
    assert path is not None
    name = "stdin" if str(path) == "-" else str(path)
    lines = list(read_lines(path))
    plain = path.suffix == ".txt" or (str(path) == "-" and not any(line.startswith("{") for _, line in lines))
    queries: dict[str, str] = {}
    for number, line in lines:
        where = f"{name}, line {number}"
        try:
            id, text = (str(number), encodable(line).strip()) if plain else _read_query(line, number)
        except InvalidInput as error:
            problems.append((where, str(error)))
            continue
        if id in queries:
            problems.append((where, f"the id {id!r} stands twice; the first is kept"))
        else:
            queries[id] = text
    if not queries:
        first = f" First problem: {problems[0][0]}: {problems[0][1]}." if problems else ""
        raise click.BadParameter(f"{name} holds no query.{first}", param_hint="--queries")
    return queries


def _read_query(line: str, number: int) -> tuple[str, str]:
    row = parse_object(line)
    text = next((row[key] for key in ("text", "query", "question") if isinstance(row.get(key), str)), "")
    if not text.strip():
        raise InvalidInput('it has no "text"; a line is like {"_id": "1", "text": "…"}')
    id = next((row[key] for key in ("_id", "id") if row.get(key) is not None), number)
    if isinstance(id, bool | list | dict):
        raise InvalidInput(f"its id is {shown(id)}, and a string or number is needed")
    return str(id), text.strip()

"""ragadapt feedback: the ledger of a retriever, readable."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import command, retriever_argument
from ragadapt_cli.terminal import Terminal

if TYPE_CHECKING:
    from ragadapt.retriever import Retriever


@command("feedback")
@click.argument("action", type=click.Choice(["list", "undo", "export"]))
@retriever_argument
@click.option("--key", "keys", multiple=True, help="The feedback with this key; may be repeated.")
@click.option("--query", help="Feedback on this question, word for word.")
@click.option("--chunk", help="Feedback on this chunk.")
@click.option("--user", help="Feedback of this user.")
@click.option("--tenant", help="Feedback of this tenant.")
@click.option("--last", type=click.IntRange(min=1), help="The newest so many, of those that fit.")
@click.option("--withdrawn", is_flag=True, help="List what was taken back, too.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default="-",
    show_default=True,
    help="Where export writes; - is standard output.",
)
@click.option(
    "--as",
    "form",
    type=click.Choice(["pairs", "feedback"]),
    default="pairs",
    show_default=True,
    help="Export as training pairs for the next fit, or as lines for refresh --feedback.",
)
def feedback_command(
    terminal: Terminal,
    action: str,
    retriever: Path,
    keys: tuple[str, ...],
    query: str | None,
    chunk: str | None,
    user: str | None,
    tenant: str | None,
    last: int | None,
    withdrawn: bool,
    output: Path,
    form: str,
) -> None:
    """List, undo or export the feedback of a retriever.

    Undo leaves search as if the feedback had never been; the ledger keeps both. Exported pairs are labelled questions:
    positive feedback with the text of its passage, which survives another chunking.

    \b
        ragadapt feedback list ./retriever
        ragadapt feedback undo ./retriever --user mallory
        ragadapt feedback export ./retriever -o pairs.jsonl
        ragadapt fit ./docs -o ./retriever --queries pairs.jsonl
    """
    given = {"query": query, "chunk_id": chunk, "user": user, "tenant": tenant}
    chosen = {name: value for name, value in given.items() if value is not None}
    if action == "undo" and not (chosen or keys or last):
        raise click.UsageError("Say what to undo: --key, --query, --chunk, --user, --tenant or --last 1.")
    if action == "export" and (set(chosen) - {"tenant"} or keys or last or withdrawn):
        raise click.UsageError("Export takes everything, or all of one --tenant.")
    if withdrawn and action != "list":
        raise click.UsageError("--withdrawn goes with list.")

    from ragadapt.retriever import Retriever

    with Retriever.open(retriever) as opened:
        if not opened.has_feedback:
            if terminal.json:
                terminal.write_json("feedback", {"retriever": retriever, "action": action, "feedback": []})
            else:
                terminal.note(
                    f"{retriever} has no feedback yet. Add some: ragadapt refresh {retriever} --feedback FILE"
                )
            return
        if action == "export":
            _export(terminal, opened, output, form, tenant)
            return
        ledger = opened.feedback().ledger
        found = [one for key in (keys or (None,)) for one in ledger.find(key, withdrawn=withdrawn, **chosen)]
        (_list if action == "list" else _undo)(terminal, opened, found[-last:] if last else found)


def _list(terminal: Terminal, retriever: Retriever, found: list[Any]) -> None:
    sleeping = {one.key for one in retriever.feedback().inactive()}
    rows = [_row(one, one.key in sleeping) for one in found]
    if terminal.json:
        terminal.write_json("feedback", {"retriever": retriever.path, "action": "list", "feedback": rows})
        return
    for row in rows:
        who = " ".join(f"{name}={row[name]}" for name in ("user", "tenant") if row[name])
        state = "" if row["state"] == "in force" else f"  ({row['state']})"
        terminal.write(
            f"{row['at'][:19]}  {row['weight']:+g}  {row['chunk_id']}  {row['query']}  [{row['key']}] {who}{state}"
        )
    terminal.note(f"{len(rows):,} in all")


def _undo(terminal: Terminal, retriever: Retriever, found: list[Any]) -> None:
    number = retriever.feedback().withdraw_keys([one.key for one in found])
    if terminal.json:
        keys = [one.key for one in found]
        terminal.write_json(
            "feedback", {"retriever": retriever.path, "action": "undo", "withdrawn": number, "keys": keys}
        )
        return
    terminal.write(f"Taken back: {number:,}")
    if not number:
        terminal.note(f"Nothing that counts fits. See what there is: ragadapt feedback list {retriever.path}")


def _export(terminal: Terminal, retriever: Retriever, output: Path, form: str, tenant: str | None) -> None:
    from ragadapt.feedback import export_ledger, export_pairs

    if terminal.json and str(output) == "-":
        raise click.UsageError("--json prints one document: name a file with -o.")
    number = (export_pairs if form == "pairs" else export_ledger)(retriever, output, tenant=tenant)
    if terminal.json:
        terminal.write_json(
            "feedback", {"retriever": retriever.path, "action": "export", "path": output, "lines": number}
        )
    elif str(output) != "-":
        terminal.write(f"Written: {output}, {number:,} lines")


def _row(one: Any, sleeping: bool) -> dict[str, Any]:
    return {
        "key": one.key,
        "query": one.query,
        "chunk_id": one.chunk_id,
        "document_id": one.document_id,
        "weight": one.weight,
        "user": one.user,
        "tenant": one.tenant,
        "at": datetime.fromtimestamp(one.at or 0.0, UTC).isoformat(),
        "state": "taken back" if one.withdrawn else "passage gone" if sleeping else "in force",
    }

"""ragadapt refresh: new, changed and deleted documents into a saved retriever."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import command, retriever_argument
from ragadapt_cli.terminal import Terminal, clock

if TYPE_CHECKING:
    from ragadapt.refresh import Refreshed


@command("refresh")
@retriever_argument
@click.option(
    "--docs",
    "documents",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Files and folders, all of the retriever's: what is not there any more is deleted. May be repeated.",
)
@click.option("--keep-missing", is_flag=True, help="Leave documents in that --docs does not hold: to add a few files.")
@click.option("--delete-missing", is_flag=True, help="Delete them even if that is more than half of all documents.")
@click.option("--rollback", "back", is_flag=True, help="Put the retriever before the last change back; again, the new.")
@click.option("--dry-run", is_flag=True, help="Read and compare the documents, say what would happen, write nothing.")
def refresh_command(
    terminal: Terminal,
    retriever: Path,
    documents: tuple[Path, ...],
    keep_missing: bool,
    delete_missing: bool,
    back: bool,
    dry_run: bool,
) -> None:
    """Bring a retriever up to date, encoding only what is new.

    The model and the search stay as fit left them. Searches go on meanwhile: the new folder takes the old one's place
    in one move, and the old one is kept for --rollback. A run that was cut short goes on where it stopped when the
    same command is given again.

    \b
        ragadapt refresh ./retriever --docs ./docs
        ragadapt refresh ./retriever --docs ./new/page.md --keep-missing
        ragadapt refresh ./retriever --rollback
    """
    if back and (documents or keep_missing or delete_missing or dry_run):
        raise click.UsageError("--rollback goes alone: it puts the retriever of before back.")
    if keep_missing and delete_missing:
        raise click.UsageError("--keep-missing and --delete-missing contradict each other; give one of them.")
    if back:
        _roll_back(terminal, retriever)
    elif documents:
        _documents(terminal, retriever, documents, keep_missing, delete_missing, dry_run)
    else:
        raise click.UsageError("Nothing to do: name the documents with --docs, or go back with --rollback.")


def _documents(
    terminal: Terminal,
    retriever: Path,
    documents: tuple[Path, ...],
    keep_missing: bool,
    delete_missing: bool,
    dry_run: bool,
) -> None:
    from ragadapt.refresh import refresh_documents

    terminal.resume = not dry_run
    started = time.monotonic()
    with terminal.progress() as progress:
        done = refresh_documents(
            retriever,
            list(documents),
            keep_missing=keep_missing,
            delete_missing=delete_missing,
            dry_run=dry_run,
            progress=progress,
        )
    seconds = time.monotonic() - started
    if terminal.json:
        values: dict[str, Any] = {
            "path": done.path,
            "dry_run": dry_run,
            "changed": done.changed,
            "documents": asdict(done.documents),
            "chunks": asdict(done.chunks),
            "skipped": [{"source": item.source, "reason": item.reason} for item in done.skipped],
            "reused": list(done.reused),
            "seconds": round(seconds, 3),
            "timings": {stage: round(value, 3) for stage, value in done.seconds.items()},
            "advice": done.advice,
        }
        terminal.write_json("refresh", values)
        return
    if done.reused:
        terminal.note(f"Taken over from the interrupted run: {', '.join(done.reused)}.")
    for line in _lines(done):
        terminal.write(line)
    for skipped in done.skipped[:20]:
        terminal.note(f"Skipped {skipped.source}: {skipped.reason}")
    if len(done.skipped) > 20:
        terminal.note(f"… and {len(done.skipped) - 20} more")
    if dry_run:
        terminal.write("Nothing was written.")
    elif done.changed:
        terminal.write(f"Retriever   {done.path}")
        terminal.note(f"Done in {clock(seconds)}. Back again: ragadapt refresh {done.path} --rollback")
    else:
        terminal.write("Nothing has changed.")


def _lines(done: Refreshed) -> list[str]:
    documents, chunks = done.documents, done.chunks
    found = [
        ("added", documents.added),
        ("changed", documents.changed),
        ("moved", documents.moved),
        ("deleted", documents.deleted),
        ("unchanged", documents.unchanged),
        ("not read and kept", documents.kept),
    ]
    passages = [
        ("new", chunks.added),
        ("kept", chunks.kept),
        ("kept under another id", chunks.reused),
        ("gone", chunks.deleted),
        ("encoded", chunks.encoded),
    ]
    return [
        "Documents   " + (", ".join(f"{number:,} {what}" for what, number in found if number) or "none"),
        "Passages    " + (", ".join(f"{number:,} {what}" for what, number in passages if number) or "none"),
    ]


def _roll_back(terminal: Terminal, retriever: Path) -> None:
    from ragadapt.refresh import rollback

    manifest = rollback(retriever)
    documents, chunks = manifest.sections.get("documents"), manifest.sections.get("chunks")
    if terminal.json:
        values = {"path": retriever, "rollback": True, "documents": documents, "chunks": chunks}
        terminal.write_json("refresh", values)
        return
    terminal.write(f"Retriever   {retriever}: {documents:,} documents, {chunks:,} passages")
    terminal.note("What stood there is kept in turn: the same command returns to it.")

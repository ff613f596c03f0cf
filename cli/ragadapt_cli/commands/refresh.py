"""ragadapt refresh: new, changed and deleted documents, and feedback, into a saved retriever."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt.text import grouped
from ragadapt_cli.options import command, device_option, retriever_argument
from ragadapt_cli.terminal import Terminal, clock, note_skipped

if TYPE_CHECKING:
    from ragadapt.pipeline.refresh import Refreshed


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
@click.option(
    "--feedback",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help='Lines of {"query", "chunk_id" or "document_id" or "source" and "quote"}; "-" reads standard input.',
)
@click.option("--tune", is_flag=True, help="Set λ, k and the fusion weight by cross-validation over the feedback.")
@click.option("--seed", type=int, default=13, show_default=True, help="Of --tune.")
@click.option("--rollback", "back", is_flag=True, help="Put the retriever before the last change back; again, the new.")
@click.option("--dry-run", is_flag=True, help="Read and compare the documents, say what would happen, write nothing.")
@device_option
def refresh_command(
    terminal: Terminal,
    retriever: Path,
    documents: tuple[Path, ...],
    keep_missing: bool,
    delete_missing: bool,
    feedback: Path | None,
    tune: bool,
    seed: int,
    back: bool,
    dry_run: bool,
    device: str,
) -> int:
    """Bring a retriever up to date: documents, of which only what is new is encoded, and feedback.

    The model and the search stay as fit left them. Searches go on meanwhile: the new folder takes the old one's place
    in one move, and the old one is kept for --rollback. A run that was cut short goes on where it stopped when the
    same command is given again.

    Feedback takes effect at once, also in programs that have the retriever open. Lines that cannot be used are listed,
    and the exit code is 1 then; the others count. Taking the same file in twice changes nothing.

    \b
        ragadapt refresh ./retriever --docs ./docs
        ragadapt refresh ./retriever --feedback clicks.jsonl
        ragadapt refresh ./retriever --tune
        ragadapt refresh ./retriever --docs ./new/page.md --keep-missing
        ragadapt refresh ./retriever --rollback
    """
    if back and (documents or keep_missing or delete_missing or dry_run or feedback or tune):
        raise click.UsageError("--rollback goes alone: it puts the retriever of before back.")
    if keep_missing and delete_missing:
        raise click.UsageError("--keep-missing and --delete-missing contradict each other; give one of them.")
    if dry_run and (feedback or tune):
        raise click.UsageError("--dry-run goes with --docs alone: feedback can be taken back, see ragadapt feedback.")
    if terminal.json and bool(documents) + bool(feedback) + tune > 1:
        raise click.UsageError(
            "--json prints one document: give --docs, --feedback and --tune in commands of their own."
        )
    if not (back or documents or feedback or tune):
        raise click.UsageError("Nothing to do: give --docs, --feedback, --tune or --rollback.")
    if back:
        _roll_back(terminal, retriever)
    if documents:
        _documents(terminal, retriever, documents, keep_missing, delete_missing, dry_run, device)
    code = _feedback(terminal, retriever, feedback, device) if feedback is not None else 0
    if tune:
        _tune(terminal, retriever, seed, device)
    return code


def _documents(
    terminal: Terminal,
    retriever: Path,
    documents: tuple[Path, ...],
    keep_missing: bool,
    delete_missing: bool,
    dry_run: bool,
    device: str,
) -> None:
    from ragadapt.pipeline.refresh import refresh_documents

    terminal.resume = not dry_run
    started = time.monotonic()
    with terminal.progress() as progress:
        done = refresh_documents(
            retriever,
            list(documents),
            keep_missing=keep_missing,
            delete_missing=delete_missing,
            dry_run=dry_run,
            device=device,
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
            "unread": [asdict(item) for item in done.unread],
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
    for item in done.unread[:20]:
        terminal.write(f"Kept        {item.id} as it was: {item.reason}")
    if len(done.unread) > 20:
        terminal.write(f"Kept        {len(done.unread) - 20:,} more as they were; --json names them all")
    note_skipped(terminal, done.skipped)
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
        ("kept as it was" if documents.unread == 1 else "kept as they were", documents.unread),
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


def _feedback(terminal: Terminal, retriever: Path, file: Path, device: str) -> int:
    from ragadapt.feedback import read_feedback
    from ragadapt.retriever import Retriever

    terminal.resume = True  # what was taken in is known then
    started = time.monotonic()
    with terminal.progress() as progress, Retriever.open(retriever, device=device) as opened:
        taken = read_feedback(opened, file, progress=progress)
        status = opened.feedback(create=True).status()
    seconds = time.monotonic() - started
    if terminal.json:
        values = {"path": retriever, **asdict(taken), "status": asdict(status), "seconds": round(seconds, 3)}
        terminal.write_json("refresh", values)
        return 1 if taken.problems else 0
    terminal.write(
        f"Feedback    {taken.added:,} new, {taken.known:,} known already, {taken.withdrawn:,} taken back, "
        f"{len(taken.problems):,} not usable"
    )
    terminal.write(f"In force    {status.active:,} on {status.passages:,} passages from {status.queries:,} questions")
    if not taken.lines:
        terminal.note(f'{file} is empty. A line is {{"query": "…", "chunk_id": "…"}}; see docs/feedback.md')
    if status.inactive:
        terminal.note(f"{status.inactive:,} are about passages that are gone; they count again when those are back")
    for line in grouped((f"line {problem.line}", problem.reason) for problem in taken.problems):
        terminal.note(line)
    if len(taken.problems) > 1:
        terminal.note("--json lists every line that was left out, with its reason.")
    terminal.note(f"Done in {clock(seconds)}. Tune with: ragadapt refresh {retriever} --tune")
    return 1 if taken.problems else 0


def _tune(terminal: Terminal, retriever: Path, seed: int, device: str) -> None:
    from ragadapt.feedback import tune_feedback
    from ragadapt.retriever import Retriever
    from ragadapt.store.workspace import FEEDBACK_REPORT

    with terminal.progress() as progress, Retriever.open(retriever, device=device) as opened:
        tuned = tune_feedback(opened, seed=seed, progress=progress)
    page = retriever / FEEDBACK_REPORT / "report.html"
    if terminal.json:
        curve = [{"lam": lam, "nDCG@10": asdict(value)} for lam, value in tuned.curve]
        values = {"path": retriever, **asdict(tuned), "curve": curve, "page": page if tuned.gain is not None else None}
        terminal.write_json("refresh", values)
        return
    if not tuned.values:
        terminal.write(f"Not tuned: {tuned.reason}.")
        if tuned.gain is not None:
            terminal.write(f"Report      {page}")
        return
    settings = ", ".join(f"{_NAMES[name]} {value}" for name, value in tuned.values.items() if value is not None)
    terminal.write(f"Settings    {settings}")
    terminal.write(f"nDCG@10     {tuned.plain:.3f} without feedback, {tuned.chosen:.3f} as set")
    terminal.write(f"Verdict     {tuned.reason}")
    terminal.write(f"Report      {page}")


_NAMES = {"method": "PEFA", "lam": "λ", "k": "k", "fusion_weight": "share of dense search"}


def _roll_back(terminal: Terminal, retriever: Path) -> None:
    from ragadapt.pipeline.refresh import rollback

    manifest = rollback(retriever)
    documents, chunks = manifest.sections.get("documents"), manifest.sections.get("chunks")
    if terminal.json:
        values = {"path": retriever, "rollback": True, "documents": documents, "chunks": chunks}
        terminal.write_json("refresh", values)
        return
    terminal.write(f"Retriever   {retriever}: {documents:,} documents, {chunks:,} passages")
    terminal.note("What stood there is kept in turn: the same command returns to it.")

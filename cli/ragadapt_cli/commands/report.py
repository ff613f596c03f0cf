"""ragadapt report: the report that a fit wrote."""

from __future__ import annotations

from pathlib import Path

import click

from ragadapt_cli.options import command, retriever_argument
from ragadapt_cli.terminal import Terminal


@command("report")
@retriever_argument
@click.option("--open", "in_browser", is_flag=True, help="Open the page in the browser.")
def report_command(terminal: Terminal, retriever: Path, in_browser: bool) -> None:
    """Show the report of a retriever.

    Prints its table and the path of the page with charts, wins and losses.
    """
    from ragadapt.report import read_report, table
    from ragadapt.store.workspace import FEEDBACK_REPORT, open_store

    opened = open_store(retriever)
    opened.check("report")
    folder = opened.path / "report"
    report = read_report(folder)
    page = folder / "report.html"
    if terminal.json:
        terminal.write_json("report", {"retriever": retriever, "page": page, "report": report})
    else:
        terminal.write_lines(table(report))
        terminal.write()
        terminal.write(f"Report:    {page}")
        tuned = folder.with_name(FEEDBACK_REPORT) / "report.html"
        if tuned.is_file():
            terminal.write(f"Feedback:  {tuned}")
    if in_browser:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            terminal.note(f"No browser was found. The page is {page}")

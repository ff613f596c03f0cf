"""ragadapt doctor: before a fit, is it worth it; after one, is it sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragadapt_cli.options import command, question_options
from ragadapt_cli.settings import DOCTOR_FLAGS, settings_options
from ragadapt_cli.terminal import ERROR, Terminal

if TYPE_CHECKING:
    from ragadapt.config import FitConfig


@command("doctor")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@question_options("Your own questions, as for fit: they measure.", uses=False)
@settings_options(DOCTOR_FLAGS)
def doctor_command(
    terminal: Terminal,
    paths: tuple[Path, ...],
    query_files: tuple[Path, ...],
    qrels_files: tuple[Path, ...],
    config: FitConfig,
) -> int | None:
    """Before a fit: will tuning pay? After one: is the retriever sound?

    PATHS are documents, as for fit, or one folder that fit wrote. Documents: what was read, how good the untuned model
    is on quick queries made from them, what a fit would take, and one recommendation. A retriever: every file's hash,
    whether model and index belong together, whether the adapter acts; exit code 1 if something is wrong.

    \b
        ragadapt doctor ./docs
        ragadapt doctor ./retriever
    """
    if len(paths) == 1 and (paths[0] / "ragadapt.json").is_file():
        from ragadapt.doctor.examine import examine

        with terminal.progress() as progress:
            device, precision = config.encoder.device, config.encoder.precision
            found = examine(paths[0], device=device, precision=precision, progress=progress)
        if terminal.json:
            terminal.write_json("doctor", {"retriever": found.as_dict()})
        else:
            for line in found.lines():
                terminal.write(line)
        return None if found.sound else ERROR

    from ragadapt.doctor.measure import diagnose
    from ragadapt.pipeline.queries import Labels
    from ragadapt_cli.commands.fit import pair_labels

    labels = [Labels(queries, qrels) for queries, qrels, _ in pair_labels(query_files, qrels_files, ())]
    with terminal.progress() as progress:
        diagnosis = diagnose(list(paths), config, labels=labels, progress=progress)
    if terminal.json:
        terminal.write_json("doctor", {"documents": diagnosis.as_dict()})
    else:
        for line in diagnosis.lines():
            terminal.write(line)
    return None

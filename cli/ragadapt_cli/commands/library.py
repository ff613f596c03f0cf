"""ragadapt library: adapters of many corpora in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import NumberRange, command, device_option
from ragadapt_cli.terminal import Terminal

if TYPE_CHECKING:
    from ragadapt.adapters.library import Library

ACTIONS = ("add", "list", "show", "remove", "blend")


@command("library")
@click.argument("action", type=click.Choice(ACTIONS))
@click.argument("folder", metavar="LIBRARY", type=click.Path(path_type=Path))
@click.argument("rest", nargs=-1, metavar="[RETRIEVER|NAME|DOCUMENTS...]")
@click.option("--name", help="add: what it is called here.  [default: as the retriever's folder]")
@click.option("--replace", is_flag=True, help="add: in the place of the one of this name.")
@click.option("--near", "near", multiple=True, type=click.Path(exists=True, path_type=Path),
              help="list: by distance to these documents, or to a retriever's.")  # fmt: skip
@click.option("--of", "names", multiple=True, metavar="NAME", help="blend: these adapters, instead of the nearest.")
@click.option("--nearest", default=3, show_default=True, type=click.IntRange(1), help="blend: so many.")
@click.option("--weights", default="softmax", show_default=True, type=click.Choice(["softmax", "least-squares"]),
              help="blend: by distance, or by the mix of the corpora that is nearest to this one.")  # fmt: skip
@click.option("--temperature", default=0.1, show_default=True, type=NumberRange(0, min_open=True),
              help="blend: of the softmax; the smaller, the more the nearest counts.")  # fmt: skip
@click.option("--model", help="list --near, blend: of which base model, where the library has several.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="blend: write the model here.")
@device_option
def library_command(
    terminal: Terminal,
    action: str,
    folder: Path,
    rest: tuple[str, ...],
    name: str | None,
    replace: bool,
    near: tuple[Path, ...],
    names: tuple[str, ...],
    nearest: int,
    weights: str,
    temperature: float,
    model: str | None,
    output: Path | None,
    device: str,
) -> None:
    """Keep adapters of many corpora: add, list, find the nearest, blend them without training.

    An adapter is kept with what its corpus looks like to the base model. A blend is the weighted sum of the nearest
    low-rank adapters; nothing has judged it, so it is only offered. With labelled questions `fit --start blend` begins
    training from it, and with `--set library.train=false` judges it as it is.

    \b
        ragadapt library add ./library ./retriever --name handbook
        ragadapt library list ./library --near ./docs
        ragadapt library blend ./library ./docs -o ./model
        ragadapt fit ./docs -o ./retriever --library ./library --start nearest --queries questions.jsonl
    """
    wanted = {"add": (1, "the RETRIEVER to add"), "show": (1, "a NAME"), "remove": (1, "a NAME"), "list": (0, "")}
    if action in wanted and len(rest) != wanted[action][0]:
        raise click.UsageError(
            f"library {action} takes the library{f' and {wanted[action][1]}' * bool(wanted[action][0])}."
        )
    if action == "blend" and not rest:
        raise click.UsageError("library blend takes the library and the documents, or a retriever, that it is for.")
    from ragadapt.adapters.library import Library

    if action == "add":
        from ragadapt.pipeline.library import add_retriever

        with terminal.progress() as progress:
            entry = add_retriever(folder, rest[0], name, replace=replace, device=device, progress=progress)
        library = Library.open(folder)
        _tell(terminal, library, "add", {"adapter": entry.facts()}, f"Added: {entry.name}")
        return
    library = Library.open(folder)
    if action == "show":
        _show(terminal, library, rest[0])
    elif action == "remove":
        library.remove(rest[0])
        _tell(terminal, library, "remove", {"name": rest[0]}, f"Removed: {rest[0]}")
    elif action == "list" and not near:
        entries = library.entries()
        if terminal.json:
            _tell(terminal, library, "list", {"adapters": [entry.facts() for entry in entries]}, "")
            return
        for entry in entries:
            terminal.write(
                f"{entry.name}  {entry.method}{' (queries)' if entry.adapt == 'query' else ''}  "
                f"{entry.statistics.passages:,} passages  {entry.model}"
            )
        terminal.note(f"{len(entries):,} in all")
    else:
        sources = [*near, *(Path(each) for each in rest)]
        settings = {"nearest": nearest, "weights": weights, "temperature": temperature}
        _offer(terminal, library, action, sources, settings, names, model, output, device)


def _tell(terminal: Terminal, library: Library, action: str, values: dict[str, Any], line: str) -> None:
    if terminal.json:
        terminal.write_json("library", {"library": library.folder, "action": action, **values})
    elif line:
        terminal.write(line)


def _show(terminal: Terminal, library: Library, name: str) -> None:
    facts = library.entry(name).facts()
    if terminal.json:
        _tell(terminal, library, "show", {"adapter": facts}, "")
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {_short(each)}" for inner, each in value.items())
        terminal.write(f"{key:<12} {value}")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(each)}" for key, each in value.items()) + ")"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _offer(
    terminal: Terminal,
    library: Library,
    action: str,
    sources: list[Path],
    settings: dict[str, Any],
    names: tuple[str, ...],
    model: str | None,
    output: Path | None,
    device: str,
) -> None:
    from ragadapt.config import FitConfig
    from ragadapt.pipeline.library import offer, refuse_foreign, write_offer

    config = FitConfig.build({"library": settings})
    if output is not None:
        refuse_foreign(output)
    with terminal.progress() as progress:
        found = offer(library, sources, config, names=names, model=model, device=device, progress=progress)
        path = write_offer(found, output) if output is not None and found.state is not None else None
    if terminal.json:
        near = [{"name": entry.name, "distance": round(distance, 4)} for entry, distance in found.near]
        values: dict[str, Any] = {"near": near}
        if action == "blend":
            parts = zip(found.chosen, found.weights, strict=True)
            mix = [{"name": entry.name, "weight": round(weight, 4)} for entry, weight in parts]
            values |= {"blend": mix, "refused": found.refused, "path": path}
        _tell(terminal, library, action, values, "")
        return
    share = {entry.name: weight for entry, weight in zip(found.chosen, found.weights, strict=True)}
    for entry, distance in found.near:
        part = f"  {share[entry.name]:.2f} of the blend" if action == "blend" and entry.name in share else ""
        terminal.write(f"{distance:.3f}  {entry.name}{part}")
    if action == "list":
        terminal.note("The distance is that of the two corpora as the base model sees them: 0 = the same.")
    elif found.state is None:
        terminal.note(f"No blend: {found.refused}")
    elif path is not None:
        terminal.write(f"Model: {path}")
        terminal.note("Nothing has judged it. With labelled questions: fit --start blend --set library.train=false")
    else:
        terminal.note("Offered, not written: -o MODEL writes it, fit --start blend lets labelled questions decide.")

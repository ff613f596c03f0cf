"""ragadapt methods: what `fit --method` can train."""

from __future__ import annotations

from dataclasses import asdict

from ragadapt_cli.options import command
from ragadapt_cli.terminal import Terminal


@command("methods")
def methods_command(terminal: Terminal) -> None:
    """List the methods of training that fit --method takes.

    For each: what it does, its settings with their defaults (--rank, or --set adapter.rank=8), and where it was
    described. docs/methods.md says when to use which.

    \b
        ragadapt methods
        ragadapt methods --json
        ragadapt fit ./docs -o ./retriever --method dora
    """
    from ragadapt.adapters.method import descriptions

    found = descriptions()
    if terminal.json:
        terminal.write_json("methods", {"methods": [asdict(method) for method in found]})
        return
    for method in found:
        notes = [] if method.folds else ["shipped beside the base: it cannot be folded into its weights"]
        if method.cuda:
            notes.append("needs a CUDA device")
        settings = ", ".join(f"{name} = {_shown(value)}" for name, value in method.options.items())
        terminal.write(method.name)
        for line in (method.what, f"settings: {settings}" if settings else "", *notes, method.source):
            if line:
                terminal.write(f"    {line}")
    terminal.write()
    terminal.write("none trains nothing: fit learns only how dense and lexical search are mixed.")


def _shown(value: object) -> str:
    if value is None or value == []:
        return "none" if value is None else "all"
    return f"{value:g}" if isinstance(value, float) else str(value)

"""ragadapt completion: what the shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ragadapt_cli.options import command
from ragadapt_cli.terminal import Terminal

SHELLS = ("bash", "zsh", "fish")


@command("completion", json=False)
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(terminal: Terminal, shell: str) -> None:
    """Print the shell's completion script.

    \b
        bash  add to ~/.bashrc: eval "$(ragadapt completion bash)"
        zsh   add to ~/.zshrc: eval "$(ragadapt completion zsh)"
        fish  ragadapt completion fish > ~/.config/fish/completions/ragadapt.fish
    """
    from ragadapt_cli.main import program

    made = get_completion_class(shell)
    assert made is not None
    terminal.write_lines(made(program, {}, "ragadapt", "_RAGADAPT_COMPLETE").source())

"""`pmm-shm completion`"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pmm_shm_terminal.options import CONTEXT

PROGRAM = "pmm-shm"
VARIABLE = "_PMM_SHM_COMPLETE"
"""By which the script asks this program, as click derives it from the program's name."""


@click.command(context_settings=CONTEXT)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    It completes commands, options, ledgers and answers.

    \b
    bash: put  source <(pmm-shm completion bash)  into ~/.bashrc
    zsh:  put  source <(pmm-shm completion zsh)   into ~/.zshrc, behind compinit
    fish: pmm-shm completion fish > ~/.config/fish/completions/pmm-shm.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(ctx.find_root().command, {}, PROGRAM, VARIABLE)
    # Not `source`: it would run the shell, to ask its version.
    click.echo(made.source_template % made.source_vars())

"""The command `pmm-shm`.

Data goes to stdout, messages to stderr, one line each. Exit codes: see `exits`. Commands import what they need when
they run: `pmm-shm --help` answers at once.
"""

from __future__ import annotations

from typing import NoReturn

import click

from pmm_shm_chat.command import chat
from pmm_shm_cli.commands.admin import append, invalidate, verify
from pmm_shm_cli.commands.backup import backup, restore
from pmm_shm_cli.commands.bench import bench
from pmm_shm_cli.commands.completion import completion
from pmm_shm_cli.commands.demo import demo
from pmm_shm_cli.commands.doctor import doctor
from pmm_shm_cli.commands.explain import explain
from pmm_shm_cli.commands.generate import generate
from pmm_shm_cli.commands.plot import plot
from pmm_shm_cli.commands.reads import read, replay
from pmm_shm_cli.commands.status import status
from pmm_shm_cli.commands.top import top
from pmm_shm_cli.commands.vectors import embed, search
from pmm_shm_cli.examples import EXAMPLES, epilog
from pmm_shm_terminal.options import CONTEXT
from pmm_shm_terminal.program import run_program


class _InOrder(click.Group):
    """Lists the commands in the order of first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=CONTEXT)
@click.version_option(package_name="pmm-shm", prog_name="pmm-shm")
def cli() -> None:
    """Exact, constant-time reads of an event-sourced agent's state, from shared memory.

    LEDGER is the SQLite event log. Without it, commands use the one in PMM_DB.

    \b
    Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 no daemon,
                4 the daemon lags or does not answer, 5 integrity violated.
    """


_COMMANDS = (
    demo,
    generate,
    status,
    top,
    doctor,
    read,
    search,
    embed,
    chat,
    append,
    verify,
    invalidate,
    backup,
    restore,
    replay,
    explain,
    plot,
    bench,
    completion,
)
for _command in _COMMANDS:
    assert _command.name is not None
    _command.epilog = epilog(EXAMPLES[_command.name])
    cli.add_command(_command)


def main() -> NoReturn:
    """Entry point of `pmm-shm`."""
    run_program(cli, "pmm-shm")

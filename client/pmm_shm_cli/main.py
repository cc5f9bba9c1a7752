"""The command `pmm-shm`.

Data goes to stdout, messages to stderr, one line each. Exit codes: see `exits`. Commands import what they need when
they run: `pmm-shm --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import click

from pmm_shm_chat.command import chat
from pmm_shm_cli.commands.admin import append, invalidate, verify
from pmm_shm_cli.commands.backup import backup, restore
from pmm_shm_cli.commands.bench import bench
from pmm_shm_cli.commands.cluster import cluster
from pmm_shm_cli.commands.completion import completion
from pmm_shm_cli.commands.demo import demo
from pmm_shm_cli.commands.doctor import doctor
from pmm_shm_cli.commands.explain import explain
from pmm_shm_cli.commands.generate import generate
from pmm_shm_cli.commands.log import log
from pmm_shm_cli.commands.memory import context, recall
from pmm_shm_cli.commands.plot import plot
from pmm_shm_cli.commands.reads import read, replay
from pmm_shm_cli.commands.status import status
from pmm_shm_cli.commands.stop import stop
from pmm_shm_cli.commands.top import top
from pmm_shm_cli.commands.transfer import export, import_
from pmm_shm_cli.commands.vectors import embed, search
from pmm_shm_cli.examples import EXAMPLES, epilog
from pmm_shm_mcp.command import mcp
from pmm_shm_pmm.command import run
from pmm_shm_terminal.options import CONTEXT, did_you_mean
from pmm_shm_terminal.program import run_program
from pmm_shm_web.command import web

_GROUPS: Mapping[str, tuple[click.Command, ...]] = {
    "Look": (read, log, context, recall, search, explain, plot, web, status, top),
    "Write": (append, chat, generate, import_),
    "Check": (doctor, verify, replay, bench),
    "Operate": (run, mcp, stop, embed, invalidate, backup, restore, export, cluster, completion, demo),
}


class _Grouped(click.Group):
    """Lists the commands by purpose, and in each group in the order of first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(str(one.name).ljust(width), one.get_short_help_str(200)) for one in commands])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Grouped, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(package_name="pmm-shm", prog_name="pmm-shm")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Exact, constant-time reads of an event-sourced agent's state, from shared memory.

    LEDGER is the SQLite event log. Without it, commands use the one in PMM_DB. To see it work, run pmm-shm demo; to
    begin, pmm-shm chat agent.db --create.

    \b
    Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 no daemon,
                4 the daemon lags or does not answer, 5 integrity violated.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (command for group in _GROUPS.values() for command in group):
    assert _command.name is not None
    if EXAMPLES[_command.name]:
        _command.epilog = epilog(EXAMPLES[_command.name])
    cli.add_command(_command)


def main() -> NoReturn:
    """Run `pmm-shm` with the arguments of this process; its entry point is `pmm_shm_cli.entry`."""
    run_program(cli, "pmm-shm")

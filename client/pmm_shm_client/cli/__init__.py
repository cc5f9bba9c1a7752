"""The command `pmm-shm`.

Data goes to stdout, messages to stderr, one line each. Exit codes: see `exits`. Commands import what they need when
they run: `pmm-shm --help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from pmm_shm.errors import PmmShmError
from pmm_shm_client.cli import exits
from pmm_shm_client.cli.admin import append, invalidate, verify
from pmm_shm_client.cli.bench import bench
from pmm_shm_client.cli.chat import chat
from pmm_shm_client.cli.completion import completion
from pmm_shm_client.cli.demo import demo
from pmm_shm_client.cli.doctor import doctor
from pmm_shm_client.cli.examples import EXAMPLES, epilog
from pmm_shm_client.cli.explain import explain
from pmm_shm_client.cli.generate import generate
from pmm_shm_client.cli.options import CONTEXT
from pmm_shm_client.cli.plot import plot
from pmm_shm_client.cli.reads import read, replay
from pmm_shm_client.cli.restore import restore
from pmm_shm_client.cli.status import status
from pmm_shm_client.cli.top import top
from pmm_shm_client.cli.vectors import embed, search


class _InOrder(click.Group):
    """Lists the commands in the order in which one meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=CONTEXT)
@click.version_option(package_name="pmm-shm", prog_name="pmm-shm")
def cli() -> None:
    """Exact, constant-time reads of an event-sourced agent's state, from shared memory.

    LEDGER is the SQLite event log; where it is left out, it is the one in PMM_DB.

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
    """Entry point: one line on stderr and the right exit code for everything that can go wrong."""
    _end_in_order()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode shows escapes instead of ending the command.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _leave_pipe()
    sys.exit(code)


def _run() -> int:
    try:
        result = cli.main(prog_name="pmm-shm", standalone_mode=False)
    except BrokenPipeError:
        return _leave_pipe()
    except click.Abort:
        return exits.INTERRUPTED
    except click.UsageError as error:
        return _complain(_with_hint(error), exits.USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except exits.CommandFailed as error:
        return _complain(str(error), error.code)
    except PmmShmError as error:
        return _complain(str(error), exits.exit_code(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        return _complain(f"{name}{error.strerror or error}", exits.FAILURE)
    # Click hands back the code of `--help` and `--version`, and what a command returns: nothing.
    return result if isinstance(result, int) else exits.OK


def _complain(message: str, code: int) -> int:
    from pmm_shm_client.cli.output import printable

    with contextlib.suppress(BrokenPipeError):
        click.echo(f"pmm-shm: {printable(' '.join(message.split()))}", err=True)
    return code


def _with_hint(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "pmm-shm"
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def _leave_pipe() -> int:
    # Nobody reads any more; click ends quietly with 1 where it meets this itself. The interpreter would flush once more
    # at exit, and complain.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.FAILURE


def _end_in_order() -> None:
    """Signals end the command by an exception, so that temporary files and child processes are cleared away.

    Not by KeyboardInterrupt: click answers that with an empty line. What the caller had ignored stays ignored.
    """

    def end_with(code: int) -> Callable[..., NoReturn]:
        return lambda *_: sys.exit(code)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_with(exits.INTERRUPTED))
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end_with(exits.TERMINATED))


__all__ = ["cli", "main"]

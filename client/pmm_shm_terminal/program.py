"""Run a click command as a program: one line on stderr and the right exit code for everything that can go wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

import click

from pmm_shm.errors import PmmShmError
from pmm_shm.resources import shortage_of
from pmm_shm_terminal import exits


def run_program(command: click.Command, name: str) -> NoReturn:
    """Run `command` with the arguments of this process, and exit.

    Parameters:
        name: of the program, as a user types it.
    """
    _end_in_order()
    _replace_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode shows escapes instead of ending the command.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = run_command(command, name)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _leave_pipe()
    sys.exit(code)


def run_command(command: click.Command, name: str) -> int:
    """Run `command` with the arguments of this process. Returns its exit code; reports errors on stderr."""
    try:
        result = command.main(prog_name=name, standalone_mode=False)
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
        where = f"{error.filename}: " if error.filename is not None else ""
        return _complain(f"{where}{_reason(error)}", exits.FAILURE)
    except (MemoryError, RuntimeError) as error:
        lacking = shortage_of(error)
        if lacking is None:
            raise
        return _complain(lacking, exits.FAILURE)
    # Click returns the exit code of `--help` and `--version`, otherwise the result of the command: None.
    return result if isinstance(result, int) else exits.OK


def standard_input() -> TextIO:
    """This process's stdin, for a command that reads it.

    Raises:
        CommandFailed: it is closed.
    """
    if sys.stdin is None:
        raise exits.CommandFailed("stdin is closed", exits.FAILURE)
    return sys.stdin


def _replace_missing_streams() -> None:
    """Discard the output to a closed stdout or stderr, and keep files from getting the number of a closed stream."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "a"))


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not os.path.isabs(error.filename or ""):
        try:
            os.getcwd()
        except FileNotFoundError:
            return "the current directory was deleted"
    return shortage_of(error) or error.strerror or str(error)


def _complain(message: str, code: int) -> int:
    from pmm_shm_terminal.output import printable

    # Nobody may read it, or there is no room for it: the exit code says the rest.
    with contextlib.suppress(OSError):
        click.echo(f"pmm-shm: {printable(' '.join(message.split()))}", err=True)
    return code


def _with_hint(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "pmm-shm"
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def _leave_pipe() -> int:
    # The reader is gone. Click itself ends quietly with 1 then. Without this, the interpreter would flush again at exit
    # and print an error.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.FAILURE


def _end_in_order() -> None:
    """Let signals raise SystemExit, so that temporary files and child processes are removed.

    Not KeyboardInterrupt: click prints an empty line for that. Signals that the caller ignores stay ignored.
    """

    def end_with(code: int) -> Callable[..., NoReturn]:
        return lambda *_: sys.exit(code)

    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, end_with(exits.INTERRUPTED))
    for number, code in ((signal.SIGTERM, exits.TERMINATED), (signal.SIGHUP, exits.HUNG_UP)):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end_with(code))

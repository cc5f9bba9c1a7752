"""Lines on stderr about what is replaced: one at the start of a program, and few later."""

from __future__ import annotations

import os
import sys

from pmm_shm import flags

_said: dict[str, object] = {}


def say(line: str) -> None:
    """Print a line on stderr, if the process has one."""
    write(f"pmm-shm: {' '.join(line.split())}\n")


def write(text: str) -> None:
    """Write to stderr at once, so that the texts of several processes do not mix."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        # Closed, or there is none.
        pass


def is_main_process() -> bool:
    """Whether `pmm-shm run` has become this process, and not one of its children."""
    return flags.run_pid() == os.getpid()


def say_once(subject: str, line: str) -> None:
    """Print a line, unless one with this subject was printed by this process or another of the same `pmm-shm run`."""
    if subject not in _said and (claim := _claimed(subject)) is not None:
        _said[subject] = claim
        say(line)


def _claimed(subject: str) -> object | None:
    """Something to keep while nobody else may say it; None if another process keeps it.

    It is an address in the abstract namespace of Unix sockets, which ends with the processes that hold it.
    """
    run = flags.run_pid()
    if run is None:
        return subject
    import _socket

    try:
        claim = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        claim.bind(f"\0pmm-shm-run-{os.getuid()}-{run}-{subject}")
    except OSError:
        return None
    return claim

"""Exit codes of `pmm-shm`, and the errors that give them."""

from __future__ import annotations

from pmm_shm import errors

OK = 0
FAILURE = 1
USAGE = 2
DAEMON_ABSENT = 3
LAGGING = 4
INTEGRITY = 5
# As the shell reports a program that the signal ended.
HUNG_UP = 129
INTERRUPTED = 130
TERMINATED = 143
BY_SIGNALS = {
    HUNG_UP: "its terminal was closed (SIGHUP)",
    INTERRUPTED: "interrupted (SIGINT, Ctrl-C)",
    TERMINATED: "ended by SIGTERM",
}

CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.ConfigError, USAGE),
    (errors.UnknownFoldError, USAGE),
    (errors.InvalidEventError, USAGE),
    (errors.InvalidTextError, USAGE),
    (errors.InvalidVectorError, USAGE),
    (errors.UnknownModelError, USAGE),
    (errors.DaemonAbsentError, DAEMON_ABSENT),
    (errors.DaemonTimeoutError, LAGGING),
    (errors.SnapshotUnavailableError, LAGGING),
    (errors.ProjectionInvariantError, INTEGRITY),
    (errors.ChainError, INTEGRITY),
)


def exit_code(error: BaseException) -> int:
    """The exit code for an error that ends a command."""
    return next((code for kind, code in CODES if isinstance(error, kind)), FAILURE)


class CommandFailed(Exception):
    """Ends a command with one line on stderr and an exit code.

    For failures that are no error of the library: a verification that found a difference, a daemon that lags.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

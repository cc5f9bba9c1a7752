"""Becomes a program that runs PMM on the shared cache: its environment, its words, its start.

The program waits for this, so it imports as little as it can.
"""

from __future__ import annotations

import os
import sys

# That of `typing` would take as long to import as all else.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

SITE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "site")
"""Holds the `sitecustomize` by which a Python installs the replacements at its start."""

FLAGS = ("--no-daemon", "--report", "--elect-autonomy")
WITH_VALUE = ("--ledger", "--report-to")
_SCRIPTS = (".py", ".pyc", ".pyw", ".pyz")


def plain_options(words: list[str]) -> dict[str, Any] | None:
    """The arguments of `become` in the words of a command line; None where it needs a closer look."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(words) and words[at].startswith("-"):
        word = words[at]
        has_value = word in WITH_VALUE or word == "-m"
        if (word not in FLAGS and not has_value) or (has_value and at + 1 == len(words)):
            return None
        if word == "-m":
            return {**found, "module": words[at + 1], "target": words[at + 2 :]}
        found[word.lstrip("-").replace("-", "_")] = words[at + 1] if has_value else True
        at += 2 if has_value else 1
    return {**found, "target": words[at:]} if at < len(words) else None


def become(
    target: list[str],
    module: str | None = None,
    ledger: str | None = None,
    no_daemon: bool = False,
    report: bool = False,
    report_to: str | None = None,
    elect_autonomy: bool = False,
) -> NoReturn:
    """Replace this process by the program; see the options of `pmm-shm run`.

    Raises:
        OSError: the program cannot be started.
        ConfigError, LedgerError: there cannot be such a ledger.
    """
    variables = dict(os.environ)
    if ledger is not None:
        variables["PMM_DB"] = checked_ledger(ledger)
    _refuse_foreign(variables.get("PMM_DB"))
    if _is_on() and not _is_left_alone(variables.get("PMM_DB")):
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (SITE, os.environ.get("PYTHONPATH"))))
        variables["PMM_SHM_RUN"] = str(os.getpid())
        if no_daemon:
            variables["PMM_SHM_DAEMON"] = "off"
        if elect_autonomy:
            variables["PMM_SHM_ELECT_AUTONOMY"] = "on"
        if report or report_to:
            variables["PMM_SHM_REPORT"] = os.path.abspath(report_to) if report_to else "stderr"
    words = [sys.executable, "-m", module, *target] if module is not None else command_line(target)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    _restore_signals()
    os.execvpe(words[0], words, variables)  # noqa: S606 - what the user typed


def _is_on() -> bool:
    if "PMM_SHM" not in os.environ:
        return True
    from pmm_shm import flags
    from pmm_shm.errors import ConfigError

    try:
        return flags.run_pmm() is not flags.Flag.OFF
    except ConfigError:
        # The started process warns of the value.
        return True


def _refuse_foreign(path: str | None) -> None:
    """Raise `ConfigError` for the log of another program: PMM would make its own table in that file."""
    # Looks for the record first: the check itself imports much.
    if path and ("PMM_SHM_DIR" in os.environ or os.path.exists(f"{os.path.realpath(path)}-cache/shape.json")):
        from pmm_shm_terminal.options import refuse_foreign

        refuse_foreign(path, "run")


def is_ledger_of_pmm2(path: str) -> bool:
    """Whether PMM 2 keeps the ledger at a path; False where there is none, or none that can be read."""
    if not os.path.isfile(path):
        return False
    try:
        connection = _opened(path)
        try:
            query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pmm_writer_lease'"
            return connection.execute(query).fetchone() is not None
        finally:
            connection.close()
    except _sqlite().Error:
        return False


def _is_left_alone(path: str | None) -> bool:
    """Whether nothing is replaced, because PMM 2 keeps the ledger; says so."""
    if not path or not is_ledger_of_pmm2(path):
        return False
    from pmm_shm.ledger.obstacles import NEEDS_LEASE
    from pmm_shm_pmm.saying import say

    say(f"{path}: {NEEDS_LEASE}; nothing is replaced")
    return True


def _sqlite() -> Any:
    """The module `sqlite3`, or the one in C behind it, which takes a tenth of the time to import."""
    try:
        import _sqlite3
    except ImportError:
        import sqlite3

        return sqlite3
    return _sqlite3


def _opened(path: str) -> Any:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return _sqlite().connect(f"file:{quoted}?mode=ro", uri=True)


def checked_ledger(path: str) -> str:
    """The absolute path of a ledger that PMM can open or create.

    Raises:
        ConfigError: the path is empty.
        LedgerError: no file can be there, or the one that is there is no SQLite database.
    """
    if not path:
        from pmm_shm.errors import ConfigError

        raise ConfigError("--ledger: expected the path of a file, got an empty text")
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        from pmm_shm.errors import LedgerNotFoundError

        raise LedgerNotFoundError(f"{path}: no such folder: {folder}")
    if os.path.lexists(path):
        _check_database(path)
    return path


def _check_database(path: str) -> None:
    sqlite = _sqlite()
    # SQLite takes a short file for an empty database; others, it may not be able to open at all.
    if not os.path.isfile(path) or os.stat(path).st_size < 512:
        from pmm_shm.ledger.files import check_file

        check_file(path, may_be_made=True)
    try:
        connection = _opened(path)
        try:
            connection.execute("PRAGMA schema_version")
        finally:
            connection.close()
    except sqlite.DatabaseError as error:
        # An operational error may only mean that it is in use: PMM will see.
        if isinstance(error, sqlite.OperationalError) and os.access(path, os.R_OK):
            return
        from pmm_shm.errors import NotALedgerError

        raise NotALedgerError(f"{path}: {error}") from None


def command_line(target: list[str]) -> list[str]:
    """The words with which a script or a program is started.

    A program that PATH does not have is taken from the folder of this Python, where its environment has it.
    """
    name = target[0]
    if name.lower().endswith(_SCRIPTS) or os.path.isfile(os.path.join(name, "__main__.py")):
        return [sys.executable, *target]
    beside = os.path.join(os.path.dirname(sys.executable), name)
    if (
        os.sep in name
        or not os.access(beside, os.X_OK)
        or any(os.access(os.path.join(folder, name), os.X_OK) for folder in os.get_exec_path())
    ):
        return target
    return [beside, *target[1:]]


def _restore_signals() -> None:
    """Python ignores these, and an ignored signal stays so in the program."""
    import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)

"""The command `python -m pmm_replicator`: started by `pmm-cached --source`, which passes on what it was told."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import signal
import sys

from pmm_replicator.follower import ReplicaFollower
from pmm_replicator.forks import ForkTooDeepError
from pmm_replicator.replica_file import ReplicaFile
from pmm_replicator.report import ReplicationReport
from pmm_replicator.source import row_at
from pmm_shm import limits
from pmm_shm.errors import ChainError, ConfigError, LedgerError, NotALedgerError, PmmShmError
from pmm_shm.instance.making import PRIVATE_MODE, make_directory, make_file
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.replicas import ReplicaRecord
from pmm_shm.ledger.source.dsn import checked_dsn
from pmm_shm.ledger.source.report import LOCK_FILE
from pmm_shm.ledger.source.server import Server
from pmm_shm.ledger.source.tables import checked_name

FAILURE, USAGE, NEEDS_A_PERSON = 1, 2, 5
"""Exit codes. After the last one a new start changes nothing."""

DSN_VARIABLE = "PMM_SOURCE"
# Of prctl(2).
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Entry point: prints an error as one line on stderr, and exits with its code."""
    try:
        _run(_arguments())
    except ConfigError as error:
        _end(error, USAGE)
    except (ForkTooDeepError, ChainError, NotALedgerError) as error:
        _end(error, NEEDS_A_PERSON)
    except (PmmShmError, OSError) as error:
        _end(error, FAILURE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pmm_replicator",
        description=f"Follow a ledger in PostgreSQL, whose data source name is in {DSN_VARIABLE}.",
    )
    parser.add_argument("ledger", help="the replica; made where there is none")
    parser.add_argument("--name", required=True, help="the ledger's name in PostgreSQL")
    parser.add_argument("--fork-max", type=int, default=limits.REPLICA_FORK_MAX, metavar="EVENTS")
    parser.add_argument("--ends-with-parent", action="store_true", help="end when the process that started it ends")
    parser.add_argument("--prepare", action="store_true", help="make the replica where there is none, and end")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> None:
    dsn, name = checked_dsn(os.environ.get(DSN_VARIABLE, "")), checked_name(options.name)
    if options.prepare:
        _prepare(options.ledger, dsn, name).close()
        return
    if options.ends_with_parent:
        _end_with_parent()
    replica = _prepare(options.ledger, dsn, name)
    instance = Instance.of(replica.path)
    make_directory(instance)
    lock = make_file(instance.directory / LOCK_FILE, PRIVATE_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LedgerError(f"{replica.path}: another follower writes this replica") from None
    report = ReplicationReport(instance.directory, name)
    server = Server(dsn, name, replica.record.identity, replica.record.timeline)
    follower = ReplicaFollower(server, replica, report, options.fork_max, _log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: follower.stop())
    try:
        follower.run()
    except LedgerError as error:
        report.update(problem=str(error))
        raise
    finally:
        server.close()
        replica.close()


def _end_with_parent() -> None:
    """Get SIGTERM when the starter's thread ends, even if it is killed."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(FAILURE)


def _prepare(path: str, dsn: str, name: str) -> ReplicaFile:
    """Open the replica; make it, as the source's ledger is now, where there is none."""
    try:
        replica = ReplicaFile(path)
    except LedgerError:
        server = Server(dsn, name)
        try:
            connection, ledger = server.connection(), server.known_ledger()
            record = ReplicaRecord(ledger.identity, name, dsn, ledger.formula, server.timeline, 0)
            return ReplicaFile(path, record, lambda row: row_at(connection, ledger.number, row[0]) == row)
        finally:
            server.close()
    if replica.record.name != name:
        replica.close()
        raise NotALedgerError(f"{replica.path}: a replica of {replica.record.name!r}, not of {name!r}")
    if replica.record.dsn != dsn:
        # The servers moved; their identity is checked at each connection.
        replica.note(dsn=dsn)
    return replica


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _end(error: Exception, code: int) -> None:
    _log(f"pmm_replicator: {error}")
    sys.exit(code)

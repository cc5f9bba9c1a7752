"""A fork: the source has lost events that the replica has, because a standby took over without them.

The replica follows its source, and keeps what was lost in `<ledger>.lost-<time>.jsonl`: an acknowledged event is never
gone without a trace.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timezone
from typing import NamedTuple

from pmm_replicator import source
from pmm_replicator.replica_file import HeadMoved, ReplicaFile
from pmm_shm.crash_points import crash_point
from pmm_shm.errors import LedgerError, SourceUnreachableError
from pmm_shm.ledger.json_lines import event_line
from pmm_shm.ledger.new_file import sync
from pmm_shm.ledger.rows import RawRow
from pmm_shm.ledger.source.lost import lost_files
from pmm_shm.ledger.source.server import Server
from pmm_shm.ledger.source.tables import EVENT_COLUMNS

_CONFIRMATIONS = 3
_COLUMNS = ", ".join(EVENT_COLUMNS)
_FROM = f"SELECT {_COLUMNS} FROM events WHERE id > ? ORDER BY id"
_AT = f"SELECT {_COLUMNS} FROM events WHERE id = ?"


class ForkTooDeepError(LedgerError):
    """The source has lost more events than the replica may take back by itself; nothing was changed."""


class Lost(NamedTuple):
    """Events that were taken back, and where they are kept."""

    first_id: int
    events: int
    path: str


def resolve(server: Server, replica: ReplicaFile, head: RawRow | None, fork_max: int) -> Lost | None:
    """Bring a replica whose newest row the source does not have back onto the source's history.

    Returns:
        What was taken back; None where the source has the row after all.

    Raises:
        ChainError: the source's row was edited; nothing was changed.
        ForkTooDeepError: more than `fork_max` events would be taken back; nothing was changed.
        SourceUnreachableError: no primary, or not one that can be trusted.
        LedgerError: the replica, or the file of what is lost, cannot be written; nothing was changed.
    """
    if head is None or not _is_confirmed(server, head):
        return None
    connection, ledger = server.connection(), server.known_ledger()
    fork_id = _fork_point(server, replica, head[0])
    count = replica.rows("SELECT count(*) FROM events WHERE id > ?", (fork_id,))[0][0]
    if count > fork_max:
        raise ForkTooDeepError(
            f"{replica.path}: the source {ledger.name!r} lacks {count} events that are here, from event {fork_id + 1} "
            f"on, and {fork_max} is the most that is taken back without a person. If the server is the right one, "
            f"start pmm-cached with --fork-max {count}: they are kept in a file beside the ledger"
        )
    kept = replica.rows(_AT, (fork_id,))
    kept_row = kept[0] if kept else None
    # Verified before anything is taken back: an edited row is no reason to.
    pulled = source.pull(connection, ledger.number, kept_row, ledger.formula)
    if not pulled.continues:
        raise SourceUnreachableError(f"the ledger {ledger.name!r}: its history changed again while a fork was resolved")
    path = _keep(replica, fork_id)
    crash_point("replica.lost_kept")
    try:
        replica.replace_tail(kept_row, pulled.rows, head, server.timeline)
    except HeadMoved:
        return None
    return Lost(fork_id + 1, count, path)


def _is_confirmed(server: Server, head: RawRow) -> bool:
    """Whether three new connections to a primary agree that the row is not there."""
    for _ in range(_CONFIRMATIONS):
        server.close()
        connection, ledger = server.connection(), server.known_ledger()
        if source.row_at(connection, ledger.number, head[0]) == head:
            return False
    return True


def _fork_point(server: Server, replica: ReplicaFile, head_id: int) -> int:
    """The last event that both have; 0 for none. Each hash covers all before it, so halving finds it."""
    connection, number = server.connection(), server.known_ledger().number
    same_id, other_id = 0, head_id
    while other_id - same_id > 1:
        middle_id = (same_id + other_id) // 2
        ours = replica.rows("SELECT hash FROM events WHERE id = ?", (middle_id,))
        theirs = source.hashes_at(connection, number, [middle_id])
        if ours and ours[0][0] == theirs.get(middle_id):
            same_id = middle_id
        else:
            other_id = middle_id
    return same_id


def _keep(replica: ReplicaFile, fork_id: int) -> str:
    """Write the rows behind an event to a new file beside the ledger, and sync it. Returns its path."""
    lines = [event_line(dict(zip(EVENT_COLUMNS, row, strict=True))) for row in replica.rows(_FROM, (fork_id,))]
    text = "".join(lines)
    for path in lost_files(replica.path):
        if _holds(path, text):
            # This process, or the one before, was killed behind it.
            return path
    path = f"{replica.path}.lost-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}.jsonl"
    try:
        # Under its own name only once it is whole.
        temporary = f"{replica.path}.lost.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        crash_point("replica.lost_written")
        os.rename(temporary, path)
        sync(os.path.dirname(path))
    except OSError as error:
        raise LedgerError(
            f"{path}: {error.strerror}: what the source has lost cannot be kept; nothing was changed"
        ) from error
    return path


def _holds(path: str, text: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(len(text) + 1) == text
    except (OSError, UnicodeDecodeError):
        return False

"""Every error that pmm-shm raises on purpose: one class per reaction of the caller.

All derive from `PmmShmError`. A message is one line that names the file or value concerned and, if one is known, the
remedy; `pmm_shm.remedies` has what to type.
"""

from __future__ import annotations


class PmmShmError(Exception):
    """Base of all errors of this project."""


class ConfigError(PmmShmError, ValueError):
    """The value of a flag, option or environment variable is invalid: correct it."""


class LedgerError(PmmShmError):
    """Base of all errors about a ledger file."""


class LedgerNotFoundError(LedgerError, FileNotFoundError):
    """No file exists at the ledger's path."""


class NotALedgerError(LedgerError):
    """The file is not a ledger: not a database, empty, or without a usable `events` table; or a shape does not fit."""


class LedgerUnreadableError(LedgerError):
    """The ledger cannot be read from this process: permissions, a failing disk, a network file system, or a journal
    that was not rolled back.
    """


class LedgerUnwritableError(LedgerError):
    """The ledger cannot be written from this process, or is the log of another program; nothing was written."""


class ReplicaError(LedgerUnwritableError):
    """The ledger is a replica: only its follower writes it, and appends go to its source in PostgreSQL."""


class LedgerBusyError(LedgerError, TimeoutError):
    """Another process held the ledger until the deadline, or this thread is within a call; nothing was written.

    A retry is safe.
    """


class LedgerReplacedError(LedgerError):
    """The ledger was replaced beside a non-empty `-wal`, perhaps of the former file: writing could destroy data."""


class LockLostError(LedgerError):
    """SQLite has lost its lock on the ledger without noticing: this process must not touch the ledger."""


class ChainError(LedgerError):
    """The hash chain is broken: of a ledger to append to, or of a backup to restore."""


class InvalidEventError(LedgerError, ValueError):
    """An event that could not be stored and read back unchanged; nothing was written."""


class HeadMovedError(LedgerError):
    """Somebody has appended since the position that an append expected; nothing was written.

    Read again, decide again, and append what still holds.

    Attributes:
        head_id: the newest event's id now; 0 for an empty ledger.
    """

    def __init__(self, message: str, head_id: int = 0) -> None:
        self.head_id = head_id
        super().__init__(message)

    def __reduce__(self) -> tuple[type[HeadMovedError], tuple[str, int]]:
        return type(self), (str(self), self.head_id)


class SourceUnreachableError(LedgerError):
    """The log of record in PostgreSQL cannot be reached; nothing was written. A retry is safe."""


class UnknownOutcomeError(LedgerError):
    """The connection was lost while an append was committed, and its outcome is not known yet.

    Look for the event before you append it again.

    Attributes:
        last_hash: the hash of the last event of the append; it is in the log if the append was.
    """

    def __init__(self, message: str, last_hash: str = "") -> None:
        self.last_hash = last_hash
        super().__init__(message)

    def __reduce__(self) -> tuple[type[UnknownOutcomeError], tuple[str, str]]:
        return type(self), (str(self), self.last_hash)


class ReplicaLaggingError(LedgerError, TimeoutError):
    """An append is in the log of record, but this host's replica has not received it within the timeout.

    Do not append it again.

    Attributes:
        ids: of the events that were appended.
    """

    def __init__(self, message: str, ids: tuple[int, ...] = ()) -> None:
        self.ids = ids
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ReplicaLaggingError], tuple[str, tuple[int, ...]]]:
        return type(self), (str(self), self.ids)


class StoreError(PmmShmError):
    """The shared snapshot cannot be opened or used; exact reads work without it."""


class InstanceDirectoryError(StoreError):
    """The instance directory cannot be trusted, because of its owner, mode or kind; nothing in it is used."""


class SnapshotUnavailableError(StoreError):
    """The caller asked for the published state, and nothing is published yet."""


class DaemonError(PmmShmError):
    """Base of all errors between a client and the daemon."""


class DaemonAbsentError(DaemonError):
    """No daemon serves this ledger."""


class DaemonTimeoutError(DaemonError, TimeoutError):
    """The daemon did not answer within the deadline."""


class ResourceLimitError(DaemonError):
    """This process has no file descriptor, thread or memory left to ask the daemon, which may well serve.

    The message names the limit. A retry is safe when the process has closed files or the limit was raised.
    """


class DaemonRunningError(DaemonError):
    """Another daemon already serves this ledger."""


class CommandError(DaemonError):
    """The daemon refused a command, or failed to execute it; the message is the daemon's."""


class UnknownFoldError(PmmShmError, KeyError):
    """No fold of this name is built in or registered, or none is on the log of another program."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FoldError(PmmShmError):
    """A fold cannot be used: it does not load, breaks the contract, fails at its view, or asks for a column that the
    ledger lacks.
    """


class InvalidTextError(PmmShmError, ValueError):
    """A text that cannot be embedded: empty, too long, no text, or refused by the embedder."""


class InvalidVectorError(PmmShmError, ValueError):
    """A vector that cannot be used: not finite, not one row of numbers, or with another dimension than the table."""


class UnknownModelError(PmmShmError, KeyError):
    """No embedder or table of vectors has this name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EmbedderError(PmmShmError):
    """An embedder failed, is not installed, or returned no vectors; a later retry may help."""


class MissingExtraError(PmmShmError):
    """An optional package is not installed; the message names what to install."""


class ProjectionInvariantError(PmmShmError):
    """A strict read of a state that violates an invariant of the self-model.

    Attributes:
        violation: `"close_without_evidence"` or `"identity"`.
        cid: the commitment closed without evidence (str or int); None for `"identity"`.
        event_id: the first violating event; None for `"identity"`.
    """

    def __init__(self, violation: str, cid: str | int | None = None, event_id: int | None = None) -> None:
        self.violation = violation
        self.cid = cid
        self.event_id = event_id
        if violation == "identity":
            super().__init__("identity: a name was adopted and is now None")
        else:
            super().__init__(f"{violation}: commitment {cid!r} was closed by event {event_id} without prior evidence")

    def __reduce__(self) -> tuple[type[ProjectionInvariantError], tuple[str, str | int | None, int | None]]:
        return type(self), (self.violation, self.cid, self.event_id)


class ClosedError(PmmShmError):
    """The cache was closed."""

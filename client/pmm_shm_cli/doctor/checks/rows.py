"""Checks of what SQLite reads in the ledger."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Iterator

from pmm_shm.errors import (
    LedgerBusyError,
    LedgerError,
    LedgerNotFoundError,
    LedgerReplacedError,
    LedgerUnreadableError,
    LockLostError,
    NotALedgerError,
)
from pmm_shm.ledger.chain import FORKED_BY, FORKS_ARE_HARMLESS
from pmm_shm.ledger.sqlite_errors import HotJournalError
from pmm_shm.remedies import Remedy, remedy
from pmm_shm_cli.doctor.facts import SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, error, note, ok, one_line, warning

_KINDS_SHOWN = 3
_FUTURE_S = 24 * 3_600
_FIXED_SQLITE = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
_ROLLBACK = "a rollback journal: a writer waits for readers, and readers wait for its commit"
_MODES = {
    "wal": "readers and the writer do not wait for each other; SQLite keeps a -wal and a -shm file beside the ledger",
    "delete": _ROLLBACK,
    "truncate": _ROLLBACK,
    "persist": _ROLLBACK,
}
_IS_NO_FILE = ("not a regular file", os.strerror(errno.ENOTDIR), os.strerror(errno.ELOOP))
_PROBLEMS: tuple[tuple[type[LedgerError], Callable[[str, str, Remedy], Verdict], str, str], ...] = (
    (LedgerNotFoundError, error, "there is nothing to read", "put-back"),
    (HotJournalError, warning, "nothing is lost: what was not committed is rolled back", "roll-back"),
    (NotALedgerError, error, "it cannot be read as a ledger", "replace-damaged"),
    (LedgerBusyError, warning, "another process keeps it locked: reads and appends wait", "see-holder"),
    (LedgerReplacedError, error, "a file replaced a ledger in use; to continue can destroy data", "see-users"),
    (LockLostError, error, "this process must not touch the ledger", "new-process"),
    (LedgerUnreadableError, error, "it cannot be read from here", "share"),
    (LedgerError, error, "it cannot be read", "check-database"),
)
"""(error, how bad, meaning, remedy): the first that fits."""


def readable(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether the rows were read, and if not, why."""
    ledger = facts.ledger
    if ledger.left_unread:
        yield note(
            "its -wal holds commits, and nobody has it open",
            "to read it, SQLite would make a new index file, which the doctor must not: rows were not checked",
            remedy("verify", ledger=facts.path),
        )
    if ledger.problem is not None:
        problem = ledger.problem
        _, judged, meaning, key = next(entry for entry in _PROBLEMS if isinstance(problem, entry[0]))
        if ledger.disk.network is not None and isinstance(problem, LedgerUnreadableError):
            key = "leave-network"
        elif ledger.is_mounted_alone and isinstance(problem, LedgerUnreadableError):
            key = "mount-folder"
        elif "a hard link" in str(problem):
            key = "one-name"
        elif ledger.disk.is_read_only and isinstance(problem, LedgerUnreadableError):
            key = "mount-writable-to-read"
        elif str(problem).endswith(_IS_NO_FILE):
            key = "name-file"
        elif isinstance(problem, LedgerNotFoundError) and not ledger.side_files:
            # Beside a -wal with commits, a new ledger would destroy them.
            key = "make-ledger"
        yield judged(one_line(problem), meaning, remedy(key, ledger=facts.path))


def owner(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether another program keeps the ledger for itself."""
    if facts.ledger.rows is not None and facts.ledger.rows.shape is not None:
        yield ok(
            f"a log of another program, read by the shape {facts.ledger.rows.shape}",
            "that program appends; the daemon's seals find edits from its first verification on",
        )
    if facts.ledger.rows is not None and facts.ledger.rows.is_of_pmm2:
        yield note(
            "it is a ledger of PMM 2",
            "the process that holds its writer lease appends, and all others read; identity, traits, IAS, GAS and "
            "stage do not apply to it, and its commitments are other events",
            remedy("leave-to-owner"),
        )


def folds(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether the folds of a shape can be loaded here, and find events of their kinds."""
    rows = facts.ledger.rows
    for fold in () if rows is None else rows.shape_folds:
        assert rows is not None
        if fold.problem is not None:
            yield warning(one_line(fold.problem), "programs in this environment cannot read it", remedy("set-path"))
        elif fold.kinds is not None and rows.newest_kinds and rows.newest_kinds.isdisjoint(fold.kinds):
            found = f"none of the newest {rows.rows_checked:,} events is of a kind that the fold {fold.name!r} needs"
            meaning = f"they are of {_listed(rows.newest_kinds)}; it needs {_listed(fold.kinds)}"
            yield note(found, one_line(meaning), remedy("compare-kinds", ledger=facts.path))
        else:
            yield ok(fold.name, "it loads, and its kinds are in the log")


def _listed(kinds: Collection[str]) -> str:
    shown = ", ".join(repr(kind)[:80] for kind in sorted(kinds)[:_KINDS_SHOWN])
    return f"{shown} and {len(kinds) - _KINDS_SHOWN} more" if len(kinds) > _KINDS_SHOWN else shown or "none"


def journal_mode(facts: SystemFacts) -> Iterator[Verdict]:
    rows = facts.ledger.rows
    if rows is None:
        return
    is_alone, switch = facts.ledger.is_mounted_alone, remedy("switch-to-wal", ledger=facts.path)
    if rows.journal == "wal":
        yield ok("WAL", _MODES["wal"])
    elif rows.journal in _MODES and rows.is_of_pmm2:
        yield ok(rows.journal, f"{_MODES[rows.journal]}; PMM 2 has it so")
    elif rows.journal in _MODES and rows.shape is not None:
        yield ok(rows.journal, f"{_MODES[rows.journal]}; its program has it so")
    elif rows.journal in _MODES:
        # In WAL mode, a file that is mounted alone is refused.
        yield note(rows.journal, _MODES[rows.journal], remedy("mount-folder") if is_alone else switch)
    else:
        yield warning(rows.journal, "SQLite cannot roll back a transaction that a crash interrupts", switch)


def durability(facts: SystemFacts) -> Iterator[Verdict]:
    """What an acknowledged append survives, and which durability the workers use."""
    if facts.ledger.rows is None or facts.ledger.rows.shape is not None:
        return
    workers = {} if facts.state.daemon is None else facts.state.daemon.get("workers", {})
    default, full = workers.get("appends_default", 0), workers.get("appends_full", 0)
    used = f"workers appended {default:,} events with `default`, {full:,} with `full`"
    lost = "the newest events" if facts.ledger.rows.journal == "wal" else "the newest event"
    meaning = f"both survive the death of any process; a power cut can lose {lost} of `default`, and none of `full`"
    yield ok(used if default or full else "no worker has reported an append; `default` unless it chose `full`", meaning)


def hash_chain(facts: SystemFacts) -> Iterator[Verdict]:
    """The chain over the newest rows."""
    rows = facts.ledger.rows
    if rows is None or rows.shape is not None:
        return
    verify = remedy("verify", ledger=facts.path)
    if not rows.head_id:
        yield ok("no events", "the first append begins the chain")
    elif not rows.rows_hashed:
        yield note(
            "none of the newest events has a hash" if rows.has_hashes else "the table has no columns for hashes",
            "the ledger's own chain proves nothing here; the daemon's seals find edits from its first verification on",
            verify,
        )
    elif rows.first_bad_id is not None:
        later = "appends continue behind it" if rows.is_continuable else "appends fail"
        yield error(
            f"broken at event {rows.first_bad_id}",
            f"this event was edited, or inserted by a program that does not continue the chain; {later}",
            remedy("verify-and-restore", ledger=facts.path),
        )
    elif (pair := rows.forks.first or rows.fork) is not None:
        count = f", the first of {rows.forks.total:,} forks" if rows.forks.total > 1 else ""
        # Among the newest events, it may go on.
        yield (note if rows.fork is None else warning)(
            f"it forks: events {pair[0]} and {pair[1]} have the same predecessor{count}",
            f"{FORKED_BY}; {FORKS_ARE_HARMLESS}",
            remedy("append-under-lock"),
        )
    elif rows.formula is None:
        yield error(
            "the newest hashes fit neither formula",
            "they were made by another program, or their rows were edited; the chain cannot be continued",
            verify,
        )
    else:
        covered = "id and time included" if rows.formula == "full" else "without id and time"
        yield ok(
            f"formula {rows.formula} ({covered}); the newest {rows.rows_hashed:,} of {rows.rows_checked:,} rows hold",
            f"`{verify.command}` checks the whole chain",
        )


def newest_time(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether the newest event is from the future."""
    ts = None if facts.ledger.rows is None else facts.ledger.rows.newest_ts
    latest = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(facts.machine.now_s + _FUTURE_S))
    if isinstance(ts, str) and ts[:4].isdigit() and ts[:19] > latest:
        yield warning(
            f"the time of the newest event, {ts[:19]}, is more than a day ahead of this machine's clock",
            "ids order the events, so every answer is right; but times in them are wrong",
            remedy("set-clock"),
        )


def sqlite_version(facts: SystemFacts) -> Iterator[Verdict]:
    version = str(facts.machine.versions["sqlite"])
    if not has_wal_reset_bug(version):
        yield ok(f"SQLite {version}", "without the WAL-reset bug")
        return
    in_wal = facts.ledger.rows is None or facts.ledger.rows.journal == "wal"
    yield (warning if in_wal else note)(
        f"SQLite {version} has the WAL-reset bug",
        "a ledger in WAL mode can, rarely, be corrupted when several connections append and checkpoint at once; the "
        "daemon and the readers do neither",
        remedy("newer-sqlite"),
    )


def has_wal_reset_bug(version: str) -> bool:
    """Whether this SQLite can corrupt a database in WAL mode: fixed in 3.51.3, 3.50.7 and 3.44.6."""
    numbers = tuple(int(part) for part in version.split(".")[:3])
    if numbers >= _FIXED_SQLITE[-1]:
        return False
    return not any(numbers[:2] == fixed[:2] and numbers >= fixed for fixed in _FIXED_SQLITE)

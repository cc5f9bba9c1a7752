"""Judgements of the ledger: pure functions from facts to findings."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterator

from pmm_shm import limits
from pmm_shm.errors import (
    LedgerBusyError,
    LedgerError,
    LedgerNotFoundError,
    LedgerReplacedError,
    LedgerUnreadableError,
    LockLostError,
    NotALedgerError,
)
from pmm_shm.ledger.sqlite_errors import HotJournalError
from pmm_shm_cli.doctor.facts import Disk, Facts, File, Ledger, Rows
from pmm_shm_cli.doctor.finding import Finding, Severity, command, one_line

_WAL_BYTES_MAX = 64 << 20
_FUTURE_S = 24 * 3_600
_EVERYBODY = stat.S_IROTH | stat.S_IWOTH
_FIXED_SQLITE = ((3, 44, 6), (3, 50, 7), (3, 51, 3))
_MODES = {
    "wal": "readers and the writer do not wait for each other; SQLite keeps a -wal and a -shm file beside the ledger",
    "delete": "a rollback journal: a writer waits for readers, and readers wait for its commit",
    "truncate": "a rollback journal: a writer waits for readers, and readers wait for its commit",
    "persist": "a rollback journal: a writer waits for readers, and readers wait for its commit",
}


def ledger_findings(facts: Facts) -> Iterator[Finding]:
    """Everything about the ledger's file, its rows and what lies beside it."""
    ledger = facts.ledger
    if ledger is None:
        return
    yield from disk_findings("file-system", "the ledger", ledger.disk, facts.path)
    yield from _file(facts, ledger)
    yield from _problem(facts, ledger)
    if ledger.rows is not None:
        yield from _journal(facts, ledger, ledger.rows)
        yield from _chain(facts, ledger.rows)
        yield from _clock(facts, ledger.rows)
    yield from _sqlite(facts, ledger)
    yield from _old_users(facts)
    yield from _leftovers(facts, ledger)


def has_wal_reset_bug(version: str) -> bool:
    """Whether this SQLite can corrupt a database in WAL mode: fixed in 3.51.3, 3.50.7 and 3.44.6."""
    numbers = tuple(int(part) for part in version.split(".")[:3])
    if numbers >= _FIXED_SQLITE[-1]:
        return False
    return not any(numbers[:2] == fixed[:2] and numbers >= fixed for fixed in _FIXED_SQLITE)


def disk_findings(check: str, what: str, disk: Disk, path: str) -> Iterator[Finding]:
    """Where something lies, and how much room there is."""
    if disk.network is not None:
        yield Finding(
            check,
            "error",
            f"{what} lies on {disk.network}: {disk.directory}",
            "a file system of a network has neither the shared memory nor the locks that SQLite and LMDB need: data "
            "can be lost",
            "move the ledger to a local disk"
            if check == "file-system"
            else "set PMM_SHM_DIR to a directory on a local disk, for the daemon and all workers",
            command("cp", path, "/var/lib/pmm/") if check == "file-system" else "export PMM_SHM_DIR=/var/cache/pmm",
        )
    elif disk.is_memory and check == "file-system":
        yield Finding(
            check,
            "note",
            f"{what} lies in memory: {disk.directory}",
            "it is gone after a reboot",
            "keep what is to last on a disk",
            command("cp", path, "/var/lib/pmm/"),
        )
    else:
        yield Finding(check, "ok", f"{what} lies on a local file system: {disk.directory}", "locks and maps work there")
    yield from _room(check, what, disk)


def _room(check: str, what: str, disk: Disk) -> Iterator[Finding]:
    is_full = disk.free_bytes is not None and disk.free_bytes < limits.DISK_FULL_BYTES
    if is_full or disk.free_files == 0:
        yield Finding(
            f"{check}-room",
            "error",
            f"no {'room' if is_full else 'free inode'} where {what} lies: {disk.directory}",
            "appends fail, and the daemon cannot publish; nothing that was committed is lost",
            "make room; the daemon goes on by itself",
            command("du", "-xh", "--max-depth=2", disk.directory),
        )


def _file(facts: Facts, ledger: Ledger) -> Iterator[Finding]:
    file = ledger.file
    if file is None:
        return
    # A link has no mode of its own.
    users = "everybody" if file.mode & stat.S_IROTH else f"group {group_name(file.gid)}"
    if not file.mode & (stat.S_IRGRP | stat.S_IROTH):
        users = "nobody else"
    severity: Severity = "ok"
    meaning, remedy, how = "who may read the ledger may read the shared state, and nobody else", "", ""
    if file.mode & stat.S_IWOTH:
        severity, meaning = "warning", "any user of this machine can change what the agent believes"
        remedy, how = "let the owner and the group alone write", command("chmod", "o-rwx", file.path)
    elif file.mode & stat.S_IROTH:
        severity, meaning = "note", "any user of this machine can read what the agent remembers"
        remedy, how = "let the owner and the group alone read", command("chmod", "o-rwx", file.path)
    yield Finding(
        "ledger-mode",
        severity,
        f"mode {file.mode:04o}: read by user {user_name(file.uid)} and {users}",
        meaning,
        remedy,
        how,
    )
    yield from _access(facts, ledger, file)
    yield from _side_files(file, ledger)


def _access(facts: Facts, ledger: Ledger, file: File) -> Iterator[Finding]:
    user, group = facts.machine.user, group_name(file.gid)
    if not file.is_readable:
        yield Finding(
            "ledger-access",
            "error",
            f"{user} may not read {file.path}",
            "nothing of it can be read here",
            f"make {user} a member of the ledger's group, and let the group read and write",
            command("usermod", "-aG", group, user) + " && " + command("chmod", "g+rw", file.path),
        )
    elif not file.is_writable or (ledger.directory is not None and not ledger.directory.is_writable):
        what = file.path if not file.is_writable else os.path.dirname(file.path)
        yield Finding(
            "ledger-access",
            "note",
            f"{user} may not write {what}",
            "no appends from here; a ledger in WAL mode can be read only while somebody who may write has it open",
            f"where {user} is to append: a common group that may write the ledger and its directory",
            command("usermod", "-aG", group, user)
            + " && "
            + command("chmod", "g+rwx", os.path.dirname(file.path))
            + " && "
            + command("chmod", "g+rw", file.path),
        )
    else:
        yield Finding("ledger-access", "ok", f"{user} may read and write it", "reads and appends work from here")


def _side_files(file: File, ledger: Ledger) -> Iterator[Finding]:
    for side in ledger.side_files.values():
        missing = file.mode & ~side.mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH)
        if side.gid != file.gid or missing:
            yield Finding(
                "side-files",
                "warning",
                f"{side.path} has mode {side.mode:04o} and group {group_name(side.gid)}, the ledger {file.mode:04o} "
                f"and {group_name(file.gid)}",
                "users who share the ledger through its group cannot open it",
                "give the file the group and the mode of the ledger",
                command("chgrp", group_name(file.gid), side.path)
                + " && "
                + command("chmod", f"{file.mode:o}", side.path),
            )
    wal = ledger.side_files.get("-wal")
    if wal is not None and wal.size_bytes > _WAL_BYTES_MAX:
        yield Finding(
            "wal-size",
            "warning",
            f"{wal.path} holds {wal.size_bytes >> 20:,} MiB",
            "a reader that stays in its transaction keeps SQLite from starting the file anew; reads become slower",
            "end the program that reads all the time, then empty the file",
            command("sqlite3", file.path, "PRAGMA wal_checkpoint(TRUNCATE)"),
        )


def _problem(facts: Facts, ledger: Ledger) -> Iterator[Finding]:
    if ledger.left_unread:
        yield Finding(
            "rows",
            "note",
            "its -wal holds commits, and nobody has it open",
            "to read it, SQLite would make its index anew, and the doctor makes no file: rows were not looked at",
            "let the command that may do so look",
            command("pmm-shm", "verify", facts.path),
        )
    if ledger.problem is not None:
        severity, meaning, remedy, how = _about(ledger.problem, facts)
        yield Finding("rows", severity, one_line(ledger.problem), meaning, remedy, how)


def _about(error: LedgerError, facts: Facts) -> tuple[Severity, str, str, str]:
    """(severity, meaning, remedy, command)."""
    path = facts.path
    table: tuple[tuple[type[LedgerError], tuple[Severity, str, str, str]], ...] = (
        (
            LedgerNotFoundError,
            (
                "error",
                "there is nothing to read",
                "name the right file, or make a ledger",
                command("pmm-shm", "append", path, "user", "hello", "--create"),
            ),
        ),
        (
            HotJournalError,
            (
                "warning",
                "nothing is lost: what was not committed is taken back",
                "let a process that may write roll it back",
                command("pmm-shm", "status", path),
            ),
        ),
        (
            NotALedgerError,
            (
                "error",
                "it cannot be read as a ledger",
                "name the ledger; where this is one that was damaged, move it away and put a backup in its place",
                f"mv {command(path)} {command(path + '.damaged')} && {command('pmm-shm', 'restore', 'BACKUP', path)}",
            ),
        ),
        (
            LedgerBusyError,
            (
                "warning",
                "another process keeps it locked: reads and appends wait",
                "see which process it is, and end it where it hangs",
                command("fuser", "-v", path),
            ),
        ),
        (
            LedgerReplacedError,
            (
                "error",
                "a file was put in the place of a ledger in use; to go on can destroy data",
                "stop all users of the ledger, move its -wal and -shm away, start them again; next time use restore",
                command("fuser", "-v", path, path + "-wal", path + "-shm"),
            ),
        ),
        (
            LockLostError,
            (
                "error",
                "this process must not touch the ledger",
                "ask again in a process of its own",
                command("pmm-shm", "doctor", path),
            ),
        ),
        (
            LedgerUnreadableError,
            (
                "error",
                "nothing of it can be read here",
                "let the owner share it through a group, its directory included",
                command("chmod", "g+rwx", os.path.dirname(path)) + " && " + command("chmod", "g+rw", path),
            ),
        ),
    )
    other: tuple[Severity, str, str, str] = (
        "error",
        "it cannot be read",
        "look at it with SQLite's own check",
        command("sqlite3", path, "PRAGMA quick_check"),
    )
    return next((about for kind, about in table if isinstance(error, kind)), other)


def _journal(facts: Facts, ledger: Ledger, rows: Rows) -> Iterator[Finding]:
    meaning = _MODES.get(rows.journal, "SQLite cannot roll back what a crash leaves half done")
    if rows.journal == "wal":
        yield Finding("journal-mode", "ok", "WAL", meaning)
    elif rows.journal in _MODES:
        yield Finding(
            "journal-mode",
            "note",
            rows.journal,
            meaning,
            "where several processes append and read, switch while nobody has it open",
            command("sqlite3", facts.path, "PRAGMA journal_mode = WAL"),
        )
    else:
        yield Finding(
            "journal-mode",
            "warning",
            rows.journal,
            meaning,
            "switch while nobody has it open",
            command("sqlite3", facts.path, "PRAGMA journal_mode = WAL"),
        )


def _chain(facts: Facts, rows: Rows) -> Iterator[Finding]:
    verify = command("pmm-shm", "verify", facts.path)
    if not rows.head_id:
        yield Finding("hash-chain", "ok", "no events", "the first append begins the chain")
    elif not rows.rows_hashed:
        why = "none of the newest events has a hash" if rows.has_hashes else "the table has no columns for hashes"
        yield Finding(
            "hash-chain",
            "note",
            why,
            "the ledger's own chain proves nothing here; the daemon's seals find edits from its first verification on",
            "append with EventLog to a ledger that it has made; until then, let the daemon verify",
            verify,
        )
    elif rows.first_bad_id is not None:
        yield Finding(
            "hash-chain",
            "error",
            f"broken at event {rows.first_bad_id}",
            "this event was edited, or put in by a program that does not continue the chain; appends behind it fail",
            "see how much is affected, then put a good backup back",
            f"{verify}; {command('pmm-shm', 'restore', 'BACKUP', facts.path)}",
        )
    elif rows.formula is None:
        yield Finding(
            "hash-chain",
            "error",
            "the newest hashes fit neither formula",
            "they were made by another program, or their rows were edited; the chain cannot be continued",
            "check the whole chain",
            verify,
        )
    else:
        covered = "id and time included" if rows.formula == "full" else "without id and time"
        yield Finding(
            "hash-chain",
            "ok",
            f"formula {rows.formula} ({covered}); the newest {rows.rows_hashed:,} of {rows.rows_checked:,} rows hold",
            f"the whole chain is for `{verify}`",
        )


def _clock(facts: Facts, rows: Rows) -> Iterator[Finding]:
    ts = rows.newest_ts
    latest = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(facts.machine.now_s + _FUTURE_S))
    if isinstance(ts, str) and ts[:4].isdigit() and ts[:19] > latest:
        yield Finding(
            "clock",
            "warning",
            f"the newest event says {ts[:19]}, which is more than a day ahead of this machine's clock",
            "ids order the events, so no answer is wrong; but times in them are",
            "set the clock by the network",
            command("timedatectl", "set-ntp", "true"),
        )


def _sqlite(facts: Facts, ledger: Ledger) -> Iterator[Finding]:
    version = str(facts.machine.versions["sqlite"])
    if not has_wal_reset_bug(version):
        yield Finding("sqlite-version", "ok", f"SQLite {version}", "without the WAL-reset bug")
        return
    in_wal = ledger.rows is None or ledger.rows.journal == "wal"
    yield Finding(
        "sqlite-version",
        "warning" if in_wal else "note",
        f"SQLite {version} has the WAL-reset bug",
        "a ledger in WAL mode can, rarely, be corrupted when several connections append and checkpoint at once; the "
        "daemon and the readers do neither",
        "append with a Python whose sqlite3 is 3.51.3 or newer (or 3.50.7, 3.44.6): one of conda-forge, or this Python "
        "with a newer libsqlite3.so.0 in LD_LIBRARY_PATH; this says which one a Python has",
        'python -c "import sqlite3; print(sqlite3.sqlite_version)"',
    )


def _old_users(facts: Facts) -> Iterator[Finding]:
    for user in facts.users:
        if user.is_old and user.path == facts.path:
            yield Finding(
                "replaced-file",
                "warning",
                f"process {user.pid} ({user.name}) has a file open that was replaced or removed at {user.path}",
                "it reads, and may write, events that nobody else sees; pmm-shm's own processes let go with their next "
                "read",
                "where it stays, start that program anew",
                command("kill", "-TERM", user.pid),
            )


def _leftovers(facts: Facts, ledger: Ledger) -> Iterator[Finding]:
    for file in ledger.leftovers:
        is_copy = ".before-restore-" in file.path[len(facts.path) :]
        yield Finding(
            "leftover",
            "note",
            f"{file.path} ({file.size_bytes >> 10:,} KiB)",
            "what the ledger held before a restore" if is_copy else "a restore was killed, or runs, while it had this",
            "remove it when it is not needed any more" if is_copy else "remove it if no restore runs",
            command("rm", file.path),
        )


def user_name(uid: int) -> str:
    """The name of a user, or its number."""
    return _name(lambda: pwd.getpwuid(uid).pw_name, uid)


def group_name(gid: int) -> str:
    """The name of a group, or its number."""
    return _name(lambda: grp.getgrgid(gid).gr_name, gid)


def _name(look_up: Callable[[], str], number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)

"""Checks of the ledger's file and the files beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from pmm_shm.remedies import remedy
from pmm_shm_cli.doctor.checks.common import disk_room, group_name, user_name
from pmm_shm_cli.doctor.facts import SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, error, note, ok, one_line, warning

_WAL_BYTES_MAX = 64 << 20


def file_system(facts: SystemFacts) -> Iterator[Verdict]:
    """SQLite needs shared memory and locks, which a network file system has not."""
    disk = facts.ledger.disk
    if disk.network is not None:
        yield error(
            f"the ledger is on {disk.network}: {disk.directory}",
            "a network file system lacks the shared memory and the locks that SQLite needs: data can be lost",
            remedy("leave-network"),
        )
    elif disk.is_memory:
        yield note(
            f"the ledger is in memory: {disk.directory}", "a reboot removes it", remedy("back-up", ledger=facts.path)
        )
    else:
        yield ok(f"the ledger is on a local file system: {disk.directory}", "locks and maps work there")


def path(facts: SystemFacts) -> Iterator[Verdict]:
    """A symbolic link is resolved once, when a program opens the ledger."""
    if facts.named != facts.path:
        yield note(
            f"{facts.named} leads through a symbolic link to {facts.path}",
            "a program that runs keeps the ledger that the link led to when it began: one that is switched is not "
            "followed",
            remedy("start-again"),
        )


def mount(facts: SystemFacts) -> Iterator[Verdict]:
    """SQLite finds the `-wal` and the journal by the name of the ledger: each place of the file has its own."""
    ledger = facts.ledger
    if ledger.is_mounted_alone:
        is_rollback = ledger.rows is not None and ledger.rows.journal not in ("wal", "off")
        yield (warning if is_rollback else error)(
            f"{facts.path} is mounted as a single file",
            "after a crash, others do not see its journal, and read half a transaction"
            if is_rollback
            else "others' commits are not seen here, and commits made here can be lost: it is neither read nor written",
            remedy("mount-folder"),
        )
    elif ledger.file is not None and ledger.file.names > 1:
        yield warning(
            f"{facts.path} has {ledger.file.names} names (hard links)",
            "programs that use different names have different -wal files, and destroy each other's commits",
            remedy("one-name", ledger=facts.path),
        )


def room(facts: SystemFacts) -> Iterator[Verdict]:
    yield from disk_room("the ledger", facts.ledger.disk)


def mode(facts: SystemFacts) -> Iterator[Verdict]:
    """Who may read and write the ledger."""
    if facts.ledger.file is None:
        return
    file = facts.ledger.file
    users = "everybody" if file.mode & stat.S_IROTH else f"group {group_name(file.gid)}"
    if not file.mode & (stat.S_IRGRP | stat.S_IROTH):
        users = "nobody else"
    is_foreign = facts.ledger.rows is not None and facts.ledger.rows.shape is not None
    found = f"mode {file.mode:04o}: read by user {user_name(file.uid)} and {users}"
    # Where files have no modes of their own, those of the mount count.
    protect = remedy("protect", ledger=file.path) if facts.ledger.disk.plain is None else remedy("mount-protected")
    if file.mode & stat.S_IWOTH:
        can = "change this log" if is_foreign else "change what the agent believes"
        yield warning(found, f"any user of this machine can {can}", protect)
    elif file.mode & stat.S_IROTH and is_foreign:
        yield ok(found, "whoever may read it may read the shared state, too; its mode is for its program to choose")
    elif file.mode & stat.S_IROTH:
        yield note(found, "any user of this machine can read what the agent remembers", protect)
    else:
        yield ok(found, "only users who may read the ledger may read the shared state")


def access(facts: SystemFacts) -> Iterator[Verdict]:
    """What this user may do with the ledger."""
    if facts.ledger.file is None:
        return
    file, directory, user = facts.ledger.file, facts.ledger.directory, facts.machine.user
    is_foreign = facts.ledger.rows is not None and facts.ledger.rows.shape is not None
    if not file.is_readable:
        yield error(
            f"{user} may not read {file.path}",
            "it cannot be read from here",
            remedy("join-to-read", ledger=file.path, group=group_name(file.gid), user=user),
        )
    elif not file.is_writable or (directory is not None and not directory.is_writable):
        yield note(
            f"{user} may not write {file.path if not file.is_writable else os.path.dirname(file.path)}",
            "no appends from here; a ledger in WAL mode is readable only while a process that may write has it open",
            remedy("leave-to-owner")
            if is_foreign
            else remedy("mount-writable", user=user)
            if facts.ledger.disk.is_read_only
            else remedy("join-to-write", ledger=file.path, group=group_name(file.gid), user=user),
        )
    elif facts.ledger.rows is not None and facts.ledger.rows.replica_of is not None:
        yield ok(f"{user} may read it", "appends go to PostgreSQL: it is a replica")
    elif facts.ledger.rows is not None and facts.ledger.rows.refusal is not None:
        yield note(
            f"{user} may read it, and nobody but its owner's program can append",
            one_line(facts.ledger.rows.refusal),
            remedy("leave-to-owner"),
        )
    else:
        yield ok(f"{user} may read and write it", "reads and appends work from here")


def side_files(facts: SystemFacts) -> Iterator[Verdict]:
    """The group that may use the ledger must be able to open SQLite's files beside it."""
    if facts.ledger.file is None:
        return
    file, group = facts.ledger.file, group_name(facts.ledger.file.gid)
    for side in facts.ledger.side_files.values():
        missing = file.mode & ~side.mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH)
        if side.gid != file.gid or missing:
            yield warning(
                f"{side.path} has mode {side.mode:04o} and group {group_name(side.gid)}, the ledger {file.mode:04o} "
                f"and {group}",
                "users who share the ledger through its group cannot open it",
                remedy("align-side-file", file=side.path, group=group, mode=f"{file.mode:o}"),
            )


def wal_size(facts: SystemFacts) -> Iterator[Verdict]:
    wal = facts.ledger.side_files.get("-wal")
    if wal is not None and wal.size_bytes > _WAL_BYTES_MAX:
        yield warning(
            f"{wal.path} holds {wal.size_bytes >> 20:,} MiB",
            "a reader that stays in its transaction keeps SQLite from reusing the file; reads become slower",
            remedy("empty-wal", ledger=facts.path),
        )


def replaced(facts: SystemFacts) -> Iterator[Verdict]:
    """Processes that still use a file which was replaced or removed."""
    for user in facts.users:
        if user.is_old and user.path == facts.path:
            yield warning(
                f"process {user.pid} ({user.name}) has a file open that was replaced or removed at {user.path}",
                "it reads, and may write, events that nobody else sees; pmm-shm's own processes let go with their next "
                "read",
                remedy("end-user-of-old-file", pid=user.pid),
            )


def leftovers(facts: SystemFacts) -> Iterator[Verdict]:
    """Copies that a restore made."""
    for file in facts.ledger.leftovers:
        found = f"{file.path} ({file.size_bytes >> 10:,} KiB)"
        if ".before-restore-" in file.path[len(facts.path) :]:
            yield note(found, "the content of the ledger before a restore", remedy("remove-copy", file=file.path))
        else:
            yield note(found, "of a restore that was killed, or still runs", remedy("remove-stage", file=file.path))

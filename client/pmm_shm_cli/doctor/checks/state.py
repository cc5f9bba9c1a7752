"""Checks of the instance directory and the files in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pmm_shm.instance import making, run_reports
from pmm_shm.instance.paths import DATA_FILE, LOCK_TABLE_FILE
from pmm_shm.remedies import remedy
from pmm_shm_cli.doctor.checks.common import disk_room, ledger_group
from pmm_shm_cli.doctor.facts import File, SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, error, note, ok, one_line, warning

_LOG_BYTES_MAX = 100 << 20


def file_system(facts: SystemFacts) -> Iterator[Verdict]:
    """LMDB needs shared memory and locks, which a network file system has not."""
    disk = facts.state.disk
    if disk.network is not None:
        yield error(
            f"the shared state is on {disk.network}: {disk.directory}",
            "a network file system lacks the shared memory and the locks that LMDB needs",
            remedy("move-state"),
        )
    elif is_plain(facts):
        yield error(
            f"the shared state is on {disk.plain}: {disk.directory}",
            "a file system without sockets and permissions: no daemon can serve there; reads are exact without one",
            remedy("move-state"),
        )
    else:
        yield ok(f"the shared state is on a local file system: {disk.directory}", "locks and maps work there")


def is_plain(facts: SystemFacts) -> bool:
    """Whether the shared state is on a file system that has neither sockets nor permissions.

    If a daemon answers, the file system has both: NTFS can be mounted with them.
    """
    return facts.state.disk.plain is not None and facts.state.daemon is None


def room(facts: SystemFacts) -> Iterator[Verdict]:
    yield from disk_room("the shared state", facts.state.disk)


def directory(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether clients trust the instance directory, and who may use it."""
    state = facts.state
    name, found = str(state.instance.directory), state.directory
    excess = 0 if found is None or state.allowed_mode is None else found.mode & ~state.allowed_mode & 0o777
    if found is None:
        yield ok(f"{name} does not exist yet", "the daemon makes it; reads are exact without it")
    elif state.distrust is not None and is_plain(facts):
        # Said by `file_system`.
        return
    elif state.distrust is not None:
        yield error(
            one_line(state.distrust),
            "clients ignore it and fold the log themselves",
            remedy("remake-state", directory=name, ledger=facts.path),
        )
    elif state.is_closed:
        yield warning(
            f"{facts.machine.user} may not look into {name}",
            "reads from here fold the log themselves, and no command reaches the daemon",
            remedy("join-ledgers-group", group=ledger_group(facts), user=facts.machine.user),
        )
    elif excess:
        yield warning(
            f"{name} has mode {found.mode:04o}, wider than that of the ledger",
            "users who may not read the ledger may read the shared state",
            remedy("narrow", mode=f"{found.mode & 0o777 & ~excess:o}", file=name),
        )
    else:
        yield ok(f"{name}, mode {found.mode:04o}", "only its owner writes it")


def files(facts: SystemFacts) -> Iterator[Verdict]:
    """Owner, kind and mode of each file."""
    for entry in _entries(facts):
        is_lock_table = os.path.basename(entry.path) == LOCK_TABLE_FILE
        allowed = making.LOCK_TABLE_MODE if is_lock_table else making.DATA_MODE
        if entry.kind == "link" or entry.uid != _owner(facts):
            yield error(
                f"{entry.path} is {'a symbolic link' if entry.kind == 'link' else 'of another user'}",
                "no daemon starts with it: somebody could have it write elsewhere",
                remedy("remove-foreign", file=entry.path),
            )
        elif entry.kind == "file" and entry.mode & ~allowed:
            yield warning(
                f"{entry.path} has mode {entry.mode:04o}; {allowed:04o} is the widest it may have",
                "more users may read or write it than should",
                remedy("narrow", mode=f"{entry.mode & allowed:o}", file=entry.path),
            )
        if is_lock_table and entry.kind == "file" and not entry.is_writable:
            yield warning(
                f"{facts.machine.user} may not write {entry.path}",
                "LMDB's readers register there: reads from here fold the log themselves",
                remedy("join-group", group=ledger_group(facts), user=facts.machine.user),
            )


def daemon_log(facts: SystemFacts) -> Iterator[Verdict]:
    for entry in _entries(facts):
        if entry.path == str(facts.state.instance.log_file) and entry.size_bytes > _LOG_BYTES_MAX:
            yield note(
                f"{entry.path} holds {entry.size_bytes >> 20:,} MiB",
                "the log of a daemon that a client started; nothing shortens it",
                remedy("empty-log", file=entry.path),
            )


def leftovers(facts: SystemFacts) -> Iterator[Verdict]:
    for entry in _entries(facts):
        is_of_pmm = os.path.basename(entry.path).startswith(run_reports.PREFIX)
        if entry.path.endswith(".new") and facts.state.daemon is None and not is_of_pmm:
            yield note(
                entry.path,
                "a daemon was killed while it wrote this; its next start overwrites it",
                remedy("start", ledger=facts.path),
            )


def boot_mark(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether the next daemon can take over what the last one left."""
    state = facts.state
    if state.daemon is not None:
        return
    start = remedy("start", ledger=facts.path)
    has_data = any(entry.path == str(state.instance.data_file) for entry in state.entries)
    if state.openings > 1:
        yield warning(
            f"{state.openings} daemons in a row ended while opening {DATA_FILE}",
            "it may be damaged: the next start rebuilds it from the ledger, and computed text vectors are lost",
            start,
        )
    elif state.openings:
        yield note(
            f"1 daemon in a row ended while opening {DATA_FILE}",
            "it was killed, or the file is damaged: the next start tries once more",
            start,
        )
    elif not state.is_trusted and has_data:
        yield note(
            "the shared state was left without a clean stop before the last boot, or copied from elsewhere",
            "it may be damaged: readers fold the log themselves until a daemon has rebuilt it",
            start,
        )


def _entries(facts: SystemFacts) -> tuple[File, ...]:
    """The files of a directory that clients trust and this user can read."""
    state = facts.state
    if state.directory is None or state.distrust is not None or state.is_closed:
        return ()
    return state.entries


def _owner(facts: SystemFacts) -> int | None:
    return None if facts.state.directory is None else facts.state.directory.uid

"""Checks of LMDB's environment and its readers."""

from __future__ import annotations

from collections.abc import Iterator

from pmm_shm import limits
from pmm_shm.instance.paths import DATA_FILE
from pmm_shm.remedies import remedy
from pmm_shm_cli.doctor.checks.common import restart
from pmm_shm_cli.doctor.facts import ReaderSlot, SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, error, note, ok, one_line, warning

_FULL_SHARE = 0.9
_BEHIND_COMMITS = 1_000
_PINNED = "pages that it may still read are not reused: the data file grows, and rebuilds wait"


def readable(facts: SystemFacts) -> Iterator[Verdict]:
    if facts.state.store_problem is not None:
        yield error(
            one_line(facts.state.store_problem),
            "readers here cannot use the published state, and fold the log themselves; a restart rebuilds what is "
            "damaged, and a missing permission comes with the ledger's group",
            restart(facts),
        )


def map_size(facts: SystemFacts) -> Iterator[Verdict]:
    """How full the memory map is."""
    store = facts.state.store
    if store is None:
        return
    used, size = store.used_bytes >> 20, store.map_bytes >> 20
    if store.used_bytes > store.map_bytes * _FULL_SHARE:
        yield warning(
            f"{used:,} of {size:,} MiB of the map are used",
            "the daemon enlarges it when it is full, and readers then wait briefly; the default size costs no disk",
            restart(facts),
        )
    else:
        yield ok(f"{used:,} MiB used of a map of {size:,} MiB", "address space, not disk")


def reader_slots(facts: SystemFacts) -> Iterator[Verdict]:
    """How many processes and threads can still register as readers."""
    state = facts.state
    if state.store is None:
        return
    used, size = len(state.store.readers), state.store.readers_max
    if used < size * _FULL_SHARE:
        yield ok(f"{used:,} of {size:,} are taken", "more readers fit in")
        return
    yield (error if used >= size else warning)(
        f"{used:,} of {size:,} reader slots are taken",
        "a process without one folds the log itself",
        remedy("fewer-users", file=state.instance.data_file),
    )


def dead_readers(facts: SystemFacts) -> Iterator[Verdict]:
    for pid in sorted({reader.pid for reader in _readers(facts) if reader.state is None}):
        yield note(
            f"process {pid} died and left its reader slots",
            f"the daemon clears them within {limits.DEAD_READERS_CHECK_S:g} s; until then they may keep old pages",
            restart(facts),
        )


def same_pids(facts: SystemFacts) -> Iterator[Verdict]:
    """Processes of several pid namespaces with one pid: LMDB takes them for one reader."""
    users: dict[int, dict[int, str]] = {}
    for user in facts.users:
        if user.inner_pid is not None:
            users.setdefault(user.inner_pid, {})[user.pid] = user.name
    for inner, found in sorted(users.items()):
        if len(found) > 1:
            named = ", ".join(f"{pid} ({name})" for pid, name in sorted(found.items()))
            yield warning(
                f"the processes {named} have the same pid, {inner}, each in another pid namespace",
                "LMDB tells readers apart by it: only one of them reads the published state, the others replay the log",
                remedy("share-pids"),
            )


def stale_readers(facts: SystemFacts) -> Iterator[Verdict]:
    """Readers that stay in an old transaction."""
    for reader in _readers(facts):
        if reader.state is None or reader.behind is None:
            continue
        if reader.state in ("T", "t"):
            yield warning(
                f"process {reader.pid} was stopped by a signal while it read, {reader.behind:,} commits ago",
                _PINNED,
                remedy("continue-process", pid=reader.pid),
            )
        elif reader.behind > _BEHIND_COMMITS:
            yield warning(
                f"process {reader.pid} reads a state of {reader.behind:,} commits ago",
                _PINNED,
                remedy("end-process", pid=reader.pid),
            )


def room(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether a rebuild, which writes a second state, has room."""
    state = facts.state
    if state.store is None or state.disk.free_bytes is None:
        return
    needed = next((entry.size_bytes for entry in state.entries if entry.path == str(state.instance.data_file)), 0)
    if limits.DISK_FULL_BYTES <= state.disk.free_bytes < needed:
        yield warning(
            f"{state.disk.free_bytes >> 20:,} MiB free, and the state has {needed >> 20:,} MiB",
            "a rebuild writes the new state beside the old one: the room may not suffice",
            remedy("make-room-for-state", directory=state.instance.directory),
        )


def replaced(facts: SystemFacts) -> Iterator[Verdict]:
    """Processes that keep a removed environment open."""
    for user in facts.users:
        if user.is_old and user.path == str(facts.state.instance.data_file):
            yield note(
                f"process {user.pid} ({user.name}) has a {DATA_FILE} open that was removed",
                "it keeps that disk space until its next read",
                remedy("end-process", pid=user.pid),
            )


def _readers(facts: SystemFacts) -> tuple[ReaderSlot, ...]:
    return () if facts.state.store is None else facts.state.store.readers

"""Judgements of the instance directory, the store in it, the daemon and its sockets: pure functions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonTimeoutError
from pmm_shm.instance import access
from pmm_shm.instance.paths import DATA_FILE, LOCK_TABLE_FILE
from pmm_shm_cli.doctor.facts import Facts, State, Store
from pmm_shm_cli.doctor.finding import Finding, command, one_line
from pmm_shm_cli.doctor.ledger_checks import disk_findings

_LONGEST_SOCKET = "announcements.sock"
_READERS_SHARE = 0.9
_BEHIND_COMMITS = 1_000
_LOG_BYTES_MAX = 100 << 20


def state_findings(facts: Facts) -> Iterator[Finding]:
    """Everything about the instance directory and who publishes in it."""
    state = facts.state
    if state is None:
        return
    yield from disk_findings("state-file-system", "the shared state", state.disk, facts.path)
    yield from _directory(facts, state)
    yield from _marks(facts, state)
    yield from _daemon(facts, state)
    yield from _versions(facts, state)
    yield from _elsewhere(facts, state)
    yield from _sockets(facts, state)
    yield from _store(facts, state)
    yield from _old_readers(facts, state)


def start(facts: Facts) -> str:
    """The command that starts a daemon."""
    return command("pmm-cached", facts.path)


def _directory(facts: Facts, state: State) -> Iterator[Finding]:
    name, directory = str(state.instance.directory), state.directory
    if directory is None:
        yield Finding(
            "state-directory", "ok", f"{name} is not there yet", "the daemon makes it; reads are exact without"
        )
        return
    if state.distrust is not None:
        yield Finding(
            "state-directory",
            "error",
            one_line(state.distrust),
            "clients take nothing from it and fold the log by themselves, and no daemon starts there",
            "remove it (it is a cache), then start the daemon",
            f"{command('rm', '-r', name)} && {start(facts)}",
        )
        return
    if state.is_closed:
        yield Finding(
            "state-directory",
            "warning",
            f"{facts.machine.user} may not look into {name}",
            "reads from here fold the log by themselves, and no command reaches the daemon",
            "join the ledger's group, let that group read the ledger, and start the daemon anew",
            command("usermod", "-aG", facts_group(facts), facts.machine.user),
        )
        return
    excess = 0 if state.allowed_mode is None else directory.mode & ~state.allowed_mode & 0o777
    if excess:
        yield Finding(
            "state-directory",
            "warning",
            f"{name} has mode {directory.mode:04o}, wider than the ledger lets it be",
            "somebody may read the shared state who may not read the ledger",
            "narrow it; the daemon's next start does so, too",
            command("chmod", f"{directory.mode & 0o777 & ~excess:o}", name),
        )
    else:
        yield Finding("state-directory", "ok", f"{name}, mode {directory.mode:04o}", "its owner alone writes it")
    yield from _entries(facts, state)


def facts_group(facts: Facts) -> str:
    """The name of the ledger's group."""
    from pmm_shm_cli.doctor.ledger_checks import group_name

    file = None if facts.ledger is None else facts.ledger.file
    return "GROUP" if file is None else group_name(file.gid)


def _entries(facts: Facts, state: State) -> Iterator[Finding]:
    assert state.directory is not None
    for entry in state.entries:
        allowed = access.LOCK_TABLE_MODE if os.path.basename(entry.path) == LOCK_TABLE_FILE else access.DATA_MODE
        if entry.kind == "link" or entry.uid != state.directory.uid:
            yield Finding(
                "state-files",
                "error",
                f"{entry.path} is {'a symbolic link' if entry.kind == 'link' else 'of another user'}",
                "no daemon starts with it: somebody could have it write elsewhere",
                "remove it",
                command("rm", entry.path),
            )
        elif entry.kind == "file" and entry.mode & ~allowed:
            yield Finding(
                "state-files",
                "warning",
                f"{entry.path} has mode {entry.mode:04o}; {allowed:04o} is the widest it may have",
                "somebody may read or write it who may not",
                "narrow it; the daemon's next start does so, too",
                command("chmod", f"{entry.mode & allowed:o}", entry.path),
            )
        if os.path.basename(entry.path) == LOCK_TABLE_FILE and entry.kind == "file" and not entry.is_writable:
            yield Finding(
                "state-files",
                "warning",
                f"{facts.machine.user} may not write {entry.path}",
                "LMDB's readers register there: reads from here fold the log by themselves",
                "join the group of the instance directory",
                command("usermod", "-aG", facts_group(facts), facts.machine.user),
            )
        if entry.path == str(state.instance.log_file) and entry.size_bytes > _LOG_BYTES_MAX:
            yield Finding(
                "daemon-log",
                "note",
                f"{entry.path} holds {entry.size_bytes >> 20:,} MiB",
                "the log of a daemon that a client started; nobody shortens it",
                "empty it, or run the daemon as a service, whose log the journal keeps",
                command("truncate", "-s", "0", entry.path),
            )
        if entry.path.endswith(".new") and state.daemon is None:
            yield Finding(
                "leftover",
                "note",
                entry.path,
                "a daemon was killed while it wrote this",
                "the daemon's next start writes over it",
                start(facts),
            )


def _marks(facts: Facts, state: State) -> Iterator[Finding]:
    if state.openings and state.daemon is None:
        again = state.openings > 1
        yield Finding(
            "boot-mark",
            "warning" if again else "note",
            f"{state.openings} daemon{'s' if again else ''} in a row ended while opening {DATA_FILE}",
            "it may be damaged: the next start makes it anew, and computed text vectors are lost"
            if again
            else "it was killed, or the file is damaged: the next start tries once more",
            "start the daemon; the state is rebuilt from the ledger",
            start(facts),
        )
    elif (
        not state.is_trusted
        and state.daemon is None
        and any(entry.path == str(state.instance.data_file) for entry in state.entries)
    ):
        yield Finding(
            "boot-mark",
            "note",
            "the shared state was left without a clean stop before the last boot",
            "after a power loss nobody trusts it: readers fold the log by themselves",
            "start the daemon; it makes the state anew",
            start(facts),
        )


def _daemon(facts: Facts, state: State) -> Iterator[Finding]:
    if state.daemon is not None:
        yield from _health(facts, state)
    elif isinstance(state.failure, DaemonAbsentError) or state.failure is None:
        yield Finding(
            "daemon",
            "note",
            "no daemon serves this ledger",
            "reads are exact without one; each process folds the log by itself",
            "start one",
            start(facts),
        )
    elif isinstance(state.failure, DaemonTimeoutError):
        is_stopped = state.daemon_state in ("T", "t")
        pid = state.daemon_pid if state.daemon_pid is not None else "PID"
        yield Finding(
            "daemon",
            "error",
            f"the daemon (pid {pid}) {'was stopped by a signal' if is_stopped else 'does not answer'}",
            "nothing new is published; exact reads go on and become slower, commands run into their deadline",
            "let it go on" if is_stopped else "end it and start another; killing it harms nothing",
            command("kill", "-CONT", pid) if is_stopped else f"{command('kill', '-KILL', pid)} && {start(facts)}",
        )
    elif isinstance(state.failure, CommandError):
        yield Finding(
            "daemon",
            "error",
            one_line(state.failure),
            "the daemon refuses what this version asks: it is of another version",
            "start it anew with this installation",
            _restart(facts, state),
        )
    else:
        yield Finding(
            "daemon",
            "warning",
            one_line(state.failure),
            "the daemon cannot be asked from here; reads are exact nevertheless",
            "join the group of the instance directory",
            command("usermod", "-aG", facts_group(facts), facts.machine.user),
        )


def _restart(facts: Facts, state: State) -> str:
    if facts.machine.services:
        return command("systemctl", "restart", facts.machine.services[0].unit)
    pid = state.daemon_pid if state.daemon_pid is not None else "PID"
    return f"{command('kill', '-TERM', pid)} && {start(facts)}"


def _health(facts: Facts, state: State) -> Iterator[Finding]:
    assert state.daemon is not None
    health, reasons = str(state.daemon.get("health", "healthy")), state.daemon.get("health_reasons", [])
    if health == "healthy":
        yield Finding(
            "daemon",
            "ok",
            f"healthy, pid {state.daemon.get('pid')}, as of event {state.daemon.get('as_of')}",
            "what is published follows the log",
        )
        return
    yield Finding(
        "daemon",
        "warning",
        f"{health}: {one_line('; '.join(map(str, reasons)))}",
        "somebody should look at it" if health == "degraded" else "if it lasts, somebody should look at it",
        "see its numbers, the quarantine among them",
        command("pmm-shm", "status", facts.path),
    )


def _versions(facts: Facts, state: State) -> Iterator[Finding]:
    if state.daemon is None:
        return
    ours = facts.machine.versions
    names = ("version", "format", "protocol")
    theirs = {name: state.daemon.get(name) for name in names}
    different = [
        f"{name} {theirs[name] if theirs[name] is not None else 'untold'} of the daemon, {ours[name]} here"
        for name in names
        if theirs[name] != ours[name]
    ]
    if not different:
        yield Finding(
            "versions",
            "ok",
            f"daemon and client are pmm-shm {ours['version']}, format {ours['format']}, protocol {ours['protocol']}",
            "they fit",
        )
        return
    yield Finding(
        "versions",
        "warning",
        ", ".join(different),
        "where formats or folds differ, reads from here fold the log by themselves",
        "start the daemon anew after an update, and the workers with it",
        _restart(facts, state),
    )


def _elsewhere(facts: Facts, state: State) -> Iterator[Finding]:
    ours = facts.machine.variables.get("PMM_SHM_DIR", "")
    for user in facts.users:
        if not user.is_daemon or user.path != facts.path or user.is_old or user.pid == state.daemon_pid:
            continue
        there = "PMM_SHM_DIR there" if user.shm_dir is None else f"PMM_SHM_DIR={user.shm_dir}"
        # A daemon that starts has the ledger open before its sockets are recorded.
        if user.shm_dir is not None and user.shm_dir == ours:
            continue
        yield Finding(
            "daemon-elsewhere",
            "warning",
            f"daemon {user.pid} serves this ledger with {there or 'no PMM_SHM_DIR'}, this shell has {ours or 'none'}",
            "what it publishes is not found from here: reads fold the log by themselves",
            "use the same PMM_SHM_DIR for the daemon and all workers",
            f"export PMM_SHM_DIR={shlex.quote(user.shm_dir)}" if user.shm_dir else "unset PMM_SHM_DIR",
        )


def _sockets(facts: Facts, state: State) -> Iterator[Finding]:
    directory = state.instance.directory
    length = len(os.fsencode(directory / _LONGEST_SOCKET))
    if length > limits.SOCKET_PATH_BYTES_MAX:
        where = os.path.dirname(state.recorded[0]) if state.recorded else "a directory in $XDG_RUNTIME_DIR or $TMPDIR"
        yield Finding(
            "socket-path",
            "note",
            f"a socket's path would have {length} bytes in {directory}; {limits.SOCKET_PATH_BYTES_MAX} are the limit",
            f"the daemon's sockets lie elsewhere, and clients find them by the record: {where}",
            "for sockets beside the state, use a shorter path",
            "export PMM_SHM_DIR=/run/pmm",
        )
    else:
        yield Finding(
            "socket-path", "ok", f"{length} of {limits.SOCKET_PATH_BYTES_MAX} bytes", "the sockets lie beside the state"
        )
    for socket in state.sockets:
        if socket.state == "silent":
            yield Finding(
                "stale-socket",
                "note",
                f"nobody listens on {socket.path}",
                "a daemon was killed; clients notice at once, and the next one makes it anew",
                "start the daemon, or remove the socket",
                command("rm", socket.path),
            )
        elif socket.state == "absent" and state.daemon is not None:
            yield Finding(
                "stale-socket",
                "warning",
                f"{socket.path} is recorded and not there",
                "somebody removed it under the running daemon: no command arrives there",
                "start the daemon anew",
                _restart(facts, state),
            )


def _store(facts: Facts, state: State) -> Iterator[Finding]:
    if state.store_problem is not None:
        yield Finding(
            "store",
            "error",
            one_line(state.store_problem),
            "readers here cannot use what is published, and fold the log by themselves",
            "where it is a permission, join the group; where it is damage, start the daemon anew: it rebuilds",
            _restart(facts, state),
        )
    if state.store is None:
        return
    store = state.store
    yield from _map(facts, state, store)
    yield from _slots(facts, state, store)
    needed = next((entry.size_bytes for entry in state.entries if entry.path == str(state.instance.data_file)), 0)
    if state.disk.free_bytes is not None and limits.DISK_FULL_BYTES <= state.disk.free_bytes < needed:
        yield Finding(
            "state-room",
            "warning",
            f"{state.disk.free_bytes >> 20:,} MiB free, and the state has {needed >> 20:,} MiB",
            "a rebuild writes the new state beside the old one: it may not find room",
            "make room, or set PMM_SHM_DIR to a directory on another disk",
            command("df", "-h", state.instance.directory),
        )


def _map(facts: Facts, state: State, store: Store) -> Iterator[Finding]:
    share = store.used_bytes / store.map_bytes
    if share > _READERS_SHARE:
        yield Finding(
            "map-size",
            "warning",
            f"{store.used_bytes >> 20:,} of {store.map_bytes >> 20:,} MiB of the map are used",
            "the daemon makes it larger when it is full; readers then wait for a moment",
            "start the daemon with its default, which costs no disk",
            f"{command('kill', '-TERM', state.daemon_pid or 'PID')} && {start(facts)}",
        )
    else:
        yield Finding(
            "map-size",
            "ok",
            f"{store.used_bytes >> 20:,} MiB used of a map of {store.map_bytes >> 20:,} MiB",
            "address space, not disk",
        )


def _slots(facts: Facts, state: State, store: Store) -> Iterator[Finding]:
    used = len(store.readers)
    if used >= store.readers_max * _READERS_SHARE:
        yield Finding(
            "reader-slots",
            "error" if used >= store.readers_max else "warning",
            f"{used:,} of {store.readers_max:,} reader slots are taken",
            "a process that finds none folds the log by itself",
            "use fewer processes and threads for one ledger; these have it open",
            command("fuser", "-v", state.instance.data_file),
        )
    else:
        yield Finding("reader-slots", "ok", f"{used:,} of {store.readers_max:,} are taken", "there is room for more")
    for reader in store.readers:
        if reader.state is None:
            yield Finding(
                "dead-reader",
                "note",
                f"process {reader.pid} died and left a reader slot",
                f"the daemon clears it within {limits.DEAD_READERS_CHECK_S:g} s; until then it may keep old pages",
                "where it stays, start the daemon anew",
                _restart(facts, state),
            )
        elif reader.behind is not None and reader.state in ("T", "t"):
            yield Finding(
                "stale-reader",
                "warning",
                f"process {reader.pid} was stopped by a signal while it read, {reader.behind:,} commits ago",
                "pages that it may still read are not used again: the data file grows, and rebuilds wait",
                "let it go on, or end it",
                command("kill", "-CONT", reader.pid),
            )
        elif reader.behind is not None and reader.behind > _BEHIND_COMMITS:
            yield Finding(
                "stale-reader",
                "warning",
                f"process {reader.pid} reads a state of {reader.behind:,} commits ago",
                "pages that it may still read are not used again: the data file grows, and rebuilds wait",
                "end it where it does not come on",
                command("kill", "-TERM", reader.pid),
            )


def _old_readers(facts: Facts, state: State) -> Iterator[Finding]:
    for user in facts.users:
        if user.is_old and user.path == str(state.instance.data_file):
            yield Finding(
                "replaced-file",
                "note",
                f"process {user.pid} ({user.name}) has a {DATA_FILE} open that was removed",
                "it keeps that disk space until its next read",
                "where it does not read again, start that program anew",
                command("kill", "-TERM", user.pid),
            )

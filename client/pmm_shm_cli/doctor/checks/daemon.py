"""Checks of the daemon and its sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonTimeoutError
from pmm_shm.remedies import remedy
from pmm_shm_cli.doctor.checks.common import ledger_group, restart
from pmm_shm_cli.doctor.checks.state import is_plain
from pmm_shm_cli.doctor.facts import SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, error, note, ok, one_line, warning

_LONGEST_SOCKET = "announcements.sock"
_VERSIONS = ("version", "format", "protocol")


def answers(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether a daemon answers, and how it is."""
    state = facts.state
    failure, daemon = state.failure, {"ledger": facts.path, "daemon": state.daemon_pid}
    if state.daemon is not None:
        yield from _health(facts)
    elif isinstance(failure, DaemonAbsentError) or failure is None:
        yield note(
            "no daemon serves this ledger",
            "reads are exact without one; each process folds the log itself",
            remedy("move-state") if is_plain(facts) else remedy("start", ledger=facts.path),
        )
    elif isinstance(failure, DaemonTimeoutError):
        is_stopped = state.daemon_state in ("T", "t")
        pid = state.daemon_pid if state.daemon_pid is not None else "PID"
        yield error(
            f"the daemon (pid {pid}) {'was stopped by a signal' if is_stopped else 'does not answer'}",
            "nothing new is published; exact reads still work but become slower, commands time out",
            remedy("continue-process", pid=pid) if is_stopped else remedy("replace-daemon", **daemon),
        )
    elif isinstance(failure, CommandError):
        yield error(
            one_line(failure), "the daemon is of another version and refuses this version's request", restart(facts)
        )
    elif is_plain(facts):
        yield note("no daemon can serve this ledger", "each process folds the log itself", remedy("move-state"))
    else:
        yield warning(
            one_line(failure),
            "the daemon cannot be asked from here; reads are exact nevertheless",
            remedy("join-group", group=ledger_group(facts), user=facts.machine.user),
        )


def _health(facts: SystemFacts) -> Iterator[Verdict]:
    assert facts.state.daemon is not None
    daemon = facts.state.daemon
    health, reasons = str(daemon.get("health", "healthy")), daemon.get("health_reasons", [])
    if health == "healthy":
        yield ok(
            f"healthy, pid {daemon.get('pid')}, as of event {daemon.get('as_of')}", "what is published follows the log"
        )
    else:
        yield warning(
            f"{health}: {one_line('; '.join(map(str, reasons)))}",
            "somebody should look at it" if health == "degraded" else "if it lasts, somebody should look at it",
            remedy("see-status", ledger=facts.path),
        )


def source(facts: SystemFacts) -> Iterator[Verdict]:
    """The source of a replica, and what it has lost."""
    rows, daemon = facts.ledger.rows, facts.state.daemon
    if rows is None or rows.replica_of is None:
        return
    replica = None if daemon is None else daemon.get("replica")
    if replica is None:
        yield warning(
            f"it is a replica of {rows.replica_of!r} in PostgreSQL, and no daemon here follows it",
            "reads are exact for what it has; appends wait until somebody follows, or their timeout",
            remedy("follow-source", ledger=facts.path),
        )
        return
    silent_ms = replica["lag_ms"] if replica["looked_ms"] is None else replica["looked_ms"]
    if replica["problem"] or not replica["is_running"] or silent_ms > limits.REPLICA_LAG_MS_MAX:
        reason = "the follower stands still" if replica["is_running"] else "the follower ended"
        yield warning(
            f"its source {replica['name']!r} was not confirmed for {silent_ms:,} ms: "
            f"{one_line(replica['problem'] or reason)}",
            "reads are those of the last look; the daemon tries again by itself unless somebody has to decide",
            remedy("see-status", ledger=facts.path),
        )
    else:
        where = f"{replica['server']}, timeline {replica['timeline']}"
        yield ok(
            f"follows {replica['name']!r} on {where}; lag {replica['lag_events']:,} events, {replica['lag_ms']:,} ms",
            "appends of all hosts arrive",
        )
    if replica["lost_files"]:
        yield note(
            f"{len(replica['lost_files'])} file(s) hold events that PostgreSQL has lost at a failover",
            "they were acknowledged, and are in no log any more",
            remedy("see-forks", ledger=facts.path),
        )


def versions(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether daemon and client fit."""
    if facts.state.daemon is None:
        return
    ours, theirs = facts.machine.versions, {name: facts.state.daemon.get(name) for name in _VERSIONS}
    different = [
        f"{name} {theirs[name] if theirs[name] is not None else 'unknown'} of the daemon, {ours[name]} here"
        for name in _VERSIONS
        if theirs[name] != ours[name]
    ]
    if different:
        yield warning(
            ", ".join(different),
            "if formats or folds differ, reads from here fold the log themselves; after an update, restart the daemon "
            "and the workers",
            restart(facts),
        )
    else:
        yield ok(
            f"daemon and client are pmm-shm {ours['version']}, format {ours['format']}, protocol {ours['protocol']}",
            "they fit",
        )


def elsewhere(facts: SystemFacts) -> Iterator[Verdict]:
    """Daemons that publish for this ledger in another instance directory."""
    ours = facts.machine.variables.get("PMM_SHM_DIR", "")
    for user in facts.users:
        if not user.is_daemon or user.path != facts.path or user.is_old or user.pid == facts.state.daemon_pid:
            continue
        # A daemon that starts opens the ledger before it records its sockets.
        if user.shm_dir is not None and user.shm_dir == ours:
            continue
        there = "PMM_SHM_DIR there" if user.shm_dir is None else f"PMM_SHM_DIR={user.shm_dir}"
        yield warning(
            f"daemon {user.pid} serves this ledger with {there or 'no PMM_SHM_DIR'}, this shell has {ours or 'none'}",
            "its published state is not found from here: reads fold the log themselves",
            remedy("same-directory", shm_dir=user.shm_dir) if user.shm_dir else remedy("no-directory"),
        )


def socket_path(facts: SystemFacts) -> Iterator[Verdict]:
    """The system limits the length of a socket's path."""
    state = facts.state
    directory = state.instance.directory
    length = len(os.fsencode(directory / _LONGEST_SOCKET))
    if length > limits.SOCKET_PATH_BYTES_MAX:
        where = os.path.dirname(state.recorded[0]) if state.recorded else "a directory in $XDG_RUNTIME_DIR or $TMPDIR"
        yield note(
            f"a socket's path would have {length} bytes in {directory}; {limits.SOCKET_PATH_BYTES_MAX} are the limit",
            f"the daemon's sockets are elsewhere, and clients find them by the record: {where}",
            remedy("shorten-state"),
        )
    else:
        yield ok(f"{length} of {limits.SOCKET_PATH_BYTES_MAX} bytes", "the sockets are beside the state")


def stale_sockets(facts: SystemFacts) -> Iterator[Verdict]:
    """Sockets without a listener, and recorded ones that were removed."""
    state = facts.state
    for socket in state.sockets:
        if socket.state == "silent":
            yield note(
                f"nobody listens on {socket.path}",
                "a daemon was killed; clients notice at once, and the next daemon makes a new socket",
                remedy("remove-socket", file=socket.path),
            )
        elif socket.state == "absent" and state.daemon is not None:
            yield warning(
                f"{socket.path} is recorded but does not exist",
                "somebody removed it under the running daemon: no command arrives there",
                restart(facts),
            )

"""Stops a ledger's daemon by a signal to the process that listens on its socket."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct

from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonError, DaemonTimeoutError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.endpoints import find_endpoints

_CREDENTIALS = struct.Struct("3i")


def stop_daemon(instance: Instance, timeout_s: float) -> int:
    """Let the daemon finish its batch and end, and wait until it has. Returns its pid.

    Raises:
        DaemonAbsentError: no daemon serves this ledger.
        CommandError: it belongs to another user, or is outside this container.
        DaemonTimeoutError: it did not end within `timeout_s`.
    """
    path = find_endpoints(instance).commands
    pid = _listener(path)
    if not pid:
        raise CommandError(f"{instance.ledger}: its daemon is not visible from here; stop it in its own container")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise DaemonAbsentError(f"{instance.ledger}: the daemon (pid {pid}) has just ended") from None
    try:
        # The descriptor stays that of one process; the pid could have been reused before it was opened.
        if _listener(path) != pid:
            raise DaemonError(f"{instance.ledger}: another daemon began to serve it; try again")
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], timeout_s)[0]:
            raise DaemonTimeoutError(f"{instance.ledger}: the daemon (pid {pid}) did not end within {timeout_s:g} s")
    except PermissionError:
        raise CommandError(f"{instance.ledger}: the daemon (pid {pid}) belongs to another user") from None
    finally:
        os.close(process)
    return pid


def _listener(path: str) -> int | None:
    """The pid of the process that listens on a socket: 0 if this one cannot see it, None if none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
            found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    return int(_CREDENTIALS.unpack(found)[0])

"""One process of several runs the autonomy of a ledger: the one that holds the lock on `<ledger>-autonomy`.

The system gives the lock up with the process, however that ends, and the next process that asks gets it. It needs no
daemon: one process alone goes on without one. A process that is stopped keeps it.

The lock is of one host. On a replica of a log in PostgreSQL, its holder also needs the lease there, which it renews.
"""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING, Any

from pmm_shm import limits
from pmm_shm.late import late_imports

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache

ROLE = "autonomy"
SUFFIX = "-autonomy"
_lock = threading.Lock()
_held: dict[str, int] = {}
"""Real path of a ledger to the descriptor that holds its lock."""
_leases: dict[str, _HeldLease | None] = {}
"""The same to the lease of all hosts; None where the ledger is no replica."""


class _HeldLease:
    """A lease that a thread renews until the process ends."""

    def __init__(self, role: Any) -> None:
        self._role = role
        role.claim()
        threading.Thread(target=self._renew, name="pmm-shm-lease", daemon=True).start()

    def is_held(self) -> bool:
        return bool(self._role.is_held())

    def _renew(self) -> None:
        pause = threading.Event()
        while not pause.wait(limits.ROLE_LEASE_S / 4):
            try:
                self._role.claim()
            except Exception:
                # The rest of the lease still counts, and there will be another time.
                pass


def holds_role(ledger: str, cache: Cache) -> bool:
    """Whether this process runs the autonomy of a ledger; takes the role where nobody has it.

    Where the lock file cannot be made, every process has the role, as without the option.
    """
    if not holds_lock(ledger):
        return False
    with _lock:
        if ledger not in _leases:
            with late_imports:
                from pmm_shm.ledger.source.roles import SourceRole
            role = cache.role(ROLE)
            _leases[ledger] = _HeldLease(role) if isinstance(role, SourceRole) else None
        lease = _leases[ledger]
    return lease is None or lease.is_held()


def holds_lock(ledger: str) -> bool:
    """Whether this process holds the lock of this host; takes it where nobody has it."""
    path = ledger + SUFFIX
    with _lock:
        held = _held.get(ledger)
        if held is not None:
            if _is_at(path, held):
                return True
            # Somebody has removed the file: the lock excludes nobody any more.
            os.close(_held.pop(ledger))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        if not _is_at(path, descriptor):
            os.close(descriptor)
            return False
        _held[ledger] = descriptor
        return True


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _after_fork_in_child() -> None:
    # The descriptors are the parent's, too: they would keep the lock when it ends.
    global _lock
    _lock = threading.Lock()
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()
    _leases.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)

"""One process of several runs the autonomy of a ledger: the one that holds the lock on `<ledger>-autonomy`.

The system gives the lock up with the process, however that ends, and the next process that asks gets it. It needs no
daemon: one process alone goes on without one. A process that is stopped keeps it.
"""

from __future__ import annotations

import fcntl
import os
import threading

SUFFIX = "-autonomy"
_lock = threading.Lock()
_held: dict[str, int] = {}
"""Real path of a ledger to the descriptor that holds its lock."""


def holds_role(ledger: str) -> bool:
    """Whether this process runs the autonomy of a ledger; takes the role where nobody has it.

    Where the lock file cannot be made, every process has the role, as without the option.
    """
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


os.register_at_fork(after_in_child=_after_fork_in_child)

"""Says once where PMM has forked the chain of a ledger before; appends go on at the newest row all the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from hashlib import blake2b

from pmm_shm import flags
from pmm_shm.errors import PmmShmError
from pmm_shm.instance.paths import real_path
from pmm_shm.ledger.chain import forked_at
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.forks import find_forks
from pmm_shm_pmm import saying

_PAUSE_S = 0.005
"""Some times what a batch of rows takes."""

_said: set[str] = set()
_lock = threading.Lock()


def fork_notice(path: str | os.PathLike[str]) -> str | None:
    """One line about the forks of a ledger; None without any, and where it cannot be read.

    It takes about 10 microseconds per event, most of them asleep. It raises nothing, and changes nothing.
    """
    try:
        connection = Connection(path, "ro")
        try:
            forks = find_forks(connection, pause_s=_PAUSE_S)
        finally:
            connection.close()
    except (PmmShmError, OSError, ValueError):
        return None
    return None if forks.first is None else f"{connection.path}: {forked_at(forks.first, forks.total)}"


def say_once(path: str | os.PathLike[str], say: Callable[[str], object] | None = None) -> threading.Thread | None:
    """Look for forks in a thread, and give `say` the line about them, if there are any.

    Once per ledger and process, forked children included.

    Parameters:
        say: None to print the line on stderr, once for all processes of one `pmm-shm run`, and only there.

    Returns:
        the thread; None where nothing is to be said, or where no thread can be started.
    """
    if say is None and flags.run_pid() is None:
        return None
    try:
        name = real_path(path)
    except (OSError, ValueError):
        return None
    with _lock:
        if name in _said:
            return None
        _said.add(name)

    def look() -> None:
        notice = fork_notice(name)
        if notice is None:
            return
        if say is not None:
            say(notice)
        else:
            # The subject becomes part of an address, which is short.
            saying.say_once(f"forks-{blake2b(os.fsencode(name), digest_size=8).hexdigest()}", notice)

    thread = threading.Thread(target=look, name="pmm-shm-forks", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def _forget_lock() -> None:
    """In a forked child: another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)

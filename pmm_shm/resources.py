"""Whether this process has the file descriptors, threads and memory that an operation needs.

libzmq ends the process where it runs out of them. Python raises an `OSError` or `RuntimeError` that names neither the
limit nor its remedy. So operations that need them ask here first, and translate such errors here.
"""

from __future__ import annotations

import errno
import os
import threading

from pmm_shm.errors import ResourceLimitError

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_NO_THREAD = "can't start new thread"
_STACK_BYTES_MAX = 8 << 20
_MARGIN_BYTES = 4 << 20


def shortage_of(error: BaseException) -> str | None:
    """What this process has run out of, if that is what the error says."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        return _words(error.errno)
    if isinstance(error, ImportError) and os.strerror(errno.EMFILE) in str(error):
        # From the dynamic loader, for a module that is a library.
        return _words(errno.EMFILE)
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return _no_thread()
    return _words(errno.ENOMEM) if isinstance(error, MemoryError) else None


def shortage(descriptors: int = 1, threads: int = 0) -> str | None:
    """What this process lacks for so many more file descriptors and threads; None where it has them.

    It takes them and gives them back: 1 µs for a descriptor, 50 µs for a thread.
    """
    held: list[int] = []
    try:
        held.append(os.eventfd(0, os.EFD_CLOEXEC))
        while len(held) < descriptors:
            held.append(os.dup(held[0]))
    except OSError as error:
        return _words(error.errno)
    finally:
        for descriptor in held:
            os.close(descriptor)
    return _thread_shortage(threads) if threads else None


def require(what: str, descriptors: int = 1, threads: int = 0) -> None:
    """Raise where this process lacks so many more file descriptors and threads.

    Parameters:
        what: the beginning of the message.

    Raises:
        ResourceLimitError: it lacks them.
    """
    found = shortage(descriptors, threads)
    if found is not None:
        raise ResourceLimitError(f"{what}: {found}")


def _thread_shortage(count: int) -> str | None:
    over = threading.Event()
    started = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=over.wait, name="probe", daemon=True)
            thread.start()
            started.append(thread)
        # libzmq's threads have the system's stack size, whatever Python's have.
        stacks = count * _STACK_BYTES_MAX if threading.stack_size() else 0
        bytearray(stacks + _MARGIN_BYTES)
    except RuntimeError:
        return _no_thread()
    except (OSError, MemoryError):
        return _words(errno.ENOMEM)
    finally:
        over.set()
        for thread in started:
            thread.join()
    return None


def _words(number: int | None) -> str:
    if number == errno.ENFILE:
        return "the system is out of file descriptors; raise fs.file-max"
    if number == errno.EMFILE:
        return f"this process is out of file descriptors; it may have {_limit('SC_OPEN_MAX')} (ulimit -n)"
    return "this process is out of memory; see ulimit -v, and the limit of its container or unit"


def _no_thread() -> str:
    return (
        f"this process can start no more threads; its user may have {_limit('SC_CHILD_MAX')} (ulimit -u); a container, "
        "a unit or the memory may allow fewer"
    )


def _limit(name: str) -> str:
    # Not by `resource`: to load that module takes a descriptor.
    limit = os.sysconf(name)
    return "any number" if limit < 0 else f"{limit:,}"

"""Asks the system which locks this process really holds.

SQLite keeps its own book of the locks it took, and that book can be wrong: it survives fork while the locks do not, and
any `close` of the file by other code of the process drops them. `/proc/locks` is the truth. Where it cannot be read
(other systems), nothing can be said, and `holds_lock` answers None.
"""

from __future__ import annotations

import os

_PROC_LOCKS = "/proc/locks"

WAL_DMS_BYTE = 128
"""The byte of the `-shm` file that every connection in WAL mode keeps locked (SQLite's UNIX_SHM_DMS)."""

PENDING_BYTE = 0x40000000
"""The first of the bytes of the main file that SQLite locks; a reader locks a range behind it."""


def holds_lock(inode: int, first_byte: int) -> bool | None:
    """Whether this process holds a POSIX lock on the file `inode` that begins at or after `first_byte`.

    Returns None where the system does not tell. Devices are not compared: some file systems report another device
    here than `stat` does.
    """
    try:
        with open(_PROC_LOCKS, encoding="ascii", errors="replace") as table:
            lines = table.read().splitlines()
    except OSError:
        return None
    pid = str(os.getpid())
    for line in lines:
        # "1: POSIX  ADVISORY  READ 1234 fe:00:567 128 128"; a waiting lock has "->" in the second place.
        fields = line.split()
        if len(fields) < 8 or fields[1] != "POSIX" or fields[4] != pid:
            continue
        if int(fields[5].rpartition(":")[2]) == inode and int(fields[6]) >= first_byte:
            return True
    return False

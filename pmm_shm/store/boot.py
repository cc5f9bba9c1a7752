"""Whether the environment can be trusted after a stop: the boot id and the mark of a clean shutdown.

The daemon writes LMDB without syncing, for the ledger can rebuild everything. A killed daemon leaves a good environment
all the same, since the pages are in the system's cache; a power loss may not. So a file beside the environment says
under which boot it was written, for which directory, and whether it was synced at the end. It is a file of its own
because reading a record inside a corrupt environment may already crash.

A directory that was copied while its daemon ran holds a torn environment, and a mark that looks good. So the mark names
its directory, and without a clean stop it counts nowhere else.
"""

from __future__ import annotations

import os

from pmm_shm.errors import StoreError
from pmm_shm.instance.paths import StrPath, file_id, is_id_of
from pmm_shm.late import late_imports
from pmm_shm.typed import Any

_OPENINGS = "openings"
_DIRECTORY = "directory"
_OPENINGS_MAX = 2
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """The id of this boot; "" where the system has none, and then nothing unclean is trusted."""
    try:
        with open(_BOOT_ID, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def mark(path: StrPath, *, is_clean: bool) -> None:
    """Write the mark, durably, in one step.

    Raises:
        StoreError: it cannot be written.
    """
    _write(path, {"clean": is_clean})


def mark_opening(path: StrPath) -> None:
    """Say that a daemon opens the environment, which may crash it; nobody else opens it meanwhile.

    The first time the next daemon tries again, for this one may have been killed by anybody: the text vectors in there
    may have cost money. After the second time in a row it does not.

    Raises:
        StoreError: it cannot be written.
    """
    record = _record(path)
    before = 0 if record is None else record.get(_OPENINGS, 0)
    _write(path, {"clean": False, _OPENINGS: before + 1})


def mark_damaged(path: StrPath) -> None:
    """Say that nobody is to open the environment: the next daemon makes it anew.

    Raises:
        StoreError: it cannot be written.
    """
    _write(path, {"clean": False, _OPENINGS: _OPENINGS_MAX})


def is_trusted(path: StrPath) -> bool:
    """Whether readers can open an environment with this mark."""
    try:
        if _text(path) == _mark_of_this_boot(path):
            return True
    except (OSError, ValueError):
        return False
    record = _record(path)
    return record is not None and _OPENINGS not in record and _is_intact(record, path)


def is_openable(path: StrPath) -> bool:
    """Whether a daemon can try to open an environment with this mark."""
    record = _record(path)
    return record is not None and record.get(_OPENINGS, 0) < _OPENINGS_MAX and _is_intact(record, path)


def openings(path: StrPath) -> int:
    """How many daemons in a row died, or were killed, while they opened the environment; one may be at it now."""
    record = _record(path)
    return 0 if record is None else int(record.get(_OPENINGS, 0))


def _is_intact(record: dict[str, Any], path: StrPath) -> bool:
    written_under = record["boot_id"]
    is_same_boot = bool(written_under) and written_under == boot_id()
    return record["clean"] is True or (is_same_boot and is_id_of(record.get(_DIRECTORY), os.path.dirname(path)))


def _mark_of_this_boot(path: StrPath) -> str | None:
    """The text of a daemon that runs, or was killed, under this boot; None where that is not known.

    Nearly every reader finds this one. It needs no parser, which would cost a first read 7 ms.
    """
    boot, directory = boot_id(), file_id(os.path.dirname(path))
    if not boot or directory is None:
        return None
    return f'{{"boot_id": "{boot}", "directory": [{directory[0]}, {directory[1]}], "clean": false}}'


def _text(path: StrPath) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _record(path: StrPath) -> dict[str, Any] | None:
    """The content of the mark; None if it is missing."""
    with late_imports:
        import json
    try:
        record = json.loads(_text(path))
        record["clean"], record["boot_id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get(_OPENINGS, 1)) is not int or record.get(_OPENINGS, 1) < 1:
        return None
    return record


def _write(path: StrPath, record: dict[str, Any]) -> None:
    with late_imports:
        import json

        from pmm_shm.instance.making import replace_file
    stated = {"boot_id": boot_id(), _DIRECTORY: file_id(os.path.dirname(path)), **record}
    try:
        replace_file(path, json.dumps(stated), is_durable=True)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None

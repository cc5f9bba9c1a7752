"""Whether the environment can be trusted after a stop: the boot id and the mark of a clean shutdown.

The daemon writes LMDB without syncing, for the ledger can rebuild everything. A killed daemon leaves a good environment
all the same, since the pages are in the system's cache; a power loss may not. So a file beside the environment says
under which boot it was written, and whether it was synced at the end. It is a file of its own because reading a record
inside a corrupt environment may already crash.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pmm_shm.errors import StoreError

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """The id of this boot; "" where the system has none, and then nothing unclean is trusted."""
    try:
        return Path(_BOOT_ID).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def mark(path: Path, *, is_clean: bool, is_opening: bool = False) -> None:
    """Write the mark, durably, in one step.

    Parameters:
        is_opening: the environment is damaged, or to open it ended two daemons: the next one makes it anew.

    Raises:
        StoreError: it cannot be written.
    """
    _write(path, is_clean, True if is_opening else None)


def mark_opening(path: Path) -> None:
    """Say that a daemon opens the environment, which may crash it; nobody else opens it meanwhile.

    The first time the next daemon tries again, for this one may have been killed by anybody: the text vectors in there
    may have cost money. After the second time in a row it does not.

    Raises:
        StoreError: it cannot be written.
    """
    record = _record(path)
    _write(path, False, 1 if record is None or "opening" not in record else True)


def is_trusted(path: Path) -> bool:
    """Whether readers can open an environment with this mark."""
    record = _record(path)
    return record is not None and "opening" not in record and _is_intact(record)


def is_openable(path: Path) -> bool:
    """Whether a daemon can try to open an environment with this mark."""
    record = _record(path)
    # Not `== 1`, which `true` is, too.
    return record is not None and (record.get("opening", 1) is not True) and _is_intact(record)


def _is_intact(record: dict[str, Any]) -> bool:
    written_under = record["boot_id"]
    return record["clean"] is True or (bool(written_under) and written_under == boot_id())


def _record(path: Path) -> dict[str, Any] | None:
    """What the mark says; None where there is none."""
    try:
        record = json.loads(path.read_text(encoding="ascii"))
        record["clean"], record["boot_id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("opening", 1) not in (1, True):
        return None
    return record


def _write(path: Path, is_clean: bool, opening: bool | int | None) -> None:
    record: dict[str, object] = {"boot_id": boot_id(), "clean": is_clean}
    if opening is not None:
        record["opening"] = opening
    temporary = path.with_name(path.name + ".new")
    try:
        with open(temporary, "w", encoding="ascii") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None

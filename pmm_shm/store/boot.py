"""Whether the environment can be trusted after a stop: the boot id and the mark of a clean shutdown.

The daemon writes LMDB without syncing, for the ledger can rebuild everything. A killed daemon leaves a good environment
all the same, since the pages are in the system's cache; a power loss may not. So a file beside the environment says
under which boot it was written, and whether it was synced at the end. It is a file of its own because reading a record
inside a corrupt environment may already crash.
"""

from __future__ import annotations

import json
from pathlib import Path

from pmm_shm.access import replace_file
from pmm_shm.errors import StoreError

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """The id of this boot; "" where the system has none, and then nothing unclean is trusted."""
    try:
        return Path(_BOOT_ID).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def mark(path: Path, *, is_clean: bool, is_opening: bool = False) -> None:
    """Write the mark, durably, in one step.

    Parameters:
        is_opening: the environment was not read well yet, and to try may crash: nobody trusts it meanwhile.

    Raises:
        StoreError: it cannot be written.
    """
    record: dict[str, object] = {"boot_id": boot_id(), "clean": is_clean}
    if is_opening:
        record["opening"] = True
    try:
        replace_file(path, json.dumps(record), is_durable=True)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def is_trusted(path: Path) -> bool:
    """Whether an environment with this mark can be opened."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        is_clean, written_under = record["clean"], record["boot_id"]
        is_opening = record.get("opening", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if is_opening is not False:
        return False
    return is_clean is True or (bool(written_under) and written_under == boot_id())

"""The processes that have a ledger's files open, as far as /proc shows them to this user."""

from __future__ import annotations

import os
import re

from pmm_shm.instance.paths import DATA_FILE, Instance, file_id
from pmm_shm.ledger.files import old_users
from pmm_shm_cli.doctor.facts import Limits, User

_DELETED = " (deleted)"
_DAEMON_NAMES = ("pmm-cached", "pmm_cached")
_LIMITS = {"Max address space": "address_space_bytes", "Max file size": "file_bytes", "Max open files": "open_files"}


def process_state(pid: int) -> str | None:
    """The state of a process, a letter as in proc(5); None if it does not run."""
    text = _text(f"/proc/{pid}/stat")
    state = text.rpartition(")")[2].split()[:1]
    return state[0] if state and state[0] not in ("Z", "X") else None


def users_of(instance: Instance) -> tuple[User, ...]:
    """The other processes that have the ledger or the data of its environment open."""
    data = str(instance.directory / DATA_FILE)
    old = old_users(instance.ledger, file_id(instance.ledger + "-shm"))
    users = []
    for pid in sorted({int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid()}):
        opened = _links(pid)
        for path in (instance.ledger, data):
            if path + _DELETED in opened or (pid in old and path == instance.ledger):
                users.append(_user(pid, path, is_old=True))
            elif path in opened:
                users.append(_user(pid, path, is_old=False))
    return tuple(users)


def limits_of(pid: int, whose: str) -> Limits | None:
    """The resource limits of a process; None if this user may not see them."""
    text = _text(f"/proc/{pid}/limits")
    found = {field: re.search(rf"^{name} +(\S+)", text, re.MULTILINE) for name, field in _LIMITS.items()}
    if not text or not all(found.values()):
        return None
    soft = {field: match.group(1) for field, match in found.items() if match is not None}
    return Limits(whose, **{field: int(value) if value.isdigit() else None for field, value in soft.items()})


def variables_of(pid: int) -> dict[str, str] | None:
    """The environment that a process was started with; None if this user may not see it."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            parts = os.fsdecode(file.read()).split("\0")
    except OSError:
        return None
    return dict(part.split("=", 1) for part in parts if "=" in part)


def _user(pid: int, path: str, *, is_old: bool) -> User:
    arguments = _text(f"/proc/{pid}/cmdline").split("\0")
    is_daemon = any(os.path.basename(part) in _DAEMON_NAMES for part in arguments[:3]) or (
        "-m" in arguments[:4] and _DAEMON_NAMES[1] in arguments[:5]
    )
    variables = variables_of(pid) if is_daemon else None
    shm_dir = None if variables is None else variables.get("PMM_SHM_DIR", "")
    pids = re.search(r"^NSpid:(?:\s+\d+)*\s+(\d+)$", _text(f"/proc/{pid}/status"), re.MULTILINE)
    inner = None if pids is None else int(pids.group(1))
    return User(pid, _text(f"/proc/{pid}/comm").strip() or "?", path, is_old, is_daemon, shm_dir, inner)


def _links(pid: int) -> set[str]:
    """The targets of the descriptors of a process, read without opening them."""
    folder = f"/proc/{pid}/fd"
    found: set[str] = set()
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        try:
            found.add(os.readlink(f"{folder}/{name}"))
        except OSError:
            continue
    return found


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

"""Helpers that several checks share."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterator

from pmm_shm import limits
from pmm_shm.remedies import Remedy, remedy
from pmm_shm_cli.doctor.facts import Disk, SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, error


def disk_room(what: str, disk: Disk) -> Iterator[Verdict]:
    """Whether the disk under something is full."""
    is_full = disk.free_bytes is not None and disk.free_bytes < limits.DISK_FULL_BYTES
    if is_full or disk.free_files == 0:
        yield error(
            f"no {'room' if is_full else 'free inode'} on the disk of {what}: {disk.directory}",
            "appends fail, and the daemon cannot publish; nothing that was committed is lost",
            remedy("free-room", directory=disk.directory),
        )


def restart(facts: SystemFacts) -> Remedy:
    """How to restart the daemon: its service, if it is one."""
    if facts.machine.services:
        return remedy("restart-service", unit=facts.machine.services[0].unit)
    return remedy("restart", ledger=facts.path, daemon=facts.state.daemon_pid)


def ledger_group(facts: SystemFacts) -> str | None:
    """The name of the ledger's group."""
    file = facts.ledger.file
    return None if file is None else group_name(file.gid)


def user_name(uid: int) -> str:
    """The name of a user, or its number."""
    return _name(lambda: pwd.getpwuid(uid).pw_name, uid)


def group_name(gid: int) -> str:
    """The name of a group, or its number."""
    return _name(lambda: grp.getgrgid(gid).gr_name, gid)


def _name(look_up: Callable[[], str], number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)

"""Checks of this process and its machine."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator

from pmm_shm import flags, limits
from pmm_shm.remedies import remedy
from pmm_shm_cli.doctor.facts import MachineFacts
from pmm_shm_cli.doctor.finding import Verdict, error, note, ok, one_line, warning

_OLDEST_PYTHON = (3, 10)
_NEWEST_PYTHON = (3, 13)
_FILE_BYTES_MIN = 1 << 30
_OPEN_FILES_MIN = limits.DESCRIPTORS_MIN + 32
_EPOCH_2024_S = 1_704_067_200
_GOOD_STATES = ("active", "activating", "reloading", "inactive")
_SHOWN_PACKAGES = ("lmdb", "pyzmq", "msgpack", "numpy")
_INOTIFY = {
    "instances": ("fs.inotify.max_user_instances", 1_024),
    "watches": ("fs.inotify.max_user_watches", 524_288),
}


def python(machine: MachineFacts) -> Iterator[Verdict]:
    version = machine.python
    text = "Python " + ".".join(map(str, version))
    if version[:2] < _OLDEST_PYTHON:
        yield error(text, "too old: pmm-shm is not tested with it", remedy("newer-python"))
    elif version[:2] > _NEWEST_PYTHON:
        yield note(text, "newer than the ones pmm-shm is tested with", remedy("older-python"))
    else:
        yield ok(text, "one that pmm-shm is tested with")


def packages(machine: MachineFacts) -> Iterator[Verdict]:
    """Whether the packages that pmm-shm needs are installed."""
    found = machine.packages
    bad = [one for one in found if one.installed is None or _numbers(one.installed) < _numbers(one.needed)]
    for package in bad:
        yield error(
            f"{package.name} {package.installed or 'is not installed'}; {package.needed} or newer is needed",
            "daemon or client fail with it",
            remedy("install", requirement=f"{package.name}>={package.needed}"),
        )
    if found and not bad:
        shown = [f"{one.name} {one.installed}" for one in found if one.name in _SHOWN_PACKAGES]
        yield ok(", ".join(shown), "everything that pmm-shm needs is installed")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def peer_filter(machine: MachineFacts) -> Iterator[Verdict]:
    """Whether the daemon can tell which user connects to its administrative socket."""
    version, has_filter = machine.libzmq, machine.has_peer_filter
    if has_filter is False:
        yield warning(
            f"libzmq {version} cannot tell which user connects",
            "only its file mode protects the administrative socket",
            remedy("install-wheel"),
        )
    elif has_filter:
        yield ok(f"libzmq {version}", "it tells which user connects")


def address_space(machine: MachineFacts) -> Iterator[Verdict]:
    for one in machine.limits:
        size = one.address_space_bytes
        if size is None or size >= limits.MAP_SIZE_BYTES:
            continue
        is_hopeless = size < limits.MAP_SIZE_BYTES_MIN
        yield (error if is_hopeless else warning)(
            f"{one.whose} may have {size >> 20:,} MiB of address space; the map has 1 TiB",
            "no map can be made" if is_hopeless else "a smaller map is used, and may have to grow while others read",
            remedy("lift-memory"),
        )


def file_size(machine: MachineFacts) -> Iterator[Verdict]:
    for one in machine.limits:
        if one.file_bytes is not None and one.file_bytes < _FILE_BYTES_MIN:
            yield warning(
                f"{one.whose} may write files of {one.file_bytes >> 20:,} MiB at most",
                "a ledger or a state that grows beyond it can no longer be written",
                remedy("lift-file-size"),
            )


def open_files(machine: MachineFacts) -> Iterator[Verdict]:
    for one in machine.limits:
        if one.open_files is not None and one.open_files < _OPEN_FILES_MIN:
            yield warning(
                f"{one.whose} may have {one.open_files} files open",
                "ledger, store, sockets and inotify may not fit in",
                remedy("lift-open-files"),
            )


def inotify(machine: MachineFacts) -> Iterator[Verdict]:
    """Whether a daemon of this user can watch the ledger."""
    exhausted = machine.inotify
    if exhausted is None:
        yield ok("instances and watches are left", "a daemon of this user wakes at once")
        return
    setting, value = _INOTIFY[exhausted]
    found, raised = (
        f"{machine.user} has no inotify {exhausted} left",
        remedy("raise-inotify", setting=setting, value=value),
    )
    if exhausted == "instances":
        yield error(found, "no daemon of this user starts", raised)
    else:
        poll_ms = limits.SLOW_POLL_S * 1_000
        yield warning(found, f"the daemon sees commits late, at its slow poll of {poll_ms:g} ms", raised)


def clock(machine: MachineFacts) -> Iterator[Verdict]:
    if machine.now_s < _EPOCH_2024_S:
        yield warning(
            "the clock of this machine shows a time before 2024",
            "ids order the events, so every answer is right; but new events get these times",
            remedy("set-clock"),
        )


def boot_id(machine: MachineFacts) -> Iterator[Verdict]:
    if not machine.boot_id:
        yield note(
            "the system has no boot id",
            "after a daemon was killed, the next one rebuilds the shared state",
            remedy("stop-in-order"),
        )


def environment(machine: MachineFacts) -> Iterator[Verdict]:
    """Environment variables whose name or value means nothing."""
    for problem in machine.meaningless:
        yield error(
            one_line(problem), "every call of pmm-shm fails with it", remedy("unset", name=problem.partition(":")[0])
        )
    for name in sorted(set(machine.variables) - flags.NAMES):
        near = difflib.get_close_matches(name, flags.NAMES, 1, 0.8)
        if near:
            meant = remedy("rename-variable", name=name, near=near[0])
            yield warning(f"{name} means nothing to pmm-shm; {near[0]} does", "its value is not used", meant)
        else:
            yield note(f"{name} means nothing to pmm-shm", "its value is not used", remedy("unset-unless", name=name))
    named = machine.variables.get("PMM_DB")
    if machine.ledger and named and os.path.realpath(named) != machine.ledger:
        yield note(
            f"PMM_DB names {one_line(named)}",
            "commands without a LEDGER use that one",
            remedy("same-ledger", ledger=machine.ledger),
        )
    if machine.missing_embedder is not None:
        embedder = one_line(machine.variables.get("PMM_EMBEDDER", ""))
        yield error(
            f"PMM_EMBEDDER={embedder}: {machine.missing_embedder} is not installed",
            "embeddings and searches fail here",
            remedy("install", requirement=machine.missing_embedder),
        )


def services(machine: MachineFacts) -> Iterator[Verdict]:
    """The systemd units of this ledger."""
    ours = machine.variables.get("PMM_SHM_DIR", "")
    for service in machine.services:
        if service.state is not None and service.state not in _GOOD_STATES:
            yield warning(
                f"{service.unit} is {service.state}",
                "systemd keeps no daemon running for this ledger",
                remedy("see-journal", unit=service.unit),
            )
        else:
            yield ok(f"{service.unit}: {service.state or 'systemd gives no state'}", "by its settings")
        if ours != service.shm_dir:
            yield warning(
                f"{service.unit} publishes in {service.shm_dir}, and PMM_SHM_DIR here is {ours or 'none'}",
                "its published state is not found from here: reads fold the log themselves",
                remedy("same-directory", shm_dir=service.shm_dir),
            )

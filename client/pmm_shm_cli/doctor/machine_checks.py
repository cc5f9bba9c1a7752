"""Judgements of this process and its machine: pure functions from facts to findings."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterator

from pmm_shm import flags, limits
from pmm_shm.versions import DISTRIBUTION
from pmm_shm_cli.doctor.facts import Facts, Limits, Machine, Service
from pmm_shm_cli.doctor.finding import Finding, command, one_line

_OLDEST_PYTHON = (3, 10)
_NEWEST_PYTHON = (3, 13)
_FILE_BYTES_MIN = 1 << 30
_OPEN_FILES_MIN = 64
_EPOCH_2024_S = 1_704_067_200
_GOOD_STATES = ("active", "activating", "reloading", "inactive")
_KNOWN = {
    "instances": ("fs.inotify.max_user_instances", 1_024),
    "watches": ("fs.inotify.max_user_watches", 524_288),
}


def machine_findings(facts: Facts) -> Iterator[Finding]:
    """Everything about versions, limits, inotify, the clock, the environment and units."""
    machine = facts.machine
    yield from _python(machine)
    yield from _packages(machine)
    yield from _peer_filter(machine)
    for one in machine.limits:
        yield from _limits(one)
    yield from _inotify(machine)
    yield from _clock(machine)
    yield from _variables(facts, machine)
    for service in machine.services:
        yield from _service(machine, service)


def _python(machine: Machine) -> Iterator[Finding]:
    text = ".".join(map(str, machine.python))
    if machine.python[:2] < _OLDEST_PYTHON:
        yield Finding(
            "python",
            "error",
            f"Python {text}",
            "too old: pmm-shm is not tested with it",
            "install pmm-shm with Python 3.10 or newer",
            f"python3.12 -m pip install {DISTRIBUTION}",
        )
    elif machine.python[:2] > _NEWEST_PYTHON:
        yield Finding(
            "python",
            "note",
            f"Python {text}",
            "newer than the ones pmm-shm is tested with",
            "where something fails, use Python 3.13",
            f"python3.13 -m pip install {DISTRIBUTION}",
        )
    else:
        yield Finding("python", "ok", f"Python {text}", "one that pmm-shm is tested with")


def _packages(machine: Machine) -> Iterator[Finding]:
    bad = [one for one in machine.packages if one.installed is None or _numbers(one.installed) < _numbers(one.needed)]
    for package in bad:
        yield Finding(
            "packages",
            "error",
            f"{package.name} {package.installed or 'is not installed'}; {package.needed} or newer is needed",
            "daemon or client fail with it",
            "install what pmm-shm needs",
            command("python", "-m", "pip", "install", "--upgrade", f"{package.name}>={package.needed}"),
        )
    if machine.packages and not bad:
        shown = [one for one in machine.packages if one.name in ("lmdb", "pyzmq", "msgpack", "numpy")]
        yield Finding(
            "packages", "ok", ", ".join(f"{one.name} {one.installed}" for one in shown), "what pmm-shm needs is there"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _peer_filter(machine: Machine) -> Iterator[Finding]:
    if machine.has_peer_filter is False:
        yield Finding(
            "libzmq",
            "warning",
            f"libzmq {machine.libzmq} cannot tell which user connects",
            "the administrative socket is protected by its file mode alone",
            "use pyzmq's own wheel, whose libzmq can",
            command("python", "-m", "pip", "install", "--force-reinstall", "--only-binary", "pyzmq", "pyzmq"),
        )
    elif machine.has_peer_filter:
        yield Finding("libzmq", "ok", f"libzmq {machine.libzmq}", "it tells which user connects")


def _limits(one: Limits) -> Iterator[Finding]:
    if one.address_space_bytes is not None and one.address_space_bytes < limits.MAP_SIZE_BYTES:
        is_hopeless = one.address_space_bytes < limits.MAP_SIZE_BYTES_MIN
        yield Finding(
            "address-space",
            "error" if is_hopeless else "warning",
            f"{one.whose} may have {one.address_space_bytes >> 20:,} MiB of address space; the map has 1 TiB",
            "no map can be made" if is_hopeless else "a smaller map is used, and may have to grow while others read",
            "lift the limit; in a unit, remove LimitAS",
            "ulimit -v unlimited",
        )
    if one.file_bytes is not None and one.file_bytes < _FILE_BYTES_MIN:
        yield Finding(
            "file-size",
            "warning",
            f"{one.whose} may write files of {one.file_bytes >> 20:,} MiB at most",
            "a ledger or a state that grows beyond it cannot be written any more",
            "lift the limit; in a unit, remove LimitFSIZE",
            "ulimit -f unlimited",
        )
    if one.open_files is not None and one.open_files < _OPEN_FILES_MIN:
        yield Finding(
            "open-files",
            "warning",
            f"{one.whose} may have {one.open_files} files open",
            "ledger, store, sockets and inotify may not find room",
            "raise the limit; in a unit, LimitNOFILE",
            "ulimit -n 1024",
        )


def _inotify(machine: Machine) -> Iterator[Finding]:
    if machine.inotify is None:
        yield Finding("inotify", "ok", "instances and watches are left", "a daemon of this user wakes at once")
        return
    name, value = _KNOWN[machine.inotify]
    yield Finding(
        "inotify",
        "error" if machine.inotify == "instances" else "warning",
        f"{machine.user} has no inotify {machine.inotify} left",
        "no daemon of this user starts"
        if machine.inotify == "instances"
        else f"the daemon sees commits late, at its slow poll of {limits.SLOW_POLL_S * 1_000:g} ms",
        f"raise {name}; in a file of /etc/sysctl.d, for good",
        command("sysctl", f"{name}={value}"),
    )


def _clock(machine: Machine) -> Iterator[Finding]:
    if machine.now_s < _EPOCH_2024_S:
        yield Finding(
            "clock",
            "warning",
            "this machine's clock stands before 2024",
            "ids order the events, so no answer is wrong; but events are appended with these times",
            "set the clock by the network",
            command("timedatectl", "set-ntp", "true"),
        )
    if not machine.boot_id:
        yield Finding(
            "boot-id",
            "note",
            "the system tells no boot id",
            "after a daemon was killed, the next one makes the shared state anew",
            "stop daemons by SIGTERM",
            "pkill -TERM -x pmm-cached",
        )


def _variables(facts: Facts, machine: Machine) -> Iterator[Finding]:
    for problem in machine.meaningless:
        name = problem.partition(":")[0]
        yield Finding(
            "environment",
            "error",
            one_line(problem),
            "every call of pmm-shm fails with it",
            "unset it",
            f"unset {name}",
        )
    for name in sorted(set(machine.variables) - flags.NAMES):
        near = difflib.get_close_matches(name, flags.NAMES, 1, 0.8)
        yield Finding(
            "environment",
            "warning" if near else "note",
            f"{name} means nothing to pmm-shm" + (f"; {near[0]} does" if near else ""),
            "its value is not used",
            f"write {near[0]}" if near else "unset it, unless it is another program's",
            f"unset {name}",
        )
    named = machine.variables.get("PMM_DB")
    if facts.state is not None and named and os.path.realpath(named) != facts.path:
        yield Finding(
            "environment",
            "note",
            f"PMM_DB names {one_line(named)}",
            "commands without a LEDGER use that one",
            "name the same ledger there",
            f"export PMM_DB={shlex.quote(facts.path)}",
        )
    if machine.missing_embedder is not None:
        yield Finding(
            "environment",
            "error",
            f"PMM_EMBEDDER={one_line(machine.variables.get('PMM_EMBEDDER', ''))}: {machine.missing_embedder} is not "
            "installed",
            "embeddings and searches fail here",
            "install the extra",
            command("python", "-m", "pip", "install", f"{DISTRIBUTION}[{machine.missing_embedder}]"),
        )


def _service(machine: Machine, service: Service) -> Iterator[Finding]:
    if service.state is not None and service.state not in _GOOD_STATES:
        yield Finding(
            "service",
            "warning",
            f"{service.unit} is {service.state}",
            "systemd does not keep a daemon running for this ledger",
            "see why, then start it again",
            f"{command('journalctl', '-u', service.unit, '-n', 20)}; {command('systemctl', 'restart', service.unit)}",
        )
    else:
        yield Finding("service", "ok", f"{service.unit}: {service.state or 'systemd does not say'}", "by its settings")
    if machine.variables.get("PMM_SHM_DIR", "") != service.shm_dir:
        ours = machine.variables.get("PMM_SHM_DIR") or "none"
        yield Finding(
            "service",
            "warning",
            f"{service.unit} publishes in {service.shm_dir}, and PMM_SHM_DIR here is {ours}",
            "what it publishes is not found from here: reads fold the log by themselves",
            "use the same PMM_SHM_DIR for the daemon and all workers",
            f"export PMM_SHM_DIR={shlex.quote(service.shm_dir)}",
        )

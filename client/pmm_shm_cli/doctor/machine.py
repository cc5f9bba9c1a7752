"""Gathers the facts of this process and its machine: versions, limits, inotify, environment variables, units."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from pmm_shm import flags, versions
from pmm_shm.errors import ConfigError
from pmm_shm.names import DISTRIBUTION
from pmm_shm.resources import shortage
from pmm_shm.store.boot import boot_id
from pmm_shm_cli.doctor.checks.common import user_name
from pmm_shm_cli.doctor.facts import MachineFacts, Package, Service
from pmm_shm_cli.doctor.processes import limits_of

SETTINGS = Path("/etc/pmm-cached")
"""The folder of the unit's settings, one file per ledger."""

_UNIT_SHM_DIR = "/var/cache/pmm-cached"
_SYSTEMD = "/run/systemd/system"
_SYSTEMCTL_S = 2.0
_ZMQ_DESCRIPTORS, _ZMQ_THREADS = 16, 2
_EMBEDDER_PACKAGES = {"wordllama": "wordllama", "openai": "openai"}


def look_at_machine(ledger: str | None, daemon_pid: int | None = None) -> MachineFacts:
    """The facts. Raises nothing, whatever it meets."""
    libzmq, has_peer_filter = _libzmq()
    limits = [limits_of(os.getpid(), "this process")]
    if daemon_pid is not None:
        limits.append(limits_of(daemon_pid, f"the daemon (pid {daemon_pid})"))
    return MachineFacts(
        versions.of_this_process(),
        sys.version_info[:3],
        packages(),
        libzmq,
        has_peer_filter,
        tuple(one for one in limits if one is not None),
        inotify_exhausted(os.path.dirname(ledger) if ledger is not None else "/"),
        {name: value for name, value in os.environ.items() if name.startswith("PMM_")},
        meaningless_variables(),
        missing_embedder(),
        time.time(),
        boot_id(),
        () if ledger is None else services(ledger),
        user_name(os.geteuid()),
        ledger,
    )


def packages() -> tuple[Package, ...]:
    """The packages that pmm-shm needs; empty if pmm-shm itself is not installed."""
    try:
        needed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return ()
    found = []
    for requirement in needed:
        match = re.fullmatch(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?", requirement)
        if match is not None:
            found.append(Package(match[1], _installed(match[1]), match[2] or "0"))
    return tuple(found)


def inotify_exhausted(directory: str) -> str | None:
    """The inotify resource that this user has exhausted, or None; tried with a watch on the directory."""
    from inotify_simple import INotify
    from inotify_simple import flags as events

    try:
        inotify = INotify()
    except OSError as error:
        return "instances" if error.errno == errno.EMFILE else None
    try:
        inotify.add_watch(directory, events.DELETE_SELF)
    except OSError as error:
        return "watches" if error.errno == errno.ENOSPC else None
    finally:
        inotify.close()
    return None


def meaningless_variables() -> tuple[str, ...]:
    """A line for each environment variable with an invalid value."""
    found = []
    for read in (flags.projection_cache, flags.metrics_cache, flags.embedding_cache):
        try:
            read()
        except ConfigError as error:
            found.append(str(error))
    return tuple(found)


def missing_embedder() -> str | None:
    """The missing package of the embedder in `PMM_EMBEDDER`; None if none is missing."""
    name = _EMBEDDER_PACKAGES.get((flags.embedder() or "").partition(":")[0])
    return name if name is not None and importlib.util.find_spec(name) is None else None


def services(
    ledger: str, settings: Path = SETTINGS, ask: Callable[[str], str | None] | None = None
) -> tuple[Service, ...]:
    """The units whose settings name the ledger, by its real path."""
    found = []
    try:
        files = sorted(settings.glob("*.env"))
    except OSError:
        return ()
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        values = _values(text)
        if values.get("PMM_DB") and os.path.realpath(values["PMM_DB"]) == ledger:
            unit = f"pmm-cached@{file.stem}.service"
            state = (ask or active_state)(unit)
            found.append(Service(unit, str(file), state, values.get("PMM_SHM_DIR", _UNIT_SHM_DIR)))
    return tuple(found)


def active_state(unit: str) -> str | None:
    """The ActiveState of a unit; None if systemd does not run or answer."""
    program = shutil.which("systemctl")
    if program is None or not os.path.isdir(_SYSTEMD):
        return None
    try:
        ran = subprocess.run(
            [program, "show", "--property=ActiveState", "--value", unit],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None


def _values(text: str) -> dict[str, str]:
    """The assignments of a unit's settings file."""
    values = {}
    for line in text.splitlines():
        name, sign, value = line.strip().partition("=")
        if sign and not name.startswith(("#", ";")):
            try:
                values[name.strip()] = "".join(shlex.split(value))
            except ValueError:
                continue
    return values


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libzmq() -> tuple[str | None, bool | None]:
    """Its version, and whether it can tell a peer's user."""
    try:
        import zmq
    except ImportError:
        return None, None
    if shortage(_ZMQ_DESCRIPTORS, _ZMQ_THREADS) is not None:
        # libzmq would end this process.
        return zmq.zmq_version(), None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = context.socket(zmq.ROUTER)
        try:
            socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
            return zmq.zmq_version(), True
        except (AttributeError, zmq.ZMQError):
            return zmq.zmq_version(), False
        finally:
            socket.close(linger=0)
    finally:
        context.term()

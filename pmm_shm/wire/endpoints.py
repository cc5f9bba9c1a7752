"""The paths of a daemon's unix sockets: chosen and recorded by the daemon, found by clients.

If the path in the instance directory is too long for a socket, a directory elsewhere is used. So clients always read
the record in the instance directory. Addresses in it are relative to that directory, whose path may be another in
another container; and it names the directory by (device, inode), because a folder can be copied while its daemon runs.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.crash_points import crash_point
from pmm_shm.errors import DaemonAbsentError, DaemonError, InstanceDirectoryError, ResourceLimitError
from pmm_shm.instance.access import check_directory, check_socket_directory
from pmm_shm.instance.making import make_socket_directory, may_group_enter, replace_file
from pmm_shm.instance.paths import Instance, file_id, is_id_of
from pmm_shm.late import late_imports
from pmm_shm.resources import shortage_of

_LONGEST_NAME = "announcements.sock"
_SCHEME = "ipc://"


class Endpoints(NamedTuple):
    """Socket paths: ordinary commands, administrative commands, announcements, reports; and the daemon's pid.

    `reports` is empty if the daemon accepts none.
    """

    commands: str
    admin: str
    announcements: str
    pid: int
    reports: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.commands, self.admin, self.announcements, self.reports)))


def choose_endpoints(instance: Instance) -> Endpoints:
    """Paths for a daemon's sockets; makes the fallback directory if the instance's path is too long.

    Raises:
        DaemonError: the fallback is too long as well, or cannot be made.
    """
    directory = instance.directory
    if len(os.fsencode(directory / _LONGEST_NAME)) > limits.SOCKET_PATH_BYTES_MAX:
        device, inode = file_id(directory) or (0, 0)
        directory = _short_directory(instance) / f"pmm-shm-{device:x}-{inode:x}"
        _make_fallback(directory, instance)
        crash_point("socket_directory.made")
    if len(os.fsencode(directory / _LONGEST_NAME)) > limits.SOCKET_PATH_BYTES_MAX:
        raise DaemonError(f"{directory}: the path is too long for a socket; set PMM_SHM_DIR or TMPDIR to a shorter one")
    names = ("commands.sock", "admin.sock", _LONGEST_NAME, "reports.sock")
    commands, admin, announcements, reports = (str(directory / name) for name in names)
    return Endpoints(commands, admin, announcements, os.getpid(), reports)


def address_of(path: str) -> str:
    """ZeroMQ's address of a unix socket. Only this function makes addresses, so no socket uses a network.

    Raises:
        DaemonError: not an absolute path: relative, abstract, another kind of address, or too long.
    """
    try:
        size_bytes = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        size_bytes = 0
    if not path.startswith("/") or "\0" in path or not 0 < size_bytes <= limits.SOCKET_PATH_BYTES_MAX:
        raise DaemonError(
            f"{path[:100]!r}: a socket needs an absolute path in UTF-8, of at most {limits.SOCKET_PATH_BYTES_MAX} bytes"
        )
    return _SCHEME + path


def _short_directory(instance: Instance) -> Path:
    """A directory of this user with a short path. XDG_RUNTIME_DIR is closed to others, so not if a group shares."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK) and not may_group_enter(instance):
        return Path(base) / "pmm-shm"
    with late_imports:
        import tempfile

    return Path(tempfile.gettempdir()) / f"pmm-shm-{os.geteuid()}"


def _make_fallback(directory: Path, instance: Instance) -> None:
    reason = "the path beside the ledger is too long for a socket"
    try:
        make_socket_directory(directory, instance)
    except InstanceDirectoryError as error:
        raise DaemonError(f"{error}; {reason}") from None
    except OSError as error:
        raise DaemonError(f"{directory}: {error.strerror}; {reason}") from None


def record_endpoints(instance: Instance, endpoints: Endpoints) -> None:
    """Write the record, atomically.

    Raises:
        DaemonError: the record cannot be written.
    """
    folder = f"{instance.directory}/"
    sockets = {name: path.removeprefix(folder) for name, path in endpoints._asdict().items() if name != "pid"}
    record = {"directory": file_id(instance.directory), **sockets, "pid": endpoints.pid}
    try:
        replace_file(instance.endpoints_file, json.dumps(record))
    except OSError as error:
        raise DaemonError(f"{instance.endpoints_file}: {error.strerror}") from None


def find_endpoints(instance: Instance) -> Endpoints:
    """The sockets of the daemon that serves this ledger.

    Raises:
        DaemonAbsentError: no daemon serves it.
        ResourceLimitError: this process has no file descriptor left to look.
        DaemonError: this user has no permission, or the instance directory is not to be trusted.
    """
    endpoints = recorded_endpoints(instance)
    try:
        check_listening(endpoints.commands)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise _no_permission(instance, endpoints.commands) from None
        raise absent(instance, error) from None
    return endpoints


def recorded_endpoints(instance: Instance) -> Endpoints:
    """The sockets of the last daemon, which may have ended.

    Raises:
        DaemonAbsentError: no daemon has left a record.
        DaemonError: this user has no permission, or the instance directory is not to be trusted.
    """
    try:
        check_directory(instance)
        endpoints = read_record(instance)
        for path in endpoints.paths:
            address_of(path)
            if (folder := Path(path).parent) != instance.directory:
                check_socket_directory(folder, instance)
        return endpoints
    except InstanceDirectoryError as error:
        raise DaemonError(str(error)) from None
    except PermissionError:
        raise _no_permission(instance, instance.directory) from None
    except (OSError, DaemonError) as error:
        raise absent(instance, error) from None


def read_record(instance: Instance) -> Endpoints:
    """The record as it is, unchecked but for one thing: it belongs to this directory and is no copy.

    Raises:
        DaemonAbsentError: it is no record, or one of another directory.
        OSError: it cannot be read.
    """
    try:
        record = json.loads(instance.endpoints_file.read_text(encoding="utf-8"))
        if not is_id_of(record["directory"], instance.directory):
            raise absent(instance)
        commands, admin, announcements, reports = (
            str(instance.directory / name) if (name := str(record[field])) else ""
            for field in ("commands", "admin", "announcements", "reports")
        )
        return Endpoints(commands, admin, announcements, int(record["pid"]), reports)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise absent(instance) from None


def absent(instance: Instance, error: Exception | None = None) -> DaemonError:
    """The error for a ledger without a daemon; another one where `error` does not tell whether a daemon serves it."""
    found = None if error is None else shortage_of(error)
    if found is not None:
        return ResourceLimitError(f"{instance.ledger}: {found}")
    return DaemonAbsentError(f"{instance.ledger}: no daemon serves it; start pmm-cached")


def _no_permission(instance: Instance, path: object) -> DaemonError:
    return DaemonError(f"{instance.ledger}: no permission for {path}; share a group")


def check_listening(path: str) -> int | None:
    """Connect to a socket and close the connection: ZeroMQ would wait instead of raising.

    Returns:
        the pid of the process that listens, in this process's pid namespace: 0 where it has none here; None if unknown.

    Raises:
        OSError: no process listens, or this user has no permission.
    """
    with late_imports:
        import socket
        import struct

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
            found: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return found
        except (BlockingIOError, TimeoutError):
            # A process listens and does not accept: a stopped daemon with a full backlog.
            return None
        except ValueError:
            # A NUL or half a surrogate pair, from a damaged record.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

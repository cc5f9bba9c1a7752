"""Runs a program under the restrictions of a unit file, as far as that can be done without systemd:

    python -m tests.support.sandbox UNIT COMMAND ...

Reads `[Service]` and applies each line that it knows, in name spaces and with filters of this process alone. Needs root
and libseccomp. The user stays root, without any capability. `NOT_TRIED` names what is left out, and why.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

NOT_TRIED = {
    "User": "the tests' interpreter and folders need not be open to other accounts; test_access.py changes the user",
    "Group": "as User",
    "MemoryHigh": "needs a control group",
    "MemoryMax": "needs a control group",
    "IPAddressDeny": "needs BPF in a control group; PrivateNetwork leaves nothing to deny",
}
# What is no restriction, but for systemd to do.
OTHERS = frozenset(
    ("Type", "WatchdogSec", "Environment", "EnvironmentFile", "ExecStart", "CacheDirectory", "CacheDirectoryMode",
     "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "Restart", "RestartSec",
     "RestartPreventExitStatus", "TimeoutStopSec", "WorkingDirectory")
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000
_NAMESPACES = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 8, 32, 4096, 16384, 1 << 18
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 38, 24, 47
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "shm", "pts", "mqueue")


def settings(unit: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The lines of `[Service]`, in order."""
    text = Path(unit).read_text(encoding="utf-8").split("[Service]")[1].split("\n[")[0]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()))


def _read_only(path: str) -> None:
    if os.path.exists(path):
        _mount(path, path, flags=_MS_BIND | _MS_REC)
        _mount("", path, flags=_MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def _inaccessible(path: str) -> None:
    if os.path.isdir(path):
        _mount("tmpfs", path, "tmpfs", _MS_RDONLY, "mode=000")
    elif os.path.exists(path):
        _mount("/dev/null", path, flags=_MS_BIND)


def _private_devices() -> None:
    os.makedirs("/run/pmm-sandbox-dev", exist_ok=True)
    _mount("/dev", "/run/pmm-sandbox-dev", flags=_MS_BIND | _MS_REC)
    _mount("tmpfs", "/dev", "tmpfs", _MS_NOSUID | _MS_NOEXEC, "mode=755")
    for name in _DEVICES:
        old, new = f"/run/pmm-sandbox-dev/{name}", f"/dev/{name}"
        if os.path.isdir(old):
            os.mkdir(new)
        elif os.path.exists(old):
            Path(new).touch()
        else:
            continue
        _mount(old, new, flags=_MS_BIND)
    _check(_libc.umount2(b"/run/pmm-sandbox-dev", 2))


# Filters.


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


_NE, _GT, _MASKED_EQ = 1, 6, 7
_ALLOW = 0x7FFF0000


def _refusal(code: int) -> int:
    return 0x00050000 | code


class _Filter:
    """One seccomp filter; the kernel takes the strictest answer of all that are loaded."""

    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(default))

    def add(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        array = (_Comparison * len(comparisons))(*(_Comparison(*one) for one in comparisons))
        result = self._lib.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        if result != 0:
            raise OSError(-result, f"{name}: {os.strerror(-result)}")

    def load(self) -> None:
        result = self._lib.seccomp_load(self._context)
        if result != 0:
            raise OSError(-result, os.strerror(-result))


def _calls(name: str) -> set[str]:
    """The system calls of a set, by systemd's own list."""
    if not name.startswith("@"):
        return {name}
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    words = [line.strip() for line in shown.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return set().union(*map(_calls, words))


def allowed_calls(lines: list[str]) -> set[str]:
    """What lines of SystemCallFilter, the first of them an allow list, leave."""
    allowed = _calls("@default")
    for line in lines:
        calls = set().union(*(_calls(name) for name in line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def _denial(rules: list[tuple[str, int, tuple[tuple[int, int, int, int], ...]]]) -> Callable[[], None]:
    def load() -> None:
        made = _Filter(_ALLOW)
        for name, code, comparisons in rules:
            made.add(_refusal(code), name, *comparisons)
        made.load()

    return load


_SGID, _SUID = 0o2000, 0o4000
FILTERS: dict[str, Callable[[], None]] = {
    "RestrictAddressFamilies": _denial([("socket", errno.EAFNOSUPPORT, ((0, _NE, 1, 0),))]),
    "RestrictNamespaces": _denial(
        [("setns", errno.EPERM, ()), ("clone3", errno.ENOSYS, ())]
        + [
            (name, errno.EPERM, ((0, _MASKED_EQ, 1 << bit, 1 << bit),))
            for name in ("unshare", "clone")
            for bit in range(64)
            if _NAMESPACES >> bit & 1
        ]
    ),
    "RestrictRealtime": _denial([("sched_setscheduler", errno.EPERM, ((1, _GT, 3, 0),))]),
    "RestrictSUIDSGID": _denial(
        [
            (name, errno.EPERM, ((argument, _MASKED_EQ, bit, bit),))
            for name, argument in (
                ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2), ("mknod", 1),
                ("mknodat", 2), ("open", 2), ("openat", 3), ("creat", 1),
            )
            for bit in (_SGID, _SUID)
        ]
    ),
    "LockPersonality": _denial([("personality", errno.EPERM, ((0, _NE, 0xFFFFFFFF, 0),))]),
}  # fmt: skip
MOUNTS: dict[str, Callable[[], None]] = {
    "ProtectSystem": lambda: [_read_only(path) for path in ("/usr", "/boot", "/efi", "/etc")] and None,
    "ProtectControlGroups": lambda: _read_only("/sys/fs/cgroup"),
    "ProtectKernelTunables": lambda: (
        [_read_only(path) for path in ("/proc/sys", "/proc/fs", "/proc/irq", "/sys")]
        and [_inaccessible(path) for path in ("/proc/kallsyms", "/proc/kcore")]
        and None
    ),
    "ProtectKernelLogs": lambda: [_inaccessible(path) for path in ("/proc/kmsg", "/dev/kmsg")] and None,
    "ProtectKernelModules": lambda: _inaccessible("/usr/lib/modules"),
    "PrivateDevices": _private_devices,
    "PrivateMounts": lambda: None,
    "ProtectProc": lambda: _mount("proc", "/proc", "proc", 0, "hidepid=invisible"),
    "ProtectHostname": lambda: _check(_libc.unshare(_CLONE_NEWUTS)),
    "PrivateNetwork": lambda: _check(_libc.unshare(_CLONE_NEWNET)),
}
# ProtectClock: the capabilities and the system calls are gone already.
LAST = frozenset(
    ("UMask", "LimitCORE", "NoNewPrivileges", "CapabilityBoundingSet", "ProtectClock", "SystemCallArchitectures",
     "SystemCallFilter", "SystemCallErrorNumber")
)  # fmt: skip


def _drop_capabilities() -> None:
    for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii")) + 1):
        _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))


def restrict(unit: str) -> None:
    """Apply what the unit says to this process."""
    lines = settings(unit)
    names = [name for name, _ in lines]
    values = dict(lines)
    allowed = allowed_calls([value for name, value in lines if name == "SystemCallFilter"])
    _check(_libc.unshare(_CLONE_NEWNS))
    _mount("", "/", flags=_MS_REC | _MS_PRIVATE)
    # A fresh /proc first: the others cover parts of it.
    for name in sorted(set(names) & set(MOUNTS), key=lambda name: name != "ProtectProc"):
        MOUNTS[name]()
    os.umask(int(values["UMask"], 8))
    resource.setrlimit(resource.RLIMIT_CORE, (int(values["LimitCORE"]),) * 2)
    _drop_capabilities()
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for name in set(names) & set(FILTERS):
        FILTERS[name]()
    final = _Filter(_refusal(errno.EPERM))
    for call in sorted(allowed):
        final.add(_ALLOW, call)
    final.load()


if __name__ == "__main__":
    restrict(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])

"""Unit tests start no process, connect to nothing and never sleep: one that does fails."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

_FORBIDDEN = [(time, "sleep"), (os, "fork"), (socket.socket, "connect")]
_LDCONFIG = "/sbin/ldconfig"
_start = subprocess.Popen.__init__
_spawn = os.posix_spawn


def _refuse(*arguments: Any, **_: Any) -> NoReturn:
    pytest.fail(f"{arguments!r}: not in tests/unit, but in tests/process")


def _start_only_ldconfig(process: subprocess.Popen[Any], command: Any, *arguments: Any, **options: Any) -> None:
    """`ctypes.util.find_library` asks that program for the name of a library."""
    if command[0] != _LDCONFIG:
        _refuse(command)
    _start(process, command, *arguments, **options)


def _spawn_only_ldconfig(path: Any, *arguments: Any, **options: Any) -> int:
    """By which `subprocess` starts it from Python 3.13 on."""
    if path != _LDCONFIG:
        _refuse(path)
    return _spawn(path, *arguments, **options)


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _FORBIDDEN:
            patch.setattr(owner, name, _refuse)
        patch.setattr(subprocess.Popen, "__init__", _start_only_ldconfig)
        patch.setattr(os, "posix_spawn", _spawn_only_ldconfig)
        yield

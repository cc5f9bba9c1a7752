"""Starting a server on a temporary unix socket."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from bench.daemons import until
from bench.peers import MissingPeerError


class Server:
    """A server process; `socket` is its unix socket, in a directory with a path that is short enough for one."""

    def __init__(self, program: str, package: str, *options: str) -> None:
        found = shutil.which(program)
        if found is None:
            raise MissingPeerError(f"{program} is not installed: left out (on Debian: apt install {package})")
        self._directory = Path(tempfile.mkdtemp(prefix="pmm-shm-peer-"))
        self.socket = str(self._directory / "socket")
        command = [found, *(option.format(socket=self.socket, directory=self._directory) for option in options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(self._answers, f"{program} answers")
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"{self._process.args!r} ended with {self._process.returncode}"
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(self.socket)
            return True
        return False

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

"""A PostgreSQL server of the tests' own, in a temporary folder. It refuses to run as root: another user runs it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.ports import HeldPort

_SETTINGS = """
listen_addresses = '127.0.0.1'
fsync = {fsync}
max_connections = 60
shared_buffers = 16MB
unix_socket_directories = ''
wal_level = replica
max_wal_senders = 4
"""


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest version's or that of PMM_TEST_POSTGRES; None without one."""
    if own := os.environ.get("PMM_TEST_POSTGRES"):
        return Path(own)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


class Postgres:
    """One server: started by the constructor, gone with `close`.

    Parameters:
        folder: where its data is; the server's user owns it.
        standby_of: the server to follow; None for one of its own.
        fsync: wait for the disk, as a server in use does.
        port: where it listens, one of its own by default; `close` closes it.
    """

    def __init__(
        self, folder: Path, standby_of: Postgres | None = None, *, fsync: bool = False, port: HeldPort | None = None
    ) -> None:
        self._bin = programs()
        assert self._bin is not None, "PostgreSQL is not installed: apt-get install postgresql"
        self.folder = folder
        self.data = folder / "data"
        self._held_port = port or HeldPort()
        self.port = self._held_port.number
        self._user = pwd.getpwnam("postgres" if _exists("postgres") else "nobody")
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        if standby_of is None:
            self._run("initdb", "-D", self.data, "-A", "trust", "-U", "owner", "--no-sync", "-E", "UTF8", "--locale=C")
            self._run_as(["tee", "-a", self.data / "postgresql.conf"], _SETTINGS.format(fsync="on" if fsync else "off"))
            hosts = "host replication owner 127.0.0.1/32 trust\n"
            self._run_as(["tee", "-a", self.data / "pg_hba.conf"], hosts)
        else:
            source = f"host=127.0.0.1 port={standby_of.port} user=owner"
            self._run("pg_basebackup", "-D", self.data, "-R", "-d", source, "--checkpoint=fast", "--no-sync")
        self.start()

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=owner dbname=postgres"

    def start(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-o", f"-p {self.port}", "-l", self.folder / "log", "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it in order (`fast`) or as a crash would (`immediate`)."""
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """Kill the server and wait until it is gone."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop", check=False)

    def promote(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "promote")

    def close(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._held_port.close()

    def _run(self, program: str, *arguments: object, check: bool = True) -> None:
        assert self._bin is not None
        self._run_as([self._bin / program, *arguments], check=check)

    def _run_as(self, command: list[object], text: str | None = None, *, check: bool = True) -> None:
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        done = subprocess.run(
            [str(part) for part in command],
            input=text,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            **account,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")


@contextlib.contextmanager
def running(*, fsync: bool = False) -> Iterator[Postgres]:
    """A server for one module of tests."""
    folder = Path(tempfile.mkdtemp(prefix="pmm-postgres-"))
    folder.chmod(0o755)
    server = Postgres(folder / "server", fsync=fsync)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True

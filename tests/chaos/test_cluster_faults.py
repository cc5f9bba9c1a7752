"""Long runs of the log in PostgreSQL: writers under kills, a pooler, a full disk, large events; on real servers."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.recent import RecentFold
from pmm_shm.ledger.chain import verify_chain
from pmm_shm.ledger.connection import Connection
from pmm_shm.projection.replay import replay
from pmm_shm_client import EventLog, connect
from tests.support import postgres
from tests.support.clusters import needs_postgresql
from tests.support.daemons import environment, until
from tests.support.ports import HeldPort
from tests.support.postgres import Postgres
from tests.support.replicas import Host, Writer, make_source, source_rows

pytestmark = needs_postgresql
_POOLER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
_WRITERS = 8


def assert_same_history(hosts: list[Host], expected: list[str] | None = None) -> None:
    """One chain on each host, equal to the source; answers equal a replay; each event once."""
    for host in hosts:
        rows = host.until_equal()
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        contents = [row[3] for row in rows]
        assert len(set(contents)) == len(contents)
        assert expected is None or sorted(contents) == sorted(expected)
        with contextlib.closing(Connection(host.ledger, "ro")) as connection, connect(host.ledger) as cache:
            assert verify_chain(connection).ok
            folds = [RecentFold(), MetricsFold()]
            _, states = replay(connection, folds)
            frame = cache.frame()
            assert [frame.fold(fold.name) for fold in folds] == [fold.view(states[fold.name]) for fold in folds]


@contextlib.contextmanager
def writing(hosts: list[Host]) -> Iterator[list[str]]:
    """Eight writers on the hosts while the block runs; yields what was acknowledged, complete behind the block."""
    acknowledged: list[str] = []
    errors: list[BaseException] = []
    is_over = threading.Event()

    def write(number: int, ledger: str) -> None:
        try:
            with EventLog(ledger, create=False, timeout=60.0) as log:
                count = 0
                while not is_over.is_set():
                    batch = [f"{number} {count + index}" for index in range(1 + count % 3)]
                    log.append_many([("user", content, {}) for content in batch], wait=count % 2 == 0)
                    acknowledged.extend(batch)
                    count += len(batch)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=write, args=(number, hosts[number % len(hosts)].ledger)) for number in range(_WRITERS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not errors


def test_eight_writers_for_a_minute(hosts: list[Host]) -> None:
    with hosts[0].following(), hosts[1].following():
        with writing(hosts) as acknowledged:
            time.sleep(60.0)
        assert_same_history(hosts, acknowledged)


def test_a_follower_that_is_killed_twenty_times_under_eight_writers(hosts: list[Host]) -> None:
    with hosts[0].following(), hosts[1].following():
        with writing(hosts) as acknowledged:
            for kill in range(20):
                time.sleep(0.3)
                hosts[kill % 2].stop(signal.SIGKILL)
                points = [None, ("replica.inserted", 2), ("replica.committed", 2)]
                hosts[kill % 2].follow(dies_at=points[kill // 2 % 3])
                if points[kill // 2 % 3] is not None:
                    assert hosts[kill % 2].wait() == -signal.SIGKILL
                    hosts[kill % 2].follow()
        assert_same_history(hosts, acknowledged)


def test_a_server_that_is_killed_under_eight_writers(tmp_path: Path) -> None:
    with postgres.running(fsync=True) as server:
        make_source(server.dsn, "agent")
        hosts = [Host(tmp_path / f"host{number}", server.dsn, "agent") for number in range(2)]
        with hosts[0].following(), hosts[1].following():
            with writing(hosts) as acknowledged:
                for _ in range(3):
                    time.sleep(1.0)
                    server.kill()
                    server.start()
            assert_same_history(hosts, acknowledged)
        assert not any(host.status().forks for host in hosts)


@contextlib.contextmanager
def _pooler(server: Postgres, folder: Path) -> Iterator[str]:
    """A DSN that leads through pgbouncer in transaction mode, with few connections."""
    port = HeldPort()
    user = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    folder.mkdir()
    (folder / "users").write_text('"owner" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port.number}\nauth_type = trust\nauth_file = {folder}/users\npool_mode = transaction\n"
        "default_pool_size = 4\nunix_socket_dir =\n"
    )
    command = [str(_POOLER), "-q", str(folder / "pgbouncer.ini")]
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **identity) as process:  # type: ignore[call-overload]
        try:
            yield f"host=127.0.0.1 port={port.number} user=owner dbname=postgres"
        finally:
            process.terminate()
            port.close()


@pytest.mark.skipif(_POOLER is None, reason="pgbouncer is not installed (apt-get install pgbouncer)")
def test_a_pooler_in_transaction_mode(server: Postgres, name: str, tmp_path: Path) -> None:
    folder = Path("/tmp") / f"pmm-pooler-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        dsn = stack.enter_context(_pooler(server, folder))
        hosts = [Host(tmp_path / f"host{number}", dsn, name) for number in range(2)]
        for host in hosts:
            stack.enter_context(host.following())
        with writing(hosts) as acknowledged:
            time.sleep(5.0)
        assert_same_history(hosts, acknowledged)
        with connect(hosts[0].ledger) as cache, connect(hosts[1].ledger) as other:
            assert cache.role("tick").claim()
            assert not other.role("tick").claim()
            event_id = cache.append("user", "last", wait=False)
            assert other.recent(consistency="global").as_of == event_id


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_of_the_replica(server: Postgres, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        host = Host(folder / "host", server.dsn, name)
        host.log = tmp_path / "follower.log"
        writer = Writer(server.dsn, name)
        writer.append("small")
        with host.following():
            host.until_equal()
            for number in range(40):
                writer.append(f"{number} " + "x" * 100_000)
            until(lambda: host.said().strip(), "the follower says that the disk is full", 60.0)
            assert "Traceback" not in host.said()
            assert "full" in host.said()
        before = host.rows()
        assert before == source_rows(server.dsn, name)[: len(before)]
        with connect(host.ledger) as cache:
            assert cache.recent().as_of == len(before)
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        with host.following():
            assert_same_history([host])
        writer.close()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_large_events_are_pulled_in_bounded_memory(hosts: list[Host]) -> None:
    """465 events of 128 MB; a batch is bounded in bytes."""
    host = hosts[0]
    writer = Writer(host.dsn, host.name)
    for number in range(31):
        writer.append(*(f"{number} {index} ".ljust(282_000, "x") for index in range(15)))
    writer.close()
    with subprocess.Popen(
        [sys.executable, "-m", "pmm_replicator", host.ledger, "--name", host.name],
        env=environment(PMM_SOURCE=host.dsn),
    ) as process:
        try:
            until(lambda: len(host.rows()) == 465, "all events", 60.0)
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        finally:
            process.terminate()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kib < 160 << 10
    assert host.rows() == source_rows(host.dsn, host.name)

"""Servers that keep their connections open and answer nothing, as a stopped process or a frozen machine does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError, SourceUnreachableError, UnknownOutcomeError
from pmm_shm.ledger.source.server import Server
from pmm_shm_client import Cache, connect
from pmm_shm_client.source_vectors import SourceEmbedder
from tests.support import ledgers, postgres
from tests.support.clusters import needs_postgresql
from tests.support.command import run
from tests.support.cutting_proxy import CuttingProxy
from tests.support.daemons import environment, until
from tests.support.postgres import Postgres
from tests.support.replicas import Host, UnitEmbedder, Writer, execute, make_source, source_rows
from tests.support.waiting import at_most

pytestmark = needs_postgresql


def contents(server: Postgres, name: str) -> list[str]:
    return [row[3] for row in source_rows(server.dsn, name)]


@contextmanager
def stopped(server: Postgres) -> Iterator[None]:
    """All processes of the server are stopped while the block runs."""
    first = int((server.data / "postmaster.pid").read_text().split()[0])
    found = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True, check=True).stdout
    pids = [first, *map(int, found.split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_stopped_server_holds_up_nobody_beyond_the_timeout(server: Postgres, host: Host) -> None:
    with host.following():
        host.until_equal()
        with connect(host.ledger, timeout=0.5) as cache:
            role = cache.role("tick")
            assert (cache.append("user", "one"), role.claim()) == (1, True)
            with stopped(server):
                # Over the open connection, and over a new one; libpq waits for a new one two seconds at least.
                for seconds in (2.0, 4.0):
                    with at_most(seconds), pytest.raises(SourceUnreachableError, match="nothing was written"):
                        cache.append("user", "two")
                with at_most(4.0), pytest.raises(SourceUnreachableError):
                    cache.metrics(consistency="global")
                with at_most(6.0):
                    assert not role.claim()
                assert cache.metrics().as_of == 1
            assert cache.append("user", "three") == 2
            assert cache.metrics(consistency="global").as_of == 2
            assert role.claim()
    assert contents(server, host.name) == ["one", "three"]


def test_a_read_of_all_hosts_ends_over_an_open_connection_too(server: Postgres, host: Host) -> None:
    with CuttingProxy(server.port) as proxy, host.following():
        host.until_equal()
        ledgers.execute(host.ledger, "UPDATE pmm_replica SET dsn = ?", proxy.dsn)
        with connect(host.ledger, timeout=0.5) as cache:
            assert cache.metrics(consistency="global").as_of == 0
            proxy.is_frozen = True
            with at_most(2.0), pytest.raises(SourceUnreachableError, match="does not answer"):
                cache.metrics(consistency="global")
            proxy.is_frozen = False
            assert cache.metrics(consistency="global").as_of == 0


def test_an_answer_to_a_commit_that_never_comes_leaves_the_outcome_unknown(server: Postgres, name: str) -> None:
    with CuttingProxy(server.port, "silent") as proxy:

        def freeze() -> None:
            proxy.is_frozen = True

        proxy.on_cut = freeze  # type: ignore[method-assign]
        writer = Writer(proxy.dsn, name, timeout_s=0.5)
        with at_most(4.0), pytest.raises(UnknownOutcomeError, match="the commit of event 1") as caught:
            writer.append("one")
        writer.close()
    assert [row[-1] for row in source_rows(server.dsn, name)] == [caught.value.last_hash]


def test_a_connection_that_falls_silent_is_left_while_time_is_left(
    server: Postgres, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOURCE_SILENCE_S", 0.3)
    with CuttingProxy(server.port, "silent") as proxy:
        writer = Writer(proxy.dsn, name)
        with at_most(5.0):
            assert writer.append("one") == [1]
        assert proxy.cuts_left == 0
        assert writer.append("two") == [2]
        writer.close()
    assert contents(server, name) == ["one", "two"]


def test_a_long_wait_for_others_is_no_silence(server: Postgres, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOURCE_SILENCE_S", 0.2)
    with psycopg.connect(server.dsn) as holder:
        holder.execute("SELECT 1 FROM pmm_ledgers WHERE name = %s FOR UPDATE", (name,))
        writer = Writer(server.dsn, name, timeout_s=0.7)
        began = time.monotonic()
        with at_most(2.0), pytest.raises(LedgerBusyError, match=r"others held it for 0\.7 s; nothing was written"):
            writer.append("one")
        assert time.monotonic() - began > 0.6
        holder.rollback()
    assert writer.append("two") == [1]
    writer.close()


def test_an_embedder_computes_alone_while_the_server_is_silent(
    server: Postgres, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOURCE_SILENCE_S", 0.3)
    with CuttingProxy(server.port) as proxy:
        embedder = SourceEmbedder(UnitEmbedder(), Server(proxy.dsn, name))
        assert embedder.embed(["a"]).tolist() == [[1.0, 0.0]]
        proxy.is_frozen = True
        with at_most(3.0):
            assert list(embedder.embed(["b"])) == [[1.0, 0.0]]
        # It is not asked again for a while: each text would wait for it.
        with at_most(0.3):
            for number in range(40):
                assert list(embedder.embed([f"c{number}"])) == [[1.0, 0.0]]


def test_a_follower_leaves_a_frozen_server_for_its_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOURCE_SILENCE_S", 0.3)
    with postgres.running() as old:
        make_source(old.dsn, "agent")
        Writer(old.dsn, "agent").append("one")
        new = Postgres(old.folder.parent / "new", standby_of=old)
        servers = f"host=127.0.0.1,127.0.0.1 port={old.port},{new.port} user=owner dbname=postgres connect_timeout=2"
        host = Host(tmp_path / "host", servers, "agent")
        with host.following(SOURCE_SILENCE_S=0.3), connect(host.ledger, timeout=15.0) as cache:
            until(lambda: len(host.rows()) == 1)
            assert cache.append("user", "two") == 2
            until(lambda: contents_of(new) == ["one", "two"])
            with stopped(old):
                until(lambda: "does not answer" in host.said())
                new.promote()
                assert cache.append("user", "three") == 3
                until(lambda: host.status().server == f"127.0.0.1:{new.port}")
                assert run("cluster", "status", servers).code == 0
        new.close()


def contents_of(server: Postgres) -> list[str]:
    return contents(server, "agent")


def test_threads_that_wait_for_one_connection_end_at_their_timeout(server: Postgres, host: Host) -> None:
    errors: list[Exception] = []

    def append(cache: Cache) -> None:
        try:
            cache.append("user", "one")
        except (LedgerBusyError, SourceUnreachableError) as error:
            errors.append(error)

    with CuttingProxy(server.port) as proxy:
        with host.following():
            host.until_equal()
        ledgers.execute(host.ledger, "UPDATE pmm_replica SET dsn = ?", proxy.dsn)
        with connect(host.ledger, timeout=0.5) as cache:
            assert cache.append("user", "one", wait=False) == 1
            proxy.is_frozen = True
            threads = [threading.Thread(target=append, args=(cache,)) for _ in range(6)]
            with at_most(4.0):
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
    assert len(errors) == 6


def test_a_server_that_is_gone_delays_no_event(server: Postgres, name: str, tmp_path: Path) -> None:
    with CuttingProxy(server.port) as proxy:
        proxy.is_frozen = True
        servers = f"host=127.0.0.1,127.0.0.1 port={server.port},{proxy.port} user=owner dbname=postgres"
        host = Host(tmp_path / "other", servers, name)
        with host.following(REPLICA_LOOK_AROUND_S=0.1), connect(host.ledger) as cache:
            cache.append("user", "first")
            slowest_s = 0.0
            for number in range(30):
                began = time.monotonic()
                cache.append("user", str(number))
                slowest_s = max(slowest_s, time.monotonic() - began)
                time.sleep(0.05)
    assert slowest_s < 1.5


_WORKER = """
import sys
from pmm_shm.errors import SourceUnreachableError
from pmm_shm_client import connect

with connect(sys.argv[1], timeout=1.0) as cache:
    role = cache.role("tick")
    print(cache.append("user", "one", wait=False), cache.metrics(consistency="global").as_of, role.claim(), flush=True)
    sys.stdin.readline()
    for action in (lambda: cache.metrics(consistency="global"), lambda: cache.append("user", "two")):
        try:
            action()
        except SourceUnreachableError as error:
            print(type(error).__name__, len(str(error).splitlines()), flush=True)
    print(role.claim() and role.is_held(60.0), cache.metrics().as_of, flush=True)
    sys.stdin.readline()
    print(cache.append("user", "three", wait=False), flush=True)
"""


@pytest.mark.parametrize("way", ["killed", "cut", "frozen"])
def test_a_server_that_is_lost_costs_a_worker_one_error_and_no_noise(server: Postgres, host: Host, way: str) -> None:
    terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    with CuttingProxy(server.port) as proxy, host.following():
        host.until_equal()
        ledgers.execute(host.ledger, "UPDATE pmm_replica SET dsn = ?", proxy.dsn)
        command = [sys.executable, "-W", "error", "-c", _WORKER, host.ledger]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, env=environment(), **pipes) as worker:  # type: ignore[call-overload]
            assert worker.stdout.readline() == "1 1 True\n"
            if way == "killed":
                server.kill()
            elif way == "cut":
                proxy.is_open = False
                execute(server.dsn, terminate)
            else:
                proxy.is_frozen = True
            worker.stdin.write("\n")
            worker.stdin.flush()
            said = [worker.stdout.readline() for _ in range(3)]
            assert said == ["SourceUnreachableError 1\n", "SourceUnreachableError 1\n", "False 1\n"]
            if way == "killed":
                server.start()
            proxy.is_open, proxy.is_frozen = True, False
            out, err = worker.communicate("\n", timeout=30)
            assert (out, err) == ("2\n", "")
    assert contents(server, host.name) == ["one", "three"]

"""The log of record in PostgreSQL: appends from several hosts, and replicas that follow it; on real servers."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from pmm_replicator.forks import resolve
from pmm_replicator.replica_file import ReplicaFile
from pmm_shm.errors import (
    HeadMovedError,
    InvalidEventError,
    NotALedgerError,
    ReplicaError,
    ReplicaLaggingError,
    SourceUnreachableError,
)
from pmm_shm.ledger.chain import verify_chain
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.restore import restore
from pmm_shm.ledger.source.server import Server
from pmm_shm_client import Cache, EventLog, Frame, connect, connect_async
from tests.support import ledgers, postgres
from tests.support.clusters import needs_postgresql
from tests.support.command import run
from tests.support.daemons import until
from tests.support.postgres import Postgres
from tests.support.replicas import Host, Writer, execute, make_source, source_rows
from tests.support.web import serving, words

pytestmark = needs_postgresql


def assert_linear(rows: list[tuple[object, ...]]) -> None:
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert [row[5] for row in rows] == [None, *(row[6] for row in rows)][: len(rows)]


def test_a_replica_has_the_rows_of_its_source(host: Host, writer: Writer) -> None:
    writer.append("one", "two")
    with host.following():
        host.until_equal()
        writer.append("three")
        rows = host.until_equal()
    assert [row[3] for row in rows] == ["one", "two", "three"]
    assert_linear(rows)
    connection = Connection(host.ledger, "ro")
    assert verify_chain(connection).ok
    connection.close()


def test_an_append_on_one_host_is_in_the_next_read_there_and_soon_on_the_other(host: Host, tmp_path: Path) -> None:
    other = Host(tmp_path / "other", host.dsn, host.name)
    with host.following(), other.following(), connect(host.ledger) as here, connect(other.ledger) as there:
        event_id = here.append("user", "hello", {"n": math.nan, "big": 10**300, "half": "\ud800"})
        assert here.recent().as_of == event_id
        there.recent(consistency="global")
        found = there.event(event_id)
        assert found is not None
        assert (found.content, found.meta["big"], found.meta["half"]) == ("hello", 10**300, "\ud800")
        assert math.isnan(found.meta["n"])
        there.append_many([("user", "a", {}), {"kind": "user", "content": "b", "ts": "2026-01-01T00:00:00Z"}])
        assert here.recent(consistency="global").as_of == 3
        assert here.frame(consistency="global").metrics() == there.frame().metrics()


def test_without_a_wait_an_append_returns_before_the_replica_has_it(host: Host) -> None:
    with host.following():
        pass
    with host.open() as log:
        assert log.append("user", "first", wait=False) == 1
        assert host.rows() == []
        impatient = EventLog(host.ledger, timeout=0.2)
        with pytest.raises(ReplicaLaggingError) as caught:
            impatient.append("user", "second")
        assert caught.value.ids == (2,)
        impatient.close()
    with host.following():
        assert [row[3] for row in host.until_equal()] == ["first", "second"]


def test_an_expected_head_is_compared_in_postgresql(host: Host, writer: Writer) -> None:
    with host.following(), connect(host.ledger) as cache:
        assert cache.append("user", "one", expected_head=0) == 1
        frame = cache.frame()
        assert cache.append("user", "two", expected_head=frame) == 2
        with pytest.raises(HeadMovedError) as caught:
            cache.append("user", "three", expected_head=frame)
        assert caught.value.head_id == 2
        with pytest.raises(HeadMovedError):
            cache.append_many([], expected_head=1)
        assert cache.append_many([], expected_head=2) == []
        assert cache.decide(lambda seen: [("user", f"behind {seen.as_of}", {})]) == [3]


def test_eight_writers_on_two_hosts_make_one_chain(host: Host, tmp_path: Path) -> None:
    other = Host(tmp_path / "other", host.dsn, host.name)
    with host.following(), other.following():

        def write(path: str, writer: int) -> None:
            with EventLog(path, create=False) as log:
                for number in range(15):
                    log.append("user", f"{writer} {number}", wait=number % 2 == 0)

        threads = [
            threading.Thread(target=write, args=(one.ledger, number)) for number, one in enumerate([host, other] * 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows = host.until_equal()
        assert other.until_equal() == rows
    assert_linear(rows)
    assert sorted(row[3] for row in rows) == sorted(f"{writer} {number}" for writer in range(8) for number in range(15))


def test_a_killed_server_loses_and_doubles_no_append(tmp_path: Path) -> None:
    with postgres.running() as server:
        make_source(server.dsn, "agent")

        def write(number: int) -> None:
            writer = Writer(server.dsn, "agent", timeout_s=60.0)
            for count in range(40):
                writer.append(f"{number} {count}")
            writer.close()

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            time.sleep(0.15)
            server.kill()
            server.start()
        for thread in threads:
            thread.join()
        rows = source_rows(server.dsn, "agent")
    assert_linear(rows)
    assert sorted(row[3] for row in rows) == sorted(f"{number} {count}" for number in range(4) for count in range(40))


@pytest.mark.parametrize("point", ["replica.inserted", "replica.committed"])
def test_a_follower_that_is_killed_goes_on_where_it_was(host: Host, writer: Writer, point: str) -> None:
    for count in range(1, 4):
        host.follow(dies_at=(point, count))
        until(lambda: Path(host.ledger).exists())
        for number in range(count):
            writer.append(f"{count} {number}")
            until(
                lambda: host._process.exitcode is not None or len(host.rows()) == len(source_rows(host.dsn, host.name))
            )
        assert host.wait() == -signal.SIGKILL
    with host.following():
        assert_linear(host.until_equal())


def test_events_that_a_promoted_standby_lacks_are_kept_and_can_be_appended_again(tmp_path: Path) -> None:
    with postgres.running() as primary:
        make_source(primary.dsn, "agent")
        writer = Writer(primary.dsn, "agent")
        writer.append(*(f"kept {number}" for number in range(30)))
        standby = Postgres(primary.folder.parent / "standby", standby_of=primary)
        standby.stop()
        servers = f"host=127.0.0.1,127.0.0.1 port={primary.port},{standby.port} user=owner dbname=postgres"
        host = Host(tmp_path / "host", servers, "agent")
        with host.following(), connect(host.ledger) as cache:
            until(lambda: len(host.rows()) == 30)
            lost = [cache.append("user", f"lost {number}") for number in range(25)]
            assert cache.recent().as_of == lost[-1]
            primary.kill()
            standby.start()
            # A lagging standby is no source: it is waited for.
            time.sleep(0.3)
            assert len(host.rows()) == 55
            with pytest.raises(SourceUnreachableError, match="is a standby"):
                Server(standby.dsn, "agent").connection()
            standby.promote()
            until(lambda: len(host.rows()) == 30, "the lost events are taken back")
            # A cache that is open over the fork sees the source's history.
            assert cache.recent().as_of == 30
            assert cache.frame().recent().messages[-1].content == "kept 29"
            until(lambda: host.status().forks == 1)
            assert "has lost 25 events from 31 on" in host.said()
            (kept,) = host.status().lost_files
            assert [json.loads(line)["content"] for line in Path(kept).read_text().splitlines()] == [
                f"lost {number}" for number in range(25)
            ]
            # The old primary comes back, with the events that were lost: it is refused.
            primary.start()
            # A new process asks all servers, and takes the one with the latest timeline.
            backwards = f"host=127.0.0.1,127.0.0.1 port={standby.port},{primary.port} user=owner dbname=postgres"
            for dsn in (servers, backwards):
                server = Server(dsn, "agent")
                assert server.connection().info.port == standby.port
                server.close()
                (shown,) = json.loads(run("cluster", "status", dsn, "--json").out)
                assert shown["head_id"] == 30
            Writer(servers, "agent").append("after")
            until(lambda: len(host.rows()) == 31)
            assert cache.append("user", "by a worker") == 32

            listed = run("cluster", "forks", host.ledger)
            assert (listed.code, "25 events, 31 to 55, kept" in listed.out) == (0, True)
            done = run("cluster", "forks", host.ledger, "--append-again", kept)
            assert (done.code, done.out) == (0, "25 events appended, 33 to 57\n")
            assert "appended again" in run("cluster", "forks", host.ledger).out
            rows = until(lambda: len(host.rows()) == 57 and host.rows())
            assert [row[3] for row in rows[32:]] == [f"lost {number}" for number in range(25)]
            again = run("cluster", "forks", host.ledger, "--append-again", kept + ".appended")
            assert (again.code, again.out) == (2, "")
        standby.close()


def _forked(host: Host, writer: Writer, lost: int = 3, others: int = 2) -> None:
    """Let the source have other rows behind event 5 than the replica."""
    writer.append(*(f"kept {number}" for number in range(5)))
    writer.append(*(f"lost {number}" for number in range(lost)))
    with host.following():
        host.until_equal()
    execute(
        host.dsn,
        "DELETE FROM pmm_events WHERE id > 5 AND ledger = (SELECT ledger FROM pmm_ledgers WHERE name = %s)",
        host.name,
    )
    if others:
        writer.append(*(f"other {number}" for number in range(others)))


@pytest.mark.parametrize("others", [0, 2, 6])
def test_other_rows_at_the_same_ids_replace_those_that_were_lost(host: Host, writer: Writer, others: int) -> None:
    _forked(host, writer, others=others)
    with host.following():
        rows = host.until_equal()
        assert writer.append("next") == [6 + others]
        host.until_equal()
    assert [row[3] for row in rows[5:]] == [f"other {number}" for number in range(others)]
    assert len(host.status().lost_files) == 1


def test_a_fork_deeper_than_the_limit_is_left_to_a_person(host: Host, writer: Writer) -> None:
    _forked(host, writer, lost=4)
    before = host.rows()
    host.follow("--fork-max", "3")
    assert host.wait() == 5
    assert host.rows() == before
    assert "--fork-max 4" in host.said()
    assert not host.status().lost_files
    with host.following("--fork-max", "4"):
        host.until_equal()


@pytest.mark.parametrize(
    "point", ["replica.lost_written", "replica.lost_kept", "replica.deleted", "replica.fork_resolved"]
)
def test_killed_within_a_fork_nothing_is_lost_or_kept_twice(host: Host, writer: Writer, point: str) -> None:
    _forked(host, writer)
    host.follow(dies_at=(point, 1))
    assert host.wait() == -signal.SIGKILL
    with host.following():
        host.until_equal()
        (kept,) = until(lambda: host.status().lost_files)
    assert len(Path(kept).read_text().splitlines()) == 3
    assert "3 events, 6 to 8, kept" in run("cluster", "forks", host.ledger).out


def test_another_log_under_the_same_name_leaves_the_replica_untouched(host: Host, writer: Writer) -> None:
    writer.append("one")
    with host.following():
        before = host.until_equal()
    execute(host.dsn, "UPDATE pmm_ledgers SET identity = gen_random_uuid() WHERE name = %s", host.name)
    host.follow()
    assert host.wait() == 5
    assert "another ledger under the name" in host.said()
    assert host.rows() == before


def test_two_followers_of_one_replica_do_not_meet(host: Host, writer: Writer) -> None:
    with host.following():
        writer.append("one")
        host.until_equal()
        second = Host(Path(host.ledger).parent, host.dsn, host.name)
        second.follow()
        assert second.wait() == 1
        assert "another follower writes this replica" in second.said()
        writer.append("two")
        host.until_equal()


def test_a_terminated_backend_costs_no_event(host: Host, writer: Writer) -> None:
    with host.following():
        writer.append("one")
        host.until_equal()
        execute(
            host.dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'pmm-shm' AND pid <> pg_backend_pid()",
        )
        writer.append("two")
        assert len(host.until_equal()) == 2


def test_an_edited_row_is_refused_by_a_new_replica_and_found_on_an_old_one(
    host: Host, writer: Writer, tmp_path: Path
) -> None:
    writer.append("one", "two", "three")
    with host.following():
        host.until_equal()
    assert run("cluster", "audit", host.ledger).code == 0
    execute(
        host.dsn,
        "UPDATE pmm_events SET content = 'edited' WHERE id = 2 AND ledger = "
        "(SELECT ledger FROM pmm_ledgers WHERE name = %s)",
        host.name,
    )
    found = run("cluster", "audit", host.ledger, "--json")
    assert found.code == 5
    assert json.loads(found.out)["difference"]["event_id"] == 2
    new = Host(tmp_path / "new", host.dsn, host.name)
    new.follow()
    assert new.wait() == 5
    assert [row[3] for row in new.rows()] == ["one"]
    assert "event 2 in PostgreSQL does not continue the chain behind event 1" in new.said()


def test_an_edit_of_the_newest_row_is_no_fork(host: Host, writer: Writer) -> None:
    writer.append("one", "two")
    with host.following():
        before = host.until_equal()
    execute(
        host.dsn,
        "UPDATE pmm_events SET content = 'edited' WHERE id = 2 AND ledger = "
        "(SELECT ledger FROM pmm_ledgers WHERE name = %s)",
        host.name,
    )
    host.follow()
    assert host.wait() == 5
    assert "event 2 in PostgreSQL does not continue the chain" in host.said()
    assert host.rows() == before
    assert run("cluster", "forks", host.ledger).out == "no event was lost\n"


def test_a_fork_that_new_connections_do_not_see_is_none(host: Host, writer: Writer) -> None:
    writer.append("one", "two")
    with host.following():
        before = host.until_equal()
    replica, server = ReplicaFile(host.ledger), Server(host.dsn, host.name)
    assert resolve(server, replica, replica.head(), 10) is None
    server.close()
    replica.close()
    assert host.rows() == before
    assert run("cluster", "forks", host.ledger).out == "no event was lost\n"


def test_a_copy_of_a_replica_begins_a_new_host(host: Host, writer: Writer, tmp_path: Path) -> None:
    writer.append("one", "two")
    with host.following():
        host.until_equal()
    new = Host(tmp_path / "new", host.dsn, host.name)
    assert run("backup", host.ledger, new.ledger).code == 0
    writer.append("three")
    with new.following():
        assert len(new.until_equal()) == 3


def test_only_the_follower_writes_a_replica(host: Host, writer: Writer, tmp_path: Path) -> None:
    writer.append("one")
    with host.following():
        host.until_equal()
    for sql in (
        "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user', '', '{}')",
        "UPDATE events SET content = 'x'",
        "DELETE FROM events",
    ):
        with pytest.raises(sqlite3.OperationalError, match="pmm_replica_takes_appends_in_postgresql_only"):
            ledgers.execute(host.ledger, sql)
    EventLog(tmp_path / "backup.db").close()
    with pytest.raises(ReplicaError, match="cluster detach"):
        restore(tmp_path / "backup.db", host.ledger)
    assert [row[3] for row in host.rows()] == ["one"]


def test_a_detached_replica_is_an_ordinary_ledger(host: Host, writer: Writer) -> None:
    writer.append("one")
    with host.following():
        host.until_equal()
        refused = run("cluster", "detach", host.ledger)
        assert (refused.code, "stop pmm-cached first" in refused.err) == (1, True)
    with host.open() as log:
        log.append("user", "in PostgreSQL", wait=False)
        ran = run("cluster", "detach", host.ledger, "--json")
        assert (ran.code, json.loads(ran.out)["ledger"]) == (0, str(host.ledger))
        until(lambda: log.source() is None)
        assert log.append("user", "here") == 2
    assert [row[3] for row in host.rows()] == ["one", "here"]
    refused = run("cluster", "detach", host.ledger)
    assert (refused.code, "not a replica" in refused.err) == (1, True)


def test_what_postgresql_cannot_store_is_refused_before_anything_is_written(host: Host) -> None:
    with host.following(), host.open() as log:
        with pytest.raises(InvalidEventError, match="NUL"):
            log.append("user", "a\0b")
        with pytest.raises(InvalidEventError, match="NUL"):
            log.append_many([("user", "fine", {}), ("user", "", {}), ("us\0er", "", {})])
    assert source_rows(host.dsn, host.name) == []


def test_without_a_server_an_append_fails_and_a_read_does_not(host: Host, writer: Writer) -> None:
    writer.append("one")
    with host.following():
        host.until_equal()
    nowhere = "host=127.0.0.1 port=1 user=owner dbname=postgres"
    ledgers.execute(host.ledger, "UPDATE pmm_replica SET dsn = ?", nowhere)
    with connect(host.ledger, timeout=0.2) as cache:
        assert cache.recent().as_of == 1
        with pytest.raises(SourceUnreachableError, match="nothing was written"):
            cache.append("user", "two")
        with pytest.raises(SourceUnreachableError):
            cache.metrics(consistency="global")
        assert cache.metrics(consistency="exact").as_of == 1


# Moving a ledger into PostgreSQL.


def _ledger_of(path: Path, *contents: str) -> str:
    with EventLog(path) as log:
        log.append_many([("user", content, {"n": 1.5}) for content in contents])
    return str(path)


def test_an_imported_ledger_becomes_a_replica_where_it_is(server: Postgres, tmp_path: Path) -> None:
    host = Host(tmp_path / "host", server.dsn, "imported")
    _ledger_of(Path(host.ledger), "one", "two", "three")
    before = host.rows()
    done = run("cluster", "init", server.dsn, "--name", "imported", "--import", host.ledger)
    assert (done.code, done.out) == (0, "imported: 3 events in PostgreSQL\n")
    assert source_rows(server.dsn, "imported") == before
    with host.following(), connect(host.ledger) as cache:
        assert cache.append("user", "four") == 4
    again = run("cluster", "init", server.dsn, "--name", "imported")
    assert (again.code, "is there already" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("DELETE FROM events WHERE id = 2", "event 3 cannot go"),
        ("UPDATE events SET hash = NULL WHERE id = 2", "event 2 cannot go into PostgreSQL: hash is NULL"),
        ("UPDATE events SET content = x'00' WHERE id = 2", "content is not text"),
        ("UPDATE events SET content = 'a' || char(0) WHERE id = 2", "content holds a NUL"),
        ("UPDATE events SET content = CAST(x'ff' AS TEXT) WHERE id = 2", "content is not UTF-8"),
        ("UPDATE events SET content = 'edited' WHERE id = 2", "the hash chain is broken or forks at event 2"),
    ],
)
def test_an_import_names_the_first_row_that_cannot_go(server: Postgres, tmp_path: Path, sql: str, reason: str) -> None:
    ledger = _ledger_of(tmp_path / "agent.db", "one", "two", "three")
    ledgers.execute(ledger, sql)
    done = run("cluster", "init", server.dsn, "--name", "not imported", "--import", ledger)
    assert done.code in (1, 5)
    assert reason in done.err
    assert "not imported" not in run("cluster", "status", server.dsn, "--json").out


def test_a_ledger_that_is_not_in_the_source_is_left_alone(host: Host, writer: Writer) -> None:
    writer.append("one")
    _ledger_of(Path(host.ledger), "another")
    before = host.rows()
    host.follow()
    assert host.wait() == 5
    assert "event 1 is not in the source" in host.said()
    assert host.rows() == before


@pytest.mark.parametrize(
    "dsn", ["postgresql://user:secret@host/db", "host=a password=secret", "host=a sslpassword=secret", "nonsense"]
)
def test_a_password_on_the_command_line_is_refused(dsn: str) -> None:
    done = run("cluster", "status", dsn)
    assert done.code == 2
    assert "secret" not in done.err
    assert done.err.count("\n") == 1


# What else the hosts share.


def test_one_process_of_all_hosts_holds_a_role(host: Host, tmp_path: Path) -> None:
    other = Host(tmp_path / "other", host.dsn, host.name)
    with host.following(), other.following(), connect(host.ledger) as here, connect(other.ledger) as there:
        first, second = here.role("tick"), there.role("tick")
        assert (first.claim(), second.claim(), first.claim()) == (True, False, True)
        assert not second.is_held()
        first.resign()
        assert second.claim()
        # The server's clock decides: an expired lease goes to the next, with a greater token.
        before = second.token
        execute(host.dsn, "UPDATE pmm_roles SET until = clock_timestamp() - interval '1 second' WHERE role = 'tick'")
        assert first.claim()
        assert first.token > before
        assert not second.claim()


def test_a_text_is_embedded_once_for_all_hosts(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pmm_shm.vectors.embedder import Embedder

    calls: list[str] = []

    class Counting(Embedder):
        name = "counting"
        dimension = 3

        def embed(self, texts):  # type: ignore[no-untyped-def]
            calls.extend(texts)
            return [[float(len(text)), 1.0, 2.0] for text in texts]

    other = Host(tmp_path / "other", host.dsn, host.name)
    texts = [f"text {number}" for number in range(20)]
    with host.following(), other.following():
        vectors = []
        for ledger in (host.ledger, other.ledger):
            with connect(ledger, embedder=Counting()) as cache:
                vectors.append(cache.embed_many(texts).tolist())
                vectors.append(cache.embed_many([*texts, "one more"]).tolist()[:20])
    assert vectors[1:] == vectors[:1] * 3
    assert sorted(calls) == sorted([*texts, "one more"])


def test_a_worker_without_permission_says_so(host: Host, writer: Writer) -> None:
    writer.append("one")
    with host.following():
        host.until_equal()
    execute(host.dsn, "DROP ROLE IF EXISTS reader")
    execute(host.dsn, "CREATE ROLE reader LOGIN")
    execute(host.dsn, "GRANT SELECT ON pmm_ledgers, pmm_events TO reader")
    ledgers.execute(host.ledger, "UPDATE pmm_replica SET dsn = ?", host.dsn.replace("user=owner", "user=reader"))
    with host.open() as log, pytest.raises(Exception, match="permission denied"):
        log.append("user", "two")
    assert len(source_rows(host.dsn, host.name)) == 1


def test_a_fork_of_the_process_appends_over_a_connection_of_its_own(host: Host) -> None:
    with host.following(), connect(host.ledger) as cache:
        cache.append("user", "parent")
        child = os.fork()
        if child == 0:
            try:
                cache.append("user", "child")
                os._exit(0)
            except BaseException:
                os._exit(1)
        cache.append("user", "parent again")
        assert os.waitpid(child, 0)[1] == 0
        rows = host.until_equal()
    assert sorted(row[3] for row in rows) == ["child", "parent", "parent again"]
    assert_linear(rows)


def test_the_daemon_follows_and_says_how_it_is(
    server: Postgres, name: str, tmp_path: Path, start_daemon, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    ledger = str(tmp_path / "agent.db")
    start_daemon(ledger, "--source", server.dsn, "--name", name)
    with connect(ledger) as cache:
        assert cache.append("user", "hello") == 1
        until(lambda: cache.stats()["daemon"]["replica"]["source_head_id"] == 1)  # type: ignore[index,typeddict-item]
        assert cache.stats()["daemon"]["health"] == "healthy"  # type: ignore[index]
    shown = run("status", ledger)
    assert f"source  {name} on 127.0.0.1:{server.port}" in shown.out
    doctor = run("doctor", ledger)
    assert f"follows '{name}'" in doctor.out


def test_the_page_of_a_replica_names_its_source(
    server: Postgres, name: str, tmp_path: Path, start_daemon, writer: Writer
) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("starlette")
    pytest.importorskip("jinja2")
    ledger = str(tmp_path / "agent.db")
    daemon = start_daemon(ledger, "--source", server.dsn, "--name", name)
    writer.append("one", "two")
    with connect(ledger) as cache:
        until(lambda: cache.stats()["daemon"]["replica"]["source_head_id"] == 2)  # type: ignore[index,typeddict-item]
        until(lambda: len(cache.events("user")) == 2, "both events")
    with serving(ledger, tmp_path) as page:
        source = f"A replica of {name} on 127.0.0.1:{server.port} , timeline 1: 0 events behind, confirmed "
        until(lambda: source in words(page.page()), "the source in the head of the page")
        replica = page.api("/status")["replica"]
        assert (replica["name"], replica["forks"], replica["timeline"], replica["lag_events"]) == (name, 0, 1, 0)
        # An append of another host is told, and shown.
        writer.append("three")
        until(lambda: "three" in page.page("/stream"), "the append of another host")
        # Without a daemon, as its follower has reported last.
        daemon.kill()
        until(lambda: "absent" in words(page.page("/header")), "the end of the daemon")
        assert f"A replica of {name} on" in words(page.page("/header"))


def test_a_daemon_follows_the_source_that_a_replica_records(host: Host, start_daemon) -> None:  # type: ignore[no-untyped-def]
    with host.following():
        host.until_equal()
    start_daemon(host.ledger)
    with connect(host.ledger) as cache:
        assert cache.append("user", "hello") == 1
        assert cache.stats()["daemon"]["replica"]["name"] == host.name  # type: ignore[index,typeddict-item]
    assert " may read it" in (out := " ".join(run("doctor", host.ledger).out.split()))
    assert "nobody but its owner" not in out


def test_the_command_says_that_an_append_is_there_though_the_replica_lags(host: Host) -> None:
    with host.following():
        host.until_equal()
    lagging = run("append", host.ledger, "user", "one", "--timeout", "0.3")
    assert (lagging.code, lagging.out) == (4, "1\n")
    assert "the append is in PostgreSQL" in lagging.err
    assert lagging.err.count("\n") == 1
    done = run("append", host.ledger, "user", "two", "--no-wait")
    assert (done.code, done.out, done.err) == (0, "2\n", "")


def test_appends_of_an_async_cache_need_not_wait_for_the_replica(host: Host) -> None:
    async def append() -> None:
        async with await connect_async(host.ledger, timeout=0.3) as cache:
            assert await cache.append_async("user", "one", wait=False) == 1
            assert await cache.append_many_async([("user", "two", {})], wait=False) == [2]
            with pytest.raises(ReplicaLaggingError) as caught:
                await cache.append_many_async([("user", "three", {})])
            assert caught.value.ids == (3,)

    with host.following():
        host.until_equal()
    asyncio.run(append())


def test_of_workers_on_two_hosts_one_acts_on_a_frame(host: Host, tmp_path: Path) -> None:
    other = Host(tmp_path / "other", host.dsn, host.name)
    acted: list[int] = []

    def act(cache: Cache) -> None:
        def decision(frame: Frame) -> list[tuple[str, str, dict[str, int]]] | None:
            return None if frame.as_of >= 5 else [("user", "act", {"on": frame.as_of})]

        while ids := cache.decide(decision):
            acted.extend(ids)

    with host.following(), other.following():
        host.until_equal()
        other.until_equal()
        with connect(host.ledger) as here, connect(other.ledger) as there:
            threads = [threading.Thread(target=act, args=(cache,)) for cache in (here, there)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        rows = host.until_equal()
    assert sorted(acted) == [1, 2, 3, 4, 5]
    assert [json.loads(row[4]) for row in rows] == [{"on": number} for number in range(5)]


def test_threads_append_at_once_over_one_cache(host: Host) -> None:
    with host.following(), connect(host.ledger) as cache:
        ids: list[int] = []
        threads = [
            threading.Thread(target=lambda: ids.extend(cache.append("user", "one") for _ in range(5))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ids) == list(range(1, 21))
        assert_linear(host.until_equal())


def test_a_replica_that_nobody_follows_is_named_by_the_doctor(host: Host, writer: Writer) -> None:
    writer.append("one")
    with host.following():
        host.until_equal()
    doctor = run("doctor", host.ledger)
    assert f"a replica of {host.name!r} in PostgreSQL" in doctor.out.replace("\n", " ")
    shutil.rmtree(Path(host.ledger).parent / "agent.db-cache")


def test_a_name_that_is_not_there_makes_nothing(server: Postgres, tmp_path: Path) -> None:
    host = Host(tmp_path / "host", server.dsn, "nowhere")
    host.follow()
    assert host.wait() == 5
    assert "no ledger named 'nowhere'" in host.said()
    assert not Path(host.ledger).exists()
    assert NotALedgerError

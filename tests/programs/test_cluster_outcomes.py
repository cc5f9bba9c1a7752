"""Appends to PostgreSQL whose connection is lost around the commit, and what a worker may believe; on a real server."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pmm_replicator.forks import resolve
from pmm_replicator.replica_file import ReplicaFile
from pmm_replicator.source import pull
from pmm_shm import limits
from pmm_shm.errors import (
    EmbedderError,
    HeadMovedError,
    LedgerUnwritableError,
    ReplicaLaggingError,
    SourceUnreachableError,
    UnknownOutcomeError,
)
from pmm_shm.ledger.new_events import new_event
from pmm_shm.ledger.source.appending import SourceAppender
from pmm_shm.ledger.source.roles import SourceRole
from pmm_shm.ledger.source.server import Server
from pmm_shm.ledger.source.session import SourceSession
from pmm_shm_client import connect
from pmm_shm_client.source_vectors import SourceEmbedder
from tests.support import ledgers, postgres
from tests.support.clusters import needs_postgresql
from tests.support.command import run
from tests.support.cutting_proxy import Cut, CuttingProxy
from tests.support.daemons import until
from tests.support.forking import end_with_parent, in_child
from tests.support.postgres import Postgres
from tests.support.replicas import Host, UnitEmbedder, Writer, execute, make_source, source_rows

pytestmark = needs_postgresql
_OF_LEDGER = "ledger = (SELECT ledger FROM pmm_ledgers WHERE name = %s)"


def contents(server: Postgres, name: str) -> list[str]:
    return [row[3] for row in source_rows(server.dsn, name)]


@pytest.mark.parametrize("cut", ["before", "behind"])
def test_an_append_whose_answer_is_lost_is_written_once(server: Postgres, name: str, cut: Cut) -> None:
    with CuttingProxy(server.port, cut) as proxy:
        writer = Writer(proxy.dsn, name)
        assert writer.append("one", "two") == [1, 2]
        assert proxy.cuts_left == 0
        assert writer.append("three") == [3]
        writer.close()
    assert contents(server, name) == ["one", "two", "three"]


@pytest.mark.parametrize("is_pooled", [False, True])
def test_texts_arrive_as_they_are(server: Postgres, name: str, is_pooled: bool) -> None:
    texts = [
        "",
        "NULL",
        '"',
        "\\",
        '\\"',
        "{a,b}",
        "a, b",
        " a ",
        "line\nline\r\t",
        "é €\U0001f600\u2028",
        "%s $1",
        "'; --",
        "\x01",
    ]
    primary = Server(server.dsn, name)
    session = primary.connection()
    # Behind a pooler, the next transaction may have another server process.
    session.is_pooled |= is_pooled
    appender = SourceAppender(primary, 5.0)
    rows = appender.append([new_event(text or "empty", text, {"text": text}) for text in texts])
    rows += appender.append([new_event("user", "a later one")])
    named = session.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pmm_%'").fetchone()
    appender.close()
    assert named == (0 if is_pooled else 6,)
    assert [row[3] for row in rows] == [*texts, "a later one"]
    assert source_rows(server.dsn, name) == rows


def test_others_append_before_a_lost_answer_is_decided(server: Postgres, name: str) -> None:
    with CuttingProxy(server.port, "behind", "before") as proxy:
        other = Writer(server.dsn, name)
        proxy.on_cut = lambda: other.append("other")  # type: ignore[assignment,method-assign]
        writer = Writer(proxy.dsn, name)
        assert writer.append("one") == [1]
        assert writer.append("three") == [3]
        writer.close()
        other.close()
    assert contents(server, name) == ["one", "other", "three"]


def test_an_outcome_that_cannot_be_found_out_is_an_error_of_its_own(server: Postgres, name: str) -> None:
    with CuttingProxy(server.port, "behind") as proxy:

        def close() -> None:
            proxy.is_open = False

        proxy.on_cut = close  # type: ignore[method-assign]
        writer = Writer(proxy.dsn, name, timeout_s=0.5)
        with pytest.raises(UnknownOutcomeError, match="the commit of event 1") as caught:
            writer.append("one")
        writer.close()
        with pytest.raises(SourceUnreachableError, match="nothing was written"):
            Writer(proxy.dsn, name, timeout_s=0.2).append("two")
    assert [row[-1] for row in source_rows(server.dsn, name)] == [caught.value.last_hash]


def test_a_lock_that_others_hold_meanwhile_leaves_the_outcome_unknown(server: Postgres, name: str) -> None:
    with CuttingProxy(server.port, "behind") as proxy, psycopg.connect(server.dsn) as holder:

        def lock() -> None:
            holder.execute("SELECT 1 FROM pmm_ledgers WHERE name = %s FOR UPDATE", (name,))

        proxy.on_cut = lock  # type: ignore[method-assign]
        writer = Writer(proxy.dsn, name, timeout_s=0.6)
        with pytest.raises(UnknownOutcomeError):
            writer.append("one")
        writer.close()
    assert contents(server, name) == ["one"]


def test_an_append_that_postgresql_refuses_says_that_nothing_was_written(server: Postgres, name: str) -> None:
    execute(
        server.dsn,
        "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.kind = 'full' THEN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; "
        "END IF; RETURN NEW; END $$",
    )
    execute(
        server.dsn, "CREATE TRIGGER full_disk BEFORE INSERT ON pmm_events FOR EACH ROW EXECUTE FUNCTION full_disk()"
    )
    try:
        writer = Writer(server.dsn, name, timeout_s=0.3)
        with pytest.raises(SourceUnreachableError, match="no space; nothing was written"):
            writer.append("one", kind="full")
        assert writer.append("two") == [1]
        writer.close()
    finally:
        execute(server.dsn, "DROP TRIGGER full_disk ON pmm_events")


def test_an_append_that_cannot_be_announced_is_an_append(server: Postgres, name: str) -> None:
    execute(server.dsn, "DROP ROLE IF EXISTS silent")
    execute(server.dsn, "CREATE ROLE silent LOGIN")
    execute(server.dsn, "GRANT SELECT, UPDATE ON pmm_ledgers TO silent")
    execute(server.dsn, "GRANT SELECT, INSERT ON pmm_events TO silent")
    execute(server.dsn, "REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC")
    try:
        writer = Writer(server.dsn.replace("user=owner", "user=silent"), name)
        assert writer.append("one") == [1]
        assert writer.append("two") == [2]
        writer.close()
    finally:
        execute(server.dsn, "GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO PUBLIC")
    assert contents(server, name) == ["one", "two"]


def test_a_default_isolation_breaks_no_append(server: Postgres, name: str) -> None:
    dsn = make_conninfo(server.dsn, options=r"-c default_transaction_isolation=repeatable\ read")
    writers = [Writer(dsn, name) for _ in range(3)]

    def write(writer: Writer) -> None:
        for _ in range(15):
            writer.append("one")

    threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contents(server, name)) == 45


def test_a_frame_of_another_history_is_not_the_expected_head(host: Host) -> None:
    writer = Writer(host.dsn, host.name)
    writer.append("one", "old")
    with host.following():
        host.until_equal()
    with connect(host.ledger) as cache:
        frame = cache.frame()
        execute(host.dsn, f"DELETE FROM pmm_events WHERE id > 1 AND {_OF_LEDGER}", host.name)
        writer.append("new")
        with pytest.raises(HeadMovedError, match="another one than the one that was read"):
            cache.append("user", "decided", expected_head=frame, wait=False)


def test_a_follower_leaves_a_server_that_was_replaced_while_it_lives(tmp_path: Path) -> None:
    with postgres.running() as old:
        make_source(old.dsn, "agent")
        Writer(old.dsn, "agent").append("one")
        new = Postgres(old.folder.parent / "new", standby_of=old)
        servers = f"host=127.0.0.1,127.0.0.1 port={old.port},{new.port} user=owner dbname=postgres"
        host = Host(tmp_path / "host", servers, "agent")
        with host.following(REPLICA_LOOK_AROUND_S=0.3):
            until(lambda: len(host.rows()) == 1)
            new.promote()
            Writer(new.dsn, "agent").append("two")
            until(lambda: [row[3] for row in host.rows()] == ["one", "two"])
            assert host.status().server == f"127.0.0.1:{new.port}"
        new.close()


def test_an_append_waits_for_its_own_event_not_for_a_lost_one_with_its_id(host: Host) -> None:
    writer = Writer(host.dsn, host.name)
    writer.append("kept", "lost")
    with host.following():
        host.until_equal()
    execute(host.dsn, f"DELETE FROM pmm_events WHERE id > 1 AND {_OF_LEDGER}", host.name)
    with connect(host.ledger, timeout=0.4) as cache:
        with pytest.raises(ReplicaLaggingError) as caught:
            cache.append("user", "new")
        assert caught.value.ids == (2,)
        with pytest.raises(ReplicaLaggingError):
            cache.metrics(consistency="global")
        with host.following():
            host.until_equal()
            assert cache.recent(consistency="global").messages[-1].content == "new"


def test_a_worker_that_has_heard_of_a_promotion_leaves_the_old_primary(host: Host) -> None:
    with host.following():
        host.until_equal()
    with connect(host.ledger, timeout=0.3) as cache:
        role = cache.role("tick")
        assert role.claim()
        assert cache.append("user", "one", wait=False) == 1
        # The follower has met a server of a later timeline.
        ledgers.execute(host.ledger, "UPDATE pmm_replica SET timeline = 9")
        time.sleep(limits.ROLE_LEASE_S)
        assert not role.claim()
        with pytest.raises(SourceUnreachableError, match="timeline 1, and 9 was seen already"):
            cache.append("user", "two")


def _hold(dsn: str, name: str, held, asked) -> None:  # type: ignore[no-untyped-def]
    end_with_parent()
    role = SourceRole(Server(dsn, name), "tick")
    held.send(role.claim())
    asked.recv()
    held.send(role.is_held())


def test_a_stopped_holder_loses_its_role(server: Postgres, name: str) -> None:
    import multiprocessing

    theirs, ours = multiprocessing.Pipe(), multiprocessing.Pipe()
    process = in_child(_hold, server.dsn, name, theirs[1], ours[1])
    assert theirs[0].recv() is True
    os.kill(process.pid, signal.SIGSTOP)
    role = SourceRole(Server(server.dsn, name), "tick")
    assert not role.claim()
    until(role.claim)
    assert role.token == 2
    os.kill(process.pid, signal.SIGCONT)
    ours[0].send(None)
    assert theirs[0].recv() is False
    process.join()


def test_each_role_of_postgresql_needs_what_is_documented(host: Host, server: Postgres) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/many-machines.md").read_text(encoding="utf-8")
    grants = [line.strip() for line in page.splitlines() if line.startswith("    GRANT ")]
    assert len(grants) == 5
    for role in ("worker", "follower"):
        execute(server.dsn, f"DROP ROLE IF EXISTS {role}")
        execute(server.dsn, f"CREATE ROLE {role} LOGIN")
    for grant in grants:
        execute(server.dsn, grant)
    owner = host.dsn
    host.dsn = owner.replace("user=owner", "user=follower")
    with host.following():
        ledgers.execute(host.ledger, "UPDATE pmm_replica SET dsn = ?", owner.replace("user=owner", "user=worker"))
        with connect(host.ledger) as cache:
            assert cache.append("user", "one") == 1
            assert cache.recent(consistency="global").as_of == 1
            role = cache.role("tick")
            assert role.claim()
            role.resign()
            embedder = SourceEmbedder(UnitEmbedder(), Server(owner.replace("user=owner", "user=worker"), host.name))
            assert embedder.embed(["a"]).tolist() == [[1.0, 0.0]]
            with pytest.raises(EmbedderError):
                embedder.embed(["fails"])
        host.dsn = owner
        with psycopg.connect(owner) as connection:
            texts = connection.execute("SELECT vector IS NULL FROM pmm_text_vectors WHERE model = 'unit'").fetchall()
    assert texts == [(False,)]
    with pytest.raises(LedgerUnwritableError, match="permission denied"):
        Writer(owner.replace("user=owner", "user=follower"), host.name).append("two")


def test_a_follower_compares_all_blocks_in_turn(host: Host, writer: Writer) -> None:
    edit = f"UPDATE pmm_events SET content = %s WHERE id = %s AND {_OF_LEDGER}"
    for _ in range(11):
        writer.append(*map(str, range(100)))
    with host.following(REPLICA_AUDIT_S=0.0, REPLICA_SLOW_POLL_S=0.05):
        host.until_equal()
        for event_id in (1_050, 7):
            execute(host.dsn, edit, "edited", event_id, host.name)
            expected = f"event {event_id}: its values are others in the source"
            until(lambda expected=expected: host.status().difference == expected)
            assert f"event {event_id} differs from the source" in host.said()
            execute(host.dsn, edit, str((event_id - 1) % 100), event_id, host.name)
        writer.append("it follows on")
        host.until_equal()


def test_an_audit_finds_what_is_missing(host: Host, writer: Writer) -> None:
    writer.append("one", "two", "three")
    with host.following():
        host.until_equal()
    execute(host.dsn, f"DELETE FROM pmm_events WHERE id = 2 AND {_OF_LEDGER}", host.name)
    found = run("cluster", "audit", host.ledger)
    assert (found.code, "event 2: it is not in the source" in found.err) == (5, True)


@pytest.mark.parametrize(("rows_max", "bytes_max"), [(3, 1 << 20), (100, 5_000)])
def test_batches_are_bounded(
    server: Postgres, name: str, writer: Writer, monkeypatch: pytest.MonkeyPatch, rows_max: int, bytes_max: int
) -> None:
    monkeypatch.setattr(limits, "REPLICA_ROWS_MAX", rows_max)
    monkeypatch.setattr(limits, "REPLICA_BYTES_MAX", bytes_max)
    contents = [str(number) * (2_000 if number % 3 else 9_000) for number in range(10)]
    writer.append(*contents)
    primary = Server(server.dsn, name)
    head, found = None, []
    while True:
        pulled = pull(primary.connection(), primary.known_ledger().number, head, "full")
        assert pulled.continues
        assert len(pulled.rows) <= rows_max + 1
        # The anchor's row and one more come whatever their size.
        assert sum(len(row[3]) + len(row[4]) for row in pulled.rows[2:]) <= bytes_max
        found += pulled.rows
        head = found[-1]
        if pulled.is_complete:
            break
        assert pulled.rows
    primary.close()
    assert [row[3] for row in found] == contents


def test_a_fork_is_confirmed_by_three_connections_and_kept_for_the_owner_alone(
    host: Host, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.append("kept", "lost")
    with host.following():
        host.until_equal()
    execute(host.dsn, f"DELETE FROM pmm_events WHERE id > 1 AND {_OF_LEDGER}", host.name)
    opened: list[str] = []
    connect_one = SourceSession.connect.__func__  # type: ignore[attr-defined]

    def counting(cls: type[SourceSession], dsn: str, **options: object) -> SourceSession:
        opened.append(dsn)
        session: SourceSession = connect_one(cls, dsn, **options)
        return session

    monkeypatch.setattr(SourceSession, "connect", classmethod(counting))
    replica, primary = ReplicaFile(host.ledger), Server(host.dsn, host.name)
    primary.connection()
    lost = resolve(primary, replica, replica.head(), 1)
    primary.close()
    replica.close()
    assert lost is not None
    assert (lost.first_id, lost.events, len(opened)) == (2, 1, 1 + 3)
    assert Path(lost.path).stat().st_mode & 0o777 == 0o600

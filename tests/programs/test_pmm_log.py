"""PMM's EventLog on the shared cache in real processes: many writers, forks, daemons that die, ledgers that go."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.ledger.eventlog import EventLog as Writer
from pmm_shm_pmm import delivery, installing
from pmm_shm_pmm.autonomy import SUFFIX, holds_lock
from pmm_shm_pmm.log import log_of
from pmm_shm_pmm.settings import RunSettings
from tests.support import standin_ab, standin_package
from tests.support.fork_daemon import ForkedDaemon
from tests.support.forking import in_child
from tests.support.polling import until
from tests.support.standin_ab import append_as_another
from tests.support.standin_machine import run

PARTS = {"plain": frozenset({"log", "snapshot"}), "lazy": frozenset({"log", "snapshot", "lazy"})}
Make = Callable[[], Any]


@pytest.fixture(params=PARTS)
def new_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """`EventLog` of the launched stand-in, on one ledger."""
    with standin_package.importable():
        installing.install(RunSettings(parts=PARTS[request.param], starts_daemon=False), standin_package.hashes())
        from pmm.storage.eventlog import EventLog

        yield lambda: EventLog(str(tmp_path / "log.db"))
        installing.uninstall()


@pytest.fixture
def log(new_log: Make) -> Any:
    return new_log()


def chain(path: Path | str) -> list[tuple[int, Any, Any]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT id, prev_hash, hash FROM events ORDER BY id").fetchall()
    connection.close()
    return rows


def is_linear(path: Path | str) -> bool:
    rows = chain(path)
    return [row[1] for row in rows] == [None, *(row[2] for row in rows[:-1])] and len({row[2] for row in rows}) == len(
        rows
    )


# Threads.


def test_threads_hear_in_order_and_before_append_returns(log: Any) -> None:
    heard: list[int] = []
    late: list[int] = []

    def listener(event: Any) -> None:
        if event["id"] % 7 == 0:
            time.sleep(0.001)
        heard.append(event["id"])
        if event["id"] % 20 == 0 and event["id"] <= 100:
            log.append("note", "of a listener")

    def appends() -> None:
        for number in range(40):
            # Every fifth one is stored by PMM's own append.
            event_id = log.append("user" if number % 5 else "", "x")
            if event_id not in heard:
                late.append(event_id)

    log.register_append_listener(listener)
    threads = [threading.Thread(target=appends) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        append_as_another(Path(log.path), "note", str(number), {})
    for thread in threads:
        thread.join(30)
    log.read_all()
    assert heard == list(range(1, len(heard) + 1))
    assert len(heard) >= 180
    assert late == []
    assert [event["id"] for event in log.read_all()] == heard
    assert is_linear(log.path)


def test_an_append_within_the_lock_that_a_listener_wants(log: Any) -> None:
    heard: list[int] = []
    begun = threading.Event()

    def wants_the_lock(event: Any) -> None:
        begun.set()
        time.sleep(0.05)
        with log._lock:
            log.register_append_listener(lambda event: None)
            heard.append(event["id"])

    log.register_append_listener(wants_the_lock)
    thread = threading.Thread(target=log.append, args=("user", "x"))
    thread.start()
    begun.wait(10)
    began_s = time.monotonic()
    with log._lock:
        log.append("user", "y")
    assert time.monotonic() - began_s < delivery.WAIT_S
    thread.join(10)
    log.read_all()
    assert heard == [1, 2]


# Processes.


def _agent(path: str, parts: frozenset[str], number: int, count: int, out: str) -> None:
    with standin_package.importable():
        installing.install(RunSettings(parts=parts, starts_daemon=False), standin_package.hashes())
        from pmm.storage.eventlog import EventLog

        log = EventLog(path)
        heard: list[list[int]] = [[], [], []]
        late = 0
        for one in heard:
            log.register_append_listener(lambda event, one=one: one.append(event["id"]))
        Path(f"{out}.ready").touch()
        until(Path(path + ".go").exists, "the others")
        for place in range(count):
            event_id = log.append("user", f"{number}: {place}", {"place": place})
            late += any(event_id not in one for one in heard)
            log.read_tail(limit=3)
            time.sleep(0.002)
        Path(f"{out}.done").touch()
        until(lambda: _is_all_there(path, count), "the others to end")
        log.read_all()
        Path(out).write_text(json.dumps([heard, late, [event["id"] for event in log.read_all()]]), encoding="utf-8")


def _is_all_there(path: str, count: int) -> bool:
    return all(Path(f"{path}.{number}.done").exists() for number in range(3))


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_three_processes_with_three_listeners_each_while_the_daemon_dies_twice(
    tmp_path: Path, parts: frozenset[str]
) -> None:
    ledger = tmp_path / "log.db"
    with Writer(ledger) as writer:
        writer.append("user", "first")
    count = 150
    outs = [f"{ledger}.{number}" for number in range(3)]
    daemon = ForkedDaemon(ledger)
    agents = [in_child(_agent, str(ledger), parts, number, count, out) for number, out in enumerate(outs)]
    for out in outs:
        until(Path(f"{out}.ready").exists, "the processes")
    Path(f"{ledger}.go").touch()
    for part in (3, 2):
        until(lambda part=part: len(chain(ledger)) > 3 * count // part, "appends")
        daemon.kill()
        daemon = ForkedDaemon(ledger)
    for agent in agents:
        agent.join(60)
        assert agent.exitcode == 0
    daemon.kill()
    everything = list(range(1, 3 * count + 2))
    assert [row[0] for row in chain(ledger)] == everything
    assert is_linear(ledger)
    for out in outs:
        heard, late, live = json.loads(Path(out).read_text(encoding="utf-8"))
        assert heard == [everything[1:]] * 3
        assert late == 0
        assert live == everything


def test_a_fork_keeps_no_connection_open(log: Any, new_log: Make) -> None:
    heard: list[int] = []
    log.register_append_listener(lambda event: heard.append(event["id"]))
    log.append("user", "before")
    log.read_all()
    children = []
    for number in range(2):
        if not (child := os.fork()):
            code = 1
            try:
                for place in range(30):
                    # Every third one through PMM's own connection.
                    log.append("user" if place % 3 else "", f"{number}: {place}")
                assert log._conn.execute("SELECT count(*) FROM events").fetchone()[0] >= 31
                assert len(heard) >= 31
                log.read_all()
                assert heard == [event["id"] for event in log.read_all()]
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for place in range(30):
        log.append("user" if place % 3 else "", f"parent: {place}")
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert codes == [0, 0]
    log.read_all()
    assert heard == list(range(1, 92))
    assert is_linear(log.path)
    assert len(chain(log.path)) == 91


def test_a_fork_within_a_transaction_or_after_a_close(log: Any) -> None:
    log.append("user", "x")
    with log._lock:
        log._conn.execute("INSERT INTO event_embeddings (eid) VALUES (1)")
        if not (child := os.fork()):
            os._exit(0)
        os.waitpid(child, 0)
        log._conn.commit()
    assert log._conn.execute("SELECT count(*) FROM event_embeddings").fetchone() == (1,)
    log._conn.close()
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(sqlite3.ProgrammingError):
        log._conn.execute("SELECT 1")


# Misfortunes in the middle of a turn.


def test_a_ledger_that_is_replaced(log: Any, tmp_path: Path) -> None:
    for number in range(5):
        log.append("user", str(number))
    live = log.read_all()
    assert len(list(live)) == 5
    heard: list[str] = []
    log.register_append_listener(lambda event: heard.append(event["content"]))
    with Writer(tmp_path / "new.db") as writer:
        writer.append("user", "another log")
    for name in ("-wal", "-shm"):
        Path(log.path + name).unlink(missing_ok=True)
    os.replace(tmp_path / "new.db", log.path)
    # The turn goes on: what it appends from now on is in the new ledger.
    assert log.append("user", "after") == 2
    assert [event["content"] for event in log.read_all()] == ["another log", "after"]
    assert heard == ["after"]
    assert len(live) == 5
    assert [row[0] for row in chain(log.path)] == [1, 2]
    assert is_linear(log.path)


def test_a_disk_that_is_full(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    log.register_append_listener(lambda event: heard.append(event["id"]))
    log.append("user", "before")
    live = log.read_all()
    pages = log._conn.execute("PRAGMA page_count").fetchone()[0]
    log._conn.execute(f"PRAGMA max_page_count = {pages}")

    def is_full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(log_of(log).cache), "append", is_full)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            log.append("user", "x" * 100_000)
        assert not log._conn.in_transaction
        assert [event["id"] for event in log.read_all()] == [1]
    log._conn.execute(f"PRAGMA max_page_count = {pages + 1_000}")
    assert log.append("user", "after") == 2
    assert [event["id"] for event in live] == heard == [1, 2]


# The autonomy.


def test_one_process_has_the_role_until_it_ends(tmp_path: Path) -> None:
    ledger = str(tmp_path / "log.db")
    assert holds_lock(ledger)
    assert holds_lock(ledger)
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"held" if holds_lock(ledger) else b"free")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 9) == b"free"
    os.unlink(ledger + SUFFIX)
    assert holds_lock(ledger)
    assert os.path.exists(ledger + SUFFIX)


def test_the_next_process_gets_the_role_when_its_holder_ends(tmp_path: Path) -> None:
    ledger = str(tmp_path / "log.db")
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"held" if holds_lock(ledger) else b"free")
        # A child of the holder keeps the lock of nobody.
        if not os.fork():
            time.sleep(5)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 9) == b"held"
    assert holds_lock(ledger)


def _ticks(path: str, out: str) -> None:
    with standin_package.importable():
        settings = RunSettings(starts_daemon=False, elects_autonomy=True)
        installing.install(settings, standin_package.hashes())
        from pmm.runtime.loop import AutonomyLoop, Runtime
        from pmm.storage.eventlog import EventLog

        log = EventLog(path)
        loop = AutonomyLoop(log, Runtime(log))
        found = [loop.tick() for _ in range(3)]
        Path(out).write_text(json.dumps(found), encoding="utf-8")
        until(Path(path + ".end").exists, "the end")


def test_of_two_processes_one_ticks(tmp_path: Path) -> None:
    ledger = str(tmp_path / "log.db")
    first = in_child(_ticks, ledger, ledger + ".1")
    until(Path(ledger + ".1").exists, "the first process")
    second = in_child(_ticks, ledger, ledger + ".2")
    until(Path(ledger + ".2").exists, "the second process")
    Path(ledger + ".end").touch()
    first.join(20)
    second.join(20)
    found = [json.loads(Path(f"{ledger}.{number}").read_text(encoding="utf-8")) for number in (1, 2)]
    assert None not in found[0]
    assert found[1] == [None, None, None]
    third = in_child(_ticks, ledger, ledger + ".3")
    third.join(20)
    assert None not in json.loads(Path(ledger + ".3").read_text(encoding="utf-8"))


# Whatever may happen.


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_the_log_alone_changes_nothing_of_an_agent(parts: frozenset[str]) -> None:
    variables = {"PMM_SHM_PATCHES": ",".join(sorted(parts)), "PMM_SHM_DAEMON": "off"}
    with standin_ab.pair(variables=variables) as agents:
        run(agents, 25)

"""`--timeout` bounds all waiting of a command, whatever it waits for; and a daemon beside a program that keeps the
ledger for itself says what it waits for, and goes on when that program ends.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm.errors import DaemonTimeoutError, LedgerBusyError
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.restore import restore
from pmm_shm_client import EventLog, connect
from tests.support import ledgers
from tests.support.command import run
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon
from tests.support.waiting import at_most

HOLD = """
import sqlite3, sys
how, path = sys.argv[1:]
ledger = sqlite3.connect(path, isolation_level=None)
if how == "exclusive":
    ledger.execute("PRAGMA locking_mode = EXCLUSIVE")
    ledger.execute("BEGIN IMMEDIATE")
    ledger.execute("COMMIT")
elif how == "reading":
    ledger.execute("BEGIN")
    ledger.execute("SELECT count(*) FROM events").fetchall()
else:
    ledger.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
"""
HOLDERS = {"wal": "exclusive", "delete": "transaction"}
TIMEOUT_S, MARGIN_S = 0.4, 1.5
WAITING = (
    ("read", "metrics"),
    ("read", "metrics", "--consistency", "wait"),
    ("status",),
    ("verify",),
    ("invalidate",),
    ("replay", "metrics"),
    ("explain", "metrics"),
    ("embed",),
    ("embed", "--text", "hello"),
    ("search", "hello"),
    ("backup", "COPY"),
)


class Holder:
    """Another program that keeps a ledger for itself."""

    def __init__(self, ledger: str, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, how, ledger], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(params=sorted(HOLDERS))
def journal(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def held(tmp_path: Path, journal: str) -> Iterator[tuple[str, Holder]]:
    ledger = ledgers.build(tmp_path / "held.db", 5, journal=journal)
    with Holder(ledger, HOLDERS[journal]) as holder:
        yield ledger, holder


def timed(*arguments: str) -> tuple[int, str, str, float]:
    began = time.monotonic()
    code, out, err = run(*arguments)
    return code, out, err, time.monotonic() - began


def test_a_timeout_bounds_every_command_beside_an_exclusive_holder(held: tuple[str, Holder], tmp_path: Path) -> None:
    """The message names the process that holds the ledger."""
    ledger, holder = held
    commands = [(command, ledger, *rest) for command, *rest in WAITING]
    commands.append(("append", ledger, "user", "x"))
    for command in commands:
        words = [str(tmp_path / "copy.db") if word == "COPY" else word for word in command]
        code, _, err, took_s = timed(*words, "--timeout", str(TIMEOUT_S))
        assert (code, took_s < TIMEOUT_S + MARGIN_S) == (1, True), (words, took_s, err)
        assert "busy for 0." in err, words
        assert f"process {holder.process.pid} (python" in err, words
    code, out, _, took_s = timed("doctor", ledger, "--json", "--timeout", str(TIMEOUT_S))
    assert took_s < TIMEOUT_S + MARGIN_S
    rows = [one for one in json.loads(out)["findings"] if one["check"] == "rows"]
    assert [one["severity"] for one in rows] == ["warning"]
    assert f"process {holder.process.pid} (python" in rows[0]["found"]


def test_a_timeout_bounds_every_command_beside_a_stopped_daemon(tmp_path: Path) -> None:
    """Ledger and daemon share one deadline."""
    ledger = ledgers.build(tmp_path / "stopped.db", 5)
    with ForkedDaemon(Path(ledger)) as daemon:
        with connect(ledger) as cache:
            cache.wait_for(5)
        daemon.freeze()
        for command, code in (
            (("status",), 4),
            (("verify",), 4),
            (("invalidate",), 4),
            (("embed",), 4),
            (("embed", "--text", "hello"), 0),
            (("doctor",), 1),
        ):
            name, *rest = command
            found, _, err, took_s = timed(name, ledger, *rest, "--timeout", str(TIMEOUT_S))
            assert (found, took_s < TIMEOUT_S + MARGIN_S) == (code, True), (command, took_s, err)


def test_a_daemon_beside_an_exclusive_holder_says_so_and_serves_when_it_leaves(held: tuple[str, Holder]) -> None:
    """It is there and degraded, not silent, not gone; SIGTERM ends it at once all the same."""
    ledger, holder = held
    log = Path(f"{ledger}.log")
    log.touch()
    with ForkedDaemon(Path(ledger), log=log, waits=False) as daemon:
        until(lambda: "degraded" in log.read_text(encoding="utf-8"), "the daemon says what it waits for")
        assert f"process {holder.process.pid} (python" in log.read_text(encoding="utf-8")
        assert daemon.is_alive
        holder.process.kill()
        holder.process.wait()
        until(lambda: run("status", ledger)[0] == 0, "the daemon serves")
        with connect(ledger) as cache:
            assert cache.metrics(consistency="snapshot").as_of == 5
        with Holder(ledger, "transaction"), at_most(2.0):
            assert daemon.stop() == 0


def test_a_read_that_waits_for_the_daemon_has_one_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of it was spent on a busy ledger: the rest is for the daemon, not as much again."""
    ledger = ledgers.build(tmp_path / "one.db", 5)
    with ForkedDaemon(Path(ledger)) as daemon, connect(ledger, consistency="wait", timeout=1.0) as cache:
        assert cache.metrics().as_of == 5
        daemon.freeze()
        cache.append("user", "not published")
        before = cache._head

        def busy_head() -> int:
            time.sleep(0.7)
            return before()

        monkeypatch.setattr(cache, "_head", busy_head)
        with pytest.raises(DaemonTimeoutError) as caught:
            cache.metrics()
        (waited_s,) = re.findall(r"within ([\d.]+) s$", str(caught.value))
        assert float(waited_s) <= 0.3


def test_a_busy_ledger_names_its_holder(tmp_path: Path, journal: str) -> None:
    """This process itself, another one, or, where readers keep a writer waiting, not the writer itself."""
    ledger = ledgers.build(tmp_path / "who.db", 5, journal=journal)
    log = EventLog(ledger, timeout=0.1)
    own = sqlite3.connect(ledger, isolation_level=None)
    own.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError, match=r"busy for 0.1 s, held by another connection of this process; nothing"):
        log.append("user", "x")
    own.execute("ROLLBACK")
    own.close()
    with Holder(ledger, "transaction") as holder:
        named = rf"process {holder.process.pid} \(python[^)]*\)"
        with pytest.raises(
            LedgerBusyError, match=rf"busy for 0.1 s(, held by {named}; nothing was written|; {named} .*)$"
        ):
            log.append("user", "x")
    if journal == "delete":
        with Holder(ledger, "reading") as holder:
            named = rf"process {holder.process.pid} \(python[^)]*\)"
            with pytest.raises(LedgerBusyError, match=rf"held by {named}; nothing was written$"):
                log.append("user", "x")
            backup(ledger, tmp_path / "copy.db")
            with pytest.raises(LedgerBusyError, match=rf"held by {named}(; nothing was written)?$"):
                restore(tmp_path / "copy.db", ledger, timeout=0.1)
        own = sqlite3.connect(ledger, isolation_level=None)
        rows = own.execute("SELECT id FROM events")
        rows.fetchone()
        with pytest.raises(LedgerBusyError, match=r"held by another connection of this process$"):
            restore(tmp_path / "copy.db", ledger, timeout=0.1)
        rows.close()
        own.close()
    assert log.append("user", "x") == 6
    log.close()

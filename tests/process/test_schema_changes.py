"""A foreign program changes the schema of a ledger in use: answers stay exact, and nothing begins again for ever."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pmm_shm import limits
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import Cache, connect
from tests.support import ledgers
from tests.support.command import is_one_line, run
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon

EVENTS = limits.SEAL_BLOCK_ROWS + 200
"""A block of seals, and one that is not full."""
ADD_TENANT = "ALTER TABLE events ADD COLUMN tenant TEXT NOT NULL DEFAULT 'a'"
ADD_HASHES = "ALTER TABLE events ADD COLUMN prev_hash TEXT; ALTER TABLE events ADD COLUMN hash TEXT"
CHANGES = {
    "a column": ADD_TENANT,
    "two columns": f"{ADD_TENANT}; ALTER TABLE events ADD COLUMN score REAL",
    "a column and its values": f"{ADD_TENANT}; UPDATE events SET tenant = 't' || id",
    "a trigger": "CREATE TABLE audit (n); "
    "CREATE TRIGGER note AFTER INSERT ON events BEGIN INSERT INTO audit VALUES (1); END",
    "hashes": ADD_HASHES,
    "another name": "ALTER TABLE events RENAME COLUMN label TO title",
}
HARMLESS = (
    "VACUUM",
    "CREATE TABLE other (events)",
    "CREATE INDEX own ON events (content)",
    "REINDEX",
    "CREATE TRIGGER others AFTER INSERT ON other BEGIN SELECT 1; END",
    "DROP INDEX own",
    "ANALYZE",
)


class Site(NamedTuple):
    """A ledger with a daemon that has verified and sealed it, and its log."""

    path: str
    daemon: ForkedDaemon
    cache: Cache
    log_file: Path

    def numbers(self) -> dict[str, Any]:
        return until(lambda: self.cache.stats()["daemon"], "the daemon's numbers")

    def lines(self, *levels: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.log_file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["level"] in (levels or ("warning", "error"))]


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(hash_columns: bool = True, journal: str = "wal") -> Site:
        path = ledgers.build(tmp_path / "l.db", EVENTS, hash_columns=hash_columns, journal=journal)
        ledgers.execute(path, "ALTER TABLE events ADD COLUMN label TEXT")
        log_file = tmp_path / "log"
        daemon = ForkedDaemon(Path(path), "--log-format", "json", log=log_file)
        site = Site(path, daemon, connect(path), log_file)
        made.append(site)
        until(lambda: site.numbers()["verified_as_of"] == EVENTS, "everything is sealed")
        return site

    yield make
    for site in made:
        site.cache.close()
        site.daemon.kill()


def alter(path: str, script: str) -> None:
    connection = ledgers.connect(path)
    connection.executescript(script)
    connection.close()


def replays_of_a_new_worker(path: str) -> int:
    """How often a new worker folds the log from its first event, for an exact read."""
    with connect(path) as cache:
        cache.frame()
        return cache._reader.replays


@pytest.mark.parametrize(("name", "journal"), [*((name, "wal") for name in CHANGES), ("a column", "delete")])
def test_the_table_of_events_changes_under_daemon_and_workers(
    make_site: Callable[..., Site], name: str, journal: str
) -> None:
    """The case of the public report, and others of its kind."""
    site = make_site(hash_columns=name != "hashes", journal=journal)
    with EventLog(site.path) as log:
        alter(site.path, CHANGES[name])
        # Before the daemon can have noticed it: what it published still counts.
        assert replays_of_a_new_worker(site.path) == 0
        until(lambda: site.lines(), "the daemon says why")
        for number in range(3):
            appended = log.append("user", f"after {number}")
            assert appended == site.cache.wait_for(appended) == site.cache.metrics().as_of
        assert replays_of_a_new_worker(site.path) == 0
        assert site.cache.verify().ok
        assert log.verify_chain().ok
        until(lambda: site.numbers()["verified_as_of"] == appended, "the verification that seals anew")
        numbers = site.numbers()
        assert (numbers["rebuilds"], numbers["history_breaks"], numbers["verifications_failed"]) == (1, 0, 0)
        assert [line["event"] for line in site.lines()] == ["the table `events` has changed: its rows are sealed anew"]
        # All columns are sealed now, those that were added, too.
        column = "hash" if name == "hashes" else list(ledgers.execute(site.path, "PRAGMA table_info(events)"))[-1][1]
        ledgers.execute(site.path, f"UPDATE events SET {column} = 'edited' WHERE id = 7")
        assert not site.cache.verify().ok


def test_an_added_column_hides_no_edit(make_site: Callable[..., Site]) -> None:
    """Whoever edits a sealed row cannot have it sealed anew by changing the table."""
    for victim in (7, limits.SEAL_BLOCK_ROWS + 7):
        site = make_site()
        ledgers.execute(site.path, "UPDATE events SET ts = 'edited' WHERE id = ?", victim)
        alter(site.path, ADD_TENANT)
        until(lambda s=site: s.numbers()["verifications_failed"] == 1, "the edit is found")
        assert "was changed" in site.numbers()["last_difference"]
        until(lambda s=site: s.numbers()["rebuilds"] == 2, "one rebuild")
        assert site.cache.verify().ok
        site.daemon.kill()
        site.cache.close()
        for path in (site.path, site.path + "-wal", site.path + "-shm", str(site.log_file)):
            Path(path).unlink(missing_ok=True)
        shutil.rmtree(site.path + "-cache")


def test_the_table_changes_while_no_daemon_runs(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site()
    assert site.daemon.stop() == 0
    alter(site.path, ADD_TENANT)
    time.sleep(limits.TRUST_PERIOD_S)
    with connect(site.path) as cache:
        appended = cache.append("user", "after")
        assert cache.metrics().as_of == site.cache.metrics().as_of == appended
        assert cache._reader.replays == site.cache._reader.replays == 0
        report = cache.verify()
        assert (report.ok, report.sealed_blocks) == (True, 2)
        with ForkedDaemon(Path(site.path), "--log-format", "json", log=tmp_path / "second") as daemon:
            # Its first verification may begin before the newest event is folded.
            until(lambda: cache.stats()["daemon"]["verified_as_of"] >= EVENTS, "sealed anew")
            assert cache.stats()["daemon"]["rebuilds"] == 0
            ledgers.execute(site.path, "UPDATE events SET tenant = 'edited' WHERE id = 7")
            assert not cache.verify().ok
            assert daemon.is_alive


def test_a_removed_column_costs_one_rebuild(make_site: Callable[..., Site]) -> None:
    """Nothing can be compared with the digests of a column that is gone."""
    site = make_site()
    alter(site.path, "ALTER TABLE events DROP COLUMN label")
    until(lambda: site.numbers()["rebuilds"] == 2 and site.numbers()["verified_as_of"] == EVENTS, "rebuilt, and sealed")
    assert site.numbers()["last_difference"] == "columns of the table `events` were removed"
    appended = site.cache.append("user", "after")
    assert site.cache.wait_for(appended) == appended
    assert site.cache.verify().ok
    assert replays_of_a_new_worker(site.path) == 0
    assert (site.numbers()["rebuilds"], len(site.lines())) == (2, 2)


def test_other_changes_of_the_schema_only_mean_look_again(make_site: Callable[..., Site]) -> None:
    """Hazard 27, for the schema."""
    site = make_site()
    with EventLog(site.path) as log:
        metrics, epochs = site.cache.metrics(), (site.cache._reader.connection.epoch, log._reader.epoch)
        for sql in HARMLESS:
            ledgers.execute(site.path, sql)
            time.sleep(limits.TRUST_PERIOD_S)
            assert site.cache.metrics() == metrics
            assert len(log.read_tail(5)) == 5
        assert (site.cache._reader.connection.epoch, log._reader.epoch) == epochs
        assert site.cache.verify().ok
    assert (site.lines(), site.numbers()["rebuilds"]) == ([], 1)


def test_the_table_is_replaced_by_one_without_integer_ids(make_site: Callable[..., Site]) -> None:
    """The daemon says so, once, as does its indexer if it looks, and both go on when the table is as it was."""
    site = make_site()
    alter(
        site.path,
        "BEGIN; ALTER TABLE events RENAME TO kept; "
        "CREATE TABLE events (id TEXT PRIMARY KEY, ts, kind, content, meta); COMMIT",
    )
    until(lambda: "column `id`" in str(site.numbers()["problem"]), "the daemon is degraded")
    for command in ("status", "verify", "read", "append"):
        ran = run(command, site.path, *{"read": ["metrics"], "append": ["user", "x"]}.get(command, []))
        assert ran.code != 0
        assert is_one_line(ran.err), command
        assert "column `id`" in ran.err
    alter(site.path, "BEGIN; DROP TABLE events; ALTER TABLE kept RENAME TO events; COMMIT")
    until(lambda: site.numbers()["problem"] is None, "the daemon goes on")
    assert site.cache.append("user", "after") == EVENTS + 1
    assert site.cache.wait_for(EVENTS + 1) == EVENTS + 1
    said = [line["event"] for line in site.lines("error")]
    assert said in (["degraded"], ["degraded", "indexing failed"])

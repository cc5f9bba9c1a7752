"""Logs of other programs, with a daemon: exact beside a writer that knows nothing of it, verified, and purged."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm.errors import ConfigError, FoldError, SnapshotUnavailableError
from pmm_shm.folds.state import State
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.rows import Event
from pmm_shm.ledger.shape import Shape
from pmm_shm.ledger.shape_record import read_shape, record_shape
from pmm_shm_client import Cache, connect
from tests.support.command import is_one_line, run
from tests.support.foreign_logs import ALL, BIGINT, BLOB, COLUMNS, FOLDS, JOIN, ForeignLog, Sums, sums_of, toml_of
from tests.support.fork_daemon import ForkedDaemon
from tests.support.forking import end_with_parent, in_child
from tests.support.ledgers import checkout_path
from tests.support.polling import until

ROWS = 2_500


def toml(folder: Path, shape: Shape) -> str:
    file = folder / f"{shape.name}-{shape.version}-{shape.identity[:6]}.toml"
    file.write_text(toml_of(shape), encoding="utf-8")
    return str(file)


def published(cache: Cache) -> bool:
    """Whether reads stand on what the daemon has published."""
    try:
        cache.fold("sums", consistency="snapshot")
    except SnapshotUnavailableError:
        return False
    return True


def _write(name: str, path: str, first: int, last: int) -> None:
    """Another program: it has no idea of pmm-shm."""
    end_with_parent()
    handle = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    handle.execute("PRAGMA synchronous = OFF")
    for number in range(first, last + 1):
        ALL[name].pay(handle, number, "abc"[number % 3], number)
    handle.close()


def test_exact_beside_a_foreign_writer_while_the_daemon_is_killed(tmp_path: Path) -> None:
    path, count = tmp_path / "app.db", 400
    log = JOIN
    log.make(path, 50).close()
    writer = in_child(_write, log.shape.name, str(path), 51, count)
    seen = 50
    with connect(path, shape=log.shape) as cache, sqlite3.connect(path) as own:
        for _ in range(2):
            with ForkedDaemon(path, "--shape", toml(tmp_path, log.shape)) as daemon:
                until(lambda: published(cache), "the first publication")
                for _ in range(30):
                    committed = own.execute("SELECT count(*) FROM main.events").fetchall()[0][0]
                    sums = cache.fold("sums")
                    # The sum of 1 to n tells n.
                    seen = next(n for n in range(committed, count + 1) if n * (n + 1) // 2 == sum(sums.values()))
                    assert sums == sums_of(seen)
                daemon.kill()
        writer.join(30)
        assert writer.exitcode == 0
        assert seen >= 50
        assert cache.fold("sums") == sums_of(count)
        with ForkedDaemon(path):
            assert cache.wait_for(cache.frame().as_of) == cache.frame().as_of
            assert published(cache)
            assert cache.fold("sums") == sums_of(count)
            report = cache.verify()
            assert (report.ok, report.folds, report.events) == (True, ("sums",), count)


@pytest.fixture(scope="module", params=ALL.values(), ids=ALL)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, ForeignLog]]:
    """A log of each kind, and a daemon that was told its shape."""
    log, folder = request.param, tmp_path_factory.mktemp("served")
    path = folder / "app.db"
    log.make(path, 30).close()
    with ForkedDaemon(path, "--shape", toml(folder, log.shape)):
        with connect(path) as cache:
            until(lambda: published(cache), "the first publication")
        yield path, log


def test_the_shape_is_recorded_and_needs_no_second_naming(served: tuple[Path, ForeignLog]) -> None:
    path, log = served
    with connect(path) as cache, EventLog(path) as events:
        assert cache.shape == events.shape == log.shape
        before = cache.fold("sums")
        newest = events.read_tail(1)[0]["id"]
        assert cache.wait_for(newest) == newest
        stats = cache.stats()
        assert stats["daemon"] is not None
        assert (stats["daemon"]["shape"], stats["daemon"]["folds"]) == (str(log.shape), ["sums"])
        assert stats["projection"]["replayed"] == 0
        assert before == cache.fold("sums", consistency="wait")
        assert cache.verify().ok
        with pytest.raises(ConfigError, match="differs"):
            connect(path, shape=dataclasses.replace(log.shape, name="another"))


@pytest.mark.parametrize("served", [JOIN], indirect=True, ids=["join"])
def test_commands_find_the_shape(served: tuple[Path, ForeignLog]) -> None:
    path, _ = served
    name = str(path)
    read = run("read", name, "sums", "--json")
    assert (json.loads(read.out), read.err) == (sums_of(30), "")
    assert json.loads(run("replay", name, "sums", "--json").out) == sums_of(30)
    assert json.loads(run("read", name, "frame", "--json").out)["sums"] == sums_of(30)
    verified = run("verify", name, "--fold", "sums")
    assert (verified.code, "equals a full replay" in verified.out) == (0, True)
    for what in ("metrics", "nothing"):
        refused = run("read", name, what)
        assert refused.code == 2
        assert is_one_line(refused.err)
        assert "it has: sums" in refused.err
    appended = run("append", name, "user", "hello")
    assert appended.code == 1
    assert is_one_line(appended.err)
    assert "a log of another program" in appended.err


@pytest.mark.parametrize("served", [JOIN], indirect=True, ids=["join"])
def test_nothing_speaks_of_scores(served: tuple[Path, ForeignLog]) -> None:
    path, log = served
    for words in (("status",), ("status", "--verbose"), ("status", "--json"), ("top", "--once"), ("doctor",)):
        shown = run(words[0], str(path), *words[1:])
        assert shown.code == 0, shown
        assert not any(word in shown.out for word in ("IAS", "GAS", "ias", "hash chain", "hash-chain", "self_model"))
        assert words[0] == "top" or str(log.shape) in shown.out
    assert not Instance.of(path).words_file.exists()


def test_the_doctor_of_another_programs_log(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = BLOB.make(path, 3)
    writer.execute("PRAGMA journal_mode = DELETE").fetchall()
    writer.close()
    path.chmod(0o644)
    named = (*FOLDS, "tests.support.absent:Fold")
    other = dataclasses.replace(BLOB.shape, kinds={"bank:Paid": "__main__:Paid"}, folds=named)
    Instance.of(path).directory.mkdir(mode=0o700)
    record_shape(Instance.of(path), other)
    found = json.loads(run("doctor", str(path), "--json").out)["findings"]
    assert not any(word in str(found) for word in ("agent", "chmod o-rwx", "PRAGMA journal_mode", "switch to WAL"))
    folds = [(one["severity"], one["found"], one["meaning"]) for one in found if one["check"] == "folds"]
    assert folds[0] == (
        "note",
        "none of the newest 3 events is of a kind that the fold 'sums' needs",
        "they are of '__main__:Paid'; it needs 'paid'",
    )
    assert (folds[1][0], "tests.support.absent" in folds[1][1], len(folds)) == ("warning", True, 2)
    record_shape(Instance.of(path), dataclasses.replace(BLOB.shape, version=2))
    found = json.loads(run("doctor", str(path), "--json").out)["findings"]
    assert [one["severity"] for one in found if one["check"] == "folds"] == ["ok"]


def test_a_daemon_outlives_the_record(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = JOIN.make(path, 6)
    with started(path, JOIN), connect(path) as cache:
        until(lambda: published(cache), "the first publication")
        Instance.of(path).shape_file.unlink()
        JOIN.pay(writer, 7, "b", 7)
        assert cache.fold("sums") == sums_of(7)
        assert cache.verify().ok
        cache.invalidate()
        until(lambda: published(cache), "the rebuild")
        assert cache.verify().ok


# What is not an append.


def started(path: Path, log: ForeignLog, *options: str) -> ForkedDaemon:
    return ForkedDaemon(path, "--shape", toml(path.parent, log.shape), *options)


def test_an_edit_is_noticed_and_repaired(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = JOIN.make(path, ROWS)
    with started(path, JOIN), connect(path) as cache:
        until(lambda: published(cache), "the first publication")
        assert cache.verify().ok
        # In the joined table, of a row far behind: no anchor covers it.
        writer.execute("UPDATE data SET shared = replace(shared, '\"cents\": 100', '\"cents\": 7') WHERE data_id = 100")
        report = cache.verify()
        assert not report.ok
        assert "was changed" in str(report.difference)
        assert cache.fold("sums")["b"] == sums_of(ROWS)["b"] - 93
        until(lambda: published(cache), "the rebuild")
        assert cache.verify().ok


def test_a_row_that_only_the_reader_had_folded(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = COLUMNS.make(path, 6)
    with started(path, COLUMNS) as daemon, connect(path) as cache:
        until(lambda: published(cache), "the first publication")
        daemon.freeze()
        for number in (7, 8):
            COLUMNS.pay(writer, number, "abc"[number % 3], number)
        assert cache.fold("sums") == sums_of(8)
        writer.execute("DELETE FROM payments WHERE number = 7")
        daemon.thaw()
        cache.wait_for(8)
        # The daemon has never seen it, so its state is right.
        assert cache.verify().ok
        assert cache.fold("sums") == {**sums_of(8), "b": sums_of(6)["b"]}


def test_a_purge_of_old_rows_is_one_rebuild_and_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = COLUMNS.make(path, ROWS)
    left = {
        account: sum(number for number in range(1_501, ROWS + 1) if "abc"[number % 3] == account) for account in "abc"
    }
    with started(path, COLUMNS), connect(path) as cache:
        until(lambda: published(cache) and cache.verify().sealed_blocks > 0, "the seals")
        writer.execute("DELETE FROM payments WHERE number <= 1500")
        # Until the next verification the answers are those of the whole log.
        assert cache.fold("sums") == sums_of(ROWS)
        report = cache.verify()
        assert not report.ok
        assert "the rows before event 1501 were removed" in str(report.difference)
        until(lambda: cache.fold("sums") == left, "the rebuild")
        until(lambda: cache.verify().sealed_blocks > 0, "new seals")
        for _ in range(3):
            assert cache.verify().ok
        stats = cache.stats()["daemon"]
        assert stats is not None
        assert (stats["rebuilds"], stats["verifications_failed"], stats["health"]) == (2, 0, "healthy")
        assert cache.stats()["projection"]["replayed"] == 0
        # An edit is found as before.
        writer.execute("UPDATE payments SET cents = 0 WHERE number = 1600")
        assert "was changed" in str(cache.verify().difference)


def test_a_log_that_loses_a_row_with_each_new_one(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = COLUMNS.make(path, 300)
    writer.execute(
        "CREATE TRIGGER ring AFTER INSERT ON payments BEGIN DELETE FROM payments WHERE number <= new.number - 200; END"
    )
    with started(path, COLUMNS, "--verify-every", "0"), connect(path) as cache:
        until(lambda: published(cache), "the first publication")
        # No verification has passed, so there are no seals.
        for last in (310, 320):
            for number in range(last - 9, last + 1):
                COLUMNS.pay(writer, number, "a", number)
            cache.wait_for(last)
            assert f"the rows before event {last - 199} were removed" in str(cache.verify().difference)
            until(lambda: cache.verify().ok, "the rebuild")
            writer.execute("UPDATE payments SET cents = cents + 1 WHERE number = 250")
            assert "were removed" not in str(cache.verify().difference)
            until(lambda: published(cache), "the rebuild")
        stats = cache.stats()["daemon"]
        assert stats is not None
        assert (stats["verifications_failed"], stats["history_breaks"]) == (2, 0)


def test_a_reader_without_a_daemon_sees_the_rows_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = BLOB.make(path, 10)
    writer.execute("DELETE FROM stored_events WHERE rowid <= 9")
    with connect(path, shape=BLOB.shape) as cache:
        assert cache.fold("sums") == {"b": 10}


@pytest.mark.parametrize("log", [BLOB, BIGINT], ids=["rowid", "key"])
def test_the_newest_row_replaced_under_the_same_id(log: ForeignLog, tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = log.make(path, 10)
    table = "stored_events" if log is BLOB else "log"
    with started(path, log), connect(path) as cache:
        until(lambda: published(cache), "the first publication")
        assert cache.fold("sums") == sums_of(10)
        # Without AUTOINCREMENT, SQLite gives the id of a newest row that was deleted again.
        writer.execute(f"DELETE FROM {table} WHERE rowid = 10")
        log.pay(writer, 10, "z", 10)
        expected = {**sums_of(9), "z": 10}
        assert cache.fold("sums") == expected
        until(lambda: published(cache) and cache.fold("sums", consistency="snapshot") == expected, "the rebuild")


def test_a_vacuum_that_renumbers_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("CREATE TABLE stored_events (originator TEXT, version INTEGER, topic TEXT, state BLOB)")
    for number in range(1, 11):
        BLOB.pay(writer, number, "a", number)
    with started(path, BLOB), connect(path) as cache:
        until(lambda: published(cache), "the first publication")
        writer.execute("DELETE FROM stored_events WHERE rowid = 5")
        writer.execute("VACUUM")
        assert writer.execute("SELECT max(rowid) FROM stored_events").fetchall() == [(9,)]
        assert cache.fold("sums") == {"a": 50}
        BLOB.pay(writer, 11, "a", 11)
        assert cache.fold("sums") == {"a": 61}


def test_a_dead_writers_journal_is_rolled_back(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    COLUMNS.make(path, 5).close()
    with sqlite3.connect(path, isolation_level=None) as handle:
        handle.execute("PRAGMA journal_mode = DELETE").fetchall()
    handle.close()
    in_child(_die_within, str(path)).join(30)
    assert os.path.exists(f"{path}-journal")
    with connect(path, shape=COLUMNS.shape) as cache:
        assert cache.fold("sums") == sums_of(5)


def _die_within(path: str) -> None:
    handle = sqlite3.connect(path, isolation_level=None)
    handle.execute("PRAGMA cache_size = 1")
    handle.execute("BEGIN")
    for number in range(6, 2_000):
        COLUMNS.pay(handle, number, "x" * 100, number)
    os._exit(0)


# Which folds there are.


def test_a_shape_without_folds_and_what_the_command_line_adds(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    COLUMNS.make(path, 6)
    bare = dataclasses.replace(COLUMNS.shape, folds=())
    name = COLUMNS.shape.folds[0]
    with ForkedDaemon(path, "--shape", toml(tmp_path, bare)) as daemon, connect(path) as cache:
        until(lambda: cache.published_as_of() == 6, "the publication")
        stats = cache.stats()["daemon"]
        assert stats is not None
        assert stats["folds"] == []
        assert cache.frame().to_dict() == {"as_of": 6}
        daemon.stop()
    with ForkedDaemon(path, "--folds", name) as daemon, connect(path) as cache:
        assert cache.fold("sums") == sums_of(6)
        until(lambda: published(cache), "the publication")
        daemon.stop()
    # Recorded.
    assert read_shape(Instance.of(path)) == COLUMNS.shape
    with ForkedDaemon(path, "--folds", "metrics", "--fold", name), connect(path) as cache:
        assert cache.metrics().ias == 0.0
        stats = cache.stats()["daemon"]
        assert stats is not None
        until(lambda: cache.stats()["daemon"]["folds"] == ["metrics", "sums"], "both")  # type: ignore[index]


def test_the_folds_of_a_ledger_can_be_chosen(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append("identity_adopt", "Ada", {"name": "Ada"})
    with ForkedDaemon(Path(ledger), "--folds", "metrics,self_model"), connect(ledger) as cache:
        until(lambda: cache.published_as_of() == 1, "the publication")
        until(lambda: cache.stats()["daemon"]["folds"] == ["metrics", "self_model"], "both")  # type: ignore[index]
        # The others are folded here.
        assert (cache.identity().name, cache.recent().as_of) == ("Ada", 1)


def test_a_higher_version_takes_the_recorded_ones_place(tmp_path: Path) -> None:
    path, log = tmp_path / "app.db", tmp_path / "daemon.log"
    COLUMNS.make(path, 6)
    with started(path, COLUMNS), connect(path) as cache:
        until(lambda: published(cache) and cache.verify().sealed_blocks > 0, "the seals")
    edited = dataclasses.replace(COLUMNS.shape, meta={"columns": {"account": "upper(account)", "cents": "cents"}})
    with ForkedDaemon(path, "--shape", toml(tmp_path, edited), log=log, waits=False) as refused:
        assert refused.join(20.0) == 2
    assert "raise its version" in log.read_text(encoding="utf-8")
    higher = dataclasses.replace(edited, version=2)
    with ForkedDaemon(path, "--shape", toml(tmp_path, higher)), connect(path) as cache:
        assert cache.fold("sums") == {account.upper(): cents for account, cents in sums_of(6).items()}
        until(lambda: published(cache), "the rebuild")
        assert cache.verify().ok
        stats = cache.stats()["daemon"]
        assert stats is not None
        assert stats["verifications_failed"] == 0


def test_the_seals_of_a_shape_end_with_it(tmp_path: Path) -> None:
    path, log = tmp_path / "app.db", tmp_path / "daemon.log"
    writer = COLUMNS.make(path, ROWS)
    with started(path, COLUMNS), connect(path) as cache:
        until(lambda: published(cache), "the publication")
        until(lambda: cache.verify().sealed_blocks == 3, "the seals")
    higher = dataclasses.replace(COLUMNS.shape, version=2, ts="substr(made, 1, 10)")
    with ForkedDaemon(path, "--shape", toml(tmp_path, higher), log=log), connect(path) as cache:
        until(lambda: published(cache), "the rebuild")
        until(lambda: cache.verify().sealed_blocks == 3, "the seals")
        stats = cache.stats()["daemon"]
        assert stats is not None
        assert (stats["rebuilds"], stats["verifications_failed"], stats["last_error"]) == (1, 0, None)
    assert "failed" not in log.read_text(encoding="utf-8")
    writer.execute("UPDATE payments SET made = '2025-01-31 09:00:00' WHERE number = 100")
    with ForkedDaemon(path, log=log), connect(path) as cache:
        # Those of the new shape are kept.
        difference = "a row among the events 1 to 1024 was changed"
        until(lambda: difference in str((cache.stats()["daemon"] or {}).get("last_error")), "the verification")


def test_code_that_changed_without_a_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "app.db"
    COLUMNS.make(path, 6)

    def doubled(self: Sums, event: Event, state: State) -> None:
        state.table("sums")[event.meta["account"]] = 2 * event.meta["cents"]

    with started(path, COLUMNS), connect(path) as cache:
        until(lambda: published(cache), "the publication")
        monkeypatch.setattr(Sums, "apply", doubled)
        # The daemon has the old code.
        assert cache.verify().ok
    with connect(path) as cache:
        difference = str(cache.verify().difference)
    assert difference.startswith("fold sums: ")
    assert difference.endswith("differs from the replay; or the fold's code changed without a new version")


def test_a_view_that_fails_stops_its_own_reads_alone(tmp_path: Path) -> None:
    path, name = tmp_path / "app.db", str(tmp_path / "app.db")
    writer = BLOB.make(path, 6)
    both = dataclasses.replace(BLOB.shape, folds=("tests.support.foreign_logs:Sorted", *FOLDS))
    with ForkedDaemon(path, "--shape", toml(tmp_path, both)), connect(path) as cache:
        until(lambda: published(cache), "the publication")
        assert cache.fold("sorted") == {"a": 6, "b": 4, "c": 5}
        BLOB.pay(writer, 7, 7, 30)  # type: ignore[arg-type]
        failure = "fold 'sorted': `view` fails at event 7: TypeError: '<' not supported"
        for read in (
            cache.fold,
            lambda fold: cache.fold(fold, consistency="wait"),
            lambda fold: cache.frame().fold(fold),
            lambda fold: pickle.loads(pickle.dumps(cache.frame())).fold(fold),
        ):
            for _ in range(2):
                with pytest.raises(FoldError, match=re.escape(failure)):
                    read("sorted")
        assert cache.fold("sums") == cache.frame().fold("sums") == {**sums_of(6), "7": 30}
        assert cache.stats()["projection"]["replayed"] == 0
        assert cache.frame_at(6).fold("sorted") == {"a": 6, "b": 4, "c": 5}
        for words in (("read", name, "sorted"), ("replay", name, "sorted"), ("read", name, "frame")):
            ended = run(*words, "--json")
            assert (ended.code, is_one_line(ended.err), failure in ended.err) == (1, True, True), ended
        for words in (("explain", name), ("explain", name, "a"), ("plot", name, "-o", str(tmp_path / "x.svg"))):
            ended = run(*words, "--fold", "sorted")
            assert (ended.code, is_one_line(ended.err), failure in ended.err) == (1, True, True), ended
        for options in ((), ("--fold", "sums")):
            described = json.loads(run("status", name, "--json", *options).out)["described"]
            assert described["sums"] == {**sums_of(6), "7": 30}
            assert failure in described["sorted"]
        writer.execute("DELETE FROM stored_events WHERE originator = 7")
        BLOB.pay(writer, 8, "d", 30)
        assert cache.fold("sorted") == {"a": 6, "b": 4, "c": 5, "d": 30}


def test_a_daemon_refuses_what_does_not_fit_and_makes_nothing(tmp_path: Path) -> None:
    path, log = tmp_path / "app.db", tmp_path / "daemon.log"
    COLUMNS.make(path, 6)
    slow = dataclasses.replace(COLUMNS.shape, position="cents")
    for options in (("--shape", toml(tmp_path, slow)), ("--shape", "nothing-such"), ()):
        with ForkedDaemon(path, *options, log=log, waits=False) as refused:
            assert refused.join(20.0) in (1, 2)
    said = log.read_text(encoding="utf-8")
    assert "no look-up by a key" in said
    assert "no such shape" in said
    assert "not a ledger" in said
    assert not Instance.of(path).directory.exists()


def test_a_daemon_that_a_client_starts_gets_the_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", checkout_path())
    path = tmp_path / "app.db"
    writer = BLOB.make(path, 6)
    with connect(path, shape=BLOB.shape, autostart=True) as cache:
        until(lambda: published(cache), "the publication")
        BLOB.pay(writer, 7, "b", 7)
        assert cache.fold("sums") == sums_of(7)
        assert read_shape(Instance.of(path)) == BLOB.shape
    assert run("stop", str(path)).code == 0


def test_words_are_indexed_only_if_somebody_asks(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    JOIN.make(path, 6)
    with started(path, JOIN, "--word-kinds", "paid"), connect(path) as cache:
        until(lambda: published(cache), "the publication")
        until(lambda: Instance.of(path).words_file.exists(), "the index")
        deadline = time.monotonic() + 10.0
        while len(cache.search("b", mode="words")) < 2:
            assert time.monotonic() < deadline
        assert {
            cache.events(after=hit.event_id - 1, limit=1)[0].content for hit in cache.search("b", mode="words")
        } == {"b"}

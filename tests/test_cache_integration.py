"""Both caches together: frames, several processes, a daemon that comes, goes and comes back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import LedgerNotFoundError, ProjectionInvariantError
from pmm_shm_client import EventLog, build_self_model_cached, connect, get_or_compute_ias_gas
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers

WRITER = """
from pmm_shm_client import EventLog
with EventLog(sys.argv[1]) as log:
    print("ready", flush=True)
    number = 0
    while number < 500 and not select.select([sys.stdin], [], [], 0.001)[0]:
        number += 1
        log.append_many([
            ("identity_adopt", f"name {number}", {}),
            ("commitment_open", f"text {number}", {"cid": number, "text": "x"}),
            ("autonomy_directive", f"rule {number}", {}),
            ("user", f"message {number}", {}),
        ])
    sys.stdin.readline()
    print(number, flush=True)
"""


def conversation(number: int) -> list[Any]:
    return [
        ("user", f"question {number}", {}),
        ("response", f"answer {number}", {}),
        ("commitment_open", f"text {number % 7}", {"cid": number % 5, "text": f"text {number}"}),
        ("evidence_candidate", "", {"cid": number % 3}),
        ("commitment_close", "", {"cid": number % 4}),
        ("trait_update", "", {"trait": "openness", "delta": 0.01 * (number % 5 - 2)}),
        ("identity_adopt", f"name {number // 10}", {"confidence": 0.95}),
        ("reflection", "my identity is a matter of evidence", {"telemetry": {"IAS": 0.5, "GAS": 0.4}}),
        ("autonomy_directive", f"rule {number % 9}", {"source": "user"}),
        ("autonomy_tick", "", {"telemetry": {"IAS": number / 100, "GAS": 0.3}, "stage": "S0"}),
    ]


@pytest.mark.parametrize("flag", [None, "PMM_USE_PROJECTION_CACHE", "PMM_USE_METRICS_CACHE"])
def test_frames_stand_at_one_position_while_another_process_appends(
    ledger: str, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch, flag: str | None
) -> None:
    """Each batch of the writer opens one of everything, so answers of two positions would disagree in number."""
    if flag is not None:
        monkeypatch.setenv(flag, "false")
    start_daemon(ledger)
    writer = ledgers.python("import select\n" + WRITER, ledger)
    assert writer.stdin is not None
    assert writer.stdout is not None
    before = -1
    try:
        assert writer.stdout.readline() == "ready\n"
        with connect(ledger) as cache:
            frames = 0
            while frames < 30 or before < 40:
                frame = cache.frame()
                frames += 1
                positions = {getattr(frame, name)().as_of for name in ("identity", "commitments", "metrics", "stage")}
                assert positions == {frame.as_of, frame.recent().as_of} == {frame.as_of}
                assert frame.as_of >= before
                before = frame.as_of
                batches = frame.as_of // 4
                assert frame.as_of % 4 == 0
                assert len(frame.commitments().open) == len(frame.directives()) == batches
                assert frame.identity().name == (f"name {batches}" if batches else None)
                assert [entry.content for entry in frame.recent().messages[-1:]] == (
                    [f"message {batches}"] if batches else []
                )
            writer.stdin.write("stop\n")
            writer.stdin.flush()
            last = int(writer.stdout.readline())
            assert cache.frame().as_of == last * 4
            assert answers.everything(cache.frame()) == answers.replayed(ledger)
    finally:
        writer.kill()
        writer.communicate()


def test_answers_stay_exact_while_the_daemon_comes_and_goes(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log, connect(ledger) as cache:
        for number in range(4):
            log.append_many(conversation(number))
            assert answers.everything(cache) == answers.replayed(ledger)
            daemon = start_daemon(ledger)
            assert answers.everything(cache) == answers.replayed(ledger)
            log.append_many(conversation(number + 10))
            assert answers.everything(cache) == answers.replayed(ledger)
            (daemon.kill if number % 2 else daemon.stop)()
            log.append_many(conversation(number + 20))
            assert answers.everything(cache) == answers.replayed(ledger)


def test_answers_stay_exact_when_the_published_files_vanish(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log, connect(ledger) as cache:
        log.append_many(conversation(1))
        daemon = start_daemon(ledger)
        cache.frame()
        daemon.kill()
        shutil.rmtree(daemon.instance.directory)
        log.append_many(conversation(2))
        assert answers.everything(cache) == answers.replayed(ledger)
        start_daemon(ledger)
        log.append_many(conversation(3))
        assert answers.everything(cache) == answers.replayed(ledger)
        assert cache.verify()


def test_a_reader_folds_nothing_while_the_daemon_keeps_up(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log, connect(ledger) as cache:
        start_daemon(ledger)
        for number in range(5):
            cache.wait_for(log.append_many(conversation(number))[-1], 30.0)
            assert answers.everything(cache) == answers.replayed(ledger)
        assert cache.stats()["projection"]["events_processed"] == 0
        assert cache.stats()["daemon"]["events_folded"] > 0


def test_a_killed_daemons_successor_folds_only_the_rest(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log, connect(ledger) as cache:
        for number in range(50):
            log.append_many(conversation(number))
        start_daemon(ledger).kill()
        log.append_many(conversation(50))
        numbers = start_daemon(ledger).stats()
        assert (numbers["rebuilds"], numbers["events_folded"], numbers["as_of"]) == (0, 10, 510)
        assert answers.everything(cache) == answers.replayed(ledger)


@pytest.mark.parametrize("with_daemon", [False, True])
def test_a_ledger_replaced_by_rename_is_noticed_within_a_second(
    tmp_path: Path, ledger: str, start_daemon: StartDaemon, with_daemon: bool
) -> None:
    other = str(tmp_path / "other.db")
    with EventLog(other) as log:
        log.append_many([("identity_adopt", "Eve", {}), *conversation(3)])
    with EventLog(ledger) as log, connect(ledger) as cache:
        log.append_many(conversation(1))
        daemon = start_daemon(ledger) if with_daemon else None
        assert cache.identity().name == "name 0"
        log.close()
        ledgers.execute(ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
        for suffix in ("-wal", "-shm"):
            Path(other + suffix).unlink(missing_ok=True)
        os.replace(other, ledger)
        daemons.until(lambda: cache.frame().as_of == 11, "the replaced ledger is noticed", 1.0 if not daemon else 30.0)
        assert answers.everything(cache) == answers.replayed(ledger)
        if daemon is not None:
            event_id = cache.append("identity_adopt", "Zoe", {})
            cache.wait_for(event_id, 30.0)
            assert daemons.until(lambda: cache.verify().as_of == event_id)
            assert answers.everything(cache) == answers.replayed(ledger)


def test_rows_cut_off_the_end_are_noticed(ledger: str, start_daemon: StartDaemon) -> None:
    with EventLog(ledger) as log, connect(ledger) as cache:
        log.append_many(conversation(1) + conversation(2))
        daemon = start_daemon(ledger)
        cache.frame()
        ledgers.execute(ledger, "DELETE FROM events WHERE id > 5")
        assert cache.frame().as_of == 5
        assert answers.everything(cache) == answers.replayed(ledger)
        daemons.until(lambda: daemon.stats()["as_of"] == 5, "the daemon rebuilds")
        log.append_many(conversation(3))
        assert answers.everything(cache) == answers.replayed(ledger)


@pytest.mark.parametrize("with_daemon", [False, True])
def test_hostile_rows_stop_nobody(tmp_path: Path, start_daemon: StartDaemon, with_daemon: bool) -> None:
    path = ledgers.build_hostile(tmp_path / "hostile.db", hashed=False)
    kinds = ("commitment_open", "autonomy_directive", "user", "autonomy_tick", "trait_update", "invariant_violation")
    for kind in kinds:
        ledgers.execute(
            path,
            "INSERT INTO events (ts, kind, content, meta) SELECT ts, ?, content, meta FROM events WHERE id <= 17",
            kind,
        )
    if with_daemon:
        numbers = start_daemon(path).stats()
        assert numbers["is_published"]
        assert numbers["health"] == "degraded"
        assert numbers["quarantined"] > 0
    with connect(path) as cache:
        assert answers.everything(cache) == answers.replayed(path)
        assert cache.append("identity_adopt", "Ada", {}) == cache.identity().as_of
        assert answers.everything(cache) == answers.replayed(path)


def test_the_two_flags_are_independent(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventLog(ledger) as log:
        log.append_many(conversation(1))
        expected = answers.replayed(ledger)
        for projection in ("true", "false"):
            for metrics in ("true", "false"):
                monkeypatch.setenv("PMM_USE_PROJECTION_CACHE", projection)
                monkeypatch.setenv("PMM_USE_METRICS_CACHE", metrics)
                with connect(ledger) as cache:
                    assert answers.everything(cache) == answers.everything(cache.frame()) == expected
                assert repr(build_self_model_cached(log)) == expected["self_model"]
                assert repr(get_or_compute_ias_gas(log)) == expected["metrics"]


def test_a_frame_reads_nothing_after_it_was_made(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append_many(conversation(1))
        cache = connect(ledger)
        frame = cache.frame()
        before = answers.everything(frame)
        log.append_many(conversation(2))
        cache.close()
        os.rename(ledger, ledger + ".away")
        assert answers.everything(frame) == before
        with pytest.raises(AttributeError):
            frame.as_of = 3
        with pytest.raises(AttributeError):
            del frame.as_of


def test_a_frame_with_another_limit_replays_up_to_its_own_position(ledger: str) -> None:
    with connect(ledger) as cache:
        for _ in range(3):
            cache.append("trait_update", "", {"trait": "o", "delta": 0.3})
        frame = cache.frame()
        cache.append("trait_update", "", {"trait": "o", "delta": 0.3})
        cache.append("commitment_open", "", {"cid": "a", "text": "x"})
        cache.append("commitment_close", "", {"cid": "a"})
        openness = frame.self_model(strict=True, max_trait_delta=0.1)["identity"]["traits"]["openness"]
        assert openness == 0.5 + 0.1 + 0.1 + 0.1
        with pytest.raises(ProjectionInvariantError):
            cache.self_model(strict=True, max_trait_delta=0.1)


def test_a_large_ledger_agrees_across_batches(ledger: str, start_daemon: StartDaemon) -> None:
    """More rows than one tail, one published list of keys and one seal hold."""
    with EventLog(ledger) as log, connect(ledger) as cache:
        log.append_many([event for number in range(600) for event in conversation(number)])
        assert answers.everything(cache) == answers.replayed(ledger)
        daemon = start_daemon(ledger)
        assert answers.everything(cache) == answers.replayed(ledger)
        with connect(ledger) as slow:
            slow.frame()
            for number in range(300):
                log.append_many(conversation(number))
            cache.wait_for(log.read_tail(limit=1)[0]["id"], 30.0)
            assert answers.everything(slow) == answers.replayed(ledger)
        report = cache.verify()
        assert report.ok
        assert report.events == report.as_of == 9_000
        assert cache.verify().sealed_blocks == 9
        assert daemon.stats()["verified_as_of"] == 9_000


def test_every_error_of_a_read_is_one_of_ours(ledger: str) -> None:
    with connect(ledger) as cache:
        cache.frame()
        os.rename(ledger, ledger + ".away")

        def failure() -> Exception | None:
            try:
                cache.frame()
            except Exception as error:
                return error
            return None

        error = daemons.until(failure, "the missing ledger is noticed", 1.0)
        assert isinstance(error, LedgerNotFoundError)
        assert ledger in str(error)
        os.rename(ledger + ".away", ledger)
        assert cache.frame().as_of == 0

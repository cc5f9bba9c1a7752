"""The golden ledgers, every answer at every prefix, to the last float bit: by full replay, by a client without a
daemon, by a client beside one, and in mixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmm_shm_client import EventLog, build_self_model_cached, connect, get_or_compute_ias_gas
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import Case, answers_of, assert_golden, cases, make_ledger, write_events

CASES = cases()
WITH_EVENTS = [case for case in CASES if case.events]


def parametrised(found: list[Case]) -> Any:
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])


def steps(case: Case, path: Path) -> Any:
    """Grow the ledger from prefix to prefix."""
    done = 0
    for golden in case.answers:
        write_events(path, case.events[done : golden["prefix"]])
        done = golden["prefix"]
        yield golden, (case.events[done - 1]["id"] if done else 0)


class Warnings:
    """Collects the cids of the closes that one cache reports."""

    def __init__(self) -> None:
        self.cids: list[Any] = []

    def __call__(self, event: dict[str, Any]) -> None:
        assert event["kind"] == "projection_warn"
        assert event["meta"]["reason"] == "close_without_evidence"
        self.cids.append(event["meta"]["cid"])


def test_there_are_cases() -> None:
    assert len(CASES) >= 56
    assert sum(len(case.answers) for case in CASES) >= 383


@parametrised(CASES)
def test_full_replay(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags' `false`: a plain replay everywhere, and by the two drop-in functions."""
    monkeypatch.setenv("PMM_USE_PROJECTION_CACHE", "false")
    monkeypatch.setenv("PMM_USE_METRICS_CACHE", "false")
    path = tmp_path / "pmm.db"
    make_ledger(path)
    with EventLog(path) as log, connect(path) as cache:
        for golden, _ in steps(case, path):
            warnings = Warnings()
            model = build_self_model_cached(log, on_warn=warnings)
            answers = answers_of(cache, warnings.cids)
            assert model == answers["self_model"] or "nan" in repr(model)
            assert get_or_compute_ias_gas(log) == (golden["ias"], golden["gas"])
            assert_golden(answers, golden, case.name)
    assert not Path(f"{path}-cache").exists()


@parametrised(CASES)
@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_client_without_a_daemon(case: Case, journal: str, tmp_path: Path) -> None:
    path = tmp_path / "pmm.db"
    make_ledger(path, journal)
    warnings = Warnings()
    with connect(path) as cache:
        for golden, as_of in steps(case, path):
            cache.self_model(on_warn=warnings)
            assert_golden(answers_of(cache, warnings.cids), golden, case.name)
            frame = cache.frame()
            assert_golden(answers_of(frame, warnings.cids), golden, case.name)
            assert frame.as_of == cache.metrics().as_of == as_of


@parametrised(WITH_EVENTS)
def test_client_beside_a_daemon_and_in_mixtures(case: Case, tmp_path: Path) -> None:
    """At every second prefix the daemon stands still, so that the client's overlay and the next base take turns.

    What is published is compared by itself too, by a client that has read nothing yet.
    """
    path = tmp_path / "pmm.db"
    make_ledger(path)
    warnings = Warnings()
    with ForkedDaemon(path, "--verify-every", "1") as daemon, connect(path) as cache:
        for number, (golden, as_of) in enumerate(steps(case, path)):
            if number % 2 == 1:
                daemon.suspend()
            cache.self_model(on_warn=warnings)
            assert_golden(answers_of(cache, warnings.cids), golden, case.name)
            assert cache.metrics().as_of == as_of
            if number % 2 == 1:
                daemon.resume()
                continue
            cache.wait_for(as_of, 20.0)
            with connect(path, consistency="snapshot") as fresh:
                all_warnings = Warnings()
                fresh.self_model(on_warn=all_warnings)
                assert_golden(answers_of(fresh, all_warnings.cids), golden, case.name)
            assert_golden(answers_of(cache, warnings.cids), golden, case.name)
        assert cache.verify()
        stats = cache.stats()["daemon"]
        assert stats["verifications_failed"] == 0
        assert daemon.stop() == 0


@parametrised([case for case in WITH_EVENTS if len(case.answers) >= 4])
def test_daemon_killed_between_prefixes(case: Case, tmp_path: Path) -> None:
    """A snapshot at rest, older and older, and a client that catches up from it; then a new daemon goes on from it."""
    path = tmp_path / "pmm.db"
    make_ledger(path)
    warnings = Warnings()
    half = len(case.answers) // 2
    for number, (golden, as_of) in enumerate(steps(case, path)):
        if number in (0, half):
            with ForkedDaemon(path) as daemon, connect(path) as beside:
                beside.wait_for(as_of, 20.0)
                daemon.kill()
        with connect(path) as cache:
            warnings = Warnings()
            cache.self_model(on_warn=warnings)
            assert_golden(answers_of(cache, warnings.cids), golden, case.name)
            assert cache.frame().as_of == as_of

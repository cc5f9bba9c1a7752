"""The golden ledgers, every answer at every prefix, to the last float bit: by a client without a daemon, by a client
beside one, and in mixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_shm_client import connect
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import (
    CASES,
    Case,
    Warnings,
    answers_of,
    assert_golden,
    make_ledger,
    parametrised,
    steps,
)

WITH_EVENTS = [case for case in CASES if case.events]


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
                daemon.freeze()
            cache.self_model(on_warn=warnings)
            assert_golden(answers_of(cache, warnings.cids), golden, case.name)
            assert cache.metrics().as_of == as_of
            if number % 2 == 1:
                daemon.thaw()
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

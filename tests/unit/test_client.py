"""The client: consistency, commands and their deadlines, autostart, asyncio, threads, fork, exit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pmm_shm.errors import (
    ClosedError,
    ConfigError,
    DaemonAbsentError,
    SnapshotUnavailableError,
)
from pmm_shm_client import Cache, connect
from tests.support import answers
from tests.support.waiting import raises_within


def name_of(cache: Cache, **options: Any) -> Any:
    return cache.identity(**options).name


# Consistency.


def test_a_snapshot_without_anything_published_is_a_clear_error(ledger: str, cache: Cache) -> None:
    cache.append("identity_adopt", "Ada", {})
    text = raises_within(SnapshotUnavailableError, lambda: cache.identity(consistency="snapshot"))
    assert ledger in text
    assert "pmm-cached" in text
    assert name_of(cache) == "Ada"
    with connect(ledger, consistency="snapshot") as other:
        for read in (
            other.self_model,
            other.metrics,
            other.stage,
            other.directives,
            other.recent,
            other.history,
            other.frame,
        ):
            with pytest.raises(SnapshotUnavailableError):
                read()
        assert name_of(other, consistency="exact") == "Ada"


@pytest.mark.parametrize("wrong", ["exactly", "", None, 1, ["exact"]])
def test_another_consistency_is_an_error_that_names_it(ledger: str, cache: Cache, wrong: Any) -> None:
    if wrong is not None:
        with pytest.raises(ConfigError, match="consistency: expected one of exact, snapshot, wait"):
            cache.identity(consistency=wrong)
        with pytest.raises(ConfigError, match="consistency"):
            cache.frame(consistency=wrong)
    with pytest.raises(ConfigError, match="consistency"):
        connect(ledger, consistency=wrong)


# Commands.


def test_verify_without_a_daemon_or_anything_published(cache: Cache) -> None:
    cache.append("debug", "", {})
    report = cache.verify()
    assert (bool(report), report.folds, report.difference) == (True, (), None)


def test_commands_without_a_daemon_say_so_at_once(ledger: str, cache: Cache) -> None:
    cache.append("identity_adopt", "Ada", {})
    for action in (lambda: cache.wait_for(1, 30.0), lambda: cache.invalidate(), lambda: cache.invalidate("metrics")):
        text = raises_within(DaemonAbsentError, action, 0.0)
        assert ledger in text
        assert "pmm-cached" in text
    assert cache.stats()["daemon"] is None
    assert name_of(cache) == "Ada"


# Connect and close.


def test_connect_reads_the_ledger_of_PMM_DB(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="PMM_DB"):
        connect()
    monkeypatch.setenv("PMM_DB", ledger)
    with connect() as cache:
        assert cache.path == ledger


def test_a_closed_cache_says_so(ledger: str) -> None:
    cache = connect(ledger)
    cache.append("identity_adopt", "Ada", {})
    assert name_of(cache) == "Ada"
    cache.close()
    cache.close()
    actions: list[Callable[[], Any]] = [
        cache.identity,
        cache.self_model,
        lambda: cache.self_model(strict=True, max_trait_delta=0.1),
        cache.commitments,
        cache.metrics,
        cache.stage,
        cache.directives,
        cache.active_directives,
        cache.recent,
        cache.history,
        lambda: cache.fold("metrics"),
        cache.frame,
        lambda: cache.append("debug", "", {}),
        lambda: cache.wait_for(1),
        cache.verify,
        cache.invalidate,
        cache.stats,
    ]
    for action in actions:
        with pytest.raises(ClosedError, match="closed"):
            action()


# The freshness mark.


@pytest.mark.parametrize("wrong", ["wal-index", "", None])
def test_another_freshness_is_an_error(ledger: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="freshness: expected auto or data_version"):
        connect(ledger, freshness=wrong)


# Threads, fork, exit.


def test_threads_append_through_one_cache(cache: Cache) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(15):
                event_id = cache.append("commitment_open", "", {"cid": f"{number}-{step}", "text": "x"})
                commitments = cache.commitments()
                assert commitments.as_of >= event_id
                assert f"{number}-{step}" in commitments.open
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(cache.commitments().open) == 120
    assert answers.everything(cache) == answers.replayed(cache.path)

"""The promises hold on logs of other programs as on PMM's: the same tests over databases that those programs made.

The programs themselves run in `tests/programs/test_foreign_programs.py`.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import LedgerError
from pmm_shm_client import Cache, connect
from tests.support.foreign_logs import LOGS, Log, Story, recorded, story
from tests.support.ledgers import execute


@pytest.fixture(params=LOGS.values(), ids=LOGS)
def log(request: pytest.FixtureRequest) -> Log:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def path(log: Log, tmp_path: Path) -> str:
    return recorded(log, tmp_path)


def opened(log: Log, path: str) -> Cache:
    return connect(path, shape=log.shape, folds=[Story])


def change(path: str, sql: str, event_id: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(sql, {"id": event_id}).rowcount == 1


def test_events_are_those_of_the_tables(log: Log, path: str) -> None:
    rows = log.rows(path)
    with opened(log, path) as cache:
        assert [tuple(event) for event in cache.events()] == [tuple(row) for row in rows]
        assert cache.fold("story") == story(rows)
        assert cache.frame(["story"]).as_of == rows[-1].id


def test_a_file_is_only_read(log: Log, path: str) -> None:
    before = Path(path).read_bytes()
    with opened(log, path) as cache:
        cache.fold("story")
        assert cache.verify().ok
    assert Path(path).read_bytes() == before


def test_an_edit_of_the_newest_row_is_in_the_next_read(log: Log, path: str) -> None:
    with opened(log, path) as cache:
        cache.fold("story")
        change(path, log.edit, log.rows(path)[-1].id)
        assert cache.fold("story") == story(log.rows(path))


def test_a_deleted_newest_row_is_missing_in_the_next_read(log: Log, path: str) -> None:
    with opened(log, path) as cache:
        cache.fold("story")
        change(path, log.delete, log.rows(path)[-1].id)
        assert cache.fold("story") == story(log.rows(path))


@pytest.mark.parametrize("change_name", ["edit", "delete"])
def test_verification_notices_a_change_of_a_past_row(log: Log, path: str, change_name: str) -> None:
    with opened(log, path) as cache:
        before = cache.fold("story")
        change(path, getattr(log, change_name), log.rows(path)[3].id)
        assert cache.fold("story") == before
        assert not cache.verify().ok
        assert cache.verify().ok
        assert cache.fold("story") == story(log.rows(path)) != before


def test_a_malformed_row_goes_to_the_quarantine_and_stops_nobody(log: Log, path: str) -> None:
    rows = log.rows(path)
    change(path, log.malform, rows[3].id)
    with opened(log, path) as cache:
        events = cache.events()
        assert [event.id for event in events] == [row.id for row in rows]
        malformed = {row.id for row, event in zip(rows, events, strict=True) if event.meta != row.meta}
        assert rows[3].id in malformed
        assert dict(cache.fold("story"))["kinds"] != story(rows)["kinds"]


def test_another_shape_or_an_append_is_refused(log: Log, path: str) -> None:
    if log.shape is None:
        return
    with opened(log, path) as cache:
        with pytest.raises(LedgerError):
            cache.append("user", "hello")



"""The promises hold on logs of other programs as on PMM's: the same tests over databases that those programs made.

The programs themselves run in `tests/programs/test_logging_programs.py`.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bench.shapes import COPIES, measured
from pmm_shm.errors import LedgerError
from pmm_shm_client import Cache, connect
from tests.conftest import StartDaemon
from tests.support.command import run
from tests.support.daemons import until, with_path
from tests.support.ledgers import ROOT, execute
from tests.support.program_logs import LOGS, Log, Story, daemon_options, example, recorded, story

FOREIGN = {name: log for name, log in LOGS.items() if log.shape}


@pytest.fixture(params=LOGS.values(), ids=LOGS)
def log(request: pytest.FixtureRequest) -> Log:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def path(log: Log, tmp_path: Path) -> str:
    return recorded(log, tmp_path)


def opened(log: Log, path: str) -> Cache:
    return connect(path, shape=log.shape, folds=[Story])


def change(path: str, sql: str, event_id: int) -> None:
    """What another program may do to the row."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(sql, {"id": event_id}).rowcount == 1


def test_events_are_those_of_the_tables_and_the_file_is_only_read(log: Log, path: str) -> None:
    before, rows = Path(path).read_bytes(), log.rows(path)
    with opened(log, path) as cache:
        assert [tuple(event) for event in cache.events()] == [tuple(row) for row in rows]
        assert cache.fold("story") == story(rows)
        assert cache.frame().as_of == rows[-1].id
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("done", ["edit", "delete"])
def test_a_change_of_the_newest_row_is_in_the_next_read(log: Log, path: str, done: str) -> None:
    with opened(log, path) as cache:
        cache.fold("story")
        change(path, getattr(log, done), log.rows(path)[-1].id)
        assert cache.fold("story") == story(log.rows(path))


@pytest.mark.parametrize("done", ["edit", "delete"])
def test_verification_notices_a_change_of_a_past_row(log: Log, path: str, done: str, start_daemon: StartDaemon) -> None:
    rows = log.rows(path)
    start_daemon(path, *daemon_options(log), wait=False).wait_answering()
    with opened(log, path) as cache:
        cache.wait_for(rows[-1].id)
        assert cache.verify()
        change(path, getattr(log, done), rows[3].id)
        assert cache.fold("story") == story(rows)
        assert not cache.verify()
        assert cache.verify()
        right = story(log.rows(path))
        assert right != story(rows)
        # Readers look for rebuilt state every 200 ms.
        until(lambda: cache.fold("story") == right, "the read of the rebuilt fold")


def test_a_malformed_row_is_quarantined_and_stops_nobody(log: Log, path: str, start_daemon: StartDaemon) -> None:
    rows = log.rows(path)
    change(path, log.malform, rows[3].id)
    daemon = start_daemon(path, *daemon_options(log), wait=False)
    daemon.wait_answering()
    with opened(log, path) as cache:
        cache.wait_for(rows[-1].id)
        events = cache.events()
        malformed = [event.id for event, row in zip(events, rows, strict=True) if event.meta != row.meta]
        assert rows[3].id in malformed
        assert all(event.meta == {} for event in events if event.id in malformed)
        assert [entry[0] for entry in daemon.stats()["quarantine"]] == malformed


@pytest.mark.parametrize("log", FOREIGN.values(), ids=FOREIGN)
def test_an_append_is_refused(log: Log, path: str) -> None:
    with opened(log, path) as cache, pytest.raises(LedgerError):
        cache.append("user", "hello")


@pytest.mark.parametrize("name", COPIES)
def test_a_read_through_a_shape_costs_about_as_much_as_one_of_pmms_table(name: str) -> None:
    # `make bench-shapes` measures it; here only a scan, or a sort, must fail.
    assert measured(LOGS[name], 500, 40).ratio < 3


def test_tokens_by_model_and_day(tmp_path: Path) -> None:
    """The example fold, beside SQL."""
    path = recorded(LOGS["llm"], tmp_path)
    taken, given = {}, {}
    for model, day, tokens_in, tokens_out in execute(
        path, "SELECT model, date(datetime_utc), sum(input_tokens), sum(output_tokens) FROM turns GROUP BY 1, 2"
    ):
        taken[f"{model} {day}"], given[f"{model} {day}"] = tokens_in, tokens_out
    with connect(path, shape="llm", folds=[example("llm_tokens").Tokens]) as cache:
        assert cache.fold("llm_tokens") == {"in": taken, "out": given}


def test_explain_lists_the_turns_that_changed_a_number_of_tokens(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """The shape and its folds are recorded: the command needs the name of the fold alone."""
    path, folder = recorded(LOGS["llm"], tmp_path), str(ROOT / "docs" / "examples")
    daemon = start_daemon(path, "--shape", "llm", "--folds", "llm_tokens:Tokens", env=with_path(folder), wait=False)
    daemon.wait_answering()
    [(day,)] = execute(path, "SELECT DISTINCT date(datetime_utc) FROM turns WHERE model = 'echo-2'")
    turns = execute(path, "SELECT rowid, input_tokens FROM turns WHERE model = 'echo-2' ORDER BY rowid")
    ran = run("explain", path, "--fold", "llm_tokens", f"in.echo-2 {day}", "--json", env=with_path(folder))
    found = json.loads(ran.out)
    assert found["value"] == sum(tokens for _, tokens in turns)
    assert [(step["event_id"], step["details"]["change"]) for step in found["steps"]] == turns

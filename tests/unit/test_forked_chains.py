"""A chain that a foreign program forked: recognised, told from damage, and no reason for a backup."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors, limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.forks import Forks, find_forks
from pmm_shm.ledger.new_events import FORMULAS
from pmm_shm.ledger.restore import restore
from pmm_shm.ledger.rows import ID_MIN
from pmm_shm_cli.doctor.gathering import NEWEST_ROWS
from pmm_shm_pmm.forks import fork_notice, say_once
from tests.support import doctor, ledgers


def follow(path: str, previous_id: int | None, content: str = "forked", formula: str = "full") -> int:
    """Append as a program does that has read the hash of `previous_id` before others appended."""
    found = ledgers.execute(path, "SELECT hash FROM events WHERE id = ?", previous_id)
    event_id: int = ledgers.execute(path, "SELECT max(id) + 1 FROM events")[0][0]
    row: dict[str, Any] = {"id": event_id, "ts": ledgers.TS.format(event_id), "kind": "user", "content": content}
    row |= {"meta": {"by": "another"}, "prev_hash": found[0][0] if found else None}
    values = [*row.values(), ledgers.reference_hash(formula, row)]
    values[4] = json.dumps(row["meta"])
    ledgers.execute(path, "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", *values)
    return event_id


def forks_of(path: str, first_id: int = ID_MIN) -> Forks:
    connection = Connection(path, "ro")
    try:
        return find_forks(connection, first_id)
    finally:
        connection.close()


@pytest.fixture(params=FORMULAS)
def formula(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def log(tmp_path: Path, formula: str) -> Iterator[EventLog]:
    with EventLog(ledgers.build(tmp_path / "l.db", 5, formula=formula)) as opened:
        yield opened


def test_the_first_pair_is_named_and_appends_go_on(log: EventLog, formula: str) -> None:
    assert follow(log.path, 4, formula=formula) == 6
    assert log.append("user", "on") == 7
    follow(log.path, 6, formula=formula)
    report = log.verify_chain()
    assert (report.ok, report.first_bad_id, report.fork, report.rows_checked) == (False, None, (5, 6), 8)
    # Event 8 follows event 6, as event 7 does.
    assert report.forks == 2
    assert "events 5 and 6" in str(report.problem)
    assert "1 more follows" in str(report.problem)
    assert "nothing needs to be repaired" in str(report.problem)
    assert "broken" not in str(report.problem)


def test_a_walk_beside_others_pauses_between_its_batches(
    log: EventLog, formula: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("pmm_shm.ledger.forks.time.sleep", pauses.append)
    monkeypatch.setattr(limits, "TAIL_ROWS_MAX", 2)
    follow(log.path, 2, formula=formula)
    connection = Connection(log.path, "ro")
    rows = ledgers.execute(log.path, "SELECT count(*) FROM events")[0][0]
    found = find_forks(connection, pause_s=0.25)
    connection.close()
    assert found.first is not None
    # Two walks, since there is a fork, and no row twice in one.
    assert (rows, pauses) == (6, [0.25] * 3 * 2)
    assert forks_of(log.path) == found


def test_two_programs_that_each_keep_their_own_chain(log: EventLog, formula: str) -> None:
    """The branches go on side by side, for longer than a batch of rows."""
    ours = theirs = 5
    for _ in range(20):
        ours = follow(log.path, ours, "ours", formula)
        theirs = follow(log.path, theirs, "theirs", formula)
    report = log.verify_chain()
    assert (report.first_bad_id, report.fork, report.forks) == (None, (6, 7), 1)
    assert forks_of(log.path) == ((6, 7), 1)


def test_a_program_that_comes_back_after_long(log: EventLog, formula: str) -> None:
    log.append_many([("user", "", None)] * (limits.TAIL_ROWS_MAX + 10))
    late = follow(log.path, 2, formula=formula)
    assert log.verify_chain().fork == (3, late)
    again = follow(log.path, 4, formula=formula)
    report = log.verify_chain()
    assert (report.first_bad_id, report.forks, again) == (None, 2, late + 1)
    # Both branches go on, near and far behind their last event, which is no new fork.
    follow(log.path, late - 1, formula=formula)
    log.append_many([("user", "", None)] * (limits.TAIL_ROWS_MAX + 10))
    follow(log.path, late, formula=formula)
    report = log.verify_chain()
    assert (report.first_bad_id, report.forks) == (None, 2)
    assert forks_of(log.path) == ((3, late), 2)
    # Of the events from there on alone, none has the predecessor of another.
    assert forks_of(log.path, late) == (None, 0)
    far = follow(log.path, 10, formula=formula)
    assert log.verify_chain().forks == 3
    assert forks_of(log.path, 12) == (None, 0)
    assert forks_of(log.path, 11) == ((11, far), 1)


def test_a_second_beginning(log: EventLog, formula: str) -> None:
    assert follow(log.path, None, formula=formula) == 6
    assert log.verify_chain().fork == (1, 6)
    assert forks_of(log.path) == ((1, 6), 1)


def test_a_second_beginning_behind_a_fork(log: EventLog, formula: str) -> None:
    assert follow(log.path, 3, formula=formula) == 6
    assert follow(log.path, None, formula=formula) == 7
    report = log.verify_chain()
    assert (report.first_bad_id, report.fork, report.rows_checked) == (None, (4, 6), 7)
    assert report.forks == 2
    assert forks_of(log.path) == ((4, 6), 2)
    report = log.verify_chain()
    assert follow(log.path, None, formula=formula) == 8
    assert log.verify_chain().forks == 3


@pytest.mark.parametrize("previous", ["'" + "0" * 64 + "'", "7", "x'00ff'", "NULL", "CAST(x'ff' AS TEXT)"])
def test_damage_is_no_fork(log: EventLog, previous: str, formula: str) -> None:
    log.append_many([("user", "", None)] * 3)
    ledgers.execute(log.path, f"UPDATE events SET prev_hash = {previous} WHERE id = 7")
    report = log.verify_chain()
    assert (report.first_bad_id, report.fork, report.forks) == (7, None, 0)


def test_damage_behind_a_fork_is_found(log: EventLog, formula: str) -> None:
    follow(log.path, 4, formula=formula)
    log.append_many([("user", "", None)] * 3)
    ledgers.execute(log.path, "UPDATE events SET content = 'edited' WHERE id = 8")
    report = log.verify_chain()
    assert (report.first_bad_id, report.fork) == (8, (5, 6))
    assert [problem for problem in report.problems if "event 8" in problem]


def test_the_doctor_tells_a_fork_from_damage(log: EventLog, formula: str) -> None:
    follow(log.path, 4, formula=formula)
    found = doctor.worst(doctor.examined(log.path), "hash-chain")
    assert found.severity == "warning"
    assert "events 5 and 6" in found.found
    assert "appends go on" in found.meaning
    assert "restore" not in found.remedy + found.command
    log.append_many([("user", "", None)] * 3)
    # An edit in the middle: appends continue behind it.
    ledgers.execute(log.path, "UPDATE events SET content = 'edited' WHERE id = 8")
    found = doctor.worst(doctor.examined(log.path), "hash-chain")
    assert found.severity == "error"
    assert "event 8" in found.found
    assert "appends continue" in found.meaning
    assert log.append("user", "more") == 10
    # An edit of the newest event: they fail, and the doctor says so.
    ledgers.execute(log.path, "UPDATE events SET content = 'edited' WHERE id = 10")
    assert "appends fail" in doctor.worst(doctor.examined(log.path), "hash-chain").meaning
    with pytest.raises(errors.ChainError, match="event 10 "):
        log.append("user", "more")


def test_a_backup_of_a_forked_ledger_can_be_restored(log: EventLog, formula: str, tmp_path: Path) -> None:
    follow(log.path, 4, formula=formula)
    log.close()
    target = str(tmp_path / "other.db")
    assert restore(log.path, target).head_id == 6
    with EventLog(target) as restored:
        assert restored.verify_chain().fork == (5, 6)


def test_the_doctor_says_where_old_forks_are(log: EventLog, formula: str) -> None:
    """Forked before, and linear since: worth knowing, and no reason for anything."""
    follow(log.path, 4, formula=formula)
    follow(log.path, 4, formula=formula)
    log.append_many([("user", "", None)] * (NEWEST_ROWS + 10))
    found = doctor.worst(doctor.examined(log.path), "hash-chain")
    assert found.severity == "note"
    assert "events 5 and 6 have the same predecessor, the first of 2 forks" in found.found
    assert "Several processes of PMM appended at once" in found.meaning
    assert "reads and appends go on at the newest row" in found.meaning
    assert "nothing needs to be repaired" in found.meaning
    assert "pmm-shm run" in found.remedy
    assert "restore" not in found.remedy + found.command


@pytest.mark.parametrize("hash_columns", [True, False])
def test_a_chain_without_forks_or_hashes_has_none(tmp_path: Path, hash_columns: bool) -> None:
    path = ledgers.build(tmp_path / "l.db", 3_000, hash_columns=hash_columns, unhashed=(3, 4, 2_049))
    assert forks_of(path) == (None, 0)
    assert forks_of(path, 2_500) == (None, 0)
    assert forks_of(ledgers.build(tmp_path / "empty.db", 0)) == (None, 0)


def test_appends_go_on_at_the_newest_row(log: EventLog, formula: str) -> None:
    follow(log.path, 4, formula=formula)
    newest = ledgers.execute(log.path, "SELECT hash FROM events WHERE id = 6")[0][0]
    with EventLog(log.path) as other:
        assert [other.append("user", "a"), log.append("user", "b"), *other.append_many([("user", "c", None)])] == [
            7,
            8,
            9,
        ]
    links = ledgers.execute(log.path, "SELECT prev_hash, hash FROM events WHERE id > 6 ORDER BY id")
    assert [previous for previous, _ in links] == [newest, links[0][1], links[1][1]]
    report = log.verify_chain()
    assert (report.first_bad_id, report.forks) == (None, 1)


def test_a_launcher_says_it_once(log: EventLog, formula: str) -> None:
    said: list[str] = []
    follow(log.path, 4, formula=formula)
    before = ledgers.raw_rows(log.path)
    thread = say_once(log.path, said.append)
    assert thread is not None
    thread.join(10)
    assert say_once(os.path.relpath(log.path), said.append) is None
    assert [line for line in said if "events 5 and 6 have the same predecessor" in line and "\n" not in line] == said
    assert len(said) == 1
    assert ledgers.raw_rows(log.path) == before


def test_a_launcher_says_nothing_where_there_is_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database")
    for path in (ledgers.build(tmp_path / "linear.db"), tmp_path / "none.db", tmp_path / "text.db", "a\0b", tmp_path):
        assert fork_notice(path) is None
    thread = say_once(str(tmp_path / "none.db"), pytest.fail)
    assert thread is not None
    thread.join(10)
    assert not (tmp_path / "none.db").exists()

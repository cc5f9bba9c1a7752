"""Ledgers of PMM 2: read as any other, never written, and without the answers that do not apply to them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.remedies import remedy_for
from pmm_shm_client import Cache, connect
from pmm_shm_pmm.launching import is_ledger_of_pmm2
from tests.support import doctor, ledgers, pmm2

NOT_APPLICABLE = ("identity", "metrics", "stage", "history")
EXTRA: list[tuple[str, str, dict[str, Any]]] = [
    ("user", "hello", {}),
    ("commitment_open", "", {"cid": "c1", "text": "write it down"}),
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return pmm2.build(tmp_path / "l.db", 5, EXTRA)


@pytest.fixture
def cache(path: str) -> Iterator[Cache]:
    with connect(path) as opened:
        yield opened


def test_the_library_reads_it(path: str) -> None:
    before = Path(path).read_bytes()
    with EventLog(path, create=False) as log:
        assert log.is_of_pmm2
        assert log.verify_chain().ok
        assert [event["id"] for event in log.read_all()] == list(range(1, 8))
        assert [event.content for event in log.events("user")] == ["hello"]
    with connect(path) as cache:
        assert cache.search("hello", 1)[0].event_id == 6
        assert [entry.content for entry in cache.recent().messages] == ["hello"]
        assert cache.commitments().open["c1"]["text"] == "write it down"
    assert Path(path).read_bytes() == before
    assert not Path(path + "-journal").exists()


def test_an_append_says_who_may(path: str, cache: Cache) -> None:
    before = ledgers.raw_rows(path)
    refused = r"writer lease of PMM 2.*nothing was written"
    with EventLog(path) as log:
        for append in (
            lambda: log.append("user", "x"),
            lambda: log.append_many([("user", "x", None)]),
            lambda: cache.append("user", "x", expected_head=7),
            lambda: cache.decide(lambda frame: [("user", "x", None)]),
        ):
            with pytest.raises(errors.LedgerUnwritableError, match=refused) as caught:
                append()
            assert "\n" not in str(caught.value)
    found = remedy_for(caught.value, ledger=path)
    assert found is not None
    assert "owner's program" in found.advice
    assert ledgers.raw_rows(path) == before


def test_an_append_does_not_wait_for_its_writer(path: str) -> None:
    """The lock is the lease holder's: an append that can only fail must not ask for it."""
    connection = pmm2.leased(path)
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("ROLLBACK")
    with EventLog(path, timeout=0.0) as log:
        log.read_all()
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.LedgerUnwritableError, match="writer lease"):
            log.append("user", "x")
    connection.close()


@pytest.mark.parametrize("appended", [True, False])
def test_a_ledger_that_pmm_2_takes_over_while_it_is_open(tmp_path: Path, appended: bool) -> None:
    path = pmm2.build_of_2025(tmp_path / "l.db")
    with EventLog(path) as log, connect(path) as cache:
        assert not log.is_of_pmm2
        assert cache.not_applicable == cache.frame().not_applicable == ()
        if appended:
            log.append("user", "before")
        pmm2.take_over(path)
        with pytest.raises(errors.LedgerUnwritableError, match="writer lease of PMM 2"):
            log.append("user", "after")
        assert log.is_of_pmm2
        assert cache.not_applicable == NOT_APPLICABLE
        assert cache.frame().not_applicable == NOT_APPLICABLE


def test_the_table_of_the_lease_alone_makes_it_one(tmp_path: Path) -> None:
    """Before its owner has made the trigger; and nothing in its definition is taken for one of the table `events`."""
    path = pmm2.build_of_2025(tmp_path / "l.db")
    with EventLog(path) as log:
        log.append("user", "before")
        ledgers.execute(path, pmm2.LEASE_SQL)
        assert log.is_of_pmm2
        with pytest.raises(errors.LedgerUnwritableError, match="writer lease of PMM 2"):
            log.append("user", "after")
    connection = Connection(path, "ro")
    with connection.lock:
        connection.handle()
        assert not connection.schema.may_mix_ids
    connection.close()


def test_a_ledger_of_2025_is_appended_to(tmp_path: Path) -> None:
    path = pmm2.build_of_2025(tmp_path / "l.db")
    with EventLog(path) as log, connect(path) as cache:
        assert log.append("user", "hello") == 6
        report = log.verify_chain()
        assert (report.ok, report.formula, report.rows_checked) == (True, "content", 6)
        assert cache.metrics().as_of == 6
        assert "not_applicable" not in cache.frame().to_dict()
    assert ledgers.execute(path, "PRAGMA journal_mode") == [("delete",)]


def test_another_table_is_no_lease(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db")
    for sql in (
        "CREATE TABLE pmm_writer_leases (id)",
        "CREATE INDEX pmm_writer_lease ON events (content)",
        "CREATE TABLE pmm_database_identity (id)",
    ):
        ledgers.execute(path, sql)
    with EventLog(path) as log:
        assert not log.is_of_pmm2
        assert log.append("user", "x") == 6


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    path = str(tmp_path / "l.db")
    connection = ledgers.connect(path)
    connection.execute(f"PRAGMA encoding = '{encoding}'")
    ledgers.make_table(connection)
    connection.close()
    pmm2.take_over(path)
    with EventLog(path) as log:
        assert log.is_of_pmm2


def test_a_frame_leaves_out_what_does_not_apply(cache: Cache) -> None:
    frame = cache.frame()
    for one in (frame, pickle.loads(pickle.dumps(frame))):
        found = one.to_dict()
        assert one.not_applicable == NOT_APPLICABLE
        assert found["not_applicable"] == list(NOT_APPLICABLE)
        assert found["metrics"] == {"ias": None, "gas": None, "as_of": 7}
        assert found["stage"] == {"stage": None, "snapshot": None, "as_of": 7}
        assert found["identity"] == {"name": None, "traits": None, "as_of": 7}
        assert found["self_model"]["identity"] is None
        assert set(found["history"].values()) == {None, 7}
        assert found["commitments"]["open"]["c1"]["text"] == "write it down"
        assert json.loads(one.to_json()) == found
    # The answers themselves keep their types.
    assert type(cache.metrics().ias) is float
    assert cache.stage().stage == "S0"


def test_a_frame_of_a_replay(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMM_USE_PROJECTION_CACHE", "false")
    with connect(path) as cache:
        assert cache.frame().not_applicable == NOT_APPLICABLE


def test_a_context_leaves_out_what_does_not_apply(cache: Cache) -> None:
    context = cache.context("hello", messages=3)
    block = str(context)
    assert "do not apply to a ledger of PMM 2" in block
    for word in ("S0", "0.5", "0.0", "Unknown", "Last tick"):
        assert word not in block
    assert "hello" in block
    assert "- write it down" in block
    found = context.to_dict()
    assert found["not_applicable"] == list(NOT_APPLICABLE)
    assert {found[name] for name in ("name", "traits", "telemetry", "ias", "gas", "stage")} == {None}


def test_commitments_that_it_may_keep_otherwise_are_not_called_none(tmp_path: Path) -> None:
    with connect(pmm2.build(tmp_path / "l.db")) as cache:
        assert "commitments" not in str(cache.context())


def test_another_ledgers_context_is_as_before(tmp_path: Path) -> None:
    with connect(ledgers.build(tmp_path / "l.db")) as cache:
        context = cache.context()
        assert "not_applicable" not in context.to_dict()
        assert "## Open commitments\nnone" in str(context)


def test_the_doctor_recognises_it(path: str) -> None:
    before = Path(path).read_bytes()
    found = doctor.examined(path)
    owner = doctor.worst(found, "owner")
    assert owner.found == "it is a ledger of PMM 2"
    assert "identity, traits, IAS, GAS and stage do not apply" in owner.meaning
    assert doctor.worst(found, "ledger-access").severity == "note"
    assert "writer lease of PMM 2" in doctor.worst(found, "ledger-access").meaning
    assert doctor.worst(found, "journal-mode").severity == "ok"
    assert Path(path).read_bytes() == before


def test_a_launcher_asks_whose_ledger_it_is(path: str, tmp_path: Path) -> None:
    assert is_ledger_of_pmm2(path)
    others = [pmm2.build_of_2025(tmp_path / "2025.db"), str(tmp_path / "none.db"), str(tmp_path), "/dev/null", "a\0b"]
    (tmp_path / "text.db").write_text("no database")
    for other in (*others, str(tmp_path / "text.db")):
        assert not is_ledger_of_pmm2(other)
    assert not (tmp_path / "none.db").exists()

"""The synthetic ledger: deterministic, chained, bounded, and complete or absent."""

from __future__ import annotations

import json
import os
import sqlite3
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import ConfigError, LedgerUnwritableError
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli import synthetic
from pmm_shm_cli.synthetic import DIRECTIVES_MAX, EXPIRED_MAX, OPEN_MAX, OPEN_USUAL, generate, synthetic_events
from tests.support.ledgers import execute, raw_rows, reference_hash

ROOT = Path(__file__).resolve().parents[2]
# ts and hash of event 1,000 with seed 1; the hash covers everything before it.
FIRST_THOUSAND = (
    "2025-01-01T02:18:26.775165+00:00",
    "d8dd7141b9932d742a48f6f6cb6bd115de9dd3d14753cd32991db6d02a14a3ee",
)
GOLDEN = ROOT / "tests" / "support" / "golden" / "embeddings-1.json"


def test_same_seed_gives_the_same_events_byte_for_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        generate(tmp_path / name, 2_000, seed)
    assert raw_rows(tmp_path / "a") == raw_rows(tmp_path / "b") != raw_rows(tmp_path / "c")


def test_a_longer_ledger_begins_with_a_shorter_one(tmp_path: Path) -> None:
    generate(tmp_path / "short", 500, 3)
    generate(tmp_path / "long", 1_500, 3)
    assert raw_rows(tmp_path / "long")[:500] == raw_rows(tmp_path / "short")


def test_events_do_not_depend_on_python_or_on_the_day() -> None:
    # Taken once; another value means that ledgers of older versions cannot be made again.
    newest = list(islice(synthetic.synthetic_rows(1), 1_000))[-1]
    assert newest[:2] == (1_000, FIRST_THOUSAND[0])
    assert newest[6] == FIRST_THOUSAND[1]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_chain_holds_by_eventlog_and_by_the_specification(tmp_path: Path, journal: Any) -> None:
    path = generate(tmp_path / "l.db", 3_000, 1, journal)
    assert execute(path, "PRAGMA journal_mode") == [(journal,)]
    with EventLog(path, create=False) as log:
        report = log.verify_chain()
        assert (report.ok, report.formula, report.rows_checked) == (True, "full", 3_000)
    previous = None
    for event_id, ts, kind, content, meta, prev_hash, digest in execute(path, "SELECT * FROM events"):
        row = {"id": event_id, "ts": ts, "kind": kind, "content": content, "meta": json.loads(meta)}
        assert prev_hash == previous
        assert digest == reference_hash("full", {**row, "prev_hash": previous})
        previous = digest


def test_appends_go_on_where_it_ends(tmp_path: Path) -> None:
    path = generate(tmp_path / "l.db", 100, 1)
    with EventLog(path, create=False) as log:
        assert log.append("user", "hello") == 101
        assert log.verify_chain().ok
    names = {row[0] for row in execute(path, "SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert names == {"idx_events_kind_id", "idx_events_ts_id", "idx_metrics_lookup"}


@pytest.mark.parametrize("seed", [1, 2, 99])
def test_bounds_hold_at_every_prefix(seed: int) -> None:
    opened: set[str] = set()
    expired: set[str] = set()
    directives: set[str] = set()
    evidence: set[str] = set()
    closes = bare = 0
    kinds = set()
    for kind, content, meta in islice(synthetic_events(seed), 60_000):
        kinds.add(kind)
        cid = meta.get("cid")
        if kind == "commitment_open":
            assert cid not in opened
            opened.add(cid)
        elif kind in ("commitment_close", "commitment_expire"):
            opened.remove(cid)
            if kind == "commitment_expire":
                expired.add(cid)
            else:
                closes += 1
                bare += cid not in evidence
        elif kind == "evidence_candidate":
            evidence.add(cid)
        elif kind == "autonomy_directive":
            directives.add(" ".join(content.split()))
        assert len(opened) <= OPEN_MAX
        assert len(expired) <= EXPIRED_MAX
        assert len(directives) <= DIRECTIVES_MAX
    assert len(expired) == EXPIRED_MAX
    assert len(directives) == DIRECTIVES_MAX
    assert len(kinds) == 18
    assert 0 < bare < closes / 10


@pytest.mark.parametrize("seed", [1, 2, 99])
def test_self_model_is_as_large_after_1_000_events_as_ever(seed: int) -> None:
    opened: set[str] = set()
    expired = 0
    for event_id, (kind, _, meta) in enumerate(islice(synthetic_events(seed), 60_000), 1):
        if kind == "commitment_open":
            opened.add(meta["cid"])
        elif kind in ("commitment_close", "commitment_expire"):
            opened.remove(meta["cid"])
            expired += kind == "commitment_expire"
        if event_id >= 1_000:
            assert expired == EXPIRED_MAX
            assert 0.8 * OPEN_USUAL < len(opened) < 1.5 * OPEN_USUAL


def test_embedding_events_carry_the_digest_of_the_event_they_name() -> None:
    events = list(islice(synthetic_events(5), 20_000))
    indexed = [meta for kind, _, meta in events if kind == "embedding_indexed"]
    assert len(indexed) > 100
    for meta in indexed:
        kind, content, _ = events[meta["eid"] - 1]
        assert kind == "user"
        assert meta["digest"] == synthetic.embedding_digest(content)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no golden embeddings here")
def test_digest_is_that_of_the_golden_embeddings() -> None:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    cases = cases if isinstance(cases, list) else next(value for value in cases.values() if isinstance(value, list))
    assert [synthetic.embedding_digest(case["text"] or "") for case in cases] == [case["digest"] for case in cases]


def test_nothing_is_left_beside_it(tmp_path: Path) -> None:
    generate(tmp_path / "l.db", 100, 1)
    assert os.listdir(tmp_path) == ["l.db"]
    generate(tmp_path / "empty.db", 0, 1)
    assert execute(tmp_path / "empty.db", "SELECT count(*) FROM events") == [(0,)]


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal", "-shm"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, suffix: str) -> None:
    there = tmp_path / f"l.db{suffix}"
    there.write_bytes(b"precious")
    with pytest.raises(LedgerUnwritableError, match="exists already"):
        generate(tmp_path / "l.db", 10, 1)
    assert there.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == [there.name]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "l.db"
    with pytest.raises(LedgerUnwritableError, match="exists already"):
        generate(target, 10, 1, progress=lambda done: target.write_bytes(b"precious") and None)
    assert target.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["l.db"]


@pytest.mark.parametrize("path", ["", ":memory:", "file:x", "nodir/"])
def test_paths_that_are_no_files(path: str) -> None:
    with pytest.raises(ConfigError):
        generate(path, 1, 1)


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(LedgerUnwritableError, match="disk is full"):
        generate(tmp_path / "l.db", 10, 1, progress=fail)
    assert os.listdir(tmp_path) == []

"""The golden ledgers: events with the reference answers at several prefixes."""

from __future__ import annotations

import functools
import json
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import ProjectionInvariantError

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TEXT NOT NULL, kind TEXT NOT NULL, "
    "content TEXT NOT NULL, meta TEXT NOT NULL, prev_hash TEXT, hash TEXT)"
)


@dataclass(frozen=True)
class Case:
    name: str
    events: list[dict[str, Any]]
    answers: list[dict[str, Any]]


def cases() -> list[Case]:
    """All golden cases, by name."""
    found = []
    for path in sorted(GOLDEN.glob("case-*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        found.append(Case(path.stem, data["events"], data["answers"]))
    return found


@functools.cache
def _empty_ledger(journal: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pmm.db"
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute(SCHEMA)
        connection.commit()
        connection.close()
        return path.read_bytes()


def make_ledger(path: Path, journal: str = "wal") -> None:
    """An empty ledger as a foreign program makes it."""
    path.write_bytes(_empty_ledger(journal))


def write_events(path: Path, events: list[dict[str, Any]]) -> None:
    """Append golden events as they are, as a foreign program does it."""
    connection = sqlite3.connect(path, timeout=10)
    rows = [
        (e["id"], e["ts"], e["kind"], e["content"], e["meta_raw"] if "meta_raw" in e else json.dumps(e["meta"]))
        for e in events
    ]
    connection.executemany("INSERT INTO events (id, ts, kind, content, meta) VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()


def canonical(value: Any) -> str:
    """Text that is equal exactly when the answers are, to the last bit of each float; integer cids are JSON keys."""
    return json.dumps(json.loads(json.dumps(value)), sort_keys=True)


def answers_of(source: Any, closed_without_evidence: list[Any]) -> dict[str, Any]:
    """What a `Cache` or a `Frame` answers, in the form of the golden files."""
    try:
        strict: dict[str, Any] = {"model": source.self_model(strict=True)}
    except ProjectionInvariantError as error:
        strict = {"violation": error.violation}
    metrics, stage, commitments, identity = source.metrics(), source.stage(), source.commitments(), source.identity()
    model = source.self_model()
    assert model["identity"]["name"] == identity.name
    assert model["identity"]["traits"] == dict(identity.traits)
    assert list(model["commitments"]["open"]) == list(commitments.open)
    assert canonical(model["commitments"]["expired"]) == canonical(dict(commitments.expired))
    return {
        "self_model": model,
        "open_order": list(commitments.open),
        "closed_without_evidence": list(closed_without_evidence),
        "strict": strict,
        "ias": metrics.ias,
        "gas": metrics.gas,
        "stage": stage.stage,
        "stage_snapshot": dict(stage.snapshot),
        "directives": source.directives(),
        "directives_active": source.active_directives(),
    }


def assert_golden(answers: dict[str, Any], golden: dict[str, Any], where: str) -> None:
    """Every answer equals the reference, or the first difference is shown."""
    for key, value in golden.items():
        if key != "prefix":
            assert canonical(answers[key]) == canonical(value), f"{where}, prefix {golden['prefix']}: {key}"


CASES = cases()


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

"""The plan of the kill loops and its checks, without killing anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_shm_client import connect
from tests.chaos import checks as chaos_checks
from tests.chaos import plan as chaos_plan
from tests.chaos import work as chaos_work
from tests.support import ledgers

# The plan.


def test_a_seed_is_a_plan() -> None:
    counts = 30, 20, 10
    plan = chaos_plan.draw(7, *counts)
    assert plan == chaos_plan.draw(7, *counts)
    assert chaos_plan.digest(plan) == chaos_plan.digest(chaos_plan.draw(7, *counts))
    assert chaos_plan.digest(plan) != chaos_plan.digest(chaos_plan.draw(8, *counts))
    kinds = [act.kind for act in plan]
    wanted = {"kill daemon": 30, "kill client": 20, "stop daemon": 5, "stop client": 5}
    assert {kind: kinds.count(kind) for kind in set(kinds)} == wanted
    assert {act.moment for act in plan} == {"starting", "working", "rebuilding", "verifying"}
    # Also of the part for which there was time.
    assert {act.kind for act in plan[: len(plan) // 3]} == set(wanted)
    assert all(act.victim in chaos_plan.STOPPABLE for act in plan if act.kind == "stop client")
    assert len({act.victim for act in plan if act.kind == "kill client"}) > 5


# The checks.


def noted(ledger: str, tokens: list[str]) -> list[tuple[int, str]]:
    """Append an event for each token; returns what its writer acknowledges."""
    with connect(ledger) as cache:
        return [(cache.append("user", "x", {chaos_work.TOKEN: token}), token) for token in tokens]


def check_events(ledger: str, acknowledged: list[tuple[int, str]]) -> int:
    return chaos_checks.check_events(ledger, acknowledged, chaos_work.TOKEN, chaos_work.ROLLED_BACK)


def test_an_event_without_acknowledgement_is_allowed(ledger: str) -> None:
    acknowledged = noted(ledger, ["a.0.1", "a.0.2"])
    assert check_events(ledger, acknowledged) == 2
    assert check_events(ledger, acknowledged[:1]) == 1


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM events WHERE id = 2", "a.0.2 was committed as 2 and is at None"),
        ("UPDATE events SET id = 9 WHERE id = 2", "a.0.2 was committed as 2 and is at 9"),
        ("INSERT INTO events (ts, kind, content, meta) SELECT ts, kind, content, meta FROM events", "is there twice"),
    ],
)
def test_a_lost_or_doubled_event_is_found(ledger: str, sql: str, message: str) -> None:
    acknowledged = noted(ledger, ["a.0.1", "a.0.2"])
    ledgers.execute(ledger, sql)
    with pytest.raises(AssertionError, match=message):
        check_events(ledger, acknowledged)


def test_an_event_that_was_rolled_back_is_found(ledger: str) -> None:
    noted(ledger, [f"{chaos_work.ROLLED_BACK}a.0.1"])
    with pytest.raises(AssertionError, match="though it was rolled back"):
        check_events(ledger, [])


def test_a_line_that_a_kill_cut_off_is_no_acknowledgement(tmp_path: Path) -> None:
    (tmp_path / "single-0.0.acks").write_text("1 a.0.1\n2 a.0.2\n3 a.0")
    assert list(chaos_work.acknowledged(str(tmp_path))) == [(1, "a.0.1"), (2, "a.0.2")]


def test_a_broken_chain_is_found(ledger: str) -> None:
    noted(ledger, ["a.0.1", "a.0.2"])
    assert chaos_checks.check_chain(ledger) == 0
    ledgers.execute(ledger, "UPDATE events SET content = 'y' WHERE id = 1")
    with pytest.raises(AssertionError, match="first_bad_id=1"):
        chaos_checks.check_chain(ledger)

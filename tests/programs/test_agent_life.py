"""The life of an agent that `pmm-shm generate` makes: scores that move, and a stage, names and commitments that fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli.agent_life import AgentLife
from pmm_shm_cli.synthetic import SyntheticRow, generate, synthetic_rows
from pmm_shm_client import connect
from tests.support.ledgers import raw_rows

SEEDS = [1, 2, 7]
# ts and hash of event 1,000 with seed 1; the hash covers everything before it.
FIRST_THOUSAND = (
    "2025-01-05T21:24:11.073785+00:00",
    "f202303164dfdb861823e5affb4340c21ddcd94852620a7577bdfc6f62c7dee0",
)


def test_events_do_not_depend_on_python_or_on_the_day() -> None:
    newest = list(islice(synthetic_rows(1, "agent"), 1_000))[-1]
    assert (newest[1], newest[6]) == FIRST_THOUSAND


def test_a_longer_ledger_begins_with_a_shorter_one(tmp_path: Path) -> None:
    generate(tmp_path / "short", 500, 3, profile="agent")
    generate(tmp_path / "long", 1_500, 3, profile="agent")
    assert raw_rows(tmp_path / "long")[:500] == raw_rows(tmp_path / "short")


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_rise_and_fall_and_the_stage_fits(tmp_path: Path, seed: int) -> None:
    path = generate(tmp_path / "agent.db", 10_000, seed, profile="agent")
    with connect(path) as cache, EventLog(path) as log:
        assert log.verify_chain().ok
        points = cache.history().points
        grown = [point for point in points if point.last_id > 2_500]
        for low, high in (
            ([point.ias_min for point in grown], [point.ias_max for point in grown]),
            ([point.gas_min for point in grown], [point.gas_max for point in grown]),
        ):
            assert min(low) > 0.2
            assert max(high) < 0.98
            assert max(high) - min(low) > 0.25
        identity, commitments = cache.identity(), cache.commitments()
        assert identity.name is not None
        assert 1 <= len(commitments.open) <= 7
        assert commitments.expired
        stages = [point.stage for point in grown]
    assert sum(stage != "S0" for stage in stages) > 0.7 * len(stages)
    assert len(set(stages)) >= 4


def test_the_heartbeat_reports_the_scores_of_its_moment(tmp_path: Path) -> None:
    """So that the stage, which is computed from reports, fits the scores."""
    for length in (200, 2_000, 5_000):
        events = list(synthetic_rows_of(length))
        ticks = [number for number, row in enumerate(events) if row[2] == "autonomy_tick"]
        path = generate(tmp_path / f"{length}.db", ticks[-1], 2, profile="agent")
        with connect(path) as cache:
            metrics = cache.metrics()
        told = json.loads(events[ticks[-1]][4])["telemetry"]
        assert told == {"GAS": round(metrics.gas, 4), "IAS": round(metrics.ias, 4)}


def synthetic_rows_of(length: int) -> Iterator[SyntheticRow]:
    return islice(synthetic_rows(2, "agent"), length)


@pytest.mark.parametrize("seed", SEEDS)
def test_commitments_begin_with_what_somebody_asked_for(seed: int) -> None:
    recent: list[str] = []
    opened, closed = set[str](), set[str]()
    for _, kind, content, meta in islice(AgentLife(seed).events(), 20_000):
        if kind in ("user", "response"):
            recent = [*recent[-1:], content]
        elif kind == "commitment_open":
            deed = meta["text"].removeprefix("remind Lena to ")
            assert recent == [f"Please remind me to {deed}.", f"I will remind you to {deed}."]
            assert meta["cid"] not in opened
            opened.add(meta["cid"])
        elif kind in ("commitment_close", "commitment_expire"):
            assert meta["cid"] in opened - closed
            closed.add(meta["cid"])
    assert len(opened) > 20
    assert len(closed) > 10

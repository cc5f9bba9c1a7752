"""All answers of a cache as one comparable value, and the same by a full replay; golden ledgers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from pmm_shm.errors import ProjectionInvariantError
from pmm_shm_client import Cache, Frame, connect
from tests.support import ledgers

GOLDEN = Path(__file__).with_name("golden")
FLAGS_OFF = {"PMM_USE_PROJECTION_CACHE": "false", "PMM_USE_METRICS_CACHE": "false"}


def everything(source: Cache | Frame) -> dict[str, Any]:
    """Every answer, as text that tells 7 from "7", 0.0 from -0.0, and one order of keys from another."""
    identity, commitments = source.identity(), source.commitments()
    metrics, stage, recent = source.metrics(), source.stage(), source.recent()
    history = source.history()
    values = {
        "self_model": source.self_model(),
        "strict": strict(source),
        "identity": (identity.name, dict(identity.traits)),
        "commitments": (dict(commitments.open), dict(commitments.expired)),
        "metrics": (metrics.ias, metrics.gas),
        "stage": (stage.stage, stage.snapshot),
        "directives": source.directives(),
        "active_directives": source.active_directives(),
        "recent": (recent.reflections, recent.messages, recent.telemetry),
        "history": history._replace(as_of=0),
        "as_of": {answer.as_of for answer in (identity, commitments, metrics, stage, recent, history)},
    }
    return {name: repr(value) for name, value in values.items()}


def strict(source: Cache | Frame, **options: Any) -> Any:
    """The strict self-model, or what it violates."""
    try:
        return source.self_model(strict=True, **options)
    except ProjectionInvariantError as error:
        return error.violation, error.cid, error.event_id


def replayed(path: str) -> dict[str, Any]:
    """`everything` by a plain full replay, without cache or daemon."""
    with mock.patch.dict(os.environ, FLAGS_OFF), connect(path) as cache:
        return everything(cache)


def golden_case(name: str) -> dict[str, Any]:
    """Events and reference answers of one golden ledger."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def insert(path: str, events: list[dict[str, Any]]) -> None:
    """Write golden events as another program would, ids and all."""
    connection = ledgers.connect(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for event in events:
            meta = event["meta_raw"] if "meta_raw" in event else json.dumps(event["meta"])
            connection.execute(
                "INSERT INTO events (id, ts, kind, content, meta) VALUES (?, ?, ?, ?, ?)",
                (event["id"], event["ts"], event["kind"], event["content"], meta),
            )
        connection.execute("COMMIT")
    finally:
        connection.close()


def steps(case: Mapping[str, Any]) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """(the events that come next, the reference answer behind them), in order."""
    done = 0
    for answer in sorted(case["answers"], key=lambda one: one["prefix"]):
        yield case["events"][done : answer["prefix"]], answer
        done = answer["prefix"]


def as_golden(cache: Cache) -> dict[str, Any]:
    """A cache's answers in the shape of a golden answer, floats to the last bit."""
    metrics, stage = cache.metrics(), cache.stage()
    model = strict(cache)
    return {
        "self_model": cache.self_model(),
        "open_order": list(cache.commitments().open),
        "strict": {"model": model} if isinstance(model, dict) else {"violation": model[0]},
        "ias": metrics.ias,
        "gas": metrics.gas,
        "stage": stage.stage,
        "stage_snapshot": stage.snapshot,
        "directives": cache.directives(),
        "directives_active": cache.active_directives(),
    }


def canonical(answer: Mapping[str, Any]) -> str:
    """Text that is equal for equal answers; JSON makes text of the keys of both sides."""
    wanted = {name: answer[name] for name in as_golden_names()}
    return json.dumps(json.loads(json.dumps(wanted)), sort_keys=True)


def as_golden_names() -> list[str]:
    """What a golden answer holds of a cache's answers."""
    names = ("self_model", "open_order", "strict", "ias", "gas", "stage", "stage_snapshot", "directives")
    return [*names, "directives_active"]

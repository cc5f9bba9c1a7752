"""The golden calls of `tests/golden/run`, replayed on the importable `pmm`: what each function returns, raises and
appends.

The caller decides whether that `pmm` is plain or launched. A function of the caller says which lists are the log, so
a launched replay checks the recognition of lists too.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.golden_cases import canonical

DIRECTORY = Path(__file__).resolve().parent.parent / "golden" / "run"

Event = dict[str, Any]
AsOf = Callable[[Any, list[Event]], int | None]
"""`as_of(events, live)`: the id up to which `events` is the log, 0 for an empty list, None for another list."""

_SCHEMA = """
    CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TEXT NOT NULL, kind TEXT NOT NULL,
        content TEXT NOT NULL, meta TEXT NOT NULL, prev_hash TEXT, hash TEXT);
    CREATE INDEX idx_events_kind_id ON events(kind, id);
    CREATE INDEX idx_events_ts_id ON events(ts, id);
    CREATE INDEX idx_metrics_lookup ON events(id DESC) WHERE kind='metrics_update';
"""


@dataclass(frozen=True)
class Difference:
    """A call that gave something else."""

    case: str
    number: int
    call: dict[str, Any]
    field: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        args = ", ".join([*map(repr, self.call["args"]), *(f"{k}={v!r}" for k, v in self.call["kwargs"].items())])
        return (
            f"{self.case}[{self.number}] {self.call['call']}({args}): {self.field}\n"
            f"    expected {self.expected!r}\n    got      {self.got!r}"
        )


@functools.cache
def names() -> tuple[str, ...]:
    """Files of the cases, without their ending."""
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.json")))


@functools.cache
def case(name: str) -> dict[str, Any]:
    return json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def make_ledger(path: Path, events: list[Event], tamper: tuple[str, ...] | list[str] = ()) -> None:
    """A ledger in WAL mode with the *full* hash chain over these events, on which the statements were run."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_SCHEMA)
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", chained(events))
        for statement in tamper:
            connection.execute(statement)
    connection.close()


def chained(events: list[Event], before: str | None = None) -> Iterator[tuple[Any, ...]]:
    """Rows of a ledger with hashes by the *full* formula; `before` is the hash of the row before the first."""
    for event in events:
        payload = json.dumps({**event, "prev_hash": before}, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(payload.encode("ascii")).hexdigest()
        meta = json.dumps(event["meta"])
        yield (event["id"], event["ts"], event["kind"], event["content"], meta, before, digest)
        before = digest


def append_as_another(path: Path, kind: str, content: str, meta: dict[str, Any]) -> None:
    """Append as another process does, with the *full* hash."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    row = connection.execute("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1").fetchone()
    event_id, before = (row[0] + 1, row[1]) if row else (1, None)
    ts = datetime.now(timezone.utc).isoformat()
    event = {"id": event_id, "ts": ts, "kind": kind, "content": content, "meta": meta, "prev_hash": before}
    digest = hashlib.sha256(json.dumps(event, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
    connection.execute(
        "INSERT INTO events (id, ts, kind, content, meta, prev_hash, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (event_id, ts, kind, content, json.dumps(meta), before, digest),
    )
    connection.execute("COMMIT")
    connection.close()


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder that goes afterwards, in memory where that is possible."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pmm-golden-", dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


def by_comparing(events: Any, live: list[Event]) -> int | None:
    """`as_of` by looking at every event: the same dicts in the same places."""
    if not isinstance(events, list) or len(events) > len(live):
        return None
    if any(mine is not theirs for mine, theirs in zip(events, live, strict=False)):
        return None
    return events[-1]["id"] if events else 0


def is_undescribed(call: dict[str, Any]) -> bool:
    """Whether the answer is a slice of PMM's whole graph, which the contract leaves to PMM."""
    return call["call"] == "memegraph.graph_slice" and call["kwargs"].get("min_confidence", 0.6) <= 0.5


def replay(
    name: str,
    directory: Path,
    *,
    as_of: AsOf = by_comparing,
    close: Callable[[Any], None] = lambda log: log._conn.close(),
    skip: Callable[[dict[str, Any]], bool] = is_undescribed,
) -> list[Difference]:
    """Make each call of a case on a fresh copy of its ledger, and compare.

    Parameters:
        directory: an empty folder for the ledgers.
        as_of: which lists count as the log.
        close: what ends a log after its call.
        skip: calls that are not made.
    """
    return list(_replayed(case(name), directory, as_of, close, skip))


def _replayed(
    case: dict[str, Any],
    directory: Path,
    as_of: AsOf,
    close: Callable[[Any], None],
    skip: Callable[[dict[str, Any]], bool],
) -> Iterator[Difference]:
    original = directory / "original.db"
    make_ledger(original, case["events"], case["tamper"])
    for number, call in enumerate(case["calls"]):
        if skip(call):
            continue
        path = directory / f"{number}.db"
        shutil.copyfile(original, path)
        got = _made(call, path, as_of, close)
        got["appended"] = [
            {"kind": kind, "content": content, "meta": json.loads(meta)}
            for kind, content, meta in _rows(path)[len(case["events"]) :]
        ]
        if "<cid>" in call["volatile"]:
            got = _without_cid(got)
        expected = {field: call[field] for field in ("raises", "result", "appended") if field in call}
        if any(_may_be_unknown(argument) for argument in call["args"]):
            got["result"].pop("as_of")
            expected["result"] = {key: value for key, value in expected["result"].items() if key != "as_of"}
        if "deviation" in case and _is_allowed(got, expected):
            continue
        for field in sorted({*got, *expected}):
            if canonical(got.get(field)) != canonical(expected.get(field)):
                yield Difference(case["name"], number, call, field, expected.get(field), got.get(field))


def _rows(path: Path) -> list[tuple[str, str, str]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT kind, content, meta FROM events ORDER BY id").fetchall()
    connection.close()
    return rows


def _without_cid(got: dict[str, Any]) -> dict[str, Any]:
    opened = [event["meta"]["cid"] for event in got["appended"] if event["kind"] == "commitment_open"]
    text = json.dumps(got)
    for cid in opened:
        text = text.replace(cid, "<cid>")
    return json.loads(text)  # type: ignore[no-any-return]


def _may_be_unknown(argument: Any) -> bool:
    """Lists that need not be recognised: a log may read its tail anew, and no caller gives a tuple."""
    return isinstance(argument, dict) and argument.get("$list", ("",))[0] in ("tail", "tuple")


def _is_allowed(got: dict[str, Any], expected: dict[str, Any]) -> bool:
    """The one known deviation: metrics where PMM raises, and the event with them."""
    metrics = [event for event in got["appended"] if event["kind"] == "metrics_update"]
    others = [event for event in got["appended"] if event["kind"] != "metrics_update"]
    if len(metrics) != 1 or canonical(others) != canonical(expected["appended"]):
        return False
    if "raises" in expected:
        return canonical(got.get("result")) == canonical([metrics[0]["meta"]["IAS"], metrics[0]["meta"]["GAS"]])
    return canonical(got["result"]) == canonical(expected["result"])


def _made(call: dict[str, Any], path: Path, as_of: AsOf, close: Callable[[Any], None]) -> dict[str, Any]:
    log = import_module("pmm.storage.eventlog").EventLog(str(path))
    try:
        args = [argument_of(value, log) for value in call["args"]]
        kwargs = {
            key: set(value)
            if key in ("exclude_labels", "recent_digest_blocklist") and value is not None
            else argument_of(value, log)
            for key, value in call["kwargs"].items()
        }
        owner, _, name = call["call"].partition(".")
        function = functools.partial(folds, log=log, as_of=as_of) if owner == "fold" else function_of(owner, name, log)
        try:
            return {"result": function(*args, **kwargs)}
        except Exception as error:
            return {"raises": type(error).__name__}
    finally:
        close(log)


def function_of(owner: str, name: str, log: Any) -> Callable[..., Any]:
    """What a golden call calls, on an object of its own."""
    if owner == "runtime":
        holder = SimpleNamespace(eventlog=log)
        return functools.partial(getattr(import_module("pmm.runtime.loop").Runtime, name), holder)
    if owner == "metrics":
        return functools.partial(getattr(import_module("pmm.runtime.metrics"), name), log)
    if owner in ("recall", "scene_compactor"):
        return getattr(import_module(f"pmm.runtime.{owner}"), name)  # type: ignore[no-any-return]
    objects: dict[str, Callable[[], Any]] = {
        "tracker": lambda: import_module("pmm.commitments.tracker").CommitmentTracker(log),
        "memegraph": lambda: import_module("pmm.runtime.memegraph").MemeGraphProjection(log),
        "restructurer": lambda: import_module("pmm.commitments.restructuring").CommitmentRestructurer(log),
        "eventlog": lambda: log,
    }
    return getattr(objects[owner](), name)  # type: ignore[no-any-return]


def folds(events: Any, log: Any, as_of: AsOf) -> dict[str, Any]:
    """`fold.all`: the answers of all folds over a list."""
    projection = import_module("pmm.storage.projection")
    model = projection.build_self_model(events)
    return {
        "as_of": as_of(events, log.read_all()),
        "self_model": model,
        "open_order": list(model["commitments"]["open"]),
        "identity": projection.build_identity(events),
        "ias_gas": import_module("pmm.runtime.metrics").compute_ias_gas(events),
        "stage": import_module("pmm.runtime.stage_tracker").StageTracker.infer_stage(events),
        "directives": projection.build_directives(events),
        "active": projection.build_directives_active_set(events),
    }


def argument_of(value: Any, log: Any) -> Any:
    """An argument of a golden call: a list is made by its recipe."""
    return _list(log, *value["$list"]) if isinstance(value, dict) and "$list" in value else value


def _list(log: Any, recipe: str, *parts: Any) -> Any:
    live = log.read_all()
    made: Any
    if recipe == "live":
        made = live
    elif recipe == "copy":
        made = list(live)
    elif recipe == "reversed":
        made = list(reversed(live))
    elif recipe == "tuple":
        made = tuple(live)
    elif recipe == "slice":
        made = live[slice(*parts)]
    elif recipe == "upto":
        made = [event for event in live if event["id"] <= parts[0]]
    elif recipe == "kind":
        made = [event for event in live if event["kind"] == parts[0]]
    elif recipe == "without":
        made = [event for event in live if event["kind"] != parts[0]]
    elif recipe == "swap":
        made = list(live)
        made[parts[0]], made[parts[1]] = made[parts[1]], made[parts[0]]
    elif recipe == "replace":
        made = list(live)
        made[parts[0]] = parts[1]
    elif recipe == "missing":
        made = [*live[: parts[0]], *live[parts[0] + 1 :]]
    elif recipe == "plus":
        made = [*live, parts[0]]
    elif recipe == "twice":
        made = [*live, live[-1]]
    elif recipe == "equal":
        made = copy.deepcopy(list(live))
    elif recipe == "then":
        made = list(live) if parts[0] == "copy" else live
        event = parts[1]
        log.append(kind=event["kind"], content=event["content"], meta=event["meta"])
    elif recipe == "tail":
        made = log.read_tail(limit=parts[0])
    else:
        raise ValueError(recipe)
    return made

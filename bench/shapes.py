"""`make bench-shapes`: what a read behind an append costs on logs of other programs, beside PMM's table with the same
events.

Each log is a database that the program has made, grown by copies of its rows. Both sides are read in one process, turn
by turn; the smallest time of each counts. No daemon: it would race with the reader for the new event.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.bare import connection
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen, json_text
from pmm_shm.ledger.rows import Event
from pmm_shm.ledger.schema import create_ledger
from pmm_shm_client import Cache, connect
from tests.support.program_logs import LOGS, Log, recorded

GOAL = 1.3
"""How many times the read of PMM's table one through a shape may cost."""

# A copy of the log's second row, as a new event.
COPIES: dict[str, tuple[str, ...]] = {
    "eventsourcing": (
        "INSERT INTO stored_events SELECT originator_id, 1000 + :n, topic, state FROM stored_events WHERE rowid = 2",
    ),
    "llm": (
        "INSERT INTO turns SELECT id || :n, thread_id, parent_message_hash, tip_message_hash, model, resolved_model,"
        " options_json, schema_id, input_tokens, output_tokens, token_details, duration_ms, datetime_utc, response_json"
        " FROM turns WHERE rowid = 2",
        "INSERT INTO turn_search (turn_id, prompt, response)"
        " SELECT turn_id || :n, prompt, response FROM turn_search WHERE id = 2",
    ),
    "langgraph": (
        "INSERT INTO checkpoints SELECT thread_id, checkpoint_ns, checkpoint_id || :n, parent_checkpoint_id, type,"
        " checkpoint, metadata FROM checkpoints WHERE rowid = 2",
    ),
    "home-assistant": (
        "INSERT INTO events (origin_idx, time_fired_ts, data_id, event_type_id)"
        " SELECT origin_idx, time_fired_ts, data_id, event_type_id FROM events WHERE event_id = 2",
    ),
}


class Seen(Fold):
    """Counts events, after a look at their meta."""

    name = "seen"
    version = 1

    def apply(self, event: Event, state: State) -> None:
        state["events"] = state.get("events", 0) + bool(event.meta)

    def view(self, state: State) -> Any:
        return frozen(state.get("events", 0))


class Figure(NamedTuple):
    """Microseconds for one read behind an append, the smallest."""

    log: str
    pmm_us: float
    shaped_us: float

    @property
    def ratio(self) -> float:
        return self.shaped_us / self.pmm_us


class _Side:
    """A log, its appends and its reader."""

    def __init__(self, stack: ExitStack, path: str, appends: tuple[str, ...], cache: Cache) -> None:
        self._handle = stack.enter_context(connection(Path(path)))
        # The log's own mode: what a commit waits for is not what is measured.
        self._handle.execute("PRAGMA synchronous = OFF")
        self._appends = appends
        self._cache = stack.enter_context(cache)
        self._appended = 0
        self.best_s = float("inf")

    def append(self, count: int = 1) -> None:
        self._handle.execute("BEGIN")
        for _ in range(count):
            self._appended += 1
            for sql in self._appends:
                self._handle.execute(sql, {"n": self._appended})
        self._handle.execute("COMMIT")

    def read(self) -> None:
        began = time.perf_counter()
        self._cache.fold("seen")
        self.best_s = min(self.best_s, time.perf_counter() - began)


def measured(log: Log, events: int, rounds: int) -> Figure:
    """Read the log and its twin in PMM's table, `rounds` times behind an append each."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        path = recorded(log, Path(temporary))
        with closing(connect(path, shape=log.shape, folds=[Seen])) as cache:
            event = cache.events()[1]
        twin = str(Path(temporary) / "twin.db")
        create_ledger(twin, 5.0)
        with closing(sqlite3.connect(path)) as handle, closing(sqlite3.connect(twin)) as other:
            journal = handle.execute("PRAGMA journal_mode").fetchone()[0]
            other.execute(f"PRAGMA journal_mode = {journal}")
        literal = ", ".join(
            "'" + text.replace("'", "''") + "'" for text in (event.ts, event.kind, event.content, json_text(event.meta))
        )
        insert = f"INSERT INTO events (ts, kind, content, meta) SELECT {literal} WHERE :n"
        sides = (
            _Side(stack, twin, (insert,), connect(twin, folds=[Seen])),
            _Side(stack, path, COPIES[log.name], connect(path, shape=log.shape, folds=[Seen])),
        )
        for side in sides:
            side.append(events)
            side.read()
            side.best_s = float("inf")
        for _ in range(rounds):
            for side in sides:
                side.append()
                side.read()
        return Figure(log.name, *(side.best_s * 1e6 for side in sides))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.shapes", description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=400)
    arguments = parser.parse_args()
    table = Table("log", "PMM's table, µs", "through the shape, µs", "ratio", f"at most {GOAL}")
    for name in COPIES:
        figure = measured(LOGS[name], arguments.events, arguments.rounds)
        kept = "yes" if figure.ratio <= GOAL else "no"
        table.add_row(name, f"{figure.pmm_us:.0f}", f"{figure.shaped_us:.0f}", f"{figure.ratio:.2f}", kept)
    Console().print(table)


if __name__ == "__main__":
    main()

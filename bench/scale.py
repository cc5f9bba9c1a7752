"""The amount of work: all repetitions and waits of a run, in one place."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """Attributes:
    events: sizes of the ledgers.
    naive_events_max: up to which size a full replay is run for every answer.
    shared_events_min: from which size on a ledger and its daemon serve all rows of a run, instead of each row its own.
    rounds, calls: of short calls; each side has `calls` in each of the rounds.
    steps: appends of another process, of which each is followed by reads.
    appends: single appends by this process, per side.
    slow_rounds: of what takes seconds.
    open_commitments: sizes of row 4's own table.
    starts: daemon starts. workers: process starts. uss_workers: processes whose memory is looked at.
    paced: appends at 100 per second. flat_out_s: of one writer, for latencies. idle_s: of the daemon.
    pairs, writers_s: of four writers with and without the daemon.
    turns: user messages.
    crowd_rounds, crowd_s: of sixteen processes, each side in each of the rounds.
    """

    events: tuple[int, ...]
    naive_events_max: int
    shared_events_min: int
    rounds: int
    calls: int
    steps: int
    appends: int
    slow_rounds: int
    open_commitments: tuple[int, ...]
    starts: int
    workers: int
    uss_workers: int
    paced: int
    flat_out_s: float
    idle_s: float
    pairs: int
    writers_s: float
    turns: int
    crowd_rounds: int
    crowd_s: float


FULL = Scale(
    events=(1_000, 10_000, 100_000, 1_000_000),
    naive_events_max=100_000,
    shared_events_min=100_000,
    rounds=40,
    calls=500,
    steps=200,
    appends=2_000,
    slow_rounds=5,
    open_commitments=(10, 100, 1_000, 10_000),
    starts=3,
    workers=40,
    uss_workers=5,
    paced=1_000,
    flat_out_s=5.0,
    idle_s=30.0,
    pairs=3,
    writers_s=20.0,
    turns=40,
    crowd_rounds=4,
    crowd_s=20.0,
)

QUICK = Scale(
    events=(200, 400),
    naive_events_max=400,
    shared_events_min=1,
    rounds=2,
    calls=5,
    steps=3,
    appends=5,
    slow_rounds=1,
    open_commitments=(5, 10),
    starts=1,
    workers=1,
    uss_workers=1,
    paced=5,
    flat_out_s=0.1,
    idle_s=0.1,
    pairs=1,
    writers_s=0.2,
    turns=2,
    crowd_rounds=1,
    crowd_s=0.2,
)

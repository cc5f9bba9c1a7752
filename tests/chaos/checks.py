"""The promises of a chaos run, each as a check that raises `AssertionError` with what it found.

What is read and what is published are compared with cold replays of the ledger, while it grows or when all is quiet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pmm_cached.follower import all_folds
from pmm_shm import limits
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.projection.verification import PublishedCopy, copy_published, verify
from pmm_shm.store import environment
from pmm_shm.store.layout import GENERATION_PREFIX
from pmm_shm_client import Cache, EventLog, Frame, connect
from pmm_shm_client.replaying import replayed
from tests.support import answers, daemons, ledgers

SLOTS_PER_CLIENT_MAX = 3
SLOTS_OF_DAEMON_MAX = limits.DAEMON_READER_SLOTS


def difference_from_replay(cache: Cache, frame: Frame) -> str | None:
    """The first answer of a frame that a replay up to its position does not give; None where all are the same."""
    names = tuple(cache._reader.folds)
    reading = replayed(cache._reader.connection, [cache._reader.folds[name] for name in names], frame.as_of)
    assert reading.as_of == frame.as_of, f"the replay ends at {reading.as_of}, the frame stands at {frame.as_of}"
    replay = cache._make_frame({name: reading.view(name) for name in names}, reading)
    return _first_difference(answers.everything(frame), answers.everything(replay))


def _first_difference(found: dict[str, str], wanted: dict[str, str]) -> str | None:
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{name} is {found.get(name)!r:.400}, and by a replay {value!r:.400}"
    return None


def published(cache: Cache) -> PublishedCopy | None:
    """A copy of the state of all folds as it is published; None where nothing usable is."""
    with cache._reader.snapshots.begin() as snapshot:
        return None if snapshot is None else copy_published(snapshot, all_folds())


def published_id(cache: Cache) -> int | None:
    """The newest event that is folded into what is published; None where nothing usable is."""
    with cache._reader.snapshots.begin() as snapshot:
        if snapshot is None or snapshot.lineage(all_folds()) is None:
            return None
        return snapshot.header.position.as_of


def check_published(cache: Cache) -> int | None:
    """What is published equals a cold replay up to its position, byte for byte over all folds; returns that."""
    copy = published(cache)
    if copy is None:
        return None
    connection = Connection(cache.path, "ro")
    try:
        report = verify(connection, copy).report
    finally:
        connection.close()
    assert report.ok, f"what is published at {copy.position.as_of} diverges: {report.difference}"
    return report.as_of


def check_exact(cache: Cache) -> None:
    """A frame of a cache that lives as long as the run equals a cold replay up to its position."""
    head = count(cache.path, "SELECT coalesce(max(id), 0) FROM events")
    frame = cache.frame()
    assert frame.as_of >= head, f"the ledger had event {head}, and an exact read stands at {frame.as_of}"
    found = difference_from_replay(cache, frame)
    assert found is None, f"an exact read at {frame.as_of} diverges: {found}"


def check_all_equal(cache: Cache, ends: dict[str, dict[str, dict[str, str]]]) -> None:
    """With nobody appending: the reads of every process that is left, the snapshot and a full replay are the same."""
    wanted = answers.replayed(cache.path)
    with connect(cache.path, consistency="snapshot") as snapshot, connect(cache.path) as fresh:
        found = {
            "a long-lived cache": answers.everything(cache),
            "its frame": answers.everything(cache.frame()),
            "a fresh cache": answers.everything(fresh),
            "the snapshot": answers.everything(snapshot.frame()),
        }
    for name, own in ends.items():
        found |= {f"{name}, {way}": everything for way, everything in own.items()}
    for name, everything in found.items():
        difference = _first_difference(everything, wanted)
        assert difference is None, f"{name} diverges: {difference}"


def check_events(ledger: str, acknowledged: Iterable[tuple[int, str]], token_key: str, rolled_back: str) -> int:
    """Every acknowledged event is there under its id, none is there twice, none that was rolled back; returns how many
    were acknowledged.
    """
    rows = ledgers.execute(ledger, "SELECT id, meta FROM events WHERE meta LIKE ?", f'%"{token_key}"%')
    by_token: dict[str, int] = {}
    for event_id, meta in rows:
        token = json.loads(meta)[token_key]
        assert token not in by_token, f"{token} is there twice: as {by_token[token]} and {event_id}"
        assert not token.startswith(rolled_back), f"{token} is there as {event_id}, though it was rolled back"
        by_token[token] = event_id
    number = 0
    for event_id, token in acknowledged:
        assert by_token.get(token) == event_id, f"{token} was committed as {event_id} and is at {by_token.get(token)}"
        number += 1
    return number


def check_chain(ledger: str) -> int:
    """The hashed rows are one chain, and SQLite finds its file in order; returns how many have no hash."""
    assert ledgers.execute(ledger, "PRAGMA quick_check") == [("ok",)]
    total = count(ledger, "SELECT count(*) FROM events")
    with EventLog(ledger) as log:
        report = log.verify_chain()
    assert report.ok, report
    assert report.rows_checked + report.rows_without_hash == total, (report, total)
    return report.rows_without_hash


def slots(cache: Cache) -> list[int]:
    """The pid of each slot in LMDB's table of readers, as a process that reads sees it."""
    with cache._reader.snapshots.begin() as snapshot:
        assert snapshot is not None, "nothing is published"
        opened = environment._environments[snapshot.identity]
        lines = opened.env.readers().splitlines()
    return [int(line.split()[0]) for line in lines if line.split()[:1] and line.split()[0].isdigit()]


def check_slots(cache: Cache, daemon: int) -> int:
    """The daemon has cleared the table of readers: living processes only, each with few slots; returns how many."""
    found = slots(cache)
    dead = [pid for pid in found if not daemons.is_alive(pid)]
    assert not dead, f"slots of dead processes are left in the table of readers: {dead} of {found}"
    for pid in set(found):
        most = SLOTS_OF_DAEMON_MAX if pid == daemon else SLOTS_PER_CLIENT_MAX
        assert found.count(pid) <= most, f"process {pid} has {found.count(pid)} slots in the table of readers: {found}"
    return len(found)


def check_vectors(ledger: str, embedder: Any, texts: Collection[str], vector_of: Any) -> int:
    """Every text has its own vector for a fresh process; returns how many lay in shared memory."""
    with connect(ledger, embedder=embedder) as cache:
        for text in texts:
            assert cache.embed(text).tobytes() == vector_of(text).tobytes(), f"another vector for {text!r}"
        hits: int = cache.stats()["embeddings"]["hits"]
    return hits


def generations(cache: Cache) -> tuple[int, int]:
    """How many generations of fold states the store holds, and how many of them are live."""
    with cache._reader.snapshots.begin() as snapshot:
        assert snapshot is not None, "nothing is published"
        with snapshot.transaction.cursor() as cursor:
            held = 0
            if cursor.set_range(GENERATION_PREFIX):
                for key, _ in cursor:
                    if not key.startswith(GENERATION_PREFIX):
                        break
                    held += 1
        return held, len(snapshot.header.folds)


def count(ledger: str, sql: str, *parameters: Any) -> int:
    """The one number that a statement gives."""
    return int(ledgers.execute(ledger, sql, *parameters)[0][0])


def memory_bytes(pid: int) -> int:
    """What a process has in memory that is not a mapped file."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def store_bytes(ledger: str) -> int:
    """What the store takes on the disk."""
    return os.stat(Instance.of(ledger).data_file).st_blocks * 512

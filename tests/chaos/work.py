"""What the client processes of a chaos run do, each until it is killed or told to be quiet.

Every event has a token of its own in its meta. A writer notes id and token in its `.acks` file after the commit has
returned, so that what is lost is found even when the writer itself is killed. Whatever a client finds wrong ends it,
with the traceback in its `.failure` file; its standard error, such as the stacks of a crash, is in its `.stderr` file.
Nothing is left out because a process may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import mmap
import os
import random
import sqlite3
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pmm_shm.errors import DaemonError, SnapshotUnavailableError
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm_cli.synthetic import RawEvent, synthetic_events
from pmm_shm_client import connect
from tests.chaos.checks import difference_from_replay
from tests.chaos.plan import CLIENTS
from tests.support.answers import everything
from tests.support.forking import end_with_parent

MODEL, DIMENSION = "chaos", 24
QUIET, FINISH, PROGRESS, EMBEDDED = "quiet", "finish", "progress", "embedded"
TOKEN = "token"
ROLLED_BACK = "never"
"""What a token begins with that must not be in the ledger."""
_SLOT = struct.Struct("=QQ")
_PROBER_SHARE = 0.2


@dataclass(frozen=True)
class Order:
    """What one client process is told.

    Attributes:
        name: of `CLIENTS`.
        incarnation: how many processes had this name before.
        done: how far they came.
        journal: of the ledger; "wal" or "delete".
    """

    ledger: str
    folder: str
    name: str
    incarnation: int
    seed: int
    done: int
    journal: str

    @property
    def role(self) -> str:
        return self.name.partition("-")[0]

    def file(self, suffix: str) -> Path:
        return Path(self.folder, f"{self.name}.{self.incarnation}.{suffix}")


class Progress:
    """How much each client has done, and how long its longest step took, in a file that all map."""

    def __init__(self, folder: str) -> None:
        path = Path(folder, PROGRESS)
        if not path.exists():
            path.write_bytes(bytes(_SLOT.size * len(CLIENTS)))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def of(self, name: str) -> tuple[int, int]:
        """(steps done, µs of the longest one)."""
        done, longest_us = _SLOT.unpack_from(self._map, _SLOT.size * CLIENTS.index(name))
        return done, longest_us

    def set(self, name: str, done: int, longest_us: int) -> None:
        _SLOT.pack_into(self._map, _SLOT.size * CLIENTS.index(name), done, longest_us)


def run(order: Order) -> None:
    """Entry point of a client process."""
    end_with_parent()
    descriptor = os.open(order.file("stderr"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()
    try:
        _Client(order).run()
    except BaseException:
        partial = order.file("failure.new")
        partial.write_text(traceback.format_exc(), encoding="utf-8")
        partial.replace(order.file("failure"))
        os._exit(1)


def vector_of(text: str) -> Any:
    """The vector of a text in the model of the lease holders, float32."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), "u1")[:DIMENSION].astype(np.float32) / np.float32(3)


def text_of(number: int) -> str:
    """The texts of the lease holders, in the order in which all of them want them."""
    return f"text {number}"


def holder_embedder(folder: str, pause: Callable[[], float]) -> FunctionEmbedder:
    """A slow embedder, which writes down what it computes."""

    def embed(texts: list[str]) -> Any:
        time.sleep(pause() * len(texts))
        with open(Path(folder, EMBEDDED), "ab", buffering=0) as calls:
            calls.write(b"." * len(texts))
        return [vector_of(text) for text in texts]

    return FunctionEmbedder(MODEL, DIMENSION, embed)


class _Client:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.chance = random.Random(f"{order.seed} {order.name} {order.incarnation}")
        self.progress = Progress(order.folder)
        self.quiet, self.finish = Path(order.folder, QUIET), Path(order.folder, FINISH)
        self.acks = os.open(order.file("acks"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.story = islice(synthetic_events(order.seed + CLIENTS.index(order.name)), order.done, None)
        self.tokens = 0
        self.as_of = self.published = 0

    def run(self) -> None:
        if self.order.role == "foreign":
            with contextlib.closing(sqlite3.connect(self.order.ledger, timeout=30.0, isolation_level=None)) as foreign:
                self.foreign = foreign
                self._work(self._foreign)
            return
        pause_s = self.chance.uniform(0.005, 0.06)
        embedder = holder_embedder(self.order.folder, lambda: self.chance.uniform(0.0, 2 * pause_s))
        with connect(self.order.ledger, embedder=embedder if self.order.role == "holder" else None) as cache:
            self.cache = cache
            self._work(getattr(self, "_" + self.order.role))
            self._end()

    def _work(self, step: Callable[[], float]) -> None:
        """One step after the other, each followed by the pause it asks for, until all is to be quiet."""
        done, longest_us = self.progress.of(self.order.name)
        while not self.quiet.exists():
            began = time.monotonic()
            pause_s = step()
            done, longest_us = done + 1, max(longest_us, int((time.monotonic() - began) * 1e6))
            self.progress.set(self.order.name, done, longest_us)
            time.sleep(pause_s)
        self.order.file("quiet").touch()

    def _end(self) -> None:
        """Once nobody appends any more, say what is read here."""
        while not self.finish.exists():
            time.sleep(0.01)
        partial = self.order.file("end.new")
        answers = {"cache": everything(self.cache), "frame": everything(self.cache.frame())}
        partial.write_text(json.dumps(answers), encoding="utf-8")
        partial.replace(self.order.file("end"))

    # Events and their tokens.

    def _token(self, prefix: str = "") -> str:
        self.tokens += 1
        return f"{prefix}{self.order.name}.{self.order.incarnation}.{self.tokens}"

    def _drafts(self, count: int, prefix: str = "") -> list[RawEvent]:
        return [
            (kind, content, {**meta, TOKEN: self._token(prefix)}) for kind, content, meta in islice(self.story, count)
        ]

    def _acknowledge(self, ids: list[int], metas: list[Mapping[str, Any]]) -> None:
        lines = "".join(f"{event_id} {meta[TOKEN]}\n" for event_id, meta in zip(ids, metas, strict=True))
        os.write(self.acks, lines.encode())

    def _append(self, kind: str, content: str, meta: dict[str, Any]) -> int:
        event_id = self.cache.append(kind, content, meta)
        self._acknowledge([event_id], [meta])
        return event_id

    def _saw(self, as_of: int, own_id: int = 0) -> None:
        """An exact read stood at `as_of`."""
        assert as_of >= own_id, f"own append {own_id} is missing: the read stands at {as_of}"
        assert as_of >= self.as_of, f"as_of went back from {self.as_of} to {as_of}"
        self.as_of = as_of

    # Writers.

    def _single(self) -> float:
        [(kind, content, meta)] = self._drafts(1)
        event_id = self._append(kind, content, meta)
        if self.chance.random() < 0.2:
            self._saw(self.cache.metrics().as_of, event_id)
        return self.chance.uniform(0.005, 0.05)

    def _batch(self) -> float:
        drafts = self._drafts(self.chance.randint(2, 40))
        ids = self.cache.append_many(drafts)
        self._acknowledge(ids, [meta for _, _, meta in drafts])
        assert ids == list(range(ids[0], ids[0] + len(ids)))
        self._saw(self.cache.metrics().as_of, ids[-1])
        return self.chance.uniform(0.05, 0.4)

    def _foreign(self) -> float:
        """Another program: no hashes, transactions of several events, and some that it thinks better of."""
        is_rolled_back = self.chance.random() < 0.15
        drafts = self._drafts(self.chance.choice((1, 1, 1, 4)), ROLLED_BACK if is_rolled_back else "")
        self._try_until_free("BEGIN IMMEDIATE")
        ids = [self._insert(*draft) for draft in drafts]
        if is_rolled_back:
            self.foreign.execute("ROLLBACK")
        else:
            self._try_until_free("COMMIT")
            self._acknowledge(ids, [meta for _, _, meta in drafts])
        return self.chance.uniform(0.01, 0.08)

    def _insert(self, kind: str, content: str, meta: dict[str, Any]) -> int:
        ts = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        row = (ts, kind, content, json.dumps(meta))
        cursor = self.foreign.execute("INSERT INTO events (ts, kind, content, meta) VALUES (?, ?, ?, ?)", row)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _try_until_free(self, statement: str) -> None:
        """SQLite's own busy handler sleeps long, and others overtake it."""
        deadline = time.monotonic() + 30.0
        while True:
            try:
                self.foreign.execute(statement).fetchall()
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise

    # Readers.

    def _reader(self) -> float:
        """Everything that can be read, in turns of chance."""
        work = self.chance.random()
        if work < 0.05:
            event_id = self._append("user", f"hello from {self.order.name}", {TOKEN: self._token()})
            self._saw(self.cache.recent().as_of, event_id)
        elif work < 0.2:
            self._read_snapshot()
        elif work < 0.45:
            self._read_frame()
        elif work < 0.47:
            self._wait()
        else:
            method = self.chance.choice(("metrics", "identity", "commitments", "stage", "recent"))
            self._saw(getattr(self.cache, method)().as_of)
        return self.chance.uniform(0.001, 0.012)

    def _read_frame(self) -> None:
        frame = self.cache.frame()
        self._saw(frame.as_of)
        parts = (frame.identity(), frame.commitments(), frame.metrics(), frame.stage(), frame.recent())
        assert {part.as_of for part in parts} == {frame.as_of}, "a frame of two positions"

    def _read_snapshot(self) -> None:
        try:
            as_of = self.cache.frame(consistency="snapshot").as_of
        except SnapshotUnavailableError:
            return
        assert as_of >= self.published, f"what is published went back from {self.published} to {as_of}"
        self.published = as_of
        # The ledger had it before the daemon could publish it.
        self._saw(self.cache.metrics().as_of, as_of)

    def _wait(self) -> None:
        head = self.cache.metrics().as_of
        try:
            assert self.cache.wait_for(head, timeout=0.3) >= head
        except DaemonError:
            return

    def _prober(self) -> float:
        """Compares a frame with a replay up to its position, and rests so that it does nothing else all the time."""
        began = time.monotonic()
        frame = self.cache.frame()
        self._saw(frame.as_of)
        found = difference_from_replay(self.cache, frame)
        assert found is None, found
        return (time.monotonic() - began) * (1.0 / _PROBER_SHARE - 1.0)

    # Lease holders and searches.

    def _holder(self) -> float:
        number = self.progress.of(self.order.name)[0]
        # All want the same texts at about the same time; who is behind reads what the others have computed.
        text = text_of(number)
        found = self.cache.embed(text)
        assert found.tobytes() == vector_of(text).tobytes(), f"another vector for {text!r}: {found}"
        return self.chance.uniform(0.0, 0.02)

    def _searcher(self) -> float:
        token = self._token()
        text = f"message {token} {self.chance.getrandbits(64):x}"
        event_id = self._append("user", text, {TOKEN: token})
        try:
            hits = self.cache.search(text, 3)
        except SnapshotUnavailableError as error:
            # The daemon was killed before it made the table. The log only grows, so it continues any table.
            if "does not continue" in str(error):
                raise
            return 0.05
        similarities = [hit.similarity for hit in hits]
        assert similarities == sorted(similarities, reverse=True), hits
        self._saw(self.cache.metrics().as_of, max([hits.as_of, *(hit.event_id for hit in hits)]))
        if hits.is_complete:
            assert hits.as_of >= event_id, f"a complete search at {hits.as_of} after own append {event_id}"
            assert hits[0].event_id == event_id, f"own message {event_id} is not found: {hits}"
            assert hits[0].similarity > 0.999_999, hits
        return self.chance.uniform(0.05, 0.3)


def acknowledged(folder: str) -> Iterator[tuple[int, str]]:
    """(event id, token) of everything that any writer has acknowledged; a line that a kill cut off is none."""
    for path in sorted(Path(folder).glob("*.acks")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            event_id, token = line.split(b" ")
            yield int(event_id), token.decode()

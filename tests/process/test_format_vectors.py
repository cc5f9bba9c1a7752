"""The vectors in `docs/FORMAT.md`, decoded by that page alone: plain lmdb, msgpack, struct and hashlib."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.daemons import Daemon, until
from tests.support.format_page import PAGE, Socket, insert, store_of, value_of

GOLDEN_FILE = ledgers.ROOT / "tests" / "support" / "golden" / "embeddings-1.json"
GOLDEN = {entry["text"]: entry["vector"] for entry in json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))}
TEXTS = [text for text in GOLDEN if text.isascii()]


def tag(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 4}f", data)


def singles(vector: list[float]) -> tuple[float, ...]:
    """The same numbers in 32 bits."""
    return floats(struct.pack(f"<{len(vector)}f", *vector))


class Table:
    """One model's table of event vectors."""

    def __init__(self, vectors: dict[bytes, bytes], name: str) -> None:
        self.record = value_of(vectors[b"v" + tag(name)])
        self.rows: dict[int, tuple[int, tuple[float, ...]]] = {}
        tails = [key for key in vectors if key.startswith(b"r" + tag(name))]
        assert len(tails) == self.record["tail"] <= 256
        for key in tails:
            self._add(int.from_bytes(key[9:], "big") - 2**63, vectors[key][-1], floats(vectors[key][:-1]))
        for number, rows, dead in self.record["blocks"]:
            assert number < self.record["next_block"]
            prefix = b"e" + tag(name) + number.to_bytes(4, "big")
            parts = {part: vectors.get(prefix + part) for part in (b"i", b"v", b"n", b"s", b"d")}
            self._add_block(rows, dead, parts)

    def _add_block(self, rows: int, dead: int, parts: dict[bytes, Any]) -> None:
        ids = struct.unpack(f"<{rows}q", parts[b"i"])
        assert list(ids) == sorted(ids)
        numbers = floats(parts[b"v"])
        is_dead = struct.unpack(f"<{dead}I", parts[b"d"]) if dead else ()
        for row, event_id in enumerate(ids):
            vector = numbers[row::rows]
            norm = math.sqrt(sum(x * x for x in vector))
            assert floats(parts[b"n"])[row] == pytest.approx(1 / norm if norm else 0.0, rel=1e-6)
            if row not in is_dead:
                self._add(event_id, parts[b"s"][row], vector)

    def _add(self, event_id: int, source: int, vector: tuple[float, ...]) -> None:
        assert event_id not in self.rows
        assert len(vector) == self.record["dimension"]
        self.rows[event_id] = (source, vector)


def indexed(daemon: Daemon) -> dict[str, Any]:
    with Socket(daemon.instance.directory, "admin") as socket:
        reply = socket.ask("index", {})
    assert reply["ok"], reply
    return reply["result"]  # type: ignore[no-any-return]


def test_event_vectors(ledger: str, start_daemon: StartDaemon) -> None:
    ledgers.execute(
        ledger,
        "CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, digest TEXT, embedding BLOB, "
        "summary TEXT, keywords TEXT, created_at INTEGER)",
    )
    last = insert(ledger, *[("user", TEXTS[number % len(TEXTS)], {}) for number in range(700)], ("note", "x", {}))
    for event_id, vector in ((3, [1.0] * 32), (last, [0.5, 0.25]), (last + 5, [1.0, 2.0])):
        blob = struct.pack(f"<{len(vector)}f", *vector)
        ledgers.execute(ledger, "INSERT INTO event_embeddings VALUES (?, '', ?, '', '', 17)", event_id, blob)
    daemon = start_daemon(ledger)
    result = indexed(daemon)
    assert set(result) == {"as_of", "put", "removed", "malformed"}
    # Rows that are replaced in sealed blocks are dead there.
    for event_id in range(10, 40):
        ledgers.execute(
            ledger,
            "INSERT INTO event_embeddings VALUES (?, '', ?, '', '', 18)",
            event_id,
            struct.pack("<32f", *[2.0] * 32),
        )
    indexed(daemon)
    store = store_of(daemon.instance.directory)
    default, small = Table(store.vectors, "local-bow"), Table(store.vectors, "imported-2")
    fields = set(
        re.findall(
            r"`(\w+)`",
            "".join(
                re.findall(r"^\| (`.*?) \|", PAGE.split("### Event vectors")[1].split("| part |")[0], re.MULTILINE)
            ),
        )
    )
    assert set(default.record) == fields
    assert default.record["event_id"] == store.header["event_id"]
    assert default.record["anchor"] == store.header["anchor"]
    assert set(default.record["kinds"]) >= {"user", "response"}
    assert any(dead for _, _, dead in default.record["blocks"])
    assert small.rows == {last: (1, (0.5, 0.25))}
    expected = {event_id: (3, singles(GOLDEN[TEXTS[(event_id - 1) % len(TEXTS)]])) for event_id in range(1, 701)}
    expected.update(dict.fromkeys(range(10, 40), (1, (2.0,) * 32)))
    expected[3] = (1, (1.0,) * 32)
    assert default.rows == expected
    assert value_of(store.vectors[b"m" + tag("local-bow")]) == ["local-bow", 32]
    assert value_of(store.vectors[b"i"]) == [33, 18, last + 5]
    assert value_of(store.vectors[b"d"]) == "local-bow"
    assert b"z" not in store.vectors


def test_text_vectors_and_leases(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, "--text-vectors-max", "2")
    keys = [hashlib.sha256(text.encode()).digest() for text in ("a", "b", "c")]
    with (
        Socket(daemon.instance.directory, "commands") as socket,
        Socket(daemon.instance.directory, "commands") as other,
    ):
        for number, key in enumerate(keys):
            lease = {"model": "mine", "keys": [key], "wait_ms": 0}
            granted = socket.ask("lease", lease)["result"]
            assert (granted["ready"], granted["held"]) == ([], [])
            ((index, token),) = granted["granted"]
            assert index == 0
            assert other.ask("lease", lease)["result"] == {"granted": [], "ready": [], "held": [0], "failed": []}
            assert socket.ask("renew", {"tokens": [token, token + 1]})["result"] == {"renewed": 1}
            vector = struct.pack("<3f", number, 1.0, 2.0)
            for used, expected in ((token + 1, {"stored": 0, "refused": 1}), (token, {"stored": 1, "refused": 0})):
                assert socket.ask("put", {"model": "mine", "vectors": [[key, used, vector]]})["result"] == expected
            assert other.ask("lease", lease)["result"] == {"granted": [], "ready": [0], "held": [], "failed": []}
        token = socket.ask("lease", {"model": "mine", "keys": [b"k" * 32], "wait_ms": 0})["result"]["granted"][0][1]
        assert socket.ask("release", {"tokens": [token]})["result"] == {}
    until(lambda: daemon.stop() == 0, "the daemon ends")
    vectors = store_of(daemon.instance.directory).vectors
    assert value_of(vectors[b"m" + tag("mine")]) == ["mine", 3]
    # What was stored first has gone.
    assert {key for key in vectors if key[:1] == b"x"} == {b"x" + tag("mine") + key for key in keys[1:]}
    assert floats(vectors[b"x" + tag("mine") + keys[2]]) == (2.0, 1.0, 2.0)
    first, next_ = value_of(vectors[b"w"])
    assert (first, next_) == (1, 3)
    queue = [vectors[b"q" + number.to_bytes(8, "big")] for number in range(first, next_)]
    assert queue == [tag("mine") + key for key in keys[1:]]
    assert sum(key[:1] == b"q" for key in vectors) == 2

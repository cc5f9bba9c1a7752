"""The store and the messages, decoded by docs/FORMAT.md alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgpack
import zmq

from tests.support import ledgers

PAGE = (ledgers.ROOT / "docs" / "FORMAT.md").read_text(encoding="utf-8")


class Pair(tuple):  # type: ignore[type-arg]
    """Extension type 2: a tuple, told from a list."""


def value_of(data: bytes) -> Any:
    def extension(code: int, payload: bytes) -> Any:
        if code == 1:
            return int.from_bytes(payload, "big", signed=True)
        assert code == 2, code
        return Pair(value_of(payload))

    return msgpack.unpackb(data, ext_hook=extension, strict_map_key=False, unicode_errors="surrogatepass")


def key_bytes(packed: bytes) -> bytes:
    return packed if len(packed) <= 416 else b"\xc1" + hashlib.blake2b(packed, digest_size=32).digest()


def packed_array(data: bytes) -> list[bytes]:
    """The packed items of a packed array."""
    unpacker = msgpack.Unpacker(unicode_errors="surrogatepass")
    unpacker.feed(data)
    result, count, start = [], unpacker.read_array_header(), unpacker.tell()
    for _ in range(count):
        unpacker.skip()
        result.append(data[start : unpacker.tell()])
        start = unpacker.tell()
    return result


class Store(NamedTuple):
    """A whole environment, decoded."""

    header: dict[str, Any]
    generations: dict[int, str]
    cells: dict[tuple[str, str], Any]
    tables: dict[tuple[str, str], dict[Any, Any]]
    touched: dict[int, Any]
    seals: list[Any]
    vectors: dict[bytes, bytes]


VECTOR_PREFIXES = frozenset(b"mxqwveridz")


def records_of(directory: Path) -> Iterator[tuple[bytes, bytes]]:
    environment = lmdb.open(str(directory), readonly=True, max_dbs=0)
    try:
        with environment.begin() as transaction:
            yield from transaction.cursor()
    finally:
        environment.close()


def store_of(directory: Path) -> Store:
    records = dict(records_of(directory))
    header = value_of(records.pop(b"h"))
    store = Store(header, {}, {}, {}, {}, [], {})
    store.generations.update(
        {int.from_bytes(key[1:], "big"): value.decode() for key, value in records.items() if key[:1] == b"g"}
    )
    for key, value in sorted(records.items()):
        number = int.from_bytes(key[1:], "big")
        if key[:1] == b"s":
            put_state(store, store.generations[int.from_bytes(key[1:5], "big")], key[5:], value)
        elif key[:1] == b"t":
            assert len(key) == 9
            store.touched[number] = value_of(value)
        elif key[:1] == b"b":
            assert (len(key), number) == (9, len(store.seals))
            store.seals.append(value_of(value))
        elif key[0] in VECTOR_PREFIXES:
            store.vectors[key] = value
        else:
            assert (key[:1], len(key)) == (b"g", 5), key
    return store


def put_state(store: Store, fold: str, key: bytes, value: bytes) -> None:
    if key[:1] == b"c":
        store.cells[fold, key[1:].decode()] = value_of(value)
        return
    assert key[:1] == b"t"
    name, rest = key[2 : 2 + key[1]].decode(), key[2 + key[1] :]
    packed_key, packed_value = packed_array(value)
    assert rest == key_bytes(packed_key)
    store.tables.setdefault((fold, name), {})[value_of(packed_key)] = value_of(packed_value)


def insert(path: str, *events: tuple[str, str, Any]) -> int:
    """Append with plain SQL; meta is an object, or the text of the column. Returns the last id."""
    connection = ledgers.connect(path)
    try:
        connection.execute("BEGIN")
        for kind, content, meta in events:
            text = meta if isinstance(meta, str) else json.dumps(meta)
            last = connection.execute(
                "INSERT INTO events (ts, kind, content, meta) VALUES (?, ?, ?, ?)",
                (ledgers.TS.format(1), kind, content, text),
            ).lastrowid
        connection.execute("COMMIT")
    finally:
        connection.close()
    assert last is not None
    return last


class Socket:
    """One client of a daemon, as the page describes it."""

    def __init__(self, directory: Path, name: str) -> None:
        path = directory / json.loads((directory / "endpoints.json").read_text(encoding="utf-8"))[name]
        ledger = os.stat(str(directory).removesuffix("-cache"))
        self._ledger = [ledger.st_dev, ledger.st_ino]
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self._socket.connect(f"ipc://{path}")

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def ask(self, command: str, args: dict[str, Any], version: int = 2) -> dict[str, Any]:
        message = {"v": version, "id": 5, "ledger": self._ledger, "command": command, "args": args}
        self._socket.send(msgpack.packb(message))
        reply: dict[str, Any] = msgpack.unpackb(self._socket.recv())
        assert reply["v"] == 2
        return reply

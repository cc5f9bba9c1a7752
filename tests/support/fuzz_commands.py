"""Hostile messages for the command sockets, from a seed; and what each of them is by `docs/FORMAT.md`, decoded here by
msgpack's other implementation and checked by rules written down a second time.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import msgpack.fallback
import numpy as np

MESSAGE_BYTES = 64 << 10
ORDINARY = ("ping", "stats", "wait", "lease", "renew", "release", "put", "claim", "resign")
ADMINISTRATIVE = (*ORDINARY, "verify", "invalidate", "index")
NOBODYS_FOLD = "nobodys_fold"
OTHER_LEDGER = "of another ledger"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


@dataclass(frozen=True)
class Message:
    """What one DEALER sends; `kind` is how it was made."""

    kind: str
    frames: list[bytes]
    is_admin: bool


# What is a command.


def command_of(message: Message, ledger: tuple[int, int] | None) -> dict[str, Any] | None:
    """The request in a message, or None where it is none, by the page of the format alone.

    One that means another ledger has the command `OTHER_LEDGER`.
    """
    if len(message.frames) != 1 or len(message.frames[0]) > MESSAGE_BYTES:
        return None
    try:
        request = msgpack.fallback.unpackb(
            message.frames[0], max_map_len=1_024, max_array_len=65_536, max_ext_len=0, strict_map_key=True
        )
    except Exception:
        return None
    if not isinstance(request, dict) or not _is_int(request.get("v"), 2, 2):
        return None
    command, args = request.get("command"), request.get("args")
    if not _is_int(request.get("id"), 0, 2**63 - 1) or not isinstance(command, str) or not isinstance(args, dict):
        return None
    if command not in (ADMINISTRATIVE if message.is_admin else ORDINARY):
        return None
    rules = RULES[command]
    if args.keys() != rules.keys() or not all(rule(args[name]) for name, rule in rules.items()):
        return None
    named = request.get("ledger", 0)
    if named is None:
        return request | {"command": OTHER_LEDGER}
    if not isinstance(named, list) or len(named) != 2 or not all(_is_int(one, 0, 2**64 - 1) for one in named):
        return None
    return request if tuple(named) == ledger else request | {"command": OTHER_LEDGER}


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_name(chars: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and 1 <= len(value) <= chars


def _is_model(value: Any) -> bool:
    return _is_name(128)(value) and value.isprintable()


def _is_token(value: Any) -> bool:
    return _is_int(value, 0, 2**63 - 1)


def _is_key(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == 32


def _is_set_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(values: Any) -> bool:
        if not isinstance(values, list) or not 1 <= len(values) <= 256 or not all(is_one(value) for value in values):
            return False
        return len(set(values)) == len(values)

    return check


def _are_vectors(entries: Any) -> bool:
    if not isinstance(entries, list) or not all(isinstance(one, list) and len(one) == 3 for one in entries):
        return False
    if not _is_set_of(_is_key)([one[0] for one in entries]) or not all(_is_token(one[1]) for one in entries):
        return False
    vectors = [one[2] for one in entries]
    if not all(isinstance(vector, bytes) and 4 <= len(vector) <= 4 * 8_192 for vector in vectors):
        return False
    if len({len(vector) for vector in vectors}) != 1 or len(vectors[0]) % 4:
        return False
    return bool(np.isfinite(np.frombuffer(b"".join(vectors), "<f4")).all())


def _or_none(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or rule(value)


RULES: dict[str, dict[str, Callable[[Any], bool]]] = {
    "ping": {},
    "stats": {},
    "index": {},
    "wait": {
        "event_id": lambda value: _is_int(value, -(2**63), 2**63 - 1),
        "timeout_ms": lambda value: _is_int(value, 0, 86_400_000),
    },
    "verify": {"fold": _or_none(_is_name(64))},
    "invalidate": {"fold": _or_none(_is_name(64))},
    "claim": {"role": _is_name(64), "token": _or_none(_is_token)},
    "resign": {"role": _is_name(64), "token": _is_token},
    "lease": {
        "model": _is_model,
        "keys": _is_set_of(_is_key),
        "wait_ms": lambda value: _is_int(value, 0, 60_000),
    },
    "renew": {"tokens": _is_set_of(_is_token)},
    "release": {"tokens": _is_set_of(_is_token)},
    "put": {"model": _is_model, "vectors": _are_vectors},
}


# What is sent.

# Parts that msgpack's packer does not make: lone surrogates, lengths that are lies, reserved bytes, 80-bit integers.
RAW_PARTS = (
    b"\xa3\xed\xa0\x80",
    b"\xa2\xff\xfe",
    b"\xdb\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xdc\xff\xff",
    b"\xde\xff\xff",
    b"\xc1",
    b"\xc7\x0a\x02" + bytes(10),
    b"\xd6\xff\x00\x00\x00\x01",
    b"\xd4\x05x",
    b"\x91" * 600 + b"\xc0",
    b"\x81\xa1a" * 600 + b"\xc0",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.0,
    1.0,
    float("nan"),
    float("inf"),
    "",
    "x",
    "ping",
    "x" * 64,
    "x" * 65,
    "x" * 129,
    "\0",
    "é" * 20,
    b"",
    b"ping",
    bytes(32),
    [],
    {},
    [[]],
    {"a": 1},
    list(range(300)),
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(1, 0),
)
MARK = "\U0010fffd mark \U0010fffd"
PACKED_MARK: bytes = msgpack.packb(MARK)


class Fuzzer:
    """Endless hostile messages, the same for the same seed; most of them mean `ledger`."""

    def __init__(self, seed: int, ledger: tuple[int, int] | None) -> None:
        self._random = random.Random(seed)
        self._ledger = ledger
        kinds: list[tuple[Callable[[], list[bytes]], int]] = [
            (self._noise, 200),
            (self._structure, 150),
            (self._swapped, 250),
            (self._raw_part, 150),
            (self._damaged, 250),
            (self._vectors, 40),
            (self._valid, 60),
            (self._large, 4),
            (self._few_frames, 40),
            (self._many_frames, 1),
            (self._large_frames, 1),
        ]
        self._kinds = [kind for kind, _ in kinds]
        self._weights = [weight for _, weight in kinds]

    def messages(self, count: int) -> Iterator[Message]:
        for make in self._random.choices(self._kinds, self._weights, k=count):
            self._is_admin = self._random.random() < 0.5
            message = Message(make.__name__.lstrip("_"), make(), self._is_admin)
            # A larger frame ends the connection, and with it what is under way on it.
            assert all(len(frame) <= MESSAGE_BYTES for frame in message.frames)
            yield message

    def raw(self) -> bytes:
        """Bytes for the unix socket below ZeroMQ, with and without its greeting."""
        data = self._random.randbytes(self._random.choice((0, 1, 9, 10, 64, 500, 5_000)))
        start = self._random.choice((b"", GREETING[:10], GREETING, GREETING[:-1] + b"\xff", _ready(b"DEALER")))
        if start.startswith(GREETING) and self._random.random() < 0.5:
            return start + b"\x02" + struct.pack(">Q", self._random.choice((2**63, 2**64 - 1, 2**20))) + data
        return start + data

    def _noise(self) -> list[bytes]:
        return [self._random.randbytes(self._random.randrange(300))]

    def _structure(self) -> list[bytes]:
        return [msgpack.packb(self._value(0))]

    def _value(self, depth: int) -> Any:
        choice = self._random.randrange(10)
        if depth < 4 and choice < 2:
            return [self._value(depth + 1) for _ in range(self._random.randrange(5))]
        if depth < 4 and choice < 4:
            names = self._random.choices(("v", "id", "command", "args", "x", b"v"), k=4)
            return {name: self._value(depth + 1) for name in names}
        return self._random.choice(VALUES)

    def _request(self, command: str | None = None) -> dict[str, Any]:
        command = command or self._random.choice(ADMINISTRATIVE if self._is_admin else ORDINARY)
        ledger = None if self._ledger is None else list(self._ledger)
        request_id = self._random.getrandbits(40)
        return {"v": 2, "id": request_id, "ledger": ledger, "command": command, "args": self._args(command)}

    def _args(self, command: str) -> dict[str, Any]:
        token = self._random.getrandbits(60)
        return {
            "wait": lambda: {"event_id": self._random.choice((0, 2**62)), "timeout_ms": self._random.randrange(2_000)},
            "verify": lambda: {"fold": NOBODYS_FOLD},
            "invalidate": lambda: {"fold": NOBODYS_FOLD},
            "claim": lambda: {"role": f"role {token % 100}", "token": self._random.choice((None, token))},
            "resign": lambda: {"role": f"role {token % 100}", "token": token},
            "lease": lambda: {
                "model": "m",
                "keys": [self._random.randbytes(32) for _ in range(self._random.choice((1, 1, 1, 3, 100)))],
                "wait_ms": self._random.choice((0, 50)),
            },
            "renew": lambda: {"tokens": [token, token + 1]},
            "release": lambda: {"tokens": [token]},
            "put": lambda: {
                "model": "m",
                "vectors": [[self._random.randbytes(32), token, bytes(12)]],
            },
        }.get(command, dict)()

    def _valid(self) -> list[bytes]:
        return [msgpack.packb(self._request())]

    def _swap(self, value: Any) -> dict[str, Any]:
        """A request of which one part, however deep, is another; or is missing, or one too many."""
        request = self._request()
        place: Any = self._random.choice((request, request["args"] or request))
        key: Any = self._random.choice(list(place))
        while isinstance(place[key], (dict, list)) and place[key] and self._random.random() < 0.7:
            place = place[key]
            key = self._random.choice(list(place)) if isinstance(place, dict) else self._random.randrange(len(place))
        change = self._random.randrange(8)
        if change == 0:
            del place[key]
        elif change == 1 and isinstance(place, dict):
            place["one too many"] = value
        elif change == 2 and isinstance(place, list):
            place.append(place[key])
        else:
            place[key] = value
        return request

    def _swapped(self) -> list[bytes]:
        return [msgpack.packb(self._swap(self._random.choice(VALUES)))]

    def _raw_part(self) -> list[bytes]:
        return [msgpack.packb(self._swap(MARK)).replace(PACKED_MARK, self._random.choice(RAW_PARTS))]

    def _damaged(self) -> list[bytes]:
        """The bytes of a request with flipped bits, cut, or with a part twice."""
        data = bytearray(msgpack.packb(self._request()))
        change = self._random.randrange(5)
        at = self._random.randrange(len(data))
        if change < 2:
            for _ in range(self._random.choice((1, 1, 1, 2, 8))):
                data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        elif change == 2:
            del data[at:]
        elif change == 3:
            end = min(len(data), at + self._random.randrange(1, 40))
            data[at:at] = data[at:end]
        else:
            data += self._random.choice((b"\xc0", bytes(data), b"\0" * 100))
        return [bytes(data)]

    def _vectors(self) -> list[bytes]:
        """Vectors that are not finite, of two dimensions, too long, too many, or fine."""
        request = self._request("put")
        odd = self._random.choice(("nan", "inf", "-inf", "dimension", "bytes", "many", "fine", "text"))
        count = 300 if odd == "many" else self._random.choice((1, 2, 20))
        numbers = [[self._random.gauss(0, 1) for _ in range(8)] for _ in range(count)]
        if odd in ("nan", "inf", "-inf"):
            numbers[-1][self._random.randrange(8)] = float(odd)
        vectors: list[Any] = [struct.pack("<8f", *row) for row in numbers]
        if odd == "dimension":
            vectors[-1] += bytes(4)
        elif odd == "bytes":
            vectors = [vector[:-1] for vector in vectors]
        elif odd == "text":
            vectors[-1] = "12345678"
        request["args"]["vectors"] = [[self._random.randbytes(32), 7, vector] for vector in vectors]
        return [msgpack.packb(request)]

    def _large(self) -> list[bytes]:
        """Up to the limit: a long text, a long vector, a long array, many keys, deep nesting."""
        request = self._request()
        odd = self._random.randrange(6)
        if odd == 0:
            request["command"] = "x" * 60_000
        elif odd == 1:
            request["args"] = {"fold": [0] * 60_000}
        elif odd == 2:
            request["args"] = {str(number): number for number in range(2_000)}
        elif odd == 3:
            request["command"] = "put"
            request["args"] = {"model": "m", "vectors": [[bytes(32), 1, bytes(4 * 8_193)]]}
        elif odd == 4:
            return [self._random.choice((b"\x91", b"\x81\xa1a")) * 20_000 + b"\xc0"]
        else:
            return [self._random.randbytes(1) * MESSAGE_BYTES]
        return [msgpack.packb(request)]

    def _few_frames(self) -> list[bytes]:
        one = msgpack.packb(self._request())
        return self._random.choice(([b""], [b"", one], [one, b""], [one, one], [b"", b"", b""], [one] * 9))

    def _many_frames(self) -> list[bytes]:
        frame = self._random.choice((b"", b"x", msgpack.packb(self._request())))
        return [frame] * self._random.randrange(10, 5_000)

    def _large_frames(self) -> list[bytes]:
        return [bytes(MESSAGE_BYTES)] * self._random.randrange(2, 20)


# Below ZeroMQ.


def _ready(kind: bytes) -> bytes:
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return GREETING + bytes((4, len(body))) + body


def raw_peer(path: str, kind: bytes = b"DEALER") -> socket.socket:
    """A peer that has shaken hands as one of ZeroMQ's would, and now sends what it likes."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(5.0)
    try:
        peer.connect(path)
        peer.sendall(_ready(kind))
        greeting = b""
        while len(greeting) < len(GREETING):
            data = peer.recv(len(GREETING) - len(greeting))
            if not data:
                raise ConnectionResetError(path)
            greeting += data
    except BaseException:
        peer.close()
        raise
    return peer


def seed_of(default: int | None) -> int:
    """The seed of this run: `PMM_FUZZ_SEED`, or `default`, or another one each time. Printed, to run it again."""
    seed = int(
        os.environ.get("PMM_FUZZ_SEED", default if default is not None else random.SystemRandom().getrandbits(32))
    )
    print(f"PMM_FUZZ_SEED={seed}")
    return seed

"""Messages between clients and the daemon: one frame of msgpack each, checked against a schema and limits.

A request is {"v": 2, "id": int, "ledger": [device, inode], "command": str, "args": {...}}; its reply {"v": 2, "id":
int, "ok": true, "result": ...} or {..., "ok": false, "error": {"code": str, "message": str}}. An announcement is {"v":
2, "as_of": int, "sequence": int}. A request names the ledger that it means: paths and records can lead to the daemon of
another one.

A report is a request without a reply, sent as a datagram to a separate socket. `results` has the results.

Messages are hints: correctness never depends on one of them arriving.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack

from pmm_shm import limits
from pmm_shm.errors import CommandError, ConfigError
from pmm_shm.instance.paths import FileId
from pmm_shm.names import checked_model_name

VERSION = 2
PING, STATS, WAIT, VERIFY, INVALIDATE = "ping", "stats", "wait", "verify", "invalidate"
LEASE, RENEW, RELEASE, PUT, INDEX = "lease", "renew", "release", "put", "index"
CLAIM, RESIGN = "claim", "resign"
REPORT = "report"
OTHER_LEDGER = "other_ledger"
"""The error code for a request that means another ledger than the daemon's."""
ORDINARY = frozenset({PING, STATS, WAIT, LEASE, RENEW, RELEASE, PUT, CLAIM, RESIGN})
ADMINISTRATIVE = ORDINARY | {VERIFY, INVALIDATE, INDEX}
REPORTS = frozenset({REPORT})
TEXT_KEY_BYTES = 32
COUNTERS = (
    "projection_hits",
    "projection_misses",
    "projection_caught_up",
    "projection_replayed",
    "projection_recomputations",
    "metrics_hits",
    "metrics_misses",
    "metrics_caught_up",
    "metrics_replayed",
    "metrics_recomputations",
    "events_folded",
    "embedding_hits",
    "embedding_misses",
    "appends_default",
    "appends_full",
    "pid_collisions",
)
"""The counters that a worker reports, each since the worker began. A collision: it could not read the published state,
because a process of another pid namespace has its pid.
"""
LEASE_WAIT_MS_MAX = 60_000
_UNPACK = {"max_map_len": 1_024, "max_array_len": 65_536, "max_ext_len": 0, "strict_map_key": True}
_REASON_CHARS_MAX = 300
_MESSAGE_CHARS_MAX = 1_000
WAIT_MS_MAX = 24 * 3_600 * 1_000


class ProtocolError(ValueError):
    """A message that does not follow the protocol; the text says why.

    Attributes:
        request_id: the id of the message; 0 if it has none.
    """

    def __init__(self, reason: str, request_id: int = 0) -> None:
        # It may quote a part of the message.
        super().__init__(reason[:_REASON_CHARS_MAX])
        self.request_id = request_id


class OtherLedgerError(Exception):
    """The daemon that answered serves another ledger than the one that the request named."""


class Request(NamedTuple):
    """A checked request; `args` has exactly the keys that its command takes.

    Attributes:
        ledger: the identity of the ledger that it means; None where no file is at its path.
    """

    id: int
    command: str
    args: Mapping[str, Any]
    ledger: FileId | None

    def pack(self) -> bytes:
        return _pack({"id": self.id, "ledger": self.ledger, "command": self.command, "args": dict(self.args)})


class Announcement(NamedTuple):
    """The daemon has published up to event `as_of`; `sequence` counts its announcements."""

    as_of: int
    sequence: int

    def pack(self) -> bytes:
        return _pack(self._asdict())


def _pack(fields: dict[str, Any], unicode_errors: str = "strict") -> bytes:
    packed: bytes = msgpack.packb({"v": VERSION, **fields}, unicode_errors=unicode_errors)
    return packed


def _unpack(data: bytes, size_max: int) -> dict[str, Any]:
    if len(data) > size_max:
        raise ProtocolError(f"a message of {len(data)} bytes; at most {size_max} are allowed")
    try:
        message = msgpack.unpackb(data, **_UNPACK)
    except Exception as error:
        raise ProtocolError(f"not a message: {type(error).__name__}") from None
    if not isinstance(message, dict):
        raise ProtocolError("not a message: not a map")
    return message


def _check_version(message: dict[str, Any]) -> None:
    version = message.get("v")
    if type(version) is not int or version != VERSION:
        raise ProtocolError(f"protocol version {version!r}, this side speaks {VERSION}")


def _is_integer(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def unpack_request(data: bytes, allowed: frozenset[str]) -> Request:
    """The request in `data`, if its command is among `allowed`.

    Raises:
        ProtocolError: it is not such a request, and must not be carried out.
    """
    message = _unpack(data, limits.MESSAGE_BYTES_MAX)
    try:
        return _checked_request(message, allowed)
    except ProtocolError as error:
        request_id = message.get("id")
        raise ProtocolError(str(error), request_id if type(request_id) is int and request_id >= 0 else 0) from None


def _checked_request(message: dict[str, Any], allowed: frozenset[str]) -> Request:
    _check_version(message)
    request_id, command, args = message.get("id"), message.get("command"), message.get("args")
    if not _is_integer(request_id, 0, 2**63 - 1) or not isinstance(command, str) or not isinstance(args, dict):
        raise ProtocolError("a request needs id, ledger, command and args")
    assert isinstance(request_id, int)
    if command not in allowed:
        raise ProtocolError(f"unknown command {command[:64]!r} on this socket")
    return Request(request_id, command, _checked_args(command, args), _checked_ledger(message.get("ledger", ())))


def _checked_ledger(value: Any) -> FileId | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(_is_integer(one, 0, 2**64 - 1) for one in value):
        raise ProtocolError("ledger must be [device, inode] or null")
    return value[0], value[1]


def _checked_args(command: str, args: dict[str, Any]) -> dict[str, Any]:
    fields = _ARGUMENTS[command]
    if set(args) != set(fields):
        raise ProtocolError(f"{command}: takes {sorted(fields)}, got {sorted(map(str, args))[:8]}")
    for name, (is_good, expected) in fields.items():
        if not is_good(args[name]):
            raise ProtocolError(f"{command}: {name} must be {expected}")
    return args


def _is_fold(value: object) -> bool:
    return value is None or (isinstance(value, str) and 0 < len(value) <= 64)


def _is_model(value: object) -> bool:
    try:
        checked_model_name(value)
    except ConfigError:
        return False
    return True


def _is_text_key(value: object) -> bool:
    return type(value) is bytes and len(value) == TEXT_KEY_BYTES


def _is_token(value: object) -> bool:
    return _is_integer(value, 0, 2**63 - 1)


def _is_list_of(value: object, is_item: Callable[[object], bool]) -> bool:
    """Whether it is a list of 1 to `limits.LEASE_KEYS_MAX` different items."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= limits.LEASE_KEYS_MAX
        and all(map(is_item, value))
        and len(set(value)) == len(value)
    )


def _are_vectors(value: object) -> bool:
    """Whether it is a list of [key, token, vector], no key twice, the vectors finite and of one dimension."""
    if not isinstance(value, list) or not all(isinstance(entry, list) and len(entry) == 3 for entry in value):
        return False
    if not _is_list_of([entry[0] for entry in value], _is_text_key) or not all(_is_token(entry[1]) for entry in value):
        return False
    vectors = [entry[2] for entry in value]
    if not all(type(vector) is bytes for vector in vectors) or len(set(map(len, vectors))) != 1:
        return False
    dimension, rest = divmod(len(vectors[0]), 4)
    if rest or not 1 <= dimension <= limits.DIMENSION_MAX:
        return False
    return all(all(map(math.isfinite, struct.unpack(f"<{dimension}f", vector))) for vector in vectors)


def _are_counters(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == set(COUNTERS)
        and all(_is_integer(count, 0, limits.COUNTER_MAX) for count in value.values())
    )


_ArgumentRule = tuple[Callable[[Any], bool], str]
_ROLE: _ArgumentRule = (lambda value: isinstance(value, str) and 0 < len(value) <= 64, "a name of 1 to 64 characters")
_FOLD: _ArgumentRule = (_is_fold, "a name or null")
_MODEL: _ArgumentRule = (_is_model, "a model's name")
_TOKENS: _ArgumentRule = (lambda value: _is_list_of(value, _is_token), f"1 to {limits.LEASE_KEYS_MAX} different tokens")


def _between(low: int, high: int) -> _ArgumentRule:
    return lambda value: _is_integer(value, low, high), f"an integer from {low} to {high}"


_ARGUMENTS: dict[str, dict[str, _ArgumentRule]] = {
    PING: {},
    STATS: {},
    WAIT: {"event_id": _between(-(2**63), 2**63 - 1), "timeout_ms": _between(0, WAIT_MS_MAX)},
    VERIFY: {"fold": _FOLD},
    INVALIDATE: {"fold": _FOLD},
    INDEX: {},
    CLAIM: {
        "role": _ROLE,
        "token": (lambda value: value is None or _is_token(value), "a token or null"),
    },
    RESIGN: {"role": _ROLE, "token": (_is_token, "a token")},
    LEASE: {
        "model": _MODEL,
        "keys": (
            lambda value: _is_list_of(value, _is_text_key),
            f"1 to {limits.LEASE_KEYS_MAX} different keys of {TEXT_KEY_BYTES} bytes",
        ),
        "wait_ms": _between(0, LEASE_WAIT_MS_MAX),
    },
    REPORT: {
        "worker": (_is_token, "a token"),
        "counters": (_are_counters, f"all counters, from 0 to {limits.COUNTER_MAX}"),
        "is_last": (lambda value: isinstance(value, bool), "a boolean"),
    },
    RENEW: {"tokens": _TOKENS},
    RELEASE: {"tokens": _TOKENS},
    PUT: {
        "model": _MODEL,
        "vectors": (
            _are_vectors,
            f"1 to {limits.LEASE_KEYS_MAX} different [key, token, finite float32 little-endian], of one dimension",
        ),
    },
}
"""The arguments of each command, each with a check and the words for it."""


def pack_result(request_id: int, result: Any) -> bytes:
    """The reply to a command that was carried out."""
    return _pack({"id": request_id, "ok": True, "result": result}, unicode_errors="replace")


def pack_error(request_id: int, code: str, message: str) -> bytes:
    """The reply to a command that was refused or failed."""
    error = {"code": code, "message": message[:_MESSAGE_CHARS_MAX]}
    return _pack({"id": request_id, "ok": False, "error": error}, unicode_errors="replace")


def unpack_reply(data: bytes, request_id: int) -> Any:
    """The result in a reply to request `request_id`.

    Raises:
        CommandError: the daemon refused or failed, with its message; or it speaks another version of the protocol.
        OtherLedgerError: the daemon serves another ledger.
        ProtocolError: not a reply to this request.
    """
    message = _unpack(data, limits.REPLY_BYTES_MAX)
    version = message.get("v")
    if type(version) is int and version != VERSION:
        raise CommandError(
            f"the daemon speaks protocol version {version}, this client {VERSION}: install the same on both"
        )
    _check_version(message)
    if message.get("id") != request_id or not isinstance(message.get("ok"), bool):
        raise ProtocolError("not a reply to this request")
    if message["ok"]:
        return message.get("result")
    error = message.get("error")
    if not isinstance(error, dict):
        raise ProtocolError("an error reply without an error")
    if error.get("code") == OTHER_LEDGER:
        raise OtherLedgerError
    raise CommandError(" ".join(str(error.get("message"))[:_MESSAGE_CHARS_MAX].split()))


def unpack_announcement(data: bytes) -> Announcement:
    """The announcement in `data`. Raises `ProtocolError`."""
    message = _unpack(data, limits.MESSAGE_BYTES_MAX)
    _check_version(message)
    as_of, sequence = message.get("as_of"), message.get("sequence")
    if type(as_of) is not int or type(sequence) is not int:
        raise ProtocolError("an announcement needs as_of and sequence")
    return Announcement(as_of, sequence)

"""Messages between clients and the daemon: one frame of msgpack each, checked against a schema and limits.

A request is {"v": 1, "id": int, "command": str, "args": {...}}; its reply {"v": 1, "id": int, "ok": true, "result":
...} or {..., "ok": false, "error": {"code": str, "message": str}}. An announcement is {"v": 1, "as_of": int,
"sequence": int}.

Messages are hints: no correctness depends on one of them arriving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from pmm_shm import limits
from pmm_shm.errors import CommandError

VERSION = 1
PING, STATS, WAIT, VERIFY, INVALIDATE = "ping", "stats", "wait", "verify", "invalidate"
ORDINARY = frozenset({PING, STATS, WAIT})
ADMINISTRATIVE = frozenset({PING, STATS, WAIT, VERIFY, INVALIDATE})
_UNPACK = {"max_map_len": 1_024, "max_array_len": 65_536, "max_ext_len": 0, "strict_map_key": True}
_WAIT_MS_MAX = 24 * 3_600 * 1_000


class ProtocolError(ValueError):
    """A message that is not one of ours; the text says why.

    Attributes:
        request_id: the id of the message, where it has one; otherwise 0.
    """

    def __init__(self, reason: str, request_id: int = 0) -> None:
        super().__init__(reason)
        self.request_id = request_id


@dataclass(frozen=True)
class Request:
    """A checked request; `args` has exactly the keys that its command takes."""

    id: int
    command: str
    args: Mapping[str, Any]

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb({"v": VERSION, "id": self.id, "command": self.command, "args": dict(self.args)})
        return packed


@dataclass(frozen=True)
class Announcement:
    """The daemon has published up to event `as_of`."""

    as_of: int
    sequence: int

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb({"v": VERSION, "as_of": self.as_of, "sequence": self.sequence})
        return packed


def _unpack(data: bytes, size_max: int) -> dict[str, Any]:
    if len(data) > size_max:
        raise ProtocolError(f"a message of {len(data)} bytes; at most {size_max} are read")
    try:
        message = msgpack.unpackb(data, **_UNPACK)
    except Exception as error:
        raise ProtocolError(f"not a message: {type(error).__name__}") from None
    if not isinstance(message, dict):
        raise ProtocolError("not a message: no map")
    return message


def _check_version(message: dict[str, Any]) -> None:
    if message.get("v") != VERSION:
        raise ProtocolError(f"protocol version {message.get('v')!r}, this side speaks {VERSION}")


def _is_integer(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def unpack_request(data: bytes, allowed: frozenset[str]) -> Request:
    """The request in `data`, if its command is among `allowed`.

    Raises:
        ProtocolError: it is none; nothing of it may be carried out.
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
        raise ProtocolError("a request needs id, command and args")
    assert isinstance(request_id, int)
    if command not in allowed:
        raise ProtocolError(f"unknown command {command[:64]!r} on this socket")
    return Request(request_id, command, _checked_args(command, args))


def _checked_args(command: str, args: dict[str, Any]) -> dict[str, Any]:
    if command in (PING, STATS):
        wanted: set[str] = set()
    elif command == WAIT:
        wanted = {"event_id", "timeout_ms"}
        if not _is_integer(args.get("event_id"), -(2**63), 2**63 - 1):
            raise ProtocolError("wait: event_id must be an integer of 64 bits")
        if not _is_integer(args.get("timeout_ms"), 0, _WAIT_MS_MAX):
            raise ProtocolError(f"wait: timeout_ms must be an integer from 0 to {_WAIT_MS_MAX}")
    else:
        wanted = {"fold"}
        fold = args.get("fold")
        if fold is not None and not (isinstance(fold, str) and 0 < len(fold) <= 64):
            raise ProtocolError(f"{command}: fold must be a name or null")
    if set(args) != wanted:
        raise ProtocolError(f"{command}: takes {sorted(wanted)}, got {sorted(map(str, args))[:8]}")
    return args


def pack_result(request_id: int, result: Any) -> bytes:
    """A reply to a command that was carried out."""
    packed: bytes = msgpack.packb(
        {"v": VERSION, "id": request_id, "ok": True, "result": result}, unicode_errors="replace"
    )
    return packed


def pack_error(request_id: int, code: str, message: str) -> bytes:
    """A reply to a command that was refused or failed."""
    error = {"code": code, "message": message[:1_000]}
    packed: bytes = msgpack.packb(
        {"v": VERSION, "id": request_id, "ok": False, "error": error}, unicode_errors="replace"
    )
    return packed


def unpack_reply(data: bytes, request_id: int) -> Any:
    """The result in a reply to request `request_id`.

    Raises:
        CommandError: the daemon refused or failed; the message is its own.
        ProtocolError: not a reply to this request.
    """
    message = _unpack(data, limits.REPLY_BYTES_MAX)
    _check_version(message)
    if message.get("id") != request_id or not isinstance(message.get("ok"), bool):
        raise ProtocolError("not a reply to this request")
    if message["ok"]:
        return message.get("result")
    error = message.get("error")
    if not isinstance(error, dict):
        raise ProtocolError("an error reply without an error")
    raise CommandError(str(error.get("message")))


def unpack_announcement(data: bytes) -> Announcement:
    """The announcement in `data`. Raises `ProtocolError`."""
    message = _unpack(data, limits.MESSAGE_BYTES_MAX)
    _check_version(message)
    as_of, sequence = message.get("as_of"), message.get("sequence")
    if type(as_of) is not int or type(sequence) is not int:
        raise ProtocolError("an announcement needs as_of and sequence")
    return Announcement(as_of, sequence)

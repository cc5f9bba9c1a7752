"""Events on their way into the log: validated and serialised before the ledger is locked, hashed when it is.

The hash covers the parsed `meta`, not its text, and the formula `content` leaves `id` and `ts` unprotected. The cache's
own anchor and seals cover the rest. `chain` verifies the hashes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, TypeAlias

from pmm_shm.errors import InvalidEventError
from pmm_shm.frozen import FrozenDict, FrozenList
from pmm_shm.ledger.instants import instant_us
from pmm_shm.ledger.rows import MalformedMeta, RawRow, parse_meta

EventInput: TypeAlias = Mapping[str, Any] | tuple[str, str, Mapping[str, Any] | None]
"""`(kind, content, meta)`, or a mapping with `kind` and optionally `content`, `meta` and `ts`."""

_KEYS = frozenset(("kind", "content", "meta", "ts"))
_SAFE_INTEGER = 1 << 63
_PLAIN_DEPTH_MAX = 8
_PLAIN = frozenset((str, float, bool, type(None)))
Formula = Literal["full", "content"]
FORMULAS: tuple[Formula, ...] = ("full", "content")
"""The values that a hash covers: all, or neither `id` nor `ts`."""


def _json_encoder(*, sort_keys: bool = False, separators: tuple[str, str] = (", ", ": ")) -> Callable[[object], str]:
    """A function that returns the text of `json.dumps`. A value that contains itself raises `RecursionError`.

    `JSONEncoder.encode` creates its encoder in C anew for every value, which is half the cost of a small one.
    """
    own = json.JSONEncoder(sort_keys=sort_keys, separators=separators)
    item, key = separators
    try:
        make = json.encoder.c_make_encoder  # type: ignore[attr-defined]
        encode = make(None, own.default, encode_basestring_ascii, None, key, item, sort_keys, False, True)
    except (AttributeError, TypeError):
        # Not a documented part of Python: an interpreter may lack it.
        return own.encode
    return lambda value: "".join(encode(value, 0))


_json = _json_encoder()
_canonical = _json_encoder(sort_keys=True, separators=(",", ":"))

# A plain tuple: the garbage collector stops tracking these, but scans every NamedTuple of a large batch repeatedly.
NewEvent: TypeAlias = tuple[str | None, str, str, str, str, str, str]
"""(ts, kind, content, meta, and the canonical JSON of kind, content and meta) of an event without id and hash.

`ts` None means the time of the append, `meta` is the column's text, and the JSON is what the hash covers.
"""


def new_event(kind: object, content: object = "", meta: object = None, ts: object = None) -> NewEvent:
    """Validate one event, whatever the types of its parts.

    Raises:
        InvalidEventError: it could not be stored and read back unchanged.
    """
    if not isinstance(kind, str) or not kind:
        raise InvalidEventError(f"kind: {kind!r:.80} is not a non-empty text")
    if not isinstance(content, str):
        raise InvalidEventError(f"content: {type(content).__name__} is not text")
    if not (kind.isascii() and content.isascii()):
        _require_utf8("kind", kind)
        _require_utf8("content", content)
    if ts is not None and (not isinstance(ts, str) or instant_us(ts) is None):
        raise InvalidEventError(f"ts: {ts!r:.80} is not an ISO 8601 time")
    text, meta_json = _serialise(meta)
    return ts, kind, content, text, encode_basestring_ascii(kind), encode_basestring_ascii(content), meta_json


def new_events(events: Iterable[EventInput]) -> list[NewEvent]:
    """Validate a batch.

    Raises:
        InvalidEventError: one of them could not be stored and read back unchanged; the message gives its position.
    """
    result: list[NewEvent] = []
    for position, event in enumerate(events):
        try:
            result.append(_parsed(event))
        except InvalidEventError as error:
            raise InvalidEventError(f"event {position} of the batch: {error}") from None
    return result


def _parsed(event: object) -> NewEvent:
    if isinstance(event, (tuple, list)) and 1 <= len(event) <= 3:
        return new_event(*event)
    if isinstance(event, Mapping):
        if not _KEYS.issuperset(event):
            raise InvalidEventError(f"unknown keys {sorted(map(str, set(event) - _KEYS))}")
        return new_event(event.get("kind", ""), event.get("content", ""), event.get("meta"), event.get("ts"))
    raise InvalidEventError("neither (kind, content, meta) nor a mapping")


def _require_utf8(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidEventError(f"{name}: holds half of a surrogate pair, which is not UTF-8") from None


def _serialise(meta: object) -> tuple[str, str]:
    """The column's text, with the keys in the given order, and the canonical JSON of what readers parse from it."""
    if meta is None:
        return "{}", "{}"
    if not isinstance(meta, dict):
        if not isinstance(meta, Mapping):
            raise InvalidEventError(f"meta: {type(meta).__name__} is not a mapping")
        meta = dict(meta)
    try:
        text = _json(meta)
    except (TypeError, ValueError) as error:
        raise InvalidEventError(f"meta: {error}") from None
    except RecursionError:
        raise InvalidEventError("meta: nested too deep") from None
    if _reads_back_equal(meta, _PLAIN_DEPTH_MAX):
        return text, _canonical(meta)
    try:
        return text, _canonical(parse_meta(text))
    except MalformedMeta as error:
        raise InvalidEventError(f"meta: {error}") from None


def _reads_back_equal(value: Any, depth_max: int) -> bool:
    """Whether the JSON text of an object or list certainly parses to an equal one, as that of most events does.

    Then it need not be parsed, which saves half the cost.
    """
    kind = type(value)
    if kind is dict or kind is FrozenDict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    elif not (kind is list or kind is FrozenList):
        return False
    for one in value:
        kind = type(one)
        if kind in _PLAIN:
            continue
        if kind is int:
            if not -_SAFE_INTEGER <= one < _SAFE_INTEGER:
                return False
        elif not depth_max or not _reads_back_equal(one, depth_max - 1):
            return False
    return True


def now_text() -> str:
    """The current time in the format of new events: UTC, microseconds, `+00:00`."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def hashed_rows(
    events: Sequence[NewEvent], first_id: int, now: str, formula: Formula, last_hash: str | None
) -> list[RawRow]:
    """The rows of events that follow the row with `last_hash`; those without a time get `now`."""
    rows: list[RawRow] = []
    now_json = encode_basestring_ascii(now)
    for event_id, (ts, kind, content, meta, kind_json, content_json, meta_json) in enumerate(events, first_id):
        ts_json = now_json if ts is None else encode_basestring_ascii(ts)
        # In hex digits.
        previous, previous_json = last_hash, "null" if last_hash is None else f'"{last_hash}"'
        last_hash = hash_of_parts(formula, event_id, ts_json, kind_json, content_json, meta_json, previous_json)
        rows.append((event_id, now if ts is None else ts, kind, content, meta, previous, last_hash))
    return rows


def canonical_json(value: object) -> str:
    """JSON as the hash covers it: sorted keys, no spaces, non-ASCII escaped."""
    if type(value) is str:
        return encode_basestring_ascii(value)
    return _canonical(value)


def hash_of_parts(
    formula: Formula, event_id: int, ts_json: str, kind_json: str, content_json: str, meta_json: str, prev_json: str
) -> str:
    """SHA-256 in hex of an event, given its values as canonical JSON."""
    # The sorted keys are written by hand: with one JSON text per part, a writer prepares most of them before it locks.
    if formula == "full":
        text = (
            f'{{"content":{content_json},"id":{event_id},"kind":{kind_json},"meta":{meta_json},'
            f'"prev_hash":{prev_json},"ts":{ts_json}}}'
        )
    else:
        text = f'{{"content":{content_json},"kind":{kind_json},"meta":{meta_json},"prev_hash":{prev_json}}}'
    return sha256(text.encode()).hexdigest()


def event_hash(
    formula: Formula, event_id: int, ts: str, kind: str, content: str, meta: dict[str, Any], prev_hash: str | None
) -> str:
    """SHA-256 in hex of one event; `meta` is the parsed object, `prev_hash` None for the first event of the chain.

    Raises:
        TypeError, ValueError, RecursionError: a value cannot be written as JSON.
    """
    return hash_of_parts(
        formula,
        event_id,
        canonical_json(ts),
        canonical_json(kind),
        canonical_json(content),
        canonical_json(meta),
        canonical_json(prev_hash),
    )

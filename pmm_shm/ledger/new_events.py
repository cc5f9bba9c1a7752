"""Events before they have an id: validated and serialised, outside the ledger's lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, TypeAlias

from pmm_shm.errors import InvalidEventError
from pmm_shm.frozen import FrozenDict, FrozenList
from pmm_shm.ledger.chain import canonical_json, json_encoder
from pmm_shm.ledger.instants import instant_us
from pmm_shm.ledger.rows import MalformedMeta, parse_meta

EventInput: TypeAlias = Mapping[str, Any] | tuple[str, str, Mapping[str, Any] | None]
"""`(kind, content, meta)`, or a mapping with `kind` and optionally `content`, `meta` and `ts`."""

_KEYS = frozenset(("kind", "content", "meta", "ts"))
_SAFE_INTEGER = 1 << 63
_PLAIN_DEPTH_MAX = 8
_PLAIN = frozenset((str, float, bool, type(None)))
_json = json_encoder()


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
        return text, canonical_json(meta)
    try:
        return text, canonical_json(parse_meta(text))
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

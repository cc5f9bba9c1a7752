"""Rows as the ledger stores them, and events as folds see them.

A raw row is a tuple of all columns; digests cover it. An event is the decoded row. Decoding never fails: what is not
valid is replaced, with a reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import msgpack

from pmm_shm import limits
from pmm_shm.digests import blake2b
from pmm_shm.errors import NotALedgerError
from pmm_shm.frozen import json_text, plain, result
from pmm_shm.late import late_imports
from pmm_shm.typed import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from json import JSONDecoder

T = TypeVar("T")
DIGEST_BYTES = 16
ID_MIN, ID_MAX = -(1 << 63), (1 << 63) - 1
REQUIRED_COLUMNS = ("id", "ts", "kind", "content", "meta")
HASH_COLUMNS = ("prev_hash", "hash")
RawRow = tuple[Any, ...]
"""(id, ts, kind, content, meta[, prev_hash, hash]) with SQLite's own types: int, float, str, bytes, None, InvalidText.
"""


def not_integers(path: str, fault: str) -> NotALedgerError:
    """The error for a table whose ids are, or could be, something else than integers."""
    return NotALedgerError(f"{path}: not a ledger: the column `id` of `events` {fault}")


class InvalidText:
    """A TEXT value that is not UTF-8; `raw` is its bytes. Not a tuple: msgpack would pack it as one."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InvalidText) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"InvalidText({self.raw!r})"


_NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})


@result
class Event(NamedTuple):
    """One event of the log, decoded.

    `meta` is shared by all folds of a process: read it, never change it.
    """

    id: int
    ts: str
    kind: str
    content: str
    meta: dict[str, Any]

    @property
    def columns(self) -> Mapping[str, Any]:
        """The other columns that a fold has asked for, by name: int, float, str, bytes or None; empty for others."""
        return _NO_COLUMNS

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


class WideEvent(Event):
    """An event with other columns of its row."""

    columns: Mapping[str, Any] = _NO_COLUMNS


def parse_columns(row: RawRow, places: Mapping[str, int], names: Iterable[str]) -> tuple[dict[str, Any], str]:
    """(the columns of a row by name, the reasons why some of them read as None); a column without a place is None."""
    found, reasons = {}, []
    for name in names:
        place = places.get(name)
        value = None if place is None else row[place]
        if isinstance(value, InvalidText):
            value = None
            reasons.append(f"{name} is not UTF-8")
        found[name] = value
    return found, "; ".join(reasons)


def decode_text(data: bytes) -> str | InvalidText:
    """A `text_factory` that never fails."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return InvalidText(data)


def _pack_default(value: object) -> object:
    if isinstance(value, InvalidText):
        return msgpack.ExtType(1, value.raw)
    raise TypeError(f"not a SQLite value: {type(value).__name__}")


def raw_bytes(row: RawRow) -> bytes:
    """Canonical bytes of a raw row: msgpack, so that types count (text "1" is not the integer 1)."""
    global _packer
    try:
        # Without a callback, a packer cannot be re-entered; a new one for each row costs half of a digest.
        packed: bytes = _packer.pack(row)
    except TypeError:
        packed = msgpack.packb(row, default=_pack_default)
    if len(packed) > limits.PACKER_BUFFER_BYTES:
        _packer = msgpack.Packer()
    return packed


_packer = msgpack.Packer()


def row_digest(row: RawRow) -> bytes:
    """16 bytes of BLAKE2b over all raw columns of one row."""
    return blake2b(raw_bytes(row), digest_size=DIGEST_BYTES).digest()


class MalformedMeta(ValueError):
    """A `meta` column that is not one JSON object within the limits; the message is the reason."""


_STRINGS = r'"[^"\\]*(?:\\.[^"\\]*)*"?'
_BRACKETS = r"[\[\]{}]"
SHORT_INTEGER_DIGITS = 640
"""The lowest value to which a host program can set Python's limit on the digits of an integer."""
SHORT_META_CHARS = 2 * limits.META_DEPTH_MAX
"""Text of this length is never nested deeper than the limit: each level takes two characters."""


def _too_deep(text: str) -> bool:
    with late_imports:
        import re
    depth = 0
    for bracket in re.findall(_BRACKETS, re.sub(_STRINGS, "", text, flags=re.DOTALL)):
        if bracket in "[{":
            depth += 1
            if depth > limits.META_DEPTH_MAX:
                return True
        else:
            depth -= 1
    return False


def parse_integer(digits: str) -> int:
    """`int(digits)` for decimal text of up to 4,300 digits, independent of the host program's limit.

    Raises:
        ValueError: not a decimal integer, or longer.
    """
    if len(digits) <= SHORT_INTEGER_DIGITS:
        return int(digits)
    sign, body = (-1, digits[1:]) if digits[0] == "-" else (1, digits)
    if len(body) > limits.META_INTEGER_DIGITS_MAX:
        raise MalformedMeta("integer too long")
    value = 0
    for start in range(0, len(body), SHORT_INTEGER_DIGITS):
        part = body[start : start + SHORT_INTEGER_DIGITS]
        value = value * 10 ** len(part) + int(part)
    return sign * value


_decoder: JSONDecoder | None = None
_long_decoder: JSONDecoder | None = None


def _make_decoders() -> JSONDecoder:
    """By the first event with `meta`: a first read of what is published has none, and does without `json` and `re`."""
    global _decoder, _long_decoder
    with late_imports:
        from json import JSONDecoder
    _long_decoder = JSONDecoder(parse_int=parse_integer)
    _decoder = JSONDecoder()
    return _decoder


def _parse_json(text: str) -> Any:
    decoder = _decoder or _make_decoders()
    if len(text) > SHORT_INTEGER_DIGITS and _long_decoder is not None:
        decoder = _long_decoder
    return decoder.decode(text)


def in_new_thread(action: Callable[[], T]) -> Callable[[], T]:
    """Run `action` in a new thread. The function that is returned waits for its result, and raises its exception."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(action())
        except BaseException as error:
            failure.append(error)

    # The interpreter does not wait for it at its end: it may wait for a busy ledger.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> T:
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    return wait


def on_fresh_stack(action: Callable[[], T]) -> T:
    """Run `action` in a new thread, so that its result does not depend on the caller's stack depth.

    Raises:
        BaseException: the exception of `action`.
    """
    return in_new_thread(action)()


def _parse_within_stack(text: str) -> Any:
    try:
        return _parse_json(text)
    except RecursionError:
        return on_fresh_stack(lambda: _parse_json(text))


def parse_meta(value: object) -> dict[str, Any]:
    """The object in a `meta` column; NULL and the empty text are `{}`.

    Results are those of Python's `json`: NaN and infinities, the last of duplicate keys, lone surrogates.

    Raises:
        MalformedMeta: not the text of one JSON object within the limits on depth and digits.
    """
    if value.__class__ is str and len(value) <= SHORT_META_CHARS:
        # Too short to be nested too deep or to hold a long integer. If this fails, the rest of the function decides.
        try:
            short, end = (_decoder or _make_decoders()).raw_decode(value)
        except (ValueError, RecursionError):
            pass
        else:
            if end == len(value) and short.__class__ is dict:
                return short
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        raise MalformedMeta("not text" if not isinstance(value, InvalidText) else "not UTF-8")
    if value.count("[") + value.count("{") > limits.META_DEPTH_MAX and _too_deep(value):
        raise MalformedMeta("nested too deep")
    if value[0] == "\ufeff":
        raise MalformedMeta("not JSON")
    try:
        parsed = _parse_within_stack(value)
    except MalformedMeta:
        raise
    except ValueError:
        raise MalformedMeta("not JSON") from None
    if not isinstance(parsed, dict):
        raise MalformedMeta("not an object")
    return parsed


def parse_content(value: object) -> tuple[str, str | None]:
    """(`content`, reason): content that is not text reads as "", with the reason; otherwise the reason is None."""
    if isinstance(value, str):
        return value, None
    return "", "content is not UTF-8" if isinstance(value, InvalidText) else "content is not text"


def text_or_empty(value: object) -> str:
    """`ts` and `kind` as text; "" for anything else."""
    return value if isinstance(value, str) else ""

"""Values as bytes, without loss: msgpack with two extensions.

| extension | value | stored as |
| --- | --- | --- |
| 1 | an integer over 64 bits | signed, big-endian, two's complement |
| 2 | a tuple | the packed list of its items |

Text is UTF-8 with lone surrogates passed through; NaN and infinities are msgpack's own. Equal values built in the same
order give equal bytes, which verification relies on.
"""

from __future__ import annotations

import msgpack

from pmm_shm import limits
from pmm_shm.digests import blake2b
from pmm_shm.typed import Any

SIMPLE_KEYS = frozenset({str, int})
_BIG_INTEGER = 1
_TUPLE = 2

Key = str | int | tuple["Key", ...]
"""A table's key. `True` and `1.0` are not allowed: they equal 1 in memory, but not in the store."""


def _pack_extension(value: Any) -> msgpack.ExtType:
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, pack(list(value)))
    if isinstance(value, int):
        return msgpack.ExtType(_BIG_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    raise TypeError(f"a state holds JSON values, bytes and tuples, not {type(value).__name__}")


def _unpack_extension(code: int, data: bytes) -> Any:
    if code == _TUPLE:
        return tuple(unpack(data))
    if code == _BIG_INTEGER:
        return int.from_bytes(data, "big", signed=True)
    raise ValueError(f"unknown extension {code}")


def pack(value: Any) -> bytes:
    """The bytes of a JSON value, bytes or tuple, however nested.

    Raises:
        TypeError: a value of another type.
    """
    global _plain
    try:
        # Without a callback, a packer cannot be re-entered; a new one for each value costs six times as much.
        packed: bytes = _plain.pack(value)
    except (TypeError, OverflowError):
        return _pack_any(value)
    if len(packed) > limits.PACKER_BUFFER_BYTES:
        _plain = _plain_packer()
    return packed


def _pack_any(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=_pack_extension, strict_types=True, unicode_errors="surrogatepass")
    return packed


def _plain_packer() -> msgpack.Packer:
    """A packer for values that need no extension. It keeps a buffer as large as the largest value it has packed."""
    return msgpack.Packer(strict_types=True, unicode_errors="surrogatepass")


_plain = _plain_packer()


def unpack(data: bytes) -> Any:
    """The value that was packed.

    Raises:
        ValueError: `pack` does not make such bytes.
    """
    return msgpack.unpackb(data, ext_hook=_unpack_extension, strict_map_key=False, unicode_errors="surrogatepass")


def pack_key(key: Key) -> bytes:
    """The bytes of a table's key, at most `limits.KEY_BYTES_MAX`: a long one is replaced by its digest.

    Raises:
        TypeError: not a str, int or tuple of these.
    """
    if key.__class__ not in SIMPLE_KEYS:
        check_key(key)
    packed = pack(key)
    if len(packed) <= limits.KEY_BYTES_MAX - 64:
        return packed
    # No msgpack value begins with 0xc1, so a short key never looks like a long one.
    return b"\xc1" + blake2b(packed, digest_size=32).digest()


def check_key(key: object) -> None:
    """Raise `TypeError` if `key` cannot be a table's key."""
    if type(key) is tuple:
        for item in key:
            check_key(item)
    elif type(key) is not str and type(key) is not int:
        raise TypeError(f"a table's key is a str, int or tuple of these, not {type(key).__name__}")

"""The default embedder: words and a hash of the text as 32 numbers, deterministic and offline.

The result is specified to the last bit, so all operations on floats have the order of the specification. Steps are
skipped or looked up only if they cannot change a bit. numpy is not imported.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

from pmm_shm.vectors.embedder import Embedder

NAME = "local-bow"
DIMENSION = 32

_CACHED_TOKENS_MAX = 16_384
_CACHED_TOKEN_CHARS_MAX = 64

_tokens = re.compile("[a-z0-9]+").findall
_sha1 = hashlib.sha1
_NOISE = [0.1 * (byte / 255.0) for byte in range(256)]
"""The number that a byte of the text's hash adds to one dimension."""


class _TokenIndices(dict[str, int]):
    """Maps a token to its index, 0 to 63. Keeps a bounded number of recent tokens, and no long ones."""

    def __missing__(self, token: str) -> int:
        index = int(_sha1(token.encode()).hexdigest()[:8], 16) % 64
        if len(token) <= _CACHED_TOKEN_CHARS_MAX:
            if len(self) >= _CACHED_TOKENS_MAX:
                self.clear()
            self[token] = index
        return index


_index_of = _TokenIndices().__getitem__


def vector(text: str | None) -> list[float]:
    """The 32 numbers of a text; None counts as ""."""
    text = text or ""
    mix = [_NOISE[byte] for byte in _sha1(text.encode("utf-8", "surrogatepass")).digest()]
    mix += mix[:12]
    counts: dict[int, int] = {}
    squares = 0
    for index in map(_index_of, _tokens(text.lower())):
        count = counts.get(index, 0)
        counts[index] = count + 1
        squares += 2 * count + 1
    # The sum of these squares is far below 2**53: added as floats it would be exact, too, in any order.
    norm = math.sqrt(squares)
    for index, count in counts.items():
        if index < DIMENSION:
            # The indices left out would add 0.9 * 0.0, which changes nothing.
            mix[index] += 0.9 * (count / norm)
    total = 0.0
    # Not `sum`: since Python 3.12 it compensates rounding errors, and the last bit differs.
    for value in mix:
        total += value * value
    norm = math.sqrt(total) or 1.0
    return [value / norm for value in mix]


def digest_of(vector: Sequence[float]) -> str:
    """The digest of a vector in `embedding_indexed` events, 8 hex digits; the floats must be Python's own."""
    return _sha1(str(list(vector)).encode()).hexdigest()[:8]


def digest(text: str | None) -> str:
    """The digest of a text's vector, 8 hex digits."""
    return digest_of(vector(text))


class LocalBow(Embedder):
    """`local-bow`, which needs no model: texts with similar words have similar vectors; it knows no meaning."""

    name = NAME
    dimension = DIMENSION
    batch_max = 256
    takes_empty = True

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [vector(text) for text in texts]

"""The default embedder: words and a hash of the text as 32 numbers, deterministic and offline.

The result is bound to the last bit, so every operation on floats stands here in the order of the specification; what
is left out or looked up is what cannot change a bit. numpy is not imported.
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
"""What a byte of the text's hash adds to its place."""


class _Places(dict[str, int]):
    """Of a token, its place from 0 to 63; the tokens seen last are kept, up to a bound, and no long ones."""

    def __missing__(self, token: str) -> int:
        place = int(_sha1(token.encode()).hexdigest()[:8], 16) % 64
        if len(token) <= _CACHED_TOKEN_CHARS_MAX:
            if len(self) >= _CACHED_TOKENS_MAX:
                self.clear()
            self[token] = place
        return place


_place_of = _Places().__getitem__


def vector(text: str | None) -> list[float]:
    """The 32 numbers of a text; None reads as ""."""
    text = text or ""
    mix = [_NOISE[byte] for byte in _sha1(text.encode("utf-8", "surrogatepass")).digest()]
    mix += mix[:12]
    counts: dict[int, int] = {}
    squares = 0
    for place in map(_place_of, _tokens(text.lower())):
        count = counts.get(place, 0)
        counts[place] = count + 1
        squares += 2 * count + 1
    # Squares of whole numbers, far below 2**53 in all: as floats, too, they would add up exactly, in any order.
    norm = math.sqrt(squares)
    for place, count in counts.items():
        if place < DIMENSION:
            # The places left out would add 0.9 * 0.0, which changes nothing.
            mix[place] += 0.9 * (count / norm)
    total = 0.0
    # Not `sum`: from Python 3.12 on it compensates, and the last bit differs.
    for value in mix:
        total += value * value
    norm = math.sqrt(total) or 1.0
    return [value / norm for value in mix]


def digest_of(vector: Sequence[float]) -> str:
    """The 8 hex digits of a vector, as `embedding_indexed` events carry them; the floats must be Python's own."""
    return _sha1(str(list(vector)).encode()).hexdigest()[:8]


def digest(text: str | None) -> str:
    """The 8 hex digits of a text's vector."""
    return digest_of(vector(text))


class LocalBow(Embedder):
    """`local-bow`, for whoever wants no model: similar words, similar vectors; it knows no meaning."""

    name = NAME
    dimension = DIMENSION
    batch_max = 256
    takes_empty = True

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [vector(text) for text in texts]

"""Which words of a vocabulary are within Levenshtein distance 1 of a word, without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_INDEXED_CHARS_MAX = 32
"""Longer words are compared one by one: each would have as many keys as characters."""


class NearWords:
    """A vocabulary of words over a-z and 0-9 that only grows."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        # A word with one character left out, or replaced by ".", to the words that this was made of.
        self._near: dict[str, list[str]] = {}
        self._long: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._words)

    def add(self, words: Iterable[str]) -> None:
        """Add words that may be known already."""
        for word in set(words) - self._words:
            if len(word) > _INDEXED_CHARS_MAX:
                self._long.setdefault(len(word), []).append(word)
            else:
                for key in {*_shorter(word), *_patterns(word)}:
                    self._near.setdefault(key, []).append(word)
            self._words.add(word)

    def near(self, others: Iterable[str]) -> set[str]:
        """The words of the vocabulary that are within distance 1 of some word of `others`."""
        words, near = self._words, self._near
        found: set[str] = set()
        for other in set(others):
            if other in words:
                found.add(other)
            if len(other) <= _INDEXED_CHARS_MAX + 1:
                found.update(near.get(other, ()))
                for key in _patterns(other):
                    if key in near:
                        found.update(near[key])
                found.update(words.intersection(_shorter(other)))
            if len(other) >= _INDEXED_CHARS_MAX:
                for length in (len(other) - 1, len(other), len(other) + 1):
                    found.update(word for word in self._long.get(length, ()) if _is_near(word, other))
        return found


def _shorter(word: str) -> Iterator[str]:
    return (word[:place] + word[place + 1 :] for place in range(len(word)))


def _patterns(word: str) -> Iterator[str]:
    return (f"{word[:place]}.{word[place + 1 :]}" for place in range(len(word)))


def _is_near(one: str, other: str) -> bool:
    """Whether two words, whose lengths differ by at most 1, are within distance 1."""
    short, long = sorted((one, other), key=len)
    place = next((place for place, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    return short[place + (len(short) == len(long)) :] == long[place + 1 :]

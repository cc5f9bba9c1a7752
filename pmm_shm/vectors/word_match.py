"""How well texts answer a question word by word: a soft match of words, by static word vectors.

The vector of a text is a mean, in which one telling word counts little. So each word of the question is compared with
each word of the texts. Some words are near to many others, so a word matches fully if it is one of the ten that are
nearest to the word of the question among all words of these texts, and less the farther it is behind them.

    match(w, d) = rarity(d) * min(1, exp((cos(w, d) - cos(w, tenth nearest word)) / 0.15))
    match(question, text) = mean over w, weighted by rarity(w), of the greatest match(w, d) over the words d of the text

The rarity of a word is its inverse document frequency among the texts, 1 for a word that is in none.

Source: late interaction (Khattab and Zaharia, ColBERT, SIGIR 2020), without a trained model; the comparison with the
tenth nearest is a local scaling as in `pmm_shm.vectors.crowding`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from math import log

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits
from pmm_shm.vectors.crowding import product

WordVectors = Callable[[Sequence[str]], NDArray[np.float32]]
"""From n words to their vectors, (n, dimension), each of length 1."""
_WORD = re.compile(r"\w+")
_ASCII_WORDS = "".join(char if _WORD.match(char) else " " for char in map(chr, range(128)))
_RARITY_MIN = 0.01


def words_of(text: str) -> list[str]:
    """The different words of a text, in order, in lower case."""
    text = text[: limits.MATCH_CHARS_MAX].lower()
    # The same words; for ASCII twice as fast.
    return list(dict.fromkeys(text.translate(_ASCII_WORDS).split() if text.isascii() else _WORD.findall(text)))


def word_matches(asked: Sequence[str], texts: Sequence[str], vectors_of: WordVectors) -> NDArray[np.float64]:
    """The match of each text, (n,), from 0 to 1; equal texts have equal ones.

    Parameters:
        asked: the words of the question that count, each once.
    """
    words = [words_of(text) for text in texts]
    counts = np.array([len(row) for row in words], np.int64)
    matches = np.zeros(len(texts))
    if not asked or not counts.any():
        return matches
    numbers = {word: number for number, word in enumerate(asked)}
    flat = np.array([numbers.setdefault(word, len(numbers)) for word in chain(*words)], np.int64)
    found = np.bincount(flat, minlength=len(numbers))
    rarities = _rarities(found, len(texts))
    weights = rarities[: len(asked)]
    vectors = vectors_of(list(numbers)).astype(np.float64)
    # (words, words of the question)
    similarities = product(vectors, vectors[: len(asked)].T)
    others = similarities[found > 0]
    near = min(limits.MATCH_NEIGHBOURS, len(others))
    bounds = np.partition(others, len(others) - near, axis=0)[len(others) - near]
    soft = np.exp(np.minimum(0.0, similarities - bounds) / limits.MATCH_FALL) * rarities[:, np.newaxis]
    starts = (np.cumsum(counts) - counts)[counts > 0]
    best = np.maximum.reduceat(soft[flat], starts, axis=0)
    matches[counts > 0] = (best * weights).sum(axis=1) / weights.sum()
    return matches


def _rarities(events_with: NDArray[np.int64], events: int) -> NDArray[np.float64]:
    rarities: NDArray[np.float64] = np.log((events + 1) / (events_with + 0.5)) / log((events + 1) / 0.5)
    return np.maximum(rarities, _RARITY_MIN)

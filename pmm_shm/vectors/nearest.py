"""The nearest vectors by cosine similarity: found in float32, decided in float64.

A float32 product over all rows finds the candidates. Its error is bounded, so every row that could belong to the best k
is among them. The candidates are scored again in float64, each row by itself, so that equal vectors have equal
similarities in any block. The result equals that of a float64 search over all rows.

Source of the bound: for a sum of d products in any order, |error| <= gamma * sum |x_i y_i| with gamma = d u / (1 - d u)
and u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), and by Cauchy and Schwarz
sum |x_i y_i| <= |x| |y|. Rounding query, inverse norm and product adds less than 4 u.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits

_CHUNK_ROWS = 8_192
_SAMPLE_ROWS = 2_048
_POOL_ROWS = 16_384
_LEAST = -2.0
_NORM_MAX = 2.0**40
_UNIT = 2.0**-24

EventIds = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SearchRows:
    """Rows to search.

    Attributes:
        ids: (n,) int64, ascending.
        vectors: (n, dimension) float32, finite; in Fortran order, with each dimension contiguous.
        inverse_norms: (n,) float32; 0 for a zero vector, NaN if float32 is too imprecise and float64 has to decide.
        dead: numbers of the rows to skip, ascending; None for none.
    """

    ids: EventIds
    vectors: NDArray[np.float32]
    inverse_norms: NDArray[np.float32]
    dead: NDArray[np.uint32] | None = None

    @classmethod
    def of(cls, ids: EventIds, vectors: NDArray[np.float32]) -> SearchRows:
        """Rows in any order of memory, with their norms computed here."""
        return cls(ids, np.asfortranarray(vectors), inverse_norms(vectors))

    def __len__(self) -> int:
        return len(self.ids)

    def living(self, ids: EventIds) -> NDArray[np.bool_]:
        """Which of `ids` have a living row here, (m,) bool."""
        return self._found(ids)[1]

    def numbers_of(self, ids: EventIds) -> NDArray[np.intp]:
        """The numbers of the living rows with one of `ids`, which ascend; in their order."""
        if not len(ids) or not len(self.ids) or self.ids[-1] < ids[0] or self.ids[0] > ids[-1]:
            return np.empty(0, np.intp)
        ids = ids[ids.searchsorted(self.ids[0]) : ids.searchsorted(self.ids[-1], "right")]
        numbers, is_found = self._found(ids)
        return numbers[is_found]

    def _found(self, ids: EventIds) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """A row for each of `ids`, and whether it is the living row with this id."""
        if not len(self.ids):
            return np.zeros(len(ids), np.intp), np.zeros(len(ids), bool)
        numbers = np.minimum(self.ids.searchsorted(ids), len(self.ids) - 1)
        is_found: NDArray[np.bool_] = self.ids[numbers] == ids
        if self.dead is not None:
            is_found &= ~np.isin(numbers, self.dead)
        return numbers, is_found

    def within(self, scope: EventIds) -> Iterator[SearchRows]:
        """Copies of the living rows whose id is in `scope` (ascending), a bounded number at a time."""
        numbers = self.numbers_of(scope)
        for start in range(0, len(numbers), _CHUNK_ROWS):
            part = numbers[start : start + _CHUNK_ROWS]
            yield SearchRows(self.ids[part], self.vectors_at(part), self.inverse_norms[part])

    def vectors_at(self, numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        """A copy of some rows, (m, dimension)."""
        # Twice as fast as `vectors[numbers]`: one dimension after the other, and no number is checked.
        found: NDArray[np.float32] = self.vectors.T.take(numbers, axis=1, mode="clip").T
        return found


class NearestRows(NamedTuple):
    """The result of a search.

    Attributes:
        similarities: id to similarity of the best, best first.
        vectors: of the same rows, (n, dimension) float32.
        others: id to similarity of other rows that were asked for, and exist.
    """

    similarities: dict[int, float]
    vectors: NDArray[np.float32]
    others: dict[int, float]


def inverse_norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / |v| of each row, (n,) float32: 0 for a zero vector, NaN for a norm beyond the range of float32."""
    result = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _CHUNK_ROWS):
        norms = _norms(_wide(vectors[start : start + _CHUNK_ROWS]))
        is_narrow = (norms > _NORM_MAX) | (norms < 1 / _NORM_MAX)
        inverse = 1.0 / np.where(is_narrow, 1.0, norms)
        inverse[is_narrow] = np.where(norms[is_narrow] == 0.0, 0.0, np.nan)
        result[start : start + _CHUNK_ROWS] = inverse
    return result


def nearest(
    blocks: Sequence[SearchRows], query: Floats, k: int, scope: EventIds | None = None
) -> list[tuple[int, float]]:
    """The k rows most similar to `query`: (id, similarity), best first, ties by ascending id. Fewer if there are
    fewer rows.

    Parameters:
        blocks: each id occurs once in all of them.
        query: (dimension,) float64, finite.
        k: at least 1.
        scope: (m,) int64, ascending and without duplicates: only these ids; None for all.
    """
    return list(nearest_rows(blocks, query, k, scope).similarities.items())


def nearest_rows(
    blocks: Sequence[SearchRows], query: Floats, k: int, scope: EventIds | None = None, others: Sequence[int] = ()
) -> NearestRows:
    """The same, with what else is known of the rows.

    Parameters:
        others: rows to compare besides, in the scope or not; ascending, each once.
    """
    best = _Best(query, k)
    blocks = [rows for rows in blocks if len(rows)]
    compared: Iterable[SearchRows] = blocks
    if scope is not None:
        compared = (part for rows in blocks for part in rows.within(scope))
        # To compare a few rows takes less than to begin to.
        compared = _together(list(compared)) if len(scope) <= _CHUNK_ROWS else compared
    for rows in compared:
        best.add(rows)
    return best.result(blocks, np.array(others, np.int64))


def _together(parts: list[SearchRows]) -> list[SearchRows]:
    """The same living rows in one."""
    if len(parts) < 2:
        return parts
    columns = zip(*((part.ids, part.vectors, part.inverse_norms) for part in parts), strict=True)
    return [SearchRows(*map(np.concatenate, columns))]


class _Best:
    """The best k rows so far: those scored in float64, and a pool of candidates found in float32."""

    def __init__(self, query: Floats, k: int) -> None:
        largest = float(np.abs(query).max(initial=0.0))
        # Scaling by a power of two changes no digit, and keeps squares of extreme values within range.
        self._query = np.ldexp(query, -math.frexp(largest)[1])
        self._query_norm = float(_norms(self._query[np.newaxis])[0])
        unit = self._query / self._query_norm if self._query_norm else self._query
        self._unit32 = unit.astype(np.float32)
        self._error = (len(query) + 8) * _UNIT * 1.01
        self._k = k
        self._buffer = np.empty((2, 0), np.float32)
        self._pool: list[tuple[SearchRows, NDArray[np.intp]]] = []
        self._pool_scores = np.empty(0, np.float32)
        self._least = _LEAST
        """No row with a lower score can be among the best k."""
        self._ids: EventIds = np.empty(0, np.int64)
        self._similarities: Floats = np.empty(0, np.float64)
        self.vectors = np.empty((0, len(query)), np.float32)

    def add(self, rows: SearchRows) -> None:
        """Compare more rows with the best ones."""
        scores = self._scored(rows)
        least = self._least
        if least == _LEAST and len(scores) > _SAMPLE_ROWS >= self._k:
            least = _kth_best(scores[:_SAMPLE_ROWS], self._k) - 2 * self._error
        # Not `>=`: NaN has to be decided in float64.
        numbers = np.flatnonzero(~(scores < least))
        if len(numbers) > 4 * self._k:
            found = scores[numbers]
            numbers = numbers[~(found < _kth_best(found, self._k) - 2 * self._error)]
        for start in range(0, len(numbers), _CHUNK_ROWS):
            part = numbers[start : start + _CHUNK_ROWS]
            self._admit(rows, part, scores[part])

    def result(self, blocks: Sequence[SearchRows], others: EventIds) -> NearestRows:
        """The best k of all rows added, and the similarities of those of `others` that have a row in `blocks`."""
        parts = [(rows, mine) for rows in blocks if len(mine := rows.numbers_of(others))]
        beside = self._decide([rows.vectors_at(mine) for rows, mine in parts])
        found = dict(zip(self._ids.tolist(), self._similarities.tolist(), strict=True))
        ids = [event_id for rows, mine in parts for event_id in rows.ids[mine].tolist()]
        known = {one: value for one, value in zip(ids, beside.tolist(), strict=True) if one not in found}
        return NearestRows(found, self.vectors, known)

    def _scored(self, rows: SearchRows) -> NDArray[np.float32]:
        """(n,) float32; minus infinity for the dead; valid until the next call."""
        if self._buffer.shape[1] < len(rows):
            self._buffer = np.empty((2, len(rows)), np.float32)
        scores: NDArray[np.float32] = self._buffer[0, : len(rows)]
        # A vector with a norm beyond float32 may overflow; its inverse norm and its score are NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            _multiply(rows.vectors, self._unit32, scores, self._buffer[1, : len(rows)])
            np.multiply(scores, rows.inverse_norms, out=scores)
        if rows.dead is not None:
            scores[rows.dead] = -np.inf
        return scores

    def _exact(self, vectors: NDArray[np.float32]) -> Floats:
        """The similarities of some rows in float64, (n,)."""
        wide = _wide(vectors)
        norms = _norms(wide) * self._query_norm
        products = (wide * self._query).sum(axis=1)
        similarities: Floats = np.divide(products, norms, out=np.zeros(len(wide)), where=norms != 0.0)
        # Rounding may lead slightly beyond the range of a cosine.
        return similarities.clip(-1.0, 1.0)

    def _admit(self, rows: SearchRows, numbers: NDArray[np.intp], scores: NDArray[np.float32]) -> None:
        """Add candidates to the pool."""
        if not len(numbers):
            return
        self._pool.append((rows, numbers))
        self._pool_scores = np.concatenate((self._pool_scores, scores))
        if len(self._pool_scores) > _POOL_ROWS:
            # The pool must not grow without limit when float32 cannot tell many rows apart.
            self._decide()
        else:
            self._least = max(self._least, _kth_best(self._pool_scores, self._k) - 2 * self._error)

    def _decide(self, beside: Sequence[NDArray[np.float32]] = ()) -> Floats:
        """Score the pool in float64, and keep the best k.

        Returns:
            The similarities of the vectors `beside`, which are in no pool.
        """
        is_candidate = ~(self._pool_scores < self._least)
        id_parts, vector_parts, start = [self._ids], [self.vectors[:0]], 0
        for rows, numbers in self._pool:
            # Copied here, of the last candidates alone: a row's numbers are far apart in its block.
            chosen = numbers[is_candidate[start : start + len(numbers)]]
            start += len(numbers)
            if len(chosen):
                id_parts.append(rows.ids[chosen])
                vector_parts.append(rows.vectors_at(chosen))
        vectors = np.concatenate((*vector_parts, *beside))
        exact = self._exact(vectors)
        ids = np.concatenate(id_parts)
        new = len(ids) - len(self._ids)
        similarities = np.concatenate((self._similarities, exact[:new]))
        order = np.lexsort((ids, -similarities))[: self._k]
        self._ids, self._similarities = ids[order], similarities[order]
        self.vectors = np.concatenate((self.vectors, vectors[:new]))[order]
        self._pool, self._pool_scores = [], np.empty(0, np.float32)
        if len(order) == self._k:
            self._least = max(self._least, float(self._similarities[-1]) - self._error)
        return exact[new:]


def _multiply(
    vectors: NDArray[np.float32], query: NDArray[np.float32], products: NDArray[np.float32], spare: NDArray[np.float32]
) -> None:
    """Put `vectors @ query` into `products`, in parts that are contiguous in memory; `spare` is overwritten."""
    count, dimension = vectors.shape
    step = max(1, limits.BLAS_PRODUCT_NUMBERS_MAX // count)
    np.matmul(vectors[:, :step], query[:step], out=products)
    for start in range(step, dimension, step):
        np.matmul(vectors[:, start : start + step], query[start : start + step], out=spare)
        np.add(products, spare, out=products)


def _kth_best(scores: NDArray[np.float32], k: int) -> float:
    """The k-th largest score that is a number; below any score if there are fewer."""
    if len(scores) < k:
        return _LEAST
    # NaN sorts after every number.
    ordered = np.partition(scores, len(scores) - k)[len(scores) - k :]
    if np.isnan(ordered).any():
        return _kth_best(scores[~np.isnan(scores)], k)
    # Dead rows have minus infinity.
    return max(_LEAST, float(ordered[0]))


def _wide(vectors: NDArray[np.float32]) -> Floats:
    """The rows in float64, each contiguous: numpy then sums each by itself, and equal rows in the same way."""
    return vectors.astype(np.float64, order="C")


def _norms(wide: Floats) -> Floats:
    """|v| of each row."""
    squares: Floats = (wide * wide).sum(axis=1)
    return np.sqrt(squares)

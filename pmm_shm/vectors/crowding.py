"""The order of the nearest events in a search that also looks for words: events close to many others come later.

In a space of text vectors, some texts are near to everything: short ones, general ones, polite phrases. Such a *hub* is
among the nearest of nearly any query. So a share of the mean similarity of an event to its own nearest events is
subtracted from its similarity to the query. All of them are among the nearest events of this query.

Source: cross-domain similarity local scaling (Conneau et al., Word Translation Without Parallel Data, ICLR 2018), on
one side and among the candidates; Radovanovic, Nanopoulos and Ivanovic, Hubs in Space, JMLR 2010.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmm_shm import limits

_DIGITS = 9
"""Decimals that count. The last bits of a product depend on where a row is in it, and equal texts keep their order."""


def uncrowded(similarities: Sequence[float] | NDArray[np.float64], vectors: NDArray[np.float32]) -> list[int]:
    """The order of some events by their similarity less their crowding: numbers from 0, the best first.

    Only the first `limits.CROWD_DEPTH` are put in order; all others keep their place.

    Parameters:
        similarities: to the query, or scores from them.
        vectors: (n, dimension), of the same events.
    """
    count = min(len(similarities), limits.CROWD_DEPTH)
    scores = np.round(similarities[:count] - limits.CROWD_WEIGHT * _crowding(vectors[:count]), _DIGITS)
    return [*np.argsort(-scores, kind="stable").tolist(), *range(count, len(similarities))]


def _crowding(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mean similarity of each row to the `limits.CROWD_SIZE` other rows nearest to it, (n,); 0 without others."""
    count = min(limits.CROWD_SIZE, len(vectors) - 1)
    if count < 1:
        return np.zeros(len(vectors))
    wide = vectors.astype(np.float64, order="C")
    norms = np.sqrt((wide * wide).sum(axis=1))
    units = np.divide(wide, norms[:, np.newaxis], out=np.zeros_like(wide), where=norms[:, np.newaxis] != 0.0)
    products = product(units, units.T)
    np.fill_diagonal(products, -np.inf)
    nearest = np.partition(products, len(products) - count, axis=1)[:, -count:]
    # Summed in one order, whatever the partition has left.
    mean: NDArray[np.float64] = np.sort(nearest, axis=1).mean(axis=1)
    return mean


def product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """`left @ right`, some rows at a time, so that numpy's BLAS keeps to one thread."""
    step = max(1, limits.BLAS_PRODUCT_NUMBERS_MAX // right.size)
    return np.concatenate([left[start : start + step] @ right for start in range(0, len(left), step)])

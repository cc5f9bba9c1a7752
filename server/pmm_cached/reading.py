"""Reading the log for an index in small parts, so that the follower waits for none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pmm_shm import limits
from pmm_shm.ledger.tail import Position

if TYPE_CHECKING:
    # The one loads numpy, which a daemon without vectors does without.
    from pmm_shm.vectors.events import EventTextBatch
    from pmm_shm.words.texts import WordTexts

_R = TypeVar("_R", "EventTextBatch", "WordTexts")


def read_in_parts(
    read: Callable[[Position, int, int], _R], after: Position, rows_max: int, until_id: int, pause: Callable[[], None]
) -> _R:
    """Read up to `rows_max` rows after `after`, a few at a time, with a pause between: all texts, ascending, and what
    the last read says of the rest.

    Parameters:
        read: one read of so many rows after a position, up to `until_id`.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    texts: dict[int, Any] = {}
    left = rows_max
    while True:
        found = read(after, min(left, limits.INDEX_EVENTS_PER_READ), until_id)
        # A later row may say more of an earlier event.
        texts.update((one[0], one) for one in found.texts)
        after, left = found.position, left - limits.INDEX_EVENTS_PER_READ
        if left <= 0 or found.is_complete or not found.is_anchored:
            return found._replace(texts=[texts[event_id] for event_id in sorted(texts)])
        pause()

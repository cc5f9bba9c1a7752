"""A read model: a cursor over what the daemon publishes, or over nothing, and the views at its position.

A read model belongs to one lineage (data file, environment, the generations of its folds), or to none: then it is a
replay in memory that is kept and extended.

An overlay stays exact over a newer base of the same lineage, as long as the base is not ahead of the overlay's
position. A key that was written behind the old base is in the overlay, with its value at the position. A key that is
not in it did not change up to the position, and so is the same in the newer base. The overlay is dropped when the base
has reached the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pmm_shm import limits
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, Position
from pmm_shm.projection.cursor import Cursor
from pmm_shm.store.snapshot import DETACHED, Attachment, Lineage, LmdbBase, Snapshot

_M = TypeVar("_M", bound="ReadModel")


class ReadModel(Cursor):
    """Folds and their views over one lineage; call its methods with the connection's lock held.

    A read is `attach` or `catch_up`, any number of `view` and `state`, and `detach`.

    Parameters:
        folds: the folds that move together.
        lineage: of the published states they stand on; None for a replay in memory, from the first event.
        connection: the read-only connection that the tail comes from.
        follows_log: False for a read model that always stands where its base does, and never reads the ledger.
    """

    def __init__(
        self, folds: Sequence[Fold], lineage: Lineage | None, connection: Connection, *, follows_log: bool = True
    ) -> None:
        super().__init__(folds, connection)
        self.lineage = lineage
        self._follows_log = follows_log
        # One for all bases: a read attaches them in one step.
        self._attachment = Attachment()
        self._snapshot: Snapshot | None = None
        if lineage is not None:
            generations = zip(self.folds, lineage[2], strict=True)
            self.rebase({name: LmdbBase(self._attachment, generation) for name, generation in generations})
        # Each with the position that it was made at.
        self._views: dict[str, tuple[Any, Position]] = {}
        self._base_position = START
        self._is_at_head = False

    def attach(self, snapshot: Snapshot | None) -> bool:
        """Begin a read: attach the base, and move to it where it is ahead. Returns whether the base can be used.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        self._is_at_head = False
        if self.lineage is None:
            return True
        assert snapshot is not None
        self._snapshot, self._attachment.transaction = snapshot, snapshot.transaction
        published = snapshot.header.position
        if self.position == published:
            self.drop_overlay()
        elif self.position.is_before(published):
            if self._has_overlay and self._follows_log and self.position.event_id is not None:
                self._look_behind_overlay(published)
            self.stand_on(published)
        elif self._follows_log and published != self._base_position and not self.log_holds(published):
            # The overlay would stand on a base of another history.
            return False
        self._base_position = published
        return True

    def detach(self) -> None:
        """End a read: nothing holds the transaction any longer."""
        self._snapshot, self._attachment.transaction = None, DETACHED

    def catch_up(self, snapshot: Snapshot | None) -> bool:
        """Begin a read, and fold everything up to the head of the log; False where the log continues neither the
        position nor the base.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if not self.attach(snapshot):
            return False
        while not self._is_at_head:
            tail = self.advance()
            if tail.is_anchored:
                self._is_at_head = tail.is_complete
            elif not self._fall_back():
                return False
        return True

    def state(self, name: str) -> State:
        """The state of a fold; readable until `detach`."""
        return self.states[name]

    def view(self, name: str) -> Any:
        """The view of a fold at `position`; rebuilt only where its state has changed, and patched where it can be."""
        known, state = self._views.get(name), self.states[name]
        if known is not None and known[1] is self.position:
            return known[0]
        written = state.take_touched() if self._has_overlay else Touched()
        if known is None or not self._add_published(written, known[1], name):
            view = self.folds[name].view(state)
        else:
            view = self.folds[name].patch(known[0], state, written) if written else known[0]
        self._views[name] = view, self.position
        return view

    def copy(self: _M) -> _M:
        """Another one at the same position, which moves on its own; only of a replay in memory."""
        assert self.lineage is None
        other = super().copy()
        other._views = dict(self._views)
        return other

    def reset(self) -> None:
        """Go back to the start of the log, without overlays and views."""
        super().reset()
        self._views.clear()

    def _add_published(self, written: Touched, made_at: Position, name: str) -> bool:
        """Add what commits of the daemon have written of a fold behind `made_at`; False where a patch is out of the
        question.

        `written` has what the overlay has written since the last call. A dropped overlay was written by events that
        the base has now, and so it is on the lists of its commits.
        """
        snapshot = self._snapshot
        is_behind = snapshot is not None and made_at.is_before(self._base_position)
        if is_behind and snapshot is not None and not snapshot.add_touched(made_at.event_id, name, written):
            return False
        return not written.tables or written.key_count() <= limits.TOUCHED_KEYS_MAX

    def _look_behind_overlay(self, published: Position) -> None:
        """The base has passed the overlay: see whether the overlay's position still is in the log.

        Without an overlay that is known: our position was published, and what is published in one lineage is one
        history.
        """
        tail = self._reader.read(self.position, limits.TAIL_FEW_ROWS)
        if not tail.is_anchored:
            # The overlay was of another history, and so are the views: a base near the start fits both.
            self._views.clear()
        # Where the daemon has published everything new, this was the look at the base's anchor, too.
        self._is_at_head = tail.is_anchored and tail.is_complete and tail.position == published

    def _fall_back(self) -> bool:
        """The position was not found in the log: go back to the base. Returns whether that is another position."""
        if self._snapshot is None or self.position == self._base_position:
            return False
        self.stand_on(self._base_position)
        self._views.clear()
        return True

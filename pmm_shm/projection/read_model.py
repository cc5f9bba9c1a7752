"""A read model: a cursor over what the daemon publishes, or over nothing, and the views at its position.

A read model belongs to one lineage (data file, environment, the generations of its folds), or to none: then it is a
replay in memory that is kept and extended.

An overlay stays exact over a newer base of the same lineage, as long as the base is not ahead of the overlay's
position. A key that was written behind the old base is in the overlay, with its value at the position. A key that is
not in it did not change up to the position, and so is the same in the newer base. The overlay is dropped when the base
has reached the position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

from pmm_shm import limits
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START
from pmm_shm.projection.cursor import Cursor
from pmm_shm.store.snapshot import DETACHED, Lineage, LmdbBase, Snapshot

_M = TypeVar("_M", bound="ReadModel")
_NOTHING: Final = Touched()


class ReadModel(Cursor):
    """Folds and their views over one lineage; call its methods with the connection's lock held.

    A read is `attach`, any number of `catch_up`, `view` and `state`, and `detach`.

    Parameters:
        folds: the folds that move together.
        lineage: of the published states they stand on; None for a replay in memory, from the first event.
        connection: the read-only connection that the tail comes from.
        follows_log: False for a read model that always stands where its base does, and never reads the ledger.

    Attributes:
        history: the same object as long as each position was found in the log when the next one was reached.
    """

    def __init__(
        self, folds: Sequence[Fold], lineage: Lineage | None, connection: Connection, *, follows_log: bool = True
    ) -> None:
        super().__init__(folds, connection)
        self.lineage = lineage
        self._follows_log = follows_log
        self._bases = {} if lineage is None else _detached_bases(self.folds, lineage)
        self.rebase(self._bases)
        self._views: dict[str, Any] = {}
        # Per fold the parts that were written since its view was made; None where a patch is out of the question.
        self._pending: dict[str, Touched | None] = {}
        self._read_names: set[str] = set()
        self._base_position = START
        self._is_at_head = False
        self.history = object()

    def attach(self, snapshot: Snapshot | None) -> bool:
        """Begin a read: attach the base, and move to it where it is ahead. Returns whether the base can be used.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        self._is_at_head = False
        if self.lineage is None:
            return True
        assert snapshot is not None
        for base in self._bases.values():
            base.transaction = snapshot.transaction
        published = snapshot.header.position
        if self.position == published:
            self.drop_overlay()
        elif self.position is START or published.as_of > self.position.as_of:
            if self._has_overlay and self._follows_log and self.position.event_id is not None:
                self._look_behind_overlay(snapshot)
            self._move_to(snapshot)
        elif self._follows_log and published != self._base_position and not self.log_holds(published):
            # The overlay would stand on a base of another history.
            return False
        self._base_position = published
        return True

    def detach(self) -> None:
        """End a read: nothing holds the transaction any longer."""
        for base in self._bases.values():
            base.transaction = DETACHED

    def catch_up(self) -> bool:
        """Fold everything up to the head of the log; False where the log does not continue the position.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if self._is_at_head:
            # Valid for one call: the next one needs another look.
            self._is_at_head = False
            return True
        while True:
            tail = self.advance()
            if not tail.is_anchored or tail.is_complete:
                return tail.is_anchored

    def fall_back(self, snapshot: Snapshot | None) -> bool:
        """The position was not found in the log: go back to the base. Returns whether that is another position."""
        if self.lineage is None or snapshot is None or self.position == snapshot.header.position:
            return False
        self._move_to(snapshot)
        self._begin_history()
        return True

    def state(self, name: str) -> State:
        """The state of a fold; readable between `attach` and `detach`."""
        self._read_names.add(name)
        return self.states[name]

    def view(self, name: str) -> Any:
        """The view of a fold at `position`; rebuilt only where its state has changed, and patched where it can be."""
        fold, state = self.folds[name], self.states[name]
        self._read_names.add(name)
        written: Touched | None = state.take_touched()
        earlier = self._pending.pop(name, _NOTHING)
        if written is not None and earlier is not None:
            written.merge(earlier)
        else:
            written = None
        if name not in self._views or written is None or written.key_count() > limits.TOUCHED_KEYS_MAX:
            self._views[name] = fold.view(state)
        elif written:
            self._views[name] = fold.patch(self._views[name], state, written)
        return self._views[name]

    def drop_overlay(self) -> None:
        """Forget everything on top of the bases, and what was read of them."""
        if self._has_overlay:
            # What the overlay had written is in the base now; the views do not have it yet.
            for name, state in self.states.items():
                self._put_pending(name, state.take_touched())
                state.drop_overlay()
            self._has_overlay = False
        else:
            # Only folds that were asked for have read anything.
            for name in self._read_names:
                self.states[name].forget_reads()
        self._read_names.clear()

    def copy(self: _M) -> _M:
        """Another one at the same position, which moves on its own; only of a replay in memory."""
        assert self.lineage is None
        other = super().copy()
        other._views = dict(self._views)
        # Without a base, nothing is pending.
        other._pending, other._read_names = {}, set()
        return other

    def reset(self) -> None:
        """Go back to the start of the log, without overlays and views."""
        super().reset()
        self._begin_history()
        self._pending.clear()

    def _begin_history(self) -> None:
        """What was read so far is not of this log."""
        self._views.clear()
        self.history = object()

    def _look_behind_overlay(self, snapshot: Snapshot) -> None:
        """The base has passed the overlay: see whether the overlay's position still is in the log.

        Without an overlay that is known: our position was published, and what is published in one lineage is one
        history.
        """
        tail = self._reader.read(self.position, limits.TAIL_FEW_ROWS)
        if not tail.is_anchored:
            # The overlay was of another history, and so are the views: a base near the start fits both.
            self._begin_history()
        # Where the daemon has published everything new, this was the look at the base's anchor, too.
        self._is_at_head = tail.is_anchored and tail.is_complete and tail.position == snapshot.header.position

    def _move_to(self, snapshot: Snapshot) -> None:
        """Stand on the base, and remember what its commits touched since our position."""
        touched = snapshot.touched_since(self.position.event_id) if self.position is not START else None
        self.stand_on(snapshot.header.position, {})
        for name, theirs in (dict.fromkeys(self.states) if touched is None else touched).items():
            if name in self.states:
                self._put_pending(name, theirs)

    def _put_pending(self, name: str, touched: Touched | None) -> None:
        before = self._pending.setdefault(name, touched)
        if before is touched:
            return
        if touched is not None and before is not None and before.key_count() <= limits.TOUCHED_KEYS_MAX:
            before.merge(touched)
        else:
            # No patch, whatever follows: for a fold that nobody reads, the list would grow for ever.
            self._pending[name] = None


def _detached_bases(folds: Iterable[str], lineage: Lineage) -> dict[str, LmdbBase]:
    return {name: LmdbBase(DETACHED, generation) for name, generation in zip(folds, lineage[2], strict=True)}

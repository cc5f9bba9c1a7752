"""A track: folds that move along the log together, over a published base or over nothing.

The client's catch-up and its replays in memory are tracks. A track belongs to one lineage (data file, environment, the
generations of its folds), or to none.

An overlay stays exact over a newer base of the same lineage, as long as the base is not ahead of the overlay's tip: a
key that was written behind the old base is in the overlay, with its value at the tip, and a key that is not in it did
not change up to the tip, and so is the same in the newer base. It is dropped when the base has reached the tip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pmm_shm import limits
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, TailReader
from pmm_shm.store.snapshot import DETACHED, Lineage, LmdbBase, Snapshot

_NOTHING: Final = Touched()


class Track:
    """Folds over one lineage; call its methods with the connection's lock held.

    Parameters:
        folds: the folds that move together.
        follows_log: False for a track that only ever stands where its base does, and so needs no look at the ledger.
        lineage: of the published states they stand on; None for a replay in memory, from the first event.
        connection: the read-only connection that the tail comes from.

    Attributes:
        position: where the states stand.
        events_folded: how many events this track has folded.
    """

    def __init__(
        self, folds: Sequence[Fold], lineage: Lineage | None, connection: Connection, *, follows_log: bool = True
    ) -> None:
        self.folds = {fold.name: fold for fold in folds}
        self.lineage = lineage
        self._follows_log = follows_log
        self.position = START
        self.events_folded = 0
        self._engine = Engine(folds)
        self._reader = TailReader(connection, self._engine.kinds)
        self._bases: list[LmdbBase] = []
        if lineage is not None:
            self._bases = [LmdbBase(DETACHED, generation) for generation in lineage[2]]
        self._states = self._new_states()
        self._views: dict[str, Any] = {}
        self._pending: dict[str, Touched | None] = {}
        self._has_overlay = False
        self._has_written = False
        self._read_names: set[str] = set()
        self._base_position = START
        self._is_at_head = False

    def bind(self, snapshot: Snapshot | None) -> bool:
        """Begin a read: attach the base, and move to it where it is ahead. Returns whether the base can be used.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        self._is_at_head = False
        if self.lineage is None:
            return True
        assert snapshot is not None
        for base in self._bases:
            base.transaction = snapshot.transaction
        published = snapshot.header.position
        if self.position == published:
            self._drop_overlay()
        elif self.position is START or published.as_of > self.position.as_of:
            # Without an overlay our tip was published, and what is published in one lineage is one history.
            if self._has_overlay and self._follows_log and self.position.event_id is not None:
                tail = self._reader.read_few(self.position)
                if not tail.is_anchored:
                    # Our tip was of another history, and so are the views: a base near the start fits both.
                    self._views.clear()
                # If the daemon has published all that is new, this was the look at the base's anchor, too.
                self._is_at_head = tail.is_anchored and tail.is_complete and tail.position == published
            self._adopt(snapshot)
        elif self._follows_log and published != self._base_position and not self._reader.holds(published):
            # Under the overlay there would be a base of another history.
            return False
        self._base_position = published
        return True

    def release(self) -> None:
        """End a read: nothing holds the transaction any longer."""
        for base in self._bases:
            base.transaction = DETACHED

    def fall_back(self, snapshot: Snapshot | None) -> bool:
        """The tip was not found in the log: go back to the base, once. Returns whether that is another position."""
        if self.lineage is None or snapshot is None or self.position == snapshot.header.position:
            return False
        self._adopt(snapshot)
        self._views.clear()
        return True

    def advance(self) -> tuple[bool, bool]:
        """Fold the next batch. Returns (anchored, complete).

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if self._is_at_head:
            # For one call: whoever asks again wants another look.
            self._is_at_head = False
            return True, True
        tail = self._reader.read(self.position)
        if not tail.is_anchored:
            return False, False
        if tail.position != self.position:
            self._has_overlay = self._has_written = True
            self.events_folded += len(tail.rows)
            try:
                self._engine.apply(tail.rows, self._states)
            except BaseException:
                self._reset()
                raise
            self.position = tail.position
        return True, tail.is_complete

    def state(self, name: str) -> State:
        """The state of a fold; readable between `bind` and `release`."""
        self._read_names.add(name)
        return self._states[name]

    def view(self, name: str) -> Any:
        """The view of a fold at `position`; rebuilt only where its state has changed, and patched where it can be."""
        fold, state = self.folds[name], self._states[name]
        self._read_names.add(name)
        touched: Touched | None = state.take_touched()
        earlier = self._pending.pop(name, _NOTHING)
        if touched is not None and earlier is not None:
            touched.merge(earlier)
        else:
            touched = None
        if name not in self._views or touched is None or touched.key_count() > limits.TOUCHED_KEYS_MAX:
            self._views[name] = fold.view(state)
        elif touched:
            self._views[name] = fold.patch(self._views[name], state, touched)
        return self._views[name]

    def _adopt(self, snapshot: Snapshot) -> None:
        """Stand on the base, and remember what its commits touched since our tip."""
        touched = snapshot.touched_since(self.position.event_id) if self.position is not START else None
        if self._has_written:
            for name, state in self._states.items():
                self._put_pending(name, state.take_touched())
            self._has_written = False
        for name, theirs in (dict.fromkeys(self._states) if touched is None else touched).items():
            if name in self._states:
                self._put_pending(name, theirs)
        self._drop_overlay()
        self.position = snapshot.header.position

    def _put_pending(self, name: str, touched: Touched | None) -> None:
        before = self._pending.setdefault(name, touched)
        if before is touched:
            return
        if touched is not None and before is not None and before.key_count() <= limits.TOUCHED_KEYS_MAX:
            before.merge(touched)
        else:
            # No patch, whatever else comes: for a fold that nobody reads, the list would grow for ever.
            self._pending[name] = None

    def _drop_overlay(self) -> None:
        if self._has_overlay:
            for state in self._states.values():
                state.drop_overlay()
            self._has_overlay = False
        else:
            # The folds that nobody asked for have read nothing.
            for name in self._read_names:
                self._states[name].forget_reads()
        self._read_names.clear()

    def _reset(self) -> None:
        """After a failure in the middle of a batch: what is half folded is worth nothing."""
        self._has_overlay = False
        self._views.clear()
        self._pending.clear()
        self.position = START
        self._states = self._new_states()

    def _new_states(self) -> dict[str, State]:
        if self.lineage is None:
            return {name: State() for name in self.folds}
        return {name: State(base) for name, base in zip(self.folds, self._bases, strict=True)}

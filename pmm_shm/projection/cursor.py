"""The cursor: folds at one position of the log. All code that folds the log moves a cursor along it.

A client's catch-up, a full replay, a verification, the daemon's follower and its rebuild are all uses of this class.
They differ in what the states stand on: nothing (a replay), a generation that readers see (the follower, a catch-up),
or one that they do not see yet (a rebuild). `ReadModel` is the cursor of a client's reads.

Invariant: `states` are those of `position`, and the row there had the digest that `position` holds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

from pmm_shm import limits
from pmm_shm.errors import FoldError
from pmm_shm.folds.contract import Fold, patched_view, view_of
from pmm_shm.folds.engine import Engine, lacking_columns
from pmm_shm.folds.state import Base, State, Touched
from pmm_shm.late import late_imports
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.rows import RawRow, in_new_thread
from pmm_shm.ledger.tail import START, Position, Tail, TailReader, WideTailReader
from pmm_shm.store.snapshot import DETACHED, Attachment, Lineage, LmdbBase, Snapshot
from pmm_shm.typed import Any, TypeVar

_C = TypeVar("_C", bound="Cursor")
_M = TypeVar("_M", bound="ReadModel")


class LogChanged(Exception):
    """The log does not continue a cursor's position: the row there is gone or has changed."""


def require_columns(folds: Iterable[Fold], connection: Connection) -> None:
    """Check that the ledger has the columns that the folds ask for; a cursor takes those that it lacks for None.

    Raises:
        FoldError: it lacks one.
        LedgerError: the ledger cannot be read.
    """
    for fold in folds:
        if fold.columns:
            with connection.lock:
                connection.handle()
                problem = lacking_columns(fold, connection.path, connection.columns)
                if problem is not None and connection.follow_schema():
                    problem = lacking_columns(fold, connection.path, connection.columns)
            if problem is not None:
                raise FoldError(problem)


class Cursor:
    """Folds that move along the log together, from the first event on or from a base. Not thread-safe.

    Parameters:
        folds: the folds that move together.
        connection: a read-only connection; its lock is taken for each read of the log.
        whole_rows: read all columns of all rows, as seals need them.

    Attributes:
        folds: name to fold.
        states: name to state, as an overlay over its base.
        position: the newest event that is folded, and its anchor.
        events_folded: number of rows that were folded.
    """

    def __init__(self, folds: Sequence[Fold], connection: Connection, *, whole_rows: bool = False) -> None:
        self.folds = {fold.name: fold for fold in folds}
        self.states = {name: State() for name in self.folds}
        self.position = START
        self.events_folded = 0
        self._engine = Engine(folds)
        self._whole_rows = whole_rows
        self._has_overlay = False
        self.read_from(connection)

    def read_from(self, connection: Connection) -> None:
        """Read the log through this connection from now on."""
        self._connection = connection
        kinds = None if self._whole_rows else self._engine.kinds
        columns = self._engine.columns
        self._reader = (
            WideTailReader(connection, kinds, columns, whole_rows=self._whole_rows)
            if columns
            else TailReader(connection, kinds, whole_rows=self._whole_rows, newest=self._engine.newest)
        )

    def rebase(self, bases: Mapping[str, Base]) -> None:
        """Let the states read through to these bases; position and overlays stay."""
        for name, base in bases.items():
            self.states[name].base = base

    def stand_on(self, position: Position) -> None:
        """Move to `position`, at which the bases hold the states; the overlays are dropped."""
        self.drop_overlay()
        self.position = position

    def advance(
        self, until_id: int | None = None, on_progress: Callable[[], None] | None = None, tail: Tail | None = None
    ) -> Tail:
        """Read the next rows behind the position, check the anchor, fold the rows, and move on.

        An exception out of a fold leaves nothing half folded: the cursor is back at the start, without overlays.

        Parameters:
            until_id: take the log to end with this event.
            on_progress: called after every few rows.
            tail: what was read behind the position; by default it is read now.

        Returns:
            The tail that was folded. Where it is not anchored, nothing has changed.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if tail is None:
            with self._connection.lock:
                tail = self._reader.read(self.position, until_id=until_id)
        if not tail.is_anchored or tail.position == self.position:
            return tail
        self._take(tail, on_progress)
        return tail

    def _take(self, tail: Tail, on_progress: Callable[[], None] | None) -> None:
        self._has_overlay = True
        self.events_folded += tail.event_count
        try:
            if on_progress is None and len(tail.rows) <= limits.FOLD_ROWS_MAX:
                self._engine.apply(tail.rows, self.states, tail.places)
            else:
                self._apply_in_parts(tail, on_progress)
        except BaseException:
            self.reset()
            raise
        self.position = tail.position

    def advance_to_head(self, until_id: int | None = None) -> Iterator[Tail]:
        """Advance until the head of the log, or event `until_id`, is reached; yields each tail that was folded.

        Raises:
            LogChanged: the log does not continue the position.
            LedgerError: the ledger cannot be read.
        """
        while True:
            tail = self.advance(until_id)
            if not tail.is_anchored:
                raise LogChanged
            yield tail
            if tail.is_complete:
                return

    def advance_reading_ahead(self) -> Generator[Tail, None, None]:
        """As `advance_to_head`, but a thread reads the next rows while the last ones are folded.

        Nobody else uses the connection until the iterator ends or is closed.

        Raises:
            LogChanged: the log does not continue the position.
            LedgerError: the ledger cannot be read.
        """

        def read(after: Position) -> Tail:
            with self._connection.lock:
                return self._reader.read(after)

        tail = read(self.position)
        while tail.is_anchored and not tail.is_complete:
            next_tail: Callable[[], Tail] = functools.partial(read, tail.position)
            # Where there is no thread to be had, the rows are read in turn.
            with contextlib.suppress(RuntimeError):
                next_tail = in_new_thread(next_tail)
            try:
                yield self.advance(tail=tail)
            except BaseException:
                with contextlib.suppress(BaseException):
                    next_tail()
                raise
            tail = next_tail()
        if not tail.is_anchored:
            raise LogChanged
        yield self.advance(tail=tail)

    def log_holds(self, position: Position) -> bool:
        """Whether the row of this position still is in the log, unchanged.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._connection.lock:
            return self._reader.holds(position)

    def copy(self: _C) -> _C:
        """Another cursor at the same position, which moves on its own."""
        with late_imports:
            import copy
        other = copy.copy(self)
        other.states = {name: state.copy() for name, state in self.states.items()}
        # Its queues are empty between two batches, but two cursors may move at the same time.
        other._engine = Engine(list(self.folds.values()))
        return other

    def key_count(self) -> int:
        """Number of keys in the overlays."""
        return sum(state.key_count() for state in self.states.values())

    def drop_overlay(self) -> None:
        """Forget everything on top of the bases, and what was read of them."""
        for state in self.states.values():
            if state.is_used:
                state.drop_overlay()
        if self._has_overlay:
            self._engine.forget()
        self._has_overlay = False

    def reset(self) -> None:
        """Go back to the start of the log, without overlays."""
        # New states: an exception from a signal handler may have struck anywhere within the old ones.
        self.states = {name: State(state.base) for name, state in self.states.items()}
        self._engine.forget()
        self._has_overlay = False
        self.position = START

    def _apply_in_parts(self, tail: Tail, on_progress: Callable[[], None] | None) -> None:
        rows_max = limits.FOLD_ROWS_MAX if on_progress is None else limits.ROWS_PER_PROGRESS
        for first in range(0, len(tail.rows), rows_max):
            self._engine.apply(tail.rows[first : first + rows_max], self.states, tail.places)
            if on_progress is not None:
                on_progress()


class ReadModel(Cursor):
    """A cursor over what the daemon publishes, or over nothing, and the views at its position.

    It belongs to one lineage (data file, environment, the generations of its folds), or to none: then it is a replay in
    memory that is kept and extended. A read is `attach` or `catch_up`, any number of `view` and `state`, and `detach`,
    with the connection's lock held. Of a few new events, each fold is given its own when it is asked for.

    An overlay stays exact over a newer base of the same lineage, as long as the base is not ahead of the overlay's
    position. A key that was written behind the old base is in the overlay, with its value at the position. A key that
    is not in it did not change up to the position, and so is the same in the newer base. The overlay is dropped when
    the base has reached the position.

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
        # One for all bases: a read attaches them in one step.
        self._attachment = Attachment()
        self._snapshot: Snapshot | None = None
        if lineage is not None:
            generations = zip(self.folds, lineage[2], strict=True)
            self.rebase({name: LmdbBase(self._attachment, generation) for name, generation in generations})
        # Each with the position that it was made at.
        self._views: dict[str, tuple[Any, Position]] = {}
        self._base_position = START
        self._unproven: Position | None = None
        self._head_mark: object = None
        self.history = object()

    def attach(self, snapshot: Snapshot) -> None:
        """Begin a read: attach the base, and move to it where it is ahead."""
        self._snapshot, self._attachment.transaction = snapshot, snapshot.transaction
        before, published = self.position, snapshot.header.position
        if before == published:
            self.drop_overlay()
        elif before.is_before(published):
            if self._has_overlay and before.event_id is not None:
                # It may have been of another history. Without an overlay, our position was published, and what is
                # published in one lineage is one history.
                self._unproven = before
            self.drop_overlay()
            self.position = published
        elif self._follows_log and published != self._base_position:
            # The overlay would stand on a base that may be of another history.
            self._unproven = published
            self._engine.skip(published.as_of, self.states)
        self._base_position = published

    def detach(self) -> None:
        """End a read: nothing holds the transaction any longer."""
        self._snapshot, self._attachment.transaction = None, DETACHED

    def catch_up(self, snapshot: Snapshot | None, mark: object = None, is_head: bool = False) -> bool:
        """Begin a read, and move to the head of the log; False where the log does not continue the base.

        Parameters:
            mark: that of the ledger, taken before; while it is the same, nobody has committed. None where it is none.
            is_head: whether the snapshot surely is that of the head of the log.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        before = self.position
        if self.lineage is not None:
            assert snapshot is not None
            self.attach(snapshot)
        if self._unproven is None:
            # A replay in memory has no base: at the start it has read nothing.
            if is_head and self.lineage is not None and self.position == self._base_position:
                return True
            if mark is not None and mark == self._head_mark and self.position == before:
                return True
        self._head_mark = None
        while True:
            tail = self._read_next()
            if tail is None or (not tail.is_anchored and not self._fall_back()):
                return False
            if tail.is_anchored and tail.is_complete:
                self._head_mark = mark
                return True

    def state(self, name: str) -> State:
        """The state of a fold; readable until `detach`."""
        try:
            self._engine.fold(name, self.states[name])
        except BaseException:
            self.reset()
            raise
        return self.states[name]

    def view(self, name: str) -> Any:
        """The view of a fold at `position`. Unless it is small, it is rebuilt only where the state has changed, and
        patched where it can be.

        Raises:
            FoldError: its `view` or `patch` fails.
        """
        known, position = self._views.get(name), self.position
        if known is not None and known[1] is position:
            return known[0]
        fold, state, as_of = self.folds[name], self.states[name], position.event_id or 0
        if self._has_overlay:
            state = self.state(name)
            written = state.take_touched()
        else:
            written = Touched()
        try:
            if known is None or fold.has_small_view or not self._add_published(written, known[1], name):
                view = view_of(fold, state, as_of)
            else:
                view = patched_view(fold, known[0], state, written, as_of) if written else known[0]
        except BaseException:
            # What was written since the known view is told only once.
            self._views.pop(name, None)
            raise
        self._views[name] = view, position
        return view

    def copy(self: _M) -> _M:
        """Another one at the same position, which moves on its own; only of a replay in memory."""
        assert self.lineage is None
        assert not self._engine.queued
        other = super().copy()
        other._views = dict(self._views)
        return other

    def reset(self) -> None:
        """Go back to the start of the log, without overlays and views."""
        super().reset()
        self._unproven = self._head_mark = None
        self._begin_history()

    def _queue(self, tail: Tail) -> None:
        """As `_take`; of a few short rows, each fold is given its events when it is asked for."""
        are_few = len(tail.rows) <= limits.TAIL_FEW_ROWS and self._engine.queued <= limits.QUEUED_EVENTS_MAX
        if not are_few or not all(map(_may_wait, tail.rows)):
            self._take(tail, None)
            return
        self._has_overlay = True
        self.events_folded += len(tail.rows) + tail.left_out
        try:
            self._engine.queue(tail.rows, self.states, tail.places)
        except BaseException:
            self.reset()
            raise
        self.position = tail.position

    def _read_next(self) -> Tail | None:
        """Move on by the next rows; None where the log does not hold the base that was put under an overlay."""
        earlier, self._unproven = self._unproven, None
        if earlier is None:
            tail = self._reader.read(self.position)
        else:
            try:
                is_held, tail = self._reader.read_holding(earlier, self.position)
            except BaseException:
                self.reset()
                raise
            if not is_held:
                if earlier == self._base_position:
                    return None
                # An overlay that the base has passed was of another history, and so are the views: a base near the
                # start fits both.
                self._begin_history()
        if tail.is_anchored and tail.position != self.position:
            self._queue(tail)
        return tail

    def _begin_history(self) -> None:
        """What was read so far is not of this log."""
        self._views.clear()
        self.history = object()

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

    def _fall_back(self) -> bool:
        """The position was not found in the log: go back to the base. Returns whether that is another position."""
        if self._snapshot is None or self.position == self._base_position:
            return False
        # First: an exception from a signal handler may strike in between, and views of another history must not stay.
        self._begin_history()
        self.stand_on(self._base_position)
        return True


def _may_wait(row: RawRow) -> bool:
    """Whether a row is so short that its event can be kept for a fold that nobody may ask for."""
    content, meta = row[3], row[4]
    return (
        content.__class__ is str
        and len(content) <= limits.QUEUED_CHARS_MAX
        and (meta.__class__ is not str or len(meta) <= limits.QUEUED_CHARS_MAX)
    )

"""The exact read: freshness mark, snapshot, tail, overlay.

Every answer equals a full replay of the ledger as it is when the read begins, whether a daemon runs or not. The
daemon's snapshot only makes it cheap: where there is none, or none that fits, the log is folded in memory from its
first event, and the result is kept and extended.

Invariant: from the mark to the last row one lock is held, and no statement stays open.
Invariant: no read transaction outlives the call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pmm_shm import limits
from pmm_shm.errors import (
    ClosedError,
    FoldError,
    LedgerBusyError,
    LedgerError,
    PmmShmError,
    SnapshotUnavailableError,
    UnknownFoldError,
)
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import DECODE, DecodeFold
from pmm_shm.folds.registry import built_in_folds, chosen_folds, find_fold
from pmm_shm.folds.state import State
from pmm_shm.instance.paths import FileId, Instance
from pmm_shm.ledger.connection import Connection, close_replaced
from pmm_shm.ledger.files import LedgerMoved
from pmm_shm.ledger.freshness import WAL_INDEX_HEADER_BYTES, Choice, Freshness, Mark
from pmm_shm.ledger.sqlite_errors import HotJournalError
from pmm_shm.ledger.tail import Position
from pmm_shm.projection.cursor import ReadModel
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.snapshot import Lineage, Snapshot, SnapshotReader
from pmm_shm.typed import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape

_T = TypeVar("_T")
_ATTEMPTS_MAX = 5
_PUBLISHED = "published"
_FIRST = "first"


class Reading:
    """Views of one position; valid only within the read that made it.

    Parameters:
        read_models: by the names of their folds; all at one position.
    """

    __slots__ = ("_read_models", "as_of", "history", "mark", "position")

    def __init__(self, read_models: Mapping[str, ReadModel], mark: Mark | None = None) -> None:
        self._read_models = read_models
        first = next(iter(read_models.values()))
        self.position, self.history = first.position, first.history
        self.as_of = self.position.event_id or 0
        self.mark = mark

    def view(self, name: str) -> Any:
        return self._read_models[name].view(name)

    def state(self, name: str) -> State:
        return self._read_models[name].state(name)

    def holds(self, position: Position) -> bool:
        """Whether the row of an earlier position is still in the ledger, unchanged."""
        return next(iter(self._read_models.values())).log_holds(position)

    def is_published(self, name: str) -> bool:
        """Whether the view stands on what the daemon has published, and not on a replay in memory."""
        return self._read_models[name].lineage is not None


class Reader:
    """Exact reads, and reads of the published state, for one ledger.

    Parameters:
        path: the ledger.
        timeout_s: how long to wait for a busy ledger.
        freshness: which mark to use.
        recover: called, without a lock, when a dead writer's journal has to be rolled back before anybody can read.
        on_reset: called when earlier reads are void; memos must expire.
        late_folds: names of built-in folds that take no part until they are added.
        shape: how a table of another program is the log: then its folds take the place of the built-in ones.

    Attributes:
        folds: those that take part in reads, by name, the built-in ones first; see `add_fold`.
    """

    def __init__(
        self,
        path: str,
        timeout_s: float,
        freshness: Choice,
        recover: Callable[[], None],
        on_reset: Callable[[], None],
        late_folds: Collection[str] = (),
        shape: Shape | None = None,
    ) -> None:
        self.connection = Connection(path, "ro", timeout_s, shape)
        self.connection.on_close(on_reset)
        self.freshness = Freshness(self.connection, freshness)
        self.snapshots = SnapshotReader(Instance.of(path))
        # The connection closes before a fork, and no environment may cross one.
        self.connection.on_close(self.snapshots.close)
        self._recover = recover
        self._on_reset = on_reset
        self.shape = shape
        self._lacks = ""
        folds = built_in_folds() if shape is None else self._folds_of(shape)
        self.folds: dict[str, Fold] = {fold.name: fold for fold in folds if fold.name not in late_folds}
        # Of those that are not published, these share one read model: each reads the tail once.
        self._first = set(self.folds)
        self._read_models: dict[str, ReadModel] = {}
        self._read_model_of: dict[str, ReadModel] = {}
        # For which `_read_models` were arranged: the environment and the folds of its header, (None, None) without one.
        self._arranged_for: tuple[FileId | None, object] | None = None
        self._snapshot_read_model: ReadModel | None = None
        self._rejected: tuple[Lineage, Position] | None = None
        self._distrusted: Lineage | None = None
        self._events_folded = 0
        self._head_mark = b""
        self._head_marks_seen = 0
        self._head_marks_seen_by: tuple[int, FileId] | None = None
        self._is_inside = False
        # Whether a call was refused within the read that is under way: its error may have ended that read anywhere.
        self._was_entered = False
        self._is_closed = False
        self.replays = 0

    @property
    def events_folded(self) -> int:
        """How many events this process has folded for its reads."""
        return self._events_folded + sum(one.events_folded for one in list(self._read_models.values()))

    def _folds_of(self, shape: Shape) -> list[Fold]:
        """The folds of a shape, as they are for its logs; where it has none, one that needs no event.

        One that cannot be had here is told when somebody asks for it: the others are answered all the same.
        """
        folds: list[Fold] = []
        for name in shape.folds:
            try:
                folds += chosen_folds([name])
            except PmmShmError as error:
                self._lacks = f"; {error}"
        return [fold.on_shape(shape.identity) for fold in folds or [DecodeFold(())]]

    def find_fold(self, name: str) -> Fold:
        """The fold of this name; on the log of another program, only those that take part.

        Raises:
            UnknownFoldError: there is none.
        """
        known = self.folds.get(name)
        if known is not None or self.shape is None:
            return known or find_fold(name)
        has = ", ".join(sorted(self.folds.keys() - {DECODE})) or "none"
        what = f"no fold {name!r} on a log of the shape {self.shape.name!r}"
        raise UnknownFoldError(f"{self.connection.path}: {what}; it has: {has}{self._lacks}")

    def fitted(self, fold: Fold) -> Fold:
        """A fold as it is for this log."""
        return fold if self.shape is None else fold.on_shape(self.shape.identity)

    def add_fold(self, fold: Fold) -> None:
        """Let a registered fold take part in reads from now on."""
        with self.connection.lock:
            # First, as in `_drop_read_models`. A remembered frame lacks the fold.
            self._arranged_for = None
            self._on_reset()
            if not self._read_models:
                # Later it would void what was replayed of the others.
                self._first.add(fold.name)
            self.folds[fold.name] = fold

    def exact(self, make: Callable[[Reading], _T]) -> _T:
        """The result of `make` for the ledger as it is. `make` runs with the lock held; its argument has the mark.

        Raises:
            LedgerError: the ledger cannot be read.
        """

        result: _T = self.with_ledger(self._exact, make)
        return result

    def _exact(self, make: Callable[[Reading], _T]) -> _T:
        self._was_entered = False
        mark = self.freshness.take()
        with self.snapshots as snapshot:
            try:
                return make(self._at_head(snapshot, mark))
            except (LedgerError, FoldError):
                if self._was_entered:
                    self._drop_read_models()
                raise
            except BaseException:
                # It may have struck between two steps that belong together.
                self._drop_read_models()
                raise
            finally:
                for read_model in self._read_models.values():
                    read_model.detach()

    def is_unchanged(self, mark: Mark) -> bool:
        """Whether the ledger surely still has this mark; for marks that cannot be read without the lock."""
        with self.connection.lock:
            try:
                return not self._is_inside and self.freshness.is_trusted() and self.freshness.take() == mark
            except (LedgerError, LedgerMoved):
                # The full read finds out the reason, and repairs it if it can.
                return False

    def published(self, make: Callable[[Reading], _T], names: tuple[str, ...], at_least: int | None = None) -> _T:
        """The result of `make` for the published snapshot; the ledger is not read.

        Raises:
            SnapshotUnavailableError: nothing is published, or not up to event `at_least`.
        """

        def read(snapshot: Snapshot | None) -> _T:
            folds = [self.folds[name] for name in names]
            lineage = None if snapshot is None else snapshot.lineage(folds)
            if snapshot is None or lineage is None or self._is_distrusted(lineage):
                missing = [] if snapshot is None else [one.name for one in folds if not snapshot.lineage([one])]
                has_others = snapshot is not None and snapshot.header.folds and not snapshot.header.is_void
                raise SnapshotUnavailableError(self._why_no_snapshot(missing if has_others else ()))
            if at_least is not None and snapshot.header.position.as_of < at_least:
                raise SnapshotUnavailableError(f"event {at_least} is not published yet")
            read_model = self._snapshot_read_model
            if read_model is None or read_model.lineage != lineage or list(read_model.folds) != list(names):
                read_model = ReadModel(folds, lineage, self.connection, follows_log=False)
                self._snapshot_read_model = read_model
            try:
                read_model.attach(snapshot)
                return make(Reading(dict.fromkeys(names, read_model)))
            except BaseException:
                self._snapshot_read_model = None
                raise
            finally:
                read_model.detach()

        return self.with_snapshot(read)

    def distrust(self, lineage: Lineage) -> None:
        """The published state of this lineage was found wrong: reads ignore its generations until a rebuild."""
        with self.connection.lock:
            self._distrusted = lineage
            self._drop_read_models()
            self._snapshot_read_model = None

    def begin_anew(self) -> None:
        """Let the next read begin at the published state: what this process has folded by itself, no verification
        covers."""
        with self.connection.lock:
            if not self._is_inside:
                self._rejected = None
                self._drop_read_models()

    def with_ledger(self, action: Callable[..., _T], *arguments: Any) -> _T:
        """Run `action` with these arguments and the connection's lock; again after the ledger was replaced or repaired.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        failure: Exception | None = None
        for _ in range(_ATTEMPTS_MAX):
            try:
                with self.connection.lock:
                    # One read at a time: a signal handler may run within a read of the same thread.
                    if self._is_closed:
                        raise ClosedError(f"{self.connection.path}: the cache was closed")
                    if self._is_inside:
                        self._was_entered = True
                        raise LedgerBusyError(f"{self.connection.path}: a read of this thread is under way")
                    try:
                        self._is_inside = True
                        return action(*arguments)
                    except BaseException:
                        # A signal handler's may strike where a transaction has begun, and its block has not.
                        self.connection.end_snapshot()
                        self.snapshots.end()
                        raise
                    finally:
                        self._is_inside = False
            except LedgerMoved:
                close_replaced(self.connection.path)
            except DamagedStoreError as error:
                # The published state cannot be read after all: from now on it is ignored, and the log is folded.
                if failure is not None:
                    raise
                failure = error
            except HotJournalError as error:
                if failure is not None:
                    raise
                failure = error
                self._recover()
        raise LedgerBusyError(f"{self.connection.path}: replaced again and again while it was read")

    def in_one_file(self, action: Callable[[], _T]) -> _T:
        """Run `action`, which reads the ledger more than once, without the lock; again if it may have read two files.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        connection = self.connection
        for _ in range(_ATTEMPTS_MAX):
            if not connection.is_open:
                self.with_ledger(connection.handle)
            epoch, replacements = connection.epoch, connection.replacements
            result = action()
            # A fork in another thread closes the file, too: then only a replacement counts, noticed or not.
            if connection.epoch == epoch or (connection.replacements == replacements and connection.is_at_path()):
                return result
        raise LedgerBusyError(f"{self.connection.path}: replaced again and again while it was read")

    def with_snapshot(self, action: Callable[[Snapshot | None], _T]) -> _T:
        """Run `action` with the connection's lock, within a transaction on what is published now."""

        def read() -> _T:
            with self.snapshots.begin() as snapshot:
                return action(snapshot)

        return self.with_ledger(read)

    def _drop_read_models(self) -> None:
        # First: an exception of a signal handler may strike in between, and the next read must arrange the others anew.
        self._arranged_for = None
        self._on_reset()
        for read_model in self._read_models.values():
            read_model.detach()
            self._events_folded += read_model.events_folded
        self._read_models.clear()
        self._read_model_of = {}

    def close(self) -> None:
        """Give back the snapshot and close the connection."""
        with self.connection.lock:
            self._is_closed = True
            self._read_models.clear()
            self._read_model_of = {}
            self._arranged_for = None
            self._snapshot_read_model = None
            self.connection.close()

    def _why_no_snapshot(self, missing: Collection[str] = ()) -> str:
        """`missing`: folds that are not published beside others that are."""
        if self.snapshots.locator.failure is not None:
            return str(self.snapshots.locator.failure)
        if not self.snapshots.locator.may_enter():
            return f"{self.connection.path}: no permission for the instance directory; share a group"
        if self._distrusted is not None:
            return f"{self.connection.path}: the published state was found wrong; start pmm-cached"
        if missing:
            what = f"the fold {', '.join(missing)} is not published in this version"
            return f"{self.connection.path}: {what}; restart pmm-cached with it"
        return f"{self.connection.path}: nothing is published for it; start pmm-cached"

    def _at_head(self, snapshot: Snapshot | None, mark: Mark) -> Reading:
        """Bring all folds to the head of the log, at one position."""
        known = self._arranged_for
        identity, folds = (None, None) if snapshot is None else (snapshot.identity, snapshot.header.folds)
        if known is None or known[1] is not folds or known[0] != identity:
            self._arrange(snapshot)
        # As long as a memo with this mark is believed, and no longer.
        period = self.connection.epoch, self.freshness.trusted_until, mark
        is_head = (
            snapshot is not None
            and snapshot.header.head_mark[-WAL_INDEX_HEADER_BYTES:] == mark
            and self._is_of_head(snapshot, mark)
        )
        self._all_to_head(snapshot, period, is_head)
        if len(self._read_models) > 1 and len({one.position for one in self._read_models.values()}) > 1:
            # They came to different heads: let all of them see the same one.
            with self.connection.one_snapshot():
                self._all_to_head(snapshot)
        return Reading(self._read_model_of, mark)

    def _is_of_head(self, snapshot: Snapshot, mark: Mark) -> bool:
        """Whether nobody has committed to the ledger since the daemon found nothing behind the published position.

        Then it had this mark. A mark proves something only between two moments at which its file was locked all along.
        So of those that this connection was asked about, the first two do not count: the daemon has taken the third
        after it had published the second, and that was after this connection had seen the first.
        """
        head_mark, seen_by = snapshot.header.head_mark, (self.connection.epoch, snapshot.identity)
        if seen_by != self._head_marks_seen_by:
            self._head_marks_seen_by, self._head_marks_seen = seen_by, 0
        if not self._head_marks_seen or head_mark != self._head_mark:
            self._head_mark = head_mark
            self._head_marks_seen += 1
        return self._head_marks_seen > 2 and head_mark != b"" and head_mark == self.freshness.shared(mark)

    def _all_to_head(self, snapshot: Snapshot | None, mark: object = None, is_head: bool = False) -> None:
        # Each round may reject one of them.
        for _ in range(limits.REPLAYS_MAX * (1 + len(self.folds))):
            for key, read_model in self._read_models.items():
                if not read_model.catch_up(snapshot, mark, is_head):
                    self._reject(key, snapshot)
                    # The read models are others now.
                    break
            else:
                return
        raise LedgerBusyError(f"{self.connection.path}: changed again and again while it was replayed")

    def _reject(self, key: str, snapshot: Snapshot | None) -> None:
        """The log does not continue this read model: fold it anew, from the first event."""
        read_model = self._read_models[key]
        if snapshot is not None and read_model.lineage is not None:
            self._rejected = (read_model.lineage, snapshot.header.position)
            # Arranged at once as later reads need it: they must be able to use this replay, too.
            self._arrange(snapshot)
        else:
            self._replace(key, ReadModel(list(read_model.folds.values()), None, self.connection))
            self._read_model_of.update(dict.fromkeys(read_model.folds, self._read_models[key]))

    def _arrange(self, snapshot: Snapshot | None) -> None:
        """Folds that are published share one read model. The others are folded in memory: those that were there before
        the first read share one."""
        wanted = self._wanted_read_models(snapshot)
        for key in self._read_models.keys() - wanted.keys():
            self._events_folded += self._read_models.pop(key).events_folded
            self._on_reset()
        for key, (folds, lineage) in wanted.items():
            read_model = self._read_models.get(key)
            if read_model is None or read_model.lineage != lineage or list(read_model.folds.values()) != folds:
                self._replace(key, ReadModel(folds, lineage, self.connection))
        self._read_model_of = {name: one for one in self._read_models.values() for name in one.folds}
        # A rejection holds for one position only.
        self._arranged_for = None
        if snapshot is None:
            self._arranged_for = None, None
        elif self._rejected is None:
            self._arranged_for = snapshot.identity, snapshot.header.folds

    def _wanted_read_models(self, snapshot: Snapshot | None) -> dict[str, tuple[list[Fold], Lineage | None]]:
        published: list[Fold] = []
        if snapshot is not None:
            published = [fold for fold in self.folds.values() if snapshot.header.generation_of(fold) is not None]
            lineage = snapshot.lineage(published)
            if self._rejected is not None and self._rejected != (lineage, snapshot.header.position):
                self._rejected = None
            if lineage is not None and (self._rejected is not None or self._is_distrusted(lineage)):
                published = []
        wanted: dict[str, tuple[list[Fold], Lineage | None]] = {}
        if published:
            assert snapshot is not None
            wanted[_PUBLISHED] = (published, snapshot.lineage(published))
        for fold in self.folds.values():
            if fold not in published:
                key = _FIRST if fold.name in self._first else fold.name
                wanted.setdefault(key, ([], None))[0].append(fold)
        return wanted

    def _is_distrusted(self, lineage: Lineage) -> bool:
        """Whether one of its generations was found wrong; the same edit may be in every other of them."""
        wrong = self._distrusted
        return wrong is not None and wrong[:2] == lineage[:2] and bool(set(wrong[2]) & set(lineage[2]))

    def _replace(self, key: str, read_model: ReadModel) -> None:
        before = self._read_models.get(key)
        if before is not None:
            self._events_folded += before.events_folded
        if read_model.lineage is None:
            self.replays += 1
        self._read_models[key] = read_model
        self._on_reset()

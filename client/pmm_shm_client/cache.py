"""`connect` and `Cache`: one ledger's shared state, as a chat worker sees it.

Reads are exact unless asked otherwise, with or without a daemon (`reads`); `recalls` embeds and searches. This module
opens the ledger, appends, and sends commands to the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from time import monotonic

from pmm_shm import flags, limits
from pmm_shm.errors import (
    ConfigError,
    DaemonAbsentError,
    DaemonError,
    FoldError,
    HeadMovedError,
    LedgerNotFoundError,
    ResourceLimitError,
)
from pmm_shm.folds.registry import importable_name
from pmm_shm.instance.paths import Instance, real_path
from pmm_shm.late import late_imports
from pmm_shm.ledger.connection import DURABILITIES, Durability, check_durability, recorded_shape
from pmm_shm.ledger.files import checked_name
from pmm_shm.ledger.freshness import Choice
from pmm_shm.ledger.rows import Event, RawRow
from pmm_shm.ledger.sqlite_errors import check_timeout, sleep_between
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.typed import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from pmm_shm_client.reader import Reader
from pmm_shm_client.reads import Consistency, Memos, checked_consistency
from pmm_shm_client.recalls import Recalls, checked_default

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.ledger.connection import Connection
    from pmm_shm.ledger.eventlog import EventLog
    from pmm_shm.ledger.new_events import EventInput
    from pmm_shm.ledger.shape import Shape
    from pmm_shm.ledger.source.replica_appender import ReplicaAppender
    from pmm_shm.ledger.source.roles import SourceRole
    from pmm_shm.projection.verification import PublishedCopy, VerifyReport
    from pmm_shm.store.snapshot import Lineage, Snapshot
    from pmm_shm.vectors.embedder import Embedder
    from pmm_shm_client.commands import DaemonCommand
    from pmm_shm_client.frame import Frame
    from pmm_shm_client.roles import Role
    from pmm_shm_client.stats import DaemonStats, Stats

ReadMark = tuple[int, Any]
_C = TypeVar("_C", bound="Cache")
_T = TypeVar("_T")


class _OwnLog:
    """The `EventLog` of a cache, made by its first append or read of events: all other reads need none."""

    def __init__(self, path: str, timeout: float, durability: Durability, shape: Shape | None) -> None:
        self._path = path
        self._options: dict[str, Any] = {"timeout": timeout, "durability": durability, "shape": shape}
        self.made: EventLog | None = None
        self.opened: Connection | None = None
        """The connection of the cache, once it has one."""

    def create(self) -> None:
        """Make the ledger if it is missing."""
        with late_imports:
            from pmm_shm.ledger.eventlog import EventLog
        self.made = EventLog(self._path, create=True, **self._options)

    def get(self) -> EventLog:
        # One for all threads: the lock of late imports is held, and nothing is opened yet.
        with late_imports:
            from pmm_shm.ledger.eventlog import UnopenedLog

            if self.made is None:
                self.made = UnopenedLog(self._path, self.opened, **self._options)
            return self.made

    def recover(self) -> None:
        self.get().recover()

    def close(self) -> None:
        if self.made is not None:
            self.made.close()


def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    autostart: bool = False,
    consistency: Consistency = "exact",
    timeout: float = limits.LEDGER_TIMEOUT_S,
    freshness: Choice = "auto",
    embedder: Embedder | str | None = None,
    create: bool = False,
    durability: Durability = "default",
    folds: Iterable[Fold | type[Fold]] = (),
    shape: Shape | str | os.PathLike[str] | None = None,
) -> Cache:
    """The shared state of a ledger; works with or without a daemon.

    Parameters:
        path: the ledger; None for the one in `PMM_DB`.
        autostart: start a daemon where none runs, now and whenever a command or a new embedding needs one. It ends
            by itself after `limits.AUTOSTART_IDLE_EXIT_S` seconds without appends, commands and workers' reports.
        consistency, timeout, freshness, embedder, durability, folds, shape: see `Cache`.
        create: make a new ledger if there is none.

    Raises:
        LedgerNotFoundError: no file at `path`, and `create` is false.
        LedgerError: no usable ledger there.
        ConfigError: an argument or an environment variable has no meaning; `shape` is not the recorded one.
        FoldError: one of `folds` breaks the contract, or has the name of another fold.
        DaemonError: `autostart`, and the daemon does not start.
    """
    options = {
        "consistency": consistency,
        "timeout": timeout,
        "freshness": freshness,
        "embedder": embedder,
        "create": create,
        "durability": durability,
        "folds": folds,
        "shape": shape,
    }
    return open_cache(Cache, path, autostart, options)


def open_cache(kind: type[_C], path: str | os.PathLike[str] | None, autostart: bool, options: Mapping[str, Any]) -> _C:
    """`connect` for any kind of `Cache`."""
    ledger = path if path is not None else flags.default_ledger()
    if ledger is None:
        raise ConfigError("no ledger: name one, or set PMM_DB")
    try:
        cache = kind(ledger, **options)
    except LedgerNotFoundError as error:
        raise LedgerNotFoundError(f"{error}; create=True makes a new ledger") from None
    if autostart:
        try:
            cache.start_daemon()
        except BaseException:
            cache.close()
            raise
    return cache


class Cache(Recalls):
    """The shared state of one ledger. Made by `connect`; thread-safe; usable on both sides of a fork.

    Parameters:
        path: the ledger; it must exist, unless `create`.
        consistency: `"exact"`: every append committed before the read began is in it; `"snapshot"`: the state that the
            daemon has published; `"wait"`: wait until the daemon has published what the ledger's head was at the call;
            `"global"`: on a replica of a log in PostgreSQL, every append of any host committed there before the read
            began; on any other ledger as `"exact"`.
        timeout: seconds to wait for a busy ledger, and for the daemon where consistency is `"wait"`.
        freshness: `"auto"`, or `"data_version"` to do without the wal-index mark.
        embedder: the model of `embed` and `embed_many` where none is named: an embedder, or the name of one; None for
            the one in `PMM_EMBEDDER`.
        create: make a new ledger if the file is missing or is a database without tables.
        durability: what an acknowledged append survives, as in `EventLog`.
        folds: further folds, as `add_fold` takes them.
        shape: how a table of another program is the log: a `Shape`, the path of a TOML file, or the name of a shape
            that comes with pmm-shm. None for the recorded one, if there is one.
        heeds_flags: whether the `PMM_USE_*` variables can turn the shared cache off; false where they are meant for
            another program in this process.
        late_folds: names of built-in folds, not the self-model. Reads and frames leave each of them out until somebody
            asks for it, and cost less.

    Every read raises `LedgerError` in one of its kinds where the ledger cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        consistency: Consistency = "exact",
        timeout: float = limits.LEDGER_TIMEOUT_S,
        freshness: Choice = "auto",
        embedder: Embedder | str | None = None,
        create: bool = False,
        durability: Durability = "default",
        folds: Iterable[Fold | type[Fold]] = (),
        shape: Shape | str | os.PathLike[str] | None = None,
        heeds_flags: bool = True,
        late_folds: Collection[str] = (),
    ) -> None:
        if freshness not in ("auto", "data_version"):
            raise ConfigError(f"freshness: expected auto or data_version, got {freshness!r}")
        checked_consistency(consistency)
        default = checked_default(embedder)
        # Read first: a flag that means nothing must not leave a connection behind.
        if heeds_flags:
            flags.projection_cache(), flags.metrics_cache(), flags.embedding_cache()
        agreed = None if shape is None else _agreed_shape(path, shape)
        # Once for all connections: one that is made later must not follow a link that points elsewhere by then.
        name = real_path(checked_name(path))
        check_timeout(timeout)
        check_durability(durability)
        self._durability = durability
        shape_in_use = recorded_shape(name) if agreed is None else agreed
        self._own_log = _OwnLog(name, timeout, durability, shape_in_use)
        if create:
            self._own_log.create()
        memos = Memos()
        reader = Reader(name, timeout, freshness, self._own_log.recover, memos.expire, late_folds, shape_in_use)
        self._own_log.opened = reader.connection
        super().__init__(reader, memos, consistency, timeout, heeds_flags, default)
        self._autostarts = False
        self._verifications = {True: 0, False: 0}
        self._appends = 0
        try:
            for fold in folds:
                self.add_fold(fold)
        except FoldError:
            self.close()
            raise
        self._reader.with_ledger(self._freshness.take)

    def __enter__(self) -> Cache:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied: pass its path, and connect there")

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else self._consistency
        return f"<{type(self).__name__} {self.path}, {state}>"

    @property
    def _log(self) -> EventLog:
        return self._own_log.made or self._own_log.get()

    def _source(self) -> ReplicaAppender | None:
        """As `EventLog.source`; on any other ledger than a replica without an `EventLog`."""
        with late_imports:
            from pmm_shm.ledger.replicas import is_replica

        return self._log.source() if is_replica(self._schema().definition) else None

    @property
    def shape(self) -> Shape | None:
        """The shape of a table of another program; None for a ledger."""
        return self._reader.shape

    def mark(self) -> ReadMark:
        """A value that stays equal as long as nobody commits to the ledger; compare it, and nothing else.

        Two different marks mean that somebody may have appended since: read then. In WAL mode it costs a fraction of a
        microsecond and no system call.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        # The epoch first: a mark of a connection that was closed meanwhile equals no later one.
        epoch, freshness = self._reader.connection.epoch, self._freshness
        header = freshness.header
        if header is not None and monotonic() < freshness.trusted_until:
            return epoch, header.raw
        self._check_open()

        def take() -> ReadMark:
            mark = freshness.take()
            return self._reader.connection.epoch, mark

        return self._reader.with_ledger(take)

    def close(self) -> None:
        """Close the connections. A later call of another method raises `ClosedError`."""
        if not self._is_closed:
            self._reporter.report(is_last=True)
        self._is_closed = True
        self._reader.close()
        if self._texts is not None:
            self._texts.close()
        self._own_log.close()

    # The events themselves.

    def events(
        self,
        kind: str | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = 100,
        newest_first: bool = False,
    ) -> list[Event]:
        """The first `limit` events in a range of ids, of the moment of the call; from the ledger itself.

        Parameters:
            kind: only events of this kind; None for all.
            after, before: only events with a higher or lower id; these two ids are excluded.
            limit: how many at most; None for all.
            newest_first: begin with the newest event; otherwise with the oldest.

        Raises:
            ConfigError: an argument has no meaning.
        """
        self._check_open()
        return self._log.events(kind, after, before, limit, newest_first)

    def event(self, event_id: int) -> Event | None:
        """The event with this id; None if there is none."""
        self._check_open()
        found = self._log.get_event(event_id)
        return None if found is None else Event(**found)

    def newest(self, kind: str) -> Event | None:
        """The newest event of a kind, or None. The cost is a look-up in the ledger's index by kind.

        Raises:
            ConfigError: `kind` is no text.
        """
        self._check_open()
        return self._log.newest(kind)

    # Writing, and commands to the daemon.

    def append(
        self,
        kind: str,
        content: str = "",
        meta: Mapping[str, Any] | None = None,
        *,
        expected_head: int | Frame | None = None,
        wait: bool = True,
    ) -> int:
        """Append an event; the next read of any worker includes it. Returns its id.

        Parameters:
            expected_head: append only if nobody has appended since: the `as_of` of an answer, or a frame, which
                notices a replaced or restored ledger, too. 0 is an empty ledger.
            wait: on a replica of a log in PostgreSQL, return when this host's reads include it; otherwise as soon as
                PostgreSQL has it.

        Raises:
            HeadMovedError: somebody has appended since.
            InvalidEventError: it could not be read back as it is.
            UnknownOutcomeError, ReplicaLaggingError: on a replica; it was, or may have been written.
            LedgerError: it could not be written; nothing was.
        """
        self._check_open()
        event_id = self._log.append(kind, content, meta, expected_head=expected_head, wait=wait)
        self._appends += 1
        return event_id

    def append_many(
        self, events: Iterable[EventInput], *, expected_head: int | Frame | None = None, wait: bool = True
    ) -> list[int]:
        """Append several events in one transaction, as `EventLog.append_many`; returns their ids.

        Raises:
            HeadMovedError, InvalidEventError, LedgerError: as `append`, for all of them.
        """
        self._check_open()
        ids = self._log.append_many(events, expected_head=expected_head, wait=wait)
        self._appends += len(ids)
        return ids

    def decide(
        self, decision: Callable[[Frame], Iterable[EventInput] | None], timeout: float | None = None
    ) -> list[int]:
        """Append what a decision returns, if the frame it was made from still is the newest; otherwise decide again.

        So of several workers that see the same frame, only one acts on it; the others decide again with its events.

        Parameters:
            decision: gets an exact frame, and returns events as `append_many` takes them; None or no events to append
                nothing. It may be called several times, and must append nothing itself.
            timeout: seconds for all attempts; None for those of the cache. An attempt that began is finished.

        Returns:
            The ids of the events.

        Raises:
            ConfigError: `timeout` is not a number of seconds.
            HeadMovedError: others have appended during each attempt.
            InvalidEventError, LedgerError: as `append`; nothing was written.
        """
        if timeout is not None:
            check_timeout(timeout)
        deadline_s = monotonic() + (self._timeout_s if timeout is None else timeout)
        while True:
            frame = self._exact_frame()
            events = list(decision(frame) or ())
            if not events:
                return []
            try:
                return self.append_many(events, expected_head=frame)
            except HeadMovedError:
                if monotonic() >= deadline_s:
                    raise
                # Whoever decides fastest would win again.
                sleep_between(limits.BUSY_SLEEP_S_MIN, limits.BUSY_SLEEP_S_MAX)

    def role(self, name: str) -> Role | SourceRole:
        """A role that one process at a time can hold: of this host's workers or, on a replica, of all hosts'.

        Parameters:
            name: 1 to 64 characters.
        """
        self._check_open()
        source = self._source()
        with late_imports:
            from pmm_shm_client.roles import Role
        if source is None:
            return Role(self._instance, name)
        with late_imports:
            from pmm_shm.ledger.source.roles import SourceRole
        return SourceRole(source.new_server(), name)

    def _wait_for_source(self) -> None:
        source = self._source()
        if source is not None:
            source.wait_for_head(self._timeout_s)

    def published_as_of(self) -> int | None:
        """The event id up to which the daemon has published; None if nothing is published, or it cannot be read.

        It reads shared memory and never waits: ask it again and again where `wait_for` would stop other green threads.
        """
        self._check_open()

        def position(snapshot: Snapshot | None) -> int | None:
            if snapshot is None or snapshot.header.is_void or not snapshot.header.folds:
                return None
            return snapshot.header.position.as_of

        return self._reader.with_snapshot(position)

    def wait_for(self, event_id: int, timeout: float = limits.COMMAND_TIMEOUT_S) -> int:
        """Wait until the daemon has published `event_id`. Returns the event id up to which is published.

        It blocks the whole thread, with all green threads in it (gevent, eventlet); see `published_as_of`.

        Raises:
            ConfigError: an argument is no number, or no id.
            DaemonAbsentError: no daemon serves this ledger.
            DaemonTimeoutError: not within `timeout` seconds, of which more than a day counts as a day.
        """
        with late_imports:
            from pmm_shm_client.commands import wait_command

        self._check_open()
        command = wait_command(self.path, event_id, timeout)
        published = self.published_as_of()
        if published is not None and published >= event_id:
            return published
        return self._give(command)

    def verify(self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S) -> VerifyReport:
        """Compare the published state (all folds, or one) with a full replay; true when they are equal.

        The daemon compares, and rebuilds folds that are wrong. Without a daemon this process compares, and ignores
        wrong state until a daemon has rebuilt it. The next read folds anew what this process has folded by itself. If
        nothing is published, the whole ledger is read all the same, and the report is true, with no `folds`. If what is
        published is damaged, the report is false, with no `folds`.

        Raises:
            LedgerError: the ledger is gone or cannot be read, whatever the daemon still has open.
            UnknownFoldError: no fold has this name.
            DaemonTimeoutError: not within `timeout` seconds.
        """
        with late_imports:
            from pmm_shm_client.commands import verify_command

        self._check_open()
        command = verify_command(fold, timeout)
        if fold is not None:
            self._know(fold)
        self._look_at_ledger()
        try:
            report = self._give(command)
        except DaemonAbsentError:
            report = self._verify_here(fold)
        self._reader.begin_anew()
        self._verifications[report.ok] += 1
        return report

    def invalidate(self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S) -> int:
        """Have the daemon rebuild all folds, or one, from the ledger. Returns the position afterwards, an event id.

        Raises:
            UnknownFoldError: no fold can have this name.
            DaemonAbsentError: no daemon serves this ledger.
            CommandError: the daemon does not know the fold.
            DaemonTimeoutError: not within `timeout` seconds.
        """
        with late_imports:
            from pmm_shm_client.commands import invalidate_command

        self._check_open()
        return self._give(invalidate_command(fold, timeout))

    def stats(self) -> Stats:
        """Numbers of this process (`projection`, `metrics`, `embeddings`) and of the daemon (`daemon`; None without).

        In `embeddings`, leases are the daemon's; so are the sizes, if a daemon runs.

        Raises:
            ResourceLimitError: this process has no file descriptor, thread or memory left to ask a daemon.
        """
        with late_imports:
            from pmm_shm_client.commands import stats_command

        self._check_open()
        daemon: DaemonStats | None
        try:
            daemon = cast("DaemonStats", self._give(stats_command()))
        except ResourceLimitError:
            raise
        except DaemonError:
            daemon = None
        projection, metrics = self._counters["projection"], self._counters["metrics"]
        last = self._last_memo("metrics")
        events = self._reader.events_folded
        return {
            "projection": {
                **projection.as_dict(),
                "events_processed": events,
                "last_id": projection.last_id,
                "verifications_passed": self._verifications[True],
                "verifications_failed": self._verifications[False],
                "cached": self._last_memo("self_model") is not None,
            },
            "metrics": {
                **metrics.as_dict(),
                "recomputations": metrics.recomputations,
                "events_processed": events,
                "last_id": metrics.last_id,
                "ias": last.value.ias if last else 0.0,
                "gas": last.value.gas if last else 0.0,
            },
            "embeddings": self._embedding_numbers(None if daemon is None else daemon["embeddings"]),
            "appends": {"appends": self._appends, "durability": self._durability},
            "daemon": daemon,
        }

    def _counted(self) -> dict[str, int]:
        projection, metrics, embedding = self._counters.values()
        return {
            "projection_hits": projection.hits,
            "projection_misses": projection.misses,
            "projection_caught_up": projection.caught_up,
            "projection_replayed": projection.replayed,
            "projection_recomputations": projection.recomputations,
            "metrics_hits": metrics.hits,
            "metrics_misses": metrics.misses,
            "metrics_caught_up": metrics.caught_up,
            "metrics_replayed": metrics.replayed,
            "metrics_recomputations": metrics.recomputations,
            "events_folded": self._reader.events_folded,
            "embedding_hits": embedding.hits,
            "embedding_misses": embedding.misses,
            **{f"appends_{one}": self._appends if one == self._durability else 0 for one in DURABILITIES},
            "pid_collisions": self._reader.snapshots.locator.pid_collisions,
        }

    def _look_at_ledger(self) -> None:
        """Raise where no ledger is at the path any more, whatever the daemon and this process still have open."""
        self._reader.connection.follow_replacement()
        self._reader.with_ledger(self._freshness.take)

    def _verify_here(self, fold: str | None) -> VerifyReport:
        with late_imports:
            from pmm_shm.projection.verification import copy_published, verify, verify_unpublished

        names = (fold,) if fold is not None else tuple(self._reader.folds)

        def copied(snapshot: Snapshot | None) -> tuple[PublishedCopy, Lineage] | None:
            folds = [self._reader.folds[name] for name in names]
            if snapshot is not None:
                folds = [one for one in folds if snapshot.header.generation_of(one) is not None]
            copy = copy_published(snapshot, folds) if snapshot is not None and folds else None
            return None if snapshot is None or copy is None else (copy, snapshot.whole_lineage())

        found = self._reader.with_snapshot(copied)
        if found is None:
            report = verify_unpublished(self._reader.connection)
            # Reads ignore it by now, but answers may have come from it.
            failure = self._reader.snapshots.locator.failure
            if report.ok and isinstance(failure, DamagedStoreError):
                return report._replace(ok=False, difference=f"what is published is damaged: {failure}")
            return report
        copy, everything = found
        report = verify(self._reader.connection, copy).report
        if not report.ok:
            # As the daemon does, which voids it for all: exactness before speed.
            self._reader.distrust(everything)
        return report

    def start_daemon(self) -> None:
        """Start a daemon for this ledger if none answers, and from now on whenever this cache asks for one in vain.

        It also keeps the folds that were added to this cache.

        It ends by itself when nobody has needed it for `limits.AUTOSTART_IDLE_EXIT_S`.

        Raises:
            DaemonError: it does not start.
        """
        with late_imports:
            from pmm_shm_client.autostart import start_daemon

        names = [name for fold in self._added_folds.values() if (name := importable_name(fold)) is not None]
        start_daemon(self.path, folds=names, shape=self.shape)
        self._autostarts = True

    def _restarted_daemon(self) -> bool:
        """Whether a daemon runs again: this cache started one before, and it has ended, perhaps because it was idle."""
        if not self._autostarts:
            return False
        try:
            self.start_daemon()
        except DaemonError:
            return False
        return True

    def _give(self, command: DaemonCommand[_T]) -> _T:
        with late_imports:
            from pmm_shm_client import commands

        try:
            return commands.give(self._instance, command)
        except DaemonAbsentError:
            if not self._restarted_daemon():
                raise
        return commands.give(self._instance, command)


def row_appended(cache: Cache, event_id: int) -> RawRow | None:
    """As `pmm_shm.ledger.eventlog.own_row`, of the cache's appends."""
    with late_imports:
        from pmm_shm.ledger.eventlog import own_row

    return own_row(cache._log, event_id)


def _agreed_shape(path: str | os.PathLike[str], shape: Shape | str | os.PathLike[str]) -> Shape | None:
    with late_imports:
        from pmm_shm.ledger.shape import load_shape
        from pmm_shm.ledger.shape_record import agreed_shape

    return agreed_shape(Instance.of(path), load_shape(shape))

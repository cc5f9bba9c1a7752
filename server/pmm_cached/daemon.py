"""The daemon: puts follower, maintenance and command server together, and runs the follower's loop."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from pmm_cached.background import JobDone
from pmm_cached.commands import CommandServer
from pmm_cached.follower import Follower, all_folds
from pmm_cached.health import HeadProbe, assess
from pmm_cached.indexer import Indexer
from pmm_cached.instance_lock import InstanceLock
from pmm_cached.logs import Logger
from pmm_cached.maintenance import Maintenance
from pmm_cached.notify import Notifier, StatusReporter
from pmm_cached.peers import allow_descriptors
from pmm_cached.replication import Replication, make_replica, recorded_source
from pmm_cached.settings import Settings
from pmm_cached.sizes import sizes
from pmm_cached.status import Status
from pmm_cached.text_table import TextTable
from pmm_cached.watch import LedgerWatch
from pmm_shm import limits
from pmm_shm.errors import DaemonError, LedgerBusyError, LedgerError, LockLostError, StoreError
from pmm_shm.folds.engine import quarantine_of
from pmm_shm.instance.paths import FileId, Instance, file_id
from pmm_shm.ledger.connection import Connection, use_shape
from pmm_shm.ledger.sqlite_errors import HotJournalError
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.resources import require
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.registry import find_embedder, resolved
from pmm_shm.wire.endpoints import choose_endpoints, record_endpoints

if TYPE_CHECKING:
    from pmm_cached.prometheus import MetricsServer
    from pmm_shm.ledger.shape import Shape

_PROBLEM_PAUSE_S = 0.5
_LAST_WAIT_S = 0.05
# Those of libzmq, which ends the process without them, and one more.
_THREADS = 3
_QUARANTINE_SHOWN = 20
_READERS_SHOWN = 50


class Daemon:
    """One daemon for one ledger.

    Raises:
        LedgerError: no usable ledger; nothing was made.
        ConfigError: the instance directory cannot be used.
        DaemonRunningError: another daemon serves the ledger.
        StoreError: the store cannot be opened.
        ResourceLimitError: this process lacks file descriptors, threads or memory; nothing was made.
    """

    def __init__(self, ledger: str, settings: Settings, log: Logger) -> None:
        self._instance = Instance.of(ledger)
        if settings.source is not None:
            make_replica(self._instance.ledger, settings.source)
        _check_ledger(self._instance.ledger, settings.shape)
        self._folds = all_folds(settings.folds, settings.only_folds, settings.shape)
        # Workers look for this name, and may have other packages: not `auto`.
        found_as = None if settings.embedder is None else resolved(settings.embedder)
        embedder = None if found_as is None else find_embedder(found_as)
        self._settings = settings
        self._log = log
        if settings.metrics_port is not None:
            # Before anything is made: the extra may not be installed.
            import pmm_cached.prometheus
        if settings.shape is not None:
            import pmm_shm.ledger.shape_record
        # Before anything is made: libzmq ends a process that lacks them.
        allow_descriptors()
        require(self._instance.ledger, limits.DESCRIPTORS_MIN, _THREADS)
        self._lock = InstanceLock(self._instance)
        if settings.shape is not None:
            # From now on every connection, here and in the clients, reads the log by it.
            use_shape(self._instance.ledger, settings.shape)
            pmm_shm.ledger.shape_record.record_shape(self._instance, settings.shape)
        self._replication: Replication | None = None
        source = settings.source or recorded_source(self._instance.ledger)
        if source is not None:
            self._replication = Replication(self._instance, source, log)
        self._metrics: MetricsServer | None = None
        if settings.metrics_port is not None:
            self._metrics = pmm_cached.prometheus.MetricsServer(settings.metrics_port, self.stats, log)
        self._is_stopping = False
        self._failure: str | None = None
        self._instance_checked = self._readers_checked = time.monotonic()
        self._active_monotonic = time.monotonic()
        self._activity: tuple[int, ...] = ()
        self._standstill = threading.Lock()
        self._status = Status(self._instance.ledger)
        self._probe = HeadProbe(self._instance.ledger)
        self._notifier = Notifier()
        self._reporter = StatusReporter(self._notifier, self.stats, log)
        self._endpoints = choose_endpoints(self._instance)
        self._writer = StoreWriter(self._instance, settings.map_size_bytes)
        header = self._writer.header
        if settings.shape is not None and all(header.generation_of(fold) is None for fold in self._folds):
            # Seals and tables of events are those of another version of the shape.
            self._writer.end_history()
        self._texts = TextTable(self._writer, settings.text_vectors_max, self._status.embeddings, log, self._die)
        self._commands = CommandServer(self._endpoints, self, self._texts, self._status, log, self._is_ours, self._die)
        self._indexer = Indexer(
            self._instance,
            self._writer,
            embedder,
            found_as,
            settings.embed_kinds,
            settings.word_kinds,
            self._status.embeddings,
            self._status.words,
            log,
            self._standstill,
            # Looked up when it is called: the follower is made below.
            lambda: self._follower.is_behind(),
            self._commands,
            self._die,
        )
        record_endpoints(self._instance, self._endpoints)
        self._watch = LedgerWatch(self._instance.ledger)
        self._follower = Follower(
            self._instance.ledger,
            self._writer,
            self._folds,
            self._status,
            self._notifier.feed,
            # Looked up when it is called: the maintenance needs the follower.
            lambda change: self._maintenance.table_redefined(change),
            self._column_is_lacking,
        )
        self._maintenance = Maintenance(
            self._instance.ledger,
            self._writer,
            self._follower,
            self._folds,
            self._status,
            settings,
            log,
            self._standstill,
            self._announce,
            self._indexer.reset,
            self._indexer.check_words,
            self._die,
        )

    def _column_is_lacking(self, problem: str) -> None:
        self._status.failed(problem)
        self._log.warning("a fold sees None", reason=problem)

    def run(self) -> None:
        """Follow the ledger until `stop`.

        Raises:
            LockLostError: SQLite's lock is gone; start anew.
            DaemonError: an essential thread ended, or the instance directory is gone.
            DamagedStoreError: the environment is damaged; the next start makes it anew.
        """
        self._log.info("serving", ledger=self._instance.ledger, directory=str(self._instance.directory))
        if self._watch.problem is not None:
            self._log.warning("changes are found by the slow poll alone", reason=self._watch.problem)
        self._texts.start()
        self._commands.start()
        self._maintenance.start()
        self._indexer.start()
        if self._replication is not None:
            self._replication.start()
        # The sockets answer. Readers need no more of a daemon, so nothing waits for a rebuild.
        self._notifier.ready()
        self._reporter.start()
        if self._metrics is not None:
            self._metrics.start()
            self._log.info("metrics", port=self._metrics.port)
        try:
            self._rebuild_missing()
            self._follow()
        finally:
            self._shut_down()
        if self._failure is not None:
            raise DaemonError(self._failure)

    def stop(self) -> None:
        """Finish the batch and end `run`; safe in a signal handler.

        A follower that hangs, for example in a fold, is cut off by SIGALRM. Killing the daemon harms nothing.
        """
        self._is_stopping = True
        signal.setitimer(signal.ITIMER_REAL, limits.STOP_HARD_S)
        self._watch.wake()

    def _die(self, reason: str) -> None:
        self._failure = reason
        self.stop()

    def _is_ours(self, ledger: FileId | None) -> bool:
        """Whether a client means our ledger by this file. Asked for each request, because it may be replaced."""
        return ledger == file_id(self._instance.ledger)

    # The backend of the command server.

    def stats(self) -> dict[str, Any]:
        """The daemon's numbers, for the stats command."""
        numbers = self._status.as_dict()
        newest = self._writer.last_transaction_id()
        slots = self._writer.reader_slots()
        readers = [(pid, transaction) for pid, transaction in slots if transaction is not None]
        oldest = min(readers, key=lambda reader: reader[1], default=None)
        with self._writer.snapshot() as snapshot:
            position = snapshot.header.position
            states = {fold.name: snapshot.state(fold) for fold in self._folds if snapshot.header.generation_of(fold)}
            count, entries = quarantine_of(states, _QUARANTINE_SHOWN)
        # From the store, where a client may have read it before the follower updates its status.
        numbers["as_of"] = position.as_of
        lag = self._probe.lag_behind(position)
        numbers["quarantined"] = count
        numbers["quarantine"] = [list(entry) for entry in entries]
        # A ledger that is busy for the moment: as far as is known, nothing came.
        numbers["head_id"], numbers["lag_events"] = lag or (numbers["as_of"], 0)
        numbers["lag_ms"] = numbers.pop("caught_up_age_ms") if numbers["lag_events"] else 0
        numbers["shape"] = None if self._settings.shape is None else str(self._settings.shape)
        numbers["replica"] = None if self._replication is None else self._replication.numbers()
        numbers.update(assess(numbers)._asdict())
        numbers["readers"] = len(readers)
        numbers["oldest_reader_pid"] = oldest[0] if oldest else None
        numbers["oldest_reader_behind_txns"] = newest - oldest[1] if oldest else 0
        numbers["reader_processes"] = _by_process(slots, newest)
        numbers["sizes"] = sizes(self._writer, self._instance)
        return numbers

    def verify(self, fold: str | None, done: JobDone) -> None:
        self._maintenance.verify(fold, done)

    def invalidate(self, fold: str | None, done: JobDone) -> None:
        self._maintenance.rebuild(fold, "invalidated", done)

    def index(self, done: JobDone) -> None:
        self._indexer.index(done)

    def knows(self, fold: str) -> bool:
        return any(fold == known.name for known in self._folds)

    # The follower's loop.

    def _follow(self) -> None:
        last_change = time.monotonic()
        while not self._is_stopping:
            self._look_after_instance()
            self._leave_if_idle()
            try:
                if self._step():
                    last_change = time.monotonic()
                self._solved()
            except LockLostError:
                raise
            except DamagedStoreError:
                self._writer.mark_damaged()
                raise
            except (LedgerError, StoreError) as error:
                self._trouble(error)
                self._watch.wait(_PROBLEM_PAUSE_S)
                continue
            if self._watch.wait(self._sleep_s(time.monotonic() - last_change)):
                last_change = time.monotonic()

    def _look_after_instance(self) -> None:
        """At intervals: stop if the instance directory is no longer ours, and free the pages that dead readers pin."""
        now = time.monotonic()
        if now - self._instance_checked >= limits.INSTANCE_CHECK_S:
            self._instance_checked = now
            if not self._lock.is_held():
                reason = f"{self._instance.directory}: it was removed or replaced under this daemon; start it again"
                self._log.error("instance directory gone", directory=str(self._instance.directory))
                self._die(reason)
        if now - self._readers_checked >= limits.DEAD_READERS_CHECK_S:
            self._readers_checked = now
            self._writer.clear_dead_readers()

    def _leave_if_idle(self) -> None:
        """Stop if for `idle_exit_s` nobody appended, asked or reported, and there is nothing that this daemon does."""
        if self._settings.idle_exit_s is None:
            return
        now = time.monotonic()
        activity = (self._status.as_of, self._status.commands, self._status.workers.reports)
        if activity != self._activity or self._commands.is_asked or self._status.rebuilding:
            self._activity, self._active_monotonic = activity, now
        elif now - self._active_monotonic >= self._settings.idle_exit_s:
            self._log.info("idle", seconds=round(now - self._active_monotonic, 1))
            self.stop()

    def _sleep_s(self, quiet_s: float) -> float:
        """How long to sleep when nothing changed for `quiet_s` seconds.

        In growing steps at first: inotify reports a write before the commit is visible, and may swallow the next one.
        """
        if quiet_s < limits.BACKOFF_WINDOW_S:
            return min(limits.BACKOFF_S_MAX, max(limits.BACKOFF_S_MIN, quiet_s / 4))
        return min(self._settings.slow_poll_s, self._notifier.feeding_s)

    def _step(self) -> bool:
        """Follow to the head. Returns whether the ledger has changed."""
        with self._standstill:
            looked = time.monotonic()
            self._follower.progressed()
            if not self._follower.has_news():
                self._status.caught_up_monotonic = looked
                return False
        try:
            self._follow_to_head()
        finally:
            # Behind the steps, for which somebody may wait: what is missed until now, the next looks find.
            self._watch.refresh()
        return True

    def _follow_to_head(self) -> None:
        while not self._is_stopping:
            with self._standstill:
                looked = time.monotonic()
                try:
                    step = self._follower.step()
                except LogChanged:
                    self._maintenance.end_history()
                    return
            if step.has_moved:
                self._status.events_folded += step.rows
                self._announce()
                self._maintenance.events_published()
            if step.is_complete:
                self._status.caught_up_monotonic = looked
                break
        # Rows of `event_embeddings` change without an event, too.
        self._indexer.ledger_changed()

    def _rebuild_missing(self) -> None:
        if self._writer.header.is_void:
            self._maintenance.rebuild(None, "the published state is void")
            return
        missing = self._follower.missing()
        if not self._follower.live:
            self._maintenance.rebuild(None, "nothing is published")
            return
        for fold in missing:
            self._maintenance.rebuild(fold.name, "not published in this version")

    def _announce(self) -> None:
        header = self._writer.header
        self._commands.announce(header.position.as_of, header.sequence)
        self._indexer.ledger_changed()

    def _trouble(self, error: Exception) -> None:
        text = str(error)
        self._status.failed(text)
        if self._status.problem != text:
            self._status.problem = text
            self._log.error("degraded", problem=text)

    def _solved(self) -> None:
        if self._status.problem is not None:
            self._log.info("recovered", problem=self._status.problem)
            self._status.problem = None
            self._maintenance.try_again()

    def _shut_down(self) -> None:
        # The follower has returned: the other parts have their own time limits.
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._notifier.stopping()
        deadline = time.monotonic() + limits.STOP_S
        is_idle = True
        optional = [part for part in (self._replication, self._metrics) if part is not None]
        for part in (*optional, self._reporter, self._maintenance, self._indexer, self._texts):
            is_idle = part.stop(max(_LAST_WAIT_S, deadline - time.monotonic())) and is_idle
        # If the directory is another daemon's, so are the sockets and the mark in it.
        is_ours = self._lock.is_held()
        self._commands.stop(removes_files=is_ours)
        self._follower.close()
        self._probe.close()
        if is_idle:
            self._writer.close(is_clean=is_ours)
        else:
            # Closing the store under the thread that uses it would crash. The published state stays as it is.
            self._log.warning("a job did not end in time; the store is left without the mark of a clean shutdown")
        self._watch.close()
        self._notifier.close()
        self._lock.release()
        self._log.info("stopped", as_of=self._status.as_of)


def _by_process(slots: list[tuple[int, int | None]], newest: int) -> list[list[int | None]]:
    """[pid, how many commits the oldest of its reads is behind, None where it reads nothing now], the slowest first."""
    behind: dict[int, int | None] = {}
    for pid, transaction in slots:
        known = behind.setdefault(pid, None)
        if transaction is not None:
            behind[pid] = max(known or 0, newest - transaction)
    found = sorted(behind.items(), key=lambda entry: (-1 if entry[1] is None else entry[1], entry[0]), reverse=True)
    return [list(entry) for entry in found[:_READERS_SHOWN]]


def _check_ledger(path: str, shape: Shape | None) -> None:
    """Raise `LedgerError` if there is no usable ledger.

    The journal of a dead writer is no reason: the next writer rolls it back. Nor is a busy ledger: the follower says
    what it waits for.
    """
    connection = Connection(path, "ro", limits.FOLLOWER_WAIT_S, shape)
    try:
        with connection.lock:
            connection.handle()
    except (HotJournalError, LedgerBusyError):
        return
    finally:
        connection.close()

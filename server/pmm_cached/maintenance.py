"""Rebuilds and verifications, in one background thread, while the follower follows and commands are answered.

Requested jobs take precedence over the periodic verification, which gives way and starts again later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pmm_cached.background import STOPS, BackgroundThread, JobDone, Stopped
from pmm_cached.follower import Follower
from pmm_cached.logs import Logger
from pmm_cached.rebuild import Rebuild
from pmm_cached.settings import Settings
from pmm_cached.status import Status
from pmm_shm import limits
from pmm_shm.errors import LedgerBusyError, PmmShmError, StoreError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import DECODE
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import Position
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.projection.verification import (
    PublishedCopy,
    VerifyReport,
    copy_published,
    verify,
    verify_unpublished,
)
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.layout import Seal
from pmm_shm.store.writer import StoreWriter

_FOLLOWER_LOOKS_S = 0.5
_WAIT_FOR_READERS_S = 0.1
_RETRY_S = 0.5
_RETRY_S_MAX = 30.0


class _Preempted(Exception):
    """A requested job is waiting: abandon the periodic verification."""


@dataclass
class _Job:
    """A job of the queue.

    Attributes:
        not_before: the monotonic time at which to try again what has failed.
        failures: how often in a row it has failed, and with what error the last time.
    """

    kind: str
    fold: str | None
    reason: str
    done: list[JobDone] = field(default_factory=list)
    not_before: float = 0.0
    failures: int = 0
    error: str = ""


class Maintenance(BackgroundThread):
    """The background thread.

    Parameters:
        standstill: the lock under which the follower steps; held for the flip.
        on_flip: called after each flip.
        on_other_log: called when the log turns out not to be the published one: it was replaced or edited.
        on_verified: called after each verification that found no difference.
        on_death: as for `BackgroundThread`.
    """

    _task = "maintenance"

    def __init__(
        self,
        path: str,
        writer: StoreWriter,
        follower: Follower,
        folds: list[Fold],
        status: Status,
        settings: Settings,
        log: Logger,
        standstill: threading.Lock,
        on_flip: Callable[[], None],
        on_other_log: Callable[[], None],
        on_verified: Callable[[], None],
        on_death: Callable[[str], None],
    ) -> None:
        super().__init__("maintenance", log, on_death)
        self._path = path
        self._writer = writer
        self._follower = follower
        self._folds = {fold.name: fold for fold in folds}
        self._status = status
        self._settings = settings
        self._standstill = standstill
        self._on_flip = on_flip
        self._on_other_log = on_other_log
        self._on_verified = on_verified
        self._jobs: deque[_Job] = deque()
        # Whether the running job gives way to requested ones, and this thread's CPU time when its slice began.
        self._is_periodic = False
        self._periodic = _Job("periodic", None, "periodic")
        # Where the history broke last, and how often in a row it has broken there again.
        self._broken_at: Position | None = None
        self._breaks_there = 0
        self._slice_began_s = 0.0
        self._last_flip_txn = 0
        # The oldest event at the last rebuild of all folds.
        self._first_id: int | None = None
        self._events_at_verification = -settings.verify_every_events

    def stop(self, timeout_s: float | None = None) -> bool:
        """Abandon running and waiting jobs, and wait for the thread. Returns whether it has ended."""
        with self._changed:
            self._is_stopping = True
            left = list(self._jobs)
            self._jobs.clear()
        for job in left:
            _answer(job, None, STOPS)
        return super().stop(timeout_s)

    def rebuild(self, fold: str | None, reason: str, done: JobDone | None = None) -> None:
        """Rebuild one fold, or all; one that waits for its turn already serves both."""
        self._enqueue("rebuild", fold, reason, done)

    def end_history(self) -> None:
        """The log does not continue the published state: say so, follow nothing, and rebuild everything.

        The caller holds `standstill`.

        Raises:
            StoreError: it cannot be recorded.
        """
        broken_at = self._writer.header.position
        newest = broken_at.as_of
        self._follower.forget_live()
        self._on_other_log()
        self._status.history_breaks += 1
        self._status.last_difference = (
            "columns of the table `events` were removed"
            if self._follower.has_lost_columns
            else f"event {newest}, the newest that was folded, is gone or has changed; "
            "the ledger was replaced, cut or edited"
        )
        self._status.failed(f"history broken: {self._status.last_difference}")
        self._log.warning("history broken", difference=self._status.last_difference)
        # No seal is left: a periodic verification makes them anew, behind the rebuild.
        self._events_at_verification = self._status.events_folded - self._settings.verify_every_events
        self._breaks_there = self._breaks_there + 1 if broken_at == self._broken_at else 0
        self._broken_at = broken_at
        # Where the rebuild before has led to the same break, the next one comes later.
        not_before = time.monotonic() + _retry_after_s(self._breaks_there - 1) if self._breaks_there else 0.0
        self._enqueue("rebuild", None, "the log does not continue what is published", None, not_before)

    def table_redefined(self, change: str) -> None:
        """The columns or triggers of `events` have changed: compare the rows with their seals, and seal them anew."""
        self._log.warning("the table `events` has changed: its rows are sealed anew", change=change)
        with self._changed:
            self._events_at_verification = self._status.events_folded - self._settings.verify_every_events
            self._changed.notify_all()

    def verify(self, fold: str | None, done: JobDone) -> None:
        """Verify one fold, or all, at full speed."""
        self._enqueue("verify", fold, "asked for", done)

    def try_again(self) -> None:
        """A problem was solved: what has failed need not wait any longer."""
        with self._changed:
            for job in (*self._jobs, self._periodic):
                job.not_before = 0.0
            self._changed.notify_all()

    def events_published(self) -> None:
        """Tell that the follower has published: a periodic verification may be due."""
        if self._is_verification_due():
            with self._changed:
                self._changed.notify_all()

    def _enqueue(self, kind: str, fold: str | None, reason: str, done: JobDone | None, not_before: float = 0.0) -> None:
        with self._changed:
            if self._is_stopping:
                if done is not None:
                    done(None, STOPS)
                return
            for job in self._jobs:
                if (job.kind, job.fold) == (kind, fold):
                    # Asked for once more: there may be a reason why it would succeed now.
                    job.not_before = min(job.not_before, not_before)
                    break
            else:
                job = _Job(kind, fold, reason, not_before=not_before)
                self._jobs.append(job)
            if done is not None:
                job.done.append(done)
            self._changed.notify_all()

    def _is_verification_due(self) -> bool:
        every = self._settings.verify_every_events
        return every > 0 and self._status.events_folded - self._events_at_verification >= every

    def _work(self) -> None:
        self._tidy()
        while (job := self._next()) is not None:
            self._attempt(job)

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._is_stopping:
                if (job := self._due_job()) is not None:
                    self._jobs.remove(job)
                    return job
                put_off = list(self._jobs)
                if self._is_verification_due() and self._status.is_published:
                    if self._periodic.not_before <= time.monotonic():
                        return self._periodic
                    put_off.append(self._periodic)
                first = min((job.not_before for job in put_off), default=None)
                self._changed.wait(None if first is None else max(0.0, first - time.monotonic()))
        return None

    def _due_job(self) -> _Job | None:
        """The first requested job that need not wait."""
        now = time.monotonic()
        return next((job for job in self._jobs if job.not_before <= now), None)

    def _attempt(self, job: _Job) -> None:
        self._is_periodic = job.kind == "periodic"
        try:
            result = self._rebuild(job) if job.kind == "rebuild" else self._verify(job)
        except _Preempted:
            return
        except Stopped:
            _answer(job, None, STOPS)
            raise
        except DamagedStoreError as error:
            _answer(job, None, str(error))
            self._writer.mark_damaged()
            raise
        except PmmShmError as error:
            if str(error) != job.error:
                self._log.error(f"{job.kind} failed", fold=job.fold, error=str(error))
            self._give_up(job, str(error))
            return
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if text != job.error:
                self._log.exception(f"{job.kind} failed", fold=job.fold)
            self._give_up(job, text)
            return
        if job.kind == "rebuild":
            self._status.rebuild_problem = None
        job.failures, job.error = 0, ""
        _answer(job, result, None)

    def _give_up(self, job: _Job, error: str) -> None:
        self._is_periodic = False
        _answer(job, None, error)
        job.done = []
        self._status.failed(f"{job.kind} failed: {error}")
        # The reason may go away, such as a full disk: try again, ever more rarely, and let other jobs go first.
        job.not_before = time.monotonic() + _retry_after_s(job.failures)
        job.failures, job.error = job.failures + 1, error
        if job.kind != "rebuild":
            return
        self._status.rebuild_problem = self._status.last_error
        with self._changed:
            # The state to rebuild is wrong or missing.
            if not any((other.kind, other.fold) == (job.kind, job.fold) for other in self._jobs):
                self._jobs.append(job)

    # Rebuild.

    def _tidy(self) -> None:
        """Delete the remains of a daemon that was killed within a rebuild, or before it had deleted the old state."""
        try:
            self._delete_old_generations()
        except DamagedStoreError:
            self._writer.mark_damaged()
            raise
        except StoreError as error:
            # The next rebuild deletes it.
            self._log.warning("old generations stay", error=str(error))

    def _delete_old_generations(self) -> None:
        while self._writer.delete_old_generation():
            self._check()

    def _rebuild(self, job: _Job) -> dict[str, Any]:
        names = [job.fold] if job.fold is not None else list(self._folds)
        self._status.rebuilding = [name for name in names if name != DECODE]
        self._log.info("rebuild begins", folds=names, reason=job.reason)
        started = time.monotonic()
        try:
            self._wait_for_old_readers()
            for _ in range(limits.REPLAYS_MAX):
                if self._replayed_and_flipped([self._folds[name] for name in names]):
                    break
                self._check()
            else:
                raise LedgerBusyError(f"{self._path}: it has changed {limits.REPLAYS_MAX} times while it was replayed")
        finally:
            self._status.rebuilding = []
        self._status.rebuilds += 1
        self._last_flip_txn = self._writer.last_transaction_id()
        as_of = self._writer.header.position.as_of
        self._log.info("rebuild ends", folds=names, as_of=as_of, elapsed_ms=int((time.monotonic() - started) * 1_000))
        self._on_flip()
        self._delete_old_generations()
        return {"as_of": as_of, "folds": names}

    def _replayed_and_flipped(self, folds: list[Fold]) -> bool:
        rebuild = Rebuild(self._path, self._writer, folds, self._check)
        try:
            rebuild.run()
            with self._standstill:
                rebuild.finish(self._follower)
            if len(folds) == len(self._folds):
                self._first_id = rebuild.first_id
        except LogChanged:
            self._log.warning("the log changed during a rebuild; beginning again")
            with self._standstill:
                if not self._follower.is_anchored():
                    self.end_history()
            self._pause(_RETRY_S)
            return False
        return True

    def _wait_for_old_readers(self) -> None:
        while True:
            pids = [pid for pid, transaction in self._writer.readers() if transaction < self._last_flip_txn]
            self._status.rebuild_waits_for_pid = pids[0] if pids else None
            if not pids:
                return
            self._pause(_WAIT_FOR_READERS_S)

    # Verification.

    def _verify(self, job: _Job) -> dict[str, Any]:
        if self._is_periodic:
            self._let_follower_judge()
        copy = self._copy(job)
        self._slice_began_s = time.thread_time()
        connection = Connection(self._path, "ro")
        try:
            if copy is None:
                return verify_unpublished(connection, self._keep_cpu_budget)._asdict()
            report, new_seals, is_purged = verify(connection, copy, self._keep_cpu_budget, self._first_id)
        finally:
            connection.close()
        if is_purged:
            self._follow_purge(report, copy)
        else:
            self._act_on(report, new_seals, copy)
        return report._replace(folds=tuple(name for name in report.folds if name != DECODE))._asdict()

    def _let_follower_judge(self) -> None:
        """A log that does not continue the published state is another log, not a wrong state: when the daemon starts,
        the follower and the first verification both look."""
        with self._standstill:
            is_anchored = self._follower.is_anchored()
        if not is_anchored:
            self._pause(_FOLLOWER_LOOKS_S)

    def _copy(self, job: _Job) -> PublishedCopy | None:
        with self._standstill:
            live = [fold for fold in self._follower.live if job.fold is None or fold.name == job.fold]
        if not live:
            return None
        with self._writer.snapshot() as snapshot:
            return copy_published(snapshot, live)

    def _is_still_published(self, copy: PublishedCopy) -> bool:
        """Whether the verified state still is the followed one; with the follower at rest."""
        if not set(copy.folds) <= set(self._follower.live):
            return False
        with self._writer.snapshot() as snapshot:
            return snapshot.lineage(list(copy.folds)) == copy.lineage

    def _count_verification(self, copy: PublishedCopy) -> None:
        """One of all folds, asked for or not, puts off the next periodic one."""
        if len(copy.folds) == len(self._follower.live):
            self._events_at_verification = self._status.events_folded

    def _act_on(self, report: VerifyReport, new_seals: Mapping[int, Seal], copy: PublishedCopy) -> None:
        with self._standstill:
            # Seals of a history that has ended meanwhile would be compared with the next one.
            if not self._is_still_published(copy):
                return
            self._count_verification(copy)
            if report.ok:
                self._writer.put_seals(new_seals)
            else:
                # Readers fold the log by themselves until the rebuild: exactness before speed.
                self._writer.void()
                self._follower.forget_live()
        if report.ok:
            self._status.verifications_passed += 1
            self._status.verified_as_of = report.as_of
            self._status.sealed_blocks = len(dict(enumerate(copy.seals)) | dict(new_seals))
            self._log.info("verified", as_of=report.as_of, events=report.events, sealed_blocks=report.sealed_blocks)
            self._on_verified()
            return
        self._status.verifications_failed += 1
        self._status.last_difference = report.difference
        self._status.failed(f"verification failed: {report.difference}")
        self._log.error("verification failed", as_of=report.as_of, difference=report.difference)
        self._on_other_log()
        self.rebuild(None, "verification failed")

    def _follow_purge(self, report: VerifyReport, copy: PublishedCopy) -> None:
        """The program whose log it is has removed its oldest rows, as some do every day: rebuild from the others.

        Nothing was wrong, so readers go on with the published state until the flip.
        """
        with self._standstill:
            if not self._is_still_published(copy):
                return
            self._count_verification(copy)
            self._writer.end_history()
            self._status.sealed_blocks = self._status.verified_as_of = 0
        self._log.warning("the log was purged", as_of=report.as_of, reason=report.difference)
        self._on_other_log()
        self.rebuild(None, "the log was purged")

    # Giving way.

    def _check(self) -> None:
        """Raise if the running job must end early."""
        if self._is_stopping:
            raise Stopped
        if self._is_periodic and self._due_job() is not None:
            raise _Preempted

    def _pause(self, seconds: float) -> None:
        """Sleep, unless something else is to be done."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_stopping or (self._is_periodic and self._due_job() is not None), seconds
            )
        self._check()

    def _keep_cpu_budget(self) -> None:
        """Keep a periodic verification within its share of one core, measured in this thread's own CPU time."""
        self._check()
        used_s = time.thread_time() - self._slice_began_s
        if self._is_periodic and used_s >= limits.VERIFY_SLICE_S:
            self._pause(used_s * (1.0 / self._settings.verify_cpu_budget - 1.0))
            self._slice_began_s = time.thread_time()


def _retry_after_s(failures: int) -> float:
    """How long to wait after a failure, given how many in a row came before it."""
    return min(_RETRY_S * 2.0 ** min(failures, 10), _RETRY_S_MAX)


def _answer(job: _Job, result: dict[str, Any] | None, error: str | None) -> None:
    for done in job.done:
        done(result, error)

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

from pmm_cached.follower import Follower
from pmm_cached.logs import Logger
from pmm_cached.rebuild import Rebuild
from pmm_cached.settings import Settings
from pmm_cached.status import Status
from pmm_shm import limits
from pmm_shm.errors import PmmShmError, StoreError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.engine import DECODE
from pmm_shm.ledger.connection import Connection
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.projection.verification import PublishedCopy, VerifyReport, copy_published, verify
from pmm_shm.store.environment import DamagedStoreError
from pmm_shm.store.layout import Seal
from pmm_shm.store.writer import StoreWriter

_FOLLOWER_LOOKS_S = 0.5
_WAIT_FOR_READERS_S = 0.1
_RETRY_S = 0.5
_STOPS = "the daemon stops"
Done = Callable[[dict[str, Any] | None, str | None], None]
"""Called with (result, None) or (None, error message)."""


class Stopped(Exception):
    """The daemon stops: abandon the running job."""


class _Preempted(Exception):
    """A requested job is waiting: abandon the periodic verification."""


@dataclass
class _Job:
    kind: str
    fold: str | None
    reason: str
    done: list[Done] = field(default_factory=list)


class Maintenance:
    """The background thread.

    Parameters:
        standstill: the lock under which the follower steps; held for the flip.
        on_flip: called after each flip.
        on_other_log: called when the log turns out not to be the published one: it was replaced or edited.
        on_death: called with the reason when the thread ends unexpectedly.
    """

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
        on_death: Callable[[str], None],
    ) -> None:
        self._path = path
        self._writer = writer
        self._follower = follower
        self._folds = {fold.name: fold for fold in folds}
        self._status = status
        self._settings = settings
        self._log = log
        self._standstill = standstill
        self._on_flip = on_flip
        self._on_other_log = on_other_log
        self._on_death = on_death
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._last_flip_txn = 0
        self._events_at_verification = -settings.verify_every_events
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Abandon running and waiting jobs, and wait for the thread. Returns whether it has ended."""
        with self._changed:
            self._is_stopping = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in left:
            _answer(job, None, _STOPS)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def knows(self, fold: str) -> bool:
        """Whether a fold of this name exists to verify or rebuild."""
        return fold in self._folds

    def rebuild(self, fold: str | None, reason: str, done: Done | None = None) -> None:
        """Rebuild one fold, or all; one that waits for its turn already serves both."""
        self._enqueue("rebuild", fold, reason, done)

    def end_history(self) -> None:
        """The log does not continue the published state: say so, follow nothing, and rebuild everything.

        The caller holds `standstill`.

        Raises:
            StoreError: it cannot be recorded.
        """
        newest = self._writer.header.position.as_of
        self._follower.forget_live()
        self._on_other_log()
        self._status.history_breaks += 1
        self._status.last_difference = (
            f"event {newest}, the newest that was folded, is gone or has changed; "
            "the ledger was replaced, cut or edited"
        )
        self._status.failed(f"history broken: {self._status.last_difference}")
        self._log.warning("history broken", difference=self._status.last_difference)
        # No seal is left: a periodic verification makes them anew, behind the rebuild.
        self._events_at_verification = self._status.events_folded - self._settings.verify_every_events
        self.rebuild(None, "the log does not continue what is published")

    def verify(self, fold: str | None, done: Done) -> None:
        """Verify one fold, or all, at full speed."""
        self._enqueue("verify", fold, "asked for", done)

    def events_published(self) -> None:
        """Tell that the follower has published: a periodic verification may be due."""
        if self._is_verification_due():
            with self._changed:
                self._changed.notify_all()

    def _enqueue(self, kind: str, fold: str | None, reason: str, done: Done | None) -> None:
        with self._changed:
            if self._is_stopping:
                if done is not None:
                    done(None, _STOPS)
                return
            for job in self._jobs:
                if (job.kind, job.fold) == (kind, fold):
                    break
            else:
                job = _Job(kind, fold, reason)
                self._jobs.append(job)
            if done is not None:
                job.done.append(done)
            self._changed.notify_all()

    def _is_verification_due(self) -> bool:
        every = self._settings.verify_every_events
        return every > 0 and self._status.events_folded - self._events_at_verification >= every

    def _run(self) -> None:
        try:
            self._tidy()
            while True:
                job = self._next()
                if job is None:
                    return
                self._attempt(job)
        except Stopped:
            return
        except BaseException as error:
            # Without this thread nothing is rebuilt or verified any more.
            self._log.exception("maintenance ended")
            self._on_death(f"maintenance ended: {type(error).__name__}: {error}")

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._is_stopping:
                if self._jobs:
                    return self._jobs.popleft()
                if self._is_verification_due() and self._status.is_published:
                    return _Job("periodic", None, "periodic")
                self._changed.wait()
        return None

    def _attempt(self, job: _Job) -> None:
        try:
            result = self._rebuild(job) if job.kind == "rebuild" else self._verify(job)
        except _Preempted:
            return
        except Stopped:
            _answer(job, None, _STOPS)
            raise
        except DamagedStoreError as error:
            _answer(job, None, str(error))
            self._writer.mark_damaged()
            raise
        except PmmShmError as error:
            self._log.error(f"{job.kind} failed", fold=job.fold, error=str(error))
            self._give_up(job, str(error))
            return
        except Exception as error:
            self._log.exception(f"{job.kind} failed", fold=job.fold)
            self._give_up(job, f"{type(error).__name__}: {error}")
            return
        if job.kind == "rebuild":
            self._status.rebuild_problem = None
        _answer(job, result, None)

    def _give_up(self, job: _Job, error: str) -> None:
        _answer(job, None, error)
        self._status.failed(f"{job.kind} failed: {error}")
        if job.kind == "rebuild":
            self._status.rebuild_problem = self._status.last_error
        self._pause(_RETRY_S)
        if job.kind == "rebuild":
            # The state to rebuild is wrong or missing: try again until it is there.
            self.rebuild(job.fold, job.reason)

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
            self._check_stop()

    def _rebuild(self, job: _Job) -> dict[str, Any]:
        names = [job.fold] if job.fold is not None else list(self._folds)
        self._status.rebuilding = [name for name in names if name != DECODE]
        self._log.info("rebuild begins", folds=names, reason=job.reason)
        started = time.monotonic()
        try:
            self._wait_for_old_readers()
            while not self._replayed_and_flipped([self._folds[name] for name in names]):
                self._check_stop()
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
        rebuild = Rebuild(self._path, self._writer, folds, self._check_stop)
        try:
            rebuild.run()
            with self._standstill:
                rebuild.finish(self._follower)
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
        if job.kind == "periodic":
            self._let_follower_judge()
        copy = self._copy(job)
        if copy is None:
            return VerifyReport(True, 0, (), 0, 0, None)._asdict()
        pace = _CpuBudget(self, self._settings.verify_cpu_budget if job.kind == "periodic" else 1.0)
        connection = Connection(self._path, "ro")
        try:
            report, new_seals = verify(connection, copy, pace)
        finally:
            connection.close()
        self._act_on(report, new_seals, copy, is_periodic=job.kind == "periodic")
        return report._replace(folds=tuple(name for name in report.folds if name != DECODE))._asdict()

    def _let_follower_judge(self) -> None:
        """A log that does not continue the published state is another log, not a wrong state: when the daemon starts,
        the follower and the first verification both look."""
        with self._standstill:
            is_anchored = self._follower.is_anchored()
        if not is_anchored:
            self.pause(_FOLLOWER_LOOKS_S, is_periodic=True)

    def _copy(self, job: _Job) -> PublishedCopy | None:
        with self._standstill:
            live = [fold for fold in self._follower.live if job.fold is None or fold.name == job.fold]
        if not live:
            return None
        with self._writer.environment.read() as transaction:
            return copy_published(self._writer.snapshot(transaction), live)

    def _is_still_published(self, copy: PublishedCopy) -> bool:
        """Whether the verified state still is the followed one; with the follower at rest."""
        if not set(copy.folds) <= set(self._follower.live):
            return False
        with self._writer.environment.read() as transaction:
            return self._writer.snapshot(transaction).lineage(list(copy.folds)) == copy.lineage

    def _act_on(
        self, report: VerifyReport, new_seals: Mapping[int, Seal], copy: PublishedCopy, *, is_periodic: bool
    ) -> None:
        with self._standstill:
            # Seals of a history that has ended meanwhile would be compared with the next one.
            if not self._is_still_published(copy):
                return
            if is_periodic:
                self._events_at_verification = self._status.events_folded
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
            return
        self._status.verifications_failed += 1
        self._status.last_difference = report.difference
        self._status.failed(f"verification failed: {report.difference}")
        self._log.error("verification failed", as_of=report.as_of, difference=report.difference)
        self._on_other_log()
        self.rebuild(None, "verification failed")

    # Giving way.

    def check(self, *, is_periodic: bool) -> None:
        """Raise if the job must end early."""
        self._check_stop()
        if is_periodic and self._jobs:
            raise _Preempted

    def pause(self, seconds: float, *, is_periodic: bool) -> None:
        """Sleep, unless something else is to be done."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or (is_periodic and bool(self._jobs)), seconds)
        self.check(is_periodic=is_periodic)

    def _pause(self, seconds: float) -> None:
        self.pause(seconds, is_periodic=False)

    def _check_stop(self) -> None:
        if self._is_stopping:
            raise Stopped


class _CpuBudget:
    """Keeps a verification within its share of one core, measured in this thread's own CPU time."""

    def __init__(self, maintenance: Maintenance, budget: float) -> None:
        self._maintenance = maintenance
        self._budget = budget
        self._is_periodic = budget < 1.0
        self._cpu_s = time.thread_time()

    def __call__(self) -> None:
        self._maintenance.check(is_periodic=self._is_periodic)
        used_s = time.thread_time() - self._cpu_s
        if self._is_periodic and used_s >= limits.VERIFY_SLICE_S:
            self._maintenance.pause(used_s * (1.0 / self._budget - 1.0), is_periodic=True)
            self._cpu_s = time.thread_time()


def _answer(job: _Job, result: dict[str, Any] | None, error: str | None) -> None:
    for done in job.done:
        done(result, error)

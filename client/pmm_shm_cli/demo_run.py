"""What `pmm-shm demo` does: a ledger, a daemon that is killed and started again, workers, and the comparison.

Invariant: no process outlives the run, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_high
from typing import Any

from pmm_shm.errors import DaemonError, DaemonTimeoutError, PmmShmError
from pmm_shm.folds.self_model import MAX_TRAIT_DELTA
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.recovery import ledger_head, open_recovered
from pmm_shm.wire import protocol
from pmm_shm_cli import synthetic
from pmm_shm_client import commands
from pmm_shm_client.autostart import is_running, last_line, spawn_daemon
from pmm_shm_client.cache import Cache
from pmm_shm_client.reads import Consistency
from pmm_shm_client.replaying import replayed
from pmm_shm_terminal.answer_names import NAMES
from pmm_shm_terminal.answers import answer_of_cache, answer_of_replay, folds_for

INITIAL_EVENTS = 20_000
KILL_AT, RESTART_AT = 0.35, 0.65
"""Shares of the run at which the daemon is killed and started again."""

WISH = "My sister's birthday is on 14 June. Please remind me."
PROMISE = "remind Lena of her sister's birthday on 14 June"
_CID = "birthday"
_ASK = """
import sys
from pmm_shm_client import connect
with connect(sys.argv[1]) as cache:
    frame = cache.frame()
print(frame.identity().name)
print(frame.commitments().open[sys.argv[2]]["text"])
"""
_ASK_S = 20.0
_DAEMON_STARTS_S = 15.0
_WORKERS_START_S = 30.0
_WORKERS_END_S = 10.0
_STATS_EVERY_S = 0.2
_STATS_TIMEOUT_S = 0.5


@dataclass
class WorkerProcess:
    """One worker process, and its newest report, which a thread keeps up to date."""

    process: subprocess.Popen[str]
    report: dict[str, Any]

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.report = json.loads(line)


@dataclass
class Picture:
    """The content of the view; the run writes it, the view reads it."""

    seconds: float
    workers: list[WorkerProcess] = field(default_factory=list)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    elapsed_s: float = 0.0
    daemon_state: str = "not started"
    daemon_pid: int | None = None
    published: int = 0
    daemon_lag: int = 0

    def total(self, name: str) -> int:
        """Sum of a number over the workers' newest reports."""
        return sum(int(worker.report[name]) for worker in self.workers)

    @property
    def head(self) -> int:
        """The newest event that any worker has seen."""
        return max([self.published, *(int(worker.report["as_of"]) for worker in self.workers)])

    @property
    def lag(self) -> int:
        """Unpublished events: by the daemon's count, or since its last publication if it is gone."""
        return self.daemon_lag if self.daemon_state == "running" else max(0, self.head - self.published)

    @property
    def hit_rate(self) -> float:
        reads = self.total("reads")
        return self.total("hits") / reads if reads else 0.0


@dataclass(frozen=True)
class DemoCheck:
    """One promise, and whether it was kept."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class DemoOutcome:
    """How the demo ended; `numbers` are plain values."""

    checks: list[DemoCheck]
    numbers: dict[str, Any]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


class Run:
    """One demo in one directory.

    Parameters:
        on_event: called with each line of the timeline.
        on_tick: called about ten times a second with the picture.
    """

    def __init__(
        self,
        directory: Path,
        workers: int,
        seconds: float,
        on_event: Callable[[float, str], None],
        on_tick: Callable[[Picture], None],
    ) -> None:
        self.picture = Picture(seconds)
        self.ledger = str(directory / "demo.db")
        self._instance = Instance.of(self.ledger)
        self._worker_count = workers
        self._on_event = on_event
        self._on_tick = on_tick
        self._log = directory / "demo-daemon.log"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._start_s = time.monotonic()
        self._next_stats_s = 0.0
        self._restarted_s: float | None = None
        self._numbers: dict[str, Any] = {}
        self._name: str | None = None
        self._appended = 0
        self._remembered: list[bool] = []

    def run(self) -> DemoOutcome:
        """The whole demo.

        Raises:
            PmmShmError: it could not be carried out.
        """
        try:
            synthetic.generate(self.ledger, INITIAL_EVENTS, seed=1, profile="agent")
            self._say(f"the life of an agent: {INITIAL_EVENTS:,} events")
            self._start_daemon()
            self._wait_for_daemon()
            self._say(f"the daemon serves it (pid {self.picture.daemon_pid})")
            self._tell()
            self._start_workers()
            self._wait_for_workers()
            self._say(f"{self._worker_count} workers append and read at once")
            self._work()
            self._stop_workers()
            self._wait_for_daemon()
            return self._compare()
        finally:
            self._kill_all()

    # The middle of it.

    def _work(self) -> None:
        start, seconds = time.monotonic(), self.picture.seconds
        is_killed = is_restarted = False
        reads_at_kill = appends_at_kill = 0
        # A busy machine may need longer than the whole run for what comes between the two.
        while (now := time.monotonic() - start) < seconds or not is_restarted:
            if not is_killed and now >= KILL_AT * seconds:
                is_killed = True
                reads_at_kill, appends_at_kill = self.picture.total("reads"), self.picture.total("appends")
                self._kill_daemon()
                self._say("the daemon was killed (SIGKILL); appends and reads go on, and stay exact")
                self._ask("a new process, without a daemon")
            if not is_restarted and now >= RESTART_AT * seconds:
                is_restarted = True
                reads = self.picture.total("reads") - reads_at_kill
                appends = self.picture.total("appends") - appends_at_kill
                self._numbers |= {"reads_without_daemon": reads, "appends_without_daemon": appends}
                self._say(f"{reads:,} reads and {appends:,} appends without a daemon; starting it again")
                self._start_daemon()
                self._restarted_s = time.monotonic()
            self._look()
            time.sleep(0.1)
        self._numbers["work_seconds"] = round(time.monotonic() - start, 3)

    def _look(self) -> None:
        """Refresh the picture."""
        self.picture.elapsed_s = time.monotonic() - self._start_s
        for number, worker in enumerate(self.picture.workers):
            if worker.process.poll() not in (None, 0):
                raise PmmShmError(f"worker {number} ended with exit code {worker.process.returncode}")
        if self._daemon is not None:
            if self._daemon.poll() is not None:
                raise PmmShmError(f"the daemon ended by itself: {last_line(self._log)}")
            if time.monotonic() >= self._next_stats_s:
                self._next_stats_s = time.monotonic() + _STATS_EVERY_S
                self._look_at_daemon()
        self._on_tick(self.picture)

    def _look_at_daemon(self) -> None:
        head = self.picture.head
        try:
            numbers = commands.call(self._instance, protocol.STATS, {}, _STATS_TIMEOUT_S)
        except DaemonError:
            return
        self.picture.daemon_state = "running"
        self.picture.published, self.picture.daemon_lag = numbers["as_of"], numbers["lag_events"]
        if self._restarted_s is not None and numbers["is_published"] and numbers["as_of"] >= head:
            seconds = time.monotonic() - self._restarted_s
            self._restarted_s = None
            self._numbers["caught_up_seconds"] = round(seconds, 3)
            self._say(f"the daemon is back (pid {self.picture.daemon_pid}) and caught up within {seconds:.1f} s")
            self._ask("a new process, beside the daemon")

    # What the agent remembers.

    def _tell(self) -> None:
        """One more exchange, whose promise is asked for later."""
        with Cache(self.ledger) as cache:
            self._name = cache.identity().name
            self._appended = len(
                cache.append_many(
                    [
                        ("user", WISH, {"channel": "demo"}),
                        ("response", "I will.", {"channel": "demo"}),
                        (
                            "commitment_open",
                            f"COMMIT: {PROMISE}",
                            {"cid": _CID, "source": "assistant", "text": PROMISE},
                        ),
                    ]
                )
            )
        self._say(f'Lena: "{WISH}" {self._name}: "I will."')

    def _ask(self, where: str) -> None:
        """The agent's name and promises, as a new process reads them."""
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, self.ledger, _CID],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
        self._remembered.append(asked.stdout == f"{self._name}\n{PROMISE}\n")
        name, promise = ([*asked.stdout.splitlines(), "?", "?"])[:2]
        self._say(f'{where}: "I am {name}. I promised to {promise}."')

    def _check_memory(self) -> DemoCheck:
        ok = len(self._remembered) >= 1 and all(self._remembered)
        return DemoCheck(
            "the agent remembers over the kill",
            ok,
            f"name and promise asked {len(self._remembered)} times, in new processes",
        )

    # Processes.

    def _start_daemon(self) -> None:
        self._daemon = spawn_daemon(self.ledger, self._log, "--log-format", "json")
        self.picture.daemon_pid = self._daemon.pid
        self.picture.daemon_state = "starting"

    def _wait_for_daemon(self) -> None:
        deadline = time.monotonic() + _DAEMON_STARTS_S
        while not is_running(self._instance, 0.5):
            if time.monotonic() >= deadline:
                raise DaemonTimeoutError(f"the daemon did not start: {last_line(self._log)}")
            self._look()
            time.sleep(0.05)
        self._look_at_daemon()

    def _kill_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None
        self.picture.daemon_state = "killed"

    def _start_workers(self) -> None:
        for number in range(self._worker_count):
            process = subprocess.Popen(
                [sys.executable, "-m", "pmm_shm_cli.demo_worker", self.ledger, str(1_000 + number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Only the demo receives Ctrl-C; it then ends its children in order.
                start_new_session=True,
            )
            none = {"appends": 0, "reads": 0, "hits": 0, "as_of": 0, "p50_us": 0.0, "p99_us": 0.0, "violations": []}
            self.picture.workers.append(WorkerProcess(process, {**none, "is_final": False}))

    def _wait_for_workers(self) -> None:
        """Wait until the workers run: the demo does not measure the start of Python."""
        deadline = time.monotonic() + _WORKERS_START_S
        while not all(worker.report["reads"] for worker in self.picture.workers):
            if time.monotonic() >= deadline:
                raise PmmShmError(f"not all workers were at work within {_WORKERS_START_S:g} s")
            self._look()
            time.sleep(0.05)

    def _stop_workers(self) -> None:
        """Let every worker finish its turn and report."""
        for worker in self.picture.workers:
            assert worker.process.stdin is not None
            worker.process.stdin.close()
        deadline = time.monotonic() + _WORKERS_END_S
        for worker in self.picture.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.reader.join(1.0)
        self._say("the workers have stopped")

    def _kill_all(self) -> None:
        for worker in self.picture.workers:
            worker.process.kill()
            worker.process.wait()
            for pipe in (worker.process.stdin, worker.process.stdout):
                with contextlib.suppress(OSError, ValueError):
                    if pipe is not None:
                        pipe.close()
        self._kill_daemon()

    # The end of it.

    def _compare(self) -> DemoOutcome:
        picture = self.picture
        self._say("comparing every answer with a full replay")
        checks = [self._check_memory(), self._check_workers(), self._check_count()]
        with Cache(self.ledger) as cache:
            checks.append(self._check_published(cache))
            for consistency in ("exact", "snapshot"):
                checks += self._check_answers(cache, consistency)
            report = cache.verify()
            detail = report.difference or f"{report.events:,} events replayed by the daemon"
            checks.append(DemoCheck("the daemon's own verification", report.ok, detail))
        with EventLog(self.ledger, create=False) as log:
            chain = log.verify_chain()
        detail = chain.problem or f"{chain.rows_checked:,} rows"
        checks.append(DemoCheck("the hash chain is linear", chain.ok, detail))
        seconds = self._numbers.get("work_seconds") or 1.0
        reads = picture.total("reads")
        return DemoOutcome(
            checks,
            {
                "ledger": self.ledger,
                "workers": self._worker_count,
                "events": INITIAL_EVENTS + self._appended + picture.total("appends"),
                "appends": picture.total("appends"),
                "reads": reads,
                "hits": picture.total("hits"),
                "hit_rate": picture.hit_rate,
                "reads_per_second": round(reads / seconds),
                "appends_per_second": round(picture.total("appends") / seconds),
                "read_p50_us": round(median_high(worker.report["p50_us"] for worker in picture.workers), 3),
                "read_p99_us": round(median_high(worker.report["p99_us"] for worker in picture.workers), 3),
                **self._numbers,
            },
        )

    def _check_workers(self) -> DemoCheck:
        broken = [
            f"worker {number}: {text}"
            for number, worker in enumerate(self.picture.workers)
            for text in worker.report["violations"] or ([] if worker.report["is_final"] else ["did not finish"])
        ]
        detail = broken[0] if broken else f"{self.picture.total('reads'):,} reads checked"
        return DemoCheck("reads never go back, own appends are seen at once", not broken, detail)

    def _check_count(self) -> DemoCheck:
        with contextlib.closing(open_recovered(self.ledger, 10.0)) as connection, connection.lock:
            handle = connection.handle()
            count = connection.retry(lambda: handle.execute("SELECT count(*) FROM events").fetchall())[0][0]
        appends = self.picture.total("appends") + self._appended
        return DemoCheck(
            "no append was lost",
            count == INITIAL_EVENTS + appends,
            f"{count:,} events are {INITIAL_EVENTS:,} and {appends:,} appended",
        )

    def _check_published(self, cache: Cache) -> DemoCheck:
        head = ledger_head(self.ledger, 10.0)
        try:
            published = cache.wait_for(head, timeout=10.0)
        except DaemonError as error:
            return DemoCheck("the daemon has published everything", False, str(error))
        self.picture.published = published
        return DemoCheck("the daemon has published everything", published >= head, f"as of event {published:,}")

    def _check_answers(self, cache: Cache, consistency: Consistency) -> list[DemoCheck]:
        with contextlib.closing(open_recovered(self.ledger, 10.0)) as connection:
            reading = replayed(connection, folds_for("frame", None))
        names = [name for name in NAMES if name != "frame"]
        wrong = [
            name
            for name in names
            if answer_of_cache(name, cache, consistency, False, MAX_TRAIT_DELTA) != answer_of_replay(name, reading)
        ]
        title = "exact reads equal a full replay" if consistency == "exact" else "the snapshot equals a full replay"
        detail = f"{', '.join(wrong)} differ" if wrong else f"{len(names)} answers at event {reading.as_of:,}"
        return [DemoCheck(title, not wrong, detail)]

    def _say(self, text: str) -> None:
        at_s = time.monotonic() - self._start_s
        self.picture.elapsed_s = at_s
        self.picture.timeline.append((at_s, text))
        self._on_event(at_s, text)
        self._on_tick(self.picture)

"""Kill loops: four writers, readers, lease holders and a daemon on one ledger, killed and stopped at random moments.

    python -m tests.chaos --seed S --seconds T --daemon-kills 300 --client-kills 200 --stops 20

A run draws its plan from the seed (`chaos_plan`), and checks the promises while it goes and when all is quiet
(`chaos_checks`). It ends in order when its time is over, and says how much of the plan it did. `docs/RELIABILITY.md`
has the figures of the last full run.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.store import boot
from pmm_shm.wire import protocol
from pmm_shm_cli.synthetic import generate
from pmm_shm_client import connect
from pmm_shm_client.commands import call
from tests.chaos import checks as chaos_checks
from tests.chaos.plan import CLIENTS, WRITERS, Act, digest, draw
from tests.chaos.report import Report, Wanted, as_text
from tests.chaos.work import (
    EMBEDDED,
    FINISH,
    QUIET,
    ROLLED_BACK,
    TOKEN,
    Order,
    Progress,
    acknowledged,
    holder_embedder,
    run,
    text_of,
    vector_of,
)
from tests.support import daemons, search_oracle
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon
from tests.support.forking import server

_FIRST_EVENTS = 2_000
_STUCK_S = 20.0
_SAID_CHARS_MAX = 4_000
_PROGRESS_LINE_S = 10.0
_MEMORY_MAX_BYTES = 512 << 20


class ChaosFailure(AssertionError):
    """A promise was broken; the message says how to run it again."""


@dataclass
class _Life:
    """One daemon process, and what it found when it was started.

    Attributes:
        position: the newest event that was published before it; None where nothing usable was.
        head: the ledger's newest event when it was started.
    """

    process: ForkedDaemon
    position: int | None
    store: tuple[int, int] | None
    head: int
    began: float
    is_up: bool = False


class Chaos:
    """One run, in a folder of its own."""

    def __init__(self, wanted: Wanted, folder: str, out: TextIO) -> None:
        self.wanted, self.folder, self.out = wanted, folder, out
        self.ledger = str(Path(folder, "ledger.db"))
        self.instance = Instance.of(self.ledger)
        self.plan = draw(wanted.seed, wanted.daemon_kills, wanted.client_kills, wanted.stops)
        self.report = Report(wanted.seed, wanted.journal, digest(self.plan))
        self.report.asked = dict(Counter(act.kind for act in self.plan))
        self.log = str(Path(folder, "daemon.log"))
        self._done: Counter[str] = Counter()
        self._clients: dict[str, ForkServerProcess] = {}
        self._incarnations: Counter[str] = Counter()
        self._resumes: list[tuple[float, str]] = []
        self._catch_ups_ms: list[float] = []
        self._now = "the start"
        self._next_line = 0.0
        self._life: _Life

    def run(self) -> Report:
        """Do what the plan says, as long as there is time; then check everything.

        Raises:
            ChaosFailure: a promise was broken.
        """
        self._began = time.monotonic()
        print(
            f"chaos: seed {self.wanted.seed}, plan {self.report.plan}, {self.wanted.journal}", file=self.out, flush=True
        )
        try:
            generate(self.ledger, _FIRST_EVENTS, self.wanted.seed, self.wanted.journal)  # type: ignore[arg-type]
            self.progress = Progress(self.folder)
            with connect(self.ledger) as self.cache:
                self._start_daemon()
                for name in CLIENTS:
                    self._start_client(name)
                self._come_up()
                self._until(lambda: all(self.progress.of(name)[0] for name in CLIENTS), "all clients to begin")
                self._acts_began = time.monotonic()
                self._act_all()
                self._end()
        except (Exception, KeyboardInterrupt) as error:
            raise ChaosFailure(self._failure_text(error)) from error
        finally:
            self._kill_everything()
        self.report.elapsed_s = time.monotonic() - self._began
        return self.report

    def _act_all(self) -> None:
        for number, act in enumerate(self.plan):
            self._now = f"act {number} of {len(self.plan)} ({act})"
            if self._is_over():
                break
            getattr(self, "_" + act.kind.replace(" ", "_"))(act)
            self._done[act.kind] += 1
            self._say()
        else:
            self.report.is_whole = True
        self.report.acts = dict(sorted(self._done.items()))
        if self.wanted.must_finish:
            assert self.report.is_whole, f"only {self.report.acts} of {self.report.asked} within the time"

    def _is_over(self) -> bool:
        return time.monotonic() - self._acts_began >= self.wanted.seconds

    def _wait(self, seconds: float) -> None:
        """Pass time; who has stood long enough goes on, and nobody has failed."""
        deadline = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            while self._resumes and self._resumes[0][0] <= now:
                self._go_on(heapq.heappop(self._resumes)[1])
            self._check_clients()
            if now >= deadline:
                return
            time.sleep(max(0.0, min(0.02, deadline - now)))

    def _until(self, condition: Callable[[], bool], what: str, deadline_s: float = _STUCK_S) -> None:
        def looked() -> bool:
            self._wait(0.0)
            return condition()

        until(looked, what, deadline_s)

    # Clients.

    def _start_client(self, name: str) -> None:
        incarnation = self._incarnations[name]
        self._incarnations[name] += 1
        done = self.progress.of(name)[0]
        if name in WRITERS:
            done = sum(path.read_bytes().count(b"\n") for path in Path(self.folder).glob(f"{name}.*.acks"))
        order = Order(self.ledger, self.folder, name, incarnation, self.wanted.seed, done, self.wanted.journal)
        process = server.Process(target=run, args=(order,), daemon=True)
        process.start()
        self._clients[name] = process

    def _kill_client(self, act: Act) -> None:
        self._wait(act.after_s)
        process = self._clients[act.victim]
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL, f"{act.victim} ended with {process.exitcode} before it was killed"
        self._resumes = [one for one in self._resumes if one[1] != act.victim]
        heapq.heapify(self._resumes)
        self._start_client(act.victim)

    def _stop_client(self, act: Act) -> None:
        self._wait(act.after_s)
        if all(name != act.victim for _, name in self._resumes):
            os.kill(self._pid(act.victim), signal.SIGSTOP)
            heapq.heappush(self._resumes, (time.monotonic() + act.seconds, act.victim))

    def _go_on(self, name: str) -> None:
        os.kill(self._pid(name), signal.SIGCONT)

    def _pid(self, name: str) -> int:
        pid = self._clients[name].pid
        assert pid is not None
        return pid

    def _check_clients(self) -> None:
        for name, process in self._clients.items():
            if not process.is_alive() and process.exitcode != 0:
                raise AssertionError(f"{name} failed with {process.exitcode}")

    def _failures(self) -> str:
        """What failed clients said: their tracebacks, and what any client wrote to its standard error."""
        paths = (path for suffix in ("failure", "stderr") for path in sorted(Path(self.folder).glob(f"*.{suffix}")))
        said = ((path.name, path.read_text(encoding="utf-8", errors="replace")) for path in paths)
        return "\n".join(f"{name}: {text.rstrip()[-_SAID_CHARS_MAX:]}" for name, text in said if text.strip())

    # The daemon.

    def _start_daemon(self) -> None:
        head = chaos_checks.count(self.ledger, "SELECT coalesce(max(id), 0) FROM events")
        position, store = None, None
        if boot.is_openable(self.instance.boot_file):
            position = chaos_checks.published_id(self.cache)
            store = _file_id(self.instance.data_file)
        # Read before it is started: from then on what is published moves.
        began = time.monotonic()
        process = ForkedDaemon(Path(self.ledger), "--log-format", "json", waits=False, log=self.log)
        self._life = _Life(process, position, store, head, began)

    def _come_up(self) -> None:
        """Until the daemon has published what the head was at its start; then see what that cost it."""
        life = self._life
        if life.is_up:
            return
        self._until(lambda: self._has_published(life.head), f"a restarted daemon to publish event {life.head}")
        elapsed_ms = (time.monotonic() - life.began) * 1_000
        life.is_up = True
        stats = self._call(protocol.STATS)
        head = chaos_checks.count(self.ledger, "SELECT coalesce(max(id), 0) FROM events")
        is_first = not self._catch_ups_ms
        self._catch_ups_ms.append(elapsed_ms)
        if is_first:
            return
        self.report.restarts += 1
        if life.position is None:
            self.report.made_anew += 1
            self.report.anew_max_ms = max(self.report.anew_max_ms, elapsed_ms)
        else:
            missed = chaos_checks.count(
                self.ledger, "SELECT count(*) FROM events WHERE id > ? AND id <= ?", life.position, head
            )
            self._check_bounded(life, stats, missed)
        self._note_memory()
        if self.report.restarts % self.wanted.check_every == 0:
            self._check_live()

    def _check_bounded(self, life: _Life, stats: dict[str, Any], missed: int) -> None:
        """A restarted daemon folds what was missed, and nothing anew."""
        report, folded = self.report, int(stats["events_folded"])
        assert _file_id(self.instance.data_file) == life.store, "a good store was made anew"
        assert stats["rebuilds"] == 0, f"{stats['rebuilds']} rebuilds, though event {life.position} was published"
        assert not stats["rebuilding"], (
            f"a rebuild of {stats['rebuilding']}, though event {life.position} was published"
        )
        assert folded <= missed, f"{folded} events folded after a restart, and {missed} were missed"
        report.missed, report.folded = report.missed + missed, report.folded + folded
        report.most_missed = max(report.most_missed, missed)
        report.most_folded = max(report.most_folded, folded)

    def _has_published(self, event_id: int) -> bool:
        if not self._life.process.is_alive:
            raise AssertionError(f"the daemon ended by itself:\n{self._log_tail()}")
        try:
            return bool(self._call(protocol.WAIT, {"event_id": event_id, "timeout_ms": 500}, 1.0)["reached"])
        except DaemonError:
            return False

    def _call(self, command: str, args: dict[str, Any] | None = None, timeout_s: float = _STUCK_S) -> Any:
        return call(self.instance, command, args or {}, timeout_s)

    def _kill_daemon(self, act: Act) -> None:
        if act.moment != "starting":
            self._come_up()
        if act.moment in ("rebuilding", "verifying"):
            command = protocol.INVALIDATE if act.moment == "rebuilding" else protocol.VERIFY
            with contextlib.suppress(DaemonError):
                # It begins, and nobody waits for it.
                self._call(command, {"fold": None}, 0.005)
        self._wait(act.after_s)
        assert self._life.process.is_alive, f"the daemon ended by itself:\n{self._log_tail()}"
        self._life.process.kill()
        self._done[f"kill daemon, {act.moment}"] += 1
        self._wait(act.seconds)
        self._start_daemon()

    def _stop_daemon(self, act: Act) -> None:
        """While it stands, those who write and read go on, exactly."""
        self._wait(act.after_s)
        self._come_up()
        pid = self._life.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            before = {name: self.progress.of(name)[0] for name in (*WRITERS, "reader-0", "reader-1", "prober-0")}
            self._wait(act.seconds)
            self._until(
                lambda: all(
                    self._is_stopped(name) or self.progress.of(name)[0] > done for name, done in before.items()
                ),
                "writers and readers to go on while the daemon stands",
            )
            head = chaos_checks.count(self.ledger, "SELECT coalesce(max(id), 0) FROM events")
            seen = self.cache.metrics().as_of
            assert seen >= head, f"the ledger had event {head}, and an exact read stands at {seen}"
        finally:
            os.kill(pid, signal.SIGCONT)

    def _is_stopped(self, name: str) -> bool:
        return any(one == name for _, one in self._resumes)

    def _note_memory(self) -> None:
        used = chaos_checks.memory_bytes(self._life.process.pid)
        self.report.daemon_memory_end_mib = used / (1 << 20)
        self.report.daemon_memory_most_mib = max(self.report.daemon_memory_most_mib, used / (1 << 20))
        assert used < _MEMORY_MAX_BYTES, f"the daemon has {used} bytes in memory"

    # The promises.

    def _check_live(self) -> None:
        """While the others go on: what is published and what is read equal cold replays, and no slot is leaked."""
        chaos_checks.check_exact(self.cache)
        chaos_checks.check_published(self.cache)
        report = self._call(protocol.VERIFY, {"fold": None}, 60.0)
        assert report["ok"], f"the daemon's own verification: {report['difference']}"
        self._check_slots()
        self.report.live_checks += 1

    def _check_slots(self) -> int:
        # To answer, the daemon looks for dead readers first.
        self._call(protocol.STATS)
        found = chaos_checks.check_slots(self.cache, self._life.process.pid)
        self.report.slots_most = max(self.report.slots_most, found)
        return found

    def _end(self) -> None:
        """Bring everything to rest, and check every promise once more."""
        self._now = "the end"
        self._until(lambda: not self._resumes, "the stopped ones go on")
        self._come_up()
        Path(self.folder, QUIET).touch()
        self._until(lambda: all(self._file(name, "quiet").exists() for name in CLIENTS), "all clients to be quiet")
        head = chaos_checks.count(self.ledger, "SELECT coalesce(max(id), 0) FROM events")
        self._until(lambda: self._has_published(head), f"the daemon to publish event {head}")
        assert chaos_checks.check_published(self.cache) == head
        Path(self.folder, FINISH).touch()
        self._until(lambda: not any(one.is_alive() for one in self._clients.values()), "the clients to end")
        self._wait(0.0)
        readers = [name for name in CLIENTS if not name.startswith("foreign")]
        ends = {name: json.loads(self._file(name, "end").read_text(encoding="utf-8")) for name in readers}
        chaos_checks.check_all_equal(self.cache, ends)
        self._check_ledger(head)
        self._check_embeddings()
        self._check_rebuilt(head)
        self._note_memory()
        self.report.slots_at_end = self._check_slots()
        self.report.store_mib = chaos_checks.store_bytes(self.ledger) / (1 << 20)
        self._summarise()
        assert self._life.process.stop() == 0, f"the daemon does not end in order:\n{self._log_tail()}"

    def _file(self, name: str, suffix: str) -> Path:
        return Path(self.folder, f"{name}.{self._incarnations[name] - 1}.{suffix}")

    def _check_ledger(self, head: int) -> None:
        report = self.report
        report.events = head
        report.acknowledged = chaos_checks.check_events(self.ledger, acknowledged(self.folder), TOKEN, ROLLED_BACK)
        report.unhashed = chaos_checks.check_chain(self.ledger)
        foreign = chaos_checks.count(
            self.ledger, f'SELECT count(*) FROM events WHERE meta LIKE \'%"{TOKEN}": "foreign-%\''
        )
        assert report.unhashed == foreign, f"{report.unhashed} rows without a hash, {foreign} of the foreign writer"

    def _check_embeddings(self) -> None:
        report = self.report
        report.texts = max(self.progress.of(name)[0] for name in CLIENTS if name.startswith("holder"))
        texts = [text_of(number) for number in range(report.texts)]
        embedder = holder_embedder(self.folder, lambda: 0.0)
        report.texts_computed = Path(self.folder, EMBEDDED).stat().st_size
        report.texts_shared = chaos_checks.check_vectors(self.ledger, embedder, texts, vector_of)
        self._call(protocol.INDEX, {}, 120.0)
        vectors = search_oracle.expected(self.ledger)
        for query in ("Could you plan the garden?", "message holder", "tides"):
            search_oracle.check_hits(self.cache.search(query, 10), vectors, query, 10)

    def _check_rebuilt(self, head: int) -> None:
        """A rebuild over everything that was killed in the middle: the same state, and nothing left of the old."""
        before = chaos_checks.published(self.cache)
        assert before is not None
        assert self._call(protocol.INVALIDATE, {"fold": None}, 120.0)["as_of"] == head
        after = chaos_checks.published(self.cache)
        assert after is not None
        assert after.position == before.position
        digests = [{name: entries.digest for name, entries in copy.entries.items()} for copy in (before, after)]
        assert digests[1] == digests[0]
        self._until(
            lambda: len(set(chaos_checks.generations(self.cache))) == 1, "the daemon to delete all old generations"
        )
        assert self._call(protocol.VERIFY, {"fold": None}, 120.0)["ok"]

    def _summarise(self) -> None:
        report, times = self.report, sorted(self._catch_ups_ms[1:])
        if times:
            report.catch_up_p50_ms = statistics.median(times)
            report.catch_up_p99_ms = times[int(len(times) * 0.99)]
            report.catch_up_max_ms = times[-1]
        for name in CLIENTS:
            done, longest_us = self.progress.of(name)
            role = name.partition("-")[0]
            report.steps[role] = report.steps.get(role, 0) + done
            report.longest_step_ms[role] = max(report.longest_step_ms.get(role, 0.0), longest_us / 1_000)

    # Around it.

    def _say(self) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + _PROGRESS_LINE_S
            head = chaos_checks.count(self.ledger, "SELECT coalesce(max(id), 0) FROM events")
            print(
                f"chaos: {now - self._began:5.0f} s, {self._now}, {head} events, {self.report.restarts} restarts",
                file=self.out,
                flush=True,
            )

    def _failure_text(self, error: BaseException) -> str:
        return (
            f"seed {self.wanted.seed} failed at {self._now} after {time.monotonic() - self._began:.0f} s: "
            f"{type(error).__name__}: {error}\n{self._failures()}\n"
            f"run it again: {self.wanted.command()}\nwhat is left of it: {self.folder}"
        )

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(Path(self.log).read_text(encoding="utf-8").splitlines()[-20:])
        return ""

    def _kill_everything(self) -> None:
        for process in self._clients.values():
            process.kill()
            process.join(10)
        life = getattr(self, "_life", None)
        if life is not None and life.process.is_alive:
            life.process.kill()


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A folder that stays where something went wrong."""
    folder = tempfile.mkdtemp(prefix="pmm-shm-chaos-")
    yield folder
    shutil.rmtree(folder)


def chaos(wanted: Wanted, out: TextIO = sys.stderr) -> Report:
    """One run.

    Raises:
        ChaosFailure: a promise was broken.
    """
    # Processes that start in milliseconds, each with one thread for numpy.
    os.environ.update(daemons.environment(OPENBLAS_NUM_THREADS="1"))
    server.set_forkserver_preload(
        ["pmm_cached.main", "tests.chaos.work", "pmm_shm_client.embeddings", "pmm_shm_client.searching"]
    )
    with _folder() as folder:
        return Chaos(wanted, folder, out).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="of the plan; a new one, which is printed, unless given")
    parser.add_argument(
        "--seconds", type=float, default=Wanted.seconds, help="from when all work until it begins to end"
    )
    parser.add_argument("--daemon-kills", type=int, default=Wanted.daemon_kills)
    parser.add_argument("--client-kills", type=int, default=Wanted.client_kills)
    parser.add_argument("--stops", type=int, default=Wanted.stops, help="half of them are the daemon's")
    parser.add_argument("--journal", choices=("wal", "delete"), default="wal")
    parser.add_argument("--check-every", type=int, default=Wanted.check_every, metavar="RESTARTS")
    parser.add_argument("--must-finish", action="store_true", help="fail where there was no time for all of it")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    arguments = vars(parser.parse_args())
    is_json = arguments.pop("json")
    if arguments["seed"] is None:
        arguments["seed"] = random.SystemRandom().randrange(1 << 32)
    wanted = Wanted(**arguments)
    if wanted.journal == "delete" and wanted.stops:
        parser.error("--stops: a process that stands within a statement keeps a rollback-journal ledger's writers out")
    try:
        report = chaos(wanted)
    except ChaosFailure as failure:
        sys.exit(f"chaos: {failure}")
    print(json.dumps(asdict(report)) if is_json else as_text(report))


if __name__ == "__main__":
    main()

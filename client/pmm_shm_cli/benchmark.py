"""Compares the speed of the same answers with caches and without.

Without caches every answer is a full replay of the folds that it needs, as `PMM_USE_PROJECTION_CACHE=false` and
`PMM_USE_METRICS_CACHE=false` have it. Nothing is timed before both sides have given the same answers.

Invariant: the ledger itself is only read; what is measured is a copy.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pmm_shm.errors import DaemonTimeoutError, PmmShmError
from pmm_shm.instance.paths import Instance, real_path
from pmm_shm.ledger.backup import backup
from pmm_shm.ledger.files import bytes_of
from pmm_shm.ledger.new_events import EventInput
from pmm_shm_cli.environment import changed_environment
from pmm_shm_cli.timing import Ratio, RoundTimer, Timing, interleaved, ratio
from pmm_shm_client.autostart import is_running, last_line, spawn_daemon
from pmm_shm_client.cache import Cache
from pmm_shm_client.frame import Frame
from pmm_shm_terminal.spectator import SpectatorCache

ON, OFF = "caches on", "caches off"
_FLAGS = ("PMM_USE_PROJECTION_CACHE", "PMM_USE_METRICS_CACHE")
_ROUNDS_MAX, _CALLS = 30, 2_000
_BUILD_S = 3_600.0
_VIEWS = ("metrics", "identity", "commitments")
Say = Callable[[str], None]


class WrongAnswerError(PmmShmError):
    """The two sides of a comparison gave different answers, so timing them is pointless."""


@dataclass(frozen=True)
class Comparison:
    """The timing of one answer, with caches and without."""

    what: str
    on: Timing
    off: Timing

    @property
    def times_faster(self) -> Ratio:
        return ratio(self.off, self.on)


class BenchmarkReport(NamedTuple):
    """The measurements of one ledger."""

    events: int
    open_commitments: int
    comparisons: list[Comparison]
    replay: Timing


def run(ledger: str, directory: Path, seconds: float, say: Say = lambda text: None) -> BenchmarkReport:
    """Measure a copy of `ledger`, made in `directory`.

    Parameters:
        seconds: approximate duration of each comparison; a longer one runs once.

    Raises:
        LedgerError: the ledger cannot be read.
        DaemonError: no daemon comes up for the copy.
        WrongAnswerError: with caches the answers are others than without.
        OSError: there is no room for the copy.
    """
    say("copying the ledger")
    copy = directory / "copy.db"
    copy_ledger(ledger, copy)
    say("the daemon folds it")
    with serving(copy), caches(copy) as (on, off):
        events = on.metrics().as_of
        say("comparing the answers")
        require_equal(on, off)
        comparisons = [_repeated(on, off, name, seconds, say) for name in _VIEWS]
        comparisons += [_after_append(on, off, name, seconds, say) for name in _VIEWS]
        comparisons.append(_messages(on, off, seconds, say))
        require_equal(on, off)
        say("full replays")
        replay = interleaved({"a full replay of all folds": off.frame}, _affordable(off.frame, seconds), 1)
        open_commitments = len(on.commitments().open)
    return BenchmarkReport(events, open_commitments, comparisons, next(iter(replay.values())))


# The copy, its daemon, and the two sides.


def copy_ledger(ledger: str, target: Path) -> None:
    """A backup in WAL mode, as `EventLog` makes ledgers.

    Raises:
        LedgerError: the ledger cannot be read, or the copy not written.
        OSError: the disk has too little room for it.
    """
    needed, free = 2 * bytes_of(real_path(ledger)), shutil.disk_usage(target.parent).free
    if needed > free:
        raise OSError(f"{target.parent}: the copy needs {needed >> 20} MB, and {free >> 20} MB are free; set TMPDIR")
    backup(ledger, target)
    with contextlib.closing(sqlite3.connect(os.fsencode(target))) as copy:
        copy.execute("PRAGMA journal_mode = WAL").fetchall()


@contextlib.contextmanager
def serving(ledger: Path) -> Iterator[None]:
    """Run a daemon for the ledger; at the beginning everything is published.

    Raises:
        DaemonError: it does not start.
    """
    log_file = ledger.with_suffix(".log")
    process = spawn_daemon(str(ledger), log_file, "--verify-every", "0", "--embedder", "none")
    try:
        if not _is_published_in_time(ledger, process):
            raise DaemonTimeoutError(f"{ledger}: the daemon did not come up: {last_line(log_file)}")
        yield
    finally:
        process.terminate()
        process.wait()


def _is_published_in_time(ledger: Path, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _BUILD_S
    while process.poll() is None and time.monotonic() < deadline:
        if is_running(Instance.of(ledger)):
            with contextlib.closing(SpectatorCache(ledger)) as cache:
                if cache.is_published_to_head():
                    return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def caches(ledger: Path) -> Iterator[tuple[Cache, Cache]]:
    """The two sides: with caches and without."""
    with contextlib.ExitStack() as stack:
        with changed_environment(dict.fromkeys(_FLAGS, "true")):
            on = stack.enter_context(Cache(ledger))
        with changed_environment(dict.fromkeys(_FLAGS, "false")):
            off = stack.enter_context(Cache(ledger))
        yield on, off


def answers(source: Cache | Frame) -> dict[str, Any]:
    """Every answer in a form that compares order and the last bit."""
    commitments = source.commitments()
    return {
        "self_model": repr(source.self_model()),
        "commitments": repr((list(commitments.open.items()), list(commitments.expired.items()), commitments.as_of)),
        "directives": repr((source.directives(), source.active_directives())),
        **{name: repr(getattr(source, name)()) for name in ("identity", "metrics", "stage", "recent")},
    }


def require_equal(on: Cache, off: Cache) -> None:
    """Raise `WrongAnswerError` if any answer of the two sides differs."""
    # One frame is one replay.
    wanted = answers(off.frame())
    wrong = {name for got in (answers(on), answers(on.frame())) for name, value in wanted.items() if got[name] != value}
    if wrong:
        raise WrongAnswerError(f"{on.path}: {', '.join(sorted(wrong))} are others with caches than without")


# What is compared.


def _repeated(on: Cache, off: Cache, name: str, seconds: float, say: Say) -> Comparison:
    what = f"{name}, nothing new"
    say(what)
    sides = {ON: getattr(on, name), OFF: getattr(off, name)}
    timings = interleaved(sides, _affordable(sides[OFF], seconds), {ON: _CALLS, OFF: 1})
    return Comparison(what, timings[ON], timings[OFF])


def _after_append(on: Cache, off: Cache, name: str, seconds: float, say: Say) -> Comparison:
    what = f"{name} after an append"
    say(what)
    sides = {ON: getattr(on, name), OFF: getattr(off, name)}
    watch = RoundTimer()
    for number in range(_affordable(sides[OFF], seconds)):
        # By another connection, as other workers append; an append of ours takes as long.
        off.append(*TICK)
        values = {side: watch.time(side, sides[side]) for side in ((ON, OFF) if number % 2 else (OFF, ON))}
        if repr(values[ON]) != repr(values[OFF]):
            raise WrongAnswerError(f"{what}: {values[ON]!r} with caches, {values[OFF]!r} without")
        watch.end_round()
    timings = watch.timings()
    return Comparison(what, timings[ON], timings[OFF])


def _messages(on: Cache, off: Cache, seconds: float, say: Say) -> Comparison:
    what = "one user message: context, 8 appends, 16 reads"
    say(what)
    watch = RoundTimer()
    began, number = time.monotonic(), 0
    while number == 0 or (number < _ROUNDS_MAX and time.monotonic() - began < seconds):
        for side, cache in ((ON, on), (OFF, off)):
            watch.time(side, assemble, cache, number)
        watch.end_round()
        number += 1
    timings = watch.timings()
    return Comparison(what, timings[ON], timings[OFF])


def _affordable(action: Callable[[], Any], seconds: float) -> int:
    """The number of rounds that fit into the time, at least one."""
    began = time.monotonic()
    action()
    return max(1, min(_ROUNDS_MAX, int(seconds / max(time.monotonic() - began, 1e-6))))


TICK = ("autonomy_tick", "idle", {"stage": "S1", "telemetry": {"GAS": 0.5, "IAS": 0.5}, "tick": 1})
"""An event that most folds read and that makes no view grow."""


def turn_events(number: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Eight events like those of a chat turn; each commitment is closed again, so that no view grows."""
    cid = f"bench-{number}"
    text = f"review the garden plan {number}"
    return [
        ("user", f"Could you {text}?", {"channel": "chat"}),
        ("embedding_indexed", "", {"digest": "0" * 16, "eid": 1}),
        ("response", f"Done, with the order changed ({number}).", {"model": "local-small"}),
        ("embedding_indexed", "", {"digest": "0" * 16, "eid": 1}),
        ("commitment_open", f"COMMIT: {text}", {"cid": cid, "source": "user", "text": text}),
        ("evidence_candidate", "Done.", {"cid": cid, "evidence_type": "done", "snippet": "Done."}),
        ("commitment_close", f"CLOSE: {text}", {"cid": cid}),
        TICK,
    ]


TURN_EVENTS = 8


def turn_event(number: int) -> tuple[str, str, dict[str, Any]]:
    """One event of many turns in succession."""
    turn, place = divmod(number, TURN_EVENTS)
    return turn_events(turn)[place]


def assemble(cache: Cache, number: int) -> list[Any]:
    """The state that a worker needs for one user message: the full context with three reflections, and after each of
    the eight appends of a turn a self-model and metrics. Returns everything read."""
    read: list[Any] = [cache.context(reflections=3)]
    events: list[EventInput] = list(turn_events(number))
    for event in events:
        assert isinstance(event, tuple)
        cache.append(*event)
        read += [cache.self_model(), cache.metrics()]
    return read


# The machine.


def machine() -> dict[str, Any]:
    """The conditions of the measurement: processor, cores, versions, load; nothing that identifies the machine."""
    versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in ("pmm-shm", "lmdb", "msgpack", "numpy", "pyzmq"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "system": f"{platform.system()} {platform.release()}",
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": versions,
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine() or sys.platform

"""Reports what the replacements of this process answered, and what PMM's own functions did: at its end, and meanwhile
to `pmm-shm doctor`, through a file in the instance directory of each ledger that it uses.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.saying import is_main_process, say, write

EVERY_S = 10.0
"""Least time between two reports to a directory, in seconds."""

_LEDGERS_MAX = 8
_PROGRAM_CHARS = 200


class RunReporter:
    """The reports of one process. A forked child is another process, whose counts begin at 0."""

    def __init__(self, patcher: Patcher) -> None:
        self._patcher = patcher
        # Held while a report is written; nobody waits for it.
        self._lock = threading.Lock()
        self._ledgers: dict[str, None] = {}
        self._begin()
        if patcher.settings.report is not None:
            self._end_before_sigterm()

    def _begin(self) -> None:
        self._token = os.urandom(6).hex()
        self._due = 0.0
        self._is_ended = False

    def _end_before_sigterm(self) -> None:
        """Report before SIGTERM ends the process, where nothing handles it: servers end their workers so."""

        def end(number: int, frame: object) -> None:
            self.end()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            with suppress(ValueError):  # Not in the main thread.
                signal.signal(signal.SIGTERM, end)

    def uses(self, ledger: str) -> None:
        """This process has opened a ledger: its reports also go to that one's directory."""
        if ledger not in self._ledgers and len(self._ledgers) < _LEDGERS_MAX:
            self._ledgers[ledger] = None
            self._due = 0.0

    def beat(self) -> None:
        """Report, if it is time again; costs a look at the clock. Called where PMM works on a ledger."""
        if time.monotonic() >= self._due:
            self._write(is_ended=False)

    def end(self) -> None:
        """The last report of this process. Never raises."""
        if self._is_ended or not self._has_worked():
            return
        self._is_ended = True
        try:
            self._write(is_ended=True)
            where = self._patcher.settings.report
            if where == "stderr":
                write("\n".join(self.table()) + "\n")
            elif where is not None:
                descriptor = os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write("\n".join(self.table()) + "\n")
        except Exception as error:
            say(f"no report: {error}")

    def table(self) -> list[str]:
        """The report for people: a line for each name."""
        lines = [f"pmm-shm: process {os.getpid()}, {_program()}"]
        counts = {_short(label): one for label, one in self._patcher.counts.items() if one.answered or one.fallbacks}
        width = max(map(len, counts), default=0)
        if not counts:
            lines.append("  no call was answered")
        for name, counted in counts.items():
            reasons = ", ".join(f"{count} {reason}" for reason, count in counted.fallbacks.most_common())
            by_pmm = f"{sum(counted.fallbacks.values()):>8} by PMM ({reasons})" if reasons else ""
            lines.append(f"  {name:{width}} {counted.answered:>10} answered{by_pmm}")
        by_reason: dict[str, list[str]] = {}
        for label, reason in self._patcher.kept.items():
            by_reason.setdefault(reason, []).append(_short(label))
        lines += [f"  not replaced ({reason}): {', '.join(names)}" for reason, names in by_reason.items()]
        return lines

    def _has_worked(self) -> bool:
        counts = self._patcher.counts.values()
        return is_main_process() or bool(self._patcher.kept) or any(one.answered or one.fallbacks for one in counts)

    def _write(self, *, is_ended: bool) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._due = time.monotonic() + EVERY_S
            if self._ledgers:
                self._write_files(is_ended)
        except Exception:
            # A report is a hint, and PMM must not notice.
            pass
        finally:
            self._lock.release()

    def _write_files(self, is_ended: bool) -> None:
        from pmm_shm.instance.paths import Instance
        from pmm_shm.instance.run_reports import RunReport, write_report

        counts = dict(self._patcher.counts)
        report = RunReport(
            os.getpid(),
            _program(),
            is_ended,
            {label: one.answered for label, one in counts.items() if one.answered},
            {label: dict(one.fallbacks) for label, one in counts.items() if one.fallbacks},
            dict(self._patcher.kept),
        )
        for ledger in list(self._ledgers):
            write_report(Instance.of(ledger), self._token, report)

    def after_fork(self) -> None:
        """Called in the child."""
        self._lock = threading.Lock()
        self._begin()
        for counted in self._patcher.counts.values():
            counted.answered = 0
            counted.fallbacks.clear()
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            # A process of multiprocessing ends without `atexit`, and forgets what was to be done at its end.
            util.register_after_fork(self, lambda reporter: util.Finalize(None, reporter.end, exitpriority=0))


def _short(label: str) -> str:
    """`module:name` without the packages."""
    module, _, name = label.partition(":")
    return f"{module.rpartition('.')[2]}.{name}"


def _program() -> str:
    words: Iterator[str] = iter(getattr(sys, "orig_argv", sys.argv))
    text = " ".join([os.path.basename(next(words, "")), *words])
    return text if len(text) <= _PROGRAM_CHARS else text[: _PROGRAM_CHARS - 1] + "…"


_reporter: RunReporter | None = None


def begin(patcher: Patcher | None) -> None:
    """Report for a patcher from now on; None for nothing."""
    global _reporter
    _reporter = None if patcher is None else RunReporter(patcher)


def uses(ledger: str) -> None:
    """See `RunReporter.uses`."""
    if _reporter is not None:
        _reporter.uses(ledger)


def beat() -> None:
    """See `RunReporter.beat`."""
    if _reporter is not None:
        _reporter.beat()


def _end() -> None:
    if _reporter is not None:
        _reporter.end()


def _after_fork() -> None:
    if _reporter is not None:
        _reporter.after_fork()


atexit.register(_end)
os.register_at_fork(after_in_child=_after_fork)

"""`pmm-shm top`: a ledger and its daemon, live in the terminal.

Owns the terminal while it runs, and restores its settings however it ends.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm.finite import Finite
from pmm_shm_terminal.options import CONTEXT, json_option, ledger_argument, shape_option, the_ledger
from pmm_shm_terminal.output import console, json_value, print_json, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pmm_shm_cli.sampling import Series
    from pmm_shm_cli.top_view import Display

_ANSWER_S = 0.5
_KEY_S = 0.1
_LEAVE = frozenset("qQ\x1b\x04")
_EVENTS_BEFORE = 2_000
_PIPE_LINES = 24


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option(
    "--interval", type=Finite(min=0.1, max=3_600), default=1.0, metavar="SECONDS", help="Time between two samples."
)
@click.option("--once", is_flag=True, help="Print one frame and exit, as without a terminal.")
@shape_option
@json_option
def top(ledger: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch a ledger and its daemon live. Press q to quit, ? for the other keys.

    Shows rates, lag, memory, processes, and the course of IAS and GAS over the life of the ledger. With --json, prints
    one sample as one value.
    """
    path = the_ledger(ledger)
    watch = _Monitor(path, interval)
    try:
        if as_json or once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            watch.look()
            time.sleep(interval)
            found = watch.look()
            if as_json:
                print_json(json_value({**found, "rates": watch.rates()}))
            else:
                shown = console()
                show(watch.frame(found, shown.width, _PIPE_LINES, shown.encoding))
        else:
            _run(watch, interval)
    finally:
        watch.close()


class _Monitor:
    """Takes samples of a ledger and its daemon.

    Raises:
        LedgerError: no usable ledger.
    """

    def __init__(self, path: str, interval_s: float) -> None:
        from pmm_shm.instance.paths import Instance
        from pmm_shm_cli.process_usage import ProcessUsage
        from pmm_shm_cli.sampling import Series
        from pmm_shm_terminal.spectator import SpectatorCache

        self._instance = Instance.of(path)
        self._cache = SpectatorCache(path, timeout=min(limits.LEDGER_TIMEOUT_S, 2.0))
        self._series: Series = Series()
        self._own_commands = 0
        self._usage = ProcessUsage()
        self._begin(interval_s)

    def _begin(self, interval_s: float) -> None:
        """Let the charts begin with what the ledger knows of the time before."""
        from pmm_shm.ledger.instants import instant_us, now_us
        from pmm_shm_cli.sampling import event_rates

        try:
            points = () if self._cache.not_applicable or self._cache.shape else self._cache.history().points
            events = self._cache.events(limit=_EVENTS_BEFORE, newest_first=True)
        except LedgerError:
            # The first sample says what it is.
            return
        now = now_us()
        ages_s = [(now - instant) / 1e6 for event in events if (instant := instant_us(event.ts)) is not None]
        rates = event_rates(ages_s, interval_s, len(events) < _EVENTS_BEFORE)
        self._series.begin_with([(point.ias_last, point.gas_last) for point in points], rates)

    def look(self) -> dict[str, Any]:
        """Take a sample; the rates include it."""
        from pmm_shm_cli.sampling import Sample
        from pmm_shm_terminal import state

        problems: list[str | Exception] = []
        head, scores = None, None
        missing: tuple[str, ...] = ()
        try:
            if self._cache.shape is not None:
                head = self._cache.frame().as_of
            else:
                metrics, missing = self._cache.metrics(), self._cache.not_applicable
                head, scores = metrics.as_of, None if missing else (metrics.ias, metrics.gas)
        except LedgerError as error:
            problems.append(error)
        asked = state.ask(self._instance, _ANSWER_S)
        daemon = asked.numbers
        self._own_commands += daemon is not None
        self._series.add(Sample(time.monotonic(), head, scores, daemon, self._own_commands))
        readers = state.readers_of(daemon)
        known = {str(problem) for problem in problems}
        problems += [problem for problem in asked.problems if str(problem) not in known]
        return {
            "health": asked.health,
            "reasons": [str(problem) for problem in problems],
            "remedies": state.with_remedies(self._instance, problems),
            "ledger": self._instance.ledger,
            "head_id": head or 0,
            "as_of": self._cache.published_as_of() if daemon is None else daemon["as_of"],
            "lag_events": None if daemon is None else daemon["lag_events"],
            "scores": None if scores is None else {"ias": scores[0], "gas": scores[1]},
            "readers": readers,
            "reads": state.reads_of(daemon),
            "processes": self._processes(daemon, readers),
            "daemon": daemon,
            **({"not_applicable": list(missing)} if missing else {}),
            **({"shape": str(self._cache.shape)} if self._cache.shape else {}),
        }

    def _processes(self, daemon: dict[str, Any] | None, readers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The daemon and its readers, with what they use."""
        from pmm_shm_terminal.state import command_of

        own = [] if daemon is None else [{"pid": daemon["pid"], "behind_txns": None}]
        own = [{**one, "command": command_of(one["pid"])} for one in own]
        usage = self._usage.of([one["pid"] for one in (*own, *readers)])
        return [{**one, **usage[one["pid"]]} for one in (*own, *readers)]

    def rates(self) -> dict[str, float | None]:
        """Rates per second, as of the last sample."""
        names = ("events", "reads", "commands", "commits")
        return {
            **{name: getattr(self._series, name)[-1] for name in names},
            "hit_rate": self._series.hit_rate,
            "served_rate": self._series.served_rate,
        }

    def frame(
        self,
        found: dict[str, Any],
        width: int,
        height: int,
        encoding: str,
        display: Display | None = None,
        hint: str = "",
    ) -> RenderableType:
        from pmm_shm_cli.top_view import frame

        is_plain = not encoding.lower().startswith("utf")
        return frame(found, self._series, width, height, display=display, hint=hint, plain=is_plain)

    def close(self) -> None:
        self._cache.close()


def _run(watch: _Monitor, interval_s: float) -> None:
    from rich.live import Live

    from pmm_shm_cli.top_view import Display

    out, display = console(), Display()
    hint = f"every {interval_s:g} s, ? keys, q quits"
    with _keys() as key, Live(console=out, screen=True, auto_refresh=False) as live:
        found, due, shown = watch.look(), time.monotonic() + interval_s, None
        while True:
            if not display.is_paused and time.monotonic() >= due:
                due = time.monotonic() + interval_s
                found, shown = watch.look(), None
            wanted = (out.width, out.height, display)
            if shown != wanted:
                shown = wanted
                live.update(watch.frame(found, *wanted[:2], out.encoding, display, hint), refresh=True)
            pressed = key(_KEY_S if display.is_paused else min(_KEY_S, max(0.0, due - time.monotonic())))
            if pressed in _LEAVE:
                return
            display = _changed(display, pressed)


def _changed(display: Display, key: str) -> Display:
    """The display after a key."""
    from pmm_shm_cli.top_view import SORTS

    if key in ("?", "h"):
        return replace(display, shows_keys=not display.shows_keys)
    if key in ("p", " "):
        return replace(display, is_paused=not display.is_paused)
    if key == "s":
        return replace(display, sort=SORTS[(SORTS.index(display.sort) + 1) % len(SORTS)])
    if key == "r":
        return replace(display, is_reversed=not display.is_reversed)
    return display


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits some seconds for a key. The terminal's settings are restored at the end."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    changed = termios.tcgetattr(descriptor)
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    # Suspended, it would leave the shell on the other screen.
    changed[6][termios.VSUSP] = b"\0"

    def key(timeout_s: float) -> str:
        if not select.select([descriptor], [], [], timeout_s)[0]:
            return ""
        data = os.read(descriptor, 64)
        if not data:
            # Nothing to read where there is something: the terminal is gone.
            return "q"
        # An arrow or a function key begins as Escape does.
        is_sequence = data.startswith(b"\x1b") and len(data) > 1
        return "" if is_sequence else data[:1].decode("latin-1")

    try:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, changed)
        yield key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

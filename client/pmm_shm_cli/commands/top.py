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
from typing import TYPE_CHECKING, Any

import click

from pmm_shm import limits
from pmm_shm.errors import LedgerError
from pmm_shm_terminal.options import CONTEXT, Finite, json_option, ledger_argument, the_ledger
from pmm_shm_terminal.output import console, plain, print_json, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pmm_shm_cli.sampling import Series

_ANSWER_S = 0.5
_KEY_S = 0.1
_LEAVE = frozenset("qQ\x1b\x04")
_PIPE_LINES = 24


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option(
    "--interval", type=Finite(min=0.1, max=3_600), default=1.0, metavar="SECONDS", help="Time between two samples."
)
@click.option("--once", is_flag=True, help="Print one frame and exit, as without a terminal.")
@json_option
def top(ledger: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch a ledger and its daemon live. Press q to quit.

    Shows rates, lag, memory, readers, and the course of IAS and GAS. With --json, prints one sample as one value.
    """
    path = the_ledger(ledger)
    watch = _Monitor(path)
    try:
        if as_json or once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            watch.look()
            time.sleep(interval)
            found = watch.look()
            if as_json:
                print_json(plain({**found, "rates": watch.rates()}))
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

    def __init__(self, path: str) -> None:
        from pmm_shm.instance.paths import Instance
        from pmm_shm_cli.sampling import Series
        from pmm_shm_cli.spectator import SpectatorCache

        self._instance = Instance.of(path)
        self._cache = SpectatorCache(path, timeout=min(limits.LEDGER_TIMEOUT_S, 2.0))
        self._series: Series = Series()
        self._own_commands = 0

    def look(self) -> dict[str, Any]:
        """Take a sample; the rates include it."""
        from pmm_shm_cli import state
        from pmm_shm_cli.sampling import Sample

        problems: list[str | Exception] = []
        head, scores = None, None
        try:
            metrics = self._cache.metrics()
            head, scores = metrics.as_of, (metrics.ias, metrics.gas)
        except LedgerError as error:
            problems.append(error)
        asked = state.ask(self._instance, _ANSWER_S)
        daemon = asked.numbers
        self._own_commands += daemon is not None
        self._series.add(Sample(time.monotonic(), head, scores, daemon, self._own_commands))
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
            "readers": state.readers_of(daemon),
            "daemon": daemon,
        }

    def rates(self) -> dict[str, float | None]:
        """Rates per second, as of the last sample."""
        names = ("events", "reads", "commands", "commits")
        return {**{name: getattr(self._series, name)[-1] for name in names}, "hit_rate": self._series.hit_rate}

    def frame(self, found: dict[str, Any], width: int, height: int, encoding: str, hint: str = "") -> RenderableType:
        from pmm_shm_cli.top_view import frame

        is_plain = not encoding.lower().startswith("utf")
        return frame(found, self._series, width, height, hint=hint, plain=is_plain)

    def close(self) -> None:
        self._cache.close()


def _run(watch: _Monitor, interval_s: float) -> None:
    from rich.live import Live

    out = console()
    hint = f"every {interval_s:g} s, q quits"
    with _keys() as key, Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            due = time.monotonic() + interval_s
            found = watch.look()
            shown: tuple[int, int] | None = None
            while shown is None or time.monotonic() < due:
                if shown != (out.width, out.height):
                    shown = (out.width, out.height)
                    live.update(watch.frame(found, *shown, out.encoding, hint), refresh=True)
                if key(min(_KEY_S, max(0.0, due - time.monotonic()))) in _LEAVE:
                    return


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

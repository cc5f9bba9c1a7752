"""`pmm-shm log`"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import click

from pmm_shm.errors import ConfigError
from pmm_shm_terminal import completers
from pmm_shm_terminal.moments import id_or_instant
from pmm_shm_terminal.options import CONTEXT, Deadline, ledger_argument, ledger_timeout_option, shape_option, the_ledger
from pmm_shm_terminal.output import printable, styled

if TYPE_CHECKING:
    from pmm_shm.ledger.eventlog import EventLog
    from pmm_shm.ledger.rows import Event

_SHOWN = 20
_BATCH = 500
_LOOK_S = 0.1


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option("-f", "--follow", is_flag=True, help="Print the newest last, and then each event as it is appended.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Number of events, the newest; 0 for all.  [default: {_SHOWN}; with --since, all]",
)
@click.option("--kind", metavar="KIND", help="Only events of this kind.", shell_complete=completers.kind_alone)
@click.option(
    "--since",
    metavar="ID|TIME",
    help="Only events after this id (a whole number), or since this time: ISO 8601, in UTC unless it has an offset, or "
    "an age such as 90s, 15m, 2h, 3d.",
)
@click.option("--reverse", is_flag=True, help="Print the newest last.")
@ledger_timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event, on a line of its own.")
@shape_option
def log(
    ledger: str | None,
    follow: bool,
    count: int | None,
    kind: str | None,
    since: str | None,
    reverse: bool,
    timeout: Deadline,
    as_json: bool,
) -> None:
    """List the events, the newest first, or follow the log.

    A line has the id, the time, the kind, the content and, unless it is empty, the meta. On a terminal lines are cut to
    its width.
    """
    path = the_ledger(ledger)
    bounds = _Bounds.of(since)
    if count is None:
        count = _SHOWN if since is None else 0
    from pmm_shm.ledger.eventlog import EventLog

    show = _as_json if as_json else _as_line()
    with EventLog(path, timeout=timeout.left_s(), create=False) as opened:
        if bounds.instant_us is not None:
            bounds = bounds._replace(after=opened.first_id_since(bounds.instant_us) - 1)
        wanted = _Wanted(opened, kind, bounds)
        if not follow:
            _print(wanted.ascending(count) if reverse else wanted.newest(count), show)
            return
        newest = next(iter(opened.events(limit=1, newest_first=True)), None)
        _print(wanted.ascending(count, None if newest is None else newest.id), show)
        _follow(opened, wanted, newest, show)


class _Bounds(NamedTuple):
    """What `--since` excludes: events up to the id `after`, and events before the instant."""

    after: int | None
    instant_us: int | None

    @classmethod
    def of(cls, since: str | None) -> _Bounds:
        """Raises `ConfigError`."""
        if since is None:
            return cls(None, None)
        found = cls(*id_or_instant(since))
        if found == (None, None):
            raise ConfigError(f"--since: {since!r:.80} is no event id, ISO 8601 time, or age such as 15m")
        return found

    def takes(self, event: Event) -> bool:
        """Whether the event is not too old; one without a readable time is, where a time is asked for."""
        if self.instant_us is None:
            return True
        from pmm_shm.ledger.instants import instant_us

        own = instant_us(event.ts)
        return own is not None and own >= self.instant_us


class _Wanted(NamedTuple):
    """The events to print, read in batches."""

    log: EventLog
    kind: str | None
    bounds: _Bounds

    def newest(self, count: int, last_id: int | None = None) -> Iterator[Event]:
        """The newest `count` events (0: all) up to `last_id`, the newest first."""
        left, before = count or None, None if last_id is None else last_id + 1
        while True:
            batch = self.log.events(self.kind, self.bounds.after, before, _BATCH, newest_first=True)
            for event in filter(self.bounds.takes, batch):
                yield event
                left = None if left is None else left - 1
                if left == 0:
                    return
            if len(batch) < _BATCH:
                return
            before = batch[-1].id

    def ascending(self, count: int, last_id: int | None = None) -> Iterator[Event]:
        """The same events, the newest last."""
        if count:
            yield from reversed(list(self.newest(count, last_id)))
        else:
            yield from self.after(self.bounds.after, last_id)

    def after(self, event_id: int | None, last_id: int | None) -> Iterator[Event]:
        """The events after one, up to `last_id`, the newest last."""
        before = None if last_id is None else last_id + 1
        while True:
            batch = self.log.events(self.kind, event_id, before, _BATCH)
            yield from filter(self.bounds.takes, batch)
            if len(batch) < _BATCH:
                return
            event_id = batch[-1].id


def _follow(log: EventLog, wanted: _Wanted, newest: Event | None, show: Callable[[Event], str]) -> None:
    """Print what is appended after `newest`, until the process is ended."""
    while True:
        time.sleep(_LOOK_S)
        head = next(iter(log.events(limit=1, newest_first=True)), None)
        if head == newest:
            continue
        if newest is not None and log.events(after=newest.id - 1, before=newest.id + 1) != [newest]:
            where = "empty now" if head is None else f"at event {head.id} now"
            click.echo(f"pmm-shm: {log.path}: restored, replaced or cut; {where}", err=True)
        elif head is not None:
            known = [one for one in (wanted.bounds.after, newest and newest.id) if one is not None]
            _print(wanted.after(max(known, default=None), head.id), show)
        newest = head


def _print(events: Iterable[Event], show: Callable[[Event], str]) -> None:
    for event in events:
        sys.stdout.write(show(event) + "\n")
    sys.stdout.flush()


def _as_json(event: Event) -> str:
    return json.dumps(event._asdict())


def _as_line() -> Callable[[Event], str]:
    """A function that shows an event on one line."""
    from rich.cells import cell_len, set_cell_size

    from pmm_shm_client.context import shown_time

    is_terminal = sys.stdout.isatty()

    def show(event: Event) -> str:
        meta = json.dumps(event.meta, ensure_ascii=False) if event.meta else ""
        head = f"{event.id:>7}  {printable(shown_time(event.ts)):20}  ", f"{printable(event.kind):16}  "
        rest = [printable(event.content), meta and printable(meta)]
        if is_terminal:
            # Asked each time: the window may change while the log is followed.
            left = shutil.get_terminal_size().columns - sum(map(cell_len, head))
            for number, text in enumerate(rest):
                rest[number] = _cut(text, max(0, left), cell_len, set_cell_size)
                left -= cell_len(rest[number]) + 2
        line = styled(head[0], fg="yellow") + styled(head[1], fg="cyan") + rest[0]
        return (line + ("  " if rest[0] and rest[1] else "") + styled(rest[1], dim=True)).rstrip()

    return show


def _cut(text: str, columns: int, width_of: Callable[[str], int], sized: Callable[[str, int], str]) -> str:
    text = text[: columns + 1]
    if width_of(text) <= columns:
        return text
    return sized(text, columns - 1).rstrip() + "…" if columns else ""

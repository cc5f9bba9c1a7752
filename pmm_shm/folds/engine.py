"""Moves the states of several folds along the log. The one place where events meet folds: daemon, catch-up, replay and
verification all come through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pmm_shm.errors import StoreError
from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.state import QUARANTINE, State
from pmm_shm.ledger.rows import (
    Event,
    MalformedMeta,
    RawRow,
    on_fresh_stack,
    parse_content,
    parse_meta,
    text_or_empty,
)

DECODE = "decode"
_BOTH: tuple[Column, ...] = ("content", "meta")
_NO_META: dict[str, Any] = {}
States = Mapping[str, State]
"""Fold name to state."""


class DecodeFold(Fold):
    """Holds the quarantine of decoding: ids of events whose meta or content had to be replaced.

    What is decoded depends on what the folds need, so their needs are its parameters.
    """

    name = DECODE
    version = 1

    def __init__(self, folds: Iterable[Fold]) -> None:
        needs = _needs(folds)
        self.kinds = needs
        listed = None if needs is None else [[kind, sorted(columns)] for kind, columns in sorted(needs.items())]
        self.parameters = {"kinds": listed}

    def apply(self, event: Event, state: State) -> None:
        """Nothing: the engine writes this state."""

    def view(self, state: State) -> None:
        """None: see `quarantine_of`."""


def _needs(folds: Iterable[Fold]) -> dict[str, tuple[Column, ...]] | None:
    needs: dict[str, set[Column]] = {}
    for fold in folds:
        if fold.kinds is None:
            return None
        for kind, columns in fold.kinds.items():
            needs.setdefault(kind, set()).update(columns)
    return {kind: tuple(sorted(columns)) for kind, columns in needs.items()}


class _Route(NamedTuple):
    """What to do with the events of one kind."""

    needs_meta: bool
    needs_content: bool
    targets: tuple[tuple[Fold, bool, bool], ...]


class Engine:
    """Applies raw rows to the states of a fixed set of folds.

    Attributes:
        folds: name to fold, in order.
        kinds: the event kinds that any of them needs; None for all.
    """

    def __init__(self, folds: Sequence[Fold]) -> None:
        self.folds: dict[str, Fold] = {fold.name: fold for fold in folds}
        needs = _needs(self.folds.values())
        self.kinds = None if needs is None else frozenset(needs)
        self._routes: dict[str, _Route] = {}

    def apply(self, rows: Iterable[RawRow], states: States) -> int:
        """Fold `rows` into `states`, in order; returns how many events went to a fold.

        Raises:
            KeyError: a fold has no state.
        """
        routes, applied = self._routes, 0
        decode_state = states.get(DECODE)
        for row in rows:
            kind = text_or_empty(row[2])
            route = routes.get(kind) or self._route(kind)
            if route.targets:
                applied += 1
                _apply_event(_decode(row, kind, route, decode_state), route, states)
        return applied

    def _route(self, kind: str) -> _Route:
        targets = []
        for fold in self.folds.values():
            columns = _BOTH if fold.kinds is None else fold.kinds.get(kind)
            if columns is not None:
                targets.append((fold, "meta" in columns, "content" in columns))
        route = _Route(any(meta for _, meta, _ in targets), any(text for _, _, text in targets), tuple(targets))
        if self.kinds is None or kind in self.kinds:
            self._routes[kind] = route
        return route


def _decode(row: RawRow, kind: str, route: _Route, decode_state: State | None) -> Event:
    meta: dict[str, Any] = _NO_META
    content = ""
    reasons = []
    if route.needs_meta:
        try:
            meta = parse_meta(row[4])
        except MalformedMeta as error:
            meta = {}
            reasons.append(f"meta: {error}")
    if route.needs_content:
        content, reason = parse_content(row[3])
        if reason:
            reasons.append(reason)
    if reasons and decode_state is not None:
        decode_state.begin_event(row[0])
        decode_state.quarantine("; ".join(reasons))
    return Event(row[0], text_or_empty(row[1]), kind, content, meta)


def _apply_event(event: Event, route: _Route, states: States) -> None:
    for fold, needs_meta, needs_content in route.targets:
        state = states[fold.name]
        state.begin_event(event.id)
        seen = event
        if (not needs_meta and event.meta) or (not needs_content and event.content):
            content, meta = event.content if needs_content else "", event.meta if needs_meta else {}
            seen = Event(event.id, event.ts, event.kind, content, meta)
        try:
            fold.apply(seen, state)
            if fold.checks_values:
                state.check_values()
        except (MemoryError, StoreError):
            raise
        except BaseException as error:
            # A fold may call `sys.exit`, too: a daemon that ended with it would end at each start.
            state.rollback()
            _apply_again(fold, seen, state, error)


def _apply_again(fold: Fold, event: Event, state: State, first: BaseException) -> None:
    """Find out whose failure it was: on a fresh stack, where no signal handler runs, only the event's own comes again.

    Raises:
        BaseException: `first`, when it came from outside: from a signal handler of the program that reads.
        MemoryError, StoreError: it is not the event's.
    """

    def apply() -> None:
        fold.apply(event, state)
        if fold.checks_values:
            state.check_values()

    try:
        on_fresh_stack(apply)
    except (MemoryError, StoreError):
        raise
    except BaseException as error:
        state.rollback()
        if not isinstance(first, Exception) and type(error) is not type(first):
            # The program is told to end, at an event that the fold fails at, too.
            raise first from None
        state.quarantine(f"{type(error).__name__}: {error}"[:200])
    else:
        if not isinstance(first, RecursionError):
            raise first


class QuarantineEntry(NamedTuple):
    """One event that could not be used, by a fold or by decoding (`decode`)."""

    event_id: int
    fold: str
    reason: str


def quarantine_of(states: States, entries_max: int) -> tuple[int, list[QuarantineEntry]]:
    """The count over all folds, and the newest entries, oldest first."""
    count, entries = 0, []
    for name, state in states.items():
        count += state.get(QUARANTINE, 0)
        entries += [QuarantineEntry(row[0], name, row[1]) for row in state.table(QUARANTINE).values()]
    entries.sort(key=lambda entry: (entry.event_id, entry.fold != DECODE, entry.fold))
    return count, entries[-entries_max:]

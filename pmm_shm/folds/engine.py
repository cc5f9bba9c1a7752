"""Moves the states of several folds along the log. The one place where events meet folds: daemon, catch-up, replay and
verification all come through here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType

from pmm_shm import limits
from pmm_shm.errors import StoreError
from pmm_shm.folds.contract import BatchFold, Column, Fold
from pmm_shm.folds.state import QUARANTINE, State
from pmm_shm.late import late_imports
from pmm_shm.ledger.rows import (
    Event,
    MalformedMeta,
    RawRow,
    T,
    WideEvent,
    on_fresh_stack,
    parse_columns,
    parse_content,
    parse_meta,
    text_or_empty,
)
from pmm_shm.typed import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from pmm_shm.folds.bulk import BulkDecoder

DECODE = "decode"
_BOTH: tuple[Column, ...] = ("content", "meta")
_NO_META: dict[str, Any] = {}
_NO_PLACES: Mapping[str, int] = {}
_Queue = list[Event]
_new_tuple = tuple.__new__
_id_of = itemgetter(0)
States = Mapping[str, State]
"""Fold name to state."""


class DecodeFold(Fold):
    """Holds the quarantine of decoding: ids of events whose meta or content had to be replaced.

    The columns to decode depend on the folds, so the folds' needs are its parameters.
    """

    name = DECODE
    version = 1

    def __init__(self, folds: Sequence[Fold]) -> None:
        needs = _needs(folds)
        self.kinds = needs
        listed = None if needs is None else [[kind, sorted(columns)] for kind, columns in sorted(needs.items())]
        self.parameters = {"kinds": listed}
        asked = _asked(folds)
        if asked:
            self.parameters["columns"] = asked

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


def _asked(folds: Iterable[Fold]) -> list[Any]:
    """Which other columns are decoded of which kinds (None: of all), in one order."""
    asked: dict[str, set[str] | None] = {}
    for fold in folds:
        for column in fold.columns:
            kinds = asked.get(column, set())
            asked[column] = None if fold.kinds is None or kinds is None else kinds | set(fold.kinds)
    return [[column, None if kinds is None else sorted(kinds)] for column, kinds in sorted(asked.items())]


class _Route(NamedTuple):
    """The way of the events of one kind to the folds.

    Attributes:
        needs_meta, needs_content: the columns to decode.
        takers: how the folds that take them are given them, by the columns that these see: (meta, content, the
            `append` of each fold's queue).
        newest: holds rows of which only the newest make a difference; None if all rows do.
        queues: those of all the folds that take them.
        wide: gives them to the folds that ask for other columns; None if none does.
    """

    needs_meta: bool
    needs_content: bool
    takers: tuple[tuple[bool, bool, tuple[Callable[[Event], None], ...]], ...]
    newest: deque[RawRow] | None
    queues: tuple[_Queue, ...]
    wide: _WideTaker | None


class _WideRows:
    """What the rows of one call of `Engine.apply` need to be decoded with other columns."""

    __slots__ = ("decode_state", "places")

    def __init__(self) -> None:
        self.places: Mapping[str, int] = _NO_PLACES
        self.decode_state: State | None = None


class _WideTaker:
    """Gives the events of one kind to the folds that ask for other columns.

    Parameters:
        rows: what is known of the rows of this call.
        queues: of these folds: (meta, content, columns, queue).
    """

    def __init__(self, rows: _WideRows, queues: Sequence[tuple[bool, bool, tuple[str, ...], _Queue]]) -> None:
        self._rows, self._queues = rows, queues

    def take(self, row: RawRow, ts: str, kind: str, content: str, meta: dict[str, Any]) -> None:
        """Queue the event of a row."""
        names = dict.fromkeys(name for _, _, columns, _ in self._queues for name in columns)
        values, problem = parse_columns(row, self._rows.places, names)
        decode_state = self._rows.decode_state
        if problem and decode_state is not None:
            decode_state.begin_event(row[0])
            decode_state.quarantine(problem)
        for sees_meta, sees_content, columns, queue in self._queues:
            event = WideEvent(row[0], ts, kind, content if sees_content else "", meta if sees_meta else _NO_META)
            event.columns = MappingProxyType({name: values[name] for name in columns})
            queue.append(event)


def lacking_columns(fold: Fold, path: str, columns: Collection[str]) -> str | None:
    """In one line: which of the columns that a fold asks for the ledger at `path` lacks; None if it has all."""
    lacking = [column for column in fold.columns if column not in columns]
    if not lacking:
        return None
    names = ", ".join(f"`{column}`" for column in lacking)
    return f"{path}: the table `events` lacks {names}, which the fold {fold.name!r} asks for"


class Engine:
    """Applies raw rows to the states of a fixed set of folds. Not thread-safe.

    Attributes:
        folds: name to fold, in order.
        kinds: the event kinds that any of them needs; None for all.
        columns: the other columns that any of them asks for.
        queued: how many events were queued since none waited.
    """

    def __init__(self, folds: Sequence[Fold]) -> None:
        self.queued = 0
        self.folds: dict[str, Fold] = {fold.name: fold for fold in folds}
        needs = _needs(self.folds.values())
        self.kinds = None if needs is None else frozenset(needs)
        self.columns = tuple(dict.fromkeys(column for fold in self.folds.values() for column in fold.columns))
        self._wide_rows = _WideRows()
        self._routes: dict[str, _Route] = {}
        self._waiting: dict[str, _Route] = {}
        self._parse_meta: Callable[[object], dict[str, Any]] = parse_meta
        self._in_a_row = 0
        self._bulk: BulkDecoder | None = None
        # The quarantine of decoding is written while events are decoded, and takes none.
        self._queues: dict[str, _Queue] = {name: [] for name in self.folds if name != DECODE}
        # To ask a class of an abstract one whether it is its subclass takes longer than to fold an event.
        self._batched = frozenset(name for name, fold in self.folds.items() if _takes_batches(fold))

    def apply(self, rows: Sequence[RawRow], states: States, places: Mapping[str, int] = _NO_PLACES) -> int:
        """Fold `rows` into `states`, in order; returns how many events went to a fold.

        Parameters:
            rows: they begin with the five columns of every ledger.
            places: where in a row the other columns are that folds ask for.

        Raises:
            KeyError: a fold has no state.
        """
        try:
            applied = self.queue(rows, states, places)
            self._fold(states)
        finally:
            self.forget()
        # Only a long replay is worth the import.
        self._in_a_row = self._in_a_row + applied if applied > limits.ROWS_PER_PROGRESS else 0
        if self._in_a_row >= limits.FAST_JSON_EVENTS_MIN and self._parse_meta is parse_meta:
            with late_imports:
                from pmm_shm.folds.bulk import BulkDecoder
                from pmm_shm.ledger.fast_json import fast_column_parser, fast_meta_parser
            self._parse_meta = fast_meta_parser()
            takers = [(self.folds[name], queue) for name, queue in self._queues.items()]
            if all(fold.shares_events and fold.kinds is not None and not fold.columns for fold, _ in takers):
                self._bulk = BulkDecoder(takers, tuple(self.newest()), fast_column_parser(self._parse_meta))
        return applied

    def queue(self, rows: Sequence[RawRow], states: States, places: Mapping[str, int] = _NO_PLACES) -> int:
        """As `apply`, but the folds are given the events by `fold`, each when it is asked for, or by the next `apply`.

        The quarantine of decoding is written at once.
        """
        decode_state = states.get(DECODE)
        if self.columns:
            self._wide_rows.places, self._wide_rows.decode_state = places, decode_state
        if self._bulk is None or len(rows) <= limits.ROWS_PER_PROGRESS:
            decoded = self._decode(rows, decode_state)
        else:
            decoded = self._decode_in_bulk(self._bulk, rows, decode_state)
        self.queued += decoded
        return decoded

    def fold(self, name: str, state: State) -> None:
        """Fold the events that wait for one fold into its state."""
        events = self._queues.get(name)
        if events:
            apply_events(self.folds[name], events, state, name in self._batched)
            events.clear()

    def skip(self, event_id: int, states: States) -> None:
        """The bases hold all events up to this one by now: a fold that some of them still wait for goes on from there.

        Its overlay was made of earlier events. That of any other fold holds its events up to there, too.
        """
        for name, events in self._queues.items():
            if events and events[0].id <= event_id:
                states[name].drop_overlay()
                events[:] = [event for event in events if event.id > event_id]

    def forget(self) -> None:
        """Drop all events that wait."""
        self.queued = 0
        for queue in self._queues.values():
            queue.clear()
        for route in self._waiting.values():
            if route.newest:
                route.newest.clear()

    def newest(self) -> dict[str, int]:
        """The kinds of which all but the newest so many rows of a batch may be left out, as long as each content is
        text.
        """
        candidates = {kind for fold in self.folds.values() if isinstance(fold, BatchFold) for kind in fold.newest_max}
        waiting = {kind: (self._routes.get(kind) or self._route(kind)).newest for kind in candidates}
        return {kind: rows.maxlen for kind, rows in waiting.items() if rows is not None and rows.maxlen}

    def _fold(self, states: States) -> None:
        for name, events in self._queues.items():
            if events:
                self.fold(name, states[name])

    def _decode(self, rows: Iterable[RawRow], decode_state: State | None) -> int:
        """Queue the events of `rows` for the folds that need them; returns how many there are."""
        routes, kinds, parse, decoded, some_wait = self._routes, self.kinds, self._parse_meta, 0, False
        for row in rows:
            kind = row[2]
            route = routes.get(kind)
            if route is None:
                kind = text_or_empty(kind)
                if kinds is not None and kind not in kinds:
                    continue
                route = self._route(kind)
            needs_meta, needs_content, takers, newest, _, wide = route
            decoded += 1
            content = row[3]
            if newest is not None and content.__class__ is str:
                newest.append(row)
                some_wait = True
                continue
            meta, problem = _NO_META, ""
            if needs_meta:
                try:
                    meta = parse(row[4])
                except MalformedMeta as error:
                    meta, problem = {}, f"meta: {error}"
            if not needs_content:
                content = ""
            elif content.__class__ is not str:
                content, reason = parse_content(content)
                problem = "; ".join(filter(None, (problem, reason)))
            if problem and decode_state is not None:
                decode_state.begin_event(row[0])
                decode_state.quarantine(problem)
            ts = row[1] if row[1].__class__ is str else ""
            for sees_meta, sees_content, appends in takers:
                # `Event(...)` takes half as long again.
                event = _new_tuple(
                    Event, (row[0], ts, kind, content if sees_content else "", meta if sees_meta else _NO_META)
                )
                for append in appends:
                    append(event)
            if wide is not None:
                wide.take(row, ts, kind, content, meta)
        if some_wait:
            self._take_newest()
        return decoded

    def _decode_in_bulk(self, bulk: BulkDecoder, rows: Sequence[RawRow], decode_state: State | None) -> int:
        rest = bulk.take(rows)
        decoded = len(rows) - len(rest) + self._decode(rest, decode_state)
        if any(row[3].__class__ is not str for row in rest):
            # The others wait, and are put into their places.
            for queue in self._queues.values():
                queue.sort(key=_id_of)
        return decoded

    def _take_newest(self) -> None:
        """Queue the rows that wait, each event in its place."""
        late: dict[int, _Queue] = {}
        for kind, route in self._waiting.items():
            for row in route.newest or ():
                ts, content = text_or_empty(row[1]), row[3]
                # Their takers see the content alone.
                event = _new_tuple(Event, (row[0], ts, kind, content, _NO_META))
                for _, _, appends in route.takers:
                    for append in appends:
                        append(event)
                if route.wide is not None:
                    route.wide.take(row, ts, kind, content, _NO_META)
            if route.newest:
                late.update((id(queue), queue) for queue in route.queues)
                route.newest.clear()
        for queue in late.values():
            queue.sort(key=_id_of)

    def _route(self, kind: str) -> _Route:
        takers = [(self.folds[name], queue) for name, queue in self._queues.items()]
        takers = [(fold, queue) for fold, queue in takers if fold.kinds is None or kind in fold.kinds]
        needs = [_columns(fold, kind) for fold, _ in takers]
        shared = frozenset[Column]().union(
            *(need for (fold, _), need in zip(takers, needs, strict=True) if fold.shares_events)
        )
        groups: dict[frozenset[Column], list[Callable[[Event], None]]] = {}
        wide = []
        for (fold, queue), need in zip(takers, needs, strict=True):
            if fold.columns:
                wide.append(("meta" in need, "content" in need, tuple(fold.columns), queue))
            else:
                groups.setdefault(shared if fold.shares_events else need, []).append(queue.append)
        route = _Route(
            any("meta" in need for need in needs),
            any("content" in need for need in needs),
            tuple(("meta" in columns, "content" in columns, tuple(appends)) for columns, appends in groups.items()),
            _newest(kind, [fold for fold, _ in takers]),
            tuple(queue for _, queue in takers),
            _WideTaker(self._wide_rows, wide) if wide else None,
        )
        if self.kinds is None or kind in self.kinds:
            self._routes[kind] = route
            if route.newest is not None:
                self._waiting[kind] = route
        return route


def _columns(fold: Fold, kind: str) -> frozenset[Column]:
    return frozenset(_BOTH if fold.kinds is None else fold.kinds[kind])


def _newest(kind: str, takers: Sequence[Fold]) -> deque[RawRow] | None:
    """Where rows of a kind can wait of which all takers want the newest only, and of these the content alone."""
    counts = [
        fold.newest_max.get(kind, 0)
        if isinstance(fold, BatchFold) and fold.takes_batches and _columns(fold, kind) == {"content"}
        else 0
        for fold in takers
        if not fold.columns
    ]
    if len(counts) < len(takers):
        return None
    return deque(maxlen=max(counts)) if counts and all(counts) else None


def _takes_batches(fold: Fold) -> bool:
    return isinstance(fold, BatchFold) and fold.takes_batches


def apply_events(fold: Fold, events: Sequence[Event], state: State, in_batches: bool | None = None) -> None:
    """Fold events into the state of one fold, as a batch where it takes batches; `in_batches` says so, if known."""
    if not (_takes_batches(fold) if in_batches is None else in_batches):
        for event in events:
            _apply_one(fold, event, state)
        return
    state.begin_event(events[0].id)
    try:
        cast(BatchFold, fold).apply_batch(events, state)
        if fold.checks_values:
            state.check_values()
    except (MemoryError, StoreError):
        raise
    except BaseException as error:
        state.rollback()
        failures = [_apply_one(fold, event, state) for event in events]
        if type(error) not in failures and not isinstance(error, RecursionError):
            # It recurs at no event: it came from outside.
            raise


def _run(fold: Fold, apply: Callable[[T, State], None], what: T, state: State) -> None:
    apply(what, state)
    if fold.checks_values:
        state.check_values()


def _apply_one(fold: Fold, event: Event, state: State) -> type[BaseException] | None:
    """Fold one event. Returns the class of its failure, if any: then only its quarantine entry is left."""
    state.begin_event(event.id)
    try:
        _run(fold, fold.apply, event, state)
    except (MemoryError, StoreError):
        raise
    except BaseException as error:
        # A fold may even call `sys.exit`: a daemon that ended with it would end at each start.
        state.rollback()
        return _apply_again(fold, event, state, error)
    return None


def _apply_again(fold: Fold, event: Event, state: State, first: BaseException) -> type[BaseException] | None:
    """Find out the cause of a failure: on a fresh stack, where no signal handler runs, only the event's own recurs.

    Raises:
        BaseException: `first`, when it came from outside: from a signal handler of the program that reads.
        MemoryError, StoreError: it is not the event's.
    """

    try:
        on_fresh_stack(lambda: _run(fold, fold.apply, event, state))
    except (MemoryError, StoreError):
        raise
    except BaseException as error:
        state.rollback()
        if not isinstance(first, Exception) and type(error) is not type(first):
            # The program is told to end, at an event at which the fold fails as well.
            raise first from None
        state.quarantine(f"{type(error).__name__}: {error}"[:200])
        return type(error)
    if not isinstance(first, RecursionError):
        raise first
    return None


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

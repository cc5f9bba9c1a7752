"""The laws of a fold, checked over events in memory: in all the ways in which daemon, catch-up, replay and verification
fold them. No ledger, daemon or network is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from unittest import mock

from pmm_shm.codec import pack, unpack
from pmm_shm.errors import FoldError
from pmm_shm.folds import engine as engine_module
from pmm_shm.folds.contract import Fold, checked_fold
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.state import QUARANTINE, State, cell_key, readable_part, table_prefix
from pmm_shm.ledger.rows import RawRow
from pmm_shm.testing.events import Given, hostile_rows, rows_of
from pmm_shm.testing.values import changeable_part, first_difference, shape, shown
from pmm_shm.testing.watching import DeclaredEvent, StateEntries, StoredBase, Witness, meta_of, other_circumstances

_SPLITS_NEWEST, _SPLITS_OTHERS = 24, 12
_CUTS: tuple[tuple[int, ...], ...] = ((1_000_000,), (2,), (3, 1), (7, 2, 19))
_LATER_S = 400 * 86_400.0


def check_fold(fold: Fold | type[Fold], events: Iterable[Given] | None = None, *, seed: int = 0) -> None:
    """Check that a fold keeps the laws, over these events and over hostile variants of them.

    It finds neither a dependence on the order of a `set`, which is the same within one process, nor one on the date
    through `datetime.now()`.

    Parameters:
        fold: the class, if it takes no arguments, or an instance.
        events: as `append_many` takes them: (kind, content, meta), or mappings with these keys, `ts` and other columns.
            Without them, events are made up from the fold's kinds and the keys of `meta` that it asks for.
        seed: of the hostile variants; the same seed gives the same events.

    Raises:
        AssertionError: a law is broken; the message names the law, the event, and the two values that differ.
    """
    try:
        made = checked_fold(fold() if isinstance(fold, type) else fold)
    except FoldError as error:
        raise AssertionError(f"the fold breaks the contract: {error}") from error
    given = None if events is None else rows_of(events, made)
    rows = hostile_rows(_copied(made), given, seed)
    # The engine makes sure of each failure in a new thread: half of the time of a check.
    with mock.patch.object(engine_module, "on_fresh_stack", lambda action: action()):
        _Laws(made, rows, {row[1:] for row in given or ()}).check()


class _Laws:
    """The laws over one list of rows; `given` holds the test's own rows, without ids."""

    def __init__(self, fold: Fold, rows: Sequence[RawRow], given: set[RawRow]) -> None:
        self._fold = fold
        self._pristine = _copied(fold)
        self._rows = rows
        self._given = given
        self._places = {column: 5 + number for number, column in enumerate(fold.columns)}
        self._identity = fold.identity()
        self._after: list[StateEntries] = []
        self._is_quarantined: list[bool] = []

    def check(self) -> None:
        """Check each law, the plainest first."""
        self._events_one_by_one()
        self._events_can_be_used()
        self._only_declared_columns()
        self._the_same_again()
        self._malformed_events()
        self._batches()
        self._restarts()
        self._views()
        self._patches()
        self._fixed_identity()

    def _events_one_by_one(self) -> None:
        """The state after each event, which all other ways are compared with."""
        state, witness = State(), Witness(self._fold)
        engine = Engine([self._fold, witness])
        states = {self._fold.name: state, witness.name: State()}
        handed_out: dict[bytes, tuple[Any, bytes]] = {}
        with other_circumstances(1, 0.0):
            for number, row in enumerate(self._rows):
                refused = state.get(QUARANTINE, 0)
                engine.apply([row], states, self._places)
                for key, (value, data) in handed_out.items():
                    if pack(value) != data:
                        part = readable_part(key, data if key[:1] == b"c" else pack([_key_of(self._after[-1][key]), 0]))
                        self._broken("values are never changed in place", number, part, unpack(data), value)
                entries = self._entries(state, number)
                handed_out = {key: (value := _value_at(state, key, data), pack(value)) for key, data in entries.items()}
                self._after.append(entries)
                self._is_quarantined.append(state.get(QUARANTINE, 0) > refused)
                seen = witness.metas.get(row[0])
                meta = meta_of(row)
                if seen is not None and seen not in (pack(meta), pack({})):
                    self._broken("`event.meta` is never changed", number, "event.meta", meta, unpack(seen))

    def _events_can_be_used(self) -> None:
        """A test that quarantines all it has tests nothing."""
        rows = [number for number, row in enumerate(self._rows) if not self._given or row[1:] in self._given]
        if rows and all(self._is_quarantined[number] for number in rows):
            entry = next(value for key, value in self._after[-1].items() if key.startswith(table_prefix(QUARANTINE)))
            hint = "" if self._given else "; give events of yours, `check_fold(fold, events=[...])`"
            raise AssertionError(
                f"fold {self._fold.name!r}: it can use none of {len(rows)} events: {unpack(entry)[1][1]}{hint}"
            )

    def _only_declared_columns(self) -> None:
        for number, row in enumerate(self._rows):
            event = DeclaredEvent.of(row, self._fold, self._places)
            if event is None:
                continue
            try:
                _copied(self._pristine).apply(event, State(StoredBase(self._after[number - 1] if number else {})))
            except (Exception, SystemExit):
                pass
            for name in event.asked:
                where = "`columns`" if name.startswith("columns[") else f"`kinds` for {row[2]!r}"
                raise AssertionError(
                    f'fold {self._fold.name!r} breaks the law "only declared columns are used" at event {row[0]}: it '
                    f"reads event.{name}, which {where} does not declare"
                )

    def _the_same_again(self) -> None:
        """With the same instance, at another time, and with other random numbers."""
        law = "the same events give the same state (no clock, no random numbers, nothing kept in the fold itself)"
        with other_circumstances(2, _LATER_S):
            for number, entries in enumerate(self._singles(self._rows)):
                self._same(law, number, self._after[number], entries, "at first", "again")

    def _batches(self) -> None:
        law = "a batch equals its events one by one"
        for sizes in _CUTS:
            if self._cut(self._rows, sizes) == self._after[-1:]:
                continue
            # The shortest log that shows it, from the first event on.
            for number in range(len(self._rows)):
                for entries in self._cut(self._rows[: number + 1], sizes):
                    self._same(law, number, self._after[number], entries, "one by one", "in batches")

    def _restarts(self) -> None:
        law = "a restart changes nothing (the state is stored and loaded)"
        stored: StateEntries = {}
        for number, row in enumerate(self._rows):
            stored = self._folded([row], stored, number)
            self._same(law, number, self._after[number], stored, "in memory", "stored and loaded after each event")
        law = "every split of the log gives the same state"
        for split in self._splits():
            for rows in (self._rows[split:], self._rows[split : split + 3]):
                last = split + len(rows) - 1
                if rows and self._folded(rows, self._after[split - 1], last) != self._after[last]:
                    for number in range(split, last + 1):
                        entries = self._folded(self._rows[split : number + 1], self._after[split - 1], number)
                        self._same(
                            law,
                            number,
                            self._after[number],
                            entries,
                            "in memory",
                            f"loaded behind event {self._id(split - 1)}",
                        )

    def _malformed_events(self) -> None:
        """An event that was quarantined, and changed nothing else, might as well not have been there."""
        law = "an event in the quarantine leaves nothing else"
        kept: list[int] = []
        without: StateEntries = {}
        for number in range(len(self._rows)):
            before = _beside_quarantine(self._after[number - 1]) if number else {}
            if not (self._is_quarantined[number] and _beside_quarantine(self._after[number]) == before):
                kept.append(number)
        for number, entries in zip(kept, self._singles([self._rows[one] for one in kept]), strict=True):
            without = _beside_quarantine(entries)
            self._same(
                law, number, without, _beside_quarantine(self._after[number]), "without such events", "with them"
            )

    def _views(self) -> None:
        live, kept = State(), []
        self._view(live, None)
        engine = Engine([self._fold])
        for number, row in enumerate(self._rows):
            engine.apply([row], {self._fold.name: live}, self._places)
            view = self._view(live, number)
            part = changeable_part(view)
            if part is not None:
                self._fail("a view cannot be changed", number, f"{part}; make it with pmm_shm.frozen.frozen")
            stored = shape(self._view(State(StoredBase(self._after[number])), number))
            self._same_view(
                "a view is that of the state, in memory or stored", number, shape(view), stored, "in memory", "stored"
            )
            kept.append((view, stored))
        for number, (view, before) in enumerate(kept):
            self._same_view("a view stays as it is", number, before, shape(view), "when it was made", "later")

    def _patches(self) -> None:
        for split in (0, *self._splits()):
            base = self._after[split - 1] if split else {}
            for step in (1, 3):
                self._patched(base, split, step)

    def _patched(self, base: StateEntries, split: int, step: int) -> None:
        state = State(StoredBase(base))
        view, engine = self._view(state, split - 1 if split else None), Engine([self._fold])
        rows = self._rows[split:] if step > 1 or not split else self._rows[split : split + 4]
        for first in range(0, len(rows), step):
            number = min(split + first + step, split + len(rows)) - 1
            engine.apply(rows[first : first + step], {self._fold.name: state}, self._places)
            try:
                view = self._fold.patch(view, state, state.take_touched())
            except Exception as error:
                self._fail("patch equals view", number, f"patch raises {type(error).__name__}: {error}", error)
            expected = shape(self._view(State(StoredBase(self._after[number])), number))
            self._same_view("patch equals view", number, expected, shape(view), "by view", "by patch")

    def _fixed_identity(self) -> None:
        made = _copied(self._pristine)
        made.__dict__.pop("_identity", None)
        self._fold.__dict__.pop("_identity", None)
        for identity, when in ((self._fold.identity(), "after the events"), (made.identity(), "in a copy")):
            if identity != self._identity:
                raise AssertionError(
                    f'fold {self._fold.name!r} breaks the law "name, version and parameters never change": '
                    f"{self._identity!r:.200} at first, {identity!r:.200} {when}"
                )

    # Ways to fold.

    def _singles(self, rows: Sequence[RawRow]) -> Iterator[StateEntries]:
        state, engine = State(), Engine([self._fold])
        for number, row in enumerate(rows):
            engine.apply([row], {self._fold.name: state}, self._places)
            yield self._entries(state, number)

    def _cut(self, rows: Sequence[RawRow], sizes: Sequence[int]) -> list[StateEntries]:
        """The state behind batches of these sizes, over and over, as a list of one."""
        state, engine, start, turn = State(), Engine([self._fold]), 0, 0
        while start < len(rows):
            size = sizes[turn % len(sizes)]
            engine.apply(rows[start : start + size], {self._fold.name: state}, self._places)
            start, turn = start + size, turn + 1
        return [self._entries(state, len(rows) - 1)]

    def _folded(self, rows: Sequence[RawRow], base: StateEntries, number: int) -> StateEntries:
        """The stored state behind `rows`, folded at once on an overlay over a stored state."""
        state = State(StoredBase(base))
        Engine([self._fold]).apply(rows, {self._fold.name: state}, self._places)
        return self._entries(state, number, base)

    def _entries(self, state: State, number: int, base: Mapping[bytes, bytes] | None = None) -> StateEntries:
        entries = dict(base or {})
        try:
            for key, value in state.changes():
                if value is None:
                    entries.pop(key, None)
                else:
                    entries[key] = value
        except TypeError as error:
            self._fail("values can be stored", number, str(error), error)
        return entries

    def _view(self, state: State, number: int | None) -> Any:
        try:
            return self._fold.view(state)
        except Exception as error:
            self._fail("there is a view of every state", number, f"view raises {type(error).__name__}: {error}", error)

    def _splits(self) -> list[int]:
        """Where the log is split: before each of the newest events, and before some of the others."""
        count = len(self._rows)
        newest = range(max(1, count - _SPLITS_NEWEST), count)
        others = range(1, newest.start, max(1, newest.start // _SPLITS_OTHERS))
        return sorted({*others, *newest})

    # What to say.

    def _same(self, law: str, number: int, one: StateEntries, other: StateEntries, when: str, when_other: str) -> None:
        if one == other:
            return
        key = min(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        part = readable_part(key, one.get(key) or other.get(key))
        values = [_stored_value(key, entries.get(key)) for entries in (one, other)]
        self._fail(law, number, f"{part}: {values[0]} {when}, {values[1]} {when_other}")

    def _same_view(self, law: str, number: int, one: Any, other: Any, when: str, when_other: str) -> None:
        found = first_difference(one, other)
        if found is not None:
            self._fail(law, number, f"{found[0]}: {shown(found[1])} {when}, {shown(found[2])} {when_other}")

    def _broken(self, law: str, number: int, part: str, before: Any, after: Any) -> NoReturn:
        self._fail(law, number, f"{part}: {before!r:.200} before, {after!r:.200} after")

    def _fail(self, law: str, number: int | None, what: str, cause: Exception | None = None) -> NoReturn:
        where = "the start, without events"
        if number is not None:
            where = f"event {self._id(number)} (kind {self._rows[number][2]!r})"
        raise AssertionError(f'fold {self._fold.name!r} breaks the law "{law}" at {where}: {what}') from cause

    def _id(self, number: int) -> int:
        return int(self._rows[number][0])


def _copied(fold: Fold) -> Fold:
    """The fold as it is now; one that cannot be copied itself."""
    try:
        return copy.deepcopy(fold)
    except Exception:
        return fold


def _beside_quarantine(entries: StateEntries) -> StateEntries:
    ours = cell_key(QUARANTINE), table_prefix(QUARANTINE)
    return {key: value for key, value in entries.items() if key != ours[0] and not key.startswith(ours[1])}


def _key_of(data: bytes) -> Any:
    return unpack(data)[0]


def _value_at(state: State, key: bytes, data: bytes) -> Any:
    """The very object that a fold gets for a key."""
    if key[:1] == b"c":
        return state.get(key[1:].decode())
    return state.table(key[2 : 2 + key[1]].decode()).get(_key_of(data))


def _stored_value(key: bytes, data: bytes | None) -> str:
    if data is None:
        return "nothing"
    return f"{unpack(data) if key[:1] == b'c' else unpack(data)[1]!r:.200}"

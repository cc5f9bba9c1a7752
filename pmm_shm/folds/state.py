"""The state of one fold: cells (one value) and tables (key to value), as an overlay over a base.

Reads fall through to the base, writes stay in the overlay. In the daemon the base is LMDB, and each batch flushes the
overlay; in a client the base is a read transaction and the overlay is the catch-up; in a full replay the base is
empty.

Invariant: values handed out are never changed in place; a fold puts a new value.
Invariant: an event that a fold fails at leaves no trace but its entry in the quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator

from pmm_shm import limits
from pmm_shm.codec import SIMPLE_KEYS, Key, check_key, pack, pack_key, unpack
from pmm_shm.typed import Any, Final, Protocol

QUARANTINE = "quarantine"


class Base(Protocol):
    """The layer below an overlay; its keys are those of `cell_key` and `Table`."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]: ...


class EmptyBase:
    """The base of a full replay."""

    def get(self, key: bytes, /) -> bytes | None:
        return None

    def scan(self, prefix: bytes, /) -> Iterator[tuple[bytes, bytes]]:
        return iter(())


EMPTY: Final = EmptyBase()


class _Missing:
    __slots__ = ()


_MISSING: Final = _Missing()
_Undo = list[tuple[dict[Any, Any], Any, Any]]


def cell_key(name: str) -> bytes:
    """Key of a cell within its fold's part of the store."""
    return b"c" + name.encode()


def table_prefix(name: str) -> bytes:
    """Prefix of a table's keys within its fold's part of the store."""
    encoded = name.encode()
    return b"t" + bytes([len(encoded)]) + encoded


def readable_part(key: bytes, value: bytes | None) -> str:
    """A key of a fold's part of the store in words; `value` is what is stored there."""
    if key[:1] == b"c":
        return f"cell {key[1:].decode(errors='replace')!r}"
    table = key[2 : 2 + key[1]].decode(errors="replace")
    try:
        entry = repr(unpack(value or b"")[0])[:80]
    except Exception:
        entry = key.hex()[:80]
    return f"table {table!r}, key {entry}"


class Table:
    """A mapping of one fold, created by `State.table`; its items have no order."""

    __slots__ = ("_clean", "_dirty", "_prefix", "_state", "_touched", "_undo")

    def __init__(self, state: State, name: str, undo: _Undo) -> None:
        self._state = state
        self._prefix = table_prefix(name)
        self._dirty: dict[Key, Any] = {}
        self._clean: dict[Key, Any] = {}
        self._touched: set[Key] = set()
        self._undo = undo

    def get(self, key: Key, default: Any = None) -> Any:
        """The value at `key`, or `default`."""
        if key.__class__ not in SIMPLE_KEYS:
            check_key(key)
        value = self._dirty.get(key, _MISSING)
        if value is _MISSING:
            if self._state.base is EMPTY:
                return default
            value = self._clean.get(key, _MISSING)
            if value is _MISSING:
                value = self._load(key)
                self._state.is_used = True
                self._clean[key] = value
        return default if value is None else value

    def __contains__(self, key: Key) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: Key) -> Any:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Key, value: Any) -> None:
        """Set a value; None is not allowed (use `del`)."""
        if value is None:
            raise TypeError("a table holds no None; delete the key instead")
        self._put(key, value)

    def __delitem__(self, key: Key) -> None:
        """Remove `key`, if it is in the table."""
        self._put(key, None)

    def items(self) -> Iterator[tuple[Key, Any]]:
        """All (key, value) pairs, in no order."""
        for _, data in self._state.base.scan(self._prefix):
            key, value = unpack(data)
            if key not in self._dirty:
                yield key, value
        for key, value in self._dirty.items():
            if value is not None:
                yield key, value

    def values(self) -> Iterator[Any]:
        """All values, in no order."""
        return (value for _, value in self.items())

    def _put(self, key: Key, value: Any) -> None:
        if key.__class__ not in SIMPLE_KEYS:
            check_key(key)
        dirty = self._dirty
        self._undo.append((dirty, key, dirty.get(key, _MISSING)))
        if value is None and self._state.base is EMPTY:
            # The base has no value to hide.
            dirty.pop(key, None)
        else:
            dirty[key] = value
        self._touched.add(key)

    def _load(self, key: Key) -> Any:
        data = self._state.base.get(self._prefix + pack_key(key))
        return None if data is None else unpack(data)[1]

    def _changes(self) -> Iterator[tuple[bytes, bytes | None]]:
        for key, value in self._dirty.items():
            yield self._prefix + pack_key(key), None if value is None else pack([key, value])


class State:
    """Cells and tables of one fold.

    `state["ias"]` and `state["ias"] = 0.5` read and set a cell, `state.get("ias", 0.0)` reads with a default,
    `state.table("penalties")` is a table. Values are JSON values, bytes and tuples of these; keys are text, integers
    and tuples of these.
    """

    __slots__ = ("_clean", "_dirty", "_tables", "_touched", "_undo", "base", "event_id", "is_used")

    def __init__(self, base: Base = EMPTY) -> None:
        self.base = base
        self.event_id = 0
        # Whether there may be anything on top of the base: writes, or values that were read from it.
        self.is_used = False
        self._undo: _Undo = []
        self._dirty: dict[str, Any] = {}
        self._clean: dict[str, Any] = {}
        self._tables: dict[str, Table] = {}
        self._touched = False

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a cell, or `default`."""
        value = self._dirty.get(name, _MISSING)
        if value is _MISSING:
            if self.base is EMPTY:
                return default
            value = self._clean.get(name, _MISSING)
            if value is _MISSING:
                data = self.base.get(cell_key(name))
                value = None if data is None else unpack(data)
                self.is_used = True
                self._clean[name] = value
        return default if value is None else value

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        dirty = self._dirty
        self._undo.append((dirty, name, dirty.get(name, _MISSING)))
        dirty[name] = value
        self._touched = True

    def table(self, name: str) -> Table:
        """The table of this name (at most 64 bytes)."""
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(self, name, self._undo)
        return table

    def quarantine(self, reason: str, event_id: int | None = None) -> None:
        """Record that an event could not be used. The newest 1,000 are kept, and the count of all.

        Parameters:
            event_id: the event; required within a batch of several, by default the current event.
        """
        count = self.get(QUARANTINE, 0)
        entries = self.table(QUARANTINE)
        entries[count] = (self.event_id if event_id is None else event_id, reason)
        if count >= limits.QUARANTINE_ENTRIES_MAX:
            del entries[count - limits.QUARANTINE_ENTRIES_MAX]
        self[QUARANTINE] = count + 1

    # The methods below are for code that moves a state along the log, not for folds.

    def begin_event(self, event_id: int) -> None:
        """Call it before each event or batch: `rollback` returns to this point."""
        self.event_id = event_id
        self.is_used = True
        self._undo.clear()

    def check_values(self) -> None:
        """Raise `TypeError` if a value that was set since `begin_event` cannot be stored."""
        for target, key, _ in self._undo:
            pack(target.get(key))

    def rollback(self) -> None:
        """Undo every write since `begin_event`."""
        while self._undo:
            target, key, value = self._undo.pop()
            if value is _MISSING:
                target.pop(key, None)
            else:
                target[key] = value

    def take_touched(self) -> Touched:
        """The parts that were written since the last call (or more, after a rollback)."""
        tables = {}
        for name, table in self._tables.items():
            if table._touched:
                tables[name], table._touched = table._touched, set()
        cells, self._touched = self._touched, False
        return Touched(cells, tables)

    def copy(self) -> State:
        """Another state with the same values over the same base: they are never changed in place."""
        other = State(self.base)
        other.event_id, other.is_used, other._touched = self.event_id, self.is_used, self._touched
        other._dirty, other._clean = self._dirty.copy(), self._clean.copy()
        for name, table in self._tables.items():
            theirs = other.table(name)
            theirs._dirty, theirs._clean = table._dirty.copy(), table._clean.copy()
            theirs._touched = table._touched.copy()
        return other

    def changes(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Every (key, value) to write to the store; the value None means delete."""
        for name, value in self._dirty.items():
            yield cell_key(name), None if value is None else pack(value)
        for table in self._tables.values():
            yield from table._changes()

    def key_count(self) -> int:
        """The number of keys in the overlay."""
        return len(self._dirty) + sum(len(table._dirty) for table in self._tables.values())

    def drop_overlay(self) -> None:
        """Forget the overlay, and what was read from the base."""
        self._undo.clear()
        self._dirty.clear()
        self._clean.clear()
        # Those that are used again are made anew: most events use none of them.
        self._tables.clear()
        self.is_used = self._touched = False


class Touched:
    """The parts of one fold's state that were written: `cells` (whether any cell was), and the keys per table."""

    __slots__ = ("cells", "tables")

    def __init__(self, cells: bool = False, tables: dict[str, set[Key]] | None = None) -> None:
        self.cells = cells
        self.tables = tables or {}

    def __bool__(self) -> bool:
        return self.cells or bool(self.tables)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Touched) and self.cells == other.cells and self.tables == other.tables

    __hash__ = None  # type: ignore[assignment]

    def key_count(self) -> int:
        return sum(len(keys) for keys in self.tables.values())

    def merge(self, other: Touched) -> None:
        self.cells = self.cells or other.cells
        for name, keys in other.tables.items():
            self.tables.setdefault(name, set()).update(keys)

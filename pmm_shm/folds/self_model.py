"""The self-model: identity, traits, commitments; strict and non-strict from one state.

State:
    cells `identity` ([name, whether adopted]), `traits` ([traits, strict traits], five floats each, O C E A N),
    `commitments` ([next ordinal of an entry, count of warnings, [cid, event id] of the first warning]);
    tables `open` (cid to [ordinal, entry]), `expired` (likewise), `evidence` (cids with evidence of type `done`),
    `warnings` (ordinal to [cid, event id] of a close without evidence).

Sorted by their ordinals, entries are in the order of insertion, as a dict would keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pmm_shm import limits
from pmm_shm.codec import Key
from pmm_shm.errors import ProjectionInvariantError
from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.fields import is_cid, to_float, to_int
from pmm_shm.folds.state import State, Table, Touched
from pmm_shm.frozen import FrozenDict, frozen
from pmm_shm.late import late_imports
from pmm_shm.ledger.rows import Event
from pmm_shm.typed import Any, NamedTuple, TypedDict

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
MAX_TRAIT_DELTA = 0.05
TRAIT_INDEX = {name: index for index, name in enumerate(TRAITS)} | {name[0]: i for i, name in enumerate(TRAITS)}
_NEUTRAL = [0.5, 0.5, 0.5, 0.5, 0.5]
_NO_IDENTITY: list[Any] = [None, False]
_NEUTRAL_TRAITS: list[Any] = [_NEUTRAL, _NEUTRAL]
_NO_COMMITMENTS: list[Any] = [0, 0, None]
_NAME_CHANGED = r"name\s+changed\s+to:\s*([^\n]+)"
Cid = str | int


class _Opened(TypedDict):
    cid: Cid
    text: Any


class OpenCommitment(_Opened, total=False):
    """The meta of the event that opened a commitment, as that event has it: it may have other keys, too."""

    source: Any
    snoozed_until: int


class ExpiredCommitment(TypedDict):
    """An expired commitment; `expired_at` is the id of the event."""

    text: Any
    expired_at: int
    reason: Any


class Entries:
    """An ordered, read-only mapping of cids to entries.

    A patch is only noted, and applied when somebody looks at the mapping: many readers want the name or the traits, and
    to copy a mapping of 10,000 entries takes longer than all else of a read. Thread-safe.
    """

    __slots__ = ("_before", "_changes", "_made", "_noted")

    def __init__(self, ordinals: dict[Cid, int], entries: FrozenDict) -> None:
        # No mapping proxy: that cannot be pickled.
        self._made: tuple[dict[Cid, int], FrozenDict] | None = (ordinals, entries)
        self._before: Entries | None = None
        self._changes: Mapping[Cid, Any] = {}
        self._noted = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Entries, self._applied()

    @classmethod
    def load(cls, table: Table) -> Entries:
        rows: list[tuple[int, Any, Any]] = [(value[0], cid, value[1]) for cid, value in table.items()]
        rows.sort(key=lambda row: row[0])
        entries = FrozenDict({cid: frozen(entry) for _, cid, entry in rows})
        return cls({cid: ordinal for ordinal, cid, _ in rows}, entries)

    @property
    def mapping(self) -> FrozenDict:
        """The mapping."""
        return (self._made or self._applied())[1]

    def patched(self, table: Table, touched: set[Key]) -> Entries:
        """The entries after the keys in `touched` were written; the rest is not decoded again."""
        if self._noted > limits.TOUCHED_KEYS_MAX:
            self._applied()
        other = Entries.__new__(Entries)
        other._made, other._before = None, self
        other._changes = {cid: table.get(cid) for cid in touched if not isinstance(cid, tuple)}
        other._noted = len(touched) + (self._noted if self._made is None else 0)
        return other

    def _applied(self) -> tuple[dict[Cid, int], FrozenDict]:
        """Ordinals and mapping, after the noted changes."""
        noted: list[Mapping[Cid, Any]] = []
        one: Entries | None = self
        while one is not None:
            # In this order: another thread sets the one before it clears the other.
            before, made = one._before, one._made
            if made is not None:
                break
            noted.append(one._changes)
            one = before
        assert made is not None
        if noted:
            # Ten times as fast as to change a dict and freeze it. The new one is nobody's yet, so it may be changed.
            made = made[0].copy(), FrozenDict(made[1])
            for changes in reversed(noted):
                _apply_changes(*made, changes)
            self._made = made
            self._before, self._changes = None, {}
        return made


def _apply_changes(ordinals: dict[Cid, int], entries: FrozenDict, changes: Mapping[Cid, Any]) -> None:
    moved: list[tuple[int, Cid, Any]] = []
    for cid, row in changes.items():
        if row is not None and ordinals.get(cid) == row[0]:
            dict.__setitem__(entries, cid, frozen(row[1]))
            continue
        ordinals.pop(cid, None)
        dict.pop(entries, cid, None)
        if row is not None:
            moved.append((row[0], cid, row[1]))
    # A new ordinal is greater than all others, so moved entries are at the end.
    for ordinal, cid, entry in sorted(moved, key=lambda row: row[0]):
        ordinals[cid] = ordinal
        dict.__setitem__(entries, cid, frozen(entry))


class SelfModel(NamedTuple):
    """The self-model at one position.

    Attributes:
        name: the adopted name, as an event set it: any JSON value; None if there is none.
        traits, strict_traits: trait name to float, in the order O C E A N; the latter with each delta limited to 0.05.
        warning_count: closes without evidence so far.
        violation: the error that a strict read raises, or None.
    """

    name: Any
    traits: Mapping[str, float]
    strict_traits: Mapping[str, float]
    warning_count: int
    violation: ProjectionInvariantError | None
    open_entries: Entries
    expired_entries: Entries

    @property
    def open(self) -> Mapping[Cid, OpenCommitment]:
        """Cid to the commitment's meta, in order."""
        return self.open_entries.mapping

    @property
    def expired(self) -> Mapping[Cid, ExpiredCommitment]:
        """Cid to {"text", "expired_at", "reason"}, in order."""
        return self.expired_entries.mapping


class SelfModelFold(BatchFold):
    """Computes `SelfModel`."""

    name = "self_model"
    version = 2
    checks_values = False
    shares_events = True
    kinds: Mapping[str, tuple[Column, ...]] = {
        "identity_change": ("content", "meta"),
        "identity_adopt": ("content", "meta"),
        "identity_clear": (),
        "trait_update": ("meta",),
        "commitment_open": ("meta",),
        "evidence_candidate": ("meta",),
        "commitment_close": ("meta",),
        "commitment_expire": ("meta",),
        "commitment_snooze": ("meta",),
    }

    def __init__(self, max_trait_delta: float = MAX_TRAIT_DELTA) -> None:
        self._max_trait_delta = max_trait_delta
        self.parameters = {"max_trait_delta": max_trait_delta}
        self._handlers = {
            **IDENTITY_STEPS,
            "trait_update": self._trait_update,
            "commitment_open": _commitment_open,
            "evidence_candidate": _evidence_candidate,
            "commitment_close": _commitment_close,
            "commitment_expire": _commitment_expire,
            "commitment_snooze": _commitment_snooze,
        }

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        handlers = self._handlers
        for event in events:
            handlers[event.kind](event, state)

    def view(self, state: State) -> SelfModel:
        return _view(state, Entries.load(state.table("open")), Entries.load(state.table("expired")))

    def patch(self, view: SelfModel, state: State, touched: Touched) -> SelfModel:
        entries = {"open": view.open_entries, "expired": view.expired_entries}
        for name in touched.tables.keys() & entries.keys():
            entries[name] = entries[name].patched(state.table(name), touched.tables[name])
        return _view(state, entries["open"], entries["expired"])

    def _trait_update(self, event: Event, state: State) -> None:
        limit = self._max_trait_delta
        for index, delta in trait_deltas(event.meta):
            limited = (limit if delta > 0 else -limit) if abs(delta) > limit else delta
            loose, strict = state.get("traits", _NEUTRAL_TRAITS)
            state["traits"] = [_moved(loose, index, delta), _moved(strict, index, limited)]


def _moved(traits: list[float], index: int, delta: float) -> list[float]:
    moved = list(traits)
    moved[index] = max(0.0, min(1.0, moved[index] + delta))
    return moved


def trait_deltas(meta: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(index in `TRAITS`, delta) of each change that a `trait_update` with this meta makes, in order."""
    delta = meta.get("delta")
    trait = str(meta.get("trait") or "").strip().lower()
    # Keys of the *many* shape are not stripped.
    items = [(key.lower(), value) for key, value in delta.items()] if isinstance(delta, dict) and not trait else None
    deltas = []
    for key, value in [(trait, delta)] if items is None else items:
        index = TRAIT_INDEX.get(key)
        if index is not None:
            deltas.append((index, to_float(value) or 0.0))
    return deltas


def _view(state: State, open_entries: Entries, expired_entries: Entries) -> SelfModel:
    name, is_adopted = state.get("identity", _NO_IDENTITY)
    loose, strict = state.get("traits", _NEUTRAL_TRAITS)
    _, warning_count, first_warning = state.get("commitments", _NO_COMMITMENTS)
    return SelfModel(
        name=frozen(name),
        traits=FrozenDict(zip(TRAITS, loose, strict=True)),
        strict_traits=FrozenDict(zip(TRAITS, strict, strict=True)),
        warning_count=warning_count,
        violation=_violation(first_warning, is_adopted and name is None),
        open_entries=open_entries,
        expired_entries=expired_entries,
    )


def _violation(first_warning: Sequence[Any] | None, is_nameless: bool) -> ProjectionInvariantError | None:
    if first_warning is not None:
        return ProjectionInvariantError("close_without_evidence", first_warning[0], first_warning[1])
    return ProjectionInvariantError("identity") if is_nameless else None


def name_in(state: State) -> Any:
    """The name in the state of a fold that uses `IDENTITY_STEPS`: any JSON value, None if there is none."""
    return state.get("identity", _NO_IDENTITY)[0]


def traits_in(state: State) -> Sequence[float]:
    """The traits in the fold's state, in the order of `TRAITS`."""
    traits: Sequence[float] = state.get("traits", _NEUTRAL_TRAITS)[0]
    return traits


def warning_count_in(state: State) -> int:
    """The number of closes without evidence in the fold's state."""
    count: int = state.get("commitments", _NO_COMMITMENTS)[1]
    return count


def warnings_since(state: State, count: int) -> list[tuple[Cid, int]]:
    """(cid, event id) of every close without evidence after the first `count`, in order."""
    table = state.table("warnings")
    return [tuple(table[ordinal]) for ordinal in range(count, warning_count_in(state))]


def _identity_change(event: Event, state: State) -> None:
    name = event.meta.get("name")
    if not name:
        with late_imports:
            import re
        match = re.search(_NAME_CHANGED, event.content, re.IGNORECASE)
        name = match.group(1).strip() if match else ""
    if name:
        state["identity"] = [name, state.get("identity", _NO_IDENTITY)[1]]


def _identity_adopt(event: Event, state: State) -> None:
    candidate = event.meta.get("name") or event.content
    if isinstance(candidate, str) and candidate:
        name = candidate.strip()
        # A blank name clears the name, but not the fact that one was adopted.
        state["identity"] = [name, True] if name else [None, state.get("identity", _NO_IDENTITY)[1]]


def _identity_clear(event: Event, state: State) -> None:
    state["identity"] = _NO_IDENTITY


IDENTITY_STEPS: Mapping[str, Callable[[Event, State], None]] = {
    "identity_change": _identity_change,
    "identity_adopt": _identity_adopt,
    "identity_clear": _identity_clear,
}
"""Event kind to the function that applies such an event to the cell `identity`."""


def _cid(event: Event, state: State) -> Cid | None:
    cid = event.meta.get("cid")
    if not cid:
        return None
    if not is_cid(cid):
        state.quarantine("cid is neither text nor an integer", event.id)
        return None
    return cid  # type: ignore[no-any-return]


def _next_ordinal(state: State) -> int:
    ordinal: int
    ordinal, *warnings = state.get("commitments", _NO_COMMITMENTS)
    state["commitments"] = [ordinal + 1, *warnings]
    return ordinal


def _commitment_open(event: Event, state: State) -> None:
    cid = _cid(event, state)
    if cid is None or event.meta.get("text") is None:
        return
    table = state.table("open")
    present = table.get(cid)
    table[cid] = [_next_ordinal(state) if present is None else present[0], event.meta]


def _evidence_candidate(event: Event, state: State) -> None:
    cid = _cid(event, state)
    if cid is None:
        return
    evidence_type = event.meta.get("evidence_type") or "done"
    if not isinstance(evidence_type, str):
        state.quarantine("evidence_type is not text", event.id)
    elif evidence_type.strip().lower() == "done":
        # Other types have no effect and are not stored.
        evidence = state.table("evidence")
        if cid not in evidence:
            evidence[cid] = True


def _commitment_close(event: Event, state: State) -> None:
    cid = _cid(event, state)
    table = state.table("open")
    if cid is None or cid not in table:
        return
    del table[cid]
    if cid not in state.table("evidence"):
        ordinal, count, first = state.get("commitments", _NO_COMMITMENTS)
        warning = [cid, event.id]
        state.table("warnings")[count] = warning
        state["commitments"] = [ordinal, count + 1, warning if first is None else first]


def _commitment_expire(event: Event, state: State) -> None:
    cid = _cid(event, state)
    table = state.table("open")
    present = table.get(cid) if cid is not None else None
    if cid is None or present is None:
        return
    expired = state.table("expired")
    before = expired.get(cid)
    entry = {"text": present[1]["text"], "expired_at": event.id, "reason": event.meta.get("reason") or "timeout"}
    expired[cid] = [_next_ordinal(state) if before is None else before[0], entry]
    del table[cid]


def _commitment_snooze(event: Event, state: State) -> None:
    cid = _cid(event, state)
    table = state.table("open")
    present = table.get(cid) if cid is not None else None
    if cid is None or present is None:
        return
    until = to_int(event.meta.get("until_tick") or 0) or 0
    table[cid] = [present[0], {**present[1], "snoozed_until": until}]

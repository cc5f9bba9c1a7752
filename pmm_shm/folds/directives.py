"""Directives: every distinct text with its history, and the active set.

State:
    cell `count` (directive events so far);
    tables `texts` (text to a list of the fields of `_Record`), `window` (ordinal to text, the last 200 events).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pmm_shm.codec import Key
from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.fields import to_int
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.rows import Event
from pmm_shm.typed import Any, NamedTuple, TypedDict

WINDOW_EVENTS = 200
ACTIVE_MAX = 7


class Directive(TypedDict):
    """A distinct text with its history; `sources` and the newest origin as its events name them."""

    content: str
    first_seen_ts: str
    last_seen_ts: str
    first_seen_id: int
    last_seen_id: int
    seen_count: int
    sources: list[str]
    last_origin_eid: int | None


class ActiveDirective(TypedDict):
    """A directive of the active set; `recent_hits` counts it among the newest 200 directive events."""

    content: str
    seen_count: int
    recent_hits: int
    score: float
    first_seen_id: int
    last_seen_id: int
    sources: list[str]


class _Record(NamedTuple):
    first_seen_ts: str
    last_seen_ts: str
    first_seen_id: int
    last_seen_id: int
    seen_count: int
    sources: Sequence[str]
    last_origin_eid: int | None
    recent_hits: int


class Directives:
    """All directives at one position; `rows()` and `active()` return new lists of new dicts."""

    def __init__(self, records: dict[str, _Record]) -> None:
        # In the order of `rows()`, which an existing record never leaves.
        self._records = records
        self._best: list[tuple[str, _Record]] | None = None

    @classmethod
    def sorted(cls, records: dict[str, _Record]) -> Directives:
        """From records in any order."""
        return cls(dict(sorted(records.items(), key=lambda item: (item[1].first_seen_ts, item[1].first_seen_id))))

    def patched(self, changed: dict[str, _Record]) -> Directives:
        """The same with some records replaced or added."""
        records = {**self._records, **changed}
        return Directives(records) if len(records) == len(self._records) else Directives.sorted(records)

    def rows(self) -> list[Directive]:
        """Dicts with the fields of the contract, sorted by (first_seen_ts, first_seen_id)."""
        return [
            {
                "content": text,
                "first_seen_ts": record.first_seen_ts,
                "last_seen_ts": record.last_seen_ts,
                "first_seen_id": record.first_seen_id,
                "last_seen_id": record.last_seen_id,
                "seen_count": record.seen_count,
                "sources": list(record.sources),
                "last_origin_eid": record.last_origin_eid,
            }
            for text, record in self._records.items()
        ]

    def active(self) -> list[ActiveDirective]:
        """The seven directives with the highest scores, best first."""
        return [
            {
                "content": text,
                "seen_count": record.seen_count,
                "recent_hits": record.recent_hits,
                "score": _score(record),
                "first_seen_id": record.first_seen_id,
                "last_seen_id": record.last_seen_id,
                "sources": list(record.sources),
            }
            for text, record in self._best_records()
        ]

    def _best_records(self) -> list[tuple[str, _Record]]:
        # Not `functools.cached_property`: before Python 3.12 it has a lock, which a fork may leave held.
        if self._best is None:
            records = self._records.items()
            self._best = sorted(records, key=lambda item: (-_score(item[1]), item[1].first_seen_id))[:ACTIVE_MAX]
        return self._best


def _score(record: _Record) -> float:
    return float(record.seen_count + 2.0 * record.recent_hits)


def text_of(event: Event) -> str:
    """The text by which a directive event is counted: its content, with single spaces."""
    return " ".join(event.content.split())


def counts_in(state: State, text: str) -> dict[str, float]:
    """`seen_count`, `recent_hits` and `score` of a text; all 0 for one that no event had."""
    row = state.table("texts").get(text)
    if row is None:
        return {"seen_count": 0, "recent_hits": 0, "score": 0.0}
    record = _Record(*row)
    return {"seen_count": record.seen_count, "recent_hits": record.recent_hits, "score": _score(record)}


class DirectivesFold(BatchFold):
    """Computes `Directives`."""

    name = "directives"
    version = 2
    checks_values = False
    shares_events = True
    kinds: Mapping[str, tuple[Column, ...]] = {"autonomy_directive": ("content", "meta")}

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        texts, window = state.table("texts"), state.table("window")
        count: int = state.get("count", 0)
        for event in events:
            text = text_of(event)
            before = texts.get(text)
            texts[text] = _first_seen(event) if before is None else _seen_again(before, event)
            window[count] = text
            leaving = count - WINDOW_EVENTS
            if leaving >= 0:
                left = window[leaving]
                del window[leaving]
                row = texts[left]
                texts[left] = [*row[:-1], row[-1] - 1]
            count += 1
        state["count"] = count

    def view(self, state: State) -> Directives:
        return Directives.sorted({text: _Record(*row) for text, row in _texts(state)})

    def patch(self, view: Directives, state: State, touched: Touched) -> Directives:
        table = state.table("texts")
        keys: set[Key] = touched.tables.get("texts", set())
        rows = ((key, table.get(key)) for key in keys)
        return view.patched({str(key): _Record(*row) for key, row in rows if row is not None})


def _texts(state: State) -> list[tuple[str, Any]]:
    return [(str(text), row) for text, row in state.table("texts").items()]


def _source(event: Event) -> str:
    return str(event.meta.get("source") or "").strip().lower()


def _first_seen(event: Event) -> list[Any]:
    source = _source(event)
    origin = to_int(event.meta.get("origin_eid"))
    return [event.ts, event.ts, event.id, event.id, 1, [source] if source else [], origin, 1]


def _seen_again(row: list[Any], event: Event) -> list[Any]:
    first_ts, _, first_id, _, count, sources, last_origin, recent_hits = row
    source = _source(event)
    if source and source not in sources:
        sources = sorted((*sources, source))
    origin = to_int(event.meta.get("origin_eid"))
    origin = last_origin if origin is None else origin
    return [first_ts, event.ts, first_id, event.id, count + 1, sources, origin, recent_hits + 1]

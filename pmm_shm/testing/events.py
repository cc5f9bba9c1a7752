"""Events for the laws of a fold: those that a test gives, events made up for a fold, and hostile variants of both."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.ledger.instants import text_of_instant
from pmm_shm.ledger.rows import Event, InvalidText, RawRow, WideEvent

Given = tuple[str, str, Mapping[str, Any]] | Mapping[str, Any]
"""(kind, content, meta), or a mapping with these keys and, if wanted, `ts` and other columns."""

_MADE, _VARIANTS, _TRIALS = 90, 60, 8
_OTHER_KINDS = ("user", "note", "order")
_HOUR_US = 3_600_000_000
_BEGIN_US = 1_767_225_600_000_000
_TEXTS: tuple[Any, ...] = ("a", "b", "c", "a longer text", "é\u0000☃")
_VALUES: tuple[Any, ...] = ("a", "b", "c", 0, 1, 2, 7, -3, 0.5, 1e300, "2026-01-01", ["a", "b"], {"a": 1})
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, "", [], {}, [[]], "x" * 3_000, "\ud800", 10**40, -(10**20), float("nan"), float("inf"), 1e-320),
    *({"a": {"a": None}}, ["b", "a"], 2, "2"),
)
_ODD_CONTENTS: tuple[Any, ...] = (None, 7, 0.5, b"\x00\xff", InvalidText(b"\xff"), "", "x" * 3_000, "\x00")
_ODD_METAS: tuple[Any, ...] = (
    *(None, "", "{", "[]", "null", "7", '"a"', b"{}", 7, InvalidText(b"{\xff}"), "{}"),
    *("[" * 5_000, '{"a": ' + "[" * 300 + "]" * 300 + "}", '{"a": ' + "9" * 5_000 + "}", '{"a": 1, "a": 2}'),
)
_ODD_TIMES: tuple[Any, ...] = (None, "", "never", b"2026", 7, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z")
_COLUMN_VALUES: tuple[Any, ...] = ("a", "b", 7, 0.5, None, b"\x00\xff", InvalidText(b"\xff"), "")


class _Asked(dict[str, Any]):
    """A `meta` that has every key, and notes which ones a fold asks for."""

    def __init__(self, sample: Any, noted: dict[str, Any]) -> None:
        super().__init__()
        self._sample = sample
        self._noted = noted

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]

    def __contains__(self, key: object) -> bool:
        self._noted.setdefault(str(key), {})
        return True

    def __getitem__(self, key: Any) -> Any:
        within = self._noted.setdefault(str(key), {})
        return _Asked("a", within) if self._sample is dict and len(within) < 20 else self._sample


def rows_of(events: Iterable[Given], fold: Fold) -> list[RawRow]:
    """The rows of a test's own events."""
    rows: list[RawRow] = []
    for given in events:
        if isinstance(given, Event):
            given = {**given._asdict(), **given.columns}
        if not isinstance(given, Mapping):
            kind, content, meta = given
            given = {"kind": kind, "content": content, "meta": meta}
        others = [given.get(column) for column in fold.columns]
        rows.append(
            _row(len(rows), given["kind"], given.get("content", ""), given.get("meta", {}), others, given.get("ts"))
        )
    return rows


def hostile_rows(fold: Fold, given: Sequence[RawRow] | None, seed: int) -> list[RawRow]:
    """Rows for a fold: those given, or made up, and between them variants of them that are malformed or odd."""
    chance = random.Random(seed)
    usual = _made_up(fold, chance) if given is None else list(given)
    rows: list[RawRow] = []
    for number, row in enumerate(usual):
        # Spread evenly, so that a few events get many of them.
        count = (number + 1) * _VARIANTS // len(usual) - number * _VARIANTS // len(usual)
        rows += [row, *(_variant(chance.choice(usual), chance) for _ in range(count))]
    # Gaps between ids are legal.
    return [(3 * number + 1, *row[1:]) for number, row in enumerate(rows)]


def _row(number: int, kind: str, content: Any, meta: Any, others: Sequence[Any], ts: Any = None) -> RawRow:
    text = json.dumps(dict(meta)) if isinstance(meta, Mapping) else meta
    when = text_of_instant(_BEGIN_US + number * 7 * _HOUR_US) + "+00:00" if ts is None else ts
    return (3 * number + 1, when, kind, content, text, *others)


def _made_up(fold: Fold, chance: random.Random) -> list[RawRow]:
    kinds = list(_OTHER_KINDS if fold.kinds is None else fold.kinds)
    asked = {kind: _asked_keys(fold, kind) for kind in kinds}
    rows: list[RawRow] = []
    for number in range(_MADE if kinds else 0):
        kind = chance.choice(kinds)
        for _ in range(_TRIALS):
            content, meta = chance.choice(_TEXTS), _meta(asked[kind], chance)
            others = [chance.choice(_COLUMN_VALUES) for _ in fold.columns]
            row = _row(number, kind, content, meta, others)
            # Events of which a fold can make nothing are easily made up; those that it can use are looked for.
            if _is_usable(fold, row, meta):
                break
        rows.append(row)
    return rows


def _asked_keys(fold: Fold, kind: str) -> dict[str, Any]:
    noted: dict[str, Any] = {}
    for sample in ("a", 1, dict, ["a"]):
        _try(fold, _event(fold, 1, kind, "a", _Asked(sample, noted), ["a"] * len(fold.columns)))
    return noted


def _meta(asked: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    return {
        key: _meta(within, chance) if within and chance.random() < 0.7 else chance.choice(_VALUES)
        for key, within in asked.items()
        if chance.random() < 0.9
    }


def _is_usable(fold: Fold, row: RawRow, meta: dict[str, Any]) -> bool:
    return _try(fold, _event(fold, row[0], row[2], row[3], meta, row[5:]))


def _event(fold: Fold, event_id: int, kind: str, content: str, meta: dict[str, Any], others: Sequence[Any]) -> Event:
    event = WideEvent(event_id, text_of_instant(_BEGIN_US), kind, content, meta)
    event.columns = dict(zip(fold.columns, others, strict=True))
    return event


def _try(fold: Fold, event: Event) -> bool:
    try:
        fold.apply(event, State())
    except (Exception, SystemExit):
        return False
    return True


def _variant(row: RawRow, chance: random.Random) -> RawRow:
    values = list(row)
    part = chance.choice((1, 3, 4, 4, 5, 5, 5, 5, *range(5, len(row)), *range(5, len(row))))
    if part == 1:
        values[1] = chance.choice(_ODD_TIMES)
    elif part == 3:
        values[3] = chance.choice(_ODD_CONTENTS)
    elif part == 4:
        values[4] = chance.choice(_ODD_METAS)
    elif part < len(row) and chance.random() < 0.5:
        values[part] = chance.choice(_COLUMN_VALUES)
    else:
        values[4] = _odd_meta(row[4], chance)
    return tuple(values)


def _odd_meta(text: Any, chance: random.Random) -> Any:
    try:
        meta = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return text
    if not isinstance(meta, dict) or not meta:
        return text
    key = chance.choice(sorted(meta))
    if chance.random() < 0.3:
        del meta[key]
    else:
        meta[key] = chance.choice(_ODD_VALUES)
    return json.dumps(meta)

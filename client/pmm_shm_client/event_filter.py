"""Which events a search may return: by id, kind, role and time, and each text once.

A filter is applied to a whole ranking, not to its best few: it goes down the ranking until enough events have passed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from itertools import islice
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm.ledger.fetch import fetch_batch
from pmm_shm.ledger.instants import instant_us
from pmm_shm.ledger.rows import ID_MAX, ID_MIN, RawRow, parse_content, text_or_empty
from pmm_shm_client.reader import Reader

Moment = int | str | datetime
"""An event id, or a time: ISO 8601 (UTC without an offset) or a `datetime` (UTC without a zone). A date is its first
moment, as the end of a range its last.
"""

KINDS_OF_ROLE = {"user": ("user", "user_message"), "assistant": ("response", "assistant_message")}
_ROWS = 256
_DATE_CHARS = len("2026-01-31")
_DAY_US = 86_400_000_000


class EventFilter(NamedTuple):
    """A checked filter.

    Attributes:
        kinds: None for all.
        first_id, last_id, first_us, last_us: bounds of ids and times, all included; of times None for none.
        is_distinct: return only the best of events whose texts differ in case, white space and punctuation alone.
    """

    kinds: frozenset[str] | None
    first_id: int
    last_id: int
    first_us: int | None
    last_us: int | None
    is_distinct: bool

    @classmethod
    def of(
        cls,
        kinds: Collection[str] | None,
        roles: Collection[str] | None,
        since: Moment | None,
        until: Moment | None,
        distinct: bool,
    ) -> EventFilter:
        """Check arguments as `Cache.search` takes them.

        Raises:
            ConfigError: one means nothing.
        """
        wanted = None if kinds is None else frozenset(_texts("kinds", kinds))
        if roles is not None:
            unknown = set(_texts("roles", roles)) - KINDS_OF_ROLE.keys()
            if unknown:
                raise ConfigError(f"roles: expected {' or '.join(KINDS_OF_ROLE)}, got {min(unknown)!r:.80}")
            of_roles = frozenset(kind for role in roles for kind in KINDS_OF_ROLE[role])
            wanted = of_roles if wanted is None else wanted & of_roles
        first_id, first_us = _moment("since", since)
        last_id, last_us = _moment("until", until)
        if last_us is not None and isinstance(until, str) and len(until) == _DATE_CHARS:
            # The whole day.
            last_us += _DAY_US - 1
        return cls(
            wanted,
            ID_MIN if first_id is None else first_id + 1,
            ID_MAX if last_id is None else last_id,
            first_us,
            last_us,
            bool(distinct),
        )

    @property
    def is_open(self) -> bool:
        """Whether every event passes by itself."""
        return self[:5] == (None, ID_MIN, ID_MAX, None, None)

    @property
    def admits_all(self) -> bool:
        """Whether every event is returned, equal texts included."""
        return self.is_open and not self.is_distinct

    @property
    def is_dated(self) -> bool:
        """Whether a time bounds the events."""
        return self.first_us is not None or self.last_us is not None

    def admits(self, row: RawRow) -> bool:
        """Whether an event passes by itself, from its id, ts and kind."""
        event_id, ts, kind = row[:3]
        if not self.first_id <= event_id <= self.last_id or (self.kinds is not None and kind not in self.kinds):
            return False
        if not self.is_dated:
            return True
        instant = instant_us(text_or_empty(ts))
        return (
            instant is not None
            and (self.first_us is None or instant >= self.first_us)
            and (self.last_us is None or instant <= self.last_us)
        )


class Selection:
    """Goes down rankings for one search."""

    def __init__(self, reader: Reader, wanted: EventFilter) -> None:
        self._reader, self._wanted = reader, wanted

    def first(self, ranking: Iterable[int], count: int) -> list[int]:
        """The first `count` ids of a ranking that are in the log and pass.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        chosen: list[int] = []
        seen: set[str] = set()
        left = iter(ranking)
        # A filter may leave some out, so look at more of them at once.
        rows_of_each = 1 if self._wanted.admits_all else 2
        while len(chosen) < count:
            part = list(islice(left, min(_ROWS, rows_of_each * (count - len(chosen)))))
            if not part:
                break
            rows = self._rows(part, "content" if self._wanted.is_distinct else "NULL")
            for event_id in part:
                row = rows.get(event_id)
                if row is None or len(chosen) == count or not self._wanted.admits(row):
                    continue
                if self._wanted.is_distinct:
                    text = spelled_alike(parse_content(row[3])[0])
                    if text in seen:
                        continue
                    seen.add(text)
                chosen.append(event_id)
        return chosen

    def kinds_and_texts(self, ids: Sequence[int], chars_max: int) -> list[tuple[str, str]]:
        """Kind and beginning of the text of some events; "" for what an event does not have.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        rows = self._rows(ids, f"substr(content, 1, {chars_max})")
        none = (0, "", "", "")
        found = (rows.get(one, none) for one in ids)
        return [(text_or_empty(row[2]), parse_content(row[3])[0]) for row in found]

    def all(self) -> tuple[list[int], int]:
        """All ids of the log that pass by themselves, ascending; and the newest id that was looked at.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        found: list[int] = []
        last_id = self._wanted.first_id - 1 if self._wanted.first_id > ID_MIN else ID_MIN
        head = last_id
        while True:
            rows = self._reader.with_ledger(self._rows_after, last_id)
            found += [row[0] for row in rows if self._wanted.admits(row)]
            if not rows:
                return found, head
            head = last_id = rows[-1][0]

    def _rows(self, ids: Sequence[int], content: str) -> dict[int, RawRow]:
        return self._reader.with_ledger(self._read, ids, content)

    def _read(self, ids: Sequence[int], content: str) -> dict[int, RawRow]:
        # Where every event passes, only whether it exists counts.
        columns = "id, NULL, NULL" if self._wanted.admits_all and content == "NULL" else "id, ts, kind"
        found: dict[int, RawRow] = {}
        left = sorted(ids)
        while left:
            places = ", ".join("?" * len(left))
            sql = f"SELECT {columns}, {content} FROM events WHERE id IN ({places}) ORDER BY id LIMIT ?"
            batch = fetch_batch(self._reader.connection, sql, tuple(left), len(left) + 1)
            found.update((row[0], row) for row in batch.rows)
            # Large contents may end a batch early.
            left = [] if batch.complete else [one for one in left if one > batch.rows[-1][0]]
        return found

    def _rows_after(self, last_id: int) -> list[RawRow]:
        sql = "SELECT id, ts, kind FROM events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
        return fetch_batch(self._reader.connection, sql, (last_id, self._wanted.last_id), limits.TAIL_ROWS_MAX).rows


def spelled_alike(text: str) -> str:
    """A key for a text that ignores case, white space and punctuation.

    Symbols and marks count: a thumb up is not a thumb down, nor is `की` the word `का`.
    """
    kept = unicodedata.normalize("NFC", text.casefold()).translate(_WITHOUT_PUNCTUATION)
    # Of texts of punctuation alone, only equal ones are alike.
    return kept or text


class _WithoutPunctuation(dict[int, int | None]):
    """A table for `str.translate` that drops white space and punctuation; it grows as it is used."""

    def __missing__(self, point: int) -> int | None:
        category = unicodedata.category(chr(point))
        # Line breaks are control characters, and a backtick is a modifier.
        kept = None if category[0] in "PZ" or category in ("Cc", "Cf", "Sk") else point
        self[point] = kept
        return kept


_WITHOUT_PUNCTUATION = _WithoutPunctuation()


def _texts(name: str, values: object) -> Iterator[str]:
    if isinstance(values, str) or not isinstance(values, Collection):
        raise ConfigError(f"{name}: expected a list of texts, got {values!r:.80}")
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"{name}: expected texts, got {value!r:.80}")
        yield value


def _moment(name: str, value: Any) -> tuple[int | None, int | None]:
    """(event id, microseconds since 1970 UTC): one of them, or neither."""
    if value is None:
        return None, None
    if type(value) is int:
        return value, None
    if isinstance(value, datetime):
        zoned = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
        # In UTC it may be before the first year, or after the last.
        with suppress(OverflowError):
            value = zoned.astimezone(timezone.utc).isoformat()
    instant = instant_us(value) if isinstance(value, str) else None
    if instant is None:
        raise ConfigError(f"{name}: expected an event id or a time in ISO 8601, got {value!r:.80}")
    return None, instant
